from __future__ import annotations

import re
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.algorithm import REQUIREMENTS
from simulator.workload import (
    OBJECTIVES,
    Cnn,
    Logistic,
    Mlp,
    ObjectiveKind,
    PolicyEvaluation,
    Portfolio,
    Quadratic,
    QuadraticSum,
    ScalarQuadratics,
)
from simulator.workload import data as datasets
from simulator.workload.finite_sum import ShardSum
from simulator.workload.objective import LogisticObjective, Objective
from simulator.workload.task import Task


def images_task(layer: nn.Module, dtype: str = "float64") -> Task:
    """A small network on 60 digits with the given layer in the middle."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))
    digits = datasets.digits()
    return Task(model, (digits.features[:60], digits.labels[:60]), F.cross_entropy, dtype=dtype)  # type: ignore[arg-type]


SUMS: dict[str, Callable[[], ObjectiveKind]] = {
    "logistic": lambda: Logistic(dtype="float64", l2=0.1),
    "mlp": lambda: Mlp(dtype="float64", shards="by-label"),
    "cnn": lambda: Cnn(dtype="float64"),
    "quadratic-sum": lambda: QuadraticSum(summands=48, dimension=6),
    "rank-one": lambda: QuadraticSum(summands=48, dimension=6, parts="rank-one"),
    "instance-norm": lambda: images_task(nn.InstanceNorm2d(4, affine=True)),
    "dropout": lambda: images_task(nn.Dropout(0.5)),
}
OTHERS: dict[str, Callable[[], ObjectiveKind]] = {
    "quadratic": Quadratic,
    "scalar-quadratics": lambda: ScalarQuadratics((1.0,), (0.0,)),
    "portfolio": Portfolio,
    "policy-evaluation": PolicyEvaluation,
    "batch-norm": lambda: images_task(nn.BatchNorm2d(4)),
}


def near_start(objective: Objective) -> Tensor:
    noise = np.random.default_rng(0).standard_normal(objective.parameters)
    return objective.initial_model() + 0.1 * torch.from_numpy(noise).to(objective.dtype)


def shard_sum(objective: Objective, rank: int = 1, shares: tuple[float, ...] = (1.0, 1.0, 2.0)) -> ShardSum:
    problem = objective.oracle(rank, shares, 4, 5).problem
    assert isinstance(problem, ShardSum)
    return problem


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# What holds for every finite sum


def test_every_kind_says_what_it_fulfils() -> None:
    assert set(OBJECTIVES) <= SUMS.keys() | OTHERS.keys()
    for name, make in (SUMS | OTHERS).items():
        kind = make()
        expected = {"finite-sum"} if name in SUMS else set()
        if name in ("portfolio", "policy-evaluation"):
            expected = {"compositional"}
        assert kind.fulfils == kind.build(1).fulfils == expected
        assert kind.fulfils <= REQUIREMENTS.keys()


@pytest.mark.parametrize("name", ["quadratic", "scalar-quadratics"])
def test_closed_forms_without_summands_have_no_problem(name: str) -> None:
    assert OTHERS[name]().build(1).oracle(0, (1.0,), 1, 1).problem is None


@pytest.mark.parametrize("name", SUMS)
def test_sample_gradients_average_to_the_others(name: str) -> None:
    objective = SUMS[name]().build(3)
    problem = shard_sum(objective)
    x = near_start(objective)
    each = problem.sample_gradients(x, torch.arange(problem.count))
    assert each.shape == (problem.count, objective.parameters)
    assert relative(each.mean(0), problem.full_gradient(x)) < 1e-12
    chosen = torch.tensor([3, 0, 7, 3, problem.count - 1])
    assert relative(each[chosen].mean(0), problem.gradient(x, chosen)) < 1e-12
    assert relative(problem.sample_gradients(x, chosen), each[chosen]) < 1e-12
    assert relative(problem.gradient(x, torch.tensor([4])), each[4]) < 1e-12
    # The very same functions: at the snapshot the corrections of variance reduction cancel exactly.
    assert torch.equal(problem.gradient(x, chosen), problem.gradient(x.clone(), chosen.clone()))


@pytest.mark.parametrize("name", SUMS)
def test_the_mean_over_all_workers_is_the_gradient_of_f(name: str) -> None:
    # Central differences of the loss along one direction, see test_objective.py for the error.
    objective = SUMS[name]().build(3)
    x = near_start(objective)
    problems = [shard_sum(objective, rank) for rank in range(3)]
    assert {problem.total for problem in problems} == {sum(problem.count for problem in problems)}
    weights = [problem.count / problem.total for problem in problems]
    mean = sum(w * problem.full_gradient(x) for w, problem in zip(weights, problems, strict=True))
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(objective.parameters))
    direction /= direction.norm()
    h = 1e-5
    slope = (objective.loss(x + h * direction) - objective.loss(x - h * direction)) / (2 * h)
    assert isinstance(mean, Tensor)
    assert float(mean @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", SUMS)
def test_the_division_is_one_and_does_not_depend_on_the_order_of_asking(name: str) -> None:
    objective, other = SUMS[name]().build(3), SUMS[name]().build(3)
    ranks = {rank: objective.oracle(rank, (1.0, 1.0, 2.0), 4, 5) for rank in (2, 0, 1)}
    again = {rank: other.oracle(rank, (1.0, 1.0, 2.0), 9, 5) for rank in (0, 1, 2)}
    held = [ranks[rank].shard for rank in range(3)]  # type: ignore[attr-defined]
    for rank in range(3):
        assert np.array_equal(held[rank], again[rank].shard)  # type: ignore[attr-defined]
    assert sorted(np.concatenate(held)) == list(range(shard_sum(objective).total))


@pytest.mark.parametrize("name", SUMS)
def test_evaluations_are_pure(name: str) -> None:
    objective = SUMS[name]().build(3)
    oracle, untouched = (objective.oracle(1, (1.0, 1.0), 4, 5) for _ in range(2))
    problem = oracle.problem
    assert isinstance(problem, ShardSum)
    x, indices = near_start(objective), torch.tensor([2, 5])
    model, state = x.clone(), torch.get_rng_state()
    first = [problem.gradient(x, indices), problem.full_gradient(x), problem.sample_gradients(x, indices)]
    other = SUMS[name]().build(3).oracle(1, (1.0, 1.0), 4, 5).problem
    assert isinstance(other, ShardSum)
    again = [other.gradient(x, indices), other.full_gradient(x), other.sample_gradients(x, indices)]
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
        assert not one.requires_grad
        one.fill_(9.0)
    assert torch.equal(x, model)
    assert indices.tolist() == [2, 5]
    assert torch.equal(state, torch.get_rng_state())
    # Mini-batches that the oracle draws do not notice.
    assert torch.equal(oracle.gradient(x), untouched.gradient(x))


@pytest.mark.parametrize("name", SUMS)
def test_no_summands(name: str) -> None:
    objective = SUMS[name]().build(3)
    problem, nothing = shard_sum(objective), torch.empty(0, dtype=torch.int64)
    found = problem.sample_gradients(objective.initial_model(), nothing)
    assert found.shape == (0, objective.parameters)
    assert found.dtype == objective.dtype
    with pytest.raises(ValueError) as e:
        problem.gradient(objective.initial_model(), nothing)
    assert str(e.value) == f"{objective.name}: a mean over summands needs at least one index"


@pytest.mark.parametrize("kind", [Mlp(), Logistic(), QuadraticSum(dtype="float32")])
def test_float32_is_returned_for_float32_and_agrees_to_its_rounding(kind: ObjectiveKind) -> None:
    objective = kind.build(3)
    problem = shard_sum(objective)
    x = near_start(objective)
    everyone = torch.arange(problem.count)
    each, mean = problem.sample_gradients(x, everyone), problem.gradient(x, everyone)
    full = problem.full_gradient(x)
    assert each.dtype == mean.dtype == full.dtype == torch.float32
    assert torch.equal(mean, full)
    assert relative(each.double().mean(0), full.double()) < 1e-5


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 12]), "indices of summands are 0 to 11, got 12"),
        (torch.tensor([3, -1]), "indices of summands are 0 to 11, got -1"),
        (torch.tensor([1.0]),
         "indices of summands are a vector of torch.int64, got shape (1,) of torch.float32"),
        (torch.tensor([[1]]),
         "indices of summands are a vector of torch.int64, got shape (1, 1) of torch.int64"),
    ],
)  # fmt: skip
def test_bad_indices(indices: Tensor, message: str) -> None:
    objective = QuadraticSum(summands=48, dimension=6).build(3)
    problem = shard_sum(objective)
    for call in (problem.gradient, problem.sample_gradients):
        with pytest.raises(ValueError) as e:
            call(objective.initial_model(), indices)
        assert str(e.value) == f"sum of 48 quadratics of dimension 6: {message}"


@pytest.mark.parametrize("name", SUMS)
def test_bad_models(name: str) -> None:
    objective = SUMS[name]().build(3)
    problem, one, wrong = shard_sum(objective), torch.tensor([0]), torch.zeros(objective.parameters)
    message = (
        f"{objective.name}: a model is a vector of {objective.parameters} torch.float64 values, "
        f"got shape ({objective.parameters},) of torch.float32"
    )
    for call in (
        lambda: problem.gradient(wrong, one),
        lambda: problem.full_gradient(wrong),
        lambda: problem.sample_gradients(wrong, one),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


# Networks


def test_sample_gradients_equal_back_propagation_one_by_one() -> None:
    task = images_task(nn.InstanceNorm2d(4, affine=True))
    objective = task.build(1)
    problem = shard_sum(objective, 0, (1.0,))
    x = near_start(objective)
    found = problem.sample_gradients(x, torch.arange(problem.count))
    shard = objective.oracle(0, (1.0,), 1, 5).shard
    module, (features, labels) = task.model, task.data
    module = module.double()
    nn.utils.vector_to_parameters(x, module.parameters())
    for k in (0, 17, 59):
        module.zero_grad()
        sample = slice(shard[k], shard[k] + 1)
        F.cross_entropy(module(features[sample].double()), labels[sample]).backward()  # type: ignore[no-untyped-call]
        expected = nn.utils.parameters_to_vector([p.grad for p in module.parameters() if p.grad is not None])
        assert relative(found[k], expected) < 1e-12


def test_pieces_do_not_change_sample_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Mlp(dtype="float64").build(3)
    problem = shard_sum(objective)
    x, chosen = near_start(objective), torch.arange(23)
    whole = problem.sample_gradients(x, chosen)
    sizes: list[int] = []
    evaluate = objective._vectorised_samples  # type: ignore[attr-defined]

    def counted(x: Tensor, inputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        result: Tensor = evaluate(x, inputs, labels)
        return result

    monkeypatch.setitem(objective.__dict__, "_vectorised_samples", counted)
    for values, expected in [(5 * objective.parameters, [5, 5, 5, 5, 3]), (1, [1] * 23)]:
        monkeypatch.setattr("simulator.workload.objective.SAMPLE_GRADIENT_VALUES", values)
        sizes.clear()
        assert relative(problem.sample_gradients(x, chosen), whole) < 1e-14
        assert sizes == expected


def test_frozen_and_unused_parameters_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.used, self.unused = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            result: Tensor = self.used(torch.tanh(self.frozen(a))) * b
            return result

    random = torch.Generator().manual_seed(1)
    a, b, y = (torch.randn(9, width, generator=random) for width in (3, 1, 1))
    objective = Task(Two(), ((a, b), y), F.mse_loss, dtype="float64").build(1)
    problem = shard_sum(objective, 0, (1.0,))
    x = near_start(objective)
    each = problem.sample_gradients(x, torch.arange(9))
    assert each.shape == (9, 11)
    assert not each[:, 5:].any()
    assert relative(each.mean(0), problem.full_gradient(x)) < 1e-12


def test_dropout_is_off_in_the_problem_and_on_in_the_oracle() -> None:
    objective = images_task(nn.Dropout(0.5)).build(1)
    oracle = objective.oracle(0, (1.0,), 60, 5)
    x = near_start(objective)
    problem = oracle.problem
    assert isinstance(problem, ShardSum)
    assert torch.equal(problem.full_gradient(x), problem.full_gradient(x))
    assert relative(oracle.gradient(x), problem.full_gradient(x)) > 0.1


class AlwaysRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.detach().mean())
        return x

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))


ADVICE = "so there is no gradient of one sample; use GroupNorm, or InstanceNorm without running statistics"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(4),
         f"task: layer '1' (BatchNorm2d) makes samples depend on each other, {ADVICE}"),
        (nn.SyncBatchNorm(4),
         f"task: layer '1' (SyncBatchNorm) makes samples depend on each other, {ADVICE}"),
        (nn.InstanceNorm2d(4, track_running_stats=True),
         f"task: layer '1' (InstanceNorm2d) keeps running statistics, {ADVICE}"),
    ],
)  # fmt: skip
def test_layers_that_mix_samples_are_refused(layer: nn.Module, message: str) -> None:
    task = images_task(layer)
    objective = task.build(1)
    assert task.fulfils == objective.fulfils == frozenset()
    problem, x, one = shard_sum(objective), objective.initial_model(), torch.tensor([0])
    for call in (
        lambda: problem.gradient(x, one),
        lambda: problem.full_gradient(x),
        lambda: problem.sample_gradients(x, one),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (AlwaysRandom(),
         r"task: the model draws random numbers even in evaluation mode, so its summands are no fixed "
         r"functions"),
        (InPlace(), r"task: torch\.func cannot take the gradient of one sample: [^\n]*"),
    ],
)  # fmt: skip
def test_modules_that_torch_cannot_vectorise_are_refused(layer: nn.Module, message: str) -> None:
    objective = images_task(layer).build(1)
    problem = shard_sum(objective)
    with pytest.raises(ValueError, match=f"^{message}$"):
        problem.sample_gradients(objective.initial_model(), torch.tensor([0, 1]))
    assert objective.loss(objective.initial_model()) > 0


def test_any_thread_may_ask() -> None:
    # Gradients at other models in between, from other threads, must not show.
    objective = Mlp(dtype="float64").build(3)
    problem, oracle = shard_sum(objective), objective.oracle(0, (1.0, 1.0, 2.0), 4, 5)
    models = [near_start(objective) + k for k in range(3)]
    chosen = torch.arange(8)
    expected = [problem.sample_gradients(x, chosen) for x in models]
    found: list[list[Tensor]] = [[] for _ in models]

    def ask(k: int) -> None:
        for _ in range(20):
            found[k].append(problem.sample_gradients(models[k], chosen))
            oracle.gradient(models[k])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, results in enumerate(found):
        assert len(results) == 20
        assert all(torch.equal(result, expected[k]) for result in results)


# Logistic regression


def test_logistic_sample_gradients_equal_autograd() -> None:
    objective = Logistic(dtype="float64", l2=0.1).build(3)
    assert isinstance(objective, LogisticObjective)
    x = near_start(objective)
    inputs, labels = objective.samples
    features = inputs[0]

    def value(x: Tensor, k: int) -> Tensor:
        logits = F.linear(features[k : k + 1], x[:640].view(10, 64), x[640:])
        return F.cross_entropy(logits, labels[k : k + 1]) + 0.05 * x @ x

    found = objective.sample_gradients(x, torch.tensor([5, 1000]))
    for row, k in enumerate((5, 1000)):
        assert relative(found[row], torch.func.grad(value)(x, k)) < 1e-12
