"""Objectives whose every gradient the recursions are given too, and scenarios that train on them.

Nothing here comes from `simulator.workload`'s own objectives, so that the algorithms and the recursions see
the same numbers by different ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from simulator.plan import random_numbers
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.workload.objective import Objective, Oracle
from tests.algorithms.recursions import compositional
from tests.algorithms.recursions.notation import Array

SEED = 3
UPDATE = 0.06
"""Seconds of a local step, which touches three vectors of the model; other passes in proportion."""


class GivenObjective(Objective):
    """What the objectives here have in common; nothing is known of their values."""

    def __init__(self, name: str, x0: Array, dtype: torch.dtype = torch.float64) -> None:
        self.name = name
        self.x0 = x0
        self.parameters = len(x0)
        self.dtype = dtype

    def initial_model(self) -> torch.Tensor:
        return torch.from_numpy(self.x0.copy()).to(self.dtype)

    def loss(self, x: torch.Tensor) -> float:
        return 0.0

    def gradient_norm(self, x: torch.Tensor) -> float:
        return 0.0

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> Oracle:
        return GivenOracle(self, rank)

    def gradient(self, rank: int, x: Array, iteration: int) -> Array:
        raise AssertionError("no algorithm here asks for mini-batches of the objective's own")

    def view(self, rank: int) -> Any:
        return None


class GivenOracle(Oracle):
    """A worker's gradients, numbered by its own iterations, or its view of the objective."""

    objective: GivenObjective

    def __init__(self, objective: GivenObjective, rank: int) -> None:
        super().__init__(objective)
        self._rank = rank
        self._iteration = 0

    @property
    def problem(self) -> Any:
        return self.objective.view(self._rank)

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        value = self.objective.gradient(self._rank, x.double().numpy().copy(), self._iteration)
        self._iteration += 1
        return torch.from_numpy(value).to(self.objective.dtype)

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no algorithm here asks for it")


@dataclass(frozen=True, eq=False)
class Gradients:
    """An objective of which the gradients ``g(worker, x, t)`` are all that is known."""

    function: Callable[[int, Array, int], Array]
    x0: Array
    dtype: torch.dtype = torch.float64

    def build(self, seed: int) -> Objective:
        made = GivenObjective("given gradients", self.x0, self.dtype)
        made.gradient = self.function  # type: ignore[method-assign]
        return made


@dataclass(frozen=True, eq=False)
class Sum:
    """A finite sum: worker w holds the parts 0 .. sizes[w] - 1, with the gradients ``part(w, i, x)``."""

    part: Callable[[int, int, Array], Array]
    sizes: Sequence[int]
    x0: Array

    def build(self, seed: int) -> Objective:
        return SumObjective(self)


class SumObjective(GivenObjective):
    """Its views implement `algorithms.problem.FiniteSum`."""

    def __init__(self, kind: Sum) -> None:
        super().__init__("given sum", kind.x0)
        self.kind = kind

    @property
    def fulfils(self) -> frozenset[str]:
        return frozenset({"finite-sum"})

    def view(self, rank: int) -> SumView:
        return SumView(self.kind, rank)


class SumView:
    """A worker's parts."""

    def __init__(self, kind: Sum, rank: int) -> None:
        self._kind = kind
        self._rank = rank
        self.count = kind.sizes[rank]
        self.total = sum(kind.sizes)

    def sample_gradients(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        rows = [self._kind.part(self._rank, i, x.numpy()) for i in indices.tolist()]
        return torch.from_numpy(np.array(rows).reshape(len(rows), len(x)))

    def gradient(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        assert len(indices)
        return self.sample_gradients(x, indices).mean(0)

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        return self.gradient(x, torch.arange(self.count))


@dataclass(frozen=True, eq=False)
class Composition:
    """A compositional objective: a recursion's problem, whose parts every worker sees."""

    problem: Any
    x0: Array
    constant: bool

    def build(self, seed: int) -> Objective:
        return CompositionObjective(self)


class CompositionObjective(GivenObjective):
    """It is its own `algorithms.problem.Compositional`; every part that is asked for counts in `asked`."""

    def __init__(self, kind: Composition) -> None:
        super().__init__("given composition", kind.x0)
        self.parts: compositional.Problem = kind.problem
        self.inner_count, self.outer_count = kind.problem.inner, kind.problem.outer
        self.inner_dimension = len(kind.problem.g(0, kind.x0))
        self.constant_jacobian = kind.constant
        self.asked = 0

    @property
    def fulfils(self) -> frozenset[str]:
        return frozenset({"compositional"})

    def view(self, rank: int) -> CompositionObjective:
        return self

    def loss(self, x: torch.Tensor) -> float:
        return compositional.objective(self.parts, x.numpy())

    def _mean(self, values: Sequence[Array]) -> torch.Tensor:
        assert len(values)
        self.asked += len(values)
        return torch.from_numpy(np.mean(values, axis=0))

    def inner(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self._mean([self.parts.g(j, x.numpy()) for j in indices.tolist()])

    def jacobian(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self._mean([self.parts.jacobian(j, x.numpy()) for j in indices.tolist()])

    def outer_gradient(self, y: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return self._mean([self.parts.df(i, y.numpy()) for i in indices.tolist()])


def scenario(
    algorithm: object,
    objective: object,
    workers: int,
    iterations: int,
    *,
    parameters: int,
    batch: int = 4,
    step: float = 0.1,
    slow: Mapping[int, float] | None = None,
    passes: float = UPDATE,
    cluster: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Scenario:
    """Return a scenario of workers on one machine.

    A gradient takes one second, a local step `passes` seconds, a collective 0.3 s and a message 0.2 s; `slow`
    gives persistent slow-downs by rank. Without an objective it is a timing-only one.
    """
    stragglers = [
        {"kind": "persistent", "workers": [rank], "slowdown": factor} for rank, factor in (slow or {}).items()
    ]
    numerics = {} if objective is None else {"objective": objective}
    if objective is not None:
        sections = {"step-size": step, **sections}
    workload = sections.pop("workload", {})
    return Scenario(
        {
            "name": "given",
            "cluster": {
                "topology": {"builder": "two-level", "hosts": 1, "gpus-per-host": workers},
                "device": "ideal",
                "transport": {"name": "fixed", "all-reduce": "0.3 s", "exchange": "0.2 s"},
                "stragglers": stragglers,
                **(cluster or {}),
            },
            "workload": {
                "cost": {
                    "parameters": parameters,
                    "batch": batch,
                    "gradient": "1 s",
                    "update": f"{passes} s",
                },
                **numerics,
                **workload,
            },
            "algorithm": algorithm,
            "budget": {"iterations": iterations},
            "seed": SEED,
            **sections,
        }
    )


def stream(rank: int, purpose: str, shared: bool = False, seed: int = SEED) -> np.random.Generator:
    """Return the random numbers that a worker draws for a purpose, from their start."""
    return random_numbers(seed, rank, purpose, shared)


def models(run: Run) -> Array:
    """Return the models that the workers reported last, of shape [workers, parameters]."""
    assert run.models is not None
    return run.models


def assert_equal(ours: Array, theirs: Array) -> None:
    """Assert equality to 1e-12, relative to the largest number."""
    assert ours.shape == theirs.shape
    assert np.isfinite(theirs).all()
    largest = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * largest)
