"""Compressed messages that are no means: gradients pushed to servers, and gossip by differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from algorithms import Algorithm
from algorithms.algorithm import Channel, Compresses, Plan
from algorithms.codecs import CODECS, Codec, Message
from algorithms.codecs.qsgd import QSGD
from algorithms.codecs.single import decoded, encoded, wire_bytes
from algorithms.codecs.terngrad import TernGrad
from algorithms.codecs.topk import TopK
from algorithms.worker import Worker
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.plan import random_numbers
from simulator.run import Run
from simulator.scenario import Scenario
from tests.algorithms.codecs.test_compressing import (
    CASES,
    ETA,
    SHAPES,
    STEPS,
    D,
    Layered,
    exact_gradient,
    scenario,
    timing,
)
from tests.algorithms.recursions import codecs, decentralised, servers, signs
from tests.algorithms.recursions.notation import Array
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.test_events import UNEVEN, check_a_psgd
from tests.algorithms.training import assert_equal, models
from tests.algorithms.training import scenario as trained_scenario

DENSITY = 0.2
PUSHED = {name: case for name, case in CASES.items() if case["codec"] != "powersgd"}
GOSSIPED = {name: case for name, case in PUSHED.items() if name != "dgc"}


def final(run: Run) -> Array:
    assert run.models is not None
    return np.asarray(run.models, dtype=np.float64)


def cuts(count: int, elements: int = D) -> list[tuple[int, int]]:
    """Return where the slices of so many servers lie."""
    edges = [elements * k // count for k in range(count + 1)]
    return list(pairwise(edges))


def layers_within(low: int, high: int) -> list[int]:
    """Return the lengths of what a slice holds of each layer."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES]).tolist()
    edges = [low, *(end for end in ends if low < end < high), high]
    return np.diff(edges).tolist()


def ternary(v: Array, uniform: Array, layers: Sequence[int]) -> Array:
    """s sign(v) b of each layer, clipped at 2.5 deviations; s is the largest magnitude of this worker."""
    said, low = np.zeros_like(v), 0
    for length in layers:
        g = codecs.clipped(v[low : low + length], 2.5)
        s = np.abs(g).max()
        said[low : low + length] = s * np.sign(g) * (uniform[low : low + length] * s < np.abs(g))
        low += length
    return said


# --- What is drawn for a message ----------------------------------------------------------------------------


def drawn_by_workers(
    of: Scenario, slices: Sequence[tuple[int, int]], draw: Callable[[np.random.Generator, int], NDArray[Any]]
) -> list[list[list[NDArray[Any]]]]:
    """Return by worker, message and slice what each worker draws for itself, slice after slice."""
    streams = [random_numbers(of.seed, rank, "codec", False) for rank in range(of.workers)]
    return [[[draw(s, high - low) for low, high in slices] for _ in range(STEPS)] for s in streams]


def uniforms(stream: np.random.Generator, length: int) -> NDArray[Any]:
    return stream.random(length)


def chosen(stream: np.random.Generator, length: int) -> NDArray[Any]:
    return np.sort(stream.choice(length, math.ceil(DENSITY * length), replace=False))


def chosen_alike(of: Scenario, low: int, high: int, number: int) -> NDArray[Any]:
    """Return the coordinates that all workers choose for the same message of a slice."""
    seed = int(random_numbers(of.seed, 0, "codec", True).integers(2**63))
    return chosen(np.random.default_rng([seed, low, number]), high - low)


def arrivals(of: Scenario, name: str, slices: Sequence[tuple[int, int]]) -> servers.Arrives:
    """Return what servers make of what is pushed: each worker has a memory for each slice."""
    kept: dict[tuple[int, int], Array] = {}
    counts: dict[tuple[int, int], int] = {}
    draw = chosen if name == "random-k-own" else uniforms
    table = drawn_by_workers(of, slices, draw)

    def said(v: Array, i: int, s: int, n: int) -> Array:
        low, high = slices[s]
        if name == "qsgd":
            return codecs.qsgd(v, 4, table[i][n][s], bucket=10)
        if name == "terngrad":
            return ternary(v, table[i][n][s], layers_within(low, high))
        if name == "random-k":
            return codecs.only(v, chosen_alike(of, low, high, n))
        if name == "random-k-own":
            return codecs.only(v, table[i][n][s])
        if name == "sign":
            return codecs.scaled_sign(v, i, n)
        return codecs.only(v, codecs.largest(v, math.ceil(DENSITY * len(v))))

    def deep(v: Array, i: int, s: int) -> Array:
        """Momentum 0.7, a threshold of 3 for the mean, masking."""
        v = v * min(1.0, 3.0 / math.sqrt(of.workers) / float(np.linalg.norm(v)))
        u, total = kept.get((i, s), np.zeros((2, len(v))))
        u = 0.7 * u + v
        total = total + u
        indices = codecs.largest(total, math.ceil(DENSITY * len(v)))
        out = codecs.only(total, indices)
        u[indices] = total[indices] = 0.0
        kept[i, s] = np.array([u, total])
        return out

    def arrives(i: int, s: int, v: Array) -> Array:
        n = counts[i, s] = counts.get((i, s), -1) + 1
        if name == "dgc":
            return deep(v, i, s)
        if name in ("qsgd", "terngrad"):
            return said(v, i, s, n)
        p = v + kept.get((i, s), np.zeros_like(v))
        out = said(p, i, s, n)
        kept[i, s] = p - out
        return out

    return arrives


# --- Pushes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("case", PUSHED)
def test_compressed_pushes_are_their_recursion(case: str, workers: int, count: int) -> None:
    made = scenario({"name": "parameter-server", "servers": count}, PUSHED[case], workers=workers)
    slices = cuts(count)
    expected = servers.synchronous_server(
        exact_gradient(made),
        np.zeros(D),
        ETA,
        workers,
        STEPS,
        shards=[np.arange(low, high) for low, high in slices],
        arrives=arrivals(made, case, slices),
    )
    run = simulate(made)
    assert_equal(final(run), expected)
    assert np.abs(final(run) - final(simulate(made.vary(compression=None)))).max() > 1e-3


@pytest.mark.parametrize("case", PUSHED)
def test_pushes_do_not_depend_on_timing(case: str) -> None:
    made = scenario({"name": "parameter-server", "servers": 2}, PUSHED[case])
    slow = [{"kind": "lognormal", "sigma": 0.8}, {"kind": "persistent", "workers": [1], "slowdown": 5.0}]
    slowed = scenario({"name": "parameter-server", "servers": 2}, PUSHED[case], update="1 s", stragglers=slow)
    one, other = simulate(made), simulate(slowed)
    assert final(one).tobytes() == final(other).tobytes()
    assert one.duration != other.duration


def test_unequal_batches_weight_what_is_pushed() -> None:
    slow = [{"kind": "persistent", "workers": [0], "slowdown": 3.0}]
    made = scenario("parameter-server", PUSHED["top-k"], batches="proportional", stragglers=slow)
    assert made.shares is not None
    expected = servers.synchronous_server(
        exact_gradient(made),
        np.zeros(D),
        ETA,
        3,
        STEPS,
        shares=made.shares,
        arrives=arrivals(made, "top-k", [(0, D)]),
    )
    assert_equal(final(simulate(made)), expected)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_asynchronous_pushes_are_replayed_by_their_recursion(count: int, density: float) -> None:
    kept: dict[tuple[int, int], Array] = {}

    def arrives(i: int, s: int, v: Array) -> Array:
        p = v + kept.get((i, s), np.zeros_like(v))
        out = codecs.only(p, codecs.largest(p, math.ceil(density * len(v))))
        kept[i, s] = p - out
        return out

    check_a_psgd(4, count, slow=UNEVEN, arrives=arrives, compression={"codec": "top-k", "density": density})
    assert (max(np.abs(e).max() for e in kept.values()) > 0) == (density < 1)


@pytest.mark.parametrize("algorithm", ["parameter-server", "a-psgd"])
def test_a_codec_that_loses_nothing_pushes_the_same(algorithm: str) -> None:
    made = scenario({"name": algorithm, "servers": 2}, {"codec": "top-k", "density": 1.0})
    assert_equal(final(simulate(made)), final(simulate(made.vary(compression=None))))


# --- Gossip -------------------------------------------------------------------------------------------------


def gossip_codec(of: Scenario, name: str) -> Callable[[Array, int, int], Array]:
    """Return the codec of CHOCO-SGD's recursion, a contraction."""
    own = drawn_by_workers(of, [(0, D)], chosen if name == "random-k-own" else uniforms)
    alike = random_numbers(of.seed, 0, "codec", True)
    common = [chosen(alike, D) for _ in range(STEPS)]
    size = math.ceil(DENSITY * D)

    def qsgd(v: Array, i: int, t: int) -> Array:
        bound = min(10 / 4**2, math.sqrt(10) / 4)
        return codecs.qsgd(v, 4, own[i][t][0], bucket=10) / (1 + bound)

    def terngrad(v: Array, i: int, t: int) -> Array:
        return ternary(v, own[i][t][0], layers_within(0, D)) / (1 + math.sqrt(24))

    found: dict[str, Callable[[Array, int, int], Array]] = {
        "qsgd": qsgd,
        "terngrad": terngrad,
        "top-k": lambda v, i, t: codecs.only(v, codecs.largest(v, size)),
        "random-k": lambda v, i, t: codecs.only(v, common[t]),
        "random-k-own": lambda v, i, t: codecs.only(v, own[i][t][0]),
        "sign": codecs.scaled_sign,
    }
    return found[name]


CHOCO = {"name": "choco-sgd", "gamma": 0.3}


def gossiping(case: str, workers: int = 4, graph: str = "ring", **more: Any) -> Scenario:
    graph = graph if workers > 2 else "complete"
    gossip = {"graph": graph, "mixing": "metropolis-hastings"}
    return scenario(CHOCO, PUSHED[case], workers=workers, gossip=gossip, **more)


@pytest.mark.parametrize(("workers", "graph"), [(1, "ring"), (2, "ring"), (3, "star"), (5, "ring")])
@pytest.mark.parametrize("case", GOSSIPED)
def test_compressed_gossip_is_its_recursion(case: str, workers: int, graph: str) -> None:
    made = gossiping(case, workers, graph)
    expected = decentralised.choco_sgd(
        exact_gradient(made), np.zeros(D), ETA, made.mixing, STEPS, gamma=0.3, Q=gossip_codec(made, case)
    )
    run = simulate(made)
    assert_equal(final(run), expected)
    if workers > 1:
        assert np.abs(final(run) - final(simulate(made.vary(compression=None)))).max() > 1e-3


@pytest.mark.parametrize("case", GOSSIPED)
def test_gossip_does_not_depend_on_timing(case: str) -> None:
    slow = [{"kind": "lognormal", "sigma": 0.8}, {"kind": "persistent", "workers": [1], "slowdown": 5.0}]
    one, other = simulate(gossiping(case)), simulate(gossiping(case, update="1 s", stragglers=slow))
    assert final(one).tobytes() == final(other).tobytes()
    assert one.duration != other.duration


FULL = {"codec": "top-k", "density": 1.0}
LOSSY = {
    "largest": {"codec": "top-k", "density": 0.2},
    "sign": {"codec": "sign"},
    "levels": {"codec": "qsgd", "levels": 7, "bucket": 0},
}


def choco(problem: Quadratics, compression: Any, iterations: int, gamma: float = 0.2, **more: Any) -> Array:
    algorithm = {"name": "choco-sgd", "gamma": gamma}
    more.setdefault("gossip", {"graph": "ring"})
    return models(simulate(trained_scenario(algorithm, problem, iterations, compression=compression, **more)))


@pytest.mark.parametrize("compression", LOSSY.values(), ids=LOSSY)
def test_gossip_preserves_the_mean_whatever_is_lost(compression: Any) -> None:
    problem = Quadratics(4, 10, ripple=1.0)
    ended = choco(problem, compression, 12, slow=UNEVEN)
    assert_equal(ended.mean(0), problem.x0 - 0.1 * sum(gradient for _, _, gradient in problem.log) / 4)
    assert np.abs(ended - ended.mean(0)).max() > 0.1


@pytest.mark.parametrize("compression", LOSSY.values(), ids=LOSSY)
def test_compressed_gossip_ends_where_exact_gossip_does(compression: Any) -> None:
    problem = Quadratics(4, 10)
    assert_equal(choco(problem, FULL, 12), choco(problem, None, 12))
    exact, lossy = (choco(problem, given, 250) for given in (None, compression))
    np.testing.assert_allclose(lossy, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("compression", LOSSY.values(), ids=LOSSY)
def test_compressed_gossip_comes_to_the_optimum_of_unlike_workers(compression: Any) -> None:
    """As the step size falls; with a constant one it stops beside it."""
    problem = Quadratics(4, 10)
    far = np.abs(problem.x0 - problem.optimum()).max()
    cosine = {"rule": "sgd", "schedule": {"kind": "cosine", "final": 1e-3}}
    constant = choco(problem, compression, 200, gamma=0.4)
    falling = choco(problem, compression, 200, gamma=0.4, update=cosine)
    assert np.abs(constant - problem.optimum()).max() > 0.3 * far
    assert np.abs(falling - problem.optimum()).max() < 0.04 * far


def lost(made: Codec, elements: int, factor: float) -> float:
    """Return the mean of |c C(p) - p|^2 / |p|^2 over draws."""
    import torch

    random = np.random.default_rng(5)
    message = Message(elements, 8)
    parts = []
    for _ in range(60):
        p = torch.from_numpy(random.normal(size=elements))
        drawn = made.draw(message, random)
        wire, _ = encoded(made, p, message, drawn, None)
        assert wire.nbytes == wire_bytes(made, message)
        said: Any = decoded(made, wire, message, torch.float64, drawn)
        parts.append(float((factor * said - p).square().sum() / p.square().sum()))
    return float(np.mean(parts))


@pytest.mark.parametrize("made", [QSGD(), QSGD(levels=1, bucket=0), TernGrad(clip=0.0)], ids=repr)
def test_rounding_without_bias_is_scaled_to_a_contraction(made: Codec) -> None:
    """As it is it loses more than there was, and replicas would run away from their models."""
    elements = 512
    factor = made.contraction(Message(elements))
    assert lost(made, elements, 1.0) > 1.2
    # |c Q - 1|^2 = (1 - c)^2 + c^2 w <= 1 - c for a variance of at most w = 1 / c - 1
    assert lost(made, elements, factor) < 1 - factor + 0.02


@pytest.mark.parametrize("name", sorted(set(CODECS) - {"qsgd", "terngrad", "powersgd"}))
def test_other_codecs_are_contractions_as_they_are(name: str) -> None:
    made = CODECS[name].load()()
    assert made.contraction(Message(512)) == 1.0
    assert lost(made, 512, 1.0) < 1


@dataclass(frozen=True)
class Numbered(TopK):
    """Notes the numbers of the messages that it encodes."""

    numbers: ClassVar[list[int]] = []

    def encode(self, x: Any, message: Message, drawn: Any = None, agreed: Any = None) -> Any:
        self.numbers.append(message.number)
        return super().encode(x, message, drawn, agreed)


@pytest.mark.parametrize("algorithm", ["parameter-server", "choco-sgd", "allreduce-sgd", "local-sgd"])
def test_messages_are_numbered(algorithm: str) -> None:
    Numbered.numbers.clear()
    gossip = {"gossip": {"graph": "ring"}} if algorithm == "choco-sgd" else {}
    simulate(scenario(algorithm, Numbered(), **gossip))
    messages = STEPS // 4 if algorithm == "local-sgd" else STEPS
    assert sorted(Numbered.numbers) == sorted([*range(messages)] * 3)


# --- Bytes, time and memory ---------------------------------------------------------------------------------


def wire(case: str, length: int, layers: int) -> int:
    """Return the bytes of a message of so many elements of fp32 and so many layers."""
    k = math.ceil(DENSITY * length)
    sizes = {
        "qsgd": math.ceil(length * 4 / 8) + 4 * math.ceil(length / 10),
        "terngrad": math.ceil(length * 2 / 8) + 4 * layers,
        "random-k": 4 * k,
        "sign": signs.pack(np.ones(length)).nbytes + 4,
    }
    return sizes.get(case, codecs.sparse_bytes(k))


@pytest.mark.parametrize(("workers", "count"), [(2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("case", PUSHED)
def test_bytes_of_pushes(case: str, workers: int, count: int) -> None:
    """Messages up, the exact model down, nothing between a server and the worker that it is a task of."""
    algorithm = {"name": "parameter-server", "servers": count}
    made = scenario(algorithm, PUSHED[case], workers=workers, objective=Layered("float32"))
    each = sum(
        wire(case, high - low, len(layers_within(low, high))) + 4 * (high - low) for low, high in cuts(count)
    )
    assert sum(simulate(made).bytes_sent) == pytest.approx(STEPS * (workers - 1) * each, rel=1e-12)


@pytest.mark.parametrize("case", GOSSIPED)
def test_bytes_of_gossip(case: str) -> None:
    run = simulate(gossiping(case, objective=Layered("float32")))
    each = wire(case, D, len(SHAPES))
    assert run.bytes_sent == pytest.approx([STEPS * 2 * each] * 4, rel=1e-12)


@pytest.mark.parametrize("algorithm", ["parameter-server", "a-psgd", "choco-sgd"])
@pytest.mark.parametrize("case", PUSHED)
def test_messages_without_numerics_have_the_size_of_the_formula(algorithm: str, case: str) -> None:
    if case == "dgc" and algorithm == "choco-sgd":
        return
    run = simulate(timing(algorithm, PUSHED[case]))
    message = wire(case, 1000, 1)
    if algorithm == "choco-sgd":
        expected = 6 * 4 * 2 * message
    else:
        expected = 6 * 3 * (message + 4000) + (3 * 4000 if algorithm == "a-psgd" else 0)
    assert sum(run.bytes_sent) == pytest.approx(expected, rel=1e-12)


def test_encoding_and_decoding_of_messages_take_time() -> None:
    # One second per model-sized pass over 1000 elements of 4 bytes.
    def passes(algorithm: str, codec: str) -> list[float]:
        made = timing(algorithm, codec, update="3 s").vary(workers=1)
        spans = [s for s in simulate(made).timeline.spans if s.operation == "compute"]
        return [span.end - span.start for span in spans]

    message = 4 + 4 * 32
    encode, decode = (2 + 2) * 4000 + message, message + 2 * 4000 + 4000
    assert passes("parameter-server", "sign") == pytest.approx(6 * [encode / 4000, decode / 4000])
    # Gossip keeps no residual, and a worker decodes its own message.
    assert passes("choco-sgd", "sign") == pytest.approx(6 * [(encode - 8000) / 4000, decode / 4000])
    # Clipping reads and writes three times; its scale goes with the message.
    ternary_encode = 3 * 4000 + 4000 + 250
    assert passes("a-psgd", "terngrad")[0] == pytest.approx(ternary_encode / 4000)


def test_what_is_kept_for_messages_counts_in_the_peak_memory() -> None:
    def extra(algorithm: str, codec: object) -> float:
        made = timing(algorithm, codec)
        return (simulate(made).peak_memory() - simulate(made.vary(compression=None)).peak_memory()) / 4000

    assert extra("parameter-server", "qsgd") == 0
    assert extra("parameter-server", "top-k") == 1
    assert extra("a-psgd", "dgc") == 2
    assert extra("choco-sgd", "top-k") == 0


# --- Wrong use ----------------------------------------------------------------------------------------------

FACTORS = {"codec": "powersgd", "matrices": "square"}


@pytest.mark.parametrize(
    ("algorithm", "codec", "message"),
    [
        (
            "parameter-server",
            FACTORS,
            "compression: powersgd is for means over all workers, whose factors are summed, but "
            "parameter-server sends pushed gradients one by one",
        ),
        (
            "choco-sgd",
            FACTORS,
            "compression: powersgd is for means over all workers, whose factors are summed, but choco-sgd "
            "sends model differences one by one",
        ),
        ("choco-sgd", "dgc", "compression: dgc is for gradients, but choco-sgd sends differences of models"),
        (
            "d-psgd",
            "sign",
            "compression: d-psgd cannot be compressed: neighbours must see exact models to mix them; "
            "choco-sgd is the gossip that takes a codec",
        ),
    ],
)
def test_refused(algorithm: str, codec: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        timing(algorithm, codec)
    assert str(caught.value) == message


@dataclass(frozen=True)
class ToZero(Algorithm):
    """Sends each gradient to worker 0 twice at once, an empty message behind, and a model as it is."""

    compresses: ClassVar[Compresses] = "pushed gradients"

    fault: str = "none"

    def plan(self, world_size: int, graph: object) -> Plan:
        names = ("gradient", "exact")
        return Plan({}, tuple((rank, 0, name) for name in names for rank in range(world_size)))

    def pushed(self, channel: Channel, elements: int, world_size: int) -> tuple[int, int] | None:
        return (0, elements) if channel[2] == "gradient" else None

    async def run(self, worker: Worker) -> None:
        x = start = worker.initial_model()
        while worker.running:
            gradient: Any = await worker.gradient(x)
            length = len(gradient) - 1 if self.fault == "short" else len(gradient)
            sending = [worker.send(part, 0, "gradient") for part in (gradient[:length], gradient, x[:0])]
            sending.append(worker.send(start + worker.rank, 0, "exact"))
            gradient += 1.0  # what is on its way was taken as it was
            if worker.rank == 0:
                for rank in range(worker.world_size):
                    arriving = [worker.recv(rank, "gradient") for _ in range(3)]
                    first, second, last = [await one for one in arriving]
                    # What was not sent of the first is part of the second.
                    assert [int((one != 0).sum()) for one in (first, second)] == [8, 8]
                    assert bool((first != second).any())
                    assert len(last) == 0
                    assert bool((await worker.recv(rank, "exact") == start + rank).all())
            for one in sending:
                await one
            x = await worker.update(x, gradient)
            worker.report(x)


def test_the_messages_of_a_channel_stay_in_order() -> None:
    slow = [{"kind": "lognormal", "sigma": 1.0}]
    simulate(scenario(ToZero(), PUSHED["top-k"], update="1 s", stragglers=slow))


def test_a_message_of_another_length_is_named() -> None:
    with pytest.raises(
        Exception,
        match=r"worker [0-2] sent 35 elements to worker 0 on channel 'gradient', whose messages are "
        r"gradients of 36",
    ):
        simulate(scenario(ToZero(fault="short"), PUSHED["top-k"]))
