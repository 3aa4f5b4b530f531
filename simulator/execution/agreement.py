"""Whether the ranks of a group agree on what they call next, before any of them begins it.

Gloo ends a process when ranks of one collective give it different lengths. So each rank notes its call in a
table that all ranks of one machine map into their memory, and compares it with those that its peers have
noted under the same number. No collective ends before all its ranks have begun it, and no exchange before the
neighbours have: whoever comes last sees all others' calls, and what differs is told before the backend hears
of it.

The table has a row of whole numbers for each group and rank: the calls made so far, what is called, the
elements, and their type. Ranks on several machines have no such table; they tell each other, by a message
before each group's first collective. Before every collective that would cost as much as a small one itself,
so it is done only where torch is asked to compare them all (``TORCH_DISTRIBUTED_DEBUG=DETAIL``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
from torch._C._distributed_c10d import DebugLevel, get_debug_level

from algorithms.algorithm import EXCHANGE
from simulator import faults
from simulator.execution.communicator import ELEMENT_TYPES, Communicator
from simulator.execution.memory import take_space

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = tuple[int, int, int]
"""A call: what is called, by its place in a list; the elements; their type, likewise."""
Rows: TypeAlias = "NDArray[np.int64]"

_CALLED = ("sum", "mean", "max", "all_gather", "all_to_all", EXCHANGE)
_TYPES = (*(str(kind).removeprefix("torch.") for kind in ELEMENT_TYPES), "other")
_COLUMNS = 4
_AGAIN = 1e-3
"""Seconds after which a row is read again that differs: it may have changed while it was read."""


class Agreement(Protocol):
    """Says of a call whether all agree on it."""

    def enter(self, group: str, number: int, signature: faults.Signature, members: Sequence[int]) -> None:
        """Compare a call with those of other ranks, where that is possible.

        Parameters
        ----------
        group
            Whose call it is, or :data:`algorithms.algorithm.EXCHANGE`.
        number
            How many of it this rank has made before.
        signature
            What must be the same on all.
        members
            All ranks that take part, in the group's order; of an exchange the neighbours.

        Raises
        ------
        AlgorithmError
            The first that differs.
        """
        ...


class Table:
    """The table, as one rank sees it.

    Parameters
    ----------
    path
        Of its file, which the first rank makes.
    rank, world_size
        Which rank, and how many there are.
    groups
        Names of the groups.
    """

    def __init__(self, path: Path, rank: int, world_size: int, groups: Sequence[str]) -> None:
        self._rank = rank
        self._row = {name: number for number, name in enumerate((*groups, EXCHANGE))}
        shape = (len(self._row), world_size, _COLUMNS)
        take_space(path, 8 * math.prod(shape))
        # A plain view: every access to a memmap makes another one, which takes longer than the rest.
        self._table = np.asarray(np.memmap(path, np.int64, "r+", shape=shape))

    def enter(self, group: str, number: int, signature: faults.Signature, members: Sequence[int]) -> None:
        """Note a call, and compare it with those of the ranks that have made theirs."""
        rows = self._table[self._row[group]]
        own = _row(signature)
        # The row counts for nothing while it changes: an empty call ends before all have come to it, so that
        # others may still compare theirs, and this process may be stopped at any line.
        rows[self._rank, 0] = 0
        rows[self._rank, 1:] = own
        rows[self._rank, 0] = number + 1
        if self._differing(rows, number, own, members):
            # A row may have been read half before and half after a change.
            time.sleep(_AGAIN)
            for rank, row in self._differing(rows, number, own, members):
                raise differing(group, number, self._rank, signature, rank, row)

    @staticmethod
    def _differing(rows: Rows, number: int, own: Row, members: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return the members that have made their call of this number, and otherwise, with what they call."""
        noted = rows.tolist()
        calls = [(rank, noted[rank]) for rank in members]
        return [(rank, row) for rank, (count, *row) in calls if count == number + 1 and tuple(row) != own]


class FirstCalls:
    """What ranks on several machines tell each other: their first call in each group, or all where asked for.

    Parameters
    ----------
    rank
        Which rank.
    communicator
        Its messages.
    """

    def __init__(self, rank: int, communicator: Communicator) -> None:
        self._rank = rank
        self._communicator = communicator
        self._every = get_debug_level() == DebugLevel.DETAIL

    def enter(self, group: str, number: int, signature: faults.Signature, members: Sequence[int]) -> None:
        """Compare the first call of a group with those of all members."""
        if group == EXCHANGE or (number > 0 and not self._every):
            return
        own = _row(signature)
        rows = self._communicator.all_gather(torch.tensor(own), group, len(members))
        for rank, row in zip(members, rows, strict=True):
            if tuple(row.tolist()) != own:
                raise differing(group, number, self._rank, signature, rank, row.tolist())


def _row(signature: faults.Signature) -> Row:
    what, elements, kind = signature
    return _CALLED.index(what), elements, _TYPES.index(kind if kind in _TYPES else "other")


def differing(
    group: str, number: int, rank: int, own: faults.Signature, other: int, row: Sequence[int]
) -> faults.AlgorithmError:
    """Return the error of a call that another rank has made differently; the lower rank is named first."""
    what, elements, kind = row
    if group == EXCHANGE and elements != own[1]:
        return faults.unequal_exchange(rank, own[1], other, elements)
    called = (rank, own), (other, (_CALLED[what], elements, _TYPES[kind]))
    (first, mine), (second, theirs) = sorted(called)
    return faults.mismatch(group, number, first, mine, second, theirs)
