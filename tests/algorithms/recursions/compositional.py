"""Compositional finite sums, C-SVRG and AsyVRSC, as straight-line recursions.

f(x) = (1/n) sum_i F_i( (1/m) sum_j G_j(x) ), with G_j from R^N to R^P.

Sources: Lian, Wang, Liu, "Finite-sum composition optimization via variance reduced gradient descent"
(AISTATS 2017) for C-SVRG-1 and -2; Shen, Xu, Liu, Guo, Ling, "Asynchronous stochastic composition
optimization with variance reduction" (2018) for AsyVRSC, of which the abstract alone was at hand: its two
recursions here are a reconstruction from the estimators that it builds on, not the paper's text.

Conventions chosen where the papers are silent:

- An update draws the indices A_k for G, one outer index i, and for the Jacobian one index j (C-SVRG-1) or the
  indices B_k (C-SVRG-2); here j is a B_k of length one. All are given, drawn with replacement and apart.
- The next snapshot is the last iterate, the mean of x_1 .. x_K (not of x_0), or x_r with r in 1 .. K given.
- AsyVRSC counts updates within an epoch; the epoch's barrier lets nobody read across it. Version k of
  coordinate c is its value after the first k updates of the epoch, whether or not these touched c.
- A shared update adds to each of its coordinates atomically, in the order of the updates; none is lost.
- |Y| of N coordinates is not made up for: the step stays eta, so that the expected step is eta |Y| / N.
- A drawn delay is uniform on 0 .. tau and cut to k, so that no version is older than the snapshot.
- Policy evaluation: the inner sum is over the next state j, G_j(w) = [Phi w; S p_j (r_j + gamma <phi_j, w>)]
  in R^{2S}, with the columns j of the transitions and the rewards; the outer sum is over the state i,
  F_i(y) = (y_i - y_{S+i})^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.algorithms.recursions.notation import StepSize
from tests.algorithms.recursions.notation import at as step_size

Array = NDArray[np.float64]
Indices = Sequence[int]


class Problem(Protocol):
    """A compositional finite sum: m inner maps, n outer functions, their derivatives."""

    inner: int
    outer: int

    def g(self, j: int, x: Array) -> Array:
        """G_j(x), of shape [P]."""

    def jacobian(self, j: int, x: Array) -> Array:
        """The Jacobian of G_j at x, of shape [P, N]."""

    def f(self, i: int, y: Array) -> float:
        """F_i(y)."""

    def df(self, i: int, y: Array) -> Array:
        """The gradient of F_i at y, of shape [P]."""


class Portfolio:
    """Mean-variance portfolio over rewards r [n, N]: the variance of <r_i, x> less its mean.

    G_j(x) = [x; -<r_j, x>] and F_i(y) = <[r_i, 1], y>^2 - <r_i, y_{1:N}>.
    """

    def __init__(self, rewards: Array) -> None:
        self.rewards = rewards
        self.extended = np.column_stack([rewards, np.ones(len(rewards))])
        self.inner = self.outer = len(rewards)

    def g(self, j: int, x: Array) -> Array:
        return np.append(x, -self.rewards[j] @ x)

    def jacobian(self, j: int, x: Array) -> Array:
        return np.vstack([np.eye(x.size), -self.rewards[j]])

    def f(self, i: int, y: Array) -> float:
        return float((self.extended[i] @ y) ** 2 - self.rewards[i] @ y[:-1])

    def df(self, i: int, y: Array) -> Array:
        gradient = 2 * (self.extended[i] @ y) * self.extended[i]
        gradient[:-1] -= self.rewards[i]
        return gradient

    def hessian(self) -> Array:
        """The Hessian of f, twice the covariance of the rewards (with 1/n)."""
        centred = self.rewards - self.rewards.mean(axis=0)
        return 2 * centred.T @ centred / len(self.rewards)

    def optimum(self) -> Array:
        """The minimiser of f: the Hessian's inverse times the mean reward."""
        return np.linalg.solve(self.hessian(), self.rewards.mean(axis=0))


class PolicyEvaluation:
    """Bellman residual with features phi [S, N], transitions p [S, S], rewards r [S, S], discount gamma."""

    def __init__(self, features: Array, transitions: Array, rewards: Array, discount: float) -> None:
        self.features, self.transitions = features, transitions
        self.rewards, self.discount = rewards, discount
        self.inner = self.outer = len(features)

    def g(self, j: int, x: Array) -> Array:
        value = self.rewards[:, j] + self.discount * (self.features[j] @ x)
        return np.concatenate([self.features @ x, self.inner * self.transitions[:, j] * value])

    def jacobian(self, j: int, x: Array) -> Array:
        lower = self.inner * self.discount * np.outer(self.transitions[:, j], self.features[j])
        return np.vstack([self.features, lower])

    def f(self, i: int, y: Array) -> float:
        return float((y[i] - y[self.outer + i]) ** 2)

    def df(self, i: int, y: Array) -> Array:
        gradient = np.zeros_like(y)
        gradient[i] = 2 * (y[i] - y[self.outer + i])
        gradient[self.outer + i] = -gradient[i]
        return gradient

    def optimum(self) -> Array:
        """The least-squares solution of (Phi - gamma P Phi) w = the expected rewards."""
        matrix = self.features - self.discount * self.transitions @ self.features
        expected = (self.transitions * self.rewards).sum(axis=1)
        return np.linalg.lstsq(matrix, expected, rcond=None)[0]


def mean(terms: Sequence[Array]) -> Array:
    """The mean of arrays."""
    total = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total / len(terms)


def objective(problem: Problem, x: Array) -> float:
    """f(x)."""
    y = mean([problem.g(j, x) for j in range(problem.inner)])
    return sum([problem.f(i, y) for i in range(problem.outer)]) / problem.outer


class Snapshot(NamedTuple):
    """x~, G~ = G(x~), J~ = the Jacobian of G at x~, h~ = the gradient of f at x~."""

    x: Array
    g: Array
    jacobian: Array
    h: Array


def snapshot_at(problem: Problem, x: Array) -> Snapshot:
    """The two passes of an epoch's start: G~ and J~ first, then h~, which needs the whole G~."""
    g = mean([problem.g(j, x) for j in range(problem.inner)])
    jacobian = mean([problem.jacobian(j, x) for j in range(problem.inner)])
    df = mean([problem.df(i, g) for i in range(problem.outer)])
    return Snapshot(x, g, jacobian, jacobian.T @ df)


class Draw(NamedTuple):
    """The indices of one update: A_k for G, i for F, and j (as a sequence of one) or B_k for the Jacobian."""

    inner: Indices
    outer: int
    jacobian: Indices


def estimate(problem: Problem, estimator: int, at: Snapshot, x: Array, draw: Draw) -> Array:
    """The estimate v of the gradient of f at x: C-SVRG-1 or C-SVRG-2."""
    g = at.g - mean([problem.g(j, at.x) - problem.g(j, x) for j in draw.inner])
    if estimator == 1:
        (j,) = draw.jacobian
        now = problem.jacobian(j, x).T @ problem.df(draw.outer, g)
        then = problem.jacobian(j, at.x).T @ problem.df(draw.outer, at.g)
    else:
        change = mean([problem.jacobian(j, at.x) - problem.jacobian(j, x) for j in draw.jacobian])
        now = (at.jacobian - change).T @ problem.df(draw.outer, g)
        then = at.jacobian.T @ problem.df(draw.outer, at.g)
    return now - then + at.h


def next_snapshot(iterates: Sequence[Array], rule: str | int) -> Array:
    """The next x~ from x_0 .. x_K: ``last``, ``average`` of x_1 .. x_K, or x_r."""
    if rule == "last":
        return iterates[-1]
    if rule == "average":
        return mean(iterates[1:])
    return iterates[int(rule)]


class Update(NamedTuple):
    """One update of AsyVRSC-Shared, in the order of the counter.

    Its read took coordinate c at version `versions[c]`; it wrote the coordinates `coordinates`. It was made
    in iteration `t` of its worker.
    """

    draw: Draw
    versions: Sequence[int]
    coordinates: Sequence[int]
    t: int = 0


class Arrival(NamedTuple):
    """One gradient as it reaches the master of AsyVRSC-Distributed: computed at version `version`."""

    draw: Draw
    version: int


def shared_epoch(
    problem: Problem, x: Array, eta: StepSize, estimator: int, updates: Sequence[Update]
) -> list[Array]:
    """All the iterates x_0 .. x_K of one epoch of AsyVRSC-Shared; eta depends on a worker's iteration."""
    at = snapshot_at(problem, x)
    iterates = [x]
    for update in updates:
        read = np.array([iterates[version][c] for c, version in enumerate(update.versions)])
        v = estimate(problem, estimator, at, read, update.draw)
        x = iterates[-1].copy()
        for c in update.coordinates:
            x[c] -= step_size(eta, update.t) * v[c]
        iterates.append(x)
    return iterates


def asyvrsc_shared(
    problem: Problem,
    x0: Array,
    eta: StepSize,
    estimator: int,
    epochs: Sequence[Sequence[Update]],
    snapshots: Sequence[str | int],
) -> Array:
    """AsyVRSC-Shared: return the snapshots x~ [epochs + 1, N], the first of them x0."""
    points = [x0]
    for updates, rule in zip(epochs, snapshots, strict=True):
        points.append(next_snapshot(shared_epoch(problem, points[-1], eta, estimator, updates), rule))
    return np.array(points)


def asyvrsc_distributed(
    problem: Problem,
    x0: Array,
    eta: StepSize,
    estimator: int,
    epochs: Sequence[Sequence[Arrival]],
    snapshots: Sequence[str | int],
) -> Array:
    """AsyVRSC-Distributed: return the snapshots x~ [epochs + 1, N], the first of them x0.

    A worker pulls a consistent model of version `version`; the master applies x - eta v on arrival. eta
    depends on the number of updates that the master has made, over all epochs.
    """
    points, made = [x0], 0
    for arrivals, rule in zip(epochs, snapshots, strict=True):
        at = snapshot_at(problem, points[-1])
        iterates = [points[-1]]
        for arrival in arrivals:
            v = estimate(problem, estimator, at, iterates[arrival.version], arrival.draw)
            iterates.append(iterates[-1] - step_size(eta, made) * v)
            made += 1
        points.append(next_snapshot(iterates, rule))
    return np.array(points)


def c_svrg(
    problem: Problem,
    x0: Array,
    eta: float,
    estimator: int,
    epochs: Sequence[Sequence[Draw]],
    snapshots: Sequence[str | int],
    prox: Callable[[Array, float], Array] = lambda v, eta: v,
) -> Array:
    """C-SVRG-1 or -2 (with a prox: VRSC-PG): return the snapshots x~ [epochs + 1, N], first of them x0."""
    points = [x0]
    for draws, rule in zip(epochs, snapshots, strict=True):
        at = snapshot_at(problem, points[-1])
        iterates = [points[-1]]
        for draw in draws:
            v = estimate(problem, estimator, at, iterates[-1], draw)
            iterates.append(prox(iterates[-1] - eta * v, eta))
        points.append(next_snapshot(iterates, rule))
    return np.array(points)


def drawn_delays(length: int, longest: int, rng: np.random.Generator) -> list[int]:
    """The versions that `length` updates of an epoch were computed at, their delays drawn up to `longest`."""
    return [k - min(k, int(delay)) for k, delay in enumerate(rng.integers(longest + 1, size=length))]


def queries(problem: Problem, estimator: int, length: int, inner: int, jacobian: int) -> int:
    """Queries of one epoch: 2 m + n, and for each update 2 A + 2, and 2 more (estimator 1) or 2 B more.

    That is each G_j, Jacobian of G_j and gradient of F_i once; both points of a difference count.
    """
    each = 2 * inner + 2 + (2 * jacobian if estimator == 2 else 2)
    return 2 * problem.inner + problem.outer + length * each
