"""How links serve messages: store-and-forward, and collectives at once, as settings of a scenario."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from simulator.engine.clock import Clock
from simulator.engine.network import Network
from simulator.engine.simulate import simulate
from simulator.measurements import Concurrent
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario

STEPPED = {"name": "ideal", "pipelined": False}
WHOLE = {"name": "allreduce-sgd", "overlap": False}
SAF = "store-and-forward"


def scenario(gpus: int = 4, iterations: int = 1, algorithm: object = WHOLE, **cluster: Any) -> Scenario:
    """Gradients of 1 s, then 40 MB over a switch; each way crosses two links of 1 GB/s and 1 ms."""
    return Scenario(
        {
            "name": "networks",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": gpus,
                    "link": {"bandwidth": "1 GB/s", "latency": "1 ms"},
                },
                "device": "ideal",
                "transport": STEPPED,
                **cluster,
            },
            "workload": {
                "cost": {"parameters": 10_000_000, "batch": 1, "gradient": "1 s", "forward-share": 0}
            },
            "algorithm": algorithm,
            "budget": {"iterations": iterations},
        }
    )


def carried(run: Run) -> dict[str, float]:
    assert run.links is not None
    return dict(zip(run.links.name, run.links.carried, strict=True))


def recorded(run: Run) -> dict[str, float]:
    """Return what each link carried as its recorded load says."""
    links = run.links
    assert links is not None
    moved = dict.fromkeys(links.name, 0.0)
    changes = list(zip(links.change_link, links.change_time, links.change_rate, strict=True))
    for (link, time, rate), (next_link, until, _) in itertools.pairwise(changes):
        if link == next_link:
            moved[links.name[link]] += (until - time) * rate
    return moved


# ------------------------------------------------------------------------------------- store-and-forward


@pytest.mark.parametrize("workers", [2, 4, 5])
@pytest.mark.parametrize("chunks", [1, 2, 10])
def test_a_ring_of_messages_that_are_stored_and_forwarded(workers: int, chunks: int) -> None:
    """A step takes two latencies, and the time of a link for all chunks and for one once more."""
    piece = 40e6 / workers
    run = simulate(scenario(workers, network={"name": SAF, "chunk": f"{piece / chunks!r} B"}))
    step = 2e-3 + (chunks + 1) * piece / chunks / 1e9
    assert run.duration == pytest.approx(1 + 2 * (workers - 1) * step, rel=1e-12)
    for moved in (carried(run), recorded(run)):
        assert moved == pytest.approx(dict.fromkeys(moved, 2 * (workers - 1) * piece))


def test_messages_to_one_receiver_wait_for_each_other() -> None:
    """Four workers send 40 MB to each other, in the order of ranks: one after another on each uplink.

    So all that goes to worker 3 is the third of its sender, at the switch after 3 times 40 ms; its downlink
    takes 3 times 40 ms more. That of worker 0 begins after 40 ms already.
    """
    gossip = {"name": "d-psgd", "order": "adapt-then-combine"}
    run = simulate(scenario(4, algorithm=gossip, network=SAF).vary({"gossip": {"graph": "complete"}}))
    assert run.duration == pytest.approx(1 + 2e-3 + 6 * 0.04)
    for moved in (carried(run), recorded(run)):
        assert moved == pytest.approx(dict.fromkeys(moved, 120e6))


def test_time_on_a_link_is_cut_to_whole_nanoseconds_if_asked() -> None:
    """40 MB / 3 at 1 GB/s are 13,333,333.3 ns."""
    cut = simulate(scenario(3, network={"name": SAF, "whole-nanoseconds": True}))
    assert cut.duration == pytest.approx(1 + 4 * 2 * (1e-3 + 0.013333333), rel=1e-14)
    exact = simulate(scenario(3, network=SAF))
    assert exact.duration == pytest.approx(1 + 4 * 2 * (1e-3 + 0.04 / 3), rel=1e-14)
    assert exact.duration != cut.duration


def test_a_transports_latency_factor_and_payload_share_count() -> None:
    transport = {**STEPPED, "latency-factor": 0.5, "payload-share": 0.8, "rendezvous": True}
    run = simulate(scenario(2, transport=transport, network=SAF))
    assert run.duration == pytest.approx(1 + 2 * 2 * (0.5e-3 + 0.025))


def test_workers_on_one_gpu_need_no_link() -> None:
    shared = scenario(2, workers=2, placement=[0, 0], network=SAF)
    assert simulate(shared).duration == 2.0


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"transport": "ideal"},
            "cluster.transport.pipelined: does not go with the network 'store-and-forward', "
            "which has no flow over many links at once",
        ),
        (
            {"transport": {**STEPPED, "segment-size": "1 MB"}},
            "cluster.transport.segment-size: does not go with the network 'store-and-forward', "
            "which cuts by its 'chunk'",
        ),
        (
            {"transport": {**STEPPED, "least-segments": 2}},
            "cluster.transport.least-segments: does not go with the network 'store-and-forward', "
            "which cuts by its 'chunk'",
        ),
        (
            {"transport": {**STEPPED, "half-duplex-pairs": True}},
            "cluster.transport.half-duplex-pairs: does not go with the network 'store-and-forward', "
            "which has no connections, only links",
        ),
        (
            {"transport": {**STEPPED, "share-spread": 0.1}},
            "cluster.transport.share-spread: does not go with the network 'store-and-forward', "
            "which shares no link between flows",
        ),
        ({"transport": "fixed"}, "cluster.network: has no effect; the transport 'fixed' uses no links"),
        (
            {"fairness": "rtt"},
            "cluster.fairness: does not go with the network 'store-and-forward', "
            "which shares no link between flows",
        ),
        (
            {"collectives": "max-plus"},
            "cluster.collectives: does not go with the network 'store-and-forward', "
            "which runs no collective at once",
        ),
        (
            {"background": [{"source": "gpu0", "destination": "gpu1", "rate": "1 GB/s"}]},
            "cluster.background: does not go with the network 'store-and-forward', "
            "which has no endless flows",
        ),
        (
            {"stragglers": [{"kind": "slow-link", "between": ["gpu0", "switch"]}]},
            "cluster.stragglers.0: does not go with the network 'store-and-forward', "
            "which has links of constant capacity",
        ),
        (
            {"stragglers": [{"kind": "link-failure", "between": ["gpu0", "switch"]}]},
            "cluster.stragglers.0: does not go with the network 'store-and-forward', "
            "which has links of constant capacity",
        ),
        ({"network": {"name": SAF, "chunk": "0 B"}}, "cluster.network: chunk must be above 0 B, got 0.0"),
        (
            {"network": {"name": SAF, "chunks": "1 MB"}},
            "cluster.network: unknown key 'chunks'; the nearest is 'chunk'",
        ),
        (
            {"network": "forward"},
            "cluster.network.name: unknown network 'forward'; the nearest is 'store-and-forward'",
        ),
    ],
)
def test_what_store_and_forward_cannot_do_is_refused(cluster: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(**{"network": SAF, **cluster})
    assert str(caught.value) == message


def test_the_keys_are_written_out() -> None:
    cluster = scenario(network={"name": SAF, "chunk": "1 MB"}).resolved()["cluster"]
    assert cluster["network"] == {"name": SAF, "chunk": "1000000.0 B", "whole-nanoseconds": False}
    assert cluster["collectives"] == "flows"
    assert Scenario(scenario(network=SAF).resolved()).resolved() == scenario(network=SAF).resolved()


# --------------------------------------------------------------------------------- collectives at once

SLOW = [{"kind": "lognormal", "sigma": 0.5}]
DISTURBED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a flow": {
        "background": [
            {"source": "gpu0", "destination": "gpu2", "rate": "0.5 GB/s", "start": "1.1 s", "end": "2.5 s"}
        ]
    },
    "a slow link": {
        "stragglers": [
            *SLOW,
            {"kind": "slow-link", "between": ["gpu1", "switch"], "start": "1.01 s", "end": "4 s"},
        ]
    },
    "a failure": {
        "stragglers": [
            *SLOW,
            {"kind": "link-failure", "between": ["gpu1", "switch"], "start": "1.01 s", "end": "4 s"},
        ]
    },
}


@pytest.mark.parametrize("transport", [STEPPED, "gloo", {**STEPPED, "pattern": "halving-doubling"}])
@pytest.mark.parametrize("disturbed", DISTURBED)
def test_collectives_at_once_take_the_time_of_their_flows(transport: object, disturbed: str) -> None:
    cluster = {"transport": transport, "stragglers": SLOW, **DISTURBED[disturbed]}
    flows = simulate(scenario(4, 5, **cluster))
    at_once = scenario(4, 5, collectives="max-plus", **cluster)
    run, blind = simulate(at_once), simulate(at_once, monitor=False)
    ends = [sorted((span.worker, span.end) for span in one.timeline) for one in (flows, run, blind)]
    assert np.array(ends[1]) == pytest.approx(np.array(ends[0]), rel=1e-9)
    assert list(blind.timeline) == list(run.timeline)
    assert carried(run) == carried(blind)
    assert carried(run) == pytest.approx(carried(flows), rel=1e-9)
    assert recorded(run) == pytest.approx(carried(run), rel=1e-9)


def test_collectives_at_once_have_the_textbook_time() -> None:
    run = simulate(scenario(4, 1, collectives="max-plus"))
    assert run.duration == pytest.approx(1 + 6 * (2e-3 + 0.01), rel=1e-12)
    assert run.links is not None
    # One mean load a rank and link, from the call to the end.
    loads = [rate for rate in run.links.change_rate if rate > 0]
    assert loads == pytest.approx([60e6 / 0.072] * 8)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"transport": "nccl"},
            "cluster.collectives: 'max-plus' has no effect; the transport's all-reduces are pipelined, "
            "each one flow",
        ),
        ({"transport": "fixed"}, "cluster.collectives: has no effect; the transport 'fixed' uses no links"),
        (
            {"stragglers": [{"kind": "link-failure", "between": ["gpu1", "switch"], "transfers": "reroute"}]},
            "cluster.collectives: 'max-plus' has no effect; transfers that may be rerouted go one by one",
        ),
        ({"collectives": "fast"}, "cluster.collectives: input should be 'flows' or 'max-plus', got 'fast'"),
    ],
)
def test_max_plus_where_it_has_no_effect_is_refused(cluster: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario(**{"collectives": "max-plus", **cluster})
    assert str(caught.value) == message


# Shares in proportion to 1 / path latency.


@pytest.mark.parametrize("gpus", [4, 16])
def test_a_collective_competes_by_its_longest_path(gpus: int) -> None:
    """Background traffic with a path as long takes half a link, however many links the collective has."""
    busy = {"source": "gpu0", "destination": "gpu1", "rate": "10 GB/s"}
    transport = {"name": "ideal", "latency-factor": 0.0}
    run = simulate(scenario(gpus, transport=transport, fairness="rtt", background=[busy]))
    assert run.duration == pytest.approx(1 + 2 * (gpus - 1) / gpus * 0.04 / 0.5, rel=1e-12)


def test_a_message_competes_with_background_traffic_by_its_path() -> None:
    """Between two hosts, 50 MB go beside background traffic, which comes after 2 ms."""
    link = {"bandwidth": "100 MB/s", "latency": "1 ms"}
    inside = {"bandwidth": "200 MB/s", "latency": "0 s"}
    clock = Clock(fairness="rtt")
    network = Network(
        clock,
        scenario(
            topology={
                "builder": "two-level",
                "hosts": 2,
                "gpus-per-host": 2,
                "network": link,
                "inside": inside,
            },
            transport={"name": "ideal", "latency-factor": 0.0},
            background=[{"source": "host0", "destination": "host1", "rate": "1 GB/s"}],
        ),
    )
    ends: list[float] = []
    network.send(0, 2, 50e6, lambda: ends.append(clock.now))
    clock.run()
    assert ends == [pytest.approx(0.002 + 49.8 / 50, rel=1e-12)]


# Cross-traffic: what a link between switches loses while messages go both ways.


def tree_seconds(algorithm: object, transport: Mapping[str, object]) -> float:
    """Return how long an algorithm takes on two hosts of two workers, with 100 MB/s between the hosts."""
    link = {"bandwidth": "100 MB/s", "latency": "0 s"}
    tree = {"builder": "two-level", "hosts": 2, "gpus-per-host": 2, "network": link}
    tree["inside"] = {**link, "bandwidth": "200 MB/s"}
    return simulate(
        Scenario(
            {
                "name": "tree",
                "cluster": {
                    "topology": tree,
                    "device": "ideal",
                    "transport": {"name": "ideal", "rendezvous": True, **transport},
                },
                "workload": {"cost": {"parameters": 25_000_000, "batch": 1, "gradient": "0 s"}},
                "algorithm": algorithm,
                "budget": {"iterations": 1},
            }
        )
    ).duration


@pytest.mark.parametrize(
    ("arcs", "seconds"),
    [
        (((0, 2),), 1.0),
        (((0, 2), (1, 3)), 2.0),  # one way
        (((0, 2), (2, 0)), 1 / 0.9),
        (((0, 2), (3, 1)), 1 / 0.9),
        (((0, 2), (1, 3), (2, 0), (3, 1)), 2 / (1 - 0.1 / 2**0.5)),
        (((0, 1), (1, 0)), 0.5),  # there is nothing that forwards but one switch
    ],
)
def test_cross_traffic_slows_what_goes_both_ways_between_switches(
    arcs: Sequence[tuple[int, int]], seconds: float
) -> None:
    messages = Concurrent(sets=(tuple(arcs),), sizes=(50_000_000,), repeats=1)  # and once before
    assert tree_seconds(messages, {"cross-traffic": 0.1}) == pytest.approx(seconds, rel=1e-6)


@pytest.mark.parametrize("pipelined", [True, False])
def test_collectives_have_cross_traffic_too(pipelined: bool) -> None:
    """A ring of four in good order sends both ways between the hosts all the time."""
    quiet, loaded = (
        tree_seconds(WHOLE, {"pipelined": pipelined, "cross-traffic": share}) for share in (0.0, 0.1)
    )
    assert quiet == pytest.approx(1.5)  # 2 · 3/4 · 100 MB
    assert loaded == pytest.approx(quiet / 0.9, rel=1e-9)
