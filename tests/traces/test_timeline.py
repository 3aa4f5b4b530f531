"""A timeline keeps its spans in their order, whenever it is asked for them."""

from __future__ import annotations

from traces import COMPUTE, WAIT, Span, Timeline
from traces.timeline import PACKED_TOGETHER


def span(number: int) -> Span:
    kind, operation = (COMPUTE, "gradient") if number % 3 else (WAIT, "all_reduce")
    return Span(number % 7, kind, operation, 0.1 * number, 0.1 * number + 0.05, number % 5 - 1, 1e6, number)


def test_spans_come_back_in_their_order_also_between_additions() -> None:
    expected = [span(number) for number in range(3 * PACKED_TOGETHER + 10)]
    timeline = Timeline()
    for number, entry in enumerate(expected):
        if number in (0, 5, PACKED_TOGETHER, 2 * PACKED_TOGETHER + 3):
            assert timeline.spans == expected[:number]
            assert len(timeline) == number
        timeline.append(entry)
    assert len(timeline) == len(expected)
    assert timeline.spans == expected
    assert timeline.columns()["iteration"].tolist() == list(range(len(expected)))  # type: ignore[attr-defined]
