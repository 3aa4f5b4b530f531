"""The package as a whole: cheap to import, documented, and the same for every hash seed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import topologies

HEAVY = ("torch", "plotly", "numba", "pandas", "simpy", "scipy")

IMPORT = f"""
import sys, time
start = time.process_time()
import topologies
print(time.process_time() - start)
print([name for name in {HEAVY!r} if name in sys.modules])
"""

# Everything that could depend on the order of a set or dict of strings.
FINGERPRINT = """
import hashlib, itertools, tempfile, pathlib
import topologies as t
text = []
graphs = [
    t.two_level(hosts=3, gpus_per_host=2, all_to_all_inside=True),
    t.fat_tree(leaves=3, hosts_per_leaf=3, spines=3),
    t.dragonfly(groups=4, routers_per_group=2, gpus_per_router=2),
    t.random_regular(nodes=12, degree=3, seed=5),
    t.exponential(nodes=6),
]
for graph in graphs:
    text.append(repr(list(graph.nodes(data=True))) + repr(list(graph.edges(data=True))))
    text.append(repr(t.link_table(graph)))
    for policy in t.POLICIES:
        router = t.Router(graph, policy)
        text += [repr(router.route(*pair)) for pair in itertools.permutations(t.gpus(graph), 2)]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".json", ".gml", ".graphml"):
            path = pathlib.Path(folder) / ("x" + suffix)
            t.write_topology(graph, path)
            text.append(path.read_text())
print(hashlib.sha256("".join(text).encode()).hexdigest())
"""


def test_import_is_cheap_and_brings_nothing_heavy(fresh_python: Callable[..., str]) -> None:
    for _ in range(3):
        seconds, heavy = fresh_python(IMPORT).splitlines()
        assert heavy == "[]"
        if float(seconds) < 0.5:  # else once more: other work may have slowed it
            break
    assert float(seconds) < 0.5


def test_results_do_not_depend_on_the_hash_seed(fresh_python: Callable[..., str]) -> None:
    assert len({fresh_python(FINGERPRINT, hash_seed=seed) for seed in ("0", "1", "2")}) == 1


def test_using_every_part_brings_nothing_heavy(fresh_python: Callable[..., str]) -> None:
    program = (
        FINGERPRINT
        + "t.check_mixing(t.uniform(t.ring(nodes=5)), symmetric=True)\nimport sys\n"
        + f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert fresh_python(program).splitlines()[1] == "[]"


def test_every_public_name_is_listed_once_and_documented() -> None:
    assert len(set(topologies.__all__)) == len(topologies.__all__)
    for name in topologies.__all__:
        value = getattr(topologies, name)
        if inspect.isfunction(value) or (
            inspect.isclass(value) and value.__module__.startswith("topologies")
        ):
            assert inspect.getdoc(value), name


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(topologies.__file__).parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    table = topologies.link_table(names["cluster"])
    assert [table.names[link] for link in names["links"]] == [
        "host0/gpu0->host0",
        "host0->switch",
        "switch->host5",
        "host5->host5/gpu2",
    ]
    assert len(topologies.gpus(topologies.read_topology("cluster.graphml"))) == 18
