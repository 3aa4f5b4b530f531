"""The seam: what an algorithm may ask of the machine it runs on.

An algorithm is a coroutine over a :class:`Worker`. A call starts an operation and returns a
:class:`Handle`; ``await handle`` waits for its value. Overlap therefore reads as it is: start, do
something else, await. Two implementations exist, one on the virtual clock of the simulator and one on
the wall clock of ``torch.distributed``, and both keep these promises:

- Code between two awaits is atomic: no other task of the same worker runs in between.
- Every operation takes its arguments as they are when it is called and delivers a fresh tensor.
- The work of one worker's computations is done one after another, in the order of the calls.
- The operations of a group match by their order; the messages of a channel are first in, first out.
- Every pass over a model-sized tensor is charged, because it goes through an operation.
- A handle that nobody awaited is an error at the end of the run.

Models, gradients and messages are flat, one-dimensional tensors. In a timing-only run they are
:class:`~algorithms.phantom.Phantom` objects, which have a shape and a size but no values.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch

    from algorithms.phantom import Phantom

    Tensor: TypeAlias = torch.Tensor | Phantom
else:
    Tensor = Any

Reduction = Literal["sum", "mean", "max"]
"""How an all-reduce combines: ``mean`` weights every worker by its share of the global batch."""

WORLD = "world"
"""The name of the group of all workers, in rank order; every run has it."""

T_co = TypeVar("T_co", covariant=True)


class Handle(Protocol[T_co]):
    """An operation under way; awaiting it gives its value, as often as one likes."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait for the operation's end and return its value."""
        ...


class Worker(Protocol):
    """One worker of a run: its place in the world, its computations, its messages.

    Attributes
    ----------
    rank, world_size
        This worker's number and the number of workers.
    share
        This worker's part of the global batch, p_i = M_i / sum of all M (1/n where batches are equal).
    weights
        Row of the mixing matrix: rank -> weight that this worker gives to that rank's model, itself
        included, in ascending order of ranks. Empty unless the algorithm requires a graph.
    """

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of workers."""
        ...

    @property
    def share(self) -> float:
        """This worker's part of the global batch."""
        ...

    @property
    def weights(self) -> Mapping[int, float]:
        """This worker's row of the mixing matrix."""
        ...

    @property
    def running(self) -> bool:
        """Whether this worker has iterations left; depends on its own iteration count alone."""
        ...

    @property
    def now(self) -> float:
        """The time on this run's clock, in seconds from the start of the run."""
        ...

    def initial_model(self) -> Tensor:
        """Return the starting model, the same on every worker, as a fresh tensor."""
        ...

    def gradient(self, x: Tensor) -> Handle[Tensor]:
        """Start the mean gradient at ``x`` over this worker's next mini-batch; counts one iteration."""
        ...

    def gradient_buckets(self, x: Tensor) -> Sequence[Handle[Tensor]]:
        """Start the same gradient, delivered in slices as back-propagation frees them.

        Returns
        -------
        Handles of the slices in back-propagation order: the last parameters come first.
        """
        ...

    def update(self, x: Tensor, gradient: Tensor | Sequence[Tensor]) -> Handle[Tensor]:
        """Start the local step x - step size * gradient.

        ``gradient`` is a whole gradient or the slices of one, in the order of
        :meth:`gradient_buckets`.
        """
        ...

    def combine(self, *terms: tuple[float, Tensor]) -> Handle[Tensor]:
        """Start the linear combination of (coefficient, tensor) terms, summed in the order written."""
        ...

    def all_reduce(self, x: Tensor, op: Reduction = "mean", group: str = WORLD) -> Handle[Tensor]:
        """Start an all-reduce of ``x`` over a declared group.

        A uniform mean is a sum, then a division by n; a mean over unequal shares multiplies by the
        share, then sums.
        """
        ...

    def exchange(self, x: Tensor) -> Handle[Mapping[int, Tensor]]:
        """Start sending ``x`` to every out-neighbour and receiving from every in-neighbour.

        Returns
        -------
        Handle of a mapping rank -> that neighbour's tensor, in ascending order of ranks.
        """
        ...

    def report(self, x: Tensor) -> None:
        """Store a copy of this worker's model for later evaluation; free on either clock."""
        ...
