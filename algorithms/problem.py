"""What an algorithm may ask of the problem itself, where a mean gradient over a mini-batch is not enough.

A :class:`FiniteSum` is f = sum_i p_i f_i with worker i's f_i a mean over its own summands; variance
reduction asks for gradients of chosen summands, privacy for the gradient of each. A
:class:`Compositional` problem is

    f(x) = 1/n sum_i F_i( 1/m sum_j G_j(x) ),   G_j: R^N -> R^P,  F_i: R^P -> R,

whose gradient dG(x)^T 1/n sum_i dF_i(G(x)) has no unbiased estimate from a single pair (i, j). Every worker
can evaluate every one of its parts.

Evaluations are made inside :meth:`algorithms.worker.Worker.evaluate`, which charges their time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


class FiniteSum(Protocol):
    """A worker's part of a finite sum.

    Attributes
    ----------
    count
        Summands that this worker holds.
    total
        Summands of all workers.
    """

    @property
    def count(self) -> int:
        """Summands that this worker holds."""
        ...

    @property
    def total(self) -> int:
        """Summands of all workers."""
        ...

    def gradient(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the mean gradient at ``x`` over this worker's summands ``indices`` (int64, 0..count-1)."""
        ...

    def full_gradient(self, x: Tensor) -> Tensor:
        """Return the mean gradient over all of this worker's summands."""
        ...

    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the gradient of each summand, of shape [len(indices), parameters].

        Raises
        ------
        ValueError
            Summands depend on each other (batch normalisation), so that there is no gradient of one.
        """
        ...


class Compositional(Protocol):
    """A mean of functions of a mean of functions.

    Attributes
    ----------
    outer_count, inner_count
        n and m, the numbers of functions F_i and G_j.
    inner_dimension
        P, the length of G_j(x).
    constant_jacobian
        Whether dG_j does not depend on x.
    """

    @property
    def outer_count(self) -> int:
        """The number n of outer functions F_i."""
        ...

    @property
    def inner_count(self) -> int:
        """The number m of inner functions G_j."""
        ...

    @property
    def inner_dimension(self) -> int:
        """The length P of an inner value."""
        ...

    @property
    def constant_jacobian(self) -> bool:
        """Whether the inner functions' Jacobians do not depend on x."""
        ...

    def inner(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the mean of G_j(x) over ``indices``, of shape [P]."""
        ...

    def jacobian(self, x: Tensor, indices: Tensor) -> Tensor:
        """Return the mean Jacobian of G_j at ``x`` over ``indices``, of shape [P, N]."""
        ...

    def outer_gradient(self, y: Tensor, indices: Tensor) -> Tensor:
        """Return the mean gradient of F_i at ``y`` over ``indices``, of shape [P]."""
        ...


Problem: TypeAlias = FiniteSum | Compositional
"""What a worker's ``problem`` may be; an algorithm's ``requires`` says which it needs."""
