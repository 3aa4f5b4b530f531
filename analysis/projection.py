"""A real run's measured costs on a cluster of another size: simulated, in one line.

    predicted = simulate_like(run, workers=64, topology={"builder": "switch", "gpus": 64})

Measured: the seconds of a gradient and of an update, the forward pass's part, the buckets. Fitted: the
lognormal jitter. Named by the caller: the network. Taken from the run: algorithm, update rule, compression,
mixing graph. What the simulation does not know is whether the machines there are as fast as those here, so
each worker is as fast as the mean of the measured ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario


def scenario_like(
    run: Run,
    *,
    workers: int,
    topology: Any,
    jitter: bool = True,
    iterations: int | None = None,
    **changes: Any,
) -> Scenario:
    """Return the timing-only scenario that :func:`simulate_like` simulates."""
    if "target" in changes:
        raise BadInput("target", "is not known of a measured run; simulate an objective instead")
    resolved, profile = run.scenario.resolved(), run.profile()
    cluster: dict[str, Any] = {
        "topology": topology,
        "device": "ideal",
        "workers": workers,
        "stragglers": [profile.jitter()] if jitter and profile.sigma > 0 else [],
    }
    data: dict[str, Any] = {
        "name": f"{run.scenario.name}-at-{workers}",
        "cluster": cluster,
        "workload": {"cost": profile.cost()},
        "algorithm": resolved["algorithm"],
        "update": _without_schedule(resolved["update"]),
        "budget": {"iterations": iterations or max(run.iterations)},
        "seed": run.scenario.seed,
    }
    for key in ("compression", "gossip"):
        if key in resolved:
            data[key] = resolved[key]
    scenario = Scenario(data, folder=run.scenario.folder)
    return scenario.vary(**changes) if changes else scenario


def simulate_like(
    run: Run,
    *,
    workers: int,
    topology: Any,
    jitter: bool = True,
    iterations: int | None = None,
    **changes: Any,
) -> Run:
    """Simulate what a real run measured on a cluster of another size.

    Parameters
    ----------
    run
        On the wall clock: of a :class:`~simulator.execution.training.trainer.Trainer`, or executed.
    workers
        Their number.
    topology
        As in a scenario: a builder with its keys, or a graph's file.
    jitter
        Whether gradients vary as the fitted lognormal says.
    iterations
        Of each worker; as many as were measured unless given.
    changes
        Further keys of :meth:`Scenario.vary`, such as ``algorithm``, ``transport`` or ``stragglers``; a list
        of stragglers takes the place of the fitted jitter.

    Returns
    -------
    The simulated run, without numerics.

    Raises
    ------
    BadInput
        The run was simulated, or a key cannot be used.
    """
    wanted = scenario_like(
        run, workers=workers, topology=topology, jitter=jitter, iterations=iterations, **changes
    )
    return simulate(wanted)


def _without_schedule(update: Mapping[str, Any]) -> dict[str, Any]:
    """Return an update rule without its schedule, which has no effect without numerics."""
    rule = copy.copy(dict(update))
    rule.pop("schedule", None)
    return rule
