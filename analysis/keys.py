"""All keys of a scenario file: what each may hold, its unit, its default and its meaning.

Nothing is listed by hand. Sections and parts declare their keys as fields and parameters; the meaning stands
in their docstrings, or beside a parameter of an algorithm or a codec.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from simulator.parts import QUANTITIES, BadInput, Catalogue, Part, Section, nearest, section_of
from simulator.schedules import CATALOGUE as SCHEDULE
from simulator.schedules import Schedule
from simulator.sections import (
    ALGORITHM,
    CODEC,
    COST,
    NETWORK,
    OBJECTIVE,
    STRAGGLER,
    TOPOLOGY,
    TRANSPORT,
    UPDATE,
    Sections,
)
from simulator.units import format_quantity

PARTS: Mapping[str, Catalogue] = {
    "cluster.topology": TOPOLOGY,
    "cluster.network": NETWORK,
    "cluster.transport": TRANSPORT,
    "cluster.stragglers": STRAGGLER,
    "workload.cost": COST,
    "workload.objective": OBJECTIVE,
    "algorithm": ALGORITHM,
    "compare": ALGORITHM,
    "compression": CODEC,
    "update": UPDATE,
    "update.schedule": SCHEDULE,
}
"""Keys that choose a part by its name, and the parts that there are to choose from."""

MOST_CHOICES = 4
"""Of more parts their number is told; each is named with its own keys."""

REQUIRED = "required"


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a scenario file.

    Attributes
    ----------
    key
        As a dotted path.
    of
        The part that has it, such as a transport; empty where every scenario may have it.
    value
        What it holds: a kind of value, or the choices; of a quantity, its unit.
    default
        As text; :data:`REQUIRED` where there is none.
    meaning
        A sentence.
    """

    key: str
    of: str
    value: str
    default: str
    meaning: str


def keys(below: str = "") -> list[Key]:
    """Return the keys at and below a dotted path, with those of all parts; without one those of all sections.

    Raises
    ------
    BadInput
        There is no such key.
    """
    every = list(_of(Sections, "", ""))
    if not below:
        return [key for key in every if not key.of]
    # An algorithm to compare with has the keys of the algorithm.
    wanted = re.sub(r"^compare\b", "algorithm", below.replace("_", "-"))
    found = [key for key in every if key.key == wanted or key.key.startswith(f"{wanted}.")]
    if not found:
        near = nearest(wanted, dict.fromkeys(key.key for key in every))
        raise BadInput(below, f"no such key of a scenario; the nearest is '{near}'")
    return found


def merged(found: Iterable[Key]) -> list[Key]:
    """Return keys as a reader wants them: by name, and once for all parts where it is alike."""
    parts: dict[Key, list[str]] = {}
    place: dict[str, int] = {}
    for key in found:
        parts.setdefault(dataclasses.replace(key, of=""), []).append(key.of)
        place.setdefault(key.key, len(place))
    joined = [dataclasses.replace(key, of=", ".join(filter(None, of))) for key, of in parts.items()]
    return sorted(joined, key=lambda key: place[key.key])


def paragraphs(found: Iterable[Key], width: int) -> str:
    """Return keys as text in lines of at most so many characters: each key, what it holds, its meaning."""

    def lines(key: Key) -> Iterator[str]:
        default = {REQUIRED: REQUIRED, "-": "optional"}.get(key.default, f"default {key.default}")
        of = f" ({key.of})" if key.of else ""
        for text, indent in ((f"{key.key}{of}", ""), (f"{key.value}; {default}", "  "), (key.meaning, "  ")):
            yield from textwrap.wrap(
                text,
                width,
                initial_indent=indent,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )

    return "\n".join(line for key in found for line in lines(key))


def _of(section: type[Section], prefix: str, part: str, documented: Any = None) -> Iterator[Key]:
    """Yield the keys of a section, or of the section that holds a part's parameters."""
    meanings = _meanings(documented or section)
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield Key(
            key, part, _value(key, field.annotation, field.metadata), _default(field), meanings.get(name, "")
        )
        for target, held in _inner_sections(field.annotation):
            yield from _of(held, f"{key}.", part, target)
        # What is to be compared has the keys of the algorithm; all update rules have the same schedules.
        if key in PARTS and key != "compare" and part in ("", UPDATE.names[0]):
            for chosen in PARTS[key].names:
                own = PARTS[key].find(chosen)
                yield from _of(section_of(own), f"{key}.", chosen, own)


def _inner_sections(annotation: Any) -> Iterator[tuple[Any, type[Section]]]:
    """Yield what a field's own keys are documented by, and the section that has them."""
    for candidate in _alternatives(annotation):
        if not isinstance(candidate, type) or issubclass(candidate, (Part, Schedule)):
            continue
        if issubclass(candidate, Section):
            yield candidate, candidate
        elif dataclasses.is_dataclass(candidate):
            yield candidate, section_of(candidate)


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, those of the entries of a list included."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return [found for inner in get_args(annotation) for found in _alternatives(inner)]
    return [annotation]


def _value(key: str, annotation: Any, metadata: Any) -> str:
    """Return in words what a key holds."""
    if key in PARTS:
        catalogue = PARTS[key]
        few = len(catalogue.names) <= MOST_CHOICES
        choices = " | ".join(catalogue.names) if few else f"one of {len(catalogue.names)}"
        return f"{catalogue.tag}: {choices}"
    for dimension, quantity in QUANTITIES.items():
        marks = get_args(quantity)[1:]
        if any(mark in marks for mark in metadata):
            return dimension
    return _type_text(annotation)


_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "", Any: ""}


def _type_text(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for dimension, quantity in QUANTITIES.items():
            if annotation == quantity:
                return dimension
        return _type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(filter(None, map(_type_text, arguments))))
    if origin in (tuple, list):
        inner = list(dict.fromkeys(_type_text(entry) for entry in arguments if entry is not Ellipsis))
        return f"list of {' and '.join(inner)}"
    return _WORDS.get(annotation, "keys")


def _default(field: Any) -> str:
    """Return a field's default as a file would hold it."""
    if field.is_required() or field.default is PydanticUndefined:
        return REQUIRED
    return _written(field.default, _value("", field.annotation, field.metadata))


def _written(value: Any, dimension: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Schedule):
        return SCHEDULE.name_of(type(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = section_of(type(value)).model_fields.items()
        inner = (
            (
                field.alias or name,
                _written(getattr(value, name), _value("", field.annotation, field.metadata)),
            )
            for name, field in held
        )
        return ", ".join(f"{key} {text}" for key, text in inner)
    if dimension in QUANTITIES and isinstance(value, (int, float)):
        return format_quantity(value, dimension)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_written(entry, '') for entry in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


_HEADED = re.compile(
    r"^(?:Parameters|Attributes)\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", re.DOTALL | re.MULTILINE
)


def _meanings(target: Any) -> dict[str, str]:
    """Return what each parameter means, as a sentence, by its name in Python."""
    found: dict[str, str] = {}
    owners = reversed(target.__mro__) if isinstance(target, type) else (target,)
    for owner in owners:
        text = inspect.cleandoc(getattr(owner, "__doc__", None) or "")
        for block in _HEADED.findall(text):
            found.update(_entries(block))
    if dataclasses.is_dataclass(target):
        for field in dataclasses.fields(target):
            if field.metadata.get("doc"):
                found[field.name] = _sentence(field.metadata["doc"])
    return found


def _entries(block: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the meaning of each entry of a numpydoc section."""
    names: list[str] = []
    lines: list[str] = []
    for line in [*block.splitlines(), "end"]:
        if line.startswith(" ") or not line.strip():
            lines.append(line.strip())
            continue
        yield from ((name, _sentence(" ".join(filter(None, lines)))) for name in names)
        names, lines = [name.strip() for name in line.partition(":")[0].split(",")], []


def _sentence(text: str) -> str:
    """Return a meaning with a capital letter and a full stop, without the marks of code."""
    plain = text.replace("`", "").rstrip(".")
    begun = plain[:1] if text.startswith("`") else plain[:1].upper()  # a value is written as it is
    return f"{begun}{plain[1:]}." if plain else ""
