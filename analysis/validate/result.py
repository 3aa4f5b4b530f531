"""What a comparison of the two clocks came to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Compared = TypeVar("Compared")


@dataclass(frozen=True)
class Result(Generic[Compared]):
    """Seconds per iteration on both clocks.

    Attributes
    ----------
    case
        What was compared.
    simulated
        In each run on the virtual clock.
    measured
        In each run on the wall clock.
    """

    case: Compared
    simulated: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def error(self) -> float:
        """Simulated over measured mean, less one."""
        return statistics.fmean(self.simulated) / statistics.fmean(self.measured) - 1


def spread(seconds: Sequence[float]) -> float:
    """Return the standard deviation, as of a sample, over the mean; 0 of a single number."""
    return statistics.stdev(seconds) / statistics.fmean(seconds) if len(seconds) > 1 else 0.0


def milliseconds(seconds: Sequence[float], digits: int = 1) -> str:
    """Return mean and spread in words; the spread of several only."""
    mean = f"{1e3 * statistics.fmean(seconds):.{digits}f} ms"
    return f"{mean} ± {100 * spread(seconds):.1f} %" if len(seconds) > 1 else mean
