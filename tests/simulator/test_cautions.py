"""What may be meant but brings less than it seems to is said, once, with its figures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from simulator.cautions import cautions, cautions_of_run
from simulator.engine.simulate import simulate
from simulator.run import Run
from simulator.scenario import Scenario
from traces.calibration_files import write_description


def made(workers: int = 4, **changes: Any) -> Scenario:
    return Scenario(
        {
            "name": "cautious",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 8},
                "device": "gtx-1080-ti",
                "workers": workers,
            },
            "workload": {
                "cost": {"model": "mlp-digits", "batch": 8},
                "objective": {"kind": "mlp", "data": "digits"},
            },
            "algorithm": "allreduce-sgd",
            "step-size": 0.1,
            "budget": {"iterations": 100},
            **changes,
        }
    )


def test_a_plain_scenario_has_none() -> None:
    assert cautions(made()) == []
    assert cautions(made(algorithm={"name": "local-sgd", "period": 100})) == []


@pytest.mark.parametrize("name", ["local-sgd", "cocod-sgd", "diloco", "easgd"])
def test_a_period_beyond_the_budget(name: str) -> None:
    long = {"name": name, "period": 101}
    assert cautions(made(algorithm=long)) == [
        "the period of 101 iterations is longer than the budget of 100, so that the workers' models meet "
        "once at most."
    ]
    assert cautions(made(algorithm=long, workers=1)) == []


@pytest.mark.parametrize(
    ("schedule", "sentences"),
    [
        ({"kind": "multi-step", "milestones": [50, 99]}, []),
        (
            {"kind": "multi-step", "milestones": [50, 100]},
            ["the schedule's milestone 100 lies beyond the budget of 100 iterations, without effect."],
        ),
        (
            {"kind": "multi-step", "milestones": [150, 1200]},
            ["the schedule's milestones 150, 1,200 lie beyond the budget of 100 iterations, without effect."],
        ),
        ({"kind": "step", "every": 99}, []),
        (
            {"kind": "step", "every": 60, "warm-up": 40},
            ["the schedule's first drop, after 100 updates, lies beyond the budget of 100 iterations."],
        ),
        (
            {"kind": "constant", "warm-up": 100},
            ["the schedule's warm-up of 100 updates ends beyond the budget of 100 iterations."],
        ),
        ({"kind": "cosine", "span": 1000}, []),
    ],
)
def test_a_schedule_beyond_the_budget(schedule: dict[str, Any], sentences: list[str]) -> None:
    assert cautions(made(update={"rule": "sgd", "schedule": schedule})) == sentences


# 2,410 parameters of 4 bytes are 9.64 kB, and an all-reduce of 4 workers sends 1.5 times as much, 14.46 kB.
CODECS: list[tuple[dict[str, Any], str, int, list[str]]] = [
    ({"codec": "top-k"}, "allreduce-sgd", 4, []),
    ({"codec": "top-k", "density": 0.24}, "allreduce-sgd", 4, []),
    (
        # 723 values and indices are 5.784 kB, which each of three others gets.
        {"codec": "top-k", "density": 0.3},
        "allreduce-sgd",
        4,
        [
            "with top-k a worker sends 17.35 kB for a mean of all 4, 1.2 times the 14.46 kB of an exact "
            "all-reduce."
        ],
    ),
    ({"codec": "top-k", "density": 0.3}, "allreduce-sgd", 1, []),
    ({"codec": "top-k", "density": 0.3}, "a-psgd", 4, []),
    (
        {"codec": "top-k", "density": 0.75},
        "a-psgd",
        4,
        ["with top-k a message takes 14.46 kB, 1.5 times the 9.64 kB of an exact one."],
    ),
    ({"codec": "powersgd", "rank": 1}, "allreduce-sgd", 4, []),
]


@pytest.mark.parametrize(("codec", "algorithm", "workers", "sentences"), CODECS)
def test_a_codec_that_makes_messages_larger(
    codec: dict[str, Any], algorithm: str, workers: int, sentences: list[str]
) -> None:
    assert cautions(made(workers, compression=codec, algorithm=algorithm)) == sentences


def test_a_codec_makes_the_messages_larger_that_are_sent() -> None:
    """They are the cost model's where the objective stands for it, but its own where it is executed alone."""
    # A matrix of 64 x 10 and a vector of 10 in hand, 2,600 B in all; its ten factors take 750 values.
    small = {"kind": "logistic", "data": "digits", "dtype": "float32"}
    workload = {"cost": {"model": "resnet18-cifar", "batch": 8}, "objective": small}
    chosen = made(workload=workload, compression={"codec": "powersgd", "rank": 10})
    larger = "with powersgd a worker sends 4.5 kB for a mean of all 4, 1.15 times the 3.9 kB of an exact "
    assert cautions(chosen) == []
    assert cautions(chosen, real=True) == [f"{larger}all-reduce."]
    assert cautions(chosen.vary(execution={"payload": "cost"}), real=True) == []


def test_what_the_theory_does_not_cover() -> None:
    assert cautions(made(update="momentum", algorithm="cocod-sgd")) == [
        "the theory covers plain SGD, not the update rule 'momentum'."
    ]


@pytest.mark.parametrize(
    ("algorithm", "meets"),
    [
        ("allreduce-sgd", True),
        ({"name": "cocod-sgd", "period": 2}, True),
        ("d-psgd", False),
        ("a-psgd", False),
    ],
)
def test_unequal_shares_where_only_collectives_run(algorithm: Any, meets: bool) -> None:
    unequal = {"cluster.transport": {"name": "gloo", "share-spread": 0.14}}
    chosen = made(algorithm=algorithm).vary(unequal)
    sentence = (
        "cluster.transport.share-spread of 0.14 has no effect, as collectives share links equally and there "
        "are no messages between two workers."
    )
    assert cautions(chosen) == ([sentence] if meets else [])
    # It is a simulation's; alone, a worker shares nothing.
    assert cautions(chosen, real=True) == []
    assert cautions(made(1, algorithm=algorithm).vary(unequal)) == []
    if meets:
        short = chosen.vary({"budget.iterations": 8})
        even = short.vary({"cluster.transport.share-spread": 0.0})
        assert simulate(short).duration == simulate(even).duration


def test_a_seed_of_machines_that_leave_nothing_to_chance() -> None:
    seeded = made(algorithm="d-psgd").vary({"cluster.seed": 3})
    sentence = "cluster.seed of 3 has no effect, as the machines leave nothing to chance."
    assert cautions(seeded) == [sentence]
    slow = {"kind": "persistent", "workers": [0], "slowdown": 2.0}
    assert cautions(seeded.vary(stragglers=[slow])) == [sentence]
    assert cautions(seeded.vary(stragglers=[{"kind": "lognormal", "sigma": 0.1}])) == []
    assert cautions(seeded.vary(stragglers=[{"kind": "bursts", "fast": "1 s", "slow": "1 s"}])) == []
    unequal = seeded.vary({"cluster.transport": {"name": "gloo", "share-spread": 0.14}})
    assert cautions(unequal) == []
    # On the wall clock shares are TCP's own, and stragglers are drawn only where they are injected.
    injected = unequal.vary({"execution.stragglers": "injected"})
    assert (cautions(unequal, real=True), cautions(injected, real=True)) == ([], [sentence])


def test_slow_downs_that_were_measured_with_another_number_of_workers(tmp_path: Path) -> None:
    slow = [
        {"kind": "persistent", "workers": [rank], "slowdown": factor, "measured-with": 4}
        for rank, factor in ((0, 0.9), (3, 1.1))
    ]
    sentence = (
        "the slow-downs of ranks in cluster.stragglers were measured with 4 workers and are used with {}, "
        "whose ranks may be slower or faster."
    )
    four = made(4).vary(stragglers=slow)
    assert cautions(four) == []
    assert cautions(four.vary(workers=2)) == [sentence.format(2)]
    assert cautions(made(8).vary(stragglers=slow)) == [sentence.format(8)]
    # A machine has its own, unless they are injected.
    assert cautions(four.vary(workers=2), real=True) == []
    injected = four.vary(workers=2, execution={"stragglers": "injected"})
    assert cautions(injected, real=True) == [sentence.format(2)]
    # A description is known by its file, and a saved run without it.
    described = {**four.resolved()["cluster"], "workers": 4}
    write_description(tmp_path / "machine.yaml", described, {})
    data = {**four.resolved(), "cluster": {"file": "machine.yaml", "workers": 3}}
    named = Scenario(data, folder=tmp_path)
    assert cautions(named) == cautions(Scenario(named.resolved())) == [sentence.format(3)]
    assert cautions(Scenario({**data, "cluster": "machine.yaml"}, folder=tmp_path)) == []


DATED: list[tuple[str, dict[str, Any], str, str]] = [
    ("stragglers", {"kind": "crash", "workers": [1], "at": "TIME"}, "crash", "at"),
    ("stragglers", {"kind": "crash", "workers": [1], "at": "TIME", "outage": "1 ms"}, "crash", "at"),
    (
        "stragglers",
        {"kind": "slow-link", "between": ["gpu1", "switch"], "start": "TIME"},
        "slow-link",
        "start",
    ),
    (
        "stragglers",
        {"kind": "link-failure", "between": ["gpu1", "switch"], "start": "TIME", "end": "51 s"},
        "link-failure",
        "start",
    ),
    (
        "background",
        {"source": "gpu0", "destination": "gpu1", "rate": "1 GB/s", "start": "TIME"},
        "background traffic",
        "start",
    ),
]


def with_event(key: str, event: dict[str, Any], seconds: float) -> Scenario:
    """A second entry at a time, behind one that says nothing."""
    dated = {name: f"{seconds!r} s" if value == "TIME" else value for name, value in event.items()}
    first = {"kind": "persistent", "slowdown": 1.0} if key == "stragglers" else {**dated, "start": "0 s"}
    return made(budget={"iterations": 4}).vary({f"cluster.{key}": [first, dated]})


@pytest.mark.parametrize(("key", "event", "kind", "name"), DATED)
def test_an_event_after_the_end_of_a_run(key: str, event: dict[str, Any], kind: str, name: str) -> None:
    end = simulate(with_event(key, event, 50.0)).duration
    late = simulate(with_event(key, event, 50.0))
    text = f"{end * 1e6:.4g} us"
    assert cautions_of_run(late) == [
        f"the {kind} at 50 s (cluster.{key}.1.{name}) lies beyond the run's end at {text}, without effect."
    ]
    if event.get("kind") != "crash" or "outage" in event:
        assert cautions_of_run(simulate(with_event(key, event, end / 2))) == []


def test_an_event_at_the_very_end_of_a_run() -> None:
    outage = {"kind": "crash", "workers": [1], "at": "TIME", "outage": "1 ms"}
    end = simulate(with_event("stragglers", outage, 50.0)).duration
    assert len(cautions_of_run(simulate(with_event("stragglers", outage, end)))) == 1
    assert cautions_of_run(simulate(with_event("stragglers", outage, math.nextafter(end, 0)))) == []


def test_an_event_that_an_execution_does_not_have() -> None:
    """Crashes need to be injected, links an emulated network; other traffic there is none."""

    def executed(index: int, emulation: object = None, **execution: str) -> Run:
        chosen = with_event(*DATED[index][:2], 50.0).vary(execution=execution or None)
        run = simulate(chosen)
        return dataclasses.replace(run, clock="wall", emulation=emulation)

    network = {"nodes": 9, "edges": 8, "left_out": []}
    for run in (executed(0), executed(2), executed(3), executed(4), executed(4, network)):
        assert cautions_of_run(run) == []
    for run in (executed(0, stragglers="injected"), executed(2, network), executed(3, network)):
        assert len(cautions_of_run(run)) == 1
