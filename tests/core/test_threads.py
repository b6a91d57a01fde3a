"""--threads bounds what computes beside the runtime, too."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from kdmri_edge.utils.threads import mapped, slices_at_once

COUNT = """
import sys
import numpy
from pathlib import Path
from threadpoolctl import threadpool_info
from kdmri_edge.runtime.session import open_session
with open_session(Path(sys.argv[1]), threads=int(sys.argv[2])):
    print(*(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_linear_algebra_keeps_to_it(tiny_bundles: dict[str, Path], threads: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, tiny_bundles["magnitude"], str(threads)],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    found = {int(word) for word in done.stdout.split()}
    assert found == {threads}, done.stderr


def test_things_are_made_at_once_and_come_back_in_order() -> None:
    both = threading.Barrier(2)

    def make(number: int) -> int:
        both.wait(20)
        assert {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} == {1}
        return -number

    before = threadpool_info()
    assert mapped(make, range(4), 2) == [0, -1, -2, -3]
    assert threadpool_info() == before
    assert mapped(lambda number: number + 1, [1], 2) == [2]
    assert [slices_at_once(threads) for threads in (1, 2, 8)] == [1, 2, 2]
