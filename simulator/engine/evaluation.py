"""Gradients of several workers, evaluated one by one, side by side or together.

A gradient is evaluated when the first of those under way is due, with all others that have been asked for by
then; what it is evaluated at is the model and the mini-batch of its own call. So the code and the data of the
network stay in the processor's caches: where events of the clock come between two evaluations, that of a
small network takes half as long again.

Separate evaluation gives the bits of a real run: small networks one by one, large ones side by side on
several threads (see :mod:`simulator.engine.crew`). With ``workload.evaluation: batched`` workers share one
vectorised evaluation (``torch.func.vmap``), which for small networks costs a fraction of one evaluation each.
Its last bits differ, so a scenario has to ask for it and gives up bit-identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.engine.crew import Crew

if TYPE_CHECKING:
    import torch

    from simulator.workload.objective import Oracle, Request, SampledObjective


class GradientPool:
    """The gradients that have been asked for and not been evaluated yet.

    Parameters
    ----------
    objective
        Whose gradients they are.
    batched
        Whether they share an evaluation.
    threads
        How many may evaluate at a time, where they do not.
    """

    def __init__(self, objective: SampledObjective, batched: bool, threads: int = 1) -> None:
        self._objective = objective
        self._batched = batched
        self._crew = Crew(objective, threads)
        self._waiting: list[tuple[Deferred, Request]] = []

    def gradient(self, oracle: Oracle, x: torch.Tensor) -> DeferredPart:
        """Ask for the gradient over a worker's next mini-batch."""
        deferred = Deferred(self)
        self._waiting.append((deferred, oracle.request(x.clone())))
        return DeferredPart(deferred)

    def evaluate(self) -> None:
        """Evaluate everything that has been asked for."""
        waiting, self._waiting = self._waiting, []
        requests = [request for _, request in waiting]
        evaluate = self._objective.batch_gradients if self._batched else self._crew.evaluate
        for (deferred, _), value in zip(waiting, evaluate(requests), strict=True):
            deferred.value = value

    def end(self) -> None:
        """Evaluate nothing more."""
        self._crew.end()


class Deferred:
    """A gradient that is evaluated when it is due."""

    __slots__ = ("_pool", "value")

    def __init__(self, pool: GradientPool) -> None:
        self._pool = pool
        self.value: torch.Tensor | Exception | None = None

    def get(self) -> torch.Tensor:
        """Return the gradient."""
        if self.value is None:
            self._pool.evaluate()
        if isinstance(self.value, Exception):
            raise self.value
        assert self.value is not None
        return self.value


class DeferredPart:
    """A slice of a gradient that is evaluated when it is due; slicing it gives a slice of the same kind."""

    __slots__ = ("_span", "_whole")

    def __init__(self, whole: Deferred, span: slice | None = None) -> None:
        self._whole = whole
        self._span = span

    def __getitem__(self, span: slice) -> DeferredPart:
        return DeferredPart(self._whole, span)

    def get(self) -> torch.Tensor:
        """Return the slice."""
        whole = self._whole.get()
        return whole if self._span is None else whole[self._span]
