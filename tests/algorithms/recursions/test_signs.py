"""The recursions of signs against the lemmas and the conventions that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.algorithms.recursions import signs
from tests.algorithms.recursions.signs import Array


def quadratic(centres: Array) -> signs.Gradient:
    return lambda worker, x, t: x - centres[worker]


def test_tie_rules() -> None:
    v = np.array([2.0, 0.0, 0.0, -3.0])
    draw = np.array([0.9, 0.2, 0.7, 0.1])
    assert signs.sign(v, "zero", draw).tolist() == [1, 0, 0, -1]
    assert signs.sign(v, "plus", draw).tolist() == [1, 1, 1, -1]
    assert signs.sign(v, "random", draw).tolist() == [1, 1, -1, -1]


def test_tie_of_an_even_vote() -> None:
    centres = np.array([[1.0, 1.0], [-1.0, 1.0]])
    for tie, expected in {"zero": [0.0, -1.0], "plus": [1.0, -1.0]}.items():
        run = signs.majority_vote(quadratic(centres), np.zeros(2), 0.1, 2, 1, tie=tie)
        assert run.votes[0].tolist() == expected
    uniform = {(m, 0): np.array([0.9, 0.9]) for m in range(2)} | {(signs.VOTE, 0): np.array([0.1, 0.9])}
    run = signs.majority_vote(
        quadratic(centres),
        np.zeros(2),
        0.1,
        2,
        1,
        tie="random",
        draws=lambda worker, t: uniform[worker, t],
    )
    assert run.votes[0].tolist() == [1.0, -1.0]


def test_one_worker_votes_as_signsgd() -> None:
    centre = np.array([[0.35, -0.2, 0.0]])
    run = signs.majority_vote(quadratic(centre), np.zeros(3), lambda t: 0.1 / (t + 1), 1, 9)
    alone = signs.signsgd(quadratic(centre), np.zeros(3), lambda t: 0.1 / (t + 1), 9)
    np.testing.assert_array_equal(run.models[0], alone[-1])
    np.testing.assert_array_equal(np.diff(alone, axis=0)[0], [0.1, -0.1, 0.0])


def test_momentum_is_before_the_sign_and_decay_after_the_vote() -> None:
    gradients = {0: 1.0, 1: -5.0}
    run = signs.majority_vote(
        lambda worker, x, t: np.array([gradients[t]]),
        np.array([2.0]),
        0.5,
        1,
        2,
        momentum=0.9,
        decay=0.1,
    )
    # v: 0.1, then -0.41; x: 2 - 0.5 (1 + 0.2) = 1.4, then 1.4 - 0.5 (-1 + 0.14) = 1.83.
    np.testing.assert_allclose(run.momenta, [[-0.41]], rtol=0, atol=1e-15)
    np.testing.assert_allclose(run.models, [[1.83]], rtol=0, atol=1e-15)


def test_warm_up_takes_the_sign_of_the_raw_gradient() -> None:
    def gradient(worker: int, x: Array, t: int) -> Array:
        return np.array([(5.0, -1.0)[t]])

    cold = signs.majority_vote(gradient, np.zeros(1), 1.0, 1, 2, momentum=0.9)
    warm = signs.majority_vote(gradient, np.zeros(1), 1.0, 1, 2, momentum=0.9, warm_up=2)
    assert cold.votes.ravel().tolist() == [1, 1]
    assert warm.votes.ravel().tolist() == [1, -1]
    assert warm.momenta == cold.momenta
    assert signs.warm_up_length(0.9) == 54


def test_a_minority_of_adversaries_is_outvoted() -> None:
    centres = np.tile([0.3, -0.4], (7, 1))
    honest = signs.majority_vote(quadratic(centres), np.zeros(2), 0.1, 7, 20)
    attacked = signs.majority_vote(quadratic(centres), np.zeros(2), 0.1, 7, 20, adversaries={0, 3, 5})
    lost = signs.majority_vote(quadratic(centres), np.zeros(2), 0.1, 7, 20, adversaries=range(4))
    np.testing.assert_array_equal(attacked.models, honest.models)
    np.testing.assert_array_equal(attacked.sent[:, 3], -honest.sent[:, 3])
    np.testing.assert_array_equal(lost.votes[0], -honest.votes[0])


def test_scaled_sign_keeps_what_it_did_not_send() -> None:
    rng = np.random.default_rng(1)
    targets, noise = rng.normal(size=(3, 5)), rng.normal(size=(40, 3, 5))
    applied = []

    def gradient(worker: int, x: Array, t: int) -> Array:
        applied.append(0.1 * (x - targets[worker] + noise[t, worker]))
        return x - targets[worker] + noise[t, worker]

    run = signs.scaled_sign_error_feedback(gradient, np.zeros(5), 0.1, 3, 40)
    total = np.array(applied).reshape(40, 3, 5).sum(axis=0)
    np.testing.assert_allclose(run.sent.sum(axis=0) + run.errors, total, rtol=0, atol=1e-13)
    np.testing.assert_allclose(run.models[0], -run.sent.mean(axis=1).sum(axis=0), rtol=0, atol=1e-13)
    for sent in run.sent.reshape(-1, 5):
        assert len(set(np.abs(sent))) == 1


def test_scaled_sign_converges_where_the_sign_does_not() -> None:
    # The gradients 50 (one time in ten) and -1 have the mean 4.1; the sign alone climbs.
    rng = np.random.default_rng(2)
    draws = rng.random(3000)

    def gradient(worker: int, x: Array, t: int) -> Array:
        return np.array([50.0 if draws[t] < 0.1 else -1.0])

    bare = signs.signsgd(gradient, np.zeros(1), 1e-3, 3000)
    mended = signs.scaled_sign_error_feedback(gradient, np.zeros(1), 1e-3, 1, 3000)
    assert bare[-1, 0] > 2
    assert mended.models[0, 0] < -10


def test_packing() -> None:
    rng = np.random.default_rng(3)
    for d in (1, 31, 32, 33, 100):
        values = rng.choice([-1.0, 1.0], size=d)
        words = signs.pack(values)
        assert words.nbytes == 4 * -(-d // 32)
        np.testing.assert_array_equal(signs.unpack(words, d), values)
    assert signs.pack(np.array([1.0, -1.0, 1.0, 1.0])).tolist() == [0b1101]
    with pytest.raises(ValueError, match=r"one bit holds \+1 or -1"):
        signs.pack(np.array([1.0, 0.0]))
    assert signs.bytes_sent(100, 4, "server") == 2 * 4 * 16
    assert signs.bytes_sent(100, 4, "sharded") == 2 * 3 * 16
    assert signs.bytes_sent(100, 4, "gather") == 4 * 3 * 16


@pytest.mark.parametrize("noise", ["normal", "uniform", "laplace"])
def test_sign_error_lemma(noise: str) -> None:
    rng = np.random.default_rng(4)
    draws = 100_000
    standard = {
        "normal": rng.normal(size=draws),
        "uniform": rng.uniform(-np.sqrt(3), np.sqrt(3), size=draws),
        "laplace": rng.laplace(scale=1 / np.sqrt(2), size=draws),
    }[noise]
    for ratio in (0.1, 0.5, 1.0, 1.15, 1.16, 1.5, 2.0, 3.0):
        wrong = np.mean(ratio + standard < 0)
        error = np.sqrt(wrong * (1 - wrong) / draws)
        assert wrong <= signs.wrong_sign_bound(ratio) + 4 * error
    if noise == "uniform":
        # Tight where the noise is uniform: P[wrong] = 1/2 - S / (2 sqrt(3)).
        assert np.mean(0.5 + standard < 0) == pytest.approx(signs.wrong_sign_bound(0.5), abs=0.01)


def test_vote_error_depends_on_signal_times_root_of_workers() -> None:
    rng = np.random.default_rng(5)

    def wrong(ratio: float, workers: int) -> float:
        cast = np.sign(ratio + rng.normal(size=(20_000, workers)))
        return float(np.mean(cast.sum(axis=1) < 0))

    reference = wrong(0.2, 25)
    assert reference == pytest.approx(0.21, abs=0.02)
    # Four times the workers stand half the signal; one worker is far worse.
    assert wrong(0.1, 101) == pytest.approx(reference, abs=0.015)
    assert wrong(0.4, 7) == pytest.approx(reference, abs=0.03)
    assert wrong(0.2, 1) > 0.4


@pytest.mark.parametrize(("workers", "adversaries"), [(1, 0), (5, 0), (15, 0), (15, 6)])
def test_vote_stays_below_its_bound(workers: int, adversaries: int) -> None:
    rng = np.random.default_rng(6)
    d, steps = 100, 400
    curvature = np.geomspace(0.05, 1, d)
    noise = np.full(d, 1.0)
    x0 = rng.normal(size=d)
    gap = float(0.5 * curvature @ x0**2)
    norms = []

    def gradient(worker: int, x: Array, t: int) -> Array:
        if worker == 0:
            norms.append(np.abs(curvature * x).sum())
        # A batch of K = `steps` samples.
        return curvature * x + noise / np.sqrt(steps) * rng.normal(size=d)

    eta = float(np.sqrt(gap / (curvature.sum() * steps)))
    signs.majority_vote(gradient, x0, eta, workers, steps, adversaries=range(adversaries))
    bound = signs.vote_bound(curvature, noise, gap, steps, workers, adversaries / workers)
    assert np.mean(norms) ** 2 <= bound
    assert np.mean(norms) ** 2 > bound / 100
