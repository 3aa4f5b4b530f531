"""Parameters are validated fields with a meaning; the registry finds an algorithm by its name."""

from __future__ import annotations

import dataclasses

import pytest

from algorithms import ALGORITHMS, Algorithm, algorithm
from algorithms.decentralised.d_psgd import DPSGD
from algorithms.local.cocod_sgd import CoCoDSGD
from algorithms.local.local_sgd import LocalSGD


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_entry_loads_and_documents_its_parameters(name: str) -> None:
    made = algorithm(name)()
    assert isinstance(made, Algorithm)
    for field in dataclasses.fields(made):
        assert field.metadata["doc"]
    entry = ALGORITHMS[name]
    assert entry.summary
    assert entry.paper
    assert entry.traffic
    assert entry.needs == ", ".join(sorted(made.requires))


def test_an_unknown_name_has_a_nearest_one() -> None:
    with pytest.raises(ValueError, match="unknown") as caught:
        algorithm("cocod")
    assert str(caught.value) == "unknown algorithm 'cocod'; the nearest is 'cocod-sgd'"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalSGD(period=0), "period must be at least 1, got 0"),
        (lambda: CoCoDSGD(period=2.5), "period must be of type int, got 2.5"),
        (lambda: CoCoDSGD(first_all_reduce=1), "first-all-reduce must be of type bool, got 1"),
        (
            lambda: DPSGD(order="sideways"),
            "order must be one of 'combine-then-adapt', 'adapt-then-combine', got 'sideways'",
        ),
    ],
)
def test_bad_parameters(make: object, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message


def test_the_base_has_nothing_to_run() -> None:
    import asyncio

    with pytest.raises(TypeError, match="Algorithm defines no run coroutine"):
        asyncio.run(Algorithm().run(None))  # type: ignore[arg-type]
