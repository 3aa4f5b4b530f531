"""Train an algorithm, on the virtual clock, on the very gradients that a recursion is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch

from algorithms import Algorithm
from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.workload.objective import Objective, Oracle
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics

STEP = 0.1
COST: Mapping[str, Any] = {"batch": 4, "gradient": "1 s", "update": "0.03 s", "bucket-count": 2}
"""A pass over memory takes time here, a few hundredths of a gradient's."""
RULES: Mapping[str, Mapping[str, Any]] = {
    "nesterov": {"rule": "nesterov", "momentum": 0.7, "weight-decay": 0.05},
    "adamw": {"rule": "adamw"},
}


@dataclass(frozen=True)
class Given:
    """The objective sum_i p_i f_i of a problem's quadratics; worker i's gradients are the problem's."""

    problem: Quadratics

    def build(self, seed: int) -> Objective:
        return GivenObjective(self.problem)


class GivenObjective(Objective):
    """Σ p_i f_i, with p_i = 1/n."""

    def __init__(self, problem: Quadratics) -> None:
        self.name = "given quadratics"
        self.problem = problem
        self.parameters = problem.dimension
        self.dtype = torch.float64

    def initial_model(self) -> torch.Tensor:
        return torch.from_numpy(self.problem.x0.copy())

    def loss(self, x: torch.Tensor) -> float:
        distances = [x.numpy() - centre for centre in self.problem.centres]
        values = [0.5 * d @ H @ d for d, H in zip(distances, self.problem.hessians, strict=True)]
        return float(np.mean(values))

    def gradient_norm(self, x: torch.Tensor) -> float:
        pairs = zip(self.problem.centres, self.problem.hessians, strict=True)
        return float(np.linalg.norm(np.mean([H @ (x.numpy() - centre) for centre, H in pairs], axis=0)))

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> GivenOracle:
        return GivenOracle(self, rank)


class GivenOracle(Oracle):
    """The problem's gradients of one worker, numbered by its own iterations."""

    def __init__(self, objective: GivenObjective, rank: int) -> None:
        super().__init__(objective)
        self._gradient = objective.problem.gradient
        self._rank = rank
        self._iteration = 0

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        value = self._gradient(self._rank, x.numpy().copy(), self._iteration)
        self._iteration += 1
        return torch.from_numpy(value)

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no algorithm here asks for it")


def scenario(
    algorithm: Mapping[str, Any] | Algorithm,
    problem: Quadratics,
    iterations: int,
    *,
    update: Mapping[str, Any] | None = None,
    slow: Mapping[int, float] | None = None,
    numerics: bool = True,
    **changes: Any,
) -> Scenario:
    """Return a scenario of a problem's workers, GPUs of one machine.

    `slow` gives persistent slow-downs by rank, `changes` are keys of a scenario as `Scenario.vary` takes
    them. Without numerics it is timing-only.
    """
    stragglers = [
        {"kind": "persistent", "workers": [rank], "slowdown": factor} for rank, factor in (slow or {}).items()
    ]
    base = Scenario(
        {
            "name": "held",
            "cluster": {
                "topology": {"builder": "two-level", "hosts": 1, "gpus-per-host": problem.workers},
                "device": "ideal",
                "transport": {"name": "fixed", "all-reduce": "0.3 s", "exchange": "0.2 s"},
                "stragglers": stragglers,
            },
            "workload": {
                "cost": {"parameters": problem.dimension, **COST},
                **({"objective": Given(problem)} if numerics else {}),
            },
            "algorithm": "local-sgd",
            **({"step-size": STEP} if numerics else {}),
            "budget": {"iterations": iterations},
            "update": update or "sgd",
        }
    )
    return base.vary(algorithm=algorithm, **changes)


def trained(*arguments: Any, **named: Any) -> Run:
    """Simulate such a scenario."""
    return simulate(scenario(*arguments, **named))


def models(run: Run) -> Array:
    """Return the models that the workers reported last, of shape [workers, parameters]."""
    assert run.models is not None
    return run.models


def assert_equal(ours: Array, theirs: Array) -> None:
    """Assert equality to 1e-12, relative to the largest number."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * max(1.0, float(np.abs(theirs).max())))


def complete_bipartite(left: int, right: int) -> Any:
    """Return the graph with all edges between two sets of workers."""
    return nx.complete_bipartite_graph(left, right)
