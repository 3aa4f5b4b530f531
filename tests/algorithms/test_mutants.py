"""Every algorithm of card 1: change one sign, operator or number, and its test fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from algorithms import algorithm
from simulator.parts import BadInput
from tests.algorithms import test_events as events
from tests.algorithms.codecs import test_sent as sent
from tests.algorithms.mutation import Mutant, Trial, cases
from tests.algorithms.recursions.quadratics import Quadratics
from tests.algorithms.table import CASES
from tests.algorithms.test_bytes import ELEMENT, TRAFFIC
from tests.algorithms.training import scenario, trained


def agreement(*names: str) -> Callable[[], None]:
    """Return the check that all cases of some algorithms agree with their recursion, and their bytes."""

    def check() -> None:
        for case in CASES:
            if case.name in names:
                case.hold(case.usual, schedule=True)
                for workers in {1, 8} & set(case.workers):
                    case.hold(workers)
                if case.rules:
                    case.hold(case.usual, rule="nesterov")
                if case.shares:
                    case.hold(case.usual, slow={1: 2.0}, batches="proportional")
        traffic(*names)

    return check


def traffic(*names: str) -> None:
    """Assert that what some algorithms send follows their formulas."""
    for entry in TRAFFIC:
        if entry.name in names:
            for workers in {entry.workers[0], entry.workers[-1]}:
                entry.hold(workers, 5)


def easgd() -> None:
    agreement("easgd")()
    for rounds in ("synchronous", "asynchronous"):
        assert algorithm("easgd")(rounds=rounds).deterministic == (rounds == "synchronous")
    events.check_easgd(4, slow=events.UNEVEN)
    edge = {"name": "easgd", "rounds": "synchronous", "elasticity": 0.4}
    with pytest.raises(BadInput, match=r"\+ 1\) = 0\.4 in .* 0\.9 / workers = 0\.225$"):
        scenario(edge, Quadratics(4, 5), 4)
    scenario({**edge, "elasticity": 0.399}, Quadratics(4, 5), 4)
    scenario({**edge, "rounds": "asynchronous"}, Quadratics(4, 5), 4)


def ad_psgd() -> None:
    events.check_ad_psgd(4, "ring", slow=events.UNEVEN)
    events.check_ad_psgd(8, "ring")
    events.check_ad_psgd(1, "ring")
    traffic("ad-psgd")


def pair_averaging() -> None:
    events.check_pair_averaging(4, slow=events.UNEVEN)
    events.check_pair_averaging(1)
    traffic("pair-averaging")


def a_psgd() -> None:
    for servers in (1, 3):
        events.check_a_psgd(4, servers, slow=events.UNEVEN)
    events.check_a_psgd(4, schedule=True, slow=events.UNEVEN)
    traffic("a-psgd")
    hosted("a-psgd")
    with pytest.raises(BadInput, match="there are 5 servers, but only 4 workers"):
        events.check_a_psgd(4, 5)


def compressed(name: str) -> Callable[[], None]:
    """Return the check that an algorithm still is its recursion where its messages are compressed."""

    def check() -> None:
        if name == "parameter-server":
            for case, workers, count in (("top-k", 3, 2), ("qsgd", 1, 1)):
                sent.test_compressed_pushes_are_their_recursion(case, workers, count)
            return
        sent.test_compressed_gossip_is_its_recursion("top-k", 5, "ring")
        sent.test_bytes_of_gossip("sign")

    return check


def hosted(name: str) -> None:
    """Assert that one worker alone hosts one server, and no more."""
    made = scenario({"name": name, "servers": 3}, Quadratics(4, 5), 4)
    assert made.reference().algorithm == algorithm(name)(servers=1)
    with pytest.raises(BadInput, match="there are 3 servers, but only 1 worker to host them"):
        made.vary(workers=1)


def dedicated() -> None:
    """Assert that servers of their own give the same models, and send theirs themselves."""
    for servers in (1, 2):
        name, problem = {"name": "parameter-server", "servers": servers}, Quadratics(3, 5)
        machines = {"builder": "switch", "gpus": 3 + servers}
        update = {"rule": "sgd", "schedule": {"kind": "step", "every": 1, "factor": 0.5}}
        runs = [
            trained({**name, "dedicated": d}, problem, 4, topology=machines, workers=3, update=update)
            for d in (False, True)
        ]
        assert (runs[0].models == runs[1].models).all()
        assert runs[1].server_bytes == pytest.approx([4 * 3 * 5 * ELEMENT / servers] * servers, rel=0.3)
        assert runs[1].bytes_sent == (4 * 5 * ELEMENT,) * 3
        assert runs[1].scenario.cluster.nodes == tuple(f"gpu{k}" for k in range(3 + servers))
    assert algorithm("asyvrsc-distributed")().server_count == 1
    for rounds, count in (("asynchronous", 1), ("synchronous", 0)):
        assert algorithm("easgd")(rounds=rounds).server_count == count


def parameter_server() -> None:
    agreement("parameter-server")()
    hosted("parameter-server")
    dedicated()
    compressed("parameter-server")()
    run = trained({"name": "parameter-server"}, Quadratics(4, 5), 8)
    passes = [span.operation for span in run.timeline]
    assert passes.count("combine") == 8  # the server's alone: equal shares need no scaling


def hogwild() -> None:
    for sparse in (False, True):
        events.check_hogwild(4, sparse, slow=events.UNEVEN)
    traffic("hogwild")


def d2() -> None:
    agreement("d2")()
    with pytest.raises(BadInput, match="smallest eigenvalue is -0\\.333333333333 and"):
        scenario({"name": "d2", "lazy": False}, Quadratics(4, 5), 4, gossip={"graph": "ring"})


def both(*checks: Callable[[], None]) -> Callable[[], None]:
    """Return all checks as one."""

    def check() -> None:
        for one in checks:
            one()

    return check


def trial(module: str, check: Callable[[], None], equivalent: Mapping[str, str] | None = None) -> Trial:
    return Trial(f"algorithms.{module}", check, equivalent or {}, decisions=True)


TRIALS = (
    trial("synchronous.allreduce_sgd", agreement("allreduce-sgd")),
    trial("synchronous.pipe_sgd", agreement("pipe-sgd")),
    trial("servers.parameter_server", parameter_server),
    trial(
        "servers.shards",
        both(parameter_server, a_psgd),
        {"pull: len(slices) > 1 -> len(slices) > -1": "a concatenation of one slice is that slice"},
    ),
    trial("servers.a_psgd", a_psgd),
    trial("servers.served", both(parameter_server, a_psgd, easgd)),
    trial("servers.hogwild", hogwild),
    trial("local.local_sgd", agreement("local-sgd")),
    trial("local.rounds", agreement("local-sgd", "slowmo")),
    trial("local.cocod_sgd", agreement("cocod-sgd")),
    trial("local.overlap_local_sgd", agreement("overlap-local-sgd")),
    trial("local.slowmo", agreement("slowmo")),
    trial("local.vrl_sgd", agreement("vrl-sgd")),
    trial("local.easgd", easgd),
    trial(
        "local.diloco",
        agreement("diloco", "streaming-diloco"),
        {"Outer.step: -step * c -> -step / c": "c is 1 or -1"},
    ),
    trial("decentralised.d_psgd", agreement("d-psgd")),
    trial("decentralised.choco_sgd", both(agreement("choco-sgd"), compressed("choco-sgd"))),
    trial(
        "decentralised.d2",
        d2,
        {
            "D2.mixing_row: halved.get(worker.rank, 0.0) -> halved.get(worker.rank, 1)": "every rule for "
            "mixing weights that there is gives a worker's own model a weight"
        },
    ),
    trial(
        "decentralised.sgp",
        agreement("sgp"),
        {
            "_apart: :-1 -> :+1": "of a phantom message; a combination has the outline of its first term",
            "_apart: (message[:-1], 1.0) -> (message[:-1], -1.0)": "without numerics any weight will do",
        },
    ),
    trial(
        "decentralised.ad_psgd",
        ad_psgd,
        {
            "Replica.__init__: self.averagings = 0 -> self.averagings = 1": "differences alone are looked at",
            "active_side: distance % 2 -> distance % -2": "it is 0 for the same numbers",
        },
    ),
    trial("decentralised.pair_averaging", pair_averaging),
)


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_algorithm_itself_passes(trial: Trial) -> None:
    trial.hold()
