"""Gradients on several threads: the same bits, on as many threads as are worth it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from simulator.engine import crew
from simulator.engine.crew import WORTH_A_THREAD, Crew
from simulator.engine.simulate import simulate
from simulator.scenario import Scenario
from simulator.workload.objective import Request, SampledObjective
from simulator.workload.task import Task

BATCH = 8


def objective(kind: str = "mlp", workers: int = 4) -> SampledObjective:
    found = scenario(kind, workers).objective
    assert isinstance(found, SampledObjective)
    return found


def scenario(kind: str = "mlp", workers: int = 4) -> Scenario:
    return Scenario(
        {
            "name": "crew",
            "cluster": {
                "topology": {"builder": "switch", "gpus": workers},
                "device": "ideal",
                "transport": "ideal",
            },
            "workload": {
                "cost": {"parameters": 1000, "batch": BATCH, "gradient": "1 ms"},
                "objective": {"kind": kind},
            },
            "algorithm": "d-psgd",
            "step-size": 0.1,
            "budget": {"iterations": 12},
        }
    )


def requests(of: SampledObjective, count: int) -> list[Request]:
    """Return gradients at different models, over different samples."""
    x = of.initial_model()
    return [
        of.oracle(rank, (1 / count,) * count, BATCH, 3).request(x + 0.01 * rank)  # type: ignore[arg-type]  # oracles of samples only
        for rank in range(count)
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Set how many seconds a gradient seems to take on one thread and on several."""

    def seem(alone: float, together: float) -> None:
        def spread(self: Crew, given: list[Request]) -> list[crew.Value]:
            now.append(now[-1] + together * len(given))
            return original(self, given)

        def in_turn(of: SampledObjective, given: list[Request]) -> list[crew.Value]:
            if threading.current_thread() is threading.main_thread():
                now.append(now[-1] + alone * len(given))
            return one_by_one(of, given)

        now = [0.0]
        monkeypatch.setattr(crew.time, "perf_counter", lambda: now[-1])
        monkeypatch.setattr(Crew, "_spread", spread)
        monkeypatch.setattr(crew, "_in_turn", in_turn)

    original, one_by_one = Crew._spread, crew._in_turn
    return seem


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a simulation
    yield
    torch.set_num_threads(before)


def used(threads: int, evaluations: int, workers: int = 4) -> list[int]:
    """Return how many threads each evaluation took, of a crew of so many."""
    shared = objective(workers=workers)
    evaluated = Crew(shared, threads)
    found = []
    for _ in range(evaluations):
        found.append(evaluated.threads)
        evaluated.evaluate(requests(shared, workers))
    evaluated.end()
    return found


def test_several_threads_where_they_are_faster(clock: Callable[[float, float], None]) -> None:
    clock(2 * WORTH_A_THREAD, 1.9 * WORTH_A_THREAD)
    assert used(3, 8) == [1, 1, 1, 3, 3, 3, 3, 3]


def test_one_thread_where_it_is_faster(clock: Callable[[float, float], None]) -> None:
    clock(2 * WORTH_A_THREAD, 2.1 * WORTH_A_THREAD)
    assert used(3, 8) == [1, 1, 1, 3, 3, 3, 1, 1]


def test_small_gradients_are_not_tried_on_several(clock: Callable[[float, float], None]) -> None:
    clock(0.9 * WORTH_A_THREAD, 0.0)
    assert used(3, 5) == [1] * 5


def test_a_single_gradient_says_nothing(clock: Callable[[float, float], None]) -> None:
    clock(2 * WORTH_A_THREAD, 0.0)
    assert used(3, 5, workers=1) == [1] * 5


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_same_bits(kind: str, clock: Callable[[float, float], None]) -> None:
    clock(1.0, 0.5)
    shared = objective(kind)
    evaluated = Crew(shared, 3)
    for _ in range(3):
        evaluated.evaluate(requests(shared, 4))
    assert evaluated.threads == 3
    for count in (2, 3, 4, 7):
        asked = requests(shared, count)
        expected = [shared.batch_gradient(*request) for request in asked]
        values = evaluated.evaluate(asked)
        for value, gradient in zip(values, expected, strict=True):
            assert isinstance(value, torch.Tensor)
            assert torch.equal(value, gradient)
    evaluated.end()


def test_an_error_is_for_who_asked(clock: Callable[[float, float], None]) -> None:
    clock(1.0, 0.5)
    shared = objective()
    evaluated = Crew(shared, 2)
    for _ in range(3):
        evaluated.evaluate(requests(shared, 4))
    asked = requests(shared, 4)
    asked[2] = asked[2]._replace(indices=torch.tensor([10**9]))
    values = evaluated.evaluate(asked)
    assert [isinstance(value, Exception) for value in values] == [False, False, True, False]
    evaluated.end()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_run_has_the_same_bits_and_leaves_no_thread(
    count: int, clock: Callable[[float, float], None]
) -> None:
    clock(1.0, 0.5)
    torch.set_num_threads(count)
    seen: set[int] = set()
    run = simulate(scenario(), progress=lambda _: seen.add(threading.active_count()))
    torch.set_num_threads(1)
    alone = simulate(scenario())
    assert run.models is not None
    assert alone.models is not None
    assert run.models.tobytes() == alone.models.tobytes()
    assert list(run.timeline) == list(alone.timeline)
    assert max(seen) - min(seen) == (count if count > 1 else 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gradients")]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    return torch.from_numpy(random.normal(size=(64, 6)).astype(np.float32)), torch.arange(64) % 3


def task(*layers: nn.Module) -> SampledObjective:
    return Task(nn.Sequential(*layers), data(), nn.functional.cross_entropy).build(1)


def test_a_twin_starts_from_the_buffers_that_the_module_came_with() -> None:
    first = task(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    asked = requests(first, 2)
    expected = [first.batch_gradient(*request) for request in asked]  # which moves its statistics
    twin = first.twin()
    for request, gradient in zip(2 * asked, 2 * expected, strict=True):
        assert torch.equal(twin.batch_gradient(*request), gradient)
    # What one does leaves the other alone.
    twin.batch_gradient(*requests(twin, 1)[0])
    assert torch.equal(first.batch_gradient(*asked[1]), expected[1])
    assert torch.equal(first.initial_model(), twin.initial_model())


def test_networks_that_draw_go_on_one_thread() -> None:
    random = task(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    evaluated = Crew(random, 2)
    evaluated._alone = [1.0] * 3
    asked = requests(random, 2)
    expected = [random.batch_gradient(*request) for request in asked]
    assert evaluated.threads == 2
    before = torch.get_rng_state()
    values = evaluated.evaluate(asked)
    assert all(map(torch.equal, values, expected))  # type: ignore[arg-type]  # no errors
    assert torch.equal(torch.get_rng_state(), before)
    assert evaluated.threads == 1
    evaluated.end()


class Keeping(nn.Module):
    """Keeps what it has computed, as some do for a later look."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.layer(x)
        return self.seen


def test_networks_that_cannot_be_copied_any_more_go_on_one_thread() -> None:
    keeping = task(Keeping())
    asked = requests(keeping, 2)
    expected = [keeping.batch_gradient(*request) for request in asked]
    with pytest.raises(ValueError, match="cannot be copied"):
        keeping.twin()
    evaluated = Crew(keeping, 2)
    evaluated._alone = [1.0] * 3
    assert all(map(torch.equal, evaluated.evaluate(asked), expected))  # type: ignore[arg-type]  # no errors
    assert evaluated.threads == 1


def test_two_are_evaluated_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            both.wait()
        return nn.functional.cross_entropy(output, labels)

    waiting = Task(nn.Linear(6, 3), data(), loss).build(1)
    evaluated = Crew(waiting, 2)
    evaluated._alone = [1.0] * 3
    values = evaluated.evaluate(requests(waiting, 2))
    assert all(isinstance(value, torch.Tensor) for value in values)
    evaluated.end()
