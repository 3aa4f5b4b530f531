"""What one rank brings home from a run, and how the ranks' notes become one timeline.

A rank notes when its stream began and ended each message. The same operation of the same stream has the
same number on all ranks, and a message of a channel the same at both ends, so that the notes can be matched
afterwards. On one machine all ranks read one
monotonic clock; an operation that involves several ranks then divides exactly:

    wait      from this rank's begin to the last of its peers' begins, naming that peer
    transfer  from the last begin of all to this rank's end

A message begins when its stream takes it up, which is the moment of the call unless an earlier message of
the same stream is still under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from simulator.execution.streams import Call, StreamKey
from simulator.observation import Observation
from traces import TRANSFER, WAIT, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Message(NamedTuple):
    """One communication of one rank.

    Attributes
    ----------
    call
        Operation, stream, number, peers and the time of the call.
    begin, end
        Seconds.
    nbytes
        Bytes that this rank sent.
    """

    call: Call
    begin: float
    end: float
    nbytes: float


@dataclass
class Reports:
    """The models that a rank reported.

    Attributes
    ----------
    times, iterations
        Of each report: seconds, and gradients begun.
    models
        Shape [reports, parameters].
    """

    times: list[float]
    iterations: list[int]
    models: NDArray[np.floating]


@dataclass
class Record:
    """All that one rank brings home.

    Attributes
    ----------
    rank
        Which.
    iterations
        Gradients begun.
    end
        Seconds at which its coroutine ended.
    reports
        Its models.
    computations
        Its compute spans.
    messages
        Its communications.
    evaluations
        Gradients evaluated, in mini-batches of its own.
    observations
        What its algorithm noted.
    """

    rank: int
    iterations: int
    end: float
    reports: Reports
    computations: list[Span] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    evaluations: float = 0.0
    observations: list[Observation] = field(default_factory=list)

    @property
    def calls(self) -> Counter[StreamKey]:
        """Messages that this rank called, by stream."""
        return Counter(message.call.stream for message in self.messages)

    @property
    def bytes_sent(self) -> float:
        """Bytes that this rank sent."""
        return sum(message.nbytes for message in self.messages)


Begins = dict[tuple[int, StreamKey, int], float]
"""When each message of each rank began, by rank, stream and number."""


def spans(records: Sequence[Record]) -> list[Span]:
    """Return the spans of all ranks, by start, then by rank."""
    begins = {
        (record.rank, message.call.stream, message.call.number): message.begin
        for record in records
        for message in record.messages
    }
    found = [span for record in records for span in record.computations]
    for record in records:
        for message in record.messages:
            found += _divided(record.rank, message, begins)
    return sorted(found, key=lambda span: (span.start, span.worker, span.end))


def _divided(rank: int, message: Message, begins: Begins) -> Iterator[Span]:
    """Yield the wait, if any, and the transfer of one message."""
    call = message.call
    operation, iteration, peers = call.operation, call.iteration, call.peers

    def begun(peer: int) -> float:
        # What a worker sends to itself may stay in its channel, so that nothing matches it.
        return begins.get((peer, call.matching, call.number), message.begin)

    # max() keeps the first of equals, so ties go to the lowest rank.
    last = max(peers, key=begun)
    # Clocks of different machines may disagree; a span never ends before it starts.
    middle = min(max(message.begin, begun(last)), message.end)
    if middle > message.begin:
        yield Span(rank, WAIT, operation, message.begin, middle, last, 0.0, iteration)
    peer = peers[0] if len(peers) == 1 else -1
    yield Span(rank, TRANSFER, operation, middle, message.end, peer, message.nbytes, iteration)
