"""Where the workers of a simulation meet: collectives match by order, messages are first in, first out."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from algorithms.phantom import Phantom
from algorithms.worker import Reduction, Tensor
from simulator import faults
from simulator.engine.collectives import Communicator, Pending
from simulator.engine.network import Network
from simulator.transports import Fixed, Transport
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
        self.members: dict[int, Operation] = {}
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
        self.title = f"group '{name}'"
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
        if len(self._ranks) == 1:
            operation.succeed(x.clone())
            return
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
        meeting.members[position] = operation
        meeting.tensors[position] = x.clone()
        operation.missing = lambda: [r for p, r in enumerate(self._ranks) if p not in meeting.tensors]
        if len(meeting.members) == len(self._ranks):
            del self._open[index]
            meeting.last_call, meeting.last_rank = worker.clock.now, worker.rank
            meeting.value = self._reduced(meeting, op)
        assert meeting.pending is not None
        self._communicator.arrive(meeting.pending, position)

    def _reduced(self, meeting: Meeting, op: Reduction) -> Tensor:
        tensors = [meeting.tensors[position] for position in range(len(self._ranks))]
        if isinstance(tensors[0], Phantom):
            return tensors[0]
        from simulator.numerics import reduce

        return reduce([x for x in tensors if not isinstance(x, Phantom)], op, self._shares)

    def _deliver(self, meeting: Meeting, position: int) -> None:
        """End a member's part: its result, and what its time went into."""
        operation = meeting.members.pop(position)
        worker = operation.worker
        pending = meeting.pending
        assert pending is not None
        assert meeting.value is not None
        sent = self._communicator.sent[position] * pending.nbytes
        worker.bytes_sent += sent
        moving = max(operation.since, meeting.last_call, pending.began)
        worker.record(WAIT, operation, operation.since, meeting.last_call, meeting.last_rank)
        worker.record(TRANSFER, operation, moving, worker.clock.now, nbytes=sent)
        operation.missing = None
        operation.succeed(meeting.value.clone())
        if not meeting.members:
            # Nothing refers in a circle any more, so no garbage collector has to find it.
            meeting.pending = None


def _element_type(x: Tensor) -> str:
    return f"{8 * x.itemsize}-bit" if isinstance(x, Phantom) else str(x.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Message:
    """A message on its way.

    Attributes
    ----------
    x, nbytes
        What is sent, and what it is charged as.
    called
        When its sender called.
    arrived
        Called when its last byte has arrived.
    """

    x: Tensor
    nbytes: float
    called: float
    arrived: Callable[[], object]


class Mailbox:
    """A channel: messages from one rank to another, one after another over one connection."""

    def __init__(self, network: Network, source: int, destination: int) -> None:
        self.source = source
        self.destination = destination
        self._network = network
        transport = network.transport
        self.rendezvous = isinstance(transport, Transport) and transport.rendezvous
        self._queue: deque[Message] = deque()
        self._receivers: deque[Delivered] = deque()
        self._arrived: deque[tuple[Tensor, float]] = deque()
        self._under_way = 0

    def send(self, message: Message) -> None:
        """Hand in a message."""
        self._queue.append(message)
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
            if self.rendezvous and len(self._receivers) <= self._under_way:
                return
            message = self._queue.popleft()
            self._under_way += 1
            arrival = functools.partial(self._arrive, message)
            self._network.send(self.source, self.destination, message.nbytes, arrival)

    def _arrive(self, message: Message) -> None:
        self._under_way -= 1
        if self._receivers:
            self._receivers.popleft()(message.x, message.called)
        else:
            self._arrived.append((message.x, message.called))
        message.arrived()
        self._advance()


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
        # With rendezvous a sender waits for its messages' ends; otherwise only the timeline does.
        self._sends_block = any(mailbox.rendezvous for mailbox in outgoing.values())
        self._to_receive = len(incoming)
        self._to_send = len(outgoing)
        self._last_call = operation.since
        self._last_rank = -1
        nbytes = worker.charged_bytes(x)
        self._sent = nbytes * len(outgoing)
        self._elements = x.numel()
        operation.missing = lambda: [rank for rank in self._sources if rank not in self._received]
        for mailbox in outgoing.values():
            mailbox.send(Message(x.clone(), nbytes, operation.since, self._one_sent))
        for rank, mailbox in incoming.items():
            mailbox.receive(functools.partial(self._one_received, rank))
        if not outgoing and not incoming:
            operation.succeed({})

    def _one_received(self, rank: int, x: Tensor, called: float) -> None:
        if x.numel() != self._elements:
            raise faults.unequal_exchange(self._worker.rank, self._elements, rank, x.numel())
        self._received[rank] = x
        if called > self._last_call:
            self._last_call, self._last_rank = called, rank
        self._to_receive -= 1
        if not self._to_receive and not (self._sends_block and self._to_send):
            self._complete()
        self._record_transfer()

    def _one_sent(self) -> None:
        self._to_send -= 1
        if self._sends_block and not self._to_send and not self._to_receive:
            self._complete()
        self._record_transfer()

    def _complete(self) -> None:
        operation = self._operation
        self._worker.record(WAIT, operation, operation.since, self._last_call, self._last_rank)
        operation.missing = None
        operation.succeed({rank: self._received[rank] for rank in self._sources})

    def _record_transfer(self) -> None:
        """Note the whole exchange, once its last byte has come or gone."""
        if self._to_send or self._to_receive:
            return
        worker = self._worker
        worker.bytes_sent += self._sent
        worker.record(TRANSFER, self._operation, self._last_call, worker.clock.now, nbytes=self._sent)
