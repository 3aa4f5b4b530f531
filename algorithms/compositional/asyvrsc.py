"""What AsyVRSC-Shared and AsyVRSC-Distributed have in common: settings, estimates and parts of full passes.

The paper's own pseudo-code and constants are not public text that this could be held against: both
algorithms are RECONSTRUCTIONS from its abstract and from the estimators that it builds on. Known of the paper
are the two settings, the linear convergence, and that speed-up is linear as long as the delay is bounded by
the dimension (shared memory) or by the sparsity of the partial gradients (distributed).

Source: Shen, Xu, Liu, Guo and Ling, "Asynchronous stochastic composition optimization with variance
reduction", arXiv 1811.06396, abstract; :mod:`algorithms.compositional.estimators`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from algorithms.algorithm import Algorithm, parameter
from algorithms.compositional.estimators import Draw, Estimator, draw, own_part, queries
from algorithms.worker import Worker

if TYPE_CHECKING:
    import torch

    from algorithms.problem import Compositional


@dataclass(frozen=True)
class AsyVRSC(Algorithm):
    """Settings of both algorithms."""

    requires: ClassVar[frozenset[str]] = frozenset({"compositional"})
    model_copies: ClassVar[int] = 4
    exact_because: ClassVar[str] = (
        "its estimates are small differences of gradients, which the error of a codec would drown"
    )
    momentum: ClassVar[Literal["refused"]] = "refused"  # estimates of others' models arrive late

    estimator: Estimator = parameter("second", "C-SVRG-1 or C-SVRG-2")
    inner: int = parameter(5, "indices of an inner value (|A|)", minimum=1)
    jacobian: int = parameter(
        1, "indices of the second estimator's Jacobian (|B|)", where={"estimator": ("second",)}, minimum=1
    )
    updates: int = parameter(
        0, "updates of an epoch by all workers (K); 0 for as many as inner functions", minimum=0
    )

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing: which model an estimate is made at does."""
        return False

    def epoch_updates(self, problem: Compositional) -> int:
        """Return the updates of an epoch."""
        return self.updates or problem.inner_count

    def drawn(self, worker: Worker) -> Draw:
        """Return the indices of this worker's next estimate."""
        problem = cast("Compositional", worker.problem)
        count = 1 if self.estimator == "first" else self.jacobian
        return draw(worker.random("estimates"), problem, self.inner, count)

    def passes(self, worker: Worker, parts: float) -> float:
        """Return a worker's part of so many evaluations of single functions, in estimates."""
        problem = cast("Compositional", worker.problem)
        each = queries(problem, self.estimator, self.inner, self.jacobian)
        return parts / worker.world_size / each

    async def product(self, worker: Worker, jacobian: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return h~ = J~^T 1/n sum_i dF_i(G~)."""

        def gradient(mean: torch.Tensor) -> torch.Tensor:
            return jacobian.T @ mean

        return cast("torch.Tensor", await worker.compute(gradient, mean, nbytes=float(jacobian.nbytes)))


def inner_part(worker: Worker, x: torch.Tensor) -> torch.Tensor:
    """Return this worker's part of G(x)."""
    problem = cast("Compositional", worker.problem)
    part = own_part(problem.inner_count, worker.rank, worker.world_size)
    if not len(part):
        return x.new_zeros(problem.inner_dimension)
    return problem.inner(x, part) * (len(part) / problem.inner_count)


def jacobian_part(worker: Worker, x: torch.Tensor) -> torch.Tensor:
    """Return this worker's part of dG(x), as a flat vector."""
    problem = cast("Compositional", worker.problem)
    part = own_part(problem.inner_count, worker.rank, worker.world_size)
    if not len(part):
        return x.new_zeros(problem.inner_dimension * len(x))
    return (problem.jacobian(x, part) * (len(part) / problem.inner_count)).reshape(-1)


def outer_part(worker: Worker, inner: torch.Tensor) -> torch.Tensor:
    """Return this worker's part of 1/n sum_i dF_i(y)."""
    problem = cast("Compositional", worker.problem)
    part = own_part(problem.outer_count, worker.rank, worker.world_size)
    if not len(part):
        return inner.new_zeros(len(inner))
    return problem.outer_gradient(inner, part) * (len(part) / problem.outer_count)
