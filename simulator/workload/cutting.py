"""Cutting one vector at the fractions of another: the buckets of the cost model on the objective's vector.

A workload's cost and its objective may differ in size. The cost model's buckets are slices of its own flat
parameter vector; the objective's flat vector is cut at the same fractions, on both clocks alike. An edge e
of a vector of length ``total`` falls on round(e / total * elements), halves rounded up, in whole numbers:

    edge(e) = floor((2 e elements + total) / (2 total))

which is monotone in e, maps 0 to 0 and ``total`` to ``elements``. So slices that cover the one vector
exactly once do so on the other; on a much shorter vector some of them are empty.
"""

from __future__ import annotations

from collections.abc import Sequence


def cut(bounds: Sequence[tuple[int, int]], total: int, elements: int) -> tuple[tuple[int, int], ...]:
    """Return the slices of a vector that lie at the same fractions as given slices of another.

    Parameters
    ----------
    bounds
        Slices [low, high) of the first vector, in any order, together the whole of it.
    total
        Length of the first vector, at least 1.
    elements
        Length of the second vector.

    Returns
    -------
    Slices [low, high) of the second vector, in the order of ``bounds``; some may be empty.

    Raises
    ------
    ValueError
        The slices do not cover the first vector exactly once.
    """
    reach = 0
    for low, high in sorted(bounds):
        if low != reach or high < low:
            raise ValueError(f"slices must cover [0, {total}) once, but [{low}, {high}) follows on {reach}")
        reach = high
    if reach != total or total < 1:
        raise ValueError(f"slices must cover [0, {total}) once, but they end at {reach}")

    def edge(position: int) -> int:
        return (2 * position * elements + total) // (2 * total)

    return tuple((edge(low), edge(high)) for low, high in bounds)
