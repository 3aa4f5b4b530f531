"""What the wall clock costs; run by `make bench`, never a pass or fail.

- AllReduce-SGD with overlap beside DistributedDataParallel, in turns in the same processes: the small CNN on
  two CPU ranks, and ResNet-18 where there is a GPU. What counts is the median over the rounds of the ratio of
  two turns that follow each other; of processor seconds, which other work on the machine spares, and of
  seconds on a machine that has nothing else to do.
- Of every other algorithm, the time of an iteration in which a rank neither computes nor has a call of
  ``torch.distributed`` under way: what the worker adds to its bare calls (threads, copies, records). What a
  late peer costs is inside the calls.
- Eight local ranks start, all-reduce and end.
"""

from __future__ import annotations

import json
import multiprocessing
import runpy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import ALGORITHMS
from simulator.execution import execute, launch
from simulator.scenario import Scenario
from traces import COMPUTE, TRANSFER, WAIT

SCRIPT = Path(__file__).parent / "beside_ddp.py"
ITERATIONS = 60
ONE_HOST = {"builder": "two-level", "hosts": 1, "gpus-per-host": 2}


def scenario(algorithm: str, workers: int = 2, iterations: int = ITERATIONS) -> Scenario:
    """Return two workers of one host on the small CNN, or on a problem that the algorithm can take."""
    objective: dict[str, Any] = {"kind": "cnn", "data": "digits"}
    if ALGORITHMS[algorithm].needs.startswith("compositional"):
        objective = {"kind": "portfolio"}
    elif ALGORITHMS[algorithm].load().requires & {"finite-sum"}:
        objective = {"kind": "logistic", "data": "digits"}
    return Scenario(
        {
            "name": "overhead",
            "cluster": {
                "topology": {**ONE_HOST, "gpus-per-host": workers},
                "device": "gtx-1080-ti",
            },
            "workload": {
                "cost": {"parameters": 100_000, "batch": 32, "gradient": "1 ms"},
                "objective": objective,
            },
            "algorithm": algorithm,
            "step-size": 0.01,
            "budget": {"iterations": iterations},
        }
    )


def beside_ddp(folder: Path, port: int, **settings: Any) -> list[dict[str, list[dict[str, float]]]]:
    """Return the turns of AllReduce-SGD and of DistributedDataParallel on each of two ranks."""
    launch.warm_up()
    # Nothing may be forked once a GPU has been used.
    context = multiprocessing.get_context("forkserver" if settings["device"] == "cpu" else "spawn")
    processes = []
    for rank in range(2):
        environment = {
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_LOCALID": str(rank),
            "SLURM_NODELIST": "localhost",
            "MASTER_PORT": str(port),
        }
        given = (environment, settings, str(folder / f"{rank}.json"))
        with launch._main_module(needed=False):
            process = context.Process(target=runpy.run_path, args=(str(SCRIPT), {"given": given}))
            process.start()
        processes.append(process)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.benchmark(group="execution")
@pytest.mark.parametrize(
    ("network", "device", "batch"), [("cnn", "cpu", 32), ("cnn", "cpu", 256), ("resnet18", "cuda", 128)]
)
def test_allreduce_sgd_beside_ddp(
    benchmark: Any,
    record_property: Any,
    tmp_path: Path,
    free_port: Callable[[], int],
    network: str,
    device: str,
    batch: int,
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device on this machine")
    settings = {"network": network, "device": device, "batch": batch}
    settings |= {"rounds": 15, "iterations": 110} if device == "cpu" else {"rounds": 5, "iterations": 40}
    ranks = benchmark.pedantic(beside_ddp, (tmp_path, free_port()), settings, rounds=1)
    for key in ("seconds", "processor"):
        own, other = (
            [
                sum(turn[key] for turn in turns) / 2
                for turns in zip(*(rank[who] for rank in ranks), strict=True)
            ]
            for who in ("ours", "theirs")
        )
        ratios = [mine / reference for mine, reference in zip(own, other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        record_property(f"{key}: AllReduce-SGD", f"{1e3 * statistics.median(own):.2f} ms")
        record_property("DistributedDataParallel", f"{1e3 * statistics.median(other):.2f} ms")
        record_property("median of the ratios", f"{middle:.3f} (half of them {low:.3f} to {high:.3f})")


def own_seconds(run: Any) -> tuple[float, float]:
    """Return the seconds of an iteration, and those in which a worker did nothing of its own calls.

    The latter are medians: whoever else uses the machine takes it away for long, but seldom.
    """
    kinds = (COMPUTE, TRANSFER, WAIT)
    gaps: Counter[tuple[int, int]] = Counter()
    for worker in range(run.workers):
        spans = sorted(
            (s.start, s.end, s.iteration) for s in run.timeline if s.worker == worker and s.kind in kinds
        )
        reach = 0.0
        for start, end, iteration in spans:
            gaps[worker, iteration] += max(0.0, start - reach)
            reach = max(reach, end)
    iterations = sum(run.iterations) / run.workers
    return run.duration / iterations, statistics.median(gaps.values())


@pytest.mark.benchmark(group="execution")
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_overhead_of_the_worker(benchmark: Any, record_property: Any, algorithm: str) -> None:
    chosen = scenario(algorithm)
    execute(chosen)
    run = benchmark.pedantic(execute, (chosen,), rounds=1)
    whole, own = own_seconds(run)
    record_property("iteration", f"{1e3 * whole:.2f} ms")
    record_property("the worker's own", f"{1e6 * own:.0f} us, {100 * own / whole:.1f} %")


@pytest.mark.benchmark(group="execution")
def test_eight_ranks_start_and_all_reduce(benchmark: Any, record_property: Any) -> None:
    chosen = scenario("allreduce-sgd", workers=8, iterations=1).vary(
        objective={"kind": "quadratic", "dimension": 1000}
    )
    execute(chosen)
    seconds = []

    def started() -> None:
        begin = time.perf_counter()
        assert execute(chosen) is not None
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(started, rounds=7)
    record_property("median of 7", f"{statistics.median(seconds):.2f} s")
