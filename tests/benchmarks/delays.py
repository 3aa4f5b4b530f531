"""What delay does to AsyVRSC, by the step size and the number of workers.

    python -m tests.benchmarks.delays

A mean-variance portfolio, the second estimator with five indices of an inner value, epochs of as many updates
as there are samples. For every step size (a part of 1 / L_max, with L_max the largest smoothness of a single
term) and number of workers the table has the mean delay that was measured, its product with the step size and
L_f, and what an epoch leaves of the gap f - f*, as the geometric mean over the run. With shared memory, an
update is that of a tenth of the coordinates, and its epochs have ten times as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from simulator.engine.simulate import simulate
from simulator.scenario import Scenario

SAMPLES, ASSETS, EPOCHS = 250, 20, 8
WORKERS = (1, 4, 16, 64)
PARTS = (4, 2, 1)


def scenario(algorithm: dict[str, Any], workers: int, iterations: int, step: float) -> Scenario:
    """Return the portfolio on equally fast workers of one machine, whose messages take no time."""
    return Scenario(
        {
            "name": "delays",
            "cluster": {
                "topology": {"builder": "two-level", "hosts": 1, "gpus-per-host": workers},
                "device": "ideal",
                "transport": {"name": "fixed", "all-reduce": "0 s", "exchange": "0 s"},
                # Otherwise all workers would read and write at the same instants.
                "stragglers": [{"kind": "lognormal", "sigma": 0.1}],
            },
            "workload": {
                "cost": {"parameters": ASSETS, "batch": 1, "gradient": "1 s", "update": "1 ms"},
                "objective": {"kind": "portfolio", "samples": SAMPLES, "assets": ASSETS},
            },
            "algorithm": algorithm,
            "step-size": step,
            "budget": {"iterations": iterations},
        }
    )


def rows(form: str) -> Iterator[tuple[int, int, float, float, float]]:
    """Return part, workers, mean delay, step * L_f * delay, and what an epoch leaves of the gap."""
    algorithm: dict[str, Any] = {"name": f"asyvrsc-{form}", "estimator": "second", "inner": 5}
    updates = SAMPLES
    if form == "shared":
        updates *= 10
        algorithm |= {"coordinates": ASSETS // 10, "updates": updates}
    objective: Any = scenario(algorithm, 1, 1, 1.0).objective
    start = objective.loss(objective.initial_model())
    for part in PARTS:
        for workers in WORKERS:
            step = 1 / (part * objective.smoothness)
            run = simulate(scenario(algorithm, workers, EPOCHS * updates // workers, step))
            assert run.models is not None
            delay = run.observed("staleness")["mean"]
            left = objective.loss(torch.from_numpy(run.models[0])) / start
            epochs = len(run.observations) / updates
            yield part, workers, delay, step * objective.L * delay, left ** (1 / epochs)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("forms", nargs="*", default=["distributed", "shared"])
    for form in parser.parse_args().forms:
        print(f"\nAsyVRSC-{form.capitalize()}")
        print("step size      workers   delay  step * L_f * delay   left of the gap by an epoch")
        for part, workers, delay, product, left in rows(form):
            size = f"1/({part} L_max)" if part > 1 else "1/L_max"
            print(f"{size:12} {workers:9} {delay:7.1f} {product:19.2f} {left:29.3g}", flush=True)


if __name__ == "__main__":
    main()
