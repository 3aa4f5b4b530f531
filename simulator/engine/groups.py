"""Where the workers of a simulation meet: collectives match by order, messages are first in, first out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from algorithms.phantom import Phantom
from algorithms.worker import Reduction, Tensor
from simulator import faults
from simulator.engine.collectives import Communicator, Pending
from simulator.engine.network import Network
from simulator.transports import Fixed
from traces import TRANSFER, WAIT

if TYPE_CHECKING:
    from simulator.engine.worker import Operation, VirtualWorker

Delivered = Callable[[Tensor, float], object]
"""Told a message's tensor and when its sender called."""


class Meeting:
    """One collective of a group: who has called it, with what."""

    def __init__(self, signature: tuple[Any, ...], caller: int) -> None:
        self.signature = signature
        self.caller = caller
        self.members: dict[int, tuple[VirtualWorker, Operation]] = {}
        self.tensors: dict[int, Tensor] = {}
        self.value: Tensor | None = None
        self.last_call = 0.0
        self.last_rank = -1
        self.pending: Pending | None = None


class Group:
    """A declared group of workers and its collectives.

    Parameters
    ----------
    name
        As the algorithm declared it.
    communicator
        Gives the collectives their time; its ranks are the members.
    shares
        Weights of a mean over the group, in order; None where they are equal.
    """

    def __init__(self, name: str, communicator: Communicator, shares: Sequence[float] | None) -> None:
        self.name = name
        self._communicator = communicator
        self._ranks = communicator.ranks
        self._position = {rank: position for position, rank in enumerate(self._ranks)}
        self._shares = shares
        self._joined = [0] * len(self._ranks)
        self._open: dict[int, Meeting] = {}
        self._latest: Pending | None = None

    def join(self, worker: VirtualWorker, operation: Operation, x: Tensor, op: Reduction) -> None:
        """Let a member call the group's next all-reduce."""
        position = self._position.get(worker.rank)
        if position is None:
            raise faults.not_a_member(worker.rank, self.name, self._ranks)
        index = self._joined[position]
        self._joined[position] += 1
        signature = (op, x.numel(), _element_type(x))
        meeting = self._open.get(index)
        if meeting is None:
            meeting = self._open[index] = Meeting(signature, worker.rank)
            nbytes = worker.charged_bytes(x)
            meeting.pending = Pending(nbytes, lambda place: self._deliver(meeting, place), self._latest)
            self._latest = meeting.pending
        elif meeting.signature != signature:
            raise faults.mismatch(self.name, index, meeting.caller, meeting.signature, worker.rank, signature)
        meeting.members[position] = (worker, operation)
        meeting.tensors[position] = x.clone()
        operation.missing = lambda: [r for p, r in enumerate(self._ranks) if p not in meeting.tensors]
        if len(meeting.members) == len(self._ranks):
            del self._open[index]
            meeting.last_call, meeting.last_rank = worker.clock.now, worker.rank
            meeting.value = self._reduced(meeting, op)
        assert meeting.pending is not None
        if len(self._ranks) == 1:
            operation.succeed(meeting.value)
        else:
            self._communicator.arrive(meeting.pending, position)

    def _reduced(self, meeting: Meeting, op: Reduction) -> Tensor:
        tensors = [meeting.tensors[position] for position in range(len(self._ranks))]
        if isinstance(tensors[0], Phantom):
            return tensors[0]
        from simulator.numerics import reduce

        return reduce([x for x in tensors if not isinstance(x, Phantom)], op, self._shares)

    def _deliver(self, meeting: Meeting, position: int) -> None:
        """End a member's part: its result, and what its time went into."""
        worker, operation = meeting.members.pop(position)
        pending = meeting.pending
        assert pending is not None
        assert meeting.value is not None
        sent = self._communicator.sent[position] * pending.nbytes
        worker.bytes_sent += sent
        moving = max(operation.since, meeting.last_call, pending.began)
        worker.record(WAIT, operation.name, operation.since, meeting.last_call, meeting.last_rank)
        worker.record(TRANSFER, operation.name, moving, worker.clock.now, nbytes=sent)
        operation.missing = None
        operation.succeed(meeting.value.clone())
        if not meeting.members:
            # Nothing refers in a circle any more, so no garbage collector has to find it.
            meeting.pending = None


def _element_type(x: Tensor) -> str:
    return f"{8 * x.itemsize}-bit" if isinstance(x, Phantom) else str(x.dtype).removeprefix("torch.")


class Mailbox:
    """A channel: messages from one rank to another, one after another over one connection."""

    def __init__(self, network: Network, source: int, destination: int) -> None:
        self.source = source
        self.destination = destination
        self._network = network
        self._rendezvous = getattr(network.transport, "rendezvous", False)
        self._queue: deque[tuple[Tensor, float, float, Callable[[], object]]] = deque()
        self._receivers: deque[Delivered] = deque()
        self._arrived: deque[tuple[Tensor, float]] = deque()
        self._under_way = 0

    def send(self, x: Tensor, nbytes: float, sent: Callable[[], object]) -> None:
        """Hand in a message; ``sent`` is called when the sender may go on.

        With rendezvous that is its end, otherwise at once.
        """
        self._queue.append((x, nbytes, self._network.clock.now, sent))
        self._advance()

    def receive(self, delivered: Delivered) -> None:
        """Ask for the next message."""
        if self._arrived:
            delivered(*self._arrived.popleft())
        else:
            self._receivers.append(delivered)
            self._advance()

    def _advance(self) -> None:
        """Start the next message if the connection is free and, with rendezvous, its receiver is there."""
        at_once = isinstance(self._network.transport, Fixed)
        while self._queue and (at_once or not self._under_way):
            if self._rendezvous and len(self._receivers) <= self._under_way:
                return
            x, nbytes, called, sent = self._queue.popleft()
            self._under_way += 1
            self._network.send(self.source, self.destination, nbytes, self._arrival(x, called, sent))
            if not self._rendezvous:
                sent()

    def _arrival(self, x: Tensor, called: float, sent: Callable[[], object]) -> Callable[[], None]:
        def arrive() -> None:
            self._under_way -= 1
            if self._rendezvous:
                sent()
            if self._receivers:
                self._receivers.popleft()(x, called)
            else:
                self._arrived.append((x, called))
            self._advance()

        return arrive


class Exchange:
    """One exchange of a worker with its neighbours.

    Parameters
    ----------
    worker, operation
        Who called, and the handle that it waits for.
    x
        What goes to every out-neighbour.
    mailboxes
        The channels out and in, by rank of the neighbour, ascending.
    """

    def __init__(
        self,
        worker: VirtualWorker,
        operation: Operation,
        x: Tensor,
        mailboxes: tuple[dict[int, Mailbox], dict[int, Mailbox]],
    ) -> None:
        outgoing, incoming = mailboxes
        self._worker = worker
        self._operation = operation
        self._received: dict[int, Tensor] = {}
        self._sources = sorted(incoming)
        self._left = len(outgoing) + len(incoming)
        self._last_call = operation.since
        self._last_rank = -1
        nbytes = worker.charged_bytes(x)
        self._sent = nbytes * len(outgoing)
        operation.missing = lambda: [rank for rank in self._sources if rank not in self._received]
        for mailbox in outgoing.values():
            mailbox.send(x.clone(), nbytes, self._one_less)
        for rank, mailbox in incoming.items():
            mailbox.receive(self._receiver(rank))
        if not outgoing and not incoming:
            operation.succeed({})

    def _receiver(self, rank: int) -> Delivered:
        def delivered(x: Tensor, called: float) -> None:
            self._received[rank] = x
            if called > self._last_call:
                self._last_call, self._last_rank = called, rank
            self._one_less()

        return delivered

    def _one_less(self) -> None:
        self._left -= 1
        if self._left:
            return
        worker, operation = self._worker, self._operation
        worker.bytes_sent += self._sent
        worker.record(WAIT, operation.name, operation.since, self._last_call, self._last_rank)
        worker.record(TRANSFER, operation.name, self._last_call, worker.clock.now, nbytes=self._sent)
        operation.missing = None
        operation.succeed({rank: self._received[rank] for rank in self._sources})
