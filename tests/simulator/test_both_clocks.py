"""The same algorithm code gives the same bits on the virtual clock and on Gloo."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms import ALGORITHMS as KNOWN
from algorithms.codecs import CODECS
from simulator.engine.simulate import simulate
from simulator.execution.execute import execute
from simulator.run import Run
from simulator.scenario import Scenario

ALGORITHMS: dict[str, dict[str, Any]] = {
    "allreduce-sgd with overlap": {"name": "allreduce-sgd", "overlap": True},
    "allreduce-sgd without": {"name": "allreduce-sgd", "overlap": False},
    "local-sgd": {"name": "local-sgd", "period": 2},
    "cocod-sgd": {"name": "cocod-sgd", "period": 2},
    "cocod-sgd, first round alone": {"name": "cocod-sgd", "period": 3, "first-all-reduce": False},
    "d-psgd, combine then adapt": {"name": "d-psgd", "order": "combine-then-adapt"},
    "d-psgd, adapt then combine": {"name": "d-psgd", "order": "adapt-then-combine"},
}


UPDATES: dict[str, dict[str, Any]] = {
    "plain with decay and steps": {
        "rule": "sgd",
        "weight-decay": 0.01,
        "schedule": {"kind": "step", "every": 2, "factor": 0.5},
    },
    "momentum": {"rule": "momentum", "schedule": {"kind": "constant", "warm-up": 2}},
    "nesterov with decay": {"rule": "nesterov", "momentum": 0.8, "weight-decay": 0.01},
    "adamw with cosine": {"rule": "adamw", "schedule": {"kind": "cosine", "warm-up": 2, "final": 0.1}},
}

STATES = ("local-sgd, averaged state", "local-sgd, reset state")
"""Of those below the ones that an update rule without a state has no use for."""

STATEFUL: dict[str, dict[str, Any]] = {
    **{name: ALGORITHMS[name] for name in ("allreduce-sgd with overlap", "cocod-sgd")},
    **{
        f"local-sgd, {state} state": {"name": "local-sgd", "period": 2, "state": state}
        for state in ("local", "averaged", "reset")
    },
}


def scenario(
    algorithm: object, workers: int, objective: object, update: object = "sgd", **workload: Any
) -> Scenario:
    return Scenario(
        {
            "name": "both",
            "cluster": {"topology": {"builder": "switch", "gpus": workers}, "device": "gtx-1080-ti"},
            "workload": {
                # The cost of a larger network cuts the objective's vector into several buckets.
                "cost": {"model": "resnet18-cifar", "batch": 8},
                "objective": objective,
                **workload,
            },
            "algorithm": algorithm,
            "step-size": 0.1,
            "update": update,
            "budget": {"iterations": 6},
            "seed": 11,
        }
    )


def same_bits(chosen: Scenario) -> tuple[Run, Run]:
    simulated, executed = simulate(chosen), execute(chosen)
    assert executed is not None
    assert simulated.models is not None
    assert executed.models is not None
    assert executed.models.dtype == simulated.models.dtype
    assert executed.models.tobytes() == simulated.models.tobytes()
    assert executed.iterations == simulated.iterations
    check_bytes(chosen, simulated, executed)
    return simulated, executed


def check_bytes(chosen: Scenario, simulated: Run, executed: Run) -> None:
    """Simulated messages have the size of the cost's model, executed ones that of the objective's.

    Models and gradients are in proportion. Packed ones are not, and are held against a simulation whose cost
    model is as long as the objective; its buckets are others.
    """
    assert executed.models is not None
    name, model = chosen.sections.algorithm.name, executed.models[0]
    if chosen.codec is None and name not in ("signsgd", "signum"):
        sent_models = [nbytes / model.nbytes for nbytes in executed.bytes_sent]
        charged_model = chosen.cost.parameters * chosen.cost.parameter_bytes
        assert sent_models == pytest.approx([nbytes / charged_model for nbytes in simulated.bytes_sent])
    elif name != "allreduce-sgd":
        cost = {"parameters": len(model), "batch": 8, "gradient": "1 s"}
        own = simulate(chosen.vary({"workload.cost": cost}))
        assert executed.bytes_sent == pytest.approx(own.bytes_sent)


OTHERS: dict[str, dict[str, Any]] = {
    "pipe-sgd": {"name": "pipe-sgd"},
    "parameter-server": {"name": "parameter-server"},
    "overlap-local-sgd": {"name": "overlap-local-sgd", "period": 2},
    "slowmo": {"name": "slowmo", "period": 2},
    "vrl-sgd": {"name": "vrl-sgd", "period": 2},
    "easgd, synchronous": {"name": "easgd", "period": 2, "rounds": "synchronous"},
    "diloco": {"name": "diloco", "period": 2},
    "streaming-diloco": {"name": "streaming-diloco", "period": 4, "fragments": 2},
    "choco-sgd": {"name": "choco-sgd"},
    "d2": {"name": "d2"},
    "sgp": {"name": "sgp"},
    "sgp, to all": {"name": "sgp", "peers": "all"},
    "sgp, overlapped": {"name": "sgp", "delay": 2},
    "signsgd": {"name": "signsgd"},
    "signum, random ties": {"name": "signum", "tie": "random", "decay": 0.1},
    "signum, one server": {"name": "signum", "meet": "server", "tie": "zero"},
    "signum, gathered": {"name": "signum", "meet": "gather", "adversaries": 0.25},
    "svrg": {"name": "svrg", "inner": 4},
    "katyusha-x": {"name": "katyusha-x", "inner": 4, "l1": 1e-4},
    "dp-sgd": {"name": "dp-sgd"},
    "nsgd": {"name": "nsgd"},
    "auto-s": {"name": "auto-s"},
    "dp-psac": {"name": "dp-psac"},
}


def test_every_deterministic_algorithm_is_here() -> None:
    held = {settings["name"] for settings in (*ALGORITHMS.values(), *OTHERS.values())}
    assert held >= {name for name, entry in KNOWN.items() if entry.load()().deterministic}


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("name", OTHERS)
def test_same_bits_of_the_others(name: str, workers: int) -> None:
    # 2 KiB of logistic regression: real data, and gradients of single samples at little cost.
    logistic = {"kind": "logistic", "data": "digits", "dtype": "float32"}
    same_bits(scenario(OTHERS[name], workers, logistic))


# DGC corrects the momentum of gradients, so that it stands before nothing else.
COMPRESSED = [("allreduce-sgd", codec) for codec in CODECS]
COMPRESSED += [("local-sgd", codec) for codec in CODECS if codec != "dgc"]
# Pushes and gossip are no means: PowerSGD's sums of factors do not go with them.
COMPRESSED += [("parameter-server", codec) for codec in CODECS if codec != "powersgd"]
COMPRESSED += [("choco-sgd", codec) for codec in CODECS if codec not in ("dgc", "powersgd")]


# A codec works on one worker's vectors: two workers, the other size, are for the means of AllReduce-SGD.
@pytest.mark.parametrize(
    ("algorithm", "codec", "workers"),
    [(*pair, 3) for pair in COMPRESSED] + [(*pair, 2) for pair in COMPRESSED if pair[0] == "allreduce-sgd"],
)
def test_same_bits_when_compressed(algorithm: str, codec: str, workers: int) -> None:
    mlp = {"kind": "mlp", "data": "digits", "dtype": "float32"}
    same_bits(scenario(algorithm, workers, mlp).vary(compression=codec))


@pytest.mark.parametrize(
    ("workers", "dtype"), [(2, "float32"), (3, "float32"), (4, "float32"), (3, "float64")]
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_bits(name: str, workers: int, dtype: str) -> None:
    """The MLP has 2,410 parameters, which neither 3 nor 4 divides."""
    mlp = {"kind": "mlp", "data": "digits", "dtype": dtype}
    simulated, executed = same_bits(scenario(ALGORITHMS[name], workers, mlp))
    # Evaluated at the same reports, by the same function; the order within a sample may differ.
    if workers == 2 and name.startswith("allreduce"):
        assert executed.samples.loss == simulated.samples.loss


@pytest.mark.parametrize(
    ("name", "update"),
    [
        (name, update)
        for name in STATEFUL
        for update in UPDATES
        if UPDATES[update]["rule"] != "sgd" or name not in STATES
    ],
)
def test_same_bits_with_every_update_rule(name: str, update: str) -> None:
    quadratic = {"kind": "quadratic", "dimension": 1001, "sigma2": 1.0, "zeta2": 1.0, "dtype": "float32"}
    same_bits(scenario(STATEFUL[name], 2, quadratic, update=UPDATES[update]))


@pytest.mark.parametrize("name", ["allreduce-sgd with overlap", "cocod-sgd", "d-psgd, combine then adapt"])
def test_same_bits_above_gloos_segments(name: str) -> None:
    """A model above 2n MiB, where Gloo cuts segments of 1 MiB: 1,300,001 elements of 4 bytes, 2 workers."""
    quadratic = {"kind": "quadratic", "dimension": 1_300_001, "sigma2": 1.0, "zeta2": 1.0, "dtype": "float32"}
    same_bits(scenario(ALGORITHMS[name], 2, quadratic))


@pytest.mark.parametrize("name", ["allreduce-sgd with overlap", "local-sgd", "cocod-sgd"])
def test_same_bits_with_proportional_batches(name: str) -> None:
    chosen = scenario(
        ALGORITHMS[name], 3, {"kind": "logistic", "data": "digits"}, batches="proportional"
    ).vary(stragglers=[{"kind": "persistent", "workers": [1], "slowdown": 2.0}])
    assert chosen.shares is not None
    same_bits(chosen)


def test_same_bits_of_a_convolutional_network_with_label_shards() -> None:
    cnn = {"kind": "cnn", "data": "digits", "shards": "by-label", "sampling": "epoch"}
    same_bits(scenario(ALGORITHMS["cocod-sgd"], 4, cnn))
