"""TernGrad: gradients of three values, with a scale that all workers share.

Layer by layer, worker i clips its gradient to c standard deviations around zero; all agree on the largest
magnitude s of any worker; then

    t_i = sign(g_i) b_i,   P(b_i = 1) = |g_i| / s,       x <- x - step size * s * mean of t_i

Because s is shared, the mean of M workers has at most 2 M + 1 values per layer. A value takes 2 bits on the
wire, log2(3) in theory; the scales are one all-reduce of one element per layer. A layer is what a message
holds of one parameter of the model.

Source: Wen, Xu, Yan, Wu, Wang, Chen and Li, "TernGrad: ternary gradients to reduce communication in
distributed deep learning", NeurIPS 2017, arXiv 1705.07878. The public code keeps the three values in
floating point and sends them so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from algorithms.algorithm import parameter
from algorithms.codecs.codec import Codec, Message, as_tensor, pack, packed_bytes, uniforms, unpack

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algorithms.codecs.codec import Drawn

WIDTH = 2
"""Bits of a value."""


@dataclass(frozen=True)
class TernGrad(Codec):
    """Random rounding to three values times a shared scale."""

    agrees: ClassVar[bool] = True

    clip: float = parameter(
        2.5, "where a layer is clipped (c); 0: nowhere", unit="standard deviations", minimum=0.0
    )

    def draw(self, message: Message, random: np.random.Generator) -> Drawn:
        """Return one uniform number per coordinate."""
        return uniforms(message, random)

    def agree(self, x: torch.Tensor, message: Message) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clipped layers and their largest magnitudes."""
        import torch

        parts = [x[low:high] for low, high, _ in message.spans]
        if self.clip:
            limits = [self.clip * part.std(correction=0) for part in parts]
            parts = [
                torch.clamp(part, min=-limit, max=limit) for part, limit in zip(parts, limits, strict=True)
            ]
        return torch.cat(parts), torch.stack([part.abs().max() for part in parts])

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the packed values."""
        import torch

        scale = self._per_element(message, agreed)
        kept = as_tensor(drawn).to(x.device) * scale < x.abs()
        return pack(torch.where(kept, torch.sign(x), 0.0).to(torch.int64) + 1, WIDTH)

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the values times the shared scales."""
        values = unpack(wire, message.elements, WIDTH) - 1
        return values.to(dtype) * self._per_element(message, agreed)

    def _per_element(self, message: Message, agreed: torch.Tensor | None) -> torch.Tensor:
        import torch

        assert agreed is not None
        lengths = torch.tensor([high - low for low, high, _ in message.spans], device=agreed.device)
        return agreed.repeat_interleave(lengths)

    def contraction(self, message: Message) -> float:
        """Return 1 / (1 + w); s |g|_1 - |g|^2 is the variance of a layer, so that w <= sqrt(d)."""
        return 1 / (1 + math.sqrt(max(high - low for low, high, _ in message.spans)))

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of the packed values."""
        return packed_bytes(message.elements, WIDTH)

    def agreed_elements(self, message: Message) -> int:
        """Return the number of layers."""
        return len(message.spans)

    def theoretical_bits(self, message: Message) -> float:
        """Return log2(3) bits per value and an fp32 scale per layer."""
        return math.log2(3) * message.elements + 32 * len(message.spans)

    def agree_bytes(self, message: Message) -> float:
        """Return the bytes of reading for the deviation, clipping and writing."""
        return 3.0 * message.nbytes

    @property
    def encode_passes(self) -> float:
        """One: rounding reads each coordinate once."""
        return 1.0
