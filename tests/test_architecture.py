"""The shape of the project: who may import whom, what an import costs, and that names are documented."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("topologies", "traces", "algorithms", "simulator", "analysis")
MAY_IMPORT: dict[str, set[str]] = {
    "topologies": set(),
    "traces": set(),
    "algorithms": set(),
    "simulator": {"topologies", "traces", "algorithms"},
    "analysis": {"topologies", "traces", "algorithms", "simulator"},
}


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (module name, file) of everything that the wheel ships."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.parent.name == "examples":
                continue  # a script for users to copy, which imports what they import
            parts = file.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def imported(file: Path, *, at_run_time_only: bool = False) -> set[str]:
    """Return the modules of ours that a file imports, by absolute name."""
    found = set()
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    hidden: set[ast.AST] = set()
    if at_run_time_only:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                hidden.update(inner for statement in node.body for inner in ast.walk(statement))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                hidden.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in nodes:
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the arrows"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.partition(".")[0] in (*PACKAGES, "paceline", "tests")}


def test_no_import_runs_up() -> None:
    for module, file in sources():
        package = module.partition(".")[0]
        for name in imported(file):
            target = name.partition(".")[0]
            assert target == package or target in MAY_IMPORT[package], f"{module} imports {name}"


def test_the_two_clocks_never_import_each_other() -> None:
    for module, file in sources():
        for one, other in (("engine", "execution"), ("execution", "engine")):
            if module.startswith(f"simulator.{one}"):
                assert not [name for name in imported(file) if name.startswith(f"simulator.{other}")], module


def test_what_the_clocks_share_knows_neither_of_them() -> None:
    for module, file in sources():
        if module.startswith("simulator.") and module.split(".")[1] not in ("engine", "execution"):
            clocks = [n for n in imported(file) if n.startswith(("simulator.engine", "simulator.execution"))]
            assert not clocks, f"{module} imports {clocks}"


def test_no_import_goes_in_a_circle() -> None:
    modules = dict(sources())
    arrows = {}
    for module, file in modules.items():
        targets = imported(file, at_run_time_only=True) & modules.keys()
        # A package that gathers names from its modules is no circle for a module that imports its sibling.
        arrows[module] = {name for name in targets if not module.startswith(f"{name}.")} - {module}
    graphlib.TopologicalSorter(arrows).prepare()


@pytest.mark.parametrize("package", ["algorithms", "topologies"])
def test_importing_is_cheap(package: str) -> None:
    """Measured in processor time, which other work on the machine does not change much."""
    code = (
        f"import time; begin = time.process_time(); import {package}; import sys;"
        "print(time.process_time() - begin);"
        "print(*[m for m in ('torch', 'plotly', 'numba', 'pandas', 'simpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, _, heavy = result.stdout.partition("\n")
    assert heavy.strip() == ""
    assert float(seconds) < 0.5


def test_listing_algorithms_imports_none_of_them() -> None:
    code = (
        "import sys; from algorithms import ALGORITHMS; print(*ALGORITHMS);"
        "print(*[m for m in sys.modules if m in {e.module for e in ALGORITHMS.values()}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    names, _, loaded = result.stdout.partition("\n")
    assert {"allreduce-sgd", "local-sgd", "cocod-sgd", "d-psgd"} <= set(names.split())
    assert loaded.strip() == ""


def public_objects() -> Iterator[tuple[str, object]]:
    """Yield every public function and class, and every public method, that our modules define."""
    for package in PACKAGES:
        for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if info.name.rpartition(".")[2].startswith("_"):
                continue
            module = importlib.import_module(info.name)
            yield info.name, module
            for name, thing in vars(module).items():
                if name.startswith("_") or getattr(thing, "__module__", None) != info.name:
                    continue
                if inspect.isclass(thing) or inspect.isfunction(thing):
                    yield f"{info.name}.{name}", thing
                if inspect.isclass(thing):
                    for key, member in vars(thing).items():
                        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                        inner = inner.fget if isinstance(inner, property) else inner
                        if not key.startswith("_") and inspect.isfunction(inner):
                            yield f"{info.name}.{name}.{key}", inner


def test_every_public_name_has_a_docstring() -> None:
    bare = [name for name, thing in public_objects() if not (getattr(thing, "__doc__", None) or "").strip()]
    assert bare == []


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_every_folder_says_what_lives_in_it(package: str) -> None:
    assert (ROOT / package / "README.md").read_text(encoding="utf-8").startswith("# ")


def test_only_the_six_folders_are_visible_in_the_root() -> None:
    result = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode:
        pytest.skip("not a git checkout")
    folders = {name.partition("/")[0] for name in result.stdout.splitlines() if "/" in name}
    visible = {name for name in folders if not name.startswith(".")}
    assert visible == {"simulator", "algorithms", "topologies", "traces", "tests", "analysis"}


def said(file: Path) -> Iterator[str]:
    """Yield the texts of a file that are no docstrings, with nothing where an f-string holds a value."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    silent = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def test_errors_name_the_nearest_right_word_in_one_wording() -> None:
    """``...; the nearest is 'x'``; only the parser of the command line has another, which `cli` rewrites."""
    told = [(name, text) for name, file in sources() for text in said(file)]
    other = re.compile(r"ou mean|perhaps|closest|nearest (?!is )")
    strange = [
        (name, text) for name, text in told if other.search(text) and not name.startswith("analysis.figures")
    ]
    assert [name for name, text in strange] == ["analysis.cli"]
    assert "Did you mean" in strange[0][1]
    hints = [text for _, text in told if "the nearest" in text]
    assert len(hints) > 20
    assert [text for text in hints if "the nearest is " not in text] == []
