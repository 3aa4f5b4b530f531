"""Measurements on the virtual clock, where what they find can be computed on paper; networks on the CPU."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from simulator.engine.simulate import simulate
from simulator.execution.calibrate import bench
from simulator.execution.launch import perform
from simulator.measurements import (
    Collectives,
    Computing,
    Concurrent,
    Interference,
    Measurement,
    PingPong,
    computing,
)
from simulator.measurements.computing import Network, _passes, entry_of
from simulator.scenario import Scenario
from simulator.workload.models import MODELS


def observed(
    measurement: Measurement, gpus: int, objective: bool = False, **link: str
) -> dict[str, list[float]]:
    # A pass over the three matrices of a product takes 1 ms.
    cost = {"parameters": 16, "batch": 1, "gradient": "0 s", "update": f"{1e-3 * 192 / (3 * 2**20)} s"}
    workload: dict[str, Any] = {"cost": cost}
    if objective:
        workload["objective"] = {"kind": "quadratic", "dimension": 16, "dtype": "float32"}
    link = {"bandwidth": "1 GB/s", "latency": "1 us", **link}
    scenario = Scenario(
        {
            "name": "measured",
            "cluster": {
                "topology": {"builder": "switch", "gpus": gpus, "link": link},
                "device": "ideal",
                "transport": {"name": "ideal", "pipelined": False, "rendezvous": True},
            },
            "workload": workload,
            "algorithm": measurement,
            **({"step-size": 0.1} if objective else {}),
            "budget": {"iterations": 1},
        }
    )
    found: dict[str, list[float]] = {}
    for noted in simulate(scenario).observations:
        found.setdefault(noted.name, []).append(noted.value)
    return found


@pytest.mark.parametrize("objective", [False, True])
def test_ping_pong_takes_two_ways(objective: bool) -> None:
    measurement = PingPong(pairs=((0, 1), (1, 2)), sizes=(4, 4000), repeats=3)
    found = observed(measurement, 3, objective)
    assert list(found) == ["ping-pong/0-1/4", "ping-pong/0-1/4000", "ping-pong/1-2/4", "ping-pong/1-2/4000"]
    for name, times in found.items():
        size = int(name.rpartition("/")[2])
        assert times == pytest.approx([2 * (2e-6 + size / 1e9)] * 3)


def test_messages_that_share_a_link_take_longer() -> None:
    sets = (((0, 1),), ((0, 1), (1, 0)), ((0, 1), (2, 1)))
    found = observed(Concurrent(sets=sets, sizes=(10**6,), repeats=2), 3)
    assert found["concurrent/0/1000000"] == pytest.approx([1e-3 + 2e-6] * 4, rel=1e-5)
    assert found["concurrent/1/1000000"] == pytest.approx([1e-3 + 2e-6] * 4, rel=1e-5)
    assert max(found["concurrent/2/1000000"]) == pytest.approx(2e-3 + 2e-6, rel=1e-5)


def test_collectives_take_the_textbook_time() -> None:
    found = observed(Collectives(sizes=(3000,), repeats=2), 3)
    assert found["all_reduce/3000"] == pytest.approx([4 * 2e-6 + 4 / 3 * 3000 / 1e9] * 6)
    assert found["all_gather/3000"] == pytest.approx([2 * 2e-6 + 2 / 3 * 3000 / 1e9] * 6)
    assert set(found) == {"all_reduce/3000", "all_gather/3000", "all_to_all/3000"}


def test_fewer_repeats_when_time_is_short() -> None:
    measurement = PingPong(repeats=20, seconds=1.0)
    assert [measurement.fewer(first) for first in (0.01, 0.05, 0.1, 5.0)] == [20, 20, 10, 3]
    assert PingPong(repeats=2, seconds=1.0).fewer(9.0) == 2
    assert PingPong(repeats=7).fewer(1e9) == 7


def test_computations_and_transfers_are_noted_alone_and_together() -> None:
    found = observed(Interference(size=10**6, repeats=4), 2, objective=True)
    transfer = 2 * 2e-6 + 1e-3
    assert found["alone"] == pytest.approx([1e-3] * 8)
    assert found["beside"] == pytest.approx([1e-3] * len(found["beside"]))
    assert found["transfer-alone"] == pytest.approx([transfer] * 8)
    assert found["transfer-beside"] == pytest.approx([transfer] * len(found["transfer-beside"]))


@pytest.mark.parametrize("model", ["mlp-digits", "cnn-digits"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_network_gives_its_whole_gradient(model: str, precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    network = Network(model, 3, precision, torch.device("cpu"))
    gradients = []
    for _ in range(2):
        network.forward()
        gradients.append(network.backward())
    assert gradients[0].numel() == sum(p.numel() for p in MODELS[model].build().parameters())
    assert gradients[0].dtype == torch.float32
    assert torch.equal(*gradients)  # nothing is left of the pass before
    assert gradients[0].abs().sum() > 0
    assert torch.get_float32_matmul_precision() == before


def test_batches_without_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Network):
        def __init__(self, model: str, batch: int, precision: str, device: torch.device) -> None:
            super().__init__(model, batch, precision, device)
            self._batch = batch

        def backward(self) -> torch.Tensor:
            if self._batch > 4:
                raise torch.OutOfMemoryError("there is no room")
            return super().backward()

    monkeypatch.setattr(computing, "Network", Small)
    measurement = Computing(model="mlp-digits", batches=(2, 4, 8, 16), repeats=3)
    record, _ = perform(bench(measurement, 1), 0)
    found = {(noted.name, noted.value > 0) for noted in record.observations}
    names = [f"{kind}/mlp-digits/{batch}" for batch in (2, 4) for kind in ("forward", "backward")]
    assert found == {(name, True) for name in names}
    assert len(record.observations) == 12


def test_models_that_cannot_be_run() -> None:
    with pytest.raises(ValueError, match="unknown model 'vgg-16'; the nearest is 'vgg16'"):
        entry_of("vgg-16")
    with pytest.raises(ValueError, match="is no network that can be run, but a int"):
        entry_of("simulator.measurements.computing:MATRIX")
    assert entry_of("vgg16") is MODELS["vgg16"]


class OnDevice:
    """Memory of a GPU, which is that of the CPU in truth, and what stands in page-locked memory."""

    device = torch.device("cuda")

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.locked = False

    def cpu(self) -> OnDevice:
        return OnDevice(self.values.clone())

    def pin_memory(self) -> OnDevice:
        self.locked = True
        return self

    def add_(self, other: OnDevice) -> OnDevice:
        self.values += other.values
        return self

    def clone(self) -> OnDevice:
        return OnDevice(self.values.clone())

    def copy_(self, other: OnDevice) -> OnDevice:
        assert self.locked != other.locked, "one side of a copy between host and device is page-locked"
        self.values.copy_(other.values)
        return self


def test_passes_between_host_and_device_go_through_page_locked_memory() -> None:
    one, other = OnDevice(torch.zeros(3)), OnDevice(torch.ones(3))
    passes = _passes(one, other)  # type: ignore[arg-type]  # it stands for a tensor
    assert list(passes) == ["add", "copy", "to-host", "from-host"]
    for function in passes.values():
        function()
    assert one.values.tolist() == [1.0] * 3
    assert list(_passes(torch.zeros(2), torch.zeros(2))) == ["add", "copy"]


class OnGpu:
    """A worker alone on a device of 60 TFLOP/s, whose calls take 20 us; its tensors have no values."""

    world_size = 1
    now = 0.0

    def __init__(self) -> None:
        self.noted: list[tuple[str, float]] = []

    async def compute(self, function: Any, *_: Any, nbytes: float) -> Any:
        value = function()
        self.now += 20e-6 + 2 * len(value) ** 3 / 60e12
        return value

    def observe(self, name: str, value: float) -> None:
        self.noted.append((name, value))


def test_a_product_takes_long_beside_its_call() -> None:
    """Of side 512 it would take 4 us, so that the call would count for five times as much."""
    worker = OnGpu()
    measurement = computing.Passes(repeats=3, sizes=())
    asyncio.run(measurement.measure(worker, torch.ones(4, device="meta")))  # type: ignore[arg-type]  # a stand-in
    assert [name for name, _ in worker.noted] == ["matrix/8192"] * 3
    assert 2 * 8192**3 / worker.noted[0][1] == pytest.approx(60e12, rel=2e-3)
