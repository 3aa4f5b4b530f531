"""Algorithms with servers: tasks that keep what all workers share, and the ranks that carry them out.

Server k is a task of worker k, so that it shares that worker's device and network card, as servers that are
spread over the workers do; what a worker sends to its own server is local and free. Or servers are dedicated:
server k of n workers has the rank n + k and a machine of its own. It has no data, computes no gradients and
reports no models, and everything that workers send to it goes over the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.worker import Worker


@dataclass(frozen=True)
class Served(Algorithm):
    """Base of the algorithms that have servers: what workers do, and what servers do."""

    dedicated: bool = parameter(False, "servers on machines of their own, rather than as tasks of workers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dedicated and not self.server_count:
            raise ValueError(f"{type(self).__name__}: it has no server to be dedicated with these parameters")

    @property
    def server_count(self) -> int:
        """How many servers there are."""
        return 1

    @property
    def dedicated_servers(self) -> int:
        """Servers that have ranks of their own, behind the workers'."""
        return self.server_count if self.dedicated else 0

    def hosts(self, world_size: int) -> range:
        """Return the ranks that carry out the servers, in their order."""
        first = world_size if self.dedicated else 0
        return range(first, first + self.server_count)

    def there_and_back(self, setting: Setting) -> float:
        """Return the bytes that a worker sends, on average, where all send a model's bytes and get as many.

        Dedicated servers send what comes back, and nothing is local; otherwise workers send it as well, but
        nothing to themselves.
        """
        return setting.model if self.dedicated else setting.reduced(setting.model)

    def alone(self) -> Self:
        """Return it with the servers that one worker hosts itself."""
        return dataclasses.replace(self, dedicated=False)

    async def run(self, worker: Worker) -> None:
        """Train, serve, or do both, as this rank does."""
        hosts = self.hosts(worker.world_size)
        if worker.rank not in hosts:
            await self.train(worker)
            return
        serving = self.serve(worker, worker.rank - hosts.start)
        if self.dedicated:
            await serving
            return
        server = worker.spawn(serving)
        await self.train(worker)
        await server

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        raise TypeError(f"{type(self).__name__} defines no train coroutine")

    async def serve(self, worker: Worker, server: int) -> None:
        """Carry out the server of a number until all workers have ended."""
        raise TypeError(f"{type(self).__name__} defines no serve coroutine")
