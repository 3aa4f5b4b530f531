"""DP-SGD, NSGD, Auto-S and DP-PSAC, and the privacy that they spend, as straight-line recursions.

Sources: Abadi et al. (CCS 2016) for DP-SGD; Yang et al. (2022) for NSGD; Bu et al. (NeurIPS 2023) for Auto-S;
Xia et al. (AAAI 2023) for DP-PSAC; Mironov, Talwar, Zhang (2019) for the Renyi divergence of the sampled
Gaussian; Balle et al. (2020) for its conversion to epsilon.

Conventions chosen where the papers are silent:

- The norm is that of the whole gradient of a sample (flat clipping). No weight is capped.
- DP-SGD's weight at a gradient of zero is 1; the others are what their formulas give.
- The noise is given as one standard normal vector for all workers together; times sigma C it is added once,
  to the sum over the workers. The division is by the expected batch of all workers, never by the drawn one.
- A worker whose mask is empty adds nothing; where all are empty the step is noise alone.
- One sampling rate holds for all: each sample of each worker enters with probability q on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb, logsumexp
from scipy.stats import norm

Array = NDArray[np.float64]
Weight = Callable[[float], float]
"""The factor of a sample's gradient as a function of its norm."""
SampleGradients = Callable[[int, Array, int], Array]
"""The gradients ``g(worker, x, t)`` of all samples that the worker holds, [samples, d]."""
Masks = Callable[[int, int], NDArray[np.bool_]]
"""Which samples of the worker enter iteration t: ``mask(worker, t)``, [samples]."""

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *(float(a) for a in range(12, 64)))
"""The orders that Opacus takes."""


def dp_sgd(clip: float) -> Weight:
    """min(1, C / n)."""
    return lambda n: 1.0 if n <= clip else clip / n


def nsgd(clip: float, r: float) -> Weight:
    """C / (n + r)."""
    return lambda n: clip / (n + r)


def auto_s(clip: float, gamma: float) -> Weight:
    """C / (n + gamma)."""
    return lambda n: clip / (n + gamma)


def dp_psac(clip: float, r: float) -> Weight:
    """C / (n + r / (n + r))."""
    return lambda n: clip / (n + r / (n + r))


def dp_psac_maximum(r: float) -> tuple[float, float]:
    """Where DP-PSAC's weight with C = 1 and r < 1 is largest, sqrt(r) - r, and what it is there."""
    return np.sqrt(r) - r, 1 / (2 * np.sqrt(r) - r)


class Private(NamedTuple):
    """`models` [workers, d] at the end, and `released` [steps, d]: the noisy sums, before the division."""

    models: Array
    released: Array


def private_sgd(
    gradients: SampleGradients,
    x0: Array,
    step: float | Callable[[int], float],
    workers: int,
    steps: int,
    *,
    masks: Masks,
    noise: Callable[[int], Array],
    weight: Weight,
    clip: float,
    noise_multiplier: float,
    expected_batch: float,
) -> Private:
    """x - (eta / B) (sum_i s(|g_i|) g_i + sigma C z), data-parallel."""
    x = np.tile(x0, (workers, 1))
    released = []
    for t in range(steps):
        eta = step(t) if callable(step) else step
        total = np.zeros_like(x0)
        for m in range(workers):
            for g, taken in zip(gradients(m, x[m], t), masks(m, t), strict=True):
                if taken:
                    total = total + weight(float(np.linalg.norm(g))) * g
        total = total + noise_multiplier * clip * noise(t)
        for m in range(workers):
            x[m] = x[m] - eta / expected_batch * total
        released.append(total)
    return Private(x, np.array(released))


def renyi(q: float, sigma: float, order: float) -> float:
    """The Renyi divergence of one step, by quadrature of its definition, for any order above 1.

    log E[((1 - q) + q exp((2 z - 1) / (2 sigma^2)))^order] / (order - 1) with z ~ N(0, sigma^2). The
    trapezoidal rule converges exponentially here; the integrand has its bulk between 0 and the order.
    """
    z = np.linspace(-20 * sigma, order + 20 * sigma, 20_001)
    density = -(z**2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))
    ratio = np.logaddexp(np.log1p(-q), np.log(q) + (2 * z - 1) / (2 * sigma**2))
    return float(logsumexp(density + order * ratio) + np.log(z[1] - z[0])) / (order - 1)


def renyi_whole(q: float, sigma: float, order: int) -> float:
    """The same in closed form, for a whole order."""
    if q == 1:
        return order / (2 * sigma**2)
    k = np.arange(order + 1)
    terms = (order - k) * np.log1p(-q) + k * np.log(q) + (k**2 - k) / (2 * sigma**2)
    return float(logsumexp(terms, b=comb(order, k))) / (order - 1)


def epsilon(
    q: float, sigma: float, steps: int, delta: float, orders: Sequence[float] = ORDERS
) -> tuple[float, float]:
    """The epsilon of `steps` steps, and the order that gives it."""
    return min(
        (
            steps * renyi(q, sigma, a) - (np.log(delta) + np.log(a)) / (a - 1) + np.log((a - 1) / a),
            a,
        )
        for a in orders
    )


def gaussian_mu(q: float, sigma: float, steps: int) -> float:
    """The mu of the central limit theorem of Gaussian privacy, which understates epsilon."""
    return float(q * np.sqrt(steps) * np.sqrt(np.expm1(1 / sigma**2)))


def delta_of(mu: float, eps: float) -> float:
    """The delta at epsilon of mu-Gaussian privacy."""
    return float(norm.cdf(-eps / mu + mu / 2) - np.exp(eps) * norm.cdf(-eps / mu - mu / 2))
