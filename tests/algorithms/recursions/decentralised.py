"""Algorithms without a centre: gossip with a mixing matrix, push-sum, and pairs.

A mixing matrix W is doubly stochastic, W[i, j] the weight of worker j's model at worker i. A push matrix P is
column-stochastic, P[i, j] the part of its mass that worker j sends to worker i.

Sources: Lian et al. (NeurIPS 2017, arXiv 1705.09056) for D-PSGD; Tang et al. (ICML 2018, arXiv 1803.07068)
for D²; Koloskova et al. (ICML 2019, arXiv 1902.00340, algorithm 2) for CHOCO-SGD; Assran et al. (ICML 2019,
arXiv 1811.10792) for SGP and overlapped SGP; Lian et al. (ICML 2018, arXiv 1710.06952) for AD-PSGD; KungFu
(Mai et al., OSDI 2020) for one-sided pair averaging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tests.algorithms.recursions.notation import Array, Gradient, StepSize, at, copies
from tests.algorithms.recursions.rules import SGD, MakeRule


def mixed(W: Array, x: Sequence[Array], i: int) -> Array:
    """Return sum_j W_ij x_j."""
    total = np.zeros_like(x[0])
    for j in range(len(x)):
        total = total + W[i, j] * x[j]
    return total


def d_psgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    W: Array,
    steps: int,
    *,
    order: Literal["combine-then-adapt", "adapt-then-combine"] = "combine-then-adapt",
    rule: MakeRule = SGD,
) -> Array:
    """x_i <- sum_j W_ij x_j - step * G_i(x_i), or x_i <- sum_j W_ij (x_j - step * G_j(x_j)).

    A rule's state stays local. In the first order the rule updates the mixed model (its weight decay acts on
    that) with the gradient at the model before mixing.
    """
    n = len(W)
    x = copies(x0, n)
    rules = [rule() for _ in range(n)]
    for t in range(steps):
        g = [gradient(i, x[i], t) for i in range(n)]
        if order == "combine-then-adapt":
            x = [rules[i].step(mixed(W, x, i), g[i], at(step, t)) for i in range(n)]
        else:
            adapted = [rules[i].step(x[i], g[i], at(step, t)) for i in range(n)]
            x = [mixed(W, adapted, i) for i in range(n)]
    return np.array(x)


def d2(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    W: Array,
    steps: int,
    *,
    form: Literal["naive", "safe"] = "safe",
) -> Array:
    """D², with the mixing matrix as given: a lazy one, (W + I)/2, is the caller's to make.

        first step     x_1 = W (x_0 - gamma_0 g_0)
        naive          x_{t+1} = W (2 x_t - x_{t-1} - gamma_t (g_t - g_{t-1}))
        safe           x_{t+1} = W (x_t - gamma_t ((x_{t-1} - x_t) / gamma_{t-1} + g_t - g_{t-1}))

    They are the same while the step size is constant; only the safe form keeps the mean on
    mean <- mean - gamma_t * mean gradient when it changes. Plain SGD only.
    """
    n = len(W)
    x = copies(x0, n)
    g = [gradient(i, x[i], 0) for i in range(n)]
    half = [x[i] - at(step, 0) * g[i] for i in range(n)]
    old_x, old_g = x, g
    x = [mixed(W, half, i) for i in range(n)]
    for t in range(1, steps):
        g = [gradient(i, x[i], t) for i in range(n)]
        half = []
        for i in range(n):
            if form == "naive":
                half.append(2 * x[i] - old_x[i] - at(step, t) * (g[i] - old_g[i]))
            else:
                moved = (old_x[i] - x[i]) / at(step, t - 1)
                half.append(x[i] - at(step, t) * (moved + g[i] - old_g[i]))
        old_x, old_g = x, g
        x = [mixed(W, half, i) for i in range(n)]
    return np.array(x)


def choco_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    W: Array,
    steps: int,
    *,
    gamma: float,
    Q: Callable[[Array, int, int], Array] = lambda v, worker, t: v,
    rule: MakeRule = SGD,
) -> Array:
    """CHOCO-SGD: gossip with replicas that all neighbours of a worker hold alike.

        half_i = x_i - step * G_i(x_i)
        q_i    = Q(half_i - r_i)                      is sent to all neighbours
        r_j   <- r_j + q_j                            at each who holds it, j itself included
        x_i   <- half_i + gamma * sum_j W_ij (r_j - r_i)

    ``Q(v, worker, t)`` compresses; by default it loses nothing. The paper's replicas start at zero, here at
    x0, which all workers know. W is symmetric. A rule's state stays local.
    """
    n = len(W)
    x = copies(x0, n)
    held = [copies(x0, n) for _ in range(n)]  # held[i][j] is what worker i holds of worker j's model
    rules = [rule() for _ in range(n)]
    for t in range(steps):
        half = [rules[i].step(x[i], gradient(i, x[i], t), at(step, t)) for i in range(n)]
        q = [Q(half[j] - held[j][j], j, t) for j in range(n)]
        for i in range(n):
            for j in range(n):
                if i == j or W[i, j]:
                    held[i][j] = held[i][j] + q[j]
        for i in range(n):
            pull = np.zeros_like(x0)
            for j in range(n):
                pull = pull + W[i, j] * (held[i][j] - held[i][i])
            x[i] = half[i] + gamma * pull
    return np.array(x)


def hops(n: int) -> list[int]:
    """Return the hops 1, 2, 4, ... below n of the exponential graph."""
    return [2**k for k in range(n) if 2**k < n]


def one_peer_exponential(n: int, t: int) -> Array:
    """Return P of iteration t: keep 1/2 and send 1/2 to rank + hop; the hops take turns, hop 1 first."""
    if n == 1:
        return np.eye(1)
    hop = hops(n)[t % len(hops(n))]
    P = np.zeros((n, n))
    for j in range(n):
        P[j, j] += 1 / 2
        P[(j + hop) % n, j] += 1 / 2
    return P


def static_exponential(n: int) -> Array:
    """Return P with equal parts for oneself and for the peers at all hops."""
    P = np.zeros((n, n))
    for j in range(n):
        for hop in [0, *hops(n)]:
            P[(j + hop) % n, j] += 1 / (1 + len(hops(n)))
    return P


def sgp(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    P: Callable[[int], Array],
    steps: int,
    *,
    rule: MakeRule = SGD,
) -> tuple[Array, Array]:
    """Stochastic gradient push; return (x, w), where the models are z = x / w.

    With z_i = x_i / w_i: x_i <- x_i - step * G_i(z_i), then x_i <- sum_j P_ij x_j and w_i <- sum_j P_ij w_j;
    at first x = x0 and w = 1. P(t) is the matrix of iteration t. A rule's state stays local, and its weight
    decay acts on x.
    """
    n = len(P(0))
    x, w = copies(x0, n), [1.0] * n
    rules = [rule() for _ in range(n)]
    for t in range(steps):
        push = P(t)
        half = [rules[i].step(x[i], gradient(i, x[i] / w[i], t), at(step, t)) for i in range(n)]
        x = [mixed(push, half, i) for i in range(n)]
        w = [sum(push[i, j] * w[j] for j in range(n)) for i in range(n)]
    return np.array(x), np.array(w)


def overlap_sgp(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    P: Callable[[int], Array],
    steps: int,
    *,
    delay: int | Callable[[int, int, int], int],
    rule: MakeRule = SGD,
) -> tuple[Array, Array, Array, float]:
    """Overlapped stochastic gradient push; return (x, w, sum of x under way, sum of w under way).

    As SGP, but what worker j sends in iteration t is added to x_i and w_i at the end of iteration t + delay,
    before the gradient of the next one; the sender keeps its own part P_jj at once. A delay of 0 is SGP,
    a constant delay tau is the latest that tau-OSGP permits; a function gives the delay by (t, sender,
    receiver), for runs where it emerges. Messages under way after the last iteration stay there, and count in
    the two sums.
    """
    n = len(P(0))
    x, w = copies(x0, n), [1.0] * n
    rules = [rule() for _ in range(n)]
    under_way: list[tuple[int, int, Array, float]] = []
    for t in range(steps):
        push = P(t)
        for j in range(n):
            half = rules[j].step(x[j], gradient(j, x[j] / w[j], t), at(step, t))
            for i in range(n):
                if i != j and push[i, j]:
                    arrives = t + (delay(t, j, i) if callable(delay) else delay)
                    under_way.append((arrives, i, push[i, j] * half, push[i, j] * w[j]))
            x[j], w[j] = push[j, j] * half, push[j, j] * w[j]
        for arrives, i, part, weight in under_way:
            if arrives == t:
                x[i], w[i] = x[i] + part, w[i] + weight
        under_way = [message for message in under_way if message[0] > t]
    flying = np.zeros_like(x[0])
    for message in under_way:
        flying = flying + message[2]
    return np.array(x), np.array(w), flying, sum(message[3] for message in under_way)


def ad_psgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    events: Sequence[tuple[str, int] | tuple[str, int, int]],
    *,
    rule: MakeRule = SGD,
) -> Array:
    """Asynchronous decentralised SGD, for a given order of atomic events.

        ("read", i)         worker i takes the point of its next gradient: its model as it stands
        ("average", i, j)   x_i and x_j both become (x_i + x_j) / 2
        ("apply", i)        x_i <- x_i - step * G_i(point), the worker's next iteration

    All workers have read x0 before the first event. A worker reads and applies in turn; any averages may lie
    between. A rule's state stays local, and its weight decay acts on the model that is updated.
    """
    x = copies(x0, workers)
    rules = [rule() for _ in range(workers)]
    point = list(x)
    own = [0] * workers
    for kind, i, *partner in events:
        if kind == "read":
            point[i] = x[i]
        elif kind == "average":
            x[i] = x[partner[0]] = (x[i] + x[partner[0]]) / 2
        elif kind == "apply":
            x[i] = rules[i].step(x[i], gradient(i, point[i], own[i]), at(step, own[i]))
            own[i] += 1
        else:
            raise ValueError(f"no event {kind!r}")
    return np.array(x)


def pair_averaging(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    events: Sequence[tuple[str, int] | tuple[str, int, int]],
    *,
    rule: MakeRule = SGD,
) -> Array:
    """One-sided pair averaging, for a given order of atomic events; the mean is not preserved.

        ("read", i)        worker i takes the point of its next gradient: its model as it stands
        ("fetch", i, j)    the model that worker j published last is taken for worker i
        ("average", i)     x_i <- (x_i + fetched) / 2; worker j notices nothing
        ("apply", i)       x_i <- x_i - step * G_i(point), the worker's next iteration
        ("publish", i)     the published model of worker i becomes x_i

    All workers have read and published x0 before the first event. KungFu's worker does read, fetch, average,
    apply, publish. A rule's state stays local.
    """
    x = copies(x0, workers)
    rules = [rule() for _ in range(workers)]
    point, published, fetched = list(x), list(x), list(x)
    own = [0] * workers
    for kind, i, *partner in events:
        if kind == "read":
            point[i] = x[i]
        elif kind == "fetch":
            fetched[i] = published[partner[0]]
        elif kind == "average":
            x[i] = (x[i] + fetched[i]) / 2
        elif kind == "apply":
            x[i] = rules[i].step(x[i], gradient(i, point[i], own[i]), at(step, own[i]))
            own[i] += 1
        elif kind == "publish":
            published[i] = x[i]
        else:
            raise ValueError(f"no event {kind!r}")
    return np.array(x)
