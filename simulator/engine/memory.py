"""Shared memory on the virtual clock: element-wise reads and additions without a lock.

A read of N elements that starts at s and takes N t sees element c as it stood at s + c t; an addition
that starts at s changes its k-th element at s + k t. Both take time like any pass over memory, so a read may
mix the states before and after an addition: that is the inconsistent read of lock-free algorithms. Adding
to one element is atomic here. A log of the additions that some read may still have to see apart lets a
read be one event, however many elements it has.

Source of the model: Niu, Recht, Re and Wright, "Hogwild!", NeurIPS 2011, with component-wise atomic
addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from algorithms.phantom import Phantom

if TYPE_CHECKING:
    import torch

    from algorithms.worker import Tensor
    from simulator.engine.worker import Operation, VirtualWorker


class Addition:
    """One addition, from its start on.

    Attributes
    ----------
    at
        Numbers of the elements, ascending.
    values
        What is added to each.
    times
        When each is added, in seconds.
    end
        When the last one is.
    """

    __slots__ = ("at", "end", "times", "values")

    def __init__(self, at: torch.Tensor, values: torch.Tensor, start: float, end: float) -> None:
        self.at = at
        self.values = values
        self.times = _moments(len(at), start, end)
        self.end = end


class Memory:
    """A vector that all workers of a machine share.

    Parameters
    ----------
    x
        Its elements at the start.
    """

    def __init__(self, x: Tensor) -> None:
        self.writes = 0
        self._settled = x.clone()
        self._log: list[Addition] = []
        self._reads: dict[Reading, None] = {}

    @property
    def outline(self) -> Tensor:
        """A tensor of the same length and type."""
        return self._settled

    def add(self, addition: Addition) -> None:
        """Take in an addition that starts now."""
        self._log.append(addition)

    def value(self, start: float, end: float) -> torch.Tensor:
        """Return what a read over this time has seen."""
        assert not isinstance(self._settled, Phantom)
        seen = self._settled.clone()
        moments = _moments(len(seen), start, end)
        for addition in self._log:
            visible = addition.times <= moments[addition.at]
            seen.index_add_(0, addition.at[visible], addition.values[visible])
        return seen

    def settle(self, now: float) -> None:
        """Forget the times of additions that every read to come, or under way, sees whole."""
        horizon = min((read.start for read in self._reads), default=now)
        done = 0
        for addition in self._log:
            if addition.end > horizon:
                break
            assert not isinstance(self._settled, Phantom)
            self._settled.index_add_(0, addition.at, addition.values)
            done += 1
        del self._log[:done]

    def begin(self, reading: Reading) -> None:
        """Note that a read has begun."""
        self._reads[reading] = None

    def end(self, reading: Reading) -> None:
        """Note that a read has ended."""
        del self._reads[reading]


def _moments(count: int, start: float, end: float) -> torch.Tensor:
    """Return when each of so many elements is touched, in seconds, one after another."""
    import torch

    return start + torch.arange(count, dtype=torch.float64) * ((end - start) / max(count, 1))


class Reading:
    """A read on a worker's stream."""

    def __init__(self, memory: Memory, worker: VirtualWorker) -> None:
        self._memory = memory
        self._worker = worker
        self.start = 0.0

    def begin(self, seconds: float) -> None:
        """Start reading."""
        self.start = self._worker.clock.now
        self._memory.begin(self)

    def get(self) -> Tensor:
        """End reading and return what was seen."""
        memory, now = self._memory, self._worker.clock.now
        memory.end(self)
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

    def begin(self, seconds: float) -> None:
        """Start adding."""
        if isinstance(self._values, Phantom) or isinstance(self._at, Phantom):
            return
        import torch

        start = self._worker.clock.now
        at = torch.arange(len(self._values)) if self._at is None else self._at
        self._memory.add(Addition(at, self._values, start, start + seconds))

    def get(self) -> None:
        """End adding."""
        self._memory.writes += 1
        self._memory.settle(self._worker.clock.now)


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
