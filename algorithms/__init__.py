"""Training algorithms, and the worker that they may ask for."""

from __future__ import annotations

from algorithms.algorithm import REQUIREMENTS, Algorithm, Plan, graph_channels, parameter
from algorithms.phantom import Phantom, TimingOnly
from algorithms.registry import ALGORITHMS, algorithm
from algorithms.worker import MESSAGE, WORLD, Handle, Reduction, Worker

__all__ = [
    "ALGORITHMS",
    "MESSAGE",
    "REQUIREMENTS",
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
