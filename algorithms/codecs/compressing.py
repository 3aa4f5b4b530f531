"""A worker whose means are compressed: a codec between an algorithm and its worker.

:class:`Compressing` hands everything on to the worker, except means over all workers. What is sent to servers
or to neighbours instead is left to :mod:`algorithms.codecs.pushing` and :mod:`algorithms.codecs.gossiping`;
:func:`compressing` chooses.

- **Gradients.** What is averaged is a gradient, or the buckets of one in the order in which they come. Each
  part of the model has a memory of its own (error feedback, momentum, factors).
- **Models.** What is compressed is the difference from an anchor that all workers share: the result of the
  mean before, the initial model at first. The result is anchor + mean of decoded differences, so it is the
  same on all workers. That is right where an algorithm takes the mean as its model, or adds to it what it
  has done since the snapshot (CoCoD-SGD): then a difference holds new local progress alone. Where workers
  keep a part of their own models, what was not sent would still be in the next difference, and error
  feedback would send it twice; those algorithms are refused.

Messages that cannot be added are gathered by all: encode, all-gather, then decode all and take their mean
in one computation. A mean over unequal shares p_i scales each message by n p_i first, which every worker
knows of itself. Summable ones go through all-reduces.

A mean is two tasks. The first encodes and calls the collectives; it waits for the first task of the mean
before, so that all workers call the collectives of a group in one order, whatever their speed. The second
waits for the messages and decodes, and is the handle that the algorithm awaits. Encoding queues behind the
computations that were started before it: where all buckets of a gradient are under way, the first is encoded
when the last has been computed.

Where the model in hand stands for a cost model of another length or type, each message is charged as the one
of the cost model that it stands for: bucket for bucket, and for other slices at the same fractions. A bucket
that has no element in hand is a message all the same then, without values.

The state of an update rule is no model and goes uncompressed, as do sums and maxima.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from algorithms.codecs.codec import Codec, Message, as_tensor, stood_for, within
from algorithms.codecs.gossiping import Gossiping
from algorithms.codecs.pushing import PURPOSE, Pushing
from algorithms.phantom import Phantom
from algorithms.worker import WORLD, Handle, Reduction, Tensor, Worker

if TYPE_CHECKING:
    from algorithms.algorithm import Algorithm
    from algorithms.codecs.codec import Drawn, Shape
    from algorithms.codecs.powersgd import PowerSGD

Sends = Literal["gradients", "models"]
"""What the means of an algorithm carry."""

Slice = tuple[int, int]
"""[low, high) of a flat vector."""


def compressing(worker: Worker, codec: Codec, algorithm: Algorithm) -> Worker:
    """Return a worker that compresses what an algorithm lets compress."""
    sends = algorithm.compresses
    found: Any = worker
    if sends == "gradients" or sends == "models":
        found = Compressing(worker, codec, sends)
    elif sends == "pushed gradients":
        found = Pushing(worker, codec, algorithm.pushed)
    elif sends == "model differences":
        found = Gossiping(worker, codec)
    # Each answers whatever its worker answers, which mypy cannot see.
    return cast(Worker, found)


@dataclass(slots=True)
class Part:
    """A part of the model that is sent as one message, again and again.

    Attributes
    ----------
    layers
        Shapes of the parameters in it.
    memory
        What the codec keeps from message to message.
    factor, start
        Of a summable codec: the factor to start from, and the first one drawn.
    number
        Messages so far.
    latest
        The latest message's mean, once it is under way.
    """

    layers: tuple[Shape, ...]
    memory: tuple[Tensor, ...] = ()
    factor: Tensor | None = None
    start: Tensor | None = None
    number: int = 0
    latest: Handle[Tensor] | None = None


class Compressing:
    """A worker and a codec before its means.

    Parameters
    ----------
    worker
        Who computes and sends.
    codec
        What makes messages smaller.
    sends
        What the algorithm's means carry.
    """

    def __init__(self, worker: Worker, codec: Codec, sends: Sends) -> None:
        self._worker = worker
        self._codec = codec
        self._sends = sends
        self._outline = worker.outline
        self._parts: dict[tuple[Slice, Slice | None], Part] = {}
        self._unsent = 0
        self._buckets: deque[tuple[Slice, Slice]] = deque()
        self._anchor: Tensor | None = None
        self._rule_state: Tensor | None = None
        self._turn: Handle[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    # What tells it which part of the model a message is.

    def gradient(self, x: Tensor) -> Handle[Tensor]:
        """Start a gradient, all of which the next mean carries."""
        self._begin(x)
        return self._worker.gradient(x)

    def gradient_buckets(self, x: Tensor) -> Sequence[Handle[Tensor]]:
        """Start a gradient in slices, which the next means carry one by one, the last parameters first."""
        self._begin(x)
        if self._outline is not None:
            self._buckets.extend(zip(self._outline.cuts, self._outline.buckets, strict=True))
        return self._worker.gradient_buckets(x)

    def evaluate(
        self, function: Callable[..., Any], *tensors: Tensor, gradients: float = 1.0, iterations: int = 1
    ) -> Handle[Any]:
        """Start an evaluation at the first tensor, whose result the next mean carries."""
        self._begin(tensors[0])
        return self._worker.evaluate(function, *tensors, gradients=gradients, iterations=iterations)

    @property
    def rule_state(self) -> Tensor | None:
        """A copy of the update rule's state, whose mean goes uncompressed."""
        self._rule_state = self._worker.rule_state
        return self._rule_state

    def _begin(self, x: Tensor) -> None:
        """Note that the next means carry a gradient at ``x``."""
        self._unsent = len(x)
        self._buckets.clear()

    def _place(self, x: Tensor) -> tuple[Slice, Slice | None]:
        """Return the slice of the model that a message is, and the slice of the cost model it stands for."""
        place = self._own_place(x)
        if self._outline is None:
            return place, None
        while self._buckets:
            own, bucket = self._buckets.popleft()
            if own == place:
                return place, bucket
        return place, self._outline.stood_for(*place)

    def _own_place(self, x: Tensor) -> Slice:
        """Return the slice of the model that a message is."""
        if self._sends == "models":
            return 0, len(x)
        high, self._unsent = self._unsent, self._unsent - len(x)
        if self._unsent < 0:
            raise ValueError(
                f"worker {self._worker.rank} sent {len(x)} elements, but only {high} of its gradient were "
                "left to send; compression takes each part of a gradient once"
            )
        return self._unsent, high

    # Collectives, in the order of the calls.

    def all_reduce(self, x: Tensor, op: Reduction = "mean", group: str = WORLD) -> Handle[Tensor]:
        """Start an all-reduce; a mean over all workers is compressed."""
        if op != "mean" or x is self._rule_state or not (len(x) or self._outline):
            return self._exactly(group, lambda copy: self._worker.all_reduce(copy, op, group), x)
        if group != WORLD:
            raise ValueError(
                f"compression stands before means over all workers, not over the group '{group}'"
            )
        place = self._place(x)
        if place not in self._parts:
            self._parts[place] = Part(within(self._worker.layers, *place[0]))
        part = self._parts[place]
        alone = Message(len(x), x.itemsize, part.layers, self._worker.world_size, part.number)
        message = stood_for(alone, self._outline, place[1])
        part.number += 1
        compressed = self._summed if self._codec.summable else self._gathered
        return compressed(x.clone(), message, part)

    def all_gather(self, x: Tensor, group: str = WORLD) -> Handle[tuple[Tensor, ...]]:
        """Start gathering every member's tensor, as it is."""
        return self._exactly(group, lambda copy: self._worker.all_gather(copy, group), x)

    def all_to_all(self, parts: Sequence[Tensor], group: str = WORLD) -> Handle[tuple[Tensor, ...]]:
        """Start sending a part to every member, as it is."""
        return self._exactly(group, lambda *copies: self._worker.all_to_all(copies, group), *parts)

    def _exactly(self, group: str, call: Callable[..., Handle[Any]], *given: Tensor) -> Handle[Any]:
        """Call a collective in its turn, behind the compressed means that were called before it."""
        if group != WORLD or self._turn is None:
            return call(*given)
        before, copies = self._turn, [x.clone() for x in given]

        async def started() -> tuple[Handle[Any]]:
            await before
            return (call(*copies),)

        self._turn = start = self._worker.spawn(started())

        async def finished() -> Any:
            (collective,) = await start
            return await collective

        return self._worker.spawn(finished())

    # Messages that are gathered.

    def _gathered(self, x: Tensor, message: Message, part: Part) -> Handle[Tensor]:
        before, previous = self._turn, part.latest if self._sends == "models" else None
        drawn = self._drawn(x, message)
        self._turn = start = self._worker.spawn(self._encode(x, message, part, drawn, before, previous))
        part.latest = self._worker.spawn(self._decode(start, x.dtype, message, drawn))
        return part.latest

    async def _encode(
        self,
        x: Tensor,
        message: Message,
        part: Part,
        drawn: Drawn,
        *before: Handle[Any] | None,
    ) -> tuple[Handle[tuple[Tensor, ...]], Tensor | None]:
        """Encode a message in its turn, and start gathering; return also what all have agreed on."""
        worker, codec = self._worker, self._codec
        await _all(before)
        uniform = worker.share == 1 / worker.world_size
        x = await self._difference(x, 1.0 if uniform else worker.share * worker.world_size)
        agreed: Tensor | None = None
        if codec.agrees:
            x, scales = await worker.compute(
                lambda y: _agreeing(codec, y, message),
                x,
                **message.cost(codec.agree_bytes),
            )
            charged = message.charged(lambda sized: codec.agreed_elements(sized) * sized.itemsize)
            agreed = await worker.all_reduce(scales, "max", charged=charged)
        known = () if agreed is None else (agreed,)

        def compressed(y: Any, *others: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
            if isinstance(y, Phantom):
                return Phantom((codec.wire_bytes(message),), 1), ()
            if not len(y):
                return y, ()
            scales, memory = (others[0], others[1:]) if codec.agrees else (None, others)
            return codec.compress(y, memory, message, drawn, scales)

        wire, part.memory = await worker.compute(
            compressed, x, *known, *part.memory, **message.cost(codec.encode_bytes)
        )
        return worker.all_gather(wire, charged=message.charged(codec.wire_bytes)), agreed

    async def _decode(
        self,
        start: Handle[tuple[Handle[tuple[Tensor, ...]], Tensor | None]],
        dtype: Any,
        message: Message,
        drawn: Drawn,
    ) -> Tensor:
        """Decode all messages and return their mean."""
        gathering, agreed = await start
        wires = await gathering
        codec = self._codec

        def mean(*arrived: Any) -> Tensor:
            if isinstance(arrived[0], Phantom):
                return Phantom((message.elements,), message.itemsize)
            if not message.elements:
                nothing: Tensor = arrived[0]
                return nothing
            # Each worker's own draws are not known to the others; decoding uses only those drawn alike.
            total = codec.decode(arrived[0], message, dtype, drawn, cast(Any, agreed))
            for wire in arrived[1:]:
                total = total + codec.decode(wire, message, dtype, drawn, cast(Any, agreed))
            return total / len(arrived)

        return await self._anchored(
            await self._worker.compute(mean, *wires, **message.cost(codec.decode_bytes))
        )

    def _drawn(self, x: Tensor, message: Message) -> Drawn:
        """Return a message's random numbers, drawn when it is called, so that the order is the calls'."""
        if isinstance(x, Phantom) or not len(x):
            return None
        return self._codec.draw(message, self._worker.random(PURPOSE, self._codec.draws_alike))

    # Models as differences from what all share.

    async def _difference(self, x: Tensor, weight: float) -> Tensor:
        """Return what is encoded of a message: it, or how it differs from the anchor, times its weight."""
        if self._sends == "models":
            if self._anchor is None:
                self._anchor = self._worker.initial_model()
            if len(self._anchor) != len(x):
                raise ValueError(
                    f"worker {self._worker.rank} averaged {len(x)} elements, but the model has "
                    f"{len(self._anchor)}; compression takes whole models"
                )
            return await self._worker.combine((weight, x), (-weight, self._anchor))
        return x if weight == 1 else await self._worker.combine((weight, x))

    async def _anchored(self, mean: Tensor) -> Tensor:
        """Return the mean of the models, from the mean of what was decoded."""
        if self._sends != "models":
            return mean
        assert self._anchor is not None
        result = await self._worker.combine((1, self._anchor), (1, mean))
        self._anchor = result.clone()
        return result

    # Messages that are summed.

    def _summed(self, x: Tensor, message: Message, part: Part) -> Handle[Tensor]:
        codec = cast("PowerSGD", self._codec)
        if isinstance(x, Phantom):
            part.start = Phantom((codec.second_elements(message),), message.itemsize)
        elif not len(x):
            part.start = x
        elif part.start is None or not codec.warm_start:
            drawn = codec.draw(message, self._worker.random(PURPOSE, shared=True))
            part.start = as_tensor(drawn).to(x.device, x.dtype)
        before, previous = self._turn, part.latest
        self._turn = start = self._worker.spawn(
            self._project(codec, x, message, part, part.start, before, previous)
        )
        part.latest = self._worker.spawn(self._rebuild(codec, start, message, part, part.start))
        return part.latest

    async def _project(
        self,
        codec: PowerSGD,
        x: Tensor,
        message: Message,
        part: Part,
        begun: Tensor,
        *before: Handle[Any] | None,
    ) -> Projection:
        """Reduce the first factor of a message in its turn, and start reducing the second."""
        worker = self._worker
        await _all(before)
        x = await self._difference(x, 1.0)
        q = part.factor if codec.warm_start and part.factor is not None else begun

        def first(y: Any, factor: Any, *memory: Any) -> tuple[Tensor, Tensor]:
            if isinstance(y, Phantom):
                return y, Phantom((codec.first_elements(message),), message.itemsize)
            if not len(y):
                return y, y
            corrected = codec.corrected(y, memory)
            return corrected, codec.first(corrected, factor, message)

        def second(y: Any, mean: Any) -> tuple[Tensor, Tensor]:
            if isinstance(y, Phantom):
                return mean, Phantom((codec.second_elements(message),), message.itemsize)
            if not len(y):
                return mean, y
            return codec.second(y, mean, message)

        def half(sized: Message) -> float:
            return codec.encode_bytes(sized) / 2

        cost = message.cost(half)
        corrected, given = await worker.compute(first, x, q, *part.memory, **cost)
        mean_first = await worker.all_reduce(given, charged=message.charged(codec.first_bytes))
        p, given = await worker.compute(second, corrected, mean_first, **cost)
        # Where there is no matrix, there is no second factor.
        second_bytes = message.charged(codec.second_bytes)
        reducing = worker.all_reduce(given, charged=second_bytes) if len(given) or second_bytes else None
        return Projection(corrected, mean_first, p, given, reducing)

    async def _rebuild(
        self, codec: PowerSGD, start: Handle[Projection], message: Message, part: Part, begun: Tensor
    ) -> Tensor:
        """Return the global output, and keep what it lacks of the message."""
        corrected, mean_first, p, given, reducing = await start
        mean_second = given if reducing is None else await reducing

        def rebuilt(y: Any, first: Any, left: Any, right: Any, fresh: Any) -> tuple[Tensor, Tensor, Tensor]:
            if isinstance(y, Phantom) or not len(y):
                return y, y, right
            output, error = codec.rebuilt(y, first, left, right, message)
            return output, error, codec.renewed(right, fresh, message)

        output, error, part.factor = await self._worker.compute(
            rebuilt, corrected, mean_first, p, mean_second, begun, **message.cost(codec.decode_bytes)
        )
        part.memory = (error,)
        return await self._anchored(output)


class Projection(NamedTuple):
    """A summable message under way: the corrected input, the first mean, P, and the second all-reduce."""

    corrected: Tensor
    mean_first: Tensor
    p: Tensor
    given: Tensor
    reducing: Handle[Tensor] | None


async def _all(handles: Sequence[Handle[Any] | None]) -> None:
    for handle in handles:
        if handle is not None:
            await handle


def _agreeing(codec: Codec, x: Any, message: Message) -> tuple[Tensor, Tensor]:
    """Let a codec say what it encodes and what all shall agree on, or the outlines of both."""
    if isinstance(x, Phantom):
        return x, Phantom((codec.agreed_elements(message),), message.itemsize)
    if not len(x):
        return x, x
    return codec.agree(x, message)
