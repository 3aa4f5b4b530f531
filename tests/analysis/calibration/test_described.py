"""A description of a known cluster, measured on the virtual clock, is that cluster again."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.calibration import compute, network
from analysis.calibration.settings import ALL_HOSTS, Settings, chosen_pairs, flow_sets
from simulator.cautions import cautions
from simulator.scenario import Scenario
from simulator.units import parse_quantity

SETTINGS = Settings(collective_sizes=(2**12, 2**14, 2**18, 2**20, 2**22))


def truth(hosts: list[str], transport: Any, **rates: Any) -> dict[str, Any]:
    inside = network.Rates(20e-6, 2e9, 3e9, None) if len(set(hosts)) < len(hosts) else None
    between = network.Rates(50e-6, 1e9, None, None) if len(set(hosts)) > 1 else None
    topology = network.topology(hosts, network.Network({}, inside, between, {}))
    return {"topology": topology, "device": "ideal", "workers": len(hosts), "transport": transport, **rates}


def test_a_switch_that_carries_less_than_the_interfaces_is_seen(calibrated: Any) -> None:
    hosts = ["a", "b", "c"]
    messages = network.Network({}, None, network.Rates(50e-6, 1e9, None, None), {ALL_HOSTS: 1.5e9})
    cluster = {"topology": network.topology(hosts, messages), "device": "ideal", "workers": 3}
    found = calibrated({**cluster, "transport": IDEAL}, hosts, SETTINGS)
    assert edges(found.cluster)["switch/in", "switch/out"] == pytest.approx((1.5e9, 0.0), rel=1e-3)
    assert edges(found.cluster)["a/out", "switch/in"] == pytest.approx((1e9, 25e-6), rel=1e-3)
    assert found.measured["model-against-measured"]["concurrent"]["largest"] < 0.01


def edges(cluster: Any) -> dict[tuple[str, str], tuple[float, float]]:
    return {
        tuple(edge["between"]): (
            parse_quantity(edge["bandwidth"], "B/s"),
            parse_quantity(edge["latency"], "s"),
        )
        for edge in cluster["topology"]["edges"]
    }


IDEAL = {"name": "ideal", "pipelined": False, "rendezvous": True}


@pytest.mark.parametrize("hosts", [["a", "a"], ["a", "a", "a", "a"], ["a", "b"], ["a", "a", "b", "b"]])
def test_topology_is_recovered(calibrated: Any, hosts: list[str]) -> None:
    cluster = truth(hosts, IDEAL)
    found = calibrated(cluster, hosts, SETTINGS)
    for arc, (rate, latency) in edges(cluster).items():
        if rate < network.ASSUMED_RATE:  # of a single worker in its host nothing is measured inside
            assert edges(found.cluster)[arc] == pytest.approx((rate, latency), rel=2e-3, abs=1e-9), arc


# Handling is scaled with the share, as it is in fitted descriptions.
SLOW_GLOO = {
    "name": "gloo",
    "collective-share": 0.6,
    "handling-rate": "600 MB/s",
    "collective-latency": 1.7,
}


@pytest.mark.parametrize(
    ("transport", "backend", "pattern"),
    [
        ({"name": "gloo", "payload-share": 1.0, "latency-factor": 1.0}, "gloo", "ring"),
        (SLOW_GLOO, "gloo", "ring"),
        ({"name": "ideal", "pattern": "tree", "pipelined": False, "rendezvous": True}, "gloo", "tree"),
        (
            {"name": "ideal", "pattern": "halving-doubling", "pipelined": False, "rendezvous": True},
            "gloo",
            "halving-doubling",
        ),
        ({"name": "nccl"}, "nccl", "pipelined ring"),
    ],
)
def test_all_reduce_is_named_and_predicted(
    calibrated: Any, transport: dict[str, Any], backend: str, pattern: str
) -> None:
    hosts = ["a"] * 4
    found = calibrated(truth(hosts, transport), hosts, SETTINGS, backend)
    said = found.measured["collectives"]
    assert pattern in (said["all-reduce"], *said["not-told-apart-from"])
    assert max(map(abs, said["residuals"])) < 0.05
    errors = found.measured["model-against-measured"]["collectives"]["errors"]
    assert all(abs(error) < 0.06 for name, error in errors.items() if name.startswith("all_reduce"))


def test_shares_and_latencies_are_those_of_the_truth(calibrated: Any) -> None:
    hosts = ["a"] * 3
    transport = {
        "name": "gloo",
        "payload-share": 1.0,
        "latency-factor": 1.0,
        "handling-rate": "600 MB/s",
    }
    other = {
        "collective-share": 0.6,
        "collective-latency": 1.7,
        "exchange-share": 0.8,
        "exchange-latency": 0.3,
    }
    found = calibrated(truth(hosts, {**transport, **other}), hosts, SETTINGS).cluster["transport"]
    assert {key: found[key] for key in other} == pytest.approx(other, rel=0.01)


def test_pairs_with_one_connection_are_seen(calibrated: Any) -> None:
    hosts = ["a", "b"]
    found = calibrated(truth(hosts, {**IDEAL, "half-duplex-pairs": True}), hosts, SETTINGS)
    assert found.cluster["transport"]["half-duplex-pairs"] is True
    assert found.measured["network"]["between-hosts"]["exchange-over-one-way"] == pytest.approx(2, rel=1e-3)


def test_every_measurement_is_predicted(calibrated: Any) -> None:
    hosts = ["a", "a", "b", "b"]
    found = calibrated(truth(hosts, IDEAL), hosts, SETTINGS)
    for name in ("ping-pong", "concurrent", "exchanges"):
        assert found.measured["model-against-measured"][name]["largest"] < 0.01


def test_pairs_are_chosen_inside_and_between_hosts() -> None:
    assert chosen_pairs(["a", "b", "a"]) == ((0, 1), (0, 2), (1, 2))
    hosts = [f"h{k // 8}" for k in range(64)]
    pairs = chosen_pairs(hosts)
    assert len(pairs) == len(set(pairs)) == 24
    assert any(hosts[a] == hosts[b] for a, b in pairs)
    assert any(hosts[a] != hosts[b] for a, b in pairs)
    assert len(chosen_pairs([str(k) for k in range(100)])) == 24


def test_flows_of_an_interface_grow() -> None:
    sets = dict(flow_sets(["a", "a", "a", "b", "b", "b"]))
    assert sets["between: 2 flows"] == ((0, 3), (1, 4))
    assert sets["between: 3 flows"] == ((0, 3), (1, 4), (2, 5))
    assert sets["between: every host to the next"] == ((0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2))
    assert sets["inside: ring"] == ((0, 1), (1, 2), (2, 0))


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx-1080-ti"),
        ("NVIDIA RTX 4090", "nvidia-rtx-4090"),
        (None, "measured-cpu"),
    ],
)
def test_devices_are_found_in_the_catalogue(gpu: str | None, name: str) -> None:
    assert compute.device_name({} if gpu is None else {"gpu": gpu}) == name


def observed_gradients() -> dict[str, Any]:
    forward = {b: [[0.001 * b] * 4, [0.002 * b] * 4] for b in (2, 8)}
    noted = {}
    for batch, by_rank in forward.items():
        noted[f"forward/mlp-digits/{batch}"] = by_rank
        noted[f"backward/mlp-digits/{batch}"] = [[2 * s for s in own] for own in by_rank]
    passes = {f"combine/{size}": [[1e-5 + 3 * size / 1e9] * 3] * 2 for size in (4096, 2**20)}
    passes |= {"matrix/1024": [[2 * 1024**3 / 5e10]] * 2, f"add/{2**20}": [[1e-3]] * 2}
    beside = {"alone": [[1.0]], "beside": [[1.5]], "transfer-alone": [[1.0]], "transfer-beside": [[0.5]]}
    return {"gradients of mlp-digits": noted, "passes": passes, "interference": beside}


def test_device_has_what_was_measured() -> None:
    found = observed_gradients()
    gradients = compute.Gradients(Settings(models=("mlp-digits",), batches=(2, 8)), found)
    choice = compute.device({"memory": 8e9}, found, gradients.tables())
    scenario = Scenario(
        {
            "name": "t",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 2},
                "device": choice,
                "stragglers": compute.stragglers(gradients.jitter()),
            },
            "workload": {"cost": {"model": "mlp-digits", "batch": 8}},
            "algorithm": "allreduce-sgd",
            "budget": {"iterations": 1},
        }
    )
    device = scenario.cluster.devices[0]
    assert device.peak_flops == pytest.approx(5e10)
    assert (device.memory_bandwidth, device.pass_overhead) == pytest.approx((1e9, 1e-5), rel=1e-6)
    assert device.interference == 1.5
    step = scenario.cost.gradient_seconds(device, 8)
    assert (step.forward, sum(step.backward)) == pytest.approx((0.012, 0.024))
    # The second worker is twice as slow as the first, around the mean of both, and nothing varies.
    assert [scenario.persistent_factor(rank) for rank in (0, 1)] == pytest.approx([2 / 3, 4 / 3])
    assert len(scenario.stragglers) == 2
    # They belong to these two workers.
    assert cautions(scenario) == []
    assert [entry.measured_with for entry in scenario.stragglers] == [2, 2]
    assert len(cautions(scenario.vary(workers=1))) == 1


def test_what_is_faster_in_company_is_noise() -> None:
    found = observed_gradients()["interference"]
    assert compute.interference(found) == {"computations": 1.5, "transfers": 1.0}
