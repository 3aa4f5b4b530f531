"""The command line: every command calls a function that Python users call too, and prints what it returns.

Results go to the standard output, as text or, with ``--json``, as one JSON document; progress goes to the
standard error, and only to a terminal. Exit codes: 0 done, 2 bad input (one sentence, ``error: ...``), 1
anything else. What a command needs is imported when it runs, so that ``paceline --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from simulator.run import Progress, Run
    from simulator.scenario import Scenario
    from simulator.target import Reached

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What the command line's parser raises for arguments that it cannot use."""


_INTERRUPTION = "interrupted; the same command goes on after its last finished run"
_INTERRUPTED = 130
"""What the parser returns when Ctrl-C ended a command."""


class _Group(TyperGroup):
    """All commands; turns what they raise into one sentence and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit with its code."""
        command = super().main
        given = extra.get("args") or (args[0] if args else None) or sys.argv[1:]
        if not given:
            extra["args"] = ["--help"]
        sys.exit(_exit_code(lambda: command(*args, **{**extra, "standalone_mode": False})))


def _exit_code(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; bad input and known failures become one sentence."""
    try:
        code = command()
    except _USAGE_ERROR as error:
        return _refused(_one_sentence(error), 2)
    except ValueError as error:
        return _refused(str(error), 2)
    except typer.Abort:
        return _refused(_INTERRUPTION, 1)
    except RuntimeError as error:
        # Ours say who failed and why; what Python itself or a library raises shows where.
        if type(error) is RuntimeError or not type(error).__module__.startswith(
            ("simulator", "analysis", "algorithms")
        ):
            raise
        # An algorithm that breaks a rule or fails is an input that cannot be used.
        return _refused(str(error), 2)
    if code == _INTERRUPTED:
        return _refused(_INTERRUPTION, 1)
    return code if isinstance(code, int) else 0


def _one_sentence(error: Any) -> str:
    """Return what the parser of the command line says about an argument in one sentence, and what it was."""
    if options := getattr(error, "possibilities", None):
        from simulator.parts import nearest

        return f"{error.message}; the nearest is '{nearest(error.option_name, sorted(options))}'"
    text = " ".join(error.format_message().split()).replace("Value error, ", "")
    text = text.replace(": Input should", ": input should")
    for fault in error.__cause__.errors()[:1] if hasattr(error.__cause__, "errors") else ():
        text += "" if str(fault["input"]) in text.partition(": ")[2] else f", got {fault['input']!r}"
    return re.sub(r"\.? Did you mean ('[^']*').*", r"; the nearest is \1", text)


def _refused(message: str, code: int) -> int:
    typer.echo(f"error: {message}", err=True)
    return code


app = typer.Typer(
    cls=_Group,
    name="paceline",
    help="How long does distributed training take, with this algorithm, on this cluster?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ScenarioName = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of one that ships.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; by default a new one below runs/.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed, in place of the scenario's.")]
StepSize = Annotated[
    float | None, typer.Option("--step-size", help="Step size; by default the grid's best in simulation.")
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Simulate as well, and say whether the models are bit-identical.")
]
Patience = Annotated[
    float, typer.Option("--patience", help="Seconds without any progress after which it is ended.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="What to compute on; by default a GPU if there is one."),
]
Backend = Annotated[
    Literal["auto", "gloo", "nccl"],
    typer.Option("--backend", help="Collectives; by default NCCL if every rank has a GPU of its own."),
]


def main() -> None:
    """Run the command line; the entry point of the command ``paceline``."""
    app(prog_name="paceline")


# Run and execute.


@app.command()
def run(
    scenario: ScenarioName,
    out: Out = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes; by default one per processor.")
    ] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Simulate a scenario's algorithms: table, HTML report, Perfetto trace."""
    result = _run(_load(scenario, seed), out, jobs, quiet=as_json)
    if as_json:
        _print_json(result)


@app.command()
def execute(
    scenario: ScenarioName,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes, in place of the scenario's workers.")
    ] = None,
    step_size: StepSize = None,
    verify: Verify = False,
    patience: Patience = 300.0,
    device: Device = "auto",
    backend: Backend = "auto",
    out: Out = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Run the scenario's algorithm for real: on local processes, or as a rank of torchrun's or Slurm's."""
    with _terminable():
        # The same bits as in simulation are promised on the CPU alone.
        chosen = "cpu" if verify and device == "auto" else device
        means = {"patience": patience, "device": chosen, "backend": backend}
        result = _execute(_load(scenario, seed), workers, step_size, verify, means, out, quiet=as_json)
    if as_json and result is not None:
        _print_json(result)


@app.command()
def emulate(
    scenario: ScenarioName,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Workers, in place of the scenario's.")
    ] = None,
    step_size: StepSize = None,
    verify: Verify = False,
    patience: Patience = 300.0,
    out: Out = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Run it for real in an emulated network of its topology, on this machine; needs Linux and root."""
    from simulator.execution.namespaces import check_rights

    check_rights()
    loaded, means = _load(scenario, seed), {"patience": patience}
    with _terminable():
        result = _execute(loaded, workers, step_size, verify, means, out, quiet=as_json, emulated=True)
    if as_json and result is not None:
        _print_json(result)


@app.command()
def demo(
    out: Out = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Simulate the scenario that ships, then run its algorithm for real and compare the models."""
    scenario = _load("cocod-1080ti", seed)
    simulated = _run(scenario, out and out / "simulated", None, quiet=as_json)
    if not as_json:
        typer.echo("")
    executed = _execute(scenario, 4, None, True, {}, out and out / "executed", quiet=as_json)
    if as_json:
        _print_json({"run": simulated, "execute": executed})


def _load(name: str, seed: int | None) -> Scenario:
    from simulator.scenario import Scenario

    scenario = Scenario.load(name)
    return scenario if seed is None else scenario.vary(seed=seed)


def _run(scenario: Scenario, out: Path | None, jobs: int | None, quiet: bool) -> dict[str, Any]:
    """Simulate, save and print an experiment; return what it came to as plain data."""
    from analysis.experiment import experiment, file_name, parts_folder
    from simulator.engine.simulate import check_simulable
    from simulator.run import check_replaceable

    started = time.perf_counter()
    folder = out or Path("runs") / f"{file_name(scenario.name)}-{scenario.digest()}"
    check_replaceable(folder)
    check_simulable(scenario)
    if not quiet:
        typer.echo(_heading(scenario))
    store = parts_folder(folder, scenario)
    with _progress("simulating") as progress:
        done = experiment(scenario, jobs, progress, store)
    done.save(folder, time.perf_counter() - started)
    shutil.rmtree(store, ignore_errors=True)
    if not quiet:
        from analysis.report import warnings

        typer.echo(f"\n{done.table()}")
        for text in warnings(done):
            typer.echo(f"Warning: {text}")
        typer.echo(
            f"\nSaved to {folder}: open {folder / 'report.html'} in a browser, "
            f"{folder / 'trace.json'} in ui.perfetto.dev."
        )
    return {**done.summary(), "saved_to": str(folder)}


def _heading(scenario: Scenario) -> str:
    from analysis.report import facts, title

    shown = ("workers", "topology", "links", "straggler", "batch", "objective batch", "update rule", "target")
    lines = [f"{scenario.name}: {title(scenario)}"]
    lines += [f"  {name:15} {text}" for name, text in facts(scenario) if name in shown]
    return "\n".join(lines)


def _execute(
    scenario: Scenario,
    workers: int | None,
    step_size: float | None,
    verify: bool,
    means: Mapping[str, Any],
    out: Path | None,
    quiet: bool,
    emulated: bool = False,
) -> dict[str, Any] | None:
    """Execute, save and print a scenario's algorithm; return what it came to as plain data.

    Under torchrun or Slurm all ranks execute, and rank 0 alone prints and saves; the others return None. An
    emulated network has local processes only.
    """
    from analysis.experiment import file_name
    from simulator.execution.emulation import emulate as emulate_scenario
    from simulator.execution.execute import execute as execute_scenario
    from simulator.execution.place import place
    from simulator.run import check_replaceable

    started = time.perf_counter()
    own = None if emulated else place()
    if own is not None:
        quiet = quiet or own.rank > 0
        workers = workers or max(1, own.world_size - scenario.servers)
    single, settled = _executable(scenario, workers, step_size)
    how = "emulated" if emulated else "executed"
    folder = out or Path("runs") / f"{file_name(single.name)}-{single.digest()}-{how}"
    check_replaceable(folder)
    taken = taken_from_the_machine(single, emulated)
    count, name = single.ranks, single.sections.algorithm.name
    of = f"{count} local process{'es' if count > 1 else ''}"
    if own is not None:
        of = f"{count} of {own.starter}'s rank{'s' if count > 1 else ''}"
    if single.servers:
        of += f", of which {single.servers} only serve{'' if single.servers > 1 else 's'}"
    where = " in an emulated network" if emulated else ""
    heading = [f"{single.name}: {name} on {of}{where}", *(f"  {text}" for text in settled)]
    heading.append(f"  from this machine, not from the scenario: {'; '.join(taken)}")
    ranks: list[tuple[str, str]] = []

    def met(found: Sequence[tuple[str, str]], _backend: str = "") -> None:
        """Head what follows, now that nothing more can be refused."""
        ranks.extend(found)
        if not quiet:
            typer.echo("\n".join(heading))

    with _progress("executing") as progress:
        perform = emulate_scenario if emulated else execute_scenario
        done = perform(single, progress, met=met, **means)
    if done is None:
        return None
    if not ranks:  # a single rank meets nobody
        met(())
    done.save(folder, time.perf_counter() - started)
    result = {**done.summary(), "from_this_machine": taken, "saved_to": str(folder)}
    result["ranks"] = [{"host": host, "device": name} for host, name in ranks]
    if not quiet:
        typer.echo(_ranks_text(ranks))
        typer.echo(_execution_text(done))
    if verify:
        text, found = _verification(single, done)
        result.update(found)
        if not quiet:
            typer.echo(f"  {text}")
    if not quiet:
        typer.echo(f"Saved to {folder}.")
    return result


def _ranks_text(ranks: Sequence[tuple[str, str]]) -> str:
    """Return on what, and where, each rank computed; neighbours that are alike in one line."""
    lines: list[tuple[int, int, tuple[str, str]]] = []
    for rank, place in enumerate(ranks):
        if lines and lines[-1][2] == place:
            lines[-1] = (lines[-1][0], rank, place)
        else:
            lines.append((rank, rank, place))
    return "\n".join(
        f"  rank{f' {first}' if first == last else f's {first} to {last}'}: {device} on {host}"
        for first, last, (host, device) in lines
    )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let a request to end (SIGTERM) end the command as Ctrl-C does, so that nothing half-written stays."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _executable(
    scenario: Scenario, workers: int | None, step_size: float | None
) -> tuple[Scenario, list[str]]:
    """Return the one algorithm, step size and number of iterations to execute, and what settled them.

    A grid is settled by simulation, and so is how long a run is that stops at its target.
    """
    from simulator.cautions import cautions
    from simulator.engine.simulate import simulate

    single = scenario.variants()[0]
    if workers is not None and workers != single.workers:
        single = single.vary(workers=workers)
    if step_size is not None:
        single = single.vary(step_size=step_size)
    settled = []
    settled += [f"warning: {text}" for text in cautions(single, real=True)]
    if single.sections.workload.evaluation == "batched":
        single = single.vary(evaluation="separate")
        settled.append("gradients are evaluated one by one, as each process has its own")
    grid, stops = single.step_sizes, single.sections.budget.stop == "target"
    if len(grid) == 1 and not stops:
        return single, settled
    with _progress("simulating") as progress:
        simulated = simulate(single, progress)
    if len(grid) > 1:
        tried = ", ".join(f"{step:g}" for step in grid if step is not None)
        settled.append(f"step size {simulated.step_size:g}, the best of {tried} in simulation")
    single = simulated.scenario
    if stops:
        iterations = max(simulated.iterations)
        settled.append(f"{iterations:,} iterations a worker, where the simulation stops")
        single = single.shortened(iterations)
    return single, settled


def _verification(single: Scenario, done: Run) -> tuple[str, dict[str, Any]]:
    """Simulate what was executed; return in a sentence, and as data, whether the models are the same."""
    from analysis.compare import compare_models
    from simulator.engine.simulate import simulate

    with _progress("simulating") as progress:
        simulated = simulate(single, progress)
    models = compare_models(simulated, done)
    assert models is not None  # an execution always has models
    word = "bit-identical" if models.identical else "not bit-identical"
    text = f"the executed models are {word} to the simulated ones"
    if not models.identical and models.largest_difference is not None:
        text += f"; largest difference {models.largest_difference:.3g}"
    return text, {
        "bit_identical": models.identical,
        "largest_model_difference": models.largest_difference,
        "simulated_time_per_iteration_s": simulated.time_per_iteration,
    }


def taken_from_the_machine(scenario: Scenario, emulated: bool = False) -> list[str]:
    """Return the parts of a scenario that an execution takes from the real machine, with what they were.

    Where the network is emulated, it is the scenario's, and only its transport is real.
    """
    from simulator.stragglers import Straggler

    cluster = scenario.sections.cluster
    topology = cluster.topology.data()
    devices = dict.fromkeys(device.name for device in scenario.cluster.devices)
    execution = scenario.execution
    graph = topology.get("builder") or topology.get("file") or "a graph in full"
    network = f"{graph}, transport {cluster.transport.name}"
    taken = [] if execution.compute == "emulated" else [f"devices ({', '.join(devices)})"]
    taken += [
        f"transport ({cluster.transport.name})" if emulated else f"network ({network})",
    ]
    injected = execution.stragglers == "injected"
    built = zip(cluster.stragglers, scenario.stragglers, strict=True)
    stragglers = [
        part.name for part, made in built if not (injected if isinstance(made, Straggler) else emulated)
    ]
    if stragglers:
        taken.append(f"stragglers ({', '.join(dict.fromkeys(stragglers))})")
    if cluster.background:
        count = len(cluster.background)
        taken.append(f"background traffic ({count} flow{'s' if count > 1 else ''})")
    return taken


def _execution_text(done: Run) -> str:
    from analysis.speedup import count_text
    from simulator.cautions import cautions_of_run
    from simulator.units import format_quantity

    shares = done.time_shares()
    iterations = sum(done.iterations) / done.workers
    lines = [
        f"  {count_text(iterations)} iterations a worker in {format_quantity(done.duration, 's')}, "
        f"{format_quantity(done.time_per_iteration, 's')} each",
        f"  compute {100 * shares['compute']:.1f} %, transfer {100 * shares['transfer']:.1f} %, "
        f"waiting {100 * shares['wait']:.1f} %",
    ]
    if done.samples.loss:
        lines.append(f"  final loss {done.samples.loss[-1]:.4g}")
    target, reached = done.scenario.sections.target, done.reached()
    if (where := done.diverged()) is not None:
        missed = ""
        if target is not None and reached is None:
            missed = f"; the target ({target.text()}) was not reached because it diverged"
        lines.append(f"  the loss diverged from {_moment(where)} on{missed}")
    elif target is not None:
        told = "was not reached" if reached is None else f"was reached at {_moment(reached)}"
        if reached is not None and reached.extrapolated:
            told = f"lies beyond the run, by its mean pace at {_moment(reached)}"
        lines.append(f"  the target ({target.text()}) {told}")
    if done.emulation is not None:
        nodes, edges = done.emulation["nodes"], done.emulation["edges"]
        lines.append(f"  emulated network of {nodes} nodes and {edges} edges")
        lines += [f"  not emulated: {text}" for text in done.emulation["left_out"]]
    lines += [f"  warning: {text}" for text in cautions_of_run(done)]
    return "\n".join(lines)


def _moment(at: Reached) -> str:
    """Return a moment of a run in iterations and in time."""
    from analysis.speedup import count_text
    from simulator.units import format_quantity

    return f"{count_text(at.iterations)} iterations ({format_quantity(at.time, 's')})"


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Progress | None]:
    """Give what shows a progress bar with the time that is left, or None where nobody would see it."""
    with _named_progress(what) as told:
        yield None if told is None else lambda done: told(done, "")


@contextlib.contextmanager
def _named_progress(what: str) -> Iterator[Callable[[float, str], None] | None]:
    """Do the same for work in steps, each of which has a name."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done, name: bar.update(task, completed=done, description=f"{what} {name}".rstrip())


# Calibrate.


@app.command()
def calibrate(
    out: Annotated[
        Path, typer.Option("--out", help="Cluster description to write: .yaml, .yml or .json.")
    ] = Path("cluster.yaml"),
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="network, collectives, compute or interference; by default all."),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="Size of a message, such as '1 MiB'; may be repeated.")
    ] = None,
    collective_size: Annotated[
        list[str] | None, typer.Option("--collective-size", help="Size of a collective; may be repeated.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Network whose gradients are measured; may be repeated."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Samples of a gradient; may be repeated.")
    ] = None,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"], typer.Option("--precision", help="Of the gradients.")
    ] = "fp32",
    scenario: Annotated[
        str | None,
        typer.Option("--scenario", help="A scenario whose objective is measured too, at its batch."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Of each message and collective; 20.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Gradients of each network and batch; 200.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="After so long with one size or batch, fewer repeats do; 20."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few sizes and repeats: a look, in seconds, not a calibration.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Local processes; by default one per processor.")
    ] = None,
    patience: Patience = 300.0,
    device: Device = "auto",
    backend: Backend = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what an interrupted calibration has measured.")
    ] = False,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Measure this machine, or those of a torchrun or Slurm job, into a cluster description for 'run'."""
    from analysis.calibration import calibrate as calibrate_machines
    from analysis.calibration.settings import MEASURED_IN, QUICK, Settings
    from simulator.execution.calibrate import Means
    from simulator.parts import BadInput
    from simulator.units import parse_quantity

    def sizes(key: str, given: Sequence[str]) -> tuple[int, ...]:
        try:
            return tuple(sorted({int(parse_quantity(text, "B")) for text in given}))
        except ValueError as error:
            raise BadInput(key, str(error)) from None

    if seed is not None and scenario is None:
        raise BadInput("seed", "has no effect without a scenario whose objective is measured")
    chosen: dict[str, Any] = {
        "parts": part and tuple(dict.fromkeys(part)),
        "sizes": size and sizes("size", size),
        "collective_sizes": collective_size and sizes("collective-size", collective_size),
        "models": model and tuple(dict.fromkeys(model)),
        "batches": batch and tuple(sorted(set(batch))),
        "precision": precision,
        "repeats": repeats,
        "samples": samples,
        "seconds": seconds,
        "scenario": None if scenario is None else _load(scenario, seed),
    }
    settings = Settings(
        **{**(QUICK if quick else {}), **{key: value for key, value in chosen.items() if value is not None}}
    )
    options = {"size": size, "collective-size": collective_size, "model": model, "batch": batch}
    for key, given in {**options, "samples": samples, "scenario": scenario}.items():
        if given is not None and given != [] and not set(MEASURED_IN[key]) & set(settings.parts):
            raise BadInput(key, f"has no effect without the part {' or '.join(MEASURED_IN[key])}")
    means = Means(device, backend, patience)
    with _terminable(), _named_progress("calibrating") as progress:
        told = {} if progress is None else {"progress": progress}
        made = calibrate_machines(settings, out, workers, means, fresh=fresh, **told)
    if made is None:
        return
    if as_json:
        _print_json({"cluster": made.cluster, "measured": made.measured, "saved_to": str(out)})
    else:
        typer.echo(f"{made}\nSaved to {out}; a scenario takes it by 'cluster: {out}'.")


# Compare.


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a saved run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML file to write the comparison to.")] = None,
    as_json: Json = False,
) -> None:
    """Say where two runs differ: by phase, worker and iteration, with the largest contributors."""
    from analysis.compare import compare as compare_runs
    from analysis.compare import load_run

    comparison = compare_runs(load_run(run_a), load_run(run_b))
    if out is not None:
        from analysis.report import comparison_report

        _write_text(out, comparison_report(comparison))
    if as_json:
        _print_json(comparison.to_dict())
        return
    typer.echo(str(comparison))
    if out is not None:
        typer.echo(f"Saved to {out}.")


def _write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    from simulator.parts import BadInput

    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BadInput(str(path), f"cannot be written: {error.strerror}") from None


# What there is.


@app.command()
def topology(
    name: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO|BUILDER|FILE]", help="What to describe.")
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Parameters of a builder.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Topology file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a topology: nodes, links, capacity, diameter, bisection; without a name, list the builders."""
    from analysis import catalogue

    if name is None:
        _print_list(catalogue.builders(), _builder_text, as_json)
        return
    graph = catalogue.topology(name, _settings(parameters or []))
    if out is not None:
        import topologies

        topologies.write_topology(graph, out)
    facts = catalogue.topology_facts(graph)
    if as_json:
        _print_json({"name": name, **facts})
    else:
        typer.echo(_topology_text(name, facts))


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` arguments as a scenario file would."""
    import yaml

    from simulator.parts import BadInput

    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput("", f"expected a parameter like 'nodes=8', got '{pair}'")
        if key in settings:
            raise BadInput(key, f"is given twice, as {settings[key]!r} and as '{value}'")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(key, f"'{value}' cannot be read") from None
    return settings


def _builder_text(builder: Mapping[str, Any]) -> str:
    def said(value: Any) -> str:
        return (
            _link_text(value)
            if isinstance(value, dict)
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )

    lines = [f"{builder['name']}: {builder['summary']}"]
    lines += [f"    {key:18} {said(value)}" for key, value in builder["parameters"].items()]
    return "\n".join(lines)


def _link_text(link: Mapping[str, Any]) -> str:
    from simulator.units import format_quantity

    return f"{format_quantity(link['bandwidth'], 'B/s')}, {format_quantity(link['latency'], 's')}"


def _topology_text(name: str, facts: Mapping[str, Any]) -> str:
    from simulator.units import format_quantity

    kinds = ", ".join(f"{count} {kind}" for kind, count in facts["nodes_by_kind"].items())
    bound = "" if facts["bisection_is_exact"] else "at most "
    lines = [
        name,
        f"  nodes      {facts['nodes']} ({kinds})",
        f"  links      {facts['links']} on {facts['edges']} edges, "
        f"{format_quantity(facts['capacity_bytes_per_s'], 'B/s')} in all",
    ]
    for group in facts["link_groups"]:
        rate = format_quantity(group["bandwidth_bytes_per_s"], "B/s")
        if group["efficiency"] != 1:
            rate += f" × {group['efficiency']:g} = {format_quantity(group['effective_bytes_per_s'], 'B/s')}"
        lines.append(
            f"             {group['edges']} × {group['between']}: {rate}, "
            f"{format_quantity(group['latency_s'], 's')}, {group['duplex']} duplex"
        )
    hops = facts["diameter_hops"]
    latency = format_quantity(facts["diameter_latency_s"], "s")
    bisection = format_quantity(facts["bisection_bytes_per_s"], "B/s")
    lines += [
        f"  diameter   {hops} hop{'' if hops == 1 else 's'}, {latency} between two GPUs",
        f"  bisection  {bound}{bisection} between two halves of the GPUs",
    ]
    return "\n".join(lines)


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The one to describe.")] = None,
    model: Annotated[str | None, typer.Option(help="Tell the bytes sent for this model.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many train it; 16 unless given.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the algorithms, or describe one: parameters, traffic, staleness, theory, source."""
    from analysis import catalogue
    from simulator.parts import BadInput

    if model is None and workers is not None:
        raise BadInput(
            "--workers", f"{workers} has no effect without --model, the model whose bytes are told"
        )
    workers = workers or 16
    sent: dict[str, dict[str, Any]] = {}
    if model is not None:
        sent = {row["name"]: row for row in catalogue.algorithm_traffic(model, workers)}
    if name is None:
        rows = [{**row, **sent.get(row["name"], {})} for row in catalogue.algorithms()]
        cells = [
            [
                row["name"],
                _traffic_text(row),
                row["staleness"],
                row["summary"],
                row["needs"] or "-",
                row["paper"],
            ]
            for row in rows
        ]
        heads = ["algorithm", "bytes sent", "staleness", "what it does", "needs", "source"]
        _print_table(heads, cells, (0, 1, 2, 3, 4, 5), rows, as_json)
        if not as_json:
            given = (
                f"of {model} on {workers} workers, default parameters, 2 neighbours, P = N + 1"
                if sent
                else f"{SYMBOLS}; a default stands beside its symbol"
            )
            typer.echo(f"Bytes that a worker sends per iteration, on average: {given}.")
            typer.echo(EPOCHS)
            servers = (
                row["name"] if row["servers"] == "any" else f"{row['name']} ({row['servers']})"
                for row in rows
                if row["servers"]
            )
            typer.echo(f"Servers are tasks of workers, or 'dedicated: true', of {', '.join(servers)}.")
        return
    facts = {**catalogue.algorithm_facts(name), **sent.get(name, {})}
    if as_json:
        _print_json(facts)
        return
    typer.echo(f"{facts['name']}: {facts['summary']}\n\n{facts['description']}\n")
    formulas = {key: value for key, value in facts.items() if not key.startswith("bytes_per")}
    typer.echo(f"bytes sent per iteration: {_traffic_text(formulas)} ({SYMBOLS})")
    if sent:
        typer.echo(f"  {_traffic_text(facts)} for {model} on {workers} workers, default parameters")
    if facts["epoch_traffic"]:
        typer.echo(f"  {EPOCHS}")
    typer.echo(f"staleness: {facts['staleness']}")
    typer.echo(f"theory: {facts['theory']}")
    typer.echo(f"needs: {'; '.join(facts['needs'].values()) or 'nothing beside a network'}")
    if facts["servers"]:
        where = "" if facts["servers"] == "any" else f" (with {facts['servers']})"
        typer.echo(f"servers{where}: tasks of workers, or with 'dedicated: true' machines of their own")
    _echo_parameters(facts["parameters"])
    reason = f"none, as {facts['exact_because']}" if "exact_because" in facts else ""
    typer.echo(f"compression: {reason or 'of its ' + facts['compresses']}")


SYMBOLS = "M: the model, n: workers, k: period"
EPOCHS = (
    "An epoch's bytes come in addition, once in m iterations (svrg, katyusha-x) or K updates (asyvrsc); N: "
    "elements of the model, P: of an inner value, PN: of its Jacobian, which is summed up in the first epoch "
    "and then only where it depends on the model."
)


def _traffic_text(row: Mapping[str, Any]) -> str:
    """Return what a worker sends per iteration, and an epoch: figures where there are any, else formulas."""
    from simulator.units import format_quantity

    defaults = ", ".join(f"{symbol} = {at['default']}" for symbol, at in row["traffic_defaults"].items())
    if "bytes_per_iteration" not in row:
        text = f"{row['traffic']}, {defaults}" if defaults else str(row["traffic"])
        return f"{text}; an epoch {row['epoch_traffic']}" if row["epoch_traffic"] else text
    text = format_quantity(row["bytes_per_iteration"], "B") + (f" ({defaults})" if defaults else "")
    epoch = format_quantity(row["bytes_per_epoch"], "B")
    return f"{text}; an epoch {epoch}" if row["epoch_traffic"] else text


def _echo_parameters(parameters: Sequence[Mapping[str, Any]]) -> None:
    """Print parameters: type, unit, default, choices, bounds and meaning."""
    from algorithms.algorithm import BOUNDS

    for parameter in parameters:
        kind = parameter["type"]
        if "choices" in parameter:
            kind = "one of " + ", ".join(json.dumps(choice) for choice in parameter["choices"])
        unit = f" in {parameter['unit']}" if parameter["unit"] else ""
        bounds = ((words, parameter[key]) for key, (words, _) in BOUNDS.items() if key in parameter)
        limits = "".join(f", {words} {limit}" for words, limit in bounds)
        default = json.dumps(parameter["default"])
        about = f"{kind}{unit}, default {default}{limits}"
        typer.echo(f"parameter {parameter['name']} ({about}): {parameter['meaning']}")


@app.command()
def keys(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="A key such as cluster.transport: it and all below it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the keys of a scenario: value or unit, default, meaning; of a key, with those of all its parts."""
    import dataclasses

    from analysis.keys import keys as listed
    from analysis.keys import merged, paragraphs

    found = listed(key or "")
    parts = any(entry.of for entry in found)
    rows = [
        [entry.key, *([entry.of or "-"] if parts else []), entry.value, entry.default, entry.meaning]
        for entry in merged(found)
    ]
    width = _terminal_width()
    if width is not None and not as_json:
        typer.echo(paragraphs(merged(found), width))
    else:
        # Where no one looks, each key is one line, which a script can search.
        headings = ["key", *(["of"] if parts else []), "value", "default", "meaning"]
        data = [dataclasses.asdict(entry) for entry in found]
        _print_table(headings, rows, tuple(range(len(headings))), data, as_json)
    if not as_json and not key:
        typer.echo(
            "Quantities carry their unit. `paceline keys KEY` tells the keys of the parts to choose from."
        )


@app.command()
def codecs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The one to describe.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose gradient to take the sizes of.")] = None,
    as_json: Json = False,
) -> None:
    """List the codecs with the size of a compressed gradient, or describe one: parameters, format, source."""
    from analysis import catalogue
    from simulator.units import format_quantity

    whose = "a layer of 1000 x 1000" if model is None else model
    if name is not None:
        facts = catalogue.codec_facts(name, model)
        if as_json:
            _print_json(facts)
            return
        sizes = [
            format_quantity(facts[k], "B") for k in ("wire_bytes", "theoretical_bytes", "gradient_bytes")
        ]
        through = "all-reduces" if facts["summable"] else "an all-gather where a mean is taken"
        typer.echo(f"{facts['name']}: {facts['summary']}\n\n{facts['description']}\n")
        typer.echo(f"bytes of a message: {facts['wire']} (d: its elements, of fp32), through {through}")
        typer.echo(f"  {sizes[0]} ({sizes[1]} in theory) for the {sizes[2]} of {whose}, default parameters")
        taken = "; ".join(f"{what} of {', '.join(names)}" for what, names in facts["compresses"].items())
        typer.echo(f"as 'compression: {{codec: {facts['name']}}}' for: {taken}")
        _echo_parameters(facts["parameters"])
        return
    found = catalogue.codecs(model)
    rows = [
        [
            row["name"],
            *(format_quantity(row[key], "B") for key in ("wire_bytes", "theoretical_bytes")),
            f"{row['gradient_bytes'] / row['wire_bytes']:.3g}",
            "all-reduce" if row["summable"] else "all-gather",
            row["summary"],
            row["paper"],
        ]
        for row in found
    ]
    headings = ["codec", "sent", "in theory", "ratio", "through", "what it does", "source"]
    _print_table(headings, rows, (0, 4, 5, 6), found, as_json)
    if not as_json:
        size = format_quantity(found[0]["gradient_bytes"], "B")
        typer.echo(f"Each with its defaults, for the gradient of {whose}: {size} in fp32, as one message.")


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The one to describe, by layer.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models with their cost per sample, or one by layer."""
    from analysis import catalogue
    from simulator.units import format_quantity

    def cells(row: Mapping[str, Any], *, size: bool) -> list[str]:
        parameters = [f"{row['parameters']:,}"] + (
            [format_quantity(row["parameter_bytes"], "B")] if size else []
        )
        flops = [format_quantity(row[key], "FLOP") for key in ("forward_flop", "backward_flop")]
        return [row["name"], *parameters, *flops, format_quantity(row["activation_bytes"], "B")]

    work = ["forward", "backward", "activations"]
    if name is None:
        found = catalogue.models()
        rows = [cells(row, size=True) for row in found]
        _print_table(["model", "parameters", "size", *work], rows, (0,), found, as_json)
    else:
        facts = catalogue.model_facts(name)
        rows = [cells(row, size=False) for row in (*facts["layers"], {**facts, "name": "total"})]
        _print_table(["layer", "parameters", *work], rows, (0,), facts, as_json)
    if not as_json:
        typer.echo(
            "Forward, backward and activations are per sample; a multiply-add is two FLOP; sizes are in fp32."
        )


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The one to describe.")] = None,
    as_json: Json = False,
) -> None:
    """List the devices with their datasheet figures, or one with its source."""
    from analysis import catalogue
    from simulator.units import format_quantity

    rates = ("peak_fp32_flop_per_s", "peak_tf32_flop_per_s", "peak_bf16_flop_per_s", "peak_fp16_flop_per_s")

    def cells(row: Mapping[str, Any]) -> list[str]:
        peaks = ["-" if row[key] is None else format_quantity(row[key], "FLOP/s") for key in rates]
        memory = [
            format_quantity(row["memory_bytes_per_s"], "B/s"),
            format_quantity(row["memory_bytes"], "B"),
        ]
        return [row["name"], *peaks, *memory, f"{row['efficiency']:g}"]

    found = catalogue.devices() if name is None else [catalogue.device_facts(name)]
    headings = ["device", "fp32", "tf32", "bf16", "fp16", "memory bandwidth", "memory", "efficiency"]
    _print_table(headings, [cells(row) for row in found], (0,), found if name is None else found[0], as_json)
    if as_json:
        return
    if name is not None:
        typer.echo(f"Source: {found[0]['source']}")
        typer.echo(
            f"Launch overhead {format_quantity(found[0]['launch_overhead_s'], 's')} per layer and direction."
        )
    typer.echo("Peaks are dense rates; efficiency is the share of the peak that training is taken to reach.")


@app.command()
def flows(
    case: Annotated[
        Path, typer.Argument(metavar="CASE.json", help="Flows on links, or a list of such cases.")
    ],
    fairness: Annotated[
        Literal["maxmin", "rtt"], typer.Option("--fairness", help="Equal shares, or shares by 1 / latency.")
    ] = "maxmin",
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write to.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, which this command always does.")
    ] = False,
) -> None:
    """Print when given flows on given links complete, in seconds."""
    from simulator.engine.flows import completion_times, read_cases

    cases = read_cases(case)
    completed = [
        {
            **({"name": entry["name"]} if "name" in entry else {}),
            "completion": completion_times(entry, fairness),
        }
        for entry in cases
    ]
    single = isinstance(json.loads(case.read_text(encoding="utf-8")), dict)
    text = _json_text(completed[0] if single else completed)
    if out is not None:
        _write_text(out, text + "\n")
    typer.echo(text)


# Printing.


def _terminal_width() -> int | None:
    """Return how many characters a line may have on the terminal; None where the output is none."""
    return min(max(shutil.get_terminal_size().columns, 80), 120) if sys.stdout.isatty() else None


def _json_text(value: object) -> str:
    from simulator.run import plain

    return json.dumps(plain(value, infinity="inf"), indent=1, ensure_ascii=False, allow_nan=False)


def _print_json(value: object) -> None:
    typer.echo(_json_text(value))


def _print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int], data: object, as_json: bool
) -> None:
    from analysis.speedup import text_table

    if as_json:
        _print_json(data)
    else:
        typer.echo(text_table(headings, rows, left))


def _print_list(
    entries: Sequence[Mapping[str, Any]], text: Callable[[Mapping[str, Any]], str], as_json: bool
) -> None:
    if as_json:
        _print_json(entries)
    else:
        typer.echo("\n".join(map(text, entries)))
