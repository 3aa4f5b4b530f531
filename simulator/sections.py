"""The sections of a scenario file, and how each of their parts is read.

A section accepts exactly its own keys; a part is chosen by name from a catalogue. What needs more than one
section to be judged is checked by :class:`simulator.scenario.Scenario`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

import topologies
from algorithms import ALGORITHMS, Algorithm, algorithm
from algorithms.codecs import CODECS, Codec, codec
from simulator.devices import DEVICES, Device
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
    reader,
)
from simulator.stragglers import STRAGGLERS
from simulator.target import Target
from simulator.transports import TRANSPORTS
from simulator.update import RULES, Rule
from simulator.workload import OBJECTIVES, GivenCost, ModelCost

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
    """A topology that is read from a file, relative to the scenario's folder."""

    file: str

    def data(self) -> dict[str, Any]:
        """Return the choice as a file would hold it."""
        return {"file": self.file}


class DeviceChoice(Section):
    """A device of the catalogue, with figures that replace its own."""

    name: str
    efficiency: float | None = None
    peak_flops: FlopPerSecond | None = None
    memory_bandwidth: BytesPerSecond | None = None
    memory: Bytes | None = None
    launch_overhead: Seconds | None = None

    def device(self) -> Device:
        """Return the device with its replaced figures."""
        changes = {
            key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None
        }
        return dataclasses.replace(DEVICES[self.name], **changes)


class Background(Section):
    """Traffic that is not ours: at most ``rate`` from one node to another, while it lasts."""

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


def _read_topology(value: object, folder: Path | None) -> Part | TopologyFile:
    if isinstance(value, TopologyFile):
        return value
    if isinstance(value, Mapping) and "file" in value:
        chosen: TopologyFile = check(TopologyFile, value)
        return chosen
    return TOPOLOGY.read(value, folder)


def _read_device(value: object) -> DeviceChoice:
    if isinstance(value, DeviceChoice):
        return value
    chosen: DeviceChoice = check(DeviceChoice, {"name": value} if isinstance(value, str) else value)
    if chosen.name not in DEVICES:
        raise BadInput(
            "", f"unknown device '{chosen.name}'; the nearest known one is '{nearest(chosen.name, DEVICES)}'"
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


_DEVICES_WRITER = pydantic.PlainSerializer(
    lambda chosen: [device.model_dump(by_alias=True, mode="json", exclude_none=True) for device in chosen]
)


class ClusterSection(Section):
    """The machines: topology, devices, workers, and what disturbs them.

    ``network`` is how links serve messages. ``fairness`` is how flows share a link: equally, or as TCP tends
    to, in proportion to 1 / path latency. ``collectives: max-plus`` computes a stepped all-reduce at once
    while nothing else is on its links; it is much faster and gives the same times up to rounding.
    """

    topology: Annotated[Part | TopologyFile, reader(_read_topology), PART_WRITER]
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


class WorkloadSection(Section):
    """What is trained: its cost, and, where numerics are wanted, what is really optimised.

    ``objective_batch`` is the number of samples per worker that a gradient of the objective really takes;
    without it, the batch that the cost charges. A small problem stands for one whose gradients are as
    noisy at the cost's batch only with a smaller batch of its own. ``evaluation: batched`` lets a simulation
    evaluate the gradients of several workers at once, which is faster and gives up bit-identity.
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
    """Who averages with whom in decentralised algorithms, and with which weights."""

    graph: str | dict[str, Any] = "ring"
    mixing: str = "uniform"


class StepSizeGrid(Section):
    """Step sizes of which each algorithm and worker count takes the one that reaches the target first."""

    grid: tuple[float, ...] = pydantic.Field(min_length=1)


class Budget(Section):
    """How long a run may go on, in iterations of each worker; a round that has begun is finished.

    ``stop: target`` ends a simulation as soon as its target has been reached and held.
    """

    iterations: int = pydantic.Field(ge=1)
    stop: Literal["end", "target"] = "end"


class ExecutionSection(Section):
    """What an execution takes from the scenario rather than from the machine; a simulation takes all of it.

    ``compute: emulated`` lets every computation take what the cost model says, by waiting after the real
    one. ``payload: cost`` pads every message to the cost model's bytes. ``stragglers: injected`` stretches
    computations by the slow-downs, the jitter and the bursts that the simulation has, and lets workers crash.
    """

    compute: Literal["objective", "emulated"] = "objective"
    payload: Literal["objective", "cost"] = "objective"
    stragglers: Literal["none", "injected"] = "none"


class Sections(Section):
    """All keys of a scenario file."""

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
