"""Asynchronous algorithms on both clocks: what does not depend on timing holds exactly, what does agrees.

`make stress` repeats every real run 20 times (PACELINE_STRESS), and simulates all seeds of the table again.
"""

from __future__ import annotations

import os
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.engine.simulate import simulate
from simulator.execution.execute import execute
from simulator.run import Run
from simulator.scenario import Scenario

REPEATS = int(os.environ.get("PACELINE_STRESS", "1"))
SLOW = "tests.simulator.execution.slow"
WORKERS = 4
STEP = 0.125
ITERATIONS = 12

ALGORITHMS: dict[str, dict[str, Any]] = {
    "a-psgd": {"name": "a-psgd"},
    "a-psgd, three servers": {"name": "a-psgd", "servers": 3},
    "easgd": {"name": "easgd", "period": 2},
    "ad-psgd": {"name": "ad-psgd"},
    "pair-averaging": {"name": "pair-averaging"},
    "hogwild": {"name": "hogwild"},
    "asyvrsc-shared": {"name": "asyvrsc-shared", "updates": 60},
    "asyvrsc-distributed": {"name": "asyvrsc-distributed", "updates": 60},
}
STALENESS = {"a-psgd", "a-psgd, three servers", "ad-psgd", "hogwild", "asyvrsc-shared", "asyvrsc-distributed"}
"""Those that note how many foreign changes came between what an update used and the update."""


def scenario(name: str, seed: int = 1, **more: Any) -> Scenario:
    compositional = name.startswith("asyvrsc")
    objective: Any = {"kind": f"{SLOW}:SlowQuadratic", "dimension": 40, "mu": 0.5, "L": 2.0}
    # With data that differ, whoever is done last would have the last word, and the models would tell of that.
    objective.update(sigma2=4.0, zeta2=0.0)
    if compositional:
        objective = {"kind": f"{SLOW}:SlowPortfolio", "samples": 60, "assets": 8, "kappa": 2.0}
    link = {"bandwidth": "1 GB/s", "latency": "5 us"}
    return Scenario(
        {
            "name": "asynchronous",
            "cluster": {
                "topology": {
                    "builder": "two-level",
                    "hosts": 1,
                    "gpus-per-host": WORKERS,
                    "inside": link,
                    "network": link,
                },
                "device": "gtx-1080-ti",
            },
            "workload": {
                "cost": {"parameters": 40, "batch": 4, "gradient": "1 ms"},
                "objective": objective,
            },
            "algorithm": ALGORITHMS[name],
            "step-size": 2e-4 if compositional else 0.05,
            "budget": {"iterations": 120},
            "seed": seed,
            **more,
        }
    )


def final_loss(run: Run) -> float:
    """Return the loss of the best final model: a rank may be done long before the others."""
    objective = run.scenario.objective
    assert objective is not None
    assert run.models is not None
    return min(objective.loss(torch.from_numpy(model)) for model in run.models)


def executed(chosen: Scenario, ranks_left: Callable[[], list[int]]) -> Run:
    run = execute(chosen)
    assert run is not None
    assert ranks_left() == []
    return run


GOSSIP = {"ad-psgd", "pair-averaging"}
"""Those whose workers have models of their own all the time, and are judged by their average."""
BUSY = [
    {"kind": "lognormal", "sigma": 0.3},
    {"kind": "bursts", "fast": "30 ms", "slow": "10 ms", "slowdown": 1000.0},
]
"""Real ranks never keep step, and a busy machine lets each stand still for some gradients now and then."""


def settled(name: str, seed: int, **more: Any) -> Scenario:
    """Return a scenario whose final loss tells of the algorithm, and not of who was how fast."""
    if name.startswith("asyvrsc"):
        return scenario(name, seed).vary(step_size=6e-4, **more)
    return scenario(name, seed).vary(
        objective={"kind": f"{SLOW}:SlowQuadratic", "dimension": 200, "mu": 1.5, "L": 2.0, "sigma2": 40.0},
        cost={"parameters": 200, "batch": 4, "gradient": "1 ms"},
        **{"budget": {"iterations": 300}, **more},
    )


def settled_loss(name: str, run: Run) -> float:
    """Return the loss at which a run has settled; of AsyVRSC, which never settles, that of equal progress."""
    objective = run.scenario.objective
    assert objective is not None
    assert run.models is not None
    if name in GOSSIP:
        return objective.loss(torch.from_numpy(run.models.mean(0)))
    if name.startswith("asyvrsc"):
        # It converges linearly, with every update: how many there are depends on who is how fast.
        whole = objective.loss(objective.initial_model())
        updates = len(run.staleness())
        return float(whole * (final_loss(run) / whole) ** (400 / updates))
    return final_loss(run)


SETTLED: dict[str, tuple[float, float]] = {
    "a-psgd": (0.1319, 0.01336),
    "a-psgd, three servers": (0.1329, 0.01452),
    "easgd": (0.08737, 0.007013),
    "ad-psgd": (0.02656, 0.003348),
    "pair-averaging": (0.04576, 0.006933),
    "hogwild": (0.1293, 0.01181),
    "asyvrsc-shared": (0.2307, 0.001456),
    "asyvrsc-distributed": (0.2308, 0.001334),
}
"""Mean and standard deviation of the settled losses of thirty seeds; `make stress` simulates them again."""
SEEDS = range(1, 31 if REPEATS > 1 else 6)


def window(name: str) -> tuple[float, float]:
    """Return what lies within 4.5 standard deviations of the mean loss of thirty simulated seeds."""
    mean, deviation = SETTLED[name]
    return mean - 4.5 * deviation, mean + 4.5 * deviation


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_final_loss_agrees_within_the_spread_over_seeds(
    name: str, ranks_left: Callable[[], list[int]]
) -> None:
    """A real run ends where simulated ones do, and one with another step size would not.

    What is compared must not depend on who is how fast, because the two clocks differ in just that:

    - The runs go on until the loss has settled at the floor that noise, step size, averaging and staleness
      give. Earlier it tells how far a run has come, and that depends on timing: where a rank of pair
      averaging stands still for some gradients, all that pull its model meanwhile are drawn back with it. In
      simulations that end while the loss still falls (mu = 0.5, 120 iterations), such pauses alone raised it
      sevenfold on average, beyond this window in seven of ten.
    - AsyVRSC has no floor. It is compared by its convergence per update, as its epochs end when some worker
      is done, and so make fewer updates where workers differ.
    - Seeds draw samples and times, and not the problem, whose own spread would hide everything.
    - Two hundred dimensions make the floor a mean over many, which varies by a tenth between seeds.

    Thirty seeds give the standard deviation to an eighth, so that what is the same fails in a run of ten
    thousand at most. A first window, from the range of ten seeds, was narrower (A-PSGD: 0.100 to 0.159, now
    0.072 to 0.192), and real runs of seed 3 lay outside: 0.148 to 0.181 in nine. They are right: where ranks
    hardly pause, the simulation of seed 3 gives 0.148 to 0.182 as well, by its samples. A lost or repeated
    update does not show at a floor; the tests below count updates exactly.
    """
    low, high = window(name)
    losses = [settled_loss(name, simulate(settled(name, seed, stragglers=BUSY))) for seed in SEEDS]
    assert all(low <= loss <= high for loss in losses)
    if REPEATS > 1:
        found = statistics.fmean(losses), statistics.stdev(losses)
        assert found == pytest.approx(SETTLED[name], rel=1e-3)
    for seed in (1, 2):
        other = settled(name, seed, stragglers=BUSY)
        doubled = settled_loss(name, simulate(other.vary(step_size=2 * (other.step_sizes[0] or 0.0))))
        assert not low <= doubled <= high
    for repeat in range(REPEATS):
        run = executed(settled(name, 1 + repeat % 5), ranks_left)
        assert low <= settled_loss(name, run) <= high


@pytest.mark.parametrize(
    "codec",
    [{"codec": "top-k", "density": 0.25}, {"codec": "random-k", "density": 0.4}, {"codec": "qsgd"}],
    ids=lambda codec: codec["codec"],
)
def test_servers_take_compressed_pushes(codec: Any, ranks_left: Callable[[], list[int]]) -> None:
    for _ in range(REPEATS):
        chosen = scenario("a-psgd, three servers").vary(compression=codec)
        run = executed(chosen, ranks_left)
        assert run.models is not None
        assert run.iterations == (120,) * WORKERS
        assert (run.models == run.models[0]).all()
        assert final_loss(run) < 0.5 * run.samples.loss[0]
        # Models come back as they are, gradients go out smaller; a server's own worker sends nothing.
        elements = 40
        pulled = (WORKERS - 1) * elements * 121
        assert sum(run.bytes_sent) > 8 * pulled
        assert sum(run.bytes_sent) < 8 * (pulled + 0.8 * (WORKERS - 1) * elements * 120)


@pytest.mark.parametrize("name", sorted(STALENESS))
def test_staleness_is_measured_on_both_clocks(name: str, ranks_left: Callable[[], list[int]]) -> None:
    for run in (simulate(scenario(name)), executed(scenario(name), ranks_left)):
        staleness = [noted.value for noted in run.observations if noted.name == "staleness"]
        assert len(staleness) >= 0.9 * sum(run.iterations) or name.startswith("asyvrsc")
        assert min(staleness) >= 0
        assert 0 < statistics.fmean(staleness) < 3 * WORKERS
        assert run.summary()["observed"]["staleness"]["count"] == len(staleness)


CONSTANT = """
    from dataclasses import dataclass

    import torch

    from simulator.workload.objective import Objective, Oracle


    @dataclass(frozen=True)
    class Constant:
        def build(self, seed):
            return ConstantObjective()


    class ConstantObjective(Objective):
        name, parameters, dtype = "constant gradients", 6, torch.float64

        def initial_model(self):
            return torch.zeros(6, dtype=torch.float64)

        def loss(self, x):
            return float(x.sum())

        def gradient_norm(self, x):
            return 1.0

        def oracle(self, rank, shares, batch, seed):
            return ConstantOracle(self, rank)


    class ConstantOracle(Oracle):
        def __init__(self, objective, rank):
            super().__init__(objective)
            self.rank = rank

        def gradient(self, x):
            return torch.arange(6, dtype=torch.float64) + 8 * self.rank * DIFFERENT

        full_gradient = gradient
"""
"""Gradients that do not depend on the model: whole numbers, so that sums are exact in any order."""


def constant(name: str, folder: Path, alike: bool = False) -> Scenario:
    """Return a scenario of constant gradients, which differ between workers unless they are alike."""
    file = folder / f"constant_{folder.name}.py"
    file.write_text(textwrap.dedent(CONSTANT) + f"\n\nDIFFERENT = {not alike}\n")
    data = scenario(name)._data
    workload = {
        "cost": {"parameters": 6, "batch": 1, "gradient": "1 ms"},
        "objective": f"{file.name}:Constant",
    }
    budget = {"iterations": ITERATIONS}
    return Scenario({**data, "workload": workload, "step-size": STEP, "budget": budget}, folder=folder)


def gradients() -> np.ndarray[Any, Any]:
    """Return the gradient of each worker."""
    return np.arange(6)[None, :] + 8.0 * np.arange(WORKERS)[:, None]


@pytest.mark.parametrize("name", ["a-psgd", "a-psgd, three servers"])
def test_no_push_to_a_server_is_lost(name: str, tmp_path: Path, ranks_left: Callable[[], list[int]]) -> None:
    """The last model that a server hands out has seen every gradient, each of them once."""
    chosen = constant(name, tmp_path)
    expected = -STEP * ITERATIONS * gradients().sum(0)
    for run in (simulate(chosen), *(executed(chosen, ranks_left) for _ in range(REPEATS))):
        assert run.models is not None
        # Every element falls with every push, so that the lowest value is the last one.
        np.testing.assert_array_equal(run.models.min(0)[1:], expected[1:])


def test_averaging_pairs_lose_no_update(tmp_path: Path, ranks_left: Callable[[], list[int]]) -> None:
    """The mean of all models moves by the mean of all gradients, whoever met whom."""
    chosen = constant("ad-psgd", tmp_path)
    expected = -STEP * ITERATIONS * gradients().mean(0)
    for run in (simulate(chosen), *(executed(chosen, ranks_left) for _ in range(REPEATS))):
        assert run.models is not None
        np.testing.assert_allclose(run.models.mean(0), expected, rtol=1e-14)


def test_a_pulled_model_is_one_that_its_owner_had(
    tmp_path: Path, ranks_left: Callable[[], list[int]]
) -> None:
    """With the gradients of one worker for all, models lie on a line: x = -step * a * g, with one a for all.

    A model that was read while it changed would have several. In every iteration a is halfway to that of a
    peer, plus 1, so that it ends at 2 - 2^(1 - T) or above, unless an own step was lost.
    """
    chosen = constant("pair-averaging", tmp_path, alike=True)
    for run in (simulate(chosen), *(executed(chosen, ranks_left) for _ in range(REPEATS))):
        assert run.models is not None
        steps = run.models[:, 1:] / (-STEP * np.arange(1, 6))
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), rtol=1e-13)
        assert (run.models[:, 0] == 0).all()
        assert (steps >= 2 - 2.0 ** (1 - ITERATIONS)).all()


def test_disjoint_writes_to_shared_memory_are_not_lost(
    tmp_path: Path, ranks_left: Callable[[], list[int]]
) -> None:
    """Lock-free additions of several processes may lose each other on one element, never on others."""
    from tests.simulator.execution import disjoint

    chosen = Scenario(
        {
            **scenario("hogwild")._data,
            "algorithm": f"{disjoint.__name__}:Disjoint",
            "budget": {"iterations": 50},
        }
    )
    for run in (simulate(chosen), *(executed(chosen, ranks_left) for _ in range(REPEATS))):
        assert run.models is not None
        for rank, model in enumerate(run.models):
            assert model[rank::WORKERS].tolist() == [50.0] * len(model[rank::WORKERS])


def test_reads_without_a_lock_mix_versions_for_real(ranks_left: Callable[[], list[int]]) -> None:
    """One process adds to all elements, the others read meanwhile: some reads see old and new elements."""
    from tests.simulator.execution import disjoint

    data = scenario("hogwild")._data
    size = 400_000
    workload = {
        "cost": {"parameters": size, "batch": 1, "gradient": "1 ms", "update": "1 ms"},
        "objective": {"kind": "quadratic", "dimension": size},
    }
    algorithm = {"algorithm": f"{disjoint.__name__}:Torn", "budget": {"iterations": 60}}
    chosen = Scenario({**data, "workload": workload, **algorithm})
    for run in (simulate(chosen), *(executed(chosen, ranks_left) for _ in range(REPEATS))):
        torn = [noted.value for noted in run.observations if noted.name == "versions"]
        assert len(torn) == 60 * (WORKERS - 1)
        assert max(torn) >= 2
