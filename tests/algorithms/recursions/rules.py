"""Local update rules, step-size schedules, and what becomes of a rule's state at an average.

The rules are those of torch.optim: with step size lr and gradient g,

    SGD      g <- g + decay * x
             m <- momentum * m + (1 - dampening) * g     (m = g in the first step, without dampening)
             x <- x - lr * (g + momentum * m if nesterov else m)

    AdamW    x <- x - lr * decay * x
             m <- beta1 * m + (1 - beta1) * g,   v <- beta2 * v + (1 - beta2) * g^2
             x <- x - lr * (m / (1 - beta1^k)) / (sqrt(v / (1 - beta2^k)) + epsilon),   k = 1, 2, ...

The state at an average of models follows one of three conventions:

    local      nothing happens to it (what every public implementation does by default)
    averaged   every array of it is averaged with the weights of the models; AdamW's k is the same everywhere
    reset      as before the first step: no momentum (so the next m is g alone), k = 0

Sources: documentation of torch.optim.SGD and torch.optim.AdamW; Loshchilov and Hutter, ICLR 2019; the three
conventions as Wang et al. name them (SlowMo, ICLR 2020: keep, average, reset).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np

from tests.algorithms.recursions.notation import Array, mean

Convention: TypeAlias = Literal["local", "averaged", "reset"]


class SGD:
    """Gradient descent with heavy-ball or Nesterov momentum; plain by default."""

    def __init__(
        self,
        momentum: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum, self.nesterov = momentum, nesterov
        self.dampening, self.weight_decay = dampening, weight_decay
        self.reset()

    def reset(self) -> None:
        self.state: dict[str, Array] = {}

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        g = gradient + self.weight_decay * x
        if self.momentum == 0:
            return x - lr * g
        if "m" in self.state:
            self.state["m"] = self.momentum * self.state["m"] + (1 - self.dampening) * g
        else:
            self.state["m"] = g
        if self.nesterov:
            return x - lr * (g + self.momentum * self.state["m"])
        return x - lr * self.state["m"]


class AdamW:
    """Adam with decoupled weight decay; torch's defaults."""

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self.reset()

    def reset(self) -> None:
        self.k = 0
        self.state: dict[str, Array] = {}

    def step(self, x: Array, gradient: Array, lr: float) -> Array:
        beta1, beta2 = self.betas
        self.k += 1
        m = beta1 * self.state.get("m", np.zeros_like(x)) + (1 - beta1) * gradient
        v = beta2 * self.state.get("v", np.zeros_like(x)) + (1 - beta2) * gradient**2
        self.state = {"m": m, "v": v}
        decayed = x - lr * self.weight_decay * x
        return decayed - lr * (m / (1 - beta1**self.k)) / (np.sqrt(v / (1 - beta2**self.k)) + self.epsilon)


Rule: TypeAlias = SGD | AdamW
MakeRule: TypeAlias = Callable[[], Rule]


def at_average(rules: Sequence[Rule], convention: Convention, shares: Sequence[float] | None = None) -> None:
    """Treat the state of all workers' rules as the convention says, at an average of their models."""
    if convention == "averaged":
        for name in rules[0].state:
            average = mean([rule.state[name] for rule in rules], shares)
            for rule in rules:
                rule.state[name] = average.copy()
    elif convention == "reset":
        for rule in rules:
            rule.reset()


def linear_warm_up(base: float, warm_up: int, start: float = 1 / 3) -> Callable[[int], float]:
    """Rise linearly from start * base in iteration 0 to base in iteration `warm_up` (torch's LinearLR)."""

    def step(t: int) -> float:
        return base * (start + (1 - start) * t / warm_up) if t < warm_up else base

    return step


def warm_up_then_cosine(
    base: float, warm_up: int, total: int, start: float = 1 / 3, final: float = 0.0
) -> Callable[[int], float]:
    """Warm up, then half a cosine from base in iteration `warm_up` to final in iteration `total`.

    As torch's SequentialLR of LinearLR and CosineAnnealingLR(T_max = total - warm_up).
    """

    def step(t: int) -> float:
        if t < warm_up:
            return linear_warm_up(base, warm_up, start)(t)
        return final + (base - final) * (1 + math.cos(math.pi * (t - warm_up) / (total - warm_up))) / 2

    return step


def warm_up_then_steps(
    base: float, warm_up: int, every: int, factor: float = 0.1, start: float = 1 / 3
) -> Callable[[int], float]:
    """Warm up, then multiply by `factor` after every `every` iterations, counted from the warm-up's end.

    As torch's SequentialLR of LinearLR and StepLR.
    """

    def step(t: int) -> float:
        if t < warm_up:
            return linear_warm_up(base, warm_up, start)(t)
        return base * factor ** ((t - warm_up) // every)

    return step
