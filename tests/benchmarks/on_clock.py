"""Run a workload on our clock: one SimPy process for each process of the workload.

A process waits in a pause of the clock's for what it alone waits for, a sleep or a send; for a message, which
has two sides, in an event. Routes are handed in before the run, as in SimGrid.

``python -m tests.benchmarks.on_clock FILE [--core CORE]`` prints the result as JSON, with the keys that the
SimGrid program prints too. With ``--in-core`` a ring runs as one collective inside the network core instead,
with ``--max-plus`` besides by the short way; ``--stragglers RANKS COUNT`` runs all-reduces of stragglers.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from inspect import signature
from math import fsum
from pathlib import Path
from platform import python_implementation, python_version
from typing import Any

import numpy as np
import simpy

from simulator.engine.clock import Clock
from simulator.engine.fairshare import Step
from tests.benchmarks.workloads import Instruction, Workload, gossip, ring_on_star

__all__ = ["Result", "clocks", "run_on_clock"]


@dataclass(frozen=True)
class Result:
    """What a run of a workload gives.

    Attributes
    ----------
    simulator
        What ran it, with versions.
    makespan
        The simulated second at which the last process ends.
    finish
        The simulated second at which each process ends.
    flows
        The number of flows.
    cpu_seconds
        CPU time of the run phase: processes and links are there when it begins.
    peak_memory
        The largest resident size of this program so far, in bytes, with interpreter and libraries.
    """

    simulator: str
    makespan: float
    finish: tuple[float, ...]
    flows: int
    cpu_seconds: float
    peak_memory: int


def clocks() -> dict[str, Callable[[], Clock]]:
    """Return how to make a clock with each core that can run here, by the core's name."""
    if "core" not in signature(Clock).parameters:
        return {"plain": Clock}
    names = ["plain", "compiled"] if find_spec("numba") else ["plain"]
    options: dict[str, dict[str, Any]] = {name: {"core": name} for name in names}
    return {name: partial(Clock, **options[name]) for name in names}


def run_on_clock(workload: Workload, core: str = "plain") -> Result:
    """Run a workload on a clock with the core of that name."""
    available = clocks()
    if core not in available:
        raise ValueError(f"there is no core {core!r}: there are {', '.join(available)}")
    run = _Run(workload, available[core]())
    gc.collect()
    gc.disable()  # as a simulation does
    begin = time.process_time()
    run.clock.run()
    cpu_seconds = time.process_time() - begin
    gc.enable()
    if None in run.finish:
        raise RuntimeError(f"{workload.name}: process {run.finish.index(None)} never ends")
    finish = tuple(end for end in run.finish if end is not None)
    return Result(
        f"{python_implementation()} {python_version()}, SimPy {simpy.__version__}, {core} core",
        max(finish),
        finish,
        run.flows,
        cpu_seconds,
        _peak_memory(),
    )


def run_in_core(workload: Workload, core: str = "compiled", *, max_plus: bool = False) -> Result:
    """Run a ring workload as one collective in the core of that name, instead of as processes.

    Raises
    ------
    ValueError
        The workload is no ring.
    """
    clock = Clock(core=core, max_plus=max_plus)  # type: ignore[arg-type]  # checked by the clock
    for capacity, latency in workload.links:
        clock.core.add_link(capacity, latency)
    repeat, steps = ring_steps(workload)
    ranks = len(workload.processes)
    pattern = clock.core.add_pattern(ranks, [(repeat, steps)], complete=True)
    finish = [0.0] * ranks

    def done(rank: int) -> None:
        finish[rank] = clock.now

    number = clock.collective(pattern, 1.0, done)
    gc.collect()
    gc.disable()  # as a simulation does
    begin = time.process_time()
    for rank in range(ranks):
        clock.enter(number, rank)
    clock.run()
    cpu_seconds = time.process_time() - begin
    gc.enable()
    way = "at once" if max_plus else "by flows"
    return Result(
        f"{python_implementation()} {python_version()}, SimPy {simpy.__version__}, {core} core, a collective"
        f" in it, {way}",
        max(finish),
        tuple(finish),
        repeat * len(steps),
        cpu_seconds,
        _peak_memory(),
    )


def run_stragglers(ranks: int, count: int, core: str = "compiled", *, seed: int = 0) -> Result:
    """Run `count` ring all-reduces of 1.024 GB on a star, one after another, as stragglers enter them.

    Each rank works for a lognormal time of mean 100 ms (sigma 0.3) before it enters the next.
    """
    workload = ring_on_star(ranks)
    clock = Clock(core=core, max_plus=True)  # type: ignore[arg-type]  # checked by the clock
    for capacity, latency in workload.links:
        clock.core.add_link(capacity, latency)
    repeat, steps = ring_steps(workload)
    pattern = clock.core.add_pattern(ranks, [(repeat, steps)], complete=True)
    sigma = 0.3
    work = 0.1 * np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, (count, ranks))
    seconds = work.tolist()
    finish = [0.0] * ranks
    opened: list[int] = []

    def enter(turn: int, rank: int) -> None:
        if turn == len(opened):
            opened.append(clock.collective(pattern, 1.0, partial(done, turn)))
        clock.enter(opened[turn], rank)

    def done(turn: int, rank: int) -> None:
        finish[rank] = clock.now
        if turn + 1 < count:
            clock.at(clock.now + seconds[turn + 1][rank], partial(enter, turn + 1, rank))

    gc.collect()
    gc.disable()  # as a simulation does
    begin = time.process_time()
    for rank in range(ranks):
        clock.at(seconds[0][rank], partial(enter, 0, rank))
    clock.run()
    cpu_seconds = time.process_time() - begin
    gc.enable()
    return Result(
        f"{python_implementation()} {python_version()}, SimPy {simpy.__version__}, {core} core, collectives"
        " at once",
        max(finish),
        tuple(finish),
        count * repeat * ranks,
        cpu_seconds,
        _peak_memory(),
    )


def ring_steps(workload: Workload) -> tuple[int, list[Step]]:
    """Return how often each rank of a ring workload sends, and its transfer, in bytes of a message of 1."""
    receiver = {}
    for rank, process in enumerate(workload.processes):
        if [instruction[0] for instruction in process.program] != ["repeat", "put", "get", "wait", "end"]:
            raise ValueError(f"{workload.name}: process {rank} does not do what a rank of a ring does")
        receiver[process.program[2][1]] = rank
    steps = []
    for rank, process in enumerate(workload.processes):
        _, route, size = process.program[1]
        links = workload.routes[route].links
        latency = fsum(workload.links[link][1] for link in links)
        steps.append(Step(rank, receiver[route], float(size), links, latency))
    (repeat,) = {process.program[0][1] for process in workload.processes}
    return repeat, steps


def _peak_memory() -> int:
    # Not the ru_maxrss of getrusage: Linux carries that over from the program that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class _Run:
    """A workload on a clock, ready to run."""

    def __init__(self, workload: Workload, clock: Clock) -> None:
        self.clock = clock
        self.flows = 0
        links = [clock.core.add_link(capacity, latency) for capacity, latency in workload.links]
        self._routes = [
            clock.core.add_route([links[link] for link in route.links]) for route in workload.routes
        ]
        # For each route the messages that only the sender has posted so far, and those only the receiver.
        self._puts: list[deque[tuple[simpy.Event, float]]] = [deque() for _ in workload.routes]
        self._gets: list[deque[simpy.Event]] = [deque() for _ in workload.routes]
        self._sizes: dict[int, float] = {}
        self.finish: list[float | None] = [None] * len(workload.processes)
        for number, process in enumerate(workload.processes):
            program = [self._prepared(instruction) for instruction in process.program]
            clock.process(self._process(number, program))

    def _process(self, number: int, program: list[Instruction]) -> Generator[simpy.Event, object, None]:
        clock = self.clock
        mine: list[simpy.Event] = []
        loops: list[list[int]] = []  # [where the body begins, how often it is still to come]
        position = 0
        while position < len(program):
            instruction = program[position]
            kind = instruction[0]
            position += 1
            if kind == "sleep":
                yield clock.sleep(instruction[1])
            elif kind == "send":
                self.flows += 1
                yield clock.transfer(instruction[1], instruction[2])
            elif kind == "put":
                _, route, size, puts, gets = instruction
                if gets:
                    end = gets.popleft()
                    self.flows += 1
                    clock.flow(route, size, end)
                else:
                    end = clock.event()
                    puts.append((end, size))
                mine.append(end)
            elif kind == "get":
                _, route, puts, gets = instruction
                if puts:
                    end, size = puts.popleft()
                    self.flows += 1
                    clock.flow(route, size, end)
                else:
                    end = clock.event()
                    gets.append(end)
                mine.append(end)
            elif kind == "wait":
                for end in mine:
                    if end.callbacks is not None:  # otherwise it has ended, and a yield would only cost
                        yield end
                mine.clear()
            elif kind == "repeat":
                loops.append([position, instruction[1] - 1])
            elif loops[-1][1]:
                loops[-1][1] -= 1
                position = loops[-1][0]
            else:
                loops.pop()
        self.finish[number] = clock.now

    def _prepared(self, instruction: Instruction) -> Instruction:
        """Return an instruction with its route and size as the clock takes them, and the messages posted."""
        kind, *rest = instruction
        if kind not in ("send", "put", "get"):
            return instruction
        route = rest[0]
        known: tuple[Any, ...] = (kind, self._routes[route])
        if kind != "get":
            known += (self._sizes.setdefault(rest[1], float(rest[1])),)
        return known if kind == "send" else (*known, self._puts[route], self._gets[route])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.on_clock")
    parser.add_argument("file", nargs="?", help="a workload, in the format of tests/benchmarks/workloads.py")
    parser.add_argument("--core", default="plain", choices=list(clocks()))
    parser.add_argument("--in-core", action="store_true", help="run a ring as one collective in the core")
    parser.add_argument("--max-plus", action="store_true", help="and let that take the short way")
    parser.add_argument(
        "--stragglers", nargs=2, type=int, metavar=("RANKS", "COUNT"), help="instead of a file"
    )
    arguments = parser.parse_args()
    if (arguments.file is None) == (arguments.stragglers is None):
        parser.error("give a file, or --stragglers")
    # The first runs load the code, and compile it where it is compiled.
    if arguments.stragglers:
        run_stragglers(16, 2, arguments.core)
        result = run_stragglers(*arguments.stragglers, arguments.core)
    elif arguments.in_core:
        run_in_core(ring_on_star(16), arguments.core, max_plus=arguments.max_plus)
        workload = Workload.read(arguments.file)
        result = run_in_core(workload, arguments.core, max_plus=arguments.max_plus)
    else:
        run_on_clock(gossip(16), arguments.core)
        result = run_on_clock(Workload.read(arguments.file), arguments.core)
    json.dump(asdict(result), sys.stdout)
    print()


if __name__ == "__main__":
    main()
