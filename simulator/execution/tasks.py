"""The tasks of one rank: threads that take turns, what they wait for, and the locks between them.

Each task drives its coroutine with one ``send(None)`` in a thread of its own, holding the rank's baton while
its lines run. The algorithm's ``run`` is the first task, so that the thread which started the run hears at
once of any task that fails, whatever the others wait for.

A rank **stands still** when each of its tasks waits for another task or rank. Only then can it belong to a
run that cannot go on, and only then is somebody told.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from simulator import faults
from simulator.execution.streams import Baton, Call, WallHandle

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
        self._waits: dict[int, tuple[WallHandle[Any], str]] = {}
        self._still = False
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
                value = self._driven(coroutine)
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
        failure = self._endings.get()
        if failure is not None:
            raise failure
        self._heard += 1
        with self._mutex:
            return self._heard < self._started

    def _driven(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of blocking awaitables to its end and return its value."""
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        coroutine.close()
        raise faults.foreign_await(self._rank)

    def waiting(self, handle: WallHandle[Any], line: str | None) -> None:
        """Take in that the calling task has waited long for a handle, or goes on (line is None)."""
        if not handle.call.depends:
            return
        with self._mutex:
            if line is None:
                del self._waits[threading.get_ident()]
            else:
                self._waits[threading.get_ident()] = (handle, line)
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
        return [Wait(handle.call, line) for handle, line in self._waits.values() if not handle.done]

    def _tell(self) -> None:
        """Tell if the rank stands still now, or does no longer."""
        waits = self._unfinished()
        still = 0 < self._alive == len(waits)
        if still or self._still:
            self._told(waits if still else [])
        self._still = still


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
