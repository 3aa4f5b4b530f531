"""Synchronous SGD with a parameter server, in place of an all-reduce.

All workers push their gradients, the server applies their mean when the last has come, and answers all:

    x <- x - step size * sum_i p_i G_i(x)

A server's network card carries the traffic of all workers both ways, n M each; servers that share the model
divide it, and those that are dedicated share no card with a worker. Pushes may be compressed, each slice by
itself; the model that is pulled stays exact.

Source: Li et al., "Scaling distributed machine learning with the parameter server", OSDI 2014.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from algorithms.algorithm import Channel, Compresses, Plan, Setting, parameter
from algorithms.servers.served import Served
from algorithms.servers.shards import (
    PULL,
    PUSH,
    channels,
    check_servers,
    own_shard,
    push_and_pull,
    pushed,
    say_goodbye,
    traffic,
)
from algorithms.worker import Worker

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.algorithm import Matrix


@dataclass(frozen=True)
class ParameterServer(Served):
    """Synchronous SGD whose gradients meet at servers."""

    model_copies: ClassVar[int] = 1
    compresses: ClassVar[Compresses] = "pushed gradients"
    momentum: ClassVar[Literal["covered"]] = "covered"

    servers: int = parameter(1, "servers, each with a shard of the model", minimum=1)

    @property
    def server_count(self) -> int:
        """How many servers there are."""
        return self.servers

    def served_updates(self, world_size: int) -> int:
        """Return the one update that a server makes for an iteration of all workers."""
        return 1

    def alone(self) -> Self:
        """Return it with the one server that one worker can host."""
        return dataclasses.replace(super().alone(), servers=1)

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of a gradient and a model, as far as they leave a machine."""
        return traffic(setting, self.dedicated)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to all servers and back."""
        return Plan(groups={}, channels=channels(world_size, self.hosts(world_size)))

    def pushed(self, channel: Channel, elements: int, world_size: int) -> tuple[int, int] | None:
        """Return the slice of the gradient that goes to a server."""
        return pushed(channel, elements, self.hosts(world_size))

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse more servers than there are workers to host them."""
        if not self.dedicated:
            check_servers("parameter server", self.servers, world_size)

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
