"""Where the core's records lie: lists of objects under CPython, arrays under numba.

The compiled functions take one array of addresses and lengths instead of some twenty arrays, since unpacking
those costs more than most calls do. The addresses are made, kept and turned into arrays here and nowhere
else: :class:`CompiledStorage` owns the arrays, and refreshes the addresses whenever one of them is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np

from simulator.engine import kernel
from simulator.engine.kernel import records
from simulator.engine.machine_code import keep_on_disk

__all__ = ["CompiledStorage", "CoreName", "PlainStorage", "compiled_wanted"]

CoreName = Literal["auto", "plain", "compiled"]

COMPILED_FROM = 1000
"""With ``auto``, the number of links from which on the compiled core is taken.

Loading numba and the compiled functions from their cache takes a third of a second, in which the plain core
does some ten thousand flows.
"""

# Containers in the order of a table: name, record or number type, what its length follows.
_LAYOUT: tuple[tuple[str, Any, str], ...] = (
    ("state", records.STATE, "one"),
    ("links", records.LINK, "links"),
    ("flows", records.FLOW, "flows"),
    ("hops", records.HOP, "hops"),
    ("legs", records.LEG, "legs"),
    ("agenda", np.dtype("i4"), "flows"),
    ("queue", records.LEVEL, "both"),
    ("dirty", np.dtype("i4"), "links"),
    ("touched", np.dtype("i4"), "links"),
    ("free", np.dtype("i4"), "flows"),
    ("saturated", np.dtype("i4"), "links"),
    ("fixed", np.dtype("i4"), "flows"),
    ("marked", np.dtype("i4"), "links"),
    ("done", np.dtype("i8"), "ends"),
    ("log", records.LOG, "log"),
    ("patterns", records.PATTERN, "patterns"),
    ("phases", records.PHASE, "phases"),
    ("transfers", records.TRANSFER, "transfers"),
    ("heads", np.dtype("i4"), "heads"),
    ("collectives", records.COLLECTIVE, "collectives"),
    ("parts", records.PART, "parts"),
    ("messages", records.MESSAGE, "messages"),
)
_FIRST_FLOWS = 16

# Compiled functions that are called without the look at their arguments' types: integers and floats.
_DIRECT = {"start": "ifiiffff", "advance": "iff"}


def compiled_wanted(name: CoreName, links: int) -> bool:
    """Return whether a core with so many links is to be compiled.

    The environment variable ``PACELINE_CORE`` replaces ``auto``.

    Raises
    ------
    ValueError
        The setting or the environment variable is not a core; or numba is asked for and not installed.
    """
    where, wanted = "the core", str(name)
    if wanted == "auto" and os.environ.get("PACELINE_CORE"):
        where, wanted = "PACELINE_CORE", os.environ["PACELINE_CORE"]
    if wanted not in ("auto", "plain", "compiled"):
        raise ValueError(f"{where} is 'auto', 'plain' or 'compiled', not {wanted!r}")
    if wanted == "plain" or (wanted == "auto" and links < COMPILED_FROM):
        return False
    if importlib.util.find_spec("numba") is None:
        if wanted == "compiled":
            raise ValueError("the compiled core needs numba: pip install numba")
        return False
    return True


class _Record:
    """A record as an object: fields that start at zero."""

    __slots__: tuple[str, ...] = ()

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def __repr__(self) -> str:
        return repr({name: getattr(self, name) for name in self.__slots__})


def _record_class(name: str, fields: np.dtype[Any]) -> type[_Record]:
    return type(name, (_Record,), {"__slots__": fields.names})


_RECORDS = {
    name: _record_class(name, kind) for name, kind, _ in _LAYOUT if kind.names and name not in ("queue",)
}


class PlainStorage:
    """Containers as lists, for the functions as they are.

    Attributes
    ----------
    functions : module
        The functions that run on `table`.
    table : object
        What they take as their first argument.
    """

    functions: Any = kernel

    def __init__(self) -> None:
        self.lengths = dict.fromkeys([follows for _, _, follows in _LAYOUT if follows != "both"], 0)
        self.containers: dict[str, Any] = {name: [] for name, _, _ in _LAYOUT}
        self.table: Any = tuple(self.containers.values())
        self._extend("one", 1)
        self.state.free_flow = self.state.free_hop = -1

    def __repr__(self) -> str:
        return repr(self.containers)

    # Records that can be read and written by attribute, outside the compiled functions.

    @property
    def state(self) -> Any:
        """The one record about the core as a whole."""
        return self.containers["state"][0]

    @property
    def live(self) -> int:
        """The state's number of flows of finite size, which the run loop asks for."""
        live: int = self.containers["state"][0].live
        return live

    def records(self, name: str) -> Any:
        """Return a container of records."""
        return self.containers[name]

    def finished(self, count: int) -> list[int]:
        """Return the first numbers of `done`."""
        return list(self.containers["done"][:count])

    # Growth.

    def _extend(self, group: str, count: int) -> None:
        self.lengths[group] += count
        for name, _, follows in _LAYOUT:
            if follows == group and name not in ("agenda", "queue"):
                container = self.containers[name]
                record = _RECORDS.get(name)
                container.extend([record() for _ in range(count)] if record else [0] * count)

    def extend(self, name: str, count: int) -> int:
        """Lengthen a container that nothing else follows; return its old length."""
        begin = self.lengths[name]
        self._extend(name, count)
        return begin

    def add_link(self) -> Any:
        """Add a link and return its record."""
        self._extend("links", 1)
        self.reserve_log()
        link = self.records("links")[self.state.links]
        link.head = link.tail = -1
        self.state.links += 1
        return link

    def add_legs(self, legs: list[tuple[int, float]]) -> int:
        """Add the legs of a path and return the place of the first."""
        first = self.lengths["legs"]
        self._extend("legs", len(legs))
        for place, (link, use) in enumerate(legs, first):
            self.functions.set_leg(self.table, place, link, use)
        return first

    def reserve(self, flows: int, hops: int) -> None:
        """Make slots for so many more flows, and for so many hops."""
        old = self.lengths["flows"], self.lengths["hops"]
        self._extend("flows", flows)
        self._extend("ends", flows)
        self._extend("hops", hops)
        new = self.lengths["flows"], self.lengths["hops"]
        self.functions.make_free(self.table, old[0], new[0], old[1], new[1])

    def reserve_log(self) -> None:
        """Make the log long enough for all links at one instant."""
        state = self.state
        if state.watching and state.log_size < (records.LOG_ROOM + 1) * self.lengths["links"] + 64:
            self._extend("log", 2 * (records.LOG_ROOM + 1) * self.lengths["links"] + 128)
            state.log_size = self.lengths["log"]


class CompiledStorage(PlainStorage):
    """Containers as arrays of records, for the compiled functions; takes over from a plain one.

    Only links may be there already.
    """

    def __init__(self, plain: PlainStorage) -> None:
        self.functions = _compiled_functions()
        self._room = dict.fromkeys(plain.lengths, 0)
        self._views: dict[str, Any] = {}
        self._addresses = np.zeros(2 * len(_LAYOUT), np.int64)
        self.table = self._addresses.ctypes.data
        self.lengths = dict.fromkeys(plain.lengths, 0)
        self.containers = {name: np.zeros(0, kind) for name, kind, _ in _LAYOUT}
        for group, length in plain.lengths.items():
            self._extend(group, length)
        self._live = self.containers["state"]["live"][:1]
        for name in ("state", "links"):
            for place, record in enumerate(plain.containers[name]):
                self.containers[name][place] = tuple(getattr(record, field) for field in record.__slots__)

    @property
    def state(self) -> Any:
        """The one record about the core as a whole."""
        return self._views["state"][0]

    @property
    def live(self) -> int:
        """The state's number of flows of finite size, which the run loop asks for."""
        live: int = self._live.item()
        return live

    def records(self, name: str) -> Any:
        """Return a container of records."""
        return self._views[name]

    def finished(self, count: int) -> list[int]:
        """Return the first numbers of `done`."""
        finished: list[int] = self.containers["done"][:count].tolist()
        return finished

    def _extend(self, group: str, count: int) -> None:
        self.lengths[group] += count
        if self.lengths[group] <= self._room[group]:
            return
        self._room[group] = max(self.lengths[group], 2 * self._room[group])
        room = {**self._room, "both": self._room["links"] + self._room["flows"]}
        for place, (name, kind, follows) in enumerate(_LAYOUT):
            old = self.containers[name]
            if room[follows] > len(old) - 1:
                # One more than needed: the queues keep their length at 0.
                new = _aligned_zeros(room[follows] + 1, np.dtype(kind))
                new[: len(old)] = old
                self.containers[name] = new
                if kind.names:
                    self._views[name] = new.view(np.recarray)
                self._addresses[2 * place] = new.ctypes.data
                self._addresses[2 * place + 1] = len(new)


def _aligned_zeros(count: int, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return zeros that begin at a cache line."""
    size = count * kind.itemsize
    memory = np.zeros(size + 64, np.uint8)
    skip = -memory.ctypes.data % 64
    return memory[skip : skip + size].view(kind)


@functools.cache
def _compiled_functions() -> SimpleNamespace:
    """Load the source of the core once more, with every function compiled when it is first called.

    Compiled code is kept on disk. For changes numba looks only at the file of a function, and not at those
    that it calls, so all of it is forgotten when any module has changed.
    """
    _forget_other_versions()
    copies = {module.__name__: _copied(module, "compiled") for module in kernel.MODULES}
    compiled: dict[tuple[str, str], Any] = {
        (origin, name): _compiled(function)
        for origin, copy in copies.items()
        for name, function in vars(copy).items()
        if isinstance(function, FunctionType) and function.__module__ == copy.__name__
    }
    for name in vars(kernel.queues):
        in_arrays = compiled.get((kernel.array_queues.__name__, f"array_{name}"))
        if in_arrays is not None:
            compiled[kernel.queues.__name__, name] = in_arrays
    compiled[records.__name__, "views"] = _compiled_views()
    for origin, copy in copies.items():
        for name, value in list(vars(copy).items()):
            if isinstance(value, FunctionType):
                # What a copy has imported is still the plain function.
                where = origin if value.__module__ == copy.__name__ else value.__module__
                setattr(copy, name, compiled.get((where, name), value))
    functions = {name: compiled[origin, name] for origin, name in compiled if hasattr(kernel, name)}
    for name, signature in _DIRECT.items():
        functions[name] = _directly(functions[name], signature)
    return SimpleNamespace(**functions)


def _compiled(function: FunctionType) -> Any:
    """Return a function compiled when it is first called, or loaded where its code is on disk."""
    import numba

    compiled = numba.njit(function)
    keep_on_disk(compiled)
    return compiled


def _forget_other_versions() -> None:
    """Delete the compiled code on disk if it is of another version of the source."""
    files = [*(Path(str(module.__file__)) for module in kernel.MODULES), Path(__file__)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    folder = files[0].parent / "__pycache__"
    mark = folder / "compiled-from.txt"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        if not mark.exists() or mark.read_text(encoding="ascii") != digest:
            for kept in folder.glob("*.nb?"):
                kept.unlink(missing_ok=True)
            mark.write_text(digest, encoding="ascii")


def _copied(module: ModuleType, mark: str) -> ModuleType:
    """Execute a module once more, under another name."""
    name = f"{module.__name__}_{mark}"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy
    spec.loader.exec_module(copy)
    return copy


def _directly(function: Any, signature: str) -> Any:
    """Compile a function for arguments of these types, and return what a call leads to in the end.

    It saves the look at the arguments' types, a third of what a call costs. It takes a float for an integer
    without a word, hence only the functions that every flow needs are called so.
    """
    from numba import types

    kinds = {"i": types.int64, "f": types.float64}
    function.compile(tuple(kinds[letter] for letter in signature))
    return function.get_overload(tuple(kinds[letter] for letter in signature))


def _compiled_views() -> Any:
    """Return the compiled function that makes arrays of the addresses in a table."""
    from numba import carray, njit, types  # type: ignore[attr-defined]  # numba does not say what it exports
    from numba.extending import intrinsic

    @intrinsic
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.voidptr(address), generate

    # One array for each container, written out since a compiled function takes no list of different types.
    arrays = ", ".join(
        f"carray(pointer(table[{2 * place}]), table[{2 * place + 1}], kinds_{place})"
        for place in range(len(_LAYOUT))
    )
    names: dict[str, Any] = {f"kinds_{place}": kind for place, (_, kind, _) in enumerate(_LAYOUT)}
    names |= {"carray": carray, "pointer": pointer, "integer": np.int64}
    addresses = f"carray(pointer(address), {2 * len(_LAYOUT)}, integer)"
    exec(f"def views(address):\n    table = {addresses}\n    return ({arrays})", names)
    return njit(names["views"])
