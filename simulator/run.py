"""A run: what one of the two clocks made of a scenario, and the folder that keeps it.

Both clocks give the same :class:`Run`. What a clock cannot know is absent from it, not zero. A saved run
is a folder of plain files: the resolved scenario, a summary, Parquet tables and the final models. The
same scenario and seed give the same bytes; date, machine and elapsed time go to ``provenance.json``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from simulator.observation import Observation, Pace, Samples
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.target import Reached, first_stay
from traces import COMPUTE, TRANSFER, Span, Timeline

if TYPE_CHECKING:
    import numpy as np

    from simulator.profile import Profile

ClockName = Literal["virtual", "wall"]


@dataclasses.dataclass(frozen=True)
class LinkUse:
    """How busy the links of the network were; all lists are parallel.

    Attributes
    ----------
    name, capacity, carried
        Of each link: its name, bytes/s, and the bytes that it carried.
    change_link, change_time, change_rate
        Step function of each link's load: from ``change_time`` on, link number ``change_link`` carries
        ``change_rate`` bytes/s.
    """

    name: list[str]
    capacity: list[float]
    carried: list[float]
    change_link: list[int]
    change_time: list[float]
    change_rate: list[float]


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One algorithm on one cluster with one step size.

    Attributes
    ----------
    scenario
        What was run: a single algorithm and step size.
    clock
        ``virtual`` (simulated) or ``wall`` (executed).
    duration
        Seconds until the last worker ended.
    iterations
        Iterations done, by worker.
    bytes_sent
        Bytes that each worker sent.
    server_bytes
        Bytes that each dedicated server sent; empty where there is none. Servers have spans in the timeline
        and may note observations, by their ranks behind the workers', and are counted nowhere else.
    timeline
        What every worker did when.
    samples
        Loss and consensus over time; empty in a timing-only run.
    pace
        How far the workers had come over time, with or without numerics.
    links
        Link utilisation; None on the wall clock.
    models
        Final models, of shape [workers, parameters]; None in a timing-only run.
    evaluations
        Gradients that each worker has evaluated, in mini-batches of its own: iterations, unless its
        algorithm evaluates more (variance reduction) or less than one gradient in each.
    observations
        What the algorithm noted, in the order of time, then of workers.
    emulation
        Facts on the emulated network that the run was executed in; None where there was none.
    ends
        When each worker had done and reported its last iteration, in seconds; :attr:`duration` for all
        where nobody knows. What it does afterwards, waiting for others or serving them, is no part of its
        iterations.
    """

    scenario: Scenario
    clock: ClockName
    duration: float
    iterations: tuple[int, ...]
    bytes_sent: tuple[float, ...]
    timeline: Timeline
    samples: Samples
    pace: Pace = dataclasses.field(default_factory=Pace)
    links: LinkUse | None = None
    models: np.ndarray[Any, Any] | None = None
    evaluations: tuple[float, ...] = ()
    observations: Sequence[Observation] = ()
    emulation: Mapping[str, Any] | None = None
    server_bytes: tuple[float, ...] = ()
    ends: tuple[float, ...] = ()

    def __repr__(self) -> str:
        reached, diverged = self.reached(), self.diverged()
        where = f", target at {reached.iterations:g} iterations, {reached.time:.6g} s" if reached else ""
        if diverged:
            where += f", diverged at {diverged.iterations:g} iterations, {diverged.time:.6g} s"
        network = "" if self.emulation is None else ", emulated network"
        return (
            f"Run({self.algorithm} on {self.workers} workers, {self.clock} clock{network}, "
            f"{max(self.iterations)} iterations in {self.duration:.6g} s{where})"
        )

    @property
    def workers(self) -> int:
        """The number of workers."""
        return len(self.iterations)

    @property
    def worker_spans(self) -> Iterator[Span]:
        """The spans of workers, in the timeline's order."""
        return (span for span in self.timeline if span.worker < self.workers)

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""
        return self.scenario.sections.algorithm.name

    @property
    def step_size(self) -> float | None:
        """The step size; None in a timing-only run."""
        return self.scenario.step_sizes[0]

    @property
    def time_per_iteration(self) -> float:
        """Seconds per iteration: the workers' time until their own ends, over all their iterations."""
        return math.fsum(self.own_ends) / sum(self.iterations)

    @property
    def own_ends(self) -> tuple[float, ...]:
        """Each worker's own end: see :attr:`ends`."""
        return self.ends or (self.duration,) * self.workers

    def _pace_beyond(self) -> float:
        """Return the mean of the workers' iterations per second, each until its own end."""
        pairs = zip(self.iterations, self.own_ends, strict=True)
        return statistics.fmean(done / end if end > 0 else math.inf for done, end in pairs)

    def reached(self) -> Reached | None:
        """Return where the scenario's target was reached; None where it was not, or there is none.

        A number of iterations beyond the end of the run is extrapolated, and says so.
        """
        target = self.scenario.sections.target
        if target is None:
            return None
        if target.loss is not None:
            index = first_stay(self.samples.loss, target.loss, target.holds)
            return None if index is None else Reached(self.samples.iteration[index], self.samples.time[index])
        needed = target.needed_iterations(sum(self.scenario.batches))
        assert needed is not None
        time = self.pace.reach(needed)
        if time is not None:
            return Reached(needed, time)
        return Reached(needed, needed / self._pace_beyond(), extrapolated=True)

    def diverged(self) -> Reached | None:
        """Return from where on the loss had diverged; None where it had not, or there is none."""
        index = self.samples.diverged()
        return None if index is None else Reached(self.samples.iteration[index], self.samples.time[index])

    def time_shares(self) -> dict[str, float]:
        """Return the mean share of the workers' time in computing, in transferring, and in waiting.

        At each instant until its own end a worker computes if its device is busy, else it transfers if one of
        its transfers is under way, else it waits.
        """
        busy = _covered(self.worker_spans, self.own_ends, (COMPUTE,))
        active = _covered(self.worker_spans, self.own_ends, (COMPUTE, TRANSFER))
        total = math.fsum(self.own_ends) or 1.0
        computing, moving = sum(busy) / total, sum(active) / total
        return {"compute": computing, "transfer": moving - computing, "wait": max(0.0, 1 - moving)}

    def summary(self) -> dict[str, Any]:
        """Return the run's main figures; the keys carry the units."""
        reached, diverged = self.reached(), self.diverged()
        target = self.scenario.sections.target
        emulation = {} if self.emulation is None else {"emulation": dict(self.emulation)}
        return {
            "name": self.scenario.name,
            "algorithm": self.algorithm,
            "clock": self.clock,
            **emulation,
            "workers": self.workers,
            "step_size": self.step_size,
            "iterations": list(self.iterations),
            "evaluations": list(self.evaluations),
            "passes": self.passes(),
            "duration_s": self.duration,
            "ends_s": list(self.own_ends),
            "time_per_iteration_s": self.time_per_iteration,
            "bytes_sent": list(self.bytes_sent),
            **({"server_bytes_sent": list(self.server_bytes)} if self.server_bytes else {}),
            "time_shares": self.time_shares(),
            "target": target.text() if target else None,
            "iterations_to_target": reached.iterations if reached else None,
            "time_to_target_s": reached.time if reached else None,
            "extrapolated": reached.extrapolated if reached else None,
            "final_loss": self.samples.loss[-1] if self.samples.loss else None,
            "diverged_at_iteration": diverged.iterations if diverged else None,
            "diverged_at_s": diverged.time if diverged else None,
            "peak_memory_bytes": self.peak_memory(),
            "observed": {name: self.observed(name) for name in sorted({o.name for o in self.observations})},
        }

    def passes(self) -> float | None:
        """Return the gradient evaluations over the number of summands; None where there is no such number."""
        scenario = self.scenario
        try:
            summands = None if scenario.objective is None else scenario.objective.summands
        except ValueError:  # what a script of the user's own trains is there only while the script runs
            return None
        if not summands or not self.evaluations:
            return None
        batches = scenario.objective_batches
        return math.fsum(e * b for e, b in zip(self.evaluations, batches, strict=True)) / summands

    def staleness(self) -> list[float]:
        """Return the staleness of each update, where it is measured: foreign changes in between."""
        return [noted.value for noted in self.observations if noted.name == "staleness"]

    def observed(self, name: str) -> dict[str, float]:
        """Return mean, median, largest value and number of what the algorithm noted under a name."""
        values = [observation.value for observation in self.observations if observation.name == name]
        return {
            "mean": statistics.fmean(values),
            "median": statistics.median(values),
            "max": max(values),
            "count": len(values),
        }

    def profile(self) -> Profile:
        """Return what this run measured of its computations, to be simulated at other scales.

        Raises
        ------
        BadInput
            It was simulated.
        """
        from simulator.profile import Profile

        return Profile.of(self)

    def peak_memory(self) -> float:
        """Return the bytes that the worker with the largest batch needs, by the cost model."""
        scenario = self.scenario
        return scenario.cost.peak_memory(max(scenario.batches), scenario.model_copies)

    def save(self, folder: Path, elapsed: float | None = None) -> None:
        """Write the run as a folder, whole or not at all.

        Parameters
        ----------
        folder
            Replaced where it exists.
        elapsed
            Seconds that the run took to make, for the provenance.
        """
        with whole_folder(folder) as draft:
            write_json(draft / "summary.json", self.summary())
            write_scenario(self.scenario, draft)
            self.timeline.write(draft / "spans.parquet")
            write_table(draft / "samples.parquet", dataclasses.asdict(self.samples))
            write_table(draft / "pace.parquet", dataclasses.asdict(self.pace))
            if self.observations:
                columns = zip(*self.observations, strict=True)
                names = Observation._fields
                table = {name: list(column) for name, column in zip(names, columns, strict=True)}
                write_table(draft / "observations.parquet", table)
            if self.links is not None:
                use = dataclasses.asdict(self.links)
                write_table(
                    draft / "links.parquet", {key: use[key] for key in ("name", "capacity", "carried")}
                )
                changes = ("change_link", "change_time", "change_rate")
                write_table(draft / "link_rates.parquet", {key: use[key] for key in changes})
            if self.models is not None:
                import numpy as np

                np.save(draft / "models.npy", self.models, allow_pickle=False)
            write_json(draft / "provenance.json", provenance(elapsed))

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a saved run.

        Raises
        ------
        BadInput
            A file is missing or damaged; the message names it.
        """
        import numpy as np

        if not (folder / "summary.json").is_file():
            raise BadInput(str(folder), "is not a saved run; it has no summary.json")
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            links = None
            if (folder / "links.parquet").exists():
                use = {**read_table(folder / "links.parquet"), **read_table(folder / "link_rates.parquet")}
                links = LinkUse(**use)
            models = folder / "models.npy"
            observations: list[Observation] = []
            if (folder / "observations.parquet").exists():
                noted = read_table(folder / "observations.parquet")
                observations = [Observation(*row) for row in zip(*noted.values(), strict=True)]
            return cls(
                scenario=Scenario.load(folder / "scenario.yaml"),
                clock=summary["clock"],
                duration=summary["duration_s"],
                iterations=tuple(summary["iterations"]),
                bytes_sent=tuple(summary["bytes_sent"]),
                timeline=Timeline.read(folder / "spans.parquet"),
                samples=Samples(**read_table(folder / "samples.parquet")),
                pace=Pace(**read_table(folder / "pace.parquet")),
                links=links,
                models=np.load(models, allow_pickle=False) if models.exists() else None,
                evaluations=tuple(summary["evaluations"]),
                observations=observations,
                emulation=summary.get("emulation"),
                server_bytes=tuple(summary.get("server_bytes_sent", ())),
                ends=tuple(summary.get("ends_s", ())),
            )
        except BadInput:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(str(folder), f"is not a complete saved run: {error}") from None


def _covered(spans: Iterable[Span], ends: Sequence[float], kinds: Sequence[str]) -> list[float]:
    """Return for each worker the length of the union of its spans of some kinds, until its end."""
    intervals: list[list[tuple[float, float]]] = [[] for _ in ends]
    for span in spans:
        end = ends[span.worker]
        if span.kind in kinds and span.start < end:
            intervals[span.worker].append((span.start, min(span.end, end)))
    return [_union(sorted(own)) for own in intervals]


def _union(intervals: Sequence[tuple[float, float]]) -> float:
    covered, reach = 0.0, float("-inf")
    for start, end in intervals:
        if end > reach:
            covered += end - max(start, reach)
            reach = end
    return covered


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a draft folder that takes the place of ``folder`` when all went well, and vanishes otherwise.

    Raises
    ------
    BadInput
        There is something else than a saved run in its place, or the disk does not take it.
    """
    check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise BadInput(str(folder), f"cannot be written: {error.strerror}") from None
    try:
        yield draft
        draft.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError):
            # Writers of tables have sentences of their own; the system's is the same for all.
            reason = os.strerror(error.errno) if error.errno else error
            raise BadInput(str(folder), f"cannot be written: {reason}") from error
        raise


def check_replaceable(folder: Path) -> None:
    """Refuse to write where something else than a saved run or an empty folder is.

    Raises
    ------
    BadInput
        The message names the folder.
    """
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "provenance.json").is_file():
        raise BadInput(str(folder), "exists and is no saved run; name another folder")


def write_scenario(scenario: Scenario, folder: Path) -> None:
    """Write the resolved scenario, and beside it the files that it names, so that it can be read there."""
    text = yaml.safe_dump(scenario.resolved(), sort_keys=False, allow_unicode=True)
    (folder / "scenario.yaml").write_text(text, encoding="utf-8")
    for name in scenario.files():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            continue  # it is found from anywhere, or lies outside of what can be kept together
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scenario.folder / name, folder / name)


def write_json(path: Path, value: object) -> None:
    """Write JSON, readable and with a fixed layout."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def plain(value: Any, infinity: str | None = None) -> Any:
    """Return a value as JSON can hold it: what is no number becomes null, what is infinite ``infinity``."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry, infinity) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, infinity) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else infinity
    return value


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write columns as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def read_table(path: Path) -> dict[str, list[Any]]:
    """Read a Parquet file's columns."""
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    return columns


def provenance(elapsed: float | None) -> dict[str, Any]:
    """Return when, where and with what a run was made."""
    import importlib.metadata as metadata

    packages = ("paceline", "numpy", "simpy", "networkx", "torch")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.machine(),
        "system": platform.platform(),
        "host": platform.node(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "elapsed_s": elapsed,
        "versions": versions,
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


Progress = Callable[[float], None]
"""Told how much of a run is done, from 0 to 1."""
Met = Callable[[Sequence[tuple[str, str]], str], None]
"""Told the host and the device of each rank, and what carries their collectives."""
