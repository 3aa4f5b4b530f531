"""Which core is taken, and what that costs those who do not need it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from simulator.engine import storage
from simulator.engine.clock import Clock
from simulator.engine.fairshare import Core
from simulator.engine.machine_code import _is_linkable
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
    assert str(error.value) == "the compiled core needs numba: pip install numba"


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


COLLECTIVE = """
import sys
from simulator.engine.clock import Clock
from simulator.engine.fairshare import Step

clock = Clock(core="compiled")
link = clock.core.add_link(1.0)
pattern = clock.core.add_pattern(2, [(2, [Step(0, 1, 0.5, (link,), 0.0)])])
number = clock.collective(pattern, 6.0, lambda rank: None)
clock.enter(number, 0)
clock.enter(number, 1)
clock.run()
assert clock.now == 6.0
print("numba.typed.typeddict" in sys.modules)
"""


def run_program(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def test_compiled_code_on_disk_is_loaded_without_the_compiler() -> None:
    pytest.importorskip("numba")
    run_program(COLLECTIVE)  # fills the cache
    assert run_program(COLLECTIVE) == "False\n"


def test_where_code_cannot_be_linked_numba_loads_it_in_its_own_way() -> None:
    pytest.importorskip("numba")
    run_program(COLLECTIVE)
    broken = "from simulator.engine import machine_code; machine_code._is_linkable = lambda kept: False\n"
    assert run_program(broken + COLLECTIVE) == "True\n"


def test_code_of_an_unknown_kind_is_not_linkable() -> None:
    pytest.importorskip("numba")
    for kept in ((), (("name", "bitcode", b"code"),), (("name", "object", (b"no object file", b"")),)):
        assert not _is_linkable(kept)


def test_code_that_calls_what_has_no_address_is_not_linkable() -> None:
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    for called, linkable in (("PyErr_Clear", True), ("NRT_Free", True), ("called_from_nowhere", False)):
        source = f"declare void @{called}() define void @caller() {{ call void @{called}() ret void }}"
        code = machine.emit_object(llvm.parse_assembly(source))
        assert _is_linkable((("name", "object", (code, b"")),)) is linkable


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
