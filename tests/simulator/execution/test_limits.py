"""The table of faults in the README of simulator/execution: what is said, and within which time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.execution import execute
from simulator.faults import AlgorithmError, RunStuck, WorkerFailed

PATIENCE = 2.0
BODY = """
    x = worker.initial_model()
    steps = 0
    while worker.running:
        gradient = await worker.gradient(x)
        steps += 1
        if worker.rank == 1 and steps == 3:
            {notes}
            {line}
        x = await worker.update(x, await worker.all_reduce(gradient))
        worker.report(x)
"""
WAITS = r"worker 0 waits in all_reduce group 'world' for worker 1 since 0[\d.]* s at own_\w+\.py:\d+"
ROWS = {
    "raises": (
        "raise ValueError('out of luck')",
        WorkerFailed,
        r"worker 1 failed in iteration 3: ValueError: out of luck \(at own_\w+\.py:\d+\)",
        2.0,
    ),
    "is killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        WorkerFailed,
        "worker 1 failed: its process was killed by SIGKILL",
        2.0,
    ),
    "leaves": ("return", AlgorithmError, f"the run cannot go on: {WAITS}", 3.0),
    "calls something else": (
        "gradient = gradient[1:]",
        AlgorithmError,
        "all_reduce number 2 of the group 'world' differs: worker 0 called mean of 5 float64 elements, "
        "worker 1 called mean of 4 float64 elements",
        2.0,
    ),
    "is stopped": (
        "os.kill(os.getpid(), signal.SIGSTOP)",
        RunStuck,
        "nothing was heard of worker 1 for 2 s: its process is stopped or its machine is out of reach; "
        f"{WAITS}",
        PATIENCE + 3.0,
    ),
    "computes without end": (
        "await worker.compute(lambda _: time.sleep(60), x, nbytes=0.0)",
        RunStuck,
        rf"no worker got on for 2 s: {WAITS}; worker 1 computes a compute since 0[\d.]* s",
        PATIENCE + 3.0,
    ),
}


@pytest.mark.parametrize("fault", ROWS)
def test_a_rank(own: Any, tmp_path: Path, fault: str, ranks_left: Callable[[], list[int]]) -> None:
    line, kind, sentence, limit = ROWS[fault]
    noted = tmp_path / "noted"
    notes = f"open({str(noted)!r}, 'w').write(str(time.monotonic()))"
    with pytest.raises(kind) as caught:
        execute(own(BODY.format(notes=notes, line=line), 2), patience=PATIENCE)
    took = time.monotonic() - float(noted.read_text())
    assert re.fullmatch(sentence, str(caught.value))
    assert took < limit
    assert ranks_left() == []
