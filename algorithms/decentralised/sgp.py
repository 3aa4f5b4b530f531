"""SGP: stochastic gradient push, gossip on a directed graph with a weight that removes its bias.

Worker i keeps a numerator x_i and a weight w_i; its model is z_i = x_i / w_i. In iteration t, with column
stochastic weights P (a worker keeps an equal part of what it sends to each out-neighbour),

    x_i <- x_i - step size * G_i(z_i)
    x_i <- sum_j P_ij x_j,   w_i <- sum_j P_ij w_j,   z_i = x_i / w_i

On the one-peer exponential graph worker i sends to i + 2^h, with h = 0, 1, … in turn: after log2(n) rounds
of n = 2^k workers everybody has the exact mean. The static graph sends to all these at once. Overlapped SGP
(OSGP) does not wait: what is sent in iteration t is added in iteration t + tau, and the weights, which take
part in the delay, keep the mean unbiased. The sums of x and of w, messages under way included, change by the
gradients alone.

Source: Assran, Loizou, Ballas and Rabbat, "Stochastic gradient push for distributed deep learning", ICML
2019, arXiv 1811.10792, algorithms 1 and 2.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from algorithms.algorithm import Algorithm, Plan, Setting, parameter
from algorithms.worker import Handle, Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

CHANNEL = "push"


@dataclass(frozen=True)
class SGP(Algorithm):
    """Push-sum gossip along an exponential graph."""

    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = (
        "the sums of its models and weights must be preserved exactly; choco-sgd takes a codec"
    )
    # z is no affine function of plain steps any more: the paper runs momentum on z, without a theorem.
    momentum: ClassVar[Literal["uncovered"]] = "uncovered"

    peers: Literal["one", "all"] = parameter(
        "one", "send to one out-neighbour of the exponential graph in turn, or to all of them at once"
    )
    delay: int = parameter(0, "iterations after which a message is added (tau of OSGP); 0 waits", minimum=0)

    def hops(self, world_size: int) -> tuple[int, ...]:
        """Return the distances of the out-neighbours: 1, 2, 4, … below the number of workers."""
        return tuple(1 << power for power in range(max(world_size - 1, 0).bit_length()))

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of the model and a weight to one out-neighbour, or to all."""
        hops = len(self.hops(setting.workers))
        return (min(hops, 1) if self.peers == "one" else hops) * (setting.model + setting.itemsize)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare a channel to every out-neighbour."""
        arcs = sorted((i, (i + hop) % world_size) for i in range(world_size) for hop in self.hops(world_size))
        return Plan(groups={}, channels=tuple((source, to, CHANNEL) for source, to in arcs))

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        hops = self.hops(worker.world_size)
        numerator = model = worker.initial_model()
        weight = 1.0
        under_way: deque[list[Handle[Any]]] = deque()
        turn = 0
        while worker.running:
            gradient = await worker.gradient(model)
            numerator = await worker.update(numerator, gradient)
            chosen = hops if self.peers == "all" else hops[turn % len(hops) :][:1] if hops else ()
            turn += 1
            under_way.append(await self._push(worker, chosen, numerator, weight))
            part = 1 / (len(chosen) + 1)
            terms, weight = [(part, numerator)], part * weight
            if len(under_way) > self.delay:
                for message in await self._arrived(under_way.popleft()):
                    x, w = _apart(message)
                    terms.append((1.0, x))
                    weight += w
            numerator = await worker.combine(*terms)
            model = await worker.combine((1 / weight, numerator))
            self.note(worker, numerator, weight)
            worker.report(model)
        for handles in under_way:
            await self._arrived(handles)

    async def _push(
        self, worker: Worker, hops: tuple[int, ...], numerator: Tensor, weight: float
    ) -> list[Handle[Any]]:
        """Start sending a part to the out-neighbours and receiving the in-neighbours' parts."""
        part = 1 / (len(hops) + 1)
        scaled = await worker.combine((part, numerator))
        message = _together(scaled, part * weight)
        n, rank = worker.world_size, worker.rank
        sends = [worker.send(message, (rank + hop) % n, CHANNEL) for hop in hops]
        return [*sends, *(worker.recv((rank - hop) % n, CHANNEL) for hop in hops)]

    async def _arrived(self, handles: list[Handle[Any]]) -> list[Tensor]:
        """Wait for the ends of an iteration's messages and return those that came, nearest sender first."""
        return [value for value in [await handle for handle in handles] if value is not None]

    def note(self, worker: Worker, numerator: Tensor, weight: float) -> None:
        """Take in a worker's numerator and weight after an iteration; tests override this to look at them."""


def _together(x: Tensor, weight: float) -> Tensor:
    """Return a message: the numerator's part, and behind it the weight's."""
    import torch

    pieces: Any = [x, x[:1] * 0 + weight]
    return torch.cat(pieces)


def _apart(message: Tensor) -> tuple[Tensor, float]:
    """Return the numerator's part and the weight's; in a timing-only run any weight will do."""
    from algorithms.phantom import Phantom

    if isinstance(message, Phantom):
        return message[:-1], 1.0
    return message[:-1], float(message[-1])
