from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from simulator.workload import QuadraticSum
from simulator.workload.finite_sum import ShardSum
from simulator.workload.quadratic_sum import QuadraticSumObjective

KINDS = [
    QuadraticSum(summands=40, dimension=5, L=1.5, mu=0.1, shift=2.0, sigma2=3.0, parts=parts)
    for parts in ("diagonal", "rank-one")
]


def built(kind: QuadraticSum, seed: int = 4) -> QuadraticSumObjective:
    objective = kind.build(seed)
    assert isinstance(objective, QuadraticSumObjective)
    return objective


def hessians(objective: QuadraticSumObjective) -> Tensor:
    """∇²f_i for all i by exact differences of gradients, which are affine, of shape [n, d, d]."""
    everyone, origin = torch.arange(objective.kind.summands), objective.initial_model().double()
    at_origin = objective.sample_gradients(origin, everyone)
    return torch.stack(
        [objective.sample_gradients(e, everyone) - at_origin for e in torch.eye(len(origin)).double()], dim=2
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.parts)
def test_half_of_the_summands_are_not_convex_but_f_is_strongly_convex(kind: QuadraticSum) -> None:
    objective = built(kind)
    each = hessians(objective)
    assert float((each - each.transpose(1, 2)).abs().max()) < 1e-12
    spectra = torch.linalg.eigvalsh(each)
    assert int((spectra[:, 0] < -1).sum()) == kind.summands // 2
    assert float(spectra.abs().max()) == pytest.approx(objective.smoothness, rel=1e-12)
    expected = torch.diag(torch.linspace(0.1, 1.5, 5, dtype=torch.float64))
    assert float((each.mean(0) - expected).abs().max()) < 1e-13
    assert objective.mu == 0.1


def test_smoothness_of_diagonal_parts_in_closed_form() -> None:
    assert built(QuadraticSum(L=1.52, mu=0.032, shift=2.0)).smoothness == pytest.approx(3.52, rel=1e-15)
    assert built(QuadraticSum(dimension=1, L=1.0, mu=1.0, shift=0.5)).smoothness == 1.5
    # Small c_i leave the shift alone in all directions but one.
    assert built(QuadraticSum(L=0.01, mu=0.01, shift=50.0, parts="rank-one")).smoothness < 51
    assert built(QuadraticSum(L=0.01, mu=0.01, shift=50.0, parts="rank-one")).smoothness >= 50


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.parts)
def test_minimiser_minimum_and_noise(kind: QuadraticSum) -> None:
    objective = built(kind)
    everyone = torch.arange(kind.summands)
    at_minimum = objective.sample_gradients(objective.minimiser, everyone)
    assert objective.loss(objective.minimiser) == 0.0
    assert objective.gradient_norm(objective.minimiser) == 0.0
    assert float(at_minimum.mean(0).norm()) < 1e-14
    assert float((at_minimum**2).sum(1).mean()) == pytest.approx(3.0, rel=1e-12)
    x = torch.ones(5, dtype=torch.float64)
    distance = x - objective.minimiser
    expected = 0.5 * float((torch.linspace(0.1, 1.5, 5, dtype=torch.float64) * distance**2).sum())
    assert objective.loss(x) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.parts)
def test_gradients_are_those_of_the_formula(kind: QuadraticSum) -> None:
    # ½ (x-b)ᵀ (H_i + s_i I) (x-b) + v_iᵀ (x-b), rebuilt from the parts.
    objective = built(kind)
    (vectors, offsets), shifts = objective.samples
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    distance = x - objective.minimiser
    for i in (0, 39):
        matrix = (
            torch.diag(torch.linspace(0.1, 1.5, 5, dtype=torch.float64))
            if kind.parts == "diagonal"
            else torch.outer(vectors[i], vectors[i])
        )
        expected = (matrix + shifts[i] * torch.eye(5, dtype=torch.float64)) @ distance + offsets[i]
        found = objective.sample_gradients(x, torch.tensor([i]))[0]
        assert float((found - expected).norm()) < 1e-13
    assert sorted(set(shifts.tolist())) == [-2.0, 2.0]


def test_the_seed_makes_the_problem() -> None:
    kind = KINDS[1]
    x = torch.ones(5, dtype=torch.float64)
    everyone = torch.arange(40)
    one, again, other = built(kind), built(kind), built(kind, 5)
    assert torch.equal(one.sample_gradients(x, everyone), again.sample_gradients(x, everyone))
    assert not torch.equal(one.sample_gradients(x, everyone), other.sample_gradients(x, everyone))
    assert one.loss(x) == again.loss(x) != other.loss(x)


def test_float32_rounds_once() -> None:
    exact = built(KINDS[1])
    single = built(QuadraticSum(**{**vars(KINDS[1]), "dtype": "float32"}))
    x = torch.linspace(-1, 1, 5)
    chosen = torch.tensor([3, 30])
    assert torch.equal(single.sample_gradients(x, chosen), exact.sample_gradients(x.double(), chosen).float())
    assert single.loss(x) == exact.loss(x.double())


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_summands_are_shared_out_equally(workers: int) -> None:
    oracles = [built(KINDS[0]).oracle(rank, (1.0,) * workers, 4, 1) for rank in range(workers)]
    sums = [oracle.problem for oracle in oracles]
    counts = [problem.count for problem in sums if isinstance(problem, ShardSum)]
    assert sum(counts) == 40
    assert max(counts) - min(counts) <= 1


def test_mini_batches_of_an_epoch_are_the_full_gradient() -> None:
    objective = built(QuadraticSum(**{**vars(KINDS[0]), "sampling": "epoch"}))
    oracle = objective.oracle(1, (1.0,) * 4, 10, 1)
    x = torch.ones(5, dtype=torch.float64)
    assert float((oracle.gradient(x) - oracle.full_gradient(x)).norm()) < 1e-14


def test_variance_reduction_converges_where_plain_sgd_stalls() -> None:
    objective = built(QuadraticSum(summands=100, dimension=5, L=1.0, mu=0.2, shift=1.0))
    problem = objective.oracle(0, (1.0,), 1, 1).problem
    assert isinstance(problem, ShardSum)
    generator = np.random.default_rng(1)
    plain, reduced = objective.initial_model(), objective.initial_model()
    step = 0.1 / objective.smoothness
    for _ in range(20):
        snapshot = reduced.clone()
        full = problem.full_gradient(snapshot)
        for _ in range(100):
            one = torch.from_numpy(generator.integers(100, size=1))
            plain = plain - step * problem.gradient(plain, one)
            reduced = reduced - step * (
                full + problem.gradient(reduced, one) - problem.gradient(snapshot, one)
            )
    assert objective.loss(reduced) < 1e-6 < 1e-3 < objective.loss(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"summands": 7}, "quadratic-sum: summands must be even and at least 2, got 7"),
        ({"summands": 0}, "quadratic-sum: summands must be even and at least 2, got 0"),
        ({"dimension": 0}, "quadratic-sum: dimension must be at least 1, got 0"),
        ({"L": float("inf")}, "quadratic-sum: L must be finite and above 0, got inf"),
        ({"mu": 2.0}, "quadratic-sum: mu must be above 0 and at most L = 1.0, got 2.0"),
        ({"dimension": 1}, "quadratic-sum: dimension 1 has one eigenvalue, so mu must be L = 1.0, got 0.02"),
        ({"shift": -1.0}, "quadratic-sum: shift must be finite and at least 0, got -1.0"),
        ({"sigma2": float("nan")}, "quadratic-sum: sigma2 must be finite and at least 0, got nan"),
        ({"parts": "rank-on"}, "quadratic-sum: unknown parts 'rank-on'; the nearest is 'rank-one'"),
        ({"parts": "rank-one", "summands": 10},
         "quadratic-sum: parts rank-one need summands of at least dimension = 20, got 10"),
        ({"sampling": "all"}, "quadratic-sum: unknown sampling 'all'; known are uniform, epoch"),
        ({"dtype": "float3"}, "quadratic-sum: unknown dtype 'float3'; the nearest is 'float32'"),
    ],
)  # fmt: skip
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        QuadraticSum(**settings)  # type: ignore[arg-type]


def test_more_workers_than_summands() -> None:
    with pytest.raises(ValueError) as e:
        built(QuadraticSum(summands=2, dimension=3)).oracle(0, (1.0,) * 3, 1, 1)
    assert str(e.value) == (
        "shards: worker 2 would get no sample, its share of 2 samples is 0.667; "
        "use fewer workers or a larger share"
    )
