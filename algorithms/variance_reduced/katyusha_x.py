"""SVRG and Katyusha X, data-parallel, on finite sums whose parts need not be convex.

With F = f + psi, f the mean of n parts, an epoch of SVRG from x takes K steps from w = x:

    G = grad f(x)
    w <- prox( w - step size * (G + 1/b sum_{i in S} (grad f_i(w) - grad f_i(x))) ),   |S| = b, drawn anew

K is geometric with mean m, which the theory needs; implementations often fix it. Katyusha X adds momentum
between epochs: y_k+1 is the end of an epoch from

    strongly convex:  x_k+1 = (1.5 y_k + 0.5 x_k - (1 - tau) y_k-1) / (1 + tau),     tau = sqrt(m eta mu) / 2
    convex:           x_k+1 = ((3k+1) y_k + (k+1) x_k - (2k-2) y_k-1) / (2k + 4)
    SVRG:             x_k+1 = y_k,   which is the first with tau = 1/2

The convex form is the default, as its momentum follows from no constant of F; the strongly convex one wants
mu, or tau itself.

The theory takes m = n/b and a step size eta of min(1, b/sqrt(n)) / (2 L): larger mini-batches cut the
sequential steps in proportion up to b = sqrt(n). Worker w holds n_w parts and draws its share of b from them
with replacement; its sums count n_w / n. K is the same on all workers. The full gradient is no iteration; it
counts in the gradient evaluations, and so does each step, twice. Under a schedule, which the theory does not
have, eta is that of each step, and tau follows from that of the last step before the epoch.

Source: Allen-Zhu, "Katyusha X: practical momentum method for stochastic sum-of-nonconvex optimization", ICML
2018, arXiv 1802.03866; Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance
reduction", NeurIPS 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from algorithms.algorithm import Algorithm, Setting, parameter
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import torch

    from algorithms.problem import FiniteSum


_WITH_TAU = {"form": ("strongly-convex",)}
"""Where the momentum is tau."""


@dataclass(frozen=True)
class SVRG(Algorithm):
    """Epochs of variance-reduced steps without momentum."""

    requires: ClassVar[frozenset[str]] = frozenset({"finite-sum"})
    model_copies: ClassVar[int] = 5
    exact_because: ClassVar[str] = (
        "its corrections are small differences of gradients, which the error of a codec would drown"
    )
    momentum: ClassVar[Literal["refused"]] = "refused"  # Katyusha X has its own, between epochs

    inner: int = parameter(0, "mean steps of an epoch (m); 0 for n/b", minimum=0)
    lengths: Literal["geometric", "fixed"] = parameter("geometric", "how the steps of an epoch are drawn")
    l1: float = parameter(0.0, "weight of |x|_1, which is psi", minimum=0.0)

    def epoch_traffic(self, setting: Setting) -> float:
        """Return the bytes of the full gradient's all-reduce, once in m iterations."""
        return setting.reduced(setting.model)

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        problem = cast("FiniteSum", worker.problem)
        mean_steps = self.inner or max(1, round(problem.total / (worker.batch / worker.share)))
        lengths = worker.random("inner lengths", shared=True)
        start = end = last_end = worker.initial_model()
        epoch = 0
        while worker.running:
            start = await self.extrapolated(worker, epoch, start, end, last_end, mean_steps)
            drawn = self.lengths == "geometric"
            steps = int(lengths.geometric(1 / mean_steps)) if drawn else mean_steps
            last_end, end = end, await self._epoch(worker, problem, start, steps)
            epoch += 1

    async def extrapolated(
        self, worker: Worker, epoch: int, start: Tensor, end: Tensor, last_end: Tensor, mean_steps: int
    ) -> Tensor:
        """Return where the next epoch starts: x_k+1 from x_k, y_k and y_k-1."""
        return end

    async def _epoch(self, worker: Worker, problem: FiniteSum, start: Tensor, steps: int) -> Tensor:
        """Return the end of an epoch of SVRG; it ends early where the budget does."""
        part = problem.count / problem.total

        def whole(x: torch.Tensor) -> torch.Tensor:
            return problem.full_gradient(x) * part

        passes = problem.count / worker.batch
        own = await worker.evaluate(whole, start, gradients=passes, iterations=0)
        full = await worker.all_reduce(own, "sum")
        x = start
        for step in range(steps):
            if step and not worker.running:
                break
            indices = drawn(worker, problem)

            def change(x: torch.Tensor, start: torch.Tensor, at: torch.Tensor = indices) -> torch.Tensor:
                return (problem.gradient(x, at) - problem.gradient(start, at)) * part

            correction = await worker.all_reduce(await worker.evaluate(change, x, start, gradients=2), "sum")
            x = await worker.update(x, await worker.combine((1, full), (1, correction)))
            if self.l1:
                x = await self._shrunk(worker, x)
            worker.report(x)
        return x

    async def _shrunk(self, worker: Worker, x: Tensor) -> Tensor:
        """Return the proximal point of psi: every element moved towards zero."""
        import torch

        threshold = worker.step_size * self.l1

        def soft(x: Any) -> torch.Tensor:
            return torch.sign(x) * torch.clamp(x.abs() - threshold, min=0)

        shrunk: Tensor = await worker.compute(soft, x, nbytes=2.0 * x.nbytes)
        return shrunk


@dataclass(frozen=True)
class KatyushaX(SVRG):
    """Epochs of SVRG with momentum between them."""

    form: Literal["strongly-convex", "convex"] = parameter(
        "convex", "what F is, which decides the momentum; the convex one needs no constant of F"
    )
    convexity: float = parameter(
        0.0, "mu of a strongly convex F, from which tau follows", where=_WITH_TAU, minimum=0.0
    )
    tau: float = parameter(
        0.0,
        "momentum of the strongly convex form where mu is not given; 0.5 is SVRG, 0 is not given",
        where={**_WITH_TAU, "convexity": (0.0,)},
        minimum=0.0,
        maximum=0.5,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "strongly-convex" and not (self.convexity or self.tau):
            raise ValueError(
                "the momentum of the strongly-convex form follows from convexity (mu) or tau, and neither is "
                "given"
            )

    async def extrapolated(
        self, worker: Worker, epoch: int, start: Tensor, end: Tensor, last_end: Tensor, mean_steps: int
    ) -> Tensor:
        """Return where the next epoch starts: x_k+1 from x_k, y_k and y_k-1."""
        k = epoch
        if self.form == "convex":
            total = 2 * k + 4
            coefficients = ((3 * k + 1) / total, (k + 1) / total, -(2 * k - 2) / total)
        else:
            tau = self.tau
            if self.convexity:
                tau = min(0.5, math.sqrt(mean_steps * worker.step_size * self.convexity) / 2)
            coefficients = (1.5 / (1 + tau), 0.5 / (1 + tau), -(1 - tau) / (1 + tau))
        return await worker.combine(*zip(coefficients, (end, start, last_end), strict=True))


def drawn(worker: Worker, problem: FiniteSum) -> torch.Tensor:
    """Return the numbers of a mini-batch of this worker's own parts, drawn with replacement."""
    import torch

    return torch.from_numpy(worker.random("samples").integers(problem.count, size=worker.batch))
