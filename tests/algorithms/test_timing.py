"""How long iterations take: closed forms of the card, where a gradient takes a second and passes nothing.

Collectives and messages take given times (`fixed`), so that nothing but the order of things decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from algorithms import Algorithm, Worker
from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario

Timing = Callable[..., Scenario]
T = 12
EXACT = 1e-12


def ends(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return when every worker's gradients ended, [workers, iterations]."""
    own: list[list[float]] = [[] for _ in range(run.workers)]
    for span in run.timeline:
        if span.operation == "gradient":
            own[span.worker].append(span.end)
    return np.array(own)


def paces(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the seconds of each worker's iterations, once it has come into its stride."""
    done = ends(run)
    return (done[:, -1] - done[:, 2]) / (done.shape[1] - 3)


def named(value: object) -> str | None:
    """Return how a test's name shows a value; a formula by its place."""
    return None if callable(value) else str(value)


@pytest.mark.parametrize("all_reduce", [0.5, 3.0, 7.0])
@pytest.mark.parametrize(
    ("name", "settings", "total"),
    [
        ("allreduce-sgd", {"overlap": False}, lambda a: T * (1 + a)),
        ("local-sgd", {"period": 3}, lambda a: T + T / 3 * a),
        ("slowmo", {"period": 3}, lambda a: T + T / 3 * a),
        ("vrl-sgd", {"period": 3}, lambda a: T + T / 3 * a),
        ("diloco", {"period": 3}, lambda a: T + T / 3 * a),
        ("easgd", {"period": 3, "rounds": "synchronous"}, lambda a: T + T / 3 * a),
        ("cocod-sgd", {"period": 3}, lambda a: T / 3 * max(3, a)),
        ("cocod-sgd", {"period": 3, "first-all-reduce": False}, lambda a: 3 + (T / 3 - 1) * max(3, a)),
        # The last average, which nobody needs, is waited for.
        ("overlap-local-sgd", {"period": 3}, lambda a: 3 + (T / 3 - 1) * max(3, a) + a),
        ("pipe-sgd", {"width": 1}, lambda a: T * (1 + a)),
        ("pipe-sgd", {"width": 2}, lambda a: T * max(1, a) + min(1, a)),
        # Reductions of one group follow each other, however many are under way.
        ("pipe-sgd", {"width": 4}, lambda a: T * max(1, a) + min(1, a)),
    ],
    ids=named,
)
def test_all_reduces_wait_or_hide(
    timing: Timing, name: str, settings: Mapping[str, Any], total: Callable[[float], float], all_reduce: float
) -> None:
    scenario = timing(
        {"name": name, **settings},
        workers=4,
        iterations=T,
        all_reduce=all_reduce,
        exchange=0.0,
        stragglers=[],
    )
    assert simulate(scenario).duration == pytest.approx(total(all_reduce), rel=EXACT)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_streaming_diloco_hides_a_fragment_behind_its_delay(timing: Timing, delay: int) -> None:
    """A fragment's all-reduce costs what is left of it after `delay` steps; a merge is at a step's end."""
    settings = {"name": "streaming-diloco", "period": 4, "fragments": 2, "delay": delay}
    scenario = timing(settings, workers=4, iterations=T, all_reduce=1.5, exchange=0.0, stragglers=[])
    waits = max(0.0, 1.5 - delay)
    # Fragments start after every second step. With a delay the last one is awaited after the last step.
    expected = T + 6 * waits if delay == 0 else T + 5 * waits + 1.5
    assert simulate(scenario).duration == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("exchange", [0.4, 1.7])
@pytest.mark.parametrize(
    ("name", "settings", "pace"),
    [
        ("d-psgd", {"order": "combine-then-adapt"}, lambda p: max(1, p)),
        ("d-psgd", {"order": "adapt-then-combine"}, lambda p: 1 + p),
        ("d2", {}, lambda p: 1 + p),
        ("choco-sgd", {}, lambda p: 1 + p),
        ("sgp", {"peers": "one"}, lambda p: 1 + p),
        ("sgp", {"peers": "all"}, lambda p: 1 + p),
        # Of latency tau gradients are hidden: what is sent in iteration t is awaited in t + tau.
        ("sgp", {"delay": 1}, lambda p: max(1, (1 + p) / 2)),
        ("sgp", {"delay": 2}, lambda p: max(1, (1 + p) / 3)),
        ("pair-averaging", {}, lambda p: max(1, 2 * p)),
    ],
    ids=named,
)
def test_gossip_waits_or_hides(
    timing: Timing, name: str, settings: Mapping[str, Any], pace: Callable[[float], float], exchange: float
) -> None:
    scenario = timing(
        {"name": name, **settings},
        workers=4,
        iterations=27,
        all_reduce=0.0,
        exchange=exchange,
        stragglers=[],
    )
    assert paces(simulate(scenario)) == pytest.approx(np.full(4, pace(exchange)), rel=0.03)


@pytest.mark.parametrize("exchange", [0.0, 0.4, 1.7])
def test_servers_cost_a_push_and_a_pull(timing: Timing, exchange: float) -> None:
    def run(settings: Any) -> Run:
        return simulate(
            timing(settings, workers=4, iterations=T, all_reduce=0.0, exchange=exchange, stragglers=[])
        )

    synchronous = run({"name": "parameter-server"})
    np.testing.assert_allclose(paces(synchronous), np.full(4, 1 + 2 * exchange), rtol=1e-12)
    # The asynchronous server's own worker talks to it for nothing.
    alone = run({"name": "a-psgd"})
    np.testing.assert_allclose(paces(alone), [1.0, *[1 + 2 * exchange] * 3], rtol=1e-12)
    # With a server on every worker nobody is spared.
    spread = run({"name": "a-psgd", "servers": 4})
    np.testing.assert_allclose(paces(spread), np.full(4, 1 + 2 * exchange), rtol=1e-12)
    # An elastic visit asks and is answered; what it pushes is on its way during the local steps.
    elastic = run({"name": "easgd", "period": 3})
    np.testing.assert_allclose(paces(elastic), [1.0, *[1 + 2 * exchange / 3] * 3], rtol=0.1)


def limited(algorithm: Any, workers: int, bandwidth: str, iterations: int = 20) -> Run:
    """Run on links where bandwidth alone counts; the model is 1 MB and a gradient takes a second."""
    return simulate(
        Scenario(
            {
                "name": "bandwidth",
                "cluster": {
                    "topology": {
                        "builder": "switch",
                        "gpus": workers,
                        "link": {"bandwidth": bandwidth, "latency": "0 us"},
                    },
                    "device": "ideal",
                    "transport": "ideal",
                },
                "workload": {"cost": {"parameters": 250_000, "batch": 1, "gradient": "1 s"}},
                "algorithm": algorithm,
                "budget": {"iterations": iterations},
            }
        )
    )


def test_a_server_is_bound_by_its_network_card() -> None:
    """n models come in and n go out in every round of equal workers; shards on all of them divide that."""
    run = limited("a-psgd", 9, "2 MB/s")
    # Eight come over the network, half a second each way; the server's own worker has no way to go.
    np.testing.assert_allclose(paces(run)[1:], 1 + 8 * 0.5 + 8 * 0.5, rtol=1e-9)
    spread = limited({"name": "a-psgd", "servers": 9}, 9, "2 MB/s")
    np.testing.assert_allclose(paces(spread), 1 + 2 * (8 / 9) * 0.5, rtol=1e-3)  # slices of 250 000 elements
    uneven = [{"kind": "lognormal", "sigma": 0.7}]
    disturbed = simulate(run.scenario.vary(stragglers=uneven))
    done = np.sort(ends(disturbed)[1:].ravel())
    window = [np.sum((done > start) & (done <= start + 20)) for start in range(0, 120, 10)]
    assert max(window) <= 20 * 2.0 + 8  # B/M a second, and what was under way


def ad_psgd(
    timing: Timing, graph: Any, workers: int, exchange: float, slow: Mapping[int, float] | None = None
) -> Run:
    stragglers = [
        {"kind": "persistent", "workers": [rank], "slowdown": factor} for rank, factor in (slow or {}).items()
    ]
    scenario = timing(
        "local-sgd",
        workers=workers,
        iterations=T,
        all_reduce=0.0,
        exchange=exchange,
        stragglers=stragglers,
    )
    return simulate(scenario.vary(algorithm="ad-psgd", gossip={"graph": graph}))


@pytest.mark.parametrize("exchange", [0.1, 0.3, 0.5, 2.0])
def test_ad_psgd_takes_the_longer_of_gradient_and_averaging(timing: Timing, exchange: float) -> None:
    """A pair alone: an averaging is asked for, granted and made, one message's time each."""
    run = ad_psgd(timing, "complete", 2, exchange)
    starter, answerer = paces(run)
    assert starter == pytest.approx(max(1.0, 3 * exchange), rel=EXACT)
    assert answerer <= max(1.0, 3 * exchange) + EXACT
    assert answerer >= 1.0 - EXACT


@pytest.mark.parametrize("askers", [1, 2, 4])
def test_averagings_with_one_worker_take_turns(timing: Timing, askers: int) -> None:
    """It grants and swaps with one after the other; when it is busy all the time, that is the pace."""
    graph = {"builder": "tests.algorithms.training:complete_bipartite", "left": askers, "right": 1}
    run = ad_psgd(timing, graph, askers + 1, 0.5)
    assert paces(run)[:askers] == pytest.approx(np.full(askers, max(1.5, askers * 1.0)), rel=0.1)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_straggler_delays_nobody_else_in_ad_psgd(timing: Timing, slow: int) -> None:
    """Whether it starts averagings or answers them: the others go on at their own pace."""
    done = ends(ad_psgd(timing, "ring", 8, 0.1, {slow: 10.0}))[:, -1]
    others = np.delete(done, slow)
    assert done[slow] >= 10 * T
    assert others.max() < 1.3 * T
    synchronous = timing("d-psgd", workers=8, iterations=T, all_reduce=0.0, exchange=0.1, stragglers=[])
    dragged = synchronous.vary(stragglers=[{"kind": "persistent", "workers": [slow], "slowdown": 10.0}])
    assert ends(simulate(dragged))[:, -1].min() > 5 * T


def test_a_straggler_delays_nobody_else_at_an_asynchronous_server(timing: Timing) -> None:
    stragglers = [{"kind": "persistent", "workers": [3], "slowdown": 10.0}]
    for name, delayed in (("a-psgd", False), ("pair-averaging", False), ("parameter-server", True)):
        scenario = timing(name, workers=4, iterations=T, all_reduce=0.0, exchange=0.1, stragglers=stragglers)
        done = ends(simulate(scenario))[:3, -1]
        assert (done.max() > 9 * T) == delayed
        assert delayed or done.max() <= 1.2 * T + EXACT


@dataclass(frozen=True)
class TwoTasks(Algorithm):
    """A gradient, and in another task a pass over memory at the same time; a second one follows it."""

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        beside = worker.spawn(self.passes(worker, x))
        await worker.gradient(x)
        await beside
        worker.report(x)

    async def passes(self, worker: Worker, x: Any) -> None:
        first = worker.combine((1.0, x), (1.0, x))
        second = worker.combine((1.0, x), (1.0, x))
        await second
        await first


def test_the_tasks_of_a_worker_share_its_device(timing: Timing) -> None:
    """While both are under way each takes twice as long; the computations of one task take turns."""
    scenario = timing(TwoTasks(), workers=1, iterations=1, all_reduce=0.0, exchange=0.0, stragglers=[])
    cost = {"parameters": 4, "batch": 1, "gradient": "1 s", "update": "0.2 s"}
    spans = simulate(scenario.vary(cost=cost)).timeline.spans
    times = [(span.operation, span.start, span.end) for span in spans]
    assert times == [
        ("combine", 0.0, pytest.approx(0.4)),
        ("combine", pytest.approx(0.4), pytest.approx(0.8)),
        ("gradient", 0.0, pytest.approx(1.4)),
    ]
