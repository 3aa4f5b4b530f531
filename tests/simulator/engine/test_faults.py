"""What goes wrong is said in one sentence: broken rules of the seam, failures, deadlocks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import pytest

from algorithms import Algorithm, Plan, Worker
from simulator import faults
from simulator.engine.simulate import simulate
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.scenario import Scenario


def made(algorithm: Algorithm, workers: int = 2, **cluster: Any) -> Scenario:
    topology = {"builder": "switch", "gpus": workers}
    return Scenario(
        {
            "name": "fault",
            "cluster": {"topology": topology, "device": "ideal", **cluster},
            "workload": {"cost": {"parameters": 8, "batch": 1, "gradient": "1 s", "forward-share": 0}},
            "algorithm": algorithm,
            "budget": {"iterations": 3},
        }
    )


def failure(
    algorithm: Algorithm, kind: type[Exception] = AlgorithmError, workers: int = 2, **cluster: Any
) -> str:
    """Run an algorithm that breaks a rule and return what is said."""
    with pytest.raises(kind) as caught:
        simulate(made(algorithm, workers, **cluster))
    return str(caught.value)


@dataclass(frozen=True)
class AwaitsNothing(Algorithm):
    async def run(self, worker: Worker) -> None:
        while worker.running:
            worker.report(worker.initial_model())


def test_a_loop_that_awaits_nothing_ends() -> None:
    assert failure(AwaitsNothing()) == (
        "worker 0 asked 1000 times in a row whether it is running without starting a gradient in between; "
        "its algorithm makes no progress"
    )


@dataclass(frozen=True)
class NoCoroutine(Algorithm):
    def run(self, worker: Worker) -> None:  # type: ignore[override]  # the fault under test
        worker.report(worker.initial_model())


def test_a_run_that_is_no_coroutine() -> None:
    assert failure(NoCoroutine()) == "NoCoroutine.run must be a coroutine (async def), but it returned None"


@dataclass(frozen=True)
class ForgetsToAwait(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            gradient = await worker.gradient(x)
            worker.update(x, gradient)
            worker.report(x)


def test_a_handle_that_nobody_awaited() -> None:
    assert failure(ForgetsToAwait()) == (
        "worker 0 ended, but nobody awaited the update that it started in iteration 1"
    )


@dataclass(frozen=True)
class GoesRound(Algorithm):
    """After a gradient it does one kind of operation that takes no time, again and again."""

    what: str = "compute"
    times: int = 1_000_000_000

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        return Plan({}, ((0, 1, "there"), (1, 0, "back")))

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            for _ in range(self.times):
                if self.what == "compute":
                    await worker.compute(lambda x: x, x, nbytes=0)
                elif self.what == "nothing new":
                    await self.waited(worker.spawn(self.nothing()))
                elif worker.rank == 0:
                    await worker.send(x, 1, "there")
                    await worker.recv(1, "back")
                else:
                    await worker.recv(0, "there")
                    await worker.send(x, 0, "back")
            worker.report(x)

    async def waited(self, handle: Any) -> None:
        for _ in range(self.times):
            await handle

    async def nothing(self) -> None:
        pass


@pytest.mark.parametrize(
    ("what", "operation", "line"),
    [("compute", "compute", 6), ("nothing new", "task", 19)],
)
def test_a_task_that_never_waits_ends(
    what: str, operation: str, line: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "MOST_AT_ONCE", 2000)
    where = f"test_faults.py:{GoesRound.run.__code__.co_firstlineno + line}"
    assert failure(GoesRound(what)) == (
        "the clock stands still at 1 s: 2,000 operations ended there, the last of them the "
        f"{operation} of worker 0's task GoesRound.run at {where}; its algorithm goes round without taking "
        "time"
    )


def test_tasks_that_wait_for_each_other_without_time_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MOST_AT_ONCE", 2000)
    said = failure(GoesRound("messages"), transport={"name": "fixed"})
    assert re.fullmatch(
        r"the clock stands still at 1 s: 2,000 operations ended there, the last of them the "
        r"(send|recv) of worker [01]'s task GoesRound\.run at test_faults\.py:\d+; its algorithm goes round "
        "without taking time",
        said,
    )


@pytest.mark.parametrize("what", ["compute", "messages"])
def test_many_operations_at_once_are_no_standstill(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MOST_AT_ONCE", 2000)
    run = simulate(made(GoesRound(what, times=400), transport={"name": "fixed"}))
    assert run.duration == 3.0


@dataclass(frozen=True)
class OneRankRaises(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            gradient = await worker.gradient(x)
            if worker.rank == 1:
                raise ZeroDivisionError("the second worker divides by zero")
            x = await worker.all_reduce(gradient)
            worker.report(x)


def test_the_first_cause_is_shown_when_one_rank_raises() -> None:
    assert failure(OneRankRaises(), WorkerFailed) == (
        "worker 1 failed in iteration 1: ZeroDivisionError: the second worker divides by zero "
        f"(at test_faults.py:{OneRankRaises.run.__code__.co_firstlineno + 5})"
    )


@dataclass(frozen=True)
class OneRankStaysAway(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            if worker.rank != 2:
                await worker.all_reduce(x)
            worker.report(x)


def test_a_deadlock_names_who_waits_for_whom_since_when_and_where() -> None:
    line = OneRankStaysAway.run.__code__.co_firstlineno + 5
    where = f"at test_faults.py:{line}"
    assert failure(OneRankStaysAway(), workers=3) == (
        "the run cannot go on: "
        f"worker 0 waits in all_reduce group 'world' for worker 2 since 1 s {where}; "
        f"worker 1 waits in all_reduce group 'world' for worker 2 since 1 s {where}"
    )


@dataclass(frozen=True)
class NeighbourStaysAway(Algorithm):
    requires: ClassVar[frozenset[str]] = frozenset({"graph"})

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        return Plan({}, ((0, 1, "exchange"), (1, 0, "exchange")))

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            if worker.rank == 0:
                await worker.exchange(x)
            worker.report(x)


def test_a_deadlock_in_an_exchange_names_the_neighbour() -> None:
    line = NeighbourStaysAway.run.__code__.co_firstlineno + 5
    assert failure(NeighbourStaysAway()) == (
        f"the run cannot go on: worker 0 waits in exchange for worker 1 since 1 s at test_faults.py:{line}"
    )


@dataclass(frozen=True)
class UnequalSizes(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.all_reduce(x[: 4 + worker.rank])
            worker.report(x)


def test_collectives_that_differ_name_the_workers() -> None:
    assert failure(UnequalSizes()) == (
        "all_reduce number 0 of the group 'world' differs: worker 0 called mean of 4 32-bit elements, "
        "worker 1 called mean of 5 32-bit elements"
    )


@dataclass(frozen=True)
class UndeclaredGroup(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.all_reduce(x, group="left")


def test_an_undeclared_group() -> None:
    assert failure(UndeclaredGroup()) == (
        "worker 0 used the group 'left', which its algorithm's plan does not declare; declared are 'world'"
    )


@dataclass(frozen=True)
class ForeignGroup(Algorithm):
    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        return Plan({"left": (0,)})

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.all_reduce(x, group="left")
            worker.report(x)


def test_a_group_of_others() -> None:
    assert failure(ForeignGroup()) == "worker 1 is not in the group 'left', which has the workers 0"


@dataclass(frozen=True)
class ExchangesWithoutGraph(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.exchange(x)


def test_an_exchange_without_a_graph() -> None:
    assert failure(ExchangesWithoutGraph()) == (
        "worker 0 called exchange, but ExchangesWithoutGraph does not require a communication graph; "
        "add 'graph' to its requires"
    )


@dataclass(frozen=True)
class ForgetsItsChannels(Algorithm):
    requires: ClassVar[frozenset[str]] = frozenset({"graph"})

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.exchange(x)
            worker.report(x)


def test_an_undeclared_channel() -> None:
    assert failure(ForgetsItsChannels()) == (
        "worker 0 used the channel 'exchange' from worker 0 to worker 1, "
        "which its algorithm's plan does not declare"
    )


@dataclass(frozen=True)
class ExchangesUnequally(Algorithm):
    requires: ClassVar[frozenset[str]] = frozenset({"graph"})

    def plan(self, world_size: int, graph: nx.Graph[int] | None) -> Plan:
        return Plan({}, ((0, 1, "exchange"), (1, 0, "exchange")))

    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await worker.all_reduce(x)  # the world is a group of every plan
            await worker.exchange(x[: 3 + worker.rank])
            worker.report(x)


def test_neighbours_that_exchange_tensors_of_different_lengths() -> None:
    message = failure(ExchangesUnequally())
    assert message == "an exchange differs: worker 1 sent 4 elements, worker 0 sent it 3"


@dataclass(frozen=True)
class AwaitsSomethingElse(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            await worker.gradient(x)
            await asyncio.sleep(0)
            worker.report(x)


def test_awaiting_something_else() -> None:
    assert failure(AwaitsSomethingElse()) == (
        "worker 0 awaited something that is not an operation of its worker"
    )


@dataclass(frozen=True)
class ReadsValues(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while worker.running:
            gradient = await worker.gradient(x)
            if gradient[0] > 0:
                worker.report(x)


def test_control_flow_on_values_is_refused_without_numerics() -> None:
    assert failure(ReadsValues(), WorkerFailed) == (
        "worker 0 failed in iteration 1: TimingOnly: this algorithm's control flow depends on the value of a "
        "tensor, which a timing-only run does not have; give the scenario an objective "
        f"(at test_faults.py:{ReadsValues.run.__code__.co_firstlineno + 4})"
    )


@dataclass(frozen=True)
class NeverAsks(Algorithm):
    async def run(self, worker: Worker) -> None:
        x = worker.initial_model()
        while True:
            await worker.gradient(x)


def test_an_algorithm_that_never_asks_whether_to_go_on() -> None:
    assert failure(NeverAsks()) == (
        "worker 0 has computed 10007 gradients of a budget of 3 without asking whether it is running"
    )


def test_a_failing_rank_also_ends_a_run_with_bursts(timing: Callable[..., Scenario]) -> None:
    """Bursts go on for ever; they must not keep a deadlocked run alive."""
    scenario = timing(
        "local-sgd",
        workers=3,
        iterations=2,
        all_reduce=0.0,
        exchange=0.0,
        stragglers=[{"kind": "bursts", "fast": "1 s", "slow": "1 s"}],
    ).vary(algorithm=OneRankStaysAway())
    with pytest.raises(AlgorithmError, match="the run cannot go on"):
        simulate(scenario)


def test_scenario_parts_of_the_users_own(vectors: Mapping[str, Any], scalar: Callable[..., Scenario]) -> None:
    """An algorithm object made in Python runs as a named one does."""
    from algorithms.local.local_sgd import LocalSGD

    named = simulate(scalar({"name": "local-sgd", "period": 2}, vectors))
    made = simulate(scalar(LocalSGD(period=2), vectors))
    assert named.summary() == made.summary()
