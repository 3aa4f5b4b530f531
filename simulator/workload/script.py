"""What stands for the objective in the scenario of a training script of a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.workload.objective import Objective


@dataclass(frozen=True)
class TrainingScript:
    """The loss of a script over the batches of its own loader, known while the script runs.

    Parameters
    ----------
    model : str
        Name of the module's class.
    parameters : int
        Trainable parameters.
    """

    model: str
    parameters: int

    @classmethod
    def of(cls, model: str, live: Objective) -> TrainingScript:
        """Return the one that builds a living objective."""
        made = cls(model, live.parameters)
        object.__setattr__(made, "_live", live)
        return made

    @property
    def fulfils(self) -> frozenset[str]:
        """Nothing: a loader gives batches, and nobody knows the sum behind them."""
        return frozenset()

    def build(self, seed: int) -> Objective:
        """Return the living objective.

        Raises
        ------
        ValueError
            The script has ended: its run was read from a file.
        """
        live: Objective | None = getattr(self, "_live", None)
        if live is None:
            raise ValueError(f"the training script of {self.model} has ended; only running it brings it back")
        return live
