"""Servers with machines of their own: on both clocks they only serve, and are counted as no worker."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms import ALGORITHMS, Algorithm
from algorithms.algorithm import Setting
from algorithms.servers.served import Served
from simulator.engine.simulate import simulate
from simulator.execution.execute import execute
from simulator.faults import AlgorithmError
from simulator.parts import BadInput
from simulator.run import Run
from simulator.scenario import Scenario
from tests.simulator.greedy import Greedy

ROOT = Path(__file__).parents[2]
SERVED: dict[str, dict[str, Any]] = {
    "parameter-server": {"name": "parameter-server"},
    "a-psgd": {"name": "a-psgd"},
    "easgd": {"name": "easgd", "period": 2},
    "signsgd": {"name": "signsgd", "meet": "server", "tie": "zero"},
    "signum": {"name": "signum", "meet": "server", "tie": "random", "decay": 0.1},
    "asyvrsc-distributed": {"name": "asyvrsc-distributed", "updates": 12},
}
SEVERAL = ("parameter-server", "a-psgd")
SYNCHRONOUS = ("parameter-server", "signsgd", "signum")
LOGISTIC = {"kind": "logistic", "data": "digits", "dtype": "float32"}
PORTFOLIO = {"kind": "portfolio", "samples": 24, "assets": 8, "kappa": 2.0}
MODEL, BANDWIDTH = 1e6, 2e6
"""Bytes of the model where bandwidth alone counts, and of a link in a second."""


def settings_of(name: str, servers: int = 1, dedicated: bool = True) -> dict[str, Any]:
    several = {"servers": servers} if name in SEVERAL else {}
    return {**SERVED[name], **several, "dedicated": dedicated}


def scenario(name: str, workers: int, servers: int = 1, dedicated: bool = True, **more: Any) -> Scenario:
    objective = PORTFOLIO if name.startswith("asyvrsc") else LOGISTIC
    return Scenario(
        {
            "name": "served",
            "cluster": {
                "topology": {"builder": "switch", "gpus": workers + servers},
                "device": "gtx-1080-ti",
                "workers": workers,
            },
            "workload": {
                "cost": {"parameters": 650, "batch": 8, "gradient": "1 ms", "update": "0.1 ms"},
                "objective": objective,
            },
            "algorithm": settings_of(name, servers, dedicated),
            "step-size": 2e-4 if name.startswith("asyvrsc") else 0.1,
            "budget": {"iterations": 6},
            "seed": 11,
            **more,
        }
    )


def limited(algorithm: Any, workers: int, gpus: int, iterations: int = 5, **more: Any) -> Run:
    """Run on a star of equal links where bandwidth alone counts; a gradient takes a second."""
    link = {"bandwidth": f"{BANDWIDTH} B/s", "latency": "0 us"}
    return simulate(
        Scenario(
            {
                "name": "bandwidth",
                "cluster": {
                    "topology": {"builder": "switch", "gpus": gpus, "link": link},
                    "device": "ideal",
                    "transport": "ideal",
                    "workers": workers,
                    **more,
                },
                "workload": {"cost": {"parameters": int(MODEL / 4), "batch": 1, "gradient": "1 s"}},
                "algorithm": algorithm,
                "budget": {"iterations": iterations},
            }
        )
    )


def executed(chosen: Scenario) -> Run:
    run = execute(chosen)
    assert run is not None
    return run


# The same on both clocks.


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize(
    ("name", "servers"), [("parameter-server", 1), ("parameter-server", 2), ("signsgd", 1), ("signum", 1)]
)
def test_same_bits_on_both_clocks(name: str, servers: int, workers: int) -> None:
    chosen = scenario(name, workers, servers)
    simulated, real = simulate(chosen), executed(chosen)
    assert simulated.models is not None
    assert real.models is not None
    assert real.models.shape == (workers, 650)
    assert real.models.tobytes() == simulated.models.tobytes()
    assert real.iterations == simulated.iterations == (6,) * workers
    assert real.bytes_sent == simulated.bytes_sent
    assert real.server_bytes == simulated.server_bytes
    assert len(real.server_bytes) == servers
    # It does not matter for the models where servers are.
    hosted = simulate(scenario(name, workers, servers, dedicated=False))
    assert hosted.models is not None
    assert hosted.models.tobytes() == simulated.models.tobytes()


@pytest.mark.parametrize("update", ["schedule", "momentum"])
def test_a_server_follows_the_schedule_of_its_workers(update: str) -> None:
    """It has no iterations of its own, and takes the same steps as one that is a worker's task."""
    rules = {
        "schedule": {"rule": "sgd", "schedule": {"kind": "cosine", "warm-up": 2, "final": 0.1}},
        "momentum": {"rule": "momentum", "schedule": {"kind": "step", "every": 2, "factor": 0.5}},
    }
    hosted, simulated = (
        simulate(scenario("parameter-server", 3, 2, dedicated, update=rules[update]))
        for dedicated in (False, True)
    )
    real = executed(scenario("parameter-server", 3, 2, update=rules[update]))
    assert hosted.models is not None
    assert simulated.models is not None
    assert real.models is not None
    assert hosted.models.tobytes() == simulated.models.tobytes() == real.models.tobytes()


def test_an_asynchronous_server_goes_by_the_mean_of_its_workers_iterations() -> None:
    """With a step size that halves after every iteration, n gradients are applied with each."""
    halving = {"rule": "sgd", "schedule": {"kind": "step", "every": 1, "factor": 0.5}}
    chosen = scenario("a-psgd", 3, update=halving).vary(
        objective={"kind": "quadratic", "dimension": 4, "sigma2": 0.0, "zeta2": 0.0},
        cost={"parameters": 4, "batch": 1, "gradient": "1 ms", "update": "0.1 ms"},
    )
    for run in (simulate(chosen), executed(chosen)):
        served = [span.iteration for span in run.timeline if span.operation == "update"]
        assert sorted(served) == sorted(list(range(1, 7)) * 3)


@pytest.mark.parametrize("codec", ["top-k", "qsgd"])
def test_servers_decode_what_is_pushed_on_their_own_machines(codec: str) -> None:
    chosen = scenario("parameter-server", 3, 2, compression=codec)
    simulated, real = simulate(chosen), executed(chosen)
    hosted = simulate(scenario("parameter-server", 3, 2, dedicated=False, compression=codec))
    assert simulated.models is not None
    assert real.models is not None
    assert hosted.models is not None
    assert real.models.tobytes() == simulated.models.tobytes() == hosted.models.tobytes()


@pytest.mark.parametrize("name", ["a-psgd", "easgd", "asyvrsc-distributed"])
@pytest.mark.parametrize("workers", [1, 3])
def test_asynchronous_algorithms_on_both_clocks(name: str, workers: int) -> None:
    chosen = scenario(name, workers, 2 if name in SEVERAL else 1)
    for run in (simulate(chosen), executed(chosen)):
        assert run.workers == len(run.iterations) == len(run.bytes_sent) == workers
        assert len(run.server_bytes) == chosen.servers
        assert run.models is not None
        assert run.models.shape[0] == workers
        assert min(run.bytes_sent) > 0
        stale = [noted for noted in run.observations if noted.name == "staleness"]
        # Servers measure it, and each of them sees every worker.
        assert {noted.worker for noted in stale} <= set(range(workers, chosen.ranks))
        if name == "a-psgd":
            assert len(stale) == chosen.servers * sum(run.iterations)


# What is sent, and how long that takes.


def server_traffic(name: str, n: int, M: float, bits: float) -> tuple[float, float]:
    """Return what a worker, and what all servers send in an iteration."""
    if name == "easgd":
        return M / 2, n * M / 2  # a visit every other step
    if name in ("signsgd", "signum"):
        return bits, n * bits
    return M, n * M


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("name", ["parameter-server", "a-psgd", "easgd", "signsgd"])
@pytest.mark.parametrize("servers", [1, 3])
def test_bytes_follow_the_formula(name: str, servers: int, workers: int) -> None:
    if servers > 1 and name not in SEVERAL:
        pytest.skip("it has one server")
    run = simulate(scenario(name, workers, servers))
    M = 650 * 4
    algorithm = run.scenario.algorithm
    each, served = server_traffic(name, workers, M, algorithm.traffic(Setting(workers, 650)))
    assert algorithm.traffic(Setting(workers, 650)) == each
    goodbye = 4.0 if name == "easgd" else 0.0
    last = workers * M if name == "a-psgd" else 0.0
    np.testing.assert_allclose(run.bytes_sent, 6 * each + goodbye, rtol=1e-12)
    np.testing.assert_allclose(sum(run.server_bytes), 6 * served + last, rtol=1e-12)
    if name in SEVERAL:
        # Shards differ by an element at most.
        assert max(run.server_bytes) - min(run.server_bytes) <= 4 * workers * 7


def test_traffic_of_asyvrsc_goes_over_the_network() -> None:
    hosted, dedicated = (simulate(scenario("asyvrsc-distributed", 4, 1, d)) for d in (False, True))
    assert hosted.bytes_sent[0] > 2 * max(hosted.bytes_sent[1:])  # the master's
    assert max(dedicated.bytes_sent) < 1.5 * min(dedicated.bytes_sent)
    assert sum(dedicated.server_bytes) > sum(dedicated.bytes_sent) / 2


@pytest.mark.parametrize("servers", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 4, 8])
def test_time_is_that_of_the_servers_network_card(workers: int, servers: int) -> None:
    """n slices of M/s come in and n go out; with fewer workers than servers, a worker's own card binds."""
    run = limited({"name": "parameter-server", "servers": servers, "dedicated": True}, workers, 12)
    way = max(workers / servers, 1) * MODEL / BANDWIDTH
    assert run.time_per_iteration == pytest.approx(1 + 2 * way, rel=1e-9)


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 6])
def test_as_many_machines_are_never_slower_where_servers_are_dedicated(workers: int, servers: int) -> None:
    """n workers and s servers, against n + s workers of which s host a server, on a star of equal links.

    A network card then carries n slices, and n + s - 1 where every machine is a worker: the same for one
    server. (The same n workers are faster without a dedicated server, as one of them pushes nothing; and so
    may n + s be whose last one to be done hosts the server. Hence equal workers, and as many machines.)
    """
    machines = workers + servers
    own = {"name": "parameter-server", "servers": servers}
    dedicated = limited({**own, "dedicated": True}, workers, machines)
    hosted = limited(own, machines, machines)
    assert dedicated.duration <= hosted.duration * (1 + 1e-9)
    if servers == 1:
        assert dedicated.duration == pytest.approx(hosted.duration, rel=1e-9)
        same = limited(own, workers, machines)
        way = (workers - 1) * MODEL / BANDWIDTH
        assert same.duration == pytest.approx(same.iterations[0] * (1 + 2 * way), rel=1e-9)


def test_a_server_does_not_share_a_workers_device() -> None:
    """A hosted server's updates slow the gradients of its worker; a dedicated one's slow nobody's."""
    cost = {"parameters": 650, "batch": 8, "gradient": "1 ms", "update": "0.4 ms"}
    hosted, dedicated = (
        simulate(scenario("a-psgd", 4, 1, d, budget={"iterations": 40}).vary(cost=cost))
        for d in (False, True)
    )

    def gradients(run: Run, rank: int) -> float:
        spans = [s for s in run.timeline if s.operation == "gradient" and s.worker == rank]
        return float(np.mean([span.end - span.start for span in spans]))

    assert gradients(hosted, 0) > 1.1 * gradients(hosted, 1)
    assert gradients(dedicated, 0) == pytest.approx(1e-3)
    assert {span.worker for span in dedicated.timeline if span.operation == "update"} == {4}


# Servers are no workers.


def test_a_server_needs_no_rate_of_arithmetic_for_gradients() -> None:
    """It computes none, so that a processor may serve GPUs that train in a precision of theirs."""
    chosen = scenario("parameter-server", 2).vary(
        device="a100-sxm-80gb",
        servers={"device": "cpu-core"},
        cost={"model": "mlp-digits", "batch": 8, "precision": "bf16"},
        execution={"compute": "emulated"},
    )
    for run in (simulate(chosen), executed(chosen)):
        assert run.iterations == (6, 6)


def test_servers_count_as_no_workers(tmp_path: Path) -> None:
    run = simulate(scenario("parameter-server", 3, 2))
    assert run.workers == 3
    assert sum(run.time_shares().values()) == pytest.approx(1.0)
    assert {span.worker for span in run.timeline} == {0, 1, 2, 3, 4}
    assert {span.worker for span in run.worker_spans} == {0, 1, 2}
    run.save(tmp_path / "run")
    loaded = Run.load(tmp_path / "run")
    assert loaded.server_bytes == run.server_bytes == tuple(run.summary()["server_bytes_sent"])
    assert loaded.summary() == run.summary()
    assert loaded.scenario.cluster.nodes == run.scenario.cluster.nodes
    # What one worker would do alone, speedups refer to: it hosts its server itself.
    alone = run.scenario.reference()
    assert alone.servers == 0
    assert simulate(alone).bytes_sent == (0.0,)
    assert "server_bytes_sent" not in simulate(alone).summary()


def test_stragglers_are_workers() -> None:
    """What slows every worker slows no server."""
    slow = [{"kind": "persistent", "slowdown": 3.0}, {"kind": "bursts", "fast": "1 ms", "slow": "1 ms"}]
    quick, slowed = (
        simulate(scenario("parameter-server", 2).vary(stragglers=stragglers)) for stragglers in ([], slow)
    )

    def served(run: Run) -> list[float]:
        spans = [span for span in run.timeline if span.worker == 2 and span.kind == "compute"]
        return [span.end - span.start for span in spans]

    np.testing.assert_allclose(served(slowed), served(quick), rtol=1e-9)
    assert slowed.duration > 2 * quick.duration


def test_without_numerics_the_same_is_sent_in_the_same_time() -> None:
    for name in ("parameter-server", "a-psgd", "easgd", "signsgd"):
        whole = scenario(name, 3, 2 if name in SEVERAL else 1)
        data = {key: value for key, value in whole._data.items() if key != "step-size"}
        timing = Scenario({**data, "workload": {"cost": data["workload"]["cost"]}})
        with_numbers, without = simulate(whole), simulate(timing)
        assert without.models is None
        assert without.bytes_sent == with_numbers.bytes_sent
        assert without.server_bytes == with_numbers.server_bytes
        assert without.timeline.spans == with_numbers.timeline.spans


# Where they are.


def two_level(workers: int, count: int = 1, **cluster: Any) -> Scenario:
    chosen = scenario("parameter-server", workers, count)
    topology = {"builder": "two-level", "hosts": 3, "gpus-per-host": 2}
    return Scenario({**chosen._data, "cluster": {**chosen._data["cluster"], "topology": topology, **cluster}})


def test_servers_sit_on_the_first_machines_without_workers() -> None:
    assert two_level(3).cluster.nodes[3:] == ("host2/gpu0",)
    assert two_level(2, 2).cluster.nodes[2:] == ("host1/gpu0", "host2/gpu0")
    assert two_level(1, 2).cluster.nodes == ("host0/gpu0", "host1/gpu0", "host2/gpu0")


def test_their_machines_may_be_named() -> None:
    named = two_level(2, 1, servers={"nodes": ["host2", "host1/gpu1"], "device": "ideal"})
    assert named.cluster.nodes[2:] == ("host2",)
    assert [device.name for device in named.cluster.devices] == ["gtx-1080-ti", "gtx-1080-ti", "ideal"]
    assert Scenario(named.resolved()).resolved() == named.resolved()
    # An algorithm of a comparison that has no dedicated servers does without.
    compared = Scenario({**named._data, "compare": ["allreduce-sgd"]})
    assert [variant.servers for variant in compared.variants()] == [1, 0]
    assert [variant.cluster.workers for variant in compared.variants()] == [2, 2]
    assert named.reference().cluster.nodes == ("host0/gpu0",)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an algorithm without servers": (
        {"algorithm": {"name": "allreduce-sgd", "dedicated": True}},
        "algorithm: unknown key 'dedicated'; the known keys are overlap",
    ),
    "rounds without a server": (
        {"algorithm": {"name": "easgd", "rounds": "synchronous", "dedicated": True}},
        "algorithm: EASGD: it has no server to be dedicated with these parameters",
    ),
    "votes in shards": (
        {"algorithm": {"name": "signsgd", "dedicated": True}},
        "algorithm: SignSGD: it has no server to be dedicated with these parameters",
    ),
    "more servers than machines": (
        {"algorithm": settings_of("parameter-server", 3)},
        "cluster.servers: 3 dedicated servers need 3 machines without workers, but the topology has 2",
    ),
    "workers on every machine": (
        {"cluster.workers": 5, "algorithm": settings_of("a-psgd")},
        "cluster.servers: 1 dedicated server needs a machine without workers, but the topology has none",
    ),
    "a compared one with more servers than machines": (
        {"compare": [settings_of("a-psgd", 3)]},
        "cluster.servers: 3 dedicated servers need 3 machines without workers, but the topology has 2",
    ),
    "machines of servers that nobody has": (
        {"algorithm": "a-psgd", "cluster.servers": {"nodes": ["gpu4"]}},
        "cluster.servers: no algorithm of this scenario has dedicated servers",
    ),
    "too few machines named": (
        {"cluster.servers": {"nodes": ["gpu4"]}},
        "cluster.servers.nodes: 2 dedicated servers need 2 nodes, not 1",
    ),
    "a machine that is not there": (
        {"cluster.servers": {"nodes": ["gpu4", "gpu9"]}},
        "cluster.servers.nodes: the topology has no node 'gpu9'; the nearest is 'gpu4'",
    ),
    "a worker's machine": (
        {"cluster.servers": {"nodes": ["gpu4", "gpu1"]}},
        "cluster.servers.nodes: worker 1 is on 'gpu1'",
    ),
    "a switch": (
        {"cluster.servers": {"nodes": ["gpu4", "switch"]}},
        "cluster.servers.nodes: 'switch' is of kind 'switch', which computes nothing",
    ),
    "figures that given seconds do not use": (
        {"cluster.servers": {"device": {"name": "cpu-core", "memory-bandwidth": "5 GB/s"}}},
        "cluster.servers.device.memory-bandwidth: has no effect; the workload's cost is given in seconds",
    ),
    "unlike devices": (
        {"cluster.device": ["gtx-1080-ti", "ideal", "ideal"]},
        "cluster.servers.device: this key is missing, and the workers' devices differ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    changes, sentence = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        scenario("parameter-server", 3, 2).vary(changes)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("run", [simulate, execute], ids=["simulated", "executed"])
@pytest.mark.parametrize(
    ("what", "does"), [("gradient", "started a gradient"), ("report", "reported a model")]
)
def test_a_server_has_no_data(run: Any, what: str, does: str) -> None:
    chosen = scenario("parameter-server", 2).vary(algorithm=Greedy(what=what))
    with pytest.raises(
        AlgorithmError, match=f"rank 2 is a dedicated server, which has no data, but it {does}"
    ):
        run(chosen)


def test_the_list_says_who_has_servers() -> None:
    for name, entry in ALGORITHMS.items():
        cls = entry.load()
        assert issubclass(cls, Served) == bool(entry.servers), name
        if entry.servers in ("", "any"):
            continue
        key, value = entry.servers.split(": ")
        made: Algorithm = cls(**{key: value, "dedicated": True})
        assert made.dedicated_servers == 1


# Under torchrun.

SCRIPT = """
    import sys

    from simulator.execution.execute import execute
    from simulator.scenario import Scenario

    run = execute(Scenario.load(sys.argv[1]))
    if run is not None:
        print(run.workers, len(run.server_bytes), run.models.tobytes().hex())
"""


def torchrun(folder: Path, chosen: Scenario, ranks: int) -> subprocess.CompletedProcess[str]:
    import yaml

    (folder / "served.yaml").write_text(yaml.safe_dump(chosen.resolved()))
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*command, str(folder / "script.py"), str(folder / "served.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_torchrun_starts_workers_and_servers(tmp_path: Path) -> None:
    chosen = scenario("parameter-server", 2, 1)
    done = torchrun(tmp_path, chosen, ranks=3)
    assert done.returncode == 0, done.stderr
    simulated = simulate(chosen)
    assert simulated.models is not None
    assert done.stdout.split() == ["2", "1", simulated.models.tobytes().hex()]


def test_torchrun_with_workers_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as caught:
        execute(scenario("parameter-server", 2, 1))
    assert str(caught.value) == (
        "cluster.workers: the scenario has 2 workers and 1 dedicated server, but torchrun has started 2 ranks"
    )
