"""The page to send to a colleague: one HTML file that needs no network connection.

It says what was simulated, in words with units, then how much sooner the target is reached, and where the
time goes. Nothing in it depends on the day or the machine: the same experiment gives the same bytes.
"""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import topologies
from analysis import figures
from analysis.compare import Comparison
from analysis.experiment import Entry, Experiment, Trial
from analysis.privacy import spent
from analysis.speedup import count_text, html_table, part_label
from simulator.cautions import cautions, cautions_of_run
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.schedules import CONSTANT
from simulator.sections import GossipSection
from simulator.units import format_quantity
from simulator.update import Sgd

if TYPE_CHECKING:
    import plotly.graph_objects as go

_STYLE = """
:root { color: #1b2733; background: #f3f5f7; }
:root { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
body { max-width: 1240px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; }
h2 { font-size: 19px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 18px 0 4px; }
header p { margin: 4px 0 20px; color: #55626f; font-size: 17px; }
section { background: white; border: 1px solid #dfe4e9; border-radius: 6px; }
section { padding: 20px 24px; margin: 0 0 18px; }
dl { display: grid; grid-template-columns: 170px 1fr; gap: 4px 16px; margin: 0; }
dt { color: #55626f; } dd { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; width: 100%; }
th { color: #55626f; font-weight: 600; text-align: left; vertical-align: bottom; padding: 4px 8px; }
th { border-bottom: 2px solid #c3cad1; }
td { border-bottom: 1px solid #e6eaee; padding: 6px 8px; white-space: nowrap; }
.figure { text-align: right; }
td.missing { color: #a34700; } td.best { font-weight: 700; }
.wide { overflow-x: auto; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px; }
.pair > div { min-width: 0; }
.note { color: #55626f; font-size: 14px; margin: 6px 0 0; }
.warnings { border-left: 5px solid #D55E00; } .warnings ul { margin: 0; padding-left: 20px; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
@media (max-width: 900px) { .pair { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; } }
@media print { :root { background: white; } section { break-inside: avoid; } }
""".strip()

_GLOSSARY = (
    ("iteration", "One gradient that a worker computes and applies or sends; counted as the workers' mean."),
    (
        "iterations to target",
        "T_n: the mean over the n workers of their iterations when the target is reached.{held}",
    ),
    ("time to target", "t_n: the time of that moment on the simulated clock."),
    (
        "iteration speedup",
        "T_1 / T_n; T_1 is that of the same algorithm on one worker, the fastest, with its batch.",
    ),
    ("time speedup", "t_1 / t_n."),
    ("ideal", "The workers' total computing power over that of the one worker; for n equal workers it is n."),
    ("efficiency", "Time speedup / ideal."),
    (
        "compute, transfer, waiting",
        "Shares of the workers' time, each until its own last iteration was done. An instant counts as "
        "computing if the worker's device is busy, else as transferring if one of its transfers is under "
        "way, else as waiting.",
    ),
    ("bytes per iteration", "What a worker hands over for sending, mean over the workers."),
    (
        "epsilon",
        "How much the presence of one sample can change what the models tell: a probability by a factor of "
        "exp(epsilon) at most, but for a chance of delta.",
    ),
    ("effective bandwidth", "Line rate times the share of it that is really delivered (efficiency)."),
    ("utilisation", "A link's load over its effective bandwidth."),
)  # fmt: skip

_LOSS_REACHED = (
    " A loss is reached where the loss of the averaged model on all data is at or below it and stays so for "
    "the next {reports} reports."
)

_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}


def title(scenario: Scenario) -> str:
    """Return what is simulated, in words: the cost model, and the objective where it is another."""
    cost, objective = cost_name(scenario), objective_name(scenario)
    if objective is None:
        return f"cost of {cost}, timing only"
    if objective.replace(" on ", "-") == cost:
        return f"{cost}, cost and numerics"
    return f"cost of {cost}, numerics of {objective}"


def cost_name(scenario: Scenario) -> str:
    """Return the name of the model that sets the cost."""
    cost = scenario.sections.workload.cost.data()
    if "model" in cost:
        return str(cost["model"])
    return f"a given model of {scenario.cost.parameters:,} parameters"


def objective_name(scenario: Scenario) -> str | None:
    """Return the name of what is really optimised; None in a timing-only scenario."""
    part = scenario.sections.workload.objective
    if part is None:
        return None
    data = part.data().get("data")
    return f"{part.name} on {data}" if data else str(part.name)


def facts(scenario: Scenario) -> list[tuple[str, str]]:
    """Return the scenario's key facts as (name, sentence) pairs, with units."""
    sections = scenario.sections
    cluster = sections.cluster
    found = [
        ("workers", _workers_text(scenario)),
        ("topology", _topology_text(scenario)),
        *(("links", text) for text in _links(scenario)),
        ("transport", part_label(cluster.transport)),
        *(("straggler", text) for text in straggler_sentences(scenario)),
        *(
            (
                "background traffic",
                f"{flow.source} to {flow.destination}, at most {format_quantity(flow.rate, 'B/s')}",
            )
            for flow in cluster.background
        ),
        ("batch", _batch_text(scenario)),
        ("cost", _cost_text(scenario)),
    ]
    if sections.workload.objective is not None:
        settings = sections.workload.objective.data()
        rest = ", ".join(
            f"{key} {value}"
            for key, value in settings.items()
            if key not in ("kind", "data") and value is not None
        )
        found.append(
            ("numerics", f"{objective_name(scenario)} ({rest})" if rest else str(objective_name(scenario)))
        )
    if scenario.objective_batches != scenario.batches:
        taken, charged = _range_text(scenario.objective_batches), _range_text(scenario.batches)
        text = f"{taken} a worker in a gradient of the objective; the time charged is that of {charged}"
        found.append(("objective batch", text))
    if any(part.build().needs_graph for part in (sections.algorithm, *sections.compare)):
        gossip = sections.gossip or GossipSection()
        name = gossip.graph if isinstance(gossip.graph, str) else gossip.graph.get("builder")
        found.append(("gossip", f"{name} graph, {gossip.mixing} weights"))
    if scenario.update != Sgd():
        found.append(("update rule", _update_text(scenario)))
    found.append(("budget", f"{sections.budget.iterations:,} iterations a worker"))
    if sections.target is not None:
        found.append(("target", sections.target.text()))
    own = sections.cluster.seed
    found.append(("seed", str(scenario.seed) if own is None else f"{scenario.seed}, of the machines {own}"))
    return found


def _update_text(scenario: Scenario) -> str:
    """Return the update rule and its schedule, each with its numbers."""
    rule = scenario.sections.update.data()
    schedule = rule.pop("schedule", {})
    parts = [(rule.pop("rule"), rule)]
    if scenario.update.schedule != CONSTANT:
        parts.append((f"{schedule.pop('kind')} schedule", schedule))
    texts = []
    for name, settings in parts:
        numbers = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
        texts.append(f"{name} ({numbers})" if numbers else name)
    return ", ".join(texts)


def _workers_text(scenario: Scenario) -> str:
    devices = scenario.cluster.devices[: scenario.workers]
    names = [device.name for device in devices]
    named = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    gpus = len(topologies.gpus(scenario.graph))
    unused = gpus - len(set(scenario.cluster.nodes))
    rest = f"; {unused} of the {gpus} GPUs unused" if unused else ""
    if scenario.servers:
        served = f"{scenario.servers} dedicated server{'s' if scenario.servers > 1 else ''}"
        rest = f"; {served} ({scenario.cluster.devices[-1].name}){rest}"
    efficiencies = sorted({device.efficiency for device in devices})
    share = " and ".join(f"{100 * value:g} %" for value in efficiencies) + " of the peak rate"
    tables = {table.model for device in devices for table in device.tables or ()}
    if getattr(scenario.cost, "model", None) in tables:
        share = "times measured by batch size"
    return f"{scenario.workers} ({named}, {share}){rest}"


def _topology_text(scenario: Scenario) -> str:
    topology = scenario.sections.cluster.topology
    data = topology.data()
    plain = [
        f"{key} {value}"
        for key, value in data.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    name = data.get("builder") or (f"from {data['file']}" if "file" in data else "given as a graph")
    return f"{name} ({', '.join(plain)})" if plain else str(name)


def _links(scenario: Scenario) -> list[str]:
    """Return one sentence for each kind of link: what it joins, line rate, effective bandwidth, latency."""
    graph = scenario.graph
    counts: dict[tuple[str, topologies.LinkSpec], int] = {}
    for tail, head in graph.edges():
        ends = "–".join(str(graph.nodes[node]["kind"]) for node in (tail, head))
        key = (ends, topologies.link_spec(graph, tail, head))
        counts[key] = counts.get(key, 0) + 1
    sentences = []
    for (ends, spec), count in list(counts.items())[:8]:
        rate = f"{format_quantity(spec.bandwidth, 'B/s')} ({format_quantity(8 * spec.bandwidth, 'bit/s')})"
        if spec.efficiency != 1:
            effective = format_quantity(spec.capacity, "B/s")
            rate += f", of which {100 * spec.efficiency:g} % is delivered: effective {effective}"
        latency = format_quantity(spec.latency, "s")
        sentences.append(f"{count} × {ends}: {rate}; latency {latency}; {spec.duplex} duplex")
    if len(counts) > 8:
        sentences.append(f"and {len(counts) - 8} more kinds of links")
    return sentences


def straggler_sentences(scenario: Scenario) -> list[str]:
    """Return the scenario's stragglers in words."""
    said, silent = ("kind", "workers", "between"), (None, "0.0 s", "inf s")
    sentences = []
    for part in scenario.sections.cluster.stragglers:
        data = part.data()
        workers = data.get("workers")
        if "between" in data:
            who = f"link {' – '.join(data['between'])}"
        elif workers is None:
            who = "every worker"
        else:
            who = f"worker{'s' if len(workers) > 1 else ''} {', '.join(map(str, workers))}"
        rest = "".join(
            f", {_setting_text(key, data[key])}"
            for key in data
            if key not in said and data[key] not in silent
        )
        sentences.append(f"{part.name}: {who}{rest}")
    return sentences


def _setting_text(key: str, value: Any) -> str:
    """Return a key and its value to four digits; of many values, as of measured jitter, how far they go."""
    if isinstance(value, (list, tuple)):
        return f"{len(value)} {key} from {_rounded(min(value))} to {_rounded(max(value))}"
    return f"{key} {_rounded(value)}"


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _range_text(batches: Sequence[int]) -> str:
    return f"{batches[0]}" if len(set(batches)) == 1 else f"{min(batches)} to {max(batches)}"


def _batch_text(scenario: Scenario) -> str:
    batches = scenario.batches
    workload = scenario.sections.workload
    each = (
        f"{batches[0]}"
        if len(set(batches)) == 1
        else f"{min(batches)} to {max(batches)}, proportional to speed"
    )
    return f"{each} samples a worker, {sum(batches):,} in all ({workload.scaling} scaling)"


def _cost_text(scenario: Scenario) -> str:
    cost = scenario.cost
    size = format_quantity(cost.parameters * cost.parameter_bytes, "B")
    seconds = sorted({batch / speed for batch, speed in zip(scenario.batches, scenario.speeds, strict=True)})
    times = format_quantity(seconds[0], "s")
    if len(seconds) > 1:
        times += f" to {format_quantity(seconds[-1], 's')}"
    return f"{cost_name(scenario)}: {cost.parameters:,} parameters, {size}; a gradient takes {times}"


def warnings(experiment: Experiment) -> list[str]:
    """Return what a reader must not overlook, in sentences, each once with all that it is true of."""
    target = experiment.scenario.sections.target
    diverged, lost, missed, said = [], [], [], []
    for entry in experiment.entries:
        for run in _sides(entry):
            name = _name(entry, run)
            if (where := run.diverged()) is not None:
                place = f"{count_text(where.iterations)} iterations ({format_quantity(where.time, 's')})"
                diverged.append(f"{name} from {place} on")
                if target is not None and run.reached() is None:
                    lost.append(name)
            elif target is not None and run.reached() is None:
                last = f" (last loss {run.samples.loss[-1]:.4g})" if run.samples.loss else ""
                missed.append(f"{name}{last}")
            said += [(name, text) for text in memory_warnings(run)]
        own = (*cautions(entry.run.scenario), *cautions_of_run(entry.run))
        said += [(entry.label, text) for text in own]
    found = []
    if diverged:
        consequence = ""
        if target is not None and len(lost) == len(diverged):
            consequence = f" The target ({target.text()}) was not reached because it diverged."
        elif target is not None and lost:
            consequence = f" {_listed(lost)} did not reach the target ({target.text()}) because of that."
        found.append(f"The loss diverged: {', '.join(diverged)}.{consequence}")
    if missed:
        found.append(_missed_text(experiment.scenario, missed))
    return [*found, *_grouped(said), *edge_warnings(experiment)]


def _missed_text(scenario: Scenario, missed: Sequence[str]) -> str:
    """Return who did not reach the target, in a sentence."""
    target, budget = scenario.sections.target, scenario.sections.budget.iterations
    assert target is not None
    stay = f" and stay there for {target.holds} more report{'s' if target.holds > 1 else ''}"
    who = "They have" if len(missed) > 1 else "It has"
    return (
        f"{_listed(missed)} did not reach the target ({target.text()}){stay if target.holds else ''} within "
        f"{budget:,} iterations. {who} no speedup."
    )


def _grouped(said: Iterable[tuple[str, str]]) -> list[str]:
    """Return sentences that several names share once, with all the names before them."""
    names: dict[str, list[str]] = {}
    for name, text in said:
        names.setdefault(text, []).append(name)
    return [f"{_listed(owners)}: {text}" for text, owners in names.items()]


def _listed(names: Sequence[str]) -> str:
    """Return names as a list in words."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _name(entry: Entry, run: Run) -> str:
    """Return what sentences call a run of an entry."""
    return f"{entry.label} on {run.workers} worker{'s' if run.workers > 1 else ''}"


def edge_warnings(experiment: Experiment) -> list[str]:
    """Return a sentence for each step size at the edge of the grid that was the best for somebody."""
    best: dict[float, list[str]] = {}
    for entry in experiment.entries:
        for run in _sides(entry):
            if run.step_size is not None and _at_the_edge(entry, run):
                best.setdefault(run.step_size, []).append(_name(entry, run))
    return [
        f"Step size {step:g} lies at the edge of the grid and is the best of {', '.join(names)}: "
        "a wider grid may do better."
        for step, names in best.items()
    ]


def _sides(entry: Entry) -> tuple[Run, ...]:
    return (entry.run,) if entry.run.workers == 1 else (entry.run, entry.reference)


def _at_the_edge(entry: Entry, run: Run) -> bool:
    """Return whether a tuned step size is the largest or the smallest of at least three."""
    steps = [trial.step_size for trial in entry.trials if trial.step_size is not None]
    return len(steps) >= 3 and run.step_size in (min(steps), max(steps))


def memory_warnings(run: Run) -> list[str]:
    """Return a sentence for each device whose memory is less than a worker's peak."""
    scenario = run.scenario
    found = {}
    for rank, device in enumerate(scenario.cluster.devices[: scenario.workers]):
        need = scenario.cost.peak_memory(scenario.batches[rank], scenario.model_copies)
        if need > device.memory:
            found[device.name] = (
                f"a worker needs {format_quantity(need, 'B')} at its peak, "
                f"but {device.name} has {format_quantity(device.memory, 'B')}."
            )
    return list(found.values())


def write_report(experiment: Experiment, path: str | Path) -> None:
    """Write the report of an experiment as one HTML file."""
    Path(path).write_text(report(experiment), encoding="utf-8")


def report(experiment: Experiment) -> str:
    """Return the report of an experiment as one HTML page."""
    scenario = experiment.scenario
    table = experiment.table()
    own = experiment.entries[0]
    private = any(row.epsilon is not None for row in table.rows)
    parts = [
        _header(
            f"{scenario.name}: {', '.join(entry.label for entry in experiment.entries)}", title(scenario)
        ),
        _warnings_section(warnings(experiment)),
        _section("Result", _result_table(experiment) + _notes(table.notes())),
    ]
    if own.run.samples.loss:
        pair = [
            _plot("loss-time", figures.loss_against_time(experiment), "Loss against simulated time"),
            _plot("loss-iterations", figures.loss_against_iterations(experiment), "Loss against iterations"),
        ]
        note = "One-worker runs are in the legend; click to show them." if scenario.workers > 1 else ""
        parts.append(
            _section("Loss", f'<div class="pair">{"".join(pair)}</div>{_notes([note] if note else [])}')
        )
    parts += [
        _privacy_section(experiment),
        _staleness_section({entry.label: entry.run.staleness() for entry in experiment.entries}),
        _section("Where the time goes", _plot("time-shares", figures.time_shares(table.rows))),
        _section(
            "What the workers did",
            _per_entry(experiment, "timeline", figures.worker_timeline),
            _TIMELINE_NOTE,
        ),
        _section("Links", _per_entry(experiment, "links", figures.link_utilisation), _LINKS_NOTE),
        _section(
            "Scenario",
            _facts_list(facts(scenario)) + _plot("cluster", figures.cluster_picture(scenario), "Cluster"),
        ),
        _section("Step sizes", _step_sizes(experiment)),
        _section("Definitions", _facts_list(_glossary(scenario, private))),
    ]
    return _page(f"{scenario.name}: {title(scenario)}", parts)


def _privacy_section(experiment: Experiment) -> str:
    """Return how much privacy was spent, and by whose account; nothing where none is promised."""
    found = [(entry.label, spent(entry.run)) for entry in experiment.entries]
    private = {label: own for label, own in found if own is not None}
    if not private:
        return ""
    pair = [
        _plot("epsilon-time", figures.epsilon_against_time(private), "Epsilon against simulated time"),
        _plot(
            "epsilon-iterations", figures.epsilon_against_iterations(private), "Epsilon against iterations"
        ),
    ]
    said = _facts_list((label, own.text()) for label, own in private.items())
    return _section("Privacy", f'<div class="pair">{"".join(pair)}</div>{said}')


def _staleness_section(measured: Mapping[str, Sequence[float]]) -> str:
    """Return how stale what the asynchronous algorithms used was; nothing where none measures it."""
    stale = {label: values for label, values in measured.items() if values}
    if not stale:
        return ""
    told = [
        (label, f"mean {statistics.fmean(values):.3g}, at most {max(values):g}, of {len(values)} updates")
        for label, values in stale.items()
    ]
    return _section("Staleness", _plot("staleness", figures.staleness(measured)) + _facts_list(told))


_TIMELINE_NOTE = (
    "Upper half of a row: the device. Lower half: the network. Drag to zoom, double-click to go back."
)
_LINKS_NOTE = "Utilisation of the effective bandwidth; the mean is over the whole run."


def comparison_report(comparison: Comparison) -> str:
    """Return the comparison of two runs as one HTML page."""
    headings, rows = comparison.phase_table()
    indented = [[phase.replace("  ", "\u2003"), *seconds] for phase, *seconds in rows]
    notes = [comparison.verdict(), comparison.work_verdict()]
    notes += [comparison.models.text] if comparison.models else []
    parts = [
        _header("Two runs compared", f"A: {comparison.name_a}. B: {comparison.name_b}."),
        _warnings_section(list(filter(None, [comparison.given_differently()]))),
        _section("Per worker and iteration", html_table(headings, indented, left=(0,)) + _notes(notes)),
        _section("Operations", _plot("comparison", figures.comparison_figure(comparison))),
        _compared_workers(comparison),
        _compared_iterations(comparison),
        _staleness_section({comparison.name_a: comparison.stale_a, comparison.name_b: comparison.stale_b}),
    ]
    return _page("Two runs compared", parts)


def _compared_workers(comparison: Comparison) -> str:
    """Return on which workers two runs differ; nothing for one worker, or where none differs."""
    if len(comparison.workers) < 2 or not comparison.ranked_workers():
        return ""
    plot = _plot("comparison-workers", figures.comparison_by_worker(comparison))
    table = html_table(*comparison.worker_table(), left=(4,))
    return _section("Workers", plot + table, comparison.worker_verdict())


def _compared_iterations(comparison: Comparison) -> str:
    """Return in which iterations two runs differ; nothing for one iteration, or where none differs."""
    if len(comparison.iterations) < 2 or comparison.worst_iteration is None:
        return ""
    plot = _plot("comparison-iterations", figures.comparison_by_iteration(comparison))
    table = html_table(*comparison.iteration_table(), left=(0, 4))
    return _section("Iterations", plot + table, comparison.iteration_verdict())


def _header(heading: str, line: str) -> str:
    return f"<header><h1>{html.escape(heading)}</h1><p>{html.escape(line)}</p></header>\n"


def _section(heading: str, body: str, note: str = "") -> str:
    return (
        f"<section><h2>{html.escape(heading)}</h2>\n{_notes([note] if note else [])}{body}</section>\n"
        if body
        else ""
    )


def _notes(notes: Iterable[str]) -> str:
    text = " ".join(filter(None, notes))
    return f'<p class="note">{html.escape(text)}</p>\n' if text else ""


def _warnings_section(found: Sequence[str]) -> str:
    if not found:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>\n" for text in found)
    return f'<section class="warnings"><h2>Warnings</h2>\n<ul>\n{items}</ul></section>\n'


def _result_table(experiment: Experiment) -> str:
    """Return the table, with what is missing and the shortest time marked."""
    table = experiment.table()
    cells, headings = table.cells(), table.headings()
    marks = {
        (row, column): "missing"
        for row, texts in enumerate(cells)
        for column, text in enumerate(texts)
        if table.rows[row].missing is not None and text == table.rows[row].missing
    }
    times = [(row.time, index) for index, row in enumerate(table.rows) if row.time is not None]
    if times:
        marks[min(times)[1], headings.index("time to target")] = "best"
    return f'<div class="wide">{html_table(headings, cells, left=(0,), marks=marks)}</div>'


def _facts_list(pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs as a definition list; a name that repeats is said once."""
    items, previous = [], None
    for name, text in pairs:
        items.append(
            f"<dt>{html.escape(name) if name != previous else ''}</dt><dd>{html.escape(text)}</dd>\n"
        )
        previous = name
    return f"<dl>\n{''.join(items)}</dl>\n"


def _glossary(scenario: Scenario, private: bool) -> list[tuple[str, str]]:
    target = scenario.sections.target
    held = "" if target is None or target.loss is None else _LOSS_REACHED.format(reports=target.holds)
    return [(word, text.format(held=held)) for word, text in _GLOSSARY if private or word != "epsilon"]


def _per_entry(experiment: Experiment, name: str, draw: Any) -> str:
    """Draw one figure for each algorithm; the first is open, the others unfold."""
    parts = []
    for index, entry in enumerate(experiment.entries):
        figure = draw(entry.run)
        if figure is None:
            continue
        state = " open" if index == 0 else ""
        plot = _plot(f"{name}-{index}", figure)
        parts.append(f"<details{state}><summary>{html.escape(entry.label)}</summary>\n{plot}</details>\n")
    return "".join(parts)


def _step_sizes(experiment: Experiment) -> str:
    """Return what every step size that was tried came to."""
    rows = []
    for entry in experiment.entries:
        sides: list[tuple[Run, tuple[Trial, ...]]] = [(entry.run, entry.trials)]
        if entry.run.workers > 1:
            sides.append((entry.reference, entry.reference_trials))
        for run, trials in sides:
            rows += [_trial_cells(entry, run, trial) for trial in trials if trial.step_size is not None]
    if not rows:
        return ""
    headings = [
        "algorithm",
        "workers",
        "step size",
        "iterations to target",
        "time to target",
        "final loss",
        "",
    ]
    body = html_table(headings, rows, left=(0, 6))
    return f"<details><summary>All that were tried</summary>\n{body}</details>"


def _trial_cells(entry: Entry, run: Run, trial: Trial) -> list[str]:
    reached = trial.reached
    missing = "not reached" if run.scenario.sections.target else "no target"
    return [
        entry.label,
        str(run.workers),
        f"{trial.step_size:g}",
        count_text(reached.iterations) if reached else missing,
        format_quantity(reached.time, "s") if reached else missing,
        "-" if trial.final_loss is None else f"{trial.final_loss:.4g}",
        "chosen" if trial.chosen else "",
    ]


def _plot(name: str, figure: go.Figure, heading: str = "") -> str:
    """Return a figure as a box with a fixed id and the script that draws it."""
    content = json.loads(figure.to_json())
    data, layout, config = (_script_json(part) for part in (content["data"], content["layout"], _CONFIG))
    above = f"<h3>{html.escape(heading)}</h3>" if heading else ""
    height = figure.layout.height
    return (
        f'<div>{above}<div id="{name}" class="plot" style="height:{height}px"></div>\n'
        f'<script>Plotly.newPlot("{name}", {data}, {layout}, {config});</script></div>\n'
    )


def _script_json(value: object) -> str:
    """Return JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")


_UNFOLD = """
for (const box of document.querySelectorAll("details"))
  box.addEventListener("toggle", () => box.querySelectorAll(".plot").forEach((p) => Plotly.Plots.resize(p)));
""".strip()


def _page(heading: str, parts: Iterable[str]) -> str:
    """Return a whole page with plotly's library inside."""
    from plotly.offline import get_plotlyjs

    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(heading)}</title>\n<style>\n{_STYLE}\n</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{''.join(parts)}"
        f"<script>{_UNFOLD}</script>\n</body>\n</html>\n"
    )
