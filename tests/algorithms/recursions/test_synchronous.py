"""S-SGD, Pipe-SGD, SlowMo: what they reduce to, and where they end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.algorithms.recursions import rules
from tests.algorithms.recursions.local import local_sgd
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.synchronous import pipe_sgd, s_sgd, slowmo

SHARES = [0.1, 0.2, 0.3, 0.4]


def falling(t: int) -> float:
    return 0.2 / (1 + t)


def nesterov() -> rules.SGD:
    return rules.SGD(momentum=0.9, nesterov=True, weight_decay=0.01)


@pytest.fixture
def problem() -> Quadratics:
    return Quadratics(4, 6, ripple=0.5)


@pytest.mark.parametrize("rule", [rules.SGD, nesterov, rules.AdamW])
def test_pipe_of_depth_1_is_s_sgd(problem: Quadratics, rule: Callable[[], rules.Rule]) -> None:
    a = pipe_sgd(problem.gradient, problem.x0, falling, 4, 9, depth=1, shares=SHARES, rule=rule)
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 9, shares=SHARES, rule=rule)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_pipe_by_its_closed_form(depth: int) -> None:
    """One coordinate, one worker, f = x^2/2: w[t] = w[t-1] - step * w[t-K] is a linear recurrence."""
    models = pipe_sgd(lambda _i, x, _t: x, np.ones(1), 0.1, 1, 20, depth=depth)
    companion = np.zeros((depth, depth))
    companion[0, 0], companion[0, -1] = 1.0, -0.1
    companion[1:, :-1] = np.eye(depth - 1)
    # w[0] = ... = w[depth - 1]: the state of the recurrence is all ones.
    expected = np.linalg.matrix_power(companion, 20 - depth + 1) @ np.ones(depth)
    np.testing.assert_allclose(models[0, 0], expected[0], rtol=0, atol=1e-12)


def test_the_first_updates_of_pipe_do_nothing(problem: Quadratics) -> None:
    for steps, moved in ((1, False), (2, False), (3, True)):
        models = pipe_sgd(problem.gradient, problem.x0, 0.1, 4, steps, depth=3)
        assert (np.abs(models - problem.x0).max() > 0) == moved


@pytest.mark.parametrize("rule", [rules.SGD, nesterov, rules.AdamW])
@pytest.mark.parametrize("state", ["local", "averaged", "reset"])
def test_slowmo_without_slow_momentum_is_local_sgd(
    problem: Quadratics, rule: Callable[[], rules.Rule], state: rules.Convention
) -> None:
    keywords = {"period": 3, "shares": SHARES, "rule": rule, "state": state}
    a = slowmo(problem.gradient, problem.x0, falling, 4, 9, alpha=1.0, beta=0.0, **keywords)
    b = local_sgd(problem.gradient, problem.x0, falling, 4, 9, **keywords)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_slowmo_of_period_1_is_heavy_ball(problem: Quadratics) -> None:
    a = slowmo(problem.gradient, problem.x0, 0.05, 4, 12, period=1, alpha=1.0, beta=0.7)
    b = s_sgd(problem.gradient, problem.x0, 0.05, 4, 12, rule=lambda: rules.SGD(momentum=0.7))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_first_step_size_of_a_round_scales_slow_momentum(problem: Quadratics) -> None:
    """By hand, two rounds of two steps; the step sizes are 0.2, 0.1, 0.2/3, 0.05."""
    models = slowmo(problem.gradient, problem.x0, falling, 4, 4, period=2, alpha=0.9, beta=0.6)
    start, u = problem.x0, np.zeros(6)
    for t, gamma in ((0, 0.2), (2, 0.2 / 3)):
        x = [start - gamma * problem.gradient(i, start, t) for i in range(4)]
        x = [x[i] - falling(t + 1) * problem.gradient(i, x[i], t + 1) for i in range(4)]
        u = 0.6 * u + (start - sum(x) / 4) / gamma
        start = start - 0.9 * gamma * u
    np.testing.assert_allclose(models[3], start, rtol=0, atol=1e-12)


def test_they_end_at_the_optimum() -> None:
    problem = Quadratics(4, 6)
    best = problem.optimum()
    for models in (
        s_sgd(problem.gradient, problem.x0, 0.4, 4, 400),
        pipe_sgd(problem.gradient, problem.x0, 0.2, 4, 800),
        pipe_sgd(problem.gradient, problem.x0, 0.1, 4, 1200, depth=4),
        slowmo(problem.gradient, problem.x0, 0.2, 4, 800, period=1, beta=0.5),
    ):
        np.testing.assert_allclose(models, [best] * 4, rtol=0, atol=1e-9)


def test_shares_move_the_optimum() -> None:
    problem = Quadratics(4, 6)
    best = problem.optimum(np.array(SHARES))
    models = s_sgd(problem.gradient, problem.x0, 0.4, 4, 400, shares=SHARES)
    np.testing.assert_allclose(models, [best] * 4, rtol=0, atol=1e-9)
    assert np.abs(best - problem.optimum()).max() > 0.1
