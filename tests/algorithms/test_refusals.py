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
        "algorithm: D2 diverges on this mixing matrix, whose smallest eigenvalue is -0.3333 and must be "
        "above -1/3; leave lazy at true, or choose another graph or mixing",
    ),
    "D² below the limit": (
        {
            "settings": {"name": "d2", "lazy": False},
            "workers": 16,
            "gossip": {"graph": {"builder": "torus", "dimensions": [4, 4]}},
        },
        "algorithm: D2 diverges on this mixing matrix, whose smallest eigenvalue is -0.6000 and must be "
        "above -1/3; leave lazy at true, or choose another graph or mixing",
    ),
    "more servers than workers": (
        {"settings": {"name": "parameter-server", "servers": 5}},
        "algorithm: parameter server: there are 5 servers, but only 4 workers to host them",
    ),
    "more asynchronous servers than workers": (
        {"settings": {"name": "a-psgd", "servers": 5}},
        "algorithm: A-PSGD: there are 5 servers, but only 4 workers to host them",
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
        "algorithm: StreamingDiLoCo: delay must be below period, so that a fragment is merged before its "
        "next turn, got 4 and 4",
    ),
    "more fragments than steps": (
        {"settings": {"name": "streaming-diloco", "period": 2, "fragments": 3}},
        "algorithm: StreamingDiLoCo: fragments must be at most period, got 3 and 2",
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
        ("pipe-sgd", {"width": 0}, "PipeSGD: width must be at least 1, got 0"),
        ("slowmo", {"slow_momentum": -0.1}, "SlowMo: slow_momentum must be at least 0.0, got -0.1"),
        ("slowmo", {"slow_step": -1.0}, "SlowMo: slow_step must be at least 0.0, got -1.0"),
        ("overlap-local-sgd", {"pull": -0.1}, "OverlapLocalSGD: pull must be at least 0.0, got -0.1"),
        ("vrl-sgd", {"period": 0}, "VRLSGD: period must be at least 1, got 0"),
        ("easgd", {"elasticity": -0.1}, "EASGD: elasticity must be at least 0.0, got -0.1"),
        (
            "easgd",
            {"rounds": "sometimes"},
            "EASGD: rounds must be one of 'asynchronous', 'synchronous', got 'sometimes'",
        ),
        ("sgp", {"delay": -1}, "SGP: delay must be at least 0, got -1"),
        ("sgp", {"peers": "two"}, "SGP: peers must be one of 'one', 'all', got 'two'"),
        ("choco-sgd", {"gamma": 0.0}, "ChocoSGD: gamma must be above 0.0, got 0.0"),
        ("d2", {"lazy": 1}, "D2: lazy must be of type bool, got 1"),
        ("a-psgd", {"servers": 0}, "APSGD: servers must be at least 1, got 0"),
        ("parameter-server", {"servers": 0}, "ParameterServer: servers must be at least 1, got 0"),
        ("diloco", {"outer_step": -0.7}, "DiLoCo: outer_step must be at least 0.0, got -0.7"),
        ("hogwild", {"sparse": 0}, "Hogwild: sparse must be of type bool, got 0"),
        (
            "local-sgd",
            {"state": "lost"},
            "LocalSGD: state must be one of 'local', 'averaged', 'reset', got 'lost'",
        ),
    ],
)
def test_bad_parameters(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        algorithm(name)(**settings)
    assert str(caught.value) == message


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
        assert warning.startswith(f"the theory of {name} covers plain SGD, ")
    assert made(name).uncovered is None


@pytest.mark.parametrize("name", ["a-psgd", "parameter-server"])
def test_one_worker_alone_hosts_one_server(name: str) -> None:
    made = scenario({"name": name, "servers": 3}, Quadratics(4, 5), 4)
    assert made.reference().algorithm == type(made.algorithm)(servers=1)
    with pytest.raises(BadInput) as caught:
        made.vary(workers=1)
    assert str(caught.value).endswith("there are 3 servers, but only 1 worker to host them")
