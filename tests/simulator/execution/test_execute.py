"""What an execution gives: the run, its timeline, its bytes; local processes and torchrun's; nothing left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.execution import execute
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.workload.task import Task
from traces import COMPUTE, TRANSFER, WAIT

QUADRATIC: dict[str, Any] = {"kind": "quadratic", "dimension": 6, "sigma2": 0.0}
ROOT = Path(__file__).parents[3]


def executed(scenario: Scenario) -> Run:
    run = execute(scenario)
    assert run is not None
    return run


class TestRun:
    def test_what_it_holds(self, make: Any, tmp_path: Path) -> None:
        told: list[float] = []
        scenario = make({"name": "local-sgd", "period": 2}, 3, QUADRATIC, iterations=20)
        run = execute(scenario, told.append)
        assert run is not None
        assert (run.clock, run.links, run.scenario) == ("wall", None, scenario)
        assert run.iterations == (20, 20, 20)
        assert run.models is not None
        assert run.models.shape == (3, 6)
        # One sample for every three reports, which come once in two iterations.
        assert len(run.samples) == 10
        assert run.samples.iteration[-1] == 20
        assert run.samples.time == sorted(run.samples.time)
        assert 0 < run.samples.time[-1] <= run.duration
        # Exact gradients and equal models after each average.
        assert run.samples.loss == sorted(run.samples.loss, reverse=True)
        assert run.samples.consensus[-1] == 0
        assert scenario.objective is not None
        average = torch.from_numpy(run.models).mean(0)
        assert run.samples.loss[-1] == pytest.approx(scenario.objective.loss(average), rel=1e-12)
        assert told == sorted(told)
        assert (told[0], told[-1]) == (0.0, 1.0)
        run.save(tmp_path / "run")
        assert Run.load(tmp_path / "run").summary() == run.summary()

    def test_bytes_of_all_reduces(self, make: Any) -> None:
        # Each of 2 averages of 6 float64 numbers costs 2 (n-1)/n times 48 bytes.
        run = executed(make({"name": "local-sgd", "period": 2}, 3, QUADRATIC))
        assert run.bytes_sent == pytest.approx((2 * 64, 2 * 64, 2 * 64))

    def test_bytes_of_exchanges(self, make: Any) -> None:
        # Four exchanges of 48 bytes with two neighbours.
        assert executed(make("d-psgd", 3, QUADRATIC)).bytes_sent == (384, 384, 384)

    def test_one_worker_sends_nothing(self, make: Any) -> None:
        run = executed(make("allreduce-sgd", 1, QUADRATIC))
        assert run.bytes_sent == (0,)
        assert {span.kind for span in run.timeline} == {COMPUTE}

    def test_buckets_of_the_timeline(self, make: Any) -> None:
        run = executed(make("allreduce-sgd", 2, QUADRATIC, iterations=2))
        own = [span for span in run.timeline if span.worker == 0 and span.kind != WAIT]
        by_iteration = [sorted(span.operation for span in own if span.iteration == k) for k in (1, 2)]
        assert by_iteration == [["all_reduce", "all_reduce", "gradient", "update"]] * 2

    def test_a_late_worker_is_named(self, own: Any, tmp_path: Path) -> None:
        """Rank 0 computes while its all-reduce waits for rank 1: overlap on the real backend.

        Rank 0 starts the all-reduce and a gradient of 0.6 s; rank 1 calls the all-reduce after 0.6 s of
        its own gradient. One after another that takes 1.2 s on rank 0, overlapped 0.6 s.
        """
        (tmp_path / "slow.py").write_text(
            textwrap.dedent("""
                import time
                from dataclasses import dataclass
                from simulator.workload.kinds import Quadratic

                @dataclass(frozen=True)
                class Slow:
                    seconds: float

                    def build(self, seed):
                        objective = Quadratic(dimension=6).build(seed)
                        oracle_of = objective.oracle
                        def oracle(*arguments):
                            made = oracle_of(*arguments)
                            gradient = made.gradient
                            def slow_gradient(x):
                                time.sleep(self.seconds)
                                return gradient(x)
                            made.gradient = slow_gradient
                            return made
                        objective.oracle = oracle
                        return objective
            """)
        )
        body = """
            x = worker.initial_model()
            if worker.rank == 0:
                average = worker.all_reduce(x)
                gradient = await worker.gradient(x)
            else:
                gradient = await worker.gradient(x)
                average = worker.all_reduce(x)
            worker.report(await worker.update(await average, gradient))
        """
        run = executed(own(body, 2, objective={"kind": "slow.py:Slow", "seconds": 0.6}))
        assert 0.6 <= run.duration < 1.1
        (waiting,) = [span for span in run.timeline if span.kind == WAIT and span.worker == 0]
        assert (waiting.operation, waiting.peer, waiting.nbytes) == ("all_reduce", 1, 0)
        assert waiting.end - waiting.start == pytest.approx(0.6, abs=0.3)
        transfers = [span for span in run.timeline if span.kind == TRANSFER]
        assert [(span.worker, span.peer, span.nbytes) for span in sorted(transfers)] == [
            (0, 1, 48),
            (1, 0, 48),
        ]
        assert not [span for span in run.timeline if span.kind == WAIT and span.worker == 1]

    def test_groups_of_some_workers(self, own: Any) -> None:
        """Workers 1 and 2 average with shares 0.4 and 0.2 of the global batch, divided by their sum."""
        body = """
            x = await worker.gradient(worker.initial_model())
            x.fill_(worker.rank + 1)
            total = await worker.all_reduce(x, "sum")
            largest = await worker.all_reduce(x, "max")
            mean = await worker.all_reduce(x, group="slow") if worker.rank else total
            x[0], x[1], x[2] = total[0], largest[0], mean[0]
            worker.report(x)
        """
        plan = 'Plan({"slow": (1, 2)})'
        run = executed(own(body, 3, plan=plan, batch=10, slowdowns={2: 2.0}))
        assert run.models is not None
        mean = 2 * (0.4 / 0.6) + 3 * (0.2 / 0.6)
        assert run.models[:, :3] == pytest.approx(np.array([[6, 3, 6], [6, 3, mean], [6, 3, mean]]))

    def test_a_task_of_ones_own(self, make: Any) -> None:
        torch.manual_seed(0)
        x = torch.randn(40, 3)
        task = Task(torch.nn.Linear(3, 1), (x, x.sum(1, keepdim=True)), torch.nn.functional.mse_loss)
        run = executed(make("allreduce-sgd", 2, task, batch=8, iterations=40))
        assert run.samples.loss[-1] < run.samples.loss[0] / 10


class TestScenariosTravel:
    def test_a_pickled_scenario_is_the_same(self, make: Any) -> None:
        scenario = make("d-psgd", 4, QUADRATIC, gossip={"graph": "complete"}, compare=["local-sgd"])
        assert scenario.mixing.shape == (4, 4)
        travelled = pickle.loads(pickle.dumps(scenario))
        assert travelled.resolved() == scenario.resolved()
        assert travelled.digest() == scenario.digest()
        assert (travelled.mixing == scenario.mixing).all()
        assert travelled.vary(workers=2).workers == 2

    def test_parts_that_were_read_travel(self, make: Any) -> None:
        scenario = make("d-psgd", 2, QUADRATIC, compare=[{"name": "local-sgd", "period": 3}]).variants()[1]
        travelled = pickle.loads(pickle.dumps(scenario))
        assert travelled.resolved() == scenario.resolved()
        assert travelled.algorithm == scenario.algorithm

    def test_shares_are_not_worked_out_again(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        scenario = make("local-sgd", 3, QUADRATIC, batch=10, slowdowns={2: 2.0})
        assert scenario.shares == (0.4, 0.4, 0.2)
        state = pickle.dumps(scenario)
        monkeypatch.setattr(type(scenario.cost), "gradient_seconds", None)
        assert pickle.loads(state).shares == (0.4, 0.4, 0.2)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from simulator.execution import execute
from simulator.scenario import Scenario

run = execute(Scenario({data!r}, folder=Path({folder!r})), lambda _: print("under way", flush=True))
print(run and run.models.tobytes().hex(), flush=True)
"""

STUCK = """
import time
from dataclasses import dataclass
from algorithms import Algorithm

@dataclass(frozen=True)
class Stuck(Algorithm):
    async def run(self, worker):
        assert worker.running
        time.sleep(600)
"""

SHARING = """
from dataclasses import dataclass
from algorithms import Algorithm

@dataclass(frozen=True)
class Sharing(Algorithm):
    requires = frozenset({"shared-memory"})

    async def run(self, worker):
        x = worker.initial_model()
        memory = worker.shared("model", x)
        while worker.running:
            await worker.gradient(x)
            await memory.add(x + 1)
        await worker.all_reduce(x)
        assert memory.writes == 4 * worker.world_size
        worker.report(await memory.read())
"""


ONE_MACHINE = {"builder": "two-level", "hosts": 1, "gpus-per-host": 2}


def described(algorithm: object) -> dict[str, Any]:
    """Return the keys of a scenario of two workers."""
    return {
        "name": "test",
        "cluster": {"topology": ONE_MACHINE, "device": "gtx-1080-ti"},
        "workload": {
            "cost": {"parameters": 100, "batch": 2, "gradient": "1 ms"},
            "objective": {"kind": "quadratic", "dimension": 6, "sigma2": 1.0},
        },
        "algorithm": algorithm,
        "step-size": 0.1,
        "budget": {"iterations": 4},
    }


def program(folder: Path, algorithm: object) -> list[str]:
    """Write a script without a main guard; return the command that runs it."""
    (folder / "stuck.py").write_text(STUCK)
    (folder / "sharing.py").write_text(SHARING)
    script = folder / "script.py"
    script.write_text(PROGRAM.format(root=str(ROOT), folder=str(folder), data=described(algorithm)))
    return [sys.executable, "-W", "error", str(script)]


class TestNothingIsLeft:
    def test_after_a_run(self, make: Any, ranks_left: Callable[[], list[int]]) -> None:
        executed(make("local-sgd", 2, QUADRATIC))
        assert ranks_left() == []

    @pytest.mark.parametrize(
        ("stop", "returncode"),
        [
            # Ctrl-C in a terminal reaches the whole group; a kill reaches the launcher alone.
            (lambda process: os.killpg(process.pid, signal.SIGINT), -signal.SIGINT),
            (lambda process: process.kill(), -signal.SIGKILL),
            (lambda process: process.terminate(), -signal.SIGTERM),
        ],
        ids=["interrupted", "killed", "terminated"],
    )
    def test_when_the_launcher_ends(
        self,
        tmp_path: Path,
        session_left: Callable[[int], list[int]],
        stop: Callable[[subprocess.Popen[str]], None],
        returncode: int,
    ) -> None:
        # The path of a socket must be short, and that of a test's own folder may not be.
        with tempfile.TemporaryDirectory() as temporary:
            self.end_launcher(tmp_path, Path(temporary), session_left, stop, returncode)

    def end_launcher(
        self,
        folder: Path,
        temporary: Path,
        session_left: Callable[[int], list[int]],
        stop: Callable[[subprocess.Popen[str]], None],
        returncode: int,
    ) -> None:
        process = subprocess.Popen(
            program(folder, "stuck.py:Stuck"),
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        assert list(temporary.glob("paceline-*")) != []
        stop(process)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == returncode
        # The launcher speaks of the interruption, the ranks do not.
        assert errors.count("KeyboardInterrupt") == (returncode == -signal.SIGINT)
        assert session_left(process.pid) == []
        assert list(temporary.glob("paceline-*")) == []


class TestTorchrun:
    PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

    @staticmethod
    def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }

    def outputs(self, folder: Path, algorithm: object, port: int) -> list[list[str]]:
        """Return what each of two ranks prints."""
        temporary = folder / "temporary"
        temporary.mkdir()
        changes = {"LOCAL_WORLD_SIZE": "2", "TMPDIR": str(temporary)}
        ranks = [
            subprocess.Popen(
                program(folder, algorithm),
                env={**os.environ, **self.environment(rank, 2, port), **changes},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate(timeout=60)[0].split("\n") for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
        assert list(temporary.iterdir()) == []
        return outputs

    def test_two_ranks(self, tmp_path: Path, free_port: Callable[[], int]) -> None:
        algorithm = {"name": "local-sgd", "period": 2}
        outputs = self.outputs(tmp_path, algorithm, free_port())
        # Rank 0 alone has the run and tells the progress.
        assert outputs[1] == ["None", ""]
        assert outputs[0][0] == "under way"
        models = executed(Scenario(described(algorithm))).models
        assert models is not None
        assert outputs[0][-2] == models.tobytes().hex()

    def test_shared_memory(self, tmp_path: Path, free_port: Callable[[], int]) -> None:
        outputs = self.outputs(tmp_path, "sharing.py:Sharing", free_port())
        # Four additions of ones by each of two ranks; nothing is lost where they take turns, if ever.
        models = np.frombuffer(bytes.fromhex(outputs[0][-2])).reshape(2, 6)
        assert (models[0] == models[1]).all()
        assert models.min() >= 4
        assert models.max() <= 8

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ranks_that_are_interrupted(
        self,
        tmp_path: Path,
        session_left: Callable[[int], list[int]],
        free_port: Callable[[], int],
        number: signal.Signals,
    ) -> None:
        port = free_port()
        command = program(tmp_path, "stuck.py:Stuck")
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **self.environment(rank, 2, port)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in range(2)
        ]
        assert ranks[0].stdout is not None
        assert ranks[0].stdout.readline() == "under way\n"
        for rank in ranks:
            rank.send_signal(number)
        for rank in ranks:
            rank.communicate(timeout=20)
        assert [rank.returncode for rank in ranks] == [-number, -number]
        assert [left for rank in ranks for left in session_left(rank.pid)] == []

    def test_shared_memory_on_two_machines(
        self, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The scenario thinks of one machine, torchrun has taken two.
        (tmp_path / "far.py").write_text(SHARING)
        cluster = {"topology": {**ONE_MACHINE, "gpus-per-host": 4}, "device": "gtx-1080-ti"}
        changes = {**self.environment(0, 4, 1), "LOCAL_WORLD_SIZE": "2"}
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BadInput) as caught:
            execute(make("far.py:Sharing", 4, QUADRATIC, folder=tmp_path, cluster=cluster))
        assert str(caught.value) == (
            "algorithm: far.py:Sharing needs all workers on one machine, because they share memory, but only "
            "2 of torchrun's 4 ranks are on this one"
        )

    def test_one_rank(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = executed(make("local-sgd", 1, QUADRATIC)).models
        for name, value in self.environment(0, 1, 1).items():
            monkeypatch.setenv(name, value)
        assert np.array_equal(executed(make("local-sgd", 1, QUADRATIC)).models, expected)

    def test_another_number_of_ranks(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.environment(0, 3, 1).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BadInput) as caught:
            execute(make("local-sgd", 2, QUADRATIC))
        assert str(caught.value) == (
            "cluster.workers: the scenario has 2 workers, but torchrun has started 3 ranks"
        )
