"""The two priority queues and that of virtual clocks under CPython: ``heapq`` over lists of tuples.

They are the only functions that exist twice, here and in :mod:`simulator.engine.kernel.array_queues`. Their
order is total, so that both give the same first entry.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any


def agenda_put(agenda: Any, flows: Any, slot: int) -> None:
    """Note the time at which something is due for a flow, instead of what was noted before."""
    flow = flows[slot]
    heappush(agenda, (flow.due, flow.number, slot))
    if len(agenda) > 64 + 4 * len(flows):
        current = [
            entry
            for entry in dict.fromkeys(agenda)
            if flows[entry[2]].due == entry[0] and flows[entry[2]].number == entry[1]
        ]
        agenda[:] = current
        heapify(agenda)


def agenda_drop(agenda: Any, flows: Any, slot: int) -> None:
    """Note that nothing is due for a flow: its entries are recognised as out of date."""


def agenda_first(agenda: Any, flows: Any) -> int:
    """Return the flow for which something is due first, by time and number; -1 if there is none."""
    while agenda:
        time, number, slot = agenda[0]
        flow = flows[slot]
        if flow.due == time and flow.number == number:
            return int(slot)
        heappop(agenda)
    return -1


def queue_clear(queue: Any) -> None:
    """Empty the queue of levels."""
    queue.clear()


def queue_put(queue: Any, level: float, code: int) -> None:
    """Add a level; equal ones come by code."""
    heappush(queue, (level, code))


def queue_drop(queue: Any) -> None:
    """Take the first level away."""
    heappop(queue)


def queue_empty(queue: Any) -> bool:
    """Return whether no level is left."""
    return not queue


def queue_level(queue: Any) -> float:
    """Return the first level."""
    level: float = queue[0][0]
    return level


def queue_code(queue: Any) -> int:
    """Return the code of the first level."""
    code: int = queue[0][1]
    return code


def clock_clear(link: Any) -> None:
    """Empty the queue of a virtual clock."""
    link.root = []


def clock_put(flows: Any, link: Any, slot: int) -> None:
    """Add a flow to the queue of a virtual clock."""
    heappush(link.root, (flows[slot].target, flows[slot].number, slot))


def clock_drop(flows: Any, link: Any, slot: int) -> None:
    """Take a flow out of the queue of a virtual clock: when it has left, its entry is recognised as such."""


def clock_first(flows: Any, link: Any) -> int:
    """Return the flow of a virtual clock that ends first; -1 if none does."""
    queue = link.root
    while queue:
        target, number, slot = queue[0]
        flow = flows[slot]
        if flow.clock >= 0 and flow.target == target and flow.number == number:
            return int(slot)
        heappop(queue)
    return -1
