"""Patterns of collectives as data: which rank sends which part of the message to whom, round by round.

A schedule is a sequence of phases; a phase repeats one round of transfers. A rank enters a phase when all
its transfers of earlier ones have ended, and a round as its transport says. Ranks are positions in the group,
and a transfer's size is a fraction of the message. The message of an all-reduce is one member's vector; that
of an all-gather is all that is gathered, and that of an all-to-all is all that a member has for the group,
its own part included.
Sources: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005
(ring, halving-doubling); Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan", 2009 (the tree pair that NCCL uses).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_reduce", "all_gather", "all_to_all"]
"""What a collective does."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One message of a round.

    Attributes
    ----------
    source, destination
        Positions in the group.
    fraction
        Size as a part of the message.
    """

    source: int
    destination: int
    fraction: float


@dataclass(frozen=True)
class Phase:
    """A round of transfers that is done ``repeat`` times."""

    repeat: int
    transfers: tuple[Transfer, ...]


Schedule = tuple[Phase, ...]


def ring(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return the ring: everyone passes 1/n of the message to the next, n-1 times to sum and n-1 to share."""
    n = sum(map(len, groups))
    if n == 1:
        return ()
    once = Phase(n - 1, tuple(Transfer(i, (i + 1) % n, 1 / n) for i in range(n)))
    return (once, once)


def tree(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return two binary trees that carry half the message each, up to the root and down again.

    The second tree is the first with the ranks in reverse order, so that a leaf of one is mostly an inner
    node of the other and both directions of every rank are used.
    """
    n = sum(map(len, groups))
    up: list[list[Transfer]] = [[] for _ in range(max(1, n).bit_length() - 1)]
    for child in range(1, n):
        parent = (child - 1) // 2
        level = (child + 1).bit_length() - 2
        up[level] += [
            Transfer(child, parent, 0.5),
            Transfer(n - 1 - child, n - 1 - parent, 0.5),
        ]
    down = [[Transfer(t.destination, t.source, t.fraction) for t in level] for level in up]
    return tuple(Phase(1, tuple(level)) for level in [*reversed(up), *down])


def halving_doubling(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return recursive halving (reduce-scatter), then recursive doubling (all-gather).

    Ranks beyond the largest power of two hand their vector to a partner first and get the result last.
    """
    n = sum(map(len, groups))
    core = 2 ** (n.bit_length() - 1)
    extra = n - core
    phases = []
    if extra:
        phases.append(Phase(1, tuple(Transfer(core + i, i, 1.0) for i in range(extra))))
    steps = [(core >> k, 2.0**-k) for k in range(1, core.bit_length())]
    for distance, fraction in [*steps, *reversed(steps)]:
        phases.append(Phase(1, tuple(Transfer(i, i ^ distance, fraction) for i in range(core))))
    if extra:
        phases.append(Phase(1, tuple(Transfer(i, core + i, 1.0) for i in range(extra))))
    return tuple(phases)


def hierarchical(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return reduce-scatter inside each host, a ring across hosts for each shard, all-gather inside.

    Raises
    ------
    ValueError
        Hosts have different numbers of workers.
    """
    sizes = sorted(set(map(len, groups)))
    if len(sizes) > 1:
        raise ValueError(
            f"the hierarchical pattern needs the same number of workers on every host, but they have "
            f"from {sizes[0]} to {sizes[-1]}"
        )
    local, hosts = sizes[0], len(groups)
    inside = tuple(
        Transfer(group[slot], group[(slot + 1) % local], 1 / local)
        for group in groups
        for slot in range(local)
    )
    across = tuple(
        Transfer(groups[host][slot], groups[(host + 1) % hosts][slot], 1 / (local * hosts))
        for host in range(hosts)
        for slot in range(local)
    )
    phases = [Phase(local - 1, inside), Phase(2 * (hosts - 1), across), Phase(local - 1, inside)]
    return tuple(phase for phase in phases if phase.repeat)


PATTERNS: dict[str, Callable[[Sequence[Sequence[int]]], Schedule]] = {
    "ring": ring,
    "tree": tree,
    "halving-doubling": halving_doubling,
    "hierarchical": hierarchical,
}
"""Name -> schedule of a group, given as the positions of its members host by host."""


def gather_ring(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return the ring all-gather: n-1 rounds in which everyone passes one member's part to the next."""
    n = sum(map(len, groups))
    if n == 1:
        return ()
    return (Phase(n - 1, tuple(Transfer(i, (i + 1) % n, 1 / n) for i in range(n))),)


def all_at_once(groups: Sequence[Sequence[int]]) -> Schedule:
    """Return the all-to-all in one round: everyone sends to everyone else."""
    n = sum(map(len, groups))
    if n == 1:
        return ()
    return (Phase(1, tuple(Transfer(i, (i + k) % n, 1 / n) for k in range(1, n) for i in range(n))),)


def cut(schedule: Schedule, segments: Sequence[int]) -> Schedule:
    """Return a schedule whose transfers are segments of those given, so many for each of its phases."""
    return tuple(
        Phase(
            phase.repeat * parts,
            tuple(Transfer(t.source, t.destination, t.fraction / parts) for t in phase.transfers),
        )
        for phase, parts in zip(schedule, segments, strict=True)
    )


OTHER_PATTERNS: dict[Kind, Callable[[Sequence[Sequence[int]]], Schedule]] = {
    "all_gather": gather_ring,
    "all_to_all": all_at_once,
}
"""Kind -> schedule of the collectives that have one pattern whatever the transport."""


def traffic(schedule: Schedule) -> dict[tuple[int, int], float]:
    """Return how much every ordered pair of ranks moves in all, as a fraction of the message."""
    total: dict[tuple[int, int], float] = {}
    for phase in schedule:
        for transfer in phase.transfers:
            pair = (transfer.source, transfer.destination)
            total[pair] = total.get(pair, 0.0) + phase.repeat * transfer.fraction
    return total


def depth(kind: Kind, world_size: int) -> int:
    """Return the latency-bearing rounds of a pipelined collective.

    An all-reduce goes up and down a tree of n leaves, an all-gather down; the parts of an all-to-all go all
    at once.
    """
    if world_size == 1:
        return 0
    levels = math.ceil(math.log2(world_size))
    return {"all_reduce": 2 * levels, "all_gather": levels, "all_to_all": 1}[kind]
