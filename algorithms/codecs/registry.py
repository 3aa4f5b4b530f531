"""The codecs by name; a file is imported only when its codec is asked for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from algorithms.codecs.codec import Codec


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a codec lives and what a list says about it.

    Attributes
    ----------
    module, object
        Where to import it from.
    summary
        What it does, in a line.
    paper
        Its source.
    wire
        Bytes of a message of d elements of fp32.
    """

    module: str
    object: str
    summary: str
    paper: str
    wire: str

    def load(self) -> type[Codec]:
        """Import the codec's class."""
        loaded: type[Codec] = getattr(importlib.import_module(self.module), self.object)
        return loaded


CODECS: dict[str, Entry] = {
    "qsgd": Entry(
        "algorithms.codecs.qsgd",
        "QSGD",
        "rounds at random to s levels of each bucket's scale, without bias",
        "Alistarh et al., NeurIPS 2017",
        "d b/8 + 4 d/bucket, b = ceil(log2(2s+1))",
    ),
    "terngrad": Entry(
        "algorithms.codecs.terngrad",
        "TernGrad",
        "rounds at random to -1, 0 and 1 times a scale that all workers share",
        "Wen et al., NeurIPS 2017",
        "d/4, and an all-reduce of 4 a layer",
    ),
    "top-k": Entry(
        "algorithms.codecs.topk",
        "TopK",
        "sends the largest coordinates, with error feedback",
        "Stich et al., NeurIPS 2018",
        "8k, k = ceil(density d)",
    ),
    "random-k": Entry(
        "algorithms.codecs.topk",
        "RandomK",
        "sends random coordinates, with error feedback",
        "Stich et al., NeurIPS 2018",
        "4k where all draw alike, else 8k",
    ),
    "dgc": Entry(
        "algorithms.codecs.dgc",
        "DGC",
        "sends the largest coordinates of accumulated momentum",
        "Lin et al., ICLR 2018",
        "8k, k = ceil(density d)",
    ),
    "sign": Entry(
        "algorithms.codecs.sign",
        "ScaledSign",
        "sends signs and the mean magnitude, with error feedback",
        "Karimireddy et al., ICML 2019",
        "4 ceil(d/32) + 4",
    ),
    "powersgd": Entry(
        "algorithms.codecs.powersgd",
        "PowerSGD",
        "factors of low rank by one step of power iteration, with error feedback",
        "Vogels et al., NeurIPS 2019",
        "4 r (n + m) a matrix, 4 an element of the rest, through all-reduces",
    ),
}


def codec(name: str) -> type[Codec]:
    """Return the class of the codec called ``name``.

    Raises
    ------
    ValueError
        No such codec; the message names the nearest one.
    """
    if name not in CODECS:
        near = difflib.get_close_matches(name, CODECS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown codec '{name}'; the nearest is '{near}'")
    return CODECS[name].load()
