"""Stragglers have the distribution they promise, and change the predicted time in the right direction."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.engine.clock import Clock
from simulator.engine.network import Network
from simulator.engine.simulate import simulate
from simulator.faults import AlgorithmError
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.stragglers import (
    GammaJitter,
    LognormalJitter,
    ParetoJitter,
    ShiftedExponentialJitter,
    Straggler,
)

DRAWS = 40_000


@pytest.mark.parametrize(
    ("straggler", "deviation"),
    [
        (LognormalJitter(sigma=0.3), float(np.sqrt(np.exp(0.09) - 1))),
        (GammaJitter(variation=0.4), 0.4),
        (ShiftedExponentialJitter(shift=0.9, mean=0.1), 0.1),
        (ParetoJitter(alpha=5.0), 1 / np.sqrt(5 * 3)),
    ],
)
def test_factors_have_mean_one_and_the_stated_spread(straggler: Straggler, deviation: float) -> None:
    draw = straggler.step_factor(np.random.default_rng(7))
    assert draw is not None
    factors = np.array([draw() for _ in range(DRAWS)])
    error = deviation / np.sqrt(DRAWS)
    assert abs(factors.mean() - 1) < 5 * error
    assert factors.std() == pytest.approx(deviation, rel=0.15)
    assert factors.min() > 0


def duration(
    stragglers: list[dict[str, object]], dotted: dict[str, object] | None = None, **changes: object
) -> float:
    scenario = Scenario(
        {
            "name": "stragglers",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": 4,
                    "link": {"bandwidth": "1 GB/s", "latency": "10 us"},
                },
                "device": "ideal",
                "transport": "ideal",
                "stragglers": stragglers,
            },
            "workload": {"cost": {"parameters": 25_000_000, "batch": 1, "gradient": "100 ms"}},
            "algorithm": {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 20},
        }
    )
    return simulate(scenario.vary(dotted, **changes)).duration


def test_one_slow_worker_slows_everyone() -> None:
    # 20 iterations of 0.1 s, and of an all-reduce of 1.5 * 100 MB at 1 GB/s with 6 latencies of 20 us.
    plain = 20 * (0.1 + 0.15 + 6 * 20e-6)
    assert duration([]) == pytest.approx(plain)
    assert duration([{"kind": "persistent", "workers": [2], "slowdown": 1.5}]) == pytest.approx(
        plain + 20 * 0.05
    )
    both = [{"kind": "persistent", "workers": [2], "slowdown": 1.5}, {"kind": "persistent", "slowdown": 2.0}]
    assert duration(both) == pytest.approx(plain + 20 * 0.2)


def test_a_slow_link_slows_while_it_lasts() -> None:
    link = {"kind": "slow-link", "between": ["gpu1", "switch"], "factor": 0.5}
    assert duration([link]) == pytest.approx(20 * (0.1 + 0.3 + 6 * 20e-6))
    # Half a second at half speed: what was not carried then is carried later, at full speed.
    short = duration([{**link, "start": "0.1 s", "end": "0.2 s"}])
    assert short == pytest.approx(duration([]) + 0.05 - 6 * 10e-6, abs=1e-4)


def test_bursts_slow_by_the_time_they_last() -> None:
    always = duration([{"kind": "bursts", "workers": [0], "fast": "1 ns", "slow": "1000 s", "slowdown": 2.0}])
    assert always == pytest.approx(20 * (0.2 + 0.15 + 6 * 20e-6), rel=1e-6)
    some = duration([{"kind": "bursts", "workers": [0], "fast": "1 s", "slow": "1 s", "slowdown": 2.0}])
    assert duration([]) < some < always


def test_background_traffic_takes_its_share() -> None:
    busy = {"source": "gpu0", "destination": "gpu1", "rate": "0.4 GB/s"}
    assert duration([], background=[busy]) == pytest.approx(20 * (0.1 + 0.15 / 0.6 + 6 * 20e-6))
    greedy = {**busy, "rate": "100 GB/s"}
    assert duration([], background=[greedy]) == pytest.approx(20 * (0.1 + 0.3 + 6 * 20e-6))
    passing = {**greedy, "start": "0.1 s", "end": "0.2 s"}
    assert duration([]) < duration([], background=[passing]) < duration([]) + 0.06


def test_two_workers_on_one_gpu_share_it() -> None:
    assert duration([], placement=[0, 0, 1, 2]) > duration([]) + 20 * 0.1 * 0.9


def test_adding_a_straggler_leaves_the_draws_of_another_alone() -> None:
    jitter: dict[str, object] = {"kind": "lognormal", "sigma": 0.2}
    one = duration([jitter])
    other: dict[str, object] = {"kind": "persistent", "workers": [0], "slowdown": 1.0}
    assert duration([jitter, other]) == duration([other, jitter]) == one


def test_equal_stragglers_draw_independently() -> None:
    jitter: dict[str, object] = {"kind": "lognormal", "sigma": 0.2}
    assert duration([jitter, jitter]) != duration([jitter])


JITTER: list[dict[str, object]] = [{"kind": "lognormal", "sigma": 0.3}]
BURSTS: list[dict[str, object]] = [
    {"kind": "bursts", "fast": "100 ms", "slow": "50 ms", "slowdown": 2.0, "workers": [0]}
]


@pytest.mark.parametrize("stragglers", [JITTER, BURSTS])
def test_the_machines_may_have_a_seed_of_their_own(stragglers: list[dict[str, object]]) -> None:
    own = duration(stragglers, {"cluster.seed": 5})
    assert own == duration(stragglers, {"cluster.seed": 5}, seed=1) == duration(stragglers, seed=5)
    assert own != duration(stragglers)


def test_the_seed_of_the_machines_leaves_the_algorithm_alone() -> None:
    objective = {"kind": "quadratic", "dimension": 4, "sigma2": 1.0}
    scenario = Scenario(
        {
            "name": "seeds",
            "cluster": {
                "topology": {"builder": "complete", "nodes": 4},
                "device": "ideal",
                "transport": "ideal",
                "stragglers": JITTER,
            },
            "workload": {"cost": {"parameters": 4, "batch": 1, "gradient": "1 s"}, "objective": objective},
            # It draws its numbers for the codec, and its samples.
            "algorithm": "allreduce-sgd",
            "compression": {"codec": "qsgd"},
            "step-size": 0.1,
            "budget": {"iterations": 5},
        }
    )
    runs = [simulate(scenario.vary({"cluster.seed": seed})) for seed in (0, 1)]
    assert runs[0].duration != runs[1].duration
    (first, second) = (run.models for run in runs)
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)


def test_bursts_on_a_shared_gpu_come_once() -> None:
    always = {"kind": "bursts", "fast": "1 ns", "slow": "1000 s", "slowdown": 2.0}
    shared = duration([always], placement=[0, 0, 1, 2])
    assert shared == pytest.approx(duration([], placement=[0, 0, 1, 2]) + 20 * 0.2, rel=1e-3)


def exchange_duration(transport: object, stragglers: list[dict[str, object]], algorithm: object) -> float:
    scenario = Scenario(
        {
            "name": "exchange",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": 2,
                    "link": {"bandwidth": "1 GB/s", "latency": "5 ms"},
                },
                "device": "ideal",
                "transport": transport,
                "stragglers": stragglers,
            },
            "workload": {
                "cost": {"parameters": 25_000_000, "batch": 1, "gradient": "1 s", "forward-share": 0}
            },
            "algorithm": algorithm,
            "budget": {"iterations": 1},
        }
    )
    return simulate(scenario).duration


ADAPT_FIRST = {"name": "d-psgd", "order": "adapt-then-combine"}


def test_an_exchange_over_one_connection_takes_both_directions_in_turn() -> None:
    # 100 MB each way, one connection: 200 MB at 1 GB/s; one latency of two links.
    gloo = {"name": "gloo", "payload-share": 1.0, "latency-factor": 1.0}
    assert exchange_duration(gloo, [], ADAPT_FIRST) == pytest.approx(1 + 0.1 + 0.01)
    half = {**gloo, "half-duplex-pairs": True}
    assert exchange_duration(half, [], ADAPT_FIRST) == pytest.approx(1 + 0.2 + 0.01)


def test_a_passing_slow_link_does_not_slow_a_connection_for_ever() -> None:
    gloo = {"name": "gloo", "payload-share": 1.0, "latency-factor": 1.0, "half-duplex-pairs": True}
    slow: dict[str, object] = {"kind": "slow-link", "between": ["gpu0", "switch"], "factor": 0.1}
    # From 1.01 s to 1.11 s the link carries 10 MB each way; the 180 MB left take 0.18 s of the connection.
    passing = {**slow, "start": "0.5 s", "end": "1.11 s"}
    assert exchange_duration(gloo, [passing], ADAPT_FIRST) == pytest.approx(1.11 + 0.18)


def first_of_two(spread: float, seed: int) -> float:
    """Return when the first of two messages of 100 MB arrives that share a link of 1 GB/s."""
    scenario = Scenario(
        {
            "name": "shares",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": 3,
                    "link": {"bandwidth": "1 GB/s", "latency": "0 s"},
                },
                "device": "ideal",
                "transport": {"name": "ideal", "share-spread": spread},
            },
            "workload": {"cost": {"parameters": 25_000_000, "batch": 1, "gradient": "1 s", "update": "1 s"}},
            "algorithm": "allreduce-sgd",
            "budget": {"iterations": 1},
            "seed": seed,
        }
    )
    clock = Clock()
    network = Network(clock, scenario)
    ends: list[float] = []
    for source in (1, 2):
        network.send(source, 0, 100e6, lambda: ends.append(clock.now))
    clock.run()
    assert ends[1] == pytest.approx(0.2)
    return ends[0]


def test_messages_share_a_link_as_unequally_as_the_transport_says() -> None:
    assert first_of_two(0.0, seed=1) == pytest.approx(0.2)
    # With weights of the ratio r > 1 the first has had r / (1 + r) of the link, till 0.1 (1 + 1 / r).
    ratios = [1 / (first_of_two(0.14, seed) / 0.1 - 1) for seed in range(300)]
    assert min(ratios) > 1
    spread = np.sqrt(np.mean(np.log(ratios) ** 2) / 2)
    assert spread == pytest.approx(0.14, rel=0.1)


def test_rendezvous_waits_for_the_receiver() -> None:
    """A directed ring with a slow worker: what it is sent has arrived before it calls, or starts then."""
    times = {}
    for rendezvous in (False, True):
        scenario = Scenario(
            {
                "name": "rendezvous",
                "cluster": {
                    "topology": {"builder": "switch", "gpus": 3, "link": {"bandwidth": "1 GB/s"}},
                    "device": "ideal",
                    "transport": {"name": "ideal", "rendezvous": rendezvous},
                    "stragglers": [{"kind": "persistent", "workers": [2], "slowdown": 1.5}],
                },
                "workload": {
                    "cost": {"parameters": 25_000_000, "batch": 1, "gradient": "1 s", "forward-share": 0}
                },
                "algorithm": ADAPT_FIRST,
                "gossip": {"graph": {"builder": "one-peer-exponential", "phase": 0}},
                "budget": {"iterations": 2},
            }
        )
        times[rendezvous] = simulate(scenario).duration
    # Eager, worker 2 goes on at 1.5 s, and what it sends at 3.0 s takes 0.1 s. With rendezvous it receives
    # until 1.6 s, so all of that is 0.1 s later.
    assert times == {False: pytest.approx(3.1), True: pytest.approx(3.2)}


def failing(transfers: str, end: str | None, algorithm: object, transport: object = "ideal") -> Scenario:
    """Two neighbours on a ring of four GPUs, whose edge fails when half of 100 MB have passed it."""
    failure = {"kind": "link-failure", "between": [0, 1], "start": "1.05 s", "transfers": transfers}
    return Scenario(
        {
            "name": "failing",
            "cluster": {
                "topology": {
                    "builder": "ring",
                    "nodes": 4,
                    "link": {"bandwidth": "1 GB/s", "latency": "0 s"},
                },
                "device": "ideal",
                "workers": 2,
                "transport": transport,
                "stragglers": [{**failure, "end": end} if end else failure],
            },
            "workload": {
                "cost": {"parameters": 25_000_000, "batch": 1, "gradient": "1 s", "forward-share": 0}
            },
            "algorithm": algorithm,
            "budget": {"iterations": 1},
        }
    )


WHOLE = {"name": "allreduce-sgd", "overlap": False}


@pytest.mark.parametrize("algorithm", [WHOLE, ADAPT_FIRST])
def test_a_failed_link_stalls_its_transfers_until_it_is_back(algorithm: object) -> None:
    assert simulate(failing("stall", "2.05 s", algorithm)).duration == pytest.approx(2.1)


@pytest.mark.parametrize("algorithm", [WHOLE, ADAPT_FIRST])
def test_transfers_are_rerouted_around_a_failed_link(algorithm: object) -> None:
    """The other way round the ring is as fast, so that nothing is lost but the way."""
    run = simulate(failing("reroute", None, algorithm))
    assert run.duration == pytest.approx(1.1)
    assert run.links is not None
    carried = dict(zip(run.links.name, run.links.carried, strict=True))
    assert carried["0->1"] == pytest.approx(50e6)
    assert carried["0->3"] == carried["3->2"] == carried["2->1"] == pytest.approx(50e6)


def test_a_link_that_is_back_is_used_again() -> None:
    scenario = failing("reroute", "1.08 s", WHOLE)
    run = simulate(scenario)
    assert run.links is not None
    carried = dict(zip(run.links.name, run.links.carried, strict=True))
    assert (carried["0->1"], carried["0->3"]) == (pytest.approx(70e6), pytest.approx(30e6))


def test_a_transfer_that_waits_for_ever_is_reported_with_its_route() -> None:
    with pytest.raises(AlgorithmError) as caught:
        simulate(failing("stall", None, ADAPT_FIRST))
    assert str(caught.value) == (
        "the run cannot go on after 1.05 s: a transfer over 0->1 can never finish; "
        "0->1 failed and does not come back"
    )


STEPPED = {"name": "ideal", "pipelined": False}


def test_the_transfers_of_a_stepped_all_reduce_are_rerouted_too() -> None:
    """Two steps of 50 MB; the edge fails in the middle of the first."""
    scenario = failing("reroute", None, WHOLE, STEPPED).vary({"cluster.stragglers.0.start": "1.025 s"})
    run = simulate(scenario)
    assert run.duration == pytest.approx(1.1)
    assert run.links is not None
    carried = dict(zip(run.links.name, run.links.carried, strict=True))
    assert carried["0->1"] == carried["1->0"] == pytest.approx(25e6)
    assert carried["0->3"] == carried["3->2"] == carried["2->1"] == pytest.approx(75e6)


@pytest.mark.parametrize("transport", [STEPPED, "gloo", {"name": "gloo", "pattern": "halving-doubling"}])
def test_a_stepped_all_reduce_takes_the_same_time_where_it_may_be_rerouted(transport: object) -> None:
    scenario = failing("reroute", None, WHOLE, transport).vary(
        {
            "cluster.stragglers.0.start": "100 s",
            "cluster.workers": 4,
            "cluster.topology.link.latency": "1 ms",
            "budget.iterations": 3,
        }
    )
    slow = [{"kind": "lognormal", "sigma": 0.5}]
    whole = scenario.vary({"cluster.stragglers": slow})
    failing_later = scenario.vary({"cluster.stragglers": [*slow, scenario.stragglers[0]]})
    assert simulate(failing_later).duration == pytest.approx(simulate(whole).duration, rel=1e-12)


SUMMED = {**STEPPED, "handling-rate": "1 GB/s"}


@pytest.mark.parametrize(
    ("algorithm", "transport", "start", "end"),
    [
        # Two rounds of 10 ms before 100 MB: the edge fails meanwhile, or when 30 MB have passed it.
        (WHOLE, "ideal", "1.004 s", 1.12),
        (WHOLE, "ideal", "1.05 s", 1.12),
        # 10 ms before 100 MB.
        (ADAPT_FIRST, "ideal", "1.004 s", 1.11),
        (ADAPT_FIRST, "ideal", "1.05 s", 1.11),
        # 10 ms and 50 ms before 50 MB; then, all on the detour, 30 ms and 50 ms before as many.
        (WHOLE, SUMMED, "1.05 s", 1.24),
        (WHOLE, SUMMED, "1.08 s", 1.24),
    ],
)
def test_what_is_rerouted_pays_its_latency_once(
    algorithm: object, transport: object, start: str, end: float
) -> None:
    changes = {"cluster.stragglers.0.start": start, "cluster.topology.link.latency": "10 ms"}
    run = simulate(failing("reroute", None, algorithm, transport).vary(changes))
    assert run.duration == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "duration"),
    [
        # Half of what the two send each other has passed the edge, and the rest goes by the detour.
        ("1.1 s", None, 1.1 + 0.1 / 0.25),
        # Half of it has gone by the detour when the edge is back.
        ("0.5 s", "1.4 s", 1.4 + 0.1),
    ],
)
def test_a_connection_is_as_fast_as_its_present_path(start: str, end: str | None, duration: float) -> None:
    topology = {
        "nodes": [{"name": 0, "kind": "gpu"}, {"name": 1, "kind": "gpu"}, {"name": 2, "kind": "switch"}],
        "edges": [
            {"between": [0, 1], "bandwidth": "1 GB/s"},
            {"between": [0, 2], "bandwidth": "0.25 GB/s"},
            {"between": [1, 2], "bandwidth": "0.25 GB/s"},
        ],
    }
    scenario = failing("reroute", end, ADAPT_FIRST, {"name": "ideal", "half-duplex-pairs": True})
    changed = scenario.vary({"cluster.topology": topology, "cluster.stragglers.0.start": start})
    assert simulate(changed).duration == pytest.approx(duration, rel=1e-12)


@pytest.mark.parametrize(
    ("background", "duration"),
    [
        # From the failure on, 60 MB are left to send beside the background.
        ({}, 1.05 + 0.12),
        # It ends when 25 MB of these have passed.
        ({"end": "1.1 s"}, 1.1 + 0.035),
        # It has half of its latency to wait when the edge fails: 5 MB more pass alone.
        ({"start": "1.045 s"}, 1.055 + 0.11),
    ],
)
def test_background_traffic_is_rerouted_too(background: dict[str, object], duration: float) -> None:
    """It comes from beside the two workers, whose edge is part of its detour."""
    scenario = failing("reroute", None, ADAPT_FIRST).vary(
        {
            "cluster.topology.link.latency": "10 ms",
            "cluster.placement": [3, 2],
            "cluster.background": [{"source": 0, "destination": 1, "rate": "10 GB/s", **background}],
        }
    )
    assert simulate(scenario).duration == pytest.approx(duration, rel=1e-12)


def test_a_failing_link_needs_links() -> None:
    with pytest.raises(BadInput) as caught:
        failing("stall", None, WHOLE, "fixed")
    assert str(caught.value) == "cluster.stragglers.0: has no effect; the transport 'fixed' uses no links"
