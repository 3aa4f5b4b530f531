"""Compressed algorithms on the virtual clock, against recursions in NumPy and the byte counts of the card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from algorithms import ALGORITHMS, Algorithm
from algorithms.codecs import Message
from algorithms.worker import Worker
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.plan import oracle, random_numbers
from simulator.scenario import Scenario
from simulator.workload.kinds import Quadratic
from simulator.workload.objective import Objective, QuadraticObjective
from tests.algorithms.recursions import codecs, signs

Array = NDArray[np.float64]

D, STEPS, ETA = 36, 12, 0.1
SHAPES = ((4, 6), (5,), (7,))


@dataclass(frozen=True)
class Layered:
    """A quadratic whose flat model has layers."""

    dtype: Literal["float64", "float32"] = "float64"
    shapes: tuple[tuple[int, ...], ...] = SHAPES

    def build(self, seed: int) -> Objective:
        made = LayeredObjective(Quadratic(dimension=D, sigma2=0.0, zeta2=1.0, dtype=self.dtype), seed)
        made.layered = self.shapes
        return made


class LayeredObjective(QuadraticObjective):
    layered: tuple[tuple[int, ...], ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.layered


def scenario(
    algorithm: object,
    compression: object,
    *,
    workers: int = 3,
    objective: object = None,
    buckets: int = 1,
    iterations: int = STEPS,
    update: str = "0 s",
    **more: Any,
) -> Scenario:
    return Scenario(
        {
            "name": "compressed",
            "cluster": {
                "topology": {"builder": "switch", "gpus": workers},
                "device": "ideal",
                "transport": more.pop("transport", "ideal"),
                "stragglers": more.pop("stragglers", []),
            },
            "workload": {
                "cost": {
                    "parameters": D,
                    "batch": 2,
                    "gradient": "1 s",
                    "bucket-count": buckets,
                    "update": update,
                },
                "objective": Layered() if objective is None else objective,
                "batches": more.pop("batches", "equal"),
            },
            "algorithm": algorithm,
            "compression": compression,
            "step-size": ETA,
            "budget": {"iterations": iterations},
            "seed": 3,
            **({"update": more.pop("update_rule")} if "update_rule" in more else {}),
            **more,
        }
    )


def timing(algorithm: object, compression: object, **cost: Any) -> Scenario:
    """Only the time: nothing is computed."""
    return Scenario(
        {
            "name": "timing",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 4},
                "device": "ideal",
                "transport": "ideal",
            },
            "workload": {"cost": {"parameters": 1000, "batch": 2, "gradient": "1 s", **cost}},
            "algorithm": algorithm,
            "compression": compression,
            "budget": {"iterations": 6},
        }
    )


def exact_gradient(of: Scenario) -> codecs.Gradient:
    import torch

    oracles = [oracle(of, rank) for rank in range(of.workers)]
    return lambda worker, x, t: oracles[worker].full_gradient(torch.from_numpy(x.copy())).numpy()


def draws(of: Scenario) -> codecs.Draws:
    """The uniform numbers of each worker, in the order of its messages."""
    table = [random_numbers(of.seed, rank, "codec", False).random((STEPS, D)) for rank in range(of.workers)]
    return lambda worker, t: table[worker][t]


def shared_indices(of: Scenario, count: int) -> Callable[[int, int], NDArray[np.int64]]:
    random = random_numbers(of.seed, 0, "codec", True)
    table = [np.sort(random.choice(D, count, replace=False)) for _ in range(STEPS)]
    return lambda worker, t: table[t]


def own_indices(of: Scenario, count: int) -> Callable[[int, int], NDArray[np.int64]]:
    streams = [random_numbers(of.seed, rank, "codec", False) for rank in range(of.workers)]
    table = [[np.sort(s.choice(D, count, replace=False)) for _ in range(STEPS)] for s in streams]
    return lambda worker, t: table[worker][t]


def factors(of: Scenario, columns: list[int], rank: int) -> Callable[[int, int], Array]:
    """The first Q of each matrix, by layer of SHAPES or of one square."""
    drawn = random_numbers(of.seed, 0, "codec", True).standard_normal(sum(columns) * rank)
    bounds = np.cumsum([0, *columns]) * rank
    return lambda layer, t: drawn[bounds[layer] : bounds[layer + 1]].reshape(-1, rank)


def expected(of: Scenario, name: str) -> Array:
    """The models that the recursion of a codec gives."""
    args = (exact_gradient(of), np.zeros(D), ETA, of.workers, STEPS)
    size = math.ceil(0.2 * D)
    feedback: Mapping[str, Callable[[], codecs.Codec]] = {
        "top-k": lambda: codecs.top_k(size),
        "random-k": lambda: codecs.random_k(shared_indices(of, size)),
        "random-k-own": lambda: codecs.random_k(own_indices(of, size)),
        "sign": lambda: codecs.scaled_sign,
    }
    if name in feedback:
        return codecs.error_feedback_run(*args, feedback[name](), units="gradient").models
    if name == "qsgd":
        return codecs.qsgd_run(*args, levels=4, uniform=draws(of), bucket=10).models
    if name == "terngrad":
        layers = [math.prod(shape) for shape in SHAPES]
        return codecs.terngrad_run(*args, uniform=draws(of), layers=layers).models
    if name == "dgc":
        return codecs.dgc_run(*args, density=lambda t: 0.2, momentum=0.7, threshold=3.0).models
    shapes, columns = (SHAPES, [6]) if name == "powersgd" else (((6, 6),), [6])
    return codecs.powersgd_run(*args, shapes=shapes, start=factors(of, columns, 2), units="gradient").models


CASES: dict[str, dict[str, Any]] = {
    "qsgd": {"codec": "qsgd", "levels": 4, "bucket": 10},
    "terngrad": {"codec": "terngrad"},
    "top-k": {"codec": "top-k", "density": 0.2},
    "random-k": {"codec": "random-k", "density": 0.2},
    "random-k-own": {"codec": "random-k", "density": 0.2, "alike": False},
    "dgc": {"codec": "dgc", "density": 0.2, "momentum": 0.7, "clip": 3.0},
    "sign": {"codec": "sign"},
    "powersgd": {"codec": "powersgd", "rank": 2},
    "powersgd-square": {"codec": "powersgd", "rank": 2, "matrices": "square"},
}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_compressed_synchronous_sgd_is_its_recursion(case: str, workers: int) -> None:
    made = scenario("allreduce-sgd", CASES[case], workers=workers)
    run = simulate(made)
    assert run.models is not None
    np.testing.assert_allclose(run.models, expected(made, case), rtol=0, atol=1e-12)
    uncompressed = simulate(made.vary(compression=None)).models
    assert uncompressed is not None
    assert np.abs(run.models - uncompressed).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_values_do_not_depend_on_timing(case: str) -> None:
    made = scenario("allreduce-sgd", CASES[case], buckets=3, update="1 s")
    slowed = made.vary(
        transport="gloo",
        stragglers=[{"kind": "lognormal", "sigma": 0.8}],
        algorithm={"name": "allreduce-sgd"},
    )
    one, other = simulate(made), simulate(slowed)
    assert one.models is not None
    assert other.models is not None
    assert one.models.tobytes() == other.models.tobytes()
    assert (one.models == one.models[0]).all()
    assert one.duration != other.duration


def test_each_bucket_has_a_residual_of_its_own() -> None:
    made = scenario("allreduce-sgd", CASES["top-k"], buckets=3)
    edges = [(0, 12), (12, 24), (24, 36)]

    def by_bucket(p: Array, worker: int, t: int) -> Array:
        return np.concatenate([codecs.only(p[a:b], codecs.largest(p[a:b], 3)) for a, b in edges])

    run = simulate(made)
    recursion = codecs.error_feedback_run(
        exact_gradient(made), np.zeros(D), ETA, 3, STEPS, by_bucket, units="gradient"
    )
    assert run.models is not None
    np.testing.assert_allclose(run.models, recursion.models, rtol=0, atol=1e-12)


def test_buckets_that_cut_a_matrix_keep_its_rows() -> None:
    # Three buckets of 12: the last has vectors alone, and the matrix of 4 x 6 falls into two of 2 x 6.
    made = scenario("allreduce-sgd", CASES["powersgd"], buckets=3, objective=Layered("float32"))
    run = simulate(made)
    elements = 2 * (2 * (2 + 6)) + 12
    assert sum(run.bytes_sent) == pytest.approx(STEPS * 2 * (3 - 1) * 4 * elements, rel=1e-12)


@pytest.mark.parametrize("case", ["top-k", "powersgd", "terngrad"])
def test_pipelined_gradients_are_compressed_in_order(case: str) -> None:
    """Pipe-SGD of width 2 applies the same means one iteration later."""
    made = scenario({"name": "pipe-sgd", "width": 1}, CASES[case])
    run = simulate(made)
    assert run.models is not None
    np.testing.assert_allclose(run.models, expected(made, case), rtol=0, atol=1e-12)
    late = simulate(scenario("pipe-sgd", CASES[case], stragglers=[{"kind": "lognormal", "sigma": 0.8}]))
    again = simulate(scenario("pipe-sgd", CASES[case]))
    assert late.models is not None
    assert again.models is not None
    assert late.models.tobytes() == again.models.tobytes()


# --- Models as differences from what all share --------------------------------------------------------------


def local_rounds(of: Scenario, period: int, overlapped: bool, density: float) -> Array:
    """Local SGD or CoCoD-SGD whose averages are anchor + mean of the largest of difference + residual."""
    gradient, n = exact_gradient(of), of.workers
    x, e = np.zeros((n, D)), np.zeros((n, D))
    anchor = np.zeros(D)
    k = math.ceil(density * D)

    def averaged(models: Array) -> Array:
        nonlocal anchor
        p = models - anchor + e
        sent = np.array([codecs.only(row, codecs.largest(row, k)) for row in p])
        e[:] = p - sent
        anchor = anchor + sent.mean(axis=0)
        return anchor

    for _ in range(STEPS // period):
        snapshot = x.copy()
        average = averaged(snapshot) if overlapped else None
        for _ in range(period):
            x = np.array([row - ETA * gradient(m, row, 0) for m, row in enumerate(x)])
        x = np.tile(averaged(x), (n, 1)) if average is None else x + average - snapshot
    return x


@pytest.mark.parametrize("density", [0.15, 1.0])
@pytest.mark.parametrize(("name", "overlapped"), [("local-sgd", False), ("cocod-sgd", True)])
def test_models_are_compressed_as_differences(name: str, overlapped: bool, density: float) -> None:
    codec = {"codec": "top-k", "density": density}
    made = scenario({"name": name, "period": 3}, codec)
    run = simulate(made)
    assert run.models is not None
    np.testing.assert_allclose(run.models, local_rounds(made, 3, overlapped, density), rtol=0, atol=1e-12)
    exact = simulate(made.vary(compression=None)).models
    assert exact is not None
    assert np.allclose(run.models, exact, rtol=0, atol=1e-12) == (density == 1.0)


@pytest.mark.parametrize(
    "algorithm",
    [
        "allreduce-sgd",
        "pipe-sgd",
        "local-sgd",
        "cocod-sgd",
        {"name": "slowmo", "period": 3},
        {"name": "diloco", "period": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("batches", ["equal", "proportional"])
def test_a_codec_that_loses_nothing_changes_nothing(algorithm: object, batches: str) -> None:
    slow = [{"kind": "persistent", "workers": [0], "slowdown": 3.0}]
    made = scenario(algorithm, {"codec": "top-k", "density": 1.0}, batches=batches, stragglers=slow)
    assert (made.shares is None) == (batches == "equal")
    run, exact = simulate(made), simulate(made.vary(compression=None))
    assert run.models is not None
    assert exact.models is not None
    np.testing.assert_allclose(run.models, exact.models, rtol=0, atol=1e-11)


def test_the_state_of_an_update_rule_is_averaged_as_it_is() -> None:
    algorithm = {"name": "local-sgd", "period": 3, "state": "averaged"}
    momentum = {"rule": "momentum"}
    codec = {"codec": "top-k", "density": 1.0}
    made = scenario(algorithm, codec, update_rule=momentum, objective=Layered("float32"))
    run, exact = simulate(made), simulate(made.vary(compression=None))
    assert run.models is not None
    assert exact.models is not None
    np.testing.assert_allclose(run.models, exact.models, rtol=0, atol=1e-5)
    rounds = STEPS // 3
    state = all_reduced(3, 4 * D)
    assert sum(run.bytes_sent) == pytest.approx(rounds * (all_gathered(3, codecs.sparse_bytes(D)) + state))


@pytest.mark.parametrize("algorithm", ["local-sgd", "cocod-sgd", "slowmo", {"name": "diloco", "period": 5}])
@pytest.mark.parametrize("case", ["qsgd", "top-k", "sign", "powersgd"])
def test_compressed_models_still_reach_the_optimum(algorithm: object, case: str) -> None:
    codec = {**CASES[case], **({"levels": 64} if case == "qsgd" else {})}
    made = scenario(algorithm, codec, iterations=400).vary(step_size=0.03)
    run, exact = simulate(made), simulate(made.vary(compression=None))
    assert run.models is not None
    assert exact.models is not None
    # Local steps on unequal data end beside the optimum even without a codec; the distance began as |b|.
    away = float(np.linalg.norm(run.models.mean(axis=0) - exact.models.mean(axis=0)))
    assert away < 0.05 * float(np.linalg.norm(exact.models[0]))


# --- Bytes and time -----------------------------------------------------------------------------------------


def all_gathered(workers: int, wire: int) -> int:
    """Bytes that all workers send to gather one message of each."""
    return workers * (workers - 1) * wire


def all_reduced(workers: int, nbytes: int) -> int:
    """Bytes that all workers send in an all-reduce."""
    return 2 * (workers - 1) * nbytes


K = math.ceil(0.2 * D)
BYTES: dict[str, Callable[[int], int]] = {
    "qsgd": lambda n: all_gathered(n, D * 4 // 8 + 4 * 4),
    "terngrad": lambda n: all_gathered(n, D * 2 // 8) + all_reduced(n, 4 * len(SHAPES)),
    "top-k": lambda n: all_gathered(n, codecs.sparse_bytes(K)),
    "random-k": lambda n: all_gathered(n, 4 * K),
    "random-k-own": lambda n: all_gathered(n, codecs.sparse_bytes(K)),
    "dgc": lambda n: all_gathered(n, codecs.sparse_bytes(K)),
    "sign": lambda n: signs.bytes_sent(D, n, "gather") + all_gathered(n, 4),
    "powersgd": lambda n: all_reduced(n, codecs.powersgd_bytes(SHAPES, 2)),
    "powersgd-square": lambda n: all_reduced(n, codecs.powersgd_bytes([(6, 6)], 2)),
}


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("transport", ["ideal", "nccl", "gloo"])
@pytest.mark.parametrize("case", CASES)
def test_bytes_over_all_workers_are_those_of_the_card(case: str, transport: str, workers: int) -> None:
    made = scenario(
        "allreduce-sgd", CASES[case], workers=workers, objective=Layered("float32"), transport=transport
    )
    run = simulate(made)
    assert sum(run.bytes_sent) == pytest.approx(STEPS * BYTES[case](workers), rel=1e-12)


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "pipe-sgd", "local-sgd", "cocod-sgd", "slowmo"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "powersgd"])
def test_a_run_without_numerics_sends_what_the_formula_says(algorithm: str, case: str) -> None:
    if case == "dgc" and algorithm not in ("allreduce-sgd", "pipe-sgd"):
        return
    run = simulate(timing(algorithm, CASES[case]))
    codec = run.scenario.codec
    assert codec is not None
    message = Message(1000, 4, members=4)
    messages = 6 if algorithm in ("allreduce-sgd", "pipe-sgd") else 2
    if codec.summable:
        each = all_reduced(4, codec.wire_bytes(message))
    else:
        each = all_gathered(4, codec.wire_bytes(message)) + all_reduced(4, 4 * codec.agreed_elements(message))
    assert sum(run.bytes_sent) == pytest.approx(messages * each, rel=1e-12)


def test_factors_follow_the_layers_of_the_cost_model() -> None:
    made = Scenario(
        {
            "name": "layers",
            "cluster": {"topology": {"builder": "switch", "gpus": 4}, "device": "v100-sxm2-16gb"},
            "workload": {"cost": {"model": "mlp-digits", "batch": 8}},
            "algorithm": "allreduce-sgd",
            "compression": {"codec": "powersgd", "rank": 4},
            "budget": {"iterations": 5},
        }
    )
    assert made.layers == ((32, 64), (32,), (10, 32), (10,))
    run = simulate(made)
    assert sum(run.bytes_sent) == pytest.approx(5 * all_reduced(4, codecs.powersgd_bytes(made.layers, 4)))


def test_encoding_and_decoding_take_time() -> None:
    # One second per model-sized pass over 1000 elements of 4 bytes.
    run = simulate(timing("allreduce-sgd", "sign", update="3 s"))
    codec = run.scenario.codec
    assert codec is not None
    spans = [s for s in run.timeline.spans if s.worker == 0 and s.operation == "compute"]
    wire = 4 + 4 * 32
    encode, decode = (2 + 2) * 4000 + wire, 4 * (wire + 2 * 4000) + 4000
    assert [s.end - s.start for s in spans[:2]] == pytest.approx([encode / 4000, decode / 4000])
    assert len(spans) == 2 * 6


def test_a_message_of_equal_shares_is_encoded_as_it_is() -> None:
    many = timing("allreduce-sgd", "sign", update="3 s").vary(
        {"cluster.topology": {"builder": "switch", "gpus": 49}, "budget": {"iterations": 1}}
    )
    assert 1 / 49 * 49 != 1
    assert not [s for s in simulate(many).timeline.spans if s.operation == "combine"]


def test_factors_take_time() -> None:
    """Half of the encoding before the first all-reduce, half before the second, the decoding behind it."""
    run = simulate(timing("allreduce-sgd", {"codec": "powersgd", "matrices": "square"}, update="3 s"))
    spans = [s for s in run.timeline.spans if s.worker == 0 and s.operation == "compute"]
    product = 4000 + 4 * 2 * (32 + 32)
    half, decode = (3 * 4000 + 2 * product) / 2, product + 2 * 4000
    assert [s.end - s.start for s in spans[:3]] == pytest.approx([half / 4000, half / 4000, decode / 4000])
    assert len(spans) == 3 * 6


def test_what_a_codec_keeps_counts_in_the_peak_memory() -> None:
    def extra(algorithm: str, codec: object) -> float:
        made = timing(algorithm, codec)
        return (simulate(made).peak_memory() - simulate(made.vary(compression=None)).peak_memory()) / 4000

    assert extra("allreduce-sgd", "qsgd") == 0
    assert extra("allreduce-sgd", "top-k") == 1
    assert extra("allreduce-sgd", "dgc") == 2
    assert extra("local-sgd", "qsgd") == 1
    assert extra("local-sgd", "sign") == 2


# --- Wrong use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "codec", "message"),
    [
        (
            {"name": "vrl-sgd"},
            "qsgd",
            "compression: vrl-sgd cannot be compressed: its corrections are exact differences between a "
            "model and the mean of all",
        ),
        ("local-sgd", "dgc", "compression: dgc is for gradients, but local-sgd averages models"),
        (
            "local-sgd",
            {"codec": "powersgd", "rank": 1},
            "compression: PowerSGD: the model's layers hold no matrix; with matrices: square each message "
            "is one",
        ),
        (
            "local-sgd",
            {"codec": "topk"},
            "compression.codec: unknown codec 'topk'; the nearest is 'top-k'",
        ),
        (
            "local-sgd",
            {"codec": "top-k", "densty": 0.1},
            "compression: unknown key 'densty'; the nearest is 'density'",
        ),
        (
            "local-sgd",
            {"codec": "top-k", "density": 2.0},
            "compression: density must be at most 1.0, got 2.0",
        ),
    ],
)
def test_refused(algorithm: object, codec: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        timing(algorithm, codec)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name",
    [name for name, entry in ALGORITHMS.items() if not entry.load().compresses],
)
def test_what_must_stay_exact_is_refused_with_a_reason_of_its_own(name: str) -> None:
    reason = ALGORITHMS[name].load().exact_because
    assert reason != Algorithm.exact_because
    inside = {"builder": "two-level", "hosts": 1, "gpus-per-host": 4, "inside": {"bandwidth": "1 GB/s"}}
    network = {"bandwidth": "1 GB/s"}
    made = timing("local-sgd", None).vary({"cluster.topology": {**inside, "network": network}})
    with pytest.raises(BadInput) as caught:
        made.vary(algorithm=name, compression="qsgd")
    assert str(caught.value) == f"compression: {name} cannot be compressed: {reason}"


def test_an_algorithm_to_compare_must_be_compressible_too() -> None:
    made = timing("local-sgd", "qsgd")
    with pytest.raises(BadInput, match="compression: d-psgd cannot be compressed: neighbours must see"):
        made.vary(compare=["d-psgd"])
    variants = made.vary(compare=["allreduce-sgd"]).variants()
    assert [variant.codec is not None for variant in variants] == [True, True]


def test_the_codec_is_part_of_what_a_scenario_is() -> None:
    made = timing("local-sgd", "top-k")
    resolved = made.resolved()
    assert resolved["compression"] == {"codec": "top-k", "density": 0.01, "error-feedback": True}
    assert Scenario(resolved).digest() == made.digest()
    plain = made.vary(compression=None)
    assert "compression" not in plain.resolved()
    assert plain.digest() != made.digest()


@dataclass(frozen=True)
class Careless(Algorithm):
    """Sends as it is told to, whatever the rules."""

    compresses: ClassVar[Literal["gradients"]] = "gradients"

    fault: str = "none"

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            if self.fault == "early":
                await worker.all_reduce(x[:1])
            gradient = await worker.gradient(x)
            mean = worker.all_reduce(gradient)
            if self.fault == "twice":
                await worker.all_reduce(gradient)
            if self.fault == "between":
                # Called after a mean that is still being encoded; both must come in one order.
                largest = worker.all_reduce(gradient, "max")
                gathered = worker.all_gather(gradient)
                all_of_them: Any = await gathered
                assert len(all_of_them) == worker.world_size
                for part in all_of_them:
                    assert bool((await largest >= part).all())
            if self.fault != "forgotten":
                gradient = await mean
            gradient = gradient.mul_(1.0) if self.fault == "in place" else gradient
            x = await worker.update(x, gradient)
            worker.report(x)


def test_faults_of_an_algorithm_are_named() -> None:
    with pytest.raises(
        Exception, match=r"worker [0-2] ended, but nobody awaited the task that it started in"
    ):
        simulate(scenario(Careless(fault="forgotten"), "top-k"))
    with pytest.raises(
        Exception, match=r"worker [0-2] sent 36 elements, but only 0 of its gradient were left"
    ):
        simulate(scenario(Careless(fault="twice"), "top-k"))
    with pytest.raises(
        Exception, match=r"worker [0-2] sent 1 elements, but only 0 of its gradient were left"
    ):
        simulate(scenario(Careless(fault="early"), "top-k", iterations=1))


def test_collectives_come_in_one_order() -> None:
    codec = CASES["terngrad"]
    slow = [{"kind": "lognormal", "sigma": 1.0}, {"kind": "persistent", "workers": [1], "slowdown": 9.0}]
    plain = simulate(scenario(Careless(), codec))
    for fault in ("between", "in place"):
        run = simulate(scenario(Careless(fault=fault), codec, update="1 s", stragglers=slow))
        assert run.models is not None
        assert plain.models is not None
        assert run.models.tobytes() == plain.models.tobytes()


def test_an_exact_collective_waits_for_the_means_before_it() -> None:
    run = simulate(scenario(Careless(fault="between"), CASES["top-k"], update="1 s"))
    spans = [s for s in run.timeline.spans if s.worker == 0 and s.kind == "transfer"]
    sent = [(s.operation, s.nbytes) for s in sorted(spans, key=lambda s: s.start)]
    wire, gradient = 2 * K * (4 + 4), 2 * 4 * D
    assert sent == STEPS * [
        ("all_gather", pytest.approx(wire)),
        ("all_reduce", pytest.approx(2 * gradient / 3)),
        ("all_gather", pytest.approx(gradient)),
    ]


@dataclass(frozen=True)
class Evaluated(Algorithm):
    """Evaluates the problem in its own way, at its first tensor."""

    compresses: ClassVar[Literal["gradients"]] = "gradients"

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            gradient = await worker.evaluate(lambda x, other: x - 1.0, x, x[:1])
            x = await worker.update(x, await worker.all_reduce(gradient))
            worker.report(x)


def test_what_is_evaluated_is_compressed_too() -> None:
    run = simulate(scenario(Evaluated(), {"codec": "top-k", "density": 1.0}))
    assert run.models is not None
    np.testing.assert_allclose(run.models, 1 - (1 - ETA) ** STEPS, rtol=0, atol=1e-12)
    assert run.iterations == (STEPS,) * 3
    assert run.evaluations == (STEPS,) * 3


@pytest.mark.parametrize("case", ["terngrad", "powersgd", "top-k"])
def test_a_slow_worker_does_not_change_the_order(case: str) -> None:
    """A fast worker is at its next mean while a slow one has not yet joined the last."""
    algorithm = {"name": "pipe-sgd", "width": 3}
    slow = [{"kind": "persistent", "workers": [0], "slowdown": 7.0}]
    slowed = simulate(scenario(algorithm, CASES[case], update="0.1 s", stragglers=slow, batches="equal"))
    even = simulate(scenario(algorithm, CASES[case]))
    assert slowed.models is not None
    assert even.models is not None
    assert slowed.models.tobytes() == even.models.tobytes()


@dataclass(frozen=True)
class TwoMeans(Algorithm):
    """Has two means of models under way at once."""

    compresses: ClassVar[Literal["models"]] = "models"

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            y = await worker.update(x, await worker.gradient(x))
            means = [worker.all_reduce(y), worker.all_reduce(x)]
            y, x = [await mean for mean in means]
            x = await worker.combine((0.5, x), (0.5, y))
            worker.report(x)


def test_the_anchor_is_the_mean_before_although_it_is_still_under_way() -> None:
    made = scenario(TwoMeans(), {"codec": "top-k", "density": 1.0}, update="0.1 s")
    run, exact = simulate(made), simulate(made.vary(compression=None))
    assert run.models is not None
    assert exact.models is not None
    np.testing.assert_allclose(run.models, exact.models, rtol=0, atol=1e-12)
