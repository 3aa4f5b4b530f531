"""Runs made by hand, whose figures can be computed on paper, and small scenarios that run fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from simulator.observation import Samples
from simulator.run import LinkUse, Run
from simulator.scenario import Scenario
from traces import Span, Timeline


def _loss_scenario(workers: int = 2, algorithm: object = "local-sgd", **changes: Any) -> Scenario:
    """Two workers around a switch; a gradient takes 1 s, the target is a loss of 0.5."""
    return Scenario(
        {
            "name": "hand",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 4},
                "device": "ideal",
                "workers": workers,
                "transport": "ideal",
                "stragglers": changes.pop("stragglers", []),
            },
            "workload": {
                "cost": {"parameters": 10, "batch": 4, "gradient": "1 s"},
                "objective": {"kind": "scalar-quadratics", "curvatures": [1.0] * 4, "centres": [1.0] * 4},
            },
            "algorithm": algorithm,
            "step-size": changes.pop("step_size", 0.1),
            "budget": {"iterations": 8},
            "target": changes.pop("target", {"loss": 0.5, "reports": 1}),
            **changes,
        }
    )


def _timing_scenario(**changes: Any) -> Scenario:
    """Three workers that train nothing, with target, comparison and a straggler."""
    return Scenario(
        {
            "name": "small",
            "cluster": {
                "topology": {
                    "builder": "two-level",
                    "hosts": 2,
                    "gpus-per-host": 2,
                    "network": {"bandwidth": "10 Gbps", "efficiency": 0.5, "latency": "5 us"},
                },
                "device": "gtx-1080-ti",
                "workers": 3,
                "stragglers": [{"kind": "persistent", "workers": [1], "slowdown": 2.0}],
            },
            "workload": {"cost": {"parameters": 1000000, "batch": 4, "gradient": "10 ms"}},
            "algorithm": "allreduce-sgd",
            "compare": ["local-sgd", {"name": "local-sgd", "period": 8}],
            "budget": {"iterations": 20},
            "target": {"iterations": 10},
            **changes,
        }
    )


def _run(
    scenario: Scenario,
    losses: Sequence[float] = (),
    spans: Sequence[Span] = (),
    duration: float = 8.0,
    iterations: Sequence[int] | None = None,
    bytes_sent: Sequence[float] | None = None,
    models: np.ndarray[Any, Any] | None = None,
    links: LinkUse | None = None,
) -> Run:
    """A run whose k-th sample (from 1) lies at iteration 2k and at second 3k."""
    count = scenario.workers
    places = range(1, len(losses) + 1)
    return Run(
        scenario=scenario,
        clock="virtual",
        duration=duration,
        iterations=tuple(iterations or (8,) * count),
        bytes_sent=tuple(bytes_sent or (0.0,) * count),
        timeline=Timeline(list(spans)),
        samples=Samples(
            time=[3.0 * k for k in places],
            iteration=[2.0 * k for k in places],
            loss=list(losses),
            gradient_norm=[0.0 for _ in places],
            consensus=[0.0 for _ in places],
        ),
        links=links,
        models=models,
    )


@pytest.fixture(scope="session")
def loss_scenario() -> Callable[..., Scenario]:
    return _loss_scenario


@pytest.fixture(scope="session")
def timing_scenario() -> Callable[..., Scenario]:
    return _timing_scenario


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    return _run
