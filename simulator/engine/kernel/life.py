"""The life of a flow: its slot, its start, its coming on its links and its leaving; other capacities."""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.clocks import (
    leave_clock,
    stop_clock,
)
from simulator.engine.kernel.flows import (
    mark_dirty,
    moved,
    set_limit,
    set_rate,
)
from simulator.engine.kernel.queues import (
    agenda_drop,
    agenda_put,
)
from simulator.engine.kernel.records import (
    AGENDA,
    DIRTY,
    FLOWS,
    HOPS,
    LEGS,
    LINKS,
    STATES,
    views,
)


def make_free(table: Any, flow: int, flows_end: int, hop: int, hops_end: int) -> None:
    """Add new slots and new hops, from the first up to the end, to the free ones."""
    all_views = views(table)
    state = all_views[STATES]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    s = state[0]
    for slot in range(flows_end - 1, flow - 1, -1):
        flows[slot].number = -1
        flows[slot].sibling = s.free_flow
        s.free_flow = slot
    for index in range(hops_end - 1, hop - 1, -1):
        hops[index].after = s.free_hop
        s.free_hop = index
    s.flows_left += flows_end - flow
    s.hops_left += hops_end - hop


def set_leg(table: Any, place: int, link: int, use: float) -> None:
    """Write down a leg of a path."""
    all_views = views(table)
    legs = all_views[LEGS]
    legs[place].link = link
    legs[place].use = use


def start(
    table: Any, now: float, first: int, legs_count: int, size: float, weight: float, cap: float, begin: float
) -> int:
    """Start a flow over `legs_count` legs from `first` on; return its slot, or -1 without room."""
    s = views(table)[STATES][0]
    if s.flows_left <= s.flows_kept or s.hops_left < s.hops_kept + legs_count:
        return -1
    s.now = now
    number = s.numbers
    s.numbers += 1
    return admit(table, number, first, legs_count, size, weight, cap, begin)


def admit(
    table: Any,
    number: int,
    first: int,
    legs_count: int,
    size: float,
    weight: float,
    cap: float,
    begin: float,
) -> int:
    """Take a free slot, and hops, for a flow."""
    all_views = views(table)
    s = all_views[STATES][0]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    legs = all_views[LEGS]
    s.flows_left -= 1
    s.hops_left -= legs_count
    slot: int = s.free_flow
    flow = flows[slot]
    s.free_flow = flow.sibling
    flow.number = number
    flow.weight = weight
    flow.cap = cap
    flow.volume = size
    if size < inf:
        flow.left = size
        s.live += 1
    else:
        flow.left = 0.0
    flow.rate = 0.0
    flow.active = 0
    flow.bottleneck = -1
    flow.clock = -1
    flow.collective = -1
    flow.hop = -1
    for leg in range(first + legs_count - 1, first - 1, -1):
        index = s.free_hop
        hop = hops[index]
        s.free_hop = hop.after
        hop.use = legs[leg].use
        hop.link = legs[leg].link
        hop.flow = slot
        hop.after = flow.hop
        flow.hop = index
    if begin > s.now or size == 0.0 or (legs_count == 0 and cap == inf):
        flow.due = begin
        agenda_put(all_views[AGENDA], flows, slot)
    else:
        activate(s, all_views[LINKS], flows, hops, all_views[AGENDA], all_views[DIRTY], slot)
    return slot


def activate(s: Any, links: Any, flows: Any, hops: Any, agenda: Any, dirty: Any, slot: int) -> None:
    """Let a flow that has paid its latency compete for its links."""
    flow = flows[slot]
    flow.active = 1
    flow.fresh = 1
    flow.since = s.now
    flow.due = inf
    s.running += 1
    set_limit(links, hops, flow)
    here = flow.hop
    while here >= 0:
        hop = hops[here]
        link = links[hop.link]
        hop.ahead = link.tail
        hop.behind = -1
        if link.tail >= 0:
            hops[link.tail].behind = here
        else:
            link.head = here
        link.tail = here
        link.count += 1
        if link.reserved:
            link.intruded = 1
            s.intruded = 1
        mark_dirty(s, links, dirty, hop.link)
        here = hop.after
    if flow.hop < 0:
        flow.fresh = 0
        set_rate(s, links, flows, agenda, slot, flow.limit)


def release(s: Any, links: Any, flows: Any, hops: Any, agenda: Any, dirty: Any, slot: int) -> None:
    """Take a flow off its links and free its slot."""
    flow = flows[slot]
    progress = 0.0
    clock = flow.clock
    if flow.active:
        progress = moved(s.now, links, flow)
        if clock >= 0:
            leave_clock(s, links, flows, slot)
        s.running -= 1
    here = flow.hop
    while here >= 0:
        hop = hops[here]
        if flow.active:
            link = links[hop.link]
            link.carried += hop.use * progress
            if hop.link == clock:
                link.load -= hop.use * flow.weight
                link.changes += 1
            if hop.ahead >= 0:
                hops[hop.ahead].behind = hop.behind
            else:
                link.head = hop.behind
            if hop.behind >= 0:
                hops[hop.behind].ahead = hop.ahead
            else:
                link.tail = hop.ahead
            link.count -= 1
            mark_dirty(s, links, dirty, hop.link)
        after = hop.after
        hop.after = s.free_hop
        s.free_hop = here
        s.hops_left += 1
        if flow.collective >= 0:
            s.hops_kept += 1
        here = after
    if flow.volume < inf:
        s.live -= 1
    flow.active = 0
    flow.number = -1
    flow.due = inf
    agenda_drop(agenda, flows, slot)
    flow.sibling = s.free_flow
    s.free_flow = slot
    s.flows_left += 1
    if flow.collective >= 0:
        s.flows_kept += 1


def cancel(table: Any, now: float, slot: int) -> None:
    """End a flow without completion."""
    all_views = views(table)
    state = all_views[STATES]
    links = all_views[LINKS]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    agenda = all_views[AGENDA]
    dirty = all_views[DIRTY]
    s = state[0]
    s.now = now
    release(s, links, flows, hops, agenda, dirty, slot)


def change_capacity(table: Any, now: float, index: int, capacity: float) -> None:
    """Give a link another capacity; all its flows are solved anew."""
    all_views = views(table)
    state = all_views[STATES]
    links = all_views[LINKS]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    agenda = all_views[AGENDA]
    dirty = all_views[DIRTY]
    s = state[0]
    s.now = now
    here = links[index].head
    while here >= 0:
        clock = flows[hops[here].flow].clock
        if clock >= 0:
            stop_clock(s, links, flows, hops, agenda, clock)
            mark_dirty(s, links, dirty, clock)
        here = hops[here].behind
    if links[index].reserved:
        links[index].intruded = 1
        s.intruded = 1
        mark_dirty(s, links, dirty, index)
    links[index].capacity = capacity
    links[index].full = capacity
    here = links[index].head
    while here >= 0:
        flow = flows[hops[here].flow]
        flow.fresh = 1
        before = flow.limit
        set_limit(links, hops, flow)
        mark_dirty(s, links, dirty, index)
        if flow.limit != before:
            # Other links of the flow may come to bind, or cease to.
            there = flow.hop
            while there >= 0:
                mark_dirty(s, links, dirty, hops[there].link)
                there = hops[there].after
        here = hops[here].behind
