"""The worker on the wall clock, one rank in this process; its messages go to a scripted communicator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch

from algorithms import Algorithm, Reduction, Worker
from simulator.engine.simulate import simulate
from simulator.execution.communicator import Communicator
from simulator.execution.record import Record
from simulator.execution.streams import Baton, Call, Latest, Stream, WallHandle, line
from simulator.execution.worker import WallWorker
from simulator.plan import group_share
from simulator.scenario import Scenario
from traces import COMPUTE

QUADRATIC = {"kind": "quadratic", "dimension": 4, "sigma2": 0.0}

Body = Callable[[Any], Coroutine[Any, Any, None]]


class Echo:
    """A communicator in which all other ranks send zeros, after a while."""

    one_order = False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sent: list[torch.Tensor] = []

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        time.sleep(self.seconds)

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        time.sleep(self.seconds)
        # The neighbours send back what they get, so that a test sees what was sent.
        return {source: x.clone() for source in sources}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        time.sleep(self.seconds)
        return tuple(x.clone() for _ in range(members))

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        time.sleep(self.seconds)
        return parts.clone()

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        time.sleep(self.seconds)
        self.sent.append(x)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.ones(3)


def run(scenario: Scenario, body: Body, communicator: Communicator | None = None) -> Record:
    class Scripted(Algorithm):
        async def run(self, worker: Worker) -> None:
            await body(worker)

    worker = WallWorker(scenario, 0, communicator)
    try:
        return worker.run(Scripted(), time.monotonic())
    finally:
        worker.close()


def finished(body: Body) -> Body:
    """Add a gradient and a report, which every run must have."""

    async def whole(worker: Any) -> None:
        await body(worker)
        worker.report(await worker.gradient(worker.initial_model()))

    return whole


class TestPlaceInTheWorld:
    def test_without_a_graph(self, make: Any) -> None:
        worker = WallWorker(make("local-sgd", 4, QUADRATIC), 2, Echo())
        assert (worker.rank, worker.world_size, worker.share) == (2, 4, 0.25)
        assert worker.weights == {}

    def test_with_a_graph(self, make: Any) -> None:
        # A ring with self-loops of weight 1/3; the row of rank 1 holds its neighbours and itself.
        worker = WallWorker(make("d-psgd", 4, QUADRATIC), 1, Echo())
        assert list(worker.weights) == [0, 1, 2]
        assert list(worker.weights.values()) == pytest.approx([1 / 3] * 3)

    def test_share_of_the_global_batch(self, make: Any) -> None:
        scenario = make("local-sgd", 3, QUADRATIC, batch=10, slowdowns={2: 2.0})
        assert [WallWorker(scenario, rank, Echo()).share for rank in range(3)] == [0.4, 0.4, 0.2]

    def test_running_depends_on_its_own_gradients(self, make: Any) -> None:
        seen = []

        async def body(worker: Any) -> None:
            while worker.running:
                seen.append(worker.iterations)
                worker.report(await worker.gradient(worker.initial_model()))

        record = run(make("local-sgd", 1, QUADRATIC, iterations=3), body)
        assert seen == [0, 1, 2]
        assert record.iterations == 3
        assert record.reports.iterations == [1, 2, 3]

    def test_batch_step_size_and_rule(self, make: Any) -> None:
        scenario = make("local-sgd", 3, QUADRATIC, batch=10, slowdowns={2: 2.0})
        workers = [WallWorker(scenario, rank, Echo()) for rank in range(3)]
        assert [worker.batch for worker in workers] == [12, 12, 6]
        assert workers[0].step_size == 0.1
        assert workers[0].rule_state is None
        assert workers[0].graph is None
        assert list(WallWorker(make("d-psgd", 3, QUADRATIC), 0, Echo()).graph or ()) == [0, 1, 2]

    def test_an_initial_model_is_fresh(self, make: Any) -> None:
        worker = WallWorker(make("local-sgd", 1, QUADRATIC), 0, None)
        worker.initial_model().fill_(7)
        assert worker.initial_model().tolist() == [0, 0, 0, 0]


class TestGroupShares:
    def test_equal_shares_need_no_weight(self) -> None:
        assert group_share(None, (0, 1), 0) is None

    def test_the_world_takes_its_shares_as_they_are(self) -> None:
        # They add up to 1 - 2**-53 here; dividing by that would change them.
        shares = (0.7, 0.1, 0.1, 0.1)
        assert sum(shares) != 1
        assert [group_share(shares, range(4), rank) for rank in range(4)] == list(shares)

    def test_a_smaller_group_divides_by_its_sum(self) -> None:
        assert group_share((0.5, 0.25, 0.25), (1, 2), 1) == 0.5
        assert group_share((0.5, 0.25, 0.25), (0, 2), 0) == 0.5 / 0.75


class TestUpdateRule:
    """Momentum 0.5 and step size 0.1, on ones; the velocity is the state."""

    UPDATE: ClassVar[dict[str, Any]] = {
        "rule": "momentum",
        "momentum": 0.5,
        "schedule": {"kind": "step", "every": 1, "factor": 0.5},
    }

    async def body(self, worker: Any, seen: list[object]) -> None:
        x = worker.initial_model() + 1
        ones = torch.ones_like(x)
        await worker.gradient(x)
        seen.append((worker.rule_state, worker.step_size))
        x = await worker.update(x, ones)
        await worker.gradient(x)  # the step size goes by the iterations
        seen.append((worker.rule_state.tolist(), worker.step_size))
        # The state is that after all updates called so far, awaited or not, behind a long computation too.
        gradient = worker.gradient(x)
        if isinstance(worker, WallWorker):
            worker._compute_stream.start(lambda: time.sleep(0.05))
        later = worker.update(x, ones)
        seen.append((worker.rule_state.tolist(), worker.step_size))
        replaced = 2 * ones
        worker.set_rule_state(replaced)
        replaced.fill_(7)
        once_more = worker.update(x, ones)
        seen.append((worker.rule_state.tolist(), worker.step_size))
        worker.set_rule_state(None)
        seen.append((worker.rule_state, worker.step_size))
        seen.append([(await later).tolist(), (await once_more).tolist()])
        await gradient
        worker.report(x)

    def test_state_and_step_size(self, make: Any) -> None:
        seen: list[object] = []
        run(make("local-sgd", 1, QUADRATIC, update=self.UPDATE), lambda worker: self.body(worker, seen))
        # x = 0.9 after the first; in the third iteration 0.9 - 0.025 * 1.5, and 0.9 - 0.025 * (0.5 * 2 + 1).
        assert seen == [
            (None, 0.1),
            ([1.0] * 4, 0.05),
            ([1.5] * 4, 0.025),
            ([2.0] * 4, 0.025),
            (None, 0.025),
            [pytest.approx([0.8625] * 4), pytest.approx([0.85] * 4)],
        ]

    def test_it_is_the_same_in_simulation(self, make: Any) -> None:
        executed: list[object] = []
        simulated: list[object] = []
        body = self.body

        @dataclass(frozen=True)
        class Scripted(Algorithm):
            async def run(self, worker: Worker) -> None:
                await body(worker, simulated)

        scenario = make("local-sgd", 1, QUADRATIC, update=self.UPDATE)
        run(scenario, lambda worker: body(worker, executed))
        simulate(scenario.vary(algorithm=Scripted()))
        assert simulated == executed

    def test_a_state_that_does_not_fit(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            worker.set_rule_state(torch.zeros(3))
            await worker.update(worker.initial_model(), worker.initial_model())

        with pytest.raises(
            ValueError, match="a state of 3 elements does not fit the update rule, which keeps "
        ):
            run(make("local-sgd", 1, QUADRATIC), body)


class TestArgumentsAreTakenWhenCalled:
    """Every operation is called with ones, which become sevens before it is awaited."""

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (lambda worker, x: worker.update(x, torch.ones(4)), 0.9),
            (lambda worker, x: worker.update(torch.ones(4), x), 0.9),
            (lambda worker, x: worker.update(torch.ones(4), [x[2:], x[:2]]), 0.9),
            (lambda worker, x: worker.combine((2, x), (3, x)), 5.0),
            (lambda worker, x: worker.all_reduce(x), 0.5),
            (lambda worker, x: worker.all_reduce(x, "sum"), 1.0),
            (lambda worker, x: worker.all_reduce(x, "max"), 1.0),
        ],
    )
    def test_by_operation(self, make: Any, call: Callable[[Any, torch.Tensor], Any], expected: float) -> None:
        values = []

        async def body(worker: Any) -> None:
            x = torch.ones(4, dtype=torch.float64)
            handle = call(worker, x)
            x.fill_(7)
            result = await handle
            values.append(result.tolist())
            assert x.tolist() == [7] * 4
            result.fill_(9)
            assert x.tolist() == [7] * 4

        run(make("local-sgd", 2, QUADRATIC), finished(body), Echo(0.02))
        assert values == [pytest.approx([expected] * 4)]

    def test_a_gradient(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            expected = await worker.gradient(x)
            under_way = worker.gradient(x)
            buckets = worker.gradient_buckets(x)
            x.fill_(7)
            assert torch.equal(await under_way, expected)
            assert [part.tolist() for part in [await bucket for bucket in buckets]] == [
                expected[2:].tolist(),
                expected[:2].tolist(),
            ]

        run(make("local-sgd", 1, QUADRATIC), finished(body))

    def test_an_exchange(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            x = torch.ones(4)
            under_way = worker.exchange(x)
            x.fill_(7)
            assert {rank: tensor.tolist() for rank, tensor in (await under_way).items()} == {
                1: [1] * 4,
                3: [1] * 4,
            }

        run(make("d-psgd", 4, QUADRATIC), finished(body), Echo(0.02))

    def test_a_report(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            x = await worker.gradient(worker.initial_model())
            x.fill_(1)
            worker.report(x)
            x.fill_(7)

        record = run(make("local-sgd", 1, QUADRATIC), body)
        assert record.reports.models.tolist() == [[1, 1, 1, 1]]


class TestOverlap:
    """Half a second of messages and half a second of computing take less than their sum."""

    @staticmethod
    def slow(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> Scenario:
        assert scenario.objective is not None
        oracle_of = scenario.objective.oracle

        def oracle(*arguments: Any) -> Any:
            made = oracle_of(*arguments)
            gradient = made.gradient

            def slow_gradient(x: torch.Tensor) -> torch.Tensor:
                time.sleep(0.5)
                return gradient(x)

            made.gradient = slow_gradient
            return made

        monkeypatch.setattr(scenario.objective, "oracle", oracle)
        return scenario

    def test_a_message_and_a_computation(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            average = worker.all_reduce(x)
            worker.report(await worker.gradient(x))
            await average

        record = run(self.slow(make("local-sgd", 2, QUADRATIC), monkeypatch), body, Echo(0.5))
        assert 0.5 <= record.end < 0.9

    def test_computations_take_turns(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            first, second = worker.gradient(x), worker.update(x, x)
            await second
            worker.report(await first)

        record = run(self.slow(make("local-sgd", 1, QUADRATIC), monkeypatch), body)
        gradient, update = record.computations
        assert (gradient.kind, gradient.operation, gradient.iteration) == (COMPUTE, "gradient", 1)
        assert (update.kind, update.operation, update.iteration) == (COMPUTE, "update", 1)
        assert 0.5 <= gradient.end - gradient.start < 0.9
        assert gradient.end <= update.start

    def test_messages_of_a_group_take_turns(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            for handle in [worker.all_reduce(x), worker.all_reduce(x)]:
                await handle

        record = run(make("local-sgd", 2, QUADRATIC), finished(body), Echo(0.1))
        first, second = record.messages
        assert (first.call.number, second.call.number) == (0, 1)
        assert first.end <= second.begin

    def test_channels_and_directions_do_not_wait_for_each_other(self, own: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            handles = [worker.all_reduce(x), worker.send(x, 1, "a"), worker.send(x, 1, "b")]
            for handle in [*handles, worker.recv(1, "a"), worker.recv(2, "a")]:
                await handle

        plan = 'Plan({}, ((0, 1, "a"), (0, 1, "b"), (1, 0, "a"), (2, 0, "a")))'
        record = run(own("pass", 3, plan=plan), finished(body), Echo(0.5))
        assert 0.5 <= record.end < 0.9
        assert len(record.messages) == 5

    def test_messages_of_a_channel_take_turns(self, own: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            for handle in [worker.send(x, 1, "a"), worker.send(x, 1, "a")]:
                await handle

        record = run(own("pass", 2, plan='Plan({}, ((0, 1, "a"),))'), finished(body), Echo(0.1))
        first, second = record.messages
        assert (first.call.number, second.call.number) == (0, 1)
        assert first.end <= second.begin

    def test_groups_do_not_wait_for_each_other(self, own: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            for handle in [worker.all_reduce(x, group="world"), worker.all_reduce(x, group="left")]:
                await handle

        scenario = own("pass", 3, plan='Plan({"left": (0, 1)})')
        assert run(scenario, finished(body), Echo(0.5)).end < 0.9


class TestHandles:
    def test_awaiting_again_gives_the_same_value(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            handle = worker.gradient(worker.initial_model())
            assert torch.equal(await handle, await handle)

        run(make("local-sgd", 1, QUADRATIC), finished(body))

    def test_an_error_can_be_caught(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            with pytest.raises(ValueError, match="a model is a vector of 4"):
                await worker.gradient(torch.zeros(3))

        run(make("local-sgd", 1, QUADRATIC), finished(body))

    def test_every_bucket_of_a_failed_gradient_fails(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            for handle in worker.gradient_buckets(torch.zeros(3)):
                with pytest.raises(ValueError, match="a model is a vector of 4"):
                    await handle

        run(make("local-sgd", 1, QUADRATIC), finished(body))

    def test_thousands_of_handles_are_forgotten_once_awaited(self, make: Any) -> None:
        async def body(worker: Any) -> None:
            x = worker.initial_model()
            for _ in range(500):
                await worker.combine((1, x))
            assert not worker._baton.open

        run(make("local-sgd", 1, QUADRATIC), finished(body))


class TestBaton:
    def test_an_await_gives_it_away(self) -> None:
        """The algorithm holds the baton while its lines run; another task gets it inside the await only."""
        baton, log = Baton(), []
        handle: WallHandle[str] = WallHandle(Call("gradient", 0), baton, lambda *_: None)

        def other() -> None:
            with baton:
                log.append("other task")
            handle.finish("value")

        async def lines() -> None:
            task = threading.Thread(target=other)
            task.start()
            time.sleep(0.05)
            log.append("before the await")
            log.append(await handle)
            task.join()

        with baton, pytest.raises(StopIteration):
            lines().send(None)
        assert log == ["before the await", "other task", "value"]

    def test_an_error_gives_it_back(self) -> None:
        baton = Baton()
        handle: WallHandle[str] = WallHandle(Call("gradient", 0), baton, lambda *_: None)

        async def lines() -> None:
            threading.Timer(0.02, lambda: handle.fail(KeyError("lost"))).start()
            with pytest.raises(KeyError):
                await handle

        with baton, pytest.raises(StopIteration):
            lines().send(None)

    def test_a_wait_is_told(self) -> None:
        told: list[tuple[Call, str | None]] = []

        def waiting(handle: WallHandle[Any], frame: FrameType | None) -> None:
            told.append((handle.call, None if frame is None else line(frame)))

        call = Call("all_reduce", 1, "world", 0, (1,))
        handle: WallHandle[TimeoutError] = WallHandle(call, Baton(), waiting)

        async def lines() -> None:
            threading.Timer(0.05, lambda: handle.fail(TimeoutError("its own"))).start()
            with pytest.raises(TimeoutError, match="its own"):
                await handle  # the line that waits

        with handle._baton, pytest.raises(StopIteration):
            lines().send(None)
        source = Path(__file__).read_text().splitlines()
        number = next(k for k, text in enumerate(source, 1) if text.endswith("# the line that waits"))
        assert told == [(call, f"{Path(__file__).name}:{number}"), (call, None)]


def test_a_stream_works_in_the_order_of_the_calls() -> None:
    log: list[object] = []
    done = threading.Event()
    stream = Stream("test", lambda: log.append("prepared"))
    for number in range(100):
        stream.start(lambda number=number: log.append(number))
    stream.start(done.set)
    stream.close()
    assert done.wait(5)
    assert log == ["prepared", *range(100)]


class TestLatest:
    """Who does the work of the operation that a task has called last."""

    def called(self, latest: Latest, stream: Stream, by: list[int]) -> WallHandle[None]:
        handle: WallHandle[None] = WallHandle(Call("gradient", 0), Baton(), lambda *_: None)

        def work() -> None:
            by.append(threading.get_ident())
            handle.finish(None)

        latest.call(handle, stream, work)
        return handle

    def test_the_task_that_awaits_it_next(self) -> None:
        latest, stream, by = Latest(), Stream("test"), list[int]()
        work = latest.claim(self.called(latest, stream, by))
        assert work is not None
        assert by == []
        # What comes meanwhile waits for its turn, and nobody else can claim it.
        later = self.called(latest, stream, by)
        assert latest.claim(later) is None
        work()
        later.ended()
        stream.close()
        stream.join()
        assert [doer == threading.get_ident() for doer in by] == [True, False]

    def test_the_thread_when_another_is_called_or_awaited(self) -> None:
        latest, stream, by = Latest(), Stream("test"), list[int]()
        handles = [self.called(latest, stream, by), self.called(latest, stream, by)]
        handles[0].ended()
        assert latest.claim(handles[0]) is None
        handles[1].ended()
        stream.close()
        stream.join()
        assert threading.get_ident() not in by
        assert len(by) == 2

    def test_the_thread_when_something_is_left_before_it(self) -> None:
        latest, stream, by = Latest(), Stream("test"), list[int]()
        going_on = threading.Event()
        stream.start(lambda: going_on.wait(5) and None)
        handle = self.called(latest, stream, by)
        assert latest.claim(handle) is None
        going_on.set()
        handle.ended()
        assert threading.get_ident() not in by
        stream.close()

    def test_the_task_again_when_the_stream_has_nothing_left(self) -> None:
        latest, stream, by = Latest(), Stream("test"), list[int]()
        for number in range(3):
            work = latest.claim(self.called(latest, stream, by))
            assert work is not None, number
            work()
        assert by == [threading.get_ident()] * 3
        stream.close()
