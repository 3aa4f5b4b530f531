"""A module's gradient as a flat vector, delivered in buckets while back-propagation frees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Deliver = Callable[[int, Tensor], None]
"""Receives bucket k of a gradient."""


class BucketPlan:
    """Which pieces of which parameters make up each bucket.

    Parameters
    ----------
    bounds
        Slices [low, high) of the flat vector, one per bucket.
    spans
        Place [low, high) of each parameter in it.
    """

    def __init__(self, bounds: tuple[tuple[int, int], ...], spans: Sequence[tuple[int, int]]) -> None:
        self.pieces = [
            [
                (index, max(low - start, 0), min(high, stop) - start)
                for index, (start, stop) in enumerate(spans)
                if low < stop and start < high
            ]
            for low, high in bounds
        ]
        self.buckets_of: list[list[int]] = [[] for _ in spans]
        for k, pieces in enumerate(self.pieces):
            for index, _, _ in pieces:
                self.buckets_of[index].append(k)


class Delivery:
    """Delivers buckets in order as the gradients of parameters come.

    Parameters
    ----------
    plan
        The buckets.
    parameters
        Those that the plan's spans are of.
    deliver
        Receives the buckets.
    device
        Where they go.
    """

    def __init__(
        self, plan: BucketPlan, parameters: Sequence[Tensor], deliver: Deliver, device: torch.device
    ) -> None:
        self._plan = plan
        self._parameters = parameters
        self._deliver = deliver
        self._device = device
        self._missing = [len(pieces) for pieces in plan.pieces]
        self._next = 0

    def take(self, index: int) -> None:
        """Parameter `index` has its gradient."""
        for k in self._plan.buckets_of[index]:
            self._missing[k] -= 1
        while self._next < len(self._missing) and self._missing[self._next] == 0:
            self._deliver_next()

    def finish(self) -> None:
        """Back-propagation is over: what got no gradient has zero, and all buckets go out."""
        while self._next < len(self._missing):
            self._deliver_next()

    def _deliver_next(self) -> None:
        k = self._next
        self._next += 1
        pieces = [
            flat_gradient(self._parameters[index])[low:high] for index, low, high in self._plan.pieces[k]
        ]
        whole = torch.cat(pieces) if pieces else torch.empty(0, dtype=self._parameters[0].dtype)
        self._deliver(k, whole.to(self._device))


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
        return torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    return (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
