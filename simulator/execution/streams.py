"""How a worker's operations overlap on the wall clock: streams, handles and the baton.

A **stream** is a thread that does the work given to it one after another, in the order of the calls: one
for the computations of a rank, one for each of its groups, one for its exchanges, one for each end of its
channels. A call gives the work to a stream and returns a **handle**; awaiting the handle blocks until the
work is done. Nothing needs an event loop, because an awaitable that blocks never yields: one
``send(None)`` drives a coroutine to its end.

The **baton** of a rank is held while the algorithm's own lines run and is given away only inside an await.
So code between two awaits is atomic, as it is on the virtual clock, however many tasks a worker runs.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from simulator.faults import Signature

T = TypeVar("T")

LONG = 0.5
"""Seconds after which a wait is told, so that a run that cannot go on is found."""


class Stream:
    """A thread that does pieces of work in the order in which they were given.

    Parameters
    ----------
    name
        Of the thread.
    prepare
        Called once in the thread, before the first piece.
    """

    def __init__(self, name: str, prepare: Callable[[], None] = lambda: None) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._prepare = prepare
        # A daemon, so that a process whose peer is lost can end although the thread still waits for it.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._prepare()
        while (work := self._work.get()) is not None:
            work()

    def start(self, work: Callable[[], None]) -> None:
        """Put ``work`` behind all that was given before; it must not raise."""
        self._work.put(work)

    def close(self) -> None:
        """Let the thread end when it has done what was given to it."""
        self._work.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()


class Baton:
    """The right to run an algorithm's lines; one task of a rank holds it at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def given_away(self) -> Iterator[None]:
        """Let other tasks run meanwhile."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class End(NamedTuple):
    """One end of a channel.

    Attributes
    ----------
    side
        Whether it sends or receives.
    source, destination, name
        The channel.
    """

    side: Literal["send", "recv"]
    source: int
    destination: int
    name: str

    @property
    def other(self) -> End:
        """The end of the peer."""
        return self._replace(side="recv" if self.side == "send" else "send")


StreamKey = str | End
"""What messages of a rank are in order: a group by its name, the exchanges, or an end of a channel."""


class Call(NamedTuple):
    """An operation that was called.

    Attributes
    ----------
    operation
        Its name.
    iteration
        Gradients that the worker had begun.
    stream, number
        Of a message: its stream, and how many of it the rank had called before.
    peers
        Of a message: the ranks that it needs.
    since
        When it was called, in seconds.
    about
        What it works on, for messages to a reader: ``group 'world'``.
    depends
        Whether its end depends on other tasks or ranks, unlike that of a computation.
    signature
        Of a collective: what must be the same on all ranks.
    """

    operation: str
    iteration: int
    stream: StreamKey = ""
    number: int = 0
    peers: tuple[int, ...] = ()
    since: float = 0.0
    about: str = ""
    depends: bool = False
    signature: Signature | None = None

    @property
    def matching(self) -> StreamKey:
        """The stream of its peers whose call of the same number belongs to it."""
        return self.stream.other if isinstance(self.stream, End) else self.stream


class WallHandle(Generic[T]):
    """An operation under way on a stream; awaiting it blocks.

    Parameters
    ----------
    call
        What it is.
    baton
        Given away while the caller waits.
    waiting
        Called when the caller has waited for :data:`LONG`, with this handle and the file and line that
        waits, and when it goes on, with None for the line.
    """

    def __init__(
        self, call: Call, baton: Baton, waiting: Callable[[WallHandle[Any], str | None], None]
    ) -> None:
        self.call = call
        self.awaited = False
        self._baton = baton
        self._waiting = waiting
        self._outcome: Future[T] = Future()

    @property
    def done(self) -> bool:
        """Whether the operation has ended."""
        return self._outcome.done()

    def finish(self, value: T) -> None:
        """Deliver the value."""
        self._outcome.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Deliver an error, unless a value was delivered already."""
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def ended(self) -> None:
        """Block until a value or an error was delivered, holding the baton; it is not awaited by that."""
        self._outcome.exception()

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the operation's end and return its value."""
        yield from ()  # never suspends: this only makes it a generator, as awaitables must be
        self.awaited = True
        if not self._outcome.done():
            with self._baton.given_away():
                self._wait(sys._getframe(1))
        return self._outcome.result()

    def _wait(self, caller: FrameType) -> None:
        try:
            # This returns the operation's own error instead of raising it.
            self._outcome.exception(LONG)
        except TimeoutError:
            self._waiting(self, _line(caller))
            self._outcome.exception()
            self._waiting(self, None)


def _line(frame: FrameType) -> str:
    """Return the file and line of the algorithm that called, perhaps through a module of this folder."""
    while Path(frame.f_code.co_filename).parent == Path(__file__).parent and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what ``work`` returns, and the monotonic times at which it began and ended, in seconds."""
    begin = time.monotonic()
    value = work()
    return value, begin, time.monotonic()
