"""Variance-reduced estimates of the gradient of a compositional problem (C-SVRG-1 and C-SVRG-2).

At a snapshot x~ everything is known: G~ = G(x~), J~ = dG(x~), h~ = grad f(x~) = J~^T 1/n sum_i dF_i(G~). At
another x an estimate draws indices A for the inner value, one i for the outer function, and for the Jacobian
one j (the first estimator) or indices B (the second):

    G^ = G~ - 1/|A| sum_{j in A} (G_j(x~) - G_j(x))
    1:  v = dG_j(x)^T dF_i(G^) - dG_j(x~)^T dF_i(G~) + h~
    2:  v = J^^T dF_i(G^) - J~^T dF_i(G~) + h~,     J^ = J~ - 1/|B| sum_{j in B} (dG_j(x~) - dG_j(x))

i, and j or B, are drawn independently of A: drawn once for both they would bias v. Given A, v estimates
dG(x)^T dF(G^), which is the gradient only where every dF_i is affine.

Source: Lian, Wang and Liu, "Finite-sum composition optimization via variance reduced gradient descent",
AISTATS 2017, arXiv 1610.04674.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algorithms.problem import Compositional

Estimator = Literal["first", "second"]


@dataclass(frozen=True)
class Snapshot:
    """Everything known at x~.

    Attributes
    ----------
    x, inner, gradient
        x~, G~ and h~.
    jacobian
        J~, of shape [P, N]; the first estimator does without.
    """

    x: torch.Tensor
    inner: torch.Tensor
    gradient: torch.Tensor
    jacobian: torch.Tensor | None


@dataclass(frozen=True)
class Draw:
    """The indices of one estimate: A, i and j or B."""

    inner: torch.Tensor
    outer: torch.Tensor
    jacobian: torch.Tensor


def draw(random: np.random.Generator, problem: Compositional, inner: int, jacobian: int) -> Draw:
    """Draw |A| = ``inner`` and |B| = ``jacobian`` indices and one i, with replacement and apart."""
    import torch

    def indices(below: int, size: int) -> torch.Tensor:
        return torch.from_numpy(random.integers(below, size=size))

    return Draw(
        indices(problem.inner_count, inner),
        indices(problem.outer_count, 1),
        indices(problem.inner_count, jacobian),
    )


def estimate(
    problem: Compositional, estimator: Estimator, at: Snapshot, x: torch.Tensor, drawn: Draw
) -> torch.Tensor:
    """Return v at ``x``."""
    inner = at.inner - (problem.inner(at.x, drawn.inner) - problem.inner(x, drawn.inner))
    now = problem.outer_gradient(inner, drawn.outer)
    then = problem.outer_gradient(at.inner, drawn.outer)
    here, there = problem.jacobian(x, drawn.jacobian), problem.jacobian(at.x, drawn.jacobian)
    if estimator == "second":
        assert at.jacobian is not None
        here, there = at.jacobian - (there - here), at.jacobian
    return here.T @ now - there.T @ then + at.gradient


def queries(problem: Compositional, estimator: Estimator, inner: int, jacobian: int) -> int:
    """Return the values and derivatives that an estimate asks of single functions."""
    return 2 * inner + 2 + 2 * (1 if estimator == "first" else jacobian)


def own_part(count: int, rank: int, world_size: int) -> torch.Tensor:
    """Return the numbers of the functions that a worker evaluates of a full pass."""
    import torch

    return torch.arange(count * rank // world_size, count * (rank + 1) // world_size)
