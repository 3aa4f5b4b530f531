"""The device of a worker on the wall clock, which its emulated computations share as on the virtual one.

Computations of several tasks of a worker go on side by side. Where they are real, the processor shares itself
out; emulated ones only wait, so the device is to be shared out among them: each of k that are under way gets
1/k of what the device does, from the moment at which it begins to that at which it has had all its work.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Turn:
    """A computation under way.

    Attributes
    ----------
    begin
        When it began, on the clock.
    served
        Seconds of undisturbed work that the device has done for it.
    until
        When it has last had all the work that was asked for, on the clock.
    """

    begin: float
    served: float = 0.0
    until: float = -math.inf


class SharedDevice:
    """What the emulated computations of a worker share.

    Parameters
    ----------
    clock
        The seconds.
    end
        When work of so many undisturbed seconds ends that begins at a moment, if it is alone.
    work
        How many such seconds of work are done between two moments.
    pause
        What waits for some seconds in place of the device, for the tests of one thread.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        end: Callable[[float, float], float],
        work: Callable[[float, float], float],
        pause: Callable[[float], None] | None = None,
    ) -> None:
        self._clock, self._end, self._work = clock, end, work
        self._changed = threading.Condition()
        self._pause: Callable[[float], object] = pause or self._changed.wait
        self._turns: list[Turn] = []
        self._at = clock()

    def enter(self, begin: float) -> Turn:
        """Let a computation begin that counts as begun at a moment, now or a little before."""
        with self._changed:
            now = self._advance()
            turn = Turn(begin, self._work(begin, now) / (len(self._turns) + 1))
            self._turns.append(turn)
            self._changed.notify_all()
        return turn

    def leave(self, turn: Turn) -> None:
        """Let a computation end."""
        with self._changed:
            self._advance()
            self._turns.remove(turn)
            self._changed.notify_all()

    def serve(self, turn: Turn, seconds: float) -> tuple[float, float]:
        """Wait until a computation has had so many seconds of work.

        Returns
        -------
        When that was, on the clock, and by how many seconds it was over when this was called.
        """
        with self._changed:
            now = self._advance()
            over = (turn.served - seconds) * len(self._turns)
            at = now
            while turn.served < seconds:
                at = self._end(now, (seconds - turn.served) * len(self._turns))
                if at <= now:
                    break  # what is left is less than the clock can tell
                self._pause(at - now)
                now = self._advance()
            turn.until = at
            return at, max(0.0, over)

    def _advance(self) -> float:
        """Share out what the device has done since the last change, and return the present moment."""
        now = self._clock()
        if self._turns:
            each = self._work(self._at, now) / len(self._turns)
            for turn in self._turns:
                turn.served += each
        self._at = now
        return now
