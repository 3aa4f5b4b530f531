"""The worker on the virtual clock.

A worker's coroutine is a SimPy process as it is: awaiting a :class:`Operation` yields a SimPy event. The
computations of each of its tasks queue on a stream and are flows on its device, which tasks that compute at
the same time share; its messages and collectives run on the network. Values are computed when an operation
is called, from its arguments as they are then, and delivered when its time has passed; so no argument needs
to be copied for a computation.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, cast

from simpy.events import PENDING, Event

from algorithms.phantom import Phantom
from algorithms.worker import MESSAGE, WORLD, Reduction, Tensor
from simulator import faults
from simulator.engine.evaluation import DeferredPart
from simulator.engine.groups import Exchange, receive, send
from simulator.engine.memory import Reading, VirtualShared, Writing
from simulator.observation import Observation
from simulator.plan import random_numbers, weights
from simulator.update import UpdateRule
from simulator.workload.cutting import cut
from traces import COMPUTE, Span

if TYPE_CHECKING:
    import numpy as np

    from simulator.engine.simulate import Simulation


class Operation(Event):
    """An operation under way: the handle that a worker's call returns."""

    since: float

    def __init__(self, worker: VirtualWorker, name: str, about: str = "") -> None:
        self.env = worker.clock
        self.callbacks = []
        self._value = PENDING
        self.worker = worker
        self.name = name
        self.about = about
        self.since = worker.clock.now
        self.iteration = worker.iterations
        self.missing: Callable[[], list[int]] | None = None
        worker.unawaited[self] = None

    def __await__(self) -> Generator[Event, Any, Any]:
        self.worker.unawaited.pop(self, None)
        if self._value is PENDING:
            yield self
        return self._value


class Stream:
    """The computations of a task, done one after another."""

    __slots__ = ("queue", "started")

    def __init__(self) -> None:
        self.queue: list[tuple[float, Operation, Any]] = []
        self.started = 0.0


class Driven:
    """A task's coroutine, which may wait for its own worker's operations only.

    Parameters
    ----------
    coroutine
        What the algorithm's ``run`` returned, or what was spawned.
    worker
        Whose operations it may await.
    """

    def __init__(self, coroutine: CoroutineType[Any, Any, Any], worker: VirtualWorker) -> None:
        self._coroutine = coroutine
        self._worker = worker
        self._stream = Stream()

    def __await__(self) -> Generator[Any, Any, Any]:
        resume, argument = self._coroutine.send, None
        worker, blocked = self._worker, self._worker.blocked
        while True:
            worker.stream = self._stream
            try:
                event = resume(argument)
            except StopIteration as end:
                return end.value
            if not isinstance(event, Operation) or event.worker is not worker:
                self._coroutine.close()
                raise faults.foreign_await(worker.rank)
            blocked[event] = self._coroutine
            try:
                argument, resume = (yield event), self._coroutine.send
            except Exception as error:
                argument, resume = error, self._coroutine.throw
            finally:
                blocked.pop(event, None)


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

    def __init__(self, simulation: Simulation, rank: int) -> None:
        scenario = simulation.scenario
        self.rank = rank
        self.world_size = scenario.workers
        self.share = scenario.shares[rank] if scenario.shares else 1 / scenario.workers
        self.graph = scenario.communication_graph if scenario.algorithm.needs_graph else None
        self.weights: Mapping[int, float] = weights(scenario, rank)
        self.clock = simulation.clock
        self.iterations = 0
        self.evaluations = 0.0
        self.promised = 0
        self.reported = False
        self.bytes_sent = 0.0
        self.unawaited: dict[Operation, None] = {}
        self.blocked: dict[Operation, CoroutineType[Any, Any, Any]] = {}
        self.batch = scenario.objective_batches[rank]
        self._checks = 0
        self._simulation = simulation
        self._spans = simulation.spans
        self._oracle = simulation.oracle(rank)
        self._pool = simulation.pool
        self._rule = UpdateRule(scenario.update, scenario.step_sizes[0], scenario.sections.budget.iterations)
        self._cost = scenario.cost
        self._device = scenario.cluster.devices[rank]
        self._device_link = (simulation.network.device(rank),)
        self._step_time = self._cost.gradient_seconds(self._device, scenario.batches[rank])
        self._slowdown = scenario.persistent_factor(rank)
        self._jitter = simulation.jitter(rank)
        self._bounds = cut(self._cost.buckets(), self._cost.parameters, simulation.elements)
        objective = scenario.objective
        self._model_type = None if objective is None else objective.dtype
        self._element_bytes = self._cost.parameters * self._cost.parameter_bytes / simulation.elements
        self._byte_factor = 1.0 if objective is None else self._element_bytes / objective.dtype.itemsize
        self._random: dict[tuple[str, bool], np.random.Generator] = {}
        self._locks: dict[str, Lock] = {}
        self.stream = Stream()  # of the task that runs

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
    def problem(self) -> Any:
        """What is optimised."""
        return None if self._oracle is None else self._oracle.problem

    def random(self, purpose: str, shared: bool = False) -> np.random.Generator:
        """Return the random numbers of a purpose."""
        key = (purpose, shared)
        if key not in self._random:
            self._random[key] = random_numbers(self._simulation.scenario.seed, self.rank, purpose, shared)
        return self._random[key]

    # Computations.

    def _seconds_factor(self) -> float:
        return self._slowdown * self._jitter()

    def _begin_iteration(self, count: int = 1, gradients: float = 1.0) -> float:
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

    def update(self, x: Tensor, gradient: Tensor | Sequence[Tensor]) -> Operation:
        """Start the local step."""
        value = self._rule.apply(x, gradient, self._bounds, self.step_size)
        return self._compute("update", self._pass_seconds(self._rule.vectors_moved, x), value)

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
        self._rule.set_state(state)

    def combine(self, *terms: tuple[float, Tensor]) -> Operation:
        """Start the linear combination."""
        if self._oracle is None:
            value = terms[0][1]
        else:
            from simulator.numerics import combination

            value = combination(terms)
        return self._compute("combine", self._pass_seconds(len(terms) + 1, value), value)

    def compute(self, function: Callable[..., Any], *tensors: Tensor, nbytes: float) -> Operation:
        """Start a computation that moves so many bytes."""
        seconds = self._cost.pass_seconds(self._device, nbytes * self._byte_factor) * self._slowdown
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

        Elements of the objective's own type are charged as parameters of the cost model, any others (an
        encoded message) by their own size, in proportion to the numbers of parameters.
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
                value.begin(seconds)
            if seconds > 0:
                stream.started = self.clock.now
                self.clock.flow(self._device_link, seconds, functools.partial(self._end_computation, stream))
                return
            stream.queue.pop(0)
            self._finish(operation, value)

    def _end_computation(self, stream: Stream) -> None:
        _, operation, value = stream.queue.pop(0)
        self._spans.append(
            Span(
                self.rank,
                COMPUTE,
                operation.name,
                stream.started,
                self.clock.now,
                -1,
                0.0,
                operation.iteration,
            )
        )
        self._finish(operation, value)
        self._start_computation(stream)

    def _finish(self, operation: Operation, value: Any) -> None:
        """Deliver a computation's value; one that is evaluated only now may fail."""
        if operation.name == "gradient":
            self._simulation.advanced(self)
        if isinstance(value, (Reading, Writing)):
            value = value.get()
        elif isinstance(value, DeferredPart):
            try:
                value = value.get()
            except Exception as error:
                operation.fail(error)
                operation.defused = True
                return
        operation.succeed(value)

    # Communication.

    def all_reduce(self, x: Tensor, op: Reduction = "mean", group: str = WORLD) -> Operation:
        """Start an all-reduce over a declared group."""
        operation = Operation(self, "all_reduce", f"group '{group}'")
        self._simulation.group(group, self.rank).join(self, operation, op, (x,))
        return operation

    def all_gather(self, x: Tensor, group: str = WORLD) -> Operation:
        """Start gathering every member's tensor."""
        operation = Operation(self, "all_gather", f"group '{group}'")
        self._simulation.group(group, self.rank).join(self, operation, "all_gather", (x,))
        return operation

    def all_to_all(self, parts: Sequence[Tensor], group: str = WORLD) -> Operation:
        """Start sending a part to every member."""
        operation = Operation(self, "all_to_all", f"group '{group}'")
        self._simulation.group(group, self.rank).join(self, operation, "all_to_all", parts)
        return operation

    def send(self, x: Tensor, to: int, channel: str = MESSAGE) -> Operation:
        """Start sending a message."""
        mailbox = self._simulation.mailbox(self.rank, self.rank, to, channel)
        operation = Operation(self, "send", f"channel '{channel}'")
        send(self, operation, x, mailbox)
        return operation

    def recv(self, source: int, channel: str = MESSAGE) -> Operation:
        """Start receiving a message."""
        mailbox = self._simulation.mailbox(self.rank, source, self.rank, channel)
        operation = Operation(self, "recv", f"channel '{channel}'")
        receive(self, operation, mailbox)
        return operation

    def exchange(self, x: Tensor) -> Operation:
        """Start sending to every out-neighbour and receiving from every in-neighbour."""
        operation = Operation(self, "exchange")
        Exchange(self, operation, x, self._simulation.mailboxes(self.rank))
        return operation

    def record(
        self, kind: str, operation: Operation, start: float, end: float, peer: int = -1, nbytes: float = 0.0
    ) -> None:
        """Add a span of an operation to the timeline, unless it is empty."""
        if end > start or nbytes:
            name, iteration = operation.name, operation.iteration
            self._spans.append(Span(self.rank, kind, name, start, end, peer, nbytes, iteration))

    # Its tasks, and what they share.

    def shared(self, name: str, x: Tensor) -> VirtualShared:
        """Return the shared vector of that name."""
        return VirtualShared(self, self._simulation.memory(name, x))

    def spawn(self, task: Coroutine[Any, Any, Any]) -> Operation:
        """Start another task."""
        operation = Operation(self, "task")
        driven = self._carry_out(cast("CoroutineType[Any, Any, Any]", task), operation)
        self._simulation.start(cast("CoroutineType[Any, Any, None]", driven))
        return operation

    async def _carry_out(self, task: CoroutineType[Any, Any, Any], operation: Operation) -> None:
        try:
            operation.succeed(await Driven(task, self))
        except Exception as error:
            self._simulation.failed(self, error)

    def lock(self, name: str = "model") -> Lock:
        """Return this worker's lock of that name."""
        if name not in self._locks:
            self._locks[name] = Lock(self, name)
        return self._locks[name]

    def observe(self, name: str, value: float) -> None:
        """Note a number for the run's record."""
        noted = Observation(name, self.rank, self.clock.now, self.iterations, float(value))
        self._simulation.observations.append(noted)

    def report(self, x: Tensor) -> None:
        """Store a copy of the model."""
        self.reported = True
        copy = None if isinstance(x, Phantom) else x.clone()
        self._simulation.observer.report(self.rank, self.clock.now, self.iterations, copy)
        self._simulation.final[self.rank] = copy
