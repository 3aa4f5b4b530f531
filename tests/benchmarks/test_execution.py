"""What the wall clock costs; run by `make bench`, never a pass or fail.

- AllReduce-SGD with overlap beside DistributedDataParallel, in turns in the same processes.
- Of every other algorithm, the time of an iteration in which a rank neither computes nor has a call of
  ``torch.distributed`` under way: what the worker adds to its bare calls (threads, copies, records). What a
  late peer costs is inside the calls.
- Eight local ranks start, all-reduce and end.
"""

from __future__ import annotations

import json
import multiprocessing
import runpy
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS
from simulator.execution import execute, launch
from simulator.scenario import Scenario
from traces import COMPUTE, TRANSFER, WAIT

SCRIPT = Path(__file__).parent / "beside_ddp.py"
ITERATIONS = 60
ONE_HOST = {"builder": "two-level", "hosts": 1, "gpus-per-host": 2}


def scenario(algorithm: str, workers: int = 2, iterations: int = ITERATIONS) -> Scenario:
    """Return two workers of one host on the small CNN, or on a problem that the algorithm can take."""
    objective: dict[str, Any] = {"kind": "cnn", "data": "digits"}
    if ALGORITHMS[algorithm].needs.startswith("compositional"):
        objective = {"kind": "portfolio"}
    elif ALGORITHMS[algorithm].load().requires & {"finite-sum"}:
        objective = {"kind": "logistic", "data": "digits"}
    return Scenario(
        {
            "name": "overhead",
            "cluster": {
                "topology": {**ONE_HOST, "gpus-per-host": workers},
                "device": "gtx-1080-ti",
            },
            "workload": {
                "cost": {"parameters": 100_000, "batch": 32, "gradient": "1 ms"},
                "objective": objective,
            },
            "algorithm": algorithm,
            "step-size": 0.01,
            "budget": {"iterations": iterations},
        }
    )


def beside_ddp(folder: Path, batch: int, rounds: int = 3) -> dict[str, tuple[float, float]]:
    """Return the median iteration of AllReduce-SGD and of DistributedDataParallel, and a rank's processor
    seconds of one: of rank 1, which does not evaluate the losses of the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch.warm_up()
    context = multiprocessing.get_context("forkserver")
    processes = []
    for rank in range(2):
        environment = {
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_LOCALID": str(rank),
            "SLURM_NODELIST": "localhost",
            "MASTER_PORT": port,
        }
        settings = {"batch": batch, "rounds": rounds, "iterations": ITERATIONS}
        given = (environment, settings, str(folder / f"{rank}.json"))
        with launch._main_module(needed=False):
            process = context.Process(target=runpy.run_path, args=(str(SCRIPT), {"given": given}))
            process.start()
        processes.append(process)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    medians = {}
    for rank, key in enumerate(("seconds", "processor")):
        found = json.loads((folder / f"{rank}.json").read_text())
        ours, theirs = (statistics.median(turn[key] for turn in found[who]) for who in ("ours", "theirs"))
        medians[key] = (ours, theirs)
    return medians


@pytest.mark.benchmark(group="execution")
@pytest.mark.parametrize("batch", [32, 256])
def test_allreduce_sgd_beside_ddp(benchmark: Any, record_property: Any, tmp_path: Path, batch: int) -> None:
    medians = benchmark.pedantic(beside_ddp, (tmp_path, batch), rounds=1)
    for key, (ours, theirs) in medians.items():
        record_property(f"{key}: AllReduce-SGD", f"{1e3 * ours:.2f} ms")
        record_property("DistributedDataParallel", f"{1e3 * theirs:.2f} ms")
        record_property("ratio", f"{ours / theirs:.3f}")


def own_seconds(run: Any) -> tuple[float, float]:
    """Return the seconds of an iteration, and those in which a worker did nothing of its own calls; means."""
    kinds = (COMPUTE, TRANSFER, WAIT)
    covered = 0.0
    for worker in range(run.workers):
        intervals = sorted((s.start, s.end) for s in run.timeline if s.worker == worker and s.kind in kinds)
        reach = 0.0
        for start, end in intervals:
            covered += max(0.0, end - max(start, reach))
            reach = max(reach, end)
    iterations = sum(run.iterations) / run.workers
    return run.duration / iterations, (run.duration - covered / run.workers) / iterations


@pytest.mark.benchmark(group="execution")
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_overhead_of_the_worker(benchmark: Any, record_property: Any, algorithm: str) -> None:
    chosen = scenario(algorithm)
    execute(chosen)
    run = benchmark.pedantic(execute, (chosen,), rounds=1)
    whole, own = own_seconds(run)
    record_property("iteration", f"{1e3 * whole:.2f} ms")
    record_property("the worker's own", f"{1e6 * own:.0f} us, {100 * own / whole:.1f} %")


@pytest.mark.benchmark(group="execution")
def test_eight_ranks_start_and_all_reduce(benchmark: Any, record_property: Any) -> None:
    chosen = scenario("allreduce-sgd", workers=8, iterations=1).vary(
        objective={"kind": "quadratic", "dimension": 1000}
    )
    execute(chosen)
    seconds = []

    def started() -> None:
        begin = time.perf_counter()
        assert execute(chosen) is not None
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(started, rounds=7)
    record_property("median of 7", f"{statistics.median(seconds):.2f} s")
