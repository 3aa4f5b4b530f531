"""A measured run at another scale: closed forms of its time, and what is taken over."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.projection import scenario_like, simulate_like
from simulator.execution import execute
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario

SWITCH = {"builder": "switch", "gpus": 64}


@pytest.fixture(scope="module")
def run() -> Run:
    """A real run of one worker."""
    done = execute(
        Scenario(
            {
                "name": "measured",
                "cluster": {"topology": {"builder": "switch", "gpus": 1}, "device": "ideal"},
                "workload": {
                    "cost": {"parameters": 1000, "batch": 2, "gradient": "1 ms", "bucket-count": 2},
                    "objective": {"kind": "quadratic", "dimension": 400, "dtype": "float32"},
                },
                "algorithm": {"name": "local-sgd", "period": 2},
                "update": {"rule": "momentum", "schedule": {"kind": "cosine"}},
                "step-size": 0.1,
                "budget": {"iterations": 6},
                "seed": 4,
            }
        )
    )
    assert done is not None
    return done


def test_what_is_taken_over(run: Run) -> None:
    scenario = scenario_like(run, workers=64, topology=SWITCH)
    sections = scenario.sections
    assert (scenario.name, scenario.workers, scenario.seed) == ("measured-at-64", 64, 4)
    assert sections.algorithm.data() == run.scenario.sections.algorithm.data()
    assert (sections.update.name, sections.budget.iterations) == ("momentum", 6)
    assert scenario.objective is None
    # What was executed has 400 elements of 4 bytes, whatever the scenario's cost says.
    assert scenario.cost == run.profile().cost()
    assert scenario.cost.parameters == 400
    assert [entry.sigma for entry in scenario.stragglers] == [run.profile().sigma]  # type: ignore[union-attr]


def test_times_without_messages(run: Run) -> None:
    """On a transport that takes no time an iteration is a gradient and an update as they were measured."""
    free = {"name": "fixed", "all-reduce": "0 s", "exchange": "0 s"}
    predicted = simulate_like(run, workers=64, topology=SWITCH, jitter=False, iterations=10, transport=free)
    profile = run.profile()
    assert predicted.workers == 64
    assert predicted.iterations == (10,) * 64
    # The update was measured with its momentum, and is charged so again.
    assert profile.update_vectors == 5
    expected = profile.gradient + profile.update
    assert predicted.time_per_iteration == pytest.approx(expected, rel=1e-9)


def test_what_may_be_changed(run: Run) -> None:
    other: dict[str, Any] = {"algorithm": "allreduce-sgd", "stragglers": [], "transport": "gloo"}
    scenario = scenario_like(run, workers=4, topology={"builder": "switch", "gpus": 4}, **other)
    assert scenario.sections.algorithm.name == "allreduce-sgd"
    assert scenario.stragglers == ()
    with pytest.raises(BadInput) as caught:
        simulate_like(run, workers=64, topology=SWITCH, target={"loss": 0.1})
    assert str(caught.value) == "target: is not known of a measured run; simulate an objective instead"
    simulated = simulate_like(run, workers=2, topology=SWITCH, iterations=2)
    with pytest.raises(BadInput, match=r"^run: is simulated; only a run on the wall clock"):
        simulate_like(simulated, workers=64, topology=SWITCH)
