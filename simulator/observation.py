"""What is measured of a run's models: loss, gradient norm and consensus distance over time.

A worker's report is free on either clock. The averaged model at a time is the mean of each worker's
latest report, weighted by its share of the global batch. A sample is taken at every n-th report of n
workers, which in a synchronous algorithm is when each has reported once more. The consensus distance is
the mean over workers of the squared distance between a worker's model and the averaged one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from simulator.target import Target, first_stay

if TYPE_CHECKING:
    import torch

    from simulator.workload.objective import Objective


@dataclass
class Samples:
    """Measurements, one entry per sample in each list.

    Attributes
    ----------
    time
        Seconds.
    iteration
        Mean over workers of the iterations begun.
    loss, gradient_norm
        Of the averaged model, on all data.
    consensus
        Mean squared distance of the workers' models from the averaged one.
    """

    time: list[float] = field(default_factory=list)
    iteration: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    consensus: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.time)

    def diverged(self) -> int | None:
        """Return the first sample from which on the loss has diverged to the end; None where it has not.

        It has where it is no finite number, or more than a million times the first one (at least 1).
        """
        if not self.loss:
            return None
        bound = min(HUGE, 1e6 * max(1.0, abs(self.loss[0])))
        since = len(self.loss)
        while since and not self.loss[since - 1] <= bound:
            since -= 1
        return since if since < len(self.loss) else None


HUGE = 1e12
"""A loss beyond this has diverged, whatever it began with."""

CACHED = 2**21
"""Elements of all models that are averaged at a time."""


class Observation(NamedTuple):
    """A number that an algorithm noted: see :meth:`algorithms.worker.Worker.observe`.

    Attributes
    ----------
    name
        What it is, such as ``staleness``.
    worker
        Whose.
    time
        Seconds.
    iteration
        Iterations that the worker had begun.
    value
        The number.
    """

    name: str
    worker: int
    time: float
    iteration: int
    value: float


@dataclass
class Pace:
    """How far the workers had come, at every n-th report of n workers.

    Attributes
    ----------
    time
        Seconds.
    iteration
        Mean over workers of the iterations done.
    """

    time: list[float] = field(default_factory=list)
    iteration: list[float] = field(default_factory=list)

    def reach(self, iterations: float) -> float | None:
        """Return when that many iterations were done; None where they were not."""
        for time, done in zip(self.time, self.iteration, strict=True):
            if done >= iterations:
                return time
        return None


class Observer:
    """Turns reports into samples, in the order in which they come.

    Attributes
    ----------
    ends
        When each worker first reported its last iteration, in seconds; later reports of it, such as one of a
        model that others have finished, are its idling at the end.

    Parameters
    ----------
    objective
        What the models are evaluated on; None in a timing-only run, where only the pace is noted.
    shares
        Weights of the averaged model; None where they are equal.
    world_size
        Number of workers.
    target
        Watched for, where ``reached`` is given: a loss that has stayed, or a number of iterations.
    needed_iterations
        The iterations that a target other than a loss takes.
    reached
        Called once, when the target has been reached.
    """

    def __init__(
        self,
        objective: Objective | None,
        shares: Sequence[float] | None,
        world_size: int,
        target: Target | None = None,
        needed_iterations: float | None = None,
        reached: Callable[[], None] | None = None,
    ) -> None:
        self.samples = Samples()
        self.pace = Pace()
        self._objective = objective
        self._shares = shares
        self._latest: list[torch.Tensor] = []
        if objective is not None:
            self._latest = [objective.initial_model() for _ in range(world_size)]
        self._needed = needed_iterations
        self._iterations = [0] * world_size
        self.ends = [0.0] * world_size
        self._reports = 0
        self._target = target
        self._reached = reached

    def report(self, rank: int, time: float, iteration: int, x: torch.Tensor | None) -> None:
        """Take in a worker's report: its model, which nobody changes afterwards, if there are numerics."""
        if x is not None:
            self._latest[rank] = x
        if iteration > self._iterations[rank]:
            self._iterations[rank] = iteration
            self.ends[rank] = time
        self._reports += 1
        if self._reports % len(self._iterations) == 0:
            self.pace.time.append(time)
            self.pace.iteration.append(sum(self._iterations) / len(self._iterations))
            if self._latest:
                self._sample(time)
            self._watch()

    def _sample(self, time: float) -> None:
        assert self._objective is not None
        average, consensus = self._average()
        samples = self.samples
        samples.time.append(time)
        samples.iteration.append(self.pace.iteration[-1])
        loss, gradient_norm = self._objective.loss_and_gradient_norm(average)
        samples.loss.append(loss)
        samples.gradient_norm.append(gradient_norm)
        samples.consensus.append(consensus)

    def _average(self) -> tuple[torch.Tensor, float]:
        """Return the average of the models, and their mean squared distance from it.

        Large ones piece by piece, so that the parts of all models stay in the processor's caches.
        """
        import torch

        pieces: Iterable[Sequence[torch.Tensor]] = [self._latest]
        length = max(1, CACHED // len(self._latest))
        if self._latest[0].numel() > length:
            pieces = zip(*(torch.split(x, length) for x in self._latest), strict=True)
        averages, distances = [], torch.zeros(len(self._latest))
        for piece in pieces:
            models = torch.stack(list(piece))
            if self._shares is None:
                average = models.mean(0)
            else:
                average = torch.tensor(self._shares, dtype=models.dtype) @ models
            averages.append(average)
            distances = distances + models.sub_(average).square_().sum(1)
        return torch.cat(averages), float(distances.mean())

    def _watch(self) -> None:
        target = self._target
        if self._reached is None or target is None:
            return
        if target.loss is not None:
            recent = self.samples.loss[-target.holds - 1 :]
            there = first_stay(recent, target.loss, target.holds) is not None
        else:
            there = self._needed is not None and self.pace.iteration[-1] >= self._needed
        if there:
            self._reached()
            self._reached = None
