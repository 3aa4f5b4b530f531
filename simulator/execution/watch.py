"""Watching a run: what its ranks tell, and when that means that it has failed or cannot go on.

Every rank tells, unasked, that it has failed, that all its tasks wait, and once a second what it does. One
process takes that in, the launcher or rank 0, and judges:

- a rank has **failed**: the first cause is what explains the others' failures;
- all ranks wait for calls that nobody will make: a **deadlock**, found within a second;
- a rank has not **come up**: it still loads its data, or it is stopped;
- a rank was not heard of for longer than the patience: it is **stopped** or its machine is out of reach;
- no rank has ended an operation for longer than the patience: the run is **stuck**.

Time in which the judge itself was stopped does not count.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from simulator import faults
from simulator.execution.communicator import CommunicationFailed
from simulator.execution.execute import PATIENCE as PATIENCE
from simulator.execution.record import Record
from simulator.execution.streams import Call, StreamKey
from simulator.execution.tasks import Wait
from simulator.faults import AlgorithmError, WorkerFailed

BEAT = 1.0
"""Seconds between two words of a rank, at most."""

_SETTLING = 0.5
"""Seconds in which other ranks' failures are awaited after a first one, for a message that is stable."""
_EXPLAINING = 2.0
"""The same after a lost connection, which some other rank's end explains."""
_COMING = 60.0
"""Seconds in which a rank may come up, where the patience is less: it imports and loads its data."""
_STEP = 2.0
"""Most seconds that count between two looks at the clock."""


# What ranks tell.


@dataclass(frozen=True)
class State:
    """News of a rank: what its worker does.

    Attributes
    ----------
    ended
        Operations that it has ended so far.
    waits
        What its tasks have waited for, for some time.
    calls
        Messages that it has called, by stream.
    computing
        The computation under way, if any.
    since
        When that began, in seconds from the common start.
    """

    ended: int = 0
    waits: tuple[Wait, ...] = ()
    calls: Mapping[StreamKey, int] = field(default_factory=dict)
    computing: str = ""
    since: float = 0.0


@dataclass(frozen=True)
class Coming:
    """News of a rank: it has no worker yet, because it still imports, loads its data or meets the others."""


@dataclass(frozen=True)
class Began:
    """News of a rank: the iterations that it has begun."""

    iterations: int


@dataclass(frozen=True)
class Started:
    """News of a rank: the common start of all ranks, on the monotonic clock of their machine."""

    start: float


@dataclass(frozen=True)
class Waits:
    """News of a rank: all its tasks wait, in lines of the algorithm, or it goes on (no waits)."""

    waits: tuple[Wait, ...]
    calls: Mapping[StreamKey, int]


@dataclass(frozen=True)
class Ended:
    """News of a rank: its work is done, and the messages that it has called."""

    calls: Mapping[StreamKey, int]


@dataclass(frozen=True)
class Failed:
    """News of a rank: it has failed, perhaps only because another one has."""

    error: Exception
    followed: bool
    trace: str


def failure(rank: int, error: BaseException) -> Failed:
    """Return the news of an error that has ended a rank."""
    trace = "".join(traceback.format_exception(error))
    followed = any(isinstance(known, (CommunicationFailed, ConnectionError)) for known in _causes(error))
    if isinstance(error, AlgorithmError):
        # Only the message travels: the launcher may not know a class of the user's own.
        return Failed(AlgorithmError(str(error)), followed, trace)
    if not isinstance(error, WorkerFailed):
        error = WorkerFailed(rank, None, faults.cause_of(error))
    return Failed(error, followed, trace)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on; a lost connection among them has a cause elsewhere."""
    while error is not None:
        yield error
        error = error.__cause__


class Heartbeat:
    """A thread that tells once in a while what a worker does, and that it is coming until there is one.

    Parameters
    ----------
    tell
        Takes the news; what it raises ends the thread.
    patience
        Of whoever listens, in seconds.
    """

    def __init__(self, tell: Callable[[State | Coming], None], patience: float) -> None:
        self._tell = tell
        self._state: Callable[[], State | Coming] = Coming
        self._period = min(BEAT, patience / 4)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def of(self, state: Callable[[], State]) -> None:
        """Tell from now on what this returns."""
        self._state = state

    def _beat(self) -> None:
        with suppress(OSError):
            while True:
                time.sleep(self._period)
                self._tell(self._state())


# Who judges.


class OwnTime:
    """Seconds that pass while this process runs: a stop of its own counts for a moment only."""

    def __init__(self) -> None:
        self._seen = time.monotonic()
        self._passed = 0.0

    def now(self) -> float:
        """Return the seconds so far."""
        moment = time.monotonic()
        self._passed += min(moment - self._seen, _STEP)
        self._seen = moment
        return self._passed


class Judge:
    """Takes in the news of all ranks and says when one has failed, or the run cannot go on.

    Parameters
    ----------
    ranks
        How many there are.
    patience
        Seconds without a word of a rank, or without progress of any, that end a run.
    clock
        Tells the seconds.
    """

    def __init__(self, ranks: int, patience: float, clock: Callable[[], float] | None = None) -> None:
        self._ranks = ranks
        self._patience = patience
        self._clock = clock or OwnTime().now
        self._start = self._clock()
        self._heard = dict.fromkeys(range(ranks), self._start)
        self._progress = self._start
        self._deadline: float | None = None
        self._states: dict[int, State] = {}
        self._waits: dict[int, Waits] = {}
        self._ended: dict[int, Mapping[StreamKey, int]] = {}
        self._failures: dict[int, Failed] = {}
        self.records: dict[int, Record] = {}

    def finished(self, rank: int) -> bool:
        """Return whether a rank has ended, well or not."""
        return rank in self._ended or rank in self._failures

    @property
    def done(self) -> bool:
        """Whether all ranks have ended well."""
        return len(self._ended) == self._ranks

    def hear(self, rank: int, news: object) -> None:
        """Take in what a rank tells."""
        self._heard[rank] = self._clock()
        match news:
            case Coming():
                return
            case State():
                before = self._states.get(rank)
                if before is None or before.ended != news.ended:
                    self._progress = self._heard[rank]
                self._states[rank] = news
                return
            case Waits(waits, _):
                self._waits.pop(rank, None)
                if waits:
                    self._waits[rank] = news
                return
            case Record():
                self.records[rank] = news
                self._end(rank, news.calls)
            case Ended(calls):
                self._end(rank, calls)
            case Failed():
                self._failures[rank] = news
        self._progress = self._heard[rank]

    def _end(self, rank: int, calls: Mapping[StreamKey, int]) -> None:
        self._ended[rank] = calls
        self._waits.pop(rank, None)

    def patience(self) -> float:
        """Return the seconds until there may be a verdict although nobody tells anything."""
        if self._deadline is None:
            return min(BEAT, self._patience / 4)
        return max(0.0, self._deadline - self._clock())

    def check(self) -> None:
        """Raise what ends the run, if anything does.

        Raises
        ------
        AlgorithmError, WorkerFailed
            The first cause of a failure, when there was time for a better one.
        RunStuck
            A rank does not come up, or is not heard of any more, or none gets on.
        """
        now = self._clock()
        if not self._failures:
            self._check_for_deadlock()
            self._check_for_silence(now)
            return
        explained = any(not failure.followed for failure in self._failures.values())
        latest = now + (_SETTLING if explained else _EXPLAINING)
        self._deadline = latest if self._deadline is None else min(self._deadline, latest)
        if now >= self._deadline or len(self._failures) + len(self._ended) == self._ranks:
            raise self._first_cause(now)

    def _first_cause(self, now: float) -> Exception:
        """Return the failure that explains the others: the one of the earliest iteration, then rank."""

        def order(failure: tuple[int, Failed]) -> tuple[bool, int, int]:
            rank, news = failure
            iteration = getattr(news.error, "iteration", None)
            return news.followed, -1 if iteration is None else iteration, rank

        first = min(self._failures.items(), key=order)[1]
        silent = [rank for rank in range(self._ranks) if not self.finished(rank)]
        silent = [rank for rank in silent if now - self._heard[rank] > 1.5 * BEAT]
        if first.followed and silent:
            return WorkerFailed(silent[0], None, "its process has ended without a word, or its machine has")
        if first.trace:
            first.error.add_note(first.trace)
        return first.error

    def _check_for_deadlock(self) -> None:
        """Raise if every rank has ended or stands still, waiting for calls that nobody will make.

        The news need not be of one moment. The first task to go on after its rank's news would need a call
        that a peer made after its own news, so that a task of the peer had gone on before it; or it would
        need another task of its own rank to go on.
        """
        if not self._waits or len(self._waits) + len(self._ended) < self._ranks:
            return
        calls: dict[int, Mapping[StreamKey, int]] = {rank: news.calls for rank, news in self._waits.items()}
        calls.update(self._ended)
        report = []
        for rank, news in sorted(self._waits.items()):
            for wait in news.waits:
                missing = _missing(wait.call, calls)
                if wait.call.stream and not missing:
                    self._check_alike(rank, wait.call)
                    return
                report.append(_waiting(rank, wait, missing))
        raise faults.deadlock(report)

    def _check_alike(self, rank: int, call: Call) -> None:
        """Raise if a peer waits in another kind of collective in the place of this one."""
        for peer in call.peers:
            for other, _ in self._waits[peer].waits if peer in self._waits else ():
                if (other.stream, other.number) == (call.stream, call.number) and call.signature:
                    assert other.signature is not None
                    if other.operation != call.operation:
                        group, number = str(call.stream), call.number
                        raise faults.mismatch(group, number, rank, call.signature, peer, other.signature)

    def _check_for_silence(self, now: float) -> None:
        running = [rank for rank in range(self._ranks) if not self.finished(rank)]
        up = [rank for rank in running if rank in self._states]
        coming = [rank for rank in running if rank not in self._states]
        silent = [rank for rank in up if now - self._heard[rank] > self._patience]
        if silent:
            raise faults.silent(silent, self._patience, self._doings(set(silent)))
        most = max(self._patience, _COMING)
        if coming and now - self._start > most:
            raise faults.late(coming, most, self._doings(set()))
        if up and not coming and now - self._progress > self._patience:
            raise faults.stuck(self._patience, self._doings(set()))

    def _doings(self, silent: set[int]) -> list[str]:
        """Return what each rank that has not ended was doing when last heard of, except for some."""
        calls = {rank: state.calls for rank, state in self._states.items()} | self._ended
        said = []
        for rank, state in sorted(self._states.items()):
            if rank in silent or self.finished(rank):
                continue
            if state.computing:
                said.append(f"worker {rank} computes a {state.computing} since {state.since:.3g} s")
            for wait in state.waits:
                missing = _missing(wait.call, calls) or wait.call.peers
                said.append(str(_waiting(rank, wait, missing)))
        return said


def _missing(call: Call, calls: Mapping[int, Mapping[StreamKey, int]]) -> tuple[int, ...]:
    """Return the peers that have not called what belongs to a call."""
    none: Mapping[StreamKey, int] = {}
    return tuple(p for p in call.peers if calls.get(p, none).get(call.matching, 0) <= call.number)


def _waiting(rank: int, wait: Wait, peers: Sequence[int]) -> faults.Waiting:
    operation = f"{wait.call.operation} {wait.call.about}".strip()
    return faults.Waiting(rank, operation, round(wait.call.since, 3), tuple(peers), wait.line)
