"""The operations of the seam on the virtual clock: their values, their times and their bytes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import networkx as nx
import pytest
import torch

from algorithms import Algorithm, Plan
from simulator.engine.memory import Addition, Memory
from simulator.engine.simulate import Simulation, simulate
from simulator.engine.worker import Operation
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.plan import oracle
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.workload.task import Task

Body = Callable[[Any], Awaitable[None]]
ELEMENTS = 1000
BYTES = 4 * ELEMENTS
BANDWIDTH = 1e6
LATENCY = 1e-3
WIRE = BYTES / BANDWIDTH
"""Seconds of a whole model on a link."""


@dataclass(frozen=True)
class Given(Algorithm):
    """Runs a test's own coroutine, then a gradient and a report, which every run must have."""

    body: Body
    channels: tuple[tuple[int, int, str], ...] = ()
    groups: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        pass

    def plan(self, world_size: int, graph: object) -> Plan:
        return Plan(dict(self.groups), self.channels)

    async def run(self, worker: Any) -> None:
        await self.body(worker)
        await worker.gradient(worker.initial_model())
        worker.report(worker.initial_model())


def scenario(
    body: Body,
    workers: int = 2,
    channels: tuple[tuple[int, int, str], ...] = (),
    groups: tuple[tuple[str, tuple[int, ...]], ...] = (),
    **more: Any,
) -> Scenario:
    return Scenario(
        {
            "name": "operations",
            "cluster": {
                "topology": {
                    "builder": "switch",
                    "gpus": workers,
                    "link": {"bandwidth": "1 MB/s", "latency": "0.5 ms"},
                },
                "device": "ideal",
                "transport": "ideal",
            },
            "workload": {
                "cost": {"parameters": ELEMENTS, "batch": 1, "gradient": "1 s", "update": "3 ms"},
                "objective": {"kind": "quadratic", "dimension": ELEMENTS, "dtype": "float32"},
            },
            "algorithm": Given(body, channels, groups),
            "step-size": 0.1,
            "budget": {"iterations": 1},
            **more,
        }
    )


def run(body: Body, **options: Any) -> Run:
    return simulate(scenario(body, **options))


def filled(value: float, elements: int = ELEMENTS) -> torch.Tensor:
    return torch.full((elements,), value)


PAIR = ((0, 1, "message"), (1, 0, "message"))


def test_a_message_arrives_after_its_latency_and_its_bytes() -> None:
    seen: dict[str, Any] = {}

    async def body(worker: Any) -> None:
        if worker.rank == 0:
            x = filled(3.0)
            sending = worker.send(x, 1)
            x.zero_()  # what is sent was copied
            await sending
            seen["sent"] = worker.now
        else:
            seen["value"] = await worker.recv(0)
            seen["received"] = worker.now

    done = run(body, channels=PAIR)
    assert seen["sent"] == seen["received"] == pytest.approx(LATENCY + WIRE, rel=1e-12)
    assert torch.equal(seen["value"], filled(3.0))
    assert done.bytes_sent == (BYTES, 0.0)


def test_messages_of_a_channel_keep_their_order_and_both_directions_go_at_once() -> None:
    seen: list[float] = []

    async def body(worker: Any) -> None:
        other = 1 - worker.rank
        sends = [worker.send(filled(float(number)), other) for number in range(3)]
        for _ in sends:
            x = await worker.recv(other)
            seen.append(float(x[0]))
        for send in sends:
            await send
        assert worker.now == pytest.approx(3 * (LATENCY + WIRE), rel=1e-12)

    run(body, channels=PAIR)
    assert seen == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


def test_an_empty_message_takes_the_latency_and_other_types_their_own_bytes() -> None:
    async def body(worker: Any) -> None:
        if worker.rank == 0:
            await worker.send(filled(0.0)[:0], 1)
            assert worker.now == pytest.approx(LATENCY, rel=1e-12)
            await worker.send(torch.zeros(100, dtype=torch.uint8), 1)
        else:
            assert len(await worker.recv(0)) == 0
            assert (await worker.recv(0)).dtype == torch.uint8

    assert run(body, channels=PAIR).bytes_sent == (100.0, 0.0)


def test_a_message_to_oneself_is_local() -> None:
    async def body(worker: Any) -> None:
        sending = worker.send(filled(7.0), worker.rank)
        assert torch.equal(await worker.recv(worker.rank), filled(7.0))
        await sending
        assert worker.now == 0.0

    assert run(body, channels=((0, 0, "message"), (1, 1, "message"))).bytes_sent == (0.0, 0.0)


def test_an_undeclared_channel_is_refused() -> None:
    async def body(worker: Any) -> None:
        await worker.send(filled(0.0), 1 - worker.rank, "side")

    with pytest.raises(AlgorithmError) as caught:
        run(body, channels=PAIR)
    assert str(caught.value) == (
        "worker 0 used the channel 'side' from worker 0 to worker 1, which its algorithm's plan does not "
        "declare"
    )


def test_a_receiver_without_a_sender_is_found() -> None:
    async def body(worker: Any) -> None:
        if worker.rank == 1:
            await worker.recv(0)

    with pytest.raises(AlgorithmError) as caught:
        run(body, channels=PAIR)
    assert str(caught.value).startswith(
        "the run cannot go on: worker 1 waits in recv channel 'message' for worker 0 since 0 s at "
        "test_operations.py:"
    )


def test_a_gather_moves_every_part_to_everybody() -> None:
    async def body(worker: Any) -> None:
        parts = await worker.all_gather(filled(float(worker.rank)))
        assert [float(part[0]) for part in parts] == [0.0, 1.0, 2.0, 3.0]
        # A pipelined ring of n - 1 rounds: each link carries three parts, and every round pays its latency.
        assert worker.now == pytest.approx(3 * LATENCY + 3 * WIRE, rel=1e-12)

    assert run(body, workers=4).bytes_sent == (3 * BYTES,) * 4


def test_an_all_to_all_moves_the_parts_that_are_meant_for_others() -> None:
    async def body(worker: Any) -> None:
        parts = [filled(10.0 * worker.rank + to) for to in range(4)]
        got = await worker.all_to_all(parts)
        assert [float(part[0]) for part in got] == [10.0 * source + worker.rank for source in range(4)]
        # All at once: latency is paid once.
        assert worker.now == pytest.approx(LATENCY + 3 * WIRE, rel=1e-12)

    assert run(body, workers=4).bytes_sent == (3 * BYTES,) * 4


def test_collectives_of_a_group_go_one_after_another_whatever_their_kind() -> None:
    async def body(worker: Any) -> None:
        first, second = worker.all_gather(filled(1.0)), worker.all_reduce(filled(1.0), "sum")
        assert torch.equal(await second, filled(2.0))
        assert worker.now == pytest.approx((LATENCY + WIRE) + (2 * LATENCY + WIRE), rel=1e-12)
        await first

    run(body)


def test_differing_collectives_are_refused_by_name() -> None:
    async def body(worker: Any) -> None:
        x = filled(1.0)
        await (worker.all_gather(x) if worker.rank else worker.all_reduce(x))

    with pytest.raises(AlgorithmError) as caught:
        run(body)
    assert str(caught.value) == (
        "collective number 0 of the group 'world' differs: worker 0 called mean of 1000 float32 elements, "
        "worker 1 called all_gather of 1000 float32 elements"
    )


def test_parts_of_unequal_length_are_refused() -> None:
    async def body(worker: Any) -> None:
        await worker.all_to_all([filled(1.0), filled(1.0)[:5]])

    with pytest.raises(AlgorithmError) as caught:
        run(body)
    assert str(caught.value) == (
        "worker 0 called all_to_all of the group 'world' with parts of 1000, 5 elements; it takes 2 parts of "
        "one length"
    )


def test_tasks_take_turns_and_give_their_values() -> None:
    trace: list[tuple[str, float]] = []

    async def body(worker: Any) -> None:
        async def task(name: str, count: int) -> str:
            for _ in range(count):
                await worker.compute(lambda x: x, filled(0.0), nbytes=BYTES)
                trace.append((name, worker.now))
            return name

        first, second = worker.spawn(task("a", 2)), worker.spawn(task("b", 1))
        trace.append(("main", worker.now))
        assert (await second, await first) == ("b", "a")

    run(body, workers=1)
    # A pass over a model's bytes takes a third of an update; both tasks' first ones share the device.
    assert [name for name, _ in trace] == ["main", "a", "b", "a"]
    assert [time for _, time in trace] == pytest.approx([0, 2e-3, 2e-3, 3e-3], rel=1e-12)


def test_a_task_that_fails_ends_the_run_with_its_cause() -> None:
    async def body(worker: Any) -> None:
        async def task() -> None:
            raise ValueError("lost my way")

        worker.spawn(task())
        await worker.gradient(worker.initial_model())

    with pytest.raises(WorkerFailed) as caught:
        run(body, workers=1)
    assert str(caught.value).startswith(
        "worker 0 failed in iteration 1: ValueError: lost my way (at test_operations.py:"
    )


def test_a_lock_is_given_in_the_order_of_asking() -> None:
    trace: list[str] = []

    async def body(worker: Any) -> None:
        async def task(name: str) -> None:
            async with worker.lock():
                trace.append(f"{name} in")
                await worker.compute(lambda x: x, filled(0.0), nbytes=BYTES)
                trace.append(f"{name} out")

        for handle in [worker.spawn(task(name)) for name in "abc"]:
            await handle

    run(body, workers=1)
    assert trace == ["a in", "a out", "b in", "b out", "c in", "c out"]


def test_random_numbers_are_one_stream_for_each_rank_and_purpose() -> None:
    drawn: dict[tuple[int, str, bool], list[float]] = {}

    async def body(worker: Any) -> None:
        for purpose, shared in (("a", False), ("b", False), ("a", True)):
            assert worker.random(purpose, shared) is worker.random(purpose, shared)
            drawn[worker.rank, purpose, shared] = worker.random(purpose, shared).random(3).tolist()

    run(body)
    assert drawn[0, "a", True] == drawn[1, "a", True]
    others = [tuple(values) for (_, _, shared), values in drawn.items() if not shared]
    assert len({*others, tuple(drawn[0, "a", True])}) == 5


def test_an_evaluation_counts_its_gradients_and_iterations() -> None:
    async def body(worker: Any) -> None:
        value = await worker.evaluate(lambda x: x + 1, filled(1.0), gradients=2.5, iterations=0)
        assert torch.equal(value, filled(2.0))
        assert worker.now == pytest.approx(2.5, rel=1e-12)
        worker.observe("staleness", 4)

    done = run(body, workers=1)
    assert done.evaluations == (3.5,)
    assert done.iterations == (1,)
    assert [tuple(noted) for noted in done.observations] == [("staleness", 0, 2.5, 0, 4.0)]
    assert done.summary()["observed"] == {"staleness": {"mean": 4.0, "median": 4.0, "max": 4.0, "count": 1}}


def test_what_is_under_way_shares_the_device_with_a_task_that_comes_later() -> None:
    ends: dict[str, float] = {}

    async def body(worker: Any) -> None:
        async def task() -> None:
            await worker.compute(lambda x: x, filled(0.0), nbytes=BYTES)
            ends["task"] = worker.now

        whole = worker.compute(lambda x: x, filled(0.0), nbytes=3 * BYTES)  # 3 ms alone
        await worker.recv(0)  # from itself, at once
        handle = worker.spawn(task())
        await whole
        ends["main"] = worker.now
        await handle

    async def with_message(worker: Any) -> None:
        sending = worker.send(filled(0.0), 0)
        await body(worker)
        await sending

    run(with_message, workers=1, channels=((0, 0, "message"),))
    assert ends == pytest.approx({"task": 2e-3, "main": 4e-3}, rel=1e-12)


COST = {"parameters": ELEMENTS, "batch": 4, "gradient": "1 s"}


@pytest.mark.parametrize("evaluation", ["separate", "batched"])
def test_a_gradient_is_that_of_its_call(evaluation: str) -> None:
    seen: dict[int, torch.Tensor] = {}

    async def body(worker: Any) -> None:
        x = worker.initial_model()
        gradient = worker.gradient(x)
        x.zero_()
        seen[worker.rank] = await gradient

    workload = {"cost": COST, "objective": {"kind": "mlp"}, "evaluation": evaluation}
    given = scenario(body, workload=workload, budget={"iterations": 2})
    simulate(given)
    objective = given.objective
    assert objective is not None
    for rank in range(2):
        source = oracle(given, rank)
        assert source is not None
        torch.testing.assert_close(seen[rank], source.gradient(objective.initial_model()))


def test_a_gradient_that_fails_is_the_failure_of_the_worker_that_asked_for_it() -> None:
    def finite(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not output.isfinite().all():
            raise RuntimeError("no finite output")
        return (output - labels).square().mean()

    async def body(worker: Any) -> None:
        await worker.gradient(worker.initial_model() * (math.nan if worker.rank == 1 else 1.0))

    task = Task(torch.nn.Linear(2, 1), (torch.ones(8, 2), torch.zeros(8, 1)), finite)
    with pytest.raises(WorkerFailed, match=r"worker 1\b.*RuntimeError: no finite output"):
        run(body, workers=3, workload={"cost": COST, "objective": task}, budget={"iterations": 2})


@dataclass(frozen=True)
class Neighbours(Given):
    """Runs a coroutine that exchanges with neighbours, without weights."""

    requires: ClassVar[frozenset[str]] = frozenset({"graph"})
    mixes: ClassVar[bool] = False


@pytest.mark.parametrize(("rendezvous", "end"), [(False, LATENCY + WIRE), (True, 1e-3 + LATENCY + WIRE)])
def test_a_rank_that_only_sends_ends_its_exchange_with_its_message(rendezvous: bool, end: float) -> None:
    ends: dict[int, float] = {}

    async def body(worker: Any) -> None:
        if worker.rank == 1:
            await worker.compute(lambda x: x, filled(0.0), nbytes=BYTES)  # 1 ms
        received = await worker.exchange(filled(3.0 + worker.rank))
        ends[worker.rank] = worker.now
        assert {rank: x.tolist() for rank, x in received.items()} == (
            {0: [3.0] * ELEMENTS} if worker.rank == 1 else {}
        )

    given = scenario(body, algorithm=Neighbours(body, ((0, 1, "exchange"),)))
    given = given.vary(transport={"name": "ideal", "rendezvous": rendezvous})
    given.communication_graph = nx.DiGraph([(0, 1)])
    done = simulate(given)
    assert ends == pytest.approx({0: end, 1: end}, rel=1e-12)
    assert done.bytes_sent == (BYTES, 0.0)


class OutOfRange(Exception):
    """An error of a user's own, which its arguments alone do not make again."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"{name} is {value:g}")


def test_a_gradient_fails_with_the_error_of_its_objective_and_the_line_that_raised_it() -> None:
    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise OutOfRange("output", 7.0)

    async def body(worker: Any) -> None:
        await worker.gradient(worker.initial_model())

    task = Task(torch.nn.Linear(2, 1), (torch.ones(8, 2), torch.zeros(8, 1)), loss)
    with pytest.raises(WorkerFailed) as caught:
        run(body, workers=1, workload={"cost": COST, "objective": task})
    line = loss.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"worker 0 failed in iteration 1: OutOfRange: output is 7 (at test_operations.py:{line})"
    )
    assert isinstance(caught.value.__cause__, OutOfRange)


class TestSharedMemory:
    def test_a_read_sees_every_element_as_it_stood_when_it_came_to_it(self) -> None:
        memory = Memory(torch.zeros(4))
        memory.add(Addition(torch.arange(4), torch.ones(4), 1.0, 5.0))  # elements at 1, 2, 3 and 4 s
        # A read as fast as the addition and half a second ahead of it sees none of it, one behind it all.
        assert memory.value(0.5, 4.5).tolist() == [0, 0, 0, 0]
        assert memory.value(1.5, 5.5).tolist() == [1, 1, 1, 1]
        # A slow one overtaken on the way, and a fast one that overtakes.
        assert memory.value(0.5, 8.5).tolist() == [0, 1, 1, 1]
        assert memory.value(2.4, 3.4).tolist() == [1, 1, 0, 0]

    def test_what_every_read_sees_whole_is_settled_in_order(self) -> None:
        memory = Memory(torch.zeros(2))
        memory.add(Addition(torch.tensor([0]), torch.ones(1), 0.0, 1.0))
        memory.add(Addition(torch.tensor([1]), torch.ones(1), 0.5, 2.0))
        memory.settle(1.5)
        assert memory.value(9.0, 9.5).tolist() == [1, 1]
        memory.settle(3.0)
        assert memory.value(0.0, 0.0).tolist() == [1, 1]

    def test_an_addition_follows_what_it_has_reached(self) -> None:
        def times(*reached: tuple[float, float]) -> list[float]:
            """Of an addition that was to take 4 s, and had reached these shares at these times."""
            addition = Addition(torch.arange(4), torch.ones(4), 1.0, 5.0)
            for share, now in reached:
                addition.reach(share, now)
            assert addition.end == (reached[-1][1] if reached[-1][0] == 1 else math.inf)
            return addition.times.tolist()

        assert times((0.0, 3.0)) == [math.inf] * 4
        assert times((0.5, 5.0)) == [1, 3, math.inf, math.inf]
        assert times((0.5, 5.0), (1.0, 6.0)) == [1, 3, 5, 5.5]
        assert times((0.5, 3.0), (0.75, 7.0), (1.0, 9.0)) == [1, 2, 3, 7]  # slow from its middle on
        assert times((0.125, 2.0), (0.375, 4.0), (1.0, 9.0)) == [1, 3, 5, 7]  # between two elements
        assert times((1.0, 3.0)) == [1, 1.5, 2, 2.5]  # faster than foreseen
        assert times((0.5, 3.0 + 1e-10), (1.0, 5.0)) == [1, 2, 3, 4]  # a rounding error

    def test_of_a_slow_addition_others_see_what_is_done(self) -> None:
        seen: list[float] = []

        async def body(worker: Any) -> None:
            async def beside() -> None:
                await worker.compute(lambda x: x, filled(0.0), nbytes=3 * BYTES)

            memory = worker.shared("x", filled(0.0))
            if worker.rank == 0:
                task = worker.spawn(beside())
                await memory.add(filled(1.0))  # takes 6 ms instead of 3, since both share the GPU
                assert worker.now == pytest.approx(6e-3, rel=1e-9)
                await task
            else:
                await worker.compute(lambda x: x, filled(0.0), nbytes=3.003 * BYTES)
                for _ in range(2):
                    x = await memory.read()  # 2 ms
                    seen.append(int(x.sum()))
                    assert torch.equal(x, (torch.arange(ELEMENTS) < seen[-1]).to(x.dtype))

        run(body)
        # Element k is added at 6k µs and read at 3003 + 2k µs first.
        assert seen == [751, ELEMENTS]

    def test_no_addition_is_lost_and_time_is_that_of_passes(self) -> None:
        async def body(worker: Any) -> None:
            memory = worker.shared("x", filled(0.0))
            for _ in range(5):
                await memory.add(filled(1.0)[:3], torch.tensor([1, 5, 7]))
            assert worker.now == pytest.approx(5 * 3e-3 * 3 / ELEMENTS, rel=1e-9)
            await worker.all_reduce(filled(0.0))
            assert memory.writes == 10
            before = worker.now
            total = await memory.read()
            assert worker.now - before == pytest.approx(2e-3, rel=1e-9)
            expected = filled(0.0)
            expected[[1, 5, 7]] = 10.0
            assert torch.equal(total, expected)

        run(body)


def test_computations_on_gpus_of_their_own_need_no_solve() -> None:
    async def body(worker: Any) -> None:
        await worker.gradient(worker.initial_model())

    simulation = Simulation(scenario(body), None, monitor=True)
    simulation.run()
    assert simulation.clock.core.solves == 0


def test_a_failed_operation_raises_whenever_it_is_awaited() -> None:
    async def body(worker: Any) -> None:
        failed = Operation(worker, "gradient")
        failed.fail(ValueError("no number"))
        for _ in range(2):
            with pytest.raises(ValueError, match="no number"):
                await failed

    assert simulate(scenario(body)).iterations == (1, 1)


def test_an_operation_ends_once() -> None:
    async def body(worker: Any) -> None:
        ended = Operation(worker, "gradient")
        ended.succeed()
        with pytest.raises(RuntimeError, match="the operation 'gradient' has already ended"):
            ended.succeed()
        await ended

    simulate(scenario(body))


def test_a_state_for_a_rule_without_one_concerns_only_its_worker() -> None:
    async def body(worker: Any) -> None:
        if worker.rank == 0:
            worker.set_rule_state(torch.ones(3))
        x = worker.initial_model()
        await worker.update(x, x)

    with pytest.raises(WorkerFailed, match=r"worker 0 .*a state of 3 elements does not fit the update rule"):
        simulate(scenario(body))
