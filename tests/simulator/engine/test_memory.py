"""What a worker without numerics takes in memory, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

SIMULATION = """
import resource
from simulator.engine.simulate import simulate
from simulator.scenario import Scenario

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

scenario = {
    "name": "many",
    "cluster": {
        "topology": {"builder": "two-level", "hosts": WORKERS // 8, "gpus-per-host": 8},
        "device": "v100-sxm2-16gb",
        "stragglers": [{"kind": "lognormal"}],
    },
    "workload": {
        "cost": {"parameters": 25_000_000, "batch": 32, "gradient": "100 ms", "bucket-count": 4},
    },
    "algorithm": "allreduce-sgd",
    "budget": {"iterations": 2},
}
before = peak()
simulate(Scenario(scenario), monitor=False)
print(peak() - before)
"""


def test_a_timing_only_worker_takes_few_kilobytes() -> None:
    workers = 4096
    done = subprocess.run(
        [sys.executable, "-c", SIMULATION.replace("WORKERS", str(workers))],
        env={**os.environ, "PACELINE_CORE": "plain"},
        capture_output=True,
        text=True,
        check=True,
    )
    # Measured: 10.6 kB, of which the spans are 1 kB and the operations under way in four buckets 3 kB.
    assert int(done.stdout) / workers < 14e3
