"""Calibration: measure, fit, let the simulator predict what was measured, write the cluster description."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.calibration import compute, fit, network
from analysis.calibration.settings import Settings, chosen_pairs, flow_sets
from simulator.engine.simulate import simulate
from simulator.execution.calibrate import Means, Observed, Ranks, bench, machine, observed, versions
from simulator.execution.device import side
from simulator.measurements import Collectives, Concurrent, Exchanges, Measurement, PingPong
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.transports import Gloo
from simulator.units import format_quantity
from traces.calibration_files import SUFFIXES, Parts, write_description

Told = Callable[[float, str], None]
"""Told the part that is done, and what comes next."""

PATTERNS = {
    "ring": {"pattern": "ring", "pipelined": False},
    "tree": {"pattern": "tree", "pipelined": False},
    "halving-doubling": {"pattern": "halving-doubling", "pipelined": False},
    "pipelined ring": {"pattern": "ring", "pipelined": True},
    "pipelined tree": {"pattern": "tree", "pipelined": True},
    "hierarchical": {"pattern": "hierarchical", "pipelined": False},
}
"""The all-reduces that a measured one is compared with."""

USUAL = {"gloo": "ring", "nccl": "pipelined ring"}
"""What each backend runs, as its source says, where the measured times do not tell."""

VALIDITY = (
    "for {} workers in the order of their ranks: slow-downs belong to ranks, and times have the contention "
    "of all in them; measure again for another number or order of workers"
)
"""What a description says of where it holds, in words."""


@dataclass(frozen=True)
class Calibration:
    """A cluster description.

    Attributes
    ----------
    cluster
        The keys of a scenario's ``cluster``.
    measured
        Where they come from.
    """

    cluster: Mapping[str, Any]
    measured: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_description(path, self.cluster, self.measured)

    def __str__(self) -> str:
        return "\n".join(_lines(self.measured))


def calibrate(
    settings: Settings | None = None,
    out: Path = Path("cluster.yaml"),
    workers: int | None = None,
    means: Means | None = None,
    progress: Told = lambda done, name: None,
    fresh: bool = False,
) -> Calibration | None:
    """Measure this machine, or those on which torchrun or Slurm has started ranks, and write a description.

    Parameters
    ----------
    settings
        What is measured.
    out
        The file to write. Finished measurements are kept beside it until it is written; a calibration that
        was ended goes on after them.
    workers
        Local processes; by default one for each processor, from 2 to 8, or for each GPU.
    means
        Device, backend and patience of the executions.
    progress
        Told how much is done.
    fresh
        Whether to forget what an interrupted calibration has measured.

    Returns
    -------
    The calibration; None on all ranks but the first.

    Raises
    ------
    BadInput
        The settings cannot be used here, or the file cannot be written.
    """
    settings, means = settings or Settings(), means or Means()
    if out.suffix not in SUFFIXES:
        raise BadInput("out", f"'{out.name}' should end with {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise BadInput("out", f"there is no folder {out.parent}")
    ranks, parts = Ranks(means), Parts(out)
    if ranks.started is not None and workers not in (None, ranks.started):
        raise BadInput("workers", f"{ranks.started} ranks have been started, not {workers}")
    workers = ranks.started or workers or usual_workers(means.device)
    if fresh and ranks.first:
        parts.drop()
    began = time.monotonic()
    progress(0.0, "clocks")
    clocks = ranks.execute(bench(settings.clocks(), workers))
    steps = settings.steps(ranks.places)
    if not steps:
        raise BadInput("part", "a single worker has none of these; take 'compute' too")
    found = ranks.measure(steps, parts, progress)
    if clocks is None:
        return None
    made = described(settings, ranks.places, ranks.backend, clocks, found)
    made = replace(made, measured={**made.measured, "seconds": time.monotonic() - began})
    made.save(out)
    parts.drop()
    return made


def usual_workers(device: str) -> int:
    """Return how many local processes measure unless told otherwise."""
    own = side(device, 0)
    if own.device.type != "cpu":
        import torch

        return torch.cuda.device_count()
    return max(2, min(8, os.cpu_count() or 2))


def described(
    settings: Settings,
    places: Sequence[tuple[str, str]],
    backend: str,
    clocks: Observed,
    found: Mapping[str, Observed],
) -> Calibration:
    """Make a cluster description of what was measured; computes, and measures nothing.

    Parameters
    ----------
    settings
        What was measured.
    places
        Host and device of each rank.
    backend
        What carried the collectives.
    clocks, found
        What the ranks noted: of the clocks, and of each step.
    """
    hosts = [host for host, _ in places]
    facts = machine(places[0][1])
    gradients = compute.Gradients(settings, found)
    jitter = gradients.jitter()
    messages = network.fitted(settings, hosts, found) if "ping-pong" in found else None
    cluster: dict[str, Any] = {
        "topology": network.topology(hosts, messages or _unmeasured(hosts)),
        "device": compute.device(facts, found, gradients.tables()) or None,
        "workers": len(hosts),
        "transport": network.transport(messages, backend),
        "stragglers": compute.stragglers(jitter),
    }
    measured: dict[str, Any] = {
        "date": facts["date"],
        "versions": versions(),
        "machine": facts,
        "ranks": [{"host": host, "device": device} for host, device in places],
        "backend": backend,
        "range": {"workers": len(hosts), **_range(settings, found)},
        "validity": VALIDITY.format(len(hosts)),
        "clocks": _clocks(clocks),
    }
    cluster = {key: value for key, value in cluster.items() if value is not None}
    if messages is not None:
        measured["network"] = network.measured(settings, messages)
    if messages is not None:
        cluster["transport"], measured["exchanges"] = exchanges(cluster, found["exchanges"], settings)
    if "collectives" in found and messages is not None:
        cluster["transport"], measured["collectives"] = collectives(cluster, found["collectives"], settings)
    if "passes" in found:
        measured["passes"] = _passes(found["passes"])
    if "interference" in found:
        measured["interference"] = compute.interference(found["interference"])
    if jitter is not None:
        measured["gradients"] = gradients.measured()
        measured["jitter"] = {"slowdowns": list(jitter.slowdowns), "gradients": jitter.count}
    given = gradients.given(compute.passes(found["passes"]) if "passes" in found else None)
    if given is not None:
        measured["objective-cost"] = {
            "parameters": given.parameters,
            "batch": given.batch,
            "gradient": f"{given.gradient!r} s",
            "update": f"{given.update!r} s",
        }
    if messages is not None:
        measured["model-against-measured"] = against(cluster, settings, hosts, found)
    return Calibration(cluster, measured)


def _unmeasured(hosts: Sequence[str]) -> network.Network:
    """Return messages that take no time, where none was measured."""
    free = network.Rates(network.ASSUMED_LATENCY, network.ASSUMED_RATE, None, None)
    return network.Network({}, free, free if len(set(hosts)) > 1 else None, {})


def _range(settings: Settings, found: Mapping[str, Observed]) -> dict[str, Any]:
    """Return in which range the numbers hold."""
    said: dict[str, Any] = {}
    if "ping-pong" in found:
        said["message-bytes"] = [settings.sizes[0], settings.sizes[-1]]
    if "collectives" in found:
        said["collective-bytes"] = [settings.collective_sizes[0], settings.collective_sizes[-1]]
    if any(name.startswith("gradients of ") for name in found):
        said["batches"] = [settings.batches[0], settings.batches[-1]]
    return said


# What the simulator makes of a description.


def predicted(cluster: Mapping[str, Any], measurement: Measurement) -> Observed:
    """Return what a measurement would note on a described cluster, on the virtual clock."""
    quiet = {key: value for key, value in cluster.items() if key != "stragglers"} | {"device": "ideal"}
    scenario = Scenario(
        {
            "name": "calibration",
            "cluster": quiet,
            "workload": {"cost": {"parameters": 16, "batch": 1, "gradient": "0 s"}},
            "algorithm": measurement,
            "budget": {"iterations": 1},
        }
    )
    return observed(simulate(scenario, monitor=False))


def collectives(
    cluster: Mapping[str, Any], found: Observed, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name the all-reduce that was measured and fit its latency and share.

    Returns
    -------
    The transport of the description, and what it says of the collectives.
    """
    sizes, name = settings.collective_sizes, cluster["transport"]["name"]
    measured = [_of_ranks(found[f"all_reduce/{size}"]) for size in sizes]
    candidates = {}
    for pattern, keys in PATTERNS.items():
        if pattern == "hierarchical" and not _several_in_several(cluster):
            continue
        changed = {**cluster, "transport": {**cluster["transport"], **_keys(name, keys)}}
        reduction = Collectives(kinds=("all_reduce",), sizes=sizes, repeats=1)
        try:
            candidates[pattern] = _fitted(changed, "collective", reduction, measured)
        except BadInput:
            continue  # a pattern that so many workers cannot run
    chosen, alike = fit.best(candidates, USUAL[name])
    best = candidates[chosen]
    keys = {**cluster["transport"], **_keys(name, PATTERNS[chosen])}
    transport = _factored(keys, "collective", best.latency, best.share)
    said = {
        "sizes": list(sizes),
        "all-reduce": chosen,
        "not-told-apart-from": alike,
        "latency-factor": best.latency,
        "share": best.share,
        "residuals": list(best.residuals),
        "errors-of-other-patterns": {p: c.error for p, c in candidates.items() if p != chosen},
        "median-seconds": {
            kind: [_of_ranks(found[f"{kind}/{size}"]) for size in sizes]
            for kind in ("all_reduce", "all_gather", "all_to_all")
        },
    }
    return transport, said


def exchanges(
    cluster: Mapping[str, Any], found: Observed, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the latency and the share of exchanges with neighbours.

    Returns
    -------
    The transport of the description, and what it says of the exchanges.
    """
    sizes = settings.collective_sizes
    measured = [_of_ranks(found[f"exchange/{size}"]) for size in sizes]
    fitted = _fitted(cluster, "exchange", Exchanges(sizes=sizes, repeats=1), measured)
    return _factored(cluster["transport"], "exchange", fitted.latency, fitted.share), {
        "sizes": list(sizes),
        "latency-factor": fitted.latency,
        "share": fitted.share,
        "residuals": list(fitted.residuals),
        "median-seconds": measured,
    }


def _keys(backend: str, pattern: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a pattern beside those that a backend has anyway."""
    keys = dict(pattern)
    if backend == "gloo" and keys["pipelined"]:
        # Its segments belong to a ring that goes step by step.
        keys |= {"segment-size": "inf", "least-segments": 1, "handling-rate": "inf", "in-flight": 1}
    if backend == "nccl" and not keys["pipelined"]:
        keys["rounds-of-latency"] = "all"
    return keys


def _fitted(
    cluster: Mapping[str, Any], kind: str, measurement: Measurement, measured: Sequence[float]
) -> fit.Collective:
    """Fit latency and rate of collectives or exchanges on a described cluster to measured times, by size."""

    def model(latency: float, share: float) -> list[float]:
        transport = _factored(cluster["transport"], kind, latency, share)
        found = predicted({**cluster, "transport": transport}, measurement)
        return [_of_ranks(times) for times in found.values()]

    return fit.collective(model, measured)


def _factored(transport: Mapping[str, Any], kind: str, latency: float, share: float) -> dict[str, Any]:
    """Return a transport whose collectives or exchanges have factors on their latency and rates."""
    factored = {**transport, f"{kind}-latency": latency, f"{kind}-share": share}
    if kind == "collective" and transport["name"] == "gloo" and "handling-rate" not in transport:
        factored["handling-rate"] = f"{share * Gloo().handling_rate!r} B/s"
    return factored


def _several_in_several(cluster: Mapping[str, Any]) -> bool:
    hosts = [node["host"] for node in cluster["topology"]["nodes"] if "host" in node]
    return 1 < len(set(hosts)) < len(hosts)


def _of_ranks(by_rank: Sequence[Sequence[float]]) -> float:
    """Return the mean over the ranks of each one's median."""
    return fit.mean([fit.median(own) for own in by_rank if own])


def against(
    cluster: Mapping[str, Any], settings: Settings, hosts: Sequence[str], found: Mapping[str, Observed]
) -> dict[str, Any]:
    """Let the simulator make the same measurements on the description; return how far it is off.

    Of each measurement (simulated - measured) / measured: the mean of the absolute values, the largest, and
    each of them.
    """
    measurements: dict[str, Measurement] = {
        "ping-pong": PingPong(pairs=chosen_pairs(hosts), sizes=settings.sizes, repeats=1),
        "concurrent": Concurrent(
            sets=tuple(arcs for _, arcs in flow_sets(hosts)), sizes=settings.large, repeats=1
        ),
    }
    measurements["exchanges"] = Exchanges(sizes=settings.collective_sizes, repeats=1)
    if "collectives" in found:
        measurements["collectives"] = Collectives(sizes=settings.collective_sizes, repeats=1)
    said = {}
    for name, measurement in measurements.items():
        simulated = predicted(cluster, measurement)
        errors = {
            key: _of_ranks(simulated[key]) / _of_ranks(by_rank) - 1 for key, by_rank in found[name].items()
        }
        sizes = list(map(abs, errors.values()))
        said[name] = {"mean": fit.mean(sizes), "largest": max(sizes), "errors": errors}
    return said


# What a description says beside.


def _clocks(clocks: Observed) -> dict[str, Any]:
    offsets = {}
    for name, by_rank in clocks.items():
        if name.startswith("offset/"):
            trips = clocks[name.replace("offset", "round-trip")][0]
            # The quickest round trip leaves the least room for the offset.
            quickest = min(range(len(trips)), key=trips.__getitem__)
            offsets[name.partition("/")[2]] = {
                "offset": by_rank[0][quickest],
                "uncertainty": trips[quickest] / 2,
            }
    shifts = [0.0] + [offsets[str(rank)]["offset"] for rank in range(1, len(clocks["barrier"]))]
    leaving = zip(
        *([t - shift for t in own] for own, shift in zip(clocks["barrier"], shifts, strict=True)), strict=True
    )
    skews = [max(times) - min(times) for times in leaving]
    return {
        "tick": fit.median(compute.pooled(clocks["tick"])),
        "sleep-too-long": fit.spread(compute.pooled(clocks["sleep"])),
        "barrier-skew": fit.spread(skews[1:] or skews),
        "offsets": offsets,
    }


def _passes(found: Observed) -> dict[str, Any]:
    line = compute.passes(found)
    said: dict[str, Any] = {
        "overhead": line.intercept,
        "memory-bandwidth": 1 / line.slope if line.slope else None,
        "residuals": list(line.residuals),
        "arithmetic": compute.arithmetic(found),
    }
    for kind in ("add", "copy", "to-host", "from-host"):
        sizes = sorted(int(name.partition("/")[2]) for name in found if name.startswith(f"{kind}/"))
        if sizes:
            seconds = fit.median(compute.pooled(found[f"{kind}/{sizes[-1]}"]))
            said["reduction" if kind == "add" else kind] = sizes[-1] / seconds
    return said


def _lines(measured: Mapping[str, Any]) -> list[str]:
    """Return what was measured in a few lines."""

    def part(error: float) -> str:
        return f"{100 * error:.3g} %" if error > 1e-6 else "0 %"  # the rest is rounding

    machine_of, count = measured["machine"], len(measured["ranks"])
    hosts = len({rank["host"] for rank in measured["ranks"]})
    lines = [
        f"{count} workers on {hosts} host{'s' if hosts > 1 else ''}, {measured['ranks'][0]['device']}, "
        f"{measured['backend']}: {machine_of['processor']}, {machine_of['date']}"
    ]
    for where in ("inside-a-host", "between-hosts"):
        said = measured.get("network", {}).get(where)
        if said:
            together = said["rate-together"]
            all_at_once = f", all at once {format_quantity(together, 'B/s')}" if together else ""
            lines.append(
                f"  messages {where.replace('-', ' ')}: {format_quantity(said['latency'], 's')}, "
                f"{format_quantity(said['rate'], 'B/s')}{all_at_once}; "
                f"both ways {said['exchange-over-one-way']:.2f} times one way"
            )
    if "exchanges" in measured:
        said = measured["exchanges"]
        lines.append(
            f"  exchanges: {100 * said['share']:.0f} % of the messages' rate, {said['latency-factor']:.2f} "
            f"times their latency; residuals up to {part(max(map(abs, said['residuals'])))}"
        )
    if "collectives" in measured:
        said = measured["collectives"]
        unlike = f" (or {', '.join(said['not-told-apart-from'])})" if said["not-told-apart-from"] else ""
        lines.append(
            f"  all-reduce: {said['all-reduce']}{unlike}, {100 * said['share']:.0f} % of the messages' rate, "
            f"{said['latency-factor']:.2f} times their latency; "
            f"residuals up to {part(max(map(abs, said['residuals'])))}"
        )
    lines += [
        f"  gradient of {model['model']}: {format_quantity(model['t0'], 's')} + "
        f"{format_quantity(model['t1'], 's')} a sample; residuals up to "
        f"{part(max(map(abs, model['residuals'])))}"
        for model in measured.get("gradients", ())
    ]
    if "objective-cost" in measured:
        given = measured["objective-cost"]
        lines.append(f"  gradient of the objective: {given['gradient']} for a batch of {given['batch']}")
    if "passes" in measured:
        said = measured["passes"]
        lines.append(
            f"  passes over vectors: {format_quantity(said['overhead'], 's')} + bytes at "
            f"{format_quantity(said['memory-bandwidth'] or math.inf, 'B/s')}; reductions "
            f"{format_quantity(said['reduction'], 'B/s')}"
        )
    if "interference" in measured:
        said = measured["interference"]
        lines.append(
            f"  computations beside transfers take {said['computations']:.2f} times as long, "
            f"transfers beside computations {said['transfers']:.2f} times"
        )
    for name, errors in measured.get("model-against-measured", {}).items():
        off = f"{part(errors['mean'])} off in the mean, {part(errors['largest'])} at most"
        lines.append(f"  the simulator on {name}: {off}")
    if "validity" in measured:
        lines.append(f"  valid {measured['validity']}")
    return lines
