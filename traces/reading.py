"""YAML and JSON in which a key is given once, where the formats themselves would let the last one win."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


class DuplicateKey(ValueError):
    """A mapping has a key twice; hyphens and underscores mean the same."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that a mapping has twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping's keys and values."""
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            written, line = key.value.replace("_", "-"), key.start_mark.line + 1
            if written in lines:
                raise DuplicateKey(
                    f"the key '{key.value}' is given in line {lines[written]} and in line {line}"
                )
            lines[written] = line
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises
    ------
    DuplicateKey
        A mapping has a key twice; the message names both lines.
    yaml.YAMLError
        It is not YAML.
    """
    return yaml.load(text, _Loader)


def read_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises
    ------
    DuplicateKey
        An object has a key twice.
    json.JSONDecodeError
        It is not JSON.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in pairs:
        written = key.replace("_", "-")
        if written in seen:
            raise DuplicateKey(f"the key '{key}' is given twice in one object")
        seen.add(written)
    return dict(pairs)
