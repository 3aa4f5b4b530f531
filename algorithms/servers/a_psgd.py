"""A-PSGD: asynchronous SGD with a parameter server.

A worker pulls the model, computes a gradient and pushes it; the server applies it at once:

    x <- x - step size * G_i(x as worker i pulled it)

and answers with the model that results. Between a pull and its push others have been applied: their number
is the staleness, noted for every push; it follows from who is how fast and how long a transfer takes. With
several servers each keeps a shard of the model, and a worker's shards may be of different versions. When all
have ended, every worker gets the last model. Pushes may be compressed; the model that is pulled stays exact.

The step size depends on the version k, the number of gradients that the server has applied, as the paper's
step size index does: a schedule counts iterations of a worker, of which n workers make k / n in k updates, so
that update k (from 0) has the step size of update floor(k / n) of the schedule.

Source: Lian, Huang, Li and Liu, "Asynchronous parallel stochastic gradient for nonconvex optimization",
NeurIPS 2015, arXiv 1506.08272 (AsySG-con); Dean et al., "Large scale distributed deep networks", NeurIPS
2012.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from algorithms.servers.shards import PULL, PUSH, Sharded, own_shard, pull, push_and_pull, say_goodbye
from algorithms.worker import Tensor, Worker


@dataclass(frozen=True)
class APSGD(Sharded):
    """Gradients that a server applies as they come."""

    model_copies: ClassVar[int] = 1

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing: the order of the pushes does."""
        return False

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        hosts = self.hosts(worker.world_size)
        while worker.running:
            gradient = await worker.gradient(x)
            x = await push_and_pull(worker, gradient, hosts)
            worker.report(x)
        await say_goodbye(worker, x, hosts)
        worker.report(await pull(worker, len(x), hosts))

    async def serve(self, worker: Worker, server: int) -> None:
        """Carry out a server."""
        await Shard(worker, own_shard(worker, server, self.servers)).serve()


class Shard:
    """A server's part of the model, and who has seen which version of it.

    Attributes
    ----------
    x
        The shard.
    version
        Gradients applied.
    """

    def __init__(self, worker: Worker, x: Tensor) -> None:
        self.x = x
        self.version = 0
        self._worker = worker
        self._seen = [0] * worker.world_size

    async def serve(self) -> None:
        """Serve all workers until they have ended, and then give each the last model."""
        worker, ranks = self._worker, range(self._worker.world_size)
        for task in [worker.spawn(self.answer(rank)) for rank in ranks]:
            await task
        if len(self.x):
            for sending in [worker.send(self.x, rank, PULL) for rank in ranks]:
                await sending

    async def answer(self, rank: int) -> None:
        """Apply a worker's gradients and answer each, until it has ended."""
        while len(gradient := await self._worker.recv(rank, PUSH)):
            await self.apply(gradient, rank)
            answer = self._worker.send(self.x, rank, PULL)
            self._seen[rank] = self.version
            await answer

    async def apply(self, gradient: Tensor, rank: int) -> None:
        """Apply a worker's gradient."""
        async with self._worker.lock("shard"):
            self._worker.observe("staleness", self.version - self._seen[rank])
            self.x = await self._worker.update(self.x, gradient, self.version // len(self._seen) + 1)
            self.version += 1
