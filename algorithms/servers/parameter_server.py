"""Synchronous SGD with a parameter server, in place of an all-reduce.

All workers push their gradients, the server applies their mean when the last has come, and answers all:

    x <- x - step size * sum_i p_i G_i(x)

A server's network card carries the traffic of all workers both ways, n M each; servers that share the model
divide it. Pushes may be compressed, each slice by itself; the model that is pulled stays exact.

Source: Li et al., "Scaling distributed machine learning with the parameter server", OSDI 2014.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from algorithms.algorithm import Algorithm, Channel, Compresses, Plan, parameter
from algorithms.servers.shards import (
    PULL,
    PUSH,
    bounds,
    channels,
    check_servers,
    push_and_pull,
    pushed,
    say_goodbye,
)
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.algorithm import Matrix


@dataclass(frozen=True)
class ParameterServer(Algorithm):
    """Synchronous SGD whose gradients meet at servers."""

    model_copies: ClassVar[int] = 1
    compresses: ClassVar[Compresses] = "pushed gradients"
    momentum: ClassVar[Literal["covered"]] = "covered"

    servers: int = parameter(1, "servers, each a task of one worker with a shard of the model", minimum=1)

    def alone(self) -> Self:
        """Return it with the one server that one worker can host."""
        return dataclasses.replace(self, servers=1)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to all servers and back."""
        return Plan(groups={}, channels=channels(world_size, self.servers))

    def pushed(self, channel: Channel, elements: int) -> tuple[int, int] | None:
        """Return the slice of the gradient that goes to a server."""
        return pushed(channel, elements, self.servers)

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse more servers than workers."""
        check_servers("parameter server", self.servers, world_size)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        tasks = []
        if worker.rank < self.servers:
            low, high = bounds(len(x), self.servers)[worker.rank]
            tasks.append(worker.spawn(serve(worker, x[low:high].clone())))
        while worker.running:
            gradient = await worker.gradient(x)
            if worker.share != 1 / worker.world_size:
                # The servers divide by n; this makes that the mean over unequal shares.
                gradient = await worker.combine((worker.share * worker.world_size, gradient))
            x = await push_and_pull(worker, gradient, self.servers)
            worker.report(x)
        await say_goodbye(worker, x, self.servers)
        for task in tasks:
            await task


async def serve(worker: Worker, shard: Tensor) -> None:
    """Apply the mean of all workers' gradients in every round and answer all, until they end."""
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
