"""Collectives inside the core against the same transfers as flows of their own, and the short way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.engine.clock import Clock
from simulator.engine.fairshare import Core, Step
from simulator.patterns import PATTERNS

pytestmark = pytest.mark.usefixtures("each_core")
CASES = int(os.environ.get("PACELINE_CASES", "1"))
"""How many times the usual number of random cases is tried; see `make cases`."""

MANY = settings(max_examples=150 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Phases = list[tuple[int, list[Step]]]


class Transfers:
    """A collective, transfer by transfer in the plainest form: every one a flow with a call-back."""

    def __init__(self, case: Case, clock: Clock, nbytes: float, done: Callable[[int], object]) -> None:
        self.case = case
        self.clock = clock
        self.nbytes = nbytes
        self.done = done
        self.rounds = [steps for repeat, steps in case.phases for _ in range(repeat)]
        self.round = [-1] * case.ranks
        self.open = [0] * case.ranks
        self.early: dict[tuple[int, int], int] = {}

    def enter(self, rank: int) -> None:
        self.round[rank] += 1
        number = self.round[rank]
        if number == len(self.rounds):
            self.done(rank)
            return
        sends = [step for step in self.rounds[number] if step.source == rank]
        receives = sum(step.destination == rank for step in self.rounds[number])
        self.open[rank] = len(sends) + receives - self.early.pop((rank, number), 0)
        for step in sends:
            self.send(step, number)
        if not self.open[rank]:
            self.enter(rank)

    def send(self, step: Step, number: int) -> None:
        def arrived() -> None:
            if self.round[step.destination] == number:
                self.ended(step.destination)
            else:
                key = step.destination, number
                self.early[key] = self.early.get(key, 0) + 1
            self.ended(step.source)

        size = step.fraction * self.nbytes
        segments = max(self.case.options["least_segments"], ceil(size / self.case.options["segment_size"]))
        latency = segments * self.case.options["latency_factor"] * step.latency
        self.clock.flow(step.route, size / self.case.options["payload_share"], arrived, latency=latency)

    def ended(self, rank: int) -> None:
        self.open[rank] -= 1
        if not self.open[rank]:
            self.enter(rank)


@dataclass
class Case:
    """Collectives of one group, one after another, and what else happens on the links."""

    ranks: int
    links: list[tuple[float, float]]
    phases: Phases
    sizes: list[float]
    work: list[list[float]]
    options: dict[str, float]
    flows: list[tuple[float, int, float]] = field(default_factory=list)
    capacities: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass
class Ends:
    """When the parts and the flows ended, and what the links carried."""

    parts: dict[tuple[int, int], float]
    flows: dict[int, float]
    carried: list[float]


def run(case: Case, *, inside: bool = True, **options: Any) -> Ends:
    """Run a case, with its collectives inside the core or as flows of their own."""
    clock = Clock()
    clock.core = Core(**options)
    for link in case.links:
        clock.core.add_link(*link)
    pattern = clock.core.add_pattern(case.ranks, case.phases, complete=True) if inside else -1
    entrances: list[Callable[[int], None]] = []
    ends = Ends({}, {}, [])

    def entrance(number: int) -> Callable[[int], None]:
        if number == len(entrances):
            nbytes = case.sizes[number]
            if inside:
                index = clock.collective(pattern, nbytes, lambda rank: done(number, rank), **case.options)  # type: ignore[arg-type]
                entrances.append(lambda rank: clock.enter(index, rank))
            else:
                entrances.append(Transfers(case, clock, nbytes, lambda rank: done(number, rank)).enter)
        return entrances[number]

    def call(number: int, rank: int) -> None:
        clock.at(clock.now + case.work[rank][number], lambda: entrance(number)(rank))

    def done(number: int, rank: int) -> None:
        assert (number, rank) not in ends.parts
        ends.parts[number, rank] = clock.now
        if number + 1 < len(case.sizes):
            call(number + 1, rank)

    for rank in range(case.ranks):
        call(0, rank)
    for number, (time, link, size) in enumerate(case.flows):
        clock.at(
            time,
            lambda number=number, link=link, size=size: clock.flow(  # type: ignore[misc]
                [link], size, lambda: ends.flows.setdefault(number, clock.now)
            ),
        )
    for time, link, capacity in case.capacities:
        clock.at(time, lambda link=link, capacity=capacity: clock.core.set_capacity(link, capacity))  # type: ignore[misc]
    clock.run()
    assert len(ends.parts) == case.ranks * len(case.sizes)
    ends.carried = [clock.core.carried(link) for link in range(len(case.links))]
    return ends


def assert_agree(one: Ends, other: Ends) -> None:
    assert one.parts == pytest.approx(other.parts, rel=1e-9, abs=1e-12)
    assert one.flows == pytest.approx(other.flows, rel=1e-9, abs=1e-12)
    assert one.carried == pytest.approx(other.carried, rel=1e-9, abs=1e-12)


@st.composite
def cases(draw: st.DrawFn, patterns: Sequence[str] = ("ring",)) -> Case:
    """All-reduces on a star with stragglers, while flows come and capacities change."""
    ranks = draw(st.integers(2, 7))
    capacity = st.sampled_from([1.0, 2.0, 0.5, 0.3])
    latency = draw(st.sampled_from([0.0, 0.1, 0.01]))
    links = [(draw(capacity), latency) for _ in range(2 * ranks)]
    schedule = PATTERNS[draw(st.sampled_from(patterns))]([range(ranks)])
    phases = [
        (
            phase.repeat,
            [
                Step(t.source, t.destination, t.fraction, (t.source, ranks + t.destination), 2 * latency)
                for t in phase.transfers
            ],
        )
        for phase in schedule
    ]
    times = st.integers(0, 40).map(lambda n: n / 8) | st.floats(0.0, 5.0)
    count = draw(st.integers(1, 3))
    options = {
        "segment_size": draw(st.sampled_from([inf, 0.3])),
        "least_segments": draw(st.sampled_from([1, 2])),
        "payload_share": draw(st.sampled_from([1.0, 0.9])),
        "latency_factor": draw(st.sampled_from([1.0, 0.75])),
    }
    return Case(
        ranks,
        links,
        phases,
        [draw(st.sampled_from([0.0, 1.0, 2.7, 4.0])) for _ in range(count)],
        [[draw(times) for _ in range(count)] for _ in range(ranks)],
        options,
        draw(st.lists(st.tuples(times, st.integers(0, 2 * ranks - 1), st.floats(0.0, 3.0)), max_size=3)),
        draw(st.lists(st.tuples(times, st.integers(0, 2 * ranks - 1), capacity), max_size=2)),
    )


@MANY
@given(case=cases(("ring", "tree", "halving-doubling")))
def test_a_collective_in_the_core_is_its_transfers(case: Case) -> None:
    assert_agree(run(case, max_plus=False), run(case, inside=False))


@MANY
@given(case=cases())
def test_the_short_way_gives_the_times_of_the_flows(case: Case) -> None:
    """Also when flows arrive in the middle, and when capacities change."""
    assert_agree(run(case, max_plus=True), run(case, max_plus=False))


@MANY
@given(case=cases(("ring", "tree", "halving-doubling")), max_plus=st.booleans())
def test_both_cores_give_the_same_bits(case: Case, max_plus: bool) -> None:
    pytest.importorskip("numba")
    plain, compiled = (run(case, max_plus=max_plus, core=core) for core in ("plain", "compiled"))
    assert plain == compiled


def ring_case(arrivals: list[float]) -> Case:
    """A ring over links of 1 byte/s without latency; one message of 4 bytes for 4 ranks."""
    links = [(1.0, 0.0)] * 8
    steps = [Step(rank, (rank + 1) % 4, 0.25, (rank, 4 + (rank + 1) % 4), 0.0) for rank in range(4)]
    options = {"segment_size": inf, "least_segments": 1, "payload_share": 1.0, "latency_factor": 1.0}
    return Case(4, links, [(6, steps)], [4.0], [[arrival] for arrival in arrivals], options)


@pytest.mark.parametrize("max_plus", [True, False])
def test_a_ring_of_four(max_plus: bool) -> None:
    """Six steps of a second; a rank that comes 9 s late lets the others do what they can before."""
    ends = run(ring_case([0.0, 0.0, 0.0, 0.0]), max_plus=max_plus)
    assert set(ends.parts.values()) == {6.0}
    assert ends.carried == [6.0] * 8
    ends = run(ring_case([0.0, 0.0, 9.0, 0.0]), max_plus=max_plus)
    # A rank's round ends a second after it and its predecessor have entered it: 0 0 9 0, 1 1 10 10,
    # 11 2 11 11, 12 12 12 12, and three more.
    assert set(ends.parts.values()) == {15.0}


def test_the_short_way_is_taken_only_where_nothing_is_shared() -> None:
    core = Core()
    links = [core.add_link(1.0) for _ in range(3)]
    alone = [Step(0, 1, 0.5, (links[0],), 0.0), Step(1, 0, 0.5, (links[1],), 0.0)]
    shared = [Step(0, 1, 0.5, (links[0], links[2]), 0.0), Step(1, 0, 0.5, (links[1], links[2]), 0.0)]
    twice = [Step(0, 1, 0.5, (links[0],), 0.0), Step(0, 1, 0.5, (links[0],), 0.0)]
    for steps, complete, expected in (
        (alone, True, True),
        (alone, False, False),
        (shared, True, False),
        (twice, True, False),
    ):
        pattern = core.add_pattern(2, [(2, steps)], complete=complete)
        index = core.collective(pattern, 4.0)
        core.enter(index, 0)
        core.enter(index, 1)
        core.settle()
        assert (core.solves == 0) == expected
        while core.live:
            core.advance(inf)
        core.close(index)
        core._storage.state.solves = 0


def test_a_collective_that_stalls_names_its_flow() -> None:
    clock = Clock(core="plain")
    clock.core = Core(max_plus=False)
    for _ in range(8):
        clock.core.add_link(1.0)
    case = ring_case([0.0] * 4)
    pattern = clock.core.add_pattern(4, case.phases)
    index = clock.collective(pattern, 4.0, lambda rank: None)
    for rank in range(4):
        clock.enter(index, rank)
    clock.at(0.5, lambda: clock.core.fail(2))
    with pytest.raises(RuntimeError, match=r"over links 2, 7 can never finish: link 2 failed"):
        clock.run()


def test_bad_input_is_refused() -> None:
    core = Core()
    core.add_link(1.0)
    pattern = core.add_pattern(2, [(1, [Step(0, 1, 1.0, (0,), 0.0)])])
    for size in (-1.0, inf, float("nan")):
        with pytest.raises(ValueError) as error:
            core.collective(pattern, size)
        assert (
            str(error.value) == f"the size of a collective must be a finite number of at least 0, not {size}"
        )
    before = repr(core._storage.containers), repr(core._storage.lengths)
    for step, message in (
        (Step(0, 1, 1.0, (5,), 0.0), "there is no link 5: links are numbered 0 to 0"),
        (Step(0, 2, 1.0, (0,), 0.0), "a pattern of 2 ranks has no rank 2"),
        (Step(-1, 1, 1.0, (0,), 0.0), "a pattern of 2 ranks has no rank -1"),
        (
            Step(0, 1, inf, (0,), 0.0),
            "the fraction of a transfer must be a finite number of at least 0, not inf",
        ),
        (
            Step(0, 1, 1.0, (0,), -1.0),
            "the latency of a transfer must be a finite number of at least 0, not -1.0",
        ),
    ):
        with pytest.raises(ValueError) as error:
            core.add_pattern(2, [(1, [Step(0, 1, 1.0, (0,), 0.0), step])])
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        core.collective(1, 1.0)
    assert str(error.value) == "there is no pattern 1"
    assert (repr(core._storage.containers), repr(core._storage.lengths)) == before
