"""Local update rules and schedules against torch.optim, which defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.algorithms.recursions import rules
from tests.algorithms.recursions.local import local_sgd
from tests.algorithms.recursions.quadratics import Quadratics

SAME: dict[str, tuple[Callable[[], rules.Rule], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "plain": (rules.SGD, torch.optim.SGD, {}),
    "heavy ball": (lambda: rules.SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "dampened": (
        lambda: rules.SGD(momentum=0.9, dampening=0.3),
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.3},
    ),
    "Nesterov with decay": (
        lambda: rules.SGD(momentum=0.8, nesterov=True, weight_decay=0.05),
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    ),
    "AdamW": (rules.AdamW, torch.optim.AdamW, {}),
    "AdamW, other constants": (
        lambda: rules.AdamW(betas=(0.8, 0.95), epsilon=1e-3, weight_decay=0.2),
        torch.optim.AdamW,
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_rule_is_that_of_torch(name: str) -> None:
    make, optimiser, keywords = SAME[name]
    problem = Quadratics(1, 5, ripple=1.0)
    rule, x = make(), problem.x0
    parameter = torch.nn.Parameter(torch.tensor(problem.x0))
    other = optimiser([parameter], lr=0.1, **keywords)
    for t in range(12):
        step = 0.1 / (1 + t)
        x = rule.step(x, problem.gradient(0, x, t), step)
        other.param_groups[0]["lr"] = step
        parameter.grad = torch.tensor(problem.gradient(0, parameter.detach().numpy(), t))
        other.step()
        np.testing.assert_allclose(x, parameter.detach().numpy(), rtol=0, atol=1e-12)


def torch_schedule(after: Callable[[Any], Any], warm_up: int, steps: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=0.25, total_iters=warm_up)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, after(optimiser)], [warm_up])
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return seen


def test_warm_up_and_cosine_are_those_of_torch() -> None:
    def after(optimiser: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=15, eta_min=0.01)

    ours = rules.warm_up_then_cosine(0.4, 5, 20, start=0.25, final=0.01)
    np.testing.assert_allclose([ours(t) for t in range(21)], torch_schedule(after, 5, 21), atol=1e-14)
    assert (ours(0), ours(5), ours(20)) == (0.1, 0.4, 0.01)


def test_warm_up_and_steps_are_those_of_torch() -> None:
    def after(optimiser: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimiser, step_size=4, gamma=0.5)

    ours = rules.warm_up_then_steps(0.4, 5, 4, factor=0.5, start=0.25)
    np.testing.assert_allclose([ours(t) for t in range(20)], torch_schedule(after, 5, 20), atol=1e-14)


@pytest.mark.parametrize("make", [lambda: rules.SGD(momentum=0.9), rules.AdamW], ids=["momentum", "AdamW"])
def test_what_becomes_of_the_state_at_an_average(make: Callable[[], rules.Rule]) -> None:
    """By hand: two workers, one average between two rounds of one step."""
    problem = Quadratics(2, 3)
    both = [make(), make()]
    x = [both[i].step(problem.x0, problem.gradient(i, problem.x0, 0), 0.1) for i in range(2)]
    start = (x[0] + x[1]) / 2
    gradients = [problem.gradient(i, start, 1) for i in range(2)]
    states = [dict(rule.state) for rule in both]
    expected = {}
    expected["local"] = [both[i].step(start, gradients[i], 0.1) for i in range(2)]

    between = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    for rule in both:
        rule.state = dict(between)
        if isinstance(rule, rules.AdamW):
            rule.k = 1
    expected["averaged"] = [both[i].step(start, gradients[i], 0.1) for i in range(2)]
    expected["reset"] = [make().step(start, gradients[i], 0.1) for i in range(2)]
    seen = []
    for convention in ("local", "averaged", "reset"):
        models = local_sgd(problem.gradient, problem.x0, 0.1, 2, 2, period=1, rule=make, state=convention)
        seen.append(models[0])
        np.testing.assert_allclose(models[0], sum(expected[convention]) / 2, rtol=0, atol=1e-12)
    # Momentum is linear, so that one step after an average local and averaged states give the same mean.
    assert np.abs(seen[0] - seen[2]).max() > 1e-4
    assert (np.abs(seen[0] - seen[1]).max() > 1e-6) == (make is rules.AdamW)


def test_warm_up_starts_at_a_third_as_in_torch() -> None:
    schedules = (
        rules.linear_warm_up(0.3, 4),
        rules.warm_up_then_cosine(0.3, 4, 9),
        rules.warm_up_then_steps(0.3, 4, 2),
    )
    for schedule in schedules:
        np.testing.assert_allclose([schedule(t) for t in (0, 2, 4)], [0.1, 0.2, 0.3], rtol=0, atol=1e-15)
