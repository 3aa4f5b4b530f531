"""One of two ranks that train a network in turns by AllReduce-SGD and by DistributedDataParallel.

Run by ``test_execution.py`` in a forked process, with the arguments of :func:`main` as ``given``. Both begin
with the same model and draw the same samples (how long max-pooling takes may depend on the values), with the
same step size, backend and device, in one torch thread; that they end with the same model is checked. The
buckets are alike too: 1 MiB first, then 25 MiB, which is one for the small CNN. Each reads its clocks as an
iteration begins, and leaves out the first ones, in which DistributedDataParallel lays out its buckets anew.
Writes the turns of each as JSON.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from algorithms.synchronous.allreduce_sgd import AllReduceSGD
from algorithms.worker import Worker
from simulator.execution import execute
from simulator.plan import oracle
from simulator.scenario import Scenario
from simulator.workload import data as datasets
from simulator.workload.models import resnet18_cifar, small_cnn
from simulator.workload.objective import SampledObjective, SampledOracle

HERE = Path(__file__).parent
WARM_UP = 10
"""Iterations of a turn that are not measured."""
STEP = 0.05


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes
    ----------
    network
        ``cnn`` on the digits, or ``resnet18`` on images of noise.
    device
        ``cpu`` or ``cuda``.
    batch
        Samples of a rank's batch.
    rounds, iterations
        Turns of each, and iterations of a turn.
    """

    network: str
    device: str
    batch: int
    rounds: int
    iterations: int


@dataclass(frozen=True)
class Turn:
    """One turn of one rank.

    Attributes
    ----------
    seconds
        Mean of an iteration.
    processor
        Mean processor seconds of an iteration, in all threads of the rank; other work spares them.
    """

    seconds: float
    processor: float


@dataclass
class Clocks:
    """What the wall and the processor's clock say as iterations begin, and at the end of the last."""

    readings: list[tuple[float, float]] = field(default_factory=list)

    def read(self) -> None:
        """Note both; where it begins to count, what a GPU was asked for has been done."""
        if len(self.readings) == WARM_UP:
            finish_device()
        self.readings.append((time.monotonic(), time.process_time()))

    def turn(self) -> Turn:
        """Return what was measured."""
        (wall, processor), *_, (wall_end, processor_end) = self.readings[WARM_UP:]
        count = len(self.readings) - WARM_UP - 1
        return Turn((wall_end - wall) / count, (processor_end - processor) / count)


def finish_device() -> None:
    """Wait until a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clocked:
    """A worker that reads the clocks when its algorithm asks whether to go on, and is otherwise another's.

    Attributes
    ----------
    model
        The last that was reported.
    """

    def __init__(self, worker: Worker, clocks: Clocks) -> None:
        self._worker = worker
        self._clocks = clocks
        self.model = torch.empty(0)

    @property
    def running(self) -> bool:
        """Whether iterations are left."""
        self._clocks.read()
        return self._worker.running

    def report(self, x: torch.Tensor) -> None:
        """Hand it on."""
        self.model = x
        self._worker.report(x)

    def __getattr__(self, name: str) -> Any:
        """Return what the worker has."""
        return getattr(self._worker, name)


@dataclass(frozen=True)
class ClockedSGD(AllReduceSGD):
    """AllReduce-SGD that reads the clocks, and keeps its last model."""

    clocks: Clocks = field(default_factory=Clocks, repr=False)
    models: list[torch.Tensor] = field(default_factory=list, repr=False)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        clocked: Any = Clocked(worker, self.clocks)
        await super().run(clocked)
        self.models.append(clocked.model)


def scenario(settings: Settings) -> Scenario:
    """Return AllReduce-SGD on the network, with the buckets that the other has."""
    workload: dict[str, Any] = {
        "cost": {"parameters": 100_000, "batch": settings.batch, "gradient": "1 ms"},
        "objective": {"kind": "cnn", "data": "digits", "dtype": "float32"},
    }
    if settings.network == "resnet18":
        workload = {
            "cost": {"model": "resnet18-cifar", "batch": settings.batch},
            "objective": "noise.py:task",
        }
    return Scenario(
        {
            "name": "beside-ddp",
            "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "gtx-1080-ti"},
            "workload": workload,
            "algorithm": "allreduce-sgd",
            "step-size": STEP,
            "budget": {"iterations": settings.iterations},
        },
        folder=HERE,
    )


def ours(settings: Settings) -> tuple[Turn, torch.Tensor]:
    """Return a turn of AllReduce-SGD, and its last model."""
    algorithm = ClockedSGD()
    execute(scenario(settings).vary(algorithm=algorithm), device=settings.device)
    return algorithm.clocks.turn(), algorithm.models[-1]


def network(settings: Settings) -> nn.Module:
    """Return the network as a user would write it."""
    if settings.network == "resnet18":
        return resnet18_cifar()
    channels, side, _ = datasets.SAMPLE_SHAPES["digits"]
    return small_cnn(channels, side, datasets.CLASSES)


def theirs(settings: Settings, rank: int) -> tuple[Turn, torch.Tensor]:
    """Return a turn of DistributedDataParallel, and its last model."""
    torch.set_num_threads(1)
    chosen = scenario(settings)
    objective, source = chosen.objective, oracle(chosen, rank)
    assert isinstance(objective, SampledObjective)
    assert isinstance(source, SampledOracle)
    module = network(settings)
    vector_to_parameters(objective.initial_model(), module.parameters())
    device = (
        torch.device(settings.device, rank % torch.cuda.device_count()) if settings.device == "cuda" else None
    )
    # Statistics of batch normalisation are not sent in either.
    model = DistributedDataParallel(module.to(device), forward_sync_buffers=False)
    (inputs,), labels = objective.samples
    inputs, labels = inputs.to(device), labels.to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=STEP)
    clocks = Clocks()
    for _ in range(settings.iterations):
        clocks.read()
        drawn = source.sampler.draw().to(device)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(inputs.index_select(0, drawn)), labels.index_select(0, drawn))
        loss.backward()
        optimiser.step()
    finish_device()
    clocks.read()
    dist.barrier()
    return clocks.turn(), parameters_to_vector(model.parameters()).detach()


def measure(settings: Settings, rank: int) -> dict[str, list[dict[str, float]]]:
    """Return the turns of both.

    Raises
    ------
    AssertionError
        They do not end with the same model, so that they have not done the same.
    """
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(settings.rounds):
        (own, own_model), (other, other_model) = ours(settings), theirs(settings, rank)
        torch.testing.assert_close(own_model.cpu(), other_model.cpu(), rtol=0.01, atol=0.01)
        found["ours"].append(asdict(own))
        found["theirs"].append(asdict(other))
    return found


def main(environment: dict[str, str], settings: dict[str, Any], out: str) -> None:
    """Be one rank."""
    os.environ.update(environment)
    rank = int(environment["SLURM_PROCID"])
    Path(out).write_text(json.dumps(measure(Settings(**settings), rank)))


if "given" in globals():
    main(*globals()["given"])
