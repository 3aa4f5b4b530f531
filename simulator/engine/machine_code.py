"""Compiled functions on disk, loaded without numba's compiler.

Before numba loads a function that it has kept on disk, it gets ready to compile: it imports some 200 modules,
SciPy's among them, and compiles its own run-time library, which takes 45 MB and half a second. Code that is
there needs none of that, as long as all that it calls has an address. That is looked up first; where
something has none, or numba is not as expected here, numba loads the function in its own way.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["keep_on_disk"]

_ELF = b"\x7fELF\x02\x01"
"""How an ELF file of 64 bits, little-endian, begins."""

# An entry of the table of symbols in an ELF file; those of no section are defined elsewhere.
_SYMBOL = np.dtype(
    [("name", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2"), ("value", "u8"), ("size", "u8")]
)


def keep_on_disk(function: Any) -> None:
    """Let numba keep the code of a function on disk, as ``cache=True`` does, and load it from there."""
    function.enable_caching()
    with contextlib.suppress(ImportError, AttributeError):
        function._cache = _cache_of(function.py_func)


def _cache_of(function: Any) -> Any:
    from numba.core.caching import CompileResultCacheImpl, FunctionCache

    class Code(CompileResultCacheImpl):
        def rebuild(self, context: Any, kept: Any) -> Any:
            if not _is_linkable(kept):
                context.refresh()
            return super().rebuild(context, kept)  # type: ignore[no-untyped-call]  # numba says no types

    class Cache(FunctionCache):
        _impl_class = Code

        def load_overload(self, signature: Any, context: Any) -> Any:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(signature, context)  # type: ignore[no-untyped-call]  # numba says no types

    return Cache(function)  # type: ignore[no-untyped-call]  # numba says no types


def _is_linkable(kept: Any) -> bool:
    """Return whether all that a compiled function calls has an address."""
    try:
        llvm = import_module("llvmlite.binding")
        _name_the_run_time_library()
        _, _, (code, _) = kept[0]
        if not code.startswith(_ELF):
            return False  # another system; LLVM would crash on what is no object file at all
        parts = {part.name(): part.data() for part in llvm.ObjectFileRef.from_data(code).sections()}
        symbols, names = np.frombuffer(parts[b".symtab"], _SYMBOL), parts[b".strtab"]
        elsewhere = symbols["name"][symbols["section"] == 0].tolist()
        called = [names[start : names.index(b"\0", start)].decode() for start in elsewhere if start]
    except (ImportError, AttributeError, LookupError, TypeError, ValueError):
        return False  # another version of numba
    return all(llvm.address_of_symbol(name) for name in called)


def _name_the_run_time_library() -> None:
    """Tell LLVM the addresses of the C part of numba's run-time library, as numba does before it compiles."""
    llvm = import_module("llvmlite.binding")
    for name, address in import_module("numba.core.runtime._nrt_python").c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)
