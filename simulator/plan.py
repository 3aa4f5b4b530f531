"""Who takes part in what: groups, weights, neighbours and gradients of a rank, the same on both clocks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from algorithms import WORLD, Plan
from algorithms.algorithm import EXCHANGE
from algorithms.codecs import compressing
from algorithms.worker import Outline
from simulator import faults
from simulator.parts import BadInput
from simulator.stragglers import Draw, Straggler
from simulator.workload.cutting import cut

if TYPE_CHECKING:
    from algorithms.worker import Worker
    from simulator.scenario import Scenario
    from simulator.workload.objective import Oracle


_NO_WEIGHTS: Mapping[int, float] = MappingProxyType({})


def planned(scenario: Scenario) -> Plan:
    """Return the groups and channels that the scenario's algorithm declares; the world is among them.

    The world is that of the workers, without dedicated servers.
    """
    graph = scenario.communication_graph if scenario.algorithm.needs_graph else None
    plan = scenario.algorithm.plan(scenario.workers, graph)
    return Plan({WORLD: tuple(range(scenario.workers)), **plan.groups}, plan.channels)


def seen_by_algorithm(scenario: Scenario, worker: Worker) -> Worker:
    """Return the worker that an algorithm is run with: behind a codec where there is compression."""
    if scenario.codec is None:
        return worker
    return compressing(worker, scenario.codec, scenario.algorithm)


def outline(scenario: Scenario) -> Outline | None:
    """Return the cost model that the objective stands for; None where it is of one size, or there is none."""
    cost = scenario.cost
    if not scenario.stands_for_cost:
        return None
    assert scenario.objective is not None
    buckets = cost.buckets()
    cuts = cut(buckets, cost.parameters, scenario.objective.parameters)
    return Outline(cost.parameters, cost.parameter_bytes, scenario.charged_layers, buckets, cuts)


def group_share(shares: Sequence[float] | None, members: Sequence[int], rank: int) -> float | None:
    """Return a worker's weight in the mean over a group; None where all are equal.

    The shares of the whole world are taken as they are; those of a smaller group are divided by their sum.
    """
    if shares is None:
        return None
    if len(members) == len(shares):
        return shares[rank]
    return shares[rank] / math.fsum(shares[member] for member in members)


def weights(scenario: Scenario, rank: int) -> Mapping[int, float]:
    """Return a rank's row of the mixing matrix without zeros; empty where none is needed."""
    if not scenario.algorithm.mixes or rank >= scenario.workers:
        return _NO_WEIGHTS
    row = scenario.mixing[rank]
    return {other: float(row[other]) for other in np.flatnonzero(row).tolist()}


def neighbours(scenario: Scenario, plan: Plan, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the in-neighbours and the out-neighbours of a rank, ascending.

    Raises
    ------
    AlgorithmError
        The algorithm requires no graph, or its plan lacks the channel to or from a neighbour.
    """
    if not scenario.algorithm.needs_graph:
        raise faults.no_graph(rank, "exchange", type(scenario.algorithm).__name__)
    # Of an undirected graph both are all neighbours. A list may name what is no node: a dedicated server.
    graph = scenario.communication_graph.to_directed(as_view=True)
    into, out = sorted(graph.in_edges([rank])), sorted(graph.out_edges([rank]))
    for source, destination in sorted(into + out):
        if (source, destination, EXCHANGE) not in plan.numbers:
            raise faults.undeclared_channel(rank, source, destination, EXCHANGE)
    return tuple(source for source, _ in into), tuple(destination for _, destination in out)


def channel(plan: Plan, rank: int, source: int, destination: int, name: str) -> int:
    """Return the number of a declared channel.

    Raises
    ------
    AlgorithmError
        The plan does not declare it.
    """
    number = plan.numbers.get((source, destination, name))
    if number is None:
        raise faults.undeclared_channel(rank, source, destination, name)
    return number


def random_numbers(seed: int, rank: int, purpose: str, shared: bool) -> np.random.Generator:
    """Return a fresh stream of a purpose; shared ones are the same on every rank."""
    owner = 0 if shared else rank + 1
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), owner])


def jitter(scenario: Scenario, rank: int) -> Draw:
    """Return the source of a rank's per-gradient factors."""
    draws = []
    for straggler, stream in zip(scenario.stragglers, scenario.streams, strict=True):
        if isinstance(straggler, Straggler) and rank < scenario.workers and straggler.concerns(rank):
            random = np.random.default_rng([scenario.cluster_seed, *stream, rank])
            draw = straggler.step_factor(random)
            if draw is not None:
                draws.append(draw)
    if not draws:
        return lambda: 1.0
    if len(draws) == 1:
        return draws[0]
    return lambda: math.prod(draw() for draw in draws)


def oracle(scenario: Scenario, rank: int) -> Oracle:
    """Return a rank's source of gradients.

    A dedicated server has none. What it is given tells of the problem alone, as all workers know it.

    Raises
    ------
    BadInput
        The objective does not go with the number of workers or their batches.
    """
    objective = scenario.objective
    assert objective is not None
    shares = scenario.shares or (1 / scenario.workers,) * scenario.workers
    rank = rank if rank < scenario.workers else 0
    try:
        return objective.oracle(rank, shares, scenario.objective_batches[rank], scenario.seed)
    except ValueError as error:
        raise BadInput("workload.objective", str(error)) from error
