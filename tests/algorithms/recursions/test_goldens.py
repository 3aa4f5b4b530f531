"""The recursions against numbers that this project did not make: models after 8 steps, to 1e-12."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.algorithms.recursions import decentralised, local, servers, synchronous
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics, ring

TRACE = [
    event for e in range(16) for event in (("average", e % 4, (e + 1) % 4), ("apply", e % 4), ("read", e % 4))
]

RECURSIONS: dict[str, Callable[..., Any]] = {
    "allreduce_sgd": lambda *a: synchronous.s_sgd(*a, 4, 8),
    "local_sgd": lambda *a: local.local_sgd(*a, 4, 8, period=2),
    "cocod_sgd_equal": lambda *a: local.cocod_sgd(*a, 4, 8, period=2),
    "cocod_sgd_proportional": lambda *a: local.cocod_sgd(
        *a, 4, 8, period=2, shares=[1 / 8, 1 / 8, 2 / 8, 4 / 8]
    ),
    "pipe_sgd": lambda *a: synchronous.pipe_sgd(*a, 4, 8, depth=2),
    "d_psgd_combine_then_adapt": lambda *a: decentralised.d_psgd(*a, ring(4), 8),
    "d_psgd_adapt_then_combine": lambda *a: decentralised.d_psgd(*a, ring(4), 8, order="adapt-then-combine"),
    "d2": lambda *a: decentralised.d2(*a, (ring(4) + np.eye(4)) / 2, 8),
    "ad_psgd_event_trace": lambda *a: decentralised.ad_psgd(*a, 4, TRACE),
    "sgp_one_peer_exponential": lambda *a: debiased(
        *decentralised.sgp(*a, lambda t: decentralised.one_peer_exponential(4, t), 8)
    ),
    "overlap_local_sgd": lambda *a: local.overlap_local_sgd(*a, 4, 8, period=2, alpha=0.6, beta=0.0)[0],
    "easgd": lambda *a: local.easgd_round_synchronous(*a, 4, 8, period=2, alpha=0.1)[0],
    "slowmo_local": lambda *a: synchronous.slowmo(*a, 4, 8, period=2, alpha=1.0, beta=0.5),
    "vrl_sgd": lambda *a: local.vrl_sgd(*a, 4, 8, period=2)[0],
}
COUSINS: dict[str, tuple[str, Callable[..., Any]]] = {
    "synchronous server": ("allreduce_sgd", lambda *a: servers.synchronous_server(*a, 4, 8)),
    "naive D²": (
        "d2",
        lambda *a: decentralised.d2(*a, (ring(4) + np.eye(4)) / 2, 8, form="naive"),
    ),
    "overlapped SGP without delay": (
        "sgp_one_peer_exponential",
        lambda *a: debiased(
            *decentralised.overlap_sgp(
                *a, lambda t: decentralised.one_peer_exponential(4, t), 8, delay=0
            )[:2]
        ),
    ),
}  # fmt: skip


def debiased(x: Array, w: Array) -> Array:
    return x / w[:, None]


def test_every_golden_vector_has_its_recursion(vectors: Mapping[str, Any]) -> None:
    assert RECURSIONS.keys() == vectors["workers_after"].keys()


@pytest.mark.parametrize("name", RECURSIONS)
def test_models_after_eight_steps(vectors: Mapping[str, Any], name: str) -> None:
    problem = Quadratics.golden(vectors)
    models = RECURSIONS[name](problem.gradient, problem.x0, vectors["step"])
    assert models.shape == (4, 1)
    np.testing.assert_allclose(models[:, 0], vectors["workers_after"][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", COUSINS)
def test_what_must_agree_with_a_golden_vector(vectors: Mapping[str, Any], name: str) -> None:
    problem = Quadratics.golden(vectors)
    golden, recursion = COUSINS[name]
    models = recursion(problem.gradient, problem.x0, vectors["step"])
    np.testing.assert_allclose(models[:, 0], vectors["workers_after"][golden], rtol=0, atol=1e-12)


def test_the_centre_of_easgd(vectors: Mapping[str, Any]) -> None:
    problem = Quadratics.golden(vectors)
    _, centre = local.easgd_round_synchronous(
        problem.gradient, problem.x0, vectors["step"], 4, 8, period=2, alpha=0.1
    )
    assert abs(centre[0] - 0.72774390415625) < 1e-12


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (2, [-0.2925, -0.19, 0.2775, 2.52]),
        (4, [0.31476875, 0.42485, 0.77924375, 2.19155]),
        (6, [0.6044131719, 0.656881625, 0.9888629844, 2.658645125]),
    ],
)
def test_cocod_on_its_way(vectors: Mapping[str, Any], steps: int, expected: list[float]) -> None:
    problem = Quadratics.golden(vectors)
    models = local.cocod_sgd(problem.gradient, problem.x0, vectors["step"], 4, steps, period=2)
    np.testing.assert_allclose(models[:, 0], expected, rtol=0, atol=5e-11)


def test_the_recursions_import_nothing_that_they_are_held_against() -> None:
    held = {"torch", "algorithms", "analysis", "paceline", "simulator", "topologies", "traces"}
    for file in Path(__file__).parent.glob("*.py"):
        if file.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not held & {name.partition(".")[0] for name in names}, file
