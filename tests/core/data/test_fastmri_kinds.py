"""Files in fastMRI's layout by other hands: padding, headers, coils where slices are expected."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.data.inspection import inspect
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import Coils, coil_maps
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image

READOUT, LINES = 64, 48
SPACE = (
    "<{0}><matrixSize><x>{1}</x><y>48</y></matrixSize>"
    "<fieldOfView_mm><x>{2}</x></fieldOfView_mm></{0}>"
)


def stored(kspace: np.ndarray) -> np.ndarray:
    """[..., readout, phase encode] of k-space [..., H, W], zero frequency in the middle."""
    return np.fft.fftshift(np.swapaxes(kspace, -1, -2), (-2, -1)).astype(np.complex64)


def random_kspace(*coils: int) -> np.ndarray:
    random = np.random.default_rng(0)
    shape = (2, *coils, LINES, READOUT)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def write(path: Path, kspace: np.ndarray, reference: tuple[int, ...] | None = None, **more) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = stored(kspace)
        if reference is not None:
            file["reconstruction_rss"] = np.ones(reference, np.float32)
        for name, value in more.items():
            file[name] = value
    return path


class TestPadding:
    """Zero lines at the edges are no undersampling, for either reader."""

    @pytest.mark.parametrize("coils", [(), (3,)])
    def test_padded_at_the_edges_is_fully_sampled(
        self, tmp_path: Path, coils: tuple[int, ...]
    ) -> None:
        kspace = random_kspace(*coils)
        outer = np.fft.ifftshift(np.arange(LINES) < 4) | np.fft.ifftshift(np.arange(LINES) > 42)
        kspace[..., outer, :] = 0
        path = write(tmp_path / "a.h5", kspace, (2, READOUT, LINES))
        scan = read_scan(path)
        assert scan.mask.samples.all()
        np.testing.assert_array_equal(scan.kspace.reshape(kspace.shape), kspace)
        assert inspect(path).run.startswith("fully sampled k-space: give --undersample")
        if not coils:
            assert read_volume(path).kspace is None

    def test_a_gap_is_undersampling(self, tmp_path: Path) -> None:
        kspace = random_kspace(3)
        kspace[..., 7, :] = 0
        scan = read_scan(write(tmp_path / "a.h5", kspace, (2, READOUT, LINES)))
        assert np.flatnonzero(~scan.mask.samples).tolist() == [7]


class TestOversampling:
    """Fields of view say how much of the readout is image, however the header is written."""

    def header(self, prefix: str = "", matrix: int = 32, part: float = 220.0) -> str:
        spaces = SPACE.format("encodedSpace", READOUT, 440) + SPACE.format(
            "reconSpace", matrix, part
        )
        text = f"<ismrmrdHeader><encoding>{spaces}</encoding></ismrmrdHeader>"
        if not prefix:
            return text.replace("<ismrmrdHeader", '<ismrmrdHeader xmlns="http://a"')
        text = text.replace("</", f"</{prefix}:").replace("<", f"<{prefix}:")
        text = text.replace(f"<{prefix}:/{prefix}:", f"</{prefix}:")
        return text.replace("Header>", f'Header xmlns:{prefix}="http://a">', 1)

    @pytest.mark.parametrize(
        "kind", ["plain", "prefix", "array", "bytes", "interpolated", "declaration"]
    )
    def test_headers(self, tmp_path: Path, kind: str) -> None:
        header: object = self.header(
            "ns0" if kind == "prefix" else "", 64 if kind == "interpolated" else 32
        )
        if kind == "array":
            header = np.array([header], dtype=h5py.string_dtype())
        elif kind == "bytes":
            header = np.bytes_(str(header))
        elif kind == "declaration":
            header = f'<?xml version="1.0" encoding="utf-8"?>\n{header}\n'
        kspace = random_kspace(3)
        scan = read_scan(write(tmp_path / "a.h5", kspace, ismrmrd_header=header))
        middle = kspace_to_image(kspace)[..., READOUT // 4 : 3 * READOUT // 4]
        assert scan.matrix == (LINES, READOUT // 2)
        np.testing.assert_allclose(kspace_to_image(scan.kspace), middle, atol=1e-5)

    @pytest.mark.parametrize(
        "header",
        [
            *("", "<a", "<ismrmrdHeader/>", "<!DOCTYPE a><a/>"),
            *(
                SPACE.format("encodedSpace", 64, whole).join(("<encoding>", ""))
                + SPACE.format("reconSpace", 64, part)
                + "</encoding>"
                for whole, part in (("inf", "inf"), ("1e-308", "1e308"), ("nan", 3), ("x", 3))
            ),
        ],
    )
    def test_one_that_tells_nothing(self, tmp_path: Path, header: str) -> None:
        path = write(tmp_path / "a.h5", random_kspace(3), ismrmrd_header=header)
        assert read_scan(path).matrix == (LINES, READOUT)

    def test_the_reference_goes_before_the_header(self, tmp_path: Path) -> None:
        header = self.header(part=330.0)
        path = write(tmp_path / "a.h5", random_kspace(3), (2, 32, 30), ismrmrd_header=header)
        assert read_scan(path).matrix == (LINES, 32)


class TestThreeAxes:
    """[slices, readout, phase encode], or the coils of one slice."""

    def coils(self) -> np.ndarray:
        image = phantom_volume(3, slices=3, matrix=64).image[1]
        maps = coil_maps(8, 64, 64, seed=1, kind=next(iter(Coils)))
        random = np.random.default_rng(0)
        noise = random.normal(size=(8, 64, 64)) + 1j * random.normal(size=(8, 64, 64))
        return image_to_kspace((image * maps + 0.005 * noise).astype(np.complex64))

    def test_coils_are_not_read_as_slices(self, tmp_path: Path) -> None:
        kspace = self.coils()
        path = write(tmp_path / "a.h5", kspace)
        for read in (read_scan, read_volume, inspect):
            with pytest.raises(DataError, match=r"three axes, \[8, 64, 64\]") as told:
                read(path)
            assert "a.h5:kspace:cwh for coils" in told.value.remedy
        named = read_scan(Path(f"{path}:kspace:cwh"))
        np.testing.assert_allclose(named.kspace, kspace[None], atol=1e-6)
        assert read_scan(Path(f"{path}:kspace:swh")).coils == 1

    def test_slices_are_read_and_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = phantom_volume(3, slices=8, matrix=64).image.astype(np.complex64)
        path = write(tmp_path / "a.h5", image_to_kspace(image))
        assert read_scan(path).kspace.shape[:2] == (8, 1)
        assert "taken for slices" in capsys.readouterr().err.replace("\n", " ")

    def test_a_reference_tells(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path / "a.h5", self.coils(), (8, 64, 64))
        assert read_scan(path).kspace.shape[:2] == (8, 1)
        assert not capsys.readouterr().err

    def test_measured_coils(self, real_data: Path) -> None:
        path = real_data / "kspace" / "invivo_brain_16coil.h5"
        with pytest.raises(DataError, match="16 images show one object"):
            read_scan(path)
        assert read_scan(Path(f"{path}:kspace:chw")).kspace.shape == (1, 16, 128, 128)

    @pytest.mark.parametrize("name", ["FLAIR", "GRE"])
    def test_measured_slices(self, real_data: Path, tmp_path: Path, name: str) -> None:
        with h5py.File(real_data / "kspace" / "ulf_sub-F6A.h5") as file:
            kspace = np.asarray(file[name])
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = kspace
        assert read_scan(tmp_path / "a.h5").kspace.shape[:2] == (4, 1)
