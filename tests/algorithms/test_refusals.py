"""Wrong use is refused before anything runs, with the reason in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from algorithms import ALGORITHMS, algorithm
from simulator.parts import BadInput
from simulator.scenario import Scenario
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.training import scenario

MOMENTUM = {"rule": "momentum"}
SWITCH = {"builder": "switch", "gpus": 4}


def made(settings: Any, workers: int = 4, **changes: Any) -> Scenario:
    return scenario(settings, Quadratics(workers, 5), 8, **changes)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "AD-PSGD on an odd ring": (
        {"settings": "ad-psgd", "workers": 5, "gossip": {"graph": "ring"}},
        "algorithm: ad-psgd needs a communication graph whose workers fall into two sets with edges between "
        "the sets only; this graph has a circle of an odd number of workers",
    ),
    "AD-PSGD on a complete graph": (
        {"settings": "ad-psgd", "workers": 3, "gossip": {"graph": "complete"}},
        "algorithm: ad-psgd needs a communication graph whose workers fall into two sets with edges between "
        "the sets only; this graph has a circle of an odd number of workers",
    ),
    "AD-PSGD on one-way streets": (
        {"settings": "ad-psgd", "workers": 4, "gossip": {"graph": "exponential"}},
        "algorithm: ad-psgd needs a communication graph whose workers fall into two sets with edges between "
        "the sets only; this graph has a circle of an odd number of workers",
    ),
    "D² on one-way streets": (
        {"settings": "d2", "gossip": {"graph": "exponential"}},
        "algorithm: d2 needs an undirected communication graph, but the edges of this one have directions",
    ),
    "CHOCO-SGD on one-way streets": (
        {"settings": "choco-sgd", "gossip": {"graph": "exponential"}},
        "algorithm: choco-sgd needs an undirected communication graph, but the edges of this one have "
        "directions",
    ),
    "D² on the limit": (
        {"settings": {"name": "d2", "lazy": False}, "gossip": {"graph": "ring"}},
        "algorithm: D2 diverges on this mixing matrix, whose smallest eigenvalue is -0.333333333333 and "
        "must be above -0.333333332333 (-1/3, and 1e-9 more for rounding); leave lazy at true, or choose "
        "another graph or mixing",
    ),
    "D² below the limit": (
        {
            "settings": {"name": "d2", "lazy": False},
            "workers": 16,
            "gossip": {"graph": {"builder": "torus", "dimensions": [4, 4]}},
        },
        "algorithm: D2 diverges on this mixing matrix, whose smallest eigenvalue is -0.600000000000 and "
        "must be above -0.333333332333 (-1/3, and 1e-9 more for rounding); leave lazy at true, or choose "
        "another graph or mixing",
    ),
    "more servers than workers": (
        {"settings": {"name": "parameter-server", "servers": 5}},
        "algorithm: there are 5 servers, but only 4 workers to host them",
    ),
    "more asynchronous servers than workers": (
        {"settings": {"name": "a-psgd", "servers": 5}},
        "algorithm: there are 5 servers, but only 4 workers to host them",
    ),
    "shared memory across machines": (
        {"settings": "hogwild", "topology": SWITCH},
        "algorithm: hogwild needs all workers on one machine, but they are on 4",
    ),
    "momentum in VRL-SGD": (
        {"settings": "vrl-sgd", "update": MOMENTUM},
        "update.rule: vrl-sgd is built on plain steps, not on 'momentum'; use 'sgd'",
    ),
    "momentum in D²": (
        {"settings": "d2", "update": {"rule": "adamw"}},
        "update.rule: d2 is built on plain steps, not on 'adamw'; use 'sgd'",
    ),
    "momentum in Hogwild": (
        {"settings": "hogwild", "update": MOMENTUM},
        "update.rule: hogwild is built on plain steps, not on 'momentum'; use 'sgd'",
    ),
    "a fragment that is late for its next turn": (
        {"settings": {"name": "streaming-diloco", "period": 4, "delay": 4}},
        "algorithm: delay must be below period, so that a fragment is merged before its "
        "next turn, got 4 and 4",
    ),
    "synchronous rounds of EASGD whose centre runs away": (
        {"settings": {"name": "easgd", "rounds": "synchronous", "elasticity": 0.4}},
        "algorithm: elasticity must be below 2 / (workers + 1) = 0.4 in synchronous rounds, or the centre "
        "runs away, got 0.4; the paper takes 0.9 / workers = 0.225",
    ),
    "mixing weights that nothing mixes with": (
        {"settings": "ad-psgd", "gossip": {"graph": "ring", "mixing": "metropolis-hastings"}},
        "gossip.mixing: 'metropolis-hastings' has no effect; ad-psgd takes the graph alone, without weights",
    ),
    "a convention for a state that is not there": (
        {"settings": {"name": "local-sgd", "state": "averaged"}},
        "algorithm.state: 'averaged' has no effect; the update rule 'sgd' keeps no state",
    ),
    "a slow momentum's convention for it": (
        {"settings": {"name": "slowmo", "state": "local"}, "update": {"rule": "momentum", "momentum": 0.0}},
        "algorithm.state: 'local' has no effect; the update rule 'momentum' keeps no state",
    ),
    "more fragments than steps": (
        {"settings": {"name": "streaming-diloco", "period": 2, "fragments": 3}},
        "algorithm: fragments must be at most period, got 3 and 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        made(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pipe-sgd", {"width": 0}, "width must be at least 1, got 0"),
        ("slowmo", {"slow_momentum": -0.1}, "slow-momentum must be at least 0.0, got -0.1"),
        ("slowmo", {"slow_step": -1.0}, "slow-step must be at least 0.0, got -1.0"),
        ("overlap-local-sgd", {"pull": -0.1}, "pull must be at least 0.0, got -0.1"),
        ("vrl-sgd", {"period": 0}, "period must be at least 1, got 0"),
        ("easgd", {"elasticity": -0.1}, "elasticity must be at least 0.0, got -0.1"),
        (
            "easgd",
            {"rounds": "sometimes"},
            "rounds must be one of 'asynchronous', 'synchronous', got 'sometimes'",
        ),
        ("easgd", {"elasticity": 1.1}, "elasticity must be at most 1.0, got 1.1"),
        ("overlap-local-sgd", {"pull": 1.5}, "pull must be at most 1.0, got 1.5"),
        ("overlap-local-sgd", {"anchor_momentum": 1.0}, "anchor-momentum must be below 1.0, got 1.0"),
        ("slowmo", {"slow_momentum": 1.0}, "slow-momentum must be below 1.0, got 1.0"),
        ("diloco", {"outer_momentum": 1.0}, "outer-momentum must be below 1.0, got 1.0"),
        ("streaming-diloco", {"outer_momentum": 2.0}, "outer-momentum must be below 1.0, got 2.0"),
        ("streaming-diloco", {"merge": 1.01}, "merge must be at most 1.0, got 1.01"),
        ("choco-sgd", {"gamma": 1.5}, "gamma must be at most 1.0, got 1.5"),
        ("sgp", {"delay": -1}, "delay must be at least 0, got -1"),
        ("sgp", {"peers": "two"}, "peers must be one of 'one', 'all', got 'two'"),
        ("choco-sgd", {"gamma": 0.0}, "gamma must be above 0.0, got 0.0"),
        ("d2", {"lazy": 1}, "lazy must be of type bool, got 1"),
        ("a-psgd", {"servers": 0}, "servers must be at least 1, got 0"),
        ("parameter-server", {"servers": 0}, "servers must be at least 1, got 0"),
        ("diloco", {"outer_step": -0.7}, "outer-step must be at least 0.0, got -0.7"),
        ("hogwild", {"sparse": 0}, "sparse must be of type bool, got 0"),
        (
            "local-sgd",
            {"state": "lost"},
            "state must be one of 'local', 'averaged', 'reset', got 'lost'",
        ),
    ],
)
def test_bad_parameters(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        algorithm(name)(**settings)
    assert str(caught.value) == message


WITHOUT_EFFECT = [
    (
        {"name": "katyusha-x", "tau": 0.3},
        "tau has no effect where form is 'convex'; it needs form 'strongly-convex'",
    ),
    (
        {"name": "katyusha-x", "form": "convex", "convexity": 0.1},
        "convexity has no effect where form is 'convex'; it needs form 'strongly-convex'",
    ),
    (
        {"name": "katyusha-x", "form": "strongly-convex", "convexity": 0.1, "tau": 0.3},
        "tau has no effect where convexity is 0.1; it needs convexity 0.0",
    ),
    (
        {"name": "asyvrsc-shared", "estimator": "first", "jacobian": 3},
        "jacobian has no effect where estimator is 'first'; it needs estimator 'second'",
    ),
    (
        {"name": "dp-sgd", "accountant": "none", "delta": 1e-6},
        "delta has no effect where accountant is 'none'; it needs accountant 'rdp' or 'prv'",
    ),
    (
        {"name": "signsgd", "warm-up": 5},
        "warm-up has no effect where beta is 0.0; it needs beta above 0",
    ),
]


@pytest.mark.parametrize(("settings", "message"), WITHOUT_EFFECT)
def test_a_key_without_effect_beside_the_others(settings: dict[str, Any], message: str) -> None:
    given = {key.replace("-", "_"): value for key, value in settings.items() if key != "name"}
    with pytest.raises(ValueError, match="has no effect") as caught:
        algorithm(settings["name"])(**given)
    assert str(caught.value) == message


def test_the_defaults_of_keys_without_effect_may_be_written_out() -> None:
    algorithm("katyusha-x")(form="convex", tau=0.0, convexity=0.0)
    assert made({"name": "local-sgd", "state": "local"}).uncovered is None
    assert made("ad-psgd", gossip={"graph": "ring", "mixing": "uniform"}).algorithm.needs_graph


def test_mixing_weights_go_to_those_of_several_algorithms_that_mix() -> None:
    gossip = {"graph": "star", "mixing": "metropolis-hastings"}
    pair = made("ad-psgd", compare=["d-psgd"], gossip=gossip)
    alone, mixing = pair.variants()
    assert alone.sections.gossip is not None
    assert mixing.sections.gossip is not None
    assert (alone.sections.gossip.mixing, mixing.sections.gossip.mixing) == ("uniform", "metropolis-hastings")


def test_rounds_of_easgd_just_inside_the_limit_keep_their_centre() -> None:
    """The mean model's distance from the centre shrinks by |1 - alpha (n + 1)| a round, 0.95 here."""
    n, alpha = 4, 0.39
    x, centre = 1.0, 0.0
    for _ in range(10):
        difference = alpha * (x - centre)
        x, centre = x - difference, centre + n * difference
    assert abs(x - centre) == pytest.approx((alpha * (n + 1) - 1) ** 10)
    made({"name": "easgd", "rounds": "synchronous", "elasticity": alpha})


COVERED = {"allreduce-sgd", "parameter-server", "slowmo", "easgd", "diloco", "streaming-diloco"}
REFUSES = {"vrl-sgd", "d2", "hogwild"}
CARD = [
    *("allreduce-sgd", "pipe-sgd", "parameter-server", "a-psgd", "hogwild", "local-sgd", "cocod-sgd"),
    *("overlap-local-sgd", "slowmo", "vrl-sgd", "easgd", "diloco", "streaming-diloco"),
    *("d-psgd", "choco-sgd", "d2", "sgp", "ad-psgd", "pair-averaging"),
]


@pytest.mark.parametrize("name", CARD)
def test_momentum_is_covered_warned_of_or_refused(name: str) -> None:
    assert name in ALGORITHMS
    expected = "refused" if name in REFUSES else "covered" if name in COVERED else "uncovered"
    assert algorithm(name).momentum == expected
    if expected == "refused":
        return
    warning = made(name, update=MOMENTUM).uncovered
    assert (warning is None) == (expected == "covered")
    if warning is not None:
        assert warning == "the theory covers plain SGD, not the update rule 'momentum'."
    assert made(name).uncovered is None


@pytest.mark.parametrize("name", ["a-psgd", "parameter-server"])
def test_one_worker_alone_hosts_one_server(name: str) -> None:
    made = scenario({"name": name, "servers": 3}, Quadratics(4, 5), 4)
    assert made.reference().algorithm == type(made.algorithm)(servers=1)
    with pytest.raises(BadInput) as caught:
        made.vary(workers=1)
    assert str(caught.value).endswith("there are 3 servers, but only 1 worker to host them")
