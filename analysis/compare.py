"""Where two runs differ, phase by phase, and whether they ended with the same models.

Every instant of every worker belongs to one operation (:mod:`analysis.attribution`), so the differences
of the operations add up to the difference of the runs. They are given in seconds per worker and
iteration: the time that an average worker spends on it per iteration. That makes runs of different
lengths comparable, and a simulated run with an executed one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.attribution import KINDS, Phase, attribution
from analysis.speedup import label, text_table
from simulator.parts import BadInput
from simulator.run import Run
from simulator.units import format_quantity

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
    """Two runs, phase by phase.

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
    total_a, total_b
        Seconds per iteration; what the phases add up to.
    models
        Whether the final models are the same; None where a run has none.
    stale_a, stale_b
        The staleness of every update, where the algorithm measures it.
    """

    name_a: str
    name_b: str
    phases: tuple[PhaseDifference, ...]
    operations: tuple[PhaseDifference, ...]
    workers: tuple[tuple[PhaseDifference, ...], ...]
    total_a: float
    total_b: float
    models: ModelComparison | None
    stale_a: Sequence[float] = ()
    stale_b: Sequence[float] = ()

    @property
    def largest(self) -> PhaseDifference | None:
        """The operation that contributes most to the difference; None where nothing differs."""
        worst = max(self.operations, key=lambda entry: abs(entry.difference), default=None)
        return worst if worst is not None and worst.difference != 0 else None

    def verdict(self) -> str:
        """Return in a sentence where the runs differ most."""
        worst = self.largest
        if worst is None:
            return "No phase differs."
        total = self.total_b - self.total_a
        longer = "longer" if worst.difference > 0 else "less"
        part = f"{worst.operation} ({worst.kind})"
        text = f"Largest contributor: {part}, in which B spends {_seconds(abs(worst.difference))} {longer}"
        if total * worst.difference > 0:
            return (
                f"{text} per worker and iteration, {100 * worst.difference / total:.0f} % of the difference."
            )
        return f"{text} per worker and iteration, against the difference of {_signed(total)}."

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
            "per": "worker and iteration",
            "total_a_s": self.total_a,
            "total_b_s": self.total_b,
            "difference_s": self.total_b - self.total_a,
            "phases": [plain(entry) for entry in self.phases],
            "operations": [plain(entry) for entry in self.operations],
            "workers": [[plain(entry) for entry in own] for own in self.workers],
            "largest_contributor": plain(self.largest) if self.largest else None,
            "models": dataclasses.asdict(self.models) if self.models else None,
        }

    def __str__(self) -> str:
        rows = []
        for phase in self.phases:
            rows.append(_cells(phase.kind, phase.a, phase.b))
            rows += [
                _cells(f"  {entry.operation}", entry.a, entry.b)
                for entry in self.operations
                if entry.kind == phase.kind
            ]
        rows.append(_cells("total", self.total_a, self.total_b))
        models = self.models.text if self.models else "At least one of the runs has no final models."
        table = text_table(["phase", "A", "B", "B - A", "B / A"], rows, left=(0,))
        heads = [f"A: {self.name_a}", f"B: {self.name_b}", "", "Time per worker and iteration", ""]
        return "\n".join([*heads, table, self.verdict(), models])


def _cells(name: str, a: float, b: float) -> list[str]:
    ratio = f"{b / a:.3f}" if a > 0 else "-"
    return [name, _seconds(a), _seconds(b), difference_text(a, b), ratio]


def difference_text(a: float, b: float) -> str:
    """Return b - a in seconds as text; what is lost in rounding is no difference."""
    return _signed(b - a) if abs(b - a) > 1e-9 * max(a, b) else "0 s"


def _seconds(value: float) -> str:
    return format_quantity(value, "s")


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{_seconds(value)}"


def compare(a: Run, b: Run) -> Comparison:
    """Return where two runs differ, in seconds per worker and iteration."""
    parts_a, parts_b = _per_iteration(a), _per_iteration(b)
    mean_a, mean_b = _mean(parts_a), _mean(parts_b)
    operations = sorted({**mean_a, **mean_b}, key=lambda phase: (KINDS.index(phase[0]), phase[1]))
    same_workers = a.workers == b.workers
    return Comparison(
        name_a=_name(a),
        name_b=_name(b),
        phases=_by_kind(mean_a, mean_b),
        operations=tuple(
            PhaseDifference(*phase, mean_a.get(phase, 0.0), mean_b.get(phase, 0.0)) for phase in operations
        ),
        workers=tuple(map(_by_kind, parts_a, parts_b)) if same_workers else (),
        total_a=a.time_per_iteration,
        total_b=b.time_per_iteration,
        models=compare_models(a, b),
        stale_a=a.staleness(),
        stale_b=b.staleness(),
    )


def _name(run: Run) -> str:
    clock = {"virtual": "simulated", "wall": "executed"}[run.clock]
    if run.emulation is not None:
        clock += " in an emulated network"
    step = "" if run.step_size is None else f", step size {run.step_size:g}"
    return f"{run.scenario.name}, {label(run)}, {run.workers} workers{step}, {clock}"


def _per_iteration(run: Run) -> list[dict[Phase, float]]:
    """Return each worker's seconds in every phase, per mean iteration of the run."""
    iterations = sum(run.iterations) / run.workers or 1.0
    return [{phase: spent / iterations for phase, spent in own.items()} for own in attribution(run)]


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
    """Read a saved run; where the folder is a whole experiment, say which of its folders hold runs.

    Raises
    ------
    BadInput
        There is no single, complete run in it.
    """
    inner = sorted(entry.parent.name for entry in folder.glob("*/spans.parquet"))
    if inner and not (folder / "spans.parquet").exists():
        named = ", ".join(f"'{name}'" for name in inner)
        raise BadInput(str(folder), f"holds several runs; name one of its folders: {named}")
    return Run.load(folder)


def figure(comparison: Comparison) -> go.Figure:
    """Return both runs' seconds per worker and iteration, by operation, as bars."""
    from analysis.figures import comparison_figure

    return comparison_figure(comparison)
