"""The worker on the wall clock: real computations, and messages through ``torch.distributed``.

The arithmetic is that of :mod:`simulator.numerics`, in one torch thread, and Gloo sums in the order that
module describes, so a synchronous algorithm gives the same bits here as on the virtual clock.

The computations of each task run on a stream; each group's collectives, the exchanges and each end of a
channel have a stream of their own, so that computation and communication overlap for real, and so do both
directions. Arguments are copied when an operation is called: nothing that an algorithm does to them
afterwards reaches an operation under way.
"""

from __future__ import annotations

import functools
import inspect
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from algorithms import WORLD, Algorithm, Reduction
from algorithms.algorithm import EXCHANGE
from algorithms.worker import MESSAGE, Handle, Outline, SharedTensor, Tensor
from simulator import faults, numerics, plan
from simulator.execution.agreement import Agreement, FirstCalls, Table
from simulator.execution.communicator import Communicator, GlooCommunicator
from simulator.execution.crash import Crashes
from simulator.execution.device import Cpu, Side
from simulator.execution.memory import Memory
from simulator.execution.pace import Charge, Course, Pacer
from simulator.execution.padding import PaddedCommunicator
from simulator.execution.placed import placed_oracle
from simulator.execution.record import Message, Record, Reports
from simulator.execution.streams import Baton, Call, End, Stream, StreamKey, WallHandle
from simulator.execution.tasks import Lock, Tasks, Wait
from simulator.execution.watch import State
from simulator.observation import Observation
from simulator.update import UpdateRule
from simulator.workload.cutting import cut
from traces import COMPUTE, Span

if TYPE_CHECKING:
    import networkx as nx

    from algorithms.problem import Problem
    from simulator.scenario import Scenario

T = TypeVar("T")


class Listener(Protocol):
    """Told how a worker gets on, in the threads of its tasks."""

    def iterated(self, iterations: int) -> None:
        """Take in the gradients begun, whenever the algorithm asks whether to go on."""
        ...

    def waiting(self, waits: Sequence[Wait], calls: Mapping[StreamKey, int]) -> None:
        """Take in what all tasks of a worker that stands still wait for, or nothing when it goes on.

        ``calls`` counts the messages that the worker has called, by stream.
        """
        ...

    def watch(self, state: Callable[[], State], end: Callable[[BaseException], None]) -> None:
        """Take in who tells what the worker does, and who lets its run end with an error."""
        ...

    def started(self, start: float) -> None:
        """Take in the common start of all ranks, on the monotonic clock."""
        ...

    def crash(self, error: faults.WorkerFailed) -> None:
        """End the rank, because the scenario lets it crash now."""
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
    folder
        Where the files are that the ranks of one machine share; None where the worker is alone, or the ranks
        are on several.
    side
        The device that it computes on; the CPU if not given.
    gloo
        By what ranks on several machines compare their calls, whatever carries those; None: nobody compares.
    """

    def __init__(
        self,
        scenario: Scenario,
        rank: int,
        communicator: Communicator | None,
        buckets: tuple[tuple[int, int], ...] | None = None,
        listener: Listener | None = None,
        folder: Path | None = None,
        side: Side | None = None,
        gloo: GlooCommunicator | None = None,
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
        self._rule = UpdateRule(scenario.update, step_size, scenario.sections.budget.iterations)
        self._serves = rank >= scenario.workers
        self._updates = 0
        self._last_update: WallHandle[Tensor] | None = None
        self._side = side or Cpu()
        self._side.prepare()
        self._oracle = placed_oracle(scenario, rank, self._side.device)
        self._budget = scenario.sections.budget.iterations
        self._start = time.monotonic()
        self._end = 0.0
        self._iteration = 0
        self._evaluations = 0.0
        self._questions = 0
        self._baton = Baton()
        self._tasks = Tasks(rank, self._baton, self._side.prepare, self._waiting)
        self._locks: dict[str, Lock] = {}
        self._folder = folder
        self._random: dict[tuple[str, bool], np.random.Generator] = {}
        self._own = threading.local()  # what belongs to the task of this thread
        self._compute_streams: list[Stream] = []
        self._idle_streams: list[Stream] = []
        self._message_streams: dict[StreamKey, Stream] = {}
        self._calls: dict[StreamKey, int] = {}
        self._to_itself: dict[str, queue.SimpleQueue[torch.Tensor]] = {}
        execution = scenario.execution
        paced = execution.compute == "emulated" or execution.stragglers == "injected"
        self._pacer = Pacer(scenario, rank) if paced else None
        self._crashes = Crashes(scenario, rank) if execution.stragglers == "injected" else None
        self._agreement = self._agreeing(gloo, folder)
        self._charge = Charge(scenario) if execution.payload == "cost" else None
        self._one_order = communicator is not None and communicator.one_order
        self._computing: dict[int, tuple[float, str]] = {}
        self._computations: list[Span] = []
        self._messages: dict[StreamKey, list[Message]] = {}
        self._reports: list[tuple[float, int, torch.Tensor]] = []
        self._observations: list[Observation] = []

    def _agreeing(self, gloo: GlooCommunicator | None, folder: Path | None) -> Agreement | None:
        """Return who compares calls with those of the other ranks before the backend hears of them."""
        if gloo is None:
            return None
        if folder is not None:
            return Table(folder / "calls", self._rank, self._scenario.ranks, tuple(self._plan.groups))
        return FirstCalls(self._rank, gloo)

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
        return 1 / self.world_size if shares is None or self._serves else shares[self._rank]

    @functools.cached_property
    def weights(self) -> Mapping[int, float]:
        """This worker's row of the mixing matrix."""
        return plan.weights(self._scenario, self._rank)

    @property
    def layers(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the model's parameters."""
        return self._scenario.layers

    @functools.cached_property
    def outline(self) -> Outline | None:
        """The cost model that the objective stands for; None where nothing is charged as the cost model's."""
        execution = self._scenario.execution
        charges = execution.payload == "cost" or execution.compute == "emulated"
        return plan.outline(self._scenario) if charges else None

    @property
    def graph(self) -> nx.Graph[int] | None:
        """The communication graph on ranks; None unless the algorithm requires one."""
        return self._scenario.communication_graph if self._scenario.algorithm.needs_graph else None

    @property
    def batch(self) -> int:
        """Samples of one of this worker's gradients."""
        return 0 if self._serves else self._scenario.objective_batches[self._rank]

    @property
    def problem(self) -> Problem | None:
        """This worker's view of what is optimised."""
        view: Problem | None = self._oracle.problem
        return view

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

    def random(self, purpose: str, shared: bool = False) -> np.random.Generator:
        """Return the random numbers of a purpose, the same object whenever it is asked for."""
        key = (purpose, shared)
        if key not in self._random:
            self._random[key] = plan.random_numbers(self._scenario.seed, self._rank, purpose, shared)
        return self._random[key]

    # Its computations.

    def initial_model(self) -> torch.Tensor:
        """Return the starting model, the same on every worker, as a fresh tensor."""
        return self._objective.initial_model().to(self._side.device)

    def gradient(self, x: Tensor) -> Handle[Tensor]:
        """Start the mean gradient at ``x`` over this worker's next mini-batch; counts one iteration."""
        course = None if self._pacer is None else self._pacer.gradient()
        model = _values(x).clone()
        self._count_iteration()
        return self._compute("gradient", lambda: self._oracle.gradient(model), course)

    def gradient_buckets(self, x: Tensor) -> Sequence[Handle[Tensor]]:
        """Start the same gradient, delivered in slices as back-propagation frees them."""
        courses = None if self._pacer is None else self._pacer.buckets()
        model, bounds = _values(x).clone(), self._bounds
        self._count_iteration()
        handles: list[WallHandle[Tensor]] = [self._handle(Call("gradient", self._iteration)) for _ in bounds]

        def work() -> None:
            if courses is None:
                self._oracle.gradient_in_buckets(
                    model, bounds, lambda index, part: handles[index].finish(part)
                )
                return
            turn, waited = courses[0].begin(), 0.0

            def deliver(index: int, part: torch.Tensor) -> None:
                nonlocal waited
                self._side.finish()
                waited = courses[index].hold(turn, waited)
                handles[index].finish(part)

            try:
                self._oracle.gradient_in_buckets(model, bounds, deliver)
            finally:
                courses[0].end(turn)

        whole = self._compute_job("gradient", work, lambda _: None, handles, courses[0] if courses else None)
        self._begin(self._compute_stream, whole, handles)
        return handles

    def evaluate(
        self, function: Callable[..., Any], *tensors: Tensor, gradients: float = 1.0, iterations: int = 1
    ) -> Handle[Any]:
        """Start ``function(*tensors)``, which evaluates :attr:`problem` in the algorithm's own way."""
        course = None if self._pacer is None else self._pacer.gradient(gradients)
        copies = [_values(tensor).clone() for tensor in tensors]
        self._count_iteration(iterations, gradients)
        return self._compute("gradient", lambda: function(*copies), course)

    def update(
        self, x: Tensor, gradient: Tensor | Sequence[Tensor], iteration: int | None = None
    ) -> Handle[Tensor]:
        """Start the local step by the run's update rule."""
        if self._serves:
            self._count_update()
        course = self._passing(self._rule.vectors_moved, _values(x))
        model = _values(x).clone()
        slope: torch.Tensor | list[torch.Tensor]
        bounds: tuple[tuple[int, int], ...] = ()
        if isinstance(gradient, torch.Tensor):
            slope = gradient.clone()
        else:
            assert isinstance(gradient, Sequence)
            slope = [_values(part).clone() for part in gradient]
            bounds = self._bounds
        step_size = self._rule.step_size(self._iteration if iteration is None else iteration)
        work = functools.partial(self._rule.apply, model, slope, bounds, step_size)
        self._last_update = self._compute("update", work, course)
        return self._last_update

    @property
    def step_size(self) -> float:
        """The step size of the next update."""
        return self._rule.step_size(self._iteration)

    @property
    def rule_state(self) -> Tensor | None:
        """A copy of the update rule's state after all updates called so far, which it waits for."""
        self._await_updates()
        return self._rule.state

    def set_rule_state(self, state: Tensor | None) -> None:
        """Replace the update rule's state, for the updates called from now on."""
        self._await_updates()
        self._rule.set_state(state)

    def _await_updates(self) -> None:
        """Wait until no update is under way, so that nothing else touches the rule's state."""
        if self._last_update is not None:
            self._last_update.ended()

    def combine(self, *terms: tuple[float, Tensor]) -> Handle[Tensor]:
        """Start the linear combination of (coefficient, tensor) terms, summed in the order written."""
        course = self._passing(len(terms) + 1, _values(terms[0][1]))
        copies = [(coefficient, _values(tensor).clone()) for coefficient, tensor in terms]
        return self._compute("combine", lambda: numerics.combination(copies), course)

    def compute(
        self, function: Callable[..., Any], *tensors: Tensor, nbytes: float, charged: float | None = None
    ) -> Handle[Any]:
        """Start ``function(*tensors)``; bytes count only where compute is emulated."""
        course = None if self._pacer is None else self._pacer.charged(nbytes, charged)
        copies = [_values(tensor).clone() for tensor in tensors]
        return self._compute("compute", lambda: function(*copies), course)

    def _passing(self, vectors: int, x: torch.Tensor) -> Course | None:
        """Return the course of a pass that reads and writes that many vectors like ``x``."""
        return None if self._pacer is None else self._pacer.passing(vectors * x.nbytes, x)

    def _access(self, operation: str, work: Callable[[], T], vectors: int, x: torch.Tensor) -> WallHandle[T]:
        """Start an access to shared memory that moves so many vectors like ``x``."""
        return self._compute(operation, work, self._passing(vectors, x))

    @functools.cached_property
    def _bounds(self) -> tuple[tuple[int, int], ...]:
        """The cost model's buckets, at the same fractions of the objective's vector."""
        buckets = self._given_buckets or self._scenario.cost.buckets()
        total = sum(high - low for low, high in buckets)
        return cut(buckets, total, self._objective.parameters)

    def _count_update(self) -> None:
        """Let a dedicated server's iterations be those that its updates amount to."""
        self._updates += 1
        self._iteration = -(-self._updates // self._scenario.algorithm.served_updates(self.world_size))

    def _count_iteration(self, iterations: int = 1, gradients: float = 1.0) -> None:
        if self._serves:
            raise faults.only_serves(self._rank, "started a gradient")
        self._iteration += iterations
        self._evaluations += gradients
        self._questions = 0
        if faults.overdone(self._iteration, self._budget):
            raise faults.beyond_budget(self._rank, self._iteration, self._budget)

    def _compute(self, operation: str, work: Callable[[], T], course: Course | None = None) -> WallHandle[T]:
        handle: WallHandle[T] = self._handle(Call(operation, self._iteration))
        if course is not None:
            work = functools.partial(self._held, work, course)
        job = self._compute_job(operation, work, handle.finish, [handle], course)
        self._begin(self._compute_stream, job, [handle])
        return handle

    def _held(self, work: Callable[[], T], course: Course) -> T:
        """Compute, and wait until the computation may end."""
        turn = course.begin()
        try:
            value = work()
            self._side.finish()
            course.hold(turn)
        finally:
            course.end(turn)
        return value

    def _begin(self, stream: Stream, job: Callable[[], None], handles: Sequence[WallHandle[Any]]) -> None:
        """Let a stream do a piece of work, or the calling task if it awaits its only handle next."""
        if len(handles) == 1:
            self._baton.latest.call(handles[0], stream, job)
        else:
            self._baton.latest.begin()
            stream.start(job)

    def _compute_job(
        self,
        operation: str,
        work: Callable[[], T],
        finish: Callable[[T], None],
        failing: Sequence[WallHandle[Any]],
        course: Course | None,
    ) -> Callable[[], None]:
        """Return a piece of work that notes its span and delivers its value or its error."""
        iteration = self._iteration

        def job() -> None:
            self._computing[threading.get_ident()] = self.now, operation
            try:
                value, begin, end = self._side.compute(work)
            except BaseException as error:
                for handle in failing:
                    handle.fail(error)
                return
            span = Span(
                self._rank,
                COMPUTE,
                operation,
                (begin if course is None else course.begun) - self._start,
                end - self._start,
                iteration=iteration,
            )
            self._computations.append(span)
            del self._computing[threading.get_ident()]
            finish(value)

        return job

    # Its messages.

    def all_reduce(
        self, x: Tensor, op: Reduction = "mean", group: str = WORLD, charged: float | None = None
    ) -> Handle[Tensor]:
        """Start an all-reduce of ``x`` over a declared group."""
        members = self._members(group)
        share = plan.group_share(self._scenario.shares, members, self._rank) if op == "mean" else None
        # The product with the share is the copy.
        part = numerics.weighted(_values(x), share)
        count = len(members)

        def work() -> torch.Tensor:
            if count > 1:
                self._communicating(charged).all_reduce(part, op, group)
            return numerics.finished_mean(part, count, share) if op == "mean" else part

        nbytes = 2 * (count - 1) / count * self._counted(part, charged)
        return self._collective("all_reduce", group, work, nbytes, _signature(op, part))

    def all_gather(
        self, x: Tensor, group: str = WORLD, charged: float | None = None
    ) -> Handle[tuple[Tensor, ...]]:
        """Start gathering every member's tensor, all of one length, in the group's order."""
        others = len(self._members(group)) - 1
        part = _values(x).clone()

        def work() -> tuple[Tensor, ...]:
            if not others:
                return (part,)
            return self._communicating(charged).all_gather(part, group, others + 1)

        nbytes = others * self._counted(part, charged)
        return self._collective("all_gather", group, work, nbytes, _signature("all_gather", part))

    def all_to_all(
        self, parts: Sequence[Tensor], group: str = WORLD, charged: float | None = None
    ) -> Handle[tuple[Tensor, ...]]:
        """Start sending the k-th part to the k-th member, for every k; all parts are of one length."""
        members = self._members(group)
        lengths = [_values(part).numel() for part in parts]
        if len(lengths) != len(members) or len(set(lengths)) > 1:
            raise faults.unequal_parts(self._rank, group, lengths, len(members))
        # The stack is the copy.
        rows = torch.stack([_values(part) for part in parts])

        def work() -> tuple[Tensor, ...]:
            if len(members) == 1:
                return rows.unbind()
            return self._communicating(charged).all_to_all(rows, group).unbind()

        nbytes = (len(members) - 1) * self._counted(rows[0], charged)
        return self._collective("all_to_all", group, work, nbytes, _signature("all_to_all", rows[0]))

    def _collective(
        self, operation: str, group: str, work: Callable[[], T], nbytes: float, signature: faults.Signature
    ) -> WallHandle[T]:
        peers = tuple(member for member in self._members(group) if member != self._rank)
        about = f"group '{group}'"
        return self._communicate(operation, about, group, work, peers, nbytes, signature)

    def send(self, x: Tensor, to: int, channel: str = MESSAGE, charged: float | None = None) -> Handle[None]:
        """Start sending ``x`` over a declared channel."""
        number = plan.channel(self._plan, self._rank, self._rank, to, channel)
        payload = _values(x).clone()
        end = End("send", self._rank, to, channel)
        if to == self._rank:
            # Nothing goes over the network, and nothing waits for the receiver.
            return self._message(end, lambda: self._mailbox(channel).put(payload), to, 0.0)
        nbytes = self._counted(payload, charged)
        return self._message(end, lambda: self._communicating(charged).send(payload, to, number), to, nbytes)

    def recv(self, source: int, channel: str = MESSAGE) -> Handle[Tensor]:
        """Start receiving the next message of a declared channel."""
        number = plan.channel(self._plan, self._rank, source, self._rank, channel)
        end = End("recv", source, self._rank, channel)
        if source == self._rank:
            return self._message(end, self._mailbox(channel).get, source, 0.0)
        return self._message(end, lambda: self._communicating().recv(source, number), source, 0.0)

    def _mailbox(self, channel: str) -> queue.SimpleQueue[torch.Tensor]:
        """Return what this worker has sent to itself and not received."""
        return self._to_itself.setdefault(channel, queue.SimpleQueue())

    def _message(self, end: End, work: Callable[[], T], peer: int, nbytes: float) -> WallHandle[T]:
        return self._communicate(end.side, f"channel '{end.name}'", end, work, (peer,), nbytes)

    def exchange(self, x: Tensor, charged: float | None = None) -> Handle[Mapping[int, Tensor]]:
        """Start sending ``x`` to every out-neighbour and receiving from every in-neighbour."""
        sources, destinations = self._neighbours
        payload = _values(x).clone()

        def work() -> Mapping[int, Tensor]:
            if not sources and not destinations:
                return {}
            return self._communicating(charged).exchange(payload, sources, destinations)

        peers = tuple(sorted({*sources, *destinations}))
        nbytes = len(destinations) * self._counted(payload, charged)
        signature = _signature(EXCHANGE, payload)
        return self._communicate("exchange", "", EXCHANGE, work, peers, nbytes, signature)

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

    def _communicating(self, charged: float | None = None) -> Communicator:
        """Return what sends a message, which is padded where it has to be as long as it is charged."""
        assert self._communicator is not None
        if self._charge is None:
            return self._communicator
        return PaddedCommunicator(self._communicator, lambda x: self._counted(x, charged))

    def _counted(self, x: torch.Tensor, charged: float | None = None) -> float:
        """Return the bytes that a message counts: its own, or where it is padded those it is charged."""
        if self._charge is None:
            return float(x.nbytes)
        return self._charge(x) if charged is None else charged

    def _communicate(
        self,
        operation: str,
        about: str,
        stream: StreamKey,
        work: Callable[[], T],
        peers: tuple[int, ...],
        nbytes: float,
        signature: faults.Signature | None = None,
    ) -> WallHandle[T]:
        """Start a message on its stream and note when it began and ended."""
        in_one_order = isinstance(stream, str) and stream != EXCHANGE and self._one_order
        thread: StreamKey = "collectives" if in_one_order else stream
        if thread not in self._message_streams:
            self._message_streams[thread] = Stream(str(thread), self._side.prepare, bound=in_one_order)
        notes = self._messages.setdefault(stream, [])
        called = self._side.called()
        number = self._calls.get(stream, 0)
        self._calls[stream] = number + 1
        call = Call(
            operation, self._iteration, stream, number, peers, self.now, about, bool(peers), signature
        )
        handle: WallHandle[T] = self._handle(call)

        agreement = self._agreement if peers else None

        def job() -> None:
            try:
                if agreement is not None and signature is not None:
                    assert isinstance(stream, str)
                    members = peers if stream == EXCHANGE else self._plan.groups[stream]
                    agreement.enter(stream, number, signature, members)
                value, begin, end = self._side.message(called, work)
            except BaseException as error:
                handle.fail(error)
                return
            if peers:
                notes.append(Message(call, begin - self._start, end - self._start, nbytes))
            handle.finish(value)

        self._begin(self._message_streams[thread], job, [handle])
        return handle

    # Its tasks, and what they share.

    def shared(self, name: str, x: Tensor) -> SharedTensor:
        """Return the shared vector of that name, which starts as ``x``, the same on all workers."""
        algorithm = self._scenario.algorithm
        if "shared-memory" not in algorithm.requires:
            raise faults.no_shared_memory(self._rank, type(algorithm).__name__)
        return self._memory.vector(name, _values(x))

    @functools.cached_property
    def _memory(self) -> Memory:
        return Memory(self._rank, self.world_size, self._folder, self._access, self._side.device)

    def spawn(self, task: Coroutine[Any, Any, T]) -> Handle[T]:
        """Start another task of this worker, which takes turns with the others at their awaits."""
        handle: WallHandle[T] = self._handle(Call("task", self._iteration, since=self.now, depends=True))
        self._tasks.start(self._carried_out(task), handle)
        return handle

    async def _carried_out(self, task: Coroutine[Any, Any, T]) -> T:
        """Run a task, and hand on its stream of computations when it has ended."""
        try:
            return await task
        finally:
            stream = getattr(self._own, "stream", None)
            if stream is not None:
                self._idle_streams.append(stream)

    @property
    def _compute_stream(self) -> Stream:
        """The stream of the present task's computations, which go on beside those of other tasks."""
        stream: Stream | None = getattr(self._own, "stream", None)
        if stream is None:
            if not self._idle_streams:
                self._idle_streams.append(Stream("compute", self._side.prepare))
                self._compute_streams.append(self._idle_streams[-1])
            stream = self._own.stream = self._idle_streams.pop()
        return stream

    def lock(self, name: str = "model") -> AbstractAsyncContextManager[None]:
        """Return this worker's lock of that name; who asks first gets it first."""

        def turn() -> WallHandle[None]:
            call = Call("lock", self._iteration, since=self.now, about=f"'{name}'", depends=True)
            return self._handle(call)

        if name not in self._locks:
            self._locks[name] = Lock(turn)
        return self._locks[name]

    # Its run.

    def observe(self, name: str, value: float) -> None:
        """Note a number for the run's record."""
        noted = Observation(name, self._rank, self.now, self._iteration, float(value))
        self._observations.append(noted)

    def report(self, x: Tensor) -> None:
        """Store a copy of this worker's model for later evaluation."""
        if self._serves:
            raise faults.only_serves(self._rank, "reported a model")
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
        if self._pacer is not None:
            self._pacer.start = start
        if self._listener is not None:
            self._listener.watch(self._state, self._tasks.end)
            self._listener.started(start)
        if self._crashes is not None:
            crash = self._tasks.end if self._listener is None else self._listener.crash
            self._crashes.begin(start, lambda: self._iteration, crash)
        try:
            self._run(algorithm)
        finally:
            if self._crashes is not None:
                self._crashes.over()
        return self._record()

    def _run(self, algorithm: Algorithm) -> None:
        """Drive an algorithm and all tasks that it spawns to their ends."""
        coroutine = algorithm.run(plan.seen_by_algorithm(self._scenario, self))
        if not inspect.iscoroutine(coroutine):
            raise faults.not_a_coroutine(type(algorithm).__name__, coroutine)
        whole: WallHandle[None] = WallHandle(Call("run", 0), self._baton, self._tasks.waiting)
        self._tasks.start(self._timed(coroutine), whole)
        # Tasks that the first one left behind are a fault, unless others of them await them.
        while self._tasks.wait_for_one():
            if whole.done:
                self._check_awaited()
        self._check_end()
        if self._pacer is not None and self._pacer.overrun > 0:
            self.observe("overrun", self._pacer.overrun)

    def _record(self) -> Record:
        return Record(
            rank=self._rank,
            iterations=self._iteration,
            evaluations=self._evaluations,
            end=self._end,
            reports=self._collected_reports(),
            computations=self._computations,
            messages=self._all_messages(),
            observations=self._observations,
        )

    async def _timed(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine and note when it ended."""
        await coroutine
        self._end = self.now

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
        return *self._compute_streams, *self._message_streams.values()

    def _handle(self, call: Call) -> WallHandle[Any]:
        handle: WallHandle[Any] = WallHandle(call, self._baton, self._tasks.waiting)
        self._baton.open[handle] = None
        return handle

    def _waiting(self, waits: Sequence[Wait]) -> None:
        if self._listener is not None:
            self._listener.waiting(waits, self._calls)

    def _state(self) -> State:
        """Return what this worker does, from any thread."""
        ended = len(self._computations) + sum(map(len, list(self._messages.values())))
        since, computing = min(list(self._computing.values()), default=(0.0, ""))
        return State(ended, self._tasks.waits(), dict(self._calls), computing, since)

    def _check_awaited(self) -> None:
        for handle in list(self._baton.open):
            raise faults.not_awaited(self._rank, handle.call.operation, handle.call.iteration)

    def _check_end(self) -> None:
        self._check_awaited()
        if self._serves:
            return
        if self._iteration == 0:
            raise faults.no_gradient(self._rank)
        if not self._reports:
            raise faults.no_report(self._rank)

    def _collected_reports(self) -> Reports:
        if not self._reports:
            return Reports([], [], np.empty((0, self._objective.parameters)))
        times, iterations, models = zip(*self._reports, strict=True)
        return Reports(list(times), list(iterations), torch.stack(models).cpu().numpy())

    def _all_messages(self) -> list[Message]:
        return [message for notes in self._messages.values() for message in notes]


def _values(x: Tensor) -> torch.Tensor:
    """Return a tensor of an algorithm, which on this clock always has values."""
    assert isinstance(x, torch.Tensor)
    return x


def _signature(what: str, x: torch.Tensor) -> faults.Signature:
    return what, x.numel(), str(x.dtype).removeprefix("torch.")
