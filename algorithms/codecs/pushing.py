"""A worker whose pushes to servers are compressed: a codec at both ends of the channels that carry gradients.

The algorithm says which channels these are, and which slice of the gradient each carries
(:meth:`algorithms.algorithm.Algorithm.pushed`), so that a server knows what it decodes. A worker keeps what
the codec keeps (error feedback, momentum) for each of its channels, and compresses what it pushes to a server
on its own machine as well. Everything else goes as it is: the models that are pulled back, and empty
messages. That is the classical setting of QSGD and TernGrad.

A push is two tasks. The first encodes, behind the channel's push before, and sends; the second waits for the
arrival. A server decodes each push in a task of its own, and all of them share its device.

Where all workers draw alike, the n-th messages of a slice do, whoever sends them; their numbers come from a
seed that all share, so that a server needs no memory of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from algorithms.codecs import single
from algorithms.codecs.codec import Codec, Message, stood_for, within
from algorithms.phantom import Phantom
from algorithms.worker import MESSAGE, Handle, Tensor, Worker

if TYPE_CHECKING:
    from algorithms.algorithm import Channel
    from algorithms.codecs.codec import Drawn

PURPOSE = "codec"
"""Of the random numbers that codecs draw."""
SEEDS = 2**63
"""How many seeds there are for what all draw alike."""

Pushed = Callable[["Channel", int, int], tuple[int, int] | None]
"""The slice [low, high) of a gradient of so many elements that a channel carries, with so many workers; None
where it is exact."""


@dataclass(slots=True)
class End:
    """This worker's end of a channel that carries a slice of gradients.

    Attributes
    ----------
    low, high
        The slice.
    stands_for
        The slice of the cost model that is charged for it, where that model is of another size.
    number
        Messages so far, empty ones too.
    memory
        What the codec keeps from message to message.
    turn
        The latest message's encoding.
    """

    low: int
    high: int
    stands_for: tuple[int, int] | None = None
    number: int = 0
    memory: tuple[Tensor, ...] = ()
    turn: Handle[Any] | None = None


class Pushing:
    """A worker and a codec on the channels that carry its gradients.

    Parameters
    ----------
    worker
        Who computes and sends.
    codec
        What makes messages smaller.
    pushed
        What the channels carry.
    """

    def __init__(self, worker: Worker, codec: Codec, pushed: Pushed) -> None:
        self._worker = worker
        self._codec = codec
        self._pushed = pushed
        self._ends: dict[tuple[bool, Channel], End | None] = {}
        model = worker.initial_model()
        self._elements, self._nothing = len(model), model[:0].clone()
        self._seed: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def _end(self, channel: Channel, sends: bool) -> End | None:
        """Return this worker's end of a channel; None where it carries no gradients."""
        key = sends, channel
        if key not in self._ends:
            workers, outline = self._worker.world_size, self._worker.outline
            place = self._pushed(channel, self._elements, workers)
            larger = None if outline is None else self._pushed(channel, outline.elements, workers)
            self._ends[key] = None if place is None else End(*place, larger)
        return self._ends[key]

    def _message(self, end: End) -> Message:
        """Return what both ends know of the next message, and count it."""
        worker, number = self._worker, end.number
        end.number += 1
        layers = within(worker.layers, end.low, end.high)
        alone = Message(end.high - end.low, self._nothing.itemsize, layers, worker.world_size, number)
        return stood_for(alone, worker.outline, end.stands_for)

    # To a server.

    def send(self, x: Tensor, to: int, channel: str = MESSAGE) -> Handle[None]:
        """Start sending a message, encoded where it is a gradient."""
        end = self._end((self._worker.rank, to, channel), sends=True)
        if end is None:
            return self._worker.send(x, to, channel)
        message = self._message(end)
        if len(x) not in (0, message.elements):
            raise ValueError(
                f"worker {self._worker.rank} sent {len(x)} elements to worker {to} on channel '{channel}', "
                f"whose messages are gradients of {message.elements}"
            )
        drawn = self._drawn(end, message, own=True) if len(x) else None
        encoding = self._encode(x.clone(), message, end, end.turn, drawn, to, channel)
        end.turn = start = self._worker.spawn(encoding)
        return self._worker.spawn(_arrived(start))

    async def _encode(
        self,
        x: Tensor,
        message: Message,
        end: End,
        before: Handle[Any] | None,
        drawn: Drawn,
        to: int,
        channel: str,
    ) -> tuple[Handle[None]]:
        """Encode a message in its turn and start sending it."""
        worker, codec = self._worker, self._codec
        if before is not None:
            await before
        if not len(x):
            return (worker.send(x, to, channel),)

        def compressed(y: Any, *memory: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
            return single.encoded(codec, y, message, drawn, memory)

        wire, end.memory = await worker.compute(
            compressed, x, *end.memory, **message.cost(lambda m: single.encode_bytes(codec, m))
        )
        charged = message.charged(lambda sized: single.wire_bytes(codec, sized))
        return (worker.send(wire, to, channel, charged=charged),)

    # At a server.

    def recv(self, source: int, channel: str = MESSAGE) -> Handle[Tensor]:
        """Start receiving a message, decoded where it is a gradient."""
        arriving = self._worker.recv(source, channel)
        end = self._end((source, self._worker.rank, channel), sends=False)
        if end is None:
            return arriving
        message = self._message(end)
        return self._worker.spawn(self._decode(arriving, message, self._drawn(end, message, own=False)))

    async def _decode(self, arriving: Handle[Tensor], message: Message, drawn: Drawn) -> Tensor:
        """Return what a message says when it has arrived; nothing where it is empty."""
        codec, dtype = self._codec, self._nothing.dtype
        wire = await arriving
        if not len(wire):
            return wire

        def gradient(wire: Any) -> Tensor:
            return single.decoded(codec, wire, message, dtype, drawn)

        cost = message.cost(lambda m: single.decode_bytes(codec, m))
        decoded: Tensor = await self._worker.compute(gradient, wire, **cost)
        return decoded

    # Random numbers.

    def _drawn(self, end: End, message: Message, own: bool) -> Drawn:
        """Return a message's random numbers, which its receiver knows only where all draw alike."""
        import numpy as np

        codec, worker = self._codec, self._worker
        if isinstance(self._nothing, Phantom):
            return None
        if not codec.draws_alike:
            return codec.draw(message, worker.random(PURPOSE)) if own else None
        if self._seed is None:
            self._seed = int(worker.random(PURPOSE, shared=True).integers(SEEDS))
        return codec.draw(message, np.random.default_rng([self._seed, end.low, message.number]))


async def _arrived(start: Handle[tuple[Handle[None]]]) -> None:
    """Wait until a message has been encoded and sent and has arrived."""
    (sending,) = await start
    await sending
