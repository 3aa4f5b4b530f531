"""A worker's crashes for real: at the scenario's time its process stops for the outage, or ends.

A process that has stopped itself (SIGSTOP) cannot wake itself. The kernel does: one of its timers sends
SIGCONT when the outage is over, and again and again until the process has taken the timer away, so that none
stays stopped whoever else has ended meanwhile. While it is stopped nothing of it runs, neither computations
nor the backend's threads; what peers send it stays in the buffers of the machine.

A crash for good ends the run as on the virtual clock: how is the matter of whoever started the rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulator import faults
from simulator.execution.pace import Outages
from simulator.stragglers import Crash

if TYPE_CHECKING:
    from simulator.scenario import Scenario

_AGAIN = 0.05
"""Seconds between two attempts to wake a process."""


class Crashes:
    """The crashes of one rank.

    Parameters
    ----------
    scenario, rank
        Whose crashes happen.
    """

    def __init__(self, scenario: Scenario, rank: int) -> None:
        own = [entry for entry in scenario.worker_stragglers(rank) if isinstance(entry, Crash)]
        self._rank = rank
        self._end = min((crash.at for crash in own if not crash.returns), default=None)
        self._outages = Outages(scenario, rank).times
        self._over = threading.Event()
        self._begun = 0.0
        self._iterations: Callable[[], int] = lambda: 0
        self._crash: Callable[[faults.WorkerFailed], None] = lambda _: None

    def begin(
        self, start: float, iterations: Callable[[], int], crash: Callable[[faults.WorkerFailed], None]
    ) -> None:
        """Let them happen from now on.

        Parameters
        ----------
        start
            The common start of all ranks, on the monotonic clock.
        iterations
            Returns those that the worker has begun.
        crash
            Ends the rank, for the reason that it is given.
        """
        if not self._outages and self._end is None:
            return
        self._begun, self._iterations, self._crash = start, iterations, crash
        threading.Thread(target=self._happen, name="crashes", daemon=True).start()

    def over(self) -> None:
        """Let none happen any more, because the worker's run has ended."""
        self._over.set()

    def _happen(self) -> None:
        for begin, end in self._outages:
            if self._end is not None and begin >= self._end:
                break
            if not self._came(begin):
                return
            # A stopped process could not end at its time.
            stop(self._begun + (end if self._end is None else min(end, self._end)))
        if self._end is not None and self._came(self._end):
            self._crash(faults.crashed(self._rank, self._iterations(), self._end))

    def _came(self, at: float) -> bool:
        """Wait for a moment of the run, and return whether the run still goes on then."""
        return not self._over.wait(max(0.0, self._begun + at - time.monotonic()))


class _Notice(ctypes.Structure):
    """``struct sigevent`` of Linux: which signal a timer sends."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * 48),
    )


class _Times(ctypes.Structure):
    """``struct itimerspec``: the interval, and the time until the first signal."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


def stop(until: float) -> None:
    """Stop this process until a moment of the monotonic clock."""
    library = _timers()
    while (left := until - time.monotonic()) > 0:
        timer = ctypes.c_void_p()
        notice = _Notice(signal=signal.SIGCONT, notify=0)  # SIGEV_SIGNAL
        _check(library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(notice), ctypes.byref(timer)))
        whole = int(left)
        times = _Times(0, int(1e9 * _AGAIN), whole, max(1, int(1e9 * (left - whole))))
        try:
            _check(library.timer_settime(timer, 0, ctypes.byref(times), None))
            # To this thread: of a signal to the process another thread may take notice, and only later, so
            # that the process would stop when the timer has gone.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            library.timer_delete(timer)


def _timers() -> ctypes.CDLL:
    """Return the library that has the timers: the C library itself, or an older one's companion."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "timer_create"):
        return library
    return ctypes.CDLL("librt.so.1", use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"timer: {os.strerror(code)}")
