"""From measured messages to a topology and a transport.

Inside a host all messages go from the sender's link over the host's memory to the receiver's link; the two
links have the rate of a message that is alone, the memory that of all workers sending at once. Between hosts
a message crosses the sender's host's interface, a switch and the receiver's host's interface; where all hosts
sending at once reach less than their interfaces, the switch is two, and the arc between them has that rate.
So the graph has arcs, which the routes follow one way:

    gpu -> host, out -> host, in -> gpu          inside a host
    gpu -> host, out -> switch -> host, in -> gpu    between hosts

Latencies and rates are those of an algorithm's messages: framing, copies and rendezvous are in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.calibration import fit
from analysis.calibration.settings import ALL_HOSTS, Settings, chosen_pairs, flow_sets
from simulator.execution.calibrate import Observed
from simulator.measurements import Pair

HALF_DUPLEX = 1.6
"""A pair whose exchange takes so many times a message of one way has one connection for both directions."""

SHARED = 0.95
"""Messages that reach together less than this part of their own rates share something."""

ASSUMED_LATENCY, ASSUMED_RATE = 0.0, 1e12
"""Of what was not measured, because there is nothing that would go over it: it takes no time."""


@dataclass(frozen=True)
class Rates:
    """What was found of the messages of one kind of place.

    Attributes
    ----------
    latency, rate
        Of a message that is alone: the medians over the pairs.
    together
        Bytes/s of all the messages that go at once; None where no more than one did.
    exchange
        How many times longer both ways take than one.
    """

    latency: float
    rate: float
    together: float | None
    exchange: float | None


@dataclass(frozen=True)
class Network:
    """Measured messages.

    Attributes
    ----------
    pairs
        The fit of each pair.
    inside, between
        Of pairs in one host and in two; None where there are none.
    sets
        Name -> bytes/s of all messages of a set that goes at once.
    """

    pairs: Mapping[Pair, fit.Message]
    inside: Rates | None
    between: Rates | None
    sets: Mapping[str, float]


def fitted(settings: Settings, hosts: Sequence[str], found: Mapping[str, Observed]) -> Network:
    """Return what the ping-pong and the concurrent messages show."""
    pairs = {}
    for a, b in chosen_pairs(hosts):
        times = {
            size: [seconds / 2 for seconds in found["ping-pong"][f"ping-pong/{a}-{b}/{size}"][a]]
            for size in settings.sizes
        }
        pairs[a, b] = fit.message(times)
    sets = {}
    for number, (name, arcs) in enumerate(flow_sets(hosts)):
        sets[name] = _together(settings.large, arcs, number, found["concurrent"])
    inside = [message for (a, b), message in pairs.items() if hosts[a] == hosts[b]]
    between = [message for (a, b), message in pairs.items() if hosts[a] != hosts[b]]
    flows = [rate for name, rate in sets.items() if name.endswith(" flows")]
    return Network(
        pairs,
        _rates("inside", inside, sets, sets.get("inside: ring")),
        _rates("between", between, sets, max(flows) if flows else None),
        sets,
    )


def _together(sizes: Sequence[int], arcs: Sequence[Pair], number: int, found: Observed) -> float:
    """Return the bytes per second of all messages of a set, latency taken out."""
    taken = {}
    for size in sizes:
        by_rank = [times for times in found[f"concurrent/{number}/{size}"] if times]
        taken[size] = [max(times) for times in zip(*by_rank, strict=False)]
    return len(arcs) * fit.message(taken).rate


def _rates(
    where: str, messages: Sequence[fit.Message], sets: Mapping[str, float], together: float | None
) -> Rates | None:
    if not messages:
        return None
    one, both = sets[f"{where}: one way"], sets[f"{where}: both ways"]
    return Rates(
        latency=fit.median([message.latency for message in messages]),
        rate=fit.median([message.rate for message in messages]),
        together=together,
        exchange=2 * one / both,
    )


def topology(hosts: Sequence[str], network: Network | None) -> dict[str, Any]:
    """Return the graph of a description, as a scenario's ``topology`` takes it."""
    if len(hosts) == 1:
        return {"nodes": [{"name": "gpu0", "kind": "gpu", "host": hosts[0]}], "edges": []}
    assert network is not None
    inside = network.inside or Rates(ASSUMED_LATENCY, ASSUMED_RATE, None, None)
    names = list(dict.fromkeys(hosts))
    nodes: list[dict[str, Any]] = [
        {"name": f"gpu{rank}", "kind": "gpu", "host": host} for rank, host in enumerate(hosts)
    ]
    nodes += [{"name": f"{host}/{side}", "kind": "host"} for host in names for side in ("out", "in")]
    half = inside.latency / 2
    edges = [_arc(f"gpu{rank}", f"{host}/out", inside.rate, half) for rank, host in enumerate(hosts)]
    edges += [_arc(f"{host}/in", f"gpu{rank}", inside.rate, half) for rank, host in enumerate(hosts)]
    edges += [
        _arc(f"{host}/out", f"{host}/in", _memory_rate(inside, hosts.count(host)), 0.0) for host in names
    ]
    if network.between is not None:
        rates = {host: interface_rate(host, hosts, network) for host in names}
        core = _core_rate(rates, network)
        into, out = ("switch", "switch") if core is None else ("switch/in", "switch/out")
        nodes += [{"name": name, "kind": "switch"} for name in dict.fromkeys((into, out))]
        latency = max(0.0, network.between.latency - inside.latency) / 2
        edges += [_arc(f"{host}/out", into, rate, latency) for host, rate in rates.items()]
        edges += [_arc(out, f"{host}/in", rate, latency) for host, rate in rates.items()]
        if core is not None:
            edges.append(_arc(into, out, core, 0.0))
    return {"directed": True, "nodes": nodes, "edges": edges}


def _arc(tail: str, head: str, rate: float, latency: float) -> dict[str, Any]:
    return {"between": [tail, head], "bandwidth": f"{rate!r} B/s", "latency": f"{latency!r} s"}


def _memory_rate(inside: Rates, workers: int) -> float:
    """Return the rate that all messages inside a host share: what they reach, unless they do not disturb."""
    alone = workers * inside.rate
    if inside.together is None or inside.together >= SHARED * alone:
        return alone
    # A message that is alone has its own rate in any case.
    return max(inside.together, inside.rate)


def _core_rate(interfaces: Mapping[str, float], network: Network) -> float | None:
    """Return the rate that all messages between hosts share; None where the interfaces alone set the pace."""
    reached = network.sets.get(ALL_HOSTS)
    if reached is None or reached >= SHARED * sum(interfaces.values()):
        return None
    return max(reached, *interfaces.values())


def interface_rate(host: str, hosts: Sequence[str], network: Network) -> float:
    """Return the rate of a host's interface: of its best pair, or more where several flows reach more."""
    assert network.between is not None
    own = [
        message.rate
        for (a, b), message in network.pairs.items()
        if hosts[a] != hosts[b] and host in (hosts[a], hosts[b])
    ]
    return max([*own, network.between.together or 0.0]) if own else network.between.rate


def transport(network: Network | None, backend: str) -> dict[str, Any]:
    """Return the transport without what only collectives show.

    Rates and latencies were measured as payload, so none of either is taken off again.
    """
    found: dict[str, Any] = {"name": backend, "payload-share": 1.0}
    if backend == "gloo":
        found["latency-factor"] = 1.0
    between = None if network is None else network.between
    if between is not None and between.exchange is not None and between.exchange > HALF_DUPLEX:
        found["half-duplex-pairs"] = True
    return found


def measured(settings: Settings, network: Network) -> dict[str, Any]:
    """Return what a description says of the messages: values, spread and residuals."""
    sizes = list(settings.sizes)

    def said(rates: Rates | None) -> dict[str, Any] | None:
        if rates is None:
            return None
        return {
            "latency": rates.latency,
            "rate": rates.rate,
            "rate-together": rates.together,
            "exchange-over-one-way": rates.exchange,
        }

    return {
        "sizes": sizes,
        "inside-a-host": said(network.inside),
        "between-hosts": said(network.between),
        "pairs": [
            {
                "ranks": list(pair),
                "latency": message.latency,
                "rate": message.rate,
                "residuals": list(message.line.residuals),
            }
            for pair, message in network.pairs.items()
        ],
        "together": dict(network.sets),
        "worst-residual": max(message.line.worst for message in network.pairs.values()),
    }
