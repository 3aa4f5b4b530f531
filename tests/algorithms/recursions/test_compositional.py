"""The recursions of C-SVRG and AsyVRSC against finite differences, closed-form optima and each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from tests.algorithms.recursions import compositional
from tests.algorithms.recursions.compositional import Array, Arrival, Draw, Update


def portfolio(n: int, d: int, seed: int = 0) -> compositional.Portfolio:
    """Rewards whose covariance has a spectrum from 0.85 to 3.4 (condition number 4), exactly."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(n, d))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(white.T @ white / n)).T
    return compositional.Portfolio(white * np.sqrt(np.linspace(0.85, 3.4, d)) + rng.normal(size=d))


def policy_evaluation(states: int, d: int, seed: int = 0) -> compositional.PolicyEvaluation:
    rng = np.random.default_rng(seed)
    transitions = rng.random((states, states))
    transitions /= transitions.sum(axis=1, keepdims=True)
    rewards = rng.normal(size=(states, states))
    return compositional.PolicyEvaluation(rng.normal(size=(states, d)), transitions, rewards, 0.9)


class Curved:
    """G_j(x) = x + c_j x^2 / 2, coordinate by coordinate, F_i(y) = |y - b_i|^2 / 2.

    The Jacobians of the other two problems are constant, so that they cannot tell how J is estimated.
    """

    def __init__(self, size: int, d: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.curvatures, self.centres = 0.3 * rng.normal(size=(size, d)), rng.normal(size=(size, d))
        self.inner = self.outer = size

    def g(self, j: int, x: Array) -> Array:
        return x + self.curvatures[j] * x**2 / 2

    def jacobian(self, j: int, x: Array) -> Array:
        return np.diag(1 + self.curvatures[j] * x)

    def f(self, i: int, y: Array) -> float:
        return float(np.sum((y - self.centres[i]) ** 2)) / 2

    def df(self, i: int, y: Array) -> Array:
        return y - self.centres[i]


PROBLEMS = {
    "portfolio": portfolio(30, 4),
    "policy evaluation": policy_evaluation(12, 4),
    "curved": Curved(12, 4),
}
SMALL = {
    "portfolio": portfolio(5, 4),
    "policy evaluation": policy_evaluation(5, 4),
    "curved": Curved(5, 4),
}
named = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
both = pytest.mark.parametrize("estimator", [1, 2])


def draws(
    problem: compositional.Problem, epochs: int, length: int, inner: int, seed: int = 1
) -> list[list[Draw]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Draw(
                rng.integers(problem.inner, size=inner).tolist(),
                int(rng.integers(problem.outer)),
                rng.integers(problem.inner, size=1).tolist(),
            )
            for _ in range(length)
        ]
        for _ in range(epochs)
    ]


def slopes(function: object, x: Array) -> Array:
    """Central differences of a function, one row per coordinate of x."""
    assert callable(function)
    h = 1e-5 * np.eye(x.size)
    return np.array([(np.asarray(function(x + e)) - np.asarray(function(x - e))) / 2e-5 for e in h])


@named
def test_derivatives(problem: compositional.Problem) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=4)
    for j in (0, 3, 11):
        np.testing.assert_allclose(
            problem.jacobian(j, x), slopes(lambda z, j=j: problem.g(j, z), x).T, rtol=0, atol=1e-7
        )
        y = rng.normal(size=problem.g(j, x).size)
        np.testing.assert_allclose(
            problem.df(j, y), slopes(lambda z, j=j: problem.f(j, z), y), rtol=0, atol=1e-6
        )
    at = compositional.snapshot_at(problem, x)
    np.testing.assert_allclose(
        at.h, slopes(lambda z: compositional.objective(problem, z), x), rtol=0, atol=1e-6
    )


def test_objectives_in_their_own_words() -> None:
    x = np.array([0.3, -0.2, 0.5, 0.1])
    stocks = portfolio(30, 4)
    reward = stocks.rewards @ x
    assert compositional.objective(stocks, x) == pytest.approx(reward.var() - reward.mean(), abs=1e-12)
    np.testing.assert_allclose(
        compositional.snapshot_at(stocks, stocks.optimum()).h, np.zeros(4), rtol=0, atol=1e-12
    )
    chain = policy_evaluation(12, 4)
    value = chain.features @ x
    target = (chain.transitions * (chain.rewards + 0.9 * value)).sum(axis=1)
    assert compositional.objective(chain, x) == pytest.approx(np.mean((value - target) ** 2), abs=1e-12)
    np.testing.assert_allclose(
        compositional.snapshot_at(chain, chain.optimum()).h, np.zeros(4), rtol=0, atol=1e-10
    )


@both
@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL)
def test_estimate_is_unbiased_over_all_its_draws(small: compositional.Problem, estimator: int) -> None:
    # All F_i are quadratic, so that the mean over A_k too gives the gradient of f.
    rng = np.random.default_rng(3)
    at, x = compositional.snapshot_at(small, rng.normal(size=4)), rng.normal(size=4)
    mean = np.mean(
        [
            compositional.estimate(small, estimator, at, x, Draw([a], i, [j]))
            for a, i, j in product(range(5), repeat=3)
        ],
        axis=0,
    )
    np.testing.assert_allclose(mean, compositional.snapshot_at(small, x).h, rtol=0, atol=1e-11)


def test_using_the_inner_indices_again_is_biased() -> None:
    chain = policy_evaluation(5, 4, seed=3)
    rng = np.random.default_rng(3)
    at, x = compositional.snapshot_at(chain, rng.normal(size=4)), rng.normal(size=4)
    again = [
        compositional.estimate(chain, 1, at, x, Draw([a], i, [a])) for a, i in product(range(5), repeat=2)
    ]
    assert np.abs(np.mean(again, axis=0) - compositional.snapshot_at(chain, x).h).max() > 1e-2


@both
@named
def test_first_step_of_an_epoch_is_gradient_descent(problem: compositional.Problem, estimator: int) -> None:
    x = np.full(4, 0.3)
    run = compositional.c_svrg(problem, x, 0.01, estimator, draws(problem, 1, 1, 3), ["last"])
    np.testing.assert_allclose(run[1], x - 0.01 * compositional.snapshot_at(problem, x).h, rtol=0, atol=1e-12)


@both
def test_c_svrg_converges_linearly_to_the_optimum_of_the_portfolio(estimator: int) -> None:
    problem = portfolio(60, 5)
    eta = 0.4 / np.linalg.eigvalsh(problem.hessian())[-1] / 10
    run = compositional.c_svrg(problem, np.zeros(5), eta, estimator, draws(problem, 30, 60, 5), ["last"] * 30)
    distance = np.linalg.norm(run - problem.optimum(), axis=1)
    assert distance[-1] < 1e-8 * distance[0]
    # A straight line in the logarithm: the second half gains as much as the first.
    assert np.log(distance[15] / distance[0]) == pytest.approx(np.log(distance[30] / distance[15]), rel=0.4)


@pytest.mark.parametrize("rule", ["last", "average", 7])
def test_snapshot_rules(rule: str | int) -> None:
    problem = portfolio(30, 4)
    run = compositional.c_svrg(problem, np.zeros(4), 0.01, 2, draws(problem, 40, 30, 3), [rule] * 40)
    assert np.linalg.norm(run[-1] - problem.optimum()) < 0.05
    line = [np.array([float(k)]) for k in range(11)]
    expected = {"last": 10.0, "average": 5.5, 7: 7.0}[rule]
    assert compositional.next_snapshot(line, rule).tolist() == [expected]


@both
@named
def test_without_delay_all_forms_agree(problem: compositional.Problem, estimator: int) -> None:
    drawn, rules = draws(problem, 3, 10, 2), ["last", "average", 4]
    x0 = np.full(4, 0.1)
    alone = compositional.c_svrg(problem, x0, 0.01, estimator, drawn, rules)
    arrivals = [[Arrival(draw, k) for k, draw in enumerate(epoch)] for epoch in drawn]
    distributed = compositional.asyvrsc_distributed(problem, x0, 0.01, estimator, arrivals, rules)
    updates = [[Update(draw, [k] * 4, range(4)) for k, draw in enumerate(epoch)] for epoch in drawn]
    shared = compositional.asyvrsc_shared(problem, x0, 0.01, estimator, updates, rules)
    np.testing.assert_array_equal(distributed, alone)
    np.testing.assert_array_equal(shared, alone)


def test_shared_with_consistent_old_reads_is_distributed() -> None:
    problem = portfolio(30, 4)
    rng = np.random.default_rng(5)
    versions = compositional.drawn_delays(20, 6, rng)
    (drawn,) = draws(problem, 1, 20, 2)
    arrivals = [[Arrival(draw, version) for draw, version in zip(drawn, versions, strict=True)]]
    updates = [[Update(draw, [v] * 4, range(4)) for draw, v in zip(drawn, versions, strict=True)]]
    one = compositional.asyvrsc_distributed(problem, np.zeros(4), 0.01, 1, arrivals, ["last"])
    other = compositional.asyvrsc_shared(problem, np.zeros(4), 0.01, 1, updates, ["last"])
    np.testing.assert_array_equal(one, other)


def test_inconsistent_read_mixes_versions() -> None:
    problem = portfolio(30, 2)
    first, second = Draw([0], 1, [2]), Draw([3], 4, [5])
    x0 = np.array([0.5, -0.5])
    run = compositional.asyvrsc_shared(
        problem, x0, 0.01, 2, [[Update(first, [0, 0], [0, 1]), Update(second, [1, 0], [1])]], ["last"]
    )
    at = compositional.snapshot_at(problem, x0)
    x1 = x0 - 0.01 * compositional.estimate(problem, 2, at, x0, first)
    mixed = np.array([x1[0], x0[1]])
    step = 0.01 * compositional.estimate(problem, 2, at, mixed, second)
    np.testing.assert_allclose(run[1], [x1[0], x1[1] - step[1]], rtol=0, atol=1e-15)


def test_drawn_delays() -> None:
    versions = compositional.drawn_delays(5000, 16, np.random.default_rng(6))
    delays = np.arange(5000) - versions
    assert versions[0] == 0
    assert set(delays[16:]) == set(range(17))
    assert delays[16:].mean() == pytest.approx(8, abs=0.3)


def test_queries() -> None:
    problem = portfolio(30, 4)
    assert compositional.queries(problem, 1, 7, 5, 1) == 3 * 30 + 7 * (10 + 2 + 2)
    assert compositional.queries(problem, 2, 7, 5, 3) == 3 * 30 + 7 * (10 + 6 + 2)


def gap_after(problem: compositional.Portfolio, eta: float, longest: int, epochs: int = 12) -> float:
    """The gap after some epochs of AsyVRSC-Distributed with K = n and delays drawn up to `longest`."""
    rng = np.random.default_rng(longest)
    arrivals = [
        [
            Arrival(draw, version)
            for draw, version in zip(epoch, compositional.drawn_delays(len(epoch), longest, rng), strict=True)
        ]
        for epoch in draws(problem, epochs, problem.inner, 3)
    ]
    run = compositional.asyvrsc_distributed(problem, np.zeros(25), eta, 2, arrivals, ["last"] * epochs)
    return gap(problem, run[-1])


def gap(problem: compositional.Portfolio, x: Array) -> float:
    away = x - problem.optimum()
    return float(0.5 * away @ problem.hessian() @ away)


def largest_smoothness(problem: compositional.Portfolio) -> float:
    centred = problem.rewards - problem.rewards.mean(axis=0)
    return float(2 * np.max(np.sum(centred**2, axis=1)))


def test_damage_of_delay_needs_a_large_step_too() -> None:
    problem = portfolio(250, 25)
    smoothness = largest_smoothness(problem)
    cells: dict[int, Sequence[int]] = {4: (0, 128), 2: (0, 32, 128), 1: (0, 32, 128)}
    gaps = {
        (part, longest): gap_after(problem, 1 / (part * smoothness), longest)
        for part, row in cells.items()
        for longest in row
    }
    # Estimator 2: the noise of estimator 1's own j has it diverge at 1 / L_max without any delay.
    # eta L_f tau = 1.2 does no harm at eta = 1 / (4 L_max), ...
    assert gaps[4, 128] < gaps[4, 0] < 1e-5
    # ... is visible from 0.6 on at 1 / (2 L_max), ...
    assert gaps[2, 0] < 1e-6
    assert 3 < gaps[2, 32] / gaps[2, 0] < 300
    assert gaps[2, 128] / gaps[2, 0] > 1e4
    # ... and at 1 / L_max it is the end of convergence.
    assert gaps[1, 0] < 0.1
    assert gaps[1, 32] > 1
    assert gaps[1, 128] > 1e4


def test_coordinate_sets_hide_the_delay() -> None:
    problem = portfolio(250, 25)
    eta = 1 / (2 * largest_smoothness(problem))
    (drawn,) = draws(problem, 1, 2500, 2)
    gaps = []
    for longest in (0, 32):
        rng = np.random.default_rng(longest)
        updates = [
            Update(
                draw,
                [k - min(k, int(delay)) for delay in rng.integers(longest + 1, size=25)],
                rng.choice(25, size=3, replace=False).tolist(),
            )
            for k, draw in enumerate(drawn)
        ]
        run = compositional.asyvrsc_shared(problem, np.zeros(25), eta, 2, [updates], ["last"])
        gaps.append(gap(problem, run[-1]) / gap(problem, run[0]))
    assert max(gaps) < 0.4
    assert max(gaps) < 1.5 * min(gaps)
