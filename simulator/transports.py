"""How a communication stack uses the network: the named, measurable properties of a real one.

A transport says which pattern an all-reduce follows, whether its pieces are pipelined, how often the
latency of the path is paid, which part of the line rate arrives as payload, whether a message waits for
its receiver, whether the two directions between a pair of ranks share one connection, and how unequally
messages share a link.

Sources of the defaults: TCP's payload share of 0.992 and Gloo's rendezvous were measured with torch 2.13. Its
ring, double-buffered in segments of at most 1 MiB, is that of its source (gloo/allreduce.cc,
gloo/allgather.cc); with it, published all-reduces on 4 and 8 machines over links of 1 to 5 Gb/s and 1 to 10
ms come to 2.16 latencies a message, for one tells the sender that the receiver is ready, and to 1 GB/s of
handling. NCCL pipelines its rings and trees, so that latency is paid on the way up and down a tree of depth
log2(n) and not on each of the 2(n-1) steps of a ring.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

Pattern = Literal["ring", "tree", "halving-doubling", "hierarchical"]

Use = Literal["channel", "exchange", "collective"]
"""What a message belongs to."""


@dataclass(frozen=True)
class Transport:
    """Properties of a communication stack.

    Attributes
    ----------
    pattern
        Which ranks exchange what in an all-reduce.
    pipelined
        True: the pieces of a message stream through the pattern, so that all its links are busy at a
        common pace. False: a rank enters a round when its transfers of rounds before have ended.
    rounds_of_latency
        ``all``: every round of the pattern pays its path's latency; ``depth``: 2 ceil(log2 n) of them
        do, because pipelining hides the rest.
    latency_factor
        Latencies of the path that each message pays.
    payload_share
        Payload bytes per byte of line rate.
    segment_size, least_segments
        A transfer of a collective that goes step by step is cut into segments of at most so many bytes,
        and into at least so many; each of them is a round of its own and pays latency.
    handling_rate
        Bytes/s at which a rank sums and copies what it has received in a collective that goes step by step,
        before it passes on as much.
    in_flight
        Of these rounds, how many a rank may be in at once: 1, or 2 with double buffering.
    rendezvous
        True: a message starts when both sides have called, and one of a collective when both have entered
        its round. False: when the sender has.
    half_duplex_pairs
        True: the two directions between a pair of ranks share one connection.
    share_spread
        Standard deviation of the logarithm of the weight with which a message between two ranks competes
        for links, drawn for each message: TCP's short flows share a link unequally. It is that of the ratio
        of the rates of two messages that end on one link, over the square root of 2. Collectives share
        equally.
    cross_traffic
        Part of its capacity that a link between two nodes without workers loses while one message goes each
        way: behind what moves the other way, acknowledgements come late. ``n`` messages lose about
        ``1 / sqrt(n)`` of that (see :mod:`simulator.engine.kernel.crossing`). At the end of the network a
        sender keeps its queue short itself. 0.05 of a whole link in SimGrid (Velho, Schnorr, Casanova and
        Legrand, "On the validity of flow-level TCP network models", 2013), whatever the number of messages;
        a load in proportion to the messages' rates there, which holds messages back whose acknowledgements,
        not bytes, cross a full link.
    collective_latency, exchange_latency
        What a transfer of a collective, or a message of an exchange with neighbours, pays of the latency that
        a message of a channel pays, as a factor. Measured: a channel's message has a header before it.
    collective_share, exchange_share
        The rate that a collective or an exchange reaches over that which its links would give to messages of
        channels: what the reductions and the copies between its transfers cost. Measured.
    """

    pattern: Pattern = "ring"
    pipelined: bool = True
    rounds_of_latency: Literal["all", "depth"] = "all"
    latency_factor: float = 1.0
    payload_share: float = 1.0
    segment_size: Annotated[float, "B"] = float("inf")
    least_segments: int = 1
    handling_rate: Annotated[float, "B/s"] = float("inf")
    in_flight: Literal[1, 2] = 1
    rendezvous: bool = False
    half_duplex_pairs: bool = False
    share_spread: float = 0.0
    cross_traffic: float = 0.0
    collective_latency: float = 1.0
    collective_share: float = 1.0
    exchange_latency: float = 1.0
    exchange_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.payload_share <= 1:
            raise ValueError(f"payload-share must be above 0 and at most 1, got {self.payload_share!r}")
        if not 0 <= self.latency_factor < math.inf:
            raise ValueError(f"latency-factor must be finite and 0 or more, got {self.latency_factor!r}")
        if not 0 <= self.share_spread < math.inf:
            raise ValueError(f"share-spread must be finite and 0 or more, got {self.share_spread!r}")
        if not 0 <= self.cross_traffic < 1:
            raise ValueError(f"cross-traffic must be 0 or more and below 1, got {self.cross_traffic!r}")
        for kind in ("collective", "exchange"):
            latency, share = getattr(self, f"{kind}_latency"), getattr(self, f"{kind}_share")
            if not 0 <= latency < math.inf:
                raise ValueError(f"{kind}-latency must be finite and 0 or more, got {latency!r}")
            if not 0 < share < math.inf:
                raise ValueError(f"{kind}-share must be above 0 and finite, got {share!r}")
        if not self.segment_size > 0:
            raise ValueError(f"segment-size must be above 0 B, got {self.segment_size!r}")
        if self.least_segments < 1:
            raise ValueError(f"least-segments must be at least 1, got {self.least_segments!r}")
        if not self.handling_rate > 0:
            raise ValueError(f"handling-rate must be above 0 B/s, got {self.handling_rate!r}")
        if self.in_flight not in (1, 2):
            raise ValueError(f"in-flight must be 1 or 2, got {self.in_flight!r}")
        if self.pipelined and self._stepped():
            keys = "segment-size, least-segments, handling-rate and in-flight"
            raise ValueError(f"{keys} have no effect where all-reduces are pipelined")
        if not self.pipelined and self.rounds_of_latency == "depth":
            raise ValueError("rounds-of-latency 'depth' has no effect where all-reduces are not pipelined")

    def _stepped(self) -> bool:
        """Whether anything is given that only collectives that go step by step have."""
        return (
            min(self.segment_size, self.handling_rate) < math.inf
            or self.least_segments > 1
            or self.in_flight > 1
        )

    def latencies(self, use: Use) -> float:
        """Return how many latencies of its path a message pays."""
        factors = {"exchange": self.exchange_latency, "collective": self.collective_latency}
        return self.latency_factor * factors.get(use, 1.0)

    def payload(self, use: Use) -> float:
        """Return the payload bytes of a message per byte that its links carry."""
        factors = {"exchange": self.exchange_share, "collective": self.collective_share}
        return self.payload_share * factors.get(use, 1.0)

    def segments(self, nbytes: float) -> int:
        """Return into how many segments a transfer of a stepped collective is cut."""
        return max(self.least_segments, math.ceil(nbytes / self.segment_size))


@dataclass(frozen=True)
class Ideal(Transport):
    """The textbook: a pipelined ring at line rate that pays the latency of each of its 2(n-1) steps."""


@dataclass(frozen=True)
class Nccl(Transport):
    """NCCL: pipelined, latency of a tree's depth; a message waits for its receiver."""

    rounds_of_latency: Literal["all", "depth"] = "depth"
    payload_share: float = 0.992
    rendezvous: bool = True


@dataclass(frozen=True)
class Gloo(Transport):
    """Gloo: a ring, step by step, in segments of at most 1 MiB of which two are in flight, with rendezvous.

    One process group has one connection a pair, which is half-duplex for large messages; the wall clock's
    worker uses a group for each direction, so its exchanges are not.
    """

    pipelined: bool = False
    latency_factor: float = 2.16
    payload_share: float = 0.992
    segment_size: Annotated[float, "B"] = float(2**20)
    least_segments: int = 2
    handling_rate: Annotated[float, "B/s"] = 1e9
    in_flight: Literal[1, 2] = 2
    rendezvous: bool = True


@dataclass(frozen=True)
class Fixed:
    """Given durations: what the exact timing tests and analytical models use.

    Attributes
    ----------
    all_reduce
        An all-reduce ends this long after its last arrival.
    exchange
        A message arrives this long after its sender's call.
    """

    all_reduce: Annotated[float, "s"] = 0.0
    exchange: Annotated[float, "s"] = 0.0

    def __post_init__(self) -> None:
        for key, value in (("all-reduce", self.all_reduce), ("exchange", self.exchange)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{key} must be finite and 0 s or more, got {value!r}")


TRANSPORTS: dict[str, type] = {"ideal": Ideal, "nccl": Nccl, "gloo": Gloo, "fixed": Fixed}
"""Transports by the name that a scenario uses."""
