"""Where this process stands among the ranks that torchrun or Slurm has started, and how they meet.

========  =====================  ======================================  =====================================
facts     torchrun               Slurm (``srun``)                        if missing
========  =====================  ======================================  =====================================
rank      RANK                   SLURM_PROCID                            not started as a rank
ranks     WORLD_SIZE             SLURM_NTASKS                            not started as a rank
on host   LOCAL_RANK             SLURM_LOCALID                           torchrun: 0
hosts     (none)                 SLURM_STEP_NODELIST, SLURM_NODELIST     not started as a rank
address   MASTER_ADDR            MASTER_ADDR, else the first host        torchrun: not started as a rank
port      MASTER_PORT            MASTER_PORT, else from SLURM_JOB_ID     torchrun: not started as a rank
========  =====================  ======================================  =====================================

Torchrun's environment goes first. A single Slurm task is none of several ranks: it launches local processes,
as on any machine, so that a batch script without ``srun`` does what it does elsewhere. The port that Slurm's
ranks derive is 20000 + (job number modulo 20000), so that two jobs on one host seldom meet.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.parts import BadInput

FIRST_PORT, PORTS = 20_000, 20_000
"""The ports from which Slurm's ranks derive theirs."""


@dataclass(frozen=True)
class Place:
    """One rank among those that somebody else has started.

    Attributes
    ----------
    starter
        Who has: ``torchrun`` or ``Slurm``.
    rank, world_size
        Its number, and how many there are.
    local_rank, local_world_size
        The same on its machine.
    address, port
        Where all ranks meet: rank 0, or torchrun's agent, listens there.
    hosted
        Whether torchrun's agent listens, so that rank 0 does not.
    attempt
        How often torchrun has started the ranks before.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    hosted: bool = False
    attempt: int = 0


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place as its environment says; None where it is to launch ranks itself.

    Raises
    ------
    BadInput
        A variable does not hold a number, or Slurm's list of hosts cannot be read.
    """
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return Place(
            starter="torchrun",
            rank=_number(environment, "RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK", 0),
            local_world_size=_number(environment, "LOCAL_WORLD_SIZE", 1),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=_number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
        )
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST"))
    if hosts is None or any(
        name not in environment for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    ):
        return None
    if _number(environment, "SLURM_NTASKS") == 1:
        return None
    return Place(
        starter="Slurm",
        rank=_number(environment, "SLURM_PROCID"),
        world_size=_number(environment, "SLURM_NTASKS"),
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world_size=_tasks_here(environment),
        address=environment.get("MASTER_ADDR", first_host(hosts)),
        port=_number(environment, "MASTER_PORT", _slurm_port(environment)),
    )


def _number(environment: Mapping[str, str], name: str, missing: int | None = None) -> int:
    text = environment.get(name)
    if text is None and missing is not None:
        return missing
    try:
        return int(text or "")
    except ValueError:
        raise BadInput(name, f"this environment variable should hold a whole number, not '{text}'") from None


def _slurm_port(environment: Mapping[str, str]) -> int:
    return FIRST_PORT + _number(environment, "SLURM_JOB_ID", 0) % PORTS


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Return how many of the tasks are on this host: ``SLURM_STEP_TASKS_PER_NODE`` is like ``4(x2),3``."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        counts += [int(count)] * int(times or 1)
    host = _number(environment, "SLURM_NODEID", 0)
    return counts[host] if host < len(counts) else 1


def first_host(listed: str) -> str:
    """Return the first of Slurm's hosts: ``gpu[03-05,9],login1`` begins with ``gpu03``.

    Raises
    ------
    BadInput
        The list is no such thing.
    """
    found = re.match(r"([\w.-]+)(?:\[(\w+)[\w,-]*\]([\w.-]*))?(?:,|$)", listed)
    if found is None:
        raise BadInput("SLURM_NODELIST", f"'{listed}' is no list of hosts")
    name, first, rest = found.groups()
    return name + (first or "") + (rest or "")
