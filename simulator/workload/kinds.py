"""What a scenario may name as its objective: plain dataclasses, checked when made, built on demand.

An objective kind holds numbers and names only, so that a scenario is read and checked without importing
torch or touching data; `build(seed)` makes the `simulator.workload.objective.Objective` that computes. The
function f that an objective minimises depends on the kind and the seed alone, never on the number of
workers: the one-worker run and the n-worker run descend the same f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, get_args

if TYPE_CHECKING:
    from simulator.workload.objective import Objective

DataName = Literal["digits", "mnist", "cifar10"]
"""Data sets that can be named; see `simulator.workload.data`."""
ShardRule = Literal["iid", "by-label", "dirichlet"]
"""Ways to divide the samples among workers; see `simulator.workload.data`."""
Sampling = Literal["uniform", "epoch"]
"""How a worker draws a mini-batch from its shard: with replacement, or shuffled anew for every pass."""
DtypeName = Literal["float32", "float64"]
"""Floating-point types of models and gradients."""
PartShape = Literal["diagonal", "rank-one"]
"""Shapes of the summands of a `QuadraticSum`."""

FINITE_SUM = frozenset({"finite-sum"})
"""What a mean of functions of one sample each fulfils; see `objective.Objective.fulfils`."""
COMPOSITIONAL = frozenset({"compositional"})
"""What a mean of functions of a mean of functions fulfils."""


class ObjectiveKind(Protocol):
    """Anything that builds an objective: the kinds below, and `simulator.workload.task.Task`.

    Attributes
    ----------
    fulfils : frozenset of str
        That of the objective, known before it is built.
    """

    @property
    def fulfils(self) -> frozenset[str]:
        """Which of "finite-sum" and "compositional" an algorithm may require of the objective."""

    def build(self, seed: int) -> Objective:
        """Make the objective; `seed` fixes the initial model and whatever is random in f."""


@dataclass(frozen=True)
class Quadratic:
    """A strongly convex quadratic with chosen constants, f(x) = ½ (x - b)ᵀ A (x - b).

    Parameters
    ----------
    dimension : int
        Length of x.
    L, mu : float
        Largest and smallest eigenvalue of A, which is diagonal with eigenvalues equally spaced from mu to L.
    sigma2 : float
        Total variance of a gradient of one sample, E‖g - ∇f_i‖²; a mini-batch has sigma2 / batch.
    zeta2 : float
        Heterogeneity, Σ p_i ‖∇f_i - ∇f‖² over the workers' shares p_i.
    dtype : {"float64", "float32"}
        Type of the model.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    dimension: int = 100
    L: float = 1.0
    mu: float = 0.1
    sigma2: float = 1.0
    zeta2: float = 0.0
    dtype: DtypeName = "float64"

    fulfils: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check_spectrum("quadratic", self.dimension, self.L, self.mu)
        for key in ("sigma2", "zeta2"):
            _check_range("quadratic", key, getattr(self, key), 0.0)
        _check_choice("quadratic", "dtype", self.dtype, get_args(DtypeName))

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the minimiser b."""
        from simulator.workload.objective import QuadraticObjective

        return QuadraticObjective(self, seed)


@dataclass(frozen=True)
class ScalarQuadratics:
    """One scalar quadratic per worker, f_i(x) = a_i (x - b_i)² / 2, with exact gradients and x0 = 0.

    Worker i gets component i, so the world size is the number of components; a single worker gets the
    weighted mean of all. The loss is that of f = Σ w_i f_i.

    Parameters
    ----------
    curvatures, centres : tuple of float
        The a_i and the b_i.
    weights : tuple of float, optional
        The w_i, normalised to sum 1; equal if not given. Give the workers' shares where an algorithm weights
        by them, otherwise the loss is that of another function than the one it descends.
    dtype : {"float64", "float32"}
        Type of the model.

    Raises
    ------
    ValueError
        If the lengths differ or a number is out of range.
    """

    curvatures: tuple[float, ...]
    centres: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    dtype: DtypeName = "float64"

    fulfils: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        count = len(self.curvatures)
        if count == 0:
            raise ValueError("scalar-quadratics: curvatures must name at least one component")
        if len(self.centres) != count:
            raise ValueError(f"scalar-quadratics: {count} curvatures but {len(self.centres)} centres")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"scalar-quadratics: {count} curvatures but {len(self.weights)} weights")
        for key in ("curvatures", "centres"):
            for value in getattr(self, key):
                if not math.isfinite(value):
                    raise ValueError(f"scalar-quadratics: {key} must be finite, got {value}")
        for value in self.weights or ():
            if not 0 < value < math.inf:
                raise ValueError(f"scalar-quadratics: weights must be finite and above 0, got {value}")
        _check_choice("scalar-quadratics", "dtype", self.dtype, get_args(DtypeName))

    def build(self, seed: int) -> Objective:
        """Make the objective; nothing in it is random."""
        from simulator.workload.objective import ScalarQuadraticsObjective

        return ScalarQuadraticsObjective(self)


@dataclass(frozen=True, kw_only=True)
class SampledData:
    """Which samples an objective averages over, and how workers share and draw them.

    Parameters
    ----------
    data : {"digits", "mnist", "cifar10"}
        The data set; all of it is the training set, and the loss is the mean over all of it.
    folder : str, optional
        Where the files of mnist or cifar10 are; digits ship with scikit-learn.
    shards : {"iid", "by-label", "dirichlet"}
        Division among the workers, in sizes proportional to their shares.
    alpha : float, optional
        Concentration of the Dirichlet shards; small is heterogeneous. Needed by dirichlet alone.
    sampling : {"uniform", "epoch"}
        Mini-batches with replacement, or without until the shard is used up.
    dtype : {"float32", "float64"}
        Type of features, model and gradients.

    Raises
    ------
    ValueError
        For an unknown choice, a missing field, or one that the choice does not use.
    """

    data: DataName = "digits"
    folder: str | None = None
    shards: ShardRule = "iid"
    alpha: float | None = None
    sampling: Sampling = "uniform"
    dtype: DtypeName = "float32"

    fulfils: ClassVar[frozenset[str]] = FINITE_SUM

    def __post_init__(self) -> None:
        owner = type(self).__name__.lower()
        _check_choice(owner, "data", self.data, get_args(DataName))
        _check_choice(owner, "dtype", self.dtype, get_args(DtypeName))
        check_sharing(owner, self.shards, self.alpha, self.sampling)
        if self.data == "digits" and self.folder is not None:
            raise ValueError(f"{owner}: folder is not used by data digits, got {self.folder!r}")
        if self.data != "digits" and self.folder is None:
            raise ValueError(f"{owner}: data {self.data} needs folder, the place of its files")


@dataclass(frozen=True, kw_only=True)
class Logistic(SampledData):
    """Multinomial logistic regression: mean cross-entropy + l2/2 ‖x‖² over weights and biases; x0 = 0.

    Parameters
    ----------
    l2 : float
        Regularisation, which makes f l2-strongly convex.
    """

    l2: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("logistic", "l2", self.l2, 0.0)

    def build(self, seed: int) -> Objective:
        """Make the objective; nothing in f is random."""
        from simulator.workload.objective import LogisticObjective

        return LogisticObjective(self)


@dataclass(frozen=True, kw_only=True)
class Mlp(SampledData):
    """A network with one hidden layer and ReLU, mean cross-entropy; on digits 64-32-10, 2,410 parameters.

    Parameters
    ----------
    hidden : int
        Width of the hidden layer.
    """

    hidden: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("mlp", "hidden", self.hidden)

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the initial model."""
        from simulator.workload.objective import mlp_objective

        return mlp_objective(self, seed)


@dataclass(frozen=True, kw_only=True)
class Cnn(SampledData):
    """Two small convolutions and a linear layer, mean cross-entropy; on digits 1,898 parameters."""

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the initial model."""
        from simulator.workload.objective import cnn_objective

        return cnn_objective(self, seed)


@dataclass(frozen=True)
class QuadraticSum:
    """A mean of n quadratics half of which are not convex, itself strongly convex with chosen constants.

    f_i(x) = ½ (x - b)ᵀ (H_i + s_i I) (x - b) + v_iᵀ (x - b) with s_i = -shift for half of the summands and
    +shift for the others, H_i of mean A, and Σ v_i = 0, so that f(x) = ½ (x - b)ᵀ A (x - b). Workers share
    the summands at random, in numbers proportional to their shares.

    Parameters
    ----------
    summands : int
        n, even.
    dimension : int
        Length of x.
    L, mu : float
        Largest and smallest eigenvalue of A, which is diagonal with eigenvalues equally spaced from mu to L.
    shift : float
        What is added to and taken from the curvature of the summands; above mu, half of them are not convex.
    sigma2 : float
        Mean of ‖∇f_i‖² over the summands at the minimiser of f.
    parts : {"diagonal", "rank-one"}
        H_i = A for all, or H_i = c_i c_iᵀ from the seed, whose mean is A too; that needs n >= dimension.
    sampling : {"uniform", "epoch"}
        Mini-batches with replacement, or without until a worker's summands are used up.
    dtype : {"float64", "float32"}
        Type of the model.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    summands: int = 400
    dimension: int = 20
    L: float = 1.0
    mu: float = 0.02
    shift: float = 2.0
    sigma2: float = 1.0
    parts: PartShape = "diagonal"
    sampling: Sampling = "uniform"
    dtype: DtypeName = "float64"

    fulfils: ClassVar[frozenset[str]] = FINITE_SUM

    def __post_init__(self) -> None:
        if self.summands < 2 or self.summands % 2:
            raise ValueError(f"quadratic-sum: summands must be even and at least 2, got {self.summands}")
        _check_spectrum("quadratic-sum", self.dimension, self.L, self.mu)
        for key in ("shift", "sigma2"):
            _check_range("quadratic-sum", key, getattr(self, key), 0.0)
        _check_choice("quadratic-sum", "parts", self.parts, get_args(PartShape))
        if self.parts == "rank-one" and self.summands < self.dimension:
            raise ValueError(
                f"quadratic-sum: parts rank-one need summands of at least dimension = {self.dimension}, "
                f"got {self.summands}"
            )
        _check_choice("quadratic-sum", "sampling", self.sampling, get_args(Sampling))
        _check_choice("quadratic-sum", "dtype", self.dtype, get_args(DtypeName))

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the minimiser b, the v_i and the c_i."""
        from simulator.workload.quadratic_sum import QuadraticSumObjective

        return QuadraticSumObjective(self, seed)


@dataclass(frozen=True)
class Portfolio:
    """Mean-variance portfolio: variance of the return less its mean, over n samples of the assets' returns.

    A compositional objective: the mean return is an inner mean, the variance about it an outer one. The loss
    is f(x) - f*. Every worker sees all samples. Plain gradients of mini-batches are biased.

    Parameters
    ----------
    samples : int
        n, the number of inner and of outer functions; above assets.
    assets : int
        Length of x.
    kappa : float
        Condition number of the returns' covariance, whose eigenvalues are equally spaced from 1 to kappa.
    l2 : float
        Regularisation, l2/2 ‖x‖².
    dtype : {"float64", "float32"}
        Type of the model.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    samples: int = 500
    assets: int = 50
    kappa: float = 4.0
    l2: float = 0.0
    dtype: DtypeName = "float64"

    fulfils: ClassVar[frozenset[str]] = COMPOSITIONAL

    def __post_init__(self) -> None:
        _check_count("portfolio", "assets", self.assets)
        if self.samples <= self.assets:
            raise ValueError(f"portfolio: samples must be above assets = {self.assets}, got {self.samples}")
        _check_range("portfolio", "kappa", self.kappa, 1.0)
        _check_range("portfolio", "l2", self.l2, 0.0)
        _check_choice("portfolio", "dtype", self.dtype, get_args(DtypeName))

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the returns."""
        from simulator.workload.compositional import PortfolioObjective

        return PortfolioObjective(self, seed)


@dataclass(frozen=True)
class PolicyEvaluation:
    """Policy evaluation on a random Markov chain: the mean squared Bellman residual of linear values.

    A compositional objective: the expectation over next states is an inner mean over sampled transitions, the
    average over states an outer one. The loss is f(w) - f*. Every worker sees all parts. Plain gradients of
    mini-batches are biased.

    Parameters
    ----------
    states : int
        S, the number of states and of outer functions.
    features : int
        Length of w, at most states.
    transitions : int
        m, the number of inner functions: sampled next states of every state.
    gamma : float
        Discount, at least 0 and below 1.
    dtype : {"float64", "float32"}
        Type of the model.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    states: int = 100
    features: int = 10
    transitions: int = 500
    gamma: float = 0.9
    dtype: DtypeName = "float64"

    fulfils: ClassVar[frozenset[str]] = COMPOSITIONAL

    def __post_init__(self) -> None:
        for key in ("states", "features", "transitions"):
            _check_count("policy-evaluation", key, getattr(self, key))
        if self.features > self.states:
            raise ValueError(
                f"policy-evaluation: features must be at most states = {self.states}, got {self.features}"
            )
        if not 0 <= self.gamma < 1:
            raise ValueError(f"policy-evaluation: gamma must be at least 0 and below 1, got {self.gamma}")
        _check_choice("policy-evaluation", "dtype", self.dtype, get_args(DtypeName))

    def build(self, seed: int) -> Objective:
        """Make the objective; the seed fixes the chain, its rewards, the features and the transitions."""
        from simulator.workload.compositional import PolicyEvaluationObjective

        return PolicyEvaluationObjective(self, seed)


OBJECTIVES: dict[
    str,
    type[Quadratic | QuadraticSum | ScalarQuadratics | Logistic | Mlp | Cnn | Portfolio | PolicyEvaluation],
] = {
    "quadratic": Quadratic,
    "quadratic-sum": QuadraticSum,
    "scalar-quadratics": ScalarQuadratics,
    "logistic": Logistic,
    "mlp": Mlp,
    "cnn": Cnn,
    "portfolio": Portfolio,
    "policy-evaluation": PolicyEvaluation,
}
"""The objective kinds, by the name a scenario uses."""


def check_sharing(owner: str, shards: str, alpha: float | None, sampling: str) -> None:
    """Check how samples are shared and drawn.

    Raises
    ------
    ValueError
        For an unknown rule, or an alpha that is missing, unused or not above 0.
    """
    _check_choice(owner, "shards", shards, get_args(ShardRule))
    _check_choice(owner, "sampling", sampling, get_args(Sampling))
    if shards == "dirichlet":
        if alpha is None:
            raise ValueError(f"{owner}: shards dirichlet needs alpha, its concentration")
        if not 0 < alpha < math.inf:
            raise ValueError(f"{owner}: alpha must be finite and above 0, got {alpha}")
    elif alpha is not None:
        raise ValueError(f"{owner}: alpha is not used by shards {shards}, got {alpha}")


def _check_spectrum(owner: str, dimension: int, largest: float, smallest: float) -> None:
    """Refuse eigenvalues from mu to L that a matrix of this dimension cannot have."""
    _check_count(owner, "dimension", dimension)
    if not 0 < largest < math.inf:
        raise ValueError(f"{owner}: L must be finite and above 0, got {largest}")
    if not 0 < smallest <= largest:
        raise ValueError(f"{owner}: mu must be above 0 and at most L = {largest}, got {smallest}")
    if dimension == 1 and smallest != largest:
        raise ValueError(
            f"{owner}: dimension 1 has one eigenvalue, so mu must be L = {largest}, got {smallest}"
        )


def _check_count(owner: str, key: str, value: int) -> None:
    """Refuse a number of things below 1."""
    if value < 1:
        raise ValueError(f"{owner}: {key} must be at least 1, got {value}")


def _check_range(owner: str, key: str, value: float, least: float) -> None:
    """Refuse a number that is not finite or below the least."""
    if not least <= value < math.inf:
        raise ValueError(f"{owner}: {key} must be finite and at least {least:g}, got {value}")


def _check_choice(owner: str, key: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the known names."""
    if value not in known:
        import difflib

        match = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"; the nearest is {match[0]!r}" if match else f"; known are {', '.join(known)}"
        raise ValueError(f"{owner}: unknown {key} {value!r}{hint}")
