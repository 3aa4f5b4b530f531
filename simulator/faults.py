"""What can go wrong in a run: an algorithm breaks the rules of the seam, or a worker fails.

Both clocks raise these errors with the same sentences. An :class:`AlgorithmError` says which rule was
broken, by which worker, with which operation; :class:`WorkerFailed` says which worker ended a run, when,
and the first cause.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_QUESTIONS = 1000
"""How often in a row a worker may ask whether it is running without starting a gradient in between."""

MOST_AT_ONCE = 1_000_000
"""How many operations may end at one instant of the simulated time before its clock stands still."""


class AlgorithmError(RuntimeError):
    """An algorithm broke a rule of the seam; the message is one sentence for its author."""


class WorkerFailed(RuntimeError):
    """A worker ended a run.

    Parameters
    ----------
    rank
        Which worker.
    iteration
        The iterations that it had begun; None where nobody knows, because its process was killed.
    cause
        The first cause: the original error's type and text, or how the process ended.
    """

    def __init__(self, rank: int, iteration: int | None, cause: str) -> None:
        where = "" if iteration is None else f" in iteration {iteration}"
        super().__init__(f"worker {rank} failed{where}: {cause}")
        self.rank = rank
        self.iteration = iteration
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rank, self.iteration, self.cause)


def crashed(rank: int, iterations: int, at: float) -> WorkerFailed:
    """Return the end of a run by a worker that the scenario lets crash for good."""
    return WorkerFailed(rank, iterations, f"it crashed at {at:g} s, as the scenario says")


class LinkStuck(RuntimeError):
    """A link of an emulated network could not be changed when the scenario says so."""


class RunStuck(RuntimeError):
    """A run made no progress for longer than its patience, or a rank of it is not heard of any more."""


def silent(ranks: Sequence[int], patience: float, others: Sequence[str]) -> RunStuck:
    """Return the report of ranks that say nothing any more, and of what the others do."""
    who = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    why = "its process is stopped or its machine is out of reach"
    if len(ranks) > 1:
        why = "their processes are stopped or their machines are out of reach"
    return RunStuck("; ".join((f"nothing was heard of {who} for {patience:g} s: {why}", *others)))


def late(ranks: Sequence[int], seconds: float, others: Sequence[str]) -> RunStuck:
    """Return the report of ranks whose work has not begun, and of what the others do."""
    who = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
    why = "loading data may need more patience, or a process is stopped or a machine out of reach"
    return RunStuck("; ".join((f"{who} did not come up within {seconds:g} s: {why}", *others)))


def stuck(patience: float, doings: Sequence[str]) -> RunStuck:
    """Return the report of a run in which no worker ends anything: who waits for whom, or computes."""
    return RunStuck(f"no worker got on for {patience:g} s: " + ("; ".join(doings) or "none says why"))


def cause_of(error: BaseException) -> str:
    """Return an error's type and text in one line, and the line of the algorithm or task that led to it."""
    text = str(error)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    theirs = [(path, line) for path, line in frames if not _is_machinery(path)]
    return f"{said} (at {theirs[-1][0].name}:{theirs[-1][1]})" if theirs else said


def _is_machinery(path: Path) -> bool:
    """Return whether a file is neither an algorithm's nor a user's own."""
    library = "site-packages" in path.parts or Path(traceback.__file__).parent in path.parents
    return library or Path(__file__).parent in path.parents or path.name == "phantom.py"


def not_a_coroutine(algorithm: str, found: object) -> AlgorithmError:
    """Return the error of a ``run`` that was called and gave something else than a coroutine."""
    kind = "None" if found is None else f"an object of type {type(found).__name__}"
    return AlgorithmError(f"{algorithm}.run must be a coroutine (async def), but it returned {kind}")


def foreign_await(rank: int) -> AlgorithmError:
    """Return the error of an ``await`` on something that is no operation of the worker."""
    return AlgorithmError(f"worker {rank} awaited something that is not an operation of its worker")


def no_progress(rank: int) -> AlgorithmError:
    """Return the error of an algorithm that keeps asking whether to go on and computes nothing."""
    return AlgorithmError(
        f"worker {rank} asked {MOST_QUESTIONS} times in a row whether it is running without starting a "
        "gradient in between; its algorithm makes no progress"
    )


def standing_still(now: float, count: int, rank: int, operation: str, task: str, line: str) -> AlgorithmError:
    """Return the error of a task that does one operation after another, none of which takes any time."""
    return AlgorithmError(
        f"the clock stands still at {now:g} s: {count:,} operations ended there, the last of them the "
        f"{operation} of worker {rank}'s task {task} at {line}; its algorithm goes round without taking time"
    )


def not_awaited(rank: int, operation: str, iteration: int) -> AlgorithmError:
    """Return the error of a handle that nobody had awaited when its worker's run ended."""
    return AlgorithmError(
        f"worker {rank} ended, but nobody awaited the {operation} that it started in iteration {iteration}"
    )


def beyond_budget(rank: int, iterations: int, budget: int) -> AlgorithmError:
    """Return the error of an algorithm that goes on computing and never asks whether it may."""
    return AlgorithmError(
        f"worker {rank} has computed {iterations} gradients of a budget of {budget} without asking whether "
        "it is running"
    )


def overdone(iterations: int, budget: int) -> bool:
    """Return whether a worker has gone on so far beyond its budget that no round explains it."""
    return iterations > 2 * budget + 10_000


def no_gradient(rank: int) -> AlgorithmError:
    """Return the error of a worker whose run ended before its first gradient."""
    return AlgorithmError(f"worker {rank} ended without computing a gradient")


def only_serves(rank: int, what: str) -> AlgorithmError:
    """Return the error of a dedicated server that does what only workers do."""
    return AlgorithmError(f"rank {rank} is a dedicated server, which has no data, but it {what}")


def no_report(rank: int) -> AlgorithmError:
    """Return the error of a worker whose run ended before its first report."""
    return AlgorithmError(f"worker {rank} ended without reporting a model")


def undeclared_group(rank: int, group: str, declared: Iterable[str]) -> AlgorithmError:
    """Return the error of a group that the algorithm's plan does not hold."""
    known = ", ".join(f"'{name}'" for name in declared)
    return AlgorithmError(
        f"worker {rank} used the group '{group}', which its algorithm's plan does not declare; "
        f"declared are {known}"
    )


def not_a_member(rank: int, group: str, members: Sequence[int]) -> AlgorithmError:
    """Return the error of a worker that uses a group of others."""
    known = ", ".join(map(str, members))
    return AlgorithmError(f"worker {rank} is not in the group '{group}', which has the workers {known}")


def undeclared_channel(rank: int, source: int, destination: int, name: str) -> AlgorithmError:
    """Return the error of a channel that the algorithm's plan does not hold."""
    return AlgorithmError(
        f"worker {rank} used the channel '{name}' from worker {source} to worker {destination}, "
        "which its algorithm's plan does not declare"
    )


def no_graph(rank: int, operation: str, algorithm: str) -> AlgorithmError:
    """Return the error of a neighbour operation by an algorithm that does not require a graph."""
    return AlgorithmError(
        f"worker {rank} called {operation}, but {algorithm} does not require a communication graph; "
        "add 'graph' to its requires"
    )


def no_shared_memory(rank: int, algorithm: str) -> AlgorithmError:
    """Return the error of a shared vector in an algorithm that does not require shared memory."""
    return AlgorithmError(
        f"worker {rank} called shared, but {algorithm} does not require shared memory; "
        "add 'shared-memory' to its requires"
    )


def unequal_shared(rank: int, name: str, own: str, there: str) -> AlgorithmError:
    """Return the error of a shared vector whose length or type differs between two workers."""
    return AlgorithmError(
        f"worker {rank} shares '{name}' as {own} elements, but another worker shares it as {there}"
    )


@dataclass(frozen=True)
class Waiting:
    """One worker that waits for ever.

    Attributes
    ----------
    worker
        Who waits.
    operation
        In which operation.
    since
        Since when, in seconds.
    peers
        For whom.
    line
        The file and line of the algorithm that waits.
    """

    worker: int
    operation: str
    since: float
    peers: tuple[int, ...]
    line: str

    def __str__(self) -> str:
        others = f" for worker{'s' if len(self.peers) > 1 else ''} {', '.join(map(str, self.peers))}"
        return (
            f"worker {self.worker} waits in {self.operation}{others if self.peers else ''} "
            f"since {self.since:g} s at {self.line}"
        )


def deadlock(waiting: Sequence[Waiting]) -> AlgorithmError:
    """Return the report of a run that cannot go on: who waits for whom, for what, since when, where."""
    return AlgorithmError("the run cannot go on: " + "; ".join(map(str, waiting)))


Signature = tuple[str, int, str]
"""What must agree in a collective: what it does, the number of elements, the element type."""


def mismatch(
    group: str, index: int, first: int, called: Signature, other: int, differs: Signature
) -> AlgorithmError:
    """Return the error of a collective that two workers called differently."""
    kinds = {"all_reduce" if what in ("sum", "mean", "max") else what for what in (called[0], differs[0])}
    kind = kinds.pop() if len(kinds) == 1 else "collective"
    return AlgorithmError(
        f"{kind} number {index} of the group '{group}' differs: worker {first} called "
        f"{_call(called)}, worker {other} called {_call(differs)}"
    )


def unequal_parts(rank: int, group: str, lengths: Sequence[int], members: int) -> AlgorithmError:
    """Return the error of an all-to-all whose parts are not one for each member, all equally long."""
    return AlgorithmError(
        f"worker {rank} called all_to_all of the group '{group}' with parts of "
        f"{', '.join(map(str, lengths))} elements; it takes {members} parts of one length"
    )


def _call(signature: Signature) -> str:
    op, elements, element_type = signature
    return f"{op} of {elements} {element_type} elements"


def unequal_exchange(worker: int, own: int, neighbour: int, other: int) -> AlgorithmError:
    """Return the error of neighbours that exchange tensors of different lengths."""
    return AlgorithmError(
        f"an exchange differs: worker {worker} sent {own} elements, worker {neighbour} sent it {other}"
    )


def stalled(route: str, failed: str, now: float) -> AlgorithmError:
    """Return the report of a transfer that waits for ever for a link that has failed."""
    why = f"{failed} failed and does not come back" if failed else "its rate is too small"
    return AlgorithmError(
        f"the run cannot go on after {now:g} s: a transfer over {route} can never finish; {why}"
    )
