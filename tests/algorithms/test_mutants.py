"""Every algorithm of card 1: change one sign, operator or number, and its test fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.algorithms import test_events as events
from tests.algorithms.mutation import Mutant, Trial, cases
from tests.algorithms.table import CASES


def agreement(name: str, schedule: bool = True) -> Callable[[], None]:
    """Return the check that all cases of an algorithm agree with their recursion."""

    def check() -> None:
        for case in CASES:
            if case.name == name:
                workers = 4 if 4 in case.workers else 8
                case.hold(workers, schedule=schedule)
                if case.rules:
                    case.hold(workers, rule="nesterov")

    return check


def shares(name: str) -> Callable[[], None]:
    """Return the check that also batches that differ are weighted as they must."""

    def check() -> None:
        agreement(name)()
        for case in CASES:
            if case.name == name:
                case.hold(4 if 4 in case.workers else 8, slow={1: 2.0}, batches="proportional")

    return check


def easgd() -> None:
    agreement("easgd")()
    events.check_easgd(4, slow=events.UNEVEN)


def ad_psgd() -> None:
    events.check_ad_psgd(4, "ring", slow=events.UNEVEN)
    events.check_ad_psgd(8, "ring")


def a_psgd() -> None:
    events.check_a_psgd(4, 1, slow=events.UNEVEN)
    events.check_a_psgd(4, 3, slow=events.UNEVEN)


def hogwild() -> None:
    events.check_hogwild(4, False, slow=events.UNEVEN)
    events.check_hogwild(4, True, slow=events.UNEVEN)


def servers() -> None:
    shares("parameter-server")()
    a_psgd()


TRIALS = (
    Trial("algorithms.synchronous.allreduce_sgd", agreement("allreduce-sgd")),
    Trial("algorithms.synchronous.pipe_sgd", agreement("pipe-sgd")),
    Trial("algorithms.servers.parameter_server", shares("parameter-server")),
    Trial("algorithms.servers.shards", servers),
    Trial("algorithms.servers.a_psgd", a_psgd),
    Trial("algorithms.servers.hogwild", hogwild),
    Trial("algorithms.local.local_sgd", agreement("local-sgd")),
    Trial("algorithms.local.rounds", agreement("local-sgd")),
    Trial("algorithms.local.cocod_sgd", agreement("cocod-sgd")),
    Trial("algorithms.local.overlap_local_sgd", agreement("overlap-local-sgd")),
    Trial("algorithms.local.slowmo", agreement("slowmo")),
    Trial("algorithms.local.vrl_sgd", agreement("vrl-sgd")),
    Trial("algorithms.local.easgd", easgd),
    Trial("algorithms.local.diloco", lambda: (agreement("diloco")(), agreement("streaming-diloco")())),
    Trial("algorithms.decentralised.d_psgd", agreement("d-psgd")),
    Trial("algorithms.decentralised.d2", agreement("d2")),
    Trial("algorithms.decentralised.sgp", agreement("sgp")),
    Trial("algorithms.decentralised.ad_psgd", ad_psgd),
    Trial(
        "algorithms.decentralised.pair_averaging", lambda: events.check_pair_averaging(4, slow=events.UNEVEN)
    ),
)


@pytest.mark.parametrize(("trial", "mutant"), cases(TRIALS))
def test_a_mutant_is_caught(trial: Trial, mutant: Mutant) -> None:
    trial.kill(mutant)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_algorithm_itself_passes(trial: Trial) -> None:
    trial.hold()
