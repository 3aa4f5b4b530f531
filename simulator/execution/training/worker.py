"""The worker of a user's training: a wall-clock worker that goes on from a state, evaluates and saves.

A report is where a model may be looked at. At the first report at or after a point (every so many
iterations) the worker notes its model, and, in the order of its computations, its buffers, its position in
the data and its random numbers. To evaluate, the ranks average what they noted over a group of their own,
beside the training; rank 0 then evaluates the average between two of its computations. All ranks pass the
same points, so that these averages match whatever the algorithm does: points that a rank has not come to are
made up for at its end, with its last model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from algorithms.worker import Tensor as Vector
from simulator import numerics
from simulator.execution.communicator import GlooCommunicator
from simulator.execution.device import Cpu
from simulator.execution.streams import Stream, timed
from simulator.execution.training.feed import Feed, Randomness
from simulator.execution.training.module import Weights, packed, unpacked
from simulator.execution.training.source import TrainingObjective
from simulator.execution.training.state import State, write
from simulator.execution.worker import WallWorker
from simulator.observation import Observation
from simulator.update import UpdateRule
from traces import COMPUTE, Span

if TYPE_CHECKING:
    import numpy as np

    from simulator.scenario import Scenario

AVERAGES = "averages of evaluations"
"""The group over which models and buffers are averaged beside the training."""

Evaluate = Callable[[nn.Module], float | Mapping[str, float] | None]
"""Looks at the averaged model; the numbers that it returns are noted in the run."""

_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Leg:
    """A part of a training that is run in one go.

    Attributes
    ----------
    start
        Iterations that all ranks were asked for before, and this rank's state.
    until, total
        Iterations at its end, and at the end of the whole training.
    evaluate, evaluate_every
        What rank 0 does with the averaged model, and every how many iterations.
    folder, save_every
        Where states are kept, and every how many iterations; at the end of the leg too.
    signature
        What else a kept state tells.
    """

    start: State | None
    until: int
    total: int
    evaluate: Evaluate | None
    evaluate_every: int | None
    folder: Path | None
    save_every: int | None
    signature: Mapping[str, Any]

    def points(self, every: int | None) -> list[int]:
        """Return the multiples of ``every`` that this leg passes."""
        begun = 0 if self.start is None else self.start.reached
        return [] if every is None else [k for k in range(every, self.until + 1, every) if k > begun]


class ModuleSide(Cpu):
    """The processor, in threads whose GPU is that of a module.

    Parameters
    ----------
    module
        Where the module is: a script's ``batch.cuda()`` goes there, whatever thread its loss runs in.
    """

    def __init__(self, module: torch.device) -> None:
        super().__init__()
        self._module = module

    def prepare(self) -> None:
        """Let the calling thread use one torch thread, and the module's GPU."""
        super().prepare()
        if self._module.type == "cuda":
            torch.cuda.set_device(self._module)


class TrainingWorker(WallWorker):
    """One rank of a training.

    Parameters
    ----------
    scenario, rank, communicator, folder
        As of any worker on the wall clock; the scenario's objective is a :class:`TrainingObjective`.
    feed
        The batches.
    leg
        What is to be done.
    """

    def __init__(
        self,
        scenario: Scenario,
        rank: int,
        communicator: GlooCommunicator | None,
        folder: Path | None,
        feed: Feed,
        leg: Leg,
    ) -> None:
        objective, step_size = scenario.objective, scenario.step_sizes[0]
        assert isinstance(objective, TrainingObjective)
        side = ModuleSide(objective.weights.device)
        super().__init__(scenario, rank, communicator, folder=folder, side=side, gloo=communicator)
        self._weights: Weights = objective.weights
        self._feed = feed
        self._leg = leg
        self._averages = communicator
        self._averaging = Stream("averages", side.prepare)
        self._rule = UpdateRule(scenario.update, step_size, leg.total)
        self._budget = leg.until
        self._saved_streams: Mapping[tuple[str, bool], dict[str, Any]] = {}
        self._evaluations_left = leg.points(leg.evaluate_every if leg.evaluate else None)
        self._savings_left = leg.points(leg.save_every)
        if leg.folder is not None and leg.until not in self._savings_left:
            self._savings_left.append(leg.until)
        self._jobs: list[Future[Any]] = []
        self._latest: Tensor | None = None
        if leg.start is not None:
            self._iteration = leg.start.iterations
            self._rule.restore(leg.start.rule, leg.start.updates)
            self._saved_streams = leg.start.streams

    @property
    def _compute_stream(self) -> Stream:
        """The one stream of all its computations: gradients and evaluations share the user's module."""
        if not self._compute_streams:
            self._compute_streams.append(Stream("compute", self._side.prepare))
        return self._compute_streams[0]

    def random(self, purpose: str, shared: bool = False) -> np.random.Generator:
        """Return the random numbers of a purpose, from where a state has left them."""
        fresh = (purpose, shared) not in self._random
        generator = super().random(purpose, shared)
        if fresh and (purpose, shared) in self._saved_streams:
            generator.bit_generator.state = self._saved_streams[purpose, shared]
        return generator

    def report(self, x: Vector) -> None:
        """Note that a model is there, and do what is due; the model itself is kept until the next only."""
        assert isinstance(x, torch.Tensor)
        # What is due comes behind the computations called so far.
        self._baton.latest.begin()
        self._reports.append((self.now, self._iteration, _NOTHING))
        self._latest = x.clone()
        self._raise_failures()
        self._do_what_is_due(self._iteration)

    def _do_what_is_due(self, iteration: int) -> None:
        while self._savings_left and self._savings_left[0] <= iteration:
            self._save(self._savings_left.pop(0))
        while self._evaluations_left and self._evaluations_left[0] <= iteration:
            self._start_evaluation(self._evaluations_left.pop(0))

    def _raise_failures(self) -> None:
        for job in self._jobs:
            if job.done():
                job.result()
        self._jobs = [job for job in self._jobs if not job.done()]

    # States.

    def state(self, reached: int) -> Future[State]:
        """Start noting the state as it is after the last report and all computations called so far."""
        assert self._latest is not None
        x, rule, updates = self._latest, self.rule_state, self._rule.seen
        assert rule is None or isinstance(rule, torch.Tensor)
        iterations = self._iteration
        streams = {key: dict(numbers.bit_generator.state) for key, numbers in self._random.items()}
        streams = {**self._saved_streams, **streams}

        def noted() -> State:
            return State(
                reached,
                iterations,
                x,
                rule,
                updates,
                streams,
                self._weights.buffers(),
                self._feed.epoch,
                self._feed.batch,
                Randomness.now(self._weights.device),
            )

        return self._after(self._compute_stream, noted)

    def _save(self, reached: int) -> None:
        noted = self.state(reached)

        def written() -> None:
            assert self._leg.folder is not None
            data = {**self._leg.signature, **noted.result().data()}
            write(data, self._leg.folder, self.rank, self.world_size)

        # Written by the same thread that noted it, so that its result is there.
        self._jobs.append(self._after(self._compute_stream, self._noted_span("save", written)))

    # Evaluations.

    def _start_evaluation(self, point: int) -> None:
        """Average the latest models beside the training, and evaluate the average on rank 0."""
        assert self._latest is not None
        x, iteration = self._latest, self._iteration
        done: Future[None] = Future()
        self._jobs.append(done)

        def averaged(buffers: list[Tensor]) -> None:
            average = self.mean(x, buffers)
            if self.rank == 0:
                evaluation = self._noted_span("evaluation", lambda: self._evaluate(average, iteration))
                self._after(self._compute_stream, evaluation, done)
            else:
                done.set_result(None)

        def noted() -> None:
            buffers = self._weights.buffers()
            self._averaging.start(lambda: _guarded(lambda: averaged(buffers), done))

        self._compute_stream.start(lambda: _guarded(noted, done))

    def _evaluate(self, average: tuple[Tensor, list[Tensor]], iteration: int) -> None:
        """Lend the module with the averaged model to the user's function, and put everything back."""
        assert self._leg.evaluate is not None
        weights = self._weights
        own, random = weights.buffers(), Randomness.now(weights.device)
        time = self.now
        weights.load(average[0])
        weights.load_buffers(average[1])
        weights.module.eval()
        try:
            with torch.no_grad():
                found = self._leg.evaluate(weights.module)
        finally:
            weights.as_given()
            weights.load_buffers(own)
            random.restore(weights.device)
        if found is not None:
            values = found if isinstance(found, Mapping) else {"evaluation": found}
            self._observations += [
                Observation(name, self.rank, time, iteration, float(value)) for name, value in values.items()
            ]

    def mean(self, x: Tensor, buffers: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the averages over the ranks of models and of buffers; all ranks call it."""
        if self.world_size == 1:
            return x, buffers
        part, (real, whole) = x.clone(), packed(buffers)
        assert self._averages is not None
        self._averages.all_reduce(part, "mean", AVERAGES)
        self._averages.all_reduce(real, "mean", AVERAGES)
        self._averages.all_reduce(whole, "max", AVERAGES)
        count = self.world_size
        real = numerics.finished_mean(real, count, None)
        return numerics.finished_mean(part, count, None), unpacked(real, whole, buffers)

    def _noted_span(self, operation: str, work: Callable[[], None]) -> Callable[[], None]:
        """Return a piece of work that notes when it was done."""
        iteration = self._iteration

        def job() -> None:
            _, begin, end = timed(work)
            start = self._start
            span = Span(self.rank, COMPUTE, operation, begin - start, end - start, iteration=iteration)
            self._computations.append(span)

        return job

    # Its end.

    def finish(self) -> State:
        """Do what is still due, and return the state at the end, after the run and before closing."""
        self._do_what_is_due(self._leg.until)
        state = self.state(self._leg.until).result()
        for job in self._jobs:
            job.result()
        return state

    def close(self) -> None:
        """Let the streams end."""
        super().close()
        self._averaging.close()

    def _after(
        self, stream: Stream, work: Callable[[], Any], outcome: Future[Any] | None = None
    ) -> Future[Any]:
        """Put work behind what a stream has to do."""
        outcome = Future() if outcome is None else outcome
        promised = outcome

        def job() -> None:
            _guarded(lambda: promised.set_result(work()), promised)

        stream.start(job)
        return promised


def _guarded(work: Callable[[], None], outcome: Future[Any]) -> None:
    """Do a piece of work whose error goes to a future."""
    try:
        work()
    except BaseException as error:
        outcome.set_exception(error)
