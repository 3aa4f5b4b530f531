"""On what a rank computes, and how its operations follow each other there.

On a CPU an operation has ended when its function returns. On a GPU functions return early, and what was asked
for is done in the order of a CUDA stream. All computations and the algorithm's own lines use the device's
default stream, so that they follow each other as they were called. A message has a stream of its own and
begins when what was asked for before its call is done (an event); back-propagation goes on beside it. The
thread of an operation waits until the device has done it: an awaited operation has ended on both kinds, and
what it gave may be used on any stream. Computations are timed by events of the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from simulator.execution.streams import timed
from simulator.parts import BadInput

T = TypeVar("T")

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "gloo", "nccl")


class Side(Protocol):
    """A device, as a worker uses it."""

    device: torch.device

    def prepare(self) -> None:
        """Make the calling thread work on this device."""
        ...

    def called(self) -> Any:
        """Return a token for what was asked of the device before now."""
        ...

    def compute(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """Return what ``work`` returns, when it is done, and the monotonic times of its begin and end."""
        ...

    def finish(self) -> None:
        """Wait until what the calling thread has asked for is done."""
        ...

    def message(self, after: Any, work: Callable[[], T]) -> tuple[T, float, float]:
        """Do the same for a message, after what a token stands for and beside the computations."""
        ...


class Cpu:
    """A processor, in one torch thread."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def prepare(self) -> None:
        """Let the calling thread use one torch thread."""
        torch.set_num_threads(1)

    def called(self) -> None:
        """Everything that was asked for has been done."""

    def compute(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """Time ``work``."""
        return timed(work)

    def finish(self) -> None:
        """Everything that was asked for has been done."""

    def message(self, after: None, work: Callable[[], T]) -> tuple[T, float, float]:
        """Time ``work``."""
        return timed(work)


class Cuda:
    """A GPU.

    Parameters
    ----------
    index
        Its number among those that this process sees.
    api
        ``torch.cuda``, or what stands for it in a test.
    """

    def __init__(self, index: int, api: Any = torch.cuda) -> None:
        self.device = torch.device("cuda", index)
        self._api = api
        self._own = threading.local()

    def prepare(self) -> None:
        """Let the calling thread use this GPU, and one torch thread for what it does itself."""
        torch.set_num_threads(1)
        self._api.set_device(self.device)

    def called(self) -> Any:
        """Return an event of the default stream."""
        event = self._api.Event()
        event.record()
        return event

    def compute(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """Do ``work`` on the default stream and wait for it."""
        begin, end = (self._api.Event(enable_timing=True) for _ in range(2))
        begin.record()
        value = work()
        end.record()
        end.synchronize()
        done = time.monotonic()
        return value, done - begin.elapsed_time(end) / 1e3, done

    def finish(self) -> None:
        """Wait for what this thread has asked for, which may be the thread of back-propagation."""
        self._api.current_stream(self.device).synchronize()

    def message(self, after: Any, work: Callable[[], T]) -> tuple[T, float, float]:
        """Do ``work`` on this thread's own stream, after an event, and wait for it."""
        if not hasattr(self._own, "stream"):
            self._own.stream = self._api.Stream(self.device)
        # Before that there is nothing to send; the host may be far ahead of the device.
        after.synchronize()
        began = time.monotonic()
        default = self._api.default_stream(self.device)
        with self._api.stream(self._own.stream):
            value = work()
            self._own.stream.synchronize()
        for tensor in _tensors(value):
            # Its memory must not be used again before the default stream has read it.
            if tensor.device.type != "cpu":
                tensor.record_stream(default)
        return value, began, time.monotonic()


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    """Return the tensors that an operation gives."""
    if isinstance(value, torch.Tensor):
        return (value,)
    if isinstance(value, dict):
        return tuple(value.values())
    return value if isinstance(value, tuple) else ()


def side(device: str, local_rank: int) -> Side:
    """Return the device of a rank: a GPU in turn where there are several, or the CPU.

    Raises
    ------
    BadInput
        No GPU is there, but one is asked for.
    """
    if device not in DEVICES:
        raise BadInput("device", f"'{device}' is not one of {', '.join(DEVICES)}")
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise BadInput("device", "torch finds no CUDA device on this machine; use 'cpu'")
    return Cuda(local_rank % torch.cuda.device_count()) if available else Cpu()


def described(place: Side) -> str:
    """Return the name of a device: ``cpu``, or ``cuda:0 (NVIDIA H200)``."""
    if place.device.type == "cpu":
        return "cpu"
    return f"{place.device} ({torch.cuda.get_device_name(place.device)})"


def identity(place: Side) -> str:
    """Return what tells a GPU from all others, whatever number a process sees it under; empty of a CPU."""
    if place.device.type == "cpu":
        return ""
    return str(torch.cuda.get_device_properties(place.device).uuid)


def chosen_backend(backend: str, places: Sequence[tuple[str, str]], gpus: Sequence[str]) -> str:
    """Return what carries the collectives of all ranks.

    NCCL needs a GPU for each rank alone; point-to-point messages go by Gloo in any case.

    Parameters
    ----------
    backend
        ``auto``, ``gloo`` or ``nccl``.
    places
        Host and device of each rank, such as ``("node1", "cuda:0")``, for people.
    gpus
        The :func:`identity` of each rank's device. Slurm may show each rank its own GPU as ``cuda:0``.

    Raises
    ------
    BadInput
        NCCL is asked for where it cannot be; the message names a rank.
    """
    if backend not in BACKENDS:
        raise BadInput("backend", f"'{backend}' is not one of {', '.join(BACKENDS)}")
    if backend == "gloo":
        return backend
    for rank, ((host, device), gpu) in enumerate(zip(places, gpus, strict=True)):
        first = gpus.index(gpu)
        problem = ""
        if not gpu:
            problem = f"NCCL needs a GPU, but rank {rank} computes on the {device} of {host}"
        elif first < rank:
            problem = f"NCCL needs a GPU for each rank, but ranks {first} and {rank} share {device} of {host}"
        if problem:
            if backend == "nccl":
                raise BadInput("backend", f"{problem}; use 'gloo'")
            return "gloo"
    return "nccl"
