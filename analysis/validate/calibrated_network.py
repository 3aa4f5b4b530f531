"""The loop closed over an emulated network: calibrate it, simulate on the description, compare with reality.

``python -m analysis.validate.calibrated_network`` measures messages and collectives between the workers of an
emulated star as ``paceline calibrate`` does between machines, and simulates the cases of the suite
(:mod:`analysis.validate.emulated`) on the description that comes out, which knows neither the rates of links
nor an algorithm. The executions are those of the suite, measured once and kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.calibration import Settings, calibrate
from analysis.validate.emulated import LIMITS, RATES, RUNS, WORKERS, Case, Store, table, validate, within
from simulator.engine.simulate import simulate
from simulator.execution.calibrate import Means
from simulator.execution.emulation import emulate
from simulator.execution.namespaces import check_rights
from simulator.parts import BadInput
from simulator.run import Met, Run
from simulator.scenario import Scenario

SIZES = (4, 2**20, 2**22, 2**24)
"""Bytes of messages and collectives: below 1 MiB the burst of a token bucket is a part of a message."""
OWN = ("device", "workers", "stragglers", "seed")
"""Keys of a cluster that no network is described by."""
SETTINGS = Settings(parts=("network", "collectives"), sizes=SIZES, collective_sizes=SIZES, repeats=3)


@dataclass(frozen=True)
class InNetwork(Means):
    """Measurements between the workers of an emulated network, each of which counts as a host.

    Attributes
    ----------
    topology
        Of the network, as in a scenario.
    """

    topology: Mapping[str, Any] | None = None

    def run(self, scenario: Scenario, met: Met) -> Run | None:
        """Execute a measurement in the network."""
        placed = scenario.vary({"cluster.topology": self.topology})

        def met_in_network(places: Any, backend: str) -> None:
            nodes = placed.cluster.nodes
            met([(str(node), device) for node, (_, device) in zip(nodes, places, strict=True)], backend)

        return emulate(placed, None, self.patience, met_in_network)


def stars(workers: int, rate: int) -> list[Case]:
    """Return the cases of the suite on a star."""
    return [Case(name, "star", workers, rate, slow) for slow in (False, True) for name in LIMITS]


def described(case: Case) -> dict[str, Any]:
    """Calibrate the network of a case; return the cluster that is described."""
    topology = case.scenario().resolved()["cluster"]["topology"]
    with tempfile.TemporaryDirectory() as folder:
        means = InNetwork(topology=topology)
        made = calibrate(SETTINGS, Path(folder) / "cluster.yaml", case.workers, means, _told)
    assert made is not None
    print(made, file=sys.stderr)
    return dict(made.cluster)


def _told(done: float, name: str) -> None:
    print(f"{100 * done:.0f} %: {name}", file=sys.stderr, flush=True)


def on(cluster: Mapping[str, Any], scenario: Scenario) -> Scenario:
    """Return a scenario on a described network, with its own devices and stragglers."""
    data = scenario.resolved()
    own = {key: value for key, value in data["cluster"].items() if key in OWN}
    return Scenario({**data, "cluster": {**cluster, **own}})


def main(arguments: Iterable[str] | None = None) -> int:
    """Calibrate and compare; return the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.validate.calibrated_network",
        description="Calibrate an emulated star, and predict what is executed there; Linux and root.",
    )
    parser.add_argument("--store", type=Path, default=Path("runs/validate-emulated"), help="what is executed")
    parser.add_argument("--workers", type=int, choices=WORKERS, default=WORKERS[0])
    parser.add_argument("--rate", type=int, choices=RATES, default=RATES[0], help="of a link, in Mb/s")
    parser.add_argument("--runs", type=int, default=RUNS, help="executions of each case")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    try:
        check_rights()
        cases = stars(chosen.workers, chosen.rate)
        cluster = described(cases[0])
        results = validate(
            cases,
            Store(chosen.store),
            chosen.runs,
            lambda line: print(line, file=sys.stderr, flush=True),
            virtual=lambda scenario: simulate(on(cluster, scenario)),
        )
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on after its last finished run", file=sys.stderr)
        return 130
    print(table(results))
    print(f"\n{sum(map(within, results))} of {len(results)} cases are within their limits.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
