"""Processes of this machine are reached whatever the name of the folder for temporary files is."""

from __future__ import annotations

import multiprocessing.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from simulator.parts import BadInput
from simulator.processes import LONGEST, shorten_sockets

ROOT = Path(__file__).parents[2]
SCENARIO = {
    "name": "small",
    "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "cpu-core", "transport": "gloo"},
    "workload": {
        "cost": {"model": "mlp-digits", "batch": 8},
        "objective": {"kind": "quadratic", "dimension": 5},
    },
    "algorithm": "allreduce-sgd",
    "step-size": 0.1,
    "budget": {"iterations": 3},
}


@pytest.mark.parametrize("command", [["execute"], ["run", "--jobs", "2"]], ids=["execute", "run"])
def test_a_long_name_of_the_folder_for_temporary_files(tmp_path: Path, command: list[str]) -> None:
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SCENARIO))
    code = "from analysis.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, command[0], "small.yaml", *command[1:], "--out", "out"],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in temporary.iterdir() if not path.name.startswith("torch")] == []


class TestWhere:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the folders in which one for sockets was to be made."""
        folders: list[str] = []

        def made() -> str:
            folders.append(tempfile.gettempdir())
            if folders[-1] == "/none":
                raise OSError(13, "Permission denied")
            return f"{folders[-1]}/pymp-abcdefgh"

        monkeypatch.setattr(multiprocessing.util, "get_temp_dir", made)
        return folders

    @pytest.mark.parametrize(("length", "others"), [(LONGEST - 32, []), (LONGEST - 31, ["/tmp"])])
    def test_a_folder_that_is_short_enough_is_used(
        self, monkeypatch: pytest.MonkeyPatch, asked: list[str], length: int, others: list[str]
    ) -> None:
        given = "/" + "x" * (length - 1)
        monkeypatch.setattr(tempfile, "tempdir", given)
        shorten_sockets()
        assert (asked, tempfile.gettempdir()) == (others, given)

    def test_the_next_one_where_nothing_can_be_written(
        self, monkeypatch: pytest.MonkeyPatch, asked: list[str]
    ) -> None:
        given = "/" + "é" * 60
        monkeypatch.setattr(tempfile, "tempdir", given)
        monkeypatch.setattr("simulator.processes.SHORT", ("/none", "/var/tmp"))
        shorten_sockets()
        assert (asked, tempfile.gettempdir()) == (["/none", "/var/tmp"], given)

    def test_none(self, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
        given = "/" + "x" * 100
        monkeypatch.setattr(tempfile, "tempdir", given)
        monkeypatch.setattr("simulator.processes.SHORT", ("/none",))
        sentence = (
            f"TMPDIR: '{given}' is too long for a socket, whose path may have {LONGEST} bytes, and nothing "
            f"can be written to /none; name a folder of at most {LONGEST - 32} bytes"
        )
        with pytest.raises(BadInput, match=f"^{re.escape(sentence)}$"):
            shorten_sockets()
        assert (asked, tempfile.gettempdir()) == (["/none"], given)
