"""What parameter servers have in common: shards of the model, each kept by one server.

The model is cut into as many shards as there are servers (:mod:`algorithms.servers.served` says which ranks
they are). A worker pushes the slices of its gradient and pulls the slices of the model; to a server of its
own both are local and free. ``hosts`` are the ranks of the servers, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from algorithms.algorithm import Channel, Setting
from algorithms.worker import Tensor, Worker

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


def channels(world_size: int, hosts: Sequence[int]) -> tuple[Channel, ...]:
    """Return the channels between all workers and all servers."""
    pairs = [(rank, host) for host in hosts for rank in range(world_size)]
    return tuple(c for rank, host in pairs for c in ((rank, host, PUSH), (host, rank, PULL)))


def pushed(channel: Channel, elements: int, hosts: Sequence[int]) -> tuple[int, int] | None:
    """Return the slice of the gradient that a channel carries: to a server, that of its shard."""
    _, host, name = channel
    return bounds(elements, len(hosts))[hosts.index(host)] if name == PUSH else None


def traffic(setting: Setting, dedicated: bool) -> float:
    """Return the bytes that a worker sends per iteration, on average.

    A gradient goes to the servers and a model comes back. Dedicated servers send the models, and nothing is
    local; otherwise workers send them as well, but nothing to themselves.
    """
    return setting.model if dedicated else setting.reduced(setting.model)


def check_servers(name: str, servers: int, world_size: int) -> None:
    """Refuse more servers than workers.

    Raises
    ------
    ValueError
        One sentence.
    """
    if servers > world_size:
        hosts = "1 worker" if world_size == 1 else f"{world_size} workers"
        raise ValueError(f"{name}: there are {servers} servers, but only {hosts} to host them")


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
