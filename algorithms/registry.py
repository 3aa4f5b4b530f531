"""The algorithms by name; a file is imported only when its algorithm is asked for.

The command line, scenarios and the tests share this table.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib

from algorithms.algorithm import Algorithm


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an algorithm lives and what a list says about it.

    Attributes
    ----------
    module, object
        Where to import it from.
    summary
        What it does, in a line.
    paper
        Its source.
    traffic
        Bytes that a worker sends per iteration; M is the model in bytes, n the workers, k the period.
    needs
        What a run must offer beside a network.
    """

    module: str
    object: str
    summary: str
    paper: str
    traffic: str
    needs: str = ""

    def load(self) -> type[Algorithm]:
        """Import the algorithm's class."""
        loaded: type[Algorithm] = getattr(importlib.import_module(self.module), self.object)
        return loaded


ALGORITHMS: dict[str, Entry] = {
    "allreduce-sgd": Entry(
        "algorithms.allreduce_sgd",
        "AllReduceSGD",
        "synchronous SGD; buckets of the gradient are reduced while back-propagation goes on",
        "Li et al., VLDB 2020",
        "2(n-1)/n M",
    ),
    "local-sgd": Entry(
        "algorithms.local_sgd",
        "LocalSGD",
        "k local steps, then an average of the models",
        "Stich, ICLR 2019",
        "2(n-1)/n M/k",
    ),
    "cocod-sgd": Entry(
        "algorithms.cocod_sgd",
        "CoCoDSGD",
        "k local steps hide the average of the models as the round began",
        "Shen et al., IJCAI 2019",
        "2(n-1)/n M/k",
    ),
    "d-psgd": Entry(
        "algorithms.d_psgd",
        "DPSGD",
        "every worker averages with its neighbours on a graph in every step",
        "Lian et al., NeurIPS 2017",
        "degree M",
        needs="graph",
    ),
}


def algorithm(name: str) -> type[Algorithm]:
    """Return the class of the algorithm called ``name``.

    Raises
    ------
    ValueError
        No such algorithm; the message names the nearest one.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown algorithm '{name}'; the nearest is '{near}'")
    return ALGORITHMS[name].load()
