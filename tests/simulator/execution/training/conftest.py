"""Ranks that run a script: forked from the helper, which has imported torch already."""

from __future__ import annotations

import multiprocessing
import runpy
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simulator.execution import launch

Ranks = Callable[..., list[str]]

DRIVER = """
import contextlib, os, pathlib, runpy, sys, traceback
os.environ.update(PLACE)
import torch
# As under torchrun, whichever helper process this rank was forked from.
torch.set_num_threads(1)
sys.argv = ARGUMENTS
with pathlib.Path(OUTPUT).open("w") as file, contextlib.redirect_stdout(file):
    try:
        runpy.run_path(ARGUMENTS[0], run_name="__main__")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
        if not EXPECTED:
            traceback.print_exc()
            sys.exit(1)
sys.stdout.flush()
# A rank whose peer has failed does not wait for it.
os._exit(0)
"""


@pytest.fixture
def ranks(tmp_path: Path, free_port: Callable[[], int]) -> Ranks:
    """Return a function that runs a script (its path, or its lines) on ranks and gives what each prints."""

    def run(
        script: Path | str, arguments: Sequence[object] = (), count: int = 2, fails: bool = False
    ) -> list[str]:
        folder = tmp_path / "ranks"
        folder.mkdir(exist_ok=True)
        if isinstance(script, str):
            path = folder / "script.py"
            path.write_text(textwrap.dedent(script))
        else:
            path = script
        driver = folder / "driver.py"
        driver.write_text(DRIVER)
        launch.warm_up()
        context = multiprocessing.get_context("forkserver")
        port = free_port()
        processes = []
        with launch._main_module(needed=False):
            for rank in range(count):
                place = {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                names = {
                    "PLACE": place,
                    "ARGUMENTS": [str(path), *map(str, arguments)],
                    "OUTPUT": str(folder / f"{rank}.txt"),
                    "EXPECTED": fails,
                }
                processes.append(context.Process(target=runpy.run_path, args=(str(driver), names)))
                processes[-1].start()
        for process in processes:
            process.join(60)
            process.kill()
            process.join()
        outputs = [(folder / f"{rank}.txt").read_text() for rank in range(count)]
        assert [process.exitcode for process in processes] == [0] * count, outputs
        return outputs

    return run
