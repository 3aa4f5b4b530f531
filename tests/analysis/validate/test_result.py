"""The figures of a comparison, which both suites have in their tables."""

from __future__ import annotations

import pytest

from analysis.validate import calibrated
from analysis.validate.result import Result, milliseconds, spread


def test_figures() -> None:
    assert Result("case", (0.32, 0.34), (0.2, 0.3, 0.4)).error == pytest.approx(0.1)
    assert spread((0.2, 0.3, 0.4)) == pytest.approx(1 / 3)
    assert spread((0.2,)) == 0
    assert milliseconds((0.2, 0.3, 0.4)) == "300.0 ms ± 33.3 %"
    assert milliseconds((0.2,), digits=3) == "200.000 ms"


def test_the_table_of_a_calibrated_machine() -> None:
    rows = calibrated.table("mlp", [Result("d-psgd", (0.033,), (0.02, 0.03, 0.04))]).splitlines()
    assert rows == [
        "| mlp | simulated | measured | error |",
        "|---|---:|---:|---:|",
        "| d-psgd | 33.000 ms | 30.000 ms ± 33.3 % | +10.0 % |",
    ]
