from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from analysis.speedup import Table, html_table, label, measure, speedups, text_table
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from traces import Span

Make = Callable[..., Run]
Scene = Callable[..., Scenario]

# With reports: 1 the target 0.5 is reached at the first sample at or below it that is followed by one more.
AT_4 = (0.9, 0.8, 0.7, 0.5, 0.4)  # the 4th sample: 8 iterations, 12 s
AT_2 = (0.9, 0.5, 0.4)  # the 2nd sample: 4 iterations, 6 s
NEVER = (0.9, 0.4, 0.8, 0.4)  # at or below twice, but never for two samples in a row


def test_speedups_by_hand(loss_scenario: Scene, make_run: Make) -> None:
    spans = [
        Span(0, "compute", "gradient", 0.0, 4.0),
        Span(0, "transfer", "all_reduce", 3.0, 6.0),
        Span(1, "compute", "gradient", 0.0, 8.0),
    ]
    one = make_run(loss_scenario(1), AT_4)
    two = make_run(loss_scenario(2), AT_2, spans, duration=8.0, iterations=(4, 4), bytes_sent=(80.0, 120.0))
    first, second = speedups([one, two]).rows

    assert (first.workers, first.iteration_speedup, first.time_speedup, first.efficiency) == (1, 1, 1, 1)
    assert (second.iterations, second.time) == (4.0, 6.0)
    assert (second.reference_iterations, second.reference_time) == (8.0, 12.0)
    assert second.iteration_speedup == 8 / 4
    assert second.time_speedup == 12 / 6
    assert second.ideal == 2.0
    assert second.efficiency == 1.0
    # Worker 0 computes 4 of 8 s, transfers 2 s beside that and waits 2 s; worker 1 computes all the time.
    assert (second.compute, second.transfer, second.wait) == (12 / 16, 2 / 16, 2 / 16)
    assert second.bytes_per_iteration == (80 / 4 + 120 / 4) / 2
    assert second.time_per_iteration == 2.0
    assert second.missing is None


def test_ideal_is_the_ratio_of_computing_power(loss_scenario: Scene, make_run: Make) -> None:
    """Of two workers one is half as fast, so that two are worth one and a half."""
    slow = {"kind": "persistent", "workers": [0], "slowdown": 2.0}
    two = loss_scenario(2, stragglers=[slow])
    row = measure(make_run(two, AT_2), make_run(two.reference(), AT_4))
    assert row.ideal == 1.5
    assert row.time_speedup == 2.0
    assert row.efficiency == 2.0 / 1.5


def test_a_target_that_was_not_reached_has_no_speedup(loss_scenario: Scene, make_run: Make) -> None:
    table = speedups([make_run(loss_scenario(1), AT_4), make_run(loss_scenario(2), NEVER)])
    row = table.rows[1]
    assert row.missing == "not reached"
    assert (row.iterations, row.time, row.iteration_speedup, row.time_speedup, row.efficiency) == (None,) * 5
    cells = dict(zip(table.headings(), table.cells()[1], strict=True))
    for heading in (
        "iterations to target",
        "time to target",
        "iteration speedup",
        "time speedup",
        "efficiency",
    ):
        assert cells[heading] == "not reached"


def test_a_reference_that_did_not_reach_it_is_named(loss_scenario: Scene, make_run: Make) -> None:
    table = speedups([make_run(loss_scenario(1), NEVER), make_run(loss_scenario(2), AT_2)])
    cells = dict(zip(table.headings(), table.cells()[1], strict=True))
    assert cells["iterations to target"] == "4"
    assert cells["time to target"] == "6 s"
    assert cells["time speedup"] == "not reached by 1 worker"
    assert table.rows[1].time_speedup is None


def test_without_a_target_there_is_no_speedup(timing_scenario: Scene, make_run: Make) -> None:
    scenario = timing_scenario().variants()[0].vary(target=None)
    table = speedups([make_run(scenario.reference()), make_run(scenario)])
    assert table.rows[1].missing == "no target"
    assert table.notes()[0] == "There is no target, hence no speedup."


def test_timing_only_targets(timing_scenario: Scene, make_run: Make) -> None:
    """96 samples are 8 iterations of 3 workers with batch 4, and 24 of one."""
    scenario = timing_scenario().variants()[0].vary(target={"samples": 96})
    three = make_run(scenario, duration=4.0, iterations=(8, 8, 8))
    one = make_run(scenario.reference(), duration=2.0, iterations=(8,))
    row = measure(three, one)
    assert (row.iterations, row.reference_iterations, row.iteration_speedup) == (8.0, 24.0, 3.0)
    assert (row.time, row.reference_time, row.time_speedup) == (4.0, 6.0, 1.5)
    assert row.step_size is None
    assert (
        "* The run, or the one-worker run that it refers to, ended before the target; that one's time "
        "follows from its mean pace."
    ) in Table((row,)).notes()


def test_missing_reference_names_the_algorithm(loss_scenario: Scene, make_run: Make) -> None:
    with pytest.raises(BadInput) as error:
        speedups([make_run(loss_scenario(1), AT_4), make_run(loss_scenario(2, algorithm="cocod-sgd"), AT_2)])
    assert str(error.value) == "cocod-sgd: there is no one-worker run of it, which its speedups refer to"


def test_other_parameters_are_another_algorithm(loss_scenario: Scene, make_run: Make) -> None:
    changed = make_run(loss_scenario(2, algorithm={"name": "local-sgd", "period": 8}), AT_2)
    assert label(changed) == "local-sgd (period 8)"
    with pytest.raises(BadInput, match=re.escape("local-sgd (period 8): there is no one-worker run of it")):
        speedups([make_run(loss_scenario(1), AT_4), changed])


def test_two_references_are_refused(loss_scenario: Scene, make_run: Make) -> None:
    runs = [make_run(loss_scenario(1), AT_4), make_run(loss_scenario(1, step_size=0.2), AT_4)]
    with pytest.raises(BadInput) as error:
        speedups(runs)
    assert (
        str(error.value)
        == "local-sgd: there are two different one-worker runs of it; put them into two tables"
    )


def test_targets_must_agree(loss_scenario: Scene, make_run: Make) -> None:
    other = loss_scenario(2, target={"loss": 0.4})
    with pytest.raises(BadInput) as error:
        speedups([make_run(loss_scenario(1), AT_4), make_run(other, AT_2)])
    expected = (
        "local-sgd: the run on 2 workers has the target 'loss <= 0.4', its one-worker run 'loss <= 0.5'"
    )
    assert str(error.value) == expected


def test_table_says_that_step_sizes_were_tuned(loss_scenario: Scene, make_run: Make) -> None:
    row = measure(make_run(loss_scenario(2), AT_2), make_run(loss_scenario(1), AT_4), [0.05, 0.1, 0.2])
    from analysis.speedup import Table

    sentence = "Step sizes are the best of 0.05, 0.1, 0.2, for each algorithm and number of workers."
    assert sentence in str(Table((row,))).splitlines()


def test_table_as_text_html_and_data_frame(loss_scenario: Scene, make_run: Make) -> None:
    table = speedups([make_run(loss_scenario(1), AT_4), make_run(loss_scenario(2), NEVER)])
    lines = str(table).splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    assert lines[rule - 1].split()[:2] == ["algorithm", "workers"]
    assert lines[rule + 1].split()[:6] == ["local-sgd", "1", "0.1", "8", "12", "s"]
    assert {len(line) for line in lines[rule + 1 : rule + 3]} == {len(lines[rule])}
    assert "<td>local-sgd</td>" in table._repr_html_()
    frame = table.to_pandas()
    assert list(frame["workers"]) == [1, 2]
    assert frame["time_s"].isna().tolist() == [False, True]


def test_text_table_aligns() -> None:
    text = text_table(["name", "a long one", "B - A"], [["x", "1", "-1.5 s"], ["longer", "22", "0 s"]], (0,))
    assert text == "\n".join(
        [
            "           a",
            "        long",
            "name     one   B - A",
            "------  ----  ------",
            "x          1  -1.5 s",
            "longer    22     0 s",
        ]
    )


def test_html_table_escapes() -> None:
    assert '<td class="figure">&lt;b&gt;</td>' in html_table(["h"], [["<b>"]])
