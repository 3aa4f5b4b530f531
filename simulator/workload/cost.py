"""Cost of a gradient: parameters, FLOPs and bytes of each layer, and the seconds they take on a device.

A `CostProfile` lists the layers of a network with their parameters, forward and backward FLOPs and
activation bytes per sample. FLOP counts take two per multiply-add and come from convolutions, matrix
products and attention alone (`torch.utils.flop_counter`); element-wise layers cost their bytes.

`ModelCost` turns a profile into seconds by the roofline of `simulator.devices`, layer by layer:

    forward  = max(forward FLOP · batch / (efficiency · peak), moved / bandwidth) + launch overhead
    backward = max(backward FLOP · batch / (efficiency · peak), 2 · moved / bandwidth) + launch overhead
    moved    = weight bytes + batch · activation bytes

The backward pass moves twice as much, because it forms the gradient of the input and of the weights.
Each output is charged to the layer that writes it, once: the least that any implementation moves. Where the
device has a measured table of the model, its times take the roofline's place, and the roofline says only
which part of the backward pass each bucket has.

`GivenCost` takes measured seconds instead. Both cut the flat parameter vector into buckets in the order in
which back-propagation frees them: the last parameters first. `ModelCost` follows DistributedDataParallel
(Li et al., VLDB 2020): whole layers in reverse order; a bucket is closed by the layer with which it reaches
its limit; the first limit is small (1 MiB) so that communication starts early, the others are 25 MiB.

Nothing here imports torch until a network is profiled.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from simulator.devices import PRECISIONS, Device, Precision
from simulator.parts import import_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MODEL_NAMES = ("resnet18-cifar", "resnet50", "vgg16", "gpt2-small", "mlp-digits", "cnn-digits")
"""Names of the catalogue in `simulator.workload.models`, known without importing torch."""

MIB = 2**20
PARAMETER_BYTES: dict[str, int] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one parameter, gradient or activation element in each precision; tf32 is stored as fp32."""

_PROFILE_BATCH = 2
"""Samples used for profiling: batch normalisation refuses a single value per channel."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Parameters
    ----------
    name : str
        Name of the module inside the network; empty for the network's own operations.
    parameters : int
        Trainable parameters first met in this layer; a shared parameter belongs to its first layer.
    forward_flops, backward_flops : float
        FLOPs per sample, two per multiply-add.
    activation_bytes : float
        Bytes of the layer's outputs per sample, in fp32.
    shapes : tuple of tuple of int
        Shapes of those parameters, in their order; empty where they are not known.
    """

    name: str
    parameters: int
    forward_flops: float
    backward_flops: float
    activation_bytes: float
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class CostProfile:
    """The layers of a network, in the order of its flat parameter vector.

    Parameters
    ----------
    name : str
        Name of the network.
    layers : tuple of LayerCost
        In the order in which the module registers them.
    parameter_bytes : int
        Bytes of a parameter and of an activation element in which the profile was taken.
    """

    name: str
    layers: tuple[LayerCost, ...]
    parameter_bytes: int = 4

    @property
    def parameters(self) -> int:
        """Trainable parameters of the network."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def forward_flops(self) -> float:
        """Forward FLOPs of one sample, two per multiply-add."""
        return sum(layer.forward_flops for layer in self.layers)

    @property
    def backward_flops(self) -> float:
        """Backward FLOPs of one sample, two per multiply-add."""
        return sum(layer.backward_flops for layer in self.layers)

    @property
    def activation_bytes(self) -> float:
        """Bytes of all layers' outputs of one sample, which the backward pass needs."""
        return sum(layer.activation_bytes for layer in self.layers)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one gradient.

    Parameters
    ----------
    forward : float
        Seconds of the forward pass.
    backward : tuple of float
        Seconds of the backward pass until each bucket is complete, counted from the bucket before.
    """

    forward: float
    backward: tuple[float, ...]

    @property
    def total(self) -> float:
        """Seconds of the whole gradient."""
        return self.forward + sum(self.backward)


NO_GRADIENT = StepTime(0.0, ())
"""Of a rank that computes none, on whatever device."""


class Cost(Protocol):
    """What the clocks ask of a workload's cost; `ModelCost` and `GivenCost` answer it."""

    @property
    def batch(self) -> int:
        """Samples in a worker's mini-batch, unless a scenario gives the worker another number."""

    @property
    def parameters(self) -> int:
        """Length of the flat parameter vector."""

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one parameter."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters, in the order of the flat vector."""

    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Slices [lo, hi) of the flat parameter vector in back-propagation order, together the whole."""

    def gradient_seconds(self, device: Device, batch: int) -> StepTime:
        """Seconds of a gradient over `batch` samples."""

    def pass_seconds(self, device: Device, nbytes: float) -> float:
        """Seconds of an element-wise pass that touches `nbytes` bytes."""

    def peak_memory(self, batch: int, model_copies: float) -> float:
        """Bytes that a worker needs at most, with the algorithm's own model copies."""


@dataclass(frozen=True)
class ModelCost:
    """Cost of a network by its profile and the device's roofline.

    Parameters
    ----------
    model : str
        A name of the catalogue, or `package.module:Object` where the object is a
        `simulator.workload.models.ModelEntry`, a `CostProfile`, or a function that returns one of them.
    batch : int
        Samples in a worker's mini-batch.
    bucket_size, first_bucket : float
        Limits of a bucket's gradient bytes, as in DistributedDataParallel.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Arithmetic and storage; tf32 computes on tensor cores and stores fp32.

    Raises
    ------
    ValueError
        For an unknown model or precision, or a size out of range.
    """

    model: str
    batch: int
    bucket_size: Annotated[float, "B"] = 25 * MIB
    first_bucket: Annotated[float, "B"] = MIB
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if ":" not in self.model and self.model not in MODEL_NAMES:
            raise ValueError(f"unknown model {self.model!r}{_nearest(self.model, MODEL_NAMES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}{_nearest(self.precision, PRECISIONS)}")
        _check_batch(f"cost of {self.model!r}", self.batch)
        for key in ("bucket_size", "first_bucket"):
            if not getattr(self, key) > 0:
                raise ValueError(f"cost of {self.model!r}: {key} must be above 0, got {getattr(self, key)}")

    @functools.cached_property
    def profile(self) -> CostProfile:
        """The network's profile, taken once."""
        return resolve(self.model)

    @property
    def parameters(self) -> int:
        """Trainable parameters of the network."""
        return self.profile.parameters

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one parameter in this precision."""
        return PARAMETER_BYTES[self.precision]

    @functools.cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the network's parameters; a layer's are one vector where they are not known."""
        layers = [layer for layer in self.profile.layers if layer.parameters]
        return tuple(shape for layer in layers for shape in layer.shapes or ((layer.parameters,),))

    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Slices [lo, hi) of the flat parameter vector in back-propagation order, last parameters first."""
        high = self.parameters
        bounds = []
        for members in self._layers_by_bucket:
            low = high - sum(layer.parameters for layer in members)
            bounds.append((low, high))
            high = low
        return tuple(bounds)

    def gradient_seconds(self, device: Device, batch: int) -> StepTime:
        """Seconds of a gradient, as measured on the device, else by the roofline of each layer.

        Parameters
        ----------
        device : Device
            Where the worker computes.
        batch : int
            Samples in the mini-batch.

        Returns
        -------
        StepTime
            With one backward entry per bucket.

        Raises
        ------
        ValueError
            If the batch is below 1 or the device has neither a rate for the precision nor a table.
        """
        _check_batch(f"cost of {self.model!r}", batch)
        table = device.table(self.model, self.precision)
        precision = self.precision
        if table is not None and device.rate(precision) is None:
            precision = "fp32"  # which part each bucket has is much the same
        forward = sum(
            self._layer_seconds(layer, device, batch, precision)[0] for layer in self.profile.layers
        )
        backward = tuple(
            sum(self._layer_seconds(layer, device, batch, precision)[1] for layer in members)
            for members in self._layers_by_bucket
        )
        if table is not None:
            forward, whole = table.seconds(batch)
            modelled = sum(backward)
            parts = [part / modelled if modelled else 1 / len(backward) for part in backward]
            backward = tuple(part * whole for part in parts)
        return StepTime(forward, backward)

    def pass_seconds(self, device: Device, nbytes: float) -> float:
        """Seconds of an element-wise pass that touches `nbytes` bytes, bound by the memory bandwidth."""
        return device.pass_seconds(nbytes)

    def peak_memory(self, batch: int, model_copies: float) -> float:
        """Bytes that a worker needs at most.

        Parameters
        ----------
        batch : int
            Samples in the mini-batch.
        model_copies : float
            Model-sized vectors that the algorithm and its optimiser keep besides model and gradient.

        Returns
        -------
        float
            Parameters, gradient, copies and all activations of the batch; workspaces are not included.
        """
        _check_batch(f"cost of {self.model!r}", batch)
        vectors = (2 + model_copies) * self.parameters * self.parameter_bytes
        return vectors + batch * self.profile.activation_bytes * self._storage_ratio

    @property
    def _storage_ratio(self) -> float:
        """Bytes of an element in this precision over its bytes in the profile."""
        return self.parameter_bytes / self.profile.parameter_bytes

    def _layer_seconds(
        self, layer: LayerCost, device: Device, batch: int, precision: Precision
    ) -> tuple[float, float]:
        """Forward and backward seconds of one layer, with the device's rate for a precision."""
        moved: float = layer.parameters * self.parameter_bytes
        moved += batch * layer.activation_bytes * self._storage_ratio
        forward = device.roofline_seconds(batch * layer.forward_flops, moved, precision)
        backward = device.roofline_seconds(batch * layer.backward_flops, 2 * moved, precision)
        return forward + device.launch_overhead, backward + device.launch_overhead

    @functools.cached_property
    def _layers_by_bucket(self) -> tuple[tuple[LayerCost, ...], ...]:
        """The layers of each bucket, both in back-propagation order."""
        buckets: list[tuple[LayerCost, ...]] = []
        members: list[LayerCost] = []
        size = 0
        for layer in reversed(self.profile.layers):
            members.append(layer)
            size += layer.parameters * self.parameter_bytes
            if layer.parameters and size >= (self.bucket_size if buckets else self.first_bucket):
                buckets.append(tuple(members))
                members, size = [], 0
        if size:
            buckets.append(tuple(members))
        elif members:
            # Layers without parameters below the last bucket still run before the gradient is complete.
            buckets[-1] += tuple(members)
        return tuple(buckets)


@dataclass(frozen=True)
class GivenCost:
    """Cost as measured or assumed: the seconds of one batch on the device that the scenario names.

    The device's own rates are not used: what is given already holds them. Times are proportional to the
    number of samples, and the backward pass is spread over the buckets by their sizes.

    Parameters
    ----------
    parameters : int
        Length of the flat parameter vector.
    batch : int
        Samples in the batch that was measured; also a worker's mini-batch.
    gradient : float
        Seconds of the forward and backward pass over that batch.
    forward_share : float
        Share of `gradient` spent in the forward pass, in [0, 1).
    bucket_count : int
        Number of equal buckets.
    update : float
        Seconds of one local step x - γg, which touches three vectors; every pass is charged in proportion
        to its bytes. Zero makes passes free.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    parameters: int
    batch: int
    gradient: Annotated[float, "s"]
    forward_share: float = 1 / 3
    bucket_count: int = 1
    update: Annotated[float, "s"] = 0.0

    def __post_init__(self) -> None:
        if self.parameters < 1:
            raise ValueError(f"given cost: parameters must be at least 1, got {self.parameters}")
        _check_batch("given cost", self.batch)
        if not 0 <= self.gradient < math.inf:
            raise ValueError(f"given cost: gradient must be finite and at least 0 s, got {self.gradient}")
        if not 0 <= self.forward_share < 1:
            raise ValueError(f"given cost: forward_share must be in [0, 1), got {self.forward_share}")
        if not 1 <= self.bucket_count <= self.parameters:
            raise ValueError(
                f"given cost: bucket_count must be between 1 and the {self.parameters} parameters, "
                f"got {self.bucket_count}"
            )
        if not 0 <= self.update < math.inf:
            raise ValueError(f"given cost: update must be finite and at least 0 s, got {self.update}")

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one parameter: fp32."""
        return PARAMETER_BYTES["fp32"]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """One vector: a given cost knows no layers."""
        return ((self.parameters,),)

    def buckets(self) -> tuple[tuple[int, int], ...]:
        """Equal slices [lo, hi) of the flat parameter vector, last parameters first."""
        edges = [self.parameters * k // self.bucket_count for k in range(self.bucket_count + 1)]
        return tuple((edges[k], edges[k + 1]) for k in reversed(range(self.bucket_count)))

    def gradient_seconds(self, device: Device, batch: int) -> StepTime:
        """Seconds of a gradient over `batch` samples, in proportion to the batch that was measured."""
        _check_batch("given cost", batch)
        seconds = self.gradient * batch / self.batch
        # The larger part first: subtracting it is exact (Sterbenz), so forward + backward is the given time
        # to the last bit, which tests of exact times rely on.
        if self.forward_share < 0.5:
            backward = seconds * (1 - self.forward_share)
            forward = seconds - backward
        else:
            forward = seconds * self.forward_share
            backward = seconds - forward
        return StepTime(
            forward, tuple(backward * ((high - low) / self.parameters) for low, high in self.buckets())
        )

    def pass_seconds(self, device: Device, nbytes: float) -> float:
        """Seconds of a pass over `nbytes` bytes, in proportion to the local step's three vectors."""
        return self.update * (nbytes / (3 * self.parameters * self.parameter_bytes))

    def peak_memory(self, batch: int, model_copies: float) -> float:
        """Bytes of parameters, gradient and copies; activations are unknown here and not counted."""
        _check_batch("given cost", batch)
        return (2 + model_copies) * self.parameters * self.parameter_bytes


def resolve(model: str) -> CostProfile:
    """Profile of a catalogue name or of `package.module:Object`.

    Parameters
    ----------
    model : str
        A name in `MODEL_NAMES`, or the place of a `ModelEntry`, a `CostProfile` or a function without
        arguments that returns one of them.

    Raises
    ------
    ValueError
        If there is no such model, or the object is none of these.
    """
    if ":" not in model:
        return _catalogue_profile(model)
    return _as_profile(model, _imported(model))


@functools.cache
def _catalogue_profile(name: str) -> CostProfile:
    """Profile of a catalogue entry; profiles are immutable, so one of each is enough."""
    from simulator.workload.models import MODELS

    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, MODEL_NAMES)}")
    return _as_profile(name, MODELS[name])


def _imported(place: str) -> object:
    """The object that `package.module:Object` names."""
    found: object = import_object(place)
    return found


def _as_profile(name: str, found: object) -> CostProfile:
    """Turn what a model name stands for into a profile."""
    import torch

    from simulator.workload.models import ModelEntry

    if callable(found) and not isinstance(found, ModelEntry):
        found = found()
    if isinstance(found, CostProfile):
        return found
    if not isinstance(found, ModelEntry):
        raise ValueError(
            f"model {name!r} must be a ModelEntry, a CostProfile or a function returning one, "
            f"got {type(found).__name__}"
        )
    with torch.device("meta"):
        module = found.build()
    return profile(module, found.sample_shape, name, found.sample_dtype)


def profile(
    module: nn.Module,
    sample_shape: tuple[int, ...] | tuple[tuple[int, ...], ...],
    name: str = "",
    sample_dtype: str | tuple[str, ...] = "float32",
) -> CostProfile:
    """Take the cost profile of any network, on the meta device: nothing is computed or allocated.

    A layer is a module that owns parameters, arithmetic or outputs: what a module does itself, without its
    children. Forward work belongs to the innermost module being called; backward work to the module in
    whose call the autograd node was made.

    Parameters
    ----------
    module : torch.nn.Module
        Left untouched: a copy on the meta device is profiled, in training mode.
    sample_shape : tuple of int, or tuple of tuples of int
        Shape of one sample without the batch dimension; one shape per input where there are several.
    name : str
        Name of the profile; the class's name if empty.
    sample_dtype : str or tuple of str
        Name of torch's dtype of the inputs, for example "int64" for tokens.

    Returns
    -------
    CostProfile

    Raises
    ------
    ValueError
        If the network has no trainable parameter, or cannot run on the meta device (for example because
        its control flow looks at values).
    """
    import torch

    name = name or type(module).__name__
    twin = _meta_copy(module).train()
    if not any(parameter.requires_grad for parameter in twin.parameters()):
        raise ValueError(f"model {name!r} has no trainable parameter")
    shapes, dtypes = _inputs(sample_shape, sample_dtype)
    with torch.device("meta"):
        inputs = [
            torch.empty((_PROFILE_BATCH, *shape), dtype=getattr(torch, dtype))
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        try:
            recorder = _Recorder(twin)
            recorder.run(inputs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            # torch raises any of these for an operation that has no meta form.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"model {name!r} cannot be profiled on the meta device: {reason}") from error
    return CostProfile(name, tuple(recorder.layers()))


def _inputs(
    sample_shape: tuple[int, ...] | tuple[tuple[int, ...], ...], sample_dtype: str | tuple[str, ...]
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Shapes and dtype names, one for each input."""
    several = bool(sample_shape) and all(isinstance(entry, tuple) for entry in sample_shape)
    shapes: list[Any] = list(sample_shape) if several else [sample_shape]
    dtypes = [sample_dtype] * len(shapes) if isinstance(sample_dtype, str) else list(sample_dtype)
    if len(dtypes) != len(shapes):
        raise ValueError(f"sample_dtype names {len(dtypes)} inputs and sample_shape {len(shapes)}")
    return shapes, dtypes


def _meta_copy(module: nn.Module) -> nn.Module:
    """Deep copy whose tensors are on the meta device; shared tensors stay shared."""
    import torch

    memo: dict[int, object] = {}
    for submodule in module.modules():
        for parameter in submodule.parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
        plain = [value for value in vars(submodule).values() if isinstance(value, torch.Tensor)]
        for tensor in (*submodule.buffers(recurse=False), *plain):
            memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    return copy.deepcopy(module, memo)


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and objects made of them."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


class _Recorder:
    """Runs a network forward and backward, and books FLOPs and output bytes on its modules.

    FLOPs come from a running total (`FlopCounterMode`); whenever another module takes over, what the total
    has grown by is booked on the one before. In the backward pass "takes over" is seen by hooks on the
    autograd nodes, each of which is labelled with the module that made it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = [name for name, _ in module.named_modules()]
        count = len(self.names)
        self.flops = {"forward": [0.0] * count, "backward": [0.0] * count}
        self.bytes = [0.0] * count
        self.direction = "forward"
        self.current = 0
        self.stack: list[int] = []
        self.booked = 0
        # Wrappers of autograd nodes and of storages are kept, because only the living have a lasting id.
        self.nodes: dict[int, torch.autograd.graph.Node] = {}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def run(self, inputs: list[Tensor]) -> None:
        """Profile one forward and one backward pass."""
        from torch.utils.flop_counter import FlopCounterMode

        for tensor in (*self.module.parameters(), *self.module.buffers(), *inputs):
            self._is_new(tensor)
        for index, submodule in enumerate(self.module.modules()):
            submodule.register_forward_pre_hook(functools.partial(self._enter, index), with_kwargs=True)
            submodule.register_forward_hook(functools.partial(self._leave, index))
        self.counter = FlopCounterMode(display=False)
        with self.counter:
            outputs = self.module(*inputs)
            self._take_over(0)
            self.direction = "backward"
            roots = [t for t in _tensors(outputs) if t.requires_grad and t.is_floating_point()]
            if roots:
                total = functools.reduce(lambda a, b: a + b, [root.sum() for root in roots])
                total.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            self._take_over(0)

    def layers(self) -> Iterator[LayerCost]:
        """What was booked, for each module that owns anything."""
        seen: set[int] = set()
        for index, (name, submodule) in enumerate(self.module.named_modules()):
            shapes = []
            for parameter in submodule.parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    shapes.append(tuple(parameter.shape))
            parameters = sum(map(math.prod, shapes))
            forward = self.flops["forward"][index] / _PROFILE_BATCH
            backward = self.flops["backward"][index] / _PROFILE_BATCH
            activation = self.bytes[index] / _PROFILE_BATCH
            if parameters or forward or backward or activation:
                yield LayerCost(name, parameters, forward, backward, activation, tuple(shapes))

    def _take_over(self, index: int) -> None:
        """Book the FLOPs since the last change, then let module `index` work."""
        total = self.counter.get_total_flops()
        self.flops[self.direction][self.current] += total - self.booked
        self.booked = total
        self.current = index

    def _enter(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a call: what the inputs depend on is the caller's, then the module takes over."""
        caller = self.stack[-1] if self.stack else 0
        self._label((args, kwargs), caller)
        self.stack.append(index)
        self._take_over(index)

    def _leave(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """After a call: outputs and the autograd nodes behind them are the module's."""
        self._label(output, index)
        for tensor in _tensors(output):
            if tensor.is_floating_point() and self._is_new(tensor):
                self.bytes[index] += tensor.numel() * tensor.element_size()
        self.stack.pop()
        self._take_over(self.stack[-1] if self.stack else 0)

    def _is_new(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is met for the first time: views and in-place results are not."""
        storage = tensor.untyped_storage()
        if id(storage) in self.storages:
            return False
        self.storages[id(storage)] = storage
        return True

    def _label(self, value: object, index: int) -> None:
        """Book the backward work of all unlabelled autograd nodes behind `value` on module `index`."""
        waiting = [tensor.grad_fn for tensor in _tensors(value)]
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in self.nodes:
                continue
            self.nodes[id(node)] = node
            node.register_prehook(functools.partial(self._before_node, index))
            waiting.extend(parent for parent, _ in node.next_functions)

    def _before_node(self, index: int, gradients: Any) -> None:
        """Before an autograd node runs backward."""
        self._take_over(index)


def _check_batch(owner: str, batch: int) -> None:
    """Refuse a mini-batch of less than one sample."""
    if batch < 1:
        raise ValueError(f"{owner}: batch must be at least 1, got {batch}")


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """End of an "unknown name" sentence: the nearest known name, or the whole list."""
    match = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; the nearest is {match[0]!r}" if match else f"; known are {', '.join(known)}"
