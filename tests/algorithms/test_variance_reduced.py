"""SVRG and Katyusha X against their recursions, their theory, what they evaluate and send, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from algorithms import algorithm
from algorithms.algorithm import Setting
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from tests.algorithms.given import SEED, Sum, assert_equal, models, scenario, stream
from tests.algorithms.mutation import Mutant, Trial, cases
from tests.algorithms.recursions import katyusha
from tests.algorithms.recursions.notation import Array, StepSize, at
from tests.algorithms.recursions.rules import warm_up_then_steps

D, STEP, BATCH = 5, 0.05, 2
UPDATE, COLLECTIVE = 0.06, 0.3
"""Seconds of a local step and of a collective in the scenarios here; a gradient takes one."""
SIZES: Mapping[int, tuple[int, ...]] = {
    1: (12,), 2: (5, 9), 3: (6, 6, 6), 4: (7, 3, 5, 5), 8: (2, 3, 4, 5, 2, 3, 4, 5),
}  # fmt: skip
STRONGLY = {"name": "katyusha-x", "form": "strongly-convex"}
SETTINGS: dict[str, dict[str, Any]] = {
    "svrg": {"name": "svrg"},
    "strongly convex": {**STRONGLY, "tau": 0.3},
    "by mu": {**STRONGLY, "convexity": 0.4, "lengths": "fixed"},
    "convex": {"name": "katyusha-x", "inner": 3},
    "l1": {**STRONGLY, "tau": 0.4, "l1": 0.3, "inner": 4},
}


def parts(sizes: Sequence[int], d: int = D) -> Sum:
    """Quadratics of any curvature, convex on average, different on every worker."""
    random = np.random.default_rng(len(sizes))
    shapes = [random.normal(size=(size, d, d)) for size in sizes]
    hessians = [(a + a.transpose(0, 2, 1)) / 4 + np.eye(d) for a in shapes]
    centres = [random.normal(size=(size, d)) for size in sizes]

    def part(worker: int, i: int, x: Array) -> Array:
        return hessians[worker][i] @ (x - centres[worker][i])

    return Sum(part, sizes, random.normal(size=d))


def held(algorithm: Mapping[str, Any], workers: int, iterations: int, **changes: Any) -> Scenario:
    changes = {"step": STEP, "batch": BATCH, **changes}
    return scenario(algorithm, parts(SIZES[workers]), workers, iterations, parameters=D, **changes)


def drawn_lengths(
    settings: Mapping[str, Any], mean_steps: int, iterations: int, seed: int = SEED
) -> list[int]:
    """Return the steps of the epochs; the last one ends with the budget."""
    random = stream(0, "inner lengths", True, seed)
    lengths: list[int] = []
    while sum(lengths) < iterations:
        fixed = settings.get("lengths") == "fixed"
        lengths.append(mean_steps if fixed else int(random.geometric(1 / mean_steps)))
    lengths[-1] -= sum(lengths) - iterations
    return lengths


def mean_length(settings: Mapping[str, Any], workers: int) -> int:
    return int(settings.get("inner", 0)) or max(1, round(sum(SIZES[workers]) / (BATCH * workers)))


def recursion(
    settings: Mapping[str, Any], workers: int, iterations: int, step: StepSize = STEP
) -> katyusha.Epochs:
    kind = parts(SIZES[workers])
    lengths = drawn_lengths(settings, mean_length(settings, workers), iterations)
    random = [stream(rank, "samples") for rank in range(workers)]
    drawn = [
        [random[rank].integers(size, size=BATCH).tolist() for _ in range(iterations)]
        for rank, size in enumerate(kind.sizes)
    ]
    before = np.concatenate([[0], np.cumsum(lengths)]).tolist()

    def samples(worker: int, epoch: int, k: int) -> Sequence[int]:
        return drawn[worker][before[epoch] + k]

    f = katyusha.Sum(kind.part, kind.sizes)
    prox = katyusha.prox_l1(settings["l1"]) if "l1" in settings else katyusha.no_prox
    if settings["name"] == "svrg":
        return katyusha.svrg(f, kind.x0, step, lengths, samples, prox)
    if settings.get("form", "convex") == "convex":
        return katyusha.katyusha_xw(f, kind.x0, step, lengths, samples, prox)

    def tau(epoch: int) -> float:
        if "convexity" not in settings:
            return float(settings["tau"])
        eta = at(step, max(before[epoch] - 1, 0))
        return min(0.5, np.sqrt(mean_length(settings, workers) * eta * settings["convexity"]) / 2)

    return katyusha.katyusha_xs(f, kind.x0, step, tau, lengths, samples, prox)


# Agreement with the recursions


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("workers", SIZES)
def test_the_models_are_those_of_the_recursion(name: str, workers: int) -> None:
    # Budgets that end an epoch early, wherever in it that is.
    for iterations in (1, 9, 14):
        run = simulate(held(SETTINGS[name], workers, iterations))
        assert_equal(models(run), recursion(SETTINGS[name], workers, iterations).models)
        assert run.iterations == (iterations,) * workers


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("workers", [1, 3])
def test_under_a_schedule_each_step_has_its_own_size(name: str, workers: int) -> None:
    schedule = {"kind": "step", "warm-up": 2, "every": 4, "factor": 0.5}
    run = simulate(held(SETTINGS[name], workers, 14, update={"rule": "sgd", "schedule": schedule}))
    sizes = warm_up_then_steps(STEP, 2, 4, 0.5, start=1 / 3)
    assert len({sizes(t) for t in range(14)}) == 5
    assert_equal(models(run), recursion(SETTINGS[name], workers, 14, sizes).models)


def test_a_slow_worker_changes_the_time_alone() -> None:
    one = simulate(held(SETTINGS["l1"], 3, 10))
    other = simulate(held(SETTINGS["l1"], 3, 10, slow={1: 3.0}))
    assert models(one).tobytes() == models(other).tobytes()
    assert other.duration > one.duration + 40


def test_unequal_batches_weigh_by_parts_all_the_same() -> None:
    """Twice as fast a worker draws twice as many of its parts; each part's weight in f is 1/n."""
    algorithm = {"name": "svrg", "lengths": "fixed"}
    made = held(algorithm, 2, 7, slow={1: 2.0}, workload={"batches": "proportional"}, batch=3)
    assert made.batches == (4, 2)
    kind = parts(SIZES[2])
    random = [stream(rank, "samples") for rank in range(2)]
    tables = [
        [random[rank].integers(kind.sizes[rank], size=made.batches[rank]).tolist() for _ in range(7)]
        for rank in range(2)
    ]
    # 14 parts in batches of 6: two steps an epoch, and a last one of one.
    f = katyusha.Sum(kind.part, kind.sizes)
    expected = katyusha.svrg(f, kind.x0, STEP, [2, 2, 2, 1], lambda w, epoch, k: tables[w][2 * epoch + k])
    assert_equal(models(simulate(made)), expected.models)


def test_tau_of_one_half_is_svrg() -> None:
    halved = models(simulate(held({**STRONGLY, "tau": 0.5}, 2, 12)))
    svrg = models(simulate(held({"name": "svrg"}, 2, 12)))
    np.testing.assert_allclose(halved, svrg, rtol=0, atol=1e-14)
    # Katyusha X by its defaults is not.
    assert np.abs(models(simulate(held({"name": "katyusha-x"}, 2, 12))) - svrg).max() > 1e-3


def test_a_batch_beyond_the_sum_takes_one_step_an_epoch() -> None:
    run = simulate(held({"name": "svrg"}, 1, 3, batch=100))
    assert run.evaluations == pytest.approx((3 * (12 / 100 + 2),))


def test_a_large_mu_leaves_tau_at_one_half() -> None:
    large = simulate(held({**STRONGLY, "convexity": 1e6}, 2, 12))
    assert_equal(models(large), recursion({**STRONGLY, "tau": 0.5}, 2, 12).models)


# What is evaluated and sent, and when


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_evaluations_and_bytes_are_those_of_the_card(workers: int) -> None:
    for name, settings in SETTINGS.items():
        lengths = drawn_lengths(settings, mean_length(settings, workers), 11)
        run = simulate(held(settings, workers, 11))
        # A full pass over the worker's own parts in every epoch, and two gradients in every step.
        expected = [len(lengths) * size / BATCH + 2 * 11 for size in SIZES[workers]]
        assert list(run.evaluations) == pytest.approx(expected), name
        single = BATCH * np.array(run.evaluations)
        assert single.sum() == pytest.approx(len(lengths) * sum(SIZES[workers]) + 2 * BATCH * workers * 11)
        ring = 2 * (workers - 1) / workers * 4 * D
        assert sum(run.bytes_sent) == pytest.approx((len(lengths) + 11) * ring * workers)
        # What the list of algorithms says: so much in every iteration, and at the beginning of every epoch.
        said, setting = run.scenario.algorithm, Setting(workers, D)
        each = 11 * said.traffic(setting) + len(lengths) * said.epoch_traffic(setting)
        assert sum(run.bytes_sent) == pytest.approx(workers * each)
        # A ring sends chunks of whole elements.
        assert max(run.bytes_sent) - min(run.bytes_sent) <= (len(lengths) + 11) * 2 * 4 * (workers - 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_time_is_in_closed_form(name: str) -> None:
    settings, workers, iterations = SETTINGS[name], 2, 13
    lengths = drawn_lengths(settings, mean_length(settings, workers), iterations)
    run = simulate(held(settings, workers, iterations))
    vector = UPDATE / 3
    largest = max(SIZES[workers]) / BATCH
    begun = largest + COLLECTIVE + (0 if settings["name"] == "svrg" else 4 * vector)
    step = 2 + COLLECTIVE + 3 * vector + UPDATE + (2 * vector if "l1" in settings else 0)
    assert run.duration == pytest.approx(len(lengths) * begun + iterations * step, rel=1e-9)


# Theory


SUMMANDS, MU, SMOOTHNESS = 400, 0.032, 3.52


def epochs_on_the_sum(batch: int, seed: int, epochs: int, name: str) -> tuple[Run, list[Array], list[Array]]:
    """Run whole epochs on a sum half of whose parts are not convex; return the x_k and y_k too."""
    import torch

    from algorithms.worker import Tensor, Worker

    starts: list[Array] = []
    ends: list[Array] = []

    base: Any = algorithm(name)

    class Recorded(base):  # type: ignore[misc]  # the class to extend is found by its name
        async def extrapolated(
            self, worker: Worker, epoch: int, start: Tensor, end: Tensor, last_end: Tensor, mean_steps: int
        ) -> Tensor:
            x = await super().extrapolated(worker, epoch, start, end, last_end, mean_steps)
            assert isinstance(x, torch.Tensor)
            assert isinstance(end, torch.Tensor)
            starts.append(x.numpy().copy())
            ends.append(end.numpy().copy())
            return x

    constants = katyusha.constants(SUMMANDS, batch, SMOOTHNESS, MU)
    objective = {
        "kind": "quadratic-sum", "summands": SUMMANDS, "dimension": 20,
        "L": SMOOTHNESS - 2, "mu": MU, "shift": 2.0, "sigma2": 1.0,
    }  # fmt: skip
    iterations = sum(stream(0, "inner lengths", True, seed).geometric(batch / SUMMANDS, size=epochs).tolist())
    settings = {"form": "strongly-convex", "convexity": MU} if name == "katyusha-x" else {}
    made = scenario(
        Recorded(**settings),
        objective,
        1,
        iterations,
        parameters=20,
        batch=batch,
        step=constants.eta,
        seed=seed,
    )
    return simulate(made), starts, ends


def test_contraction_and_the_knee_at_the_root_of_n() -> None:
    """Nothing is lost up to a batch of sqrt(n) = 20, much at 80; each epoch keeps 1/(1 + tau) at most."""
    epochs = 30
    left: dict[int, float] = {}
    gaps: dict[int, float] = {}
    for batch in (5, 20, 80):
        c = katyusha.constants(SUMMANDS, batch, SMOOTHNESS, MU)
        assert 1 / (1 + c.tau) == pytest.approx(0.930 if batch == 80 else 0.869, abs=5e-4)
        phi = []
        for seed in (0, 1):
            run, starts, ends = epochs_on_the_sum(batch, seed, epochs, "katyusha-x")
            objective: Any = run.scenario.objective
            assert objective.smoothness == pytest.approx(SMOOTHNESS)
            optimum, eigenvalues = objective.minimiser.numpy(), objective.eigenvalues.numpy()
            phi.append(
                [
                    katyusha.lyapunov(
                        0.5 * float(np.sum(eigenvalues * (y - optimum) ** 2)),
                        (x - (1 - c.tau) * y) / c.tau, optimum, c.tau, MU,
                    )
                    for x, y in zip(starts, ends, strict=True)
                ]
            )  # fmt: skip
            assert len(starts) == epochs
            gaps[batch] = run.samples.loss[-1]
        mean = np.mean(phi, axis=0)
        left[batch] = float(mean[-1] / mean[0])
        assert left[batch] <= (1 + c.tau) ** (1 - epochs)
    assert max(left[5], left[20]) < 5 * min(left[5], left[20])
    assert left[80] > 100 * left[20]
    # Epochs without momentum are far behind.
    assert epochs_on_the_sum(20, 1, epochs, "svrg")[0].samples.loss[-1] > 10 * gaps[20]


@pytest.mark.parametrize(
    "settings",
    [{"name": "svrg"}, {"name": "katyusha-x"}, {**STRONGLY, "convexity": 0.5}],
    ids=["svrg", "convex", "strongly convex"],
)
def test_it_converges_to_the_optimum_on_several_workers(settings: Mapping[str, Any]) -> None:
    objective = {"kind": "quadratic-sum", "summands": 40, "dimension": 4, "L": 1.0, "mu": 0.5, "shift": 0.6}
    run = simulate(scenario(settings, objective, 4, 600, parameters=4, batch=1, step=0.1, slow={2: 2.0}))
    assert run.samples.loss[-1] < 1e-6 * run.samples.loss[0]
    assert max(run.samples.consensus) == 0.0


def test_a_run_that_has_reached_its_target_stops_within_the_epoch() -> None:
    objective = {"kind": "quadratic-sum", "summands": 40, "dimension": 4, "L": 1.0, "mu": 0.5, "shift": 0.6}
    algorithm = {"name": "svrg", "lengths": "fixed", "inner": 200}
    made = scenario(
        algorithm, objective, 2, 400, parameters=4, batch=1, step=0.1,
        target={"loss": 0.2, "reports": 0}, budget={"iterations": 400, "stop": "target"},
    )  # fmt: skip
    run = simulate(made)
    reached = run.reached()
    assert reached is not None
    assert reached.iterations <= run.iterations[0] == run.iterations[1] <= reached.iterations + 2 < 200


# Refusals


def test_it_needs_a_finite_sum_with_numerics() -> None:
    with pytest.raises(BadInput) as caught:
        scenario("katyusha-x", None, 2, 5, parameters=4)
    assert str(caught.value) == (
        "algorithm: katyusha-x needs an objective over samples or other summands, with numerics; "
        "this scenario has no objective"
    )
    with pytest.raises(BadInput) as caught:
        scenario("svrg", {"kind": "quadratic", "dimension": 4}, 2, 5, parameters=4)
    assert str(caught.value) == (
        "algorithm: svrg needs an objective over samples or other summands, with numerics, "
        "which quadratic of dimension 4 is not"
    )


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({**STRONGLY, "tau": 0.6}, "algorithm: tau must be at most 0.5, got 0.6"),
        (
            STRONGLY,
            "algorithm: the momentum of the strongly-convex form follows from convexity (mu) or tau, and "
            "neither is given",
        ),
        (
            {"name": "katyusha-x", "tau": 0.3},
            "algorithm: tau has no effect where form is 'convex'; it needs form 'strongly-convex'",
        ),
        (
            {"name": "katyusha-x", "convexity": 0.3},
            "algorithm: convexity has no effect where form is 'convex'; it needs form 'strongly-convex'",
        ),
        ({"name": "svrg", "l1": -0.1}, "algorithm: l1 must be at least 0.0, got -0.1"),
    ],
)
def test_bad_parameters_are_refused(algorithm: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(algorithm, None, 2, 1, parameters=4)
    assert str(caught.value) == message


def test_svrg_takes_no_momentum() -> None:
    with pytest.raises(BadInput, match="algorithm: unknown key 'tau'"):
        scenario({"name": "svrg", "tau": 0.5}, None, 2, 1, parameters=4)


# Mutants


def check_epochs() -> None:
    for name in SETTINGS:
        test_the_models_are_those_of_the_recursion(name, 2)
        test_time_is_in_closed_form(name)
    test_a_large_mu_leaves_tau_at_one_half()
    test_a_batch_beyond_the_sum_takes_one_step_an_epoch()
    test_unequal_batches_weigh_by_parts_all_the_same()
    test_evaluations_and_bytes_are_those_of_the_card(2)


TRIALS: Sequence[Trial] = [Trial("algorithms.variance_reduced.katyusha_x", check_epochs)]


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_check_of_mutants_holds_for_the_algorithm_itself(trial: Trial) -> None:
    trial.hold()
