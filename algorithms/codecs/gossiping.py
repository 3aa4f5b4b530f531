"""A worker whose gossip is compressed: a codec before what it exchanges with its neighbours.

It is for algorithms that send how their model differs from a replica of it that its neighbours hold
(:mod:`algorithms.decentralised.choco_sgd`). What a message lacks is part of the next difference by itself, so
that a codec's own error feedback is left out; it would send the same twice.

A replica follows its model only if a message is nearer to the difference than nothing is: random rounding
without bias is therefore multiplied by the codec's :meth:`~algorithms.codecs.codec.Codec.contraction`.

The sender's replica must be the one that its neighbours hold. So an exchange gives what all of them decode:
the mapping holds this worker's own rank too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from algorithms.codecs import single
from algorithms.codecs.codec import Codec, Message, stood_for
from algorithms.codecs.pushing import PURPOSE
from algorithms.phantom import Phantom
from algorithms.worker import Handle, Tensor, Worker

if TYPE_CHECKING:
    from algorithms.codecs.codec import Drawn


class Gossiping:
    """A worker and a codec before its exchanges.

    Parameters
    ----------
    worker
        Who computes and sends.
    codec
        What makes messages smaller.
    """

    def __init__(self, worker: Worker, codec: Codec) -> None:
        self._worker = worker
        self._codec = codec
        self._number = 0
        self._turn: Handle[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def exchange(self, x: Tensor) -> Handle[Mapping[int, Tensor]]:
        """Start sending ``x`` to the neighbours; the mapping that comes holds this worker's own rank too."""
        worker, codec = self._worker, self._codec
        alone, outline = (
            Message(len(x), x.itemsize, tuple(worker.layers), number=self._number),
            worker.outline,
        )
        message = stood_for(alone, outline, None if outline is None else (0, outline.elements))
        self._number += 1
        drawn = None
        if not isinstance(x, Phantom):
            drawn = codec.draw(message, worker.random(PURPOSE, codec.draws_alike))
        self._turn = start = worker.spawn(self._encode(x.clone(), message, drawn, self._turn))
        return worker.spawn(self._decode(start, x.dtype, message, drawn))

    async def _encode(
        self, x: Tensor, message: Message, drawn: Drawn, before: Handle[Any] | None
    ) -> tuple[Tensor, Handle[Mapping[int, Tensor]]]:
        """Encode a message in its turn and start exchanging it."""
        codec = self._codec
        if before is not None:
            await before

        def compressed(y: Any) -> Tensor:
            return single.encoded(codec, y, message, drawn, None)[0]

        cost = message.cost(lambda m: single.encode_bytes(codec, m, feedback=False))
        wire = await self._worker.compute(compressed, x, **cost)
        charged = message.charged(lambda sized: single.wire_bytes(codec, sized))
        return wire, self._worker.exchange(wire, charged=charged)

    async def _decode(
        self,
        start: Handle[tuple[Tensor, Handle[Mapping[int, Tensor]]]],
        dtype: Any,
        message: Message,
        drawn: Drawn,
    ) -> Mapping[int, Tensor]:
        """Return what all messages say, this worker's own among them."""
        codec, worker = self._codec, self._worker
        wire, exchanging = await start
        wires = {**await exchanging, worker.rank: wire}
        ranks, factor = sorted(wires), codec.contraction(message)

        def differences(*arrived: Any) -> tuple[Tensor, ...]:
            return tuple(factor * single.decoded(codec, one, message, dtype, drawn) for one in arrived)

        cost = message.cost(lambda m: len(ranks) * single.decode_bytes(codec, m))
        found = await worker.compute(differences, *(wires[rank] for rank in ranks), **cost)
        return dict(zip(ranks, found, strict=True))
