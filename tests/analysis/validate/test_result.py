"""The figures of a comparison, which both suites have in their tables."""

from __future__ import annotations

import pytest

from analysis.validate import calibrated
from analysis.validate.result import Result


def test_figures() -> None:
    result = Result("case", 0.33, (0.2, 0.3, 0.4))
    assert result.mean == pytest.approx(0.3)
    assert result.spread == pytest.approx(1 / 3)
    assert result.error == pytest.approx(0.1)
    assert Result("case", 0.3, (0.2,)).spread == 0


def test_the_table_of_a_calibrated_machine() -> None:
    rows = calibrated.table("mlp", [Result("d-psgd", 0.033, (0.02, 0.03, 0.04))]).splitlines()
    assert rows == [
        "| mlp | simulated | measured | spread | error |",
        "|---|---:|---:|---:|---:|",
        "| d-psgd | 33.000 ms | 30.000 ms | 33.3 % | +10.0 % |",
    ]
