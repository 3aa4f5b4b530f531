"""The worker on the virtual clock.

A worker's coroutine yields the :class:`Operation` that it awaits, which the clock processes like an event of
SimPy's; a :class:`Task` is what SimPy's process would be. The computations of each task queue on a stream and
are flows on the worker's device, which tasks that compute at the same time share; its messages and
collectives run on the network. Values are computed when an operation is called, from its arguments as they
are then, and delivered when its time has passed; so no argument needs to be copied for a computation. Only
gradients over samples are computed later, from a copy (:mod:`simulator.engine.evaluation`).
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from heapq import heappush
from types import CoroutineType
from typing import TYPE_CHECKING, Any, cast

from simpy.events import NORMAL, PENDING

from algorithms.phantom import Phantom
from algorithms.worker import MESSAGE, WORLD, Outline, Reduction, Tensor
from simulator import faults
from simulator.engine.evaluation import DeferredPart
from simulator.engine.groups import Exchange, What, receive, send
from simulator.engine.memory import Reading, VirtualShared, Writing
from simulator.observation import Observation
from simulator.plan import random_numbers, weights
from simulator.workload.cost import NO_GRADIENT
from traces import COMPUTE

if TYPE_CHECKING:
    import numpy as np

    from simulator.engine.network import Network
    from simulator.engine.simulate import Simulation


class Operation:
    """An operation under way: the handle that a worker's call returns.

    The clock processes it like an event of SimPy's, whose fields it has as far as the clock looks at them.
    Many are under way at a time, so it has no dictionary, and a list of who waits only while somebody does.

    Attributes
    ----------
    missing
        Returns the ranks without which it cannot end, or is the only one.
    """

    __slots__ = (
        "_defused",
        "_ok",
        "_value",
        "about",
        "callbacks",
        "iteration",
        "missing",
        "name",
        "since",
        "worker",
    )

    def __init__(self, worker: VirtualWorker, name: str, about: str = "") -> None:
        self.callbacks: list[Callable[[Any], object]] | None = None
        self._value: Any = PENDING
        self.worker = worker
        self.name = name
        self.about = about
        self.since: float = worker.clock._now
        self.iteration = worker.iterations
        self.missing: Callable[[], Sequence[int]] | int | None = None
        worker.unawaited.append(self)

    def __await__(self) -> Generator[Any, Any, Any]:
        # The operation itself is what the coroutine waits with: a generator would take twice the memory.
        unawaited = self.worker.unawaited
        if self in unawaited:
            unawaited.remove(self)
        if self._value is not PENDING:
            self.worker.goes_on_at_once(self)
        return self  # type: ignore[return-value]  # await takes any iterator

    def __iter__(self) -> Operation:
        return self

    def __next__(self) -> Operation:
        if self._value is PENDING:
            return self
        if not self._ok:
            raise self._value
        raise StopIteration(self._value)

    def succeed(self, value: Any = None) -> None:
        """End it with its value."""
        if self._value is not PENDING:
            raise RuntimeError(f"the operation '{self.name}' has already ended")
        self._ok = True
        self._value = value
        self._wake()

    def fail(self, error: Exception) -> None:
        """End it with an error, which is raised where it is awaited."""
        self._ok = False
        self._value = error
        self._defused = True
        self._wake()

    def _wake(self) -> None:
        """Let those who wait go on, among the events of this instant; if nobody does, there is no event."""
        if self.callbacks:
            clock = self.worker.clock
            entry = (clock._now, NORMAL, number := next(clock._eid), self)
            heappush(clock._queue, entry)  # type: ignore[misc]  # it has what the clock asks of an event
            if number >= clock.next_look:
                self.worker.look_at_the_clock(self, number)


class Stream:
    """The computations of a task, done one after another."""

    __slots__ = ("at_once", "flow", "instant", "queue", "started", "worker")

    def __init__(self, worker: VirtualWorker) -> None:
        self.worker = worker
        self.instant = -1.0
        self.at_once = 0  # operations since this instant that the task did not have to wait for
        self.queue: list[tuple[float, Operation, Any]] = []  # a deque takes ten times the memory
        self.started = 0.0
        self.flow = -1  # of the first of the queue

    def end_first(self) -> None:
        """Deliver the first computation of the queue, and begin with the next."""
        self.worker.end_computation(self)


class Task:
    """A coroutine of a worker, which may wait for its own worker's operations only.

    Parameters
    ----------
    coroutine
        What the algorithm's ``run`` returned, or what was spawned.
    worker
        Whose operations it may await.
    ended
        Called with the worker and what the coroutine returns.

    Attributes
    ----------
    waits_for
        The operation that it awaits.
    """

    __slots__ = ("_ended", "coroutine", "stream", "waits_for", "worker")

    def __init__(
        self,
        coroutine: CoroutineType[Any, Any, Any],
        worker: VirtualWorker,
        ended: Callable[[VirtualWorker, Any], object],
    ) -> None:
        self.coroutine = coroutine
        self.worker = worker
        self.waits_for: Operation | None = None
        self.stream = Stream(worker)
        self._ended = ended

    def begin(self, _: object) -> None:
        """Run up to the first wait."""
        self._go_on(self.coroutine.send, None)

    def resume(self, operation: Operation) -> None:
        """Go on when the operation that it waits for has ended."""
        if operation._ok:
            self._go_on(self.coroutine.send, None)
        else:
            self._go_on(self.coroutine.throw, operation._value)

    def _go_on(self, proceed: Callable[[Any], Any], argument: Any) -> None:
        self.waits_for = None
        self.worker.stream = self.stream
        try:
            awaited = proceed(argument)
        except StopIteration as end:
            self.worker.ended(self)
            self._ended(self.worker, end.value)
        except Exception as error:
            self.worker.failed(error)
        else:
            if type(awaited) is not Operation or awaited.worker is not self.worker:
                self.coroutine.close()
                self.worker.failed(faults.foreign_await(self.worker.rank))
                return
            self.waits_for = awaited
            if awaited.callbacks is None:
                awaited.callbacks = [self.resume]
            else:
                awaited.callbacks.append(self.resume)


class Lock:
    """A worker's lock; who asks first gets it first."""

    def __init__(self, worker: VirtualWorker, name: str) -> None:
        self._worker = worker
        self._about = f"'{name}'"
        self._held = False
        self._queue: deque[Operation] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn = Operation(self._worker, "lock", self._about)
        self._queue.append(turn)
        await turn

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            self._queue.popleft().succeed()
        else:
            self._held = False


class VirtualWorker:
    """One simulated worker; see :class:`algorithms.worker.Worker` for what its calls mean.

    Parameters
    ----------
    simulation
        The run that it belongs to.
    rank
        Its number.
    """

    # One of many thousands, so it has no dictionary, and makes what few workers need when it is asked for.
    __slots__ = (
        "_bounds",
        "_byte_factor",
        "_checks",
        "_cost",
        "_device",
        "_element_bytes",
        "_jitter",
        "_locks",
        "_model_type",
        "_oracle",
        "_pool",
        "_random",
        "_rate",
        "_route",
        "_rule",
        "_simulation",
        "_slowdown",
        "_spans",
        "_step_time",
        "_streams",
        "_updates",
        "batch",
        "bytes_sent",
        "clock",
        "evaluations",
        "graph",
        "iterations",
        "promised",
        "rank",
        "reported",
        "serves",
        "share",
        "stream",
        "unawaited",
        "weights",
        "world_size",
    )

    def __init__(self, simulation: Simulation, rank: int) -> None:
        scenario = simulation.scenario
        self.rank = rank
        self.world_size = scenario.workers
        self.serves = rank >= scenario.workers
        self.share = scenario.shares[rank] if scenario.shares and not self.serves else simulation.equal_share
        self.graph = scenario.communication_graph if scenario.algorithm.needs_graph else None
        self.weights: Mapping[int, float] = weights(scenario, rank)
        self.clock = simulation.clock
        self.iterations = 0
        self.evaluations = 0.0
        self.promised = 0
        self._updates = 0
        self.reported = False
        self.bytes_sent = 0.0
        self.unawaited: list[Operation] = []
        self.batch = 0 if self.serves else scenario.objective_batches[rank]
        self._checks = 0
        self._simulation = simulation
        self._spans = simulation.spans
        self._oracle = simulation.oracle(rank)
        self._pool = simulation.pool
        shared = simulation.shared_rule
        self._rule = simulation.update_rule() if shared is None else shared
        self._cost = scenario.cost
        self._device = scenario.cluster.devices[rank]
        self._route, self._rate = simulation.network.device_route(rank)
        self._step_time = NO_GRADIENT
        if not self.serves:
            self._step_time = simulation.step_time(self._device, scenario.batches[rank])
        self._slowdown = scenario.persistent_factor(rank)
        self._jitter = simulation.jitter(rank)
        self._bounds = simulation.bounds
        objective = scenario.objective
        self._model_type = None if objective is None else objective.dtype
        self._element_bytes = self._cost.parameters * self._cost.parameter_bytes / simulation.elements
        self._byte_factor = 1.0 if objective is None else self._element_bytes / objective.dtype.itemsize
        self._random: dict[tuple[str, bool], np.random.Generator] | None = None
        self._locks: dict[str, Lock] | None = None
        self._streams: list[Stream] = []  # those that compute
        self.stream: Stream  # of the task that runs

    # What it is.

    @property
    def running(self) -> bool:
        """Whether iterations are left."""
        self._checks += 1
        if self._checks > faults.MOST_QUESTIONS:
            raise faults.no_progress(self.rank)
        if self.iterations >= self._simulation.limit:
            return False
        self.promised = self.iterations + 1
        return True

    @property
    def now(self) -> float:
        """Seconds from the start of the run."""
        return self.clock.now

    def initial_model(self) -> Tensor:
        """Return the starting model."""
        return self._simulation.initial_model()

    @property
    def layers(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the model's parameters."""
        return self._simulation.scenario.layers

    @property
    def outline(self) -> Outline | None:
        """The cost model that the objective stands for."""
        return self._simulation.outline

    @property
    def problem(self) -> Any:
        """What is optimised."""
        return None if self._oracle is None else self._oracle.problem

    def random(self, purpose: str, shared: bool = False) -> np.random.Generator:
        """Return the random numbers of a purpose."""
        key = (purpose, shared)
        if self._random is None:
            self._random = {}
        if key not in self._random:
            self._random[key] = random_numbers(self._simulation.scenario.seed, self.rank, purpose, shared)
        return self._random[key]

    @property
    def network(self) -> Network:
        """What its messages run on."""
        return self._simulation.network

    # Whether time passes.

    def goes_on_at_once(self, operation: Operation) -> None:
        """Note that the task that runs awaits what has ended already; refuse to do so for ever."""
        stream, now = self.stream, self.clock._now
        if stream.instant != now:
            stream.instant, stream.at_once = now, 0
        stream.at_once += 1
        if stream.at_once >= faults.MOST_AT_ONCE:
            line = sys._getframe(2)  # of the algorithm, which called __await__, which called this
            raise self._simulation.standing_still(operation, stream, faults.MOST_AT_ONCE, line)

    def look_at_the_clock(self, operation: Operation, number: int) -> None:
        """End the run if no time has passed since the last look, which was very many events ago."""
        clock, simulation = self.clock, self._simulation
        if clock.looked_at == clock._now and operation.callbacks:
            task = operation.callbacks[0].__self__  # type: ignore[attr-defined]  # tasks alone wait for operations
            self.failed(simulation.standing_still(operation, task.stream, simulation.most_at_once))
        clock.looked_at, clock.next_look = clock._now, number + simulation.most_at_once

    # Computations.

    def _seconds_factor(self) -> float:
        return self._slowdown * self._jitter()

    def _begin_iteration(self, count: int = 1, gradients: float = 1.0) -> float:
        if self.serves:
            raise faults.only_serves(self.rank, "started a gradient")
        self.iterations += count
        self.evaluations += gradients
        if faults.overdone(self.iterations, self._simulation.limit):
            raise faults.beyond_budget(self.rank, self.iterations, self._simulation.limit)
        self.promised = max(self.promised, self.iterations)
        self._checks = 0
        return self._seconds_factor()

    def _gradient_at(self, x: Tensor) -> Tensor | DeferredPart:
        if self._oracle is None or isinstance(x, Phantom):
            return x
        if self._pool is not None:
            return self._pool.gradient(self._oracle, x)
        return self._oracle.gradient(x)

    def gradient(self, x: Tensor) -> Operation:
        """Start the gradient over the next mini-batch."""
        factor = self._begin_iteration()
        value = self._gradient_at(x)
        return self._compute("gradient", self._step_time.total * factor, value)

    def gradient_buckets(self, x: Tensor) -> Sequence[Operation]:
        """Start the same gradient, in slices as back-propagation frees them."""
        factor = self._begin_iteration()
        whole = self._gradient_at(x)
        seconds = [part * factor for part in self._step_time.backward]
        seconds[0] += self._step_time.forward * factor
        return [
            self._compute("gradient", duration, whole[low:high])
            for duration, (low, high) in zip(seconds, self._bounds, strict=True)
        ]

    def evaluate(
        self, function: Callable[..., Any], *tensors: Tensor, gradients: float = 1.0, iterations: int = 1
    ) -> Operation:
        """Start an evaluation of the problem in the algorithm's own way."""
        factor = self._begin_iteration(iterations, gradients)
        value = tensors[0] if self._oracle is None else function(*tensors)
        return self._compute("gradient", self._step_time.total * gradients * factor, value)

    def update(
        self, x: Tensor, gradient: Tensor | Sequence[Tensor], iteration: int | None = None
    ) -> Operation:
        """Start the local step."""
        if self.serves:
            self._count_update()
        step_size = self._rule.step_size(self.iterations if iteration is None else iteration)
        value = self._rule.apply(x, gradient, self._bounds, step_size)
        return self._compute("update", self._pass_seconds(self._rule.vectors_moved, x), value)

    def _count_update(self) -> None:
        """Let a dedicated server's iterations be those that its updates amount to."""
        self._updates += 1
        each = self._simulation.scenario.algorithm.served_updates(self.world_size)
        self.iterations = -(-self._updates // each)

    @property
    def step_size(self) -> float:
        """The step size of the present iteration."""
        return self._rule.step_size(self.iterations)

    @property
    def rule_state(self) -> Tensor | None:
        """A copy of the update rule's state after all updates called so far."""
        return self._rule.state

    def set_rule_state(self, state: Tensor | None) -> None:
        """Replace the update rule's state, for the updates called from now on."""
        if state is not None and self._rule is self._simulation.shared_rule:
            self._rule = self._simulation.update_rule()
        self._rule.set_state(state)

    def combine(self, *terms: tuple[float, Tensor]) -> Operation:
        """Start the linear combination."""
        if self._oracle is None:
            value = terms[0][1]
        else:
            from simulator.numerics import combination

            value = combination(terms)
        return self._compute("combine", self._pass_seconds(len(terms) + 1, value), value)

    def compute(
        self, function: Callable[..., Any], *tensors: Tensor, nbytes: float, charged: float | None = None
    ) -> Operation:
        """Start a computation that moves so many bytes."""
        moved = nbytes * self._byte_factor if charged is None else charged
        seconds = self._cost.pass_seconds(self._device, moved) * self._slowdown
        return self._compute("compute", seconds, function(*tensors))

    def access(self, name: str, x: Tensor, vectors: int, access: Reading | Writing) -> Operation:
        """Start an access to shared memory that moves so many vectors like ``x``."""
        return self._compute(name, self._pass_seconds(vectors, x), access)

    def _pass_seconds(self, vectors: int, x: Tensor) -> float:
        """Return the seconds of an element-wise pass that reads and writes that many vectors like ``x``."""
        nbytes = vectors * self.charged_bytes(x)
        return self._cost.pass_seconds(self._device, nbytes) * self._slowdown

    def charged_bytes(self, x: Tensor) -> float:
        """Return the bytes that a tensor stands for in the cost model.

        Elements of the objective's own type are charged as parameters of the cost model, any others by their
        own size, in proportion to the numbers of parameters. Messages of packed bits say themselves what
        they are charged as.
        """
        if isinstance(x, Phantom):
            return float(x.nbytes)
        if x.dtype == self._model_type:
            return x.numel() * self._element_bytes
        return x.nbytes * self._cost.parameters / self._simulation.elements

    def _compute(self, name: str, seconds: float, value: Any) -> Operation:
        operation = Operation(self, name)
        stream = self.stream
        stream.queue.append((seconds, operation, value))
        if len(stream.queue) == 1:
            self._start_computation(stream)
        return operation

    def _start_computation(self, stream: Stream) -> None:
        """Run a stream's first computation as a flow on the device; one that takes no time ends at once."""
        while stream.queue:
            seconds, operation, value = stream.queue[0]
            if isinstance(value, (Reading, Writing)):
                value.begin(stream, seconds)
            if seconds > 0:
                stream.started = self.clock.now
                self._streams.append(stream)
                self._begin_flow(stream, seconds)
                return
            stream.queue.pop(0)
            self._finish(operation, value)

    def _begin_flow(self, stream: Stream, seconds: float) -> None:
        if self._route.legs:
            stream.flow = self.clock.flow(self._route, seconds, stream.end_first, cap=self._rate)
        else:
            stream.flow = self.clock.undisturbed(seconds, stream.end_first)

    def left(self, stream: Stream) -> float | None:
        """Return the seconds of work left of a stream's first computation; None if nothing slows it down."""
        if not self._route.legs:
            return None
        core = self.clock.core
        return core.remaining(stream.flow) if core.running(stream.flow) else 0.0

    def _share_device(self) -> None:
        """Compute on a link from now on, which the tasks share; what is under way moves to it."""
        if self._rate == math.inf:
            return
        self._route, self._rate = self._simulation.network.device_route(self.rank, shared=True)
        for stream in self._streams:
            self._begin_flow(stream, self.clock.cancel(stream.flow))

    def end_computation(self, stream: Stream) -> None:
        """Deliver a stream's first computation, and begin with the next."""
        self._streams.remove(stream)
        _, operation, value = stream.queue.pop(0)
        now, iteration = self.clock.now, operation.iteration
        self._spans.append((self.rank, COMPUTE, operation.name, stream.started, now, -1, 0.0, iteration))
        self._finish(operation, value)
        if stream.queue:
            self._start_computation(stream)

    def _finish(self, operation: Operation, value: Any) -> None:
        """Deliver a computation's value; one that is evaluated only now may fail."""
        if operation.name == "gradient":
            self._simulation.advanced(self)
        if isinstance(value, DeferredPart):
            try:
                value = value.get()
            except Exception as error:
                operation.fail(error)
                return
        elif isinstance(value, (Reading, Writing)):
            value = value.get()
        operation.succeed(value)

    # Communication.

    def all_reduce(
        self, x: Tensor, op: Reduction = "mean", group: str = WORLD, charged: float | None = None
    ) -> Operation:
        """Start an all-reduce over a declared group."""
        return self._collective("all_reduce", group, op, (x,), charged)

    def all_gather(self, x: Tensor, group: str = WORLD, charged: float | None = None) -> Operation:
        """Start gathering every member's tensor."""
        return self._collective("all_gather", group, "all_gather", (x,), charged)

    def all_to_all(
        self, parts: Sequence[Tensor], group: str = WORLD, charged: float | None = None
    ) -> Operation:
        """Start sending a part to every member."""
        return self._collective("all_to_all", group, "all_to_all", parts, charged)

    def _collective(
        self, name: str, group: str, what: What, given: Sequence[Tensor], charged: float | None = None
    ) -> Operation:
        found = self._simulation.group(group, self.rank)
        operation = Operation(self, name, found.title)
        found.join(self, operation, what, given, charged)
        return operation

    def send(self, x: Tensor, to: int, channel: str = MESSAGE, charged: float | None = None) -> Operation:
        """Start sending a message."""
        mailbox = self._simulation.mailbox(self.rank, self.rank, to, channel)
        operation = Operation(self, "send", f"channel '{channel}'")
        send(self, operation, x, mailbox, charged)
        return operation

    def recv(self, source: int, channel: str = MESSAGE) -> Operation:
        """Start receiving a message."""
        mailbox = self._simulation.mailbox(self.rank, source, self.rank, channel)
        operation = Operation(self, "recv", f"channel '{channel}'")
        receive(self, operation, mailbox)
        return operation

    def exchange(self, x: Tensor, charged: float | None = None) -> Operation:
        """Start sending to every out-neighbour and receiving from every in-neighbour."""
        operation = Operation(self, "exchange")
        Exchange(self, operation, x, self._simulation.mailboxes(self.rank), charged)
        return operation

    def record(
        self, kind: str, operation: Operation, start: float, end: float, peer: int = -1, nbytes: float = 0.0
    ) -> None:
        """Add a span of an operation to the timeline, unless it is empty."""
        if end > start or nbytes:
            name, iteration = operation.name, operation.iteration
            self._spans.append((self.rank, kind, name, start, end, peer, nbytes, iteration))

    # Its tasks, and what they share.

    def shared(self, name: str, x: Tensor) -> VirtualShared:
        """Return the shared vector of that name."""
        return VirtualShared(self, self._simulation.memory(name, x))

    def spawn(self, task: Coroutine[Any, Any, Any]) -> Operation:
        """Start another task."""
        self._share_device()
        operation = Operation(self, "task")
        coroutine = cast("CoroutineType[Any, Any, Any]", task)
        self._simulation.start(Task(coroutine, self, lambda _, value: operation.succeed(value)))
        return operation

    def ended(self, task: Task) -> None:
        """Note that a task has ended."""
        self._simulation.ended(task)

    def failed(self, error: Exception) -> None:
        """End the run with what a task raised."""
        self._simulation.failed(self, error)

    def lock(self, name: str = "model") -> Lock:
        """Return this worker's lock of that name."""
        if self._locks is None:
            self._locks = {}
        if name not in self._locks:
            self._locks[name] = Lock(self, name)
        return self._locks[name]

    def observe(self, name: str, value: float) -> None:
        """Note a number for the run's record."""
        noted = Observation(name, self.rank, self.clock.now, self.iterations, float(value))
        self._simulation.observations.append(noted)

    def report(self, x: Tensor) -> None:
        """Store a copy of the model."""
        if self.serves:
            raise faults.only_serves(self.rank, "reported a model")
        self.reported = True
        copy = None if isinstance(x, Phantom) else x.clone()
        self._simulation.observer.report(self.rank, self.clock.now, self.iterations, copy)
        self._simulation.final[self.rank] = copy
