"""Gossip, push-sum and pairs: what they reduce to, what they preserve, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.algorithms.recursions import rules
from tests.algorithms.recursions.codecs import largest, only, scaled_sign
from tests.algorithms.recursions.decentralised import (
    ad_psgd,
    choco_sgd,
    d2,
    d_psgd,
    one_peer_exponential,
    overlap_sgp,
    pair_averaging,
    sgp,
    static_exponential,
)
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics, ring
from tests.algorithms.recursions.synchronous import s_sgd

ORDERS = ["combine-then-adapt", "adapt-then-combine"]


def falling(t: int) -> float:
    return 0.2 / (1 + t)


def dropped(t: int) -> float:
    return 0.2 if t < 5 else 0.02


def lazy_ring(n: int) -> Array:
    return (ring(n) + np.eye(n)) / 2


def uniform(n: int) -> Array:
    return np.full((n, n), 1 / n)


def lopsided(_: int) -> Array:
    """Column-stochastic but not doubly: worker 0 gathers more than it gives."""
    return np.array([[0.6, 0.5, 0.3, 0.0], [0.0, 0.4, 0.0, 0.3], [0.4, 0.0, 0.5, 0.0], [0.0, 0.1, 0.2, 0.7]])


@pytest.fixture
def problem() -> Quadratics:
    return Quadratics(4, 6, ripple=0.5)


@pytest.mark.parametrize("rule", [rules.SGD, lambda: rules.SGD(momentum=0.9)])
def test_adapt_then_combine_with_everybody_is_s_sgd(
    problem: Quadratics, rule: Callable[[], rules.Rule]
) -> None:
    a = d_psgd(problem.gradient, problem.x0, falling, uniform(4), 9, order="adapt-then-combine", rule=rule)
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 9, rule=rule)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_combine_then_adapt_with_everybody_is_the_mean_less_ones_own_gradient(problem: Quadratics) -> None:
    models = d_psgd(problem.gradient, problem.x0, 0.1, uniform(4), 9)
    last = {i: g for i, t, g in problem.log if t == 8}
    before = problem.x0 - 0.1 * sum(g for _, t, g in problem.log if t < 8) / 4
    np.testing.assert_allclose(models, [before - 0.1 * last[i] for i in range(4)], rtol=0, atol=1e-12)


def test_a_rule_sees_the_mixed_model_and_the_gradient_before_mixing(problem: Quadratics) -> None:
    models = d_psgd(
        problem.gradient, problem.x0, 0.1, ring(4), 2, rule=lambda: rules.SGD(momentum=0.9, weight_decay=0.1)
    )
    old = [problem.gradient(i, problem.x0, 0) + 0.1 * problem.x0 for i in range(4)]
    x = np.array([problem.x0 - 0.1 * g for g in old])
    mixed = ring(4) @ x
    for i in range(4):
        m = 0.9 * old[i] + problem.gradient(i, x[i], 1) + 0.1 * mixed[i]
        np.testing.assert_allclose(models[i], mixed[i] - 0.1 * m, rtol=0, atol=1e-12)


GOSSIP: dict[str, Callable[..., Array]] = {
    "D-PSGD, combine then adapt": partial(d_psgd, order=ORDERS[0]),
    "D-PSGD, adapt then combine": partial(d_psgd, order=ORDERS[1]),
    "CHOCO-SGD": partial(choco_sgd, gamma=0.5),
    "CHOCO-SGD, largest": partial(choco_sgd, gamma=0.3, Q=lambda v, worker, t: only(v, largest(v, 2))),
    "D², naive": partial(d2, form="naive"),
    "D², safe": partial(d2, form="safe"),
}


def moved_mean(problem: Quadratics, step: Any, parts: int) -> Array:
    """Return x0 less all gradients that the log holds, each at the step size of its iteration."""
    size = step if callable(step) else lambda _: step
    return problem.x0 - sum(size(t) * g for _, t, g in problem.log) / parts


@pytest.mark.parametrize("name", GOSSIP)
@pytest.mark.parametrize("n", [2, 5])
def test_the_mean_moves_by_the_mean_gradient(name: str, n: int) -> None:
    problem = Quadratics(n, 6, ripple=0.5)
    W = lazy_ring(n) if n > 2 else np.array([[0.7, 0.3], [0.3, 0.7]])
    models = GOSSIP[name](problem.gradient, problem.x0, 0.1, W, 12)
    np.testing.assert_allclose(models.mean(0), moved_mean(problem, 0.1, n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GOSSIP)
def test_only_naive_d2_loses_the_mean_when_the_step_size_drops(problem: Quadratics, name: str) -> None:
    models = GOSSIP[name](problem.gradient, problem.x0, dropped, lazy_ring(4), 12)
    off = np.abs(models.mean(0) - moved_mean(problem, dropped, 4)).max()
    if name == "D², naive":
        assert off > 0.05
    else:
        assert off < 1e-12


@pytest.mark.parametrize("name", GOSSIP)
def test_one_worker_is_plain_sgd(name: str) -> None:
    problem = Quadratics(1, 6, ripple=0.5)
    models = GOSSIP[name](problem.gradient, problem.x0, 0.1, np.eye(1), 9)
    expected = s_sgd(problem.gradient, problem.x0, 0.1, 1, 9)
    np.testing.assert_allclose(models, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GOSSIP)
def test_identical_functions_make_gossip_s_sgd(name: str) -> None:
    problem = Quadratics(4, 6).identical()
    models = GOSSIP[name](problem.gradient, problem.x0, 0.1, lazy_ring(4), 9)
    expected = s_sgd(problem.gradient, problem.x0, 0.1, 4, 9)
    np.testing.assert_allclose(models, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("W", [lazy_ring(4), uniform(4)], ids=["ring", "uniform"])
def test_the_two_forms_of_d2_agree_while_the_step_size_is_constant(problem: Quadratics, W: Array) -> None:
    a = d2(problem.gradient, problem.x0, 0.1, W, 12, form="naive")
    b = d2(problem.gradient, problem.x0, 0.1, W, 12, form="safe")
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_d2_with_everybody_is_s_sgd(problem: Quadratics) -> None:
    a = d2(problem.gradient, problem.x0, falling, uniform(4), 9)
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 9)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["naive", "safe"])
def test_d2_ends_at_the_optimum_where_d_psgd_does_not(form: Any) -> None:
    problem = Quadratics(4, 6)
    best = problem.optimum()
    models = d2(problem.gradient, problem.x0, 0.1, lazy_ring(4), 1500, form=form)
    np.testing.assert_allclose(models, [best] * 4, rtol=0, atol=1e-9)
    for order in ORDERS:
        other = d_psgd(problem.gradient, problem.x0, 0.1, lazy_ring(4), 1500, order=order)
        assert np.abs(other - best).max() > 0.05


@pytest.mark.parametrize(("smallest", "stable"), [(-0.32, True), (-0.35, False)])
def test_d2_needs_the_smallest_eigenvalue_above_minus_a_third(smallest: float, stable: bool) -> None:
    """Two workers; W has the eigenvalues 1 and `smallest`."""
    problem = Quadratics(2, 3)
    own = (1 + smallest) / 2
    W = np.array([[own, 1 - own], [1 - own, own]])
    models = d2(problem.gradient, problem.x0, 0.01, W, 1500)
    spread = np.abs(models[0] - models[1]).max()
    assert spread < 1e-3 if stable else spread > 1e3


@pytest.mark.parametrize("order", ORDERS)
def test_d_psgd_by_its_fixed_point(order: Any) -> None:
    """(I - W + step * H) x = step * H b, with W on the gradient too in the second order."""
    problem = Quadratics(4, 3)
    n, d, step, W = 4, 3, 0.1, np.kron(ring(4), np.eye(3))
    H = np.zeros((n * d, n * d))
    for i in range(n):
        H[i * d : (i + 1) * d, i * d : (i + 1) * d] = problem.hessians[i]
    pull = H if order == "combine-then-adapt" else W @ H
    fixed = np.linalg.solve(np.eye(n * d) - W + step * pull, step * pull @ np.concatenate(problem.centres))
    models = d_psgd(problem.gradient, problem.x0, step, ring(4), 1500, order=order)
    np.testing.assert_allclose(models, fixed.reshape(n, d), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", [rules.SGD, lambda: rules.SGD(momentum=0.9)])
def test_choco_sgd_that_loses_nothing_is_d_psgd(problem: Quadratics, rule: Callable[[], rules.Rule]) -> None:
    """With (1 - gamma) I + gamma W as its mixing matrix."""
    choco = choco_sgd(problem.gradient, problem.x0, falling, ring(4), 12, gamma=0.4, rule=rule)
    W = 0.6 * np.eye(4) + 0.4 * ring(4)
    mixed = d_psgd(problem.gradient, problem.x0, falling, W, 12, order="adapt-then-combine", rule=rule)
    np.testing.assert_allclose(choco, mixed, rtol=0, atol=1e-12)


LOSSY: dict[str, Any] = {"largest": lambda v, worker, t: only(v, largest(v, 2)), "sign": scaled_sign}


@pytest.mark.parametrize("lossy", LOSSY)
def test_choco_sgd_ends_where_it_would_without_compression(lossy: str) -> None:
    problem, args = Quadratics(4, 6), (0.1, ring(4), 1500)
    exact = choco_sgd(problem.gradient, problem.x0, *args, gamma=0.2)
    models = choco_sgd(problem.gradient, problem.x0, *args, gamma=0.2, Q=LOSSY[lossy])
    np.testing.assert_allclose(models, exact, rtol=0, atol=1e-9)
    once = choco_sgd(problem.gradient, problem.x0, 0.1, ring(4), 12, gamma=0.2, Q=LOSSY[lossy])
    assert np.abs(once - choco_sgd(problem.gradient, problem.x0, 0.1, ring(4), 12, gamma=0.2)).max() > 1e-2


@pytest.mark.parametrize("lossy", LOSSY)
def test_too_bold_a_consensus_step_diverges(lossy: str) -> None:
    problem = Quadratics(8, 12)
    with np.errstate(all="ignore"):
        models = choco_sgd(problem.gradient, problem.x0, 0.05, ring(8), 800, gamma=1.5, Q=LOSSY[lossy])
    assert not np.abs(models).max() < 1e3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 12])
def test_the_exponential_graphs_are_doubly_stochastic(n: int) -> None:
    for P in (static_exponential(n), *(one_peer_exponential(n, t) for t in range(4))):
        np.testing.assert_allclose(P.sum(0), np.ones(n), rtol=0, atol=1e-15)
        np.testing.assert_allclose(P.sum(1), np.ones(n), rtol=0, atol=1e-15)


def test_the_exponential_graphs_send_forward() -> None:
    """Of five workers, worker 1 sends to 2, 3 and 5 = 0; column 1 holds what becomes of its mass."""
    np.testing.assert_allclose(static_exponential(5)[:, 1], [0.25, 0.25, 0.25, 0.25, 0], rtol=0, atol=0)
    receivers = [one_peer_exponential(5, t)[:, 1].tolist() for t in range(4)]
    assert receivers == [[0, 0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0]]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_one_peer_averages_exactly_after_log_n_rounds(k: int) -> None:
    n, product = 2**k, np.eye(2**k)
    for t in range(3, 3 + k):
        product = one_peer_exponential(n, t) @ product
    np.testing.assert_array_equal(product, uniform(n))


@pytest.mark.parametrize(("n", "expected"), [(4, 1 / 3), (8, 0.5), (16, 0.6), (64, 0.714286)])
def test_the_spectrum_of_the_static_exponential_graph(n: int, expected: float) -> None:
    assert abs(np.linalg.norm(static_exponential(n) - uniform(n), 2) - expected) < 1e-6


PUSHES: dict[str, Callable[[int], Array]] = {
    "one peer": lambda t: one_peer_exponential(4, t),
    "static": lambda _: static_exponential(4),
    "lopsided": lopsided,
}


@pytest.mark.parametrize("name", PUSHES)
def test_sgp_keeps_the_sums(problem: Quadratics, name: str) -> None:
    x, w = sgp(problem.gradient, problem.x0, 0.1, PUSHES[name], 12)
    np.testing.assert_allclose(x.mean(0), moved_mean(problem, 0.1, 4), rtol=0, atol=1e-12)
    assert abs(w.sum() - 4) < 1e-12
    assert (np.abs(w - 1).max() > 0.1) == (name == "lopsided")


def uneven(t: int, sender: int, receiver: int) -> int:
    return (3 * t + sender + 2 * receiver) % 4


@pytest.mark.parametrize("delay", [1, 2, 5, uneven])
@pytest.mark.parametrize("name", PUSHES)
def test_overlapped_sgp_keeps_the_sums_with_what_is_under_way(
    problem: Quadratics, name: str, delay: Any
) -> None:
    x, w, flying_x, flying_w = overlap_sgp(problem.gradient, problem.x0, 0.1, PUSHES[name], 12, delay=delay)
    total = (x.sum(0) + flying_x) / 4
    np.testing.assert_allclose(total, moved_mean(problem, 0.1, 4), rtol=0, atol=1e-12)
    assert abs(w.sum() + flying_w - 4) < 1e-12
    assert flying_w > 0.1


@pytest.mark.parametrize("name", PUSHES)
def test_overlapped_sgp_without_delay_is_sgp(problem: Quadratics, name: str) -> None:
    x, w, flying_x, flying_w = overlap_sgp(problem.gradient, problem.x0, falling, PUSHES[name], 9, delay=0)
    expected_x, expected_w = sgp(problem.gradient, problem.x0, falling, PUSHES[name], 9)
    np.testing.assert_allclose(x, expected_x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(w, expected_w, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(flying_x, np.zeros(6))
    assert flying_w == 0


def test_overlapped_sgp_by_hand(problem: Quadratics) -> None:
    """Two workers, delay 1: what was sent in iteration 0 is there for the gradient of iteration 2."""
    P = partial(one_peer_exponential, 2)
    x, w, flying_x, flying_w = overlap_sgp(problem.gradient, problem.x0, 0.1, P, 2, delay=1)
    first = [(problem.x0 - 0.1 * problem.gradient(i, problem.x0, 0)) / 2 for i in range(2)]
    second = [(first[i] - 0.1 * problem.gradient(i, first[i] / 0.5, 1)) / 2 for i in range(2)]
    np.testing.assert_allclose(x, [second[0] + first[1], second[1] + first[0]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(w, [0.75, 0.75], rtol=0, atol=1e-15)
    np.testing.assert_allclose(flying_x, second[0] + second[1], rtol=0, atol=1e-12)
    assert flying_w == 0.5


def test_sgp_by_matrices(problem: Quadratics) -> None:
    x, w = sgp(problem.gradient, problem.x0, falling, lopsided, 3)
    X, v = np.array([problem.x0] * 4), np.ones(4)
    for t in range(3):
        G = np.array([problem.gradient(i, X[i] / v[i], t) for i in range(4)])
        X, v = lopsided(t) @ (X - falling(t) * G), lopsided(t) @ v
    np.testing.assert_allclose(x, X, rtol=0, atol=1e-12)
    np.testing.assert_allclose(w, v, rtol=0, atol=1e-12)


def test_with_doubly_stochastic_pushes_sgp_is_d_psgd(problem: Quadratics) -> None:
    x, w = sgp(problem.gradient, problem.x0, falling, lambda _: static_exponential(4), 9)
    expected = d_psgd(
        problem.gradient, problem.x0, falling, static_exponential(4), 9, order="adapt-then-combine"
    )
    np.testing.assert_allclose(x / w[:, None], expected, rtol=0, atol=1e-12)


PUSH_SUM: dict[str, Callable[[Quadratics, float, int], tuple[Array, Array]]] = {
    "SGP": lambda q, step, n: sgp(q.gradient, q.x0, step, PUSHES["one peer"], n),
    "SGP, lopsided": lambda q, step, n: sgp(q.gradient, q.x0, step, lopsided, n),
    "overlapped SGP": lambda q, step, n: overlap_sgp(
        q.gradient, q.x0, step, PUSHES["one peer"], n, delay=2
    )[:2],
    "overlapped SGP, lopsided": lambda q, step, n: overlap_sgp(
        q.gradient, q.x0, step, lopsided, n, delay=uneven
    )[:2],
}  # fmt: skip


@pytest.mark.parametrize("name", PUSH_SUM)
def test_push_sum_comes_to_the_optimum_of_the_uniform_mean(name: str) -> None:
    """Also where some send more than they get: that is what the weights w are for."""
    problem = Quadratics(4, 6)
    errors = []
    for step, steps in ((0.04, 400), (0.01, 1600)):
        x, w = PUSH_SUM[name](problem, step, steps)
        errors.append(np.abs(x / w[:, None] - problem.optimum()).max())
    assert 0.15 < errors[1] / errors[0] < 0.35


def test_the_weights_keep_overlapped_sgp_unbiased() -> None:
    """Without gradients after the first: all come to the same point, the mean of all mass over all weight."""
    problem = Quadratics(4, 6)

    def once(i: int, x: Array, t: int) -> Array:
        return problem.gradient(i, x, t) if t == 0 else np.zeros_like(x)

    x, w, _, _ = overlap_sgp(once, problem.x0, 0.1, lopsided, 300, delay=uneven)
    expected = problem.x0 - 0.1 * sum(problem.gradient(i, problem.x0, 0) for i in range(4)) / 4
    np.testing.assert_allclose(x / w[:, None], [expected] * 4, rtol=0, atol=1e-9)
    assert np.abs(x - expected).max() > 0.1


Event = tuple[Any, ...]


def random_pairs(seed: int, count: int) -> list[Event]:
    """Draw averages, reads and applications in any order in which a worker reads before it applies."""
    random = np.random.default_rng(seed)
    events: list[Event] = []
    reads = [True] * 4
    for _ in range(count):
        i, j = random.choice(4, 2, replace=False).tolist()
        if random.random() < 0.5:
            events.append(("average", i, j))
        else:
            events.append(("apply" if reads[i] else "read", i))
            reads[i] = not reads[i]
    return events


@pytest.mark.parametrize("seed", range(5))
def test_atomic_pairs_preserve_the_mean(problem: Quadratics, seed: int) -> None:
    events = random_pairs(seed, 60)
    models = ad_psgd(problem.gradient, problem.x0, 0.1, 4, events)
    assert len(problem.log) == sum(event[0] == "apply" for event in events)
    assert [t for i, t, _ in problem.log if i == 2] == list(range(sum(e == ("apply", 2) for e in events)))
    np.testing.assert_allclose(models.mean(0), moved_mean(problem, 0.1, 4), rtol=0, atol=1e-12)


def test_the_newer_model_takes_the_older_gradient(problem: Quadratics) -> None:
    """By hand: worker 0 applies at the average a gradient that it took before."""
    models = ad_psgd(
        problem.gradient, problem.x0, falling, 2,
        [("apply", 1), ("read", 1), ("average", 0, 1), ("apply", 0), ("apply", 1)],
    )  # fmt: skip
    moved = problem.x0 - 0.2 * problem.gradient(1, problem.x0, 0)
    meeting = (problem.x0 + moved) / 2
    zero = meeting - 0.2 * problem.gradient(0, problem.x0, 0)
    one = meeting - 0.1 * problem.gradient(1, moved, 1)
    np.testing.assert_allclose(models, [zero, one], rtol=0, atol=1e-12)


def kungfu(i: int, j: int) -> list[Event]:
    return [("read", i), ("fetch", i, j), ("average", i), ("apply", i), ("publish", i)]


def test_one_sided_averages_do_not_preserve_the_mean(problem: Quadratics) -> None:
    events = [event for e in range(16) for event in kungfu(e % 4, (e + 1) % 4)]
    models = pair_averaging(problem.gradient, problem.x0, 0.1, 4, events)
    assert np.abs(models.mean(0) - moved_mean(problem, 0.1, 4)).max() > 0.05


def test_one_sided_averages_by_hand(problem: Quadratics) -> None:
    """Worker 1 fetches before worker 0 publishes, and averages after."""
    events: list[Event] = [("read", 1), ("fetch", 1, 0), *kungfu(0, 1), ("average", 1), ("apply", 1)]
    models = pair_averaging(problem.gradient, problem.x0, 0.1, 2, [*events, *kungfu(0, 1)])
    zero = problem.x0 - 0.1 * problem.gradient(0, problem.x0, 0)
    one = problem.x0 - 0.1 * problem.gradient(1, problem.x0, 0)
    # Worker 1 has not published yet: worker 0 gets x0 once more.
    again = (zero + problem.x0) / 2 - 0.1 * problem.gradient(0, zero, 1)
    np.testing.assert_allclose(models, [again, one], rtol=0, atol=1e-12)


def test_an_unknown_event_is_refused(problem: Quadratics) -> None:
    for recursion in (ad_psgd, pair_averaging):
        with pytest.raises(ValueError, match="no event 'swap'"):
            recursion(problem.gradient, problem.x0, 0.1, 2, [("swap", 0)])


@pytest.mark.parametrize("name", ["atomic", "one-sided"])
def test_pairs_with_identical_functions_end_at_the_optimum(name: str) -> None:
    problem = Quadratics(4, 6).identical()
    if name == "atomic":
        models = ad_psgd(problem.gradient, problem.x0, 0.2, 4, random_pairs(0, 5000))
    else:
        random = np.random.default_rng(0)
        pairs = [random.choice(4, 2, replace=False).tolist() for _ in range(1500)]
        events = [event for i, j in pairs for event in kungfu(i, j)]
        models = pair_averaging(problem.gradient, problem.x0, 0.2, 4, events)
    np.testing.assert_allclose(models, [problem.optimum()] * 4, rtol=0, atol=1e-9)


def test_atomic_pairs_come_near_the_optimum_of_unlike_functions() -> None:
    """Every worker once in turn, each time with the next neighbour: the bias falls with the step size."""
    problem = Quadratics(4, 6)
    errors = []
    for step, cycles in ((0.04, 700), (0.01, 2800)):
        cycle = [e for i in range(4) for e in (("read", i), ("average", i, (i + 1) % 4), ("apply", i))]
        models = ad_psgd(problem.gradient, problem.x0, step, 4, cycle * cycles)
        errors.append(np.abs(models.mean(0) - problem.optimum()).max())
    assert 0.15 < errors[1] / errors[0] < 0.35
