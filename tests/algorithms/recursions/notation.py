"""What all recursions of this folder share: their arguments and the weighted mean.

Every recursion takes

    gradient(worker, x, t)   the gradient of a worker at x in its own iteration t = 0, 1, ...
    x0                       the starting point of every worker, a vector of d
    step                     the step size: a number, or a function of t
    workers, steps           how many workers, and how many gradients each of them computes

and returns the models of the workers, an array [workers, d]; beside it the state that an invariant speaks
of. A periodic algorithm takes whole rounds: `steps` is a multiple of `period`. Iterations count from 0, and
the step size of a gradient is that of the iteration, of the worker that computes it, unless a docstring says
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Gradient: TypeAlias = Callable[[int, Array, int], Array]
StepSize: TypeAlias = float | Callable[[int], float]


def at(step: StepSize, t: int) -> float:
    """Return the step size of iteration t."""
    return step(t) if callable(step) else step


def copies(x0: Array, workers: int) -> list[Array]:
    """Return the starting point of every worker."""
    return [np.array(x0, dtype=np.float64) for _ in range(workers)]


def rounds_of(steps: int, period: int) -> int:
    """Return how many rounds of `period` steps there are."""
    if steps % period:
        raise ValueError(f"{steps} steps are no whole number of rounds of {period}")
    return steps // period


def mean(vectors: Sequence[Array], shares: Sequence[float] | None = None) -> Array:
    """Return sum_i p_i v_i, with p_i = 1/n where no shares are given."""
    total = np.zeros_like(vectors[0])
    for i, vector in enumerate(vectors):
        total = total + (1 / len(vectors) if shares is None else shares[i]) * vector
    return total
