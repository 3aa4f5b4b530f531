"""The objective's vector is cut at the fractions of the cost model's buckets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.workload.cutting import cut


def test_same_length_keeps_the_slices() -> None:
    bounds = ((70, 100), (20, 70), (0, 20))
    assert cut(bounds, 100, 100) == bounds


def test_edges_fall_on_the_nearest_element() -> None:
    # Edges 20 and 70 of 100 fall on 0.2 * 7 = 1.4 -> 1 and 0.7 * 7 = 4.9 -> 5.
    assert cut(((70, 100), (20, 70), (0, 20)), 100, 7) == ((5, 7), (1, 5), (0, 1))


def test_a_half_is_rounded_up() -> None:
    # Edge 1 of 2 falls on 2.5 of 5.
    assert cut(((1, 2), (0, 1)), 2, 5) == ((3, 5), (0, 3))


def test_a_short_vector_has_empty_slices() -> None:
    assert cut(((75, 100), (50, 75), (25, 50), (0, 25)), 100, 1) == ((1, 1), (1, 1), (0, 1), (0, 0))


def test_large_vectors_are_cut_in_whole_numbers() -> None:
    total = 10**18 + 1
    assert cut(((1, total), (0, 1)), total, total - 1) == ((1, total - 1), (0, 1))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (((5, 10), (0, 4)), "slices must cover [0, 10) once, but [5, 10) follows on 4"),
        (((4, 10), (0, 5)), "slices must cover [0, 10) once, but [4, 10) follows on 5"),
        (((4, 9), (0, 4)), "slices must cover [0, 10) once, but they end at 9"),
    ],
)
def test_gaps_and_overlaps_are_refused(bounds: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        cut(bounds, 10, 10)
    assert str(caught.value) == message


@given(
    edges=st.lists(st.integers(0, 10**6), max_size=12),
    total=st.integers(1, 10**6),
    elements=st.integers(0, 10**4),
)
def test_covers_the_vector_once_within_half_an_element(edges: list[int], total: int, elements: int) -> None:
    marks = sorted({0, total, *(edge for edge in edges if edge < total)})
    bounds = tuple(itertools.pairwise(marks))[::-1]
    pieces = cut(bounds, total, elements)
    covered = [element for low, high in reversed(pieces) for element in range(low, high)]
    assert covered == list(range(elements))
    for (low, _), (cut_low, _) in zip(bounds, pieces, strict=True):
        assert abs(cut_low - low * elements / total) <= 0.5 + 1e-6
