"""DP-SGD, NSGD, Auto-S and DP-PSAC against their recursion; what keeps their promise, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.problem import FiniteSum
from simulator.engine.simulate import simulate
from simulator.faults import WorkerFailed
from simulator.parts import BadInput
from simulator.plan import oracle
from simulator.run import Run
from simulator.scenario import Scenario
from tests.algorithms.given import Sum, assert_equal, models, scenario, stream
from tests.algorithms.mutation import Mutant, Trial, cases
from tests.algorithms.recursions import privacy
from tests.algorithms.recursions.notation import Array

D, STEP, BATCH, CLIP, NOISE = 6, 0.3, 2, 0.7, 1.3
UPDATE, COLLECTIVE = 0.06, 0.3
"""Seconds of a local step and of a collective in the scenarios here; a gradient of the batch takes one."""
WEIGHTS: Mapping[str, Callable[[float, float], privacy.Weight]] = {
    "dp-sgd": lambda clip, r: privacy.dp_sgd(clip),
    "nsgd": privacy.nsgd,
    "auto-s": privacy.auto_s,
    "dp-psac": privacy.dp_psac,
}
DEFAULTS = {"dp-sgd": 0.0, "nsgd": 0.01, "auto-s": 0.01, "dp-psac": 0.1}
SIZES: Mapping[int, tuple[int, ...]] = {
    1: (12,), 2: (5, 9), 3: (6, 6, 6), 4: (7, 3, 5, 5), 8: (2, 3, 4, 5, 2, 3, 4, 5),
}  # fmt: skip


def parts(sizes: Sequence[int]) -> Sum:
    """Quadratics whose gradients have norms from far below to far above the bound."""
    random = np.random.default_rng(len(sizes))
    centres = [random.normal(size=(size, D)) * np.geomspace(1e-3, 30, size)[:, np.newaxis] for size in sizes]

    def part(worker: int, i: int, x: Array) -> Array:
        return (1 + 0.1 * i) * (x - centres[worker][i])

    return Sum(part, sizes, np.linspace(-0.1, 0.1, D))


def held(name: str, workers: int, iterations: int, kind: Sum | None = None, **changes: Any) -> Scenario:
    settings = {"clip": CLIP, "noise": NOISE, **changes.pop("settings", {})}
    changes = {"step": STEP, "batch": BATCH, "parameters": D, **changes}
    return scenario({"name": name, **settings}, kind or parts(SIZES[workers]), workers, iterations, **changes)


def recursion(
    name: str,
    made: Scenario,
    sizes: Sequence[int],
    sample_gradients: Callable[[int, Array], Array],
    x0: Array,
    r: float | None = None,
    step: float | Callable[[int], float] = STEP,
) -> privacy.Private:
    """Feed the recursion the masks and the noise of the workers' own streams."""
    workers, iterations = made.workers, made.sections.budget.iterations
    settings: Any = made.algorithm
    samples = [stream(rank, "samples") for rank in range(workers)]
    noise = stream(0, "noise")
    expected = sum(made.batches)
    if settings.sampling == "fixed":
        drawn = [
            [samples[m].integers(size, size=made.batches[m]) for _ in range(iterations)]
            for m, size in enumerate(sizes)
        ]
    else:
        rate = expected / sum(sizes)
        drawn = [
            [np.flatnonzero(samples[m].random(size) < rate) for _ in range(iterations)]
            for m, size in enumerate(sizes)
        ]
    return privacy.private_sgd(
        lambda m, x, t: sample_gradients(m, x)[drawn[m][t]],
        x0,
        step,
        workers,
        iterations,
        masks=lambda m, t: np.ones(len(drawn[m][t]), bool),
        noise=lambda t: noise.standard_normal(len(x0)),
        weight=WEIGHTS[name](settings.clip, DEFAULTS[name] if r is None else r),
        clip=settings.clip,
        noise_multiplier=settings.noise,
        expected_batch=expected,
    )


def given(kind: Sum) -> Callable[[int, Array], Array]:
    return lambda m, x: np.array([kind.part(m, i, x) for i in range(kind.sizes[m])])


# Agreement with the recursion


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_the_models_are_those_of_the_recursion(name: str, sampling: str) -> None:
    settings = {"sampling": sampling, "accountant": "none"}
    for workers, sizes in SIZES.items():
        made = held(name, workers, 6, settings=settings)
        kind = parts(sizes)
        assert_equal(models(simulate(made)), recursion(name, made, sizes, given(kind), kind.x0).models)


@pytest.mark.parametrize("name", ["nsgd", "auto-s", "dp-psac"])
def test_the_regulariser_and_the_bound_can_be_chosen(name: str) -> None:
    made = held(name, 2, 5, settings={"r": 0.5, "clip": 0.2, "noise": 0.4})
    kind = parts(SIZES[2])
    expected = recursion(name, made, SIZES[2], given(kind), kind.x0, r=0.5)
    assert_equal(models(simulate(made)), expected.models)


def test_batches_in_proportion_and_a_schedule() -> None:
    update = {"rule": "sgd", "schedule": {"kind": "step", "every": 2, "factor": 0.5}}
    made = held("dp-psac", 2, 5, batch=3, slow={1: 2.0}, workload={"batches": "proportional"}, update=update)
    assert made.batches == (4, 2)
    kind = parts(SIZES[2])
    expected = recursion(
        "dp-psac", made, SIZES[2], given(kind), kind.x0, step=lambda t: STEP * 0.5 ** (t // 2)
    )
    assert_equal(models(simulate(made)), expected.models)


@pytest.mark.parametrize("name", ["dp-sgd", "dp-psac"])
def test_on_real_data_it_takes_what_the_view_of_the_problem_gives(name: str) -> None:
    objective = {"kind": "logistic", "dtype": "float64", "l2": 0.01}
    settings = {"clip": CLIP, "noise": NOISE}
    made = scenario({"name": name, **settings}, objective, 3, 3, parameters=650, batch=20, step=STEP)
    views: list[Any] = [oracle(made, rank).problem for rank in range(3)]
    assert sum(view.count for view in views) == views[0].total == 1797

    def gradients(m: int, x: Array) -> Array:
        view: FiniteSum = views[m]
        rows: Array = view.sample_gradients(torch.from_numpy(x.copy()), torch.arange(view.count)).numpy()
        return rows

    expected = recursion(name, made, [view.count for view in views], gradients, np.zeros(650))
    assert_equal(models(simulate(made)), expected.models)


# What keeps the promise


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_sample_changes_the_sum_by_the_bound_at_most(name: str) -> None:
    """A data set with a sample, and one in whose place there is nothing; every sample takes part."""
    for norm in (0.0, 1e-12, 1e-3, 0.2, CLIP, 1.0, 1e3, 1e12):
        released = []
        for present in (True, False):
            random = np.random.default_rng(0)
            rows = random.normal(size=(4, D))
            direction = random.normal(size=D)
            rows[2] = present * norm * direction / np.linalg.norm(direction)
            kind = Sum(lambda worker, i, x, rows=rows: rows[i], (4,), np.zeros(D))
            settings = {"noise": 0.0, "accountant": "none"}
            run = simulate(held(name, 1, 1, kind, batch=4, step=4.0, settings=settings))
            released.append(-models(run)[0])
        change = float(np.linalg.norm(released[0] - released[1]))
        assert change <= CLIP * (1 + 1e-12)
        if norm >= 1e3:
            assert change == pytest.approx(CLIP, rel=1e-3)
        assert change == pytest.approx(WEIGHTS[name](CLIP, DEFAULTS[name])(norm) * norm, rel=1e-9, abs=1e-12)


def without_gradients(sizes: Sequence[int]) -> Sum:
    return Sum(lambda worker, i, x: np.zeros(D), sizes, np.zeros(D))


@pytest.mark.parametrize("name", WEIGHTS)
def test_noise_is_added_once_whatever_the_data_and_the_workers(name: str) -> None:
    noise = stream(0, "noise")
    total = np.sum([noise.standard_normal(D) for _ in range(4)], axis=0)
    expected = -STEP / 4 * NOISE * CLIP * total
    for workers, batch in ((1, 4), (2, 2), (4, 1)):
        run = simulate(held(name, workers, 4, without_gradients(SIZES[workers]), batch=batch))
        assert_equal(models(run), np.tile(expected, (workers, 1)))
    # Other data, with the same noise: what is left without it is the run without noise, by the first step.
    kind = parts(SIZES[2])
    noisy = models(simulate(held(name, 2, 1, kind)))
    clean = models(simulate(held(name, 2, 1, kind, settings={"noise": 0.0, "accountant": "none"})))
    first = stream(0, "noise").standard_normal(D)
    np.testing.assert_allclose(noisy - clean, np.tile(-STEP / 4 * NOISE * CLIP * first, (2, 1)), atol=1e-14)


def test_an_iteration_that_nobody_is_drawn_for_is_noise_alone() -> None:
    """Two samples are expected of 120: some draws are empty on a worker, some on both."""
    kind = Sum(lambda worker, i, x: np.full(D, 5.0), (60, 60), np.zeros(D))
    run = simulate(held("dp-psac", 2, 40, kind, batch=1))
    samples = [stream(rank, "samples") for rank in range(2)]
    counts = np.array([[np.sum(own.random(60) < 2 / 120) for own in samples] for _ in range(40)])
    assert (counts.sum(axis=1) == 0).any()
    assert ((counts == 0).any(axis=1) & (counts.sum(axis=1) > 0)).any()
    assert list(run.evaluations) == counts.sum(axis=0).tolist()
    # The division is by the expected batch of two, however many came.
    scaled = 5.0 * np.ones(D) * privacy.dp_psac(CLIP, 0.1)(5 * np.sqrt(D))
    noise = stream(0, "noise")
    total = sum(count * scaled + NOISE * CLIP * noise.standard_normal(D) for count in counts.sum(axis=1))
    assert_equal(models(run)[0], -STEP / 2 * np.asarray(total))
    assert np.isfinite(run.samples.loss).all()


def test_a_momentum_after_the_noise_is_covered() -> None:
    made = held("dp-sgd", 2, 3, update={"rule": "momentum", "momentum": 0.5})
    assert made.uncovered is None
    assert np.isfinite(models(simulate(made))).all()


# Weights


@pytest.mark.parametrize("r", [0.001, 0.01, 0.1, 0.5])
def test_weights_are_in_closed_form(r: float) -> None:
    from algorithms.private.clipping import weights

    norms = np.concatenate([[0.0], np.geomspace(1e-9, 1e9, 400)])
    for name, weight in WEIGHTS.items():
        found = weights(name, torch.from_numpy(norms), CLIP, r).numpy()  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [weight(CLIP, r)(n) for n in norms], rtol=1e-13)
        assert (found * norms <= CLIP * (1 + 1e-15)).all()
    at, largest = privacy.dp_psac_maximum(r)
    grid = at * np.linspace(0.5, 2, 3001)
    curve = weights("dp-psac", torch.from_numpy(grid), 1.0, r).numpy()
    assert grid[np.argmax(curve)] == pytest.approx(np.sqrt(r) - r, rel=1e-3)
    assert curve.max() == pytest.approx(1 / (2 * np.sqrt(r) - r), rel=1e-6) == pytest.approx(largest)
    small = torch.zeros(1, dtype=torch.float64)
    assert float(weights("nsgd", small, 1.0, r)) == pytest.approx(1 / r)
    assert float(weights("dp-psac", small, 1.0, r)) == pytest.approx(1)


# Accounting


GOLDENS = [
    (60000, 512, 4687, 1.1236, 2.9991, 2.7472),
    (60000, 512, 1000, 1.23, 1.1784, 1.0472),
    (60000, 256, 14062, 1.1, 2.5966, 2.3905),
    (60000, 256, 3515, 1.3, 0.9544, 0.8693),
    (50000, 1000, 2500, 2.2966, 2.0000, 1.8339),
]
"""N, B, iterations, sigma, and epsilon at 1e-5 by RDP and by PLD: dp-accounting 0.6.0, Poisson sampling."""


@pytest.mark.parametrize(("size", "batch", "iterations", "sigma", "rdp", "pld"), GOLDENS)
def test_epsilon_is_that_of_other_accountants(
    size: int, batch: int, iterations: int, sigma: float, rdp: float, pld: float
) -> None:
    from algorithms.private.accounting import epsilon

    rate = batch / size
    assert epsilon("rdp", rate, sigma, iterations, 1e-5) == pytest.approx(rdp, abs=1e-4)
    own, _ = privacy.epsilon(rate, sigma, iterations, 1e-5)
    assert epsilon("rdp", rate, sigma, iterations, 1e-5) == pytest.approx(own, rel=1e-6)
    assert pld <= epsilon("prv", rate, sigma, iterations, 1e-5) <= pld + 0.012


def test_privacy_is_spent_by_iterations_alone() -> None:
    from algorithms.private.accounting import epsilon

    for accountant in ("rdp", "prv"):
        spent = [epsilon(accountant, 0.01, 1.2, t, 1e-5) for t in (0, 1, 10, 100)]  # type: ignore[arg-type]
        assert spent[0] == 0
        assert spent == sorted(set(spent))


# What is evaluated and sent, and when


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_bytes_are_those_of_synchronous_sgd(workers: int) -> None:
    run = simulate(held("dp-psac", workers, 5))
    plain = simulate(scenario({"name": "local-sgd", "period": 1}, None, workers, 5, parameters=D))
    assert run.bytes_sent == plain.bytes_sent
    assert sum(run.bytes_sent) == pytest.approx(5 * 2 * (workers - 1) * 4 * D)


@pytest.mark.parametrize("name", WEIGHTS)
def test_time_is_in_closed_form(name: str) -> None:
    iterations, workers, vector = 7, 3, UPDATE / 3
    run = simulate(held(name, workers, iterations))
    samples = [stream(rank, "samples") for rank in range(workers)]
    rate = BATCH * workers / sum(SIZES[workers])
    seconds = 0.0
    for _ in range(iterations):
        drawn = [np.sum(own.random(size) < rate) for own, size in zip(samples, SIZES[workers], strict=True)]
        # Samples of one's own; then the noise on worker 0, a pass that reads twice and writes once.
        seconds += max(drawn[0] / BATCH + 3 * vector, *(count / BATCH for count in drawn[1:]))
        seconds += COLLECTIVE + 2 * vector + UPDATE
    assert run.duration == pytest.approx(seconds, rel=1e-9)


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampling": "fixed"},
            "algorithm: the accountant 'rdp' covers Poisson sampling only, not mini-batches of a fixed "
            "size; use sampling 'poisson', or accountant 'none'",
        ),
        (
            {"sampling": "fixed", "accountant": "prv"},
            "algorithm: the accountant 'prv' covers Poisson sampling only, not mini-batches of a fixed "
            "size; use sampling 'poisson', or accountant 'none'",
        ),
        (
            {"noise": 0.0},
            "algorithm: without noise nothing is private; give noise above 0, or accountant 'none'",
        ),
        ({"clip": 0.0}, "algorithm: clip must be above 0.0, got 0.0"),
        ({"r": 0.0}, "algorithm: r must be above 0.0, got 0.0"),
        ({"delta": 1.0}, "algorithm: delta must be below 1.0, got 1.0"),
    ],
)
def test_what_has_no_promise_is_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        held("dp-psac", 2, 1, settings=settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["dp-sgd", "nsgd", "auto-s", "dp-psac"])
def test_batches_beyond_the_data_are_refused_when_the_scenario_is_read(name: str) -> None:
    """Digits are 1,797 samples."""

    def read(workers: int, cost: int, own: int | None = None, scaling: str = "weak", **more: Any) -> None:
        objective = {"kind": "mlp", "data": "digits"}
        batch = {} if own is None else {"objective-batch": own}
        workload = {"objective": objective, "scaling": scaling, **batch}
        scenario(
            {"name": name, **more},
            None,
            workers,
            3,
            parameters=4,
            batch=cost,
            workload=workload,
            **{"step-size": 0.1},
        )

    read(64, 28)
    with pytest.raises(BadInput) as caught:
        read(64, 29)
    assert str(caught.value) == (
        f"workload.cost.batch: {name} cannot draw 1,856 samples for 64 workers from the 1,797 that there "
        "are; the largest batch is 28"
    )
    with pytest.raises(BadInput) as caught:
        read(4, 29, own=500)
    assert str(caught.value) == (
        f"workload.objective-batch: {name} cannot draw 2,000 samples for 4 workers from the 1,797 that there "
        "are; the largest batch is 449"
    )
    with pytest.raises(BadInput) as caught:
        read(4, 2000, scaling="strong")
    assert str(caught.value).endswith("; the largest batch is 1,797")
    read(64, 29, sampling="fixed", accountant="none")


def test_batches_beyond_samples_that_nobody_has_counted_are_refused_by_the_run() -> None:
    with pytest.raises(WorkerFailed) as caught:
        simulate(held("dp-psac", 2, 1, batch=8))
    assert (
        "the workers' batches are 16 samples together, of 14; no sample takes part with a probability above 1"
    ) in str(caught.value)


def test_it_needs_samples_with_numerics() -> None:
    with pytest.raises(BadInput) as caught:
        scenario("dp-psac", None, 2, 5, parameters=4)
    assert str(caught.value) == (
        "algorithm: dp-psac needs an objective over samples or other summands, with numerics; "
        "this scenario has no objective"
    )


# Convergence


@pytest.mark.parametrize("name", WEIGHTS)
def test_it_learns_with_little_noise(name: str) -> None:
    objective = {"kind": "logistic", "dtype": "float64"}
    algorithm = {"name": name, "noise": 0.5, "clip": 1.0}
    run: Run = simulate(
        scenario(algorithm, objective, 4, 40, parameters=650, batch=40, step=1.0, slow={1: 2.0})
    )
    assert run.samples.loss[-1] < 0.5 * run.samples.loss[0]
    assert max(run.samples.consensus) == 0


# Mutants


def check_steps() -> None:
    for name in WEIGHTS:
        for workers in (2, 3):
            made = held(name, workers, 4)
            kind = parts(SIZES[workers])
            expected = recursion(name, made, SIZES[workers], given(kind), kind.x0)
            assert_equal(models(simulate(made)), expected.models)
        test_time_is_in_closed_form(name)
    test_an_iteration_that_nobody_is_drawn_for_is_noise_alone()


def check_accounting() -> None:
    test_privacy_is_spent_by_iterations_alone()
    test_epsilon_is_that_of_other_accountants(*GOLDENS[1])


TRIALS: Sequence[Trial] = [
    Trial(
        "algorithms.private.private_sgd",
        check_steps,
        {
            "PrivateSGD.regulariser: getattr(self, 'r', 0.0) -> getattr(self, 'r', 1)": "DP-SGD has no r",
            "PrivateSGD.run.bounded: dim=1 -> dim=-1": "the last of two dimensions is the second",
        },
    ),
    Trial("algorithms.private.clipping", check_steps),
    Trial(
        "algorithms.private.accounting",
        check_accounting,
        {"_divergences: maxsize=64 -> maxsize=-64": "without memory it computes the same anew"},
    ),
]


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_check_of_mutants_holds_for_the_algorithm_itself(trial: Trial) -> None:
    trial.hold()
