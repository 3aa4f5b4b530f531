"""The arithmetic that both clocks share, in one order, so that they give the same bits.

Gloo's all-reduce is a ring: a vector is cut into n chunks, and chunk c is summed as
x[c-2] + x[c-1], then x[c-3] + that, and so on down to x[c-n], with rank numbers modulo n. The simulator
sums in that order whatever pattern its timing uses. Floating-point addition commutes, so only the order
of accumulation matters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from algorithms.phantom import Phantom
from algorithms.worker import Reduction, Tensor

SEGMENT_BYTES = 2**20
"""Gloo's largest segment."""


ADDED_BY_NUMPY = (torch.float32, torch.float64)
"""Types whose sums NumPy forms as torch does, element by element in the type itself."""

SMALL = 2**16
"""Up to so many elements of all workers together, one gather is faster than going chunk by chunk."""


def chunk_elements(world_size: int, elements: int, itemsize: int) -> int:
    """Return the elements of each of the n chunks into which Gloo cuts a vector; the last may be shorter."""
    total = elements * itemsize
    segments = max(math.ceil(total / SEGMENT_BYTES), 2 * world_size)
    segments = math.ceil(segments / world_size) * world_size
    segment_elements = math.ceil(math.ceil(total / segments) / itemsize)
    return max(segment_elements * (segments // world_size), 1)


@functools.lru_cache(maxsize=64)
def ring_order(world_size: int, elements: int, itemsize: int) -> torch.Tensor:
    """Return which rank's element is added in which step of Gloo's ring all-reduce.

    Returns
    -------
    Tensor of shape [world_size, elements], int64: row k holds the rank whose element is the k-th summand.
    """
    chunk = torch.arange(elements) // chunk_elements(world_size, elements, itemsize)
    # Summands c-2 and c-1 come first, in either order, then c-3 down to c-n.
    steps = torch.arange(1, world_size + 1).unsqueeze(1)
    return (chunk - steps) % world_size


def ring_sum(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of equally long vectors, in Gloo's order, as a fresh tensor."""
    if len(tensors) == 1:
        return tensors[0].clone()
    if len(tensors) * tensors[0].numel() > SMALL:
        return _sum_by_chunks(tensors)
    stacked = torch.stack(list(tensors))
    ordered = stacked.gather(0, ring_order(len(tensors), stacked.shape[1], stacked.element_size()))
    if ordered.dtype in ADDED_BY_NUMPY and ordered.shape[1] > 1:
        # Row after row, in one call; only a single column would be added pairwise.
        return torch.from_numpy(np.add.reduce(ordered.numpy(), axis=0))
    rows = ordered.unbind()
    total = rows[0] + rows[1]
    for summand in rows[2:]:
        total += summand
    return total


def _sum_by_chunks(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the same sum without an index for every element."""
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
    if isinstance(gradient, torch.Tensor):
        return torch.sub(x, gradient, alpha=step_size)
    moved = x.clone()
    for (low, high), part in zip(bounds, gradient, strict=True):
        assert isinstance(part, torch.Tensor)
        moved[low:high].sub_(part, alpha=step_size)
    return moved
