"""A timeline: what every worker did when, as a table of spans.

A span is an interval in which a worker computed, transferred, or waited for peers. Waiting for a peer is
a span of its own and names the peer, because a late rank otherwise shows up as slow communication of all
the others. Times are seconds from the start of the run, sizes are bytes.

On disk a timeline is a Parquet table with the columns below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

COMPUTE, TRANSFER, WAIT = "compute", "transfer", "wait"
"""The kinds of spans."""


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


class Timeline:
    """Spans in the order in which they were recorded."""

    def __init__(self, spans: list[Span] | None = None) -> None:
        self.spans: list[Span] = [] if spans is None else spans

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def columns(self) -> dict[str, list[Any]]:
        """Return the table column by column."""
        columns = zip(*self.spans, strict=True) if self.spans else ((),) * len(Span._fields)
        return {name: list(column) for name, column in zip(Span._fields, columns, strict=True)}

    def write(self, path: Path) -> None:
        """Write a Parquet file."""
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
        pq.write_table(pa.table(self.columns(), schema=schema), path)

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
        return cls([Span(*row) for row in zip(*columns.values(), strict=True)])
