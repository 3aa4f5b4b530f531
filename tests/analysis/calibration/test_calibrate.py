"""Real measurements on this machine, as few and as short as they can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from analysis.calibration import Settings, calibrate
from analysis.calibration.calibrate import _lines, usual_workers
from analysis.cli import app
from analysis.validate import calibrated
from simulator.engine.simulate import simulate
from simulator.execution.calibrate import Means, Ranks
from simulator.execution.execute import execute
from simulator.parts import BadInput
from simulator.scenario import Scenario
from traces.calibration_files import Parts, read_description

ROOT = Path(__file__).parents[3]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")

FEW: dict[str, Any] = {
    "sizes": (4, 2**12, 2**16),
    "collective_sizes": (2**8, 2**10, 2**12, 2**14, 2**16),
    "repeats": 3,
    "models": ("mlp-digits",),
    "batches": (1, 8),
    "samples": 6,
    "seconds": 0.2,
}
BRIEF = [
    "--size", "4 B", "--size", "64 KiB", "--collective-size", "4 KiB", "--collective-size", "64 KiB",
    "--repeats", "3", "--samples", "5", "--batch", "2", "--model", "mlp-digits", "--seconds", "0.2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def workload(**more: Any) -> dict[str, Any]:
    return {
        "name": "loop",
        "workload": {
            "cost": {"model": "mlp-digits", "batch": 8},
            "objective": {"kind": "mlp", "data": "digits"},
        },
        "algorithm": "allreduce-sgd",
        "step-size": 0.1,
        "budget": {"iterations": 20},
        **more,
    }


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A description of this machine, measured together with a scenario's objective."""
    path = tmp_path_factory.mktemp("calibrated") / "machine.yaml"
    plain = {"topology": {"builder": "switch", "gpus": 2}, "device": "cpu-core"}
    settings = Settings(**FEW, scenario=Scenario(workload(cluster=plain)))
    assert calibrate(settings, path, workers=2) is not None
    return path


def test_a_description_has_everything_and_nothing_else_stays(machine: Path) -> None:
    assert os.listdir(machine.parent) == ["machine.yaml"]
    data = read_description(machine)
    cluster, measured = data["cluster"], data["measured"]
    assert set(cluster) == {"topology", "device", "workers", "transport", "stragglers"}
    assert cluster["transport"]["name"] == "gloo"
    assert {"collective-latency", "collective-share", "pattern"} <= set(cluster["transport"])
    tables = {table["model"]: table for table in cluster["device"]["tables"]}
    assert tables["mlp-digits"]["batches"] == [1, 8]
    assert cluster["device"]["interference"] >= 1
    assert [entry["kind"] for entry in cluster["stragglers"]][-1] == "measured"
    assert {
        "date", "versions", "machine", "ranks", "backend", "range", "validity", "clocks", "network",
        "exchanges",
        "collectives",
        "passes", "interference", "gradients", "jitter", "objective-cost", "model-against-measured",
        "seconds",
    } == set(measured)  # fmt: skip
    assert measured["versions"]["torch"] == torch.__version__
    assert measured["range"] == {
        "workers": 2, "message-bytes": [4, 2**16], "collective-bytes": [2**8, 2**16], "batches": [1, 8],
    }  # fmt: skip
    assert measured["validity"] == (
        "for 2 workers in the order of their ranks: slow-downs belong to ranks, and times have the "
        "contention of all in them; measure again for another number or order of workers"
    )
    assert measured["objective-cost"]["parameters"] == 2410
    (pair,) = measured["network"]["pairs"]
    assert len(pair["residuals"]) == 3
    assert pair["rate"] > 1e6
    assert 0 < measured["clocks"]["tick"] < 1e-3
    assert measured["clocks"]["barrier-skew"]["mean"] >= 0
    (model,) = measured["gradients"]
    assert [entry["batch"] for entry in model["batches"]] == [1, 8]
    assert len(model["batches"][0]["autocorrelation"]) == 2
    # The objective's own gradients stand for its network's at its batch.
    assert [entry["count"] for entry in model["batches"]] == [12, 12]


def test_the_loop_closes(machine: Path, tmp_path: Path) -> None:
    """A scenario names the description, is simulated, and is executed on the machine that it describes."""
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(workload(cluster=str(machine))))
    scenario = Scenario.load(file)
    predicted, real = simulate(scenario), execute(scenario)
    assert real is not None
    assert predicted.workers == real.workers == 2
    assert predicted.models is not None
    assert predicted.models.tobytes() == real.models.tobytes()  # type: ignore[union-attr]
    # How well they agree is a matter of the machine's state; that they are of one order is not.
    assert 0.02 < predicted.time_per_iteration / real.time_per_iteration < 50


def test_run_takes_a_description(machine: Path, tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(workload(cluster={"file": str(machine), "workers": 1})))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(file), "--jobs", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "measured-cpu, times measured by batch size" in done.stdout
    assert yaml.safe_load((out / "scenario.yaml").read_text())["cluster"]["topology"]["directed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "nets"], "part: 'nets' is no part; the nearest is 'network'"),
        (["--size", "4"], "size: '4' has no unit; write it like '102 MB'"),
        (["--seed", "1"], "seed: has no effect without a scenario whose objective is measured"),
        (["--out", "m"], "out: 'm' should end with .yaml, .yml, .json"),
        (["--scenario", "none"], "none: no such scenario; the nearest is 'cocod-1080ti'"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["calibrate", *arguments])
    assert (done.exit_code, done.stderr) == (2, f"error: {message}\n")


def test_calibration_and_execution_are_compared(machine: Path) -> None:
    results = calibrated.compared(str(machine), "mlp", workers=2, iterations=6, runs=2)
    text = calibrated.table("mlp", results)
    assert len(text.splitlines()) == 2 + len(calibrated.ALGORITHMS)
    for result in results:
        assert len(result.means.measured) == len(result.medians.measured) == 2
        assert min(*result.means.measured, *result.medians.measured, *result.medians.simulated) > 0


def test_one_worker_has_no_network(tmp_path: Path) -> None:
    path = tmp_path / "alone.json"
    made = calibrate(Settings(**FEW), path, workers=1)
    assert made is not None
    assert "network" not in made.measured
    named = Scenario(workload(cluster=str(path), budget={"iterations": 2}), folder=tmp_path)
    assert simulate(named).workers == 1
    with pytest.raises(BadInput, match="part: a single worker has none of these; take 'compute' too"):
        calibrate(Settings(**FEW | {"parts": ("network",)}), path, workers=1)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, settings = tmp_path / "m.yaml", Settings(**FEW)
    executed: list[str] = []
    plain = Ranks.execute

    def interrupted(self: Ranks, scenario: Scenario) -> Any:
        executed.append(scenario.sections.algorithm.name.rpartition(":")[2])
        if executed == ["Clocks", "PingPong", "Concurrent"]:
            raise KeyboardInterrupt
        return plain(self, scenario)

    monkeypatch.setattr(Ranks, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(settings, path, workers=2)
    assert not path.exists()
    assert len(list(Parts(path).folder.iterdir())) == 1
    executed.clear()
    told: list[tuple[float, str]] = []
    assert calibrate(settings, path, workers=2, progress=lambda done, name: told.append((done, name)))
    assert executed == [
        "Clocks",
        "Concurrent",
        "Exchanges",
        "Collectives",
        "Passes",
        "Computing",
        "Interference",
    ]
    assert os.listdir(tmp_path) == ["m.yaml"]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert [name for _, name in told] == [
        "clocks", "ping-pong", "concurrent", "exchanges", "collectives", "passes", "gradients of mlp-digits",
        "interference", "",
    ]  # fmt: skip


def test_a_killed_calibration_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    command = [sys.executable, "-m", "paceline", "calibrate", "--out", str(path), "--workers", "2", *BRIEF]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    folder = Parts(path).folder
    while first.poll() is None and not (folder.is_dir() and list(folder.glob("*.json"))):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not path.exists()
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert kept
    chosen = Settings(
        sizes=(4, 2**16), collective_sizes=(2**12, 2**16), repeats=3, samples=5, batches=(2,),
        models=("mlp-digits",), seconds=0.2,
    )  # fmt: skip
    seen: dict[str, int] = {}

    def look(done: float, name: str) -> None:
        seen.update({file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")})

    assert calibrate(chosen, path, workers=2, means=Means("auto"), progress=look) is not None
    assert kept.items() <= seen.items()
    assert len(seen) > len(kept)


def test_under_torchrun_the_first_rank_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["paceline", "calibrate", "--part", "network", "--part", "compute", *BRIEF]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["cluster.yaml"]
    assert done.stdout.count("Saved to cluster.yaml; a scenario takes it by 'cluster: cluster.yaml'.") == 1
    assert len(read_description(tmp_path / "cluster.yaml")["measured"]["ranks"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("net",)}, "part: 'net' is no part; the nearest is 'network'"),
        ({"precision": "fp8"}, "precision: 'fp8' is not one of fp32, tf32, bf16, fp16"),
        ({"sizes": (8, 4)}, "sizes: must ascend from 4 or more, got 8, 4"),
        ({"sizes": (1, 4)}, "sizes: must ascend from 4 or more, got 1, 4"),
        ({"collective_sizes": ()}, "collective-sizes: must ascend from 4 or more, got none"),
        ({"repeats": 0}, "repeats: must be at least 1, got 0"),
        ({"seconds": 0.0}, "seconds: must be above 0, got 0.0"),
        ({"models": ("resnet5",)}, "model: unknown model 'resnet5'; the nearest is 'resnet50'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        Settings(**changes)
    assert str(error.value) == message


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"out: 'm.txt' should end with .yaml, .yml, .json"):
        calibrate(Settings(**FEW), tmp_path / "m.txt")
    with pytest.raises(BadInput, match="out: there is no folder "):
        calibrate(Settings(**FEW), tmp_path / "none" / "m.yaml")


def test_a_scenario_without_numerics_has_nothing_to_measure(tmp_path: Path) -> None:
    plain = {"topology": {"builder": "switch", "gpus": 2}, "device": "cpu-core"}
    data = workload(cluster=plain, workload={"cost": {"model": "mlp-digits", "batch": 8}})
    del data["step-size"]
    settings = Settings(**FEW, scenario=Scenario(data))
    with pytest.raises(BadInput, match="scenario: loop has no objective that could be measured"):
        calibrate(settings, tmp_path / "m.yaml", workers=1)


def test_workers_are_processors_or_gpus() -> None:
    assert usual_workers("cpu") == max(2, min(8, os.cpu_count() or 2))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_on_a_gpu(tmp_path: Path, precision: str) -> None:
    settings = Settings(**FEW | {"models": ("resnet18-cifar",), "precision": precision})
    made = calibrate(settings, tmp_path / "gpu.yaml", workers=2, means=Means("cuda"))
    assert made is not None
    assert made.measured["ranks"][0]["device"].startswith("cuda")
    assert {"to-host", "from-host"} <= set(made.measured["passes"])
    (table,) = made.cluster["device"]["tables"]
    assert table["precision"] == precision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "collectives", "--size", "1 MiB"], "size: {} network or compute or interference"),
        (["--part", "compute", "--collective-size", "1 MiB"], "collective-size: {} network or collectives"),
        (["--part", "network", "--model", "mlp-digits"], "model: {} compute"),
        (["--part", "network", "--batch", "4"], "batch: {} compute"),
        (["--part", "network", "--samples", "4"], "samples: {} compute"),
    ],
)
def test_options_that_no_part_takes_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["calibrate", *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: {message.format('has no effect without the part')}\n"


def test_residuals_of_rounding_are_none() -> None:
    """Two batches fix a line; what is left of them is not worth a figure."""
    model = {"model": "mlp-digits", "t0": 1e-3, "t1": 1e-5, "residuals": [2e-16, -1e-16]}
    machine = {"processor": "p", "date": "d"}
    measured = {
        "machine": machine, "ranks": [{"host": "h", "device": "cpu"}] * 2, "backend": "gloo",
        "gradients": [model],
    }  # fmt: skip
    assert "  gradient of mlp-digits: 1 ms + 10 us a sample; residuals up to 0 %" in _lines(measured)
    assert _lines({**measured, "validity": "for two"})[-1] == "  valid for two"
