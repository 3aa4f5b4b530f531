"""The base of every training algorithm, and how it describes itself.

An algorithm is a dataclass: its fields are the parameters that a scenario may set, validated when the
object is made; its :meth:`Algorithm.run` is the coroutine that each worker executes, in the order of
the paper. Before a run an algorithm declares in a :class:`Plan` which groups and channels it will use,
so that the wall clock can make its process groups in the same order on every rank.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeAlias,
    get_args,
    get_origin,
    get_type_hints,
)

from algorithms.worker import WORLD, Worker

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np
    from numpy.typing import NDArray

    Matrix: TypeAlias = NDArray[np.float64]

REQUIREMENTS = {
    "graph": "a communication graph with a doubly stochastic mixing matrix",
    "symmetric": "an undirected communication graph",
    "bipartite": "a communication graph whose workers fall into two sets with edges between the sets only",
    "finite-sum": "an objective over samples or other summands, with numerics",
    "compositional": "an objective that is a mean of functions of a mean of functions, with numerics",
    "shared-memory": "all workers on one machine",
}
"""What an algorithm may require of a run, and what it means."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the bytes that an algorithm sends depend on.

    Attributes
    ----------
    workers
        n.
    elements, itemsize
        Parameters of the model, and bytes of each.
    degree
        Neighbours of a worker on the communication graph.
    inner
        Elements of an inner value of a compositional problem (P); None for one more than the model has, as
        for a mean-variance portfolio.
    jacobian
        Whether a compositional epoch sums up a Jacobian: the first does, and where it depends on the model
        every one.
    """

    workers: int
    elements: int
    itemsize: int = 4
    degree: float = 2.0
    inner: int | None = None
    jacobian: bool = True

    @property
    def model(self) -> float:
        """Bytes of the model (M)."""
        return float(self.elements * self.itemsize)

    @property
    def inner_value(self) -> float:
        """Bytes of an inner value (4P in fp32)."""
        return float((self.elements + 1 if self.inner is None else self.inner) * self.itemsize)

    @property
    def jacobian_sum(self) -> float:
        """Bytes of a Jacobian of the inner function, where one is summed up."""
        return self.inner_value * self.elements if self.jacobian else 0.0

    def reduced(self, nbytes: float) -> float:
        """Return what a worker sends in an all-reduce of so many bytes: 2(n-1)/n of them."""
        return 2 * (self.workers - 1) / self.workers * nbytes


Compresses: TypeAlias = Literal["gradients", "models", "pushed gradients", "model differences", ""]
"""What of an algorithm's traffic a codec may stand before; see :class:`Algorithm`."""

Channel = tuple[int, int, str]
"""(source rank, destination rank, name): messages on it are first in, first out."""

BOUNDS = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}
"""What a parameter's value may be bound by, in words and as a comparison."""

EXCHANGE = "exchange"
"""The channel name that :meth:`algorithms.worker.Worker.exchange` uses."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups and channels that an algorithm will use; using any other is an error.

    Attributes
    ----------
    groups
        Name -> ranks, in order. The group of all workers, ``world``, always exists.
    channels
        The point-to-point channels, in a canonical order.
    """

    groups: Mapping[str, tuple[int, ...]]
    channels: tuple[Channel, ...] = ()

    @functools.cached_property
    def numbers(self) -> Mapping[Channel, int]:
        """The position of each channel among the channels."""
        return {channel: number for number, channel in enumerate(self.channels)}


ABOVE_ZERO = ("above 0",)
"""Of another parameter: any value above 0; see :func:`parameter`."""


def parameter(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    where: Mapping[str, tuple[Any, ...]] | None = None,
    rule_state: bool = False,
    **bounds: Any,
) -> Any:
    """Declare a parameter of an algorithm.

    Parameters
    ----------
    default
        Its value where the scenario is silent.
    doc
        What it means, in a sentence.
    unit
        What it counts, to be read after "in"; empty for a plain number or a choice.
    where
        Other parameters and the values of them with which this one has an effect, or :data:`ABOVE_ZERO`; it
        is refused beside any others, unless it has its default.
    rule_state
        Whether it is about the update rule's state, and refused likewise where the rule keeps none.
    bounds
        ``minimum`` and ``maximum``: the smallest and the largest allowed value; ``above`` and ``below``: what
        a value must be above or below.
    """
    metadata = {"doc": doc, "unit": unit, "where": where or {}, "rule_state": rule_state, **bounds}
    return dataclasses.field(default=default, metadata=metadata)


def key_of(field: str) -> str:
    """Return the key of a scenario that sets a field."""
    return field.replace("_", "-")


def check_parameters(made: Any) -> None:
    """Refuse a dataclass whose parameters are of another type, no choice, out of bounds or without effect.

    Raises
    ------
    ValueError
        One sentence that names the parameter, as a scenario writes it.
    """
    hints = get_type_hints(type(made))
    for field in dataclasses.fields(made):
        value, key = getattr(made, field.name), key_of(field.name)
        expected = hints[field.name]
        if isinstance(expected, type) and type(value) is not expected:
            raise ValueError(f"{key} must be of type {expected.__name__}, got {value!r}")
        if get_origin(expected) is Literal and value not in get_args(expected):
            choices = ", ".join(map(repr, get_args(expected)))
            raise ValueError(f"{key} must be one of {choices}, got {value!r}")
        for bound, (words, holds) in BOUNDS.items():
            limit = field.metadata.get(bound)
            if limit is not None and not holds(value, limit):
                raise ValueError(f"{key} must be {words} {limit}, got {value!r}")
    for field in dataclasses.fields(made):
        if getattr(made, field.name) != field.default:
            _check_effect(made, field)


def _check_effect(made: Any, field: dataclasses.Field[Any]) -> None:
    """Refuse a parameter that has no effect beside the others."""
    for other, values in field.metadata.get("where", {}).items():
        given, positive = getattr(made, other), values is ABOVE_ZERO
        if not (given > 0 if positive else given in values):
            wanted = " or ".join(values if positive else map(repr, values))
            raise ValueError(
                f"{key_of(field.name)} has no effect where {key_of(other)} is {given!r}; "
                f"it needs {key_of(other)} {wanted}"
            )


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """Base of all algorithms: parameters as fields, behaviour in :meth:`run`.

    Class attributes
    ----------------
    requires
        What a run must offer, in the words of :data:`REQUIREMENTS`.
    model_copies
        Model-sized buffers beside parameters and gradient, for the memory check.
    compresses
        What a codec may stand before. ``gradients``: means over all workers, of gradients. ``models``: means
        over all workers, of models, which then become the mean exactly (what is kept beside it would be sent
        twice, by error feedback). ``pushed gradients``: messages on the channels that :meth:`pushed` names.
        ``model differences``: exchanges with neighbours, of differences from replicas that both sides keep.
        Nothing ("") where what is sent must stay exact.
    exact_because
        Why nothing may be compressed, to be read after "… cannot be compressed: ".
    momentum
        How the algorithm takes an update rule with a state: ``covered`` by its theory, ``uncovered`` (a
        warning), or ``refused`` because its own rule is built on plain steps.
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    model_copies: ClassVar[int] = 0
    compresses: ClassVar[Compresses] = ""
    exact_because: ClassVar[str] = "what it sends must arrive exactly"
    momentum: ClassVar[Literal["covered", "uncovered", "refused"]] = "uncovered"

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing, so that both clocks give the same bits."""
        return True

    @property
    def mixes(self) -> bool:
        """Whether workers average with the weights of a mixing matrix."""
        return "graph" in self.requires

    @property
    def resumes_exactly(self) -> bool:
        """Whether a reported model and the update rule's state are all that the next iteration needs.

        A run that starts anew from them goes on then as if it had never stopped. Another algorithm keeps more
        between its rounds, such as a momentum of its own.
        """
        return False

    @property
    def needs_graph(self) -> bool:
        """Whether workers talk to their neighbours on a communication graph."""
        return bool(self.requires & {"graph", "symmetric", "bipartite"})

    @property
    def dedicated_servers(self) -> int:
        """Ranks behind the workers', each on a machine of its own, that have no data and only serve."""
        return 0

    def served_updates(self, world_size: int) -> int:
        """Return the updates that a server makes while every worker does one iteration.

        A dedicated server, which has no iterations of its own, follows a schedule of step sizes by it.
        """
        return world_size

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the groups and channels of a run; by default the group of all workers."""
        return Plan(groups={WORLD: tuple(range(world_size))})

    def pushed(self, channel: Channel, elements: int, world_size: int) -> tuple[int, int] | None:
        """Return which slice [low, high) of a gradient of so many elements a channel's messages carry.

        None where they carry anything else. Asked where an algorithm compresses ``pushed gradients``.
        """
        return None

    def alone(self) -> Self:
        """Return this algorithm as one worker runs it, to which speedups refer."""
        return self

    def traffic(self, setting: Setting) -> float:
        """Return the bytes that a worker sends per iteration, on average over workers and iterations.

        By default those of an all-reduce of the model. What dedicated servers send is not among them.
        """
        return setting.reduced(setting.model)

    def epoch_traffic(self, setting: Setting) -> float:
        """Return the bytes that a worker sends at the beginning of an epoch, on average over workers.

        They are not among those of its iterations. By default there are no epochs.
        """
        return 0.0

    def most_samples(self, samples: int) -> int | None:
        """Return the largest global batch that it can draw from so many samples; None where any will do.

        Asked where it requires a finite sum whose number of summands is known.
        """
        return None

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse a run that this algorithm cannot do, beyond what ``requires`` says.

        Parameters
        ----------
        graph, mixing
            The communication graph and its mixing matrix, [workers, workers], where one is required.

        Raises
        ------
        ValueError
            One sentence that gives the reason.
        """

    async def run(self, worker: Worker) -> None:
        """Train on one worker; every worker executes this coroutine."""
        raise TypeError(f"{type(self).__name__} defines no run coroutine")


def graph_channels(graph: nx.Graph[int]) -> tuple[Channel, ...]:
    """Return one exchange channel per direction of every edge, in ascending order."""
    arcs = list(graph.edges)
    if not graph.is_directed():
        arcs += [(v, u) for u, v in arcs]
    return tuple((source, destination, EXCHANGE) for source, destination in sorted(arcs))
