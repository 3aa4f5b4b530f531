"""Ranks as processes: started here on this machine, or already started by ``torchrun``.

Local ranks are forked from a helper process that has imported what they need and done nothing else. So a
rank is up in milliseconds instead of the seconds that importing torch takes, and no rank inherits threads
that a simulation has used. They meet through a file in a temporary folder and talk over the loopback
device. Each has a pipe to the process that launched it: over it goes what the rank brings home, or the
error that ended it. When one rank fails all are ended, and the first cause is raised. A rank ends when its
launcher does, however that happens.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from simulator import faults
from simulator.execution.communicator import PATIENCE, CommunicationFailed, GlooCommunicator
from simulator.execution.record import Record
from simulator.execution.streams import Call, StreamKey
from simulator.execution.tasks import Wait
from simulator.execution.worker import Listener, WallWorker
from simulator.faults import AlgorithmError, WorkerFailed
from simulator.parts import BadInput
from simulator.plan import planned
from simulator.run import Progress
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

_SETTLING = 0.5
"""Seconds in which other ranks' failures are awaited after a first one, for a message that is stable."""
_EXPLAINING = 2.0
"""The same after a lost connection, which some other rank's end explains."""
_PARTING = 5.0
"""Seconds that a rank has to end by itself after its work is done."""


# One rank.


def perform(
    scenario: Scenario,
    rank: int,
    buckets: Buckets | None = None,
    listener: Listener | None = None,
    folder: Path | None = None,
) -> tuple[Record, GlooCommunicator | None]:
    """Run one rank in this process, whose default process group exists if there are several.

    Parameters
    ----------
    scenario, rank
        What is run, and which worker of it.
    buckets
        The cost model's buckets, where the caller has them already.
    listener
        Told how the worker gets on.
    folder
        Where the files of shared memory are; None where the worker is alone or has none.

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
    several = scenario.workers > 1
    communicator = GlooCommunicator(rank, scenario.workers, planned(scenario)) if several else None
    worker = WallWorker(scenario, rank, communicator, buckets, listener, folder)
    algorithm = scenario.algorithm
    start = time.monotonic() if communicator is None else communicator.common_start()
    try:
        record = worker.run(algorithm, start)
    except AlgorithmError:
        raise
    except Exception as error:
        raise WorkerFailed(rank, worker.iterations, faults.cause_of(error)) from error
    finally:
        worker.close()
    worker.join()
    return record, communicator


@dataclass(frozen=True)
class _Began:
    """News of a rank: the iterations that it has begun."""

    iterations: int


@dataclass(frozen=True)
class _Waits:
    """News of a rank: all its tasks wait, in lines of the algorithm, or it goes on (no waits)."""

    waits: tuple[Wait, ...]
    calls: Mapping[StreamKey, int]


@dataclass(frozen=True)
class _Failed:
    """News of a rank: it has failed, perhaps only because another one has."""

    error: AlgorithmError | WorkerFailed
    followed: bool
    trace: str


class _Messenger:
    """Passes on how a worker gets on, without flooding the pipe.

    Parameters
    ----------
    connection
        To the launcher.
    counts
        Whether the iterations of this rank are wanted.
    """

    def __init__(self, connection: Connection, counts: bool) -> None:
        self._connection = connection
        self._counts = counts
        self._told = 0.0
        # Every task of the worker may have news.
        self._turn = threading.Lock()

    def iterated(self, iterations: int) -> None:
        """Pass on the iterations begun, ten times a second at most."""
        if self._counts and time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            self.pass_on(_Began(iterations))

    def waiting(self, waits: Sequence[Wait], calls: Mapping[StreamKey, int]) -> None:
        """Pass on that the worker stands still, or goes on."""
        self.pass_on(_Waits(tuple(waits), dict(calls)))

    def pass_on(self, news: object) -> None:
        """Send news to the launcher."""
        with self._turn:
            self._connection.send(news)


def _serve(
    rank: int, world_size: int, payload: bytes, buckets: Buckets, folder: Path, connection: Connection
) -> None:
    """Be one local rank: the body of its process."""
    # Ctrl-C reaches every process of a terminal. The helper of somebody else may not have masked it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_launcher, args=(folder,), daemon=True).start()
    os.environ.update(ONE_THREAD)
    messenger = _Messenger(connection, counts=rank == 0)
    try:
        scenario: Scenario = pickle.loads(payload)
        if world_size > 1:
            _meet(rank, world_size, folder / "meeting")
        news: Record | _Failed
        news, _ = perform(scenario, rank, buckets, messenger, folder)
    except BaseException as error:
        news = _failure(rank, error)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(BrokenPipeError):
        messenger.pass_on(news)
        # Peers may still be receiving: a rank stays until the launcher closes the pipe.
        with suppress(EOFError):
            connection.recv()
    # No clean-up: the backend's threads may hang in an operation with a rank that has gone.
    os._exit(0)


def _failure(rank: int, error: BaseException) -> _Failed:
    trace = "".join(traceback.format_exception(error))
    followed = isinstance(error.__cause__, CommunicationFailed)
    if isinstance(error, AlgorithmError):
        # Only the message travels: the launcher may not know a class of the user's own.
        return _Failed(AlgorithmError(str(error)), followed, trace)
    if not isinstance(error, WorkerFailed):
        error = WorkerFailed(rank, None, faults.cause_of(error))
    return _Failed(error, followed, trace)


def _end_with_launcher(folder: Path) -> None:
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    # A launcher that was killed has left it behind.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _meet(rank: int, world_size: int, meeting: Path) -> None:
    """Join the other local ranks."""
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    store = FileStore(str(meeting), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=PATIENCE)


# The launcher of local ranks.


def warm_up() -> None:
    """Start the helper process, unless it runs already, and do not wait for it.

    Called early, what it imports is ready when the first execution begins.
    """
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


def launch(scenario: Scenario, progress: Progress | None = None) -> list[Record]:
    """Run every worker of a scenario as a local process and return what they bring home, by rank.

    Parameters
    ----------
    scenario
        With an objective and one step size.
    progress
        Told how much is done.

    Raises
    ------
    AlgorithmError, WorkerFailed
        The first cause, when a rank fails; all ranks have been ended then.
    BadInput
        The scenario holds an object that cannot be sent to another process.
    """
    try:
        payload = pickle.dumps(scenario)
    except Exception as error:
        raise BadInput("", f"this scenario cannot be sent to other processes: {error}") from error
    warm_up()
    context = multiprocessing.get_context("forkserver")
    buckets = scenario.cost.buckets()
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        try:
            with _main_module(needed=b"__main__" in payload):
                for rank in range(scenario.workers):
                    arguments = (rank, scenario.workers, payload, buckets, Path(folder))
                    ranks.append(_start(context, arguments))
            collection = _Collection(ranks, _fraction(progress, scenario.sections.budget.iterations))
            records = collection.records()
        except BaseException:
            for started in ranks:
                started.process.kill()
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


def _fraction(progress: Progress | None, iterations: int) -> Callable[[int], None]:
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
    """

    def __init__(self, ranks: Sequence[_Rank], begun: Callable[[int], None]) -> None:
        self._ranks = ranks
        self._begun = begun
        self._records: dict[int, Record] = {}
        self._failures: dict[int, _Failed] = {}
        self._waits: dict[int, _Waits] = {}

    def records(self) -> list[Record]:
        """Return the records of all ranks, or raise the first cause of a failure."""
        deadline: float | None = None
        while len(self._records) + len(self._failures) < len(self._ranks):
            patience = None if deadline is None else deadline - time.monotonic()
            if patience is not None and patience <= 0:
                break
            self._take(patience)
            if self._failures:
                explained = any(not failure.followed for failure in self._failures.values())
                latest = time.monotonic() + (_SETTLING if explained else _EXPLAINING)
                deadline = latest if deadline is None else min(deadline, latest)
            else:
                self._check_for_deadlock()
        if self._failures:
            raise self._first_cause()
        return [self._records[rank.number] for rank in self._ranks]

    def _take(self, patience: float | None) -> None:
        """Wait for news and take in all that there is."""
        pending = [rank for rank in self._ranks if not self._finished(rank)]
        sources: list[Any] = [rank.connection for rank in pending]
        sources += [rank.process.sentinel for rank in pending]
        ready = multiprocessing.connection.wait(sources, patience)
        for rank in pending:
            if rank.connection in ready or rank.process.sentinel in ready:
                self._take_from(rank)

    def _take_from(self, rank: _Rank) -> None:
        try:
            while not self._finished(rank) and rank.connection.poll():
                self._hear(rank.number, rank.connection.recv())
        except (EOFError, OSError):
            # The pipe has ended, so the process is about to; one that only closed it is of no use any more.
            rank.process.join(_PARTING)
            rank.process.kill()
            rank.process.join()
        if not self._finished(rank) and rank.process.exitcode is not None:
            cause = _ending(rank.process.exitcode)
            self._failures[rank.number] = _Failed(WorkerFailed(rank.number, None, cause), False, "")

    def _finished(self, rank: _Rank) -> bool:
        return rank.number in self._records or rank.number in self._failures

    def _hear(self, number: int, news: object) -> None:
        match news:
            case _Began(iterations):
                self._begun(iterations)
            case _Waits(()):
                self._waits.pop(number, None)
            case _Waits():
                self._waits[number] = news
            case Record():
                self._records[number] = news
                self._waits.pop(number, None)
            case _Failed():
                self._failures[number] = news

    def _first_cause(self) -> Exception:
        """Return the failure that explains the others: the one of the earliest iteration, then rank."""

        def order(failure: tuple[int, _Failed]) -> tuple[bool, int, int]:
            rank, news = failure
            iteration = getattr(news.error, "iteration", None)
            return news.followed, -1 if iteration is None else iteration, rank

        first = min(self._failures.items(), key=order)[1]
        if first.trace:
            first.error.add_note(first.trace)
        return first.error

    def _check_for_deadlock(self) -> None:
        """Raise if every rank has ended or stands still, waiting for calls that nobody will make.

        The news need not be of one moment. The first task to go on after its rank's news would need a call
        that a peer made after its own news, so that a task of the peer had gone on before it; or it would
        need another task of its own rank to go on.
        """
        if not self._waits or len(self._waits) + len(self._records) < len(self._ranks):
            return
        calls: dict[int, Mapping[StreamKey, int]] = {rank: news.calls for rank, news in self._waits.items()}
        calls.update({rank: record.calls for rank, record in self._records.items()})
        report = []
        for rank, news in sorted(self._waits.items()):
            for call, line in news.waits:
                missing = [peer for peer in call.peers if calls[peer].get(call.matching, 0) <= call.number]
                if call.stream and not missing:
                    self._check_alike(rank, call)
                    return
                operation = f"{call.operation} {call.about}".strip()
                report.append(faults.Waiting(rank, operation, round(call.since, 3), tuple(missing), line))
        raise faults.deadlock(report)

    def _check_alike(self, rank: int, call: Call) -> None:
        """Raise if a peer waits in another kind of collective in the place of this one."""
        for peer in call.peers:
            for other, _ in self._waits[peer].waits if peer in self._waits else ():
                if (other.stream, other.number) == (call.stream, call.number) and call.signature:
                    assert other.signature is not None
                    if other.operation != call.operation:
                        group, number = str(call.stream), call.number
                        raise faults.mismatch(group, number, rank, call.signature, peer, other.signature)


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


# Ranks that torchrun has started.


def torchrun_place() -> tuple[int, int] | None:
    """Return this process's rank and the world size as torchrun's environment says; None without it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class _Counter:
    """Tells rank 0's progress where there is no launcher; a deadlock ends by the backend's time-out."""

    def __init__(self, begun: Callable[[int], None]) -> None:
        self.iterated = begun

    def waiting(self, waits: Sequence[Wait], calls: Mapping[StreamKey, int]) -> None:
        """Nobody collects the news of all ranks here."""


def leave() -> None:
    """Give the default process group back."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def common_folder(rank: int) -> Iterator[Path]:
    """Give a folder that all ranks know; it vanishes when rank 0 ends its work."""
    named: list[Any] = [None]
    if rank > 0:
        dist.broadcast_object_list(named, 0)
        yield Path(named[0])
        return
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        dist.broadcast_object_list([folder], 0)
        yield Path(folder)


def join(
    scenario: Scenario, rank: int, world_size: int, progress: Progress | None = None
) -> list[Record] | None:
    """Run one rank of a job that torchrun has started.

    Returns
    -------
    On rank 0 what all ranks bring home, by rank; None on the others.

    Raises
    ------
    AlgorithmError, WorkerFailed
        This rank fails; torchrun ends the others.
    BadInput
        There are more or fewer ranks than workers, or they are to share memory across machines.
    """
    if world_size != scenario.workers:
        raise BadInput(
            "cluster.workers",
            f"the scenario has {scenario.workers} workers, but torchrun has started {world_size} ranks",
        )
    shares_memory = "shared-memory" in scenario.algorithm.requires and world_size > 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if shares_memory and local != world_size:
        raise BadInput(
            "algorithm",
            f"{scenario.sections.algorithm.name} needs all workers on one machine, because they share "
            f"memory, but only {local} of torchrun's {world_size} ranks are on this one",
        )
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
        # The group serves later calls too; its threads must have ended before the interpreter does.
        atexit.register(leave)
    begun = _fraction(progress if rank == 0 else None, scenario.sections.budget.iterations)
    threads = torch.get_num_threads()
    with common_folder(rank) if shares_memory else nullcontext() as folder:
        try:
            record, communicator = perform(scenario, rank, listener=_Counter(begun), folder=folder)
        finally:
            torch.set_num_threads(threads)
        if communicator is None:
            return [record]
        # When rank 0 has heard of all of them, no rank needs the folder any more.
        records = communicator.gather(record)
        communicator.close()
    return records
