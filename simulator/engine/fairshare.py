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

With ``fairness="rtt"`` the weight is multiplied by 1 / (sum of the latencies of the route's links), the
steady-state bias of TCP's congestion avoidance against long round trips.

How time passes
---------------
Between two changes rates are constant, so a flow is described by its remaining work at the last change of its
*own* rate, the time of that change, and the rate; its end is ``time of the change + remaining / rate``. A
flow whose rate comes out the same is not touched, hence no rounding accumulates. Whatever happens at one
instant (ends, starts, new capacities) only marks links as dirty; the rates are solved once, when time is
about to pass, for the connected components that hold a dirty link. Only exactly equal times are simultaneous.

Rates do not depend on how links are numbered: sums run in the order in which the flows came, links that
saturate at the same level are handled together, and ends at one instant are ordered by flow number.

Links and flows are integers here. Flow numbers are given in sequence and never used twice; the state of a
flow lies in lists, at a slot that is reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import fsum, inf
from operator import index
from typing import Annotated, Literal

__all__ = ["Core", "Fairness"]

Fairness = Literal["maxmin", "rtt"]

_UNIT = (1.0,)


class Core:
    """Flows on links, and the time.

    Parameters
    ----------
    fairness
        ``"maxmin"``: shares in proportion to the weights. ``"rtt"``: the weights are also divided by the sum
        of the latencies of the route's links (where that is not zero).
    monitor
        Watch every link from its addition on, as :meth:`watch` does.
    now
        The time at which the clock starts, in seconds.

    Attributes
    ----------
    now : float
        The time in seconds. A run loop that knows that nothing is due may set it forward, never backward.
    solves : int
        How often rates were solved.
    live : int
        The number of flows of finite size that have not ended.
    agenda : list of (time, flow number, slot)
        A heap of ends and of ends of latencies; entries may be out of date, but none is missing, so that
        its first time is a lower bound while `dirty` is empty. For a run loop to read.
    dirty : dict of links
        The links whose flows or capacity changed since the last solve. For a run loop to read.

    Raises
    ------
    ValueError
        From every method, before any state changes, when an argument is not what its description says.
    """

    __slots__ = (
        "_active",
        "_cap",
        "_capacity",
        "_carried",
        "_count",
        "_demand",
        "_due",
        "_flow_stamp",
        "_free",
        "_fresh",
        "_history",
        "_latency",
        "_left",
        "_link_stamp",
        "_load",
        "_members",
        "_monitor",
        "_next_number",
        "_number",
        "_pending",
        "_rate",
        "_residual",
        "_route",
        "_rtt",
        "_since",
        "_size",
        "_slot_of",
        "_stamp",
        "_touched",
        "_weight",
        "agenda",
        "dirty",
        "live",
        "now",
        "solves",
    )

    def __init__(
        self, fairness: Fairness = "maxmin", *, monitor: bool = False, now: Annotated[float, "s"] = 0.0
    ) -> None:
        if fairness not in ("maxmin", "rtt"):
            raise ValueError(f"fairness is 'maxmin' or 'rtt', not {fairness!r}")
        if not -inf < now < inf:
            raise ValueError(f"the time at the start must be a finite number, not {now}")
        self.now = float(now)
        self.solves = 0
        self.live = 0
        self.agenda: list[tuple[float, int, int]] = []
        self.dirty: dict[int, None] = {}
        self._rtt = fairness == "rtt"
        self._monitor = monitor
        self._history: dict[int, tuple[list[float], list[float]]] = {}
        # Links, by number: the description, the flows that use the link now (slot -> demand, in the order of
        # their coming), and what ended or cancelled flows carried.
        self._capacity: list[float] = []
        self._latency: list[float] = []
        self._members: list[dict[int, float]] = []
        self._carried: list[float] = []
        # Links: working space of the solver.
        self._residual: list[float] = []
        self._load: list[float] = []
        self._fresh: list[float] = []
        self._count: list[int] = []
        self._touched: list[bool] = []
        self._link_stamp: list[int] = []
        # Flows, by slot.
        self._slot_of: dict[int, int] = {}
        self._free: list[int] = []
        self._next_number = 0
        self._number: list[int] = []
        self._route: list[tuple[int, ...]] = []
        self._demand: list[tuple[float, ...]] = []
        self._weight: list[float] = []
        self._cap: list[float] = []
        self._size: list[float] = []
        self._left: list[float] = []
        self._rate: list[float] = []
        self._since: list[float] = []
        self._due: list[float] = []
        self._active: list[bool] = []
        self._pending: list[bool] = []
        self._flow_stamp: list[int] = []
        self._stamp = 0

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
        link = len(self._capacity)
        self._capacity.append(float(capacity))
        self._latency.append(float(latency))
        self._members.append({})
        self._carried.append(0.0)
        for space in (self._residual, self._load, self._fresh):
            space.append(0.0)
        self._count.append(0)
        self._touched.append(False)
        self._link_stamp.append(0)
        if self._monitor:
            self.watch(link)
        return link

    def capacity(self, link: int) -> float:
        """Return the capacity of a link now; 0.0 while it has failed."""
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

    def fail(self, link: int) -> None:
        """Let a link carry nothing from now on: its flows stall until :meth:`set_capacity`."""
        self._change_capacity(self._known_link(link), 0.0)

    def carried(self, link: int) -> float:
        """Return what a link has carried so far, up to now: demand times progress, over all its flows."""
        self._known_link(link)
        under_way = [use * self._moved(slot) for slot, use in self._members[link].items()]
        return fsum([self._carried[link], *under_way])

    def watch(self, link: int) -> None:
        """Record from now on how the total rate of a link changes (see :meth:`history`)."""
        self._known_link(link)
        if link not in self._history:
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
        return self._history[link]

    # ------------------------------------------------------------------------------------------- flows

    def start(
        self,
        route: Sequence[int],
        size: Annotated[float, "B"],
        *,
        weight: float = 1.0,
        cap: Annotated[float, "B/s"] = inf,
        demand: Sequence[float] | None = None,
        latency: Annotated[float, "s"] | None = None,
        at: Annotated[float, "s"] | None = None,
    ) -> int:
        """Start a flow and return its number.

        Parameters
        ----------
        route
            The links it uses, each once. An empty route means that only `cap` limits the flow.
        size
            Bytes (for a computation: seconds of work). ``inf`` is background traffic, which only
            :meth:`cancel` ends. A flow of size 0 ends after its latency.
        weight
            Its share in proportion to others; positive and finite.
        cap
            Bytes per second that the flow never exceeds; positive.
        demand
            For each link of the route, how much of it one unit of progress uses; positive and finite.
            Without it, 1 each.
        latency
            Seconds that pass between the start and the first byte; without it, the sum of the latencies of
            the route's links. (The weights of ``fairness="rtt"`` always use that sum.)
        at
            The time of the start; without it, now. Not in the past.
        """
        if not size >= 0.0:
            raise ValueError(f"the size of a flow must be a number of at least 0, not {size}")
        if not 0.0 < weight < inf:
            raise ValueError(f"the weight of a flow must be a positive, finite number, not {weight}")
        if not cap > 0.0:
            raise ValueError(f"the cap of a flow must be a positive number, not {cap}")
        if len(route) == 1 and type(route[0]) is int and 0 <= route[0] < len(self._capacity):
            path: tuple[int, ...] = (route[0],)
            path_latency = self._latency[route[0]]
        else:
            path = self._checked_route(route)
            path_latency = fsum([self._latency[link] for link in path])
            if not path and size == cap == inf:
                raise ValueError("a flow of infinite size needs a link or a cap that limits its rate")
        if demand is not None:
            uses = _checked_demand(demand, len(path))
        else:
            uses = _UNIT if len(path) == 1 else (1.0,) * len(path)
        begin = self.now
        if at is not None:
            if not begin <= at < inf:
                raise ValueError(f"a flow cannot start at {at}: the time is already {begin}")
            begin = float(at)
        if latency is None:
            begin += path_latency
        elif 0.0 <= latency < inf:
            begin += float(latency)
        else:
            raise ValueError(f"the latency of a flow must be a finite number of at least 0, not {latency}")
        if self._rtt and path_latency > 0.0:
            weight = weight / path_latency
        return self._admit(path, uses, float(size), float(weight), float(cap), begin)

    def cancel(self, flow: int) -> float:
        """End a flow now, without completion, and return its remaining size."""
        slot = self._known_flow(flow)
        remaining = self.remaining(flow)
        self._release(slot)
        return remaining

    def running(self, flow: int) -> bool:
        """Return whether a flow was started and has neither completed nor been cancelled."""
        return flow in self._slot_of

    def rate(self, flow: int) -> float:
        """Return the rate of a flow from now on (0.0 during its latency); changes are settled first."""
        slot = self._known_flow(flow)
        self.settle()
        return self._rate[slot]

    def remaining(self, flow: int) -> float:
        """Return the size of a flow that is still to be done, now."""
        slot = self._known_flow(flow)
        size = self._size[slot]
        if size == inf or not self._active[slot]:
            return size
        if self._due[slot] <= self.now:
            return 0.0
        return self._left_now(slot)

    def route(self, flow: int) -> tuple[int, ...]:
        """Return the links that a running flow uses."""
        return self._route[self._known_flow(flow)]

    def stalled(self) -> list[int]:
        """Return the flows of finite size that will not end unless something changes, by number.

        Such a flow has paid its latency and has the rate 0, since a link of its route has failed.
        """
        self.settle()
        return [
            number
            for number, slot in self._slot_of.items()
            if self._active[slot] and self._due[slot] == inf and self._size[slot] < inf
        ]

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
            The flows that complete at exactly the new `now`, by number; empty if `limit` was reached.
        """
        if not limit >= self.now:
            raise ValueError(f"cannot advance to {limit}: the time is already {self.now}")
        while True:
            time = self.next_due()
            # What is due at this very instant comes before the solve, since it may change more.
            if self.dirty and time > self.now and limit > self.now:
                self.settle()
                time = self.next_due()
            if time > limit or time == inf:
                if limit < inf:
                    self.now = float(limit)
                return []
            self.now = time
            completed = self._happen(time)
            if completed:
                return completed

    def next_due(self) -> float:
        """Return the first time on the agenda: the next end of a flow or latency, if nothing is dirty."""
        agenda = self.agenda
        while agenda:
            time, number, slot = agenda[0]
            if self._due[slot] == time and self._number[slot] == number:
                return time
            heappop(agenda)
        return inf

    def next_time(self) -> float:
        """Return when a flow or a latency ends next if nothing else happens; changes are settled first."""
        if self.dirty and self.next_due() > self.now:
            self.settle()
        return self.next_due()

    def settle(self) -> None:
        """Solve the rates of the components that changed, now.

        Time does this by itself when it is about to pass. To ask in the middle of an instant costs one more
        solve, and a rate that is different only for a moment may move an end by a rounding error.
        """
        if not self.dirty:
            return
        self.solves += 1
        self._stamp += 1
        members, route, capacity = self._members, self._route, self._capacity
        for link in self.dirty:
            here = members[link]
            if len(here) == 1:
                # Mostly a computation that has its device for itself.
                ((slot, use),) = here.items()
                if len(route[slot]) == 1:
                    rate = capacity[link] / use
                    if rate > self._cap[slot]:
                        rate = self._cap[slot]
                    if rate != self._rate[slot]:
                        self._set_rate(slot, rate)
                    if self._history:
                        self._record((link,))
                elif self._flow_stamp[slot] != self._stamp:
                    self._solve_from(link, slot)
            elif here:
                if self._link_stamp[link] != self._stamp:
                    self._solve_component(link)
            elif self._history:
                self._record((link,))
        self.dirty.clear()

    # ---------------------------------------------------------------------------- the life of one flow

    def _admit(
        self,
        route: tuple[int, ...],
        demand: tuple[float, ...],
        size: float,
        weight: float,
        cap: float,
        begin: float,
    ) -> int:
        number = self._next_number
        self._next_number = number + 1
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._new_slot()
        self._slot_of[number] = slot
        self._number[slot] = number
        self._route[slot] = route
        self._demand[slot] = demand
        self._weight[slot] = weight
        self._cap[slot] = cap
        self._size[slot] = size
        if size < inf:
            self._left[slot] = size
            self.live += 1
        else:
            self._left[slot] = 0.0  # an endless flow counts downward from zero
        self._rate[slot] = 0.0
        if begin > self.now or size == 0.0 or not route:
            self._active[slot] = False
            self._due[slot] = begin
            heappush(self.agenda, (begin, number, slot))
        else:
            self._activate(slot)
        return number

    def _new_slot(self) -> int:
        for state in (self._number, self._flow_stamp):
            state.append(-1)
        for values in (self._weight, self._cap, self._size, self._left, self._rate, self._since, self._due):
            values.append(0.0)
        for pairs in (self._active, self._pending):
            pairs.append(False)
        self._route.append(())
        self._demand.append(())
        return len(self._number) - 1

    def _activate(self, slot: int) -> None:
        """Let a flow that has paid its latency compete for its links."""
        self._active[slot] = True
        self._since[slot] = self.now
        self._due[slot] = inf
        members, dirty = self._members, self.dirty
        for link, use in zip(self._route[slot], self._demand[slot], strict=True):
            members[link][slot] = use
            dirty[link] = None
        if not self._route[slot]:
            self._set_rate(slot, self._cap[slot])

    def _happen(self, time: float) -> list[int]:
        """Do all that is due at `time` (which is now) and return the flows that completed, by number."""
        agenda = self.agenda
        completed: list[int] = []
        while agenda and agenda[0][0] == time:
            _, number, slot = heappop(agenda)
            if self._due[slot] != time or self._number[slot] != number:
                continue
            unlimited = not self._route[slot] and self._cap[slot] == inf
            if self._active[slot] or self._size[slot] == 0.0 or unlimited:
                self._left[slot] = 0.0
                self._rate[slot] = 0.0
                self._release(slot)
                completed.append(number)
            else:
                self._activate(slot)
        return completed

    def _release(self, slot: int) -> None:
        """Take a flow off its links and free its slot."""
        if self._active[slot]:
            moved = self._moved(slot)
            members, carried, dirty = self._members, self._carried, self.dirty
            for link in self._route[slot]:
                carried[link] += members[link].pop(slot) * moved
                dirty[link] = None
        if self._size[slot] < inf:
            self.live -= 1
        del self._slot_of[self._number[slot]]
        self._number[slot] = -1
        self._due[slot] = inf
        self._free.append(slot)

    def _set_rate(self, slot: int, rate: float) -> None:
        """Fix the work done so far, change the rate, and put the new end on the agenda."""
        left = self._left[slot]
        if self._rate[slot] > 0.0:
            left = self._left_now(slot)
        self._left[slot] = left
        self._since[slot] = now = self.now
        self._rate[slot] = rate
        if rate > 0.0 and self._size[slot] < inf:
            due = now + left / rate
            self._due[slot] = due
            if due < inf:
                agenda = self.agenda
                heappush(agenda, (due, self._number[slot], slot))
                if len(agenda) > 64 + 4 * len(self._slot_of):
                    self._clean_agenda()
        else:
            self._due[slot] = inf

    def _left_now(self, slot: int) -> float:
        """Return the remaining work of an active flow now (of an endless one: minus its progress)."""
        left = self._left[slot] - self._rate[slot] * (self.now - self._since[slot])
        return left if left > 0.0 or self._size[slot] == inf else 0.0

    def _moved(self, slot: int) -> float:
        """Return the progress of an active flow up to now."""
        size = self._size[slot]
        return (size if size < inf else 0.0) - self._left_now(slot)

    def _clean_agenda(self) -> None:
        """Drop the entries that are out of date, in place."""
        current = {
            entry: None
            for entry in self.agenda
            if self._due[entry[2]] == entry[0] and self._number[entry[2]] == entry[1]
        }
        self.agenda[:] = current
        heapify(self.agenda)

    # ------------------------------------------------------------------------------------------ solver

    def _solve_from(self, link: int, slot: int) -> None:
        """Solve the component of a flow over several links: at once if it is alone on all of them."""
        members, capacity = self._members, self._capacity
        route = self._route[slot]
        rate = self._cap[slot]
        for there, use in zip(route, self._demand[slot], strict=True):
            if len(members[there]) != 1:
                self._solve_component(link)
                return
            if capacity[there] / use < rate:
                rate = capacity[there] / use
        self._flow_stamp[slot] = self._stamp
        if rate != self._rate[slot]:
            self._set_rate(slot, rate)
        if self._history:
            self._record(route)

    def _solve_component(self, link: int) -> None:
        links, slots = self._component(link)
        rates = self._progressive_filling(links, slots)
        current = self._rate
        for slot, rate in rates.items():
            if rate != current[slot]:
                self._set_rate(slot, rate)
        if self._history:
            self._record(links)

    def _component(self, link: int) -> tuple[list[int], list[int]]:
        """Return the links and the flows (slots) that are connected to a link through flows."""
        stamp = self._stamp
        link_stamp, flow_stamp = self._link_stamp, self._flow_stamp
        links = [link]
        slots: list[int] = []
        link_stamp[link] = stamp
        for here in links:  # grows while it is read
            for slot in self._members[here]:
                if flow_stamp[slot] != stamp:
                    flow_stamp[slot] = stamp
                    slots.append(slot)
                    for there in self._route[slot]:
                        if link_stamp[there] != stamp:
                            link_stamp[there] = stamp
                            links.append(there)
        return links, slots

    def _progressive_filling(self, links: list[int], slots: list[int]) -> dict[int, float]:
        """Return the max-min fair rate of each flow of one component.

        The level at which a link saturates only rises while flows are fixed elsewhere (they take less of it
        than their share). So a heap of lower bounds suffices: an entry is made exact when it comes to the
        top.
        """
        weight, cap, pending, number = self._weight, self._cap, self._pending, self._number
        heap = self._initial_levels(links)
        caps: list[tuple[float, int, int]] = []
        for slot in slots:
            pending[slot] = True
            if cap[slot] < inf:
                caps.append((cap[slot] / weight[slot], number[slot], slot))
        caps.sort(reverse=True)
        rates: dict[int, float] = {}
        while len(rates) < len(slots):
            while caps and not pending[caps[-1][2]]:
                caps.pop()
            level, saturated = self._lowest_level(heap, caps[-1][0] if caps else inf)
            fixed: dict[int, float] = {}
            while caps and caps[-1][0] <= level:
                slot = caps.pop()[2]
                if pending[slot]:
                    fixed[slot] = cap[slot]
            for link in saturated:
                self._fix_on(link, level, fixed)
            rates.update(fixed)
            if len(rates) < len(slots):
                self._take_out(sorted(fixed, key=number.__getitem__), fixed)
        return rates

    def _initial_levels(self, links: list[int]) -> list[tuple[float, int]]:
        """Prepare the working space of the links; return the heap of (level of saturation, link)."""
        weight, members, capacity = self._weight, self._members, self._capacity
        heap: list[tuple[float, int]] = []
        for link in links:
            here = members[link]
            load = 0.0
            for slot, use in here.items():
                load += use * weight[slot]
            self._residual[link] = capacity[link]
            self._load[link] = self._fresh[link] = load
            self._count[link] = len(here)
            self._touched[link] = False
            heap.append((capacity[link] / load, link))
        heapify(heap)
        return heap

    def _lowest_level(self, heap: list[tuple[float, int]], level: float) -> tuple[float, list[int]]:
        """Return the level at which links saturate next, at most `level`, and those links (off the heap)."""
        saturated: list[int] = []
        while heap and heap[0][0] <= level:
            bound, link = heap[0]
            if not self._count[link]:
                heappop(heap)
                continue
            exact = self._exact_level(link, bound) if self._touched[link] else bound
            if exact > bound:
                heapreplace(heap, (exact, link))
            else:
                heappop(heap)
                saturated.append(link)
                level = bound
        return level, saturated

    def _exact_level(self, link: int, bound: float) -> float:
        """Return the level at which a link saturates with the flows that are still pending."""
        load = self._load[link]
        # Subtraction leaves rounding errors of the flows that are gone; they matter once those dominated.
        if self._count[link] == 1 or load < 0.5 * self._fresh[link]:
            weight, pending = self._weight, self._pending
            load = 0.0
            for slot, use in self._members[link].items():
                if pending[slot]:
                    load += use * weight[slot]
            self._load[link] = self._fresh[link] = load
        self._touched[link] = False
        level = self._residual[link] / load
        if level < bound:  # by rounding only: levels never fall
            self._residual[link] = bound * load
            return bound
        return level

    def _fix_on(self, link: int, level: float, fixed: dict[int, float]) -> None:
        """Give the pending flows of a saturated link their rates, in `fixed`; the smallest offer counts."""
        weight, pending = self._weight, self._pending
        last = self._count[link] == 1
        for slot, use in self._members[link].items():
            if pending[slot]:
                # The last flow gets what is left, without the detour (and the rounding) over the level.
                rate = self._residual[link] / use if last else weight[slot] * level
                if rate < fixed.get(slot, inf):
                    fixed[slot] = rate

    def _take_out(self, order: list[int], fixed: dict[int, float]) -> None:
        """Subtract fixed flows from the residual capacity and the load of their links."""
        residual, load, count, touched = self._residual, self._load, self._count, self._touched
        for slot in order:
            rate, weight = fixed[slot], self._weight[slot]
            self._pending[slot] = False
            for link, use in zip(self._route[slot], self._demand[slot], strict=True):
                residual[link] -= use * rate
                load[link] -= use * weight
                count[link] -= 1
                touched[link] = True

    # -------------------------------------------------------------------------------------- monitoring

    def _total_rate(self, link: int) -> float:
        rate = self._rate
        return fsum([use * rate[slot] for slot, use in self._members[link].items()])

    def _record(self, links: Sequence[int]) -> None:
        """Write down the total rates of those of `links` that are watched: one entry an instant at most."""
        for link in links:
            if link not in self._history:
                continue
            times, totals = self._history[link]
            total = self._total_rate(link)
            if times[-1] == self.now:
                totals[-1] = total
                if len(totals) > 1 and totals[-2] == total:
                    times.pop()
                    totals.pop()
            elif totals[-1] != total:
                times.append(self.now)
                totals.append(total)

    # ------------------------------------------------------------------------------------------ checks

    def _change_capacity(self, link: int, capacity: float) -> None:
        if self._capacity[link] != capacity:
            self._capacity[link] = capacity
            if self._members[link]:
                self.dirty[link] = None

    def _known_link(self, link: int) -> int:
        if not _is_index(link, len(self._capacity)):
            raise ValueError(_unknown_link(link, len(self._capacity)))
        return link

    def _known_flow(self, flow: int) -> int:
        slot = self._slot_of.get(flow)
        if slot is None:
            past = _is_index(flow, self._next_number)
            raise ValueError(f"flow {flow} has already ended" if past else f"there is no flow {flow}")
        return slot

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
