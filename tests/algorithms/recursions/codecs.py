"""Gradient compression, each codec as a data-parallel recursion of SGD.

Sources: Alistarh et al., QSGD (NeurIPS 2017); Wen et al., TernGrad (NeurIPS 2017); Lin et al., Deep Gradient
Compression (ICLR 2018); Stich et al., sparsified SGD with memory (NeurIPS 2018); Karimireddy et al., error
feedback (ICML 2019); Vogels et al., PowerSGD (NeurIPS 2019).

Conventions chosen where the papers are silent:

- Workers' contributions are averaged with equal weights.
- Error feedback puts the step size before the codec (units ``step``): p = eta g + e, x - mean C(p). With
  units ``gradient``, p = g + e and x - eta mean C(p), which a changing step size tells apart.
- Top-k is exact; of equal magnitudes the lower index goes first. k = ceil(density d), computed in floats.
- Random-k sends its coordinates as they are, not times d / k: error feedback makes up for the rest.
- The scaled sign of zero is +1, as one bit has it.
- QSGD rounds up where the uniform number is below the fraction; a bucket is d' coordinates in a row, the last
  one shorter; a bucket of zeros stays zero.
- TernGrad clips each worker's layer at 2.5 standard deviations (with 1/d, about the mean) around zero, before
  the shared scaler is found; b = 1 where the uniform number u has u s < |g|.
- DGC clips each worker's raw gradient to the norm threshold / sqrt(M), before the momentum. Masking zeroes u
  where v is sent; without masking only v is zeroed.
- PowerSGD averages both P and Q. It compresses every matrix, also where that does not pay; layers of one
  dimension are averaged uncompressed. Orthonormal columns come from Gram-Schmidt, whose signs are unique;
  P Q^T does not depend on these. P must have full column rank: below it rounding noise fills the missing
  columns, and no two programs agree on the next steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Gradient = Callable[[int, Array, int], Array]
"""The gradient ``g(worker, x, t)``."""
StepSize = float | Callable[[int], float]
"""A number, or the step size of iteration t."""
Draws = Callable[[int, int], Array]
"""Uniform numbers or indices ``u(worker, t)``."""


def at(step: StepSize, t: int) -> float:
    """Return the step size of iteration t."""
    return step(t) if callable(step) else step


class Run(NamedTuple):
    """`models` and `errors` [workers, d] at the end, and `sent` [steps, workers, d] as it is decoded."""

    models: Array
    errors: Array
    sent: Array


# --- QSGD ---------------------------------------------------------------------------------------------------


def qsgd(v: Array, levels: int, uniform: Array, scaling: str = "norm", bucket: int | None = None) -> Array:
    """Q_s(v)_i = scale sgn(v_i) xi_i, with xi_i in {l / s, (l + 1) / s} around |v_i| / scale."""
    decoded = np.zeros_like(v)
    size = bucket or v.size
    for start in range(0, v.size, size):
        part = slice(start, start + size)
        scale = np.linalg.norm(v[part]) if scaling == "norm" else np.abs(v[part]).max()
        if scale > 0:
            scaled = levels * np.abs(v[part]) / scale
            level = np.floor(scaled)
            level = level + (uniform[part] < scaled - level)
            decoded[part] = scale * np.sign(v[part]) * level / levels
    return decoded


def qsgd_run(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    levels: int,
    uniform: Draws,
    scaling: str = "norm",
    bucket: int | None = None,
) -> Run:
    """x - eta mean Q_s(g), without error feedback."""
    x = np.tile(x0, (workers, 1))
    sent = []
    for t in range(steps):
        q = np.array(
            [qsgd(gradient(m, x[m], t), levels, uniform(m, t), scaling, bucket) for m in range(workers)]
        )
        for m in range(workers):
            x[m] = x[m] - at(step, t) * q.sum(axis=0) / workers
        sent.append(q)
    return Run(x, np.zeros_like(x), np.array(sent))


def qsgd_bits(d: int, levels: int, bucket: int) -> int:
    """Bits on the wire at fixed width: 2 s + 1 values a coordinate, one fp32 scale a bucket."""
    return d * int(np.ceil(np.log2(2 * levels + 1))) + 32 * -(-d // bucket)


def qsgd_elias_bound(d: int, levels: int) -> float:
    """Bound on the expected bits with Elias coding, its o(1) left out."""
    ones = levels * (levels + np.sqrt(d))
    return float((3 + 1.5 * np.log2(2 * (levels**2 + d) / ones)) * ones + 32)


def qsgd_variance_bound(d: int, levels: int) -> float:
    """Bound on E |Q(v) - v|^2 / |v|^2 with the 2-norm: min(d / s^2, sqrt(d) / s)."""
    return float(min(d / levels**2, np.sqrt(d) / levels))


# --- TernGrad -----------------------------------------------------------------------------------------------


class Ternary(NamedTuple):
    """`models` [workers, d]; `ternaries` [steps, workers, d] in -1, 0, 1; `scalers` [steps, layers]."""

    models: Array
    ternaries: Array
    scalers: Array


def clipped(layer: Array, deviations: float) -> Array:
    """A layer's gradient, clipped to so many of its standard deviations around zero."""
    limit = deviations * layer.std()
    return np.clip(layer, -limit, limit)


def terngrad_run(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    uniform: Draws,
    layers: Sequence[int],
    deviations: float | None = 2.5,
) -> Ternary:
    """x - eta s mean(sign(g) b), P(b = 1) = |g| / s, with s the largest |g| of all workers, layer by layer.

    `layers` are the sizes of the layers in the flat model.
    """
    x = np.tile(x0, (workers, 1))
    bounds = list(pairwise(np.concatenate([[0], np.cumsum(layers)]).tolist()))
    ternaries, scalers = [], []
    for t in range(steps):
        ternary = np.zeros_like(x)
        change = np.zeros_like(x0)
        scaler = []
        flat = [gradient(m, x[m], t) for m in range(workers)]
        draw = [uniform(m, t) for m in range(workers)]
        for start, end in bounds:
            g = [f[start:end] if deviations is None else clipped(f[start:end], deviations) for f in flat]
            s = max(np.abs(part).max() for part in g)
            for m in range(workers):
                b = draw[m][start:end] * s < np.abs(g[m])
                ternary[m, start:end] = np.sign(g[m]) * b
            change[start:end] = s * ternary[:, start:end].sum(axis=0) / workers
            scaler.append(s)
        for m in range(workers):
            x[m] = x[m] - at(step, t) * change
        ternaries.append(ternary)
        scalers.append(scaler)
    return Ternary(x, np.array(ternaries), np.array(scalers))


# --- Error feedback: Top-k, random-k, scaled sign -----------------------------------------------------------


def kept(d: int, density: float) -> int:
    """How many of d coordinates a density keeps."""
    return int(np.ceil(density * d))


def largest(v: Array, k: int) -> NDArray[np.int64]:
    """The indices of the k largest magnitudes, ascending; of equal ones the lower index first."""
    return np.sort(np.argsort(-np.abs(v), kind="stable")[:k])


def only(v: Array, indices: NDArray[np.int64]) -> Array:
    """`v` at some indices, zero elsewhere."""
    sparse = np.zeros_like(v)
    sparse[indices] = v[indices]
    return sparse


Codec = Callable[[Array, int, int], Array]
"""What is decoded from ``codec(p, worker, t)``."""


def top_k(k: int) -> Codec:
    """Keep the k largest magnitudes."""
    return lambda p, worker, t: only(p, largest(p, k))


def random_k(indices: Callable[[int, int], NDArray[np.int64]]) -> Codec:
    """Keep the given coordinates, unscaled."""
    return lambda p, worker, t: only(p, indices(worker, t))


def scaled_sign(p: Array, worker: int, t: int) -> Array:
    """(|p|_1 / d) sign(p), the sign of zero being +1."""
    return np.abs(p).sum() / p.size * np.where(p >= 0, 1.0, -1.0)


def error_feedback_run(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    codec: Codec,
    units: str = "step",
) -> Run:
    """p = eta g + e; Delta = C(p); x - mean Delta; e = p - Delta, with a local residual."""
    x = np.tile(x0, (workers, 1))
    e = np.zeros_like(x)
    sent = []
    for t in range(steps):
        before, after = (at(step, t), 1.0) if units == "step" else (1.0, at(step, t))
        delta = np.zeros_like(x)
        for m in range(workers):
            p = before * gradient(m, x[m], t) + e[m]
            delta[m] = codec(p, m, t)
            e[m] = p - delta[m]
        for m in range(workers):
            x[m] = x[m] - after * delta.sum(axis=0) / workers
        sent.append(delta)
    return Run(x, e, np.array(sent))


def sparse_bytes(k: int) -> int:
    """Bytes of k entries on the wire: fp32 values and int32 indices."""
    return 8 * k


# --- Deep Gradient Compression ------------------------------------------------------------------------------


class Deep(NamedTuple):
    """`models`, `momenta` u and `velocities` v [workers, d]; `sent` [steps, workers, d], decoded."""

    models: Array
    momenta: Array
    velocities: Array
    sent: Array


WARM_UP_DENSITIES = (0.25, 0.063, 0.015, 0.004, 0.001)
"""The density of each epoch; the last one holds on."""


def dgc_run(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    density: Callable[[int], float],
    momentum: float = 0.0,
    threshold: float | None = None,
    masking: bool = True,
) -> Deep:
    """u = m u + g; v = v + u; send the largest of v; zero v (masking: and u) there; x - eta mean of sent."""
    x = np.tile(x0, (workers, 1))
    u, v = np.zeros_like(x), np.zeros_like(x)
    sent = []
    for t in range(steps):
        top = np.zeros_like(x)
        for m in range(workers):
            g = gradient(m, x[m], t)
            if threshold is not None:
                g = g * min(1.0, threshold / np.sqrt(workers) / max(float(np.linalg.norm(g)), 1e-300))
            u[m] = momentum * u[m] + g
            v[m] = v[m] + u[m]
            indices = largest(v[m], kept(x0.size, density(t)))
            top[m] = only(v[m], indices)
            v[m, indices] = 0.0
            if masking:
                u[m, indices] = 0.0
        for m in range(workers):
            x[m] = x[m] - at(step, t) * top.sum(axis=0) / workers
        sent.append(top)
    return Deep(x, u, v, np.array(sent))


# --- PowerSGD -----------------------------------------------------------------------------------------------


def gram_schmidt(p: Array) -> Array:
    """Orthonormal columns by modified Gram-Schmidt; needs full column rank."""
    q = p.copy()
    for column in range(q.shape[1]):
        for before in range(column):
            q[:, column] = q[:, column] - q[:, before] @ q[:, column] * q[:, before]
        q[:, column] = q[:, column] / np.linalg.norm(q[:, column])
    return q


def householder(p: Array) -> Array:
    """Orthonormal columns by QR; the same span, signs of its own."""
    return np.linalg.qr(p)[0]


class LowRank(NamedTuple):
    """What PowerSGD gives.

    `models` and `errors` [workers, d] at the end; `outputs` [steps, d], what all apply, before the step size
    where units are ``gradient``; `factors`, the Q of each matrix, at the end.
    """

    models: Array
    errors: Array
    outputs: Array
    factors: list[Array]


def powersgd_run(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    shapes: Sequence[tuple[int, ...]],
    start: Callable[[int, int], Array],
    warm: bool = True,
    orthonormal: Callable[[Array], Array] = gram_schmidt,
    units: str = "step",
) -> LowRank:
    """P = mean M Q; orthonormalise; Q = mean M^T P; x - P Q^T; e = M - P Q^T, the *global* output.

    `shapes` are those of the layers in the flat model. ``start(layer, t)`` is the Q [columns, r] that a layer
    begins with: at step 0 alone where `warm`, else at each step.
    """
    x = np.tile(x0, (workers, 1))
    e = np.zeros_like(x)
    sizes = [int(np.prod(shape)) for shape in shapes]
    bounds = list(pairwise(np.concatenate([[0], np.cumsum(sizes)]).tolist()))
    q: dict[int, Array] = {}
    outputs = []
    for t in range(steps):
        before, after = (at(step, t), 1.0) if units == "step" else (1.0, at(step, t))
        inputs = [before * gradient(m, x[m], t) + e[m] for m in range(workers)]
        output = np.zeros_like(x0)
        for layer, (shape, (begin, end)) in enumerate(zip(shapes, bounds, strict=True)):
            parts = [p[begin:end].reshape(shape) for p in inputs]
            if len(shape) == 1:
                output[begin:end] = sum(parts) / workers
                # Nothing is lost of an uncompressed layer, though the workers' inputs differ.
                for m in range(workers):
                    e[m, begin:end] = 0.0
                continue
            if t == 0 or not warm:
                q[layer] = start(layer, t)
            p = orthonormal(sum(part @ q[layer] for part in parts) / workers)
            q[layer] = sum(part.T @ p for part in parts) / workers
            output[begin:end] = (p @ q[layer].T).ravel()
            for m in range(workers):
                e[m, begin:end] = (parts[m] - p @ q[layer].T).ravel()
        for m in range(workers):
            x[m] = x[m] - after * output
        outputs.append(output)
    return LowRank(x, e, np.array(outputs), [q[layer] for layer in sorted(q)])


def powersgd_bytes(shapes: Sequence[tuple[int, ...]], rank: int) -> int:
    """Bytes that enter the all-reduces of one step: 4 r (n + m) a matrix, 4 a coordinate of the rest."""
    return sum(4 * rank * sum(shape) if len(shape) == 2 else 4 * shape[0] for shape in shapes)
