from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from traces.calibration_files import FORMAT, Parts, read_description, write_description

CLUSTER = {"device": {"name": "x", "tables": [{"batches": (1, 8)}]}, "topology": {"nodes": [], "edges": []}}
MEASURED = {"date": "2026-11-20", "network": {"rates": [1.5e9, 2e-7]}, 3: None}


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"machine{suffix}"
    path.write_text("something older")
    write_description(path, CLUSTER, MEASURED)
    assert read_description(path) == {
        "format": FORMAT,
        "cluster": {**CLUSTER, "device": {"name": "x", "tables": [{"batches": [1, 8]}]}},
        "measured": {"date": "2026-11-20", "network": {"rates": [1.5e9, 2e-7]}, "3": None},
    }
    assert os.listdir(tmp_path) == [path.name]


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, 123456789.123456789, 1e22, 5e-324]
    write_description(tmp_path / "a.yaml", {"values": values}, {})
    assert read_description(tmp_path / "a.yaml")["cluster"]["values"] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "m.yaml: is not YAML in line 1"),
        ("[1]", f"m.yaml: is no cluster description; it should begin with 'format: {FORMAT}'"),
        ("format: other", f"m.yaml: is no cluster description; it should begin with 'format: {FORMAT}'"),
        (
            yaml.safe_dump({"format": FORMAT, "cluster": {}, "clusters": {}}),
            "m.yaml: unknown key 'clusters'; the known keys are format, cluster, measured",
        ),
        (
            f"format: {FORMAT}\ncluster:\n  device: {{pass-overhead: 1 s,\n    pass_overhead: 2 s}}\n",
            "m.yaml: the key 'pass_overhead' is given in line 3 and in line 4",
        ),
        (
            f"format: {FORMAT}\ncluster: {{}}\nmeasured: {{}}\ncluster: {{}}\n",
            "m.yaml: the key 'cluster' is given in line 2 and in line 4",
        ),
        (
            yaml.safe_dump({"format": FORMAT, "cluster": 3}),
            "m.yaml: cluster: expected the keys of a scenario's cluster section",
        ),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_description(tmp_path / "m.yaml")


def test_half_of_a_json_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"format":\n')
    with pytest.raises(ValueError, match=r"^m.json: is not JSON in line 2$"):
        read_description(tmp_path / "m.json")


def test_a_key_that_a_json_file_has_twice_is_refused(tmp_path: Path) -> None:
    text = f'{{"format": "{FORMAT}", "cluster": {{"workers": 1, "workers": 2}}}}'
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=r"^m.json: the key 'workers' is given twice in one object$"):
        read_description(tmp_path / "m.json")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("no.yaml: cannot be read: No such file or directory")):
        read_description(tmp_path / "no.yaml")
    with pytest.raises(
        ValueError, match=re.escape("m.txt: the name of a cluster description ends with .yaml, .yml, .json")
    ):
        write_description(tmp_path / "m.txt", {}, {})
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        write_description(tmp_path / "none" / "m.yaml", {}, {})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.yaml"
    write_description(path, {"a": 1}, {})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cannot be written: No space left on device"):
        write_description(path, {"a": 2}, {})
    assert read_description(path)["cluster"] == {"a": 1}
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_parts_are_found_by_what_was_measured(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "m.yaml")
    identity = {"name": "ping", "sizes": (1, 2)}
    assert parts.find(identity) is None
    parts.keep(identity, {"a": [[1.5]]})
    assert parts.find({"sizes": [1, 2], "name": "ping"}) == {"a": [[1.5]]}
    assert parts.find({**identity, "sizes": (1, 3)}) is None
    (file,) = parts.folder.iterdir()
    file.write_text(file.read_text()[:-3])
    assert parts.find(identity) is None  # half of a file counts for nothing
    parts.drop()
    assert os.listdir(tmp_path) == []
