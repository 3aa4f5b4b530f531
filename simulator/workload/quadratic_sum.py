"""A finite sum of quadratics half of which are not convex, though their mean is strongly convex.

    f(x) = (1/n) Σ f_i(x),   f_i(x) = ½ (x - b)ᵀ (H_i + s_i I) (x - b) + v_iᵀ (x - b)

with s_i = -s for half of the summands and +s for the others, Σ v_i = 0 and (1/n) Σ ‖v_i‖² = σ². The mean of
the H_i is A, diagonal with eigenvalues equally spaced from mu to L, so f(x) = ½ (x - b)ᵀ A (x - b): minimiser
b, minimum 0, mu-strongly convex. This is the class that Katyusha X is for (Allen-Zhu, ICML 2018): an average
that is strongly convex of functions that are smooth and need not be convex.

Two shapes of the parts:

- `diagonal`: H_i = A for all. The summand of a negative shift is not convex where s > mu.
- `rank-one`: H_i = c_i c_iᵀ, as in the "modified PCA" instance of Liu, Feng and Yin (ICML 2019), with the
  c_i the rows of √n Q A^½, Q from the seed with orthonormal columns: the mean of their products is A. A
  summand of a negative shift has curvature -s in all directions but one.

`smoothness` is the largest smoothness of a summand, the L of Katyusha X's step size. Everything is computed
in float64 and rounded once to the model's dtype, so the summands have the stated constants in float32 too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from simulator.workload.objective import Purpose, SampledObjective, Samples, Sharing, _dtype, seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simulator.workload.data import Indices
    from simulator.workload.kinds import QuadraticSum


class QuadraticSumObjective(SampledObjective):
    """The objective of a `QuadraticSum` kind; x0 = 0. Its samples are the summands, with s_i as labels.

    Attributes
    ----------
    minimiser : torch.Tensor
        b, in float64.
    eigenvalues : torch.Tensor
        The diagonal of A, in float64.
    smoothness : float
        max_i ‖∇²f_i‖.
    mu : float
        Smallest eigenvalue of A.
    """

    def __init__(self, kind: QuadraticSum, seed: int) -> None:
        super().__init__(self._parts, Sharing("iid", None, kind.sampling))
        self.name = f"sum of {kind.summands} quadratics of dimension {kind.dimension}"
        self.parameters = kind.dimension
        self.dtype = _dtype(kind.dtype)
        self.kind = kind
        self.mu = kind.mu if kind.dimension > 1 else kind.L
        # One direction has the single eigenvalue L.
        values = np.linspace(kind.mu, kind.L, kind.dimension) if kind.dimension > 1 else np.array([kind.L])
        minimiser = np.random.default_rng(seed_of(seed, Purpose.MINIMISER)).standard_normal(kind.dimension)
        self.eigenvalues = torch.from_numpy(values)
        self.minimiser = torch.from_numpy(minimiser)
        generator = np.random.default_rng(seed_of(seed, Purpose.PARTS))
        self._shifts = torch.from_numpy(np.repeat([-kind.shift, kind.shift], kind.summands // 2))
        self._offsets = torch.from_numpy(_offsets(kind, generator))
        self._vectors = torch.from_numpy(_vectors(kind, values, generator))
        self.smoothness = self._largest_curvature()

    def initial_model(self) -> Tensor:
        """x0 = 0."""
        return torch.zeros(self.parameters, dtype=self.dtype)

    def loss(self, x: Tensor) -> float:
        """f(x) less its minimum, ½ (x - b)ᵀ A (x - b), in float64."""
        self._check_model(x)
        distance = x.double() - self.minimiser
        return 0.5 * float(distance @ (self.eigenvalues * distance))

    def batch_gradient(self, x: Tensor, indices: Tensor, draw: tuple[int, int, int]) -> Tensor:
        """Mean gradient over the given summands."""
        return self._mean(x, indices).to(self.dtype)

    def mean_gradient(self, x: Tensor, indices: Indices | None) -> Tensor:
        """Mean gradient over the given summands, in float64; A (x - b) for all."""
        self._check_model(x)
        if indices is None:
            return self.eigenvalues * (x.double() - self.minimiser)
        return self._mean(x, torch.from_numpy(indices))

    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """(H_i + s_i I) (x - b) + v_i for each of the given summands."""
        distance = x.double() - self.minimiser
        gradients = self._shifts[indices].unsqueeze(1) * distance + self._offsets[indices]
        if self.kind.parts == "diagonal":
            gradients += self.eigenvalues * distance
        else:
            chosen = self._vectors[indices]
            gradients += (chosen @ distance).unsqueeze(1) * chosen
        return gradients.to(self.dtype)

    def _mean(self, x: Tensor, indices: Tensor) -> Tensor:
        """Mean of the chosen summands' gradients in float64, without forming each."""
        distance = x.double() - self.minimiser
        gradient = self._offsets[indices].mean(0).add_(self._shifts[indices].mean() * distance)
        if self.kind.parts == "diagonal":
            return gradient.add_(self.eigenvalues * distance)
        chosen = self._vectors[indices]
        return gradient.add_(chosen.t() @ (chosen @ distance), alpha=1 / len(indices))

    def _parts(self) -> Samples:
        """What tells one summand from another."""
        return (self._vectors, self._offsets), self._shifts

    def _largest_curvature(self) -> float:
        """The largest eigenvalue, in magnitude, of H_i + s_i I over all i."""
        # Rank one leaves the shift alone in all directions but one, if there are others.
        rest = self.kind.shift if self.kind.parts == "rank-one" and self.parameters > 1 else 0.0
        ends = [self._shifts + self.mu, self._shifts + self.kind.L]
        if self.kind.parts == "rank-one":
            ends = [self._shifts + (self._vectors**2).sum(1)]
        return max(rest, *(float(end.abs().max()) for end in ends))


def _offsets(kind: QuadraticSum, generator: np.random.Generator) -> NDArray[np.float64]:
    """The v_i as rows, with mean 0 and mean square σ²."""
    drawn = generator.standard_normal((kind.summands, kind.dimension))
    drawn -= drawn.mean(axis=0)
    drawn *= math.sqrt(kind.sigma2 / float((drawn**2).sum(axis=1).mean()))
    return drawn


def _vectors(
    kind: QuadraticSum, eigenvalues: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """The c_i as rows, whose mean outer product is A; of no columns for diagonal parts."""
    if kind.parts == "diagonal":
        return np.empty((kind.summands, 0))
    orthonormal, _ = np.linalg.qr(generator.standard_normal((kind.summands, kind.dimension)))
    vectors: NDArray[np.float64] = np.sqrt(kind.summands * eigenvalues) * orthonormal
    return vectors
