from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from traces import Span, Timeline
from traces.perfetto import trace, write_trace


@dataclass
class Links:
    name: list[str]
    capacity: list[float]
    change_link: list[int]
    change_time: list[float]
    change_rate: list[float]


SPANS = st.lists(
    st.builds(
        lambda worker, kind, start, length, peer: Span(
            worker, kind, "op", start / 7, (start + length) / 7, peer, 8.0 * length, start
        ),
        st.integers(0, 3),
        st.sampled_from(["compute", "transfer", "wait"]),
        st.integers(0, 50),
        st.integers(0, 9),
        st.integers(-1, 3),
    ),
    max_size=40,
)


def check(content: dict[str, Any]) -> None:
    """The rules of the Trace Event Format for the events that we write."""
    assert content["displayTimeUnit"] in ("ms", "ns")
    threads: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named: set[tuple[int, int]] = set()
    processes: set[int] = set()
    for event in content["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ph"] in ("M", "X", "C")
        if event["ph"] == "M":
            key = {
                "process_name": "name",
                "thread_name": "name",
                "process_sort_index": "sort_index",
                "thread_sort_index": "sort_index",
            }[event["name"]]
            assert list(event["args"]) == [key]
            if event["name"] == "process_name":
                processes.add(event["pid"])
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
            continue
        assert event["pid"] in processes
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named
            threads[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
        else:
            assert all(isinstance(value, float) for value in event["args"].values())
    for events in threads.values():
        for (start, length), (following, _) in itertools.pairwise(events):
            assert start + length <= following + 1e-3, "events of one thread cross"


@given(SPANS)
def test_traces_follow_the_format(spans: list[Span]) -> None:
    content = trace(Timeline(spans))
    check(json.loads(json.dumps(content, allow_nan=False)))
    events = [event for event in content["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(spans)
    total = sum(span.end - span.start for span in spans)
    assert abs(sum(event["dur"] for event in events) - 1e6 * total) < 1e-2


def test_a_trace_in_full() -> None:
    spans = [
        Span(0, "compute", "gradient", 0.0, 1.5e-3, iteration=1),
        Span(0, "transfer", "all_reduce", 1e-3, 2e-3, nbytes=64.0, iteration=1),
        Span(0, "wait", "exchange", 1.5e-3, 2.5e-3, peer=3, iteration=1),
    ]
    links = Links(["a->b"], [1000.0], [0, 0], [1e-3, 2e-3], [250.0, 0.0])
    content = trace(Timeline(spans), links, "title")
    check(content)
    shown = [
        {key: event[key] for key in ("name", "ph", "ts", "dur", "pid", "tid", "args") if key in event}
        for event in content["traceEvents"]
        if event["ph"] != "M"
    ]
    assert shown == [
        {
            "name": "gradient",
            "ph": "X",
            "ts": 0.0,
            "dur": 1500.0,
            "pid": 1,
            "tid": 1,
            "args": {"iteration": 1},
        },
        {
            "name": "all_reduce",
            "ph": "X",
            "ts": 1000.0,
            "dur": 1000.0,
            "pid": 1,
            "tid": 2,
            "args": {"iteration": 1, "bytes": 64.0},
        },
        {
            "name": "wait: exchange",
            "ph": "X",
            "ts": 1500.0,
            "dur": 1000.0,
            "pid": 1,
            "tid": 3,
            "args": {"iteration": 1, "peer": 3},
        },
        {"name": "a->b (%)", "ph": "C", "ts": 1000.0, "pid": 0, "tid": 0, "args": {"utilisation": 25.0}},
        {"name": "a->b (%)", "ph": "C", "ts": 2000.0, "pid": 0, "tid": 0, "args": {"utilisation": 0.0}},
    ]
    names = [event["args"]["name"] for event in content["traceEvents"] if event["name"].endswith("_name")]
    assert names == ["worker 0", "compute", "network", "network 2", "links"]
    assert content["otherData"] == {"title": "title", "shown": "the whole run"}


def test_long_runs_are_cut_at_a_time() -> None:
    spans = [Span(worker, "compute", "gradient", float(k), k + 1.0) for k in range(10) for worker in (0, 1)]
    content = trace(Timeline(spans), limit=8)
    starts = [event["ts"] for event in content["traceEvents"] if event["ph"] == "X"]
    assert sorted(starts) == [1e6 * k for k in range(4) for _ in (0, 1)]
    assert content["otherData"]["shown"] == "the first 4 s, cut after 8 events"


def test_files_are_json_and_reproducible(tmp_path: Path) -> None:
    spans = [Span(0, "compute", "grädient", 0.1, 0.2)]
    links = Links(["a->b"], [3.0], [0], [0.1], [1.0])
    for name in ("one.json", "two.json"):
        write_trace(tmp_path / name, Timeline(spans), links, "t")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(trace(Timeline(spans), links, "t"))
    )


def test_an_empty_run_is_a_valid_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", Timeline())
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"] == []
