"""Algorithms that look at shared memory itself, in a module that other processes find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from algorithms import Algorithm


@dataclass(frozen=True)
class Disjoint(Algorithm):
    """Every worker adds 1 to its own elements in each iteration."""

    requires: ClassVar[frozenset[str]] = frozenset({"shared-memory"})

    @property
    def deterministic(self) -> bool:
        return False

    async def run(self, worker: Any) -> None:
        start = worker.initial_model()
        memory = worker.shared("counts", start)
        own = torch.arange(worker.rank, len(start), worker.world_size)
        while worker.running:
            await worker.gradient(start)
            await memory.add(torch.ones(len(own), dtype=start.dtype), own)
        worker.report(await memory.read())


@dataclass(frozen=True)
class Torn(Algorithm):
    """Worker 0 adds 1 to all elements, again and again, while the others read and count the versions."""

    requires: ClassVar[frozenset[str]] = frozenset({"shared-memory"})

    @property
    def deterministic(self) -> bool:
        return False

    async def run(self, worker: Any) -> None:
        start = worker.initial_model()
        memory = worker.shared("x", start)
        done = worker.shared("done", start[: worker.world_size])
        await worker.gradient(start)
        if worker.rank == 0:
            while float((await done.read()).sum()) < worker.world_size - 1:
                await memory.add(torch.ones_like(start))
            worker.report(start)
            return
        for _ in range(60):
            seen = await memory.read()
            worker.observe("versions", len(torch.unique(seen)))
        # Everybody has an element of its own: additions to one might lose each other.
        await done.add(torch.ones(1, dtype=start.dtype), torch.tensor([worker.rank]))
        worker.report(start)
