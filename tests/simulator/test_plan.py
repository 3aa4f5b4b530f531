"""Who takes part in what: neighbours and channels of a rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest

from algorithms import Plan
from algorithms.algorithm import EXCHANGE, graph_channels
from simulator.faults import AlgorithmError
from simulator.plan import channel, neighbours


def averaging(graph: nx.Graph[int]) -> Any:
    """What of a scenario says who its neighbours are."""
    return SimpleNamespace(communication_graph=graph, algorithm=SimpleNamespace(needs_graph=True))


def plan(graph: nx.Graph[int], *without: tuple[int, int]) -> Plan:
    kept = [way for way in graph_channels(graph) if way[:2] not in without]
    return Plan({}, tuple(kept))


def test_neighbours_come_in_ascending_order() -> None:
    line: nx.Graph[int] = nx.Graph([(2, 1), (1, 0), (3, 3)])
    assert neighbours(averaging(line), plan(line), 1) == ((0, 2), (0, 2))
    assert neighbours(averaging(line), plan(line), 3) == ((3,), (3,))
    arcs: nx.DiGraph[int] = nx.DiGraph([(2, 0), (1, 0), (0, 3), (3, 0)])
    assert neighbours(averaging(arcs), plan(arcs), 0) == ((1, 2, 3), (3,))
    assert neighbours(averaging(arcs), plan(arcs), 1) == ((), (0,))


def test_a_dedicated_server_has_no_neighbours() -> None:
    pair = nx.path_graph(2)
    assert neighbours(averaging(pair), plan(pair), 2) == ((), ())


def test_the_first_undeclared_channel_is_named() -> None:
    line = nx.path_graph(3)
    scenario, lacking = averaging(line), plan(line, (1, 2), (1, 0), (2, 1))
    with pytest.raises(AlgorithmError, match=f"'{EXCHANGE}' from worker 1 to worker 0,"):
        neighbours(scenario, lacking, 1)
    with pytest.raises(AlgorithmError, match=f"'{EXCHANGE}' from worker 1 to worker 2,"):
        neighbours(scenario, lacking, 2)
    assert neighbours(averaging(nx.path_graph(2)), plan(line, (1, 2)), 0) == ((1,), (1,))


class Uncopied:
    """What nobody may copy."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise AssertionError("the graph was copied")


def test_the_neighbours_of_one_rank_take_no_copy_of_the_graph() -> None:
    ring = nx.cycle_graph(5)
    ring.graph["whole"] = Uncopied()
    assert neighbours(averaging(ring), plan(ring), 0) == ((1, 4), (1, 4))


def test_the_number_of_a_channel_is_its_position() -> None:
    ways = ((0, 1, "a"), (1, 0, "a"), (0, 1, "b"))
    assert [channel(Plan({}, ways), 0, *way) for way in ways] == [0, 1, 2]
    with pytest.raises(AlgorithmError) as caught:
        channel(Plan({}, ways), 1, 1, 0, "b")
    assert str(caught.value) == (
        "worker 1 used the channel 'b' from worker 1 to worker 0, which its algorithm's plan does not declare"
    )
