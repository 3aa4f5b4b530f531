"""The device that a worker's emulated computations share."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from simulator.execution.sharing import SharedDevice


def alone(at: float, work: float) -> float:
    return at + work


def between(begin: float, end: float) -> float:
    return end - begin


def timed(device: SharedDevice, works: list[tuple[float, float]]) -> list[float]:
    """Return when computations have ended that begin after some seconds and take some seconds alone."""
    origin = time.monotonic()
    ends = [0.0] * len(works)

    def compute(index: int, begin: float, seconds: float) -> None:
        time.sleep(begin)
        turn = device.enter(time.monotonic())
        device.serve(turn, seconds)
        device.leave(turn)
        ends[index] = time.monotonic() - origin

    threads = [threading.Thread(target=compute, args=(k, *work)) for k, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.mark.parametrize(
    ("works", "ends"),
    [
        ([(0.0, 0.2)], [0.2]),
        # Together until the short one has had its work.
        ([(0.0, 0.1), (0.0, 0.2)], [0.2, 0.3]),
        # One comes in the middle: 0.1 alone, then half each.
        ([(0.0, 0.2), (0.1, 0.1)], [0.3, 0.3]),
        ([(0.0, 0.1), (0.2, 0.1)], [0.1, 0.3]),
        ([(0.0, 0.1)] * 3, [0.3] * 3),
    ],
)
def test_computations_share_it_equally(works: list[tuple[float, float]], ends: list[float]) -> None:
    found = timed(SharedDevice(time.monotonic, alone, between), works)
    for end, expected in zip(found, ends, strict=True):
        assert expected - 0.01 <= end <= expected + 0.25  # late where the machine is busy, never early


class Clock:
    """A clock that stands still but for pauses."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def device(clock: Clock, **more: Any) -> SharedDevice:
    return SharedDevice(clock, alone, between, clock.pause, **more)


def test_what_began_before_has_been_served() -> None:
    clock = Clock()
    shared = device(clock)
    turn = shared.enter(4.25)
    assert shared.serve(turn, 1.0) == (5.25, 0.0)
    shared.leave(turn)


def test_what_took_longer_than_it_should_have() -> None:
    clock = Clock()
    shared = device(clock)
    turn = shared.enter(5.0)
    clock.now = 7.0
    assert shared.serve(turn, 0.5) == (7.0, 1.5)
    # Another part of the same computation, of 3 seconds from its begin.
    assert shared.serve(turn, 3.0) == (8.0, 0.0)
    shared.leave(turn)


def test_a_computation_that_waits_behind_others() -> None:
    """The time that is over counts in seconds of the clock, in which each of two gets half."""
    clock = Clock()
    shared = device(clock)
    first, second = shared.enter(5.0), shared.enter(5.0)
    clock.now = 7.0
    assert shared.serve(first, 0.5) == (7.0, 1.0)
    shared.leave(first)
    assert shared.serve(second, 2.0) == (8.0, 0.0)
    shared.leave(second)
