"""What a comparison of the two clocks came to."""

from __future__ import annotations

import statistics
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
        On the virtual clock.
    measured
        In each run on the wall clock.
    """

    case: Compared
    simulated: float
    measured: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the measurements."""
        return statistics.fmean(self.measured)

    @property
    def spread(self) -> float:
        """Standard deviation of the measurements, as of a sample, over their mean; 0 of a single one."""
        return statistics.stdev(self.measured) / self.mean if len(self.measured) > 1 else 0.0

    @property
    def error(self) -> float:
        """Simulated over measured mean, less one."""
        return self.simulated / self.mean - 1
