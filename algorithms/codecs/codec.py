"""What a codec is: how a message is made smaller, what is lost, what it costs and how large it is.

A worker gives a message to a codec, which **encodes** it into bytes that are really sent, a flat ``uint8``
tensor of exactly :meth:`Codec.wire_bytes` bytes. The others **decode** it. What encoding loses may be kept
and added to the next message of the same part of the model, which is **error feedback**:

    p = x + e,   send C(p),   e <- p - C(p)        so that sum of sent + e = sum of x

Encoded messages cannot be added, as a rule: every worker gathers all of them and takes the mean of what it
decodes. A codec whose messages are linear in the input (:mod:`algorithms.codecs.powersgd`) is **summable**
and goes through all-reduces.

Two sizes stand side by side. The wire size counts what is sent by a format that is simple to pack; the
theoretical bits are what an ideal entropy coder would need, which is what papers quote for fp32 values.

Where the model in hand stands for a cost model of another length or type, what is charged is not the tensor
that is sent but the wire size of the cost model's own message, as a timing-only run sends it: most wire sizes
are not in proportion to the number of elements.

The cost of encoding and decoding is bound by memory bandwidth: it is counted in bytes touched, of the
message and of the wire. What depends on a message's values is a pure function of tensors, so that it may run
on a computation stream; random numbers are drawn before it.

Source of the pattern: Karimireddy, Rebjock, Stich and Jaggi, "Error feedback fixes signSGD and other
gradient compression schemes", ICML 2019; Xu et al., "GRACE: a compressed communication framework for
distributed machine learning", ICDCS 2021.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from algorithms.algorithm import check_parameters

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from algorithms.worker import Cost, Outline

    Drawn: TypeAlias = NDArray[np.float64] | NDArray[np.int64] | None

Shape: TypeAlias = tuple[int, ...]
"""Shape of a parameter of the model."""


@dataclass(frozen=True)
class Message:
    """What all members know of a message before they have it.

    Attributes
    ----------
    elements
        Its length.
    itemsize
        Bytes of an element.
    layers
        Shapes of the parameters in it, in order; empty where it is one vector.
    members
        Workers whose messages are averaged.
    number
        How many messages of the same part of the model there were before.
    stands_for
        The message of the cost model that is charged for this one, where that model is of another size.
    """

    elements: int
    itemsize: int = 4
    layers: tuple[Shape, ...] = ()
    members: int = 1
    number: int = 0
    stands_for: Message | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the message as it is."""
        return self.elements * self.itemsize

    @property
    def sized(self) -> Message:
        """The message whose size is charged: the one that this one stands for, else this one."""
        return self.stands_for or self

    def charged(self, size: Callable[[Message], float]) -> float | None:
        """Return the size that is charged; None where it is that of the tensor itself."""
        return None if self.stands_for is None else size(self.stands_for)

    def cost(self, size: Callable[[Message], float]) -> Cost:
        """Return what a computation on this message is charged, by the bytes that it touches of one."""
        nbytes = size(self.sized)
        return {"nbytes": nbytes, "charged": None if self.stands_for is None else nbytes}

    @property
    def spans(self) -> tuple[tuple[int, int, Shape], ...]:
        """Where each parameter lies in the message, [low, high), and its shape."""
        found, low = [], 0
        for shape in self.layers or ((self.elements,),):
            high = low + math.prod(shape)
            found.append((low, high, shape))
            low = high
        return tuple(found)


def within(layers: Sequence[Shape], low: int, high: int) -> tuple[Shape, ...]:
    """Return the shapes of what lies in a slice of the flat vector.

    Of a matrix that the slice cuts, the whole rows inside stay a matrix and the rest become vectors.
    """
    found: list[Shape] = []
    start = 0
    for shape in layers:
        end = start + math.prod(shape)
        first, last = max(low, start), min(high, end)
        if first < last:
            found += [shape] if last - first == end - start else _cut(shape, first - start, last - start)
        start = end
    return tuple(found)


def stood_for(message: Message, outline: Outline | None, place: tuple[int, int] | None) -> Message:
    """Return a message with the one that it stands for, which is a slice of the cost model."""
    if outline is None or place is None:
        return message
    low, high = place
    larger = dataclasses.replace(
        message, elements=high - low, itemsize=outline.itemsize, layers=within(outline.layers, low, high)
    )
    return dataclasses.replace(message, stands_for=larger)


def _cut(shape: Shape, low: int, high: int) -> list[Shape]:
    """Return the shapes of a part [low, high) of one parameter."""
    row = math.prod(shape[1:])
    top, bottom = -(-low // row), high // row
    if len(shape) == 1 or bottom <= top:
        return [(high - low,)]
    pieces: list[Shape] = [(top * row - low,), (bottom - top, *shape[1:]), (high - bottom * row,)]
    return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True)
class Codec:
    """Base of all codecs: parameters as fields, as of an algorithm.

    Class attributes
    ----------------
    summable
        Whether encoded messages may be added, so that they go through all-reduces.
    agrees
        Whether all members first agree on something, in an all-reduce of the largest values.
    gradients_only
        Whether it makes sense for gradients alone, not for differences of models.
    """

    summable: ClassVar[bool] = False
    agrees: ClassVar[bool] = False
    gradients_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_parameters(self)

    @classmethod
    def takes(cls, compressed: str) -> bool:
        """Return whether this codec can stand before what an algorithm ``compresses``."""
        if not compressed or (cls.gradients_only and "gradients" not in compressed):
            return False
        return not cls.summable or compressed in ("gradients", "models")

    def check(self, layers: Sequence[Shape]) -> None:
        """Refuse a model that this codec cannot do, with one sentence."""

    # What it keeps, and what it draws.

    @property
    def buffers(self) -> int:
        """Model-sized vectors kept from message to message."""
        return int(self.feeds_back)

    @property
    def feeds_back(self) -> bool:
        """Whether what encoding loses is added to the next message."""
        return False

    @property
    def draws_alike(self) -> bool:
        """Whether all workers draw the same random numbers, so that none of them are sent."""
        return False

    def draw(self, message: Message, random: np.random.Generator) -> Drawn:
        """Return the random numbers that a message takes; by default none."""
        return None

    # Values.

    def agree(self, x: torch.Tensor, message: Message) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is encoded, and the values of which all members take the largest."""
        raise TypeError(f"{type(self).__name__} agrees on nothing before it encodes")

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the message as it is sent: a flat uint8 tensor of :meth:`wire_bytes` bytes."""
        raise TypeError(f"{type(self).__name__} has no encoding of its own")

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what a sent message says, of the message's length."""
        raise TypeError(f"{type(self).__name__} has no decoding of its own")

    def compress(
        self,
        x: torch.Tensor,
        memory: tuple[torch.Tensor, ...],
        message: Message,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return what is sent of a message, and what is kept for the next one.

        Parameters
        ----------
        memory
            What was kept of the message before; empty at first.
        """
        if not self.feeds_back:
            return self.encode(x, message, drawn, agreed), ()
        corrected = x + memory[0] if memory else x
        wire = self.encode(corrected, message, drawn, agreed)
        return wire, (corrected - self.decode(wire, message, x.dtype, drawn, agreed),)

    def contraction(self, message: Message) -> float:
        """Return what to multiply a message by, so that it is nearer to what it stands for than zero is.

        That is 1 / (1 + w) for rounding without bias whose variance is at most w |x|^2, and 1 for codecs
        that lose a part of their input.
        """
        return 1.0

    # Sizes.

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes that a worker hands over for a message."""
        raise TypeError(f"{type(self).__name__} says no wire size")

    def agreed_elements(self, message: Message) -> int:
        """Return the elements that go through the all-reduce before, where the codec agrees."""
        return 0

    def theoretical_bits(self, message: Message) -> float:
        """Return the bits of a message for an ideal coder, its values in fp32."""
        raise TypeError(f"{type(self).__name__} says no theoretical size")

    # Time.

    @property
    def encode_passes(self) -> float:
        """How often a message's length is read or written to encode it, error feedback apart."""
        return 2.0

    def agree_bytes(self, message: Message) -> float:
        """Return the bytes that :meth:`agree` touches."""
        return 0.0

    def encode_bytes(self, message: Message) -> float:
        """Return the bytes touched to encode: the passes, the memory read and written, the wire."""
        passes = self.encode_passes + 2 * self.buffers
        return passes * message.nbytes + self.wire_bytes(message)

    def touched(self, message: Message) -> int:
        """Return how many elements of the mean a decoded message changes."""
        return message.elements

    def decode_bytes(self, message: Message) -> float:
        """Return the bytes touched to decode all members' messages and take their mean."""
        each = self.wire_bytes(message) + 2 * self.touched(message) * message.itemsize
        return message.members * each + message.nbytes


def vectors(*parts: torch.Tensor) -> torch.Tensor:
    """Join tensors of any types into one wire of bytes."""
    import torch

    return torch.cat([part.contiguous().view(torch.uint8) for part in parts])


def read(wire: torch.Tensor, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return ``count`` elements of a type that begin at a byte of a wire."""
    # A copy starts where any type may start.
    return wire[start : start + count * dtype.itemsize].clone().view(dtype)


def packed_bytes(elements: int, width: int) -> int:
    """Return the bytes of codes of ``width`` bits, packed without gaps and padded to a whole byte."""
    return -(-elements * width // 8)


def pack(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Pack integers of ``width`` bits, the lowest bit first, code after code; padding bits are 0."""
    import torch

    length = packed_bytes(len(codes), width)
    bits = torch.zeros(8 * length, dtype=torch.uint8, device=codes.device)
    shifts = torch.arange(width, device=codes.device)
    bits[: len(codes) * width] = ((codes.unsqueeze(1) >> shifts) & 1).reshape(-1).to(torch.uint8)
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=codes.device)
    return (bits.view(length, 8) * places).sum(dim=1).to(torch.uint8)


def unpack(wire: torch.Tensor, elements: int, width: int) -> torch.Tensor:
    """Give back packed codes as int64."""
    import torch

    eight = torch.arange(8, device=wire.device)
    bits = (wire.unsqueeze(1).to(torch.int64) >> eight & 1).reshape(-1)[: elements * width]
    places = torch.arange(width, device=wire.device)
    return (bits.view(elements, width) << places).sum(dim=1)


def uniforms(message: Message, random: np.random.Generator) -> NDArray[np.float64]:
    """Return one uniform number per element."""
    return random.random(message.elements)


def as_tensor(drawn: Any) -> torch.Tensor:
    """Return drawn numbers as a tensor."""
    import torch

    return torch.from_numpy(drawn)
