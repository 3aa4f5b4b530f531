"""Objectives on a device: a worker's oracle whose models and gradients are there.

An objective that can move (:meth:`simulator.workload.objective.Objective.place`) evaluates its gradients
there. Any other evaluates on the CPU, and models and gradients are copied both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from simulator.plan import oracle
from simulator.workload.delivery import Deliver
from simulator.workload.objective import Bounds, Oracle

if TYPE_CHECKING:
    from algorithms.problem import Problem
    from simulator.scenario import Scenario


class CopyingOracle(Oracle):
    """An oracle of the CPU for models of a device.

    Parameters
    ----------
    inner
        Evaluates.
    device
        Where models are and gradients go.
    """

    def __init__(self, inner: Oracle, device: torch.device) -> None:
        super().__init__(inner.objective)
        self._inner = inner
        self._device = device

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Mean gradient over the worker's next mini-batch."""
        return self._inner.gradient(x.cpu()).to(self._device)

    def full_gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient of f_i itself."""
        return self._inner.full_gradient(x.cpu()).to(self._device)

    def gradient_in_buckets(self, x: torch.Tensor, bounds: Bounds, deliver: Deliver) -> None:
        """Deliver the gradient over the next mini-batch slice by slice."""
        self._inner.gradient_in_buckets(
            x.cpu(), bounds, lambda number, part: deliver(number, part.to(self._device))
        )

    @property
    def problem(self) -> Problem | None:
        """This worker's view of what is optimised, for tensors of the device."""
        inner = self._inner.problem
        return None if inner is None else CopyingProblem(inner, self._device)


class CopyingProblem:
    """A view of what is optimised whose methods take and give tensors of a device.

    Parameters
    ----------
    inner
        The view on the CPU.
    device
        Of the tensors.
    """

    def __init__(self, inner: Any, device: torch.device) -> None:
        self._inner = inner
        self._device = device

    def __getattr__(self, name: str) -> Any:
        """Return an attribute; a method is called with copies on the CPU, and its tensor is copied back."""
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def called(*arguments: Any) -> Any:
            value = found(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments))
            return value.to(self._device) if isinstance(value, torch.Tensor) else value

        return called


def placed_oracle(scenario: Scenario, rank: int, device: torch.device) -> Oracle:
    """Return a rank's source of gradients, for models on a device."""
    objective = scenario.objective
    assert objective is not None
    there = objective.place(device)
    inner = oracle(scenario, rank)
    return inner if there else CopyingOracle(inner, device)
