"""What the core keeps: records of links, flows, hops and collectives, and where their containers stand."""

from __future__ import annotations

from typing import Any

import numpy as np


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
        ("crossed", "i4"),  # links that lose capacity while flows go both ways
    ],
    align=True,
)

LINK = cache_lines(
    [
        # What the solver asks for comes first, so that it lies close together.
        ("capacity", "f8"),  # now
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
        ("full", "f8"),  # its capacity without flows the other way
        ("loss", "f8"),  # the part of it that it loses with one flow each way
        ("opposite", "i4"),  # the link the other way, where there is a loss
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
        ("pays", "f8"),  # working space of the short way: its latency, its time if it is alone, and in the
        ("takes", "f8"),  # present round when it begins to move and ends
        ("begins", "f8"),
        ("ends", "f8"),
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
        ("latency_factor", "f8"),
        ("handling", "f8"),  # seconds a byte
        ("pattern", "i4"),
        ("part", "i4"),  # where its parts begin, one for each rank
        ("message", "i4"),  # where its messages begin, one for each transfer
        ("missing", "i4"),  # ranks that have not entered
        ("left", "i4"),  # ranks whose part has not ended
        ("in_flight", "i4"),  # rounds in which a rank may be at once
        ("way", "i1"),  # 0 not chosen yet, 1 flow by flow, 2 the short way
        ("rendezvous", "i1"),  # whether a transfer waits for its receiver
    ],
    align=True,
)

PART = np.dtype(
    [
        ("begins", "f8"),  # working space: when it enters a round, when that and all before it have ended,
        ("ends", "f8"),  # and when all before the round before had
        ("ended", "f8"),
        ("entered", "f8"),
        ("phase", "i4"),
        ("turn", "i4"),  # the latest round that it has entered in its phase
        ("needed", "i4"),  # messages of each of its transfers in the phase before it enters the next round,
        ("open", "i4"),  # and how many of these transfers have not had as many
        ("slot", "i4"),  # of the end on the agenda, on the short way; or -1
        ("over", "i1"),
    ],
    align=True,
)

MESSAGE = np.dtype(
    [
        ("ended", "i4"),  # how many have
        ("under_way", "i1"),  # whether the next is
        ("called", "f8"),  # when both ranks were there for the one after it, which waits for it; or inf
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
    MESSAGES,
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
