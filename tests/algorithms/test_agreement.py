"""Every algorithm whose models do not depend on timing, against its recursion in NumPy, to 1e-12."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.algorithms.table import CASES, Case
from tests.algorithms.training import RULES


def each(cases: Iterable[Case], *more: Iterable[Any]) -> list[Any]:
    """Return parameters (case, ...) for every case and all combinations of the rest."""
    combined: list[tuple[Any, ...]] = [(case,) for case in cases]
    for values in more:
        combined = [(*head, value) for head in combined for value in values]
    return [pytest.param(*values, id=" ".join(map(str, values))) for values in combined]


@pytest.mark.parametrize(("case", "workers"), [p for case in CASES for p in each([case], case.workers)])
def test_the_models_are_those_of_the_recursion(case: Case, workers: int) -> None:
    case.hold(workers)


@pytest.mark.parametrize("case", each(CASES))
def test_the_step_size_may_change_and_stragglers_change_nothing(case: Case) -> None:
    case.hold(case.usual, schedule=True, slow={0: 1.7, 2: 2.6})


@pytest.mark.parametrize(("case", "rule"), each([case for case in CASES if case.rules], RULES))
def test_any_local_update_rule_will_do(case: Case, rule: str) -> None:
    case.hold(case.usual, rule=rule)


@pytest.mark.parametrize("case", each([case for case in CASES if case.shares]))
def test_batches_by_speed_weight_the_means(case: Case) -> None:
    case.hold(case.usual, slow={1: 2.0}, batches="proportional")
