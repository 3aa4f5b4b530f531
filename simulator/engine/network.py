"""The network of a simulated cluster: links, routes and devices as links of the core.

Every directed edge of the topology is a link (a half-duplex edge is one link for both directions). A
computation is a flow of seconds of work. A GPU that slows down for a while, or that several workers share, is
a link of capacity 1 for that, so that its sharing is that of links; on any other a computation is a flow that
nothing can slow down, which takes the same time with nothing to solve. A message between two ranks is a flow
over its route; it pays the part of the path's latency that the transport says, and competes with a weight
drawn from a log-normal distribution where the transport's shares have a spread; that is divided by the path's
latency where fairness is by round trips. Where links store and forward, messages go over links of that kind,
which have the same numbers, and only computations are flows.

A worker that stops for a while is a link as well, of more than enough capacity, which all its computations
and messages cross; while it is out, that link has failed.

Where transfers go around a failed link, what is under way takes its new way with what it has left: of its
size, and of its latency, which it pays once, whatever that of the new way.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np

import topologies
from simulator.cluster import Cluster
from simulator.engine import storeforward
from simulator.engine.clock import Clock
from simulator.engine.fairshare import Route
from simulator.networks import StoreAndForward
from simulator.run import LinkUse
from simulator.scenario import Scenario
from simulator.sections import Background
from simulator.stragglers import Bursts, Crash, LinkFailure, SlowLink
from simulator.transports import Fixed, Transport, Use

Done = Callable[[], object]

AMPLE = 1e100
"""The capacity of a worker that is a link: what crosses nothing else takes no time."""

_SHARES = zlib.crc32(b"shares")
"""Names the streams of random numbers of messages' weights."""


class Path(NamedTuple):
    """The way of a message: link numbers, and the latency of all of them in seconds."""

    links: tuple[int, ...]
    latency: float


@dataclass(slots=True)
class Message:
    """What is under way: a message, or traffic that is not ours.

    Attributes
    ----------
    find
        Returns its present way.
    done
        Called when its last byte has arrived.
    begins
        When it has paid its latency.
    weight
        With which it competes for links.
    cap
        Bytes/s that it never exceeds.
    flow, way
        What carries it at present.
    """

    find: Callable[[], Path]
    done: Done
    begins: float
    weight: float = 1.0
    cap: float = math.inf
    flow: int = -1
    way: Path | None = None


class Network:
    """The links of a cluster in the core of a clock.

    Parameters
    ----------
    clock
        What everything runs on.
    scenario
        Gives the cluster, the transport and what disturbs them.
    monitor
        Whether the load of every link is recorded as it changes.
    """

    def __init__(self, clock: Clock, scenario: Scenario, monitor: bool = True) -> None:
        self.clock = clock
        self.transport = scenario.transport
        self._cluster: Cluster = scenario.cluster
        self._table = topologies.link_table(scenario.graph)
        self._capacity: dict[int, float] = {}  # of links that have another one than the topology says
        self._monitor = monitor
        self._forwarding = self._forwarding_links(scenario.network)
        for capacity, latency in zip(self._table.capacity, self._table.latency, strict=True):
            link = clock.core.add_link(capacity, latency)
            if monitor and self._forwarding is None:
                clock.core.watch(link)
        if isinstance(self.transport, Transport) and self.transport.cross_traffic:
            self._cross(self.transport.cross_traffic)
        self._paths: dict[tuple[int, int], Path] = {}
        self._router = self._cluster.router
        self._around: list[tuple[Hashable, Hashable]] = []
        failures = [entry for entry in scenario.stragglers if isinstance(entry, LinkFailure)]
        self._reroutes = any(failure.transfers == "reroute" for failure in failures)
        self._under_way: dict[int, Message] = {}
        self.rerouted: list[Done] = []
        self._pair_links: dict[tuple[int, int], int] = {}
        self._seed = scenario.cluster_seed
        self._shares: dict[tuple[int, int], np.random.Generator] = {}
        self._devices: dict[Hashable, int] = {}
        self._bursting: dict[int, float] = {}
        self._moving: dict[int, int] = {}
        self._on: dict[int, list[int]] = {}
        self.interferes = any(device.interference > 1 for device in self._cluster.devices)
        self._own: dict[int, int] = {}  # the link of a worker that has outages
        self._failed: Counter[int] = Counter()
        self._add_devices(scenario.stragglers)
        self._add_outages([s for s in scenario.stragglers if isinstance(s, Crash) and s.returns])
        self._daemons = 0
        for flow in scenario.sections.cluster.background:
            self._add_background(flow)
        for straggler, stream in zip(scenario.stragglers, scenario.streams, strict=True):
            if isinstance(straggler, SlowLink):
                self._add_slow_link(straggler)
            elif isinstance(straggler, LinkFailure):
                self._add_failure(straggler)
            elif isinstance(straggler, Bursts):
                self._add_bursts(straggler, [self._seed, *stream])

    def _cross(self, loss: float) -> None:
        """Let the links between nodes without workers lose capacity while messages go both ways."""
        ends = set(self._cluster.nodes)
        for (tail, head), link in self._table.index.items():
            back = self._table.index.get((head, tail), link)
            if link < back and not {tail, head} & ends:
                self.clock.core.cross(link, back, loss)

    def _forwarding_links(self, network: object) -> storeforward.StoreAndForward | None:
        """Return the links as such that store and forward, where the scenario wants that."""
        if not isinstance(network, StoreAndForward):
            return None
        assert isinstance(self.transport, Transport)
        self._chunk = network.chunk
        links = storeforward.StoreAndForward(self.clock, whole_nanoseconds=network.whole_nanoseconds)
        for capacity, latency in zip(self._table.capacity, self._table.latency, strict=True):
            links.add_link(capacity, self.transport.latency_factor * latency)
        return links

    def _add_devices(self, stragglers: Sequence[object]) -> None:
        """Add a link for each GPU on which a computation does not always run at full speed."""
        nodes = self._cluster.nodes
        users = Counter(nodes)
        slowed = [straggler for straggler in stragglers if isinstance(straggler, Bursts)]
        for rank, node in enumerate(nodes):
            works = rank < self._cluster.workers
            disturbed = users[node] > 1 or (works and any(straggler.concerns(rank) for straggler in slowed))
            disturbed = disturbed or self._cluster.devices[rank].interference > 1
            if disturbed and node not in self._devices:
                self._devices[node] = self.clock.core.add_link(1.0)
            if disturbed:
                self._on.setdefault(self._devices[node], []).append(rank)

    def _add_outages(self, outages: Sequence[Crash]) -> None:
        """Add a link for each worker that is out for a while, and let it fail then."""
        for rank in range(self._cluster.workers):
            for outage in outages:
                if outage.concerns(rank):
                    if rank not in self._own:
                        self._own[rank] = self.clock.core.add_link(AMPLE)
                        self._capacity[self._own[rank]] = AMPLE
                    self._between(outage.at, outage.back, self._own[rank])

    def _between(self, start: float, end: float, *links: int) -> None:
        """Let links carry nothing for a time; of several such times the last to end brings them back."""

        def fail() -> None:
            self._failed.update(links)
            for link in links:
                self.clock.core.fail(link)

        def restore() -> None:
            self._failed.subtract(links)
            for link in links:
                self._settle(link)

        self.clock.at(start, fail)
        if end < math.inf:
            self.clock.at(end, restore)

    def _settle(self, link: int) -> None:
        """Give a link its present capacity, unless it has failed."""
        if not self._failed[link]:
            self.clock.core.set_capacity(link, self._usual(link))

    def _usual(self, link: int) -> float:
        """Return the capacity of a link that has not failed."""
        return self._capacity[link] if link in self._capacity else self._table.capacity[link]

    def own(self, *ranks: int) -> tuple[int, ...]:
        """Return the links of those of the workers that are links themselves, because they have outages."""
        return tuple(self._own[rank] for rank in ranks if rank in self._own)

    @property
    def one_by_one(self) -> bool:
        """Whether the transfers of a stepped collective are messages, since the core cannot run them."""
        return self._reroutes or self._forwarding is not None

    def device(self, rank: int) -> int:
        """Return the link that stands for a worker's GPU, where there is one."""
        return self._devices[self._cluster.nodes[rank]]

    def device_route(self, rank: int, shared: bool = False) -> tuple[Route, float]:
        """Return the route of a worker's computations, and the rate that they never exceed without a link.

        ``shared`` ones of a worker with several tasks have a link.
        """
        node = self._cluster.nodes[rank]
        if shared and node not in self._devices:
            self._devices[node] = self.clock.core.add_link(1.0)
        link = self._devices.get(node)
        if link is None:
            return self.clock.core.add_route(self.own(rank)), 1.0
        return self.clock.core.add_route((link, *self.own(rank))), math.inf

    def moving(self, rank: int, change: int) -> None:
        """Note that transfers of a worker begin (1) or have ended (-1), which slow its computations down.

        Called only where ``interferes``.
        """
        before = self._moving.get(rank, 0)
        self._moving[rank] = before + change
        if bool(before) != bool(before + change) and self._cluster.devices[rank].interference > 1:
            self._set_speed(self.device(rank))

    def _set_speed(self, link: int) -> None:
        """Set the capacity of a GPU from its bursts and from the transfers of its workers."""
        moving = [rank for rank in self._on.get(link, ()) if self._moving.get(rank)]
        slowdown = max((self._cluster.devices[rank].interference for rank in moving), default=1.0)
        self.clock.core.set_capacity(link, self._bursting.get(link, 1.0) / slowdown)

    def path(self, source: int, destination: int) -> Path:
        """Return the way between two ranks."""
        found = self._paths.get((source, destination))
        if found is None:
            found = self._paths[source, destination] = self._find_path(source, destination)
        return found

    def _find_path(self, source: int, destination: int) -> Path:
        nodes = self._cluster.nodes
        if nodes[source] == nodes[destination]:
            return Path((), 0.0)
        return self._path_between(nodes[source], nodes[destination])

    def _path_between(self, source: Hashable, destination: Hashable) -> Path:
        try:
            route = self._router.route(source, destination)
        except ValueError:
            # There is no way around what failed: the transfer waits for it.
            route = self._cluster.router.route(source, destination)
        links = tuple(dict.fromkeys(self._table.index[edge] for edge in route))
        return Path(links, math.fsum(self._table.latency[link] for link in links))

    def send(
        self,
        source: int,
        destination: int,
        nbytes: float,
        done: Done,
        *,
        use: Use = "channel",
        called: float | None = None,
    ) -> None:
        """Start a message of a channel, an exchange or a stepped collective.

        ``done`` is called when all has arrived. A message that has waited for the one before it has been
        paying its latency since it was ``called``.
        """
        transport = self.transport
        if isinstance(transport, Fixed):
            self.clock.at(self.clock.now + transport.exchange, done)
            return
        if self._forwarding is not None:
            links = self.path(source, destination).links
            self._forwarding.send(links, nbytes / transport.payload_share, done, chunk=self._chunk)
            return
        latency = transport.latencies(use) * self.path(source, destination).latency
        weight = 1.0
        if use == "collective":
            latency += nbytes / transport.handling_rate
        elif transport.share_spread:
            weight = self._weight(source, destination)
        begins = (self.clock.now if called is None else called) + latency
        way = functools.partial(self.message_way, source, destination)
        self._start(Message(way, done, begins, weight), nbytes / transport.payload(use))

    def _weight(self, source: int, destination: int) -> float:
        """Draw the weight of the next message between two ranks."""
        assert isinstance(self.transport, Transport)
        pair = source, destination
        if pair not in self._shares:
            self._shares[pair] = np.random.default_rng([self._seed, _SHARES, *pair])
        return float(np.exp(self._shares[pair].normal(0.0, self.transport.share_spread)))

    def _start(self, message: Message, size: float) -> None:
        """Start a message, or what is left of it, over its present way; its size is what its links carry."""
        done = message.done
        if self._reroutes:
            key = id(message)
            self._under_way[key] = message

            def done() -> None:
                del self._under_way[key]
                message.done()

        message.way = message.find()
        message.flow = self.clock.flow(
            message.way.links,
            size,
            done,
            weight=message.weight,
            cap=message.cap,
            path_latency=message.way.latency,
            at=max(self.clock.now, message.begins),
            latency=0.0,
        )

    def message_way(self, source: int, destination: int) -> Path:
        """Return what a message loads, and the latency of its path.

        These are the links of the path, the connection where that is one link, and those of its two workers
        that have outages.
        """
        links, latency = self.path(source, destination)
        transport = self.transport
        assert isinstance(transport, Transport)
        if links and transport.half_duplex_pairs:
            links = (*links, self._pair_link(source, destination))
        return Path((*links, *self.own(source, destination)), latency)

    def _pair_link(self, source: int, destination: int) -> int:
        """Return the link that both directions between a pair of ranks share: their connection.

        It is as fast as the slowest link of their present paths when nothing disturbs it; what slows the
        links themselves for a while is theirs.
        """
        pair = (min(source, destination), max(source, destination))
        if pair not in self._pair_links:
            self._pair_links[pair] = self.clock.core.add_link(self._pair_capacity(*pair))
        return self._pair_links[pair]

    def _pair_capacity(self, source: int, destination: int) -> float:
        there, back = self.path(source, destination).links, self.path(destination, source).links
        return min(self._table.capacity[link] for link in (*there, *back))

    # What disturbs the links.

    def _add_background(self, flow: Background) -> None:
        ends = self._cluster.node(flow.source), self._cluster.node(flow.destination)

        def way() -> Path:
            return self._path_between(*ends)

        def begin() -> None:
            begins = self.clock.now + way().latency
            traffic = Message(way, lambda: None, begins, cap=flow.rate)
            self._start(traffic, math.inf)
            if flow.end < math.inf:
                self.clock.at(flow.end, lambda: self._stop(traffic))

        self.clock.at(flow.start, begin)

    def _stop(self, traffic: Message) -> None:
        self.clock.cancel(traffic.flow)
        self._under_way.pop(id(traffic), None)

    def _add_slow_link(self, straggler: SlowLink) -> None:
        u, v = (self._cluster.node(name) for name in straggler.between)
        links = {self._table.index[edge] for edge in ((u, v), (v, u)) if edge in self._table.index}

        def scale(factor: float) -> None:
            for link in sorted(links):
                self._capacity[link] = self._usual(link) * factor
                self._settle(link)

        self.clock.at(straggler.start, lambda: scale(straggler.factor))
        if straggler.end < math.inf:
            self.clock.at(straggler.end, lambda: scale(1 / straggler.factor))

    def _add_failure(self, failure: LinkFailure) -> None:
        u, v = (self._cluster.node(name) for name in failure.between)
        edges = [edge for edge in ((u, v), (v, u)) if edge in self._table.index]
        self._between(failure.start, failure.end, *sorted({self._table.index[edge] for edge in edges}))
        if failure.transfers == "stall":
            return

        def leave() -> None:
            self._around += edges
            self._find_ways()

        def come_back() -> None:
            for edge in edges:
                self._around.remove(edge)
            self._find_ways()

        self.clock.at(failure.start, leave)
        if failure.end < math.inf:
            self.clock.at(failure.end, come_back)

    def _find_ways(self) -> None:
        """Route anew around what has failed, what is under way included."""
        view = nx.restricted_view(self._cluster.graph, [], self._around)
        self._router = topologies.Router(view, self._cluster.router.policy)
        self._paths.clear()
        for pair, link in self._pair_links.items():
            self.clock.core.set_capacity(link, self._pair_capacity(*pair))
        for message in list(self._under_way.values()):
            if message.find() != message.way:
                self._start(message, self.clock.cancel(message.flow))
        for reroute in self.rerouted:
            reroute()

    def names(self, links: Iterable[int]) -> str:
        """Return links as the topology names them; what is no link of it is a device or a connection."""
        known = self._table.names
        return ", ".join(known[link] if link < len(known) else f"link {link}" for link in links)

    def _add_bursts(self, straggler: Bursts, stream: list[int]) -> None:
        """Switch the devices of the concerned workers between full and reduced capacity."""
        concerned = [rank for rank in range(self._cluster.workers) if straggler.concerns(rank)]
        first_on = {self.device(rank): rank for rank in reversed(concerned)}
        for link, rank in first_on.items():
            self._daemons += 1
            self._burst(link, straggler, np.random.default_rng([*stream, rank]), slow=False)

    def _burst(self, link: int, straggler: Bursts, random: np.random.Generator, slow: bool) -> None:
        def switch() -> None:
            core = self.clock.core
            factor = straggler.slowdown if slow else 1 / straggler.slowdown
            self._bursting[link] = self._bursting.get(link, 1.0) * factor
            self._set_speed(link)
            # With nothing else left that could happen, going on would hide a deadlock, or flows that have
            # stalled for good.
            going = core.live and core.next_time() < math.inf
            if going or self.clock.scheduled >= self._daemons:
                self._burst(link, straggler, random, not slow)

        self.clock.at(self.clock.now + straggler.sojourn(random, slow), switch)

    # What was seen.

    def link_use(self) -> LinkUse:
        """Return what each link carried, and when its load changed."""
        seen = self._forwarding or self.clock.core
        names = list(self._table.names)
        number: list[int] = []
        time: list[float] = []
        rate: list[float] = []
        if self._monitor:
            for link in range(len(names)):
                times, rates = seen.history(link)
                number += [link] * len(times)
                time += times
                rate += rates
        return LinkUse(
            name=names,
            capacity=list(self._table.capacity),
            carried=[seen.carried(link) for link in range(len(names))],
            change_link=number,
            change_time=time,
            change_rate=rate,
        )
