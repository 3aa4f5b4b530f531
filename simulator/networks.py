"""How the links of a cluster serve what crosses them.

*Fluid*: whatever crosses a link at one time shares it at every instant, as the streams of a transport
protocol do (:mod:`simulator.engine.fairshare`). *Store-and-forward*: a link sends one chunk after another in
the order of their arrival, and hands each on when it has all of it (:mod:`simulator.engine.storeforward`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

__all__ = ["NETWORKS", "Fluid", "StoreAndForward"]


@dataclass(frozen=True)
class Fluid:
    """Flows share links, as the cluster's ``fairness`` says."""


@dataclass(frozen=True)
class StoreAndForward:
    """Links send one chunk of a message after another, first come, first served.

    Attributes
    ----------
    chunk
        The largest part of a message that is forwarded by itself.
    whole_nanoseconds
        Whether the time of a chunk on a link is cut to whole nanoseconds, as ASTRA-sim does.
    """

    chunk: Annotated[float, "B"] = inf
    whole_nanoseconds: bool = False

    def __post_init__(self) -> None:
        if not self.chunk > 0:
            raise ValueError(f"chunk must be above 0 B, got {self.chunk!r}")


NETWORKS: dict[str, type] = {"fluid": Fluid, "store-and-forward": StoreAndForward}
"""Network models by the name that a scenario uses."""
