"""DP-SGD, NSGD, Auto-S and DP-PSAC, data-parallel.

In each iteration every sample takes part with probability q = B / N, independently (Poisson sampling). The
gradient of each is scaled by a weight s that bounds its norm by C, and noise is added once to their sum:

    g = sum_i s(|g_i|) g_i + N(0, (sigma C)^2 I),     x <- x - step size * g / B

B is the expected batch, not the drawn one, whose size would be private. A worker draws from its own samples
and sums; worker 0 adds the noise; the sums meet in an all-reduce, which sends what synchronous SGD sends. The
four methods differ in s alone (:mod:`algorithms.private.clipping`). The noise is drawn from a stream of its
own, as many numbers whatever the data. Gradients of single samples take the memory of as many models.

With q and sigma an accountant tells the privacy spent, epsilon at delta; both hold for Poisson sampling only,
with noise on the sum. Mini-batches of a fixed size, drawn with replacement, as one public implementation of
DP-PSAC has them, can be chosen, without an accountant.

Sources: as in :mod:`algorithms.private.clipping`; Mironov, Talwar and Zhang, "Renyi differential privacy of
the sampled Gaussian mechanism", arXiv 1908.10530.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from algorithms.algorithm import Algorithm, parameter
from algorithms.phantom import Phantom
from algorithms.private.clipping import Rule, weights
from algorithms.worker import Tensor, Worker

if TYPE_CHECKING:
    import networkx as nx
    import torch

    from algorithms.algorithm import Matrix
    from algorithms.problem import FiniteSum

NOISY = 0
"""The rank that adds the noise."""


@dataclass(frozen=True)
class PrivateSGD(Algorithm):
    """Synchronous SGD with bounded gradients of single samples, and noise on their sum."""

    requires: ClassVar[frozenset[str]] = frozenset({"finite-sum"})
    model_copies: ClassVar[int] = 2
    exact_because: ClassVar[str] = (
        "the noise is meant for the exact sum; what is compressed before it has another sensitivity"
    )
    # What follows the noise cannot spend privacy.
    momentum: ClassVar[Literal["covered"]] = "covered"
    rule: ClassVar[Rule] = "dp-sgd"

    clip: float = parameter(1.0, "bound on the norm of a sample's scaled gradient (C)", above=0.0)
    noise: float = parameter(
        1.0, "standard deviation of the noise on the sum, relative to C (sigma)", minimum=0.0
    )
    sampling: Literal["poisson", "fixed"] = parameter(
        "poisson", "each sample on its own, or mini-batches of one size with replacement"
    )
    accountant: Literal["rdp", "prv", "none"] = parameter("rdp", "how the privacy spent is told")
    delta: float = parameter(
        1e-5,
        "probability that the promise of epsilon fails",
        where={"accountant": ("rdp", "prv")},
        above=0.0,
        below=1.0,
    )

    @property
    def regulariser(self) -> float:
        """Return r of the weight; DP-SGD has none."""
        return float(getattr(self, "r", 0.0))

    def most_samples(self, samples: int) -> int | None:
        """Return all samples, each taking part with probability 1; with replacement there is no limit."""
        return samples if self.sampling == "poisson" else None

    def check(self, world_size: int, graph: nx.Graph[int] | None, mixing: Matrix | None) -> None:
        """Refuse an accountant that does not cover what is done."""
        if self.accountant == "none":
            return
        if self.sampling != "poisson":
            raise ValueError(
                f"the accountant '{self.accountant}' covers Poisson sampling only, not mini-batches of a "
                "fixed size; use sampling 'poisson', or accountant 'none'"
            )
        if not self.noise:
            raise ValueError("without noise nothing is private; give noise above 0, or accountant 'none'")

    async def run(self, worker: Worker) -> None:
        """Train on one worker."""
        problem = cast("FiniteSum", worker.problem)
        expected = round(worker.batch / worker.share)
        if self.sampling == "poisson" and expected > problem.total:
            raise ValueError(
                f"the workers' batches are {expected} samples together, of {problem.total}; no sample takes "
                "part with a probability above 1"
            )
        x = worker.initial_model()
        while worker.running:
            chosen = self._chosen(worker, problem)

            def bounded(x: torch.Tensor, chosen: torch.Tensor = chosen) -> torch.Tensor:
                gradients = problem.sample_gradients(x, chosen)
                norms = gradients.norm(dim=1)
                return weights(self.rule, norms, self.clip, self.regulariser) @ gradients

            total = await worker.evaluate(bounded, x, gradients=len(chosen) / worker.batch)
            if worker.rank == NOISY:
                total = await self._noised(worker, total)
            total = await worker.all_reduce(total, "sum")
            x = await worker.update(x, await worker.combine((1 / expected, total)))
            worker.report(x)

    def _chosen(self, worker: Worker, problem: FiniteSum) -> torch.Tensor:
        """Return the numbers of this worker's samples that take part."""
        import numpy as np
        import torch

        random = worker.random("samples")
        if self.sampling == "fixed":
            return torch.from_numpy(random.integers(problem.count, size=worker.batch))
        rate = round(worker.batch / worker.share) / problem.total
        return torch.from_numpy(np.flatnonzero(random.random(problem.count) < rate))

    async def _noised(self, worker: Worker, total: Tensor) -> Tensor:
        """Return the sum with the noise of all workers together."""
        random = worker.random("noise")

        def added(total: Any) -> Any:
            import torch

            if isinstance(total, Phantom):
                return total
            noise = torch.from_numpy(random.standard_normal(len(total))).to(total)
            return total.add(noise, alpha=self.noise * self.clip)

        noised: Tensor = await worker.compute(added, total, nbytes=3.0 * total.nbytes)
        return noised


@dataclass(frozen=True)
class NSGD(PrivateSGD):
    """Private SGD with normalised gradients."""

    rule: ClassVar[Rule] = "nsgd"

    r: float = parameter(0.01, "regulariser of the norm", above=0.0)


@dataclass(frozen=True)
class AutoS(PrivateSGD):
    """Private SGD with automatic clipping."""

    rule: ClassVar[Rule] = "auto-s"

    r: float = parameter(0.01, "stability constant", above=0.0)


@dataclass(frozen=True)
class DPPSAC(PrivateSGD):
    """Private SGD with per-sample adaptive clipping."""

    rule: ClassVar[Rule] = "dp-psac"

    r: float = parameter(0.1, "regulariser of the norm", above=0.0)
