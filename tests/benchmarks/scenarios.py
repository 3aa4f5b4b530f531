"""Scenarios that are measured, apart from the tests, so that a process of their own needs no pytest."""

from __future__ import annotations

from simulator.scenario import Scenario


def timing_only(workers: int, iterations: int) -> Scenario:
    """AllReduce-SGD with 4 overlapping buckets, per-step lognormal jitter, 8 GPUs a host on one NIC."""
    return Scenario(
        {
            "name": "timing-only",
            "cluster": {
                "topology": {
                    "builder": "two-level",
                    "hosts": workers // 8,
                    "gpus-per-host": 8,
                    "inside": {"bandwidth": "100 GB/s", "latency": "2 us"},
                    "network": {"bandwidth": "100 Gbps", "latency": "2 us"},
                },
                "device": "v100-sxm2-16gb",
                "stragglers": [{"kind": "lognormal", "sigma": 0.1}],
            },
            "workload": {
                "cost": {
                    "parameters": 25_000_000,
                    "batch": 32,
                    "gradient": "100 ms",
                    "bucket-count": 4,
                    "update": "1 ms",
                }
            },
            "algorithm": "allreduce-sgd",
            "budget": {"iterations": iterations},
        }
    )
