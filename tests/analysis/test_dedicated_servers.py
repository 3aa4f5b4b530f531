"""What is made of runs with dedicated servers: they are shown apart, and counted as no worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import figures
from analysis.attribution import attribution
from analysis.compare import compare
from analysis.experiment import Experiment, experiment
from analysis.report import facts, report, warnings
from analysis.speedup import speedups
from simulator.engine.simulate import simulate
from simulator.scenario import Scenario

MODEL = 4000


def scenario() -> Scenario:
    return Scenario(
        {
            "name": "apart",
            "cluster": {
                "topology": {"builder": "switch", "gpus": 6},
                "device": "ideal",
                "workers": 3,
                "servers": {"device": "cpu-core"},
            },
            "workload": {"cost": {"parameters": MODEL // 4, "batch": 4, "gradient": "1 ms"}},
            "algorithm": {"name": "parameter-server", "servers": 2, "dedicated": True},
            "compare": [{"name": "a-psgd", "dedicated": True}, "parameter-server"],
            "budget": {"iterations": 5},
            "target": {"iterations": 5},
        }
    )


@pytest.fixture(scope="module")
def done() -> Experiment:
    return experiment(scenario(), jobs=1)


def test_their_bytes_stand_apart(done: Experiment) -> None:
    table = done.table()
    assert table.headings()[-2:] == ["bytes per iteration", "bytes of a server per iteration"]
    assert [cells[-2:] for cells in table.cells()] == [
        ["4 kB", "6 kB"],
        ["4 kB", "14.4 kB"],  # the last model goes to all once more
        ["5.333 kB", "-"],
    ]
    assert (
        "Dedicated servers are no workers: theirs are the bytes that a server sends per iteration of the "
        "workers." in table.notes()
    )
    rows = table.to_dicts()
    assert [row["server_sent_per_iteration_bytes"] for row in rows] == pytest.approx([6e3, 14.4e3, None])
    assert [row["workers"] for row in rows] == [3, 3, 3]
    # Speedups refer to the worker that hosts its server itself.
    assert [entry.reference.server_bytes for entry in done.entries] == [(), (), ()]


def test_a_run_on_one_worker_may_have_servers_too() -> None:
    one, three = (simulate(scenario().variants()[0].vary(workers=n)) for n in (1, 3))
    table = speedups([one, three])
    assert [row.ideal for row in table.rows] == [1.0, 3.0]


@pytest.mark.parametrize("dedicated", [False, True])
def test_a_table_takes_the_worker_that_hosts_its_server_itself(dedicated: bool) -> None:
    settings = {"name": "a-psgd", "servers": 2, "dedicated": dedicated}
    machines = {"device": "cpu-core"} if dedicated else None
    chosen = scenario().variants()[0].vary(algorithm=settings, servers=machines)
    table = speedups([simulate(chosen.reference()), simulate(chosen)])
    assert [row.workers for row in table.rows] == [1, 3]
    assert [row.ideal for row in table.rows] == [1.0, 3.0]


def test_time_is_that_of_workers(done: Experiment) -> None:
    run = done.entries[0].run
    parts = attribution(run)
    assert len(parts) == 3
    for own, end in zip(parts, run.own_ends, strict=True):
        assert sum(own.values()) == pytest.approx(end)
    assert compare(run, done.entries[2].run).total_a == run.time_per_iteration
    drawn = figures.worker_timeline(run)
    assert {round(y) for bars in drawn.data for y in bars.y} == {0, 1, 2}
    assert any("with server 1" in text for bars in drawn.data for text in bars.text)
    assert list(drawn.layout.yaxis.ticktext) == ["worker 0", "worker 1", "worker 2"]


def test_the_page_and_the_trace_name_them(done: Experiment, tmp_path: Path) -> None:
    assert warnings(done) == []
    assert any(
        "3 (3 × ideal" in text and "2 dedicated servers (cpu-core)" in text for _, text in facts(scenario())
    )
    assert "bytes of a server per iteration" in report(done)
    picture = figures.cluster_picture(scenario())
    nodes = {trace.name: list(trace.text) for trace in picture.data if trace.name in ("worker", "server")}
    assert nodes == {"worker": ["0", "1", "2"], "server": ["S0", "S1"]}
    done.save(tmp_path / "saved")
    trace = json.loads((tmp_path / "saved" / "trace.json").read_text())
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names[:5] == ["worker 0", "worker 1", "worker 2", "server 0", "server 1"]
