"""Gradients of several workers, evaluated together.

Workers that compute at the same virtual time can share one vectorised evaluation (``torch.func.vmap``),
which for small networks costs a fraction of one evaluation each. Its last bits differ from separate
evaluation, so a scenario has to ask for it (``workload.evaluation: batched``) and gives up bit-identity with
a real run. A gradient is evaluated when the first of those under way is due, together with all others that
have been asked for by then; what it is evaluated at is the model and the mini-batch of its own call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from simulator.workload.objective import Oracle, Request, SampledObjective


class GradientPool:
    """The gradients that have been asked for and not been evaluated yet.

    Parameters
    ----------
    objective
        Whose gradients they are.
    """

    def __init__(self, objective: SampledObjective) -> None:
        self._objective = objective
        self._waiting: list[Deferred] = []

    def gradient(self, oracle: Oracle, x: torch.Tensor) -> DeferredPart:
        """Ask for the gradient over a worker's next mini-batch."""
        deferred = Deferred(self, oracle.request(x.clone()))
        self._waiting.append(deferred)
        return DeferredPart(deferred)

    def evaluate(self) -> None:
        """Evaluate everything that has been asked for."""
        waiting, self._waiting = self._waiting, []
        gradients = self._objective.batch_gradients([deferred.request for deferred in waiting])
        for deferred, gradient in zip(waiting, gradients, strict=True):
            deferred.value = gradient


class Deferred:
    """A gradient that is evaluated when it is due."""

    __slots__ = ("_pool", "request", "value")

    def __init__(self, pool: GradientPool, request: Request) -> None:
        self._pool = pool
        self.request = request
        self.value: torch.Tensor | None = None

    def get(self) -> torch.Tensor:
        """Return the gradient."""
        if self.value is None:
            self._pool.evaluate()
            assert self.value is not None
        return self.value


class DeferredPart:
    """A slice of a gradient that is evaluated when it is due; slicing it gives a slice of the same kind."""

    __slots__ = ("_span", "_whole")

    def __init__(self, whole: Deferred, span: slice = slice(None)) -> None:
        self._whole = whole
        self._span = span

    def __getitem__(self, span: slice) -> DeferredPart:
        return DeferredPart(self._whole, span)

    def get(self) -> torch.Tensor:
        """Return the slice."""
        return self._whole.get()[self._span]
