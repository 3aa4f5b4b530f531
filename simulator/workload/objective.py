"""Objectives: the function that training minimises, and the stochastic gradients that workers see of it.

Workers i with shares p_i (Σ p_i = 1) hold functions f_i, and the objective is f = Σ p_i f_i. What f is
depends on the kind and the seed, never on the number of workers:

- for a network on data, f is the mean loss over **all** samples and f_i the mean over shard i, in sizes
  proportional to the shares (to within one sample);
- for `Quadratic`, ∇f_i = ∇f - v_i with constant offsets v_i = A u_i, Σ p_i u_i = 0 and Σ p_i ‖A u_i‖² = ζ².
  That is f_i(x) = ½ (x - b - u_i)ᵀ A (x - b - u_i), whose weighted mean is f(x) = ½ (x - b)ᵀ A (x - b) up
  to a constant; the loss reported is this f, whose minimum is 0. A single worker has u = 0.

Models and gradients are flat one-dimensional CPU tensors; a network's parameters lie in it in the order of
`Module.parameters()`, without those that do not require a gradient.

Randomness: every worker has its own numpy streams, one per purpose, from
`SeedSequence(seed, spawn_key=(rank, purpose))`. With one torch thread all results are bit-reproducible; with
more, last bits may differ. Nothing here sets the number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulator.workload import data as datasets
from simulator.workload.delivery import BucketPlan, Deliver, Delivery, flat_gradient, spans_of
from simulator.workload.finite_sum import ShardSum
from simulator.workload.models import small_cnn, small_mlp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from algorithms.problem import Problem
    from simulator.workload.kinds import Cnn, Logistic, Mlp, Quadratic, SampledData, ScalarQuadratics

Bounds = Sequence[tuple[int, int]]
"""Slices [lo, hi) of the flat vector, one per bucket; together they are the whole vector, once."""
Samples = tuple[tuple[Tensor, ...], Tensor]
"""Inputs of the network, each (samples, ...), and the labels or targets (samples, ...)."""
Loss = Callable[..., Tensor]
"""Mean loss of a batch: (output of the network, labels) to a tensor of one element."""

EVALUATION_BATCH = 2048
"""Most samples evaluated at once for a loss over all data; also what batch normalisation sees there.

So many fill the processor's caches: together, gradients of several workers are evaluated for no more either,
but for those of one.
"""
SAMPLE_GRADIENT_VALUES = 2**22
"""Most numbers in the gradients of single samples that back-propagation holds at once (at least one sample).

It bounds the memory beside the result; activations come to it.
"""


class Purpose(enum.IntEnum):
    """Names the random streams, so that no two uses share one. Other parts of a run stay below 100."""

    INITIAL_MODEL = 100
    MINIMISER = 101
    OFFSETS = 102
    SHARDS = 103
    SAMPLES = 104
    NOISE = 105
    MODULE = 106
    PARTS = 107


def seed_of(seed: int, *key: int) -> np.random.SeedSequence:
    """The seed sequence of (rank, purpose), or of (purpose,) for what all workers share."""
    return np.random.SeedSequence(seed, spawn_key=key)


class Request(NamedTuple):
    """A gradient to be evaluated.

    Attributes
    ----------
    x : torch.Tensor
        Flat model, which nobody changes any more.
    indices : torch.Tensor
        Sample numbers of the mini-batch.
    draw : tuple of int
        (seed, rank, number of the draw), for what is random in a network.
    """

    x: Tensor
    indices: Tensor
    draw: tuple[int, int, int]


class Oracle(ABC):
    """One worker's view of the objective: stochastic gradients of its f_i, and exact ones."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """Mean gradient over the worker's next mini-batch.

        Parameters
        ----------
        x : torch.Tensor
            Flat model; not kept and not changed.

        Returns
        -------
        torch.Tensor
            A fresh flat tensor. Each call draws anew, so the second call at the same x differs.

        Raises
        ------
        ValueError
            If x has another shape or dtype than the objective's models.
        """

    def request(self, x: Tensor) -> Request:
        """The gradient over the next mini-batch, to be evaluated later with those of other workers.

        Only objectives over samples can do that.
        """
        raise TypeError(f"{self.objective.name} evaluates gradients one by one")

    @property
    def problem(self) -> Problem | None:
        """This worker's view of what is optimised; None for an objective that fulfils nothing.

        Evaluations of it draw nothing, may come from any thread, and return fresh tensors of the model's
        dtype. Where the samples depend on each other (batch normalisation) it is a finite sum all of whose
        gradients are refused with the reason; `Objective.fulfils` does not name it then.
        """
        return None

    @abstractmethod
    def full_gradient(self, x: Tensor) -> Tensor:
        """Gradient of f_i itself, as a fresh flat tensor; draws nothing.

        Networks are evaluated by the rules of `Objective.loss` (no dropout).
        """

    def gradient_in_buckets(self, x: Tensor, bounds: Bounds, deliver: Deliver) -> None:
        """Deliver the gradient over the next mini-batch slice by slice, as back-propagation frees it.

        Values are bit-identical to the slices of `gradient(x)` on the same draw. Buckets arrive in the order
        k = 0, 1, 2, ... always, so that collectives started from `deliver` match on all workers; a bucket
        that is complete earlier waits for those before it. With slices in back-propagation order (last
        parameters first) nothing waits. A closed form has its whole gradient first and then slices it.

        Parameters
        ----------
        x : torch.Tensor
            Flat model.
        bounds : sequence of (lo, hi)
            Slices [lo, hi) that together are [0, parameters) once; an empty slice delivers an empty tensor.
        deliver : callable
            Called as deliver(k, tensor) before back-propagation goes on, in this thread or, on a GPU, in that
            of back-propagation, where the tensor may still be under way; it must not ask this objective for
            another gradient. The tensors are fresh, perhaps disjoint slices of one vector.

        Raises
        ------
        ValueError
            If the slices overlap or leave a gap.
        """
        slices = self.objective._check_bounds(bounds)
        gradient = self.gradient(x)
        for k, (low, high) in enumerate(slices):
            deliver(k, gradient[low:high])


class Objective(ABC):
    """A function of a flat model, with an oracle for each worker.

    Attributes
    ----------
    name : str
        For titles and tables.
    parameters : int
        Length of the flat model.
    dtype : torch.dtype
        Type of models and gradients.
    """

    name: str
    parameters: int
    dtype: torch.dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters in the flat model; one vector where it has no layers."""
        return ((self.parameters,),)

    @property
    def summands(self) -> int | None:
        """The number n of summands of a finite sum; None where it is none."""
        return None

    @property
    def fulfils(self) -> frozenset[str]:
        """Which of "finite-sum" and "compositional" an algorithm may require of it.

        Those are names of `algorithms.algorithm.REQUIREMENTS`; `Oracle.problem` is what they stand for.
        """
        return frozenset()

    def place(self, device: torch.device) -> bool:
        """Move to a device, before any oracle is made; False where the gradients stay on the CPU."""
        return device.type == "cpu"

    @abstractmethod
    def initial_model(self) -> Tensor:
        """The model that every worker starts from, as a fresh flat tensor."""

    @abstractmethod
    def loss(self, x: Tensor) -> float:
        """f(x), over all data; deterministic."""

    @abstractmethod
    def gradient_norm(self, x: Tensor) -> float:
        """‖∇f(x)‖, over all data; deterministic."""

    def loss_and_gradient_norm(self, x: Tensor) -> tuple[float, float]:
        """f(x) and ‖∇f(x)‖, in one pass over the data where that gives the same numbers."""
        return self.loss(x), self.gradient_norm(x)

    @abstractmethod
    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> Oracle:
        """The oracle of one worker.

        Parameters
        ----------
        rank : int
            Which worker, 0 <= rank < len(shares).
        shares : sequence of float
            Every worker's weight p_i, normalised to sum 1; the same on all ranks.
        batch : int
            Samples of this worker's mini-batches.
        seed : int
            Of the run; the same on all ranks. Fixes shards, samples and noise.

        Raises
        ------
        ValueError
            If the rank, a share or the batch is out of range, or a shard would be empty.
        """

    def _check_model(self, x: Tensor) -> None:
        """Refuse a tensor that is no model of this objective."""
        if x.shape != (self.parameters,) or x.dtype != self.dtype:
            raise ValueError(
                f"{self.name}: a model is a vector of {self.parameters} {self.dtype} values, "
                f"got shape {tuple(x.shape)} of {x.dtype}"
            )

    def _check_bounds(self, bounds: Bounds) -> tuple[tuple[int, int], ...]:
        """Refuse slices that are not a partition of the flat vector."""
        end = 0
        for low, high in sorted(bounds):
            if low != end or high < low:
                raise ValueError(
                    f"{self.name}: bucket [{low}, {high}) does not follow on {end}; "
                    f"buckets must cover [0, {self.parameters}) once"
                )
            end = high
        if end != self.parameters:
            raise ValueError(f"{self.name}: buckets cover [0, {end}) instead of [0, {self.parameters})")
        return tuple(bounds)

    def _check_worker(self, rank: int, shares: Sequence[float], batch: int) -> NDArray[np.float64]:
        """Refuse impossible workers; return the shares normalised to sum 1."""
        if not 0 <= rank < len(shares):
            raise ValueError(f"{self.name}: rank {rank} is not one of {len(shares)} workers")
        for worker, share in enumerate(shares):
            if not 0 < share < math.inf:
                raise ValueError(
                    f"{self.name}: the share of worker {worker} must be finite and above 0, got {share:g}"
                )
        if batch < 1:
            raise ValueError(f"{self.name}: batch must be at least 1, got {batch}")
        weights = np.asarray(shares, dtype=np.float64)
        normalised: NDArray[np.float64] = weights / weights.sum()
        return normalised


# Closed forms ---------------------------------------------------------------------------------------------


class QuadraticObjective(Objective):
    """f(x) = ½ (x - b)ᵀ A (x - b) with A diagonal, b standard normal from the seed, and x0 = 0.

    A is diagonal without loss of generality for methods that treat all directions alike; element-wise codecs
    do not, and see a problem aligned with the axes.
    """

    def __init__(self, kind: Quadratic, seed: int) -> None:
        self.name = f"quadratic of dimension {kind.dimension}"
        self.parameters = kind.dimension
        self.dtype = _dtype(kind.dtype)
        self.kind = kind
        # One direction has the single eigenvalue L.
        values = np.linspace(kind.mu, kind.L, kind.dimension) if kind.dimension > 1 else np.array([kind.L])
        minimiser = np.random.default_rng(seed_of(seed, Purpose.MINIMISER)).standard_normal(kind.dimension)
        self.eigenvalues = torch.from_numpy(values).to(self.dtype)
        self.minimiser = torch.from_numpy(minimiser).to(self.dtype)
        self._offsets: dict[tuple[tuple[float, ...], int], Tensor] = {}

    def initial_model(self) -> Tensor:
        """x0 = 0."""
        return torch.zeros(self.parameters, dtype=self.dtype)

    def loss(self, x: Tensor) -> float:
        """½ (x - b)ᵀ A (x - b), in float64."""
        self._check_model(x)
        distance = x.double() - self.minimiser.double()
        return 0.5 * float(distance @ (self.eigenvalues.double() * distance))

    def gradient_norm(self, x: Tensor) -> float:
        """‖A (x - b)‖, in float64."""
        self._check_model(x)
        return float(
            torch.linalg.vector_norm(self.eigenvalues.double() * (x.double() - self.minimiser.double()))
        )

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> QuadraticOracle:
        """Worker `rank` with ∇f_i = A (x - b) - v_i and Gaussian noise of total variance sigma2 / batch."""
        weights = self._check_worker(rank, shares, batch)
        key = (tuple(weights.tolist()), seed)
        if key not in self._offsets:
            # All ranks of a run ask with the same key: keep the last one only.
            self._offsets = {key: self._draw_offsets(weights, seed)}
        scale = math.sqrt(self.kind.sigma2 / (batch * self.parameters))
        generator = np.random.default_rng(seed_of(seed, rank, Purpose.NOISE))
        return QuadraticOracle(self, self._offsets[key][rank], scale, generator)

    def _draw_offsets(self, weights: NDArray[np.float64], seed: int) -> Tensor:
        """Gradient offsets v_i = A u_i of shape (workers, dimension), weighted mean 0, weighted power ζ²."""
        drawn = np.zeros((len(weights), self.parameters))
        if self.kind.zeta2 > 0 and len(weights) > 1:
            generator = np.random.default_rng(seed_of(seed, Purpose.OFFSETS))
            drawn = generator.standard_normal(drawn.shape)
            drawn -= weights @ drawn
            drawn *= math.sqrt(self.kind.zeta2 / float(weights @ (drawn**2).sum(axis=1)))
        return torch.from_numpy(drawn).to(self.dtype)


class QuadraticOracle(Oracle):
    """Gradients A (x - b) - v_i with additive Gaussian noise."""

    def __init__(
        self, objective: QuadraticObjective, offset: Tensor, noise: float, generator: np.random.Generator
    ) -> None:
        super().__init__(objective)
        self.quadratic = objective
        self.offset = offset
        self.noise = noise
        self.generator = generator
        self._float = np.float64 if objective.dtype == torch.float64 else np.float32

    def gradient(self, x: Tensor) -> Tensor:
        """Exact gradient of f_i plus one draw of the noise."""
        exact = self.full_gradient(x)
        if self.noise == 0:
            return exact
        noise = self.generator.standard_normal(len(exact), dtype=self._float)
        return exact.add_(torch.from_numpy(noise), alpha=self.noise)

    def full_gradient(self, x: Tensor) -> Tensor:
        """A (x - b) - v_i."""
        self.objective._check_model(x)
        return (x - self.quadratic.minimiser).mul_(self.quadratic.eigenvalues).sub_(self.offset)


class ScalarQuadraticsObjective(Objective):
    """f = Σ w_i a_i (x - b_i)² / 2 over one variable, x0 = 0."""

    def __init__(self, kind: ScalarQuadratics) -> None:
        self.name = f"{len(kind.curvatures)} scalar quadratics"
        self.parameters = 1
        self.dtype = _dtype(kind.dtype)
        self.curvatures = torch.tensor(kind.curvatures, dtype=self.dtype)
        self.centres = torch.tensor(kind.centres, dtype=self.dtype)
        weights = torch.tensor(kind.weights or (1.0,) * len(kind.curvatures), dtype=torch.float64)
        self.weights = weights / weights.sum()

    def initial_model(self) -> Tensor:
        """x0 = 0."""
        return torch.zeros(1, dtype=self.dtype)

    def loss(self, x: Tensor) -> float:
        """Σ w_i a_i (x - b_i)² / 2, in float64."""
        self._check_model(x)
        distances = x.double() - self.centres.double()
        return 0.5 * float(self.weights @ (self.curvatures.double() * distances**2))

    def gradient_norm(self, x: Tensor) -> float:
        """|Σ w_i a_i (x - b_i)|, in float64."""
        self._check_model(x)
        return abs(float(self.weights @ (self.curvatures.double() * (x.double() - self.centres.double()))))

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> ScalarQuadraticsOracle:
        """Component `rank`, or all of them, weighted, for a single worker."""
        self._check_worker(rank, shares, batch)
        count = len(self.curvatures)
        if len(shares) == count:
            return ScalarQuadraticsOracle(
                self, self.curvatures[rank : rank + 1], self.centres[rank : rank + 1], None
            )
        if len(shares) == 1:
            return ScalarQuadraticsOracle(self, self.curvatures, self.centres, self.weights.to(self.dtype))
        raise ValueError(f"{self.name} need {count} workers or 1, got {len(shares)}")


class ScalarQuadraticsOracle(Oracle):
    """Exact gradients a_i (x - b_i), or their weighted mean."""

    def __init__(
        self, objective: Objective, curvatures: Tensor, centres: Tensor, weights: Tensor | None
    ) -> None:
        super().__init__(objective)
        self.curvatures = curvatures
        self.centres = centres
        self.weights = weights

    def gradient(self, x: Tensor) -> Tensor:
        """The exact gradient; nothing is random."""
        return self.full_gradient(x)

    def full_gradient(self, x: Tensor) -> Tensor:
        """a_i (x - b_i), or Σ w_i a_i (x - b_i)."""
        self.objective._check_model(x)
        components = self.curvatures * (x - self.centres)
        return components if self.weights is None else (self.weights @ components).reshape(1)


# Objectives over samples ----------------------------------------------------------------------------------


class Sharing:
    """How samples are divided among workers and drawn; see `simulator.workload.kinds.SampledData`."""

    def __init__(self, shards: str, alpha: float | None, sampling: str) -> None:
        self.shards = shards
        self.alpha = alpha
        self.sampling = sampling

    def divide(self, labels: Tensor, shares: Sequence[float], seed: int) -> list[datasets.Indices]:
        """Sample numbers of every worker.

        Raises
        ------
        ValueError
            If labels are needed but are not one whole number per sample, or a shard would be empty.
        """
        sequence = seed_of(seed, Purpose.SHARDS)
        if self.shards == "iid":
            return datasets.iid(np.empty(len(labels)), shares, sequence)
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"shards {self.shards} need one whole-number label per sample, "
                f"got labels of shape {tuple(labels.shape)} and {labels.dtype}; use shards iid"
            )
        if self.shards == "by-label":
            return datasets.by_label(labels.numpy(), shares, sequence)
        if self.alpha is None:
            raise ValueError("shards dirichlet needs alpha, its concentration")
        return datasets.dirichlet(labels.numpy(), shares, sequence, self.alpha)

    def sampler(self, shard: datasets.Indices, batch: int, generator: np.random.Generator) -> Sampler:
        """A worker's source of mini-batches."""
        return Sampler(shard, batch, self.sampling == "epoch", generator)


class Sampler:
    """Draws the sample numbers of mini-batches from a shard.

    Without epochs each sample is drawn with replacement. With epochs a shuffled shard is handed out piece by
    piece; a mini-batch that reaches its end goes on in the next shuffle, so that all have the same size.
    """

    def __init__(
        self, shard: datasets.Indices, batch: int, epochs: bool, generator: np.random.Generator
    ) -> None:
        self.shard = shard
        self.batch = batch
        self.epochs = epochs
        self.generator = generator
        self._left = shard[:0]

    def draw(self) -> Tensor:
        """The next mini-batch's sample numbers, int64, shape (batch,)."""
        if not self.epochs:
            return torch.from_numpy(self.shard[self.generator.integers(len(self.shard), size=self.batch)])
        while len(self._left) < self.batch:
            self._left = np.concatenate([self._left, self.generator.permutation(self.shard)])
        drawn, self._left = self._left[: self.batch], self._left[self.batch :]
        return torch.from_numpy(drawn.copy())


class SampledObjective(Objective):
    """Mean loss over samples; subclasses say how the loss of given samples is differentiated."""

    def __init__(self, load: Callable[[], Samples], sharing: Sharing) -> None:
        self._load = load
        self.sharing = sharing
        self._shards: dict[tuple[tuple[float, ...], int], list[datasets.Indices]] = {}

    @functools.cached_property
    def samples(self) -> Samples:
        """All inputs and labels, loaded when first needed.

        Should a user's data set draw random numbers (augmentation), it draws them once and always the same.
        """
        with _torch_seeded(seed_of(0, Purpose.SAMPLES)):
            return self._load()

    def oracle(self, rank: int, shares: Sequence[float], batch: int, seed: int) -> SampledOracle:
        """Worker `rank` with its shard and its own stream of mini-batches."""
        self._check_worker(rank, shares, batch)
        key = (tuple(shares), seed)
        if key not in self._shards:
            # All ranks of a run ask with the same key: keep the last division only.
            self._shards = {key: self.sharing.divide(self.samples[1], shares, seed)}
        generator = np.random.default_rng(seed_of(seed, rank, Purpose.SAMPLES))
        shard = self._shards[key][rank]
        return SampledOracle(self, shard, self.sharing.sampler(shard, batch, generator), (seed, rank))

    def twin(self) -> SampledObjective:
        """The same objective, to be evaluated by another thread at the same time; it seeds no generator."""
        return self

    @property
    def summands(self) -> int:
        """The number of samples."""
        return len(self.samples[1])

    @property
    def coupling(self) -> str | None:
        """Why the loss of one sample depends on others, as a sentence; None if it does not."""
        return None

    @property
    def fulfils(self) -> frozenset[str]:
        """A finite sum, unless samples depend on each other."""
        return frozenset({"finite-sum"}) if self.coupling is None else frozenset()

    @abstractmethod
    def batch_gradient(self, x: Tensor, indices: Tensor, draw: tuple[int, int, int]) -> Tensor:
        """Mean gradient over the given samples in training mode, as a fresh flat tensor.

        `draw` is (seed, rank, number of the draw), for what is random in a network.
        """

    def batch_gradients(self, requests: Sequence[Request]) -> list[Tensor]:
        """The gradients of several workers, evaluated together.

        Equal to `batch_gradient` of each up to rounding; last bits may differ.

        Raises
        ------
        ValueError
            If this objective's gradients cannot be evaluated together.
        """
        raise ValueError(f"gradients of {self.name} cannot be evaluated together; use separate evaluation")

    def batch_gradient_in_buckets(
        self, x: Tensor, indices: Tensor, draw: tuple[int, int, int], bounds: Bounds, deliver: Deliver
    ) -> None:
        """Like `batch_gradient`, slice by slice; see `Oracle.gradient_in_buckets`."""
        slices = self._check_bounds(bounds)
        gradient = self.batch_gradient(x, indices, draw)
        for k, (low, high) in enumerate(slices):
            deliver(k, gradient[low:high])

    @abstractmethod
    def mean_gradient(self, x: Tensor, indices: datasets.Indices | None) -> Tensor:
        """Mean gradient over the given samples (all of them for None) in evaluation mode, in float64."""

    @abstractmethod
    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """Gradient of each of the given samples in evaluation mode, of shape [len(indices), parameters].

        Their mean is that of `mean_gradient` up to rounding.
        """

    def gradient_norm(self, x: Tensor) -> float:
        """‖∇f(x)‖ over all samples, accumulated in float64."""
        return float(torch.linalg.vector_norm(self.mean_gradient(x, None)))

    @property
    def _here(self) -> Samples:
        """All inputs and labels, where gradients are evaluated."""
        return self.samples

    def _chunks(self, indices: datasets.Indices | None) -> Iterator[tuple[Samples, float]]:
        """The samples in nearly equal pieces of at most `EVALUATION_BATCH`, with their weights.

        Equal pieces keep a last piece of one sample from reaching batch normalisation. The pieces are copies,
        because results of vectorised kernels may depend on how their input is aligned in memory.
        """
        inputs, labels = self._here
        total = len(labels) if indices is None else len(indices)
        if indices is None and total <= EVALUATION_BATCH:
            yield self._all_samples, 1.0
            return
        count = -(-total // EVALUATION_BATCH)
        for piece in range(count):
            low, high = total * piece // count, total * (piece + 1) // count
            chosen = np.arange(low, high) if indices is None else indices[low:high]
            yield _take(inputs, labels, torch.from_numpy(chosen)), (high - low) / total

    @functools.cached_property
    def _all_samples(self) -> Samples:
        """A copy of all samples, kept because a small data set is evaluated at every sample of a run."""
        inputs, labels = self._here
        return _take(inputs, labels, torch.arange(len(labels)))


class SampledOracle(Oracle):
    """A worker with a shard of the samples."""

    def __init__(
        self,
        objective: SampledObjective,
        shard: datasets.Indices,
        sampler: Sampler,
        stream: tuple[int, int],
    ) -> None:
        super().__init__(objective)
        self.sampled = objective
        self.shard = shard
        self.sampler = sampler
        self.stream = stream
        self.draws = 0

    def gradient(self, x: Tensor) -> Tensor:
        """Mean gradient over the next mini-batch of the shard."""
        self.objective._check_model(x)
        indices, draw = self._next()
        return self.sampled.batch_gradient(x, indices, draw)

    def gradient_in_buckets(self, x: Tensor, bounds: Bounds, deliver: Deliver) -> None:
        """Mean gradient over the next mini-batch, bucket by bucket; see `Oracle.gradient_in_buckets`."""
        self.objective._check_model(x)
        indices, draw = self._next()
        self.sampled.batch_gradient_in_buckets(x, indices, draw, bounds, deliver)

    def request(self, x: Tensor) -> Request:
        """The gradient over the next mini-batch of the shard, to be evaluated later."""
        self.objective._check_model(x)
        return Request(x, *self._next())

    def full_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the mean loss over the whole shard."""
        self.objective._check_model(x)
        return self.sampled.mean_gradient(x, self.shard).to(self.objective.dtype)

    @property
    def problem(self) -> ShardSum:
        """The shard as a finite sum."""
        return ShardSum(self.sampled, self.shard)

    def _next(self) -> tuple[Tensor, tuple[int, int, int]]:
        """Sample numbers of the next mini-batch, and the name of this draw."""
        draw = (*self.stream, self.draws)
        self.draws += 1
        return self.sampler.draw(), draw


class LogisticObjective(SampledObjective):
    """Multinomial logistic regression; the flat model is the weights (classes, features), then the biases."""

    def __init__(self, kind: Logistic) -> None:
        self.features = math.prod(datasets.SAMPLE_SHAPES[kind.data])
        self.classes = datasets.CLASSES
        self.name = f"logistic regression on {kind.data}"
        self.parameters = self.classes * (self.features + 1)
        self.dtype = _dtype(kind.dtype)
        self.l2 = kind.l2
        super().__init__(functools.partial(_named_samples, kind, flat=True), _sharing(kind))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Weights and biases."""
        return (self.classes, self.features), (self.classes,)

    def initial_model(self) -> Tensor:
        """x0 = 0."""
        return torch.zeros(self.parameters, dtype=self.dtype)

    def loss(self, x: Tensor) -> float:
        """Mean cross-entropy over all samples + l2/2 ‖x‖², accumulated in float64."""
        self._check_model(x)
        total = 0.5 * self.l2 * float(x.double() @ x.double())
        for (inputs, labels), weight in self._chunks(None):
            total += weight * float(F.cross_entropy(self._logits(x, inputs[0]).double(), labels))
        return total

    def batch_gradient(self, x: Tensor, indices: Tensor, draw: tuple[int, int, int]) -> Tensor:
        """Closed form, see `_gradient`."""
        inputs, labels = self.samples
        # A view into a larger tensor may be aligned differently, and last bits may depend on that.
        x = x.clone()
        return self._gradient(x, inputs[0].index_select(0, indices), labels.index_select(0, indices)).add_(
            x, alpha=self.l2
        )

    def mean_gradient(self, x: Tensor, indices: datasets.Indices | None) -> Tensor:
        """Mean gradient over the given samples, accumulated in float64."""
        self._check_model(x)
        total = x.double() * self.l2
        for (inputs, labels), weight in self._chunks(indices):
            total.add_(self._gradient(x, inputs[0], labels), alpha=weight)
        return total

    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """Closed form: the outer product of a sample's residual and its features, its residual, and l2 x."""
        inputs, labels = self.samples
        x = x.clone()
        features = inputs[0].index_select(0, indices)
        residual = self._residual(x, features, labels.index_select(0, indices))
        products = torch.einsum("sc,sf->scf", residual, features).flatten(1)
        return torch.cat([products, residual], dim=1).add_(x, alpha=self.l2)

    def _logits(self, x: Tensor, features: Tensor) -> Tensor:
        """Scores of shape (samples, classes)."""
        cut = self.classes * self.features
        return torch.addmm(x[cut:], features, x[:cut].view(self.classes, self.features).t())

    def _gradient(self, x: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Gradient of the mean cross-entropy: with residuals R = softmax - one-hot, Rᵀ X / n and Σ R / n."""
        residual = self._residual(x, features, labels)
        residual /= len(labels)
        gradient = torch.empty(self.parameters, dtype=self.dtype)
        cut = self.classes * self.features
        torch.mm(residual.t(), features, out=gradient[:cut].view(self.classes, self.features))
        torch.sum(residual, dim=0, out=gradient[cut:])
        return gradient

    def _residual(self, x: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Softmax of the scores less the one-hot labels, of shape (samples, classes)."""
        residual = torch.softmax(self._logits(x, features), dim=1)
        residual[torch.arange(len(labels)), labels] -= 1
        return residual


class ModuleObjective(SampledObjective):
    """Mean loss of a torch module over samples; the machinery behind `Mlp`, `Cnn` and a user's `Task`.

    The rules, which hold on both clocks:

    - The module is copied; the user's own is never changed. Its parameters that require a gradient make up
      the flat model, shared ones once; frozen ones stay constant. Parameters that a forward pass does not use
      have gradient zero.
    - Buffers are not part of the model. Every evaluation starts from the buffers that the module came with
      and throws away what it makes of them, so nothing leaks between workers or draws.
    - A gradient is taken in training mode: batch normalisation uses the statistics of the mini-batch.
    - A loss (and a gradient norm, and a full gradient) is taken in evaluation mode, except that batch and
      instance normalisation use the statistics of the data they are given, in pieces of at most
      `EVALUATION_BATCH` samples; running statistics would depend on a worker's history.
    - Randomness inside the module (dropout) comes from torch's default CPU generator. If `stochastic`, it is
      seeded from (seed, rank, number of the draw) before each gradient and put back afterwards, at a price of
      about 10 µs. Other sources of randomness and state kept outside buffers are not controlled: where a
      simulation evaluates on several threads, they are those of several copies of the network.
    - The loss function returns the mean over its batch.

    Parameters
    ----------
    name : str
        For titles and error messages.
    module : torch.nn.Module
        Its parameters are the initial model.
    load : callable
        Returns all samples; called when they are first needed.
    loss : callable
        (output, labels) to the mean loss, a tensor of one element.
    sharing : Sharing
        How samples are divided and drawn.
    dtype : torch.dtype, optional
        Type of model and floating-point samples; the module's own if None.
    stochastic : bool
        Whether a forward pass may draw random numbers.

    Raises
    ------
    ValueError
        If the module cannot be copied, has no trainable parameter, or has them in several dtypes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        load: Callable[[], Samples],
        loss: Loss,
        sharing: Sharing,
        dtype: torch.dtype | None = None,
        stochastic: bool = True,
    ) -> None:
        super().__init__(load, sharing)
        self.name = name
        self._loss = loss
        self._stochastic = stochastic
        self._module = _private_copy(name, module, dtype)
        self._trainable = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        self.dtype = _common_dtype(name, self._trainable)
        self._spans = spans_of(self._trainable)
        self.parameters = self._spans[-1][1]
        self._device = torch.device("cpu")
        self._flat: Tensor
        self._initial: Tensor
        self._lay_out()
        self._training: bool | None = None
        self._delivery: Delivery | None = None
        self._plans: dict[tuple[tuple[int, int], ...], BucketPlan] = {}
        self._hooked = False
        # One worker's tasks may run on several threads of the wall clock; the private module is one.
        self._lock = threading.Lock()

    def place(self, device: torch.device) -> bool:
        """Move the network and what it is given; sample numbers and labels stay known on the CPU."""
        if device != self._device:
            self._device = device
            initial = self._initial.to(device)
            self._module.to(device)
            self._lay_out()
            self._initial = initial
        return True

    def twin(self) -> ModuleObjective:
        """The same samples and a copy of the network.

        Raises
        ------
        ValueError
            If the network cannot be copied any more: it keeps tensors of an evaluation.
        """
        with self._lock:
            self._prepare(self._initial, training=True)  # with the buffers that the module came with
            twin = ModuleObjective(
                self.name, self._module, self._load, self._loss, self.sharing, stochastic=False
            )
        twin.samples = self.samples
        return twin

    def _lay_out(self) -> None:
        """Make the parameters views of one buffer, into which a model is copied: one copy per evaluation.

        So the kernels always see the same alignment, on which their last bits may depend.
        """
        self._flat = torch.empty(self.parameters, dtype=self.dtype, device=self._device)
        for parameter, (low, high) in zip(self._trainable, self._spans, strict=True):
            view = self._flat[low:high].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
        self._initial = self._flat.clone()
        self._buffers = _buffer_places(self._module)
        self.__dict__.pop("_here", None)
        self.__dict__.pop("_all_samples", None)

    @functools.cached_property
    def _here(self) -> Samples:
        inputs, labels = self.samples
        return tuple(tensor.to(self._device) for tensor in inputs), labels.to(self._device)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the trainable parameters."""
        return tuple(tuple(parameter.shape) for parameter in self._trainable)

    def initial_model(self) -> Tensor:
        """The parameters that the module came with, as a fresh flat tensor."""
        return self._initial.clone()

    def loss(self, x: Tensor) -> float:
        """Mean loss over all samples, in evaluation mode; pieces are added up in float64."""
        self._check_model(x)
        total = 0.0
        with self._lock, torch.no_grad(), self._randomness(None):
            for samples, weight in self._chunks(None):
                self._prepare(x, training=False)
                total += weight * float(self._value(samples))
        return total

    def batch_gradient(self, x: Tensor, indices: Tensor, draw: tuple[int, int, int]) -> Tensor:
        """Mean gradient over the given samples, by back-propagation in training mode."""
        samples = _take(*self._here, indices)
        with self._lock, self._randomness(draw):
            self._prepare(x, training=True)
            return self._value_and_gradient(samples)[1]

    def batch_gradients(self, requests: Sequence[Request]) -> list[Tensor]:
        """Gradients of several workers, for each size of mini-batch.

        A stack of linear layers under cross-entropy takes stacked matrix products; any other network
        `torch.func.vmap`, which takes longer to set out.

        Raises
        ------
        ValueError
            If the network has buffers, or draws random numbers.
        """
        if self._buffers:
            raise ValueError(f"{self.name} has buffers, so its gradients cannot be evaluated together")
        by_size: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            by_size.setdefault(len(request.indices), []).append(place)
        gradients: dict[int, Tensor] = {}
        for size, places in by_size.items():
            most = max(1, EVALUATION_BATCH // size)
            for start in range(0, len(places), most):
                some = places[start : start + most]
                together = self._gradients_together([requests[place] for place in some])
                gradients.update(zip(some, together, strict=True))
        return [gradients[place] for place in range(len(requests))]

    def _gradients_together(self, requests: Sequence[Request]) -> Tensor:
        """Gradients at mini-batches of one size, of shape [requests, parameters]."""
        models = torch.stack([request.x for request in requests])
        chosen, labels = _take(*self.samples, torch.cat([request.indices for request in requests]))
        inputs = tuple(_split(values, len(requests)) for values in chosen)
        labels = _split(labels, len(requests))
        with self._lock:
            self._prepare(requests[0].x, training=True)
            if self._stack is not None and inputs[0].is_floating_point():
                return self._stack.gradients(models, inputs[0], labels)
            try:
                return self._vectorised(models, inputs, labels)
            except RuntimeError as error:
                if "randomness" not in str(error):
                    raise
                raise ValueError(
                    f"{self.name} draws random numbers, so its gradients cannot be evaluated together"
                ) from None

    @functools.cached_property
    def coupling(self) -> str | None:
        """Names the first layer that mixes samples; see `coupling`."""
        return coupling(self.name, self._module)

    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """Gradients of single samples by `torch.func.vmap`, in pieces of `SAMPLE_GRADIENT_VALUES`.

        Raises
        ------
        ValueError
            If torch cannot vectorise the network, or it draws random numbers even in evaluation mode.
        """
        x = x.clone()
        gradients = torch.empty(len(indices), self.parameters, dtype=self.dtype, device=self._device)
        piece = max(1, SAMPLE_GRADIENT_VALUES // self.parameters)
        with self._lock:
            self._prepare(x, training=False)
            for start in range(0, len(indices), piece):
                inputs, labels = _take(*self._here, indices[start : start + piece])
                try:
                    # Every sample becomes a mini-batch of one, which is what the network expects.
                    gradients[start : start + piece] = self._vectorised_samples(
                        x, tuple(values.unsqueeze(1) for values in inputs), labels.unsqueeze(1)
                    )
                except RuntimeError as error:
                    raise ValueError(f"{self.name}: {_why_not_alone(error)}") from error
        return gradients

    @functools.cached_property
    def _stack(self) -> _LinearStack | None:
        """The network as a stack of linear layers, if it is one that is trained on labels."""
        inputs, labels = self.samples
        if self._loss is not F.cross_entropy or labels.dim() != 1 or labels.is_floating_point():
            return None
        return _LinearStack.of(self._module) if len(inputs) == 1 else None

    @functools.cached_property
    def _vectorised(self) -> Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor]:
        """(models [w, d], inputs [w, batch, ...], labels [w, batch, ...]) to gradients [w, d]."""
        return torch.func.vmap(self._functional_gradient)

    @functools.cached_property
    def _vectorised_samples(self) -> Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor]:
        """(model [d], inputs [samples, 1, ...], labels [samples, 1, ...]) to gradients [samples, d]."""
        return torch.func.vmap(self._functional_gradient, in_dims=(None, 0, 0))

    @functools.cached_property
    def _functional_gradient(self) -> Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor]:
        """(model [d], inputs [batch, ...], labels [batch, ...]) to the gradient [d], as a pure function."""
        names = [name for name, p in self._module.named_parameters() if p.requires_grad]
        shapes = [parameter.shape for parameter in self._trainable]

        def value(x: Tensor, inputs: tuple[Tensor, ...], labels: Tensor) -> Tensor:
            parts = zip(names, self._spans, shapes, strict=True)
            parameters = {name: x[low:high].view(shape) for name, (low, high), shape in parts}
            output = torch.func.functional_call(self._module, parameters, inputs)
            return self._loss(output, labels).reshape(())

        return torch.func.grad(value)

    def batch_gradient_in_buckets(
        self, x: Tensor, indices: Tensor, draw: tuple[int, int, int], bounds: Bounds, deliver: Deliver
    ) -> None:
        """The same gradient, delivered by hooks on the parameters while back-propagation runs."""
        delivery = Delivery(self._bucket_plan(bounds), self._trainable, deliver, self._device)
        samples = _take(*self._here, indices)
        with self._lock, self._randomness(draw):
            self._prepare(x, training=True)
            self._delivery = delivery
            try:
                self._back_propagate(samples)
                delivery.finish()
            finally:
                self._delivery = None
                self._forget_gradients()

    def mean_gradient(self, x: Tensor, indices: datasets.Indices | None) -> Tensor:
        """Mean gradient over the given samples in evaluation mode, accumulated in float64."""
        return self._mean_loss_and_gradient(x, indices)[1]

    def loss_and_gradient_norm(self, x: Tensor) -> tuple[float, float]:
        """Both from one forward and backward pass, which gives the same numbers as `loss` alone."""
        loss, gradient = self._mean_loss_and_gradient(x, None)
        return loss, float(torch.linalg.vector_norm(gradient))

    def _mean_loss_and_gradient(self, x: Tensor, indices: datasets.Indices | None) -> tuple[float, Tensor]:
        """Mean loss over the given samples and its gradient, in evaluation mode, added up in float64."""
        self._check_model(x)
        loss, total = 0.0, torch.zeros(self.parameters, dtype=torch.float64, device=self._device)
        with self._lock, self._randomness(None):
            for samples, weight in self._chunks(indices):
                self._prepare(x, training=False)
                value, gradient = self._value_and_gradient(samples)
                loss += weight * float(value)
                total.add_(gradient, alpha=weight)
        return loss, total

    def _bucket_plan(self, bounds: Bounds) -> BucketPlan:
        """The plan for these bounds, made once; the first of several buckets hooks the parameters.

        A single bucket is complete when back-propagation is over, which needs no hook.
        """
        key = tuple(bounds)
        if key not in self._plans:
            plan = BucketPlan(self._check_bounds(key), self._spans)
            if len(key) > 1 and not self._hooked:
                self._hooked = True
                for index, parameter in enumerate(self._trainable):
                    # torch does not type the next call, nor backward.
                    parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        functools.partial(self._took_gradient, index)
                    )
            self._plans[key] = plan
        return self._plans[key]

    def _took_gradient(self, index: int, _: Tensor) -> None:
        """Back-propagation has finished the gradient of parameter `index`."""
        if self._delivery is not None:
            self._delivery.take(index)

    def _prepare(self, x: Tensor, training: bool) -> None:
        """Put model, buffers and mode into the private module."""
        self._flat.copy_(x)
        for pristine, places in self._buffers:
            fresh = pristine.clone()
            for submodule, key in places:
                setattr(submodule, key, fresh)
        if self._training is not training:
            self._module.train(training)
            for submodule in self._module.modules():
                if isinstance(submodule, _NORMALISATIONS):
                    submodule.train()
            self._training = training

    def _value(self, samples: Samples) -> Tensor:
        """The mean loss of the samples as a scalar tensor."""
        inputs, labels = samples
        value = self._loss(self._module(*inputs), labels)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: the loss must be a tensor of one element, got {shape}")
        return value.reshape(())

    def _value_and_gradient(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The mean loss of the samples, and its gradient as a fresh flat tensor."""
        try:
            value = self._back_propagate(samples)
            return value.detach(), torch.cat([flat_gradient(parameter) for parameter in self._trainable])
        finally:
            self._forget_gradients()

    def _back_propagate(self, samples: Samples) -> Tensor:
        """Leave the gradient of the mean loss of the samples on the parameters; return that loss."""
        with torch.enable_grad():
            value = self._value(samples)
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        return value

    def _forget_gradients(self) -> None:
        """Take the gradients off the parameters."""
        for parameter in self._trainable:
            parameter.grad = None

    @contextlib.contextmanager
    def _randomness(self, draw: tuple[int, int, int] | None) -> Iterator[None]:
        """Seed torch's default generator for this draw (None: for an evaluation), then put it back."""
        if not self._stochastic:
            yield
            return
        seed, rank, number = draw or (0, 0, 0)
        sequence = seed_of(seed, rank, Purpose.MODULE, number)
        if self._device.type == "cuda":
            # The GPU's own generator, which nobody else uses.
            torch.cuda.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        with _torch_seeded(sequence):
            yield


class _LinearStack:
    """A network of linear layers with element-wise functions in between, for several models at once.

    Parameters
    ----------
    layers : list of torch.nn.Module
        `nn.Linear` with weights and biases of its own, and layers without parameters.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._sizes = [parameter.numel() for layer in layers for parameter in layer.parameters()]

    @classmethod
    def of(cls, module: nn.Module) -> _LinearStack | None:
        """The stack that a network is; None where it is none, or does more than its layers say."""
        if type(module) is not nn.Sequential:
            return None
        layers = [layer for layer in module if type(layer) is not nn.Flatten]
        linear = [layer for layer in layers if type(layer) is nn.Linear]
        known = all(type(layer) in (nn.Linear, *_ELEMENTWISE) for layer in layers)
        hooked = any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
            for part in module.modules()
        )
        trained = all(parameter.requires_grad for parameter in module.parameters())
        if not known or hooked or not trained or len(set(map(id, linear))) < len(linear):
            return None
        if type(module[0]) is not nn.Flatten or (module[0].start_dim, module[0].end_dim) != (1, -1):
            return None
        return cls(layers) if all(layer.bias is not None for layer in linear) else None

    def gradients(self, x: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Gradients of the mean cross-entropy.

        Parameters
        ----------
        x : torch.Tensor
            Models, [w, d].
        inputs, labels : torch.Tensor
            Of each model's mini-batch, [w, batch, ...] and [w, batch].

        Returns
        -------
        torch.Tensor
            [w, d]
        """
        with torch.enable_grad():
            x = x.requires_grad_()
            parts = iter(torch.split(x, self._sizes, dim=1))
            # The samples come last, since a softmax over few classes is slow where these do.
            values = inputs.flatten(2).transpose(1, 2)
            for layer in self._layers:
                if isinstance(layer, nn.Linear):
                    weight = next(parts).view(-1, layer.out_features, layer.in_features)
                    values = torch.baddbmm(next(parts).unsqueeze(2), weight, values)
                else:
                    values = layer(values)
            # The sum over all models of the mean over each mini-batch.
            total = F.cross_entropy(values, labels, reduction="sum") / labels.shape[1]
            (gradients,) = torch.autograd.grad(total, x)
        return gradients


def mlp_objective(kind: Mlp, seed: int) -> ModuleObjective:
    """The objective of an `Mlp` kind; torch's default initialisation, drawn from the seed."""
    shape = datasets.SAMPLE_SHAPES[kind.data]
    with _torch_seeded(seed_of(seed, Purpose.INITIAL_MODEL)):
        module = small_mlp(math.prod(shape), kind.hidden, datasets.CLASSES)
    return _classifier(f"MLP on {kind.data}", module, kind)


def cnn_objective(kind: Cnn, seed: int) -> ModuleObjective:
    """The objective of a `Cnn` kind; torch's default initialisation, drawn from the seed."""
    channels, side, _ = datasets.SAMPLE_SHAPES[kind.data]
    with _torch_seeded(seed_of(seed, Purpose.INITIAL_MODEL)):
        module = small_cnn(channels, side, datasets.CLASSES)
    return _classifier(f"CNN on {kind.data}", module, kind)


def _classifier(name: str, module: nn.Module, kind: SampledData) -> ModuleObjective:
    """Mean cross-entropy of one of our own networks, which draw no random numbers."""
    return ModuleObjective(
        name,
        module,
        functools.partial(_named_samples, kind, flat=False),
        F.cross_entropy,
        _sharing(kind),
        _dtype(kind.dtype),
        stochastic=False,
    )


def _sharing(kind: SampledData) -> Sharing:
    """How a kind divides and draws its samples."""
    return Sharing(kind.shards, kind.alpha, kind.sampling)


def _named_samples(kind: SampledData, flat: bool) -> Samples:
    """Load the data set that a kind names."""
    dataset = datasets.load(kind.data, kind.folder)
    features = dataset.features.flatten(1) if flat else dataset.features
    return (features.to(_dtype(kind.dtype)),), dataset.labels


_INSTANCE_NORMALISATIONS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMALISATIONS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    *_INSTANCE_NORMALISATIONS,
)
"""Layers whose evaluation mode would look at running statistics."""


def coupling(name: str, module: nn.Module) -> str | None:
    """Why the loss of one sample depends on others, or torch.func cannot take it apart; None if neither.

    Known layers only: a user's own that mixes samples is not found out.
    """
    for path, layer in module.named_modules():
        running = isinstance(layer, _INSTANCE_NORMALISATIONS) and layer.track_running_stats
        if running or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            fault = "keeps running statistics" if running else "makes samples depend on each other"
            return (
                f"{name}: layer {path or 'model'!r} ({type(layer).__name__}) {fault}, so there is no "
                "gradient of one sample; use GroupNorm, or InstanceNorm without running statistics"
            )
    return None


def _why_not_alone(error: RuntimeError) -> str:
    """In a sentence, why torch.func did not take the gradients of single samples."""
    text = str(error).strip()
    if "randomness" in text:
        return (
            "the model draws random numbers even in evaluation mode, so its summands are no fixed functions"
        )
    return f"torch.func cannot take the gradient of one sample: {text.splitlines()[0]}"


_ELEMENTWISE = (
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.Softplus,
    nn.Identity,
)
"""Layers without parameters that treat every value alike."""


def _dtype(name: str) -> torch.dtype:
    """torch's type of that name."""
    return {"float32": torch.float32, "float64": torch.float64}[name]


def _take(inputs: tuple[Tensor, ...], labels: Tensor, indices: Tensor) -> Samples:
    """Copies of the chosen samples."""
    indices = indices.to(labels.device)
    return tuple(tensor.index_select(0, indices) for tensor in inputs), labels.index_select(0, indices)


def _split(values: Tensor, count: int) -> Tensor:
    """A view of values of shape (samples, ...) as so many mini-batches."""
    return values.view(count, len(values) // count, *values.shape[1:])


def _private_copy(name: str, module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Deep copy of the module on the CPU, in the given type."""
    try:
        copied = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: the model cannot be copied: {error}") from error
    copied = copied.to(device="cpu", dtype=dtype)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _common_dtype(name: str, parameters: list[nn.Parameter]) -> torch.dtype:
    """The one type of all parameters."""
    if not parameters:
        raise ValueError(f"{name}: the model has no trainable parameter")
    found = sorted({str(parameter.dtype) for parameter in parameters})
    if len(found) > 1:
        raise ValueError(
            f"{name}: the model's parameters are of {' and '.join(found)}; give dtype to cast them"
        )
    return parameters[0].dtype


def _buffer_places(module: nn.Module) -> list[tuple[Tensor, list[tuple[nn.Module, str]]]]:
    """Copies of all buffers as they are now, each with the places that hold it (several if it is shared)."""
    found: dict[int, tuple[Tensor, list[tuple[nn.Module, str]]]] = {}
    for submodule in module.modules():
        for key, buffer in submodule.named_buffers(recurse=False, remove_duplicate=False):
            found.setdefault(id(buffer), (buffer.clone(), []))[1].append((submodule, key))
    return list(found.values())


@contextlib.contextmanager
def _torch_seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seed torch's default CPU generator and put its state back afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        generator.set_state(state)
