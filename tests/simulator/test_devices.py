from __future__ import annotations

import math
import re

import pytest

from simulator.devices import DEVICES, Device, device


@pytest.mark.parametrize(
    ("name", "tflops", "gigabytes_per_second", "gigabytes"),
    [
        ("gtx-1080-ti", 11.34, 484, 11),
        ("p100-pcie", 9.3, 732, 16),
        ("p100-sxm2", 10.6, 732, 16),
        ("v100-sxm2-16gb", 15.7, 900, 16),
        ("v100-sxm2-32gb", 15.7, 900, 32),
        ("a100-sxm-40gb", 19.5, 1555, 40),
        ("a100-sxm-80gb", 19.5, 2039, 80),
        ("h100-sxm", 67, 3350, 80),
        ("h200", 67, 4800, 141),
        ("b200", 75, 7700, 180),
    ],
)
def test_datasheet_figures(name: str, tflops: float, gigabytes_per_second: float, gigabytes: float) -> None:
    entry = device(name)
    assert entry.peak_flops == tflops * 1e12
    assert entry.memory_bandwidth == gigabytes_per_second * 1e9
    assert entry.memory == gigabytes * 1e9
    assert "NVIDIA" in entry.source


def test_peaks_follow_from_clock_and_cores() -> None:
    # 3584 cores x 1.582 GHz x 2 FLOP, and 32 FLOP per cycle at 2.25 GHz.
    assert device("gtx-1080-ti").peak_flops == pytest.approx(3584 * 1.582e9 * 2, rel=1e-3)
    assert device("cpu-core").peak_flops == 32 * 2.25e9


def test_tensor_core_rates_are_dense() -> None:
    # The A100 sheet lists 156/312 dense; Hopper's lists 989/1979 with sparsity, twice the dense rate.
    assert device("a100-sxm-80gb").peak("tf32") == 156e12
    assert device("h100-sxm").peak("bf16") == 1979e12 / 2
    assert device("h100-sxm").peak("tf32") == 989e12 / 2


def test_catalogue_keys_are_the_names() -> None:
    assert all(name == entry.name for name, entry in DEVICES.items())
    assert all(entry.source for entry in DEVICES.values())


def test_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    d = Device("d", peak_flops=10.0, memory_bandwidth=4.0, memory=1.0, efficiency=0.5)
    assert d.roofline_seconds(20.0, 8.0) == 4.0  # 20 FLOP at 5 FLOP/s against 2 s for the bytes
    assert d.roofline_seconds(5.0, 8.0) == 2.0
    assert d.pass_seconds(6.0) == 1.5


def test_ideal_device_makes_passes_free() -> None:
    ideal = device("ideal")
    assert ideal.pass_seconds(1e12) == 0.0
    assert ideal.roofline_seconds(3e12, 1e15) == 3.0
    assert ideal.launch_overhead == 0.0
    assert ideal.memory == math.inf


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gtx-1080ti", "unknown device 'gtx-1080ti'; the nearest is 'gtx-1080-ti'"),
        ("H100-SXM", "unknown device 'H100-SXM'; the nearest is 'h100-sxm'"),
        ("zzz", "unknown device 'zzz'; known are " + ", ".join(DEVICES)),
    ],
)
def test_unknown_device(name: str, message: str) -> None:
    with pytest.raises(ValueError) as e:
        device(name)
    assert str(e.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peak_flops": 0.0}, "device 'd': peak_flops must be above 0, got 0.0"),
        ({"memory_bandwidth": -1.0}, "device 'd': memory_bandwidth must be above 0, got -1.0"),
        ({"memory": math.nan}, "device 'd': memory must be above 0, got nan"),
        ({"peak_flops_bf16": 0.0}, "device 'd': peak_flops_bf16 must be above 0, got 0.0"),
        ({"efficiency": 1.5}, "device 'd': efficiency must be in (0, 1], got 1.5"),
        ({"launch_overhead": -1.0}, "device 'd': launch_overhead must be finite and at least 0, got -1.0"),
    ],
)
def test_bad_device(values: dict[str, float], message: str) -> None:
    good = {"peak_flops": 1.0, "memory_bandwidth": 1.0, "memory": 1.0}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Device("d", **(good | values))  # type: ignore[arg-type]


def test_missing_precision() -> None:
    with pytest.raises(ValueError) as e:
        device("gtx-1080-ti").roofline_seconds(1.0, 1.0, "bf16")
    assert str(e.value) == (
        "device 'gtx-1080-ti' has no bf16 rate; use precision fp32 or give peak_flops_bf16"
    )
    with pytest.raises(ValueError, match=r"^unknown precision 'fp23'; the nearest is 'fp32'$"):
        device("h200").peak("fp23")  # type: ignore[arg-type]
