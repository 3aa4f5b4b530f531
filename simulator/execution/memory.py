"""Vectors that all ranks of one machine map into their memory, read and change without a lock.

Each is a file that its first caller makes and fills, under a lock that serves for nothing else; the last
rank to map it removes its name, so that the memory vanishes with the processes, however they end. Before
the elements stands a header:

    ranks that have mapped it, elements, type, then one counter of additions for each rank

Each rank changes its own counter only, so that no addition is miscounted without a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from algorithms.worker import Handle, Tensor
from simulator import faults
from simulator.execution.communicator import ELEMENT_TYPES

T = TypeVar("T")

Starter = Callable[[str, Callable[[], Any], int, torch.Tensor], Handle[Any]]
"""Starts a computation of a name that moves so many vectors like a given one, in the rank's order."""

_LINE = 64
"""Bytes of a cache line: the elements begin at a multiple of it."""
_START = struct.Struct("3q")
"""How the header begins."""
_CPU = torch.device("cpu")


class Memory:
    """The shared vectors of one rank.

    Parameters
    ----------
    rank, world_size
        Which rank, and how many share.
    folder
        Where the ranks find each other's files; None where the rank is alone.
    start
        Starts the rank's computations.
    device
        Where the rank's own tensors are; the shared ones are in the machine's memory.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        folder: Path | None,
        start: Starter,
        device: torch.device = _CPU,
    ) -> None:
        assert folder is not None or world_size == 1
        self._rank = rank
        self._world_size = world_size
        self._folder = folder
        self._start = start
        self._device = device
        self._vectors: dict[str, Vector] = {}

    def vector(self, name: str, x: torch.Tensor) -> Vector:
        """Return the vector of a name, which starts as ``x``.

        Raises
        ------
        AlgorithmError
            Another rank has it in another length or type.
        """
        if name not in self._vectors:
            header = -(-(3 + self._world_size) * 8 // _LINE) * _LINE
            nbytes = header + x.nbytes
            if self._folder is None:
                whole = torch.zeros(nbytes, dtype=torch.uint8)
                self._open(whole, header, x)
            else:
                whole = self._mapped(self._folder, nbytes, header, name, x)
            counters = _integers(whole, header)[3 : 3 + self._world_size]
            elements = whole[header:].view(x.dtype)
            self._vectors[name] = Vector(elements, counters, self._rank, self._start, self._device)
        return self._vectors[name]

    def _mapped(self, folder: Path, nbytes: int, header: int, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the file of a name as bytes; it has its first values already."""
        path = folder / f"shared-{hashlib.sha256(name.encode()).hexdigest()}"
        with _locked(folder):
            if path.exists():
                self._check(path, name, x)
            else:
                take_space(path, nbytes)
            whole = torch.from_file(str(path), shared=True, size=nbytes, dtype=torch.uint8)
            if self._open(whole, header, x) == self._world_size:
                path.unlink()
        return whole

    def _check(self, path: Path, name: str, x: torch.Tensor) -> None:
        """Refuse to map what another rank has made in another length or type."""
        with path.open("rb") as file:
            _, *there = _START.unpack(file.read(_START.size))
        own = _facts(x)
        if there != own:
            raise faults.unequal_shared(self._rank, name, _said(*own), _said(*there))

    def _open(self, whole: torch.Tensor, header: int, x: torch.Tensor) -> int:
        """Fill a vector if it is new, and return how many ranks have it now."""
        start = _integers(whole, header)
        if start[0] == 0:
            whole[header:].view(x.dtype).copy_(x)
            start[1], start[2] = _facts(x)
        start[0] += 1
        return int(start[0])


def take_space(path: Path, nbytes: int) -> None:
    """Make a file that is to be mapped so long, and where bytes can be taken, take them from the disk.

    So a full disk is told here, not by a signal in the middle of a run.

    Raises
    ------
    OSError
        The disk is full; the file has gone.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    take = getattr(os, "posix_fallocate", lambda file, _, size: os.ftruncate(file, size))
    try:
        take(file, 0, nbytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        problem = f"{path.parent} cannot hold {nbytes} bytes that ranks share: {error.strerror}"
        raise OSError(f"{problem}; have more room there, or set TMPDIR to another folder") from error
    finally:
        os.close(file)


def _facts(x: torch.Tensor) -> list[int]:
    return [x.numel(), ELEMENT_TYPES.index(x.dtype)]


def _said(elements: int, place: int) -> str:
    return f"{elements} {str(ELEMENT_TYPES[place]).removeprefix('torch.')}"


def _integers(whole: torch.Tensor, header: int) -> torch.Tensor:
    return whole[:header].view(torch.int64)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the other ranks out; the system gives the lock back when a process ends."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Vector:
    """One rank's access to a shared vector; see :class:`algorithms.worker.SharedTensor`.

    Parameters
    ----------
    elements
        The memory that all share.
    counters
        Additions of each rank, in the same memory.
    rank
        Whose access.
    start
        Starts the rank's computations.
    device
        Where the rank's own tensors are.
    """

    def __init__(
        self,
        elements: torch.Tensor,
        counters: torch.Tensor,
        rank: int,
        start: Starter,
        device: torch.device = _CPU,
    ) -> None:
        self._elements = elements
        self._counters = counters
        self._rank = rank
        self._start = start
        self._device = device

    @property
    def writes(self) -> int:
        """Additions finished so far, by all workers."""
        return int(self._counters.sum())

    def read(self) -> Handle[Tensor]:
        """Start reading all elements, one after another."""
        return self._start("read", self._read, 2, self._elements)

    def _read(self) -> torch.Tensor:
        return self._elements.clone().to(self._device)

    def add(self, values: Tensor, at: Tensor | None = None) -> Handle[None]:
        """Start adding ``values`` to the elements numbered ``at``, or to all."""
        assert isinstance(values, torch.Tensor)
        assert at is None or isinstance(at, torch.Tensor)
        summands, places = values.clone().cpu(), None if at is None else at.clone().cpu()

        def work() -> None:
            if places is None:
                self._elements.add_(summands)
            else:
                # One element after another: gathering them first would lose what others add meanwhile.
                self._elements.index_add_(0, places, summands)
            self._counters[self._rank] += 1

        return self._start("add", work, 3, summands)
