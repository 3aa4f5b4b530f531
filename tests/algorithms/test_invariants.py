"""What each algorithm preserves, whatever the gradients are, and where it ends up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from algorithms import Worker, algorithm
from algorithms.decentralised.sgp import SGP
from algorithms.local import easgd
from algorithms.local.vrl_sgd import VRLSGD
from simulator.engine.simulate import simulate
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.synchronous import s_sgd
from tests.algorithms.test_events import GRAPHS, UNEVEN
from tests.algorithms.training import STEP, assert_equal, models, scenario, trained

ITERATIONS = 12
MEAN_PRESERVING: Mapping[str, Mapping[str, Any]] = {
    "allreduce-sgd": {"name": "allreduce-sgd", "overlap": True},
    "parameter-server": {"name": "parameter-server", "servers": 2},
    "local-sgd": {"name": "local-sgd", "period": 3},
    "cocod-sgd": {"name": "cocod-sgd", "period": 3},
    "vrl-sgd": {"name": "vrl-sgd", "period": 3},
    "d-psgd, combine then adapt": {"name": "d-psgd", "order": "combine-then-adapt"},
    "d-psgd, adapt then combine": {"name": "d-psgd", "order": "adapt-then-combine"},
    "choco-sgd": {"name": "choco-sgd", "gamma": 0.6},
    "d2": {"name": "d2"},
    "sgp": {"name": "sgp"},
    "ad-psgd": {"name": "ad-psgd"},
}
WEIGHTED = [
    name
    for name in MEAN_PRESERVING
    if name.partition(",")[0] not in ("d-psgd", "choco-sgd", "d2", "sgp", "ad-psgd")
]


def moved(problem: Quadratics, shares: tuple[float, ...]) -> Array:
    """Return x0 - step * the sum of all gradients, each with its worker's share."""
    return problem.x0 - STEP * sum(shares[worker] * gradient for worker, _, gradient in problem.log)


@pytest.mark.parametrize("name", MEAN_PRESERVING)
def test_the_mean_moves_by_the_gradients_alone(name: str) -> None:
    problem = Quadratics(4, 7, ripple=1.0)
    run = trained(MEAN_PRESERVING[name], problem, ITERATIONS, slow=UNEVEN)
    assert len(problem.log) == 4 * ITERATIONS
    assert_equal(models(run).mean(0), moved(problem, (0.25,) * 4))


@pytest.mark.parametrize("name", WEIGHTED)
def test_proportional_batches_preserve_the_weighted_mean(name: str) -> None:
    problem = Quadratics(4, 7, ripple=1.0)
    run = trained(MEAN_PRESERVING[name], problem, ITERATIONS, slow={3: 2.0}, batches="proportional")
    shares = run.scenario.shares
    assert shares is not None
    assert len(set(shares)) > 1
    assert_equal(np.asarray(shares) @ models(run), moved(problem, shares))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "disturbed",
    [
        [],
        [{"kind": "persistent", "workers": [0], "slowdown": 20.0}],
        [{"kind": "lognormal", "sigma": 1.0}],
    ],
    ids=["equal", "straggler", "jitter"],
)
def test_ad_psgd_ends_with_the_mean_preserved(graph: str, disturbed: list[Any]) -> None:
    workers, builder = GRAPHS[graph]
    problem = Quadratics(workers, 5, ripple=1.0)
    run = trained({"name": "ad-psgd"}, problem, 20, gossip={"graph": builder}, stragglers=disturbed, seed=1)
    assert run.iterations == (20,) * workers
    assert_equal(models(run).mean(0), moved(problem, (1 / workers,) * workers))


def test_one_sided_pair_averaging_does_not_preserve_the_mean() -> None:
    problem = Quadratics(4, 7, ripple=1.0)
    run = trained({"name": "pair-averaging"}, problem, ITERATIONS, slow=UNEVEN)
    assert np.abs(models(run).mean(0) - moved(problem, (0.25,) * 4)).max() > 1e-3


@pytest.mark.parametrize("peers", ["one", "all"])
@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("workers", [3, 4, 8])
def test_the_sums_of_sgp_count_what_is_under_way(workers: int, delay: int, peers: Any) -> None:
    noted: dict[int, list[tuple[Array, float]]] = defaultdict(list)

    class Noting(SGP):
        def note(self, worker: Worker, numerator: Any, weight: float) -> None:
            noted[worker.rank].append((numerator.numpy().copy(), weight))

    problem = Quadratics(workers, 5, ripple=1.0)
    simulate(scenario(Noting(peers=peers, delay=delay), problem, ITERATIONS))
    x = sum(own[-1][0] for own in noted.values())
    w = sum(own[-1][1] for own in noted.values())
    sent = len(SGP().hops(workers)) if peers == "all" else 1
    for worker, t, gradient in problem.log:
        if t >= ITERATIONS - delay:  # what was sent then is still on its way
            before, weight = noted[worker][t - 1]
            x = x + sent / (sent + 1) * (before - STEP * gradient)
            w += sent / (sent + 1) * weight
    assert w == pytest.approx(workers, rel=1e-12)
    assert_equal(x, workers * moved(problem, (1 / workers,) * workers))


def test_sgp_averages_exactly_in_as_many_rounds_as_there_are_hops() -> None:
    """Without gradients a power of two of workers has the mean after log2(n) iterations of one peer."""
    weights: list[float] = []

    class Noting(SGP):
        def note(self, worker: Worker, numerator: Any, weight: float) -> None:
            weights.append(weight)

    problem = Quadratics(8, 3, ripple=1.0)
    still = Quadratics(8, 3)
    still.x0 = problem.x0
    still.hessians = [H * 0 for H in still.hessians]
    run = simulate(scenario(Noting(), still, 3))
    assert_equal(models(run), np.tile(still.x0, (8, 1)))
    assert weights == [1.0] * 24  # a regular graph


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("slow", [{}, {0: 3.1}], ids=["equal", "uneven"])
def test_the_elastic_sum_of_easgd(
    workers: int, slow: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers' models and the centre, together, move by the gradients alone."""
    centres: list[easgd.Centre] = []

    class Kept(easgd.Centre):
        def __init__(self, settings: easgd.EASGD) -> None:
            super().__init__(settings)
            centres.append(self)

    monkeypatch.setattr(easgd, "Centre", Kept)
    problem = Quadratics(workers, 5, ripple=1.0)
    settings = {"name": "easgd", "period": 3, "elasticity": 0.3}
    run = trained(settings, problem, ITERATIONS, slow=slow)
    (centre,) = centres
    total = models(run).sum(0) + np.asarray(centre.value)
    assert_equal(total, problem.x0 + workers * moved(problem, (1 / workers,) * workers))


@pytest.mark.parametrize("batches", ["equal", "proportional"])
def test_the_corrections_of_vrl_sgd_sum_to_zero(batches: str) -> None:
    corrections: dict[int, list[Array]] = defaultdict(list)

    class Noting(VRLSGD):
        def note(self, worker: Worker, correction: Any) -> None:
            corrections[worker.rank].append(correction.numpy().copy())

    problem = Quadratics(4, 5, ripple=1.0)
    run = simulate(scenario(Noting(period=3), problem, ITERATIONS, slow={1: 2.0}, batches=batches))
    shares = run.scenario.shares or (0.25,) * 4
    for round_number in range(ITERATIONS // 3):
        own = [corrections[worker][round_number] for worker in range(4)]
        assert max(np.abs(correction).max() for correction in own) > 0.1
        np.testing.assert_allclose(np.asarray(shares) @ np.array(own), np.zeros(5), rtol=0, atol=1e-12)


# One worker, like workers, unlike workers ------------------------------------------------------------------

ALL: Mapping[str, Mapping[str, Any]] = {
    **MEAN_PRESERVING,
    "pair-averaging": {"name": "pair-averaging"},
    "a-psgd": {"name": "a-psgd"},
    "hogwild": {"name": "hogwild"},
    "pipe-sgd": {"name": "pipe-sgd"},
    "overlap-local-sgd": {"name": "overlap-local-sgd", "period": 2},
    "slowmo": {"name": "slowmo", "period": 2},
    "easgd, synchronous": {"name": "easgd", "rounds": "synchronous"},
    "easgd, asynchronous": {"name": "easgd"},
    "diloco": {"name": "diloco", "period": 2},
    "streaming-diloco": {"name": "streaming-diloco", "period": 2, "fragments": 2},
    "overlapped sgp": {"name": "sgp", "delay": 2, "peers": "all"},
}
WITH_A_STATE_OF_THEIR_OWN = {
    *("pipe-sgd", "overlap-local-sgd", "slowmo", "diloco", "streaming-diloco", "overlapped sgp"),
    *("easgd, synchronous", "easgd, asynchronous"),
}
PLAIN = [name for name in ALL if name not in WITH_A_STATE_OF_THEIR_OWN]


@pytest.mark.parametrize("name", PLAIN)
def test_one_worker_does_plain_sgd(name: str) -> None:
    problem = Quadratics(1, 5, ripple=1.0)
    settings = {key: value for key, value in ALL[name].items() if key != "servers"}
    run = trained(settings, problem, ITERATIONS)
    assert_equal(models(run), s_sgd(problem.gradient, problem.x0, STEP, 1, ITERATIONS))
    assert run.bytes_sent == (0.0,)


# A pair of AD-PSGD may meet at different iterations of its workers.
@pytest.mark.parametrize("name", sorted(MEAN_PRESERVING.keys() - {"ad-psgd"}))
def test_workers_that_see_the_same_do_synchronous_sgd(name: str) -> None:
    problem = Quadratics(4, 5).identical()
    run = trained(MEAN_PRESERVING[name], problem, ITERATIONS)
    assert_equal(models(run), s_sgd(problem.gradient, problem.x0, STEP, 4, ITERATIONS))


@pytest.mark.parametrize("name", ALL)
def test_like_workers_come_to_the_optimum_in_spite_of_a_straggler(name: str) -> None:
    problem = Quadratics(4, 3).identical()
    run = trained(ALL[name], problem, 200, slow={1: 3.0}, step_size=0.15)
    far = np.abs(problem.x0 - problem.optimum()).max()
    assert np.abs(models(run) - problem.optimum()).max() < 0.01 * far


EXACT = ["allreduce-sgd", "parameter-server", "pipe-sgd", "vrl-sgd", "d2", "hogwild"]
"""What finds the minimum of the mean also where the workers' functions differ, at a constant step size;
Hogwild where its workers are equally fast, so that all read the same model."""


@pytest.mark.parametrize("name", ALL)
def test_unlike_workers_come_to_the_optimum_or_beside_it(name: str) -> None:
    problem = Quadratics(4, 3)
    far = np.abs(problem.x0 - problem.optimum()).max()
    run = trained(ALL[name], problem, 150, step_size=0.1)
    away = np.abs(models(run).mean(0) - problem.optimum()).max()
    assert away < (1e-2 if name in EXACT else 0.5) * far
    if name not in EXACT:
        again = trained(ALL[name], problem, 300, step_size=0.1)
        assert np.abs(models(again).mean(0) - problem.optimum()).max() > 1e-4 * far


def test_the_algorithms_agree_where_they_must() -> None:
    """Averaging after every step is synchronous SGD, and so is a complete graph with equal weights."""
    problem = Quadratics(4, 10, ripple=1.0)
    expected = s_sgd(problem.gradient, problem.x0, STEP, 4, ITERATIONS)
    for settings, more in (
        ({"name": "allreduce-sgd"}, {}),
        ({"name": "allreduce-sgd", "overlap": False}, {}),
        ({"name": "local-sgd", "period": 1}, {}),
        ({"name": "d-psgd", "order": "adapt-then-combine"}, {"gossip": {"graph": "complete"}}),
    ):
        assert_equal(models(trained(settings, problem, ITERATIONS, **more)), expected)


def test_what_depends_on_timing_says_so() -> None:
    timed = {"ad-psgd", "pair-averaging", "a-psgd", "hogwild", "easgd"}
    for settings in ALL.values():
        name = settings["name"]
        assert algorithm(name)().deterministic == (name not in timed)
