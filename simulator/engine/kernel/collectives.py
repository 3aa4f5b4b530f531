"""Collectives transfer by transfer: each a flow, started when its sender enters a round."""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.life import (
    admit,
    release,
)
from simulator.engine.kernel.records import (
    AGENDA,
    ARRIVED,
    COLLECTIVES,
    DIRTY,
    DONE,
    FIRST_INNER,
    FLOWS,
    HEADS,
    HOPS,
    LINKS,
    PARTS,
    PATTERNS,
    PHASES,
    RANKS,
    STATES,
    TRANSFERS,
    views,
)
from simulator.engine.kernel.short_way import (
    demote,
    disturb,
    foresee,
    reserve,
    transfer_latency,
    transfer_size,
    unreserve,
)


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
