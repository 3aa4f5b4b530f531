"""Ranks that somebody else has started: they meet, compare what they are, and end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.execution import launch
from simulator.execution.meeting import Facts, check_alike
from simulator.parts import BadInput

SCRIPT = """
import os
from pathlib import Path
os.environ.update(environment)
from simulator.execution import execute
from simulator.scenario import Scenario
if meddle:
    exec(meddle)
try:
    run = execute(Scenario.load(Path(scenario)), patience=patience)
    text = "None" if run is None else run.models.tobytes().hex()
except Exception as error:
    text = f"{type(error).__name__}: {error}"
Path(out).write_text(text)
"""

OWN = """
import os, signal, time
from dataclasses import dataclass
from algorithms import Algorithm

@dataclass(frozen=True)
class Own(Algorithm):
    async def run(self, worker):
        x = worker.initial_model()
        steps = 0
        while worker.running:
            gradient = await worker.gradient(x)
            steps += 1
            if worker.rank == 1 and steps == 3:
                LINE
            x = await worker.update(x, await worker.all_reduce(gradient))
            worker.report(x)
"""


HANGING = """
import sys, time
import torch.distributed as dist
from simulator.execution import meeting
sys.stderr = open(out + ".err", "w")
dist.destroy_process_group = lambda *_: time.sleep(600)
meeting._ANSWER = 4.0
"""

NOT_JUDGED = """
meeting.Judge.check = lambda _: None
meeting._VERDICT = 1.0
"""


class Ranks:
    """Ranks forked from the helper process, each with an environment like torchrun's or Slurm's."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.processes: dict[int, Any] = {}
        self.port = port
        (folder / "script.py").write_text(SCRIPT)

    def scenario(self, line: str = "pass", name: str = "scenario", workers: int = 2, **more: Any) -> Path:
        (self.folder / "own.py").write_text(OWN.replace("LINE", line))
        data = {
            "name": "test",
            "cluster": {"topology": {"builder": "switch", "gpus": workers}, "device": "gtx-1080-ti"},
            "workload": {
                "cost": {"parameters": 100, "batch": 2, "gradient": "1 ms"},
                "objective": {"kind": "quadratic", "dimension": 6},
            },
            "algorithm": "own.py:Own",
            "step-size": 0.1,
            "budget": {"iterations": 4},
            **more,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    def start(
        self, rank: int, scenario: Path, world_size: int = 2, patience: float = 60.0, meddle: str = ""
    ) -> None:
        launch.warm_up()
        context = multiprocessing.get_context("forkserver")
        environment = {
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": str(world_size),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODELIST": "localhost",
            "MASTER_PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
        }
        arguments = {
            "environment": environment,
            "scenario": str(scenario),
            "patience": patience,
            "meddle": meddle,
            "out": str(self.folder / f"out-{rank}"),
        }
        with launch._main_module(needed=False):
            process = context.Process(
                target=_run_path(), args=(str(self.folder / "script.py"), arguments), daemon=True
            )
            process.start()
        self.processes[rank] = process

    def outcomes(self, within: float = 60.0) -> dict[int, str]:
        deadline = time.monotonic() + within
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            assert not process.is_alive(), "a rank is left"
        return {
            rank: path.read_text()
            for rank in self.processes
            if (path := self.folder / f"out-{rank}").exists()
        }

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()
            process.close()


def _run_path() -> Callable[..., Any]:
    import runpy

    return runpy.run_path


@pytest.fixture
def ranks(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Ranks]:
    started = Ranks(tmp_path, free_port())
    yield started
    started.end()


class TestMeeting:
    def test_slurms_ranks_run(self, ranks: Ranks) -> None:
        scenario = ranks.scenario()
        for rank in (0, 1):
            ranks.start(rank, scenario)
        outcomes = ranks.outcomes()
        assert outcomes[1] == "None"
        assert len(bytes.fromhex(outcomes[0])) == 2 * 6 * 8

    def test_another_scenario_on_one_rank(self, ranks: Ranks) -> None:
        other = ranks.scenario(name="other", **{"step-size": 0.2})
        scenario = ranks.scenario()
        ranks.start(0, scenario)
        ranks.start(1, other)
        problem = "rank 1 runs another scenario than rank 0: step-size is 0.2 on rank 1 and 0.1 on rank 0"
        assert ranks.outcomes(20) == dict.fromkeys((0, 1), f"BadInput: {problem}")

    def test_another_version_on_one_rank(self, ranks: Ranks) -> None:
        scenario = ranks.scenario()
        ranks.start(0, scenario)
        ranks.start(1, scenario, meddle="import torch; torch.__version__ = '1.0'")
        found = set(ranks.outcomes(20).values())
        (sentence,) = found
        assert sentence.startswith("BadInput: rank 1 has torch 1.0, but rank 0 has 2.")

    @pytest.mark.parametrize("missing", [0, 1])
    def test_one_rank_does_not_come(self, ranks: Ranks, missing: int) -> None:
        scenario = ranks.scenario()
        began = time.monotonic()
        ranks.start(1 - missing, scenario, patience=2.0)
        (sentence,) = ranks.outcomes(60).values()
        if missing == 1:
            assert sentence == "RunStuck: rank 1 of 2 did not come within 2 s"
        else:
            where = f"localhost:{ranks.port}"
            assert sentence == f"RunStuck: rank 1 did not reach rank 0 at {where} within 2 s"
        assert time.monotonic() - began < 40


class TestEnding:
    """What one rank does ends all ranks, with one sentence."""

    def ended(self, ranks: Ranks, line: str, patience: float = 60.0) -> dict[int, str]:
        scenario = ranks.scenario(line)
        for rank in (0, 1):
            ranks.start(rank, scenario, patience=patience)
        return ranks.outcomes()

    def test_an_error(self, ranks: Ranks) -> None:
        outcomes = self.ended(ranks, "raise ValueError('out of luck')")
        (sentence,) = set(outcomes.values())
        assert sentence.startswith(
            "WorkerFailed: worker 1 failed in iteration 3: ValueError: out of luck (at"
        )
        assert sorted(outcomes) == [0, 1]

    @pytest.mark.parametrize("judged", [True, False])
    def test_an_error_where_the_backend_gives_no_group_back(self, ranks: Ranks, judged: bool) -> None:
        """As NCCL, which waits for the peers' calls; whether or not rank 0 says what the first cause is."""
        scenario = ranks.scenario("raise ValueError('out of luck')")
        began = time.monotonic()
        for rank in (0, 1):
            ranks.start(rank, scenario, meddle=HANGING if judged else HANGING + NOT_JUDGED)
        assert ranks.outcomes(30) == {}
        assert time.monotonic() - began < 20
        assert [process.exitcode for process in ranks.processes.values()] == [1, 1]
        told = [(ranks.folder / f"out-{rank}.err").read_text() for rank in (0, 1)]
        assert told[1].startswith("error: worker 1 failed in iteration 3: ValueError: out of luck (at ")
        assert (told[0] == told[1]) == judged

    def test_a_kill(self, ranks: Ranks) -> None:
        outcomes = self.ended(ranks, "os.kill(os.getpid(), signal.SIGKILL)")
        assert outcomes == {
            0: "WorkerFailed: worker 1 failed: its process has ended without a word, or its machine has"
        }

    def test_a_kill_of_rank_0(self, ranks: Ranks) -> None:
        under_way = ranks.folder / "under-way"
        scenario = ranks.scenario(f"open({str(under_way)!r}, 'w').close(); time.sleep(60)")
        for rank in (0, 1):
            ranks.start(rank, scenario)
        deadline = time.monotonic() + 60
        while not under_way.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert under_way.exists()
        ranks.processes[0].kill()
        assert ranks.outcomes(20) == {
            1: "WorkerFailed: worker 0 failed: its process has ended without a word"
        }

    def test_a_run_that_cannot_go_on(self, ranks: Ranks) -> None:
        outcomes = self.ended(ranks, "return")
        (sentence,) = set(outcomes.values())
        assert sentence.startswith(
            "AlgorithmError: the run cannot go on: worker 0 waits in all_reduce group 'world' for worker 1 "
        )

    def test_a_computation_without_end(self, ranks: Ranks) -> None:
        line = "await worker.compute(lambda _: time.sleep(60), x, nbytes=0.0)"
        outcomes = self.ended(ranks, line, patience=3.0)
        (sentence,) = set(outcomes.values())
        assert sentence.startswith("RunStuck: no worker got on for 3 s: ")
        assert "worker 0 waits in all_reduce group 'world' for worker 1 since " in sentence
        assert "worker 1 computes a compute since " in sentence

    def test_a_rank_that_is_stopped(self, ranks: Ranks) -> None:
        scenario = ranks.scenario("os.kill(os.getpid(), signal.SIGSTOP)")
        for rank in (0, 1):
            ranks.start(rank, scenario, patience=3.0)
        ranks.processes[0].join(30)
        sentence = (ranks.folder / "out-0").read_text()
        assert sentence.startswith(
            "RunStuck: nothing was heard of worker 1 for 3 s: its process is stopped or its machine is out "
            "of reach; worker 0 waits in all_reduce group 'world' for worker 1 since "
        )
        # It ends as soon as it goes on.
        os.kill(ranks.processes[1].pid, signal.SIGCONT)
        assert len(ranks.outcomes(30)) == 2

    def test_a_crash_of_the_scenario(self, ranks: Ranks) -> None:
        cluster = {
            "topology": {"builder": "switch", "gpus": 2},
            "device": "gtx-1080-ti",
            "stragglers": [{"kind": "crash", "workers": [1], "at": "0.25 s"}],
        }
        execution = {"compute": "emulated", "stragglers": "injected"}
        cost = {"parameters": 100, "batch": 2, "gradient": "100 ms"}
        objective = {"kind": "quadratic", "dimension": 6}
        workload = {"cost": cost, "objective": objective}
        scenario = ranks.scenario(cluster=cluster, execution=execution, workload=workload)
        for rank in (0, 1):
            ranks.start(rank, scenario)
        sentence = "worker 1 failed in iteration 3: it crashed at 0.25 s, as the scenario says"
        assert ranks.outcomes() == dict.fromkeys((0, 1), f"WorkerFailed: {sentence}")

    def test_collectives_of_different_lengths(self, ranks: Ranks) -> None:
        """On several machines the first of each group is compared; on one, or if asked for, every one."""
        sentence = (
            "AlgorithmError: all_reduce number {} of the group 'world' differs: worker 0 called mean of 6 "
            "float64 elements, worker 1 called mean of 5 float64 elements"
        )
        body = "x = worker.initial_model(); await worker.all_reduce(x[worker.rank:])"
        source = OWN.replace("        x = worker.initial_model()\n", f"        {body}\n")
        scenario = ranks.scenario()
        (ranks.folder / "own.py").write_text(source)
        for rank in (0, 1):
            ranks.start(rank, scenario)
        assert ranks.outcomes(20) == dict.fromkeys((0, 1), sentence.format(0))

    def test_every_collective_is_compared_on_several_machines_if_asked_for(self, ranks: Ranks) -> None:
        scenario = ranks.scenario("gradient = gradient[1:]")
        asked = (
            "import torch.distributed as dist; os.environ['TORCH_DISTRIBUTED_DEBUG'] = 'DETAIL'; "
            "dist.set_debug_level_from_env()"  # it is read when torch is imported
        )
        for rank in (0, 1):
            ranks.start(rank, scenario, meddle=asked)
        (sentence,) = set(ranks.outcomes(20).values())
        assert sentence == (
            "AlgorithmError: all_reduce number 2 of the group 'world' differs: worker 0 called mean of 6 "
            "float64 elements, worker 1 called mean of 5 float64 elements"
        )

    def test_collectives_of_different_lengths_on_one_machine(self, ranks: Ranks) -> None:
        scenario = ranks.scenario("gradient = gradient[1:]")
        one_machine = "os.environ['SLURM_STEP_TASKS_PER_NODE'] = '2'"
        for rank in (0, 1):
            ranks.start(rank, scenario, meddle=one_machine)
        (sentence,) = set(ranks.outcomes(20).values())
        assert sentence == (
            "AlgorithmError: all_reduce number 2 of the group 'world' differs: worker 0 called mean of 6 "
            "float64 elements, worker 1 called mean of 5 float64 elements"
        )


class TestAlike:
    FACTS = Facts(
        "aa", {"seed": 1, "cluster": {"links": [1, 2]}}, (), {"torch": "2", "Python": "3.11"}, "a", "cpu", ""
    )

    def problem(self, other: Facts) -> str:
        with pytest.raises(BadInput) as caught:
            check_alike([self.FACTS, self.FACTS, other])
        return str(caught.value)

    def test_a_key_that_differs(self) -> None:
        from dataclasses import replace

        other = replace(self.FACTS, digest="bb", scenario={"seed": 1, "cluster": {"links": [1, 3]}})
        assert self.problem(other) == (
            "rank 2 runs another scenario than rank 0: cluster.links.1 is 3 on rank 2 and 2 on rank 0"
        )
        other = replace(self.FACTS, digest="bb", scenario={"cluster": {"links": [1, 2]}})
        assert self.problem(other) == (
            "rank 2 runs another scenario than rank 0: seed is missing on rank 2 and 1 on rank 0"
        )

    def test_a_file_that_differs(self) -> None:
        from dataclasses import replace

        first = replace(self.FACTS, files=("own.py",))
        with pytest.raises(BadInput) as caught:
            check_alike([first, replace(first, digest="bb")])
        assert str(caught.value) == (
            "rank 1 runs another scenario than rank 0: the files that it names differ (own.py)"
        )

    def test_a_version_that_differs(self) -> None:
        from dataclasses import replace

        other = replace(self.FACTS, versions={"torch": "2", "Python": "3.12"})
        assert self.problem(other) == "rank 2 has Python 3.12, but rank 0 has 3.11"


NCCL_ON_GLOO = """
from simulator.execution import launch
from simulator.execution.staging import NcclCommunicator, StagedCommunicator
from simulator.plan import planned

def carrying(gloo, scenario, device, backend):
    staged = StagedCommunicator(gloo, device, pinned=False)
    carrier = NcclCommunicator(staged, scenario.workers, planned(scenario), device, backend="gloo")
    gloo.keep(carrier.groups)
    return carrier

launch.carrying = carrying
"""


class TestBackends:
    """The code of GPUs on tensors of the CPU: groups of their own, one thread of collectives, staging."""

    def test_calls_are_compared_on_several_machines(self, ranks: Ranks) -> None:
        body = "x = worker.initial_model(); await worker.all_reduce(x[worker.rank:])"
        scenario = ranks.scenario()
        source = OWN.replace("        x = worker.initial_model()\n", f"        {body}\n")
        (ranks.folder / "own.py").write_text(source)
        for rank in (0, 1):
            ranks.start(rank, scenario, meddle=NCCL_ON_GLOO)
        sentence = (
            "AlgorithmError: all_reduce number 0 of the group 'world' differs: worker 0 called mean of 6 "
            "float64 elements, worker 1 called mean of 5 float64 elements"
        )
        assert ranks.outcomes(20) == dict.fromkeys((0, 1), sentence)

    @pytest.mark.parametrize("algorithm", ["allreduce-sgd", "d-psgd", "ad-psgd", "signsgd"])
    def test_collectives_of_nccl_and_channels_of_gloo(self, ranks: Ranks, algorithm: str) -> None:
        from simulator.execution import execute
        from simulator.scenario import Scenario

        path = ranks.scenario(algorithm=algorithm)
        for rank in (0, 1):
            ranks.start(rank, path, meddle=NCCL_ON_GLOO)
        outcomes = ranks.outcomes()
        assert outcomes[1] == "None"
        run = execute(Scenario.load(path))
        assert run is not None
        assert run.models is not None
        if algorithm != "ad-psgd":
            assert outcomes[0] == run.models.tobytes().hex()
