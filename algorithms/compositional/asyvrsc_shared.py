"""AsyVRSC-Shared: variance-reduced composition optimisation in shared memory, without a lock.

    epoch: all workers wait for each other, take x~ from memory, and sum up G~, J~ and h~ in parallel
    then each worker, until all together have made K updates:
        read x^ element by element, while others write
        v = estimate at x^
        x_c <- x_c - step size * v_c    for c in a random set Y of coordinates

The step is not scaled by N/|Y|. Whoever has read before the K-th update and is later throws its own away.
Delays are measured: updates that ended between the begin of a read and the write of what was made of it.

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


@dataclass(frozen=True)
class AsyVRSCShared(AsyVRSC):
    """Lock-free updates of a model in shared memory."""

    requires: ClassVar[frozenset[str]] = frozenset({"compositional", "shared-memory"})

    coordinates: int = parameter(0, "coordinates of an update (|Y|); 0 for all", minimum=0)
    snapshot: Literal["last", "average"] = parameter(
        "last", "the next x~: what memory holds at the end of an epoch, or the mean of what was read in it"
    )

    def traffic(self, setting: Setting) -> float:
        """Return nothing: the model is in shared memory, and the sums of an epoch's beginning stay inside."""
        return 0.0

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        problem = cast("Compositional", worker.problem)
        start: Any = worker.initial_model()
        memory = worker.shared("model", start)
        jacobian: torch.Tensor | None = None
        reads = Reads(worker)
        while await everybody_goes_on(worker, start):
            # Nobody writes before all have joined the sums of the pass.
            begun = memory.writes
            x: Any = await memory.read()
            if self.snapshot == "average":
                x = await reads.mean_into(memory, x)
                begun = memory.writes
            at = await self._pass(worker, x, jacobian)
            jacobian = at.jacobian if problem.constant_jacobian else None
            await self._updates(worker, memory, at, begun + self.epoch_updates(problem), reads)

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
        return Snapshot(x, inner, jacobian.T @ mean, jacobian)

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
        total = x * 0 if self._total is None else self._total
        count = await worker.all_reduce(x[:1] * 0 + self._count, "sum")
        summed = await worker.all_reduce(total, "sum")
        self._total, self._count = None, 0
        taken = float(cast("torch.Tensor", count))
        if not taken:
            return x
        mean = await worker.combine((1 / taken, summed))
        if worker.rank == 0:
            await memory.add(await worker.combine((1, mean), (-1, x)))
        await worker.all_reduce(x[:1] * 0, "sum")
        return mean


async def everybody_goes_on(worker: Worker, x: Any) -> bool:
    """Wait for all workers; return whether each has iterations left."""
    left = await worker.all_reduce(x[:1] * 0 + (1 if worker.running else 0), "sum")
    return float(cast("torch.Tensor", left)) == worker.world_size
