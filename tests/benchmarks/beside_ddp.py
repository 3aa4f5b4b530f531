"""One of two ranks that train a small CNN in turns by AllReduce-SGD and by DistributedDataParallel.

Run by ``test_execution.py`` in a forked process, with the arguments of :func:`main` as ``given``. Both have
the same network, data, size of batches, learning rate and backend, in one torch thread.
DistributedDataParallel has its default buckets of 25 MiB and AllReduce-SGD those of the cost model: one for
this small network in either. Each reads its clocks as an iteration begins, and leaves out the first ones, in
which DistributedDataParallel lays out its buckets anew. Writes the turns of each as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import vector_to_parameters

from algorithms.synchronous.allreduce_sgd import AllReduceSGD
from algorithms.worker import Worker
from simulator.execution import execute
from simulator.plan import oracle
from simulator.scenario import Scenario
from simulator.workload import data as datasets
from simulator.workload.models import small_cnn
from simulator.workload.objective import SampledOracle

WARM_UP = 10
"""Iterations of a turn that are not measured."""


@dataclass(frozen=True)
class Settings:
    """What is measured: samples of a batch, turns, and iterations of each."""

    batch: int
    rounds: int
    iterations: int


@dataclass(frozen=True)
class Turn:
    """One turn of one rank.

    Attributes
    ----------
    seconds
        Median of an iteration.
    processor
        Mean processor seconds of an iteration, in all threads of the rank; other work spares them.
    """

    seconds: float
    processor: float


@dataclass
class Clocks:
    """What the clocks say as iterations begin, and at the end of the last: wall, and processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def read(self) -> None:
        """Note both."""
        self.wall.append(time.monotonic())
        self.processor.append(time.process_time())

    def turn(self) -> Turn:
        """Return what was measured."""
        wall, processor = self.wall[WARM_UP:], self.processor[WARM_UP:]
        gaps = [later - earlier for earlier, later in zip(wall, wall[1:], strict=False)]
        return Turn(statistics.median(gaps), (processor[-1] - processor[0]) / len(gaps))


class Clocked:
    """A worker that reads the clocks when its algorithm asks whether to go on, and is otherwise another's."""

    def __init__(self, worker: Worker, clocks: Clocks) -> None:
        self._worker = worker
        self._clocks = clocks

    @property
    def running(self) -> bool:
        """Whether iterations are left."""
        self._clocks.read()
        return self._worker.running

    def __getattr__(self, name: str) -> Any:
        """Return what the worker has."""
        return getattr(self._worker, name)


@dataclass(frozen=True)
class ClockedSGD(AllReduceSGD):
    """AllReduce-SGD that reads the clocks."""

    clocks: Clocks = field(default_factory=Clocks, repr=False)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        await super().run(Clocked(worker, self.clocks))  # type: ignore[arg-type]  # it has all by __getattr__


def scenario(settings: Settings) -> Scenario:
    """Return AllReduce-SGD on the small CNN, whose gradient is one bucket as it is for the other."""
    return Scenario(
        {
            "name": "beside-ddp",
            "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "gtx-1080-ti"},
            "workload": {
                "cost": {"parameters": 100_000, "batch": settings.batch, "gradient": "1 ms"},
                "objective": {"kind": "cnn", "data": "digits", "dtype": "float32"},
            },
            "algorithm": "allreduce-sgd",
            "step-size": 0.05,
            "budget": {"iterations": settings.iterations},
        }
    )


def ours(settings: Settings) -> Turn:
    """Return a turn of AllReduce-SGD."""
    algorithm = ClockedSGD()
    execute(scenario(settings).vary(algorithm=algorithm))
    return algorithm.clocks.turn()


def theirs(settings: Settings, rank: int) -> Turn:
    """Return a turn of DistributedDataParallel, which starts from the same model and draws the same samples."""
    torch.set_num_threads(1)
    channels, side, _ = datasets.SAMPLE_SHAPES["digits"]
    model = small_cnn(channels, side, datasets.CLASSES)
    chosen = scenario(settings)
    assert chosen.objective is not None
    vector_to_parameters(chosen.objective.initial_model(), model.parameters())
    parallel = DistributedDataParallel(model)
    dataset = datasets.load("digits", None)
    inputs, labels = dataset.features.float(), dataset.labels
    source = oracle(chosen, rank)
    assert isinstance(source, SampledOracle)
    optimiser = torch.optim.SGD(parallel.parameters(), lr=0.05)
    clocks = Clocks()
    for _ in range(settings.iterations):
        clocks.read()
        drawn = source.sampler.draw()
        optimiser.zero_grad()
        loss = F.cross_entropy(parallel(inputs.index_select(0, drawn)), labels.index_select(0, drawn))
        loss.backward()
        optimiser.step()
    clocks.read()
    dist.barrier()
    return clocks.turn()


def measure(settings: Settings, rank: int) -> dict[str, list[dict[str, float]]]:
    """Return the turns of both."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(settings.rounds):
        found["ours"].append(asdict(ours(settings)))
        found["theirs"].append(asdict(theirs(settings, rank)))
    return found


def main(environment: dict[str, str], settings: dict[str, int], out: str) -> None:
    """Be one rank."""
    os.environ.update(environment)
    rank = int(environment["SLURM_PROCID"])
    Path(out).write_text(json.dumps(measure(Settings(**settings), rank)))


if "given" in globals():
    main(*globals()["given"])
