"""Pipe-SGD: the mean gradient of K - 1 iterations ago is applied, so that its reduction hides.

With the mean gradient g_t = sum_i p_i G_i(w_t) of iteration t, every worker holds the same model

    w_t+1 = w_t - step size * g_(t+1-K),      g_t = 0 before the first iteration

While iteration t is computed, the all-reduces of up to K - 1 earlier iterations are under way. K = 2, a
staleness of one, hides a whole all-reduce behind a whole gradient; K = 1 is synchronous SGD.

Source: Li, Yu, Li, Avestimehr, Kim and Schwing, "Pipe-SGD: a decentralized pipelined SGD framework for
distributed deep net training", NeurIPS 2018, arXiv 1811.03619.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, parameter
from algorithms.worker import Handle, Tensor, Worker


@dataclass(frozen=True)
class PipeSGD(Algorithm):
    """Synchronous SGD with a mean gradient that is K - 1 iterations old."""

    model_copies: ClassVar[int] = 1
    compresses: ClassVar[Literal["gradients"]] = "gradients"

    width: int = parameter(2, "iterations under way at once (K); a gradient is applied K - 1 late", minimum=1)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        under_way: deque[Handle[Tensor]] = deque()
        while worker.running:
            under_way.append(worker.all_reduce(await worker.gradient(x)))
            if len(under_way) == self.width:
                x = await worker.update(x, await under_way.popleft())
            worker.report(x)
        for reduction in under_way:
            await reduction
