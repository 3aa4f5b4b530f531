from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import paceline


def test_every_public_name_is_there() -> None:
    assert sorted(paceline.__all__) == paceline.__all__ == dir(paceline)
    for name in paceline.__all__:
        assert getattr(paceline, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError) as error:
        _ = paceline.speedup  # type: ignore[attr-defined]
    assert str(error.value) == "module 'paceline' has no attribute 'speedup'"


def test_importing_it_is_cheap() -> None:
    code = "import sys, paceline\nprint(sorted({'torch', 'numpy', 'plotly', 'simulator'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_scenario_of_the_readme_is_the_one_that_ships() -> None:
    text = Path(paceline.__file__).with_name("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    shipped = paceline.Scenario.load("cocod-1080ti")
    assert paceline.Scenario(yaml.safe_load(block)).resolved() == shipped.resolved()


def test_the_what_if_script() -> None:
    code = (
        "from paceline import Scenario, simulate, speedups\n"
        "base = Scenario({'name': 'what-if', 'algorithm': 'd-psgd',\n"
        "    'cluster': {'topology': {'builder': 'switch', 'gpus': 2}, 'device': 'ideal'},\n"
        "    'workload': {'cost': {'parameters': 10, 'batch': 4, 'gradient': '1 s'}},\n"
        "    'budget': {'iterations': 4}, 'target': {'iterations': 4}})\n"
        "runs = [simulate(base.vary(algorithm=a, workers=n))\n"
        "        for a in ('allreduce-sgd', 'cocod-sgd') for n in (1, 2)]\n"
        "print(speedups(runs))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    assert [line.split()[:2] for line in lines[rule + 1 : rule + 5]] == [
        ["allreduce-sgd", "1"],
        ["allreduce-sgd", "2"],
        ["cocod-sgd", "1"],
        ["cocod-sgd", "2"],
    ]
