"""All that a rank needs to go on with a training, and the files that keep it.

Files are written under another name and renamed when whole. A rank keeps the one that it has just written and
the one before it, so that one iteration is always there from all ranks: they do not save at the same moment.
What a folder has of later iterations is of a training that was given up for this one, and goes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.execution.training.feed import Randomness
from simulator.parts import BadInput

FORMAT = 1
"""The version of what :meth:`State.data` returns."""

_FILE = re.compile(r"iteration-(\d+)-rank-(\d+)-of-(\d+)\.pt")


@dataclass(frozen=True)
class State:
    """One rank's part of a training, after so many iterations.

    Attributes
    ----------
    reached
        Iterations that all ranks were asked for, the same on all.
    iterations
        Gradients that this rank has begun: more, where a round goes on.
    model
        This rank's model, a vector.
    rule, updates
        The update rule's state, and the updates that it has seen.
    streams
        States of the algorithm's random numbers, by purpose and whether they are shared.
    buffers
        This rank's buffers, in the module's order.
    epoch, batch
        The position in the data.
    random
        Of torch, NumPy and Python.
    """

    reached: int
    iterations: int
    model: Tensor
    rule: Tensor | None
    updates: int
    streams: Mapping[tuple[str, bool], dict[str, Any]]
    buffers: Sequence[Tensor]
    epoch: int
    batch: int
    random: Randomness

    def data(self) -> dict[str, Any]:
        """Return the state as plain values and tensors, which ``torch.load`` reads without pickled code."""
        own = dict(vars(self))
        own["streams"] = [[purpose, shared, state] for (purpose, shared), state in self.streams.items()]
        own["buffers"] = list(self.buffers)
        own["random"] = dict(vars(self.random))
        return {"format": FORMAT, **own}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> State:
        """Return the state that :meth:`data` describes.

        Raises
        ------
        BadInput
            It is none.
        """
        own = dict(data)
        if own.pop("format", None) != FORMAT:
            raise BadInput("state", f"is no training state of format {FORMAT}")
        try:
            own["streams"] = {(purpose, shared): state for purpose, shared, state in own["streams"]}
            own["random"] = Randomness(**own["random"])
            return cls(**own)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput("state", f"is damaged: {error}") from None


def file_of(folder: Path, reached: int, rank: int, world_size: int) -> Path:
    """Return where a rank keeps its state after so many iterations."""
    return folder / f"iteration-{reached:08d}-rank-{rank}-of-{world_size}.pt"


def kept(folder: Path, rank: int, world_size: int) -> set[int]:
    """Return the iterations that a rank has kept, in a world of that size."""
    if not folder.is_dir():
        return set()
    found = [_FILE.fullmatch(path.name) for path in folder.iterdir()]
    own = (str(rank), str(world_size))
    return {int(match[1]) for match in found if match is not None and (match[2], match[3]) == own}


def worlds(folder: Path) -> set[int]:
    """Return the numbers of ranks whose states are in a folder."""
    if not folder.is_dir():
        return set()
    found = [_FILE.fullmatch(path.name) for path in folder.iterdir()]
    return {int(match[3]) for match in found if match is not None}


def write(data: Mapping[str, Any], folder: Path, rank: int, world_size: int) -> None:
    """Keep a rank's state in a folder, and of its others the latest of earlier iterations.

    Raises
    ------
    BadInput
        The folder cannot be written to.
    """
    reached = int(data["reached"])
    path = file_of(folder, reached, rank, world_size)
    draft = path.with_suffix(".draft")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file of our own: torch's writer tells of a full disk in other words.
        with draft.open("wb") as file:
            torch.save(dict(data), file)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise BadInput(str(path), f"cannot be written: {reason}") from error
    there = kept(folder, rank, world_size)
    latest = sorted(iteration for iteration in there if iteration <= reached)[-2:]
    for other in there - set(latest):
        file_of(folder, other, rank, world_size).unlink(missing_ok=True)


def read(folder: Path, reached: int, rank: int, world_size: int) -> dict[str, Any]:
    """Read what a rank has kept.

    Raises
    ------
    BadInput
        The file is missing or damaged.
    """
    path = file_of(folder, reached, rank, world_size)
    try:
        data: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises anything for a file that is not its own.
        raise BadInput(str(path), f"cannot be read: {str(error).splitlines()[0]}") from None
    return data
