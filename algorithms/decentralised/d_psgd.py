"""D-PSGD: decentralised parallel SGD, in which a worker averages with its neighbours only.

With a doubly stochastic mixing matrix W, worker i computes in each iteration

    combine-then-adapt:  x_i <- sum_j W_ij x_j - step size * G_i(x_i)
    adapt-then-combine:  x_i <- sum_j W_ij (x_j - step size * G_j(x_j))

The first takes the gradient at the model before averaging, so that the exchange with the neighbours
hides behind it; the second sends the updated model and cannot overlap.

An update rule with a state (momentum, AdamW) keeps it on its worker; the models alone are mixed. The paper's
analysis is of plain SGD.

Source: Lian, Zhang, Zhang, Hsieh, Zhang and Liu, "Can decentralized algorithms outperform centralized
algorithms?", NeurIPS 2017, arXiv 1705.09056, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from algorithms.algorithm import Algorithm, Plan, Setting, graph_channels, parameter
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class DPSGD(Algorithm):
    """Neighbour averaging on a graph, with the gradient beside or before it."""

    requires: ClassVar[frozenset[str]] = frozenset({"graph"})
    model_copies: ClassVar[int] = 1
    momentum: ClassVar[Literal["covered", "uncovered", "refused"]] = "uncovered"
    exact_because: ClassVar[str] = (
        "neighbours must see exact models to mix them; choco-sgd is the gossip that takes a codec"
    )

    order: Literal["combine-then-adapt", "adapt-then-combine"] = parameter(
        "combine-then-adapt", "whether the gradient is taken at the model before averaging, or applied first"
    )

    @property
    def resumes_exactly(self) -> bool:
        """An iteration needs the model and the update rule's state alone."""
        return True

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of the model to every neighbour."""
        return setting.degree * setting.model

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare one channel per direction of every edge."""
        assert graph is not None
        return Plan(groups={}, channels=graph_channels(graph))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        while worker.running:
            if self.order == "combine-then-adapt":
                arrivals = worker.exchange(x)
                gradient = await worker.gradient(x)
                mixed = await worker.combine(*mixing_terms(worker, x, await arrivals))
                x = await worker.update(mixed, gradient)
            else:
                gradient = await worker.gradient(x)
                adapted = await worker.update(x, gradient)
                neighbours = await worker.exchange(adapted)
                x = await worker.combine(*mixing_terms(worker, adapted, neighbours))
            worker.report(x)


def mixing_terms(worker: Worker, own: Tensor, others: Mapping[int, Tensor]) -> list[tuple[float, Tensor]]:
    """Return the terms of sum_j W_ij x_j, in ascending order of ranks, this worker's own included."""
    models = {**others, worker.rank: own}
    return [(weight, models[rank]) for rank, weight in worker.weights.items()]
