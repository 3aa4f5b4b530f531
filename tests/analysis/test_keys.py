"""The list of keys holds every key that a scenario may have, each with a value, a default and a meaning."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.keys import PARTS, REQUIRED, Key, keys, merged, paragraphs
from simulator.parts import BadInput, Part, Section, section_of
from simulator.scenario import SCENARIOS, Scenario
from simulator.sections import Sections
from topologies import MIXINGS

ROOT = Path(__file__).parents[2]
LISTED_ELSEWHERE = {"cluster.network", "workload.cost", "algorithm", "compare", "update.schedule"}
"""Parts of which the README's table of keys says where they are listed."""
TOP = [field.alias or name for name, field in Sections.model_fields.items()]


def every() -> list[Key]:
    return [*keys(), *(key for top in TOP if top != "compare" for key in keys(top))]


def test_every_key_has_a_value_and_a_meaning() -> None:
    for key in every():
        assert key.value, key
        assert re.fullmatch(r"\S.*\.", key.meaning), key
        assert key.default, key


def test_every_key_of_the_scenarios_that_ship_is_listed() -> None:
    """What is written out of a resolved scenario is found again, whatever the list was made from."""
    known = {key.key for key in every()}

    def written(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from written(inner, f"{path}.{key}" if path else key)
        elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            for entry in value:
                yield from written(entry, path)
        else:
            yield path

    tags = {f"{path}.{catalogue.tag}" for path, catalogue in PARTS.items()}
    for file in SCENARIOS.glob("*.yaml"):
        for path in written(Scenario.load(file).resolved(), ""):
            listed = re.sub(r"^compare\.", "algorithm.", path)
            assert listed in known or path in tags, path


@pytest.mark.parametrize("path", PARTS)
def test_every_parameter_of_every_part_is_listed(path: str) -> None:
    below = {(key.key, key.of) for key in keys(path)}
    prefix = re.sub(r"^compare\b", "algorithm", path)
    for name in PARTS[path].names:
        for field in section_of(PARTS[path].find(name)).model_fields.values():
            assert (f"{prefix}.{field.alias}", name) in below


def test_every_choice_of_a_part_is_known() -> None:
    """A section's field that holds parts is among `PARTS`, so that nothing below it is left out."""

    def parts_in(section: type[Section], prefix: str) -> Iterator[str]:
        for name, field in section.model_fields.items():
            if "Part" in str(field.annotation):
                yield f"{prefix}{field.alias or name}"
            for model in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(model, type) and issubclass(model, Section):
                    yield from parts_in(model, f"{prefix}{field.alias or name}.")

    assert set(parts_in(Sections, "")) == set(PARTS) - {"update.schedule"}
    assert Part.__name__ == "Part"


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        *((key, PARTS[key].names) for key in PARTS if key not in LISTED_ELSEWHERE),
        ("gossip", tuple(MIXINGS)),
    ],
)
def test_the_table_of_the_readme_names_every_choice(key: str, choices: tuple[str, ...]) -> None:
    text = (ROOT / "simulator" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.*) \|$", text, flags=re.MULTILINE))
    assert [choice for choice in choices if f"`{choice}`" not in rows[key]] == []


def found(path: str, of: str = "") -> Key:
    (key,) = [key for key in keys(path) if key.key == path and key.of == of]
    return key


def test_some_keys_in_full() -> None:
    assert dataclasses.astuple(found("budget.iterations")) == (
        "budget.iterations",
        "",
        "whole number",
        REQUIRED,
        "Of each worker; a round that has begun is finished.",
    )
    assert dataclasses.astuple(found("cluster.transport.segment-size", "gloo"))[2:4] == ("B", "1.049 MB")
    assert dataclasses.astuple(found("cluster.topology.link.bandwidth", "ring"))[2:4] == ("B/s", REQUIRED)
    assert found("cluster.device.peak-flops").value == "FLOP/s"
    assert found("cluster.fairness").value == "maxmin | rtt"
    assert found("update.schedule.milestones", "multi-step").default == REQUIRED
    assert found("algorithm.period", "local-sgd").default == "4"
    assert found("algorithm.period", "local-sgd").meaning == "Local steps between two averages (k)."
    assert found("compression.density", "top-k").default == "0.01"
    assert found("execution.compute").default == "objective"
    assert found("update").value == "rule: sgd | momentum | nesterov | adamw"
    assert re.fullmatch(r"name: one of \d+", found("algorithm").value)
    assert (
        found("workload.objective.mu", "quadratic").meaning
        == found("workload.objective.L", "quadratic").meaning
    )


def test_a_key_that_there_is_not() -> None:
    with pytest.raises(BadInput) as caught:
        keys("budget.iteration")
    assert str(caught.value) == (
        "budget.iteration: no such key of a scenario; the nearest is 'budget.iterations'"
    )


def test_a_reader_gets_each_key_once_for_the_parts_where_it_is_alike() -> None:
    listed = keys("cluster.transport")
    shown = merged(listed)
    assert [(key.of, key.default) for key in shown if key.key == "cluster.transport.payload-share"] == [
        ("ideal", "1"),
        ("nccl, gloo", "0.992"),
    ]
    assert [key.of for key in shown if key.key == "cluster.transport.pattern"] == ["ideal, nccl, gloo"]
    assert list(dict.fromkeys(key.key for key in shown)) == list(dict.fromkeys(key.key for key in listed))
    assert len({(key.key, key.value, key.default, key.meaning) for key in shown}) == len(shown)
    assert [key.key for key in shown] == sorted(
        (key.key for key in shown), key=[key.key for key in listed].index
    )


def test_defaults_that_are_quantities_have_their_unit() -> None:
    assert found("workload.cost.bucket-size", "model").default == "26.21 MB"
    assert found("workload.cost.first-bucket", "model").default == "1.049 MB"


@pytest.mark.parametrize("width", [80, 120])
def test_paragraphs_are_no_wider_than_asked_and_hold_every_word(width: int) -> None:
    listed = merged(every())
    text = paragraphs(listed, width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert sum(len(key.meaning.split()) + len(key.value.split()) for key in listed) < len(words)
    for key in listed:
        assert set(key.meaning.split()) <= set(words)


def test_a_key_as_a_paragraph() -> None:
    assert paragraphs([found("cluster.transport.rounds-of-latency", "nccl")], 80).splitlines() == [
        "cluster.transport.rounds-of-latency (nccl)",
        "  all | depth; default depth",
        "  all: every round of the pattern pays its path's latency; depth: 2 ceil(log2 n)",
        "  of them do, because pipelining hides the rest.",
    ]
    assert paragraphs([found("budget.iterations"), found("target")], 80).splitlines()[1::3] == [
        "  whole number; required",
        "  keys; optional",
    ]
