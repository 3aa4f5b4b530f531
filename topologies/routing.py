"""Routes through a topology: which links a transfer between two nodes takes.

A route is a path of fewest hops. Among those, one with fewest GPUs on the way wins, since a switch or host
is there to forward and a GPU is not; in rings and tori, where there is nothing else, GPUs do forward. What
is still equal is decided by policy:

- `shortest`: the path whose nodes come first in the order of the graph's nodes (compared node by node from
  the source), so every pair always takes the same path;
- `ecmp` (equal-cost multi-path, RFC 2992): one of the equal paths, each equally likely, picked by a hash of
  the pair; a flow stays on its path, and different flows spread. The hash is a fixed one, so a run can be
  repeated.

Given routes go before the policy. Trees that hang on the rest of the graph, such as the machines of a
hierarchy, need no search: a route climbs to where the trees meet, or to their roots. In what is left, such as
the spines of a fat tree, a breadth-first search backwards from each destination counts the best paths from
each node; it stops as soon as the source is reached and goes on from there when a further source needs it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import networkx as nx

from topologies.attributes import Graph, Node, check_simple, edge_name, kind_of, nearest

POLICIES = ("shortest", "ecmp")

REMEMBERED_NODES = 500_000
"""About how many nodes the searches that a router keeps may hold in all."""

Route: TypeAlias = tuple[tuple[Node, Node], ...]


class _Destination:
    """Best paths from every node to one destination, found level by level.

    Nodes are numbers in graph order. For a node that has been reached: `hops` to the destination, `transit`,
    the fewest GPUs in between, and `paths`, the number of paths that have both.
    """

    def __init__(self, target: int, predecessors: Sequence[Sequence[int]], is_gpu: Sequence[bool]) -> None:
        self.target = target
        self.hops = {target: 0}
        self.transit = {target: 0}
        self.paths = {target: 1}
        self._frontier = [target]
        self._predecessors = predecessors
        self._is_gpu = is_gpu

    def reaches(self, source: int) -> bool:
        """Search on until `source` is reached; return False when it never is."""
        while source not in self.hops and self._frontier:
            self._grow()
        return source in self.hops

    def _grow(self) -> None:
        hops, transit, paths = self.hops, self.transit, self.paths
        level = hops[self._frontier[0]] + 1
        reached = []
        for node in self._frontier:
            through = transit[node] + (self._is_gpu[node] and node != self.target)
            for previous in self._predecessors[node]:
                if previous not in hops:
                    hops[previous], transit[previous], paths[previous] = level, through, paths[node]
                    reached.append(previous)
                elif hops[previous] == level and through == transit[previous]:
                    paths[previous] += paths[node]
                elif hops[previous] == level and through < transit[previous]:
                    transit[previous], paths[previous] = through, paths[node]
        self._frontier = reached

    def follows(self, node: int, following: int) -> bool:
        """Return whether a best path from `node` goes to its neighbour `following` next."""
        if self.hops.get(following) != self.hops[node] - 1:
            return False
        through = self.transit[following] + (self._is_gpu[following] and following != self.target)
        return through == self.transit[node]


class _HangingTrees:
    """The trees that hang on a graph by their roots: what is left when leaves are taken off again and again.

    Nodes are numbers in graph order. `parent` leads towards the root, and is -1 where nothing can be taken
    off: at roots and in between. `depth` is the distance from the root. A tree hangs on one of its own nodes.
    """

    def __init__(self, neighbours: Sequence[Collection[int]]) -> None:
        self.parent = [-1] * len(neighbours)
        self.depth = [0] * len(neighbours)
        left = [len(others) for others in neighbours]
        taken = [node for node, degree in enumerate(left) if degree == 1]
        for node in taken:
            if left[node] == 0:
                continue  # the last node of a tree is its root
            self.parent[node] = next(other for other in neighbours[node] if self.parent[other] != node)
            left[self.parent[node]] -= 1
            if left[self.parent[node]] == 1:
                taken.append(self.parent[node])
        for node in reversed(taken):
            if self.parent[node] >= 0:
                self.depth[node] = self.depth[self.parent[node]] + 1

    def climb(self, source: int, target: int) -> tuple[list[int], list[int]]:
        """Return the ways up from both ends, to the node where they meet or else to their two roots."""
        up, down = [source], [target]
        while up[-1] != down[-1] and (self.depth[up[-1]] or self.depth[down[-1]]):
            way = up if self.depth[up[-1]] >= self.depth[down[-1]] else down
            way.append(self.parent[way[-1]])
        return up, down


class Router:
    """Routes between nodes of one graph; those that took a search are remembered.

    Parameters
    ----------
    graph
        A topology; it must not change while the router is in use.
    policy
        "shortest" or "ecmp".
    routes
        Given routes: (source, destination) to the nodes on the way, both ends included. A pair that is not
        among them follows the policy.

    Raises
    ------
    ValueError
        If the policy is unknown, the graph is a multigraph, or a given route is no path of the graph.
    """

    def __init__(
        self,
        graph: Graph,
        policy: str = "shortest",
        routes: Mapping[tuple[Node, Node], Sequence[Node]] | None = None,
    ) -> None:
        if policy not in POLICIES:
            near = nearest(policy, POLICIES)
            hint = f"; the nearest is {near!r}" if near else ""
            raise ValueError(f"routing policy must be 'shortest' or 'ecmp', got {policy!r}{hint}")
        check_simple(graph)
        self.graph = graph
        self.policy = policy
        self._nodes: list[Node] = list(graph)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._is_gpu = [kind_of(graph, node) == "gpu" for node in graph]
        self._trees, self._successors = self._taken_apart(graph)
        self._predecessors = (
            self._neighbours(graph.pred) if isinstance(graph, nx.DiGraph) else self._successors
        )
        self._destinations: dict[int, _Destination] = {}
        self._found: dict[tuple[Node, Node], Route] = {}
        for (source, destination), path in (routes or {}).items():
            self._found[source, destination] = self._given(source, destination, path)

    def _neighbours(self, adjacency: Mapping[Node, Mapping[Node, object]]) -> list[list[int]]:
        """Return each node's other neighbours as numbers in graph order, whatever order the edges came in."""
        return [
            sorted(self._index[other] for other in adjacency[node] if other != node) for node in self._nodes
        ]

    def _taken_apart(self, graph: Graph) -> tuple[_HangingTrees, list[list[int]]]:
        """Return the trees that hang on an undirected graph, and the neighbours in what is left of it."""
        neighbours = self._neighbours(graph.adj)
        trees = _HangingTrees([()] * len(neighbours) if graph.is_directed() else neighbours)
        hanging = [parent >= 0 for parent in trees.parent]
        return trees, [
            [] if hanging[node] else [other for other in others if not hanging[other]]
            for node, others in enumerate(neighbours)
        ]

    def _number(self, node: Node) -> int:
        try:
            return self._index[node]
        except KeyError:
            near = nearest(node, [name for name in self._nodes if isinstance(name, str)])
            hint = f"; the nearest is {near!r}" if near else ""
            raise ValueError(f"node {node!r} is not in the graph{hint}") from None

    def _given(self, source: Node, destination: Node, path: Sequence[Node]) -> Route:
        """Return a given path as a route, after checking that it is one."""
        where = f"route from {source!r} to {destination!r}"
        if isinstance(path, str) or len(path) == 0 or path[0] != source or path[-1] != destination:
            raise ValueError(
                f"{where}: a route lists its nodes from the source to the destination, got {path!r}"
            )
        for node in path:
            try:
                self._number(node)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if len(set(path)) < len(path):
            twice = next(node for i, node in enumerate(path) if node in path[:i])
            raise ValueError(f"{where}: node {twice!r} is passed twice")
        route = tuple(itertools.pairwise(path))
        for tail, head in route:
            if not self.graph.has_edge(tail, head):
                raise ValueError(f"{where}: there is no edge {edge_name(self.graph, tail, head)}")
        return route

    def route(self, source: Node, destination: Node) -> Route:
        """Return the edges from `source` to `destination`, each as (tail, head).

        Returns
        -------
        tuple of (node, node)
            Consecutive edges; empty if both ends are the same node.

        Raises
        ------
        ValueError
            If a node is not in the graph, or no path joins the two.
        """
        found = self._found.get((source, destination))
        if found is not None:
            return found
        first, last = self._number(source), self._number(destination)
        if self.graph.has_edge(source, destination):
            return ((source, destination),) if first != last else ()
        up, down = self._trees.climb(first, last)
        between = [up.pop()]
        if between[-1] != down[-1]:
            between = self._search(between[-1], down[-1], (first, last))
        path = [self._nodes[number] for number in (*up, *between, *reversed(down[:-1]))]
        route = tuple(itertools.pairwise(path))
        if len(between) > 1:
            self._found[source, destination] = route
        return route

    def _search(self, source: int, target: int, pair: tuple[int, int]) -> list[int]:
        """Return the way through the part of the graph that is no hanging tree, for a transfer of a pair."""
        if target not in self._destinations:
            if len(self._destinations) * len(self._nodes) > REMEMBERED_NODES:
                self._destinations.clear()
            self._destinations[target] = _Destination(target, self._predecessors, self._is_gpu)
        destination = self._destinations[target]
        if not destination.reaches(source):
            first, last = (self._nodes[number] for number in pair)
            raise ValueError(f"no path from {first!r} to {last!r}")
        return self._walk(source, destination, self._pick(*pair, destination.paths[source]))

    def _walk(self, source: int, destination: _Destination, number: int) -> list[int]:
        """Return the best path of that number, counted in graph order."""
        path = [source]
        while path[-1] != destination.target:
            for following in self._successors[path[-1]]:
                if not destination.follows(path[-1], following):
                    continue
                if number < destination.paths[following]:
                    path.append(following)
                    break
                number -= destination.paths[following]
        return path

    def _pick(self, source: int, target: int, paths: int) -> int:
        """Return which of the equal paths the pair takes, in [0, paths)."""
        if self.policy == "shortest" or paths == 1:
            return 0
        digest = hashlib.blake2b(f"{source} {target}".encode(), digest_size=16).digest()
        return int.from_bytes(digest, "big") % paths
