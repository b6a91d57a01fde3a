"""Where the letter comes out: through every writer and reader, and both ways of raw data's axes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import kdmri_edge
from kdmri_edge.cli import main
from kdmri_edge.data.conversion import convert
from kdmri_edge.data.formats.registry import (
    format_of,
    load_attribute,
    read_either,
    read_scan,
    read_volume,
    write_image_record,
)
from kdmri_edge.data.geometry import LPS, directions
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation, orientation_of, oriented
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from tests.core.data.letter import SHAPES, STACKS, Stack, check_letter, letter_on
from tests.core.data.written_twix import line, write_twix

UNIT = 700.0
WAYS = [(stack, shape) for stack in STACKS for shape in SHAPES]
NAMES = [f"{stack.name}-{'x'.join(map(str, shape))}" for stack, shape in WAYS]
each_way = pytest.mark.parametrize(("stack", "shape"), WAYS, ids=NAMES)
each_stack = pytest.mark.parametrize(("stack", "shape"), WAYS[::4], ids=NAMES[::4])
"""Of longer cases: each shape, and every stack but one."""


def scan_of(stack: Stack, shape: tuple[int, ...], coils: int = 2) -> Scan:
    """The letter as k-space; the coils differ by their phase."""
    affine = stack.affine(shape)
    image = UNIT * letter_on(affine, shape)[:, None] * np.exp(1j * np.arange(coils))[:, None, None]
    return Scan(
        kspace=image_to_kspace(image.astype(np.complex64) / np.sqrt(coils)).astype(np.complex64),
        mask=Mask(samples=np.ones(shape[1], np.bool_), name="all"),
        name="letter",
        subject="letter",
        affine=affine,
    )


def shown(scan: Scan) -> np.ndarray:
    """Root of the coils' sum of squares."""
    return np.sqrt((np.abs(kspace_to_image(scan.kspace)) ** 2).sum(axis=1))


def write_scan(path: Path, scan: Scan) -> None:
    row = format_of(path.suffix)
    assert row is not None
    assert row.scan_writer is not None
    load_attribute(row.scan_writer)(path, scan)


class TestImages:
    @each_way
    @pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".dcm", ".h5"])
    def test_every_format_that_holds_a_place(
        self, tmp_path: Path, stack: Stack, shape: tuple[int, ...], suffix: str
    ) -> None:
        pytest.importorskip("ismrmrd")
        affine = stack.affine(shape)
        path = tmp_path / f"letter{suffix}"
        write_image_record(path, ImageRecord(image=UNIT * letter_on(affine, shape), affine=affine))
        volume = read_volume(path)
        check_letter(volume.image, volume.affine, UNIT)

    @pytest.mark.parametrize("stack", STACKS, ids=[stack.name for stack in STACKS])
    def test_a_single_slice(self, tmp_path: Path, stack: Stack) -> None:
        pytest.importorskip("ismrmrd")
        shape = (1, 12, 9)
        affine = stack.affine(shape)
        picture = ImageRecord(image=UNIT * letter_on(affine, shape), affine=affine)
        for suffix in (".nii", ".dcm", ".h5"):
            write_image_record(tmp_path / f"one{suffix}", picture)
            volume = read_volume(tmp_path / f"one{suffix}")
            check_letter(volume.image, volume.affine, UNIT)

    @each_stack
    def test_from_format_to_format(
        self, tmp_path: Path, stack: Stack, shape: tuple[int, ...]
    ) -> None:
        pytest.importorskip("ismrmrd")
        affine = stack.affine(shape)
        first = tmp_path / "0.dcm"
        write_image_record(first, ImageRecord(image=UNIT * letter_on(affine, shape), affine=affine))
        for number, suffix in enumerate((".nii.gz", ".h5", ".dcm", ".h5", ".nii"), start=1):
            convert(first, tmp_path / f"{number}{suffix}")
            first = tmp_path / f"{number}{suffix}"
        volume = read_volume(first)
        check_letter(volume.image, volume.affine, UNIT)

    @pytest.mark.parametrize("suffix", [".npy", ".cfl"])
    def test_formats_without_a_place_keep_the_axes(self, tmp_path: Path, suffix: str) -> None:
        image = letter_on(STACKS[-1].affine(SHAPES[0]), SHAPES[0])
        write_image_record(tmp_path / f"a{suffix}", ImageRecord(image=image))
        volume = read_volume(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(volume.image, image)
        assert volume.affine is None


class TestKspace:
    @each_way
    def test_mrd_readouts(self, tmp_path: Path, stack: Stack, shape: tuple[int, ...]) -> None:
        pytest.importorskip("ismrmrd")
        write_scan(tmp_path / "a.h5", scan_of(stack, shape))
        found = read_scan(tmp_path / "a.h5")
        check_letter(shown(found), found.affine, UNIT)
        assert found.orientation is Orientation.ALONG

    @each_way
    def test_mrd_readouts_of_siemens(
        self, tmp_path: Path, stack: Stack, shape: tuple[int, ...]
    ) -> None:
        """Samples as any other scanner's, directions with the other sign."""
        write_siemens_mrd(tmp_path / "a.h5", scan_of(stack, shape))
        found = read_scan(tmp_path / "a.h5")
        check_letter(shown(found), found.affine, UNIT)
        assert found.orientation is Orientation.AGAINST

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("stack", [s for s in STACKS if not s.mirrored], ids=lambda s: s.name)
    def test_twix(self, tmp_path: Path, stack: Stack, shape: tuple[int, ...]) -> None:
        """A quaternion holds no mirrored stack, and neither does a scanner make one."""
        write_letter_twix(tmp_path / "a.dat", stack, shape)
        found = read_scan(tmp_path / "a.dat")
        check_letter(shown(found), found.affine, UNIT)

    @each_stack
    @pytest.mark.parametrize("siemens", [False, True])
    def test_what_a_server_sends(
        self, tmp_path: Path, stack: Stack, shape: tuple[int, ...], siemens: bool
    ) -> None:
        pytest.importorskip("ismrmrd")
        from kdmri_edge.mrd.format.assembler import Assembler
        from kdmri_edge.mrd.format.hdf5 import read_header, read_readouts, write_images
        from kdmri_edge.mrd.format.header import read_encoding
        from kdmri_edge.mrd.format.images import ImageMaker
        from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude

        raw = tmp_path / "raw.h5"
        (write_siemens_mrd if siemens else write_scan)(raw, scan_of(stack, shape))
        encoding = read_encoding(read_header(raw))
        assembler, maker = Assembler(encoding), ImageMaker(encoding)
        parts = [p for r in read_readouts(raw) if (p := assembler.add(r)) is not None]
        write_images(
            tmp_path / "sent.h5",
            [maker.make(p, Outcome(image=zero_filled_magnitude(p.kspace))) for p in parts],
            read_header(raw),
        )
        volume = read_volume(tmp_path / "sent.h5")
        check_letter(volume.image, volume.affine, UNIT)

    @each_stack
    def test_through_a_file_of_images(
        self, tmp_path: Path, stack: Stack, shape: tuple[int, ...]
    ) -> None:
        write_siemens_mrd(tmp_path / "a.h5", scan_of(stack, shape))
        convert(tmp_path / "a.h5", tmp_path / "b.nii", magnitude=True)
        convert(tmp_path / "a.h5", tmp_path / "c.h5")
        volume, again = read_volume(tmp_path / "b.nii"), read_scan(tmp_path / "c.h5")
        check_letter(volume.image, volume.affine, UNIT)
        check_letter(shown(again), again.affine, UNIT)

    @pytest.mark.parametrize("layout", ["cfl", "plain", "fastmri", "kdmri"])
    def test_formats_without_a_place_keep_the_axes(self, tmp_path: Path, layout: str) -> None:
        shape = SHAPES[0]
        scan = scan_of(STACKS[-1], shape, coils=1 if layout == "kdmri" else 2)
        path = tmp_path / ("a.cfl" if layout == "cfl" else "a.h5")
        centred = np.fft.fftshift(scan.kspace, axes=(-2, -1))
        if layout == "cfl":
            write_scan(path, scan)
        elif layout != "kdmri":
            with h5py.File(path, "w") as file:
                file["kspace" if layout == "fastmri" else "k"] = np.swapaxes(centred, -1, -2)
        if layout == "kdmri":
            with h5py.File(path, "w") as file:
                file["volfs"] = np.moveaxis(shown(scan), 0, 2)
            image = read_volume(path).image
        else:
            named = Path(f"{path}:k:scwh") if layout == "plain" else path
            image = shown(read_scan(named))
        wanted = UNIT * letter_on(STACKS[-1].affine(shape), shape)
        np.testing.assert_allclose(image, wanted, atol=1e-3 * UNIT)


def write_siemens_mrd(
    path: Path, scan: Scan, vendor: str | None = "SIEMENS", sign: float = -1.0
) -> None:
    """A scan as converters write Siemens' raw data: the directions as the scanner gives them."""
    pytest.importorskip("ismrmrd")
    from dataclasses import replace

    from kdmri_edge.mrd.format.emit import encoding_of, readouts
    from kdmri_edge.mrd.format.hdf5 import write_readouts
    from kdmri_edge.mrd.format.header import write_encoding

    def as_given():
        for acquisition in readouts(scan):
            for name in ("phase_dir", "read_dir"):
                field = getattr(acquisition._head, name)
                field[:] = [sign * value for value in field]
            yield acquisition

    encoding = replace(encoding_of(scan), vendor=vendor)
    write_readouts(path, write_encoding(encoding, slices=len(scan.kspace)), as_given())


def write_letter_twix(path: Path, stack: Stack, shape: tuple[int, ...]) -> None:
    """H runs along -P and W along -R, in LPS+: the quaternion's x and y change their sign."""
    w, x, y, z = np.array(stack.quaternion) / np.linalg.norm(stack.quaternion)
    scan, affine = scan_of(stack, shape), stack.affine(shape)
    centred = np.fft.fftshift(scan.kspace, axes=(-2, -1))
    slices, _, height, width = centred.shape
    middle = [LPS @ affine @ [s, height // 2, width // 2, 1] for s in range(slices)]
    lines = [
        line(centred[s, :, h], lin=h, sli=s, centre=height // 2, position=middle[s][:3],
             quaternion=(w, -x, -y, z))
        for s in range(slices) for h in range(height)
    ]  # fmt: skip
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    with contextlib.redirect_stdout(io.StringIO()):
        write_twix(
            path,
            lines,
            sSliceArray__asSlice=None,
            **{
                "sSliceArray.asSlice[0].dPhaseFOV": float(steps[1] * height),
                "sSliceArray.asSlice[0].dReadoutFOV": float(steps[2] * width),
                "sSliceArray.asSlice[0].dThickness": float(steps[0]),
                "sKSpace.lPhaseEncodingLines": height,
            },
        )


STACK, SHAPE = STACKS[0], SHAPES[0]


class TestVendors:
    def test_one_scan_as_twix_and_as_the_mrd_file_that_a_converter_makes_of_it(
        self, tmp_path: Path
    ) -> None:
        write_letter_twix(tmp_path / "a.dat", STACK, SHAPE)
        write_siemens_mrd(tmp_path / "a.h5", scan_of(STACK, SHAPE))
        twix, mrd = (read_scan(tmp_path / name) for name in ("a.dat", "a.h5"))
        np.testing.assert_allclose(twix.kspace, mrd.kspace, rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(twix.affine, mrd.affine, atol=1e-3)
        assert directions(mrd.affine) == "SRA"
        for wanted in ("along", "against"):
            both = [read_scan(tmp_path / n, orientation=wanted).affine for n in ("a.dat", "a.h5")]
            np.testing.assert_allclose(*both, atol=1e-3)
            assert directions(both[0]) == {"along": "SLP", "against": "SRA"}[wanted]

    @pytest.mark.parametrize(
        ("vendor", "runs"),
        [("SIEMENS", "against"), ("Siemens Healthineers", "against"), ("siemens", "against"),
         ("GE MEDICAL SYSTEMS", "along"), ("Philips", "along"), ("", "along"), (None, "along")],
    )  # fmt: skip
    def test_the_vendor_decides(self, tmp_path: Path, vendor: str | None, runs: str) -> None:
        assert orientation_of(vendor) == runs
        sign = -1.0 if runs == "against" else 1.0
        write_siemens_mrd(tmp_path / "a.h5", scan_of(STACK, SHAPE), vendor, sign)
        found = read_scan(tmp_path / "a.h5")
        check_letter(shown(found), found.affine, UNIT)
        assert (found.orientation, found.vendor) == (runs, vendor or None)

    @pytest.mark.parametrize("stack", STACKS, ids=lambda s: s.name)
    def test_what_the_user_says_goes_first(self, tmp_path: Path, stack: Stack) -> None:
        """An anonymised file: nothing but the user knows that it is Siemens'."""
        write_siemens_mrd(tmp_path / "a.h5", scan_of(stack, SHAPE), vendor=None)
        wrong = kdmri_edge.read(tmp_path / "a.h5")
        with pytest.raises(AssertionError):
            check_letter(shown(wrong), wrong.affine, UNIT)
        found = kdmri_edge.read(tmp_path / "a.h5", orientation="against")
        check_letter(shown(found), found.affine, UNIT)
        np.testing.assert_array_equal(found.kspace, wrong.kspace)
        back = oriented(found, "along")
        np.testing.assert_allclose(back.affine, wrong.affine, atol=1e-9)

    def test_images_of_a_server_can_be_told_too(self) -> None:
        pytest.importorskip("ismrmrd")
        from kdmri_edge.mrd.format.assembler import Assembler
        from kdmri_edge.mrd.format.emit import encoding_of, readouts
        from kdmri_edge.mrd.format.images import ImageMaker
        from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude

        scan = scan_of(STACK, SHAPE)
        assembler = Assembler(encoding_of(scan))
        part = next(p for r in readouts(scan) if (p := assembler.add(r)) is not None)
        outcome = Outcome(image=zero_filled_magnitude(part.kspace))
        along, against = (
            ImageMaker(assembler.encoding, orientation=wanted).make(part, outcome)
            for wanted in ("along", "against")
        )
        for name, key in (("read_dir", "ImageRowDir"), ("phase_dir", "ImageColumnDir")):
            there, back = (np.array(getattr(i.getHead(), name)) for i in (along, against))
            np.testing.assert_allclose(there, -back)
            np.testing.assert_allclose([float(v) for v in against.meta[key]], back, atol=1e-6)
        assert list(along.slice_dir) == list(against.slice_dir)
        assert list(part.head.read_dir) == list(along.read_dir)  # the readout's stays

    def test_what_has_no_directions_has_no_orientation(self, tmp_path: Path) -> None:
        image = letter_on(STACK.affine(SHAPE), SHAPE)
        write_image_record(tmp_path / "a.npy", ImageRecord(image=image))
        write_scan(tmp_path / "a.cfl", scan_of(STACK, SHAPE))
        for name in ("a.npy", "a.cfl"):
            with pytest.raises(DataError, match="no raw data with directions"):
                read_either(tmp_path / name, orientation="against")
            assert read_either(tmp_path / name, orientation="vendor") is not None
        with pytest.raises(DataError, match="'upside' is no orientation"):
            read_either(tmp_path / "a.cfl", orientation="upside")

    def test_inspect_and_convert_say_and_turn(self, tmp_path: Path) -> None:
        raw = tmp_path / "a.h5"
        write_siemens_mrd(raw, scan_of(STACK, SHAPE), vendor=None)
        said = CliRunner().invoke(main, ["data", "inspect", str(raw)])
        assert "raw data of: an unnamed vendor" in said.output
        assert "run along the directions in the header; --orientation against turns" in said.output
        assert "axes point: superior, left, posterior" in said.output
        turned = ["--orientation", "against"]
        facts = CliRunner().invoke(main, ["data", "inspect", str(raw), "--json", *turned])
        told = json.loads(facts.stdout)[0]
        assert (told["orientation"], told["vendor"], told["directions"]) == ("against", None, "SRA")
        arguments = ["data", "convert", str(raw), str(tmp_path / "b.nii"), "--magnitude", *turned]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        volume = read_volume(tmp_path / "b.nii")
        check_letter(volume.image, volume.affine, UNIT)
