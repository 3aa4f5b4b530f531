"""The step size of a grid: each algorithm and worker count takes the one that serves it best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from simulator.run import Run
from simulator.scenario import Scenario


def single_steps(scenario: Scenario) -> tuple[Scenario, ...]:
    """Return the scenario once for each step size that it names, with that step size alone."""
    if len(scenario.step_sizes) == 1:
        return (scenario,)
    return tuple(scenario.vary(step_size=step) for step in scenario.step_sizes)


def best_of(runs: Sequence[Run]) -> Run:
    """Return the run that reached its target first; if none did, the one with the lowest final loss.

    Among equals the smaller step size wins.
    """

    def merit(run: Run) -> tuple[float, float, float]:
        reached = run.reached()
        losses = run.samples.loss
        final = losses[-1] if losses and math.isfinite(losses[-1]) else math.inf
        return (reached.time if reached else math.inf, final, run.step_size or 0.0)

    return min(runs, key=merit)
