"""Where a run's time went: every instant of every worker, until its own end, belongs to one operation.

A worker may compute and transfer at once. An instant counts as computing if the worker's device is
busy, else as transferring if one of its transfers is under way, else as waiting; of several operations
of one kind the one that began first has it. An instant without a span is waiting, as the operation
``idle``. So the parts of a worker add up to its own end, exactly as in
:meth:`simulator.run.Run.time_shares`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping

from simulator.run import Run
from traces import COMPUTE, TRANSFER, WAIT, Span

KINDS = (COMPUTE, TRANSFER, WAIT)
"""The phases, in order of precedence."""

IDLE = "idle"
"""The operation of an instant in which a worker has no span."""

GRADIENT = "gradient"
"""The computation with which an iteration begins."""

Phase = tuple[str, str]
"""(kind, operation)."""

_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


def attribution(run: Run) -> list[dict[Phase, float]]:
    """Return the seconds of each (kind, operation), by worker; each worker's add up to its own end."""
    return [over_iterations(own) for own in attribution_by_iteration(run)]


def attribution_by_iteration(run: Run) -> list[dict[tuple[int, Phase], float]]:
    """Return the seconds of each phase in each iteration, by worker; each worker's add up to its own end.

    An instant belongs to the iteration whose gradient the worker has begun last; what comes before the first
    gradient belongs to the first iteration.
    """
    ends = run.own_ends
    spans: list[list[Span]] = [[] for _ in ends]
    for span in run.worker_spans:
        end = min(span.end, ends[span.worker])
        if end > span.start:
            spans[span.worker].append(span if end == span.end else span._replace(end=end))
    return [_exclusive(own, end) for own, end in zip(spans, ends, strict=True)]


def over_iterations(parts: Mapping[tuple[int, Phase], float]) -> dict[Phase, float]:
    """Return the seconds of each phase, over all iterations."""
    seconds: dict[Phase, float] = {}
    for (_, phase), spent in parts.items():
        seconds[phase] = seconds.get(phase, 0.0) + spent
    return seconds


def _exclusive(spans: Iterable[Span], duration: float) -> dict[tuple[int, Phase], float]:
    """Sweep over one worker's spans; a heap holds those under way, the one that has the instant on top."""
    ordered = sorted(spans, key=lambda span: span.start)
    edges = sorted({0.0, duration, *(span.start for span in ordered), *(span.end for span in ordered)})
    under_way: list[tuple[int, float, int]] = []
    seconds: dict[tuple[int, Phase], float] = {}
    following, iteration = 0, 1
    for now, until in itertools.pairwise(edges):
        while following < len(ordered) and ordered[following].start <= now:
            span = ordered[following]
            heapq.heappush(under_way, (_RANK[span.kind], span.start, following))
            if span.kind == COMPUTE and span.operation == GRADIENT:
                iteration = max(iteration, span.iteration)
            following += 1
        while under_way and ordered[under_way[0][2]].end <= now:
            heapq.heappop(under_way)
        if under_way:
            span = ordered[under_way[0][2]]
            phase = (span.kind, span.operation)
        else:
            phase = (WAIT, IDLE)
        key = (iteration, phase)
        seconds[key] = seconds.get(key, 0.0) + until - now
    return seconds
