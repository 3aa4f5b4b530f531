"""An algorithm whose dedicated server does what only workers may, in a module that other processes find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from algorithms.servers.served import Served


@dataclass(frozen=True)
class Greedy(Served):
    """Its server computes a gradient, or reports a model."""

    what: str = "gradient"
    dedicated: bool = True

    async def train(self, worker: Any) -> None:
        """Train alone."""
        x = worker.initial_model()
        while worker.running:
            worker.report(await worker.gradient(x))

    async def serve(self, worker: Any, server: int) -> None:
        """Do what a server may not."""
        x = worker.initial_model()
        if self.what == "gradient":
            await worker.gradient(x)
        worker.report(x)
