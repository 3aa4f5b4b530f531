"""The trainer: a user's module, loader and loss under any algorithm, in a script that torchrun starts.

    trainer = Trainer(model, loss, loader, algorithm="cocod-sgd", step_size=0.1, iterations=2000)
    run = trainer.fit()

Every rank runs the same script. The algorithm's coroutine, its messages and its update rule are those of
``paceline execute``; only the gradients come from the loader and the loss.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from algorithms import Plan
from simulator import faults
from simulator.execution import join
from simulator.execution.communicator import PATIENCE, GlooCommunicator
from simulator.execution.place import place
from simulator.execution.record import Record, spans
from simulator.execution.training import state as states
from simulator.execution.training.feed import Feed, shared_out
from simulator.execution.training.module import Weights
from simulator.execution.training.source import Loss, Step, TrainingObjective
from simulator.execution.training.state import State
from simulator.execution.training.worker import AVERAGES, Evaluate, Leg, TrainingWorker
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.observation import Observation, Observer, Samples
from simulator.parts import BadInput
from simulator.plan import planned
from simulator.profile import FORWARD, LOAD, LOSS
from simulator.run import Run
from simulator.scenario import Scenario
from simulator.sections import ALGORITHM
from simulator.workload import GivenCost
from simulator.workload.cost import MIB
from simulator.workload.script import TrainingScript
from traces import Timeline

T = TypeVar("T")


class Trainer:
    """Trains a module on every rank of a job.

    Under ``torchrun`` each process is a worker; a plain ``python script.py`` is one worker. All ranks start
    from rank 0's parameters and buffers.

    Parameters
    ----------
    model
        On its device. After :meth:`fit` it holds the averaged model. Its parts train or evaluate as they are
        set when the trainer is made.
    loss
        ``loss(model, batch)``: the mean loss of a batch, a tensor of one element; autocast belongs inside.
        It runs in a thread of its own.
    loader
        A ``DataLoader``, or any iterable that can be iterated anew. A plain ``DataLoader(dataset, …)`` is
        divided among the ranks by a ``DistributedSampler``; one with a sampler of its own is taken as it is.
    algorithm, update, compression, gossip, step_size, seed
        As in a scenario: a name, keys and values, an object, or ``package.module:Class``.
    iterations
        Gradients of each worker in the whole training; schedules fill them.
    accumulate
        Batches of a gradient.
    evaluate, evaluate_every
        Called on rank 0 with the averaged model in evaluation mode, every so many iterations; what it
        returns, a number or several by name, becomes observations of the run.
    folder, save_every
        Where every rank keeps its state, every so many iterations; see :meth:`resume`.
    bucket_size
        Bytes of the buckets in which the gradient is handed over, as in DistributedDataParallel.
    name
        Of the run.

    Raises
    ------
    BadInput
        A setting, or a model, that cannot be used; the sentence is the same on all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        loader: Iterable[Any],
        *,
        algorithm: Any = "allreduce-sgd",
        step_size: float,
        iterations: int,
        update: Any = "sgd",
        compression: Any = None,
        gossip: Any = None,
        accumulate: int = 1,
        evaluate: Evaluate | None = None,
        evaluate_every: int | None = None,
        folder: str | Path | None = None,
        save_every: int | None = None,
        seed: int = 0,
        bucket_size: float = 25 * MIB,
        name: str = "training",
    ) -> None:
        _check_counts(iterations=iterations, accumulate=accumulate)
        _check_pair("evaluate", evaluate, "evaluate_every", evaluate_every)
        _check_pair("folder", folder, "save_every", save_every)
        _check_hosted(algorithm)
        self._place = place()
        own = self._place
        self.rank, self.world_size = (0, 1) if own is None else (own.rank, own.world_size)
        self._weights = Weights(model)
        self._iterations = iterations
        self._evaluate, self._evaluate_every = evaluate, evaluate_every
        self._folder, self._save_every = None if folder is None else Path(folder), save_every
        self._group = self._meet()
        batch = _batch_size(loader) * accumulate
        self._feed = Feed(shared_out(loader, self.rank, self.world_size, seed), seed, self.rank)
        self._start_alike(model)
        self._objective = TrainingObjective(self._weights, self._feed, loss, accumulate)
        nbytes = self._weights.count * self._weights.dtype.itemsize
        # A given cost counts elements of 4 bytes; so many of them have the bytes of this model.
        elements = math.ceil(nbytes / 4)
        buckets = math.ceil(nbytes / bucket_size)
        self._scenario = Scenario(
            {
                "name": name,
                "cluster": self._machines(),
                "workload": {
                    "cost": GivenCost(elements, batch, 0.0, bucket_count=min(max(buckets, 1), elements)),
                    "objective": TrainingScript.of(type(model).__name__, self._objective),
                },
                "algorithm": algorithm,
                "step-size": step_size,
                "update": update,
                "budget": {"iterations": iterations},
                "seed": seed,
                **_given(compression=compression, gossip=gossip),
            }
        )
        self._check_alike()
        self._state: State | None = None

    @property
    def reached(self) -> int:
        """Iterations done, of every worker."""
        return 0 if self._state is None else self._state.reached

    # Training.

    def fit(self, until: int | None = None) -> Run | None:
        """Train up to so many iterations, or to the end, from where the training is.

        Every rank calls it. Afterwards the module holds the averaged model and buffers, on all ranks alike;
        a later call goes on from each worker's own.

        Returns
        -------
        On rank 0 the run of these iterations; None on the others, and where there was nothing left to do.

        Raises
        ------
        AlgorithmError, WorkerFailed
            This rank has failed; torchrun ends the others.
        """
        until = self._iterations if until is None else min(until, self._iterations)
        if until <= self.reached:
            return None
        threads = torch.get_num_threads()
        self._objective.start = self._start()
        self._restore_surroundings()
        leg = Leg(
            self._state,
            until,
            self._iterations,
            self._evaluate,
            self._evaluate_every,
            self._folder,
            self._save_every,
            self._signature(),
        )
        begun = 0 if self._state is None else self._state.iterations
        done = len(self._objective.steps)
        shares = "shared-memory" in self._scenario.algorithm.requires and self.world_size > 1
        with join.common_folder(self.rank, self._group) if shares else nullcontext() as folder:
            try:
                record, start, communicator = self._perform(leg, folder)
            finally:
                torch.set_num_threads(threads)
            record.iterations -= begun
            brought = record, _moments(self._objective.steps[done:], start, begun)
            records = [brought] if communicator is None else communicator.gather(brought)
            if communicator is not None:
                communicator.close()
        if until == self._iterations:
            self._feed.close()
        return None if records is None else _assembled(self._scenario, records)

    def _perform(self, leg: Leg, folder: Path | None) -> tuple[Record, float, GlooCommunicator | None]:
        """Run this rank, and put the averaged model into the module."""
        plan = planned(self._scenario)
        everyone = tuple(range(self.world_size))
        communicator = None
        if self.world_size > 1:
            plan = Plan({**plan.groups, AVERAGES: everyone}, plan.channels)
            communicator = GlooCommunicator(self.rank, self.world_size, plan)
        worker = TrainingWorker(self._scenario, self.rank, communicator, folder, self._feed, leg)
        start = time.monotonic() if communicator is None else communicator.common_start()
        try:
            record = worker.run(self._scenario.algorithm, start)
            self._state = worker.finish()
        except (AlgorithmError, BadInput):
            raise
        except Exception as error:
            raise WorkerFailed(self.rank, worker.iterations, faults.cause_of(error)) from error
        finally:
            worker.close()
        worker.join()
        average, buffers = worker.mean(self._state.model, list(self._state.buffers))
        self._weights.load(average)
        self._weights.load_buffers(buffers)
        return record, start, communicator

    def _start(self) -> Tensor:
        """Return the model to go on from: this rank's own, or the average where an algorithm begins anew."""
        if self._state is None:
            return self._weights.vector()
        # A codec's memory and anchor begin anew, and the anchor is the same on all workers.
        exactly = self._scenario.algorithm.resumes_exactly and self._scenario.codec is None
        if self.world_size == 1 or exactly:
            return self._state.model
        average = self._state.model.clone()
        dist.all_reduce(average, group=self._group)
        return average.div_(self.world_size)

    def _restore_surroundings(self) -> None:
        """Put buffers, modes and random numbers to where the last leg has left them."""
        self._weights.as_given()
        if self._state is not None:
            self._weights.load_buffers(self._state.buffers)
            self._state.random.restore(self._weights.device)

    # Saving and resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return what this rank needs to go on: plain values and tensors for ``torch.save``.

        Raises
        ------
        BadInput
            Nothing was trained or loaded yet.
        """
        if self._state is None:
            raise BadInput("state", "there is none before the first iteration")
        return {**self._signature(), **self._state.data()}

    def load_state_dict(self, data: Mapping[str, Any]) -> None:
        """Go on from what this rank's :meth:`state_dict` returned; every rank loads its own.

        Raises
        ------
        BadInput
            It belongs to another rank, number of ranks, model, algorithm or seed.
        """
        own = dict(data)
        for key, here in self._signature().items():
            there = own.pop(key, None)
            if there != here:
                raise BadInput("state", f"was saved with {key} {there!r}, but this training has {here!r}")
        self._state = State.of(own)
        self._feed.seek(self._state.epoch, self._state.batch, self._state.random, self._weights.device)

    def save(self, folder: str | Path) -> None:
        """Keep this rank's state in a folder; every rank calls it."""
        states.write(self.state_dict(), Path(folder), self.rank, self.world_size)

    def resume(self, folder: str | Path | None = None) -> int:
        """Go on from the latest iteration that all ranks have kept in a folder; every rank calls it.

        Parameters
        ----------
        folder
            The trainer's own unless it is given. It may be on each machine's own disk.

        Returns
        -------
        The iterations done: 0 where nothing is kept.
        """
        where = self._folder if folder is None else Path(folder)
        if where is None:
            raise BadInput("folder", "this key is missing; say where the states are kept")
        own = states.kept(where, self.rank, self.world_size)
        everywhere = set.intersection(*self._all(own))
        others = sorted(set.union(*self._all(states.worlds(where))) - {self.world_size})
        if not everywhere and others:
            raise BadInput(
                str(where), f"keeps a training of {others[0]} workers, but this one has {self.world_size}"
            )
        if everywhere:
            self.load_state_dict(states.read(where, max(everywhere), self.rank, self.world_size))
        return self.reached

    def _signature(self) -> dict[str, Any]:
        """What a state must have been saved with."""
        resolved = self._scenario.resolved()
        return {
            "rank": self.rank,
            "workers": self.world_size,
            "parameters": [list(shape) for shape in self._weights.shapes],
            "algorithm": resolved["algorithm"],
            "seed": self._scenario.seed,
        }

    # Its place among the ranks.

    def _meet(self) -> Any:
        """Return the group of the trainer's own messages; the script's may know tensors of GPUs only."""
        own = self._place
        if own is None or self.world_size == 1:
            return None
        if not dist.is_initialized():
            # torchrun's environment tells torch the same; Slurm's does not.
            way = None if own.starter == "torchrun" else f"tcp://{own.address}:{own.port}"
            dist.init_process_group(
                "gloo", init_method=way, rank=own.rank, world_size=own.world_size, timeout=PATIENCE
            )
            # The group serves later calls too; its threads must have ended before the interpreter does.
            atexit.register(join.leave)
        return dist.new_group(backend="gloo", timeout=PATIENCE)

    def _all(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, self._group)
        return values

    def _machines(self) -> dict[str, Any]:
        """Return the cluster of the scenario: hosts with their ranks. Its links play no part."""
        local = 1 if self._place is None else self._place.local_world_size
        local = local if self.world_size % local == 0 else 1
        topology = {"builder": "two-level", "hosts": self.world_size // local, "gpus-per-host": local}
        return {"topology": topology, "device": "ideal", "transport": "gloo", "workers": self.world_size}

    def _start_alike(self, model: nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers."""
        outlines = [(tuple(x.shape), str(x.dtype)) for x in (*model.parameters(), *model.buffers())]
        for rank, other in enumerate(self._all(outlines)):
            if other != outlines:
                raise BadInput("model", f"rank {rank} has another one than rank {self.rank}")
        if self.world_size == 1:
            return
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                sent = tensor.detach().cpu().contiguous()
                dist.broadcast(sent, 0, self._group)
                tensor.copy_(sent)

    def _check_alike(self) -> None:
        """Refuse ranks that would not run the same."""
        own = json.dumps(self._scenario.resolved(), sort_keys=True)
        found = self._all((hashlib.sha256(own.encode()).hexdigest(), torch.__version__))
        for rank, (digest, version) in enumerate(found):
            if digest != found[0][0]:
                raise BadInput("", f"rank {rank} has other settings than rank 0; give all ranks the same")
            if version != found[0][1]:
                raise BadInput("", f"rank {rank} has torch {version}, but rank 0 has {found[0][1]}")


def _check_counts(**counts: int) -> None:
    for key, count in counts.items():
        if count < 1:
            raise BadInput(key, f"must be at least 1, got {count}")


def _check_hosted(algorithm: Any) -> None:
    """Refuse dedicated servers: every rank runs the user's script, and trains."""
    try:
        servers = ALGORITHM.read(algorithm).build().dedicated_servers
    except BadInput:
        return  # the scenario says it with the key before it
    if servers:
        raise BadInput(
            "algorithm.dedicated", "every rank of a training has data; servers are tasks of workers"
        )


def _check_pair(what: str, value: object, often: str, every: int | None) -> None:
    if (value is None) != (every is None):
        given, missing = (what, often) if value is not None else (often, what)
        raise BadInput(missing, f"this key is missing; {given} has no effect alone")
    if every is not None and every < 1:
        raise BadInput(often, f"must be at least 1, got {every}")


def _given(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def _batch_size(loader: Any) -> int:
    """Return the samples of a batch, 1 where nobody knows."""
    sampler = getattr(loader, "batch_sampler", None)
    return getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None) or 1


# What comes of the ranks' records.


def _moments(steps: Sequence[Step], start: float, begun: int) -> list[Observation]:
    """Return what is known of a rank's gradients as observations; the rank is put in later."""
    noted = []
    for number, step in enumerate(steps, begun + 1):
        values = {LOSS: step.loss, LOAD: step.load, FORWARD: step.forward}
        noted += [Observation(name, 0, step.end - start, number, value) for name, value in values.items()]
    return noted


def _assembled(scenario: Scenario, brought: Sequence[tuple[Record, list[Observation]]]) -> Run:
    """Return the run that all ranks' records make, with the measured cost in its scenario."""
    records = [record for record, _ in brought]
    observations = [o._replace(worker=record.rank) for record, noted in brought for o in noted]
    observations += [o for record in records for o in record.observations]
    observer = Observer(None, None, len(records))
    reports = [
        (time, record.rank, iteration)
        for record in records
        for time, iteration in zip(record.reports.times, record.reports.iterations, strict=True)
    ]
    for moment, rank, iteration in sorted(reports):
        observer.report(rank, moment, iteration, None)
    run = Run(
        scenario=scenario,
        clock="wall",
        duration=max(record.end for record in records),
        iterations=tuple(record.iterations for record in records),
        evaluations=tuple(record.evaluations for record in records),
        observations=sorted(observations, key=lambda noted: (noted.time, noted.worker)),
        bytes_sent=tuple(record.bytes_sent for record in records),
        timeline=Timeline(spans(records)),
        samples=_losses(observations, len(records)),
        pace=observer.pace,
        ends=tuple(observer.ends),
    )
    measured = run.profile().cost()
    return dataclasses.replace(run, scenario=scenario.vary({"workload.cost": measured}))


def _losses(observations: Sequence[Observation], workers: int) -> Samples:
    """Return the mean loss of the workers' k-th gradients, when the last of them was ready."""
    by_iteration: dict[int, list[Observation]] = {}
    for noted in observations:
        if noted.name == LOSS:
            by_iteration.setdefault(noted.iteration, []).append(noted)
    samples = Samples()
    for iteration, losses in sorted(by_iteration.items()):
        if len(losses) == workers:
            samples.time.append(max(noted.time for noted in losses))
            samples.iteration.append(float(iteration))
            samples.loss.append(math.fsum(noted.value for noted in losses) / workers)
            samples.gradient_norm.append(math.nan)
            samples.consensus.append(math.nan)
    return samples
