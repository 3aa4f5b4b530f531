"""Links of an emulated network that slow down or fail for a time.

What the scenario says of a link is the part of its rate that is left, from one moment to the next; of several
disturbances at a time the parts multiply, and a failure leaves nothing. At each moment the token buckets at
both ends of the cable get the new rate. Packets that wait stay where they are, so that transfers over a link
that has failed stall and go on as soon as it is back, as in the simulation. With the devices set down,
packets would be lost, and TCP would try again only after a time that doubles with each attempt.

A token bucket cannot have the rate 0: what passes a failed link is its burst, once, and then
:data:`STALLED` bytes in a second.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from simulator.faults import LinkStuck
from simulator.stragglers import LinkFailure, SlowLink

if TYPE_CHECKING:
    from simulator.execution.emulation import Network
    from simulator.scenario import Scenario

STALLED = 5e3
"""Bytes/s of a link that carries as good as nothing.

The kernel cuts what a bucket holds to 4.29 s at its rate, and drops frames that are larger than that.
"""

_KICK = bytes.fromhex("88b5") + bytes(46)
"""Type and content of a frame that no receiver takes: an experimental type (IEEE 802)."""
_LATE = 10.0
"""Seconds in which a change that has begun is made."""


class Change(NamedTuple):
    """A moment at which the rate of a link changes.

    Attributes
    ----------
    time
        Seconds from the common start of the ranks.
    ends
        The two nodes of the edge, by number.
    factor
        The part of the rate that is left from then on.
    """

    time: float
    ends: frozenset[int]
    factor: float


def windowed(part: object) -> bool:
    """Return whether a straggler disturbs a link for a time, or fails it."""
    return isinstance(part, LinkFailure) or (
        isinstance(part, SlowLink) and not (part.start == 0 and part.end == math.inf)
    )


def changes(scenario: Scenario, number: Mapping[Hashable, int]) -> tuple[Change, ...]:
    """Return how the links change in time, with the topology's nodes by their numbers."""
    found: dict[frozenset[int], list[SlowLink | LinkFailure]] = {}
    for part in scenario.stragglers:
        if isinstance(part, (SlowLink, LinkFailure)) and windowed(part):
            ends = frozenset(number[scenario.cluster.node(end)] for end in part.between)
            found.setdefault(ends, []).append(part)
    made = []
    for ends, parts in found.items():
        moments = {moment for part in parts for moment in (part.start, part.end) if moment < math.inf}
        made += [Change(moment, ends, _left(parts, moment)) for moment in moments]
    return tuple(sorted(made, key=lambda change: (change.time, sorted(change.ends))))


def _left(parts: Sequence[SlowLink | LinkFailure], moment: float) -> float:
    """Return the part of a link's rate that is left from a moment on."""
    present = [part for part in parts if part.start <= moment < part.end]
    return math.prod(part.factor if isinstance(part, SlowLink) else 0.0 for part in present)


class Disturbances:
    """Changes the links of a network that stands, in a thread of its own, from the common start on.

    Parameters
    ----------
    network
        Whose links.
    due
        The changes, in the order of time.
    """

    def __init__(self, network: Network, due: Sequence[Change]) -> None:
        self._network = network
        self._due = due
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._made = 0
        self._failed: dict[frozenset[int], float] = {}
        self._error: BaseException | None = None

    def begin(self, start: float) -> None:
        """Let them happen, with the common start on the monotonic clock."""
        if self._due:
            self._thread = threading.Thread(target=self._happen, args=(start,), name="links", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Let none happen any more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_LATE)

    def check(self) -> None:
        """Raise the error of a change that could not be made."""
        if self._error is not None:
            raise self._error

    def failed(self) -> str:
        """Return in words which links have failed and do not come back; nothing where none has."""
        coming = {change.ends for change in self._due[self._made :]}
        said = [
            f"the link {self._name(ends)} failed at {since:g} s and does not come back"
            for ends, since in self._failed.items()
            if ends not in coming
        ]
        return "; ".join(said)

    def _name(self, ends: frozenset[int]) -> str:
        nodes = self._network.layout.nodes
        return " – ".join(str(nodes[end]) for end in sorted(ends))

    def _change(self, change: Change) -> None:
        try:
            self._network.change_rate(change.ends, change.factor)
        except Exception as error:
            raise LinkStuck(
                f"the link {self._name(change.ends)} could not be changed at {change.time:g} s: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _happen(self, start: float) -> None:
        try:
            for change in self._due:
                if self._over.wait(max(0.0, start + change.time - time.monotonic())):
                    return
                self._change(change)
                self._made += 1
                if change.factor == 0:
                    self._failed.setdefault(change.ends, change.time)
                else:
                    self._failed.pop(change.ends, None)
        except BaseException as error:
            self._error = error


def kick(device: str) -> None:
    """Send a frame that nobody takes, so that the queue before a device looks at its rate again."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        # To and from nobody. A device that is down, as after a cut, refuses the frame.
        with suppress(OSError):
            raw.send(bytes(12) + _KICK)
