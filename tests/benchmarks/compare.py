"""Our cores beside SimGrid on the same workload files, as tables in Markdown.

``python -m tests.benchmarks.compare PROGRAM`` measures each workload with the SimGrid program and with each
core of ours, every run in a process of its own and in turns, and prints flows per CPU second of the run phase
(best and median), their ratios, the agreement of the simulated times, and memory. ``--write FILE`` puts the
tables into a page, between its two comment lines ``measured`` and ``end of measured``. ``--golden FILE``
stores SimGrid's times of the small workloads for the tests instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

from simulator.run import processor
from tests.benchmarks.on_clock import Result, clocks
from tests.benchmarks.workloads import WORKLOADS, Workload, incast, line, pairs, ring_on_fat_tree

GOLDEN_NODES = 64
BEGIN, END = "<!-- measured: rewritten by `make bench-simgrid` -->", "<!-- end of measured -->"

# What a workload has to reach, against SimGrid. The plain core: a third, everywhere, up to 1,024 nodes.
PLAIN_GOAL = 1 / 3
PLAIN_GOAL_UP_TO = 1024
GOALS: dict[tuple[str, int], float] = {
    ("gossip, full-duplex NIC", 1024): 2.5,
    ("gossip, full-duplex NIC", 4096): 2.5,
    ("gossip, shared NIC", 1024): 2.5,
    ("gossip, shared NIC", 4096): 2.5,
    ("parameter server", 1024): 25.0,
    ("ring on a fat tree, 64 steps", 1024): 15.0,
    ("ring on a fat tree", 1024): 12.0,
}
# A ring as one collective in the core, by the options with which `on_clock` runs it so, and its goals.
IN_CORE = "in the core"
IN_CORE_OPTIONS: dict[str, list[str]] = {
    "ring on a fat tree, 64 steps": ["--in-core"],
    "ring on a fat tree": ["--in-core"],
    "ring on a star": ["--in-core", "--max-plus"],
}
IN_CORE_GOAL = 30.0
IN_CORE_GOAL_AT = 1024
# CPU seconds in which each of the two large cases is to be done.
ABSOLUTE_GOAL = 1.0
# Up to which number of nodes a workload is measured unless `--every` asks for more.
UP_TO = {
    "parameter server": 1024,
    "ring on a fat tree, 64 steps": 1024,
    "ring on a fat tree": 1024,
    "ring on a star": 1024,
}


class _Failed(RuntimeError):
    """A simulator did not run a workload."""


@dataclass
class Measurement:
    """The runs of one workload by one simulator; `results` is empty if the first took longer than allowed."""

    results: list[Result] = field(default_factory=list)

    @property
    def best(self) -> Annotated[float, "flows per CPU second"]:
        return max(map(_speed, self.results))

    @property
    def median(self) -> Annotated[float, "flows per CPU second"]:
        return median(map(_speed, self.results))


def _speed(result: Result) -> float:
    return result.flows / result.cpu_seconds


def measure(
    workload: Workload,
    commands: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    limit: Annotated[float, "s"],
    enough: Annotated[float, "s"] = 20.0,
) -> dict[str, Measurement]:
    """Run a workload `rounds` times with each command, in turns.

    A run of more than `limit` seconds is given up. A command whose runs have taken `enough` seconds is not
    repeated.
    """
    print(workload.name, file=sys.stderr, end=" ", flush=True)
    measured = {name: Measurement() for name in commands}
    spent = dict.fromkeys(commands, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workload.txt"
        file.write_text(workload.text(), encoding="ascii")
        for _ in range(rounds):
            for name, command in commands.items():
                if spent[name] < min(enough, limit):
                    begin = perf_counter()
                    result = run_program([*command, str(file)], limit)
                    spent[name] += limit if result is None else perf_counter() - begin
                    if result is not None:
                        measured[name].results.append(result)
                    print("." if result else "-", file=sys.stderr, end="", flush=True)
    print(file=sys.stderr)
    return measured


def run_program(command: Sequence[str], limit: float | None = None) -> Result | None:
    """Return the result that a program prints as JSON, or nothing if it takes longer than `limit` seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise _Failed(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    printed: dict[str, Any] = json.loads(done.stdout)
    return Result(**{**printed, "finish": tuple(printed["finish"])})


def difference(one: Result, other: Result) -> tuple[float, float]:
    """Return the relative differences of the makespans and, at most, of the ends of a process."""
    ends = zip(one.finish, other.finish, strict=True)
    return (
        abs(one.makespan - other.makespan) / other.makespan,
        max(abs(mine - theirs) / theirs for mine, theirs in ends),
    )


# ------------------------------------------------------------------------------------------------- tables


def comparison(
    measured: Iterable[tuple[str, int, Mapping[str, Measurement]]], cores: Sequence[str]
) -> list[str]:
    """Return the tables of the workloads by number of nodes: speed and ratios, agreement, memory."""
    speed = [
        ["workload", "nodes", "flows", "SimGrid"]
        + [column for core in cores for column in (core, f"{core} / SimGrid")]
    ]
    agreement = [
        ["workload", "nodes"] + [f"{core}: {what}" for core in cores for what in ("makespan", "ends")]
    ]
    memory = [["workload", "nodes", "SimGrid", *cores]]
    for title, nodes, by in measured:
        by = {**dict.fromkeys(cores), **by}
        theirs = by["SimGrid"]
        assert theirs is not None
        flows = next((m.results[0].flows for m in by.values() if m and m.results), None)
        row = [title, f"{nodes:,}", "" if flows is None else f"{flows:,}", _rates(theirs)]
        agree = [title, f"{nodes:,}"]
        for core in cores:
            ours = by[core]
            if ours is None:  # this workload has no such form
                row += ["", ""]
                agree += ["", ""]
                continue
            row += [_rates(ours), _ratios(ours, theirs, _goal(title, nodes, core))]
            if ours.results and theirs.results:
                makespan, ends = difference(ours.results[0], theirs.results[0])
                agree += [f"{makespan:.0e}", "chaotic" if "fat tree" in title else f"{ends:.0e}"]
            else:
                agree += ["", ""]
        speed.append(row)
        agreement.append(agree)
        memory.append([title, f"{nodes:,}"] + [_memory(by[name]) for name in ("SimGrid", *cores)])
    return [
        "Flows per CPU second of the run phase, best (median):\n",
        _table(speed),
        "\nRelative difference from SimGrid's simulated times: of the makespan, and the largest of the end of"
        " a process:\n",
        _table(agreement),
        "\nPeak memory of the whole program, MiB:\n",
        _table(memory),
    ]


def growth(heading: Sequence[str], rows: Iterable[tuple[Sequence[str], Mapping[str, Measurement]]]) -> str:
    """Return a table of CPU microseconds per flow."""
    table: list[list[str]] = []
    for first, by in rows:
        if not table:
            table.append([*heading, *by])
        table.append([*first, *map(_microseconds, by.values())])
    return _table(table)


def _goal(title: str, nodes: int, core: str) -> float | None:
    if core == IN_CORE:
        return IN_CORE_GOAL if nodes == IN_CORE_GOAL_AT else None
    if core == "plain":
        return PLAIN_GOAL if nodes <= PLAIN_GOAL_UP_TO else None
    return GOALS.get((title, nodes))


def _rates(measurement: Measurement) -> str:
    if not measurement.results:
        return "not in time"
    return f"{_short(measurement.best)} ({_short(measurement.median)})"


def _ratios(ours: Measurement, theirs: Measurement, goal: float | None) -> str:
    if not ours.results or not theirs.results:
        return ""
    best, middle = ours.best / theirs.best, ours.median / theirs.median
    verdict = "" if goal is None else f", goal {goal:.2g} {'reached' if best >= goal else 'missed'}"
    return f"{best:.2f} ({middle:.2f}){verdict}"


def _memory(measurement: Measurement | None) -> str:
    if measurement is None or not measurement.results:
        return ""
    return f"{max(result.peak_memory for result in measurement.results) / 2**20:,.0f}"


def large_cases(program: Sequence[str], rounds: int, limit: float) -> str:
    """Return a table of the two cases with a goal in CPU seconds, run by a program that takes our options."""
    fat_tree = measure(
        ring_on_fat_tree(16384, steps=16), {"": [*program, "--in-core"]}, rounds=rounds, limit=limit
    )
    stragglers = Measurement()
    for _ in range(rounds):
        result = run_program([*program, "--stragglers", "1024", "100"], limit)
        stragglers.results += [result] if result else []
    table = [["case", "transfers", "CPU seconds", "peak memory, MiB"]]
    for title, measured in (
        ("1,024 ranks on a star, 100 ring all-reduces with stragglers, at once", stragglers),
        ("16,384 ranks on the fat tree, ring of 16 steps, by flows", fat_tree[""]),
    ):
        if measured.results:
            seconds = [result.cpu_seconds for result in measured.results]
            verdict = f"goal {ABSOLUTE_GOAL:g} {'reached' if min(seconds) < ABSOLUTE_GOAL else 'missed'}"
            taken = f"{min(seconds):.2f} ({median(seconds):.2f}), {verdict}"
            table.append([title, f"{measured.results[0].flows:,}", taken, _memory(measured)])
        else:
            table.append([title, "", "not in time", ""])
    return _table(table)


def _microseconds(measurement: Measurement) -> str:
    return f"{1e6 / measurement.best:,.1f}" if measurement.results else "not in time"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value / 1e3:.3g} k"


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = rows
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _conditions(by: Iterable[Mapping[str, Measurement]], rounds: int, limit: float) -> str:
    names: dict[str, None] = {}
    for measurements in by:
        for measurement in measurements.values():
            names.update((result.simulator, None) for result in measurement.results)
    if "compiled" in clocks():
        names[f"numba {version('numba')}"] = None
    return (
        f"Measured with {'; '.join(names)}; on one core of {processor()}; {rounds} runs of each, in turns,"
        f" fewer where they take long; “not in time” is a run of more than {limit:g} s.\n"
    )


# ------------------------------------------------------------------------------------------------ commands


def tables(
    commands: Mapping[str, Sequence[str]], nodes: Sequence[int], rounds: int, limit: float, *, every: bool
) -> str:
    """Measure everything and return the page's tables."""
    run = partial(measure, rounds=rounds, limit=limit)
    in_core = {}
    if "compiled" in commands:
        in_core = {
            title: {IN_CORE: [*commands["compiled"], *options]} for title, options in IN_CORE_OPTIONS.items()
        }
    cores = [name for name in commands if name != "SimGrid"] + ([IN_CORE] if in_core else [])
    compared = [
        (title, size, run(make(size), {**commands, **in_core.get(title, {})}))
        for title, make in WORKLOADS.items()
        for size in nodes
        if every or size <= UP_TO.get(title, size)
    ]
    concurrent = [
        ((f"{size:,}", kind), run(make(size), commands))
        for make, kind in ((incast, "one link, shared by all"), (pairs, "nothing"))
        for size in (16, 64, 256, 1024)
    ]
    components = [((f"{size:,}", "2"), run(line(size, 2), commands)) for size in (16, 64, 256)]
    components += [(("256", f"{hops}"), run(line(256, hops), commands)) for hops in (4, 8, 16)]
    measured = [by for _, _, by in compared]
    parts = [
        _conditions(measured, rounds, limit),
        "### Nodes\n",
        *comparison(compared, cores),
        *_large(commands, rounds, limit),
        "\n### Concurrent flows\n",
        "CPU microseconds per flow, best:\n",
        growth(["concurrent flows", "what they share"], concurrent),
        "\n### Links\n",
        "Flows on a closed line of as many links, each over some successive ones, so that all are connected."
        " CPU microseconds per flow, best:\n",
        growth(["concurrent flows and links", "links a flow crosses besides its NICs"], components),
    ]
    return "\n".join(parts) + "\n"


def _large(commands: Mapping[str, Sequence[str]], rounds: int, limit: float) -> list[str]:
    if "compiled" not in commands:
        return []
    return [
        "\n### Large cases\n",
        "One collective in the compiled core, by itself. CPU seconds of the run phase, best (median):\n",
        large_cases(commands["compiled"], rounds, limit),
    ]


def golden(program: Sequence[str]) -> dict[str, Any]:
    """Return SimGrid's times of the workloads of 64 nodes, and of the first 10 steps of the shuffled ring."""
    makers: dict[str, Callable[[int], Workload]] = {
        **WORKLOADS,
        "ring on a fat tree, 10 steps": partial(ring_on_fat_tree, steps=10),
    }
    stored: dict[str, Any] = {}
    simulators: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, make in makers.items():
            text = make(GOLDEN_NODES).text()
            file = Path(folder) / "workload.txt"
            file.write_text(text, encoding="ascii")
            result = run_program([*program, str(file)])
            assert result is not None
            simulators[result.simulator] = None
            stored[title] = {
                "sha256": sha256(text.encode()).hexdigest(),
                "flows": result.flows,
                "makespan": result.makespan,
                "finish": result.finish,
            }
    (simulator,) = simulators
    return {"simulator": simulator, "nodes": GOLDEN_NODES, "workloads": stored}


def rewritten(page: str, measured: str) -> str:
    """Return a page with other tables between its two comment lines."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{measured}\n{END}{after}"


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare")
    parser.add_argument("program", help="the SimGrid program (see tests/benchmarks/simgrid)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--every", action="store_true", help="also the workloads that take minutes")
    parser.add_argument("--rounds", type=int, default=5, help="how often each run is repeated")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which a run is given up")
    parser.add_argument("--write", type=Path, help="a page that gets the tables")
    parser.add_argument("--golden", type=Path, help="a file that gets SimGrid's times, instead of tables")
    arguments = parser.parse_args()
    try:
        if arguments.golden:
            content = json.dumps(golden([arguments.program]), indent=1)
            arguments.golden.write_text(content + "\n", encoding="ascii")
            return 0
        commands = {"SimGrid": [arguments.program]}
        for core in clocks():
            commands[core] = [sys.executable, "-m", "tests.benchmarks.on_clock", "--core", core]
        measured = tables(commands, arguments.nodes, arguments.rounds, arguments.limit, every=arguments.every)
        if arguments.write:
            page = arguments.write.read_text(encoding="utf-8")
            arguments.write.write_text(rewritten(page, measured), encoding="utf-8")
        print(measured)
    except (_Failed, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
