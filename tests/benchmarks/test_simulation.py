"""How fast the simulator is; run by `make bench`, never a pass or fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.engine.simulate import simulate
from simulator.scenario import Scenario
from tests.benchmarks.scenarios import timing_only


@pytest.mark.benchmark(group="timing-only")
@pytest.mark.parametrize(("workers", "iterations"), [(64, 100), (256, 100)])
def test_timing_only_allreduce(benchmark: Any, workers: int, iterations: int) -> None:
    scenario = timing_only(workers, iterations)
    run = benchmark.pedantic(simulate, (scenario,), {"monitor": False}, rounds=3, warmup_rounds=1)
    assert run.iterations == (iterations,) * workers
    benchmark.extra_info["worker_iterations_per_s"] = workers * iterations / benchmark.stats["median"]


MEMORY = """
import resource, sys, time
sys.path.insert(0, {root!r})
from tests.benchmarks.scenarios import timing_only
from simulator.engine.simulate import Simulation

start = time.process_time()
scenario = timing_only({workers}, 2).vary(algorithm={algorithm!r})
simulation = Simulation(scenario, None, monitor=False, core={core!r})
ready = time.process_time()
simulation.run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ready - start, time.process_time() - ready)
"""
GOAL_MB = 300
GOAL_RATIO = 1.1


@pytest.mark.benchmark(group="memory")
@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "local-sgd"])
@pytest.mark.parametrize("core", ["plain", "compiled"])
def test_memory(
    benchmark: Any, record_property: Callable[[str, object], None], core: str, algorithm: str
) -> None:
    """Peak memory of 16,384 workers without numerics, each time in a process of its own.

    The compiled functions come from their cache: to compile them for the first time takes some 220 MB more.
    """
    if core == "compiled":
        pytest.importorskip("numba")
    root = str(Path(__file__).parents[2])

    def measured(workers: int) -> list[float]:
        code = MEMORY.format(root=root, workers=workers, algorithm=algorithm, core=core)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [float(number) for number in done.stdout.split()]

    measured(16)  # fills the cache
    kilobytes, setting_up, running = benchmark.pedantic(measured, (16_384,), rounds=1)
    megabytes = kilobytes * 1024 / 1e6
    verdict = "reached" if megabytes < GOAL_MB else "missed"
    record_property("peak memory", f"{megabytes:.0f} MB (goal {GOAL_MB} MB {verdict})")
    record_property("set-up", f"{setting_up:.1f} CPU s")
    record_property("run", f"{running:.1f} CPU s")


def with_numerics(hidden: int, batch: int, evaluation: str) -> Scenario:
    """Return 50 iterations of 16 workers of AllReduce-SGD on the MLP."""
    changes = {
        "workload.objective-batch": batch,
        "workload.objective.hidden": hidden,
        "workload.evaluation": evaluation,
    }
    scenario = Scenario.load("cocod-1080ti").variants()[1]
    return scenario.vary(changes, step_size=0.1, budget={"iterations": 50})


def evaluated(scenario: Scenario, batch: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of the gradients that a run contains, and of those with its reports."""
    objective = scenario.objective
    assert objective is not None
    oracle = objective.oracle(0, (1.0,), batch, 1)
    x = objective.initial_model()
    start = clock()
    for _ in range(16 * 50):
        oracle.gradient(x)
    bare = clock() - start
    for _ in range(50):
        objective.loss_and_gradient_norm(x)
    return bare, clock() - start


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.benchmark(group="numerics")
@pytest.mark.parametrize(("hidden", "batch"), [(256, 512), (1024, 512)])
def test_numerics_on_several_threads(
    benchmark: Any, record_property: Callable[[str, object], None], hidden: int, batch: int
) -> None:
    """The same run on one thread and on as many as there are processors, in wall-clock time."""
    scenario = with_numerics(hidden, batch, "separate")
    processors = os.cpu_count() or 1
    bare, alone, together = [], [], []

    def in_turns() -> None:
        with torch_threads(1):
            bare.append(evaluated(scenario, batch, time.perf_counter)[1])
            start = time.perf_counter()
            simulate(scenario)
            alone.append(time.perf_counter() - start)
        with torch_threads(processors):
            start = time.perf_counter()
            simulate(scenario)
            together.append(time.perf_counter() - start)

    benchmark.pedantic(in_turns, rounds=7, warmup_rounds=1)
    record_property("gradients and reports", f"{1e3 * min(bare):.0f} ms")
    record_property("on one thread", f"{1e3 * min(alone):.0f} ms, {min(alone) / min(bare):.2f} of that")
    figures = f"{1e3 * min(together):.0f} ms, {min(together) / min(bare):.2f} of that"
    record_property(f"on {processors} threads", figures)


@pytest.mark.benchmark(group="numerics")
@pytest.mark.parametrize("evaluation", ["separate", "batched"])
@pytest.mark.parametrize(("hidden", "batch"), [(32, 2), (32, 32), (32, 512), (1024, 512)])
def test_numerics(
    benchmark: Any, record_property: Callable[[str, object], None], hidden: int, batch: int, evaluation: str
) -> None:
    """16 workers of AllReduce-SGD on the MLP, beside the evaluations that it contains, in CPU time.

    2 samples a gradient and 32 hidden units are what the scenario that ships takes, 32 samples what one would
    take on one machine; with 512 and 1,024 units a gradient has something to do. The ratios are to the
    bare gradients of the workers, and to those with the loss and the gradient norm on all data, which each of
    the 50 reports takes.
    """
    scenario = with_numerics(hidden, batch, evaluation)
    bare, with_reports, simulated = [], [], []

    def in_turns() -> None:
        times = evaluated(scenario, batch, time.process_time)
        bare.append(times[0])
        with_reports.append(times[1])
        start = time.process_time()
        simulate(scenario)
        simulated.append(time.process_time() - start)

    with torch_threads(1):
        benchmark.pedantic(in_turns, rounds=7, warmup_rounds=1)
    record_property("bare gradients", f"{1e3 * min(bare):.0f} ms")
    record_property("with reports", f"{1e3 * min(with_reports):.0f} ms")
    record_property("simulation", f"{1e3 * min(simulated):.0f} ms")
    ratio = min(simulated) / min(with_reports)
    verdict = "reached" if ratio <= GOAL_RATIO else "missed"
    record_property("ratio to the gradients", f"{min(simulated) / min(bare):.2f}")
    record_property("to both", f"{ratio:.2f} (goal {GOAL_RATIO} {verdict})")
