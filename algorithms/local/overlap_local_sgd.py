"""Overlap-Local-SGD: local steps hide an average that the models are then pulled towards.

Every tau steps worker i waits for the average that it started tau steps ago, is pulled towards the anchor z
that follows from it, and starts the next average of the pulled-back models:

    k-th average p_bar arrives:   buf <- beta buf - (p_bar - z) / step size,   z <- z - step size * buf
    x_i <- (1 - alpha) x_i + alpha z,   start p_bar = sum_j p_j x_j

Without anchor momentum (beta = 0) z is p_bar itself. The first anchor is the starting model. Where the step
size changes, it is that of the first iteration of the round whose models p_bar is the average of.

Source: Wang, Liang and Joshi, "Overlap local-SGD: an algorithmic approach to hide communication delays in
distributed SGD", ICASSP 2020, arXiv 2002.09539, with the buffer as its public code has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.local.rounds import local_steps
from algorithms.worker import Handle, Tensor, Worker


@dataclass(frozen=True)
class OverlapLocalSGD(Algorithm):
    """Local steps beside an average, and a pull towards the average of the round before."""

    model_copies: ClassVar[int] = 3
    exact_because: ClassVar[str] = (
        "its workers keep a part of their own models, which error feedback would send twice; cocod-sgd takes "
        "a codec"
    )

    period: int = parameter(4, "local steps per round (tau), which hide one all-reduce", minimum=1)
    pull: float = parameter(
        0.6, "how far a model is pulled towards the anchor (alpha)", minimum=0.0, maximum=1.0
    )
    anchor_momentum: float = parameter(0.7, "momentum of the anchor (beta)", minimum=0.0, below=1.0)

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = anchor = worker.initial_model()
        under_way: tuple[Handle[Tensor], float] | None = None
        velocity: Tensor | None = None
        while worker.running:
            x = await local_steps(worker, x, 1)
            step = worker.step_size
            x = await local_steps(worker, x, self.period - 1)
            if under_way is not None:
                average, its_step = under_way
                arrived = await average
                if self.anchor_momentum:
                    carried = () if velocity is None else ((self.anchor_momentum, velocity),)
                    moved = ((-1 / its_step, arrived), (1 / its_step, anchor))
                    velocity = await worker.combine(*carried, *moved)
                    anchor = await worker.combine((1, anchor), (-its_step, velocity))
                else:
                    anchor = arrived
            x = await worker.combine((1 - self.pull, x), (self.pull, anchor))
            under_way = worker.all_reduce(x), step
            worker.report(x)
        if under_way is not None:
            await under_way[0]
