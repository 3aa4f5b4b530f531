"""Builders: exact structures of small cases, properties of all, and the words of every refusal."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import topologies
from topologies import BUILDERS, LinkSpec, gpus, link_table, validate_cluster

LINK = LinkSpec(bandwidth=100.0, latency=0.5, efficiency=0.5, duplex="half")
FAST = LinkSpec(bandwidth=1000.0)

DIRECTED = {"exponential", "one-peer-exponential"}
RANK_GRAPHS = {"ring", "star", "complete", "torus", "hypercube", "random-regular", *DIRECTED}


def degrees(graph: Any) -> list[int]:
    return [degree for _, degree in graph.degree()]


def bisection(graph: Any, half: set[Any]) -> int:
    return int(nx.cut_size(graph, half))


def test_every_builder_has_a_strategy_and_is_exported(parameters: dict[str, Any]) -> None:
    assert set(parameters) == set(BUILDERS)
    for name, builder in BUILDERS.items():
        assert getattr(topologies, name.replace("-", "_")) is builder
        assert name.replace("-", "_") in topologies.__all__


@pytest.mark.parametrize("name", BUILDERS)
def test_type_hints_can_be_read_by_a_scenario_reader(name: str) -> None:
    hints = get_type_hints(BUILDERS[name], include_extras=True)
    assert hints.pop("return") in (nx.Graph, nx.DiGraph)
    for hint in hints.values():
        assert hint in (int, bool, float, tuple[int, ...], LinkSpec, LinkSpec | None)


@pytest.mark.parametrize("name", BUILDERS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_graph_is_a_valid_cluster(name: str, data: st.DataObject, parameters: dict[str, Any]) -> None:
    drawn = data.draw(parameters[name])
    graph = BUILDERS[name](**drawn)
    assert graph.is_directed() == (name in DIRECTED)
    if name == "one-peer-exponential":  # one round need not be connected
        topologies.check_attributes(graph)
    else:
        validate_cluster(graph)
    assert nx.number_of_selfloops(graph) == 0
    again = BUILDERS[name](**drawn)
    assert list(again.nodes(data=True)) == list(graph.nodes(data=True))
    assert list(again.edges(data=True)) == list(graph.edges(data=True))
    if name in RANK_GRAPHS:
        assert list(graph) == list(range(len(graph)))
        for *_, attributes in graph.edges(data=True):
            wanted = drawn["link"].attributes()
            if name in DIRECTED:
                del wanted["duplex"]
            assert attributes == wanted


@pytest.mark.parametrize("name", sorted(RANK_GRAPHS - {"torus", "hypercube", "random-regular"}))
def test_one_and_two_ranks(name: str) -> None:
    extra = {"phase": 3} if name == "one-peer-exponential" else {}
    assert list(BUILDERS[name](nodes=1, **extra).edges()) == []
    two = BUILDERS[name](nodes=2, **extra)
    assert list(two.edges()) == ([(0, 1), (1, 0)] if name in DIRECTED else [(0, 1)])


def test_ring() -> None:
    graph = topologies.ring(nodes=5, link=LINK)
    assert sorted(map(sorted, graph.edges())) == [[0, 1], [0, 4], [1, 2], [2, 3], [3, 4]]
    assert graph.edges[4, 0] == LINK.attributes()
    assert bisection(topologies.ring(nodes=8), {0, 1, 2, 3}) == 2


def test_star_has_its_centre_at_rank_0() -> None:
    assert list(topologies.star(nodes=4).edges()) == [(0, 1), (0, 2), (0, 3)]


def test_complete() -> None:
    graph = topologies.complete(nodes=6)
    assert graph.number_of_edges() == 15
    assert bisection(graph, {0, 1, 2}) == 9


def test_torus_is_row_major_and_wraps() -> None:
    graph = topologies.torus(dimensions=(3, 4))
    assert graph.number_of_nodes() == 12
    assert graph.number_of_edges() == 24
    assert sorted(graph[0]) == [1, 3, 4, 8]
    assert sorted(graph[6]) == [2, 5, 7, 10]
    assert bisection(topologies.torus(dimensions=(4, 4)), set(range(8))) == 8


def test_torus_of_thin_dimensions_has_no_parallel_edges_or_loops() -> None:
    assert degrees(topologies.torus(dimensions=(2, 3))) == [3] * 6
    assert nx.utils.graphs_equal(topologies.torus(dimensions=(1, 5)), topologies.ring(nodes=5))
    assert topologies.torus(dimensions=(1,)).number_of_edges() == 0
    assert nx.is_isomorphic(topologies.torus(dimensions=(2, 2, 2)), topologies.hypercube(dimension=3))


def test_hypercube() -> None:
    graph = topologies.hypercube(dimension=4)
    assert degrees(graph) == [4] * 16
    assert all((i ^ j).bit_count() == 1 for i, j in graph.edges())
    assert bisection(graph, set(range(8))) == 8
    assert list(topologies.hypercube(dimension=0)) == [0]


@given(nodes=st.integers(3, 30), degree=st.integers(2, 6), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_random_regular_is_regular_and_connected(nodes: int, degree: int, seed: int) -> None:
    if degree >= nodes or nodes * degree % 2:
        return
    graph = topologies.random_regular(nodes=nodes, degree=degree, seed=seed)
    assert degrees(graph) == [degree] * nodes
    assert nx.is_connected(graph)


def test_random_regular_depends_on_its_seed_alone() -> None:
    draws = [frozenset(topologies.random_regular(nodes=20, degree=3, seed=s).edges()) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_random_regular_is_drawn_again_until_connected() -> None:
    # A random graph of degree 2 on 30 nodes is one single cycle in the minority of draws.
    for seed in range(20):
        assert nx.is_connected(topologies.random_regular(nodes=30, degree=2, seed=seed))


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 9, 16, 17])
def test_exponential_points_at_powers_of_two(nodes: int) -> None:
    graph = topologies.exponential(nodes=nodes)
    out_degree = 1 + math.floor(math.log2(nodes - 1))
    assert [degree for _, degree in graph.out_degree()] == [out_degree] * nodes
    assert [degree for _, degree in graph.in_degree()] == [out_degree] * nodes
    assert list(graph.successors(1)) == [(1 + 2**k) % nodes for k in range(out_degree)]


@pytest.mark.parametrize(
    ("nodes", "hops"), [(8, [1, 2, 4, 1]), (6, [1, 2, 4, 1]), (5, [1, 2, 4, 1]), (4, [1, 2, 1, 2])]
)
def test_one_peer_exponential_goes_through_its_hops(nodes: int, hops: list[int]) -> None:
    for phase, hop in enumerate(hops):
        graph = topologies.one_peer_exponential(nodes=nodes, phase=phase)
        assert sorted(graph.edges()) == [(i, (i + hop) % nodes) for i in range(nodes)]


def test_switch() -> None:
    graph = topologies.switch(gpus=3, link=LINK)
    assert dict(graph.nodes(data="kind")) == {"gpu0": "gpu", "gpu1": "gpu", "gpu2": "gpu", "switch": "switch"}
    assert list(graph.edges()) == [("gpu0", "switch"), ("gpu1", "switch"), ("gpu2", "switch")]
    assert link_table(graph).capacity == (50.0, 50.0, 50.0)


def test_two_level_has_one_nic_a_host() -> None:
    graph = topologies.two_level(hosts=2, gpus_per_host=3, inside=FAST, network=LINK)
    assert gpus(graph) == [f"host{h}/gpu{g}" for h in range(2) for g in range(3)]
    assert graph.nodes["host1/gpu2"] == {"kind": "gpu", "host": "host1"}
    assert graph.nodes["host1"] == {"kind": "host"}
    assert list(graph["switch"]) == ["host0", "host1"]
    assert graph.edges["host1", "switch"] == LINK.attributes()
    assert list(graph["host0/gpu1"]) == ["host0"]
    assert graph.edges["host0/gpu1", "host0"] == FAST.attributes()


def test_two_level_all_to_all_inside() -> None:
    graph = topologies.two_level(hosts=2, gpus_per_host=4, inside=FAST, network=LINK, all_to_all_inside=True)
    assert graph.number_of_edges() == 2 * (1 + 4 + 6)
    assert sorted(graph["host1/gpu0"]) == ["host1", "host1/gpu1", "host1/gpu2", "host1/gpu3"]
    assert graph.edges["host1/gpu0", "host1/gpu3"] == FAST.attributes()


def test_fat_tree() -> None:
    graph = topologies.fat_tree(
        leaves=3, hosts_per_leaf=4, spines=2, gpus_per_host=2, link=LINK, oversubscription=4.0, inside=FAST
    )
    assert graph.number_of_nodes() == 2 + 3 + 12 + 24
    assert graph.number_of_edges() == 3 * 2 + 12 + 24
    assert gpus(graph)[:3] == ["host0/gpu0", "host0/gpu1", "host1/gpu0"]
    assert sorted(graph["leaf1"]) == ["host4", "host5", "host6", "host7", "spine0", "spine1"]
    assert graph.edges["host4", "leaf1"] == LINK.attributes()
    assert graph.edges["host4", "host4/gpu1"] == FAST.attributes()
    # 4 hosts of 100 B/s share 2 uplinks, 4 times oversubscribed: 400 / (2 * 4) = 50.
    assert graph.edges["leaf1", "spine0"] == {**LINK.attributes(), "bandwidth": 50.0}


def test_fat_tree_takes_an_uplink() -> None:
    graph = topologies.fat_tree(leaves=2, hosts_per_leaf=2, spines=1, uplink=FAST)
    assert graph.edges["leaf0", "spine0"] == FAST.attributes()


def test_non_blocking_fat_tree_has_full_bisection_bandwidth() -> None:
    graph = topologies.fat_tree(leaves=4, hosts_per_leaf=6, spines=3, link=LINK)
    up = sum(graph.edges["leaf0", spine]["bandwidth"] for spine in ("spine0", "spine1", "spine2"))
    assert up == 6 * LINK.bandwidth


def test_dragonfly_of_the_paper_is_balanced() -> None:
    # g = a*h + 1 with a = 4 routers, h = 2 global links each: 9 groups, every pair joined once.
    graph = topologies.dragonfly(
        groups=9, routers_per_group=4, gpus_per_router=2, link=LINK, global_link=FAST
    )
    assert len(gpus(graph)) == 72
    routers = [node for node, data in graph.nodes(data=True) if data["kind"] == "switch"]
    assert len(routers) == 36
    pairs = set()
    for router in routers:
        away = [other for other in graph[router] if other.split("/")[0] != router.split("/")[0]]
        assert len(away) == 2
        assert all(graph.edges[router, other] == FAST.attributes() for other in away)
        assert len(graph[router]) == 2 + 3 + 2
        pairs |= {frozenset((router.split("/")[0], other.split("/")[0])) for other in away}
    assert len(pairs) == 36
    # Consecutive blocks: group 3 sees groups 4, 5 | 6, 7 | 8, 0 | 1, 2 from its routers 0 to 3.
    for router, others in enumerate([{4, 5}, {6, 7}, {8, 0}, {1, 2}]):
        seen = {int(other.split("/")[0][5:]) for other in graph[f"group3/router{router}"]}
        assert seen - {3} == others
    assert graph.edges["group3/router1/gpu1", "group3/router1"] == LINK.attributes()
    assert nx.diameter(graph.subgraph(routers)) == 3


def test_dragonfly_deals_its_global_links_evenly() -> None:
    graph = topologies.dragonfly(groups=6, routers_per_group=3, gpus_per_router=1)
    for group in range(6):
        names = [f"group{group}/router{r}" for r in range(3)]
        counts = [sum(not other.startswith(f"group{group}/") for other in graph[name]) for name in names]
        assert sorted(counts) == [1, 2, 2]


def test_numpy_integers_are_welcome_and_leave_plain_names() -> None:
    three: Any = np.int64(3)
    for graph in (topologies.exponential(nodes=three), topologies.hypercube(dimension=three)):
        assert {type(node) for node in graph} == {int}
    assert topologies.random_regular(nodes=2 * three, degree=three).number_of_edges() == 9


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("ring", {"nodes": 0}, "nodes must be an integer of at least 1, got 0"),
    ("ring", {"nodes": 2.0}, "nodes must be an integer of at least 1, got 2.0"),
    ("ring", {"nodes": True}, "nodes must be an integer of at least 1, got True"),
    ("ring", {"nodes": 2, "link": 1e9}, "link must be a LinkSpec, got 1000000000.0"),
    ("star", {"nodes": -1}, "nodes must be an integer of at least 1, got -1"),
    ("complete", {"nodes": "4"}, "nodes must be an integer of at least 1, got '4'"),
    ("torus", {"dimensions": ()}, "dimensions must be a tuple of at least one size, got ()"),
    ("torus", {"dimensions": 4}, "dimensions must be a tuple of at least one size, got 4"),
    ("torus", {"dimensions": (3, 0)}, "dimensions[1] must be an integer of at least 1, got 0"),
    ("hypercube", {"dimension": -1}, "dimension must be an integer of at least 0, got -1"),
    ("random-regular", {"nodes": 0, "degree": 0}, "nodes must be an integer of at least 1, got 0"),
    ("random-regular", {"nodes": 4, "degree": -1}, "degree must be an integer of at least 0, got -1"),
    ("random-regular", {"nodes": 4, "degree": 4}, "degree must be below nodes, got degree 4 with nodes 4"),
    (
        "random-regular",
        {"nodes": 5, "degree": 3},
        "nodes times degree must be even, got degree 3 with nodes 5",
    ),
    ("random-regular", {"nodes": 4, "degree": 1}, "degree must be at least 2 to connect 4 nodes, got 1"),
    (
        "random-regular",
        {"nodes": 4, "degree": 2, "seed": -1},
        "seed must be an integer of at least 0, got -1",
    ),
    ("exponential", {"nodes": 0}, "nodes must be an integer of at least 1, got 0"),
    (
        "exponential",
        {"nodes": 4, "link": LINK},
        "link: duplex 'half' has no meaning in a directed graph, where every arc is one link",
    ),
    ("one-peer-exponential", {"nodes": 0, "phase": 0}, "nodes must be an integer of at least 1, got 0"),
    ("one-peer-exponential", {"nodes": 4, "phase": -1}, "phase must be an integer of at least 0, got -1"),
    ("switch", {"gpus": 0}, "gpus must be an integer of at least 1, got 0"),
    ("switch", {"gpus": 1, "link": None}, "link must be a LinkSpec, got None"),
    ("two-level", {"hosts": 0, "gpus_per_host": 1}, "hosts must be an integer of at least 1, got 0"),
    ("two-level", {"hosts": 1, "gpus_per_host": 0}, "gpus_per_host must be an integer of at least 1, got 0"),
    ("two-level", {"hosts": 1, "gpus_per_host": 1, "inside": 1}, "inside must be a LinkSpec, got 1"),
    ("two-level", {"hosts": 1, "gpus_per_host": 1, "network": 1}, "network must be a LinkSpec, got 1"),
    *(
        (
            "fat-tree",
            {"leaves": 1, "hosts_per_leaf": 1, "spines": 1, "gpus_per_host": 1, key: 0},
            f"{key} must be an integer of at least 1, got 0",
        )
        for key in ("leaves", "hosts_per_leaf", "spines", "gpus_per_host")
    ),
    *(
        (
            "fat-tree",
            {"leaves": 1, "hosts_per_leaf": 1, "spines": 1, "oversubscription": value},
            f"oversubscription must be a finite number above 0, got {value!r}",
        )
        for value in (0, -1.0, math.nan, math.inf, "4:1", True)
    ),
    (
        "fat-tree",
        {"leaves": 1, "hosts_per_leaf": 1, "spines": 1, "oversubscription": 2.0, "uplink": FAST},
        "oversubscription 2.0 has no effect beside uplink; give one of them",
    ),
    *(
        (
            "fat-tree",
            {"leaves": 1, "hosts_per_leaf": 1, "spines": 1, key: 7},
            f"{key} must be a LinkSpec, got 7",
        )
        for key in ("link", "uplink", "inside")
    ),
    *(
        (
            "dragonfly",
            {"groups": 2, "routers_per_group": 2, "gpus_per_router": 2, key: 0},
            f"{key} must be an integer of at least 1, got 0",
        )
        for key in ("groups", "routers_per_group", "gpus_per_router")
    ),
    *(
        (
            "dragonfly",
            {"groups": 2, "routers_per_group": 2, "gpus_per_router": 2, key: 7},
            f"{key} must be a LinkSpec, got 7",
        )
        for key in ("link", "global_link")
    ),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSALS)
def test_nonsense_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        BUILDERS[name](**values)
    assert str(error.value) == message
