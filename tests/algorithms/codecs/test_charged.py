"""Where a small objective stands for a large model, messages are charged as that model's own.

A run without numerics handles messages of the cost model's size and needs no rule; so it is what a run of a
small objective is held against: bytes, and, where the result does not depend on timing, every span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch

from algorithms import Algorithm
from algorithms.codecs import CODECS, Message
from algorithms.worker import Outline, Worker
from simulator.engine.simulate import simulate
from simulator.execution.execute import execute
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from tests.algorithms.codecs.test_compressing import D, Layered

MODEL: dict[str, Any] = {"model": "resnet18-cifar", "batch": 8}
SMALL_BUCKETS = {"bucket-size": "300 kB", "first-bucket": "30 kB"}
ITERATIONS = 4

CODEC: dict[str, dict[str, Any]] = {name: {"codec": name} for name in CODECS}
CODEC["dgc"] |= {"stage": 1, "clip": 1.0}  # a density of its own for every message
CODEC["powersgd-square"] = {"codec": "powersgd", "matrices": "square"}

MEANS: dict[str, Any] = {
    "allreduce-sgd": "allreduce-sgd",
    "allreduce-sgd, whole": {"name": "allreduce-sgd", "overlap": False},
    "pipe-sgd": "pipe-sgd",
    "local-sgd": {"name": "local-sgd", "period": 2},
    "cocod-sgd": {"name": "cocod-sgd", "period": 2},
    "slowmo": {"name": "slowmo", "period": 2},
    "diloco": {"name": "diloco", "period": 2},
}
SINGLE: dict[str, Any] = {
    "parameter-server": "parameter-server",
    "parameter-server, two": {"name": "parameter-server", "servers": 2},
    "choco-sgd": "choco-sgd",
    "a-psgd": "a-psgd",
}


def scenario(algorithm: object, codec: object, objective: object, cost: Any = None, **more: Any) -> Scenario:
    """A timing-only scenario, or one with an objective, of the same cost model."""
    numerics = {} if objective is None else {"step-size": 0.05}
    compression = {} if codec is None else {"compression": codec}
    return Scenario(
        {
            "name": "charged",
            "cluster": {"topology": {"builder": "switch", "gpus": 3}, "device": "a100-sxm-40gb"},
            "workload": {
                "cost": {**MODEL, **(cost or {})},
                **({} if objective is None else {"objective": objective}),
            },
            "algorithm": algorithm,
            **compression,
            "budget": {"iterations": ITERATIONS},
            "seed": 1,
            **numerics,
            **more,
        }
    )


def pair(algorithm: object, codec: object, cost: Any = None, **more: Any) -> tuple[Run, Run]:
    """The same with a tiny objective and without numerics."""
    if algorithm == "choco-sgd":
        more = {"gossip": {"graph": "ring"}, **more}
    whole, timing = (simulate(scenario(algorithm, codec, o, cost, **more)) for o in (Layered(), None))
    assert whole.models is not None
    assert whole.models.shape[1] == D
    assert timing.models is None
    return whole, timing


def assert_same_times(whole: Run, timing: Run) -> None:
    assert whole.duration == pytest.approx(timing.duration, rel=1e-9)
    one, other = whole.timeline.spans, timing.timeline.spans
    assert [(s.worker, s.kind, s.operation) for s in one] == [(s.worker, s.kind, s.operation) for s in other]
    assert [s.start for s in one] == pytest.approx([s.start for s in other], rel=1e-9, abs=1e-12)
    assert [s.end for s in one] == pytest.approx([s.end for s in other], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("algorithm", MEANS)
@pytest.mark.parametrize("codec", CODEC)
def test_compressed_means_are_those_of_the_cost_model(codec: str, algorithm: str) -> None:
    if codec == "dgc" and algorithm not in ("allreduce-sgd", "allreduce-sgd, whole", "pipe-sgd"):
        return
    whole, timing = pair(MEANS[algorithm], CODEC[codec])
    assert whole.bytes_sent == timing.bytes_sent
    assert_same_times(whole, timing)


@pytest.mark.parametrize("algorithm", SINGLE)
@pytest.mark.parametrize("codec", [codec for codec in CODEC if "powersgd" not in codec])
def test_compressed_messages_are_those_of_the_cost_model(codec: str, algorithm: str) -> None:
    if codec == "dgc" and algorithm == "choco-sgd":
        return
    whole, timing = pair(SINGLE[algorithm], CODEC[codec])
    # Models that are pulled are charged in proportion, to the last bits of a quotient.
    assert sum(whole.bytes_sent) == pytest.approx(sum(timing.bytes_sent), rel=1e-12)
    if algorithm == "choco-sgd":
        assert whole.bytes_sent == timing.bytes_sent
    if algorithm in ("choco-sgd", "parameter-server"):
        assert_same_times(whole, timing)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float64"), ("bf16", "float32")])
@pytest.mark.parametrize("codec", CODEC)
def test_a_model_of_the_same_length_stands_for_another_type(codec: str, precision: str, dtype: str) -> None:
    """What is compressed is charged in the type in which what is not compressed is charged."""
    cost = {"model": "mlp-digits", "precision": precision}
    objective = {"kind": "mlp", "data": "digits", "dtype": dtype}
    whole, timing = (simulate(scenario("allreduce-sgd", CODEC[codec], o, cost)) for o in (objective, None))
    assert whole.models is not None
    assert whole.models.shape[1] == whole.scenario.cost.parameters
    assert whole.bytes_sent == timing.bytes_sent
    assert_same_times(whole, timing)


@pytest.mark.parametrize("tie", ["plus", "zero", "random"])
@pytest.mark.parametrize("meet", ["sharded", "server", "gather"])
def test_signs_are_those_of_the_cost_model(meet: str, tie: str) -> None:
    """What signSGD packs by itself is no other than what a codec packs."""
    whole, timing = pair({"name": "signsgd", "meet": meet, "tie": tie}, None)
    assert whole.bytes_sent == timing.bytes_sent
    assert_same_times(whole, timing)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("codec", CODEC)
def test_a_bucket_without_an_element_in_hand_is_a_message_all_the_same(codec: str, precision: str) -> None:
    cost = {**SMALL_BUCKETS, "precision": precision}
    made = scenario("allreduce-sgd", CODEC[codec], Layered(), cost)
    from simulator.plan import outline

    found = outline(made)
    assert found is not None
    assert any(low == high for low, high in found.cuts)
    assert any(low != high for low, high in found.cuts)
    whole, timing = pair("allreduce-sgd", CODEC[codec], cost)
    assert whole.bytes_sent == timing.bytes_sent
    assert_same_times(whole, timing)


@pytest.mark.parametrize("workers", [1, 3])
def test_empty_buckets_carry_nothing(workers: int) -> None:
    """What is learnt in many buckets, most of them empty, is what is learnt without a codec that loses."""
    cluster = {"topology": {"builder": "switch", "gpus": workers}, "device": "ideal"}
    buckets, one = (
        simulate(scenario("allreduce-sgd", codec, Layered(), SMALL_BUCKETS, cluster=cluster))
        for codec in ({"codec": "top-k", "density": 1.0}, None)
    )
    assert buckets.models is not None
    assert one.models is not None
    assert abs(buckets.models - one.models).max() < 1e-12


def test_a_cost_model_without_layers_has_no_factors() -> None:
    cost = {"parameters": 1000, "batch": 8, "gradient": "1 s"}
    with pytest.raises(BadInput) as caught:
        Scenario(
            {
                **scenario("allreduce-sgd", "powersgd", Layered()).resolved(),
                "workload": {"cost": cost, "objective": Layered()},
            }
        )
    assert str(caught.value) == (
        "compression: PowerSGD: the model's layers hold no matrix; with matrices: square each message is one "
        "(the model of workload.cost is meant, as its messages are charged)"
    )


@dataclass(frozen=True)
class Halves(Algorithm):
    """Averages the halves of a gradient one by one."""

    compresses: ClassVar[Literal["gradients"]] = "gradients"

    buckets: bool = False

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            gradient: Any = await worker.gradient(x)
            if self.buckets:
                parts: Any = [await bucket for bucket in worker.gradient_buckets(x)]
                gradient = torch.cat(parts[::-1])
            half = len(x) // 2
            means: Any = [await worker.all_reduce(part) for part in (gradient[half:], gradient[:half])]
            x = await worker.update(x, torch.cat(means[::-1]))
            worker.report(x)


@pytest.mark.parametrize("buckets", [False, True])
def test_slices_of_any_kind_are_charged(buckets: bool) -> None:
    """At their fractions of the cost model, also where they are not the buckets that were delivered."""
    made = scenario(Halves(buckets), CODEC["sign"], Layered(), {"model": "mlp-digits"})
    assert made.codec is not None
    iterations = ITERATIONS // (1 + buckets)
    assert made.cost.parameters == 2410
    each = made.codec.wire_bytes(Message(1205))
    assert sum(simulate(made).bytes_sent) == 3 * 2 * iterations * 2 * each


def test_slices_of_any_kind_stand_for_the_same_fractions() -> None:
    outline = Outline(1000, 4, ((1000,),), ((500, 1000), (0, 500)), ((5, 10), (0, 5)))
    assert outline.stood_for(0, 10) == (0, 1000)
    assert outline.stood_for(3, 5) == (300, 500)
    assert Outline(10, 4, ((10,),), ((0, 10),), ((0, 3),)).stood_for(1, 2) == (3, 7)


def test_a_message_says_what_it_is_charged() -> None:
    alone = Message(10, 8)
    assert alone.sized is alone
    assert alone.charged(lambda m: m.nbytes) is None
    assert alone.cost(lambda m: m.nbytes) == {"nbytes": 80, "charged": None}
    standing = Message(10, 8, stands_for=Message(1000))
    assert standing.charged(lambda m: m.nbytes) == 4000
    assert standing.cost(lambda m: m.nbytes) == {"nbytes": 4000, "charged": 4000}


TINY = {"kind": "quadratic", "dimension": 3}
"""An objective that leaves the first of two buckets empty."""


@pytest.mark.parametrize(
    ("codec", "objective", "execution"),
    [
        ("powersgd", Layered(), {"payload": "cost"}),
        ("terngrad", TINY, {"payload": "cost"}),
        ("powersgd-square", TINY, {"compute": "emulated"}),
    ],
)
def test_for_real(codec: str, objective: object, execution: dict[str, str]) -> None:
    """Messages that are really sent are as long as those that are simulated, and carry the same."""
    cost = {"model": "mlp-digits", "first-bucket": "300 B"}
    cluster = {"topology": {"builder": "switch", "gpus": 2}, "device": "ideal"}
    made = scenario("allreduce-sgd", CODEC[codec], objective, cost, execution=execution, cluster=cluster)
    run, simulated = execute(made), simulate(made)
    assert run is not None
    assert run.models is not None
    assert simulated.models is not None
    assert run.models.tobytes() == simulated.models.tobytes()
    if "payload" in execution:
        assert run.bytes_sent == pytest.approx(simulated.bytes_sent, rel=1e-12)


def test_signs_for_real() -> None:
    cost = {"model": "mlp-digits"}
    cluster = {"topology": {"builder": "switch", "gpus": 2}, "device": "ideal"}
    made = scenario("signsgd", None, TINY, cost, execution={"payload": "cost"}, cluster=cluster)
    run, simulated = execute(made), simulate(made)
    assert run is not None
    assert run.bytes_sent == pytest.approx(simulated.bytes_sent, rel=1e-12)
    assert sum(simulated.bytes_sent) == ITERATIONS * 2 * 2 * 4 * 38  # two shards of 38 words, up and down
