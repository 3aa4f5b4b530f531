"""Models on Gloo against straight-line recursions of the papers' formulas, bit for bit.

The recursions are written out here and use nothing of the algorithms' code. They share with it the
gradients of the objective and the elementary operations of torch (x - s g as one fused operation), and sum
in the order of Gloo's ring.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.execution import execute
from simulator.numerics import ring_sum
from simulator.scenario import Scenario

STEP = 0.1
GOLDENS = Path(__file__).parents[2] / "goldens" / "algorithm_vectors.json"

Vectors = list[torch.Tensor]


def gradients(scenario: Scenario) -> tuple[Vectors, list[Callable[[torch.Tensor], torch.Tensor]]]:
    """Return the workers' initial models and gradient functions."""
    objective, n = scenario.objective, scenario.workers
    assert objective is not None
    shares = scenario.shares or (1 / n,) * n
    oracles = [objective.oracle(i, shares, scenario.batches[i], scenario.seed) for i in range(n)]
    return [objective.initial_model() for _ in range(n)], [oracle.gradient for oracle in oracles]


def mean(vectors: Vectors, shares: Sequence[float] | None) -> torch.Tensor:
    if shares is None:
        return ring_sum(vectors) / len(vectors)
    return ring_sum([share * x for share, x in zip(shares, vectors, strict=True)])


def allreduce_sgd(scenario: Scenario, steps: int, slices: Sequence[tuple[int, int]]) -> Vectors:
    x, gradient = gradients(scenario)
    for _ in range(steps):
        g = [gradient[i](x[i]) for i in range(len(x))]
        for i in range(len(x)):
            moved = x[i].clone()
            for low, high in slices:
                average = mean([own[low:high] for own in g], scenario.shares)
                moved[low:high] = torch.sub(x[i][low:high], average, alpha=STEP)
            x[i] = moved
    return x


def local_sgd(scenario: Scenario, steps: int, period: int) -> Vectors:
    x, gradient = gradients(scenario)
    for t in range(steps):
        x = [torch.sub(x[i], gradient[i](x[i]), alpha=STEP) for i in range(len(x))]
        if t % period == period - 1:
            average = mean(x, scenario.shares)
            x = [average.clone() for _ in x]
    return x


def local_sgd_with_momentum(scenario: Scenario, steps: int, period: int, state: str) -> Vectors:
    """Heavy ball by torch's own optimiser on every worker, with what an average does to its velocity."""
    x, gradient = gradients(scenario)
    parameters = [torch.nn.Parameter(own) for own in x]
    optimizers = [torch.optim.SGD([p], lr=STEP, momentum=0.9) for p in parameters]
    for t in range(steps):
        for own, optimizer, parameter in zip(gradient, optimizers, parameters, strict=True):
            parameter.grad = own(parameter.detach())
            optimizer.step()
        if t % period == period - 1:
            average = mean([p.detach() for p in parameters], scenario.shares)
            velocities = [o.state[p]["momentum_buffer"] for o, p in zip(optimizers, parameters, strict=True)]
            velocity = mean(velocities, scenario.shares)
            for optimizer, parameter in zip(optimizers, parameters, strict=True):
                parameter.data = average.clone()
                if state == "averaged":
                    optimizer.state[parameter]["momentum_buffer"] = velocity.clone()
                if state == "reset":
                    optimizer.state[parameter]["momentum_buffer"] = None
    return [p.detach() for p in parameters]


def allreduce_sgd_with_momentum(scenario: Scenario, steps: int) -> Vectors:
    """One optimiser of torch's with the mean gradient."""
    x, gradient = gradients(scenario)
    parameter = torch.nn.Parameter(x[0])
    optimizer = torch.optim.SGD([parameter], lr=STEP, momentum=0.9, nesterov=True)
    for _ in range(steps):
        parameter.grad = mean([own(parameter.detach()) for own in gradient], scenario.shares)
        optimizer.step()
    return [parameter.detach()] * len(x)


def cocod_sgd(scenario: Scenario, steps: int, period: int, first: bool) -> Vectors:
    x, gradient = gradients(scenario)
    for start in range(0, steps, period):
        snapshots = x
        average = mean(snapshots, scenario.shares)
        for _ in range(period):
            x = [torch.sub(x[i], gradient[i](x[i]), alpha=STEP) for i in range(len(x))]
        if first or start > 0:
            x = [(x[i] + average) - snapshots[i] for i in range(len(x))]
    return x


def d_psgd(scenario: Scenario, steps: int, adapt_first: bool) -> Vectors:
    x, gradient = gradients(scenario)
    n, w = len(x), scenario.mixing
    for _ in range(steps):
        g = [gradient[i](x[i]) for i in range(n)]
        sent = [torch.sub(x[i], g[i], alpha=STEP) for i in range(n)] if adapt_first else x
        mixed = []
        for i in range(n):
            terms = [(float(w[i, j]), sent[j]) for j in range(n) if w[i, j] != 0]
            total = terms[0][1] * terms[0][0]
            for weight, neighbour in terms[1:]:
                total = torch.add(total, neighbour, alpha=weight)
            mixed.append(total)
        x = mixed if adapt_first else [torch.sub(mixed[i], g[i], alpha=STEP) for i in range(n)]
    return x


def check(scenario: Scenario, expected: Vectors) -> None:
    run = execute(scenario)
    assert run is not None
    assert run.models is not None
    # Not all-zero, and not all the same number: comparing such models would show nothing.
    assert len(np.unique(run.models)) > 1
    assert run.models.dtype == expected[0].numpy().dtype
    assert run.models.tobytes() == torch.stack(expected).numpy().tobytes()


NOISY: dict[str, Any] = {"kind": "quadratic", "dimension": 5, "sigma2": 1.0, "zeta2": 0.5}
# Buckets [50, 100) and [0, 50) of 100 parameters: the edge at 2.5 of 5 elements is rounded up.
SLICES = ((3, 5), (0, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("workers", [2, 3, 4])
class TestEveryAlgorithm:
    """Five elements: no number of workers here divides them."""

    def test_allreduce_sgd(self, make: Any, workers: int, dtype: str) -> None:
        scenario = make("allreduce-sgd", workers, {**NOISY, "dtype": dtype})
        check(scenario, allreduce_sgd(scenario, 4, SLICES))

    def test_local_sgd(self, make: Any, workers: int, dtype: str) -> None:
        scenario = make({"name": "local-sgd", "period": 2}, workers, {**NOISY, "dtype": dtype})
        check(scenario, local_sgd(scenario, 4, period=2))

    def test_cocod_sgd(self, make: Any, workers: int, dtype: str) -> None:
        scenario = make({"name": "cocod-sgd", "period": 2}, workers, {**NOISY, "dtype": dtype})
        check(scenario, cocod_sgd(scenario, 4, period=2, first=True))

    def test_d_psgd(self, make: Any, workers: int, dtype: str) -> None:
        scenario = make("d-psgd", workers, {**NOISY, "dtype": dtype})
        check(scenario, d_psgd(scenario, 4, adapt_first=False))


class TestVariants:
    def test_allreduce_sgd_without_overlap(self, make: Any) -> None:
        scenario = make({"name": "allreduce-sgd", "overlap": False}, 3, NOISY)
        check(scenario, allreduce_sgd(scenario, 4, ((0, 5),)))

    def test_allreduce_sgd_of_a_network_on_data(self, make: Any) -> None:
        scenario = make("allreduce-sgd", 3, {"kind": "mlp", "data": "digits"}, batch=8, buckets=4)
        # 2,410 elements at the fractions of four equal buckets: the edges 602.5 and 1807.5 are rounded up.
        slices = ((1808, 2410), (1205, 1808), (603, 1205), (0, 603))
        check(scenario, allreduce_sgd(scenario, 4, slices))

    def test_more_buckets_than_elements(self, make: Any) -> None:
        scenario = make("allreduce-sgd", 2, {**NOISY, "dimension": 2}, buckets=4)
        check(scenario, allreduce_sgd(scenario, 4, ((0, 1), (1, 2))))

    def test_cocod_sgd_without_the_first_all_reduce(self, make: Any) -> None:
        algorithm = {"name": "cocod-sgd", "period": 2, "first-all-reduce": False}
        scenario = make(algorithm, 3, NOISY)
        check(scenario, cocod_sgd(scenario, 4, period=2, first=False))

    def test_d_psgd_adapt_then_combine(self, make: Any) -> None:
        scenario = make({"name": "d-psgd", "order": "adapt-then-combine"}, 3, NOISY)
        check(scenario, d_psgd(scenario, 4, adapt_first=True))

    def test_d_psgd_on_a_directed_graph(self, make: Any) -> None:
        scenario = make("d-psgd", 4, NOISY, gossip={"graph": {"builder": "exponential"}})
        assert scenario.communication_graph.is_directed()
        check(scenario, d_psgd(scenario, 4, adapt_first=False))

    def test_one_worker(self, make: Any) -> None:
        scenario = make({"name": "local-sgd", "period": 2}, 1, NOISY)
        check(scenario, local_sgd(scenario, 4, period=2))

    def test_one_worker_with_a_graph(self, make: Any) -> None:
        scenario = make("d-psgd", 1, NOISY)
        check(scenario, d_psgd(scenario, 4, adapt_first=False))

    def test_segments_of_a_large_model(self, make: Any) -> None:
        # 2n MiB = 4 MiB are 1,048,576 elements; beyond that Gloo cuts more than 2n segments.
        objective = {**NOISY, "dimension": 1_200_001, "dtype": "float32"}
        scenario = make({"name": "local-sgd", "period": 1}, 2, objective, iterations=1)
        check(scenario, local_sgd(scenario, 1, period=1))

    def test_segments_of_a_large_model_change_the_order_with_three_workers(self, make: Any) -> None:
        objective = {**NOISY, "dimension": 1_700_001, "dtype": "float32"}
        scenario = make({"name": "local-sgd", "period": 1}, 3, objective, iterations=1)
        check(scenario, local_sgd(scenario, 1, period=1))


class TestUpdateRules:
    @pytest.mark.parametrize("state", ["local", "averaged", "reset"])
    def test_local_sgd_with_momentum(self, make: Any, state: str) -> None:
        algorithm = {"name": "local-sgd", "period": 2, "state": state}
        scenario = make(algorithm, 3, NOISY, iterations=6, update="momentum")
        check(scenario, local_sgd_with_momentum(scenario, 6, 2, state))

    def test_allreduce_sgd_with_momentum(self, make: Any) -> None:
        algorithm = {"name": "allreduce-sgd", "overlap": False}
        scenario = make(algorithm, 3, NOISY, update="nesterov")
        check(scenario, allreduce_sgd_with_momentum(scenario, 4))


class TestProportionalBatches:
    """Speeds 1, 1, 1/2 deal 30 samples out as 12, 12, 6: the mean multiplies by 0.4, 0.4, 0.2, then sums."""

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_cocod_sgd(self, make: Any, dtype: str) -> None:
        algorithm = {"name": "cocod-sgd", "period": 2}
        scenario = make(algorithm, 3, {**NOISY, "dtype": dtype}, batch=10, slowdowns={2: 2.0})
        assert scenario.batches == (12, 12, 6)
        check(scenario, cocod_sgd(scenario, 4, period=2, first=True))

    def test_allreduce_sgd(self, make: Any) -> None:
        scenario = make("allreduce-sgd", 3, NOISY, batch=10, slowdowns={2: 2.0})
        check(scenario, allreduce_sgd(scenario, 4, SLICES))


@pytest.mark.parametrize(
    ("vector", "algorithm", "proportional"),
    [
        ("allreduce_sgd", "allreduce-sgd", False),
        ("local_sgd", {"name": "local-sgd", "period": 2}, False),
        ("cocod_sgd_equal", {"name": "cocod-sgd", "period": 2}, False),
        ("cocod_sgd_proportional", {"name": "cocod-sgd", "period": 2}, True),
        ("d_psgd_combine_then_adapt", {"name": "d-psgd", "order": "combine-then-adapt"}, False),
        ("d_psgd_adapt_then_combine", {"name": "d-psgd", "order": "adapt-then-combine"}, False),
    ],
)
def test_golden_vectors(make: Any, vector: str, algorithm: object, proportional: bool) -> None:
    goldens = json.loads(GOLDENS.read_text())
    objective = {"kind": "scalar-quadratics", "curvatures": goldens["a"], "centres": goldens["b"]}
    # Eight samples go to speeds 1, 1, 2, 4 as 1, 1, 2, 4.
    slowdowns = {0: 4.0, 1: 4.0, 2: 2.0} if proportional else None
    scenario = make(algorithm, 4, objective, iterations=goldens["local_steps"], slowdowns=slowdowns)
    run = execute(scenario)
    assert run is not None
    assert run.models is not None
    assert np.abs(run.models[:, 0] - goldens["workers_after"][vector]).max() < 1e-12
