"""The sections of a scenario file, and how each of their parts is read.

A section accepts exactly its own keys; a part is chosen by name from a catalogue. What needs more than one
section to be judged is checked by :class:`simulator.scenario.Scenario`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

import topologies
from algorithms import ALGORITHMS, Algorithm, algorithm
from algorithms.codecs import CODECS, Codec, codec
from simulator.devices import DEVICES, ComputeTable, Device, Precision
from simulator.networks import NETWORKS
from simulator.parts import (
    PART_WRITER,
    BadInput,
    Bytes,
    BytesPerSecond,
    Catalogue,
    FlopPerSecond,
    Part,
    Seconds,
    Section,
    check,
    nearest,
    nearest_file,
    reader,
)
from simulator.stragglers import STRAGGLERS
from simulator.target import Target
from simulator.transports import TRANSPORTS
from simulator.update import RULES, Rule
from simulator.workload import OBJECTIVES, GivenCost, ModelCost
from traces.calibration_files import SUFFIXES, read_description

if TYPE_CHECKING:
    import networkx as nx

COSTS = {"model": ModelCost, "given": GivenCost}
"""What a gradient costs: the layers of a model, or given seconds."""


def _catalogue(what: str, tag: str, known: Mapping[str, Any], find: Any = None) -> Catalogue:
    return Catalogue(what, tag, find or known.__getitem__, tuple(known))


TOPOLOGY = _catalogue("topology builder", "builder", topologies.BUILDERS)
ALGORITHM = dataclasses.replace(_catalogue("algorithm", "name", ALGORITHMS, algorithm), base=Algorithm)
CODEC = dataclasses.replace(_catalogue("codec", "codec", CODECS, codec), base=Codec)
STRAGGLER = _catalogue("straggler", "kind", STRAGGLERS)
NETWORK = _catalogue("network", "name", NETWORKS)
TRANSPORT = _catalogue("transport", "name", TRANSPORTS)
COST = _catalogue("cost", "kind", COSTS)
OBJECTIVE = _catalogue("objective", "kind", OBJECTIVES)
UPDATE = dataclasses.replace(_catalogue("update rule", "rule", RULES), base=Rule)


class TopologyFile(Section):
    """A topology that is read from a file.

    Attributes
    ----------
    file
        Its path, relative to the scenario's folder.
    """

    file: str

    def data(self) -> dict[str, Any]:
        """Return the choice as a file would hold it."""
        return {"file": self.file}


class TopologyNode(Section):
    """A node of a topology that is written out in full.

    Attributes
    ----------
    name
        By which edges call it.
    kind
        What it is: gpu for a worker's place; host, switch, nic or any other word for the rest.
    host
        The machine that it is in.
    """

    name: str | int
    kind: str
    host: str | int | None = None


class TopologyEdge(Section):
    """An edge of a topology that is written out in full; an arc in a directed one.

    Attributes
    ----------
    between
        The two nodes.
    bandwidth
        Line rate of each direction.
    latency
        Of each direction.
    efficiency
        Part of the line rate that payload reaches.
    duplex
        Whether both directions share the rate (half) or not (full).
    """

    between: tuple[str | int, str | int]
    bandwidth: BytesPerSecond
    latency: Seconds = 0.0
    efficiency: float = 1.0
    duplex: Literal["full", "half"] | None = None


class TopologyGraph(Section):
    """A topology that is written out in full, as a calibration does.

    Attributes
    ----------
    nodes
        All nodes.
    edges
        All edges.
    directed
        Whether edges are arcs, which carry in one direction.
    """

    nodes: tuple[TopologyNode, ...] = pydantic.Field(min_length=1)
    edges: tuple[TopologyEdge, ...] = ()
    directed: bool = False

    def data(self) -> dict[str, Any]:
        """Return the graph as a file would hold it."""
        return self.model_dump(by_alias=True, mode="json", exclude_none=True)

    def build(self) -> nx.Graph[Any]:
        """Return the graph; its attributes are not checked here.

        Raises
        ------
        ValueError
            A node is given twice, or an edge ends at none.
        """
        import networkx as nx

        graph: nx.Graph[Any] = nx.DiGraph() if self.directed else nx.Graph()
        for node in self.nodes:
            if node.name in graph:
                raise ValueError(f"node {node.name!r} is given twice")
            graph.add_node(node.name, **_given(node, "name"))
        for edge in self.edges:
            for end in edge.between:
                if end not in graph:
                    raise ValueError(f"an edge ends at {end!r}, which is not among the nodes")
            if graph.has_edge(*edge.between):
                raise ValueError(
                    f"the edge between {edge.between[0]!r} and {edge.between[1]!r} is given twice"
                )
            graph.add_edge(*edge.between, **_given(edge, "between"))
        return graph


def _given(section: Section, name: str) -> dict[str, Any]:
    """Return the fields of a section that are not None, without that of a name; quantities as numbers."""
    found = {key: getattr(section, key) for key in type(section).model_fields if key != name}
    return {key: value for key, value in found.items() if value is not None}


class Table(Section):
    """Measured seconds of a model's gradient by batch size; see :class:`simulator.devices.ComputeTable`.

    Attributes
    ----------
    model
        Its name in the catalogue.
    batches
        Samples of a gradient, ascending.
    forward
        Time of the forward pass for each.
    backward
        Time of the backward pass for each.
    precision
        Of the arithmetic.
    """

    model: str
    batches: tuple[int, ...]
    forward: tuple[Seconds, ...]
    backward: tuple[Seconds, ...]
    precision: Precision = "fp32"


class DeviceChoice(Section):
    """A device of the catalogue, with figures that replace its own; one that is not there needs its rates.

    Attributes
    ----------
    name
        As the catalogue has it.
    efficiency
        Part of the peak that training reaches.
    peak_flops
        Peak rate of arithmetic.
    memory_bandwidth
        Bytes to and from its memory.
    memory
        Size of its memory.
    launch_overhead
        Time that starting a layer's work takes, a direction.
    pass_overhead
        Time that an element-wise pass takes beyond that of its bytes.
    interference
        How many times longer computations take while a message moves.
    tables
        Measured times of models' gradients by batch size.
    """

    name: str
    efficiency: float | None = None
    peak_flops: FlopPerSecond | None = None
    memory_bandwidth: BytesPerSecond | None = None
    memory: Bytes | None = None
    launch_overhead: Seconds | None = None
    pass_overhead: Seconds | None = None
    interference: float | None = None
    tables: tuple[Table, ...] | None = None

    @property
    def known(self) -> bool:
        """Whether the name or the figures say what the device is."""
        own = (self.peak_flops, self.memory_bandwidth, self.memory)
        return self.name in DEVICES or None not in own

    def device(self) -> Device:
        """Return the device with its replaced figures."""
        changes = _given(self, "")
        if self.tables is not None:
            changes["tables"] = tuple(ComputeTable(**_given(table, "")) for table in self.tables)
        if self.name in DEVICES:
            return dataclasses.replace(DEVICES[self.name], **changes)
        return Device(**changes)


class Background(Section):
    """Traffic that is not ours.

    Attributes
    ----------
    source, destination
        Nodes of the topology.
    rate
        At most so much of it.
    start, end
        While it lasts.
    """

    source: str | int
    destination: str | int
    rate: BytesPerSecond
    start: Seconds = 0.0
    end: Seconds = float("inf")

    def model_post_init(self, _: object) -> None:
        """Check the ranges."""
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0 B/s, got {self.rate!r}")
        if not 0 <= self.start < self.end:
            raise ValueError(f"start must be 0 s or later and before end, got {self.start!r}")


def described(value: Any, folder: Path | None) -> Any:
    """Return a ``cluster`` section with the keys of the cluster description that it names.

    ``cluster: machine.yaml`` takes all of a description's keys, ``cluster: {file: machine.yaml, workers: 2}``
    replaces some of them. A scenario is complete without the file afterwards.

    Raises
    ------
    BadInput
        The file is no cluster description.
    """
    if isinstance(value, str) and value.endswith(SUFFIXES):
        value = {"file": value}
    if isinstance(value, Mapping) and not {"file", "topology"} & set(value):
        # The section itself does not know of this key, so that it could not name it.
        for near in difflib.get_close_matches("file", map(str, value), n=1):
            raise BadInput("cluster", f"unknown key '{near}'; the nearest is 'file'")
    if not isinstance(value, Mapping) or "file" not in value:
        return value
    name = value["file"]
    if not isinstance(name, str):
        raise BadInput("cluster.file", f"expected the name of a cluster description, got {name!r}")
    try:
        data = read_description((folder or Path()) / name)
    except ValueError as error:
        raise BadInput("cluster.file", f"{error}{nearest_file(name, folder, SUFFIXES)}") from None
    return {**data["cluster"], **{key: entry for key, entry in value.items() if key != "file"}}


def _read_topology(value: object, folder: Path | None) -> Part | TopologyFile | TopologyGraph:
    if isinstance(value, (TopologyFile, TopologyGraph)):
        return value
    if isinstance(value, Mapping) and "file" in value:
        chosen: TopologyFile = check(TopologyFile, value)
        return chosen
    if isinstance(value, Mapping) and isinstance(value.get("nodes"), (list, tuple)):
        graph: TopologyGraph = check(TopologyGraph, value)
        return graph
    return TOPOLOGY.read(value, folder)


def _read_device(value: object) -> DeviceChoice:
    if isinstance(value, DeviceChoice):
        return value
    chosen: DeviceChoice = check(DeviceChoice, {"name": value} if isinstance(value, str) else value)
    if not chosen.known:
        raise BadInput(
            "", f"unknown device '{chosen.name}'; the nearest is '{nearest(chosen.name, DEVICES)}'"
        )
    try:
        chosen.device()
    except ValueError as error:
        raise BadInput("", str(error)) from None
    return chosen


def _read_devices(value: object, folder: Path | None) -> tuple[DeviceChoice, ...]:
    return tuple(map(_read_device, value)) if isinstance(value, (list, tuple)) else (_read_device(value),)


def _read_cost(value: object, folder: Path | None) -> Part:
    """Read a cost; its kind follows from its keys where it is not named."""
    if isinstance(value, Mapping) and "kind" not in value:
        value = {"kind": "model" if "model" in value else "given", **value}
    return COST.read(value, folder)


def _read_stragglers(value: object, folder: Path | None) -> tuple[Part, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadInput("", f"expected a list of stragglers, got {value!r}")
    parts = []
    for index, entry in enumerate(value):
        try:
            parts.append(STRAGGLER.read(entry, folder))
            parts[-1].build()
        except BadInput as error:
            raise BadInput(f"{index}.{error.key}".rstrip("."), error.problem) from None
    return tuple(parts)


def _read_algorithms(value: object, folder: Path | None) -> tuple[Part, ...]:
    if not isinstance(value, (list, tuple)):
        raise BadInput("", f"expected a list of algorithms, got {value!r}")
    parts = []
    for index, entry in enumerate(value):
        try:
            parts.append(ALGORITHM.read(entry, folder))
        except BadInput as error:
            raise BadInput(f"{index}.{error.key}".rstrip("."), error.problem) from None
    return tuple(parts)


_PARTS_WRITER = pydantic.PlainSerializer(lambda parts: [entry.data() for entry in parts])


def _device_data(chosen: DeviceChoice) -> dict[str, Any]:
    return chosen.model_dump(by_alias=True, mode="json", exclude_none=True)


_DEVICES_WRITER = pydantic.PlainSerializer(lambda chosen: list(map(_device_data, chosen)))


class ServersSection(Section):
    """The machines of an algorithm's dedicated servers.

    Attributes
    ----------
    nodes
        Those of the topology that they sit on, in their order; unless given the first without workers.
    device
        What they compute with; what the workers do unless given.
    """

    nodes: tuple[str | int, ...] | None = None
    device: Annotated[
        DeviceChoice | None,
        reader(lambda value, folder: None if value is None else _read_device(value)),
        pydantic.PlainSerializer(lambda chosen: chosen and _device_data(chosen)),
    ] = None


class ClusterSection(Section):
    """The machines: topology, devices, workers, and what disturbs them.

    Attributes
    ----------
    topology
        The graph of the machines: a builder with its keys, or a file.
    device
        The GPU of every worker, or a list with one for each.
    workers
        How many train; every GPU of the topology unless given.
    placement
        Which GPUs they take: host after host, one of each host in turn, or a list of positions.
    routing
        Shortest paths, or spread over equally short ones.
    network
        How links serve messages.
    fairness
        How flows share a link: equally, or as TCP tends to, in proportion to 1 / path latency.
    collectives
        ``max-plus`` computes a stepped all-reduce at once while nothing else is on its links; it is much
        faster and gives the same times up to rounding.
    transport
        The communication stack.
    stragglers
        A list of what slows workers and links.
    background
        A list of traffic that is not ours.
    servers
        Where dedicated servers are, which an algorithm has (``dedicated: true``).
    seed
        Of what the machines leave to chance: jitter, bursts, unequal shares of links. The scenario's own
        seed unless given; then the algorithm's choices stay while those vary, as from run to run in reality.
    """

    topology: Annotated[Part | TopologyFile | TopologyGraph, reader(_read_topology), PART_WRITER]
    device: Annotated[tuple[DeviceChoice, ...], reader(_read_devices), _DEVICES_WRITER]
    workers: int | None = pydantic.Field(default=None, ge=1)
    placement: Literal["linear", "round-robin"] | tuple[int, ...] = "linear"
    routing: Literal["shortest", "ecmp"] = "shortest"
    network: Annotated[Part, reader(NETWORK.read), PART_WRITER] = pydantic.Field(
        default="fluid", validate_default=True
    )
    fairness: Literal["maxmin", "rtt"] = "maxmin"
    collectives: Literal["flows", "max-plus"] = "flows"
    transport: Annotated[Part, reader(TRANSPORT.read), PART_WRITER] = pydantic.Field(
        default="nccl", validate_default=True
    )
    stragglers: Annotated[tuple[Part, ...], reader(_read_stragglers), _PARTS_WRITER] = ()
    background: tuple[Background, ...] = ()
    servers: ServersSection | None = None
    seed: int | None = pydantic.Field(default=None, ge=0)


class WorkloadSection(Section):
    """What is trained: its cost, and, where numerics are wanted, what is really optimised.

    A small problem stands for one whose gradients are as noisy at the cost's batch only with a smaller batch
    of its own.

    Attributes
    ----------
    cost
        What a gradient costs: a model with its layers, or given seconds.
    objective
        What is really optimised; without it a run is timing only.
    objective_batch
        Samples per worker that a gradient of the objective really takes; without it, the batch of the cost.
    evaluation
        ``batched`` lets a simulation evaluate the gradients of several workers as one, which is faster for
        small networks and gives up bit-identity.
    batches
        The same for all workers, or in proportion to their speed.
    scaling
        ``weak``: the batch is that of each worker. ``strong``: it is that of all together.
    """

    cost: Annotated[Part, reader(_read_cost), PART_WRITER]
    objective: Annotated[
        Part | None,
        reader(lambda value, folder: value and OBJECTIVE.read(value, folder)),
        pydantic.PlainSerializer(lambda value: value and value.data()),
    ] = None
    objective_batch: int | None = pydantic.Field(default=None, ge=1)
    evaluation: Literal["separate", "batched"] = "separate"
    batches: Literal["equal", "proportional"] = "equal"
    scaling: Literal["weak", "strong"] = "weak"


class GossipSection(Section):
    """Who averages with whom in decentralised algorithms, and with which weights.

    Attributes
    ----------
    graph
        A builder of graphs of workers, by name or with its keys.
    mixing
        The rule for the weights of the mixing matrix.
    """

    graph: str | dict[str, Any] = "ring"
    mixing: str = "uniform"


class StepSizeGrid(Section):
    """Step sizes to choose from.

    Attributes
    ----------
    grid
        Of these each algorithm and worker count takes the one that reaches the target first.
    """

    grid: tuple[float, ...] = pydantic.Field(min_length=1)


class Budget(Section):
    """How long a run may go on.

    Attributes
    ----------
    iterations
        Of each worker; a round that has begun is finished.
    stop
        ``target`` ends a simulation as soon as its target has been reached and held.
    """

    iterations: int = pydantic.Field(ge=1)
    stop: Literal["end", "target"] = "end"


class ExecutionSection(Section):
    """What an execution takes from the scenario rather than from the machine; a simulation takes all of it.

    Attributes
    ----------
    compute
        ``emulated`` lets every computation take what the cost model says, by waiting after the real one.
    payload
        ``cost`` pads every message to the cost model's bytes.
    stragglers
        ``injected`` stretches computations by the slow-downs, the jitter and the bursts that the simulation
        has, and lets workers crash.
    """

    compute: Literal["objective", "emulated"] = "objective"
    payload: Literal["objective", "cost"] = "objective"
    stragglers: Literal["none", "injected"] = "none"


class Sections(Section):
    """All keys of a scenario file.

    Attributes
    ----------
    name
        What the run is called.
    cluster
        The machines; or the name of a cluster description, which may also be its key ``file``, beside keys
        that go before the description's.
    workload
        What is trained.
    algorithm
        The algorithm with its parameters.
    budget
        How long a run may go on.
    compare
        A list of further algorithms, each run on the same.
    gossip
        Who averages with whom in decentralised algorithms.
    compression
        A codec with its parameters, put before what the algorithm sends.
    step_size
        The step size, or a grid to choose from.
    update
        The local update rule and the schedule of its step size.
    target
        What a run is to reach.
    execution
        What an execution takes from the scenario rather than from the machine.
    seed
        Of all random numbers.
    """

    name: str
    cluster: ClusterSection
    workload: WorkloadSection
    algorithm: Annotated[Part, reader(ALGORITHM.read), PART_WRITER]
    budget: Budget
    compare: Annotated[tuple[Part, ...], reader(_read_algorithms), _PARTS_WRITER] = ()
    gossip: GossipSection | None = None
    compression: Annotated[
        Part | None,
        reader(lambda value, folder: value and CODEC.read(value, folder)),
        pydantic.PlainSerializer(lambda value: value and value.data()),
    ] = None
    step_size: float | StepSizeGrid | None = None
    update: Annotated[Part, reader(UPDATE.read), PART_WRITER] = pydantic.Field(
        default="sgd", validate_default=True
    )
    target: Target | None = None
    execution: ExecutionSection | None = None
    seed: int = pydantic.Field(default=0, ge=0)
