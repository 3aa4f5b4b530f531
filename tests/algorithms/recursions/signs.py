"""signSGD, Signum, majority vote and scaled sign with error feedback, as straight-line recursions.

Sources: Bernstein et al., "signSGD" (ICML 2018); Bernstein et al., "signSGD with majority vote" (ICLR 2019,
Algorithm 1); Karimireddy et al., "Error feedback fixes signSGD" (ICML 2019).

Conventions chosen where the papers are silent:

- A tie rule acts at the workers and at the vote alike: ``zero`` gives 0, ``plus`` gives +1, ``random`` gives
  +1 where the given uniform number is below 1/2, and -1 elsewhere. Random ties draw one uniform number per
  coordinate and use it only where there is a tie, so that a stream does not depend on the data.
- An adversary negates its sign after the tie rule: with ``plus`` it sends -1 for a zero.
- One bit holds no zero: what ``zero`` gives cannot be packed, and `pack` refuses it.
- Packing: bit i mod 32, counted from the lowest, of word i // 32; 1 is +1 and 0 is -1; padding bits are 0.
- Weight decay is multiplied by the step size: x - eta (vote + decay x).
- In the warm-up of Signum the sign is that of the raw gradient, while the momentum accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Gradient = Callable[[int, Array, int], Array]
"""The gradient ``g(worker, x, t)``."""
StepSize = float | Callable[[int], float]
"""A number, or the step size of iteration t."""
TieDraws = Callable[[int, int], Array]
"""Uniform numbers ``u(worker, t)`` for random ties; the worker is -1 at the vote."""

VOTE = -1


def at(step: StepSize, t: int) -> float:
    """Return the step size of iteration t."""
    return step(t) if callable(step) else step


def no_draws(worker: int, t: int) -> Array:
    """What the rules `zero` and `plus` draw: nothing."""
    return np.empty(0)


def sign(v: Array, tie: str, draw: Array) -> Array:
    """Return the sign of `v` with zeros resolved by the rule `tie`."""
    if tie == "zero":
        at_zero = np.zeros_like(v)
    elif tie == "plus":
        at_zero = np.ones_like(v)
    elif tie == "random":
        at_zero = np.where(draw < 0.5, 1.0, -1.0)
    else:
        raise ValueError(f"the tie rule is zero, plus or random, not {tie}")
    return np.where(v > 0, 1.0, np.where(v < 0, -1.0, at_zero))


class Signs(NamedTuple):
    """What a recursion of signs gives.

    `models` [workers, d] and `momenta` [workers, d] at the end; `sent` [steps, workers, d] the signs pushed;
    `votes` [steps, d] the signs pulled.
    """

    models: Array
    momenta: Array
    sent: Array
    votes: Array


def signsgd(
    gradient: Gradient, x0: Array, step: StepSize, steps: int, tie: str = "zero", draws: TieDraws = no_draws
) -> Array:
    """Return the models [steps + 1, d] of signSGD on one worker: x - eta sign(g)."""
    models = [x0]
    for t in range(steps):
        models.append(models[-1] - at(step, t) * sign(gradient(0, models[-1], t), tie, draws(0, t)))
    return np.array(models)


def majority_vote(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    momentum: float = 0.0,
    decay: float = 0.0,
    tie: str = "zero",
    draws: TieDraws = no_draws,
    adversaries: Collection[int] = (),
    warm_up: int = 0,
) -> Signs:
    """Signum with majority vote (ICLR 2019, Algorithm 1); momentum 0 is signSGD with majority vote.

    The momentum is local, before the sign; the decay is decoupled, after the vote.
    """
    x = np.tile(x0, (workers, 1))
    v = np.zeros_like(x)
    sent, votes = [], []
    for t in range(steps):
        pushed = np.zeros_like(x)
        for m in range(workers):
            g = gradient(m, x[m], t)
            v[m] = (1 - momentum) * g + momentum * v[m]
            pushed[m] = sign(g if t < warm_up else v[m], tie, draws(m, t))
            if m in adversaries:
                pushed[m] = -pushed[m]
        vote = sign(pushed.sum(axis=0), tie, draws(VOTE, t))
        for m in range(workers):
            x[m] = x[m] - at(step, t) * (vote + decay * x[m])
        sent.append(pushed)
        votes.append(vote)
    return Signs(x, v, np.array(sent), np.array(votes))


class ScaledSigns(NamedTuple):
    """`models` and `errors` [workers, d] at the end, and `sent` [steps, workers, d], the scaled signs."""

    models: Array
    errors: Array
    sent: Array


def scaled_sign_error_feedback(
    gradient: Gradient, x0: Array, step: StepSize, workers: int, steps: int, tie: str = "plus"
) -> ScaledSigns:
    """p = eta g + e; Delta = (|p|_1 / d) sign(p); x - mean Delta; e = p - Delta, over the whole vector."""
    x = np.tile(x0, (workers, 1))
    e = np.zeros_like(x)
    sent = []
    for t in range(steps):
        delta = np.zeros_like(x)
        for m in range(workers):
            p = at(step, t) * gradient(m, x[m], t) + e[m]
            delta[m] = np.abs(p).sum() / p.size * sign(p, tie, np.empty(0))
            e[m] = p - delta[m]
        for m in range(workers):
            x[m] = x[m] - delta.sum(axis=0) / workers
        sent.append(delta)
    return ScaledSigns(x, e, np.array(sent))


def warm_up_length(momentum: float) -> int:
    """Return C(beta), the warm-up that the theory of Signum asks for; C(0.9) = 54."""
    c = 1
    while c / 2 * momentum**c > 1 / ((1 - momentum**2) * (c + 1)) or momentum ** (c + 1) > 1 / 2:
        c += 1
    return c


def pack(signs: Array) -> NDArray[np.uint32]:
    """Pack signs of +1 and -1 into 32-bit words, padded to a whole word."""
    if not np.all(np.abs(signs) == 1):
        raise ValueError("one bit holds +1 or -1")
    words = [0] * -(-signs.size // 32)
    for i, value in enumerate(signs):
        if value > 0:
            words[i // 32] += 1 << (i % 32)
    return np.array(words, dtype=np.uint32)


def unpack(words: NDArray[np.uint32], d: int) -> Array:
    """Give back the first `d` signs of packed words."""
    return np.array([1.0 if int(words[i // 32]) >> (i % 32) & 1 else -1.0 for i in range(d)])


def bytes_sent(d: int, workers: int, transport: str) -> int:
    """Return the bytes that one iteration sends, summed over all senders.

    ``server``: up and down between `workers` workers and a server of its own. ``sharded``: all-to-all, then
    all-gather, of words cut into `workers` shards, where nobody sends to itself. ``gather``: all-gather.
    """
    word_bytes = 4 * -(-d // 32)
    return {
        "server": 2 * workers * word_bytes,
        "sharded": 2 * (workers - 1) * word_bytes,
        "gather": workers * (workers - 1) * word_bytes,
    }[transport]


def wrong_sign_bound(signal_to_noise: float) -> float:
    """Bound P[sign of the stochastic gradient is wrong] where noise is unimodal and symmetric (lemma)."""
    if signal_to_noise > 2 / np.sqrt(3):
        return 2 / (9 * signal_to_noise**2)
    return float(1 / 2 - signal_to_noise / (2 * np.sqrt(3)))


def vote_bound(
    smoothness: Array, noise: Array, gap: float, steps: int, workers: int, adversaries: float = 0.0
) -> float:
    """Bound ((1/K) sum E |g_k|_1)^2 for the majority vote (ICLR 2019, Theorem 2).

    Batches of K samples and the step sqrt(gap / (|L|_1 K)); `adversaries` is the fraction alpha < 1/2.
    """
    spread = noise.sum() / ((1 - 2 * adversaries) * np.sqrt(workers))
    # sqrt(N) = K, since N = K^2 gradients are computed.
    return float(4 / steps * (spread + np.sqrt(smoothness.sum() * gap)) ** 2)
