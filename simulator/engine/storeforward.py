"""Store-and-forward links: an alternative to fluid sharing.

A link sends one chunk of a message at a time, in the order in which they arrive at it, at its full capacity.
A chunk is at the next link of its route a latency after its last byte was sent, and only then waits for
its turn there; a message ends when its last chunk is at the end of the route. This is the congestion-aware
analytical network of ASTRA-sim (Won et al., "ASTRA-sim2.0", ISPASS 2023), which cuts the time that a chunk
takes on a link to whole nanoseconds.

What is simulated is exact; the load of a link is its capacity while it sends, and 0 while it does not.

As no chunk is overtaken on a link, its end there is known when it arrives, and a link is no more than the
time at which it is free again. Chunks that arrive at one time are served in the order in which they were
handed in, first at the link where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, inf
from typing import Annotated

from simulator.engine.clock import Clock

__all__ = ["StoreAndForward"]


class StoreAndForward:
    """Links that serve one chunk after another.

    Parameters
    ----------
    clock
        What the messages run on.
    whole_nanoseconds
        Whether the time of a chunk on a link is cut to whole nanoseconds, as ASTRA-sim does.
    """

    def __init__(self, clock: Clock, *, whole_nanoseconds: bool = False) -> None:
        self._clock = clock
        self._cut = whole_nanoseconds
        self._links: list[_Link] = []

    def add_link(self, capacity: Annotated[float, "B/s"], latency: Annotated[float, "s"] = 0.0) -> int:
        """Add a link and return its number.

        Raises
        ------
        ValueError
            The capacity is not positive and finite, or the latency not finite and at least 0.
        """
        if not 0.0 < capacity < inf:
            raise ValueError(f"the capacity of a link must be a positive, finite number, not {capacity}")
        if not 0.0 <= latency < inf:
            raise ValueError(f"the latency of a link must be a finite number of at least 0, not {latency}")
        self._links.append(_Link(float(capacity), float(latency), self._clock.now))
        return len(self._links) - 1

    def carried(self, link: int) -> float:
        """Return the bytes that a link has sent so far, up to now."""
        found = self._links[self._known_link(link)]
        return found.taken - found.capacity * max(0.0, found.free_from - self._clock.now)

    def history(self, link: int) -> tuple[list[float], list[float]]:
        """Return the step function of a link's load: times up to now, and the load from each time on."""
        found = self._links[self._known_link(link)]
        times = [time for time in found.turns if time <= self._clock.now]
        loads = [found.capacity * (number % 2) for number in range(len(times))]
        at_once = len(times) > 1 and times[0] == times[1]
        return (times[1:], loads[1:]) if at_once else (times, loads)

    def _known_link(self, link: int) -> int:
        if not isinstance(link, int) or not 0 <= link < len(self._links):
            raise ValueError(f"there is no link {link}: links are numbered 0 to {len(self._links) - 1}")
        return link

    def send(
        self,
        route: Sequence[int],
        size: Annotated[float, "B"],
        done: Callable[[], object],
        *,
        chunk: Annotated[float, "B"] = inf,
    ) -> None:
        """Send a message; `done` is called when its last byte is at the end of the route.

        Parameters
        ----------
        route
            Links, one after another.
        size
            Bytes; a message of size 0 takes the latencies.
        chunk
            The largest part that is forwarded by itself.

        Raises
        ------
        ValueError
            There is no such link, or the size or the chunk is not what it should be.
        """
        path = [self._links[self._known_link(link)] for link in route]
        if not 0.0 <= size < inf:
            raise ValueError(f"the size of a message must be a finite number of at least 0, not {size}")
        if not chunk > 0.0:
            raise ValueError(f"the size of a chunk must be a positive number, not {chunk}")
        if not path:
            self._clock.at(self._clock.now, done)
            return
        count = max(1, ceil(size / chunk))
        left = count

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for number in range(count):
            part = chunk if number < count - 1 else size - chunk * (count - 1) if count > 1 else size
            self._forward(path, 0, part, arrived)

    def _forward(self, path: list[_Link], hop: int, size: float, arrived: Callable[[], object]) -> None:
        """Take on a chunk at a hop of its path; it is there now."""
        clock = self._clock
        if hop == len(path):
            arrived()
            return
        link = path[hop]
        seconds = size / link.capacity
        if self._cut:
            seconds = floor(seconds * 1e9) * 1e-9
        link.serve(clock.now, seconds, size)
        clock.at(link.free_from + link.latency, lambda: self._forward(path, hop + 1, size, arrived))


class _Link:
    """A link, when it is free again, what it has taken on, and when it began and ceased to be busy."""

    __slots__ = ("capacity", "free_from", "latency", "taken", "turns")

    def __init__(self, capacity: float, latency: float, now: float) -> None:
        self.capacity = capacity
        self.latency = latency
        self.free_from = now
        self.taken = 0.0
        self.turns = [now]  # it is idle from the first, busy from the second, and so on

    def serve(self, now: float, seconds: float, size: float) -> None:
        """Take on a chunk, behind those that are there."""
        begin = max(self.free_from, now)
        self.free_from = begin + seconds
        self.taken += size
        if seconds > 0.0:
            if len(self.turns) > 1 and self.turns[-1] == begin:
                self.turns.pop()
            else:
                self.turns.append(begin)
            self.turns.append(self.free_from)
