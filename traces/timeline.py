"""A timeline: what every worker did when, as a table of spans.

A span is an interval in which a worker computed, transferred, or waited for peers. Waiting for a peer is
a span of its own and names the peer, because a late rank otherwise shows up as slow communication of all
the others. Times are seconds from the start of the run, sizes are bytes.

On disk a timeline is a Parquet table with the columns below.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COMPUTE, TRANSFER, WAIT = "compute", "transfer", "wait"
"""The kinds of spans."""

PACKED_TOGETHER = 4096
"""So many spans wait until they are moved into the columns, which is faster than one by one."""

_TYPES = "iHddidi"
"""The types of the columns; kind and operation are one number."""


class Span(NamedTuple):
    """One interval of one worker.

    Attributes
    ----------
    worker
        Rank.
    kind
        ``compute``, ``transfer`` or ``wait``.
    operation
        What was done: ``gradient``, ``update``, ``combine``, ``all_reduce``, ``exchange``.
    start, end
        Seconds.
    peer
        The rank waited for or exchanged with; -1 where it is no single one.
    nbytes
        Bytes that this worker sent in it.
    iteration
        Gradients that this worker had begun.
    """

    worker: int
    kind: str
    operation: str
    start: float
    end: float
    peer: int = -1
    nbytes: float = 0.0
    iteration: int = 0


Row = tuple[int, str, str, float, float, int, float, int]
"""A span as a plain tuple, which is made at a fraction of the price."""


class Timeline:
    """Spans in the order in which they were recorded, kept column by column in some 40 bytes each.

    Parameters
    ----------
    spans
        Those to begin with.
    """

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._recent: list[Row] = []
        # Of each column its pieces: one long array would leave holes in memory whenever it moves to grow.
        self._pieces: list[list[array[Any]]] = [[] for _ in _TYPES]
        self._phases: dict[tuple[str, str], int] = {}
        for span in spans:
            self.append(span)

    def __len__(self) -> int:
        return sum(map(len, self._pieces[0])) + len(self._recent)

    def __iter__(self) -> Iterator[Span]:
        self._pack()
        return map(Span._make, zip(*self.columns().values(), strict=True))

    @property
    def spans(self) -> list[Span]:
        """The spans as a new list."""
        return list(self)

    def append(self, span: Row) -> None:
        """Add a span, or its fields."""
        self._recent.append(span)
        if len(self._recent) == PACKED_TOGETHER:
            self._pack()

    def _pack(self) -> None:
        """Move the spans that came last into the columns."""
        if not self._recent:
            return
        worker, kind, operation, start, end, peer, nbytes, iteration = zip(*self._recent, strict=True)
        self._recent.clear()
        phases = self._phases
        phase = [phases.setdefault(pair, len(phases)) for pair in zip(kind, operation, strict=True)]
        columns = (worker, phase, start, end, peer, nbytes, iteration)
        for pieces, code, column in zip(self._pieces, _TYPES, columns, strict=True):
            pieces.append(array(code, column))

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the table column by column."""
        self._pack()
        for pieces, code in zip(self._pieces, _TYPES, strict=True):
            if len(pieces) != 1:
                pieces[:] = [array(code, b"".join(pieces))]
        worker, phase, start, end, peer, nbytes, iteration = (pieces[0] for pieces in self._pieces)
        phases = list(self._phases)
        return {
            "worker": worker,
            "kind": [phases[number][0] for number in phase],
            "operation": [phases[number][1] for number in phase],
            "start": start,
            "end": end,
            "peer": peer,
            "nbytes": nbytes,
            "iteration": iteration,
        }

    def write(self, path: Path) -> None:
        """Write a Parquet file."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = [
            pa.int32(),
            pa.string(),
            pa.string(),
            pa.float64(),
            pa.float64(),
            pa.int32(),
            pa.float64(),
            pa.int32(),
        ]
        schema = pa.schema(list(zip(Span._fields, types, strict=True)))
        columns = {
            name: np.asarray(column) if isinstance(column, array) else column
            for name, column in self.columns().items()
        }
        pq.write_table(pa.table(columns, schema=schema), path)

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """Read a Parquet file that :meth:`write` wrote.

        Raises
        ------
        ValueError
            The file is not such a table; one sentence that names it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            columns = pq.read_table(path, columns=list(Span._fields)).to_pydict()
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path.name} is not a timeline: {error}") from None
        return cls(map(Span._make, zip(*columns.values(), strict=True)))
