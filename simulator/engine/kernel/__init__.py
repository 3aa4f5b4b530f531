"""The one source of the network core: plain functions over indexable containers of records.

CPython runs these functions as they stand, over lists of small objects. Where numba is used they are compiled
as they stand, over arrays of records (:mod:`simulator.engine.storage`). Both do the same operations on
doubles in the same order, so that results are equal to the last bit. Only the queues exist twice.

The modules build on each other in this order: :mod:`~simulator.engine.kernel.records` (what is kept),
:mod:`~simulator.engine.kernel.queues`, :mod:`~simulator.engine.kernel.flows` (progress, limits and rates),
:mod:`~simulator.engine.kernel.crossing` (what links lose to flows the other way),
:mod:`~simulator.engine.kernel.clocks` (virtual clocks), :mod:`~simulator.engine.kernel.life` (of a flow),
:mod:`~simulator.engine.kernel.short_way` and :mod:`~simulator.engine.kernel.collectives`,
:mod:`~simulator.engine.kernel.solver`, and :mod:`~simulator.engine.kernel.time`, which drives them all. What
this package itself exports is what the core calls.
"""

from __future__ import annotations

from simulator.engine.kernel import (
    array_queues,
    clocks,
    collectives,
    crossing,
    flows,
    life,
    queues,
    records,
    short_way,
    solver,
    time,
)
from simulator.engine.kernel.collectives import (
    cancel_collective,
    close_collective,
    enter,
    open_collective,
)
from simulator.engine.kernel.flows import (
    left_now,
    moved,
    rate_now,
    total_rate,
)
from simulator.engine.kernel.life import (
    cancel,
    change_capacity,
    make_free,
    set_leg,
    start,
)
from simulator.engine.kernel.short_way import (
    carried_ahead,
    leave_short_ways,
)
from simulator.engine.kernel.time import (
    advance,
    settle_now,
)

__all__ = [
    "MODULES",
    "advance",
    "cancel",
    "cancel_collective",
    "carried_ahead",
    "change_capacity",
    "close_collective",
    "enter",
    "leave_short_ways",
    "left_now",
    "make_free",
    "moved",
    "open_collective",
    "rate_now",
    "set_leg",
    "settle_now",
    "start",
    "total_rate",
]

MODULES = (records, queues, array_queues, flows, crossing, clocks, life, short_way, collectives, solver, time)
"""All modules of the source, each after those that it imports."""
