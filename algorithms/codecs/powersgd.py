"""PowerSGD: every matrix of a message as two factors of low rank, by one step of power iteration.

With M = x + e, the mean over workers by all-reduces, and Q from the message before (warm start),

    P <- mean of M Q,   orthonormal columns of P by Gram-Schmidt,   Q <- mean of M^T P
    all apply P Q^T,   e <- M - P Q^T

The residual is the local input minus the *global* output. Encoding is linear, so factors are summed: this
codec goes through two all-reduces, of P with all that is no matrix, which is averaged as it is, and of Q.
They carry r (n + m) elements for a matrix of n x m.

Matrices are those of the model's layers; a convolution's kernel is one of (outputs, everything else). Where
gradients go in buckets that cut a matrix, its whole rows in the bucket are the matrix and the rest is
averaged as it is. ``matrices: square`` takes the whole message as one near-square matrix instead, padded
with zeros, as torch's ``batched_powerSGD_hook`` does: it needs no layers, sends less and loses more. Every
matrix is compressed, also where that does not pay.

A column of P that vanishes stays zero, and its column of Q starts afresh from the first draw. Below full
column rank, rounding noise fills the missing columns; it hardly touches P Q^T.

Source: Vogels, Karimireddy and Jaggi, "PowerSGD: practical low-rank gradient compression for distributed
optimization", NeurIPS 2019, arXiv 1905.13727, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from algorithms.algorithm import parameter
from algorithms.codecs.codec import Codec, Message, Shape

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Matrix(NamedTuple):
    """A matrix in a message: its slice [low, high), its rows and columns, and the rank of its factors."""

    low: int
    high: int
    rows: int
    columns: int
    rank: int


@dataclass(frozen=True)
class PowerSGD(Codec):
    """Factors of low rank, with error feedback."""

    summable: ClassVar[bool] = True

    rank: int = parameter(2, "rank of the factors (r)", minimum=1)
    matrices: Literal["layers", "square"] = parameter(
        "layers", "what is compressed: the matrices of the layers, or each message as a near-square matrix"
    )
    warm_start: bool = parameter(True, "start from the factor of the message before, not from a new draw")

    def check(self, layers: Sequence[Shape]) -> None:
        """Refuse a model without matrices."""
        if self.matrices == "layers" and not any(_is_matrix(shape) for shape in layers):
            raise ValueError(
                "PowerSGD: the model's layers hold no matrix; with matrices: square each message is one"
            )

    @property
    def feeds_back(self) -> bool:
        """True: what the global output lacks is added to the next message."""
        return True

    def found(self, message: Message) -> tuple[Matrix, ...]:
        """Return the matrices of a message."""
        if self.matrices == "square":
            rows = math.isqrt(message.elements - 1) + 1
            columns = -(-message.elements // rows)
            return (Matrix(0, message.elements, rows, columns, min(self.rank, columns)),)
        return tuple(
            Matrix(low, high, shape[0], (high - low) // shape[0], self._rank(shape[0], high - low))
            for low, high, shape in message.spans
            if _is_matrix(shape)
        )

    def _rank(self, rows: int, elements: int) -> int:
        return min(self.rank, rows, elements // rows)

    def rest(self, message: Message) -> tuple[tuple[int, int], ...]:
        """Return the slices of a message that are averaged as they are."""
        if self.matrices == "square":
            return ()
        return tuple((low, high) for low, high, shape in message.spans if not _is_matrix(shape))

    # Values.

    def draw(self, message: Message, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the elements of the first Q of all matrices, [columns, rank] each."""
        return random.standard_normal(sum(m.columns * m.rank for m in self.found(message)))

    @property
    def draws_alike(self) -> bool:
        """True: Q is the same on all workers."""
        return True

    def corrected(self, x: torch.Tensor, memory: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the message with what the last one lacked."""
        return x + memory[0] if memory else x.clone()

    def first(self, corrected: torch.Tensor, q: torch.Tensor, message: Message) -> torch.Tensor:
        """Return what enters the first all-reduce: M Q of all matrices, then the rest."""
        import torch

        parts = [
            (_matrix(corrected, m) @ factor).reshape(-1)
            for m, factor in zip(self.found(message), self._factors(q, message, "columns"), strict=True)
        ]
        return torch.cat([*parts, *(corrected[low:high] for low, high in self.rest(message))])

    def second(
        self, corrected: torch.Tensor, mean_first: torch.Tensor, message: Message
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the orthonormal P of all matrices, and what enters the second all-reduce: M^T P."""
        import torch

        factors = [orthonormal(p) for p in self._factors(mean_first, message, "rows")]
        products = [
            (_matrix(corrected, m).t() @ p).reshape(-1)
            for m, p in zip(self.found(message), factors, strict=True)
        ]
        return _joined(factors, corrected), torch.cat(products) if products else corrected[:0].clone()

    def rebuilt(
        self,
        corrected: torch.Tensor,
        mean_first: torch.Tensor,
        p: torch.Tensor,
        mean_second: torch.Tensor,
        message: Message,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the global output, and what it lacks of the local input."""
        import torch

        output, error = torch.zeros_like(corrected), torch.zeros_like(corrected)
        left = self._factors(p, message, "rows")
        right = self._factors(mean_second, message, "columns")
        for m, rows, columns in zip(self.found(message), left, right, strict=True):
            output[m.low : m.high] = (rows @ columns.t()).reshape(-1)[: m.high - m.low]
            error[m.low : m.high] = corrected[m.low : m.high] - output[m.low : m.high]
        start = sum(m.rows * m.rank for m in self.found(message))
        for low, high in self.rest(message):
            output[low:high] = mean_first[start : start + high - low]
            start += high - low
        return output, error

    def renewed(self, q: torch.Tensor, start: torch.Tensor, message: Message) -> torch.Tensor:
        """Return the Q to start the next message from: a column that has vanished comes from the start."""
        import torch

        pairs = zip(
            self._factors(q, message, "columns"), self._factors(start, message, "columns"), strict=True
        )
        return _joined([torch.where(now.norm(dim=0) > 0, now, then) for now, then in pairs], q)

    def _factors(
        self, flat: torch.Tensor, message: Message, side: Literal["rows", "columns"]
    ) -> list[torch.Tensor]:
        """Return the factors of all matrices, [rows or columns, rank] each, from one flat vector."""
        factors, low = [], 0
        for m in self.found(message):
            length = m.rows if side == "rows" else m.columns
            # A copy, because the last bits of a product may depend on where its factors begin.
            factors.append(flat[low : low + length * m.rank].clone().view(length, m.rank))
            low += length * m.rank
        return factors

    # Sizes and time.

    def first_elements(self, message: Message) -> int:
        """Return the elements of the first all-reduce."""
        rest = sum(high - low for low, high in self.rest(message))
        return sum(m.rows * m.rank for m in self.found(message)) + rest

    def second_elements(self, message: Message) -> int:
        """Return the elements of the second all-reduce."""
        return sum(m.columns * m.rank for m in self.found(message))

    def first_bytes(self, message: Message) -> int:
        """Return the bytes of the first all-reduce."""
        return self.first_elements(message) * message.itemsize

    def second_bytes(self, message: Message) -> int:
        """Return the bytes of the second all-reduce."""
        return self.second_elements(message) * message.itemsize

    def wire_bytes(self, message: Message) -> int:
        """Return the bytes that a worker hands over to both all-reduces."""
        return self.first_bytes(message) + self.second_bytes(message)

    def theoretical_bits(self, message: Message) -> float:
        """Return the bits of both factors and the rest in fp32; nothing is coded."""
        return 32.0 * (self.first_elements(message) + self.second_elements(message))

    def product_bytes(self, message: Message) -> float:
        """Return the bytes touched by one product of the message with a factor."""
        return float(message.nbytes + self.wire_bytes(message))

    def encode_bytes(self, message: Message) -> float:
        """Return the bytes touched by the correction and two products."""
        return 3.0 * message.nbytes + 2 * self.product_bytes(message)

    def decode_bytes(self, message: Message) -> float:
        """Return the bytes touched by the last product, which writes the output, and by the residual."""
        return self.product_bytes(message) + 2.0 * message.nbytes


def _is_matrix(shape: Shape) -> bool:
    return len(shape) > 1 and shape[0] > 1 and math.prod(shape[1:]) > 1


def _matrix(corrected: torch.Tensor, m: Matrix) -> torch.Tensor:
    """Return a matrix of a message, padded with zeros where it is larger than its slice."""
    import torch

    whole = torch.zeros(m.rows * m.columns, dtype=corrected.dtype, device=corrected.device)
    whole[: m.high - m.low] = corrected[m.low : m.high]
    return whole.view(m.rows, m.columns)


def _joined(factors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return factors as one flat vector."""
    import torch

    return torch.cat([f.reshape(-1) for f in factors]) if factors else like[:0].clone()


def orthonormal(p: torch.Tensor) -> torch.Tensor:
    """Return orthonormal columns by modified Gram-Schmidt, done twice; a column that vanishes stays zero.

    What one pass leaves of a column in the span of those before it is rounding noise, which is not orthogonal
    to them until a second pass (Giraud, Langou and Rozloznik, 2005).
    """
    q = p.clone()
    for column in range(q.shape[1]):
        for _ in range(2):
            for before in range(column):
                q[:, column] -= (q[:, before] @ q[:, column]) * q[:, before]
            norm = q[:, column].norm()
            if norm > 0:
                q[:, column] /= norm
    return q
