from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import analysis.report
import simulator.engine.simulate
from analysis.experiment import Experiment, experiment, parts_folder
from simulator.faults import WorkerFailed
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.target import Reached

Scene = Callable[..., Scenario]
Make = Callable[..., Run]


class Stop(Exception):
    """Raised by a test from inside."""


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of the scenarios that are really simulated, in order."""
    digests: list[str] = []
    simulate = simulator.engine.simulate.simulate

    def counted(scenario: Scenario, progress: object = None) -> Run:
        digests.append(scenario.digest())
        return simulate(scenario)

    monkeypatch.setattr(simulator.engine.simulate, "simulate", counted)
    return digests


def files(folder: Path) -> dict[str, bytes]:
    """All files of a saved experiment but the provenance."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


def test_every_algorithm_on_its_workers_and_on_one(timing_scenario: Scene) -> None:
    done = experiment(timing_scenario(), jobs=1)
    assert [entry.label for entry in done.entries] == [
        "allreduce-sgd",
        "local-sgd",
        "local-sgd (period 8)",
    ]
    assert [entry.folder for entry in done.entries] == ["allreduce-sgd", "local-sgd", "local-sgd-period-8"]
    for entry in done.entries:
        assert (entry.run.workers, entry.reference.workers) == (3, 1)
        assert len(entry.run.timeline) > 0
        assert entry.run.links is not None
        assert [trial.chosen for trial in entry.trials] == [True]
    # 10 iterations each, of a batch of 4 in 10 ms; the reference is a worker that is not slowed.
    assert [row.iteration_speedup for row in done.table().rows] == [1.0, 1.0, 1.0]
    assert [row.ideal for row in done.table().rows] == [2.5, 2.5, 2.5]
    assert done.entries[0].reference.time_per_iteration < 0.011


def test_the_same_figures_with_any_number_of_jobs(timing_scenario: Scene) -> None:
    scenario = timing_scenario(compare=[])
    alone = experiment(scenario, jobs=1)
    together = experiment(scenario, jobs=2)
    with ThreadPoolExecutor(2) as executor:
        elsewhere = experiment(scenario, jobs=executor)
    assert alone.summary() == together.summary() == elsewhere.summary()
    assert alone.entries[0].run.timeline.spans == together.entries[0].run.timeline.spans
    assert alone.entries[0].run.links == together.entries[0].run.links


def test_the_best_step_size_is_chosen_per_worker_count(
    loss_scenario: Scene, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers get there with 0.2 at the first sample, one with 0.1; nobody does with 0.4."""

    def pretend(scenario: Scenario, progress: object = None) -> Run:
        fast = {2: 0.2, 1: 0.1}[scenario.workers]
        step = scenario.step_sizes[0]
        losses = [0.9, 0.9] if step == 0.4 else [0.4, 0.4, 0.4] if step == fast else [0.9, 0.4, 0.4]
        return make_run(scenario, losses)

    monkeypatch.setattr(simulator.engine.simulate, "simulate", pretend)
    (entry,) = experiment(loss_scenario(2, step_size={"grid": [0.1, 0.2, 0.4]}), jobs=1).entries
    assert (entry.run.step_size, entry.reference.step_size) == (0.2, 0.1)
    assert [trial.step_size for trial in entry.trials] == [0.1, 0.2, 0.4]
    assert [trial.reached for trial in entry.trials] == [Reached(4.0, 6.0), Reached(2.0, 3.0), None]
    assert [trial.final_loss for trial in entry.trials] == [0.4, 0.4, 0.9]
    assert [trial.chosen for trial in entry.trials] == [False, True, False]
    assert [trial.chosen for trial in entry.reference_trials] == [True, False, False]
    assert entry.row().grid == (0.1, 0.2, 0.4)


def test_equal_scenarios_are_simulated_once(timing_scenario: Scene, simulated: list[str]) -> None:
    scenario = timing_scenario(compare=["allreduce-sgd", {"name": "allreduce-sgd"}])
    assert len(experiment(scenario, jobs=1).entries) == 1
    assert len(simulated) == 2
    simulated.clear()
    experiment(timing_scenario(compare=[]).reference(), jobs=1)
    assert len(simulated) == 1


def test_a_stopped_experiment_goes_on_after_its_last_run(
    timing_scenario: Scene, simulated: list[str], tmp_path: Path
) -> None:
    def stop_after_three(done: float) -> None:
        if len(simulated) == 3:
            raise Stop

    with pytest.raises(Stop):
        experiment(timing_scenario(), jobs=1, progress=stop_after_three, store=tmp_path)
    assert len(simulated) == 3
    before = list(simulated)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(before)

    simulated.clear()
    resumed = experiment(timing_scenario(), jobs=1, store=tmp_path)
    assert len(simulated) == 3
    assert not set(simulated) & set(before)
    assert resumed.summary() == experiment(timing_scenario(), jobs=1).summary()


def test_a_run_that_is_interrupted_leaves_nothing(
    timing_scenario: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise Stop

    monkeypatch.setattr("simulator.run.Run.summary", broken)
    with pytest.raises(Stop):
        experiment(timing_scenario(), jobs=1, store=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_progress_grows_to_one(timing_scenario: Scene) -> None:
    told: list[float] = []
    experiment(timing_scenario(), jobs=1, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert len(set(told)) > 6  # also during the runs


def test_another_scenario_in_the_store_is_refused(timing_scenario: Scene, tmp_path: Path) -> None:
    scenario = timing_scenario(compare=[])
    experiment(scenario, jobs=1, store=tmp_path)
    folder = tmp_path / scenario.digest()
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text.replace("iterations: 20", "iterations: 21"))
    with pytest.raises(BadInput) as error:
        experiment(scenario, jobs=1, store=tmp_path)
    assert str(error.value) == f"{folder}: holds a run of another scenario; name another store"


@pytest.mark.parametrize("failure", [BadInput("key", "is bad."), WorkerFailed(1, 2, "ValueError: no")])
def test_errors_come_back_from_the_processes(
    failure: Exception, timing_scenario: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(scenario: Scenario, progress: object = None) -> Run:
        raise failure

    monkeypatch.setattr(simulator.engine.simulate, "simulate", broken)
    with ThreadPoolExecutor(1) as executor, pytest.raises(type(failure)) as error:
        experiment(timing_scenario(), jobs=executor)
    assert str(error.value) == str(failure)


def test_jobs_must_be_positive(timing_scenario: Scene) -> None:
    with pytest.raises(BadInput) as error:
        experiment(timing_scenario(), jobs=0)
    assert str(error.value) == "jobs: must be at least 1, got 0"


@pytest.fixture(scope="module")
def done(timing_scenario: Scene) -> Experiment:
    return experiment(timing_scenario(), jobs=1)


def test_saved_experiments_are_reproducible(done: Experiment, timing_scenario: Scene, tmp_path: Path) -> None:
    done.save(tmp_path / "one")
    experiment(timing_scenario(), jobs=1).save(tmp_path / "two", elapsed=1.0)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert list(one) == list(two)
    for name, content in one.items():
        assert content == two[name], name
    for name in ("scenario.yaml", "summary.json", "report.html", "trace.json", "local-sgd/spans.parquet"):
        assert name in one
    assert "local-sgd/reference/summary.json" in one
    assert Run.load(tmp_path / "one" / "local-sgd-period-8").algorithm == "local-sgd"


def test_saving_is_whole_or_not_at_all(
    done: Experiment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(analysis.report, "write_report", broken)
    with pytest.raises(Stop):
        done.save(tmp_path / "runs" / "x")
    assert os.listdir(tmp_path / "runs") == []


def test_the_store_of_a_run_depends_on_the_scenario(timing_scenario: Scene, tmp_path: Path) -> None:
    one = parts_folder(tmp_path / "x", timing_scenario())
    assert one == parts_folder(tmp_path / "x", timing_scenario())
    assert one != parts_folder(tmp_path / "x", timing_scenario(seed=2))
    assert one.parent == tmp_path
    assert one.name.startswith(".x-")
