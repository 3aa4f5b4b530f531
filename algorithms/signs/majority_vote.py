"""signSGD and Signum with majority vote.

Worker m keeps a momentum of its own gradients and sends its sign; the sign of the sum of all signs is the
vote, which everybody applies:

    v_m <- beta v_m + (1 - beta) G_m(x)
    V   = sign( sum_m sign(v_m) )                 1 bit for each coordinate up, 1 down
    x   <- x - step size * (V + decay * x)

With beta = 0 this is signSGD. Momentum comes before the sign and is local; the decay comes after the vote.
In a warm-up, which Signum's theory asks for, the sign of the gradient itself is sent while the momentum
gathers. The bits can meet at one server, in shards (each worker votes on its part:
all-to-all, then all-gather), or everywhere (all-gather). Adversaries send the opposite of their sign.

Sources: Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: compressed optimisation for non-convex
problems", ICML 2018; Bernstein, Zhao, Azizzadenesheli and Anandkumar, "signSGD with majority vote is
communication efficient and fault tolerant", ICLR 2019, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from algorithms.algorithm import ABOVE_ZERO, Plan, Setting, parameter
from algorithms.phantom import Phantom
from algorithms.servers.served import Served
from algorithms.signs.bits import Tie, draw, pack, shard_elements, signs, unpack, wire_bytes
from algorithms.worker import Cost, Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx

BALLOT, VOTE = "ballot", "vote"


@dataclass(frozen=True)
class SignSGD(Served):
    """Steps along the sign on which most workers agree."""

    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = "it sends one bit for each coordinate already"
    # The step has one length whatever the gradient: a rule that weighs steps would change the method.
    momentum: ClassVar[Literal["refused"]] = "refused"

    beta: float = parameter(0.0, "momentum before the sign", minimum=0.0, below=1.0)
    decay: float = parameter(0.0, "weight decay after the vote", minimum=0.0)
    tie: Tie = parameter("plus", "the sign of zero and of a tied vote; 'zero' takes a second bit")
    meet: Literal["sharded", "server", "gather"] = parameter(
        "sharded", "where the bits meet: in shards at all workers, at one server, or all of them everywhere"
    )
    warm_up: int = parameter(
        0, "iterations that send the gradient's own sign", where={"beta": ABOVE_ZERO}, minimum=0
    )
    adversaries: float = parameter(
        0.0, "part of the workers, the last ones, that negate their sign", minimum=0.0, maximum=1.0
    )

    @property
    def server_count(self) -> int:
        """Return the one that counts the votes, where they meet at a server."""
        return 1 if self.meet == "server" else 0

    def traffic(self, setting: Setting) -> float:
        """Return the bytes of the packed signs, up and down or all around."""
        n = setting.workers
        if self.meet == "gather":
            return (n - 1) * wire_bytes(setting.elements, self.tie)
        if self.dedicated:
            return wire_bytes(setting.elements, self.tie)
        return setting.reduced(wire_bytes(setting.elements, self.tie, n if self.meet == "sharded" else 1))

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the channels to the server and back, or the group of all."""
        if self.meet != "server":
            return super().plan(world_size, graph)
        ranks, (server,) = range(world_size), self.hosts(world_size)
        there = [(rank, server, BALLOT) for rank in ranks]
        return Plan(groups={}, channels=(*there, *((server, rank, VOTE) for rank in ranks)))

    async def train(self, worker: Worker) -> None:
        """Train on one worker."""
        x = worker.initial_model()
        velocity: Tensor | None = None
        done = 0
        while worker.running:
            gradient = await worker.gradient(x)
            velocity = await self._gathered(worker, velocity, gradient)
            ballot = await self._ballot(worker, gradient if done < self.warm_up else velocity)
            vote = await self._vote(worker, ballot, x)
            if self.decay:
                vote = await worker.combine((1, vote), (self.decay, x))
            x = await worker.update(x, vote)
            done += 1
            worker.report(x)
        for server in self.hosts(worker.world_size):
            await worker.send(x[:0], server, BALLOT)

    async def _gathered(self, worker: Worker, velocity: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the momentum with another gradient in it."""
        if not self.beta:
            return gradient
        carried = () if velocity is None else ((self.beta, velocity),)
        return await worker.combine((1 - self.beta, gradient), *carried)

    async def _ballot(self, worker: Worker, x: Tensor) -> Tensor:
        """Return this worker's packed signs."""
        shards = worker.world_size if self.meet == "sharded" else 1
        draws = draw(self.tie, x, worker.random("ties"))
        honest = worker.rank < worker.world_size - round(self.adversaries * worker.world_size)

        def packed(x: Any) -> Any:
            if isinstance(x, Phantom):
                return pack(x, self.tie, shards)
            taken = signs(x, self.tie, draws)
            return pack(taken if honest else -taken, self.tie, shards)

        def touched(elements: int, nbytes: float) -> float:
            return nbytes + wire_bytes(elements, self.tie, shards)

        ballot: Tensor = await worker.compute(packed, x, **cost(worker, x, touched))
        return ballot

    async def _vote(self, worker: Worker, ballot: Tensor, x: Tensor) -> Tensor:
        """Return the vote of all workers as a vector of signs."""
        shards = worker.world_size if self.meet == "sharded" else 1
        each = self._charged(worker)
        if self.meet == "server":
            (server,) = self.hosts(worker.world_size)
            sending = worker.send(ballot, server, BALLOT, charged=each)
            wire = await worker.recv(server, VOTE)
            await sending
        elif self.meet == "gather":
            wire = await self._counted(worker, await worker.all_gather(ballot, charged=each), x)
        else:
            length = len(ballot) // shards
            parts = [ballot[shard * length : (shard + 1) * length] for shard in range(shards)]
            own = await self._counted(worker, await worker.all_to_all(parts, charged=each), x, worker.rank)
            wire = joined(await worker.all_gather(own, charged=each))

        def unpacked(wire: Any, x: Any) -> Any:
            return unpack(wire, len(x), self.tie, x, shards)

        def touched(elements: int, nbytes: float) -> float:
            return nbytes + wire_bytes(elements, self.tie, shards)

        vote: Tensor = await worker.compute(unpacked, wire, x, **cost(worker, x, touched))
        return vote

    def _charged(self, worker: Worker) -> float | None:
        """Return the bytes of a message as the cost model's; None where the model is as long."""
        if worker.outline is None:
            return None
        shards = worker.world_size if self.meet == "sharded" else 1
        return wire_bytes(worker.outline.elements, self.tie, shards) / shards

    async def _counted(
        self, worker: Worker, ballots: Sequence[Tensor], x: Tensor, shard: int | None = None
    ) -> Tensor:
        """Return the packed vote of ballots like ``x``, or like one of its shards."""
        elements = len(x) if shard is None else shard_elements(len(x), worker.world_size)
        draws = draw(self.tie, x, worker.random("tied votes", shared=True))
        if draws is not None and shard is not None:
            draws = padded(draws, elements * worker.world_size)[shard * elements : (shard + 1) * elements]

        def counted(*ballots: Any) -> Any:
            if isinstance(ballots[0], Phantom):
                return ballots[0]
            total = unpack(ballots[0], elements, self.tie, x)
            for ballot in ballots[1:]:
                total += unpack(ballot, elements, self.tie, x)
            return pack(signs(total, self.tie, draws), self.tie)

        def touched(whole: int, nbytes: float) -> float:
            """Every ballot is read, and added to a sum of whole numbers of the model's type."""
            part = whole if shard is None else shard_elements(whole, worker.world_size)
            return len(ballots) * wire_bytes(part, self.tie) + part * nbytes / whole

        vote: Tensor = await worker.compute(counted, *ballots, **cost(worker, x, touched))
        return vote

    async def serve(self, worker: Worker, server: int) -> None:
        """Count the votes of every round until all have ended."""
        x = worker.initial_model()
        ranks = range(worker.world_size)
        while True:
            arriving = [worker.recv(rank, BALLOT) for rank in ranks]
            ballots = [await ballot for ballot in arriving]
            if not len(ballots[0]):
                return
            vote = await self._counted(worker, ballots, x)
            charged = self._charged(worker)
            answers = [worker.send(vote, rank, VOTE, charged=charged) for rank in ranks]
            for answer in answers:
                await answer


@dataclass(frozen=True)
class Signum(SignSGD):
    """signSGD with momentum before the sign."""

    beta: float = parameter(0.9, "momentum before the sign", minimum=0.0, below=1.0)


def cost(worker: Worker, x: Tensor, touched: Callable[[int, float], float]) -> Cost:
    """Return the bytes that a computation touches for a model like ``x``, by its elements and its bytes."""
    outline = worker.outline
    charged = None if outline is None else touched(outline.elements, outline.elements * outline.itemsize)
    return {"nbytes": touched(len(x), x.nbytes), "charged": charged}


def joined(parts: Sequence[Any]) -> Tensor:
    """Return tensors one behind the other."""
    import torch

    whole: Tensor = torch.cat(list(parts))
    return whole


def padded(draws: Any, elements: int) -> Any:
    """Return numbers with zeros behind them up to a length."""
    import torch

    return torch.cat([draws, draws.new_zeros(elements - len(draws))])
