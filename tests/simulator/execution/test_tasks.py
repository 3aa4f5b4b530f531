"""Several tasks of one rank: whose turn it is, what ends a run, locks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from algorithms import Algorithm, Worker
from simulator.execution.record import Record
from simulator.execution.streams import Baton, Call, WallHandle
from simulator.execution.tasks import Tasks, Wait
from simulator.execution.worker import WallWorker
from simulator.faults import AlgorithmError

QUADRATIC = {"kind": "quadratic", "dimension": 4, "sigma2": 0.0}

Body = Callable[[Any], Coroutine[Any, Any, None]]


@pytest.fixture
def run(make: Any) -> Callable[..., Record]:
    """Return a function that lets one rank do something, then compute a gradient and report it."""

    def carried_out(body: Body) -> Record:
        class Scripted(Algorithm):
            async def run(self, worker: Worker) -> None:
                await body(worker)
                worker.report(await worker.gradient(worker.initial_model()))

        worker = WallWorker(make("local-sgd", 1, QUADRATIC), 0, None)
        try:
            return worker.run(Scripted(), time.monotonic())
        finally:
            worker.close()

    return carried_out


async def sleep(worker: Any, seconds: float) -> None:
    """Compute for a while."""
    x = worker.initial_model()
    await worker.compute(lambda _: time.sleep(seconds), x, nbytes=0.0)


class TestSpawn:
    def test_the_handle_gives_what_the_task_returns(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async def task() -> str:
                await sleep(worker, 0.01)
                return "value"

            handle = worker.spawn(task())
            assert await handle == "value"
            assert await handle == "value"

        run(body)

    def test_lines_between_two_awaits_are_not_interrupted(self, run: Any) -> None:
        log: list[tuple[str, int]] = []
        begun: set[str] = set()

        async def body(worker: Any) -> None:
            async def task(name: str) -> None:
                begun.add(name)
                # That they take turns is what lets this end.
                while len(begun) < 3:
                    await sleep(worker, 0.001)
                for step in range(5):
                    log.append((name, step))
                    time.sleep(0.002)
                    log.append((name, step))
                    await sleep(worker, 0.001)

            for handle in [worker.spawn(task(name)) for name in "abc"]:
                await handle

        run(body)
        assert len(log) == 30
        assert all(log[k] == log[k + 1] for k in range(0, 30, 2))

    def test_a_task_starts_when_its_maker_waits(self, run: Any) -> None:
        log: list[str] = []

        async def body(worker: Any) -> None:
            async def task() -> None:
                log.append("task")

            handle = worker.spawn(task())
            time.sleep(0.05)
            log.append("maker")
            await handle

        run(body)
        assert log == ["maker", "task"]

    def test_a_task_may_spawn(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async def inner(k: int) -> int:
                return k if k == 0 else k + await worker.spawn(inner(k - 1))

            assert await worker.spawn(inner(5)) == 15

        run(body)

    def test_a_task_that_nobody_awaited(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async def task() -> None:
                await sleep(worker, 0.01)

            worker.spawn(task())

        with pytest.raises(AlgorithmError) as caught:
            run(body)
        assert str(caught.value) == (
            "worker 0 ended, but nobody awaited the task that it started in iteration 0"
        )

    def test_an_operation_of_a_task_that_nobody_awaited(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async def task() -> None:
                worker.compute(lambda x: x, worker.initial_model(), nbytes=0.0)

            await worker.spawn(task())

        with pytest.raises(AlgorithmError, match="nobody awaited the compute that it started in iteration 0"):
            run(body)

    def test_a_failing_task_ends_the_run_though_nobody_awaits_it(self, run: Any) -> None:
        never = threading.Event()

        async def body(worker: Any) -> None:
            async def task() -> None:
                raise ValueError("out of luck")

            worker.spawn(task())
            x = worker.initial_model()
            await worker.compute(lambda _: never.wait(30), x, nbytes=0.0)

        begin = time.monotonic()
        with pytest.raises(ValueError, match="out of luck"):
            run(body)
        never.set()
        assert time.monotonic() - begin < 10

    def test_the_first_cause_is_raised(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async def task() -> None:
                raise KeyError("first")

            try:
                await worker.spawn(task())
            except KeyError:
                raise ValueError("second") from None

        with pytest.raises(KeyError, match="first"):
            run(body)

    def test_a_task_that_awaits_something_else(self, run: Any) -> None:
        class Foreign:
            def __await__(self) -> Any:
                yield "something"

        async def body(worker: Any) -> None:
            async def task() -> None:
                await Foreign()

            await worker.spawn(task())

        with pytest.raises(AlgorithmError) as caught:
            run(body)
        assert str(caught.value) == "worker 0 awaited something that is not an operation of its worker"


class TestLock:
    def test_who_asks_first_gets_it_first(self, run: Any) -> None:
        order: list[int] = []
        asked: list[int] = []

        async def body(worker: Any) -> None:
            async def task(number: int) -> None:
                asked.append(number)
                async with worker.lock():
                    order.append(number)
                    await sleep(worker, 0.005)
                    order.append(number)

            tasks = []
            async with worker.lock():
                for number in range(6):
                    tasks.append(worker.spawn(task(number)))
                    while len(asked) <= number:
                        await sleep(worker, 0.001)
            # The lock has passed to the first who waits, so that this one comes last.
            async with worker.lock():
                order.append(99)
            for handle in tasks:
                await handle

        run(body)
        assert order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 99]

    def test_locks_of_other_names_are_others(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            async with worker.lock("a"), worker.lock("b"):
                pass

        run(body)

    def test_an_error_gives_it_back(self, run: Any) -> None:
        async def body(worker: Any) -> None:
            with pytest.raises(KeyError):
                async with worker.lock():
                    raise KeyError
            async with worker.lock():
                pass

        run(body)


class TestStandingStill:
    """It is told when every task waits for others, and when one goes on."""

    def tasks(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Tasks, Baton, list[Sequence[Wait]]]:
        monkeypatch.setattr("simulator.execution.tasks.LONG", 0.02)
        told: list[Sequence[Wait]] = []
        baton = Baton()
        return Tasks(0, baton, lambda: None, told.append), baton, told

    def test_one_task_that_computes_keeps_it_going(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tasks, baton, told = self.tasks(monkeypatch)
        message: WallHandle[None] = WallHandle(
            Call("recv", 0, depends=True, peers=(1,)), baton, tasks.waiting
        )
        computation: WallHandle[None] = WallHandle(Call("gradient", 0), baton, tasks.waiting)

        async def waits(handle: WallHandle[None]) -> None:
            await handle  # the line that waits

        ends: list[WallHandle[None]] = [WallHandle(Call("task", 0), baton, tasks.waiting) for _ in range(2)]
        tasks.start(waits(message), ends[0])
        tasks.start(waits(computation), ends[1])
        time.sleep(0.2)
        assert told == []
        computation.finish(None)
        # The other task has ended, and the one that is left waits.
        assert tasks.wait_for_one()
        threading.Timer(0.2, lambda: message.finish(None)).start()
        assert not tasks.wait_for_one()
        source = Path(__file__).read_text().splitlines()
        line = next(k for k, text in enumerate(source, 1) if text.endswith("# the line that waits"))
        assert told == [[Wait(message.call, f"{Path(__file__).name}:{line}")], []]

    def test_a_message_that_has_come_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tasks, baton, told = self.tasks(monkeypatch)
        handle: WallHandle[None] = WallHandle(Call("recv", 0, depends=True), baton, tasks.waiting)
        end: WallHandle[None] = WallHandle(Call("task", 0), baton, tasks.waiting)

        async def waits() -> None:
            await handle

        with baton:
            tasks.start(waits(), end)
            # It cannot even begin to wait while somebody else has the baton.
            time.sleep(0.1)
            handle.finish(None)
        assert not tasks.wait_for_one()
        assert told == []
