"""Compositional objectives: a mean of functions of a mean of functions, every part of which any worker sees.

    f(x) = (1/n) Σ_i F_i( (1/m) Σ_j G_j(x) ),   G_j: ℝᴺ → ℝᴾ,   F_i: ℝᴾ → ℝ

Both objectives here are quadratic in x, f(x) = ½ (x - x*)ᵀ H (x - x*) + f*, with H and x* in closed form from
their parts; what they report is the gap f(x) - f*. `mu` and `L` are the extreme eigenvalues of H. Their inner
functions are affine, so that their Jacobians are constant, and the gradients of their outer functions are
affine in y.

An objective is its own `algorithms.problem.Compositional`: the parts hold no state, and all workers share
them, whatever their shares.

References: Wang, Fang and Liu, "Stochastic compositional gradient descent", Math. Programming 161 (2017);
Lian, Wang and Liu, "Finite-sum composition optimization via variance reduced gradient descent", AISTATS 2017.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from simulator.workload.finite_sum import checked_indices
from simulator.workload.objective import Objective, Oracle, Purpose, _dtype, seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simulator.workload.kinds import PolicyEvaluation, Portfolio


class CompositionalObjective(Objective):
    """A quadratic that is a mean of functions of a mean of functions; x0 = 0.

    Parameters
    ----------
    name : str
        For titles and error messages.
    dtype : torch.dtype
        Of models, inner values and gradients.
    outer_count, inner_count, inner_dimension : int
        n, m and P.
    hessian : torch.Tensor
        H, in float64.
    minimiser : torch.Tensor
        x*, in float64.
    minimum : float
        f*.

    Attributes
    ----------
    mu, L : float
        Smallest and largest eigenvalue of H.
    smoothness : float
        Largest smoothness of a single term F_i(mean of the G_j).
    constant_jacobian : bool
        True: the inner functions are affine.
    """

    constant_jacobian = True
    smoothness: float

    def __init__(
        self,
        name: str,
        dtype: torch.dtype,
        outer_count: int,
        inner_count: int,
        inner_dimension: int,
        hessian: Tensor,
        minimiser: Tensor,
        minimum: float,
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.outer_count = outer_count
        self.inner_count = inner_count
        self.inner_dimension = inner_dimension
        self.parameters = len(minimiser)
        self.hessian = hessian
        self.minimiser = minimiser
        self.minimum = minimum
        eigenvalues = torch.linalg.eigvalsh(hessian)
        self.mu, self.L = float(eigenvalues[0]), float(eigenvalues[-1])

    @property
    def fulfils(self) -> frozenset[str]:
        """Compositional."""
        return frozenset({"compositional"})

    def initial_model(self) -> Tensor:
        """x0 = 0."""
        return torch.zeros(self.parameters, dtype=self.dtype)

    def loss(self, x: Tensor) -> float:
        """f(x) - f*, in float64."""
        self._check_model(x)
        distance = x.double() - self.minimiser
        return 0.5 * float(distance @ (self.hessian @ distance))

    def gradient_norm(self, x: Tensor) -> float:
        """‖∇f(x)‖, in float64."""
        return float(torch.linalg.vector_norm(self.exact_gradient(x)))

    def exact_gradient(self, x: Tensor) -> Tensor:
        """∇f(x) = H (x - x*), in float64."""
        self._check_model(x)
        return self.hessian @ (x.double() - self.minimiser)

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> CompositionalOracle:
        """Worker `rank`, who sees all parts, with its own stream of mini-batches."""
        self._check_worker(rank, shares, batch)
        generator = np.random.default_rng(seed_of(seed, rank, Purpose.SAMPLES))
        return CompositionalOracle(self, batch, generator)

    def inner(self, x: Tensor, indices: Tensor) -> Tensor:
        """Mean of G_j(x) over `indices` (int64, 0..m-1), of shape [P]."""
        self._check_model(x)
        chosen = checked_indices(self.name, "inner functions", indices, self.inner_count)
        # A view into a larger tensor may be aligned differently, and last bits may depend on that.
        return self._inner(x.clone(), chosen)

    def jacobian(self, x: Tensor, indices: Tensor) -> Tensor:
        """Mean Jacobian of G_j over `indices`, of shape [P, N]; the same for every x."""
        self._check_model(x)
        return self._jacobian(checked_indices(self.name, "inner functions", indices, self.inner_count))

    def outer_gradient(self, y: Tensor, indices: Tensor) -> Tensor:
        """Mean gradient of F_i at y over `indices` (int64, 0..n-1), of shape [P]."""
        if y.shape != (self.inner_dimension,) or y.dtype != self.dtype:
            raise ValueError(
                f"{self.name}: an inner value is a vector of {self.inner_dimension} {self.dtype} values, "
                f"got shape {tuple(y.shape)} of {y.dtype}"
            )
        chosen = checked_indices(self.name, "outer functions", indices, self.outer_count)
        return self._outer_gradient(y.clone(), chosen)

    @abstractmethod
    def _inner(self, x: Tensor, indices: Tensor) -> Tensor:
        """Mean of G_j(x) over checked indices."""

    @abstractmethod
    def _jacobian(self, indices: Tensor) -> Tensor:
        """Mean Jacobian over checked indices."""

    @abstractmethod
    def _outer_gradient(self, y: Tensor, indices: Tensor) -> Tensor:
        """Mean gradient of F_i over checked indices."""


class CompositionalOracle(Oracle):
    """A worker's view of a compositional objective: f_i = f, since every worker sees all parts."""

    def __init__(self, objective: CompositionalObjective, batch: int, generator: np.random.Generator) -> None:
        super().__init__(objective)
        self.compositional = objective
        self.batch = batch
        self.generator = generator

    @property
    def problem(self) -> CompositionalObjective:
        """The parts, all of them."""
        return self.compositional

    def gradient(self, x: Tensor) -> Tensor:
        """The plug-in gradient ∂G_A(x)ᵀ ∇F_B(G_A(x)) over the next mini-batches A of [m] and B of [n].

        A and B have the worker's batch size each, drawn with replacement and independently. It is what plain
        SGD would take and is **biased**, also for affine ∇F: ∂G_A and G_A come from the same A, so the
        gradient of the inner functions' variance comes in, in proportion to 1 / batch. SGD converges to the
        minimiser of another function, which is why compositional methods exist.
        """
        self.objective._check_model(x)
        inner = torch.from_numpy(self.generator.integers(self.compositional.inner_count, size=self.batch))
        outer = torch.from_numpy(self.generator.integers(self.compositional.outer_count, size=self.batch))
        y = self.compositional.inner(x, inner)
        slope = self.compositional.outer_gradient(y, outer)
        return self.compositional.jacobian(x, inner).t() @ slope

    def full_gradient(self, x: Tensor) -> Tensor:
        """∇f(x), exact."""
        return self.compositional.exact_gradient(x).to(self.objective.dtype)


class PortfolioObjective(CompositionalObjective):
    """Mean-variance portfolio: the variance of the return less its mean, over given returns r_1 … r_n ∈ ℝᴺ.

        f(x) = (1/n) Σ_i ⟨r_i - r̄, x⟩² - ⟨r̄, x⟩ + l2/2 ‖x‖²,   r̄ = (1/n) Σ_i r_i

    As a composition, with m = n and P = N + 1:

        G_j(x) = [x; -⟨r_j, x⟩],   ∂G_j = [I; -r_jᵀ]
        F_i(y) = ⟨[r_i; 1], y⟩² - ⟨r_i, y_{1:N}⟩ + l2/2 ‖y_{1:N}‖²

    so that the mean of the G_j is [x; -⟨r̄, x⟩] and F_i of it has the square of ⟨r_i, x⟩ - ⟨r̄, x⟩. Hessian
    H = 2 Σ + l2 I with Σ the covariance of the returns, and x* = H⁻¹ r̄.

    The covariance of the sample has the eigenvalues of a linear space from 1 to kappa, exactly, in random
    directions; r̄ is standard normal.

    Attributes
    ----------
    returns : torch.Tensor
        The r_i as rows, of shape [n, N].
    smoothness : float
        max_i 2 ‖r_i - r̄‖² + l2.
    """

    def __init__(self, kind: Portfolio, seed: int) -> None:
        dtype = _dtype(kind.dtype)
        # The closed form is that of the returns as they are in the model's dtype.
        self.returns = _copied(_returns(kind, seed)).to(dtype)
        mean = self.returns.double().mean(0)
        centred = self.returns.double() - mean
        hessian = 2 * centred.t() @ centred / kind.samples
        hessian += kind.l2 * torch.eye(kind.assets, dtype=torch.float64)
        self.l2 = kind.l2
        self.smoothness = 2 * float((centred**2).sum(1).max()) + kind.l2
        minimiser = torch.linalg.solve(hessian, mean)
        super().__init__(
            f"portfolio of {kind.assets} assets",
            dtype,
            outer_count=kind.samples,
            inner_count=kind.samples,
            inner_dimension=kind.assets + 1,
            hessian=hessian,
            minimiser=minimiser,
            minimum=-0.5 * float(mean @ minimiser),
        )

    def _inner(self, x: Tensor, indices: Tensor) -> Tensor:
        """[x; -mean of ⟨r_j, x⟩]."""
        return torch.cat([x, -(self.returns[indices] @ x).mean().reshape(1)])

    def _jacobian(self, indices: Tensor) -> Tensor:
        """[I; -mean of r_jᵀ]."""
        return torch.cat([torch.eye(self.parameters, dtype=self.dtype), -self.returns[indices].mean(0)[None]])

    def _outer_gradient(self, y: Tensor, indices: Tensor) -> Tensor:
        """Mean of 2 ⟨[r_i; 1], y⟩ [r_i; 1] - [r_i; 0], and l2 [y_{1:N}; 0]."""
        returns, x = self.returns[indices], y[:-1].clone()
        deviations = returns @ x + y[-1]
        assets = returns.t() @ (2 * deviations - 1) / len(indices) + self.l2 * x
        return torch.cat([assets, 2 * deviations.mean().reshape(1)])


class PolicyEvaluationObjective(CompositionalObjective):
    """Evaluation of a policy on a Markov chain by its mean squared Bellman residual.

        f(w) = (1/S) Σ_s ( ⟨φ_s, w⟩ - Σ_s' P_ss' (R_ss' + γ ⟨φ_s', w⟩) )²

    The expectation over next states is the mean over m sampled transitions from every state: sample j holds a
    next state s'_j(s) for each s, and P is **their** empirical transition matrix, so that the inner mean is
    finite and exact. As a composition, with n = S and inner values of length 2S:

        G_j(w) = [ ⟨φ_s, w⟩ for all s;  R_{s s'_j(s)} + γ ⟨φ_{s'_j(s)}, w⟩ for all s ]
        F_s(y) = (y_s - y_{S+s})²

    With the features φ as rows of Φ, B = Φ - γ P Φ and r_s = Σ_s' P_ss' R_ss', f is (1/S) ‖B w - r‖²:
    H = (2/S) Bᵀ B, and w* solves the least squares. The minimum is not 0, since there are fewer features than
    states.

    The chain's transition probabilities are uniform numbers normalised by row; features are standard normal;
    R_ss' is the sum of a standard normal number of s and one of (s, s').

    Attributes
    ----------
    features : torch.Tensor
        Φ, of shape [S, N].
    rewards : torch.Tensor
        R, of shape [S, S].
    transitions : torch.Tensor
        s'_j(s), int64, of shape [m, S].
    gamma : float
        The discount.
    smoothness : float
        max_s 2 ‖B_s‖² over the rows of B.
    """

    def __init__(self, kind: PolicyEvaluation, seed: int) -> None:
        dtype = _dtype(kind.dtype)
        generator = np.random.default_rng(seed_of(seed, Purpose.PARTS))
        states = kind.states
        chain = generator.random((states, states))
        # Inverse of each row's cumulative distribution; the last bound is 1 but for rounding.
        bounds = np.cumsum(chain / chain.sum(axis=1, keepdims=True), axis=1)
        bounds[:, -1] = 1.0
        levels = generator.random((kind.transitions, states))
        drawn = [np.searchsorted(bounds[s], levels[:, s], side="right") for s in range(states)]
        self.transitions = _copied(np.stack(drawn, axis=1))
        rewards = generator.standard_normal((states, 1)) + generator.standard_normal((states, states))
        self.rewards = _copied(rewards).to(dtype)
        self.features = _copied(generator.standard_normal((states, kind.features))).to(dtype)
        self.gamma = kind.gamma
        self.states = states
        frequencies = self._frequencies(torch.arange(kind.transitions), torch.float64)
        features = self.features.double()
        residual = features - kind.gamma * frequencies @ features
        expected = (frequencies * self.rewards.double()).sum(1)
        self.smoothness = 2 * float((residual**2).sum(1).max())
        solution = torch.linalg.lstsq(residual, expected[:, None]).solution[:, 0]
        # Its last digits depend on where LAPACK's memory lies; these do not.
        minimiser = torch.round(solution, decimals=12)
        super().__init__(
            f"policy evaluation on {states} states",
            dtype,
            outer_count=states,
            inner_count=kind.transitions,
            inner_dimension=2 * states,
            hessian=2 / states * residual.t() @ residual,
            minimiser=minimiser,
            minimum=float(((residual @ minimiser - expected) ** 2).mean()),
        )

    def _inner(self, x: Tensor, indices: Tensor) -> Tensor:
        """Values of the states, and mean of reward and discounted value after the sampled transitions."""
        frequencies = self._frequencies(indices, self.dtype)
        values = self.features @ x
        return torch.cat([values, (frequencies * self.rewards).sum(1) + self.gamma * (frequencies @ values)])

    def _jacobian(self, indices: Tensor) -> Tensor:
        """[Φ; γ P Φ] with the frequencies P of the sampled transitions."""
        frequencies = self._frequencies(indices, self.dtype)
        return torch.cat([self.features, self.gamma * (frequencies @ self.features)])

    def _outer_gradient(self, y: Tensor, indices: Tensor) -> Tensor:
        """Mean of 2 (y_s - y_{S+s}) (e_s - e_{S+s})."""
        weights = torch.bincount(indices, minlength=self.states).to(self.dtype) / len(indices)
        slope = 2 * weights * (y[: self.states] - y[self.states :])
        return torch.cat([slope, -slope])

    def _frequencies(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """How often each next state follows each state in the given samples, of shape [S, S]."""
        places = self.transitions[indices] + self.states * torch.arange(self.states)
        counts = torch.bincount(places.flatten(), minlength=self.states**2)
        return counts.view(self.states, self.states).to(dtype) / len(indices)


def _returns(kind: Portfolio, seed: int) -> NDArray[np.float64]:
    """Returns whose covariance has eigenvalues from 1 to kappa exactly, about a standard normal mean."""
    generator = np.random.default_rng(seed_of(seed, Purpose.PARTS))
    drawn = generator.standard_normal((kind.samples, kind.assets))
    # Columns that are orthonormal and orthogonal to the constant vector: means stay 0.
    columns, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
    directions, _ = np.linalg.qr(generator.standard_normal((kind.assets, kind.assets)))
    scales = np.sqrt(kind.samples * np.linspace(1.0, kind.kappa, kind.assets))
    mean = generator.standard_normal(kind.assets)
    returns: NDArray[np.float64] = (columns * scales) @ directions.T + mean
    return returns


def _copied(values: NDArray[np.float64]) -> Tensor:
    """Return a tensor in torch's own memory: on where NumPy's lies, last bits of products would depend."""
    return torch.from_numpy(values).clone()
