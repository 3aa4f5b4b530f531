"""Timing against closed recurrences: the collectives are `fixed`, S-SGD is without overlap.

The exact cases and the table with jitter are golden values that this project did not make
(tests/goldens/README.md); the recurrences are max-plus forms of what each algorithm waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario

Timing = Callable[..., Scenario]

STEP_TIMES = (1.0, 1.0, 1.5, 2.0)
SLOWER = [{"kind": "persistent", "workers": [i], "slowdown": c} for i, c in enumerate(STEP_TIMES)]


def gradient_starts(run: Run) -> list[list[float]]:
    """Return when each worker's gradients began."""
    starts: list[list[float]] = [[] for _ in range(run.workers)]
    for span in run.timeline:
        if span.operation == "gradient":
            starts[span.worker].append(span.start)
    return starts


@pytest.mark.parametrize(
    ("all_reduce", "rounds"),
    [
        (3.0, [(3, 3, 3, 4), (7, 7, 7, 8), (11, 11, 11, 12), (15, 15, 15, 16)]),
        (5.0, [(5, 5, 5, 5), (10, 10, 10, 10), (15, 15, 15, 15)]),
    ],
)
def test_cocod_rounds_start_as_given(
    timing: Timing, all_reduce: float, rounds: list[tuple[float, ...]]
) -> None:
    scenario = timing(
        {"name": "cocod-sgd", "period": 2},
        workers=4,
        iterations=2 * len(rounds) + 2,
        all_reduce=all_reduce,
        exchange=0.0,
        stragglers=SLOWER,
    )
    starts = gradient_starts(simulate(scenario))
    for number, expected in enumerate(rounds, start=1):
        assert tuple(own[2 * number] for own in starts) == expected


def test_d_psgd_iterations_start_as_given(timing: Timing) -> None:
    scenario = timing("d-psgd", workers=4, iterations=7, all_reduce=0.0, exchange=0.8, stragglers=SLOWER)
    starts = gradient_starts(simulate(scenario))
    expected = [
        (1, 1, 1.5, 2),
        (2.8, 2.3, 3, 4),
        (4.8, 3.8, 4.8, 6),
        (6.8, 5.6, 6.8, 8),
        (8.8, 7.6, 8.8, 10),
        (10.8, 9.6, 10.8, 12),
    ]
    # The golden rows are decimals; the recurrence in floating point gives every digit.
    exact = np.array(list(recurrence("d-psgd", np.tile(np.array(STEP_TIMES)[:, None], 7), 0.0, 0.8)))
    for number, row in enumerate(expected, start=1):
        simulated = tuple(own[number] for own in starts)
        assert simulated == tuple(exact[number])
        assert simulated == pytest.approx(row, rel=1e-15)


JITTER = [{"kind": "shifted-exponential", "shift": 0.9, "mean": 0.1}]
WORKERS = 16

# Mean time per iteration over 160 000 steps of 0.9 + Exp(0.1), standard error below 0.001.
GOLDEN = {
    ("allreduce-sgd", 0.5): 1.738,
    ("local-sgd", 0.5): 1.231,
    ("cocod-sgd", 0.5): 1.005,
    ("d-psgd", 0.5): 1.022,
    ("allreduce-sgd", 6.0): 7.238,
    ("local-sgd", 6.0): 2.606,
    ("cocod-sgd", 6.0): 1.500,
    ("d-psgd", 6.0): 1.022,
    # In the long run Overlap-Local-SGD takes the time of CoCoD-SGD.
    ("overlap-local-sgd", 0.5): 1.005,
    ("overlap-local-sgd", 6.0): 1.500,
    ("pipe-sgd", 0.5): 1.039,
    ("pipe-sgd", 6.0): 6.000,
}
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "allreduce-sgd": {"overlap": False},
    "local-sgd": {"period": 4},
    "cocod-sgd": {"period": 4},
    "d-psgd": {},
    "overlap-local-sgd": {"period": 4},
    "pipe-sgd": {"width": 2},
}


def jitter_draws(scenario: Scenario, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the step times of every worker as the straggler draws them, of shape [workers, steps]."""
    rows = []
    for rank in range(WORKERS):
        random = np.random.default_rng([scenario.seed, *scenario.streams[0], rank])
        rows.append(
            np.concatenate([random.standard_exponential(256) for _ in range(-(-steps // 256))])[:steps]
        )
    return 0.9 + 0.1 * np.array(rows)


def recurrence(
    name: str, draws: np.ndarray[Any, np.dtype[np.float64]], all_reduce: float, exchange: float
) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Yield the start times of the iterations, or for period 4 of the rounds, in plain NumPy."""
    start = np.zeros(len(draws))
    period = PARAMETERS[name].get("period", 1)
    reduced = 0.0
    for first in range(0, draws.shape[1], period):
        yield start
        ready = start
        for step in range(first, first + period):
            ready = ready + draws[:, step]
        if name == "cocod-sgd":
            start = np.maximum(ready, start.max() + all_reduce)
        elif name == "overlap-local-sgd":
            # A round ends with the average that the round before has started.
            start = np.maximum(ready, start.max() + all_reduce if first else 0.0)
        elif name == "pipe-sgd":
            start = np.maximum(ready, reduced)
            reduced = max(ready.max(), reduced) + all_reduce
        elif name == "d-psgd":
            neighbours = np.maximum(np.roll(start, 1), np.roll(start, -1))
            start = np.maximum(ready, neighbours + exchange)
        else:
            start = np.full(len(draws), ready.max() + all_reduce)
    yield start


@pytest.mark.parametrize(("name", "all_reduce"), GOLDEN)
def test_jitter_follows_the_recurrence_and_the_golden_mean(
    timing: Timing, name: str, all_reduce: float
) -> None:
    steps = 1000
    scenario = timing(
        {"name": name, **PARAMETERS[name]},
        workers=WORKERS,
        iterations=steps,
        all_reduce=all_reduce,
        exchange=0.5,
        stragglers=JITTER,
        seed=3,
    )
    run = simulate(scenario, monitor=False)
    expected = np.array(list(recurrence(name, jitter_draws(scenario, steps), all_reduce, 0.5)))
    period = PARAMETERS[name].get("period", 1)
    starts = np.array(gradient_starts(run))[:, ::period].T
    np.testing.assert_array_equal(starts, expected[:-1])
    # 16 000 steps: the standard error is about 0.004 where every iteration waits for the slowest.
    assert run.duration / steps == pytest.approx(GOLDEN[name, all_reduce], abs=0.015)


def test_a_collective_ends_after_the_last_arrival_whenever_the_others_came() -> None:
    """Arrival gaps and kernel times in microseconds, as measured on 8 GPUs: their sum is constant."""
    gaps = (63.6, 62.1, 45.1, 0.0, 62.9, 51.1, 53.0, 64.2)
    kernels = (10.5, 11.4, 31.2, 72.2, 11.4, 22.6, 21.4, 12.1)
    scenario = Scenario(
        {
            "name": "arrivals",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 8},
                "device": "ideal",
                "transport": {"name": "fixed", "all-reduce": "10.15 us"},
                "stragglers": [
                    {"kind": "persistent", "workers": [rank], "slowdown": (100 + gap) / 100}
                    for rank, gap in enumerate(gaps)
                ],
            },
            "workload": {"cost": {"parameters": 4, "batch": 1, "gradient": "100 us"}},
            "algorithm": {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 1},
        }
    )
    run = simulate(scenario)
    inside = [0.0] * 8
    for span in run.timeline:
        if span.operation == "all_reduce":
            inside[span.worker] += (span.end - span.start) * 1e6
    for measured, simulated in zip(kernels, inside, strict=True):
        assert simulated == pytest.approx(measured, abs=2.5)
    waits = {span.worker: span.peer for span in run.timeline if span.kind == "wait"}
    assert waits == dict.fromkeys(range(7), 7)
