"""A message on its own: whoever decodes it has nothing but its bytes, and no mean is taken of it.

What all workers would agree on before a mean (TernGrad's scales) is this worker's alone, and goes before the
message, in the model's type.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from algorithms.codecs.codec import Codec, Message, read, vectors
from algorithms.phantom import Phantom

if TYPE_CHECKING:
    from algorithms.codecs.codec import Drawn
    from algorithms.worker import Tensor


def wire_bytes(codec: Codec, message: Message) -> int:
    """Return the bytes that are sent: the message, behind what it needs to be decoded."""
    return codec.agreed_elements(message) * message.itemsize + codec.wire_bytes(message)


def encoded(
    codec: Codec, x: Any, message: Message, drawn: Drawn, memory: tuple[Any, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what is sent and what is kept for the next message; a memory of None keeps nothing."""
    if isinstance(x, Phantom):
        return Phantom((wire_bytes(codec, message),), 1), ()
    scales = None
    if codec.agrees:
        x, scales = codec.agree(x, message)
    kept: tuple[Tensor, ...] = ()
    if memory is None:
        wire = codec.encode(x, message, drawn, scales)
    else:
        wire, kept = codec.compress(x, memory, message, drawn, scales)
    return (wire if scales is None else vectors(scales, wire)), kept


def decoded(codec: Codec, wire: Any, message: Message, dtype: Any, drawn: Drawn) -> Tensor:
    """Return what a message says."""
    if isinstance(wire, Phantom):
        return Phantom((message.elements,), message.itemsize)
    if not codec.agrees:
        return codec.decode(wire, message, dtype, drawn)
    count = codec.agreed_elements(message)
    scales = read(wire, 0, count, dtype)
    return codec.decode(wire[count * message.itemsize :], message, dtype, drawn, scales)


def encode_bytes(codec: Codec, message: Message, feedback: bool = True) -> float:
    """Return the bytes touched to encode, with a memory or without."""
    memory = 0 if feedback else 2 * codec.buffers * message.nbytes
    return codec.agree_bytes(message) + codec.encode_bytes(message) - memory


def decode_bytes(codec: Codec, message: Message) -> float:
    """Return the bytes touched to decode."""
    return codec.decode_bytes(dataclasses.replace(message, members=1))
