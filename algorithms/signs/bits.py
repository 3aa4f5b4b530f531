"""Signs, and how they are packed into bits.

Where a value is zero, or a vote is tied, a tie rule decides: ``plus`` takes +1, ``random`` +1 or -1 by the
toss of a coin for every coordinate, and ``zero`` leaves a zero. One bit holds no zero, so with ``zero`` a
second bit for each coordinate says whether there is one.

Bit i of a vector is bit i mod 8, counted from the lowest, of byte i // 8; 1 is +1. A plane of bits is padded
with zeros to whole words of 32 bits. A vector that is cut into shards has its planes shard by shard, all of
one length. Without numerics a phantom of the right size stands for the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from algorithms.phantom import Phantom

if TYPE_CHECKING:
    import numpy as np
    import torch

Tie = Literal["zero", "plus", "random"]
"""What stands for the sign of zero, and for a tied vote."""

WORD = 4
"""Bytes of a word."""


def shard_elements(elements: int, shards: int) -> int:
    """Return the elements of a shard, padding included: whole words."""
    words = -(-elements // (8 * WORD))
    return 8 * WORD * -(-words // shards)


def wire_bytes(elements: int, tie: Tie, shards: int = 1) -> int:
    """Return the bytes of packed signs."""
    return shards * shard_elements(elements, shards) // 8 * (2 if tie == "zero" else 1)


def draw(tie: Tie, like: Any, random: np.random.Generator) -> torch.Tensor | None:
    """Return uniform numbers for random ties; they are drawn whether there is a tie or not."""
    if tie != "random" or isinstance(like, Phantom):
        return None
    import torch

    return torch.from_numpy(random.random(len(like)))


def signs(x: torch.Tensor, tie: Tie, draws: torch.Tensor | None) -> torch.Tensor:
    """Return the sign of every element, in the type of ``x``."""
    import torch

    taken = torch.sign(x)
    if tie == "plus":
        taken[x == 0] = 1
    elif tie == "random":
        assert draws is not None
        at = x == 0
        taken[at] = torch.where(draws.to(x.device)[at] < 0.5, 1.0, -1.0).to(x.dtype)
    return taken


def pack(taken: Any, tie: Tie, shards: int = 1) -> Any:
    """Return signs as bytes: a plane of signs, and with ``zero`` one of where there is a sign at all."""
    if isinstance(taken, Phantom):
        return Phantom((wire_bytes(len(taken), tie, shards),), 1)
    import torch

    padded = torch.zeros(shards * shard_elements(len(taken), shards), dtype=taken.dtype, device=taken.device)
    padded[: len(taken)] = taken
    by_shard = padded.view(shards, -1)
    planes = [by_shard > 0, by_shard != 0] if tie == "zero" else [by_shard > 0]
    return torch.cat([_bytes(plane) for plane in planes], dim=1).view(-1)


def unpack(wire: Any, elements: int, tie: Tie, like: Any, shards: int = 1) -> Any:
    """Return the signs, in the type of ``like``; padding has any."""
    if isinstance(wire, Phantom):
        return Phantom((elements,), like.itemsize)
    bits = _bits(wire.view(shards, -1))
    length = shard_elements(elements, shards)
    taken = bits[:, :length].to(like.dtype).mul_(2).sub_(1)
    if tie == "zero":
        taken.mul_(bits[:, length:])
    return taken.reshape(-1)[:elements]


def _bytes(bits: torch.Tensor) -> torch.Tensor:
    """Return booleans [shards, elements] as bytes [shards, elements / 8]."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.view(len(bits), -1, 8).to(torch.uint8) << places).sum(2, dtype=torch.uint8)


def _bits(planes: torch.Tensor) -> torch.Tensor:
    """Return bytes [shards, n] as zeros and ones [shards, 8 n]."""
    import torch

    places = torch.arange(8, dtype=torch.uint8, device=planes.device)
    return (planes.unsqueeze(2) >> places).bitwise_and_(1).view(len(planes), -1)
