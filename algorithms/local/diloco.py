"""DiLoCo: many inner steps, then one outer step of Nesterov momentum on the mean movement.

From theta, the same on all workers, each takes H inner steps (AdamW in the paper; the run's update rule
here, whose state stays with the worker). With delta = theta - mean_i theta_i as an outer gradient,

    u <- mu u + delta,   theta <- theta - outer step * (delta + mu u)

Streaming DiLoCo cuts the model into P fragments that are synchronised in turn, each every H steps, H/P steps
apart. A fragment's average starts as its turn comes and is merged tau steps later, weighted against what the
worker has done meanwhile: fragment <- (1 - alpha) * new global + alpha * local. So at most a P-th of the
model is sent at once, behind tau steps of computing.

Sources: Douillard et al., "DiLoCo: distributed low-communication training of language models", arXiv
2311.08105, algorithm 1; Douillard et al., "Streaming DiLoCo with overlapping communication: towards a
distributed free lunch", arXiv 2501.18512.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.local.rounds import local_steps
from algorithms.worker import Handle, Tensor, Worker


@dataclass(frozen=True)
class DiLoCo(Algorithm):
    """Inner steps of each worker, and outer steps with momentum on what they moved on average."""

    model_copies: ClassVar[int] = 2
    compresses: ClassVar[Literal["models"]] = "models"
    momentum: ClassVar[Literal["covered"]] = "covered"

    period: int = parameter(500, "inner steps between two outer steps (H)", minimum=1)
    outer_step: float = parameter(0.7, "outer learning rate", minimum=0.0)
    outer_momentum: float = parameter(0.9, "outer Nesterov momentum (mu)", minimum=0.0, below=1.0)

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        outer = Outer(self, worker, worker.initial_model())
        while worker.running:
            x = await local_steps(worker, outer.model, self.period)
            worker.report(await outer.step(await worker.all_reduce(x)))


class Outer:
    """The outer optimiser of a model, or of a fragment of one."""

    def __init__(self, settings: DiLoCo | StreamingDiLoCo, worker: Worker, model: Tensor) -> None:
        self.model = model
        self._settings = settings
        self._worker = worker
        self._velocity: Tensor | None = None

    async def step(self, average: Tensor) -> Tensor:
        """Move by the mean of the workers' models, and return the new global model."""
        worker, momentum, step = self._worker, self._settings.outer_momentum, self._settings.outer_step
        delta = ((1.0, self.model), (-1.0, average))
        if not momentum:
            self.model = await worker.combine((1.0, self.model), *((-step * c, x) for c, x in delta))
            return self.model
        carried = () if self._velocity is None else ((momentum, self._velocity),)
        self._velocity = await worker.combine(*carried, *delta)
        moves = ((-step * c, x) for c, x in (*delta, (momentum, self._velocity)))
        self.model = await worker.combine((1.0, self.model), *moves)
        return self.model


@dataclass(frozen=True)
class StreamingDiLoCo(Algorithm):
    """DiLoCo whose fragments are averaged in turn, behind the inner steps."""

    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = (
        "a fragment keeps local steps that its average does not hold, which error feedback would send twice; "
        "diloco takes a codec"
    )
    momentum: ClassVar[Literal["covered"]] = "covered"

    period: int = parameter(500, "inner steps between two outer steps of a fragment (H)", minimum=1)
    fragments: int = parameter(4, "parts of the model that are synchronised in turn (P)", minimum=1)
    delay: int = parameter(1, "inner steps behind which an average hides (tau)", minimum=0)
    merge: float = parameter(
        0.5, "weight of the local fragment in the merge (alpha)", minimum=0.0, maximum=1.0
    )
    outer_step: float = parameter(0.7, "outer learning rate", minimum=0.0)
    outer_momentum: float = parameter(0.9, "outer Nesterov momentum (mu)", minimum=0.0, below=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay >= self.period:
            raise ValueError(
                f"delay must be below period, so that a fragment is merged before its next turn, "
                f"got {self.delay} and {self.period}"
            )
        if self.fragments > self.period:
            raise ValueError(f"fragments must be at most period, got {self.fragments} and {self.period}")

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an all-reduce of the model every k steps."""
        return setting.reduced(setting.model) / self.period

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        bounds = [len(x) * part // self.fragments for part in range(self.fragments + 1)]
        turns = {self.period * (part + 1) // self.fragments - 1: part for part in range(self.fragments)}
        outer = [Outer(self, worker, x[low:high].clone()) for low, high in pairwise(bounds)]
        under_way: deque[tuple[int, int, Handle[Tensor]]] = deque()
        step = 0
        while worker.running:
            x = await local_steps(worker, x, 1)
            part = turns.get(step % self.period)
            if part is not None:
                average = worker.all_reduce(x[bounds[part] : bounds[part + 1]])
                under_way.append((step + self.delay, part, average))
            while under_way and under_way[0][0] == step:
                _, part, average = under_way.popleft()
                x = await self._merged(worker, x, bounds[part], outer[part], await average)
            step += 1
            worker.report(x)
        for _, _, average in under_way:
            await average

    async def _merged(self, worker: Worker, x: Tensor, low: int, outer: Outer, average: Tensor) -> Tensor:
        """Return the model with a fragment between its global and its local state."""
        import torch

        fragment = await outer.step(average)
        local = x[low : low + len(fragment)]
        merged = await worker.combine((1 - self.merge, fragment), (self.merge, local))

        def replaced(whole: Tensor, part: Tensor) -> Tensor:
            pieces: Any = [whole[:low], part, whole[low + len(part) :]]
            return torch.cat(pieces)

        spliced: Tensor = await worker.compute(replaced, x, merged, nbytes=2.0 * merged.nbytes)
        return spliced
