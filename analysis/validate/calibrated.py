"""The loop closed: calibrate this machine, simulate a scenario on the description, execute it, compare.

``python -m analysis.validate.calibrated`` (``make validate-calibrated``) calibrates this machine for the
workloads below, then simulates and executes them with several algorithms on local processes over the loopback
device. The error is simulated over measured time per iteration, less one, of the means and of the medians:
where a thread waits milliseconds for a processor now and then, the median tells whether all else is right.
Nothing but the calibration is fitted, and that knows no algorithm. With ``--cluster`` it takes a description
that is there already.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from analysis.calibration import Settings, calibrate
from analysis.validate.result import Result, milliseconds
from simulator.engine.simulate import simulate
from simulator.execution.execute import execute
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario

PERIOD = 4
"""Iterations between the communications of the local algorithms; medians are of as many in a row."""
ALGORITHMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("allreduce-sgd", {"name": "allreduce-sgd"}),
    ("allreduce-sgd, no overlap", {"name": "allreduce-sgd", "overlap": False}),
    (f"local-sgd ({PERIOD})", {"name": "local-sgd", "period": PERIOD}),
    (f"cocod-sgd ({PERIOD})", {"name": "cocod-sgd", "period": PERIOD}),
    ("d-psgd", {"name": "d-psgd"}),
)
"""What is compared, by the name in the table."""

WORKLOADS: dict[str, dict[str, Any]] = {
    "mlp": {"cost": {"model": "mlp-digits", "batch": 32}, "objective": {"kind": "mlp", "data": "digits"}},
    "cnn": {"cost": {"model": "cnn-digits", "batch": 64}, "objective": {"kind": "cnn", "data": "digits"}},
}
ITERATIONS = 100
RUNS = 5


class Compared(NamedTuple):
    """An algorithm's seconds per iteration on both clocks, as means and as medians of each run."""

    means: Result[str]
    medians: Result[str]


def mean(run: Run) -> float:
    """Return the mean seconds per iteration."""
    return run.time_per_iteration


def median(run: Run) -> float:
    """Return the median seconds per iteration of `PERIOD` iterations in a row, of all workers."""
    begins: dict[tuple[int, int], float] = {}
    for span in run.worker_spans:
        if span.iteration % PERIOD == 1:
            place = span.worker, span.iteration
            begins[place] = min(begins.get(place, math.inf), span.start)
    return statistics.median(
        (end - begins[worker, iteration - PERIOD]) / PERIOD
        for (worker, iteration), end in begins.items()
        if iteration > PERIOD
    )


def scenario(
    cluster: Any, workload: str, algorithm: dict[str, Any], iterations: int, workers: int
) -> Scenario:
    """Return what is run on both clocks."""
    return Scenario(
        {
            "name": f"calibrated-{workload}",
            "cluster": cluster,
            "workload": WORKLOADS[workload],
            "algorithm": algorithm,
            **({"gossip": {"graph": "complete"}} if algorithm["name"] == "d-psgd" else {}),
            "step-size": 0.05,
            "budget": {"iterations": iterations},
            "seed": 1,
        },
        folder=Path(),
    ).vary(workers=workers)


def compared(
    cluster: Any, workload: str, workers: int, iterations: int = ITERATIONS, runs: int = RUNS
) -> list[Compared]:
    """Simulate and execute each algorithm on a described cluster, which is this machine."""
    results = []
    for name, algorithm in ALGORITHMS:
        made = scenario(cluster, workload, algorithm, iterations, workers)
        simulated = simulate(made)
        measured = [cast("Run", execute(made)) for _ in range(runs)]
        means = Result(name, (mean(simulated),), tuple(map(mean, measured)))
        medians = Result(name, (median(simulated),), tuple(map(median, measured)))
        results.append(Compared(means, medians))
    return results


def table(workload: str, results: Sequence[Compared]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        f"| {workload} | mean, simulated | measured | error | median, simulated | measured | error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {result.means.case} | {' | '.join(map(_cells, result))} |" for result in results]
    return "\n".join(lines)


def _cells(result: Result[str]) -> str:
    error = f"{100 * result.error:+.1f} %"
    return " | ".join((milliseconds(result.simulated, 3), milliseconds(result.measured, 3), error))


def main(arguments: Iterable[str] | None = None) -> int:
    """Calibrate and compare; return the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m analysis.validate.calibrated")
    parser.add_argument("--cluster", type=Path, help="a description of this machine, instead of making one")
    parser.add_argument("--workers", type=int, default=2, help="local processes")
    parser.add_argument("--runs", type=int, default=RUNS, help="executions of each algorithm")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of a run")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), action="append", help="by default all")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    try:
        if chosen.iterations <= PERIOD:
            raise BadInput("--iterations", f"must be above {PERIOD}, got {chosen.iterations}")
        with tempfile.TemporaryDirectory() as folder:
            for workload in chosen.workload or WORKLOADS:
                file = chosen.cluster and chosen.cluster.resolve()
                if file is None:
                    file = Path(folder) / f"{workload}.yaml"
                    plain = {"topology": {"builder": "switch", "gpus": chosen.workers}, "device": "cpu-core"}
                    wanted = scenario(plain, workload, ALGORITHMS[0][1], 1, chosen.workers)
                    settings = Settings(models=(WORKLOADS[workload]["cost"]["model"],), scenario=wanted)
                    print(calibrate(settings, file, chosen.workers), file=sys.stderr)
                results = compared(str(file), workload, chosen.workers, chosen.iterations, chosen.runs)
                print(table(workload, results), end="\n\n", flush=True)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
