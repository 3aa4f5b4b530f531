"""What there is to choose from, with figures: topologies, algorithms, codecs, models and devices.

Each function returns plain data in SI units, ready for JSON; the command line prints it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import topologies
from algorithms import ALGORITHMS, REQUIREMENTS, Algorithm
from algorithms.algorithm import BOUNDS, Setting
from algorithms.codecs import CODECS, Codec, Message
from algorithms.registry import Entry
from simulator.devices import DEVICES, device
from simulator.parts import BadInput, nearest
from simulator.scenario import Scenario
from simulator.sections import TOPOLOGY
from simulator.workload.cost import MODEL_NAMES, CostProfile, ModelCost, resolve

if TYPE_CHECKING:
    import networkx as nx

EXACT_BISECTION = 10
"""Up to so many GPUs every division into halves is tried."""


# Topologies.


def builders() -> list[dict[str, Any]]:
    """Return the topology builders with their parameters and defaults."""
    return [
        {"name": name, "summary": _first_sentence(build), "parameters": _signature(build)}
        for name, build in topologies.BUILDERS.items()
    ]


def _first_sentence(target: Any) -> str:
    text = " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())
    return text.removeprefix("Return ").rstrip(".")


def _signature(target: Any) -> dict[str, Any]:
    """Return a function's parameters, written as in a scenario; ``required`` where there is no default."""
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        default = parameter.default
        if default is parameter.empty:
            default = "required"
        elif isinstance(default, topologies.LinkSpec):
            default = default.attributes()
        found[name.replace("_", "-")] = default
    return found


def topology(name: str, settings: Mapping[str, Any] | None = None) -> nx.Graph[Hashable]:
    """Return the topology of a scenario, of a builder with its settings, or of a topology file.

    Parameters
    ----------
    name
        The name of a builder, a topology file, or a scenario (a file, or one that ships).
    settings
        Parameters of the builder, as a scenario would give them.

    Raises
    ------
    BadInput
        There is no such thing, or it has a fault.
    """
    if name in topologies.BUILDERS:
        graph: nx.Graph[Hashable] = TOPOLOGY.read({"builder": name, **(settings or {})}).build()
        return graph
    if settings:
        raise BadInput(name, "only a builder takes parameters")
    path = Path(name)
    if path.suffix.lower() in topologies.SUFFIXES and path.suffix.lower() not in (".yaml", ".yml"):
        try:
            graph = topologies.read_topology(path)
            topologies.validate_cluster(graph)
        except BadInput:
            raise
        except ValueError as error:
            raise BadInput("", str(error)) from None
        return graph
    if not path.suffix and not path.exists():
        return _shipped(name).graph
    return Scenario.load(name).graph


def _shipped(name: str) -> Scenario:
    """Return a scenario that ships; where there is none, name the nearest builder or scenario."""
    from simulator.scenario import SCENARIOS

    scenarios = [file.stem for file in sorted(SCENARIOS.glob("*.yaml"))]
    if name not in scenarios:
        near = nearest(name, [*topologies.BUILDERS, *scenarios])
        raise BadInput(name, f"no such topology builder, file or scenario; the nearest is '{near}'")
    return Scenario.load(name)


def topology_facts(graph: nx.Graph[Hashable]) -> dict[str, Any]:
    """Return the size, capacity, diameter and bisection of a topology; the keys carry the units."""
    table = topologies.link_table(graph)
    kinds: dict[str, int] = {}
    for _, data in graph.nodes(data=True):
        kinds[str(data["kind"])] = kinds.get(str(data["kind"]), 0) + 1
    gpus = topologies.gpus(graph)
    hops, latency = _diameter(graph, gpus)
    bisection, exact = bisection_bandwidth(graph)
    return {
        "nodes": len(graph),
        "nodes_by_kind": kinds,
        "gpus": len(gpus),
        "edges": graph.number_of_edges(),
        "links": len(table.names),
        "capacity_bytes_per_s": sum(table.capacity),
        "link_groups": _link_groups(graph),
        "diameter_hops": hops,
        "diameter_latency_s": latency,
        "bisection_bytes_per_s": bisection,
        "bisection_is_exact": exact,
    }


def _link_groups(graph: nx.Graph[Hashable]) -> list[dict[str, Any]]:
    """Return the distinct links: what they join, how many there are, and what they can do."""
    counts: dict[tuple[str, topologies.LinkSpec], int] = {}
    for tail, head in graph.edges():
        ends = " - ".join(str(graph.nodes[node]["kind"]) for node in (tail, head))
        key = (ends, topologies.link_spec(graph, tail, head))
        counts[key] = counts.get(key, 0) + 1
    return [
        {
            "between": ends,
            "edges": count,
            "bandwidth_bytes_per_s": spec.bandwidth,
            "efficiency": spec.efficiency,
            "effective_bytes_per_s": spec.capacity,
            "latency_s": spec.latency,
            "duplex": spec.duplex,
        }
        for (ends, spec), count in counts.items()
    ]


def _diameter(graph: nx.Graph[Hashable], gpus: Sequence[Hashable]) -> tuple[int, float]:
    """Return the most hops, and the most seconds of latency, between two GPUs on shortest paths."""
    import networkx as nx

    hops, latency = 0, 0.0
    for gpu in gpus:
        by_hops = nx.single_source_shortest_path_length(graph, gpu)
        by_latency = nx.single_source_dijkstra_path_length(
            graph, gpu, weight=lambda tail, head, data: data.get("latency", 0.0)
        )
        hops = max(hops, *(by_hops[other] for other in gpus))
        latency = max(latency, *(by_latency[other] for other in gpus))
    return hops, latency


def bisection_bandwidth(graph: nx.Graph[Hashable]) -> tuple[float, bool]:
    """Return the bandwidth between two halves of the GPUs, the least over divisions into halves.

    The bandwidth between two halves is the largest flow from one to the other (smaller direction). With up
    to EXACT_BISECTION GPUs all divisions are tried. Beyond, finding the least is NP-hard: then the divisions
    in rank order and by the graph's Fiedler vector are tried, and the figure is an upper bound.

    Returns
    -------
    (bytes/s, whether all divisions were tried); infinite with a single GPU.
    """
    gpus = topologies.gpus(graph)
    half = len(gpus) // 2
    if half == 0:
        return math.inf, True
    exact = len(gpus) <= EXACT_BISECTION
    if exact:
        halves = [set(chosen) for chosen in itertools.combinations(gpus, half)]
        if len(gpus) % 2 == 0:
            halves = [chosen for chosen in halves if gpus[0] in chosen]
    else:
        halves = [set(order[:half]) for order in (gpus, _fiedler_order(graph, gpus))]
    flow = functools.partial(_flow_between, graph, gpus)
    return min(flow(one) for one in halves), exact


def _flow_between(graph: nx.Graph[Hashable], gpus: Sequence[Hashable], one: set[Hashable]) -> float:
    """Return the largest flow between a half of the GPUs and the others, in its smaller direction."""
    import networkx as nx

    network: nx.DiGraph[Any] = nx.DiGraph()
    for tail, head in graph.edges():
        capacity = topologies.link_spec(graph, tail, head).capacity
        network.add_edge(("node", tail), ("node", head), capacity=capacity)
        if not graph.is_directed():
            network.add_edge(("node", head), ("node", tail), capacity=capacity)
    for gpu in gpus:
        side = "one" if gpu in one else "other"
        network.add_edge((side,), ("node", gpu))
        network.add_edge(("node", gpu), (side,))
    directions = [(("one",), ("other",))]
    if graph.is_directed():
        directions.append((("other",), ("one",)))
    return min(float(nx.maximum_flow_value(network, source, sink)) for source, sink in directions)


def _fiedler_order(graph: nx.Graph[Hashable], gpus: Sequence[Hashable]) -> list[Hashable]:
    """Return the GPUs sorted by the Laplacian's second eigenvector: what is loosely joined lies apart."""
    import numpy as np

    position = {node: index for index, node in enumerate(graph)}
    laplacian = np.zeros((len(graph), len(graph)))
    for tail, head in graph.edges():
        capacity = topologies.link_spec(graph, tail, head).capacity
        i, j = position[tail], position[head]
        laplacian[i, i] += capacity
        laplacian[j, j] += capacity
        laplacian[i, j] -= capacity
        laplacian[j, i] -= capacity
    vector = np.linalg.eigh(laplacian / laplacian.max())[1][:, 1]
    rank = {gpu: index for index, gpu in enumerate(gpus)}
    return sorted(gpus, key=lambda gpu: (round(float(vector[position[gpu]]), 9), rank[gpu]))


# Algorithms.


def algorithms() -> list[dict[str, Any]]:
    """Return the algorithms, a line each; needs no torch."""
    return [
        {
            "name": name,
            "summary": entry.summary,
            "paper": entry.paper,
            **_traffic(entry),
            "staleness": entry.staleness,
            "theory": entry.theory,
            "needs": entry.needs,
            "servers": entry.servers,
        }
        for name, entry in ALGORITHMS.items()
    ]


def _traffic(entry: Entry) -> dict[str, Any]:
    """Return the formulas of what a worker sends, and the defaults of the parameters in them."""
    named = {"k": "period"}
    cls = entry.load()
    defaults = {
        symbol: {"parameter": name, "default": getattr(cls, name)}
        for symbol, name in named.items()
        if re.search(rf"\b{symbol}\b", entry.traffic)
    }
    return {"traffic": entry.traffic, "epoch_traffic": entry.epoch_traffic, "traffic_defaults": defaults}


def algorithm_traffic(model: str, workers: int, degree: float = 2.0) -> list[dict[str, Any]]:
    """Return the bytes that a worker of each algorithm sends, with its default parameters.

    ``bytes_per_iteration`` of an iteration, and ``bytes_per_epoch`` at the beginning of an epoch beside them,
    0 where there are no epochs. A compositional algorithm's is that of a mean-variance portfolio, whose inner
    values have one element more than the model, in an epoch that sums up its Jacobian.

    Parameters
    ----------
    model
        A name of the catalogue, or ``package.module:Object``.
    workers
        How many train.
    degree
        Neighbours of a worker, for algorithms on a communication graph.

    Raises
    ------
    BadInput
        There is no such model.
    """
    setting = Setting(workers, model_facts(model)["parameters"], degree=degree)
    made = {name: entry.load()() for name, entry in ALGORITHMS.items()}
    return [
        {
            "name": name,
            "bytes_per_iteration": algorithm.traffic(setting),
            "bytes_per_epoch": algorithm.epoch_traffic(setting),
        }
        for name, algorithm in made.items()
    ]


def algorithm_facts(name: str) -> dict[str, Any]:
    """Return an algorithm with its description and its parameters, their meaning and defaults.

    Raises
    ------
    BadInput
        There is no such algorithm.
    """
    if name not in ALGORITHMS:
        raise BadInput("", f"unknown algorithm '{name}'; the nearest is '{nearest(name, ALGORITHMS)}'")
    entry = ALGORITHMS[name]
    cls = entry.load()
    return {
        "name": name,
        "summary": entry.summary,
        "description": inspect.getdoc(inspect.getmodule(cls)) or "",
        "paper": entry.paper,
        **_traffic(entry),
        "staleness": entry.staleness,
        "theory": entry.theory,
        "needs": {need: REQUIREMENTS[need] for need in sorted(cls.requires)},
        "servers": entry.servers,
        "model_copies": cls.model_copies,
        "momentum": cls.momentum,
        "compresses": cls.compresses,
        **({} if cls.compresses else {"exact_because": cls.exact_because}),
        "same_bits_on_both_clocks": cls().deterministic,
        "parameters": parameters(cls),
    }


TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
"""What the values of a parameter are, in words."""


def parameters(cls: type[Algorithm] | type[Codec]) -> list[dict[str, Any]]:
    """Return the parameters of an algorithm or a codec: type, unit, default, meaning, choices and bounds."""
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        choices = {"choices": list(get_args(hint))} if get_origin(hint) is Literal else {}
        found.append(
            {
                "name": field.name.replace("_", "-"),
                "type": "choice" if choices else TYPES.get(hint, "list of numbers"),
                "unit": str(field.metadata.get("unit", "")),
                "default": field.default,
                "meaning": str(field.metadata.get("doc", "")),
                **choices,
                **{bound: field.metadata[bound] for bound in BOUNDS if bound in field.metadata},
            }
        )
    return found


# Codecs.


def codecs(model: str | None = None) -> list[dict[str, Any]]:
    """Return the codecs with their defaults, and what each makes of a gradient in fp32.

    ``wire_bytes`` is what a worker hands over for the whole gradient as one message, ``theoretical_bytes``
    what an ideal coder would need.

    Parameters
    ----------
    model
        Whose gradient; without one a layer of 1000 x 1000, which needs no torch.

    Raises
    ------
    BadInput
        There is no such model.
    """
    layers: tuple[tuple[int, ...], ...] = ((1000, 1000),)
    if model is not None:
        try:
            layers = ModelCost(model, batch=1).shapes
        except ValueError as error:
            raise BadInput("", str(error)) from None
    message = Message(sum(map(math.prod, layers)), layers=layers)
    listed = []
    for name, entry in CODECS.items():
        made = entry.load()()
        parameters = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(made)}
        listed.append(
            {
                "name": name,
                "summary": entry.summary,
                "paper": entry.paper,
                "wire": entry.wire,
                "parameters": parameters,
                "summable": made.summable,
                "gradient_bytes": message.nbytes,
                "wire_bytes": made.wire_bytes(message) + made.agreed_elements(message) * message.itemsize,
                "theoretical_bytes": made.theoretical_bits(message) / 8,
            }
        )
    return listed


def codec_facts(name: str, model: str | None = None) -> dict[str, Any]:
    """Return a codec with its sizes, its description and its parameters, their meaning and defaults.

    ``compresses`` are the algorithms that it may stand before, by what of theirs it compresses.

    Raises
    ------
    BadInput
        There is no such codec, or no such model.
    """
    if name not in CODECS:
        hint = f"; for the sizes of a model give --model {name}" if name in MODEL_NAMES else ""
        raise BadInput("", f"unknown codec '{name}'; the nearest is '{nearest(name, CODECS)}'{hint}")
    cls = CODECS[name].load()
    (row,) = [row for row in codecs(model) if row["name"] == name]
    taken: dict[str, list[str]] = {}
    for algorithm, entry in ALGORITHMS.items():
        if cls.takes(sent := entry.load().compresses):
            taken.setdefault(sent, []).append(algorithm)
    return {
        **row,
        "description": inspect.getdoc(inspect.getmodule(cls)) or "",
        "parameters": parameters(cls),
        "compresses": taken,
    }


# Models.


def models() -> list[dict[str, Any]]:
    """Return the models of the catalogue with their cost, per sample; the keys carry the units."""
    return [_model(resolve(name)) for name in MODEL_NAMES]


def model_facts(name: str) -> dict[str, Any]:
    """Return a model's cost, whole and by layer.

    Parameters
    ----------
    name
        A name of the catalogue, or ``package.module:Object``.

    Raises
    ------
    BadInput
        There is no such model.
    """
    try:
        profile = resolve(name)
    except ValueError as error:
        raise BadInput("", str(error)) from None
    layers = [
        {
            "name": layer.name or "(network)",
            "parameters": layer.parameters,
            "forward_flop": layer.forward_flops,
            "backward_flop": layer.backward_flops,
            "activation_bytes": layer.activation_bytes,
        }
        for layer in profile.layers
    ]
    return {**_model(profile), "layers": layers}


def _model(profile: CostProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "parameters": profile.parameters,
        "parameter_bytes": profile.parameters * profile.parameter_bytes,
        "forward_flop": profile.forward_flops,
        "backward_flop": profile.backward_flops,
        "activation_bytes": profile.activation_bytes,
    }


# Devices.


def devices() -> list[dict[str, Any]]:
    """Return the devices of the catalogue; the keys carry the units."""
    return [device_facts(name) for name in DEVICES]


def device_facts(name: str) -> dict[str, Any]:
    """Return a device's figures and where they come from.

    Raises
    ------
    BadInput
        There is no such device.
    """
    try:
        found = device(name)
    except ValueError as error:
        raise BadInput("", str(error)) from None
    return {
        "name": found.name,
        "peak_fp32_flop_per_s": found.peak_flops,
        "peak_tf32_flop_per_s": found.peak_flops_tf32,
        "peak_bf16_flop_per_s": found.peak_flops_bf16,
        "peak_fp16_flop_per_s": found.peak_flops_fp16,
        "memory_bytes_per_s": found.memory_bandwidth,
        "memory_bytes": found.memory,
        "efficiency": found.efficiency,
        "launch_overhead_s": found.launch_overhead,
        "source": found.source,
    }
