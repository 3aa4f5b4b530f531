"""Clusters by the name of a description, and what only descriptions say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from simulator.devices import ComputeTable, device
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.stragglers import MeasuredJitter
from simulator.workload import ModelCost
from traces.calibration_files import write_description

GRAPH = {
    "directed": True,
    "nodes": [{"name": "a", "kind": "gpu", "host": "h"}, {"name": "b", "kind": "gpu", "host": "h"}],
    "edges": [
        {"between": ["a", "b"], "bandwidth": "1 GB/s", "latency": "1 ms"},
        {"between": ["b", "a"], "bandwidth": "2 GB/s"},
    ],
}
TABLE = {"model": "mlp-digits", "batches": [4, 8], "forward": ["1 ms", "2 ms"], "backward": ["2 ms", "6 ms"]}
CLUSTER: dict[str, Any] = {
    "topology": GRAPH,
    "device": {"name": "mine", "peak-flops": "1 TFLOP/s", "memory-bandwidth": "1 TB/s", "memory": "1 GB",
               "tables": [TABLE]},
    "workers": 2,
    "transport": {"name": "ideal", "collective-share": 0.5},
    "stragglers": [{"kind": "measured", "levels": [0, 1], "values": [1, 1]},
                   {"kind": "persistent", "workers": [1], "slowdown": 2.0}],
}  # fmt: skip


def scenario(folder: Path | None, cluster: object, **more: Any) -> Scenario:
    data = {
        "name": "t",
        "cluster": cluster,
        "workload": {"cost": {"model": "mlp-digits", "batch": 8}},
        "algorithm": {"name": "allreduce-sgd", "overlap": False},
        "budget": {"iterations": 1},
    }
    return Scenario({**data, **more}, folder=folder)


@pytest.mark.parametrize("name", ["m.yaml", "m.json"])
@pytest.mark.parametrize("form", ["name", "key"])
def test_a_cluster_is_named_by_its_file(tmp_path: Path, name: str, form: str) -> None:
    write_description(tmp_path / name, CLUSTER, {"date": "today"})
    named = scenario(tmp_path, name if form == "name" else {"file": name})
    assert named.resolved() == scenario(None, CLUSTER).resolved()
    # What was resolved needs the file no more.
    assert Scenario(named.resolved()).resolved() == named.resolved()
    assert simulate(named).duration == simulate(scenario(None, CLUSTER)).duration


def test_keys_beside_the_file_go_first(tmp_path: Path) -> None:
    write_description(tmp_path / "m.yaml", CLUSTER, {})
    named = scenario(tmp_path, {"file": "m.yaml", "workers": 1, "stragglers": [], "transport": "gloo"})
    assert (named.workers, named.stragglers, named.sections.cluster.transport.name) == (1, (), "gloo")
    assert scenario(tmp_path, "m.yaml").vary(workers=1).persistent_factor(0) == 1.0


def test_files_that_are_no_description(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=re.escape("cluster.file: no.yaml: cannot be read: No such file or dir")
    ):
        scenario(tmp_path, "no.yaml")
    with pytest.raises(BadInput, match=re.escape("cluster.file: expected the name of a cluster description")):
        scenario(tmp_path, {"file": 3})
    with pytest.raises(BadInput) as error:
        scenario(tmp_path, {"fil": "m.yaml", "workers": 1})
    assert str(error.value) == "cluster: unknown key 'fil'; the nearest is 'file'"


@pytest.mark.parametrize(
    ("written", "there", "hint"),
    [
        (
            "mien.yaml",
            ["mine.yaml", "zebra.yaml", "mien.txt", "mien.yaml.bak"],
            "; the nearest is 'mine.yaml'",
        ),
        ("mien.yaml", ["mine.json", "mine.yml"], "; the nearest is 'mine.yml'"),
        ("mine.yaml", ["mine.json", "mind.yaml"], "; the nearest is 'mine.json'"),
        ("sub/mien.yaml", ["sub/mine.yaml", "mien2.yaml"], "; the nearest is 'sub/mine.yaml'"),
        ("none/mien.yaml", ["mine.yaml"], ""),
        ("mien.yaml", ["zebra.yaml"], ""),
    ],
)
def test_a_description_that_is_not_there(tmp_path: Path, written: str, there: list[str], hint: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in there:
        (tmp_path / name).write_text("format: none")
    with pytest.raises(BadInput) as error:
        scenario(tmp_path, written)
    name = Path(written).name
    assert str(error.value) == f"cluster.file: {name}: cannot be read: No such file or directory{hint}"


def test_a_graph_written_out_is_the_graph() -> None:
    graph = scenario(None, CLUSTER).graph
    assert isinstance(graph, nx.DiGraph)
    assert dict(graph.edges["a", "b"]) == {"bandwidth": 1e9, "latency": 1e-3, "efficiency": 1.0}
    assert dict(graph.nodes["a"]) == {"kind": "gpu", "host": "h"}
    half = {**GRAPH, "directed": False, "edges": [{**GRAPH["edges"][0], "duplex": "half"}]}
    assert scenario(None, {**CLUSTER, "topology": half}).graph.edges["a", "b"]["duplex"] == "half"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": [*GRAPH["nodes"], GRAPH["nodes"][0]]}, "node 'a' is given twice"),
        ({"edges": [{"between": ["a", "c"], "bandwidth": "1 GB/s"}]}, "an edge ends at 'c', which is not"),
        ({"edges": [GRAPH["edges"][0]] * 2}, "the edge between 'a' and 'b' is given twice"),
        ({"edges": []}, "the graph is disconnected"),
    ],
)  # fmt: skip
def test_graphs_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"cluster.topology: {message}")):
        scenario(None, {**CLUSTER, "topology": {**GRAPH, **changes}})


def test_a_device_of_no_catalogue_needs_its_figures() -> None:
    with pytest.raises(BadInput, match=r"cluster\.device: unknown device 'h201'; the nearest is 'h200'"):
        scenario(None, {**CLUSTER, "device": {"name": "h201", "memory": "1 GB"}})


# Tables


def test_tables_go_before_the_roofline_and_keep_its_buckets() -> None:
    table = ComputeTable("resnet18-cifar", (8, 16), (0.1, 0.2), (0.3, 0.5))
    cost = ModelCost("resnet18-cifar", batch=16)
    plain = device("gtx-1080-ti")
    measured = device("gtx-1080-ti").__class__(**{**vars(plain), "tables": (table,)})
    modelled, found = cost.gradient_seconds(plain, 16), cost.gradient_seconds(measured, 16)
    assert found.forward == 0.2
    assert sum(found.backward) == pytest.approx(0.5)
    shares = [part / sum(modelled.backward) for part in modelled.backward]
    assert [part / 0.5 for part in found.backward] == pytest.approx(shares)
    other = ModelCost("resnet18-cifar", batch=16, precision="tf32", first_bucket=2.0)
    assert measured.table("resnet18-cifar", other.precision) is None


def test_a_table_serves_a_precision_without_a_rate() -> None:
    """A machine of no catalogue that was measured in bf16 is known by its times alone."""
    halved = {**CLUSTER, "device": {**CLUSTER["device"], "tables": [{**TABLE, "precision": "bf16"}]}}
    cost = {"model": "mlp-digits", "batch": 8, "precision": "bf16", "first-bucket": "1 B"}
    found = scenario(None, halved, workload={"cost": cost})
    seconds = found.cost.gradient_seconds(found.cluster.devices[0], 8)
    assert seconds.forward == 2e-3
    assert sum(seconds.backward) == pytest.approx(6e-3)
    assert len(seconds.backward) == 2
    assert simulate(found).duration > 16e-3


@pytest.mark.parametrize(
    ("batch", "seconds"), [(2, 1.0), (4, 2.0), (5, 2.5), (6, 3.0), (10, 5.0), (12, 6.0), (1, 0.5)]
)
def test_tables_between_and_beyond_their_batches(batch: int, seconds: float) -> None:
    table = ComputeTable("m", (2, 6, 10), (1.0, 3.0, 5.0), (2.0, 2.0, 2.0))
    assert table.seconds(batch) == pytest.approx((seconds, 2.0))
    assert ComputeTable("m", (4,), (2.0,), (0.0,)).seconds(batch) == pytest.approx((batch / 2, 0.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((), "table of 'm': batches, forward and backward must be of one length above 0"),
        ((4, 2), "table of 'm': batches must be at least 1 and ascending, got [4, 2]"),
        ((0, 2), "table of 'm': batches must be at least 1 and ascending, got [0, 2]"),
    ],
)
def test_bad_tables(values: tuple[int, ...], message: str) -> None:
    times = (1.0,) * len(values)
    with pytest.raises(ValueError, match=re.escape(message)):
        ComputeTable("m", values, times, times)
    with pytest.raises(ValueError, match=re.escape("forward must be finite and at least 0 s, got -1.0")):
        ComputeTable("m", (1,), (-1.0,), (1.0,))


def test_given_seconds_go_with_a_measured_device() -> None:
    given = {"cost": {"parameters": 10, "batch": 1, "gradient": "1 s"}}
    assert scenario(None, CLUSTER, workload=given).cost.parameters == 10
    typed = {**CLUSTER, "device": {"name": "h200", "memory": "1 GB"}}
    with pytest.raises(BadInput, match=r"cluster\.device\.memory: has no effect"):
        scenario(None, typed, workload=given)


# Collectives


def test_share_and_latency_of_collectives() -> None:
    def seconds(**transport: Any) -> float:
        cluster = {**CLUSTER, "stragglers": [], "transport": {"name": "ideal", **transport}}
        cost = {"parameters": 250_000_000, "batch": 1, "gradient": "0 s"}
        return simulate(scenario(None, cluster, workload={"cost": cost})).duration

    # A ring of two over arcs of 1 and 2 GB/s: 2 rounds of half a GB, each with 1 ms on the slow arc.
    for pipelined in (True, False):
        plain = seconds(pipelined=pipelined)
        shared = seconds(pipelined=pipelined, **{"collective-share": 0.5})
        assert shared - plain == pytest.approx(1.0)
        later = seconds(pipelined=pipelined, **{"collective-latency": 3.0})
        assert later - plain == pytest.approx(2 * 2e-3)
    with pytest.raises(BadInput, match=r"collective-share must be above 0 and finite, got 0\.0"):
        seconds(**{"collective-share": 0.0})
    with pytest.raises(BadInput, match=r"collective-latency must be finite and 0 or more, got -1\.0"):
        seconds(**{"collective-latency": -1.0})


def test_share_and_latency_of_exchanges() -> None:
    def seconds(**transport: Any) -> float:
        cluster = {**CLUSTER, "stragglers": [], "transport": {"name": "ideal", **transport}}
        workload = {"cost": {"parameters": 250_000_000, "batch": 1, "gradient": "0 s"}}
        return simulate(scenario(None, cluster, workload=workload, algorithm="d-psgd")).duration

    # 1 GB over the slower arc, and 1 ms.
    assert seconds() == pytest.approx(1.001)
    assert seconds(**{"exchange-share": 0.5}) == pytest.approx(2.001)
    assert seconds(**{"exchange-latency": 3.0}) == pytest.approx(1.003)
    assert seconds(**{"collective-share": 0.5}) == pytest.approx(1.001)


# Interference


def interfering(algorithm: object, interference: float, **more: Any) -> float:
    cluster = {
        "topology": {"builder": "switch", "gpus": 2, "link": {"bandwidth": "1 GB/s"}},
        "device": {"name": "ideal", "interference": interference},
        "transport": "ideal",
        **more,
    }
    cost = {"parameters": 250_000_000, "batch": 1, "gradient": "1 s", "bucket-count": 2, "forward-share": 0.0}
    return simulate(scenario(None, cluster, workload={"cost": cost}, algorithm=algorithm)).duration


def test_computations_beside_transfers_take_longer() -> None:
    """Two buckets of 0.5 s and 0.5 GB: the second is computed while the first is reduced, at half speed."""
    overlap = {"name": "allreduce-sgd", "overlap": True}
    assert interfering(overlap, 1.0) == pytest.approx(0.5 + 0.5 + 0.5)
    # From 0.5 s to 1 s a quarter of a second is done; the rest follows at full speed.
    assert interfering(overlap, 2.0) == pytest.approx(0.5 + 0.5 + 0.25 + 0.5)
    for transport in ({"name": "ideal", "pipelined": False}, "gloo"):
        assert interfering(overlap, 2.0, transport=transport) > interfering(overlap, 1.0, transport=transport)


def test_what_does_not_overlap_does_not_interfere() -> None:
    apart = {"name": "allreduce-sgd", "overlap": False}
    assert interfering(apart, 3.0) == interfering(apart, 1.0) == pytest.approx(2.0)


def test_messages_interfere_too() -> None:
    """AD-PSGD averages while it computes."""
    gossip = {"name": "ad-psgd"}
    one, two = (interfering(gossip, factor, transport="gloo") for factor in (1.0, 2.0))
    assert two > one


def test_interference_is_at_least_one() -> None:
    with pytest.raises(BadInput, match=r"interference must be finite and at least 1, got 0\.5"):
        interfering("allreduce-sgd", 0.5)


# Jitter


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.8])
def test_measured_jitter_has_its_quantiles_and_its_correlation(correlation: float) -> None:
    levels, values = (0.0, 0.5, 0.9, 1.0), (0.8, 1.0, 1.3, 2.0)
    jitter = MeasuredJitter(levels=levels, values=values, correlation=correlation)
    draw = jitter.step_factor(np.random.default_rng(5))
    factors = np.array([draw() for _ in range(200_000)])
    assert factors.mean() == pytest.approx(1, abs=0.01)
    expected = np.array(values[1:-1]) / jitter.mean
    assert np.quantile(factors, levels[1:-1]) == pytest.approx(expected, rel=0.02)
    assert (factors.min(), factors.max()) == pytest.approx(np.array(values)[[0, -1]] / jitter.mean, rel=0.02)
    ranks = np.argsort(np.argsort(factors))
    # Spearman's correlation of two normal variables is a little below Pearson's.
    spearman = 6 / math.pi * math.asin(correlation / 2)
    assert np.corrcoef(ranks[:-1], ranks[1:])[0, 1] == pytest.approx(spearman, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (0.0, 0.5)}, "levels must ascend from 0 to 1, got [0.0, 0.5]"),
        ({"values": (1.0,)}, "1 values are given for 2 levels"),
        ({"values": (2.0, 1.0)}, "values must be 0 or more and never fall, got [2.0, 1.0]"),
        ({"correlation": 1.0}, "correlation must be between -1 and 1, got 1.0"),
    ],
)
def test_bad_measured_jitter(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MeasuredJitter(**changes)
