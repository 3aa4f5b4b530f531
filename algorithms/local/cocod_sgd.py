"""CoCoD-SGD: computation and communication decoupled SGD.

In round r, which starts at step t, worker i averages a snapshot of its model with all others while it
takes k local steps, and then moves its model by what the average changed:

    x_hat_t   = sum_j p_j x_t^j                           (all-reduce of the snapshot, in the background)
    x_tau+1^i = x_tau^i - step size * G_tau^i             (tau = t .. t+k-1)
    x_t+k^i  <- x_hat_t + (x_t+k^i - x_t^i)

With batches proportional to the workers' speed, p_i = M_i / sum of all M, and the objective is
sum_i p_i f_i. The weighted mean of the models moves by the weighted mean of the updates alone.

An update rule with a state (momentum, AdamW) keeps it on its worker: it goes on from round to round as it
is, whatever the average does to the model. The paper's analysis is of plain SGD.

Source: Shen, Xu, Liu, Liang and Cheng, "Faster distributed deep net training: computation and
communication decoupled stochastic gradient descent", IJCAI 2019, arXiv 1906.12043.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.worker import Worker


@dataclass(frozen=True)
class CoCoDSGD(Algorithm):
    """Local steps that hide the average of the models as they stood when the round began."""

    model_copies: ClassVar[int] = 2
    momentum: ClassVar[Literal["covered", "uncovered", "refused"]] = "uncovered"
    compresses: ClassVar[Literal["models"]] = "models"

    period: int = parameter(4, "local steps per round (k), which hide one all-reduce", minimum=1)
    first_all_reduce: bool = parameter(
        True, "average in the first round too, where all models are still identical and it brings nothing"
    )

    @property
    def resumes_exactly(self) -> bool:
        """A round needs the models that the last one reported, unless the first one is special."""
        return self.first_all_reduce

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        communicate = self.first_all_reduce
        while worker.running:
            snapshot = x
            average = worker.all_reduce(snapshot) if communicate else None
            for _ in range(self.period):
                gradient = await worker.gradient(x)
                x = await worker.update(x, gradient)
            if average is not None:
                x = await worker.combine((1, x), (1, await average), (-1, snapshot))
            communicate = True
            worker.report(x)
