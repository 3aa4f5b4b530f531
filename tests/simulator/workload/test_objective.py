from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

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
from simulator.workload.models import small_mlp
from simulator.workload.objective import ModuleObjective, Objective, QuadraticOracle, Request, Sampler
from simulator.workload.task import Task

TESTS = Path(__file__).parents[2]


class Deep(nn.Module):
    """Batch normalisation, a residual, a shared layer: what closed forms do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.norm(self.first(x)))
        y = y + torch.tanh(self.shared(y))
        scores: Tensor = self.last(torch.tanh(self.shared(y)).mean((2, 3)))
        return scores


def deep_task(dtype: str = "float64") -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = Deep()
    digits = datasets.digits()
    return Task(module, (digits.features[:120], digits.labels[:120]), F.cross_entropy, dtype=dtype)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[], ObjectiveKind]] = {
    "quadratic": lambda: Quadratic(dimension=20, zeta2=3.0),
    "scalar-quadratics": lambda: ScalarQuadratics((0.5, 1, 1.5, 2), (-3, -1, 1, 7), (1, 1, 2, 4)),
    "logistic": lambda: Logistic(dtype="float64", l2=0.01),
    "mlp": lambda: Mlp(dtype="float64"),
    "cnn": lambda: Cnn(dtype="float64"),
    "quadratic-sum": lambda: QuadraticSum(summands=48, dimension=6, parts="rank-one"),
    "portfolio": lambda: Portfolio(samples=60, assets=8, l2=0.3),
    "policy-evaluation": lambda: PolicyEvaluation(states=12, features=4, transitions=30),
    "task": lambda: deep_task(),
}


def near_start(objective: Objective, seed: int = 0) -> Tensor:
    """A model that is no special point."""
    noise = np.random.default_rng(seed).standard_normal(objective.parameters)
    return objective.initial_model() + 0.1 * torch.from_numpy(noise).to(objective.dtype)


# What holds for every objective


def test_every_named_kind_is_tested() -> None:
    assert set(OBJECTIVES) == set(KINDS) - {"task"}


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_the_derivative_of_the_loss(name: str) -> None:
    # Central differences in float64: truncation h² and rounding 1e-16 / h are both below 1e-9 for h = 1e-5.
    objective = KINDS[name]().build(3)
    x = near_start(objective)
    gradient = objective.oracle(0, (1.0,), 8, 1).full_gradient(x)
    generator = np.random.default_rng(1)
    for _ in range(3):
        direction = torch.from_numpy(generator.standard_normal(objective.parameters))
        direction /= direction.norm()
        h = 1e-5
        slope = (objective.loss(x + h * direction) - objective.loss(x - h * direction)) / (2 * h)
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert objective.gradient_norm(x) == pytest.approx(float(gradient.norm()), rel=1e-12)


@pytest.mark.parametrize("name", [*KINDS, "mlp in float32", "task with dropout"])
def test_loss_and_gradient_norm_together_are_those_of_each_alone(name: str) -> None:
    others: dict[str, Callable[[], ObjectiveKind]] = {
        "mlp in float32": Mlp,
        "task with dropout": lambda: Task(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10)),
            (datasets.digits().features, datasets.digits().labels),
            F.cross_entropy,
        ),
    }
    objective = {**KINDS, **others}[name]().build(3)
    x = near_start(objective)
    assert objective.loss_and_gradient_norm(x) == (objective.loss(x), objective.gradient_norm(x))


def _stack(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return nn.Sequential(*layers)


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda _, inputs, output: 2 * output)
    return module


def _frozen(layer: nn.Linear) -> nn.Linear:
    layer.bias.requires_grad_(False)
    return layer


@pytest.mark.parametrize(
    ("module", "stacked"),
    [
        (_stack(nn.Flatten(), nn.Linear(64, 10)), True),
        (_stack(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)), True),
        (
            _stack(
                nn.Flatten(), nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
            ),
            True,
        ),
        (_stack(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.Linear(16, 10)), False),
        (_stack(nn.Flatten(), _frozen(nn.Linear(64, 16)), nn.Linear(16, 10)), False),
        (_stack(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), False),
        (_hooked(_stack(nn.Flatten(), nn.Linear(64, 10))), False),
        (_stack(nn.Flatten(), _hooked(nn.Linear(64, 10))), False),
    ],
)
def test_gradients_of_linear_layers_are_stacked_products(module: nn.Module, stacked: bool) -> None:
    digits = datasets.digits()
    task = Task(module, (digits.features, digits.labels), F.cross_entropy, dtype="float64")
    objective = task.build(1)
    assert (objective._stack is not None) is stacked
    oracles = [objective.oracle(rank, (0.5, 0.25, 0.25), 4, 1) for rank in range(3)]
    again = [objective.oracle(rank, (0.5, 0.25, 0.25), 4, 1) for rank in range(3)]
    models = [near_start(objective, rank) for rank in range(3)]
    together = objective.batch_gradients([o.request(x) for o, x in zip(oracles, models, strict=True)])
    for oracle, x, gradient in zip(again, models, together, strict=True):
        torch.testing.assert_close(gradient, oracle.gradient(x), rtol=1e-12, atol=1e-14)
        assert not gradient.requires_grad


def test_gradients_are_evaluated_together_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most so many samples, and of mini-batches of one size, in the order in which they were asked."""
    objective = Mlp(dtype="float64").build(1)
    batches = (4, 4, 2, 4, 20, 4)
    oracles = [objective.oracle(rank, (1.0,) * 6, batch, 1) for rank, batch in enumerate(batches)]
    x = near_start(objective, 1)
    requests = [oracle.request(x) for oracle in oracles]
    pieces: list[int] = []
    together = ModuleObjective._gradients_together

    def counted(self: ModuleObjective, some: Sequence[Request]) -> torch.Tensor:
        pieces.append(len(some))
        return together(self, some)

    monkeypatch.setattr("simulator.workload.objective.EVALUATION_BATCH", 9)
    monkeypatch.setattr(ModuleObjective, "_gradients_together", counted)
    gradients = objective.batch_gradients(requests)
    assert pieces == [2, 2, 1, 1]
    for request, gradient in zip(requests, gradients, strict=True):
        torch.testing.assert_close(gradient, objective.batch_gradient(*request), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("scalar-quadratics", 4),
        *((name, n) for name in sorted(KINDS.keys() - {"scalar-quadratics", "task"}) for n in (3, 4)),
    ],
)
def test_weighted_mean_of_the_workers_gradients_is_that_of_f(name: str, workers: int) -> None:
    # 1797 = 3 · 599, so three equal shares give equal shards and the plain mean is exact; for others the
    # weights are the shard sizes.
    objective = KINDS[name]().build(3)
    x = near_start(objective)
    shares = (1.0, 1.0, 2.0, 4.0) if workers == 4 else (1.0,) * workers
    oracles = [objective.oracle(rank, shares, 5, 1) for rank in range(workers)]
    shards = [getattr(oracle, "shard", None) for oracle in oracles]
    weights = [share if shard is None else len(shard) for share, shard in zip(shares, shards, strict=True)]
    mean = sum(w * oracle.full_gradient(x) for w, oracle in zip(weights, oracles, strict=True)) / sum(weights)
    whole = objective.oracle(0, (1.0,), 5, 9).full_gradient(x)
    assert isinstance(mean, Tensor)
    assert float((mean - whole).norm()) <= 1e-13 * max(1.0, float(whole.norm()))


def test_mean_of_whole_epoch_gradients_is_the_gradient_of_f() -> None:
    # A mini-batch as large as the shard, without replacement, is the shard: the drawn gradient is exact.
    objective = Mlp(dtype="float64", sampling="epoch").build(3)
    x = near_start(objective)
    drawn = [objective.oracle(rank, (1.0,) * 3, 599, 1).gradient(x) for rank in range(3)]
    whole = objective.oracle(0, (1.0,), 1, 1).full_gradient(x)
    assert float(((drawn[0] + drawn[1] + drawn[2]) / 3 - whole).norm()) <= 1e-14


@pytest.mark.parametrize("name", KINDS)
def test_draws_are_reproducible_fresh_and_leave_the_model_alone(name: str) -> None:
    def draws(rank: int, seed: int) -> list[Tensor]:
        oracle = KINDS[name]().build(3).oracle(rank, (1.0,) * 4, 4, seed)
        return [oracle.gradient(x) for _ in range(3)]

    objective = KINDS[name]().build(3)
    x = near_start(objective)
    before = x.clone()
    first, again = draws(2, 5), draws(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(x, before)
    assert all(g.shape == x.shape and g.dtype == x.dtype and not g.requires_grad for g in first)
    assert len({g.data_ptr() for g in (*first, x)}) == 4
    if name != "scalar-quadratics":
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], draws(2, 6)[0])
        assert not torch.equal(first[0], draws(1, 5)[0])
    assert torch.equal(objective.initial_model(), KINDS[name]().build(3).initial_model())
    objective.initial_model().fill_(1e9)
    assert torch.equal(objective.initial_model(), KINDS[name]().build(3).initial_model())
    assert objective.loss(x) == KINDS[name]().build(3).loss(x)


@pytest.mark.parametrize("name", KINDS)
@given(cuts=st.lists(st.floats(0, 1), max_size=6), order=st.randoms(use_true_random=False))
def test_buckets_are_bit_equal_to_the_gradient_and_in_order(
    name: str, cuts: list[float], order: object
) -> None:
    objective = CACHED[name]
    total = objective.parameters
    edges = [0, *sorted(round(c * total) for c in cuts), total]
    bounds = list(itertools.pairwise(edges))[::-1]
    order.shuffle(bounds)  # type: ignore[attr-defined]
    whole, sliced = (objective.oracle(1, (1.0,) * 4, 8, 5) for _ in range(2))
    x = near_start(objective)
    for _ in range(2):
        gradient = whole.gradient(x)
        got: list[tuple[int, Tensor]] = []
        sliced.gradient_in_buckets(x, bounds, lambda k, bucket: got.append((k, bucket)))  # noqa: B023
        assert [k for k, _ in got] == list(range(len(bounds)))
        for k, bucket in got:
            assert torch.equal(bucket, gradient[slice(*bounds[k])])
    assert torch.equal(whole.gradient(x), sliced.gradient(x))


CACHED = {name: make().build(3) for name, make in KINDS.items()}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([(0, 10), (12, 20)], "bucket [12, 20) does not follow on 10; buckets must cover [0, 20) once"),
        ([(5, 20), (0, 10)], "bucket [5, 20) does not follow on 10; buckets must cover [0, 20) once"),
        ([(0, 10)], "buckets cover [0, 10) instead of [0, 20)"),
        ([], "buckets cover [0, 0) instead of [0, 20)"),
    ],
)
def test_bad_buckets(bounds: list[tuple[int, int]], message: str) -> None:
    objective = KINDS["quadratic"]().build(1)
    with pytest.raises(ValueError) as e:
        objective.oracle(0, (1.0,), 1, 1).gradient_in_buckets(objective.initial_model(), bounds, print)
    assert str(e.value) == f"quadratic of dimension 20: {message}"


def test_bad_models_and_workers() -> None:
    objective = Mlp().build(1)
    oracle = objective.oracle(0, (1.0,), 1, 1)
    wrong = (
        "MLP on digits: a model is a vector of 2410 torch.float32 values, got shape (2410,) of torch.float64"
    )
    for call in (objective.loss, objective.gradient_norm, oracle.gradient, oracle.full_gradient):
        with pytest.raises(ValueError, match=f"^{re.escape(wrong)}$"):
            call(objective.initial_model().double())
    for rank, shares, batch, message in [
        (2, (1.0, 1.0), 1, "MLP on digits: rank 2 is not one of 2 workers"),
        (-1, (1.0, 1.0), 1, "MLP on digits: rank -1 is not one of 2 workers"),
        (0, (1.0, 0.0), 1, "MLP on digits: the share of worker 1 must be finite and above 0, got 0"),
        (0, (1.0,), 0, "MLP on digits: batch must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            objective.oracle(rank, shares, batch, 1)


# Quadratic


def test_quadratic_closed_form() -> None:
    objective = Quadratic(dimension=5, L=2.0, mu=0.5).build(4)
    minimiser = objective.minimiser  # type: ignore[attr-defined]
    eigenvalues = torch.tensor([0.5, 0.875, 1.25, 1.625, 2.0], dtype=torch.float64)
    assert objective.loss(minimiser) == 0.0
    assert objective.gradient_norm(minimiser) == 0.0
    x = near_start(objective)
    assert objective.loss(x) == pytest.approx(
        0.5 * float((eigenvalues * (x - minimiser) ** 2).sum()), rel=1e-14
    )
    assert objective.gradient_norm(x) == pytest.approx(
        float((eigenvalues * (x - minimiser)).norm()), rel=1e-14
    )
    assert objective.loss(x) == Quadratic(dimension=5, L=2.0, mu=0.5, zeta2=9.0).build(4).loss(x)


@pytest.mark.parametrize("batch", [1, 4])
def test_quadratic_noise_has_the_stated_variance_and_mean_zero(batch: int) -> None:
    # n draws in d directions: the sum of squares is σ²/(Bd)·χ² with nd degrees of freedom, so the estimate of
    # σ²/B has relative standard error sqrt(2/(nd)) = 0.0045; the mean has norm about sqrt(σ²/(Bn)).
    draws, dimension, sigma2 = 4000, 25, 3.0
    objective = Quadratic(dimension=dimension, sigma2=sigma2).build(1)
    x = near_start(objective)
    oracle = objective.oracle(0, (1.0,), batch, 2)
    noise = torch.stack([oracle.gradient(x) for _ in range(draws)]) - oracle.full_gradient(x)
    standard_error = (2 / (draws * dimension)) ** 0.5
    assert float((noise**2).sum(1).mean()) == pytest.approx(sigma2 / batch, rel=5 * standard_error)
    assert float(noise.mean(0).norm()) < 2 * (sigma2 / batch / draws) ** 0.5


@pytest.mark.parametrize("shares", [(1.0, 1.0), (1.0, 1.0, 2.0, 4.0), (0.1,) * 10])
@pytest.mark.parametrize("dimension", [1, 30])
def test_quadratic_heterogeneity(shares: tuple[float, ...], dimension: int) -> None:
    objective = Quadratic(dimension=dimension, L=1.0, mu=1.0, zeta2=2.5).build(1)
    x = near_start(objective)
    gradients = torch.stack([objective.oracle(r, shares, 1, 2).full_gradient(x) for r in range(len(shares))])
    weights = torch.tensor(shares, dtype=torch.float64)
    weights /= weights.sum()
    whole = objective.oracle(0, (1.0,), 1, 2).full_gradient(x)
    assert float((weights @ gradients - whole).norm()) < 1e-14 * 30
    assert float(weights @ ((gradients - whole) ** 2).sum(1)) == pytest.approx(2.5, rel=1e-12)


def test_quadratic_without_noise_is_exact_and_one_worker_has_no_offset() -> None:
    objective = Quadratic(dimension=8, sigma2=0.0, zeta2=4.0, dtype="float32").build(1)
    oracle = objective.oracle(0, (1.0,), 1, 1)
    assert isinstance(oracle, QuadraticOracle)
    assert oracle.offset.abs().max() == 0
    x = objective.initial_model()
    assert x.dtype == torch.float32
    assert torch.equal(oracle.gradient(x), oracle.full_gradient(x))
    assert float(oracle.gradient(x).norm()) == pytest.approx(objective.gradient_norm(x), rel=1e-6)


# Scalar quadratics


def test_scalar_quadratics_reproduce_the_golden_of_all_reduce_sgd() -> None:
    golden = json.loads((TESTS / "goldens" / "algorithm_vectors.json").read_text())
    objective = ScalarQuadratics(tuple(golden["a"]), tuple(golden["b"])).build(0)
    oracles = [objective.oracle(rank, (1.0,) * 4, 1, 0) for rank in range(4)]
    single = objective.oracle(0, (1.0,), 1, 0)
    x, y = objective.initial_model(), objective.initial_model()
    for _ in range(golden["local_steps"]):
        gradients = [oracle.gradient(x) for oracle in oracles]
        x = x - golden["step"] * sum(gradients) / 4
        y = y - golden["step"] * single.gradient(y)
    expected = golden["workers_after"]["allreduce_sgd"][0]
    assert float(x) == pytest.approx(expected, abs=1e-12)
    assert float(y) == pytest.approx(expected, abs=1e-12)


def test_scalar_quadratics_minimum() -> None:
    # Minimum of Σ w a (x - b)²/2: x* = Σ w a b / Σ w a, 4.52 for shares 1, 1, 2, 4 and 2.6 for equal ones.
    for weights, minimum in [(None, 2.6), ((1.0, 1.0, 2.0, 4.0), 4.52)]:
        objective = ScalarQuadratics((0.5, 1, 1.5, 2), (-3, -1, 1, 7), weights).build(0)
        x = torch.tensor([minimum], dtype=torch.float64)
        assert objective.gradient_norm(x) == pytest.approx(0, abs=0.01)
        assert objective.loss(x) < min(objective.loss(x - 0.1), objective.loss(x + 0.1))


def test_scalar_quadratics_world_size() -> None:
    objective = ScalarQuadratics((1, 2), (3, 4)).build(0)
    with pytest.raises(ValueError, match=r"^2 scalar quadratics need 2 workers or 1, got 3$"):
        objective.oracle(0, (1.0,) * 3, 1, 0)


# Samples


def test_reference_sizes() -> None:
    assert Mlp().build(0).parameters == 2410
    assert Logistic().build(0).parameters == 650
    assert Cnn().build(0).parameters == 1898
    assert Mlp(data="mnist", folder="/nowhere").build(0).parameters == 32 * 785 + 330
    assert Cnn(data="cifar10", folder="/nowhere").build(0).parameters == 8 * 28 + 16 * 73 + 10 * (16 * 64 + 1)


def test_data_are_read_when_needed_and_not_before() -> None:
    objective = Mlp(data="mnist", folder="/nowhere").build(0)
    x = objective.initial_model()
    with pytest.raises(ValueError, match=r"^/nowhere holds neither train-images-idx3-ubyte nor "):
        objective.loss(x)
    with pytest.raises(ValueError, match=r"^/nowhere holds neither train-images-idx3-ubyte nor "):
        objective.oracle(0, (1.0,), 1, 1)


def test_mlp_gradient_equals_plain_torch() -> None:
    objective = Mlp().build(3)
    digits = datasets.digits()
    module = small_mlp()
    nn.utils.vector_to_parameters(objective.initial_model(), module.parameters())
    F.cross_entropy(module(digits.features), digits.labels).backward()  # type: ignore[no-untyped-call]
    expected = nn.utils.parameters_to_vector([p.grad for p in module.parameters() if p.grad is not None])
    found = objective.oracle(0, (1.0,), 1, 1).full_gradient(objective.initial_model())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert objective.loss(objective.initial_model()) == pytest.approx(
        float(F.cross_entropy(module(digits.features), digits.labels).detach()), rel=1e-6
    )


def test_logistic_gradient_equals_autograd() -> None:
    objective = Logistic(dtype="float64", l2=0.1).build(3)
    digits = datasets.digits()
    x = near_start(objective).requires_grad_()
    logits = F.linear(digits.features.flatten(1).double(), x[:640].view(10, 64), x[640:])
    (F.cross_entropy(logits, digits.labels) + 0.05 * x @ x).backward()  # type: ignore[no-untyped-call]
    found = objective.oracle(0, (1.0,), 1, 1).full_gradient(x.detach())
    assert x.grad is not None
    assert torch.allclose(found, x.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("make", [Mlp, Cnn, Logistic])
def test_descent(make: type[Mlp]) -> None:
    objective = make(sampling="epoch").build(0)
    oracle = objective.oracle(0, (1.0,), 32, 0)
    x = objective.initial_model()
    start = objective.loss(x)
    for _ in range(200):
        x = x - 0.2 * oracle.gradient(x)
    assert objective.loss(x) < 0.5 * start


def test_mini_batch_gradients_are_unbiased() -> None:
    # Mean of n draws of batch B: standard error of the norm is sqrt(Var/(nB)), Var the per-sample variance.
    objective = Mlp(dtype="float64", shards="by-label").build(3)
    x = near_start(objective)
    oracle = objective.oracle(1, (1.0,) * 4, 16, 1)
    draws = torch.stack([oracle.gradient(x) for _ in range(400)])
    standard_error = float(draws.var(0).sum().sqrt()) / 400**0.5
    assert float((draws.mean(0) - oracle.full_gradient(x)).norm()) < 2 * standard_error


def test_initial_model_and_shards_come_from_the_right_seed() -> None:
    assert not torch.equal(Mlp().build(1).initial_model(), Mlp().build(2).initial_model())
    assert torch.equal(Mlp().build(1).initial_model(), Mlp(dtype="float64").build(1).initial_model().float())
    state = torch.get_rng_state()
    first, second = Mlp(shards="dirichlet", alpha=0.1).build(1), Mlp(shards="dirichlet", alpha=0.1).build(2)
    assert torch.equal(state, torch.get_rng_state())
    one, two, other = (
        first.oracle(0, (1, 2), 4, 8),
        second.oracle(0, (1, 2), 4, 8),
        first.oracle(0, (1, 2), 4, 9),
    )
    assert np.array_equal(one.shard, two.shard)  # type: ignore[attr-defined]
    assert not np.array_equal(one.shard, other.shard)  # type: ignore[attr-defined]


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 6))
def test_epochs_use_every_sample_equally_often(size: int, batch: int, epochs: int) -> None:
    shard = np.arange(100, 100 + size)
    sampler = Sampler(shard, batch, True, np.random.default_rng(0))
    drawn = np.concatenate([sampler.draw().numpy() for _ in range(epochs * size)])
    assert np.array_equal(np.bincount(drawn)[100:], np.full(size, epochs * batch))
    for start in range(0, len(drawn), size):
        assert sorted(drawn[start : start + size]) == shard.tolist()


def test_uniform_sampling_stays_in_the_shard_and_replaces() -> None:
    sampler = Sampler(np.array([4, 7, 9]), 50, False, np.random.default_rng(0))
    assert set(sampler.draw().tolist()) == {4, 7, 9}


def test_gradients_are_the_same_in_another_process() -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from simulator.workload import Mlp\n"
        "o = Mlp(shards='dirichlet', alpha=0.3).build(1)\n"
        "x = o.initial_model(); g = o.oracle(1, (1, 2), 8, 3)\n"
        "for _ in range(20): x = x - 0.1 * g.gradient(x)\n"
        "print(x.numpy().tobytes().hex()[:4000], o.loss(x).hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS.parent,
        env={"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    objective = Mlp(shards="dirichlet", alpha=0.3).build(1)
    x, oracle = objective.initial_model(), objective.oracle(1, (1, 2), 8, 3)
    for _ in range(20):
        x = x - 0.1 * oracle.gradient(x)
    assert done.stdout == f"{x.numpy().tobytes().hex()[:4000]} {objective.loss(x).hex()}\n"


# Kinds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic(dimension=0), "quadratic: dimension must be at least 1, got 0"),
        (lambda: Quadratic(L=0.0), "quadratic: L must be finite and above 0, got 0.0"),
        (lambda: Quadratic(mu=2.0), "quadratic: mu must be above 0 and at most L = 1.0, got 2.0"),
        (lambda: Quadratic(dimension=1),
         "quadratic: dimension 1 has one eigenvalue, so mu must be L = 1.0, got 0.1"),
        (lambda: Quadratic(sigma2=-1.0), "quadratic: sigma2 must be finite and at least 0, got -1.0"),
        (lambda: Quadratic(zeta2=float("nan")), "quadratic: zeta2 must be finite and at least 0, got nan"),
        (lambda: Quadratic(dtype="float3"), "quadratic: unknown dtype 'float3'; the nearest is 'float32'"),  # type: ignore[arg-type]
        (lambda: ScalarQuadratics((), ()), "scalar-quadratics: curvatures must name at least one component"),
        (lambda: ScalarQuadratics((1.0,), (1.0, 2.0)), "scalar-quadratics: 1 curvatures but 2 centres"),
        (lambda: ScalarQuadratics((1.0,), (1.0,), (1.0, 2.0)),
         "scalar-quadratics: 1 curvatures but 2 weights"),
        (lambda: ScalarQuadratics((1.0,), (1.0,), (0.0,)),
         "scalar-quadratics: weights must be finite and above 0, got 0.0"),
        (lambda: ScalarQuadratics((1.0,), (float("inf"),)),
         "scalar-quadratics: centres must be finite, got inf"),
        (lambda: Mlp(data="digit"), "mlp: unknown data 'digit'; the nearest is 'digits'"),  # type: ignore[arg-type]
        (lambda: Mlp(folder="x"), "mlp: folder is not used by data digits, got 'x'"),
        (lambda: Cnn(data="mnist"), "cnn: data mnist needs folder, the place of its files"),
        (lambda: Mlp(shards="label"), "mlp: unknown shards 'label'; the nearest is 'by-label'"),  # type: ignore[arg-type]
        (lambda: Mlp(sampling="all"), "mlp: unknown sampling 'all'; known are uniform, epoch"),  # type: ignore[arg-type]
        (lambda: Mlp(shards="dirichlet"), "mlp: shards dirichlet needs alpha, its concentration"),
        (lambda: Mlp(shards="dirichlet", alpha=0.0), "mlp: alpha must be finite and above 0, got 0.0"),
        (lambda: Logistic(alpha=1.0), "logistic: alpha is not used by shards iid, got 1.0"),
        (lambda: Logistic(l2=-1.0), "logistic: l2 must be finite and at least 0, got -1.0"),
        (lambda: Mlp(hidden=0), "mlp: hidden must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_kinds(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as e:
        make()
    assert str(e.value) == message
