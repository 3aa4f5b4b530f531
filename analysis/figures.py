"""Figures of runs, drawn by plotly.

Every function returns a figure that depends on its runs alone: no dates, no random placement, so that the
same runs give the same bytes. Colours are those of Okabe and Ito, which readers with any of the common
colour-vision deficiencies can tell apart; lines differ in their dashes as well.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

import topologies
from analysis.attribution import KINDS
from analysis.speedup import Row, label
from simulator.run import LinkUse, Run
from simulator.scenario import Scenario
from simulator.stragglers import LinkFailure, SlowLink
from simulator.units import format_quantity
from traces import COMPUTE, TRANSFER, WAIT, Span

if TYPE_CHECKING:
    import networkx as nx

    from analysis.compare import Comparison, PhaseDifference
    from analysis.experiment import Experiment
    from analysis.privacy import Spent

INK, FAINT, GRID, ACCENT = "#1b2733", "#6b7885", "#e6eaee", "#D55E00"
"""Text, secondary text, grid lines, and what shall be noticed."""

KIND_COLOURS = {COMPUTE: "#0072B2", TRANSFER: "#E69F00", WAIT: "#c3cad1"}
"""Computing, transferring, waiting."""

KIND_NAMES = {COMPUTE: "compute", TRANSFER: "transfer", WAIT: "waiting"}

LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of the algorithms, in the order of the experiment."""

DASHES = ("solid", "dash", "dashdot", "longdash", "dot")

MOST_BARS = 2_000
"""How many spans a timeline shows at most."""

MOST_ITERATIONS = 12
"""How many iterations a timeline shows at most, so that one can still see them."""

MOST_POINTS = 1_000
"""How many points a curve has at most."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

_AXIS = {
    "gridcolor": GRID,
    "linecolor": FAINT,
    "ticks": "outside",
    "tickcolor": FAINT,
    "zeroline": False,
    "title": {"standoff": 8},
}

_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(LINE_COLOURS),
        "margin": {"l": 70, "r": 20, "t": 30, "b": 50},
        "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"color": INK, "size": 12}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def _figure(height: int, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(template=_TEMPLATE, height=height, **layout)
    return figure


def _title(text: str) -> dict[str, Any]:
    """Return a figure's title, flush left above the plot."""
    return {"text": text, "font": {"size": 14}, "x": 0, "xref": "paper", "y": 0.985, "yanchor": "top"}


def time_scale(longest: float) -> tuple[float, str]:
    """Return the factor and the unit in which a time axis up to ``longest`` seconds reads well."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if longest * factor >= 1:
            return factor, unit
    return 1e9, "ns"


# Loss.


def loss_against_iterations(experiment: Experiment) -> go.Figure:
    """Return the loss of the averaged model against the mean iteration of the workers."""
    figure = _loss(experiment, lambda run: run.samples.iteration)
    figure.update_xaxes(title_text="iterations (mean over workers)", rangemode="tozero")
    return figure


def loss_against_time(experiment: Experiment) -> go.Figure:
    """Return the loss of the averaged model against simulated time."""
    longest = max((entry.run.duration for entry in experiment.entries), default=0.0)
    factor, unit = time_scale(longest)
    figure = _loss(experiment, lambda run: [time * factor for time in run.samples.time])
    # One worker may take many times as long; its curve runs out of the picture, not the others together.
    figure.update_xaxes(title_text=f"simulated time ({unit})", range=[0, longest * factor * 1.03])
    return figure


def _loss(experiment: Experiment, abscissa: Any) -> go.Figure:
    """Draw the loss of every algorithm, with one worker as a thin dotted line, and the target."""
    figure = _figure(
        440,
        legend={"y": -0.2, "yanchor": "top", "entrywidth": 0.5, "entrywidthmode": "fraction"},
        margin={"l": 64, "r": 12, "t": 16, "b": 60},
    )
    many = experiment.scenario.workers > 1
    for index, entry in enumerate(experiment.entries):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        dash = DASHES[index // len(LINE_COLOURS) % len(DASHES)]
        sides: list[tuple[Run, str, dict[str, Any], Any]] = [
            (entry.run, f"{entry.label}", {"width": 2, "dash": dash}, True)
        ]
        if many:
            sides.append(
                (entry.reference, f"{entry.label}, 1 worker", {"width": 1, "dash": "dot"}, "legendonly")
            )
        for run, name, line, visible in sides:
            xs, ys = _thinned(abscissa(run), run.samples.loss)
            figure.add_scatter(
                x=xs, y=ys, name=name, mode="lines", line={"color": colour, **line}, visible=visible,
                hovertemplate="%{y:.4g} at %{x:.4g}<extra>" + name + "</extra>",
            )  # fmt: skip
    # A loss that has diverged may be no finite number, which no axis can show.
    losses = [loss for entry in experiment.entries for loss in entry.run.samples.loss if math.isfinite(loss)]
    logarithmic = bool(losses) and min(losses) > 0 and max(losses) > 5 * min(losses)
    target = experiment.scenario.sections.target
    if target is not None and target.loss is not None:
        _add_level(figure, target.loss, f"target {target.loss:g}", logarithmic)
    if logarithmic:
        figure.update_yaxes(type="log", tickvals=_round_values(min(losses), max(losses)), tickformat="~g")
    # A loss that has diverged has long figures, which the title must not lie on.
    figure.update_yaxes(title_text="loss of the averaged model", automargin=True)
    return figure


def staleness(measured: Mapping[str, Sequence[float]]) -> go.Figure:
    """Return the part of the updates at each staleness, by the runs' labels, where it is measured."""
    figure = _figure(
        320,
        barmode="group",
        showlegend=True,
        legend={"y": -0.24, "yanchor": "top", "entrywidth": 0.5, "entrywidthmode": "fraction"},
        margin={"l": 64, "r": 12, "t": 16, "b": 60},
    )
    for index, (name, stale) in enumerate(measured.items()):
        if not stale:
            continue
        counts = collections.Counter(stale)
        total = len(stale)
        values = sorted(counts)
        figure.add_bar(
            x=values, y=[counts[value] / total for value in values], name=name,
            marker={"color": LINE_COLOURS[index % len(LINE_COLOURS)]},
            hovertemplate="%{y:.1%} at %{x}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="staleness (foreign changes between the read and the update)")
    figure.update_yaxes(title_text="part of the updates", tickformat=".0%", rangemode="tozero")
    return figure


def epsilon_against_iterations(spent: Mapping[str, Spent | None]) -> go.Figure:
    """Return what every private algorithm, of all by their labels, has spent by an iteration."""
    figure = _epsilon(spent, lambda own: own.iteration)
    figure.update_xaxes(title_text="iterations", rangemode="tozero")
    return figure


def epsilon_against_time(spent: Mapping[str, Spent | None]) -> go.Figure:
    """Return what every private algorithm, of all by their labels, has spent by a time."""
    factor, unit = time_scale(max((own.time[-1] for own in spent.values() if own), default=0.0))
    figure = _epsilon(spent, lambda own: [time * factor for time in own.time])
    figure.update_xaxes(title_text=f"simulated time ({unit})", rangemode="tozero")
    return figure


def _epsilon(spent: Mapping[str, Spent | None], abscissa: Any) -> go.Figure:
    """Draw epsilon at the samples; where there are few, as points, since it is not straight in between."""
    figure = _figure(
        360,
        showlegend=True,
        legend={"y": -0.24, "yanchor": "top", "entrywidth": 0.5, "entrywidthmode": "fraction"},
        margin={"l": 64, "r": 12, "t": 16, "b": 60},
    )
    for index, (name, own) in enumerate(spent.items()):
        if own is None:
            continue
        xs, ys = _thinned(abscissa(own), own.epsilon)
        figure.add_scatter(
            x=xs, y=ys, name=name, mode="lines+markers" if len(xs) <= 30 else "lines",
            line={
                "color": LINE_COLOURS[index % len(LINE_COLOURS)], "width": 2,
                "dash": DASHES[index % len(DASHES)],
            },
            hovertemplate="%{y:.4g} at %{x:.4g}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_yaxes(title_text="epsilon", rangemode="tozero")
    return figure


def _add_level(figure: go.Figure, level: float, text: str, logarithmic: bool) -> None:
    """Draw a horizontal line across the figure, with a word at its left end."""
    line = {"color": FAINT, "width": 1, "dash": "dash"}
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=level, y1=level, line=line)
    if not logarithmic or level > 0:
        figure.add_annotation(
            xref="paper", x=0.01, xanchor="left", yanchor="top", showarrow=False, text=text,
            y=math.log10(level) if logarithmic else level, font={"color": FAINT, "size": 12},
        )  # fmt: skip


MOST_DECADES = 10
"""Beyond so many powers of ten an axis names only some of them."""


def _round_values(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from just below ``low`` to just above ``high``, or some."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    if len(powers) > MOST_DECADES:
        return [10.0**power for power in powers[:: math.ceil(len(powers) / MOST_DECADES)]]
    values = [round(digit * 10.0**power, 12) for power in powers for digit in (1, 2, 5)]
    return [value for value in values if low / 2 <= value <= 2 * high]


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most about MOST_POINTS of the points, evenly chosen, with the last."""
    step = max(1, math.ceil(len(xs) / MOST_POINTS))
    kept = [index for index in range(len(xs)) if index % step == 0 or index == len(xs) - 1]
    return [float(xs[index]) for index in kept], [float(ys[index]) for index in kept]


# What the workers did.


def window(run: Run) -> tuple[float, int]:
    """Return what part of a run a timeline shows: its end in seconds, and the iterations in it.

    It is as many of the first iterations as have at most MOST_BARS spans, but not more than
    MOST_ITERATIONS; 0 iterations where even the first has too many spans and is cut.
    """
    ends: dict[int, float] = {}
    counts: dict[int, int] = {}
    for span in run.worker_spans:
        if span.end > span.start and span.iteration <= MOST_ITERATIONS:
            ends[span.iteration] = max(ends.get(span.iteration, 0.0), span.end)
            counts[span.iteration] = counts.get(span.iteration, 0) + 1
    shown, end, spans = 0, 0.0, 0
    for iteration in sorted(ends):
        spans += counts[iteration]
        if spans > MOST_BARS:
            break
        shown, end = iteration, max(end, ends[iteration])
    if shown:
        return end, shown
    starts = sorted(span.start for span in run.worker_spans if span.end > span.start)
    # More than can be shown may begin at once, at 0; a window has a length.
    return next((start for start in starts[MOST_BARS:] if start > 0), run.duration), 0


def _shown(run: Run, end: float) -> list[Span]:
    """Return the spans that begin before ``end``, the earliest MOST_BARS of them."""
    spans = [span for span in run.worker_spans if span.start < end and span.end > span.start]
    return sorted(spans, key=lambda span: span.start)[:MOST_BARS]


def window_text(run: Run) -> str:
    """Return in words what part of the run a timeline shows."""
    end, iterations = window(run)
    total = max(run.iterations)
    part = (
        f"first {iterations:,} of {total:,} iterations" if iterations else "beginning of the first iteration"
    )
    if end >= run.duration:
        return f"whole run, {format_quantity(run.duration, 's')}"
    return f"{part}, {format_quantity(end, 's')} of {format_quantity(run.duration, 's')}"


def worker_timeline(run: Run) -> go.Figure:
    """Return what each worker did when: computations in the upper half of its row, the network below.

    Long runs are cut to their first iterations; the title says so.
    """
    end, _ = window(run)
    factor, unit = time_scale(end)
    spans = _shown(run, end)
    figure = _figure(
        110 + 30 * run.workers,
        title=_title(f"{label(run)}: {window_text(run)}"),
        barmode="overlay", bargap=0,
        margin={"l": 80, "r": 20, "t": 62, "b": 46},
    )  # fmt: skip
    for kind in (WAIT, TRANSFER, COMPUTE):
        own = [span for span in spans if span.kind == kind]
        offset = -0.2 if kind == COMPUTE else 0.2
        figure.add_bar(
            orientation="h",
            x=[(span.end - span.start) * factor for span in own],
            base=[span.start * factor for span in own],
            y=[span.worker + offset for span in own],
            width=0.38,
            name=KIND_NAMES[kind],
            marker={"color": KIND_COLOURS[kind], "line": {"width": 0.5, "color": "white"}},
            text=[_span_text(span, run.workers) for span in own],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            legendrank=1 + KINDS.index(kind),
        )
    workers = list(range(run.workers))
    figure.update_yaxes(
        tickvals=workers, ticktext=[f"worker {worker}" for worker in workers],
        range=[run.workers - 0.5, -0.5], showgrid=False, ticks="",
    )  # fmt: skip
    figure.update_xaxes(title_text=f"{_clock(run)} time ({unit})", range=[0, end * factor])
    return figure


def _clock(run: Run) -> str:
    return "simulated" if run.clock == "virtual" else "measured"


def _span_text(span: Span, workers: int) -> str:
    """Return what hovering over a span shows."""
    duration = format_quantity(span.end - span.start, "s")
    lines = [
        f"<b>{KIND_NAMES[span.kind]}: {span.operation}</b>",
        f"worker {span.worker}, iteration {span.iteration}",
        f"{duration} from {format_quantity(span.start, 's', 6)}",
    ]
    if span.peer >= 0:
        peer = f"worker {span.peer}" if span.peer < workers else f"server {span.peer - workers}"
        lines.append(f"{'for' if span.kind == WAIT else 'with'} {peer}")
    if span.nbytes:
        lines.append(format_quantity(span.nbytes, "B"))
    return "<br>".join(lines)


def time_shares(rows: Sequence[Row]) -> go.Figure:
    """Return the shares of the workers' time in computing, transferring and waiting, as stacked bars."""
    names = [row.algorithm for row in rows]
    figure = _figure(
        110 + 34 * len(rows), barmode="stack", bargap=0.35,
        margin={"l": 10, "r": 20, "t": 36, "b": 46},
    )  # fmt: skip
    for kind, attribute in ((COMPUTE, "compute"), (TRANSFER, "transfer"), (WAIT, "wait")):
        shares = [100 * getattr(row, attribute) for row in rows]
        figure.add_bar(
            orientation="h", y=names, x=shares, name=KIND_NAMES[kind],
            marker={"color": KIND_COLOURS[kind]},
            text=[f"{share:.0f} %" if share >= 4 else "" for share in shares],
            textposition="inside", insidetextanchor="middle", textangle=0,
            textfont={"color": "white" if kind == COMPUTE else INK},
            hovertemplate="%{x:.2f} %<extra>" + KIND_NAMES[kind] + "</extra>",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showgrid=False)
    figure.update_xaxes(title_text="share of the workers' time (%)", range=[0, 100])
    return figure


# Links.

MOST_LINKS = 24
"""How many links a heat map shows at most."""


def link_utilisation(run: Run, bins: int = 240) -> go.Figure | None:
    """Return how busy the busiest links were over time, as a heat map; None where nobody measured it.

    It shows the same part of the run as the timeline; each link's mean over the whole run stands at the
    right. Utilisation is the load over the effective bandwidth.
    """
    links = run.links
    if links is None:
        return None
    means = [
        carried / (capacity * run.duration) if run.duration > 0 else 0.0
        for carried, capacity in zip(links.carried, links.capacity, strict=True)
    ]
    used = [index for index, mean in enumerate(means) if mean > 0]
    chosen = sorted(sorted(used, key=lambda index: (-means[index], index))[:MOST_LINKS])
    end, _ = window(run)
    factor, unit = time_scale(end)
    busy = utilisation(links, chosen, end, bins)
    edges = np.linspace(0.0, end, bins + 1)
    title = f"{label(run)}: {_links_text(len(chosen), len(used), len(means))}; {window_text(run)}"
    figure = _figure(
        120 + 20 * len(chosen),
        title=_title(title),
        margin={"l": 10, "r": 20, "t": 40, "b": 46},
    )
    figure.add_heatmap(
        x=(edges[:-1] + edges[1:]) / 2 * factor,
        y=[f"{links.name[index]}  (mean {100 * means[index]:.0f} %)" for index in chosen],
        z=100 * busy, zmin=0, zmax=100,
        colorscale=[[0, "#f4f6f8"], [0.5, "#7fb6d9"], [1, "#003f66"]],
        colorbar={"title": {"text": "utilisation (%)", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="%{y}<br>%{z:.0f} % at %{x:.4g} " + unit + "<extra></extra>",
        ygap=1,
    )  # fmt: skip
    figure.update_yaxes(
        autorange="reversed", automargin=True, ticks="", tickfont={"size": 11}, showgrid=False
    )
    figure.update_xaxes(title_text=f"{_clock(run)} time ({unit})", range=[0, end * factor])
    return figure


def _links_text(shown: int, used: int, all_links: int) -> str:
    if shown == 0:
        return "no link was used"
    if shown < used:
        return f"the {shown} busiest of {used} used links"
    return f"the {used} used of {all_links} links"


def utilisation(links: LinkUse, chosen: Sequence[int], end: float, bins: int) -> np.ndarray[Any, Any]:
    """Return the mean utilisation of some links in equal bins of time from 0 to ``end``.

    The load is a step function, so the carried bytes up to a time are piecewise linear and a bin's mean
    is exact.

    Returns
    -------
    Array of shape [len(chosen), bins], 1 where a link is full.
    """
    if not end > 0:
        return np.zeros((len(chosen), bins))
    edges = np.linspace(0.0, end, bins + 1)
    link = np.asarray(links.change_link, dtype=np.int64)
    time = np.asarray(links.change_time, dtype=np.float64)
    rate = np.asarray(links.change_rate, dtype=np.float64)
    busy = np.zeros((len(chosen), bins))
    for row, index in enumerate(chosen):
        own = np.flatnonzero(link == index)
        if not len(own):
            continue
        times = np.concatenate([[0.0], time[own], [max(end, float(time[own][-1]))]])
        rates = np.concatenate([[0.0], rate[own]])
        carried = np.concatenate([[0.0], np.cumsum(rates * np.diff(times))])
        sums = np.diff(np.interp(edges, times, carried))
        busy[row] = sums / (links.capacity[index] * (end / bins))
    return busy.clip(0.0, 1.0)


# The cluster.


def cluster_picture(scenario: Scenario) -> go.Figure:
    """Return the cluster: nodes by kind, links by bandwidth; workers and what is slow are marked."""
    graph = scenario.graph
    place = node_positions(graph)
    layers = _layers(graph)
    height = 560 if layers is None else 130 + 120 * max(layers.values(), default=0)
    figure = _figure(height, margin={"l": 10, "r": 10, "t": 50, "b": 10}, hovermode="closest")
    _add_links(figure, graph, place, scenario)
    _add_nodes(figure, scenario, place)
    figure.update_xaxes(visible=False)
    if layers is None:
        figure.update_yaxes(visible=False, scaleanchor="x")
    else:
        figure.update_yaxes(visible=False, range=[-0.3, max(layers.values()) + 0.35])
    return figure


Place = dict[Hashable, tuple[float, float]]


def node_positions(graph: nx.Graph[Hashable]) -> Place:
    """Return where to draw each node of a topology.

    Switched clusters are drawn in layers by their distance from the GPUs, which is how data-centre
    networks are drawn; others by the method of Kamada and Kawai, whose distances are those in the graph.
    """
    import networkx as nx

    layers = _layers(graph)
    if layers is not None:
        return _layered(graph, layers)
    undirected = graph.to_undirected() if graph.is_directed() else graph
    plain: nx.Graph[Hashable] = nx.Graph()
    plain.add_nodes_from(undirected)
    plain.add_edges_from(undirected.edges())
    if len(plain) <= 200:
        spots = nx.kamada_kawai_layout(plain)
    else:
        spots = nx.spring_layout(plain, seed=0)
    return {node: (round(float(x), 6), round(float(y), 6)) for node, (x, y) in spots.items()}


def _layers(graph: nx.Graph[Hashable]) -> dict[Hashable, int] | None:
    """Return each node's distance from the nearest GPU; None where links join nodes of one layer."""
    import networkx as nx

    gpus = topologies.gpus(graph)
    undirected = graph.to_undirected() if graph.is_directed() else graph
    found = dict(nx.multi_source_dijkstra_path_length(undirected, set(gpus), weight=None))
    distance = {node: round(hops) for node, hops in found.items()}
    if any(distance[u] == distance[v] for u, v in graph.edges()):
        return None
    return distance


def _layered(graph: nx.Graph[Hashable], layers: dict[Hashable, int]) -> Place:
    """Place GPUs side by side at the bottom, and every other node above the middle of those below it."""
    place: Place = {}
    gpus = topologies.gpus(graph)
    x, previous = 0.0, None
    for gpu in gpus:
        host = graph.nodes[gpu].get("host")
        x += 1.0 if previous is None or host == previous else 1.6
        previous = host
        place[gpu] = (x, 0.0)
    middle = (place[gpus[0]][0] + place[gpus[-1]][0]) / 2
    for depth in range(1, max(layers.values()) + 1):
        level = [node for node in graph if layers[node] == depth]
        below = {
            node: [place[v][0] for v in graph.neighbors(node) if layers[v] == depth - 1] for node in level
        }
        wanted = {node: sum(below[node]) / len(below[node]) for node in level}
        if len(set(wanted.values())) < len(level):
            gap = (place[gpus[-1]][0] - place[gpus[0]][0] + 1) / len(level)
            wanted = {node: middle + (i - (len(level) - 1) / 2) * gap for i, node in enumerate(level)}
        for node in level:
            place[node] = (wanted[node], float(depth))
    return place


def _add_links(figure: go.Figure, graph: nx.Graph[Hashable], place: Place, scenario: Scenario) -> None:
    """Draw the links in groups of equal effective bandwidth, thicker where it is higher."""
    slow = {
        frozenset(entry.between)
        for entry in scenario.stragglers
        if isinstance(entry, (SlowLink, LinkFailure))
    }
    specs = {(u, v): topologies.link_spec(graph, u, v) for u, v in graph.edges()}
    speeds = sorted({spec.capacity for spec in specs.values()}, reverse=True)
    low, high = (math.log(speeds[-1]), math.log(speeds[0])) if speeds else (0.0, 0.0)
    for speed in speeds:
        width = 1.2 + 2.8 * ((math.log(speed) - low) / (high - low) if high > low else 0.3)
        group = [pair for pair, spec in specs.items() if spec.capacity == speed]
        for marked in (False, True):
            pairs = [pair for pair in group if (frozenset(map(str, pair)) in slow) == marked]
            if pairs:
                name = f"{'slowed link, ' if marked else ''}{format_quantity(speed, 'B/s')}"
                line = {
                    "width": width,
                    "color": ACCENT if marked else "#9aa7b3",
                    "dash": "dash" if marked else "solid",
                }
                figure.add_scatter(
                    x=_broken([place[u][0], place[v][0]] for u, v in pairs),
                    y=_broken([place[u][1], place[v][1]] for u, v in pairs),
                    mode="lines", line=line, name=name, hoverinfo="skip",
                )  # fmt: skip
    figure.add_scatter(
        x=[(place[u][0] + place[v][0]) / 2 for u, v in specs],
        y=[(place[u][1] + place[v][1]) / 2 for u, v in specs],
        mode="markers", marker={"size": 12, "opacity": 0}, showlegend=False,
        text=[_link_text(u, v, spec) for (u, v), spec in specs.items()],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _broken(pairs: Any) -> list[float | None]:
    """Return the ends of line segments as one list, with gaps between them."""
    return [end for pair in pairs for end in (*pair, None)]


def _link_text(tail: Hashable, head: Hashable, spec: topologies.LinkSpec) -> str:
    rate = format_quantity(spec.bandwidth, "B/s")
    if spec.efficiency != 1:
        rate += f" × {spec.efficiency:g} = {format_quantity(spec.capacity, 'B/s')}"
    return f"<b>{tail} – {head}</b><br>{rate}<br>{format_quantity(spec.latency, 's')}, {spec.duplex} duplex"


def straggler_text(scenario: Scenario, rank: int) -> str | None:
    """Return what makes this worker slower than others; None where nothing singles it out."""
    special = [entry for entry in scenario.worker_stragglers(rank) if entry.workers is not None]
    factor = scenario.persistent_factor(rank)
    if factor != 1:
        return f"{factor:g}× slower"
    return "jitter, bursts or crashes of its own" if special else None


def _add_nodes(figure: go.Figure, scenario: Scenario, place: Place) -> None:
    """Draw the nodes: GPUs with their workers, dedicated servers, unused GPUs, and what forwards."""
    graph = scenario.graph
    few = len(graph) <= 80
    ranks: dict[Hashable, list[int]] = {}
    for rank, node in enumerate(scenario.cluster.nodes):
        ranks.setdefault(node, []).append(rank)
    serving = set(scenario.cluster.nodes[scenario.workers :])
    slowed = {
        node: [text for rank in own if (text := straggler_text(scenario, rank))]
        for node, own in ranks.items()
    }
    gpus = topologies.gpus(graph)
    groups: list[tuple[str, str, int, str, str, list[Hashable]]] = [
        (
            "worker",
            "square",
            17,
            KIND_COLOURS[COMPUTE],
            "white",
            [g for g in gpus if g in ranks and not slowed[g] and g not in serving],
        ),
        ("server", "diamond", 18, KIND_COLOURS[TRANSFER], "white", [n for n in graph if n in serving]),
        ("straggler", "square", 17, ACCENT, "white", [g for g in gpus if g in ranks and slowed[g]]),
        ("unused GPU", "square", 15, "white", FAINT, [g for g in gpus if g not in ranks]),
    ]
    kinds = dict.fromkeys(
        str(graph.nodes[node]["kind"]) for node in graph if graph.nodes[node]["kind"] != "gpu"
    )
    for kind in kinds:
        symbol, size = {"host": ("circle", 13), "switch": ("diamond", 20)}.get(kind, ("circle", 9))
        colour = INK if kind == "switch" else FAINT
        members: list[Hashable] = [
            node for node in graph if str(graph.nodes[node]["kind"]) == kind and node not in serving
        ]
        groups.append((kind, symbol, size, colour, INK, members))

    def numbers(own: Sequence[int]) -> list[str]:
        return [str(rank) if rank < scenario.workers else f"S{rank - scenario.workers}" for rank in own]

    for name, symbol, size, colour, ink, nodes in groups:
        if not nodes:
            continue
        inside = name in ("worker", "straggler", "server")
        texts = [
            ",".join(numbers(ranks[node])) if inside else ("" if name == "unused GPU" else str(node))
            for node in nodes
        ]
        figure.add_scatter(
            x=[place[node][0] for node in nodes], y=[place[node][1] for node in nodes],
            mode="markers+text" if few else "markers", name=name,
            text=texts, textposition="middle center" if inside else "top center",
            textfont={"color": ink, "size": 10 if inside else 12},
            marker={
                "symbol": symbol, "size": size if few else 8, "color": colour,
                "line": {"width": 1, "color": FAINT if colour == "white" else colour},
            },
            customdata=[_node_text(scenario, n, ranks.get(n, []), slowed.get(n, [])) for n in nodes],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip


def _node_text(scenario: Scenario, node: Hashable, ranks: Sequence[int], slowed: Sequence[str]) -> str:
    lines = [f"<b>{node}</b>", str(scenario.graph.nodes[node]["kind"])]
    for rank in ranks:
        device = scenario.cluster.devices[rank]
        if rank >= scenario.workers:
            lines.append(f"server {rank - scenario.workers} on {device.name}")
            continue
        lines.append(f"worker {rank} on {device.name}, {scenario.speeds[rank]:,.4g} samples/s")
    return "<br>".join([*lines, *slowed])


# Two runs.


def comparison_figure(comparison: Comparison) -> go.Figure:
    """Return both runs' seconds per worker and iteration, by operation, as bars side by side."""
    shown = [entry for entry in comparison.operations if entry.a or entry.b]
    factor, unit = time_scale(max((max(entry.a, entry.b) for entry in shown), default=0.0))
    names = [f"{KIND_NAMES[entry.kind]}: {entry.operation}" for entry in shown]
    figure = _figure(
        130 + 44 * len(shown), barmode="group", bargap=0.3, margin={"l": 10, "r": 20, "t": 50, "b": 46}
    )
    for name, title, attribute, colour in (
        ("A", comparison.name_a, "a", "#0072B2"),
        ("B", comparison.name_b, "b", "#E69F00"),
    ):
        figure.add_bar(
            orientation="h", y=names, x=[getattr(entry, attribute) * factor for entry in shown],
            name=f"{name}: {title}", marker={"color": colour},
            hovertemplate="%{x:.4g} " + unit + "<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(legend={"orientation": "v", "y": 1.0, "yanchor": "bottom"})
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", showgrid=False)
    figure.update_xaxes(title_text=f"per worker and iteration ({unit})", rangemode="tozero")
    return figure


MOST_DIFFERENCES = 120
"""How many bars a figure of differences shows at most; more workers or iterations are averaged in blocks."""


def comparison_by_worker(comparison: Comparison) -> go.Figure:
    """Return B - A of every worker, by kind, as bars on one another: longer upwards, shorter downwards."""
    figure = _figure(320, barmode="relative", bargap=0.15, margin={"l": 70, "r": 12, "t": 40, "b": 46})
    _add_differences(figure, comparison.workers, list(range(len(comparison.workers))))
    figure.update_xaxes(title_text=_means("worker", len(comparison.workers)))
    return figure


def _means(what: str, count: int) -> str:
    """Return what an axis of differences shows."""
    return f"{what} (means over blocks)" if count > MOST_DIFFERENCES else what


def comparison_by_iteration(comparison: Comparison) -> go.Figure:
    """Return the time of every iteration in both runs, and below it B - A by kind."""
    entries = comparison.iterations
    figure = _figure(520, barmode="relative", bargap=0.15, margin={"l": 70, "r": 12, "t": 40, "b": 46})
    _add_differences(
        figure, [entry.kinds for entry in entries], [entry.iteration for entry in entries], yaxis="y2"
    )
    factor, unit = time_scale(max(max(entry.a, entry.b) for entry in entries))
    for name, side, colour, dash in (("A", "a", "#000000", "dot"), ("B", "b", ACCENT, "solid")):
        means, names = _in_blocks(
            [getattr(entry, side) for entry in entries], [entry.iteration for entry in entries]
        )
        figure.add_scatter(
            x=[position for position, _ in names], y=[value * factor for value in means],
            mode="lines", line={"color": colour, "dash": dash, "width": 1.6}, name=name,
            customdata=[text for _, text in names],
            hovertemplate="iteration %{customdata}: %{y:.4g} " + unit + "<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_layout(
        yaxis={"domain": [0.56, 1], "title": {"text": f"time ({unit})"}, "rangemode": "tozero"},
        yaxis2={"domain": [0, 0.46]},
        xaxis={"anchor": "y2", "title": {"text": _means("iteration", len(entries))}},
    )
    return figure


def _add_differences(
    figure: go.Figure, entries: Sequence[Sequence[PhaseDifference]], numbers: Sequence[int], yaxis: str = "y"
) -> None:
    """Add bars of B - A for each of some workers or iterations, a trace a kind."""
    by_kind = {kind: [own[place].difference for own in entries] for place, kind in enumerate(KINDS)}
    means = {kind: _in_blocks(values, numbers) for kind, values in by_kind.items()}
    longest = max((abs(value) for values, _ in means.values() for value in values), default=0.0)
    factor, unit = time_scale(longest)
    for kind, (values, names) in means.items():
        figure.add_bar(
            x=[position for position, _ in names], y=[value * factor for value in values],
            customdata=[text for _, text in names], name=KIND_NAMES[kind], yaxis=yaxis,
            marker={"color": KIND_COLOURS[kind], "line": {"width": 0}},
            hovertemplate="%{customdata}: %{y:+.4g} " + unit + "<extra>" + KIND_NAMES[kind] + "</extra>",
        )  # fmt: skip
    title = {"text": f"B - A ({unit})"}
    line = {"title": title, "zeroline": True, "zerolinecolor": FAINT}
    figure.update_layout(**{f"yaxis{yaxis[1:]}": line})


def _in_blocks(
    values: Sequence[float], numbers: Sequence[int]
) -> tuple[list[float], list[tuple[float, str]]]:
    """Return means over blocks, and of each block where it stands and what it is called."""
    from analysis.compare import blocks

    means, names = [], []
    for block in blocks(len(values), MOST_DIFFERENCES):
        first, last = numbers[block.start], numbers[block.stop - 1]
        means.append(sum(values[block.start : block.stop]) / len(block))
        names.append(((first + last) / 2, f"{first}" if first == last else f"{first} to {last}"))
    return means, names
