"""An experiment: every algorithm of a scenario, on its workers and on one, each with its best step size.

A scenario names an algorithm, others to compare it with, and a grid of step sizes. The experiment
simulates each algorithm with each step size, on the scenario's workers and on its one-worker reference,
and keeps for each (algorithm, worker count) the run that reaches the target first. The single runs are
independent of one another, so they go to as many processes as there are processors; which process made
a run, and when, changes nothing in it. Every finished single run is written to a store (a folder per
run, named by its scenario's digest), from which a later call with the same store goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import multiprocessing
import os
import pickle
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from analysis.speedup import Row, Table, measure, part_label
from simulator.observation import Pace, Samples
from simulator.parts import BadInput
from simulator.processes import shorten_sockets
from simulator.run import Progress, Run, whole_folder, write_json, write_scenario
from simulator.scenario import Scenario
from simulator.target import Reached
from traces import Timeline


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one step size of the grid came to.

    Attributes
    ----------
    step_size
        None in a timing-only scenario.
    reached
        Where the target was reached; None where it was not.
    final_loss
        Loss at the last sample; None without numerics.
    chosen
        Whether this is the best of the grid.
    """

    step_size: float | None
    reached: Reached | None
    final_loss: float | None
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Entry:
    """One algorithm of an experiment.

    Attributes
    ----------
    label
        Its name and the parameters that differ from their defaults.
    run, reference
        The best runs on the scenario's workers and on one.
    trials, reference_trials
        All step sizes that were tried, in the grid's order.
    """

    label: str
    run: Run
    reference: Run
    trials: tuple[Trial, ...]
    reference_trials: tuple[Trial, ...]

    @property
    def folder(self) -> str:
        """The name of the folder that keeps its run."""
        return file_name(self.label)

    def row(self) -> Row:
        """Return its line of the table."""
        grid = [trial.step_size for trial in self.trials if trial.step_size is not None]
        return measure(self.run, self.reference, grid)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All algorithms of a scenario, compared.

    Attributes
    ----------
    scenario
        As it was given.
    entries
        One per algorithm, the scenario's own first.
    """

    scenario: Scenario
    entries: tuple[Entry, ...]

    def table(self) -> Table:
        """Return the speedups of all algorithms."""
        return Table(tuple(entry.row() for entry in self.entries))

    def summary(self) -> dict[str, Any]:
        """Return the main figures as plain data; the keys carry the units, as in a run's summary."""
        return {
            "name": self.scenario.name,
            "scenario": self.scenario.digest(),
            "workers": self.scenario.workers,
            "table": self.table().to_dicts(),
            "algorithms": {
                entry.label: {
                    "folder": entry.folder,
                    "run": entry.run.summary(),
                    "reference": entry.reference.summary(),
                    "trials": [_plain(trial) for trial in entry.trials],
                    "reference_trials": [_plain(trial) for trial in entry.reference_trials],
                }
                for entry in self.entries
            },
        }

    def save(self, folder: Path, elapsed: float | None = None) -> None:
        """Write the experiment as a folder, whole or not at all.

        It holds ``scenario.yaml``, ``summary.json``, ``report.html``, ``trace.json`` (of the scenario's own
        algorithm), and for each algorithm a folder with its run and, in ``reference``, its one-worker run.
        The same scenario gives the same bytes, but for the files called ``provenance.json``.

        Parameters
        ----------
        folder
            Replaced where it exists.
        elapsed
            Seconds that the experiment took, for the provenance.
        """
        from analysis.report import write_report
        from simulator.run import provenance
        from traces.perfetto import write_trace

        with whole_folder(folder) as draft:
            write_scenario(self.scenario, draft)
            write_json(draft / "summary.json", self.summary())
            write_report(self, draft / "report.html")
            first = self.entries[0].run
            write_trace(
                draft / "trace.json",
                first.timeline,
                first.links,
                f"{first.scenario.name}: {first.algorithm}",
                workers=first.workers,
            )
            for entry in self.entries:
                entry.run.save(draft / entry.folder)
                entry.reference.save(draft / entry.folder / "reference")
            write_json(draft / "provenance.json", provenance(elapsed))


def file_name(text: str) -> str:
    """Return a name as one that a folder can have anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _plain(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain data."""
    return {
        "step_size": trial.step_size,
        "iterations_to_target": trial.reached.iterations if trial.reached else None,
        "time_to_target_s": trial.reached.time if trial.reached else None,
        "final_loss": trial.final_loss,
        "chosen": trial.chosen,
    }


def experiment(
    scenario: Scenario,
    jobs: int | Executor | None = None,
    progress: Progress | None = None,
    store: Path | None = None,
) -> Experiment:
    """Simulate every algorithm of a scenario, on its workers and on one, and choose the step sizes.

    Parameters
    ----------
    scenario
        With or without others to compare, a grid and a target.
    jobs
        How many processes; by default one per processor, and 1 stays in this process. An executor of
        your own is used as it is, and has to see the same files. A script that starts processes has to
        guard its main part by ``if __name__ == "__main__"``.
    progress
        Told how much of the work is done, from 0 to 1: after each run, and in this process also during it.
    store
        Folder of the finished single runs, made where it does not exist. Runs found there are not made
        again; it is the caller's to remove. By default they are kept only for the length of the call.

    Raises
    ------
    BadInput
        The store holds another scenario under a run's name, or ``jobs`` is below 1.
    """
    with contextlib.ExitStack() as stack:
        if store is None:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paceline-")))
        variants = _distinct(scenario.variants())
        groups = [_singles(side) for variant in variants for side in (variant, _reference(variant))]
        singles = {single.digest(): single for group in groups for single in group}
        outcomes = _simulate_all(singles, store, jobs, progress)
        chosen = [_choose(group, outcomes, store) for group in groups]
    entries = []
    for index, variant in enumerate(variants):
        (run, trials), (reference, reference_trials) = chosen[2 * index : 2 * index + 2]
        name = part_label(variant.sections.algorithm)
        entries.append(Entry(name, run, reference, trials, reference_trials))
    return Experiment(scenario, tuple(entries))


def _distinct(variants: Sequence[Scenario]) -> list[Scenario]:
    """Return the variants without those that occur twice."""
    return list({variant.digest(): variant for variant in reversed(variants)}.values())[::-1]


def _reference(variant: Scenario) -> Scenario:
    """Return the one-worker scenario; a scenario of one worker is its own."""
    return variant if variant.workers == 1 else variant.reference()


def _singles(scenario: Scenario) -> tuple[Scenario, ...]:
    from simulator.tuning import single_steps

    return single_steps(scenario)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What the choice between step sizes needs to know of a finished run: all but its large tables."""

    duration: float
    iterations: tuple[int, ...]
    bytes_sent: tuple[float, ...]
    samples: Samples
    pace: Pace
    ends: tuple[float, ...]

    def run(self, scenario: Scenario) -> Run:
        return Run(
            scenario,
            "virtual",
            self.duration,
            self.iterations,
            self.bytes_sent,
            Timeline(),
            self.samples,
            self.pace,
            ends=self.ends,
        )


def _choose(
    group: Sequence[Scenario], outcomes: Mapping[str, _Outcome], store: Path
) -> tuple[Run, tuple[Trial, ...]]:
    """Return the best run of a grid, whole, and what each step size came to."""
    from simulator.tuning import best_of

    runs = [outcomes[single.digest()].run(single) for single in group]
    best = best_of(runs)
    trials = tuple(
        Trial(run.step_size, run.reached(), run.samples.loss[-1] if run.samples.loss else None, run is best)
        for run in runs
    )
    winner = best.scenario
    return dataclasses.replace(Run.load(store / winner.digest()), scenario=winner), trials


def _simulate_all(
    singles: Mapping[str, Scenario], store: Path, jobs: int | Executor | None, progress: Progress | None
) -> dict[str, _Outcome]:
    """Return the outcome of every single run, by digest; the long ones are started first."""
    order = sorted(singles, key=lambda digest: -_weight(singles[digest]))
    total = sum(_weight(single) for single in singles.values())
    outcomes: dict[str, _Outcome] = {}

    def advanced(part: float = 0.0) -> None:
        if progress is not None:
            progress((sum(_weight(singles[done]) for done in outcomes) + part) / total)

    def finished(digest: str, outcome: _Outcome) -> None:
        outcomes[digest] = outcome
        advanced()

    if not all(_is_portable(single) for single in singles.values()):
        jobs = 1
    with _executor(jobs, len(singles)) as executor:
        if executor is None:
            for digest in order:
                single = singles[digest]
                weight = _weight(single)
                inner = (lambda part, weight=weight: advanced(min(1.0, part) * weight)) if progress else None
                finished(digest, _simulate_into(single, store / digest, inner))
            return outcomes
        futures = {executor.submit(_simulate_into, singles[d], store / d): d for d in order}
        try:
            for future in as_completed(futures):
                finished(futures[future], future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return outcomes


def _weight(single: Scenario) -> float:
    """Return about how much work a run is."""
    return single.workers * single.sections.budget.iterations


@contextlib.contextmanager
def _executor(jobs: int | Executor | None, runs: int) -> Iterator[Executor | None]:
    """Give what runs the simulations; None where they run in this process."""
    if isinstance(jobs, Executor):
        yield jobs
        return
    if jobs is not None and jobs < 1:
        raise BadInput("jobs", f"must be at least 1, got {jobs}")
    processes = min(jobs or len(os.sched_getaffinity(0)), runs)
    if processes == 1:
        yield None
        return
    shorten_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulator.engine.simulate", "simulator.workload.objective"])
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare) as executor:
        yield executor


def _prepare() -> None:
    """Prepare a process of the pool: one torch thread, and an end when its parent ends.

    A worker of a pool would otherwise outlive a parent that was killed, waiting for work for ever.
    """
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_portable(scenario: Scenario) -> bool:
    """Return whether a scenario, with the objects that a user put into it, can go to another process."""
    try:
        pickle.dumps(scenario)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _simulate_into(scenario: Scenario, folder: Path, progress: Progress | None = None) -> _Outcome:
    """Simulate a single run into its folder of the store, unless it is there."""
    if folder.exists():
        if (folder / "scenario.yaml").read_text(encoding="utf-8") != _scenario_text(scenario):
            raise BadInput(str(folder), "holds a run of another scenario; name another store")
        run = Run.load(folder)
    else:
        from simulator.engine.simulate import simulate

        run = simulate(scenario, progress)
        run.save(folder)
    return _Outcome(run.duration, run.iterations, run.bytes_sent, run.samples, run.pace, run.ends)


def parts_folder(folder: Path, scenario: Scenario) -> Path:
    """Return the store that belongs to the experiment that will be saved to ``folder``.

    Its name depends on the scenario and on the source code of Paceline and of the user's own parts, so
    that a call goes on from single runs only if it would make the same ones.
    """
    sections = scenario.sections
    parts = [sections.algorithm, *sections.compare, sections.workload.cost, sections.workload.objective]
    own = {inspect.getsourcefile(part.target) for part in parts if part is not None}
    files = {Path(file) for file in own if file is not None}
    root = Path(__file__).parent.parent
    for package in ("algorithms", "simulator", "topologies", "traces"):
        files.update((root / package).rglob("*.py"))
    digest = hashlib.sha256(scenario.digest().encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return folder.with_name(f".{folder.name}-{digest.hexdigest()[:8]}.parts")


def _scenario_text(scenario: Scenario) -> str:
    """Return the resolved scenario as a saved run has it."""
    text: str = yaml.safe_dump(scenario.resolved(), sort_keys=False, allow_unicode=True)
    return text
