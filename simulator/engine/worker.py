"""The worker on the virtual clock.

A worker's coroutine is a SimPy process as it is: awaiting a :class:`Operation` yields a SimPy event. Its
computations queue on one stream and are flows on its device; its messages and collectives run on the
network. Values are computed when an operation is called, from its arguments as they are then, and
delivered when its time has passed; so no argument needs to be copied for a computation.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from simpy.events import PENDING, Event

from algorithms.phantom import Phantom
from algorithms.worker import WORLD, Reduction, Tensor
from simulator import faults
from simulator.engine.evaluation import DeferredPart
from simulator.engine.groups import Exchange
from simulator.plan import weights
from traces import COMPUTE, Span

if TYPE_CHECKING:
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
            self.worker.blocked = self
            yield self
            self.worker.blocked = None
        return self._value


class Driven:
    """An algorithm's coroutine that may wait for its own worker's operations only.

    Parameters
    ----------
    coroutine
        What the algorithm's ``run`` returned.
    worker
        Whose operations it may await.
    """

    def __init__(self, coroutine: CoroutineType[Any, Any, None], worker: VirtualWorker) -> None:
        self._coroutine = coroutine
        self._worker = worker

    def __await__(self) -> Generator[Any, Any, None]:
        resume, argument = self._coroutine.send, None
        while True:
            try:
                event = resume(argument)
            except StopIteration:
                return
            if not isinstance(event, Operation) or event.worker is not self._worker:
                self._coroutine.close()
                raise faults.foreign_await(self._worker.rank)
            try:
                argument, resume = (yield event), self._coroutine.send
            except Exception as error:
                argument, resume = error, self._coroutine.throw


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
        self.weights: Mapping[int, float] = weights(scenario, rank)
        self.clock = simulation.clock
        self.iterations = 0
        self.promised = 0
        self.reported = False
        self.bytes_sent = 0.0
        self.unawaited: dict[Operation, None] = {}
        self.blocked: Operation | None = None
        self._checks = 0
        self._simulation = simulation
        self._spans = simulation.spans
        self._oracle = simulation.oracle(rank)
        self._pool = simulation.pool
        self._step_size = scenario.step_sizes[0]
        self._cost = scenario.cost
        self._device = scenario.cluster.devices[rank]
        self._device_link = (simulation.network.device(rank),)
        self._step_time = simulation.step_time(self._device, scenario.batches[rank])
        self._slowdown = scenario.persistent_factor(rank)
        self._jitter = simulation.jitter(rank)
        self._bounds = simulation.bounds
        self._element_bytes = self._cost.parameters * self._cost.parameter_bytes / simulation.elements
        self._stream: list[tuple[float, Operation, Any]] = []
        self._started = 0.0

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

    # Computations.

    def _seconds_factor(self) -> float:
        return self._slowdown * self._jitter()

    def _begin_iteration(self) -> float:
        self.iterations += 1
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

    def update(self, x: Tensor, gradient: Tensor | Sequence[Tensor]) -> Operation:
        """Start the local step."""
        if self._oracle is None:
            value = x
        else:
            from simulator.numerics import stepped

            assert self._step_size is not None
            value = stepped(x, gradient, self._step_size, self._bounds)
        return self._compute("update", self._pass_seconds(3, x), value)

    def combine(self, *terms: tuple[float, Tensor]) -> Operation:
        """Start the linear combination."""
        if self._oracle is None:
            value = terms[0][1]
        else:
            from simulator.numerics import combination

            value = combination(terms)
        return self._compute("combine", self._pass_seconds(len(terms) + 1, value), value)

    def _pass_seconds(self, vectors: int, x: Tensor) -> float:
        """Return the seconds of an element-wise pass that reads and writes that many vectors like ``x``."""
        nbytes = vectors * self.charged_bytes(x)
        return self._cost.pass_seconds(self._device, nbytes) * self._slowdown

    def charged_bytes(self, x: Tensor) -> float:
        """Return the bytes that a tensor stands for in the cost model."""
        return x.numel() * self._element_bytes

    def _compute(self, name: str, seconds: float, value: Any) -> Operation:
        operation = Operation(self, name)
        self._stream.append((seconds, operation, value))
        if len(self._stream) == 1:
            self._start_computation()
        return operation

    def _start_computation(self) -> None:
        """Run the stream's first computation as a flow on the device; one that takes no time ends at once."""
        while self._stream:
            seconds, operation, value = self._stream[0]
            if seconds > 0:
                self._started = self.clock.now
                self.clock.flow(self._device_link, seconds, self._end_computation)
                return
            self._stream.pop(0)
            self._finish(operation, value)

    def _end_computation(self) -> None:
        _, operation, value = self._stream.pop(0)
        self._spans.append(
            Span(
                self.rank,
                COMPUTE,
                operation.name,
                self._started,
                self.clock.now,
                -1,
                0.0,
                operation.iteration,
            )
        )
        self._finish(operation, value)
        self._start_computation()

    def _finish(self, operation: Operation, value: Any) -> None:
        """Deliver a computation's value; one that is evaluated only now may fail."""
        if operation.name == "gradient":
            self._simulation.advanced(self)
        if isinstance(value, DeferredPart):
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
        found = self._simulation.group(group, self.rank)
        operation = Operation(self, "all_reduce", found.title)
        found.join(self, operation, x, op)
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

    def report(self, x: Tensor) -> None:
        """Store a copy of the model."""
        self.reported = True
        copy = None if isinstance(x, Phantom) else x.clone()
        self._simulation.observer.report(self.rank, self.clock.now, self.iterations, copy)
        self._simulation.final[self.rank] = copy
