"""The figures of a comparison, which both suites have in their tables."""

from __future__ import annotations

import pytest

from analysis.validate import calibrated
from analysis.validate.result import Result, milliseconds, spread
from simulator.engine.simulate import simulate


def test_figures() -> None:
    assert Result("case", (0.32, 0.34), (0.2, 0.3, 0.4)).error == pytest.approx(0.1)
    assert spread((0.2, 0.3, 0.4)) == pytest.approx(1 / 3)
    assert spread((0.2,)) == 0
    assert milliseconds((0.2, 0.3, 0.4)) == "300.0 ms ± 33.3 %"
    assert milliseconds((0.2,), digits=3) == "200.000 ms"


def test_the_table_of_a_calibrated_machine() -> None:
    means = Result("d-psgd", (0.033,), (0.02, 0.03, 0.04))
    medians = Result("d-psgd", (0.03,), (0.02, 0.02))
    rows = calibrated.table("mlp", [calibrated.Compared(means, medians)]).splitlines()
    assert rows == [
        "| mlp | mean, simulated | measured | error | median, simulated | measured | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| d-psgd | 33.000 ms | 30.000 ms ± 33.3 % | +10.0 % | 30.000 ms | 20.000 ms ± 0.0 % | +50.0 % |",
    ]


def test_too_few_iterations_for_a_median(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrated.main(["--iterations", "4"]) == 2
    assert capsys.readouterr().err == "error: --iterations: must be above 4, got 4\n"


def test_the_median_of_iterations_is_not_moved_by_a_few() -> None:
    made = calibrated.scenario(
        {"topology": {"builder": "switch", "gpus": 2}, "device": "ideal", "transport": "ideal"},
        "mlp",
        {"name": "allreduce-sgd"},
        16 * calibrated.PERIOD + 1,
        2,
    )
    cost = {"parameters": 1, "batch": 1, "gradient": "1 s"}
    made = made.vary({"workload": {"cost": cost}, "step-size": None})
    assert calibrated.median(simulate(made)) == pytest.approx(1.0, rel=1e-4)
    burst = {"kind": "bursts", "fast": "30 s", "slow": "10 s", "slowdown": 3.0, "workers": [0]}
    slowed = simulate(made.vary(stragglers=[burst]))
    assert slowed.time_per_iteration > 1.1
    assert calibrated.median(slowed) == pytest.approx(1.0, rel=1e-4)
