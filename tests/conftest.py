"""Fixtures that all tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.exporting import share_fixed_work

DATA_VARIABLE = "KDMRI_TEST_DATA"

# At most two threads, as on the smallest machine that the tests run on, and no more than the cores
# that fall to one of pytest-xdist's workers: threads that wait for each other's cores slow all
# down. Set before PyTorch is first imported, which reads it then; their processes inherit it.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, max(1, (os.cpu_count() or 1) // _WORKERS))))

# A change is refused or taken by the same examples each time; new ones are drawn at night, by
# --hypothesis-profile=nightly.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("nightly", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("ci")

# What takes longest begins first, so that no worker is left alone with it at the end.
LONGEST_FIRST = (
    "bench/test_bench.py",
    "export/test_openvino.py",
    "bench/test_examples.py",
    "core/distill/test_resume.py",
    "bench/test_readme_commands.py",
    "export/test_trt.py",
    "export/test_complex_numbers.py",
    "export/test_onnx.py",
    "core/test_compatibility.py",
    "core/distill/test_two_processes.py",
    "core/test_run_command.py",
)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep pytest-xdist from ordering the files by their number of tests instead.

    And have commands end by Ctrl-C where a script started pytest in the background, which ignores
    it: their processes would, too, and the tests of it wait in vain.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    root = Path(__file__).resolve().parent
    items.sort(key=lambda item: rank.get(item.path.relative_to(root).as_posix(), len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep exports of checkpoints, and what code is allowed, out of the cache of who runs this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_exports() -> None:
    if "torch" in sys.modules:  # tests that were collected use it
        share_fixed_work()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: $KDMRI_TEST_DATA, else shared/data beside the checkout."""
    given = os.environ.get(DATA_VARIABLE)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given) if given else beside
    if not (folder / "brain").is_dir():
        pytest.skip(f"no real data at {folder}; set {DATA_VARIABLE} to a folder that holds brain/")
    return folder
