"""What a real run says about its computations, so that it can be simulated with other numbers of workers.

From the spans of a run on the wall clock come the seconds of a gradient and of an update, from a training's
observations the part of a gradient that is its forward pass. The first gradient of each worker is left out:
it warms up. How a gradient's time varies around its worker's mean is described by quantiles, which are
measured, and by the lognormal jitter of the same spread, which is fitted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from simulator.parts import BadInput
from simulator.stragglers import LognormalJitter
from simulator.workload import GivenCost
from traces import COMPUTE

if TYPE_CHECKING:
    from simulator.run import Run

LOSS, LOAD, FORWARD = "loss", "load", "forward"
"""Names of a training's observations: the loss of a gradient's batches, seconds of waiting for them, and
seconds of the forward pass."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Profile:
    """Measured costs of a run.

    Attributes
    ----------
    parameters, batch
        Length of the flat vector in units of 4 bytes, and samples of a gradient.
    bucket_count
        Buckets of a gradient.
    gradient
        Mean seconds of a gradient, waiting for its batches included.
    forward_share
        Part of it until back-propagation begins; None where the run does not know.
    load
        Mean seconds of waiting for batches; None where the run does not know.
    update, update_vectors
        Mean seconds of an update (0 where there was none), and the model-sized vectors that it moves.
    quantiles
        Of the gradients' times over their worker's mean, at :data:`QUANTILES`.
    sigma
        Of the fitted lognormal jitter: the standard deviation of the logarithm of these ratios.
    slowest
        The slowest worker's mean over the mean of all.
    gradients
        How many were measured.
    """

    parameters: int
    batch: int
    bucket_count: int
    gradient: Annotated[float, "s"]
    forward_share: float | None
    load: Annotated[float, "s"] | None
    update: Annotated[float, "s"]
    update_vectors: int
    quantiles: tuple[float, ...]
    sigma: float
    slowest: float
    gradients: int

    @classmethod
    def of(cls, run: Run) -> Profile:
        """Measure a run on the wall clock.

        Raises
        ------
        BadInput
            The run was simulated, or has no gradient to measure.
        """
        if run.clock != "wall":
            raise BadInput("run", "is simulated; only a run on the wall clock measures anything")
        times = _durations(run, "gradient")
        if not times:
            raise BadInput("run", "has no gradient to measure; a profile needs two of one worker at least")
        means = [statistics.fmean(own) for own in times]
        ratios = sorted(time / mean for own, mean in zip(times, means, strict=True) for time in own)
        gradient = statistics.fmean(time for own in times for time in own)
        forward, load = _observed(run, FORWARD), _observed(run, LOAD)
        updates = [time for own in _durations(run, "update") for time in own]
        cost = run.scenario.cost
        # What was executed may be smaller than the cost model that the scenario charges.
        executed = cost.parameters * cost.parameter_bytes if run.models is None else run.models[0].nbytes
        return cls(
            parameters=math.ceil(executed / 4),
            batch=run.scenario.objective_batches[0],
            bucket_count=len(cost.buckets()),
            gradient=gradient,
            forward_share=None if forward is None else min((forward + (load or 0.0)) / gradient, 0.99),
            load=load,
            update=statistics.fmean(updates) if updates else 0.0,
            update_vectors=run.scenario.update.vectors_moved,
            quantiles=tuple(_quantile(ratios, part) for part in QUANTILES),
            sigma=statistics.pstdev([math.log(ratio) for ratio in ratios]),
            slowest=max(means) / statistics.fmean(means),
            gradients=len(ratios),
        )

    def cost(self) -> GivenCost:
        """Return what the simulator charges for a gradient and an update."""
        share = GivenCost.forward_share if self.forward_share is None else self.forward_share
        buckets = min(self.bucket_count, self.parameters)
        # A given update is a plain step, which moves three vectors; a rule with a state is charged for more.
        update = self.update * 3 / self.update_vectors
        return GivenCost(self.parameters, self.batch, self.gradient, share, buckets, update)

    def jitter(self) -> LognormalJitter:
        """Return the fitted jitter of a worker's gradients, of mean 1."""
        return LognormalJitter(sigma=self.sigma)

    def __str__(self) -> str:
        share = "assumed 33 %" if self.forward_share is None else f"measured {self.forward_share:.0%}"
        load = "" if self.load is None else f", of which {self.load * 1e3:.4g} ms waiting for batches"
        quantiles = ", ".join(
            f"{part:.0%} {value:.3f}" for part, value in zip(QUANTILES, self.quantiles, strict=True)
        )
        return (
            f"gradient {self.gradient * 1e3:.4g} ms of {self.batch} samples{load} "
            f"(mean of {self.gradients}); until back-propagation {share}; "
            f"update {self.update * 1e3:.4g} ms; {self.bucket_count} buckets of together "
            f"{self.parameters * 4} B; slowest worker {self.slowest:.3f} times the mean\n"
            f"quantiles over the worker's mean (measured): {quantiles}; "
            f"jitter (fitted): lognormal, sigma {self.sigma:.3f}"
        )


def _durations(run: Run, operation: str) -> list[list[float]]:
    """Return the seconds of an operation, the first of each worker left out, for workers that have any."""
    times: list[list[float]] = [[] for _ in range(run.workers)]
    for span in run.worker_spans:
        if span.kind == COMPUTE and span.operation == operation:
            times[span.worker].append(span.end - span.start)
    return [own[1:] for own in times if len(own) > 1]


def _observed(run: Run, name: str) -> float | None:
    """Return the mean of what was noted under a name, without the first of each worker."""
    seen: set[int] = set()
    values = []
    for noted in run.observations:
        if noted.name == name:
            if noted.worker in seen:
                values.append(noted.value)
            seen.add(noted.worker)
    return statistics.fmean(values) if values else None


def _quantile(ordered: Sequence[float], part: float) -> float:
    """Return a quantile of ascending values, between the two nearest."""
    place = part * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
