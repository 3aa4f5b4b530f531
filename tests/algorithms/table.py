"""The algorithms whose models do not depend on timing, each beside the recursion that it is held to.

Card 1 of the algorithms: synchronous, local and decentralised SGD. The asynchronous ones, which are replayed
event by event, are in `test_events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.algorithms.recursions import decentralised, local, rules, servers, synchronous
from tests.algorithms.recursions.notation import Array, Gradient, StepSize
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.recursions.rules import SGD, AdamW, MakeRule
from tests.algorithms.training import RULES, STEP, assert_equal, models, scenario, simulate

RECURSIVE_RULES: Mapping[str, MakeRule] = {
    "nesterov": lambda: SGD(momentum=0.7, nesterov=True, weight_decay=0.05),
    "adamw": AdamW,
}
"""What `tests.algorithms.training.RULES` are, in NumPy."""
WARM_UP_AND_COSINE: Mapping[str, Any] = {
    "rule": "sgd",
    "schedule": {"kind": "cosine", "warm-up": 3, "final": 0.1},
}


@dataclass(frozen=True)
class Problem:
    """What a recursion is given: everything but the rule of the algorithm.

    Attributes
    ----------
    W
        The mixing matrix; of no size where there is no graph.
    shares
        None where all are equal.
    """

    gradient: Gradient
    x0: Array
    step: StepSize
    workers: int
    steps: int
    W: Array
    shares: Sequence[float] | None
    rule: MakeRule

    @property
    def start(self) -> tuple[Gradient, Array, StepSize]:
        return self.gradient, self.x0, self.step

    @property
    def common(self) -> tuple[Gradient, Array, StepSize, int, int]:
        return self.gradient, self.x0, self.step, self.workers, self.steps


@dataclass(frozen=True)
class Case:
    """An algorithm with its settings, and the recursion that must give the same models.

    Attributes
    ----------
    settings
        As a scenario has them.
    recursion
        Returns the models, [workers, d].
    steps
        Iterations, whole rounds of them.
    gossip
        The section of the scenario, where there is a graph.
    rules
        Whether it goes with any local update rule.
    shares
        Whether batches may differ, and its means are weighted by them.
    """

    name: str
    recursion: Callable[[Problem], Array]
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 12
    gossip: Mapping[str, Any] | None = None
    rules: bool = True
    shares: bool = True
    workers: tuple[int, ...] = (1, 2, 3, 4, 8)

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in self.settings.items()]
        words += [str(value) for value in (self.gossip or {}).values()]
        return " ".join([self.name, *words])

    @property
    def usual(self) -> int:
        """Where one number of workers must do."""
        return 4 if 4 in self.workers else self.workers[-1]

    def algorithm(self, rule: str | None = None) -> dict[str, Any]:
        """Return it as a scenario has it; plain SGD has no state that a setting could be about."""
        kept = {key: value for key, value in self.settings.items() if rule or key != "state"}
        return {"name": self.name, **kept}

    def hold(
        self,
        workers: int,
        *,
        rule: str | None = None,
        schedule: bool = False,
        slow: Mapping[int, float] | None = None,
        dimension: int = 5,
        **changes: Any,
    ) -> None:
        """Assert that the simulated models are those of the recursion, to 1e-12."""
        problem = Quadratics(workers, dimension, seed=workers, ripple=0.4)
        update = RULES[rule] if rule else WARM_UP_AND_COSINE if schedule else None
        if self.gossip is not None:
            changes["gossip"] = self.gossip if workers > 2 else {**self.gossip, "graph": "complete"}
        made = scenario(self.algorithm(rule), problem, self.steps, update=update, slow=slow, **changes)
        cosine = rules.warm_up_then_cosine(STEP, 3, self.steps, start=1 / 4, final=0.1 * STEP)
        given = Problem(
            problem.gradient,
            problem.x0,
            cosine if schedule else STEP,
            workers,
            self.steps,
            made.mixing if self.gossip is not None else np.eye(0),
            made.shares,
            RECURSIVE_RULES[rule] if rule else SGD,
        )
        assert_equal(models(simulate(made)), self.recursion(given))


def allreduce_sgd(p: Problem) -> Array:
    return synchronous.s_sgd(*p.common, shares=p.shares, rule=p.rule)


def pipe_sgd(width: int) -> Callable[[Problem], Array]:
    return lambda p: synchronous.pipe_sgd(*p.common, depth=width, shares=p.shares, rule=p.rule)


def parameter_server(count: int) -> Callable[[Problem], Array]:
    def recursion(p: Problem) -> Array:
        d = len(p.x0)
        cuts = [d * k // count for k in range(count + 1)]
        shards = [np.arange(cuts[k], cuts[k + 1]) for k in range(count)]
        return servers.synchronous_server(*p.common, shards=shards, shares=p.shares, rule=p.rule)

    return recursion


def local_sgd(period: int, state: Any = "local") -> Callable[[Problem], Array]:
    return lambda p: local.local_sgd(*p.common, period=period, shares=p.shares, rule=p.rule, state=state)


def cocod_sgd(period: int) -> Callable[[Problem], Array]:
    return lambda p: local.cocod_sgd(*p.common, period=period, shares=p.shares, rule=p.rule)


def overlap_local_sgd(period: int, alpha: float = 0.6, beta: float = 0.7) -> Callable[[Problem], Array]:
    return lambda p: local.overlap_local_sgd(
        *p.common, period=period, alpha=alpha, beta=beta, shares=p.shares, rule=p.rule
    )[0]


def slowmo(
    period: int, alpha: float = 1.0, beta: float = 0.5, state: Any = "reset"
) -> Callable[[Problem], Array]:
    return lambda p: synchronous.slowmo(
        *p.common, period=period, alpha=alpha, beta=beta, shares=p.shares, rule=p.rule, state=state
    )


def vrl_sgd(period: int) -> Callable[[Problem], Array]:
    return lambda p: local.vrl_sgd(*p.common, period=period, shares=p.shares)[0]


def easgd(period: int, alpha: float = 0.1) -> Callable[[Problem], Array]:
    return lambda p: local.easgd_round_synchronous(*p.common, period=period, alpha=alpha, rule=p.rule)[0]


def diloco(period: int, step: float = 0.7, momentum: float = 0.9) -> Callable[[Problem], Array]:
    return lambda p: local.diloco(
        *p.common,
        period=period,
        inner=p.rule,
        outer_step=step,
        outer_momentum=momentum,
        shares=p.shares,
    )


def streaming_diloco(
    period: int, parts: int, delay: int, merge: float, step: float = 0.7, momentum: float = 0.9
) -> Callable[[Problem], Array]:
    def recursion(p: Problem) -> Array:
        cuts = [len(p.x0) * k // parts for k in range(parts + 1)]
        return local.streaming_diloco(
            *p.common,
            period=period,
            fragments=[np.arange(cuts[k], cuts[k + 1]) for k in range(parts)],
            delay=delay,
            alpha=merge,
            inner=p.rule,
            outer_step=step,
            outer_momentum=momentum,
            shares=p.shares,
        )[0]

    return recursion


def d_psgd(order: Any) -> Callable[[Problem], Array]:
    return lambda p: decentralised.d_psgd(*p.start, p.W, p.steps, order=order, rule=p.rule)


def d2(lazy: bool) -> Callable[[Problem], Array]:
    return lambda p: decentralised.d2(
        *p.start, (p.W + np.eye(p.workers)) / 2 if lazy else p.W, p.steps, form="safe"
    )


def choco_sgd(gamma: float) -> Callable[[Problem], Array]:
    return lambda p: decentralised.choco_sgd(*p.start, p.W, p.steps, gamma=gamma, rule=p.rule)


def sgp(peers: str, delay: int) -> Callable[[Problem], Array]:
    def recursion(p: Problem) -> Array:
        def push(t: int) -> Array:
            if peers == "one":
                return decentralised.one_peer_exponential(p.workers, t)
            return decentralised.static_exponential(p.workers)

        if delay:
            x, w, *_ = decentralised.overlap_sgp(*p.start, push, p.steps, delay=delay, rule=p.rule)
        else:
            x, w = decentralised.sgp(*p.start, push, p.steps, rule=p.rule)
        return x / w[:, None]

    return recursion


def streaming(period: int, parts: int, delay: int, merge: float, **outer: float) -> Case:
    settings = {"period": period, "fragments": parts, "delay": delay, "merge": merge}
    if outer:
        settings |= {"outer-step": outer["step"], "outer-momentum": outer["momentum"]}
    return Case("streaming-diloco", streaming_diloco(period, parts, delay, merge, **outer), settings)


def gossiping(name: str, recursion: Callable[[Problem], Array], graph: str, mixing: str, **more: Any) -> Case:
    return Case(
        name,
        recursion,
        gossip={"graph": graph, "mixing": mixing},
        rules=name != "d2",
        shares=False,
        **more,
    )


CTA, ATC = "combine-then-adapt", "adapt-then-combine"

CASES = (
    Case("allreduce-sgd", allreduce_sgd),
    Case("allreduce-sgd", allreduce_sgd, {"overlap": False}),
    *(Case("pipe-sgd", pipe_sgd(width), {"width": width}) for width in (1, 2, 4, 20)),
    Case("parameter-server", parameter_server(1)),
    Case("parameter-server", parameter_server(2), {"servers": 2}, workers=(2, 3, 4, 8)),
    Case("parameter-server", parameter_server(3), {"servers": 3}, workers=(3, 4, 8)),
    Case("parameter-server", parameter_server(8), {"servers": 8}, workers=(8,)),  # more than elements
    *(Case("local-sgd", local_sgd(k), {"period": k}) for k in (1, 3, 12)),
    Case("local-sgd", local_sgd(3, "averaged"), {"period": 3, "state": "averaged"}),
    Case("local-sgd", local_sgd(3, "reset"), {"period": 3, "state": "reset"}),
    *(Case("cocod-sgd", cocod_sgd(k), {"period": k}) for k in (1, 3, 6)),
    Case("cocod-sgd", cocod_sgd(3), {"period": 3, "first-all-reduce": False}),
    Case("overlap-local-sgd", overlap_local_sgd(3), {"period": 3}),
    Case(
        "overlap-local-sgd",
        overlap_local_sgd(2, 0.3, 0.0),
        {"period": 2, "pull": 0.3, "anchor-momentum": 0.0},
    ),
    Case(
        "overlap-local-sgd",
        overlap_local_sgd(1, 1.0, 0.4),
        {"period": 1, "pull": 1.0, "anchor-momentum": 0.4},
    ),
    Case("slowmo", slowmo(3), {"period": 3}),
    Case(
        "slowmo",
        slowmo(2, 0.8, 0.7, "local"),
        {"period": 2, "slow-step": 0.8, "slow-momentum": 0.7, "state": "local"},
    ),
    Case(
        "slowmo",
        slowmo(1, 0.9, 0.0, "averaged"),
        {"period": 1, "slow-step": 0.9, "slow-momentum": 0.0, "state": "averaged"},
    ),
    *(Case("vrl-sgd", vrl_sgd(k), {"period": k}, rules=False) for k in (1, 3, 4)),
    Case("easgd", easgd(3), {"period": 3, "rounds": "synchronous"}, shares=False),
    Case(
        "easgd",
        easgd(2, 0.2),
        {"period": 2, "elasticity": 0.2, "rounds": "synchronous"},
        shares=False,
    ),
    Case("diloco", diloco(3), {"period": 3}),
    Case("diloco", diloco(2, 0.5, 0.6), {"period": 2, "outer-step": 0.5, "outer-momentum": 0.6}),
    Case("diloco", diloco(4, 0.9, 0.0), {"period": 4, "outer-step": 0.9, "outer-momentum": 0.0}),
    streaming(4, 2, 1, 0.5),
    streaming(6, 3, 3, 0.25, step=0.6, momentum=0.5),
    streaming(4, 4, 3, 0.0),
    streaming(3, 1, 0, 0.0, step=0.8, momentum=0.0),
    streaming(8, 8, 0, 1.0),  # more fragments than elements
    gossiping("d-psgd", d_psgd(CTA), "ring", "uniform"),
    gossiping("d-psgd", d_psgd(ATC), "ring", "metropolis-hastings", settings={"order": ATC}),
    gossiping("d-psgd", d_psgd(CTA), "star", "metropolis-hastings"),
    gossiping("d-psgd", d_psgd(CTA), "exponential", "uniform"),
    gossiping("d-psgd", d_psgd(ATC), "exponential", "uniform", settings={"order": ATC}),
    gossiping("choco-sgd", choco_sgd(0.1), "ring", "uniform"),
    gossiping("choco-sgd", choco_sgd(0.7), "star", "metropolis-hastings", settings={"gamma": 0.7}),
    gossiping("d2", d2(True), "ring", "uniform"),
    gossiping("d2", d2(True), "star", "metropolis-hastings"),
    gossiping("d2", d2(False), "ring", "lazy-uniform", settings={"lazy": False}),
    gossiping("d2", d2(False), "complete", "uniform", settings={"lazy": False}),
    gossiping("d2", d2(False), "ring", "uniform", settings={"lazy": False}, workers=(5,)),
    *(
        Case("sgp", sgp(peers, delay), {"peers": peers, "delay": delay}, shares=False)
        for peers in ("one", "all")
        for delay in (0, 1, 3)
    ),
)
