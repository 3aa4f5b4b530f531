"""Execution: a scenario's algorithm for real, on local processes, under ``torchrun`` or under Slurm.

From the scenario come the algorithm, the objective, the batches, the communication graph, the bucket plan,
the budget and the target. From the real machine come its computing speed and its network: topology,
devices, transport, stragglers and background traffic of the scenario play no part, except that
proportional batches are dealt out by the speeds that the scenario states, and except for what its
``execution`` section asks for: emulated compute, messages of the cost model's bytes, injected stragglers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.observation import Observation, Observer
from simulator.parts import BadInput
from simulator.plan import oracle
from simulator.run import Met, Progress, Run
from simulator.stragglers import Crash, LinkFailure, SlowLink
from traces import Timeline

if TYPE_CHECKING:
    from simulator.execution.record import Record
    from simulator.scenario import Scenario


PATIENCE = 300.0
"""Seconds without any progress after which a run is ended, unless told otherwise."""


def execute(
    scenario: Scenario,
    progress: Progress | None = None,
    patience: float = PATIENCE,
    device: str = "cpu",
    backend: str = "auto",
    met: Met | None = None,
) -> Run | None:
    """Run a scenario on the wall clock.

    Parameters
    ----------
    scenario
        With an objective, one step size and one algorithm. Its workers and its dedicated servers become local
        processes; where the
        environment of torchrun or Slurm is set (:mod:`simulator.execution.place`), this process is one of
        them.
    progress
        Told how much is done, from 0 to 1.
    patience
        Seconds without any progress, or without a word of a rank, after which the run is ended.
    device
        ``auto``, ``cpu`` or ``cuda``. On the CPU the models are bit-identical to the simulation's.
    backend
        What carries collectives: ``gloo``, ``nccl``, or ``auto``, which is NCCL where each rank has a GPU of
        its own.
    met
        Told the host and the device of each rank, and what carries their collectives.

    Returns
    -------
    The run, with ``clock`` "wall" and no link utilisation. Under torchrun or Slurm rank 0 alone has it; the
    other ranks get None.

    Raises
    ------
    BadInput
        The scenario cannot be executed.
    AlgorithmError
        The algorithm breaks a rule of the seam.
    WorkerFailed
        A worker raised an error or was killed; all have been ended.
    RunStuck
        The patience is over; all have been ended.
    """
    check_executable(scenario)
    check_patience(patience)
    check_stragglers(scenario, patience)
    from simulator.execution import join, launch, place

    own = place.place()
    if own is None:
        records: list[Record] | None = launch.launch(scenario, progress, patience, device, backend, met)
    else:
        records = join.join(scenario, own, progress, patience, device, backend, met)
    if progress is not None and records is not None:
        progress(1.0)
    return None if records is None else assembled(scenario, records)


def check_executable(scenario: Scenario) -> None:
    """Refuse a scenario that only a simulation can run.

    Raises
    ------
    BadInput
        Its first fault.
    """
    sections = scenario.sections
    if sections.workload.objective is None:
        raise BadInput("workload.objective", "an execution computes real gradients; name what is optimised")
    if len(scenario.step_sizes) != 1:
        steps = ", ".join(f"{step:g}" for step in scenario.step_sizes if step is not None)
        raise BadInput("step-size", f"an execution takes one step size, not the grid {steps}")
    if sections.compare:
        names = ", ".join(part.name for part in sections.compare)
        raise BadInput("compare", f"an execution runs one algorithm, not {names} as well")
    if sections.workload.evaluation == "batched":
        raise BadInput("workload.evaluation", "every process evaluates its own gradients; use 'separate'")
    if sections.budget.stop == "target":
        raise BadInput("budget.stop", "only a simulation can stop at its target; use 'end'")
    _check_execution(scenario)
    # What an objective refuses (a number of workers, a batch, an empty shard), it refuses every rank.
    oracle(scenario, 0)


def check_patience(patience: float) -> None:
    """Refuse seconds of patience that are none.

    Raises
    ------
    BadInput
        They are not above 0, or infinite.
    """
    if not (patience > 0 and math.isfinite(patience)):
        raise BadInput("patience", f"must be above 0 s and finite, got {patience!r}")


def check_stragglers(scenario: Scenario, patience: float, emulated: bool = False) -> None:
    """Refuse stragglers that cannot happen for real: on links of this machine, or beyond the patience.

    Raises
    ------
    BadInput
        The first of them.
    """
    injected = scenario.execution.stragglers == "injected"
    for index, part in enumerate(scenario.stragglers):
        key = f"cluster.stragglers.{index}"
        if isinstance(part, (SlowLink, LinkFailure)):
            if injected and not emulated:
                problem = (
                    "the network of this machine cannot be slowed or cut; emulate the scenario's (paceline "
                    "emulate), or leave its stragglers out (execution.stragglers: none)"
                )
                raise BadInput(key, problem)
            if emulated and isinstance(part, LinkFailure) and part.transfers == "reroute":
                problem = "the routes of an emulated network do not change; use 'stall'"
                raise BadInput(f"{key}.transfers", problem)
        elif injected and isinstance(part, Crash) and part.returns:
            _check_outage(f"{key}.outage", _silence(scenario, part), patience)


def _silence(scenario: Scenario, crash: Crash) -> float:
    """Return for how long a worker is out at most from an outage on, with others that overlap with it."""
    from simulator.execution.pace import Outages

    ranks = filter(crash.concerns, range(scenario.workers))
    times = [time for rank in ranks for time in Outages(scenario, rank).times]
    return max(end - begin for begin, end in times if begin <= crash.at < end)


def _check_outage(key: str, outage: float, patience: float) -> None:
    if sys.platform != "linux":
        raise BadInput(key, "only Linux wakes a process that has stopped itself; a crash for good can happen")
    # The last word of a rank may be a quarter of the patience old when it stops.
    least = 1.5 * outage
    if patience < least:
        problem = f"a worker that says nothing for {patience:g} s is given up; have {least:g} s of patience"
        raise BadInput(key, problem)


def _check_execution(scenario: Scenario) -> None:
    """Refuse what cannot be taken from the scenario."""
    execution, cost, objective = scenario.execution, scenario.cost, scenario.objective
    assert objective is not None
    nodes = scenario.cluster.nodes
    if "emulated" in execution.compute and len(set(nodes)) < len(nodes):
        problem = "'emulated' needs a device for each worker; some of these share one"
        raise BadInput("execution.compute", problem)
    bytes_each = objective.parameters * objective.dtype.itemsize
    if execution.payload == "cost" and cost.parameters * cost.parameter_bytes < bytes_each:
        problem = f"the cost model's {cost.parameters} parameters are fewer bytes than the objective's"
        raise BadInput("execution.payload", f"'cost' has nothing to add: {problem}")


def assembled(scenario: Scenario, records: Sequence[Record]) -> Run:
    """Return the run that all ranks' records make, evaluating the reported models in the order of time."""
    import numpy as np

    from simulator.execution.record import spans

    workers, servers = records[: scenario.workers], records[scenario.workers :]
    observer = _observed(scenario, workers)
    return Run(
        scenario=scenario,
        clock="wall",
        duration=max(record.end for record in records),
        iterations=tuple(record.iterations for record in workers),
        evaluations=tuple(record.evaluations for record in workers),
        observations=sorted((noted for record in records for noted in record.observations), key=_moment),
        bytes_sent=tuple(record.bytes_sent for record in workers),
        server_bytes=tuple(record.bytes_sent for record in servers),
        timeline=Timeline(spans(records)),
        samples=observer.samples,
        pace=observer.pace,
        ends=tuple(observer.ends),
        models=np.stack([record.reports.models[-1] for record in workers]),
    )


def _moment(noted: Observation) -> tuple[float, int]:
    return noted.time, noted.worker


def _observed(scenario: Scenario, records: Sequence[Record]) -> Observer:
    import torch

    observer = Observer(scenario.objective, scenario.shares, len(records))
    reports = [
        (time, record.rank, index) for record in records for index, time in enumerate(record.reports.times)
    ]
    for time, rank, index in sorted(reports):
        own = records[rank].reports
        observer.report(rank, time, own.iterations[index], torch.from_numpy(own.models[index]))
    return observer
