"""Gradients of several workers on several threads, where that is faster.

Each gradient is evaluated by one thread, as a real rank does it, so its bits are the same; threads share
gradients, not the work of one. Every thread has an objective of its own, as an evaluation writes into its
network. torch lets go of Python's lock inside its kernels alone: small networks, of which a gradient takes
as long in Python as in kernels, are slower on two threads than on one. So the first evaluations are timed, on
one thread and on all, and the faster way is kept. What varies with that is time, not a result; but for
networks that keep numbers outside of parameters and buffers, or draw from generators of their own, which
nothing here can control. ``torch.set_num_threads(1)`` before a simulation keeps it on one thread.

Random numbers of a network (dropout) come from torch's one generator, which cannot be seeded for several
threads at a time. If it was drawn from, the gradients are evaluated again, on one thread, as are all others
from then on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from simulator.workload.objective import Request, SampledObjective

    Value = torch.Tensor | Exception

WORTH_A_THREAD = 3e-4
"""Seconds of a gradient below which several threads are not even tried."""
_TRIALS = 3
"""Timed evaluations on one thread and on all; the fastest counts, for the first on all starts the threads."""


class Crew:
    """Evaluates gradients that do not depend on each other.

    Parameters
    ----------
    objective
        Whose gradients they are.
    threads
        How many may evaluate at a time.
    """

    def __init__(self, objective: SampledObjective, threads: int) -> None:
        self._objective = objective
        self._twins: list[SampledObjective] = []
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._alone: list[float] = []
        self._together: list[float] = []

    @property
    def threads(self) -> int:
        """How many the next evaluation takes."""
        if self._threads == 1 or len(self._alone) < _TRIALS:
            return 1
        alone = min(self._alone)
        if alone < WORTH_A_THREAD:
            return 1
        if len(self._together) < _TRIALS:
            return self._threads
        return self._threads if min(self._together) < alone else 1

    def evaluate(self, requests: Sequence[Request]) -> list[Value]:
        """Return the gradients in the order of the requests, or what evaluating one raised."""
        threads = self.threads if len(requests) > 1 else 1
        begin = time.perf_counter()
        values = _in_turn(self._objective, requests) if threads == 1 else self._spread(requests)
        if len(requests) > 1:
            trials = self._alone if threads == 1 else self._together
            if len(trials) < _TRIALS:
                trials.append((time.perf_counter() - begin) / len(requests))
        return values

    def _spread(self, requests: Sequence[Request]) -> list[Value]:
        """Deal the requests out to all threads."""
        import torch

        if self._executor is None:
            try:
                self._twins = [self._objective.twin() for _ in range(self._threads)]
            except ValueError:
                return self._alone_from_now_on(requests)
            self._executor = ThreadPoolExecutor(self._threads, "gradients", torch.set_num_threads, (1,))
        before = torch.get_rng_state()
        dealt = [
            self._executor.submit(_in_turn, twin, requests[number :: self._threads])
            for number, twin in enumerate(self._twins)
        ]
        parts = [part.result() for part in dealt]
        values = [parts[place % self._threads][place // self._threads] for place in range(len(requests))]
        if torch.equal(torch.get_rng_state(), before):
            return values
        torch.set_rng_state(before)
        return self._alone_from_now_on(requests)

    def _alone_from_now_on(self, requests: Sequence[Request]) -> list[Value]:
        self._threads = 1
        return _in_turn(self._objective, requests)

    def end(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


def _in_turn(objective: SampledObjective, requests: Sequence[Request]) -> list[Value]:
    """Evaluate one after another; an error is for the worker that asked."""
    values: list[Value] = []
    for request in requests:
        try:
            values.append(objective.batch_gradient(*request))
        except Exception as error:
            values.append(error)
    return values
