"""Local SGD (also PR-SGD, periodic averaging): k local steps, then the models are averaged.

    k times:  x_i <- x_i - step size * G_i(x_i)
    then:     x_i <- sum_j p_j x_j

An update rule with a state (momentum, AdamW) has one on each worker, and ``state`` says what an average of
the models does to it: it stays as it is ("local", as public implementations have it), it is averaged like
the models, at the price of sending it too ("averaged": Yu, Jin and Yang, ICML 2019, for momentum), or it
starts anew ("reset"). The analyses below are of plain SGD.

Source: Stich, "Local SGD converges fast and communicates little", ICLR 2019; Yu, Yang and Zhu,
"Parallel restarted SGD with faster convergence and less communication", AAAI 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.local.rounds import RuleState, at_average, local_steps
from algorithms.worker import Worker


@dataclass(frozen=True)
class LocalSGD(Algorithm):
    """Local steps between exact averages of the models."""

    model_copies: ClassVar[int] = 1
    compresses: ClassVar[Literal["models"]] = "models"

    period: int = parameter(4, "local steps between two averages (k)", minimum=1)
    state: RuleState = parameter(
        "local",
        "what becomes of the update rule's state at an average, where the rule has one",
        rule_state=True,
    )

    @property
    def resumes_exactly(self) -> bool:
        """An iteration needs the model and the update rule's state alone."""
        return True

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        while worker.running:
            x = await worker.all_reduce(await local_steps(worker, x, self.period))
            await at_average(worker, self.state)
            worker.report(x)
