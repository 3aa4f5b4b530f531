"""The suite of emulated networks: its cases, that it goes on where it was stopped, and its table."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.validate import emulated
from analysis.validate.emulated import (
    COUNTED,
    LIMITS,
    SHARE_SPREAD,
    SIMULATIONS,
    Case,
    Store,
    by_algorithm,
    cases,
    main,
    share_spread,
    table,
    validate,
    within,
)
from analysis.validate.result import Result
from simulator.engine.simulate import simulate
from simulator.execution.emulation import SETTINGS, Layout
from simulator.execution.execute import check_executable
from simulator.scenario import Scenario

Clock = Callable[[Scenario], Any]
STAR = Case("d-psgd", "star", 4, 100, straggler=False)
TREE = Case("allreduce-sgd", "tree-bad-order", 4, 100, straggler=True)


def timed(scenario: Scenario, seconds: float) -> Any:
    """Return a run of which every iteration that counts takes given seconds, and the others a hundred."""
    iterations = scenario.sections.budget.iterations
    first = iterations - COUNTED + 1
    numbers = range(1, iterations + 1)
    spans = [
        SimpleNamespace(worker=0, iteration=number, start=100.0 * (number - first)) for number in numbers
    ]
    ends = (COUNTED * seconds,)
    return SimpleNamespace(workers=1, iterations=(iterations,), worker_spans=spans, own_ends=ends)


def clock(*seconds: float) -> tuple[Clock, list[str]]:
    """Return a clock on which runs take given times, and the names of the scenarios that it has run."""
    ran: list[str] = []
    times: Iterator[float] = itertools.cycle(seconds)

    def run(scenario: Scenario) -> Any:
        ran.append(scenario.name)
        return timed(scenario, next(times))

    return run, ran


class TestCases:
    def test_the_whole_grid(self) -> None:
        found = cases()
        assert len(found) == 2 * 2 * 2 * 5 * 8
        assert len({case.name for case in found}) == len(found)
        assert found[0].name == "star-4-100-even-allreduce-sgd"

    @pytest.mark.parametrize("algorithm", LIMITS)
    def test_each_can_run_on_both_clocks(self, algorithm: str) -> None:
        for case in cases():
            if (case.algorithm, case.workers, case.rate, case.straggler) == (algorithm, 8, 200, True):
                scenario = case.scenario()
                check_executable(scenario)
                layout = Layout.of(scenario)
                assert len(set(layout.ranks)) == 8
                assert not layout.delayed
                assert [scenario.persistent_factor(rank) for rank in range(8)] == [1.0] * 7 + [2.0]

    def test_networks(self) -> None:
        def rates(topology: str) -> list[float]:
            cables = Layout.of(Case("d-psgd", topology, 4, 100, False).scenario()).cables
            return sorted({rate * 8 / 1e6 for cable in cables for rate in cable.rates if rate is not None})

        assert rates("star") == [100]
        assert rates("tree-good-order") == [100, 200]
        assert rates("ring-slow-link") == [50, 100]
        assert rates("random") == [100]

    def test_rank_order_of_the_tree(self) -> None:
        def hosts(topology: str) -> list[Any]:
            cluster = Case("d-psgd", topology, 4, 100, False).scenario().cluster
            return [cluster.host(rank) for rank in range(4)]

        assert hosts("tree-good-order") == ["host0", "host0", "host1", "host1"]
        assert hosts("tree-bad-order") == ["host0", "host1", "host0", "host1"]


class TestGoingOn:
    def test_what_was_measured_is_kept(self, tmp_path: Path) -> None:
        wall, measured = clock(0.4)
        virtual, simulated = clock(0.3)

        def stopped(scenario: Scenario) -> Any:
            if len(measured) == 4:
                raise KeyboardInterrupt
            return wall(scenario)

        with pytest.raises(KeyboardInterrupt):
            validate([STAR, TREE], Store(tmp_path), 3, wall=stopped, virtual=virtual)
        assert measured == [STAR.name] * 3 + [TREE.name]
        found = validate([STAR, TREE], Store(tmp_path), 3, wall=wall, virtual=virtual)
        assert measured == [STAR.name] * 3 + [TREE.name] * 3
        assert simulated == [*[STAR.name] * SIMULATIONS, *[TREE.name] * SIMULATIONS] * 2
        assert found == [Result(case, (0.3,) * SIMULATIONS, (0.4,) * 3) for case in (STAR, TREE)]
        assert sorted(file.name for file in tmp_path.iterdir()) == [f"{STAR.name}.json", f"{TREE.name}.json"]

    def test_what_was_measured_under_other_conditions_is_measured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wall, measured = clock(0.4)
        validate([STAR], Store(tmp_path), 1, wall=wall, virtual=clock(0.3)[0])
        monkeypatch.setitem(SETTINGS, "ipv4/tcp_congestion_control", "bbr")
        for _ in range(2):
            validate([STAR], Store(tmp_path), 1, wall=wall, virtual=clock(0.3)[0])
        assert len(measured) == 2

    def test_each_simulation_has_another_seed_of_the_machines(self, tmp_path: Path) -> None:
        seeds: list[tuple[int, int]] = []

        def virtual(scenario: Scenario) -> Any:
            seeds.append((scenario.seed, scenario.cluster_seed))
            return timed(scenario, 0.3)

        validate([STAR], Store(tmp_path), 1, wall=clock(0.4)[0], virtual=virtual)
        assert seeds == [(1, seed) for seed in range(SIMULATIONS)]

    def test_what_was_simulated_is_not_kept(self, tmp_path: Path) -> None:
        """Neither the simulator of this suite nor that of an older one, whose store has it."""
        kept = {"scenario": STAR.measured, "simulated": 0.2, "measured": [0.4], "date": "2026-11-01"}
        file = tmp_path / f"{STAR.name}.json"
        file.write_text(json.dumps(kept))
        wall, measured = clock(0.4)
        for seconds in (0.3, 0.35):
            [found] = validate([STAR], Store(tmp_path), 2, wall=wall, virtual=clock(seconds)[0])
            assert found == Result(STAR, (seconds,) * SIMULATIONS, (0.4, 0.4))
        assert len(measured) == 1
        assert "simulated" not in json.loads(file.read_text())

    def test_more_and_fewer_runs(self, tmp_path: Path) -> None:
        wall, measured = clock(0.1, 0.2, 0.3)
        virtual, _ = clock(0.3)
        for runs, expected in ((1, (0.1,)), (3, (0.1, 0.2, 0.3)), (2, (0.1, 0.2))):
            [found] = validate([STAR], Store(tmp_path), runs, wall=wall, virtual=virtual)
            assert found.measured == expected
        assert len(measured) == 3

    @pytest.mark.parametrize("text", ["", "{", json.dumps({"scenario": "another", "measured": [1.0]})])
    def test_what_is_torn_or_of_another_scenario_is_measured_again(self, tmp_path: Path, text: str) -> None:
        (tmp_path / f"{STAR.name}.json").write_text(text)
        wall, measured = clock(0.4)
        [found] = validate([STAR], Store(tmp_path), 1, wall=wall, virtual=clock(0.3)[0])
        assert found.measured == (0.4,)
        assert len(measured) == 1

    def test_progress(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        moments = iter(range(0, 10**6, 900))
        monkeypatch.setattr(emulated.time, "monotonic", lambda: float(next(moments)))
        told: list[str] = []
        wall, virtual = clock(0.4)[0], clock(0.3)[0]
        validate([STAR, TREE], Store(tmp_path), 2, told=told.append, wall=wall, virtual=virtual)
        assert told == [
            "1 of 2: star-4-100-even-d-psgd: simulated 300.0 ms ± 0.0 %, measured 400.0 ms ± 0.0 %, "
            "error -25.0 %; left: about 0 h 30 min",
            "2 of 2: tree-bad-order-4-100-straggler-allreduce-sgd: simulated 300.0 ms ± 0.0 %, "
            "measured 400.0 ms ± 0.0 %, error -25.0 %",
        ]


class TestTable:
    def test_limits(self) -> None:
        assert within(Result(STAR, (0.323,), (0.3,)))
        assert not within(Result(STAR, (0.325,), (0.3,)))
        assert not within(Result(TREE, (0.3095,), (0.3,)))

    def test_rows(self) -> None:
        rows = table([Result(STAR, (0.309,), (0.3, 0.3)), Result(TREE, (0.312,), (0.3,))]).splitlines()[2:]
        assert rows == [
            "| star | 4 | 100 | none | d-psgd | 309.0 ms | 300.0 ms ± 0.0 % | +3.0 % | 8 % |",
            "| tree-bad-order | 4 | 100 | half speed | allreduce-sgd | 312.0 ms | 300.0 ms | "
            "**+4.0 %** | 3 % |",
        ]

    def test_by_algorithm(self) -> None:
        other = Case("d-psgd", "random", 4, 100, straggler=False)
        rows = by_algorithm([Result(STAR, (0.306,), (0.3,)), Result(other, (0.27,), (0.3,))]).splitlines()[2:]
        assert rows == ["| d-psgd | 2 | -4.0 % | 6.0 % | -10.0 % | 1 of 2 (8 %) |"]


class TestCommand:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--list", "--only", "^star-4-100-even-(d2|d-psgd)$"]) == 0
        assert capsys.readouterr().out == "star-4-100-even-d-psgd\nstar-4-100-even-d2\n"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--only", "("], "error: --only: '(' is no regular expression: missing ), unterminated"),
            (["--only", "moon"], "error: --only: no case is called like 'moon'; --list names all\n"),
            (["--runs", "0"], "error: --runs: must be at least 1, got 0\n"),
        ],
    )
    def test_bad_input(self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(message)

    def test_not_root(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert main(["--store", str(tmp_path)]) == 2
        assert "needs root" in capsys.readouterr().err

    @pytest.mark.usefixtures("_emulation")
    def test_a_case_for_real(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(emulated, "COUNTED", 1)
        monkeypatch.setattr(emulated, "PARAMETERS", 2**14)
        arguments = ["--only", "star-4-200-even-ad-psgd", "--runs", "1"]
        assert main([*arguments, "--store", str(tmp_path), "--remark", "A test."]) == 0
        output, progress = capsys.readouterr()
        assert output.splitlines()[-1].endswith(f"the table is in {tmp_path / 'table.md'}.")
        assert [line[:7] for line in progress.splitlines()] == ["1 of 1:"]
        written = (tmp_path / "table.md").read_text()
        assert "**A test.**" in written
        assert written.count("\n| star | 4 | 200 |") == 1
        measured = json.loads((tmp_path / "star-4-200-even-ad-psgd.json").read_text())["measured"]
        # Two of three gradients of 150 ms at least lie between a worker's begin and its end.
        assert measured[0] > 0.15 * 2 / 3


def test_the_spread_of_shares_is_found_again_in_a_simulation() -> None:
    assert share_spread(200, iterations=300, wall=simulate) == pytest.approx(SHARE_SPREAD, rel=0.15)


def test_the_page_says_when_was_measured_and_not_when_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for case, date in ((STAR, "2026-11-03"), (TREE, "2026-10-31")):
        store.save(case, {"scenario": case.measured, "measured": [0.4], "date": date})
    assert store.latest([STAR, TREE]) == "2026-11-03"
    assert "\n\nMeasured until 2026-11-03 on " in emulated.page(
        [Result(STAR, (0.4,), (0.4,))], 1, "2026-11-03"
    )
