"""An emulated cluster: the scenario's topology as network namespaces on one Linux machine.

Every node is a namespace and every edge a pair of virtual Ethernet devices, with a token bucket on both
ends at the rate of the link. What is neither a source nor a destination forwards. Routes are static and
those of :class:`topologies.Router`; where two sources take different ways to one destination, a node routes
by the source as well. The two directions of a half-duplex edge share one token bucket.

Links lose nothing, like those of the fabrics that GPU clusters have (InfiniBand's credits, RoCE with priority
flow control): senders' buffers are small, and so bound what waits in a port. What decides whether the rates
come out right, with what was seen without it:

- acknowledgements first, and windows of little more than the round trip: behind the frames of messages the
  other way acknowledgements come late and in bunches. One message each way then loses 8 to 13 % of a link,
  two 7 %, four 4 %, a short one against several up to a third. First but with TCP's own large windows, many
  short messages lose 8 %; small windows without that let one against four lose two thirds. With both, 0.5 %
  is lost in any of these, at any size, and messages share a link equally to 0.2 % (instead of 14 %);
- frames of 9,000 bytes, no segmentation offload, and a burst of at least two frames: two processors are
  saturated by 8 x 200 Mb/s in frames of 1,500 bytes, and one offloaded segment exceeds a small bucket;
- permanent neighbour entries: proxy ARP answers after a random delay, seconds when ranks connect.

A node has one address, that of its loopback device, so that connections do not depend on the edge that a
message leaves by. No namespace is connected to the machine's own network, and none has a name (see
:mod:`simulator.execution.namespaces`): when the last process of an emulation has ended, however that came
about, nothing is left of it, and two emulations never meet.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import ipaddress
import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import topologies
from simulator.execution.disturbance import STALLED, Disturbances, changes, kick
from simulator.execution.execute import assembled, check_executable, check_patience, check_stragglers
from simulator.execution.namespaces import (
    FEATURES,
    Namespace,
    acknowledgements_first,
    apart,
    check_rights,
    missing_features,
    netlink,
    redirect,
)
from simulator.execution.watch import PATIENCE
from simulator.faults import RunStuck
from simulator.parts import BadInput
from simulator.run import Met, Progress, Run
from simulator.stragglers import SlowLink

if TYPE_CHECKING:
    from simulator.scenario import Scenario
    from topologies import LinkSpec

MTU = 9000
"""Bytes of the largest packet."""

_FRAME = MTU + 14
_BURST = 1e-3
"""Seconds at a link's rate that its token bucket holds, unless that is less than two frames."""
_LAG = 0.5e-3
"""Seconds that a sender may wait for a processor while what it has sent keeps its link busy."""
_BUFFERS = (2**17, 2**26)
"""Bytes of a sender's buffer, the kernel's records included: at least, a dozen frames, and at most."""
_RECEIVED = 2**25
"""Bytes that a receiver's buffer may grow to by the kernel's own choice."""
_SHAPED = 2.0**32
"""Bytes/s from which on a token bucket cannot hold a rate; such links are as fast as the machine."""
_CARRIED = 250e6
"""Bytes/s above which the processors may carry less than a link's rate."""
_BUCKET = "10:"
"""The handle of a token bucket."""
_ORDER = "20:"
"""The handle of the two queues in it."""
_TABLES = 1000
"""Routing tables from here on lead to one neighbour each."""
_ONLINK = 4  # RTNH_F_ONLINK: the next hop is at the other end, although no network of its address is here
_PERMANENT = 0x80  # NUD_PERMANENT

LINKS = "lossless, acknowledgements first"
"""How links carry messages, for whoever reads a run."""

SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_timestamps": "1",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_rto_max_ms": "1000",
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
}
"""What namespaces have below /proc/sys/net in any network: they forward, and connections remember nothing.

Where a link comes back that had failed, what was lost as it failed is sent again within a second, on kernels
that have such a limit (Linux 6.15 and later); elsewhere TCP may wait for as long again as the link was away.
"""


def conditions(scenario: Scenario) -> dict[str, Any]:
    """Return what times in an emulation depend on besides the scenario, as far as data can say it."""
    return {
        "links": LINKS,
        "packets": MTU,
        "burst": _BURST,
        "settings": settings(Layout.of(scenario), delays=True),
    }


# What is to be built, as data.


@dataclass(frozen=True)
class Cable:
    """An edge of the topology, between two nodes by their numbers.

    Attributes
    ----------
    ends
        The two nodes.
    rates
        Bytes/s from the first end to the second, and back; None where there is no link.
    delays
        The links' latencies in seconds.
    half
        Whether both directions share one rate.
    """

    ends: tuple[int, int]
    rates: tuple[float | None, float | None]
    delays: tuple[float, float]
    half: bool = False

    def toward(self, node: int) -> tuple[float, float]:
        """Return the rate in bytes/s and the latency in seconds of the link that leads to one of the ends."""
        direction = 0 if node == self.ends[1] else 1
        rate = self.rates[direction]
        assert rate is not None
        return rate, self.delays[direction]

    def slowed(self, factors: Mapping[frozenset[int], float]) -> Cable:
        """Return this cable with the part of its rates that is left; ``factors`` by the two ends."""
        factor = factors.get(frozenset(self.ends), 1.0)
        there, back = (None if rate is None else rate * factor for rate in self.rates)
        return dataclasses.replace(self, rates=(there, back))


@dataclass(frozen=True)
class Forwarding:
    """What one node does with packets that are not for it.

    Attributes
    ----------
    routes
        Destination -> next node.
    exceptions
        (source, destination) -> next node, where a source takes another way than the routes do.
    """

    routes: Mapping[int, int]
    exceptions: Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Layout:
    """A network of namespaces.

    Attributes
    ----------
    nodes
        The topology's nodes; everything else calls them by their place in this list.
    cables
        Its edges.
    forwarding
        By node.
    ranks
        The node of each worker.
    ways
        The rate in bytes/s and the latency in seconds of each route between two workers.
    """

    nodes: tuple[Hashable, ...]
    cables: tuple[Cable, ...]
    forwarding: tuple[Forwarding, ...]
    ranks: tuple[int, ...]
    ways: frozenset[tuple[float, float]]

    @classmethod
    def of(cls, scenario: Scenario) -> Layout:
        """Return the network that a scenario describes."""
        cluster = scenario.cluster
        nodes = tuple(cluster.graph)
        number = _numbered(nodes)
        ranks = tuple(number[node] for node in cluster.nodes)
        used = sorted(set(ranks))
        found = {
            (source, destination): cluster.router.route(nodes[source], nodes[destination])
            for source in used
            for destination in used
            if source != destination
        }
        paths = {ends: [number[head] for _, head in route] for ends, route in found.items()}
        slowed: dict[frozenset[int], float] = {}
        for part in filter(_always_slow, scenario.stragglers):
            ends = frozenset(number[cluster.node(end)] for end in part.between)
            slowed[ends] = slowed.get(ends, 1.0) * part.factor
        cables = tuple(cable.slowed(slowed) for cable in _cables(cluster.graph, number))
        between = {frozenset(cable.ends): cable for cable in cables}
        ways = frozenset(
            _way([between[frozenset((number[a], number[b]))].toward(number[b]) for a, b in route])
            for route in found.values()
        )
        return cls(nodes, cables, _forwarding(len(nodes), paths), ranks, ways)

    @property
    def needs(self) -> frozenset[str]:
        """Features of the kernel without which this network cannot stand."""
        needed = {"veth", "tbf", "htb"}
        if any(cable.half for cable in self.cables):
            needed.add("ifb")
        if any(node.exceptions for node in self.forwarding):
            needed.add("policy routing")
        return frozenset(needed)

    @property
    def delayed(self) -> bool:
        """Whether any link has a latency."""
        return any(delay > 0 for cable in self.cables for delay in cable.delays)


def _numbered(nodes: Sequence[Hashable]) -> dict[Hashable, int]:
    return {node: index for index, node in enumerate(nodes)}


def _way(links: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return rate and latency of a route of links."""
    rates, delays = zip(*links, strict=True)
    return min(rates), math.fsum(delays)


def _always_slow(part: object) -> TypeGuard[SlowLink]:
    return isinstance(part, SlowLink) and part.start == 0 and part.end == math.inf


def _cables(graph: topologies.Graph, number: Mapping[Hashable, int]) -> tuple[Cable, ...]:
    found: dict[frozenset[int], Cable] = {}
    for tail, head in graph.edges():
        ends = (number[tail], number[head])
        if frozenset(ends) not in found:
            there = topologies.link_spec(graph, tail, head)
            back = topologies.link_spec(graph, head, tail) if graph.has_edge(head, tail) else None
            found[frozenset(ends)] = _cable(ends, there, back)
    return tuple(found.values())


def _cable(ends: tuple[int, int], there: LinkSpec, back: LinkSpec | None) -> Cable:
    rates = (there.capacity, None if back is None else back.capacity)
    delays = (float(there.latency), 0.0 if back is None else float(back.latency))
    return Cable(ends, rates, delays, there.duplex == "half")


def _forwarding(nodes: int, paths: Mapping[tuple[int, int], Sequence[int]]) -> tuple[Forwarding, ...]:
    """Return what each node does so that every packet takes the path of its source and destination."""
    routes: list[dict[int, int]] = [{} for _ in range(nodes)]
    exceptions: list[dict[tuple[int, int], int]] = [{} for _ in range(nodes)]
    # What a node sends itself goes by its routes: the source is not known yet when they are looked up.
    for (source, destination), path in paths.items():
        routes[source][destination] = path[0]
    for (source, destination), path in paths.items():
        for node, following in itertools.pairwise(path):
            if routes[node].setdefault(destination, following) != following:
                exceptions[node][source, destination] = following
    return tuple(map(Forwarding, routes, exceptions))


# Building it.


def address(node: int) -> str:
    """Return a node's address; it means nothing outside of its emulation."""
    return str(ipaddress.IPv4Address("10.0.0.1") + node)


def _hardware(cable: int, end: int) -> str:
    """Return the hardware address of an end of a cable."""
    digits = f"{2 * cable + end:08x}"
    return ":".join(["02", "00", *(digits[k : k + 2] for k in range(0, 8, 2))])


@dataclass(frozen=True)
class Network:
    """An emulated network that stands.

    Attributes
    ----------
    layout
        What it is.
    namespaces
        Of each node.
    left_out
        What of the scenario's network is not emulated, in words.
    delays
        Whether latencies are emulated.
    """

    layout: Layout
    namespaces: tuple[Namespace, ...]
    left_out: tuple[str, ...]
    delays: bool

    @property
    def sites(self) -> tuple[Namespace, ...]:
        """The namespace of each worker."""
        return tuple(self.namespaces[node] for node in self.layout.ranks)

    def cut(self, tail: Hashable, head: Hashable) -> None:
        """Cut the edge between two nodes: from now on it carries nothing, and no route leads around it.

        Raises
        ------
        KeyError
            There is no such edge.
        """
        number = _numbered(self.layout.nodes)
        ends = frozenset((number[tail], number[head]))
        if ends not in {frozenset(cable.ends) for cable in self.layout.cables}:
            raise KeyError((tail, head))

        def down() -> None:
            self.namespaces[number[tail]].enter()
            with netlink() as ip:
                [device] = ip.link_lookup(ifname=_device(number[head]))
                ip.link("set", index=device, state="down")

        apart(down)

    def change_rate(self, ends: frozenset[int], factor: float) -> None:
        """Leave a part of the rate of the edge between two nodes, by their numbers; 0 lets it stall."""
        [cable] = [known for known in self.layout.cables if frozenset(known.ends) == ends]

        def change(end: int) -> None:
            node, neighbour = cable.ends[end], cable.ends[1 - end]
            self.namespaces[node].enter()
            with netlink() as ip:
                [device] = ip.link_lookup(ifname=_device(neighbour))
                _shape(ip, device, cable, end, self.delays, factor)
            kick(_device(neighbour))

        for end in (0, 1):
            apart(functools.partial(change, end))

    def facts(self) -> dict[str, Any]:
        """Return what a run's summary says of it."""
        return {
            "nodes": len(self.layout.nodes),
            "edges": len(self.layout.cables),
            "links": LINKS,
            "left_out": list(self.left_out),
        }


@contextmanager
def emulated(scenario: Scenario) -> Iterator[Network]:
    """Let the network of a scenario stand for a while.

    Raises
    ------
    BadInput
        This process may not make it, or the kernel lacks something that it needs.
    """
    check_rights()
    layout = Layout.of(scenario)
    missing = missing_features()
    check_features(layout, missing)
    delays = "netem" not in missing
    with ExitStack() as held:
        namespaces = apart(lambda: _built(layout, delays, held))
        yield Network(layout, namespaces, left_out(scenario, layout, delays), delays)


def check_features(layout: Layout, missing: frozenset[str]) -> None:
    """Refuse where the kernel lacks what a network needs.

    Raises
    ------
    BadInput
        It names all that is missing, with the options of the kernel's configuration.
    """
    lacking = [feature for feature in FEATURES if feature in missing & layout.needs]
    if lacking:
        named = "; ".join(f"{feature} ({FEATURES[feature]})" for feature in lacking)
        raise BadInput("cluster.topology", f"this kernel cannot emulate it, because it lacks {named}")


def left_out(scenario: Scenario, layout: Layout, delays: bool) -> tuple[str, ...]:
    """Return in words what of a scenario's network and devices is not emulated."""
    found = []
    if layout.delayed and not delays:
        found.append(f"latencies, because this kernel lacks netem ({FEATURES['netem']})")
    rates = [rate for cable in layout.cables for rate in cable.rates if rate is not None]
    if any(rate >= _SHAPED for rate in rates):
        found.append("limits of links above 34 Gbps, which are as fast as this machine")
    elif any(rate > _CARRIED for rate in rates):
        found.append("nothing of links above 2 Gbps, but the processors of this machine may carry less")
    if _wanted(layout, delays) > _BUFFERS[1]:
        found.append("the full rate over round trips in which a link carries more than 32 MiB")
    if scenario.sections.cluster.background:
        found.append("background traffic")
    if scenario.execution.compute == "emulated" and any(d.interference > 1 for d in scenario.cluster.devices):
        found.append("the interference of transfers with computations")
    return tuple(found)


def _built(layout: Layout, delays: bool, held: ExitStack) -> tuple[Namespace, ...]:
    """Build a network, in a thread that ends afterwards."""
    made = []
    for _ in layout.nodes:
        made.append(Namespace.new())
        held.callback(made[-1].close)
    for index, cable in enumerate(layout.cables):
        _lay(index, cable, made)
    for node, namespace in enumerate(made):
        namespace.enter()
        _configure(node, layout, delays)
    return tuple(made)


def _lay(index: int, cable: Cable, namespaces: Sequence[Namespace]) -> None:
    """Make a pair of devices, one in the namespace of each end."""
    first, second = cable.ends
    namespaces[first].enter()
    with netlink() as ip:
        ip.link(
            "add",
            kind="veth",
            ifname=_device(second),
            address=_hardware(index, 0),
            mtu=MTU,
            peer={
                "ifname": _device(first),
                "address": _hardware(index, 1),
                "mtu": MTU,
                "net_ns_fd": namespaces[second].descriptor,
            },
        )


def settings(layout: Layout, delays: bool) -> dict[str, str]:
    """Return what every namespace of a network has below /proc/sys/net."""
    buffer = buffer_bytes(layout, delays)
    buffers = {
        "ipv4/tcp_wmem": f"4096 {buffer} {buffer}",
        "ipv4/tcp_rmem": f"4096 131072 {max(_RECEIVED, buffer)}",
    }
    return SETTINGS | buffers


def buffer_bytes(layout: Layout, delays: bool) -> int:
    """Return the bytes that a sender may have under way, with the kernel's own records of them.

    Records are as much again, at most. So each route is kept busy over its round trip and while the sender
    waits for a processor; anything more would only wait in a port.

    Parameters
    ----------
    layout
        The network.
    delays
        Whether its latencies are emulated.
    """
    least, most = _BUFFERS
    return round(min(max(least, _wanted(layout, delays)), most))


def _wanted(layout: Layout, delays: bool) -> float:
    """Return the bytes that keep each route busy."""
    lags = ((rate, _LAG + (2 * latency if delays else 0.0)) for rate, latency in layout.ways)
    return max((2 * min(rate, _SHAPED) * lag for rate, lag in lags), default=0.0)


def _device(neighbour: int) -> str:
    """Return the name of the device that leads to a neighbour."""
    return f"to{neighbour}"


def _configure(node: int, layout: Layout, delays: bool) -> None:
    """Configure the namespace of a node, which this thread is in."""
    for key, value in settings(layout, delays).items():
        # A kernel without IPv6 has no settings for it, and needs none; older ones lack others.
        with suppress(FileNotFoundError):
            Path("/proc/sys/net", key).write_text(value)
    with netlink() as ip:
        [loopback] = ip.link_lookup(ifname="lo")
        ip.link("set", index=loopback, state="up")
        # One address alone, so that whatever asks for this node's finds the right one.
        ip.flush_addr(index=loopback)
        ip.addr("add", index=loopback, address=address(node), prefixlen=32)
        devices = {
            neighbour: _connect(ip, index, cable, node, neighbour, delays)
            for index, cable in enumerate(layout.cables)
            for neighbour in cable.ends
            if node in cable.ends and neighbour != node
        }
        _route(ip, node, layout.forwarding[node], devices)


def _connect(ip: Any, index: int, cable: Cable, node: int, neighbour: int, delays: bool) -> int:
    """Take one end of a cable into use and return the number of its device."""
    from pyroute2.ethtool.ioctl import IoctlEthtool

    end = cable.ends.index(node)
    name = _device(neighbour)
    [device] = ip.link_lookup(ifname=name)
    ethtool = IoctlEthtool(name)
    for offload in ("tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload"):
        ethtool.set_offload_flag(offload, 0)
    ethtool.close()
    ip.link("set", index=device, state="up")
    ip.neigh(
        "add",
        dst=address(neighbour),
        lladdr=_hardware(index, 1 - end),
        ifindex=device,
        state=_PERMANENT,
    )
    if delays and cable.delays[end] > 0:
        # Any number of packets may be on their way.
        microseconds = round(1e6 * cable.delays[end])
        ip.tc("add", "netem", index=device, handle="1:", delay=microseconds, limit=10**6)
    if cable.half and end == 0:
        shared = redirect(ip, device, f"half{neighbour}")
        ip.link("set", index=shared, mtu=MTU, state="up")
    _shape(ip, device, cable, end, delays)
    return int(device)


def _shape(ip: Any, device: int, cable: Cable, end: int, delays: bool, factor: float = 1.0) -> None:
    """Let what leaves by one end of a cable have a part of the cable's rate, by a token bucket."""
    full = cable.rates[end]
    if full is None or (cable.half and end == 1):
        return
    parent = {}
    if cable.half:
        [device] = ip.link_lookup(ifname=f"half{cable.ends[1]}")
    elif delays and cable.delays[end] > 0:
        parent = {"parent": "1:1"}
    rate = max(factor * full, STALLED)
    if rate < _SHAPED:
        _limit(ip, device, rate, **parent)
    else:
        _leave(ip, device, **parent)


def _limit(ip: Any, device: int, rate: float, **parent: str) -> None:
    """Put a token bucket before a device, or change its rate, in bytes/s; what waits in it stays."""
    burst = max(round(rate * _BURST), 2 * _FRAME)
    # The limit is of a queue that the bucket does not have: acknowledgements_first has two.
    sizes = {"rate": round(rate), "burst": burst, "limit": burst}
    ip.tc("replace", "tbf", index=device, handle=_BUCKET, **sizes, **parent)
    if "htb" not in {queue.get_attr("TCA_KIND") for queue in ip.get_qdiscs(index=device)}:
        acknowledgements_first(ip, device, f"{_BUCKET}1", _ORDER)


def _leave(ip: Any, device: int, **parent: str) -> None:
    """Take the token bucket from a device, if it has one."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        where: dict[str, Any] = {**parent} or {"root": True}
        ip.tc("del", index=device, handle=_BUCKET, **where)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.EINVAL):
            raise


def _route(ip: Any, node: int, forwarding: Forwarding, devices: Mapping[int, int]) -> None:
    """Set the routes of a node, whose devices are given by neighbour."""

    def by(neighbour: int) -> dict[str, Any]:
        return {
            "gateway": address(neighbour),
            "oif": devices[neighbour],
            "flags": _ONLINK,
        }

    for destination, neighbour in forwarding.routes.items():
        ip.route("add", dst=f"{address(destination)}/32", prefsrc=address(node), **by(neighbour))
    for neighbour in sorted(set(forwarding.exceptions.values())):
        ip.route("add", dst="default", table=_TABLES + neighbour, **by(neighbour))
    for (source, destination), neighbour in forwarding.exceptions.items():
        ip.rule(
            "add",
            src=address(source),
            src_len=32,
            dst=address(destination),
            dst_len=32,
            table=_TABLES + neighbour,
            priority=100,
        )


# Running a scenario in it.


def emulate(
    scenario: Scenario,
    progress: Progress | None = None,
    patience: float = PATIENCE,
    met: Met | None = None,
) -> Run:
    """Run a scenario on the wall clock, its workers in an emulated network of the scenario's topology.

    Parameters
    ----------
    scenario
        As for :func:`simulator.execution.execute`.
    progress
        Told how much is done, from 0 to 1, in this thread.
    patience
        Seconds without any progress, or without a word of a rank, after which the run is ended.
    met
        Told the host and the device of each rank, always the CPU, and what carries their collectives.

    Returns
    -------
    The run, with ``clock`` "wall" and its ``emulation`` described.

    Raises
    ------
    BadInput
        The scenario cannot be executed, this process is not root's, or the kernel lacks something.
    AlgorithmError
        The algorithm breaks a rule of the seam.
    WorkerFailed
        A worker raised an error or was killed; all have been ended.
    RunStuck
        The patience is over; all have been ended.
    LinkStuck
        The kernel refuses to change a link; all have been ended.
    """
    check_rights()
    check_executable(scenario)
    check_patience(patience)
    check_stragglers(scenario, patience, emulated=True)
    from simulator.execution import launch

    with emulated(scenario) as network:
        links = Disturbances(network, changes(scenario, _numbered(network.layout.nodes)))
        try:
            records = launch.launch(
                scenario,
                progress,
                patience,
                met=met,
                sites=network.sites,
                started=links.begin,
                check=links.check,
            )
        except RunStuck as stuck:
            raise RunStuck("; ".join(filter(None, (str(stuck), links.failed())))) from None
        finally:
            links.end()
        links.check()
    if progress is not None:
        progress(1.0)
    return dataclasses.replace(assembled(scenario, records), emulation=network.facts())
