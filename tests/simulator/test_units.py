from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.units import UNITS, format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("25 Gbps", "B/s", 25e9 / 8),
        ("25Gbit/s", "B/s", 25e9 / 8),
        ("12 GB/s", "B/s", 12e9),
        ("3 GiB/s", "B/s", 3 * 2**30),
        ("102 MB", "B", 102e6),
        ("1 MiB", "B", 2**20),
        ("8 Kib", "B", 1024),
        ("5 us", "s", 5e-6),
        ("5 µs", "s", 5e-6),
        ("1.5e-3 s", "s", 1.5e-3),
        ("2 h", "s", 7200.0),
        ("10.6 TFLOP/s", "FLOP/s", 10.6e12),
        (0, "s", 0.0),
        ("inf", "s", float("inf")),
        (float("inf"), "B/s", float("inf")),
    ],
)
def test_parse(text: object, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("25", "B/s", "'25' has no unit; write it like '25 Gbps'"),
        (25, "B", "'25' has no unit; write it like '102 MB'"),
        ("fast", "B/s", "'fast' is not a quantity; write it like '25 Gbps'"),
        (True, "s", "True is not a quantity; write it like '5 us'"),
        (None, "s", "None is not a quantity; write it like '5 us'"),
        ("25 Gbsp", "B/s", "'Gbsp' in '25 Gbsp' is not a unit of bandwidth; the nearest is 'Gbps'"),
        ("25 sec", "s", "'sec' in '25 sec' is not a unit of time; the nearest is 's'"),
        ("nan s", "s", "'nan s' is not a quantity; write it like '5 us'"),
    ],
)
def test_refused(text: object, dimension: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|unit") as caught:
        parse_quantity(text, dimension)
    assert str(caught.value) == message


@given(st.floats(1e-9, 1e15), st.sampled_from(sorted(UNITS)))
def test_a_written_number_reads_back(value: float, dimension: str) -> None:
    assert parse_quantity(f"{value!r} {dimension}", dimension) == value


@given(st.floats(1e-8, 1e15), st.sampled_from(sorted(UNITS)))
def test_formatted_text_is_close_and_has_a_unit(value: float, dimension: str) -> None:
    assert parse_quantity(format_quantity(value, dimension, digits=6), dimension) == pytest.approx(
        value, rel=1e-5
    )


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (6.123e9, "B/s", "6.123 GB/s"),
        (0.0412, "s", "41.2 ms"),
        (0.0, "s", "0 s"),
        (75.0, "s", "75 s"),
        (512.0, "B", "512 B"),
        (999.96e-6, "s", "1 ms"),
        (-999.96e-9, "s", "-1 us"),
        (999.96e6, "B/s", "1 GB/s"),
    ],
)
def test_format(value: float, dimension: str, text: str) -> None:
    assert format_quantity(value, dimension) == text
