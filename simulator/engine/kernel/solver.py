"""Rates of the free flows: progressive filling, local repair, and the component where that goes on for long.

*Local repair.* The free flows are filled, against the rates of the others. Then the links that they touch are
checked: a flow on whose bottleneck somebody is faster, or whose bottleneck is not full, is freed, as is the
one that is faster; and so on until nothing is found. What is left satisfies the conditions that make an
allocation max-min fair, and these have one solution. A link on which the flows that are not free leave less
than nothing offers a share of zero, which the check then finds: leaving that out gives rates that are wrong
without a sign. If the repair goes on for long, or spreads over half of all flows, then all flows are freed
that binding links connect to the free ones, and that component is filled.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.queues import (
    queue_clear,
    queue_code,
    queue_drop,
    queue_empty,
    queue_level,
    queue_put,
)

TOLERANCE = 1e-11
"""How far, relatively, a check of fairness may be off: far above rounding, far below what is tested."""

FEW = 16
"""So few flows are never too many for local repair."""


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
