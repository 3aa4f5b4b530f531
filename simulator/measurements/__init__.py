"""Measurements of machines, written as algorithms over the worker.

A measurement is a coroutine like any algorithm's, so it is launched, joined under torchrun or Slurm, watched
and ended as any run is, it measures what algorithms meet (threads, copies, framing and rendezvous included),
and it runs on the virtual clock too: there it says what a cluster description predicts for the very same
calls. What it finds it notes with ``worker.observe``; :mod:`analysis.calibration` makes a cluster description
of that.

Messages are vectors of 4-byte elements, on the device of the worker.
"""

from __future__ import annotations

from simulator.measurements.computing import Computing, Interference, Passes
from simulator.measurements.measurement import Measurement, Pair
from simulator.measurements.network import Clocks, Collectives, Concurrent, Exchanges, PingPong

__all__ = [
    "Clocks",
    "Collectives",
    "Computing",
    "Concurrent",
    "Exchanges",
    "Interference",
    "Measurement",
    "Pair",
    "Passes",
    "PingPong",
]
