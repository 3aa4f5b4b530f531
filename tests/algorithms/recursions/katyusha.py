"""SVRG and Katyusha X on finite sums, data-parallel, as straight-line recursions.

Source: Allen-Zhu, "Katyusha X: simple momentum method for stochastic sum-of-nonconvex optimization"
(ICML 2018). F = f + psi, f the mean of n parts, each L-smooth and perhaps not convex, f convex.

Conventions chosen where the paper is silent:

- Worker w holds n_w of the n parts. The full gradient is the mean of the workers' means, weighted n_w / n; an
  inner step samples b_w of the worker's own parts with replacement and weights their mean by n_w / n, which
  keeps the estimator unbiased whatever the b_w.
- The inner length K of each epoch and the samples are given: ``lengths[epoch]`` and
  ``samples(worker, epoch, k)``, the indices of worker's own parts. The theory's K is geometric with mean m.
- A step size or a tau that changes is given by step, counted over all epochs, or by epoch.
- ``tau`` is given; the y-form needs nothing else. The z-form's alpha follows from m eta = 4 tau^2 / mu.
- The batch b of `constants` is the whole batch, the sum over the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.algorithms.recursions.notation import StepSize, at

Array = NDArray[np.float64]
Part = Callable[[int, int, Array], Array]
"""The gradient ``part(worker, i, x)`` of the worker's i-th part."""
Samples = Callable[[int, int, int], Sequence[int]]
Prox = Callable[[Array, float], Array]
"""``prox(v, eta)`` = argmin psi(x) + |x - v|^2 / (2 eta)."""


def no_prox(v: Array, eta: float) -> Array:
    """The prox of psi = 0."""
    return v


def prox_l1(weight: float) -> Prox:
    """The prox of weight |x|_1: soft thresholding."""
    return lambda v, eta: np.sign(v) * np.maximum(np.abs(v) - eta * weight, 0.0)


def prox_l2(weight: float) -> Prox:
    """The prox of (weight / 2) |x|_2^2: shrinkage."""
    return lambda v, eta: v / (1 + eta * weight)


class Constants(NamedTuple):
    """Mean inner length m = n / b, step eta = min(1, sqrt(b / m)) / (2 L), tau = sqrt(m eta mu) / 2."""

    m: float
    eta: float
    tau: float


def constants(n: int, b: int, smoothness: float, convexity: float) -> Constants:
    """Return the constants of the theory for n parts in batches of b."""
    m = n / b
    eta = min(1.0, np.sqrt(b / m)) / (2 * smoothness)
    return Constants(m, eta, np.sqrt(m * eta * convexity) / 2)


class Sum(NamedTuple):
    """A finite sum over workers: the gradient of each part, and how many parts each worker holds."""

    part: Part
    sizes: Sequence[int]


def full_gradient(f: Sum, x: Array) -> Array:
    """The gradient of f: the workers' means, weighted by their shares."""
    total = np.zeros_like(x)
    for worker, size in enumerate(f.sizes):
        mean = sum(f.part(worker, i, x) for i in range(size)) / size
        total = total + size / sum(f.sizes) * mean
    return total


def svrg_epoch(
    f: Sum,
    x: Array,
    step: StepSize,
    length: int,
    samples: Samples,
    epoch: int,
    prox: Prox = no_prox,
    before: int = 0,
) -> Array:
    """One epoch of SVRG from x: `length` steps w - eta (G + correction), each followed by the prox.

    There were `before` steps in the epochs before.
    """
    gradient = full_gradient(f, x)
    w = x
    for k in range(length):
        g = gradient
        for worker, size in enumerate(f.sizes):
            indices = samples(worker, epoch, k)
            correction = sum(f.part(worker, i, w) - f.part(worker, i, x) for i in indices) / len(indices)
            g = g + size / sum(f.sizes) * correction
        eta = at(step, before + k)
        w = prox(w - eta * g, eta)
    return w


class Epochs(NamedTuple):
    """`models` [workers, d] at the end; `starts` x_k [epochs + 1, d] and `ends` y_k [epochs + 1, d]."""

    models: Array
    starts: Array
    ends: Array


def _epochs(f: Sum, x: list[Array], y: list[Array]) -> Epochs:
    return Epochs(np.tile(y[-1], (len(f.sizes), 1)), np.array(x), np.array(y))


def svrg(
    f: Sum, x0: Array, eta: StepSize, lengths: Sequence[int], samples: Samples, prox: Prox = no_prox
) -> Epochs:
    """SVRG: every epoch starts where the last one ended."""
    x, y = [x0], [x0]
    for epoch, length in enumerate(lengths):
        x.append(y[-1])
        y.append(svrg_epoch(f, x[-1], eta, length, samples, epoch, prox, sum(lengths[:epoch])))
    return _epochs(f, x, y)


def katyusha_xs(
    f: Sum,
    x0: Array,
    eta: StepSize,
    tau: StepSize,
    lengths: Sequence[int],
    samples: Samples,
    prox: Prox = no_prox,
) -> Epochs:
    """Katyusha X^s, for strongly convex F; tau = 1/2 is SVRG."""
    x, y, y_before = [x0], [x0], x0
    for epoch, length in enumerate(lengths):
        its_tau = at(tau, epoch)
        x.append((1.5 * y[-1] + 0.5 * x[-1] - (1 - its_tau) * y_before) / (1 + its_tau))
        y_before = y[-1]
        y.append(svrg_epoch(f, x[-1], eta, length, samples, epoch, prox, sum(lengths[:epoch])))
    return _epochs(f, x, y)


def katyusha_xw(
    f: Sum, x0: Array, eta: StepSize, lengths: Sequence[int], samples: Samples, prox: Prox = no_prox
) -> Epochs:
    """Katyusha X^w, for convex F."""
    x, y, y_before = [x0], [x0], x0
    for k, length in enumerate(lengths):
        x.append(((3 * k + 1) * y[-1] + (k + 1) * x[-1] - (2 * k - 2) * y_before) / (2 * k + 4))
        y_before = y[-1]
        y.append(svrg_epoch(f, x[-1], eta, length, samples, k, prox, sum(lengths[:k])))
    return _epochs(f, x, y)


def katyusha_xs_coupled(
    f: Sum, x0: Array, c: Constants, mu: float, lengths: Sequence[int], samples: Samples, prox: Prox = no_prox
) -> tuple[Epochs, Array]:
    """Katyusha X^s in its z-form (linear coupling), with the z_k [epochs + 1, d].

    z_{k+1} = argmin |z - z_k|^2 / (2 alpha) + <g, z> + (mu / 4) |z - y_{k+1}|^2.
    """
    alpha = c.m * c.eta / (2 * c.tau)
    x, y, z = [x0], [x0], [x0]
    for epoch, length in enumerate(lengths):
        x.append(c.tau * z[-1] + (1 - c.tau) * y[-1])
        y.append(svrg_epoch(f, x[-1], c.eta, length, samples, epoch, prox))
        g = (x[-1] - y[-1]) / (c.m * c.eta)
        z.append((z[-1] / alpha - g + mu / 2 * y[-1]) / (1 / alpha + mu / 2))
    return _epochs(f, x, y), np.array(z)


def katyusha_xw_coupled(
    f: Sum, x0: Array, m: float, eta: float, lengths: Sequence[int], samples: Samples, prox: Prox = no_prox
) -> Epochs:
    """Katyusha X^w in its z-form: tau_k = 2 / (k + 2), alpha_{k+1} = m eta / (2 tau_k), mu = 0."""
    x, y, z = [x0], [x0], x0
    for k, length in enumerate(lengths):
        tau = 2 / (k + 2)
        x.append(tau * z + (1 - tau) * y[-1])
        y.append(svrg_epoch(f, x[-1], eta, length, samples, k, prox))
        z = z - m * eta / (2 * tau) * (x[-1] - y[-1]) / (m * eta)
    return _epochs(f, x, y)


def lyapunov(gap: float, z: Array, optimum: Array, tau: float, mu: float) -> float:
    """Phi = (2 / mu) (F(y) - F*) + ((1 + tau) / 2) |z - x*|^2, which falls by 1 / (1 + tau) an epoch."""
    return 2 / mu * gap + (1 + tau) / 2 * float(np.sum((z - optimum) ** 2))
