"""What algorithms with local steps have in common: the steps of a round, and the update rule's state.

An update rule with a state (momentum, AdamW) leaves open what becomes of the state when models are
averaged; papers and implementations differ. ``local``: every worker keeps its own (torch's
PostLocalSGDOptimizer and most code). ``averaged``: the states are averaged as the models are, which
doubles or trebles what is sent. ``reset``: every round begins with none.
"""

from __future__ import annotations

from typing import Literal

from algorithms.worker import Tensor, Worker

RuleState = Literal["local", "averaged", "reset"]
"""What becomes of the update rule's state when the models are averaged."""


async def local_steps(worker: Worker, x: Tensor, count: int) -> Tensor:
    """Take local steps and return the model after them."""
    for _ in range(count):
        gradient = await worker.gradient(x)
        x = await worker.update(x, gradient)
    return x


async def at_average(worker: Worker, convention: RuleState) -> None:
    """Do to the update rule's state what its convention says happens at an average of the models."""
    if convention == "reset":
        worker.set_rule_state(None)
    elif convention == "averaged" and (state := worker.rule_state) is not None:
        worker.set_rule_state(await worker.all_reduce(state))
