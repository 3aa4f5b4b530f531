"""Mutants of an algorithm: could its test fail?

A mutant is a module of `algorithms` with one operator or one number changed:

    a + b <-> a - b       a * b <-> a / b       a // b -> a * b      a % b -> a * b      a ** b -> a * b
    -a -> a               a number c other than 0 -> -c              0 -> 1

also in augmented assignments. With `decisions` a trial has these as well, for algorithms whose lines hold few
operators or none: a comparison turned into its opposite, and a mean made a sum or a sum a mean where an
all-reduce is called. Left as they are: declarations in class bodies (the parameters and their bounds), the
argument `nbytes` (what a computation costs, not what it does), and the method `traffic` (what a list says of
the algorithm).

How to use it: in a test file of your own, list for every module what must hold of it,

    TRIALS = [Trial("algorithms.local.local_sgd", check_local_sgd, equivalent={KEY: REASON}), ...]

    @pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
    def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
        trial.kill(mutant)

    @pytest.mark.parametrize("trial", TRIALS, ids=str)
    def test_the_check_of_mutants_holds_for_the_algorithm_itself(trial: Trial) -> None:
        trial.hold()

`check` takes nothing and raises (an assertion, or anything else) where the algorithm does not do what it
must: the agreement with the recursion, and whatever else is cheap (bytes, refusals, observations). It must
look the algorithm up when it is called, by its name: a scenario with `{"name": "local-sgd"}`, or
`algorithm("local-sgd")`, or an import inside the function. What was imported before is the original. Modules
of the families that import the mutant (`rounds`, `shards`, …) are imported anew and see it. The codecs are no
family: their functions are changed where they are, so that a check may import them as it likes.

`equivalent` lists the mutants that change nothing that could be seen, by their key, each with the reason;
a key that no mutant has fails the tests. `python -m tests.algorithms.mutation algorithms.local.local_sgd`
prints the keys of a module's mutants. By default `cases` gives two mutants of every trial; with
PACELINE_MUTANTS=all in the environment it gives all (`make mutants`).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import importlib.util
import os
import signal
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}
OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COSTS = frozenset({"nbytes"})
"""Keyword arguments that say what a computation costs."""
SAYINGS = frozenset({"traffic"})
"""Methods that say something of an algorithm and take no part in its run."""
PATIENCE = 20
"""Seconds of a check after which a mutant counts as one that does not end."""


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    Attributes
    ----------
    module
        Dotted name.
    key
        ``function: before -> after``, with ``#2`` and so on behind it where the same change is made at
        several places of a function. It does not change when lines move.
    line
        Where it is.
    tree
        The changed module.
    """

    module: str
    key: str
    line: int
    tree: ast.Module = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]}:{self.line} {self.key}"


def source_of(module: str) -> tuple[str, str]:
    """Return the file of a module and its text."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin, Path(spec.origin).read_text(encoding="utf-8")


def mutants(module: str, decisions: bool = False) -> tuple[Mutant, ...]:
    """Return all mutants of a module, in the order of its text; also of decisions, if they are wanted."""
    original = ast.parse(source_of(module)[1])
    found: list[Mutant] = []
    counts: Counter[str] = Counter()
    for number, (function, _, _) in enumerate(_places(original, decisions)):
        tree = copy.deepcopy(original)
        _, node, shown = _places(tree, decisions)[number]
        before = ast.unparse(shown)
        _change(node)
        key = f"{function}: {before} -> {ast.unparse(shown)}"
        counts[key] += 1
        if counts[key] > 1:
            key += f" #{counts[key]}"
        found.append(Mutant(module, key, node.lineno, ast.fix_missing_locations(tree)))
    return tuple(found)


Place = tuple[str, Any, ast.AST]
"""The function, the node to change, and the expression that shows the change."""


def _places(tree: ast.Module, decisions: bool) -> list[Place]:
    places: list[Place] = []
    _search(tree, "", tree, places, decisions)
    return places


def _search(node: ast.AST, function: str, parent: ast.AST, places: list[Place], decisions: bool) -> None:
    """Note the places at and below a node."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        function = f"{function}.{node.name}".strip(".")
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        places.append((function, node, node))
    elif _is_negation(node) or (_is_number(node) and not _is_signed(node, parent)):
        places.append((function, node, parent))
    elif decisions and _is_decision(node):
        places.append((function, node, node))
    for child in ast.iter_child_nodes(node):
        if not _is_left_alone(child, node):
            _search(child, function, node, places, decisions)


def _is_negation(node: ast.AST) -> bool:
    """Whether a node is a minus before an expression."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def _is_number(node: ast.AST) -> bool:
    """Whether a node is a number as written, True and False apart."""
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_signed(node: ast.AST, parent: ast.AST) -> bool:
    """Whether a sign stands before a number, so that changing that sign is the same mutant."""
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add | ast.Sub):
        return node is parent.right
    if isinstance(parent, ast.AugAssign):
        return isinstance(parent.op, ast.Add | ast.Sub)
    return _is_negation(parent)


def _is_decision(node: ast.AST) -> bool:
    """Whether a node is a single comparison, or the call of an all-reduce."""
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in OPPOSITES
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and called.attr == "all_reduce"


def _is_left_alone(child: ast.AST, parent: ast.AST) -> bool:
    """Whether a node is a declaration, a type, or a cost."""
    if isinstance(parent, ast.ClassDef):
        does = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        return not does or child.name in SAYINGS
    if isinstance(parent, ast.AnnAssign) and child is parent.annotation:
        return True
    return isinstance(child, ast.keyword) and child.arg in COSTS


def _change(node: Any) -> None:
    """Make the one change at a node, in place."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Compare):
        node.ops = [OPPOSITES[type(node.ops[0])]()]
    elif isinstance(node, ast.Call):
        node.args = [node.args[0], ast.Constant("mean" if len(node.args) > 1 else "sum")]
    else:
        node.value = -node.value if node.value else 1


@contextlib.contextmanager
def applied(mutant: Mutant | None) -> Iterator[None]:
    """Let every import of the families' modules find the mutant and what is built on it.

    ``None`` imports the families anew as they are. A module that is in no family stays the one it is, and its
    functions do what the mutant's do.
    """
    if mutant is not None and not _of_a_family(mutant.module):
        with _swapped(mutant):
            yield
        return
    before = {name: module for name, module in sys.modules.items() if _of_a_family(name)}
    for name in before:
        del sys.modules[name]
    try:
        if mutant is not None:
            _install(mutant)
        yield
    finally:
        for name in [name for name in sys.modules if _of_a_family(name)]:
            del sys.modules[name]
        for name, module in before.items():
            sys.modules[name] = module
            parent, _, last = name.rpartition(".")
            setattr(sys.modules[parent], last, module)


def _of_a_family(name: str) -> bool:
    """Whether a module is in a family of algorithms: a sub-package of `algorithms` other than the codecs.

    Codecs are built on no algorithm, and others know them by their classes, which must stay the same.
    """
    return name.startswith("algorithms.") and name.count(".") >= 2 and name.split(".")[1] != "codecs"


def _install(mutant: Mutant) -> None:
    """Run a mutant's module under the original's name."""
    parent, _, last = mutant.module.rpartition(".")
    package = importlib.import_module(parent)
    module = _outlined(mutant)
    sys.modules[mutant.module] = module
    setattr(package, last, module)
    _execute(mutant, module)


def _execute(mutant: Mutant, module: types.ModuleType) -> None:
    exec(compile(mutant.tree, str(module.__file__), "exec"), module.__dict__)


def _outlined(mutant: Mutant) -> types.ModuleType:
    """Return an empty module with the original's name and file."""
    module = types.ModuleType(mutant.module)
    module.__file__ = source_of(mutant.module)[0]
    module.__package__ = mutant.module.rpartition(".")[0]
    return module


@contextlib.contextmanager
def _swapped(mutant: Mutant) -> Iterator[None]:
    """Let a module's functions and constants be a mutant's, for all who have imported them."""
    original = importlib.import_module(mutant.module)
    changed = _outlined(mutant)
    _execute(mutant, changed)
    constants = {
        name: value
        for name, value in vars(original).items()
        if type(value) in (int, float) and vars(changed)[name] != value
    }
    functions = _functions(original)
    before = {name: _behaviour(function) for name, function in functions.items()}
    try:
        for name, function in _functions(changed).items():
            _behave(functions[name], *_behaviour(function))
        for name in constants:
            setattr(original, name, vars(changed)[name])
        yield
    finally:
        for name, function in functions.items():
            _behave(function, *before[name])
        for name, value in constants.items():
            setattr(original, name, value)


def _behaviour(function: types.FunctionType) -> tuple[Any, Any, Any]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _behave(function: types.FunctionType, code: Any, defaults: Any, named: Any) -> None:
    function.__code__, function.__defaults__, function.__kwdefaults__ = code, defaults, named


def _functions(module: types.ModuleType) -> dict[str, types.FunctionType]:
    """Return the functions and methods that a module's text defines, by qualified name."""
    owners = [value for value in vars(module).values() if isinstance(value, type)]
    members = [value for owner in (module, *owners) for value in vars(owner).values()]
    found = [value.fget if isinstance(value, property) else value for value in members]
    return {
        value.__qualname__: value
        for value in found
        if isinstance(value, types.FunctionType) and value.__code__.co_filename == module.__file__
    }


class Endless(Exception):
    """A check took too long."""


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise in the main thread after a time."""

    def stop(*_: object) -> None:
        raise Endless

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@dataclass(frozen=True)
class Trial:
    """A module and what must hold of it.

    Attributes
    ----------
    module
        Dotted name.
    check
        Raises where the module does not do what it must.
    equivalent
        Mutants, by key, that change nothing that could be seen, with the reason.
    decisions
        Whether comparisons and reductions are changed too.
    """

    module: str
    check: Callable[[], object] = field(compare=False)
    equivalent: Mapping[str, str] = field(default_factory=dict, compare=False)
    decisions: bool = False

    def __str__(self) -> str:
        return self.module.partition(".")[2]

    def hold(self) -> None:
        """Assert that the original passes the check, and that the mutants called equivalent exist."""
        assert set(self.equivalent) <= {mutant.key for mutant in mutants(self.module, self.decisions)}
        with applied(None):
            self.check()

    def mutants(self) -> tuple[Mutant, ...]:
        """Return the mutants that the check must catch."""
        found = mutants(self.module, self.decisions)
        return tuple(mutant for mutant in found if mutant.key not in self.equivalent)

    def catches(self, mutant: Mutant) -> bool:
        """Whether the check fails for a mutant."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coroutines that were never awaited, and the like
            try:
                with _limited(PATIENCE), applied(mutant):
                    self.check()
            except (Exception, pytest.fail.Exception):
                return True
            return False

    def kill(self, mutant: Mutant) -> None:
        """Assert that the check fails for a mutant."""
        assert self.catches(mutant), f"nobody notices {mutant}"


def cases(trials: Sequence[Trial], of_each: int = 2) -> list[Any]:
    """Return pytest parameters (trial, mutant): some of every trial, or all where the environment says so."""
    parameters = []
    for trial in trials:
        found = trial.mutants()
        if os.environ.get("PACELINE_MUTANTS") != "all":
            found = found[:: max(1, -(-len(found) // of_each))]
        parameters += [pytest.param(trial, mutant, id=str(mutant)) for mutant in found]
    return parameters


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for mutant in mutants(name, decisions=True):
            print(f"{mutant.line:5} {mutant.key}")
