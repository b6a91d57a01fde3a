"""Several coils and networks of one image: no image worse than zero-filled without a flag.

`run` refuses what `serve` answers with a flagged zero-filled image, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import equispaced_lines, variable_density_lines
from kdmri_edge.runtime.pipeline import Pipeline, zero_filled_magnitude
from tests.core.mrd.conftest import running

Array = NDArray[Any]
SIZE = 128
COMPLEX = ("dccnn-d3c5-complex@measured-4x", "dccnn-d5c5-complex@measured-4x")
MAGNITUDE = ("dccnn-d3c5@brain-any-mask", "dccnn-d5c5@brain-any-mask")
SENSE = ("dccnn-d3c5-sense@measured-4x",)
OBJECTS = ("phantom", "phantom, phase", "measured", "measured, turned")
MASKS = {
    "own": None,
    "2x": variable_density_lines(SIZE, 2.0, centre_lines=24, seed=1),
    "2x, ten centre lines": variable_density_lines(SIZE, 2.0, centre_lines=10, seed=6),
    "4x": variable_density_lines(SIZE, 4.0, centre_lines=24, seed=2),
    "4x, ten centre lines": variable_density_lines(SIZE, 4.0, centre_lines=10, seed=3),
    "equispaced": equispaced_lines(SIZE, 3.0, centre_fraction=0.1),
}


def whole(name: str, real_data: Path, coils: int) -> NDArray[np.complex64]:
    """Return fully sampled k-space [C, H, W]."""
    if name.startswith("phantom"):
        image = phantom_volume(3, slices=3, matrix=SIZE, complex_phase="phase" in name).image[1]
        return image_to_kspace(image * coil_maps(coils, SIZE, SIZE)).astype(np.complex64)
    with h5py.File(real_data / "kspace" / "invivo_brain_16coil.h5") as file:
        kspace = np.fft.ifftshift(file["kspace"][()], axes=(-2, -1)).astype(np.complex64)
    return np.ascontiguousarray(kspace.swapaxes(-1, -2)) if "turned" in name else kspace


def error(image: Array, wanted: Array) -> float:
    """Return the relative error of a magnitude image within the object."""
    inside = wanted > 0.1 * np.percentile(wanted, 99)
    wrong = np.linalg.norm((np.abs(image) - wanted)[inside])
    return float(wrong / np.linalg.norm(wanted[inside]))


def by_command(
    cli: Callable[..., Any], network: str, scan: Scan, folder: Path, *options: str
) -> tuple[Array | None, str]:
    """Return the image of `run`, or why there is none."""
    write_scan(folder / "scan.h5", scan)
    out = folder / "image.npy"
    done = cli(
        "run", network, folder / "scan.h5", "-o", out, "--no-cache", "--threads", 1, *options
    )
    if done.code:
        done.check_refusal()
        return None, done.err
    return np.abs(np.load(out)[0]), ""


def by_server(pipeline: Pipeline, scan: Scan) -> tuple[Array, str | None]:
    """Return the image of `serve`, and why it is the zero-filled one."""
    with running(pipeline, deadline_s=60.0) as server:
        xml = write_encoding(encoding_of(scan))
        (image,) = send_scan(xml, readouts(scan), port=server.port, timeout_s=60).images
    return np.asarray(image.data[0, 0]), fallback_of(image)


@pytest.mark.nightly
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("network", [*COMPLEX, *MAGNITUDE, *SENSE])
@pytest.mark.parametrize("name", OBJECTS)
def test_no_image_is_worse_than_zero_filled_without_a_flag(
    cli: Callable[..., Any], name: str, network: str, mask: str, real_data: Path, tmp_path: Path
) -> None:
    free = mask != "own" or network in MAGNITUDE
    options = ("--matrix", "any") if free else ()
    with Pipeline(
        resolve_weights(Path(network)), backend="torch", threads=1, any_matrix=free
    ) as pipeline:
        sampled = MASKS[mask] or pipeline.reads.at((SIZE, SIZE)).mask
        for coils in (4, 16) if name.startswith("phantom") else (16,):
            kspace = whole(name, real_data, coils)
            scan = Scan(kspace=(kspace * sampled.grid)[None], mask=sampled, name=name, subject="p")
            served, reason = by_server(pipeline, scan)
            found, said = by_command(cli, network, scan, tmp_path, *options)
            # one road: what one refuses the other one flags
            assert (found is None) == (reason is not None), (said, reason)
            zero_filled = zero_filled_magnitude(scan.kspace[0])
            if found is None:
                assert reason in said
                np.testing.assert_allclose(served, zero_filled, rtol=1e-4, atol=1e-6)
                continue
            np.testing.assert_allclose(served, found, atol=1e-4 * found.max())
            wanted = zero_filled_magnitude(kspace)
            assert error(found, wanted) <= error(zero_filled, wanted), coils
            if network in SENSE:
                assert error(found, wanted) < 0.9 * error(zero_filled, wanted), coils
