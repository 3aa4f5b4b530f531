"""How a worker's operations overlap on the wall clock: streams, handles and the baton.

A **stream** is a thread that does the work given to it one after another, in the order of the calls: one
for the computations of a rank, one for each of its groups, one for its exchanges, one for each end of its
channels. A call gives the work to a stream and returns a **handle**; awaiting the handle blocks until the
work is done. Nothing needs an event loop, because an awaitable that blocks never yields: one
``send(None)`` drives a coroutine to its end.

Two threads that wake each other up for every operation cost more than many an operation takes, and what one
has in its processor's cache the other has not. So a task that awaits at once what it has just called does the
work itself, in the stream's place: see :class:`Latest`.

The **baton** of a rank is held while the algorithm's own lines run and is given away only inside an await.
So code between two awaits is atomic, as it is on the virtual clock, however many tasks a worker runs.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from simulator.faults import Signature

T = TypeVar("T")


class Stream:
    """Does pieces of work in the order in which they were given, in a thread of its own.

    Parameters
    ----------
    name
        Of the thread.
    prepare
        Called once in the thread, before the first piece.
    bound
        Whether no other thread may do a piece in its place.
    """

    def __init__(self, name: str, prepare: Callable[[], None] = lambda: None, bound: bool = False) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._prepare = prepare
        self._bound = bound
        self._mutex = threading.Lock()  # guards the number of pieces that are not done
        self._left = 0
        self._turn = threading.Lock()  # held by whoever does a piece
        # A daemon, so that a process whose peer is lost can end although the thread still waits for it.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._prepare()
        while (work := self._work.get()) is not None:
            with self._turn:
                work()
            with self._mutex:
                self._left -= 1

    def start(self, work: Callable[[], None]) -> None:
        """Put ``work`` behind all that was given before; it must not raise."""
        with self._mutex:
            self._left += 1
        self._work.put(work)

    def claim(self) -> bool:
        """Take the turn for a piece that the caller does itself by :meth:`do`; False where it must not."""
        with self._mutex:
            return not self._bound and not self._left and self._turn.acquire(blocking=False)

    def do(self, work: Callable[[], None]) -> None:
        """Do a piece in the calling thread, which has claimed the turn."""
        try:
            work()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Let the thread end when it has done what was given to it."""
        self._work.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()


class Latest(threading.local):
    """The operation that a task has called last, each task its own, until somebody begins it.

    That is the task itself, if it awaits it next and nothing is left in the stream before it; or the stream's
    thread, as soon as the task calls another operation, awaits something else or ends.
    """

    _called: tuple[WallHandle[Any], Stream, Callable[[], None]] | None = None

    def call(self, handle: WallHandle[Any], stream: Stream, work: Callable[[], None]) -> None:
        """Take in an operation whose work delivers this handle and no other."""
        self.begin()
        self._called = handle, stream, work

    def begin(self) -> None:
        """Give it to its stream's thread."""
        if self._called is not None:
            _, stream, work = self._called
            self._called = None
            stream.start(work)

    def claim(self, handle: WallHandle[Any]) -> Callable[[], None] | None:
        """Return what does the work, if the calling task is to do it before it has the value of a handle."""
        if self._called is None:
            return None
        latest, stream, work = self._called
        if latest is not handle or not stream.claim():
            self.begin()
            return None
        self._called = None
        return lambda: stream.do(work)


class Baton:
    """The right to run an algorithm's lines; one task of a rank holds it at a time.

    Attributes
    ----------
    latest
        What the calling task has called last.
    open
        The operations that nobody has awaited, in the order of the calls; the keys alone count.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.latest = Latest()
        self.open: dict[WallHandle[Any], None] = {}

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def give_away(self) -> None:
        """Let other tasks run, until :meth:`take`."""
        self._lock.release()

    def take(self) -> None:
        """Wait until no other task holds it, and hold it."""
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
        Called with this handle when a task begins to wait for it, in a frame, and with None when it goes on.
    """

    def __init__(
        self, call: Call, baton: Baton, waiting: Callable[[WallHandle[Any], FrameType | None], None]
    ) -> None:
        self.call = call
        self.done = False
        self._baton = baton
        self._waiting = waiting
        self._ended = threading.Lock()  # free when it is done
        self._ended.acquire()
        self._value: T
        self._error: BaseException | None = None

    def finish(self, value: T) -> None:
        """Deliver the value."""
        self._value = value
        self._end()

    def fail(self, error: BaseException) -> None:
        """Deliver an error, unless a value was delivered already."""
        if not self.done:
            self._error = error
            self._end()

    def _end(self) -> None:
        self.done = True
        self._ended.release()

    def ended(self) -> None:
        """Block until a value or an error was delivered, holding the baton; it is not awaited by that."""
        self._baton.latest.begin()
        with self._ended:
            pass

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the operation's end and return its value."""
        yield from ()  # never suspends: this only makes it a generator, as awaitables must be
        self._baton.open.pop(self, None)
        work = self._baton.latest.claim(self)
        if not self.done:
            self._wait(work or self._sleep, sys._getframe(1))
        if self._error is not None:
            raise self._error
        return self._value

    def _wait(self, end: Callable[[], None], caller: FrameType) -> None:
        self._baton.give_away()
        self._waiting(self, caller)
        try:
            end()
        finally:
            self._waiting(self, None)
            self._baton.take()

    def _sleep(self) -> None:
        with self._ended:
            pass


def line(frame: FrameType) -> str:
    """Return the file and line of the algorithm that called, perhaps through a module of this folder."""
    while Path(frame.f_code.co_filename).parent == Path(__file__).parent and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what ``work`` returns, and the monotonic times at which it began and ended, in seconds."""
    begin = time.monotonic()
    value = work()
    return value, begin, time.monotonic()
