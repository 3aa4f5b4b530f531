"""A user's own problem: any torch module, any samples, any loss, in three lines.

    model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
    task = Task(model, (X, y), torch.nn.functional.mse_loss)
    objective = task.build(seed=1)

The rules by which modules with buffers, dropout, frozen or unused parameters are treated are those of
`simulator.workload.objective.ModuleObjective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from simulator.workload.kinds import FINITE_SUM, DtypeName, Sampling, ShardRule, check_sharing
from simulator.workload.objective import ModuleObjective, Samples, Sharing, coupling


@dataclass(frozen=True, eq=False)
class Task:
    """An objective of the user's own: mean loss of a module over samples.

    Randomness inside the module (dropout) is seeded before every gradient from seed, rank and draw, and
    torch's generator is put back: always, because it costs only about 10 µs and a module does not tell.
    The module itself is copied when the objective is built, and never changed.

    Parameters
    ----------
    model : torch.nn.Module
        Its current parameters are the initial model.
    data : (X, y) or torch.utils.data.Dataset
        Tensors with one row per sample, X a tuple of them for several inputs; or a dataset with a length
        whose items are (input, label), read when first needed. Floating-point samples are cast to the
        model's type.
    loss : callable
        (output, y) to the mean loss over a batch, a tensor of one element.
    name : str
        For titles.
    shards, alpha, sampling
        How workers share and draw samples, see `simulator.workload.kinds.SampledData`.
    dtype : {"float32", "float64"}, optional
        Type to cast the model to; by default it keeps its own.

    Raises
    ------
    ValueError
        For a wrong choice of shards, or data of unequal lengths.
    """

    model: nn.Module
    data: Any
    loss: Callable[..., Tensor]
    name: str = "task"
    shards: ShardRule = "iid"
    alpha: float | None = None
    sampling: Sampling = "uniform"
    dtype: DtypeName | None = None

    def __post_init__(self) -> None:
        check_sharing(self.name, self.shards, self.alpha, self.sampling)
        if self.dtype is not None and self.dtype not in get_args(DtypeName):
            raise ValueError(
                f"{self.name}: unknown dtype {self.dtype!r}; known are {', '.join(get_args(DtypeName))}"
            )
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"{self.name}: model must be a torch.nn.Module, got {type(self.model).__name__}")
        if isinstance(self.data, tuple | list):
            self._check(_pair(self.name, self.data))
        elif not (isinstance(self.data, TorchDataset) and hasattr(self.data, "__len__")):
            raise ValueError(
                f"{self.name}: data must be a pair (X, y) of tensors or a torch Dataset with a length, "
                f"got {type(self.data).__name__}"
            )

    @property
    def fulfils(self) -> frozenset[str]:
        """A finite sum, unless a layer makes samples depend on each other (batch normalisation)."""
        return FINITE_SUM if coupling(self.name, self.model) is None else frozenset()

    def build(self, seed: int) -> ModuleObjective:
        """Make the objective. The initial model is the module's own, so the seed changes nothing here."""
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return ModuleObjective(
            self.name,
            self.model,
            self._samples,
            self.loss,
            Sharing(self.shards, self.alpha, self.sampling),
            dtype,
        )

    def _samples(self) -> Samples:
        """All samples as tensors on the CPU, floating-point ones in the chosen type."""
        inputs, labels = (
            _pair(self.name, self.data)
            if isinstance(self.data, tuple | list)
            else _stacked(self.name, self.data)
        )
        self._check((inputs, labels))
        dtype = getattr(torch, self.dtype) if self.dtype else next(self.model.parameters()).dtype
        return tuple(_cast(tensor, dtype) for tensor in inputs), _cast(labels, dtype)

    def _check(self, samples: Samples) -> None:
        """Refuse inputs and labels of unequal lengths, or none at all."""
        inputs, labels = samples
        for tensor in (*inputs, labels):
            if tensor.dim() == 0:
                raise ValueError(f"{self.name}: data must have one row per sample, got a single number")
        for tensor in inputs:
            if len(tensor) != len(labels):
                raise ValueError(f"{self.name}: data has {len(tensor)} inputs but {len(labels)} labels")
        if len(labels) == 0:
            raise ValueError(f"{self.name}: data holds no sample")


def _pair(name: str, data: Any) -> Samples:
    """(X, y) or ((X1, X2, ...), y) as inputs and labels."""
    if len(data) == 2:
        inputs = tuple(data[0]) if isinstance(data[0], tuple | list) else (data[0],)
        if inputs and all(isinstance(tensor, Tensor) for tensor in (*inputs, data[1])):
            return inputs, data[1]
    raise ValueError(f"{name}: data must be (X, y) with tensors, or ((X1, X2), y) for several inputs")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Detached CPU tensor, of the given type if it is a floating-point one."""
    tensor = tensor.detach().cpu()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _stacked(name: str, dataset: TorchDataset[Any]) -> Samples:
    """All items of a dataset, stacked."""
    count = len(dataset)  # type: ignore[arg-type]  # torch leaves the length to the subclasses
    if count == 0:
        raise ValueError(f"{name}: data holds no sample")
    rows = [dataset[index] for index in range(count)]
    if not all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        raise ValueError(f"{name}: items of the dataset must be pairs (input, label)")
    several = isinstance(rows[0][0], tuple | list)
    columns = zip(*(row[0] for row in rows), strict=True) if several else [[row[0] for row in rows]]
    inputs = tuple(torch.stack([torch.as_tensor(value) for value in column]) for column in columns)
    return inputs, torch.stack([torch.as_tensor(row[1]) for row in rows])
