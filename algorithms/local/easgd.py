"""EASGD: workers are tied to a centre by elastic forces.

Every tau local steps, worker i and the centre c move towards each other:

    d = alpha (x_i - c),   x_i <- x_i - d,   c <- c + d

The sum of the workers' models and the centre does not change by that. Asynchronously, which is the paper's
main form, a server keeps the centre; a worker pulls it, and pushes d when it has
moved itself. In synchronous rounds all differences are taken from the same centre, of which every worker
keeps a copy: c <- c + sum_i d_i. The elastic step comes first in a round. EAMSGD is EASGD with Nesterov
momentum as the workers' update rule.

With alpha = 1 a worker and the centre change places; beyond, each visit drives them apart. A synchronous
round takes the mean model's distance from the centre times 1 - alpha (n + 1), so that there alpha must be
below 2 / (n + 1); the paper takes n alpha = 0.9.

Source: Zhang, Choromanska and LeCun, "Deep learning with elastic averaging SGD", NeurIPS 2015, arXiv
1412.6651, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from algorithms.algorithm import Plan, Setting, parameter
from algorithms.local.rounds import local_steps
from algorithms.servers.served import Served
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.algorithm import Matrix


@dataclass(frozen=True)
class EASGD(Served):
    """Local steps, and an elastic step with a centre every so often."""

    model_copies: ClassVar[int] = 1
    exact_because: ClassVar[str] = (
        "what the centre gains must be exactly what a worker gives, or the elastic forces do not cancel"
    )
    momentum: ClassVar[Literal["covered"]] = "covered"

    period: int = parameter(4, "local steps between two elastic steps (tau)", minimum=1)
    elasticity: float = parameter(
        0.1, "how far both move towards each other (alpha)", minimum=0.0, maximum=1.0
    )
    rounds: Literal["asynchronous", "synchronous"] = parameter(
        "asynchronous", "whether workers visit a server whenever they are ready, or meet in rounds"
    )

    @property
    def deterministic(self) -> bool:
        """Whether the models do not depend on timing."""
        return self.rounds == "synchronous"

    @property
    def server_count(self) -> int:
        """Return the one that keeps the centre, unless every worker has a copy of it."""
        return 1 if self.rounds == "asynchronous" else 0

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of a visit to the centre and back, or of an all-reduce, every k steps."""
        return self.there_and_back(setting) / self.period

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse synchronous rounds that drive the centre away from the workers."""
        limit = 2 / (world_size + 1)
        if self.rounds == "synchronous" and not self.elasticity < limit:
            raise ValueError(
                f"elasticity must be below 2 / (workers + 1) = {limit:.4g} in synchronous rounds, or the "
                f"centre runs away, got {self.elasticity!r}; the paper takes 0.9 / workers = "
                f"{0.9 / world_size:.4g}"
            )

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to the server and back, or the group of all."""
        if self.rounds == "synchronous":
            return super().plan(world_size, graph)
        ranks, (server,) = range(world_size), self.hosts(world_size)
        there = [(rank, server, "up") for rank in ranks]
        return Plan(groups={}, channels=(*there, *((server, rank, "down") for rank in ranks)))

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        if self.rounds == "synchronous":
            await self._in_rounds(worker)
            return
        (server,) = self.hosts(worker.world_size)
        x = worker.initial_model()
        while worker.running:
            await worker.send(x[:0], server, "up")
            centre = await worker.recv(server, "down")
            difference = await worker.combine((self.elasticity, x), (-self.elasticity, centre))
            pushed = worker.send(difference, server, "up")
            x = await worker.combine((1, x), (-1, difference))
            x = await local_steps(worker, x, self.period)
            await pushed
            worker.report(x)
        await worker.send(x[:1], server, "up")

    async def serve(self, worker: Worker, server: int) -> None:
        """Keep the centre."""
        await Centre(self).serve(worker)

    async def _in_rounds(self, worker: Worker) -> None:
        x = centre = worker.initial_model()
        while worker.running:
            difference = await worker.combine((self.elasticity, x), (-self.elasticity, centre))
            pull = worker.all_reduce(difference, "sum")
            x = await worker.combine((1, x), (-1, difference))
            centre = await worker.combine((1, centre), (1, await pull))
            x = await local_steps(worker, x, self.period)
            worker.report(x)


class Centre:
    """The server: it keeps the centre and answers every worker in a task of its own.

    A worker's visit is an empty message, answered by the centre, and then its difference. A message of
    one element ends its visits.
    """

    def __init__(self, algorithm: EASGD) -> None:
        self.algorithm = algorithm
        self.value: Tensor

    async def serve(self, worker: Worker) -> None:
        """Answer all workers until the last has ended."""
        self.value = worker.initial_model()
        for task in [worker.spawn(self._answer(worker, rank)) for rank in range(worker.world_size)]:
            await task

    async def _answer(self, worker: Worker, rank: int) -> None:
        while not len(await worker.recv(rank, "up")):
            await worker.send(self.value, rank, "down")
            difference = await worker.recv(rank, "up")
            async with worker.lock("centre"):
                self.value = await worker.combine((1, self.value), (1, difference))
