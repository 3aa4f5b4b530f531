"""What each algorithm preserves, whatever the gradients are: the weighted mean moves by their mean alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.workload import Quadratic
from simulator.workload.objective import Objective, Oracle

STEP = 0.1
MEAN_PRESERVING = {
    "allreduce-sgd": {"overlap": True},
    "local-sgd": {"period": 3},
    "cocod-sgd": {"period": 3},
    "d-psgd": {"order": "combine-then-adapt"},
    "d-psgd ": {"order": "adapt-then-combine"},
}


class Recorder(Oracle):
    """Keeps every gradient that a worker computes."""

    def __init__(self, inner: Oracle, log: list[torch.Tensor]) -> None:
        super().__init__(inner.objective)
        self.inner, self.log = inner, log

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.inner.gradient(x))
        return self.log[-1].clone()

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.full_gradient(x)


@dataclass(frozen=True)
class Recorded:
    """A noisy heterogeneous quadratic whose gradients are kept, by rank."""

    gradients: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def build(self, seed: int) -> Objective:
        objective = Quadratic(dimension=7, sigma2=2.0, zeta2=3.0).build(seed)
        oracle = objective.oracle

        def recorded(rank: int, shares: Sequence[float], batch: int, seed: int) -> Oracle:
            return Recorder(oracle(rank, shares, batch, seed), self.gradients.setdefault(rank, []))

        objective.oracle = recorded  # type: ignore[method-assign]
        return objective


def train(name: str, batches: str, slow: Sequence[int]) -> tuple[Run, Recorded]:
    recorded = Recorded()
    scenario = Scenario(
        {
            "name": "invariants",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 4},
                "device": "gtx-1080-ti",
                "stragglers": [{"kind": "persistent", "workers": list(slow), "slowdown": 2.0}]
                if slow
                else [],
            },
            "workload": {
                "cost": {"parameters": 7, "batch": 6, "gradient": "1 ms"},
                "objective": recorded,
                "batches": batches,
            },
            "algorithm": {"name": name.strip(), **MEAN_PRESERVING[name]},
            "step-size": STEP,
            "budget": {"iterations": 12},
        }
    )
    return simulate(scenario), recorded


def moved_mean(run: Run, recorded: Recorded, shares: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return x0 - step * sum over iterations of the weighted mean gradient."""
    assert run.scenario.objective is not None
    x = run.scenario.objective.initial_model().numpy()
    for rank, share in enumerate(shares):
        assert len(recorded.gradients[rank]) == 12
        x = x - STEP * share * np.sum([g.numpy() for g in recorded.gradients[rank]], axis=0)
    return x


@pytest.mark.parametrize("name", MEAN_PRESERVING)
def test_the_mean_moves_by_the_mean_gradient(name: str) -> None:
    run, recorded = train(name, "equal", ())
    assert run.models is not None
    # After CoCoD's last round the mean of the models is that of the snapshot plus all updates since.
    np.testing.assert_allclose(run.models.mean(0), moved_mean(run, recorded, (0.25,) * 4), atol=1e-12)


@pytest.mark.parametrize("name", ["allreduce-sgd", "local-sgd", "cocod-sgd"])
def test_proportional_batches_preserve_the_weighted_mean(name: str) -> None:
    run, recorded = train(name, "proportional", (3,))
    shares = run.scenario.shares
    assert shares == (7 / 24, 7 / 24, 7 / 24, 3 / 24)
    assert run.models is not None
    weighted = np.asarray(shares) @ run.models
    np.testing.assert_allclose(weighted, moved_mean(run, recorded, shares), atol=1e-12)


def test_the_algorithms_agree_where_they_must() -> None:
    """Averaging after every step is synchronous SGD, and so is a complete graph with equal weights."""
    base = Scenario(
        {
            "name": "agree",
            "cluster": {"topology": {"builder": "switch", "gpus": 4}, "device": "ideal"},
            "workload": {
                "cost": {"parameters": 10, "batch": 4, "gradient": "1 ms"},
                "objective": {"kind": "quadratic", "dimension": 10, "sigma2": 1.0, "zeta2": 2.0},
            },
            "algorithm": "allreduce-sgd",
            "step-size": 0.1,
            "budget": {"iterations": 10},
        }
    )
    same = [
        base,
        base.vary(algorithm={"name": "allreduce-sgd", "overlap": False}),
        base.vary(algorithm={"name": "local-sgd", "period": 1}),
        base.vary(algorithm={"name": "d-psgd", "order": "adapt-then-combine"}, gossip={"graph": "complete"}),
    ]
    models = [simulate(scenario).models for scenario in same]
    for other in models[1:]:
        np.testing.assert_allclose(other, models[0], atol=1e-12)
