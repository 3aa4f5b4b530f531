"""One-sided pair averaging: a worker pulls the model of a random peer whenever it likes.

In each iteration worker i asks a random peer j for the model that it last published, while it computes its
own gradient, and then

    x_i <- (x_i + x_j) / 2 - step size * G_i(x_i as it was),   publish x_i

The peer's model does not change. So the mean of all models is not preserved, nobody waits for anybody's
computation, and any graph will do. This is often called AD-PSGD, which it is not: that averages both models
of a pair in one atomic step.

Source: Mai, Li, Wagenlander, Fertakis, Brabete and Pietzuch, "KungFu: making training in distributed machine
learning adaptive", OSDI 2020, its PairAveraging optimizer; peers are drawn uniformly here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from algorithms.algorithm import Algorithm, Plan, Setting
from algorithms.decentralised.ad_psgd import mean_of_pair
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

ASK, ANSWER = "ask", "answer"
"""Channels of an ordered pair. An empty message asks, one of a single element says that it was the last."""


@dataclass(frozen=True)
class PairAveraging(Algorithm):
    """Local steps, each with a mean of the own model and a pulled one."""

    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = (
        "a model that is pulled must be exact, as nothing makes up for what it lacks"
    )

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing: what a peer has published by then does."""
        return False

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of a model, which a worker serves as often as it asks, on average."""
        return setting.model if setting.workers > 1 else 0.0

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels of every ordered pair."""
        pairs = [(i, j) for i in range(world_size) for j in range(world_size) if i != j]
        return Plan(groups={}, channels=tuple((i, j, name) for i, j in pairs for name in (ASK, ANSWER)))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        published = Published(worker)
        others = [rank for rank in range(worker.world_size) if rank != worker.rank]
        answers = [worker.spawn(published.answer(peer)) for peer in others]
        choices = worker.random("partners")
        x = published.x
        while worker.running:
            pulling = None
            if others:
                pulling = worker.spawn(pulled(worker, x, others[choices.integers(len(others))]))
            gradient = await worker.gradient(x)
            if pulling is not None:
                x = await mean_of_pair(worker, x, await pulling)
            x = published.x = await worker.update(x, gradient)
            worker.report(x)
        for peer in others:
            await worker.send(x[:1], peer, ASK)
        for task in answers:
            await task


async def pulled(worker: Worker, x: Tensor, peer: int) -> Tensor:
    """Return the model that a peer has published."""
    asking = worker.send(x[:0], peer, ASK)
    answer = await worker.recv(peer, ANSWER)
    await asking
    return answer


class Published:
    """The model that a worker shows to its peers.

    Attributes
    ----------
    x
        The model.
    """

    def __init__(self, worker: Worker) -> None:
        self.x = worker.initial_model()
        self._worker = worker

    async def answer(self, peer: int) -> None:
        """Answer a peer until it has ended."""
        while not len(await self._worker.recv(peer, ASK)):
            await self._worker.send(self.x, peer, ANSWER)
