"""Collectives transfer by transfer: each message a flow, started when its ranks have entered a round.

With rendezvous these are sender and receiver, without the sender alone. The messages of a transfer follow
each other, as on one connection.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.life import (
    admit,
    release,
)
from simulator.engine.kernel.records import (
    AGENDA,
    COLLECTIVES,
    DIRTY,
    DONE,
    FIRST_INNER,
    FLOWS,
    HEADS,
    HOPS,
    LINKS,
    MESSAGES,
    PARTS,
    PATTERNS,
    PHASES,
    RANKS,
    STATES,
    TRANSFERS,
    views,
)
from simulator.engine.kernel.short_way import (
    count_open,
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
    messages = all_views[MESSAGES]
    s.flows_kept += flows
    s.hops_kept += hops
    collective.way = 0
    collective.missing = pattern.ranks
    collective.left = pattern.ranks
    for place in range(collective.part, collective.part + pattern.ranks):
        parts[place].entered = inf
        parts[place].phase = 0
        parts[place].turn = -1
        parts[place].needed = 0
        parts[place].open = 0
        parts[place].slot = -1
        parts[place].over = 0
    for place in range(collective.message, collective.message + pattern.transfers):
        messages[place].ended = 0
        messages[place].under_way = 0
        messages[place].called = inf


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
    while True:
        part.turn += 1
        while part.phase < pattern.phases and part.turn == phases[pattern.phase + part.phase].repeat:
            part.phase += 1
            part.turn = 0
        if part.phase == pattern.phases:
            collective.left -= 1
            return True
        head = pattern.head + 2 * (part.phase * pattern.ranks + rank)
        if collective.rendezvous:
            incoming = heads[head + 1]
            while incoming >= 0:
                offer_transfer(table, index, incoming)
                incoming = transfers[incoming].after_in
        outgoing = heads[head]
        while outgoing >= 0:
            offer_transfer(table, index, outgoing)
            outgoing = transfers[outgoing].after_out
        count_open(table, index, rank)
        if part.open:
            return False


def offer_transfer(table: Any, index: int, place: int) -> None:
    """Start the next message of a transfer, if its ranks have entered its round and none is under way."""
    all_views = views(table)
    transfer = all_views[TRANSFERS][place]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    parts = all_views[PARTS]
    message = all_views[MESSAGES][collective.message + place - pattern.transfer]
    turn = message.ended + message.under_way
    sender = parts[collective.part + transfer.source]
    if sender.phase != transfer.phase or sender.turn < turn:
        return
    if collective.rendezvous:
        receiver = parts[collective.part + transfer.destination]
        if receiver.phase != transfer.phase or receiver.turn < turn:
            return
    if message.under_way:
        if message.called == inf:
            message.called = all_views[STATES][0].now
    else:
        start_transfer(table, index, place)


def start_transfer(table: Any, index: int, place: int) -> None:
    """Start the next message of a transfer as a flow."""
    all_views = views(table)
    s = all_views[STATES][0]
    transfer = all_views[TRANSFERS][place]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    message = all_views[MESSAGES][collective.message + place - pattern.transfer]
    begin = max(s.now, min(s.now, message.called) + transfer_latency(transfer, collective))
    message.under_way = 1
    message.called = inf
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
    message = all_views[MESSAGES][collective.message + place - pattern.transfer]
    done = all_views[DONE]
    message.ended += 1
    message.under_way = 0
    if count_ended(table, index, place, transfer.destination):
        done[count] = -1 - (index * RANKS + transfer.destination)
        count += 1
    if count_ended(table, index, place, transfer.source):
        done[count] = -1 - (index * RANKS + transfer.source)
        count += 1
    offer_transfer(table, index, place)
    return count


def count_ended(table: Any, index: int, place: int, rank: int) -> bool:
    """Let a rank go on if a message was the last that it waits for; return whether its part ends."""
    all_views = views(table)
    transfer = all_views[TRANSFERS][place]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    message = all_views[MESSAGES][collective.message + place - pattern.transfer]
    part = all_views[PARTS][collective.part + rank]
    if part.phase != transfer.phase or message.ended != part.needed:
        return False
    part.open -= 1
    return bool(part.open == 0 and go_on(table, index, rank))
