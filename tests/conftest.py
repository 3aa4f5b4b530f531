"""Scenarios that the tests share, as keys and values."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from simulator.execution.namespaces import check_rights, missing_features
from simulator.parts import BadInput
from simulator.scenario import Scenario

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of numbers that this project did not make."""
    return GOLDENS


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a function that finds a port which nobody listens on."""

    def found() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        return port

    return found


@pytest.fixture(scope="session")
def _emulation() -> None:
    """Skip a test where no network can be emulated, for want of rights or of the kernel's features."""
    try:
        check_rights()
        missing = missing_features() & {"veth", "tbf", "htb"}
    except BadInput as error:
        pytest.skip(str(error))
    if missing:
        pytest.skip(f"the kernel lacks {', '.join(sorted(missing))}")


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Worker models after eight deterministic steps, closed recursions in double precision."""
    return json.loads((GOLDENS / "algorithm_vectors.json").read_text())


def _timing(
    algorithm: object,
    *,
    workers: int,
    iterations: int,
    all_reduce: float,
    exchange: float,
    stragglers: list[Mapping[str, Any]],
    seed: int = 0,
) -> Scenario:
    """A gradient takes one second on every worker, an update nothing; transfers take given times."""
    return Scenario(
        {
            "name": "timing",
            "cluster": {
                "topology": {"builder": "switch", "gpus": workers},
                "device": "ideal",
                "transport": {
                    "name": "fixed",
                    "all-reduce": f"{all_reduce} s",
                    "exchange": f"{exchange} s",
                },
                "stragglers": stragglers,
            },
            "workload": {"cost": {"parameters": 4, "batch": 1, "gradient": "1 s", "forward-share": 0.0}},
            "algorithm": algorithm,
            "budget": {"iterations": iterations},
            "seed": seed,
        }
    )


@pytest.fixture(scope="session")
def timing() -> Callable[..., Scenario]:
    """Make a scenario of given durations."""
    return _timing


def _scalar(
    algorithm: object, vectors: Mapping[str, Any], dtype: str = "float64", **cluster: Any
) -> Scenario:
    """The problem of the golden vectors: f_i(x) = a_i (x - b_i)^2 / 2, deterministic gradients."""
    return Scenario(
        {
            "name": "vectors",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 4},
                "device": "ideal",
                "transport": "ideal",
                **cluster,
            },
            "workload": {
                "cost": {"parameters": 1, "batch": 2, "gradient": "1 s"},
                "objective": {
                    "kind": "scalar-quadratics",
                    "curvatures": [float(a) for a in vectors["a"]],
                    "centres": [float(b) for b in vectors["b"]],
                    "dtype": dtype,
                },
                "batches": "proportional" if "stragglers" in cluster else "equal",
            },
            "algorithm": algorithm,
            "step-size": float(vectors["step"]),
            "budget": {"iterations": int(vectors["local_steps"])},
        }
    )


@pytest.fixture(scope="session")
def scalar() -> Callable[..., Scenario]:
    """Make a scenario of the golden vectors' problem."""
    return _scalar
