"""The benchmark workloads: drawn from a seed, the same in a file, and of the times that SimGrid gives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.compare import BEGIN, END, rewritten
from tests.benchmarks.on_clock import clocks, run_in_core, run_on_clock, run_stragglers
from tests.benchmarks.workloads import (
    ALL_REDUCE,
    EDGE,
    MESSAGE,
    NIC,
    NIC_LATENCY,
    WORKLOADS,
    Process,
    Route,
    Workload,
    gossip,
    incast,
    line,
    pairs,
    parameter_server,
    ring_on_fat_tree,
    ring_on_star,
    unrolled,
)

CORES = list(clocks())
GROWTH: dict[str, Callable[[int], Workload]] = {
    "incast": incast,
    "pairs": pairs,
    "line": partial(line, hops=3),
}
MAKERS: dict[str, Callable[[int], Workload]] = {
    **WORKLOADS,
    **GROWTH,
    "ring on a fat tree, 10 steps": partial(ring_on_fat_tree, steps=10),
}
SEEDED = (gossip, partial(gossip, shared=True), parameter_server, ring_on_fat_tree, *GROWTH.values())
LATENCY = 2 * NIC_LATENCY


@pytest.fixture(scope="module")
def simgrid() -> dict[str, Any]:
    """Return SimGrid's times of the workloads of 64 nodes."""
    file = Path(__file__).parents[2] / "goldens" / "simgrid_workloads.json"
    stored: dict[str, Any] = json.loads(file.read_text(encoding="ascii"))
    return stored


@pytest.mark.parametrize("title", MAKERS)
def test_a_workload_is_drawn_from_its_seed_alone(title: str) -> None:
    assert MAKERS[title](16) == MAKERS[title](16)


@pytest.mark.parametrize("make", SEEDED)
def test_another_seed_is_another_workload(make: Callable[..., Workload]) -> None:
    assert make(16, seed=1) != make(16, seed=2)


@pytest.mark.parametrize("title", MAKERS)
def test_a_file_holds_the_whole_workload(title: str) -> None:
    workload = MAKERS[title](16)
    assert Workload.from_text(workload.text()) == workload


def test_the_file_format() -> None:
    workload = Workload(
        "small",
        2,
        ((1e9, 2.5e-06), (0.1, 0.0)),
        (Route(0, 1, (0, 1)),),
        (
            Process(0, (("sleep", 0.25), ("repeat", 3), ("put", 0, 7), ("wait",), ("end",))),
            Process(1, (("get", 0), ("send", 0, 1))),
        ),
    )
    assert workload.text().splitlines() == [
        "workload small",
        "hosts 2",
        "links 2",
        "1000000000.0 2.5e-06",
        "0.1 0.0",
        "routes 1",
        "0 1 2 0 1",
        "processes 2",
        "0 5",
        "sleep 0.25",
        "repeat 3",
        "put 0 7",
        "wait",
        "end",
        "1 2",
        "get 0",
        "send 0 1",
    ]


def test_loops_may_be_nested() -> None:
    program = (
        ("repeat", 2),
        ("sleep", 1.0),
        ("repeat", 3),
        ("wait",),
        ("end",),
        ("end",),
        ("sleep", 2.0),
    )
    assert [words[0] for words in unrolled(program)] == [
        "sleep",
        *["wait"] * 3,
        "sleep",
        *["wait"] * 3,
        "sleep",
    ]


@pytest.mark.parametrize("title", MAKERS)
def test_all_routes_have_the_same_latency(title: str) -> None:
    workload = MAKERS[title](32)
    assert {sum(workload.links[link][1] for link in route.links) for route in workload.routes} == {LATENCY}


@pytest.mark.parametrize("nodes", [5, 6, 16, 101])
def test_gossip_is_on_a_4_regular_graph(nodes: int) -> None:
    routes = gossip(nodes, seed=nodes).routes
    arcs = {(route.source, route.destination) for route in routes}
    assert len(arcs) == len(routes) == 4 * nodes
    assert arcs == {(destination, source) for source, destination in arcs}
    assert set(Counter(source for source, _ in arcs).values()) == {4}
    assert all(source != destination for source, destination in arcs)


def test_a_shared_nic_is_one_link() -> None:
    for shared, links in ((False, 2 * 16), (True, 16)):
        workload = gossip(16, shared=shared)
        assert [capacity for capacity, _ in workload.links].count(NIC) == links


def test_routes_of_the_fat_tree() -> None:
    workload = ring_on_fat_tree(64, seed=3)
    hosts = [process.host for process in workload.processes]
    assert sorted(hosts) == list(range(64)) != hosts
    spine: dict[int, int] = {}  # of a link between a leaf and a spine
    for route in workload.routes:
        assert hosts[(hosts.index(route.source) + 1) % 64] == route.destination
        fabric = route.links[1:-1]
        assert len(fabric) == (0 if route.source // 16 == route.destination // 16 else 2)
        for link in fabric:
            assert spine.setdefault(link, route.destination % 4) == route.destination % 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(gossip, 4), "a 4-regular graph has at least 5 nodes, not 4"),
        (partial(ring_on_fat_tree, 24), "a fat tree has a multiple of 16 hosts, not 24"),
        (partial(line, 4, 4), "a flow on a closed line of 4 links crosses 1 to 3, not 4"),
        (partial(run_on_clock, pairs(2), "fast"), f"there is no core 'fast': there are {', '.join(CORES)}"),
        (partial(Workload.from_text, "hosts 3"), "a workload file has 'workload' here, not 'hosts'"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert str(refused.value) == message


# --------------------------------------------------------------------------------------- on our clock


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("make", [ring_on_star, ring_on_fat_tree])  # 16 hosts are one leaf
def test_an_uncontended_ring_has_the_closed_form(core: str, make: Callable[[int], Workload]) -> None:
    result = run_on_clock(make(16), core)
    assert result.makespan == pytest.approx(2 * 15 * (LATENCY + ALL_REDUCE / 16 / NIC), rel=1e-12)
    assert set(result.finish) == {result.makespan}
    assert result.flows == 2 * 15 * 16


@pytest.mark.parametrize("core", CORES)
def test_one_worker_has_the_parameter_server_for_itself(core: str) -> None:
    workload = parameter_server(1)
    sleeps = sum(words[1] for words in workload.processes[0].program if words[0] == "sleep")
    result = run_on_clock(workload, core)
    assert result.makespan == pytest.approx(sleeps + 40 * (LATENCY + MESSAGE / NIC), rel=1e-12)


@pytest.mark.parametrize("core", CORES)
def test_pairs_do_not_hinder_one_another(core: str) -> None:
    workload = pairs(16)
    result = run_on_clock(workload, core)
    for process, finish in zip(workload.processes, result.finish, strict=True):
        size = sum(words[2] for words in process.program)
        assert finish == pytest.approx(20 * LATENCY + size / NIC, rel=1e-12)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("shared", [False, True])
def test_gossip_is_never_faster_than_its_edges(core: str, shared: bool) -> None:
    workload = gossip(16, shared=shared)
    result = run_on_clock(workload, core)
    for process, finish in zip(workload.processes, result.finish, strict=True):
        sleeps = sum(words[1] for words in process.program if words[0] == "sleep")
        assert finish >= (sleeps + 20 * (LATENCY + MESSAGE / EDGE)) * (1 - 1e-12)
    assert result.flows == 16 * 20


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("sender", "receiver"), [(1.0, 3.0), (3.0, 1.0)])
def test_a_message_starts_when_both_sides_have_posted(core: str, sender: float, receiver: float) -> None:
    workload = Workload(
        "rendezvous",
        2,
        ((100.0, 0.5),),
        (Route(0, 1, (0,)),),
        (
            Process(0, (("sleep", sender), ("put", 0, 200), ("wait",))),
            Process(1, (("sleep", receiver), ("get", 0), ("wait",))),
        ),
    )
    assert run_on_clock(workload, core).finish == (5.5, 5.5)


def test_a_message_that_nobody_takes_is_named() -> None:
    workload = Workload(
        "alone", 2, ((1.0, 0.0),), (Route(0, 1, (0,)),), (Process(0, (("put", 0, 1), ("wait",))),)
    )
    with pytest.raises(RuntimeError) as raised:
        run_on_clock(workload)
    assert str(raised.value) == "alone: process 0 never ends"


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("title", [*WORKLOADS, "ring on a fat tree, 10 steps"])
def test_simgrid_agrees(simgrid: dict[str, Any], core: str, title: str) -> None:
    workload = MAKERS[title](simgrid["nodes"])
    stored = simgrid["workloads"][title]
    assert sha256(workload.text().encode()).hexdigest() == stored["sha256"], (
        "not the workload that SimGrid ran"
    )
    result = run_on_clock(workload, core)
    assert result.flows == stored["flows"]
    assert result.makespan == pytest.approx(stored["makespan"], rel=1e-6, abs=0)
    if title not in ("ring on a fat tree", "ring on a fat tree, 64 steps"):  # which are chaotic
        assert list(result.finish) == pytest.approx(stored["finish"], rel=1e-6, abs=0)


def test_the_page_gets_new_tables_and_keeps_its_words() -> None:
    assert rewritten((Path(__file__).parents[3] / "simulator" / "engine" / "COSTS.md").read_text(), "new")
    page = f"before\n{BEGIN}\n\nold\n{END}\nafter\n"
    assert rewritten(page, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert rewritten(rewritten(page, "newer\n"), "new\n") == rewritten(page, "new\n")
    with pytest.raises(ValueError, match="the page has no lines"):
        rewritten("no such lines", "new\n")


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("title", ["ring on a fat tree, 64 steps", "ring on a fat tree", "ring on a star"])
def test_a_ring_in_the_core_takes_the_time_that_simgrid_gives(
    title: str, core: str, simgrid: dict[str, Any]
) -> None:
    expected = simgrid["workloads"][title]
    workload = WORKLOADS[title](simgrid["nodes"])
    for max_plus in (False, True):
        result = run_in_core(workload, core, max_plus=max_plus)
        assert result.flows == expected["flows"]
        assert result.makespan == pytest.approx(expected["makespan"], rel=1e-6)
        if "star" in title:
            assert result.finish == pytest.approx(expected["finish"], rel=1e-6)


def test_only_a_ring_runs_in_the_core() -> None:
    with pytest.raises(ValueError, match="process 0 does not do what a rank of a ring does"):
        run_in_core(gossip(8), "plain")


def test_stragglers_wait_for_the_last() -> None:
    """A collective takes its 2(n-1) steps from the last entrance on, so no later one ends before it began."""
    one, three = (run_stragglers(8, count, "plain") for count in (1, 3))
    assert len(set(one.finish)) == 1
    assert three.flows == 3 * one.flows
    assert three.makespan > 2 * one.makespan
