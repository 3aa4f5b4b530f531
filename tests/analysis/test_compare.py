from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.attribution import attribution, attribution_by_iteration
from analysis.compare import bit_identical, blocks, compare, difference_text, load_run
from analysis.figures import comparison_by_iteration, comparison_by_worker
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from traces import Span, Timeline

Make = Callable[..., Run]
Scene = Callable[..., Scenario]


def test_every_instant_belongs_to_one_operation(loss_scenario: Scene, make_run: Make) -> None:
    spans = [
        Span(0, "transfer", "all_reduce", 1.0, 5.0),
        Span(0, "compute", "gradient", 0.0, 2.0),
        Span(0, "compute", "update", 3.0, 4.0),
        Span(0, "wait", "all_reduce", 4.0, 7.0),
    ]
    (parts,) = attribution(make_run(loss_scenario(1), spans=spans, duration=8.0))
    assert parts == {
        ("compute", "gradient"): 2.0,
        ("transfer", "all_reduce"): 2.0,  # 2..3 and 4..5
        ("compute", "update"): 1.0,
        ("wait", "all_reduce"): 2.0,  # 5..7
        ("wait", "idle"): 1.0,  # 7..8
    }


SPANS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["compute", "transfer", "wait"]),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    max_size=12,
)


@given(SPANS)
def test_attribution_agrees_with_the_time_shares(
    loss_scenario: Scene, make_run: Make, drawn: list[tuple[int, str, int, int]]
) -> None:
    spans = [Span(worker, kind, "x", min(a, b), max(a, b)) for worker, kind, a, b in drawn]
    run = make_run(loss_scenario(2), spans=spans, duration=20.0)
    parts = attribution(run)
    assert [sum(own.values()) for own in parts] == pytest.approx([20.0, 20.0])
    shares = run.time_shares()
    for kind in ("compute", "transfer", "wait"):
        total = sum(spent for own in parts for phase, spent in own.items() if phase[0] == kind)
        assert total / 40 == pytest.approx(shares[kind], abs=1e-12)


def _pair(loss_scenario: Scene, make_run: Make) -> tuple[Run, Run]:
    """Two iterations of one worker: b waits 3 s longer and computes 1 s less."""
    a = [Span(0, "compute", "gradient", 0.0, 4.0), Span(0, "wait", "all_reduce", 4.0, 5.0)]
    b = [Span(0, "compute", "gradient", 0.0, 3.0), Span(0, "wait", "all_reduce", 3.0, 7.0)]
    scenario = loss_scenario(1)
    return (
        make_run(scenario, spans=a, duration=5.0, iterations=(2,)),
        make_run(scenario, spans=b, duration=7.0, iterations=(2,)),
    )


def test_compare_by_hand(loss_scenario: Scene, make_run: Make) -> None:
    comparison = compare(*_pair(loss_scenario, make_run))
    assert (comparison.total_a, comparison.total_b) == (2.5, 3.5)
    assert [(p.kind, p.a, p.b) for p in comparison.phases] == [
        ("compute", 2.0, 1.5),
        ("transfer", 0.0, 0.0),
        ("wait", 0.5, 2.0),
    ]
    worst = comparison.largest
    assert worst is not None
    assert (worst.kind, worst.operation, worst.difference) == ("wait", "all_reduce", 1.5)
    expected = (
        "Largest contributor: all_reduce (wait), in which B spends 1.5 s longer per worker and iteration, "
        "150 % of the difference."
    )
    assert comparison.verdict() == expected
    assert difference_text(1.0, 1.0 + 1e-15) == "0 s"
    lines = [line.split() for line in str(comparison).splitlines()]
    assert ["total", "2.5", "s", "3.5", "s", "+1", "s", "1.400"] in lines
    assert ["gradient", "2", "s", "1.5", "s", "-500", "ms", "0.750"] in lines
    assert comparison.to_dict()["difference_s"] == 1.0
    assert sum(o.difference for o in comparison.operations) == 1.0


def test_equal_runs_do_not_differ(loss_scenario: Scene, make_run: Make) -> None:
    run, _ = _pair(loss_scenario, make_run)
    comparison = compare(run, run)
    assert comparison.largest is None
    assert comparison.verdict() == "No phase differs."


def test_bit_identical(loss_scenario: Scene, make_run: Make) -> None:
    scenario = loss_scenario(1)
    model = np.array([[1.0, 0.0]])

    def run(models: np.ndarray | None) -> Run:
        return make_run(scenario, models=models)

    assert bit_identical(run(model), run(model.copy()))
    assert not bit_identical(run(model), run(np.array([[1.0, -0.0]])))  # equal numbers, other bits
    assert not bit_identical(run(model), run(model.astype(np.float32)))
    assert not bit_identical(run(model), run(model[:, :1]))
    with pytest.raises(BadInput) as error:
        bit_identical(run(model), run(None))
    assert str(error.value) == "a timing-only run has no final models to compare"


def test_sentences_about_the_models(loss_scenario: Scene, make_run: Make) -> None:
    scenario = loss_scenario(1)
    a = make_run(scenario, models=np.array([[1.0, 2.0]]))

    def text(models: np.ndarray) -> str:
        found = compare(a, make_run(scenario, models=models)).models
        assert found is not None
        return found.text

    assert text(np.array([[1.0, 2.0]])) == "The final models are bit-identical."
    assert text(np.array([[1.0, 2.5]])) == "The final models are not bit-identical; largest difference 0.5."
    assert text(np.array([[1.0]])) == "The final models differ in shape: (1, 2) and (1, 1)."
    assert text(np.array([[1, 2]], dtype="float32")) == (
        "The final models differ in type: float64 and float32; largest difference 0."
    )


def test_load_run_takes_the_only_run_of_an_experiment(
    timing_scenario: Scene, make_run: Make, tmp_path: Path
) -> None:
    run = make_run(timing_scenario(), [], [Span(0, "compute", "gradient", 0.0, 1.0, iteration=1)])
    run.save(tmp_path / "local-sgd")
    assert load_run(tmp_path).scenario.digest() == run.scenario.digest()


def test_load_run_names_the_runs_of_an_experiment(tmp_path: Path) -> None:
    for name in ("local-sgd", "cocod-sgd"):
        (tmp_path / name).mkdir()
        Timeline().write(tmp_path / name / "spans.parquet")
    with pytest.raises(BadInput) as error:
        load_run(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds several runs; name one of its folders: 'cocod-sgd', 'local-sgd'"
    )


def _three_workers(loss_scenario: Scene, make_run: Make) -> tuple[Run, Run]:
    """Two iterations of three workers; in B worker 2 computes 3 s longer in its second, and all wait."""

    def spans(extra: float) -> list[Span]:
        found = []
        for worker in range(3):
            found.append(Span(worker, "compute", "gradient", 0.0, 2.0, iteration=1))
            found.append(Span(worker, "transfer", "all_reduce", 2.0, 3.0, iteration=1))
            late = extra if worker == 2 else 0.0
            found.append(Span(worker, "compute", "gradient", 3.0, 5.0 + late, iteration=2))
            found.append(Span(worker, "wait", "all_reduce", 5.0 + late, 5.0 + extra, iteration=2))
            found.append(Span(worker, "transfer", "all_reduce", 5.0 + extra, 6.0 + extra, iteration=2))
        return found

    scenario = loss_scenario(3)
    a, b = (
        make_run(scenario, spans=spans(extra), duration=6.0 + extra, iterations=(2, 2, 2))
        for extra in (0.0, 3.0)
    )
    return a, b


def test_iterations_and_workers_by_hand(loss_scenario: Scene, make_run: Make) -> None:
    comparison = compare(*_three_workers(loss_scenario, make_run))
    assert [(entry.iteration, entry.a, entry.b) for entry in comparison.iterations] == [
        (1, 3.0, 3.0),
        (2, 3.0, pytest.approx(6.0)),
    ]
    # They add up to the runs.
    assert sum(entry.a for entry in comparison.iterations) == pytest.approx(2 * comparison.total_a)
    assert sum(entry.b for entry in comparison.iterations) == pytest.approx(2 * comparison.total_b)
    worst = comparison.worst_iteration
    assert worst is not None
    assert (worst.largest.kind, worst.largest.operation) == ("wait", "all_reduce")
    assert [kind.difference for kind in worst.kinds] == pytest.approx([1.0, 0.0, 2.0])
    assert [(entry.kind, entry.difference) for entry in comparison.contributors] == [
        ("wait", 1.5),
        ("wait", 1.5),
        ("compute", 1.5),
    ]
    # The others wait because of what it does.
    assert comparison.ranked_workers() == [2, 0, 1]
    assert comparison.worker_verdict() == (
        "Worker 2 differs most: in gradient (compute) B spends 1.5 s longer per iteration."
    )
    assert comparison.largest is not None
    assert comparison.largest.kind == "wait"
    assert comparison.work_verdict() == (
        "Of the work that is waited for, gradient (compute) differs most: +500 ms."
    )
    assert comparison.iteration_verdict() == (
        "Iteration 2 differs most: 3 s in A, 6 s in B; most of it in all_reduce (wait), +2 s."
    )


def test_the_text_of_workers_and_iterations(loss_scenario: Scene, make_run: Make) -> None:
    a, b = _three_workers(loss_scenario, make_run)
    text = str(compare(a, b))
    assert (
        text.partition("B - A per iteration, by worker")[2]
        == """

worker  compute  transfer    wait  largest contributor
------  -------  --------  ------  -------------------------
     2   +1.5 s       0 s     0 s  gradient (compute) +1.5 s
     0      0 s       0 s  +1.5 s  all_reduce (wait) +1.5 s
     1      0 s       0 s  +1.5 s  all_reduce (wait) +1.5 s
Worker 2 differs most: in gradient (compute) B spends 1.5 s longer per iteration.

Time of an average worker, by iteration

                      B -
iteration    A    B     A  most different
---------  ---  ---  ----  -------------------------
1          3 s  3 s   0 s  -
2          3 s  6 s  +3 s  2: all_reduce (wait) +2 s
Iteration 2 differs most: 3 s in A, 6 s in B; most of it in all_reduce (wait), +2 s."""
    )
    same = str(compare(a, a))
    assert "by worker" not in same
    assert "by iteration" not in same


def test_the_data_of_workers_and_iterations(loss_scenario: Scene, make_run: Make) -> None:
    data = compare(*_three_workers(loss_scenario, make_run)).to_dict()
    assert [entry["difference_s"] for entry in data["iterations"]] == pytest.approx([0.0, 3.0])
    assert data["iterations"][1]["largest_contributor"]["kind"] == "wait"
    assert [entry["difference_s"] for entry in data["largest_contributor_by_worker"]] == [1.5, 1.5, 1.5]


def test_an_instant_belongs_to_the_iteration_begun_last(loss_scenario: Scene, make_run: Make) -> None:
    spans = [
        Span(0, "wait", "lock", 0.0, 1.0),
        Span(0, "compute", "gradient", 1.0, 2.0, iteration=1),
        Span(0, "transfer", "all_reduce", 2.0, 6.0, iteration=1),
        Span(0, "compute", "gradient", 3.0, 4.0, iteration=3),  # one evaluation that counts twice
    ]
    (parts,) = attribution_by_iteration(make_run(loss_scenario(1), spans=spans, duration=7.0))
    assert parts == {
        (1, ("wait", "lock")): 1.0,
        (1, ("compute", "gradient")): 1.0,
        (1, ("transfer", "all_reduce")): 1.0,
        (3, ("compute", "gradient")): 1.0,
        (3, ("transfer", "all_reduce")): 2.0,
        (3, ("wait", "idle")): 1.0,
    }


@given(st.integers(1, 2000), st.integers(1, 200))
def test_blocks_cover_everything_once(count: int, most: int) -> None:
    found = blocks(count, most)
    assert [number for block in found for number in block] == list(range(count))
    assert len(found) <= most
    assert len({len(block) for block in found[:-1]}) <= 1
    assert len(found[-1]) <= len(found[0])


def test_large_runs_stay_readable(loss_scenario: Scene, make_run: Make) -> None:
    """Of 40 workers and 300 iterations 8 and 10 rows are shown, and some hundred bars drawn."""

    def run(seed: int) -> Run:
        random = np.random.default_rng(seed)
        spans = []
        for worker in range(40):
            at = 0.0
            for iteration in range(1, 301):
                step, wait = random.uniform(0.5, 1.5, 2)
                spans.append(Span(worker, "compute", "gradient", at, at + step, iteration=iteration))
                at += step + wait
        return make_run(loss_scenario(4), spans=spans, duration=900.0, iterations=(300,) * 40)

    comparison = compare(run(1), run(2))
    assert len(comparison.worker_table()[1]) == 8
    assert "by worker: the 8 of 40 that differ most" in str(comparison)
    rows = comparison.iteration_table()[1]
    assert len(rows) == 10
    assert (rows[0][0], rows[-1][0]) == ("1 to 30", "271 to 300")
    assert max(map(len, str(comparison).splitlines())) < 140
    by_worker, by_iteration = comparison_by_worker(comparison), comparison_by_iteration(comparison)
    assert {len(trace.x) for trace in by_worker.data} == {40}
    assert {len(trace.x) for trace in by_iteration.data} == {100}
    assert by_iteration.layout.xaxis.title.text == "iteration (means over blocks)"
    assert [trace.name for trace in by_iteration.data] == ["compute", "transfer", "waiting", "A", "B"]
