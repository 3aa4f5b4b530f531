from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import analysis.experiment
import simulator.engine.simulate
from analysis.cli import _execution_text, app, taken_from_the_machine
from simulator.faults import WorkerFailed
from simulator.run import Run
from simulator.scenario import Scenario

Make = Callable[..., Run]
Scene = Callable[..., Scenario]
Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def paceline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def scenario_file(timing_scenario: Scene, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(timing_scenario().resolved()), encoding="utf-8")
    return path


@pytest.fixture
def real_file(tmp_path: Path) -> Path:
    """A scenario with numerics, small enough to execute."""
    data: dict[str, Any] = {
        "name": "real",
        "cluster": {
            "topology": {"builder": "switch", "gpus": 3},
            "device": "cpu-core",
            "workers": 3,
            "transport": "gloo",
            "stragglers": [{"kind": "persistent", "workers": [0]}],
        },
        "workload": {
            "cost": {"model": "mlp-digits", "batch": 8},
            "objective": {"kind": "mlp", "data": "digits"},
        },
        "algorithm": {"name": "cocod-sgd", "period": 2},
        "compare": ["allreduce-sgd"],
        "step-size": {"grid": [0.1, 0.2]},
        "budget": {"iterations": 6, "stop": "target"},
        "target": {"loss": 1e-6},
    }
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def refused(result: tuple[int, str, str], sentence: str) -> None:
    """Exit code 2, exactly one sentence on the standard error, nothing on the standard output."""
    assert result == (2, "", f"error: {sentence}\n")


# Run.


def test_run_prints_a_table_and_saves(paceline: Invoke, scenario_file: Path, tmp_path: Path) -> None:
    code, out, err = paceline("run", scenario_file, "--jobs", 1)
    folder = Path("runs") / f"small-{Scenario.load(scenario_file).digest()}"
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "small: cost of a given model of 1,000,000 parameters, timing only"
    assert any(line.startswith("local-sgd (period 8)") for line in lines)
    assert "Target: 10 iterations." in lines
    assert lines[-1] == (
        f"Saved to {folder}: open {folder}/report.html in a browser, {folder}/trace.json in ui.perfetto.dev."
    )
    assert sorted(path.name for path in Path("runs").iterdir()) == [folder.name]  # no parts stay behind
    assert sorted(path.name for path in folder.iterdir()) == [
        "allreduce-sgd",
        "local-sgd",
        "local-sgd-period-8",
        "provenance.json",
        "report.html",
        "scenario.yaml",
        "summary.json",
        "trace.json",
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["workers"] for row in summary["table"]] == [3, 3, 3]
    assert json.loads((folder / "provenance.json").read_text())["elapsed_s"] > 0


def test_the_same_scenario_and_seed_give_the_same_bytes(paceline: Invoke, scenario_file: Path) -> None:
    for out in ("one", "two"):
        assert paceline("run", scenario_file, "--jobs", 1, "--seed", 3, "--out", out)[0] == 0
    names = [path.relative_to("one") for path in sorted(Path("one").rglob("*")) if path.is_file()]
    assert len(names) > 30
    for name in names:
        if name.name != "provenance.json":
            assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes(), name
    assert yaml.safe_load(Path("one/scenario.yaml").read_text())["seed"] == 3


def test_run_as_json(paceline: Invoke, scenario_file: Path) -> None:
    code, out, err = paceline("run", scenario_file, "--jobs", 1, "--json", "--out", "here")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["saved_to"] == "here"
    assert [row["algorithm"] for row in found["table"]] == [
        "allreduce-sgd",
        "local-sgd",
        "local-sgd (period 8)",
    ]
    assert found["table"][0]["iteration_speedup"] == 1.0


def test_a_target_that_is_never_reached(paceline: Invoke, real_file: Path) -> None:
    code, out, _ = paceline("run", real_file, "--jobs", 1)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("allreduce-sgd "))
    assert row.count("not reached") == 5
    assert "did not reach the target (loss <= 1e-06) and stay there for" in out


def test_a_stopped_run_goes_on(
    paceline: Invoke, scenario_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    simulate = simulator.engine.simulate.simulate
    simulated: list[str] = []

    def counted(scenario: Scenario, progress: object = None) -> Run:
        if len(simulated) == 4:
            raise KeyboardInterrupt
        simulated.append(scenario.digest())
        return simulate(scenario)

    monkeypatch.setattr(simulator.engine.simulate, "simulate", counted)
    code, _, err = paceline("run", scenario_file, "--jobs", 1, "--out", "x")
    assert (code, err.strip()) == (
        1,
        "error: interrupted; the same command goes on after its last finished run",
    )
    (store,) = (path for path in tmp_path.iterdir() if path.is_dir())  # nothing half-written beside it
    assert store.name.startswith(".x-")
    assert sorted(path.name for path in store.iterdir()) == sorted(simulated)

    again: list[str] = []
    monkeypatch.setattr(
        simulator.engine.simulate, "simulate", lambda s, p=None: (again.append(s.digest()), simulate(s))[1]
    )
    assert paceline("run", scenario_file, "--jobs", 1, "--out", "x")[0] == 0
    assert len(again) == 2
    assert not set(again) & set(simulated)
    assert not store.exists()
    assert Path("x/report.html").exists()


def test_run_replaces_only_saved_runs(paceline: Invoke, scenario_file: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("words")
    sentence = "precious: exists and is no saved run; name another folder"
    refused(paceline("run", scenario_file, "--out", "precious"), sentence)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "words"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"bugdet": {"iterations": 3}},
            "small.yaml: unknown key 'bugdet'; the nearest is 'budget'",
        ),
        (
            {"algorithm": "cocod"},
            "small.yaml: algorithm.name: unknown algorithm 'cocod'; the nearest is 'cocod-sgd'",
        ),
        (
            {"algorithm": {"name": "local-sgd", "perod": 3}},
            "small.yaml: algorithm: unknown key 'perod'; the nearest is 'period'",
        ),
    ],
)
def test_faults_of_a_scenario(
    change: dict[str, object], sentence: str, paceline: Invoke, scenario_file: Path
) -> None:
    data = yaml.safe_load(scenario_file.read_text())
    scenario_file.write_text(yaml.safe_dump({**data, **change}))
    refused(paceline("run", scenario_file), sentence)
    assert not Path("runs").exists()


def test_faults_of_files_and_arguments(paceline: Invoke, tmp_path: Path) -> None:
    refused(paceline("run", "cocod"), "cocod: no such scenario; the nearest is 'cocod-1080ti'")
    refused(paceline("run", "nope.yaml"), "nope.yaml: cannot be read: No such file or directory")
    refused(paceline("run"), "Missing argument 'SCENARIO'.")
    refused(paceline("runn", "x"), "No such command 'runn'; the nearest is 'run'")
    refused(paceline("run", "x", "--sede", 1), "No such option: --sede; the nearest is '--seed'")
    refused(
        paceline("run", "x", "--seed", -1),
        "Invalid value for '--seed': input should be greater than or equal to 0, got '-1'",
    )
    refused(
        paceline("algorithms", "--model", "resnet50", "--workers", "two"),
        "Invalid value for '--workers': input should be a valid integer, unable to parse string as an "
        "integer, got 'two'",
    )
    refused(paceline("execute", "nope.yaml"), "nope.yaml: cannot be read: No such file or directory")


def test_a_failing_worker_is_one_sentence_and_code_2(
    paceline: Invoke, scenario_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(scenario: Scenario, progress: object = None) -> Run:
        raise WorkerFailed(2, 7, "ZeroDivisionError: division by zero")

    monkeypatch.setattr(simulator.engine.simulate, "simulate", broken)
    result = paceline("run", scenario_file, "--jobs", 1)
    assert result[0] == 2
    assert result[2] == "error: worker 2 failed in iteration 7: ZeroDivisionError: division by zero\n"


def test_the_unexpected_is_not_hidden(
    paceline: Invoke, scenario_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(analysis.experiment, "experiment", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        paceline("run", scenario_file)


# Execute.


def test_execute_verifies_the_models(paceline: Invoke, real_file: Path) -> None:
    code, out, err = paceline("execute", real_file, "--workers", 2, "--verify")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "real: cocod-sgd on 2 local processes"
    assert lines[1].startswith("  step size 0.")
    assert lines[1].endswith(", the best of 0.1, 0.2 in simulation")
    assert lines[2] == "  6 iterations a worker, where the simulation stops"
    assert lines[3] == (
        "  from this machine, not from the scenario: devices (cpu-core); network (switch, transport gloo); "
        "stragglers (persistent)"
    )
    assert lines[4].startswith("  ranks 0 to 1: cpu on ")
    assert lines[5].startswith("  6 iterations a worker in ")
    assert lines[-2] == "  the executed models are bit-identical to the simulated ones"
    folder = Path(lines[-1].removeprefix("Saved to ").removesuffix("."))
    assert Run.load(folder).clock == "wall"


@pytest.mark.parametrize(
    ("losses", "target", "line"),
    [
        ((0.9, 0.5, 0.4), {"loss": 0.5, "reports": 1}, "(loss <= 0.5) was reached at 4 iterations (6 s)"),
        ((0.9, 0.5, 0.6), {"loss": 0.5, "reports": 1}, "(loss <= 0.5) was not reached"),
        (
            (0.9,),
            {"iterations": 10},
            "(10 iterations) lies beyond the run, by its mean pace at 10 iterations (10 s)",
        ),
    ],
)
def test_an_execution_tells_of_its_target(
    losses: tuple[float, ...], target: dict[str, float], line: str, loss_scenario: Scene, make_run: Make
) -> None:
    text = _execution_text(make_run(loss_scenario(target=target), losses))
    assert [told for told in text.splitlines() if "target" in told] == [f"  the target {line}"]


def test_execute_as_json(paceline: Invoke, real_file: Path) -> None:
    code, out, _ = paceline(
        "execute", real_file, "--workers", 2, "--step-size", 0.1, "--verify", "--json", "--out", "e"
    )
    assert code == 0
    found = json.loads(out)
    assert found["bit_identical"] is True
    assert (found["workers"], found["step_size"], found["clock"]) == (2, 0.1, "wall")
    assert found["saved_to"] == "e"


def test_execute_needs_an_objective(paceline: Invoke, scenario_file: Path) -> None:
    code, _, err = paceline("execute", scenario_file)
    assert code == 2
    assert err == (
        "error: workload.objective: an execution computes real gradients; name what is optimised\n"
    )


def test_what_an_execution_takes_from_the_machine(timing_scenario: Scene) -> None:
    flow = {"source": "host0", "destination": "host1", "rate": "1 Gbps"}
    scenario = timing_scenario().vary(background=[flow])
    assert taken_from_the_machine(scenario) == [
        "devices (gtx-1080-ti)",
        "network (two-level, transport nccl)",
        "stragglers (persistent)",
        "background traffic (1 flow)",
    ]
    execution = {"compute": "emulated", "stragglers": "injected"}
    assert taken_from_the_machine(scenario.vary(execution=execution)) == [
        "network (two-level, transport nccl)",
        "background traffic (1 flow)",
    ]
    assert taken_from_the_machine(scenario, emulated=True) == [
        "devices (gtx-1080-ti)",
        "transport (nccl)",
        "stragglers (persistent)",
        "background traffic (1 flow)",
    ]
    slow = {"kind": "slow-link", "between": ["host0", "switch"], "start": "1 s"}
    disturbed = timing_scenario().vary(stragglers=[slow])
    assert taken_from_the_machine(disturbed)[2:] == ["stragglers (slow-link)"]
    assert taken_from_the_machine(timing_scenario().vary(stragglers=[slow, slow]))[2:] == [
        "stragglers (slow-link)"
    ]
    assert taken_from_the_machine(disturbed, emulated=True)[2:] == []


# Emulate.


def test_emulate_needs_root(paceline: Invoke, real_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, out, err = paceline("emulate", real_file)
    assert (code, out) == (2, "")
    assert err == (
        "error: an emulated network needs root, because it makes network namespaces, but this process runs "
        "as user 1000; run it with sudo\n"
    )


@pytest.mark.usefixtures("_emulation")
def test_emulate(paceline: Invoke, real_file: Path) -> None:
    code, out, _ = paceline(
        "emulate", real_file, "--workers", 2, "--step-size", 0.1, "--verify", "--out", "e"
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith(" on 2 local processes in an emulated network")
    taken = "devices (cpu-core); transport (gloo); stragglers (persistent)"
    assert f"  from this machine, not from the scenario: {taken}" in lines
    assert any(line.startswith("  emulated network of ") for line in lines)
    assert lines[-2] == "  the executed models are bit-identical to the simulated ones"
    run = Run.load(Path("e"))
    assert run.clock == "wall"
    assert run.emulation is not None
    assert "wall clock, emulated network" in repr(run)


# Compare.


def test_compare_two_saved_runs(paceline: Invoke, scenario_file: Path) -> None:
    paceline("run", scenario_file, "--jobs", 1, "--out", "x")
    code, out, _ = paceline("compare", "x/allreduce-sgd", "x/local-sgd", "--out", "c.html")
    assert code == 0
    assert out.splitlines()[:4] == [
        "A: small, allreduce-sgd, 3 workers, simulated",
        "B: small, local-sgd, 3 workers, simulated",
        "A and B are runs of different scenarios, which differ in algorithm (allreduce-sgd, local-sgd).",
        "",
    ]
    assert "Largest contributor: " in out
    assert Path("c.html").read_text().startswith("<!DOCTYPE html>")
    code, out, _ = paceline("compare", "x/allreduce-sgd", "x/local-sgd", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["given_differently"] == [{"key": "algorithm", "a": "allreduce-sgd", "b": "local-sgd"}]
    assert sum(entry["difference_s"] for entry in found["operations"]) == pytest.approx(found["difference_s"])
    named = "'allreduce-sgd', 'local-sgd', 'local-sgd-period-8'"
    refused(
        paceline("compare", "x", "x/local-sgd"), f"x: holds several runs; name one of its folders: {named}"
    )
    refused(paceline("compare", "y", "x"), "y: is not a saved run; it has no summary.json")


# What there is.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("topology",), ["two-level", "gpus-per-host", "required"]),
        (("topology", "ring", "nodes=4"), ["4 (4 gpu)", "bisection  2.5 GB/s"]),
        (("topology", "cocod-1080ti"), ["7 GB/s × 0.35 = 2.45 GB/s", "at most 7.35 GB/s"]),
        (("algorithms",), ["cocod-sgd", "2(n-1)/n M/k, k = 4", "an epoch 2(n-1)/n M", "k = 500"]),
        (("algorithms", "--model", "mlp-digits"), ["18.07 kB; an epoch 18.07 kB", "36.15 B (k = 500)"]),
        (
            ("algorithms", "cocod-sgd", "--model", "mlp-digits"),
            [
                "parameter period (whole number, default 4, at least 1):",
                "IJCAI 2019",
                "bytes sent per iteration: 2(n-1)/n M/k, k = 4 (M: the model, n: workers, k: period)",
                "  4.519 kB (k = 4) for mlp-digits on 16 workers",
            ],
        ),
        (
            ("algorithms", "katyusha-x"),
            ['parameter form (one of "strongly-convex", "convex", default "convex"):', "tau = 0.5 is svrg"],
        ),
        (
            ("algorithms", "asyvrsc-shared"),
            ["0; an epoch 2(n-1)/n (4(2P + PN) + 4) B", "PN: of its Jacobian"],
        ),
        (("models",), ["resnet18-cifar", "11,173,962"]),
        (("models", "mlp-digits"), ["total", "2,410"]),
        (("codecs",), ["powersgd", "all-reduce", "a layer of 1000 x 1000: 4 MB in fp32"]),
        (("codecs", "--model", "mlp-digits"), ["of mlp-digits: 9.64 kB in fp32"]),
        (
            ("codecs", "qsgd", "--model", "mlp-digits"),
            [
                "parameter levels (whole number, default 7, at least 1): levels above zero (s)",
                "parameter bucket (whole number in coordinates, default 512, at least 0):",
                'parameter scaling (one of "norm", "max", default "norm"):',
                "bytes of a message: d b/8 + 4 d/bucket",
                "  1.225 kB (882.4 B in theory) for the 9.64 kB of mlp-digits",
            ],
        ),
        (
            ("codecs", "dgc"),
            [
                "parameter density (number, default 0.001, above 0.0, at most 1.0):",
                "parameter masking (true or false, default true):",
                "parameter warm-up (list of numbers, default [0.25, 0.063, 0.015, 0.004]):",
                "parameter stage (whole number in iterations, default 0, at least 0):",
                "as 'compression: {codec: dgc}' for: gradients of allreduce-sgd, pipe-sgd; pushed gradients "
                "of parameter-server, a-psgd\n",
            ],
        ),
        (
            ("codecs", "powersgd"),
            ["for: gradients of allreduce-sgd, pipe-sgd; models of local-sgd, cocod-sgd, slowmo, diloco\n"],
        ),
        (("algorithms", "local-sgd"), ["compression: of its models"]),
        (("algorithms", "hogwild"), ["compression: none, as it sends nothing"]),
        (("devices",), ["gtx-1080-ti", "11.34 TFLOP/s"]),
        (("devices", "ideal"), ["Source: no real device"]),
    ],
)
def test_catalogues_as_text_and_json(arguments: tuple[str, ...], words: list[str], paceline: Invoke) -> None:
    code, out, err = paceline(*arguments)
    assert (code, err) == (0, "")
    for word in words:
        assert word in out
    code, out, _ = paceline(*arguments, "--json")
    assert code == 0
    json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_topology_writes_a_file(paceline: Invoke) -> None:
    assert paceline("topology", "switch", "gpus=3", "--out", "t.graphml")[0] == 0
    code, out, _ = paceline("topology", "t.graphml", "--json")
    assert (code, json.loads(out)["gpus"]) == (0, 3)


def test_unknown_names(paceline: Invoke) -> None:
    refused(paceline("algorithms", "cocod"), "unknown algorithm 'cocod'; the nearest is 'cocod-sgd'")
    refused(paceline("codecs", "topk"), "unknown codec 'topk'; the nearest is 'top-k'")
    refused(
        paceline("codecs", "resnet50"),
        "unknown codec 'resnet50'; the nearest is 'sign'; for the sizes of a model give --model resnet50",
    )
    refused(
        paceline("topology", "rnig"),
        "rnig: no such topology builder, file or scenario; the nearest is 'ring'",
    )
    refused(paceline("topology", "ring", "node=4"), "unknown key 'node'; the nearest is 'nodes'")
    refused(paceline("topology", "ring", "nodes"), "expected a parameter like 'nodes=8', got 'nodes'")


# Flows.

CASE = {
    "links": {"a": {"bandwidth": 10.0, "latency": 1.0}},
    "flows": [{"size": 20.0, "start": 0.0, "path": ["a"]}],
}


def test_flows(paceline: Invoke) -> None:
    Path("one.json").write_text(json.dumps(CASE))
    code, out, err = paceline("flows", "one.json")
    assert (code, err, json.loads(out)) == (0, "", {"completion": [3.0]})
    Path("two.json").write_text(json.dumps([{**CASE, "name": "x"}, {**CASE, "name": "y"}]))
    code, out, _ = paceline("flows", "two.json", "--fairness", "rtt", "--out", "o.json")
    expected = [{"name": "x", "completion": [3.0]}, {"name": "y", "completion": [3.0]}]
    assert (code, json.loads(out)) == (0, expected)
    assert json.loads(Path("o.json").read_text()) == expected


@pytest.mark.parametrize("fairness", ["maxmin", "rtt"])
def test_flows_of_the_golden_sets(paceline: Invoke, goldens: Path, fairness: str) -> None:
    """Completion times by SimGrid 3.32, through the command: 33 sets, and 10 weighted by 1/latency."""
    file = goldens / f"flow_sets_{fairness}.json"
    code, out, _ = paceline("flows", str(file), "--fairness", fairness)
    assert code == 0
    cases, answers = json.loads(file.read_text()), json.loads(out)
    assert len(cases) == len(answers) == {"maxmin": 33, "rtt": 10}[fairness]
    for case, answer in zip(cases, answers, strict=True):
        assert answer["completion"] == pytest.approx(case["completion"], rel=1e-9, abs=0), case["name"]


def test_bad_flows(paceline: Invoke) -> None:
    Path("bad.json").write_text('{"links": {')
    code, out, err = paceline("flows", "bad.json")
    assert (code, out) == (2, "")
    assert err.startswith("error: bad.json: is not JSON: ")
    refused(paceline("flows", "no.json"), "no.json: cannot be read: No such file or directory")
    code, _, err = paceline("flows", "bad.json", "--fairness", "fair")
    assert (code, err) == (
        2,
        "error: Invalid value for '--fairness': 'fair' is not one of 'maxmin', 'rtt'.\n",
    )


# The whole program.


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom analysis.cli import app\n"
        "try: app(['--help'], prog_name='paceline')\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'plotly', 'pandas', 'numpy', 'networkx', 'pydantic', 'simpy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        took = time.perf_counter() - started
        assert done.stdout.startswith("Usage: paceline [OPTIONS] COMMAND")
        assert done.stdout.endswith("\n[]\n")
        if took < 0.5:  # else once more: other work may have slowed it
            break
    assert took < 0.5


def test_a_fault_is_one_sentence_for_the_shell_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from analysis.cli import main; main()", "run", "cocod"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: cocod: no such scenario; the nearest is 'cocod-1080ti'\n"


# What is refused, and said, before anything is printed.


def test_workers_without_a_model_are_refused(paceline: Invoke) -> None:
    refused(
        paceline("algorithms", "--workers", 4),
        "--workers: 4 has no effect without --model, the model whose bytes are told",
    )
    code, out, _ = paceline("algorithms", "--model", "resnet50", "--workers", 4)
    assert code == 0
    assert "of resnet50 on 4 workers" in out
    assert "of resnet50 on 16 workers" in paceline("algorithms", "--model", "resnet50")[1]


def test_a_parameter_that_is_given_twice_is_refused(paceline: Invoke) -> None:
    refused(paceline("topology", "ring", "nodes=4", "nodes=8"), "nodes: is given twice, as 4 and as '8'")


def test_what_the_objective_refuses_is_said_before_the_heading(paceline: Invoke, real_file: Path) -> None:
    data = yaml.safe_load(real_file.read_text())
    data["workload"]["objective"] = {"kind": "scalar-quadratics", "curvatures": [1.0], "centres": [1.0]}
    real_file.write_text(yaml.safe_dump(data))
    refused(
        paceline("run", real_file),
        "real.yaml: workload.objective: 1 scalar quadratics need 1 workers or 1, got 3",
    )


def test_what_an_execution_refuses_is_said_before_the_heading(paceline: Invoke, real_file: Path) -> None:
    data = yaml.safe_load(real_file.read_text())
    data.update(budget={"iterations": 6}, **{"step-size": 0.1})
    real_file.write_text(yaml.safe_dump(data))
    refused(
        paceline("execute", real_file, "--patience", 0), "patience: must be above 0 s and finite, got 0.0"
    )


def test_an_execution_names_crashes_after_its_end(loss_scenario: Scene, make_run: Make) -> None:
    late = [{"kind": "crash", "workers": [1], "at": "1 min"}]
    scenario = loss_scenario(stragglers=late, target=None, execution={"stragglers": "injected"})
    done = dataclasses.replace(make_run(scenario, [0.4]), clock="wall")
    assert _execution_text(done).splitlines()[-1] == (
        "  warning: the crash at 60 s (cluster.stragglers.0.at) lies beyond the run's end at 8 s, without "
        "effect."
    )


def test_keys_of_a_scenario(paceline: Invoke) -> None:
    code, out, err = paceline("keys")
    assert (code, err) == (0, "")
    assert any(line.split()[:3] == ["budget.iterations", "whole", "number"] for line in out.splitlines())
    below = json.loads(paceline("keys", "cluster.transport", "--json")[1])
    assert {row["of"] for row in below} == {"", "ideal", "nccl", "gloo", "fixed"}
    refused(paceline("keys", "budgets"), "budgets: no such key of a scenario; the nearest is 'budget'")


def test_keys_have_a_line_each_for_scripts(paceline: Invoke) -> None:
    plain = paceline("keys", "cluster.transport")[1].splitlines()
    (line,) = [line for line in plain if line.startswith("cluster.transport.share-spread ")]
    assert len(line) > 200
    assert line.endswith("Collectives share equally.")


def test_keys_have_wrapped_lines_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_on_a_terminal(columns: int, *arguments: str) -> str:
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: size)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        with pytest.raises(SystemExit, match=r"^0$"):
            app(arguments)
        return capsys.readouterr().out

    # One real terminal, with an interpreter of its own; the others are said to be some.
    shows = (on_a_terminal, as_on_a_terminal, as_on_a_terminal)
    for show, columns, width in zip(shows, (60, 100, 300), (80, 100, 120), strict=True):
        shown = show(columns, "keys", "cluster.transport").splitlines()
        assert width - 12 < max(map(len, shown)) <= width
        assert "cluster.transport.share-spread (ideal, nccl, gloo)" in shown
    assert json.loads(as_on_a_terminal(80, "keys", "budget", "--json"))[0]["key"] == "budget"


def on_a_terminal(columns: int, *arguments: str) -> str:
    """Run the command line with a terminal of so many columns as its output; return what it printed."""
    outer, inner = os.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-c", "from analysis.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=inner, cwd=root, env=environment):
        os.close(inner)
        printed = b""
        with contextlib.suppress(OSError):  # what the end of the other side is on Linux
            while block := os.read(outer, 65536):
                printed += block
    os.close(outer)
    return printed.decode().replace("\r\n", "\n")
