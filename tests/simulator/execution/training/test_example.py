"""The example that ships, as a user starts it: under torchrun, interrupted, resumed, and simulated at 64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from simulator.run import Run

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "analysis" / "examples" / "train_digits.py"


def told(output: str) -> dict[str, Any]:
    """Return the last line of what rank 0 prints."""
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def under_torchrun(arguments: Sequence[str]) -> str:
    """Run the example on two ranks; return what both print."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(EXAMPLE), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("algorithm", ["allreduce-sgd", "cocod-sgd"])
def test_train_interrupt_resume_and_predict(algorithm: str, tmp_path: Path, ranks: Any) -> None:
    arguments = ["--algorithm", algorithm, "--iterations", "32"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    to_whole = [*arguments, "--out", str(whole)]
    # Once as a user starts it; ranks forked from the helper have imported torch already.
    output = under_torchrun(to_whole) if algorithm == "cocod-sgd" else ranks(EXAMPLE, to_whole)[0]
    figures = told(output)
    assert figures["begun"] == 0
    assert len(figures["loss"]) == 32
    assert sum(figures["loss"][-4:]) < 0.5 * sum(figures["loss"][:4])
    assert figures["evaluated"] > 0.5
    assert figures["predicted_s"] > 0
    assert "Run(" + algorithm + " on 64 workers, virtual clock" in output
    # All ranks end with the same model, statistics of batch normalisation included.
    models = [torch.load(whole / f"model-{rank}.pt", weights_only=True) for rank in range(2)]
    assert {key: value.tolist() for key, value in models[0].items()} == {
        key: value.tolist() for key, value in models[1].items()
    }
    # Stopped within an epoch and started again, it has the same bits.
    first = told(ranks(EXAMPLE, [*arguments, "--until", "12", "--out", parts])[0])
    rest = told(ranks(EXAMPLE, [*arguments, "--out", parts])[0])
    assert (first["begun"], rest["begun"]) == (0, 12)
    assert first["loss"] + rest["loss"] == figures["loss"]
    again = torch.load(parts / "model-0.pt", weights_only=True)
    assert all(torch.equal(again[key], value) for key, value in models[0].items())
    # What was saved is a run like any other, of the second part.
    run = Run.load(parts / "run")
    assert run.iterations == (20, 20)
    assert run.samples.loss == rest["loss"]
    assert run.scenario.cost == run.profile().cost()
