"""Fitting models to measured times: pure functions of numbers, without a machine.

A message or a collective takes latency + size / rate (Hockney, Parallel Computing 1994); a gradient takes
t0 + t1 · batch. Both are lines, fitted so that the sum of squared *relative* errors is least, because sizes
and times span many orders of magnitude. Times are first reduced to their median (messages) or mean
(gradients, whose spread is modelled beside). Spread is described by quantiles, order by autocorrelation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
"""The parts at which quantiles are given."""


@dataclass(frozen=True)
class Line:
    """A line y = intercept + slope · x, and how far the points are from it.

    Attributes
    ----------
    intercept, slope
        Both 0 or more.
    residuals
        (fitted - y) / y, of each point.
    least, most
        The range of x.
    """

    intercept: float
    slope: float
    residuals: tuple[float, ...]
    least: float
    most: float

    def at(self, x: float) -> float:
        """Return y on the line."""
        return self.intercept + self.slope * x

    @property
    def worst(self) -> float:
        """The largest residual in absolute value."""
        return max(map(abs, self.residuals))


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line whose intercept and slope are 0 or more, with the least squared relative errors.

    A single point gives a line through the origin.

    Raises
    ------
    ValueError
        There is no point, or a y that is not above 0.
    """
    if not x or len(x) != len(y) or min(y) <= 0:
        raise ValueError("a line needs as many values of y as of x, at least one, and all above 0")
    columns = [list(x)] if len(set(x)) == 1 else [[1.0] * len(x), list(x)]
    weights = proportions(columns, y)
    intercept, slope = (0.0, weights[0]) if len(columns) == 1 else weights
    residuals = tuple((intercept + slope * a - b) / b for a, b in zip(x, y, strict=True))
    return Line(intercept, slope, residuals, min(x), max(x))


def proportions(columns: Sequence[Sequence[float]], y: Sequence[float]) -> tuple[float, ...]:
    """Return how much of each column makes up y: none below 0, with the least squared relative errors."""
    from scipy.optimize import nnls

    measured = np.asarray(y, dtype=float)
    matrix = np.asarray(columns, dtype=float).T / measured[:, None]
    # Columns of one length: sizes are of the order of 1e8, latencies of 1.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(matrix / scale, np.ones(len(measured)))
    return tuple(float(part) for part in found / scale)


@dataclass(frozen=True)
class Message:
    """How long messages take: latency + size / rate.

    Attributes
    ----------
    latency, rate
        Seconds, and bytes/s.
    line
        The fit.
    """

    latency: Annotated[float, "s"]
    rate: Annotated[float, "B/s"]
    line: Line


def message(seconds: Mapping[int, Sequence[float]]) -> Message:
    """Fit latency and rate to the seconds of messages, by size; of each size the median counts."""
    sizes = sorted(seconds)
    fitted = line(sizes, [median(seconds[size]) for size in sizes])
    # Without a slope the largest message went as fast as the smallest; no rate that was seen is higher.
    slope = fitted.slope or fitted.at(sizes[-1]) / sizes[-1]
    return Message(fitted.intercept, 1 / slope, fitted)


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(np.asarray(values, dtype=float)))


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return float(np.mean(np.asarray(values, dtype=float)))


def quantiles(values: Sequence[float], levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
    """Return the quantiles at the levels, by straight lines between the order statistics."""
    return tuple(float(q) for q in np.quantile(np.asarray(values, dtype=float), levels))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return count, mean, coefficient of variation and quantiles, as a description shows them."""
    data = np.asarray(values, dtype=float)
    average = float(data.mean())
    named = dict(zip(("p05", "p50", "p95"), quantiles(values, (0.05, 0.5, 0.95)), strict=True))
    variation = float(data.std() / average) if average else 0.0
    return {"count": len(values), "mean": average, "variation": variation, **named}


def autocorrelation(values: Sequence[float], lag: int = 1) -> float:
    """Return the correlation of a series with itself ``lag`` steps later; 0 where nothing varies."""
    data = np.asarray(values, dtype=float)
    data = data - data.mean()
    power = float(data @ data)
    if len(data) <= lag or power <= 0:
        return 0.0
    return float(data[:-lag] @ data[lag:]) / power


def normal_scores(values: Sequence[float]) -> list[float]:
    """Return the standard normal quantile at the rank of each value; equal ones share their mean rank."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    ranks = rankdata(values)
    return [float(score) for score in ndtri((ranks - 0.5) / len(values))]


@dataclass(frozen=True)
class Jitter:
    """How gradients vary around their worker's mean.

    Attributes
    ----------
    levels, values
        Quantiles of a gradient's time over its worker's mean.
    correlation
        Of the normal scores of successive gradients of a worker, the mean over the workers.
    slowdowns
        Each worker's mean over the fastest worker's.
    count
        How many gradients.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]
    correlation: float
    slowdowns: tuple[float, ...]
    count: int


def jitter(series: Sequence[Sequence[Sequence[float]]]) -> Jitter:
    """Describe how times vary.

    Parameters
    ----------
    series
        Of each worker, for each thing that it computed, the seconds in the order of time.
    """
    ratios: list[float] = []
    correlations = []
    for own in series:
        for times in own:
            ratios += [time / mean(times) for time in times]
            correlations.append(autocorrelation(normal_scores(times)))
    relative = _relative_means(series)
    return Jitter(
        levels=LEVELS,
        values=quantiles(ratios),
        correlation=min(0.99, max(-0.99, mean(correlations))),
        slowdowns=tuple(value / min(relative) for value in relative),
        count=len(ratios),
    )


def _relative_means(series: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Return each worker's mean time over that of all workers, the mean over what was computed."""
    means = np.array([[mean(times) for times in own] for own in series])
    relative: list[float] = (means / means.mean(axis=0)).mean(axis=1).tolist()
    return relative


@dataclass(frozen=True)
class Collective:
    """How a model's latency and rate make up the measured times of a collective.

    Attributes
    ----------
    latency, share
        Factor on the model's latency, and the rate over the model's.
    residuals
        (fitted - measured) / measured, by size.
    """

    latency: float
    share: float
    residuals: tuple[float, ...]

    @property
    def error(self) -> float:
        """Root mean square of the residuals."""
        return math.sqrt(math.fsum(r * r for r in self.residuals) / len(self.residuals))


def collective(model: Callable[[float, float], Sequence[float]], measured: Sequence[float]) -> Collective:
    """Fit the factors on a model's latency and rate to measured times.

    Parameters
    ----------
    model
        Returns the seconds by size, given both factors.
    measured
        Seconds, by size.
    """
    from scipy.optimize import least_squares

    def residuals(logarithms: Array) -> list[float]:
        times = model(math.exp(logarithms[0]), math.exp(logarithms[1]))
        return [(t - m) / m for t, m in zip(times, measured, strict=True)]

    bounds = (-math.log(MOST), math.log(MOST))
    # Two begins, as the times of segments in flight are a maximum of what latency and rate make of them.
    begins = ([0.0, 0.0], [3.0, -2.0])
    fits = [
        least_squares(residuals, begin, bounds=bounds, diff_step=[1e-4, 1e-4], max_nfev=20)
        for begin in begins
    ]
    found = min(fits, key=lambda each: float(each.cost))
    latency, share = (math.exp(value) for value in found.x)
    return Collective(latency, share, tuple(residuals(found.x)))


MOST = 1e6
"""The largest factor on a latency or rate, and one over the smallest."""

ALIKE = 0.01
"""Root mean squares of residuals that differ by less do not tell two models apart."""


def best(candidates: Mapping[str, Collective], usual: str) -> tuple[str, list[str]]:
    """Return the name of the model that fits best, and those that cannot be told apart from it.

    Among equals the usual one is named.
    """
    least = min(candidate.error for candidate in candidates.values())
    alike = [name for name, candidate in candidates.items() if candidate.error <= least + ALIKE]
    chosen = usual if usual in alike else min(alike, key=lambda name: candidates[name].error)
    return chosen, [name for name in alike if name != chosen]
