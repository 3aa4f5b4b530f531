"""From measured computations to a device, its compute tables, its jitter and its interference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.calibration import fit
from analysis.calibration.settings import Settings, measured_model
from simulator.devices import DEFAULT_EFFICIENCY, DEVICES
from simulator.execution.calibrate import Observed
from simulator.parts import BadInput
from simulator.workload import GivenCost
from simulator.workload.cost import resolve

VECTORS = 3
"""Vectors that the sum of two moves through memory."""

LEAST_SLOWDOWN = 1.05
"""A worker that is slower than the fastest by less is not called a straggler."""


def pooled(by_rank: Sequence[Sequence[float]]) -> list[float]:
    """Return what all ranks noted."""
    return [value for own in by_rank for value in own]


def device_name(machine: Mapping[str, Any]) -> str:
    """Return a GPU's name in the catalogue, where it is there, else a name made of what it is called."""
    called = str(machine.get("gpu", "measured-cpu")).lower()
    words = re.sub(r"[^a-z0-9]+", "-", called).strip("-")
    known = [name for name in DEVICES if f"-{name}-" in f"-{words}-"]
    return max(known, key=len) if known else words


def passes(found: Observed) -> fit.Line:
    """Fit the seconds of the sum of two vectors to the bytes that it moves."""
    sizes = sorted(int(name.partition("/")[2]) for name in found if name.startswith("combine/"))
    seconds = [fit.median(pooled(found[f"combine/{size}"])) for size in sizes]
    return fit.line([VECTORS * size for size in sizes], seconds)


def device(
    machine: Mapping[str, Any], found: Mapping[str, Observed], tables: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the device of a description, as a scenario's ``device`` takes it.

    Of one in no catalogue whose computations were not measured nothing is known; a scenario has to name it
    then.
    """
    name = device_name(machine)
    said: dict[str, Any] = {"name": name}
    if "passes" in found:
        line = passes(found["passes"])
        rate = 1 / line.slope if line.slope else 1e15
        said |= {"memory-bandwidth": f"{rate!r} B/s", "pass-overhead": f"{line.intercept!r} s"}
        if name not in DEVICES:
            said["peak-flops"] = f"{arithmetic(found['passes'])!r} FLOP/s"
            said["memory"] = f"{float(machine.get('gpu_memory', machine['memory']))!r} B"
            said["efficiency"] = efficiency(tables, arithmetic(found["passes"]))
    elif name not in DEVICES:
        return {}
    if "interference" in found:
        said["interference"] = interference(found["interference"])["computations"]
    said["tables"] = tables
    return said


def arithmetic(found: Observed) -> float:
    """Return the FLOP/s of a product of two square matrices."""
    (name,) = (name for name in found if name.startswith("matrix/"))
    flops: float = 2 * int(name.removeprefix("matrix/")) ** 3
    return flops / fit.median(pooled(found[name]))


def efficiency(tables: Sequence[Mapping[str, Any]], peak: float) -> float:
    """Return the largest part of the arithmetic's rate that a measured network reaches at its largest batch.

    Small networks are bound by what starts their layers, which says nothing of others. Without any network it
    is the roofline's usual figure.
    """
    reached = []
    for table in tables:
        profile = resolve(table["model"])
        flops = (profile.forward_flops + profile.backward_flops) * table["batches"][-1]
        seconds = _seconds(table["forward"][-1]) + _seconds(table["backward"][-1])
        reached.append(min(1.0, flops / seconds / peak))
    return float(f"{max(reached):.4g}") if reached else DEFAULT_EFFICIENCY


def _seconds(text: str) -> float:
    return float(text.removesuffix(" s"))


def interference(found: Observed) -> dict[str, float]:
    """Return how many times longer computations take beside transfers, and transfers beside computations.

    Never below 1: what is faster in company is noise.
    """
    beside, alone = pooled(found.get("beside", [])), pooled(found["alone"])
    slower = fit.mean(beside) / fit.mean(alone) if beside else 1.0
    transfers = fit.mean(pooled(found["transfer-beside"])) / fit.mean(pooled(found["transfer-alone"]))
    return {"computations": max(1.0, slower), "transfers": max(1.0, transfers)}


class Gradients:
    """Measured gradients: tables by model, what varies, and what the scenario's objective costs.

    Parameters
    ----------
    settings
        What was measured.
    found
        What each step noted.
    """

    def __init__(self, settings: Settings, found: Mapping[str, Observed]) -> None:
        self._settings = settings
        self._times: dict[str, dict[int, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]]] = {}
        for step, observed in found.items():
            if step.startswith(("gradients of ", "passes of ")):
                self._take(observed)
        self._objective = found.get("gradients of the objective")
        if self._objective is not None:
            self._take_objective(self._objective)

    def _take(self, observed: Observed) -> None:
        for name, forward in observed.items():
            kind, _, rest = name.partition("/")
            if kind == "forward":
                model, _, batch = rest.rpartition("/")
                of_model = self._times.setdefault(model, {})
                of_model[int(batch)] = (forward, observed[f"backward/{rest}"])

    def _take_objective(self, observed: Observed) -> None:
        """Let the objective's own gradient stand for its network's: forward as that of the network alone."""
        assert self._settings.scenario is not None
        single = self._settings.scenario.variants()[0]
        model = measured_model(single)
        batch = single.objective_batches[0]
        charged = single.batches[0]
        if model is None or batch != charged or batch not in self._times.get(model, {}):
            return
        whole = observed[f"gradient/{batch}"]
        forward, backward = self._times[model][batch]
        first, second = fit.mean(pooled(forward)), fit.mean(pooled(backward))
        share = first / (first + second)
        self._times[model][batch] = (
            [[share * seconds for seconds in own] for own in whole],
            [[(1 - share) * seconds for seconds in own] for own in whole],
        )

    def tables(self) -> list[dict[str, Any]]:
        """Return the compute tables, as a device takes them: means over all ranks."""
        tables = []
        for model, by_batch in self._times.items():
            batches = sorted(by_batch)
            tables.append(
                {
                    "model": model,
                    "precision": self._settings.precision,
                    "batches": batches,
                    "forward": [f"{fit.mean(pooled(by_batch[b][0]))!r} s" for b in batches],
                    "backward": [f"{fit.mean(pooled(by_batch[b][1]))!r} s" for b in batches],
                }
            )
        return tables

    def series(self) -> list[list[list[float]]]:
        """Return, by rank, the seconds of all gradients of each model and batch, in the order of time."""
        ranks: list[list[list[float]]] = []
        for by_batch in self._times.values():
            for forward, backward in by_batch.values():
                ranks = ranks or [[] for _ in forward]
                for rank, (first, second) in enumerate(zip(forward, backward, strict=True)):
                    ranks[rank].append([a + b for a, b in zip(first, second, strict=True)])
        if not ranks and self._objective is not None:
            (by_rank,) = self._objective.values()
            ranks = [[own] for own in by_rank]
        return ranks

    def jitter(self) -> fit.Jitter | None:
        """Return how the gradients vary; None where none was measured."""
        series = self.series()
        return fit.jitter(series) if series else None

    def given(self, pass_seconds: fit.Line | None) -> GivenCost | None:
        """Return the cost of the scenario's objective in seconds, for one whose cost is no network."""
        if self._objective is None:
            return None
        assert self._settings.scenario is not None
        single = self._settings.scenario.variants()[0]
        objective, batch = single.objective, single.objective_batches[0]
        assert objective is not None
        seconds = fit.mean(pooled(self._objective[f"gradient/{batch}"]))
        nbytes = VECTORS * objective.parameters * objective.dtype.itemsize
        update = 0.0 if pass_seconds is None else pass_seconds.at(nbytes)
        return GivenCost(objective.parameters, single.batches[0], seconds, bucket_count=1, update=update)

    def measured(self) -> list[dict[str, Any]]:
        """Return what a description says of each model: spread, autocorrelation, the line t0 + t1 batch."""
        said = []
        for model, by_batch in self._times.items():
            batches = sorted(by_batch)
            whole = {b: _sums(*by_batch[b]) for b in batches}
            means = [fit.mean(pooled(whole[b])) for b in batches]
            line = fit.line(batches, means)
            said.append(
                {
                    "model": model,
                    "t0": line.intercept,
                    "t1": line.slope,
                    "residuals": list(line.residuals),
                    "batches": [
                        {
                            "batch": b,
                            **fit.spread(pooled(whole[b])),
                            "autocorrelation": [fit.autocorrelation(own) for own in whole[b]],
                            "forward": fit.spread(pooled(by_batch[b][0])),
                            "backward": fit.spread(pooled(by_batch[b][1])),
                        }
                        for b in batches
                    ],
                }
            )
        return said


def _sums(forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]]) -> list[list[float]]:
    return [
        [a + b for a, b in zip(first, second, strict=True)]
        for first, second in zip(forward, backward, strict=True)
    ]


def stragglers(jitter: fit.Jitter | None) -> list[dict[str, Any]]:
    """Return the stragglers of a description: measured jitter, and workers that are always slower."""
    if jitter is None:
        return []
    found: list[dict[str, Any]] = [
        {
            "kind": "persistent",
            "workers": [rank],
            "slowdown": slowdown / (sum(jitter.slowdowns) / len(jitter.slowdowns)),
            "measured-with": len(jitter.slowdowns),
        }
        for rank, slowdown in enumerate(jitter.slowdowns)
        if max(jitter.slowdowns) >= LEAST_SLOWDOWN
    ]
    if jitter.values[-1] > jitter.values[0]:
        found.append(
            {
                "kind": "measured",
                "levels": list(jitter.levels),
                "values": list(jitter.values),
                "correlation": jitter.correlation,
            }
        )
    return found


def check_measured(found: Mapping[str, Observed]) -> None:
    """Refuse a calibration that has nothing to describe.

    Raises
    ------
    BadInput
        Nothing was measured.
    """
    if not found:
        raise BadInput("part", "nothing of this can be measured by a single worker; take part 'compute' too")
