"""What a calibration measures: its parts, sizes, batches, models and durations, and the steps that follow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.devices import PRECISIONS
from simulator.execution.calibrate import Step, bench
from simulator.measurements import (
    Clocks,
    Collectives,
    Computing,
    Concurrent,
    Exchanges,
    Interference,
    Measurement,
    Pair,
    Passes,
    PingPong,
)
from simulator.measurements.computing import entry_of
from simulator.parts import BadInput, nearest
from simulator.scenario import Scenario

PARTS = ("network", "collectives", "compute", "interference")
"""What may be chosen. The clocks are always measured, and with ``compute`` passes over vectors too."""

ALL_HOSTS = "between: every host to the next"
"""The set of messages that shows what the switch between the hosts carries."""

MOST_PAIRS = 24
"""Pairs that ping-pong is played on, at most."""

CPU_MODELS = ("mlp-digits", "cnn-digits")
GPU_MODELS = (*CPU_MODELS, "resnet18-cifar", "resnet50", "vgg16", "gpt2-small")
"""The models whose gradients are measured unless others are named."""


QUICK: dict[str, Any] = {
    "sizes": (4, 2**12, 2**18, 2**20),
    "collective_sizes": (2**12, 2**14, 2**16, 2**18, 2**20),
    "repeats": 5,
    "models": ("mlp-digits",),
    "batches": (1, 16),
    "samples": 20,
    "seconds": 0.5,
}
"""What replaces the usual settings where a quick look is enough."""


MEASURED_IN: Mapping[str, tuple[str, ...]] = {
    "size": ("network", "compute", "interference"),
    "collective-size": ("network", "collectives"),
    "model": ("compute",),
    "batch": ("compute",),
    "samples": ("compute",),
    "scenario": ("compute",),
}
"""Options that some parts alone take, with these parts."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes
    ----------
    parts
        Of :data:`PARTS`.
    sizes
        Bytes of messages, ascending.
    collective_sizes
        Bytes of collectives.
    repeats
        Of each message or collective; the first one more does not count.
    models, batches, precision
        Networks, samples and arithmetic of the gradients; no models stand for those of the catalogue that
        suit the device.
    samples
        Gradients of each model and batch.
    seconds
        After about so long with one size, or one batch of one model, fewer repeats do.
    scenario
        One whose objective and cost model are measured as well, at its own batch.
    """

    parts: tuple[str, ...] = PARTS
    sizes: tuple[int, ...] = (4, 2**8, 2**12, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26)
    collective_sizes: tuple[int, ...] = (2**12, 2**16, 2**20, 2**22, 2**25)
    repeats: int = 20
    models: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 4, 16, 64)
    precision: str = "fp32"
    samples: int = 200
    seconds: float = 20.0
    scenario: Scenario | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in self.parts:
            if name not in PARTS:
                raise BadInput("part", f"'{name}' is no part; the nearest is '{nearest(name, PARTS)}'")
        if self.precision not in PRECISIONS:
            raise BadInput("precision", f"'{self.precision}' is not one of {', '.join(PRECISIONS)}")
        for key, least in (("sizes", 4), ("collective_sizes", 4), ("batches", 1)):
            values = getattr(self, key)
            if not values or min(values) < least or list(values) != sorted(set(values)):
                said = ", ".join(map(str, values))
                problem = f"must ascend from {least} or more, got {said or 'none'}"
                raise BadInput(key.replace("_", "-"), problem)
        for key in ("repeats", "samples"):
            if getattr(self, key) < 1:
                raise BadInput(key, f"must be at least 1, got {getattr(self, key)}")
        if not self.seconds > 0:
            raise BadInput("seconds", f"must be above 0, got {self.seconds}")
        for model in self.models:
            try:
                entry_of(model)
            except ValueError as error:
                raise BadInput("model", str(error)) from None

    def clocks(self) -> Clocks:
        """Return what is measured first, always: it finds out who takes part."""
        return Clocks(repeats=self.repeats)

    def steps(self, places: Sequence[tuple[str, str]]) -> list[Step]:
        """Return what is to be measured by ranks on these hosts and devices."""
        workers, steps = len(places), []
        limits: dict[str, Any] = {"repeats": self.repeats, "seconds": float(self.seconds)}

        def add(name: str, measurement: Measurement, weight: float) -> None:
            steps.append(Step(name, bench(measurement, workers), weight))

        hosts = [host for host, _ in places]
        if "network" in self.parts and workers > 1:
            pairs = chosen_pairs(hosts)
            weight = len(pairs) * len(self.sizes)
            add("ping-pong", PingPong(pairs=pairs, sizes=self.sizes, **limits), weight)
            sets = tuple(arcs for _, arcs in flow_sets(hosts))
            add("concurrent", Concurrent(sets=sets, sizes=self.large, **limits), 2 * len(sets))
            sizes = self.collective_sizes
            add("exchanges", Exchanges(sizes=sizes, **limits), len(sizes))
        if "collectives" in self.parts and workers > 1:
            add(
                "collectives",
                Collectives(sizes=self.collective_sizes, **limits),
                3 * len(self.collective_sizes),
            )
        if "compute" in self.parts:
            sizes = tuple(size for size in self.sizes if size >= 2**12) or self.sizes[-1:]
            add("passes", Passes(sizes=sizes, **limits), 3 * len(sizes))
            limits["repeats"] = self.samples
            for model in self.models or suited(places[0][1]):
                measurement = Computing(model=model, batches=self.batches, precision=self.precision, **limits)
                add(f"gradients of {model}", measurement, 5 * len(self.batches))
            if self.scenario is not None:
                steps += self.scenario_steps(self.scenario, workers)
        if "interference" in self.parts and workers > 1:
            add("interference", Interference(size=self.large[-1], repeats=self.repeats), 4)
        return steps

    @property
    def large(self) -> tuple[int, ...]:
        """The two sizes at which messages go at once: their difference gives a rate without latency."""
        affordable = [size for size in self.sizes if size <= 2**24]
        return tuple(affordable[-2:]) or self.sizes[:1]

    def scenario_steps(self, scenario: Scenario, workers: int) -> list[Step]:
        """Return what is measured of a scenario: its objective's gradient, and the passes of its network."""
        single = scenario.variants()[0]
        sections, batch = single.sections, single.objective_batches[0]
        if sections.workload.objective is None:
            raise BadInput("scenario", f"{single.name} has no objective that could be measured")
        limits: dict[str, Any] = {"repeats": self.samples, "seconds": float(self.seconds)}
        workload: dict[str, Any] = {"cost": sections.workload.cost, "objective": sections.workload.objective}
        if sections.workload.objective_batch is not None:
            workload["objective-batch"] = sections.workload.objective_batch
        measured = Scenario(
            {
                "name": "calibration",
                "cluster": {"topology": {"builder": "switch", "gpus": workers}, "device": "ideal"},
                "workload": workload,
                "algorithm": Computing(batches=(batch,), **limits),
                "step-size": 0.1,
                "budget": {"iterations": self.samples + 2},
                "seed": single.seed,
            },
            folder=single.folder,
        )
        steps = [Step("gradients of the objective", measured, 5)]
        model = measured_model(single)
        if model is not None:
            split = Computing(model=model, batches=(batch,), **limits)
            steps.append(Step(f"passes of {model}", bench(split, workers), 5))
        return steps


def measured_model(scenario: Scenario) -> str | None:
    """Return the cost model whose network a scenario's objective is, by its parameters; None if it is not."""
    model = getattr(scenario.cost, "model", None)
    objective = scenario.objective
    if model is None or objective is None or objective.parameters != scenario.cost.parameters:
        return None
    return str(model)


def suited(device: str) -> tuple[str, ...]:
    """Return the models of the catalogue that are measured on a device unless others are named."""
    return CPU_MODELS if device == "cpu" else GPU_MODELS


def chosen_pairs(hosts: Sequence[str]) -> tuple[Pair, ...]:
    """Return the pairs of ranks that play ping-pong: all, or so many inside hosts and between hosts.

    Between two hosts one pair is enough, and inside a host all.
    """
    every = list(itertools.combinations(range(len(hosts)), 2))
    if len(every) <= MOST_PAIRS:
        return tuple(every)
    between: dict[tuple[str, str], Pair] = {}
    inside = []
    for a, b in every:
        if hosts[a] == hosts[b]:
            inside.append((a, b))
        else:
            between.setdefault((hosts[a], hosts[b]), (a, b))
    half = MOST_PAIRS // 2
    outside = list(between.values())
    room = MOST_PAIRS - min(half, len(inside))
    return tuple(sorted(inside[: MOST_PAIRS - min(room, len(outside))] + outside[:room]))


def flow_sets(hosts: Sequence[str]) -> list[tuple[str, tuple[Pair, ...]]]:
    """Return, by name, the sets of messages that go at once.

    ``one way`` and ``both ways`` of a pair, ``ring`` (every rank to the next), and, where a host has several
    ranks and there are several hosts, growing numbers of ranks of the first host to those of the second: the
    flows of one network interface.
    """
    ranks = range(len(hosts))
    by_host: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        by_host.setdefault(host, []).append(rank)
    local = next((own for own in by_host.values() if len(own) > 1), None)
    sets: list[tuple[str, tuple[Pair, ...]]] = []
    if local is not None:
        a, b = local[:2]
        sets += [("inside: one way", ((a, b),)), ("inside: both ways", ((a, b), (b, a)))]
        around = tuple((local[k], local[(k + 1) % len(local)]) for k in range(len(local)))
        sets.append(("inside: ring", around))
    if len(by_host) > 1:
        one, other = list(by_host.values())[:2]
        sets += [
            ("between: one way", ((one[0], other[0]),)),
            ("between: both ways", ((one[0], other[0]), (other[0], one[0]))),
        ]
        width = min(len(one), len(other))
        counts = sorted({2**k for k in range(1, 10) if 2**k < width} | ({width} if width > 1 else set()))
        for count in counts:
            sets.append((f"between: {count} flows", tuple(zip(one[:count], other[:count], strict=True))))
        groups = list(by_host.values())
        least = min(map(len, groups))
        onward = tuple(
            (groups[k][j], groups[(k + 1) % len(groups)][j]) for k in range(len(groups)) for j in range(least)
        )
        sets.append((ALL_HOSTS, onward))
    assert ranks
    return sets
