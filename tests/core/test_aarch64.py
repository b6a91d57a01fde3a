"""What runs on a device can be installed on 64-bit ARM, and its scripts parse as Python 3.10.

The index's answer is kept in tests/data (`python -m maintainer.aarch64`): no network is asked.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from kdmri_edge.runtime.backends import run_engine
from kdmri_export.targets.tensorrt import build_engine, jetson
from maintainer.aarch64 import FILE, SCRIPTS, runtime_requirements

KEPT = json.loads(FILE.read_text(encoding="utf-8"))
ROOT = Path(__file__).resolve().parents[2]


def versions(wheels: list[str]) -> dict[str, str]:
    """Return package -> version of wheels that such a machine takes."""
    found = {}
    for name in wheels:
        package, version, _, tags = parse_wheel_filename(name)
        assert any(tag.platform == "any" or tag.platform.endswith("aarch64") for tag in tags), name
        found[str(package)] = str(version)
    return found


@pytest.mark.parametrize("python", sorted(KEPT["wheels"]))
def test_every_runtime_dependency_has_a_wheel(python: str) -> None:
    found = versions(KEPT["wheels"][python])
    for text in runtime_requirements():
        wanted = Requirement(text)
        assert wanted.specifier.contains(found[canonicalize_name(wanted.name)]), text


def test_the_kept_answer_is_that_of_pyproject() -> None:
    assert KEPT["asked_for"] == runtime_requirements(), "run `python -m maintainer.aarch64`"
    assert set(versions(KEPT["scripts"]["wheels"]["3.10"])) >= set(SCRIPTS)
    assert "://" not in FILE.read_text(encoding="utf-8")  # names alone, of no index


def test_a_runtime_dependency_without_a_wheel_would_be_found() -> None:
    with pytest.raises(AssertionError):
        versions(["numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"])


@pytest.mark.parametrize("script", [build_engine, run_engine, jetson], ids=lambda one: one.__name__)
def test_scripts_of_a_bundle_parse_as_python_3_10(script: object) -> None:
    text = Path(str(script.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    ast.parse(text, feature_version=(3, 10))
    assert "tomllib" not in text
    assert "StrEnum" not in text


def test_what_runs_a_bundle_parses_as_python_3_10() -> None:
    """Syntax alone: the package itself asks for 3.11, whose standard library it uses."""
    code = (
        "import sys; sys.path[:] = %r; import kdmri_edge.runtime.pipeline as _;"
        " import kdmri_edge.runtime.backends.onnxruntime as _;"
        " import kdmri_edge.runtime.backends.openvino as _;"
        " print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('kdmri_')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code % sys.path], capture_output=True, text=True, check=True
    )
    files = [Path(name) for name in done.stdout.split() if name != "None"]
    assert len(files) > 20
    for file in files:
        ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
