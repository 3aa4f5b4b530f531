"""What parameter servers have in common: shards of the model, each kept by one server.

The model is cut into as many shards as there are servers (:mod:`algorithms.servers.served` says which ranks
they are). A worker pushes the slices of its gradient and pulls the slices of the model; to a server of its
own both are local and free. ``hosts`` are the ranks of the servers, in their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Self

from algorithms.algorithm import Channel, Compresses, Plan, Setting, parameter
from algorithms.servers.served import Served
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.algorithm import Matrix

PUSH, PULL = "push", "pull"
"""Channels to a server and back. An empty push says that it was the worker's last."""


def bounds(elements: int, servers: int) -> list[tuple[int, int]]:
    """Return the slices [low, high) of the servers' shards, as equal as can be."""
    cuts = [elements * server // servers for server in range(servers + 1)]
    return list(pairwise(cuts))


def own_shard(worker: Worker, server: int, servers: int) -> Tensor:
    """Return the shard that a server begins with."""
    x = worker.initial_model()
    low, high = bounds(len(x), servers)[server]
    return x[low:high].clone()


@dataclass(frozen=True)
class Sharded(Served):
    """Base of the algorithms whose servers keep a shard of the model each, and are pushed gradients."""

    compresses: ClassVar[Compresses] = "pushed gradients"

    servers: int = parameter(1, "servers, each with a shard of the model", minimum=1)

    @property
    def server_count(self) -> int:
        """How many servers there are."""
        return self.servers

    def alone(self) -> Self:
        """Return it with the one server that one worker can host."""
        return dataclasses.replace(super().alone(), servers=1)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to all servers and back."""
        pairs = [(rank, host) for host in self.hosts(world_size) for rank in range(world_size)]
        ways = tuple(way for rank, host in pairs for way in ((rank, host, PUSH), (host, rank, PULL)))
        return Plan(groups={}, channels=ways)

    def pushed(self, channel: Channel, elements: int, world_size: int) -> tuple[int, int] | None:
        """Return the slice of the gradient that a channel carries: to a server, that of its shard."""
        _, host, name = channel
        hosts = self.hosts(world_size)
        return bounds(elements, len(hosts))[hosts.index(host)] if name == PUSH else None

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of a gradient and a model, as far as they leave a machine."""
        return self.there_and_back(setting)

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse more servers than there are workers to host them."""
        if not self.dedicated and self.servers > world_size:
            hosts = "1 worker" if world_size == 1 else f"{world_size} workers"
            raise ValueError(f"there are {self.servers} servers, but only {hosts} to host them")


async def push_and_pull(worker: Worker, gradient: Tensor, hosts: Sequence[int]) -> Tensor:
    """Push a gradient to all servers at once, and return the model that they answer with."""
    shards = filled(len(gradient), hosts)
    pushes = [worker.send(gradient[low:high], host, PUSH) for host, low, high in shards]
    x = await pull(worker, len(gradient), hosts)
    for push in pushes:
        await push
    return x


async def pull(worker: Worker, elements: int, hosts: Sequence[int]) -> Tensor:
    """Return the model that all servers send."""
    import torch

    answers = [worker.recv(host, PULL) for host, _, _ in filled(elements, hosts)]
    slices: Any = [await answer for answer in answers]
    return torch.cat(slices) if len(slices) > 1 else slices[0]


def filled(elements: int, hosts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (host, low, high) of the shards that hold any of the elements."""
    every = zip(hosts, bounds(elements, len(hosts)), strict=True)
    return [(host, low, high) for host, (low, high) in every if high > low]


async def say_goodbye(worker: Worker, x: Tensor, hosts: Sequence[int]) -> None:
    """Tell all servers that this worker has ended."""
    for host in hosts:
        await worker.send(x[:0], host, PUSH)
