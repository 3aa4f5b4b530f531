"""A stepped collective, transfer by transfer, where the network core cannot run it by itself.

The core knows each transfer of a collective by fixed links that are shared. Where links forward chunks, and
where a transfer may be sent another way while it is under way, each is a message of the network instead. The
rules are those of the core: a rank enters a round when its transfers of the round before have ended; a
transfer starts when its sender enters the round, and counts for the receiver's round even if the receiver has
not entered that one yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.patterns import Phase, Schedule, Transfer

Send = Callable[[Transfer, Callable[[], None]], object]
"""Starts a transfer; its second argument is called when the last byte has arrived."""


@dataclass(frozen=True)
class Round:
    """What each rank sends in a round, and how many transfers it receives."""

    outgoing: dict[int, list[Transfer]]
    incoming: dict[int, int]


def rounds(schedule: Schedule) -> list[Round]:
    """Return the rounds of a schedule; those of a phase are one and the same object."""
    return [entry for phase in schedule for entry in [_round(phase)] * phase.repeat]


def _round(phase: Phase) -> Round:
    made = Round({}, {})
    for transfer in phase.transfers:
        made.outgoing.setdefault(transfer.source, []).append(transfer)
        made.incoming[transfer.destination] = made.incoming.get(transfer.destination, 0) + 1
    return made


class Steps:
    """One collective.

    Parameters
    ----------
    plan
        Its rounds.
    ranks
        How many take part.
    send
        How a transfer is started.
    done
        Told each rank whose part ends.
    """

    def __init__(self, plan: list[Round], ranks: int, send: Send, done: Callable[[int], object]) -> None:
        self._plan = plan
        self._send = send
        self._done = done
        self._turn = [-1] * ranks
        self._open = [0] * ranks
        self._early: dict[tuple[int, int], int] = {}

    def enter(self, rank: int) -> None:
        """Let a rank enter its next round: at first its part, and later by itself."""
        while not self._open[rank]:
            self._turn[rank] += 1
            turn = self._turn[rank]
            if turn == len(self._plan):
                self._done(rank)
                return
            outgoing = self._plan[turn].outgoing.get(rank, [])
            receives = self._plan[turn].incoming.get(rank, 0) - self._early.pop((rank, turn), 0)
            self._open[rank] = len(outgoing) + receives
            for transfer in outgoing:
                self._send(transfer, self._arrival(transfer, turn))

    def _arrival(self, transfer: Transfer, turn: int) -> Callable[[], None]:
        def arrived() -> None:
            receiver = transfer.destination
            if self._turn[receiver] == turn:
                self._ended(receiver)
            else:
                self._early[receiver, turn] = self._early.get((receiver, turn), 0) + 1
            self._ended(transfer.source)

        return arrived

    def _ended(self, rank: int) -> None:
        self._open[rank] -= 1
        if not self._open[rank]:
            self.enter(rank)
