"""A calibrated network: who measures, what is described, and what is simulated on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.validate import calibrated_network, emulated
from analysis.validate.calibrated_network import SETTINGS, described, main, on, stars
from analysis.validate.emulated import Case, Store, steady
from simulator.engine.simulate import simulate
from simulator.run import Met, Run
from simulator.scenario import Scenario

CASE = Case("d-psgd", "star", 4, 100, straggler=True)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the virtual clock measure; return the names of the measurements."""
    made = []

    def emulate(scenario: Scenario, progress: None, patience: float, met: Met) -> Run:
        made.append(type(scenario.algorithm).__name__)
        met([("one machine", "processor")] * scenario.workers, "gloo")
        return simulate(scenario.vary({"cluster.transport": "gloo"}))

    monkeypatch.setattr(calibrated_network, "emulate", emulate)
    monkeypatch.setattr(calibrated_network, "SETTINGS", replace(SETTINGS, repeats=1))
    return made


def test_stars() -> None:
    found = stars(8, 200)
    assert len({case.name for case in found}) == 16
    assert {(case.topology, case.workers, case.rate) for case in found} == {("star", 8, 200)}


def test_what_is_described_predicts_what_the_network_does(measured: list[str]) -> None:
    cluster = described(CASE)
    assert set(measured) >= {"PingPong", "Concurrent", "Exchanges", "Collectives"}
    assert cluster["topology"] != CASE.scenario().resolved()["cluster"]["topology"]
    for case in stars(4, 100):
        truth = case.scenario().vary({"cluster.transport": "gloo"})
        predicted = on(cluster, truth)
        assert predicted.stragglers == truth.stragglers
        assert predicted.cluster.devices == truth.cluster.devices
        exact, found = (steady(simulate(scenario), case.warm_up) for scenario in (truth, predicted))
        assert found == pytest.approx(exact, rel=0.01)


def test_the_seed_of_the_machines_stays() -> None:
    cluster = {"topology": {"builder": "switch", "gpus": 4}}
    assert on(cluster, CASE.scenario().vary({"cluster.seed": 3})).cluster_seed == 3


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated_network, "check_rights", lambda: None)
    monkeypatch.setattr(emulated, "SIMULATIONS", 1)
    network = {"topology": CASE.scenario().resolved()["cluster"]["topology"], "transport": "gloo"}
    monkeypatch.setattr(calibrated_network, "described", lambda case: network)
    store = Store(tmp_path)
    for case in stars(4, 100):
        seconds = steady(simulate(case.scenario().vary({"cluster.transport": "gloo"})), case.warm_up)
        off = 0.9 if case.algorithm == "d-psgd" else 1.0
        kept: dict[str, Any] = {"scenario": case.measured, "measured": [off * seconds], "date": "2026-11-21"}
        store.save(case, kept)
    assert main(["--store", str(tmp_path), "--runs", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("| star | 4 | 100 |") == 16
    assert said.endswith("\n14 of 16 cases are within their limits.\n")


def test_the_command_needs_rights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main([]) == 2
    assert "an emulated network needs root" in capsys.readouterr().err
