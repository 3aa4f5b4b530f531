"""A scenario is refused with one sentence that names file, key, value and the nearest right one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simulator.parts import BadInput
from simulator.scenario import SCENARIOS, Scenario, apportion

GOOD: dict[str, Any] = {
    "name": "good",
    "cluster": {
        "topology": {
            "builder": "two-level",
            "hosts": 2,
            "gpus-per-host": 2,
            "inside": {"bandwidth": "12 GB/s"},
            "network": {"bandwidth": "10 Gbps", "latency": "5 us"},
        },
        "device": "v100-sxm2-16gb",
        "workers": 4,
    },
    "workload": {
        "cost": {"model": "mlp-digits", "batch": 8},
        "objective": {"kind": "quadratic", "dimension": 10},
    },
    "algorithm": {"name": "local-sgd", "period": 4},
    "step-size": 0.1,
    "budget": {"iterations": 8},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the good scenario with one key set, or removed where the value is None."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    inner: Any = data
    for step in parents:
        inner = inner.setdefault(step, {})
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


def complaint(data: Mapping[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        Scenario(data, "good.yaml")
    return str(caught.value)


REFUSED = [
    (
        "step-size",
        {"grid": []},
        "good.yaml: step-size.grid: list should have at least 1 item after validation, not 0, got []",
    ),
    ("cluster.workers", True, "good.yaml: cluster.workers: expected a number, got True"),
    (
        "cluster.placement",
        "lineer",
        "good.yaml: cluster.placement: input should be 'linear' or 'round-robin', got 'lineer'",
    ),
    (
        "compare",
        ["dpsgd"],
        "good.yaml: compare.0.name: unknown algorithm 'dpsgd'; the nearest is 'dp-sgd'",
    ),
    (
        "algorithm",
        "json:JSONEncoder",
        "good.yaml: algorithm.name: 'json:JSONEncoder' is no algorithm; it must derive from Algorithm",
    ),
    (
        "workload.objective",
        {"kind": "mlp", "hidden": 0},
        "good.yaml: workload.objective: mlp: hidden must be at least 1, got 0",
    ),
    ("step-size", True, "good.yaml: step-size: expected a number, got True"),
    (
        "workload.objective-batches",
        3,
        "good.yaml: workload: unknown key 'objective-batches'; the nearest is 'objective-batch'",
    ),
    (
        "cluster.stragglers",
        [{"kind": "lognormal", "sigma": float("inf")}],
        "good.yaml: cluster.stragglers.0: sigma must be 0 or more and finite, got inf",
    ),
    (
        "cluster.stragglers",
        [{"kind": "persistent", "workers": []}],
        "good.yaml: cluster.stragglers.0: workers must name at least one worker",
    ),
    (
        "cluster.transport",
        {"name": "nccl", "segment-size": "1 MiB"},
        "good.yaml: cluster.transport: segment-size, least-segments, handling-rate and in-flight have no "
        "effect where all-reduces are pipelined",
    ),
    (
        "cluster.transport",
        {"name": "gloo", "rounds-of-latency": "depth"},
        "good.yaml: cluster.transport: rounds-of-latency 'depth' has no effect where all-reduces are not "
        "pipelined",
    ),
    (
        "cluster.transport",
        {"name": "fixed", "all-reduce": "inf s"},
        "good.yaml: cluster.transport: all-reduce must be finite and 0 s or more, got inf",
    ),
    ("target", {"loss": float("nan")}, "good.yaml: target: loss must be finite, got nan"),
    (
        "target",
        {"iterations": 4, "reports": 2},
        "good.yaml: target: reports has no effect on a target that is not a loss",
    ),
    (
        "target",
        {"statistical": {"minimum-iterations": -5, "critical-batch": 1}},
        "good.yaml: target.statistical.minimum-iterations: input should be greater than 0, got -5",
    ),
    ("sede", 1, "good.yaml: unknown key 'sede'; the nearest is 'seed'"),
    (
        "budget.iteration",
        1,
        "good.yaml: budget: unknown key 'iteration'; the nearest is 'iterations'",
    ),
    ("budget", None, "good.yaml: budget: this key is missing"),
    (
        "budget.iterations",
        0,
        "good.yaml: budget.iterations: input should be greater than or equal to 1, got 0",
    ),
    (
        "algorithm",
        "local-sdg",
        "good.yaml: algorithm.name: unknown algorithm 'local-sdg'; the nearest is 'local-sgd'",
    ),
    (
        "algorithm",
        {"name": "local-sgd", "perod": 2},
        "good.yaml: algorithm: unknown key 'perod'; the nearest is 'period'",
    ),
    (
        "algorithm",
        {"name": "d-psgd", "period": 2},
        "good.yaml: algorithm: unknown key 'period'; the known keys are order",
    ),
    ("algorithm", {"period": 2}, "good.yaml: algorithm: the key 'name' is missing; found 'period'"),
    (
        "algorithm",
        {"name": "local-sgd", "period": 0},
        "good.yaml: algorithm: period must be at least 1, got 0",
    ),
    (
        "cluster.topology.gpus-per-hosts",
        3,
        "good.yaml: cluster.topology: unknown key 'gpus-per-hosts'; the nearest is 'gpus-per-host'",
    ),
    (
        "cluster.topology.builder",
        "fat-three",
        "good.yaml: cluster.topology.builder: unknown topology builder 'fat-three'; "
        "the nearest is 'fat-tree'",
    ),
    (
        "cluster.topology.network.bandwidth",
        "10 Gbqs",
        "good.yaml: cluster.topology.network.bandwidth: 'Gbqs' in '10 Gbqs' is not a unit of bandwidth; "
        "the nearest is 'Gbps'",
    ),
    (
        "cluster.topology.network.bandwidth",
        10,
        "good.yaml: cluster.topology.network.bandwidth: '10' has no unit; write it like '25 Gbps'",
    ),
    (
        "cluster.topology.network.latency",
        "5 Gbps",
        "good.yaml: cluster.topology.network.latency: 'Gbps' in '5 Gbps' is not a unit of time; "
        "the nearest is 's'",
    ),
    ("cluster.workers", 5, "good.yaml: cluster.workers: 5 workers need 5 GPUs, but the topology has 4"),
    ("cluster.workers", 0, "good.yaml: cluster.workers: input should be greater than or equal to 1, got 0"),
    (
        "cluster.device",
        "v100",
        "good.yaml: cluster.device: unknown device 'v100'; the nearest is 'v100-sxm2-32gb'",
    ),
    (
        "cluster.device",
        ["a100-sxm-40gb", "a100-sxm-40gb"],
        "good.yaml: cluster.device: 2 devices are given for 4 workers",
    ),
    ("cluster.placement", [0, 1, 2], "good.yaml: cluster.placement: 3 positions are given for 4 workers"),
    (
        "cluster.placement",
        [0, 1, 2, 7],
        "good.yaml: cluster.placement: there is no GPU at position 7; the last is 3",
    ),
    (
        "cluster.stragglers",
        [{"kind": "persistant"}],
        "good.yaml: cluster.stragglers.0.kind: unknown straggler 'persistant'; the nearest is 'persistent'",
    ),
    (
        "cluster.stragglers",
        [{"kind": "lognormal"}, {"kind": "persistent", "workers": [4]}],
        "good.yaml: cluster.stragglers.1.workers: there is no worker 4; the last is 3",
    ),
    (
        "cluster.stragglers",
        [{"kind": "persistent", "slowdown": -1.0}],
        "good.yaml: cluster.stragglers.0: slowdown must be above 0 and finite, got -1.0",
    ),
    (
        "cluster.stragglers",
        [{"kind": "persistent", "measured-with": 0}],
        "good.yaml: cluster.stragglers.0: measured-with must be at least 1, got 0",
    ),
    (
        "cluster.stragglers",
        [{"kind": "slow-link", "between": ["host0", "host1"]}],
        "good.yaml: cluster.stragglers.0.between: the topology has no edge between 'host0' and 'host1'",
    ),
    (
        "cluster.background",
        [{"source": "host0", "destination": "host9", "rate": "1 Gbps"}],
        "good.yaml: cluster.background.0.destination: the topology has no node 'host9'; "
        "the nearest is 'host1'",
    ),
    (
        "cluster.background",
        [{"source": "host0", "destination": "host1", "rate": "0 Gbps"}],
        "good.yaml: cluster.background.0: rate must be above 0 B/s, got 0.0",
    ),
    (
        "cluster.transport",
        {"name": "fixed", "pattern": "ring"},
        "good.yaml: cluster.transport: unknown key 'pattern'; the known keys are all-reduce, exchange",
    ),
    (
        "cluster.transport",
        {"name": "gloo", "payload-share": 1.5},
        "good.yaml: cluster.transport: payload-share must be above 0 and at most 1, got 1.5",
    ),
    (
        "workload.objective.dimensions",
        3,
        "good.yaml: workload.objective: unknown key 'dimensions'; the nearest is 'dimension'",
    ),
    (
        "workload.cost",
        {"model": "resnet-50", "batch": 8},
        "good.yaml: workload.cost: unknown model 'resnet-50'; the nearest is 'resnet50'",
    ),
    ("workload.objective", None, "good.yaml: step-size: a scenario without an objective has no step size"),
    ("step-size", None, "good.yaml: step-size: this key is missing"),
    ("step-size", -0.1, "good.yaml: step-size: must be above 0 and finite, got -0.1"),
    (
        "gossip",
        {"graph": "ring"},
        "good.yaml: gossip: no algorithm of this scenario uses a communication graph",
    ),
    (
        "target",
        {"loss": 0.1, "samples": 5},
        "good.yaml: target: give exactly one of loss, iterations, samples, statistical; found loss, samples",
    ),
    ("budget.stop", "target", "good.yaml: budget.stop: there is no target to stop at"),
    (
        "update",
        "sdg",
        "good.yaml: update.rule: unknown update rule 'sdg'; the nearest is 'sgd'",
    ),
    (
        "update",
        {"momentum": 0.9},
        "good.yaml: update: the key 'rule' is missing; found 'momentum'",
    ),
    (
        "update",
        {"rule": "sgd", "momentum": 0.9},
        "good.yaml: update: unknown key 'momentum'; the known keys are weight-decay, schedule",
    ),
    (
        "update",
        {"rule": "momentum", "momentum": 1.0},
        "good.yaml: update: momentum must be 0 or more and below 1, got 1.0",
    ),
    (
        "update",
        {"rule": "nesterov", "momentum": -0.1},
        "good.yaml: update: momentum must be 0 or more and below 1, got -0.1",
    ),
    (
        "update",
        {"rule": "sgd", "weight-decay": -1},
        "good.yaml: update: weight-decay must be 0 or more and finite, got -1.0",
    ),
    (
        "update",
        {"rule": "adamw", "betas": [0.9, 1]},
        "good.yaml: update: betas must be 0 or more and below 1, got [0.9, 1.0]",
    ),
    (
        "update",
        {"rule": "adamw", "betas": [0.9]},
        "good.yaml: update.betas: has too few entries, got [0.9]",
    ),
    (
        "cluster.background",
        4,
        "good.yaml: cluster.background: input should be a valid list, got 4",
    ),
    (
        "update",
        {"rule": "adamw", "epsilon": 0},
        "good.yaml: update: epsilon must be above 0 and finite, got 0.0",
    ),
    (
        "update",
        {"rule": "json:JSONEncoder"},
        "good.yaml: update.rule: 'json:JSONEncoder' is no update rule; it must derive from Rule",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": "cosin"},
        "good.yaml: update.schedule.kind: unknown schedule 'cosin'; the nearest is 'cosine'",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "cosine", "every": 5}},
        "good.yaml: update.schedule: unknown key 'every'; the known keys are warm-up, final, span",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "constant", "factor": 0.5}},
        "good.yaml: update.schedule: unknown key 'factor'; the known keys are warm-up",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "step"}},
        "good.yaml: update.schedule.every: this key is missing",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "step", "every": 0}},
        "good.yaml: update.schedule: every must be at least 1, got 0",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "step", "every": 2, "factor": 1}},
        "good.yaml: update.schedule: factor must be above 0 and below 1, got 1.0",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "multi-step", "warm-up": 3, "milestones": [3, 5]}},
        "good.yaml: update.schedule: milestones must ascend and come after the warm-up of 3, got [3, 5]",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "linear", "final": 1}},
        "good.yaml: update.schedule: final must be 0 or more and below 1, got 1.0",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "linear", "warm-up": 4, "span": 4}},
        "good.yaml: update.schedule: span must be longer than the warm-up of 4, got 4",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "constant", "warm-up": -1}},
        "good.yaml: update.schedule: warm-up must be 0 or more, got -1",
    ),
    (
        "update",
        {"rule": "sgd", "schedule": {"kind": "cosine", "warm-up": 8}},
        "good.yaml: update.schedule.warm-up: 8 updates leave nothing of the budget of 8 for the decay",
    ),
    (
        "cluster",
        "big",
        "good.yaml: cluster: expected keys and values, got 'big'",
    ),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), REFUSED, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(REFUSED)]
)
def test_refused(path: str, value: object, message: str) -> None:
    assert complaint(changed(path, value)) == message


def test_a_schedule_needs_a_step_size() -> None:
    data = changed("workload.objective", None)
    del data["step-size"]
    data["update"] = {"rule": "adamw", "schedule": {"kind": "cosine"}}
    assert complaint(data) == "good.yaml: update.schedule: a scenario without an objective has no step size"
    data["update"] = "adamw"
    assert Scenario(data).model_copies == 3


def test_bandwidths_must_be_positive() -> None:
    for value, seen in (("0 Gbps", "0.0"), ("-1 Gbps", "-125000000.0")):
        assert complaint(changed("cluster.topology.network.bandwidth", value)) == (
            "good.yaml: cluster.topology.network: bandwidth must be a finite number of B/s above 0, "
            f"got {seen}"
        )


def test_a_disconnected_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.edgelist").write_text(
        "a b {'bandwidth': 1e9, 'latency': 0.0}\nc d {'bandwidth': 1e9, 'latency': 0.0}\n"
    )
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed("cluster.topology", {"file": "two.edgelist"})))
    with pytest.raises(BadInput) as caught:
        Scenario.load(tmp_path / "s.yaml")
    assert str(caught.value) == (
        "s.yaml: cluster.topology: the graph is disconnected: node 'c' cannot be reached from node 'a'"
    )


def test_a_missing_or_truncated_topology_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.graphml").write_text("<graphml><graph>")
    for name, problem in (
        ("none.graphml", "no such file"),
        ("cuts.graphml", "no such file; the nearest is 'cut.graphml'"),
        ("cut.graphml", "not GraphML, or truncated: no element found: line 1, column 16"),
    ):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed("cluster.topology", {"file": name})))
        with pytest.raises(BadInput) as caught:
            Scenario.load(tmp_path / "s.yaml")
        assert str(caught.value) == f"s.yaml: cluster.topology: {tmp_path / name}: {problem}"


def test_d_psgd_refuses_a_matrix_that_does_not_fit() -> None:
    data = changed("algorithm", "d-psgd")
    data["gossip"] = {"graph": {"builder": "hypercube", "dimension": 3}}
    assert complaint(data) == "good.yaml: gossip: the graph has 8 nodes, but there are 4 workers"
    data["gossip"] = {"graph": "star"}
    assert complaint(data).startswith("good.yaml: gossip: ")
    data["gossip"] = {"graph": "ring", "mixing": "unifrom"}
    assert complaint(data) == "good.yaml: gossip.mixing: unknown mixing 'unifrom'; the nearest is 'uniform'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [1, 2", "s.yaml: is not YAML in line 1: expected ',' or ']', but got '<stream end>'"),
        (b"\xff\xfe\x00", "s.yaml: is not a text file in UTF-8"),
        (
            b"name: x\nbudget: {iterations: 5}\nseed: 1\nbudget: {iterations: 9}\n",
            "s.yaml: the key 'budget' is given in line 2 and in line 4",
        ),
        (
            b"name: x\ncluster:\n  workers: 4\n  device: ideal\n  workers: 8\n",
            "s.yaml: the key 'workers' is given in line 3 and in line 5",
        ),
        (
            b"step-size: 0.1\nstep_size: 0.2\n",
            "s.yaml: the key 'step_size' is given in line 1 and in line 2",
        ),
        (b"just words", "s.yaml: is not a scenario; expected keys and values"),
        (b"", "s.yaml: is not a scenario; expected keys and values"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        Scenario.load(tmp_path / "s.yaml")
    assert str(caught.value) == message


def test_merged_keys_may_be_overruled(tmp_path: Path) -> None:
    text = yaml.safe_dump({key: GOOD[key] for key in GOOD if key != "budget"})
    text += "budget: {<<: {iterations: 3, stop: end}, iterations: 9}\n"
    (tmp_path / "s.yaml").write_text(text)
    assert Scenario.load(tmp_path / "s.yaml").sections.budget.iterations == 9


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        Scenario.load(tmp_path / "none.yaml")
    assert str(caught.value) == "none.yaml: cannot be read: No such file or directory"
    (tmp_path / "mine.yaml").write_text("name: mine")
    with pytest.raises(BadInput) as caught:
        Scenario.load(tmp_path / "mien.yaml")
    assert str(caught.value) == (
        f"mien.yaml: cannot be read: No such file or directory; the nearest is '{tmp_path}/mine.yaml'"
    )
    with pytest.raises(BadInput) as caught:
        Scenario.load("cocod-1080")
    assert str(caught.value) == "cocod-1080: no such scenario; the nearest is 'cocod-1080ti'"


@pytest.mark.parametrize("name", [file.stem for file in SCENARIOS.glob("*.yaml")])
def test_what_ships_is_sound_and_survives_resolving(name: str) -> None:
    scenario = Scenario.load(name)
    again = Scenario(yaml.safe_load(yaml.safe_dump(scenario.resolved())))
    assert again.resolved() == scenario.resolved()
    assert again.digest() == scenario.digest()


def test_the_default_scenario_is_the_papers_cluster() -> None:
    scenario = Scenario.load("cocod-1080ti")
    assert scenario.workers == 16
    hosts = [scenario.cluster.host(rank) for rank in range(16)]
    assert [hosts.count(f"host{i}") for i in range(6)] == [3, 3, 3, 3, 3, 1]
    slow = [rank for rank in range(16) if scenario.persistent_factor(rank) == 2.0]
    assert len({hosts[rank] for rank in slow}) == 1
    assert hosts.count(hosts[slow[0]]) == len(slow)
    assert scenario.graph.edges["host0", "switch"]["bandwidth"] == 7e9
    assert scenario.graph.edges["host0", "switch"]["efficiency"] == 0.35
    assert [v.sections.algorithm.name for v in scenario.variants()] == [
        "cocod-sgd",
        "allreduce-sgd",
        "local-sgd",
        "d-psgd",
    ]


def test_vary_changes_a_copy() -> None:
    base = Scenario(GOOD)
    other = base.vary(
        {"cluster.topology.network.bandwidth": "1 Gbps"}, workers=2, algorithm="d-psgd", step_size=0.2
    )
    assert base.workers == 4
    assert other.workers == 2
    assert other.graph.edges["host0", "switch"]["bandwidth"] == 125e6
    assert base.graph.edges["host0", "switch"]["bandwidth"] == 1.25e9
    assert other.sections.algorithm.name == "d-psgd"
    assert base.digest() != other.digest()
    assert base.vary().digest() == base.digest()
    with pytest.raises(BadInput) as caught:
        base.vary(worker=2)
    assert str(caught.value) == "a scenario has no key 'worker'; the nearest is 'workers'"
    with pytest.raises(BadInput) as caught:
        base.vary({"algorithm.periods": 2})
    assert str(caught.value) == "algorithm: unknown key 'periods'; the nearest is 'period'"


def test_machines_that_a_given_cost_cannot_use_are_refused() -> None:
    data = changed("workload.cost", {"parameters": 10, "batch": 1, "gradient": "1 s"})
    data["cluster"]["device"] = {"name": "v100-sxm2-16gb", "efficiency": 0.3}
    assert complaint(data) == (
        "good.yaml: cluster.device.efficiency: has no effect; the workload's cost is given in seconds"
    )


def test_a_precision_that_a_device_has_not_is_refused_before_anything_runs() -> None:
    data = changed("workload.cost", {"model": "mlp-digits", "batch": 8, "precision": "bf16"})
    data["cluster"]["device"] = "cpu-core"
    assert complaint(data) == (
        "good.yaml: workload.cost.precision: the device 'cpu-core' has no rate for bf16; use 'fp32'"
    )


def test_unequal_hosts_are_refused_before_anything_runs() -> None:
    data = changed("cluster.workers", 3)
    data["cluster"]["transport"] = {"name": "nccl", "pattern": "hierarchical"}
    assert complaint(data).startswith("good.yaml: cluster.transport.pattern: the hierarchical pattern needs")


def test_links_of_a_gossip_graph_are_refused() -> None:
    data = changed("algorithm", "d-psgd")
    data["gossip"] = {"graph": {"builder": "ring", "link": {"bandwidth": "1 Gbps"}}}
    assert complaint(data) == (
        "good.yaml: gossip.graph.link: has no effect; messages take the links of the cluster's topology"
    )


def test_averaging_by_a_matrix_refuses_proportional_batches() -> None:
    data = changed("algorithm", "d-psgd")
    data["workload"]["batches"] = "proportional"
    data["cluster"]["stragglers"] = [{"kind": "persistent", "workers": [0], "slowdown": 3.0}]
    assert complaint(data) == (
        "good.yaml: workload.batches: d-psgd averages by its mixing matrix, not by shares of the batch; "
        "use equal batches"
    )


@given(st.integers(1, 60), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_batches_are_dealt_out_whole_and_nobody_goes_without(surplus: int, parts: list[float]) -> None:
    total = len(parts) + surplus - 1
    dealt = apportion(total, parts)
    assert sum(dealt) == total
    assert min(dealt) >= 1


def test_keys_may_be_spelt_with_underscores_in_python() -> None:
    base = Scenario({**GOOD, "step_size": 0.1} | {})
    assert base.vary(step_size=0.3).step_sizes == (0.3,)
    shipped = Scenario.load("cocod-1080ti")
    assert shipped.vary(objective_batch=4).objective_batches == (4,) * 16
    assert shipped.vary({"workload.objective_batch": 4}).digest() == shipped.vary(objective_batch=4).digest()


def test_vary_shares_the_topology_unless_it_is_another() -> None:
    base = Scenario(GOOD)
    assert base.vary(algorithm="d-psgd", gossip={"graph": "ring"}).graph is base.graph
    slower = base.vary({"cluster.topology.network.bandwidth": "5 Gbps"})
    assert slower.graph is not base.graph
    assert slower.graph.edges["host0", "switch"]["bandwidth"] == 0.5 * 10e9 / 8
    assert base.graph.edges["host0", "switch"]["bandwidth"] == 10e9 / 8


def test_vary_reaches_into_parts_and_lists() -> None:
    base = Scenario(changed("cluster.stragglers", [{"kind": "persistent", "workers": [1]}]))
    slower = base.vary({"cluster.stragglers.0.slowdown": 3.0})
    assert slower.persistent_factor(1) == 3.0
    assert base.variants()[0].vary({"algorithm.period": 8}).algorithm.period == 8  # type: ignore[attr-defined]
    with pytest.raises(BadInput) as caught:
        base.vary({"cluster.stragglers.4.slowdown": 3.0})
    assert str(caught.value) == "cluster.stragglers.4.slowdown: there is no entry '4'; the list has 1"
    with pytest.raises(BadInput) as caught:
        base.vary({"cluster.device.efficiency": 0.3})
    assert str(caught.value) == (
        "cluster.device.efficiency: 'device' is only 'v100-sxm2-16gb' here; give it keys and values first"
    )


def test_a_file_that_a_scenario_names_is_part_of_its_identity(tmp_path: Path) -> None:
    edges = "0 1 {'bandwidth': 1e9, 'latency': 0.0}\n"
    data = changed("cluster.topology", {"file": "own.edgelist"})
    data["cluster"]["workers"] = 2
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    digests = set()
    for bandwidth in ("1e9", "2e9"):
        (tmp_path / "own.edgelist").write_text(edges.replace("1e9", bandwidth))
        digests.add(Scenario.load(tmp_path / "s.yaml").digest())
    assert len(digests) == 2


def test_workers_that_share_a_gpu_share_its_speed() -> None:
    speeds = Scenario(changed("cluster.placement", [0, 0, 1, 2])).speeds
    assert speeds[0] == speeds[1] == speeds[2] / 2 == speeds[3] / 2


def test_vary_keeps_the_stragglers_of_the_workers_that_stay() -> None:
    base = Scenario(
        changed("cluster.stragglers", [{"kind": "persistent", "workers": [1, 3]}, {"kind": "lognormal"}])
    )
    two = base.vary(workers=2)
    assert [two.persistent_factor(rank) for rank in range(2)] == [1.0, 2.0]
    one = base.vary(workers=1)
    assert len(one.stragglers) == 1


def test_the_reference_is_the_fastest_worker_alone() -> None:
    base = Scenario(
        changed("cluster.stragglers", [{"kind": "persistent", "workers": [0, 1]}, {"kind": "lognormal"}])
    )
    reference = base.reference()
    assert reference.workers == 1
    assert reference.cluster.nodes == (base.cluster.nodes[2],)
    assert reference.persistent_factor(0) == 1.0
    assert reference.batches == (8,)


def test_proportional_batches_keep_the_global_batch() -> None:
    data = changed("cluster.stragglers", [{"kind": "persistent", "workers": [0], "slowdown": 3.0}])
    data["workload"]["batches"] = "proportional"
    scenario = Scenario(data)
    assert scenario.batches == (3, 10, 10, 9)
    assert scenario.shares is not None
    assert sum(scenario.shares) == pytest.approx(1)
    assert scenario.reference().batches == (8,)


def test_strong_scaling_divides_the_batch() -> None:
    data = changed("workload.scaling", "strong")
    assert Scenario(data).batches == (2, 2, 2, 2)
    assert Scenario(data).reference().batches == (8,)
    data["workload"]["cost"]["batch"] = 3
    assert complaint(data) == "good.yaml: workload.cost.batch: a global batch of 3 cannot feed 4 workers"


USERS_OWN = """
from dataclasses import dataclass
from algorithms import Algorithm
import torch
from simulator.workload.task import Task

@dataclass(frozen=True)
class Alone(Algorithm):
    '''Every worker for itself.'''
    async def run(self, worker):
        x = worker.initial_model()
        while worker.running:
            x = await worker.update(x, await worker.gradient(x))
            worker.report(x)

torch.manual_seed(0)
X = torch.randn(64, 3)
task = Task(torch.nn.Linear(3, 1), (X, X.sum(1, keepdim=True)), torch.nn.functional.mse_loss)
"""


def test_parts_of_the_users_own_beside_the_scenario(tmp_path: Path) -> None:
    from simulator.engine.simulate import simulate

    (tmp_path / "mine.py").write_text(USERS_OWN)
    data = changed("algorithm", "mine.py:Alone")
    data["workload"]["objective"] = "mine.py:task"
    data["budget"] = {"iterations": 40}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    run = simulate(Scenario.load(tmp_path / "s.yaml"))
    assert run.models is not None
    assert run.models.shape == (4, 4)
    assert run.samples.loss[-1] < 0.1 * run.samples.loss[0]
    data["algorithm"] = "mine.py:Alnoe"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput) as caught:
        Scenario.load(tmp_path / "s.yaml")
    assert str(caught.value) == "s.yaml: algorithm: 'mine.py' has no 'Alnoe'; the nearest is 'Alone'"
    data["algorithm"] = "mien.py:Alone"
    with pytest.raises(BadInput) as caught:
        Scenario(data, folder=tmp_path)
    assert str(caught.value) == (
        f"algorithm: cannot import 'mien.py:Alone': no file {tmp_path}/mien.py; the nearest is 'mine.py'"
    )
