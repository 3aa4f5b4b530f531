"""The same queues over arrays, for numba: heaps from 1 on, their length at 0."""

from __future__ import annotations

from typing import Any


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
