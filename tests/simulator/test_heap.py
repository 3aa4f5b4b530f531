"""What is freed is there for the next tensors, without the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

TOUCH_AGAIN = """
import resource
import torch
from simulator.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20) for _ in range(32)]  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = keep_freed_memory()
faults()
print(kept, min(faults() for _ in range(3)))
"""


def touched_again(**environment: str) -> tuple[str, int]:
    """Return what was answered, and how many pages are new when 128 MiB are taken once more."""
    known = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    output = subprocess.run(
        [sys.executable, "-c", TOUCH_AGAIN],
        env={**known, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return output[0], int(output[1])


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
PAGES = 2**27 // os.sysconf("SC_PAGE_SIZE")


@GLIBC
def test_what_is_freed_is_used_again() -> None:
    kept, new = touched_again()
    assert kept == "True"
    assert new < 0.01 * PAGES


@GLIBC
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")],
)
def test_what_the_environment_says_stays(name: str, value: str) -> None:
    """Here that every block comes from the system, and goes back to it."""
    kept, new = touched_again(**{name: value})
    assert kept == "False"
    assert new > 0.9 * PAGES
