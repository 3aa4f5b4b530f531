"""Ranks as local processes: how they are started, watched and ended.

Local ranks are forked from a helper process that has imported what they need and done nothing else. So a
rank is up in milliseconds instead of the seconds that importing torch takes, and no rank inherits threads
that a simulation has used. They meet through a file in a temporary folder and talk over the loopback
device. Each has a pipe to the process that launched it: over it goes what the rank brings home, or the
error that ended it, and once a second what it does. When one rank fails, or the run is stuck, all are ended,
and the first cause is raised. A rank ends when its launcher does, however that happens.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import multiprocessing.connection
import os
import pickle
import platform
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._C._distributed_c10d import FileStore

from simulator import faults
from simulator.execution import watch
from simulator.execution.communicator import Communicator, GlooCommunicator, failing, make_world, own_world
from simulator.execution.device import Cpu, Side, chosen_backend, described, identity, side
from simulator.execution.record import Record
from simulator.execution.staging import NcclCommunicator, StagedCommunicator
from simulator.execution.streams import StreamKey
from simulator.execution.tasks import Wait
from simulator.execution.watch import Began, Failed, Heartbeat, Judge, Started, State, Waits, failure
from simulator.execution.worker import Listener, WallWorker
from simulator.faults import AlgorithmError, RunStuck, WorkerFailed
from simulator.parts import BadInput
from simulator.plan import planned
from simulator.processes import shorten_sockets
from simulator.run import Met, Progress
from simulator.scenario import Scenario

PRELOADED = [
    "torch",
    "torch.distributed",
    "sklearn.datasets",
    "simulator.workload.objective",
    "simulator.execution.launch",
]
"""What the helper process imports: all that ranks would otherwise import one by one."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""The environment of the helper and the ranks: the same bits as in simulation need one thread."""

Buckets = tuple[tuple[int, int], ...]

_PARTING = 5.0
"""Seconds that a rank has to end by itself after its work is done."""


# One rank.


def perform(
    scenario: Scenario,
    rank: int,
    buckets: Buckets | None = None,
    listener: Listener | None = None,
    folder: Path | None = None,
    place: Side | None = None,
    backend: str = "gloo",
) -> tuple[Record, GlooCommunicator | None]:
    """Run one rank in this process, whose default process group exists if there are several.

    Parameters
    ----------
    scenario, rank
        What is run, and which worker or dedicated server of it.
    buckets
        The cost model's buckets, where the caller has them already.
    listener
        Told how the worker gets on.
    folder
        Where the files are that the ranks of one machine share; None where the worker is alone, or the ranks
        are on several.
    place
        The device that it computes on; the CPU if not given.
    backend
        What carries collectives: ``gloo`` or ``nccl``.

    Returns
    -------
    What happened, and the communicator (None for a single worker).

    Raises
    ------
    AlgorithmError
        The algorithm breaks a rule of the seam.
    WorkerFailed
        Anything else that its run raises; the original error is its cause.
    """
    torch.set_num_threads(1)
    several = scenario.ranks > 1
    plan = planned(scenario)
    with failing("making the process groups"):
        communicator = GlooCommunicator(rank, scenario.ranks, plan, own_world()) if several else None
    place = place or Cpu()
    place.prepare()
    carrier = None
    if communicator is not None:
        carrier = carrying(communicator, scenario, place.device, backend)
    worker = WallWorker(scenario, rank, carrier, buckets, listener, folder, place, communicator)
    algorithm = scenario.algorithm
    with failing("the common start"):
        start = time.monotonic() if communicator is None else communicator.common_start()
    try:
        record = worker.run(algorithm, start)
    except (AlgorithmError, RunStuck, WorkerFailed):
        raise
    except Exception as error:
        raise WorkerFailed(rank, worker.iterations, faults.cause_of(error)) from error
    finally:
        worker.close()
    worker.join()
    return record, communicator


class _Messenger:
    """Passes on how a worker gets on, without flooding the pipe.

    Parameters
    ----------
    connection
        To the launcher.
    counts
        Whether the iterations of this rank, and its start, are wanted.
    patience
        Of the launcher, in seconds.
    """

    def __init__(self, connection: Connection, counts: bool, patience: float) -> None:
        self._connection = connection
        self._counts = counts
        self._told = 0.0
        # Every task of the worker may have news.
        self._turn = threading.Lock()
        self._heartbeat = Heartbeat(self.pass_on, patience)

    def iterated(self, iterations: int) -> None:
        """Pass on the iterations begun, ten times a second at most."""
        if self._counts and time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            self.pass_on(Began(iterations))

    def waiting(self, waits: Sequence[Wait], calls: Mapping[StreamKey, int]) -> None:
        """Pass on that the worker stands still, or goes on."""
        self.pass_on(Waits(tuple(waits), dict(calls)))

    def watch(self, state: Callable[[], State], end: Callable[[BaseException], None]) -> None:
        """Pass on from time to time what the worker does; the launcher ends a rank by killing it."""
        self._heartbeat.of(state)
        self.pass_on(state())

    def started(self, start: float) -> None:
        """Pass on the common start of all ranks, which this machine's processes know one clock for."""
        if self._counts:
            self.pass_on(Started(start))

    def crash(self, error: WorkerFailed) -> None:
        """Say why, and end this process at once."""
        self.pass_on(Failed(error, False, ""))
        os.kill(os.getpid(), signal.SIGKILL)

    def pass_on(self, news: object) -> None:
        """Send news to the launcher."""
        with self._turn:
            self._connection.send(news)


def carrying(gloo: GlooCommunicator, scenario: Scenario, device: torch.device, backend: str) -> Communicator:
    """Return what carries the messages of tensors that are on a device."""
    if device.type == "cpu":
        return gloo
    staged = StagedCommunicator(gloo, device, pinned=True)
    if backend != "nccl":
        return staged
    carrier = NcclCommunicator(staged, scenario.ranks, planned(scenario), device)
    gloo.keep(carrier.groups)
    return carrier


def initialised(backend: str) -> str:
    """Return what the default process group is initialised with."""
    return "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"


def _serve(
    rank: int,
    world_size: int,
    payload: bytes,
    buckets: Buckets,
    folder: Path,
    patience: float,
    device: str,
    backend: str,
    site: Site | None,
    connection: Connection,
) -> None:
    """Be one local rank: the body of its process."""
    # Ctrl-C reaches every process of a terminal. The helper of somebody else may not have masked it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_launcher, args=(folder,), daemon=True).start()
    _wake_with_launcher()
    os.environ.update(ONE_THREAD)
    messenger = _Messenger(connection, rank == 0, patience)
    try:
        # Threads inherit where they are, so that this comes before the backend starts its own.
        if site is not None:
            site.enter()
        scenario: Scenario = pickle.loads(payload)
        if world_size > 1:
            with failing("meeting the other ranks"):
                _meet(rank, world_size, folder / "meeting", backend)
        news: Record | Failed
        news, _ = perform(scenario, rank, buckets, messenger, folder, side(device, rank), backend)
    except BaseException as error:
        news = failure(rank, error)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(BrokenPipeError):
        messenger.pass_on(news)
        # Peers may still be receiving: a rank stays until the launcher closes the pipe, perhaps before it has
        # read all that was told.
        with suppress(EOFError, ConnectionResetError):
            connection.recv()
    # No clean-up: the backend's threads may hang in an operation with a rank that has gone.
    os._exit(0)


def _wake_with_launcher() -> None:
    """Let the kernel continue this process, should it be stopped, when its launcher ends.

    A stopped process could not see that. The pipe by which a rank sees its launcher's end sends it SIGCONT,
    once: who stops it again in the milliseconds until it has ended must wake it.
    """
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    if sys.platform == "linux":
        pipe = launcher.sentinel
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGCONT)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


def _end_with_launcher(folder: Path) -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    # A launcher that was killed has left it behind.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _meet(rank: int, world_size: int, meeting: Path, backend: str) -> None:
    """Join the other local ranks, at the address of the loopback device wherever this rank is."""
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    store = FileStore(str(meeting), world_size)
    make_world(initialised(backend), store, rank, world_size)


# The launcher of local ranks.


def warm_up() -> None:
    """Start the helper process, unless it runs already, and do not wait for it.

    Called early, what it imports is ready when the first execution begins.
    """
    shorten_sockets()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # The helper and all that it forks inherit a mask without Ctrl-C, which the launcher alone answers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _environment({**ONE_THREAD, "PYTHONPATH": path}):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Site(Protocol):
    """Where a rank runs, apart from the launcher; it can be sent to a process that is being started."""

    def enter(self) -> None:
        """Move the calling thread, and those that it starts from then on, to this site."""
        ...


def launch(
    scenario: Scenario,
    progress: Progress | None = None,
    patience: float = watch.PATIENCE,
    device: str = "cpu",
    backend: str = "auto",
    met: Met | None = None,
    sites: Sequence[Site] | None = None,
    started: Callable[[float], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Run every rank of a scenario as a local process and return what they bring home, by rank.

    Parameters
    ----------
    scenario
        With an objective and one step size.
    progress
        Told how much is done.
    patience
        Seconds without any progress, or without a word of a rank, after which the run is ended.
    device
        ``auto``, ``cpu`` or ``cuda``; ranks take the machine's GPUs in turn.
    backend
        What carries collectives: ``auto``, ``gloo`` or ``nccl``.
    met
        Told the host and the device of each rank, and what carries their collectives.
    sites
        Of each rank; None where all of them run where this process does.
    started
        Told the common start of all ranks, on the monotonic clock.
    check
        Called once a second at least; what it raises ends the run.

    Raises
    ------
    AlgorithmError, WorkerFailed
        The first cause, when a rank fails; all ranks have been ended then.
    RunStuck
        The patience is over; all ranks have been ended then.
    BadInput
        The scenario holds an object that cannot be sent to another process.
    """
    try:
        payload = pickle.dumps(scenario)
    except Exception as error:
        raise BadInput("", f"this scenario cannot be sent to other processes: {error}") from error
    host = platform.node()
    sides = [side(device, rank) for rank in range(scenario.ranks)]
    places = [(host, described(own)) for own in sides]
    carrier = chosen_backend(backend, places, list(map(identity, sides)))
    if met is not None:
        met(places, carrier)
    warm_up()
    context = multiprocessing.get_context("forkserver")
    buckets = scenario.cost.buckets()
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        try:
            with _main_module(needed=b"__main__" in payload):
                for number in range(scenario.ranks):
                    own = (number, scenario.ranks, payload, buckets, Path(folder))
                    site = None if sites is None else sites[number]
                    arguments = (*own, patience, device, carrier, site)
                    ranks.append(_start(context, arguments))
            begun = fraction(progress, scenario.sections.budget.iterations)
            records = _Collection(ranks, begun, patience, started, check).records()
        except BaseException:
            for rank in ranks:
                rank.process.kill()
            raise
        finally:
            _part(ranks)
    return records


@dataclass(frozen=True)
class _Rank:
    """One local rank, seen from its launcher."""

    number: int
    process: ForkServerProcess
    connection: Connection


def _start(context: ForkServerContext, arguments: tuple[Any, ...]) -> _Rank:
    own, other = context.Pipe()
    process = context.Process(target=_serve, args=(*arguments, other), daemon=True)
    process.start()
    # With the launcher's copy closed, the pipe ends when the rank does.
    other.close()
    return _Rank(arguments[0], process, own)


def _part(ranks: Sequence[_Rank]) -> None:
    """Let the ranks end, and see that they have."""
    for rank in ranks:
        rank.connection.close()
    deadline = time.monotonic() + _PARTING
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))
        rank.process.kill()
        rank.process.join()
        rank.process.close()


def fraction(progress: Progress | None, iterations: int) -> Callable[[int], None]:
    """Return who makes of the iterations begun the part that is done, and tells it."""

    def told(begun: int) -> None:
        if progress is not None:
            progress(min(1.0, begun / iterations))

    return told


class _Collection:
    """Takes in the news of all ranks until each has brought its record, or one has failed.

    Parameters
    ----------
    ranks
        All ranks.
    begun
        Told the iterations that rank 0 has begun.
    patience
        Seconds.
    started
        Told the common start of all ranks.
    check
        Called after all news; may raise.
    """

    def __init__(
        self,
        ranks: Sequence[_Rank],
        begun: Callable[[int], None],
        patience: float,
        started: Callable[[float], None],
        check: Callable[[], None],
    ) -> None:
        self._ranks = ranks
        self._begun = begun
        self._started = started
        self._check = check
        self._judge = Judge(len(ranks), patience)

    def records(self) -> list[Record]:
        """Return the records of all ranks, or raise the first cause of a failure."""
        while not self._judge.done:
            self._take()
            self._check()
            self._judge.check()
        return [self._judge.records[rank.number] for rank in self._ranks]

    def _take(self) -> None:
        """Wait for news and take in all that there is."""
        pending = [rank for rank in self._ranks if not self._judge.finished(rank.number)]
        sources: list[Any] = [rank.connection for rank in pending]
        sources += [rank.process.sentinel for rank in pending]
        ready = multiprocessing.connection.wait(sources, self._judge.patience())
        for rank in pending:
            if rank.connection in ready or rank.process.sentinel in ready:
                self._take_from(rank)

    def _take_from(self, rank: _Rank) -> None:
        try:
            while not self._judge.finished(rank.number) and rank.connection.poll():
                self._hear(rank.number, rank.connection.recv())
        except (EOFError, OSError):
            # The pipe has ended, so the process is about to; one that only closed it is of no use any more.
            rank.process.join(_PARTING)
            rank.process.kill()
            rank.process.join()
        if not self._judge.finished(rank.number) and rank.process.exitcode is not None:
            failed = WorkerFailed(rank.number, None, _ending(rank.process.exitcode))
            self._judge.hear(rank.number, Failed(failed, False, ""))

    def _hear(self, number: int, news: object) -> None:
        if isinstance(news, Began):
            self._begun(news.iterations)
        elif isinstance(news, Started):
            self._started(news.start)
        self._judge.hear(number, news)


def _ending(exitcode: int) -> str:
    """Return how a process ended that said nothing."""
    if exitcode < 0:
        names = {known.value: known.name for known in signal.Signals}
        return f"its process was killed by {names.get(-exitcode, f'signal {-exitcode}')}"
    return f"its process ended with exit code {exitcode} and without a word"


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change environment variables for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _main_module(needed: bool) -> Iterator[None]:
    """Keep new processes from importing the user's script again, unless the scenario needs it.

    ``multiprocessing`` imports the main module in every child. That costs time, and a script without a
    guard would start over.
    """
    if needed:
        yield
        return
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
