"""How an all-reduce takes time on the network.

``Fixed``       It ends a given time after its last arrival.
*Pipelined*     The pieces of the message stream through the pattern, so that all its links are busy at a
                common pace: one flow that is coupled over them, which starts at the last arrival and
                competes with all other traffic. Each link carries what the schedule sends over it.
*Stepped*       Every transfer of the schedule is a flow of its own; a rank begins with its own arrival
                and enters a round when its transfers of the round before have ended.

The all-reduces of a group run one after another, as on one communication stream.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from simulator.engine.network import Network
from simulator.patterns import PATTERNS, Schedule, Transfer, depth, traffic
from simulator.transports import Fixed, Transport

RankDone = Callable[[int], object]
"""Told the position of a rank whose part in a collective has ended."""


class Communicator:
    """The all-reduces of one group.

    Parameters
    ----------
    network
        What they run on.
    ranks
        The members, in order.
    hosts
        The host of each member, for the hierarchical pattern.
    """

    def __init__(self, network: Network, ranks: Sequence[int], hosts: Sequence[object]) -> None:
        self.ranks = tuple(ranks)
        self._network = network
        self._transport = network.transport
        self._waiting: deque[Pending] = deque()
        self._schedule: Schedule = ()
        if isinstance(self._transport, Transport) and len(ranks) > 1:
            by_host: dict[object, list[int]] = {}
            for position, host in enumerate(hosts):
                by_host.setdefault(host, []).append(position)
            self._schedule = PATTERNS[self._transport.pattern](list(by_host.values()))
        self._traffic = traffic(self._schedule)
        self._links, self._demand, self._busiest = self._loads()
        self._latency = self._pipelined_latency()
        self.sent = self._sent_fractions()

    def _sent_fractions(self) -> tuple[float, ...]:
        """Return what each member sends in an all-reduce, as a fraction of the message."""
        n = len(self.ranks)
        if isinstance(self._transport, Fixed):
            return (2 * (n - 1) / n,) * n
        sent = [0.0] * n
        for (source, _), fraction in self._traffic.items():
            sent[source] += fraction
        return tuple(sent)

    def _loads(self) -> tuple[tuple[int, ...], tuple[float, ...], float]:
        """Return the links of the pattern, how busy each is relative to the busiest, and that one's load.

        A load is in bytes per byte of the message. Relative to the busiest link, the coupled flow gets
        the share of that link that any other flow would get.
        """
        loads: dict[int, float] = {}
        for (source, destination), fraction in self._traffic.items():
            for link in self._network.path(self.ranks[source], self.ranks[destination]).links:
                loads[link] = loads.get(link, 0.0) + fraction
        busiest = max(loads.values(), default=0.0)
        return tuple(loads), tuple(load / busiest for load in loads.values()), busiest

    def _pipelined_latency(self) -> float:
        transport = self._transport
        if isinstance(transport, Fixed) or not self._traffic:
            return 0.0
        longest = max(self._network.path(self.ranks[s], self.ranks[d]).latency for s, d in self._traffic)
        if transport.rounds_of_latency == "depth":
            rounds = depth(len(self.ranks))
        else:
            rounds = sum(phase.repeat for phase in self._schedule)
        return rounds * transport.latency_factor * longest

    def arrive(self, pending: Pending, position: int) -> None:
        """Note that a member has called; the collective starts as its transport says."""
        pending.arrived += 1
        if isinstance(self._transport, Transport) and not self._transport.pipelined:
            if pending.steps is None:
                pending.steps = Steps(self._network, self._transport, self.ranks, self._schedule, pending)
            previous = pending.previous
            if previous is not None and position not in previous.finished:
                previous.followers[position] = pending
            else:
                pending.steps.enter(position)
        elif pending.arrived == len(self.ranks):
            self._waiting.append(pending)
            if len(self._waiting) == 1:
                self._start()

    def _start(self) -> None:
        pending = self._waiting[0]
        clock = self._network.clock

        def end() -> None:
            self._waiting.popleft()
            for position in range(len(self.ranks)):
                pending.done(position)
            if self._waiting:
                self._start()

        pending.began = clock.now
        if isinstance(self._transport, Fixed):
            clock.at(clock.now + self._transport.all_reduce, end)
        elif len(self.ranks) == 1:
            clock.at(clock.now, end)
        else:
            size = self._busiest * pending.nbytes / self._transport.payload_share
            clock.flow(self._links, size, end, demand=self._demand, latency=self._latency)


class Pending:
    """One all-reduce of a group, from its first call to its last end.

    Parameters
    ----------
    nbytes
        Size of the message.
    done
        Told each member whose part has ended.
    previous
        The group's all-reduce before this one, which a member finishes first.
    """

    __slots__ = ("_done", "arrived", "began", "finished", "followers", "nbytes", "previous", "steps")

    def __init__(self, nbytes: float, done: RankDone, previous: Pending | None) -> None:
        self.nbytes = nbytes
        self.arrived = 0
        self.began = -math.inf
        self.finished: set[int] = set()
        self.followers: dict[int, Pending] = {}
        self.previous = previous
        self.steps: Steps | None = None
        self._done = done

    def done(self, position: int) -> None:
        """End a member's part, and let it enter the next collective if it has called already."""
        self.finished.add(position)
        self._done(position)
        follower = self.followers.pop(position, None)
        if follower is not None:
            assert follower.steps is not None
            follower.steps.enter(position)
        self.previous = None


class Steps:
    """A schedule under way, transfer by transfer.

    A transfer starts when its sender enters the round; the receiver's buffer is there already. It counts
    for the receiver's round even when the receiver has not entered that round yet.
    """

    def __init__(
        self,
        network: Network,
        transport: Transport,
        ranks: Sequence[int],
        schedule: Schedule,
        pending: Pending,
    ) -> None:
        self._network = network
        self._transport = transport
        self._ranks = ranks
        self._pending = pending
        self._rounds = [phase.transfers for phase in schedule for _ in range(phase.repeat)]
        self._round = [-1] * len(ranks)
        self._open = [0] * len(ranks)
        self._early: dict[tuple[int, int], int] = {}
        self._sends = {id(phase.transfers): _by_source(phase.transfers) for phase in schedule}
        self._receives = {id(phase.transfers): _count_received(phase.transfers) for phase in schedule}

    def enter(self, position: int) -> None:
        """Let a member begin, or go on with, its rounds until it has to wait."""
        while True:
            self._round[position] += 1
            number = self._round[position]
            if number == len(self._rounds):
                self._pending.done(position)
                return
            transfers = self._rounds[number]
            sends = self._sends[id(transfers)].get(position, ())
            receives = self._receives[id(transfers)].get(position, 0)
            self._open[position] = len(sends) + receives - self._early.pop((position, number), 0)
            for destination, fraction in sends:
                self._send(position, destination, fraction, number)
            if self._open[position]:
                return

    def _send(self, source: int, destination: int, fraction: float, number: int) -> None:
        def arrived() -> None:
            self._received(destination, number)
            self._ended(source)

        size = fraction * self._pending.nbytes
        messages = self._transport.segments(size)
        self._network.send(self._ranks[source], self._ranks[destination], size, arrived, messages)

    def _received(self, position: int, number: int) -> None:
        if self._round[position] == number:
            self._ended(position)
        else:
            self._early[position, number] = self._early.get((position, number), 0) + 1

    def _ended(self, position: int) -> None:
        self._open[position] -= 1
        if self._open[position] == 0:
            self.enter(position)


def _by_source(transfers: Sequence[Transfer]) -> dict[int, list[tuple[int, float]]]:
    sends: dict[int, list[tuple[int, float]]] = {}
    for transfer in transfers:
        sends.setdefault(transfer.source, []).append((transfer.destination, transfer.fraction))
    return sends


def _count_received(transfers: Sequence[Transfer]) -> dict[int, int]:
    received: dict[int, int] = {}
    for transfer in transfers:
        received[transfer.destination] = received.get(transfer.destination, 0) + 1
    return received
