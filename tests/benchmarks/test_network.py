"""How fast the network core is on the workloads; run by `make bench`, never a pass or fail.

1,024 nodes are marked `large`: ``make bench SELECT=large``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.benchmarks.compare import IN_CORE_OPTIONS, run_program
from tests.benchmarks.on_clock import Result, clocks, run_in_core, run_on_clock, run_stragglers
from tests.benchmarks.workloads import WORKLOADS, ring_on_fat_tree

# Two million flows in one component are an hour for the plain core.
TOO_LONG = {("ring on a fat tree", 1024, "plain")}

CASES = [
    pytest.param(title, nodes, core, id=f"{title}-{nodes}-{core}", marks=[pytest.mark.large][: nodes > 256])
    for title in WORKLOADS
    for nodes in (64, 256, 1024)
    for core in clocks()
    if (title, nodes, core) not in TOO_LONG
]


@pytest.mark.benchmark(group="network")
@pytest.mark.parametrize(("title", "nodes", "core"), CASES)
def test_workload(
    benchmark: Any,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
    title: str,
    nodes: int,
    core: str,
) -> None:
    workload = WORKLOADS[title](nodes)
    results: list[Result] = []

    def work() -> None:
        results.append(run_on_clock(workload, core))

    benchmark.pedantic(work, rounds=3, warmup_rounds=1 if nodes == 64 else 0)
    # Peak memory is that of a program which does nothing else.
    file = tmp_path / "workload.txt"
    file.write_text(workload.text(), encoding="ascii")
    alone = run_program([sys.executable, "-m", "tests.benchmarks.on_clock", "--core", core, str(file)])
    assert alone is not None
    assert alone.finish == results[-1].finish
    speeds = [result.flows / result.cpu_seconds for result in (*results, alone)]
    figures = {
        "flows": alone.flows,
        "flows_per_cpu_second_best": round(max(speeds)),
        "flows_per_cpu_second_median": round(median(speeds)),
        "peak_memory_mib": round(alone.peak_memory / 2**20),
    }
    for name, value in figures.items():
        benchmark.extra_info[name] = value
        record_property(name, value)


def _measured(
    benchmark: Any, record_property: Callable[[str, object], None], run: Callable[[], Result]
) -> None:
    """Measure one collective in the compiled core; the first round loads or compiles it."""
    pytest.importorskip("numba")
    results: list[Result] = []
    benchmark.pedantic(lambda: results.append(run()), rounds=3, warmup_rounds=1)
    speeds = [result.flows / result.cpu_seconds for result in results]
    record_property("flows", results[0].flows)
    record_property("flows_per_cpu_second_best", round(max(speeds)))
    record_property("cpu_seconds_best", round(min(result.cpu_seconds for result in results), 4))


@pytest.mark.benchmark(group="network")
@pytest.mark.parametrize("nodes", [64, 256, 1024])
@pytest.mark.parametrize("title", IN_CORE_OPTIONS)
def test_ring_in_the_core(
    benchmark: Any, record_property: Callable[[str, object], None], title: str, nodes: int
) -> None:
    if (title, nodes) == ("ring on a fat tree", 1024):
        pytest.skip("it takes as long for each flow as 64 steps, and 32 times as long in all")
    workload = WORKLOADS[title](nodes)
    max_plus = "--max-plus" in IN_CORE_OPTIONS[title]
    _measured(benchmark, record_property, lambda: run_in_core(workload, max_plus=max_plus))


@pytest.mark.benchmark(group="network")
def test_all_reduces_with_stragglers(benchmark: Any, record_property: Callable[[str, object], None]) -> None:
    _measured(benchmark, record_property, lambda: run_stragglers(1024, 100))


@pytest.mark.benchmark(group="network")
def test_large_contended_ring(benchmark: Any, record_property: Callable[[str, object], None]) -> None:
    workload = ring_on_fat_tree(16384, steps=16)
    _measured(benchmark, record_property, lambda: run_in_core(workload))
