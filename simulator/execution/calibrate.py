"""Measuring a machine or a cluster: measurements executed one after another, and what each of them noted.

Every measurement is an execution of its own (:func:`simulator.execution.execute.execute`): on local
processes, or as a rank of torchrun's or Slurm's. What is finished is kept, so a calibration that was ended
goes on after its last finished measurement. Nothing is fitted here.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from simulator.execution.device import chosen_backend, described, identity, side
from simulator.execution.execute import PATIENCE, execute
from simulator.execution.place import place
from simulator.measurements import Measurement
from simulator.run import Met, Run, processor
from simulator.scenario import Scenario

Observed = dict[str, list[list[float]]]
"""Name -> what each rank noted under it, in the order of time."""


class Keeper(Protocol):
    """Where finished measurements are; :class:`traces.calibration_files.Parts` is one."""

    def find(self, identity: Mapping[str, Any]) -> Any:
        """Return what was kept under an identity, or None."""
        ...

    def keep(self, identity: Mapping[str, Any], value: Any) -> None:
        """Keep a value."""
        ...


@dataclass(frozen=True)
class Step:
    """One measurement to be made.

    Attributes
    ----------
    name
        What it is called.
    scenario
        What is executed.
    weight
        About how long it takes, compared with the others.
    """

    name: str
    scenario: Scenario
    weight: float = 1.0


def bench(measurement: Measurement, workers: int) -> Scenario:
    """Return the scenario that runs a measurement, on next to no workload."""
    return Scenario(
        {
            "name": "calibration",
            "cluster": {"topology": {"builder": "switch", "gpus": workers}, "device": "ideal"},
            "workload": {
                "cost": {"parameters": 16, "batch": 1, "gradient": "0 s"},
                "objective": {"kind": "quadratic", "dimension": 16, "dtype": "float32"},
            },
            "algorithm": measurement,
            "step-size": 0.1,
            "budget": {"iterations": 1},
        }
    )


@dataclass(frozen=True)
class Means:
    """How measurements are executed; see :func:`simulator.execution.execute.execute`."""

    device: str = "cpu"
    backend: str = "auto"
    patience: float = PATIENCE

    def run(self, scenario: Scenario, met: Met) -> Run | None:
        """Execute a measurement, on the ranks that take part."""
        return execute(scenario, None, self.patience, self.device, self.backend, met)


class Ranks:
    """The ranks that measure.

    Attributes
    ----------
    places
        Host and device of each rank, known after the first measurement.
    backend
        What carries their collectives, likewise.
    """

    def __init__(self, means: Means) -> None:
        self._means = means
        self._place = place()
        self.places: Sequence[tuple[str, str]] = ()
        self.backend = ""

    @property
    def first(self) -> bool:
        """Whether this process is the one that keeps, fits and writes."""
        return self._place is None or self._place.rank == 0

    @property
    def started(self) -> int | None:
        """How many ranks somebody else has started; None where they are launched here."""
        return None if self._place is None else self._place.world_size

    def execute(self, scenario: Scenario) -> Observed | None:
        """Execute a measurement; return what was noted, on the first rank alone."""
        means = self._means
        run = means.run(scenario, self._met)
        if not self.places:
            # A rank that torchrun or Slurm has started alone meets nobody.
            own = side(means.device, 0)
            places = [(platform.node(), described(own))]
            self._met(places, chosen_backend(means.backend, places, [identity(own)]))
        return None if run is None else observed(run)

    def _met(self, places: Sequence[tuple[str, str]], backend: str) -> None:
        self.places, self.backend = places, backend

    def measure(
        self,
        steps: Sequence[Step],
        keeper: Keeper,
        progress: Callable[[float, str], None] = lambda done, name: None,
    ) -> dict[str, Observed]:
        """Make the measurements that have not been kept; return all of them, on the first rank alone.

        Parameters
        ----------
        steps
            The same on all ranks.
        keeper
            Of the first rank; the others' is not asked.
        progress
            Told the part that is done, and what comes next.
        """
        found: dict[str, Any] = {}
        identities = {step.name: self._identity(step) for step in steps}
        if self.first:
            found = {step.name: keeper.find(identities[step.name]) for step in steps}
        missing = self._agreed([step.name for step in steps if found.get(step.name) is None])
        whole, done = sum(step.weight for step in steps), 0.0
        for step in steps:
            progress(done / whole, step.name)
            if step.name in missing:
                value = self.execute(step.scenario)
                if value is not None:
                    keeper.keep(identities[step.name], value)
                    found[step.name] = value
            done += step.weight
        progress(1.0, "")
        return found

    def _identity(self, step: Step) -> dict[str, Any]:
        ranks = [list(rank) for rank in self.places]
        return {"scenario": step.scenario.resolved(), "ranks": ranks, "versions": versions()}

    def _agreed(self, missing: list[str]) -> list[str]:
        """Return what the first rank lacks, on all ranks."""
        if self._place is None or self._place.world_size == 1:
            return missing
        said = [missing]
        dist.broadcast_object_list(said, 0)
        return said[0]


def observed(run: Run) -> Observed:
    """Return what the ranks of a run noted."""
    found: Observed = {}
    for noted in run.observations:
        found.setdefault(noted.name, [[] for _ in range(run.workers)])[noted.worker].append(noted.value)
    return found


def versions() -> dict[str, str]:
    """Return the versions of what takes part in the measurements."""
    try:
        own = importlib.metadata.version("paceline")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    found = {"paceline": own, "torch": str(torch.__version__), "Python": platform.python_version()}
    if torch.version.cuda is not None:
        found["CUDA"] = torch.version.cuda
    return found


def machine(device: str) -> dict[str, Any]:
    """Return what this machine is: name, system, processors, memory in bytes, and its GPU if it computes."""
    facts: dict[str, Any] = {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.startswith("cuda"):
        index = int(device.partition(":")[2].split()[0] or 0)
        properties = torch.cuda.get_device_properties(index)
        facts |= {"gpu": properties.name, "gpu_memory": properties.total_memory}
    return facts


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
