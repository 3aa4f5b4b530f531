"""AsyVRSC-Shared: variance-reduced composition optimisation in shared memory, without a lock.

    epoch: all workers sum up G~, J~ and h~ at x~ in parallel
    then each worker, until all together have made K updates:
        read x^ element by element, while others write
        v = estimate at x^
        x_c <- x_c - step size * v_c    for c in a random set Y of coordinates
    all workers wait for each other and take the next x~ from memory

The step is not scaled by N/|Y|. Whoever has read before the K-th update and is later throws its own away;
additions under way at the K-th are made, so an epoch may have up to a worker each, less one, more than K.
Delays are measured: updates that ended between the begin of a read and the write of what was made of it.
Theory takes a constant step size; under a schedule it is that of the worker's own iteration.

Source: a reconstruction; see :mod:`algorithms.compositional.asyvrsc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from algorithms.algorithm import Setting, parameter
from algorithms.compositional.asyvrsc import AsyVRSC, inner_part, jacobian_part, outer_part
from algorithms.compositional.estimators import Draw, Snapshot, estimate
from algorithms.worker import SharedTensor, Tensor, Worker

if TYPE_CHECKING:
    import torch

    from algorithms.problem import Compositional


WRITER = 0
"""The rank that puts an average into memory."""
COUNT_BYTES = 4
"""Bytes of a number that all workers sum up."""


@dataclass(frozen=True)
class AsyVRSCShared(AsyVRSC):
    """Lock-free updates of a model in shared memory."""

    requires: ClassVar[frozenset[str]] = frozenset({"compositional", "shared-memory"})

    coordinates: int = parameter(0, "coordinates of an update (|Y|); 0 for all", minimum=0)
    snapshot: Literal["last", "average"] = parameter(
        "last", "the next x~: what memory holds at the end of an epoch, or the mean of what was read in it"
    )

    def traffic(self, setting: Setting) -> float:
        """Return nothing: the model is in shared memory."""
        return 0.0

    def epoch_traffic(self, setting: Setting) -> float:
        """Return the bytes of an epoch's sums: of G~, J~ and the mean of dF, and whether all go on.

        For an average also the number of reads, their sum, and a number that makes all wait.
        """
        counts, sums = 1, 2 * setting.inner_value + setting.jacobian_sum
        if self.snapshot == "average":
            counts, sums = 3, sums + setting.model
        return setting.reduced(sums + counts * COUNT_BYTES)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        problem = cast("Compositional", worker.problem)
        x: Any = worker.initial_model()
        memory = worker.shared("model", x)
        jacobian: torch.Tensor | None = None
        reads = Reads(worker)
        goes_on = True
        while goes_on:
            # Nobody writes before all have joined the sums of the pass.
            begun = memory.writes
            at = await self._pass(worker, x, jacobian)
            jacobian = at.jacobian if problem.constant_jacobian else None
            await self._updates(worker, memory, at, begun + self.epoch_updates(problem), reads)
            goes_on = await everybody_goes_on(worker)
            x = await memory.read()
            if self.snapshot == "average":
                x = await reads.mean_into(memory, x)
            worker.report(x)

    async def _pass(self, worker: Worker, x: torch.Tensor, jacobian: torch.Tensor | None) -> Snapshot:
        """Return everything at x~: two phases, as h~ needs the whole G~."""
        problem = cast("Compositional", worker.problem)
        parts = self.passes(worker, problem.inner_count)
        own = await worker.evaluate(lambda x: inner_part(worker, x), x, gradients=parts, iterations=0)
        summing = worker.all_reduce(own, "sum")
        if jacobian is None:
            part = await worker.evaluate(lambda x: jacobian_part(worker, x), x, gradients=parts, iterations=0)
            jacobian = cast("torch.Tensor", await worker.all_reduce(part, "sum")).view(-1, len(x))
        inner: Any = await summing
        outer = await worker.evaluate(
            lambda y: outer_part(worker, y),
            inner,
            gradients=self.passes(worker, problem.outer_count),
            iterations=0,
        )
        mean: Any = await worker.all_reduce(outer, "sum")
        return Snapshot(x, inner, await self.product(worker, jacobian, mean), jacobian)

    async def _updates(
        self, worker: Worker, memory: SharedTensor, at: Snapshot, last: int, reads: Reads
    ) -> None:
        """Update until all workers together have made the epoch's number."""
        problem = cast("Compositional", worker.problem)
        while (before := memory.writes) < last:
            seen: Any = await memory.read()
            drawn = self.drawn(worker)

            def estimated(x: torch.Tensor, drawn: Draw = drawn) -> torch.Tensor:
                return estimate(problem, self.estimator, at, x, drawn)

            direction = await worker.evaluate(estimated, seen)
            step: Any = await worker.combine((-worker.step_size, direction))
            if memory.writes >= last:
                break
            chosen = self._chosen(worker, len(step))
            worker.observe("staleness", memory.writes - before)
            await memory.add(step if chosen is None else step[chosen], chosen)
            if self.snapshot == "average":
                await reads.take(seen)
            worker.report(seen)

    def _chosen(self, worker: Worker, elements: int) -> torch.Tensor | None:
        """Return the coordinates of an update, ascending; None for all."""
        if not 0 < self.coordinates < elements:
            return None
        import numpy as np
        import torch

        drawn = worker.random("coordinates").choice(elements, self.coordinates, replace=False)
        return torch.from_numpy(np.sort(drawn))


class Reads:
    """The sum of what a worker read in an epoch, and how often it did."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._total: Tensor | None = None
        self._count = 0

    async def take(self, seen: Tensor) -> None:
        """Add a read."""
        carried = () if self._total is None else ((1.0, self._total),)
        self._total = await self._worker.combine(*carried, (1, seen))
        self._count += 1

    async def mean_into(self, memory: SharedTensor, x: Tensor) -> Tensor:
        """Put the mean of all workers' reads into memory, where ``x`` is, and return it; begin anew."""
        worker = self._worker
        taken = await summed(worker, self._count)
        total = await worker.all_reduce(x * 0 if self._total is None else self._total, "sum")
        self._total, self._count = None, 0
        mean = await worker.combine((1 / taken, total))
        if worker.rank == WRITER:
            await memory.add(await worker.combine((1, mean), (-1, x)))
        await summed(worker, 0)
        return mean


async def everybody_goes_on(worker: Worker) -> bool:
    """Wait for all workers; return whether each has iterations left."""
    return await summed(worker, worker.running) == worker.world_size


async def summed(worker: Worker, number: int) -> int:
    """Return the sum of the workers' numbers, when all have given theirs."""
    import torch

    total: Any = await worker.all_reduce(torch.tensor([number], dtype=torch.int32), "sum")
    return int(total)
