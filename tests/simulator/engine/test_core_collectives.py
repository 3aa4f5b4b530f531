"""Collectives inside the core against the same transfers as flows of their own, and the short way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.engine.clock import Clock, NothingLeft
from simulator.engine.fairshare import Core, CoreName, Fairness, Step
from simulator.patterns import PATTERNS, cut

pytestmark = pytest.mark.usefixtures("each_core")
CASES = int(os.environ.get("PACELINE_CASES", "1"))
"""How many times the usual number of random cases is tried; see `make cases`."""

MANY = settings(max_examples=150 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Phases = list[tuple[int, list[Step]]]


@dataclass
class Message:
    """A message of a transfer in a round: who are there for it, and since when both are."""

    step: Step
    rank_by_rank: set[int] = field(default_factory=set)
    called: float = inf
    begun: bool = False
    ended: bool = False


class Transfers:
    """A collective, message by message in the plainest form: every one a flow with a call-back."""

    def __init__(self, case: Case, clock: Clock, nbytes: float, done: Callable[[int], object]) -> None:
        self.case = case
        self.clock = clock
        self.nbytes = nbytes
        self.done = done
        self.phase_of = [number for number, (repeat, _) in enumerate(case.phases) for _ in range(repeat)]
        self.rounds = [
            [Message(step) for step in steps] for repeat, steps in case.phases for _ in range(repeat)
        ]
        self.entered = [0] * case.ranks
        self.flows: list[int] = []

    def cancel(self) -> None:
        for flow in self.flows:
            if self.clock.core.running(flow):
                self.clock.cancel(flow)

    def enter(self, rank: int) -> None:
        """Enter every round that the rank may enter, one after another."""
        while self.entered[rank] <= len(self.rounds):
            number = self.entered[rank]
            same_phase = (
                number in range(1, len(self.rounds)) and len(set(self.phase_of[number - 1 : number + 1])) == 1
            )
            before = number - int(self.case.options.get("in_flight", 1)) + 1 if same_phase else number
            mine = [
                m
                for r in self.rounds[: max(0, before)]
                for m in r
                if rank in (m.step.source, m.step.destination)
            ]
            if not all(message.ended for message in mine):
                return
            self.entered[rank] += 1
            if number == len(self.rounds):
                self.done(rank)
                return
            for place, message in enumerate(self.rounds[number]):
                there = {message.step.source}
                if self.case.options.get("rendezvous"):
                    there.add(message.step.destination)
                if rank in there:
                    message.rank_by_rank.add(rank)
                    if message.rank_by_rank == there:
                        message.called = self.clock.now
                        self.send(number, place)

    def send(self, number: int, place: int) -> None:
        """Start a message unless that of the same transfer before it is still to end."""
        message = self.rounds[number][place]
        follows = number > 0 and self.phase_of[number] == self.phase_of[number - 1]
        if message.begun or message.called == inf or (follows and not self.rounds[number - 1][place].ended):
            return
        message.begun = True
        step = message.step

        def arrived() -> None:
            message.ended = True
            for rank in (step.destination, step.source):
                if self.entered[rank]:
                    self.enter(rank)
            if number + 1 < len(self.rounds) and self.phase_of[number + 1] == self.phase_of[number]:
                self.send(number + 1, place)

        size = step.fraction * self.nbytes / self.case.options["payload_share"]
        latency = message.called + self.case.options["latency_factor"] * step.latency - self.clock.now
        self.flows.append(self.clock.flow(step.route, size, arrived, latency=max(0.0, latency)))


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
    cancels: list[tuple[float, int]] = field(default_factory=list)
    fairness: Fairness = "maxmin"
    asks: list[float] = field(default_factory=list)
    crossed: list[tuple[int, int, float]] = field(default_factory=list)  # pairs of links, and their loss


@dataclass
class Ends:
    """When the parts and the flows ended, and what the links carried, in the end and when asked before."""

    parts: dict[tuple[int, int], float]
    flows: dict[int, float]
    carried: list[float]
    before: list[list[float]]


def run(case: Case, *, inside: bool = True, **options: Any) -> Ends:
    """Run a case, with its collectives inside the core or as flows of their own."""
    ends, _ = run_on_clock(case, inside=inside, **options)
    return ends


def run_on_clock(case: Case, *, inside: bool = True, **options: Any) -> tuple[Ends, Clock]:
    clock = Clock(fairness=case.fairness, **options)
    for link in case.links:
        clock.core.add_link(*link)
    for one, other, loss in case.crossed:
        clock.core.cross(one, other, loss)
    links = range(len(case.links))
    pattern = clock.core.add_pattern(case.ranks, case.phases, complete=True) if inside else -1
    entrances: list[Callable[[int], None]] = []
    cancellations: list[Callable[[], None]] = []
    cancelled: set[int] = set()
    ends = Ends({}, {}, [], [])

    def entrance(number: int) -> Callable[[int], None]:
        if number == len(entrances):
            nbytes = case.sizes[number]
            if inside:
                index = clock.collective(pattern, nbytes, lambda rank: done(number, rank), **case.options)  # type: ignore[arg-type]
                entrances.append(lambda rank: clock.enter(index, rank))
                cancellations.append(lambda: clock.cancel_collective(index))
            else:
                transfers = Transfers(case, clock, nbytes, lambda rank: done(number, rank))
                entrances.append(transfers.enter)
                cancellations.append(transfers.cancel)
        return entrances[number]

    def call(number: int, rank: int) -> None:
        def enter() -> None:
            if number not in cancelled:
                entrance(number)(rank)

        clock.at(clock.now + case.work[rank][number], enter)

    def cancel(number: int) -> None:
        ended = all((number, rank) in ends.parts for rank in range(case.ranks))
        if number < len(entrances) and number not in cancelled and not ended:
            cancelled.add(number)
            cancellations[number]()

    def done(number: int, rank: int) -> None:
        assert (number, rank) not in ends.parts
        assert number not in cancelled
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
    for time, number in case.cancels:
        clock.at(time, lambda number=number: cancel(number))  # type: ignore[misc]
    for time in case.asks:
        clock.at(time, lambda: ends.before.append([clock.core.carried(link) for link in links]))
    clock.run()
    assert case.cancels or len(ends.parts) == case.ranks * len(case.sizes)
    ends.carried = [clock.core.carried(link) for link in links]
    return ends, clock


def assert_agree(one: Ends, other: Ends) -> None:
    assert one.parts == pytest.approx(other.parts, rel=1e-9, abs=1e-12)
    assert one.flows == pytest.approx(other.flows, rel=1e-9, abs=1e-12)
    assert one.carried == pytest.approx(other.carried, rel=1e-9, abs=1e-12)
    for mine, theirs in zip(one.before, other.before, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@st.composite
def cases(draw: st.DrawFn, patterns: Sequence[str] = ("ring",)) -> Case:
    """All-reduces on a star with stragglers, while flows come and capacities change."""
    ranks = draw(st.integers(2, 7))
    fairness: Fairness = draw(st.sampled_from(["maxmin", "maxmin", "rtt"]))
    capacity = st.sampled_from([1.0, 2.0, 0.5, 0.3])
    latency = draw(st.sampled_from([0.0, 0.1, 0.01]))
    links = [(draw(capacity), latency) for _ in range(2 * ranks)]
    schedule = PATTERNS[draw(st.sampled_from(patterns))]([range(ranks)])
    schedule = cut(schedule, [draw(st.integers(1, 3)) for _ in schedule])
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
        "payload_share": draw(st.sampled_from([1.0, 0.9])),
        "latency_factor": draw(st.sampled_from([1.0, 0.75])),
        "rendezvous": draw(st.booleans()),
        "in_flight": draw(st.sampled_from([1, 2])),
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
        draw(st.lists(st.tuples(st.floats(0.0, 12.0), st.integers(0, count - 1)), max_size=1)),
        fairness,
        draw(st.lists(st.floats(0.0, 20.0), max_size=2)),
        # The two directions of a rank's cable.
        [(rank, ranks + rank, 0.3) for rank in draw(st.sampled_from([(), (), (0,), range(ranks)]))],
    )


@MANY
@given(case=cases(("ring", "tree", "halving-doubling")))
def test_a_collective_in_the_core_is_its_transfers(case: Case) -> None:
    assert_agree(run(case, max_plus=False), run(case, inside=False))


@MANY
@given(case=cases())
def test_the_short_way_gives_the_times_of_the_flows(case: Case) -> None:
    """Also when flows arrive in the middle, when capacities change, and when one is cancelled."""
    assert_agree(run(case, max_plus=True), run(case, max_plus=False))


ABANDONED = [
    # A rank enters the second as the first is cancelled, which it has ended.
    ([0.3 if link == 11 else 1.0 for link in range(12)], [[0.0, 0.0]] * 6, 4.0, [3.95, 4.05]),
    # Two enter it later, one after the other, when nothing else happens any more.
    (
        [0.3 if link == 2 else 1.0 for link in range(10)],
        [[0.0, 3 / 8], [0.0, 7 / 8], [0.0, 0.0], [0.0, 0.0], [3.625, 0.0]],
        7.0,
        [],
    ),
]


@pytest.mark.parametrize("core", ["plain", "compiled"])
@pytest.mark.parametrize(("capacities", "work", "cancelled", "asks"), ABANDONED, ids=["at once", "later"])
def test_a_collective_that_others_never_enter_does_what_it_can_on_either_way(
    capacities: list[float], work: list[list[float]], cancelled: float, asks: list[float], core: CoreName
) -> None:
    if core == "compiled":
        pytest.importorskip("numba")
    ranks = len(work)
    following = [(rank + 1) % ranks for rank in range(ranks)]
    steps = [Step(rank, to, 1 / ranks, (rank, ranks + to), 0.0) for rank, to in enumerate(following)]
    case = Case(
        ranks,
        [(capacity, 0.0) for capacity in capacities],
        [(2 * (ranks - 1), steps)],
        [1.0, 1.0],
        work,
        {"payload_share": 1.0, "latency_factor": 1.0},
        [],
        [],
        [(cancelled, 0)],
        "maxmin",
        asks,
    )
    short, long = (run(case, max_plus=max_plus, core=core) for max_plus in (True, False))
    assert_agree(short, long)


@MANY
@given(case=cases(("ring", "tree", "halving-doubling")), max_plus=st.booleans())
def test_both_cores_give_the_same_bits(case: Case, max_plus: bool) -> None:
    pytest.importorskip("numba")
    plain, compiled = (run(case, max_plus=max_plus, core=core) for core in ("plain", "compiled"))
    assert plain == compiled


@MANY
@given(case=cases(("ring", "tree", "halving-doubling")), max_plus=st.booleans())
def test_watching_changes_no_bit_and_records_what_is_carried(case: Case, max_plus: bool) -> None:
    watched, clock = run_on_clock(case, max_plus=max_plus, monitor=True)
    assert watched == run(case, max_plus=max_plus)
    for link in range(len(case.links)):
        times, rates = clock.core.history(link)
        assert times == sorted(set(times))
        assert rates[-1] == 0.0
        spans = zip(times, times[1:], rates, strict=False)
        moved = sum((end - begin) * rate for begin, end, rate in spans)
        assert moved == pytest.approx(watched.carried[link], rel=1e-9, abs=1e-9)


def ring_case(arrivals: list[float]) -> Case:
    """A ring over links of 1 byte/s without latency; one message of 4 bytes for 4 ranks."""
    links = [(1.0, 0.0)] * 8
    steps = [Step(rank, (rank + 1) % 4, 0.25, (rank, 4 + (rank + 1) % 4), 0.0) for rank in range(4)]
    options = {"payload_share": 1.0, "latency_factor": 1.0}
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


@pytest.mark.parametrize("max_plus", [True, False])
def test_with_rendezvous_nothing_goes_to_a_rank_that_has_not_entered(max_plus: bool) -> None:
    """Rank 2 comes 9 s late: until then rank 1 sends nothing, and link 6 to rank 2 carries nothing."""
    case = ring_case([0.0, 0.0, 9.0, 0.0])
    case.options["rendezvous"] = True
    case.asks = [9.0, 10.5]
    ends = run(case, max_plus=max_plus)
    # A rank ends a round a second after it and its two neighbours have entered it: 0 0 9 0, 1 10 10 10,
    # 11 11 11 11, and four more. Until rank 2 comes, rank 3 sends to rank 0 and that to rank 1.
    assert set(ends.parts.values()) == {15.0}
    assert ends.before == [[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0], [1.5] * 8]


@pytest.mark.parametrize("max_plus", [True, False])
def test_with_two_rounds_in_flight_latency_is_hidden(max_plus: bool) -> None:
    """A message of 1 s pays 0.6 s: 1.6 s a round, or 1 s while one waits for the other, of two in flight."""
    for in_flight, seconds in ((1, 6 * 1.6), (2, 0.6 + 6.0)):
        case = ring_case([0.0, 0.0, 0.0, 0.0])
        [(repeat, steps)] = case.phases
        case.phases = [(repeat, [dataclasses.replace(step, latency=0.6) for step in steps])]
        case.options["in_flight"] = in_flight
        ends = run(case, max_plus=max_plus)
        assert list(ends.parts.values()) == pytest.approx([seconds] * 4)


def test_the_short_way_is_taken_only_where_nothing_is_shared() -> None:
    core = Core(max_plus=True)
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


@pytest.mark.parametrize("max_plus", [True, False])
def test_a_flow_in_the_middle_of_a_ring_through_the_clock(max_plus: bool) -> None:
    """It shares a link of rank 0 from 2.5 s on: half a byte at half the speed, the third step ends at 3.5 s.

    The flow of 1.5 bytes goes on at half the speed while rank 0 sends: it has 0.5 of them then.
    """
    case = ring_case([0.0] * 4)
    case.flows = [(2.5, 0, 1.5)]
    ends = run(case, max_plus=max_plus)
    # Rank 0's next step ends at 5.5, when the flow has all its 1.5 bytes; a late step is never made up.
    assert ends.flows == {0: 5.5}
    assert ends.parts == run(case, inside=False).parts
    assert max(ends.parts.values()) == 7.5


@pytest.mark.parametrize("max_plus", [True, False])
def test_the_load_that_is_recorded(max_plus: bool) -> None:
    """A rank that comes 9 s late; on the short way the mean over each rank's part is written down."""
    case = ring_case([0.0, 0.0, 9.0, 0.0])
    _, clock = run_on_clock(case, max_plus=max_plus, monitor=True)
    history = clock.core.history(2)
    if max_plus:
        assert history == ([0.0, 9.0, 15.0], [0.0, 1.0, 0.0])
        assert clock.core.history(0) == ([0.0, 15.0], [0.4, 0.0])
    else:
        assert history == ([0.0, 9.0, 15.0], [0.0, 1.0, 0.0])
        assert clock.core.history(0) == ([0.0, 2.0, 11.0, 15.0], [1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize("max_plus", [True, False])
def test_a_rank_in_two_collectives_at_once_shares_its_links(max_plus: bool) -> None:
    """Two rings of four at once on the same links take twice the time."""
    clock = Clock(max_plus=max_plus)
    for _ in range(8):
        clock.core.add_link(1.0)
    pattern = clock.core.add_pattern(4, ring_case([0.0] * 4).phases, complete=True)
    ends: list[float] = []
    for _ in range(2):
        number = clock.collective(pattern, 4.0, lambda rank: ends.append(clock.now))
        for rank in range(4):
            clock.enter(number, rank)
    clock.run()
    assert ends == [12.0] * 8


@pytest.mark.parametrize("max_plus", [True, False])
def test_a_cancelled_collective_lets_its_links_go(max_plus: bool) -> None:
    case = ring_case([0.0, 0.0, 9.0, 0.0])
    case.cancels = [(0.5, 0)]
    case.flows = [(0.5, 0, 1.0)]
    ends = run(case, max_plus=max_plus)
    assert (ends.parts, ends.flows) == ({}, {0: 1.5})
    # Ranks 0, 1 and 3 were sending, and nothing of rank 2 ever came.
    assert ends.carried == [1.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0]


def test_a_part_that_ends_as_its_collective_is_cancelled_is_not_told() -> None:
    clock = Clock()
    for _ in range(8):
        clock.core.add_link(1.0)
    pattern = clock.core.add_pattern(4, ring_case([0.0] * 4).phases, complete=True)
    told: list[int] = []

    def done(rank: int) -> None:
        told.append(rank)
        clock.cancel_collective(number)

    number = clock.collective(pattern, 4.0, done)
    for rank in range(4):
        clock.enter(number, rank)
    clock.run()
    assert (len(told), clock.now) == (1, 6.0)
    with pytest.raises(ValueError) as error:
        clock.cancel_collective(number)
    assert str(error.value) == f"there is no open collective {number}"
    assert clock.collective(pattern, 1.0, done) == number


@pytest.mark.parametrize("max_plus", [True, False])
def test_a_rank_that_never_enters_leaves_nothing_to_wait_for(max_plus: bool) -> None:
    clock = Clock(max_plus=max_plus)
    for _ in range(8):
        clock.core.add_link(1.0)
    pattern = clock.core.add_pattern(4, ring_case([0.0] * 4).phases, complete=True)
    number = clock.collective(pattern, 4.0, lambda rank: None)
    for rank in range(3):
        clock.enter(number, rank)
    with pytest.raises(NothingLeft):
        clock.run(until=clock.event())


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


def test_rtt_fairness_divides_by_the_latency_of_a_step_and_not_of_its_route() -> None:
    """Links that a transfer loads besides, as those of workers with outages, are no part of its path."""
    clock = Clock(fairness="rtt")
    path, besides = clock.core.add_link(3.0, 1.0), clock.core.add_link(9.0, 7.0)
    step = Step(0, 1, 1.0, (path, besides), 1.0)
    ends: list[tuple[int, float]] = []
    number = clock.collective(
        clock.core.add_pattern(2, [(1, [step])]),
        6.0,
        lambda rank: ends.append((rank, clock.now)),
        latency_factor=0.0,
    )
    clock.flow([path], inf, lambda: None, latency=0.0)
    for rank in (0, 1):
        clock.enter(number, rank)
    clock.run()
    assert sorted(ends) == [(0, 4.0), (1, 4.0)]


GOOD = Step(0, 1, 1.0, (1,), 0.0)
BAD: list[tuple[Callable[[Core], object], str]] = [
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, 1.0, (5,), 0.0)])]),
        "there is no link 5: links are numbered 0 to 1",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, 1.0, (0.0,), 0.0)])]),  # type: ignore[arg-type]
        "there is no link 0.0: links are numbered 0 to 1",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, 1.0, (1, 1), 0.0)])]),
        "a route uses a link only once, but link 1 is in it twice",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 2, 1.0, (0,), 0.0)])]),
        "a pattern of 2 ranks has no rank 2",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(-1, 1, 1.0, (0,), 0.0)])]),
        "a pattern of 2 ranks has no rank -1",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 0.5, 1.0, (0,), 0.0)])]),  # type: ignore[arg-type]
        "a pattern of 2 ranks has no rank 0.5",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, inf, (0,), 0.0)])]),
        "the fraction of a transfer must be a finite number of at least 0, not inf",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, nan, (0,), 0.0)])]),
        "the fraction of a transfer must be a finite number of at least 0, not nan",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD, Step(0, 1, 1.0, (0,), -1.0)])]),
        "the latency of a transfer must be a finite number of at least 0, not -1.0",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD]), (-1, [GOOD])]),
        "a phase is repeated a whole number of times, not -1",
    ),
    (
        lambda c: c.add_pattern(2, [(1, [GOOD]), (1.5, [GOOD])]),  # type: ignore[list-item]
        "a phase is repeated a whole number of times, not 1.5",
    ),
    (lambda c: c.add_pattern(0, []), "a pattern needs a whole number of ranks from 1 on, not 0"),
    (lambda c: c.add_pattern(nan, []), "a pattern needs a whole number of ranks from 1 on, not nan"),  # type: ignore[arg-type]
    (lambda c: c.ranks(-1), "there is no pattern -1"),
    (lambda c: c.collective(1, 1.0), "there is no pattern 1"),
    (lambda c: c.collective(-1, 1.0), "there is no pattern -1"),
    *(
        (
            lambda c, size=size: c.collective(0, size),  # type: ignore[misc]
            f"the size of a collective must be a finite number of at least 0, not {size}",
        )
        for size in (-1.0, inf, nan)
    ),
    (
        lambda c: c.collective(0, 1.0, payload_share=0.0),
        "the payload share must be a positive, finite number, not 0.0",
    ),
    (
        lambda c: c.collective(0, 1.0, payload_share=nan),
        "the payload share must be a positive, finite number, not nan",
    ),
    (lambda c: c.collective(0, 1.0, in_flight=0), "1 or 2 rounds can be in flight, not 0"),
    (lambda c: c.collective(0, 1.0, in_flight=3), "1 or 2 rounds can be in flight, not 3"),
    (
        lambda c: c.collective(0, 1.0, latency_factor=nan),
        "the latency factor must be a finite number of at least 0, not nan",
    ),
    (lambda c: c.enter(1, 0), "there is no open collective 1"),
    (lambda c: c.enter(-1, 0), "there is no open collective -1"),
    (lambda c: c.enter(0, 2), "a collective of 2 ranks has no rank 2"),
    (lambda c: c.enter(0, -1), "a collective of 2 ranks has no rank -1"),
    (lambda c: c.enter(0, 0.5), "a collective of 2 ranks has no rank 0.5"),  # type: ignore[arg-type]
    (lambda c: c.enter(0, 0), "rank 0 has already entered collective 0"),
    (lambda c: c.close(1), "there is no open collective 1"),
    (lambda c: c.close(0), "collective 0 has not ended: use cancel_collective()"),
    (lambda c: c.cancel_collective(1), "there is no open collective 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_refused_before_anything_changes(call: Callable[[Core], object], message: str) -> None:
    core = Core()
    for _ in range(2):
        core.add_link(1.0)
    pattern = core.add_pattern(2, [(1, [Step(0, 1, 1.0, (0,), 0.0)])])
    index = core.collective(pattern, 1.0)
    core.enter(index, 0)
    before = [repr(getattr(core, name)) for name in Core.__slots__]
    with pytest.raises(ValueError) as error:
        call(core)
    assert str(error.value) == message
    assert [repr(getattr(core, name)) for name in Core.__slots__] == before
