"""Shared memory on the virtual clock: element-wise reads and additions without a lock.

A read of N elements that starts at s and takes N t sees element c as it stood at s + c t; an addition
that starts at s changes its k-th element at s + k t. Both take time like any pass over memory, so a read may
mix the states before and after an addition: that is the inconsistent read of lock-free algorithms. Adding
to one element is atomic here. A log of the additions that some read may still have to see apart lets a
read be one event, however many elements it has.

Where a burst, interference or a shared GPU slows an addition down, its elements change as far as it has got:
evenly between the moments at which that is looked at, which are the ends of reads and of additions.

Source of the model: Niu, Recht, Re and Wright, "Hogwild!", NeurIPS 2011, with component-wise atomic
addition.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from algorithms.phantom import Phantom

if TYPE_CHECKING:
    import torch

    from algorithms.worker import Tensor
    from simulator.engine.worker import Operation, Stream, VirtualWorker

_ROUNDING = 1e-9
"""The share of an addition by which it is late or early for no other reason than rounding."""


class Addition:
    """One addition, from its start on, with the end that it has if nothing slows it down.

    Attributes
    ----------
    at
        Numbers of the elements, ascending.
    values
        What is added to each.
    times
        When each is added, in seconds; inf where that is not known yet.
    end
        When the last one is.
    """

    __slots__ = ("_disturbed", "_foreseen", "_since", "_start", "_touched", "at", "end", "times", "values")

    def __init__(self, at: torch.Tensor, values: torch.Tensor, start: float, end: float) -> None:
        self.at = at
        self.values = values
        self.times = _moments(len(at), start, end)
        self.end = end
        self._foreseen = end - start
        self._start = self._since = start
        self._touched = 0.0  # elements by the last look, a part of the next one included
        self._disturbed = False

    def reach(self, share: float, now: float) -> None:
        """Note that this share of it, from 0 to 1, is done by now, in seconds.

        As long as it goes on as foreseen nothing changes, to the bit.
        """
        late = now - self._start - share * self._foreseen
        self._disturbed = self._disturbed or abs(late) > _ROUNDING * self._foreseen
        touched = share * len(self.at)
        if self._disturbed:
            first, last = math.ceil(self._touched), math.ceil(touched)
            if last > first:
                each = (now - self._since) / (touched - self._touched)
                self.times[first:last] = self._since + (_numbers(first, last) - self._touched) * each
            self.times[last:] = math.inf
            self.end = now if share == 1.0 else math.inf
        self._touched, self._since = touched, now


class Memory:
    """A vector that all workers of a machine share.

    Parameters
    ----------
    x
        Its elements at the start.

    Attributes
    ----------
    readings, writings
        Those under way, in the order of their starts.
    """

    def __init__(self, x: Tensor) -> None:
        self.writes = 0
        self._settled = x.clone()
        self._log: list[Addition] = []
        self.readings: dict[Reading, None] = {}
        self.writings: dict[Writing, None] = {}

    @property
    def outline(self) -> Tensor:
        """A tensor of the same length and type."""
        return self._settled

    def add(self, addition: Addition) -> None:
        """Take in an addition that starts now."""
        self._log.append(addition)

    def value(self, start: float, end: float) -> torch.Tensor:
        """Return what a read over this time, which ends now, has seen."""
        assert not isinstance(self._settled, Phantom)
        self._look()
        seen = self._settled.clone()
        moments = _moments(len(seen), start, end)
        for addition in self._log:
            visible = addition.times <= moments[addition.at]
            seen.index_add_(0, addition.at[visible], addition.values[visible])
        return seen

    def settle(self, now: float) -> None:
        """Forget the times of additions that every read to come, or under way, sees whole."""
        self._look()
        horizon = min((read.start for read in self.readings), default=now)
        done = 0
        for addition in self._log:
            if addition.end > horizon:
                break
            assert not isinstance(self._settled, Phantom)
            self._settled.index_add_(0, addition.at, addition.values)
            done += 1
        del self._log[:done]

    def _look(self) -> None:
        """See how far the additions under way have got."""
        for writing in self.writings:
            writing.look()


def _moments(count: int, start: float, end: float) -> torch.Tensor:
    """Return when each of so many elements is touched, in seconds, one after another."""
    return start + _numbers(0, count) * ((end - start) / max(count, 1))


def _numbers(first: int, last: int) -> torch.Tensor:
    import torch

    return torch.arange(first, last, dtype=torch.float64)


class Reading:
    """A read on a worker's stream."""

    def __init__(self, memory: Memory, worker: VirtualWorker) -> None:
        self._memory = memory
        self._worker = worker
        self.start = 0.0

    def begin(self, stream: Stream, seconds: float) -> None:
        """Start reading."""
        self.start = self._worker.clock.now
        self._memory.readings[self] = None

    def get(self) -> Tensor:
        """End reading and return what was seen."""
        memory, now = self._memory, self._worker.clock.now
        del memory.readings[self]
        if isinstance(memory.outline, Phantom):
            return memory.outline
        value = memory.value(self.start, now)
        memory.settle(now)
        return value


class Writing:
    """An addition on a worker's stream."""

    def __init__(self, memory: Memory, worker: VirtualWorker, values: Tensor, at: Tensor | None) -> None:
        self._memory = memory
        self._worker = worker
        self._values = values
        self._at = at
        self._addition: Addition | None = None

    def begin(self, stream: Stream, seconds: float) -> None:
        """Start adding, as a computation on a stream that takes so long if nothing slows it down."""
        if isinstance(self._values, Phantom) or isinstance(self._at, Phantom):
            return
        import torch

        start = self._worker.clock.now
        at = torch.arange(len(self._values)) if self._at is None else self._at
        self._stream, self._seconds = stream, seconds
        self._addition = Addition(at, self._values, start, start + seconds)
        self._memory.add(self._addition)
        self._memory.writings[self] = None

    def look(self) -> None:
        """Note how far it has got."""
        assert self._addition is not None
        left = self._worker.left(self._stream)
        if left is not None:
            self._addition.reach(1.0 - left / self._seconds, self._worker.clock.now)

    def get(self) -> None:
        """End adding."""
        memory, now = self._memory, self._worker.clock.now
        if self._addition is not None:
            del memory.writings[self]
            self._addition.reach(1.0, now)
        memory.writes += 1
        memory.settle(now)


class VirtualShared:
    """A worker's access to shared memory; see :class:`algorithms.worker.SharedTensor`."""

    def __init__(self, worker: VirtualWorker, memory: Memory) -> None:
        self._worker = worker
        self._memory = memory

    @property
    def writes(self) -> int:
        """Additions finished so far, by all workers."""
        return self._memory.writes

    def read(self) -> Operation:
        """Start reading all elements, one after another."""
        return self._worker.access("read", self._memory.outline, 2, Reading(self._memory, self._worker))

    def add(self, values: Tensor, at: Tensor | None = None) -> Operation:
        """Start adding to some elements, or to all."""
        copies: tuple[Any, Any] = (values.clone(), None if at is None else at.clone())
        return self._worker.access("add", values, 3, Writing(self._memory, self._worker, *copies))
