"""Update rules against torch.optim, schedules against torch's and closed forms, and what a state costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    SequentialLR,
    StepLR,
)

from algorithms import Phantom
from simulator.engine.simulate import simulate
from simulator.parts import BadInput
from simulator.scenario import Scenario
from simulator.schedules import Constant, Cosine, Linear, MultiStep, Schedule, Step, step_sizes
from simulator.update import AdamW, Momentum, Nesterov, Rule, Sgd, UpdateRule

STEP, UPDATES, SIZE = 0.1, 12, 37
BOUNDS = ((20, 37), (5, 20), (0, 5))

TORCH: dict[str, tuple[Rule, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (Sgd(), lambda p: torch.optim.SGD(p, lr=STEP)),
    "weight decay": (Sgd(weight_decay=1e-2), lambda p: torch.optim.SGD(p, lr=STEP, weight_decay=1e-2)),
    "momentum": (Momentum(momentum=0.8), lambda p: torch.optim.SGD(p, lr=STEP, momentum=0.8)),
    "momentum 0": (Momentum(momentum=0.0), lambda p: torch.optim.SGD(p, lr=STEP)),
    "momentum, decay": (
        Momentum(weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=STEP, momentum=0.9, weight_decay=1e-3),
    ),
    "nesterov": (Nesterov(), lambda p: torch.optim.SGD(p, lr=STEP, momentum=0.9, nesterov=True)),
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p, lr=STEP)),
    "adamw, other numbers": (
        AdamW(weight_decay=0.0, betas=(0.8, 0.95), epsilon=1e-6),
        lambda p: torch.optim.AdamW(p, lr=STEP, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0),
    ),
}


def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return random gradients, each with a zero and a minus zero."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(SIZE, generator=generator, dtype=dtype) for _ in range(UPDATES)]
    for gradient in drawn:
        gradient[3], gradient[4] = 0.0, -0.0
    return drawn


def by_torch(
    make: Callable[[Any], torch.optim.Optimizer],
    dtype: torch.dtype,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
) -> tuple[list[torch.Tensor], torch.optim.Optimizer, torch.nn.Parameter]:
    """Return the model after each update by torch's own optimiser."""
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, SIZE, dtype=dtype))
    optimizer = make([parameter])
    schedule = scheduler(optimizer) if scheduler else None
    models = []
    for gradient in gradients(dtype):
        parameter.grad = gradient
        optimizer.step()
        if schedule:
            schedule.step()
        models.append(parameter.detach().clone())
    return models, optimizer, parameter


def step(
    rule: UpdateRule, x: Any, gradient: Any, bounds: Sequence[tuple[int, int]] = (), iteration: int = 1
) -> Any:
    return rule.apply(x, gradient, bounds, rule.step_size(iteration))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", TORCH)
def test_a_rule_has_the_bits_of_torch_optim(name: str, cut: bool, dtype: torch.dtype) -> None:
    rule, make = TORCH[name]
    expected, optimizer, parameter = by_torch(make, dtype)
    own = UpdateRule(rule, STEP, UPDATES)
    x = torch.linspace(-1, 1, SIZE, dtype=dtype)
    for gradient, after in zip(gradients(dtype), expected, strict=True):
        before, given = x.clone(), gradient.clone()
        moved = step(own, x, [gradient[low:high] for low, high in BOUNDS] if cut else gradient, BOUNDS)
        assert same(moved, after)
        assert same(x, before), "the argument has changed"
        assert same(gradient, given), "the gradient has changed"
        x = moved
    kept = [
        optimizer.state[parameter][key]
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq")
        if optimizer.state[parameter].get(key) is not None
    ]
    assert len(kept) == rule.state_vectors
    assert own.state is None if not kept else same(own.state, torch.cat(kept))


SCHEDULED: dict[str, tuple[Schedule, Callable[[torch.optim.Optimizer], Any]]] = {
    "linear": (Linear(final=0.25), lambda o: LinearLR(o, 1.0, 0.25, total_iters=UPDATES)),
    "cosine": (Cosine(final=0.1), lambda o: CosineAnnealingLR(o, UPDATES, eta_min=0.1 * STEP)),
    "step": (Step(factor=0.5, every=5), lambda o: StepLR(o, 5, 0.5)),
    "multi-step": (MultiStep(milestones=(2, 7)), lambda o: MultiStepLR(o, [2, 7], 0.1)),
    "warm-up": (
        Constant(warm_up=3),
        lambda o: SequentialLR(o, [LinearLR(o, 0.25, total_iters=3), ConstantLR(o, 1.0, 0)], [3]),
    ),
    "warm-up and cosine": (
        Cosine(warm_up=4),
        lambda o: SequentialLR(o, [LinearLR(o, 0.2, total_iters=4), CosineAnnealingLR(o, UPDATES - 4)], [4]),
    ),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_has_the_bits_of_torchs(name: str) -> None:
    schedule, scheduler = SCHEDULED[name]
    rule = Nesterov(schedule=schedule)
    expected, _, _ = by_torch(
        lambda p: torch.optim.SGD(p, lr=STEP, momentum=0.9, nesterov=True), torch.float64, scheduler
    )
    own = UpdateRule(rule, STEP, UPDATES)
    x = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    for iteration, (gradient, after) in enumerate(
        zip(gradients(torch.float64), expected, strict=True), start=1
    ):
        x = step(own, x, gradient, iteration=iteration)
        assert same(x, after)


class TestSchedules:
    """Closed forms, beside torch."""

    def test_without_a_schedule_the_step_size_is_untouched(self) -> None:
        assert step_sizes(Constant(), 0.1, 1000) == (0.1,)

    def test_warm_up_rises_in_equal_steps_to_exactly_the_whole(self) -> None:
        sizes = step_sizes(Constant(warm_up=4), 0.1, 8)
        assert sizes[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08], rel=1e-14)
        assert sizes[4:] == (0.1,) * 5

    def test_a_warm_up_longer_than_the_budget_is_cut(self) -> None:
        sizes = step_sizes(Constant(warm_up=9), 1.0, 3)
        assert sizes == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-14)

    def test_cosine_fills_what_the_warm_up_leaves(self) -> None:
        sizes = step_sizes(Cosine(warm_up=2, final=0.2), 2.0, 10)
        expected = [0.4 + 0.8 * (1 + math.cos(math.pi * t / 8)) for t in range(9)]
        assert sizes[2:] == pytest.approx(expected, rel=1e-13)

    def test_linear_falls_in_equal_steps(self) -> None:
        sizes = step_sizes(Linear(), 1.0, 4)
        assert sizes == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0], abs=1e-15)

    def test_milestones_count_from_the_start_and_steps_from_the_end_of_the_warm_up(self) -> None:
        sizes = step_sizes(MultiStep(warm_up=2, milestones=(4, 5), factor=0.5), 1.0, 6)
        assert sizes[2:] == pytest.approx([1, 1, 0.5, 0.25, 0.25], rel=1e-15)
        sizes = step_sizes(Step(warm_up=2, every=2, factor=0.5), 1.0, 6)
        assert sizes[2:] == pytest.approx([1, 1, 0.5, 0.5, 0.25], rel=1e-15)

    def test_a_span_takes_the_place_of_the_budget(self) -> None:
        assert step_sizes(Cosine(span=20), 0.1, 10) == step_sizes(Cosine(), 0.1, 20)

    def test_beyond_the_budget_the_last_step_size_stays(self) -> None:
        rule = UpdateRule(Sgd(schedule=Linear(final=0.5)), 1.0, 2)
        sizes = [rule.step_size(iterations) for iterations in range(6)]
        # Before its first iteration a worker has the step size of that one.
        assert sizes == [1.0, 1.0, 0.75, 0.5, 0.5, 0.5]


class TestState:
    x = torch.zeros(3)
    g = torch.tensor([1.0, -2.0, 4.0])

    def test_it_is_read_as_a_copy(self) -> None:
        rule = UpdateRule(Momentum(), STEP, 9)
        assert rule.state is None
        step(rule, self.x, self.g)
        first = rule.state
        assert isinstance(first, torch.Tensor)
        step(rule, self.x, self.g)
        assert first.tolist() == [1.0, -2.0, 4.0]
        assert rule.state.tolist() == pytest.approx([1.9, -3.8, 7.6])

    def test_it_is_replaced_by_a_copy(self) -> None:
        rule, given = UpdateRule(Momentum(momentum=0.5), 1.0, 9), torch.tensor([2.0, 0.0, 0.0])
        rule.set_state(given)
        assert step(rule, self.x, self.g).tolist() == [-2.0, 2.0, -4.0]
        assert given.tolist() == [2.0, 0.0, 0.0]

    @pytest.mark.parametrize("rule", [Momentum(), Nesterov(), AdamW()])
    def test_none_starts_anew_but_for_the_schedule(self, rule: Rule) -> None:
        used, fresh = UpdateRule(rule, STEP, 9), UpdateRule(rule, STEP, 9)
        for _ in range(3):
            step(used, self.x, -self.g)
        used.set_state(None)
        assert used.state is None
        assert same(step(used, self.x, self.g), step(fresh, self.x, self.g))

    def test_reading_and_setting_back_changes_nothing(self) -> None:
        one, other = UpdateRule(AdamW(), STEP, 9), UpdateRule(AdamW(), STEP, 9)
        for _ in range(3):
            step(one, self.x, self.g)
            step(other, self.x, self.g)
            other.set_state(other.state)
            assert same(step(one, self.x, -self.g), step(other, self.x, -self.g))

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            (Sgd(), "which keeps 0 vectors of 3 elements"),
            (Momentum(), "which keeps 1 vectors of 3 elements"),
            (AdamW(), "which keeps 2 vectors of 3 elements"),
        ],
    )
    def test_one_that_does_not_fit_is_refused(self, rule: Rule, message: str) -> None:
        used = UpdateRule(rule, STEP, 9)
        used.set_state(torch.zeros(5))
        with pytest.raises(ValueError) as caught:
            step(used, self.x, self.g)
        assert str(caught.value) == f"a state of 5 elements does not fit the update rule, {message}"

    def test_without_numerics_it_is_a_phantom_of_its_size(self) -> None:
        rule, x = UpdateRule(AdamW(), None, 9), Phantom((7,), 2)
        assert rule.state is None
        assert rule.step_size(1) == 1.0
        assert step(rule, x, x) is x
        assert isinstance(rule.state, Phantom)
        assert rule.state.shape == (14,)
        assert rule.state.nbytes == 28
        plain = UpdateRule(Sgd(), None, 9)
        step(plain, x, x)
        assert plain.state is None


def timing(update: object, algorithm: object = "allreduce-sgd", **more: Any) -> Scenario:
    return Scenario(
        {
            "name": "timing",
            "cluster": {"topology": {"builder": "switch", "gpus": 2}, "device": "gtx-1080-ti"},
            "workload": {"cost": {"model": "resnet18-cifar", "batch": 8}},
            "algorithm": algorithm,
            "update": update,
            "budget": {"iterations": 4},
            **more,
        }
    )


@pytest.mark.parametrize(("rule", "vectors"), [("sgd", 0), ("momentum", 1), ("nesterov", 1), ("adamw", 2)])
def test_passes_memory_and_messages_of_a_state(rule: str, vectors: int) -> None:
    averaged = {"state": "averaged"} if vectors else {}
    chosen = timing(rule, {"name": "local-sgd", "period": 2, **averaged})
    run = simulate(chosen)
    nbytes = chosen.cost.parameters * chosen.cost.parameter_bytes
    seconds = {round(s.end - s.start, 12) for s in run.timeline if s.operation == "update"}
    assert seconds == {round((3 + 2 * vectors) * nbytes / 484e9, 12)}
    assert run.peak_memory() - simulate(timing("sgd", "local-sgd")).peak_memory() == vectors * nbytes
    # Two averages, of model and state; each of two workers sends 2 (n - 1)/n = 1 of every vector.
    assert run.bytes_sent == pytest.approx((2 * (1 + vectors) * nbytes,) * 2)


@pytest.mark.parametrize("state", ["local", "reset"])
def test_only_an_averaged_state_is_sent(state: str) -> None:
    plain = simulate(timing("sgd", "local-sgd"))
    kept = simulate(timing("momentum", {"name": "local-sgd", "state": state}))
    assert kept.bytes_sent == plain.bytes_sent


def test_an_algorithm_that_refuses_momentum(tmp_path: Path) -> None:
    (tmp_path / "plain_only.py").write_text(
        "from algorithms import Algorithm\n\n\nclass PlainOnly(Algorithm):\n    momentum = 'refused'\n"
    )
    name = "plain_only.py:PlainOnly"
    data = timing("sgd")._data

    def made(**keys: object) -> Scenario:
        return Scenario({**data, **keys}, folder=tmp_path)

    assert made(algorithm=name, update={"rule": "momentum", "momentum": 0.0}).uncovered is None
    for keys in ({"algorithm": name}, {"compare": [name]}):
        with pytest.raises(BadInput) as caught:
            made(**keys, update="adamw")
        assert str(caught.value) == f"update.rule: {name} is built on plain steps, not on 'adamw'; use 'sgd'"


def test_what_the_theory_does_not_cover_is_said() -> None:
    assert timing("sgd", "local-sgd").uncovered is None
    assert timing({"rule": "sgd", "weight-decay": 0.1}, "local-sgd").uncovered is None
    assert timing("adamw", "allreduce-sgd").uncovered is None
    assert timing("adamw", "cocod-sgd").uncovered == (
        "the theory covers plain SGD, not the update rule 'adamw'."
    )


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    """Sign descent: a dataclass with ``apply`` in a file beside the scenario."""
    (tmp_path / "sign_rule.py").write_text(
        "from dataclasses import dataclass\n"
        "from simulator.update import Rule\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Sign(Rule):\n"
        "    scale: float = 1.0\n\n"
        "    def apply(self, x, gradient, state, begun, step_size):\n"
        "        x.sub_(gradient.sign(), alpha=step_size * self.scale)\n"
    )
    objective = {"kind": "scalar-quadratics", "curvatures": [1.0, 1.0], "centres": [5.0, 5.0]}
    data = {**timing("sgd")._data, "step-size": 0.25, "update": {"rule": "sign_rule.py:Sign", "scale": 2.0}}
    data["workload"] = {**data["workload"], "objective": objective}
    scenario = Scenario(data, folder=tmp_path)
    assert scenario.resolved()["update"]["scale"] == 2.0
    assert "sign_rule.py" in scenario.files()
    start = scenario.objective.initial_model().item()  # type: ignore[union-attr]  # there is one
    models = simulate(scenario).models
    assert models is not None
    assert abs(models[:, 0] - start).tolist() == [2.0, 2.0]


def test_a_shortened_scenario_has_the_same_step_sizes() -> None:
    base = timing(
        {"rule": "momentum", "schedule": {"kind": "cosine"}}, budget={"iterations": 40}, **numeric()
    )
    short = base.shortened(10)
    assert short.sections.budget.iterations == 10
    whole = step_sizes(base.update.schedule, 0.1, 40)
    assert step_sizes(short.update.schedule, 0.1, 10) == whole
    constant = timing("sgd", budget={"iterations": 40}).shortened(10)
    assert constant.resolved() == timing("sgd", budget={"iterations": 10}).resolved()


def numeric() -> dict[str, Any]:
    cost = {"model": "resnet18-cifar", "batch": 8}
    return {
        "workload": {"cost": cost, "objective": {"kind": "quadratic", "dimension": 3}},
        "step-size": 0.1,
    }


def test_a_written_rule_reads_back() -> None:
    for rule in (
        AdamW(schedule=MultiStep(warm_up=1, milestones=[2, 3])),  # type: ignore[arg-type]  # a list is fine
        Nesterov(momentum=0.5, weight_decay=0.25, schedule=Cosine(final=0.5, span=9)),
    ):
        written = timing(rule, **numeric()).resolved()
        assert Scenario(written).update == rule


@pytest.mark.parametrize("rule", [Momentum(), AdamW()], ids=["momentum", "adamw"])
def test_a_state_that_is_restored_goes_on_as_if_never_stopped(rule: Rule) -> None:
    """AdamW's correction of its bias needs the count of updates too."""
    drawn = gradients(torch.float32)
    x = torch.linspace(-1, 1, SIZE)
    whole, first = (UpdateRule(rule, STEP, UPDATES) for _ in range(2))
    expected = x
    for gradient in drawn:
        expected = whole.apply(expected, gradient, (), STEP)
    for gradient in drawn[:5]:
        x = first.apply(x, gradient, (), STEP)
    second = UpdateRule(rule, STEP, UPDATES)
    second.restore(first.state, first.seen)
    for gradient in drawn[5:]:
        x = second.apply(x, gradient, (), STEP)
    assert torch.equal(x, expected)
