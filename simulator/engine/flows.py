"""Completion times of given flows on given links: the cases of ``paceline flows``.

A case is a mapping, as JSON has it::

    {"name": "two on one link",
     "links": {"a>b": {"bandwidth": 1e9, "latency": 1e-6}},
     "flows": [{"size": 1e6, "start": 0.0, "path": ["a>b"]},
               {"size": 5e6, "start": 0.0, "path": ["a>b"], "weight": 2.0, "cap": 5e8}]}

in bytes, bytes per second and seconds; ``weight`` and ``cap`` are optional. A flow pays the sum of its path's
latencies from its start on, and only then takes bandwidth. The rates are max-min fair
(:mod:`simulator.engine.fairshare`). A file holds one case or a list of cases, which then have names. A key
``completion`` (what the command prints) may stand in a case and is not read, so that a file with expected
results is a valid input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from sys import float_info
from typing import Any

from simulator.engine.fairshare import Core, Fairness

__all__ = ["completion_times", "read_cases"]

_CASE_KEYS = {"links": True, "flows": True, "name": False, "completion": False}  # key: is it required?
_LINK_KEYS = {"bandwidth": True, "latency": True}
_FLOW_KEYS = {"size": True, "start": True, "path": True, "cap": False, "weight": False}


def completion_times(case: Mapping[str, Any], fairness: Fairness = "maxmin") -> list[float]:
    """Return the completion time of every flow of a case, in seconds, in the order of its flows.

    Parameters
    ----------
    case
        A mapping as the module describes it.
    fairness
        ``"maxmin"``, or ``"rtt"``: shares in proportion to weight / path latency, the sum of its links'.

    Raises
    ------
    ValueError
        With one sentence that names the flow or link, and the key, if the case is not as described, or the
        flow, if it ends later than a number can say, or if shares are too small for numbers.
    """
    core = Core(fairness)
    _check_case(case, "")
    links = {name: core.add_link(link["bandwidth"], link["latency"]) for name, link in case["links"].items()}
    for position, flow in enumerate(case["flows"]):
        try:
            core.start(
                [links[name] for name in flow["path"]],
                flow["size"],
                weight=flow.get("weight", 1.0),
                cap=flow.get("cap", inf),
                at=flow["start"],
            )
        except OverflowError:  # of the latencies' sum
            raise _endless(case, position) from None
    completion = [inf] * len(case["flows"])
    while core.live:
        try:
            ended = core.advance(inf)
        except ArithmeticError:
            raise _too_far_apart(case) from None
        if not ended:
            raise _endless(case, next(filter(core.running, range(len(completion)))))
        for flow in ended:
            completion[flow] = core.now
    return completion


def _too_far_apart(case: Mapping[str, Any]) -> ValueError:
    """Return the error of a case in which a share underflows."""
    return ValueError(
        f"{_where(case)}the 'weight', 'cap' and 'bandwidth' of its flows and links lie so far apart that a "
        "share is no number any more; use ones within some 100 powers of ten"
    )


def _where(case: Mapping[str, Any]) -> str:
    return f"case {case['name']!r}: " if "name" in case else ""


def _endless(case: Mapping[str, Any], position: int) -> ValueError:
    """Return the error of a flow whose time overflows."""
    return ValueError(
        f"{_where(case)}flow {position}: it would end after more than {float_info.max:.2g} seconds; use a "
        "smaller 'size', 'start' or 'latency', or a larger 'bandwidth' or 'cap'"
    )


def read_cases(path: str | Path) -> list[dict[str, Any]]:
    """Return the checked cases of a JSON file, which holds one case or a list of named ones.

    Raises
    ------
    ValueError
        With one sentence that names the file, the case, the flow or link, and the key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a text file in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is not JSON: {error.msg} at line {error.lineno}") from None
    except _DuplicateKey as error:
        raise ValueError(f"{path}: the key {error.args[0]!r} occurs twice in one object") from None
    if not isinstance(content, list):
        _check_case(content, f"{path}: ")
        return [content]
    if not content:
        raise ValueError(f"{path}: holds no case")
    for position, case in enumerate(content):
        where = f"{path}: case {position}"
        if isinstance(case, Mapping):
            if "name" not in case:
                raise ValueError(f"{where}: the key 'name' is missing")
            where = f"{path}: case {case['name']!r}"
        _check_case(case, f"{where}: ")
    return content


class _DuplicateKey(Exception):
    """An object of a JSON file has a key twice."""


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _DuplicateKey(key)
        content[key] = value
    return content


def _check_case(case: object, where: str) -> None:
    """Raise unless a case is as described; `where` begins the sentence."""
    content = _object(case, where or "the case: ", _CASE_KEYS)
    if not isinstance(content.get("name", ""), str):
        raise ValueError(f"{where}'name' must be a text, not {content['name']!r}")
    links, flows = content["links"], content["flows"]
    if not isinstance(links, Mapping):
        raise ValueError(f"{where}'links' must be an object of links by name, not {_kind(links)}")
    if not isinstance(flows, Sequence) or isinstance(flows, str):
        raise ValueError(f"{where}'flows' must be a list, not {_kind(flows)}")
    for name, link in links.items():
        here = f"{where}link {name!r}: "
        _number(_object(link, here, _LINK_KEYS), here, "bandwidth", positive=True)
        _number(link, here, "latency")
    for position, flow in enumerate(flows):
        _check_flow(flow, f"{where}flow {position}: ", links)


def _check_flow(flow: object, here: str, links: Mapping[str, Any]) -> None:
    content = _object(flow, here, _FLOW_KEYS)
    for key in ("size", "start"):
        _number(content, here, key)
    for key in ("cap", "weight"):
        if key in content:
            _number(content, here, key, positive=True)
    path = content["path"]
    if not isinstance(path, Sequence) or isinstance(path, str) or not path:
        raise ValueError(f"{here}'path' must be a list of one link or more, not {path!r}")
    for position, link in enumerate(path):
        if not isinstance(link, str) or link not in links:
            raise ValueError(f"{here}'path' has the unknown link {link!r}{_nearest(str(link), list(links))}")
        if link in path[:position]:
            raise ValueError(f"{here}'path' has the link {link!r} twice")


def _object(value: object, here: str, keys: Mapping[str, bool]) -> Mapping[str, Any]:
    """Return a value that must be an object with these keys and no others."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{here}must be an object, not {_kind(value)}")
    for key in value:
        if key not in keys:
            raise ValueError(f"{here}unknown key {key!r}{_nearest(str(key), list(keys))}")
    for key, required in keys.items():
        if required and key not in value:
            raise ValueError(f"{here}the key {key!r} is missing")
    return value


def _number(content: Mapping[str, Any], here: str, key: str, *, positive: bool = False) -> None:
    value = content[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= float_info.max or (positive and value == 0):
        wanted = "a positive, finite number" if positive else "a finite number of at least 0"
        raise ValueError(f"{here}{key!r} must be {wanted}, not {value!r}")


def _nearest(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; the nearest is {near[0]!r}" if near else ""


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), f"{value!r}")
