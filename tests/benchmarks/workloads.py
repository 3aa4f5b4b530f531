"""Network workloads as plain data: links, routes, and a program for each process; drawn from a seed.

A workload runs unchanged on our clock (``tests/benchmarks/on_clock.py``) and in SimGrid
(``tests/benchmarks/simgrid/workload.cpp``). All routes of a workload have equal latency, because SimGrid
weights a flow by 1/latency and agrees with plain max-min sharing only then.

Programs
--------
A program is a list of instructions. A process runs it once on its host:

``sleep SECONDS``
    Wait.
``send ROUTE BYTES``
    Start a flow over a route, whatever its receiver is doing, and wait for its end.
``put ROUTE BYTES``
    Post a message for the receiver of a route, and go on. The flow starts when both sides have posted; the
    puts and gets of a route match in order.
``get ROUTE``
    Post the reception of the next message of a route, and go on.
``wait``
    Wait until everything that this process posted has ended.
``repeat TIMES`` … ``end``
    Do the instructions in between several times.

The file
--------
Text, one record a line, words separated by spaces, in this order; links, routes and hosts are numbered from
0 in the order of the file; sizes are whole bytes::

    workload NAME
    hosts COUNT
    links COUNT
    CAPACITY LATENCY                                  for each link: bytes/s, seconds
    routes COUNT
    SOURCE DESTINATION LINKS LINK…                    for each route: hosts, number of links, the links
    processes COUNT
    HOST INSTRUCTIONS                                 for each process, and then its instructions, one a line
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "WORKLOADS",
    "Instruction",
    "Process",
    "Route",
    "Workload",
    "gossip",
    "incast",
    "line",
    "pairs",
    "parameter_server",
    "ring_on_fat_tree",
    "ring_on_star",
    "unrolled",
]

NIC = 12.5e9  # bytes/s
NIC_LATENCY = 2.5e-6  # seconds; a route crosses two NICs, and the fabric between them adds nothing
EDGE = 10e9  # bytes/s of one direction of a gossip edge
MESSAGE = 100_000_000  # bytes
ALL_REDUCE = 1_024_000_000  # bytes
LEAF = 16  # hosts below a leaf switch
SPINES = 4  # each reached by one link of the NIC's capacity: 4:1 oversubscribed

Instruction = tuple[Any, ...]  # a word, and the numbers that it takes

_ARGUMENTS: dict[str, tuple[Callable[[str], int | float], ...]] = {
    "sleep": (float,),
    "send": (int, int),
    "put": (int, int),
    "get": (int,),
    "wait": (),
    "repeat": (int,),
    "end": (),
}


@dataclass(frozen=True)
class Route:
    """A way between two hosts."""

    source: int
    destination: int
    links: tuple[int, ...]


@dataclass(frozen=True)
class Process:
    """A program, and the host that runs it."""

    host: int
    program: tuple[Instruction, ...]


@dataclass(frozen=True)
class Workload:
    """Links as (capacity in bytes/s, latency in seconds), routes over them, and processes."""

    name: str
    hosts: int
    links: tuple[tuple[float, float], ...]
    routes: tuple[Route, ...]
    processes: tuple[Process, ...]

    def text(self) -> str:
        """Return the workload as the text of a file; floats are written with all their digits."""
        lines = [f"workload {self.name}", f"hosts {self.hosts}", f"links {len(self.links)}"]
        lines += [f"{capacity!r} {latency!r}" for capacity, latency in self.links]
        lines.append(f"routes {len(self.routes)}")
        for route in self.routes:
            lines.append(_words(route.source, route.destination, len(route.links), *route.links))
        lines.append(f"processes {len(self.processes)}")
        for process in self.processes:
            lines.append(_words(process.host, len(process.program)))
            lines += [_words(*instruction) for instruction in process.program]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Workload:
        """Return the workload that a text describes; the text is one that :meth:`text` made."""
        records = map(str.split, text.splitlines())
        name = _heading(records, "workload")
        hosts = int(_heading(records, "hosts"))
        links = []
        for _ in range(int(_heading(records, "links"))):
            capacity, latency = map(float, next(records))
            links.append((capacity, latency))
        routes = []
        for _ in range(int(_heading(records, "routes"))):
            source, destination, _, *over = map(int, next(records))
            routes.append(Route(source, destination, tuple(over)))
        processes = []
        for _ in range(int(_heading(records, "processes"))):
            host, length = map(int, next(records))
            processes.append(Process(host, tuple(_instruction(next(records)) for _ in range(length))))
        return cls(name, hosts, tuple(links), tuple(routes), tuple(processes))

    @classmethod
    def read(cls, path: str | Path) -> Workload:
        """Return the workload of a file."""
        return cls.from_text(Path(path).read_text(encoding="ascii"))


def unrolled(program: Sequence[Instruction]) -> Iterator[Instruction]:
    """Yield the instructions of a program as they are executed: without ``repeat`` and ``end``."""
    position = 0
    loops: list[tuple[int, int]] = []  # (where the body begins, how often it is still to come)
    while position < len(program):
        instruction = program[position]
        position += 1
        if instruction[0] == "repeat":
            loops.append((position, instruction[1] - 1))
        elif instruction[0] == "end":
            begin, left = loops.pop()
            if left:
                loops.append((begin, left - 1))
                position = begin
        else:
            yield instruction


def _words(*words: object) -> str:
    return " ".join(word if isinstance(word, str) else repr(word) for word in words)


def _heading(records: Iterator[list[str]], key: str) -> str:
    found, value = next(records)
    if found != key:
        raise ValueError(f"a workload file has {key!r} here, not {found!r}")
    return value


def _instruction(words: Sequence[str]) -> Instruction:
    kinds = _ARGUMENTS[words[0]]
    return (words[0], *(kind(word) for kind, word in zip(kinds, words[1:], strict=True)))


# --------------------------------------------------------------------------------------------- the networks


class _Network:
    """Hosts with a NIC each, and the links and routes between them, as they are added."""

    def __init__(self, hosts: int, *, shared: bool = False) -> None:
        self.hosts = hosts
        self.links: list[tuple[float, float]] = []
        self.routes: list[Route] = []
        if shared:  # one link carries what the host sends and what it receives
            self.out = self.into = [self.link(NIC, NIC_LATENCY) for _ in range(hosts)]
        else:
            self.out = [self.link(NIC, NIC_LATENCY) for _ in range(hosts)]
            self.into = [self.link(NIC, NIC_LATENCY) for _ in range(hosts)]

    def link(self, capacity: float, latency: float = 0.0) -> int:
        self.links.append((capacity, latency))
        return len(self.links) - 1

    def route(self, source: int, destination: int, fabric: Iterable[int] = ()) -> int:
        """Add the route of a pair of hosts: the NICs, and links of the fabric between them."""
        links = (self.out[source], *fabric, self.into[destination])
        self.routes.append(Route(source, destination, links))
        return len(self.routes) - 1

    def workload(self, name: str, programs: Iterable[tuple[int, list[Instruction]]]) -> Workload:
        processes = tuple(Process(host, tuple(program)) for host, program in programs)
        return Workload(name, self.hosts, tuple(self.links), tuple(self.routes), processes)


def _regular_graph(nodes: int, random: np.random.Generator) -> list[list[int]]:
    """Return the neighbours in a random 4-regular graph: two Hamiltonian cycles without a common edge."""
    if nodes < 5:
        raise ValueError(f"a 4-regular graph has at least 5 nodes, not {nodes}")
    while True:
        edges: set[tuple[int, int]] = set()
        neighbours: list[list[int]] = [[] for _ in range(nodes)]
        for _ in range(2):
            cycle = random.permutation(nodes).tolist()
            for one, other in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                edges.add((min(one, other), max(one, other)))
                neighbours[one].append(other)
                neighbours[other].append(one)
        if len(edges) == 2 * nodes:
            return neighbours


# -------------------------------------------------------------------------------------------- the workloads


def gossip(nodes: int, *, shared: bool = False, rounds: int = 20, seed: int = 0) -> Workload:
    """Return asynchronous gossip on a random 4-regular graph.

    Each node repeats: sleep U(0, 10 ms), then send 100 MB to a random neighbour and wait for the end. Each
    direction of an edge carries 10 GB/s. With `shared`, what a node sends and receives shares its NIC.
    """
    random = np.random.default_rng(seed)
    neighbours = _regular_graph(nodes, random)
    network = _Network(nodes, shared=shared)
    routes = [
        [network.route(node, other, [network.link(EDGE)]) for other in neighbours[node]]
        for node in range(nodes)
    ]
    sleeps = random.uniform(0.0, 10e-3, (nodes, rounds)).tolist()
    choices = random.integers(4, size=(nodes, rounds)).tolist()

    def program(node: int) -> list[Instruction]:
        instructions: list[Instruction] = []
        for sleep, choice in zip(sleeps[node], choices[node], strict=True):
            instructions += [("sleep", sleep), ("send", routes[node][choice], MESSAGE)]
        return instructions

    name = f"gossip-{'shared' if shared else 'full'}-{nodes}"
    return network.workload(name, ((node, program(node)) for node in range(nodes)))


def parameter_server(nodes: int, *, rounds: int = 20, seed: int = 0) -> Workload:
    """Return an asynchronous parameter server for `nodes` workers on a star; the server is one host more.

    Each worker repeats: sleep U(50 ms, 150 ms), push 100 MB, pull 100 MB.
    """
    random = np.random.default_rng(seed)
    network = _Network(nodes + 1)
    push = [network.route(node, nodes) for node in range(nodes)]
    pull = [network.route(nodes, node) for node in range(nodes)]
    sleeps = random.uniform(50e-3, 150e-3, (nodes, rounds)).tolist()

    def program(node: int) -> list[Instruction]:
        instructions: list[Instruction] = []
        for sleep in sleeps[node]:
            instructions += [("sleep", sleep), ("send", push[node], MESSAGE), ("send", pull[node], MESSAGE)]
        return instructions

    return network.workload(f"parameter-server-{nodes}", ((node, program(node)) for node in range(nodes)))


def ring_on_star(nodes: int, *, steps: int | None = None) -> Workload:
    """Return a ring all-reduce of 1.024 GB on a star, one host a rank, in order.

    Each of the 2(n-1) steps sends 1/n of the data to the next rank and receives as much from the previous
    one; a rank goes on when both have ended. With `steps`, only that many.
    """
    network = _Network(nodes)
    routes = [network.route(rank, (rank + 1) % nodes) for rank in range(nodes)]
    return network.workload(_ring_name("star", nodes, steps), _ring(list(range(nodes)), routes, steps))


def ring_on_fat_tree(nodes: int, *, steps: int | None = None, seed: int = 0) -> Workload:
    """Return a ring all-reduce of 1.024 GB with shuffled ranks on an oversubscribed fat tree.

    16 hosts a leaf, 4 spines, one link of a NIC's capacity from each leaf to each spine and back (4:1), spine
    by destination modulo 4 (D-mod-k). Rank r is on the host that a random permutation gives it.
    """
    if nodes % LEAF:
        raise ValueError(f"a fat tree has a multiple of {LEAF} hosts, not {nodes}")
    network = _Network(nodes)
    up = [[network.link(NIC) for _ in range(SPINES)] for _ in range(nodes // LEAF)]
    down = [[network.link(NIC) for _ in range(SPINES)] for _ in range(nodes // LEAF)]
    hosts = np.random.default_rng(seed).permutation(nodes).tolist()
    routes = []
    for rank in range(nodes):
        source, destination = hosts[rank], hosts[(rank + 1) % nodes]
        spine = destination % SPINES
        leaves = source // LEAF, destination // LEAF
        fabric = [] if leaves[0] == leaves[1] else [up[leaves[0]][spine], down[leaves[1]][spine]]
        routes.append(network.route(source, destination, fabric))
    return network.workload(_ring_name("fat-tree", nodes, steps), _ring(hosts, routes, steps))


def _ring_name(fabric: str, nodes: int, steps: int | None) -> str:
    return f"ring-{fabric}-{nodes}" + (f"-{steps}-steps" if steps is not None else "")


def _ring(
    hosts: Sequence[int], routes: Sequence[int], steps: int | None
) -> Iterator[tuple[int, list[Instruction]]]:
    nodes = len(hosts)
    for rank, host in enumerate(hosts):
        yield (
            host,
            [
                ("repeat", 2 * (nodes - 1) if steps is None else steps),
                ("put", routes[rank], ALL_REDUCE // nodes),
                ("get", routes[rank - 1]),
                ("wait",),
                ("end",),
            ],
        )


# ------------------------------------------------------------------- workloads that vary one cause of costs


def incast(flows: int, *, rounds: int = 20, seed: int = 0) -> Workload:
    """Return `flows` concurrent flows on one link: senders on a star that never pause, one receiver.

    Each sends `rounds` messages of U(50 MB, 150 MB).
    """
    random = np.random.default_rng(seed)
    network = _Network(flows + 1)
    routes = [network.route(node, flows) for node in range(flows)]
    return network.workload(f"incast-{flows}", _senders(routes, rounds, random))


def pairs(flows: int, *, rounds: int = 20, seed: int = 0) -> Workload:
    """Return `flows` concurrent flows that share nothing: as many hosts, each sends to the next one."""
    network = _Network(flows)
    routes = [network.route(node, (node + 1) % flows) for node in range(flows)]
    return network.workload(f"pairs-{flows}", _senders(routes, rounds, np.random.default_rng(seed)))


def line(flows: int, hops: int, *, rounds: int = 20, seed: int = 0) -> Workload:
    """Return `flows` concurrent flows on a closed line of as many links, each over `hops` successive ones.

    All flows are one connected component, and `hops` of them share every link.
    """
    if not 0 < hops < flows:
        raise ValueError(f"a flow on a closed line of {flows} links crosses 1 to {flows - 1}, not {hops}")
    network = _Network(flows)
    links = [network.link(NIC) for _ in range(flows)]
    routes = [
        network.route(node, (node + hops) % flows, [links[(node + offset) % flows] for offset in range(hops)])
        for node in range(flows)
    ]
    return network.workload(f"line-{flows}-{hops}", _senders(routes, rounds, np.random.default_rng(seed)))


def _senders(
    routes: Sequence[int], rounds: int, random: np.random.Generator
) -> Iterator[tuple[int, list[Instruction]]]:
    sizes = random.integers(MESSAGE // 2, MESSAGE + MESSAGE // 2, (len(routes), rounds)).tolist()
    for node, route in enumerate(routes):
        yield node, [("send", route, size) for size in sizes[node]]


def _shared_gossip(nodes: int) -> Workload:
    return gossip(nodes, shared=True)


def _short_ring(nodes: int) -> Workload:
    return ring_on_fat_tree(nodes, steps=64)


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "gossip, full-duplex NIC": gossip,
    "gossip, shared NIC": _shared_gossip,
    "parameter server": parameter_server,
    "ring on a fat tree, 64 steps": _short_ring,
    "ring on a fat tree": ring_on_fat_tree,
    "ring on a star": ring_on_star,
}
"""The workloads of the comparison with SimGrid, by title, for a number of nodes."""
