"""Communicators for tensors of a GPU.

Gloo's messages are staged: copied to page-locked memory of the host, sent from there, and what arrives is
copied back. So several ranks may share one GPU, and channels are as asynchronous as those of the CPU. With
NCCL the collectives go from GPU to GPU; exchanges and channels stay on Gloo, because NCCL has neither tags
nor messages that do not block each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from algorithms import WORLD, Plan, Reduction
from simulator.execution.communicator import PATIENCE, Collectives, Communicator


class StagedCommunicator:
    """Takes and gives tensors of a device, and sends copies in host memory by another communicator.

    What a collective or an exchange gives is where its argument is, which may be the CPU.

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
        return {source: tensor.to(x.device) for source, tensor in arrivals.items()}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        gathered = self._inner.all_gather(self._host(x), group, members)
        return tuple(part.to(x.device) for part in gathered)

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        return self._inner.all_to_all(self._host(parts), group).to(parts.device)

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        self._inner.send(self._host(x), to, channel)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        return self._inner.recv(source, channel).to(self._device)


class NcclCommunicator:
    """Collectives by a backend that reads the device's memory, all else by a staged communicator.

    All else is exchanges, channels, and collectives of tensors of the CPU, which NCCL refuses.

    All ranks call the collectives of all groups in one order, in one thread: NCCL may hang otherwise.

    Parameters
    ----------
    staged
        For all else.
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
        The process groups that it has made.
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
        groups = {
            name: dist.new_group(
                list(members),
                backend=backend,
                timeout=PATIENCE,
                device_id=device if backend == "nccl" else None,
                sort_ranks=False,
            )
            for name, members in named.items()
        }
        self.groups = tuple(groups.values())
        self._device = device
        self._collectives = Collectives(groups)

    def _of(self, x: torch.Tensor) -> Collectives | StagedCommunicator:
        return self._collectives if x.device.type == self._device.type else self._staged

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        self._of(x).all_reduce(x, op, group)

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        return self._of(x).all_gather(x, group, members)

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        return self._of(parts).all_to_all(parts, group)

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
