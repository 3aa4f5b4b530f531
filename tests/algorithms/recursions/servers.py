"""Parameter servers, synchronous and asynchronous, and Hogwild.

Sources: Li et al. (OSDI 2014) for the parameter server; Agarwal and Duchi (NeurIPS 2011) and Lian et al.
(NeurIPS 2015) for A-PSGD; Recht et al. (NeurIPS 2011) for Hogwild.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.algorithms.recursions.notation import Array, Gradient, StepSize, at, copies
from tests.algorithms.recursions.rules import SGD, MakeRule

Shards = Sequence[NDArray[np.int64]]
Arrives = Callable[[int, int, Array], Array]
"""What arrives of a slice that is pushed, ``arrives(worker, shard, slice)``; called once for each, in the
order of a worker's gradients, so that it may keep a memory for each worker and shard."""


def exactly(i: int, s: int, v: Array) -> Array:
    return v


@dataclass
class Served:
    """What an asynchronous run ends with."""

    model: Array
    """The servers' (or the shared) model."""
    copies: Array
    """Each worker's own copy, as it read it last: [workers, d]."""
    staleness: list[tuple[int, int, int]] = field(default_factory=list)
    """By push, in their order: (worker, shard, updates of that shard between its read and this push)."""


def synchronous_server(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    steps: int,
    *,
    shards: Shards | None = None,
    shares: Sequence[float] | None = None,
    rule: MakeRule = SGD,
    arrives: Arrives = exactly,
) -> Array:
    """Everybody pulls, everybody pushes, each server applies sum_i p_i G_i to its shard by its own rule.

    Where pushes are compressed, n p_i G_i is what a worker compresses, and the server takes the plain mean of
    what arrives; pulls are exact.
    """
    server = np.array(x0, dtype=np.float64)
    shards = shards or [np.arange(len(server))]
    rules = [rule() for _ in shards]
    for t in range(steps):
        pushed = [gradient(i, server.copy(), t) for i in range(workers)]
        for s, shard in enumerate(shards):
            total = np.zeros(len(shard))
            for i in range(workers):
                scaled = pushed[i][shard] if shares is None else workers * shares[i] * pushed[i][shard]
                total = total + arrives(i, s, scaled) / workers
            server[shard] = rules[s].step(server[shard], total, at(step, t))
    return np.array(copies(server, workers))


def a_psgd(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    events: Sequence[tuple[str, int] | tuple[str, int, int]],
    *,
    shards: Shards | None = None,
    rule: MakeRule = SGD,
    arrives: Arrives = exactly,
) -> Served:
    """Asynchronous parameter server, for a given order of atomic events.

        ("pull", i, s)      worker i's copy of shard s becomes that of server s
        ("gradient", i)     worker i computes a gradient at its copy, its next iteration
        ("push", i, s)      server s applies shard s of worker i's latest gradient at once

    A push is applied whole, not divided by the number of workers, with the step size of iteration
    floor(k / workers), where k is the number of updates that the shard has had. A rule's state lives at the
    server, one for each shard. All copies are x0 at first. Staleness counts all updates of the shard since
    the pull; a worker that pulls before each gradient has none of its own among them. Pushes may be
    compressed; pulls are exact.
    """
    server = np.array(x0, dtype=np.float64)
    shards = shards or [np.arange(len(server))]
    rules = [rule() for _ in shards]
    x, g = copies(x0, workers), copies(np.zeros_like(server), workers)
    own = [0] * workers
    version = [0] * len(shards)
    pulled = [[0] * len(shards) for _ in range(workers)]
    staleness = []
    for kind, i, *of in events:
        if kind == "pull":
            (s,) = of
            x[i][shards[s]] = server[shards[s]]
            pulled[i][s] = version[s]
        elif kind == "gradient":
            g[i] = gradient(i, x[i].copy(), own[i])
            own[i] += 1
        elif kind == "push":
            (s,) = of
            slice_ = arrives(i, s, g[i][shards[s]])
            server[shards[s]] = rules[s].step(server[shards[s]], slice_, at(step, version[s] // workers))
            staleness.append((i, s, version[s] - pulled[i][s]))
            version[s] += 1
        else:
            raise ValueError(f"no event {kind!r}")
    return Served(server, np.array(x), staleness)


def hogwild(
    gradient: Gradient,
    x0: Array,
    step: StepSize,
    workers: int,
    events: Sequence[tuple[str, int] | tuple[str, int, int]],
) -> Served:
    """Lock-free SGD on a shared model, for a given order of events that are atomic by component.

        ("read", i, c)      worker i reads component c: its copy mixes versions, if writes lie between
        ("gradient", i)     worker i computes a gradient at its copy, its next iteration
        ("write", i, c)     x[c] <- x[c] - step * g_i[c], an atomic addition: no update is lost

    Staleness is by component: the writes of others to c between its read and this write. Plain SGD.
    """
    x = np.array(x0, dtype=np.float64)
    copy, g = copies(x0, workers), copies(np.zeros_like(x), workers)
    own = [0] * workers
    writers: list[list[int]] = [[] for _ in x]
    seen = np.zeros((workers, len(x)), dtype=int)
    staleness = []
    for kind, i, *of in events:
        if kind == "read":
            (c,) = of
            copy[i][c] = x[c]
            seen[i, c] = len(writers[c])
        elif kind == "gradient":
            g[i] = gradient(i, copy[i].copy(), own[i])
            own[i] += 1
        elif kind == "write":
            (c,) = of
            x[c] = x[c] - at(step, own[i] - 1) * g[i][c]
            staleness.append((i, c, sum(writer != i for writer in writers[c][seen[i, c] :])))
            writers[c].append(i)
        else:
            raise ValueError(f"no event {kind!r}")
    return Served(x, np.array(copy), staleness)
