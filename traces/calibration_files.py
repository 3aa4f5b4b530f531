"""Cluster descriptions as files: what a calibration measured, in the words of a scenario's ``cluster``.

A description is one YAML or JSON document with exactly these keys:

``format``    the name and version of the format (:data:`FORMAT`);
``cluster``   the keys of a scenario's ``cluster`` section: topology, device with its compute tables,
              transport, stragglers. Quantities carry their units;
``measured``  where these numbers come from: date, versions, machine, the measured values, spread, residuals
              of the fits and the range in which they hold. Plain numbers in SI units.

Beside the file that is to be written, :class:`Parts` keeps what has been measured so far, a file for each
measurement, so that a calibration that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from traces.reading import DuplicateKey, read_json, read_yaml

FORMAT = "paceline-cluster/1"
"""What the key ``format`` holds."""

SUFFIXES = (".yaml", ".yml", ".json")
"""The suffixes of cluster descriptions."""

KEYS = ("format", "cluster", "measured")


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values in one line, everything else in lines of their own."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        plain = all(not isinstance(entry, Mapping | list | tuple) for entry in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a cluster description.

    Raises
    ------
    ValueError
        The file cannot be read, is of another format, lacks a key or has one twice; one sentence that
        begins with its name.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8")
        # YAML 1.1 takes JSON's 1e-05 for a word.
        data = read_json(text) if path.suffix == ".json" else read_yaml(text)
    except OSError as error:
        raise ValueError(f"{path.name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: is not a text file in UTF-8") from None
    except DuplicateKey as error:
        raise ValueError(f"{path.name}: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: is not JSON in line {error.lineno}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path.name}: is not YAML{where}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path.name}: is no cluster description; it should begin with 'format: {FORMAT}'")
    for key in data:
        if key not in KEYS:
            raise ValueError(f"{path.name}: unknown key {key!r}; the known keys are {', '.join(KEYS)}")
    if not isinstance(data.get("cluster"), dict):
        raise ValueError(f"{path.name}: cluster: expected the keys of a scenario's cluster section")
    return data


def write_description(path: str | os.PathLike[str], cluster: Mapping[str, Any], measured: Any) -> None:
    """Write a cluster description, whole or not at all; an existing file is replaced.

    Raises
    ------
    ValueError
        The suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    data = _plain({"format": FORMAT, "cluster": cluster, "measured": measured})
    if path.suffix == ".json":
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    else:
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    _write_whole(path, text)


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path.name}: the name of a cluster description ends with {', '.join(SUFFIXES)}")


def _plain(value: Any) -> Any:
    """Return keys, lists and values as every reader of YAML and JSON knows them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None


class Parts:
    """The finished measurements of a calibration that is under way.

    Parameters
    ----------
    description
        The file that the calibration will write; its parts are in a hidden folder beside it.
    """

    def __init__(self, description: Path) -> None:
        self.folder = description.with_name(f".{description.name}.parts")

    def find(self, identity: Mapping[str, Any]) -> Any:
        """Return what was measured under an identity: settings, machine and versions. None if nothing was."""
        try:
            kept = json.loads(self._file(identity).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept["value"] if kept.get("identity") == _plain(identity) else None

    def keep(self, identity: Mapping[str, Any], value: Any) -> None:
        """Keep a finished measurement, whole or not at all."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder}: cannot be written: {error.strerror}") from None
        _write_whole(self._file(identity), json.dumps({"identity": _plain(identity), "value": value}))

    def drop(self) -> None:
        """Forget all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, identity: Mapping[str, Any]) -> Path:
        text = json.dumps(_plain(identity), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
