"""The attribute model of a cluster graph: what nodes and links carry, and how that is read.

A cluster is a networkx graph. A node is a device of the network and says so by `kind` (`gpu`, `host`,
`switch`, `nic`, or any other word); a node of kind `gpu` is a worker's place, and everything else only
forwards. An edge is a cable with a line rate (`bandwidth`), a propagation delay (`latency`) and the share
of the line rate that its protocol delivers (`efficiency`). What shares capacity is not a cable but a
*link*: a full-duplex cable is two links, one a direction, a half-duplex cable is one link that both
directions share, and an arc of a directed graph is one link. All quantities are SI: bytes/s and seconds.

The numbering of the links (`link_table`) is the order of the graph's edges, and the numbering of the
workers (`gpus`) is the order of its nodes, so that one graph always means one simulation.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import networkx as nx

if TYPE_CHECKING:
    Graph: TypeAlias = nx.Graph[Any]
    DiGraph: TypeAlias = nx.DiGraph[Any]
else:  # networkx's classes take no type argument when the program runs
    Graph = nx.Graph
    DiGraph = nx.DiGraph

Node: TypeAlias = Hashable

EDGE_ATTRIBUTES = ("bandwidth", "latency", "efficiency", "duplex")
DUPLEX_MODES = ("full", "half")


def nearest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that is spelt most like `word`, or None when none is near.

    Parameters
    ----------
    word
        What was given; anything but a string has no neighbour.
    known
        The words that would have been right.
    cutoff
        Similarity in [0, 1] below which a word is not near (`difflib`'s ratio).
    """
    if not isinstance(word, str):
        return None
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _check_link(bandwidth: Any, latency: Any, efficiency: Any, duplex: Any) -> None:
    """Raise ValueError for the first value that no link can have."""
    if not _is_number(bandwidth) or bandwidth <= 0:
        raise ValueError(f"bandwidth must be a finite number of B/s above 0, got {bandwidth!r}")
    if not _is_number(latency) or latency < 0:
        raise ValueError(f"latency must be a finite number of seconds, 0 or more, got {latency!r}")
    if not _is_number(efficiency) or not 0 < efficiency <= 1:
        raise ValueError(f"efficiency must be a number above 0 and at most 1, got {efficiency!r}")
    if duplex not in DUPLEX_MODES:
        near = nearest(duplex, DUPLEX_MODES)
        hint = f"; the nearest is {near!r}" if near else ""
        raise ValueError(f"duplex must be 'full' or 'half', got {duplex!r}{hint}")


@dataclass(frozen=True)
class LinkSpec:
    """What one cable between two nodes can do.

    Parameters
    ----------
    bandwidth
        Line rate of one direction (of both together when `duplex` is "half"), in B/s, above 0.
    latency
        Propagation delay from one end to the other, in s, 0 or more.
    efficiency
        The share of the line rate that is really delivered, above 0 and at most 1.
    duplex
        "full": two links, one a direction. "half": one link that both directions share.

    Raises
    ------
    ValueError
        If a value is out of its range; the sentence names the key and the value.
    """

    bandwidth: Annotated[float, "B/s"]
    latency: Annotated[float, "s"] = 0.0
    efficiency: float = 1.0
    duplex: Literal["full", "half"] = "full"

    def __post_init__(self) -> None:
        _check_link(self.bandwidth, self.latency, self.efficiency, self.duplex)

    @property
    def capacity(self) -> float:
        """The rate that flows can share, in B/s: bandwidth × efficiency."""
        return float(self.bandwidth) * float(self.efficiency)

    def attributes(self) -> dict[str, float | str]:
        """Return a fresh dict of the four edge attributes, numbers as floats in SI units."""
        return {
            "bandwidth": float(self.bandwidth),
            "latency": float(self.latency),
            "efficiency": float(self.efficiency),
            "duplex": self.duplex,
        }


@dataclass(frozen=True)
class LinkTable:
    """The links of a cluster, numbered: what a network model shares among flows.

    Parameters
    ----------
    capacity
        Rate that flows share, in B/s (bandwidth × efficiency), one a link.
    latency
        Propagation delay, in s, one a link.
    index
        Maps each direction (tail, head) to its link's number; both directions of a half-duplex edge map
        to the same number.
    """

    capacity: tuple[float, ...]
    latency: tuple[float, ...]
    index: dict[tuple[Node, Node], int]

    @property
    def names(self) -> tuple[str, ...]:
        """One name a link: "host0->switch", or "host0<->switch" when both directions share it."""
        names: dict[int, str] = {}
        for (tail, head), link in self.index.items():
            names[link] = f"{head}<->{tail}" if link in names else f"{tail}->{head}"
        return tuple(names.values())


def check_simple(graph: Graph) -> None:
    """Raise ValueError if `graph` is a multigraph: parallel edges have no name of their own."""
    if graph.is_multigraph():
        raise ValueError(
            "a multigraph is not a cluster graph: give each pair of nodes one edge, "
            "with the sum of the bandwidths of the parallel ones"
        )


def edge_name(graph: Graph, tail: Node, head: Node) -> str:
    """Return how messages call an edge: "a<->b", or "a->b" in a directed graph."""
    return f"{tail}->{head}" if graph.is_directed() else f"{tail}<->{head}"


@lru_cache(maxsize=1024)
def _misspelt(key: str) -> str | None:
    """Return the edge attribute that an unknown key was probably meant to be, or None."""
    return nearest(key.lower(), EDGE_ATTRIBUTES, cutoff=0.8)


def _refuse_misspelt_keys(name: str, attributes: Mapping[str, Any]) -> None:
    for key in attributes:
        near = _misspelt(key) if isinstance(key, str) and key not in EDGE_ATTRIBUTES else None
        if near:
            raise ValueError(f"edge {name}: unknown attribute {key!r}; the nearest is {near!r}")


def link_spec(graph: Graph, tail: Node, head: Node) -> LinkSpec:
    """Return the attributes of one edge of a cluster graph, checked and with their defaults.

    Attributes that are no part of the model (a label, a colour) are left alone, but one that is spelt
    almost like a part of it is refused: it would silently have no effect.

    Raises
    ------
    ValueError
        If an attribute is missing, out of range or misspelt, if the edge is a self loop, or if an arc of a
        directed graph is "half" duplex; the sentence names the edge, the key and the value.
    """
    name = edge_name(graph, tail, head)
    attributes: Mapping[str, Any] = graph.edges[tail, head]
    if tail == head:
        raise ValueError(f"edge {name}: a self loop is not a link")
    _refuse_misspelt_keys(name, attributes)
    if "bandwidth" not in attributes:
        raise ValueError(f"edge {name}: bandwidth is missing; every edge needs one, in B/s")
    values = {key: attributes[key] for key in EDGE_ATTRIBUTES if key in attributes}
    try:
        spec = LinkSpec(**values)
    except ValueError as error:
        raise ValueError(f"edge {name}: {error}") from None
    if graph.is_directed() and spec.duplex == "half":
        raise ValueError(
            f"edge {name}: duplex 'half' has no meaning in a directed graph, where every arc is one link"
        )
    return spec


def kind_of(graph: Graph, node: Node) -> str | None:
    """Return a node's `kind`, or None where the graph does not say it."""
    kind: str | None = graph.nodes[node].get("kind")
    return kind


def gpus(graph: Graph) -> list[Node]:
    """Return the nodes of kind "gpu" in rank order.

    Rank order is the order of the graph's nodes, unless the gpu nodes carry an integer attribute `rank`;
    then they are sorted by it.

    Raises
    ------
    ValueError
        If only some gpu nodes carry a `rank`, if one is not an integer, or if two are equal.
    """
    nodes = [node for node in graph if kind_of(graph, node) == "gpu"]
    ranks: dict[Node, Any] = {
        node: graph.nodes[node]["rank"] for node in nodes if "rank" in graph.nodes[node]
    }
    if not ranks:
        return nodes
    owner: dict[int, Node] = {}
    for node in nodes:
        if node not in ranks:
            raise ValueError(f"node {node!r}: rank is missing, but other gpu nodes have one")
        rank = ranks[node]
        if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
            raise ValueError(f"node {node!r}: rank must be an integer, got {rank!r}")
        if rank in owner:
            raise ValueError(f"node {node!r}: rank {rank!r} is already the rank of node {owner[int(rank)]!r}")
        owner[int(rank)] = node
    return [owner[rank] for rank in sorted(owner)]


def _check_nodes(graph: Graph) -> None:
    named: dict[str, Node] = {}
    for node, attributes in graph.nodes(data=True):
        if str(node) in named:
            raise ValueError(f"nodes {named[str(node)]!r} and {node!r} have the same name")
        named[str(node)] = node
        if "kind" not in attributes:
            raise ValueError(
                f"node {node!r}: kind is missing; every node needs one, such as 'gpu' or 'switch'"
            )
        kind = attributes["kind"]
        if not isinstance(kind, str) or not kind:
            raise ValueError(f"node {node!r}: kind must be a word such as 'gpu' or 'switch', got {kind!r}")
        if kind != "gpu" and kind.strip().lower() == "gpu":
            raise ValueError(f"node {node!r}: unknown kind {kind!r}; the nearest is 'gpu'")


def check_attributes(graph: Graph) -> None:
    """Check every node's and every edge's attributes, but not that the graph is connected.

    Raises
    ------
    ValueError
        With one sentence that names the node or edge, the key and the value.
    """
    check_simple(graph)
    _check_nodes(graph)
    for tail, head in graph.edges():
        link_spec(graph, tail, head)
    gpus(graph)


def _check_connected(graph: Graph) -> None:
    """Raise ValueError unless every node reaches every other (both ways in a directed graph)."""
    start = next(iter(graph))
    forward = nx.descendants(graph, start) | {start}
    backward = nx.ancestors(graph, start) | {start} if graph.is_directed() else forward
    for node in graph:
        if node not in forward:
            raise ValueError(
                f"the graph is disconnected: node {node!r} cannot be reached from node {start!r}"
            )
        if node not in backward:
            raise ValueError(
                f"the graph is disconnected: node {start!r} cannot be reached from node {node!r}"
            )


def validate_cluster(graph: Graph) -> None:
    """Check that `graph` is a cluster: typed nodes with a gpu among them, sound links, connected.

    Raises
    ------
    ValueError
        With one sentence that names the node or edge, the key and the value.
    """
    check_attributes(graph)
    if not gpus(graph):
        kinds = sorted({str(kind_of(graph, node)) for node in graph})
        found = f"the kinds are {', '.join(map(repr, kinds))}" if kinds else "the graph has no nodes"
        raise ValueError(f"no node has kind 'gpu': {found}")
    _check_connected(graph)


def link_table(graph: Graph) -> LinkTable:
    """Return the numbered links of `graph`, in the order of its edges.

    A full-duplex edge (u, v) gives the link u->v and then v->u.

    Raises
    ------
    ValueError
        If the graph is a multigraph or an edge's attributes are not those of a link.
    """
    check_simple(graph)
    capacity: list[float] = []
    latency: list[float] = []
    index: dict[tuple[Node, Node], int] = {}
    for tail, head in graph.edges():
        spec = link_spec(graph, tail, head)
        there, back = (tail, head), (head, tail)
        if graph.is_directed():
            links = [[there]]
        else:
            links = [[there, back]] if spec.duplex == "half" else [[there], [back]]
        for directions in links:
            index.update(dict.fromkeys(directions, len(capacity)))
            capacity.append(spec.capacity)
            latency.append(float(spec.latency))
    return LinkTable(tuple(capacity), tuple(latency), index)
