"""When a judge ends a run: silence, no progress, and what it says of those who wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from simulator.execution.meeting import Liaison
from simulator.execution.place import Place
from simulator.execution.streams import Call
from simulator.execution.tasks import Wait
from simulator.execution.watch import Coming, Ended, Failed, Heartbeat, Judge, State
from simulator.faults import RunStuck, WorkerFailed

CALL = Call("all_reduce", 3, "world", 0, (1, 2), 4.5, "group 'world'", True)
WAITS = (Wait(CALL, "own.py:7"),)


class Seconds:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def judge(seconds: Seconds) -> Judge:
    return Judge(3, 10.0, seconds)


def verdict(judge: Judge) -> str:
    with pytest.raises(RunStuck) as caught:
        judge.check()
    return str(caught.value)


def test_a_rank_that_is_not_heard_of(judge: Judge, seconds: Seconds) -> None:
    judge.hear(1, State())
    for beat in range(12):
        seconds.at = float(beat)
        judge.hear(0, State(beat, WAITS, {"world": 1}))
        judge.hear(2, State(beat, (), {"world": 1}, "gradient", 8.25))
        if beat <= 10:
            judge.check()
    assert verdict(judge) == (
        "nothing was heard of worker 1 for 10 s: its process is stopped or its machine is out of reach; "
        "worker 0 waits in all_reduce group 'world' for worker 1 since 4.5 s at own.py:7; "
        "worker 2 computes a gradient since 8.25 s"
    )


def test_a_rank_that_does_not_come_up(judge: Judge, seconds: Seconds) -> None:
    """Whatever the patience, it has a minute, whether it says that it is coming or nothing."""
    for beat in range(62):
        seconds.at = float(beat)
        judge.hear(0, State(5, WAITS))
        judge.hear(2, State(5))
        if beat < 50:
            judge.hear(1, Coming())
        if beat <= 60:
            judge.check()
    assert verdict(judge) == (
        "worker 1 did not come up within 60 s: loading data may need more patience, or a process is stopped "
        "or a machine out of reach; "
        "worker 0 waits in all_reduce group 'world' for workers 1, 2 since 4.5 s at own.py:7"
    )


def test_ranks_have_all_of_a_long_patience_to_come_up(seconds: Seconds) -> None:
    judge = Judge(2, 100.0, seconds)
    judge.hear(0, State())
    for beat in range(102):
        seconds.at = float(beat)
        judge.hear(0, State())
        judge.hear(1, Coming())
        if beat <= 100:
            judge.check()
    assert verdict(judge).startswith("worker 1 did not come up within 100 s: ")


def test_progress_counts_from_when_the_last_has_come_up(judge: Judge, seconds: Seconds) -> None:
    """Loading takes 40 s here, and the patience is 10 s."""
    for beat in range(52):
        seconds.at = float(beat)
        for rank in range(3):
            judge.hear(rank, State() if rank == 0 or beat >= 40 else Coming())
        if beat <= 50:
            judge.check()
    assert verdict(judge) == "no worker got on for 10 s: none says why"


class Notes:
    """A board of which nothing is ever read."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, key: str, value: object) -> None:
        self.written.append(value)

    def read(self, key: str) -> None:
        return None


def within_a_while(happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.005)
    return happens()


def test_a_local_rank_is_coming_until_its_worker_is_there() -> None:
    told: list[object] = []

    def tell(news: object) -> None:
        told.append(news)
        if len(told) > 1000:
            raise OSError("enough")

    heartbeat = Heartbeat(tell, patience=0.02)
    assert within_a_while(lambda: len(told) > 1)
    assert set(map(type, told)) == {Coming}
    heartbeat.of(lambda: State(3))
    assert within_a_while(lambda: told[-1] == State(3))


def test_a_rank_of_a_job_is_coming_until_its_worker_is_there() -> None:
    board: Any = Notes()
    liaison = Liaison(Place("Slurm", 1, 2, 1, 2, "localhost", 20_000), board, 0.02, lambda _: None)
    try:
        assert within_a_while(lambda: len(board.written) > 1)
        assert {type(state) for _, state, *_ in board.written} == {Coming}
        liaison.watch(lambda: State(3), lambda _: None)
        # At once, so that a rank that is stopped right afterwards has come up.
        assert board.written[-1][1] == State(3)
    finally:
        liaison.stop()


def test_a_rank_that_goes_on_in_time(judge: Judge, seconds: Seconds) -> None:
    for beat in range(40):
        seconds.at = float(beat)
        judge.hear(0, State(beat))
        judge.hear(2, State(beat))
        if beat % 9 == 0:
            judge.hear(1, State(beat))
        judge.check()


def test_no_progress(judge: Judge, seconds: Seconds) -> None:
    for beat in range(12):
        seconds.at = float(beat)
        for rank in range(3):
            judge.hear(rank, State(5, WAITS if rank == 0 else (), {"world": 1}))
        if beat <= 10:
            judge.check()
    assert verdict(judge) == (
        "no worker got on for 10 s: "
        "worker 0 waits in all_reduce group 'world' for workers 1, 2 since 4.5 s at own.py:7"
    )


def test_one_that_gets_on_is_enough(judge: Judge, seconds: Seconds) -> None:
    for beat in range(40):
        seconds.at = float(beat)
        for rank in range(3):
            judge.hear(rank, State(beat // 9 if rank == 1 else 5, WAITS if rank == 0 else ()))
        judge.check()


def test_ranks_that_have_ended_owe_nothing(judge: Judge, seconds: Seconds) -> None:
    for rank in range(3):
        judge.hear(rank, Ended({}))
    seconds.at = 100.0
    judge.check()
    assert judge.done


def test_a_lost_rank_explains_lost_connections(judge: Judge, seconds: Seconds) -> None:
    lost = Failed(WorkerFailed(0, 4, "CommunicationFailed: connection closed"), True, "")
    judge.hear(0, lost)
    judge.hear(2, lost)
    judge.check()
    seconds.at = 1.9
    judge.check()
    seconds.at = 2.1
    with pytest.raises(WorkerFailed) as caught:
        judge.check()
    assert str(caught.value) == ("worker 1 failed: its process has ended without a word, or its machine has")
