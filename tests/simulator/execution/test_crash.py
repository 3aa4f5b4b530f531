"""Crashes for real: processes that stop for a while or end, with the meaning that they have in simulation."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.engine.simulate import simulate
from simulator.execution import execute
from simulator.execution.pace import Pacer
from simulator.faults import WorkerFailed
from simulator.parts import BadInput
from simulator.scenario import Scenario
from traces import COMPUTE

ROOT = Path(__file__).parents[3]
QUADRATIC = {"kind": "quadratic", "dimension": 6}
SETTINGS = {"compute": "emulated", "stragglers": "injected"}
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux wakes a process that has stopped itself"
)


def crash(at: str, outage: str | None = None, workers: tuple[int, ...] = (1,)) -> dict[str, Any]:
    lasts = {} if outage is None else {"outage": outage}
    return {"kind": "crash", "at": at, "workers": list(workers), **lasts}


def crashing(make: Any, *stragglers: dict[str, Any], algorithm: Any = "local-sgd", **more: Any) -> Scenario:
    """Eight gradients of 100 ms on two workers."""
    cluster = {
        "topology": {"builder": "switch", "gpus": 2},
        "device": "gtx-1080-ti",
        "transport": "ideal",
        "stragglers": list(stragglers),
    }
    more = {"execution": SETTINGS, "iterations": 8, **more}
    made: Scenario = make(algorithm, 2, QUADRATIC, cluster=cluster, **more)
    return made.vary({"workload.cost.gradient": "100 ms"})


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


class TestPacing:
    """When computations end that an outage interrupts."""

    def test_emulated_ones_end_when_they_do_in_simulation(self, make: Any) -> None:
        bursts = {"kind": "bursts", "fast": "0.3 s", "slow": "0.2 s", "slowdown": 3.0}
        scenario = crashing(
            make, bursts, crash("0.25 s", "0.5 s"), crash("0.6 s", "1 s"), algorithm={"name": "local-sgd"}
        )
        spans = [s for s in simulate(scenario).timeline if s.worker == 1 and s.operation == "gradient"]
        clock = Clock()
        pacer = Pacer(scenario, 1, clock, clock.sleep)
        for span in spans:
            clock.at = pacer.start + span.start
            course = pacer.gradient()
            turn = course.begin()
            course.hold(turn)
            course.end(turn)
            assert clock() - pacer.start == pytest.approx(span.end, rel=1e-9)

    def test_measured_ones_do_not_count_the_time_in_which_the_process_was_stopped(self, make: Any) -> None:
        slow = {"kind": "persistent", "workers": [1], "slowdown": 2.0}
        execution = {"stragglers": "injected"}
        scenario = crashing(make, slow, crash("0.1 s", "5 s"), execution=execution)
        clock = Clock()
        pacer = Pacer(scenario, 1, clock, clock.sleep)
        begin, course = clock(), pacer.gradient()
        turn = course.begin()
        clock.sleep(0.2 + 5.0)  # it was stopped for five of them
        waited = course.hold(turn)
        assert clock() - begin == pytest.approx(2 * 0.2 + 5.0)
        assert waited == pytest.approx(0.2)


@linux
class TestOutages:
    def test_the_process_really_stops_and_is_woken(self) -> None:
        code = (
            "import time; from simulator.execution.crash import stop; print('up', flush=True); "
            "time.sleep(0.2); began = time.monotonic(); stop(began + 1.0); print(time.monotonic() - began)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "up\n"
            time.sleep(0.7)
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state == "T"
            assert 1.0 <= float(process.stdout.readline()) < 1.5
        assert process.returncode == 0

    @pytest.mark.parametrize("algorithm", ["local-sgd", {"name": "allreduce-sgd", "overlap": True}, "d-psgd"])
    def test_the_same_times_and_bits_as_in_simulation(self, make: Any, algorithm: Any) -> None:
        scenario = crashing(make, crash("0.35 s", "0.8 s"), algorithm=algorithm)
        run, simulated = execute(scenario), simulate(scenario)
        assert run is not None
        assert (run.models == simulated.models).all()
        assert run.duration >= 8 * 0.1 + 0.8
        assert run.duration == pytest.approx(simulated.duration, abs=0.25)
        for worker in (0, 1):
            lengths = [
                [s.end - s.start for s in one.timeline if s.worker == worker and s.operation == "gradient"]
                for one in (run, simulated)
            ]
            assert max(lengths[0]) == pytest.approx(max(lengths[1]), abs=0.15)
        assert {s.kind for s in run.timeline if s.operation == "gradient"} == {COMPUTE}

    def test_longer_than_the_patience(self, make: Any) -> None:
        with pytest.raises(BadInput) as caught:
            execute(crashing(make, crash("0.1 s", "2 s")), patience=2.0)
        assert str(caught.value) == (
            "cluster.stragglers.0.outage: a worker that says nothing for 2 s is given up; have 3 s of "
            "patience"
        )

    def test_not_asked_for(self, make: Any) -> None:
        run = execute(crashing(make, crash("0 s"), crash("0.1 s", "60 s"), execution={}))
        assert run is not None
        assert run.iterations == (8, 8)

    def test_outages_that_overlap_are_one(self, make: Any) -> None:
        several = (crash("0.1 s", "1 s"), crash("1 s", "1.1 s"))
        with pytest.raises(BadInput, match=r"cluster\.stragglers\.0\.outage: .* have 3 s of patience"):
            execute(crashing(make, *several), patience=2.9)


class TestCrashesForGood:
    def test_the_same_sentence_as_in_simulation(self, make: Any, ranks_left: Callable[[], list[int]]) -> None:
        scenario = crashing(make, crash("0.35 s"))
        said = []
        for run in (simulate, execute):
            began = time.monotonic()
            with pytest.raises(WorkerFailed) as caught:
                run(scenario)
            said.append(str(caught.value))
            assert time.monotonic() - began < 20
        assert said == ["worker 1 failed in iteration 4: it crashed at 0.35 s, as the scenario says"] * 2
        assert ranks_left() == []

    @linux
    def test_in_an_outage(self, make: Any, ranks_left: Callable[[], list[int]]) -> None:
        with pytest.raises(
            WorkerFailed, match=r"^worker 1 failed .* it crashed at 0\.4 s, as the scenario says$"
        ):
            execute(crashing(make, crash("0.2 s", "60 s"), crash("0.4 s")))
        assert ranks_left() == []

    def test_of_a_worker_whose_work_is_done(self, make: Any, own: Any) -> None:
        body = """
            x = worker.initial_model()
            while worker.running and (worker.rank == 0 or worker.now < 0.05):
                x = await worker.update(x, await worker.gradient(x))
            worker.report(x)
        """
        cluster = crashing(make, crash("0.4 s")).resolved()["cluster"]
        scenario = own(body, 2, cluster=cluster, execution=SETTINGS, iterations=8)
        run = execute(scenario.vary({"workload.cost.gradient": "100 ms"}))
        assert run is not None
        assert run.iterations == (8, 1)
        assert run.duration > 0.8

    def test_after_the_end_of_the_work(self, make: Any) -> None:
        run = execute(crashing(make, crash("30 s"), iterations=2))
        assert run is not None
        assert run.duration < 10


class TestLinks:
    @pytest.mark.parametrize("kind", ["slow-link", "link-failure"])
    def test_this_machines_cannot_be_slowed_or_cut(self, make: Any, kind: str) -> None:
        link = {"kind": kind, "between": ["gpu0", "switch"], "start": "1 s", "end": "2 s"}
        with pytest.raises(BadInput) as caught:
            execute(crashing(make, link))
        assert str(caught.value) == (
            "cluster.stragglers.0: the network of this machine cannot be slowed or cut; emulate the "
            "scenario's (paceline emulate), or leave its stragglers out (execution.stragglers: none)"
        )
        assert execute(crashing(make, link, execution={}, iterations=1)) is not None


STOPPED = """
import sys
from simulator.execution import execute
from simulator.scenario import Scenario

if __name__ == "__main__":
    execute(Scenario.load(sys.argv[1]), lambda _: print("under way", flush=True))
"""
STOPPED_SCENARIO = """
name: stopped
cluster: {topology: {builder: switch, gpus: 2}, device: ideal}
workload:
  cost: {parameters: 10, batch: 1, gradient: 1 ms}
  objective: {kind: quadratic, dimension: 10}
algorithm: stopped.py:Stopped
step-size: 0.1
budget: {iterations: 2}
"""
STOPPED_ALGORITHM = """
import os, signal, time
from dataclasses import dataclass
from algorithms import Algorithm

@dataclass(frozen=True)
class Stopped(Algorithm):
    async def run(self, worker):
        x = worker.initial_model()
        stops = worker.rank == 1
        while worker.running:
            await worker.all_reduce(await worker.gradient(x))
            if stops:
                # Once: in the moments between its launcher's end and its own nobody could wake it again.
                stops = False
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1)
"""


@linux
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_rank_does_not_outlive_its_launcher(
    tmp_path: Path, ending: signal.Signals, session_left: Callable[[int], list[int]]
) -> None:
    # The path of a socket below it must not be long.
    with tempfile.TemporaryDirectory() as temporary:
        check_nothing_is_left(tmp_path, Path(temporary), ending, session_left)


def is_one_stopped(session: int) -> bool:
    """Return whether a process of a session stands still (state T)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own_session, *_ = stat.read_text().rpartition(")")[2].split()
            if (state, int(own_session)) == ("T", session):
                return True
    return False


def check_nothing_is_left(
    tmp_path: Path, temporary: Path, ending: signal.Signals, session_left: Callable[[int], list[int]]
) -> None:
    for name, text in (
        ("main.py", STOPPED),
        ("stopped.yaml", STOPPED_SCENARIO),
        ("stopped.py", STOPPED_ALGORITHM),
    ):
        (tmp_path / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py", tmp_path / "stopped.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "under way\n"
        deadline = time.monotonic() + 20
        while not (stopped := is_one_stopped(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stopped, "no rank has stopped itself"
        process.send_signal(ending)
        assert process.wait(20) == -ending
    assert session_left(process.pid) == []
    assert [entry for entry in temporary.iterdir() if entry.name.startswith("paceline-")] == []
