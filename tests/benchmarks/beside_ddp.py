"""One of two ranks that train a small CNN in turns by AllReduce-SGD and by DistributedDataParallel.

Run by ``test_execution.py`` in a forked process, with the arguments of :func:`main` as ``given``. Both have
the same network, batches, learning rate and backend, in one torch thread. DistributedDataParallel has its
default buckets of 25 MiB and AllReduce-SGD those of the cost model: one for this small network in either.
Writes the turns of each as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from simulator.execution import execute
from simulator.scenario import Scenario
from simulator.workload import data as datasets
from simulator.workload.models import small_cnn


@dataclass(frozen=True)
class Settings:
    """What is measured: samples of a batch, turns, and iterations of each."""

    batch: int
    rounds: int
    iterations: int


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


def differences(moments: list[float]) -> float:
    """Return the median of the time between neighbours, without the first few."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return statistics.median(gaps[5:])


@dataclass
class Turn:
    """One turn: median seconds of an iteration, and processor seconds of one, which other work spares."""

    seconds: float | None
    processor: float


def ours(settings: Settings) -> Turn:
    """Return a turn of AllReduce-SGD; rank 1 has no run, and so no median.

    The processor seconds are those of a long run less those of a short one: starting and ending fall out.
    """
    short = replace(settings, iterations=settings.iterations // 4)
    begin = time.process_time()
    execute(scenario(short))
    middle = time.process_time()
    run = execute(scenario(settings))
    spent = (time.process_time() - middle) - (middle - begin)
    processor = spent / (settings.iterations - short.iterations)
    if run is None:
        return Turn(None, processor)
    spans = [span for span in run.timeline if span.worker == 0 and span.operation == "gradient"]
    return Turn(differences([span.start for span in spans]), processor)


def theirs(settings: Settings, rank: int) -> Turn:
    """Return a turn of DistributedDataParallel."""
    torch.set_num_threads(1)
    channels, side, _ = datasets.SAMPLE_SHAPES["digits"]
    torch.manual_seed(0)
    model = DistributedDataParallel(small_cnn(channels, side, datasets.CLASSES))
    dataset = datasets.load("digits", None)
    shard = torch.arange(rank, len(dataset.labels), 2)
    inputs, labels = dataset.features.float()[shard], dataset.labels[shard]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(rank)
    moments, begin = [], time.process_time()
    for _ in range(settings.iterations):
        moments.append(time.monotonic())
        chosen = torch.randint(len(labels), (settings.batch,), generator=generator)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(inputs.index_select(0, chosen)), labels.index_select(0, chosen))
        loss.backward()
        optimiser.step()
    processor = (time.process_time() - begin) / settings.iterations
    dist.barrier()
    return Turn(differences(moments), processor)


def measure(settings: Settings, rank: int) -> dict[str, list[dict[str, float | None]]]:
    """Return the turns of both."""
    found: dict[str, list[dict[str, float | None]]] = {"ours": [], "theirs": []}
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
