"""CHOCO-SGD: decentralised SGD whose neighbours exchange compressed messages.

All neighbours of worker i hold the same replica x_hat_i of its model, as it does itself. With a codec C, the
consensus step size gamma and a symmetric doubly stochastic mixing matrix W, in each iteration

    x_i     <- x_i - step size * G_i(x_i)
    q_i      = C(x_i - x_hat_i)                            is sent to all neighbours
    x_hat_j <- x_hat_j + q_j                               for all neighbours j and for i itself
    x_i     <- x_i + gamma * sum_j W_ij (x_hat_j - x_hat_i)

The mean of the models moves by the gradients alone, whatever C loses, because both sides of an edge use the
same replicas. What C loses is part of the next difference, so that it needs no error feedback. Replicas start
at the initial model, which all know; the paper's start at zero. Instead of one for each neighbour a worker
keeps their sum s_i = sum_j W_ij x_hat_j, as the paper's memory-efficient form does.

C is the run's compression. It must leave less of a difference than there was, so random rounding without
bias is scaled by 1 / (1 + w), where w bounds its variance. The coarser C is, the smaller gamma must be; what
the theory allows is far below what works. Without compression and with gamma = 1 this is D-PSGD in its order
adapt-then-combine.

Source: Koloskova, Stich and Jaggi, "Decentralized stochastic optimization and gossip algorithms with
compressed communication", ICML 2019, arXiv 1902.00340, algorithms 2 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from algorithms.algorithm import Algorithm, Compresses, Plan, Setting, graph_channels, parameter
from algorithms.worker import Worker

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class ChocoSGD(Algorithm):
    """Gossip by compressed differences from replicas that neighbours share."""

    requires: ClassVar[frozenset[str]] = frozenset({"graph", "symmetric"})
    model_copies: ClassVar[int] = 3  # the replica, the sum of replicas, and the difference
    compresses: ClassVar[Compresses] = "model differences"
    momentum: ClassVar[Literal["covered", "uncovered", "refused"]] = "uncovered"

    gamma: float = parameter(
        0.1, "consensus step size (gamma): how far to the neighbours", above=0.0, maximum=1.0
    )

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of the model to every neighbour, as they are without compression."""
        return setting.degree * setting.model

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare one channel per direction of every edge."""
        assert graph is not None
        return Plan(groups={}, channels=graph_channels(graph))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = replica = replicas = worker.initial_model()
        while worker.running:
            x = await worker.update(x, await worker.gradient(x))
            difference = await worker.combine((1, x), (-1, replica))
            # Behind a codec this worker's own rank is among them, with what its neighbours make of it.
            changes = {worker.rank: difference, **await worker.exchange(difference)}
            replica = await worker.combine((1, replica), (1, changes[worker.rank]))
            weighted = ((weight, changes[rank]) for rank, weight in worker.weights.items())
            replicas = await worker.combine((1, replicas), *weighted)
            x = await worker.combine((1, x), (self.gamma, replicas), (-self.gamma, replica))
            worker.report(x)
