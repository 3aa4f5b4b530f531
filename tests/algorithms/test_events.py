"""Asynchronous algorithms: what really happened in a run, in its order, gives the same models in NumPy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pytest

from simulator.run import Run
from tests.algorithms.recording import Entry, Event, merged, recording
from tests.algorithms.recursions import decentralised, local, servers
from tests.algorithms.recursions.notation import Array, StepSize
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.rules import SGD, warm_up_then_cosine
from tests.algorithms.table import RECURSIVE_RULES, WARM_UP_AND_COSINE
from tests.algorithms.training import RULES, STEP, assert_equal, models, trained

UNEVEN = {0: 1.31, 2: 2.17, 3: 1.07}
"""Slow-downs that make workers meet in no regular order."""
TRANSPORTS: Mapping[str, Any] = {
    "fixed": {"name": "fixed", "all-reduce": "0 s", "exchange": "0.23 s"},
    "at once": {"name": "fixed", "all-reduce": "0 s", "exchange": "0 s"},
    "nccl": "nccl",
}
ITERATIONS = 8
SCHEDULE: StepSize = warm_up_then_cosine(STEP, 3, ITERATIONS, start=1 / 4, final=0.1 * STEP)
"""What `WARM_UP_AND_COSINE` is over so many iterations."""


def record(
    name: str, problem: Quadratics, iterations: int, settings: Mapping[str, Any] | None = None, **changes: Any
) -> tuple[Run, list[Entry]]:
    """Run an algorithm and return what it did."""
    log: list[Entry] = []
    run = trained(recording(name, settings or {}, log), problem, iterations, **changes)
    return run, log


def staleness(run: Run) -> dict[int, list[float]]:
    """Return what each worker noted, in its order."""
    noted: dict[int, list[float]] = defaultdict(list)
    for observation in run.observations:
        assert observation.name == "staleness"
        noted[observation.worker].append(observation.value)
    return noted


# AD-PSGD --------------------------------------------------------------------------------------------------


def ad_psgd_events(log: list[Entry]) -> dict[int, list[Event]]:
    """Return each worker's reads, averagings and updates."""
    own: dict[int, list[Event]] = defaultdict(list)
    partner: dict[int, int] = {}
    for entry in log:
        rank = entry.rank
        if entry.what == "gradient":
            own[rank].append(("read", rank))
        elif entry.what == "recv" and entry.channel == "swap":
            partner[rank] = entry.peer
        elif entry.what == "combined":
            own[rank].append(("average", rank, partner.pop(rank)))
        elif entry.what == "updated":
            own[rank].append(("apply", rank))
    return own


def averagings_since_the_read(events: list[Event]) -> list[float]:
    """Return how often a worker's model was averaged between each of its reads and the update."""
    counts, seen = [], 0.0
    for event in events:
        if event[0] == "apply":
            counts.append(seen)
        seen = 0.0 if event[0] == "read" else seen + (event[0] == "average")
    return counts


def active(run: Run) -> set[int]:
    """Return the workers at an even distance from worker 0, if there are others."""
    graph = run.scenario.communication_graph
    distance = nx.single_source_shortest_path_length(graph, 0)
    return {rank for rank in distance if distance[rank] % 2 == 0} if len(graph) > 1 else set()


def check_ad_psgd(
    workers: int, graph: Any, schedule: bool = False, rule: str | None = None, **changes: Any
) -> dict[int, list[Event]]:
    problem = Quadratics(workers, 5, seed=workers, ripple=0.4)
    gossip = {"graph": graph}
    changes["update"] = RULES[rule] if rule else WARM_UP_AND_COSINE if schedule else None
    run, log = record("ad-psgd", problem, ITERATIONS, gossip=gossip, **changes)
    own = ad_psgd_events(log)
    step = SCHEDULE if schedule else STEP
    expected = decentralised.ad_psgd(
        problem.gradient,
        problem.x0,
        step,
        workers,
        merged(own),
        rule=RECURSIVE_RULES[rule] if rule else SGD,
    )
    assert_equal(models(run), expected)
    # The side of worker 0 is the active one.
    assert {e.rank for e in log if e.channel == "ask" and e.what == "send"} == active(run)
    for rank, noted in staleness(run).items():
        assert noted == averagings_since_the_read(own[rank])
    return own


GRAPHS: Mapping[str, tuple[int, Any]] = {
    "alone": (1, "ring"),
    "pair": (2, "complete"),
    "ring 4": (4, "ring"),
    "ring 8": (8, "ring"),
    "star": (5, "star"),
    "hypercube": (8, {"builder": "hypercube", "dimension": 3}),
    "bipartite": (7, {"builder": "tests.algorithms.training:complete_bipartite", "left": 3, "right": 4}),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("slow", [{}, UNEVEN], ids=["equal", "uneven"])
def test_ad_psgd(graph: str, transport: str, slow: dict[int, float]) -> None:
    workers, builder = GRAPHS[graph]
    slow = {rank: factor for rank, factor in slow.items() if rank < workers}
    own = check_ad_psgd(workers, builder, transport=TRANSPORTS[transport], slow=slow)
    for rank in range(workers):
        assert [event[0] for event in own[rank]].count("apply") == ITERATIONS
    if workers > 1:
        assert any(event[0] == "average" for event in own[0])


@pytest.mark.parametrize("rule", RULES)
def test_the_state_of_a_rule_stays_with_its_worker(rule: str) -> None:
    check_ad_psgd(4, "ring", rule=rule, slow=UNEVEN)
    check_pair_averaging(4, rule=rule, slow=UNEVEN)


# One-sided pair averaging ---------------------------------------------------------------------------------


def pair_averaging_events(log: list[Entry]) -> list[Event]:
    """Return reads, fetches, averagings, updates and what is published, of all workers."""
    events: list[Event] = []
    for entry in log:
        rank = entry.rank
        if entry.what == "gradient":
            events.append(("read", rank))
        elif entry.what == "send" and entry.channel == "answer":
            events.append(("fetch", entry.peer, rank))
        elif entry.what == "combined":
            events.append(("average", rank))
        elif entry.what == "update":
            events.append(("apply", rank))
        elif entry.what == "updated":
            events.append(("publish", rank))
    return events


def check_pair_averaging(
    workers: int, schedule: bool = False, rule: str | None = None, **changes: Any
) -> list[Event]:
    problem = Quadratics(workers, 5, seed=workers, ripple=0.4)
    changes["update"] = RULES[rule] if rule else WARM_UP_AND_COSINE if schedule else None
    run, log = record("pair-averaging", problem, ITERATIONS, **changes)
    events = pair_averaging_events(log)
    step = SCHEDULE if schedule else STEP
    expected = decentralised.pair_averaging(
        problem.gradient,
        problem.x0,
        step,
        workers,
        events,
        rule=RECURSIVE_RULES[rule] if rule else SGD,
    )
    assert_equal(models(run), expected)
    return events


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_pair_averaging(workers: int, transport: str) -> None:
    slow = {rank: factor for rank, factor in UNEVEN.items() if rank < workers}
    events = check_pair_averaging(workers, transport=TRANSPORTS[transport], slow=slow)
    fetches = [event for event in events if event[0] == "fetch"]
    assert len(fetches) == (ITERATIONS * workers if workers > 1 else 0)
    assert all(i != j for _, i, j in fetches)


# A-PSGD ---------------------------------------------------------------------------------------------------


def a_psgd_events(log: list[Entry]) -> list[Event]:
    """Return pulls, gradients and pushes, in order; the server's rank is its shard's number."""
    events: list[Event] = []
    for entry in log:
        if entry.what == "gradient":
            events.append(("gradient", entry.rank))
        elif entry.what == "updated":
            assert entry.about is not None
            events.append(("push", entry.about[0], entry.rank))
        elif entry.what == "send" and entry.channel == "pull":
            events.append(("pull", entry.peer, entry.rank))
    return events


def check_a_psgd(
    workers: int,
    count: int = 1,
    rule: str | None = None,
    iterations: int = ITERATIONS,
    arrives: servers.Arrives = servers.exactly,
    schedule: bool = False,
    **changes: Any,
) -> Run:
    problem = Quadratics(workers, 5, seed=workers, ripple=0.4)
    update = RULES[rule] if rule else WARM_UP_AND_COSINE if schedule else None
    run, log = record("a-psgd", problem, iterations, {"servers": count}, update=update, **changes)
    cuts = [5 * k // count for k in range(count + 1)]
    served = servers.a_psgd(
        problem.gradient,
        problem.x0,
        SCHEDULE if schedule else STEP,
        workers,
        a_psgd_events(log),
        shards=[np.arange(cuts[k], cuts[k + 1]) for k in range(count)],
        rule=RECURSIVE_RULES[rule] if rule else SGD,
        arrives=arrives,
    )
    assert_equal(models(run), served.copies)
    noted = staleness(run)
    for server in range(count):
        assert noted[server] == [value for _, s, value in served.staleness if s == server]
    return run


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 1), (3, 2), (4, 1), (4, 3), (8, 8)])
def test_a_psgd(workers: int, count: int, transport: str) -> None:
    slow = {rank: factor for rank, factor in UNEVEN.items() if rank < workers}
    check_a_psgd(workers, count, transport=TRANSPORTS[transport], slow=slow)


@pytest.mark.parametrize("rule", RULES)
def test_the_servers_of_a_psgd_keep_the_state_of_the_rule(rule: str) -> None:
    check_a_psgd(4, 2, rule, slow=UNEVEN)


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (4, 1), (3, 2)])
def test_a_schedule_of_a_psgd_goes_by_the_updates_of_each_shard(workers: int, count: int) -> None:
    """Not by the iterations of its host, which is the fastest here, or the slowest."""
    for slow in ({0: 2.9}, dict.fromkeys(range(1, workers), 2.9)):
        check_a_psgd(workers, count, schedule=True, slow=slow)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_equal_workers_of_a_psgd_are_as_stale_as_there_are_others(workers: int) -> None:
    # Passes take no time, so that the server's work does not slow down the worker whose device it is on.
    cost = {"parameters": 5, "batch": 4, "gradient": "1 s"}
    noted = staleness(check_a_psgd(workers, iterations=12, transport=TRANSPORTS["at once"], cost=cost))[0]
    assert set(noted[workers:]) == {workers - 1}
    assert noted[:workers] == list(range(workers))


def test_a_slow_worker_of_a_psgd_is_stale_and_delays_nobody() -> None:
    run = check_a_psgd(4, iterations=12, slow={3: 5.0})
    worst = max(staleness(run)[0])
    assert worst >= 3 * 4  # while it computes once, each of the others has pushed four times
    assert np.mean(staleness(run)[0]) <= 3 + 1e-12


# EASGD ----------------------------------------------------------------------------------------------------


def easgd_events(log: list[Entry]) -> list[Event]:
    """Return visits to the centre, in two halves, and local steps."""
    events: list[Event] = []
    for entry in log:
        if entry.what == "gradient":
            events.append(("step", entry.rank))
        elif entry.what == "send" and entry.channel == "down":
            events.append(("pull", entry.peer))
        elif entry.what == "combined" and entry.about is not None and entry.about[1] == "up":
            events.append(("push", entry.about[0]))
    return events


def check_easgd(
    workers: int,
    period: int = 2,
    elasticity: float = 0.1,
    rule: str | None = None,
    schedule: bool = False,
    **changes: Any,
) -> list[Event]:
    problem = Quadratics(workers, 5, seed=workers, ripple=0.4)
    settings = {"period": period, "elasticity": elasticity}
    update = RULES[rule] if rule else WARM_UP_AND_COSINE if schedule else None
    run, log = record("easgd", problem, ITERATIONS, settings, update=update, **changes)
    events = easgd_events(log)
    expected, _ = local.easgd_by_events(
        problem.gradient,
        problem.x0,
        SCHEDULE if schedule else STEP,
        workers,
        events,
        alpha=elasticity,
        rule=RECURSIVE_RULES[rule] if rule else SGD,
    )
    assert_equal(models(run), expected)
    return events


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("workers", "period"), [(1, 1), (2, 2), (3, 4), (8, 2)])
def test_easgd(workers: int, period: int, transport: str) -> None:
    slow = {rank: factor for rank, factor in UNEVEN.items() if rank < workers}
    events = check_easgd(workers, period, 0.2, transport=TRANSPORTS[transport], slow=slow)
    for kind, count in (("pull", ITERATIONS // period), ("push", ITERATIONS // period), ("step", ITERATIONS)):
        assert sum(event[0] == kind for event in events) == workers * count


@pytest.mark.parametrize("rule", RULES)
def test_easgd_takes_any_local_rule(rule: str) -> None:
    check_easgd(4, rule=rule, slow=UNEVEN)


# Hogwild --------------------------------------------------------------------------------------------------


def moments(run: Run, operation: str, counts: Mapping[int, list[int]]) -> list[tuple[float, int, int, int]]:
    """Return (time, worker, access, element) of every element's access, one after another."""
    number = dict.fromkeys(range(run.workers), 0)
    touched = []
    for span in run.timeline:
        if span.operation == operation:
            count = counts[span.worker][number[span.worker]]
            seconds = (span.end - span.start) / max(count, 1)
            touched += [(span.start + k * seconds, span.worker, number[span.worker], k) for k in range(count)]
            number[span.worker] += 1
    return touched


class Sparse(Quadratics):
    """Quadratics whose gradients are not zero in two elements only, others each time."""

    def gradient(self, worker: int, x: Array, t: int) -> Array:
        value = super().gradient(worker, x, t)
        keep = np.isin(np.arange(self.dimension), self.places(worker, t))
        return np.where(keep, value, 0.0)

    def places(self, worker: int, t: int) -> list[int]:
        first = (worker + 2 * t) % self.dimension
        return sorted({first, (first + 2) % self.dimension})


def hogwild_events(run: Run, places: Mapping[int, list[list[int]]], dimension: int) -> list[Event]:
    """Return reads and writes of single elements in the order of time; a write at a read's moment is seen."""
    reads = {rank: [dimension] * (len(own) + 1) for rank, own in places.items()}  # the last one is reported
    writes = {rank: [len(at) for at in own] for rank, own in places.items()}
    order: list[tuple[float, int, Event]] = []
    ends: dict[tuple[int, int], float] = {}
    for time, rank, access, k in moments(run, "read", reads):
        order.append((time, 1, ("read", rank, k)))
        ends[rank, access] = time
    order += [
        (time, 2, ("gradient", rank)) for (rank, access), time in ends.items() if access < len(places[rank])
    ]
    for time, rank, access, k in moments(run, "add", writes):
        order.append((time, 0, ("write", rank, places[rank][access][k])))
    return [event for _, _, event in sorted(order, key=lambda entry: entry[:2])]


def check_hogwild(
    workers: int, sparse: bool, schedule: bool = False, **changes: Any
) -> tuple[servers.Served, list[Event]]:
    kind = Sparse if sparse else Quadratics
    problem = kind(workers, 6, seed=workers, ripple=0.4)
    changes.setdefault("cost", {"parameters": 6, "batch": 4, "gradient": "1 s", "update": "0.4 s"})
    if schedule:
        changes["update"] = WARM_UP_AND_COSINE
    run = trained({"name": "hogwild", "sparse": sparse}, problem, ITERATIONS, **changes)
    places = {
        rank: [
            problem.places(rank, t) if isinstance(problem, Sparse) else list(range(6))
            for t in range(ITERATIONS)
        ]
        for rank in range(workers)
    }
    events = hogwild_events(run, places, 6)
    step = SCHEDULE if schedule else STEP
    served = servers.hogwild(problem.gradient, problem.x0, step, workers, events)
    assert_equal(models(run), served.copies)
    for rank, noted in staleness(run).items():
        assert noted == steps_meanwhile(run, rank)
    return served, events


def steps_meanwhile(run: Run, rank: int) -> list[float]:
    """Return how many steps ended between the begin of each of a worker's reads and its own step's."""
    ends = [span.end for span in run.timeline if span.operation == "add"]
    reads = [span.start for span in run.timeline if span.operation == "read" and span.worker == rank]
    adds = [span.start for span in run.timeline if span.operation == "add" and span.worker == rank]
    return [float(sum(a < end <= b for end in ends)) for a, b in zip(reads[:-1], adds, strict=True)]


def torn_reads(events: list[Event]) -> int:
    """Count the reads that saw whole steps of others in some elements and not in the rest."""
    written: Counter[int] = Counter()
    seen: dict[int, set[int]] = defaultdict(set)
    torn = 0
    for kind, rank, *element in events:
        if kind == "write":
            written[element[0]] += 1
        elif kind == "read":
            seen[rank].add(written[element[0]])
        else:
            torn += len(seen.pop(rank)) > 1
    return torn


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_hogwild(workers: int, sparse: bool) -> None:
    slow = {rank: factor for rank, factor in UNEVEN.items() if rank < workers}
    served, events = check_hogwild(workers, sparse, slow=slow)
    stale = [value for _, _, value in served.staleness]
    if workers == 1:
        assert set(stale) == {0}
    elif not sparse:
        assert max(stale) > 0
        assert torn_reads(events) > 0


@pytest.mark.parametrize("check", ["ad_psgd", "pair_averaging", "easgd", "hogwild"])
def test_the_step_size_is_that_of_the_iteration_of_the_worker(check: str) -> None:
    if check == "ad_psgd":
        check_ad_psgd(4, "ring", schedule=True, slow=UNEVEN)
    elif check == "pair_averaging":
        check_pair_averaging(4, schedule=True, slow=UNEVEN)
    elif check == "easgd":
        check_easgd(4, schedule=True, slow=UNEVEN)
    else:
        check_hogwild(4, False, schedule=True, slow=UNEVEN)
