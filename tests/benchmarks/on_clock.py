"""Run a workload on our clock: one SimPy process for each process of the workload.

A process waits in a pause of the clock's for what it alone waits for, a sleep or a send; for a message, which
has two sides, in an event. Routes are handed in before the run, as in SimGrid.

``python -m tests.benchmarks.on_clock FILE [--core CORE]`` prints the result as JSON, with the keys that the
SimGrid program prints too.
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
from pathlib import Path
from platform import python_implementation, python_version
from typing import Any

import simpy

from simulator.engine.clock import Clock
from tests.benchmarks.workloads import Instruction, Workload, gossip

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
        self._sizes: dict[int, float] = {}
        # For each route the messages that only one side has posted so far: (event, size), or (event, None)
        # where it is the receiver. Never both kinds at once.
        self._posted: list[deque[tuple[simpy.Event, int | None]]] = [deque() for _ in workload.routes]
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
                mine.append(self._put(instruction[1], instruction[2]))
            elif kind == "get":
                mine.append(self._get(instruction[1]))
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
        """Return an instruction whose send names its route, and a size that all sends share, as they are."""
        if instruction[0] != "send":
            return instruction
        kind, route, size = instruction
        return kind, self._routes[route], self._sizes.setdefault(size, float(size))

    def _start(self, route: int, size: float, end: simpy.Event) -> None:
        self.flows += 1
        self.clock.flow(self._routes[route], size, end)

    def _put(self, route: int, size: int) -> simpy.Event:
        posted = self._posted[route]
        if posted and posted[0][1] is None:
            end, _ = posted.popleft()
            self._start(route, size, end)
        else:
            end = self.clock.event()
            posted.append((end, size))
        return end

    def _get(self, route: int) -> simpy.Event:
        posted = self._posted[route]
        if posted and posted[0][1] is not None:
            end, size = posted.popleft()
            assert size is not None
            self._start(route, size, end)
        else:
            end = self.clock.event()
            posted.append((end, None))
        return end


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.on_clock")
    parser.add_argument("file", help="a workload, in the format of tests/benchmarks/workloads.py")
    parser.add_argument("--core", default="plain", choices=list(clocks()))
    arguments = parser.parse_args()
    run_on_clock(gossip(16), arguments.core)  # so that code is loaded, and compiled where it is
    json.dump(asdict(run_on_clock(Workload.read(arguments.file), arguments.core)), sys.stdout)
    print()


if __name__ == "__main__":
    main()
