"""What the benchmarks report beside pytest-benchmark's table."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what a benchmark recorded with `record_property`, one line a benchmark."""
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.user_properties and HERE.name in Path(report.nodeid).parts:
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {figures}")
