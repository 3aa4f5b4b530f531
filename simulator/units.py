"""Quantities with units, as people write them: ``25 Gbps``, ``102 MB``, ``5 us``.

Inside Paceline every quantity is a float in SI units: seconds, bytes, bytes per second, FLOP per second.
Files carry units, and a bare number where a unit belongs is refused, because GB and GiB, bits and bytes
are the classic silent error of network simulators. Prefixes are decimal (k, M, G, T, P), with the binary
ones spelled out (Ki, Mi, Gi, Ti).
"""

from __future__ import annotations

import difflib
import math
import re
from decimal import Decimal

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_PREFIXES = {**_DECIMAL, **_BINARY}


def _scaled(symbols: dict[str, float]) -> dict[str, float]:
    return {
        prefix + symbol: scale * unit
        for symbol, unit in symbols.items()
        for prefix, scale in _PREFIXES.items()
    }


UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "B": _scaled({"B": 1.0, "b": 0.125}),
    "B/s": _scaled({"B/s": 1.0, "b/s": 0.125, "bps": 0.125, "bit/s": 0.125}),
    "FLOP/s": _scaled({"FLOP/s": 1.0, "FLOPS": 1.0}),
}
"""Dimension -> unit -> its size in SI units."""

_EXAMPLES = {"s": "5 us", "B": "102 MB", "B/s": "25 Gbps", "FLOP/s": "10 TFLOP/s"}
_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf)\s*(\S*)\s*")


def parse_quantity(text: object, dimension: str) -> float:
    """Return a quantity in SI units.

    Parameters
    ----------
    text
        A number and a unit, like ``"25 Gbps"``; zero and infinity need no unit.
    dimension
        A key of :data:`UNITS`.

    Raises
    ------
    ValueError
        No number, no unit, or a unit of another dimension; the message shows what would be right.
    """
    example = _EXAMPLES[dimension]
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"{text!r} is not a quantity; write it like '{example}'")
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"'{text}' is not a quantity; write it like '{example}'")
    number, unit = Decimal(match[1]), match[2]
    if not unit:
        if number == 0 or number.is_infinite():
            return float(number)
        raise ValueError(f"'{text}' has no unit; write it like '{example}'")
    scale = UNITS[dimension].get(unit)
    if scale is None:
        near = difflib.get_close_matches(unit, UNITS[dimension], n=1, cutoff=0.0)[0]
        raise ValueError(
            f"'{unit}' in '{text}' is not a unit of {_MEANING[dimension]}; the nearest is '{near}'"
        )
    # In decimal arithmetic "5 us" is the float nearest to 0.000005, which 5 * 1e-6 is not.
    return float(number * Decimal(repr(scale)))


_MEANING = {"s": "time", "B": "size", "B/s": "bandwidth", "FLOP/s": "speed of computation"}


def format_quantity(value: float, dimension: str, digits: int = 4) -> str:
    """Return a value in SI units as text with a readable decimal prefix, like ``'6.123 GB/s'``."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g} {dimension}"
    size = abs(float(f"{value:.{digits}g}"))  # as it will be read: 1 ms, not 1000 us
    if dimension == "s":
        for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
            if size >= scale:
                return f"{value / scale:.{digits}g} {unit}"
        return f"{value / 1e-9:.{digits}g} ns"
    for prefix in ("P", "T", "G", "M", "k"):
        if size >= _DECIMAL[prefix]:
            return f"{value / _DECIMAL[prefix]:.{digits}g} {prefix}{dimension}"
    return f"{value:.{digits}g} {dimension}"
