"""Routes: against a brute-force search over all shortest paths, by policy, and as given."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies import BUILDERS, Router, complete, exponential, fat_tree, gpus, ring, torus, two_level


def best_paths(graph: Any, source: Any, target: Any) -> list[list[Any]]:
    """All paths of fewest hops with fewest GPUs in between, those first in graph order first."""
    order = {node: i for i, node in enumerate(graph)}
    paths = list(nx.all_shortest_paths(graph, source, target))

    def transit(path: list[Any]) -> int:
        return sum(graph.nodes[node].get("kind") == "gpu" for node in path[1:-1])

    fewest = min(map(transit, paths))
    return sorted(
        (path for path in paths if transit(path) == fewest), key=lambda path: [order[node] for node in path]
    )


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Random graphs of GPUs and switches, directed or not, with their edges in a random order."""
    n = draw(st.integers(2, 8))
    directed = draw(st.booleans())
    graph: Any = nx.DiGraph() if directed else nx.Graph()
    for node in draw(st.permutations(range(n))):
        graph.add_node(node, kind=draw(st.sampled_from(["gpu", "switch"])))
    pairs = list(itertools.permutations(range(n), 2) if directed else itertools.combinations(range(n), 2))
    graph.add_edges_from(draw(st.lists(st.sampled_from(pairs), unique=True)))
    return graph


@given(graph=graphs())
@settings(max_examples=150, deadline=None)
def test_routes_are_the_best_paths(graph: Any) -> None:
    shortest, ecmp = Router(graph), Router(graph, policy="ecmp")
    for source, target in itertools.product(graph, graph):
        if not nx.has_path(graph, source, target):
            for router in (shortest, ecmp):
                with pytest.raises(ValueError) as error:
                    router.route(source, target)
                assert str(error.value) == f"no path from {source!r} to {target!r}"
            continue
        paths = [tuple(itertools.pairwise(path)) for path in best_paths(graph, source, target)]
        assert shortest.route(source, target) == paths[0]
        assert ecmp.route(source, target) in paths


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("policy", ["shortest", "ecmp"])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_routes_of_every_builder_are_paths(
    name: str, policy: str, data: st.DataObject, parameters: dict[str, Any]
) -> None:
    graph = BUILDERS[name](**data.draw(parameters[name]))
    router = Router(graph, policy)
    for source, target in itertools.product(gpus(graph), repeat=2):
        if not nx.has_path(graph, source, target):
            continue
        route = router.route(source, target)
        assert all(graph.has_edge(*edge) for edge in route)
        nodes = [source, *(head for _, head in route)]
        assert [tail for tail, _ in route] == nodes[:-1]
        assert nodes[-1] == target
        assert len(set(nodes)) == len(nodes)


def test_route_in_a_two_level_cluster_goes_through_both_nics() -> None:
    for direct in (False, True):
        graph = two_level(hosts=2, gpus_per_host=3, all_to_all_inside=direct)
        assert Router(graph).route("host0/gpu2", "host1/gpu1") == (
            ("host0/gpu2", "host0"),
            ("host0", "switch"),
            ("switch", "host1"),
            ("host1", "host1/gpu1"),
        )
    assert Router(graph).route("host0/gpu2", "host0/gpu0") == (("host0/gpu2", "host0/gpu0"),)


def test_gpus_forward_only_where_nothing_else_is_as_short() -> None:
    graph: Any = nx.Graph()
    graph.add_nodes_from([("a", {"kind": "gpu"}), ("b", {"kind": "gpu"}), ("c", {"kind": "gpu"})])
    graph.add_node("s", kind="switch")
    graph.add_edges_from([("a", "b"), ("b", "c")])
    assert Router(graph).route("a", "c") == (("a", "b"), ("b", "c"))
    graph.add_edges_from([("a", "s"), ("s", "c")])
    for policy in ("shortest", "ecmp"):
        assert Router(graph, policy).route("a", "c") == (("a", "s"), ("s", "c"))
    assert Router(ring(nodes=6)).route(0, 2) == ((0, 1), (1, 2))


def test_ties_go_to_the_first_nodes_of_the_graph_whatever_order_the_edges_came_in() -> None:
    edges = [("a", "x"), ("a", "y"), ("x", "b"), ("y", "b")]
    for order in itertools.permutations(edges):
        graph: Any = nx.Graph()
        graph.add_nodes_from(["y", "x", "a", "b"], kind="switch")
        graph.add_edges_from(order)
        assert Router(graph).route("a", "b") == (("a", "y"), ("y", "b"))


def test_route_to_itself_is_empty() -> None:
    assert Router(ring(nodes=3)).route(1, 1) == ()


def test_directed_graphs_are_routed_along_their_arcs() -> None:
    router = Router(exponential(nodes=8))
    assert router.route(0, 4) == ((0, 4),)
    assert router.route(4, 3) == ((4, 0), (0, 1), (1, 3))


def test_ecmp_spreads_flows_over_equal_paths() -> None:
    graph = fat_tree(leaves=4, hosts_per_leaf=8, spines=4)
    spread = Router(graph, policy="ecmp")
    fixed = Router(graph)
    used: dict[Router, Counter[Any]] = {spread: Counter(), fixed: Counter()}
    for source, target in itertools.permutations(gpus(graph), 2):
        if int(str(source)[4:].split("/")[0]) // 8 != int(str(target)[4:].split("/")[0]) // 8:
            for router, counter in used.items():
                counter[router.route(source, target)[3][0]] += 1
    assert set(used[fixed]) == {"spine0"}
    # 768 pairs over 4 spines: 192 each, with a standard deviation of 12; 4 of them are allowed.
    assert sorted(map(str, used[spread])) == ["spine0", "spine1", "spine2", "spine3"]
    assert all(abs(count - 192) <= 48 for count in used[spread].values())


def test_ecmp_is_uniform_over_paths_and_not_over_first_hops() -> None:
    # From a, one best path goes by x and three go by y.
    graph: Any = nx.DiGraph()
    sources = [f"a{i}" for i in range(400)]
    graph.add_nodes_from([*sources, "x", "y", "x0", "y0", "y1", "y2", "b"], kind="switch")
    for source in sources:
        graph.add_edges_from([(source, "x"), (source, "y")])
    graph.add_edges_from([("x", "x0"), ("x0", "b")])
    graph.add_edges_from(edge for i in range(3) for edge in (("y", f"y{i}"), (f"y{i}", "b")))
    router = Router(graph, policy="ecmp")
    used = Counter(str(router.route(source, "b")[1][1]) for source in sources)
    assert sorted(used) == ["x0", "y0", "y1", "y2"]
    # 100 each, with a standard deviation of 8.7.
    assert all(abs(count - 100) <= 35 for count in used.values())


def test_given_routes_go_before_the_policy() -> None:
    graph = ring(nodes=5)
    router = Router(graph, routes={(0, 1): [0, 4, 3, 2, 1], (2, 2): [2]})
    assert router.route(0, 1) == ((0, 4), (4, 3), (3, 2), (2, 1))
    assert router.route(1, 0) == ((1, 0),)
    assert router.route(2, 2) == ()


LISTS = "a route lists its nodes from the source to the destination, got "


@pytest.mark.parametrize(
    ("pair", "path", "message"),
    [
        ((0, 2), [0, 2], "route from 0 to 2: there is no edge 0<->2"),
        ((0, 2), [0, 1], f"route from 0 to 2: {LISTS}[0, 1]"),
        ((0, 2), [1, 2], f"route from 0 to 2: {LISTS}[1, 2]"),
        ((0, 2), [], f"route from 0 to 2: {LISTS}[]"),
        ((0, 2), [0, 9, 2], "route from 0 to 2: node 9 is not in the graph"),
        ((0, 2), [0, 1, 0, 1, 2], "route from 0 to 2: node 0 is passed twice"),
    ],
)
def test_given_route_that_is_no_path_is_refused(pair: Any, path: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Router(ring(nodes=5), routes={pair: path})
    assert str(error.value) == message


def test_given_route_against_an_arc_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        Router(exponential(nodes=8), routes={(0, 7): [0, 7]})
    assert str(error.value) == "route from 0 to 7: there is no edge 0->7"


def test_unknown_nodes_and_policies_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        Router(ring(nodes=3)).route(0, 3)
    assert str(error.value) == "node 3 is not in the graph"
    with pytest.raises(ValueError) as error:
        Router(two_level(hosts=1, gpus_per_host=1)).route("host0/gpu0", "host0/gpu9")
    assert str(error.value) == "node 'host0/gpu9' is not in the graph; the nearest is 'host0/gpu0'"
    with pytest.raises(ValueError) as error:
        Router(ring(nodes=3), policy="ecpm")
    assert (
        str(error.value) == "routing policy must be 'shortest' or 'ecmp', got 'ecpm'; the nearest is 'ecmp'"
    )
    with pytest.raises(ValueError, match="a multigraph is not a cluster graph"):
        Router(nx.MultiGraph())


@pytest.mark.parametrize("policy", ["shortest", "ecmp"])
@pytest.mark.parametrize(
    "graph",
    [fat_tree(leaves=16, hosts_per_leaf=16, spines=4), complete(nodes=256), torus(dimensions=(16, 16))],
)
def test_all_pairs_of_256_gpus_are_fast(graph: Any, policy: str) -> None:
    router = Router(graph, policy)
    pairs = list(itertools.permutations(gpus(graph), 2))
    start = time.process_time()
    for pair in pairs:
        router.route(*pair)
    assert time.process_time() - start < 5  # 0.4 s on a quiet machine


def test_routes_that_took_a_search_are_remembered() -> None:
    router = Router(torus(dimensions=(16, 16)))
    assert router.route(0, 100) is router.route(0, 100)


@given(graph=graphs(), joints=st.data(), policy=st.sampled_from(["shortest", "ecmp"]))
@settings(max_examples=100, deadline=None)
def test_trees_that_hang_on_a_graph_do_not_change_its_ways(
    graph: Any, joints: st.DataObject, policy: str
) -> None:
    # Leaves on leaves: nothing between the other nodes goes through them.
    if graph.is_directed():
        graph = graph.to_undirected()
    routes = {
        pair: Router(graph, policy).route(*pair)
        for pair in itertools.permutations(graph, 2)
        if nx.has_path(graph, *pair)
    }
    hanging = ("u", "v", "w", "x", "y")
    for name in hanging:
        above = joints.draw(st.sampled_from(sorted(graph, key=str)))
        graph.add_node(name, kind=joints.draw(st.sampled_from(["gpu", "switch"])))
        graph.add_edge(name, above)
    router = Router(graph, policy)
    assert all(router.route(*pair) == route for pair, route in routes.items())
    for name in hanging:
        for target in set(graph) - {name}:
            paths = best_paths(graph, name, target) if nx.has_path(graph, name, target) else []
            if paths:
                assert list(router.route(name, target)) in [list(itertools.pairwise(path)) for path in paths]


def test_routes_of_a_large_hierarchy_take_no_search() -> None:
    router = Router(two_level(hosts=2048, gpus_per_host=8))
    start = time.process_time()
    for host in range(2048):
        assert len(router.route(f"host{host}/gpu7", f"host{(host + 1) % 2048}/gpu0")) == 4
    assert time.process_time() - start < 1  # 0.02 s on a quiet machine; 14 s with searches
