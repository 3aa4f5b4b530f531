"""AD-PSGD: asynchronous decentralised SGD, in which pairs average whenever they meet.

Every worker computes and communicates at the same time. Its compute task reads its model, computes a
gradient there, and applies it to the model as it stands by then:

    g = G_i(x_i as read);   x_i <- x_i - step size * g

Its communication task picks a random neighbour j, and both replace their models, in one atomic step, by

    x_i, x_j <- (x_i + x_j) / 2

To exclude circles of workers that wait for each other, the graph is bipartite: workers of the active side
start averagings, one at a time, and workers of the passive side only answer. Conflicts, waiting and staleness
follow from who meets when. The mean of all models changes by the gradients alone.

Source: Lian, Zhang, Zhang and Liu, "Asynchronous decentralized parallel stochastic gradient descent", ICML
2018, arXiv 1710.06952, algorithm 1; the two sides and the lock that keeps an update from being lost are as
in its public implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from algorithms.algorithm import Algorithm, Plan, Setting
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

ASK, GRANT, SWAP = "ask", "grant", "swap"
"""Channels of a pair. An empty message asks for an averaging, one of a single element says that it was the
last; an empty message grants it; then both models go at once."""


@dataclass(frozen=True)
class ADPSGD(Algorithm):
    """Gradients and averagings of random pairs, side by side."""

    requires: ClassVar[frozenset[str]] = frozenset({"symmetric", "bipartite"})
    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = (
        "the two models of a pair must be averaged exactly; choco-sgd takes a codec"
    )

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing: who meets whom in which order does."""
        return False

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of a model, where half of the workers are active: each averaging sends two."""
        return setting.model if setting.workers > 1 else 0.0

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels between active workers and their passive neighbours."""
        assert graph is not None
        channels = []
        for i in sorted(active_side(graph)):
            for j in sorted(graph.neighbors(i)):
                channels += [(i, j, ASK), (j, i, GRANT), (i, j, SWAP), (j, i, SWAP)]
        return Plan(groups={}, channels=tuple(channels))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        assert worker.graph is not None
        replica = Replica(worker)
        neighbours = sorted(worker.graph.neighbors(worker.rank))
        active = worker.rank in active_side(worker.graph)
        answers = [] if active else [worker.spawn(replica.answer(peer)) for peer in neighbours]
        choices = worker.random("partners")
        while worker.running:
            averaging = None
            if active and neighbours:
                averaging = worker.spawn(replica.average_with(neighbours[choices.integers(len(neighbours))]))
            read_at = replica.averagings
            gradient = await worker.gradient(replica.x)
            if averaging is not None:
                await averaging
            async with worker.lock():
                worker.observe("staleness", replica.averagings - read_at)
                replica.x = await worker.update(replica.x, gradient)
            worker.report(replica.x)
        if active:
            for peer in neighbours:
                await worker.send(replica.x[:1], peer, ASK)
        for task in answers:
            await task
        worker.report(replica.x)


class Replica:
    """A worker's model, which its tasks change one at a time.

    Attributes
    ----------
    x
        The model.
    averagings
        How often it has been averaged.
    """

    def __init__(self, worker: Worker) -> None:
        self.x = worker.initial_model()
        self.averagings = 0
        self._worker = worker

    async def average_with(self, peer: int) -> None:
        """Start an averaging, which begins when the peer has no other under way."""
        worker = self._worker
        await worker.send(self.x[:0], peer, ASK)
        await worker.recv(peer, GRANT)
        async with worker.lock():
            await self.swap(peer)

    async def answer(self, peer: int) -> None:
        """Answer an active neighbour until it has ended."""
        worker = self._worker
        while not len(await worker.recv(peer, ASK)):
            async with worker.lock():
                await worker.send(self.x[:0], peer, GRANT)
                await self.swap(peer)

    async def swap(self, peer: int) -> None:
        """Exchange models with a peer, which holds its own still, and take the mean."""
        worker = self._worker
        sending = worker.send(self.x, peer, SWAP)
        other = await worker.recv(peer, SWAP)
        await sending
        self.x = await mean_of_pair(worker, self.x, other)
        self.averagings += 1


async def mean_of_pair(worker: Worker, own: Tensor, other: Tensor) -> Tensor:
    """Return the mean of two models."""
    return await worker.combine((0.5, own), (0.5, other))


def active_side(graph: nx.Graph[int]) -> frozenset[int]:
    """Return the workers that start averagings: of every component, those an even way from its first."""
    import networkx as nx

    active = set()
    for component in nx.connected_components(graph):
        for worker, distance in nx.single_source_shortest_path_length(graph, min(component)).items():
            if distance % 2 == 0:
                active.add(worker)
    return frozenset(active)
