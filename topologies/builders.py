"""Builders of the graphs that training runs on: communication graphs of ranks, and clusters of machines.

A *rank graph* has the nodes 0..n-1, all of kind `gpu`; it says who talks to whom in decentralised training
and may also stand for a cluster whose GPUs are cabled that way. A *cluster graph* also has hosts and
switches, and names its nodes by strings such as "host0/gpu1". Every edge carries the attributes of its
`LinkSpec`; an arc of a directed graph is one link, so it carries no `duplex`.

Sources: fat tree in its folded-Clos, leaf-spine form: Leiserson (IEEE Trans. Computers 1985), Al-Fares et al.
(SIGCOMM 2008). Dragonfly: Kim, Dally, Scott, Abts (ISCA 2008). Exponential graphs: Assran et al. (ICML 2019),
Ying et al. (NeurIPS 2021). Random regular graphs: Steger and Wormald (1999), as networkx draws them.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np

from topologies.attributes import DiGraph, Graph, LinkSpec, Node

DEFAULT_LINK = LinkSpec(bandwidth=1.25e9, latency=5e-6)
"""10 Gbit/s, 5 µs, all of the line rate: give a `link` with the efficiency of your protocol instead."""

DEFAULT_INSIDE = LinkSpec(bandwidth=12e9, latency=5e-6)
"""Inside a host: what PCIe 3.0 with 16 lanes delivers, about 12 GB/s a direction."""


def _count(name: str, value: Any, minimum: int) -> int:
    """Return `value` as a plain int (NumPy's integers are welcome), or refuse it by name."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def _check_link(name: str, value: Any) -> None:
    if not isinstance(value, LinkSpec):
        raise ValueError(f"{name} must be a LinkSpec, got {value!r}")


def _connect(graph: Graph, tail: Node, head: Node, link: LinkSpec) -> None:
    graph.add_edge(tail, head, **link.attributes())


def _rank_graph(nodes: int, edges: Sequence[tuple[int, int]], link: LinkSpec) -> Graph:
    """Return the undirected graph of ranks 0..nodes-1 with these edges, repeated ones once."""
    _check_link("link", link)
    graph: Graph = nx.Graph()
    graph.add_nodes_from(range(nodes), kind="gpu")
    graph.add_edges_from(edges, **link.attributes())
    return graph


def _directed_rank_graph(nodes: int, hops: Sequence[int], link: LinkSpec) -> DiGraph:
    """Return the circulant digraph on 0..nodes-1 in which i points at i + hop (mod nodes) for each hop."""
    _check_link("link", link)
    if link.duplex == "half":
        raise ValueError(
            "link: duplex 'half' has no meaning in a directed graph, where every arc is one link"
        )
    attributes = link.attributes()
    del attributes["duplex"]
    graph: DiGraph = nx.DiGraph()
    graph.add_nodes_from(range(nodes), kind="gpu")
    graph.add_edges_from(((i, (i + hop) % nodes) for i in range(nodes) for hop in hops), **attributes)
    return graph


def ring(nodes: int, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return the cycle 0-1-...-(n-1)-0; one node has no edge and two have one.

    Parameters
    ----------
    nodes
        Number of ranks n, at least 1.
    link
        Attributes of every edge.
    """
    nodes = _count("nodes", nodes, 1)
    return _rank_graph(nodes, [(i, (i + 1) % nodes) for i in range(nodes) if nodes > 1], link)


def star(nodes: int, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return the star whose centre is rank 0; for machines around a switch take `switch`.

    Parameters
    ----------
    nodes
        Number of ranks n, the centre among them, at least 1.
    link
        Attributes of every edge.
    """
    nodes = _count("nodes", nodes, 1)
    return _rank_graph(nodes, [(0, i) for i in range(1, nodes)], link)


def complete(nodes: int, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return the complete graph: every rank is a neighbour of every other.

    Parameters
    ----------
    nodes
        Number of ranks n, at least 1.
    link
        Attributes of every edge.
    """
    nodes = _count("nodes", nodes, 1)
    return _rank_graph(nodes, list(itertools.combinations(range(nodes), 2)), link)


def torus(dimensions: tuple[int, ...], link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return the torus, a grid that wraps around in each dimension, with ranks in row-major order.

    A dimension of size 2 has one edge where the wrapped grid would have two parallel ones, and a dimension
    of size 1 has none.

    Parameters
    ----------
    dimensions
        Size of each dimension, each at least 1; the number of ranks is their product.
    link
        Attributes of every edge.
    """
    if not isinstance(dimensions, (tuple, list)) or not dimensions:
        raise ValueError(f"dimensions must be a tuple of at least one size, got {dimensions!r}")
    sizes = [_count(f"dimensions[{axis}]", size, 1) for axis, size in enumerate(dimensions)]
    places = list(itertools.product(*map(range, sizes)))
    rank = {place: i for i, place in enumerate(places)}
    edges = [
        (rank[place], rank[(*place[:axis], (place[axis] + 1) % size, *place[axis + 1 :])])
        for place in places
        for axis, size in enumerate(sizes)
        if size > 1
    ]
    return _rank_graph(len(places), edges, link)


def hypercube(dimension: int, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return the hypercube on 2^dimension ranks: neighbours differ in one bit of their number.

    Parameters
    ----------
    dimension
        Number of bits, 0 or more, which is also each rank's degree.
    link
        Attributes of every edge.
    """
    dimension = _count("dimension", dimension, 0)
    nodes = 2**dimension
    edges = [(i, i ^ (1 << bit)) for i in range(nodes) for bit in range(dimension) if not i & (1 << bit)]
    return _rank_graph(nodes, edges, link)


def random_regular(nodes: int, degree: int, seed: int = 0, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return a connected random graph in which every rank has `degree` neighbours.

    Drawn again from the same random stream until it is connected, so that one seed gives one graph.

    Parameters
    ----------
    nodes
        Number of ranks n, at least 1.
    degree
        Neighbours of each rank, below n, with n·degree even. A degree of 1 can connect two ranks only, and
        a degree of 0 one.
    seed
        Seed of the random stream, 0 or more.
    link
        Attributes of every edge.
    """
    nodes = _count("nodes", nodes, 1)
    degree = _count("degree", degree, 0)
    seed = _count("seed", seed, 0)
    if degree >= nodes:
        raise ValueError(f"degree must be below nodes, got degree {degree} with nodes {nodes}")
    if nodes * degree % 2:
        raise ValueError(f"nodes times degree must be even, got degree {degree} with nodes {nodes}")
    if nodes > degree + 1 and degree < 2:
        raise ValueError(f"degree must be at least 2 to connect {nodes} nodes, got {degree}")
    generator = np.random.default_rng(seed)
    while True:
        drawn: Graph = nx.random_regular_graph(degree, nodes, seed=generator)
        if nx.is_connected(drawn):
            return _rank_graph(nodes, sorted((min(edge), max(edge)) for edge in drawn.edges()), link)


def exponential(nodes: int, link: LinkSpec = DEFAULT_LINK) -> DiGraph:
    """Return the static directed exponential graph: i points at i + 2^k (mod n) for every 2^k below n.

    Each rank has 1 + floor(log2(n-1)) out-neighbours, and as many in-neighbours.

    Parameters
    ----------
    nodes
        Number of ranks n, at least 1; one rank has no arc.
    link
        Attributes of every arc.
    """
    nodes = _count("nodes", nodes, 1)
    return _directed_rank_graph(nodes, [2**k for k in range((nodes - 1).bit_length())], link)


def one_peer_exponential(nodes: int, phase: int, link: LinkSpec = DEFAULT_LINK) -> DiGraph:
    """Return one round of the one-peer exponential graph: i points at i + 2^(phase mod τ) (mod n).

    The period τ is ceil(log2 n). One round alone need not be connected; τ rounds in a row are, and where n
    is a power of two they average exactly.

    Parameters
    ----------
    nodes
        Number of ranks n, at least 1; one rank has no arc.
    phase
        Number of the round, 0 or more.
    link
        Attributes of every arc.
    """
    nodes = _count("nodes", nodes, 1)
    phase = _count("phase", phase, 0)
    period = (nodes - 1).bit_length()
    return _directed_rank_graph(nodes, [2 ** (phase % period)] if period else [], link)


def switch(gpus: int, link: LinkSpec = DEFAULT_LINK) -> Graph:
    """Return GPUs "gpu0", "gpu1", ... around one node "switch".

    Parameters
    ----------
    gpus
        Number of GPUs, at least 1.
    link
        Attributes of the edge between each GPU and the switch.
    """
    gpus = _count("gpus", gpus, 1)
    _check_link("link", link)
    graph: Graph = nx.Graph()
    graph.add_nodes_from((f"gpu{i}" for i in range(gpus)), kind="gpu")
    graph.add_node("switch", kind="switch")
    for i in range(gpus):
        _connect(graph, f"gpu{i}", "switch", link)
    return graph


def _add_host(graph: Graph, host: str, gpus: int, inside: LinkSpec) -> list[str]:
    """Add a host node with its GPUs, each on a link to the host, and return the GPUs' names."""
    graph.add_node(host, kind="host")
    names = [f"{host}/gpu{i}" for i in range(gpus)]
    for name in names:
        graph.add_node(name, kind="gpu", host=host)
        _connect(graph, name, host, inside)
    return names


def two_level(
    hosts: int,
    gpus_per_host: int,
    inside: LinkSpec = DEFAULT_INSIDE,
    network: LinkSpec = DEFAULT_LINK,
    all_to_all_inside: bool = False,
) -> Graph:
    """Return GPUs in hosts around one switch: PCIe or NVLink inside, one NIC a host to the network.

    Nodes: "host0", "host0/gpu0", ..., "switch".

    Parameters
    ----------
    hosts
        Number of hosts, at least 1.
    gpus_per_host
        GPUs in each host, at least 1.
    inside
        Attributes of every link inside a host.
    network
        Attributes of the one edge between a host and the switch: its NIC.
    all_to_all_inside
        If true, each pair of GPUs of a host also has a direct link (NVLink); they still reach the network
        through the host.
    """
    hosts = _count("hosts", hosts, 1)
    gpus_per_host = _count("gpus_per_host", gpus_per_host, 1)
    _check_link("inside", inside)
    _check_link("network", network)
    graph: Graph = nx.Graph()
    graph.add_node("switch", kind="switch")
    for i in range(hosts):
        gpus = _add_host(graph, f"host{i}", gpus_per_host, inside)
        _connect(graph, f"host{i}", "switch", network)
        for first, second in itertools.combinations(gpus, 2) if all_to_all_inside else ():
            _connect(graph, first, second, inside)
    return graph


def _uplink(link: LinkSpec, hosts_per_leaf: int, spines: int, oversubscription: Any) -> LinkSpec:
    """Return the leaf-spine link that a ratio of host bandwidth to uplink bandwidth at a leaf asks for."""
    is_number = isinstance(oversubscription, numbers.Real) and not isinstance(oversubscription, bool)
    if not is_number or not 0 < oversubscription < float("inf"):
        raise ValueError(f"oversubscription must be a finite number above 0, got {oversubscription!r}")
    return replace(link, bandwidth=hosts_per_leaf * link.bandwidth / (spines * float(oversubscription)))


def fat_tree(
    leaves: int,
    hosts_per_leaf: int,
    spines: int,
    gpus_per_host: int = 1,
    link: LinkSpec = DEFAULT_LINK,
    uplink: LinkSpec | None = None,
    oversubscription: float = 1.0,
    inside: LinkSpec = DEFAULT_INSIDE,
) -> Graph:
    """Return the two-level fat tree (leaf-spine): hosts on leaf switches, every leaf on every spine.

    Nodes: "spine0", ..., "leaf0", ..., "host0", "host0/gpu0", ...; hosts are numbered across the leaves.

    Parameters
    ----------
    leaves, hosts_per_leaf, spines, gpus_per_host
        Numbers of parts, each at least 1.
    link
        Attributes of the edge between a host and its leaf: its NIC.
    uplink
        Attributes of the edge between a leaf and a spine. If None, it is like `link`, with the bandwidth
        hosts_per_leaf · link.bandwidth / (spines · oversubscription).
    oversubscription
        Ratio of the bandwidth of a leaf's hosts to that of its uplinks: 1 is non-blocking, 4 is 4:1. Only
        where `uplink` is not given.
    inside
        Attributes of the edge between a GPU and its host.
    """
    counts = {"leaves": leaves, "hosts_per_leaf": hosts_per_leaf, "spines": spines}
    for name, value in {**counts, "gpus_per_host": gpus_per_host}.items():
        _count(name, value, 1)
    _check_link("link", link)
    _check_link("inside", inside)
    if uplink is None:
        uplink = _uplink(link, hosts_per_leaf, spines, oversubscription)
    elif oversubscription != 1.0:
        raise ValueError(
            f"oversubscription {oversubscription!r} has no effect beside uplink; give one of them"
        )
    _check_link("uplink", uplink)
    graph: Graph = nx.Graph()
    graph.add_nodes_from((f"spine{i}" for i in range(spines)), kind="switch")
    for leaf in range(leaves):
        graph.add_node(f"leaf{leaf}", kind="switch")
        for spine in range(spines):
            _connect(graph, f"leaf{leaf}", f"spine{spine}", uplink)
        for host in range(leaf * hosts_per_leaf, (leaf + 1) * hosts_per_leaf):
            _add_host(graph, f"host{host}", gpus_per_host, inside)
            _connect(graph, f"host{host}", f"leaf{leaf}", link)
    return graph


def dragonfly(
    groups: int,
    routers_per_group: int,
    gpus_per_router: int,
    link: LinkSpec = DEFAULT_LINK,
    global_link: LinkSpec = DEFAULT_LINK,
) -> Graph:
    """Return the dragonfly: groups of fully connected routers, and one global link a pair of groups.

    Nodes: "group0/router0", "group0/router0/gpu0", .... A group's g-1 global links are dealt to its a routers
    in consecutive blocks, in the order of the distance to the other group (the relative arrangement); with
    g = a·h + 1 groups every router has exactly h of them, as in the paper.

    Parameters
    ----------
    groups, routers_per_group, gpus_per_router
        Numbers of parts, each at least 1.
    link
        Attributes of the edges between a GPU and its router and between routers of a group.
    global_link
        Attributes of the edge between two groups.
    """
    counts = {"groups": groups, "routers_per_group": routers_per_group, "gpus_per_router": gpus_per_router}
    for name, value in counts.items():
        _count(name, value, 1)
    _check_link("link", link)
    _check_link("global_link", global_link)
    graph: Graph = nx.Graph()
    for group, router in itertools.product(range(groups), range(routers_per_group)):
        name = f"group{group}/router{router}"
        graph.add_node(name, kind="switch")
        for i in range(gpus_per_router):
            graph.add_node(f"{name}/gpu{i}", kind="gpu")
            _connect(graph, f"{name}/gpu{i}", name, link)
    for group in range(groups):
        for first, second in itertools.combinations(range(routers_per_group), 2):
            _connect(graph, f"group{group}/router{first}", f"group{group}/router{second}", link)

    def gateway(group: int, other: int) -> str:
        distance = (other - group - 1) % groups
        return f"group{group}/router{distance * routers_per_group // (groups - 1)}"

    for first, second in itertools.combinations(range(groups), 2):
        _connect(graph, gateway(first, second), gateway(second, first), global_link)
    return graph


BUILDERS: dict[str, Callable[..., Graph]] = {
    "ring": ring,
    "star": star,
    "complete": complete,
    "torus": torus,
    "hypercube": hypercube,
    "random-regular": random_regular,
    "exponential": exponential,
    "one-peer-exponential": one_peer_exponential,
    "switch": switch,
    "two-level": two_level,
    "fat-tree": fat_tree,
    "dragonfly": dragonfly,
}
"""Every builder by the name that a scenario calls it."""
