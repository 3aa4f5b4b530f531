"""Topologies as files: GraphML, GML, edge list and JSON node-link data, as networkx reads and writes them.

The attributes in a file are those of the attribute model, as plain numbers in SI units. What the formats do
not say by themselves is fixed here:

- If every node's name is a decimal integer, the nodes are the ranks of a rank graph, and become integers.
- An edge list has edges only. Every node counts as kind `gpu`; integers are put in ascending order, other
  names keep the order in which they first appear. A first line `# directed` makes its edges arcs.
- Attributes of the graph as a whole are not part of the model, and are neither written nor returned.

`write_topology` reads back what it is about to write and refuses a graph that the format cannot hold, so a
file that was written always gives the same nodes, order and attributes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx

from topologies.attributes import EDGE_ATTRIBUTES, DiGraph, Graph, check_attributes, nearest

DIRECTED_LINE = "# directed"

# What networkx's parsers, and those below them, raise on a text that is not of their format
# (xml's ParseError is a SyntaxError, JSON's and Unicode's errors are ValueErrors).
_PARSE_ERRORS = (nx.NetworkXException, SyntaxError, ValueError, TypeError, LookupError, AttributeError)

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


class _Format(NamedTuple):
    """One file format: text to graph, graph to text."""

    name: str
    parse: Callable[[str], Graph]
    format: Callable[[Graph], str]


def _new_like(graph: Graph) -> Graph:
    empty: Graph | DiGraph = nx.DiGraph() if graph.is_directed() else nx.Graph()
    return empty


def _with_integer_names(graph: Graph) -> Graph:
    """Return a copy in which the names are integers, if all of them are written as such."""
    if graph.is_multigraph():
        return graph
    ranks = all(isinstance(node, str) and _INTEGER.fullmatch(node) for node in graph)
    copy = _new_like(graph)
    copy.add_nodes_from((int(node) if ranks else node, data) for node, data in graph.nodes(data=True))
    for tail, head, data in graph.edges(data=True):
        copy.add_edge(int(tail) if ranks else tail, int(head) if ranks else head, **data)
    return copy


def _parse_graphml(text: str) -> Graph:
    graph: Graph = nx.parse_graphml(text)
    if graph.is_multigraph():
        return graph
    # networkx leaves the defaults of GraphML's keys at the graph.
    for defaults, attributes in (
        (graph.graph.get("node_default", {}), graph.nodes.values()),
        (graph.graph.get("edge_default", {}), graph.edges.values()),
    ):
        for data in attributes:
            data.update({key: value for key, value in defaults.items() if key not in data})
    return _with_integer_names(graph)


def _format_graphml(graph: Graph) -> str:
    return "\n".join(nx.generate_graphml(graph)) + "\n"


def _parse_gml(text: str) -> Graph:
    graph: Graph = nx.parse_gml(text, label="id")
    labels = nx.get_node_attributes(graph, "label")
    if not labels:  # GML asks for an id only
        return graph
    if len(labels) < len(graph) or len(set(labels.values())) < len(graph):
        raise ValueError("every node needs a label of its own")
    named: Graph = nx.relabel_nodes(graph, {node: str(label) for node, label in labels.items()})
    for data in named.nodes.values():
        del data["label"]
    return _with_integer_names(named)


def _format_gml(graph: Graph) -> str:
    return "\n".join(nx.generate_gml(graph)) + "\n"


def _parse_edge_list(text: str) -> Graph:
    lines = text.splitlines()
    directed = bool(lines) and lines[0].strip() == DIRECTED_LINE
    edges = [line for line in lines if line.split("#", 1)[0].strip()]
    for line in edges:
        if len(line.split()) < 2:
            raise ValueError(f"line {line.strip()!r} names no edge")
    # Arcs first, whatever is wanted: they keep the order of each node's edges when the nodes are sorted.
    arcs = _with_integer_names(nx.parse_edgelist(edges, create_using=nx.DiGraph))
    graph: Graph | DiGraph = nx.DiGraph() if directed else nx.Graph()
    ranks = all(isinstance(node, int) for node in arcs)
    graph.add_nodes_from(sorted(arcs) if ranks else arcs, kind="gpu")
    graph.add_edges_from(arcs.edges(data=True))
    if graph.number_of_edges() < len(edges):
        raise ValueError("an edge is given twice")
    return graph


def _format_edge_list(graph: Graph) -> str:
    head = [DIRECTED_LINE] if graph.is_directed() else []
    return "\n".join([*head, *nx.generate_edgelist(graph)]) + "\n"


def _parse_json(text: str) -> Graph:
    data = json.loads(text)
    for key in ("nodes", "edges"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"node-link data needs a list under {key!r}")
    graph: Graph = nx.node_link_graph(
        {"directed": False, "multigraph": False, "graph": {}, **data}, edges="edges"
    )
    if not graph.is_multigraph() and graph.number_of_edges() < len(data["edges"]):
        raise ValueError("an edge is given twice")
    if len(graph) > len(data["nodes"]):
        stray = list(graph)[len(data["nodes"])]
        raise ValueError(f"an edge ends at {stray!r}, which is not among the nodes")
    return graph


def _format_json(graph: Graph) -> str:
    return json.dumps(nx.node_link_data(graph, edges="edges"), indent=1, allow_nan=False) + "\n"


_FORMATS: dict[str, _Format] = {
    ".edgelist": _Format("an edge list", _parse_edge_list, _format_edge_list),
    ".gml": _Format("GML", _parse_gml, _format_gml),
    ".graphml": _Format("GraphML", _parse_graphml, _format_graphml),
    ".json": _Format("JSON", _parse_json, _format_json),
}

SUFFIXES = tuple(_FORMATS)
"""The file suffixes that `read_topology` and `write_topology` know."""


def _format_of(path: Path) -> _Format:
    suffix = path.suffix.lower()
    if suffix in _FORMATS:
        return _FORMATS[suffix]
    near = nearest(suffix, SUFFIXES, cutoff=0.78)
    known = f"the nearest is {near!r}" if near else f"the known ones are {', '.join(map(repr, SUFFIXES))}"
    raise ValueError(f"{path}: unknown suffix {path.suffix!r}; {known}")


def _reason(error: Exception) -> str:
    """Return what a parser said, as one line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def read_topology(path: str | os.PathLike[str]) -> Graph:
    """Read a topology from a file; its suffix says the format.

    Parameters
    ----------
    path
        A file with the suffix .graphml, .gml, .edgelist (networkx's data format) or .json (node-link data,
        with its edges under the key "edges").

    Returns
    -------
    Graph
        A graph or directed graph with checked attributes. Whether it is connected is not checked here:
        a round of a communication schedule need not be.

    Raises
    ------
    ValueError
        If the suffix is unknown, the file is missing, unreadable or truncated, or an attribute is missing
        or wrong; one sentence that begins with the file's name.
    """
    path = Path(path)
    file_format = _format_of(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"{path}: cannot be read: {reason}") from None
    try:
        graph = file_format.parse(text)
    except _PARSE_ERRORS as error:
        raise ValueError(f"{path}: not {file_format.name}, or truncated: {_reason(error)}") from None
    try:
        check_attributes(graph)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not graph:
        raise ValueError(f"{path}: there is no node in it")
    return graph


def _plain(graph: Graph) -> Graph:
    """Return a copy without attributes of the graph as a whole, with the numbers of its links as floats."""
    copy = _new_like(graph)
    copy.add_nodes_from(graph.nodes(data=True))
    for tail, head, data in graph.edges(data=True):
        numbers = {key: float(data[key]) for key in EDGE_ATTRIBUTES if key in data and key != "duplex"}
        copy.add_edge(tail, head, **{**data, **numbers})
    return copy


def _difference(wanted: Graph, given: Graph) -> str | None:
    """Return what of `wanted` is not in `given`, or None if both are the same in the same order."""
    if wanted.is_directed() != given.is_directed() or list(wanted) != list(given):
        return "the order or the names of the nodes"

    def changed(before: dict[str, Any], after: dict[str, Any]) -> str | None:
        for key in [*before, *after]:
            if key not in before or key not in after or before[key] != after[key]:
                return f"attribute {key!r}"
            if isinstance(before[key], bool) != isinstance(after[key], bool):  # True == 1, but not in a file
                return f"attribute {key!r}"
        return None

    for node, data in wanted.nodes(data=True):
        if key := changed(data, given.nodes[node]):
            return f"{key} of node {node!r}"
    if list(wanted.edges()) != list(given.edges()):
        return "the order of the edges"
    for tail, head, data in wanted.edges(data=True):
        if key := changed(data, given.edges[tail, head]):
            return f"{key} of the edge between {tail!r} and {head!r}"
    return None


def write_topology(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write a topology to a file that `read_topology` gives back with the same nodes, order and attributes.

    Parameters
    ----------
    graph
        A graph whose attributes pass `check_attributes`.
    path
        The file; its suffix says the format, as for `read_topology`. An existing file is replaced.

    Raises
    ------
    ValueError
        If the suffix is unknown, an attribute is missing or wrong, the format cannot hold the graph, or the
        file cannot be written; one sentence that begins with the file's name.
    """
    path = Path(path)
    file_format = _format_of(path)
    try:
        check_attributes(graph)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    plain = _plain(graph)
    try:
        text = file_format.format(plain)
        lost = _difference(plain, file_format.parse(text))
    except _PARSE_ERRORS as error:
        raise ValueError(f"{path}: {file_format.name} cannot hold this graph: {_reason(error)}") from None
    if lost:
        raise ValueError(f"{path}: {file_format.name} cannot hold {lost}; .json and .graphml hold the most")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
