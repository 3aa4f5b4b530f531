"""Which core is taken, and what that costs those who do not need it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from simulator.engine import storage
from simulator.engine.clock import Clock
from simulator.engine.fairshare import Core
from simulator.engine.storage import COMPILED_FROM, compiled_wanted


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PACELINE_CORE", raising=False)


def started(links: int, **options: Any) -> Core:
    core = Clock(**options).core
    for _ in range(links):
        core.add_link(1.0)
    core.start([0], 1.0)
    assert core.advance(2.0) == [0]
    return core


def test_auto_compiles_from_a_number_of_links_on() -> None:
    pytest.importorskip("numba")
    assert not started(COMPILED_FROM - 1).compiled
    assert started(COMPILED_FROM).compiled
    assert not started(COMPILED_FROM, core="plain").compiled
    assert started(1, core="compiled").compiled


def test_the_environment_decides_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setenv("PACELINE_CORE", "compiled")
    assert started(1).compiled
    assert not started(1, core="plain").compiled
    monkeypatch.setenv("PACELINE_CORE", "plain")
    assert not started(COMPILED_FROM).compiled
    assert started(1, core="compiled").compiled
    monkeypatch.setenv("PACELINE_CORE", "auto")
    assert not started(1).compiled


def test_without_numba_auto_is_plain_and_compiled_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    assert not compiled_wanted("auto", 10**6)
    with pytest.raises(ValueError) as error:
        Core(core="compiled")
    assert str(error.value) == "the compiled core needs numba: install paceline[fast]"


def test_an_unknown_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as error:
        Clock(core="fast")  # type: ignore[arg-type]
    assert str(error.value) == "the core is 'auto', 'plain' or 'compiled', not 'fast'"
    monkeypatch.setenv("PACELINE_CORE", "fast")
    with pytest.raises(ValueError) as error:
        Core()
    assert str(error.value) == "PACELINE_CORE is 'auto', 'plain' or 'compiled', not 'fast'"


def test_numba_is_imported_only_for_a_compiled_core() -> None:
    program = (
        "import sys; from simulator.engine.clock import Clock; clock = Clock(core='plain');"
        "clock.flow([clock.core.add_link(1.0)], 1.0, int); clock.run(); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_containers_grow_while_flows_run() -> None:
    """Slots, hops, links and the log, from a small start; nothing that runs is lost."""
    pytest.importorskip("numba")
    ends = []
    for name in ("plain", "compiled"):
        core = Core(core=name, monitor=True)  # type: ignore[arg-type]
        run = []
        for number in range(300):
            link = core.add_link(1.0 + number % 3)
            core.start([link] if number % 2 else [link, 0] if link else [0], 5.0)
            run.append((core.now, core.advance(core.now + 0.01)))
        while core.live:
            run.append((core.now, core.advance(1e9)))
        ends.append((run, [core.history(link) for link in range(300)]))
    assert ends[0] == ends[1]
    assert sorted(flow for _, flows in ends[0][0] for flow in flows) == list(range(300))
