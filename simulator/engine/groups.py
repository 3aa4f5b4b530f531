"""Where the workers of a simulation meet: collectives match by order, messages are first in, first out."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from algorithms.phantom import Phantom
from algorithms.worker import Tensor
from simulator import faults
from simulator.engine.collectives import Communicator, Pending
from simulator.engine.network import Network
from simulator.patterns import Kind
from simulator.transports import Fixed, Transport, Use
from traces import TRANSFER, WAIT

if TYPE_CHECKING:
    import torch

    from simulator.engine.worker import Operation, VirtualWorker

Delivered = Callable[["Message"], object]
"""Told a message that has arrived."""

What = Literal["sum", "mean", "max", "all_gather", "all_to_all"]
"""What a collective does: an all-reduce by its reduction, any other by its name."""


class Meeting:
    """One collective of a group: which of its members have called it, with what.

    Lists are by position in the group. None in ``given`` stands for a member that has not called yet, and in
    ``members`` for one whose part has ended too. When all have called, ``given`` has become ``results``.
    """

    def __init__(
        self,
        what: What,
        signature: faults.Signature,
        caller: int,
        ranks: tuple[int, ...],
        communicator: Communicator,
    ) -> None:
        self.what = what
        self.communicator = communicator
        self.signature = signature
        self.caller = caller
        self.members: list[Operation | None] = [None] * len(ranks)
        self.given: list[Tensor | tuple[Tensor, ...] | None] = [None] * len(ranks)
        self.to_call = self.to_end = len(ranks)
        self._ranks = ranks
        self.results: Sequence[Any] = ()
        self.last_call = 0.0
        self.last_rank = -1
        self.pending: Pending | None = None

    def __call__(self) -> list[int]:
        """Return the members that have not called yet."""
        if not self.to_call:
            return []
        return [rank for rank, given in zip(self._ranks, self.given, strict=True) if given is None]


class Group:
    """A declared group of workers and its collectives, which match by the order of the calls.

    Parameters
    ----------
    name
        As the algorithm declared it.
    ranks
        Its members, in order.
    communicator
        Returns what gives the collectives of a kind their time.
    shares
        Weights of a mean over the group, in order; None where they are equal.
    """

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        communicator: Callable[[Kind], Communicator],
        shares: Sequence[float] | None,
    ) -> None:
        self.name = name
        self.title = f"group '{name}'"
        self._communicator = functools.cache(communicator)
        self._ranks = tuple(ranks)
        self._position = {rank: position for position, rank in enumerate(self._ranks)}
        self._shares = shares
        self._joined = [0] * len(self._ranks)
        self._open: dict[int, Meeting] = {}
        self._latest: Pending | None = None

    def __len__(self) -> int:
        return len(self._ranks)

    def join(
        self,
        worker: VirtualWorker,
        operation: Operation,
        what: What,
        given: Sequence[Tensor],
        charged: float | None = None,
    ) -> None:
        """Let a member call the group's next collective with the tensor, or the parts, that it gives.

        Each is charged as so many bytes, or as what it stands for in the cost model.
        """
        position = self._position.get(worker.rank)
        if position is None:
            raise faults.not_a_member(worker.rank, self.name, self._ranks)
        given = tuple([x.clone() for x in given])
        if len(self._ranks) == 1:
            operation.succeed(given[0] if what in ALL_REDUCE else given)
            return
        if what == "all_to_all":
            self._check_parts(worker.rank, given)
        index = self._joined[position]
        self._joined[position] += 1
        signature = (what, given[0].numel(), _element_type(given[0]))
        meeting = self._open.get(index)
        if meeting is None:
            communicator = self._communicator(_kind(what))
            meeting = self._open[index] = Meeting(what, signature, worker.rank, self._ranks, communicator)
            each = worker.charged_bytes(given[0]) if charged is None else float(charged)
            nbytes = each * (1 if what in ALL_REDUCE else len(self._ranks))
            meeting.pending = Pending(nbytes, functools.partial(self._deliver, meeting), self._latest)
            self._latest = meeting.pending
        elif meeting.signature != signature:
            raise faults.mismatch(self.name, index, meeting.caller, meeting.signature, worker.rank, signature)
        meeting.members[position] = operation
        meeting.given[position] = given if what == "all_to_all" else given[0]
        operation.missing = meeting
        meeting.to_call -= 1
        if not meeting.to_call:
            del self._open[index]
            meeting.last_call, meeting.last_rank = worker.clock.now, worker.rank
            meeting.results = self._results(meeting)
            meeting.given.clear()
            if worker.network.interferes:
                for rank in self._ranks:
                    worker.network.moving(rank, 1)
        assert meeting.pending is not None
        meeting.communicator.arrive(meeting.pending, position)

    def _check_parts(self, rank: int, parts: Sequence[Tensor]) -> None:
        lengths = [part.numel() for part in parts]
        if len(lengths) != len(self._ranks) or len(set(lengths)) > 1:
            raise faults.unequal_parts(rank, self.name, lengths, len(self._ranks))

    def _results(self, meeting: Meeting) -> Sequence[Any]:
        """Return what each member gets, by position."""
        tensors: list[Any] = meeting.given
        if meeting.what == "all_to_all":
            return list(zip(*tensors, strict=True))
        if meeting.what == "all_gather":
            return _Repeated(tuple(tensors))
        if isinstance(tensors[0], Phantom):
            return _Repeated(tensors[0])
        from simulator.numerics import reduce

        return _Repeated(reduce(tensors, meeting.what, self._shares))

    def _deliver(self, meeting: Meeting, position: int) -> None:
        """End a member's part: its result, and what its time went into."""
        operation, pending = meeting.members[position], meeting.pending
        assert operation is not None
        assert pending is not None
        meeting.members[position] = None
        worker = operation.worker
        sent = meeting.communicator.sent[position] * pending.nbytes
        worker.bytes_sent += sent
        moving = max(operation.since, meeting.last_call, pending.began)
        worker.record(WAIT, operation, operation.since, meeting.last_call, meeting.last_rank)
        worker.record(TRANSFER, operation, moving, worker.clock.now, nbytes=sent)
        if worker.network.interferes:
            worker.network.moving(worker.rank, -1)
        operation.missing = None
        result = meeting.results[position]
        operation.succeed(tuple(x.clone() for x in result) if isinstance(result, tuple) else result.clone())
        meeting.to_end -= 1
        if not meeting.to_end:
            # Nothing refers in a circle any more, so no garbage collector has to find it.
            meeting.pending = None


class _Repeated(Sequence[Any]):
    """The same result for every member."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __getitem__(self, position: Any) -> Any:
        return self._result

    def __len__(self) -> int:
        return 1


ALL_REDUCE = ("sum", "mean", "max")


def _kind(what: What) -> Kind:
    return "all_reduce" if what in ALL_REDUCE else what  # type: ignore[return-value]  # mypy does not narrow


def _element_type(x: Tensor) -> str:
    return f"{8 * x.itemsize}-bit" if isinstance(x, Phantom) else _type_name(x.dtype)


@functools.cache
def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(slots=True)
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
    began
        When the connection took it up.
    """

    x: Tensor
    nbytes: float
    called: float
    arrived: Callable[[], object]
    began: float = 0.0


class Mailbox:
    """A channel: messages from one rank to another, one after another over one connection."""

    def __init__(self, network: Network, source: int, destination: int, exchange: bool = False) -> None:
        self._use: Use = "exchange" if exchange else "channel"
        self.source = source
        self.destination = destination
        self._network = network
        transport = network.transport
        self._local = source == destination
        self.rendezvous = isinstance(transport, Transport) and transport.rendezvous and not self._local
        self._queue: deque[Message] = deque()
        self._receivers: deque[Delivered] = deque()
        self._arrived: deque[Message] = deque()
        self._under_way = 0

    def send(self, message: Message) -> None:
        """Hand in a message."""
        self._queue.append(message)
        self._advance()

    def receive(self, delivered: Delivered) -> None:
        """Ask for the next message."""
        if self._arrived:
            delivered(self._arrived.popleft())
        else:
            self._receivers.append(delivered)
            self._advance()

    def _advance(self) -> None:
        """Start the next message if the connection is free and, with rendezvous, its receiver is there."""
        at_once = isinstance(self._network.transport, Fixed) or self.source == self.destination
        while self._queue and (at_once or not self._under_way):
            if (
                self.rendezvous
                and self.source != self.destination
                and len(self._receivers) <= self._under_way
            ):
                return
            message = self._queue.popleft()
            message.began = self._network.clock.now
            self._under_way += 1
            arrival = functools.partial(self._arrive, message)
            if self._local:
                arrival()
            else:
                self._note_moving(1)
                self._network.send(self.source, self.destination, message.nbytes, arrival, use=self._use)

    def _note_moving(self, change: int) -> None:
        if self._network.interferes:
            self._network.moving(self.source, change)
            self._network.moving(self.destination, change)

    def _arrive(self, message: Message) -> None:
        self._under_way -= 1
        if not self._local:
            self._note_moving(-1)
        if self._receivers:
            self._receivers.popleft()(message)
        else:
            self._arrived.append(message)
        message.arrived()
        self._advance()


def send(
    worker: VirtualWorker, operation: Operation, x: Tensor, mailbox: Mailbox, charged: float | None = None
) -> None:
    """Hand in a message whose arrival ends the sender's operation; to itself it is free."""
    to = mailbox.destination
    nbytes = 0.0
    if to != mailbox.source:
        nbytes = worker.charged_bytes(x) if charged is None else float(charged)

    def arrived() -> None:
        worker.bytes_sent += nbytes
        worker.record(WAIT, operation, operation.since, message.began, to)
        worker.record(TRANSFER, operation, message.began, worker.clock.now, to, nbytes)
        operation.missing = None
        operation.succeed()

    message = Message(x.clone(), nbytes, operation.since, arrived)
    operation.missing = to
    mailbox.send(message)


def receive(worker: VirtualWorker, operation: Operation, mailbox: Mailbox) -> None:
    """Ask for the next message of a channel; its arrival ends the receiver's operation."""
    source = mailbox.source

    def delivered(message: Message) -> None:
        moving = max(operation.since, message.began)
        worker.record(WAIT, operation, operation.since, moving, source)
        worker.record(TRANSFER, operation, moving, worker.clock.now, source)
        operation.missing = None
        operation.succeed(message.x)

    operation.missing = source
    mailbox.receive(delivered)


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
    charged
        The bytes that it counts to each; None for what it stands for in the cost model.
    """

    def __init__(
        self,
        worker: VirtualWorker,
        operation: Operation,
        x: Tensor,
        mailboxes: tuple[dict[int, Mailbox], dict[int, Mailbox]],
        charged: float | None = None,
    ) -> None:
        outgoing, incoming = mailboxes
        self._worker = worker
        self._operation = operation
        self._received: dict[int, Tensor] = {}
        self._sources = sorted(incoming)
        # With rendezvous, or nothing to receive, a sender waits for its messages' ends; otherwise only the
        # timeline does.
        self._sends_block = not incoming or any(mailbox.rendezvous for mailbox in outgoing.values())
        self._to_receive = len(incoming)
        self._to_send = len(outgoing)
        self._last_call = operation.since
        self._last_rank = -1
        nbytes = worker.charged_bytes(x) if charged is None else float(charged)
        self._sent = nbytes * len(outgoing)
        self._elements = x.numel()
        operation.missing = lambda: [rank for rank in self._sources if rank not in self._received]
        for mailbox in outgoing.values():
            mailbox.send(Message(x.clone(), nbytes, operation.since, self._one_sent))
        for rank, mailbox in incoming.items():
            mailbox.receive(functools.partial(self._one_received, rank))
        if not outgoing and not incoming:
            operation.succeed({})

    def _one_received(self, rank: int, message: Message) -> None:
        x = message.x
        if x.numel() != self._elements:
            raise faults.unequal_exchange(self._worker.rank, self._elements, rank, x.numel())
        self._received[rank] = x
        if message.called > self._last_call:
            self._last_call, self._last_rank = message.called, rank
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
