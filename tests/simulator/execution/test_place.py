"""What torchrun's and Slurm's environments say of a rank."""

from __future__ import annotations

import pytest

from simulator.execution.place import Place, first_host, place
from simulator.parts import BadInput

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "gpu[03-04,11]",
    "SLURM_TASKS_PER_NODE": "4,2,1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "4711023",
}


def test_nobody_has_started_this_process() -> None:
    assert place({}) is None
    assert place({"RANK": "0", "WORLD_SIZE": "2"}) is None
    assert place({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}) is None


def test_torchrun() -> None:
    more = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    restarted = {"TORCHELASTIC_RESTART_COUNT": "4"}
    assert place(TORCHRUN) == Place("torchrun", 3, 8, 0, 1, "gpu1", 29500, hosted=False, attempt=0)
    expected = Place("torchrun", 3, 8, 1, 2, "gpu1", 29500, hosted=True, attempt=4)
    assert place({**TORCHRUN, **more, **restarted}) == expected


def test_slurm() -> None:
    assert place(SLURM) == Place("Slurm", 5, 7, 1, 2, "gpu03", 20000 + 11023)
    assert place({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "77"}) == Place(
        "Slurm", 5, 7, 1, 2, "10.0.0.1", 77
    )


def test_the_hosts_of_the_step_count_where_it_has_its_own() -> None:
    found = place({**SLURM, "SLURM_STEP_NODELIST": "gpu11", "SLURM_STEP_TASKS_PER_NODE": "7(x1)"})
    assert found is not None
    assert found.address == "gpu11"


def test_torchrun_goes_before_slurm() -> None:
    found = place({**SLURM, **TORCHRUN})
    assert found is not None
    assert found.starter == "torchrun"


def test_a_single_task_launches_local_processes() -> None:
    assert place({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[7,9]", "node7"),
        ("n[001-064],login", "n001"),
        ("rack-2.gpu[4-5].example.org", "rack-2.gpu4.example.org"),
    ],
)
def test_first_host(listed: str, first: str) -> None:
    assert first_host(listed) == first


def test_what_cannot_be_read() -> None:
    with pytest.raises(BadInput) as caught:
        place({**TORCHRUN, "WORLD_SIZE": "two"})
    assert str(caught.value) == "WORLD_SIZE: this environment variable should hold a whole number, not 'two'"
    with pytest.raises(BadInput) as caught:
        place({**SLURM, "SLURM_NODELIST": "[3-4]"})
    assert str(caught.value) == "SLURM_NODELIST: '[3-4]' is no list of hosts"
