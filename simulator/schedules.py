"""How the step size changes over a run: a warm-up, then a decay, as torch's own schedulers compute them.

A schedule counts a worker's updates from the start of the run. During a warm-up of w updates the step size
rises linearly: update t (from 0) has (t + 1) / (w + 1) of it, so that update w is the first with the whole
(Goyal et al., "Accurate, large minibatch SGD", 2017). A decay to a final value fills the rest of its span,
the budget's iterations unless it is given; what goes beyond keeps the last step size.

The numbers come from ``torch.optim.lr_scheduler`` (LinearLR for the warm-up, then SequentialLR's next), so
that a training script with the same schedulers has the same step sizes to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import pydantic

from simulator.parts import Catalogue, reader

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base of all schedules: a linear warm-up, then what a subclass does.

    Attributes
    ----------
    warm_up
        Updates over which the step size rises.
    """

    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise ValueError(f"warm-up must be 0 or more, got {self.warm_up}")

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return torch's scheduler of the ``updates`` that follow the warm-up.

        Parameters
        ----------
        optimizer
            What it schedules.
        step_size
            The whole step size.
        updates
            Updates after the warm-up until the decay ends.
        """
        raise TypeError(f"{type(self).__name__} defines no decay")


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The whole step size after the warm-up."""

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return a scheduler that changes nothing."""
        from torch.optim.lr_scheduler import ConstantLR

        return ConstantLR(optimizer, factor=1.0, total_iters=0)


CONSTANT = Constant()
"""The whole step size from the first update on."""


@dataclasses.dataclass(frozen=True)
class Falling(Schedule):
    """A decay to ``final`` times the step size, reached after ``span`` updates.

    Attributes
    ----------
    final
        Its end, as a part of the step size.
    span
        Updates until the end, warm-up included; without it the budget's.
    """

    final: float = 0.0
    span: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final < 1:
            raise ValueError(f"final must be 0 or more and below 1, got {self.final!r}")
        if self.span is not None and self.span <= self.warm_up:
            raise ValueError(f"span must be longer than the warm-up of {self.warm_up}, got {self.span}")


@dataclasses.dataclass(frozen=True)
class Linear(Falling):
    """A straight line down to ``final`` times the step size (LinearLR)."""

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return torch's LinearLR."""
        from torch.optim.lr_scheduler import LinearLR

        return LinearLR(optimizer, start_factor=1.0, end_factor=self.final, total_iters=updates)


@dataclasses.dataclass(frozen=True)
class Cosine(Falling):
    """Half a cosine wave down to ``final`` times the step size (CosineAnnealingLR)."""

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return torch's CosineAnnealingLR."""
        from torch.optim.lr_scheduler import CosineAnnealingLR

        return CosineAnnealingLR(optimizer, T_max=updates, eta_min=self.final * step_size)


@dataclasses.dataclass(frozen=True)
class _Dropping(Schedule):
    """A decay in drops.

    Attributes
    ----------
    factor
        What each drop multiplies the step size by.
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must be above 0 and below 1, got {self.factor!r}")


@dataclasses.dataclass(frozen=True)
class Step(_Dropping):
    """A drop every so many updates, counted from the end of the warm-up (StepLR).

    Attributes
    ----------
    every
        Updates between drops.
    """

    every: int = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return torch's StepLR."""
        from torch.optim.lr_scheduler import StepLR

        return StepLR(optimizer, step_size=self.every, gamma=self.factor)


@dataclasses.dataclass(frozen=True)
class MultiStep(_Dropping):
    """A drop at each of the ``milestones`` (MultiStepLR).

    Attributes
    ----------
    milestones
        Updates, counted from the start of the run, at which it drops.
    """

    milestones: tuple[int, ...] = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "milestones", tuple(self.milestones))
        ascending = all(low < high for low, high in zip(self.milestones, self.milestones[1:], strict=False))
        if not self.milestones or not ascending or self.milestones[0] <= self.warm_up:
            raise ValueError(
                f"milestones must ascend and come after the warm-up of {self.warm_up}, "
                f"got {list(self.milestones)}"
            )

    def decay(self, optimizer: Optimizer, step_size: float, updates: int) -> LRScheduler:
        """Return torch's MultiStepLR."""
        from torch.optim.lr_scheduler import MultiStepLR

        after = [milestone - self.warm_up for milestone in self.milestones]
        return MultiStepLR(optimizer, milestones=after, gamma=self.factor)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
    "multi-step": MultiStep,
}
"""The schedules by the names that scenarios use."""

CATALOGUE = Catalogue("schedule", "kind", SCHEDULES.__getitem__, tuple(SCHEDULES), Schedule)
"""Reads a schedule that is chosen by its kind."""


def _read(value: object, folder: Path | None) -> Schedule:
    schedule: Schedule = CATALOGUE.read(value, folder).build()
    return schedule


ReadSchedule: TypeAlias = Annotated[
    Schedule,
    reader(_read),
    pydantic.PlainSerializer(lambda schedule: CATALOGUE.read(schedule).data()),
]
"""A schedule as a key of a scenario: chosen by its kind, with exactly that kind's keys."""


@functools.lru_cache(maxsize=64)
def step_sizes(schedule: Schedule, step_size: float, iterations: int) -> tuple[float, ...]:
    """Return the step size of each update; every later one has the last.

    Parameters
    ----------
    schedule
        Its span is longer than its warm-up.
    step_size
        The whole step size.
    iterations
        The budget of a worker.
    """
    if schedule == CONSTANT:
        return (step_size,)
    import torch
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    span = schedule.span or iterations if isinstance(schedule, Falling) else iterations
    optimizer = torch.optim.SGD([torch.zeros(0, requires_grad=True)], lr=step_size)
    scheduler: LRScheduler
    if schedule.warm_up:
        start = 1 / (schedule.warm_up + 1)
        warm_up = LinearLR(optimizer, start_factor=start, total_iters=schedule.warm_up)
        decay = schedule.decay(optimizer, step_size, span - schedule.warm_up)
        scheduler = SequentialLR(optimizer, [warm_up, decay], milestones=[schedule.warm_up])
    else:
        scheduler = schedule.decay(optimizer, step_size, span)
    optimizer.step()  # torch expects an update before the schedule's first step
    sizes = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(span):
        scheduler.step()
        sizes.append(float(optimizer.param_groups[0]["lr"]))
    return tuple(sizes)
