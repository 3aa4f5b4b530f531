"""The arithmetic that both clocks share, in one order, so that they give the same bits.

Gloo's all-reduce is a ring: a vector is cut into n chunks, and chunk c is summed as
x[c-2] + x[c-1], then x[c-3] + that, and so on down to x[c-n], with rank numbers modulo n. The simulator
sums in that order whatever pattern its timing uses. Floating-point addition commutes, so only the order
of accumulation matters.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from algorithms.phantom import Phantom
from algorithms.worker import Reduction, Tensor

SEGMENT_BYTES = 2**20
"""Gloo's largest segment."""


ADDED_BY_NUMPY = (torch.float32, torch.float64)
"""Types whose sums NumPy forms as torch does, element by element in the type itself."""

IN_ROWS = 2**22
"""Elements of all workers together, of which two copies lie well in the processor's caches."""
IN_A_CALL = 2**13
"""Elements that are added in the time of a call."""


def chunk_elements(world_size: int, elements: int, itemsize: int) -> int:
    """Return the elements of each of the n chunks into which Gloo cuts a vector; the last may be shorter."""
    total = elements * itemsize
    segments = max(math.ceil(total / SEGMENT_BYTES), 2 * world_size)
    segments = math.ceil(segments / world_size) * world_size
    segment_elements = math.ceil(math.ceil(total / segments) / itemsize)
    return max(segment_elements * (segments // world_size), 1)


def ring_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of equally long vectors, in Gloo's order, as a fresh tensor."""
    if len(tensors) == 1:
        return tensors[0].clone()
    n, elements = len(tensors), tensors[0].numel()
    # Chunk by chunk takes n squared calls, row by row two more copies.
    few = n * elements <= min(IN_ROWS, n * n * IN_A_CALL)
    if few and tensors[0].dtype in ADDED_BY_NUMPY:
        return _sum_row_by_row(tensors)
    return _sum_by_chunks(tensors)


def _sum_row_by_row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum from views of all vectors, which lie twice behind each other, the last rank first.

    The k-th summand of chunk c is that of rank c-k-1, which lies in row n-c+k: in its own place, one row
    further for each summand and one back for each chunk.
    """
    n, elements = len(tensors), tensors[0].numel()
    rows = torch.cat(list(tensors)[::-1] * 2).numpy()
    item = rows.itemsize
    row, chunk = item * elements, chunk_elements(n, elements, item)
    whole, rest = divmod(elements, chunk)
    total = np.empty(elements, rows.dtype)
    summands: np.ndarray[Any, Any]
    if whole:
        shape, steps = (n, whole, chunk), (row, item * chunk - row, item)
        summands = np.ndarray(shape, rows.dtype, rows, n * row, steps)
        _add(summands, total[: whole * chunk].reshape(whole, chunk))
    if rest:
        begin = (n - whole) * row + item * whole * chunk
        summands = np.ndarray((n, rest), rows.dtype, rows, begin, (row, item))
        _add(summands, total[whole * chunk :])
    return torch.from_numpy(total)


def _add(summands: np.ndarray[Any, Any], total: np.ndarray[Any, Any]) -> None:
    """Add up along the first axis, one after another."""
    if total.size > 1:
        np.add.reduce(summands, axis=0, out=total)
    else:  # a single column would be added pairwise
        total[...] = np.add.accumulate(summands, axis=0)[-1]


def _sum_by_chunks(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum without a second copy of the vectors."""
    n, elements = len(tensors), tensors[0].numel()
    length = chunk_elements(n, elements, tensors[0].element_size())
    total = torch.empty_like(tensors[0])
    for chunk in range(math.ceil(elements / length)):
        part = slice(chunk * length, (chunk + 1) * length)
        summed = total[part]
        torch.add(tensors[(chunk - 1) % n][part], tensors[(chunk - 2) % n][part], out=summed)
        for step in range(3, n + 1):
            summed += tensors[(chunk - step) % n][part]
    return total


def weighted(x: torch.Tensor, share: float | None) -> torch.Tensor:
    """Return what a worker contributes to a mean, fresh: x, times its share where shares differ."""
    return x.clone() if share is None else x * share


def finished_mean(total: torch.Tensor, world_size: int, share: float | None) -> torch.Tensor:
    """Turn the sum of the contributions into the mean, in place: divided by n where shares are equal."""
    return total.div_(world_size) if share is None else total


def reduce(tensors: Sequence[torch.Tensor], op: Reduction, shares: Sequence[float] | None) -> torch.Tensor:
    """Return the all-reduce of all workers' vectors.

    Parameters
    ----------
    tensors
        One vector per rank of the group.
    op
        ``sum``, ``mean`` or ``max``.
    shares
        Weights of the mean, one per rank; None where they are equal.
    """
    if op == "max":
        return functools.reduce(torch.maximum, tensors).clone()
    if op == "sum":
        return ring_sum(tensors)
    if shares is None:
        return finished_mean(ring_sum(tensors), len(tensors), None)
    return ring_sum([weighted(x, share) for x, share in zip(tensors, shares, strict=True)])


def combination(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the linear combination of (coefficient, tensor) terms, summed in the order written."""
    coefficient, first = terms[0]
    total = first * coefficient
    for coefficient, tensor in terms[1:]:
        if isinstance(total, Phantom) or isinstance(tensor, Phantom):
            continue
        total.add_(tensor, alpha=coefficient)
    return total


def stepped(
    x: Tensor, gradient: Tensor | Sequence[Tensor], step_size: float, bounds: Sequence[tuple[int, int]]
) -> Tensor:
    """Return x - step size * gradient as a fresh tensor.

    Parameters
    ----------
    gradient
        A whole gradient, or its slices in the order of ``bounds``.
    bounds
        Slices [low, high) of the flat vector, one per bucket.
    """
    if isinstance(x, Phantom) or isinstance(gradient, Phantom):
        return x
    return torch.sub(x, joined(gradient, bounds), alpha=step_size)


def joined(gradient: Tensor | Sequence[Tensor], bounds: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return a gradient in one piece, which may be given in slices in the order of ``bounds``."""
    if isinstance(gradient, torch.Tensor):
        return gradient
    assert not isinstance(gradient, Phantom)
    in_place = sorted(zip(bounds, gradient, strict=True), key=operator.itemgetter(0))
    return torch.cat([cast("torch.Tensor", part) for _, part in in_place])
