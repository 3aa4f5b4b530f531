"""Deep Gradient Compression: top-k of accumulated momentum.

On worker i, for each message g_i, with the threshold C of clipping divided by sqrt(M),

    g_i <- g_i min(1, C / (sqrt(M) |g_i|))                 local gradient clipping
    u_i <- m u_i + g_i,   v_i <- v_i + u_i                 momentum correction
    send the k largest magnitudes of v_i;  v_i <- 0 there  and, with masking, u_i <- 0 there
    x <- x - step size * mean of what was sent

The momentum is the codec's own, so the run's update rule should be plain SGD. In a warm-up the density falls
from stage to stage, an epoch each in the paper. Selection is exact here; the public code estimates the
threshold on a sample. A message is a bucket where the gradient goes in buckets: clipping and selection are
then bucket by bucket, as the public code does them tensor by tensor.

Without momentum, clipping and masking this is top-k with error feedback.

Source: Lin, Han, Mao, Wang and Dally, "Deep gradient compression: reducing the communication bandwidth for
distributed training", ICLR 2018, arXiv 1712.01887; the scaling of the threshold and the warm-up densities by
its public code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from algorithms.algorithm import ABOVE_ZERO, parameter
from algorithms.codecs.codec import Codec, Message
from algorithms.codecs.topk import dense, kept, largest, sparse, sparse_bits, sparse_bytes

if TYPE_CHECKING:
    import torch

    from algorithms.codecs.codec import Drawn

SMALLEST_NORM = 1e-300
"""Keeps the clipping of a zero gradient defined."""


@dataclass(frozen=True)
class DGC(Codec):
    """The largest coordinates of accumulated momentum."""

    gradients_only: ClassVar[bool] = True

    density: float = parameter(
        0.001, "part of a message that is sent after the warm-up", above=0.0, maximum=1.0
    )
    momentum: float = parameter(0.9, "momentum before the selection (m)", minimum=0.0, below=1.0)
    clip: float = parameter(
        0.0, "largest norm of the mean gradient (C); 0: no clipping", unit="the gradient's unit", minimum=0.0
    )
    masking: bool = parameter(True, "forget the momentum of coordinates that are sent")
    warm_up: tuple[float, ...] = parameter(
        (0.25, 0.063, 0.015, 0.004),
        "densities of the warm-up's stages, each above 0 and at most 1",
        where={"stage": ABOVE_ZERO},
    )
    stage: int = parameter(
        0, "length of each stage of the warm-up; 0: no warm-up", unit="iterations", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for density in self.warm_up:
            if not 0 < density <= 1:
                raise ValueError(f"a warm-up density must be above 0 and at most 1, got {density!r}")

    @property
    def feeds_back(self) -> bool:
        """True: what was not sent stays in v."""
        return True

    @property
    def buffers(self) -> int:
        """Two: momentum and what it has accumulated to."""
        return 2

    def _count(self, message: Message) -> int:
        """Return the k of a message."""
        stage = message.number // self.stage if self.stage else len(self.warm_up)
        return kept(message.elements, (*self.warm_up, self.density)[min(stage, len(self.warm_up))])

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the largest values and their indices."""
        return sparse(x, largest(x, self._count(message)))

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the values at their indices, zero elsewhere."""
        return dense(wire, self._count(message), message.elements, dtype)

    def compress(
        self,
        x: torch.Tensor,
        memory: tuple[torch.Tensor, ...],
        message: Message,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return what is sent of the accumulated momentum, and (u, v)."""
        if self.clip:
            norm = max(float(x.norm()), SMALLEST_NORM)
            x = x * min(1.0, self.clip / math.sqrt(message.members) / norm)
        u = self.momentum * memory[0] + x if memory else x.clone()
        v = memory[1] + u if memory else u.clone()
        indices = largest(v, self._count(message))
        wire = sparse(v, indices)
        v[indices] = 0.0
        if self.masking:
            u[indices] = 0.0
        return wire, (u, v)

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of values and indices."""
        return sparse_bytes(self._count(message), message.itemsize)

    def theoretical_bits(self, message: Message) -> float:
        """Return the bits of the values and of the choice."""
        return sparse_bits(self._count(message), message.elements)

    def touched(self, message: Message) -> int:
        """Return k."""
        return self._count(message)

    @property
    def encode_passes(self) -> float:
        """Three: the message is read, and v twice more for the selection; clipping reads it once before."""
        return 4.0 if self.clip else 3.0
