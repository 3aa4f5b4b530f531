"""Collectives that nothing else disturbs: a max-plus recurrence instead of flows.

The links of such a collective are reserved. When a flow comes on one of them, or its capacity changes, the
collective goes on as the flows that it would have under way.
"""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.engine.kernel.flows import (
    mark_dirty,
)
from simulator.engine.kernel.life import (
    admit,
    release,
)
from simulator.engine.kernel.records import (
    AGENDA,
    COLLECTIVES,
    DIRTY,
    FIRST_INNER,
    FLOWS,
    HEADS,
    HOPS,
    LEGS,
    LINKS,
    LOGS,
    MESSAGES,
    PARTS,
    PATTERNS,
    PHASES,
    STATES,
    TRANSFERS,
    views,
)


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
            if link.count or link.intruded or link.capacity == 0.0 or link.loss > 0.0:
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
    return float(collective.latency_factor * transfer.latency + collective.handling * nbytes)


def transfer_size(transfer: Any, collective: Any) -> float:
    """Return what a message of a transfer moves."""
    return float(transfer.fraction * collective.nbytes / collective.payload_share)


def count_open(table: Any, index: int, rank: int) -> None:
    """Count the transfers that a rank waits for before it enters the round after its latest."""
    all_views = views(table)
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    part = all_views[PARTS][collective.part + rank]
    transfers = all_views[TRANSFERS]
    heads = all_views[HEADS]
    messages = all_views[MESSAGES]
    part.needed = part.turn + 2 - collective.in_flight
    if part.turn + 1 == all_views[PHASES][pattern.phase + part.phase].repeat:
        part.needed = part.turn + 1
    part.open = 0
    head = pattern.head + 2 * (part.phase * pattern.ranks + rank)
    place = heads[head]
    while place >= 0:
        if messages[collective.message + place - pattern.transfer].ended < part.needed:
            part.open += 1
        place = transfers[place].after_out
    place = heads[head + 1]
    while place >= 0:
        if messages[collective.message + place - pattern.transfer].ended < part.needed:
            part.open += 1
        place = transfers[place].after_in


def foresee(table: Any, index: int) -> None:
    """Put the ends of all parts on the agenda, as all ranks have entered.

    When a rank enters a round follows from the ends of its transfers in rounds before, and none of them
    shares a link: a recurrence of maxima and sums, in the same operations as flow by flow.
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
        for turn in range(phases[phase].repeat):
            foresee_round(table, index, phase)
            next_round(table, index, phase, turn)
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
    """Find when the transfers of a round begin and end, and with that when each rank has ended all so far."""
    all_views = views(table)
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    parts = all_views[PARTS]
    collective = all_views[COLLECTIVES][index]
    first = collective.part
    for place in range(phases[phase].transfer, phases[phase].transfer + phases[phase].transfers):
        transfer = transfers[place]
        sender = parts[first + transfer.source]
        receiver = parts[first + transfer.destination]
        transfer.begins = max(called(sender, receiver, collective) + transfer.pays, transfer.ends)
        transfer.ends = transfer.begins + transfer.takes
        if transfer.ends > sender.ends:
            sender.ends = transfer.ends
        if transfer.ends > receiver.ends:
            receiver.ends = transfer.ends


def called(sender: Any, receiver: Any, collective: Any) -> float:
    """Return when the ranks of a transfer are there for it, given when they enter its round."""
    if collective.rendezvous and receiver.begins > sender.begins:
        return float(receiver.begins)
    return float(sender.begins)


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


def leave_short_ways(table: Any) -> bool:
    """Let all collectives on the short way give way at the next change; return whether there are any.

    Those that wait for ranks which never enter do what they can without them only as flows.
    """
    all_views = views(table)
    s = all_views[STATES][0]
    links = all_views[LINKS]
    legs = all_views[LEGS]
    transfers = all_views[TRANSFERS]
    found = False
    for index in range(s.collectives):
        collective = all_views[COLLECTIVES][index]
        if collective.way == 2 and collective.left > 0:
            pattern = all_views[PATTERNS][collective.pattern]
            for place in range(pattern.transfer, pattern.transfer + pattern.transfers):
                for leg in range(transfers[place].leg, transfers[place].leg + transfers[place].legs):
                    links[legs[leg].link].intruded = 1
                    mark_dirty(s, links, all_views[DIRTY], legs[leg].link)
            s.intruded = 1
            found = True
    return found


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
                under_way = next_round(table, index, pattern.phase + phase, turn)
    for place in range(first, first + pattern.ranks):
        if parts[place].entered <= s.now and not parts[place].over:
            count_open(table, index, place - first)
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
        transfer.ends = -inf
    under_way = False
    for place in range(collective.part, collective.part + pattern.ranks):
        part = parts[place]
        part.begins = part.ends = part.ended = part.entered
        under_way = under_way or (part.entered <= s.now and not part.over)
    return under_way


def next_round(table: Any, index: int, phase: int, turn: int) -> bool:
    """Go on to the next round; return whether a rank that is still in the collective has entered it."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    collective = all_views[COLLECTIVES][index]
    waits_for_all = collective.in_flight == 1 or turn + 1 == all_views[PHASES][phase].repeat
    under_way = False
    for place in range(collective.part, collective.part + all_views[PATTERNS][collective.pattern].ranks):
        part = parts[place]
        part.begins = part.ends if waits_for_all else max(part.begins, part.ended)
        part.ended = part.ends
        under_way = under_way or (part.begins <= s.now and not part.over)
    return under_way


def demote_round(table: Any, index: int, phase: int, turn: int) -> None:
    """Do what the ranks have done in a round up to now, and start what is under way."""
    all_views = views(table)
    s = all_views[STATES][0]
    parts = all_views[PARTS]
    phases = all_views[PHASES]
    transfers = all_views[TRANSFERS]
    flows = all_views[FLOWS]
    messages = all_views[MESSAGES]
    collective = all_views[COLLECTIVES][index]
    pattern = all_views[PATTERNS][collective.pattern]
    first = collective.part
    now = s.now
    for place in range(first, first + pattern.ranks):
        part = parts[place]
        if part.begins <= now:
            part.phase = phase
            part.turn = turn
    begin = phases[pattern.phase + phase].transfer
    for place in range(begin, begin + phases[pattern.phase + phase].transfers):
        transfer = transfers[place]
        sender = parts[first + transfer.source]
        receiver = parts[first + transfer.destination]
        message = messages[collective.message + place - pattern.transfer]
        size = transfer_size(transfer, collective)
        both_there = called(sender, receiver, collective)
        if transfer.ends <= now:
            message.ended += 1
            if not sender.over:
                carry(table, transfer, size)
        elif both_there <= now and message.under_way:
            message.called = both_there
        elif both_there <= now:
            message.under_way = 1
            s.flows_kept -= 1
            s.hops_kept -= transfer.legs
            number = FIRST_INNER + s.inner_numbers
            s.inner_numbers += 1
            begin_now = max(transfer.begins, now)
            slot = admit(table, number, transfer.leg, transfer.legs, size, transfer.weight, inf, begin_now)
            flow = flows[slot]
            flow.collective = index
            flow.transfer = place
            if transfer.begins <= now:
                # As carried it counts when the flow ends.
                flow.left = size - transfer.limit * (now - transfer.begins)
                write_later(table, transfer, transfer.limit * (now - transfer.begins))


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
                for turn in range(phases[phase].repeat):
                    if under_way:
                        foresee_round(table, number, phase)
                        total += carried_in_round(table, number, phase, index)
                        under_way = next_round(table, number, phase, turn)
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
            for leg in range(transfer.leg, transfer.leg + transfer.legs):
                if legs[leg].link == index and transfer.begins < s.now:
                    moved_so_far = transfer.limit * (s.now - transfer.begins)
                    total += legs[leg].use * min(size, moved_so_far)
    return total
