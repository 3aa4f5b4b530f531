"""Formats: timelines and calibrations as files, and readers and writers of other tools' formats."""

from __future__ import annotations

from traces.timeline import COMPUTE, TRANSFER, WAIT, Span, Timeline

__all__ = ["COMPUTE", "TRANSFER", "WAIT", "Span", "Timeline"]
