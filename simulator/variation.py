"""Changing the data of a scenario by its keys: what :meth:`simulator.scenario.Scenario.vary` does.

Keys are written as in files, with hyphens; underscores mean the same. Mappings and lists are copied on the
way to what is changed, so that the original stays as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.parts import BadInput, Part, Section, nearest
from simulator.sections import ClusterSection, Sections, TopologyFile, TopologyGraph, WorkloadSection
from simulator.stragglers import Straggler


def home(key: str) -> tuple[str, ...]:
    """Return where a key named in Python lives: at the top, or in ``cluster`` or ``workload``."""
    homes: dict[str, tuple[str, ...]] = {name: (name.replace("_", "-"),) for name in Sections.model_fields}
    for section, model in (("cluster", ClusterSection), ("workload", WorkloadSection)):
        for name in model.model_fields:
            homes.setdefault(name, (section, name.replace("_", "-")))
    if key not in homes:
        raise BadInput("", f"a scenario has no key '{key}'; the nearest is '{nearest(key, homes)}'")
    return homes[key]


def assign(data: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    """Set a nested key, copying the mappings on the way, so that the original stays as it was."""
    *parents, last = path
    holder: Any = data
    for step in parents:
        place = _place(holder, step, path)
        inner = holder[place] if isinstance(holder, list) else holder.get(place, {})
        if isinstance(inner, (Part, TopologyFile, TopologyGraph)):
            inner = inner.data()
        elif isinstance(inner, Section):
            inner = inner.model_dump(by_alias=True, mode="json", exclude_none=True)
        if isinstance(inner, (list, tuple)):
            holder[place] = list(inner)
        elif isinstance(inner, Mapping):
            holder[place] = dict(inner)
        else:
            raise BadInput(".".join(path), f"'{step}' is only {inner!r} here; give it keys and values first")
        holder = holder[place]
    holder[_place(holder, last, path)] = value


def _place(holder: Any, step: str, path: tuple[str, ...]) -> Any:
    """Return a step of a dotted key as the key of a mapping or the position in a list."""
    if not isinstance(holder, list):
        return step
    if not step.isdigit() or int(step) >= len(holder):
        raise BadInput(".".join(path), f"there is no entry '{step}'; the list has {len(holder)}")
    return int(step)


def hyphenated(data: Any) -> Any:
    """Return keys and values with the keys as files write them, so that either spelling means the same."""
    if isinstance(data, Mapping):
        return {
            key.replace("_", "-") if isinstance(key, str) else key: hyphenated(value)
            for key, value in data.items()
        }
    return [hyphenated(entry) for entry in data] if isinstance(data, list) else data


def keep_workers(data: dict[str, Any], kept: Sequence[int]) -> None:
    """Renumber the workers that stragglers name to their new ranks, and drop those that are gone."""
    new_rank = {old: new for new, old in enumerate(kept)}
    stragglers = []
    for entry in data.get("cluster", {}).get("stragglers", ()):
        if isinstance(entry, Mapping) and entry.get("workers") is not None:
            remaining = [new_rank[rank] for rank in entry["workers"] if rank in new_rank]
            entry = {**entry, "workers": remaining}
            if not remaining:
                continue
        elif isinstance(entry, Straggler) and entry.workers is not None:
            remaining = [new_rank[rank] for rank in entry.workers if rank in new_rank]
            entry = dataclasses.replace(entry, workers=tuple(remaining))
            if not remaining:
                continue
        stragglers.append(entry)
    if stragglers or "stragglers" in data.get("cluster", {}):
        assign(data, ("cluster", "stragglers"), stragglers)
