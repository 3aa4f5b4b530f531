"""An independent solver, a driver and a validator for the network core.

They reach the tests as fixtures: `network` holds the functions of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

TIGHT = 1e-9


@dataclass(frozen=True)
class Start:
    """A flow starts."""

    route: tuple[int, ...]
    size: float
    weight: float = 1.0
    cap: float = inf
    demand: tuple[float, ...] | None = None
    latency: float | None = None
    path_latency: float | None = None


@dataclass(frozen=True)
class Capacity:
    """A link gets another capacity; 0 is a failure."""

    link: int
    capacity: float


@dataclass(frozen=True)
class Cancel:
    """A flow, by its place among the starts, is cancelled if it is still running."""

    flow: int


@dataclass
class Scenario:
    """Links (capacity, latency), what happens to them by time, and pairs of links with what they lose."""

    links: list[tuple[float, float]]
    actions: list[tuple[float, Start | Capacity | Cancel]]
    fairness: str = "maxmin"
    crossed: list[tuple[int, int, float]] = field(default_factory=list)

    def starts(self) -> list[Start]:
        return [action for _, action in self.actions if isinstance(action, Start)]


@dataclass
class Outcome:
    """What became of a flow: 'completed', 'cancelled' or 'stalled', when, and what was left of it."""

    kind: str
    time: float
    left: float


def weight_of(scenario: Scenario, flow: Start) -> float:
    latency = flow.path_latency
    if latency is None:
        latency = sum(scenario.links[link][1] for link in flow.route)
    return flow.weight / latency if scenario.fairness == "rtt" and latency > 0 else flow.weight


def left_over(scenario: Scenario, capacity: Sequence[float], active: Sequence[Start]) -> list[float]:
    """Return what the links are left with while these flows compete for them."""
    flows = [sum(link in start.route for start in active) for link in range(len(capacity))]
    left = list(capacity)
    for one, other, loss in scenario.crossed:
        if flows[one] and flows[other]:
            left[one] *= 1 - loss / flows[one] ** 0.5
            left[other] *= 1 - loss / flows[other] ** 0.5
    return left


def water_levels(capacity: np.ndarray, use: np.ndarray, weight: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Progressive filling in the plainest form: raise all free rates together, step by step.

    `use` has a row for each link and a column for each flow.
    """
    rate = np.zeros(len(weight))
    free = np.ones(len(weight), dtype=bool)
    while free.any():
        slope = use @ np.where(free, weight, 0.0)
        room = np.maximum(capacity - use @ rate, 0.0)
        by_link = np.where(slope > 0, room / np.where(slope > 0, slope, 1.0), inf)
        by_cap = np.where(free, (cap - rate) / weight, inf)
        step = min(by_link.min(initial=inf), by_cap.min(initial=inf))
        rate = np.where(free, rate + weight * step, rate)
        full = by_link <= step * (1 + 1e-12)
        free &= ~(by_cap <= step * (1 + 1e-12)) & ~(use[full] > 0).any(axis=0)
    return rate


@dataclass
class _Flow:
    start: Start
    weight: float
    wakes: float
    left: float
    active: bool = False
    outcome: Outcome | None = None


@dataclass
class Oracle:
    """Re-solves everything from scratch at every event, and updates every flow at every event."""

    scenario: Scenario
    now: float = 0.0
    flows: list[_Flow] = field(default_factory=list)

    def run(self) -> list[Outcome]:
        self.capacity = np.array([capacity for capacity, _ in self.scenario.links])
        for time, action in self.scenario.actions:
            self.advance(time)
            self.act(action)
        self.advance(inf)
        for flow in self.running():
            flow.outcome = Outcome("stalled", inf, flow.left)
        return [flow.outcome for flow in self.flows if flow.outcome is not None]

    def running(self) -> list[_Flow]:
        return [flow for flow in self.flows if flow.outcome is None]

    def act(self, action: Start | Capacity | Cancel) -> None:
        if isinstance(action, Start):
            latency = action.latency
            if latency is None:
                latency = sum(self.scenario.links[link][1] for link in action.route)
            weight = weight_of(self.scenario, action)
            self.flows.append(_Flow(action, weight, self.now + latency, action.size))
        elif isinstance(action, Capacity):
            self.capacity[action.link] = action.capacity
        elif self.flows[action.flow].outcome is None:
            flow = self.flows[action.flow]
            flow.outcome = Outcome("cancelled", self.now, flow.left)

    def advance(self, limit: float) -> None:
        while True:
            self.update()
            active = [flow for flow in self.running() if flow.active]
            rates = self.rates(active).tolist()
            moving = [
                (flow, rate) for flow, rate in zip(active, rates, strict=True) if rate > 0 and flow.left < inf
            ]
            ends = [flow.left / rate for flow, rate in moving]
            wakes = [flow.wakes - self.now for flow in self.running() if not flow.active]
            step = min([*ends, *wakes, limit - self.now])
            if step == inf:
                return
            for flow, rate in moving:
                flow.left = max(flow.left - rate * step, 0.0)
            if step == limit - self.now:
                self.now = limit
                self.update()
                return
            self.now += step

    def update(self) -> None:
        """Wake the flows whose latency is over and end those that have nothing left, within rounding."""
        for flow in self.running():
            flow.active = flow.active or flow.wakes <= self.now * (1 + 1e-12)
            if flow.active and flow.left <= 1e-12 * flow.start.size < inf:
                flow.outcome = Outcome("completed", self.now, 0.0)

    def rates(self, active: Sequence[_Flow]) -> np.ndarray:
        use = np.zeros((len(self.capacity), len(active)))
        for column, flow in enumerate(active):
            for position, link in enumerate(flow.start.route):
                use[link, column] = flow.start.demand[position] if flow.start.demand else 1.0
        weight = np.array([flow.weight for flow in active])
        cap = np.array([flow.start.cap for flow in active])
        capacity = left_over(self.scenario, self.capacity.tolist(), [flow.start for flow in active])
        return water_levels(np.array(capacity), use, weight, cap)


def check_allocation(
    capacity: Sequence[float], flows: Sequence[tuple[Start, float, float]], tolerance: float = TIGHT
) -> None:
    """Assert that rates are feasible and max-min fair; `flows` are (start, weight, rate).

    Fair: every flow is at its cap, or has a saturated link on which nobody has a larger rate per weight.
    """
    users: list[list[tuple[float, float]]] = [[] for _ in capacity]
    for start, weight, rate in flows:
        assert 0.0 <= rate <= start.cap * (1 + tolerance), "a flow is faster than its cap"
        for position, link in enumerate(start.route):
            use = start.demand[position] if start.demand else 1.0
            users[link].append((use * rate, rate / weight))
    total = [sum(used for used, _ in here) for here in users]
    for link, limit in enumerate(capacity):
        assert total[link] <= limit * (1 + tolerance), "a link carries more than its capacity"
    for start, weight, rate in flows:
        capped = rate >= start.cap * (1 - tolerance)
        bottlenecks = [
            link
            for link in start.route
            if total[link] >= capacity[link] * (1 - tolerance)
            and all(level <= rate / weight * (1 + tolerance) for _, level in users[link])
        ]
        assert capped or bottlenecks, "a flow has no bottleneck and is below its cap"


def run_core(
    scenario: Scenario,
    core: Any,
    *,
    order: Sequence[int] | None = None,
    check: Callable[[Any, list[int]], None] | None = None,
) -> list[Outcome]:
    """Run a scenario on a core; the links are added in the order given. `check` sees each settled instant."""
    number: dict[int, int] = {}
    for link in order if order is not None else range(len(scenario.links)):
        number[link] = core.add_link(*scenario.links[link])
    for one, other, loss in scenario.crossed:
        core.cross(number[one], number[other], loss)
    starts = scenario.starts()
    outcomes: dict[int, Outcome] = {}
    names: list[int] = []

    def advance(limit: float) -> None:
        while True:
            if check is not None and limit > core.now:
                core.settle()
                check(core, [number[link] for link in range(len(scenario.links))])
            completed = core.advance(limit)
            assert completed == sorted(completed)
            for flow in completed:
                outcomes[names.index(flow)] = Outcome("completed", core.now, 0.0)
            if not completed:
                return

    for time, action in scenario.actions:
        advance(time)
        assert core.now == time
        if isinstance(action, Start):
            flow = core.start(
                [number[link] for link in action.route],
                action.size,
                weight=action.weight,
                cap=action.cap,
                demand=action.demand,
                latency=action.latency,
                path_latency=action.path_latency,
            )
            names.append(flow)
        elif isinstance(action, Capacity):
            if action.capacity:
                core.set_capacity(number[action.link], action.capacity)
            else:
                core.fail(number[action.link])
        elif action.flow not in outcomes:
            outcomes[action.flow] = Outcome("cancelled", time, core.cancel(names[action.flow]))
    advance(inf)
    for flow in range(len(starts)):
        if flow not in outcomes:
            outcomes[flow] = Outcome("stalled", inf, core.remaining(names[flow]))
    return [outcomes[flow] for flow in range(len(starts))]


def assert_agree(scenario: Scenario, got: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    """Assert equal outcomes to 1e-9; a flow cancelled with nothing left has as good as completed."""
    for start, one, other in zip(scenario.starts(), got, expected, strict=True):
        if one.kind != other.kind:
            assert {one.kind, other.kind} == {"completed", "cancelled"}
        if one.time != other.time:
            assert abs(one.time - other.time) <= TIGHT * other.time
        if one.left != other.left:
            assert abs(one.left - other.left) <= TIGHT * start.size


@st.composite
def scenarios(draw: st.DrawFn, disturbed: bool = True) -> Scenario:
    """Random networks and flow sets; many starts and ends coincide, disturbances come at odd times."""
    links = draw(
        st.lists(
            st.tuples(st.sampled_from([1.0, 2.0, 3.0, 0.7, 10.0]), st.sampled_from([0.0, 0.0, 0.25, 0.1])),
            min_size=1,
            max_size=7,
        )
    )
    several = st.lists(st.integers(0, len(links) - 1), min_size=1, max_size=4, unique=True).map(tuple)
    tenths = st.integers(1, 60).map(lambda n: n / 10)
    actions: list[tuple[float, Start | Capacity | Cancel]] = []
    flows = draw(st.integers(1, 12))
    for _ in range(flows):
        route = draw(several)
        start = Start(
            route,
            draw(st.one_of(st.integers(0, 8).map(float), tenths, st.just(inf) if disturbed else tenths)),
            weight=draw(st.sampled_from([1.0, 1.0, 2.0, 0.3, 100.0])),
            cap=draw(st.sampled_from([inf, inf, 0.5, 1.0, 0.03])),
            demand=draw(
                st.none() | st.tuples(*[st.sampled_from([1.0, 0.5, 2.0, 0.15]) for _ in route]),
            ),
            latency=draw(st.sampled_from([None, None, 0.0, 0.5])),
            path_latency=draw(st.sampled_from([None, None, 0.0, 0.3])),
        )
        actions.append((draw(st.integers(0, 12)) / 4, start))
    if disturbed:
        odd = st.integers(0, 40).map(lambda n: n / 8 + 0.0123456789)
        for _ in range(draw(st.integers(0, 6))):
            link = draw(st.integers(0, len(links) - 1))
            capacity = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 5.0]))
            actions.append((draw(odd), Capacity(link, capacity)))
        actions.sort(key=lambda pair: pair[0])
        begun = [time for time, action in actions if isinstance(action, Start)]
        doomed = draw(st.lists(st.integers(0, flows - 1), max_size=4))
        actions += [(begun[flow] + draw(odd), Cancel(flow)) for flow in doomed]
        # Endless flows end by being cancelled, so that every scenario has an end.
        endless = [action.size == inf for _, action in actions if isinstance(action, Start)]
        actions += [(40.0123, Cancel(flow)) for flow in range(flows) if endless[flow]]
    actions.sort(key=lambda pair: pair[0])
    fairness = draw(st.sampled_from(["maxmin", "maxmin", "rtt"]))
    pairs = draw(st.sampled_from([0, 0, 1, 3]))
    mixed = draw(st.permutations(range(len(links))))
    both = list(zip(mixed[::2], mixed[1::2], strict=False))[:pairs]
    losses = st.sampled_from([0.05, 0.3, 0.75])
    return Scenario(links, actions, fairness, [(one, other, draw(losses)) for one, other in both])


@pytest.fixture(scope="module", params=["plain", "compiled"])
def each_core(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the module's tests run on both cores."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACELINE_CORE", request.param)
        yield request.param


@pytest.fixture(scope="session")
def network() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        Cancel=Cancel,
        Capacity=Capacity,
        Oracle=Oracle,
        Scenario=Scenario,
        Start=Start,
        assert_agree=assert_agree,
        check_allocation=check_allocation,
        left_over=left_over,
        run_core=run_core,
        scenarios=scenarios,
        water_levels=water_levels,
        weight_of=weight_of,
    )
