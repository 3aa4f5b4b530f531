"""Measurements of messages: between pairs, of many pairs at once, in collectives; and of clocks.

Ping-pong is Hockney's (Parallel Computing 1994): half a round trip against the size gives latency and rate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from algorithms import WORLD, Plan
from algorithms.algorithm import graph_channels
from algorithms.worker import Worker
from simulator.measurements.measurement import ITEMSIZE, Measurement, Pair, agreed, first_of, vector

if TYPE_CHECKING:
    import networkx as nx

BALL, ARC = "ball", "arc"
"""Names of the channels."""


@dataclass(frozen=True)
class PingPong(Measurement):
    """Round trips between pairs of workers, one pair after another.

    Notes ``ping-pong/A-B/BYTES`` on worker A: seconds of a round trip.

    Attributes
    ----------
    pairs
        Ranks.
    sizes
        Bytes.
    """

    pairs: tuple[Pair, ...] = ((0, 1),)
    sizes: tuple[int, ...] = (4, 2**20)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare a channel in each direction of each pair."""
        arcs = [arc for a, b in self.pairs for arc in ((a, b, BALL), (b, a, BALL))]
        return Plan({WORLD: tuple(range(world_size))}, tuple(dict.fromkeys(arcs)))

    async def measure(self, worker: Worker, x: Any) -> None:
        """Play with each partner, while the others wait."""
        for a, b in self.pairs:
            await agreed(worker, x, 0.0)
            for size in self.sizes:
                if worker.rank == a:
                    await self._serve(worker, vector(x, size), b, f"ping-pong/{a}-{b}/{size}")
                elif worker.rank == b:
                    await self._return(worker, a)

    async def _serve(self, worker: Worker, ball: Any, to: int, name: str) -> None:
        first = await self._round_trip(worker, ball, to)
        repeats = self.fewer(first)
        await worker.send(vector(ball, ITEMSIZE, repeats), to, BALL)
        for _ in range(repeats):
            worker.observe(name, await self._round_trip(worker, ball, to))

    async def _round_trip(self, worker: Worker, ball: Any, to: int) -> float:
        began = worker.now
        await worker.send(ball, to, BALL)
        await worker.recv(to, BALL)
        return worker.now - began

    async def _return(self, worker: Worker, source: int) -> None:
        await worker.send(await worker.recv(source, BALL), source, BALL)
        repeats = first_of(await worker.recv(source, BALL), self.repeats)
        for _ in range(int(repeats)):
            await worker.send(await worker.recv(source, BALL), source, BALL)


@dataclass(frozen=True)
class Concurrent(Measurement):
    """Messages that go at the same time.

    Notes ``concurrent/SET/BYTES`` on every worker that takes part: seconds from the common beginning until
    its last message has gone or come.

    Attributes
    ----------
    sets
        Of arcs (source, destination): those of a set go at once, one set after another.
    sizes
        Bytes of each message.
    """

    sets: tuple[tuple[Pair, ...], ...] = (((0, 1),),)
    sizes: tuple[int, ...] = (2**20, 2**22)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare a channel for each arc."""
        arcs = dict.fromkeys((*arc, ARC) for arcs in self.sets for arc in arcs)
        return Plan({WORLD: tuple(range(world_size))}, tuple(arcs))

    async def measure(self, worker: Worker, x: Any) -> None:
        """Send and receive at once what each set asks for."""
        for number, arcs in enumerate(self.sets):
            to = [destination for source, destination in arcs if source == worker.rank]
            sources = [source for source, destination in arcs if destination == worker.rank]
            for size in self.sizes:
                payload = vector(x, size)
                first = await agreed(worker, x, await self._once(worker, x, payload, to, sources))
                for _ in range(self.fewer(first)):
                    taken = await self._once(worker, x, payload, to, sources)
                    if to or sources:
                        worker.observe(f"concurrent/{number}/{size}", taken)

    async def _once(self, worker: Worker, x: Any, payload: Any, to: list[int], sources: list[int]) -> float:
        await agreed(worker, x, 0.0)
        began = worker.now
        arriving = [worker.recv(source, ARC) for source in sources]
        leaving = [worker.send(payload, destination, ARC) for destination in to]
        for message in arriving:
            await message
        for sent in leaving:
            await sent
        return worker.now - began


@dataclass(frozen=True)
class Collectives(Measurement):
    """Collectives of all workers.

    Notes ``KIND/BYTES`` on every worker: seconds. The bytes are those of the vector that is reduced, or that
    each worker has in the end.

    Attributes
    ----------
    kinds
        Of ``all_reduce``, ``all_gather`` and ``all_to_all``.
    sizes
        Bytes.
    """

    kinds: tuple[str, ...] = ("all_reduce", "all_gather", "all_to_all")
    sizes: tuple[int, ...] = (4096, 2**20)

    async def measure(self, worker: Worker, x: Any) -> None:
        """Run one collective after another; each of them lets all workers begin the next together."""
        for kind in self.kinds:
            for size in self.sizes:
                part = vector(x, size if kind == "all_reduce" else size / worker.world_size)
                first = await agreed(worker, x, await self._once(worker, part, kind))
                for _ in range(self.fewer(first)):
                    await agreed(worker, x, 0.0)
                    worker.observe(f"{kind}/{size}", await self._once(worker, part, kind))

    async def _once(self, worker: Worker, part: Any, kind: str) -> float:
        began = worker.now
        if kind == "all_reduce":
            await worker.all_reduce(part, "sum")
        elif kind == "all_gather":
            await worker.all_gather(part)
        else:
            await worker.all_to_all([part] * worker.world_size)
        return worker.now - began


@dataclass(frozen=True)
class Exchanges(Measurement):
    """Exchanges of all workers with their neighbours on the run's graph, at the same time.

    Notes ``exchange/BYTES`` on every worker: seconds.

    Attributes
    ----------
    sizes
        Bytes of each message.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"graph"})

    sizes: tuple[int, ...] = (4096, 2**20)

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare the exchange channels of the graph."""
        assert graph is not None
        return Plan({WORLD: tuple(range(world_size))}, graph_channels(graph))

    async def measure(self, worker: Worker, x: Any) -> None:
        """Exchange again and again."""
        for size in self.sizes:
            payload = vector(x, size)
            first = await agreed(worker, x, await self._once(worker, payload))
            for _ in range(self.fewer(first)):
                await agreed(worker, x, 0.0)
                worker.observe(f"exchange/{size}", await self._once(worker, payload))

    async def _once(self, worker: Worker, payload: Any) -> float:
        began = worker.now
        await worker.exchange(payload)
        return worker.now - began


@dataclass(frozen=True)
class Clocks(Measurement):
    """What the clocks of the workers are worth.

    Notes ``tick`` (the smallest step that the clock was seen to make), ``sleep`` (how much longer than asked
    for a sleep of 1 ms takes), ``barrier`` (the moment at which a barrier let the worker go), all on every
    worker; and on worker 0 ``offset/R`` and ``round-trip/R``: what rank R's clock showed beyond worker 0's in
    the middle of a round trip (Cristian, Distributed Computing 1989), and how long that took.
    """

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        """Declare a channel in each direction between worker 0 and every other."""
        arcs = [arc for rank in range(1, world_size) for arc in ((0, rank, BALL), (rank, 0, BALL))]
        return Plan({WORLD: tuple(range(world_size))}, tuple(arcs))

    async def measure(self, worker: Worker, x: Any) -> None:
        """Look at the own clock, then at the others'."""
        for _ in range(self.repeats):
            worker.observe("tick", _tick(worker))
            began = time.monotonic()
            time.sleep(1e-3)
            worker.observe("sleep", time.monotonic() - began - 1e-3)
        for _ in range(self.repeats + 1):
            await agreed(worker, x, 0.0)
            worker.observe("barrier", worker.now)
        import torch

        reading = torch.zeros(1, dtype=torch.float64, device=x.device)
        for rank in range(1, worker.world_size):
            for _ in range(self.repeats + 1):
                if worker.rank == 0:
                    began = worker.now
                    await worker.send(reading, rank, BALL)
                    theirs = float((await worker.recv(rank, BALL))[0])
                    worker.observe(f"offset/{rank}", theirs - (began + worker.now) / 2)
                    worker.observe(f"round-trip/{rank}", worker.now - began)
                elif worker.rank == rank:
                    await worker.recv(0, BALL)
                    await worker.send(torch.full_like(reading, worker.now), 0, BALL)


def _tick(worker: Worker) -> float:
    """Return the first step that the worker's clock makes; 0 where it stands still, as a virtual one does."""
    began = worker.now
    for _ in range(1000):
        step = worker.now - began
        if step > 0:
            return step
    return 0.0
