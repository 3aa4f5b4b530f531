"""What two runs were given differently is said by key, with both values, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from analysis.differing import LEFT_OUT, differing, sentence
from simulator.scenario import Scenario

Scene = Callable[..., Scenario]


def said(a: Scenario, b: Scenario) -> str:
    return sentence(differing(a, b))


def test_the_same_scenario_differs_in_nothing(timing_scenario: Scene, loss_scenario: Scene) -> None:
    for base in (timing_scenario(), loss_scenario()):
        assert said(base, base) == ""
        longer = base.vary(name="other", compare=[], target={"iterations": 9}, budget={"iterations": 30})
        assert said(base, longer) == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithm": "d-psgd"}, "algorithm (allreduce-sgd, d-psgd)"),
        ({"algorithm": {"name": "allreduce-sgd", "overlap": False}}, "algorithm.overlap (True, False)"),
        ({"workload.cost.batch": 8}, "workload.cost.batch (4, 8)"),
        ({"cluster.workers": 2}, "cluster.workers (3, 2)"),
        ({"cluster.topology": {"builder": "switch", "gpus": 3}}, "cluster.topology (two-level, switch)"),
        ({"cluster.topology.network.latency": "9 us"}, "cluster.topology.network.latency (5e-06 s, 9e-06 s)"),
        ({"cluster.device": "h200"}, "cluster.device.0 (gtx-1080-ti, h200)"),
        (
            {"cluster.stragglers": [{"kind": "persistent", "workers": [1], "slowdown": 3.0}]},
            "cluster.stragglers.0.slowdown (2.0, 3.0)",
        ),
        ({"cluster.stragglers": []}, "cluster.stragglers"),
        ({"seed": 4}, "seed (0, 4)"),
        ({"update": {"rule": "momentum"}}, "update (sgd, momentum)"),
        ({"compression": "top-k"}, "compression"),
        (
            {"seed": 4, "cluster.workers": 2, "algorithm": "d-psgd"},
            "algorithm (allreduce-sgd, d-psgd), cluster.workers (3, 2) and seed (0, 4)",
        ),
        (
            {
                "cluster.topology.network": {"bandwidth": "1 GB/s", "efficiency": 0.4, "latency": "1 us"},
                "cluster.topology.hosts": 3,
                "cluster.routing": "ecmp",
                "cluster.fairness": "rtt",
                "seed": 1,
            },
            "cluster.topology.hosts (2, 3), cluster.topology.network.bandwidth (1250000000.0 B/s, "
            "1000000000.0 B/s), cluster.topology.network.latency (5e-06 s, 1e-06 s), "
            "cluster.topology.network.efficiency (0.5, 0.4), cluster.routing (shortest, ecmp) and 2 more "
            "keys",
        ),
    ],
)
def test_what_differs_is_named(timing_scenario: Scene, changes: dict[str, Any], named: str) -> None:
    base = timing_scenario()
    text = f"A and B are runs of different scenarios, which differ in {named}."
    assert said(base, base.vary(changes)) == text


def test_what_is_left_out_are_keys(timing_scenario: Scene) -> None:
    known = timing_scenario().resolved()
    assert set(LEFT_OUT) <= set(known)
