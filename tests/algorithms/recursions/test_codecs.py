"""The recursions of compressed SGD against the lemmas and identities of their papers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.algorithms.recursions import codecs, signs
from tests.algorithms.recursions.codecs import Array

D, M, T = 12, 3, 25


class Noisy:
    """Quadratics with noise that depends on the worker and the step; remembers what it gave."""

    def __init__(self, seed: int = 0, d: int = D, steps: int = T, noise: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        self.centres = rng.normal(size=(M, d))
        self.noise = noise * rng.normal(size=(steps, M, d))
        self.given = np.zeros((steps, M, d))

    def __call__(self, worker: int, x: Array, t: int) -> Array:
        self.given[t, worker] = x - self.centres[worker] + self.noise[t, worker]
        return self.given[t, worker].copy()

    @property
    def optimum(self) -> Array:
        return self.centres.mean(axis=0)


def decreasing(t: int) -> float:
    return 0.3 / (1 + 0.1 * t)


def uniform(seed: int, d: int = D, steps: int = T) -> codecs.Draws:
    table = np.random.default_rng(seed).random((M, steps, d))
    return lambda worker, t: table[worker, t]


# --- QSGD ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["norm", "max"])
@pytest.mark.parametrize("levels", [1, 4, 16])
def test_qsgd_is_unbiased_with_bounded_variance(scaling: str, levels: int) -> None:
    rng = np.random.default_rng(1)
    v = rng.normal(size=64) * np.geomspace(0.2, 1, 64)
    draws = 4000
    q = np.array([codecs.qsgd(v, levels, rng.random(64), scaling) for _ in range(draws)])
    deviation = q.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(q.mean(axis=0) - v) <= 5 * deviation + 1e-3)
    variance = np.mean(np.sum((q - v) ** 2, axis=1)) / (v @ v)
    assert variance <= codecs.qsgd_variance_bound(64, levels)
    if scaling == "norm":
        assert np.mean(np.count_nonzero(q, axis=1)) <= levels * (levels + 8)


def test_qsgd_by_hand() -> None:
    v = np.array([3.0, -4.0, 0.0, 0.0, 2.0])
    draw = np.array([0.39, 0.41, 0.0, 0.0, 0.0])
    # Buckets (3, -4), (0, 0), (2): with s = 4 the first is at levels 2.4 and 3.2 of the norm 5.
    decoded = codecs.qsgd(v, 4, draw, "norm", bucket=2)
    np.testing.assert_allclose(decoded, [3.75, -3.75, 0, 0, 2], rtol=0, atol=1e-15)
    decoded = codecs.qsgd(v, 4, np.full(5, 0.5), "max", bucket=2)
    np.testing.assert_allclose(decoded, [3, -4, 0, 0, 2], rtol=0, atol=1e-15)


def test_qsgd_sizes() -> None:
    assert codecs.qsgd_bits(1000, 7, 512) == 1000 * 4 + 64
    assert codecs.qsgd_bits(1000, 1, 128) == 1000 * 2 + 8 * 32
    assert codecs.qsgd_elias_bound(10_000, 1) < 32 * 10_000 / 10


def test_qsgd_run_averages_what_was_sent() -> None:
    g = Noisy()
    run = codecs.qsgd_run(g, np.ones(D), decreasing, M, T, levels=4, uniform=uniform(2), bucket=5)
    x = np.ones(D)
    for t in range(T):
        expected = [codecs.qsgd(g.given[t, m], 4, uniform(2)(m, t), "norm", 5) for m in range(M)]
        np.testing.assert_array_equal(run.sent[t], expected)
        x = x - decreasing(t) * run.sent[t].mean(axis=0)
    np.testing.assert_allclose(run.models, np.tile(x, (M, 1)), rtol=0, atol=1e-13)


# --- TernGrad -----------------------------------------------------------------------------------------------


def test_terngrad_has_at_most_two_m_plus_one_levels() -> None:
    g = Noisy()
    run = codecs.terngrad_run(g, np.ones(D), decreasing, M, T, uniform=uniform(3), layers=[4, 8])
    assert set(run.ternaries.ravel()) == {-1.0, 0.0, 1.0}
    sums = run.ternaries.sum(axis=1)
    assert len(set(sums.ravel())) <= 2 * M + 1
    assert set(np.abs(sums.ravel())) <= set(range(M + 1))
    # Each layer has a scaler: the largest clipped magnitude of all the workers.
    for t in range(T):
        for layer, part in enumerate([slice(0, 4), slice(4, 12)]):
            largest = max(np.abs(codecs.clipped(g.given[t, m, part], 2.5)).max() for m in range(M))
            assert run.scalers[t, layer] == largest


def test_terngrad_is_unbiased_without_clipping() -> None:
    gradients = np.random.default_rng(4).normal(size=(M, 6))
    draws = np.random.default_rng(5).random((M, 4000, 6))
    run = codecs.terngrad_run(
        lambda worker, x, t: gradients[worker],
        np.zeros(6),
        lambda t: 1.0,
        M,
        4000,
        uniform=lambda worker, t: draws[worker, t],
        layers=[6],
        deviations=None,
    )
    np.testing.assert_allclose(-run.models[0] / 4000, gradients.mean(axis=0), rtol=0, atol=0.06)


def test_clipping_of_terngrad() -> None:
    layer = np.array([0.0] * 15 + [16.0])
    # The standard deviation about the mean of 1 is sqrt(15).
    assert codecs.clipped(layer, 2.5).max() == pytest.approx(2.5 * np.sqrt(15))
    assert codecs.clipped(-layer, 2.5).min() == pytest.approx(-2.5 * np.sqrt(15))
    np.testing.assert_array_equal(codecs.clipped(layer, 5.0), layer)


# --- Error feedback -----------------------------------------------------------------------------------------


def some_indices(worker: int, t: int) -> NDArray[np.int64]:
    return np.random.default_rng([worker, t]).choice(D, size=4, replace=False)


CODECS = {
    "top-k": codecs.top_k(3),
    "random-k": codecs.random_k(some_indices),
    "scaled sign": codecs.scaled_sign,
}
each = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@each
@pytest.mark.parametrize("units", ["step", "gradient"])
def test_sent_and_residual_are_the_gradients(codec: codecs.Codec, units: str) -> None:
    g = Noisy()
    run = codecs.error_feedback_run(g, np.ones(D), decreasing, M, T, codec, units)
    steps = np.array([decreasing(t) if units == "step" else 1.0 for t in range(T)])
    total = np.einsum("t,tmd->md", steps, g.given)
    np.testing.assert_allclose(run.sent.sum(axis=0) + run.errors, total, rtol=0, atol=1e-12)
    assert np.abs(run.errors).max() > 1e-3


@each
def test_units_agree_while_the_step_size_is_constant(codec: codecs.Codec) -> None:
    one = codecs.error_feedback_run(Noisy(), np.ones(D), lambda t: 0.25, M, T, codec, "step")
    other = codecs.error_feedback_run(Noisy(), np.ones(D), lambda t: 0.25, M, T, codec, "gradient")
    np.testing.assert_allclose(one.models, other.models, rtol=0, atol=1e-13)
    np.testing.assert_allclose(one.errors, 0.25 * other.errors, rtol=0, atol=1e-13)
    one = codecs.error_feedback_run(Noisy(), np.ones(D), decreasing, M, T, codec, "step")
    other = codecs.error_feedback_run(Noisy(), np.ones(D), decreasing, M, T, codec, "gradient")
    assert np.abs(one.models - other.models).max() > 1e-4


@each
def test_error_feedback_converges(codec: codecs.Codec) -> None:
    g = Noisy(noise=0.0, steps=400)
    run = codecs.error_feedback_run(g, np.ones(D), lambda t: 0.02, M, 400, codec)
    assert np.linalg.norm(run.models[0] - g.optimum) < 0.1 * np.linalg.norm(1 - g.optimum)


@pytest.mark.parametrize("codec", ["top-k", "scaled sign"])
def test_contraction_of_the_codec(codec: str) -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        p = rng.normal(size=D) ** 3
        left = np.sum((CODECS[codec](p, 0, 0) - p) ** 2) / (p @ p)
        delta = 3 / D if codec == "top-k" else np.abs(p).sum() ** 2 / D / (p @ p)
        assert left <= 1 - delta + 1e-12
        if codec == "scaled sign":
            assert left == pytest.approx(1 - delta)


def test_scaled_sign_is_that_of_the_signs() -> None:
    one = codecs.error_feedback_run(Noisy(), np.ones(D), decreasing, M, T, codecs.scaled_sign)
    other = signs.scaled_sign_error_feedback(Noisy(), np.ones(D), decreasing, M, T)
    np.testing.assert_array_equal(one.models, other.models)
    np.testing.assert_array_equal(one.errors, other.errors)


def test_ties_of_top_k() -> None:
    v = np.array([1.0, -2.0, 2.0, 0.5, -1.0])
    assert codecs.largest(v, 1).tolist() == [1]
    assert codecs.largest(v, 2).tolist() == [1, 2]
    assert codecs.largest(v, 3).tolist() == [0, 1, 2]
    assert codecs.largest(np.tile([1.0, -1.0, 0.0], 100), 150).tolist() == [
        i for i in range(225) if i % 3 < 2
    ]
    assert [codecs.kept(1000, density) for density in codecs.WARM_UP_DENSITIES] == [250, 63, 15, 4, 1]
    assert codecs.kept(5, 0.001) == 1
    assert codecs.sparse_bytes(4) == 32


# --- DGC ----------------------------------------------------------------------------------------------------


def test_dgc_without_its_tricks_keeps_what_it_did_not_send() -> None:
    g = Noisy()
    run = codecs.dgc_run(g, np.ones(D), decreasing, M, T, density=lambda t: 0.2)
    np.testing.assert_allclose(run.sent.sum(axis=0) + run.velocities, g.given.sum(axis=0), rtol=0, atol=1e-12)
    assert np.all(np.count_nonzero(run.sent, axis=2) == 3)
    # It is Top-k with error feedback, the step size after the codec.
    top = codecs.error_feedback_run(Noisy(), np.ones(D), decreasing, M, T, codecs.top_k(3), "gradient")
    np.testing.assert_allclose(run.models, top.models, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masking", [True, False])
def test_dgc_at_full_density(masking: bool) -> None:
    # Masking drops the whole momentum where everything is sent; without it this is momentum SGD.
    run = codecs.dgc_run(
        Noisy(), np.ones(D), decreasing, M, T, density=lambda t: 1.0, momentum=0.9, masking=masking
    )
    g, x, u = Noisy(), np.ones(D), np.zeros(D)
    for t in range(T):
        u = (0.0 if masking else 0.9) * u + np.mean([g(m, x, t) for m in range(M)], axis=0)
        x = x - decreasing(t) * u
    np.testing.assert_allclose(run.models[0], x, rtol=0, atol=1e-12)


def test_dgc_by_hand() -> None:
    gradients = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0]])
    run = codecs.dgc_run(
        lambda worker, x, t: gradients[t],
        np.zeros(2),
        lambda t: 0.1,
        1,
        3,
        density=lambda t: 0.5,
        momentum=0.5,
        threshold=2.5,
    )
    # Clipped to (1.5, 2): send the second. Then u = (1.75, 0) and v = (3.25, 0): send the first. Then u = v =
    # (0, 1): send the second.
    np.testing.assert_allclose(run.sent[:, 0], [[0, 2], [3.25, 0], [0, 1]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(run.models, [[-0.325, -0.3]], rtol=0, atol=1e-15)
    assert not run.momenta.any()
    assert not run.velocities.any()


def test_dgc_clips_with_the_number_of_workers() -> None:
    run = codecs.dgc_run(
        lambda worker, x, t: np.array([3.0, 4.0]),
        np.zeros(2),
        lambda t: 1.0,
        4,
        1,
        density=lambda t: 1.0,
        threshold=2.0,
    )
    np.testing.assert_allclose(run.models, np.tile([-0.6, -0.8], (4, 1)), rtol=0, atol=1e-15)


# --- PowerSGD -----------------------------------------------------------------------------------------------

SHAPES = [(6, 5), (4,), (3, 4)]
SIZE = 46


def start(rank: int) -> codecs.Draws:
    return lambda layer, t: np.random.default_rng([layer, t]).normal(size=(SHAPES[layer][1], rank))


@pytest.mark.parametrize("units", ["step", "gradient"])
@pytest.mark.parametrize("warm", [True, False])
def test_powersgd_keeps_what_it_did_not_apply(warm: bool, units: str) -> None:
    g = Noisy(d=SIZE)
    run = codecs.powersgd_run(
        g, np.ones(SIZE), decreasing, M, T, shapes=SHAPES, start=start(2), warm=warm, units=units
    )
    steps = np.array([decreasing(t) if units == "step" else 1.0 for t in range(T)])
    total = np.einsum("t,tmd->d", steps, g.given)
    # Summed over the workers; the residual of one worker alone does not balance.
    np.testing.assert_allclose(
        M * run.outputs.sum(axis=0) + run.errors.sum(axis=0), total, rtol=0, atol=1e-11
    )
    alone = run.outputs.sum(axis=0) + run.errors[0] - np.einsum("t,td->d", steps, g.given[:, 0])
    assert np.abs(alone).max() > 0.1
    assert not run.errors[:, 30:34].any()


@pytest.mark.parametrize("warm", [True, False])
def test_signs_of_the_orthonormal_columns_do_not_matter(warm: bool) -> None:
    one, other = (
        codecs.powersgd_run(
            Noisy(d=SIZE),
            np.ones(SIZE),
            decreasing,
            M,
            T,
            shapes=SHAPES,
            start=start(2),
            warm=warm,
            orthonormal=orthonormal,
        )
        for orthonormal in (codecs.gram_schmidt, codecs.householder)
    )
    np.testing.assert_allclose(one.models, other.models, rtol=0, atol=1e-11)
    p = np.random.default_rng(7).normal(size=(6, 3))
    q = codecs.gram_schmidt(p)
    np.testing.assert_allclose(q.T @ q, np.eye(3), rtol=0, atol=1e-14)
    np.testing.assert_allclose(q @ (q.T @ p), p, rtol=0, atol=1e-14)


def test_error_of_powersgd_is_its_own_input_less_the_global_output() -> None:
    g = Noisy(d=SIZE)
    run = codecs.powersgd_run(g, np.ones(SIZE), decreasing, M, 1, shapes=SHAPES, start=start(2))
    for m in range(M):
        left = decreasing(0) * g.given[0, m] - run.outputs[0]
        left[30:34] = 0.0
        np.testing.assert_allclose(run.errors[m], left, rtol=0, atol=1e-14)


def test_a_warm_start_goes_on_with_the_last_factor() -> None:
    drawn: dict[bool, list[int]] = {True: [], False: []}
    for warm, steps in drawn.items():

        def first(layer: int, t: int, steps: list[int] = steps) -> Array:
            steps.append(t)
            return np.random.default_rng([layer, t]).normal(size=(SHAPES[layer][1], 1))

        codecs.powersgd_run(
            Noisy(d=SIZE), np.ones(SIZE), decreasing, M, 3, shapes=SHAPES, start=first, warm=warm
        )
    assert drawn == {True: [0, 0], False: [0, 0, 1, 1, 2, 2]}


def test_powersgd_is_exact_up_to_its_rank() -> None:
    rng = np.random.default_rng(8)
    parts = rng.normal(size=(M, 6, 2)) @ rng.normal(size=(2, 5))
    noise = rng.normal(size=(M, 6, 5))
    # The workers differ by matrices of any rank; their mean has rank 2.
    matrices = parts + noise - noise.mean(axis=0)
    run = codecs.powersgd_run(
        lambda worker, x, t: matrices[worker].ravel(),
        np.zeros(30),
        lambda t: 1.0,
        M,
        6,
        shapes=[(6, 5)],
        start=lambda layer, t: rng.normal(size=(5, 2)),
    )
    np.testing.assert_allclose(
        run.outputs, np.tile(matrices.mean(axis=0).ravel(), (6, 1)), rtol=0, atol=1e-12
    )
    assert np.abs(run.errors).max() > 0.1
    np.testing.assert_allclose(run.errors.sum(axis=0), np.zeros(30), rtol=0, atol=1e-11)


def test_warm_start_finds_the_best_approximation() -> None:
    rng = np.random.default_rng(9)
    u, _, v = np.linalg.svd(rng.normal(size=(8, 6)), full_matrices=False)
    singular = np.array([4.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    matrix = u @ np.diag(singular) @ v
    q = rng.normal(size=(6, 2))
    for _ in range(20):
        # Power iteration without error feedback: each run is one step, started with the last Q.
        run = codecs.powersgd_run(
            lambda worker, x, t: matrix.ravel(),
            np.zeros(48),
            lambda t: 1.0,
            1,
            1,
            shapes=[(8, 6)],
            start=lambda layer, t, q=q: q,
        )
        (q,) = run.factors
    assert np.linalg.norm(run.errors) == pytest.approx(np.sqrt(np.sum(singular[2:] ** 2)), rel=1e-9)


def test_powersgd_bytes() -> None:
    assert codecs.powersgd_bytes(SHAPES, 2) == 4 * 2 * 11 + 4 * 4 + 4 * 2 * 7


# --- All ----------------------------------------------------------------------------------------------------


def test_without_loss_every_codec_is_sgd() -> None:
    g, x = Noisy(d=SIZE), np.ones(SIZE)
    for t in range(T):
        x = x - decreasing(t) * np.mean([g(m, x, t) for m in range(M)], axis=0)
    whole = codecs.error_feedback_run(
        Noisy(d=SIZE), np.ones(SIZE), decreasing, M, T, codecs.top_k(SIZE)
    ).models
    dense = codecs.dgc_run(Noisy(d=SIZE), np.ones(SIZE), decreasing, M, T, density=lambda t: 1.0).models
    fine = codecs.qsgd_run(
        Noisy(d=SIZE), np.ones(SIZE), decreasing, M, T, levels=2**40, uniform=uniform(10, SIZE)
    ).models
    vectors = codecs.powersgd_run(
        Noisy(d=SIZE), np.ones(SIZE), decreasing, M, T, shapes=[(40,), (6,)], start=start(1)
    ).models
    for models, tolerance in ((whole, 1e-13), (dense, 1e-13), (fine, 1e-9), (vectors, 1e-13)):
        np.testing.assert_allclose(models, np.tile(x, (M, 1)), rtol=0, atol=tolerance)
