"""All-reduce times against closed forms and against measurements."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.simulate import simulate
from simulator.patterns import PATTERNS, Schedule, depth, traffic
from simulator.scenario import Scenario
from simulator.transports import Pattern

MIB = 2**20
FLAT = [name for name in PATTERNS if name != "hierarchical"]
"""Patterns that take all workers alike; the other one has a test of its own."""


def all_reduce_seconds(
    count: int, nbytes: int, transport: object, bandwidth: str, latency: str, **cluster: Any
) -> float:
    """Return the time of one all-reduce of workers that arrive together."""
    scenario = Scenario(
        {
            "name": "collective",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": count,
                    "link": {"bandwidth": bandwidth, "latency": latency},
                },
                "device": "ideal",
                "workers": count,
                "transport": transport,
                **cluster,
            },
            "workload": {"cost": {"parameters": nbytes // 4, "batch": 1, "gradient": "0 s"}},
            "algorithm": {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 1},
        }
    )
    return simulate(scenario).duration


@pytest.mark.parametrize("workers", [2, 3, 5, 8])
@pytest.mark.parametrize("pipelined", [True, False])
def test_ring_takes_the_textbook_time(workers: int, pipelined: bool) -> None:
    """2(n-1) steps of latency and 2(n-1)/n of the message: the same for both ways of execution."""
    transport = {"name": "ideal", "pipelined": pipelined}
    time = all_reduce_seconds(workers, 120 * MIB, transport, "1 GB/s", "5 us")
    # A path crosses two links: up to the switch and down again.
    expected = 2 * (workers - 1) * 10e-6 + 2 * (workers - 1) / workers * 120 * MIB / 1e9
    assert time == pytest.approx(expected, rel=1e-12)


def test_halving_doubling_takes_the_textbook_time() -> None:
    transport = {"name": "ideal", "pattern": "halving-doubling", "pipelined": False}
    time = all_reduce_seconds(8, 64 * MIB, transport, "1 GB/s", "5 us")
    assert time == pytest.approx(2 * 3 * 10e-6 + 2 * 7 / 8 * 64 * MIB / 1e9, rel=1e-12)


def test_pipelined_trees_use_both_directions_of_every_link() -> None:
    """An inner rank of one tree takes two halves in and gives two out, and is a leaf of the other."""
    transport = {"name": "ideal", "pattern": "tree", "rounds-of-latency": "depth"}
    time = all_reduce_seconds(8, 64 * MIB, transport, "1 GB/s", "0 s")
    busiest = max(
        sum(part for (source, _), part in traffic(PATTERNS["tree"]([range(8)])).items() if source == rank)
        for rank in range(8)
    )
    assert busiest == 2.0
    assert time == pytest.approx(busiest * 64 * MIB / 1e9, rel=1e-12)


def test_hierarchical_crosses_the_network_with_shards_only() -> None:
    scenario = Scenario(
        {
            "name": "hierarchical",
            "cluster": {
                "topology": {
                    "builder": "two-level",
                    "hosts": 4,
                    "gpus-per-host": 2,
                    "inside": {"bandwidth": "1000 GB/s"},
                    "network": {"bandwidth": "1 GB/s"},
                },
                "device": "ideal",
                "transport": {"name": "ideal", "pattern": "hierarchical", "pipelined": False},
            },
            "workload": {"cost": {"parameters": 1_000_000, "batch": 1, "gradient": "0 s"}},
            "algorithm": {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 1},
        }
    )
    inside = 2 * (1 / 2) * 4e6 / 1e12
    # Two shards of a half share each NIC, so a host sends 2 * 3/4 of the message.
    across = 2 * 3 / 4 * 4e6 / 1e9
    assert simulate(scenario).duration == pytest.approx(inside + across, rel=1e-9)


@pytest.mark.parametrize(("rounds", "latency"), [("all", 14 * 2e-6 + 6 * 22e-6), ("depth", 10 * 22e-6)])
def test_every_round_of_a_pipelined_pattern_pays_its_own_longest_path(rounds: str, latency: float) -> None:
    """4 hosts of 8 GPUs: 2 us inside a host, 22 us across; a host sends 6/4 of 4 MB at 1 GB/s."""
    time = all_reduce_seconds(
        32,
        4_000_000,
        {"name": "ideal", "pattern": "hierarchical", "rounds-of-latency": rounds},
        "1 GB/s",
        "0 s",
        topology={
            "builder": "two-level",
            "hosts": 4,
            "gpus-per-host": 8,
            "inside": {"bandwidth": "1000 GB/s", "latency": "1 us"},
            "network": {"bandwidth": "1 GB/s", "latency": "10 us"},
        },
    )
    assert time == pytest.approx(latency + 0.006, rel=1e-12)


def test_hierarchical_refuses_unequal_hosts() -> None:
    with pytest.raises(ValueError, match="needs the same number of workers on every host") as caught:
        all_reduce_seconds(
            3,
            MIB,
            {"name": "ideal", "pattern": "hierarchical"},
            "1 GB/s",
            "0 s",
            topology={"builder": "two-level", "hosts": 2, "gpus-per-host": 2},
        )
    assert str(caught.value) == (
        "cluster.transport.pattern: the hierarchical pattern needs the same number of workers on every host, "
        "but they have from 1 to 2"
    )


def reduced(schedule: Schedule, workers: int, pieces: int) -> list[list[set[int]]]:
    """Replay how a sum would spread: which ranks' values each rank may hold at the end, at most."""
    held = [[{rank} for _ in range(pieces)] for rank in range(workers)]
    for phase in schedule:
        for _ in range(phase.repeat):
            before = [[set(piece) for piece in own] for own in held]
            for transfer in phase.transfers:
                for piece in range(pieces):
                    held[transfer.destination][piece] |= before[transfer.source][piece]
    return held


def test_a_scenario_may_name_every_pattern() -> None:
    assert get_args(Pattern) == tuple(PATTERNS)


@pytest.mark.parametrize("pattern", FLAT)
@pytest.mark.parametrize("workers", range(1, 18))
def test_every_value_can_reach_every_rank(pattern: str, workers: int) -> None:
    schedule = PATTERNS[pattern]([range(workers)])
    for own in reduced(schedule, workers, 1):
        assert own[0] == set(range(workers))


@given(st.sampled_from(FLAT), st.integers(1, 40))
def test_nobody_sends_to_itself_and_bytes_are_the_least(pattern: str, workers: int) -> None:
    """An all-reduce moves at least 2(n-1) messages in all; ring and trees move exactly that."""
    total = traffic(PATTERNS[pattern]([range(workers)]))
    assert all(source != destination for source, destination in total)
    moved = sum(total.values())
    assert moved >= 2 * (workers - 1) - 1e-9
    if pattern != "halving-doubling" or workers & (workers - 1) == 0:
        assert moved == pytest.approx(2 * (workers - 1), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 6))
def test_hierarchical_reaches_every_rank(hosts: int, local: int) -> None:
    groups = [range(host * local, (host + 1) * local) for host in range(hosts)]
    schedule = PATTERNS["hierarchical"](groups)
    for own in reduced(schedule, hosts * local, 1):
        assert own[0] == set(range(hosts * local))


def test_depth_is_up_and_down_a_tree() -> None:
    assert [depth("all_reduce", n) for n in (1, 2, 3, 4, 5, 8, 9, 1024)] == [0, 2, 4, 4, 6, 6, 8, 20]


MEASURED = [
    (library, machines, setting, size)
    for library, machines, setting, size in itertools.product(
        ("nccl", "gloo"), ("4", "8"), range(3), range(2)
    )
]


@pytest.mark.parametrize(("library", "machines", "setting", "size"), MEASURED)
def test_measured_all_reduce(goldens: Path, library: str, machines: str, setting: int, size: int) -> None:
    """NCCL and Gloo on 4 and 8 machines with shaped links; nothing is fitted to a case."""
    table = json.loads((goldens / "collectives_measured.json").read_text())
    shaped = table["settings"][setting]
    nbytes = table["message_sizes_MiB"][size] * MIB
    time = all_reduce_seconds(
        int(machines),
        nbytes,
        library,
        f"{shaped['bandwidth_bps']} bps",
        f"{shaped['delay_s'] / 2} s",
    )
    tolerance = {"nccl": 0.03, "gloo": 0.06}[library]
    measured = table["allreduce_ms"][machines][library][setting][size]
    assert time * 1e3 == pytest.approx(measured, rel=tolerance)


def per_rank_ends(arrivals: Sequence[float], pipelined: bool) -> list[float]:
    scenario = Scenario(
        {
            "name": "late",
            "cluster": {
                "topology": {"builder": "switch", "gpus": len(arrivals), "link": {"bandwidth": "1 GB/s"}},
                "device": "ideal",
                "transport": {"name": "ideal", "pipelined": pipelined},
                "stragglers": [
                    {"kind": "persistent", "workers": [rank], "slowdown": arrival}
                    for rank, arrival in enumerate(arrivals)
                ],
            },
            "workload": {"cost": {"parameters": 1000, "batch": 1, "gradient": "1 us", "forward-share": 0}},
            "algorithm": {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 1},
        }
    )
    run = simulate(scenario)
    return [max(span.end for span in run.timeline if span.worker == rank) for rank in range(len(arrivals))]


def test_a_late_rank_delays_everyone_and_waiting_names_it() -> None:
    """Stepped, 4 ranks, 1000 B a step of 1 us: rank 2 comes 9 us late; data needs it from then on."""
    assert per_rank_ends([1, 1, 10, 1], pipelined=True) == pytest.approx([16e-6] * 4)
    ends = per_rank_ends([1, 1, 10, 1], pipelined=False)
    # No rank can end before the late rank's chunk has gone round: 2(n-1) steps after its arrival at most.
    assert max(ends) == pytest.approx(16e-6)
    assert min(ends) >= 10e-6 + 3e-6 - 1e-12
