"""The virtual clock: SimPy's event loop fused with the network core.

A :class:`Clock` is a ``simpy.Environment`` that also carries fluid flows (:mod:`simulator.engine.fairshare`).
Flows put nothing on SimPy's heap. Instead, before time passes to the next SimPy event, the loop asks the core
whether a flow completes until then.

What happens at one and the same time (equal floats) happens in this order:

1. flows complete, by flow number, and their call-backs run;
2. SimPy events are processed as SimPy orders them, with those that they schedule for this same time;
   a flow that is known to end now, such as one of size 0, completes before the next of them;
3. the rates are solved once, for all starts, ends and capacity changes of this time, as it is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Annotated, Any, TypedDict, Unpack

from simpy.core import BoundClass, EmptySchedule, Environment, StopSimulation
from simpy.events import NORMAL, URGENT, Event, EventPriority

from simulator.engine.fairshare import RANKS, Core, CoreName, Fairness

__all__ = ["Clock", "FlowOptions", "StalledFlow"]


class FlowOptions(TypedDict, total=False):
    """The options of a flow, as :meth:`simulator.engine.fairshare.Core.start` describes them."""

    weight: float
    cap: Annotated[float, "B/s"]
    demand: Sequence[float] | None
    latency: Annotated[float, "s"] | None
    at: Annotated[float, "s"] | None


class CollectiveOptions(TypedDict, total=False):
    """The options of a collective, as :meth:`simulator.engine.fairshare.Core.collective` describes them."""

    payload_share: float
    segment_size: Annotated[float, "B"]
    least_segments: int
    latency_factor: float


class _Parts:
    """Who is told of the ends of a collective's parts, and how many are to come."""

    __slots__ = ("done", "left")

    def __init__(self, done: Callable[[int], object], left: int) -> None:
        self.done = done
        self.left = left


class StalledFlow(RuntimeError):
    """A run was to go on, but a flow can never finish and nothing is left that could change that.

    Attributes
    ----------
    flow : int
        The stalled flow with the smallest number.
    route : tuple of int
        Its links.
    """

    def __init__(self, flow: int, route: tuple[int, ...], failed: list[int], others: int) -> None:
        self.flow = flow
        self.route = route
        reason = f"{_links(failed)} failed" if failed else "its rate is too small"
        more = f"; so do {others} more" if others > 1 else "; so does 1 more" if others else ""
        super().__init__(f"flow {flow} over {_links(route)} can never finish: {reason}{more}")


class NothingLeft(RuntimeError):
    """A run was to go on until an event, but nothing is left that could happen."""


class _Call(Event):
    """An event that calls a function without arguments."""

    def __init__(self, clock: Clock, function: Callable[[], object]) -> None:
        self.env = clock
        self.callbacks = [_run_call]
        self._ok = True
        self._value = None
        self.function = function


class Clock(Environment):
    """A SimPy environment with flows.

    Parameters
    ----------
    initial_time
        Seconds at which the clock starts.
    fairness, monitor, core, max_plus
        As for :class:`simulator.engine.fairshare.Core`.

    Attributes
    ----------
    core : Core
        Links, and all about flows but their start and end: capacities, rates, watching.
    """

    def __init__(
        self,
        initial_time: Annotated[float, "s"] = 0.0,
        *,
        fairness: Fairness = "maxmin",
        monitor: bool = False,
        core: CoreName = "auto",
        max_plus: bool = False,
    ) -> None:
        super().__init__(float(initial_time))
        # SimPy binds timeout(), process() … early only where the class itself defines them.
        for name, value in vars(Environment).items():
            if type(value) is BoundClass:
                setattr(self, name, getattr(self, name))
        self.core = Core(fairness, monitor=monitor, now=float(initial_time), core=core, max_plus=max_plus)
        self._done: dict[int, Callable[[], object]] = {}
        self._completed: deque[int] = deque()
        self._parts: dict[int, _Parts] = {}

    def flow(
        self,
        route: Sequence[int],
        size: Annotated[float, "B"],
        done: Callable[[], object],
        **options: Unpack[FlowOptions],
    ) -> int:
        """Start a flow; `done` is called at the instant of its completion. Return the flow's number.

        For a process that waits, ``done`` is the ``succeed`` of an event.

        Raises
        ------
        ValueError
            As :meth:`simulator.engine.fairshare.Core.start`.
        """
        number = self.core.start(route, size, **options)
        self._done[number] = done
        return number

    def cancel(self, flow: int) -> float:
        """End a flow without calling its `done`, and return its remaining size.

        A flow that completes at this instant, and whose call-back has not run yet, can still be cancelled;
        its remaining size is 0.

        Raises
        ------
        ValueError
            If there is no such flow, or it has ended.
        """
        if self.core.running(flow) or flow not in self._done:
            remaining = self.core.cancel(flow)
            self._done.pop(flow, None)
            return remaining
        del self._done[flow]
        return 0.0

    def collective(
        self,
        pattern: int,
        nbytes: Annotated[float, "B"],
        done: Callable[[int], object],
        **options: Unpack[CollectiveOptions],
    ) -> int:
        """Open a collective; `done` is called with each rank whose part ends. Return its number.

        `pattern` is one of :meth:`simulator.engine.fairshare.Core.add_pattern`.
        """
        number = self.core.collective(pattern, nbytes, **options)
        self._parts[number] = _Parts(done, self.core.ranks(pattern))
        return number

    def enter(self, collective: int, rank: int) -> None:
        """Let a rank begin its part of a collective."""
        if self.core.enter(collective, rank):
            self._end_part(collective, rank)

    def cancel_collective(self, collective: int) -> None:
        """End a collective without calling its `done` any more.

        Raises
        ------
        ValueError
            If there is no such collective, or it has ended.
        """
        self.core.cancel_collective(collective)
        del self._parts[collective]
        # Parts that have ended at this instant, and whose call-back has not run yet.
        for number in [n for n in self._completed if n < 0 and (-1 - n) // RANKS == collective]:
            self._completed.remove(number)

    def _end_part(self, collective: int, rank: int) -> None:
        parts = self._parts[collective]
        parts.left -= 1
        if not parts.left:
            del self._parts[collective]
            self.core.close(collective)
        parts.done(rank)

    def at(self, time: Annotated[float, "s"], function: Callable[[], object]) -> None:
        """Call `function` at exactly `time`, among the SimPy events of that time.

        Raises
        ------
        ValueError
            If `time` is in the past or not a finite number.
        """
        if not self._now <= time < inf:
            raise ValueError(f"cannot call a function at {time}: the time is already {self._now}")
        heappush(self._queue, (float(time), NORMAL, next(self._eid), _Call(self, function)))

    @property
    def scheduled(self) -> int:
        """The number of SimPy events that are still to come."""
        return len(self._queue)

    def peek(self) -> float:
        """Return the time of the next step: a SimPy event, or the end of a flow or of its latency.

        ``inf`` if nothing is left. Where this instant has no further SimPy event, rates are settled.
        """
        if self._completed:
            return self._now
        time: float = self._queue[0][0] if self._queue else inf
        if time == self._now or (time == inf and not self.core.live):
            return time
        return min(time, self.core.next_time())

    def step(self) -> None:
        """Process the flows that complete next, or the next SimPy event, whichever is first.

        The end of a flow's latency is a step of its own, after which the flow competes for its links.

        Raises
        ------
        simpy.core.EmptySchedule
            If nothing is left that could happen.
        """
        if self._completed:
            self._call_back()
            return
        time = self._queue[0][0] if self._queue else inf
        if self._queue or self.core.live:
            due = self.core.next_time() if time > self._now else self.core.next_due()
            if due <= time and due < inf:
                self._completed.extend(self.core.advance(due))
                self._now = self.core.now
                self._call_back()
                return
        if not self._queue:
            raise EmptySchedule
        self._process_event()

    def run(self, until: float | Event | None = None) -> Any:
        """Run until a time, until an event is processed, or until nothing is left.

        Flows of infinite size do not keep a run alive. At a time `until`, flows that complete at exactly that
        time do so, as they come first, and SimPy events of that time do not, as in SimPy.

        Returns
        -------
        object
            The value of the event `until`; otherwise nothing.

        Raises
        ------
        ValueError
            If the time `until` is not in the future.
        StalledFlow
            If the run was to go on and can not, because a flow of finite size has the rate 0.
        NothingLeft
            If nothing is left and the event `until` was not triggered; it is a RuntimeError, as in SimPy.
        """
        if isinstance(until, Event):
            if until.processed:
                return until.value
            until.callbacks.append(StopSimulation.callback)
        elif until is not None:
            if not until > self._now:
                raise ValueError(f"until ({until}) must be greater than the current simulation time")
            # As SimPy does it, but at exactly the given time.
            stop = Event(self)
            stop._ok = True
            stop._value = None
            stop.callbacks.append(StopSimulation.callback)
            heappush(self._queue, (float(until), URGENT, next(self._eid), stop))
        try:
            self._loop()
        except StopSimulation as stopped:
            return stopped.args[0]
        if until is not None:
            raise NothingLeft(f'No scheduled events left but "until" event was not triggered: {until}')
        return None

    def _loop(self) -> None:
        """Run until nothing is left: :meth:`step` after step, without its calls."""
        core, queue, completed, done = self.core, self._queue, self._completed, self._done
        process_event = self._process_event
        self._call_back()
        while True:
            if queue:
                time = queue[0][0]
                # The core is asked only if it may have something to say.
                if core.first > time and (time <= core.now or not core.dirty):
                    process_event()
                    continue
                ended = core.advance_to(time)
                if not ended:
                    process_event()
                    continue
                self._now = core.now
            else:
                if not core.live:
                    return
                ended = core.advance_to(inf)
                self._now = core.now
                if not ended:
                    if core.live:
                        raise self._stalled()
                    return  # a collective did what it could without ranks that never enter
            if len(ended) == 1 and ended[0] in done:
                done.pop(ended[0])()
            else:
                completed.extend(ended)
                self._call_back()

    def _process_event(self) -> None:
        """Process the next event of SimPy's heap, as ``simpy.Environment.step`` does."""
        time, _, _, event = heappop(self._queue)
        self.core.now = self._now = time
        callbacks = event.callbacks
        event.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event
        try:
            for callback in callbacks:
                callback(event)
        except StopSimulation:
            # The other call-backs of the event run when the simulation is resumed.
            event.callbacks = callbacks[callbacks.index(callback) + 1 :]
            self.schedule(event, EventPriority(-1))
            raise
        if not event._ok and not hasattr(event, "_defused"):
            failure = type(event._value)(*event._value.args)
            failure.__cause__ = event._value
            raise failure

    def _call_back(self) -> None:
        """Run the call-backs of completed flows; those after one that raises wait for the next step."""
        completed, done = self._completed, self._done
        while completed:
            number = completed.popleft()
            if number < 0:
                self._end_part(*divmod(-1 - number, RANKS))
                continue
            function = done.pop(number, None)
            if function is not None:
                function()

    def _stalled(self) -> StalledFlow:
        core = self.core
        stalled = core.stalled()
        route = core.route(stalled[0])
        failed = [link for link in route if core.capacity(link) == 0.0]
        return StalledFlow(stalled[0], route, failed, len(stalled) - 1)


def _run_call(event: Event) -> None:
    assert isinstance(event, _Call)
    event.function()


def _links(links: Sequence[int]) -> str:
    return ("link " if len(links) == 1 else "links ") + ", ".join(map(str, links))
