"""Two ranks: they start and end alike, resume with the same bits, evaluate whatever the algorithm does."""

from __future__ import annotations

import json
from typing import Any

import pytest

COMMON = """
    import json, os
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from simulator.execution.training.trainer import Trainer

    torch.set_num_threads(1)
    RANK = int(os.environ["RANK"])
    inputs = torch.randn(48, 6, generator=torch.Generator().manual_seed(5))
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())

    def network():
        torch.manual_seed(RANK)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def trainer(model, **more):
        loader = DataLoader(data, batch_size=4, shuffle=True)
        settings = {"step_size": 0.1, "iterations": 16, "update": "momentum", **more}
        return Trainer(model, loss, loader, **settings)

    def values(model):
        return [value.double().reshape(-1).tolist() for value in model.state_dict().values()]
"""


def outputs(ranks: Any, script: str) -> list[Any]:
    """Return what each rank of a script prints as JSON."""
    return [json.loads(output.splitlines()[-1]) for output in ranks(COMMON + script)]


def test_resumed_with_the_same_bits(ranks: Any) -> None:
    found = outputs(
        ranks,
        """
    found = {}
    for algorithm in ("allreduce-sgd", "local-sgd", "cocod-sgd", "d-psgd"):
        whole = network()
        trainer(whole, algorithm=algorithm).fit()
        first = trainer(network(), algorithm=algorithm)
        first.fit(8)
        model = network()
        second = trainer(model, algorithm=algorithm)
        second.load_state_dict(first.state_dict())
        run = second.fit()
        found[algorithm] = [values(whole), values(model), None if run is None else run.iterations]
    print(json.dumps(found))
    """,
    )
    for algorithm, (whole, resumed, iterations) in found[0].items():
        assert resumed == whole, algorithm
        assert iterations == [8, 8]
        # All ranks end with the same averages.
        assert found[1][algorithm] == [whole, whole, None]


def test_parameters_and_buffers(ranks: Any) -> None:
    """Running statistics stay with each rank, and are averaged where the module holds the average."""
    found = outputs(
        ranks,
        """
    model = network()
    begun = values(model)
    made = trainer(model, algorithm={"name": "local-sgd", "period": 3})
    alike = values(model)
    made.fit(5)
    state = made.state_dict()
    own = [buffer.double().reshape(-1).tolist() for buffer in state["buffers"]]
    ended = [buffer.double().reshape(-1).tolist() for buffer in model.buffers()]
    print(json.dumps([begun, alike, own, ended, values(model), state["iterations"]]))
    """,
    )
    (begun, alike, own, ended, model, iterations), other = found
    assert begun != other[0]
    assert alike == begun == other[1]
    # A round that has begun is finished.
    assert iterations == 6
    assert own[0] != other[2][0]
    assert ended[2] == own[2] == [6]
    for place in (0, 1):
        expected = [(a + b) / 2 for a, b in zip(own[place], other[2][place], strict=True)]
        assert ended[place] == pytest.approx(expected, rel=1e-6)
    assert model == other[4]


@pytest.mark.parametrize("algorithm", ["ad-psgd", "a-psgd", "hogwild"])
def test_evaluations_and_states_whatever_the_timing(algorithm: str, ranks: Any) -> None:
    found = outputs(
        ranks,
        f"""
    model = network()
    seen = []
    def evaluate(model):
        seen.append(1)
        return {{"bias": float(model[4].bias.sum())}}
    settings = dict(algorithm="{algorithm}", update="sgd", evaluate=evaluate, evaluate_every=5)
    run = trainer(model, **settings).fit(12)
    run = trainer(model, **settings).fit()
    noted = [] if run is None else [o.iteration for o in run.observations if o.name == "bias"]
    print(json.dumps([len(seen), noted, values(model)]))
    """,
    )
    assert found[1][:2] == [0, []]
    assert found[0][0] == 2 + 3
    points = [5, 10, 15]
    assert len(found[0][1]) == len(points)
    assert all(noted >= point for noted, point in zip(found[0][1], points, strict=True))
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [("easgd", {}), ("cocod-sgd", {"compression": {"codec": "top-k", "density": 0.5}})],
)
def test_what_has_a_memory_begins_anew_at_the_average(algorithm: str, more: Any, ranks: Any) -> None:
    found = outputs(
        ranks,
        f"""
    made = trainer(network(), algorithm="{algorithm}", update="sgd", **{more})
    made.fit(8)
    state = made.state_dict()
    made.fit(12)
    print(json.dumps([state["model"].tolist(), made._objective.start.tolist()]))
    """,
    )
    own = [model for model, _ in found]
    assert own[0] != own[1]
    average = [(a + b) / 2 for a, b in zip(*own, strict=True)]
    for _, start in found:
        assert start == pytest.approx(average, rel=1e-5, abs=1e-7)


def test_ranks_that_differ(ranks: Any) -> None:
    told = ranks(COMMON + "\n    trainer(network(), iterations=16 + RANK)\n", fails=True)
    assert told == ["BadInput: rank 1 has other settings than rank 0; give all ranks the same\n"] * 2
    told = ranks(COMMON + "\n    trainer(network() if RANK else nn.Linear(6, 2))\n", fails=True)
    assert told == [
        "BadInput: model: rank 1 has another one than rank 0\n",
        "BadInput: model: rank 0 has another one than rank 1\n",
    ]


def test_states_of_another_rank(ranks: Any) -> None:
    told = ranks(
        COMMON
        + """
    made = trainer(network())
    made.fit(4)
    made.load_state_dict({**made.state_dict(), "rank": 1 - RANK})
    """,
        fails=True,
    )
    assert told == [
        f"BadInput: state: was saved with rank {1 - rank}, but this training has {rank}\n" for rank in (0, 1)
    ]


def test_a_script_whose_own_group_knows_no_tensors_of_the_cpu(ranks: Any) -> None:
    """As with ``init_process_group("nccl")``: the trainer's messages and its folder need none of it."""
    found = outputs(
        ranks,
        """
    torch.distributed.init_process_group("cuda:gloo")
    found = []
    for algorithm in ("easgd", "hogwild"):
        model = network()
        made = trainer(model, algorithm=algorithm, update="sgd")
        made.fit(4)
        made.fit(8)
        found.append(values(model))
    print(json.dumps(found))
    """,
    )
    assert found[0] == found[1]
