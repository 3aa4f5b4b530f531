from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from simulator.workload import ObjectiveKind, PolicyEvaluation, Portfolio
from simulator.workload.compositional import (
    CompositionalObjective,
    PolicyEvaluationObjective,
    PortfolioObjective,
)

KINDS: dict[str, Callable[..., ObjectiveKind]] = {
    "portfolio": lambda **more: Portfolio(samples=40, assets=6, l2=0.3, **more),
    "policy-evaluation": lambda **more: PolicyEvaluation(states=9, features=4, transitions=25, **more),
}


def built(name: str, seed: int = 4, **more: object) -> CompositionalObjective:
    objective = KINDS[name](**more).build(seed)
    assert isinstance(objective, CompositionalObjective)
    return objective


def somewhere(objective: CompositionalObjective, seed: int = 0) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal(objective.parameters)
    return torch.from_numpy(drawn).to(objective.dtype)


def parts(objective: CompositionalObjective) -> tuple[Tensor, Tensor]:
    return torch.arange(objective.inner_count), torch.arange(objective.outer_count)


# The functions of the docstrings, written out in numpy for one i and one j at a time.


def inner_function(objective: CompositionalObjective, x: np.ndarray, j: int) -> np.ndarray:
    if isinstance(objective, PortfolioObjective):
        return np.append(x, -objective.returns[j].numpy() @ x)
    assert isinstance(objective, PolicyEvaluationObjective)
    values = objective.features.numpy() @ x
    following = [
        objective.rewards[s, t].item() + objective.gamma * values[t]
        for s, t in enumerate(objective.transitions[j].tolist())
    ]
    return np.concatenate([values, following])


def outer_function(objective: CompositionalObjective, y: np.ndarray, i: int) -> float:
    if isinstance(objective, PortfolioObjective):
        r = objective.returns[i].numpy()
        value = (np.append(r, 1.0) @ y) ** 2 - r @ y[:-1] + 0.5 * objective.l2 * y[:-1] @ y[:-1]
        return float(value)
    states = len(y) // 2
    return float((y[i] - y[states + i]) ** 2)


def composed(objective: CompositionalObjective, x: np.ndarray) -> float:
    """f(x) by its definition."""
    y = np.mean([inner_function(objective, x, j) for j in range(objective.inner_count)], axis=0)
    return float(np.mean([outer_function(objective, y, i) for i in range(objective.outer_count)]))


def derivative(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Central differences, exact but for rounding where the function is a polynomial of degree 2."""
    h = 1e-3
    columns = [(function(x + h * e) - function(x - h * e)) / (2 * h) for e in np.eye(len(x))]
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("name", KINDS)
def test_parts_are_those_of_the_formulas(name: str) -> None:
    objective = built(name)
    x = somewhere(objective)
    y = torch.from_numpy(np.random.default_rng(1).standard_normal(objective.inner_dimension))
    for chosen in (torch.tensor([0]), torch.tensor([7, 3, 7, 8])):
        picked = chosen.tolist()
        inner = np.mean([inner_function(objective, x.numpy(), j) for j in picked], axis=0)
        np.testing.assert_allclose(objective.inner(x, chosen), inner, atol=1e-13)
        jacobian = derivative(
            lambda z: np.mean([inner_function(objective, z, j) for j in picked], axis=0),  # noqa: B023
            x.numpy(),
        )
        np.testing.assert_allclose(objective.jacobian(x, chosen), jacobian, atol=1e-10)
        slope = derivative(
            lambda z: np.array(np.mean([outer_function(objective, z, i) for i in picked])),  # noqa: B023
            y.numpy(),
        )
        np.testing.assert_allclose(objective.outer_gradient(y, chosen), slope, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_loss_is_the_gap_of_the_composition(name: str) -> None:
    objective = built(name)
    for seed in range(3):
        x = somewhere(objective, seed)
        gap = composed(objective, x.numpy()) - objective.minimum
        assert objective.loss(x) == pytest.approx(gap, rel=1e-12)
    assert composed(objective, objective.minimiser.numpy()) == pytest.approx(objective.minimum, rel=1e-12)
    assert objective.loss(objective.minimiser) == 0.0
    assert objective.gradient_norm(objective.minimiser) == 0.0
    assert objective.loss(objective.initial_model()) > 0


@pytest.mark.parametrize("name", KINDS)
def test_chain_rule_over_all_parts_is_the_gradient(name: str) -> None:
    objective = built(name)
    x = somewhere(objective)
    inner, outer = parts(objective)
    y = objective.inner(x, inner)
    chained = objective.jacobian(x, inner).t() @ objective.outer_gradient(y, outer)
    exact = objective.oracle(0, (1.0,), 1, 1).full_gradient(x)
    assert float((chained - exact).norm()) < 1e-12 * float(exact.norm())
    slope = derivative(lambda z: np.array(composed(objective, z)), x.numpy())
    np.testing.assert_allclose(exact, slope, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_constants(name: str) -> None:
    objective = built(name)
    x, y = somewhere(objective), somewhere(objective, 1)
    inner, _ = parts(objective)
    assert objective.constant_jacobian
    assert torch.equal(objective.jacobian(x, inner), objective.jacobian(y, inner))
    # Curvature of f and of a single term F_i(mean of the G_j), from the functions themselves.
    full = derivative(lambda z: derivative(lambda w: np.array(composed(objective, w)), z), x.numpy())
    spectrum = np.linalg.eigvalsh(full)
    np.testing.assert_allclose([objective.mu, objective.L], spectrum[[0, -1]], rtol=1e-6)
    jacobian = objective.jacobian(x, inner)
    largest = 0.0
    for i in range(objective.outer_count):
        one = torch.tensor([i])

        def slope(z: np.ndarray, one: Tensor = one) -> np.ndarray:
            return (
                jacobian.t() @ objective.outer_gradient(objective.inner(torch.from_numpy(z), inner), one)
            ).numpy()

        largest = max(largest, np.linalg.eigvalsh(derivative(slope, x.numpy()))[-1])
    assert objective.smoothness == pytest.approx(largest, rel=1e-9)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_types_shapes_and_freshness(name: str, dtype: str) -> None:
    objective = built(name, dtype=dtype)
    wanted = getattr(torch, dtype)
    x, (inner, outer) = somewhere(objective), parts(objective)
    before = x.clone()
    y = objective.inner(x, inner)
    jacobian, slope = objective.jacobian(x, inner), objective.outer_gradient(y, outer)
    assert y.shape == slope.shape == (objective.inner_dimension,)
    assert jacobian.shape == (objective.inner_dimension, objective.parameters)
    assert x.dtype == y.dtype == jacobian.dtype == slope.dtype == wanted
    exact = objective.oracle(0, (1.0,), 1, 1).full_gradient(x)
    assert exact.dtype == wanted
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert float((jacobian.t() @ slope - exact).norm()) < tolerance * float(exact.norm())
    again = built(name, dtype=dtype)
    assert torch.equal(y, again.inner(x, inner))
    for tensor in (y, jacobian, slope):
        tensor.fill_(9.0)
    assert torch.equal(x, before)
    assert torch.equal(objective.inner(x, inner), again.inner(x, inner))
    assert torch.equal(objective.jacobian(x, inner), again.jacobian(x, inner))


@pytest.mark.parametrize("name", KINDS)
def test_every_worker_sees_all_parts(name: str) -> None:
    objective = built(name)
    x = somewhere(objective)
    oracles = [objective.oracle(rank, (1.0, 3.0), 2, 1) for rank in range(2)]
    assert all(oracle.problem is objective for oracle in oracles)
    assert torch.equal(oracles[0].full_gradient(x), oracles[1].full_gradient(x))
    assert not torch.equal(oracles[0].gradient(x), oracles[1].gradient(x))


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_makes_the_problem(name: str) -> None:
    x = somewhere(built(name))
    assert built(name).loss(x) == built(name).loss(x) != built(name, 5).loss(x)


def test_gradients_of_mini_batches_are_biased_as_said() -> None:
    # For the portfolio, with A and B independent: E[∂G_Aᵀ ∇F_B(G_A)] - ∇f = 2 E[(r_A - r̄)(⟨r_A, x⟩ - ⟨r̄, x⟩)]
    # = (2 / batch) Σ x, with Σ the covariance.
    objective = built("portfolio")
    assert isinstance(objective, PortfolioObjective)
    x = somewhere(objective)
    covariance = torch.cov(objective.returns.t(), correction=0)
    for batch in (1, 4):
        oracle = objective.oracle(0, (1.0,), batch, 1)
        draws = torch.stack([oracle.gradient(x) for _ in range(4000)])
        standard_error = float(draws.var(0).sum().sqrt()) / 4000**0.5
        bias = draws.mean(0) - oracle.full_gradient(x)
        expected = 2 / batch * covariance @ x
        assert float(expected.norm()) > 3 * standard_error
        assert float((bias - expected).norm()) < 2 * standard_error


def test_portfolio_covariance_has_the_stated_spectrum() -> None:
    objective = Portfolio(samples=80, assets=5, kappa=4.0, l2=0.5).build(2)
    assert isinstance(objective, PortfolioObjective)
    spectrum = np.linalg.eigvalsh(np.cov(objective.returns.numpy().T, bias=True))
    np.testing.assert_allclose(spectrum, [1.0, 1.75, 2.5, 3.25, 4.0], rtol=1e-12)
    assert (objective.mu, objective.L) == (pytest.approx(2.5), pytest.approx(8.5))
    # max over portfolios of mean less variance, by its own definition, at the stated optimum.
    outcome = objective.returns.numpy() @ objective.minimiser.numpy()
    penalty = 0.25 * float(objective.minimiser @ objective.minimiser)
    assert outcome.mean() - outcome.var() - penalty == pytest.approx(-objective.minimum, rel=1e-12)


def test_policy_evaluation_solves_the_bellman_equation_with_as_many_features_as_states() -> None:
    objective = PolicyEvaluation(states=7, features=7, transitions=40, gamma=0.8).build(2)
    assert isinstance(objective, PolicyEvaluationObjective)
    chain = np.zeros((7, 7))
    for row in objective.transitions.numpy():
        chain[np.arange(7), row] += 1 / 40
    values = np.linalg.solve(np.eye(7) - 0.8 * chain, (chain * objective.rewards.numpy()).sum(1))
    np.testing.assert_allclose(objective.features @ objective.minimiser, values, rtol=1e-8)
    assert objective.minimum < 1e-16


def test_transitions_follow_the_chain() -> None:
    # Every state is drawn, and the frequencies are no point masses: uniform numbers normalised by row have
    # mean 1/S each; over all rows and 2000 samples a column's frequency is within 5 standard deviations.
    objective = PolicyEvaluation(states=6, features=2, transitions=2000).build(2)
    assert isinstance(objective, PolicyEvaluationObjective)
    drawn = objective.transitions
    assert drawn.shape == (2000, 6)
    assert sorted(set(drawn.flatten().tolist())) == list(range(6))
    chain = np.random.default_rng(np.random.SeedSequence(2, spawn_key=(107,))).random((6, 6))
    chain /= chain.sum(axis=1, keepdims=True)
    for s in range(6):
        frequencies = np.bincount(drawn[:, s].numpy(), minlength=6) / 2000
        assert np.all(np.abs(frequencies - chain[s]) < 5 * np.sqrt(chain[s] / 2000) + 1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_bad_questions(name: str) -> None:
    objective = built(name)
    x, one = objective.initial_model(), torch.tensor([0])
    y = torch.zeros(objective.inner_dimension, dtype=torch.float64)
    nothing = torch.empty(0, dtype=torch.int64)
    m, n, width, title = (
        objective.inner_count,
        objective.outer_count,
        objective.inner_dimension,
        objective.name,
    )
    for call, message in [
        (lambda: objective.inner(x, torch.tensor([m])),
         f"indices of inner functions are 0 to {m - 1}, got {m}"),
        (lambda: objective.jacobian(x, nothing), "a mean over inner functions needs at least one index"),
        (lambda: objective.outer_gradient(y, torch.tensor([-1])),
         f"indices of outer functions are 0 to {n - 1}, got -1"),
        (lambda: objective.outer_gradient(y[:-1], one),
         f"an inner value is a vector of {width} torch.float64 values, "
         f"got shape ({width - 1},) of torch.float64"),
        (lambda: objective.inner(x.float(), one),
         f"a model is a vector of {len(x)} torch.float64 values, got shape ({len(x)},) of torch.float32"),
        (lambda: objective.oracle(0, (1.0,), 1, 1).request(x), None),
    ]:  # fmt: skip
        expected = f"{title}: {message}" if message else f"{title} evaluates gradients one by one"
        with pytest.raises((ValueError, TypeError), match=f"^{re.escape(expected)}$"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Portfolio(assets=0), "portfolio: assets must be at least 1, got 0"),
        (lambda: Portfolio(samples=50), "portfolio: samples must be above assets = 50, got 50"),
        (lambda: Portfolio(kappa=0.5), "portfolio: kappa must be finite and at least 1, got 0.5"),
        (lambda: Portfolio(l2=-1.0), "portfolio: l2 must be finite and at least 0, got -1.0"),
        (lambda: Portfolio(dtype="float"), "portfolio: unknown dtype 'float'; the nearest is 'float64'"),  # type: ignore[arg-type]
        (lambda: PolicyEvaluation(states=0), "policy-evaluation: states must be at least 1, got 0"),
        (lambda: PolicyEvaluation(features=0), "policy-evaluation: features must be at least 1, got 0"),
        (lambda: PolicyEvaluation(transitions=0), "policy-evaluation: transitions must be at least 1, got 0"),
        (lambda: PolicyEvaluation(features=101),
         "policy-evaluation: features must be at most states = 100, got 101"),
        (lambda: PolicyEvaluation(gamma=1.0),
         "policy-evaluation: gamma must be at least 0 and below 1, got 1.0"),
        (lambda: PolicyEvaluation(dtype="float3"),  # type: ignore[arg-type]
         "policy-evaluation: unknown dtype 'float3'; the nearest is 'float32'"),
    ],
)  # fmt: skip
def test_bad_kinds(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as e:
        make()
    assert str(e.value) == message
