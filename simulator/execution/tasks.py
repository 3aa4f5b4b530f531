"""The tasks of one rank: threads that take turns, what they wait for, and the locks between them.

Each task drives its coroutine with one ``send(None)`` in a thread of its own, holding the rank's baton while
its lines run. The algorithm's ``run`` is the first task, so that the thread which started the run hears at
once of any task that fails, whatever the others wait for.

A rank **stands still** when each of its tasks has waited for another task or rank, for :data:`LONG`. Only
then can it belong to a run that cannot go on, and only then is somebody told. The thread that started the
run looks for that while it waits for the tasks' ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from types import FrameType
from typing import Any, NamedTuple

from simulator import faults
from simulator.execution.streams import Baton, Call, WallHandle, line

LONG = 0.5
"""Seconds after which a wait is told, so that a run that cannot go on is found."""

Told = Callable[[Sequence["Wait"]], None]
"""Takes in what all tasks of a rank wait for when it stands still, and nothing when it goes on."""


class Wait(NamedTuple):
    """What one task waits for.

    Attributes
    ----------
    call
        The operation.
    line
        The file and line of the algorithm that waits.
    """

    call: Call
    line: str


class Tasks:
    """The tasks of a rank.

    Parameters
    ----------
    rank
        Whose.
    baton
        Of the rank.
    prepare
        Called once in each task's thread.
    told
        Hears when the rank stands still, and when it goes on.
    """

    def __init__(self, rank: int, baton: Baton, prepare: Callable[[], None], told: Told) -> None:
        self._rank = rank
        self._baton = baton
        self._prepare = prepare
        self._told = told
        # Guards what follows: a task that waits does not hold the baton.
        self._mutex = threading.Lock()
        self._started = 0
        self._alive = 0
        # By thread: for what, in which frame of the algorithm, since when.
        self._waits: dict[int, tuple[WallHandle[Any], FrameType, float]] = {}
        self._said: list[Wait] = []
        self._endings: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._heard = 0

    def start(self, coroutine: Coroutine[Any, Any, Any], handle: WallHandle[Any]) -> None:
        """Let a task run as soon as it gets the baton; ``handle`` gets what it returns or raises."""
        with self._mutex:
            self._started += 1
            self._alive += 1
        # A daemon, so that a process can end although a task still waits.
        threading.Thread(target=self._drive, args=(coroutine, handle), name="task", daemon=True).start()

    def _drive(self, coroutine: Coroutine[Any, Any, Any], handle: WallHandle[Any]) -> None:
        self._prepare()
        failure = None
        try:
            with self._baton:
                try:
                    value = self._driven(coroutine)
                finally:
                    self._baton.latest.begin()
        except BaseException as error:
            failure = error
            # Before anybody who awaits this task can fail of it.
            self._endings.put(error)
            handle.fail(error)
        else:
            handle.finish(value)
        with self._mutex:
            self._alive -= 1
            self._tell()
        if failure is None:
            self._endings.put(None)

    def wait_for_one(self) -> bool:
        """Wait until a task has ended, and return whether another has not.

        Raises
        ------
        BaseException
            What the task raised.
        """
        failure = self._ending()
        if failure is not None:
            raise failure
        self._heard += 1
        with self._mutex:
            return self._heard < self._started

    def _ending(self) -> BaseException | None:
        """Wait for the next end of a task, and look from time to time whether the rank stands still."""
        while True:
            try:
                return self._endings.get(timeout=LONG / 4)
            except queue.Empty:
                with self._mutex:
                    self._tell()

    def _driven(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of blocking awaitables to its end and return its value."""
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        coroutine.close()
        raise faults.foreign_await(self._rank)

    def waiting(self, handle: WallHandle[Any], frame: FrameType | None) -> None:
        """Take in that the calling task begins to wait for a handle in a frame, or goes on (None)."""
        if not handle.call.depends:
            return
        with self._mutex:
            if frame is not None:
                self._waits[threading.get_ident()] = handle, frame, time.monotonic()
                return
            del self._waits[threading.get_ident()]
            if self._said:
                self._tell()

    def waits(self) -> tuple[Wait, ...]:
        """Return what tasks have waited for long, whether or not others of them go on."""
        with self._mutex:
            return tuple(self._unfinished())

    def end(self, error: BaseException) -> None:
        """Let whoever waits for the tasks hear of an error from outside."""
        self._endings.put(error)

    def _unfinished(self) -> list[Wait]:
        # A task whose handle is done goes on, even if it has not said so yet.
        begun = time.monotonic() - LONG
        waits = [wait for wait in self._waits.values() if wait[2] < begun and not wait[0].done]
        return [Wait(handle.call, line(frame)) for handle, frame, _ in waits]

    def _tell(self) -> None:
        """Tell if the rank stands still now, or does no longer."""
        waits = self._unfinished()
        still = waits if len(waits) == self._alive else []
        if still != self._said:
            self._said = still
            self._told(still)


class Lock:
    """A lock between the tasks of a rank; who asks first gets it first.

    Whoever changes it holds the baton.

    Parameters
    ----------
    turn
        Makes the handle of one who has to wait.
    """

    def __init__(self, turn: Callable[[], WallHandle[None]]) -> None:
        self._turn = turn
        self._held = False
        self._queue: deque[WallHandle[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn = self._turn()
        self._queue.append(turn)
        await turn

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            # The lock passes on without being free in between, so that nobody comes before the next.
            self._queue.popleft().finish(None)
        else:
            self._held = False
