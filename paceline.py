"""The public calls, for scripts: ``from paceline import Scenario, simulate, speedups``.

A name is imported from its home when it is first asked for, so that ``import paceline`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algorithms import ALGORITHMS, Algorithm, Plan, Worker, parameter
    from analysis.calibration import calibrate
    from analysis.compare import Comparison, bit_identical, compare
    from analysis.experiment import Experiment, experiment
    from analysis.projection import simulate_like
    from analysis.report import write_report
    from analysis.speedup import Table, speedups
    from simulator.engine.simulate import simulate
    from simulator.execution.execute import execute
    from simulator.execution.training.trainer import Trainer
    from simulator.parts import BadInput
    from simulator.run import Run
    from simulator.scenario import Scenario
    from simulator.workload.task import Task
    from traces.perfetto import write_trace

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "BadInput",
    "Comparison",
    "Experiment",
    "Plan",
    "Run",
    "Scenario",
    "Table",
    "Task",
    "Trainer",
    "Worker",
    "bit_identical",
    "calibrate",
    "compare",
    "execute",
    "experiment",
    "parameter",
    "simulate",
    "simulate_like",
    "speedups",
    "write_report",
    "write_trace",
]

_HOMES = {
    "algorithms": ("ALGORITHMS", "Algorithm", "Plan", "Worker", "parameter"),
    "analysis.calibration": ("calibrate",),
    "analysis.compare": ("Comparison", "bit_identical", "compare"),
    "analysis.experiment": ("Experiment", "experiment"),
    "analysis.projection": ("simulate_like",),
    "analysis.report": ("write_report",),
    "analysis.speedup": ("Table", "speedups"),
    "simulator.engine.simulate": ("simulate",),
    "simulator.execution.execute": ("execute",),
    "simulator.execution.training.trainer": ("Trainer",),
    "simulator.parts": ("BadInput",),
    "simulator.run": ("Run",),
    "simulator.scenario": ("Scenario",),
    "simulator.workload.task": ("Task",),
    "traces.perfetto": ("write_trace",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'paceline' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)


if __name__ == "__main__":
    from analysis.cli import main

    main()
