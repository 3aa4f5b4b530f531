"""What parameter servers have in common: shards of the model, each kept by one worker's task.

The model is cut into as many shards as there are servers; server k is a task of worker k, so that it shares
that worker's network card, as servers that are spread over the workers do. A worker pushes the slices of its
gradient and pulls the slices of the model; to its own server both are local and free.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from algorithms.algorithm import Channel
from algorithms.worker import Tensor, Worker

PUSH, PULL = "push", "pull"
"""Channels to a server and back. An empty push says that it was the worker's last."""


def bounds(elements: int, servers: int) -> list[tuple[int, int]]:
    """Return the slices [low, high) of the servers' shards, as equal as can be."""
    cuts = [elements * server // servers for server in range(servers + 1)]
    return list(pairwise(cuts))


def channels(world_size: int, servers: int) -> tuple[Channel, ...]:
    """Return the channels between all workers and all servers."""
    pairs = [(rank, server) for server in range(servers) for rank in range(world_size)]
    return tuple(c for rank, server in pairs for c in ((rank, server, PUSH), (server, rank, PULL)))


def pushed(channel: Channel, elements: int, servers: int) -> tuple[int, int] | None:
    """Return the slice of the gradient that a channel carries: to a server, that of its shard."""
    _, server, name = channel
    return bounds(elements, servers)[server] if name == PUSH else None


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


async def push_and_pull(worker: Worker, gradient: Tensor, servers: int) -> Tensor:
    """Push a gradient to all servers at once, and return the model that they answer with."""
    shards = filled(len(gradient), servers)
    pushes = [worker.send(gradient[low:high], server, PUSH) for server, low, high in shards]
    x = await pull(worker, len(gradient), servers)
    for push in pushes:
        await push
    return x


async def pull(worker: Worker, elements: int, servers: int) -> Tensor:
    """Return the model that all servers send."""
    import torch

    answers = [worker.recv(server, PULL) for server, _, _ in filled(elements, servers)]
    slices: Any = [await answer for answer in answers]
    return torch.cat(slices) if len(slices) > 1 else slices[0]


def filled(elements: int, servers: int) -> list[tuple[int, int, int]]:
    """Return (server, low, high) of the shards that hold any of the elements."""
    every = enumerate(bounds(elements, servers))
    return [(server, low, high) for server, (low, high) in every if high > low]


async def say_goodbye(worker: Worker, x: Tensor, servers: int) -> None:
    """Tell all servers that this worker has ended."""
    for server in range(servers):
        await worker.send(x[:0], server, PUSH)
