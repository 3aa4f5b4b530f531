"""Virtual clocks, for links that alone limit many flows.

On such a link, as in an incast, a change concerns all flows. They get a common virtual clock instead, which
shows the work per weight that each has got, and an end in its time; only the first of them is on the agenda,
and a change costs what it takes to sort it in.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.flows import (
    is_bound,
    left_now,
    mark_dirty,
    mark_members,
    service_now,
    weigh,
)
from simulator.engine.kernel.queues import (
    agenda_drop,
    agenda_put,
    clock_clear,
    clock_drop,
    clock_first,
    clock_put,
)


def start_clock(s: Any, links: Any, flows: Any, hops: Any, agenda: Any, marked: Any, index: int) -> None:
    """Put the flows of a link on a virtual clock, if it alone limits all of them."""
    link = links[index]
    load = 0.0
    least = inf
    here = link.head
    while here >= 0:
        hop = hops[here]
        flow = flows[hop.flow]
        if is_bound(links, hops, flow, index):
            return
        load += hop.use * flow.weight
        if flow.limit < least * flow.weight:
            least = flow.limit / flow.weight
        here = hop.behind
    level = link.capacity / load
    if not level <= least:
        return
    link.clocked = 1
    s.clocks += 1
    link.service = 0.0
    link.service_since = s.now
    link.level = level
    link.load = load
    link.least_limit = least
    link.changes = 0
    link.leader = -1
    clock_clear(link)
    here = link.head
    while here >= 0:
        put_on_clock(s, links, flows, agenda, index, hops[here].flow)
        here = hops[here].behind
    lead(s, flows, agenda, link)
    if s.watching:
        mark_members(s, links, flows, hops, marked, index)


def put_on_clock(s: Any, links: Any, flows: Any, agenda: Any, index: int, slot: int) -> None:
    """Give a flow its place on a virtual clock that shows the present."""
    flow = flows[slot]
    flow.left = left_now(s.now, links, flow)
    flow.fresh = 0
    flow.rate = 0.0
    flow.due = inf
    agenda_drop(agenda, flows, slot)
    flow.bottleneck = index
    flow.target = links[index].service + flow.left / flow.weight
    flow.clock = index
    if flow.volume < inf:
        clock_put(flows, links[index], slot)


def wind(s: Any, link: Any) -> None:
    """Let a virtual clock show the present."""
    link.service = service_now(s.now, link)
    link.service_since = s.now


def lead(s: Any, flows: Any, agenda: Any, link: Any) -> None:
    """Put the flow that ends first on the agenda, instead of another."""
    first = clock_first(flows, link)
    if link.leader >= 0 and link.leader != first:
        flows[link.leader].due = inf
        agenda_drop(agenda, flows, link.leader)
    link.leader = first
    if first >= 0:
        flow = flows[first]
        ahead = flow.target - link.service
        due = s.now + (ahead / link.level if ahead > 0.0 else 0.0)
        if due != flow.due:
            flow.due = due
            agenda_put(agenda, flows, first)


def turn_clock(
    s: Any, links: Any, flows: Any, hops: Any, agenda: Any, dirty: Any, marked: Any, index: int
) -> None:
    """Bring the virtual clocks in order that a dirty link concerns.

    A link that binds stops the other clocks of its flows. A clock takes on the flows that are new, at the end
    of its link's list; it stops if something else may bind one of its flows.
    """
    link = links[index]
    if not link.clocked:
        if link.binds:
            here = link.head
            while here >= 0:
                clock = flows[hops[here].flow].clock
                if clock >= 0:
                    stop_clock(s, links, flows, hops, agenda, clock)
                    mark_dirty(s, links, dirty, clock)
                here = hops[here].behind
        return
    wind(s, link)
    goes_on = 2 * link.count >= s.clock_from
    here = link.tail
    while goes_on and here >= 0 and flows[hops[here].flow].clock < 0:
        flow = flows[hops[here].flow]
        if is_bound(links, hops, flow, index):
            goes_on = False
        link.load += hops[here].use * flow.weight
        link.changes += 1
        if flow.limit < link.least_limit * flow.weight:
            link.least_limit = flow.limit / flow.weight
        here = hops[here].ahead
    if goes_on and link.changes > link.count:
        link.changes = 0
        link.load = 0.0
        before = link.head
        while before >= 0:
            link.load += hops[before].use * flows[hops[before].flow].weight
            before = hops[before].behind
    if goes_on and link.capacity / link.load <= link.least_limit:
        # From the oldest of the new flows on, so that they come in their order.
        here = link.head if here < 0 else hops[here].behind
        while here >= 0:
            put_on_clock(s, links, flows, agenda, index, hops[here].flow)
            here = hops[here].behind
        link.level = link.capacity / link.load
        lead(s, flows, agenda, link)
        if s.watching:
            mark_members(s, links, flows, hops, marked, index)
    else:
        stop_clock(s, links, flows, hops, agenda, index)


def stop_clock(s: Any, links: Any, flows: Any, hops: Any, agenda: Any, index: int) -> None:
    """Take all flows off a virtual clock; they wait for a rate like new ones."""
    here = links[index].head
    while here >= 0:
        slot = hops[here].flow
        flow = flows[slot]
        if flow.clock == index:
            flow.left = left_now(s.now, links, flow)
            flow.since = s.now
            flow.rate = 0.0
            flow.due = inf
            agenda_drop(agenda, flows, slot)
            flow.clock = -1
            flow.fresh = 1
        here = hops[here].behind
    links[index].clocked = 0
    s.clocks -= 1
    weigh(links, flows, hops, index)


def leave_clock(s: Any, links: Any, flows: Any, slot: int) -> None:
    """Take a flow that ends or is cancelled off its virtual clock; its load is still to be taken off."""
    flow = flows[slot]
    link = links[flow.clock]
    wind(s, link)
    if flow.volume < inf:
        clock_drop(flows, link, slot)
    if link.leader == slot:
        link.leader = -1
    flow.clock = -1


def follow(s: Any, flows: Any, agenda: Any, link: Any) -> None:
    """After an end on a virtual clock, let the next flow end now too if its target is the same."""
    first = clock_first(flows, link)
    if first >= 0 and flows[first].target <= link.service:
        link.leader = first
        flows[first].due = s.now
        agenda_put(agenda, flows, first)
