"""Local SGD (also PR-SGD, periodic averaging): k local steps, then the models are averaged.

    k times:  x_i <- x_i - step size * G_i(x_i)
    then:     x_i <- sum_j p_j x_j

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; Yu, Yang and Zhu,
"Parallel restarted SGD with faster convergence and less communication", AAAI 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, parameter
from algorithms.worker import Worker


@dataclass(frozen=True)
class LocalSGD(Algorithm):
    """Local steps between exact averages of the models."""

    model_copies: ClassVar[int] = 1
    compresses: ClassVar[Literal["models"]] = "models"

    period: int = parameter(4, "local steps between two averages (k)", minimum=1)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        while worker.running:
            for _ in range(self.period):
                gradient = await worker.gradient(x)
                x = await worker.update(x, gradient)
            x = await worker.all_reduce(x)
            worker.report(x)
