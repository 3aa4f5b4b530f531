"""Bytes on the wire, summed over the workers, are the formulas of the card, for any world and length.

M is the model in bytes, n the workers, T the iterations, k the period, E the edges of a graph. Where a
formula has a term in `ELEMENT`, it is the messages of a single element that say that a worker has ended.
Timing-only runs send the same and take the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from algorithms import TimingOnly
from algorithms.algorithm import Setting
from simulator.engine.simulate import simulate
from simulator.faults import WorkerFailed
from simulator.scenario import Scenario
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.training import scenario, trained

ELEMENT = 4
ITERATIONS = 12


@dataclass(frozen=True)
class Traffic:
    """An algorithm with its settings, and the bytes that all its workers send.

    Attributes
    ----------
    total
        Of (n, M), over `ITERATIONS`.
    ends
        Of n, the bytes of the messages that say that a worker has ended.
    degree
        Neighbours of a worker, of n.
    stated
        Whether the algorithm's own `traffic` tells them: not in its rarer settings.
    collective
        Whether all that is sent is all-reduces of the whole model, so that every rank sends as much.
    """

    name: str
    total: Callable[[int, float], float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: tuple[int, ...] = (1, 2, 3, 4, 8)
    gossip: Mapping[str, Any] | None = None
    ends: Callable[[int], float] = lambda n: 0.0
    degree: Callable[[int], float] = lambda n: 0.0
    stated: bool = True
    collective: bool = False
    rule: str = "sgd"

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.name, *words, *map(str, (self.gossip or {}).values())])

    def scenario(self, workers: int, length: int, numerics: bool = True) -> Scenario:
        changes: dict[str, Any] = {"gossip": self.gossip} if self.gossip else {}
        problem = Quadratics(workers, length)
        algorithm = {"name": self.name, **self.settings}
        return scenario(
            algorithm, problem, ITERATIONS, numerics=numerics, update={"rule": self.rule}, **changes
        )

    def hold(self, workers: int, length: int) -> None:
        """Assert the formula."""
        run = simulate(self.scenario(workers, length))
        expected = self.total(workers, ELEMENT * length)
        assert sum(run.bytes_sent) == pytest.approx(expected, rel=1e-12, abs=1e-9)
        if self.stated:
            setting = Setting(workers, length, ELEMENT, self.degree(workers))
            each = run.scenario.algorithm.traffic(setting)
            assert each * workers * ITERATIONS == pytest.approx(expected - self.ends(workers), rel=1e-12)
        if self.collective:
            assert max(run.bytes_sent) - min(run.bytes_sent) <= 2 * ELEMENT * ITERATIONS


def all_reduces(count: float) -> Callable[[int, float], float]:
    """Return the bytes of so many all-reduces of the model: 2 (n - 1) / n M from each of n."""
    return lambda n, M: 2 * (n - 1) * M * count


def hops(n: int) -> int:
    """Return how many of 1, 2, 4, … are below n."""
    return sum(1 for power in range(n) if 2**power < n)


T = ITERATIONS
SERVED = lambda n, M: 2 * (n - 1) * M * T  # noqa: E731  # a worker's own server costs nothing
PULLED_AT_LAST = lambda n, M: SERVED(n, M) + (n - 1) * M  # noqa: E731
RING = {"graph": "ring"}
STAR = {"graph": "star", "mixing": "metropolis-hastings"}

TRAFFIC = (
    Traffic("allreduce-sgd", all_reduces(T), collective=True),
    Traffic("allreduce-sgd", all_reduces(T), {"overlap": False}, collective=True),
    Traffic("pipe-sgd", all_reduces(T), {"width": 3}, collective=True),
    Traffic("local-sgd", all_reduces(T / 3), {"period": 3}, collective=True),
    Traffic(
        "local-sgd",
        all_reduces(2 * T / 3),
        {"period": 3, "state": "averaged"},
        stated=False,
        collective=True,
        rule="momentum",
    ),
    Traffic("cocod-sgd", all_reduces(T / 4), {"period": 4}, collective=True),
    Traffic(
        "cocod-sgd",
        all_reduces(T / 4 - 1),
        {"period": 4, "first-all-reduce": False},
        stated=False,
        collective=True,
    ),
    Traffic("overlap-local-sgd", all_reduces(T / 2), {"period": 2}, collective=True),
    Traffic("slowmo", all_reduces(T / 3), {"period": 3}, collective=True),
    Traffic("vrl-sgd", all_reduces(T / 3), {"period": 3}, collective=True),
    Traffic("easgd", all_reduces(T / 3), {"period": 3, "rounds": "synchronous"}, collective=True),
    Traffic(
        "easgd",
        lambda n, M: (n - 1) * (2 * M * T / 3 + ELEMENT),
        {"period": 3},
        ends=lambda n: (n - 1) * ELEMENT,
    ),
    Traffic("diloco", all_reduces(T / 6), {"period": 6}, collective=True),
    Traffic(
        "streaming-diloco", all_reduces(T / 6), {"period": 6, "fragments": 3, "delay": 2}, collective=True
    ),
    Traffic("d-psgd", lambda n, M: 2 * n * M * T, workers=(3, 4, 8), gossip=RING, degree=lambda n: 2),
    Traffic(
        "d-psgd",
        lambda n, M: n * hops(n) * M * T,
        workers=(3, 4, 8),
        gossip={"graph": "exponential"},
        degree=hops,
    ),
    Traffic("choco-sgd", lambda n, M: 2 * n * M * T, workers=(3, 4, 8), gossip=RING, degree=lambda n: 2),
    Traffic(
        "d2",
        lambda n, M: 2 * (n - 1) * M * T,
        workers=(2, 3, 4, 8),
        gossip=STAR,
        degree=lambda n: 2 * (n - 1) / n,
    ),
    Traffic("sgp", lambda n, M: n * min(n - 1, 1) * (M + ELEMENT) * T),
    Traffic("sgp", lambda n, M: n * hops(n) * (M + ELEMENT) * T, {"peers": "all"}),
    Traffic("sgp", lambda n, M: n * min(n - 1, 1) * (M + ELEMENT) * T, {"delay": 2}),
    # Every active worker starts T averagings, of which each is M both ways, and takes leave on every edge.
    Traffic(
        "ad-psgd",
        lambda n, M: n / 2 * T * 2 * M + n * ELEMENT,
        workers=(4, 8),
        gossip=RING,
        ends=lambda n: n * ELEMENT,
    ),
    Traffic("ad-psgd", lambda n, M: 0.0, workers=(1,), gossip={"graph": "complete"}),
    Traffic(
        "ad-psgd",
        lambda n, M: T * 2 * M + (n - 1) * ELEMENT,
        workers=(2, 5),
        gossip={"graph": "star"},
        stated=False,
    ),
    Traffic(
        "pair-averaging",
        lambda n, M: n * min(n - 1, 1) * M * T + n * (n - 1) * ELEMENT,
        ends=lambda n: n * (n - 1) * ELEMENT,
    ),
    Traffic("parameter-server", SERVED),
    Traffic("parameter-server", SERVED, {"servers": 3}, workers=(3, 4, 8)),
    # At the end every worker but the server's own gets the last model.
    Traffic("a-psgd", PULLED_AT_LAST, stated=False),
    Traffic("a-psgd", PULLED_AT_LAST, {"servers": 3}, workers=(3, 4, 8), stated=False),
    Traffic("hogwild", lambda n, M: 0.0),
)


@pytest.mark.parametrize(
    ("traffic", "workers"),
    [pytest.param(t, n, id=f"{t} {n}") for t in TRAFFIC for n in t.workers],
)
def test_bytes_follow_the_formula(traffic: Traffic, workers: int) -> None:
    for length in (5, 16):
        traffic.hold(workers, length)


@pytest.mark.parametrize("traffic", TRAFFIC, ids=str)
def test_without_numerics_the_same_is_sent_in_the_same_time(traffic: Traffic) -> None:
    workers = traffic.workers[-1]
    whole, timing_only = (simulate(traffic.scenario(workers, 16, numerics)) for numerics in (True, False))
    assert timing_only.models is None
    assert timing_only.bytes_sent == whole.bytes_sent
    assert timing_only.duration == whole.duration
    assert timing_only.timeline.spans == whole.timeline.spans
    assert timing_only.observations == whole.observations


def test_sparse_hogwild_needs_numerics() -> None:
    with pytest.raises(WorkerFailed) as caught:
        trained({"name": "hogwild", "sparse": True}, Quadratics(2, 6), 4, numerics=False)
    assert isinstance(caught.value.__cause__, TimingOnly)
    assert "torch.nonzero is not known in a timing-only run" in str(caught.value)
