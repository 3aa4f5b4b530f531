"""Fluid flows that share links in a weighted max-min fair way.

Model
-----
A *link* has a capacity (bytes/s; for a device, seconds of work per second) and a latency. A *flow* has a
size, a route of links, a weight ``w``, a rate cap ``c`` and, for each link ``l`` of its route, a demand
``d_l``: how much of the link one unit of its progress uses. A pipelined collective is so *one* flow that is
coupled over all the links it keeps busy at once. From its start on a flow pays its latency; only then does it
take bandwidth. Rates ``x`` satisfy at every instant

    sum over the flows f on l of  d_fl x_f  <=  C_l           (no link carries more than its capacity)
    x_f <= c_f                                                (no flow is faster than its cap)

and are max-min fair: a flow below its cap has a *bottleneck*, a saturated link on which no other flow has a
larger ``x/w``. Such an allocation exists and is unique, and *progressive filling* finds it: raise a common
level ``t`` with ``x_f = w_f t`` until a link is full or a cap is reached, fix the flows that are stopped
thereby, go on with the others (Bertsekas and Gallager, *Data Networks*, 1992, section 6.5.2).

With ``fairness="rtt"`` the weight is multiplied by 1 / (path latency), the steady-state bias of TCP's
congestion avoidance against long round trips. The path latency is the sum of the latencies of the route's
links, where nothing else is said.

How time passes
---------------
Between two changes rates are constant, so a flow is described by its remaining work at the last change of its
*own* rate, the time of that change, and the rate; its end is ``time of the change + remaining / rate``. A
flow whose rate comes out the same is not touched, hence no rounding accumulates. Whatever happens at one
instant (ends, starts, new capacities) only marks links as dirty; the rates are solved once, when time is
about to pass, and only as far as the change reaches. Only exactly equal times are simultaneous.

Rates do not depend on how links are numbered: sums run in the order in which the flows came, links that
saturate at the same level are handled together, and ends at one instant are ordered by flow number.

Where what lies
---------------
Links and flows are integers here. Flow numbers are given in sequence and never used twice; the state of a
flow lies at a slot that is reused. This module checks what it is told and keeps the books; the functions
that do the work are in :mod:`simulator.engine.kernel`. They run as plain Python or compiled, on the
containers of :mod:`simulator.engine.storage`, and give the same results, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum, inf
from operator import index
from typing import Annotated, Literal

from simulator.engine import kernel
from simulator.engine.kernel.records import FIRST_INNER, RANKS
from simulator.engine.storage import CompiledStorage, CoreName, PlainStorage, compiled_wanted

__all__ = ["RANKS", "Core", "CoreName", "Fairness", "Route", "Step"]

Fairness = Literal["maxmin", "rtt"]

ROUNDS = 12
"""Rounds of local repair before a component is solved as a whole."""

MOST_REPEATS = 2**31

CLOCK_FROM = 8
"""A link that alone limits so many flows gives them a virtual clock, until they are fewer than half."""


@dataclass(frozen=True)
class Step:
    """A transfer of a pattern.

    Attributes
    ----------
    source, destination
        Ranks.
    fraction
        Of the collective's message.
    route
        Links.
    latency
        That of its path, in seconds; it pays this times what the collective says.
    """

    source: int
    destination: int
    fraction: float
    route: tuple[int, ...]
    latency: float


class Route:
    """A route that a core has checked and keeps, see :meth:`Core.add_route`."""

    __slots__ = ("core", "first", "latency", "legs")

    def __init__(self, core: Core, first: int, legs: int, latency: float) -> None:
        self.core = core
        self.first = first
        self.legs = legs
        self.latency = latency


@dataclass
class _Pattern:
    """A pattern's size, the flows and hops that can be under way at once, and its closed collectives."""

    ranks: int
    transfers: int
    flows: int
    hops: int
    closed: list[int] = field(default_factory=list)


@dataclass
class _Collective:
    """An open collective: its pattern, and which ranks have entered it."""

    pattern: int
    entered: bytearray


class Core:
    """Flows on links, and the time.

    Parameters
    ----------
    fairness
        ``"maxmin"``: shares in proportion to the weights. ``"rtt"``: the weights are also divided by the path
        latencies (where these are not zero).
    monitor
        Watch every link from its addition on, as :meth:`watch` does.
    now
        The time at which the clock starts, in seconds.
    core
        ``"plain"`` Python, ``"compiled"`` by numba, or ``"auto"``: compiled if numba is installed and there
        are enough links at the start of the first flow; the environment variable ``PACELINE_CORE`` replaces
        ``"auto"``.
    rounds, clock_from
        Rounds of local repair before a component is solved as a whole; how many flows on a common bottleneck
        get a virtual clock. Both are a matter of speed, and of rounding.
    max_plus
        Whether collectives may take the short way (see :meth:`add_pattern`). It gives the times of the flows
        up to rounding. On the short way a link's history shows, when a rank's part ends, the mean load over
        that part; :meth:`carried` is exact at all times.

    Attributes
    ----------
    now : float
        The time in seconds. A run loop that knows that nothing is due may set it forward, never backward.
    first : float
        No end of a flow or of a latency comes before this time, unless the core is dirty.
    dirty : bool
        Whether rates may have to be solved before time passes.

    Raises
    ------
    ValueError
        From every method, before any state changes, when an argument is not what its description says.
    """

    __slots__ = (
        "_capacity",
        "_choice",
        "_collectives",
        "_functions",
        "_history",
        "_latency",
        "_monitor",
        "_next_number",
        "_patterns",
        "_routes",
        "_rtt",
        "_skipped",
        "_slot_of",
        "_storage",
        "_table",
        "dirty",
        "first",
        "now",
    )

    def __init__(
        self,
        fairness: Fairness = "maxmin",
        *,
        monitor: bool = False,
        now: Annotated[float, "s"] = 0.0,
        core: CoreName = "auto",
        rounds: int = ROUNDS,
        clock_from: int = CLOCK_FROM,
        max_plus: bool = False,
    ) -> None:
        if fairness not in ("maxmin", "rtt"):
            raise ValueError(f"fairness is 'maxmin' or 'rtt', not {fairness!r}")
        if not -inf < now < inf:
            raise ValueError(f"the time at the start must be a finite number, not {now}")
        compiled_wanted(core, 0)
        self.now = float(now)
        self.first = inf
        self.dirty = False
        self._choice: CoreName | None = core
        self._rtt = fairness == "rtt"
        self._monitor = monitor
        self._history: dict[int, tuple[list[float], list[float]]] = {}
        self._capacity: list[float] = []
        self._latency: list[float] = []
        self._routes: dict[object, Route] = {}  # by links, and demands if they are not 1
        self._patterns: list[_Pattern] = []
        self._collectives: list[_Collective | None] = []  # those that are open, by number
        self._slot_of: dict[int, int] = {}
        self._next_number = 0
        self._skipped = False  # numbers that the storage has not been told of
        self._storage = PlainStorage()
        self._storage.state.rounds = rounds
        self._storage.state.clock_from = clock_from
        self._storage.state.max_plus = int(max_plus)
        self._functions, self._table = self._storage.functions, self._storage.table

    @property
    def compiled(self) -> bool:
        """Whether the core runs compiled; ``auto`` is decided when the first flow starts."""
        return isinstance(self._storage, CompiledStorage)

    @property
    def solves(self) -> int:
        """How often rates were solved."""
        return int(self._storage.state.solves)

    @property
    def live(self) -> int:
        """The number of flows of finite size that have not ended, those of collectives included."""
        return self._storage.live

    # ------------------------------------------------------------------------------------------- links

    def add_link(self, capacity: Annotated[float, "B/s"], latency: Annotated[float, "s"] = 0.0) -> int:
        """Add a link, also while flows run, and return its number (0, 1, 2, …).

        Parameters
        ----------
        capacity
            Bytes per second (for a device: seconds of work per second); positive and finite.
        latency
            Seconds; not negative, finite.
        """
        _check_capacity(capacity)
        if not 0.0 <= latency < inf:
            raise ValueError(f"the latency of a link must be a finite number of at least 0, not {latency}")
        record = self._storage.add_link()
        record.capacity = record.full = float(capacity)
        link = len(self._capacity)
        self._capacity.append(float(capacity))
        self._latency.append(float(latency))
        if self._monitor:
            self.watch(link)
        return link

    def capacity(self, link: int) -> float:
        """Return the capacity of a link now, with flows one way only; 0.0 while it has failed."""
        return self._capacity[self._known_link(link)]

    def set_capacity(self, link: int, capacity: Annotated[float, "B/s"]) -> None:
        """Give a link another capacity from now on; it also brings a failed link back.

        A capacity of 0 is refused: a failure is asked for by its name, :meth:`fail`.
        """
        self._known_link(link)
        if capacity == 0.0:
            raise ValueError(f"the capacity of link {link} cannot be set to 0: use fail()")
        _check_capacity(capacity)
        self._change_capacity(link, float(capacity))

    def cross(self, link: int, opposite: int, loss: float) -> None:
        """Let two links, the directions of one cable, lose capacity from now on while flows use both.

        With n flows a link is then left with ``1 - loss / sqrt(n)`` of its capacity (see
        :mod:`simulator.engine.kernel.crossing`). A pipelined collective is one flow.

        Parameters
        ----------
        link, opposite
            Two links; neither is the opposite of another one.
        loss
            Above 0 and below 1.
        """
        if self._known_link(link) == self._known_link(opposite):
            raise ValueError(f"link {link} cannot be its own opposite")
        if not 0.0 < loss < 1.0:
            raise ValueError(f"the loss of a link must be above 0 and below 1, not {loss}")
        records = self._storage.records("links")
        for one, other in ((link, opposite), (opposite, link)):
            if records[one].loss > 0.0 and records[one].opposite != other:
                raise ValueError(f"link {one} is the opposite of link {records[one].opposite} already")
            if records[one].count or records[one].reserved:
                raise ValueError(f"link {one} carries flows: say before what is its opposite")
        for one, other in ((link, opposite), (opposite, link)):
            self._storage.state.crossed += records[one].loss == 0.0
            records[one].loss, records[one].opposite = float(loss), index(other)

    def fail(self, link: int) -> None:
        """Let a link carry nothing from now on: its flows stall until :meth:`set_capacity`."""
        self._change_capacity(self._known_link(link), 0.0)

    def carried(self, link: int) -> float:
        """Return what a link has carried so far, up to now: demand times progress, over all its flows."""
        self._known_link(link)
        links = self._storage.records("links")
        record = links[link]
        flows, hops = self._storage.records("flows"), self._storage.records("hops")
        parts = [float(record.carried)]
        here = record.head
        while here >= 0:
            parts.append(float(hops[here].use) * kernel.moved(self.now, links, flows[hops[here].flow]))
            here = hops[here].behind
        if record.reserved:
            parts.append(float(self._functions.carried_ahead(self._table, self.now, link)))
        return fsum(parts)

    def watch(self, link: int) -> None:
        """Record from now on how the total rate of a link changes (see :meth:`history`)."""
        self._known_link(link)
        if link not in self._history:
            self._storage.records("links")[link].watched = 1
            self._storage.state.watching = 1
            self._storage.reserve_log()
            self._history[link] = ([self.now], [self._total_rate(link)])

    def history(self, link: int) -> tuple[list[float], list[float]]:
        """Return the step function of a watched link: times, and the total rate from each time on.

        There is one entry at the instant of :meth:`watch`, and one for each later instant at which the total
        rate changed. Changes under way at this instant are settled first. The lists are the record itself,
        so leave them as they are.
        """
        self._known_link(link)
        if link not in self._history:
            raise ValueError(f"link {link} is not watched: call watch({link}) before the run")
        self.settle()
        self._read_log()
        return self._history[link]

    # ------------------------------------------------------------------------------------------- flows

    def add_route(self, links: Sequence[int], demand: Sequence[float] | None = None) -> Route:
        """Check a route and keep it for :meth:`start`, so that a run need not do it.

        The links should be there before, since ``core="auto"`` decides by their number now.
        """
        key = tuple(links) if demand is None else (tuple(links), tuple(demand))
        try:
            found = self._routes.get(key)
            # Equal numbers that are no integers, such as 0.0, would find a route too: their sum tells.
            if found is not None and type(sum(links)) is not int:
                found = None
        except TypeError:  # something that is no number
            found = None
        if found is not None:
            return found
        path = self._checked_route(links)
        uses = _checked_demand(demand, len(path)) if demand is not None else (1.0,) * len(path)
        if key not in self._routes:  # else its links are numbers of another kind
            self._choose()
            first = self._storage.add_legs(list(zip(path, uses, strict=True)))
            latency = fsum([self._latency[link] for link in path])
            self._routes[key] = Route(self, first, len(path), latency)
        return self._routes[key]

    def start(
        self,
        route: Sequence[int] | Route,
        size: Annotated[float, "B"],
        *,
        weight: float = 1.0,
        cap: Annotated[float, "B/s"] = inf,
        demand: Sequence[float] | None = None,
        latency: Annotated[float, "s"] | None = None,
        path_latency: Annotated[float, "s"] | None = None,
        at: Annotated[float, "s"] | None = None,
    ) -> int:
        """Start a flow and return its number.

        Parameters
        ----------
        route
            The links it uses, each once, or what :meth:`add_route` has kept. An empty route means
            that only `cap` limits the flow.
        size
            Bytes (for a computation: seconds of work). ``inf`` is background traffic, which only
            :meth:`cancel` ends. A flow of size 0 ends after its latency.
        weight
            Its share in proportion to others; positive and finite.
        cap
            Bytes per second that the flow never exceeds; positive.
        demand
            For each link of the route, how much of it one unit of progress uses; positive and finite.
            Without it, 1 each, or as the route was kept.
        latency
            Seconds that pass between the start and the first byte; without it, the sum of the latencies of
            the route's links.
        path_latency
            Seconds by which ``fairness="rtt"`` divides the weight, where they are not 0; without it, that
            sum too, whatever latency is paid.
        at
            The time of the start; without it, now. Not in the past.
        """
        if not size >= 0.0:
            raise ValueError(f"the size of a flow must be a number of at least 0, not {size}")
        if not 0.0 < weight < inf:
            raise ValueError(f"the weight of a flow must be a positive, finite number, not {weight}")
        if not cap > 0.0:
            raise ValueError(f"the cap of a flow must be a positive number, not {cap}")
        if size == cap == inf and (route.legs if isinstance(route, Route) else len(route)) == 0:
            raise ValueError("a flow of infinite size needs a link or a cap that limits its rate")
        begin = now = self.now
        if at is not None:
            if not now <= at < inf:
                raise ValueError(f"a flow cannot start at {at}: the time is already {now}")
            begin = float(at)
        if latency is not None and not 0.0 <= latency < inf:
            raise ValueError(f"the latency of a flow must be a finite number of at least 0, not {latency}")
        if path_latency is not None and not 0.0 <= path_latency < inf:
            raise ValueError(
                f"the path latency of a flow must be a finite number of at least 0, not {path_latency}"
            )
        if not isinstance(route, Route):
            route = self.add_route(route, demand)
        elif demand is not None or route.core is not self:
            raise ValueError("a kept route belongs to its core, and has its demands already")
        legs = route.legs
        begin += route.latency if latency is None else latency
        if self._rtt:
            weight = _biased(weight, route.latency if path_latency is None else path_latency)
        if self._skipped:
            self._storage.state.numbers = self._next_number
            self._skipped = False
        if not (type(size) is type(weight) is type(cap) is type(begin) is float):
            size, weight, cap, begin = float(size), float(weight), float(cap), float(begin)
        slot = self._functions.start(self._table, now, route.first, legs, size, weight, cap, begin)
        if slot < 0:
            self._make_room(legs)
            slot = self._functions.start(self._table, now, route.first, legs, size, weight, cap, begin)
        number = self._next_number
        self._next_number = number + 1
        self._slot_of[number] = slot
        if begin > now or size == 0.0 or (legs == 0 and cap == inf):
            if begin < self.first:
                self.first = begin
        else:
            self.dirty = True
        return number

    def next_number(self) -> int:
        """Return the number of the next flow for one that the core need not know."""
        number = self._next_number
        self._next_number = number + 1
        self._skipped = True
        return number

    def _make_room(self, legs: int) -> None:
        """Make slots or hops, of what there is too little of for a flow, by a quarter of what there is."""
        storage = self._storage
        state, lengths = storage.state, storage.lengths
        flows = hops = 0
        if state.flows_left <= state.flows_kept:
            flows = lengths["flows"] // 4 + 16
        if state.hops_left < state.hops_kept + legs:
            hops = lengths["hops"] // 4 + legs + 16
        storage.reserve(flows, hops)

    def cancel(self, flow: int) -> float:
        """End a flow now, without completion, and return its remaining size."""
        slot = self._known_flow(flow)
        remaining = self.remaining(flow)
        self._functions.cancel(self._table, self.now, slot)
        del self._slot_of[flow]
        self.dirty = True
        return remaining

    def running(self, flow: int) -> bool:
        """Return whether a flow was started and has neither completed nor been cancelled."""
        return flow in self._slot_of

    def rate(self, flow: int) -> float:
        """Return the rate of a flow from now on (0.0 during its latency); changes are settled first."""
        slot = self._known_flow(flow)
        self.settle()
        return kernel.rate_now(self._storage.records("links"), self._storage.records("flows")[slot])

    def remaining(self, flow: int) -> float:
        """Return the size of a flow that is still to be done, now."""
        record = self._storage.records("flows")[self._known_flow(flow)]
        if record.volume == inf or not record.active:
            return float(record.volume)
        if record.due <= self.now:
            return 0.0
        return float(kernel.left_now(self.now, self._storage.records("links"), record))

    def route(self, flow: int) -> tuple[int, ...]:
        """Return the links that a running flow uses."""
        hops = self._storage.records("hops")
        here = self._storage.records("flows")[self._known_flow(flow)].hop
        links = []
        while here >= 0:
            links.append(int(hops[here].link))
            here = hops[here].after
        return tuple(links)

    def stalled(self) -> list[int]:
        """Return the flows of finite size that will not end unless something changes, by number.

        Such a flow has paid its latency and has the rate 0, since a link of its route has failed.
        """
        self.settle()
        flows = self._storage.records("flows")
        return sorted(
            int(flow.number)
            for flow in (flows[slot] for slot in range(self._storage.lengths["flows"]))
            if flow.number >= 0 and flow.active and flow.clock < 0 and flow.due == inf and flow.volume < inf
        )

    # -------------------------------------------------------------------------------------- collectives

    def add_pattern(
        self, ranks: int, phases: Sequence[tuple[int, Sequence[Step]]], *, complete: bool = False
    ) -> int:
        """Keep a pattern of transfers between ranks for :meth:`collective`; return its number.

        Parameters
        ----------
        ranks
            How many take part; they are numbered from 0.
        phases
            For each: how often it is repeated, and its transfers. A rank enters a round when its transfers
            of the rounds before have ended.
        complete
            Whether no rank can end before all have entered, as in an all-reduce. Only then, and if no two
            transfers ever use a link at once, can a collective take the short way: while no other flow comes
            on its links, the ends of all ranks are computed as soon as the last has entered.
        """
        if not (_is_index(ranks, RANKS) and ranks):
            raise ValueError(f"a pattern needs a whole number of ranks from 1 on, not {ranks}")
        for repeat, steps in phases:
            if not _is_index(repeat, MOST_REPEATS):
                raise ValueError(f"a phase is repeated a whole number of times, not {repeat}")
            for step in steps:
                self._check_step(step, ranks)
        self._choose()
        paths = [[self.add_route(step.route) for step in steps] for _, steps in phases]
        storage = self._storage
        pattern = len(self._patterns)
        begin = storage.extend("patterns", 1)
        transfers = storage.extend("transfers", sum(len(steps) for _, steps in phases))
        heads = storage.extend("heads", 2 * ranks * len(phases))
        busy = storage.extend("heads", ranks)
        first_phase = storage.extend("phases", len(phases))
        storage.containers["heads"][heads : heads + 2 * ranks * len(phases)] = [-1] * (
            2 * ranks * len(phases)
        )
        record = storage.records("patterns")[begin]
        record.ranks, record.phase, record.phases = ranks, first_phase, len(phases)
        record.transfer, record.transfers = transfers, sum(len(s) for _, s in phases)
        record.head, record.busy = heads, busy
        flows, hops = [0] * ranks, [0] * ranks
        place = transfers
        for phase, (repeat, steps) in enumerate(phases):
            head_of_phase = storage.records("phases")[first_phase + phase]
            head_of_phase.repeat, head_of_phase.transfer, head_of_phase.transfers = repeat, place, len(steps)
            sends, legs = [0] * ranks, [0] * ranks
            tails: dict[int, int] = {}
            for step, path in zip(steps, paths[phase], strict=True):
                entry = storage.records("transfers")[place]
                entry.source, entry.destination, entry.phase = step.source, step.destination, phase
                entry.fraction, entry.latency = step.fraction, step.latency
                entry.leg, entry.legs = path.first, path.legs
                entry.weight = _biased(1.0, step.latency) if self._rtt else 1.0
                entry.after_out = entry.after_in = -1
                for side, rank in enumerate((step.source, step.destination)):
                    head = heads + 2 * (phase * ranks + rank) + side
                    if head not in tails:
                        storage.containers["heads"][head] = place
                    elif side == 0:
                        storage.records("transfers")[tails[head]].after_out = place
                    else:
                        storage.records("transfers")[tails[head]].after_in = place
                    tails[head] = place
                sends[step.source] += 1
                legs[step.source] += path.legs
                place += 1
            flows = list(map(max, flows, sends))
            hops = list(map(max, hops, legs))
        record.uncontended = complete and _never_shares_a_link(phases)
        self._patterns.append(_Pattern(ranks, place - transfers, max(ranks, sum(flows)), sum(hops)))
        return pattern

    def _check_step(self, step: Step, ranks: int) -> None:
        for rank in (step.source, step.destination):
            if not _is_index(rank, ranks):
                raise ValueError(f"a pattern of {ranks} ranks has no rank {rank}")
        for name, value in (("fraction", step.fraction), ("latency", step.latency)):
            if not 0.0 <= value < inf:
                raise ValueError(
                    f"the {name} of a transfer must be a finite number of at least 0, not {value}"
                )
        self._checked_route(step.route)

    def ranks(self, pattern: int) -> int:
        """Return how many ranks take part in a pattern."""
        return self._patterns[self._known_pattern(pattern)].ranks

    def collective(
        self,
        pattern: int,
        nbytes: Annotated[float, "B"],
        *,
        payload_share: float = 1.0,
        latency_factor: float = 1.0,
        handling_rate: Annotated[float, "B/s"] = inf,
        rendezvous: bool = False,
        in_flight: int = 1,
    ) -> int:
        """Open a collective and return its number, which is used again when it is closed.

        A transfer moves its fraction of `nbytes` over `payload_share` in each of its rounds, and pays
        `latency_factor` times its latency, and its fraction over `handling_rate`, before. A message begins
        when its sender enters the round, with `rendezvous` not before its receiver does, and never before
        the one before it has ended. A rank enters the round after the latest when fewer than `in_flight`
        rounds, 1 or 2, are left open, and the first of a phase when none is.
        """
        self._known_pattern(pattern)
        if not 0.0 <= nbytes < inf:
            raise ValueError(f"the size of a collective must be a finite number of at least 0, not {nbytes}")
        if not 0.0 < payload_share < inf:
            raise ValueError(f"the payload share must be a positive, finite number, not {payload_share}")
        if not handling_rate > 0.0:
            raise ValueError(f"the handling rate must be a positive number, not {handling_rate}")
        if in_flight not in (1, 2):
            raise ValueError(f"1 or 2 rounds can be in flight, not {in_flight}")
        if not 0.0 <= latency_factor < inf:
            raise ValueError(
                f"the latency factor must be a finite number of at least 0, not {latency_factor}"
            )
        kept = self._patterns[pattern]
        storage = self._storage
        if kept.closed:
            index = kept.closed.pop()
        else:
            index = storage.extend("collectives", 1)
            self._collectives.append(None)
            storage.state.collectives += 1
            record = storage.records("collectives")[index]
            record.pattern = pattern
            record.part = storage.extend("parts", kept.ranks)
            record.message = storage.extend("messages", kept.transfers)
            storage.extend("ends", kept.ranks)
        self._collectives[index] = _Collective(pattern, bytearray(kept.ranks))
        record = storage.records("collectives")[index]
        record.nbytes, record.payload_share = float(nbytes), float(payload_share)
        record.latency_factor, record.rendezvous = float(latency_factor), bool(rendezvous)
        record.in_flight, record.handling = int(in_flight), 1.0 / handling_rate
        state = storage.state
        short = (
            kept.flows + state.flows_kept - state.flows_left,
            kept.hops + state.hops_kept - state.hops_left,
        )
        storage.reserve(flows=max(0, int(short[0])), hops=max(0, int(short[1])))
        self._functions.open_collective(self._table, index, kept.flows, kept.hops)
        return index

    def enter(self, collective: int, rank: int) -> bool:
        """Let a rank begin its part of a collective; return whether it has ended already.

        Otherwise :meth:`advance` tells its end.
        """
        entered = self._known_collective(collective).entered
        if not _is_index(rank, len(entered)):
            raise ValueError(f"a collective of {len(entered)} ranks has no rank {rank}")
        if entered[rank]:
            raise ValueError(f"rank {rank} has already entered collective {collective}")
        entered[rank] = 1
        self.dirty = True
        self.first = self.now  # for it may have started flows that wait out their latency
        return bool(self._functions.enter(self._table, self.now, collective, rank))

    def close(self, collective: int) -> None:
        """Let go of a collective whose parts have all ended."""
        self._known_collective(collective)
        if self._storage.records("collectives")[collective].left:
            raise ValueError(f"collective {collective} has not ended: use cancel_collective()")
        self._let_go(collective)

    def cancel_collective(self, collective: int) -> None:
        """End a collective now, without completion: no part of it ends any more."""
        self._known_collective(collective)
        self._read_log()
        slots = self._storage.lengths["flows"]
        self._functions.cancel_collective(self._table, self.now, collective, slots)
        self.dirty = True
        self._let_go(collective)

    def _let_go(self, collective: int) -> None:
        kept = self._patterns[self._known_collective(collective).pattern]
        self._collectives[collective] = None
        kept.closed.append(collective)
        self._functions.close_collective(self._table, kept.flows, kept.hops)

    # -------------------------------------------------------------------------------------------- time

    def advance(self, limit: Annotated[float, "s"]) -> list[int]:
        """Let time pass to the next completions, or to `limit` if there are none until then.

        Parameters
        ----------
        limit
            Seconds; not in the past. With ``inf`` and no completion to come, time stays at the last change.
            With the present time, only what is already known to be due is returned: nothing is solved.

        Returns
        -------
        list of int
            The flows that complete at exactly the new `now`, by number, then the parts of collectives that
            end, as -1 - (collective * RANKS + rank); empty if `limit` was reached.
        """
        if not limit >= self.now:
            raise ValueError(f"cannot advance to {limit}: the time is already {self.now}")
        return list(self.advance_to(float(limit)))

    def leave_short_ways(self) -> bool:
        """Let all collectives on the max-plus short way go on as flows; return whether any flow goes on then.

        Where nothing else is left to happen, they wait for ranks that never enter.
        """
        if not self._functions.leave_short_ways(self._table):
            return False
        self.settle()
        return self.live > 0

    def advance_to(self, limit: Annotated[float, "s"]) -> Sequence[int]:
        """Do as :meth:`advance`, for a run loop that knows that the limit is not in the past."""
        while True:
            count, number, self.now, self.first, self.dirty = self._functions.advance(
                self._table, self.now, limit
            )
            if count == 0:
                return ()
            if count == 1:
                if number >= 0:
                    del self._slot_of[number]
                return (number,)
            if count > 0:
                completed = self._storage.finished(count)
                for number in completed:
                    if number >= 0:
                        del self._slot_of[number]
                return completed
            self._read_log()

    def next_due(self) -> float:
        """Return the first time on the agenda: the next end of a flow or latency, if nothing is dirty."""
        return self.first

    def next_time(self) -> float:
        """Return when a flow or a latency ends next if nothing else happens; changes are settled first."""
        if self.dirty and self.first > self.now:
            self.settle()
        return self.first

    def settle(self) -> None:
        """Solve the rates that changes up to now have changed.

        Time does this by itself when it is about to pass. To ask in the middle of an instant costs one more
        solve, and a rate that is different only for a moment may move an end by a rounding error.
        """
        self._read_log()
        self.first = self._functions.settle_now(self._table, self.now)
        self.dirty = False

    # ------------------------------------------------------------------------------------- the books

    def _choose(self) -> None:
        """Compile now, or never."""
        if self._choice is not None:
            if compiled_wanted(self._choice, len(self._capacity)):
                self._storage = CompiledStorage(self._storage)
                self._functions, self._table = self._storage.functions, self._storage.table
            self._choice = None

    def _read_log(self) -> None:
        """Add what the core has written down to the histories: one entry an instant at most."""
        state = self._storage.state
        if not state.log_count:
            return
        log = self._storage.records("log")[: state.log_count]
        if isinstance(log, list):
            for entry in log:
                self._record(entry.link, entry.time, entry.total)
        else:
            # Column by column: asking an array for one record at a time costs as much as the simulation.
            for entry in zip(log.link.tolist(), log.time.tolist(), log.total.tolist(), strict=True):
                self._record(*entry)
        state.log_count = 0

    def _record(self, link: int, time: float, total: float) -> None:
        times, totals = self._history[link]
        if times[-1] == time:
            totals[-1] = total
            if len(totals) > 1 and totals[-2] == total:
                times.pop()
                totals.pop()
        elif totals[-1] != total:
            times.append(time)
            totals.append(total)

    def _total_rate(self, link: int) -> float:
        records = self._storage.records
        return float(kernel.total_rate(records("links"), records("flows"), records("hops"), link))

    # ------------------------------------------------------------------------------------------ checks

    def _change_capacity(self, link: int, capacity: float) -> None:
        if self._capacity[link] != capacity:
            self._capacity[link] = capacity
            self._functions.change_capacity(self._table, self.now, link, capacity)
            self.dirty = True

    def _known_link(self, link: int) -> int:
        if not _is_index(link, len(self._capacity)):
            raise ValueError(_unknown_link(link, len(self._capacity)))
        return link

    def _known_flow(self, flow: int) -> int:
        slot = self._slot_of.get(flow)
        if slot is None and type(flow) is int and flow >= FIRST_INNER:
            flows = self._storage.records("flows")
            found = (s for s in range(self._storage.lengths["flows"]) if flows[s].number == flow)
            slot = next(found, None)
        if slot is None:
            past = _is_index(flow, self._next_number)
            raise ValueError(f"flow {flow} has already ended" if past else f"there is no flow {flow}")
        return slot

    def _known_pattern(self, pattern: int) -> int:
        if not _is_index(pattern, len(self._patterns)):
            raise ValueError(f"there is no pattern {pattern}")
        return pattern

    def _known_collective(self, collective: int) -> _Collective:
        known = _is_index(collective, len(self._collectives))
        found = self._collectives[collective] if known else None
        if found is None:
            raise ValueError(f"there is no open collective {collective}")
        return found

    def _checked_route(self, route: Sequence[int]) -> tuple[int, ...]:
        links = len(self._capacity)
        for link in route:
            if not _is_index(link, links):
                raise ValueError(_unknown_link(link, links))
        path = tuple(map(index, route))
        if len(set(path)) < len(path):
            twice = next(link for position, link in enumerate(path) if link in path[:position])
            raise ValueError(f"a route uses a link only once, but link {twice} is in it twice")
        return path


def _biased(weight: float, path_latency: float) -> float:
    return weight / path_latency if path_latency > 0.0 else weight


def _never_shares_a_link(phases: Sequence[tuple[int, Sequence[Step]]]) -> bool:
    """Return whether each link serves one sender only, and one transfer of it at a time."""
    sender: dict[int, int] = {}
    for _, steps in phases:
        busy: set[int] = set()
        for step in steps:
            for link in step.route:
                if link in busy or sender.setdefault(link, step.source) != step.source:
                    return False
                busy.add(link)
    return True


def _is_index(value: object, length: int) -> bool:
    return hasattr(value, "__index__") and 0 <= index(value) < length


def _unknown_link(link: object, links: int) -> str:
    known = f"links are numbered 0 to {links - 1}" if links else "there are no links yet"
    return f"there is no link {link}: {known}"


def _check_capacity(capacity: float) -> None:
    if not 0.0 < capacity < inf:
        raise ValueError(f"the capacity of a link must be a positive, finite number, not {capacity}")


def _checked_demand(demand: Sequence[float], length: int) -> tuple[float, ...]:
    if len(demand) != length:
        raise ValueError(f"a route of {length} links needs {length} demands, not {len(demand)}")
    for use in demand:
        if not 0.0 < use < inf:
            raise ValueError(f"the demand of a flow must be a positive, finite number, not {use}")
    return tuple(map(float, demand))
