"""Training algorithms, and the worker that they may ask for."""

from __future__ import annotations

from algorithms.algorithm import Algorithm, Plan, graph_channels, parameter
from algorithms.phantom import Phantom, TimingOnly
from algorithms.registry import ALGORITHMS, algorithm
from algorithms.worker import WORLD, Handle, Reduction, Worker

__all__ = [
    "ALGORITHMS",
    "WORLD",
    "Algorithm",
    "Handle",
    "Phantom",
    "Plan",
    "Reduction",
    "TimingOnly",
    "Worker",
    "algorithm",
    "graph_channels",
    "parameter",
]
