"""How ranks that torchrun or Slurm has started meet, check that they are alike, and hear of each other.

They share a store of keys and values, which rank 0 or torchrun's agent serves. Each rank writes what it is
(its scenario, versions, host and device) and reads what the others are; then, once a second, what its worker
does. Rank 0 judges that (:mod:`simulator.execution.watch`) and writes its verdict, by which all ranks end.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pickle
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from simulator import faults
from simulator.execution.place import Place
from simulator.execution.streams import StreamKey
from simulator.execution.tasks import Wait
from simulator.execution.watch import BEAT, Coming, Ended, Failed, Judge, State, Waits, failure
from simulator.faults import RunStuck, WorkerFailed
from simulator.parts import BadInput
from simulator.scenario import Scenario

_LOOK = 0.02
"""Seconds between two looks for a key that another rank writes."""
_LINGER = 3.0
"""Seconds that rank 0, which serves the store, waits for others to read from it before it ends."""
_ANSWER = 15.0
"""Seconds in which a rank's main thread must end by a verdict before its process is ended."""
_VERDICT = 6.0
"""Seconds in which a rank that has failed awaits the first cause from rank 0."""


@dataclass(frozen=True)
class Facts:
    """What a rank is, for the others to compare.

    Attributes
    ----------
    digest, scenario, files
        Of the scenario: its digest, all its keys, the files that it names.
    versions
        Of what takes part in the numerics.
    host, device
        Where it is.
    gpu
        Which GPU that is, under whatever number; empty on a CPU.
    """

    digest: str
    scenario: Mapping[str, Any]
    files: tuple[str, ...]
    versions: Mapping[str, str]
    host: str
    device: str
    gpu: str


def facts(scenario: Scenario, device: str, gpu: str) -> Facts:
    """Return what this process is."""
    try:
        own = importlib.metadata.version("paceline")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    versions = {"paceline": own, "torch": torch.__version__, "Python": platform.python_version()}
    resolved = scenario.resolved()
    return Facts(scenario.digest(), resolved, scenario.files(), versions, platform.node(), device, gpu)


def check_alike(all_facts: Sequence[Facts]) -> None:
    """Refuse ranks that differ from rank 0.

    Raises
    ------
    BadInput
        It names the first such rank and the first difference.
    """
    first = all_facts[0]
    for rank, other in enumerate(all_facts):
        for name, version in first.versions.items():
            if other.versions[name] != version:
                problem = f"rank {rank} has {name} {other.versions[name]}, but rank 0 has {version}"
                raise BadInput("", problem)
        if other.digest != first.digest:
            problem = f"rank {rank} runs another scenario than rank 0: {_difference(first, other, rank)}"
            raise BadInput("", problem)


def _difference(first: Facts, other: Facts, rank: int) -> str:
    own, theirs = dict(_leaves(first.scenario)), dict(_leaves(other.scenario))
    for key in dict.fromkeys((*own, *theirs)):
        if own.get(key) != theirs.get(key):
            return f"{key} is {_said(theirs, key)} on rank {rank} and {_said(own, key)} on rank 0"
    return f"the files that it names differ ({', '.join(first.files)})"


def _leaves(data: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield from _leaves(value, f"{key}.{name}".lstrip("."))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            yield from _leaves(value, f"{key}.{number}")
    else:
        yield key, data


def _said(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "missing"


class Board:
    """The keys and values that all ranks of one run share.

    Parameters
    ----------
    place
        Of this rank.
    patience
        Seconds in which the others must come, and any of them answer.
    number
        Of the run, among those of this process; the same on all ranks.
    """

    def __init__(self, place: Place, patience: float, number: int) -> None:
        self._place = place
        self._patience = patience
        self._prefix = f"paceline/{place.attempt}/{number}/"
        serves = place.rank == 0 and not place.hosted and number == 0 and not dist.is_initialized()
        self._store = self._connection(serves)
        # A connection waits for the end of one request before the next: the backend has one of its own.
        self.for_groups = PrefixStore(f"{self._prefix}groups", self._connection(False))
        if serves:
            _KEPT.append(self._store)

    def _connection(self, serves: bool) -> Any:
        place = self._place
        patience = datetime.timedelta(seconds=self._patience)
        try:
            return TCPStore(place.address, place.port, None, serves, patience, wait_for_workers=False)
        except RuntimeError as error:
            where = f"{place.address}:{place.port}"
            if serves:
                raise BadInput("MASTER_PORT", f"rank 0 cannot listen at {where}: {error}") from error
            who = "torchrun's agent" if place.hosted else "rank 0"
            raise RunStuck(
                f"rank {place.rank} did not reach {who} at {where} within {self._patience:g} s"
            ) from error

    def write(self, key: str, value: object) -> None:
        """Set a key's value."""
        self._store.set(self._prefix + key, pickle.dumps(value))

    def read(self, key: str) -> Any:
        """Return a key's value; None if nobody has set it."""
        if not self._store.check([self._prefix + key]):
            return None
        return pickle.loads(self._store.get(self._prefix + key))

    def collect(self, key: str, seconds: float) -> dict[int, Any]:
        """Return what ranks have written under ``key``, waiting for all of them for some seconds at most."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + seconds
        while True:
            for rank in range(self._place.world_size):
                if rank not in found:
                    value = self.read(f"{key}/{rank}")
                    if value is not None:
                        found[rank] = value
            if len(found) == self._place.world_size or time.monotonic() > deadline:
                return found
            time.sleep(_LOOK)

    def meet(self, own: Facts) -> list[Facts]:
        """Return what all ranks are, when all have come and are alike.

        Raises
        ------
        RunStuck
            Some have not come in time; it names them.
        BadInput
            One differs.
        """
        rank, world_size = self._place.rank, self._place.world_size
        self.write(f"facts/{rank}", own)
        found = self.collect("facts", self._patience)
        missing = [number for number in range(world_size) if number not in found]
        if missing:
            who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            raise RunStuck(f"{who} of {world_size} did not come within {self._patience:g} s")
        all_facts = [found[number] for number in range(world_size)]
        try:
            check_alike(all_facts)
        except BadInput:
            self.leave()
            raise
        return all_facts

    def leave(self) -> None:
        """Say that this rank reads no more; rank 0, which may serve the store, waits for all to say so."""
        with suppress(RuntimeError):
            self.write(f"left/{self._place.rank}", True)
            if self._place.rank == 0:
                self.collect("left", _LINGER)


_KEPT: list[Any] = []
"""The store that this process serves, as long as it lives: later runs and other ranks use it."""


class Liaison:
    """Tells the others what this rank does, and ends it when rank 0 says so; rank 0 judges here.

    Parameters
    ----------
    place
        Of this rank.
    board
        Where the ranks write.
    patience
        Seconds.
    begun
        Told the iterations that this rank has begun.
    """

    def __init__(self, place: Place, board: Board, patience: float, begun: Callable[[int], None]) -> None:
        self.iterated = begun
        self._place = place
        self._board = board
        self._patience = patience
        self._period = min(BEAT, patience / 4)
        self._judge = Judge(place.world_size, patience) if place.rank == 0 else None
        self._state: Callable[[], State | Coming] = Coming
        self._end: Callable[[BaseException], None] = lambda _: None
        self._waits = Waits((), {})
        self._ending: Failed | Ended | None = None
        self._beats = dict.fromkeys(range(place.world_size), 0)
        self._beat = 0
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._over = threading.Event()
        self._decided = threading.Event()
        self.verdict: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="liaison", daemon=True)
        self._thread.start()

    # What the worker tells it.

    def waiting(self, waits: Sequence[Wait], calls: Mapping[StreamKey, int]) -> None:
        """Note that the worker stands still, or goes on."""
        self._waits = Waits(tuple(waits), dict(calls))

    def watch(self, state: Callable[[], State], end: Callable[[BaseException], None]) -> None:
        """Take in who tells what the worker does, and who ends its run."""
        self._state, self._end = state, end
        # At once, as a rank that is stopped from here on has come up. If the store is lost, a beat finds it.
        with suppress(RuntimeError):
            self._tell()

    def started(self, start: float) -> None:
        """Nobody here asks when the ranks have started."""

    def crash(self, error: WorkerFailed) -> None:
        """Let this rank end as by an error of its own, so that all others hear of it."""
        self._end(error)

    # How the run ends.

    def fail(self, error: BaseException) -> Exception:
        """Tell that this rank has failed and return the first cause, which rank 0 has judged."""
        if self.verdict is None:
            news = failure(self._place.rank, error)
            self._ending = news
            self._wake.set()
            self._decided.wait(_VERDICT)
            if self.verdict is None:
                return news.error
        return self.verdict

    def ended(self, calls: Mapping[StreamKey, int]) -> None:
        """Tell that this rank's work is done."""
        self._ending = Ended(calls)
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._wake.set()
        self._thread.join(self._patience)

    # The thread.

    def _serve(self) -> None:
        while not self._over.is_set() and self.verdict is None:
            began = time.monotonic()
            try:
                self._exchange()
            except RuntimeError:
                if self._over.is_set():
                    return
                self._decide(self._lost(time.monotonic() - began))
            self._wake.wait(self._period)
            self._wake.clear()

    def _exchange(self) -> None:
        """Write this rank's news, read the others' on rank 0, and look for the verdict."""
        self._tell()
        if self._judge is None:
            verdict = self._board.read("verdict")
            if verdict is not None:
                self._decide(verdict)
            return
        for rank in range(self._place.world_size):
            self._hear(self._judge, rank, self._board.read(f"news/{rank}"))
        try:
            self._judge.check()
        except Exception as verdict:
            self._board.write("verdict", verdict)
            self._decide(verdict)

    def _tell(self) -> None:
        with self._turn:
            self._beat += 1
            news = (self._beat, self._state(), self._waits, self._ending)
            self._board.write(f"news/{self._place.rank}", news)

    def _hear(self, judge: Judge, rank: int, news: Any) -> None:
        if news is None or news[0] == self._beats[rank]:
            return
        self._beats[rank] = news[0]
        for part in news[1:]:
            if part is not None and not judge.finished(rank):
                judge.hear(rank, part)

    def _decide(self, verdict: Exception) -> None:
        self.verdict = verdict
        self._decided.set()
        self._end(verdict)
        self.insist(verdict)

    def insist(self, cause: BaseException) -> None:
        """End the process if its main thread hangs in the backend, and :meth:`stop` is not called soon."""
        threading.Thread(target=self._insist, args=(cause,), name="end", daemon=True).start()

    def _insist(self, cause: BaseException) -> None:
        if not self._over.wait(_ANSWER):
            sys.stderr.write(f"error: {str(cause) or type(cause).__name__}\n")
            sys.stderr.flush()
            os._exit(1)

    def _lost(self, seconds: float) -> Exception:
        """Return why the store does not answer."""
        if self._place.hosted:
            return WorkerFailed(self._place.rank, None, "torchrun's agent does not answer any more")
        if seconds >= self._patience:
            return faults.silent([0], self._patience, [])
        return WorkerFailed(0, None, "its process has ended without a word")
