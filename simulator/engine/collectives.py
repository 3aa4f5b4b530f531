"""How a collective takes time on the network.

``Fixed``       It ends a given time after its last arrival.
*Pipelined*     The pieces of the message stream through the pattern, so that all its links are busy at a
                common pace: one flow that is coupled over them, which starts at the last arrival and
                competes with all other traffic. Each link carries what the schedule sends over it.
*Stepped*       Every segment of every transfer of the schedule is a flow of its own. A rank begins with
                its own arrival, and enters a round when its transfers of the round before have ended, or,
                with two in flight, of the one before that. A transfer starts when its sender has entered
                the round and, with rendezvous, its receiver, too, after the segment before it. The core
                runs this by itself and tells when a rank is done; where it cannot, see
                :mod:`simulator.engine.steps`.

The collectives of a group, of whatever kind, run one after another, as on one communication stream.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simulator.engine.fairshare import Step
from simulator.engine.network import Network
from simulator.engine.steps import Steps
from simulator.patterns import OTHER_PATTERNS, PATTERNS, Kind, Schedule, Transfer, cut, depth, traffic
from simulator.transports import Fixed, Transport

RankDone = Callable[[int], object]
"""Told the position of a rank whose part in a collective has ended."""


class Coupled(NamedTuple):
    """A pipelined collective as one flow.

    Attributes
    ----------
    links, demand
        What it loads, and how much relative to the busiest of them, so that it gets the share of that link
        that any other flow would get.
    busiest
        Bytes over that link per byte of the message; 1 where a group shares one GPU and loads no link.
    path_latency, latency
        Seconds: of the longest path, and what it pays.
    """

    links: tuple[int, ...]
    demand: tuple[float, ...]
    busiest: float
    path_latency: float
    latency: float


class Communicator:
    """The collectives of one kind in one group.

    Parameters
    ----------
    network
        What they run on.
    ranks
        The members, in order.
    hosts
        The host of each member, for the hierarchical pattern.
    kind
        What they do.
    waiting
        The group's collectives that wait for their turn, where they are pipelined.
    """

    def __init__(
        self,
        network: Network,
        ranks: Sequence[int],
        hosts: Sequence[object],
        kind: Kind = "all_reduce",
        waiting: deque[Pending] | None = None,
    ) -> None:
        self.ranks = tuple(ranks)
        self._network = network
        self._transport = network.transport
        self._kind = kind
        self._waiting: deque[Pending] = deque() if waiting is None else waiting
        self._schedule: Schedule = ()
        if isinstance(self._transport, Transport) and len(ranks) > 1:
            by_host: dict[object, list[int]] = {}
            for position, host in enumerate(hosts):
                by_host.setdefault(host, []).append(position)
            pattern = PATTERNS[self._transport.pattern] if kind == "all_reduce" else OTHER_PATTERNS[kind]
            self._schedule = pattern(list(by_host.values()))
        self._coupled = self._couple()
        self._flow: int | None = None
        self._begins = -math.inf  # when this flow has paid its latency
        network.rerouted.append(self._reroute)
        largest = (max(transfer.fraction for transfer in phase.transfers) for phase in self._schedule)
        self._largest = tuple(largest)
        self._segmented: dict[tuple[int, ...], Schedule] = {}  # by how many segments a transfer is, by phase
        self._patterns: dict[tuple[int, ...], int] = {}  # of these in the core
        self.sent = self._sent_fractions()

    @property
    def _traffic(self) -> dict[tuple[int, int], float]:
        """What every ordered pair moves; seldom asked for, and of many thousands too large to keep."""
        return traffic(self._schedule)

    def _sent_fractions(self) -> tuple[float, ...]:
        """Return what each member sends in a collective, as a fraction of the message."""
        n = len(self.ranks)
        if isinstance(self._transport, Fixed):
            return ((2 if self._kind == "all_reduce" else 1) * (n - 1) / n,) * n
        sent = [0.0] * n
        for (source, _), fraction in self._traffic.items():
            sent[source] += fraction
        return tuple(sent)

    def _couple(self) -> Coupled:
        """Return the pattern as one flow over the present paths."""
        loads: dict[int, float] = {}
        for (source, destination), fraction in self._traffic.items():
            pair = self.ranks[source], self.ranks[destination]
            for link in self._network.path(*pair).links:
                loads[link] = loads.get(link, 0.0) + fraction
        busiest = max(loads.values(), default=1.0)
        demand = [load / busiest for load in loads.values()]
        # A member that is out for a while holds up all; its own link never limits otherwise.
        own = self._network.own(*self.ranks)
        links, uses = (*loads, *own), (*demand, *(1.0 for _ in own))
        return Coupled(links, uses, busiest, *self._latencies())

    def _latencies(self) -> tuple[float, float]:
        """Return that of the longest path, and what a pipelined collective pays."""
        transport = self._transport
        if isinstance(transport, Fixed):
            return 0.0, 0.0
        by_phase = [max(map(self._path_latency, phase.transfers)) for phase in self._schedule]
        longest = max(by_phase, default=0.0)
        if transport.rounds_of_latency == "depth":
            paths = depth(self._kind, len(self.ranks)) * longest
        else:
            rounds = zip(self._schedule, by_phase, strict=True)
            paths = math.fsum(phase.repeat * latency for phase, latency in rounds)
        return longest, transport.latencies("collective") * paths

    def _path_latency(self, transfer: Transfer) -> float:
        return self._network.path(self.ranks[transfer.source], self.ranks[transfer.destination]).latency

    def arrive(self, pending: Pending, position: int) -> None:
        """Note that a member has called; the collective starts as its transport says."""
        pending.arrived += 1
        pending.communicator = self
        if isinstance(self._transport, Transport) and not self._transport.pipelined:
            if pending.enter is None:
                pending.enter = self._open(self._transport, pending)
            previous = pending.previous
            if previous is not None and position not in previous.finished:
                previous.followers[position] = pending
            else:
                pending.enter(position)
        elif pending.arrived == len(self.ranks):
            self._waiting.append(pending)
            if len(self._waiting) == 1:
                self._start()

    def _open(self, transport: Transport, pending: Pending) -> Callable[[int], None]:
        """Open a stepped collective, in the core, which learns the pattern at the first one, or as messages.

        Return how a member enters it.
        """
        segments = tuple(transport.segments(fraction * pending.nbytes) for fraction in self._largest)
        if segments not in self._segmented:
            self._segmented[segments] = cut(self._schedule, segments)
        schedule = self._segmented[segments]
        if self._network.one_by_one:
            send = functools.partial(self._send, pending.nbytes)
            return Steps(
                schedule,
                len(self.ranks),
                send,
                pending.done,
                rendezvous=transport.rendezvous,
                in_flight=transport.in_flight,
                now=lambda: self._network.clock.now,
            ).enter
        clock = self._network.clock
        if segments not in self._patterns:
            self._patterns[segments] = clock.core.add_pattern(
                len(self.ranks),
                [
                    (phase.repeat, [self._step(transfer) for transfer in phase.transfers])
                    for phase in schedule
                ],
                complete=True,
            )
        number = clock.collective(
            self._patterns[segments],
            pending.nbytes,
            pending.done,
            payload_share=transport.payload("collective"),
            latency_factor=transport.latencies("collective"),
            handling_rate=transport.handling_rate,
            rendezvous=transport.rendezvous,
            in_flight=transport.in_flight,
        )
        return functools.partial(clock.enter, number)

    def _send(self, nbytes: float, transfer: Transfer, called: float, arrived: Callable[[], None]) -> None:
        source, destination = self.ranks[transfer.source], self.ranks[transfer.destination]
        size = transfer.fraction * nbytes
        self._network.send(source, destination, size, arrived, use="collective", called=called)

    def _step(self, transfer: Transfer) -> Step:
        pair = self.ranks[transfer.source], self.ranks[transfer.destination]
        links, latency = self._network.message_way(*pair)
        return Step(transfer.source, transfer.destination, transfer.fraction, links, latency)

    def _start(self) -> None:
        pending = self._waiting[0]
        clock = self._network.clock

        def end() -> None:
            self._flow = None
            self._waiting.popleft()
            for position in range(len(self.ranks)):
                pending.done(position)
            if self._waiting:
                self._waiting[0].communicator._start()

        pending.began = clock.now
        if isinstance(self._transport, Fixed):
            clock.at(clock.now + self._transport.all_reduce, end)
        elif len(self.ranks) == 1:
            clock.at(clock.now, end)
        else:
            self._end = end
            size = self._coupled.busiest * pending.nbytes / self._transport.payload("collective")
            self._begins = clock.now + self._coupled.latency
            self._flow_on(size)

    def _flow_on(self, size: float) -> None:
        """Start a collective, or what is left of it, over the present ways."""
        clock = self._network.clock
        self._flow = clock.flow(
            self._coupled.links,
            size,
            self._end,
            demand=self._coupled.demand,
            path_latency=self._coupled.path_latency,
            at=max(clock.now, self._begins),
            latency=0.0,
        )

    def _reroute(self) -> None:
        """Take the present ways between the members, for what is left of a collective under way too."""
        before, self._coupled = self._coupled, self._couple()
        if self._flow is not None and before != self._coupled:
            left = self._network.clock.cancel(self._flow) / before.busiest
            self._flow_on(left * self._coupled.busiest)


class Pending:
    """One collective of a group, from its first call to its last end.

    Parameters
    ----------
    nbytes
        Size of the message.
    done
        Told each member whose part has ended.
    previous
        The group's collective before this one, which a member finishes first.
    """

    __slots__ = (
        "_done",
        "arrived",
        "began",
        "communicator",
        "enter",
        "finished",
        "followers",
        "nbytes",
        "previous",
    )
    communicator: Communicator

    def __init__(self, nbytes: float, done: RankDone, previous: Pending | None) -> None:
        self.nbytes = nbytes
        self.arrived = 0
        self.began = -math.inf
        self.finished: set[int] = set()
        self.followers: dict[int, Pending] = {}
        self.previous = previous
        self.enter: Callable[[int], None] | None = None  # how a member enters a stepped one
        self._done = done

    def done(self, position: int) -> None:
        """End a member's part, and let it enter the next collective if it has called already."""
        self.finished.add(position)
        self._done(position)
        follower = self.followers.pop(position, None)
        if follower is not None and follower.enter is not None:
            follower.enter(position)
        self.previous = None
