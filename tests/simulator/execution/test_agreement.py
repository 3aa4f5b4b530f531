"""Ranks that call different things in one place hear so before the backend does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._distributed_c10d import DebugLevel

from simulator.engine.simulate import simulate
from simulator.execution import execute
from simulator.execution.agreement import FirstCalls, Table
from simulator.faults import AlgorithmError

GROUPS = ("world", "left")


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    return [Table(tmp_path / "calls", rank, 3, GROUPS) for rank in range(3)]


class TestTable:
    def test_equal_calls(self, tables: list[Table]) -> None:
        for number in range(3):
            for table in tables:
                table.enter("world", number, ("mean", 5 + number, "float32"), (0, 1, 2))

    def test_the_last_to_come_sees_what_differs(self, tables: list[Table]) -> None:
        tables[2].enter("world", 0, ("mean", 5, "float32"), (0, 1, 2))
        with pytest.raises(AlgorithmError) as caught:
            tables[0].enter("world", 0, ("mean", 4, "float32"), (0, 1, 2))
        assert str(caught.value) == (
            "all_reduce number 0 of the group 'world' differs: worker 0 called mean of 4 float32 elements, "
            "worker 2 called mean of 5 float32 elements"
        )

    @pytest.mark.parametrize("other", [("sum", 5, "float32"), ("mean", 5, "float64")])
    def test_kinds_and_types_differ_too(self, tables: list[Table], other: tuple[str, int, str]) -> None:
        tables[0].enter("world", 0, ("mean", 5, "float32"), (0, 1, 2))
        with pytest.raises(AlgorithmError, match="number 0 of the group 'world' differs"):
            tables[1].enter("world", 0, other, (0, 1, 2))

    def test_other_groups_ranks_and_numbers_do_not_matter(self, tables: list[Table]) -> None:
        tables[0].enter("world", 0, ("mean", 5, "float32"), (0, 1, 2))
        tables[1].enter("left", 0, ("mean", 4, "float32"), (1, 2))
        tables[2].enter("world", 1, ("mean", 3, "float32"), (0, 1, 2))
        tables[1].enter("world", 0, ("mean", 2, "float32"), (1, 2))

    def test_an_exchange(self, tables: list[Table]) -> None:
        tables[0].enter("exchange", 7, ("exchange", 5, "float32"), (1,))
        with pytest.raises(AlgorithmError) as caught:
            tables[1].enter("exchange", 7, ("exchange", 6, "float32"), (0, 2))
        assert str(caught.value) == "an exchange differs: worker 1 sent 6 elements, worker 0 sent it 5"


class Stopped(Exception):
    """A process is stopped here."""


class Stopping(np.ndarray[Any, Any]):
    """Rows in which nobody gets as far as to write the number of a call."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, tuple) and key[1] == 0 and value > 0:
            raise Stopped
        super().__setitem__(key, value)


def test_a_rank_that_is_stopped_while_it_notes_its_next_call_differs_in_nothing(tables: list[Table]) -> None:
    """What is empty ends at once, so that others may come to a call when its first ranks have left it."""
    nothing = ("mean", 0, "float32")
    tables[0].enter("world", 0, nothing, (0, 1, 2))
    tables[1].enter("world", 0, nothing, (0, 1, 2))
    tables[0]._table = tables[0]._table.view(Stopping)  # type: ignore[assignment]
    with pytest.raises(Stopped):
        tables[0].enter("world", 1, ("mean", 5, "float32"), (0, 1, 2))
    tables[2].enter("world", 0, nothing, (0, 1, 2))
    # It counts as soon as it goes on.
    tables[0]._table = tables[0]._table.view(np.memmap)
    tables[0].enter("world", 1, ("mean", 5, "float32"), (0, 1, 2))
    with pytest.raises(
        AlgorithmError, match="number 1 of the group 'world' differs: worker 0 called mean of 5"
    ):
        tables[2].enter("world", 1, ("mean", 4, "float32"), (0, 1, 2))


class Gathering:
    """Gives what two ranks tell."""

    def __init__(self, *rows: tuple[int, int, int]) -> None:
        self.rows = rows
        self.calls = 0

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        return tuple(map(torch.tensor, self.rows))


def test_first_calls_alone_are_told() -> None:
    gathering: Any = Gathering((1, 5, 0), (1, 4, 0))
    first = FirstCalls(0, gathering)
    first.enter("world", 1, ("mean", 5, "float32"), (0, 1))
    first.enter("exchange", 0, ("exchange", 5, "float32"), (1,))
    assert gathering.calls == 0
    with pytest.raises(AlgorithmError) as caught:
        first.enter("world", 0, ("mean", 5, "float32"), (0, 1))
    assert str(caught.value) == (
        "all_reduce number 0 of the group 'world' differs: worker 0 called mean of 5 float32 elements, "
        "worker 1 called mean of 4 float32 elements"
    )


def test_all_calls_are_told_where_torch_is_to_compare_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulator.execution.agreement.get_debug_level", lambda: DebugLevel.DETAIL)
    gathering: Any = Gathering((1, 5, 0), (1, 4, 0))
    every = FirstCalls(0, gathering)
    every.enter("exchange", 3, ("exchange", 5, "float32"), (1,))
    assert gathering.calls == 0
    with pytest.raises(AlgorithmError, match="number 7 of the group 'world' differs"):
        every.enter("world", 7, ("mean", 5, "float32"), (0, 1))


class TestForReal:
    """The same sentence on both clocks, and nothing left."""

    @pytest.mark.parametrize(
        ("call", "sentence"),
        [
            (
                "await worker.all_reduce(x[worker.rank:])",
                "all_reduce number 3 of the group 'world' differs: worker 0 called mean of 5 float64 "
                "elements, worker 1 called mean of 4 float64 elements",
            ),
            (
                "await worker.all_gather(x[worker.rank:])",
                "all_gather number 3 of the group 'world' differs: worker 0 called all_gather of 5 float64 "
                "elements, worker 1 called all_gather of 4 float64 elements",
            ),
            (
                "await worker.all_to_all([x[worker.rank:]] * 2)",
                "all_to_all number 3 of the group 'world' differs: worker 0 called all_to_all of 5 float64 "
                "elements, worker 1 called all_to_all of 4 float64 elements",
            ),
            (
                "await (worker.all_reduce(x, 'sum') if worker.rank else worker.all_gather(x))",
                "collective number 3 of the group 'world' differs: worker 0 called all_gather of 5 float64 "
                "elements, worker 1 called sum of 5 float64 elements",
            ),
        ],
    )
    def test_collectives(
        self, own: Any, call: str, sentence: str, ranks_left: Callable[[], list[int]]
    ) -> None:
        body = f"""
            x = await worker.gradient(worker.initial_model())
            for _ in range(3):
                x = await worker.all_reduce(x)
            {call}
            worker.report(x)
        """
        scenario = own(body, 2)
        for run in (simulate, execute):
            with pytest.raises(AlgorithmError) as caught:
                run(scenario)
            assert str(caught.value) == sentence
        assert ranks_left() == []

    def test_exchanges(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        body = """
            x = await worker.gradient(worker.initial_model())
            await worker.exchange(x)
            await worker.exchange(x[worker.rank:])
            worker.report(x)
        """
        plan = 'Plan({}, ((0, 1, "exchange"), (1, 0, "exchange")))'
        scenario = own(body, 2, requires='frozenset({"graph"})', plan=plan)
        sentences = {
            f"an exchange differs: worker {a} sent {5 - a} elements, worker {1 - a} sent it {4 + a}"
            for a in (0, 1)
        }
        for run in (simulate, execute):
            with pytest.raises(AlgorithmError) as caught:
                run(scenario)
            assert str(caught.value) in sentences
        assert ranks_left() == []
