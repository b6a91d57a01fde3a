"""Freed memory stays with the process where glibc can be asked for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of taking and giving back 8 MiB, over and over, without and with the setting.
CODE = """
import resource
import torch
from kdmri_edge.utils.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        first, second = torch.ones(2**21), torch.ones(2**21)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_are_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )
    before, after = map(int, done.stdout.split())
    assert before > 10_000
    assert after < before / 20
