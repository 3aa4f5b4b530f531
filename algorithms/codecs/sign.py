"""Scaled sign with error feedback (EF-signSGD): one bit per coordinate and one scale per message.

    p = x + e,   send C(p) = (|p|_1 / d) sign(p),   e <- p - C(p)

The sign of zero is +1, as one bit has it. Bits are packed into words of 32, the lowest bit first; 1 is +1
and padding bits are 0. The scale, in the model's type, goes before them.

Source: Karimireddy, Rebjock, Stich and Jaggi, "Error feedback fixes signSGD and other gradient compression
schemes", ICML 2019, arXiv 1901.09847, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from algorithms.algorithm import parameter
from algorithms.codecs.codec import Codec, Message, pack, read, unpack, vectors

if TYPE_CHECKING:
    import torch

    from algorithms.codecs.codec import Drawn

WORD_BITS = 32
"""Bits are padded to whole words."""


@dataclass(frozen=True)
class ScaledSign(Codec):
    """Signs and the mean magnitude, with error feedback."""

    error_feedback: bool = parameter(True, "add what was lost to the next message")

    @property
    def feeds_back(self) -> bool:
        """Whether what was lost is added to the next message."""
        return self.error_feedback

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scale, then the packed signs."""
        import torch

        scale = (x.abs().sum() / message.elements).view(1)
        bits = torch.zeros(_padded(message), dtype=torch.int64, device=x.device)
        bits[: message.elements] = x >= 0
        return vectors(scale, pack(bits, 1))

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the scale times the signs."""
        bits = unpack(wire[dtype.itemsize :], message.elements, 1)
        return read(wire, 0, 1, dtype) * (2 * bits - 1).to(dtype)

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of the scale and of the words."""
        return message.itemsize + _padded(message) // 8

    def theoretical_bits(self, message: Message) -> float:
        """Return one bit per coordinate and an fp32 scale."""
        return message.elements + 32.0


def _padded(message: Message) -> int:
    """Return the bits of whole words."""
    return -(-message.elements // WORD_BITS) * WORD_BITS
