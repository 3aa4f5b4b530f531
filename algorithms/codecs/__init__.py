"""Compression: codecs that stand before what an algorithm sends."""

from __future__ import annotations

from algorithms.codecs.codec import Codec, Message
from algorithms.codecs.compressing import Compressing, compressing
from algorithms.codecs.registry import CODECS, codec

__all__ = ["CODECS", "Codec", "Compressing", "Message", "codec", "compressing"]
