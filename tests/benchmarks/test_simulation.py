"""How fast the simulator is; run by `make bench`, never a pass or fail."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.engine.simulate import simulate
from simulator.scenario import Scenario


def timing_only(workers: int, iterations: int) -> Scenario:
    """AllReduce-SGD with 4 overlapping buckets, per-step lognormal jitter, 8 GPUs a host on one NIC."""
    return Scenario(
        {
            "name": "timing-only",
            "cluster": {
                "topology": {
                    "builder": "two-level",
                    "hosts": workers // 8,
                    "gpus-per-host": 8,
                    "inside": {"bandwidth": "100 GB/s", "latency": "2 us"},
                    "network": {"bandwidth": "100 Gbps", "latency": "2 us"},
                },
                "device": "v100-sxm2-16gb",
                "stragglers": [{"kind": "lognormal", "sigma": 0.1}],
            },
            "workload": {
                "cost": {
                    "parameters": 25_000_000,
                    "batch": 32,
                    "gradient": "100 ms",
                    "bucket-count": 4,
                    "update": "1 ms",
                }
            },
            "algorithm": "allreduce-sgd",
            "budget": {"iterations": iterations},
        }
    )


@pytest.mark.benchmark(group="timing-only")
@pytest.mark.parametrize(("workers", "iterations"), [(64, 100), (256, 100)])
def test_timing_only_allreduce(benchmark: Any, workers: int, iterations: int) -> None:
    scenario = timing_only(workers, iterations)
    run = benchmark.pedantic(simulate, (scenario,), {"monitor": False}, rounds=3, warmup_rounds=1)
    assert run.iterations == (iterations,) * workers
    benchmark.extra_info["worker_iterations_per_s"] = workers * iterations / benchmark.stats["median"]


@pytest.mark.benchmark(group="numerics")
@pytest.mark.parametrize("part", ["bare gradients", "simulation"])
def test_numerics(benchmark: Any, part: str) -> None:
    """16 workers of AllReduce-SGD on the MLP, beside the gradient evaluations that it contains."""
    import torch

    scenario = Scenario.load("cocod-1080ti").variants()[1]
    scenario = scenario.vary(step_size=0.1, budget={"iterations": 50})
    assert scenario.objective is not None
    torch.set_num_threads(1)
    oracle = scenario.objective.oracle(0, (1.0,), 32, 1)
    x = scenario.objective.initial_model()

    def gradients() -> None:
        for _ in range(16 * 50):
            oracle.gradient(x)

    work = gradients if part == "bare gradients" else lambda: simulate(scenario)
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)
