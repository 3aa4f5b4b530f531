"""Top-k and random-k: a few coordinates are sent, the others wait in the residual.

With k = ceil(density * d) of a message's d coordinates, p = x + e,

    top-k     sends the k largest magnitudes of p; of equal ones the lower index first
    random-k  sends k coordinates at random, as they are (not times d / k, as error feedback makes up for it)
    e <- p - what was sent

Values go in the model's type, followed by int32 indices in ascending order. Where all workers draw the same
coordinates, random-k sends no indices.

Source: Stich, Cordonnier and Jaggi, "Sparsified SGD with memory", NeurIPS 2018, arXiv 1809.07599; Aji and
Heafield, "Sparse communication for distributed gradient descent", EMNLP 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from algorithms.algorithm import parameter
from algorithms.codecs.codec import Codec, Message, as_tensor, read, vectors

if TYPE_CHECKING:
    import numpy as np
    import torch

    from algorithms.codecs.codec import Drawn

INDEX_BYTES = 4
"""Bytes of an index."""


def check_density(name: str, density: float) -> None:
    """Refuse a density that is no part of a message.

    Raises
    ------
    ValueError
        One sentence.
    """
    if not 0 < density <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {density!r}")


def kept(elements: int, density: float) -> int:
    """Return how many of so many coordinates a density keeps."""
    return math.ceil(density * elements)


def largest(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the largest magnitudes, ascending; of equal ones the lower index first."""
    import torch

    order = torch.sort(x.abs(), descending=True, stable=True).indices
    return order[:count].sort().values


def sparse(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the wire of some coordinates: values, then indices."""
    import torch

    return vectors(x[indices], indices.to(torch.int32))


def dense(wire: torch.Tensor, count: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the vector that a wire of values and indices says."""
    import torch

    values = read(wire, 0, count, dtype)
    indices = read(wire, count * dtype.itemsize, count, torch.int32).to(torch.int64)
    decoded = torch.zeros(elements, dtype=dtype, device=wire.device)
    decoded[indices] = values
    return decoded


def sparse_bytes(count: int, itemsize: int) -> int:
    """Return the bytes of so many values and their indices."""
    return count * (itemsize + INDEX_BYTES)


def sparse_bits(count: int, elements: int) -> float:
    """Return the bits of so many fp32 values and of the choice of their coordinates."""
    ways = math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)
    return 32 * count + ways / math.log(2)


@dataclass(frozen=True)
class TopK(Codec):
    """The largest coordinates, with error feedback."""

    density: float = parameter(0.01, "part of a message that is sent")
    error_feedback: bool = parameter(True, "add what was not sent to the next message")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density("density", self.density)

    @property
    def feeds_back(self) -> bool:
        """Whether what was not sent is added to the next message."""
        return self.error_feedback

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return values and indices."""
        return sparse(x, largest(x, kept(message.elements, self.density)))

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the values at their indices, zero elsewhere."""
        return dense(wire, kept(message.elements, self.density), message.elements, dtype)

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of values and indices."""
        return sparse_bytes(kept(message.elements, self.density), message.itemsize)

    def theoretical_bits(self, message: Message) -> float:
        """Return the bits of the values and of the choice."""
        return sparse_bits(kept(message.elements, self.density), message.elements)

    def touched(self, message: Message) -> int:
        """Return k."""
        return kept(message.elements, self.density)


@dataclass(frozen=True)
class RandomK(Codec):
    """Random coordinates, with error feedback."""

    density: float = parameter(0.01, "part of a message that is sent")
    alike: bool = parameter(True, "all workers draw the same coordinates, so that no indices are sent")
    error_feedback: bool = parameter(True, "add what was not sent to the next message")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density("density", self.density)

    @property
    def feeds_back(self) -> bool:
        """Whether what was not sent is added to the next message."""
        return self.error_feedback

    @property
    def draws_alike(self) -> bool:
        """Whether all workers draw the same coordinates."""
        return self.alike

    def draw(self, message: Message, random: np.random.Generator) -> Drawn:
        """Return k different indices, ascending."""
        import numpy as np

        count = kept(message.elements, self.density)
        return np.sort(random.choice(message.elements, count, replace=False))

    def encode(
        self, x: torch.Tensor, message: Message, drawn: Drawn = None, agreed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the values, and the indices unless all know them."""
        indices = as_tensor(drawn).to(x.device)
        return vectors(x[indices]) if self.alike else sparse(x, indices)

    def decode(
        self,
        wire: torch.Tensor,
        message: Message,
        dtype: torch.dtype,
        drawn: Drawn = None,
        agreed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the values at their indices, zero elsewhere."""
        import torch

        count = kept(message.elements, self.density)
        if not self.alike:
            return dense(wire, count, message.elements, dtype)
        decoded = torch.zeros(message.elements, dtype=dtype, device=wire.device)
        decoded[as_tensor(drawn).to(wire.device)] = read(wire, 0, count, dtype)
        return decoded

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes of values, and of indices unless all know them."""
        count = kept(message.elements, self.density)
        return count * message.itemsize if self.alike else sparse_bytes(count, message.itemsize)

    def theoretical_bits(self, message: Message) -> float:
        """Return the bits of the values, and of the choice unless all know it."""
        count = kept(message.elements, self.density)
        return 32.0 * count if self.alike else sparse_bits(count, message.elements)

    def touched(self, message: Message) -> int:
        """Return k."""
        return kept(message.elements, self.density)

    @property
    def encode_passes(self) -> float:
        """One, for reading the message; only chosen coordinates are written."""
        return 1.0
