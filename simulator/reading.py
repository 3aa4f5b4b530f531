"""YAML as scenarios are written: a key is given once, where YAML itself would let the last one win."""

from __future__ import annotations

from typing import Any

import yaml

from simulator.parts import BadInput

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that a mapping has twice; hyphens and underscores mean the same."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping's keys and values."""
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            written, line = key.value.replace("_", "-"), key.start_mark.line + 1
            if written in lines:
                raise BadInput(
                    "", f"the key '{key.value}' is given in line {lines[written]} and in line {line}"
                )
            lines[written] = line
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises
    ------
    BadInput
        A mapping has a key twice; the message names both lines.
    yaml.YAMLError
        It is not YAML.
    """
    return yaml.load(text, _Loader)
