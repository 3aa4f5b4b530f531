"""Golden vectors on the virtual clock: worker models after 8 deterministic steps, to 1e-12."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from algorithms import Algorithm, Plan, Worker
from algorithms.decentralised.ad_psgd import mean_of_pair
from simulator.engine.simulate import simulate
from simulator.scenario import Scenario

CASES = {
    "allreduce_sgd": {"name": "allreduce-sgd"},
    "local_sgd": {"name": "local-sgd", "period": 2},
    "cocod_sgd_equal": {"name": "cocod-sgd", "period": 2},
    "d_psgd_combine_then_adapt": {"name": "d-psgd", "order": "combine-then-adapt"},
    "d_psgd_adapt_then_combine": {"name": "d-psgd", "order": "adapt-then-combine"},
    "pipe_sgd": {"name": "pipe-sgd", "width": 2},
    "d2": {"name": "d2", "lazy": True},
    "sgp_one_peer_exponential": {"name": "sgp", "peers": "one"},
    "overlap_local_sgd": {"name": "overlap-local-sgd", "period": 2, "pull": 0.6, "anchor-momentum": 0.0},
    "easgd": {"name": "easgd", "period": 2, "elasticity": 0.1, "rounds": "synchronous"},
    "slowmo_local": {"name": "slowmo", "period": 2, "slow-step": 1.0, "slow-momentum": 0.5},
    "vrl_sgd": {"name": "vrl-sgd", "period": 2},
}
COUSINS = {
    "synchronous server": ("allreduce_sgd", {"name": "parameter-server"}),
    "two synchronous servers, one of them with nothing": (
        "allreduce_sgd",
        {"name": "parameter-server", "servers": 2},
    ),
    "CoCoD-SGD without its first all-reduce": (
        "cocod_sgd_equal",
        {"name": "cocod-sgd", "period": 2, "first-all-reduce": False},
    ),
    "Pipe-SGD of width 1": ("allreduce_sgd", {"name": "pipe-sgd", "width": 1}),
    "local SGD with period 1": ("allreduce_sgd", {"name": "local-sgd", "period": 1}),
    "SlowMo without momentum": ("local_sgd", {"name": "slowmo", "period": 2, "slow-momentum": 0.0}),
    "DiLoCo with a whole outer step": (
        "local_sgd",
        {"name": "diloco", "period": 2, "outer-step": 1.0, "outer-momentum": 0.0},
    ),
    "streaming DiLoCo of one fragment": (
        "local_sgd",
        {
            "name": "streaming-diloco",
            "period": 2,
            "fragments": 1,
            "delay": 0,
            "merge": 0.0,
            "outer-step": 1.0,
            "outer-momentum": 0.0,
        },
    ),
}
SHARES_1_1_2_4 = [
    {"kind": "persistent", "workers": [0, 1], "slowdown": 4.0},
    {"kind": "persistent", "workers": [2], "slowdown": 2.0},
]


@pytest.mark.parametrize("case", CASES)
def test_models_after_eight_steps(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], case: str
) -> None:
    run = simulate(scalar(CASES[case], vectors))
    assert run.models is not None
    np.testing.assert_allclose(run.models[:, 0], vectors["workers_after"][case], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cousin", COUSINS)
def test_what_must_agree_with_a_golden_vector(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], cousin: str
) -> None:
    golden, algorithm = COUSINS[cousin]
    run = simulate(scalar(algorithm, vectors))
    assert run.models is not None
    np.testing.assert_allclose(run.models[:, 0], vectors["workers_after"][golden], rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Scripted(Algorithm):
    """AD-PSGD's own steps in a given order: event e is worker e mod 4's, with the next one as its partner.

    The gradient is taken at the worker's model as it stood after its previous event, the pair averages, and
    the worker subtracts the gradient.
    """

    def plan(self, world_size: int, graph: object) -> Plan:
        pairs = [(i, (i + 1) % world_size) for i in range(world_size)]
        return Plan({}, tuple(c for i, j in pairs for c in ((i, j, "message"), (j, i, "message"))))

    async def run(self, worker: Worker) -> None:
        x = point = worker.initial_model()
        for event in range(16):
            pair = event % 4, (event + 1) % 4
            if worker.rank not in pair:
                continue
            peer = pair[1] if worker.rank == pair[0] else pair[0]
            sending = worker.send(x, peer)
            x = await mean_of_pair(worker, x, await worker.recv(peer))
            await sending
            if worker.rank == pair[0]:
                x = point = await worker.update(x, await worker.gradient(point))
        worker.report(x)


def test_ad_psgd_after_sixteen_events(scalar: Callable[..., Scenario], vectors: Mapping[str, Any]) -> None:
    run = simulate(scalar(Scripted(), vectors))
    assert run.models is not None
    expected = vectors["workers_after"]["ad_psgd_event_trace"]
    np.testing.assert_allclose(run.models[:, 0], expected, rtol=0, atol=1e-12)
    assert run.iterations == (4, 4, 4, 4)


def test_every_golden_vector_has_its_algorithm(vectors: Mapping[str, Any]) -> None:
    others = {"cocod_sgd_proportional", "ad_psgd_event_trace"}
    assert {*CASES, *others} == vectors["workers_after"].keys()


@pytest.mark.parametrize("first_all_reduce", [True, False])
def test_proportional_batches_follow_the_speeds(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], first_all_reduce: bool
) -> None:
    algorithm = {"name": "cocod-sgd", "period": 2, "first-all-reduce": first_all_reduce}
    scenario = scalar(algorithm, vectors, stragglers=SHARES_1_1_2_4)
    assert scenario.batches == (1, 1, 2, 4)
    assert scenario.shares == (1 / 8, 1 / 8, 2 / 8, 4 / 8)
    run = simulate(scenario)
    assert run.models is not None
    expected = vectors["workers_after"]["cocod_sgd_proportional"]
    np.testing.assert_allclose(run.models[:, 0], expected, rtol=0, atol=1e-12)
    weighted_mean = float(np.dot(scenario.shares, run.models[:, 0]))
    assert weighted_mean == pytest.approx(3.1169908498, abs=1e-10)


@pytest.mark.parametrize("transport", ["ideal", "nccl", "gloo", {"name": "ideal", "pattern": "tree"}])
@pytest.mark.parametrize("case", CASES)
def test_values_do_not_depend_on_timing(
    scalar: Callable[..., Scenario], vectors: Mapping[str, Any], case: str, transport: object
) -> None:
    one = simulate(scalar(CASES[case], vectors))
    other = simulate(
        scalar(CASES[case], vectors).vary(
            transport=transport, stragglers=[{"kind": "lognormal", "sigma": 0.5}]
        )
    )
    assert one.models is not None
    assert other.models is not None
    assert one.models.tobytes() == other.models.tobytes()
    assert one.duration != other.duration
