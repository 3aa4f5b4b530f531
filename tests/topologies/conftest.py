"""Helpers of the topology tests: parameters for every builder, and a run in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from topologies import LinkSpec

ROOT = Path(__file__).parents[2]

FULL_LINKS = st.builds(
    LinkSpec,
    bandwidth=st.floats(1e3, 1e12),
    latency=st.floats(0, 1e-2),
    efficiency=st.floats(0.01, 1),
)
LINKS = st.builds(
    LinkSpec,
    bandwidth=st.floats(1e3, 1e12),
    latency=st.floats(0, 1e-2),
    efficiency=st.floats(0.01, 1),
    duplex=st.sampled_from(["full", "half"]),
)
SMALL = st.integers(1, 4)


@st.composite
def regular(draw: st.DrawFn) -> dict[str, Any]:
    degree = draw(st.integers(2, 5))
    nodes = draw(st.integers(degree + 1, 12).filter(lambda n: n * degree % 2 == 0))
    return {"nodes": nodes, "degree": degree, "seed": draw(st.integers(0, 99)), "link": draw(LINKS)}


PARAMETERS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "ring": st.fixed_dictionaries({"nodes": st.integers(1, 12), "link": LINKS}),
    "star": st.fixed_dictionaries({"nodes": st.integers(1, 12), "link": LINKS}),
    "complete": st.fixed_dictionaries({"nodes": st.integers(1, 9), "link": LINKS}),
    "torus": st.fixed_dictionaries(
        {"dimensions": st.lists(SMALL, min_size=1, max_size=3).map(tuple), "link": LINKS}
    ),
    "hypercube": st.fixed_dictionaries({"dimension": st.integers(0, 4), "link": LINKS}),
    "random-regular": regular(),
    "exponential": st.fixed_dictionaries({"nodes": st.integers(1, 12), "link": FULL_LINKS}),
    "one-peer-exponential": st.fixed_dictionaries(
        {"nodes": st.integers(1, 12), "phase": st.integers(0, 9), "link": FULL_LINKS}
    ),
    "switch": st.fixed_dictionaries({"gpus": st.integers(1, 9), "link": LINKS}),
    "two-level": st.fixed_dictionaries(
        {
            "hosts": SMALL,
            "gpus_per_host": SMALL,
            "inside": LINKS,
            "network": LINKS,
            "all_to_all_inside": st.booleans(),
        }
    ),
    "fat-tree": st.fixed_dictionaries(
        {
            "leaves": SMALL,
            "hosts_per_leaf": SMALL,
            "spines": SMALL,
            "gpus_per_host": st.integers(1, 2),
            "link": LINKS,
            "oversubscription": st.floats(0.5, 8),
        }
    ),
    "dragonfly": st.fixed_dictionaries(
        {
            "groups": st.integers(1, 5),
            "routers_per_group": st.integers(1, 3),
            "gpus_per_router": st.integers(1, 3),
            "link": LINKS,
            "global_link": LINKS,
        }
    ),
}


@pytest.fixture(scope="session")
def parameters() -> dict[str, st.SearchStrategy[dict[str, Any]]]:
    """Strategies that draw sound parameters of every builder, by the builder's name."""
    return PARAMETERS


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., str]:
    """Run a program in an interpreter of its own and return what it printed."""

    def run(program: str, hash_seed: str = "0") -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
