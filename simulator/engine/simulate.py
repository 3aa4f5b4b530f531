"""Run a scenario on the virtual clock."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from simpy.events import URGENT, Event

from algorithms.algorithm import EXCHANGE
from algorithms.phantom import Phantom
from algorithms.worker import Tensor
from simulator import faults
from simulator.engine.clock import Clock, NothingLeft, StalledFlow
from simulator.engine.collectives import Communicator, Pending
from simulator.engine.evaluation import GradientPool
from simulator.engine.groups import Group, Mailbox
from simulator.engine.memory import Memory
from simulator.engine.network import Network
from simulator.engine.storage import CoreName
from simulator.engine.worker import Operation, Stream, Task, VirtualWorker
from simulator.heap import keep_freed_memory
from simulator.observation import Observation, Observer
from simulator.parts import BadInput
from simulator.patterns import Kind
from simulator.plan import group_share, jitter, neighbours, oracle, outline, planned, seen_by_algorithm
from simulator.run import Progress, Run
from simulator.scenario import Scenario
from simulator.stragglers import Crash
from simulator.tuning import best_of, single_steps
from simulator.update import UpdateRule
from simulator.workload.cutting import cut
from traces import Timeline

if TYPE_CHECKING:
    import torch

    from simulator.workload.objective import Oracle


def simulate(
    scenario: Scenario, progress: Progress | None = None, monitor: bool = True, core: CoreName = "auto"
) -> Run:
    """Simulate a scenario's algorithm; with a grid of step sizes, each of them, and return the best.

    Parameters
    ----------
    scenario
        Its ``compare`` list is not run; see :meth:`simulator.scenario.Scenario.variants`.
    progress
        Told the part that is done, from 0 to 1.
    monitor
        Whether the load of every link over time is recorded.
    core
        ``plain`` or ``compiled`` forces how the network core runs; the results are the same.

    With numerics this process keeps from then on what it frees (see :mod:`simulator.heap`).

    Raises
    ------
    simulator.parts.BadInput
        The scenario cannot be simulated as it is.
    simulator.faults.AlgorithmError
        The algorithm broke a rule of the seam, or its workers wait for each other for ever.
    simulator.faults.WorkerFailed
        A worker's coroutine raised.
    """
    scenarios = single_steps(scenario)
    runs = []
    for number, single in enumerate(scenarios):
        part = _part_of(progress, number, len(scenarios))
        # A loss that diverges overflows; the run says so itself, with the iteration.
        overflow = np.errstate(over="ignore", invalid="ignore")
        with _torch_set_up(single) as threads, _no_garbage_collection(), overflow:
            simulation = Simulation(single, part, monitor, core, threads)
            try:
                runs.append(simulation.run())
            finally:
                simulation.end()
    return best_of(runs)


def check_simulable(scenario: Scenario) -> None:
    """Refuse what only the objective itself can tell: it does not go with the workers or their batches.

    A simulation refuses it too, but not before it has begun.

    Raises
    ------
    BadInput
        The message names the scenario's file.
    """
    if scenario.objective is None:
        return
    try:
        oracle(scenario, 0)
        _gradient_pool(scenario)
    except BadInput as error:
        raise BadInput(": ".join(filter(None, (scenario.source, error.key))), error.problem) from None


def _gradient_pool(scenario: Scenario, threads: int = 1) -> GradientPool | None:
    """Return where workers leave their gradients to be evaluated; None where each is evaluated at once."""
    objective = scenario.objective
    if objective is None:
        return None
    from simulator.workload.objective import SampledObjective

    batched = scenario.sections.workload.evaluation == "batched"
    if isinstance(objective, SampledObjective):
        return GradientPool(objective, batched, threads)
    if batched:
        problem = f"'batched' needs an objective over samples, which {objective.name} is not"
        raise BadInput("workload.evaluation", problem)
    return None


def _part_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done: progress((number + done) / count)


@contextlib.contextmanager
def _torch_set_up(scenario: Scenario) -> Iterator[int]:
    """Let torch use one thread, as each real rank does, so that both clocks give the same bits.

    What tensors free stays with the process. Gives the threads that torch would use.
    """
    if scenario.sections.workload.objective is None:
        yield 1
        return
    import torch

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the search for circular garbage, which costs as much as a large simulation itself.

    A simulation makes none that matters: its operations let go of each other when they end.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Simulation:
    """One run on the virtual clock: its clock, network, workers, and what is recorded of them."""

    def __init__(
        self,
        scenario: Scenario,
        progress: Progress | None,
        monitor: bool,
        core: CoreName = "auto",
        threads: int = 1,
    ) -> None:
        self.scenario = scenario
        self.algorithm_class = type(scenario.algorithm).__name__
        sharing = scenario.sections.cluster
        self.clock = Clock(fairness=sharing.fairness, core=core, max_plus=sharing.collectives == "max-plus")
        # Many workers may do a little each at one instant.
        self.most_at_once = max(faults.MOST_AT_ONCE, 1000 * scenario.workers)
        self.clock.next_look = self.most_at_once
        self.network = Network(self.clock, scenario, monitor)
        self.limit = scenario.sections.budget.iterations
        self.spans = Timeline()
        self.observations: list[Observation] = []
        self.final: list[torch.Tensor | None] = [None] * scenario.workers
        self._objective = scenario.objective
        self.elements = self._objective.parameters if self._objective else scenario.cost.parameters
        self._phantom = Phantom((self.elements,), scenario.cost.parameter_bytes)
        self.bounds = cut(scenario.cost.buckets(), scenario.cost.parameters, self.elements)
        self.outline = outline(scenario)
        self.step_time = functools.cache(scenario.cost.gradient_seconds)
        self.pool = _gradient_pool(scenario, min(threads, scenario.workers))
        stop_early = scenario.sections.budget.stop == "target"
        self.observer = Observer(
            self._objective,
            scenario.shares,
            scenario.workers,
            scenario.sections.target,
            self._needed_iterations(),
            self._stop if stop_early else None,
        )
        self._progress = progress
        self._plan = planned(scenario)
        self._groups = {name: self._group(name, ranks) for name, ranks in self._plan.groups.items()}
        self._mailboxes = {
            channel: Mailbox(self.network, channel[0], channel[1], channel[2] == EXCHANGE)
            for channel in self._plan.channels
        }
        self._by_rank: dict[int, tuple[dict[int, Mailbox], dict[int, Mailbox]]] = {}
        self._memories: dict[str, Memory] = {}
        self.equal_share = 1 / scenario.workers
        rule = self.update_rule()
        self.shared_rule = rule if rule.keeps_nothing else None
        self.workers = [VirtualWorker(self, rank) for rank in range(scenario.ranks)]  # servers come last
        self._at_work = set(range(scenario.ranks))
        self._failure: Exception | None = None
        self._all_done = self.clock.event()
        self._tasks: dict[Task, None] = {}
        self._await_crashes()

    # What workers ask for.

    def oracle(self, rank: int) -> Oracle | None:
        """Return a rank's source of gradients; None in a timing-only run."""
        return None if self._objective is None else oracle(self.scenario, rank)

    def update_rule(self) -> UpdateRule:
        """Return an update rule at its start."""
        scenario = self.scenario
        return UpdateRule(scenario.update, scenario.step_sizes[0], scenario.sections.budget.iterations)

    def jitter(self, rank: int) -> Callable[[], float]:
        """Return the source of a rank's per-gradient factors."""
        return jitter(self.scenario, rank)

    def initial_model(self) -> Tensor:
        """Return a fresh copy of the starting model."""
        if self._objective is None:
            return self._phantom
        return self._objective.initial_model()

    def _group(self, name: str, ranks: tuple[int, ...]) -> Group:
        hosts: list[Hashable] = [self.scenario.cluster.host(rank) for rank in ranks]
        shares = self.scenario.shares
        weights = [share for rank in ranks if (share := group_share(shares, ranks, rank)) is not None]
        waiting: deque[Pending] = deque()

        def communicator(kind: Kind) -> Communicator:
            return Communicator(self.network, ranks, hosts, kind, waiting)

        return Group(name, ranks, communicator, weights or None)

    def group(self, name: str, rank: int) -> Group:
        """Return a declared group."""
        if name not in self._groups:
            raise faults.undeclared_group(rank, name, self._groups)
        return self._groups[name]

    def mailbox(self, rank: int, source: int, destination: int, name: str) -> Mailbox:
        """Return a declared channel that a rank uses."""
        found = self._mailboxes.get((source, destination, name))
        if found is None:
            raise faults.undeclared_channel(rank, source, destination, name)
        return found

    def memory(self, name: str, x: Tensor) -> Memory:
        """Return the shared vector of that name, made by the first worker that asks."""
        if name not in self._memories:
            self._memories[name] = Memory(x)
        return self._memories[name]

    def mailboxes(self, rank: int) -> tuple[dict[int, Mailbox], dict[int, Mailbox]]:
        """Return a rank's channels to its neighbours: out and in, by the neighbour's rank, ascending."""
        found = self._by_rank.get(rank)
        if found is None:
            into, out = neighbours(self.scenario, self._plan, rank)
            found = self._by_rank[rank] = (
                {other: self._mailboxes[rank, other, EXCHANGE] for other in out},
                {other: self._mailboxes[other, rank, EXCHANGE] for other in into},
            )
        return found

    # How the run goes on and ends.

    def advanced(self, worker: VirtualWorker) -> None:
        """Note that a worker has computed a gradient."""
        if self._progress is not None and worker.rank == 0:
            self._progress(min(1.0, worker.iterations / self.limit))

    def _needed_iterations(self) -> float | None:
        """Return the iterations that the target takes, where it is no loss."""
        target = self.scenario.sections.target
        return target.needed_iterations(sum(self.scenario.batches)) if target else None

    def _stop(self) -> None:
        """End the run at the iteration that the foremost worker is already bound to do."""
        self.limit = min(self.limit, max(worker.promised for worker in self.workers))

    def _work(self, worker: VirtualWorker, ended: Callable[[VirtualWorker, Any], object]) -> None:
        """Let a worker begin with the algorithm."""
        try:
            work = self.scenario.algorithm.run(seen_by_algorithm(self.scenario, worker))
            if not inspect.iscoroutine(work):
                raise faults.not_a_coroutine(self.algorithm_class, work)
        except Exception as error:
            self.failed(worker, error)
        else:
            self.start(Task(work, worker, ended))

    def _end_of_work(self, worker: VirtualWorker, _: object) -> None:
        try:
            self._check_ending(worker)
        except faults.AlgorithmError as error:
            self.failed(worker, error)
        else:
            self._at_work.remove(worker.rank)
            # A worker may have failed at this instant.
            if not self._at_work and self._failure is None:
                self._all_done.succeed()

    def _await_crashes(self) -> None:
        """Let workers that the scenario lets crash for good do so; outages are the network's."""
        for straggler in self.scenario.stragglers:
            if isinstance(straggler, Crash) and not straggler.returns:
                for rank in filter(straggler.concerns, range(self.scenario.workers)):
                    self.clock.at(straggler.at, functools.partial(self._crash, rank, straggler.at))

    def _crash(self, rank: int, at: float) -> None:
        """End the run by the crash of a worker, unless its work is done."""
        if rank in self._at_work:
            self._fail(faults.crashed(rank, self.workers[rank].iterations, at))

    def failed(self, worker: VirtualWorker, error: Exception) -> None:
        """End the run with what a task of a worker raised."""
        if isinstance(error, faults.AlgorithmError):
            self._fail(error)
        else:
            self._fail(faults.WorkerFailed(worker.rank, worker.iterations, faults.cause_of(error)), error)

    def _check_ending(self, worker: VirtualWorker) -> None:
        """Refuse a worker that ended without having done what every run must do."""
        for operation in worker.unawaited:
            raise faults.not_awaited(worker.rank, operation.name, operation.iteration)
        if worker.serves:
            return
        if not worker.iterations:
            raise faults.no_gradient(worker.rank)
        if not worker.reported:
            raise faults.no_report(worker.rank)

    def _fail(self, failure: Exception, cause: Exception | None = None) -> None:
        """Keep the first failure and end the run."""
        if self._failure is None:
            failure.__cause__ = cause
            self._failure = failure
            self._all_done.succeed()

    def start(self, task: Task) -> None:
        """Let a task begin, before the other events of this instant, as SimPy's processes do."""
        self._tasks[task] = None
        event = Event(self.clock)
        event._ok = True
        event._value = None
        event.callbacks.append(task.begin)
        self.clock.schedule(event, URGENT)

    def ended(self, task: Task) -> None:
        """Note that a task has ended."""
        del self._tasks[task]

    def run(self) -> Run:
        """Run all workers to their end."""
        ended = self._end_of_work  # one for all of them
        for worker in self.workers:
            self._work(worker, ended)
        try:
            self.clock.run(until=self._all_done)
        except StalledFlow as stalled:
            failed = [link for link in stalled.route if self.clock.core.capacity(link) == 0.0]
            names = self.network.names
            raise faults.stalled(names(stalled.route), names(failed), self.clock.now) from None
        except NothingLeft:
            raise self._deadlock() from None
        finally:
            for task in self._tasks:
                task.coroutine.close()
        if self._failure is not None:
            raise self._failure
        return self._result()

    def end(self) -> None:
        """Let go of what outlives a run."""
        if self.pool is not None:
            self.pool.end()

    def _deadlock(self) -> faults.AlgorithmError:
        """Say who waits for whom, for what, since when and where."""
        lines = []
        # In the order of workers; the tasks of one are in that of their starts.
        for task in sorted(self._tasks, key=lambda task: task.worker.rank):
            operation = task.waits_for
            if operation is not None:
                lines.append(
                    faults.Waiting(
                        worker=task.worker.rank,
                        operation=" ".join(filter(None, (operation.name, operation.about))),
                        since=operation.since,
                        peers=_missing(operation),
                        line=_innermost_line(task.coroutine),
                    )
                )
        return faults.deadlock(lines)

    def standing_still(
        self, operation: Operation, stream: Stream, count: int, frame: FrameType | None = None
    ) -> faults.AlgorithmError:
        """Return the error of a task that goes round without taking time, as its last operation was seen."""
        task = next(task for task in self._tasks if task.stream is stream)
        line = _innermost_line(task.coroutine) if frame is None else _line(frame)
        name = task.coroutine.__qualname__
        return faults.standing_still(self.clock.now, count, operation.worker.rank, operation.name, name, line)

    def _result(self) -> Run:
        """Gather what the run recorded."""
        models = None
        if all(model is not None for model in self.final):
            models = np.stack([model.numpy() for model in self.final if model is not None])
        workers, servers = self.workers[: self.scenario.workers], self.workers[self.scenario.workers :]
        return Run(
            scenario=self.scenario,
            clock="virtual",
            duration=self.clock.now,
            iterations=tuple(worker.iterations for worker in workers),
            evaluations=tuple(worker.evaluations for worker in workers),
            observations=self.observations,
            bytes_sent=tuple(worker.bytes_sent for worker in workers),
            server_bytes=tuple(server.bytes_sent for server in servers),
            timeline=self.spans,
            samples=self.observer.samples,
            pace=self.observer.pace,
            ends=tuple(self.observer.ends),
            links=self.network.link_use(),
            models=models,
        )


def _missing(operation: Operation) -> tuple[int, ...]:
    """Return the ranks without which an operation cannot end."""
    missing = operation.missing
    if missing is None:
        return ()
    return (missing,) if isinstance(missing, int) else tuple(missing())


def _innermost_line(coroutine: CoroutineType[Any, Any, Any]) -> str:
    """Return the file and line of the algorithm's own code at which a coroutine waits."""
    frame, inner = coroutine.cr_frame, coroutine.cr_await
    while isinstance(inner, CoroutineType):
        frame, inner = inner.cr_frame, inner.cr_await
    return _line(frame) if frame else "?"


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
