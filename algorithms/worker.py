"""The seam: what an algorithm may ask of the machine it runs on.

An algorithm is a coroutine over a :class:`Worker`. A call starts an operation and returns a
:class:`Handle`; ``await handle`` waits for its value. Overlap therefore reads as it is: start, do
something else, await. Two implementations exist, one on the virtual clock of the simulator and one on
the wall clock of ``torch.distributed``, and both keep these promises:

- Code between two awaits is atomic: no other task of the same worker runs in between.
- Every operation takes its arguments as they are when it is called and delivers a fresh tensor.
- The computations of a task are done one after another, in the order of the calls; those of a worker's other
  tasks go on beside them and share its device.
- The operations of a group match by their order; the messages of a channel are first in, first out.
- Every pass over a model-sized tensor is charged, because it goes through an operation. Where the model in
  hand stands for a cost model of another length, a tensor is charged in proportion to the numbers of
  parameters; who packs bits, as a codec does, knows the size better and says it in ``charged``.
- A handle that nobody awaited is an error at the end of the run.
- Random numbers come from the worker, one stream per rank and purpose.

Models, gradients and messages are flat, one-dimensional tensors. In a timing-only run they are
:class:`~algorithms.phantom.Phantom` objects, which have a shape and a size but no values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np
    import torch

    from algorithms.phantom import Phantom
    from algorithms.problem import Problem

    Tensor: TypeAlias = torch.Tensor | Phantom
else:
    Tensor = Any

Reduction = Literal["sum", "mean", "max"]
"""How an all-reduce combines: ``mean`` weights every worker by its share of the global batch."""

WORLD = "world"
"""The name of the group of all workers, in rank order; every run has it."""

MESSAGE = "message"
"""The name of a channel where an algorithm needs one per pair of workers only."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Handle(Protocol[T_co]):
    """An operation under way; awaiting it gives its value, as often as one likes."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait for the operation's end and return its value."""
        ...


@dataclasses.dataclass(frozen=True)
class Outline:
    """The cost model that a shorter or longer model in hand stands for: lengths alone, no values.

    Attributes
    ----------
    elements, itemsize
        Parameters, and bytes of each.
    layers
        Shapes of the parameters, in the order of the flat vector.
    buckets
        Slices [low, high) of the flat vector as back-propagation frees them, the last parameters first.
    cuts
        Slices of the model in hand that stand for the buckets, in the same order; some may be empty.
    """

    elements: int
    itemsize: int
    layers: tuple[tuple[int, ...], ...]
    buckets: tuple[tuple[int, int], ...]
    cuts: tuple[tuple[int, int], ...]

    def stood_for(self, low: int, high: int) -> tuple[int, int]:
        """Return the slice at the same fractions as a slice of the model in hand."""
        own = max(end for _, end in self.cuts)
        return (2 * low * self.elements + own) // (2 * own), (2 * high * self.elements + own) // (2 * own)


class Cost(TypedDict):
    """What :meth:`Worker.compute` is told of a computation's bytes: on the tensors in hand, and charged."""

    nbytes: float
    charged: float | None


class SharedTensor(Protocol):
    """A vector in the memory of one machine that all its workers read and change without a lock.

    Reading and adding go element by element in ascending order, so a read may mix the states before and
    after another worker's addition. No addition to an element that nobody else touches meanwhile is lost.
    """

    @property
    def writes(self) -> int:
        """Additions finished so far, by all workers."""
        ...

    def read(self) -> Handle[Tensor]:
        """Start reading all elements, one after another."""
        ...

    def add(self, values: Tensor, at: Tensor | None = None) -> Handle[None]:
        """Start adding ``values`` to the elements numbered ``at`` (int64, ascending), or to all."""
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
        included, in ascending order of ranks. Empty unless the algorithm requires a mixing matrix.
    graph
        The communication graph on ranks; None unless the algorithm requires one.
    batch
        Samples of one of this worker's gradients.
    step_size
        Of this worker's next update, by the schedule of the run; 1 in a timing-only run.
    layers
        Shapes of the model's parameters, in the order of the flat vector.
    outline
        The cost model, where the model in hand is of another length or type; else None, as in a timing-only
        run.
    problem
        What is optimised, where the algorithm evaluates it itself; None in a timing-only run.
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
    def graph(self) -> nx.Graph[int] | None:
        """The communication graph on ranks."""
        ...

    @property
    def batch(self) -> int:
        """Samples of one of this worker's gradients."""
        ...

    @property
    def step_size(self) -> float:
        """The step size of this worker's next update."""
        ...

    @property
    def layers(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the model's parameters: weights of a linear layer are a matrix, biases a vector."""
        ...

    @property
    def outline(self) -> Outline | None:
        """The cost model that the model in hand stands for; None where both are of one length."""
        ...

    @property
    def problem(self) -> Problem | None:
        """This worker's view of what is optimised; see :mod:`algorithms.problem`."""
        ...

    @property
    def running(self) -> bool:
        """Whether this worker has iterations left; depends on its own iteration count alone."""
        ...

    @property
    def now(self) -> float:
        """The time on this run's clock, in seconds from the start of the run."""
        ...

    def random(self, purpose: str, shared: bool = False) -> np.random.Generator:
        """Return the random numbers of a purpose, the same object whenever it is asked for.

        ``shared`` ones are equal on all workers, as long as all draw the same from them.
        """
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

    def evaluate(
        self, function: Callable[..., Any], *tensors: Tensor, gradients: float = 1.0, iterations: int = 1
    ) -> Handle[Any]:
        """Start ``function(*tensors)``, which evaluates :attr:`problem` in the algorithm's own way.

        It takes as long as ``gradients`` gradients of this worker and counts ``iterations``. In a
        timing-only run the first tensor stands for the result.
        """
        ...

    def update(
        self, x: Tensor, gradient: Tensor | Sequence[Tensor], iteration: int | None = None
    ) -> Handle[Tensor]:
        """Start the local step; x - step size * gradient unless the run has another update rule.

        ``gradient`` is a whole gradient or the slices of one, in the order of
        :meth:`gradient_buckets`. A rule with a state (momentum) keeps it from step to step. The step size is
        that of an ``iteration``, counted from 1: this worker's present one unless a server, which applies
        the gradients of many, says which.
        """
        ...

    @property
    def rule_state(self) -> Tensor | None:
        """A copy of the update rule's state as one vector, after all updates called so far.

        None where the rule keeps none (plain SGD), or has made no update yet.
        """
        ...

    def set_rule_state(self, state: Tensor | None) -> None:
        """Replace the update rule's state; None sets it back to its start."""
        ...

    def combine(self, *terms: tuple[float, Tensor]) -> Handle[Tensor]:
        """Start the linear combination of (coefficient, tensor) terms, summed in the order written."""
        ...

    def compute(
        self,
        function: Callable[..., Any],
        *tensors: Tensor,
        nbytes: float,
        charged: float | None = None,
    ) -> Handle[Any]:
        """Start ``function(*tensors)``, a computation that moves ``nbytes`` bytes through memory.

        The bytes are counted on the tensors in hand; ``charged`` are those of the cost model, where they
        are not in proportion. The function changes none of its arguments; in a timing-only run it gets
        phantoms and returns phantoms.
        """
        ...

    def all_reduce(
        self, x: Tensor, op: Reduction = "mean", group: str = WORLD, charged: float | None = None
    ) -> Handle[Tensor]:
        """Start an all-reduce of ``x``, charged as so many bytes, over a declared group.

        A uniform mean is a sum, then a division by n; a mean over unequal shares multiplies by the
        share, then sums.
        """
        ...

    def all_gather(
        self, x: Tensor, group: str = WORLD, charged: float | None = None
    ) -> Handle[tuple[Tensor, ...]]:
        """Start gathering every member's tensor, all of one length, in the group's order.

        Each is charged as so many bytes.
        """
        ...

    def all_to_all(
        self, parts: Sequence[Tensor], group: str = WORLD, charged: float | None = None
    ) -> Handle[tuple[Tensor, ...]]:
        """Start sending the k-th part to the k-th member, for every k; all parts are of one length.

        Each is charged as so many bytes.

        Returns
        -------
        Handle of the parts that the members have sent to this worker, in the group's order.
        """
        ...

    def send(self, x: Tensor, to: int, channel: str = MESSAGE, charged: float | None = None) -> Handle[None]:
        """Start sending ``x`` over a declared channel; the handle ends when all of it has arrived.

        An empty tensor is a message too. It is charged as so many bytes.
        """
        ...

    def recv(self, source: int, channel: str = MESSAGE) -> Handle[Tensor]:
        """Start receiving the next message of a declared channel."""
        ...

    def exchange(self, x: Tensor, charged: float | None = None) -> Handle[Mapping[int, Tensor]]:
        """Start sending ``x`` to every out-neighbour and receiving from every in-neighbour.

        To each it is charged as so many bytes.

        Returns
        -------
        Handle of a mapping rank -> that neighbour's tensor, in ascending order of ranks.
        """
        ...

    def shared(self, name: str, x: Tensor) -> SharedTensor:
        """Return the shared vector of that name, which starts as ``x``, the same on all workers.

        All workers are on one machine, and the algorithm requires "shared-memory".
        """
        ...

    def spawn(self, task: Coroutine[Any, Any, T]) -> Handle[T]:
        """Start another task of this worker, which takes turns with the others at their awaits."""
        ...

    def lock(self, name: str = "model") -> AbstractAsyncContextManager[None]:
        """Return this worker's lock of that name: ``async with worker.lock(): …`` waits its turn for it."""
        ...

    def observe(self, name: str, value: float) -> None:
        """Note a number for the run's record, such as ``staleness``; free on either clock."""
        ...

    def report(self, x: Tensor) -> None:
        """Store a copy of this worker's model for later evaluation; free on either clock."""
        ...
