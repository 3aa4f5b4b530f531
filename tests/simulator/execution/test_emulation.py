"""The emulated network: its routes and settings, bits across it, and what is left when it has gone."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from simulator.engine.simulate import simulate
from simulator.execution import emulation, launch, namespaces
from simulator.execution.disturbance import STALLED, Change, changes
from simulator.execution.emulation import Cable, Forwarding, Layout, address, emulate, emulated, left_out
from simulator.execution.namespaces import Namespace, apart, netlink
from simulator.faults import LinkStuck, RunStuck, WorkerFailed
from simulator.parts import BadInput
from simulator.scenario import Scenario

ROOT = Path(__file__).parents[3]
LINK = {"bandwidth": "100 Mbps", "latency": "0 s"}


real = pytest.mark.usefixtures("_emulation")


def described(topology: dict[str, Any], algorithm: object = "d-psgd", **cluster: Any) -> Scenario:
    return Scenario(
        {
            "name": "emulated",
            "cluster": {"topology": topology, "device": "ideal", "transport": "gloo", **cluster},
            "workload": {
                "cost": {"parameters": 3000, "batch": 1, "gradient": "1 ms", "bucket-count": 2},
                "objective": {"kind": "quadratic", "dimension": 3001, "dtype": "float32"},
            },
            "algorithm": algorithm,
            "step-size": 0.1,
            "budget": {"iterations": 4},
            "seed": 5,
        }
    )


RING = {"builder": "ring", "nodes": 3, "link": LINK}


@pytest.mark.parametrize(
    ("rate", "latency", "delays", "buffer"),
    [
        ("100 Mbps", "0 s", True, 2**17),
        # Twice what a link carries in a round trip of two hops each way, and in half a millisecond.
        ("1 Gbps", "1 ms", True, 2 * 125e6 * 4.5e-3),
        ("1 Gbps", "1 ms", False, 2**17),
        ("10 Gbps", "0 s", False, 2 * 1.25e9 * 0.5e-3),
        ("10 Gbps", "10 ms", True, 2**26),
        # As fast as a token bucket can be.
        ("100 Gbps", "0 s", True, 2 * 2**32 * 0.5e-3),
    ],
)
def test_what_a_sender_may_have_under_way(rate: str, latency: str, delays: bool, buffer: float) -> None:
    link = {"bandwidth": rate, "latency": latency}
    layout = Layout.of(described({"builder": "switch", "gpus": 3, "link": link}))
    assert emulation.buffer_bytes(layout, delays) == round(buffer)


def test_fast_links_before_a_slow_one_add_nothing_to_what_is_under_way() -> None:
    fast, slow = {"bandwidth": "10 Gbps", "latency": "10 us"}, {"bandwidth": "1 Gbps", "latency": "2 ms"}
    topology = {"builder": "two-level", "hosts": 2, "gpus-per-host": 2, "inside": fast, "network": slow}
    scenario = described(topology)
    # Inside and between hosts.
    across = 125e6 * (2 * (2 * 10e-6 + 2 * 2e-3) + 0.5e-3)
    within = 1.25e9 * (2 * 2 * 10e-6 + 0.5e-3)
    layout = Layout.of(scenario)
    assert emulation.buffer_bytes(layout, True) == round(2 * max(across, within))
    assert emulation.buffer_bytes(layout, False) == round(2 * 1.25e9 * 0.5e-3)
    halved = described(
        topology, stragglers=[{"kind": "slow-link", "between": ["host0", "switch"], "factor": 0.5}]
    )
    assert {rate for rate, _ in Layout.of(halved).ways} == {1.25e9, 62.5e6}


def test_conditions_are_what_namespaces_have() -> None:
    conditions = emulation.conditions(described(RING))
    assert conditions["links"] == "lossless, acknowledgements first"
    assert conditions["packets"] == 9000
    assert conditions["settings"]["ipv4/tcp_wmem"] == "4096 131072 131072"
    assert conditions["settings"]["ipv4/tcp_rmem"] == "4096 131072 33554432"
    assert conditions["settings"]["ipv4/tcp_congestion_control"] == "reno"


class TestLayout:
    """What is to be built, without building it."""

    def test_a_chain_of_cables(self) -> None:
        graph = nx.Graph()
        graph.add_nodes_from(["a", "b"], kind="gpu")
        graph.add_node("s", kind="switch")
        graph.add_edge("a", "s", bandwidth=1e6, latency=1e-3, efficiency=0.5)
        graph.add_edge("s", "b", bandwidth=2e6, duplex="half")
        cables = emulation._cables(graph, {"a": 0, "b": 1, "s": 2})
        assert cables == (
            Cable((0, 2), (5e5, 5e5), (1e-3, 1e-3)),
            Cable((1, 2), (2e6, 2e6), (0.0, 0.0), half=True),
        )

    def test_arcs_of_one_pair_share_a_cable(self) -> None:
        graph = nx.DiGraph()
        graph.add_nodes_from(range(3), kind="gpu")
        for tail, head, rate in ((0, 1, 1e6), (1, 0, 2e6), (1, 2, 3e6), (2, 0, 4e6)):
            graph.add_edge(tail, head, bandwidth=rate)
        cables = emulation._cables(graph, {node: node for node in range(3)})
        assert cables == (
            Cable((0, 1), (1e6, 2e6), (0.0, 0.0)),
            Cable((1, 2), (3e6, None), (0.0, 0.0)),
            Cable((2, 0), (4e6, None), (0.0, 0.0)),
        )

    @pytest.mark.parametrize(
        ("topology", "cluster"),
        [
            ({"builder": "two-level", "hosts": 3, "gpus-per-host": 2}, {}),
            ({"builder": "torus", "dimensions": [4, 4]}, {}),
            ({"builder": "torus", "dimensions": [4, 4]}, {"routing": "ecmp"}),
            ({"builder": "fat-tree", "leaves": 3, "hosts-per-leaf": 1, "spines": 2}, {"routing": "ecmp"}),
            ({"builder": "random-regular", "nodes": 12, "degree": 3, "seed": 2}, {"workers": 8}),
            ({"builder": "exponential", "nodes": 8}, {"placement": "round-robin"}),
        ],
        ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
    )
    def test_packets_take_the_routes_of_the_simulation(
        self, topology: dict[str, Any], cluster: dict[str, Any]
    ) -> None:
        scenario = described(topology, "allreduce-sgd", **cluster)
        layout = Layout.of(scenario)
        router = scenario.cluster.router
        assert [layout.nodes[node] for node in layout.ranks] == list(scenario.cluster.nodes)
        for source in layout.ranks:
            for destination in layout.ranks:
                path, at = [], source
                while at != destination:
                    node = layout.forwarding[at]
                    following = node.exceptions.get((source, destination), node.routes[destination])
                    path.append((layout.nodes[at], layout.nodes[following]))
                    at = following
                assert tuple(path) == router.route(layout.nodes[source], layout.nodes[destination])

    def test_a_source_with_a_way_of_its_own_is_an_exception(self) -> None:
        paths = {(0, 3): [1, 2, 3], (1, 3): [4, 3]}
        found = emulation._forwarding(5, paths)
        assert found[1] == Forwarding({3: 4}, {(0, 3): 2})
        assert found[0] == Forwarding({3: 1}, {})

    def test_several_workers_of_one_gpu(self) -> None:
        assert Layout.of(described(RING, workers=3, placement=[0, 0, 2])).ranks == (0, 0, 2)

    def test_needs(self) -> None:
        assert Layout.of(described(RING)).needs == {"veth", "tbf", "htb"}
        half = {**RING, "link": {**LINK, "duplex": "half"}}
        assert Layout.of(described(half)).needs == {"veth", "tbf", "htb", "ifb"}
        torus = {"builder": "torus", "dimensions": [4, 4]}
        assert Layout.of(described(torus, routing="ecmp")).needs == {"veth", "tbf", "htb", "policy routing"}

    def test_addresses(self) -> None:
        assert [address(node) for node in (0, 254, 255)] == ["10.0.0.1", "10.0.0.255", "10.0.1.0"]
        assert emulation._hardware(128, 1) == "02:00:00:00:01:01"


class TestRefusals:
    """What is said where no network can be emulated."""

    def test_not_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(BadInput) as caught:
            emulate(described(RING))
        assert str(caught.value) == (
            "an emulated network needs root, because it makes network namespaces, but this process runs as "
            "user 1000; run it with sudo"
        )

    def test_without_pyroute2(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(namespaces.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(BadInput) as caught:
            emulate(described(RING))
        assert str(caught.value) == (
            "an emulated network needs pyroute2; install it with pip install pyroute2"
        )

    def test_without_features(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "check_rights", lambda: None)
        monkeypatch.setattr(emulation, "missing_features", lambda: frozenset({"tbf", "ifb", "netem"}))
        half = {**RING, "link": {**LINK, "duplex": "half"}}
        with pytest.raises(BadInput) as caught:
            emulate(described(half))
        assert str(caught.value) == (
            "cluster.topology: this kernel cannot emulate it, because it lacks tbf (CONFIG_NET_SCH_TBF); ifb "
            "(CONFIG_IFB, CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED)"
        )

    def test_what_is_left_out(self) -> None:
        flow = {"source": 0, "destination": 1, "rate": "1 Mbps"}
        ring = {"builder": "ring", "nodes": 3, "link": {"bandwidth": "40 Gbps", "latency": "1 ms"}}
        scenario = described(ring, background=[flow])
        assert left_out(scenario, Layout.of(scenario), delays=False) == (
            "latencies, because this kernel lacks netem (CONFIG_NET_SCH_NETEM)",
            "limits of links above 34 Gbps, which are as fast as this machine",
            "background traffic",
        )
        fast = described({"builder": "ring", "nodes": 3, "link": {"bandwidth": "10 Gbps", "latency": "1 ms"}})
        assert left_out(fast, Layout.of(fast), delays=True) == (
            "nothing of links above 2 Gbps, but the processors of this machine may carry less",
        )

    @pytest.mark.parametrize(
        ("compute", "sentences"),
        [("emulated", ("the interference of transfers with computations",)), ("objective", ())],
    )
    def test_interference_is_the_machines_own(self, compute: str, sentences: tuple[str, ...]) -> None:
        scenario = described(RING, device={"name": "h200", "interference": 1.5})
        scenario = scenario.vary(execution={"compute": compute})
        assert left_out(scenario, Layout.of(scenario), delays=True) == sentences

    def test_a_scenario_without_an_objective(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "check_rights", lambda: None)
        with pytest.raises(BadInput, match=r"^workload\.objective: an execution computes real gradients"):
            emulate(described(RING).vary({"workload.objective": None, "step-size": None}))

    def test_ways_around_a_failed_link(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(emulation, "check_rights", lambda: None)
        failing = {"kind": "link-failure", "between": [0, 1], "transfers": "reroute"}
        with pytest.raises(BadInput) as caught:
            emulate(described(RING, stragglers=[failing]))
        assert str(caught.value) == (
            "cluster.stragglers.0.transfers: the routes of an emulated network do not change; use 'stall'"
        )


class TestChanges:
    """What the links of a scenario do in time, as data."""

    def test_disturbances_of_one_link_at_a_time_multiply(self) -> None:
        link = {"between": [0, 1]}
        stragglers = [
            {"kind": "slow-link", **link, "factor": 0.5, "start": "1 s", "end": "4 s"},
            {"kind": "slow-link", **link, "factor": 0.2, "start": "2 s", "end": "3 s"},
            {"kind": "link-failure", "between": [1, 0], "start": "3.5 s", "end": "5 s"},
            {"kind": "slow-link", "between": [1, 2], "factor": 0.25},
            {"kind": "slow-link", "between": [1, 2], "factor": 0.5, "start": "3 s"},
        ]
        scenario = described(RING, stragglers=stragglers)
        found = changes(scenario, {node: node for node in range(3)})
        one, other = frozenset((0, 1)), frozenset((1, 2))
        assert found == (
            Change(1.0, one, 0.5),
            Change(2.0, one, pytest.approx(0.1)),
            Change(3.0, one, 0.5),
            Change(3.0, other, 0.5),
            Change(3.5, one, 0.0),
            Change(4.0, one, 0.0),
            Change(5.0, one, 1.0),
        )
        # What is always slow is a matter of the network as it is built.
        assert Layout.of(scenario).cables[2].rates == (3.125e6, 3.125e6)


def inside(namespace: Namespace, look: Callable[[Any], Any]) -> Any:
    """Return what is seen through netlink in a namespace."""

    def work() -> Any:
        namespace.enter()
        with netlink() as ip:
            return look(ip)

    return apart(work)


def queues(ip: Any) -> dict[str, tuple[str, int]]:
    """Return kind and rate of the queue of every device that is limited."""
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
    found = {}
    for queue in ip.get_qdiscs():
        if queue.get_attr("TCA_KIND") == "tbf":
            parameters = queue.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
            found[names[queue["index"]]] = parameters["rate"]
    return found


def arrival(node: int, total: int, ready: threading.Barrier) -> float:
    """Return when the last of so many bytes has come to a node, in whose namespace this thread is."""
    with socket.create_server((address(node), 9000)) as server:
        server.settimeout(20)
        ready.wait(20)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            left = total
            while left:
                received = len(connection.recv(65536))
                assert received
                left -= received
            return time.monotonic()


def sent(ip: Any) -> dict[str, int]:
    """Return the bytes that have left by each device."""
    return {
        link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_STATS64")["tx_bytes"] for link in ip.get_links()
    }


@real
class TestNetwork:
    """A network that stands."""

    def test_rates(self) -> None:
        graph = {**RING, "link": {**LINK, "efficiency": 0.5}}
        with emulated(described(graph)) as network:
            assert network.facts() == {
                "nodes": 3,
                "edges": 3,
                "links": "lossless, acknowledgements first",
                "left_out": [],
            }
            found = [inside(namespace, queues) for namespace in network.namespaces]
            buffers = inside(network.namespaces[0], lambda _: Path("/proc/sys/net/ipv4/tcp_wmem").read_text())
        assert buffers.split() == ["4096", "131072", "131072"]
        rate = 100e6 / 8 / 2
        assert found == [{"to1": rate, "to2": rate}, {"to0": rate, "to2": rate}, {"to0": rate, "to1": rate}]

    def test_a_link_that_is_always_slow(self) -> None:
        slow = {"kind": "slow-link", "between": [2, 0], "factor": 0.25}
        cables = Layout.of(described(RING, stragglers=[slow])).cables
        assert [(cable.ends, cable.rates) for cable in cables] == [
            ((0, 1), (12.5e6, 12.5e6)),
            ((0, 2), (3.125e6, 3.125e6)),
            ((1, 2), (12.5e6, 12.5e6)),
        ]

    def test_a_half_duplex_edge_has_one_rate(self) -> None:
        pair = {"builder": "ring", "nodes": 2, "link": {**LINK, "duplex": "half"}}
        with emulated(described(pair)) as network:
            assert [inside(namespace, queues) for namespace in network.namespaces] == [{"half1": 12.5e6}, {}]
            before = inside(network.namespaces[0], sent)["half1"]
            launch.launch(described(pair), sites=network.sites)
            carried = inside(network.namespaces[0], sent)["half1"] - before
        # Both workers' messages, 4 iterations of 3001 floats each, went through the one queue.
        assert carried > 2 * 4 * 3001 * 4

    def test_nothing_leads_out(self) -> None:
        def outside() -> list[str]:
            with netlink() as ip:
                return sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links())

        def reach() -> None:
            network.namespaces[0].enter()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
                unconnected.connect(("192.0.2.1", 9))

        before, here = outside(), os.readlink("/proc/thread-self/ns/net")
        with emulated(described(RING)) as network:
            assert outside() == before
            for node, namespace in enumerate(network.namespaces):
                devices = {f"to{other}" for other in range(3) if other != node}
                assert set(inside(namespace, sent)) - {"sit0", "tunl0", "gre0", "gretap0", "ip6tnl0"} == {
                    "lo",
                    *devices,
                }
            with pytest.raises(OSError, match="Network is unreachable"):
                apart(reach)
        assert os.readlink("/proc/thread-self/ns/net") == here

    @pytest.mark.parametrize("algorithm", ["allreduce-sgd", "d-psgd", {"name": "local-sgd", "period": 2}])
    def test_same_bits(self, algorithm: object) -> None:
        scenario = described(RING, algorithm)
        run, simulated = emulate(scenario), simulate(scenario)
        assert run.models is not None
        assert simulated.models is not None
        assert run.models.tobytes() == simulated.models.tobytes()
        assert (run.clock, run.iterations) == ("wall", (4, 4, 4))
        assert run.summary()["emulation"] == {
            "nodes": 3,
            "edges": 3,
            "links": emulation.LINKS,
            "left_out": [],
        }

    def test_messages_the_other_way_take_nothing(self) -> None:
        """One message against three on a link takes as long as alone, but for headers.

        Where acknowledgements wait behind the three, it has a third of the link.
        """
        hosts = {"builder": "two-level", "hosts": 2, "gpus-per-host": 4, "inside": LINK, "network": LINK}
        total = 2**20
        pairs = [(0, 4), (5, 1), (6, 2), (7, 3)]

        def receive(rank: int) -> float:
            network.sites[rank].enter()
            return arrival(network.layout.ranks[rank], total, ready)

        def send(rank: int, receiver: int) -> None:
            network.sites[rank].enter()
            ready.wait(20)
            with socket.create_connection((address(network.layout.ranks[receiver]), 9000), 20) as connection:
                connection.sendall(bytes(total))

        ready = threading.Barrier(2 * len(pairs) + 1)
        with emulated(described(hosts)) as network, ThreadPoolExecutor(2 * len(pairs)) as threads:
            ends = [threads.submit(apart, functools.partial(receive, pair[1])) for pair in pairs]
            sent = [threads.submit(apart, functools.partial(send, *pair)) for pair in pairs]
            ready.wait(20)
            begin = time.monotonic()
            first, *_ = [end.result() for end in (*ends, *sent)]
            assert first - begin < 1.6 * total / 12.5e6

    def test_messages_go_by_the_links_of_their_routes(self) -> None:
        """A star of three machines: what the first sends the third leaves by the switch, once a hop."""
        scenario = described({"builder": "switch", "gpus": 3, "link": LINK})
        with emulated(scenario) as network:
            records = launch.launch(scenario, sites=network.sites)
            nodes = dict(zip(network.layout.nodes, network.namespaces, strict=True))
            [hub] = set(nodes) - set(scenario.cluster.nodes)
            place = network.layout.nodes.index(hub)
            up = [inside(namespace, sent)[f"to{place}"] for namespace in network.sites]
            down = sum(bytes for device, bytes in inside(nodes[hub], sent).items() if device != "lo")
        payload = [record.bytes_sent for record in records]
        assert all(carried > own for carried, own in zip(up, payload, strict=True))
        # Headers and acknowledgements come on top.
        assert sum(payload) < sum(up) < 1.5 * sum(payload)
        assert down == sum(up)

    def test_a_cut_edge_carries_nothing(self) -> None:
        """A ping of one datagram arrives before the cut and not after it."""

        def arrives() -> bool:
            network.namespaces[1].enter()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
                receiver.bind((address(1), 0))
                receiver.settimeout(0.3)

                def send() -> None:
                    network.namespaces[0].enter()
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                        sender.sendto(b"ping", receiver.getsockname())

                with contextlib.suppress(OSError):
                    apart(send)
                try:
                    return receiver.recv(10) == b"ping"
                except TimeoutError:
                    return False

        with emulated(described(RING)) as network:
            assert apart(arrives)
            network.cut(1, 0)
            assert not apart(arrives)
            with pytest.raises(KeyError):
                network.cut(0, 0)

    def test_a_source_that_is_routed_apart(self) -> None:
        scenario = described(
            {"builder": "hypercube", "dimension": 3, "link": LINK}, workers=6, routing="ecmp"
        )
        assert any(node.exceptions for node in Layout.of(scenario).forwarding)
        run, simulated = emulate(scenario), simulate(scenario)
        assert np.array_equal(run.models, simulated.models)  # type: ignore[arg-type]

    def test_emulated_compute(self) -> None:
        """Five gradients of 40 ms, of 80 ms on the slow worker, one after another."""
        slow = {"kind": "persistent", "workers": [1], "slowdown": 2.0}
        cost = {"parameters": 3000, "batch": 1, "gradient": "40 ms", "bucket-count": 2}
        for algorithm in ("allreduce-sgd", "d-psgd"):
            execution = {"compute": "emulated", "stragglers": "injected"}
            run = emulate(described(RING, algorithm, stragglers=[slow]).vary(cost=cost, execution=execution))
            busy = [0.0, 0.0, 0.0]
            for span in run.timeline:
                busy[span.worker] += (span.end - span.start) * (span.operation == "gradient")
            assert busy[0] >= 4 * 0.040
            assert busy[1] >= 4 * 0.080
            assert run.duration >= 4 * 0.080


def timed(stragglers: list[dict[str, Any]], **more: Any) -> Scenario:
    """Six all-reduces of some 0.4 s between three workers, after computations of 20 ms."""
    cost = {"parameters": 260_000, "batch": 1, "gradient": "20 ms", "bucket-count": 1}
    link = {"bandwidth": "30 Mbps", "latency": "0 s"}
    scenario = described({**RING, "link": link}, "local-sgd", stragglers=stragglers)
    objective = {"kind": "quadratic", "dimension": 260_000, "dtype": "float32"}
    return scenario.vary(
        cost=cost,
        objective=objective,
        algorithm={"name": "local-sgd", "period": 1},
        budget={"iterations": 6},
        execution={"compute": "emulated", "stragglers": "injected"},
        **more,
    )


class Unchanging:
    """A network that ranks run beside, in which no link can be changed."""

    sites = None

    def __init__(self, scenario: Scenario) -> None:
        self.layout = Layout.of(scenario)

    def change_rate(self, ends: frozenset[int], factor: float) -> None:
        raise OSError(f"{sorted(ends)} stays as it is")


def test_a_change_that_cannot_be_made_ends_the_run(
    own: Any, monkeypatch: pytest.MonkeyPatch, ranks_left: Callable[[], list[int]]
) -> None:
    """Its cause is told, and not that the ranks stood still for longer than the patience afterwards."""
    monkeypatch.setattr(emulation, "check_rights", lambda: None)
    monkeypatch.setattr(emulation, "emulated", lambda scenario: contextlib.nullcontext(Unchanging(scenario)))
    slow = {"kind": "slow-link", "between": [0, 1], "factor": 0.5, "start": "0.1 s"}
    cluster = {"topology": RING, "device": "ideal", "stragglers": [slow]}
    body = "await worker.compute(lambda _: time.sleep(60), worker.initial_model(), nbytes=0.0)"
    expected = r"^the link 0 – 1 could not be changed at 0\.1 s: OSError: \[0, 1\] stays as it is$"
    with pytest.raises(LinkStuck, match=expected):
        emulate(own(body, 2, cluster={**cluster, "workers": 2}), patience=5.0)
    assert ranks_left() == []


@real
class TestDisturbances:
    """Links that slow down or fail for a time, with the meaning that they have in simulation."""

    def test_rates_change_at_both_ends(self) -> None:
        link = frozenset((0, 1))
        with emulated(described(RING)) as network:
            for factor, rate in ((0.25, 3.125e6), (0.0, STALLED), (1.0, 12.5e6)):
                network.change_rate(link, factor)
                found = [inside(namespace, queues) for namespace in network.namespaces]
                assert found == [
                    {"to1": rate, "to2": 12.5e6},
                    {"to0": rate, "to2": 12.5e6},
                    {"to0": 12.5e6, "to1": 12.5e6},
                ]

    def test_the_one_rate_of_a_half_duplex_edge_changes(self) -> None:
        pair = {"builder": "ring", "nodes": 2, "link": {**LINK, "duplex": "half"}}
        with emulated(described(pair)) as network:
            network.change_rate(frozenset((0, 1)), 0.5)
            assert [inside(namespace, queues) for namespace in network.namespaces] == [{"half1": 6.25e6}, {}]

    def test_a_link_without_a_limit_has_one_for_a_time(self) -> None:
        fast = {**RING, "link": {"bandwidth": "400 Gbps", "latency": "0 s"}}
        with emulated(described(fast)) as network:
            for factor, expected in ((1e-3, {"to1": 50e6}), (1.0, {}), (0.5, {})):
                network.change_rate(frozenset((0, 1)), factor)
                assert inside(network.namespaces[0], queues) == expected

    def test_what_waits_goes_on_at_once_when_the_link_is_back(self) -> None:
        """TCP that was stopped for 1.5 s does not wait for its next attempt, which would come a second later.

        What it has sent again meanwhile waits as well: lost, it would be waited for.
        """
        total = 2_500_000

        def receive(node: int) -> float:
            network.namespaces[node].enter()
            return arrival(node, total, ready)

        def send(node: int) -> None:
            network.namespaces[1 - node].enter()
            ready.wait(20)
            with socket.create_connection((address(node), 9000), 20) as connection:
                connection.sendall(bytes(total))

        ready = threading.Barrier(5)
        with emulated(described(RING)) as network, ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(apart, functools.partial(receive, node)) for node in (0, 1)]
            sent = [threads.submit(apart, functools.partial(send, node)) for node in (0, 1)]
            ready.wait(20)
            time.sleep(0.05)
            network.change_rate(frozenset((0, 1)), 0.0)
            time.sleep(1.5)
            assert not any(end.done() for end in ends)
            network.change_rate(frozenset((0, 1)), 1.0)
            back = time.monotonic()
            # Some 0.15 s of it are left.
            assert max(end.result() for end in ends) - back < 0.6
            for sender in sent:
                sender.result()

    @pytest.mark.parametrize(
        "straggler",
        [
            {"kind": "slow-link", "between": [0, 1], "factor": 0.4, "start": "0.5 s", "end": "1.8 s"},
            {"kind": "link-failure", "between": [1, 2], "start": "0.6 s", "end": "1.6 s"},
            {"kind": "crash", "workers": [1], "at": "0.7 s", "outage": "0.9 s"},
        ],
        ids=lambda straggler: straggler["kind"],
    )
    def test_as_long_as_in_simulation(self, straggler: dict[str, Any]) -> None:
        """What a disturbance costs is what it costs in simulation."""
        undisturbed = simulate(timed([])).duration
        predicted = simulate(timed([straggler])).duration
        assert predicted > undisturbed + 0.5
        run = emulate(timed([straggler]))
        # Not sooner; later by what TCP takes to notice, and by what a busy machine does.
        assert predicted - 0.15 < run.duration < 1.25 * predicted + 1.5
        assert run.summary()["emulation"]["left_out"] == []

    def test_a_link_that_does_not_come_back(
        self, made: set[int], ranks_left: Callable[[], list[int]]
    ) -> None:
        failing = {"kind": "link-failure", "between": [0, 1], "start": "0.5 s"}
        began = time.monotonic()
        with pytest.raises(RunStuck) as caught:
            emulate(timed([failing]), patience=3.0)
        message = str(caught.value)
        assert message.startswith("no worker got on for 3 s: worker 0 waits in all_reduce group 'world' for ")
        assert message.endswith("; the link 0 – 1 failed at 0.5 s and does not come back")
        assert time.monotonic() - began < 30
        assert ranks_left() == []
        assert gone(made)

    def test_a_link_that_is_cut_in_the_middle(
        self, made: set[int], ranks_left: Callable[[], list[int]]
    ) -> None:
        """Somebody pulls the plug: the run ends within the patience, and nothing stays."""
        scenario = timed([])
        with emulated(scenario) as network:
            cutting = threading.Timer(0.5, network.cut, (0, 1))
            with pytest.raises(RunStuck, match=r"^no worker got on for 3 s: worker 0 waits in "):
                launch.launch(scenario, patience=3.0, sites=network.sites, started=lambda _: cutting.start())
            cutting.join()
        assert ranks_left() == []
        assert gone(made)


def holders(kept: set[int]) -> list[str]:
    """Return the entries of /proc that keep any of some namespaces alive."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for link in (*process.glob("task/*/ns/net"), *process.glob("fd/*")):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("net:[") and int(target[5:-1]) in kept:
                found.append(str(link))
    return found


def gone(kept: set[int]) -> bool:
    """Wait for namespaces to have no holder; 20 seconds at most, on a machine that is busy."""
    deadline = time.monotonic() + 20
    while holders(kept):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(name="made")
def _made(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of all namespaces that this process makes in a test."""
    noted: set[int] = set()
    new = Namespace.new

    def noting() -> Namespace:
        namespace = new()
        noted.add(os.fstat(namespace.descriptor).st_ino)
        return namespace

    monkeypatch.setattr(Namespace, "new", noting)
    return noted


STUCK = """
import sys
from simulator.execution.emulation import emulate
from simulator.scenario import Scenario

if __name__ == "__main__":
    emulate(Scenario.load(sys.argv[1]), lambda _: print("under way", flush=True))
"""
STUCK_SCENARIO = """
name: stuck
cluster:
  topology: {builder: ring, nodes: 3, link: {bandwidth: 100 Mbps, latency: 0 s}}
  device: ideal
workload:
  cost: {parameters: 10, batch: 1, gradient: 1 ms}
  objective: {kind: quadratic, dimension: 10}
algorithm: stuck.py:Stuck
step-size: 0.1
budget: {iterations: 2}
"""
STUCK_ALGORITHM = """
    from dataclasses import dataclass
    import time
    from algorithms import Algorithm

    @dataclass(frozen=True)
    class Stuck(Algorithm):
        async def run(self, worker):
            x = worker.initial_model()
            while worker.running:
                await worker.all_reduce(await worker.gradient(x))
                time.sleep(0.2 if worker.iterations < 2 else 60)
"""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose ranks are under way in an emulated network and will not end."""
    (tmp_path / "main.py").write_text(STUCK)
    (tmp_path / "stuck.yaml").write_text(STUCK_SCENARIO)
    (tmp_path / "stuck.py").write_text(textwrap.dedent(STUCK_ALGORITHM))
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py", tmp_path / "stuck.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "under way\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def namespaces_of(session: int) -> set[int]:
    """Return the namespaces of the processes of a session, other than this process's own."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == session:
                found.add((process / "ns/net").stat().st_ino)
        except OSError:
            continue
    return found - {Path("/proc/self/ns/net").stat().st_ino}


@real
class TestTakingDown:
    """Nothing is left of an emulation, however it ends."""

    def test_at_its_end(self, made: set[int]) -> None:
        with emulated(described(RING)) as network:
            assert {os.fstat(entry.descriptor).st_ino for entry in network.namespaces} <= made
            assert holders(made) != []
        assert gone(made)

    def test_when_it_cannot_be_built(self, made: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*_: object) -> None:
            raise OSError("no more of them")

        monkeypatch.setattr(emulation, "_route", failing)
        with pytest.raises(OSError, match="no more of them"), emulated(described(RING)):
            pass
        assert made
        assert gone(made)

    def test_when_a_rank_fails(self, own: Any, made: set[int], ranks_left: Callable[[], list[int]]) -> None:
        body = """
            x = worker.initial_model()
            while worker.running:
                gradient = await worker.gradient(x)
                if worker.rank == 1:
                    raise ValueError("out of luck")
                x = await worker.update(x, await worker.all_reduce(gradient))
                worker.report(x)
        """
        with pytest.raises(WorkerFailed, match=r"^worker 1 failed in iteration 1: ValueError: out of luck"):
            emulate(own(body, 3))
        assert ranks_left() == []
        assert made
        assert gone(made)

    @pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
    def test_when_the_launcher_is_ended(
        self,
        stuck: subprocess.Popen[str],
        ending: signal.Signals,
        session_left: Callable[[int], list[int]],
    ) -> None:
        kept = namespaces_of(stuck.pid)
        assert len(kept) == 3
        stuck.send_signal(ending)
        assert stuck.wait(20) == -ending
        assert gone(kept)
        assert session_left(stuck.pid) == []

    def test_two_at_once(self, stuck: subprocess.Popen[str]) -> None:
        kept = namespaces_of(stuck.pid)
        scenario = described(RING)
        run, simulated = emulate(scenario), simulate(scenario)
        assert np.array_equal(run.models, simulated.models)  # type: ignore[arg-type]
        assert stuck.poll() is None
        assert namespaces_of(stuck.pid) == kept
        assert holders(kept) != []
