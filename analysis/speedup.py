"""Speedups: how much sooner n workers reach the target than one does, in iterations and in time.

An iteration of a worker is one gradient computation that it applies or sends. T_n is the mean over the
workers of their iterations until the target is reached, t_n the time of that moment on the run's clock
(:meth:`simulator.run.Run.reached`). With the one-worker run of the same algorithm as the reference,

    iteration speedup = T_1 / T_n        time speedup = t_1 / t_n        efficiency = time speedup / ideal

where the ideal is the ratio of total computing power, the sum of the workers' speeds in samples per
second over that of the reference; for n equal workers it is n. A target that was not reached has no
T and no t, and then there is no speedup either: the table says so instead of inventing one.
"""

from __future__ import annotations

import dataclasses
import html
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.privacy import spent_to_target
from simulator.parts import BadInput, Part
from simulator.run import Run
from simulator.target import Reached
from simulator.units import format_quantity

if TYPE_CHECKING:
    import pandas as pd

NOT_REACHED = "not reached"
DIVERGED = "diverged"
NO_TARGET = "no target"
ONE_NOT_REACHED = "not reached by 1 worker"


def parameters(part: Part) -> dict[str, Any]:
    """Return the parameters of a part that differ from their defaults, as a file would hold them."""
    fields = type(part.values).model_fields
    written = part.data()
    changed = {}
    for name, field in fields.items():
        key = field.alias or name
        if getattr(part.values, name) != field.default:
            changed[key] = written[key]
    return changed


def label(run: Run) -> str:
    """Return what tables and figures call a run's algorithm: its name and its changed parameters."""
    return part_label(run.scenario.sections.algorithm)


def part_label(part: Part) -> str:
    """Return a part's name with the parameters that differ from their defaults: ``local-sgd (period 8)``."""
    changed = parameters(part)
    if not changed:
        return part.name
    return f"{part.name} ({', '.join(f'{key} {_said(value)}' for key, value in changed.items())})"


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One run against its one-worker reference.

    Attributes
    ----------
    algorithm
        Name and changed parameters.
    workers
        The number of workers n.
    step_size
        The step size; None in a timing-only run.
    grid
        The step sizes of which this is the best; empty where the step size was given.
    target
        The target in words; None where the scenario has none.
    iterations, time
        T_n, and t_n in seconds; None where the target was not reached.
    reference_iterations, reference_time
        T_1, and t_1 in seconds; None where one worker did not reach the target.
    iteration_speedup, time_speedup
        T_1 / T_n and t_1 / t_n; None where one of the two did not reach the target.
    ideal
        The ratio of total computing power.
    efficiency
        Time speedup / ideal.
    compute, transfer, wait
        Mean shares of the workers' time.
    bytes_per_iteration
        Bytes that a worker sends per iteration, mean over the workers.
    time_per_iteration
        Seconds per iteration, each worker's time until its own end.
    extrapolated
        Whether one of the two runs ended before its target, whose time follows from its mean pace.
    epsilon
        The privacy that the run spent until its target, or in all; None where nothing is promised.
    passes
        Gradient evaluations / n until the target, or in all, for a sum of n; None where there is no such n.
    gradients_per_iteration
        Gradients evaluated in an iteration, on average.
    server_bytes_per_iteration
        Bytes that a dedicated server sends per iteration of the workers, mean over the servers; None where
        there is none.
    diverged
        Whether the loss had diverged at the end.
    """

    algorithm: str
    workers: int
    step_size: float | None
    grid: tuple[float, ...]
    target: str | None
    iterations: float | None
    time: float | None
    reference_iterations: float | None
    reference_time: float | None
    iteration_speedup: float | None
    time_speedup: float | None
    ideal: float
    efficiency: float | None
    compute: float
    transfer: float
    wait: float
    bytes_per_iteration: float
    time_per_iteration: float
    extrapolated: bool
    epsilon: float | None = None
    passes: float | None = None
    gradients_per_iteration: float = 1.0
    server_bytes_per_iteration: float | None = None
    diverged: bool = False

    @property
    def missing(self) -> str | None:
        """Why there is no speedup, in a few words; None where there is one."""
        if self.target is None:
            return NO_TARGET
        if self.iterations is None:
            return DIVERGED if self.diverged else NOT_REACHED
        return ONE_NOT_REACHED if self.reference_iterations is None else None


def measure(run: Run, reference: Run, grid: Sequence[float] = ()) -> Row:
    """Return the figures of a run against its one-worker reference.

    Parameters
    ----------
    run, reference
        Runs of the same algorithm to the same target.
    grid
        The step sizes that were tried; empty where the step size was given.

    Raises
    ------
    BadInput
        The two have different targets.
    """
    target = _target(run)
    if _target(reference) != target:
        raise BadInput(
            label(run),
            f"the run on {run.workers} workers has the target '{target}', "
            f"its one-worker run '{_target(reference)}'",
        )
    reached, first = run.reached(), reference.reached()
    ideal = sum(run.scenario.speeds) / sum(reference.scenario.speeds)
    time_speedup = _ratio(first, reached, lambda at: at.time)
    return Row(
        algorithm=label(run),
        workers=run.workers,
        step_size=run.step_size,
        grid=tuple(grid) if len(grid) > 1 else (),
        target=target,
        iterations=reached.iterations if reached else None,
        time=reached.time if reached else None,
        reference_iterations=first.iterations if first else None,
        reference_time=first.time if first else None,
        iteration_speedup=_ratio(first, reached, lambda at: at.iterations),
        time_speedup=time_speedup,
        ideal=ideal,
        efficiency=None if time_speedup is None else time_speedup / ideal,
        bytes_per_iteration=_bytes_per_iteration(run),
        time_per_iteration=run.time_per_iteration,
        extrapolated=any(at is not None and at.extrapolated for at in (reached, first)),
        epsilon=spent_to_target(run),
        passes=_passes(run, reached),
        gradients_per_iteration=sum(run.evaluations) / sum(run.iterations) if run.evaluations else 1.0,
        server_bytes_per_iteration=_server_bytes_per_iteration(run),
        diverged=run.diverged() is not None,
        **run.time_shares(),
    )


def _passes(run: Run, reached: Reached | None) -> float | None:
    """Return the passes over the summands until the target, or in all where it was not reached.

    Evaluations are counted for the whole run; until the target they are taken in proportion to iterations.
    """
    passes = run.passes()
    if passes is None or reached is None:
        return passes
    return passes * reached.iterations / statistics.fmean(run.iterations)


def _target(run: Run) -> str | None:
    target = run.scenario.sections.target
    return target.text() if target else None


def _ratio(one: Reached | None, many: Reached | None, of: Callable[[Reached], float]) -> float | None:
    """Return the speedup, or None where one of the two is missing or took nothing at all."""
    if one is None or many is None or not of(many) > 0:
        return None
    return of(one) / of(many)


def _bytes_per_iteration(run: Run) -> float:
    pairs = zip(run.bytes_sent, run.iterations, strict=True)
    return sum(sent / max(iterations, 1) for sent, iterations in pairs) / run.workers


def _server_bytes_per_iteration(run: Run) -> float | None:
    if not run.server_bytes:
        return None
    return statistics.fmean(run.server_bytes) / max(statistics.fmean(run.iterations), 1)


def speedups(runs: Iterable[Run]) -> Table:
    """Return the table of runs of any algorithms and worker counts.

    The one-worker run of the same algorithm, with the same parameters, is the reference of each; that of an
    algorithm with servers may host the one server that a worker alone needs.

    Raises
    ------
    BadInput
        An algorithm has no one-worker run, or two different ones, or another target in it.
    """
    given = list(runs)
    references: dict[str, Run] = {}
    for run in given:
        if run.workers > 1:
            continue
        known = references.setdefault(label(run), run)
        if known.scenario.digest() != run.scenario.digest():
            raise BadInput(
                label(run), "there are two different one-worker runs of it; put them into two tables"
            )
    rows = []
    for run in given:
        reference = _found(run, references)
        if reference is None:
            raise BadInput(label(run), "there is no one-worker run of it, which its speedups refer to")
        _check_comparable(run, reference)
        rows.append(measure(run, reference))
    return Table(tuple(rows))


def _found(run: Run, references: Mapping[str, Run]) -> Run | None:
    """Return a run's one-worker run, which may have servers like its own or host the one that it needs."""
    found = references.get(label(run))
    return found or references.get(part_label(run.scenario.reference().sections.algorithm))


def _check_comparable(run: Run, reference: Run) -> None:
    """Refuse a one-worker run that differs in more than its machines and its step size."""
    one, many = reference.scenario.resolved(), run.scenario.resolved()
    keys = [("seed",), ("workload", "cost"), ("workload", "objective"), ("workload", "objective-batch")]
    for path in [*keys, ("workload", "scaling")]:
        ours: Any = many
        theirs: Any = one
        for step in path:
            ours, theirs = (ours or {}).get(step), (theirs or {}).get(step)
        if ours != theirs:
            problem = f"the run on {run.workers} workers has {ours}, its one-worker run {theirs}"
            raise BadInput(f"{label(run)}: {'.'.join(path)}", problem)


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the table: its heading, and the text of its cell in a row."""

    heading: str
    cell: Callable[[Row], str]
    text: bool = False


def _missing_or(row: Row, value: float | None, form: Callable[[float], str]) -> str:
    """Return the value as text, or why it is missing."""
    return form(value) if value is not None else (row.missing or "-")


def _duration(row: Row) -> Callable[[float], str]:
    """Return how a row writes its time to the target: one that the run did not live to see is marked."""
    mark = " *" if row.extrapolated else ""
    return lambda value: format_quantity(value, "s") + mark


def count_text(value: float) -> str:
    """Return a number of iterations as text; a mean need not be whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_COLUMNS = (
    _Column("algorithm", lambda row: row.algorithm, text=True),
    _Column("workers", lambda row: str(row.workers)),
    _Column("step size", lambda row: "-" if row.step_size is None else f"{row.step_size:g}"),
    _Column("iterations to target", lambda row: _missing_or(row, row.iterations, count_text)),
    _Column("time to target", lambda row: _missing_or(row, row.time, _duration(row))),
    _Column(
        "iteration speedup", lambda row: _missing_or(row, row.iteration_speedup, lambda value: f"{value:.2f}")
    ),
    _Column("time speedup", lambda row: _missing_or(row, row.time_speedup, lambda value: f"{value:.2f}")),
    _Column("efficiency", lambda row: _missing_or(row, row.efficiency, _percent)),
    _Column("compute", lambda row: _percent(row.compute)),
    _Column("transfer", lambda row: _percent(row.transfer)),
    _Column("waiting", lambda row: _percent(row.wait)),
    _Column("time per iteration", lambda row: format_quantity(row.time_per_iteration, "s")),
    _Column("bytes per iteration", lambda row: format_quantity(row.bytes_per_iteration, "B")),
)

_EPSILON = _Column("epsilon", lambda row: "-" if row.epsilon is None else f"{row.epsilon:.4g}")
"""Shown where a row promises privacy."""

_PASSES = _Column("passes", lambda row: "-" if row.passes is None else f"{row.passes:.4g}")
"""Shown where an algorithm evaluates more than a gradient in an iteration."""

_SERVED = _Column(
    "bytes of a server per iteration",
    lambda row: (
        "-"
        if row.server_bytes_per_iteration is None
        else format_quantity(row.server_bytes_per_iteration, "B")
    ),
)
"""Shown where an algorithm has dedicated servers."""

_UNITS = {
    "time": "time_s",
    "reference_time": "reference_time_s",
    "time_per_iteration": "time_per_iteration_s",
    "bytes_per_iteration": "sent_per_iteration_bytes",
    "server_bytes_per_iteration": "server_sent_per_iteration_bytes",
}
"""Keys of plain data that carry a unit, by the field of a row."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Speedups of several runs; prints as aligned text, and as HTML in a notebook.

    Attributes
    ----------
    rows
        One per run, in the order given.
    """

    rows: tuple[Row, ...]

    @property
    def _columns(self) -> tuple[_Column, ...]:
        extra = [_EPSILON] if any(row.epsilon is not None for row in self.rows) else []
        extra += (
            [_PASSES] if any(row.passes and row.gradients_per_iteration > 1.5 for row in self.rows) else []
        )
        served = [_SERVED] if any(row.server_bytes_per_iteration is not None for row in self.rows) else []
        return (*_COLUMNS[:5], *extra, *_COLUMNS[5:], *served)

    def headings(self) -> list[str]:
        """Return the columns' headings."""
        return [column.heading for column in self._columns]

    def cells(self) -> list[list[str]]:
        """Return every row's cells as text."""
        return [[column.cell(row) for column in self._columns] for row in self.rows]

    def notes(self) -> list[str]:
        """Return what a reader has to know beside the figures, in sentences."""
        targets = list(dict.fromkeys(row.target for row in self.rows if row.target))
        notes = [f"Target: {'; '.join(targets)}."] if targets else ["There is no target, hence no speedup."]
        grids = list(dict.fromkeys(row.grid for row in self.rows if row.grid))
        for grid in grids:
            tried = ", ".join(f"{step:g}" for step in grid)
            notes.append(f"Step sizes are the best of {tried}, for each algorithm and number of workers.")
        if any(row.extrapolated for row in self.rows):
            notes.append(
                "* The run, or the one-worker run that it refers to, ended before the target; "
                "that one's time follows from its mean pace."
            )
        ideals = list(dict.fromkeys(f"{row.ideal:.4g}" for row in self.rows if row.workers > 1))
        if ideals and targets:
            notes.append(f"Efficiency is the time speedup over the ideal of {' and '.join(ideals)}.")
        if any(row.missing == DIVERGED for row in self.rows):
            notes.append(f"Where it says {DIVERGED}, the target was not reached because of that.")
        notes.append("Compute, transfer and waiting are shares of the workers' time, each until its own end.")
        if _SERVED in self._columns:
            notes.append(
                "Dedicated servers are no workers: theirs are the bytes that a server sends per iteration "
                "of the workers."
            )
        if _PASSES in self._columns:
            notes.append(
                "Passes are gradient evaluations / n until the target, or in all, for a sum of n; "
                "an iteration of a variance-reduced method takes more than one gradient."
            )
        if _EPSILON in self._columns:
            notes.append(
                "Epsilon is the privacy that a run spent until its target, or in all where it reached none; "
                "smaller is more private."
            )
            if grids:
                notes.append(
                    "It is that of one run; step sizes that are tried on the same samples spend more."
                )
        return notes

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as plain data, None where a target was not reached; keys carry the units."""
        return [
            {
                **{_UNITS.get(key, key): value for key, value in dataclasses.asdict(row).items()},
                "missing": row.missing,
            }
            for row in self.rows
        ]

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame; the columns' names carry the units."""
        import pandas as pd

        return pd.DataFrame(self.to_dicts())

    def __str__(self) -> str:
        return "\n".join([text_table(self.headings(), self.cells(), left=(0,)), *self.notes()])

    def _repr_html_(self) -> str:
        return html_table(self.headings(), self.cells(), left=(0,)) + "".join(
            f"<p>{html.escape(note)}</p>" for note in self.notes()
        )


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Return a table as aligned text, headings broken into lines where they are wider than their column.

    Parameters
    ----------
    headings, rows
        Texts.
    left
        Columns that are set flush left; the others are set flush right.
    """
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(headings)
    split = [
        _wrapped(heading, max(map(len, column), default=0))
        for heading, column in zip(headings, columns, strict=True)
    ]
    height = max(map(len, split), default=0)
    lines = [
        [words[line - height + len(words)] if line >= height - len(words) else "" for words in split]
        for line in range(height)
    ]
    widths = [max(len(row[index]) for row in [*lines, *rows]) for index in range(len(headings))]

    def aligned(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([*map(aligned, lines), rule, *map(aligned, rows)])


def _wrapped(heading: str, width: int) -> list[str]:
    """Return a heading as lines, none of them wider than the column or its longest word."""
    widest = max(width, *map(len, heading.split(" ")))
    lines = [""]
    for word in heading.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > widest:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def html_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (),
    marks: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """Return a table as HTML; figures are set flush right.

    Parameters
    ----------
    headings, rows
        Texts, escaped here.
    left
        Columns that are set flush left.
    marks
        (row, column) -> CSS class of a cell.
    """

    def cell(tag: str, text: str, column: int, row: int = -1) -> str:
        names = ["" if column in left else "figure", (marks or {}).get((row, column), "")]
        known = " ".join(filter(None, names))
        attribute = f' class="{known}"' if known else ""
        return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", text, column) for column, text in enumerate(headings))
    body = "\n".join(
        "<tr>" + "".join(cell("td", text, column, row) for column, text in enumerate(cells)) + "</tr>"
        for row, cells in enumerate(rows)
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
