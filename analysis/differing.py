"""What two runs were given differently, so that nobody takes unlike runs for like ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from simulator.scenario import Scenario

LEFT_OUT = ("name", "compare", "target", "budget")
"""Keys that change nothing in an iteration: what a run is called, and how long it is."""

CHOOSING = ("name", "kind", "builder", "rule", "codec")
"""Keys by which a part is chosen. Parts of different names have nothing to compare key by key."""

MOST = 5
"""Differences that a sentence names at most."""


class Difference(NamedTuple):
    """A key that two scenarios have differently.

    Attributes
    ----------
    key
        As a dotted path.
    a, b
        What each has there; None where it has nothing.
    """

    key: str
    a: Any
    b: Any


def differing(a: Scenario, b: Scenario) -> tuple[Difference, ...]:
    """Return what two scenarios say differently: of algorithm, workload and cluster, then of all else."""
    first, second = a.resolved(), b.resolved()
    keys = dict.fromkeys(("algorithm", "workload", "cluster", *first, *second))
    return tuple(
        found for key in keys if key not in LEFT_OUT for found in _below(key, first.get(key), second.get(key))
    )


def sentence(differences: tuple[Difference, ...]) -> str:
    """Return the differences in a sentence; nothing where there is none."""
    if not differences:
        return ""
    named = [f"{entry.key}{_values(entry)}" for entry in differences[:MOST]]
    left = len(differences) - MOST
    if left > 0:
        named.append(f"{left} more key{'s' if left > 1 else ''}")
    listed = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    return f"A and B are runs of different scenarios, which differ in {listed}."


def _below(path: str, a: Any, b: Any) -> Iterator[Difference]:
    """Yield the differences at and below a key."""
    if a == b:
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for tag in CHOOSING:
            if tag in a and tag in b and a[tag] != b[tag]:
                yield Difference(path, a[tag], b[tag])
                return
        for key in dict.fromkeys((*a, *b)):
            yield from _below(f"{path}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _below(f"{path}.{index}", one, other)
    else:
        yield Difference(path, a, b)


def _values(entry: Difference) -> str:
    """Return both values where they are short enough to read."""
    if any(isinstance(value, (list, Mapping)) for value in (entry.a, entry.b)):
        return ""
    a, b = ("none" if value is None else str(value) for value in (entry.a, entry.b))
    return f" ({a}, {b})"
