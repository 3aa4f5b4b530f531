"""The recursions are a second implementation only as long as they share nothing with the first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

MODULES = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))
HERE = "tests.algorithms.recursions"
ALLOWED = {HERE, "__future__", "collections", "dataclasses", "itertools", "math", "numpy", "scipy", "typing"}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            names.add(HERE if module.startswith(HERE) else module.split(".")[0])
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_recursion_imports_numpy_alone(module: Path) -> None:
    assert imported(ast.parse(module.read_text(encoding="utf-8"))) <= ALLOWED
