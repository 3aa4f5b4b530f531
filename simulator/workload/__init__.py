"""The workload: what a gradient costs, and what is really optimised.

Two things that may differ. The **cost** (`ModelCost`, `GivenCost`) is a number of parameters, FLOPs and bytes
and gives seconds on a device. The **objective** (a kind from `OBJECTIVES`, or a `Task` of the user's own) is
a function with real gradients. So the cost of ResNet-50 with the numerics of a small network is one workload.

Importing this package imports neither torch nor data; `simulator.workload.models`, `.data`, `.objective` and
`.task` do and are imported when an objective is built or a network is profiled.
"""

from __future__ import annotations

from simulator.workload.cost import (
    MODEL_NAMES,
    Cost,
    CostProfile,
    GivenCost,
    LayerCost,
    ModelCost,
    StepTime,
    profile,
)
from simulator.workload.kinds import (
    OBJECTIVES,
    Cnn,
    Logistic,
    Mlp,
    ObjectiveKind,
    PolicyEvaluation,
    Portfolio,
    Quadratic,
    QuadraticSum,
    ScalarQuadratics,
)

__all__ = [
    "MODEL_NAMES",
    "OBJECTIVES",
    "Cnn",
    "Cost",
    "CostProfile",
    "GivenCost",
    "LayerCost",
    "Logistic",
    "Mlp",
    "ModelCost",
    "ObjectiveKind",
    "PolicyEvaluation",
    "Portfolio",
    "Quadratic",
    "QuadraticSum",
    "ScalarQuadratics",
    "StepTime",
    "profile",
]
