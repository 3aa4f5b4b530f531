"""What breaks a run: broken rules of the seam, errors on one rank, killed processes, deadlocks."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.execution import execute
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.parts import BadInput
from simulator.scenario import Scenario

QUADRATIC = {"kind": "quadratic", "dimension": 5}
GRAPH = 'frozenset({"graph"})'
BOTH_WAYS = 'Plan({}, tuple((i, 1 - i, name) for i in (0, 1) for name in ("a", "b")))'
WHERE = r"since 0(\.\d+)? s at own_\w+\.py:\d+"


def broken_rule(scenario: Scenario) -> str:
    with pytest.raises(AlgorithmError) as caught:
        execute(scenario)
    return str(caught.value)


class TestFailingRanks:
    """One rank fails while the others wait for it; all end, and the first cause is shown."""

    def fault(self, own: Any, line: str, workers: int = 3) -> Scenario:
        body = f"""
            x = worker.initial_model()
            steps = 0
            while worker.running:
                gradient = await worker.gradient(x)
                steps += 1
                if worker.rank == 1 and steps == 3:
                    {line}
                x = await worker.update(x, await worker.all_reduce(gradient))
                worker.report(x)
        """
        scenario: Scenario = own(body, workers)
        return scenario

    def test_an_error_on_one_rank(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, 'raise ValueError("out of luck")'))
        assert str(caught.value).startswith(
            "worker 1 failed in iteration 3: ValueError: out of luck (at own_"
        )
        assert (caught.value.rank, caught.value.iteration) == (1, 3)
        assert caught.value.cause.startswith("ValueError: out of luck (at own_")
        assert any("in run" in note and "out of luck" in note for note in caught.value.__notes__)
        assert ranks_left() == []

    def test_an_error_in_a_computation(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, "await worker.gradient(x[1:])"))
        assert str(caught.value).startswith(
            "worker 1 failed in iteration 4: ValueError: quadratic of dimension 5: a model is a vector of "
            "5 torch.float64 values, got shape (4,) of torch.float64 (at own_"
        )
        assert ranks_left() == []

    def test_a_killed_rank(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, "os.kill(os.getpid(), signal.SIGKILL)"))
        assert str(caught.value) == "worker 1 failed: its process was killed by SIGKILL"
        assert ranks_left() == []

    def test_a_rank_that_leaves_without_a_word(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, "os._exit(7)"))
        assert str(caught.value) == "worker 1 failed: its process ended with exit code 7 and without a word"
        assert ranks_left() == []

    def test_an_algorithm_that_ends_the_interpreter(self, own: Any) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, "sys.exit('enough')"))
        assert str(caught.value).startswith("worker 1 failed: SystemExit: enough (at own_")

    @pytest.mark.parametrize(
        "error", ["ConnectionResetError(104, 'Connection reset by peer')", "BrokenPipeError"]
    )
    def test_a_lost_connection_is_not_the_cause_where_another_rank_explains_it(
        self, own: Any, error: str, ranks_left: Callable[[], list[int]]
    ) -> None:
        """The rank that lost its connection tells first; the one that failed tells a second later."""
        body = f"""
            x = await worker.gradient(worker.initial_model())
            if worker.rank == 0:
                raise {error}
            if worker.rank == 1:
                time.sleep(1)
                raise ValueError("out of luck")
            await worker.all_reduce(x)
        """
        with pytest.raises(WorkerFailed) as caught:
            execute(own(body, 3))
        assert str(caught.value).startswith("worker 1 failed in iteration 1: ValueError: out of luck")
        assert ranks_left() == []

    def test_a_lost_connection_that_nobody_explains(self, own: Any) -> None:
        with pytest.raises(WorkerFailed) as caught:
            execute(self.fault(own, "raise ConnectionResetError('by the data server')"))
        assert str(caught.value).startswith(
            "worker 1 failed in iteration 3: ConnectionResetError: by the data server (at own_"
        )

    def test_a_rank_killed_while_the_ranks_meet(
        self, own: Any, tmp_path: Path, ranks_left: Callable[[], list[int]]
    ) -> None:
        """The first to make its process groups is killed, or the first two; the others lose connections."""
        marker = tmp_path / "killed"
        ends = f"(open({str(marker)!r}, 'w').close(), os.kill(os.getpid(), signal.SIGKILL))"
        in_a_rank = "sys.modules['multiprocessing'].parent_process()"
        first = f"{in_a_rank} and not os.path.exists({str(marker)!r})"
        plan = f"{first} and {ends} or super().plan(world_size, graph)"
        body = "worker.report(await worker.all_reduce(await worker.gradient(worker.initial_model())))"
        with pytest.raises(WorkerFailed) as caught:
            execute(own(body, 3, plan=plan))
        assert re.fullmatch(r"worker \d failed: its process was killed by SIGKILL", str(caught.value))
        assert ranks_left() == []

    def test_an_error_in_a_task_that_nobody_awaits(
        self, own: Any, ranks_left: Callable[[], list[int]]
    ) -> None:
        body = """
            async def task():
                await worker.gradient(worker.initial_model())
                if worker.rank == 1:
                    raise ValueError("out of luck")
                await worker.recv(worker.rank, "self")
            task = worker.spawn(task())
            await worker.all_reduce(worker.initial_model())
            await worker.recv(worker.rank, "self")
        """
        plan = 'Plan({}, tuple((i, i, "self") for i in range(3)))'
        with pytest.raises(WorkerFailed) as caught:
            execute(own(body, 3, plan=plan))
        assert str(caught.value).startswith(
            "worker 1 failed in iteration 1: ValueError: out of luck (at own_"
        )
        assert ranks_left() == []

    def test_a_later_run_is_not_harmed(self, own: Any, make: Any) -> None:
        with pytest.raises(WorkerFailed):
            execute(self.fault(own, "raise ValueError", workers=2))
        run = execute(make("local-sgd", 2, QUADRATIC))
        assert run is not None
        assert run.iterations == (4, 4)

    def test_the_launcher_is_interrupted(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        def interrupt(_: float) -> None:
            assert len(ranks_left()) == 3
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            execute(self.fault(own, "time.sleep(60)"), interrupt)
        assert ranks_left() == []

    def test_the_error_survives_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(WorkerFailed(1, 3, "ValueError: out of luck")))
        assert str(error) == "worker 1 failed in iteration 3: ValueError: out of luck"


class TestBrokenRules:
    """Every worker breaks the rule; the message is that of the lowest rank."""

    def test_a_handle_that_nobody_awaited(self, own: Any, ranks_left: Callable[[], list[int]]) -> None:
        body = """
            x = worker.initial_model()
            while worker.running:
                forgotten = worker.all_reduce(x)
                x = await worker.update(x, await worker.gradient(x))
                worker.report(x)
        """
        assert broken_rule(own(body, 2)) == (
            "worker 0 ended, but nobody awaited the all_reduce that it started in iteration 0"
        )
        assert ranks_left() == []

    def test_an_algorithm_that_awaits_nothing(self, own: Any) -> None:
        body = """
            while worker.running:
                worker.gradient(worker.initial_model())
        """
        assert broken_rule(own(body, 2)) == (
            "worker 0 ended, but nobody awaited the gradient that it started in iteration 1"
        )

    def test_a_bucket_that_nobody_awaited(self, own: Any) -> None:
        body = """
            while worker.running:
                first, second = worker.gradient_buckets(worker.initial_model())
                await first
        """
        assert broken_rule(own(body, 1)) == (
            "worker 0 ended, but nobody awaited the gradient that it started in iteration 1"
        )

    def test_no_progress(self, own: Any) -> None:
        assert broken_rule(own("while worker.running: pass", 2)) == (
            "worker 0 asked 1000 times in a row whether it is running without starting a gradient in "
            "between; its algorithm makes no progress"
        )

    def test_no_gradient(self, own: Any) -> None:
        assert broken_rule(own("pass", 2)) == "worker 0 ended without computing a gradient"

    def test_no_report(self, own: Any) -> None:
        body = "await worker.gradient(worker.initial_model())"
        assert broken_rule(own(body, 2)) == "worker 0 ended without reporting a model"

    def test_a_run_that_is_no_coroutine(self, own: Any) -> None:
        assert broken_rule(own("pass", 2, kind="def")) == (
            "Own.run must be a coroutine (async def), but it returned None"
        )

    def test_a_run_that_yields(self, own: Any) -> None:
        assert broken_rule(own("yield", 2, kind="def")) == (
            "Own.run must be a coroutine (async def), but it returned an object of type generator"
        )

    def test_awaiting_something_else(self, own: Any) -> None:
        assert broken_rule(own("await asyncio.sleep(0)", 2)) == (
            "worker 0 awaited something that is not an operation of its worker"
        )

    def test_an_undeclared_group(self, own: Any) -> None:
        body = 'await worker.all_reduce(worker.initial_model(), group="row")'
        plan = 'Plan({"world": (0, 1), "left": (0,)})'
        assert broken_rule(own(body, 2, plan=plan)) == (
            "worker 0 used the group 'row', which its algorithm's plan does not declare; "
            "declared are 'world', 'left'"
        )

    def test_a_group_of_others(self, own: Any) -> None:
        body = 'await worker.all_reduce(worker.initial_model(), group="right")'
        assert broken_rule(own(body, 3, plan='Plan({"right": (1, 2)})')) == (
            "worker 0 is not in the group 'right', which has the workers 1, 2"
        )

    def test_an_exchange_without_a_graph(self, own: Any) -> None:
        assert broken_rule(own("await worker.exchange(worker.initial_model())", 2)) == (
            "worker 0 called exchange, but Own does not require a communication graph; "
            "add 'graph' to its requires"
        )

    @pytest.mark.parametrize(
        ("call", "source", "destination"),
        [("send(x, 1 - worker.rank, 'c')", 0, 1), ("recv(1 - worker.rank, 'c')", 1, 0)],
    )
    def test_a_message_of_an_undeclared_channel(
        self, own: Any, call: str, source: int, destination: int
    ) -> None:
        body = f"""
            x = worker.initial_model()
            await worker.{call}
        """
        assert broken_rule(own(body, 2, plan=BOTH_WAYS)) == (
            f"worker 0 used the channel 'c' from worker {source} to worker {destination}, "
            "which its algorithm's plan does not declare"
        )

    def test_parts_of_different_lengths(self, own: Any) -> None:
        body = """
            x = worker.initial_model()
            await worker.all_to_all([x, x[1:]])
        """
        assert broken_rule(own(body, 2)) == (
            "worker 0 called all_to_all of the group 'world' with parts of 5, 4 elements; "
            "it takes 2 parts of one length"
        )

    def test_shared_memory_that_was_not_required(self, own: Any) -> None:
        assert broken_rule(own('worker.shared("m", worker.initial_model())', 2)) == (
            "worker 0 called shared, but Own does not require shared memory; "
            "add 'shared-memory' to its requires"
        )

    def test_an_undeclared_channel(self, own: Any) -> None:
        body = "await worker.exchange(worker.initial_model())"
        plan = 'Plan({}, ((0, 1, "exchange"),))'
        assert broken_rule(own(body, 2, requires=GRAPH, plan=plan)) == (
            "worker 0 used the channel 'exchange' from worker 1 to worker 0, "
            "which its algorithm's plan does not declare"
        )


class TestRunsThatCannotGoOn:
    def test_a_peer_has_ended(self, own: Any, tmp_path: Path, ranks_left: Callable[[], list[int]]) -> None:
        body = """
            x = await worker.gradient(worker.initial_model())
            worker.report(x)
            if worker.rank != 1:
                await worker.all_reduce(x)
        """
        scenario = own(body, 3)
        wait = r"waits in all_reduce group 'world' for worker 1 since 0(\.\d+)? s at own_\w+\.py:\d+"
        message = broken_rule(scenario)
        assert re.fullmatch(f"the run cannot go on: worker 0 {wait}; worker 2 {wait}", message)
        (line,) = set(re.findall(r"own_\w+\.py:(\d+)", message))
        source = next(tmp_path.glob("own_*.py")).read_text().splitlines()
        assert source[int(line) - 1].strip() == "await worker.all_reduce(x)"
        assert ranks_left() == []

    def test_ranks_wait_for_each_other(self, own: Any) -> None:
        body = """
            x = await worker.gradient(worker.initial_model())
            if worker.rank == 0:
                await worker.exchange(x)
            await worker.all_reduce(x)
        """
        settings = {"requires": GRAPH, "plan": 'Plan({}, ((0, 1, "exchange"), (1, 0, "exchange")))'}
        where = r"since 0(\.\d+)? s at own_\w+\.py:\d+"
        assert re.fullmatch(
            f"the run cannot go on: worker 0 waits in exchange for worker 1 {where}; "
            f"worker 1 waits in all_reduce group 'world' for worker 0 {where}",
            broken_rule(own(body, 2, **settings)),
        )

    @pytest.mark.parametrize(
        ("call", "waits"),
        [
            ("await worker.recv(1, 'a')", "recv channel 'a'"),
            ("await worker.send(x, 1, 'b')", "send channel 'b'"),
            ("await worker.all_gather(x)", "all_gather group 'world'"),
            ("await worker.all_to_all([x, x])", "all_to_all group 'world'"),
        ],
    )
    def test_a_peer_that_has_ended_without_its_part(self, own: Any, call: str, waits: str) -> None:
        body = f"""
            x = await worker.gradient(worker.initial_model())
            worker.report(x)
            if worker.rank == 0:
                {call}
        """
        assert re.fullmatch(
            f"the run cannot go on: worker 0 waits in {waits} for worker 1 {WHERE}",
            broken_rule(own(body, 2, plan=BOTH_WAYS)),
        )

    def test_one_message_too_few(self, own: Any) -> None:
        # The fourth of three messages; rank 0 waits for something else, which comes from the waiting rank.
        body = """
            x = await worker.gradient(worker.initial_model())
            worker.report(x)
            if worker.rank == 0:
                for _ in range(3):
                    await worker.send(x, 1, "a")
                await worker.recv(1, "b")
            else:
                for _ in range(4):
                    await worker.recv(0, "a")
                await worker.send(x, 0, "b")
        """
        assert re.fullmatch(
            f"the run cannot go on: worker 0 waits in recv channel 'b' for worker 1 {WHERE}; "
            f"worker 1 waits in recv channel 'a' for worker 0 {WHERE}",
            broken_rule(own(body, 2, plan=BOTH_WAYS)),
        )

    def test_a_message_to_oneself_that_is_never_sent(self, own: Any) -> None:
        body = "await worker.recv(0, 'self')"
        assert re.fullmatch(
            f"the run cannot go on: worker 0 waits in recv channel 'self' for worker 0 {WHERE}",
            broken_rule(own(body, 1, plan='Plan({}, ((0, 0, "self"),))')),
        )

    def test_all_tasks_of_a_worker_wait(self, own: Any, tmp_path: Path) -> None:
        body = """
            x = await worker.gradient(worker.initial_model())
            worker.report(x)
            async def ask():
                async with worker.lock("shelf"):
                    pass
            async def hold():
                async with worker.lock("shelf"):
                    asker = worker.spawn(ask())
                    await worker.recv(1, "a")
                await asker
            if worker.rank == 0:
                holder = worker.spawn(hold())
                await holder
        """
        message = broken_rule(own(body, 2, plan=BOTH_WAYS))
        waits = message.removeprefix("the run cannot go on: ").split("; ")
        operations = ("recv channel 'a' for worker 1", "task", "lock 'shelf'")
        assert len(waits) == len(operations)
        source = next(tmp_path.glob("own_*.py")).read_text().splitlines()
        lines = {}
        for operation in operations:
            (found,) = [wait for wait in waits if wait.startswith(f"worker 0 waits in {operation} since ")]
            lines[operation] = source[int(found.rpartition(":")[2]) - 1].strip()
        assert list(lines.values()) == [
            'await worker.recv(1, "a")',
            "await holder",
            'async with worker.lock("shelf"):',
        ]

    def test_different_collectives_in_one_place(self, own: Any) -> None:
        body = """
            x = await worker.gradient(worker.initial_model())
            await worker.all_reduce(x)
            if worker.rank == 1:
                await worker.all_gather(x[1:])
            else:
                await worker.all_reduce(x, "sum")
        """
        assert broken_rule(own(body, 2)) == (
            "collective number 1 of the group 'world' differs: worker 0 called sum of 5 float64 elements, "
            "worker 1 called all_gather of 4 float64 elements"
        )

    def test_a_lock_taken_twice(self, own: Any) -> None:
        body = """
            async with worker.lock():
                async with worker.lock():
                    pass
        """
        assert re.fullmatch(
            f"the run cannot go on: worker 0 waits in lock 'model' {WHERE}", broken_rule(own(body, 1))
        )

    def test_a_task_that_computes_keeps_its_worker_going(self, own: Any) -> None:
        # The other tasks and ranks wait far longer than the time after which that is told.
        body = """
            x = await worker.gradient(worker.initial_model())
            async def work():
                await worker.compute(lambda _: time.sleep(1.2), x, nbytes=0.0)
                await worker.send(x, 1, "a")
            if worker.rank == 0:
                task = worker.spawn(work())
                await worker.recv(1, "b")
                await task
            else:
                await worker.recv(0, "a")
                await worker.send(x, 0, "b")
            worker.report(x)
        """
        run = execute(own(body, 2, plan=BOTH_WAYS))
        assert run is not None
        assert run.duration > 1.2

    def test_a_slow_peer_is_no_fault(self, own: Any) -> None:
        # Far longer than the time after which a wait is told.
        body = """
            x = await worker.gradient(worker.initial_model())
            if worker.rank == 1:
                time.sleep(1.2)
            worker.report(await worker.all_reduce(x))
        """
        run = execute(own(body, 2))
        assert run is not None
        assert run.duration > 1.2


class TestBadInput:
    """What only a simulation can run is refused before any process starts."""

    @staticmethod
    def refusal(scenario: Scenario) -> str:
        with pytest.raises(BadInput) as caught:
            execute(scenario)
        return str(caught.value)

    def test_no_objective(self, make: Any) -> None:
        scenario = make("local-sgd", 2, None, **{"step-size": None})
        assert self.refusal(scenario) == (
            "workload.objective: an execution computes real gradients; name what is optimised"
        )

    def test_a_grid_of_step_sizes(self, make: Any) -> None:
        scenario = make("local-sgd", 2, QUADRATIC, **{"step-size": {"grid": [0.1, 0.2]}})
        assert self.refusal(scenario) == "step-size: an execution takes one step size, not the grid 0.1, 0.2"

    def test_algorithms_to_compare(self, make: Any) -> None:
        scenario = make("local-sgd", 2, QUADRATIC, compare=["cocod-sgd", "allreduce-sgd"])
        assert self.refusal(scenario) == (
            "compare: an execution runs one algorithm, not cocod-sgd, allreduce-sgd as well"
        )

    def test_an_early_stop(self, make: Any) -> None:
        budget = {"iterations": 4, "stop": "target"}
        scenario = make("local-sgd", 2, QUADRATIC, budget=budget, target={"loss": 0.1})
        assert self.refusal(scenario) == "budget.stop: only a simulation can stop at its target; use 'end'"

    def test_what_the_objective_refuses(self, make: Any) -> None:
        objective = {"kind": "scalar-quadratics", "curvatures": [1.0, 2.0], "centres": [0.0, 1.0]}
        message = self.refusal(make("local-sgd", 3, objective))
        assert message.startswith("workload.objective: ")
        assert "2" in message
        assert "3" in message

    def test_an_object_that_cannot_be_sent(self, make: Any) -> None:
        import torch

        from simulator.workload.task import Task

        model = torch.nn.Linear(2, 1)
        task = Task(
            model, (torch.zeros(8, 2), torch.zeros(8, 1)), lambda output, y: (output - y).square().mean()
        )
        message = self.refusal(make("local-sgd", 2, task))
        assert message.startswith("this scenario cannot be sent to other processes: ")
        assert "lambda" in message
