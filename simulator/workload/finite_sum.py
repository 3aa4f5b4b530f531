"""A worker's shard as a finite sum, for algorithms that ask for the gradients of chosen summands.

Variance reduction and privacy need a function that is the mean of functions of one sample each, and the same
functions in every call. So the summands are the losses of the shard's samples **without dropout**, the very
terms that `Objective.loss` averages: `gradient` is the mean over the chosen ones, `full_gradient` the mean
over all, `sample_gradients` each one alone. (`Oracle.gradient`, which draws its own mini-batches, is taken in
training mode, with dropout; for objectives without any the two agree.) Means are accumulated in float64 over
pieces of at most `objective.EVALUATION_BATCH` samples and rounded once to the model's dtype, in which all
three are returned: identities between them hold up to the rounding of that dtype, and the same call on the
same arguments returns the same bits.

Implements `algorithms.problem.FiniteSum`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from simulator.workload.data import Indices
    from simulator.workload.objective import SampledObjective


class ShardSum:
    """The mean over the samples of a worker's shard; any thread may ask it.

    Parameters
    ----------
    objective : SampledObjective
        Whose samples they are.
    shard : NDArray[np.int64]
        The sample numbers that this worker holds; summand k is sample shard[k].

    Raises
    ------
    ValueError
        From every gradient, if the samples of the objective depend on each other (batch normalisation).
    """

    def __init__(self, objective: SampledObjective, shard: Indices) -> None:
        self.objective = objective
        self._shard = torch.from_numpy(shard)

    @property
    def count(self) -> int:
        """Summands that this worker holds."""
        return len(self._shard)

    @property
    def total(self) -> int:
        """Summands of all workers."""
        return len(self.objective.samples[1])

    def gradient(self, x: Tensor, indices: Tensor) -> Tensor:
        """Mean gradient over the summands `indices`, with as many repetitions as they have.

        Raises
        ------
        ValueError
            If there are none, or one is no summand of this worker.
        """
        self._refuse_coupling()
        chosen = self._shard[checked_indices(self.objective.name, "summands", indices, self.count)]
        return self.objective.mean_gradient(x, chosen.numpy()).to(self.objective.dtype)

    def full_gradient(self, x: Tensor) -> Tensor:
        """Mean gradient over all of this worker's summands."""
        self._refuse_coupling()
        return self.objective.mean_gradient(x, self._shard.numpy()).to(self.objective.dtype)

    def sample_gradients(self, x: Tensor, indices: Tensor) -> Tensor:
        """Gradient of each of the summands `indices`, of shape [len(indices), parameters]; none give none.

        Raises
        ------
        ValueError
            If one is no summand of this worker, or the gradient of one sample cannot be evaluated.
        """
        self._refuse_coupling()
        self.objective._check_model(x)
        chosen = checked_indices(self.objective.name, "summands", indices, self.count, empty=True)
        return self.objective.sample_gradients(x, self._shard[chosen])

    def _refuse_coupling(self) -> None:
        """Refuse an objective that is no mean of functions of one sample each."""
        if self.objective.coupling is not None:
            raise ValueError(self.objective.coupling)


def checked_indices(name: str, what: str, indices: Tensor, count: int, empty: bool = False) -> Tensor:
    """The given indices, a vector of int64 in [0, count), not empty unless that is allowed.

    Raises
    ------
    ValueError
        Otherwise; `name` and `what` say whose indices they are.
    """
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ValueError(
            f"{name}: indices of {what} are a vector of torch.int64, "
            f"got shape {tuple(indices.shape)} of {indices.dtype}"
        )
    if len(indices) == 0:
        if empty:
            return indices
        raise ValueError(f"{name}: a mean over {what} needs at least one index")
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest >= count:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name}: indices of {what} are 0 to {count - 1}, got {wrong}")
    return indices
