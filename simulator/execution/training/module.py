"""A user's module seen as what algorithms work on: one flat vector of parameters, and buffers beside it.

The vector holds the parameters that require a gradient, in the order of ``Module.parameters()``, shared ones
once. Frozen parameters stay as they are. Buffers (running statistics of batch normalisation) are no part of
it: nothing sends them during training, so each rank keeps its own. Where the module shall hold the averaged
model (at an evaluation, and when a training ends), floating-point buffers are averaged over the ranks in
double precision, and of whole numbers (counts of batches) the largest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simulator.parts import BadInput
from simulator.workload.delivery import spans_of


class Weights:
    """The trainable parameters of a module as a vector on the CPU, and its buffers.

    Parameters
    ----------
    module
        Its parameters stay where they are; vectors are copied into and out of them.

    Raises
    ------
    BadInput
        It has no trainable parameter, or some of different types or on different devices.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise BadInput("model", f"{type(module).__name__} has no trainable parameter")
        self.dtype = self._only_dtype()
        self.device = self._only_device()
        self.spans = spans_of(self.parameters)
        self.count = self.spans[-1][1]
        self.shapes = tuple(tuple(parameter.shape) for parameter in self.parameters)
        self._modes = [(part, part.training) for part in module.modules()]

    def _only_dtype(self) -> torch.dtype:
        found = sorted({str(parameter.dtype) for parameter in self.parameters})
        if len(found) > 1:
            raise BadInput(
                "model",
                f"the trainable parameters are of {' and '.join(found)}, but one vector of one type is sent; "
                "give all the same, and use autocast in the loss for mixed precision",
            )
        if not self.parameters[0].dtype.is_floating_point:
            raise BadInput("model", f"the trainable parameters are of {found[0]}, which is no real number")
        return self.parameters[0].dtype

    def _only_device(self) -> torch.device:
        found = sorted({str(parameter.device) for parameter in self.parameters})
        if len(found) > 1 or found == ["meta"]:
            raise BadInput(
                "model", f"the trainable parameters are on {' and '.join(found)}; put them on one device"
            )
        return self.parameters[0].device

    def vector(self) -> Tensor:
        """Return the parameters as a fresh vector on the CPU."""
        return torch.cat([parameter.detach().reshape(-1).cpu() for parameter in self.parameters])

    def load(self, x: Tensor) -> None:
        """Copy a vector into the parameters."""
        with torch.no_grad():
            for parameter, (low, high) in zip(self.parameters, self.spans, strict=True):
                parameter.copy_(x[low:high].view(parameter.shape))

    def gradient(self) -> Tensor:
        """Return the gradients on the parameters as a fresh vector on the CPU; zero where there is none."""
        whole = torch.zeros(self.count, dtype=self.dtype)
        for parameter, (low, high) in zip(self.parameters, self.spans, strict=True):
            if parameter.grad is not None:
                gradient = parameter.grad
                whole[low:high] = (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
        return whole

    def forget_gradients(self) -> None:
        """Take the gradients off the parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def as_given(self) -> None:
        """Put every part of the module back to training or evaluation, as it was given."""
        for part, training in self._modes:
            part.training = training

    def buffers(self) -> list[Tensor]:
        """Return copies of the buffers on the CPU."""
        return [buffer.detach().clone().cpu() for buffer in self.module.buffers()]

    def load_buffers(self, values: Sequence[Tensor]) -> None:
        """Copy values into the buffers."""
        with torch.no_grad():
            for buffer, value in zip(self.module.buffers(), values, strict=True):
                buffer.copy_(value)


def packed(buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the values of floating-point buffers, and those of all others, as two vectors in float64."""
    real = [buffer.reshape(-1).double() for buffer in buffers if buffer.is_floating_point()]
    whole = [buffer.reshape(-1).double() for buffer in buffers if not buffer.is_floating_point()]
    none = torch.empty(0, dtype=torch.float64)
    return torch.cat([none, *real]), torch.cat([none, *whole])


def unpacked(real: Tensor, whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return buffers of the outlines of ``like`` from their packed values."""
    places = {True: 0, False: 0}
    values = {True: real, False: whole}
    found = []
    for buffer in like:
        kind = buffer.is_floating_point()
        start = places[kind]
        places[kind] += buffer.numel()
        found.append(values[kind][start : places[kind]].view(buffer.shape).to(buffer.dtype))
    return found
