"""When a run has reached its target, in iterations and in time.

An iteration of a worker is one gradient computation that it applies or sends. With a loss target,
T_n is the mean over workers of their iterations at the first sample from which on the loss of the
averaged model on all data is at or below epsilon, and stays so for the next ``reports`` samples; t_n is
the time of that sample. The other targets need no numerics: a number of iterations, a number of samples
(iterations times the global batch), or the statistical model of McCandlish et al. ("An empirical model
of large-batch training", 2018), T(B) = T_min (1 + B_crit / B) iterations at global batch B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pydantic

from simulator.parts import Section


class Target(Section):
    """What a run is to reach; exactly one of loss, iterations, samples and statistical is given.

    Attributes
    ----------
    loss
        Of the averaged model on all data: at or below this.
    iterations
        So many of each worker, on average.
    samples
        So many by all workers together.
    statistical
        Iterations as a function of the global batch.
    reports
        For how many further samples a loss must stay there; 3 unless given.
    """

    loss: float | None = None
    iterations: int | None = None
    samples: int | None = None
    statistical: Statistical | None = None
    reports: int | None = None

    def model_post_init(self, _: object) -> None:
        """Check that exactly one target is given, and its range."""
        given = [
            name
            for name in ("loss", "iterations", "samples", "statistical")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            found = ", ".join(given) if given else "none"
            raise ValueError(f"give exactly one of loss, iterations, samples, statistical; found {found}")
        for name in ("iterations", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.loss is not None and not math.isfinite(self.loss):
            raise ValueError(f"loss must be finite, got {self.loss}")
        if self.reports is not None and self.loss is None:
            raise ValueError("reports has no effect on a target that is not a loss")
        if self.reports is not None and self.reports < 0:
            raise ValueError(f"reports must be 0 or more, got {self.reports}")

    @property
    def holds(self) -> int:
        """For how many further samples a loss must stay at or below its target."""
        return 3 if self.reports is None else self.reports

    def needed_iterations(self, global_batch: float) -> float | None:
        """Return the iterations that the target takes at this global batch; None for a loss."""
        if self.statistical is not None:
            model = self.statistical
            return model.minimum_iterations * (1 + model.critical_batch / global_batch)
        if self.samples is not None:
            return self.samples / global_batch
        return self.iterations

    def text(self) -> str:
        """Return the target as a reader would say it."""
        if self.loss is not None:
            return f"loss <= {self.loss:g}"
        if self.samples is not None:
            return f"{self.samples:,} samples"
        if self.statistical is not None:
            model = self.statistical
            formula = f"{model.minimum_iterations:g} (1 + {model.critical_batch:g} / batch)"
            return f"{formula} iterations (given model)"
        return f"{self.iterations:,} iterations"


class Statistical(Section):
    """Iterations as a function of the global batch: T(B) = minimum_iterations (1 + critical_batch / B).

    Attributes
    ----------
    minimum_iterations
        What the largest batches need.
    critical_batch
        The batch that needs twice as many.
    """

    minimum_iterations: float = pydantic.Field(gt=0, allow_inf_nan=False)
    critical_batch: float = pydantic.Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Reached:
    """Where the target was reached.

    Attributes
    ----------
    iterations
        Mean over workers of the iterations done.
    time
        Seconds on the run's clock.
    extrapolated
        Whether the run ended before, and the time follows from its mean time per iteration.
    """

    iterations: float
    time: float
    extrapolated: bool = False


def first_stay(losses: Sequence[float], bound: float, reports: int) -> int | None:
    """Return the index of the first loss at or below ``bound`` that is followed by ``reports`` more such.

    A run that ends before the following reports have come has not reached its target.
    """
    streak = 0
    for index, loss in enumerate(losses):
        streak = streak + 1 if loss <= bound else 0
        if streak == reports + 1:
            return index - reports
    return None
