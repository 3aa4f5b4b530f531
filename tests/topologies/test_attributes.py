"""The attribute model: links and their numbering, rank order, and the exact words of every refusal."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import networkx as nx
import numpy as np
import pytest

from topologies import LinkSpec, check_attributes, gpus, link_spec, link_table, validate_cluster


def pair(**edge: Any) -> Any:
    """Two GPUs and one edge with the given attributes."""
    graph: Any = nx.Graph()
    graph.add_nodes_from(["a", "b"], kind="gpu")
    graph.add_edge("a", "b", **edge)
    return graph


def test_link_spec_defaults_and_attributes_are_floats_in_si() -> None:
    spec = LinkSpec(bandwidth=100)
    assert spec.attributes() == {"bandwidth": 100.0, "latency": 0.0, "efficiency": 1.0, "duplex": "full"}
    assert [type(value) for value in spec.attributes().values()] == [float, float, float, str]
    assert LinkSpec(bandwidth=100, efficiency=0.25).capacity == 25.0


def test_link_spec_takes_numpy_numbers() -> None:
    latency: Any = np.int64(1)
    assert LinkSpec(bandwidth=np.float64(8.0), latency=latency).attributes()["latency"] == 1.0


def test_link_spec_carries_its_units_for_readers_of_scenarios() -> None:
    hints = get_type_hints(LinkSpec, include_extras=True)
    assert hints["bandwidth"].__metadata__ == ("B/s",)
    assert hints["latency"].__metadata__ == ("s",)


BAD_VALUES = [
    ({"bandwidth": 0}, "bandwidth must be a finite number of B/s above 0, got 0"),
    ({"bandwidth": -1.5}, "bandwidth must be a finite number of B/s above 0, got -1.5"),
    ({"bandwidth": math.nan}, "bandwidth must be a finite number of B/s above 0, got nan"),
    ({"bandwidth": math.inf}, "bandwidth must be a finite number of B/s above 0, got inf"),
    ({"bandwidth": "25 Gbps"}, "bandwidth must be a finite number of B/s above 0, got '25 Gbps'"),
    ({"bandwidth": True}, "bandwidth must be a finite number of B/s above 0, got True"),
    ({"bandwidth": None}, "bandwidth must be a finite number of B/s above 0, got None"),
    ({"latency": -1e-6}, "latency must be a finite number of seconds, 0 or more, got -1e-06"),
    ({"latency": math.nan}, "latency must be a finite number of seconds, 0 or more, got nan"),
    ({"efficiency": 0}, "efficiency must be a number above 0 and at most 1, got 0"),
    ({"efficiency": 1.01}, "efficiency must be a number above 0 and at most 1, got 1.01"),
    ({"efficiency": math.nan}, "efficiency must be a number above 0 and at most 1, got nan"),
    ({"duplex": "fll"}, "duplex must be 'full' or 'half', got 'fll'; the nearest is 'full'"),
    ({"duplex": "simplex"}, "duplex must be 'full' or 'half', got 'simplex'"),
    ({"duplex": 2}, "duplex must be 'full' or 'half', got 2"),
]


@pytest.mark.parametrize(("values", "message"), BAD_VALUES)
def test_bad_values_are_refused_by_the_spec_and_on_an_edge(values: dict[str, Any], message: str) -> None:
    values = {"bandwidth": 1.0, **values}
    with pytest.raises(ValueError) as error:
        LinkSpec(**values)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        validate_cluster(pair(**values))
    assert str(error.value) == f"edge a<->b: {message}"
    with pytest.raises(ValueError) as error:
        link_table(pair(**values))
    assert str(error.value) == f"edge a<->b: {message}"


def test_missing_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        validate_cluster(pair(latency=1.0))
    assert str(error.value) == "edge a<->b: bandwidth is missing; every edge needs one, in B/s"


@pytest.mark.parametrize(
    ("key", "meant"), [("bandwith", "bandwidth"), ("Latency", "latency"), ("eficiency", "efficiency")]
)
def test_misspelt_edge_attribute_is_refused_with_the_nearest(key: str, meant: str) -> None:
    with pytest.raises(ValueError) as error:
        validate_cluster(pair(**{"bandwidth": 1.0, key: 0.5}))
    assert str(error.value) == f"edge a<->b: unknown attribute {key!r}; the nearest is {meant!r}"


def test_attributes_outside_the_model_are_left_alone() -> None:
    validate_cluster(pair(bandwidth=1.0, weight=3, label="cable", width=2, color="red"))


def test_link_spec_of_an_edge_has_the_defaults() -> None:
    assert link_spec(pair(bandwidth=8.0), "b", "a") == LinkSpec(8.0, 0.0, 1.0, "full")


def test_self_loop_is_refused() -> None:
    graph = pair(bandwidth=1.0)
    graph.add_edge("b", "b", bandwidth=1.0)
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "edge b<->b: a self loop is not a link"


@pytest.mark.parametrize("check", [validate_cluster, check_attributes, link_table])
@pytest.mark.parametrize("kind", [nx.MultiGraph, nx.MultiDiGraph])
def test_multigraph_is_refused(check: Any, kind: Any) -> None:
    with pytest.raises(ValueError) as error:
        check(kind(pair(bandwidth=1.0)))
    assert str(error.value) == (
        "a multigraph is not a cluster graph: give each pair of nodes one edge, "
        "with the sum of the bandwidths of the parallel ones"
    )


def test_half_duplex_arc_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        validate_cluster(pair(bandwidth=1.0, duplex="half").to_directed())
    assert str(error.value) == (
        "edge a->b: duplex 'half' has no meaning in a directed graph, where every arc is one link"
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({}, "node 'c': kind is missing; every node needs one, such as 'gpu' or 'switch'"),
        ({"kind": ""}, "node 'c': kind must be a word such as 'gpu' or 'switch', got ''"),
        ({"kind": 3}, "node 'c': kind must be a word such as 'gpu' or 'switch', got 3"),
        ({"kind": "GPU"}, "node 'c': unknown kind 'GPU'; the nearest is 'gpu'"),
    ],
)
def test_bad_kind_is_refused(kind: dict[str, Any], message: str) -> None:
    graph = pair(bandwidth=1.0)
    graph.add_node("c", **kind)
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == message


def test_nodes_of_one_name_are_refused() -> None:
    graph: Any = nx.Graph()
    graph.add_nodes_from(["1", 1], kind="gpu")
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "nodes '1' and 1 have the same name"


def test_graph_without_gpu_is_refused() -> None:
    graph: Any = nx.Graph()
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "no node has kind 'gpu': the graph has no nodes"
    graph.add_node("s", kind="switch")
    graph.add_node("h", kind="host")
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "no node has kind 'gpu': the kinds are 'host', 'switch'"


def test_disconnected_graph_names_an_unreachable_node() -> None:
    graph = pair(bandwidth=1.0)
    graph.add_node("c", kind="switch")
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "the graph is disconnected: node 'c' cannot be reached from node 'a'"
    check_attributes(graph)


def test_directed_graph_must_be_connected_both_ways() -> None:
    graph: Any = nx.DiGraph()
    graph.add_nodes_from("abc", kind="gpu")
    graph.add_edge("a", "b", bandwidth=1.0)
    graph.add_edge("b", "a", bandwidth=1.0)
    graph.add_edge("c", "b", bandwidth=1.0)
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "the graph is disconnected: node 'c' cannot be reached from node 'a'"
    graph.remove_edge("c", "b")
    graph.add_edge("b", "c", bandwidth=1.0)
    with pytest.raises(ValueError) as error:
        validate_cluster(graph)
    assert str(error.value) == "the graph is disconnected: node 'a' cannot be reached from node 'c'"
    graph.add_edge("c", "b", bandwidth=1.0)
    validate_cluster(graph)


def three(*ranks: Any) -> Any:
    graph: Any = nx.Graph()
    graph.add_node("s", kind="switch", rank=0)
    for name, rank in zip("zxy", ranks, strict=True):
        graph.add_node(name, kind="gpu", **({} if rank is None else {"rank": rank}))
    return graph


def test_rank_order_is_graph_order_unless_ranks_are_given() -> None:
    assert gpus(three(None, None, None)) == ["z", "x", "y"]
    assert gpus(three(10, 9, 1)) == ["y", "x", "z"]
    assert gpus(three(np.int64(2), 1, 0)) == ["y", "x", "z"]
    assert gpus(nx.Graph()) == []


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0, None, 1), "node 'x': rank is missing, but other gpu nodes have one"),
        ((0, "1", 2), "node 'x': rank must be an integer, got '1'"),
        ((0, 1.0, 2), "node 'x': rank must be an integer, got 1.0"),
        ((0, True, 2), "node 'x': rank must be an integer, got True"),
        ((4, 1, 4), "node 'y': rank 4 is already the rank of node 'z'"),
    ],
)
def test_bad_ranks_are_refused(ranks: tuple[Any, ...], message: str) -> None:
    for check in (gpus, check_attributes):
        with pytest.raises(ValueError) as error:
            check(three(*ranks))
        assert str(error.value) == message


def test_link_table_numbers_two_links_a_full_duplex_edge_and_one_a_half_duplex_edge() -> None:
    graph: Any = nx.Graph()
    graph.add_nodes_from(["gpu0", "gpu1"], kind="gpu")
    graph.add_node("switch", kind="switch")
    graph.add_edge("gpu0", "switch", bandwidth=100, efficiency=0.5, latency=2)
    graph.add_edge("gpu1", "switch", bandwidth=40, duplex="half")
    table = link_table(graph)
    assert table.names == ("gpu0->switch", "switch->gpu0", "gpu1<->switch")
    assert table.capacity == (50.0, 50.0, 40.0)
    assert table.latency == (2.0, 2.0, 0.0)
    assert table.index == {
        ("gpu0", "switch"): 0,
        ("switch", "gpu0"): 1,
        ("gpu1", "switch"): 2,
        ("switch", "gpu1"): 2,
    }


def test_link_table_of_a_directed_graph_has_one_link_an_arc() -> None:
    graph: Any = nx.DiGraph()
    graph.add_edge(0, 1, bandwidth=1.0)
    graph.add_edge(1, 0, bandwidth=2.0, latency=3.0)
    table = link_table(graph)
    assert table.names == ("0->1", "1->0")
    assert table.capacity == (1.0, 2.0)
    assert table.latency == (0.0, 3.0)
    assert table.index == {(0, 1): 0, (1, 0): 1}
