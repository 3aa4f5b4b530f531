from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest

import topologies
from algorithms import ALGORITHMS
from algorithms.codecs import CODECS
from analysis import catalogue
from simulator.devices import DEVICES
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.workload.cost import MODEL_NAMES

LINK = topologies.LinkSpec(bandwidth=2e9, latency=1e-6, efficiency=0.5)


def test_facts_of_a_two_level_cluster() -> None:
    graph = topologies.two_level(2, 3, inside=topologies.LinkSpec(12e9, 5e-6), network=LINK)
    facts = catalogue.topology_facts(graph)
    assert facts["nodes_by_kind"] == {"switch": 1, "host": 2, "gpu": 6}
    assert (facts["nodes"], facts["gpus"], facts["edges"], facts["links"]) == (9, 6, 8, 16)
    assert facts["capacity_bytes_per_s"] == 2 * (2 * 1e9 + 6 * 12e9)
    assert facts["diameter_hops"] == 4
    assert facts["diameter_latency_s"] == pytest.approx(12e-6)
    assert (facts["bisection_bytes_per_s"], facts["bisection_is_exact"]) == (1e9, True)
    assert [(g["between"], g["edges"], g["effective_bytes_per_s"]) for g in facts["link_groups"]] == [
        ("switch - host", 2, 1e9),
        ("host - gpu", 6, 12e9),
    ]


@pytest.mark.parametrize(
    ("graph", "links", "exact"),
    [
        (topologies.ring(6, LINK), 2, True),
        (topologies.hypercube(3, LINK), 4, True),
        (topologies.complete(4, LINK), 4, True),
        (topologies.ring(16, LINK), 2, False),
        (topologies.torus((2, 8), LINK), 4, False),  # across the long side; rank order alone would say 8
        (topologies.hypercube(4, LINK), 8, False),
        (topologies.exponential(8, LINK), None, True),
    ],
)
def test_bisection(graph: nx.Graph, links: int | None, exact: bool) -> None:
    bandwidth, tried_all = catalogue.bisection_bandwidth(graph)
    assert tried_all is exact
    assert bandwidth > 0
    if links is not None:
        assert bandwidth == links * LINK.capacity


def test_one_gpu_has_no_bisection() -> None:
    assert catalogue.bisection_bandwidth(topologies.switch(1)) == (math.inf, True)


def test_topology_by_builder_scenario_and_file(tmp_path: Path) -> None:
    assert len(catalogue.topology("ring", {"nodes": 5})) == 5
    assert len(topologies.gpus(catalogue.topology("cocod-1080ti"))) == 18
    topologies.write_topology(topologies.switch(3), tmp_path / "t.json")
    assert len(catalogue.topology(str(tmp_path / "t.json"))) == 4


def test_what_is_no_topology() -> None:
    def refused(name: str, **settings: object) -> str:
        with pytest.raises(BadInput) as error:
            catalogue.topology(name, settings)
        return str(error.value)

    assert (
        refused("two-levle") == "two-levle: no such topology builder, file or scenario; "
        "the nearest is 'two-level'"
    )
    assert refused("ring", node=4) == "unknown key 'node'; the nearest is 'nodes'"
    assert refused("cocod-1080ti", hosts=4) == "cocod-1080ti: only a builder takes parameters"
    assert refused("missing.json").startswith("missing.json")


def test_every_builder_is_listed_with_its_parameters() -> None:
    listed = {entry["name"]: entry for entry in catalogue.builders()}
    assert list(listed) == list(topologies.BUILDERS)
    assert listed["two-level"]["parameters"]["gpus-per-host"] == "required"
    assert listed["two-level"]["parameters"]["network"]["bandwidth"] == 1.25e9
    assert all(entry["summary"] for entry in listed.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_described(name: str) -> None:
    facts = catalogue.algorithm_facts(name)
    assert facts["description"]
    for parameter in facts["parameters"]:
        assert parameter["meaning"], parameter
        assert not re.search("_", parameter["name"])


def test_parameters_of_an_algorithm() -> None:
    (period, *_) = catalogue.algorithm_facts("cocod-sgd")["parameters"]
    assert (period["name"], period["default"], period["minimum"]) == ("period", 4, 1)


def test_choices_of_a_parameter() -> None:
    found = {row["name"]: row for row in catalogue.algorithm_facts("signsgd")["parameters"]}
    assert (found["meet"]["type"], found["meet"]["choices"]) == ("choice", ["sharded", "server", "gather"])
    assert (found["tie"]["default"], found["tie"]["choices"]) == ("plus", ["zero", "plus", "random"])
    assert (found["beta"]["type"], found["warm-up"]["type"]) == ("number", "whole number")
    assert "choices" not in found["beta"]


@pytest.mark.parametrize("name", [*ALGORITHMS, *CODECS])
def test_every_parameter_says_its_type_and_its_choices(name: str) -> None:
    facts = catalogue.algorithm_facts(name) if name in ALGORITHMS else catalogue.codec_facts(name)
    for parameter in facts["parameters"]:
        default = parameter["default"]
        if parameter["type"] == "choice":
            assert default in parameter["choices"]
        else:
            types = {"whole number": int, "number": float, "true or false": bool, "list of numbers": tuple}
            assert type(default) is types[parameter["type"]], parameter
        assert parameter["meaning"]


def test_the_defaults_that_enter_what_is_sent_stand_beside_it() -> None:
    listed = {row["name"]: row for row in catalogue.algorithms()}
    assert listed["diloco"]["traffic_defaults"] == {"k": {"parameter": "period", "default": 500}}
    for row in listed.values():
        assert ("M/k" in row["traffic"]) == bool(row["traffic_defaults"])


def test_bytes_of_epochs() -> None:
    found = {row["name"]: row for row in catalogue.algorithm_traffic("mlp-digits", 4)}
    n, d = 4, 2410
    assert {name for name, row in found.items() if row["bytes_per_epoch"]} == {
        name for name, entry in ALGORITHMS.items() if entry.epoch_traffic
    }
    ring = 2 * (n - 1) / n
    assert found["svrg"]["bytes_per_epoch"] == found["katyusha-x"]["bytes_per_epoch"] == ring * 4 * d
    p = d + 1
    assert found["asyvrsc-shared"]["bytes_per_iteration"] == 0
    assert found["asyvrsc-shared"]["bytes_per_epoch"] == ring * (4 * (2 * p + p * d) + 4)
    assert found["asyvrsc-distributed"]["bytes_per_iteration"] == ring * 4 * d
    assert found["asyvrsc-distributed"]["bytes_per_epoch"] == (n - 1) / n * 4 * (d + 3 * p + 2 * p * d)


def test_facts_of_a_codec() -> None:
    facts = catalogue.codec_facts("powersgd", "mlp-digits")
    assert facts["wire_bytes"] == 4 * (2 * (32 + 64) + 32 + 2 * (10 + 32) + 10)
    assert facts["description"].startswith("PowerSGD:")
    rank, matrices, _ = facts["parameters"]
    assert (rank["minimum"], rank["default"], rank["type"]) == (1, 2, "whole number")
    assert matrices["choices"] == ["layers", "square"]
    with pytest.raises(BadInput) as error:
        catalogue.codec_facts("qsdg")
    assert str(error.value) == "unknown codec 'qsdg'; the nearest is 'qsgd'"


def test_listing_algorithms_imports_no_torch() -> None:
    code = "import sys; from analysis import catalogue; catalogue.algorithms(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_codecs_of_a_model() -> None:
    listed = {row["name"]: row for row in catalogue.codecs("mlp-digits")}
    assert list(listed) == list(CODECS)
    assert {row["gradient_bytes"] for row in listed.values()} == {4 * 2410}
    assert listed["terngrad"]["wire_bytes"] == 603 + 4 * 4
    assert listed["sign"]["wire_bytes"] == 4 + 4 * 76
    assert listed["sign"]["theoretical_bytes"] == (2410 + 32) / 8
    assert listed["powersgd"]["wire_bytes"] == 4 * (2 * (32 + 64) + 32 + 2 * (10 + 32) + 10)
    assert catalogue.codecs()[0]["wire_bytes"] == 500_000 + 4 * 1954
    with pytest.raises(BadInput, match="unknown model 'resnet51'"):
        catalogue.codecs("resnet51")


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_is_for_the_algorithms_that_a_scenario_lets_it_stand_before(
    name: str, timing_scenario: Callable[..., Scenario]
) -> None:
    taken = catalogue.codec_facts(name)["compresses"]
    for algorithm, entry in ALGORITHMS.items():
        sent = entry.load().compresses
        listed = algorithm in taken.get(sent, [])
        assert sum(algorithm in names for names in taken.values()) == listed
        assert refused_codec(timing_scenario, algorithm, name) != listed, algorithm


def refused_codec(timing_scenario: Callable[..., Scenario], algorithm: str, codec: str) -> bool:
    """Return whether a scenario is refused for what its algorithm sends; there may be other reasons."""
    try:
        timing_scenario(algorithm=algorithm, compare=[], compression=codec)
    except BadInput as error:
        reasons = ("cannot be compressed", "is for gradients, but", "is for means over all workers,")
        return any(text in error.problem for text in reasons)
    return False


def test_what_an_algorithm_compresses() -> None:
    assert catalogue.algorithm_facts("local-sgd")["compresses"] == "models"
    facts = catalogue.algorithm_facts("d2")
    assert facts["compresses"] == ""
    assert (
        facts["exact_because"]
        == "its correction would take what a codec loses for a difference between the workers"
    )


def test_models_and_devices() -> None:
    assert [entry["name"] for entry in catalogue.models()] == list(MODEL_NAMES)
    facts = catalogue.model_facts("mlp-digits")
    assert facts["parameters"] == 2410 == sum(layer["parameters"] for layer in facts["layers"])
    assert [entry["name"] for entry in catalogue.devices()] == list(DEVICES)
    assert catalogue.device_facts("gtx-1080-ti")["peak_fp32_flop_per_s"] == 11.34e12


def test_unknown_names_are_bad_input() -> None:
    with pytest.raises(BadInput) as error:
        catalogue.algorithm_facts("cocod")
    assert str(error.value) == "unknown algorithm 'cocod'; the nearest is 'cocod-sgd'"
    with pytest.raises(BadInput, match="unknown model 'resnet51'"):
        catalogue.model_facts("resnet51")
    with pytest.raises(BadInput, match="unknown device 'h201'"):
        catalogue.device_facts("h201")
