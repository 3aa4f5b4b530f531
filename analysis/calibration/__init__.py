"""From measurements of a machine to a cluster description that a scenario's ``cluster`` names.

`settings` says what is measured, `fit` fits lines and quantiles (numbers in, numbers out), `network` and
`compute` make the parts of a description from what was measured, and `calibrate` measures, fits, simulates
the same measurements on the description, and writes it.
"""

from __future__ import annotations

from analysis.calibration.calibrate import Calibration, calibrate
from analysis.calibration.settings import PARTS, Settings

__all__ = ["PARTS", "Calibration", "Settings", "calibrate"]
