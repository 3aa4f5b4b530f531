"""Messages as long as the cost model's: the tensors of the objective, and zeros behind them.

What is reduced is padded with elements of its own type, so that the sum of more than two ranks may come in
another order, and in other last bits, than the objective's alone; so is what is gathered and exchanged. What
goes through a channel is a message of bytes, since its receiver knows neither length nor type: the tensor,
the zeros, and at the end its length and its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from algorithms import Reduction
from simulator.execution.communicator import ELEMENT_TYPES, Communicator

_TRAILER = 16
"""Bytes of the two integers at the end of a channel's message."""


class PaddedCommunicator:
    """Pads what another communicator sends.

    Parameters
    ----------
    inner
        Does the work.
    charge
        The bytes that a tensor stands for.
    """

    def __init__(self, inner: Communicator, charge: Callable[[torch.Tensor], float]) -> None:
        self._inner = inner
        self._charge = charge
        self.one_order = inner.one_order

    def _elements(self, x: torch.Tensor) -> int:
        return max(x.numel(), math.ceil(self._charge(x) / x.itemsize))

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        longer = x.new_zeros(self._elements(x))
        longer[: x.numel()] = x
        return longer

    def all_reduce(self, x: torch.Tensor, op: Reduction, group: str) -> None:
        """Reduce ``x`` over a group, in place; a mean is summed only."""
        longer = self._padded(x)
        self._inner.all_reduce(longer, op, group)
        x.copy_(longer[: x.numel()])

    def exchange(
        self, x: torch.Tensor, sources: Sequence[int], destinations: Sequence[int]
    ) -> dict[int, torch.Tensor]:
        """Send ``x`` to the destinations and return the tensors of the sources, by ascending rank."""
        arrivals = self._inner.exchange(self._padded(x), sources, destinations)
        return {source: longer[: x.numel()].clone() for source, longer in arrivals.items()}

    def all_gather(self, x: torch.Tensor, group: str, members: int) -> tuple[torch.Tensor, ...]:
        """Return the tensors of all members, in the group's order."""
        gathered = self._inner.all_gather(self._padded(x), group, members)
        return tuple(longer[: x.numel()].clone() for longer in gathered)

    def all_to_all(self, parts: torch.Tensor, group: str) -> torch.Tensor:
        """Send the k-th row to the k-th member and return what the members have sent, a row each."""
        rows, elements = parts.shape
        longer = parts.new_zeros(rows, self._elements(parts[0]))
        longer[:, :elements] = parts
        return self._inner.all_to_all(longer, group)[:, :elements].contiguous()

    def send(self, x: torch.Tensor, to: int, channel: int) -> None:
        """Send ``x`` over the channel of a number."""
        nbytes = max(x.nbytes, math.ceil(self._charge(x)))
        message = torch.zeros(nbytes + _TRAILER, dtype=torch.uint8, device=x.device)
        message[: x.nbytes] = x.view(torch.uint8)
        facts = torch.tensor([x.numel(), ELEMENT_TYPES.index(x.dtype)])
        message[nbytes:] = facts.view(torch.uint8).to(x.device)
        self._inner.send(message, to, channel)

    def recv(self, source: int, channel: int) -> torch.Tensor:
        """Return the next tensor from the channel of a number."""
        message = self._inner.recv(source, channel)
        elements, code = message[-_TRAILER:].clone().view(torch.int64).tolist()
        dtype = ELEMENT_TYPES[code]
        return message[: elements * dtype.itemsize].clone().view(dtype)
