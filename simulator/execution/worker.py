"""The worker on the wall clock: real computations, and messages through ``torch.distributed``.

The arithmetic is that of :mod:`simulator.numerics`, in one torch thread, and Gloo sums in the order that
module describes, so a synchronous algorithm gives the same bits here as on the virtual clock.

Computations run on one stream, each group's collectives and the exchanges on a stream of their own, so
that computation and communication overlap for real. Arguments are copied when an operation is called:
nothing that an algorithm does to them afterwards reaches an operation under way.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from algorithms import WORLD, Algorithm, Reduction
from algorithms.algorithm import EXCHANGE
from algorithms.worker import Handle, Tensor
from simulator import faults, numerics, plan
from simulator.execution.communicator import Communicator
from simulator.execution.record import Message, Record, Reports
from simulator.execution.streams import Baton, Call, Stream, WallHandle, timed
from simulator.workload.cutting import cut
from traces import COMPUTE, Span

if TYPE_CHECKING:
    from simulator.scenario import Scenario

T = TypeVar("T")


class Listener(Protocol):
    """Told how a worker gets on, in the thread of its algorithm."""

    def iterated(self, iterations: int) -> None:
        """Take in the gradients begun, whenever the algorithm asks whether to go on."""
        ...

    def waiting(self, call: Call | None, line: str, calls: Mapping[str, int]) -> None:
        """Take in the message that a worker has been waiting for, or None when it goes on.

        ``line`` is the algorithm's file and line that waits; ``calls`` counts the messages that the worker
        has called, by stream.
        """
        ...


class WallWorker:
    """One rank of a real run; see :class:`algorithms.worker.Worker` for its operations.

    Parameters
    ----------
    scenario
        What is run: it has an objective and one step size.
    rank
        This worker's number.
    communicator
        Its messages; None where it is alone in the world.
    buckets
        The buckets of the cost model; taken from the scenario if not given.
    listener
        Told how the worker gets on.
    """

    def __init__(
        self,
        scenario: Scenario,
        rank: int,
        communicator: Communicator | None,
        buckets: tuple[tuple[int, int], ...] | None = None,
        listener: Listener | None = None,
    ) -> None:
        objective, step_size = scenario.objective, scenario.step_sizes[0]
        assert objective is not None
        assert step_size is not None
        self._scenario = scenario
        self._rank = rank
        self._communicator = communicator
        self._given_buckets = buckets
        self._listener = listener
        self._plan = plan.planned(scenario)
        self._objective = objective
        self._step_size = step_size
        self._oracle = plan.oracle(scenario, rank)
        self._budget = scenario.sections.budget.iterations
        self._start = time.monotonic()
        self._iteration = 0
        self._questions = 0
        self._baton = Baton()
        self._compute_stream = Stream("compute", _single_threaded)
        self._message_streams: dict[str, Stream] = {}
        self._calls: dict[str, int] = {}
        self._open: list[WallHandle[Any]] = []
        self._watched = 64
        self._computations: list[Span] = []
        self._messages: dict[str, list[Message]] = {}
        self._reports: list[tuple[float, int, torch.Tensor]] = []
        for stream in (*self._plan.groups, EXCHANGE):
            self._message_streams[stream] = Stream(stream, _single_threaded)
            self._messages[stream] = []
            self._calls[stream] = 0

    # Its place in the world.

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self._rank

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self._scenario.workers

    @property
    def share(self) -> float:
        """This worker's part of the global batch."""
        shares = self._scenario.shares
        return 1 / self.world_size if shares is None else shares[self._rank]

    @functools.cached_property
    def weights(self) -> Mapping[int, float]:
        """This worker's row of the mixing matrix."""
        return plan.weights(self._scenario, self._rank)

    @property
    def layers(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the model's parameters."""
        return self._scenario.layers

    @property
    def running(self) -> bool:
        """Whether this worker has iterations left; depends on its own iteration count alone."""
        self._questions += 1
        if self._questions > faults.MOST_QUESTIONS:
            raise faults.no_progress(self._rank)
        if self._listener is not None:
            self._listener.iterated(self._iteration)
        return self._iteration < self._budget

    @property
    def now(self) -> float:
        """Seconds from the common start of all ranks."""
        return time.monotonic() - self._start

    @property
    def iterations(self) -> int:
        """Gradients begun."""
        return self._iteration

    # Its computations.

    def initial_model(self) -> torch.Tensor:
        """Return the starting model, the same on every worker, as a fresh tensor."""
        return self._objective.initial_model()

    def gradient(self, x: Tensor) -> Handle[Tensor]:
        """Start the mean gradient at ``x`` over this worker's next mini-batch; counts one iteration."""
        model = _values(x).clone()
        self._count_iteration()
        return self._compute("gradient", lambda: self._oracle.gradient(model))

    def gradient_buckets(self, x: Tensor) -> Sequence[Handle[Tensor]]:
        """Start the same gradient, delivered in slices as back-propagation frees them."""
        model, bounds = _values(x).clone(), self._bounds
        self._count_iteration()
        handles: list[WallHandle[Tensor]] = [self._handle(Call("gradient", self._iteration)) for _ in bounds]

        def deliver(index: int, part: torch.Tensor) -> None:
            handles[index].finish(part)

        def work() -> None:
            self._oracle.gradient_in_buckets(model, bounds, deliver)

        whole = self._compute_job("gradient", work, finish=lambda _: None, failing=handles)
        self._compute_stream.start(whole)
        return handles

    def update(self, x: Tensor, gradient: Tensor | Sequence[Tensor]) -> Handle[Tensor]:
        """Start the local step x - step size * gradient."""
        model = _values(x).clone()
        slope: torch.Tensor | list[torch.Tensor]
        bounds: tuple[tuple[int, int], ...] = ()
        if isinstance(gradient, torch.Tensor):
            slope = gradient.clone()
        else:
            assert isinstance(gradient, Sequence)
            slope = [_values(part).clone() for part in gradient]
            bounds = self._bounds
        return self._compute("update", lambda: numerics.stepped(model, slope, self._step_size, bounds))

    def combine(self, *terms: tuple[float, Tensor]) -> Handle[Tensor]:
        """Start the linear combination of (coefficient, tensor) terms, summed in the order written."""
        copies = [(coefficient, _values(tensor).clone()) for coefficient, tensor in terms]
        return self._compute("combine", lambda: numerics.combination(copies))

    @functools.cached_property
    def _bounds(self) -> tuple[tuple[int, int], ...]:
        """The cost model's buckets, at the same fractions of the objective's vector."""
        buckets = self._given_buckets or self._scenario.cost.buckets()
        total = sum(high - low for low, high in buckets)
        return cut(buckets, total, self._objective.parameters)

    def _count_iteration(self) -> None:
        self._iteration += 1
        self._questions = 0
        if faults.overdone(self._iteration, self._budget):
            raise faults.beyond_budget(self._rank, self._iteration, self._budget)

    def _compute(self, operation: str, work: Callable[[], Tensor]) -> WallHandle[Tensor]:
        handle: WallHandle[Tensor] = self._handle(Call(operation, self._iteration))
        self._compute_stream.start(self._compute_job(operation, work, handle.finish, [handle]))
        return handle

    def _compute_job(
        self,
        operation: str,
        work: Callable[[], T],
        finish: Callable[[T], None],
        failing: Sequence[WallHandle[Tensor]],
    ) -> Callable[[], None]:
        """Return a piece of work that notes its span and delivers its value or its error."""
        iteration = self._iteration

        def job() -> None:
            try:
                value, begin, end = timed(work)
            except BaseException as error:
                for handle in failing:
                    handle.fail(error)
                return
            span = Span(
                self._rank,
                COMPUTE,
                operation,
                begin - self._start,
                end - self._start,
                iteration=iteration,
            )
            self._computations.append(span)
            finish(value)

        return job

    # Its messages.

    def all_reduce(self, x: Tensor, op: Reduction = "mean", group: str = WORLD) -> Handle[Tensor]:
        """Start an all-reduce of ``x`` over a declared group."""
        members = self._members(group)
        share = plan.group_share(self._scenario.shares, members, self._rank) if op == "mean" else None
        # The product with the share is the copy.
        part = numerics.weighted(_values(x), share)
        count = len(members)

        def work() -> torch.Tensor:
            if count > 1:
                self._communicating().all_reduce(part, op, group)
            return numerics.finished_mean(part, count, share) if op == "mean" else part

        peers = tuple(member for member in members if member != self._rank)
        return self._communicate("all_reduce", group, work, peers, 2 * (count - 1) / count * part.nbytes)

    def exchange(self, x: Tensor) -> Handle[Mapping[int, Tensor]]:
        """Start sending ``x`` to every out-neighbour and receiving from every in-neighbour."""
        sources, destinations = self._neighbours
        payload = _values(x).clone()

        def work() -> Mapping[int, Tensor]:
            if not sources and not destinations:
                return {}
            return self._communicating().exchange(payload, sources, destinations)

        peers = tuple(sorted({*sources, *destinations}))
        return self._communicate("exchange", EXCHANGE, work, peers, float(len(destinations) * payload.nbytes))

    def _members(self, group: str) -> tuple[int, ...]:
        members = self._plan.groups.get(group)
        if members is None:
            raise faults.undeclared_group(self._rank, group, self._plan.groups)
        if self._rank not in members:
            raise faults.not_a_member(self._rank, group, members)
        return members

    @functools.cached_property
    def _neighbours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The in-neighbours and the out-neighbours, ascending, all of them on declared channels."""
        return plan.neighbours(self._scenario, self._plan, self._rank)

    def _communicating(self) -> Communicator:
        assert self._communicator is not None
        return self._communicator

    def _communicate(
        self, operation: str, stream: str, work: Callable[[], T], peers: tuple[int, ...], nbytes: float
    ) -> WallHandle[T]:
        """Start a message on its stream and note when it began and ended."""
        call = Call(operation, self._iteration, stream, self._calls[stream], peers, self.now)
        handle: WallHandle[T] = self._handle(call)
        notes = self._messages[stream]
        self._calls[stream] += 1

        def job() -> None:
            try:
                value, begin, end = timed(work)
            except BaseException as error:
                handle.fail(error)
                return
            if peers:
                notes.append(Message(call, begin - self._start, end - self._start, nbytes))
            handle.finish(value)

        self._message_streams[stream].start(job)
        return handle

    # Its run.

    def report(self, x: Tensor) -> None:
        """Store a copy of this worker's model for later evaluation."""
        self._reports.append((self.now, self._iteration, _values(x).clone()))

    def run(self, algorithm: Algorithm, start: float) -> Record:
        """Execute an algorithm to its end and return what happened.

        Parameters
        ----------
        algorithm
            Its ``run`` is driven.
        start
            The common start of all ranks, on the monotonic clock.

        Raises
        ------
        AlgorithmError
            The algorithm breaks a rule of the seam.
        """
        self._start = start
        coroutine = algorithm.run(plan.seen_by_algorithm(self._scenario, self))
        if not inspect.iscoroutine(coroutine):
            raise faults.not_a_coroutine(type(algorithm).__name__, coroutine)
        with self._baton:
            try:
                coroutine.send(None)
            except StopIteration:
                end = self.now
            else:
                coroutine.close()
                raise faults.foreign_await(self._rank)
        self._check_end()
        return Record(
            rank=self._rank,
            iterations=self._iteration,
            evaluations=float(self._iteration),
            end=end,
            reports=self._collected_reports(),
            computations=self._computations,
            messages=self._all_messages(),
        )

    def close(self) -> None:
        """Let the streams end."""
        for stream in self._streams:
            stream.close()

    def join(self) -> None:
        """Wait until the streams have ended, which they do soon after a run that went well."""
        for stream in self._streams:
            stream.join()

    @property
    def _streams(self) -> tuple[Stream, ...]:
        return self._compute_stream, *self._message_streams.values()

    def _handle(self, call: Call) -> WallHandle[Any]:
        handle: WallHandle[Any] = WallHandle(call, self._baton, self._waiting)
        self._open.append(handle)
        if len(self._open) > 2 * self._watched:
            # What was awaited needs no more watching; doubling keeps the forgetting cheap.
            self._open = [known for known in self._open if not known.awaited]
            self._watched = max(len(self._open), 64)
        return handle

    def _waiting(self, call: Call | None, line: str) -> None:
        if self._listener is not None:
            self._listener.waiting(call, line, self._calls)

    def _check_end(self) -> None:
        for handle in self._open:
            if not handle.awaited:
                raise faults.not_awaited(self._rank, handle.call.operation, handle.call.iteration)
        if self._iteration == 0:
            raise faults.no_gradient(self._rank)
        if not self._reports:
            raise faults.no_report(self._rank)

    def _collected_reports(self) -> Reports:
        times, iterations, models = zip(*self._reports, strict=True)
        return Reports(list(times), list(iterations), torch.stack(models).numpy())

    def _all_messages(self) -> list[Message]:
        return [message for stream in self._message_streams for message in self._messages[stream]]


def _values(x: Tensor) -> torch.Tensor:
    """Return a tensor of an algorithm, which on this clock always has values."""
    assert isinstance(x, torch.Tensor)
    return x


def _single_threaded() -> None:
    torch.set_num_threads(1)
