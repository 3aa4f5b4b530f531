"""The messages of one rank on ``torch.distributed`` with Gloo: blocking calls on tensors of the CPU.

Process groups are made up front, in the order of the algorithm's plan, on every rank alike. That of all ranks
is the default one, unless a script has made it for itself: threads of another one beside it wait longer for a
processor. What goes from one rank to another has two groups, one for the messages to higher ranks and one
for those to lower ranks: one pair of ranks in one Gloo group has a single connection, whose two directions
take turns on large messages. Channels share these two groups and have a tag each; exchanges have the tag 0.

A message of a channel is framed, since its receiver knows neither length nor type: a header of two integers
goes first. What is not reduced travels as bytes, because Gloo knows few types of elements.
"""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from algorithms import WORLD, Plan, Reduction

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=7)
"""How long an operation waits for ranks that have not called; a run that is stuck is ended much earlier."""

OPERATORS = {"sum": dist.ReduceOp.SUM, "mean": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
"""What the backend is told for each reduction."""


ELEMENT_TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.complex128,
)
"""The types of elements that a header can name, by the place in this list."""


_default: list[Any] = []
"""The default process group, if it was made by :func:`make_world`."""


def make_world(kinds: str, store: Any, rank: int, world_size: int) -> None:
    """Make the default process group of this process, which then serves as that of all ranks."""
    dist.init_process_group(kinds, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    _default[:] = [dist.group.WORLD]


def own_world() -> Any:
    """Return the default process group, if :func:`make_world` made it and not a script for itself."""
    return dist.group.WORLD if dist.group.WORLD in _default else None


class CommunicationFailed(RuntimeError):
    """The backend gave up an operation, as a rule because another rank has ended."""


@contextmanager
def failing(operation: str) -> Iterator[None]:
    """Say of the backend's errors in which operation they came up."""
    try:
        yield
    except RuntimeError as error:
        raise CommunicationFailed(f"{operation}: {error}") from error


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """Return a view of a vector as bytes."""
    return x.view(torch.uint8)


class Communicator(Protocol):
    """The blocking communication that a worker's streams call.

    Attributes
    ----------
    one_order
        Whether the collectives of all groups must come from one thread, in one order on all ranks.
    """

    one_order: bool

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        ...

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Send ``x`` to the destinations and return the tensors of the sources, by ascending rank."""
        ...

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        ...

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        ...

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        ...

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        ...


class Collectives:
    """Collectives over process groups.

    Parameters
    ----------
    groups
        By name.
    """

    def __init__(self, groups: Mapping[str, Any]) -> None:
        self.groups = groups

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        if x.numel():
            with failing("all_reduce"):
                dist.all_reduce(x, OPERATORS[op], self.groups[group])

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        gathered = tuple(torch.empty_like(x) for _ in range(members))
        if x.numel():
            with failing("all_gather"):
                dist.all_gather([as_bytes(part) for part in gathered], as_bytes(x), self.groups[group])
        return gathered

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        received = torch.empty_like(parts)
        if parts.numel():
            with failing("all_to_all"):
                dist.all_to_all_single(as_bytes(received), as_bytes(parts), group=self.groups[group])
        return received


class GlooCommunicator(Collectives):
    """The process groups of one rank; the default process group exists already.

    Parameters
    ----------
    rank, world_size
        This rank's number and the number of ranks.
    plan
        What the algorithm declares.
    everyone
        The group of all ranks; made anew if not given.
    """

    one_order = False

    def __init__(self, rank: int, world_size: int, plan: Plan, everyone: Any = None) -> None:
        self._rank = rank
        self._made: list[Any] = []
        ranks = tuple(range(world_size))
        self._everyone = everyone or self._make(ranks)
        groups = {WORLD: self._everyone}
        for name, members in plan.groups.items():
            # The world of the workers is that of all ranks, unless there are dedicated servers.
            if name != WORLD or members != ranks:
                groups[name] = self._make(members)
        super().__init__(groups)
        self._upward = self._downward = None
        if plan.channels:
            self._upward, self._downward = self._make(ranks), self._make(ranks)

    def _make(self, members: Sequence[int]) -> Any:
        group = dist.new_group(list(members), backend="gloo", timeout=PATIENCE, sort_ranks=False)
        self._made.append(group)
        return group

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Send ``x`` to the destinations and return the tensors of the sources, by ascending rank."""
        arrivals = {source: torch.empty_like(x) for source in sorted(sources)}
        if not x.numel():
            return arrivals
        arcs = [(self._rank, destination, x) for destination in destinations]
        arcs += [(source, self._rank, buffer) for source, buffer in arrivals.items()]
        with failing("exchange"):
            under_way = [
                *self._batch([arc for arc in arcs if arc[0] < arc[1]], self._upward),
                *self._batch([arc for arc in arcs if arc[0] > arc[1]], self._downward),
            ]
            for transfer in under_way:
                transfer.wait()
        return arrivals

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        group = self._direction(self._rank, to)
        header = torch.tensor([x.numel(), ELEMENT_TYPES.index(x.dtype)])
        with failing("send"):
            dist.send(header, to, group, tag=channel + 1)
            if x.numel():
                dist.send(as_bytes(x), to, group, tag=channel + 1)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        group = self._direction(source, self._rank)
        header = torch.empty(2, dtype=torch.int64)
        with failing("recv"):
            dist.recv(header, source, group, tag=channel + 1)
            elements, code = header.tolist()
            x = torch.empty(elements, dtype=ELEMENT_TYPES[code])
            if elements:
                dist.recv(as_bytes(x), source, group, tag=channel + 1)
        return x

    def _direction(self, source: int, destination: int) -> Any:
        return self._upward if source < destination else self._downward

    def _batch(self, arcs: list[tuple[int, int, torch.Tensor]], group: Any) -> list[dist.Work]:
        """Start the transfers of one direction, in ascending order of (source, destination)."""
        if not arcs:
            return []
        operations = [
            dist.P2POp(dist.isend, tensor, destination, group)
            if source == self._rank
            else dist.P2POp(dist.irecv, tensor, source, group)
            for source, destination, tensor in sorted(arcs, key=lambda arc: arc[:2])
        ]
        works: list[dist.Work] = dist.batch_isend_irecv(operations)
        return works

    def common_start(self) -> float:
        """Wait for all ranks and return the moment that they agree on, on this rank's monotonic clock.

        On one machine all ranks read the same clock, and rank 0 says when. On several each takes the end
        of the barrier, because their clocks have nothing in common.
        """
        world = self._everyone
        hosts: list[Any] = [None] * dist.get_world_size(world)
        dist.all_gather_object(hosts, platform.node(), world)
        dist.barrier(world)
        start = torch.tensor([time.monotonic()], dtype=torch.float64)
        if len(set(hosts)) == 1:
            dist.broadcast(start, 0, world)
        return float(start)

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value on rank 0, and None on the others."""
        values: list[Any] | None = [None] * dist.get_world_size() if self._rank == 0 else None
        dist.gather_object(value, values, 0, self._everyone)
        return values

    def keep(self, groups: Iterable[Any]) -> None:
        """Give these process groups back, too, in the end."""
        self._made += groups

    def close(self) -> None:
        """Give back the process groups that were made here, when all ranks have ended their work."""
        dist.barrier(self._everyone)
        for group in self._made:
            if group is not dist.GroupMember.NON_GROUP_MEMBER:
                dist.destroy_process_group(group)
