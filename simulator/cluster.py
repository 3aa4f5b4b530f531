"""The machines of a run: which GPU each worker sits on, how fast it is, how they are connected.

Worker i sits on the i-th GPU of the topology (in the graph's order), permuted by the placement. Dedicated
servers, whose ranks are behind the workers', sit on the first machines without workers, one on each. A
cluster is what a scenario's ``cluster`` section describes, built and checked; both clocks and the
reports read it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from simulator.devices import Device
from simulator.parts import BadInput, nearest

if TYPE_CHECKING:
    import networkx as nx

    from topologies.routing import Router

Placement = Literal["linear", "round-robin"] | tuple[int, ...]


@dataclass(frozen=True)
class Cluster:
    """The machines that a run uses.

    Attributes
    ----------
    graph
        The topology, with the attributes that :mod:`topologies.attributes` defines.
    router
        Routes between its nodes.
    nodes
        The node of each worker, by rank, and behind them of each dedicated server.
    devices
        The device of each worker and server, by rank.
    servers
        How many of them are dedicated servers.
    """

    graph: nx.Graph[Hashable]
    router: Router
    nodes: tuple[Hashable, ...]
    devices: tuple[Device, ...]
    servers: int = 0

    @property
    def workers(self) -> int:
        """The number of workers."""
        return len(self.nodes) - self.servers

    def node(self, name: Hashable) -> Hashable:
        """Return the node of the topology that a scenario names; numbers may be written as text.

        Raises
        ------
        BadInput
            There is no such node; the message names the nearest.
        """
        return find_node(self.graph, name)

    def host(self, rank: int) -> Hashable:
        """Return the host that a rank's GPU sits in; the GPU itself where hosts are not modelled."""
        node = self.nodes[rank]
        host: Hashable = self.graph.nodes[node].get("host", node)
        return host


def find_node(graph: nx.Graph[Hashable], name: Hashable) -> Hashable:
    """Return the node that is, or reads as, ``name``."""
    if name in graph:
        return name
    by_text = {str(node): node for node in graph}
    if str(name) not in by_text:
        raise BadInput(
            "", f"the topology has no node '{name}'; the nearest is '{nearest(str(name), by_text)}'"
        )
    return by_text[str(name)]


def place(
    gpus: list[Hashable], hosts: Mapping[Hashable, Hashable], workers: int, placement: Placement
) -> tuple[Hashable, ...]:
    """Return the GPU of each worker.

    Parameters
    ----------
    gpus
        All GPUs in the topology's order.
    hosts
        The host of each GPU.
    workers
        How many are used.
    placement
        ``linear``: the first GPUs, host by host; ``round-robin``: the same GPUs, dealt out one host after
        another; or the positions of the GPUs to use, in rank order (a GPU named twice is shared).

    Raises
    ------
    BadInput
        Fewer GPUs than workers, or a position that does not exist.
    """
    if isinstance(placement, tuple):
        if len(placement) != workers:
            raise BadInput("placement", f"{len(placement)} positions are given for {workers} workers")
        for position in placement:
            if not 0 <= position < len(gpus):
                raise BadInput(
                    "placement", f"there is no GPU at position {position}; the last is {len(gpus) - 1}"
                )
        return tuple(gpus[position] for position in placement)
    if workers > len(gpus):
        raise BadInput("workers", f"{workers} workers need {workers} GPUs, but the topology has {len(gpus)}")
    used = gpus[:workers]
    if placement == "linear":
        return tuple(used)
    by_host: dict[Hashable, list[Hashable]] = {}
    for gpu in used:
        by_host.setdefault(hosts[gpu], []).append(gpu)
    dealt = [gpu for slot in range(workers) for group in by_host.values() for gpu in group[slot : slot + 1]]
    return tuple(dealt)


def place_servers(
    gpus: Sequence[Hashable], hosts: Mapping[Hashable, Hashable], taken: Sequence[Hashable], servers: int
) -> tuple[Hashable, ...]:
    """Return the node of each dedicated server: the first GPUs of the first hosts without workers.

    Parameters
    ----------
    gpus, hosts
        All GPUs in the topology's order, and the host of each.
    taken
        The GPUs of the workers.
    servers
        How many there are.

    Raises
    ------
    BadInput
        There are too few such hosts.
    """
    busy = {hosts[gpu] for gpu in taken}
    free: dict[Hashable, Hashable] = {}
    for gpu in gpus:
        if hosts[gpu] not in busy:
            free.setdefault(hosts[gpu], gpu)
    if servers > len(free):
        need = (
            "dedicated server needs a machine"
            if servers == 1
            else f"dedicated servers need {servers} machines"
        )
        raise BadInput("", f"{servers} {need} without workers, but the topology has {len(free) or 'none'}")
    return tuple(free.values())[:servers]
