"""One rank of a job that torchrun or Slurm has started, from meeting the others to the common end."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from simulator.execution import watch
from simulator.execution.communicator import failing, make_world
from simulator.execution.device import Side, chosen_backend, described, identity, side
from simulator.execution.launch import fraction, initialised, perform
from simulator.execution.meeting import Board, Liaison, facts
from simulator.execution.place import Place
from simulator.execution.record import Record
from simulator.parts import BadInput
from simulator.run import Met, Progress
from simulator.scenario import Scenario

_numbers = itertools.count()
"""Tells the runs of this process apart, and alike on all ranks."""


def join(
    scenario: Scenario,
    place: Place,
    progress: Progress | None = None,
    patience: float = watch.PATIENCE,
    device: str = "cpu",
    backend: str = "auto",
    met: Met | None = None,
) -> list[Record] | None:
    """Run one rank of a job that somebody else has started.

    Parameters
    ----------
    scenario
        With an objective and one step size, the same on all ranks.
    place
        Of this rank.
    progress
        Told on rank 0 how much is done.
    patience
        Seconds in which all ranks must have come, and without any progress after which the run is ended.
    device
        ``auto``, ``cpu`` or ``cuda``; the ranks of a machine take its GPUs in turn.
    backend
        What carries collectives: ``auto``, ``gloo`` or ``nccl``.
    met
        Told the host and the device of each rank, and what carries their collectives, when all have come.

    Returns
    -------
    On rank 0 what all ranks bring home, by rank; None on the others.

    Raises
    ------
    AlgorithmError, WorkerFailed
        The first cause, when any rank fails; the same on all ranks.
    RunStuck
        The patience is over; the same on all ranks.
    BadInput
        There are more or fewer ranks than workers, they are to share memory across machines, or their
        scenarios or versions differ.
    """
    _check(scenario, place)
    begun = fraction(progress if place.rank == 0 else None, scenario.sections.budget.iterations)
    threads = torch.get_num_threads()
    try:
        own = side(device, place.local_rank)
        if place.world_size == 1:
            return [perform(scenario, 0, place=own)[0]]
        board = Board(place, patience, next(_numbers))
        ranks = board.meet(facts(scenario, described(own), identity(own)))
        places = [(rank.host, rank.device) for rank in ranks]
        carrier = chosen_backend(backend, places, [rank.gpu for rank in ranks])
        if met is not None:
            met(places, carrier)
        return _together(scenario, place, board, patience, begun, own, carrier)
    finally:
        torch.set_num_threads(threads)
        # The caller's scenario goes on as it came; if a GPU has failed, the first cause says so.
        assert scenario.objective is not None
        with suppress(RuntimeError):
            scenario.objective.place(torch.device("cpu"))


def _check(scenario: Scenario, place: Place) -> None:
    if place.world_size != scenario.ranks:
        plural = "s" if scenario.servers > 1 else ""
        servers = f" and {scenario.servers} dedicated server{plural}" if scenario.servers else ""
        raise BadInput(
            "cluster.workers",
            f"the scenario has {scenario.workers} workers{servers}, but {place.starter} has started "
            f"{place.world_size} ranks",
        )
    shares_memory = "shared-memory" in scenario.algorithm.requires
    if shares_memory and place.local_world_size != place.world_size:
        raise BadInput(
            "algorithm",
            f"{scenario.sections.algorithm.name} needs all workers on one machine, because they share "
            f"memory, but only {place.local_world_size} of {place.starter}'s {place.world_size} ranks are "
            "on this one",
        )


def _together(
    scenario: Scenario,
    place: Place,
    board: Board,
    patience: float,
    begun: Callable[[int], None],
    own: Side,
    backend: str,
) -> list[Record] | None:
    """Run this rank, telling the others how it gets on; any failure of any rank ends it."""
    liaison = Liaison(place, board, patience, begun)
    one_machine = place.local_world_size == place.world_size
    try:
        if not dist.is_initialized():
            make_world(initialised(backend), board.for_groups, place.rank, place.world_size)
            # The group serves later calls too; its threads must have ended before the interpreter does.
            atexit.register(leave)
        with common_folder(place.rank) if one_machine else nullcontext() as folder:
            record, communicator = perform(scenario, place.rank, None, liaison, folder, own, backend)
            assert communicator is not None
            liaison.ended(record.calls)
            # When rank 0 has heard of all of them, no rank needs the folder any more.
            records = communicator.gather(record)
            liaison.stop()
            communicator.close()
    except BaseException as error:
        cause = liaison.fail(error) if isinstance(error, Exception) else error
        board.leave()
        # NCCL gives no group back while operations wait for a peer, which may have failed.
        liaison.insist(cause)
        # Threads that still wait in the backend would break the end of the interpreter.
        atexit.unregister(leave)
        with suppress(RuntimeError):
            leave()
        liaison.stop()
        if cause is error:
            raise
        raise cause from None
    return records


def leave() -> None:
    """Give the default process group back."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def common_folder(rank: int, group: Any = None) -> Iterator[Path]:
    """Give a folder that all ranks, which are on one machine, know; the first to end its work removes it.

    All do: rank 0 may be killed. Ranks tell it over the process group, the default one if not given.
    """
    if rank == 0:
        with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
            _told(folder, group)
            yield Path(folder)
        return
    named = _told(None, group)
    try:
        yield Path(named)
    finally:
        shutil.rmtree(named, ignore_errors=True)


def _told(folder: str | None, group: Any) -> str:
    """Return the folder that rank 0 tells."""
    named: list[Any] = [folder]
    with failing("the common folder"):
        dist.broadcast_object_list(named, 0, group)
    return str(named[0])
