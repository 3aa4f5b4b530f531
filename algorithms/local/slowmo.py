"""SlowMo: slow momentum over rounds of local SGD (also BMUF).

A round starts at x_0, the same on all workers. After tau local steps and an exact average x_tau,

    u <- beta u + (x_0 - x_tau) / step size
    x_0 <- x_0 - alpha * step size * u

With alpha = 1 and beta = 0 this is local SGD.

Source: Wang, Tantia, Ballas and Rabbat, "SlowMo: improving communication-efficient distributed SGD with
slow momentum", ICLR 2020, arXiv 1910.00643, algorithm 1; Chen and Huo, "Scalable training of deep learning
machines by incremental block training with intra-block parallel optimization and blockwise model-update
filtering", ICASSP 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.local.rounds import RuleState, at_average, local_steps
from algorithms.worker import Tensor, Worker


@dataclass(frozen=True)
class SlowMo(Algorithm):
    """Local SGD whose averages move a common model with momentum."""

    model_copies: ClassVar[int] = 3
    compresses: ClassVar[Literal["models"]] = "models"
    momentum: ClassVar[Literal["covered"]] = "covered"

    period: int = parameter(4, "local steps between two averages (tau)", minimum=1)
    slow_step: float = parameter(1.0, "slow learning rate (alpha), relative to the step size", minimum=0.0)
    slow_momentum: float = parameter(0.5, "slow momentum (beta)", minimum=0.0, below=1.0)
    state: RuleState = parameter(
        "reset", "what becomes of the update rule's state at an average", rule_state=True
    )

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        start = worker.initial_model()
        velocity: Tensor | None = None
        while worker.running:
            x = await local_steps(worker, start, 1)
            step = worker.step_size  # of the round's first iteration
            x = await local_steps(worker, x, self.period - 1)
            average = await worker.all_reduce(x)
            await at_average(worker, self.state)
            moved = ((1 / step, start), (-1 / step, average))
            carried = () if velocity is None else ((self.slow_momentum, velocity),)
            velocity = await worker.combine(*carried, *moved)
            start = await worker.combine((1, start), (-self.slow_step * step, velocity))
            worker.report(start)
