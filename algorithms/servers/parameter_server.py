"""Synchronous SGD with a parameter server, in place of an all-reduce.

All workers push their gradients, the server applies their mean when the last has come, and answers all:

    x <- x - step size * sum_i p_i G_i(x)

A server's network card carries the traffic of all workers both ways, n M each; servers that share the model
divide it, and those that are dedicated share no card with a worker. Pushes may be compressed, each slice by
itself; the model that is pulled stays exact.

Source: Li et al., "Scaling distributed machine learning with the parameter server", OSDI 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.servers.shards import PULL, PUSH, Sharded, own_shard, push_and_pull, say_goodbye
from algorithms.worker import Worker


@dataclass(frozen=True)
class ParameterServer(Sharded):
    """Synchronous SGD whose gradients meet at servers."""

    model_copies: ClassVar[int] = 1
    momentum: ClassVar[Literal["covered"]] = "covered"

    def served_updates(self, world_size: int) -> int:
        """Return the one update that a server makes for an iteration of all workers."""
        return 1

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        hosts = self.hosts(worker.world_size)
        while worker.running:
            gradient = await worker.gradient(x)
            if worker.share != 1 / worker.world_size:
                # The servers divide by n; this makes that the mean over unequal shares.
                gradient = await worker.combine((worker.share * worker.world_size, gradient))
            x = await push_and_pull(worker, gradient, hosts)
            worker.report(x)
        await say_goodbye(worker, x, hosts)

    async def serve(self, worker: Worker, server: int) -> None:
        """Apply the mean of all workers' gradients in every round and answer all, until they end."""
        shard = own_shard(worker, server, self.servers)
        ranks = range(worker.world_size)
        while True:
            pushes = [worker.recv(rank, PUSH) for rank in ranks]
            gradients = [await push for push in pushes]
            if not len(gradients[0]):
                return
            mean = await worker.combine(*((1 / worker.world_size, gradient) for gradient in gradients))
            shard = await worker.update(shard, mean)
            answers = [worker.send(shard, rank, PULL) for rank in ranks]
            for answer in answers:
                await answer
