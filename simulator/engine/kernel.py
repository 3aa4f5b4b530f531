"""The one source of the network core: plain functions over indexable containers of records.

CPython runs these functions as they stand, over lists of small objects. Where numba is used they are compiled
as they stand, over arrays of records (:mod:`simulator.engine.storage`). Both do the same operations on
doubles in the same order, so that results are equal to the last bit. Only the two priority queues exist
twice: as ``heapq`` for CPython, and at the end of this module as binary heaps in an array. Their order is
total, so that both give the same first entry.

How rates are solved
--------------------
*Limits.* No flow is ever faster than its limit: its cap, or the least ``capacity / demand`` of its links. A
link whose flows could all run at their limits, and every link with a single flow, cannot bind; it is left
out. A flow without a binding link runs at its limit.

*Seeds.* When a link is dirty, the flows that have it as their bottleneck and those that are new are free.

*Virtual clocks.* On a link that alone limits many flows, as in an incast, a change concerns all of them.
They get a common virtual clock instead, which shows the work per weight that each has got, and an end in its
time; only the first of them is on the agenda, and a change costs what it takes to sort it in.

*Local repair.* The free flows are filled (progressive filling), against the rates of the others. Then the
links that they touch are checked: a flow on whose bottleneck somebody is faster, or whose bottleneck is not
full, is freed, as is the one that is faster; and so on until nothing is found. What is left satisfies the
conditions that make an allocation max-min fair, and these have one solution. A link on which the flows that
are not free leave less than nothing offers a share of zero, which the check then finds: leaving that out
gives rates that are wrong without a sign. If the repair goes on for long, or spreads over half of all flows,
then all flows are freed that binding links connect to the free ones, and that component is filled.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Any

import numpy as np

__all__ = ["FLOW", "HOP", "LEG", "LEVEL", "LINK", "LOG", "STATE"]

TOLERANCE = 1e-11
"""How far, relatively, a check of fairness may be off: far above rounding, far below what is tested."""

FEW = 16
"""So few flows are never too many for local repair."""


def cache_lines(fields: list[tuple[str, str]]) -> np.dtype[Any]:
    """Return a record that fills whole cache lines of 64 bytes."""
    packed = np.dtype(fields, align=True)
    names = list(packed.names or ())
    layout: Any = {
        "names": names,
        "formats": [packed[name] for name in names],
        "offsets": [packed.fields[name][1] for name in names],  # type: ignore[index]  # it has fields
        "itemsize": -(-packed.itemsize // 64) * 64,
    }
    filled: np.dtype[Any] = np.dtype(layout, align=True)
    return filled


STATE = np.dtype(
    [
        ("now", "f8"),
        ("live", "i8"),  # flows of finite size
        ("running", "i8"),  # flows that compete for links
        ("numbers", "i8"),  # the next flow's number
        ("solves", "i8"),
        ("stamp", "i8"),
        ("clocks", "i8"),  # virtual clocks that run
        ("rounds", "i8"),  # of local repair, before a component is solved as a whole
        ("max_plus", "i8"),  # whether collectives may take the short way
        ("intruded", "i8"),  # whether a flow has come on a link that one of them has reserved
        ("clock_from", "i8"),  # flows from which on a link gets a virtual clock if it alone limits them
        ("watching", "i8"),
        ("flows_left", "i8"),  # free slots, and free hops
        ("hops_left", "i8"),
        ("flows_kept", "i8"),  # those of the free ones that are kept for collectives
        ("hops_kept", "i8"),
        ("inner_numbers", "i8"),
        ("free_flow", "i4"),  # the first of each
        ("free_hop", "i4"),
        ("dirty_count", "i4"),
        ("touched_count", "i4"),
        ("free_count", "i4"),
        ("marked_count", "i4"),
        ("log_count", "i4"),
        ("log_size", "i4"),
        ("links", "i4"),
        ("collectives", "i4"),
    ],
    align=True,
)
LINK = cache_lines(
    [
        # What the solver asks for comes first, so that it lies close together.
        ("capacity", "f8"),
        ("residual", "f8"),  # working space of the solver, as the two below
        ("load", "f8"),
        ("fresh", "f8"),
        ("stamp", "i8"),
        ("head", "i4"),  # the first and the last hop of the flows on this link, in the order of their coming
        ("tail", "i4"),
        ("count", "i4"),
        ("pending", "i4"),
        ("binds", "i1"),
        ("clocked", "i1"),
        ("dirty", "i1"),
        ("changed", "i1"),
        ("marked", "i1"),
        ("watched", "i1"),
        ("intruded", "i1"),
        ("carried", "f8"),  # by flows that have left
        ("unwritten", "f8"),  # what it has carried for a part on the short way, to be written into the log
        ("reserved", "i4"),  # by how many transfers of collectives that take the short way
        ("reserver", "i4"),  # their pattern
        ("service", "f8"),  # the virtual clock: work per weight that each flow has got, at the time below
        ("service_since", "f8"),
        ("level", "f8"),  # how fast the virtual clock runs
        ("least_limit", "f8"),  # no flow on the virtual clock has a smaller limit per weight
        ("changes", "i4"),  # of the virtual clock's flows since its load was summed
        ("leader", "i4"),  # the flow on the agenda
        ("root", "i4"),  # of the queue of flows by target
    ]
)
FLOW = cache_lines(
    [
        # As with links, what the solver asks for comes first, and then what the agenda does.
        ("rate", "f8"),
        ("offer", "f8"),
        ("weight", "f8"),
        ("limit", "f8"),
        ("hop", "i4"),  # the first of its hops
        ("bottleneck", "i4"),  # -1 at its limit
        ("clock", "i4"),  # the link that is its virtual clock, or -1
        ("active", "i1"),
        ("fresh", "i1"),
        ("free", "i1"),
        ("pending", "i1"),  # 1 waits for a rate, 2 has an offer
        ("due", "f8"),
        ("number", "i8"),  # -1 in a free slot
        ("left", "f8"),  # at the time `since`; an endless flow counts downward from zero
        ("since", "f8"),
        ("volume", "f8"),  # what is to be done; inf for background traffic
        ("place", "i4"),  # in the agenda
        ("collective", "i4"),  # that it belongs to, or -1, and its transfer
        ("transfer", "i4"),
        ("child", "i4"),  # in the queue by target
        ("sibling", "i4"),  # likewise; in a free slot, the next free one
        ("elder", "i4"),
        ("cap", "f8"),
        ("target", "f8"),  # the service at which it ends, on a virtual clock
    ]
)
HOP = np.dtype(
    [
        ("use", "f8"),
        ("link", "i4"),
        ("flow", "i4"),
        ("after", "i4"),  # the next hop of the flow
        ("ahead", "i4"),  # the neighbours on the link
        ("behind", "i4"),
    ],
    align=True,
)
LEG = np.dtype([("use", "f8"), ("link", "i4")], align=True)
LEVEL = np.dtype([("level", "f8"), ("code", "i8")], align=True)
LOG = np.dtype([("time", "f8"), ("total", "f8"), ("link", "i8")], align=True)


PATTERN = np.dtype(
    [
        ("ranks", "i4"),
        ("phase", "i4"),  # the first of its phases, and their number
        ("phases", "i4"),
        ("transfer", "i4"),  # the first of its transfers, and their number
        ("transfers", "i4"),
        ("head", "i4"),  # where its heads begin
        ("busy", "i4"),  # where its counts of parts on the short way begin, one for each rank
        ("uncontended", "i1"),  # whether its transfers never share a link
    ],
    align=True,
)
PHASE = np.dtype([("repeat", "i4"), ("transfer", "i4"), ("transfers", "i4")], align=True)
TRANSFER = np.dtype(
    [
        ("pays", "f8"),  # working space of the short way: its latency, and its time if it is alone
        ("takes", "f8"),
        ("source", "i4"),
        ("destination", "i4"),
        ("fraction", "f8"),  # of the message
        ("latency", "f8"),  # of its path
        ("weight", "f8"),
        ("limit", "f8"),  # its rate if it is alone on its links
        ("phase", "i4"),  # of its pattern
        ("leg", "i4"),
        ("legs", "i4"),
        ("after_out", "i4"),  # the next of the same source in the phase, and of the same destination
        ("after_in", "i4"),
    ],
    align=True,
)
COLLECTIVE = np.dtype(
    [
        ("nbytes", "f8"),  # the message, and what its transport makes of it
        ("payload_share", "f8"),
        ("segment_size", "f8"),
        ("least_segments", "f8"),
        ("latency_factor", "f8"),
        ("pattern", "i4"),
        ("part", "i4"),  # where its parts begin, one for each rank
        ("arrived", "i4"),  # where its counts of arrived messages begin, one for each transfer
        ("missing", "i4"),  # ranks that have not entered
        ("left", "i4"),  # ranks whose part has not ended
        ("way", "i1"),  # 0 not chosen yet, 1 flow by flow, 2 the short way
    ],
    align=True,
)
PART = np.dtype(
    [
        ("begins", "f8"),  # working space: when it enters a round, and the next one
        ("ends", "f8"),
        ("entered", "f8"),
        ("phase", "i4"),
        ("turn", "i4"),
        ("open", "i4"),
        ("slot", "i4"),  # of the end on the agenda, on the short way; or -1
        ("over", "i1"),
    ],
    align=True,
)

# Where the containers stand in a table.
(
    STATES,
    LINKS,
    FLOWS,
    HOPS,
    LEGS,
    AGENDA,
    QUEUE,
    DIRTY,
    TOUCHED,
    FREE,
    SATURATED,
    FIXED,
    MARKED,
    DONE,
    LOGS,
    PATTERNS,
    PHASES,
    TRANSFERS,
    HEADS,
    COLLECTIVES,
    PARTS,
    ARRIVED,
) = range(22)

LOG_ROOM = 3
"""Entries of the log that one instant can take for each link, at each of its solves and ends of parts."""

FIRST_INNER = 2**40
"""The number of the first flow of a collective; at one instant these end after the others."""

RANKS = 2**24
"""A part that ends is reported as -1 - (collective * RANKS + rank)."""


def views(table: Any) -> Any:
    """Return the containers behind a table."""
    return table


# ---------------------------------------------------------------------------------------- room for new flows


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


# ------------------------------------------------------------------------------------ the life of one flow


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
    if begin > s.now or size == 0.0 or legs_count == 0:
        flow.due = begin
        agenda_put(all_views[AGENDA], flows, slot)
    else:
        activate(s, all_views[LINKS], flows, hops, all_views[AGENDA], all_views[DIRTY], slot)
    return slot


def mark_dirty(s: Any, links: Any, dirty: Any, index: int) -> None:
    """Note that the rates on a link have to be solved."""
    link = links[index]
    if not link.dirty:
        link.dirty = 1
        dirty[s.dirty_count] = index
        s.dirty_count += 1


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


def set_limit(links: Any, hops: Any, flow: Any) -> None:
    """Find the rate that a flow can never exceed, whatever the others do."""
    limit = flow.cap
    here = flow.hop
    while here >= 0:
        hop = hops[here]
        alone = links[hop.link].capacity / hop.use
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


# -------------------------------------------------------------------------------------------------- time


def advance(table: Any, now: float, limit: float) -> tuple[int, int, float, float, bool]:
    """Let time pass to the next completions, or to the limit.

    Returns the number of completions (their numbers are in `done`; -1 asks to empty the log and to call
    again), the first of them, the time, the first time on the agenda, and whether rates may change before.
    """
    all_views = views(table)
    state = all_views[STATES]
    links = all_views[LINKS]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    agenda = all_views[AGENDA]
    dirty = all_views[DIRTY]
    done = all_views[DONE]
    s = state[0]
    s.now = now
    while True:
        slot = agenda_first(agenda, flows)
        time = flows[slot].due if slot >= 0 else inf
        # What is due at this very instant comes before the solve, since it may change more.
        if s.dirty_count and time > s.now and limit > s.now:
            if s.watching and s.log_count + LOG_ROOM * s.links > s.log_size:
                return -1, -1, s.now, time, True
            settle(table)
            slot = agenda_first(agenda, flows)
            time = flows[slot].due if slot >= 0 else inf
        if time > limit or time == inf:
            if limit < inf:
                s.now = limit
            return 0, -1, s.now, time, s.dirty_count > 0
        if s.watching and s.log_count + LOG_ROOM * s.links > s.log_size:
            return -1, -1, s.now, time, True
        s.now = time
        count = 0
        while slot >= 0 and flows[slot].due == time:
            flow = flows[slot]
            if flow.active or flow.volume == 0.0 or (flow.hop < 0 and flow.cap == inf):
                clock = flow.clock
                if clock >= 0:
                    links[clock].service = flow.target
                    links[clock].service_since = time
                flow.left = 0.0
                flow.rate = 0.0
                collective = flow.collective
                if collective < 0:
                    done[count] = flow.number
                    count += 1
                release(s, links, flows, hops, agenda, dirty, slot)
                if clock >= 0:
                    follow(s, flows, agenda, links[clock])
                if collective >= 0 and flow.transfer < 0:
                    rank = -1 - flow.transfer
                    end_part(table, collective, rank)
                    done[count] = -1 - (collective * RANKS + rank)
                    count += 1
                elif collective >= 0:
                    count = end_transfer(table, collective, flow.transfer, count)
            else:
                agenda_drop(agenda, flows, slot)
                activate(s, links, flows, hops, agenda, dirty, slot)
            slot = agenda_first(agenda, flows)
        if count:
            first = flows[slot].due if slot >= 0 else inf
            return count, done[0], time, first, s.dirty_count > 0


def settle_now(table: Any, now: float) -> float:
    """Solve what is dirty; return the first time on the agenda."""
    all_views = views(table)
    state = all_views[STATES]
    flows = all_views[FLOWS]
    agenda = all_views[AGENDA]
    s = state[0]
    s.now = now
    if s.dirty_count:
        settle(table)
    slot = agenda_first(agenda, flows)
    time: float = flows[slot].due if slot >= 0 else inf
    return time


# ------------------------------------------------------------------------------------------- collectives


def open_collective(table: Any, index: int, flows: int, hops: int) -> None:
    """Let a collective begin: nobody has entered it; so many flows and hops are kept for it."""
    all_views = views(table)
    s = all_views[STATES][0]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    parts = all_views[PARTS]
    arrived = all_views[ARRIVED]
    s.flows_kept += flows
    s.hops_kept += hops
    collective.way = 0
    collective.missing = pattern.ranks
    collective.left = pattern.ranks
    for place in range(collective.part, collective.part + pattern.ranks):
        parts[place].entered = inf
        parts[place].phase = 0
        parts[place].turn = -1
        parts[place].open = 0
        parts[place].slot = -1
        parts[place].over = 0
    for place in range(collective.arrived, collective.arrived + pattern.transfers):
        arrived[place] = 0


def cancel_collective(table: Any, now: float, index: int, slots: int) -> None:
    """End a collective without completion: release its flows, which lie in the first so many slots."""
    all_views = views(table)
    s = all_views[STATES][0]
    flows = all_views[FLOWS]
    collective = all_views[COLLECTIVES][index]
    s.now = now
    if collective.way == 2 and collective.left > 0:
        demote(table, index)
        unreserve(table, index)
    for slot in range(slots):
        if flows[slot].number >= 0 and flows[slot].collective == index:
            release(
                s,
                all_views[LINKS],
                flows,
                all_views[HOPS],
                all_views[AGENDA],
                all_views[DIRTY],
                slot,
            )
    collective.way = 0
    collective.left = 0


def close_collective(table: Any, flows: int, hops: int) -> None:
    """Give back what was kept for a collective."""
    s = views(table)[STATES][0]
    s.flows_kept -= flows
    s.hops_kept -= hops


def enter(table: Any, now: float, index: int, rank: int) -> bool:
    """Let a rank begin its part of a collective; return whether that is its end already."""
    all_views = views(table)
    s = all_views[STATES][0]
    s.now = now
    collective = all_views[COLLECTIVES][index]
    all_views[PARTS][collective.part + rank].entered = now
    collective.missing -= 1
    if collective.way == 0:
        collective.way = 1
        if s.max_plus and reserve(table, index):
            collective.way = 2
    if collective.way == 1:
        return go_on(table, index, rank)
    busy = all_views[PATTERNS][collective.pattern].busy + rank
    all_views[HEADS][busy] += 1
    if all_views[HEADS][busy] > 1:
        disturb(table, index, rank)
    if collective.missing == 0:
        foresee(table, index)
    return False


def go_on(table: Any, index: int, rank: int) -> bool:
    """Let a rank enter its next round, and those after it that it need not wait in; return if it ends."""
    all_views = views(table)
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    part = all_views[PARTS][collective.part + rank]
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    heads = all_views[HEADS]
    arrived = all_views[ARRIVED]
    while True:
        part.turn += 1
        while part.phase < pattern.phases and part.turn == phases[pattern.phase + part.phase].repeat:
            part.phase += 1
            part.turn = 0
        if part.phase == pattern.phases:
            collective.left -= 1
            return True
        head = pattern.head + 2 * (part.phase * pattern.ranks + rank)
        waits_for = 0
        incoming = heads[head + 1]
        while incoming >= 0:
            if arrived[collective.arrived + incoming - pattern.transfer] <= part.turn:
                waits_for += 1
            incoming = transfers[incoming].after_in
        outgoing = heads[head]
        while outgoing >= 0:
            waits_for += 1
            start_transfer(table, index, outgoing)
            outgoing = transfers[outgoing].after_out
        part.open = waits_for
        if waits_for:
            return False


def start_transfer(table: Any, index: int, place: int) -> None:
    """Start a transfer of a collective as a flow."""
    all_views = views(table)
    s = all_views[STATES][0]
    transfer = all_views[TRANSFERS][place]
    collective = all_views[COLLECTIVES][index]
    begin = s.now + transfer_latency(transfer, collective)
    number = FIRST_INNER + s.inner_numbers
    s.inner_numbers += 1
    s.flows_kept -= 1
    s.hops_kept -= transfer.legs
    size = transfer_size(transfer, collective)
    slot = admit(table, number, transfer.leg, transfer.legs, size, transfer.weight, inf, begin)
    flow = all_views[FLOWS][slot]
    flow.collective = index
    flow.transfer = place


def end_transfer(table: Any, index: int, place: int, count: int) -> int:
    """Count a message that has arrived, for the receiver and then for the sender; report parts that end."""
    all_views = views(table)
    transfer = all_views[TRANSFERS][place]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    arrived = all_views[ARRIVED]
    parts = all_views[PARTS]
    done = all_views[DONE]
    counter = collective.arrived + place - pattern.transfer
    arrived[counter] += 1
    part = parts[collective.part + transfer.destination]
    if part.phase == transfer.phase and arrived[counter] == part.turn + 1:
        part.open -= 1
        if part.open == 0 and go_on(table, index, transfer.destination):
            done[count] = -1 - (index * RANKS + transfer.destination)
            count += 1
    part = parts[collective.part + transfer.source]
    part.open -= 1
    if part.open == 0 and go_on(table, index, transfer.source):
        done[count] = -1 - (index * RANKS + transfer.source)
        count += 1
    return count


# ------------------------------------------------------------------- collectives that nothing else disturbs


def reserve(table: Any, index: int) -> bool:
    """Reserve the links of a collective; return False, and change nothing, if something else is on them."""
    all_views = views(table)
    links = all_views[LINKS]
    legs = all_views[LEGS]
    transfers = all_views[TRANSFERS]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    if not pattern.uncontended:
        return False
    for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
        transfer = transfers[place]
        limit = inf
        for leg in range(transfer.leg, transfer.leg + transfer.legs):
            link = links[legs[leg].link]
            if link.count or link.intruded or link.capacity == 0.0:
                return False
            if link.reserved and link.reserver != collective.pattern:
                return False
            alone = link.capacity / legs[leg].use
            if alone < limit:
                limit = alone
        transfer.limit = limit
    for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
        transfer = transfers[place]
        for leg in range(transfer.leg, transfer.leg + transfer.legs):
            link = links[legs[leg].link]
            link.reserved += 1
            link.reserver = collective.pattern
    return True


def unreserve(table: Any, index: int) -> None:
    """Give the links of a collective back."""
    all_views = views(table)
    links = all_views[LINKS]
    legs = all_views[LEGS]
    transfers = all_views[TRANSFERS]
    pattern = all_views[PATTERNS][all_views[COLLECTIVES][index].pattern]
    for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
        transfer = transfers[place]
        for leg in range(transfer.leg, transfer.leg + transfer.legs):
            link = links[legs[leg].link]
            link.reserved -= 1
            if link.reserved == 0:
                link.intruded = 0


def disturb(table: Any, index: int, rank: int) -> None:
    """Let the short way end where a rank's links serve two of its parts at once."""
    all_views = views(table)
    s = all_views[STATES][0]
    links = all_views[LINKS]
    legs = all_views[LEGS]
    transfers = all_views[TRANSFERS]
    pattern = all_views[PATTERNS][all_views[COLLECTIVES][index].pattern]
    for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
        transfer = transfers[place]
        if transfer.source == rank:
            for leg in range(transfer.leg, transfer.leg + transfer.legs):
                links[legs[leg].link].intruded = 1
                s.intruded = 1
                mark_dirty(s, links, all_views[DIRTY], legs[leg].link)


def transfer_latency(transfer: Any, collective: Any) -> float:
    """Return how long a transfer waits before it takes bandwidth."""
    nbytes = transfer.fraction * collective.nbytes
    segments = collective.least_segments
    if nbytes > segments * collective.segment_size:
        segments = float(ceil(nbytes / collective.segment_size))
    return float(segments * collective.latency_factor * transfer.latency)


def transfer_size(transfer: Any, collective: Any) -> float:
    """Return what a transfer moves."""
    return float(transfer.fraction * collective.nbytes / collective.payload_share)


def foresee(table: Any, index: int) -> None:
    """Put the ends of all parts on the agenda, as all ranks have entered.

    A rank enters a round when its transfers of the one before have ended, and none of them shares a link: a
    recurrence of maxima and sums, in the same operations as flow by flow.
    """
    all_views = views(table)
    s = all_views[STATES][0]
    phases = all_views[PHASES]
    parts = all_views[PARTS]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    first = collective.part
    rewind(table, index)
    for phase in range(pattern.phase, pattern.phase + pattern.phases):
        for _ in range(phases[phase].repeat):
            foresee_round(table, index, phase)
            for place in range(first, first + pattern.ranks):
                parts[place].begins = parts[place].ends
    for place in range(first, first + pattern.ranks):
        s.flows_kept -= 1
        number = FIRST_INNER + s.inner_numbers
        s.inner_numbers += 1
        slot = admit(table, number, 0, 0, 0.0, 1.0, inf, parts[place].begins)
        flow = all_views[FLOWS][slot]
        flow.collective = index
        flow.transfer = -1 - (place - first)
        parts[place].slot = slot


def foresee_round(table: Any, index: int, phase: int) -> None:
    """Find when each rank ends a round, from when it enters it, which its end still shows."""
    all_views = views(table)
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    parts = all_views[PARTS]
    first = all_views[COLLECTIVES][index].part
    for place in range(phases[phase].transfer, phases[phase].transfer + phases[phase].transfers):
        transfer = transfers[place]
        sender = parts[first + transfer.source]
        receiver = parts[first + transfer.destination]
        end = sender.begins + transfer.pays + transfer.takes
        if end > sender.ends:
            sender.ends = end
        if end > receiver.ends:
            receiver.ends = end


def end_part(table: Any, index: int, rank: int) -> None:
    """End a rank's part on the short way: note what it has sent, and give the links back after the last."""
    all_views = views(table)
    s = all_views[STATES][0]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    phases = all_views[PHASES]
    heads = all_views[HEADS]
    transfers = all_views[TRANSFERS]
    part = all_views[PARTS][collective.part + rank]
    part.slot = -1
    part.over = 1
    heads[pattern.busy + rank] -= 1
    for phase in range(pattern.phases):
        place = heads[pattern.head + 2 * (phase * pattern.ranks + rank)]
        while place >= 0:
            size = transfer_size(transfers[place], collective)
            carry(table, transfers[place], size * phases[pattern.phase + phase].repeat)
            place = transfers[place].after_out
    if s.watching:
        for phase in range(pattern.phases):
            place = heads[pattern.head + 2 * (phase * pattern.ranks + rank)]
            while place >= 0:
                write_mean(table, transfers[place], part.entered)
                place = transfers[place].after_out
    collective.left -= 1
    if collective.left == 0:
        unreserve(table, index)


def carry(table: Any, transfer: Any, size: float) -> None:
    """Note that the links of a transfer have carried something."""
    all_views = views(table)
    links = all_views[LINKS]
    legs = all_views[LEGS]
    for leg in range(transfer.leg, transfer.leg + transfer.legs):
        links[legs[leg].link].carried += legs[leg].use * size
    write_later(table, transfer, size)


def write_later(table: Any, transfer: Any, size: float) -> None:
    """Keep what the links of a transfer have carried, until it is written down."""
    all_views = views(table)
    links = all_views[LINKS]
    legs = all_views[LEGS]
    if all_views[STATES][0].watching:
        for leg in range(transfer.leg, transfer.leg + transfer.legs):
            links[legs[leg].link].unwritten += legs[leg].use * size


def write_mean(table: Any, transfer: Any, since: float) -> None:
    """Write down the mean load, since a part began, of the watched links that a transfer of it uses."""
    all_views = views(table)
    s = all_views[STATES][0]
    links = all_views[LINKS]
    legs = all_views[LEGS]
    log = all_views[LOGS]
    for leg in range(transfer.leg, transfer.leg + transfer.legs):
        index = legs[leg].link
        link = links[index]
        if link.watched and link.unwritten > 0.0 and s.now > since:
            entry = log[s.log_count]
            entry.time = since
            entry.link = index
            entry.total = link.unwritten / (s.now - since)
            entry = log[s.log_count + 1]
            entry.time = s.now
            entry.link = index
            entry.total = 0.0
            s.log_count += 2
        link.unwritten = 0.0


def give_way(table: Any) -> None:
    """Let the collectives on whose links a flow has come, or whose capacity has changed, go on as flows."""
    all_views = views(table)
    s = all_views[STATES][0]
    links = all_views[LINKS]
    legs = all_views[LEGS]
    transfers = all_views[TRANSFERS]
    patterns = all_views[PATTERNS]
    collectives = all_views[COLLECTIVES]
    s.intruded = 0
    for index in range(s.collectives):
        collective = collectives[index]
        if collective.way == 2 and collective.left > 0:
            pattern = patterns[collective.pattern]
            intruded = False
            for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
                for leg in range(transfers[place].leg, transfers[place].leg + transfers[place].legs):
                    if links[legs[leg].link].intruded:
                        intruded = True
            if intruded:
                demote(table, index)
    s.intruded = 0
    for index in range(s.collectives):
        if collectives[index].way == 3:
            collectives[index].way = 1
            unreserve(table, index)


def demote(table: Any, index: int) -> None:
    """Turn a collective on the short way into what it would be now, flow by flow."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    phases = all_views[PHASES]
    heads = all_views[HEADS]
    transfers = all_views[TRANSFERS]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    first = collective.part
    collective.way = 3
    for place in range(first, first + pattern.ranks):
        part = parts[place]
        if part.slot >= 0:
            release(
                s,
                all_views[LINKS],
                all_views[FLOWS],
                all_views[HOPS],
                all_views[AGENDA],
                all_views[DIRTY],
                part.slot,
            )
            part.slot = -1
        if part.entered <= s.now and not part.over:
            heads[pattern.busy + place - first] -= 1
    under_way = rewind(table, index)
    for phase in range(pattern.phases):
        for turn in range(phases[pattern.phase + phase].repeat):
            if under_way:
                foresee_round(table, index, pattern.phase + phase)
                demote_round(table, index, phase, turn)
                under_way = next_round(table, index)
    if s.watching:
        for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
            part = parts[first + transfers[place].source]
            if part.entered <= s.now and not part.over:
                write_mean(table, transfers[place], part.entered)


def rewind(table: Any, index: int) -> bool:
    """Go back to when the ranks entered a collective; return whether one of them is still in it."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    transfers = all_views[TRANSFERS]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
        transfer = transfers[place]
        transfer.pays = transfer_latency(transfer, collective)
        transfer.takes = transfer_size(transfer, collective) / transfer.limit
    under_way = False
    for place in range(collective.part, collective.part + pattern.ranks):
        part = parts[place]
        part.begins = part.ends = part.entered
        under_way = under_way or (part.entered <= s.now and not part.over)
    return under_way


def next_round(table: Any, index: int) -> bool:
    """Go on to the next round; return whether a rank that is still in the collective has entered it."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    collective = all_views[COLLECTIVES][index]
    under_way = False
    for place in range(collective.part, collective.part + all_views[PATTERNS][collective.pattern].ranks):
        part = parts[place]
        part.begins = part.ends
        under_way = under_way or (part.ends <= s.now and not part.over)
    return under_way


def demote_round(table: Any, index: int, phase: int, turn: int) -> None:
    """Do what the ranks have done in a round up to now, and start what is under way."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    flows = all_views[FLOWS]
    arrived = all_views[ARRIVED]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    first = collective.part
    now = s.now
    for place in range(first, first + pattern.ranks):
        part = parts[place]
        if part.begins <= now:
            part.phase = phase
            part.turn = turn
            part.open = 0
    begin = phases[pattern.phase + phase].transfer
    for place in range(begin, begin + phases[pattern.phase + phase].transfers):
        transfer = transfers[place]
        sender = parts[first + transfer.source]
        receiver = parts[first + transfer.destination]
        size = transfer_size(transfer, collective)
        start_of_work = sender.begins + transfer.pays
        end = start_of_work + transfer.takes
        if end <= now:
            arrived[collective.arrived + place - pattern.transfer] += 1
            if not sender.over:
                carry(table, transfer, size)
            continue
        if receiver.begins <= now:
            receiver.open += 1
        if sender.begins <= now:
            sender.open += 1
            s.flows_kept -= 1
            s.hops_kept -= transfer.legs
            number = FIRST_INNER + s.inner_numbers
            s.inner_numbers += 1
            begin_now = max(start_of_work, now)
            slot = admit(table, number, transfer.leg, transfer.legs, size, transfer.weight, inf, begin_now)
            flow = flows[slot]
            flow.collective = index
            flow.transfer = place
            if start_of_work <= now:
                # As carried it counts when the flow ends.
                flow.left = size - transfer.limit * (now - start_of_work)
                write_later(table, transfer, transfer.limit * (now - start_of_work))


def carried_ahead(table: Any, now: float, index: int) -> float:
    """Return what a link has carried for parts of collectives that are on the short way now."""
    all_views = views(table)
    s = all_views[STATES][0]
    phases = all_views[PHASES]
    patterns = all_views[PATTERNS]
    collectives = all_views[COLLECTIVES]
    s.now = now
    total = 0.0
    for number in range(s.collectives):
        collective = collectives[number]
        if collective.way == 2 and collective.left > 0:
            pattern = patterns[collective.pattern]
            under_way = rewind(table, number)
            for phase in range(pattern.phase, pattern.phase + pattern.phases):
                for _ in range(phases[phase].repeat):
                    if under_way:
                        foresee_round(table, number, phase)
                        total += carried_in_round(table, number, phase, index)
                        under_way = next_round(table, number)
    return total


def carried_in_round(table: Any, number: int, phase: int, index: int) -> float:
    """Return what a link has carried up to now in a round, for ranks whose parts have not ended."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    legs = all_views[LEGS]
    collective = all_views[COLLECTIVES][number]
    total = 0.0
    for place in range(phases[phase].transfer, phases[phase].transfer + phases[phase].transfers):
        transfer = transfers[place]
        sender = parts[collective.part + transfer.source]
        if not sender.over:
            size = transfer_size(transfer, collective)
            start_of_work = sender.begins + transfer.pays
            for leg in range(transfer.leg, transfer.leg + transfer.legs):
                if legs[leg].link == index and start_of_work < s.now:
                    moved_so_far = transfer.limit * (s.now - start_of_work)
                    total += legs[leg].use * min(size, moved_so_far)
    return total


# ------------------------------------------------------------------------------------------------ solver


def settle(table: Any) -> None:
    """Solve the rates that what happened has changed."""
    all_views = views(table)
    s = all_views[STATES][0]
    links = all_views[LINKS]
    flows = all_views[FLOWS]
    hops = all_views[HOPS]
    agenda = all_views[AGENDA]
    dirty = all_views[DIRTY]
    free = all_views[FREE]
    marked = all_views[MARKED]
    log = all_views[LOGS]
    if s.intruded:
        give_way(table)
    s.solves += 1
    s.free_count = 0
    s.marked_count = 0
    crowded = s.clocks > 0
    for position in range(s.dirty_count):
        link = links[dirty[position]]
        if not link.clocked:
            link.binds = 0
            if link.count > 1:
                weigh(links, flows, hops, dirty[position])
                crowded = crowded or link.count >= s.clock_from
    position = 0
    while s.clocks and position < s.dirty_count:  # which grows
        turn_clock(s, links, flows, hops, agenda, dirty, marked, dirty[position])
        position += 1
    if crowded:
        for position in range(s.dirty_count):
            index = dirty[position]
            if links[index].binds and not links[index].clocked and links[index].count >= s.clock_from:
                start_clock(s, links, flows, hops, agenda, marked, index)
    for position in range(s.dirty_count):
        index = dirty[position]
        link = links[index]
        link.dirty = 0
        if s.watching:
            mark(s, links, marked, index)
        if link.clocked:
            continue
        here = link.head
        while here >= 0:
            slot = hops[here].flow
            flow = flows[slot]
            if flow.fresh or (flow.bottleneck == index and not flow.free):
                flow.fresh = 0
                if link.binds or (hops[flow.hop].after >= 0 and is_bound(links, hops, flow, -1)):
                    flow.free = 1
                    free[s.free_count] = slot
                    s.free_count += 1
                else:
                    flow.bottleneck = -1
                    if flow.rate != flow.limit:
                        set_rate(s, links, flows, agenda, slot, flow.limit)
                        if s.watching:
                            mark_route(s, links, hops, marked, flow)
            here = hops[here].behind
    s.dirty_count = 0
    if s.free_count:
        solve(
            s,
            links,
            flows,
            hops,
            all_views[QUEUE],
            all_views[TOUCHED],
            free,
            all_views[SATURATED],
            all_views[FIXED],
        )
        for position in range(s.free_count):
            slot = free[position]
            flow = flows[slot]
            flow.free = 0
            if flow.offer != flow.rate:
                set_rate(s, links, flows, agenda, slot, flow.offer)
                if s.watching:
                    mark_route(s, links, hops, marked, flow)
    for position in range(s.marked_count):
        index = marked[position]
        links[index].marked = 0
        if links[index].watched:
            entry = log[s.log_count]
            entry.time = s.now
            entry.link = index
            entry.total = total_rate(links, flows, hops, index)
            s.log_count += 1


def weigh(links: Any, flows: Any, hops: Any, index: int) -> None:
    """Find out whether a link can bind: whether its flows, if several, could exceed its capacity."""
    link = links[index]
    most = 0.0
    here = link.head
    while here >= 0:
        hop = hops[here]
        most += hop.use * flows[hop.flow].limit
        here = hop.behind
    # On the safe side: a link that never binds may count as one that does.
    link.binds = int(link.count > 1 and most > link.capacity * (1.0 - 1e-9))


def is_bound(links: Any, hops: Any, flow: Any, apart: int) -> bool:
    """Return whether a link of the flow can bind, apart from one of them (-1: none)."""
    here = flow.hop
    while here >= 0:
        if hops[here].link != apart and links[hops[here].link].binds:
            return True
        here = hops[here].after
    return False


def solve(
    s: Any, links: Any, flows: Any, hops: Any, queue: Any, touched: Any, free: Any, saturated: Any, fixed: Any
) -> None:
    """Find the rates of the free flows, and free as many more as it takes."""
    s.stamp += 1
    s.touched_count = 0
    rounds = 0
    position = 0
    while rounds < s.rounds and 2 * s.free_count <= s.running + FEW:
        while position < s.free_count:
            touch(s, links, hops, touched, flows[free[position]])
            position += 1
        fill(s, links, flows, hops, queue, touched, free, saturated, fixed)
        for place in range(s.touched_count):
            free_violators(s, links, flows, hops, free, touched[place])
        if position == s.free_count:
            return
        rounds += 1
    s.stamp += 1
    s.touched_count = 0
    spread(s, links, flows, hops, touched, free)
    fill(s, links, flows, hops, queue, touched, free, saturated, fixed)


def spread(s: Any, links: Any, flows: Any, hops: Any, touched: Any, free: Any) -> None:
    """Free all flows that binding links connect to the free ones."""
    position = 0
    while position < s.free_count:
        before = s.touched_count
        touch(s, links, hops, touched, flows[free[position]])
        for place in range(before, s.touched_count):
            here = links[touched[place]].head
            while here >= 0:
                hop = hops[here]
                if not flows[hop.flow].free:
                    flows[hop.flow].free = 1
                    free[s.free_count] = hop.flow
                    s.free_count += 1
                here = hop.behind
        position += 1


def touch(s: Any, links: Any, hops: Any, touched: Any, flow: Any) -> None:
    """Add the binding links of a flow to the touched ones."""
    here = flow.hop
    while here >= 0:
        index = hops[here].link
        link = links[index]
        if link.binds and link.stamp != s.stamp:
            link.stamp = s.stamp
            touched[s.touched_count] = index
            s.touched_count += 1
        here = hops[here].after


def fill(
    s: Any, links: Any, flows: Any, hops: Any, queue: Any, touched: Any, free: Any, saturated: Any, fixed: Any
) -> None:
    """Offer each free flow its rate: progressive filling over the touched links.

    The level at which a link saturates only rises while flows are fixed elsewhere (they take less of it than
    their share). So a queue of lower bounds suffices: an entry is made exact when it comes to the top.
    Whatever stops at one level is handled together.
    """
    queue_clear(queue)
    count = s.touched_count
    least = inf  # of the limits per weight of the flows that wait for a rate
    for position in range(s.free_count):
        flow = flows[free[position]]
        flow.pending = 1
        least = min(least, flow.limit / flow.weight)
    for position in range(count):
        queue_put(queue, first_level(links[touched[position]], flows, hops), position)
    waiting = s.free_count
    while waiting:
        level = inf
        saturated_count = 0
        fixed_count = 0
        while not queue_empty(queue) and queue_level(queue) <= level and queue_level(queue) <= least:
            bound = queue_level(queue)
            position = queue_code(queue)
            queue_drop(queue)
            link = links[touched[position]]
            if link.pending == 0:
                continue
            if link.changed:
                exact = exact_level(link, flows, hops, bound)
                if exact > bound:
                    queue_put(queue, exact, position)
                    continue
            saturated[saturated_count] = touched[position]
            saturated_count += 1
            level = bound
        if least <= level:
            # All limits that are reached before the next link saturates, at once: levels only rise.
            if saturated_count == 0 and not queue_empty(queue):
                level = queue_level(queue)
            least = inf
            for position in range(s.free_count):
                flow = flows[free[position]]
                if flow.pending:
                    reached_at = flow.limit / flow.weight
                    if reached_at <= level:
                        flow.pending = 2
                        flow.offer = flow.limit
                        flow.bottleneck = -1
                        fixed[fixed_count] = free[position]
                        fixed_count += 1
                    elif reached_at < least:
                        least = reached_at
        for place in range(saturated_count):
            fixed_count = offer_on(links, flows, hops, saturated[place], level, fixed, fixed_count)
        for place in range(fixed_count):
            take_out(s, links, hops, flows[fixed[place]])
        waiting -= fixed_count


def first_level(link: Any, flows: Any, hops: Any) -> float:
    """Return the level at which a link saturates, given the flows that are not free."""
    residual = link.capacity
    load = 0.0
    pending = 0
    here = link.head
    while here >= 0:
        hop = hops[here]
        flow = flows[hop.flow]
        if flow.pending:
            load += hop.use * flow.weight
            pending += 1
        else:
            residual -= hop.use * flow.rate
        here = hop.behind
    if residual < 0.0:
        residual = 0.0
    link.residual = residual
    link.load = load
    link.fresh = load
    link.pending = pending
    link.changed = 0
    level: float = residual / load
    return level


def exact_level(link: Any, flows: Any, hops: Any, bound: float) -> float:
    """Return the level at which a link saturates with the flows that still wait for a rate."""
    load = link.load
    # Subtraction leaves rounding errors of the flows that are gone; they matter once those dominated.
    if link.pending == 1 or load < 0.5 * link.fresh:
        load = 0.0
        here = link.head
        while here >= 0:
            hop = hops[here]
            if flows[hop.flow].pending:
                load += hop.use * flows[hop.flow].weight
            here = hop.behind
        link.load = load
        link.fresh = load
    link.changed = 0
    level: float = link.residual / load
    if level < bound:  # by rounding only: levels never fall
        link.residual = bound * load
        return bound
    return level


def offer_on(links: Any, flows: Any, hops: Any, index: int, level: float, fixed: Any, count: int) -> int:
    """Offer the waiting flows of a saturated link their rates; the smallest offer counts."""
    link = links[index]
    here = link.head
    while here >= 0:
        hop = hops[here]
        flow = flows[hop.flow]
        if flow.pending:
            # The last flow gets what is left, without the detour (and the rounding) over the level.
            rate = link.residual / hop.use if link.pending == 1 else flow.weight * level
            if flow.pending == 1:
                fixed[count] = hop.flow
                count += 1
                flow.pending = 2
                flow.offer = rate
                flow.bottleneck = index
            elif rate < flow.offer:
                flow.offer = rate
                flow.bottleneck = index
        here = hop.behind
    return count


def take_out(s: Any, links: Any, hops: Any, flow: Any) -> None:
    """Subtract a flow that has its rate from what is left of its links."""
    flow.pending = 0
    here = flow.hop
    while here >= 0:
        hop = hops[here]
        link = links[hop.link]
        if link.stamp == s.stamp:
            link.residual -= hop.use * flow.offer
            link.load -= hop.use * flow.weight
            link.pending -= 1
            link.changed = 1
        here = hop.after


def free_violators(s: Any, links: Any, flows: Any, hops: Any, free: Any, index: int) -> None:
    """Free the flows that a link shows not to have their max-min fair rates, given the offers."""
    link = links[index]
    total = 0.0
    top = 0.0  # the highest level on the link, and the lowest of the flows that have their bottleneck here
    low = inf
    here = link.head
    while here >= 0:
        hop = hops[here]
        flow = flows[hop.flow]
        rate = flow.offer if flow.free else flow.rate
        total += hop.use * rate
        level = rate / flow.weight
        if level > top:
            top = level
        if flow.bottleneck == index and level < low:
            low = level
        here = hop.behind
    full = total >= link.capacity * (1.0 - TOLERANCE)
    over = total > link.capacity * (1.0 + TOLERANCE)
    if not over and (low == inf or (full and low >= top * (1.0 - TOLERANCE))):
        return
    here = link.head
    while here >= 0:
        hop = hops[here]
        flow = flows[hop.flow]
        if not flow.free:
            level = flow.rate / flow.weight
            here_stopped = flow.bottleneck == index
            if (
                over
                or level > low * (1.0 + TOLERANCE)
                or (here_stopped and (not full or level < top * (1.0 - TOLERANCE)))
            ):
                flow.free = 1
                free[s.free_count] = hop.flow
                s.free_count += 1
        here = hop.behind


# ------------------------------------------------------------------------------------------ virtual clocks


def service_now(now: float, link: Any) -> float:
    """Return what the virtual clock of a link shows."""
    return float(link.service + link.level * (now - link.service_since))


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


# -------------------------------------------------------------------------------------------- monitoring


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


# ------------------------------------------------------------------ the queues under CPython: lists of tuples


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


# --------------------------------------- the same queues over arrays: heaps from 1 on, their length at 0


def array_agenda_put(agenda: Any, flows: Any, slot: int) -> None:
    """As `agenda_put`."""
    place = flows[slot].place
    if place == 0:
        agenda[0] += 1
        place = agenda[0]
    up = place
    while up > 1 and earlier(flows, slot, agenda[up >> 1]):
        agenda[up] = agenda[up >> 1]
        flows[agenda[up]].place = up
        up >>= 1
    if up < place:
        agenda[up] = slot
        flows[slot].place = up
    else:
        array_sink(agenda, flows, place, slot)


def array_agenda_drop(agenda: Any, flows: Any, slot: int) -> None:
    """As `agenda_drop`."""
    place = flows[slot].place
    if place == 0:
        return
    flows[slot].place = 0
    last = agenda[agenda[0]]
    agenda[0] -= 1
    if last == slot:
        return
    up = place
    while up > 1 and earlier(flows, last, agenda[up >> 1]):
        agenda[up] = agenda[up >> 1]
        flows[agenda[up]].place = up
        up >>= 1
    if up < place:
        agenda[up] = last
        flows[last].place = up
    else:
        array_sink(agenda, flows, place, last)


def array_sink(agenda: Any, flows: Any, place: int, slot: int) -> None:
    """Put a flow at a place, or below it."""
    count = agenda[0]
    while 2 * place <= count:
        child = 2 * place
        if child < count and earlier(flows, agenda[child + 1], agenda[child]):
            child += 1
        if not earlier(flows, agenda[child], slot):
            break
        agenda[place] = agenda[child]
        flows[agenda[place]].place = place
        place = child
    agenda[place] = slot
    flows[slot].place = place


def earlier(flows: Any, one: int, other: int) -> bool:
    """Return whether a flow is due before another."""
    first, second = flows[one], flows[other]
    return bool(first.due < second.due or (first.due == second.due and first.number < second.number))


def array_agenda_first(agenda: Any, flows: Any) -> int:
    """As `agenda_first`."""
    if agenda[0] == 0:
        return -1
    return int(agenda[1])


def array_queue_clear(queue: Any) -> None:
    """As `queue_clear`."""
    queue[0].code = 0


def array_queue_put(queue: Any, level: float, code: int) -> None:
    """As `queue_put`."""
    queue[0].code += 1
    place = queue[0].code
    while place > 1:
        parent = queue[place >> 1]
        if parent.level < level or (parent.level == level and parent.code < code):
            break
        queue[place].level = parent.level
        queue[place].code = parent.code
        place >>= 1
    queue[place].level = level
    queue[place].code = code


def array_queue_drop(queue: Any) -> None:
    """As `queue_drop`."""
    count = queue[0].code
    level, code = queue[count].level, queue[count].code
    count -= 1
    queue[0].code = count
    place = 1
    while 2 * place <= count:
        child = 2 * place
        if child < count:
            one, other = queue[child], queue[child + 1]
            if other.level < one.level or (other.level == one.level and other.code < one.code):
                child += 1
        down = queue[child]
        if level < down.level or (level == down.level and code < down.code):
            break
        queue[place].level = down.level
        queue[place].code = down.code
        place = child
    queue[place].level = level
    queue[place].code = code


def array_queue_empty(queue: Any) -> bool:
    """As `queue_empty`."""
    return bool(queue[0].code == 0)


def array_queue_level(queue: Any) -> float:
    """As `queue_level`."""
    level: float = queue[1].level
    return level


def array_queue_code(queue: Any) -> int:
    """As `queue_code`."""
    code: int = queue[1].code
    return code


def array_clock_clear(link: Any) -> None:
    """As `clock_clear`; the queue is a pairing heap, in which `elder` is the parent or the sibling before."""
    link.root = -1


def array_clock_put(flows: Any, link: Any, slot: int) -> None:
    """As `clock_put`."""
    flow = flows[slot]
    flow.child = flow.sibling = flow.elder = -1
    link.root = slot if link.root < 0 else melded(flows, link.root, slot)


def array_clock_drop(flows: Any, link: Any, slot: int) -> None:
    """As `clock_drop`."""
    flow = flows[slot]
    below = children_melded(flows, slot)
    if link.root == slot:
        link.root = below
        return
    elder = flows[flow.elder]
    if elder.child == slot:
        elder.child = flow.sibling
    else:
        elder.sibling = flow.sibling
    if flow.sibling >= 0:
        flows[flow.sibling].elder = flow.elder
    if below >= 0:
        link.root = melded(flows, link.root, below)


def array_clock_first(flows: Any, link: Any) -> int:
    """As `clock_first`."""
    return int(link.root)


def melded(flows: Any, one: int, other: int) -> int:
    """Join two heaps; return the root."""
    first, second = flows[one], flows[other]
    if second.target < first.target or (second.target == first.target and second.number < first.number):
        one, other = other, one
        first, second = second, first
    second.elder = one
    second.sibling = first.child
    if first.child >= 0:
        flows[first.child].elder = other
    first.child = other
    return one


def children_melded(flows: Any, slot: int) -> int:
    """Join the children of a flow in pairs, and the pairs from the last on; return the root, or -1."""
    child = flows[slot].child
    flows[slot].child = -1
    pairs = -1
    while child >= 0:
        one = child
        other = flows[one].sibling
        child = -1
        flows[one].sibling = -1
        if other >= 0:
            child = flows[other].sibling
            flows[other].sibling = -1
            one = melded(flows, one, other)
        flows[one].sibling = pairs
        pairs = one
    root = -1
    while pairs >= 0:
        after = flows[pairs].sibling
        flows[pairs].sibling = -1
        root = pairs if root < 0 else melded(flows, root, pairs)
        pairs = after
    if root >= 0:
        flows[root].elder = -1
    return root
