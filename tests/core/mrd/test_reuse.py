"""Sensitivities of one repetition serve the others of a scan, where the site asks for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ismrmrd import Acquisition

from kdmri_edge.data.scan import Scan
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.mrd.scans import HALF, ROWS, SIZE, phantom_scan


def repeated(scans: list[Scan]) -> list[Acquisition]:
    lines = []
    for number, scan in enumerate(scans):
        for line in readouts(scan):
            line.idx.repetition = number
            lines.append(line)
    return lines


@pytest.mark.parametrize("reuse", [True, False])
def test_a_repetition_without_a_centre(serving, sense: Path, reuse: bool) -> None:
    """The second and third have no lines that tell sensitivities; those of the first do."""
    samples = np.zeros(SIZE, np.bool_)
    samples[ROWS] = True
    centre = Mask(samples=samples, name="centre")
    scans = [phantom_scan(mask, slices=2) for mask in (centre, HALF, HALF)]
    with Pipeline(sense, threads=1) as pipeline:
        server = serving(pipeline, reuse_coils=reuse, deadline_s=30.0)
        xml = write_encoding(encoding_of(scans[0]))
        reply = send_scan(xml, repeated(scans), port=server.port, timeout_s=30)
    assert len(reply.images) == 6
    flagged = {
        (int(image.repetition), int(image.slice)): fallback_of(image) is not None
        for image in reply.images
    }
    assert flagged == {(r, s): r > 0 and not reuse for r in range(3) for s in range(2)}
