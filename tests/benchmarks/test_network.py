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

from tests.benchmarks.compare import run_program
from tests.benchmarks.on_clock import Result, clocks, run_on_clock
from tests.benchmarks.workloads import WORKLOADS

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
