"""The wall clock: the same algorithms, executed for real on ``torch.distributed``.

Importing this package does not import torch.
"""

from __future__ import annotations

from simulator.execution.execute import execute

__all__ = ["execute"]
