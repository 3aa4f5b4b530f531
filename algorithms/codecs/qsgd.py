"""QSGD: random rounding to s levels, without bias.

In each bucket of d' coordinates, with a scale that is the 2-norm (the paper's analysis) or the largest
magnitude (its experiments),

    Q_s(v)_i = scale sgn(v_i) xi_i,   xi_i = l / s or (l + 1) / s around |v_i| / scale,   E Q_s(v) = v

With the 2-norm, E |Q_s(v) - v|^2 <= min(d / s^2, sqrt(d) / s) |v|^2. It needs no error feedback. The paper
codes levels by Elias' codes; here 2 s + 1 values take a fixed width of b = ceil(log2(2 s + 1)) bits, packed,
behind one scale per bucket.

Source: Alistarh, Grubic, Li, Tomioka and Vojnovic, "QSGD: communication-efficient SGD via gradient
quantization and encoding", NeurIPS 2017, arXiv 1610.02132.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from algorithms.algorithm import parameter
from algorithms.codecs.codec import (
    Codec,
    Message,
    as_tensor,
    pack,
    packed_bytes,
    read,
    uniforms,
    unpack,
    vectors,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algorithms.codecs.codec import Drawn


@dataclass(frozen=True)
class QSGD(Codec):
    """Random rounding to levels of a bucket's scale."""

    levels: int = parameter(7, "levels above zero (s); 7 take 4 bits with the sign", minimum=1)
    bucket: int = parameter(
        512, "coordinates that share a scale; 0 is the whole message", unit="coordinates", minimum=0
    )
    scaling: Literal["norm", "max"] = parameter("norm", "scale of a bucket: its 2-norm or largest magnitude")

    @property
    def width(self) -> int:
        """Bits of a coordinate."""
        return (2 * self.levels).bit_length()

    def draw(self, message: Message, random: np.random.Generator) -> Drawn:
        """Return one uniform number per coordinate."""
        return uniforms(message, random)

    def _buckets(self, message: Message) -> tuple[int, int]:
        """Return the number of buckets and their length."""
        length = min(self.bucket or message.elements, message.elements)
        return -(-message.elements // length), length

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales, then the packed levels."""
        import torch

        count, length = self._buckets(message)
        # Zeros behind the end change neither the last bucket's norm nor its largest magnitude.
        padded = torch.zeros(count * length, dtype=x.dtype, device=x.device)
        padded[: len(x)] = x
        rows = padded.view(count, length)
        order = 2.0 if self.scaling == "norm" else math.inf
        scale = torch.linalg.vector_norm(rows, ord=order, dim=1, keepdim=True)
        scaled = self.levels * rows.abs() / torch.where(scale > 0, scale, 1.0)
        level, fraction = scaled.floor(), scaled - scaled.floor()
        chance = torch.ones(count * length, dtype=torch.float64, device=x.device)
        chance[: len(x)] = as_tensor(drawn).to(x.device)
        # The norm of one coordinate may round to less than its magnitude.
        level = (level + (chance.view(count, length) < fraction)).clamp_(max=self.levels)
        codes = torch.copysign(level, rows).view(-1)[: len(x)].to(torch.int64) + self.levels
        return vectors(scale.view(-1), pack(codes, self.width))

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return scale * level / s."""
        count, length = self._buckets(message)
        scale = read(wire, 0, count, dtype)
        codes = unpack(wire[count * dtype.itemsize :], message.elements, self.width) - self.levels
        per_element = scale.repeat_interleave(length)[: message.elements]
        return per_element * codes.to(dtype) / self.levels

    def contraction(self, message: Message) -> float:
        """Return 1 / (1 + w), with the paper's bound on the variance, which holds for either scale."""
        _, length = self._buckets(message)
        return 1 / (1 + min(length / self.levels**2, math.sqrt(length) / self.levels))

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of scales and packed levels."""
        count, _ = self._buckets(message)
        return count * message.itemsize + packed_bytes(message.elements, self.width)

    def theoretical_bits(self, message: Message) -> float:
        """Return the paper's bound on the expected bits with Elias coding, its o(1) left out."""
        count, length = self._buckets(message)
        ones = self.levels * (self.levels + math.sqrt(length))
        each = (3 + 1.5 * math.log2(2 * (self.levels**2 + length) / ones)) * ones + 32
        return count * each
