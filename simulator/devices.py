"""Devices: what one accelerator (or one processor core) can do, from its datasheet.

The model is the roofline (Williams, Waterman and Patterson, CACM 2009): a layer takes the longer of the
time its arithmetic needs at the reachable share of the peak rate and the time its bytes need at the memory
bandwidth,

    seconds = max(FLOP / (efficiency · peak), bytes / bandwidth).

A pass over a vector (an update, a linear combination) does almost no arithmetic, so it takes
bytes / bandwidth. Where the times of a model were measured, a `ComputeTable` takes the roofline's place.

A FLOP is one addition or one multiplication, so a fused multiply-add counts as two, as in the datasheets.
Rates are dense: a datasheet that prints tensor-core rates "with sparsity" is halved here. `GB` is 1e9 bytes
and `TB/s` 1e12 bytes/s, as in the datasheets; only the GTX 1080 Ti's "11 GB" and the older cards' memory are
powers of two on the board, and the smaller decimal figure is the safe side of a memory check.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Arithmetic that a device may be asked for: fp32 outside, the others on tensor cores."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""Every name of `Precision`."""

DEFAULT_EFFICIENCY = 0.5
"""Share of the peak rate that training reaches when nobody measured it; see `Device`."""

DEFAULT_LAUNCH_OVERHEAD: Annotated[float, "s"] = 5e-6
"""Time an eager framework needs to dispatch and start one layer; see `Device`."""


@dataclass(frozen=True)
class ComputeTable:
    """Measured seconds of a model's gradient by batch size: what goes before the roofline.

    Between two batches that were measured the times are interpolated; outside they go on from the nearest one
    with the slope of the line t0 + t1 batch that fits all of them best, and a single batch is scaled.

    Parameters
    ----------
    model : str
        Name of the cost model.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Arithmetic in which it was measured.
    batches : tuple of int
        Samples, ascending.
    forward, backward : tuple of float
        Mean seconds of either pass over each of these batches.

    Raises
    ------
    ValueError
        If the lists differ in length, are empty, or a number is out of range.
    """

    model: str
    batches: tuple[int, ...]
    forward: tuple[Annotated[float, "s"], ...]
    backward: tuple[Annotated[float, "s"], ...]
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        where = f"table of {self.model!r}"
        if not self.batches or not len(self.batches) == len(self.forward) == len(self.backward):
            raise ValueError(f"{where}: batches, forward and backward must be of one length above 0")
        if self.batches[0] < 1 or any(b >= c for b, c in itertools.pairwise(self.batches)):
            raise ValueError(f"{where}: batches must be at least 1 and ascending, got {list(self.batches)}")
        for key in ("forward", "backward"):
            for value in getattr(self, key):
                if not 0 <= value < math.inf:
                    raise ValueError(f"{where}: {key} must be finite and at least 0 s, got {value}")

    def seconds(self, batch: int) -> tuple[float, float]:
        """Seconds of the forward and of the backward pass over `batch` samples."""
        return self._at(self.forward, batch), self._at(self.backward, batch)

    def _at(self, times: tuple[float, ...], batch: int) -> float:
        batches = self.batches
        if len(batches) == 1:
            return times[0] * batch / batches[0]
        if batches[0] <= batch <= batches[-1]:
            right = max(1, bisect.bisect_left(batches, batch))
            part = (batch - batches[right - 1]) / (batches[right] - batches[right - 1])
            return times[right - 1] + part * (times[right] - times[right - 1])
        slope = statistics.linear_regression(batches, times).slope
        nearest = 0 if batch < batches[0] else -1
        return max(0.0, times[nearest] + slope * (batch - batches[nearest]))


@dataclass(frozen=True)
class Device:
    """One device of a worker: its peak rates, memory and the share of the peak that training reaches.

    Parameters
    ----------
    name : str
        Name in the catalogue, lower case with hyphens.
    peak_flops : float
        Dense fp32 rate outside the tensor cores, FLOP/s.
    memory_bandwidth : float
        Bytes per second between the processor and its memory; infinite makes every pass free.
    memory : float
        Bytes of memory.
    peak_flops_tf32, peak_flops_bf16, peak_flops_fp16 : float, optional
        Dense tensor-core rates, FLOP/s; None where the device has none or no sure figure is known.
    efficiency : float
        Share of the peak rate that the layers reach, in (0, 1]. The default of 0.5 is a round figure for
        large convolutions and matrix products in fp32, not a measurement of this device: good kernels reach
        more, small layers, odd shapes and tensor-core precisions less. It cancels out of comparisons
        between algorithms on one device except against transfer times, so calibrate it (or give measured
        times) before trusting the ratio of computing to communicating.
    launch_overhead : float
        Seconds added for each layer and direction. The default of 5 µs is the order of what one host core
        needs to dispatch one operator in eager mode; it bounds small networks, whose layers are otherwise
        predicted to take no time, and is lost in the noise of large ones.
    source : str
        Where the figures come from.
    pass_overhead : float
        Seconds added to each pass over a vector, beside its bytes.
    interference : float
        How many times longer a computation takes while a transfer of its worker is under way; 1 where they
        do not disturb each other.
    tables : tuple of ComputeTable, optional
        Measured times of models; None for a device that was not measured.

    Raises
    ------
    ValueError
        If a rate, a size, the efficiency or the interference is out of range.
    """

    name: str
    peak_flops: Annotated[float, "FLOP/s"]
    memory_bandwidth: Annotated[float, "B/s"]
    memory: Annotated[float, "B"]
    peak_flops_tf32: Annotated[float, "FLOP/s"] | None = None
    peak_flops_bf16: Annotated[float, "FLOP/s"] | None = None
    peak_flops_fp16: Annotated[float, "FLOP/s"] | None = None
    efficiency: float = DEFAULT_EFFICIENCY
    launch_overhead: Annotated[float, "s"] = DEFAULT_LAUNCH_OVERHEAD
    source: str = "given by the user"
    pass_overhead: Annotated[float, "s"] = 0.0
    interference: float = 1.0
    tables: tuple[ComputeTable, ...] | None = None

    def __post_init__(self) -> None:
        for key in ("peak_flops", "memory_bandwidth", "memory"):
            value = getattr(self, key)
            if not value > 0:
                raise ValueError(f"device {self.name!r}: {key} must be above 0, got {value}")
        for key in ("peak_flops_tf32", "peak_flops_bf16", "peak_flops_fp16"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"device {self.name!r}: {key} must be above 0, got {value}")
        if not 0 < self.efficiency <= 1:
            raise ValueError(f"device {self.name!r}: efficiency must be in (0, 1], got {self.efficiency}")
        for key in ("launch_overhead", "pass_overhead"):
            value = getattr(self, key)
            if not 0 <= value < math.inf:
                raise ValueError(f"device {self.name!r}: {key} must be finite and at least 0, got {value}")
        if not 1 <= self.interference < math.inf:
            raise ValueError(
                f"device {self.name!r}: interference must be finite and at least 1, got {self.interference}"
            )

    def peak(self, precision: Precision = "fp32") -> float:
        """Dense peak rate for arithmetic of the given precision.

        Returns
        -------
        float
            FLOP/s.

        Raises
        ------
        ValueError
            If the precision is unknown, or the device has no figure for it.
        """
        rate = self.rate(precision)
        if rate is None:
            raise ValueError(
                f"device {self.name!r} has no {precision} rate; "
                f"use precision fp32 or give peak_flops_{precision}"
            )
        return rate

    def rate(self, precision: Precision) -> float | None:
        """Dense peak rate for arithmetic of the given precision; None where there is no figure for it."""
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}{_nearest(precision, PRECISIONS)}")
        rates = {
            "fp32": self.peak_flops,
            "tf32": self.peak_flops_tf32,
            "bf16": self.peak_flops_bf16,
            "fp16": self.peak_flops_fp16,
        }
        return rates[precision]

    def roofline_seconds(self, flops: float, nbytes: float, precision: Precision = "fp32") -> float:
        """Time of a kernel by the roofline.

        Parameters
        ----------
        flops : float
            Additions and multiplications.
        nbytes : float
            Bytes read and written.
        precision : {"fp32", "tf32", "bf16", "fp16"}
            Which peak rate holds.

        Returns
        -------
        float
            Seconds, without the launch overhead.
        """
        return max(flops / (self.efficiency * self.peak(precision)), nbytes / self.memory_bandwidth)

    def pass_seconds(self, nbytes: float) -> float:
        """Seconds of an element-wise pass that touches `nbytes` bytes of memory."""
        return self.pass_overhead + nbytes / self.memory_bandwidth

    def table(self, model: str, precision: Precision) -> ComputeTable | None:
        """Return what was measured of a model in a precision; None if nothing was."""
        found = (t for t in self.tables or () if (t.model, t.precision) == (model, precision))
        return next(found, None)


_CATALOGUE = (
    Device(
        name="gtx-1080-ti",
        peak_flops=11.34e12,
        memory_bandwidth=484e9,
        memory=11e9,
        source="NVIDIA GeForce GTX 1080 Ti specifications: 3584 CUDA cores at 1582 MHz boost, "
        "2 FLOP per core and cycle; 11 GB GDDR5X, 484 GB/s",
    ),
    Device(
        name="p100-pcie",
        peak_flops=9.3e12,
        memory_bandwidth=732e9,
        memory=16e9,
        peak_flops_fp16=18.7e12,
        source="NVIDIA Tesla P100 datasheet, PCIe 16 GB: 9.3 TFLOPS single and 18.7 half precision; 732 GB/s",
    ),
    Device(
        name="p100-sxm2",
        peak_flops=10.6e12,
        memory_bandwidth=732e9,
        memory=16e9,
        peak_flops_fp16=21.2e12,
        source="NVIDIA Tesla P100 datasheet, NVLink: 10.6 TFLOPS single and 21.2 half precision; 732 GB/s",
    ),
    Device(
        name="v100-sxm2-16gb",
        peak_flops=15.7e12,
        memory_bandwidth=900e9,
        memory=16e9,
        peak_flops_fp16=125e12,
        source="NVIDIA Tesla V100 datasheet, NVLink: 15.7 TFLOPS single, 125 TFLOPS tensor; 16 GB, 900 GB/s",
    ),
    Device(
        name="v100-sxm2-32gb",
        peak_flops=15.7e12,
        memory_bandwidth=900e9,
        memory=32e9,
        peak_flops_fp16=125e12,
        source="NVIDIA Tesla V100 datasheet, NVLink: 15.7 TFLOPS single, 125 TFLOPS tensor; 32 GB, 900 GB/s",
    ),
    Device(
        name="a100-sxm-40gb",
        peak_flops=19.5e12,
        memory_bandwidth=1555e9,
        memory=40e9,
        peak_flops_tf32=156e12,
        peak_flops_bf16=312e12,
        peak_flops_fp16=312e12,
        source="NVIDIA A100 datasheet, SXM 40 GB: FP32 19.5, TF32 156, BF16/FP16 312 TFLOPS; 1,555 GB/s",
    ),
    Device(
        name="a100-sxm-80gb",
        peak_flops=19.5e12,
        memory_bandwidth=2039e9,
        memory=80e9,
        peak_flops_tf32=156e12,
        peak_flops_bf16=312e12,
        peak_flops_fp16=312e12,
        source="NVIDIA A100 datasheet, SXM 80 GB: FP32 19.5, TF32 156, BF16/FP16 312 TFLOPS; 2,039 GB/s",
    ),
    Device(
        name="h100-sxm",
        peak_flops=67e12,
        memory_bandwidth=3.35e12,
        memory=80e9,
        peak_flops_tf32=494.5e12,
        peak_flops_bf16=989.5e12,
        peak_flops_fp16=989.5e12,
        source="NVIDIA H100 datasheet, SXM: FP32 67 TFLOPS, TF32 989 and BF16/FP16 1,979 with sparsity "
        "(halved here); 80 GB, 3.35 TB/s",
    ),
    Device(
        name="h200",
        peak_flops=67e12,
        memory_bandwidth=4.8e12,
        memory=141e9,
        peak_flops_tf32=494.5e12,
        peak_flops_bf16=989.5e12,
        peak_flops_fp16=989.5e12,
        source="NVIDIA H200 datasheet, SXM: FP32 67 TFLOPS, TF32 989 and BF16/FP16 1,979 with sparsity "
        "(halved here); 141 GB, 4.8 TB/s",
    ),
    Device(
        name="b200",
        peak_flops=75e12,
        memory_bandwidth=7.7e12,
        memory=180e9,
        peak_flops_tf32=1.1e15,
        peak_flops_bf16=2.25e15,
        peak_flops_fp16=2.25e15,
        source="NVIDIA Blackwell datasheet, HGX B200, one GPU: FP32 75 TFLOPS, TF32 2.2 and BF16/FP16 4.5 "
        "PFLOPS with sparsity (halved here); 180 GB, 7.7 TB/s",
    ),
    Device(
        name="cpu-core",
        peak_flops=72e9,
        memory_bandwidth=3.2e9,
        memory=4e9,
        source="AMD EPYC 7742 product page, one of 64 busy cores: 2.25 GHz base, two 256-bit FMA units "
        "(32 fp32 FLOP per cycle), a 64th of 204.8 GB/s; 4 GB is a usual share, not a datasheet figure",
    ),
    Device(
        name="ideal",
        peak_flops=1e12,
        memory_bandwidth=math.inf,
        memory=math.inf,
        peak_flops_tf32=1e12,
        peak_flops_bf16=1e12,
        peak_flops_fp16=1e12,
        efficiency=1.0,
        launch_overhead=0.0,
        source="no real device: exactly 1 TFLOP/s, passes over memory are free; for timing tests",
    ),
)

DEVICES: dict[str, Device] = {entry.name: entry for entry in _CATALOGUE}
"""The catalogue, by name."""


def device(name: str) -> Device:
    """Look up a device of the catalogue.

    Parameters
    ----------
    name : str
        A key of `DEVICES`.

    Raises
    ------
    ValueError
        If there is no such device; the message names the nearest one.
    """
    if name not in DEVICES:
        raise ValueError(f"unknown device {name!r}{_nearest(name, tuple(DEVICES))}")
    return DEVICES[name]


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """End of an "unknown name" sentence: the nearest known name, or the whole list."""
    match = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"; the nearest is {match[0]!r}" if match else f"; known are {', '.join(known)}"
