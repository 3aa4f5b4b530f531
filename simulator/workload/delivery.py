"""A module's gradient as a flat vector, delivered in buckets while back-propagation frees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Deliver = Callable[[int, Tensor], None]
"""Receives bucket k of a gradient."""


class BucketPlan:
    """Which buckets each parameter lies in, and how many parameters each bucket waits for."""

    def __init__(self, bounds: tuple[tuple[int, int], ...], spans: Sequence[tuple[int, int]]) -> None:
        self.bounds = bounds
        self.buckets_of = [
            [k for k, (low, high) in enumerate(bounds) if low < stop and start < high]
            for start, stop in spans
        ]
        self.waits_for = [sum(k in buckets for buckets in self.buckets_of) for k in range(len(bounds))]


class Delivery:
    """Collects parameter gradients as they come and delivers buckets in order as they fill."""

    def __init__(
        self,
        plan: BucketPlan,
        spans: Sequence[tuple[int, int]],
        dtype: torch.dtype,
        deliver: Deliver,
        device: torch.device | None = None,
    ) -> None:
        self.bounds = plan.bounds
        self.buckets_of = plan.buckets_of
        self.missing = plan.waits_for.copy()
        self.spans = spans
        self.deliver = deliver
        self.gradient = torch.zeros(spans[-1][1], dtype=dtype, device=device)
        self.next = 0

    def take(self, index: int, parameter: Tensor) -> None:
        """Parameter `index` has its gradient."""
        start, stop = self.spans[index]
        self.gradient[start:stop] = flat_gradient(parameter)
        for k in self.buckets_of[index]:
            self.missing[k] -= 1
        while self.next < len(self.bounds) and self.missing[self.next] == 0:
            self._deliver_next()

    def finish(self) -> None:
        """Back-propagation is over: what got no gradient has zero, and all buckets go out."""
        while self.next < len(self.bounds):
            self._deliver_next()

    def _deliver_next(self) -> None:
        k = self.next
        low, high = self.bounds[k]
        self.next += 1
        self.deliver(k, self.gradient[low:high])


def spans_of(parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Place [lo, hi) of each parameter in the flat vector."""
    spans, low = [], 0
    for parameter in parameters:
        spans.append((low, low + parameter.numel()))
        low += parameter.numel()
    return spans


def flat_gradient(parameter: Tensor) -> Tensor:
    """A parameter's gradient as a vector; zero where back-propagation did not reach it."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros(parameter.numel(), dtype=parameter.dtype)
    return (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
