"""Messages, tasks, locks and shared memory between real ranks.

The algorithms check what they see; what they raise fails the run, and the test with it.
"""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.engine.simulate import simulate
from simulator.execution import execute
from simulator.execution.launch import warm_up
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.plan import random_numbers
from simulator.run import Run
from simulator.scenario import Scenario
from traces import TRANSFER, WAIT

START = "import torch\nx = worker.initial_model()\nn, rank = worker.world_size, worker.rank\n"
END = "\nworker.report(await worker.gradient(x))\n"
SHARED = 'frozenset({"shared-memory"})'
EVERY_PAIR = (
    "Plan({}, tuple((i, j, name) for i in range(world_size) for j in range(world_size) for name in 'ab'))"
)


def one_machine(workers: int) -> dict[str, Any]:
    """Return the keys of a cluster whose workers may share memory."""
    topology = {"builder": "two-level", "hosts": 1, "gpus-per-host": workers}
    return {"topology": topology, "device": "gtx-1080-ti"}


def done(scenario: Scenario) -> Run:
    run = execute(scenario)
    assert run is not None
    return run


@pytest.fixture
def carried(own: Any) -> Callable[..., Run]:
    """Return a function that executes lines on some ranks, between a start and an end common to all."""

    def execute_lines(lines: str, workers: int, plan: str = EVERY_PAIR, **more: Any) -> Run:
        if more.get("requires") == SHARED:
            more["cluster"] = one_machine(workers)
        return done(own(START + textwrap.dedent(lines) + END, workers, plan=plan, **more))

    return execute_lines


def noted(run: Run, name: str) -> list[list[float]]:
    """Return what each worker noted under a name."""
    return [
        [seen.value for seen in run.observations if (seen.name, seen.worker) == (name, rank)]
        for rank in range(run.workers)
    ]


class TestCollectives:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_all_gather(self, carried: Any, workers: int) -> None:
        run = carried(
            """
            for kind in (torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool):
                own = torch.tensor([rank, 7, 0]).to(kind)
                handle = worker.all_gather(own)
                own.zero_()
                parts = await handle
                assert [part.dtype for part in parts] == [kind] * n
                expected = [torch.tensor([other, 7, 0]).to(kind).tolist() for other in range(n)]
                assert [part.tolist() for part in parts] == expected
                parts[0].zero_()
                assert all(part.tolist() == values for part, values in zip(parts[1:], expected[1:]))
            empty = await worker.all_gather(x[:0])
            assert [part.tolist() for part in empty] == [[]] * n
            """,
            workers,
        )
        # Three elements of 1, 8, 4, 8 and 1 bytes to each of the others.
        assert run.bytes_sent == ((workers - 1) * 3 * 22,) * workers

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_all_to_all(self, carried: Any, workers: int) -> None:
        run = carried(
            """
            for kind in (torch.uint8, torch.int64, torch.float32, torch.float64):
                own = [torch.tensor([10 * rank + other, other]).to(kind) for other in range(n)]
                handle = worker.all_to_all(own)
                own[0].zero_()
                parts = await handle
                assert [part.dtype for part in parts] == [kind] * n
                assert [part.tolist() for part in parts] == [[10 * other + rank, rank] for other in range(n)]
            assert [part.tolist() for part in await worker.all_to_all([x[:0]] * n)] == [[]] * n
            """,
            workers,
        )
        assert run.bytes_sent == ((workers - 1) * 2 * 21,) * workers

    def test_the_order_of_a_group_is_its_own(self, carried: Any) -> None:
        carried(
            """
            if rank != 1:
                mine = torch.tensor([rank])
                assert [part.item() for part in await worker.all_gather(mine, "odd")] == [2, 0]
                parts = await worker.all_to_all([mine + 10, mine + 20], "odd")
                assert [part.item() for part in parts] == ([12, 10] if rank == 2 else [22, 20])
            """,
            3,
            plan='Plan({"odd": (2, 0)})',
        )

    def test_all_kinds_of_a_group_take_turns(self, carried: Any) -> None:
        run = carried(
            """
            handles = [worker.all_reduce(x), worker.all_gather(x), worker.all_to_all([x, x])]
            for handle in [worker.all_reduce(x), *handles]:
                await handle
            """,
            2,
        )
        moves = [span for span in run.timeline if span.worker == 0 and span.kind == TRANSFER]
        assert [span.operation for span in moves] == ["all_reduce", "all_gather", "all_to_all", "all_reduce"]
        assert all(early.end <= late.start for early, late in pairwise(moves))


class TestChannels:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_messages_of_every_type_and_length(self, carried: Any, workers: int) -> None:
        # Around a ring, and from the only worker to itself: uint8, int64, float32, float64; 3, 0, 1 elements.
        run = carried(
            """
            to, source = (rank + 1) % n, (rank - 1) % n
            def message(sender, kind, length):
                return (torch.arange(length) + 10 * sender).to(kind)
            kinds = (torch.uint8, torch.int64, torch.float32, torch.float64)
            cases = [(kind, length) for kind in kinds for length in (3, 0, 1)]
            sends = []
            for kind, length in cases:
                own = message(rank, kind, length)
                sends.append(worker.send(own, to, "a"))
                own.zero_()
            for kind, length in cases:
                got = await worker.recv(source, "a")
                assert got.dtype == kind
                assert got.tolist() == message(source, kind, length).tolist()
                got.zero_()
            for send in sends:
                assert await send is None
            """,
            workers,
        )
        # What stays on a worker is not sent.
        assert run.bytes_sent == ((4 * 21 if workers > 1 else 0.0),) * workers

    def test_first_in_first_out_and_channels_do_not_mix(self, carried: Any) -> None:
        carried(
            """
            async def feed(name, offset):
                for k in range(100):
                    await worker.send(torch.tensor([offset + k] * (k % 3)), 1 - rank, name)
            tasks = [worker.spawn(feed("a", 1000)), worker.spawn(feed("b", 5000))]
            await worker.gradient(x)
            for k in range(100):
                # The other channel's messages are received in bulk, before and after.
                if k in (20, 60):
                    for j in range(50) if k == 20 else range(50, 100):
                        assert (await worker.recv(1 - rank, "b")).tolist() == [5000 + j] * (j % 3)
                assert (await worker.recv(1 - rank, "a")).tolist() == [1000 + k] * (k % 3)
            for task in tasks:
                await task
            """,
            2,
        )

    def test_every_pair_at_once(self, carried: Any) -> None:
        # 2 x 6 channels between three ranks, short and long messages, each from a task of its own.
        run = carried(
            """
            lengths = (1, 0, 200_000, 3)
            def value(sender, receiver, name, k):
                return 1000 * sender + 100 * receiver + 10 * (name == "b") + k
            async def out(to, name):
                for k, length in enumerate(lengths):
                    await worker.send(torch.full((length,), value(rank, to, name, k)), to, name)
            async def into(source, name):
                for k, length in enumerate(lengths):
                    got = await worker.recv(source, name)
                    assert len(got) == length
                    assert (got == value(source, rank, name, k)).all()
            others = [other for other in range(n) if other != rank]
            tasks = [worker.spawn(out(other, name)) for other in others for name in "ab"]
            tasks += [worker.spawn(into(other, name)) for other in others for name in "ab"]
            for task in tasks:
                await task
            """,
            3,
        )
        assert run.bytes_sent == (4 * 8 * 200_004.0,) * 3

    def test_both_directions_at_once(self, carried: Any) -> None:
        # Each awaits its send before it receives; only concurrent directions let that end.
        carried(
            """
            incoming = worker.recv(1 - rank, "a")
            await worker.send(torch.full((300_000,), float(rank)), 1 - rank, "a")
            assert (await incoming == 1 - rank).all()
            """,
            2,
        )

    def test_waiting_is_told_from_transferring(self, carried: Any) -> None:
        run = carried(
            """
            if rank == 0:
                time.sleep(0.3)
                await worker.send(x, 1, "a")
            else:
                await worker.recv(0, "a")
            """,
            2,
        )
        spans = [span for span in run.timeline if span.operation in ("send", "recv")]
        (wait,) = [span for span in spans if span.kind == WAIT and span.end - span.start > 0.1]
        assert (wait.worker, wait.operation, wait.peer) == (1, "recv", 0)
        assert wait.end - wait.start > 0.25
        moves = sorted((span.worker, span.peer, span.nbytes) for span in spans if span.kind == TRANSFER)
        assert moves == [(0, 1, 40.0), (1, 0, 0.0)]

    def test_a_message_to_oneself_may_stay(self, carried: Any) -> None:
        run = carried('await worker.send(x, rank, "a")', 2)
        assert run.bytes_sent == (0.0, 0.0)


class TestExchanges:
    def test_a_rank_that_only_sends_does_as_it_does_in_simulation(self, own: Any, tmp_path: Path) -> None:
        file = tmp_path / f"arc_{tmp_path.name}.py"
        file.write_text("import networkx as nx\n\ndef arc():\n    return nx.DiGraph([(0, 1)])\n")
        lines = """
            received = await worker.exchange(x + rank)
            assert {other: y.tolist() for other, y in received.items()} == ({0: x.tolist()} if rank else {})
        """
        scenario = own(
            START + textwrap.dedent(lines) + END,
            2,
            requires='frozenset({"graph"}); mixes = False',
            plan='Plan({}, ((0, 1, "exchange"),))',
            gossip={"graph": {"builder": f"{file.name}:arc"}},
        )
        without_rendezvous = scenario.vary(transport="ideal")
        assert simulate(without_rendezvous).iterations == done(scenario).iterations == (1, 1)


class TestComputations:
    def test_an_evaluation_counts_what_it_says(self, carried: Any) -> None:
        run = carried(
            """
            def double(a, b):
                return (2 * a, b)
            first = torch.ones(3)
            handle = worker.evaluate(double, first, x, gradients=2.5, iterations=3)
            first.zero_()
            doubled, same = await handle
            assert doubled.tolist() == [2, 2, 2]
            assert same.tolist() == x.tolist()
            await worker.evaluate(double, x, x, gradients=0.5, iterations=0)
            x = torch.cat([part for part in [await part for part in worker.gradient_buckets(x)]][::-1])
            worker.observe("count", worker.iterations)
            """,
            2,
            iterations=9,
        )
        assert run.iterations == (5, 5)
        assert run.evaluations == (5.0, 5.0)
        assert noted(run, "count") == [[4], [4]]
        names = [span.operation for span in run.timeline if span.worker == 0]
        assert names == ["gradient"] * 4

    def test_a_computation_of_ones_own(self, carried: Any) -> None:
        run = carried(
            """
            first = torch.ones(2)
            handle = worker.compute(lambda a: {"sign": a.sign()}, first, nbytes=16.0)
            first.fill_(-1)
            assert (await handle)["sign"].tolist() == [1, 1]
            """,
            1,
        )
        assert [span.operation for span in run.timeline] == ["compute", "gradient"]

    def test_random_numbers(self, carried: Any) -> None:
        run = carried(
            """
            for shared in (False, True):
                for _ in range(2):
                    worker.observe(f"{shared}", worker.random("choice", shared).random())
            """,
            2,
        )
        for shared in (False, True):
            streams = [random_numbers(3, rank, "choice", shared) for rank in range(2)]
            assert noted(run, str(shared)) == [[s.random(), s.random()] for s in streams]
        assert noted(run, "True")[0] == noted(run, "True")[1]
        assert noted(run, "False")[0] != noted(run, "False")[1]


class TestSharedMemory:
    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_disjoint_additions_lose_nothing(self, carried: Any, workers: int) -> None:
        # Each rank owns every n-th element; neighbours share cache lines, and nobody takes a lock.
        run = carried(
            """
            memory = worker.shared("model", torch.zeros(60, dtype=torch.float64))
            own = torch.arange(rank, 60, n)
            for k in range(200):
                handle = memory.add(torch.ones(len(own), dtype=torch.float64), own)
                seen = await memory.read()
                assert (seen[own] == k + 1).all()
                await handle
            await worker.all_reduce(x)
            assert memory.writes == 200 * n
            assert (await memory.read() == 200).all()
            await worker.all_reduce(x)
            await memory.add(torch.full((60,), 0.5, dtype=torch.float64))
            """,
            workers,
            requires=SHARED,
        )
        names = [span.operation for span in run.timeline if span.worker == 0 and span.kind == "compute"]
        assert names.count("add") == 201
        assert names.count("read") == 201

    def test_the_first_caller_fills_it_once(self, carried: Any) -> None:
        carried(
            """
            memory = worker.shared("m", torch.arange(4.0))
            await memory.add(torch.ones(4), torch.arange(4) if rank else None)
            await worker.all_reduce(x)
            memory = worker.shared("m", torch.arange(4.0))
            other = worker.shared("other", torch.zeros(1, dtype=torch.int64))
            assert memory.writes == 3
            assert other.writes == 0
            """,
            3,
            requires=SHARED,
        )

    def test_arguments_are_taken_when_called(self, carried: Any) -> None:
        carried(
            """
            memory = worker.shared("m", torch.zeros(3))
            values, at = torch.ones(2), torch.tensor([0, 2])
            handle = memory.add(values, at)
            values.fill_(9)
            at.fill_(1)
            await handle
            seen = await memory.read()
            assert seen.tolist() == [1, 0, 1]
            seen.fill_(5)
            assert (await memory.read()).tolist() == [1, 0, 1]
            """,
            1,
            requires=SHARED,
        )

    def test_no_file_is_left(self, carried: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        # The helper process has a folder of its own, elsewhere.
        warm_up()
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        lines = """
            from pathlib import Path
            memory = worker.shared("m", torch.zeros(3))
            await worker.all_reduce(x)
            # All have mapped it, so that its name is gone already.
            worker.observe("files", len(list(Path({folder!r}).glob("paceline-*/shared-*"))))
            worker.observe("folders", len(list(Path({folder!r}).glob("paceline-*"))))
        """.format(folder=str(folder))
        run = carried(lines, 2, requires=SHARED)
        assert noted(run, "files") == [[0], [0]]
        assert noted(run, "folders") == [[1], [1]]
        assert list(folder.iterdir()) == []

    def test_reads_mix_versions(self, carried: Any) -> None:
        # One rank adds ones to a large vector, the other reads until it has seen a part of an addition.
        run = carried(
            """
            memory = worker.shared("m", torch.zeros(2_000_000))
            over = worker.shared("over", torch.zeros(1))
            mixed, deadline = False, time.monotonic() + 30
            if rank == 0:
                while not await over.read() and time.monotonic() < deadline:
                    await memory.add(torch.ones(2_000_000))
            else:
                while not mixed and time.monotonic() < deadline:
                    seen = await memory.read()
                    mixed = bool(seen.min() != seen.max())
                await over.add(torch.ones(1))
                worker.observe("mixed", mixed)
            """,
            2,
            requires=SHARED,
        )
        assert noted(run, "mixed") == [[], [1.0]]

    def test_different_lengths(self, own: Any) -> None:
        body = """
            import torch
            x = await worker.gradient(worker.initial_model())
            worker.report(x)
            if worker.rank == 1:
                await worker.all_reduce(x)
            memory = worker.shared("m", torch.zeros(3 + worker.rank))
            if worker.rank == 0:
                await worker.all_reduce(x)
            await worker.all_reduce(x)
        """
        with pytest.raises(AlgorithmError) as caught:
            execute(own(body, 2, requires=SHARED, cluster=one_machine(2)))
        assert str(caught.value) == (
            "worker 1 shares 'm' as 4 float32 elements, but another worker shares it as 3 float32"
        )

    def test_a_run_that_fails_leaves_no_file(
        self, own: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # The helper process has a folder of its own, elsewhere.
        warm_up()
        folder = tmp_path / "temporary"
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        body = """
            worker.shared("m", worker.initial_model())
            os.kill(os.getpid(), signal.SIGKILL)
        """
        with pytest.raises(WorkerFailed):
            execute(own(body, 3, requires=SHARED, cluster=one_machine(3)))
        assert list(folder.iterdir()) == []


def test_an_algorithm_of_tasks_and_channels_goes_on_many_times(own: Any) -> None:
    """A server that averages what comes, one task for each worker, under a lock."""
    body = """
        x = worker.initial_model()
        if worker.rank == 0:
            model = [x]
            async def serve(source):
                for _ in range(4):
                    gradient = await worker.recv(source)
                    async with worker.lock():
                        before = model[0]
                        model[0] = await worker.update(model[0], gradient)
                        assert before is not model[0]
                    await worker.send(model[0], source)
            for task in [worker.spawn(serve(source)) for source in range(1, worker.world_size)]:
                await task
            worker.report(await worker.gradient(model[0]))
        else:
            while worker.running:
                await worker.send(await worker.gradient(x), 0)
                x = await worker.recv(0)
            worker.report(x)
    """
    plan = (
        'Plan({}, tuple((i, 0, "message") for i in range(1, world_size)) '
        '+ tuple((0, i, "message") for i in range(1, world_size)))'
    )
    run = done(own(body, 3, plan=plan))
    assert run.iterations == (1, 4, 4)
    assert run.bytes_sent == (2 * 4 * 40.0, 4 * 40.0, 4 * 40.0)
    assert run.models is not None
    assert np.isfinite(run.models).all()
