"""A run is the same on every repetition, on disk and in memory, and answers to its scenario."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator import observation
from simulator.engine.simulate import simulate
from simulator.observation import Observer, Pace, Samples
from simulator.parts import BadInput
from simulator.run import Run, whole_folder
from simulator.scenario import Scenario
from simulator.target import Target, first_stay
from traces import Span, Timeline

SMALL: dict[str, Any] = {
    "name": "small",
    "cluster": {
        "topology": {
            "builder": "two-level",
            "hosts": 2,
            "gpus-per-host": 2,
            "inside": {"bandwidth": "12 GB/s", "latency": "5 us"},
            "network": {"bandwidth": "10 Gbps", "latency": "20 us"},
        },
        "device": "gtx-1080-ti",
        "stragglers": [{"kind": "lognormal", "sigma": 0.2}],
    },
    "workload": {
        "cost": {"model": "mlp-digits", "batch": 8},
        "objective": {"kind": "quadratic", "dimension": 10, "sigma2": 0.01},
    },
    "algorithm": {"name": "cocod-sgd", "period": 2},
    "compare": ["d-psgd", "allreduce-sgd", {"name": "local-sgd", "period": 2}],
    "step-size": 0.2,
    "budget": {"iterations": 40},
    "target": {"loss": 0.5},
    "seed": 5,
}


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(Scenario(SMALL))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "provenance.json"
    }


def test_saved_and_loaded_runs_are_equal(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path / "one", elapsed=1.0)
    loaded = Run.load(tmp_path / "one")
    loaded.save(tmp_path / "two", elapsed=2.0)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert loaded.summary() == run.summary()
    assert loaded.timeline.spans == run.timeline.spans
    assert loaded.links == run.links
    assert loaded.models is not None
    assert run.models is not None
    assert loaded.models.tobytes() == run.models.tobytes()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


SAVE = """
import json, sys
from pathlib import Path
from simulator.engine.simulate import simulate
from simulator.scenario import Scenario
for number, variant in enumerate(Scenario(json.loads(sys.argv[1])).variants()):
    simulate(variant).save(Path(sys.argv[2]) / str(number))
"""


def test_the_same_scenario_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for hash_seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", SAVE, json.dumps(SMALL), str(tmp_path / hash_seed)],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            check=True,
        )
    for number in range(4):
        assert contents(tmp_path / "1" / str(number)) == contents(tmp_path / "2" / str(number))


def test_another_seed_gives_another_run(run: Run) -> None:
    other = simulate(Scenario(SMALL).vary(seed=6))
    assert other.models is not None
    assert run.models is not None
    assert not np.array_equal(other.models, run.models)


def test_what_a_run_holds(run: Run) -> None:
    assert run.workers == 4
    assert run.iterations == (40,) * 4
    assert len(run.samples) == 20
    assert run.samples.iteration[-1] == 40
    assert run.samples.loss[-1] < run.samples.loss[0]
    assert run.models is not None
    assert run.models.shape == (4, 10)
    shares = run.time_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in shares.values())
    # A ring sends 2 (n-1)/n of the model once per round of two iterations.
    expected = 20 * 2 * 3 / 4 * 2410 * 4
    assert run.bytes_sent == pytest.approx((expected,) * 4)
    assert run.links is not None
    assert sum(run.links.carried) > 0
    assert max(run.links.change_rate) <= max(run.links.capacity) * (1 + 1e-9)


def test_links_carry_what_the_workers_send(run: Run) -> None:
    """Only the ring's edges between hosts cross the switch: two of four, in each direction once."""
    assert run.links is not None
    carried = dict(zip(run.links.name, run.links.carried, strict=True))
    payload = run.bytes_sent[0] / 0.992
    for name, nbytes in carried.items():
        assert nbytes == pytest.approx(payload, rel=1e-9), name


@pytest.mark.parametrize(
    "algorithm", ["cocod-sgd", "allreduce-sgd", {"name": "local-sgd", "period": 2}, "d-psgd"]
)
def test_worse_machines_take_longer(algorithm: object) -> None:
    """Halve a bandwidth, double a latency, slow a device: the predicted time must rise."""
    base = Scenario({**SMALL, "algorithm": algorithm, "compare": []})
    # Communication must matter for a change of it to show behind the overlap.
    base = base.vary({"cluster.topology.network.bandwidth": "0.02 Gbps"})
    time = simulate(base).duration
    worse = [
        {"cluster.topology.network.bandwidth": "0.01 Gbps"},
        {"cluster.topology.network.latency": "40 us"},
        {"cluster.topology.network.efficiency": 0.5},
        {"cluster.transport": {"name": "nccl", "payload-share": 0.5}},
    ]
    for change in worse:
        assert simulate(base.vary(change)).duration > time, change
    fast = base.vary({"cluster.topology.network.bandwidth": "100 Gbps"})
    time = simulate(fast).duration
    for change in ({"efficiency": 0.0001}, {"launch-overhead": "1 ms"}, {"memory-bandwidth": "1 MB/s"}):
        assert simulate(fast.vary(device={"name": "gtx-1080-ti", **change})).duration > time, change


def test_more_bandwidth_never_hurts_and_monitoring_changes_nothing() -> None:
    base = Scenario(SMALL)
    fast = simulate(base.vary({"cluster.topology.network.bandwidth": "100 Gbps"}))
    assert fast.duration <= simulate(base).duration
    blind = simulate(base, monitor=False)
    assert blind.duration == simulate(base).duration
    assert blind.links is not None
    assert blind.links.change_time == []


def test_a_run_stops_at_its_target() -> None:
    full = simulate(Scenario(SMALL))
    reached = full.reached()
    assert reached is not None
    stopped = simulate(Scenario({**SMALL, "budget": {"iterations": 40, "stop": "target"}}))
    assert stopped.reached() == reached
    assert len(set(stopped.iterations)) == 1
    assert stopped.iterations[0] < 40
    assert stopped.samples.loss == full.samples.loss[: len(stopped.samples)]


def test_a_target_that_is_never_reached_is_no_number() -> None:
    run = simulate(Scenario({**SMALL, "target": {"loss": -1.0}}))
    assert run.reached() is None
    assert run.summary()["iterations_to_target"] is None
    assert run.summary()["time_to_target_s"] is None


def test_a_grid_takes_the_step_that_reaches_the_target_first() -> None:
    grid = Scenario({**SMALL, "step-size": {"grid": [0.01, 0.2, 0.05]}})
    best = simulate(grid)
    times = {}
    for step in (0.01, 0.05, 0.2):
        reached = simulate(grid.vary(step_size=step)).reached()
        times[step] = reached.time if reached else float("inf")
    assert best.step_size == min(times, key=lambda step: times[step])


def test_iteration_and_statistical_targets_need_no_numerics() -> None:
    timing = {key: value for key, value in SMALL.items() if key != "step-size"}
    timing["workload"] = {"cost": SMALL["workload"]["cost"]}
    run = simulate(Scenario({**timing, "target": {"iterations": 10}}))
    reached = run.reached()
    assert reached is not None
    # The fifth round of two iterations has been reported then.
    assert (reached.iterations, reached.time, reached.extrapolated) == (10, run.pace.time[4], False)
    beyond = simulate(Scenario({**timing, "target": {"iterations": 100}})).reached()
    assert beyond is not None
    assert (beyond.time, beyond.extrapolated) == (pytest.approx(100 * run.time_per_iteration), True)
    stopped = simulate(
        Scenario({**timing, "target": {"iterations": 10}, "budget": {"iterations": 40, "stop": "target"}})
    )
    assert stopped.reached() == reached
    assert stopped.iterations[0] < 40
    statistical = {"statistical": {"minimum-iterations": 10, "critical-batch": 64}}
    reached = simulate(Scenario({**timing, "target": statistical})).reached()
    assert reached is not None
    assert reached.iterations == 10 * (1 + 64 / 32)
    reached = simulate(Scenario({**timing, "target": {"samples": 640}})).reached()
    assert reached is not None
    assert reached.iterations == 640 / 32


def test_timing_only_runs_do_no_tensor_work() -> None:
    """They do not even import torch, where the cost is given."""
    code = (
        "import json, sys; from simulator.scenario import Scenario;"
        "from simulator.engine.simulate import simulate;"
        "runs = [simulate(Scenario(data)) for data in json.loads(sys.argv[1])];"
        "print([run.iterations[0] for run in runs], 'torch' in sys.modules)"
    )
    timing = {key: value for key, value in SMALL.items() if key not in ("step-size", "target")}
    timing["workload"] = {"cost": {"parameters": 1000, "batch": 1, "gradient": "1 ms"}}
    algorithms = ("cocod-sgd", "allreduce-sgd", "local-sgd", "d-psgd")
    data = json.dumps([{**timing, "algorithm": algorithm, "compare": []} for algorithm in algorithms])
    result = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True)
    assert result.stdout == "[40, 40, 40, 40] False\n"


@pytest.mark.parametrize(
    ("losses", "reports", "index"),
    [
        ([3, 2, 1, 1, 1], 2, 2),
        ([3, 1, 2, 1, 1], 1, 3),
        ([1, 2, 1], 0, 0),
        ([2, 1, 1], 2, None),
        ([], 0, None),
        ([float("nan"), 1.0, 1.0], 1, 1),
    ],
)
def test_a_target_is_reached_where_the_loss_stays(
    losses: list[float], reports: int, index: int | None
) -> None:
    assert first_stay(losses, 1, reports) == index


def test_the_averaged_model_is_weighted_and_sampled_at_every_nth_report() -> None:
    class Sum:
        def initial_model(self) -> torch.Tensor:
            return torch.tensor([100.0])

        def loss_and_gradient_norm(self, x: torch.Tensor) -> tuple[float, float]:
            return float(x.sum()), 0.0

    observer = Observer(Sum(), (0.25, 0.75), 2, Target(loss=0.0))  # type: ignore[arg-type]
    observer.report(0, 1.0, 1, torch.tensor([4.0]))
    observer.report(0, 1.5, 2, torch.tensor([8.0]))
    observer.report(1, 2.0, 1, torch.tensor([8.0]))
    observer.report(0, 4.0, 3, torch.tensor([4.0]))
    expected = Samples(
        time=[1.5, 4.0],
        iteration=[1.0, 2.0],
        # A worker that has not reported yet still has the model that it started from.
        loss=[0.25 * 8 + 0.75 * 100, 0.25 * 4 + 0.75 * 8],
        gradient_norm=[0.0, 0.0],
        consensus=[(69**2 + 23**2) / 2, (3**2 + 1**2) / 2],
    )
    assert observer.samples == expected


def test_time_shares_count_overlap_once(run: Run) -> None:
    import dataclasses

    spans = [
        Span(0, "compute", "gradient", 0.0, 4.0),
        Span(0, "transfer", "all_reduce", 3.0, 6.0),
        Span(0, "transfer", "all_reduce", 5.0, 7.0),
        Span(0, "wait", "all_reduce", 7.0, 8.0, 1),
    ]
    one = dataclasses.replace(run, timeline=Timeline(spans), duration=10.0, iterations=(1,), ends=())
    assert one.time_shares() == pytest.approx({"compute": 0.4, "transfer": 0.3, "wait": 0.3})


def test_what_a_worker_does_after_its_own_end_is_no_part_of_its_time(run: Run) -> None:
    """Worker 0 ends at 4 s and serves until 10 s; worker 1 takes all of the 10 s."""
    import dataclasses

    spans = [
        Span(0, "compute", "gradient", 0.0, 2.0),
        Span(0, "compute", "update", 3.0, 9.0),
        Span(0, "transfer", "send", 9.0, 10.0),
        Span(1, "compute", "gradient", 0.0, 5.0),
        Span(1, "transfer", "send", 5.0, 7.0),
    ]
    known = dataclasses.replace(
        run, timeline=Timeline(spans), duration=10.0, iterations=(4, 4), ends=(4.0, 10.0)
    )
    assert known.time_shares() == pytest.approx({"compute": 8 / 14, "transfer": 2 / 14, "wait": 4 / 14})
    assert known.time_per_iteration == 14 / 8
    assert known.summary()["ends_s"] == [4.0, 10.0]
    unknown = dataclasses.replace(known, ends=())
    assert unknown.time_per_iteration == 20 / 8
    assert unknown.time_shares()["compute"] == pytest.approx(13 / 20)
    # The workers go on at 1 and 0.4 iterations a second: 0.7 on average.
    beyond = dataclasses.replace(
        known, scenario=known.scenario.vary(target={"iterations": 7000}), pace=Pace()
    ).reached()
    assert beyond is not None
    assert beyond.time == pytest.approx(10_000)


def slow_at_the_end(algorithm: object, **changes: Any) -> Run:
    """Three workers that take 1 s an iteration, and one that takes 4 s."""
    return simulate(
        Scenario(
            {
                "name": "uneven",
                "cluster": {
                    "topology": {"builder": "two-level", "hosts": 1, "gpus-per-host": 4},
                    "device": "ideal",
                    "transport": {"name": "fixed"},
                    "stragglers": [{"kind": "persistent", "workers": [2], "slowdown": 4.0}],
                },
                "workload": {"cost": {"parameters": 10, "batch": 1, "gradient": "1 s"}},
                "algorithm": algorithm,
                "budget": {"iterations": 12},
                **changes,
            }
        )
    )


@pytest.mark.parametrize("algorithm", ["a-psgd", "pair-averaging", "hogwild", "ad-psgd"])
def test_fast_workers_of_an_asynchronous_algorithm_do_not_wait_for_slow_ones_at_the_end(
    algorithm: str,
) -> None:
    run = slow_at_the_end(algorithm)
    assert run.duration == pytest.approx(48)
    assert run.own_ends == pytest.approx((12, 12, 48, 12))
    assert run.time_per_iteration == pytest.approx((3 * 1 + 4) / 4)
    assert run.time_shares()["compute"] == pytest.approx(1)
    assert run.time_shares()["wait"] == pytest.approx(0, abs=1e-12)


def test_those_of_a_synchronous_one_wait_in_every_iteration() -> None:
    run = slow_at_the_end("allreduce-sgd")
    assert run.own_ends == pytest.approx((48,) * 4)
    assert run.time_per_iteration == pytest.approx(4)
    assert run.time_shares()["wait"] == pytest.approx(3 * 0.75 / 4)


def test_a_loss_has_diverged_where_it_stays_beyond_all_bounds() -> None:
    nan, inf = float("nan"), float("inf")
    for losses, index in (
        ([], None),
        ([2.0, 1.0], None),
        ([2.0, 1e7, 1.0], None),
        ([2.0, 1.9e6], None),
        ([2.0, 3.0, 2.1e6, 1e9], 2),
        ([0.1, 1.1e6], 1),
        ([2.0, nan, 1e3, inf, nan], 3),
        ([nan], 0),
        ([1e44, 1e45], 0),
        ([1e9, 1e11], None),
    ):
        assert Samples(loss=losses).diverged() == index, losses


def test_a_step_size_that_is_far_too_large_diverges_and_says_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an overflow is no news then
        run = simulate(Scenario({**SMALL, "algorithm": "allreduce-sgd", "compare": [], "step-size": 1e8}))
    assert not np.isfinite(run.samples.loss[-1])
    where = run.diverged()
    assert where is not None
    assert 1 <= where.iterations < 40
    assert run.reached() is None
    assert repr(run).endswith(f", diverged at {where.iterations:g} iterations, {where.time:.6g} s)")
    run.save(tmp_path / "run")
    assert Run.load(tmp_path / "run").diverged() == where


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "run") as draft:
            (draft / "summary.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(BadInput, match="cannot be written: disk full"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_a_saved_run_is_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(BadInput, match="exists and is no saved run; name another folder"):
        run.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    run.save(tmp_path / "empty")
    run.save(tmp_path / "empty")
    assert Run.load(tmp_path / "empty").summary() == run.summary()


def test_a_diverged_run_is_saved_as_valid_json(tmp_path: Path) -> None:
    diverged = simulate(Scenario(SMALL).vary(step_size=1e200))
    diverged.save(tmp_path / "run")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["final_loss"] is None
    assert summary["time_to_target_s"] is None


def test_progress_stays_between_zero_and_one_and_its_errors_are_its_own() -> None:
    seen: list[float] = []
    simulate(Scenario(SMALL).vary(algorithm={"name": "local-sgd", "period": 7}), seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] == 1

    def fail(_: float) -> None:
        raise KeyError("a bug of the caller's")

    with pytest.raises(KeyError, match="a bug of the caller's"):
        simulate(Scenario(SMALL), fail)


def test_a_loss_that_raises_is_the_workers_failure_however_it_is_evaluated() -> None:
    import torch

    from simulator.faults import WorkerFailed
    from simulator.workload.task import Task

    def broken(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such loss")

    task = Task(torch.nn.Linear(2, 1), (torch.zeros(8, 2), torch.zeros(8, 1)), broken)
    for evaluation in ("separate", "batched"):
        scenario = Scenario(SMALL).vary(objective=task, evaluation=evaluation)
        with pytest.raises(WorkerFailed, match="RuntimeError: no such loss"):
            simulate(scenario)


def test_random_networks_are_not_evaluated_together() -> None:
    import torch

    from simulator.faults import WorkerFailed
    from simulator.workload.task import Task

    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 1))
    task = Task(network, (torch.ones(8, 2), torch.zeros(8, 1)), torch.nn.functional.mse_loss)
    with pytest.raises(WorkerFailed, match="task draws random numbers"):
        simulate(Scenario(SMALL).vary(objective=task, evaluation="batched"))


def test_a_simulation_leaves_no_circles_behind() -> None:
    """Collection is paused while a simulation runs, so what it drops must go by itself."""
    import gc

    from simulator.engine.groups import Exchange, Meeting

    for algorithm in ("allreduce-sgd", "d-psgd"):
        for workers in (1, 4):
            scenario = Scenario(SMALL).vary(algorithm=algorithm, workers=workers)
            gc.collect()
            # Another test's failure may keep some of its own.
            before = {id(thing) for thing in gc.get_objects() if type(thing) in (Meeting, Exchange)}
            simulate(scenario)
            now = (thing for thing in gc.get_objects() if type(thing) in (Meeting, Exchange))
            left = [thing for thing in now if id(thing) not in before]
            assert len(left) <= 4, (algorithm, workers, len(left))


def test_damaged_runs_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is not a saved run; it has no summary\.json"):
        Run.load(tmp_path)
    run.save(tmp_path / "run")
    (tmp_path / "run" / "spans.parquet").write_bytes(b"PAR1 truncated")
    with pytest.raises(BadInput, match=r"is not a complete saved run: spans\.parquet is not a timeline"):
        Run.load(tmp_path / "run")


@pytest.mark.parametrize("objective", ["mlp", "cnn"])
@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "cocod-sgd", "d-psgd"])
def test_batched_evaluation_changes_last_bits_at_most(algorithm: str, objective: str) -> None:
    data = {**SMALL, "algorithm": algorithm, "compare": [], "budget": {"iterations": 10}}
    data["workload"] = {"cost": {"model": "resnet18-cifar", "batch": 8}, "objective": {"kind": objective}}
    separate = simulate(Scenario(data))
    batched = simulate(Scenario(data).vary(evaluation="batched"))
    assert batched.duration == separate.duration
    assert batched.models is not None
    assert separate.models is not None
    np.testing.assert_allclose(batched.models, separate.models, rtol=1e-4, atol=1e-6)


def test_batched_evaluation_needs_samples() -> None:
    with pytest.raises(BadInput) as caught:
        simulate(Scenario(SMALL).vary(evaluation="batched"))
    assert str(caught.value) == (
        "workload.evaluation: 'batched' needs an objective over samples, "
        "which quadratic of dimension 10 is not"
    )


def test_batched_evaluation_is_one_evaluation_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.workload.objective import ModuleObjective, Request

    sizes = []
    together = ModuleObjective.batch_gradients

    def counted(self: ModuleObjective, requests: list[Request]) -> object:
        sizes.append(len(requests))
        return together(self, requests)

    monkeypatch.setattr(ModuleObjective, "batch_gradients", counted)
    data = {**SMALL, "algorithm": "allreduce-sgd", "compare": [], "budget": {"iterations": 10}}
    data["workload"] = {"cost": SMALL["workload"]["cost"], "objective": {"kind": "mlp"}}
    simulate(Scenario(data).vary(evaluation="batched"))
    assert sizes == [4] * 10


@pytest.mark.parametrize("algorithm", ["cocod-sgd", "allreduce-sgd", "d-psgd"])
@pytest.mark.parametrize("transport", ["nccl", "gloo"])
def test_both_cores_give_the_same_run(algorithm: str, transport: str) -> None:
    scenario = Scenario(SMALL).vary(algorithm=algorithm, transport=transport)
    plain, compiled = simulate(scenario, core="plain"), simulate(scenario, core="compiled")
    assert plain.timeline.spans == compiled.timeline.spans
    assert plain.links == compiled.links
    assert plain.summary() == compiled.summary()


def test_flows_may_share_by_the_latency_of_their_paths() -> None:
    """Two flows into one link; the one with a third of the latency gets three quarters of it."""
    topology = {
        "builder": "two-level",
        "hosts": 3,
        "gpus-per-host": 1,
        "inside": {"bandwidth": "1 GB/s", "latency": "0 s"},
        "network": {"bandwidth": "1 GB/s", "latency": "1 ms"},
    }
    background = {"source": "host1", "destination": "host2", "rate": "10 GB/s"}
    data = {
        "name": "rtt",
        "cluster": {
            "topology": topology,
            "device": "ideal",
            "workers": 2,
            "placement": [0, 2],
            "transport": {"name": "ideal", "latency-factor": 0.0},
            "background": [background],
        },
        "workload": {"cost": {"parameters": 25_000_000, "batch": 1, "gradient": "0 s"}},
        "algorithm": {"name": "d-psgd", "order": "adapt-then-combine"},
        "budget": {"iterations": 1},
    }
    # The background comes after its latency of 2 ms. Equal latencies, equal shares: 98 MB at 0.5 GB/s.
    assert simulate(Scenario(data)).duration == pytest.approx(0.198)
    fair = Scenario(data).vary({"cluster.fairness": "rtt"})
    assert simulate(fair).duration == pytest.approx(0.198)
    data["cluster"]["topology"] = {**topology, "inside": {"bandwidth": "1 GB/s", "latency": "2 ms"}}  # type: ignore[index]
    # The message crosses two hosts' insides besides: 6 ms against the background's 2 ms.
    slower = Scenario(data).vary({"cluster.fairness": "rtt"})
    assert simulate(slower).duration == pytest.approx(0.002 + 0.098 / 0.25)


def test_passes_are_gradient_evaluations_over_the_summands() -> None:
    data = {
        "name": "passes",
        "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "ideal"},
        "workload": {
            "cost": {"parameters": 6, "batch": 5, "gradient": "1 ms"},
            "objective": {"kind": "quadratic-sum", "summands": 40, "dimension": 6},
        },
        "algorithm": {"name": "svrg", "inner": 4, "lengths": "fixed"},
        "step-size": 0.01,
        "budget": {"iterations": 8},
    }
    run = simulate(Scenario(data))
    # Two epochs: each worker's 20 summands once, then four steps of 5 samples at two models each.
    assert run.evaluations == (2 * (4 + 4 * 2),) * 2
    assert run.passes() == 2 * (1 + 2 * 4 * 10 / 40)
    assert run.summary()["passes"] == run.passes()


@pytest.mark.parametrize("shares", [None, (0.25, 0.5, 0.25)], ids=["equal", "shares"])
@pytest.mark.parametrize("elements", [1, 12, 15, 30, 2**21])
def test_large_models_are_averaged_piece_by_piece(
    elements: int, shares: tuple[float, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the length of a piece, a single element included, and whatever is left for the last."""
    seen: list[torch.Tensor] = []

    class Seeing:
        def initial_model(self) -> torch.Tensor:
            return torch.zeros(10, dtype=torch.float64)

        def loss_and_gradient_norm(self, x: torch.Tensor) -> tuple[float, float]:
            seen.append(x)
            return 1.0, 2.0

    monkeypatch.setattr(observation, "CACHED", elements)
    models = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 10)))
    average = torch.tensor(shares or (1 / 3,) * 3, dtype=torch.float64) @ models
    observer = Observer(Seeing(), shares, 3)  # type: ignore[arg-type]  # as much of an objective as it needs
    for rank, model in enumerate(models):
        observer.report(rank, 1.0, 1, model)
    torch.testing.assert_close(seen, [average], rtol=1e-14, atol=1e-15)
    distance = float((models - average).square().sum(1).mean())
    assert observer.samples.consensus == [pytest.approx(distance, rel=1e-12)]
