"""Hogwild: workers on one machine train one model in shared memory without a lock.

    x_hat = x, read element by element;   x_c <- x_c - step size * G_i(x_hat)_c   for every c, without a lock

A read may mix the states before and after another worker's step. Where gradients are sparse, only the
elements that are not zero are written, and steps rarely meet. The staleness noted for each step is the number
of other steps that ended between the begin of its read and its own. A worker reports what it has read, and at
its end once more, so that its last step is part of its last report.

Source: Niu, Recht, Re and Wright, "Hogwild!: a lock-free approach to parallelizing stochastic gradient
descent", NeurIPS 2011, arXiv 1106.5730.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.worker import Tensor, Worker


@dataclass(frozen=True)
class Hogwild(Algorithm):
    """Lock-free steps on one model in shared memory."""

    requires: ClassVar[frozenset[str]] = frozenset({"shared-memory"})
    model_copies: ClassVar[int] = 1
    exact_because: ClassVar[str] = "it sends nothing; its workers share one memory"
    # A step is an addition to what others are adding to as well: there is no state to keep for it.
    momentum: ClassVar[Literal["refused"]] = "refused"

    sparse: bool = parameter(False, "write only the elements of a gradient that are not zero")

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing: what a read sees does."""
        return False

    def traffic(self, setting: Setting) -> float:
        """Return nothing: the model is in shared memory."""
        return 0.0

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        shared = worker.shared("model", x)
        while worker.running:
            written = shared.writes
            x = await shared.read()
            gradient = await worker.gradient(x)
            step = await worker.combine((-worker.step_size, gradient))
            at = await self._places(worker, gradient)
            worker.observe("staleness", shared.writes - written)
            await shared.add(step if at is None else chosen(step, at), at)
            worker.report(x)
        worker.report(await shared.read())

    async def _places(self, worker: Worker, gradient: Tensor) -> Tensor | None:
        """Return where a gradient is not zero, if only that is to be written."""
        if not self.sparse:
            return None
        places: Tensor = await worker.compute(nonzero, gradient, nbytes=gradient.nbytes)
        return places


def nonzero(gradient: Any) -> Tensor:
    """Return the numbers of the elements that are not zero."""
    import torch

    return torch.nonzero(gradient).reshape(-1)


def chosen(x: Any, at: Any) -> Tensor:
    """Return some elements of a vector."""
    elements: Tensor = x[at]
    return elements
