"""A stepped collective, message by message, where the network core cannot run it by itself.

The core knows each transfer of a collective by fixed links that are shared. Where links forward chunks, and
where a transfer may be sent another way while it is under way, each is a message of the network instead. The
rules are those of the core (:mod:`simulator.engine.kernel.collectives`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simulator.patterns import Schedule, Transfer

Send = Callable[[Transfer, float, Callable[[], None]], object]
"""Starts a message of a transfer that its ranks have been there for since a time.

Its third argument is called when the last byte has arrived.
"""


@dataclass
class _Link:
    """The messages of one transfer of a phase.

    So many have ended, and the next may be under way; for the one after it, both ranks may be there already.
    """

    transfer: Transfer
    phase: int
    ended: int = 0
    under_way: bool = False
    called: float | None = None


@dataclass
class _Part:
    """A rank's latest round, and its transfers of each phase, those that it receives first."""

    phase: int = 0
    turn: int = -1
    links: dict[int, list[_Link]] = field(default_factory=dict)

    def has_entered(self, phase: int, turn: int) -> bool:
        """Whether it has entered a round of its present phase."""
        return self.phase == phase and self.turn >= turn


class Steps:
    """One collective.

    Parameters
    ----------
    schedule
        Its rounds.
    ranks
        How many take part.
    send
        How a message is started.
    done
        Told each rank whose part ends.
    rendezvous
        Whether a message waits for its receiver to enter the round.
    in_flight
        Rounds of a phase in which a rank may be at once.
    now
        Tells the time.
    """

    def __init__(
        self,
        schedule: Schedule,
        ranks: int,
        send: Send,
        done: Callable[[int], object],
        rendezvous: bool,
        in_flight: int,
        now: Callable[[], float],
    ) -> None:
        self._repeats = [phase.repeat for phase in schedule]
        self._send = send
        self._done = done
        self._rendezvous = rendezvous
        self._in_flight = in_flight
        self._now = now
        self._parts = [_Part() for _ in range(ranks)]
        for number, phase in enumerate(schedule):
            links = [_Link(transfer, number) for transfer in phase.transfers]
            for link in links:
                self._parts[link.transfer.destination].links.setdefault(number, []).append(link)
            for link in links:
                self._parts[link.transfer.source].links.setdefault(number, []).append(link)

    def enter(self, rank: int) -> None:
        """Let a rank enter the rounds that it need not wait for: at first its part, and later by itself."""
        part = self._parts[rank]
        while part.phase < len(self._repeats) and self._may_go_on(part):
            part.turn += 1
            if part.turn == self._repeats[part.phase]:
                part.phase, part.turn = part.phase + 1, 0
            if part.phase == len(self._repeats):
                self._done(rank)
                return
            for link in part.links.get(part.phase, ()):
                self._offer(link)

    def _may_go_on(self, part: _Part) -> bool:
        following = part.turn + 1
        last = following == self._repeats[part.phase]
        needed = following if last else following + 1 - self._in_flight
        return all(link.ended >= needed for link in part.links.get(part.phase, ()))

    def _offer(self, link: _Link) -> None:
        """Start the next message of a transfer, if its ranks have entered its round and none is under way."""
        ranks = [link.transfer.source, *([link.transfer.destination] if self._rendezvous else [])]
        turn = link.ended + link.under_way
        if all(self._parts[rank].has_entered(link.phase, turn) for rank in ranks):
            called = link.called if link.called is not None else self._now()
            link.called = called if link.under_way else None
            if not link.under_way:
                link.under_way = True
                self._send(link.transfer, called, lambda: self._arrived(link))

    def _arrived(self, link: _Link) -> None:
        link.ended += 1
        link.under_way = False
        for rank in (link.transfer.destination, link.transfer.source):
            part = self._parts[rank]
            if part.phase == link.phase and part.turn >= 0:
                self.enter(rank)
        self._offer(link)
