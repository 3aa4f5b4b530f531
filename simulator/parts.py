"""The parts of a scenario: objects that a file names and configures.

A part is any dataclass or function with typed, named parameters (a topology builder, an algorithm, an
objective, a straggler). A file selects one by name and may set exactly the parameters that this one has:
a misspelt or useless key is refused before anything runs, with the nearest known key. Parameters marked
with a dimension (``Annotated[float, "B/s"]``) are written with units. Wherever a name is expected,
``package.module:Object`` of an importable module, or of a ``.py`` file beside the scenario, works too.

The checking is pydantic's; this module derives the models from signatures and turns pydantic's reports
into one sentence that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic_core import ErrorDetails, PydanticSerializationError

from simulator.units import parse_quantity

MADE = "made-in-python"
"""The key that stands in a saved run for an object that a file cannot hold."""


class BadInput(ValueError):
    """A scenario, file or argument that cannot be used; the message is one sentence for its author.

    Parameters
    ----------
    key
        Where the fault is, as a dotted path (may be empty).
    problem
        What is wrong and what would be right.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.problem)


class _Located(ValueError):
    """A fault inside a part, on its way through pydantic, which knows the key that holds the part."""

    def __init__(self, error: BadInput) -> None:
        super().__init__(str(error))
        self.error = error


class Section(pydantic.BaseModel):
    """Base of everything that is read from a scenario: known keys only, written with hyphens."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        arbitrary_types_allowed=True,
        strict=False,
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Refuse true and false where a number is meant; YAML reads 'yes' and 'on' as true."""
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = (annotation, *get_args(annotation))
            if bool not in kinds and (int in kinds or float in kinds):
                raise ValueError(f"expected a number, got {value}")
        return value


def _read(dimension: str) -> pydantic.BeforeValidator:
    return pydantic.BeforeValidator(lambda value: parse_quantity(value, dimension))


def _write(dimension: str) -> pydantic.PlainSerializer:
    return pydantic.PlainSerializer(lambda value: f"{float(value)!r} {dimension}")


Seconds: TypeAlias = Annotated[float, _read("s"), _write("s")]
"""A time: read from text with a unit, held in seconds, written in seconds with the unit."""
Bytes: TypeAlias = Annotated[float, _read("B"), _write("B")]
"""A size, likewise in bytes."""
BytesPerSecond: TypeAlias = Annotated[float, _read("B/s"), _write("B/s")]
"""A bandwidth, likewise in bytes per second."""
FlopPerSecond: TypeAlias = Annotated[float, _read("FLOP/s"), _write("FLOP/s")]
"""A speed of computation, likewise in FLOP per second."""

QUANTITIES: dict[str, Any] = {"s": Seconds, "B": Bytes, "B/s": BytesPerSecond, "FLOP/s": FlopPerSecond}
"""The types of quantities by their dimension."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word nearest to ``word``: one that it begins, else the most similar."""
    words = list(known)
    begun = [other for other in words if word and other.startswith(word)]
    return difflib.get_close_matches(word, begun or words, n=1, cutoff=0.0)[0]


def nearest_file(name: str, folder: Path | None, suffixes: Iterable[str]) -> str:
    """Return the end of a sentence about a file that may not be there: which one beside it may be meant.

    Parameters
    ----------
    name
        As the author wrote it.
    folder
        What it is relative to.
    suffixes
        Of the files that would do.
    """
    path = (folder or Path()) / name
    if path.exists():
        return ""
    beside = [file for file in sorted(path.parent.glob("*")) if file.suffix in suffixes and file.is_file()]
    # The suffix, which all have, says nothing; where two have a stem, the same suffix goes before.
    stems = {file.stem: file for file in sorted(beside, key=lambda file: file.suffix == path.suffix)}
    found = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
    return f"; the nearest is '{Path(name).with_name(stems[found[0]].name)}'" if found else ""


def _key_hint(key: str, known: list[str]) -> str:
    """Return what would have been right instead of an unknown key."""
    if not known:
        return "; it takes no keys"
    if difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return f"; the nearest is '{nearest(key, known)}'"
    return f"; the known keys are {', '.join(known)}"


def check(model: type[Section], data: object, folder: Path | None = None) -> Any:
    """Validate ``data`` as ``model``, or raise :class:`BadInput` for its first fault.

    ``folder`` is where ``file.py:Object`` names are looked up.
    """
    if not isinstance(data, Mapping):
        raise BadInput("", f"expected keys and values, got {data!r}")
    try:
        return model.model_validate(dict(data), context={"folder": folder})
    except pydantic.ValidationError as report:
        raise _first_fault(report, model) from None


def _first_fault(report: pydantic.ValidationError, model: type[Section]) -> BadInput:
    """Turn pydantic's report into one sentence.

    Unknown keys come first, because they explain missing ones; of a value's several possible types the one
    that it went furthest with speaks.
    """
    fault = min(report.errors(), key=lambda fault: (fault["type"] != "extra_forbidden", -len(fault["loc"])))
    # Alternatives of a key's type are part of pydantic's location, but nothing that an author wrote.
    alternatives = _type_names()
    location = [str(step) for step in fault["loc"] if "[" not in str(step) and step not in alternatives]
    error = fault.get("ctx", {}).get("error")
    if isinstance(error, _Located):
        return BadInput(_dotted(*location, error.error.key), error.error.problem)
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, fault["loc"][:-1])
        known = [field.alias or name for name, field in owner.model_fields.items()]
        problem = f"unknown key '{location[-1]}'{_key_hint(location[-1], known)}"
        return BadInput(_dotted(*location[:-1]), problem)
    if fault["type"] == "missing" and isinstance(fault["loc"][-1], int):
        problem = f"has too few entries, got {list(fault['input'])!r}"
        return BadInput(_dotted(*location[:-1]), problem)
    if fault["type"] == "missing":
        return BadInput(_dotted(*location), "this key is missing")
    return BadInput(_dotted(*location), _problem(fault))


def _type_names() -> set[str]:
    return {"float", "int", "str", "bool", *(section.__name__ for section in Section.__subclasses__())}


def _dotted(*steps: str) -> str:
    return ".".join(step for step in steps if step)


def _model_at(model: type[Section], location: tuple[int | str, ...]) -> type[Section]:
    """Follow a location of pydantic's report down to the model that owns it."""
    for step in location:
        fields = {(field.alias or name): field for name, field in model.model_fields.items()}
        annotation = fields[str(step)].annotation if str(step) in fields else None
        candidates = [annotation, *get_args(annotation)]
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, Section):
                model = candidate
    return model


def _problem(fault: ErrorDetails) -> str:
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] in ("model_type", "dict_type"):
        return f"expected keys and values, got {fault['input']!r}"
    message = (fault["msg"][0].lower() + fault["msg"][1:]).replace("tuple", "list")
    return f"{message}, got {fault['input']!r}"


def _field_type(annotation: Any) -> Any:
    """Translate a parameter's annotation into what pydantic shall check."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if arguments[1] in QUANTITIES:
            return QUANTITIES[arguments[1]]
        return annotation
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _nested_part(annotation)
    if origin in (Union, types.UnionType):
        return Union[tuple(_field_type(argument) for argument in arguments)]  # noqa: UP007 - built at run time
    if origin in (tuple, list):
        return origin[tuple(a if a is Ellipsis else _field_type(a) for a in arguments)]
    return annotation


def _nested_part(target: type) -> Any:
    """Return the pydantic type of a dataclass-valued parameter, such as a link's properties."""

    def validate(value: object) -> object:
        if isinstance(value, target):
            return value
        part = check(section_of(target), value)
        return _make(target, part)

    def wrapped(value: object) -> object:
        try:
            return validate(value)
        except BadInput as error:
            raise _Located(error) from None

    def serialise(value: Any) -> dict[str, Any]:
        model = section_of(target)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return model.model_construct(**fields).model_dump(by_alias=True, mode="json")

    return Annotated[target, pydantic.PlainValidator(wrapped), pydantic.PlainSerializer(serialise)]


@functools.cache
def section_of(target: Callable[..., Any]) -> type[Section]:
    """Return the section that holds exactly the named parameters of a dataclass or function."""
    hints = get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (_field_type(hints.get(name, Any)), default)
    made: type[Section] = pydantic.create_model(target.__name__, __base__=Section, **fields)
    return made


def _make(target: Callable[..., Any], values: Section) -> Any:
    """Call the target with checked values; its own complaint becomes ours."""
    arguments = {name: getattr(values, name) for name in type(values).model_fields}
    return target(**arguments)


@dataclasses.dataclass(frozen=True)
class Part:
    """One configured part.

    Attributes
    ----------
    name
        As the scenario names it.
    target
        The dataclass or function behind the name.
    values
        Its checked parameters.
    tag
        The key that holds the name in a file: ``builder``, ``name`` or ``kind``.
    instance
        The object itself, where it was made in Python or imported by name.
    imported
        Whether the name alone leads to the instance.
    """

    name: str
    target: Callable[..., Any]
    values: Section
    tag: str
    instance: Any = None
    imported: bool = False

    def build(self) -> Any:
        """Make the object, with its own checks.

        Raises
        ------
        BadInput
            The target refuses its parameters.
        """
        if self.instance is not None:
            return self.instance
        try:
            return _make(self.target, self.values)
        except ValueError as error:
            raise BadInput("", str(error)) from error

    def data(self) -> dict[str, Any]:
        """Return the part as a file would hold it, every default written out.

        What a file cannot hold (a module, tensors) is told apart by a digest under :data:`MADE`.
        """
        if self.imported:
            return {self.tag: self.name}
        try:
            return {self.tag: self.name, **self.values.model_dump(by_alias=True, mode="json")}
        except PydanticSerializationError:
            return {self.tag: self.name, MADE: _digest(self.instance)}


def _digest(value: object) -> str:
    """Return 16 hexadecimal digits that tell an object by its content, the same in every process."""
    pickled = io.BytesIO()
    _ByContent(pickled).dump(value)
    return hashlib.sha256(pickled.getbuffer()).hexdigest()[:16]


class _ByContent(pickle.Pickler):
    """Pickles tensors by what is in them; pickled by torch they hold where they lie in memory."""

    def reducer_override(self, value: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(value, torch.Tensor):
            return NotImplemented
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tuple, ((str(value.dtype), tuple(value.shape), content),)


def _lost(name: str) -> Callable[[], Any]:
    """Return the target of a part that a saved run can only name."""

    def target(**_: object) -> Any:
        raise ValueError(f"{name} was made in Python, so a file cannot bring it back; give it again")

    return target


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The known parts of one kind.

    Attributes
    ----------
    what
        What they are, for messages: ``"algorithm"``.
    tag
        The key that selects one in a file.
    find
        Returns the target of a known name.
    names
        All known names.
    base
        What a class of the user's own must derive from, where there is such a class.
    """

    what: str
    tag: str
    find: Callable[[str], Callable[..., Any]]
    names: tuple[str, ...]
    base: type | None = None

    def read(self, value: object, folder: Path | None = None) -> Part:
        """Read a part from a bare name, from keys and values, or from an object made in Python.

        Raises
        ------
        BadInput
            No such part, an unknown key or a bad value; the key is relative to the part.
        """
        if isinstance(value, Part):
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._made(value)
        settings = {self.tag: value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping):
            raise BadInput("", f"expected the name of a known {self.what}, or keys and values, got {value!r}")
        if self.tag not in settings:
            known = [key for key in settings if isinstance(key, str)]
            hint = f"; found {', '.join(map(repr, known))}" if known else ""
            raise BadInput("", f"the key '{self.tag}' is missing{hint}")
        name = settings[self.tag]
        if MADE in settings:
            fields: dict[str, Any] = {MADE: (str, settings[MADE])}
            values = pydantic.create_model(MADE, __base__=Section, **fields)()
            return Part(str(name), _lost(str(name)), values, self.tag)
        target = self._target(name, folder)
        if self.base is not None and not issubclass(
            target if isinstance(target, type) else type(target), self.base
        ):
            problem = f"'{name}' is no {self.what}; it must derive from {self.base.__name__}"
            raise BadInput(self.tag, problem)
        if not callable(target):
            return dataclasses.replace(self._made(target), name=str(name), imported=True)
        rest = {key: entry for key, entry in settings.items() if key != self.tag}
        return Part(str(name), target, check(section_of(target), rest), self.tag)

    def _made(self, value: Any) -> Part:
        """Wrap an object that was made in Python."""
        target: Any = type(value)
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        values = section_of(target).model_construct(**fields)
        return Part(self.name_of(target), target, values, self.tag, instance=value)

    def name_of(self, target: Callable[..., Any]) -> str:
        """Return the known name of a target, or its import path."""
        for name in self.names:
            if self.find(name) is target:
                return name
        return f"{target.__module__}:{target.__qualname__}"

    def _target(self, name: object, folder: Path | None) -> Any:
        if not isinstance(name, str):
            raise BadInput(self.tag, f"expected the name of a known {self.what}, got {name!r}")
        if ":" in name:
            return import_object(name, folder)
        if name not in self.names:
            raise BadInput(
                self.tag,
                f"unknown {self.what} '{name}'; the nearest is '{nearest(name, self.names)}'",
            )
        return self.find(name)


def import_object(path: str, folder: Path | None = None) -> Any:
    """Import ``package.module:Object``, or ``file.py:Object`` from beside a scenario.

    Raises
    ------
    BadInput
        The module or the object does not exist.
    """
    module_name, _, attribute = path.partition(":")
    try:
        if module_name.endswith(".py"):
            module = _import_file((folder or Path()) / module_name)
        else:
            module = importlib.import_module(module_name)
    except (ImportError, FileNotFoundError) as error:
        hint = nearest_file(module_name, folder, [".py"]) if module_name.endswith(".py") else ""
        raise BadInput("", f"cannot import '{path}': {error}{hint}") from None
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        hint = f"; the nearest is '{nearest(attribute, known)}'" if known else ""
        raise BadInput("", f"'{module_name}' has no '{attribute}'{hint}")
    return getattr(module, attribute)


def _import_file(file: Path) -> types.ModuleType:
    """Import a Python file under a name of its own, once."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    name = f"_beside_{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def reader(read: Callable[[object, Path | None], Any]) -> pydantic.PlainValidator:
    """Return the validator that reads a field by ``read(value, folder)``, keeping the key of a fault."""

    def validate(value: object, info: pydantic.ValidationInfo) -> Any:
        try:
            return read(value, (info.context or {}).get("folder"))
        except BadInput as error:
            raise _Located(error) from None

    return pydantic.PlainValidator(validate)


PART_WRITER = pydantic.PlainSerializer(lambda value: value.data())
"""Writes a part as a file would hold it."""
