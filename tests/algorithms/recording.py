"""What an asynchronous run really did, in order, so that a recursion can do the same once more.

A :class:`Recorder` stands between an algorithm and its worker. It changes nothing and keeps a log of all
workers' operations. On the virtual clock one thread runs all, so the log's order is the order of time, also
among what happens at the same moment. What an algorithm makes of the log (which entry is a pull, which a
push) is for its own test to say.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from algorithms import Algorithm, algorithm


@dataclass(frozen=True)
class Entry:
    """One operation of a worker.

    Attributes
    ----------
    rank
        Whose.
    what
        ``gradient``, ``update``, ``combine``, ``send`` (when it is called), ``recv``, ``updated``,
        ``combined`` (when its value has been delivered).
    peer, channel
        Of a message.
    about
        Where a tensor came from that is updated with, or combined: the source and channel of the message.
    elements
        Of a message, or of the result.
    """

    rank: int
    what: str
    peer: int = -1
    channel: str = ""
    about: tuple[int, str] | None = None
    elements: int = 0


class Noted:
    """A handle that tells of its end."""

    def __init__(self, handle: Any, note: Callable[[Any], None]) -> None:
        self._handle = handle
        self._note: Callable[[Any], None] | None = note

    def __await__(self) -> Generator[Any, Any, Any]:
        value = yield from self._handle.__await__()
        if self._note is not None:
            self._note(value)
            self._note = None
        return value


class Recorder:
    """A worker whose operations are noted in a log that all workers share."""

    def __init__(self, worker: Any, log: list[Entry]) -> None:
        self._worker = worker
        self._log = log
        self._origins: dict[int, tuple[Any, tuple[int, str]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def _note(self, what: str, **details: Any) -> None:
        self._log.append(Entry(self._worker.rank, what, **details))

    def _origin(self, *tensors: Any) -> tuple[int, str] | None:
        """Return where the first tensor that came in a message came from."""
        known = [self._origins[id(x)][1] for x in tensors if id(x) in self._origins]
        return known[0] if known else None

    def gradient(self, x: Any) -> Any:
        self._note("gradient")
        return self._worker.gradient(x)

    def update(self, x: Any, gradient: Any, iteration: int | None = None) -> Noted:
        about = self._origin(gradient)
        self._note("update", about=about)
        return Noted(
            self._worker.update(x, gradient, iteration),
            lambda v: self._note("updated", about=about, elements=len(v)),
        )

    def combine(self, *terms: tuple[float, Any]) -> Noted:
        about = self._origin(*(x for _, x in terms))
        self._note("combine", about=about)
        return Noted(
            self._worker.combine(*terms), lambda v: self._note("combined", about=about, elements=len(v))
        )

    def send(self, x: Any, to: int, channel: str = "message") -> Any:
        self._note("send", peer=to, channel=channel, elements=len(x))
        return self._worker.send(x, to, channel)

    def recv(self, source: int, channel: str = "message") -> Noted:
        def arrived(x: Any) -> None:
            self._origins[id(x)] = x, (source, channel)
            self._note("recv", peer=source, channel=channel, elements=len(x))

        return Noted(self._worker.recv(source, channel), arrived)


def recording(name: str, settings: Mapping[str, Any], log: list[Entry]) -> Algorithm:
    """Return an algorithm of the registry that notes what its workers do; settings are Python's names."""
    original = algorithm(name)

    class Recording(original):  # type: ignore[misc,valid-type]
        async def run(self, worker: Any) -> None:
            await super().run(Recorder(worker, log))  # type: ignore[arg-type]

    made: Algorithm = Recording(**settings)
    return made


Event = tuple[Any, ...]


def merged(own: Mapping[int, list[Event]]) -> list[Event]:
    """Bring each worker's own events into one order, in which both sides of ("average", i, j) are one.

    Raises
    ------
    ValueError
        There is no such order: the two sides of a pair saw different averagings.
    """
    left = {rank: list(events) for rank, events in own.items()}
    order: list[Event] = []
    moved = True
    while moved:
        moved = False
        for rank, events in left.items():
            while events and events[0][0] != "average":
                order.append(events.pop(0))
                moved = True
            if not events:
                continue
            peer = events[0][2]
            if left[peer] and left[peer][0] == ("average", peer, rank):
                order.append(events.pop(0))
                left[peer].pop(0)
                moved = True
    if any(left.values()):
        raise ValueError(f"the averagings of the workers do not fit together: {left}")
    return order
