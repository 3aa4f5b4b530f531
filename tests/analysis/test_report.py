from __future__ import annotations

import dataclasses
import re
import warnings as warn
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

import topologies
from analysis import figures
from analysis.compare import compare
from analysis.experiment import Entry, Experiment, Trial, experiment
from analysis.report import (
    _glossary,
    comparison_report,
    facts,
    report,
    straggler_sentences,
    title,
    warnings,
    write_report,
)
from simulator.run import LinkUse, Run
from simulator.scenario import Scenario
from traces import Span, Timeline

Scene = Callable[..., Scenario]
Make = Callable[..., Run]


@pytest.fixture(scope="module")
def timed(timing_scenario: Scene) -> Experiment:
    return experiment(timing_scenario(), jobs=1)


def _by_hand(scenario: Scenario, make_run: Make, losses: list[float], step: float = 0.1) -> Experiment:
    """An experiment whose runs on several workers have the given losses."""
    spans = [Span(worker, "compute", "gradient", 0.0, 1.0, iteration=1) for worker in range(scenario.workers)]
    single = scenario.vary(step_size=step)
    run = make_run(single, losses, spans)
    reference = make_run(single.reference(), [0.4, 0.4])
    trials = tuple(
        Trial(size, run.reached() if size == step else None, 0.4, size == step)
        for size in scenario.step_sizes
    )
    return Experiment(scenario, (Entry("local-sgd", run, reference, trials, trials),))


class Resources(HTMLParser):
    """Collects what a page would load, and the ids of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[tuple[str, str | None]] = []
        self.ids: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.loaded.append((tag, value))
            if name == "id":
                self.ids.append(value)


def test_the_page_loads_nothing(timed: Experiment) -> None:
    text = report(timed)
    library = get_plotlyjs()
    assert text.count(library) == 1
    own = text.replace(library, "")
    assert not re.search(r"https?:|[\"'(=]//[a-z]|url\(|@import", own)
    parser = Resources()
    parser.feed(own)
    assert parser.loaded == []
    assert parser.ids == [
        "time-shares",
        "timeline-0",
        "timeline-1",
        "timeline-2",
        "links-0",
        "links-1",
        "links-2",
        "cluster",
    ]


def test_the_page_is_reproducible(timed: Experiment, timing_scenario: Scene, tmp_path: Path) -> None:
    write_report(timed, tmp_path / "one.html")
    write_report(experiment(timing_scenario(), jobs=1), str(tmp_path / "two.html"))
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_title_names_cost_and_objective(loss_scenario: Scene, timing_scenario: Scene) -> None:
    base = loss_scenario()
    assert title(base) == "cost of a given model of 10 parameters, numerics of scalar-quadratics"
    workload = {
        "cost": {"model": "resnet18-cifar", "batch": 8},
        "objective": {"kind": "mlp", "data": "digits"},
    }
    assert title(base.vary(workload=workload)) == "cost of resnet18-cifar, numerics of mlp on digits"
    same = {**workload, "cost": {"model": "mlp-digits", "batch": 8}}
    assert title(base.vary(workload=same)) == "mlp-digits, cost and numerics"
    assert title(timing_scenario()) == "cost of a given model of 1,000,000 parameters, timing only"


def test_facts_in_words_with_units(timing_scenario: Scene) -> None:
    found = facts(timing_scenario())
    assert found == [
        ("workers", "3 (3 × gtx-1080-ti, 50 % of the peak rate); 1 of the 4 GPUs unused"),
        ("topology", "two-level (hosts 2, gpus-per-host 2)"),
        (
            "links",
            "2 × switch–host: 1.25 GB/s (10 Gbit/s), of which 50 % is delivered: effective 625 MB/s; "
            "latency 5 us; full duplex",
        ),
        ("links", "4 × host–gpu: 12 GB/s (96 Gbit/s); latency 5 us; full duplex"),
        ("transport", "nccl"),
        ("straggler", "persistent: worker 1, slowdown 2.0"),
        ("batch", "4 samples a worker, 12 in all (weak scaling)"),
        (
            "cost",
            "a given model of 1,000,000 parameters: 1,000,000 parameters, 4 MB; "
            "a gradient takes 10 ms to 20 ms",
        ),
        ("budget", "20 iterations a worker"),
        ("target", "10 iterations"),
        ("seed", "0"),
    ]


def test_the_seed_of_the_machines_is_named(timing_scenario: Scene) -> None:
    own = timing_scenario().vary({"cluster.seed": 4})
    assert ("seed", "0, of the machines 4") in facts(own)


def test_measured_stragglers_in_words(timing_scenario: Scene) -> None:
    measured = {"kind": "measured", "levels": [0.0, 0.5, 1.0], "values": [0.876543, 1.0, 1.123456]}
    persistent = {"kind": "persistent", "workers": [0], "slowdown": 0.7560169406852506}
    scenario = timing_scenario().vary(stragglers=[persistent, measured])
    assert straggler_sentences(scenario) == [
        "persistent: worker 0, slowdown 0.756",
        "measured: every worker, 3 levels from 0.0 to 1.0, 3 values from 0.8765 to 1.123, correlation 0.0",
    ]


def test_the_page_says_how_long_a_loss_must_stay(loss_scenario: Scene, timing_scenario: Scene) -> None:
    """Also where the scenario leaves it to the default; of other targets there is nothing to say."""

    def defined(scenario: Scenario) -> str:
        return dict(_glossary(scenario, private=False))["iterations to target"]

    reached = "T_n: the mean over the n workers of their iterations when the target is reached."
    stays = (
        "A loss is reached where the loss of the averaged model on all data is at or below it "
        "and stays so for"
    )
    base = loss_scenario()
    assert defined(base.vary(target={"loss": 0.5})) == f"{reached} {stays} the next 3 reports."
    assert defined(base.vary(target={"loss": 0.5, "reports": 7})) == f"{reached} {stays} the next 7 reports."
    assert defined(timing_scenario()) == reached


def test_slow_links_in_words(timing_scenario: Scene) -> None:
    scenario = timing_scenario().vary(
        stragglers=[{"kind": "slow-link", "between": ["switch", "host1"], "factor": 0.25, "end": "2 s"}]
    )
    assert straggler_sentences(scenario) == ["slow-link: link switch – host1, factor 0.25, end 2.0 s"]
    measured = {"kind": "persistent", "workers": [1], "slowdown": 1.5, "measured-with": 3}
    scenario = timing_scenario(compare=[]).vary(stragglers=[measured, {**measured, "measured-with": None}])
    assert straggler_sentences(scenario) == [
        "persistent: worker 1, slowdown 1.5, measured-with 3",
        "persistent: worker 1, slowdown 1.5",
    ]


def test_warnings_name_what_was_not_reached(loss_scenario: Scene, make_run: Make) -> None:
    done = _by_hand(loss_scenario(), make_run, [0.9, 0.8])
    assert warnings(done) == [
        "local-sgd on 2 workers (last loss 0.8) did not reach the target (loss <= 0.5) and stay there for "
        "1 more report within 8 iterations. It has no speedup."
    ]
    text = report(done)
    assert '<td class="figure missing">not reached</td>' in text
    assert "did not reach the target (loss &lt;= 0.5)" in text


def test_a_loss_that_diverged_is_named(loss_scenario: Scene, make_run: Make) -> None:
    done = _by_hand(loss_scenario(), make_run, [0.9, 1e44, float("inf"), float("nan")])
    assert warnings(done) == [
        "The loss diverged: local-sgd on 2 workers from 4 iterations (6 s) on. The target (loss <= 0.5) was "
        "not reached because it diverged."
    ]
    table = done.table()
    assert table.rows[0].missing == "diverged"
    assert "Where it says diverged, the target was not reached because of that." in table.notes()
    assert '<td class="figure missing">diverged</td>' in report(done)
    summary = done.entries[0].run.summary()
    assert (summary["diverged_at_iteration"], summary["diverged_at_s"]) == (4.0, 6.0)


@pytest.mark.parametrize("target", [{"loss": 0.5, "reports": 1}, {"iterations": 4}])
def test_a_loss_that_diverged_after_its_target_missed_nothing(
    loss_scenario: Scene, make_run: Make, target: dict[str, Any]
) -> None:
    done = _by_hand(loss_scenario(target=target), make_run, [0.9, 0.5, 0.4, 1e44])
    assert warnings(done) == ["The loss diverged: local-sgd on 2 workers from 8 iterations (12 s) on."]
    table = done.table()
    assert table.rows[0].missing is None
    assert not any("diverged" in note for note in table.notes())


def test_warnings_that_are_alike_are_one(loss_scenario: Scene, make_run: Make) -> None:
    scenario = loss_scenario(update="adamw", compare=["cocod-sgd", "d-psgd"])
    done = _by_hand(scenario, make_run, [0.9, 0.8])
    entries = [
        dataclasses.replace(done.entries[0], label=variant.sections.algorithm.name, run=run)
        for variant in scenario.variants()
        for run in [make_run(variant, [0.9, 0.8])]
    ]
    assert warnings(Experiment(scenario, tuple(entries))) == [
        "local-sgd on 2 workers (last loss 0.8), cocod-sgd on 2 workers (last loss 0.8) and d-psgd on 2 "
        "workers (last loss 0.8) did not reach the target (loss <= 0.5) and stay there for 1 more report "
        "within 8 iterations. They have no speedup.",
        "local-sgd, cocod-sgd and d-psgd: the theory covers plain SGD, not the update rule 'adamw'.",
    ]


def test_warnings_name_a_step_size_at_the_edge(loss_scenario: Scene, make_run: Make) -> None:
    wide = loss_scenario(step_size={"grid": [0.05, 0.1, 0.2]})
    assert warnings(_by_hand(wide, make_run, [0.4, 0.4], 0.1)) == []
    assert warnings(_by_hand(wide, make_run, [0.4, 0.4], 0.2)) == [
        "Step size 0.2 lies at the edge of the grid and is the best of local-sgd on 2 workers, "
        "local-sgd on 1 worker: a wider grid may do better."
    ]


def test_warnings_name_too_little_memory(timing_scenario: Scene) -> None:
    """4e9 parameters of 4 bytes, twice and with the algorithm's copies, are more than 11 GB."""
    workload = {"cost": {"parameters": 4_000_000_000, "batch": 4, "gradient": "10 ms"}}
    done = experiment(timing_scenario(compare=[], workload=workload, budget={"iterations": 1}), jobs=1)
    need = done.entries[0].run.peak_memory()
    assert need >= 32e9
    sentence = f"a worker needs {need / 1e9:.4g} GB at its peak, but gtx-1080-ti has 11 GB."
    assert warnings(done) == [f"allreduce-sgd on 3 workers and allreduce-sgd on 1 worker: {sentence}"]


def test_facts_name_an_update_rule_that_is_not_plain(timing_scenario: Scene, loss_scenario: Scene) -> None:
    assert "update rule" not in dict(facts(timing_scenario()))
    kept = {"rule": "nesterov", "momentum": 0.5}
    assert (
        dict(facts(timing_scenario(update=kept)))["update rule"]
        == "nesterov (weight-decay 0.0, momentum 0.5)"
    )
    decaying = {"rule": "sgd", "schedule": {"kind": "cosine", "warm-up": 1}}
    assert dict(facts(loss_scenario(update=decaying)))["update rule"] == (
        "sgd (weight-decay 0.0), cosine schedule (warm-up 1, final 0.0)"
    )


def test_warnings_name_what_the_theory_does_not_cover(timing_scenario: Scene) -> None:
    done = experiment(
        timing_scenario(algorithm="local-sgd", compare=["allreduce-sgd"], update="adamw"), jobs=1
    )
    sentence = "the theory covers plain SGD, not the update rule 'adamw'."
    assert [text for text in warnings(done) if "theory" in text] == [f"local-sgd: {sentence}"]


def test_warnings_name_events_after_the_end(loss_scenario: Scene, make_run: Make) -> None:
    late = [{"kind": "crash", "workers": [1], "at": "1 min"}]
    done = _by_hand(loss_scenario(stragglers=late), make_run, [0.4, 0.4])
    assert warnings(done) == [
        "local-sgd: the crash at 60 s (cluster.stragglers.0.at) lies beyond the run's end at 8 s, without "
        "effect."
    ]


def test_a_loss_curve_for_every_algorithm(loss_scenario: Scene, make_run: Make) -> None:
    done = _by_hand(loss_scenario(), make_run, [2.0, 1.0, 0.4, 0.3])
    by_time, by_iteration = figures.loss_against_time(done), figures.loss_against_iterations(done)
    assert list(by_iteration.data[0].x) == [2.0, 4.0, 6.0, 8.0]
    assert list(by_time.data[0].x) == [3.0, 6.0, 9.0, 12.0]
    assert list(by_time.data[0].y) == [2.0, 1.0, 0.4, 0.3]
    assert [trace.name for trace in by_time.data] == ["local-sgd", "local-sgd, 1 worker"]
    assert by_time.layout.yaxis.type == "log"
    assert by_time.layout.shapes[0].y0 == 0.5
    assert 'id="loss-time"' in report(done)


def test_a_timeline_is_cut_to_whole_iterations(loss_scenario: Scene, make_run: Make) -> None:
    spans = [
        Span(worker, "compute", "gradient", float(k), k + 1.0, iteration=k + 1)
        for k in range(100)
        for worker in (0, 1)
    ]
    run = make_run(loss_scenario(), spans=spans, duration=100.0, iterations=(100, 100))
    assert figures.window(run) == (12.0, 12)
    figure = figures.worker_timeline(run)
    assert sum(len(trace.x) for trace in figure.data) == 24
    assert figure.layout.title.text == "local-sgd: first 12 of 100 iterations, 12 s of 100 s"


def test_a_timeline_never_has_too_many_bars(loss_scenario: Scene, make_run: Make) -> None:
    spans = [Span(0, "transfer", "exchange", k / 1000, (k + 1) / 1000, 1, 8.0, 1) for k in range(5000)]
    run = make_run(loss_scenario(), spans=spans, duration=5.0, iterations=(1, 1))
    figure = figures.worker_timeline(run)
    assert sum(len(trace.x) for trace in figure.data) == figures.MOST_BARS
    assert figure.layout.title.text == "local-sgd: beginning of the first iteration, 2 s of 5 s"


def test_a_window_has_a_length_where_too_many_spans_begin_at_once(
    loss_scenario: Scene, make_run: Make
) -> None:
    """64 workers that wait for each of the others: a window of no length would divide by 0."""
    spans = [Span(0, "wait", "recv", 0.0, 1.0 + k, 1, 0.0, 1) for k in range(figures.MOST_BARS + 9)]
    links = LinkUse(["a"], [10.0], [7.5], [0, 0], [1.0, 2.5], [5.0, 0.0])
    run = make_run(loss_scenario(), spans=spans, duration=5.0, iterations=(1, 1), links=links)
    assert figures.window(run) == (5.0, 0)
    later = [*spans, Span(1, "compute", "gradient", 2.0, 3.0, iteration=1)]
    assert figures.window(dataclasses.replace(run, timeline=Timeline(later))) == (2.0, 0)
    with warn.catch_warnings():
        warn.simplefilter("error")
        assert figures.link_utilisation(run) is not None
        np.testing.assert_array_equal(figures.utilisation(links, [0], 0.0, 3), np.zeros((1, 3)))


def test_utilisation_is_the_exact_mean_of_the_load() -> None:
    """Link 1 carries 5 of 10 bytes/s from 1 s to 2.5 s; bins of 1 s."""
    links = LinkUse(["a", "b"], [10.0, 10.0], [0.0, 7.5], [1, 1], [1.0, 2.5], [5.0, 0.0])
    busy = figures.utilisation(links, [0, 1], 4.0, 4)
    np.testing.assert_allclose(busy, [[0, 0, 0, 0], [0, 0.5, 0.25, 0]], atol=1e-15)


def test_a_run_without_links_has_no_heat_map(loss_scenario: Scene, make_run: Make) -> None:
    assert figures.link_utilisation(make_run(loss_scenario())) is None


@pytest.mark.parametrize(
    ("builder", "layered"),
    [
        ({"builder": "two-level", "hosts": 2, "gpus-per-host": 2}, True),
        ({"builder": "fat-tree", "leaves": 2, "hosts-per-leaf": 2, "spines": 2}, True),
        (
            {"builder": "dragonfly", "groups": 3, "routers-per-group": 2, "gpus-per-router": 2},
            False,
        ),
        ({"builder": "torus", "dimensions": [3, 3]}, False),
        ({"builder": "exponential", "nodes": 8}, False),
    ],
)
def test_every_cluster_has_a_picture(
    builder: dict[str, object], layered: bool, timing_scenario: Scene
) -> None:
    scenario = timing_scenario().vary(topology=builder, stragglers=[])
    place = figures.node_positions(scenario.graph)
    assert list(place) == list(scenario.graph) or set(place) == set(scenario.graph)
    assert len({(round(x, 3), round(y, 3)) for x, y in place.values()}) == len(place), "nodes on one spot"
    assert place == figures.node_positions(scenario.graph)
    heights = {place[gpu][1] for gpu in topologies.gpus(scenario.graph)}
    assert (heights == {0.0}) == layered
    names = [trace.name for trace in figures.cluster_picture(scenario).data]
    assert "worker" in names


def test_the_picture_marks_what_is_slow_or_unused(timing_scenario: Scene) -> None:
    scenario = timing_scenario().vary(
        stragglers=[
            {"kind": "persistent", "workers": [1], "slowdown": 2.0},
            {"kind": "slow-link", "between": ["switch", "host1"]},
        ]
    )
    traces = {trace.name: trace for trace in figures.cluster_picture(scenario).data}
    assert list(traces["worker"].text) == ["0", "2"]
    assert list(traces["straggler"].text) == ["1"]
    assert "2× slower" in traces["straggler"].customdata[0]
    assert len(traces["unused GPU"].x) == 1
    assert "slowed link, 625 MB/s" in traces


def test_a_comparison_as_a_page(timed: Experiment) -> None:
    comparison = compare(timed.entries[0].run, timed.entries[1].run)
    text = comparison_report(comparison)
    headings, rows = comparison.phase_table()
    assert [text.index(f">{word}</th>") for word in headings] == sorted(
        text.index(f">{word}</th>") for word in headings
    )
    assert all(f">{row[0].strip()}</td>" in text.replace("\u2003", "") for row in rows)
    assert f'<tr><td>total</td><td class="figure">{rows[-1][1]}</td>' in text
    for plot in ("comparison", "comparison-workers", "comparison-iterations"):
        assert f'id="{plot}"' in text
    assert "differs most" in text
    assert "Largest contributor" in text
    warned = "runs of different scenarios, which differ in algorithm (allreduce-sgd, local-sgd)."
    assert warned in text
    assert warned not in comparison_report(compare(timed.entries[0].run, timed.entries[0].run))


def test_scripts_cannot_be_closed_from_inside(loss_scenario: Scene, make_run: Make) -> None:
    done = _by_hand(loss_scenario(name="</script><b>"), make_run, [0.4, 0.4])
    own = report(done).replace(get_plotlyjs(), "")
    assert "</script><b>" not in own


def test_the_facts_say_when_the_objective_has_a_batch_of_its_own(loss_scenario: Scene) -> None:
    base = loss_scenario()
    assert "objective batch" not in dict(facts(base))
    sentence = "1 a worker in a gradient of the objective; the time charged is that of 4"
    assert dict(facts(base.vary(objective_batch=1)))["objective batch"] == sentence


def test_staleness_is_drawn_where_it_is_measured() -> None:
    measured = {"sync": [], "a-psgd": [0.0, 3.0, 3.0, 4.0]}
    figure = figures.staleness(measured)
    (bars,) = figure.data
    assert (bars.name, list(bars.x), list(bars.y)) == ("a-psgd", [0.0, 3.0, 4.0], [0.25, 0.5, 0.25])
    # Its colour is that of its place among all algorithms, as in the other figures.
    assert bars.marker.color == figures.LINE_COLOURS[1]
