"""What a flow has done, its limit and rate, and which links can bind it or have to be looked at.

*Limits.* No flow is ever faster than its limit: its cap, or the least ``capacity / demand`` of its links, by
the capacity that they have without flows the other way. A link whose flows could all run at their limits, and
every link at that capacity with a single flow, cannot bind.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.queues import (
    agenda_drop,
    agenda_put,
)


def mark_dirty(s: Any, links: Any, dirty: Any, index: int) -> None:
    """Note that the rates on a link have to be solved."""
    link = links[index]
    if not link.dirty:
        link.dirty = 1
        dirty[s.dirty_count] = index
        s.dirty_count += 1


def set_limit(links: Any, hops: Any, flow: Any) -> None:
    """Find the rate that a flow can never exceed, whatever the others do."""
    limit = flow.cap
    here = flow.hop
    while here >= 0:
        hop = hops[here]
        alone = links[hop.link].full / hop.use
        if alone < limit:
            limit = alone
        here = hop.after
    flow.limit = limit


def left_now(now: float, links: Any, flow: Any) -> float:
    """Return the remaining work of an active flow (of an endless one: minus its progress)."""
    left: float = flow.left
    if flow.clock >= 0:
        left = (flow.target - service_now(now, links[flow.clock])) * flow.weight
    elif flow.rate > 0.0:
        left = flow.left - flow.rate * (now - flow.since)
    if left <= 0.0 and flow.volume < inf:
        left = 0.0
    return left


def rate_now(links: Any, flow: Any) -> float:
    """Return the rate of a flow."""
    rate: float = flow.rate
    if flow.clock >= 0:
        rate = links[flow.clock].level * flow.weight
    return rate


def moved(now: float, links: Any, flow: Any) -> float:
    """Return the progress of an active flow."""
    left = left_now(now, links, flow)
    if flow.volume < inf:
        return float(flow.volume - left)
    return -left


def set_rate(s: Any, links: Any, flows: Any, agenda: Any, slot: int, rate: float) -> None:
    """Fix the work done so far, change the rate, and put the new end on the agenda."""
    flow = flows[slot]
    now = s.now
    if flow.rate > 0.0:
        flow.left = left_now(now, links, flow)
    flow.since = now
    flow.rate = rate
    due = inf
    if rate > 0.0 and flow.volume < inf:
        due = now + flow.left / rate
    flow.due = due
    if due < inf:
        agenda_put(agenda, flows, slot)
    else:
        agenda_drop(agenda, flows, slot)


def weigh(links: Any, flows: Any, hops: Any, index: int) -> None:
    """Find out whether a link can bind: whether its flows could exceed what it has now."""
    link = links[index]
    most = 0.0
    here = link.head
    while here >= 0:
        hop = hops[here]
        most += hop.use * flows[hop.flow].limit
        here = hop.behind
    # On the safe side: a link that never binds may count as one that does.
    several = link.count > 1 or link.capacity < link.full
    link.binds = int(several and most > link.capacity * (1.0 - 1e-9))


def is_bound(links: Any, hops: Any, flow: Any, apart: int) -> bool:
    """Return whether a link of the flow can bind, apart from one of them (-1: none)."""
    here = flow.hop
    while here >= 0:
        if hops[here].link != apart and links[hops[here].link].binds:
            return True
        here = hops[here].after
    return False


def service_now(now: float, link: Any) -> float:
    """Return what the virtual clock of a link shows."""
    return float(link.service + link.level * (now - link.service_since))


def mark(s: Any, links: Any, marked: Any, index: int) -> None:
    """Note that the total rate of a link may have changed."""
    if not links[index].marked:
        links[index].marked = 1
        marked[s.marked_count] = index
        s.marked_count += 1


def mark_route(s: Any, links: Any, hops: Any, marked: Any, flow: Any) -> None:
    """Note that the total rates of a flow's links may have changed."""
    here = flow.hop
    while here >= 0:
        mark(s, links, marked, hops[here].link)
        here = hops[here].after


def mark_members(s: Any, links: Any, flows: Any, hops: Any, marked: Any, index: int) -> None:
    """Note that the rates of all flows of a link have changed."""
    here = links[index].head
    while here >= 0:
        mark_route(s, links, hops, marked, flows[hops[here].flow])
        here = hops[here].behind


def total_rate(links: Any, flows: Any, hops: Any, index: int) -> float:
    """Return what a link carries per second; the sum is compensated, so that equal loads give equal sums."""
    total = 0.0
    lost = 0.0
    here = links[index].head
    while here >= 0:
        hop = hops[here]
        part = hop.use * rate_now(links, flows[hop.flow])
        raised = total + part
        lost += (total - raised) + part if total >= part else (part - raised) + total
        total = raised
        here = hop.behind
    return total + lost
