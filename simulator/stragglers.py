"""What makes some workers slower than others, or stops them: factors, jitter, bursts, crashes, slow links.

A straggler multiplies the time of a computation. Persistent factors and per-step factors multiply the
work of each gradient, one draw per gradient; bursts and slow links change a capacity while work goes on.
Several stragglers on one worker multiply. Each worker and straggler has a random stream of its own, named by
what the straggler is and not by its place in a list, so that adding one does not change another's draws.

Per-step distributions have mean 1 unless a parameter says otherwise, so that jitter does not also change
the mean speed.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Draw = Callable[[], float]
Factors: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

BLOCK = 16
"""How many factors are drawn together."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Straggler:
    """Base: slows the named workers (all, where none is named) not at all.

    Attributes
    ----------
    workers
        Ranks that it concerns.
    """

    workers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _require(self.workers is None or len(self.workers) > 0, "workers must name at least one worker")
        self.check()

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""

    def concerns(self, rank: int) -> bool:
        """Return whether this straggler slows that worker."""
        return self.workers is None or rank in self.workers

    def persistent_factor(self) -> float:
        """Return the factor that multiplies every computation."""
        return 1.0

    def step_factor(self, random: np.random.Generator) -> Draw | None:
        """Return the source of per-gradient factors, or None where there is none."""
        return None


@dataclass(frozen=True)
class Persistent(Straggler):
    """A worker that is always slower.

    Attributes
    ----------
    slowdown
        How many times longer every computation takes.
    measured_with
        How many workers computed together where this was measured, as a calibration says.
    """

    slowdown: float = 2.0
    measured_with: int | None = None

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 < self.slowdown < math.inf, f"slowdown must be above 0 and finite, got {self.slowdown!r}")
        together = self.measured_with
        _require(together is None or together >= 1, f"measured-with must be at least 1, got {together!r}")

    def persistent_factor(self) -> float:
        """Return the slow-down."""
        return self.slowdown


@dataclass(frozen=True)
class LognormalJitter(Straggler):
    """Per-gradient factors exp(N(-sigma^2/2, sigma^2)), of mean 1.

    Attributes
    ----------
    sigma
        Standard deviation of the factors' logarithm.
    """

    sigma: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 <= self.sigma < math.inf, f"sigma must be 0 or more and finite, got {self.sigma!r}")

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the lognormal factor."""
        return _Blocks(random, self._factors)

    def _factors(self, random: np.random.Generator, count: int) -> Factors:
        return random.lognormal(-(self.sigma**2) / 2, self.sigma, count)


@dataclass(frozen=True)
class GammaJitter(Straggler):
    """Per-gradient factors from a gamma distribution of mean 1.

    Attributes
    ----------
    variation
        Coefficient of variation: standard deviation over mean.
    """

    variation: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(
            0 < self.variation < math.inf, f"variation must be above 0 and finite, got {self.variation!r}"
        )

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the gamma factor."""
        return _Blocks(random, self._factors)

    def _factors(self, random: np.random.Generator, count: int) -> Factors:
        shape = 1 / self.variation**2
        return random.gamma(shape, 1 / shape, count)


@dataclass(frozen=True)
class ShiftedExponentialJitter(Straggler):
    """Per-gradient factors shift + Exp(mean); of mean 1 where shift + mean is 1.

    Attributes
    ----------
    shift
        The smallest factor.
    mean
        Mean of the exponential part.
    """

    shift: float = 0.9
    mean: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 <= self.shift < math.inf, f"shift must be 0 or more and finite, got {self.shift!r}")
        _require(0 <= self.mean < math.inf, f"mean must be 0 or more and finite, got {self.mean!r}")
        _require(self.shift + self.mean > 0, "shift and mean cannot both be 0")

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the shifted exponential factor."""
        return _Blocks(random, self._factors)

    def _factors(self, random: np.random.Generator, count: int) -> Factors:
        return self.shift + self.mean * random.standard_exponential(count)


@dataclass(frozen=True)
class ParetoJitter(Straggler):
    """Per-gradient factors from a Pareto distribution of mean 1.

    Attributes
    ----------
    alpha
        Exponent of the tail, which is heavier the smaller it is.
    """

    alpha: float = 3.0

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(
            1 < self.alpha < math.inf,
            f"alpha must be above 1, for the mean to exist, and finite, got {self.alpha!r}",
        )

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the Pareto factor."""
        return _Blocks(random, self._factors)

    def _factors(self, random: np.random.Generator, count: int) -> Factors:
        least = (self.alpha - 1) / self.alpha
        return least * (1 + random.pareto(self.alpha, count))


@dataclass(frozen=True)
class MeasuredJitter(Straggler):
    """Per-gradient factors with measured quantiles and a measured correlation from one gradient to the next.

    Factors are the quantiles at the levels of a standard normal autoregression of first order, by straight
    lines between those that were measured, over their mean, so that their mean is 1.

    Attributes
    ----------
    levels, values
        Parts of the gradients, ascending from 0 to 1, and the factor that each of them does not exceed.
    correlation
        Of the normal scores of successive gradients, from -1 to 1, both excluded.
    """

    levels: tuple[float, ...] = (0.0, 1.0)
    values: tuple[float, ...] = (0.9, 1.1)
    correlation: float = 0.0

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        levels, values = self.levels, self.values
        ends = len(levels) > 1 and (levels[0], levels[-1]) == (0, 1)
        rises = ends and all(low < high for low, high in itertools.pairwise(levels))
        _require(rises, f"levels must ascend from 0 to 1, got {list(levels)!r}")
        _require(len(values) == len(levels), f"{len(values)} values are given for {len(levels)} levels")
        sound = all(0 <= low <= high < math.inf for low, high in itertools.pairwise(values))
        _require(sound and values[-1] > 0, f"values must be 0 or more and never fall, got {list(values)!r}")
        _require(-1 < self.correlation < 1, f"correlation must be between -1 and 1, got {self.correlation!r}")

    @property
    def mean(self) -> float:
        """The mean of the quantiles as they are given."""
        parts = zip(itertools.pairwise(self.levels), itertools.pairwise(self.values), strict=True)
        return math.fsum((high - low) * (a + b) / 2 for (low, high), (a, b) in parts)

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the measured factor."""
        if self.correlation == 0:
            return _Blocks(random, lambda generator, count: self._at(generator.random(count)))
        return _Blocks(random, _Correlated(self.correlation, self._at))

    def _at(self, levels: Factors) -> Factors:
        import numpy as np

        return np.interp(levels, self.levels, np.asarray(self.values) / self.mean)


class _Correlated:
    """Draws in blocks that go on where the last one ended.

    Parameters
    ----------
    correlation
        Of a normal score with the one before.
    quantiles
        Makes factors of levels between 0 and 1.
    """

    __slots__ = ("_correlation", "_last", "_quantiles")

    def __init__(self, correlation: float, quantiles: Callable[[Factors], Factors]) -> None:
        self._correlation = correlation
        self._quantiles = quantiles
        self._last: float | None = None

    def __call__(self, random: np.random.Generator, count: int) -> Factors:
        import numpy as np

        new = random.standard_normal(count)
        spread = math.sqrt(1 - self._correlation**2)
        last = self._last
        for place, value in enumerate(new):
            last = value if last is None else self._correlation * last + spread * value
            new[place] = last
        self._last = last
        half = math.sqrt(0.5)
        return self._quantiles(np.array([0.5 * math.erfc(-half * score) for score in new]))


@dataclass(frozen=True)
class Bursts(Straggler):
    """A two-state Markov process: fast for Exp(fast) seconds, then ``slowdown`` times slower for Exp(slow).

    Attributes
    ----------
    fast, slow
        Mean sojourn times in seconds.
    slowdown
        Factor on all computation while slow.
    """

    fast: Annotated[float, "s"] = 10.0
    slow: Annotated[float, "s"] = 1.0
    slowdown: float = 2.0

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 < self.fast < math.inf, f"fast must be above 0 s and finite, got {self.fast!r}")
        _require(0 < self.slow < math.inf, f"slow must be above 0 s and finite, got {self.slow!r}")
        _require(0 < self.slowdown < math.inf, f"slowdown must be above 0 and finite, got {self.slowdown!r}")

    def sojourn(self, random: np.random.Generator, slow: bool) -> float:
        """Return the seconds that the next stay in a state takes."""
        return random.exponential(self.slow if slow else self.fast)


@dataclass(frozen=True, kw_only=True)
class Crash(Straggler):
    """A worker that stops at a moment: for an outage, or for good, which ends the run.

    During an outage it neither computes nor sends nor receives; what was under way goes on afterwards, and
    the others wait for it where they need it. A worker whose own work is done no longer crashes.

    Attributes
    ----------
    at
        When, in seconds from the start.
    outage
        How long until it goes on; without it, the worker does not come back.
    """

    at: Annotated[float, "s"]
    outage: Annotated[float, "s"] = math.inf

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 <= self.at < math.inf, f"at must be 0 s or later and finite, got {self.at!r}")
        _require(self.outage > 0, f"outage must be above 0 s, got {self.outage!r}")

    @property
    def returns(self) -> bool:
        """Whether the worker goes on after its outage."""
        return self.outage < math.inf

    @property
    def back(self) -> float:
        """When it goes on, in seconds from the start."""
        return self.at + self.outage


@dataclass(frozen=True)
class SlowLink:
    """A link that delivers only ``factor`` of its bandwidth, from ``start`` to ``end``, both ways.

    Attributes
    ----------
    between
        The two nodes of the edge.
    factor
        Part of its bandwidth that it delivers.
    start, end
        While it is slow.
    """

    between: tuple[str | int, str | int]
    factor: float = 0.5
    start: Annotated[float, "s"] = 0.0
    end: Annotated[float, "s"] = math.inf

    def __post_init__(self) -> None:
        _require(0 < self.factor <= 1, f"factor must be above 0 and at most 1, got {self.factor!r}")
        _require(0 <= self.start < self.end, f"start must be 0 or later and before end, got {self.start!r}")


@dataclass(frozen=True)
class LinkFailure:
    """A link that carries nothing, from ``start`` to ``end``, both ways.

    Attributes
    ----------
    between
        The two nodes of the edge.
    start, end
        While it is down.
    transfers
        ``stall``: those on the link wait until it is back. ``reroute``: they go on by a way around it, where
        there is one, and so do later ones until it is back, and background traffic. What was under way pays
        no latency again.
    """

    between: tuple[str | int, str | int]
    start: Annotated[float, "s"] = 0.0
    end: Annotated[float, "s"] = math.inf
    transfers: Literal["stall", "reroute"] = "stall"

    def __post_init__(self) -> None:
        _require(0 <= self.start < self.end, f"start must be 0 or later and before end, got {self.start!r}")


STRAGGLERS: dict[str, type] = {
    "persistent": Persistent,
    "lognormal": LognormalJitter,
    "gamma": GammaJitter,
    "shifted-exponential": ShiftedExponentialJitter,
    "pareto": ParetoJitter,
    "measured": MeasuredJitter,
    "bursts": Bursts,
    "crash": Crash,
    "slow-link": SlowLink,
    "link-failure": LinkFailure,
}
"""Straggler models by the name that a scenario uses."""


class _Blocks:
    """Single draws of a vectorised generator, which is much faster than asking one by one.

    Each of many thousand workers may have one, so between blocks no more is kept of the generator than the
    two numbers that are its state; whatever draws half a word would leave the other half as a third.

    Parameters
    ----------
    random
        What the draws come from; nobody else may use it.
    draw
        Draws a number of factors.
    """

    __slots__ = ("_draw", "_increment", "_left", "_state")

    def __init__(
        self, random: np.random.Generator, draw: Callable[[np.random.Generator, int], Factors]
    ) -> None:
        self._draw = draw
        self._left = array("d")
        self._keep(random)

    def __call__(self) -> float:
        if not self._left:
            random = self._generator()
            self._left.frombytes(self._draw(random, BLOCK)[::-1].tobytes())
            self._keep(random)
        return self._left.pop()

    def _keep(self, random: np.random.Generator) -> None:
        state: dict[str, Any] = dict(random.bit_generator.state)
        self._state: int = state["state"]["state"]
        self._increment: int = state["state"]["inc"]

    def _generator(self) -> np.random.Generator:
        """Return a generator of NumPy's default kind that goes on where the last one ended."""
        import numpy as np

        bits = np.random.PCG64(0)
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": self._state, "inc": self._increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        return np.random.Generator(bits)
