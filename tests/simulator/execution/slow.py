"""Objectives whose gradients take milliseconds for real, so that ranks which start apart stay together.

The problem is one and the same whatever the seed: what a seed draws are samples, partners and, in simulation,
times. So final losses of different seeds tell of these alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.workload.kinds import Portfolio, Quadratic


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function take 3 ms in the processes of a real run; in a simulation time is virtual."""
    if multiprocessing.parent_process() is None:
        return function

    def slow(*arguments: Any) -> Any:
        time.sleep(0.003)
        return function(*arguments)

    return slow


@dataclass(frozen=True)
class SlowQuadratic(Quadratic):
    """A quadratic with slow gradients."""

    def build(self, seed: int) -> Any:
        objective: Any = super().build(0)
        oracle_of = objective.oracle

        def oracle(*arguments: Any) -> Any:
            made = oracle_of(*arguments)
            made.gradient = slowed(made.gradient)
            return made

        objective.oracle = oracle
        return objective


@dataclass(frozen=True)
class SlowPortfolio(Portfolio):
    """A portfolio with slow estimates."""

    def build(self, seed: int) -> Any:
        objective: Any = super().build(0)
        objective.outer_gradient = slowed(objective.outer_gradient)
        return objective
