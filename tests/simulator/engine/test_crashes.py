"""Workers that stop for a while or for good on the virtual clock, and links that fail meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from algorithms import Algorithm, Worker
from simulator.engine.simulate import simulate
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from traces import COMPUTE


@dataclass(frozen=True)
class Alone(Algorithm):
    """Nothing but gradients."""

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
        worker.report(x)


SWITCH = {"builder": "switch", "gpus": 2, "link": {"bandwidth": "1 MB/s", "latency": "0 s"}}


def scenario(stragglers: list[dict[str, Any]], algorithm: Any = None, **cluster: Any) -> Scenario:
    """Three iterations of 1 s of computation and, on an ideal ring of two, 4 s of communication."""
    return Scenario(
        {
            "name": "crashes",
            "cluster": {
                "topology": SWITCH,
                "device": "ideal",
                "transport": "ideal",
                "stragglers": stragglers,
                **cluster,
            },
            "workload": {"cost": {"parameters": 1_000_000, "batch": 1, "gradient": "1 s"}},
            "algorithm": algorithm or {"name": "allreduce-sgd", "overlap": False},
            "budget": {"iterations": 3},
        }
    )


def outage(at: str, lasts: str, workers: list[int] | None = None) -> dict[str, Any]:
    named = {} if workers is None else {"workers": workers}
    return {"kind": "crash", "at": at, "outage": lasts, **named}


def gradients(run: Run, worker: int) -> list[tuple[float, float]]:
    return [
        (span.start, span.end)
        for span in run.timeline
        if span.worker == worker and span.kind == COMPUTE and span.operation == "gradient"
    ]


def test_a_computation_waits_for_its_worker() -> None:
    run = simulate(scenario([outage("0.25 s", "2 s", [1])], Alone()))
    assert gradients(run, 0) == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    assert gradients(run, 1) == [(0.0, 3.0), (3.0, 4.0), (4.0, 5.0)]


@pytest.mark.parametrize(
    "cluster",
    [
        {"transport": "ideal"},
        {"transport": {"name": "ideal", "pipelined": False}},
        {"transport": {"name": "ideal", "pipelined": False}, "collectives": "max-plus"},
        {"transport": "nccl"},
        {"transport": "gloo"},
    ],
    ids=lambda cluster: str(cluster["transport"]) + cluster.get("collectives", ""),
)
@pytest.mark.parametrize("workers", [[0], [0, 1]])
def test_messages_wait_for_their_workers(cluster: dict[str, Any], workers: list[int]) -> None:
    """In the middle of the first all-reduce everything stands still for the outage, and no longer."""
    undisturbed = simulate(scenario([], **cluster)).duration
    run = simulate(scenario([outage("2 s", "3 s", workers)], **cluster))
    assert run.duration == pytest.approx(undisturbed + 3.0, rel=1e-9)


def test_exchanges_wait_too() -> None:
    ring = {**SWITCH, "gpus": 4}
    alone = scenario([], "d-psgd", topology=ring)
    disturbed = scenario([outage("2 s", "3 s", [2])], "d-psgd", topology=ring)
    assert simulate(disturbed).duration == pytest.approx(simulate(alone).duration + 3.0)


def test_outages_that_overlap_are_one() -> None:
    both = [outage("0.25 s", "2 s", [1]), outage("1.25 s", "2 s", [1])]
    run = simulate(scenario(both, Alone()))
    assert gradients(run, 1)[0] == (0.0, 4.0)


STEPPED = {"name": "ideal", "pipelined": False}


@pytest.mark.parametrize(
    ("algorithm", "cluster"),
    [
        ({"name": "d-psgd", "order": "adapt-then-combine"}, {}),
        (None, {}),
        (None, {"transport": STEPPED}),
        (None, {"transport": STEPPED, "collectives": "max-plus"}),
    ],
    ids=["messages", "pipelined", "stepped", "max-plus"],
)
def test_workers_on_one_gpu_wait_too(algorithm: Any, cluster: dict[str, Any]) -> None:
    """Worker 1 has its gradient at 2 s, worker 0 at 4 s; what they then exchange takes no time."""
    cluster = {"workers": 2, "placement": [0, 0], **cluster}
    slow = {"kind": "persistent", "workers": [0], "slowdown": 3.0}

    def duration(*stragglers: dict[str, Any]) -> float:
        whole = scenario([slow, *stragglers], algorithm, **cluster)
        return simulate(whole.vary({"budget.iterations": 1})).duration

    assert duration() == duration(outage("1000 s", "1 s")) == 4.0
    assert duration(outage("3 s", "5 s", [1])) == 8.0


def test_a_link_that_may_matter_changes_nothing_while_it_has_not_failed() -> None:
    late = simulate(scenario([outage("1000 s", "1 s")], "d-psgd"))
    assert late.duration == pytest.approx(simulate(scenario([], "d-psgd")).duration, rel=1e-12)


def test_a_crash_for_good_ends_the_run() -> None:
    with pytest.raises(WorkerFailed) as caught:
        simulate(scenario([{"kind": "crash", "at": "5.5 s", "workers": [1]}]))
    assert str(caught.value) == "worker 1 failed in iteration 2: it crashed at 5.5 s, as the scenario says"


def test_a_worker_whose_work_is_done_does_not_crash() -> None:
    """Worker 1 ends at 3 s, worker 0 at 6 s."""
    slow = {"kind": "persistent", "workers": [0], "slowdown": 2.0}

    def crash(worker: int) -> Scenario:
        return scenario([slow, {"kind": "crash", "at": "4 s", "workers": [worker]}], Alone())

    assert simulate(crash(1)).duration == 6.0
    with pytest.raises(WorkerFailed) as caught:
        simulate(crash(0))
    assert str(caught.value) == "worker 0 failed in iteration 2: it crashed at 4 s, as the scenario says"


def test_bursts_go_on_in_an_outage() -> None:
    """The device's own changes and the worker's absence do not mix: work done is work done."""
    bursts = {"kind": "bursts", "fast": "0.4 s", "slow": "0.3 s", "slowdown": 4.0, "workers": [1]}
    alone, both = (
        simulate(scenario([bursts, *more], Alone())) for more in ([], [outage("0.5 s", "5 s", [1])])
    )
    assert both.duration > 5.0
    assert both.duration != pytest.approx(alone.duration + 5.0)


def test_bursts_do_not_go_on_for_ever_where_a_link_has_failed_for_good() -> None:
    failing = {"kind": "link-failure", "between": ["gpu0", "switch"], "start": "2 s"}
    with pytest.raises(AlgorithmError, match=r"gpu0->switch failed and does not come back|switch->gpu0"):
        simulate(scenario([failing, {"kind": "bursts"}, outage("1 s", "2 s", [1])]))


def test_a_link_that_becomes_slow_while_it_has_failed_stays_failed() -> None:
    failing = {"kind": "link-failure", "between": ["gpu0", "switch"], "start": "2 s", "end": "4 s"}
    slow = {"kind": "slow-link", "between": ["gpu0", "switch"], "start": "3 s", "end": "3.5 s"}
    failed = simulate(scenario([failing])).duration
    assert failed == pytest.approx(simulate(scenario([])).duration + 2.0)
    assert simulate(scenario([failing, slow])).duration == pytest.approx(failed)


@pytest.mark.parametrize(
    ("straggler", "cluster", "problem"),
    [
        ({"kind": "crash"}, {}, "cluster.stragglers.0.at: "),
        ({"kind": "crash", "at": "-1 s"}, {}, "at must be 0 s or later and finite, got -1.0"),
        (outage("1 s", "0 s"), {}, "outage must be above 0 s, got 0.0"),
        (outage("1 s", "1 s", [2]), {}, "cluster.stragglers.0.workers: there is no worker 2; the last is 1"),
        (
            outage("1 s", "1 s"),
            {"transport": "fixed"},
            "cluster.stragglers.0.outage: an outage holds up messages, which those of the transport 'fixed' "
            "take no notice of",
        ),
        (
            outage("1 s", "1 s"),
            {"network": "store-and-forward", "transport": {"name": "ideal", "pipelined": False}},
            "cluster.stragglers.0: does not go with the network 'store-and-forward', which has links of "
            "constant capacity",
        ),
    ],
)
def test_what_is_refused(straggler: dict[str, Any], cluster: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        scenario([straggler], **cluster)
    assert problem in str(caught.value)


def test_a_crash_at_the_moment_that_the_run_ends() -> None:
    """Both are due at 3 s; the crash was due first, and the run's end does not come on top of it."""
    with pytest.raises(WorkerFailed) as caught:
        simulate(scenario([{"kind": "crash", "at": "3 s", "workers": [1]}], Alone()))
    assert str(caught.value) == "worker 1 failed in iteration 3: it crashed at 3 s, as the scenario says"
