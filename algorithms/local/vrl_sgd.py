"""VRL-SGD: local SGD with variance reduction between workers whose data differ.

Worker i corrects its steps by Delta_i, its estimate of how its gradient differs from the mean one:

    k times:  x_i <- x_i - step size * (G_i(x_i) - Delta_i)
    then:     x_hat = sum_j p_j x_j,   Delta_i <- Delta_i + (x_hat - x_i) / (k * step size),   x_i <- x_hat

The corrections start at 0 and their weighted sum stays 0.

Source: Liang, Shen, Liu, Pan, Chen and Cheng, "Variance reduced local SGD with lower communication
complexity", arXiv 1912.12844, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.worker import Tensor, Worker


@dataclass(frozen=True)
class VRLSGD(Algorithm):
    """Local steps that are corrected towards the mean gradient."""

    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = "its corrections are exact differences between a model and the mean of all"
    # A correction is what plain steps moved, divided by what they multiplied.
    momentum: ClassVar[Literal["refused"]] = "refused"

    period: int = parameter(4, "local steps between two averages (k)", minimum=1)

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        correction: Tensor | None = None
        while worker.running:
            steps = 0.0
            for _ in range(self.period):
                gradient = await worker.gradient(x)
                if correction is not None:
                    gradient = await worker.combine((1, gradient), (-1, correction))
                steps += worker.step_size
                x = await worker.update(x, gradient)
            average = await worker.all_reduce(x)
            drift = ((1 / steps, average), (-1 / steps, x))
            carried = () if correction is None else ((1.0, correction),)
            correction = await worker.combine(*carried, *drift)
            x = average
            worker.report(x)
            self.note(worker, correction)

    def note(self, worker: Worker, correction: Tensor) -> None:
        """Take in a worker's correction after a round; a test overrides this to look at them."""
