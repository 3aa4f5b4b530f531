"""Algorithms with local steps between communications.

Sources: Stich (ICLR 2019) and Yu et al. (AAAI 2019, arXiv 1807.06629) for Local SGD; Shen et al. (IJCAI 2019,
arXiv 1906.12043) for CoCoD-SGD; Wang, Liang and Joshi (ICASSP 2020, arXiv 2002.09539) for Overlap-Local-SGD;
Zhang, Choromanska and LeCun (NeurIPS 2015, arXiv 1412.6651) for EASGD; Liang et al. (arXiv 1912.12844) for
VRL-SGD; Douillard et al. (arXiv 2311.08105 and 2501.18512) for DiLoCo and its streaming form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.algorithms.recursions.notation import Array, Gradient, StepSize, at, copies, mean, rounds_of
from tests.algorithms.recursions.rules import SGD, AdamW, Convention, MakeRule, at_average


def local_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
    state: Convention = "local",
) -> Array:
    """`period` local steps, then x_i <- sum_j p_j x_j."""
    x = copies(x0, workers)
    rules = [rule() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
        x = copies(mean(x, shares), workers)
        at_average(rules, state, shares)
    return np.array(x)


def cocod_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
) -> Array:
    """The average of the models at the round's start, plus one's own change in the round.

    The correction is made of models, so it holds for any rule; the rule's state stays local.
    """
    x = copies(x0, workers)
    rules = [rule() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        snapshot = list(x)
        average = mean(snapshot, shares)
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
        for i in range(workers):
            x[i] = average + (x[i] - snapshot[i])
    return np.array(x)


def overlap_local_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    alpha: float = 0.6,
    beta: float = 0.0,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
) -> tuple[Array, Array]:
    """Local steps, then a pull towards an anchor z that is one round old; return (models, anchor).

    At the end of a round x_i <- (1 - alpha) * x_i + alpha * z. The average p of the models so pulled back
    runs beside the next round, at whose end the anchor is

        buf <- beta * buf - (p - z) / gamma,     z <- z - gamma * buf;     with beta = 0, z = p.

    At first z = x0 and buf = 0. gamma is the step size of the first iteration of the round at whose end p
    was formed. The anchor returned is the one that the next pull would use. The rule's state stays local.
    """
    x = copies(x0, workers)
    z = np.array(x0, dtype=np.float64)
    buf = np.zeros_like(z)
    rules = [rule() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
        for i in range(workers):
            x[i] = (1 - alpha) * x[i] + alpha * z
        gamma = at(step, r * period)
        buf = beta * buf - (mean(x, shares) - z) / gamma
        z = z - gamma * buf
    return np.array(x), z


def easgd_round_synchronous(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    alpha: float,
    rule: MakeRule = SGD,
) -> tuple[Array, Array]:
    """Elastic averaging in rounds; return (models, centre).

    Each round begins with the elastic step, all differences taken from the same centre c:

        e_i = alpha * (x_i - c),     x_i <- x_i - e_i,     c <- c + sum_i e_i;

    then `period` local steps, the first gradient at the model after the elastic step. Nothing follows the
    last local step. With Nesterov's rule this is EAMSGD; the elastic step does not touch its buffer.
    """
    x = copies(x0, workers)
    c = np.array(x0, dtype=np.float64)
    rules = [rule() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        elastic = [alpha * (x[i] - c) for i in range(workers)]
        for i in range(workers):
            x[i] = x[i] - elastic[i]
            c = c + elastic[i]
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
    return np.array(x), c


def easgd_asynchronous(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    visits: Sequence[int],
    *,
    period: int,
    alpha: float,
    rule: MakeRule = SGD,
) -> tuple[Array, Array]:
    """Elastic averaging where workers visit the centre one by one; return (models, centre).

    `visits` are the workers in the order in which the server serves them. A visit is atomic: e = alpha *
    (x_i - c), c <- c + e, x_i <- x_i - e; then the worker does `period` local steps. Its first visit, before
    any local step, is in the list too. (The paper's pseudo-code takes the first gradient after a visit at
    the model before the elastic step; here it is taken after, as in the round-synchronous form.)
    """
    x = copies(x0, workers)
    c = np.array(x0, dtype=np.float64)
    rules = [rule() for _ in range(workers)]
    own = [0] * workers
    for i in visits:
        elastic = alpha * (x[i] - c)
        c = c + elastic
        x[i] = x[i] - elastic
        for _ in range(period):
            x[i] = rules[i].step(x[i], gradient(i, x[i], own[i]), at(step, own[i]))
            own[i] += 1
    return np.array(x), c


def easgd_by_events(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    events: Sequence[tuple[str, int]],
    *,
    alpha: float,
    rule: MakeRule = SGD,
) -> tuple[Array, Array]:
    """Elastic averaging whose visits may overlap, for a given order of events; return (models, centre).

        ("pull", i)     worker i takes c and moves at once: e_i = alpha * (x_i - c), x_i <- x_i - e_i
        ("push", i)     c <- c + e_i, whatever others have added to c since the pull
        ("step", i)     a local step of worker i

    Where every push follows its pull without another worker's between, this is `easgd_asynchronous`.
    """
    x, elastic = copies(x0, workers), copies(np.zeros_like(x0), workers)
    c = np.array(x0, dtype=np.float64)
    rules = [rule() for _ in range(workers)]
    own = [0] * workers
    for kind, i in events:
        if kind == "pull":
            elastic[i] = alpha * (x[i] - c)
            x[i] = x[i] - elastic[i]
        elif kind == "push":
            c = c + elastic[i]
        elif kind == "step":
            x[i] = rules[i].step(x[i], gradient(i, x[i], own[i]), at(step, own[i]))
            own[i] += 1
        else:
            raise ValueError(f"no event {kind!r}")
    return np.array(x), c


def vrl_sgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    shares: Sequence[float] | None = None,
) -> tuple[Array, Array]:
    """Variance-reduced Local SGD; return (models, corrections Delta).

        local step:   x_i <- x_i - gamma * (G_i(x_i) - Delta_i)
        average:      Delta_i <- Delta_i + (x - x_i) / (k * gamma),     x_i <- x = sum_j p_j x_j

    Delta = 0 at first. Where the step size changes, k * gamma is the sum of the round's step sizes, so that
    Delta_i - Delta_i' stays a mean of gradients. Plain SGD only: the correction is derived for it.
    """
    x = copies(x0, workers)
    delta = [np.zeros_like(x[0]) for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        k_gamma = 0.0
        for t in range(r * period, (r + 1) * period):
            k_gamma += at(step, t)
            for i in range(workers):
                x[i] = x[i] - at(step, t) * (gradient(i, x[i], t) - delta[i])
        average = mean(x, shares)
        for i in range(workers):
            delta[i] = delta[i] + (average - x[i]) / k_gamma
            x[i] = average
    return np.array(x), np.array(delta)


def diloco(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    inner: MakeRule = AdamW,
    outer_step: float = 0.7,
    outer_momentum: float = 0.9,
    shares: Sequence[float] | None = None,
) -> Array:
    """H = `period` inner steps, then an outer Nesterov step along the mean of theta - x_i.

    The outer step is torch's: m <- mu * m + delta, with m = delta at first, and theta <- theta - lr * (delta
    + mu * m). The inner state stays local and is kept from round to round.
    """
    theta = np.array(x0, dtype=np.float64)
    m = np.zeros_like(theta)
    rules = [inner() for _ in range(workers)]
    for r in range(rounds_of(steps, period)):
        x = copies(theta, workers)
        for t in range(r * period, (r + 1) * period):
            for i in range(workers):
                x[i] = rules[i].step(x[i], gradient(i, x[i], t), at(step, t))
        delta = mean([theta - x[i] for i in range(workers)], shares)
        m = outer_momentum * m + delta
        theta = theta - outer_step * (delta + outer_momentum * m)
    return np.array(copies(theta, workers))


def streaming_diloco(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    period: int,
    fragments: Sequence[NDArray[np.int64]],
    delay: int = 0,
    alpha: float = 0.0,
    inner: MakeRule = AdamW,
    outer_step: float = 0.7,
    outer_momentum: float = 0.9,
    shares: Sequence[float] | None = None,
) -> tuple[Array, Array]:
    """DiLoCo that averages one fragment of the model at a time; return (models, global model).

    `fragments` are P index arrays that cut the d coordinates; P divides H = `period`. Counting completed
    inner steps s = 1, 2, ...: after s = j * H / P fragment (j - 1) mod P is sent, that is delta = mean over
    workers of theta[f] - x_i[f] as they stand then; so fragment p is first sent after (p + 1) * H / P steps,
    and every H steps from then on. After step s + tau, tau = `delay` < H, it is merged:

        outer Nesterov step on theta[f] along delta (a momentum buffer for each fragment),
        x_i[f] <- (1 - alpha) * theta[f] + alpha * x_i[f]       (alpha = 0 forgets the local fragment).

    Where a merge and a sending fall on the same step they concern different fragments. Fragments still under
    way after the last step are not merged. P = 1, tau = 0, alpha = 0 is DiLoCo.
    """
    if period % len(fragments) or not 0 <= delay < period:
        raise ValueError("the fragments must divide the period, and the delay must be shorter than it")
    theta = np.array(x0, dtype=np.float64)
    m = np.zeros_like(theta)
    x = copies(x0, workers)
    rules = [inner() for _ in range(workers)]
    under_way: list[tuple[int, NDArray[np.int64], Array]] = []
    for s in range(1, steps + 1):
        for i in range(workers):
            x[i] = rules[i].step(x[i], gradient(i, x[i], s - 1), at(step, s - 1))
        if s % (period // len(fragments)) == 0:
            j = s // (period // len(fragments))
            f = fragments[(j - 1) % len(fragments)]
            under_way.append((s + delay, f, mean([theta[f] - x[i][f] for i in range(workers)], shares)))
        while under_way and under_way[0][0] == s:
            _, f, delta = under_way.pop(0)
            m[f] = outer_momentum * m[f] + delta
            theta[f] = theta[f] - outer_step * (delta + outer_momentum * m[f])
            for i in range(workers):
                x[i][f] = (1 - alpha) * theta[f] + alpha * x[i][f]
    return np.array(x), theta
