"""What is measured of a run's models: loss, gradient norm and consensus distance over time.

A worker's report is free on either clock. The averaged model at a time is the mean of each worker's
latest report, weighted by its share of the global batch. A sample is taken at every n-th report of n
workers, which in a synchronous algorithm is when each has reported once more. The consensus distance is
the mean over workers of the squared distance between a worker's model and the averaged one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


class Observer:
    """Turns reports into samples, in the order in which they come.

    Parameters
    ----------
    objective
        What the models are evaluated on; None in a timing-only run, where nothing is sampled.
    shares
        Weights of the averaged model; None where they are equal.
    world_size
        Number of workers.
    target
        Watched for, where ``reached`` is given.
    reached
        Called once, when the target's loss has been reached and has stayed.
    """

    def __init__(
        self,
        objective: Objective | None,
        shares: Sequence[float] | None,
        world_size: int,
        target: Target | None = None,
        reached: Callable[[], None] | None = None,
    ) -> None:
        self.samples = Samples()
        self._objective = objective
        self._shares = shares
        self._latest: list[torch.Tensor | None] = [None] * world_size
        self._iterations = [0] * world_size
        self._reports = 0
        self._target = target
        self._reached = reached

    def report(self, rank: int, time: float, iteration: int, x: torch.Tensor) -> None:
        """Take in a worker's model, which nobody changes afterwards."""
        self._latest[rank] = x
        self._iterations[rank] = iteration
        self._reports += 1
        if self._reports % len(self._latest) == 0:
            self._sample(time)

    def _sample(self, time: float) -> None:
        import torch

        assert self._objective is not None
        present = [(rank, x) for rank, x in enumerate(self._latest) if x is not None]
        models = torch.stack([x for _, x in present])
        if self._shares is None:
            average = models.mean(0)
        else:
            weights = torch.tensor([self._shares[rank] for rank, _ in present], dtype=models.dtype)
            average = (weights / weights.sum()) @ models
        samples = self.samples
        samples.time.append(time)
        samples.iteration.append(sum(self._iterations) / len(self._iterations))
        samples.loss.append(self._objective.loss(average))
        samples.gradient_norm.append(self._objective.gradient_norm(average))
        samples.consensus.append(float((models - average).square().sum(1).mean()))
        self._watch()

    def _watch(self) -> None:
        target = self._target
        if self._reached is None or target is None or target.loss is None:
            return
        recent = self.samples.loss[-target.reports - 1 :]
        if first_stay(recent, target.loss, target.reports) is not None:
            self._reached()
            self._reached = None
