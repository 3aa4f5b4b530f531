"""AllReduce-SGD (synchronous SGD, S-SGD): every worker applies the mean gradient of all workers.

    x <- x - step size * sum_i p_i G_i(x)

The baseline of every comparison. As DistributedDataParallel does (Li et al., "PyTorch Distributed",
VLDB 2020), a bucket of the gradient is reduced as soon as back-propagation has freed it, so that most
of the communication hides behind the rest of the backward pass.

All workers apply the same gradient to the same model, so an update rule with a state (momentum, AdamW) has
the same state on all of them, and the algorithm is that rule with the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.algorithm import Algorithm, parameter
from algorithms.worker import Worker


@dataclass(frozen=True)
class AllReduceSGD(Algorithm):
    """Synchronous SGD with an all-reduce of the gradient in every iteration."""

    model_copies: ClassVar[int] = 1
    momentum: ClassVar[Literal["covered", "uncovered", "refused"]] = "covered"
    compresses: ClassVar[Literal["gradients"]] = "gradients"

    overlap: bool = parameter(True, "reduce each bucket while back-propagation goes on")

    @property
    def resumes_exactly(self) -> bool:
        """An iteration needs the model and the update rule's state alone."""
        return True

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        while worker.running:
            if self.overlap:
                reductions = [worker.all_reduce(await bucket) for bucket in worker.gradient_buckets(x)]
                x = await worker.update(x, [await reduction for reduction in reductions])
                del reductions  # which hold a whole gradient
            else:
                gradient = await worker.gradient(x)
                x = await worker.update(x, await worker.all_reduce(gradient))
            worker.report(x)
