"""The virtual clock: SimPy's event loop fused with the network core.

A :class:`Clock` is a ``simpy.Environment`` that also carries fluid flows (:mod:`simulator.engine.fairshare`).
Flows put nothing on SimPy's heap. Instead, before time passes to the next SimPy event, the loop asks the core
whether a flow completes until then. A flow that nothing can slow down, such as a computation on a device of
its own, is not even known to the core: its end is certain from its start.

What happens at one and the same time (equal floats) happens in this order:

1. flows complete, by flow number, and their call-backs run, or the processes that wait for them go on;
2. SimPy events are processed as SimPy orders them, with those that they schedule for this same time;
   a flow that is known to end now, such as one of size 0, completes before the next of them;
3. the rates are solved once, for all starts, ends and capacity changes of this time, as it is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, cast

from simpy.core import BoundClass, EmptySchedule, Environment, StopSimulation
from simpy.events import NORMAL, PENDING, URGENT, Event, EventPriority, Process, ProcessGenerator, Timeout

from simulator.engine.fairshare import RANKS, Core, CoreName, Fairness, Route

__all__ = ["Clock", "FlowOptions", "StalledFlow"]


Done = Callable[[], object] | Event
"""What happens at the end of a flow: a call, or the processing of an event."""


class FlowOptions(TypedDict, total=False):
    """The options of a flow, as :meth:`simulator.engine.fairshare.Core.start` describes them."""

    weight: float
    cap: Annotated[float, "B/s"]
    demand: Sequence[float] | None
    latency: Annotated[float, "s"] | None
    path_latency: Annotated[float, "s"] | None
    at: Annotated[float, "s"] | None


class CollectiveOptions(TypedDict, total=False):
    """The options of a collective, as :meth:`simulator.engine.fairshare.Core.collective` describes them."""

    payload_share: float
    latency_factor: float
    handling_rate: Annotated[float, "B/s"]
    rendezvous: bool
    in_flight: int


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


class _Nobody(deque[object]):
    """What SimPy takes for the call-backs of a pause: it keeps nothing."""

    def __init__(self) -> None:
        super().__init__(maxlen=0)

    def remove(self, value: object, /) -> None:
        """Refuse what only an interruption asks for."""
        raise RuntimeError("a process in a pause cannot be interrupted")


class _Pause:
    """The type of :data:`PAUSE`."""

    __slots__ = ("callbacks",)

    def __init__(self) -> None:
        self.callbacks = _Nobody()


PAUSE = cast(Event, _Pause())
"""What a process yields to wait for what it asked :meth:`Clock.sleep` or :meth:`Clock.transfer` for."""


class _Process(Process):
    """A process of SimPy's that can also wait without an event: in a pause.

    In a pause it stands itself where an event would: on SimPy's heap, or as what waits for a flow.
    """

    def __init__(self, clock: Clock, generator: ProcessGenerator) -> None:
        super().__init__(clock, generator)
        self.asked = False  # for a pause, which has not ended

    def go_on(self) -> None:
        """Resume after a pause, as ``simpy.Process`` does after an event."""
        if self._target is not PAUSE:
            if not self.is_alive and not self._ok:
                raise _failure(self)
            raise RuntimeError(f"{self} asked for a pause and did not wait for it")
        self.asked = False
        clock = self.env
        clock._active_proc = self
        try:
            following: Any = self._generator.send(None)
        except StopIteration as end:
            self._finish(True, end.value)
        except BaseException as error:
            self._finish(False, error)
        else:
            if following is PAUSE and self.asked:
                clock._active_proc = None
            elif not isinstance(following, Event):
                raise RuntimeError(f'Invalid yield value "{following}"')
            elif following.processed:
                self._resume(following)
            else:
                following.callbacks.append(self._resume)
                self._target = following
                clock._active_proc = None

    def _finish(self, ok: bool, value: object) -> None:
        self._ok = ok
        self._value = value
        self._target = None  # type: ignore[assignment]  # as SimPy has it
        self.env._active_proc = None
        self.env.schedule(self)


class _Timeout(Timeout):
    """A timeout of SimPy's, made with fewer calls."""

    def __init__(self, clock: Clock, delay: float, value: object = None) -> None:
        if not delay >= 0:
            raise ValueError(f"Negative delay {delay}")
        self.env = clock
        self.callbacks = []
        self._value = value
        self._delay = delay
        self._ok = True
        heappush(clock._queue, (clock._now + delay, NORMAL, next(clock._eid), self))


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
    next_look, looked_at
        Number of the event, and time, for a user that looks now and then whether time passes.
    """

    if not TYPE_CHECKING:  # what SimPy declares there holds for these too
        now = property(attrgetter("_now"))  # without a call of Python's
        process = BoundClass(_Process)
        timeout = BoundClass(_Timeout)

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
        self.next_look: float = inf
        self.looked_at = -inf
        self._done: dict[int, Done] = {}
        self._sure: list[tuple[float, int, float, float]] = []  # undisturbed flows: end, number, start, size
        self._completed: deque[int] = deque()
        self._parts: dict[int, _Parts] = {}

    def flow(
        self,
        route: Sequence[int] | Route,
        size: Annotated[float, "B"],
        done: Done,
        **options: Unpack[FlowOptions],
    ) -> int:
        """Start a flow, and return its number.

        At the instant of its completion `done` is called, if it is a function. If it is an event, it is
        processed then, without a detour over SimPy's heap, so that a process that waits for it goes on.

        Raises
        ------
        ValueError
            As :meth:`simulator.engine.fairshare.Core.start`.
        """
        number = self.core.start(route, size, **options) if options else self.core.start(route, size)
        self._done[number] = done
        return number

    def undisturbed(self, size: Annotated[float, "s"], done: Callable[[], object]) -> int:
        """Start a flow of rate 1 that nothing can slow down, and return its number.

        It is a :meth:`flow` without a link and with the cap 1, at a fraction of its price.

        Raises
        ------
        ValueError
            If the size is negative or not finite.
        """
        if not 0.0 <= size < inf:
            raise ValueError(f"an undisturbed flow has a finite size of at least 0, not {size}")
        number = self.core.next_number()
        heappush(self._sure, (self._now + size, number, self._now, size))
        self._done[number] = done
        return number

    def sleep(self, seconds: Annotated[float, "s"]) -> Event:
        """Let the active process pause for some time: ``yield clock.sleep(seconds)``.

        It is :meth:`timeout` for a process that only waits, at half the price.
        """
        if not seconds >= 0.0:
            raise ValueError(f"a process cannot sleep for {seconds} seconds")
        process = self._active_proc
        if type(process) is not _Process or process.asked:
            raise _not_asking()
        heappush(self._queue, (self._now + seconds, NORMAL, next(self._eid), process))
        process.asked = True
        return PAUSE

    def transfer(
        self, route: Sequence[int] | Route, size: Annotated[float, "B"], **options: Unpack[FlowOptions]
    ) -> Event:
        """Start a flow and let the active process pause until its end: ``yield clock.transfer(…)``.

        It is :meth:`flow` with an event for a process that only waits, at half the price.
        """
        process = self._active_proc
        if type(process) is not _Process or process.asked:
            raise _not_asking()
        number = self.core.start(route, size, **options) if options else self.core.start(route, size)
        self._done[number] = process
        process.asked = True
        return PAUSE

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
        for entry in self._sure:
            _, number, start, size = entry
            if number == flow:
                self._sure.remove(entry)
                heapify(self._sure)
                return max(0.0, size - (self._now - start))
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
        """The number of SimPy events, and of ends of undisturbed flows, that are still to come."""
        return len(self._queue) + len(self._sure)

    def peek(self) -> float:
        """Return the time of the next step: a SimPy event, or the end of a flow or of its latency.

        ``inf`` if nothing is left. Where this instant has no further SimPy event, rates are settled.
        """
        if self._completed:
            return self._now
        time = self._next_sure
        if time == self._now or (time == inf and not self._flows_left):
            return time
        return min(time, self.core.next_time())

    @property
    def _next_sure(self) -> float:
        """When what is certain happens next: a SimPy event, or the end of an undisturbed flow."""
        time: float = self._queue[0][0] if self._queue else inf
        return min(time, self._sure[0][0]) if self._sure else time

    @property
    def _flows_left(self) -> bool:
        """Whether flows go on if nothing else happens, perhaps because collectives leave their short way."""
        return self.core.live > 0 or self.core.leave_short_ways()

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
        time = self._next_sure
        due = inf
        if time < inf or self._flows_left:
            due = self.core.next_time() if time > self._now else self.core.next_due()
        surely = bool(self._sure) and self._sure[0][0] <= min(due, time)
        if surely or (due <= time and due < inf):
            ended: Sequence[int] = self.core.advance(due) if due <= time else ()
            self._completed.extend(self._ended_surely(time, ended) if surely else ended)
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
        core, queue, done, sure = self.core, self._queue, self._done, self._sure
        self._call_back()
        while True:
            time = queue[0][0] if queue else inf
            surely = bool(sure) and sure[0][0] <= time
            if surely:
                time = sure[0][0]
            elif not (queue or core.live or core.leave_short_ways()):
                return
            ended: Sequence[int] = ()
            # The core is asked only if it may have something to say.
            if core.first <= time or (core.dirty and time > core.now):
                ended = core.advance_to(time)
            if surely and (not ended or core.now == time):
                ended = self._ended_surely(time, ended)
            if not ended:
                if not queue:
                    self._now = core.now
                    if core.live:
                        raise self._stalled()
                    return  # a collective did what it could without ranks that never enter
                core.now = self._now = time
                event = heappop(queue)[3]
                if type(event) is _Process and event.asked:
                    event.go_on()
                    continue
            elif len(ended) == 1 and ended[0] in done:
                self._now = core.now
                end = done.pop(ended[0])
                if type(end) is _Process:
                    end.go_on()
                    continue
                if not isinstance(end, Event):
                    end()
                    continue
                event = end
                _succeed(event)
            else:
                self._now = core.now
                self._completed.extend(ended)
                self._call_back()
                continue
            # As in `_process`, without its call.
            callbacks = event.callbacks
            event.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event
            try:
                for callback in callbacks:
                    callback(event)
            except StopSimulation:
                self._stop_at(event, callbacks[callbacks.index(callback) + 1 :])
                raise
            if not event._ok and not hasattr(event, "_defused"):
                raise _failure(event)

    def _ended_surely(self, time: float, others: Sequence[int]) -> list[int]:
        """Let undisturbed flows end that are due, among the others that end at this time."""
        sure = self._sure
        self.core.now = time
        ended = [heappop(sure)[1]]
        while sure and sure[0][0] == time:
            ended.append(heappop(sure)[1])
        if others:
            ended = sorted([*ended, *(number for number in others if number >= 0)])
            ended += [number for number in others if number < 0]
        return ended

    def _end_flow(self, done: Done) -> None:
        if isinstance(done, _Process):
            done.go_on()
        elif isinstance(done, Event):
            _succeed(done)
            self._process(done)
        else:
            done()

    def _process_event(self) -> None:
        """Process the next event of SimPy's heap, or end the pause of a process."""
        time, _, _, event = heappop(self._queue)
        self.core.now = self._now = time
        if isinstance(event, _Process) and event.asked:
            event.go_on()
        else:
            self._process(event)

    def _process(self, event: Event) -> None:
        """Process an event now, as ``simpy.Environment.step`` does."""
        callbacks = event.callbacks
        event.callbacks = None  # type: ignore[assignment]  # SimPy's own mark of a processed event
        try:
            for callback in callbacks:
                callback(event)
        except StopSimulation:
            self._stop_at(event, callbacks[callbacks.index(callback) + 1 :])
            raise
        if not event._ok and not hasattr(event, "_defused"):
            raise _failure(event)

    def _stop_at(self, event: Event, left: list[Callable[[Event], None]]) -> None:
        """Let the other call-backs of an event run when the simulation is resumed."""
        event.callbacks = left
        self.schedule(event, EventPriority(-1))

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
                self._end_flow(function)

    def _stalled(self) -> StalledFlow:
        core = self.core
        stalled = core.stalled()
        route = core.route(stalled[0])
        failed = [link for link in route if core.capacity(link) == 0.0]
        return StalledFlow(stalled[0], route, failed, len(stalled) - 1)


def _run_call(event: Event) -> None:
    assert isinstance(event, _Call)
    event.function()


def _not_asking() -> RuntimeError:
    return RuntimeError("only a process can ask for a pause, and only for one at a time")


def _succeed(event: Event) -> None:
    """Let an event be one that has succeeded."""
    if event._value is not PENDING:
        raise RuntimeError(f"{event} has already been triggered")
    event._ok = True
    event._value = None


def _failure(event: Event) -> BaseException:
    """Return the exception of an event that failed, as SimPy raises it."""
    failure: BaseException = type(event._value)(*event._value.args)
    failure.__cause__ = event._value
    return failure


def _links(links: Sequence[int]) -> str:
    return ("link " if len(links) == 1 else "links ") + ", ".join(map(str, links))
