"""The private recursions against closed forms, and the accountant against published epsilons."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.recursions import privacy
from tests.algorithms.recursions.privacy import Array

# N, B, steps, noise multiplier; epsilon by RDP, its order, mu: dp-accounting 0.6.0, Poisson sampling,
# add or remove one, delta 1e-5.
EPSILONS = [
    (60000, 512, 4687, 1.1236, 2.9991, 7.2, 0.6421),
    (60000, 512, 1000, 1.23, 1.1784, 13.0, 0.2612),
    (60000, 256, 14062, 1.1, 2.5966, 8.1, 0.5736),
    (60000, 256, 3515, 1.3, 0.9544, 17.0, 0.2273),
    (50000, 1000, 2500, 2.2966, 2.0000, 10.0, 0.4569),
]

RULES = {
    "DP-SGD": (privacy.dp_sgd(0.7), 1.0),
    "NSGD": (privacy.nsgd(0.7, 0.1), 7.0),
    "Auto-S": (privacy.auto_s(0.7, 0.01), 70.0),
    "DP-PSAC": (privacy.dp_psac(0.7, 0.1), 0.7),
}


@pytest.mark.parametrize(("size", "batch", "steps", "sigma", "epsilon", "order", "mu"), EPSILONS)
def test_epsilon(
    size: int, batch: int, steps: int, sigma: float, epsilon: float, order: float, mu: float
) -> None:
    value, at = privacy.epsilon(batch / size, sigma, steps, 1e-5)
    assert value == pytest.approx(epsilon, abs=1e-4)
    assert at == pytest.approx(order)
    assert privacy.gaussian_mu(batch / size, sigma, steps) == pytest.approx(mu, abs=5e-5)
    assert privacy.delta_of(privacy.gaussian_mu(batch / size, sigma, steps), value) < 1e-5


@pytest.mark.parametrize("order", [2, 3, 7, 12, 40, 63])
@pytest.mark.parametrize(("q", "sigma"), [(0.0085, 1.1236), (0.02, 2.2966), (0.5, 0.6)])
def test_quadrature_gives_the_closed_form(q: float, sigma: float, order: int) -> None:
    closed = privacy.renyi_whole(q, sigma, order)
    assert privacy.renyi(q, sigma, order) == pytest.approx(closed, rel=1e-9, abs=2e-12)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    assert privacy.renyi_whole(1.0, 1.3, 5) == pytest.approx(5 / (2 * 1.3**2), rel=1e-15)
    assert privacy.renyi(1 - 1e-12, 1.3, 2.5) == pytest.approx(2.5 / (2 * 1.3**2), rel=1e-9)


@pytest.mark.parametrize(("weight", "at_zero"), RULES.values(), ids=RULES)
def test_sensitivity_is_at_most_the_threshold(weight: privacy.Weight, at_zero: float) -> None:
    assert weight(0.0) == pytest.approx(at_zero)
    for n in np.geomspace(1e-9, 1e9, 2000):
        assert weight(n) * n <= 0.7 * (1 + 1e-15)
    assert weight(1e9) * 1e9 == pytest.approx(0.7, rel=1e-8)


@pytest.mark.parametrize("r", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_largest_weight_of_dp_psac(r: float) -> None:
    at, largest = privacy.dp_psac_maximum(r)
    weight = privacy.dp_psac(1.0, r)
    grid = np.linspace(0, 1, 20_001)
    values = np.array([weight(n) for n in grid])
    assert weight(at) == pytest.approx(largest, rel=1e-12)
    assert np.max(values) == pytest.approx(largest, rel=1e-4)
    assert grid[np.argmax(values)] == pytest.approx(at, abs=1e-4)
    assert largest < 1 / r


def test_published_maxima_of_dp_psac() -> None:
    assert privacy.dp_psac_maximum(0.1) == pytest.approx((0.216, 1.878), abs=5e-4)
    assert privacy.dp_psac_maximum(0.01) == pytest.approx((0.09, 5.263), abs=5e-4)


def centred(centres: Array, worker: int, workers: int) -> Array:
    return centres[worker * len(centres) // workers : (worker + 1) * len(centres) // workers]


@pytest.mark.parametrize("rule", RULES)
def test_workers_together_do_what_one_does(rule: str) -> None:
    rng = np.random.default_rng(1)
    centres, uniform, normal = rng.normal(size=(12, 3)), rng.random((6, 12)), rng.normal(size=(6, 3))

    def run(workers: int) -> privacy.Private:
        return privacy.private_sgd(
            lambda m, x, t: x - centred(centres, m, workers),
            np.zeros(3),
            0.5,
            workers,
            6,
            masks=lambda m, t: centred(uniform[t], m, workers) < 0.25,
            noise=lambda t: normal[t],
            weight=RULES[rule][0],
            clip=0.7,
            noise_multiplier=1.1,
            expected_batch=3.0,
        )

    one, three = run(1), run(3)
    assert three.models.shape == (3, 3)
    np.testing.assert_allclose(one.released, three.released, rtol=0, atol=1e-14)
    np.testing.assert_allclose(one.models, three.models[:1], rtol=0, atol=1e-14)


def test_one_step_by_hand() -> None:
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [100.0, 0.0]])
    run = privacy.private_sgd(
        lambda m, x, t: gradients,
        np.array([1.0, 1.0]),
        0.1,
        1,
        1,
        masks=lambda m, t: np.array([True, True, False]),
        noise=lambda t: np.array([1.0, -1.0]),
        weight=privacy.dp_sgd(1.0),
        clip=1.0,
        noise_multiplier=2.0,
        expected_batch=4.0,
    )
    # (0.6, 0.8) + (0.3, 0.4) + 2 (1, -1), over the expected batch of 4 and not the 2 drawn.
    np.testing.assert_allclose(run.released, [[2.9, -0.8]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(run.models, [[1 - 0.0725, 1 + 0.02]], rtol=0, atol=1e-15)


def test_empty_batch_is_noise_alone() -> None:
    def released(scale: float) -> Array:
        return privacy.private_sgd(
            lambda m, x, t: scale * np.ones((5, 2)),
            np.zeros(2),
            0.1,
            2,
            1,
            masks=lambda m, t: np.zeros(5, dtype=bool),
            noise=lambda t: np.array([0.5, -1.0]),
            weight=privacy.dp_psac(0.7, 0.1),
            clip=0.7,
            noise_multiplier=1.5,
            expected_batch=2.0,
        ).released

    np.testing.assert_allclose(released(1.0), [[0.525, -1.05]], rtol=0, atol=1e-15)
    # The noise does not know the data.
    np.testing.assert_array_equal(released(1.0), released(1e6))


def test_noise_has_the_stated_deviation() -> None:
    rng = np.random.default_rng(2)
    run = privacy.private_sgd(
        lambda m, x, t: np.zeros((1, 1)),
        np.zeros(1),
        0.0,
        4,
        4000,
        masks=lambda m, t: np.ones(1, dtype=bool),
        noise=lambda t: rng.normal(size=1),
        weight=privacy.nsgd(0.5, 0.1),
        clip=0.5,
        noise_multiplier=1.2,
        expected_batch=4.0,
    )
    # Once in the sum, whatever the number of workers.
    assert run.released.std() == pytest.approx(0.6, rel=0.05)
