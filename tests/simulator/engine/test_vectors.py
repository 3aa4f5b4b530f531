"""Golden vectors on the virtual clock: worker models after 8 deterministic steps, to 1e-12."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from simulator.engine.simulate import simulate
from simulator.scenario import Scenario

CASES = {
    "allreduce_sgd": {"name": "allreduce-sgd"},
    "local_sgd": {"name": "local-sgd", "period": 2},
    "cocod_sgd_equal": {"name": "cocod-sgd", "period": 2},
    "d_psgd_combine_then_adapt": {"name": "d-psgd", "order": "combine-then-adapt"},
    "d_psgd_adapt_then_combine": {"name": "d-psgd", "order": "adapt-then-combine"},
}
SHARES_1_1_2_4 = [
    {"kind": "persistent", "workers": [0, 1], "slowdown": 4.0},
    {"kind": "persistent", "workers": [2], "slowdown": 2.0},
]


@pytest.mark.parametrize("case", CASES)
def test_models_after_eight_steps(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], case: str
) -> None:
    run = simulate(scalar(CASES[case], vectors))
    assert run.models is not None
    np.testing.assert_allclose(run.models[:, 0], vectors["workers_after"][case], rtol=0, atol=1e-12)


@pytest.mark.parametrize("first_all_reduce", [True, False])
def test_proportional_batches_follow_the_speeds(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], first_all_reduce: bool
) -> None:
    algorithm = {"name": "cocod-sgd", "period": 2, "first-all-reduce": first_all_reduce}
    scenario = scalar(algorithm, vectors, stragglers=SHARES_1_1_2_4)
    assert scenario.batches == (1, 1, 2, 4)
    assert scenario.shares == (1 / 8, 1 / 8, 2 / 8, 4 / 8)
    run = simulate(scenario)
    assert run.models is not None
    expected = vectors["workers_after"]["cocod_sgd_proportional"]
    np.testing.assert_allclose(run.models[:, 0], expected, rtol=0, atol=1e-12)
    weighted_mean = float(np.dot(scenario.shares, run.models[:, 0]))
    assert weighted_mean == pytest.approx(3.1169908498, abs=1e-10)


@pytest.mark.parametrize("transport", ["ideal", "nccl", "gloo", {"name": "ideal", "pattern": "tree"}])
@pytest.mark.parametrize("case", CASES)
def test_values_do_not_depend_on_timing(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], case: str, transport: object
) -> None:
    one = simulate(scalar(CASES[case], vectors))
    other = simulate(
        scalar(CASES[case], vectors).vary(
            transport=transport, stragglers=[{"kind": "lognormal", "sigma": 0.5}]
        )
    )
    assert one.models is not None
    assert other.models is not None
    assert one.models.tobytes() == other.models.tobytes()
    assert one.duration != other.duration
