"""The ranks' notes become one timeline, in which waiting names the last peer."""

from __future__ import annotations

from typing import Literal

import numpy as np

from simulator.execution.record import Message, Record, Reports, spans
from simulator.execution.streams import Call, End
from traces import COMPUTE, TRANSFER, WAIT, Span


def record(rank: int, messages: list[Message], computations: list[Span] | None = None) -> Record:
    return Record(rank, 1, 9.0, Reports([], [], np.empty((0, 1))), computations or [], messages)


def note(
    number: int, begin: float, end: float, peers: tuple[int, ...], operation: str = "all_reduce"
) -> Message:
    stream = "world" if operation == "all_reduce" else "exchange"
    return Message(Call(operation, 1, stream, number, peers), begin, end, 8.0)


def test_everybody_waits_for_the_last() -> None:
    # Rank 2 is the last at 3 s; it does not wait itself. Between 3 s and its own end each rank transfers.
    records = [
        record(0, [note(0, 1.0, 5.0, (1, 2))]),
        record(1, [note(0, 2.0, 5.5, (0, 2))]),
        record(2, [note(0, 3.0, 5.2, (0, 1))]),
    ]
    assert spans(records) == [
        Span(0, WAIT, "all_reduce", 1.0, 3.0, 2, 0.0, 1),
        Span(1, WAIT, "all_reduce", 2.0, 3.0, 2, 0.0, 1),
        Span(0, TRANSFER, "all_reduce", 3.0, 5.0, -1, 8.0, 1),
        Span(1, TRANSFER, "all_reduce", 3.0, 5.5, -1, 8.0, 1),
        Span(2, TRANSFER, "all_reduce", 3.0, 5.2, -1, 8.0, 1),
    ]


def test_calls_match_by_their_number() -> None:
    records = [
        record(0, [note(0, 0.0, 1.0, (1,)), note(1, 2.0, 4.0, (1,))]),
        record(1, [note(0, 0.0, 1.0, (0,)), note(1, 3.0, 4.0, (0,))]),
    ]
    assert [span for span in spans(records) if span.kind == WAIT] == [
        Span(0, WAIT, "all_reduce", 2.0, 3.0, 1, 0.0, 1)
    ]
    # With one peer the transfer names it.
    assert {span.peer for span in spans(records) if span.worker == 0} == {1}


def test_an_exchange_waits_for_neighbours_only() -> None:
    # On the path 0 - 1 - 2 rank 0 does not care how late rank 2 is.
    records = [
        record(0, [note(0, 0.0, 2.0, (1,), "exchange")]),
        record(1, [note(0, 1.0, 6.0, (0, 2), "exchange")]),
        record(2, [note(0, 5.0, 6.0, (1,), "exchange")]),
    ]
    assert [(s.worker, s.kind, s.start, s.end, s.peer) for s in spans(records)] == [
        (0, WAIT, 0.0, 1.0, 1),
        (0, TRANSFER, 1.0, 2.0, 1),
        (1, WAIT, 1.0, 5.0, 2),
        (1, TRANSFER, 5.0, 6.0, -1),
        (2, TRANSFER, 5.0, 6.0, 1),
    ]


def test_ties_go_to_the_lowest_rank() -> None:
    records = [
        record(0, [note(0, 0.0, 2.0, (1, 2))]),
        record(1, [note(0, 1.0, 2.0, (0, 2))]),
        record(2, [note(0, 1.0, 2.0, (0, 1))]),
    ]
    assert [span.peer for span in spans(records) if span.kind == WAIT] == [1]


def test_a_span_never_ends_before_it_starts() -> None:
    # Clocks of two machines that differ by 10 s.
    records = [record(0, [note(0, 0.0, 1.0, (1,))]), record(1, [note(0, 10.0, 11.0, (0,))])]
    assert all(span.start <= span.end for span in spans(records))


def test_computations_come_along_in_the_order_of_time() -> None:
    busy = Span(0, COMPUTE, "gradient", 0.5, 0.75, iteration=1)
    records = [record(0, [note(0, 1.0, 2.0, (1,))], [busy]), record(1, [note(0, 1.0, 2.0, (0,))])]
    assert spans(records)[0] == busy
    assert records[0].bytes_sent == 8.0
    assert records[0].calls == {"world": 1}


def test_both_ends_of_a_channel_match_by_their_number() -> None:
    def end(side: Literal["send", "recv"], number: int, begin: float, until: float) -> Message:
        call = Call(side, 1, End(side, 0, 1, "a"), number, (1 if side == "send" else 0,))
        return Message(call, begin, until, 8.0 if side == "send" else 0.0)

    records = [
        record(0, [end("send", 0, 0.0, 3.0), end("send", 1, 3.0, 5.0)]),
        record(1, [end("recv", 0, 2.0, 3.0), end("recv", 1, 3.5, 5.0)]),
    ]
    assert [(s.worker, s.kind, s.operation, s.start, s.end, s.peer, s.nbytes) for s in spans(records)] == [
        (0, WAIT, "send", 0.0, 2.0, 1, 0.0),
        (0, TRANSFER, "send", 2.0, 3.0, 1, 8.0),
        (1, TRANSFER, "recv", 2.0, 3.0, 0, 0.0),
        (0, WAIT, "send", 3.0, 3.5, 1, 0.0),
        (0, TRANSFER, "send", 3.5, 5.0, 1, 8.0),
        (1, TRANSFER, "recv", 3.5, 5.0, 0, 0.0),
    ]
    assert records[0].calls == {End("send", 0, 1, "a"): 2}


def test_a_message_to_oneself_that_nobody_received() -> None:
    call = Call("send", 1, End("send", 0, 0, "a"), 0, (0,))
    assert spans([record(0, [Message(call, 1.0, 2.0, 0.0)])]) == [
        Span(0, TRANSFER, "send", 1.0, 2.0, 0, 0.0, 1)
    ]
