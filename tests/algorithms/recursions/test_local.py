"""Local steps: what the algorithms reduce to, what they preserve, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.algorithms.recursions import local, rules
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.synchronous import s_sgd, slowmo

SHARES = [0.1, 0.2, 0.3, 0.4]
THIRDS = [np.array([0, 3]), np.array([1, 4]), np.array([2, 5])]
WHOLE = [np.arange(6)]


def falling(t: int) -> float:
    return 0.2 / (1 + t)


@pytest.fixture
def problem() -> Quadratics:
    return Quadratics(4, 6, ripple=0.5)


def weighted(gradients: list[tuple[int, int, Array]], shares: list[float], step: float) -> Array:
    return step * sum(shares[i] * g for i, _, g in gradients)


def test_local_sgd_of_period_1_is_s_sgd(problem: Quadratics) -> None:
    a = local.local_sgd(problem.gradient, problem.x0, falling, 4, 7, period=1, shares=SHARES)
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 7, shares=SHARES)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_half_a_round_is_refused(problem: Quadratics) -> None:
    with pytest.raises(ValueError, match="7 steps are no whole number of rounds of 2"):
        local.local_sgd(problem.gradient, problem.x0, 0.1, 4, 7, period=2)


def test_identical_gradients_make_every_mean_preserving_method_s_sgd() -> None:
    problem = Quadratics(4, 6).identical()
    expected = s_sgd(problem.gradient, problem.x0, falling, 4, 8)
    for models in (
        local.local_sgd(problem.gradient, problem.x0, falling, 4, 8, period=4),
        local.cocod_sgd(problem.gradient, problem.x0, falling, 4, 8, period=4),
        local.vrl_sgd(problem.gradient, problem.x0, falling, 4, 8, period=4)[0],
    ):
        np.testing.assert_allclose(models, expected, rtol=0, atol=1e-12)


PRESERVING: dict[str, Callable[..., Any]] = {
    "Local SGD": local.local_sgd,
    "CoCoD-SGD": local.cocod_sgd,
    "VRL-SGD": lambda *a, **k: local.vrl_sgd(*a, **k)[0],
}


@pytest.mark.parametrize("name", PRESERVING)
def test_the_weighted_mean_moves_by_the_weighted_mean_gradient(problem: Quadratics, name: str) -> None:
    models = PRESERVING[name](problem.gradient, problem.x0, 0.1, 4, 12, period=3, shares=SHARES)
    assert len(problem.log) == 48
    expected = problem.x0 - weighted(problem.log, SHARES, 0.1)
    np.testing.assert_allclose(np.asarray(SHARES) @ models, expected, rtol=0, atol=1e-12)


def test_cocod_by_its_closed_form(problem: Quadratics) -> None:
    """At the end of a round: the mean two rounds back, less one's own gradients since."""
    models = local.cocod_sgd(problem.gradient, problem.x0, 0.1, 4, 9, period=3, shares=SHARES)
    first = [entry for entry in problem.log if entry[1] < 6]
    # The average that the third round used is of the models after the second.
    average = problem.x0 - weighted(first, SHARES, 0.1)
    for i in range(4):
        own = sum(g for worker, t, g in problem.log if worker == i and t >= 6)
        np.testing.assert_allclose(models[i], average - 0.1 * own, rtol=0, atol=1e-12)


def test_cocod_averages_with_local_momentum_too(problem: Quadratics) -> None:
    """The mean after a round is the mean before it plus the mean of the workers' own changes."""

    def momentum() -> rules.SGD:
        return rules.SGD(momentum=0.9)

    one = local.cocod_sgd(problem.gradient, problem.x0, 0.1, 4, 3, period=3, rule=momentum)
    for i in range(4):
        rule, x = momentum(), problem.x0
        for t in range(3):
            x = rule.step(x, problem.gradient(i, x, t), 0.1)
        np.testing.assert_allclose(one[i], x, rtol=0, atol=1e-12)


def test_a_full_pull_to_the_anchor_leaves_the_anchor(problem: Quadratics) -> None:
    """With alpha = 1 and beta = 0 all models are the anchor, which is x0 for ever."""
    models, anchor = local.overlap_local_sgd(problem.gradient, problem.x0, 0.1, 4, 6, period=2, alpha=1.0)
    np.testing.assert_array_equal(models, [problem.x0] * 4)
    np.testing.assert_allclose(anchor, problem.x0, rtol=0, atol=1e-12)


def test_without_a_pull_nobody_meets(problem: Quadratics) -> None:
    models, anchor = local.overlap_local_sgd(problem.gradient, problem.x0, 0.1, 4, 6, period=2, alpha=0.0)
    for i in range(4):
        alone = s_sgd(lambda _, x, t, i=i: problem.gradient(i, x, t), problem.x0, 0.1, 1, 6)
        np.testing.assert_allclose(models[i], alone[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(anchor, models.mean(0), rtol=0, atol=1e-12)


def test_overlap_local_keeps_the_mean_of_models_and_anchor_in_a_linear_way() -> None:
    """Without gradients the joint mixing of (models, anchor) is column-stochastic.

    Where the models differ only by the gradients of the first round, the pull keeps (1 - alpha) * x_i +
    alpha * z and the new anchor is the mean: with v^T = (1, ..., 1, n * alpha) the product v^T (x, z) stays.
    """
    problem = Quadratics(4, 6)

    def once(i: int, x: Array, t: int) -> Array:
        return problem.gradient(i, x, t) if t < 2 else np.zeros_like(x)

    sums = []
    for steps in (2, 4, 8, 40):
        models, anchor = local.overlap_local_sgd(once, problem.x0, 0.1, 4, steps, period=2, alpha=0.3)
        sums.append(models.sum(0) + 4 * 0.3 * anchor)
    for other in sums[1:]:
        np.testing.assert_allclose(other, sums[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(models, [anchor] * 4, rtol=0, atol=1e-2)


def test_anchor_momentum_by_hand(problem: Quadratics) -> None:
    """Two rounds of two steps; the step sizes are 0.2, 0.1, 0.2/3, 0.05."""
    models, anchor = local.overlap_local_sgd(
        problem.gradient, problem.x0, falling, 4, 4, period=2, alpha=0.6, beta=0.7
    )
    x, z, buf = [problem.x0] * 4, problem.x0, np.zeros(6)
    for t, gamma in ((0, 0.2), (2, 0.2 / 3)):
        x = [x[i] - gamma * problem.gradient(i, x[i], t) for i in range(4)]
        x = [x[i] - falling(t + 1) * problem.gradient(i, x[i], t + 1) for i in range(4)]
        x = [0.4 * x[i] + 0.6 * z for i in range(4)]
        buf = 0.7 * buf + (z - sum(x) / 4) / gamma
        z = z - gamma * buf
    np.testing.assert_allclose(models, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(anchor, z, rtol=0, atol=1e-12)


def test_the_elastic_step_keeps_the_sum(problem: Quadratics) -> None:
    models, centre = local.easgd_round_synchronous(
        problem.gradient, problem.x0, 0.1, 4, 12, period=3, alpha=0.2
    )
    expected = 5 * problem.x0 - 0.1 * sum(g for _, _, g in problem.log)
    np.testing.assert_allclose(models.sum(0) + centre, expected, rtol=0, atol=1e-12)


VISITS = [0, 1, 2, 3, 1, 1, 0, 3, 2, 1, 0, 0, 2]


def test_the_elastic_step_keeps_the_sum_in_any_order(problem: Quadratics) -> None:
    models, centre = local.easgd_asynchronous(
        problem.gradient, problem.x0, 0.1, 4, VISITS, period=2, alpha=0.2
    )
    assert len(problem.log) == 2 * len(VISITS)
    assert sorted(t for i, t, _ in problem.log if i == 1) == list(range(8))
    expected = 5 * problem.x0 - 0.1 * sum(g for _, _, g in problem.log)
    np.testing.assert_allclose(models.sum(0) + centre, expected, rtol=0, atol=1e-12)


def test_one_worker_cannot_tell_the_two_forms_of_easgd_apart(problem: Quadratics) -> None:
    for rule in (rules.SGD, lambda: rules.SGD(momentum=0.9, nesterov=True)):
        a = local.easgd_round_synchronous(
            problem.gradient, problem.x0, falling, 1, 8, period=2, alpha=0.3, rule=rule
        )
        b = local.easgd_asynchronous(
            problem.gradient, problem.x0, falling, 1, [0] * 4, period=2, alpha=0.3, rule=rule
        )
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_visits_that_do_not_overlap_are_atomic(problem: Quadratics) -> None:
    events = [event for i in VISITS for event in (("pull", i), ("push", i), ("step", i), ("step", i))]
    a = local.easgd_asynchronous(problem.gradient, problem.x0, falling, 4, VISITS, period=2, alpha=0.2)
    b = local.easgd_by_events(problem.gradient, problem.x0, falling, 4, events, alpha=0.2)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_a_push_between_a_pull_and_its_own_is_kept(problem: Quadratics) -> None:
    start = [("pull", 0), ("push", 0), ("step", 0), ("pull", 1), ("push", 1), ("step", 1)]
    overlapping = [("pull", 0), ("pull", 1), ("push", 1), ("push", 0)]
    models, centre = local.easgd_by_events(
        problem.gradient, problem.x0, 0.1, 2, [*start, *overlapping], alpha=0.2
    )
    moved = -0.1 * sum(g for _, _, g in problem.log)
    np.testing.assert_allclose(models.sum(0) + centre, 3 * problem.x0 + moved, rtol=0, atol=1e-12)
    np.testing.assert_allclose(centre - problem.x0, 0.2 * moved, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="no event 'visit'"):
        local.easgd_by_events(problem.gradient, problem.x0, 0.1, 2, [("visit", 0)], alpha=0.2)


def test_the_order_of_visits_matters(problem: Quadratics) -> None:
    one = local.easgd_asynchronous(problem.gradient, problem.x0, 0.1, 2, [0, 1] * 3, period=2, alpha=0.3)
    other = local.easgd_asynchronous(
        problem.gradient, problem.x0, 0.1, 2, [0, 1, 1, 0, 1, 0], period=2, alpha=0.3
    )
    assert np.abs(one[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("shares", [None, SHARES])
@pytest.mark.parametrize("step", [0.1, falling])
def test_corrections_sum_to_zero(problem: Quadratics, shares: Any, step: Any) -> None:
    _, delta = local.vrl_sgd(problem.gradient, problem.x0, step, 4, 12, period=3, shares=shares)
    p = np.full(4, 0.25) if shares is None else np.asarray(shares)
    np.testing.assert_allclose(p @ delta, np.zeros(6), rtol=0, atol=1e-12)
    assert np.abs(delta).max() > 0.1


def test_a_correction_is_the_mean_gradient_of_a_round_less_that_of_all(problem: Quadratics) -> None:
    """Also where the step size changes in the round: then a mean weighted by step sizes."""
    _, delta = local.vrl_sgd(problem.gradient, problem.x0, falling, 4, 3, period=3)
    total = sum(falling(t) for t in range(3))
    own = [sum(falling(t) * g for i, t, g in problem.log if i == worker) / total for worker in range(4)]
    np.testing.assert_allclose(delta, own - sum(own) / 4, rtol=0, atol=1e-12)


def test_the_first_round_of_vrl_is_local_sgd(problem: Quadratics) -> None:
    a, _ = local.vrl_sgd(problem.gradient, problem.x0, falling, 4, 3, period=3)
    b = local.local_sgd(problem.gradient, problem.x0, falling, 4, 3, period=3)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_vrl_of_period_1_is_s_sgd(problem: Quadratics) -> None:
    a, _ = local.vrl_sgd(problem.gradient, problem.x0, falling, 4, 7, period=1)
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 7)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [rules.SGD, lambda: rules.SGD(momentum=0.9), rules.AdamW])
def test_diloco_with_a_plain_outer_step_is_local_sgd(problem: Quadratics, inner: Any) -> None:
    a = local.diloco(
        problem.gradient, problem.x0, falling, 4, 9, period=3, inner=inner, outer_step=1.0,
        outer_momentum=0.0, shares=SHARES,
    )  # fmt: skip
    b = local.local_sgd(problem.gradient, problem.x0, falling, 4, 9, period=3, rule=inner, shares=SHARES)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_diloco_of_period_1_is_nesterovs_sgd(problem: Quadratics) -> None:
    """Inner plain steps of 0.1 make the outer gradient 0.1 times the mean gradient."""
    a = local.diloco(problem.gradient, problem.x0, 0.1, 4, 12, period=1, inner=rules.SGD)
    b = s_sgd(problem.gradient, problem.x0, 0.07, 4, 12, rule=lambda: rules.SGD(momentum=0.9, nesterov=True))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [rules.SGD, rules.AdamW])
def test_streaming_one_fragment_without_delay_is_diloco(problem: Quadratics, inner: Any) -> None:
    a, theta = local.streaming_diloco(
        problem.gradient, problem.x0, falling, 4, 9, period=3, fragments=WHOLE, inner=inner, shares=SHARES
    )
    b = local.diloco(problem.gradient, problem.x0, falling, 4, 9, period=3, inner=inner, shares=SHARES)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    np.testing.assert_allclose(theta, b[0], rtol=0, atol=1e-12)


def test_a_delayed_fragment_is_merged_late(problem: Quadratics) -> None:
    """By hand: P = 1, H = 2, delay 1, three steps; the outer gradient is that of the second step."""
    models, theta = local.streaming_diloco(
        problem.gradient, problem.x0, 0.1, 2, 3, period=2, fragments=WHOLE, delay=1, alpha=0.25,
        inner=rules.SGD,
    )  # fmt: skip
    x = [problem.x0, problem.x0]
    for t in range(2):
        x = [x[i] - 0.1 * problem.gradient(i, x[i], t) for i in range(2)]
    delta = problem.x0 - (x[0] + x[1]) / 2
    x = [x[i] - 0.1 * problem.gradient(i, x[i], 2) for i in range(2)]
    expected = problem.x0 - 0.7 * (delta + 0.9 * delta)
    np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-12)
    for i in range(2):
        np.testing.assert_allclose(models[i], 0.75 * expected + 0.25 * x[i], rtol=0, atol=1e-12)


def test_fragments_take_turns(problem: Quadratics) -> None:
    """H = 6, P = 3: fragment p is first sent after 2 (p + 1) steps, and merged one step later."""
    for steps, merged in ((2, 0), (3, 1), (4, 1), (5, 2), (7, 3), (8, 3)):
        _, theta = local.streaming_diloco(
            problem.gradient, problem.x0, 0.1, 4, steps, period=6, fragments=THIRDS, delay=1
        )
        for p, fragment in enumerate(THIRDS):
            assert (np.abs(theta - problem.x0)[fragment].max() > 0) == (p < merged)


def test_keeping_everything_local_is_to_train_alone(problem: Quadratics) -> None:
    """With alpha = 1 a merge changes no model."""
    models, theta = local.streaming_diloco(
        problem.gradient, problem.x0, 0.01, 2, 12, period=6, fragments=THIRDS, delay=1, alpha=1.0
    )
    for i in range(2):
        alone = s_sgd(
            lambda _, x, t, i=i: problem.gradient(i, x, t), problem.x0, 0.01, 1, 12, rule=rules.AdamW
        )
        np.testing.assert_allclose(models[i], alone[0], rtol=0, atol=1e-12)
    assert np.abs(theta - models).min(axis=0).max() > 1e-3


@pytest.mark.parametrize(("fragments", "delay"), [(THIRDS, 1), (WHOLE, 4), (WHOLE, -1)])
def test_fragments_that_do_not_fit_are_refused(problem: Quadratics, fragments: Any, delay: int) -> None:
    with pytest.raises(ValueError, match="must divide the period"):
        local.streaming_diloco(
            problem.gradient, problem.x0, 0.1, 2, 8, period=4, fragments=fragments, delay=delay
        )


def test_all_that_average_share_one_fixed_point() -> None:
    """Where a round of local steps brings the mean back, every outer step is 0."""
    problem = Quadratics(4, 6)
    fixed = problem.local_fixed_point(0.1, 4)
    assert np.abs(fixed - problem.optimum()).max() > 0.02
    keywords: dict[str, Any] = {"period": 4}
    for models in (
        local.local_sgd(problem.gradient, problem.x0, 0.1, 4, 1200, **keywords),
        slowmo(problem.gradient, problem.x0, 0.1, 4, 1200, beta=0.5, **keywords),
        local.diloco(problem.gradient, problem.x0, 0.1, 4, 2400, inner=rules.SGD, **keywords),
    ):
        np.testing.assert_allclose(models, [fixed] * 4, rtol=0, atol=1e-9)


def test_vrl_ends_at_the_optimum_in_spite_of_local_steps() -> None:
    problem = Quadratics(4, 6)
    models, delta = local.vrl_sgd(problem.gradient, problem.x0, 0.1, 4, 1600, period=4)
    best = problem.optimum()
    np.testing.assert_allclose(models, [best] * 4, rtol=0, atol=1e-9)
    np.testing.assert_allclose(delta, [problem.gradient(i, best, 0) for i in range(4)], rtol=0, atol=1e-8)


BIASED: dict[str, Callable[[Quadratics, float, int], Array]] = {
    "Local SGD": lambda q, step, n: local.local_sgd(q.gradient, q.x0, step, 4, n, period=4),
    "CoCoD-SGD": lambda q, step, n: local.cocod_sgd(q.gradient, q.x0, step, 4, n, period=4),
    "Overlap-Local-SGD": lambda q, step, n: local.overlap_local_sgd(
        q.gradient, q.x0, step, 4, n, period=4
    )[0],
    "Overlap-Local-SGD with anchor momentum": lambda q, step, n: local.overlap_local_sgd(
        q.gradient, q.x0, step, 4, n, period=4, beta=0.7
    )[0],
    "EASGD": lambda q, step, n: local.easgd_round_synchronous(
        q.gradient, q.x0, step, 4, n, period=4, alpha=0.2
    )[0],
    "EASGD, asynchronous": lambda q, step, n: local.easgd_asynchronous(
        q.gradient, q.x0, step, 4, [0, 1, 2, 3] * (n // 4), period=4, alpha=0.2
    )[0],
    "streaming DiLoCo": lambda q, step, n: local.streaming_diloco(
        q.gradient, q.x0, step, 4, n, period=6, fragments=THIRDS, delay=1, alpha=0.5, inner=rules.SGD
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("name", BIASED)
def test_the_distance_to_the_optimum_falls_with_the_step_size(name: str) -> None:
    """With unlike functions a constant step size ends beside the optimum, by an amount of its order.

    A quarter of it leaves about a quarter; EASGD comes to that later, once it is small beside alpha.
    """
    problem = Quadratics(4, 6)
    coarse, fine = (
        np.abs(BIASED[name](problem, step, steps).mean(0) - problem.optimum()).max()
        for step, steps in ((0.04, 600), (0.01, 2400))
    )
    assert 0.15 < fine / coarse < 0.45


@pytest.mark.parametrize("name", BIASED)
def test_identical_functions_end_at_the_optimum(name: str) -> None:
    problem = Quadratics(4, 6).identical()
    models = BIASED[name](problem, 0.1, 1200)
    np.testing.assert_allclose(models, [problem.optimum()] * 4, rtol=0, atol=1e-9)


def test_diloco_with_adamw_comes_near_the_optimum() -> None:
    problem = Quadratics(4, 6).identical()
    schedule = rules.warm_up_then_cosine(0.2, 20, 600)
    models = local.diloco(
        problem.gradient, problem.x0, schedule, 4, 600, period=20, inner=lambda: rules.AdamW(weight_decay=0.0)
    )
    assert np.abs(models - problem.optimum()).max() < 0.02 * np.abs(problem.x0 - problem.optimum()).max()
