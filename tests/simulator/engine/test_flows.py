from __future__ import annotations

import copy
import json
import re
from math import nan
from pathlib import Path
from typing import Any

import pytest

from simulator.engine.flows import completion_times, read_cases

pytestmark = pytest.mark.usefixtures("each_core")

GOLDENS = Path(__file__).parents[2] / "goldens"
README = Path(__file__).parents[3] / "simulator" / "README.md"

CASE: dict[str, Any] = {
    "name": "dumb-bell",
    "links": {"a>b": {"bandwidth": 2.0, "latency": 0.5}, "b>c": {"bandwidth": 4, "latency": 0}},
    "flows": [
        {"size": 2.0, "start": 0.0, "path": ["a>b", "b>c"]},
        {"size": 6, "start": 0.5, "path": ["b>c"]},
    ],
}


def changed(where: list[Any], value: Any) -> dict[str, Any]:
    """The case with one value replaced or added."""
    case = copy.deepcopy(CASE)
    inner: Any = case
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return case


def without(*where: Any) -> dict[str, Any]:
    """The case without one key."""
    case = copy.deepcopy(CASE)
    inner: Any = case
    for key in where[:-1]:
        inner = inner[key]
    del inner[where[-1]]
    return case


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_times_in_the_order_of_the_flows() -> None:
    # Both from 0.5 on with rate 2: the first ends at 1.5; the second has 4 left for rate 4.
    assert completion_times(CASE) == [1.5, 2.5]


def test_the_case_of_the_readme(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (case,) = read_cases(written(tmp_path, block))
    # Twice the weight would give the second flow more than its cap.
    assert completion_times(case) == pytest.approx([1e-6 + 1e6 / 5e8, 1e-6 + 5e6 / 5e8], rel=1e-12)


def test_weight_and_cap_are_optional_keys() -> None:
    link = {"bandwidth": 6.0, "latency": 0.0}
    flow = {"size": 4.0, "start": 0, "path": ["l"]}
    case = {"links": {"l": link}, "flows": [flow | {"weight": 2.0}, flow, flow | {"cap": 1.5}]}
    # 3 : 1.5 : 1.5, and after 4/3 the second alone has 4.5 beside the cap.
    assert completion_times(case) == pytest.approx([4 / 3, 4 / 3 + 2 / 4.5, 4 / 1.5], rel=1e-15)


def test_a_case_without_flows_has_no_times() -> None:
    assert completion_times({"links": {}, "flows": []}) == []


def test_the_order_of_links_does_not_matter() -> None:
    case = read_cases(GOLDENS / "flow_sets_maxmin.json")[-1]
    turned = case | {"links": dict(reversed(case["links"].items()))}
    assert completion_times(turned) == completion_times(case)


@pytest.mark.parametrize(("fairness", "count"), [("maxmin", 33), ("rtt", 10)])
def test_goldens_of_simgrid(fairness: Any, count: int) -> None:
    cases = read_cases(GOLDENS / f"flow_sets_{fairness}.json")
    assert len(cases) == count
    for case in cases:
        assert completion_times(case, fairness) == pytest.approx(case["completion"], rel=1e-9, abs=0.0)


def test_a_file_holds_one_case_or_a_list(tmp_path: Path) -> None:
    assert read_cases(written(tmp_path, CASE)) == [CASE]
    assert read_cases(str(written(tmp_path, [CASE, CASE]))) == [CASE, CASE]
    assert read_cases(written(tmp_path, without("name"))) == [without("name")]


POSITIVE = "must be a positive, finite number, not "
NOT_NEGATIVE = "must be a finite number of at least 0, not "

WRONG = [
    (changed(["flow"], []), "unknown key 'flow'; the nearest is 'flows'"),
    (without("links"), "the key 'links' is missing"),
    (without("flows"), "the key 'flows' is missing"),
    (changed(["links"], []), "'links' must be an object of links by name, not a list"),
    (changed(["flows"], {}), "'flows' must be a list, not an object"),
    (changed(["flows"], "x"), "'flows' must be a list, not a text"),
    (changed(["links", "a>b"], 3.0), "link 'a>b': must be an object, not 3.0"),
    (
        changed(["links", "a>b", "bandwith"], 1),
        "link 'a>b': unknown key 'bandwith'; the nearest is 'bandwidth'",
    ),
    (without("links", "a>b", "bandwidth"), "link 'a>b': the key 'bandwidth' is missing"),
    (without("links", "a>b", "latency"), "link 'a>b': the key 'latency' is missing"),
    (changed(["links", "a>b", "bandwidth"], 0), f"link 'a>b': 'bandwidth' {POSITIVE}0"),
    (changed(["links", "a>b", "bandwidth"], -2.0), f"link 'a>b': 'bandwidth' {POSITIVE}-2.0"),
    (changed(["links", "a>b", "bandwidth"], "1 GB/s"), f"link 'a>b': 'bandwidth' {POSITIVE}'1 GB/s'"),
    (changed(["links", "b>c", "latency"], -1e-6), f"link 'b>c': 'latency' {NOT_NEGATIVE}-1e-06"),
    (changed(["flows", 1], None), "flow 1: must be an object, not null"),
    (changed(["flows", 1, "sise"], 1), "flow 1: unknown key 'sise'; the nearest is 'size'"),
    (without("flows", 1, "size"), "flow 1: the key 'size' is missing"),
    (without("flows", 1, "start"), "flow 1: the key 'start' is missing"),
    (without("flows", 1, "path"), "flow 1: the key 'path' is missing"),
    (changed(["flows", 1, "size"], -1), f"flow 1: 'size' {NOT_NEGATIVE}-1"),
    (changed(["flows", 1, "size"], nan), f"flow 1: 'size' {NOT_NEGATIVE}nan"),
    (changed(["flows", 1, "size"], 10**400), f"flow 1: 'size' {NOT_NEGATIVE}1{'0' * 400}"),
    (changed(["flows", 1, "size"], True), f"flow 1: 'size' {NOT_NEGATIVE}True"),
    (changed(["flows", 0, "start"], -0.5), f"flow 0: 'start' {NOT_NEGATIVE}-0.5"),
    (changed(["flows", 0, "cap"], 0), f"flow 0: 'cap' {POSITIVE}0"),
    (changed(["flows", 0, "weight"], -1), f"flow 0: 'weight' {POSITIVE}-1"),
    (changed(["flows", 0, "path"], []), "flow 0: 'path' must be a list of one link or more, not []"),
    (changed(["flows", 0, "path"], "a>b"), "flow 0: 'path' must be a list of one link or more, not 'a>b'"),
    (
        changed(["flows", 0, "path"], ["a>d"]),
        "flow 0: 'path' has the unknown link 'a>d'; the nearest is 'a>b'",
    ),
    (
        changed(["flows", 0, "path"], [["a>b"]]),
        "flow 0: 'path' has the unknown link ['a>b']; the nearest is 'a>b'",
    ),
    (changed(["flows", 0, "path"], ["a>b", "a>b"]), "flow 0: 'path' has the link 'a>b' twice"),
]


@pytest.mark.parametrize(("case", "message"), WRONG)
def test_what_is_wrong_with_a_case_is_said_with_file_case_place_and_key(
    case: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, [CASE, case | {"name": "bad"}])
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: case 'bad': {message}"
    with pytest.raises(ValueError) as error:
        completion_times(case)
    assert str(error.value).removeprefix("the case: ") == message


def test_a_case_that_is_no_object(tmp_path: Path) -> None:
    path = written(tmp_path, [CASE, 7])
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: case 1: must be an object, not 7"
    with pytest.raises(ValueError) as error:
        completion_times("case")  # type: ignore[arg-type]
    assert str(error.value) == "the case: must be an object, not a text"


def test_cases_of_a_list_have_names(tmp_path: Path) -> None:
    path = written(tmp_path, [CASE, without("name")])
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: case 1: the key 'name' is missing"
    path = written(tmp_path, changed(["name"], 3))
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: 'name' must be a text, not 3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"links": {},\n "flows": [', "is not JSON: Expecting value at line 2"),
        ("", "is not JSON: Expecting value at line 1"),
        ("[]", "holds no case"),
        ('{"links": {"a": {}, "a": {}}, "flows": []}', "the key 'a' occurs twice in one object"),
        (
            '{"links": {}, "flows": [{"size": Infinity, "start": 0, "path": []}]}',
            f"flow 0: 'size' {NOT_NEGATIVE}inf",
        ),
    ],
)
def test_a_file_that_is_not_what_it_should_be(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "missing.json"
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: cannot be read: No such file or directory"
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError) as error:
        read_cases(path)
    assert str(error.value) == f"{path}: is not a text file in UTF-8"


@pytest.mark.parametrize("fairness", ["maxmin", "rtt"])
@pytest.mark.parametrize(
    ("bandwidth", "latency", "flow"),
    [
        (1e-300, 0.0, {"size": 1e300, "start": 0.0, "path": ["a"]}),
        (1.0, 0.0, {"size": 1e300, "start": 0.0, "path": ["a"], "cap": 1e-300}),
        (1.0, 1.7e308, {"size": 1.0, "start": 1e308, "path": ["a"]}),
        (1.0, 1.7e308, {"size": 0.0, "start": 1e308, "path": ["a"]}),
        (1.0, 1.7e308, {"size": 1.0, "start": 0.0, "path": ["a", "b"]}),
    ],
)
def test_a_flow_whose_time_overflows_is_named(
    bandwidth: float, latency: float, flow: dict[str, Any], fairness: Any
) -> None:
    link = {"bandwidth": bandwidth, "latency": latency}
    quick = {"bandwidth": 1.0, "latency": 1.0}
    case = {
        "links": {"a": link, "b": link, "c": quick},
        "flows": [{"size": 1.0, "start": 0.0, "path": ["c"]}, flow],
    }
    message = (
        "flow 1: it would end after more than 1.8e+308 seconds; use a smaller 'size', 'start' or 'latency', "
        "or a larger 'bandwidth' or 'cap'"
    )
    for named, where in ((case, ""), ({**case, "name": "late"}, "case 'late': ")):
        with pytest.raises(ValueError) as error:
            completion_times(named, fairness)
        assert str(error.value) == where + message


def test_shares_that_are_no_numbers_are_refused() -> None:
    case = {
        "name": "far apart",
        "links": {"a": {"bandwidth": 1e154, "latency": 1.0}, "b": {"bandwidth": 7e-215, "latency": 1.0}},
        "flows": [
            {"size": 7e-185, "start": 0.0, "path": ["a", "b"], "weight": 2.5e-9, "cap": 1e-320},
            {"size": 1e-185, "start": 0.0, "path": ["b", "a"], "weight": 5e-324},
        ],
    }
    with pytest.raises(ValueError) as error:
        completion_times(case, "rtt")
    assert str(error.value) == (
        "case 'far apart': the 'weight', 'cap' and 'bandwidth' of its flows and links lie so far apart that "
        "a share is no number any more; use ones within some 100 powers of ten"
    )


def test_an_unknown_fairness_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        completion_times(CASE, "fair")  # type: ignore[arg-type]
    assert str(error.value) == "fairness is 'maxmin' or 'rtt', not 'fair'"
