"""Timelines as a trace that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) open.

The format is the Trace Event Format: a JSON object whose ``traceEvents`` are metadata (``M``), complete
events (``X``, with a start and a duration) and counters (``C``); times are in microseconds. A worker is a
process with a thread for its computations and as many for the network as overlap, because events of one
thread may nest but not cross. The load of each link is a counter of a process of its own.

Source: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from traces.timeline import COMPUTE, Span, Timeline

EVENT_LIMIT = 200_000
"""How many spans and link changes a trace holds at most, unless told otherwise; viewers get slow beyond."""

_COLOURS = {"compute": "thread_state_running", "transfer": "thread_state_iowait", "wait": "grey"}
"""Names of the viewer's own palette."""


class LinkRates(Protocol):
    """The load of links over time, as a run has it; lists of equal length belong together."""

    @property
    def name(self) -> list[str]:
        """The links' names."""

    @property
    def capacity(self) -> list[float]:
        """Bytes/s that each link can carry."""

    @property
    def change_link(self) -> list[int]:
        """Of each change: the number of the link."""

    @property
    def change_time(self) -> list[float]:
        """Of each change: the second from which on it holds."""

    @property
    def change_rate(self) -> list[float]:
        """Of each change: the link's load in bytes/s from then on."""


def trace(
    timeline: Timeline,
    links: LinkRates | None = None,
    title: str = "",
    limit: int = EVENT_LIMIT,
    workers: int | None = None,
) -> dict[str, Any]:
    """Return a timeline as a trace, ready for JSON.

    Parameters
    ----------
    timeline
        What every worker did when.
    links
        Link loads, where they are known.
    title
        What the trace is called.
    limit
        How many spans and link changes it holds at most. A longer run is cut at a time, before which it
        is complete; ``otherData`` says so.
    workers
        How many ranks are workers; those behind them are servers. None where all are workers.
    """
    starts = sorted([span.start for span in timeline] + (list(links.change_time) if links else []))
    cut = starts[limit] if len(starts) > limit else None
    shown = [span for span in timeline if cut is None or span.start < cut]
    events = [*_worker_events(shown, workers), *_link_events(links, cut)]
    about = "the whole run" if cut is None else f"the first {cut:.6g} s, cut after {limit:,} events"
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": title, "shown": about},
    }


def write_trace(
    path: Path,
    timeline: Timeline,
    links: LinkRates | None = None,
    title: str = "",
    limit: int = EVENT_LIMIT,
    workers: int | None = None,
) -> None:
    """Write a timeline as a trace file; see :func:`trace`. The same timeline gives the same bytes."""
    content = trace(timeline, links, title, limit, workers)
    events = content.pop("traceEvents")
    with path.open("w", encoding="utf-8") as file:
        file.write('{"traceEvents": [\n')
        file.write(",\n".join(_json(event) for event in events))
        file.write("\n],\n" + _json(content)[1:] + "\n")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _metadata(what: str, pid: int, tid: int, **arguments: object) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": arguments}


def _worker_events(spans: Sequence[Span], workers: int | None) -> Iterator[dict[str, Any]]:
    """Return the events of all ranks, by rank and then by thread; process numbers start at 1."""
    by_worker: dict[int, list[Span]] = {}
    for span in spans:
        by_worker.setdefault(span.worker, []).append(span)
    for worker in sorted(by_worker):
        pid = worker + 1
        number = worker if workers is None or worker < workers else worker - workers
        kind = "worker" if number == worker else "server"
        yield _metadata("process_name", pid, 0, name=f"{kind} {number}")
        yield _metadata("process_sort_index", pid, 0, sort_index=pid)
        own = by_worker[worker]
        tid = 0
        for thread, kinds in (("compute", (COMPUTE,)), ("network", ("transfer", "wait"))):
            for number, lane in enumerate(_lanes(span for span in own if span.kind in kinds)):
                tid += 1
                name = thread if number == 0 else f"{thread} {number + 1}"
                yield _metadata("thread_name", pid, tid, name=name)
                yield _metadata("thread_sort_index", pid, tid, sort_index=tid)
                yield from (_complete(span, pid, tid) for span in lane)


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """Deal spans out to as few lanes as possible so that no two of one lane overlap."""
    lanes: list[list[Span]] = []
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(lanes)
        if lane == len(lanes):
            lanes.append([])
        lanes[lane].append(span)
        heapq.heappush(busy, (span.end, lane))
    return lanes


def _complete(span: Span, pid: int, tid: int) -> dict[str, Any]:
    """Return a span as a complete event."""
    arguments: dict[str, Any] = {"iteration": span.iteration}
    if span.peer >= 0:
        arguments["peer"] = span.peer
    if span.nbytes:
        arguments["bytes"] = span.nbytes
    name = span.operation if span.kind != "wait" else f"wait: {span.operation}"
    start, end = _microseconds(span.start), _microseconds(span.end)
    return {
        "name": name,
        "cat": span.kind,
        "ph": "X",
        "ts": start,
        "dur": round(end - start, 3),
        "pid": pid,
        "tid": tid,
        "cname": _COLOURS[span.kind],
        "args": arguments,
    }


def _microseconds(seconds: float) -> float:
    """Return microseconds to the nanosecond, which is the viewers' resolution."""
    return round(seconds * 1e6, 3)


def _link_events(links: LinkRates | None, cut: float | None) -> Iterator[dict[str, Any]]:
    """Return the utilisation of every link that was used, in per cent, as counters of process 0."""
    if links is None:
        return
    yield _metadata("process_name", 0, 0, name="links")
    yield _metadata("process_sort_index", 0, 0, sort_index=1_000_000)
    changes = zip(links.change_time, links.change_link, links.change_rate, strict=True)
    for time, link, rate in sorted(changes, key=lambda change: change[:1]):
        if cut is not None and time >= cut:
            return
        yield {
            "name": f"{links.name[link]} (%)",
            "ph": "C",
            "ts": _microseconds(time),
            "pid": 0,
            "tid": 0,
            "args": {"utilisation": round(100 * rate / links.capacity[link], 6)},
        }
