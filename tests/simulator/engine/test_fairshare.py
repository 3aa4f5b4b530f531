from __future__ import annotations

import json
import os
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.engine.fairshare import Core

pytestmark = pytest.mark.usefixtures("each_core")

GOLDENS = Path(__file__).parents[2] / "goldens"
CASES = int(os.environ.get("PACELINE_CASES", "1"))
"""How many times the usual number of random cases is tried; see `make cases`."""

MANY = settings(max_examples=300 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=120 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def log(core: Core, limit: float = inf) -> list[tuple[float, list[int]]]:
    """Run to the limit; return all completions, by instant."""
    entries = []
    while completed := core.advance(limit):
        entries.append((core.now, completed))
    return entries


# ------------------------------------------------------------------------------------ small examples


def test_one_flow_on_its_own_link_ends_at_start_plus_size_over_capacity() -> None:
    core = Core(now=2.3)
    device = core.add_link(1.0)
    core.start([device], 1.0)
    assert log(core) == [(2.3 + 1.0 / 1.0, [0])]


def test_a_computation_is_exact_whatever_its_weight_and_however_often_others_come_and_go() -> None:
    core = Core()
    device, other = core.add_link(1.0), core.add_link(3.0)
    core.start([device], 7.7, weight=49.0)
    for start in range(20):
        core.start([other], 0.1, at=start / 7)
    assert log(core)[-1] == (7.7, [0])


def test_a_late_flow_halves_the_rate_of_the_first() -> None:
    # Alone until 1 with rate 2: 2 of 5 done. Then 1 each: the second, of 2, ends at 3, when the first has 1
    # left, which takes 0.5 at rate 2.
    core = Core()
    link = core.add_link(2.0)
    core.start([link], 5.0)
    core.start([link], 2.0, at=1.0)
    assert log(core) == [(3.0, [1]), (3.5, [0])]


def test_latency_is_paid_from_the_start_on_and_takes_no_bandwidth() -> None:
    core = Core()
    near, far = core.add_link(1.0, 0.5), core.add_link(2.0, 0.25)
    first = core.start([near, far], 1.0)  # waits until 0.75
    second = core.start([near], 1.0, latency=0.0)  # alone until 0.75, 0.25 left, then half: until 1.25
    assert core.rate(first) == 0.0
    assert core.rate(second) == 1.0
    assert log(core) == [(1.25, [second]), (2.0, [first])]


def test_start_at_a_later_time_pays_latency_from_there() -> None:
    core = Core()
    link = core.add_link(1.0, 0.5)
    core.start([link], 1.0, at=2.0)
    assert log(core) == [(3.5, [0])]


def test_weights_share_in_proportion() -> None:
    # 4 : 1 : 1 of 6.
    core = Core()
    link = core.add_link(6.0)
    flows = [core.start([link], 100.0, weight=weight) for weight in (4.0, 1.0, 1.0)]
    assert [core.rate(flow) for flow in flows] == [4.0, 1.0, 1.0]


def test_a_capped_flow_leaves_the_rest_to_the_others() -> None:
    core = Core()
    link = core.add_link(10.0)
    flows = [core.start([link], 100.0, cap=cap) for cap in (1.0, inf, inf)]
    assert [core.rate(flow) for flow in flows] == [1.0, 4.5, 4.5]


def test_parking_lot() -> None:
    # The long flow has 1/2 of the narrow link; what it leaves on the wide one goes to that one's own flow.
    core = Core()
    narrow, wide = core.add_link(1.0), core.add_link(2.0)
    flows = [core.start(route, 1.0) for route in ([narrow, wide], [narrow], [wide])]
    assert [core.rate(flow) for flow in flows] == [0.5, 0.5, 1.5]


def test_a_coupled_flow_is_limited_by_the_link_that_it_loads_most() -> None:
    # One unit of progress takes 2 of the first link and 0.5 of the second: min(3/2, 1/0.5) = 1.5.
    core = Core()
    links = [core.add_link(3.0), core.add_link(1.0)]
    core.start(links, 3.0, demand=[2.0, 0.5])
    assert log(core) == [(2.0, [0])]
    assert [core.carried(link) for link in links] == [6.0, 1.5]


def test_demands_share_by_progress_not_by_bytes() -> None:
    # x + 2 y = 3 with x = y.
    core = Core()
    link = core.add_link(3.0)
    flows = [core.start([link], 9.0), core.start([link], 9.0, demand=[2.0])]
    assert [core.rate(flow) for flow in flows] == [1.0, 1.0]


def test_a_very_light_flow_beside_heavy_ones_that_leave_keeps_its_precision() -> None:
    # The heavy flow is capped, and its weight leaves rounding errors 1e8 times larger than the light weights.
    core = Core()
    link = core.add_link(10.0)
    core.start([link], inf, weight=1e8, cap=4.0)
    light = [core.start([link], 100.0, weight=weight) for weight in (1e-8, 2e-8, 3e-8)]
    assert [core.rate(flow) for flow in light] == pytest.approx([1.0, 2.0, 3.0], rel=1e-14, abs=0.0)


def test_rounding_never_makes_a_rate_negative() -> None:
    # Six times 0.7 exceeds 4.2 by rounding, so that less than nothing seems to be left for the light flow.
    core = Core()
    link = core.add_link(4.2)
    for _ in range(6):
        core.start([link], inf, cap=0.7)
    light = core.start([link], 1.0, weight=1e-20)
    assert core.rate(light) == pytest.approx(7e-21, rel=1e-12, abs=0.0)


def test_the_last_flow_of_a_link_gets_exactly_what_is_left() -> None:
    # By way of the level it would get 49 * (1 / 49) < 1.
    core = Core()
    narrow, wide = core.add_link(1.0), core.add_link(100.0)
    flow = core.start([narrow, wide], 1.0, weight=49.0)
    core.start([wide], inf)
    assert 49.0 * (1.0 / 49.0) < 1.0
    assert core.rate(flow) == 1.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_subtraction_runs_in_the_order_of_flows_not_of_links(order: tuple[int, ...]) -> None:
    # Two links saturate together at 0.1; a third loses 0.1 * 0.7 and 0.1 * 0.6 in that order.
    core = Core()
    capacity = (0.1, 0.1, 1.0)
    number = {link: core.add_link(capacity[link]) for link in order}
    core.start([number[0], number[2]], inf, demand=[1.0, 0.7])
    core.start([number[1], number[2]], inf, demand=[1.0, 0.6])
    last = core.start([number[2]], inf)
    assert 1.0 - 0.1 * 0.7 - 0.1 * 0.6 != 1.0 - 0.1 * 0.6 - 0.1 * 0.7
    assert core.rate(last) == 1.0 - 0.1 * 0.7 - 0.1 * 0.6


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_links_that_saturate_together_the_smaller_offer_counts(order: tuple[int, ...]) -> None:
    # The narrow link offers 1 to its only flow, the wide one 49 / 52 of its capacity: a rounding less.
    core = Core()
    capacity = (1.0, 52.0 * (1.0 / 49.0))
    number = {link: core.add_link(capacity[link]) for link in order}
    flow = core.start([number[0], number[1]], inf, weight=49.0)
    core.start([number[1]], inf, weight=3.0)
    assert core.rate(flow) == 49.0 * (1.0 / 49.0)


def test_rtt_fairness_divides_by_the_latency_of_the_route_even_if_another_latency_is_paid() -> None:
    core = Core("rtt")
    shared, near, far = core.add_link(3.0), core.add_link(9.0, 0.5), core.add_link(9.0, 1.0)
    flows = [core.start([shared, link], 1.0, latency=0.0) for link in (near, far)]
    assert [core.rate(flow) for flow in flows] == [2.0, 1.0]


def test_rtt_fairness_divides_by_a_given_path_latency() -> None:
    core = Core("rtt")
    shared, far = core.add_link(7.0), core.add_link(9.0, 1.0)
    given = [core.start([shared, far], 1.0, latency=0.0, path_latency=value) for value in (0.25, 0.5, 0.0)]
    assert [core.rate(flow) for flow in given] == [4.0, 2.0, 1.0]


def test_rtt_fairness_leaves_weights_where_there_is_no_latency() -> None:
    core = Core("rtt")
    link = core.add_link(3.0)
    flows = [core.start([link], 1.0, weight=weight) for weight in (1.0, 2.0)]
    assert [core.rate(flow) for flow in flows] == [1.0, 2.0]


def test_a_flow_of_size_zero_completes_after_its_latency_and_takes_no_bandwidth() -> None:
    core = Core()
    link = core.add_link(1.0, 0.5)
    core.start([link], 0.0)
    core.start([link], 0.0, latency=0.0)
    core.start([link], 1.0)
    assert log(core) == [(0.0, [1]), (0.5, [0]), (1.5, [2])]


def test_an_empty_route_is_limited_by_its_cap_alone() -> None:
    core = Core()
    core.start([], 3.0, cap=2.0, latency=1.0)
    core.start([], 3.0, latency=1.0)
    assert log(core) == [(1.0, [1]), (2.5, [0])]
    assert core.solves == 0


def test_background_traffic_takes_its_share_until_it_is_cancelled() -> None:
    # 1 each until 2, when 3 of 5 are left for 2 a second.
    core = Core()
    link = core.add_link(2.0)
    background = core.start([link], inf)
    core.start([link], 5.0)
    assert core.advance(2.0) == []
    assert (core.carried(link), core.remaining(background)) == (4.0, inf)
    assert core.cancel(background) == inf
    assert log(core) == [(3.5, [1])]
    assert core.carried(link) == 7.0
    assert core.live == 0


def test_cancel_returns_what_is_left_and_frees_the_bandwidth() -> None:
    core = Core()
    link = core.add_link(2.0)
    first, second = core.start([link], 4.0), core.start([link], 4.0)
    core.advance(1.0)
    assert core.cancel(first) == 3.0
    assert not core.running(first)
    assert log(core) == [(2.5, [second])]
    assert core.carried(link) == 5.0


def test_cancel_during_the_latency_returns_the_whole_size() -> None:
    core = Core()
    flow = core.start([core.add_link(1.0, 5.0)], 4.0)
    core.advance(1.0)
    assert core.cancel(flow) == 4.0
    assert core.advance(inf) == []


def test_capacity_changes_take_effect_now() -> None:
    # A computation of 3 s: 1 s of work at full speed, then at half speed until 3, then a pause until 4.
    core = Core()
    device = core.add_link(1.0)
    flow = core.start([device], 3.0)
    core.advance(1.0)
    core.set_capacity(device, 0.5)
    core.advance(3.0)
    assert core.remaining(flow) == 1.0
    core.fail(device)
    assert core.capacity(device) == 0.0
    assert (core.rate(flow), core.stalled()) == (0.0, [flow])
    core.advance(4.0)
    core.set_capacity(device, 1.0)
    assert core.stalled() == []
    assert log(core) == [(5.0, [0])]


def test_flows_both_ways_cost_a_link_a_part_that_falls_with_their_root() -> None:
    core = Core()
    there, back = core.add_link(12.0), core.add_link(6.0)
    core.cross(there, back, 0.5)
    assert log(core) == []
    first = core.start([there], 24.0)
    assert core.rate(first) == 12.0  # nothing the other way
    core.advance(1.0)
    other = core.start([back], 3.0)
    assert (core.rate(first), core.rate(other)) == (6.0, 3.0)
    several = [core.start([there], 30.0) for _ in range(3)]
    assert [core.rate(flow) for flow in (first, *several, other)] == [2.25] * 4 + [3.0]
    core.set_capacity(there, 24.0)  # which is the full one
    assert (core.capacity(there), core.rate(first)) == (24.0, 4.5)
    assert core.advance(inf) == [other]
    assert core.rate(first) == 6.0


def test_a_link_that_lost_capacity_binds_a_single_flow_and_ends_a_virtual_clock() -> None:
    """Eight flows are limited by one link alone, until one of them meets a flow the other way."""
    core = Core(clock_from=2)
    hub, there, back = core.add_link(8.0), core.add_link(1.25), core.add_link(9.0)
    core.cross(there, back, 0.4)
    flows = [core.start([hub], 100.0) for _ in range(7)]
    narrow = core.start([hub, there], 100.0)
    assert [core.rate(flow) for flow in (*flows, narrow)] == [1.0] * 8
    other = core.start([back], inf)
    assert core.rate(other) == 9.0 * 0.6
    assert core.rate(narrow) == 0.75
    assert [core.rate(flow) for flow in flows] == pytest.approx([7.25 / 7] * 7, rel=1e-15)


def test_a_link_has_one_opposite() -> None:
    core = Core()
    first, second, third = (core.add_link(1.0) for _ in range(3))
    core.cross(first, second, 0.1)
    core.cross(second, first, 0.5)  # said again, otherwise
    for one, other in ((first, third), (third, second)):
        with pytest.raises(ValueError, match="is the opposite of link"):
            core.cross(one, other, 0.1)
    core.start([first], 1.0)
    core.start([second], 1.0)
    assert core.advance(inf) == [0, 1]
    assert core.now == 2.0


def test_a_capacity_changed_and_restored_at_one_instant_changes_nothing() -> None:
    core = Core()
    link = core.add_link(0.3)
    core.start([link], 0.7)
    core.advance(1.1)
    core.set_capacity(link, 5.0)
    core.set_capacity(link, 0.3)
    assert log(core) == [(0.7 / 0.3, [0])]


def test_links_can_be_added_while_flows_run() -> None:
    core = Core()
    core.start([core.add_link(1.0)], 1.0)
    core.advance(0.5)
    core.start([core.add_link(2.0)], 1.0)
    assert log(core) == [(1.0, [0, 1])]


def test_completions_of_one_instant_come_together_by_number_and_others_do_not() -> None:
    core = Core()
    links = [core.add_link(1.0) for _ in range(4)]
    core.start([links[0]], 1.0)
    core.start([links[1]], 0.5, at=0.5)
    core.start([links[2]], 1.0 + 2e-16)
    core.start([links[3]], 0.0, at=1.0)
    assert log(core) == [(1.0, [0, 1, 3]), (1.0 + 2e-16, [2])]


def test_advance_to_a_limit_stops_there() -> None:
    core = Core()
    core.start([core.add_link(1.0)], 2.0)
    assert (core.advance(1.0), core.now) == ([], 1.0)
    assert (core.next_time(), core.now) == (2.0, 1.0)
    assert (core.advance(2.0), core.now) == ([0], 2.0)
    assert (core.next_time(), core.advance(inf), core.now) == (inf, [], 2.0)
    assert (core.advance(9), core.now) == ([], 9.0)


# ------------------------------------------------------------------------------------------ laziness


def test_one_solve_an_instant_when_time_is_about_to_pass() -> None:
    core = Core()
    links = [core.add_link(1.0) for _ in range(3)]
    for link in links:
        core.start([link], 1.0)
    core.set_capacity(links[0], 2.0)
    core.start([links[1]], 1.0, at=0.25)
    core.start([links[2]], 1.0, at=0.25)
    assert core.solves == 0
    assert core.advance(0.0) == []
    assert core.solves == 0
    assert core.advance(0.25) == []  # at 0.25 two flows join; solved when time goes on
    assert core.solves == 1
    assert core.advance(0.5) == [0]
    assert core.solves == 2


def test_what_is_due_now_completes_before_the_solve() -> None:
    core = Core()
    link = core.add_link(1.0)
    core.start([link], 1.0)
    core.start([link], 0.0)
    assert (core.advance(inf), core.solves) == ([1], 0)
    assert (core.advance(inf), core.solves) == ([0], 1)


def test_the_rate_of_an_unaffected_flow_is_not_touched() -> None:
    # The chain 0-1-2 is one component, but the flows on link 2 keep 1/3 whatever happens on link 0.
    core = Core()
    links = [core.add_link(capacity) for capacity in (5.0, 2.0, 1.0)]
    core.start([links[1], links[2]], 0.71)
    core.start([links[2]], 0.71)
    core.start([links[2]], 0.71)
    core.start([links[0], links[1]], 50.0)
    for step in range(1, 20):
        core.start([links[0]], 0.01, at=step / 11)
    ends = {flow: time for time, flows in log(core) for flow in flows}
    assert [ends[flow] for flow in (0, 1, 2)] == [0.71 / (1.0 / 3.0)] * 3


def test_the_agenda_stays_short_when_many_flows_change_often() -> None:
    core = Core()
    link, other = core.add_link(1.0), core.add_link(1.0)
    for _ in range(50):
        core.start([link], 1000.0)
    core.start([other], 100.0)  # is due before what is out of date
    for _ in range(100):
        core.start([link], 0.001)
        core.advance(inf)
        core.advance(core.now + 0.1)
        agenda = core._storage.containers["agenda"]
        assert len(agenda) <= 64 + 4 * core._storage.lengths["flows"]
    assert core.live == 51


def test_slots_are_reused_but_numbers_are_not() -> None:
    core = Core()
    link = core.add_link(1.0)
    for number in range(50):
        assert core.start([link], 1.0) == number
        assert core.advance(inf) == [number]
    assert core._storage.lengths["flows"] == 16
    with pytest.raises(ValueError) as error:
        core.remaining(3)
    assert str(error.value) == "flow 3 has already ended"


# ---------------------------------------------------------------------------------------- monitoring


def test_history_has_one_entry_for_each_change_of_the_total_rate() -> None:
    core = Core()
    link, other = core.add_link(2.0), core.add_link(1.0)
    core.watch(link)
    core.start([link], 4.0)
    core.start([link, other], 2.0, at=1.0)  # the total stays 2
    core.start([link], 1.0, at=9.0, cap=0.5)
    core.start([link], 0.75, at=10.0, cap=0.5, demand=[2.0])
    log(core)
    assert core.history(link) == ([0.0, 3.0, 9.0, 10.0, 11.0, 11.5], [2.0, 0.0, 0.5, 1.5, 1.0, 0.0])


def test_history_starts_when_watching_starts() -> None:
    core = Core()
    link = core.add_link(2.0)
    core.start([link], 4.0)
    core.advance(1.0)
    core.watch(link)
    core.watch(link)
    log(core)
    assert core.history(link) == ([1.0, 2.0], [2.0, 0.0])


def test_history_of_several_solves_at_one_instant_keeps_the_last() -> None:
    core = Core(monitor=True)
    link = core.add_link(2.0)
    first = core.start([link], 4.0)
    core.settle()
    core.cancel(first)
    core.settle()
    assert core.history(link) == ([0.0], [0.0])
    core.advance(1.0)
    first = core.start([link], 4.0)
    core.settle()
    core.cancel(first)
    assert core.history(link) == ([0.0], [0.0])


# ------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize(("fairness", "count"), [("maxmin", 33), ("rtt", 10)])
def test_flow_sets_of_simgrid(fairness: Any, count: int) -> None:
    cases = json.loads((GOLDENS / f"flow_sets_{fairness}.json").read_text())
    assert len(cases) == count
    for case in cases:
        core = Core(fairness)
        links = {
            name: core.add_link(link["bandwidth"], link["latency"]) for name, link in case["links"].items()
        }
        for flow in case["flows"]:
            core.start([links[name] for name in flow["path"]], flow["size"], at=flow["start"])
        ends = {flow: time for time, flows in log(core) for flow in flows}
        assert [ends[flow] for flow in range(len(ends))] == pytest.approx(
            case["completion"], rel=1e-9, abs=0.0
        )


# ---------------------------------------------------------------------------------------- properties


# Components as a whole, local repair, virtual clocks wherever they can be.
WAYS: list[dict[str, Any]] = [
    {"rounds": 0, "clock_from": 1000},
    {"rounds": 12, "clock_from": 1000},
    {"rounds": 1, "clock_from": 1000},
    {"rounds": 12, "clock_from": 2},
]


@pytest.mark.parametrize("way", WAYS, ids=["component", "repair", "short repair", "clocks"])
@MANY
@given(data=st.data())
def test_agrees_with_progressive_filling_and_every_allocation_is_fair(
    way: dict[str, Any], data: st.DataObject, network: SimpleNamespace
) -> None:
    scenario = data.draw(network.scenarios())
    starts = scenario.starts()
    begun = [(time, action) for time, action in scenario.actions if isinstance(action, network.Start)]
    latencies = [
        sum(scenario.links[link][1] for link in start.route) if start.latency is None else start.latency
        for start in starts
    ]

    def check(core: Core, links: list[int]) -> None:
        flows = [
            (start, network.weight_of(scenario, start), core.rate(flow))
            for flow, start in enumerate(starts)
            if core.running(flow) and core.rate(flow) > 0.0
        ]
        capacity = [core.capacity(link) for link in links]
        for flow, start in enumerate(starts):
            # The others are waiting, or have a failed link.
            if core.running(flow) and core.rate(flow) == 0.0 and flow in core.stalled():
                assert any(capacity[link] == 0.0 for link in start.route)
        active = [
            start
            for flow, (time, start) in enumerate(begun)
            if start.size and core.running(flow) and time + latencies[flow] <= core.now
        ]
        network.check_allocation(network.left_over(scenario, capacity, active), flows)

    plain = network.run_core(scenario, Core(scenario.fairness, **way))
    network.assert_agree(scenario, plain, network.Oracle(scenario).run())
    checked = network.run_core(scenario, Core(scenario.fairness, **way), check=check)
    network.assert_agree(scenario, checked, plain)


@MANY
@given(data=st.data())
def test_both_cores_give_the_same_bits(data: st.DataObject, network: SimpleNamespace) -> None:
    pytest.importorskip("numba")
    scenario = data.draw(network.scenarios())
    way = data.draw(st.sampled_from(WAYS))
    results = []
    for name in ("plain", "compiled"):
        core = Core(scenario.fairness, monitor=True, core=name, **way)  # type: ignore[arg-type]
        outcomes = network.run_core(scenario, core)
        links = range(len(scenario.links))
        results.append((outcomes, core.solves, [(core.carried(link), core.history(link)) for link in links]))
    assert results[0] == results[1]


def crowd(network: SimpleNamespace, seed: int) -> Any:
    """Hundreds of flows on tens of links, or on one of a few that limit them: too many for hypothesis."""
    random = np.random.default_rng(seed)
    hubs, others = int(random.integers(1, 4)), int(random.integers(5, 50))
    links = [(float(random.choice([1.0, 2.0, 0.7])), 0.0) for _ in range(hubs + others)]
    actions: list[tuple[float, Any]] = []
    flows = int(random.integers(60, 200))
    for _ in range(flows):
        if seed % 2:
            route = random.choice(hubs + others, int(random.integers(1, 5)), replace=False)
        else:
            route = np.array([random.integers(hubs), hubs + random.integers(others)])
        cap = float(random.choice([inf, inf, inf, 0.03]))
        weight = float(random.choice([1.0, 1.0, 2.0]))
        start = network.Start(tuple(route.tolist()), float(random.uniform(0.1, 3.0)), weight=weight, cap=cap)
        actions.append((float(random.uniform(0.0, 10.0)), start))
    for _ in range(flows // 20):
        link = int(random.integers(hubs + others))
        change = network.Capacity(link, float(random.choice([0.3, 2.5])))
        actions.append((float(random.uniform(0.0, 10.0)), change))
    return network.Scenario(links, sorted(actions, key=lambda pair: pair[0]))


@pytest.mark.parametrize("seed", range(24))
def test_all_ways_agree_on_larger_networks(seed: int, network: SimpleNamespace) -> None:
    scenario = crowd(network, seed)
    first, *others = (network.run_core(scenario, Core(**way)) for way in WAYS)
    for other in others:
        network.assert_agree(scenario, other, first)


@SOME
@given(data=st.data())
def test_numbering_of_links_and_monitoring_do_not_change_a_bit(
    data: st.DataObject, network: SimpleNamespace
) -> None:
    scenario = data.draw(network.scenarios())
    order = data.draw(st.permutations(range(len(scenario.links))))
    way = data.draw(st.sampled_from(WAYS))
    plain = network.run_core(scenario, Core(scenario.fairness, **way))
    assert network.run_core(scenario, Core(scenario.fairness, **way), order=order) == plain
    assert network.run_core(scenario, Core(scenario.fairness, **way, monitor=True)) == plain


@SOME
@given(data=st.data())
def test_links_carry_what_their_flows_moved_and_what_was_recorded(
    data: st.DataObject, network: SimpleNamespace
) -> None:
    scenario = data.draw(network.scenarios(disturbed=False))
    core = Core(scenario.fairness, monitor=True, **data.draw(st.sampled_from(WAYS)))
    network.run_core(scenario, core)
    expected = [0.0] * len(scenario.links)
    for start in scenario.starts():
        for position, link in enumerate(start.route):
            expected[link] += start.size * (start.demand[position] if start.demand else 1.0)
    for link, moved in enumerate(expected):
        assert core.carried(link) == pytest.approx(moved, rel=1e-12)
        times, rates = core.history(link)
        assert rates[-1] == 0.0
        integral = sum(np.diff(times) * rates[:-1]) if len(times) > 1 else 0.0
        assert integral == pytest.approx(moved, rel=1e-9)


@SOME
@given(data=st.data())
def test_stopping_on_the_way_changes_no_time(data: st.DataObject, network: SimpleNamespace) -> None:
    scenario = data.draw(network.scenarios(disturbed=False))
    stops = sorted(data.draw(st.lists(st.floats(0.0, 20.0), max_size=5)))
    through, stopped = Core(scenario.fairness), Core(scenario.fairness)
    for core in (through, stopped):
        for link in scenario.links:
            core.add_link(*link)
        for one, other, loss in scenario.crossed:
            core.cross(one, other, loss)
        for time, start in scenario.actions:
            core.start(
                start.route,
                start.size,
                weight=start.weight,
                cap=start.cap,
                demand=start.demand,
                latency=start.latency,
                path_latency=start.path_latency,
                at=time,
            )
    entries = [entry for stop in stops for entry in log(stopped, stop)]
    assert entries + log(stopped) == log(through)


def test_the_validator_refuses_what_is_not_fair(network: SimpleNamespace) -> None:
    start = network.Start((0,), 1.0)
    capped = network.Start((0,), 1.0, cap=0.25)

    def refusal(*flows: Any) -> str:
        with pytest.raises(AssertionError) as error:
            network.check_allocation([1.0], flows)
        return str(error.value).partition("\n")[0]

    network.check_allocation([1.0], [(start, 1.0, 0.5), (start, 1.0, 0.5)])
    network.check_allocation([1.0], [(start, 1.0, 0.75), (capped, 1.0, 0.25)])
    assert refusal((start, 1.0, 0.6), (start, 1.0, 0.6)) == "a link carries more than its capacity"
    assert refusal((start, 1.0, 0.7), (start, 1.0, 0.3)) == "a flow has no bottleneck and is below its cap"
    assert refusal((start, 1.0, 0.9)) == "a flow has no bottleneck and is below its cap"
    assert refusal((start, 2.0, 0.5), (start, 1.0, 0.5)) == "a flow has no bottleneck and is below its cap"
    assert refusal((start, 1.0, 0.5), (capped, 1.0, 0.5)) == "a flow is faster than its cap"


def test_the_oracle_on_the_parking_lot(network: SimpleNamespace) -> None:
    use = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    rates = network.water_levels(np.array([1.0, 2.0]), use, np.ones(3), np.full(3, inf))
    assert rates.tolist() == [0.5, 0.5, 1.5]


# ----------------------------------------------------------------------------------------- bad input


def frozen(core: Core) -> list[Any]:
    return [repr(getattr(core, name)) for name in Core.__slots__]


FLOW = "the size of a flow must be a number of at least 0, not "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.start([0], -1.0), FLOW + "-1.0"),
        (lambda c: c.start([0], nan), FLOW + "nan"),
        (
            lambda c: c.start([0], 1.0, weight=0.0),
            "the weight of a flow must be a positive, finite number, not 0.0",
        ),
        (
            lambda c: c.start([0], 1.0, weight=inf),
            "the weight of a flow must be a positive, finite number, not inf",
        ),
        (
            lambda c: c.start([0], 1.0, weight=nan),
            "the weight of a flow must be a positive, finite number, not nan",
        ),
        (lambda c: c.start([0], 1.0, cap=0.0), "the cap of a flow must be a positive number, not 0.0"),
        (lambda c: c.start([0], 1.0, cap=-3), "the cap of a flow must be a positive number, not -3"),
        (lambda c: c.start([0], 1.0, cap=nan), "the cap of a flow must be a positive number, not nan"),
        (lambda c: c.start([2], 1.0), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.start([-1], 1.0), "there is no link -1: links are numbered 0 to 1"),
        (lambda c: c.start([0, 7], 1.0), "there is no link 7: links are numbered 0 to 1"),
        (lambda c: c.start([0.9], 1.0), "there is no link 0.9: links are numbered 0 to 1"),
        (lambda c: c.start([0.0], 1.0), "there is no link 0.0: links are numbered 0 to 1"),
        (lambda c: c.start((1.0,), 1.0, demand=[1.0]), "there is no link 1.0: links are numbered 0 to 1"),
        (lambda c: c.start([0, "a"], 1.0), "there is no link a: links are numbered 0 to 1"),
        (lambda c: c.start([0, 1, 0], 1.0), "a route uses a link only once, but link 0 is in it twice"),
        (lambda c: c.start([0, 1], 1.0, demand=[1.0]), "a route of 2 links needs 2 demands, not 1"),
        (
            lambda c: c.start([0], 1.0, demand=[0.0]),
            "the demand of a flow must be a positive, finite number, not 0.0",
        ),
        (
            lambda c: c.start([0], 1.0, demand=[nan]),
            "the demand of a flow must be a positive, finite number, not nan",
        ),
        (
            lambda c: c.start([0], 1.0, latency=-0.1),
            "the latency of a flow must be a finite number of at least 0, not -0.1",
        ),
        (
            lambda c: c.start([0], 1.0, latency=nan),
            "the latency of a flow must be a finite number of at least 0, not nan",
        ),
        (
            lambda c: c.start([1, 0], 1.0, latency=nan),
            "the latency of a flow must be a finite number of at least 0, not nan",
        ),
        (lambda c: c.start([1, 0], 1.0, at=inf), "a flow cannot start at inf: the time is already 1.0"),
        (lambda c: c.start([0], 1.0, at=0.5), "a flow cannot start at 0.5: the time is already 1.0"),
        (lambda c: c.start([0], 1.0, at=nan), "a flow cannot start at nan: the time is already 1.0"),
        (
            lambda c: c.start(Core().add_route([]), 1.0),
            "a kept route belongs to its core, and has its demands already",
        ),
        (
            lambda c: c.start(c.add_route([0]), 1.0, demand=[2.0]),
            "a kept route belongs to its core, and has its demands already",
        ),
        (lambda c: c.add_route([2]), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.start([], inf), "a flow of infinite size needs a link or a cap that limits its rate"),
        (
            lambda c: c.start([0], 1.0, path_latency=-1.0),
            "the path latency of a flow must be a finite number of at least 0, not -1.0",
        ),
        (lambda c: c.add_link(0.0), "the capacity of a link must be a positive, finite number, not 0.0"),
        (lambda c: c.add_link(-1.0), "the capacity of a link must be a positive, finite number, not -1.0"),
        (lambda c: c.add_link(nan), "the capacity of a link must be a positive, finite number, not nan"),
        (lambda c: c.add_link(inf), "the capacity of a link must be a positive, finite number, not inf"),
        (
            lambda c: c.add_link(1.0, -1.0),
            "the latency of a link must be a finite number of at least 0, not -1.0",
        ),
        (
            lambda c: c.add_link(1.0, nan),
            "the latency of a link must be a finite number of at least 0, not nan",
        ),
        (lambda c: c.set_capacity(0, 0.0), "the capacity of link 0 cannot be set to 0: use fail()"),
        (
            lambda c: c.set_capacity(0, nan),
            "the capacity of a link must be a positive, finite number, not nan",
        ),
        (lambda c: c.set_capacity(5, 1.0), "there is no link 5: links are numbered 0 to 1"),
        (lambda c: c.fail(2), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.cross(0, 2, 0.1), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.cross(0, 0, 0.1), "link 0 cannot be its own opposite"),
        (lambda c: c.cross(0, 1, 1.0), "the loss of a link must be above 0 and below 1, not 1.0"),
        (lambda c: c.cross(0, 1, nan), "the loss of a link must be above 0 and below 1, not nan"),
        (lambda c: c.cross(0, 1, 0.1), "link 1 carries flows: say before what is its opposite"),
        (lambda c: c.carried(-2), "there is no link -2: links are numbered 0 to 1"),
        (lambda c: c.capacity(2), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.watch(2), "there is no link 2: links are numbered 0 to 1"),
        (lambda c: c.history(1), "link 1 is not watched: call watch(1) before the run"),
        (lambda c: c.cancel(0), "flow 0 has already ended"),
        (lambda c: c.cancel(2), "there is no flow 2"),
        (lambda c: c.rate(-1), "there is no flow -1"),
        (lambda c: c.remaining(0), "flow 0 has already ended"),
        (lambda c: c.route(9), "there is no flow 9"),
        (lambda c: c.advance(0.5), "cannot advance to 0.5: the time is already 1.0"),
        (lambda c: c.advance(nan), "cannot advance to nan: the time is already 1.0"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(call: Any, message: str) -> None:
    core = Core()
    for _ in range(2):
        core.add_link(1.0)
    core.start([0], 1.0)
    core.start([1], 5.0, demand=[1.0])
    core.advance(inf)
    before = frozen(core)
    with pytest.raises(ValueError) as error:
        call(core)
    assert str(error.value) == message
    assert frozen(core) == before


def test_a_core_without_links_says_so() -> None:
    with pytest.raises(ValueError) as error:
        Core().start([0], 1.0)
    assert str(error.value) == "there is no link 0: there are no links yet"


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        Core("fair")  # type: ignore[arg-type]
    assert str(error.value) == "fairness is 'maxmin' or 'rtt', not 'fair'"
    with pytest.raises(ValueError) as error:
        Core(now=nan)
    assert str(error.value) == "the time at the start must be a finite number, not nan"
