from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.attribution import attribution
from analysis.compare import bit_identical, compare, difference_text, load_run
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


def test_load_run_names_the_runs_of_an_experiment(tmp_path: Path) -> None:
    for name in ("local-sgd", "cocod-sgd"):
        (tmp_path / name).mkdir()
        Timeline().write(tmp_path / name / "spans.parquet")
    with pytest.raises(BadInput) as error:
        load_run(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: holds several runs; name one of its folders: 'cocod-sgd', 'local-sgd'"
    )
