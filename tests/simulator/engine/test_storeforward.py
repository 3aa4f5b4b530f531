"""Store-and-forward links against ASTRA-sim's figures and closed forms."""

from __future__ import annotations

import re
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.clock import Clock
from simulator.engine.storeforward import StoreAndForward

# ASTRA-sim's analytical network, congestion aware: 16 devices, 50 GB/s with GB = 2**30, 500 ns.
DEVICES = 16
BANDWIDTH = 50 * 2**30
LATENCY = 500e-9
CHUNK = 2**20


def ring_route(source: int, destination: int) -> list[int]:
    """The shorter way round; antipodal pairs all go the same way. Link i goes up from i, 16 + i down."""
    distance = (destination - source) % DEVICES
    if distance <= DEVICES // 2:
        return [(source + hop) % DEVICES for hop in range(distance)]
    return [DEVICES + (source - hop) % DEVICES for hop in range(DEVICES - distance)]


def nanoseconds(links: int, routes: list[list[int]], whole: bool) -> float:
    """Return when the last of the messages, of one chunk each, has arrived."""
    clock = Clock()
    network = StoreAndForward(clock, whole_nanoseconds=whole)
    for _ in range(links):
        network.add_link(BANDWIDTH, LATENCY)
    ends: list[float] = []
    for route in routes:
        network.send(route, CHUNK, lambda: ends.append(clock.now), chunk=CHUNK)
    clock.run()
    assert len(ends) == len(routes)
    return max(ends) * 1e9


ALL_PAIRS = [ring_route(a, b) for a in range(DEVICES) for b in range(DEVICES) if a != b]
ASTRA_SIM = {
    "ring, 1 to 4": (32, [ring_route(1, 4)], 60_093),
    "fully connected": (1, [[0]], 20_031),
    "switch": (2, [[0, 1]], 40_062),
    "ring, all pairs": (32, ALL_PAIRS, 704_116),
}


@pytest.mark.parametrize("case", ASTRA_SIM)
def test_astra_sim(case: str) -> None:
    links, routes, expected = ASTRA_SIM[case]
    assert nanoseconds(links, routes, whole=True) == pytest.approx(expected, abs=1e-6)
    assert nanoseconds(links, routes, whole=False) == pytest.approx(expected, rel=2e-5)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.0, 0.25]))
def test_chunks_stream_over_a_line(hops: int, chunks: int, latency: float) -> None:
    """The first chunk crosses every link, and the others follow a chunk's time apart."""
    clock = Clock()
    network = StoreAndForward(clock)
    route = [network.add_link(2.0, latency) for _ in range(hops)]
    ends: list[float] = []
    network.send(route, 4.0 * chunks, lambda: ends.append(clock.now), chunk=4.0)
    clock.run()
    assert ends == [pytest.approx(hops * (2.0 + latency) + (chunks - 1) * 2.0)]
    assert [network.carried(link) for link in route] == [4.0 * chunks] * hops


def test_messages_wait_for_their_turn() -> None:
    clock = Clock()
    network = StoreAndForward(clock)
    first, second = network.add_link(1.0), network.add_link(2.0, 0.5)
    log: list[tuple[str, float]] = []

    def note(name: str) -> Any:
        return lambda: log.append((name, clock.now))

    network.send([first, second], 2.0, note("long"))  # at the second link at 2, sent until 3
    network.send([second], 3.0, note("short"))  # 1.5 on the free link
    clock.at(1.0, lambda: network.send([second], 2.0, note("late")))  # waits until 1.5
    network.send([first], 0.0, note("empty"))  # behind the long one on the first link
    network.send([first, second], 3.0, note("rest"), chunk=2.0)  # chunks of 2 and 1
    clock.run()
    assert log == [
        ("short", 2.0),
        ("empty", 2.0),
        ("late", 3.0),
        ("long", 4.0),
        ("rest", 6.0),
    ]


def test_bad_input_is_refused() -> None:
    network = StoreAndForward(Clock())
    network.add_link(1.0)
    for call, message in (
        (lambda: network.add_link(0.0), "the capacity of a link must be a positive, finite number, not 0.0"),
        (
            lambda: network.add_link(1.0, nan),
            "the latency of a link must be a finite number of at least 0, not nan",
        ),
        (lambda: network.send([1], 1.0, int), "there is no link 1: links are numbered 0 to 0"),
        (
            lambda: network.send([0], inf, int),
            "the size of a message must be a finite number of at least 0, not inf",
        ),
        (
            lambda: network.send([0], 1.0, int, chunk=0.0),
            "the size of a chunk must be a positive number, not 0.0",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
