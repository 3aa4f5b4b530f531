"""Measurements without a machine: on the virtual clock, of clusters whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from analysis.calibration.calibrate import Calibration, described, predicted
from analysis.calibration.settings import Settings, chosen_pairs, flow_sets
from simulator.execution.calibrate import Observed
from simulator.measurements import Collectives, Concurrent, Exchanges, PingPong

Calibrated = Callable[..., Calibration]


def clocks_of(workers: int) -> Observed:
    """Return what perfect clocks show."""
    found: Observed = {name: [[1e-9, 1e-9]] * workers for name in ("tick", "sleep")}
    found["barrier"] = [[1.0, 2.0]] * workers
    for rank in range(1, workers):
        found[f"offset/{rank}"] = [[0.0, 0.0]] + [[]] * (workers - 1)
        found[f"round-trip/{rank}"] = [[1e-5, 2e-5]] + [[]] * (workers - 1)
    return found


@pytest.fixture
def calibrated() -> Calibrated:
    """Return a function that calibrates a described cluster by simulating every measurement on it."""

    def made(
        cluster: dict[str, Any], hosts: list[str], settings: Settings, backend: str = "gloo"
    ) -> Calibration:
        sets = tuple(arcs for _, arcs in flow_sets(hosts))
        measurements = {
            "ping-pong": PingPong(pairs=chosen_pairs(hosts), sizes=settings.sizes, repeats=2),
            "concurrent": Concurrent(sets=sets, sizes=settings.large, repeats=2),
            "exchanges": Exchanges(sizes=settings.collective_sizes, repeats=2),
            "collectives": Collectives(sizes=settings.collective_sizes, repeats=2),
        }
        found = {name: predicted(cluster, measurement) for name, measurement in measurements.items()}
        places = [(host, "cpu") for host in hosts]
        return described(settings, places, backend, clocks_of(len(hosts)), found)

    return made
