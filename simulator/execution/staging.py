"""Communicators for tensors of a GPU.

Gloo's messages are staged: copied to page-locked memory of the host, sent from there, and what arrives is
copied back. So several ranks may share one GPU, and channels are as asynchronous as those of the CPU. With
NCCL the collectives go from GPU to GPU; exchanges and channels stay on Gloo, because NCCL has neither tags
nor messages that do not block each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from algorithms import WORLD, Plan, Reduction
from simulator.execution.communicator import OPERATORS, PATIENCE, Communicator, as_bytes, failing


class StagedCommunicator:
    """Takes and gives tensors of a device, and sends copies in host memory by another communicator.

    Parameters
    ----------
    inner
        Sends tensors of the CPU.
    device
        Where the tensors are.
    pinned
        Whether the copies are in page-locked memory, which a GPU reads and writes faster.
    """

    def __init__(self, inner: Communicator, device: torch.device, pinned: bool) -> None:
        self._inner = inner
        self._device = device
        self._pinned = pinned
        self.one_order = inner.one_order

    def _host(self, x: torch.Tensor) -> torch.Tensor:
        copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=self._pinned)
        return copy.copy_(x)

    def _back(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self._device)

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        copy = self._host(x)
        self._inner.all_reduce(copy, op, group)
        x.copy_(copy)

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Send ``x`` to the destinations and return the tensors of the sources, by ascending rank."""
        arrivals = self._inner.exchange(self._host(x), sources, destinations)
        return {source: self._back(tensor) for source, tensor in arrivals.items()}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        return tuple(map(self._back, self._inner.all_gather(self._host(x), group, members)))

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        return self._back(self._inner.all_to_all(self._host(parts), group))

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        self._inner.send(self._host(x), to, channel)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        return self._back(self._inner.recv(source, channel))


class NcclCommunicator:
    """Collectives by a backend that reads the device's memory, all else by a staged communicator.

    All ranks call the collectives of all groups in one order, in one thread: NCCL may hang otherwise.

    Parameters
    ----------
    staged
        For exchanges and channels.
    world_size
        The number of ranks.
    plan
        What the algorithm declares.
    device
        Where the tensors are; the backend meets there at once, not in the first collective.
    backend
        ``nccl``; a test of the code on CPU tensors takes ``gloo``.

    Attributes
    ----------
    groups
        The process groups that it has made, by name.
    """

    one_order = True

    def __init__(
        self,
        staged: StagedCommunicator,
        world_size: int,
        plan: Plan,
        device: torch.device,
        backend: str = "nccl",
    ) -> None:
        self._staged = staged
        named = {WORLD: tuple(range(world_size)), **plan.groups}
        self.groups: dict[str, Any] = {
            name: dist.new_group(
                list(members),
                backend=backend,
                timeout=PATIENCE,
                device_id=device if backend == "nccl" else None,
                sort_ranks=False,
            )
            for name, members in named.items()
        }

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        if x.numel():
            with failing("all_reduce"):
                dist.all_reduce(x, OPERATORS[op], self.groups[group])

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        gathered = tuple(torch.empty_like(x) for _ in range(members))
        if x.numel():
            with failing("all_gather"):
                dist.all_gather([as_bytes(part) for part in gathered], as_bytes(x), self.groups[group])
        return gathered

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        received = torch.empty_like(parts)
        if parts.numel():
            with failing("all_to_all"):
                dist.all_to_all_single(as_bytes(received), as_bytes(parts), group=self.groups[group])
        return received

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Send ``x`` to the destinations and return the tensors of the sources, by ascending rank."""
        return self._staged.exchange(x, sources, destinations)

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        self._staged.send(x, to, channel)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        return self._staged.recv(source, channel)
