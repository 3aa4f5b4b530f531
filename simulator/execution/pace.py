"""How long computations take on the wall clock where a scenario says so: emulated compute, real stragglers.

A computation that is not to end yet waits, in the thread that computes. With ``compute: emulated`` it ends
when the scenario's cost model says, whatever the real computation took (unless that took longer; the most
that one did so is observed as ``overrun``). With ``stragglers: injected`` its own time, real or emulated, is
stretched by the factors of persistent slow-downs and per-gradient jitter, and while a burst lasts by the
burst's. Factors and bursts come from the streams of random numbers that the simulation uses, so both clocks
have the same.

An emulated computation begins when it is called, or when the one before it on its stream ends, as on the
virtual clock: what the machine takes to copy its arguments and to wake a thread is part of its time. Several
of a worker at a time share its device (:mod:`simulator.execution.sharing`). During an outage of the worker,
in which its process is stopped (:mod:`simulator.execution.crash`), no work is done.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from simulator import plan
from simulator.execution.sharing import SharedDevice, Turn
from simulator.stragglers import Bursts, Crash
from simulator.workload.cost import NO_GRADIENT

if TYPE_CHECKING:
    import torch

    from simulator.scenario import Scenario


class BurstTimes:
    """When a worker's bursts begin and end, in seconds from the common start.

    Parameters
    ----------
    bursts
        The process.
    random
        Its stream.
    """

    def __init__(self, bursts: Bursts, random: np.random.Generator) -> None:
        self._bursts = bursts
        self._random = random
        self._switches: list[float] = []

    def factor(self, at: float) -> tuple[float, float]:
        """Return how many times longer work takes at a moment, and until when that stays so."""
        last = self._switches[-1] if self._switches else 0.0
        while last <= at or not self._switches:
            last += self._bursts.sojourn(self._random, slow=len(self._switches) % 2 == 1)
            self._switches.append(last)
        index = next(k for k, switch in enumerate(self._switches) if switch > at)
        return self._bursts.slowdown if index % 2 else 1.0, self._switches[index]


class Outages:
    """When a worker is out, in seconds from the common start.

    Parameters
    ----------
    scenario, rank
        Whose outages count.
    """

    def __init__(self, scenario: Scenario, rank: int) -> None:
        own = scenario.worker_stragglers(rank)
        self.times: list[tuple[float, float]] = []
        for begin, end in sorted((s.at, s.back) for s in own if isinstance(s, Crash) and s.returns):
            if self.times and begin <= self.times[-1][1]:
                first, last = self.times.pop()
                begin, end = first, max(last, end)
            self.times.append((begin, end))

    def factor(self, at: float) -> tuple[float, float]:
        """Return how many times longer work takes at a moment, and until when that stays so."""
        for begin, end in self.times:
            if at < end:
                return (1.0, begin) if at < begin else (math.inf, end)
        return 1.0, math.inf

    def within(self, begin: float, end: float) -> float:
        """Return the seconds of a time in which the worker is out."""
        return sum(max(0.0, min(end, back) - max(begin, at)) for at, back in self.times)


class Pacer:
    """Says when a worker's computations may end.

    Parameters
    ----------
    scenario, rank
        Whose cost model, device and stragglers count.
    clock, sleep
        The seconds, and what waits for some of them.
    """

    def __init__(
        self,
        scenario: Scenario,
        rank: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        execution = scenario.execution
        self.clock, self.sleep = clock, sleep or time.sleep
        self.start = clock()
        self.overrun = 0.0
        self.device = SharedDevice(clock, self.end, self.work, sleep)
        self._own = threading.local()  # when the last computation of this thread's stream ended
        self._emulated = execution.compute == "emulated"
        self._cost, self._device = scenario.cost, scenario.cluster.devices[rank]
        serves = rank >= scenario.workers
        self._step = NO_GRADIENT
        if not serves:
            self._step = self._cost.gradient_seconds(self._device, scenario.batches[rank])
        self._slowdown, self._jitter = 1.0, _none
        self._bursts: list[BurstTimes] = []
        self._outages: Outages | None = None
        self._charge = Charge(scenario)
        if execution.stragglers == "injected":
            self._slowdown = scenario.persistent_factor(rank)
            self._jitter = plan.jitter(scenario, rank)
            self._bursts = [
                BurstTimes(entry, np.random.default_rng([scenario.cluster_seed, *stream, rank]))
                for entry, stream in zip(scenario.stragglers, scenario.streams, strict=True)
                if isinstance(entry, Bursts) and not serves and entry.concerns(rank)
            ]
            outages = Outages(scenario, rank)
            self._outages = outages if outages.times else None

    def gradient(self, gradients: float = 1.0) -> Course:
        """Return the course of a gradient that is called now, or of an evaluation worth so many."""
        return self._course(self._step.total * gradients, self._slowdown * self._jitter())

    def buckets(self) -> list[Course]:
        """Return the courses of a gradient's buckets, each from the beginning of the gradient."""
        factor = self._slowdown * self._jitter()
        reached, courses = self._step.forward, []
        for part in self._step.backward:
            reached += part
            courses.append(self._course(reached, factor))
        return courses

    def passing(self, nbytes: float, x: torch.Tensor) -> Course:
        """Return the course of a computation that moves so many bytes of vectors like ``x``."""
        charged = nbytes / x.nbytes * self._charge(x) if x.nbytes else 0.0
        return self._course(self._cost.pass_seconds(self._device, charged), self._slowdown)

    def charged(self, nbytes: float, charged: float | None = None) -> Course:
        """Return the course of a computation that moves so many bytes of the objective, or of the cost."""
        moved = nbytes * self._charge.byte_factor if charged is None else charged
        seconds = self._cost.pass_seconds(self._device, moved)
        return self._course(seconds, self._slowdown)

    def _course(self, seconds: float, factor: float) -> Course:
        return Course(self, seconds if self._emulated else None, factor)

    @property
    def free(self) -> float:
        """When the last computation of this thread's stream ended, on the clock."""
        return getattr(self._own, "free", -math.inf)

    @free.setter
    def free(self, at: float) -> None:
        self._own.free = at

    def end(self, begin: float, work: float) -> float:
        """Return when work of so many undisturbed seconds ends that began at a moment of the clock."""
        if not self._disturbances or work <= 0:
            return begin + work
        at = begin - self.start
        while True:
            factor, until = self._state(at)
            if at + work * factor <= until:
                return self.start + at + work * factor
            work -= (until - at) / factor
            at = until

    def work(self, begin: float, end: float) -> float:
        """Return how many undisturbed seconds of work are done between two moments of the clock."""
        if not self._disturbances:
            return end - begin
        at, last, work = begin - self.start, end - self.start, 0.0
        while at < last:
            factor, until = self._state(at)
            work += (min(until, last) - at) / factor
            at = until
        return work

    @property
    def _disturbances(self) -> list[BurstTimes | Outages]:
        return [*self._bursts] if self._outages is None else [*self._bursts, self._outages]

    def _state(self, at: float) -> tuple[float, float]:
        """Return how many times longer work takes at a moment from the start, and until when that is so."""
        states = [times.factor(max(at, 0.0)) for times in self._disturbances]
        return math.prod(state[0] for state in states), min(state[1] for state in states)

    def out(self, begin: float, end: float) -> float:
        """Return the seconds between two moments of the clock in which the worker is out."""
        return 0.0 if self._outages is None else self._outages.within(begin - self.start, end - self.start)


class Course:
    """One computation, from its call, which is now, to the moment at which it may end.

    Parameters
    ----------
    pacer
        Of the worker.
    seconds
        What it takes undisturbed; None for what it really took.
    factor
        How many times longer it takes, bursts aside.

    Attributes
    ----------
    begun
        When it counts as begun, on the pacer's clock.
    """

    def __init__(self, pacer: Pacer, seconds: float | None, factor: float) -> None:
        self._pacer = pacer
        self._seconds = seconds
        self._called = self.begun = pacer.clock()
        self.factor = factor

    def begin(self) -> Turn:
        """Let the computation begin now; return its turn of the device."""
        pacer = self._pacer
        if self._seconds is None:
            self.begun = pacer.clock()
            return Turn(self.begun)
        self.begun = max(self._called, pacer.free)
        return pacer.device.enter(self.begun)

    def end(self, turn: Turn) -> None:
        """Let the computation end, in the thread in which it began."""
        if self._seconds is not None:
            self._pacer.device.leave(turn)
            self._pacer.free = turn.until

    def hold(self, turn: Turn, waited: float = 0.0) -> float:
        """Wait until the computation, or a part of it, may end; from any thread.

        Parameters
        ----------
        turn
            Of the computation.
        waited
            Seconds of waiting since its begin that were no computation, outages aside.

        Returns
        -------
        Seconds waited, with those before.
        """
        pacer = self._pacer
        now = pacer.clock()
        if self._seconds is None:
            begin = turn.begin
            end = pacer.end(begin, (now - begin - waited - pacer.out(begin, now)) * self.factor)
            while (left := end - pacer.clock()) > 0:
                pacer.sleep(left)
        else:
            end, over = pacer.device.serve(turn, self._seconds * self.factor)
            pacer.overrun = max(pacer.overrun, over)
        return waited + max(0.0, end - now - pacer.out(now, max(now, end)))


class Charge:
    """The bytes of the cost model that a tensor of the objective stands for, as on the virtual clock.

    Elements of the objective's own type are charged as parameters of the cost model, any others by their own
    size, in proportion to the numbers of parameters. Messages of packed bits say themselves what they are
    charged as.
    """

    def __init__(self, scenario: Scenario) -> None:
        objective, cost = scenario.objective, scenario.cost
        assert objective is not None
        self._dtype = objective.dtype
        self._ratio = cost.parameters / objective.parameters
        self._element = self._ratio * cost.parameter_bytes
        self.byte_factor = self._element / objective.dtype.itemsize

    def __call__(self, x: torch.Tensor) -> float:
        """Return the bytes."""
        return x.numel() * self._element if x.dtype == self._dtype else x.nbytes * self._ratio


def _none() -> float:
    return 1.0
