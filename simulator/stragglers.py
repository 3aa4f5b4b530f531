"""What makes some workers slower than others: persistent factors, per-step jitter, bursts, slow links.

A straggler multiplies the time of a computation. Persistent factors and per-step factors multiply the
work of each gradient, one draw per gradient; bursts and slow links change a capacity while work goes on.
Several stragglers on one worker multiply. Each worker and straggler has a random stream of its own, named by
what the straggler is and not by its place in a list, so that adding one does not change another's draws.

Per-step distributions have mean 1 unless a parameter says otherwise, so that jitter does not also change
the mean speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

if TYPE_CHECKING:
    import numpy as np

Draw = Callable[[], float]


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
    """A worker that is always slower: every computation takes ``slowdown`` times as long."""

    slowdown: float = 2.0

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 < self.slowdown < math.inf, f"slowdown must be above 0 and finite, got {self.slowdown!r}")

    def persistent_factor(self) -> float:
        """Return the slow-down."""
        return self.slowdown


@dataclass(frozen=True)
class LognormalJitter(Straggler):
    """Per-gradient factors exp(N(-sigma^2/2, sigma^2)), of mean 1."""

    sigma: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 <= self.sigma < math.inf, f"sigma must be 0 or more and finite, got {self.sigma!r}")

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the lognormal factor."""
        mean, sigma = -(self.sigma**2) / 2, self.sigma
        return _blocks(lambda count: random.lognormal(mean, sigma, count))


@dataclass(frozen=True)
class GammaJitter(Straggler):
    """Per-gradient factors from a gamma distribution of mean 1 and the given coefficient of variation."""

    variation: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(
            0 < self.variation < math.inf, f"variation must be above 0 and finite, got {self.variation!r}"
        )

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the gamma factor."""
        shape = 1 / self.variation**2
        return _blocks(lambda count: random.gamma(shape, 1 / shape, count))


@dataclass(frozen=True)
class ShiftedExponentialJitter(Straggler):
    """Per-gradient factors shift + Exp(mean); of mean 1 where shift + mean is 1."""

    shift: float = 0.9
    mean: float = 0.1

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(0 <= self.shift < math.inf, f"shift must be 0 or more and finite, got {self.shift!r}")
        _require(0 <= self.mean < math.inf, f"mean must be 0 or more and finite, got {self.mean!r}")
        _require(self.shift + self.mean > 0, "shift and mean cannot both be 0")

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the shifted exponential factor."""
        return _blocks(lambda count: self.shift + self.mean * random.standard_exponential(count))


@dataclass(frozen=True)
class ParetoJitter(Straggler):
    """Per-gradient factors from a Pareto distribution of mean 1; a smaller ``alpha`` has a heavier tail."""

    alpha: float = 3.0

    def check(self) -> None:
        """Raise ValueError where a parameter is out of range."""
        _require(
            1 < self.alpha < math.inf,
            f"alpha must be above 1, for the mean to exist, and finite, got {self.alpha!r}",
        )

    def step_factor(self, random: np.random.Generator) -> Draw:
        """Return draws of the Pareto factor."""
        least = (self.alpha - 1) / self.alpha
        return _blocks(lambda count: least * (1 + random.pareto(self.alpha, count)))


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


@dataclass(frozen=True)
class SlowLink:
    """A link that delivers only ``factor`` of its bandwidth, from ``start`` to ``end``, both ways.

    Attributes
    ----------
    between
        The two nodes of the edge.
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
    transfers
        ``stall``: those on the link wait until it is back. ``reroute``: they go on by a way around it, where
        there is one, and so do later ones until it is back.
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
    "bursts": Bursts,
    "slow-link": SlowLink,
    "link-failure": LinkFailure,
}
"""Straggler models by the name that a scenario uses."""


def _blocks(draw: Callable[[int], np.ndarray[tuple[int], np.dtype[np.float64]]], size: int = 32) -> Draw:
    """Return single draws of a vectorised generator, which is much faster than asking one by one."""
    block: list[float] = []

    def next_factor() -> float:
        if not block:
            block.extend(draw(size)[::-1].tolist())
        return block.pop()

    return next_factor
