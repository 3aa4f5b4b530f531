"""A scenario: what is run, on which machines, for how long, to reach what.

Scenarios are YAML files, or the same keys given in Python. Everything is checked before anything runs;
a fault is one sentence that names the file, the key, the value and the nearest right one. A scenario is
immutable; :meth:`Scenario.vary` returns a changed copy.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import sys
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic_core import PydanticSerializationError

import topologies
from algorithms import REQUIREMENTS, Algorithm
from algorithms.algorithm import key_of
from algorithms.codecs import Codec
from simulator.cluster import Cluster, find_node, place, place_servers
from simulator.networks import Fluid, StoreAndForward
from simulator.parts import MADE, BadInput, Part, check, nearest, nearest_file
from simulator.patterns import PATTERNS
from simulator.schedules import CONSTANT, Falling
from simulator.sections import (
    TOPOLOGY,
    ClusterSection,
    ExecutionSection,
    GossipSection,
    Sections,
    StepSizeGrid,
    TopologyFile,
    described,
)
from simulator.stragglers import Crash, LinkFailure, SlowLink, Straggler
from simulator.transports import Fixed, Transport
from simulator.update import Rule
from simulator.variation import assign, home, hyphenated, keep_workers
from simulator.workload import Cost, GivenCost, ModelCost
from simulator.workload.script import TrainingScript
from traces.reading import DuplicateKey, read_yaml

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np

    from simulator.devices import Device
    from simulator.workload.objective import Objective

SCENARIOS = Path(__file__).parent / "scenarios"
"""The folder of the scenarios that ship."""


class Scenario:
    """A checked scenario and the objects that it describes.

    Parameters
    ----------
    data
        The keys of a scenario file; parts may also be objects made in Python.
    source
        What messages call it: a file name.
    folder
        Where relative paths and ``file.py:Object`` names are looked up.
    original
        What it is a variation of, whose topology it shares where it has the same.

    Raises
    ------
    BadInput
        The first fault.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        source: str = "",
        folder: Path | None = None,
        original: Scenario | None = None,
    ) -> None:
        self._source = source
        self._folder = folder
        try:
            self._data = hyphenated(data)
            self._describe_cluster()
            self.sections: Sections = check(Sections, self._data, folder)
            if original is not None:
                self._share_topology(original)
            self._check_together()
        except BadInput as error:
            raise BadInput(": ".join(filter(None, (source, error.key))), error.problem) from None

    def _describe_cluster(self) -> None:
        """Put the keys of the cluster description in its place, where the cluster is one's name."""
        given = self._data.get("cluster")
        found = described(given, self._folder)
        if found is given:
            return
        self._data["cluster"] = found
        own = given if isinstance(given, Mapping) else {}
        if isinstance(own.get("workers"), int) and "stragglers" not in own:
            keep_workers(self._data, range(own["workers"]))

    def _share_topology(self, original: Scenario) -> None:
        """Take another scenario's graph, which nobody changes, where it is the same one."""
        if self.sections.cluster.topology.data() == original.sections.cluster.topology.data():
            self.graph = original.graph

    def __getstate__(self) -> dict[str, Any]:
        """Return the raw data, and what was derived at some expense and is plain."""
        derived = ("batches", "communication_graph", "mixing", "shares", "speeds", "workers")
        return {
            "_data": _portable(self._data),
            "_source": self._source,
            "_folder": self._folder,
            **{name: self.__dict__[name] for name in derived if name in self.__dict__},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.sections = check(Sections, self._data, self._folder)

    @classmethod
    def load(cls, name: str | Path) -> Scenario:
        """Read a scenario from a path, or one that ships by its name.

        Raises
        ------
        BadInput
            There is no such file, it is not YAML, or it has a fault.
        """
        path = Path(name)
        if not path.suffix and not path.exists():
            shipped = {file.stem: file for file in sorted(SCENARIOS.glob("*.yaml"))}
            if str(name) not in shipped:
                raise BadInput(str(name), f"no such scenario; the nearest is '{nearest(str(name), shipped)}'")
            path = shipped[str(name)]
        try:
            data = read_yaml(path.read_text(encoding="utf-8"))
        except DuplicateKey as error:
            raise BadInput(path.name, str(error)) from None
        except OSError as error:
            hint = nearest_file(str(path), None, (".yaml", ".yml"))
            raise BadInput(path.name, f"cannot be read: {error.strerror}{hint}") from None
        except UnicodeDecodeError:
            raise BadInput(path.name, "is not a text file in UTF-8") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}" if mark else ""
            raise BadInput(
                path.name, f"is not YAML{where}: {getattr(error, 'problem', None) or error}"
            ) from None
        if not isinstance(data, Mapping):
            raise BadInput(path.name, "is not a scenario; expected keys and values")
        return cls(data, path.name, path.parent)

    def vary(self, changes: Mapping[str, Any] | None = None, **named: Any) -> Scenario:
        """Return a copy with some keys changed.

        Parameters
        ----------
        changes
            Dotted key -> value: ``{"cluster.topology.network.bandwidth": "10 Gbps"}``.
        named
            Top-level keys, or keys of ``cluster`` and ``workload``, with underscores for hyphens:
            ``vary(workers=4, algorithm="d-psgd")``. Stragglers of workers that no longer exist are dropped.

        Raises
        ------
        BadInput
            No such key, or the copy has a fault.
        """
        data = copy.copy(self._data)
        for key, value in named.items():
            assign(data, home(key), value)
        for key, value in (changes or {}).items():
            assign(data, tuple(key.split(".")), value)
        if isinstance(named.get("workers"), int):
            keep_workers(data, range(named["workers"]))
        return Scenario(data, self._source, self._folder, self)

    def shortened(self, iterations: int) -> Scenario:
        """Return a copy that ends after so many iterations and has the same step sizes until then."""
        shorter: dict[str, Any] = {"budget": {"iterations": iterations}}
        schedule = self.update.schedule
        if isinstance(schedule, Falling) and schedule.span is None:
            settings = self.sections.update.data()
            settings["schedule"]["span"] = self.sections.budget.iterations
            shorter["update"] = settings
        return self.vary(shorter)

    def reference(self) -> Scenario:
        """Return the one-worker scenario that speedups refer to: the fastest worker, alone.

        It keeps the per-worker batch; where batches are proportional, their mean; under strong scaling
        it takes the global batch. It hosts its servers itself.
        """
        fastest = max(range(self.workers), key=lambda rank: (self.speeds[rank], -rank))
        data = copy.copy(self._data)
        gpus = topologies.gpus(self.cluster.graph)
        assign(data, ("cluster", "placement"), [gpus.index(self.cluster.nodes[fastest])])
        assign(data, ("cluster", "workers"), 1)
        devices = self.sections.cluster.device
        assign(data, ("cluster", "device"), devices[fastest % len(devices)])
        assign(data, ("workload", "batches"), "equal")
        keep_workers(data, [fastest])
        if "servers" in data["cluster"]:
            assign(data, ("cluster", "servers"), None)
        alone = dataclasses.asdict(self.algorithm.alone())
        given = dataclasses.asdict(self.algorithm)
        changed = {key.replace("_", "-"): value for key, value in alone.items() if value != given[key]}
        if changed:
            data["algorithm"] = {**self.sections.algorithm.data(), **changed}
        return Scenario(data, self._source, self._folder, self)

    def __repr__(self) -> str:
        sections = self.sections
        algorithms = ", ".join(entry.name for entry in (sections.algorithm, *sections.compare))
        return f"Scenario({self.name!r}: {algorithms} on {self.workers} workers)"

    # What the scenario is, as data.

    @property
    def folder(self) -> Path:
        """Where the files that the scenario names are looked up."""
        return self._folder or Path()

    def files(self) -> tuple[str, ...]:
        """Return the files that the scenario names, as it names them: its topology, its Python parts."""
        sections = self.sections
        topology, objective = sections.cluster.topology, sections.workload.objective
        parts = [topology, sections.workload.cost, objective, sections.algorithm, *sections.compare]
        parts += [sections.compression, sections.cluster.transport]
        parts += [*sections.cluster.stragglers, sections.update]
        named = [entry.name.partition(":")[0] for entry in parts if isinstance(entry, Part)]
        named.append(str(getattr(sections.workload.cost.values, "model", "")).partition(":")[0])
        found = [name for name in named if name.endswith(".py")]
        if isinstance(topology, TopologyFile):
            found.append(topology.file)
        return tuple(dict.fromkeys(found))

    @property
    def source(self) -> str:
        """What messages call it: a file name, or nothing."""
        return self._source

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.sections.name

    @property
    def seed(self) -> int:
        """The seed of every random stream, but for those of the machines where they have their own."""
        return self.sections.seed

    @property
    def cluster_seed(self) -> int:
        """The seed of what the machines leave to chance."""
        own = self.sections.cluster.seed
        return self.seed if own is None else own

    def resolved(self) -> dict[str, Any]:
        """Return all keys with every default written out; reading it gives the same scenario."""
        data: dict[str, Any] = self.sections.model_dump(by_alias=True, mode="json", exclude_none=True)
        cluster = {**data["cluster"], "workers": self.workers}
        names = [name.replace("_", "-") for name in ClusterSection.model_fields]
        data["cluster"] = {name: cluster[name] for name in names if name in cluster}
        return data

    def digest(self) -> str:
        """Return eight hexadecimal digits that identify the resolved scenario and the files it names."""
        digest = hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode())
        for name in self.files():
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:8]

    def variants(self) -> tuple[Scenario, ...]:
        """Return one scenario per algorithm, the scenario's own first, each with no others to compare."""
        return tuple(
            self._with_algorithm(entry) for entry in (self.sections.algorithm, *self.sections.compare)
        )

    def _with_algorithm(self, entry: Part) -> Scenario:
        data = {key: value for key, value in self._data.items() if key not in ("algorithm", "compare")}
        data["algorithm"] = entry
        algorithm: Algorithm = entry.build()
        if not algorithm.needs_graph:
            data.pop("gossip", None)
        elif not algorithm.mixes and data.get("gossip"):
            data["gossip"] = {"graph": self.sections.gossip.graph} if self.sections.gossip else None
        if not algorithm.dedicated_servers and self.sections.cluster.servers is not None:
            assign(data, ("cluster", "servers"), None)
        return Scenario(data, self._source, self._folder)

    @property
    def step_sizes(self) -> tuple[float | None, ...]:
        """The step sizes to choose from; a single None in a timing-only scenario."""
        chosen = self.sections.step_size
        return chosen.grid if isinstance(chosen, StepSizeGrid) else (chosen,)

    # The objects that it describes.

    @functools.cached_property
    def graph(self) -> nx.Graph[Hashable]:
        """The topology, checked."""
        topology = self.sections.cluster.topology
        if isinstance(topology, TopologyFile):
            try:
                graph = topologies.read_topology(self.folder / topology.file)
            except ValueError as error:
                hint = nearest_file(topology.file, self.folder, topologies.SUFFIXES)
                raise BadInput("", f"{error}{hint}") from None
        else:
            graph = topology.build()
        topologies.validate_cluster(graph)
        return graph

    @functools.cached_property
    def workers(self) -> int:
        """The number of workers: as given, or every GPU of the topology."""
        return self.sections.cluster.workers or len(topologies.gpus(self.graph))

    @property
    def servers(self) -> int:
        """The number of dedicated servers, whose ranks are behind the workers'."""
        return self.algorithm.dedicated_servers

    @property
    def ranks(self) -> int:
        """The number of workers and of dedicated servers."""
        return self.workers + self.servers

    @functools.cached_property
    def cluster(self) -> Cluster:
        """The machines of the run."""
        section = self.sections.cluster
        gpus = topologies.gpus(self.graph)
        hosts = {gpu: self.graph.nodes[gpu].get("host", gpu) for gpu in gpus}
        nodes = place(gpus, hosts, self.workers, section.placement)
        chosen = [choice.device() for choice in section.device]
        if len(chosen) not in (1, self.workers):
            raise BadInput("device", f"{len(chosen)} devices are given for {self.workers} workers")
        devices = tuple(chosen * self.workers if len(chosen) == 1 else chosen)
        nodes += self._server_nodes(nodes, self.servers)
        devices += (self._server_device(devices),) * self.servers if self.servers else ()
        router = topologies.Router(self.graph, section.routing)
        return Cluster(self.graph, router, nodes, devices, self.servers)

    def _server_nodes(self, taken: tuple[Hashable, ...], servers: int) -> tuple[Hashable, ...]:
        """Return where so many dedicated servers are, with the workers where they are."""
        chosen = self.sections.cluster.servers
        if not servers:
            return ()
        with _under("servers"):
            if chosen is None or chosen.nodes is None:
                gpus = topologies.gpus(self.graph)
                hosts = {gpu: self.graph.nodes[gpu].get("host", gpu) for gpu in gpus}
                return place_servers(gpus, hosts, taken, servers)
        with _under("servers.nodes"):
            if len(chosen.nodes) < servers:
                raise BadInput(
                    "", f"{servers} dedicated servers need {servers} nodes, not {len(chosen.nodes)}"
                )
            nodes = tuple(find_node(self.graph, name) for name in chosen.nodes[:servers])
            for node in nodes:
                kind = self.graph.nodes[node]["kind"]
                if kind not in ("gpu", "host"):
                    raise BadInput("", f"'{node}' is of kind '{kind}', which computes nothing")
                if node in taken:
                    raise BadInput("", f"worker {taken.index(node)} is on '{node}'")
            return nodes

    def _server_device(self, devices: tuple[Device, ...]) -> Device:
        """Return what dedicated servers compute with."""
        chosen = self.sections.cluster.servers
        if chosen is not None and chosen.device is not None:
            return chosen.device.device()
        if len(set(devices)) > 1:
            raise BadInput("servers.device", "this key is missing, and the workers' devices differ")
        return devices[0]

    @functools.cached_property
    def transport(self) -> Transport | Fixed:
        """The communication stack."""
        built: Transport | Fixed = self.sections.cluster.transport.build()
        return built

    @functools.cached_property
    def network(self) -> Fluid | StoreAndForward:
        """How links serve what crosses them."""
        built: Fluid | StoreAndForward = self.sections.cluster.network.build()
        return built

    @functools.cached_property
    def stragglers(self) -> tuple[Straggler | SlowLink | LinkFailure, ...]:
        """What slows workers and links."""
        return tuple(entry.build() for entry in self.sections.cluster.stragglers)

    @functools.cached_property
    def algorithm(self) -> Algorithm:
        """The algorithm that this scenario runs."""
        built: Algorithm = self.sections.algorithm.build()
        return built

    @property
    def execution(self) -> ExecutionSection:
        """What an execution takes from this scenario rather than from the machine."""
        return self.sections.execution or ExecutionSection()

    @functools.cached_property
    def update(self) -> Rule:
        """What a worker makes of its model and a gradient."""
        built: Rule = self.sections.update.build()
        return built

    @functools.cached_property
    def codec(self) -> Codec | None:
        """What stands before the algorithm's means; None where nothing is compressed."""
        entry = self.sections.compression
        built: Codec | None = None if entry is None else entry.build()
        return built

    @property
    def layers(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the model's parameters: of what is really optimised, else of the cost model."""
        return self.cost.shapes if self.objective is None else self.objective.shapes

    @property
    def stands_for_cost(self) -> bool:
        """Whether what is optimised stands for a cost model of another size, whose messages are charged.

        It is of another size where it has more or fewer parameters, or where each has more or fewer bytes. A
        training script's own model is what is sent.
        """
        section, cost = self.sections.workload.objective, self.cost
        if section is None or isinstance(section.build(), TrainingScript):
            return False
        objective = self.objective
        assert objective is not None
        own = objective.parameters, objective.dtype.itemsize
        return own != (cost.parameters, cost.parameter_bytes)

    @property
    def charged_layers(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters that are charged: the cost model's, where it is of another length."""
        same = self.objective is not None and self.objective.parameters == self.cost.parameters
        return self.layers if same else self.cost.shapes

    @property
    def model_copies(self) -> int:
        """Model-sized vectors of a worker beside parameters and gradient.

        Those of the algorithm, of the update rule and of the codec, and the anchor of compressed models.
        """
        copies = self.algorithm.model_copies + self.update.state_vectors
        if self.codec is None:
            return copies
        sent = self.algorithm.compresses
        # A difference from a replica holds what was not sent before, without a memory of the codec's.
        feedback = self.codec.buffers if sent != "model differences" else 0
        return copies + feedback + (sent == "models")

    @property
    def uncovered(self) -> str | None:
        """A sentence where the algorithm's theory does not cover the update rule; else None."""
        if not self.update.state_vectors or self.algorithm.momentum == "covered":
            return None
        return f"the theory covers plain SGD, not the update rule '{self.sections.update.name}'."

    @functools.cached_property
    def cost(self) -> Cost:
        """What a gradient costs."""
        built: Cost = self.sections.workload.cost.build()
        if isinstance(built, ModelCost) and ".py:" in built.model:
            built = dataclasses.replace(built, model=str(self.folder.resolve() / built.model))
        return built

    @functools.cached_property
    def objective(self) -> Objective | None:
        """What is really optimised; None in a timing-only scenario."""
        section = self.sections.workload.objective
        if section is None:
            return None
        kind = section.build()
        if getattr(kind, "folder", None) is not None:
            kind = dataclasses.replace(kind, folder=str(self.folder / kind.folder))
        built: Objective = kind.build(self.seed)
        return built

    @functools.cached_property
    def communication_graph(self) -> nx.Graph[int]:
        """Who averages with whom, on ranks."""
        choice = (self.sections.gossip or GossipSection()).graph
        settings: dict[str, Any] = {"builder": choice} if isinstance(choice, str) else dict(choice)
        if "link" in settings:
            raise BadInput("graph.link", "has no effect; messages take the links of the cluster's topology")
        builder = settings.get("builder")
        if self.workers == 1 and builder in topologies.BUILDERS:
            settings = {"builder": "complete"}  # whatever the graph, a single worker has no neighbours
            builder = "complete"
        if builder in topologies.BUILDERS:
            takes_nodes = "nodes" in inspect.signature(topologies.BUILDERS[builder]).parameters
            if takes_nodes:
                settings.setdefault("nodes", self.workers)
        with _under("graph"):
            graph: nx.Graph[int] = TOPOLOGY.read(settings, self._folder).build()
        if sorted(graph.nodes, key=str) != sorted(range(self.workers), key=str):
            raise BadInput("", f"the graph has {len(graph)} nodes, but there are {self.workers} workers")
        return graph

    @functools.cached_property
    def mixing(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The mixing matrix, doubly stochastic, of shape [workers, workers]."""
        name = (self.sections.gossip or GossipSection()).mixing
        if name not in topologies.MIXINGS:
            raise BadInput(
                "mixing",
                f"unknown mixing '{name}'; the nearest is '{nearest(name, topologies.MIXINGS)}'",
            )
        matrix = topologies.MIXINGS[name](self.communication_graph)
        topologies.check_mixing(matrix, symmetric=False)
        return matrix

    # Speeds and batches.

    @functools.cached_property
    def streams(self) -> tuple[tuple[int, int], ...]:
        """What names each straggler's random streams: its parameters, and its number among its likes."""
        seen: dict[int, int] = {}
        streams = []
        for entry in self.sections.cluster.stragglers:
            parameters = {key: value for key, value in entry.data().items() if key != "workers"}
            name = zlib.crc32(json.dumps(parameters, sort_keys=True).encode())
            streams.append((name, seen.get(name, 0)))
            seen[name] = seen.get(name, 0) + 1
        return tuple(streams)

    def persistent_factor(self, rank: int) -> float:
        """Return how many times longer everything takes on this worker, jitter aside."""
        factors = [s.persistent_factor() for s in self.worker_stragglers(rank)]
        return math.prod(factors)

    def worker_stragglers(self, rank: int) -> list[Straggler]:
        """Return the stragglers that concern a worker, in the scenario's order; none concerns a server."""
        if rank >= self.workers:
            return []
        return [s for s in self.stragglers if isinstance(s, Straggler) and s.concerns(rank)]

    @functools.cached_property
    def speeds(self) -> tuple[float, ...]:
        """Each worker's speed in samples per second at the scenario's batch, jitter aside.

        Workers that share a GPU have their part of its speed.
        """
        batch = self.cost.batch
        nodes, devices = self.cluster.nodes[: self.workers], self.cluster.devices[: self.workers]
        seconds = {device: self.cost.gradient_seconds(device, batch).total for device in devices}
        sharing = [nodes.count(node) for node in nodes]
        return tuple(
            batch / max(seconds[device] * self.persistent_factor(rank) * sharing[rank], sys.float_info.min)
            for rank, device in enumerate(devices)
        )

    @functools.cached_property
    def batches(self) -> tuple[int, ...]:
        """Samples in each worker's mini-batch.

        Weak scaling keeps the batch per worker, strong scaling the global one. Proportional batches have
        the same sum as equal ones, dealt out by speed with the largest remainders rounded up, at least 1.
        """
        workload = self.sections.workload
        total = self.cost.batch * (self.workers if workload.scaling == "weak" else 1)
        if total < self.workers:
            raise BadInput(
                "workload.cost.batch", f"a global batch of {total} cannot feed {self.workers} workers"
            )
        parts = self.speeds if workload.batches == "proportional" else (1.0,) * self.workers
        return apportion(total, parts)

    @functools.cached_property
    def objective_batches(self) -> tuple[int, ...]:
        """Samples of the objective that each worker's gradient really takes, in the same proportions."""
        workload = self.sections.workload
        if workload.objective_batch is None:
            return self.batches
        total = workload.objective_batch * (self.workers if workload.scaling == "weak" else 1)
        if total < self.workers:
            problem = f"a global batch of {total} cannot feed {self.workers} workers"
            raise BadInput("workload.objective-batch", problem)
        return apportion(total, self.batches)

    @functools.cached_property
    def shares(self) -> tuple[float, ...] | None:
        """Each worker's part of the global batch; None where all are equal."""
        if len(set(self.batches)) == 1:
            return None
        return tuple(batch / sum(self.batches) for batch in self.batches)

    # Checks that need more than one section.

    def _check_together(self) -> None:
        sections = self.sections
        with _under("cluster.topology"):
            _ = self.graph
        for index, entry in enumerate((sections.algorithm, *sections.compare)):
            with _under("algorithm" if index == 0 else f"compare.{index - 1}"):
                entry.build()
        with _under("cluster"):
            _ = self.cluster
        with _under("cluster.transport"):
            _ = self.transport
        with _under("cluster.network"):
            _ = self.network
        with _under("workload.cost"):
            _ = self.cost
        if sections.workload.objective is not None and sections.workload.objective.instance is None:
            with _under("workload.objective"):
                self._check_objective(sections.workload.objective)
        self._check_machines()
        self._check_stragglers()
        self._check_background()
        self._check_sharing()
        self._check_servers()
        self._check_gossip()
        self._check_training()
        if sections.compression is not None:
            with _under("compression"):
                self._check_compression(sections.compression)
        self._check_algorithms()
        self._check_update()

    def _check_objective(self, entry: Part) -> None:
        """Let the objective's own checks speak, unless it is one that a file can only name."""
        if MADE not in type(entry.values).model_fields:
            entry.build()

    def _check_machines(self) -> None:
        """Refuse settings of the machines that this workload or group of workers cannot use."""
        if isinstance(self.cost, GivenCost):
            self._check_unused_figures()
        if isinstance(self.cost, ModelCost):
            self._check_precision(self.cost)
        if isinstance(self.transport, Transport):
            hosts: dict[Hashable, list[int]] = {}
            for rank in range(self.workers):
                hosts.setdefault(self.cluster.host(rank), []).append(rank)
            with _under("cluster.transport.pattern"):
                PATTERNS[self.transport.pattern](list(hosts.values()))

    def _check_precision(self, cost: ModelCost) -> None:
        """Refuse a precision of which a worker's device has neither a rate nor measured times."""
        for device in self.cluster.devices[: self.workers]:
            if device.table(cost.model, cost.precision) is None and device.rate(cost.precision) is None:
                problem = f"the device '{device.name}' has no rate for {cost.precision}; use 'fp32'"
                raise BadInput("workload.cost.precision", problem)

    def _check_unused_figures(self) -> None:
        """Refuse figures of devices where the workload's seconds are given."""
        section = self.sections.cluster
        chosen = [("cluster.device", choice) for choice in section.device]
        if section.servers is not None and section.servers.device is not None:
            chosen.append(("cluster.servers.device", section.servers.device))
        for where, choice in chosen:
            # A measured device may go with such a workload: it still has its interference.
            if choice.tables is not None:
                continue
            for key in type(choice).model_fields.keys() - {"name", "interference"}:
                if getattr(choice, key) is not None:
                    problem = "has no effect; the workload's cost is given in seconds"
                    raise BadInput(f"{where}.{key.replace('_', '-')}", problem)

    def _check_stragglers(self) -> None:
        for index, straggler in enumerate(self.stragglers):
            key = f"cluster.stragglers.{index}"
            if isinstance(straggler, (SlowLink, LinkFailure)):
                self._check_links_matter(key)
                with _under(f"{key}.between"):
                    u, v = (find_node(self.graph, name) for name in straggler.between)
                    if not self.graph.has_edge(u, v):
                        raise BadInput("", f"the topology has no edge between {u!r} and {v!r}")
            if isinstance(straggler, Crash) and straggler.returns and isinstance(self.transport, Fixed):
                problem = (
                    "an outage holds up messages, which those of the transport 'fixed' take no notice of"
                )
                raise BadInput(f"{key}.outage", problem)
            workers = straggler.workers if isinstance(straggler, Straggler) else None
            for rank in workers or ():
                if not 0 <= rank < self.workers:
                    raise BadInput(
                        f"{key}.workers", f"there is no worker {rank}; the last is {self.workers - 1}"
                    )

    def _check_links_matter(self, key: str) -> None:
        if isinstance(self.transport, Fixed):
            raise BadInput(key, "has no effect; the transport 'fixed' uses no links")

    def _check_background(self) -> None:
        if self.sections.cluster.background:
            self._check_links_matter("cluster.background")
        for index, flow in enumerate(self.sections.cluster.background):
            for key in ("source", "destination"):
                with _under(f"cluster.background.{index}.{key}"):
                    find_node(self.graph, getattr(flow, key))

    def _check_sharing(self) -> None:
        """Refuse settings of how links are shared that nothing uses, or that the network model cannot."""
        section = self.sections.cluster
        if section.fairness != "maxmin":
            self._check_links_matter("cluster.fairness")
        if section.collectives == "max-plus":
            self._check_links_matter("cluster.collectives")
            if isinstance(self.transport, Transport) and self.transport.pipelined:
                problem = "'max-plus' has no effect; the transport's all-reduces are pipelined, each one flow"
                raise BadInput("cluster.collectives", problem)
            if any(isinstance(s, LinkFailure) and s.transfers == "reroute" for s in self.stragglers):
                problem = "'max-plus' has no effect; transfers that may be rerouted go one by one"
                raise BadInput("cluster.collectives", problem)
        if isinstance(self.network, StoreAndForward):
            self._check_links_matter("cluster.network")
            self._check_forwarding()

    def _check_forwarding(self) -> None:
        """Refuse what links that forward one chunk after another cannot do."""
        section, transport = self.sections.cluster, self.transport
        refused = {
            "cluster.fairness": (section.fairness != "maxmin", "shares no link between flows"),
            "cluster.collectives": (section.collectives != "flows", "runs no collective at once"),
            "cluster.background": (bool(section.background), "has no endless flows"),
        }
        if isinstance(transport, Transport):
            refused |= {
                "cluster.transport.pipelined": (transport.pipelined, "has no flow over many links at once"),
                "cluster.transport.segment-size": (transport.segment_size < math.inf, "cuts by its 'chunk'"),
                "cluster.transport.least-segments": (transport.least_segments > 1, "cuts by its 'chunk'"),
                "cluster.transport.half-duplex-pairs": (
                    transport.half_duplex_pairs,
                    "has no connections, only links",
                ),
                "cluster.transport.share-spread": (
                    transport.share_spread > 0,
                    "shares no link between flows",
                ),
                "cluster.transport.cross-traffic": (transport.cross_traffic > 0, "has no acknowledgements"),
                "cluster.transport.handling-rate": (
                    transport.handling_rate < math.inf,
                    "treats all messages alike",
                ),
            }
            for key in ("collective_latency", "collective_share", "exchange_latency", "exchange_share"):
                name = f"cluster.transport.{key.replace('_', '-')}"
                refused[name] = (getattr(transport, key) != 1, "treats all messages alike")
        for index, straggler in enumerate(self.stragglers):
            changes = isinstance(straggler, (SlowLink, LinkFailure))
            changes |= isinstance(straggler, Crash) and straggler.returns
            refused[f"cluster.stragglers.{index}"] = (changes, "has links of constant capacity")
        for key, (present, reason) in refused.items():
            if present:
                raise BadInput(key, f"does not go with the network 'store-and-forward', which {reason}")

    def _check_servers(self) -> None:
        """Refuse dedicated servers that there is no place for, or a place for servers that nobody has."""
        nodes = self.cluster.nodes[: self.workers]
        counts = [
            entry.build().dedicated_servers for entry in (self.sections.algorithm, *self.sections.compare)
        ]
        if self.sections.cluster.servers is not None and not any(counts):
            raise BadInput("cluster.servers", "no algorithm of this scenario has dedicated servers")
        with _under("cluster"):
            for count in counts:
                self._server_nodes(nodes, count)

    def _check_gossip(self) -> None:
        parts = (self.sections.algorithm, *self.sections.compare)
        users = [entry for entry in parts if entry.build().needs_graph]
        if users:
            mixes = any(entry.build().mixes for entry in users)
            with _under("gossip"):
                _ = self.mixing if mixes else self.communication_graph
            given = self.sections.gossip
            if not mixes and given is not None and given.mixing != GossipSection().mixing:
                names = " and ".join(dict.fromkeys(entry.name for entry in users))
                problem = f"'{given.mixing}' has no effect; {names} takes the graph alone, without weights"
                raise BadInput("gossip.mixing", problem)
            if self.sections.workload.batches == "proportional" and self.shares is not None:
                problem = "averages by its mixing matrix, not by shares of the batch; use equal batches"
                raise BadInput("workload.batches", f"{users[0].name} {problem}")
        elif self.sections.gossip is not None:
            raise BadInput("gossip", "no algorithm of this scenario uses a communication graph")

    def _check_algorithms(self) -> None:
        """Let every algorithm say what it cannot run on."""
        for index, entry in enumerate((self.sections.algorithm, *self.sections.compare)):
            key = "algorithm" if index == 0 else f"compare.{index - 1}"
            algorithm: Algorithm = entry.build()
            for need in sorted(algorithm.requires):
                problem = self._lacks(need)
                if problem:
                    raise BadInput(key, f"{entry.name} needs {problem}")
            graph, mixing = None, None
            if algorithm.needs_graph:
                graph, mixing = self.communication_graph, self.mixing if algorithm.mixes else None
            with _under(key):
                algorithm.check(self.workers, graph, mixing)
            self._check_samples(entry.name, algorithm)

    def _check_samples(self, name: str, algorithm: Algorithm) -> None:
        """Refuse batches that an algorithm cannot draw from the objective's samples."""
        objective = self.objective if "finite-sum" in algorithm.requires else None
        samples = None if objective is None else objective.summands
        most = None if samples is None else algorithm.most_samples(samples)
        if most is None:
            return
        shares = self.shares or (1 / self.workers,) * self.workers
        drawn = max(round(b / share) for b, share in zip(self.objective_batches, shares, strict=True))
        if drawn > most:
            workload = self.sections.workload
            each = most // self.workers if workload.scaling == "weak" else most
            raise BadInput(
                f"workload.{'cost.batch' if workload.objective_batch is None else 'objective-batch'}",
                f"{name} cannot draw {drawn:,} samples for {self.workers} workers from the {samples:,} that "
                f"there are; the largest batch is {each:,}",
            )

    def _check_compression(self, entry: Part) -> None:
        """Refuse a codec before what must stay exact, or one that the model does not suit."""
        codec: Codec = entry.build()
        for chosen in (self.sections.algorithm, *self.sections.compare):
            algorithm: Algorithm = chosen.build()
            if not algorithm.compresses:
                raise BadInput("", f"{chosen.name} cannot be compressed: {algorithm.exact_because}")
            sent = algorithm.compresses
            if codec.gradients_only and "gradients" not in sent:
                what = "averages models" if sent == "models" else "sends differences of models"
                raise BadInput("", f"{entry.name} is for gradients, but {chosen.name} {what}")
            if codec.summable and sent not in ("gradients", "models"):
                raise BadInput(
                    "",
                    f"{entry.name} is for means over all workers, whose factors are summed, but "
                    f"{chosen.name} sends {sent} one by one",
                )
        codec.check(self.layers)
        if self.stands_for_cost:
            try:
                codec.check(self.charged_layers)
            except ValueError as error:
                whose = "the model of workload.cost is meant, as its messages are charged"
                raise BadInput("", f"{error} ({whose})") from None

    def _lacks(self, need: str) -> str:
        """Return what this scenario lacks of a requirement, in words; nothing if it has it."""
        if need not in REQUIREMENTS:
            raise BadInput(
                "algorithm",
                f"'{need}' is no requirement that a run can meet; the nearest is "
                f"'{nearest(need, REQUIREMENTS)}'",
            )
        wanted = REQUIREMENTS[need]
        if need == "symmetric" and self.communication_graph.is_directed():
            return f"{wanted}, but the edges of this one have directions"
        if need == "bipartite":
            import networkx as nx

            if not nx.is_bipartite(self.communication_graph.to_undirected(as_view=True)):
                return f"{wanted}; this graph has a circle of an odd number of workers"
        if need == "shared-memory":
            hosts = {self.cluster.host(rank) for rank in range(self.workers)}
            if len(hosts) > 1:
                return f"{wanted}, but they are on {len(hosts)}"
        if need in ("finite-sum", "compositional"):
            objective = self.sections.workload.objective
            if objective is None:
                return f"{wanted}; this scenario has no objective"
            if self.objective is not None and need not in self.objective.fulfils:
                return f"{wanted}, which {self.objective.name} is not"
        return ""

    def _check_training(self) -> None:
        sections = self.sections
        if sections.workload.objective is None:
            if sections.workload.objective_batch is not None:
                raise BadInput(
                    "workload.objective-batch", "a scenario without an objective has no batch of it"
                )
            if sections.workload.evaluation == "batched":
                raise BadInput("workload.evaluation", "a scenario without an objective evaluates nothing")
            if sections.step_size is not None:
                raise BadInput("step-size", "a scenario without an objective has no step size")
            if sections.target is not None and sections.target.loss is not None:
                raise BadInput(
                    "target.loss", "a scenario without an objective has no loss; give iterations or samples"
                )
        elif sections.step_size is None:
            raise BadInput("step-size", "this key is missing")
        if sections.budget.stop == "target" and sections.target is None:
            raise BadInput("budget.stop", "there is no target to stop at")
        steps = (
            sections.step_size.grid if isinstance(sections.step_size, StepSizeGrid) else (sections.step_size,)
        )
        for step in steps:
            if step is not None and not (step > 0 and math.isfinite(step)):
                raise BadInput("step-size", f"must be above 0 and finite, got {step!r}")
        _ = self.objective_batches

    def _check_update(self) -> None:
        sections = self.sections
        with _under("update"):
            rule = self.update
        schedule, iterations = rule.schedule, sections.budget.iterations
        if isinstance(schedule, Falling) and schedule.span is None and schedule.warm_up >= iterations:
            problem = f"{schedule.warm_up} updates leave nothing of the budget of {iterations} for the decay"
            raise BadInput("update.schedule.warm-up", problem)
        if sections.workload.objective is None and schedule != CONSTANT:
            raise BadInput("update.schedule", "a scenario without an objective has no step size")
        for index, entry in enumerate((sections.algorithm, *sections.compare)):
            if rule.state_vectors and entry.build().momentum == "refused":
                problem = f"{entry.name} is built on plain steps, not on '{sections.update.name}'; use 'sgd'"
                raise BadInput("update.rule", problem)
            if not rule.state_vectors:
                with _under("algorithm" if index == 0 else f"compare.{index - 1}"):
                    self._check_no_state(entry.build())

    def _check_no_state(self, algorithm: Algorithm) -> None:
        """Refuse what is said about the update rule's state where it keeps none."""
        for field in dataclasses.fields(algorithm):
            value = getattr(algorithm, field.name)
            if field.metadata.get("rule_state") and value != field.default:
                rule = self.sections.update.name
                problem = f"{value!r} has no effect; the update rule '{rule}' keeps no state"
                raise BadInput(key_of(field.name), problem)


@contextlib.contextmanager
def _under(key: str) -> Iterator[None]:
    """Put a key before the faults found inside; the parts' own complaints become faults."""
    try:
        yield
    except BadInput as error:
        raise BadInput(".".join(filter(None, (key, error.key))), error.problem) from None
    except ValueError as error:
        raise BadInput(key, str(error)) from error


def _portable(value: Any) -> Any:
    """Return raw data that can be pickled: a read part becomes what a file would hold, or its object."""
    if isinstance(value, Mapping):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_portable, value))
    if isinstance(value, Part):
        try:
            return value.data()
        except PydanticSerializationError:
            return value.build()
    return value


def apportion(total: int, parts: Sequence[float]) -> tuple[int, ...]:
    """Deal out ``total`` in proportion to ``parts``: floors, then the largest remainders; at least 1 each."""
    exact = [total * part / math.fsum(parts) for part in parts]
    dealt = [max(1, math.floor(value)) for value in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: (dealt[i] - exact[i], i))
    while sum(dealt) < total:
        for index in by_remainder[: total - sum(dealt)]:
            dealt[index] += 1
    while sum(dealt) > total:
        above = [i for i in range(len(dealt)) if dealt[i] > 1]
        dealt[max(above, key=lambda i: (dealt[i] - exact[i], -i))] -= 1
    return tuple(dealt)
