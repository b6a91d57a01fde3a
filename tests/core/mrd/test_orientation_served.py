"""Images of a stream lie where the vendor's convention, or the server's settings, put them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.data.geometry import regridded
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import write_images
from kdmri_edge.mrd.format.header import write_encoding
from tests.core.mrd.scans import AFFINE, noise_scan


@pytest.mark.parametrize(
    ("vendor", "wanted", "against"),
    [(None, Orientation.VENDOR, False), ("SIEMENS", Orientation.VENDOR, True),
     ("SIEMENS", Orientation.ALONG, False), ("GE MEDICAL SYSTEMS", Orientation.AGAINST, True)],
)  # fmt: skip
def test_a_stream_of_a_vendor(
    serving, events, tmp_path: Path, vendor: str | None, wanted: Orientation, against: bool
) -> None:
    scan = noise_scan(3, height=8, width=7, affine=AFFINE)
    xml = write_encoding(replace(encoding_of(scan), vendor=vendor), slices=3)
    server = serving(orientation=wanted)
    reply = send_scan(xml, readouts(scan), port=server.port, timeout_s=10)
    write_images(tmp_path / "a.h5", reply.images)
    centre = (0, 4, 3)
    turned = regridded(AFFINE, old=centre, new=centre, step=(1, -1, -1))
    affine = read_volume(tmp_path / "a.h5").affine
    np.testing.assert_allclose(affine, turned if against else AFFINE, atol=1e-4)
    (header,) = events("header")
    assert header["orientation"] == ("against" if against else "along")
