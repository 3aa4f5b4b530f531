"""What may be meant, but brings less than it seems to: sentences for whoever reads a run.

What cannot work is refused when a scenario is read. What is said here may be legitimate in a sweep over
periods, budgets, densities or algorithms. Each sentence is about one algorithm and is read after its name.
What depends on when a run ends is known of the finished run alone (:func:`cautions_of_run`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from algorithms.algorithm import Setting
from algorithms.codecs import Message
from simulator.plan import planned
from simulator.schedules import MultiStep, Step
from simulator.stragglers import Bursts, Crash, LinkFailure, Persistent, SlowLink, Straggler
from simulator.transports import Transport
from simulator.units import format_quantity

if TYPE_CHECKING:
    from simulator.run import Run
    from simulator.scenario import Scenario


def cautions(scenario: Scenario, real: bool = False) -> list[str]:
    """Return what a reader of a run of the scenario's algorithm must not overlook.

    Parameters
    ----------
    scenario
        What is run.
    real
        Whether on the wall clock, where the messages may be the objective's own.
    """
    found = [scenario.uncovered] if scenario.uncovered else []
    charged = not real or scenario.execution.payload == "cost"
    if not real or scenario.execution.stragglers == "injected":
        found += [*_of_the_calibration(scenario), *_of_the_machines(scenario, real)]
    found += [*_of_the_budget(scenario), *_of_the_schedule(scenario), *_of_the_codec(scenario, charged)]
    return found if real else [*found, *_of_the_transport(scenario)]


def cautions_of_run(run: Run) -> list[str]:
    """Return which events of the scenario a run did not live to see."""
    end = run.duration
    return [
        f"the {what} at {format_quantity(time, 's')} ({key}) lies beyond the run's end at "
        f"{format_quantity(end, 's')}, without effect."
        for key, what, time in _dated(run)
        if time >= end
    ]


def _dated(run: Run) -> Iterator[tuple[str, str, float]]:
    """Yield the key, the kind and the beginning of each event at a given time, of those that the run has.

    On the wall clock crashes happen where they are injected, what happens to links in an emulated network.
    """
    scenario, simulated = run.scenario, run.clock == "virtual"
    crashes = simulated or scenario.execution.stragglers == "injected"
    links = simulated or run.emulation is not None
    parts = zip(scenario.sections.cluster.stragglers, scenario.stragglers, strict=True)
    for index, (part, straggler) in enumerate(parts):
        key = f"cluster.stragglers.{index}"
        if isinstance(straggler, Crash) and crashes:
            yield f"{key}.at", part.name, straggler.at
        elif isinstance(straggler, (SlowLink, LinkFailure)) and links:
            yield f"{key}.start", part.name, straggler.start
    for index, flow in enumerate(scenario.sections.cluster.background if simulated else ()):
        yield f"cluster.background.{index}.start", "background traffic", flow.start


def _of_the_budget(scenario: Scenario) -> Iterator[str]:
    """Yield that a period is too long for workers to meet more than once."""
    period, budget = getattr(scenario.algorithm, "period", None), scenario.sections.budget.iterations
    if isinstance(period, int) and period > budget and scenario.workers > 1:
        yield (
            f"the period of {period:,} iterations is longer than the budget of {budget:,}, so that the "
            "workers' models meet once at most."
        )


def _of_the_schedule(scenario: Scenario) -> Iterator[str]:
    """Yield which parts of a schedule lie beyond the budget."""
    schedule, budget = scenario.update.schedule, scenario.sections.budget.iterations
    beyond = f"beyond the budget of {budget:,} iterations"
    if schedule.warm_up >= budget:
        yield f"the schedule's warm-up of {schedule.warm_up:,} updates ends {beyond}."
    if isinstance(schedule, MultiStep):
        late = [f"{milestone:,}" for milestone in schedule.milestones if milestone >= budget]
        if late:
            has = "s {} lie" if len(late) > 1 else " {} lies"
            yield f"the schedule's milestone{has.format(', '.join(late))} {beyond}, without effect."
    first = schedule.warm_up + schedule.every if isinstance(schedule, Step) else 0
    if first >= budget:
        yield f"the schedule's first drop, after {first:,} updates, lies {beyond}."


def _of_the_calibration(scenario: Scenario) -> Iterator[str]:
    """Yield that slow-downs of ranks were measured with another number of workers."""
    counts = {part.measured_with for part in scenario.stragglers if isinstance(part, Persistent)}
    for count in sorted(counts - {None, scenario.workers}, key=str):
        yield (
            f"the slow-downs of ranks in cluster.stragglers were measured with {count} "
            f"worker{'' if count == 1 else 's'} and are used with {scenario.workers}, whose ranks may be "
            "slower or faster."
        )


def _of_the_machines(scenario: Scenario, real: bool) -> Iterator[str]:
    """Yield that the machines have a seed of their own and leave nothing to chance."""
    seed, transport = scenario.sections.cluster.seed, scenario.transport
    shares = not real and isinstance(transport, Transport) and transport.share_spread > 0
    if seed is None or shares or any(_draws(part) for part in scenario.stragglers):
        return
    yield f"cluster.seed of {seed} has no effect, as the machines leave nothing to chance."


def _draws(part: Straggler | SlowLink | LinkFailure) -> bool:
    """Return whether a straggler draws random numbers."""
    if isinstance(part, Bursts):
        return True
    return isinstance(part, Straggler) and part.step_factor(np.random.default_rng()) is not None


def _of_the_transport(scenario: Scenario) -> Iterator[str]:
    """Yield that messages share links unequally where there are none."""
    transport = scenario.transport
    spread = transport.share_spread if isinstance(transport, Transport) else 0.0
    if spread > 0 and scenario.workers > 1 and not planned(scenario).channels:
        yield (
            f"cluster.transport.share-spread of {spread:g} has no effect, as collectives share links equally "
            "and there are no messages between two workers."
        )


def _of_the_codec(scenario: Scenario, charged: bool) -> Iterator[str]:
    """Yield that a codec makes a worker send more than it would without.

    The messages are those of the cost model where they are ``charged`` as such, else the objective's own.
    """
    codec, n = scenario.codec, scenario.workers
    if codec is None or n == 1:
        return
    objective, cost = scenario.objective, scenario.cost
    if objective is None or (charged and scenario.stands_for_cost):
        elements, itemsize, layers = cost.parameters, cost.parameter_bytes, scenario.charged_layers
    else:
        elements, itemsize, layers = objective.parameters, objective.dtype.itemsize, objective.shapes
    # A message in the midst of the run: the first ones may be those of a warm-up.
    number = scenario.sections.budget.iterations
    message = Message(elements, itemsize, layers, n, number)
    wire = codec.wire_bytes(message) + codec.agreed_elements(message) * itemsize
    name = scenario.sections.compression.name if scenario.sections.compression else ""
    if scenario.algorithm.compresses in ("gradients", "models"):
        reduced = Setting(n, elements, itemsize).reduced
        exact = reduced(message.nbytes)
        sent = reduced(wire) if codec.summable else (n - 1) * wire
        whose = f"a worker sends {{}} for a mean of all {n}, {{}} times the {{}} of an exact all-reduce"
    else:
        exact, sent = float(message.nbytes), float(wire)
        whose = "a message takes {}, {} times the {} of an exact one"
    if sent > exact:
        said = whose.format(format_quantity(sent, "B"), f"{sent / exact:.3g}", format_quantity(exact, "B"))
        yield f"with {name} {said}."
