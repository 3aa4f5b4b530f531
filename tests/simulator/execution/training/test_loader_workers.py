"""A loader's workers end with their rank, also where a helper process has forked them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing, os, time
from simulator.execution.training.feed import EndsWithRank

def worker(begun):
    EndsWithRank(lambda number: begun.set())(0)
    time.sleep(300)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    begun = context.Event()
    context.Process(target=worker, args=(begun,)).start()
    begun.wait()
    os._exit(0)  # as if it were killed
"""


def test_when_a_rank_is_gone_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # The worker has the same output, so that this waits for its end, too.
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
