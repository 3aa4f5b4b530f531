"""How time passes: to the next ends, and before that a solve of what has changed.

*Seeds.* When a link is dirty, the flows that have it as their bottleneck and those that are new are free. A
flow without a binding link runs at its limit.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.clocks import (
    follow,
    start_clock,
    turn_clock,
)
from simulator.engine.kernel.collectives import (
    end_transfer,
)
from simulator.engine.kernel.crossing import (
    lose,
)
from simulator.engine.kernel.flows import (
    is_bound,
    mark,
    mark_route,
    set_rate,
    total_rate,
    weigh,
)
from simulator.engine.kernel.life import (
    activate,
    release,
)
from simulator.engine.kernel.queues import (
    agenda_drop,
    agenda_first,
)
from simulator.engine.kernel.records import (
    AGENDA,
    DIRTY,
    DONE,
    FIXED,
    FLOWS,
    FREE,
    HOPS,
    LINKS,
    LOG_ROOM,
    LOGS,
    MARKED,
    QUEUE,
    RANKS,
    SATURATED,
    STATES,
    TOUCHED,
    views,
)
from simulator.engine.kernel.short_way import (
    end_part,
    give_way,
)
from simulator.engine.kernel.solver import (
    solve,
)


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
    if s.crossed:
        lose(s, links, flows, hops, dirty)
    s.solves += 1
    s.free_count = 0
    s.marked_count = 0
    crowded = s.clocks > 0
    for position in range(s.dirty_count):
        link = links[dirty[position]]
        if not link.clocked:
            link.binds = 0
            if link.count > 1 or link.capacity < link.full:
                weigh(links, flows, hops, dirty[position])
                crowded = crowded or link.count >= s.clock_from
    position = 0
    while s.clocks and position < s.dirty_count:  # which grows
        turn_clock(s, links, flows, hops, agenda, dirty, marked, dirty[position])
        position += 1
    if crowded:
        for position in range(s.dirty_count):
            index = dirty[position]
            link = links[index]
            if link.binds and not link.clocked and link.count >= s.clock_from:
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
            entry.total = total_rate(links, flows, hops, index) if links[index].count else 0.0
            s.log_count += 1
