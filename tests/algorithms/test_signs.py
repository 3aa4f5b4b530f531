"""signSGD and Signum against their recursion, their theory, the bytes that they send, and their times."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.phantom import Phantom
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.run import Run
from tests.algorithms.codecs import test_charged as charged
from tests.algorithms.given import Gradients, assert_equal, models, scenario, stream
from tests.algorithms.mutation import Mutant, Trial, cases
from tests.algorithms.recursions import signs
from tests.algorithms.recursions.notation import Array

MEETS = ("sharded", "server", "gather")
TIES = ("zero", "plus", "random")
STEP = 0.1
UPDATE, COLLECTIVE, MESSAGE = 0.06, 0.3, 0.2
"""Seconds of a local step, a collective and a message in the scenarios here."""
SETTINGS: dict[str, dict[str, Any]] = {
    "signsgd": {"name": "signsgd"},
    "decay": {"name": "signsgd", "decay": 0.3},
    "signum": {"name": "signum", "beta": 0.7},
    "warm-up": {"name": "signum", "beta": 0.9, "warm-up": 3, "decay": 0.05},
    "adversaries": {"name": "signum", "beta": 0.6, "adversaries": 0.4},
}


def ripples(d: int) -> signs.Gradient:
    """Gradients of small whole numbers, many of them zero, with many tied votes."""

    def gradient(worker: int, x: Array, t: int) -> Array:
        wave = 1.6 * np.cos(1.0 + 2.0 * worker + 0.7 * t + np.arange(d))
        return np.round(wave + 0.1 * np.round(5 * x))

    return gradient


def start(d: int) -> Array:
    return np.linspace(-1.0, 1.0, d)


def recursion(
    settings: Mapping[str, Any],
    gradient: signs.Gradient,
    x0: Array,
    workers: int,
    steps: int,
    tie: str,
    step: signs.StepSize = STEP,
) -> signs.Signs:
    d = len(x0)
    streams = {m: stream(m, "ties") for m in range(workers)}
    streams[signs.VOTE] = stream(0, "tied votes", shared=True)
    bad = round(settings.get("adversaries", 0.0) * workers)
    return signs.majority_vote(
        gradient,
        x0,
        step,
        workers,
        steps,
        momentum=settings.get("beta", 0.9 if settings["name"] == "signum" else 0.0),
        decay=settings.get("decay", 0.0),
        tie=tie,
        draws=lambda m, t: streams[m].random(d),
        adversaries=range(workers - bad, workers),
        warm_up=settings.get("warm-up", 0),
    )


def trained(algorithm: Mapping[str, Any], workers: int, iterations: int, d: int, **changes: Any) -> Run:
    dtype = changes.pop("dtype", torch.float64)
    objective = Gradients(ripples(d), start(d), dtype)
    return simulate(scenario(algorithm, objective, workers, iterations, parameters=d, step=STEP, **changes))


# Agreement with the recursion


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("meet", MEETS)
@pytest.mark.parametrize("tie", TIES)
def test_the_models_are_those_of_the_recursion(name: str, meet: str, tie: str) -> None:
    settings = SETTINGS[name]
    for workers, d in ((1, 5), (2, 70), (3, 33), (8, 64)):
        run = trained({**settings, "meet": meet, "tie": tie}, workers, 7, d)
        expected = recursion(settings, ripples(d), start(d), workers, 7, tie)
        assert_equal(models(run), expected.models)
        if workers > 1 and tie == "zero":
            assert (expected.votes == 0).any()


@pytest.mark.parametrize("meet", MEETS)
def test_the_step_size_follows_its_schedule(meet: str) -> None:
    update = {"rule": "sgd", "schedule": {"kind": "step", "every": 3, "factor": 0.5}}
    run = trained({"name": "signum", "meet": meet, "decay": 0.2}, 3, 8, 9, update=update)
    expected = recursion(
        {"name": "signum", "decay": 0.2}, ripples(9), start(9), 3, 8, "plus", lambda t: STEP * 0.5 ** (t // 3)
    )
    assert_equal(models(run), expected.models)


@pytest.mark.parametrize("meet", MEETS)
def test_a_slow_worker_changes_the_time_alone(meet: str) -> None:
    algorithm = {"name": "signum", "meet": meet, "tie": "random"}
    one, other = trained(algorithm, 3, 6, 40), trained(algorithm, 3, 6, 40, slow={1: 3.0})
    assert models(one).tobytes() == models(other).tobytes()
    assert other.duration > one.duration + 11


def test_one_worker_takes_signs_too() -> None:
    run = trained({"name": "signsgd", "tie": "zero"}, 1, 5, 6)
    assert_equal(models(run)[0], signs.signsgd(ripples(6), start(6), STEP, 5)[-1])
    assert run.bytes_sent == (0.0,)


# Bits


@pytest.mark.parametrize("d", [1, 7, 8, 31, 32, 33, 64, 100])
def test_packed_signs_are_the_words_of_the_recursion(d: int) -> None:
    from algorithms.signs.bits import pack, unpack, wire_bytes

    values = np.sign(np.random.default_rng(d).normal(size=d))
    wire = pack(torch.from_numpy(values), "plus")
    assert wire.dtype == torch.uint8
    assert wire.numpy().tobytes() == signs.pack(values).astype("<u4").tobytes()
    assert len(wire) == wire_bytes(d, "plus") == 4 * -(-d // 32)
    assert unpack(wire, d, "plus", torch.zeros(d, dtype=torch.float64)).tolist() == values.tolist()


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("d", [1, 32, 33, 100, 257])
def test_shards_hold_their_own_elements(tie: Any, shards: int, d: int) -> None:
    from algorithms.signs.bits import pack, shard_elements, unpack, wire_bytes

    values = np.sign(np.random.default_rng(d).normal(size=d))
    if tie == "zero":
        values[::3] = 0
    x = torch.from_numpy(values)
    wire = pack(x, tie, shards)
    assert len(wire) == wire_bytes(d, tie, shards) == packed_bytes(d, shards, tie)
    assert unpack(wire, d, tie, x, shards).tolist() == values.tolist()
    length = shard_elements(d, shards)
    for shard, part in enumerate(wire.view(shards, -1)):
        own = values[shard * length : (shard + 1) * length]
        assert unpack(part, length, tie, x)[: len(own)].tolist() == own.tolist()
    outline = pack(Phantom((d,)), tie, shards)
    assert (outline.shape, outline.itemsize) == ((len(wire),), 1)
    assert unpack(outline, d, tie, Phantom((d,)), shards).shape == (d,)


def test_the_signs_are_those_of_the_recursion() -> None:
    from algorithms.signs.bits import signs as taken

    random = np.random.default_rng(0)
    x = np.round(random.normal(size=200))
    draws = random.random(200)
    for tie in TIES:
        for dtype in (torch.float32, torch.float64):
            found = taken(torch.from_numpy(x).to(dtype), tie, torch.from_numpy(draws))
            assert found.dtype == dtype
            assert found.tolist() == signs.sign(x, tie, draws).tolist()


# Bytes and time


def packed_bytes(d: int, shards: int, tie: str) -> int:
    """Return the bytes of a vector's signs: planes of bits, shard by shard in whole words."""
    words = -(-d // 32)
    return shards * 4 * -(-words // shards) * (2 if tie == "zero" else 1)


def expected_bytes(meet: str, workers: int, d: int, tie: str) -> list[float]:
    """Return the bytes that each worker sends in an iteration; the server is a task of worker 0."""
    if meet == "sharded":
        # All-to-all of the ballots' shards, then all-gather of the voted ones.
        return [2 * (workers - 1) / workers * packed_bytes(d, workers, tie)] * workers
    if meet == "gather":
        return [(workers - 1.0) * packed_bytes(d, 1, tie)] * workers
    return [(workers - 1.0) * packed_bytes(d, 1, tie)] + [float(packed_bytes(d, 1, tie))] * (workers - 1)


@pytest.mark.parametrize("meet", MEETS)
@pytest.mark.parametrize("tie", ["plus", "zero"])
@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("d", [100, 1024])
def test_bytes_are_those_of_the_card(meet: str, tie: str, workers: int, d: int) -> None:
    run = trained({"name": "signum", "meet": meet, "tie": tie}, workers, 3, d)
    assert list(run.bytes_sent) == pytest.approx([3 * each for each in expected_bytes(meet, workers, d, tie)])
    if tie == "plus" and d % (32 * workers) == 0:
        # With a server of its own, worker 0 sends its bits and gets the vote like the others.
        own = 2 * packed_bytes(d, 1, tie) if meet == "server" else 0
        assert sum(run.bytes_sent) == 3 * (signs.bytes_sent(d, workers, meet) - own)


def test_a_bit_is_a_thirty_second_of_a_number() -> None:
    d, workers = 32 * 4 * 10, 4
    full = trained({"name": "signsgd"}, workers, 2, d).bytes_sent[0]
    plain = simulate(
        scenario("allreduce-sgd", Gradients(ripples(d), start(d)), workers, 2, parameters=d)
    ).bytes_sent[0]
    assert plain == pytest.approx(32 * full)


def iteration_seconds(meet: str, workers: int, d: int, tie: str, momentum: bool, decay: bool) -> float:
    """Return the time of an iteration whose workers are equally fast, with a model of fp32."""
    vector = UPDATE / 3

    def passing(nbytes: float) -> float:
        return vector * nbytes / (4 * d)

    shards = workers if meet == "sharded" else 1
    whole = packed_bytes(d, shards, tie)
    ballot, unpacked = passing(4 * d + whole), passing(4 * d + whole)
    if meet == "sharded":
        # A shard's ballots, and their sum: 32 numbers of 4 bytes for each word of bits.
        own = whole // workers
        counted = passing(workers * own + 32 * packed_bytes(d, workers, "plus") / workers)
        moved = 2 * COLLECTIVE
    else:
        counted = passing(workers * packed_bytes(d, 1, tie) + 4 * d)
        moved = COLLECTIVE if meet == "gather" else 2 * MESSAGE
    # Momentum and decay are combinations of two vectors.
    combined = 3 * vector * (momentum + decay)
    return 1 + combined + ballot + moved + counted + unpacked + UPDATE


@pytest.mark.parametrize("meet", MEETS)
@pytest.mark.parametrize("tie", TIES)
def test_time_is_in_closed_form_with_and_without_numerics(meet: str, tie: str) -> None:
    algorithm = {"name": "signum", "meet": meet, "tie": tie, "decay": 0.1}
    numerics = trained(algorithm, 3, 4, 70, dtype=torch.float32)
    timing = simulate(scenario(algorithm, None, 3, 4, parameters=70))
    each = iteration_seconds(meet, 3, 70, tie, True, True)
    first = each - UPDATE / 3  # the first momentum has one term
    end = MESSAGE if meet == "server" else 0.0  # worker 0 hears of the others' end
    assert timing.duration == pytest.approx(first + 3 * each + end, rel=1e-9)
    assert numerics.duration == pytest.approx(timing.duration, rel=1e-12)
    assert numerics.bytes_sent == timing.bytes_sent


# Theory


NOISES = {
    "gaussian": lambda random, size: random.normal(size=size),
    "laplace": lambda random, size: random.laplace(scale=np.sqrt(0.5), size=size),
    "uniform": lambda random, size: random.uniform(-np.sqrt(3), np.sqrt(3), size=size),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0, 1.3, 2.0])
def test_a_sign_is_wrong_no_more_often_than_the_lemma_says(noise: str, ratio: float) -> None:
    from algorithms.signs.bits import signs as taken

    draws = 40_000
    g = ratio + NOISES[noise](np.random.default_rng(0), draws)
    wrong = float((taken(torch.from_numpy(g), "plus", None) < 0).double().mean())
    bound = signs.wrong_sign_bound(ratio)
    assert wrong <= bound + 4 * np.sqrt(0.25 / draws)
    if noise == "uniform" and ratio < 1:
        # There the lemma's line is met exactly.
        assert wrong == pytest.approx(bound, abs=4 * np.sqrt(0.25 / draws))


@pytest.mark.parametrize("voters", [1, 3, 15])
def test_voters_are_right_more_often_by_the_root_of_their_number(voters: int) -> None:
    from scipy.stats import binom

    from algorithms.signs.bits import pack, unpack
    from algorithms.signs.bits import signs as taken

    draws, ratio = 20_000, 0.1
    random = np.random.default_rng(voters)
    total = torch.zeros(draws, dtype=torch.float64)
    for _ in range(voters):
        g = torch.from_numpy(ratio + random.normal(size=draws))
        total += unpack(pack(taken(g, "plus", None), "plus"), draws, "plus", g)
    right = float((taken(total, "plus", None) > 0).double().mean())
    one = 0.5398278372770290  # the normal distribution function at 0.1
    assert right == pytest.approx(binom.sf(voters // 2, voters, one), abs=4 * np.sqrt(0.25 / draws))
    # The advantage over a coin grows with the root of M, by sqrt(2 M / pi) for each of a single voter's.
    advantage = (binom.sf(voters // 2, voters, one) - 0.5) / (one - 0.5)
    if voters > 1:
        assert advantage == pytest.approx(np.sqrt(2 * voters / np.pi), rel=0.15)


def noisy_quadratic(curvatures: Array, deviation: Array, batch: int, norms: list[float]) -> signs.Gradient:
    """Gradients of a diagonal quadratic with Gaussian noise; keeps the true ones' 1-norms."""
    streams: dict[int, np.random.Generator] = {}

    def gradient(worker: int, x: Array, t: int) -> Array:
        random = streams.setdefault(worker, np.random.default_rng([7, worker]))
        true = curvatures * x
        if worker == 0:
            norms.append(float(np.abs(true).sum()))
        return true + deviation / np.sqrt(batch) * random.normal(size=len(x))

    return gradient


def test_the_bound_of_the_majority_vote_holds() -> None:
    d, steps = 100, 60
    curvatures, deviation = np.linspace(0.1, 1.0, d), np.full(d, 2.0)
    x0 = np.ones(d)
    gap = 0.5 * float(np.sum(curvatures * x0**2))
    step = np.sqrt(gap / (curvatures.sum() * steps))
    measured = {}
    for workers, adversaries in ((1, 0.0), (9, 0.0), (9, 0.4)):
        norms: list[float] = []
        objective = Gradients(noisy_quadratic(curvatures, deviation, steps, norms), x0)
        algorithm = {"name": "signsgd", "adversaries": adversaries}
        simulate(scenario(algorithm, objective, workers, steps, parameters=d, step=step))
        found = float(np.mean(norms)) ** 2
        assert found <= signs.vote_bound(curvatures, deviation, gap, steps, workers, adversaries)
        measured[workers, adversaries] = found
    assert measured[9, 0.0] < measured[9, 0.4]
    assert measured[9, 0.0] < measured[1, 0.0]


def test_votes_of_many_reach_further_than_a_single_sign() -> None:
    """Where noise is all, a step goes the right way by as much more as the root of M says."""
    d, steps = 400, 20
    moved = {}
    for workers in (1, 16):
        objective = Gradients(noisy_quadratic(np.ones(d), np.full(d, 40.0), 1, []), np.ones(d))
        algorithm = {"name": "signsgd", "tie": "zero"}
        run = simulate(scenario(algorithm, objective, workers, steps, parameters=d, step=1e-3))
        moved[workers] = float(np.mean(1 - models(run)[0]))
    # 2 / 40 * 0.4 of a step on one worker, d * steps = 8000 signs: a standard error of a hundredth.
    assert moved[1] / (1e-3 * steps) == pytest.approx(0.02, abs=0.035)
    assert moved[16] / (1e-3 * steps) == pytest.approx(0.02 * np.sqrt(16 * 2 / np.pi), abs=0.035)


@pytest.mark.parametrize("meet", MEETS)
def test_it_converges_with_falling_steps(meet: str) -> None:
    centres = np.array([[1.0, -2.0, 0.5], [1.2, -1.8, 0.4], [0.8, -2.2, 0.6]])
    objective = Gradients(lambda worker, x, t: x - centres[worker], np.zeros(3))
    update = {"rule": "sgd", "schedule": {"kind": "linear"}}
    run = simulate(
        scenario({"name": "signum", "meet": meet}, objective, 3, 200, parameters=3, step=0.05, update=update)
    )
    # The vote is the sign of the median's distance; the median is that of the first worker.
    np.testing.assert_allclose(models(run), np.tile(centres[0], (3, 1)), atol=0.02)


# Refusals


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"name": "signum", "beta": 1.0}, "algorithm: beta must be below 1.0, got 1.0"),
        ({"name": "signsgd", "decay": -1.0}, "algorithm: decay must be at least 0.0, got -1.0"),
        (
            {"name": "signsgd", "adversaries": 1.5},
            "algorithm: adversaries must be at most 1.0, got 1.5",
        ),
    ],
)
def test_bad_parameters_are_refused(algorithm: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(algorithm, None, 2, 1, parameters=4)
    assert str(caught.value) == message


def test_a_rule_with_a_state_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        trained({"name": "signsgd"}, 2, 1, 4, update={"rule": "momentum", "momentum": 0.9})
    assert "signsgd" in str(caught.value)


# Mutants


def check_bits() -> None:
    for d, shards in itertools.product((1, 33, 70), (1, 3)):
        for tie in TIES:
            test_shards_hold_their_own_elements(tie, shards, d)
    for d in (1, 33):
        test_packed_signs_are_the_words_of_the_recursion(d)
    test_the_signs_are_those_of_the_recursion()


def check_votes() -> None:
    for meet, tie in (("sharded", "random"), ("server", "zero"), ("gather", "plus")):
        for name, workers in (("warm-up", 3), ("adversaries", 3), ("decay", 1), ("signum", 2)):
            run = trained({**SETTINGS[name], "meet": meet, "tie": tie}, workers, 6, 70)
            expected = recursion(SETTINGS[name], ripples(70), start(70), workers, 6, tie)
            assert_equal(models(run), expected.models)
        simulate(scenario({"name": "signsgd", "meet": meet, "tie": tie}, None, 1, 1, parameters=9))
        test_time_is_in_closed_form_with_and_without_numerics(meet, tie)
        test_bytes_are_those_of_the_card(meet, "zero", 3, 100)
        charged.test_signs_are_those_of_the_cost_model(meet, tie)


TRIALS: Sequence[Trial] = [
    Trial(
        "algorithms.signs.bits",
        check_bits,
        {
            "pack: dim=1 -> dim=-1": "the last of two dimensions is the second",
            "wire_bytes: elements: int, tie: Tie, shards: int=1 -> elements: int, tie: Tie, shards: int=-1": (
                "two signs cancel"
            ),
        },
    ),
    Trial(
        "algorithms.signs.majority_vote",
        check_votes,
        {
            "padded: elements - len(draws) -> elements + len(draws)": "nobody reads behind the shards",
            "SignSGD._gathered: 1 - self.beta -> 1 + self.beta": "a factor of the momentum leaves its sign",
        },
    ),
]


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_check_of_mutants_holds_for_the_algorithm_itself(trial: Trial) -> None:
    trial.hold()
