"""The privacy that a run of a private algorithm spends: epsilon against iterations and time.

Epsilon follows from the sampling rate q = B / N, the noise, delta and the number of iterations, by the
accountant that the algorithm names (:mod:`algorithms.private.accounting`);
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from simulator.run import Run

if TYPE_CHECKING:
    from algorithms.private.private_sgd import PrivateSGD
    from simulator.scenario import Scenario

MOST_BY_PRV = 12
"""At how many samples of a run the slower accountant is asked at most."""


@dataclasses.dataclass(frozen=True)
class Spent:
    """What a run spends as it goes on; lists of one length.

    Attributes
    ----------
    accountant, delta, noise
        As the algorithm has them; the noise in units of the sensitivity.
    rate
        Probability with which a sample takes part in an iteration.
    iteration, time, epsilon
        At the run's samples: iterations of a worker, seconds, and what has been spent by then.
    """

    accountant: str
    delta: float
    noise: float
    rate: float
    iteration: list[float]
    time: list[float]
    epsilon: list[float]

    def text(self) -> str:
        """Return how epsilon was told, in a sentence."""
        last = f"{self.epsilon[-1]:.4g} at delta {self.delta:g} after {self.iteration[-1]:,.0f} iterations"
        return (
            f"epsilon {last}, by the {self.accountant.upper()} accountant for Poisson sampling with rate "
            f"{self.rate:.4g} and noise {self.noise:g} times the sensitivity"
        )


def spent(run: Run) -> Spent | None:
    """Return epsilon at a run's samples; None where its algorithm promises none."""
    algorithm = promising(run.scenario)
    if algorithm is None or not run.samples.time:
        return None
    from algorithms.private.accounting import epsilon

    rate = sampling_rate(run.scenario)
    points = list(zip(run.samples.iteration, run.samples.time, strict=True))
    if algorithm.accountant == "prv":
        step = math.ceil(len(points) / MOST_BY_PRV)
        points = points[::-step][::-1]  # with the last
    values = [_epsilon(algorithm, epsilon, rate, iteration) for iteration, _ in points]
    iterations, times = (list(column) for column in zip(*points, strict=True))
    return Spent(algorithm.accountant, algorithm.delta, algorithm.noise, rate, iterations, times, values)


def spent_to_target(run: Run) -> float | None:
    """Return epsilon where the run reached its target, or at its end; None where nothing is promised."""
    algorithm = promising(run.scenario)
    if algorithm is None:
        return None
    from algorithms.private.accounting import epsilon

    reached = run.reached()
    iterations = max(run.iterations) if reached is None else reached.iterations
    return _epsilon(algorithm, epsilon, sampling_rate(run.scenario), iterations)


def _epsilon(algorithm: PrivateSGD, told: Any, rate: float, iterations: float) -> float:
    # All workers are in the same iteration; a mean of theirs is whole.
    done = math.ceil(iterations)
    value: float = told(algorithm.accountant, rate, algorithm.noise, done, algorithm.delta)
    return value


def promising(scenario: Scenario) -> PrivateSGD | None:
    """Return the scenario's algorithm, where it is a private one with an accountant."""
    if "finite-sum" not in scenario.algorithm.requires:
        return None
    from algorithms.private.private_sgd import PrivateSGD

    algorithm = scenario.algorithm
    if isinstance(algorithm, PrivateSGD) and algorithm.accountant != "none":
        return algorithm
    return None


def sampling_rate(scenario: Scenario) -> float:
    """Return the probability with which a sample takes part in an iteration, B / N."""
    from simulator.plan import oracle

    problem: Any = oracle(scenario, 0).problem
    return sum(scenario.objective_batches) / float(problem.total)
