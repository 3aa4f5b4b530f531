"""What a real run measured, from spans whose mean, spread and quantiles are known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from simulator.observation import Observation, Samples
from simulator.parts import BadInput
from simulator.profile import Profile
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.stragglers import LognormalJitter
from simulator.workload import GivenCost
from traces import COMPUTE, TRANSFER, Span, Timeline


@pytest.fixture
def run() -> Run:
    """Two workers; the first gradients take 9 s and do not count; the second worker is half as fast."""
    scenario = Scenario(
        {
            "name": "measured",
            "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "ideal"},
            "workload": {"cost": {"parameters": 100, "batch": 4, "gradient": "5 s", "bucket-count": 3}},
            "algorithm": "allreduce-sgd",
            "budget": {"iterations": 5},
        }
    )
    spans, observations = [], []
    for worker, scale in ((0, 1.0), (1, 2.0)):
        time = 0.0
        for iteration, seconds in enumerate((9.0, 1.0, 2.0, 3.0, 2.0), 1):
            end = time + seconds * scale
            spans.append(Span(worker, COMPUTE, "gradient", time, end, iteration=iteration))
            spans.append(Span(worker, TRANSFER, "all_reduce", end, end + 4.0, iteration=iteration))
            spans.append(Span(worker, COMPUTE, "update", end + 4.0, end + 4.5, iteration=iteration))
            for name, part in (("load", 0.1), ("forward", 0.2)):
                value = part * seconds * scale
                observations.append(Observation(name, worker, end, iteration, value))
            time = end + 4.5
    return Run(
        scenario=scenario,
        clock="wall",
        duration=50.0,
        iterations=(5, 5),
        bytes_sent=(0.0, 0.0),
        timeline=Timeline(spans),
        samples=Samples(),
        observations=observations,
    )


def test_means_quantiles_and_fit(run: Run) -> None:
    profile = run.profile()
    # Over their worker's mean both are 0.5, 1, 1, 1.5.
    assert dataclasses.asdict(profile) == {
        "parameters": 100,
        "batch": 4,
        "bucket_count": 3,
        "gradient": pytest.approx(3.0),
        "forward_share": pytest.approx(0.3),
        "load": pytest.approx(0.3),
        "update": pytest.approx(0.5),
        "update_vectors": 3,
        # Of 0.5 0.5 1 1 1 1 1.5 1.5, between the two nearest.
        "quantiles": pytest.approx((0.5, 0.875, 1.0, 1.125, 1.5)),
        "sigma": pytest.approx(_sigma([0.5, 1.0, 1.0, 1.5])),
        "slowest": pytest.approx(4 / 3),
        "gradients": 8,
    }
    assert profile.cost() == GivenCost(
        100, 4, profile.gradient, profile.forward_share or 0.0, bucket_count=3, update=profile.update
    )
    assert profile.jitter() == LognormalJitter(sigma=profile.sigma)


def _sigma(ratios: list[float]) -> float:
    logarithms = [math.log(ratio) for ratio in ratios]
    mean = sum(logarithms) / len(logarithms)
    return math.sqrt(sum((value - mean) ** 2 for value in logarithms) / len(logarithms))


def test_it_says_what_is_measured_fitted_and_assumed(run: Run) -> None:
    assert str(run.profile()) == (
        "gradient 3000 ms of 4 samples, of which 300 ms waiting for batches (mean of 8); until "
        "back-propagation measured 30%; update 500 ms; 3 buckets of together 400 B; slowest worker 1.333 "
        "times the mean\n"
        "quantiles over the worker's mean (measured): 5% 0.500, 25% 0.875, 50% 1.000, 75% 1.125, 95% 1.500; "
        "jitter (fitted): lognormal, sigma 0.395"
    )
    plain = dataclasses.replace(run, observations=())
    assert "(mean of 8); until back-propagation assumed 33 %;" in str(plain.profile())
    assert plain.profile().cost().forward_share == 1 / 3


def test_what_is_executed_may_be_smaller_than_its_cost_model(run: Run) -> None:
    import numpy as np

    small = dataclasses.replace(run, models=np.zeros((2, 7), dtype=np.float64))
    assert small.profile().parameters == 14


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clock": "virtual"}, "run: is simulated; only a run on the wall clock measures anything"),
        (
            {"timeline": Timeline()},
            "run: has no gradient to measure; a profile needs two of one worker at least",
        ),
    ],
)
def test_runs_that_measure_nothing(run: Run, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        Profile.of(dataclasses.replace(run, **changes))
    assert str(caught.value) == sentence
