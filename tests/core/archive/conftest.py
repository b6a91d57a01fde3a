"""Archives that the tests send to, and objects to send."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from kdmri_edge.archive.address import Archive
from kdmri_edge.data.formats.dicom.writing import dicom_objects
from kdmri_edge.data.image import ImageRecord


@dataclass(frozen=True)
class Archives:
    """What listens, by how it behaves (see scp.py)."""

    folder: Path
    ports: dict[str, int]
    certificate: Path | None

    def archive(self, name: str, **how: Any) -> Archive:
        return Archive(title="ARCHIVE", host="127.0.0.1", port=self.ports[name], **how)

    def address(self, name: str) -> str:
        return self.archive(name).name

    def stored(self, name: str) -> list[pydicom.Dataset]:
        found = [pydicom.dcmread(file) for file in (self.folder / name).glob("*.dcm")]
        return sorted(found, key=lambda data: (data.SeriesInstanceUID, int(data.InstanceNumber)))

    def associations(self, name: str) -> int:
        return len((self.folder / f"{name}.log").read_text(encoding="utf-8").splitlines())


@pytest.fixture
def archives(_archives: Archives) -> Archives:
    """The archives, empty."""
    for name in _archives.ports:
        for file in (_archives.folder / name).iterdir():
            file.unlink()
        (_archives.folder / f"{name}.log").write_text("")
    return _archives


@pytest.fixture(scope="package")
def _archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archives]:
    folder = tmp_path_factory.mktemp("archives")
    pair: list[Path] = []
    if shutil.which("openssl"):
        pair = [folder / "certificate.pem", folder / "key.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", "-subj", "/CN=archive",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pair[1], "-out", pair[0]],
            check=True, capture_output=True,
        )  # fmt: skip
    command = [sys.executable, Path(__file__).with_name("scp.py"), folder, *pair]
    with subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ports = json.loads(process.stdout.readline())
        yield Archives(folder, ports, pair[0] if pair else None)
        process.kill()


@pytest.fixture
def objects() -> Callable[[int], list[bytes]]:
    """Return what makes the objects of a series of small images that lie somewhere."""

    def make(slices: int) -> list[bytes]:
        image = np.random.default_rng(slices).random((slices, 8, 6), np.float32)
        affine = np.array([[0, 0, 2, -5], [0, 1.5, 0, 7], [4, 0, 0, 11], [0, 0, 0, 1.0]])
        picture = ImageRecord(image=image, affine=affine, derivation="Drawn.")
        return list(dicom_objects(picture))

    return make
