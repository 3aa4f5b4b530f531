"""What a scenario may name as its objective: plain dataclasses, checked when made, built on demand.

An objective kind holds numbers and names only, so that a scenario is read and checked without importing
torch or touching data; `build(seed)` makes the `simulator.workload.objective.Objective` that computes. The
function f that an objective minimises depends on the kind and the seed alone, never on the number of
workers: the one-worker run and the n-worker run descend the same f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

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


class ObjectiveKind(Protocol):
    """Anything that builds an objective: the kinds below, and `simulator.workload.task.Task`."""

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

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"quadratic: dimension must be at least 1, got {self.dimension}")
        if not 0 < self.L < math.inf:
            raise ValueError(f"quadratic: L must be finite and above 0, got {self.L}")
        if not 0 < self.mu <= self.L:
            raise ValueError(f"quadratic: mu must be above 0 and at most L = {self.L}, got {self.mu}")
        if self.dimension == 1 and self.mu != self.L:
            raise ValueError(
                f"quadratic: dimension 1 has one eigenvalue, so mu must be L = {self.L}, got {self.mu}"
            )
        for key in ("sigma2", "zeta2"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise ValueError(f"quadratic: {key} must be finite and at least 0, got {value}")
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
        if not 0 <= self.l2 < math.inf:
            raise ValueError(f"logistic: l2 must be finite and at least 0, got {self.l2}")

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
        if self.hidden < 1:
            raise ValueError(f"mlp: hidden must be at least 1, got {self.hidden}")

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


OBJECTIVES: dict[str, type[Quadratic | ScalarQuadratics | Logistic | Mlp | Cnn]] = {
    "quadratic": Quadratic,
    "scalar-quadratics": ScalarQuadratics,
    "logistic": Logistic,
    "mlp": Mlp,
    "cnn": Cnn,
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


def _check_choice(owner: str, key: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the known names."""
    if value not in known:
        import difflib

        match = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(known)}"
        raise ValueError(f"{owner}: unknown {key} {value!r}{hint}")
