from __future__ import annotations

import os
from collections.abc import Generator
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest
import simpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simpy.events import Event

from simulator.engine.clock import Clock, StalledFlow

pytestmark = pytest.mark.usefixtures("each_core")

Log = list[tuple[str, float]]
Process = Generator[Event, Any, Any]

CASES = int(os.environ.get("PACELINE_CASES", "1"))
"""How many times the usual number of random cases is tried; see `make cases`."""


def noting(log: Log, clock: Clock, name: str) -> Any:
    """A call-back that notes its name and the time."""
    return lambda: log.append((name, clock.now))


def computing(log: Log, clock: Clock, name: str, link: int, *sizes: float) -> Process:
    """A process that waits for one flow after the other."""
    for size in sizes:
        done = clock.event()
        clock.flow([link], size, done.succeed)
        yield done
        log.append((name, clock.now))


# ----------------------------------------------------------------------------------------- exactness


def test_times_are_exact_sums() -> None:
    clock = Clock()
    device = clock.core.add_link(1.0)
    log: Log = []
    clock.process(computing(log, clock, "step", device, 1.0, 0.8, 0.5, 1.0))
    clock.run()
    assert log == [("step", 1.0), ("step", 1.8), ("step", 1.8 + 0.5), ("step", 2.3 + 1.0)]
    assert type(clock.now) is float


def test_two_computations_on_one_device_share_it() -> None:
    # Both at half speed until 2, when the second has 1 of 2 left for itself.
    clock = Clock()
    device = clock.core.add_link(1.0)
    log: Log = []
    clock.process(computing(log, clock, "short", device, 1.0))
    clock.process(computing(log, clock, "long", device, 2.0))
    clock.run()
    assert log == [("short", 2.0), ("long", 3.0)]


def test_a_device_that_slows_down_and_pauses() -> None:
    # 1 of 3 done at 1, another 0.5 at half speed until 2, a pause until 4, then 1.5 at full speed.
    clock = Clock()
    device = clock.core.add_link(1.0)
    log: Log = []
    clock.process(computing(log, clock, "done", device, 3.0))
    clock.at(1.0, lambda: clock.core.set_capacity(device, 0.5))
    clock.at(2.0, lambda: clock.core.fail(device))
    clock.at(4.0, lambda: clock.core.set_capacity(device, 1.0))
    clock.run()
    assert log == [("done", 5.5)]


def test_options_of_a_flow_reach_the_core() -> None:
    clock = Clock()
    link = clock.core.add_link(4.0, 0.5)
    log: Log = []
    clock.flow([link], 3.0, noting(log, clock, "heavy"), weight=3.0, latency=0.0)
    clock.flow([link], 1.0, noting(log, clock, "light"), latency=0.0)
    clock.flow([link], 1.0, noting(log, clock, "capped"), cap=0.5, at=2.0)
    clock.flow([link], 1.0, noting(log, clock, "coupled"), demand=[2.0], at=5.0)
    clock.run()
    assert log == [("heavy", 1.0), ("light", 1.0), ("capped", 4.5), ("coupled", 6.0)]


def test_rtt_fairness_is_a_setting_of_the_clock() -> None:
    clock = Clock(fairness="rtt")
    shared, near, far = (clock.core.add_link(*link) for link in ((3.0, 0.0), (9.0, 0.5), (9.0, 1.0)))
    flows = [clock.flow([shared, link], 1.0, int, latency=0.0) for link in (near, far)]
    assert [clock.core.rate(flow) for flow in flows] == [2.0, 1.0]


def test_the_clock_starts_where_it_is_told() -> None:
    clock = Clock(5, monitor=True)
    link = clock.core.add_link(2.0)
    clock.flow([link], 1.0, int)
    clock.run()
    assert clock.now == clock.core.now == 5.5
    assert clock.core.history(link) == ([5.0, 5.5], [2.0, 0.0])


# ----------------------------------------------------------------------------------------- tie rules


def test_at_one_time_flows_complete_by_number_then_come_simpy_events_then_the_solve() -> None:
    clock = Clock()
    links = [clock.core.add_link(1.0) for _ in range(3)]
    log: Log = []

    def sleeping(name: str) -> Process:
        yield clock.timeout(1.0)
        log.append((name, clock.now))
        clock.flow([links[0]], 1.0, noting(log, clock, f"flow of {name}"))
        yield clock.timeout(0.0)
        log.append((f"{name} again", clock.now))

    clock.process(sleeping("sleeper"))
    clock.at(1.0, noting(log, clock, "call"))
    clock.flow([links[2]], 1.0, noting(log, clock, "third"))
    clock.flow([links[1]], 1.0, noting(log, clock, "second"))
    clock.process(sleeping("other sleeper"))
    clock.process(computing(log, clock, "process", links[0], 1.0))
    clock.run()
    assert log == [
        ("third", 1.0),
        ("second", 1.0),
        # the event of the process was triggered by its flow, after the other events of time 1 were scheduled
        ("call", 1.0),
        ("sleeper", 1.0),
        ("other sleeper", 1.0),
        ("process", 1.0),
        ("sleeper again", 1.0),
        ("other sleeper again", 1.0),
        ("flow of sleeper", 3.0),
        ("flow of other sleeper", 3.0),
    ]
    # One solve as time leaves 0, one as it leaves 1; at 3 nothing is left that could run.
    assert clock.core.solves == 2


def test_a_flow_of_size_zero_completes_before_the_next_event_of_the_same_time() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    log: Log = []
    clock.at(1.0, lambda: clock.flow([link], 0.0, noting(log, clock, "empty flow")))
    clock.at(1.0, noting(log, clock, "next event"))
    clock.run()
    assert log == [("empty flow", 1.0), ("next event", 1.0)]
    assert clock.core.solves == 0


def test_the_end_of_a_latency_and_a_start_at_one_time_are_one_solve() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0, 1.0)
    log: Log = []
    clock.flow([link], 1.0, noting(log, clock, "waited"))
    clock.at(1.0, lambda: clock.flow([link], 1.0, noting(log, clock, "at once"), latency=0.0))
    clock.run()
    assert log == [("waited", 3.0), ("at once", 3.0)]
    assert clock.core.solves == 1


def test_a_thousand_starts_and_ends_of_one_time_are_one_solve() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    log: Log = []
    for worker in range(1000):
        clock.process(computing(log, clock, f"worker {worker}", link, 0.001, 0.001))
    clock.run()
    assert clock.core.solves == 2
    assert [name for name, _ in log] == [f"worker {worker}" for worker in range(1000)] * 2
    assert len({time for _, time in log}) == 2


def test_nearly_simultaneous_completions_are_not_merged() -> None:
    clock = Clock()
    log: Log = []
    for size in (1.0 + 2e-16, 1.0):
        clock.flow([clock.core.add_link(1.0)], size, noting(log, clock, f"{size!r}"))
    clock.run()
    assert log == [("1.0", 1.0), (repr(1.0 + 2e-16), 1.0 + 2e-16)]


# ------------------------------------------------------------------------------------- call-backs


def test_call_backs_may_start_and_cancel_flows() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    log: Log = []
    background = clock.flow([link], inf, noting(log, clock, "never"))

    def first() -> None:
        log.append(("first", clock.now))
        assert clock.cancel(background) == inf
        clock.flow([link], 1.0, noting(log, clock, "second"))

    clock.flow([link], 1.0, first)
    clock.run()
    assert log == [("first", 2.0), ("second", 3.0)]


def test_a_flow_that_completes_now_can_be_cancelled_until_its_call_back_runs() -> None:
    clock = Clock()
    log: Log = []
    flows: list[int] = []

    def first() -> None:
        log.append(("first", clock.now))
        assert clock.cancel(flows[1]) == 0.0

    flows.append(clock.flow([clock.core.add_link(1.0)], 1.0, first))
    flows.append(clock.flow([clock.core.add_link(1.0)], 1.0, noting(log, clock, "second")))
    clock.run()
    assert log == [("first", 1.0)]
    for flow in flows:
        with pytest.raises(ValueError) as error:
            clock.cancel(flow)
        assert str(error.value) == f"flow {flow} has already ended"


def test_call_backs_after_one_that_raises_run_when_the_clock_goes_on() -> None:
    clock = Clock()
    log: Log = []

    def broken() -> None:
        raise KeyError("broken")

    for function in (noting(log, clock, "first"), broken, noting(log, clock, "third")):
        clock.flow([clock.core.add_link(1.0)], 1.0, function)
    clock.flow([clock.core.add_link(1.0)], 2.0, noting(log, clock, "later"))
    with pytest.raises(KeyError, match="broken"):
        clock.run()
    assert log == [("first", 1.0)]
    assert clock.peek() == 1.0
    clock.run()
    assert log == [("first", 1.0), ("third", 1.0), ("later", 2.0)]


def test_a_flow_started_on_the_core_itself_needs_no_call_back() -> None:
    clock = Clock()
    clock.core.start([clock.core.add_link(1.0)], 1.0)
    clock.run()
    assert clock.now == 1.0


def test_at_refuses_the_past_and_what_is_no_time() -> None:
    clock = Clock(2.0)
    for time, said in ((1.0, "1.0"), (nan, "nan"), (inf, "inf")):
        with pytest.raises(ValueError) as error:
            clock.at(time, int)
        assert str(error.value) == f"cannot call a function at {said}: the time is already 2.0"


def test_a_refused_flow_leaves_no_trace() -> None:
    clock = Clock()
    with pytest.raises(ValueError) as error:
        clock.flow([0], 1.0, int)
    assert str(error.value) == "there is no link 0: there are no links yet"
    clock.run()
    assert (clock.now, clock.peek()) == (0.0, inf)


# ------------------------------------------------------------------------- waiting without a heap


def test_the_event_of_a_flow_is_processed_as_the_flow_ends_before_the_events_of_that_time() -> None:
    clock = Clock()
    links = [clock.core.add_link(1.0) for _ in range(2)]
    log: Log = []

    def waiting(name: str, end: Event) -> Process:
        log.append((f"{name} got {(yield end)}", clock.now))

    clock.at(1.0, noting(log, clock, "call"))
    ends = [clock.event() for _ in links]
    for name, end in (("second", ends[1]), ("first", ends[0]), ("first too", ends[0])):
        clock.process(waiting(name, end))
    for link, end in zip(links, ends, strict=True):
        clock.flow([link], 1.0, end)
    clock.run()
    assert log == [(f"{name} got None", 1.0) for name in ("first", "first too", "second")] + [("call", 1.0)]
    assert all(end.processed and end.ok for end in ends)


def test_an_event_that_was_triggered_already_cannot_end_a_flow() -> None:
    clock = Clock()
    end = clock.event()
    clock.flow([clock.core.add_link(1.0)], 1.0, end)
    end.succeed("early")
    with pytest.raises(RuntimeError, match="has already been triggered"):
        clock.run()


def test_a_run_until_the_event_of_a_flow_stops_at_its_end() -> None:
    clock = Clock()
    links = [clock.core.add_link(1.0) for _ in range(2)]
    end, log = clock.event(), []
    clock.flow([links[0]], 1.0, end)
    clock.flow([links[1]], 1.0, noting(log, clock, "other flow"))
    assert clock.run(until=end) is None
    assert (clock.now, log) == (1.0, [])
    clock.run()
    assert log == [("other flow", 1.0)]


def pausing(clock: Clock, log: Log, name: str, link: int, rounds: int = 2) -> Process:
    """A process that sleeps a second, sends for a second, and lets an event go by in between."""
    for _ in range(rounds):
        yield clock.sleep(1.0)
        log.append((f"{name} slept", clock.now))
        yield clock.transfer([link], 1.0)
        log.append((f"{name} sent", clock.now))
        past = clock.timeout(0.0)
        yield past
        yield past
        assert (yield clock.timeout(0.5, name)) == name


@pytest.mark.parametrize("by_step", [False, True])
def test_pauses_take_their_place_among_the_events(by_step: bool) -> None:
    clock = Clock()
    log: Log = []
    links = [clock.core.add_link(1.0) for _ in range(2)]
    clock.process(pausing(clock, log, "a", links[0]))
    clock.at(1.0, noting(log, clock, "call"))
    clock.process(pausing(clock, log, "b", links[1]))
    if by_step:
        while clock.peek() < inf:
            clock.step()
    else:
        clock.run()
    assert log == [
        ("call", 1.0),
        ("a slept", 1.0),
        ("b slept", 1.0),
        ("a sent", 2.0),
        ("b sent", 2.0),
        ("a slept", 3.5),
        ("b slept", 3.5),
        ("a sent", 4.5),
        ("b sent", 4.5),
    ]
    assert clock.now == 5.0


def test_a_process_may_end_or_fail_after_a_pause() -> None:
    clock = Clock()

    def result() -> Process:
        yield clock.sleep(1.0)
        return "done"

    def failing() -> Process:
        yield clock.sleep(2.0)
        raise KeyError("broken")

    assert clock.run(until=clock.process(result())) == "done"
    process = clock.process(failing())
    with pytest.raises(KeyError, match="broken"):
        clock.run()
    assert (clock.now, process.is_alive, process.ok, clock.active_process) == (3.0, False, False, None)


def test_only_a_process_can_ask_for_a_pause() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    one_at_a_time = "only a process can ask for a pause, and only for one at a time"
    with pytest.raises(RuntimeError) as error:
        clock.sleep(1.0)
    assert str(error.value) == one_at_a_time
    with pytest.raises(RuntimeError) as error:
        clock.transfer([link], 1.0)
    assert str(error.value) == one_at_a_time


def asks_twice(clock: Clock) -> Process:
    clock.sleep(1.0)
    yield clock.sleep(2.0)


def waits_elsewhere(clock: Clock) -> Process:
    clock.sleep(1.0)
    yield clock.timeout(2.0)


def never_waits(clock: Clock) -> Process:
    yield clock.timeout(0.0)
    clock.sleep(1.0)


def sleeps_backwards(clock: Clock) -> Process:
    yield clock.sleep(-1.0)


def waits_for_nothing(clock: Clock) -> Process:
    pause = clock.sleep(1.0)
    yield pause
    yield pause


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (asks_twice, "only a process can ask for a pause, and only for one at a time"),
        (waits_elsewhere, "asked for a pause and did not wait for it"),
        (never_waits, "asked for a pause and did not wait for it"),
        (sleeps_backwards, "a process cannot sleep for -1.0 seconds"),
        (waits_for_nothing, "Invalid yield value"),
    ],
)
def test_a_pause_that_is_not_waited_for_once_stops_the_run(process: Any, message: str) -> None:
    clock = Clock()
    clock.process(process(clock))
    with pytest.raises((RuntimeError, ValueError), match=message):
        clock.run()


def test_a_process_in_a_pause_cannot_be_interrupted() -> None:
    clock = Clock()
    process = clock.process(pausing(clock, [], "a", clock.core.add_link(1.0)))
    clock.at(0.5, process.interrupt)
    with pytest.raises(RuntimeError) as error:
        clock.run()
    assert str(error.value) == "a process in a pause cannot be interrupted"


def test_a_timeout_into_the_past_is_refused() -> None:
    clock = Clock()
    for delay in (-1.0, nan):
        with pytest.raises(ValueError) as error:
            clock.timeout(delay)
        assert str(error.value) == f"Negative delay {delay}"


# ------------------------------------------------------------------------------------ run and until


def test_run_until_a_time_includes_flows_of_that_time_and_not_simpy_events() -> None:
    clock = Clock()
    log: Log = []
    clock.flow([clock.core.add_link(1.0)], 1.0, noting(log, clock, "flow"))
    clock.at(1.0, noting(log, clock, "event"))
    assert clock.run(until=1) is None
    assert (log, clock.now) == ([("flow", 1.0)], 1.0)
    clock.run(until=1.75)
    assert (log, clock.now, clock.core.now) == ([("flow", 1.0), ("event", 1.0)], 1.75, 1.75)


def test_run_until_a_time_stops_in_the_middle_of_a_flow() -> None:
    clock = Clock()
    flow = clock.flow([clock.core.add_link(1.0)], 1.0, int)
    clock.run(until=0.25)
    assert (clock.now, clock.core.remaining(flow), clock.core.next_time()) == (0.25, 0.75, 1.0)


def test_run_until_the_exact_time() -> None:
    # As a delay from 0.3, 0.9 would become 0.9000000000000001.
    clock = Clock(0.3)
    clock.run(until=0.9)
    assert clock.now == 0.9


def test_run_until_an_event_returns_its_value() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    log: Log = []

    def worker() -> Process:
        yield from computing(log, clock, "step", link, 1.0, 1.0)
        return "result"

    process = clock.process(worker())
    clock.flow([clock.core.add_link(1.0)], 9.0, noting(log, clock, "late"))
    assert clock.run(until=process) == "result"
    assert clock.run(until=process) == "result"
    assert log == [("step", 1.0), ("step", 2.0)]
    clock.run()
    assert log[-1] == ("late", 9.0)


def test_run_until_a_time_that_is_not_in_the_future_is_refused() -> None:
    clock = Clock(3.0)
    for until in (3.0, 1, nan):
        with pytest.raises(ValueError) as error:
            clock.run(until=until)
        assert str(error.value) == f"until ({until}) must be greater than the current simulation time"


def test_run_until_an_event_that_nothing_triggers() -> None:
    clock = Clock()
    clock.flow([clock.core.add_link(1.0)], 1.0, int)
    event = clock.event()
    with pytest.raises(RuntimeError) as error:
        clock.run(until=event)
    assert str(error.value) == f'No scheduled events left but "until" event was not triggered: {event}'
    assert clock.now == 1.0


def test_a_failed_event_that_nobody_handles_stops_the_run() -> None:
    clock = Clock()
    event = clock.event()
    clock.at(1.0, lambda: event.fail(KeyError("lost")))
    with pytest.raises(KeyError, match="lost"):
        clock.run()
    assert clock.now == 1.0


def test_a_process_that_raises_stops_the_run_and_one_that_catches_does_not() -> None:
    clock = Clock()
    log: Log = []

    def broken() -> Process:
        yield clock.timeout(1.0)
        raise KeyError("broken")

    def careful() -> Process:
        try:
            yield clock.process(broken())
        except KeyError:
            log.append(("caught", clock.now))

    clock.process(careful())
    clock.run()
    assert log == [("caught", 1.0)]
    clock.process(broken())
    with pytest.raises(KeyError, match="broken"):
        clock.run()


def test_the_other_call_backs_of_the_until_event_run_when_the_clock_goes_on() -> None:
    clock = Clock()
    log: Log = []
    event = clock.timeout(1.0)
    clock.at(0.5, lambda: event.callbacks.append(lambda _: log.append(("after", clock.now))))
    clock.run(until=event)
    assert log == []
    clock.run()
    assert log == [("after", 1.0)]


# --------------------------------------------------------------------------------------------- stalls


def test_a_flow_that_can_never_finish_is_named_with_its_route() -> None:
    clock = Clock()
    links = [clock.core.add_link(1.0) for _ in range(4)]
    clock.flow([links[0]], 2.0, int)
    clock.flow([links[1], links[3]], 1.0, int)
    clock.at(0.5, lambda: clock.core.fail(links[3]))
    with pytest.raises(StalledFlow) as error:
        clock.run()
    assert str(error.value) == "flow 1 over links 1, 3 can never finish: link 3 failed"
    assert (error.value.flow, error.value.route, clock.now) == (1, (1, 3), 2.0)


@pytest.mark.parametrize(("others", "more"), [(1, "; so does 1 more"), (2, "; so do 2 more")])
def test_more_stalled_flows_are_counted(others: int, more: str) -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    for _ in range(1 + others):
        clock.flow([link], 1.0, int)
    clock.core.fail(link)
    with pytest.raises(StalledFlow) as error:
        clock.run(until=clock.event())
    assert str(error.value) == f"flow 0 over link 0 can never finish: link 0 failed{more}"


def test_a_flow_that_stalls_after_its_latency_is_found() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0, 0.5)
    clock.core.fail(link)
    clock.flow([link], 1.0, int)
    with pytest.raises(StalledFlow, match="flow 0 over link 0 can never finish: link 0 failed"):
        clock.run()
    assert clock.now == 0.5


def test_a_run_until_a_time_is_not_stalled() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    log: Log = []
    clock.flow([link], 1.0, noting(log, clock, "repaired"))
    clock.core.fail(link)
    clock.run(until=3.0)
    clock.core.set_capacity(link, 1.0)
    clock.run()
    assert log == [("repaired", 4.0)]


def test_background_traffic_neither_stalls_a_run_nor_keeps_it_alive() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    clock.flow([link], inf, int)
    clock.flow([link], inf, int, at=100.0)
    clock.flow([link], 1.0, int)
    clock.run()
    assert clock.now == 2.0
    clock.core.fail(link)
    clock.run()
    with pytest.raises(simpy.core.EmptySchedule):
        clock.step()
    assert (clock.now, clock.peek()) == (2.0, inf)


# -------------------------------------------------------------------------------------- step and peek


def test_peek_and_step_see_flows_latencies_and_events() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0, 0.5)
    log: Log = []
    clock.flow([link], 1.0, noting(log, clock, "flow"))
    clock.at(1.0, noting(log, clock, "event"))
    seen = []
    while clock.peek() < inf:
        seen.append(clock.peek())
        clock.step()
        assert clock.now == clock.core.now == seen[-1]
    assert seen == [0.5, 1.0, 1.5]
    assert log == [("event", 1.0), ("flow", 1.5)]
    with pytest.raises(simpy.core.EmptySchedule):
        clock.step()


def test_peek_in_the_middle_of_an_instant_does_not_solve() -> None:
    clock = Clock()
    link = clock.core.add_link(1.0)
    clock.flow([link], 1.0, int)
    clock.at(0.0, int)
    assert (clock.peek(), clock.core.solves) == (0.0, 0)
    clock.step()
    assert (clock.peek(), clock.core.solves) == (1.0, 1)


@settings(max_examples=100 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_run_step_and_the_bare_core_agree(data: st.DataObject, network: SimpleNamespace) -> None:
    scenario = data.draw(network.scenarios())
    expected = [(outcome.kind, outcome.time) for outcome in network.run_core(scenario, core_of(scenario))]

    def build() -> tuple[Clock, dict[int, tuple[str, float]]]:
        clock = Clock(fairness=scenario.fairness)
        links = [clock.core.add_link(*link) for link in scenario.links]
        for one, other, loss in scenario.crossed:
            clock.core.cross(links[one], links[other], loss)
        ends: dict[int, tuple[str, float]] = {}

        def act(action: Any) -> None:
            if isinstance(action, network.Start):
                number = clock.core._next_number
                clock.flow(
                    [links[link] for link in action.route],
                    action.size,
                    lambda: ends.setdefault(number, ("completed", clock.now)),
                    weight=action.weight,
                    cap=action.cap,
                    demand=action.demand,
                    latency=action.latency,
                    path_latency=action.path_latency,
                )
            elif isinstance(action, network.Cancel):
                if action.flow not in ends:
                    clock.cancel(action.flow)
                    ends[action.flow] = ("cancelled", clock.now)
            elif action.capacity:
                clock.core.set_capacity(links[action.link], action.capacity)
            else:
                clock.core.fail(links[action.link])

        for time, action in scenario.actions:
            clock.at(time, lambda action=action: act(action))  # type: ignore[misc]
        return clock, ends

    run, by_run = build()
    stalled = [flow for flow, (kind, _) in enumerate(expected) if kind == "stalled"]
    if stalled:
        with pytest.raises(StalledFlow, match=f"flow {stalled[0]} "):
            run.run()
    else:
        run.run()
    step, by_step = build()
    while step.peek() < inf:
        step.step()
    assert by_run == by_step
    assert [by_run.get(flow, ("stalled", inf)) for flow in range(len(expected))] == expected


def core_of(scenario: Any) -> Any:
    return Clock(fairness=scenario.fairness).core


# ------------------------------------------------------------------------------- undisturbed flows


MOMENTS = st.integers(0, 6).map(float)
"""Whole numbers, so that much happens at one and the same time."""


@settings(max_examples=100 * CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sampled_from(["own", "link", "event"]), MOMENTS, MOMENTS), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), MOMENTS), max_size=2),
)
def test_an_undisturbed_flow_is_one_without_a_link(
    parts: list[tuple[str, float, float]], cancelled: list[tuple[int, float]]
) -> None:
    """Each part begins at a time and has a size; after its end comes another of the size 1."""

    def log_of(undisturbed: bool, step: bool) -> Log:
        clock = Clock()
        link = clock.core.add_link(1.0)
        log: Log = []
        flows: dict[int, int] = {}

        def begin(number: int, kind: str, size: float, again: bool = True) -> None:
            def ended() -> None:
                flows.pop(number, None)
                log.append((f"{number} {kind}", clock.now))
                if again:
                    begin(number, kind, 1.0, again=False)

            if kind == "event":
                clock.at(clock.now + size, ended)
            elif kind == "link":
                flows[number] = clock.flow([link], size, ended)
            elif undisturbed:
                flows[number] = clock.undisturbed(size, ended)
            else:
                flows[number] = clock.flow([], size, ended, cap=1.0)

        def cancel(number: int) -> None:
            if number in flows:
                log.append((f"{clock.cancel(flows.pop(number))} left of {number}", clock.now))

        for number, (kind, at, size) in enumerate(parts):
            clock.at(at, lambda number=number, kind=kind, size=size: begin(number, kind, size))  # type: ignore[misc]
        for number, at in cancelled:
            clock.at(at + 0.5, lambda number=number: cancel(number))  # type: ignore[misc]
        if step:
            while clock.peek() < inf:
                clock.step()
        else:
            clock.run()
        return log

    expected = log_of(undisturbed=False, step=False)
    assert log_of(undisturbed=True, step=False) == expected
    assert log_of(undisturbed=True, step=True) == expected


def test_the_end_of_an_undisturbed_flow_is_still_to_come() -> None:
    clock = Clock()
    flow = clock.undisturbed(2.0, int)
    assert (clock.scheduled, clock.peek()) == (1, 2.0)
    clock.at(0.5, int)
    clock.step()
    assert clock.cancel(flow) == 1.5
    assert (clock.scheduled, clock.peek()) == (0, inf)
    with pytest.raises(ValueError, match=f"flow {flow} has already ended"):
        clock.cancel(flow)


@pytest.mark.parametrize("size", [-1.0, inf, nan])
def test_an_undisturbed_flow_has_an_end(size: float) -> None:
    clock = Clock()
    with pytest.raises(ValueError) as error:
        clock.undisturbed(size, int)
    assert str(error.value) == f"an undisturbed flow has a finite size of at least 0, not {size}"
    assert clock.peek() == inf


# --------------------------------------------------------------------------------- SimPy as it was


def factory(env: simpy.Environment) -> Log:
    """A little of everything in SimPy: resources, stores, interrupts, conditions, failing events."""
    log: Log = []
    machine = simpy.Resource(env, capacity=2)
    store = simpy.Store(env, capacity=3)

    def worker(name: str, delay: float) -> Process:
        for part in range(3):
            with machine.request() as request:
                yield request
                yield env.timeout(delay)
                log.append((f"{name} made {part}", env.now))
                yield store.put((name, part))

    def shop() -> Process:
        for _ in range(9):
            item = yield store.get()
            log.append((f"sold {item}", env.now))
            yield env.timeout(0.5)

    def patient() -> Process:
        try:
            yield env.timeout(100.0)
        except simpy.Interrupt as interrupt:
            log.append((f"interrupted by {interrupt.cause}", env.now))
        result = yield env.timeout(1.0, "one") | env.timeout(2.0, "two")
        log.append((f"got {list(result.values())}", env.now))
        yield env.timeout(1.0) & env.timeout(1.0)
        log.append(("both", env.now))

    def nuisance(victim: Any) -> Process:
        yield env.timeout(1.0)
        victim.interrupt("nuisance")

    for name, delay in (("anna", 1.0), ("bert", 0.7), ("carl", 1.0)):
        env.process(worker(name, delay))
    env.process(shop())
    env.process(nuisance(env.process(patient())))
    env.run(until=2.0)
    log.append(("stop", env.now))
    env.run()
    log.append(("end", env.now))
    return log


def test_without_flows_it_is_simpy() -> None:
    assert factory(Clock()) == factory(simpy.Environment())
