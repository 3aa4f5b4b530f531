"""D2: decentralised SGD that does not suffer from workers whose data differ.

With a symmetric doubly stochastic mixing matrix W,

    x_1   = W (x_0 - step size * g_0)
    x_t+1 = W (2 x_t - x_t-1 - step size * (g_t - g_t-1))

The form here stays right when the step size changes from a_t-1 to a_t:

    x_t+1 = W (x_t - a_t * ((x_t-1 - x_t) / a_t-1 + g_t - g_t-1))

It converges only where W's smallest eigenvalue is above -1/3: a mode with eigenvalue l follows
z^2 - 2 l z + l, whose root reaches -1 there. A ring of an even number of workers with equal weights lies
exactly on that limit. So W is replaced by (W + I) / 2 unless ``lazy`` says otherwise, and then checked.

Source: Tang, Lian, Yan, Zhang and Liu, "D2: decentralized training over decentralized data", ICML 2018,
arXiv 1803.07068; the form for changing step sizes is that of its public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from algorithms.algorithm import Algorithm, Plan, Setting, graph_channels, parameter
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.algorithm import Matrix

LIMIT = -1 / 3 + 1e-9
"""The smallest eigenvalue of a mixing matrix must lie above this; on -1/3 itself rounding would decide."""


@dataclass(frozen=True)
class D2(Algorithm):
    """Neighbour averaging with a correction by the step before."""

    requires: ClassVar[frozenset[str]] = frozenset({"graph", "symmetric"})
    model_copies: ClassVar[int] = 3
    exact_because: ClassVar[str] = (
        "its correction would take what a codec loses for a difference between the workers"
    )
    # The correction is the difference of two plain steps.
    momentum: ClassVar[Literal["refused"]] = "refused"

    lazy: bool = parameter(True, "mix by (W + I) / 2, whose eigenvalues are not negative")

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of the model to every neighbour."""
        return setting.degree * setting.model

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare one channel per direction of every edge."""
        assert graph is not None
        return Plan(groups={}, channels=graph_channels(graph))

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse a mixing matrix with too small an eigenvalue."""
        import numpy as np

        assert mixing is not None
        smallest = float(np.linalg.eigvalsh((mixing + mixing.T) / 2)[0])
        if not self.lazy and smallest <= LIMIT:
            raise ValueError(
                f"D2 diverges on this mixing matrix, whose smallest eigenvalue is {smallest:.12f} and must "
                f"be above {LIMIT:.12f} (-1/3, and 1e-9 more for rounding); leave lazy at true, or choose "
                "another graph or mixing"
            )

    def mixing_row(self, worker: Worker) -> Mapping[int, float]:
        """Return this worker's row of the matrix that is used."""
        if not self.lazy:
            return worker.weights
        halved = {rank: weight / 2 for rank, weight in worker.weights.items()}
        halved[worker.rank] = halved.get(worker.rank, 0.0) + 0.5
        return dict(sorted(halved.items()))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        row = self.mixing_row(worker)
        x = worker.initial_model()
        before: tuple[Tensor, Tensor, float] | None = None
        while worker.running:
            gradient = direction = await worker.gradient(x)
            step = worker.step_size
            if before is not None:
                last, last_gradient, last_step = before
                change = ((1 / last_step, last), (-1 / last_step, x))
                direction = await worker.combine(*change, (1, gradient), (-1, last_gradient))
            moved = await worker.update(x, direction)
            before = (x, gradient, step)
            models = {**await worker.exchange(moved), worker.rank: moved}
            x = await worker.combine(*((weight, models[rank]) for rank, weight in row.items()))
            worker.report(x)
