"""Problems with known optima for the recursions: f_i(x) = (x - b_i)^T H_i (x - b_i) / 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.algorithms.recursions.notation import Array


class Quadratics:
    """One random symmetric positive definite Hessian and one centre for each worker.

    `ripple` adds to the gradient a known disturbance that depends on the worker and the iteration, as a
    mini-batch would, so that a gradient of the wrong iteration or worker shows. Every gradient that is
    asked for is kept in `log`, as (worker, t, gradient).
    """

    def __init__(self, workers: int, dimension: int, seed: int = 0, ripple: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.workers, self.dimension, self.ripple = workers, dimension, ripple
        self.hessians: list[Array] = []
        self.centres: list[Array] = []
        for _ in range(workers):
            axes, _ = np.linalg.qr(random.normal(size=(dimension, dimension)))
            self.hessians.append(axes @ np.diag(random.uniform(0.3, 2.0, dimension)) @ axes.T)
            self.centres.append(3 * random.normal(size=dimension))
        self.x0 = random.normal(size=dimension)
        self.log: list[tuple[int, int, Array]] = []

    @classmethod
    def golden(cls, vectors: Mapping[str, Any]) -> Quadratics:
        """The scalar problem of the golden vectors."""
        problem = cls(len(vectors["a"]), 1)
        problem.hessians = [np.array([[float(a)]]) for a in vectors["a"]]
        problem.centres = [np.array([float(b)]) for b in vectors["b"]]
        problem.x0 = np.zeros(1)
        return problem

    def identical(self) -> Quadratics:
        """Give every worker the function of worker 0."""
        self.hessians = [self.hessians[0]] * self.workers
        self.centres = [self.centres[0]] * self.workers
        return self

    def gradient(self, worker: int, x: Array, t: int) -> Array:
        wave = np.cos(1.0 + 2.0 * worker + 0.7 * t + np.arange(self.dimension))
        value: Array = self.hessians[worker] @ (x - self.centres[worker]) + self.ripple * wave
        self.log.append((worker, t, value.copy()))
        return value

    def optimum(self, shares: Array | None = None) -> Array:
        """Return the minimiser of sum_i p_i f_i."""
        p = np.full(self.workers, 1 / self.workers) if shares is None else shares
        left = sum(p[i] * self.hessians[i] for i in range(self.workers))
        right = sum(p[i] * self.hessians[i] @ self.centres[i] for i in range(self.workers))
        return np.linalg.solve(left, right)

    def local_fixed_point(self, step: float, period: int) -> Array:
        """Return the point at which the mean of all workers' `period` local steps brings one back.

        Worker i moves x - b_i to (I - step * H_i)^period (x - b_i).
        """
        moves = [
            np.eye(self.dimension) - np.linalg.matrix_power(np.eye(self.dimension) - step * H, period)
            for H in self.hessians
        ]
        return np.linalg.solve(sum(moves), sum(m @ b for m, b in zip(moves, self.centres, strict=True)))


def ring(n: int) -> Array:
    """Return the mixing matrix of a ring with weight 1/3 on oneself and on each neighbour (n > 2)."""
    W = np.zeros((n, n))
    for i in range(n):
        for j in (i - 1, i, i + 1):
            W[i, j % n] += 1 / 3
    return W
