"""Fits recover what made the times."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.calibration import fit

SIZES = [4 * 16**k for k in range(7)]


@settings(deadline=None)
@given(latency=st.floats(1e-7, 1e-2), rate=st.floats(1e5, 1e12))
def test_latency_and_rate_are_recovered(latency: float, rate: float) -> None:
    found = fit.message({size: [latency + size / rate] * 3 for size in SIZES})
    assert found.line.worst < 1e-6
    # What is lost in the other part over the whole range cannot be seen.
    assert found.latency == pytest.approx(latency, rel=1e-3, abs=1e-4 * SIZES[0] / rate)
    if SIZES[-1] / rate > 1e-2 * latency:
        assert found.rate == pytest.approx(rate, rel=1e-3)


def test_the_median_takes_no_notice_of_a_few_slow_messages() -> None:
    times = {size: [1e-5 + size / 1e9] * 20 + [1.0] * 3 for size in SIZES}
    found = fit.message(times)
    assert (found.latency, found.rate) == pytest.approx((1e-5, 1e9), rel=1e-6)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_noise_of_a_few_per_cent_moves_the_fit_by_a_few_per_cent(seed: int) -> None:
    random = np.random.default_rng(seed)
    times = {size: list((2e-5 + size / 5e8) * random.lognormal(0, 0.05, 20)) for size in SIZES}
    found = fit.message(times)
    assert (found.latency, found.rate) == pytest.approx((2e-5, 5e8), rel=0.1)


def test_a_line_knows_its_residuals_and_range() -> None:
    found = fit.line([1, 2, 4], [2.0, 3.0, 5.5])
    assert found.residuals == pytest.approx([found.at(x) / y - 1 for x, y in [(1, 2.0), (2, 3.0), (4, 5.5)]])
    assert (found.least, found.most) == (1, 4)
    assert 0 < found.worst < 0.1


def test_nothing_below_zero() -> None:
    """Times that fall with the size have no negative rate, those that bend no negative latency."""
    falling = fit.line([1, 2, 3], [3.0, 2.0, 1.5])
    assert falling.slope == 0
    assert fit.message({1: [3.0], 2: [2.0]}).rate > 0
    assert fit.line([1, 2, 3], [0.5, 2.0, 3.5]).intercept == 0


def test_one_size_gives_a_line_through_the_origin() -> None:
    found = fit.line([8], [4.0])
    assert (found.intercept, found.slope, found.residuals) == (0.0, pytest.approx(0.5), (pytest.approx(0.0),))


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], [1.0, 2.0]), ([1, 2], [1.0, 0.0])])
def test_what_makes_no_line(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="a line needs as many values of y as of x"):
        fit.line(x, y)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50))
def test_quantiles_are_those_of_the_sample(values: list[float]) -> None:
    found = fit.quantiles(values)
    assert (found[0], found[-1]) == (min(values), max(values))
    assert list(found) == sorted(found)
    assert fit.median(values) == pytest.approx(found[fit.LEVELS.index(0.5)])


@settings(deadline=None)
@given(st.floats(-0.9, 0.9), st.integers(0, 50))
def test_autocorrelation_is_recovered(correlation: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    series, last = [], 0.0
    for _ in range(4000):
        last = correlation * last + math.sqrt(1 - correlation**2) * random.standard_normal()
        series.append(last)
    assert fit.autocorrelation(series) == pytest.approx(correlation, abs=0.08)
    assert fit.autocorrelation(series, lag=2) == pytest.approx(correlation**2, abs=0.1)
    assert fit.autocorrelation([2.0] * 5) == 0.0
    assert fit.autocorrelation([2.0]) == 0.0


def test_normal_scores_keep_the_order_and_forget_the_shape() -> None:
    random = np.random.default_rng(1)
    normal = random.standard_normal(500)
    assert fit.normal_scores(list(normal)) == pytest.approx(fit.normal_scores(list(np.exp(3 * normal))))
    assert fit.normal_scores([5.0, 5.0, 5.0]) == [0.0] * 3


def test_jitter_and_slow_workers_are_told_apart() -> None:
    random = np.random.default_rng(3)
    means, slow = [0.01, 0.2], [1.0, 1.5]
    series = [
        [[factor * mean * f for f in random.lognormal(-0.02, 0.2, 3000)] for mean in means] for factor in slow
    ]
    found = fit.jitter(series)
    assert found.slowdowns == pytest.approx((1.0, 1.5), rel=0.02)
    assert found.count == 12_000
    assert abs(found.correlation) < 0.05
    assert found.values[fit.LEVELS.index(0.95)] == pytest.approx(math.exp(-0.02 + 1.645 * 0.2), rel=0.03)


@settings(deadline=None)
@given(factor=st.floats(0.05, 20), share=st.floats(0.05, 5))
def test_factors_of_a_collective_are_recovered(factor: float, share: float) -> None:
    latencies, transfers = [1e-4] * 5, [size / 1e9 for size in (1e4, 1e5, 1e6, 1e7, 1e8)]
    measured = [factor * a + b / share for a, b in zip(latencies, transfers, strict=True)]

    def model(on_latency: float, rate: float) -> list[float]:
        return [on_latency * a + b / rate for a, b in zip(latencies, transfers, strict=True)]

    found = fit.collective(model, measured)
    assert (found.latency, found.share) == pytest.approx((factor, share), rel=1e-3)
    assert found.error < 1e-6


def test_models_that_fit_alike_are_named() -> None:
    ring, tree = fit.Collective(1, 1, (0.01, -0.01)), fit.Collective(1, 1, (0.012, -0.011))
    other = fit.Collective(1, 1, (0.5, -0.3))
    assert fit.best({"tree": tree, "ring": ring, "other": other}, "ring") == ("ring", ["tree"])
    assert fit.best({"tree": tree, "other": other}, "ring") == ("tree", [])
