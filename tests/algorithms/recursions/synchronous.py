"""Synchronous SGD and its relatives with one model for all: S-SGD, Pipe-SGD, SlowMo.

Sources: Li et al. (NeurIPS 2018, arXiv 1811.03619) for Pipe-SGD; Wang et al. (ICLR 2020, arXiv 1910.00643)
for SlowMo.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.algorithms.recursions.notation import Array, Gradient, StepSize, at, copies, mean, rounds_of
from tests.algorithms.recursions.rules import SGD, Convention, MakeRule, at_average


def s_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
) -> Array:
    """x <- x - step * sum_i p_i G_i(x). A rule sees the mean gradient: its state is the same everywhere."""
    x = np.array(x0, dtype=np.float64)
    update = rule()
    for t in range(steps):
        x = update.step(x, mean([gradient(i, x, t) for i in range(workers)], shares), at(step, t))
    return np.array(copies(x, workers))


def pipe_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    depth: int = 2,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
) -> Array:
    """w[t] = w[t-1] - step * mean gradient at w[t-K], t = 1, ..., steps, with K = `depth`; K = 1 is S-SGD.

    The mean gradient before the first is 0: the first K - 1 updates are no-ops (the rule is not called, so
    its state starts with the first true gradient), and the gradients at w[steps-K+1], ..., w[steps-1] are
    computed but never applied. The step size is that of the update's iteration, t - 1.
    """
    w = [np.array(x0, dtype=np.float64)]
    update = rule()
    for t in range(1, steps + 1):
        old = t - depth
        if old < 0:
            w.append(w[t - 1])
        else:
            delayed = mean([gradient(i, w[old], old) for i in range(workers)], shares)
            w.append(update.step(w[t - 1], delayed, at(step, t - 1)))
    return np.array(copies(w[steps], workers))


def slowmo(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    alpha: float = 1.0,
    beta: float,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
    state: Convention = "local",
) -> Array:
    """Slow momentum over rounds of Local SGD.

    In round t, x_{t,tau} is the exact average after `period` local steps from x_{t,0}; then

        u <- beta * u + (x_{t,0} - x_{t,tau}) / gamma_t,     x_{t+1,0} = x_{t,0} - alpha * gamma_t * u.

    u = 0 at first. gamma_t is the step size of the round's first iteration (the paper's is constant in a
    round). `state` is the paper's buffer rule: local is its "maintain".
    """
    start = np.array(x0, dtype=np.float64)
    u = np.zeros_like(start)
    rules = [rule() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        x = copies(start, workers)
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
        average = mean(x, shares)
        at_average(rules, state, shares)
        gamma = at(step, r * period)
        u = beta * u + (start - average) / gamma
        start = start - alpha * gamma * u
    return np.array(copies(start, workers))
