"""Where two runs differ, by phase, worker and iteration, and whether they ended with the same models.

Every instant of every worker belongs to one operation and one iteration (:mod:`analysis.attribution`), so the
differences of the operations add up to the difference of the runs, and so do those of the iterations. They
are given in seconds per worker and iteration: the time that an average worker spends on it per iteration.
That makes runs of different lengths comparable, and a simulated run with an executed one.

The seconds of each worker add up to its own end. Where workers wait for each other, one that is faster waits
longer, so that they differ in what they spend them on.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.attribution import KINDS, Phase, attribution_by_iteration, over_iterations
from analysis.differing import Difference, differing, sentence
from analysis.speedup import label, text_table
from simulator.parts import BadInput
from simulator.run import Run
from simulator.units import format_quantity
from traces import WAIT

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclasses.dataclass(frozen=True)
class PhaseDifference:
    """One operation, or all of one kind, in two runs.

    Attributes
    ----------
    kind
        ``compute``, ``transfer`` or ``wait``.
    operation
        What was done.
    a, b
        Seconds per worker and iteration.
    """

    kind: str
    operation: str
    a: float
    b: float

    @property
    def difference(self) -> float:
        """Seconds that b takes longer, per worker and iteration."""
        return self.b - self.a

    @property
    def differs(self) -> bool:
        """Whether the two differ by more than is lost in rounding."""
        return _differ(self.a, self.b)


@dataclasses.dataclass(frozen=True)
class IterationDifference:
    """One iteration of an average worker in two runs.

    Attributes
    ----------
    iteration
        Its number, from 1.
    kinds
        Seconds of compute, transfer and wait.
    largest
        The operation that contributes most to the difference.
    """

    iteration: int
    kinds: tuple[PhaseDifference, ...]
    largest: PhaseDifference

    @property
    def a(self) -> float:
        """Seconds that it takes in A."""
        return sum(kind.a for kind in self.kinds)

    @property
    def b(self) -> float:
        """Seconds that it takes in B."""
        return sum(kind.b for kind in self.kinds)

    @property
    def difference(self) -> float:
        """Seconds that it takes longer in B."""
        return self.b - self.a


@dataclasses.dataclass(frozen=True)
class ModelComparison:
    """Whether two runs ended with the same models.

    Attributes
    ----------
    identical
        Same shape, type and bits.
    largest_difference
        Largest absolute difference of two parameters; None where the shapes differ.
    text
        The same in a sentence.
    """

    identical: bool
    largest_difference: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs, by phase, worker and iteration.

    Attributes
    ----------
    name_a, name_b
        What the runs are called.
    phases
        The kinds: compute, transfer, wait.
    operations
        The operations of every kind; they add up to the phases.
    workers
        Seconds per iteration by worker and kind, of both runs; empty where the numbers of workers differ.
    contributors
        Of each worker, the work that differs most; waiting, which others cause, where no work differs.
    iterations
        The iterations that both runs have, with the seconds of an average worker.
    total_a, total_b
        Seconds per iteration; what the phases add up to.
    models
        Whether the final models are the same; None where a run has none.
    stale_a, stale_b
        The staleness of every update, where the algorithm measures it.
    given
        What their scenarios say differently of algorithm, workload and cluster.
    """

    name_a: str
    name_b: str
    phases: tuple[PhaseDifference, ...]
    operations: tuple[PhaseDifference, ...]
    workers: tuple[tuple[PhaseDifference, ...], ...]
    contributors: tuple[PhaseDifference, ...]
    iterations: tuple[IterationDifference, ...]
    total_a: float
    total_b: float
    models: ModelComparison | None
    stale_a: Sequence[float] = ()
    stale_b: Sequence[float] = ()
    given: tuple[Difference, ...] = ()

    @property
    def largest(self) -> PhaseDifference | None:
        """The operation that contributes most to the difference; None where nothing differs."""
        worst = _largest(self.operations)
        return worst if worst is not None and worst.differs else None

    def ranked_workers(self) -> list[int]:
        """Return the workers in which anything differs: those whose work does most, then those that wait."""
        differing = [rank for rank, worst in enumerate(self.contributors) if worst.differs]

        def order(rank: int) -> tuple[bool, float]:
            worst = self.contributors[rank]
            return worst.kind == WAIT, -abs(worst.difference)

        return sorted(differing, key=order)

    @property
    def worst_iteration(self) -> IterationDifference | None:
        """The iteration whose time differs most; None where none does."""
        worst = max(self.iterations, key=lambda entry: abs(entry.difference), default=None)
        return worst if worst is not None and _differ(worst.a, worst.b) else None

    def given_differently(self) -> str:
        """Return in a sentence in what the two scenarios differ; nothing where they do not."""
        return sentence(self.given)

    def verdict(self) -> str:
        """Return in a sentence where the runs differ most."""
        worst = self.largest
        if worst is None:
            return "No phase differs."
        total = self.total_b - self.total_a
        text = f"Largest contributor: {_named(worst)}, in which B spends {_more(worst.difference)}"
        if total * worst.difference > 0:
            return (
                f"{text} per worker and iteration, {100 * worst.difference / total:.0f} % of the difference."
            )
        return f"{text} per worker and iteration, against the difference of {_signed(total)}."

    def work_verdict(self) -> str:
        """Return which work differs most, where that is not the largest contributor; else nothing.

        Waiting is what workers do because of others, so that its cause is to be looked for in their work.
        """
        worst, work = self.largest, _largest(_work(self.operations))
        if worst is None or worst.kind != WAIT or work is None or not work.differs:
            return ""
        return f"Of the work that is waited for, {_named(work)} differs most: {_signed(work.difference)}."

    def worker_verdict(self) -> str:
        """Return in a sentence which worker differs most, and in what; nothing where none does."""
        ranked = self.ranked_workers()
        if not ranked:
            return ""
        worst = self.contributors[ranked[0]]
        return (
            f"Worker {ranked[0]} differs most: in {_named(worst)} B spends "
            f"{_more(worst.difference)} per iteration."
        )

    def iteration_verdict(self) -> str:
        """Return in a sentence which iteration differs most, and in what; nothing where none does."""
        worst = self.worst_iteration
        if worst is None:
            return ""
        part = f"most of it in {_named(worst.largest)}, {_signed(worst.largest.difference)}"
        return (
            f"Iteration {worst.iteration} differs most: {_seconds(worst.a)} in A, {_seconds(worst.b)} in B; "
            f"{part}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data; the keys carry the units."""

        def plain(entry: PhaseDifference) -> dict[str, Any]:
            return {
                "kind": entry.kind,
                "operation": entry.operation,
                "a_s": entry.a,
                "b_s": entry.b,
                "difference_s": entry.difference,
            }

        return {
            "a": self.name_a,
            "b": self.name_b,
            "given_differently": [entry._asdict() for entry in self.given],
            "per": "worker and iteration",
            "total_a_s": self.total_a,
            "total_b_s": self.total_b,
            "difference_s": self.total_b - self.total_a,
            "phases": [plain(entry) for entry in self.phases],
            "operations": [plain(entry) for entry in self.operations],
            "workers": [[plain(entry) for entry in own] for own in self.workers],
            "largest_contributor_by_worker": [plain(entry) for entry in self.contributors],
            "iterations": [
                {
                    "iteration": entry.iteration,
                    "a_s": entry.a,
                    "b_s": entry.b,
                    "difference_s": entry.difference,
                    "phases": [plain(kind) for kind in entry.kinds],
                    "largest_contributor": plain(entry.largest),
                }
                for entry in self.iterations
            ],
            "largest_contributor": plain(self.largest) if self.largest else None,
            "models": dataclasses.asdict(self.models) if self.models else None,
        }

    def phase_table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows: every phase with its operations, and the total."""
        rows = []
        for phase in self.phases:
            rows.append(_cells(phase.kind, phase.a, phase.b))
            rows += [
                _cells(f"  {entry.operation}", entry.a, entry.b)
                for entry in self.operations
                if entry.kind == phase.kind
            ]
        rows.append(_cells("total", self.total_a, self.total_b))
        return ["phase", "A", "B", "B - A", "B / A"], rows

    def __str__(self) -> str:
        models = self.models.text if self.models else "At least one of the runs has no final models."
        table = text_table(*self.phase_table(), left=(0,))
        lines = [f"A: {self.name_a}", f"B: {self.name_b}", *filter(None, [self.given_differently()])]
        lines += ["", "Time per worker and iteration", "", table]
        lines += [*filter(None, (self.verdict(), self.work_verdict())), models]
        ranked = self.ranked_workers()
        if ranked and len(self.workers) > 1:
            lines += ["", _workers_title(ranked, len(self.workers)), ""]
            lines += [text_table(*self.worker_table(), left=(4,)), self.worker_verdict()]
        if self.worst_iteration is not None and len(self.iterations) > 1:
            lines += ["", "Time of an average worker, by iteration", ""]
            lines += [text_table(*self.iteration_table(), left=(0, 4)), self.iteration_verdict()]
        return "\n".join(lines)

    def worker_table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows: B - A of the workers that differ most, by kind."""
        rows = []
        for rank in self.ranked_workers()[:MOST_WORKERS]:
            cells = [difference_text(kind.a, kind.b) for kind in self.workers[rank]]
            worst = self.contributors[rank]
            rows.append([str(rank), *cells, f"{_named(worst)} {_signed(worst.difference)}"])
        return ["worker", *KINDS, "largest contributor"], rows

    def iteration_table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows: the iterations, in blocks of equal length, with means over each."""
        rows = []
        for block in blocks(len(self.iterations), MOST_BLOCKS):
            part = self.iterations[block.start : block.stop]
            first, last = part[0].iteration, part[-1].iteration
            a, b = (sum(getattr(entry, side) for entry in part) / len(part) for side in ("a", "b"))
            worst = max(part, key=lambda entry: abs(entry.difference))
            differs = _differ(worst.a, worst.b)
            most = f"{worst.iteration}: {_named(worst.largest)} {_signed(worst.largest.difference)}"
            name = f"{first}" if first == last else f"{first} to {last}"
            rows.append([name, _seconds(a), _seconds(b), difference_text(a, b), most if differs else "-"])
        return ["iteration", "A", "B", "B - A", "most different"], rows


MOST_WORKERS = 8
"""Workers that a table shows at most."""

MOST_BLOCKS = 10
"""Blocks of iterations that a table shows at most."""


def blocks(count: int, most: int) -> list[range]:
    """Return so many things cut into at most so many ranges of one length; the last may be shorter."""
    length = math.ceil(count / most)
    return [range(first, min(first + length, count)) for first in range(0, count, length)]


def _workers_title(ranked: Sequence[int], workers: int) -> str:
    title = "B - A per iteration, by worker"
    shown = min(len(ranked), MOST_WORKERS)
    return title if shown == workers else f"{title}: the {shown} of {workers} that differ most"


def _cells(name: str, a: float, b: float) -> list[str]:
    ratio = f"{b / a:.3f}" if a > 0 else "-"
    return [name, _seconds(a), _seconds(b), difference_text(a, b), ratio]


def difference_text(a: float, b: float) -> str:
    """Return b - a in seconds as text; what is lost in rounding is no difference."""
    return _signed(b - a) if _differ(a, b) else "0 s"


def _seconds(value: float) -> str:
    return format_quantity(value, "s")


def _differ(a: float, b: float) -> bool:
    """Return whether two times differ by more than is lost in rounding."""
    return abs(b - a) > 1e-9 * max(a, b)


def _largest(entries: Iterable[PhaseDifference]) -> PhaseDifference | None:
    return max(entries, key=lambda entry: abs(entry.difference), default=None)


def _work(entries: Iterable[PhaseDifference]) -> Iterator[PhaseDifference]:
    """Yield all but the waiting."""
    return (entry for entry in entries if entry.kind != WAIT)


def _named(entry: PhaseDifference) -> str:
    return f"{entry.operation} ({entry.kind})"


def _more(difference: float) -> str:
    return f"{_seconds(abs(difference))} {'longer' if difference > 0 else 'less'}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{_seconds(value)}"


def compare(a: Run, b: Run) -> Comparison:
    """Return where two runs differ, in seconds per worker and iteration."""
    detailed_a, detailed_b = attribution_by_iteration(a), attribution_by_iteration(b)
    parts_a, parts_b = _per_iteration(a, detailed_a), _per_iteration(b, detailed_b)
    mean_a, mean_b = _mean(parts_a), _mean(parts_b)
    same_workers = a.workers == b.workers
    return Comparison(
        name_a=_name(a),
        name_b=_name(b),
        phases=_by_kind(mean_a, mean_b),
        operations=_by_operation(mean_a, mean_b),
        workers=tuple(map(_by_kind, parts_a, parts_b)) if same_workers else (),
        contributors=tuple(map(_work_contributor, parts_a, parts_b)) if same_workers else (),
        iterations=_by_iteration(_mean_iterations(detailed_a), _mean_iterations(detailed_b)),
        total_a=a.time_per_iteration,
        total_b=b.time_per_iteration,
        models=compare_models(a, b),
        stale_a=a.staleness(),
        stale_b=b.staleness(),
        given=differing(a.scenario, b.scenario),
    )


def _name(run: Run) -> str:
    clock = {"virtual": "simulated", "wall": "executed"}[run.clock]
    if run.emulation is not None:
        clock += " in an emulated network"
    step = "" if run.step_size is None else f", step size {run.step_size:g}"
    return f"{run.scenario.name}, {label(run)}, {run.workers} workers{step}, {clock}"


Detailed = Sequence[Mapping[tuple[int, Phase], float]]
"""The seconds of each phase in each iteration, by worker."""


def _per_iteration(run: Run, detailed: Detailed) -> list[dict[Phase, float]]:
    """Return each worker's seconds in every phase, per mean iteration of the run."""
    iterations = sum(run.iterations) / run.workers or 1.0
    return [{phase: spent / iterations for phase, spent in over_iterations(own).items()} for own in detailed]


def _mean_iterations(detailed: Detailed) -> dict[int, dict[Phase, float]]:
    """Return an average worker's seconds in every phase, by iteration; of those workers that have it."""
    sums: dict[int, dict[Phase, float]] = {}
    counts: Counter[int] = Counter()
    for own in detailed:
        counts.update({iteration for iteration, _ in own})
        for (iteration, phase), spent in own.items():
            seconds = sums.setdefault(iteration, {})
            seconds[phase] = seconds.get(phase, 0.0) + spent
    return {
        iteration: {phase: spent / counts[iteration] for phase, spent in seconds.items()}
        for iteration, seconds in sums.items()
    }


def _by_iteration(
    a: Mapping[int, dict[Phase, float]], b: Mapping[int, dict[Phase, float]]
) -> tuple[IterationDifference, ...]:
    return tuple(
        IterationDifference(
            iteration, _by_kind(a[iteration], b[iteration]), _contributor(a[iteration], b[iteration])
        )
        for iteration in sorted(a.keys() & b.keys())
    )


def _by_operation(a: dict[Phase, float], b: dict[Phase, float]) -> tuple[PhaseDifference, ...]:
    operations = sorted({**a, **b}, key=lambda phase: (KINDS.index(phase[0]), phase[1]))
    return tuple(PhaseDifference(*phase, a.get(phase, 0.0), b.get(phase, 0.0)) for phase in operations)


def _work_contributor(a: dict[Phase, float], b: dict[Phase, float]) -> PhaseDifference:
    """Return the work of a worker that differs most, or else what it waits for."""
    work = _largest(_work(_by_operation(a, b)))
    return work if work is not None and work.differs else _contributor(a, b)


def _contributor(a: dict[Phase, float], b: dict[Phase, float]) -> PhaseDifference:
    """Return the operation that differs most between two times of one worker."""
    worst = _largest(_by_operation(a, b))
    assert worst is not None  # every instant belongs to an operation
    return worst


def _mean(parts: list[dict[Phase, float]]) -> dict[Phase, float]:
    total: dict[Phase, float] = {}
    for own in parts:
        for phase, spent in own.items():
            total[phase] = total.get(phase, 0.0) + spent / len(parts)
    return total


def _by_kind(a: dict[Phase, float], b: dict[Phase, float]) -> tuple[PhaseDifference, ...]:
    def of(parts: dict[Phase, float], kind: str) -> float:
        return sum(spent for phase, spent in parts.items() if phase[0] == kind)

    return tuple(PhaseDifference(kind, "all", of(a, kind), of(b, kind)) for kind in KINDS)


def bit_identical(a: Run, b: Run) -> bool:
    """Return whether the final models of two runs have the same shape, type and bits.

    Raises
    ------
    BadInput
        A run has no final models, as timing-only runs do.
    """
    found = compare_models(a, b)
    if found is None:
        raise BadInput("", "a timing-only run has no final models to compare")
    return found.identical


def compare_models(a: Run, b: Run) -> ModelComparison | None:
    """Compare the final models of two runs; None where a run has none."""
    if a.models is None or b.models is None:
        return None
    if a.models.shape != b.models.shape:
        text = f"The final models differ in shape: {a.models.shape} and {b.models.shape}."
        return ModelComparison(False, None, text)
    same = a.models.dtype == b.models.dtype and a.models.tobytes() == b.models.tobytes()
    largest = float(abs(a.models.astype("float64") - b.models.astype("float64")).max(initial=0.0))
    if same:
        return ModelComparison(True, largest, "The final models are bit-identical.")
    if a.models.dtype != b.models.dtype:
        text = f"The final models differ in type: {a.models.dtype} and {b.models.dtype}; "
        return ModelComparison(False, largest, f"{text}largest difference {largest:.3g}.")
    return ModelComparison(
        False, largest, f"The final models are not bit-identical; largest difference {largest:.3g}."
    )


def load_run(folder: Path) -> Run:
    """Read a saved run: of an experiment its only one; where there are more, say which folders hold them.

    Raises
    ------
    BadInput
        There is no single, complete run in it.
    """
    inner = sorted(entry.parent.name for entry in folder.glob("*/spans.parquet"))
    if inner and not (folder / "spans.parquet").exists():
        if len(inner) == 1:
            return Run.load(folder / inner[0])
        named = ", ".join(f"'{name}'" for name in inner)
        raise BadInput(str(folder), f"holds several runs; name one of its folders: {named}")
    return Run.load(folder)


def figure(comparison: Comparison) -> go.Figure:
    """Return both runs' seconds per worker and iteration, by operation, as bars."""
    from analysis.figures import comparison_figure

    return comparison_figure(comparison)
