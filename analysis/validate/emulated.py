"""The simulator against real TCP in emulated networks: the same scenarios on both clocks, nothing fitted.

``python -m analysis.validate.emulated`` (``make validate-emulated``) runs algorithms on a star, a two-level
tree in good and in bad rank order, a ring with one slow link and a random graph, each several times in an
emulated network with emulated compute, and in simulation with the transport ``gloo``. What was measured
is kept in a folder case by case, so that the suite goes on where it was stopped. What is compared is the time
per iteration after the first ones, in which connections are new; the error is the simulated over the
measured mean, less one.

Both means are of several runs. Two messages that share a link end at about the same time, and which of them
ends first decides whom a gossiping worker meets next; so a case may have several courses, of which one run
takes one. In simulation messages share links as unequally as was measured, with another seed in each run.

A measurement stands for its scenario: it is used again as long as that is the same, but for the transport,
which the wall clock does not read. Every case is simulated anew: what was kept would be of an older simulator
or transport.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.validate.result import Result, milliseconds
from simulator.engine.simulate import simulate
from simulator.execution.emulation import conditions, emulate
from simulator.execution.namespaces import check_rights
from simulator.parts import BadInput
from simulator.run import Run, processor, provenance
from simulator.scenario import Scenario

LIMITS = {
    "allreduce-sgd": 0.03,
    "local-sgd": 0.03,
    "cocod-sgd": 0.03,
    "signsgd": 0.03,
    "d-psgd": 0.08,
    "d2": 0.08,
    "parameter-server": 0.08,
    "ad-psgd": 0.08,
}
"""The largest error that is accepted of each algorithm; ``signsgd`` is the majority vote."""

TOPOLOGIES = ("star", "tree-good-order", "tree-bad-order", "ring-slow-link", "random")
"""The networks, by the names that cases have."""

WORKERS = (4, 8)
RATES = (100, 200)
"""Of a link, in Mb/s."""

PARAMETERS = 2**20
"""Of the model, in fp32: messages are 4 MiB, or 128 KiB of signs."""
DIMENSION = 2**10
"""Of what is really computed, so that the machine's own work disappears behind the emulated one."""
PERIOD = 4
"""Iterations between the communications of the local algorithms: their default."""
COUNTED = 4
"""Iterations of each worker that count; before them come two, or a period, that do not."""
RUNS = 5
"""Measurements of a case, unless told otherwise."""
SIMULATIONS = 10
"""How often a case is simulated, each time with another seed of the machines."""
SHARE_SPREAD = 0.002
"""Of TCP in these networks, as :func:`share_spread` measures it with two messages to one worker."""


@dataclass(frozen=True)
class Case:
    """One algorithm on one network.

    Attributes
    ----------
    algorithm, topology
        Their names.
    workers
        How many.
    rate
        Of a link, in Mb/s.
    straggler
        Whether the last worker computes at half speed.
    """

    algorithm: str
    topology: str
    workers: int
    rate: int
    straggler: bool

    @property
    def name(self) -> str:
        """What it is called, on the command line and on disk."""
        straggler = "straggler" if self.straggler else "even"
        return f"{self.topology}-{self.workers}-{self.rate}-{straggler}-{self.algorithm}"

    @property
    def warm_up(self) -> int:
        """Iterations of each worker that do not count."""
        return PERIOD if self.algorithm in ("local-sgd", "cocod-sgd") else 2

    @property
    def measured(self) -> str:
        """What tells the scenario from others, without the transport, and how networks are emulated."""
        resolved = self.scenario().resolved()
        del resolved["cluster"]["transport"]
        resolved["emulation"] = conditions(self.scenario())
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:16]

    def scenario(self) -> Scenario:
        """Return what is run, on either clock."""
        stragglers: list[dict[str, Any]] = []
        if self.straggler:
            stragglers.append({"kind": "persistent", "workers": [self.workers - 1], "slowdown": 2.0})
        if self.topology == "ring-slow-link":
            stragglers.append({"kind": "slow-link", "between": [0, 1], "factor": 0.5})
        return Scenario(
            {
                "name": self.name,
                "cluster": {
                    **_network(self.topology, self.workers, self.rate),
                    "device": "ideal",
                    "transport": {"name": "gloo", "share-spread": SHARE_SPREAD},
                    "workers": self.workers,
                    "stragglers": stragglers,
                },
                "workload": {
                    "cost": {
                        "parameters": PARAMETERS,
                        "batch": 1,
                        "gradient": "300 ms",
                        # So much more than a pass really takes that what the machine does itself disappears.
                        "update": "48 ms",
                        "bucket-count": 2,
                    },
                    "objective": {
                        "kind": "quadratic",
                        "dimension": DIMENSION,
                        "sigma2": 0.0,
                        "dtype": "float32",
                    },
                },
                "algorithm": self.algorithm,
                "step-size": 0.1,
                "budget": {"iterations": self.warm_up + COUNTED},
                "execution": {"compute": "emulated", "stragglers": "injected", "payload": "cost"},
                "seed": 1,
            }
        )


def _network(topology: str, workers: int, rate: int) -> dict[str, Any]:
    """Return topology and placement; a kernel's own latencies are all there are."""
    link = {"bandwidth": f"{rate} Mbps", "latency": "0 s"}
    tree = {
        "builder": "two-level",
        "hosts": 2,
        "gpus-per-host": workers // 2,
        "inside": {**link, "bandwidth": f"{2 * rate} Mbps"},
        "network": link,
    }
    # The random graph has two nodes more than workers, which forward like all others.
    random = {"builder": "random-regular", "nodes": workers + 2, "degree": 3, "seed": 1, "link": link}
    networks: dict[str, dict[str, Any]] = {
        "star": {"topology": {"builder": "switch", "gpus": workers, "link": link}},
        "tree-good-order": {"topology": tree, "placement": "linear"},
        "tree-bad-order": {"topology": tree, "placement": "round-robin"},
        "ring-slow-link": {"topology": {"builder": "ring", "nodes": workers, "link": link}},
        "random": {"topology": random},
    }
    return networks[topology]


def cases() -> list[Case]:
    """Return the whole suite."""
    grid = itertools.product(WORKERS, RATES, (False, True), TOPOLOGIES, LIMITS)
    return [
        Case(algorithm, topology, workers, rate, straggler)
        for workers, rate, straggler, topology, algorithm in grid
    ]


def within(result: Result[Case]) -> bool:
    """Return whether the error of a case is accepted."""
    return abs(result.error) <= LIMITS[result.case.algorithm]


class Store:
    """What has been measured, a file a case.

    Parameters
    ----------
    folder
        Made where it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(str(folder), f"cannot be written: {error.strerror}") from None

    def load(self, case: Case) -> dict[str, Any]:
        """Return what there is of a case; nothing of one whose scenario has changed."""
        digest = case.measured
        try:
            found: dict[str, Any] = json.loads(self._file(case).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            found = {}
        if found.get("scenario") != digest:
            found = {"scenario": digest, "measured": []}
        # Older stores have it.
        found.pop("simulated", None)
        return found

    def latest(self, measured: Iterable[Case]) -> str:
        """Return the date of the latest measurement of cases."""
        return max(str(self.load(case)["date"]) for case in measured)

    def save(self, case: Case, found: dict[str, Any]) -> None:
        """Keep what there is of a case, whole or not at all."""
        draft = self._file(case).with_suffix(".draft")
        draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._file(case))

    def _file(self, case: Case) -> Path:
        return self._folder / f"{case.name}.json"


Clock = Callable[[Scenario], Run]


def validate(
    chosen: Sequence[Case],
    store: Store,
    runs: int = RUNS,
    told: Callable[[str], None] = lambda _: None,
    wall: Clock = emulate,
    virtual: Clock = simulate,
) -> list[Result[Case]]:
    """Measure cases, or take what was measured before, and simulate them.

    Parameters
    ----------
    chosen
        The cases, in the order in which they are run.
    store
        Where measurements are kept.
    runs
        Measurements of each.
    told
        Told in a line how far it is, with an estimate of the time that is left.
    wall, virtual
        The two clocks.
    """
    found = [store.load(case) for case in chosen]
    left = _Left(sum(max(0, runs - len(entry["measured"])) for entry in found))
    results = []
    for number, (case, entry) in enumerate(zip(chosen, found, strict=True), 1):
        scenario = case.scenario()
        simulated = tuple(steady(virtual(same), case.warm_up) for same in _repeated(scenario))
        while len(entry["measured"]) < runs:
            begin = time.monotonic()
            entry["measured"].append(steady(wall(scenario), case.warm_up))
            entry["date"] = time.strftime("%Y-%m-%d")
            store.save(case, entry)
            left.took(time.monotonic() - begin)
        result = Result(case, simulated, tuple(entry["measured"][:runs]))
        results.append(result)
        told(f"{number} of {len(chosen)}: {_line(result)}{left}")
    return results


def _repeated(scenario: Scenario) -> list[Scenario]:
    """Return a scenario as often as it is simulated, with a seed of the machines' own each."""
    return [scenario.vary({"cluster.seed": seed}) for seed in range(SIMULATIONS)]


def steady(run: Run, warm_up: int) -> float:
    """Return the seconds per iteration of all workers, from the begin of their first that counts."""
    begins = [math.inf] * run.workers
    for span in run.worker_spans:
        if span.iteration == warm_up + 1:
            begins[span.worker] = min(begins[span.worker], span.start)
    counted = sum(run.iterations) - warm_up * run.workers
    return (math.fsum(run.own_ends) - math.fsum(begins)) / counted


class _Left:
    """Estimates the time that is left by the mean of the measurements so far."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._seconds: list[float] = []

    def took(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def __str__(self) -> str:
        runs = self._runs - len(self._seconds)
        if not runs or not self._seconds:
            return ""
        minutes = round(runs * statistics.fmean(self._seconds) / 60)
        return f"; left: about {minutes // 60} h {minutes % 60} min"


def _line(result: Result[Case]) -> str:
    return (
        f"{result.case.name}: simulated {milliseconds(result.simulated)}, "
        f"measured {milliseconds(result.measured)}, error {100 * result.error:+.1f} %"
    )


# What the transport's property is measured by.


def share_spread(rate: int, iterations: int = 40, wall: Clock = emulate) -> float:
    """Return how unequally two messages share the link of their receiver, in an emulated star.

    They are the gradients of two workers, pushed at the same time to the parameter server on a third.

    Parameters
    ----------
    rate
        Of a link, in Mb/s.
    iterations
        How often they are sent.
    wall
        The clock.

    Returns
    -------
    What a transport calls ``share-spread``.
    """
    case = Case("parameter-server", "star", 3, rate, straggler=False)
    run = wall(case.scenario().vary({"budget.iterations": iterations}))
    pushes: dict[int, list[tuple[float, float]]] = {}
    for span in run.timeline:
        if (span.worker, span.kind, span.operation) == (0, "transfer", "recv") and span.peer != 0:
            pushes.setdefault(span.iteration, []).append((span.start, span.end))
    sizes = [abs(_logarithm(pair)) for pair in pushes.values() if len(pair) == 2]
    # By the median, that of a normal distribution's size, so that a lost packet does not count.
    return statistics.median(sizes) / statistics.NormalDist().inv_cdf(0.75) / math.sqrt(2)


def _logarithm(pair: Sequence[tuple[float, float]]) -> float:
    """Return the logarithm of the ratio of the rates of two messages of one size, given begins and ends.

    The link is busy from the first begin to the last end, and shared from the second begin to the first end.
    """
    (alone, _), (shared, _) = sorted(pair)
    first, last = sorted(pair, key=lambda times: times[1])
    capacity = 2 / (last[1] - alone)
    before = (shared - alone) * capacity if first[0] == alone else 0.0
    share = (1 - before) / (first[1] - shared) / capacity
    return math.log(share / max(1 - share, 1e-3))


# The table.


def table(results: Sequence[Result[Case]]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| network | workers | Mb/s | slow one | algorithm | simulated | measured | error | limit |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for result in results:
        case, limit = result.case, LIMITS[result.case.algorithm]
        cells = (
            case.topology,
            case.workers,
            case.rate,
            "half speed" if case.straggler else "none",
            case.algorithm,
            milliseconds(result.simulated),
            milliseconds(result.measured),
            f"{100 * result.error:+.1f} %" if within(result) else f"**{100 * result.error:+.1f} %**",
            f"{100 * limit:g} %",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def by_algorithm(results: Sequence[Result[Case]]) -> str:
    """Return the errors of each algorithm as a table in Markdown."""
    lines = [
        "| algorithm | cases | mean error | mean of its size | largest | within the limit |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for algorithm, limit in LIMITS.items():
        errors = [result.error for result in results if result.case.algorithm == algorithm]
        if errors:
            cells = (
                algorithm,
                len(errors),
                f"{100 * statistics.fmean(errors):+.1f} %",
                f"{100 * statistics.fmean(map(abs, errors)):.1f} %",
                f"{100 * max(errors, key=abs):+.1f} %",
                f"{sum(abs(error) <= limit for error in errors)} of {len(errors)} ({100 * limit:g} %)",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def page(results: Sequence[Result[Case]], runs: int, until: str, remark: str = "") -> str:
    """Return the whole page, with the date of the latest measurement and the machine."""
    facts = provenance(None)
    versions = facts["versions"]
    heading = (
        f"Measured until {until} on {processor()}, {facts['processors']} processors, "
        f"{facts['system']}, Python {facts['python']}, torch {versions.get('torch')}; {runs} runs of each "
        f"case. Times are per iteration, over {COUNTED} iterations of each worker after the first 2 or, of "
        f"local algorithms, {PERIOD}, and means of these runs and of {SIMULATIONS} simulations with other "
        "shares of links; ± is the standard deviation of the runs, the error is the simulated over the "
        "measured mean, less one; an error beyond its limit is bold. Nothing is fitted."
    )
    parts = [
        "# Simulated against real TCP in emulated networks",
        "Written by `make validate-emulated`; what a case is, is said in `emulated.py`.",
        heading + (f" **{remark}**" if remark else ""),
        by_algorithm(results),
        table(results),
    ]
    return "\n\n".join(parts) + "\n"


# The command.


def _selected(pattern: str) -> list[Case]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadInput("--only", f"'{pattern}' is no regular expression: {error}") from None
    chosen = [case for case in cases() if expression.search(case.name)]
    if not chosen:
        raise BadInput("--only", f"no case is called like '{pattern}'; --list names all")
    return chosen


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the suite; return the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.validate.emulated",
        description="Compare simulation and execution in emulated networks; Linux and root.",
    )
    parser.add_argument("--store", type=Path, default=Path("runs/validate-emulated"), help="what is measured")
    parser.add_argument("--write", type=Path, help="page to write the table to; by default in the store")
    parser.add_argument("--only", default="", help="regular expression of the names of the cases to run")
    parser.add_argument("--runs", type=int, default=RUNS, help="measurements of each case")
    parser.add_argument("--remark", default="", help="a sentence for the page, on the machine's state")
    parser.add_argument("--shares", action="store_true", help="measure how unequally TCP shares, and end")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and end")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    try:
        selected = _selected(chosen.only)
        if chosen.list:
            print(*(case.name for case in selected), sep="\n")
            return 0
        if chosen.runs < 1:
            raise BadInput("--runs", f"must be at least 1, got {chosen.runs}")
        check_rights()
        if chosen.shares:
            for rate in RATES:
                print(f"share-spread at {rate} Mb/s: {share_spread(rate):.3f}")
            return 0
        _suite(selected, chosen)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after its last finished run", file=sys.stderr)
        return 130
    return 0


def _suite(selected: Sequence[Case], chosen: argparse.Namespace) -> None:
    def told(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    store = Store(chosen.store)
    results = validate(selected, store, chosen.runs, told)
    path = chosen.write or chosen.store / "table.md"
    try:
        path.write_text(page(results, chosen.runs, store.latest(selected), chosen.remark), encoding="utf-8")
    except OSError as error:
        raise BadInput(str(path), f"cannot be written: {error.strerror}") from None
    print(by_algorithm(results))
    accepted = sum(map(within, results))
    print(f"\n{accepted} of {len(results)} cases are within their limits; the table is in {path}.")


if __name__ == "__main__":
    sys.exit(main())
