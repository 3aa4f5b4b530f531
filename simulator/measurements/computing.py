"""Measurements of computations: gradients by batch size, passes over vectors, and what transfers do to them.

All workers measure at the same time, since they share their machine in training too. Everything is timed as
an algorithm meets it, from the call to the end of the await; on a GPU an awaited computation has ended there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from algorithms.worker import Handle, Worker
from simulator.measurements.measurement import Measurement, agreed, vector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MATRIX = 512
"""Least side of the matrices whose product measures the arithmetic; on a GPU it takes microseconds."""
_LONG = 0.01
"""Seconds beside which the call of a product on a GPU counts for nothing."""


@dataclass(frozen=True)
class Passes(Measurement):
    """Passes over vectors, and a matrix product.

    Notes on every worker, in seconds: ``combine/BYTES`` (the sum of two vectors through the worker, which
    moves three), ``add/BYTES`` (a vector added to another in place: a reduction), ``copy/BYTES``, on a GPU
    ``to-host/BYTES`` and ``from-host/BYTES``, and ``matrix/SIDE`` (a product of two square matrices).

    Attributes
    ----------
    sizes
        Bytes of a vector.
    """

    sizes: tuple[int, ...] = (2**12, 2**20)

    async def measure(self, worker: Worker, x: Any) -> None:
        """Time each kind of pass."""
        for size in self.sizes:
            one, other = vector(x, size), vector(x, size)
            await self._times(worker, f"combine/{size}", partial(worker.combine, (1, one), (1, other)))
            for name, function in _passes(one, other).items():
                await self._times(
                    worker, f"{name}/{size}", partial(worker.compute, function, nbytes=2 * size)
                )
        square = await _square(worker, x)
        await self._times(worker, f"matrix/{len(square)}", partial(_product, worker, square))

    async def _times(self, worker: Worker, name: str, start: Callable[[], Handle[Any]]) -> None:
        first = await _timed(worker, start)
        for _ in range(self.fewer(first)):
            worker.observe(name, await _timed(worker, start))


def _passes(one: Tensor, other: Tensor) -> dict[str, Callable[[], Any]]:
    passes: dict[str, Callable[[], Any]] = {"add": lambda: one.add_(other), "copy": one.clone}
    if one.device.type != "cpu":
        host = one.cpu().pin_memory()
        passes |= {"to-host": lambda: host.copy_(one), "from-host": lambda: one.copy_(host)}
    return passes


async def _square(worker: Worker, x: Tensor) -> Tensor:
    """Return a square matrix, on a GPU one whose product takes long there; as large on all workers."""
    square = x.new_ones(MATRIX, MATRIX)
    while square.device.type != "cpu":
        await _product(worker, square)  # the first of a size takes longer
        seconds = await _timed(worker, partial(_product, worker, square))
        if await agreed(worker, x, seconds) >= _LONG:
            break
        square = x.new_ones(2 * len(square), 2 * len(square))
    return square


def _product(worker: Worker, square: Tensor) -> Handle[Any]:
    return worker.compute(lambda: square @ square, nbytes=3 * square.nbytes)


async def _timed(worker: Worker, start: Callable[[], Handle[Any]]) -> float:
    began = worker.now
    await start()
    return worker.now - began


@dataclass(frozen=True)
class Computing(Measurement):
    """Gradients of a network over random samples, or of the run's objective.

    Notes on every worker, in seconds: ``forward/MODEL/BATCH`` and ``backward/MODEL/BATCH``, the latter with
    what makes one flat vector of the gradient; or, without a model, ``gradient/BATCH`` of the objective.

    Attributes
    ----------
    model
        A name of the catalogue of models, or ``package.module:Object`` as in a scenario's cost; nothing for
        the objective.
    batches
        Samples; only one for the objective, whose scenario says it.
    precision
        ``fp32``, ``tf32``, or with autocast ``bf16`` or ``fp16``.
    """

    model: str = ""
    batches: tuple[int, ...] = (1,)
    precision: str = "fp32"

    async def measure(self, worker: Worker, x: Any) -> None:
        """Time gradients at each batch, as far as they have room in the device's memory."""
        for batch in self.batches:
            if not self.model:
                await self._objective(worker, x, batch)
                continue
            network = Network(self.model, batch, self.precision, x.device)
            first = await agreed(worker, x, await self._first(worker, network))
            if first == math.inf:
                return
            for _ in range(self.fewer(first)):
                forward, backward = await self._once(worker, network)
                worker.observe(f"forward/{self.model}/{batch}", forward)
                worker.observe(f"backward/{self.model}/{batch}", backward)

    async def _once(self, worker: Worker, network: Network) -> tuple[float, float]:
        forward = await _timed(worker, partial(worker.compute, network.forward, nbytes=0))
        return forward, await _timed(worker, partial(worker.compute, network.backward, nbytes=0))

    async def _first(self, worker: Worker, network: Network) -> float:
        """Return the seconds of the first gradient; infinitely many where it has no room."""
        import torch

        try:
            return sum(await self._once(worker, network))
        except torch.OutOfMemoryError:
            return math.inf

    async def _objective(self, worker: Worker, x: Any, batch: int) -> None:
        first = await agreed(worker, x, await _timed(worker, lambda: worker.gradient(x)))
        for _ in range(self.fewer(first)):
            # What a budget asks of every algorithm: to look whether iterations are left.
            assert worker.running
            worker.observe(f"gradient/{batch}", await _timed(worker, lambda: worker.gradient(x)))


class Network:
    """A network, a batch of random samples, and one pass over it at a time.

    Parameters
    ----------
    model
        Its name.
    batch
        Samples.
    precision
        Of the arithmetic.
    device
        Where it is.
    """

    def __init__(self, model: str, batch: int, precision: str, device: torch.device) -> None:
        import torch

        entry = entry_of(model)
        torch.manual_seed(0)
        self._module = entry.build().to(device).train()
        self._parameters = [p for p in self._module.parameters() if p.requires_grad]
        several = bool(entry.sample_shape) and isinstance(entry.sample_shape[0], tuple)
        shapes: Any = entry.sample_shape if several else (entry.sample_shape,)
        kinds = (
            entry.sample_dtype
            if isinstance(entry.sample_dtype, tuple)
            else (entry.sample_dtype,) * len(shapes)
        )
        self._inputs = [
            _samples((batch, *shape), kind, device) for shape, kind in zip(shapes, kinds, strict=True)
        ]
        self._precision = precision
        self._loss: Tensor | None = None

    def forward(self) -> None:
        """Make the loss of the batch."""
        for parameter in self._parameters:
            parameter.grad = None
        with _arithmetic(self._precision, self._inputs[0].device.type):
            output = self._module(*self._inputs)
        self._loss = output.float().square().mean()

    def backward(self) -> Tensor:
        """Return the gradient of that loss as one flat vector."""
        import torch

        assert self._loss is not None
        self._loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        self._loss = None
        return torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None])


def entry_of(model: str) -> Any:
    """Return what the name of a cost model stands for.

    Raises
    ------
    ValueError
        It is in no catalogue, or stands for a profile, which cannot be run.
    """
    from simulator.parts import import_object, nearest
    from simulator.workload.models import MODELS, ModelEntry

    if ":" not in model:
        if model not in MODELS:
            raise ValueError(f"unknown model {model!r}; the nearest is '{nearest(model, MODELS)}'")
        return MODELS[model]
    found = import_object(model)
    found = found() if callable(found) and not isinstance(found, ModelEntry) else found
    if not isinstance(found, ModelEntry):
        raise ValueError(f"model {model!r} is no network that can be run, but a {type(found).__name__}")
    return found


def _samples(shape: tuple[int, ...], kind: str, device: torch.device) -> Tensor:
    import torch

    dtype = getattr(torch, kind)
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype, device=device)
    return torch.randint(0, 100, shape, dtype=dtype, device=device)


@contextlib.contextmanager
def _arithmetic(precision: str, device: str) -> Iterator[None]:
    """Compute in a precision, as training does: lower ones by autocast, tf32 by torch's switch."""
    import torch

    if precision in ("bf16", "fp16"):
        with torch.autocast(device, torch.bfloat16 if precision == "bf16" else torch.float16):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Interference(Measurement):
    """Computations while all-reduces are under way, and both alone.

    Notes on every worker, in seconds: ``alone`` (a matrix product and nothing else), ``beside`` (the same
    while transfers are under way all the time), ``transfer-alone`` and ``transfer-beside`` (an all-reduce
    without and with computations going on).

    Attributes
    ----------
    size
        Bytes of an all-reduce.
    """

    size: int = 2**22

    async def measure(self, worker: Worker, x: Any) -> None:
        """Compute alone, transfer alone, then do both at once."""
        message = vector(x, self.size)
        compute = partial(_product, worker, await _square(worker, x))

        async def transfer() -> float:
            return await _timed(worker, lambda: worker.all_reduce(message, "sum"))

        await compute()
        one = await agreed(worker, x, await _timed(worker, compute))
        for _ in range(self.repeats):
            worker.observe("alone", await _timed(worker, compute))
        whole = await agreed(worker, x, await transfer())
        for _ in range(self.repeats):
            worker.observe("transfer-alone", await transfer())
        # All workers transfer equally often; each computes until its own transfers have ended.
        transfers = max(3, math.ceil(self.repeats * one / whole))
        ended = []

        async def transfer_all() -> None:
            for _ in range(transfers):
                worker.observe("transfer-beside", await transfer())
            ended.append(True)

        await agreed(worker, x, 0.0)
        going = worker.spawn(transfer_all())
        while True:
            seconds = await _timed(worker, compute)
            if ended:
                break
            worker.observe("beside", seconds)
        await going
