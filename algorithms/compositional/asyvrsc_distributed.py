"""AsyVRSC-Distributed: variance-reduced composition optimisation with a master and workers.

    epoch: the master sends x~; workers send their parts of G~ and J~, the master answers with the sums;
           workers send their parts of 1/n sum_i dF_i(G~), from which the master has h~, and answers with it
    then each worker, until the master has made K updates:
        v = estimate at the model that it last got;   send v
        master: x <- x - step size * v;   answer with x

The two reductions follow each other, because h~ needs the whole G~. J~ goes to the workers only where the
second estimator needs it, and only once where it does not depend on x. The next x~ is the last x, their mean,
or one drawn at random. An empty answer ends a worker's epoch: what is under way at the K-th update is thrown
away. At the end of the run an empty message and the last x~ go to all workers. Delays are measured: updates
that the master made between an answer and the arrival of what was made of it. The master is the algorithm's
server. Theory takes a constant step size; under a schedule update k of the master, from 0 and over all
epochs, has that of update floor(k / n) of the schedule.

Source: a reconstruction; see :mod:`algorithms.compositional.asyvrsc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from algorithms.algorithm import Plan, Setting, parameter
from algorithms.compositional.asyvrsc import AsyVRSC, inner_part, jacobian_part, outer_part
from algorithms.compositional.estimators import Draw, Snapshot, estimate
from algorithms.servers.served import Served
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx
    import torch

    from algorithms.problem import Compositional

UP, DOWN = "up", "down"


@dataclass(frozen=True)
class AsyVRSCDistributed(Served, AsyVRSC):
    """Updates by a master, with estimates that workers make at models they got before."""

    snapshot: Literal["last", "average", "random"] = parameter(
        "last", "which of an epoch's models is the next x~"
    )

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of an estimate up and of a model down, as far as they leave a machine."""
        return self.there_and_back(setting)

    def epoch_traffic(self, setting: Setting) -> float:
        """Return the bytes of an epoch's beginning: parts of G~, J~ and the mean of dF up, G~, J~, h~ down.

        J~ goes down for the second estimator only. The epoch's x~, which goes down too, is made up for by
        its last answer, which is empty. A dedicated master sends what goes down.
        """
        if self.dedicated:
            return 2 * setting.inner_value + setting.jacobian_sum
        ways = 2 if self.estimator == "second" else 1
        sums = 3 * setting.inner_value + setting.model + ways * setting.jacobian_sum
        return (setting.workers - 1) / setting.workers * sums

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to the master and back."""
        ranks, (master,) = range(world_size), self.hosts(world_size)
        there = [(rank, master, UP) for rank in ranks]
        return Plan(groups={}, channels=(*there, *((master, rank, DOWN) for rank in ranks)))

    async def serve(self, worker: Worker, server: int) -> None:
        """Carry out the master."""
        await Master(self, worker).serve()

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        (master,) = self.hosts(worker.world_size)
        problem = cast("Compositional", worker.problem)
        x: Any = worker.initial_model()
        jacobian: torch.Tensor | None = None
        while True:
            # An empty message says that this worker goes on, one of a single element that it does not.
            await worker.send(x[: 0 if worker.running else 1], master, UP)
            start: Any = await worker.recv(master, DOWN)
            if not len(start):
                worker.report(await worker.recv(master, DOWN))
                break
            at = await self._pass(worker, start, jacobian)
            jacobian = at.jacobian if problem.constant_jacobian else None
            x = start
            while len(x):
                drawn = self.drawn(worker)

                def estimated(x: torch.Tensor, at: Snapshot = at, drawn: Draw = drawn) -> torch.Tensor:
                    return estimate(problem, self.estimator, at, x, drawn)

                sending = worker.send(await worker.evaluate(estimated, x), master, UP)
                x = await worker.recv(master, DOWN)
                await sending
                if len(x):
                    worker.report(x)
            x = start

    async def _pass(self, worker: Worker, x: torch.Tensor, jacobian: torch.Tensor | None) -> Snapshot:
        """Take part in both phases of an epoch's beginning; return what this side knows at x~."""
        problem = cast("Compositional", worker.problem)
        parts = self.passes(worker, problem.inner_count)
        inner: Any = await self._answered(
            worker, await worker.evaluate(lambda x: inner_part(worker, x), x, gradients=parts, iterations=0)
        )
        if self.first_jacobian(problem, jacobian):
            own = await worker.evaluate(lambda x: jacobian_part(worker, x), x, gradients=parts, iterations=0)
            if self.estimator == "second":
                jacobian = (await self._answered(worker, own)).view(-1, len(x))
            else:
                await worker.send(own, self.hosts(worker.world_size).start, UP)
                jacobian = own.new_zeros(0)  # the master has it
        outer = await worker.evaluate(
            lambda y: outer_part(worker, y),
            inner,
            gradients=self.passes(worker, problem.outer_count),
            iterations=0,
        )
        return Snapshot(x, inner, await self._answered(worker, outer), jacobian)

    def first_jacobian(self, problem: Compositional, jacobian: torch.Tensor | None) -> bool:
        """Return whether J~ has to be summed up in this epoch."""
        return jacobian is None or not problem.constant_jacobian

    async def _answered(self, worker: Worker, part: Tensor) -> torch.Tensor:
        """Send a part to the master and return its answer."""
        (master,) = self.hosts(worker.world_size)
        sending = worker.send(part, master, UP)
        answer = await worker.recv(master, DOWN)
        await sending
        return cast("torch.Tensor", answer)


class Master:
    """Keeps the model, sums up the parts of every epoch's beginning, and makes the updates."""

    def __init__(self, algorithm: AsyVRSCDistributed, worker: Worker) -> None:
        self._algorithm = algorithm
        self._worker = worker
        self._ranks = range(worker.world_size)
        self._x: Any = worker.initial_model()
        self._total: Tensor | None = None
        self._made = 0  # in this epoch
        self._versions = 0  # in all
        self._chosen: Tensor | None = None

    async def serve(self) -> None:
        """Lead epoch after epoch until a worker has ended."""
        algorithm, worker = self._algorithm, self._worker
        problem = cast("Compositional", worker.problem)
        jacobian: torch.Tensor | None = None
        random = worker.random("snapshots")
        while True:
            finished = [len(await worker.recv(rank, UP)) for rank in self._ranks]
            if any(finished):
                await self._answer_all(self._x[:0])
                await self._answer_all(self._x)
                return
            await self._answer_all(self._x)
            await self._answer_all(await self._summed())
            if algorithm.first_jacobian(problem, jacobian):
                flat = await self._summed()
                jacobian = cast("torch.Tensor", flat).view(-1, len(self._x))
                if algorithm.estimator == "second":
                    await self._answer_all(flat)
            assert jacobian is not None
            mean = cast("torch.Tensor", await self._summed())
            await self._answer_all(await algorithm.product(worker, jacobian, mean))
            updates = algorithm.epoch_updates(problem)
            self._made, self._total, self._chosen = 0, None, None
            pick = int(random.integers(1, updates + 1))
            for task in [worker.spawn(self._update(rank, updates, pick)) for rank in self._ranks]:
                await task
            await self._take_snapshot(updates)

    async def _take_snapshot(self, updates: int) -> None:
        """Let the next epoch begin where its setting says."""
        if self._total is not None:
            self._x = await self._worker.combine((1 / updates, self._total))
        elif self._chosen is not None:
            self._x = self._chosen

    async def _summed(self) -> Tensor:
        """Return the sum of what all workers send."""
        arriving = [self._worker.recv(rank, UP) for rank in self._ranks]
        parts = [await part for part in arriving]
        return await self._worker.combine(*((1, part) for part in parts))

    async def _answer_all(self, x: Tensor) -> None:
        """Send all workers the same."""
        for sending in [self._worker.send(x, rank, DOWN) for rank in self._ranks]:
            await sending

    async def _update(self, rank: int, updates: int, pick: int) -> None:
        """Apply a worker's estimates as they come, until the epoch's updates have been made."""
        worker = self._worker
        seen = 0
        while True:
            direction = await worker.recv(rank, UP)
            async with worker.lock("master"):
                if self._made >= updates:
                    break
                worker.observe("staleness", self._made - seen)
                self._x = await worker.update(self._x, direction, self._versions // worker.world_size + 1)
                self._made += 1
                self._versions += 1
                await self._remember(pick)
                seen, x = self._made, self._x
            await worker.send(x if seen < updates else x[:0], rank, DOWN)
            if seen >= updates:
                return
        await worker.send(self._x[:0], rank, DOWN)

    async def _remember(self, pick: int) -> None:
        """Keep what the next x~ is made of."""
        if self._algorithm.snapshot == "average":
            carried = () if self._total is None else ((1.0, self._total),)
            self._total = await self._worker.combine(*carried, (1, self._x))
        elif self._algorithm.snapshot == "random" and self._made == pick:
            self._chosen = self._x
