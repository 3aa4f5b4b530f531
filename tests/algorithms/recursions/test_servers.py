"""Parameter servers and Hogwild: what they reduce to, what staleness is, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.algorithms.recursions import rules
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.servers import a_psgd, hogwild, synchronous_server
from tests.algorithms.recursions.synchronous import s_sgd

SHARES = [0.1, 0.2, 0.3, 0.4]
TWO = [np.array([0, 2, 4]), np.array([1, 3, 5])]
SINGLE = [np.array([c]) for c in range(6)]
Event = tuple[Any, ...]


def falling(t: int) -> float:
    return 0.2 / (1 + t)


@pytest.fixture
def problem() -> Quadratics:
    return Quadratics(4, 6, ripple=0.5)


def visit(i: int, shards: int = 1) -> list[Event]:
    """Pull everything, compute, push everything."""
    pulls = [("pull", i, s) for s in range(shards)]
    return [*pulls, ("gradient", i), *(("push", i, s) for s in range(shards))]


@pytest.mark.parametrize("rule", [rules.SGD, lambda: rules.SGD(momentum=0.9, nesterov=True), rules.AdamW])
@pytest.mark.parametrize("shards", [None, TWO])
def test_the_synchronous_server_is_s_sgd(
    problem: Quadratics, shards: Any, rule: Callable[[], rules.Rule]
) -> None:
    a = synchronous_server(
        problem.gradient, problem.x0, falling, 4, 9, shards=shards, shares=SHARES, rule=rule
    )
    b = s_sgd(problem.gradient, problem.x0, falling, 4, 9, shares=SHARES, rule=rule)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shards", [None, TWO])
def test_one_worker_at_an_asynchronous_server_is_plain_sgd(problem: Quadratics, shards: Any) -> None:
    events = visit(0, len(shards or "1")) * 9
    served = a_psgd(problem.gradient, problem.x0, falling, 1, events, shards=shards)
    expected = s_sgd(problem.gradient, problem.x0, falling, 1, 9)
    np.testing.assert_allclose(served.model, expected[0], rtol=0, atol=1e-12)
    assert {count for _, _, count in served.staleness} == {0}


def test_pushes_of_all_at_one_model_are_a_synchronous_step_of_n_times_the_size(problem: Quadratics) -> None:
    cycle: list[Event] = [
        *(("pull", i, 0) for i in range(4)),
        *(("gradient", i) for i in range(4)),
        *(("push", i, 0) for i in (2, 0, 3, 1)),
    ]
    served = a_psgd(problem.gradient, problem.x0, 0.05, 4, cycle * 6)
    expected = s_sgd(problem.gradient, problem.x0, 0.2, 4, 6)
    np.testing.assert_allclose(served.model, expected[0], rtol=0, atol=1e-12)
    assert [(i, count) for i, _, count in served.staleness] == [(2, 0), (0, 1), (3, 2), (1, 3)] * 6


def in_turns(cycles: int, shards: int = 1) -> list[Event]:
    """Everybody holds a gradient; in turn each pushes it, pulls and computes the next."""
    start = [e for i in range(4) for e in visit(i, shards)[: shards + 1]]
    turns = [
        e
        for i in range(4)
        for e in (*visit(i, shards)[shards + 1 :], *visit(i, shards)[: shards + 1])
    ]  # fmt: skip
    return start + turns * cycles


def test_workers_in_turns_are_n_minus_1_updates_late(problem: Quadratics) -> None:
    served = a_psgd(problem.gradient, problem.x0, 0.05, 4, in_turns(5))
    assert [count for _, _, count in served.staleness] == [0, 1, 2] + [3] * 17


def test_a_stale_gradient_by_hand(problem: Quadratics) -> None:
    served = a_psgd(
        problem.gradient, problem.x0, falling, 2,
        [("gradient", 1), *visit(0), *visit(0), ("push", 1, 0), ("pull", 1, 0)],
    )  # fmt: skip
    # Two updates of the server are one iteration of each of the two workers.
    x = problem.x0 - 0.2 * problem.gradient(0, problem.x0, 0)
    x = x - 0.2 * problem.gradient(0, x, 1)
    x = x - 0.1 * problem.gradient(1, problem.x0, 0)
    np.testing.assert_allclose(served.model, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(served.copies[1], x, rtol=0, atol=1e-12)
    assert served.staleness == [(0, 0, 0), (0, 0, 0), (1, 0, 2)]


def test_shards_may_be_of_different_ages(problem: Quadratics) -> None:
    """Worker 1 pulls one shard before, the other after the push of worker 0."""
    events: list[Event] = [("pull", 1, 0), *visit(0, 2), ("pull", 1, 1), ("gradient", 1), ("push", 1, 0)]
    served = a_psgd(problem.gradient, problem.x0, 0.1, 2, events, shards=TWO)
    x = problem.x0 - 0.1 * problem.gradient(0, problem.x0, 0)
    torn = x.copy()
    torn[TWO[0]] = problem.x0[TWO[0]]
    np.testing.assert_allclose(served.copies[1], torn, rtol=0, atol=1e-12)
    x[TWO[0]] -= 0.1 * problem.gradient(1, torn, 0)[TWO[0]]
    np.testing.assert_allclose(served.model, x, rtol=0, atol=1e-12)
    assert served.staleness == [(0, 0, 0), (0, 1, 0), (1, 0, 1)]


def test_shards_that_are_always_served_together_are_one_server(problem: Quadratics) -> None:
    a = a_psgd(problem.gradient, problem.x0, 0.05, 4, in_turns(5, 2), shards=TWO)
    b = a_psgd(problem.gradient, problem.x0, 0.05, 4, in_turns(5))
    np.testing.assert_allclose(a.model, b.model, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.copies, b.copies, rtol=0, atol=1e-12)


def test_no_push_is_lost(problem: Quadratics) -> None:
    served = a_psgd(problem.gradient, problem.x0, 0.05, 4, in_turns(5))
    pushed = problem.log[: len(served.staleness)]
    expected = problem.x0 - 0.05 * sum(g for _, _, g in pushed)
    np.testing.assert_allclose(served.model, expected, rtol=0, atol=1e-12)


def test_momentum_lives_at_the_server(problem: Quadratics) -> None:
    served = a_psgd(
        problem.gradient, problem.x0, 0.1, 2, [*visit(0), *visit(1)], rule=lambda: rules.SGD(momentum=0.9)
    )
    m = problem.gradient(0, problem.x0, 0)
    x = problem.x0 - 0.1 * m
    x = x - 0.1 * (0.9 * m + problem.gradient(1, x, 0))
    np.testing.assert_allclose(served.model, x, rtol=0, atol=1e-12)


def random_components(seed: int, count: int, workers: int) -> list[list[int]]:
    """Draw whose turn it is: in a turn a worker reads a component, computes, or writes a component."""
    random = np.random.default_rng(seed)
    return random.integers(workers, size=count).tolist()


def component_events(turns: list[int], workers: int, names: tuple[str, str]) -> list[Event]:
    progress = [0] * workers
    events: list[Event] = []
    for i in turns:
        at = progress[i] % 13
        if at < 6:
            events.append((names[0], i, at))
        elif at == 6:
            events.append(("gradient", i))
        else:
            events.append((names[1], i, at - 7))
        progress[i] += 1
    return events


@pytest.mark.parametrize("seed", range(3))
def test_hogwild_is_a_server_for_each_component(problem: Quadratics, seed: int) -> None:
    turns = random_components(seed, 400, 3)
    a = hogwild(problem.gradient, problem.x0, 0.05, 3, component_events(turns, 3, ("read", "write")))
    b = a_psgd(
        problem.gradient, problem.x0, 0.05, 3, component_events(turns, 3, ("pull", "push")), shards=SINGLE
    )
    np.testing.assert_allclose(a.model, b.model, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.copies, b.copies, rtol=0, atol=1e-12)
    # A worker reads a component again before it writes to it again: no write of its own lies between.
    assert a.staleness == b.staleness
    assert max(count for _, _, count in a.staleness) >= 2


def test_a_torn_read_by_hand(problem: Quadratics) -> None:
    """Worker 1 reads component 0 before and the others after the write of worker 0."""
    alone: list[Event] = [*(("read", 0, c) for c in range(6)), ("gradient", 0)]
    events: list[Event] = [
        ("read", 1, 0),
        *alone,
        *(("write", 0, c) for c in range(6)),
        *(("read", 1, c) for c in range(1, 6)),
        ("gradient", 1),
        *(("write", 1, c) for c in range(6)),
    ]
    run = hogwild(problem.gradient, problem.x0, 0.1, 2, events)
    x = problem.x0 - 0.1 * problem.gradient(0, problem.x0, 0)
    torn = np.array([problem.x0[0], *x[1:]])
    np.testing.assert_allclose(run.copies[1], torn, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.model, x - 0.1 * problem.gradient(1, torn, 0), rtol=0, atol=1e-12)
    assert run.staleness[6:] == [(1, 0, 1), *((1, c, 0) for c in range(1, 6))]


def test_an_unknown_event_is_refused(problem: Quadratics) -> None:
    for recursion in (a_psgd, hogwild):
        with pytest.raises(ValueError, match="no event 'swap'"):
            recursion(problem.gradient, problem.x0, 0.1, 2, [("swap", 0)])


def test_identical_functions_end_at_the_optimum() -> None:
    problem = Quadratics(4, 6).identical()
    best = problem.optimum()
    served = a_psgd(problem.gradient, problem.x0, 0.05, 4, in_turns(400))
    np.testing.assert_allclose(served.model, best, rtol=0, atol=1e-9)
    events = component_events(random_components(0, 30000, 4), 4, ("read", "write"))
    run = hogwild(problem.gradient, problem.x0, 0.05, 4, events)
    np.testing.assert_allclose(run.model, best, rtol=0, atol=1e-9)


def test_the_bias_of_unlike_functions_falls_with_the_step_size() -> None:
    problem = Quadratics(4, 6)
    errors = [
        np.abs(
            a_psgd(problem.gradient, problem.x0, step, 4, in_turns(cycles)).model - problem.optimum()
        ).max()
        for step, cycles in ((0.02, 400), (0.005, 1600))
    ]
    assert 0.15 < errors[1] / errors[0] < 0.35
