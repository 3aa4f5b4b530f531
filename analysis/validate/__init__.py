"""How far predictions are off, against measurements."""

from __future__ import annotations
