"""Epsilon against iterations and time: what the accountants say at a run's own samples."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms.private.accounting import epsilon
from analysis import report
from analysis.experiment import experiment
from analysis.privacy import MOST_BY_PRV, spent, spent_to_target
from analysis.speedup import measure, speedups
from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario

RATE = 4 * 10 / 48
"""Four workers take ten of 48 summands each."""


def scenario(algorithm: object, **sections: Any) -> Scenario:
    objective = {"kind": "quadratic-sum", "summands": 48, "dimension": 4, "L": 1.0, "mu": 0.5, "shift": 0.1}
    return Scenario(
        {
            "name": "private",
            "cluster": {"topology": {"builder": "switch", "gpus": 4}, "device": "ideal"},
            "workload": {
                "cost": {"parameters": 4, "batch": 10, "gradient": "1 s"},
                "objective": objective,
            },
            "algorithm": algorithm,
            "step-size": 0.5,
            "budget": {"iterations": 30},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(scenario({"name": "dp-psac", "noise": 2.0, "delta": 1e-4}))


def test_every_sample_has_the_accountants_epsilon(run: Run) -> None:
    found = spent(run)
    assert found is not None
    assert found.iteration == run.samples.iteration == [float(t) for t in range(1, 31)]
    assert found.time == run.samples.time
    assert found.rate == pytest.approx(RATE)
    assert found.epsilon == [epsilon("rdp", RATE, 2.0, t, 1e-4) for t in range(1, 31)]
    assert found.epsilon == sorted(found.epsilon)
    assert found.text() == (
        f"epsilon {found.epsilon[-1]:.4g} at delta 0.0001 after 30 iterations, by the RDP accountant for "
        "Poisson sampling with rate 0.8333 and noise 2 times the sensitivity"
    )


def test_the_slower_accountant_is_asked_at_some_samples_with_the_last() -> None:
    run = simulate(scenario({"name": "nsgd", "noise": 3.0, "accountant": "prv"}))
    found = spent(run)
    assert found is not None
    assert len(found.epsilon) == 10 <= MOST_BY_PRV
    assert found.iteration == [float(t) for t in range(3, 31, 3)]
    assert found.time == run.samples.time[2::3]
    assert found.epsilon[-1] == epsilon("prv", RATE, 3.0, 30, 1e-5)
    assert found.epsilon[-1] < epsilon("rdp", RATE, 3.0, 30, 1e-5)


def test_up_to_the_target_less_is_spent(run: Run) -> None:
    assert spent_to_target(run) == epsilon("rdp", RATE, 2.0, 30, 1e-4)
    reached = simulate(run.scenario.vary(target={"iterations": 12}))
    assert spent_to_target(reached) == epsilon("rdp", RATE, 2.0, 12, 1e-4)


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "svrg", {"name": "dp-sgd", "accountant": "none"}])
def test_who_promises_nothing_spends_nothing(algorithm: object) -> None:
    run = simulate(scenario(algorithm))
    assert spent(run) is None
    assert spent_to_target(run) is None
    table = speedups([run, simulate(run.scenario.reference())])
    assert "epsilon" not in table.headings()


def test_the_table_shows_it_where_it_is_promised(run: Run) -> None:
    row = measure(run, simulate(run.scenario.reference()))
    assert row.epsilon == spent_to_target(run)
    plain = simulate(scenario("allreduce-sgd"))
    table = speedups([run, simulate(run.scenario.reference()), plain, simulate(plain.scenario.reference())])
    column = table.headings().index("epsilon")
    assert [cells[column] for cells in table.cells()][::2] == [f"{row.epsilon:.4g}", "-"]
    assert table.notes()[-1] == (
        "Epsilon is the privacy that a run spent until its target, or in all where it reached none; "
        "smaller is more private."
    )
    assert table.to_dicts()[0]["epsilon"] == row.epsilon


def test_the_page_has_a_part_on_privacy() -> None:
    done = experiment(
        scenario(
            {"name": "dp-sgd", "noise": 2.0}, compare=["allreduce-sgd"], **{"step-size": {"grid": [0.2, 0.5]}}
        ),
        jobs=1,
    )
    page = report.report(done)
    assert "<h2>Privacy</h2>" in page
    assert '<div id="epsilon-time"' in page
    assert '<div id="epsilon-iterations"' in page
    assert "by the RDP accountant for Poisson sampling" in page
    assert "<dt>epsilon</dt>" in page
    assert "step sizes that are tried on the same samples spend more" in page
    assert done.summary()["table"][0]["epsilon"] == spent_to_target(done.entries[0].run)
    plain = report.report(experiment(scenario("allreduce-sgd"), jobs=1))
    assert "<h2>Privacy</h2>" not in plain
    assert "<dt>epsilon</dt>" not in plain
