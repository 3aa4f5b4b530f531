"""The recursions of SVRG and Katyusha X against closed forms and the theory's contraction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.algorithms.recursions import katyusha
from tests.algorithms.recursions.katyusha import Array


class Quadratics(NamedTuple):
    """Parts (x'Ax + s_i 2 |x|^2) / 2 + <c_i, x>, A diagonal, s_i = -1 and +1 in turn: half are not convex."""

    spectrum: Array
    linear: Array

    def part(self, i: int, x: Array) -> Array:
        return (self.spectrum + (-2.0 if i % 2 else 2.0)) * x + self.linear[i]

    def optimum(self) -> Array:
        return -self.linear.mean(axis=0) / self.spectrum

    def gap(self, x: Array) -> float:
        return float(0.5 * self.spectrum @ (x - self.optimum()) ** 2)

    def over(self, sizes: list[int]) -> katyusha.Sum:
        first = np.concatenate([[0], np.cumsum(sizes)])
        return katyusha.Sum(lambda worker, i, x: self.part(int(first[worker]) + i, x), sizes)


def quadratics(n: int, d: int = 8, seed: int = 0) -> Quadratics:
    rng = np.random.default_rng(seed)
    return Quadratics(np.geomspace(0.032, 1.52, d), rng.normal(size=(n, d)) + 0.3 * rng.normal(size=d))


def sampler(seed: int, sizes: list[int], batch: int) -> katyusha.Samples:
    return lambda worker, epoch, k: np.random.default_rng([seed, worker, epoch, k]).integers(
        sizes[worker], size=batch
    )


@pytest.fixture
def problem() -> Quadratics:
    return quadratics(24)


LENGTHS = [5, 1, 9, 4, 7, 2]


def test_half_gives_svrg(problem: Quadratics) -> None:
    f, draws = problem.over([24]), sampler(1, [24], 3)
    x0 = np.ones(8)
    one = katyusha.katyusha_xs(f, x0, 0.05, 0.5, LENGTHS, draws)
    other = katyusha.svrg(f, x0, 0.05, LENGTHS, draws)
    np.testing.assert_allclose(one.ends, other.ends, rtol=0, atol=1e-13)


@pytest.mark.parametrize("prox", [katyusha.no_prox, katyusha.prox_l1(0.1), katyusha.prox_l2(0.1)])
def test_forms_agree(problem: Quadratics, prox: katyusha.Prox) -> None:
    f, draws = problem.over([24]), sampler(2, [24], 2)
    c = katyusha.constants(24, 2, 3.52, 0.032)
    x0 = np.ones(8)
    strong = katyusha.katyusha_xs(f, x0, c.eta, c.tau, LENGTHS, draws, prox)
    coupled, _ = katyusha.katyusha_xs_coupled(f, x0, c, 0.032, LENGTHS, draws, prox)
    np.testing.assert_allclose(strong.ends, coupled.ends, rtol=0, atol=1e-12)
    weak = katyusha.katyusha_xw(f, x0, c.eta, LENGTHS, draws, prox)
    coupled = katyusha.katyusha_xw_coupled(f, x0, c.m, c.eta, LENGTHS, draws, prox)
    np.testing.assert_allclose(weak.ends, coupled.ends, rtol=0, atol=1e-12)
    assert np.abs(weak.ends - strong.ends).max() > 1e-3


def test_one_inner_step_is_gradient_descent(problem: Quadratics) -> None:
    run = katyusha.svrg(problem.over([24]), np.ones(8), 0.1, [1, 1, 1], sampler(3, [24], 2))
    x = np.ones(8)
    for _ in range(3):
        x = x - 0.1 * problem.spectrum * (x - problem.optimum())
    np.testing.assert_allclose(run.models, [x], rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [[12, 12], [8, 8, 8], [4, 8, 12]])
def test_workers_leave_the_full_gradient_as_it_is(problem: Quadratics, sizes: list[int]) -> None:
    x = np.linspace(-1, 1, 8)
    expected = problem.spectrum * (x - problem.optimum())
    np.testing.assert_allclose(katyusha.full_gradient(problem.over(sizes), x), expected, rtol=0, atol=1e-13)


def test_two_workers_draw_what_one_would(problem: Quadratics) -> None:
    halves, whole = sampler(4, [12, 12], 2), problem.over([24])
    both = katyusha.katyusha_xs(problem.over([12, 12]), np.ones(8), 0.05, 0.2, LENGTHS, halves)

    def together(worker: int, epoch: int, k: int) -> list[int]:
        return [*halves(0, epoch, k), *(12 + i for i in halves(1, epoch, k))]

    one = katyusha.katyusha_xs(whole, np.ones(8), 0.05, 0.2, LENGTHS, together)
    assert both.models.shape == (2, 8)
    np.testing.assert_allclose(both.ends, one.ends, rtol=0, atol=1e-13)


def test_unequal_shards_are_not_biased(problem: Quadratics) -> None:
    # The shards differ in curvature. Every sample of the two in turn: on average the second step too takes
    # the full gradient.
    sizes, x, eta = [3, 21], np.ones(8), 0.05
    f = problem.over(sizes)
    ends = [
        katyusha.svrg_epoch(f, x, eta, 2, lambda worker, epoch, k, pair=(i, j): [pair[worker]], 0)
        for i in range(3)
        for j in range(21)
    ]
    w = x - eta * katyusha.full_gradient(f, x)
    np.testing.assert_allclose(
        np.mean(ends, axis=0), w - eta * katyusha.full_gradient(f, w), rtol=0, atol=1e-13
    )


def test_prox_reaches_the_optimum_of_the_composite(problem: Quadratics) -> None:
    spectrum = np.geomspace(0.3, 1.52, 8)
    problem = problem._replace(spectrum=spectrum)
    weight = 0.2
    f, draws = problem.over([24]), sampler(5, [24], 4)
    c = katyusha.constants(24, 4, 3.52, 0.3)
    linear = problem.linear.mean(axis=0)
    lasso = -np.sign(linear) * np.maximum(np.abs(linear) - weight, 0) / spectrum
    ridge = -linear / (spectrum + weight)
    for prox, optimum in ((katyusha.prox_l1(weight), lasso), (katyusha.prox_l2(weight), ridge)):
        run = katyusha.katyusha_xs(f, np.zeros(8), c.eta, c.tau, [6] * 60, draws, prox)
        np.testing.assert_allclose(run.models[0], optimum, rtol=0, atol=1e-6)
    assert np.count_nonzero(lasso) not in (0, 8)


def test_contraction_and_the_knee_at_the_root_of_n() -> None:
    # L = 3.52 and mu = 0.032: nothing is lost up to a batch of sqrt(n) = 20, much at 80.
    n, epochs, mu = 400, 30, 0.032
    problem = quadratics(n, d=20)
    f, x0 = problem.over([n]), np.zeros(20)
    left: dict[int, float] = {}
    for batch in (1, 4, 20, 80):
        c = katyusha.constants(n, batch, 3.52, mu)
        assert 1 / (1 + c.tau) == pytest.approx(0.930 if batch == 80 else 0.869, abs=5e-4)
        phi, ends, svrg = [], [], 0.0
        for seed in range(3):
            rng = np.random.default_rng([seed, batch])
            lengths = rng.geometric(1 / c.m, size=epochs).tolist()
            table = rng.integers(n, size=(epochs, max(lengths), batch))

            def draws(worker: int, epoch: int, k: int, table: NDArray[np.int64] = table) -> Sequence[int]:
                return table[epoch, k].tolist()

            run, z = katyusha.katyusha_xs_coupled(f, x0, c, mu, lengths, draws)
            phi.append(
                [
                    katyusha.lyapunov(problem.gap(y), at, problem.optimum(), c.tau, mu)
                    for y, at in zip(run.ends, z, strict=True)
                ]
            )
            ends.append(problem.gap(run.models[0]))
            if seed == 0:
                svrg = problem.gap(katyusha.svrg(f, x0, c.eta, lengths, draws).models[0])
        mean = np.mean(phi, axis=0)
        left[batch] = mean[-1] / mean[0]
        assert left[batch] <= (1 + c.tau) ** -epochs
        assert np.mean(ends) < svrg / 10
    flat = [left[1], left[4], left[20]]
    assert max(flat) < 5 * min(flat)
    assert left[80] > 100 * max(flat)
