"""Small scenarios, algorithms that misbehave, and a look at the processes that a run leaves behind."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simulator.scenario import Scenario

Maker = Callable[..., Scenario]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The expected values of this folder are computed in one torch thread, as the ranks compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make() -> Maker:
    """Return a maker of scenarios on a switch: algorithm, workers, keys of an objective, other keys."""

    def made(
        algorithm: object,
        workers: int,
        objective: object,
        *,
        iterations: int = 4,
        batch: int = 2,
        buckets: int = 2,
        slowdowns: dict[int, float] | None = None,
        folder: Path | None = None,
        **more: Any,
    ) -> Scenario:
        stragglers = [
            {"kind": "persistent", "workers": [rank], "slowdown": slowdown}
            for rank, slowdown in (slowdowns or {}).items()
        ]
        return Scenario(
            {
                "name": "test",
                "cluster": {
                    "topology": {"builder": "switch", "gpus": workers},
                    "device": "gtx-1080-ti",
                    "stragglers": stragglers,
                },
                "workload": {
                    "cost": {"parameters": 100, "batch": batch, "gradient": "1 ms", "bucket-count": buckets},
                    "objective": objective,
                    "batches": "proportional" if slowdowns else "equal",
                },
                "algorithm": algorithm,
                "step-size": 0.1,
                "budget": {"iterations": iterations},
                "seed": 3,
                **more,
            },
            folder=folder,
        )

    return made


@pytest.fixture
def own(tmp_path: Path, make: Maker) -> Maker:
    """Return a maker of scenarios with an algorithm of one's own, given as the lines of its ``run``."""

    def made(body: str, workers: int, **more: Any) -> Scenario:
        settings = {"requires": "frozenset()", "plan": "super().plan(world_size, graph)", "kind": "async def"}
        settings.update({key: more.pop(key) for key in tuple(settings) if key in more})
        source = f"""
            import asyncio, os, signal, sys, time
            from dataclasses import dataclass
            from algorithms import Algorithm, Plan, parameter

            @dataclass(frozen=True)
            class Own(Algorithm):
                requires = {settings["requires"]}

                def plan(self, world_size, graph):
                    return {settings["plan"]}

                {settings["kind"]} run(self, worker):
        """
        # Every test has a name of its own for the file, because modules are imported once.
        file = tmp_path / f"own_{tmp_path.name}.py"
        lines = textwrap.indent(textwrap.dedent(body), " " * 8)
        file.write_text(textwrap.dedent(source).rstrip() + "\n" + lines.strip("\n") + "\n")
        objective = more.pop("objective", {"kind": "quadratic", "dimension": 5})
        return make(f"{file.name}:Own", workers, objective, folder=tmp_path, **more)

    return made


@pytest.fixture
def ranks_left() -> Callable[[], list[int]]:
    """Return a function that gives the ids of the rank processes that this process still has."""

    def found() -> list[int]:
        helper = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        return [process for process, parent, _ in processes() if parent == helper]

    return found


@pytest.fixture
def session_left() -> Callable[[int], list[int]]:
    """Return a function that waits for the processes of a session to end and gives those that do not."""

    def found(session: int) -> list[int]:
        deadline = time.monotonic() + 5
        while True:
            left = [process for process, _, own_session in processes() if own_session == session]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.02)

    return found


def processes() -> Iterator[tuple[int, int, int]]:
    """Yield id, parent and session of every living process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in "ZX":
                yield int(entry), int(fields[1]), int(fields[3])
