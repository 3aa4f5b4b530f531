from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from simulator.scenario import Scenario
from simulator.workload.models import resnet18_cifar
from simulator.workload.task import Task

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :1] * 2 - 1
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def linear(*more: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5), *more, nn.Linear(5, 1))


def test_three_lines() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    task = Task(model, (X, Y), F.mse_loss)
    objective = task.build(seed=1)

    oracle, x = objective.oracle(0, (1.0,), 16, 1), objective.initial_model()
    start = objective.loss(x)
    for _ in range(300):
        x = x - 0.1 * oracle.gradient(x)
    assert objective.loss(x) < 0.1 * start


def test_user_module_is_never_changed() -> None:
    model = linear(nn.BatchNorm1d(5), nn.Dropout(0.5)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective = Task(model, (X, Y), F.mse_loss).build(1)
    oracle = objective.oracle(0, (1.0,), 8, 1)
    x = objective.initial_model() + 1
    oracle.gradient(x)
    oracle.gradient_in_buckets(x, ((0, objective.parameters),), lambda k, g: None)
    objective.loss(x)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
    with torch.no_grad():
        next(model.parameters()).zero_()  # nor does a later change of the user's reach the objective
    assert float(objective.initial_model().abs()[:30].min()) > 0


def test_flat_order_is_that_of_parameters() -> None:
    model = linear()
    flat = Task(model, (X, Y), F.mse_loss).build(1).initial_model()
    assert torch.equal(flat, nn.utils.parameters_to_vector(model.parameters()).detach())


# Dropout


def test_dropout_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    # One sample, so that a mini-batch never differs and dropout alone makes the difference.
    task = Task(linear(nn.Dropout(0.5)), (X[:1], Y[:1]), F.mse_loss)
    objective = task.build(1)
    x = objective.initial_model()
    state = torch.get_rng_state()
    oracle = objective.oracle(0, (1.0,), 4, 1)
    draws = [oracle.gradient(x) for _ in range(6)]
    objective.loss(x)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again = task.build(2).oracle(0, (1.0,), 4, 1)
    assert all(torch.equal(draw, again.gradient(x)) for draw in draws)
    assert len({draw.numpy().tobytes() for draw in draws}) == 6
    other = objective.oracle(0, (1.0,), 4, 2).gradient(x)
    assert not torch.equal(other, draws[0])


def test_dropout_differs_between_ranks_and_calls_in_between_change_nothing() -> None:
    rows = (X[:1].repeat(2, 1), Y[:1].repeat(2, 1))
    objective = Task(linear(nn.Dropout(0.5)), rows, F.mse_loss).build(1)
    x = objective.initial_model()
    first, second = (objective.oracle(rank, (1.0, 1.0), 4, 1) for rank in range(2))
    one = [first.gradient(x), first.gradient(x)]
    two = [second.gradient(x), second.gradient(x)]
    assert not torch.equal(one[0], two[0])
    first, second = (objective.oracle(rank, (1.0, 1.0), 4, 1) for rank in range(2))
    mixed = [second.gradient(x), first.gradient(x), second.gradient(x), first.gradient(x)]
    assert torch.equal(mixed[0], two[0])
    assert torch.equal(mixed[1], one[0])
    assert torch.equal(mixed[2], two[1])
    assert torch.equal(mixed[3], one[1])


def test_loss_and_full_gradient_know_no_dropout() -> None:
    with_dropout = Task(linear(nn.Dropout(0.9)), (X, Y), F.mse_loss).build(1)
    without = Task(linear(nn.Identity()), (X, Y), F.mse_loss).build(1)
    x = without.initial_model()
    assert with_dropout.loss(x) == without.loss(x)
    gradients = [o.oracle(0, (1.0,), 1, 1).full_gradient(x) for o in (with_dropout, without)]
    assert torch.equal(*gradients)


# Batch normalisation and buffers


def test_batch_normalisation_uses_the_statistics_of_what_it_is_given() -> None:
    model = linear(nn.BatchNorm1d(5))
    objective = Task(model, (X, Y), F.mse_loss, sampling="epoch").build(1)
    x = objective.initial_model()
    oracle = objective.oracle(0, (1.0,), 60, 1)
    loss = F.mse_loss(model.train()(X), Y)  # statistics of all 60 rows
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert torch.allclose(oracle.gradient(x), expected, atol=1e-6)
    assert torch.allclose(oracle.full_gradient(x), expected, atol=1e-6)
    assert objective.loss(x) == pytest.approx(float(loss.detach()), rel=1e-6)


class Counter(nn.Module):
    """Scales its output by how often it was called: a buffer that would leak."""

    calls: Tensor
    scale: Tensor
    alias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("alias", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale = self.scale * 2
        scaled: Tensor = self.linear(x) * self.calls * self.scale
        return scaled


def test_buffers_never_leak_between_draws_or_workers() -> None:
    model = Counter()
    objective = Task(model, (X[:1], Y[:1]), F.mse_loss).build(1)
    x = objective.initial_model()
    oracle = objective.oracle(0, (1.0,), 3, 1)
    gradients = [oracle.gradient(x) for _ in range(3)]
    expected = float(F.mse_loss(model.linear(X[:1]) * 2, Y[:1]).detach())  # one call, scale doubled once
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert objective.loss(x) == objective.loss(x) == pytest.approx(expected)
    assert int(model.calls) == 0


def test_last_piece_of_one_sample_does_not_reach_batch_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2048 + 1 samples would leave a piece of one, for which batch normalisation raises.
    monkeypatch.setattr("simulator.workload.objective.EVALUATION_BATCH", 59)
    objective = Task(linear(nn.BatchNorm1d(5)), (X, Y), F.mse_loss).build(1)
    assert objective.loss(objective.initial_model()) > 0
    plain = Task(linear(), (X, Y), F.mse_loss).build(1)
    found = plain.loss(plain.initial_model())
    monkeypatch.undo()
    assert found == pytest.approx(plain.loss(plain.initial_model()), rel=1e-6)


# Parameters of all sorts


class Odd(nn.Module):
    """Tied, frozen and unused parameters, two inputs, an integer one among them, a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 6, sparse=True)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 1, bias=False)
        self.tied = self.head

    def forward(self, values: Tensor, kinds: Tensor) -> Tensor:
        hidden = torch.tanh(self.frozen(values + self.table(kinds)))
        summed: Tensor = self.head(hidden) + self.tied(hidden**2)
        return summed


def test_tied_frozen_unused_and_sparse_parameters_with_two_inputs() -> None:
    model = Odd()
    objective = Task(model, ((X, CLASSES), Y), F.mse_loss).build(1)
    assert objective.parameters == 18 + 6 + 6
    x = objective.initial_model()
    gradient = objective.oracle(0, (1.0,), 60, 1).full_gradient(x)
    loss = F.mse_loss(model(X, CLASSES), Y)
    loss.backward()  # type: ignore[no-untyped-call]
    table, head = model.table.weight.grad, model.head.weight.grad
    assert table is not None
    assert head is not None
    expected = torch.cat([table.to_dense().flatten(), torch.zeros(6), head.flatten()])
    assert torch.allclose(gradient, expected, atol=1e-6)

    # The unused layer lies in bucket 1 of 3: it holds back nothing but what comes after it.
    bounds = ((24, 30), (18, 24), (0, 18))
    whole, sliced = (objective.oracle(0, (1.0,), 8, 1) for _ in range(2))
    got: list[tuple[int, Tensor]] = []
    sliced.gradient_in_buckets(x, bounds, lambda k, g: got.append((k, g)))
    assert [k for k, _ in got] == [0, 1, 2]
    reference = whole.gradient(x)
    assert all(torch.equal(g, reference[slice(*bounds[k])]) for k, g in got)


def test_no_parameter_used_at_all() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1]

    objective = Task(Deaf(), (X, Y), F.mse_loss).build(1)
    oracle = objective.oracle(0, (1.0,), 4, 1)
    assert torch.equal(oracle.gradient(objective.initial_model()), torch.zeros(7))
    got: list[int] = []
    oracle.gradient_in_buckets(objective.initial_model(), ((3, 7), (0, 3)), lambda k, g: got.append(k))
    assert got == [0, 1]


def test_buckets_are_delivered_while_back_propagation_runs() -> None:
    events: list[str] = []

    class Trace(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            events.append("between the layers")
            return gradient

    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 5)
            self.last = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(Trace.apply(self.first(x)))  # type: ignore[no-untyped-call]
            return out

    objective = Task(Traced(), (X, Y), F.mse_loss).build(1)
    oracle = objective.oracle(0, (1.0,), 4, 1)
    bounds = ((35, 41), (0, 35))
    for _ in range(2):  # the second draw reuses the plan of the first
        events.clear()
        oracle.gradient_in_buckets(
            objective.initial_model(), bounds, lambda k, g: events.append(f"bucket {k}")
        )
        assert events == ["bucket 0", "between the layers", "bucket 1"]


def test_an_error_in_delivery_leaves_the_objective_usable() -> None:
    objective = Task(linear(), (X, Y), F.mse_loss).build(1)
    x = objective.initial_model()

    def fail(k: int, bucket: Tensor) -> None:
        raise RuntimeError("no network")

    oracle, fresh = (objective.oracle(0, (1.0,), 4, 1) for _ in range(2))
    with pytest.raises(RuntimeError, match="no network"):
        oracle.gradient_in_buckets(x, ((0, objective.parameters),), fail)
    fresh.gradient(x)
    assert torch.equal(oracle.gradient(x), fresh.gradient(x))


def test_resnet18_in_a_task() -> None:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = Task(resnet18_cifar(), (images, torch.arange(6)), F.cross_entropy).build(1)
    assert objective.parameters == 11_173_962
    x = objective.initial_model()
    whole, sliced = (objective.oracle(0, (1.0,), 2, 1) for _ in range(2))
    bounds = ((9_000_000, 11_173_962), (5_000_001, 9_000_000), (0, 5_000_001))
    got: dict[int, Tensor] = {}
    sliced.gradient_in_buckets(x, bounds, got.__setitem__)
    reference = whole.gradient(x)
    assert list(got) == [0, 1, 2]
    assert all(torch.equal(got[k], reference[slice(*bounds[k])]) for k in got)
    assert float(reference.norm()) > 0


# Data


class Rows(Dataset[tuple[Tensor, int]]):
    reads = 0

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        Rows.reads += 1
        return X[index] + torch.rand(()), int(CLASSES[index])


def test_torch_dataset_is_read_once_and_when_needed() -> None:
    model = nn.Linear(6, 3)
    Rows.reads = 0
    objective = Task(model, Rows(), F.cross_entropy, shards="by-label").build(1)
    assert Rows.reads == 0
    x = objective.initial_model()
    oracle = objective.oracle(0, (1.0,) * 3, 4, 1)
    oracle.gradient(x)
    assert objective.loss(x) > 0
    assert Rows.reads == 60
    # Random augmentation is drawn once, the same on every rank.
    assert objective.loss(x) == Task(model, Rows(), F.cross_entropy).build(1).loss(x)
    tensors = Task(model, TensorDataset(X, CLASSES), F.cross_entropy).build(1)
    assert tensors.loss(x) == Task(model, (X, CLASSES), F.cross_entropy).build(1).loss(x)


def test_samples_are_cast_to_the_type_of_the_model() -> None:
    task = Task(linear(), (X.double(), Y.double()), F.mse_loss)
    assert (
        task.build(1).oracle(0, (1.0,), 4, 1).gradient(task.build(1).initial_model()).dtype == torch.float32
    )
    double = Task(linear(), (X, Y), F.mse_loss, dtype="float64").build(1)
    assert double.initial_model().dtype == double.dtype == torch.float64
    assert double.oracle(0, (1.0,), 4, 1).gradient(double.initial_model()).dtype == torch.float64


def mixed() -> nn.Module:
    model = linear()
    model[0].double()
    return model


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Task(linear(), (X, Y[:5]), F.mse_loss), "task: data has 60 inputs but 5 labels"),
        (lambda: Task(linear(), (X[:0], Y[:0]), F.mse_loss), "task: data holds no sample"),
        (lambda: Task(linear(), (X,), F.mse_loss),
         "task: data must be (X, y) with tensors, or ((X1, X2), y) for several inputs"),
        (lambda: Task(linear(), (X.numpy(), Y), F.mse_loss),
         "task: data must be (X, y) with tensors, or ((X1, X2), y) for several inputs"),
        (lambda: Task(linear(), 3, F.mse_loss),
         "task: data must be a pair (X, y) of tensors or a torch Dataset with a length, got int"),
        (lambda: Task(linear(), (torch.tensor(1.0), Y), F.mse_loss),
         "task: data must have one row per sample, got a single number"),
        (lambda: Task(F.relu, (X, Y), F.mse_loss, name="mine"),  # type: ignore[arg-type]
         "mine: model must be a torch.nn.Module, got function"),
        (lambda: Task(linear(), (X, Y), F.mse_loss, dtype="half"),  # type: ignore[arg-type]
         "task: unknown dtype 'half'; known are float32, float64"),
        (lambda: Task(linear(), (X, Y), F.mse_loss, shards="dirichlet"),
         "task: shards dirichlet needs alpha, its concentration"),
        (lambda: Task(linear().requires_grad_(False), (X, Y), F.mse_loss).build(1),
         "task: the model has no trainable parameter"),
        (lambda: Task(mixed(), (X, Y), F.mse_loss).build(1),
         "task: the model's parameters are of torch.float32 and torch.float64; give dtype to cast them"),
        (lambda: Task(linear(), (X, Y), F.mse_loss, shards="by-label").build(1).oracle(0, (1.0,), 1, 1),
         "shards by-label need one whole-number label per sample, "
         "got labels of shape (60, 1) and torch.float32; use shards iid"),
        (lambda: loss_of(lambda a, b: (a - b) ** 2),
         "task: the loss must be a tensor of one element, got shape (60, 1)"),
        (lambda: loss_of(lambda a, b: 0.5), "task: the loss must be a tensor of one element, got float"),
    ],
)  # fmt: skip
def test_bad_tasks(use: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as e:
        use()
    assert str(e.value) == message


def loss_of(loss: Callable[..., Any]) -> float:
    objective = Task(linear(), (X, Y), loss).build(1)
    return objective.loss(objective.initial_model())


# Identity


@pytest.mark.parametrize("changed", ["nothing", "data", "weights"])
def test_a_task_is_told_by_what_its_tensors_hold(changed: str) -> None:
    """Each rank makes its own; they are the same scenario if they hold the same."""

    def digest(x: Tensor, model: nn.Module) -> str:
        return Scenario(
            {
                "name": "own",
                "cluster": {"topology": {"builder": "ring", "nodes": 2}, "device": "ideal"},
                "workload": {
                    "cost": {"parameters": 41, "batch": 4, "gradient": "1 ms"},
                    "objective": Task(model, (x, Y), F.mse_loss),
                },
                "algorithm": "allreduce-sgd",
                "step-size": 0.1,
                "budget": {"iterations": 1},
            }
        ).digest()

    x, model = X.clone(), linear()
    with torch.no_grad():
        if changed == "data":
            x[7, 2] += 1
        if changed == "weights":
            next(model.parameters())[1, 1] += 1
    assert (digest(x, model) == digest(X, linear())) == (changed == "nothing")
