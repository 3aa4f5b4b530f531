"""Files: every format gives back what it was given, and every refusal begins with the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topologies import BUILDERS, SUFFIXES, LinkSpec, read_topology, ring, switch, two_level, write_topology

LINK = LinkSpec(bandwidth=1.25e10, latency=3e-7, efficiency=0.35)


def everything(graph: Any) -> tuple[Any, ...]:
    edges = [(*sorted(edge, key=list(graph).index), data) for *edge, data in graph.edges(data=True)]
    if graph.is_directed():
        edges = list(graph.edges(data=True))
    return graph.is_directed(), list(graph.nodes(data=True)), edges


@pytest.mark.parametrize("name", BUILDERS)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_every_builder(
    name: str, data: st.DataObject, parameters: dict[str, Any], tmp_path: Path
) -> None:
    graph = BUILDERS[name](**data.draw(parameters[name]))
    for suffix in (".graphml", ".gml", ".json"):
        path = tmp_path / f"cluster{suffix}"
        write_topology(graph, path)
        assert everything(read_topology(path)) == everything(graph)


@pytest.mark.parametrize("name", ["ring", "complete", "torus", "random-regular", "exponential"])
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_rank_graphs_as_edge_lists(
    name: str, data: st.DataObject, parameters: dict[str, Any], tmp_path: Path
) -> None:
    graph = BUILDERS[name](**data.draw(parameters[name]))
    path = tmp_path / "ranks.edgelist"
    if graph.number_of_edges():
        write_topology(graph, path)
        assert everything(read_topology(path)) == everything(graph)


@pytest.mark.parametrize("suffix", [".graphml", ".gml", ".json"])
def test_ranks_and_foreign_attributes_survive(suffix: str, tmp_path: Path) -> None:
    graph = two_level(hosts=2, gpus_per_host=1, network=LINK)
    graph.nodes["host0/gpu0"]["rank"] = 1
    graph.nodes["host1/gpu0"]["rank"] = 0
    graph.nodes["switch"]["label_text"] = 'a "quoted" ünit <&>'
    graph.edges["host0", "switch"]["metres"] = 1.5
    write_topology(graph, tmp_path / f"x{suffix}")
    assert everything(read_topology(tmp_path / f"x{suffix}")) == everything(graph)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_integer_values_become_floats_and_graph_attributes_are_left_out(suffix: str, tmp_path: Path) -> None:
    graph = ring(nodes=3)
    graph.graph["name"] = "mine"
    for *_, data in graph.edges(data=True):
        data["bandwidth"] = 10**11  # beyond 32 bits, where GML would make it a string
    write_topology(graph, tmp_path / f"x{suffix}")
    read = read_topology(str(tmp_path / f"x{suffix}"))
    assert [data["bandwidth"] for *_, data in read.edges(data=True)] == [1e11] * 3
    assert {type(data["bandwidth"]) for *_, data in read.edges(data=True)} == {float}
    if suffix in (".json", ".edgelist"):
        assert read.graph == {}
    assert graph.graph["name"] == "mine"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        for name in ("a", "b"):
            write_topology(ring(nodes=6), tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    write_topology(ring(nodes=3), tmp_path / "X.GML")
    assert read_topology(tmp_path / "X.GML").number_of_edges() == 3


def test_edge_list_nodes_are_gpus_in_numeric_order(tmp_path: Path) -> None:
    path = tmp_path / "r.edgelist"
    path.write_text("# my cluster\n10 2 {'bandwidth': 5.0}\n\n2 1 {'bandwidth': 5.0, 'latency': 1e-6}\n")
    graph = read_topology(path)
    assert list(graph.nodes(data=True)) == [(1, {"kind": "gpu"}), (2, {"kind": "gpu"}), (10, {"kind": "gpu"})]
    assert graph.edges[1, 2] == {"bandwidth": 5.0, "latency": 1e-6}
    assert not graph.is_directed()


def test_edge_list_keeps_the_order_of_the_edges_of_a_node(tmp_path: Path) -> None:
    path = tmp_path / "r.edgelist"
    path.write_text("".join(f"{edge} {{'bandwidth': 5.0}}\n" for edge in ("0 9", "0 1", "1 9", "1 5")))
    assert list(read_topology(path).edges()) == [(0, 9), (0, 1), (1, 9), (1, 5)]


def test_edge_list_of_names_keeps_their_first_appearance(tmp_path: Path) -> None:
    path = tmp_path / "r.edgelist"
    path.write_text("b a {'bandwidth': 5.0}\nb 1 {'bandwidth': 5.0}\n")
    assert list(read_topology(path)) == ["b", "a", "1"]


def test_edge_list_with_the_directed_line_has_arcs(tmp_path: Path) -> None:
    path = tmp_path / "r.edgelist"
    path.write_text("# directed\n0 1 {'bandwidth': 5.0}\n1 0 {'bandwidth': 6.0}\n")
    graph = read_topology(path)
    assert graph.is_directed()
    assert list(graph.edges(data="bandwidth")) == [(0, 1, 5.0), (1, 0, 6.0)]


def test_graphml_of_another_tool_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "yed.graphml"
    path.write_text(
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        '<key id="k" for="node" attr.name="kind" attr.type="string"><default>gpu</default></key>'
        '<key id="b" for="edge" attr.name="bandwidth" attr.type="double"><default>7.5</default></key>'
        '<graph edgedefault="undirected"><node id="n0"><data key="k">switch</data></node><node id="n1"/>'
        '<edge id="e" source="n0" target="n1"/></graph></graphml>'
    )
    graph = read_topology(path)
    assert dict(graph.nodes(data="kind")) == {"n0": "switch", "n1": "gpu"}
    assert graph.edges["n0", "n1"]["bandwidth"] == 7.5


def test_gml_without_labels_is_named_by_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.gml"
    path.write_text(
        'graph [\n node [ id 4 kind "gpu" ]\n node [ id 2 kind "gpu" ]\n'
        " edge [ source 4 target 2 bandwidth 5.0 ]\n]\n"
    )
    assert list(read_topology(path)) == [4, 2]


def test_missing_file(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        with pytest.raises(ValueError) as error:
            read_topology(tmp_path / f"none{suffix}")
        assert str(error.value) == f"{tmp_path}/none{suffix}: no such file"


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError) as error:
        read_topology(tmp_path / "folder.json")
    assert str(error.value) == f"{tmp_path}/folder.json: cannot be read: Is a directory"
    (tmp_path / "bytes.gml").write_bytes(b"graph [\xff\xfe]")
    with pytest.raises(ValueError) as error:
        read_topology(tmp_path / "bytes.gml")
    assert str(error.value) == f"{tmp_path}/bytes.gml: cannot be read: it is not UTF-8 text"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.graphm", "x.graphm: unknown suffix '.graphm'; the nearest is '.graphml'"),
        ("x.gmll", "x.gmll: unknown suffix '.gmll'; the nearest is '.gml'"),
        (
            "x.xml",
            "x.xml: unknown suffix '.xml'; the known ones are '.edgelist', '.gml', '.graphml', '.json'",
        ),
        ("x.edges", "x.edges: unknown suffix '.edges'; the nearest is '.edgelist'"),
        (
            "x.yaml",
            "x.yaml: unknown suffix '.yaml'; the known ones are '.edgelist', '.gml', '.graphml', '.json'",
        ),
        ("x", "x: unknown suffix ''; the known ones are '.edgelist', '.gml', '.graphml', '.json'"),
    ],
)
def test_unknown_suffix(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_topology(name)
    assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        write_topology(ring(nodes=2), name)
    assert str(error.value) == message


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_file_is_one_sentence(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut{suffix}"
    write_topology(ring(nodes=4, link=LINK), path)
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(ValueError) as error:
        read_topology(path)
    assert str(error.value).startswith(f"{path}: not ")
    assert "truncated" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "text", ["", "hello", "\x00\x01", "[1, 2]", "{}", "<a/>", "graph", "graph []", "1", "{"]
)
def test_garbage_is_one_sentence(suffix: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_topology(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@given(text=st.text(max_size=60), suffix=st.sampled_from(SUFFIXES))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_text_never_escapes_as_another_error(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_topology(path)
    assert str(error.value).startswith(f"{path}: ")


def node_link(*edges: dict[str, Any], **changes: Any) -> str:
    """Two GPUs "a" and "b" with these edges, as node-link data."""
    nodes = [{"id": "a", "kind": "gpu"}, {"id": "b", "kind": "gpu"}]
    return json.dumps({"nodes": nodes, "edges": list(edges), **changes})


AB = {"source": "a", "target": "b"}
BA = {"source": "b", "target": "a", "bandwidth": 1.0}
AC = {"source": "a", "target": "c", "bandwidth": 1.0}

NO_BANDWIDTH = "bandwidth is missing; every edge needs one, in B/s"
BAD_BANDWIDTH = "bandwidth must be a finite number of B/s above 0, got"
NO_KIND = "node 'a': kind is missing; every node needs one, such as 'gpu' or 'switch'"
NOT_JSON = "not JSON, or truncated:"
NOT_EDGES = "not an edge list, or truncated:"
MULTIGRAPH = (
    "a multigraph is not a cluster graph: give each pair of nodes one edge, "
    "with the sum of the bandwidths of the parallel ones"
)
PARALLEL_GRAPHML = (
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected">'
    '<node id="a"/><node id="b"/><edge source="a" target="b"/><edge source="a" target="b"/></graph></graphml>'
)

BAD_FILES = [
    (".json", "[1", f"{NOT_JSON} Expecting ',' delimiter: line 1 column 3 (char 2)"),
    (".json", '{"nodes": []}', f"{NOT_JSON} node-link data needs a list under 'edges'"),
    (".json", "[]", f"{NOT_JSON} node-link data needs a list under 'nodes'"),
    (".json", node_link(nodes=[]), "there is no node in it"),
    (".json", node_link(AB), f"edge a<->b: {NO_BANDWIDTH}"),
    (".json", node_link({**AB, "bandwidth": -3}), f"edge a<->b: {BAD_BANDWIDTH} -3"),
    (".json", node_link({**AB, "bandwidth": "1 GB/s"}), f"edge a<->b: {BAD_BANDWIDTH} '1 GB/s'"),
    (".json", node_link(AC), f"{NOT_JSON} an edge ends at 'c', which is not among the nodes"),
    (".json", node_link(AB, BA), f"{NOT_JSON} an edge is given twice"),
    (".json", node_link({"source": "a"}), f"{NOT_JSON} 'target' is missing"),
    (".json", node_link(nodes=[{"id": "a"}]), NO_KIND),
    (".json", node_link(multigraph=True), MULTIGRAPH),
    (".edgelist", "0 1\n", f"edge 0<->1: {NO_BANDWIDTH}"),
    (".edgelist", "0 1 {'bandwidth': 0}\n", f"edge 0<->1: {BAD_BANDWIDTH} 0"),
    (".edgelist", "0 1 {'bandwidth': 1}\n1\n", f"{NOT_EDGES} line '1' names no edge"),
    (".edgelist", "0 1 {'bandwidth': 1}\n1 0 {}\n", f"{NOT_EDGES} an edge is given twice"),
    (".edgelist", "", "there is no node in it"),
    (".gml", 'graph [ multigraph 1 node [ id 0 label "a" kind "gpu" ] ]', MULTIGRAPH),
    (
        ".gml",
        'graph [ node [ id 0 label "a" ] node [ id 1 label "a" ] ]',
        "not GML, or truncated: every node needs a label of its own",
    ),
    (".gml", 'graph [ node [ id 0 label "a" ] ]', NO_KIND),
    (".graphml", PARALLEL_GRAPHML, MULTIGRAPH),
]


@pytest.mark.parametrize(("suffix", "text", "message"), BAD_FILES)
def test_bad_files(suffix: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_topology(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("graph", "name", "message"),
    [
        (
            switch(gpus=2),
            "x.edgelist",
            "an edge list cannot hold the order or the names of the nodes; .json and .graphml hold the most",
        ),
        (
            ring(nodes=1),
            "x.edgelist",
            "an edge list cannot hold the order or the names of the nodes; .json and .graphml hold the most",
        ),
        (
            nx.relabel_nodes(ring(nodes=2), {0: "0", 1: "1"}),
            "x.gml",
            "GML cannot hold the order or the names of the nodes; .json and .graphml hold the most",
        ),
        (
            nx.relabel_nodes(ring(nodes=2), {0: "a b", 1: "c"}),
            "x.edgelist",
            "an edge list cannot hold this graph: Failed to convert edge data (['c', \"{'bandwidth':\", "
            "'1250000000.0,', \"'latency':\", '5e-06,', \"'efficiency':\", '1.0,', \"'duplex':\", "
            "\"'full'}\"]) to dictionary",
        ),
    ],
)
def test_graph_that_a_format_cannot_hold_is_refused(
    graph: Any, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        write_topology(graph, tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: {message}"
    assert not (tmp_path / name).exists()


def test_attribute_that_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    graph = ring(nodes=2)
    graph.nodes[1]["spare"] = True
    write_topology(graph, tmp_path / "x.json")
    with pytest.raises(ValueError) as error:
        write_topology(graph, tmp_path / "x.gml")
    assert str(error.value) == (
        f"{tmp_path}/x.gml: GML cannot hold attribute 'spare' of node 1; .json and .graphml hold the most"
    )
    with pytest.raises(ValueError) as error:
        write_topology(graph, tmp_path / "x.edgelist")
    assert str(error.value) == (
        f"{tmp_path}/x.edgelist: an edge list cannot hold attribute 'spare' of node 1; "
        ".json and .graphml hold the most"
    )


def test_unsound_graph_is_not_written(tmp_path: Path) -> None:
    graph = ring(nodes=2)
    graph.edges[0, 1]["bandwidth"] = 0
    with pytest.raises(ValueError) as error:
        write_topology(graph, tmp_path / "x.json")
    assert str(error.value) == (
        f"{tmp_path}/x.json: edge 0<->1: bandwidth must be a finite number of B/s above 0, got 0"
    )


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        write_topology(ring(nodes=2), tmp_path / "none" / "x.json")
    assert str(error.value) == f"{tmp_path}/none/x.json: cannot be written: No such file or directory"
