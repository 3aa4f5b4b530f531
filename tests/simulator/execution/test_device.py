"""Devices, staging and backends: what a GPU's code does, shown with tensors of the CPU, and on a GPU."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from algorithms import ALGORITHMS, Plan
from simulator.execution import execute, join
from simulator.execution.device import Cpu, Cuda, chosen_backend, identity, side
from simulator.execution.place import Place
from simulator.execution.placed import CopyingOracle, placed_oracle
from simulator.execution.staging import NcclCommunicator, StagedCommunicator
from simulator.parts import BadInput
from simulator.plan import oracle

QUADRATIC: dict[str, Any] = {"kind": "quadratic", "dimension": 6}
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


class FakeCuda:
    """Stands for ``torch.cuda``: notes what is asked of it, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.events = 0

    def set_device(self, device: torch.device) -> None:
        self.log.append(f"set {device}")

    def Event(self, enable_timing: bool = False) -> Any:
        self.events += 1
        return FakeEvent(self, self.events)

    def Stream(self, device: torch.device) -> Any:
        return FakeStream(self)

    def default_stream(self, device: torch.device) -> str:
        return "default"

    def current_stream(self, device: torch.device) -> Any:
        return FakeStream(self, f"current stream of {device}")

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append("enter side stream")
        yield
        self.log.append("leave side stream")


class FakeEvent:
    def __init__(self, api: FakeCuda, number: int) -> None:
        self.api, self.number = api, number

    def record(self) -> None:
        self.api.log.append(f"record {self.number}")

    def synchronize(self) -> None:
        self.api.log.append(f"await {self.number}")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 250.0


class FakeStream:
    def __init__(self, api: FakeCuda, name: str = "side stream") -> None:
        self.api, self.name = api, name

    def synchronize(self) -> None:
        self.api.log.append(f"await {self.name}")


class TestCuda:
    def test_a_message_goes_beside_the_computations(self) -> None:
        api = FakeCuda()
        gpu = Cuda(3, api)
        gpu.prepare()
        called = gpu.called()
        value, begin, end = gpu.message(called, lambda: (api.log.append("send"), 7)[1])
        assert value == 7
        assert begin <= end
        assert api.log == [
            "set cuda:3",
            "record 1",
            "await 1",
            "enter side stream",
            "send",
            "await side stream",
            "leave side stream",
        ]

    def test_a_message_begins_when_its_data_exist(self) -> None:
        class Late(FakeEvent):
            def synchronize(self) -> None:
                time.sleep(0.02)

        called = time.monotonic()
        _, begin, _ = Cuda(0, FakeCuda()).message(Late(FakeCuda(), 1), lambda: None)
        assert begin - called >= 0.02

    def test_a_computation_is_timed_by_events_and_awaited(self) -> None:
        api = FakeCuda()
        value, begin, end = Cuda(0, api).compute(lambda: (api.log.append("compute"), 7)[1])
        assert value == 7
        assert end - begin == pytest.approx(0.25)
        assert api.log == ["record 1", "compute", "record 2", "await 2"]

    def test_what_a_thread_has_asked_for_is_awaited(self) -> None:
        api = FakeCuda()
        Cuda(2, api).finish()
        assert api.log == ["await current stream of cuda:2"]

    def test_what_arrives_on_the_cpu_needs_no_stream(self) -> None:
        x = torch.ones(2)
        value, *_ = Cuda(0, FakeCuda()).message(FakeEvent(FakeCuda(), 0), lambda: {1: x})
        assert value[1] is x


class TestChoice:
    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert isinstance(side("auto", 0), Cpu)
        assert isinstance(side("cpu", 0), Cpu)
        with pytest.raises(BadInput) as caught:
            side("cuda", 0)
        assert str(caught.value) == "device: torch finds no CUDA device on this machine; use 'cpu'"

    def test_ranks_take_gpus_in_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [side("auto", rank).device.index for rank in range(4)] == [0, 1, 0, 1]
        assert side("cpu", 1).device == CPU

    def test_an_unknown_one(self) -> None:
        with pytest.raises(BadInput) as caught:
            side("tpu", 0)
        assert str(caught.value) == "device: 'tpu' is not one of auto, cpu, cuda"

    def test_nccl_where_each_rank_has_its_gpu(self) -> None:
        own = [("a", "cuda:0"), ("a", "cuda:1"), ("b", "cuda:0")]
        assert chosen_backend("auto", own, ["x", "y", "z"]) == "nccl"
        assert chosen_backend("gloo", own, ["x", "y", "z"]) == "gloo"

    def test_ranks_that_each_see_their_own_gpu_alone(self) -> None:
        """All call it cuda:0, as under Slurm's --gpus-per-task=1."""
        same = [("a", "cuda:0"), ("a", "cuda:0")]
        assert chosen_backend("auto", same, ["x", "y"]) == "nccl"
        assert chosen_backend("nccl", same, ["x", "y"]) == "nccl"

    def test_what_tells_gpus_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = {0: "x", 1: "y"}
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=seen[device.index])
        )
        assert [identity(place) for place in (Cuda(1), Cuda(0), Cpu())] == ["y", "x", ""]

    def test_gloo_where_not(self) -> None:
        shared = [("a", "cuda:0"), ("b", "cuda:0"), ("a", "cuda:0")]
        assert chosen_backend("auto", shared, ["x", "y", "x"]) == "gloo"
        with pytest.raises(BadInput) as caught:
            chosen_backend("nccl", shared, ["x", "y", "x"])
        assert str(caught.value) == (
            "backend: NCCL needs a GPU for each rank, but ranks 0 and 2 share cuda:0 of a; use 'gloo'"
        )
        with pytest.raises(BadInput) as caught:
            chosen_backend("nccl", [("a", "cuda:0"), ("b", "cpu")], ["x", ""])
        assert str(caught.value) == (
            "backend: NCCL needs a GPU, but rank 1 computes on the cpu of b; use 'gloo'"
        )
        with pytest.raises(BadInput, match="'mpi' is not one of auto, gloo, nccl"):
            chosen_backend("mpi", [], [])

    def test_before_any_process_starts(self, make: Any) -> None:
        with pytest.raises(BadInput, match="backend: NCCL needs a GPU, but rank 0 computes on the cpu of "):
            execute(make("local-sgd", 2, QUADRATIC), backend="nccl")

    def test_ranks_are_told(self, make: Any) -> None:
        told: list[Any] = []
        execute(make("local-sgd", 2, QUADRATIC), met=lambda *found: told.extend(found))
        assert told == [[(platform.node(), "cpu")] * 2, "gloo"]


class Echo:
    """A communicator of the CPU that gives back what it is given."""

    one_order = False

    def __init__(self) -> None:
        self.box: list[torch.Tensor] = []

    def all_reduce(self, x: torch.Tensor, op: str, group: str) -> None:
        x.mul_(2)

    def exchange(self, x: torch.Tensor, sources: Any, destinations: Any) -> dict[int, torch.Tensor]:
        return {source: x + source for source in sources}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        return tuple(x + member for member in range(members))

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        return parts.flip(0)

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        self.box.append(x)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        return self.box.pop(0)


def check_staging(device: torch.device, pinned: bool) -> None:
    staged = StagedCommunicator(Echo(), device, pinned)
    x = torch.arange(5.0, device=device)
    y = x.clone()
    staged.all_reduce(y, "sum", "world")
    assert torch.equal(y, 2 * x)
    assert torch.equal(staged.exchange(x, [2], [1])[2], x + 2)
    assert torch.equal(staged.all_gather(x, "world", 2)[1], x + 1)
    rows = x[:4].view(2, 2)
    assert torch.equal(staged.all_to_all(rows, "world"), rows.flip(0))
    staged.send(x, 1, 0)
    x.zero_()
    received = staged.recv(0, 0)
    assert received.device.type == device.type
    assert received.tolist() == [0, 1, 2, 3, 4]


def test_staging() -> None:
    check_staging(CPU, pinned=False)


def test_collectives_of_the_cpu_do_not_go_to_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm's own counts may be there; what they become is there, too."""
    monkeypatch.setattr(dist, "new_group", lambda *_, **__: None)
    gpu = torch.device("cuda", 0)
    carrier = NcclCommunicator(StagedCommunicator(Echo(), gpu, pinned=False), 2, Plan({}), gpu)
    x = torch.arange(4, dtype=torch.int32)
    y = x.clone()
    carrier.all_reduce(y, "sum", "world")
    assert torch.equal(y, 2 * x)
    assert torch.equal(carrier.all_gather(x, "world", 2)[1], x + 1)
    assert torch.equal(carrier.all_to_all(x.view(2, 2), "world"), x.view(2, 2).flip(0))
    assert torch.equal(carrier.exchange(x, [1], [1])[1], x + 1)


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_nccl_meets_before_the_common_start(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[list[int], torch.device | None]] = []

    def new_group(ranks: list[int], *, device_id: torch.device | None, **_: Any) -> None:
        made.append((ranks, device_id))

    monkeypatch.setattr(dist, "new_group", new_group)
    gpu = torch.device("cuda", 1)
    staged = StagedCommunicator(Echo(), gpu, pinned=False)
    NcclCommunicator(staged, 4, Plan({"left": (0, 1)}), gpu, backend)
    met = gpu if backend == "nccl" else None
    assert made == [([0, 1, 2, 3], met), ([0, 1], met)]


class TestPlacement:
    def test_an_objective_that_does_not_move_is_copied_for(self, make: Any) -> None:
        scenario = make("local-sgd", 2, {**QUADRATIC, "sigma2": 1.0})
        assert not scenario.objective.place(torch.device("cuda"))
        copying, plain = CopyingOracle(oracle(scenario, 1), CPU), oracle(scenario, 1)
        x = torch.ones(6, dtype=torch.float64)
        assert torch.equal(copying.gradient(x), plain.gradient(x))
        assert torch.equal(copying.full_gradient(x), plain.full_gradient(x))
        parts: dict[int, torch.Tensor] = {}
        copying.gradient_in_buckets(x, [(3, 6), (0, 3)], parts.__setitem__)
        assert torch.equal(torch.cat([parts[1], parts[0]]), plain.gradient(x))
        assert copying.problem is None

    def test_its_problem_too(self, make: Any) -> None:
        scenario = make("svrg", 1, {"kind": "logistic", "data": "digits"}, batch=8)
        copying, plain = CopyingOracle(oracle(scenario, 0), CPU).problem, oracle(scenario, 0).problem
        assert copying is not None
        assert plain is not None
        x, chosen = scenario.objective.initial_model(), torch.tensor([3, 5])
        assert copying.count == plain.count  # type: ignore[attr-defined]  # it is a finite sum
        assert torch.equal(copying.gradient(x, chosen), plain.gradient(x, chosen))  # type: ignore[attr-defined]

    def test_a_network_that_moves_keeps_its_start(self, make: Any) -> None:
        scenario = make("local-sgd", 1, {"kind": "mlp", "data": "digits"}, batch=8)
        objective = scenario.objective
        start = objective.initial_model()
        before = placed_oracle(scenario, 0, CPU).gradient(start)
        # As if it came from another device: everything is laid out anew.
        objective._device = torch.device("meta")
        assert objective.place(CPU)
        assert torch.equal(objective.initial_model(), start)
        assert torch.equal(placed_oracle(scenario, 0, CPU).gradient(start), before)

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_joined_rank_leaves_the_objective_on_the_cpu(
        self, make: Any, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        """The caller's scenario may be simulated next."""
        scenario = make("local-sgd", 1, {"kind": "mlp", "data": "digits"}, batch=8)
        objective = scenario.objective
        start = objective.initial_model()
        before = oracle(scenario, 0).gradient(start)

        def perform(*_: Any, **__: Any) -> tuple[str, None]:
            objective._device = torch.device("meta")  # as if it had moved there
            if fails:
                raise ValueError("out of luck")
            return "record", None

        monkeypatch.setattr(join, "perform", perform)
        with pytest.raises(ValueError, match="out of luck") if fails else contextlib.nullcontext():
            assert join.join(scenario, Place("Slurm", 0, 1, 0, 1, "localhost", 1)) == ["record"]
        assert objective._device == CPU
        assert torch.equal(oracle(scenario, 0).gradient(start), before)


@needs_gpu
class TestGpu:
    def test_staging(self) -> None:
        check_staging(torch.device("cuda", 0), pinned=True)

    @pytest.mark.parametrize("algorithm", list(ALGORITHMS))
    def test_every_algorithm_runs(self, make: Any, algorithm: str) -> None:
        need = ALGORITHMS[algorithm].load().requires
        objective: dict[str, Any] = {"kind": "mlp", "data": "digits"}
        if "compositional" in need:
            objective = {"kind": "portfolio"}
        host = {"builder": "two-level", "hosts": 1, "gpus-per-host": 2}
        more = {"cluster": {"topology": host, "device": "gtx-1080-ti"}} if "shared-memory" in need else {}
        run = execute(make(algorithm, 2, objective, **more), device="cuda")
        assert run is not None
        assert run.samples.loss
