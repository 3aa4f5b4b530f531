"""What all measurements share: how they begin and end, and the vectors and repeats that they use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from algorithms import Algorithm, Worker
from algorithms.phantom import Phantom

ITEMSIZE = 4
"""Bytes of an element of the messages."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Measurement(Algorithm):
    """Base: a run that measures something on every worker and ends with one gradient, as runs have one.

    Attributes
    ----------
    repeats
        How often each thing is measured, after a first time that does not count.
    seconds
        After about so long with one thing fewer repeats do, but three at least.
    """

    momentum: ClassVar[Any] = "covered"

    repeats: int = 20
    seconds: float = math.inf

    async def run(self, worker: Worker) -> None:
        """Measure, and end the run."""
        x = worker.initial_model()
        await self.measure(worker, x)
        await worker.gradient(x)
        worker.report(x)

    async def measure(self, worker: Worker, x: Any) -> None:
        """Measure on one worker; ``x`` is a vector on its device."""
        raise TypeError(f"{type(self).__name__} measures nothing")

    def fewer(self, first: float) -> int:
        """Return how many repeats the time allows for what took ``first`` seconds."""
        affordable = self.repeats if first * self.repeats <= self.seconds else int(self.seconds / first)
        return max(min(self.repeats, 3), affordable)


def vector(x: Any, nbytes: float, value: float = 0.0) -> Any:
    """Return a vector of so many bytes on the device of ``x``, a phantom where that is one."""
    count = max(1, int(nbytes) // ITEMSIZE)
    return Phantom((count,), ITEMSIZE) if isinstance(x, Phantom) else x.new_full((count,), value)


def first_of(x: Any, otherwise: float) -> float:
    """Return the first element of a vector, or what it would be where a run has no numerics."""
    return otherwise if isinstance(x, Phantom) else float(x[0])


async def agreed(worker: Worker, x: Any, value: float) -> float:
    """Return the largest of all workers' values, on all of them at about the same moment."""
    if worker.world_size == 1:
        return value
    return first_of(await worker.all_reduce(vector(x, ITEMSIZE, value), "max"), value)
