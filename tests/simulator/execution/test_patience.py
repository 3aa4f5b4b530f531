"""A rank that is stopped for a while, patience, full disks, and that many runs leave nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing.forkserver
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simulator.execution import execute
from simulator.execution.agreement import Table
from simulator.execution.memory import Memory, take_space
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario

QUADRATIC = {"kind": "quadratic", "dimension": 5}
ROUNDS = int(os.environ.get("PACELINE_ROUNDS", "4"))
"""Starts and ends in a row; `make rounds` takes a hundred."""


def test_a_rank_that_is_stopped_and_goes_on(own: Any) -> None:
    # A process of its own continues it after two seconds.
    body = """
        x = worker.initial_model()
        steps = 0
        while worker.running:
            gradient = await worker.gradient(x)
            steps += 1
            if worker.rank == 1 and steps == 3:
                os.system(f'(sleep 2; kill -CONT {os.getpid()}) & kill -STOP {os.getpid()}')
            x = await worker.update(x, await worker.all_reduce(gradient))
            worker.report(x)
    """
    run = execute(own(body, 2), patience=30.0)
    assert run is not None
    assert run.iterations == (4, 4)
    assert run.duration > 1.9


@pytest.mark.parametrize("patience", [0.0, -1.0, float("inf"), float("nan")])
def test_patience_must_be_some_time(make: Any, patience: float) -> None:
    with pytest.raises(BadInput) as caught:
        execute(make("local-sgd", 2, QUADRATIC), patience=patience)
    assert str(caught.value) == f"patience: must be above 0 s and finite, got {patience!r}"


class TestFullDisk:
    """A run that the disk does not take is refused in one sentence and leaves nothing half-written."""

    def run(self, make: Any) -> Run:
        run = execute(make("local-sgd", 2, QUADRATIC))
        assert run is not None
        return run

    def refusal(self, run: Run, folder: Path) -> str:
        before = sorted(folder.parent.iterdir())
        with pytest.raises(BadInput) as caught:
            run.save(folder)
        assert sorted(folder.parent.iterdir()) == before
        return str(caught.value)

    @pytest.mark.parametrize("name", ["write_text", "write_table"])
    def test_wherever_it_is_full(
        self, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        import pyarrow.parquet

        run = self.run(make)
        run.save(tmp_path / "run")
        kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
        places = {"write_text": Path, "write_table": pyarrow.parquet}
        monkeypatch.setattr(places[name], name, full)
        message = self.refusal(run, tmp_path / "run")
        assert message == f"{tmp_path / 'run'}: cannot be written: No space left on device"
        # What was there before is as it was.
        assert {path: path.read_bytes() for path in kept} == kept

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_real_one(self, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = self.run(make)
        target = tmp_path / "run"
        before = Path.write_text

        def to_the_full_device(path: Path, *arguments: Any, **more: Any) -> int:
            return before(Path("/dev/full"), *arguments, **more)

        monkeypatch.setattr(Path, "write_text", to_the_full_device)
        assert self.refusal(run, target) == f"{target}: cannot be written: No space left on device"

    SHARED = (
        "{} cannot hold {} bytes that ranks share: No space left on device; have more room there, or set "
        "TMPDIR to another folder"
    )

    def test_for_what_ranks_share(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is refused before any rank maps it, which would be killed by a signal as it writes there."""

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        starter: Any = None
        x = torch.ones(100)
        with pytest.raises(OSError) as caught:
            Memory(0, 2, tmp_path, starter).vector("model", x)
        assert str(caught.value) == self.SHARED.format(tmp_path, 64 + 400)
        with pytest.raises(OSError) as caught:
            Table(tmp_path / "calls", 0, 3, ["world"])
        assert str(caught.value) == self.SHARED.format(tmp_path, 2 * 3 * 4 * 8)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_for_a_real_file_that_ranks_share(self, small_disk: Path) -> None:
        with pytest.raises(OSError) as caught:
            take_space(small_disk / "file", 2**19)
        assert str(caught.value) == self.SHARED.format(small_disk, 2**19)
        take_space(small_disk / "file", 2**17)
        assert 512 * (small_disk / "file").stat().st_blocks == 2**17

    @pytest.mark.parametrize("left", [0, 4096, 12288])
    def test_a_disk_of_its_own(self, make: Any, small_disk: Path, left: int) -> None:
        """A file system that has so many bytes left, wherever in the run's files that ends."""
        run = self.run(make)
        target = small_disk / "run"
        _fill(small_disk / "others", left)
        assert self.refusal(run, target) == f"{target}: cannot be written: No space left on device"
        (small_disk / "others").unlink()
        run.save(target)
        assert Run.load(target).iterations == run.iterations


def _fill(path: Path, left: int) -> None:
    """Write a file until nothing more goes, and give so many bytes back."""
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - left))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Now and then something holds one of its files a little longer; what that is, was not found.
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", folder], stderr=subprocess.DEVNULL).returncode != 0:
            assert time.monotonic() < deadline, f"{folder} is in use"
            gc.collect()
            time.sleep(0.05)


def belongings() -> dict[str, Any]:
    """Return what this process and the helper that forks the ranks could leak."""
    helper = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return {
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "descriptors of the helper": len(os.listdir(f"/proc/{helper}/fd")),
        "temporary files": sorted(os.listdir(tempfile.gettempdir())),
    }


def shared_files() -> set[str]:
    """Return the files of shared memory, of all processes of this machine."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()


def test_runs_in_a_row_leak_nothing(
    own: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks_left: Callable[[], list[int]]
) -> None:
    """Good runs and failing ones in turns, with messages, shared memory and channels."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir="/tmp"))
    try:
        failing = own("os._exit(3)", 2)
        sharing = make("hogwild", 2, {**QUADRATIC, "sigma2": 1.0}, cluster=ONE_MACHINE)
        runs = [make("d-psgd", 2, QUADRATIC), failing, sharing, make("cocod-sgd", 2, QUADRATIC)]
        for _ in range(2):
            _round(runs)
        before, others = belongings(), shared_files()
        for _ in range(max(1, ROUNDS // len(runs))):
            _round(runs)
            assert ranks_left() == []
        assert belongings() == before
        # Files that other processes of this machine use for a while come and go.
        deadline = time.monotonic() + 10
        while (left := shared_files() - others) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == set()
    finally:
        shutil.rmtree(str(tempfile.tempdir))


ONE_MACHINE = {
    "topology": {"builder": "two-level", "hosts": 1, "gpus-per-host": 2},
    "device": "gtx-1080-ti",
}


def _round(scenarios: list[Scenario]) -> None:
    from simulator.faults import WorkerFailed

    for number, scenario in enumerate(scenarios):
        if number == 1:
            with pytest.raises(WorkerFailed):
                execute(scenario)
        else:
            assert execute(scenario) is not None
