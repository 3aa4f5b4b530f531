"""Where the gradients of a user's training come from: the next batches of the loader, through the loss.

A :class:`LoaderOracle` is to a :class:`~simulator.execution.worker.WallWorker` what the oracle of any
objective is. A gradient is the mean over ``accumulate`` batches; with more than one, buckets are freed by the
back-propagation of the last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simulator.execution.training.feed import Feed
from simulator.execution.training.module import Weights
from simulator.parts import BadInput
from simulator.workload.delivery import BucketPlan, Deliver, Delivery
from simulator.workload.objective import Bounds, Objective, Oracle

Loss = Callable[[nn.Module, Any], Tensor]
"""The mean loss of a module over a batch of the loader, a tensor of one element."""


class Step(NamedTuple):
    """What is known of one gradient.

    Attributes
    ----------
    end
        When it was ready, on the monotonic clock.
    loss
        Mean over its batches.
    load, forward, backward
        Seconds of waiting for batches, of the loss, and of back-propagation.
    """

    end: float
    loss: float
    load: float
    forward: float
    backward: float


class TrainingObjective(Objective):
    """The loss of a user's module over a user's loader.

    Parameters
    ----------
    weights
        The module.
    feed
        The batches of this rank.
    loss
        Of the module and a batch.
    accumulate
        Batches of a gradient.
    """

    def __init__(self, weights: Weights, feed: Feed, loss: Loss, accumulate: int) -> None:
        self.name = type(weights.module).__name__
        self.parameters = weights.count
        self.dtype = weights.dtype
        self.weights = weights
        self.start = weights.vector()
        self._made = LoaderOracle(self, feed, loss, accumulate)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the trainable parameters."""
        return self.weights.shapes

    def initial_model(self) -> Tensor:
        """The model that this rank starts or goes on from."""
        return self.start.clone()

    def loss(self, x: Tensor) -> float:
        """Refuse: a loader has no loss over all data."""
        raise ValueError(f"{self.name}: a training script has batches, no loss over all data")

    def gradient_norm(self, x: Tensor) -> float:
        """Refuse: a loader has no loss over all data."""
        return self.loss(x)

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> LoaderOracle:
        """The gradients of this process, whatever its rank."""
        return self._made

    @property
    def steps(self) -> list[Step]:
        """What is known of the gradients so far."""
        return self._made.steps


class LoaderOracle(Oracle):
    """Gradients over the next batches of a loader."""

    def __init__(self, objective: TrainingObjective, feed: Feed, loss: Loss, accumulate: int) -> None:
        super().__init__(objective)
        self._weights = objective.weights
        self._feed = feed
        self._loss = loss
        self._accumulate = accumulate
        self._delivery: Delivery | None = None
        self._plans: dict[tuple[tuple[int, int], ...], BucketPlan] = {}
        self._hooked = False
        self._threads = torch.get_num_threads()
        self.steps: list[Step] = []

    def gradient(self, x: Tensor) -> Tensor:
        """Mean gradient over the next batches."""
        try:
            self._back_propagate(x, None)
            return self._weights.gradient()
        finally:
            self._weights.forget_gradients()

    def gradient_in_buckets(self, x: Tensor, bounds: Bounds, deliver: Deliver) -> None:
        """The same, delivered by hooks on the parameters while the last batch is back-propagated."""
        weights = self._weights
        delivery = Delivery(self._plan(tuple(bounds)), weights.parameters, deliver, torch.device("cpu"))
        try:
            self._back_propagate(x, delivery)
            delivery.finish()
        finally:
            self._delivery = None
            weights.forget_gradients()

    def full_gradient(self, x: Tensor) -> Tensor:
        """Refuse: a loader has no gradient over all data."""
        raise ValueError(f"{self.objective.name}: a training script has batches, no gradient over all data")

    def _plan(self, bounds: tuple[tuple[int, int], ...]) -> BucketPlan:
        """The plan for these buckets, made once; the first of several buckets hooks the parameters."""
        if bounds not in self._plans:
            if len(bounds) > 1 and not self._hooked:
                self._hooked = True
                for index, parameter in enumerate(self._weights.parameters):
                    hook = functools.partial(self._took_gradient, index)
                    # torch does not type the next call.
                    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._plans[bounds] = BucketPlan(bounds, self._weights.spans)
        return self._plans[bounds]

    def _took_gradient(self, index: int, _: Tensor) -> None:
        if self._delivery is not None:
            self._delivery.take(index)

    def _back_propagate(self, x: Tensor, delivery: Delivery | None) -> None:
        """Leave the gradient of the mean over the next batches on the parameters."""
        # Threads of messages compute with one, and the number is the whole process's.
        torch.set_num_threads(self._threads)
        self._weights.load(x)
        self._weights.forget_gradients()
        watch = _Watch(self._weights.device)
        losses = []
        for index in range(self._accumulate):
            watch.goes_to("load")
            batch = self._feed.next()
            watch.goes_to("forward")
            value = self._value(batch)
            watch.goes_to("backward")
            if index == self._accumulate - 1:
                self._delivery = delivery
            (value / self._accumulate).backward()  # type: ignore[no-untyped-call]  # torch does not type it
            losses.append(value.detach())
        seconds = watch.stop()
        mean = sum(float(value) for value in losses) / self._accumulate
        self.steps.append(
            Step(time.monotonic(), mean, seconds["load"], seconds["forward"], seconds["backward"])
        )

    def _value(self, batch: Any) -> Tensor:
        with torch.enable_grad():
            value = self._loss(self._weights.module, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise BadInput("loss", f"must return a tensor of one element with a gradient, got {shape}")
        return value.reshape(())


class _Watch:
    """Tells how long each activity took; on a GPU by events, which do not hold anything up.

    Parameters
    ----------
    device
        Where the work is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events = device.type == "cuda"
        self._marks: list[tuple[str, float, Any]] = []

    def goes_to(self, activity: str) -> None:
        """Note that another activity begins."""
        event = None
        if self._events:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it so
            event.record(torch.cuda.current_stream(self._device))
        self._marks.append((activity, time.monotonic(), event))

    def stop(self) -> dict[str, float]:
        """Return the seconds of each activity."""
        self.goes_to("")
        if self._events:
            self._marks[-1][2].synchronize()
        seconds = {"load": 0.0, "forward": 0.0, "backward": 0.0}
        for (activity, begin, first), (_, end, last) in zip(self._marks, self._marks[1:], strict=False):
            # Loading is the processor's work; what the device still had to do meanwhile is not its own.
            by_events = self._events and activity != "load"
            seconds[activity] += first.elapsed_time(last) / 1e3 if by_events else end - begin
        return seconds
