"""Files as other software writes them: flags, averages, headers and groups of many kinds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd import Acquisition

from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.data.inspection import inspect, scans_in
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import count_readouts, read_header, write_readouts, write_scan
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.mrd.format.messages import Close, ConfigFile, ConfigText, HeaderText, serialise
from tests.core.mrd.scans import noise_scan, without_flags

SCAN = noise_scan(slices=2, coils=2, height=8, width=8)


def header(scan: Scan = SCAN) -> str:
    return write_encoding(encoding_of(scan), slices=len(scan.kspace))


def without_limits(xml: str) -> str:
    """The header without its limits of averages, which are optional."""
    return re.sub(r"<average>.*?</average>", "", xml, flags=re.S)


def scaled(acquisition: Acquisition, factor: float, average: int) -> Acquisition:
    made = Acquisition.from_array(
        np.ascontiguousarray(acquisition.data * np.float32(factor)), idx=acquisition.idx
    )
    made.center_sample, made.idx.average = acquisition.center_sample, average
    made.flags = acquisition.flags
    return made


def averages(innermost: bool) -> list[Acquisition]:
    """Every line twice, 0.5 and 1.5 times as large; flags on the last line of each average."""
    lines = list(readouts(SCAN))
    if innermost:
        return [scaled(line, 0.5 + n, n) for line in lines for n in (0, 1)]
    return [scaled(line, 0.5 + n, n) for n in (0, 1) for line in lines]


@pytest.mark.parametrize("innermost", [False, True])
def test_averages_that_the_header_does_not_announce(tmp_path: Path, innermost: bool) -> None:
    write_readouts(tmp_path / "a.h5", without_limits(header()), averages(innermost))
    np.testing.assert_allclose(read_scan(tmp_path / "a.h5").kspace, SCAN.kspace, atol=1e-6)


def test_a_flag_before_the_last_interleave(tmp_path: Path) -> None:
    lines = without_flags(readouts(SCAN))
    for line in lines:
        if int(line.idx.kspace_encode_step_1) in (3, 6):
            line.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    write_readouts(tmp_path / "a.h5", header(), lines)
    found = read_scan(tmp_path / "a.h5")
    assert found.mask.samples.all()
    np.testing.assert_allclose(found.kspace, SCAN.kspace, atol=1e-6)


def test_a_line_that_comes_twice_is_still_refused(tmp_path: Path) -> None:
    lines = list(readouts(SCAN))
    write_readouts(tmp_path / "a.h5", header(), [*lines, lines[3]])
    with pytest.raises(DataError, match="Line 3 of slice 0 came twice"):
        read_scan(tmp_path / "a.h5")


@pytest.mark.parametrize("limits", [True, False])
def test_partitions_of_which_one_is_used(tmp_path: Path, limits: bool) -> None:
    xml = header().replace("<z>1</z>", "<z>2</z>", 1)
    if not limits:
        xml = re.sub(r"<encodingLimits>.*</encodingLimits>", "<encodingLimits/>", xml, flags=re.S)
    assert "<z>2</z>" in xml
    write_readouts(tmp_path / "a.h5", xml, readouts(SCAN))
    np.testing.assert_allclose(read_scan(tmp_path / "a.h5").kspace, SCAN.kspace, atol=1e-6)
    with pytest.raises(DataError, match="2 partitions"):  # of a stream, images would be sent first
        Assembler(read_encoding(xml))
    lines = list(readouts(SCAN))
    lines[5].idx.kspace_encode_step_2 = 1
    write_readouts(tmp_path / "b.h5", xml, lines)
    with pytest.raises(DataError, match="partition 1"):
        read_scan(tmp_path / "b.h5")


def noise(coils: int) -> Acquisition:
    line = Acquisition.from_array(np.full((coils, 16), 1 + 1j, np.complex64))
    line.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return line


def test_noise_of_other_coils_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_readouts(tmp_path / "a.h5", header(), [noise(3), *readouts(SCAN)])
    found = read_scan(tmp_path / "a.h5")
    assert found.noise is None
    np.testing.assert_allclose(found.kspace, SCAN.kspace, atol=1e-6)
    assert "noise readouts of 3 coils and a scan of 2" in capsys.readouterr().err
    write_readouts(tmp_path / "b.h5", header(), [noise(3), noise(2), *readouts(SCAN)])
    kept = read_scan(tmp_path / "b.h5").noise
    assert kept is not None
    assert kept.shape == (2, 16)


def test_coils_that_change_in_the_scan_are_refused(tmp_path: Path) -> None:
    other = noise_scan(slices=1, coils=3)
    write_readouts(tmp_path / "a.h5", header(), [*readouts(SCAN), *readouts(other)])
    with pytest.raises(DataError, match="3 coils, those before it 2"):
        read_scan(tmp_path / "a.h5")


def test_readouts_that_do_not_count_their_coils(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_scan(path, SCAN)
    with h5py.File(path, "r+") as file:
        rows = file["dataset/data"][...]
        rows["head"]["active_channels"] = 0
        file["dataset/data"][...] = rows
    np.testing.assert_allclose(read_scan(path).kspace, SCAN.kspace, atol=1e-6)


def test_symmetric_short_readouts_are_of_lower_resolution(tmp_path: Path) -> None:
    lines = []
    for line in readouts(SCAN):
        short = Acquisition.from_array(np.ascontiguousarray(line.data[:, 1:7]), idx=line.idx)
        short.center_sample = 3
        lines.append(short)
    write_readouts(tmp_path / "a.h5", header(), lines)
    wanted = np.fft.fftshift(SCAN.kspace, axes=-1)
    wanted[..., [0, 7]] = 0
    found = np.fft.fftshift(read_scan(tmp_path / "a.h5").kspace, axes=-1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


class TestHeaders:
    """What exporters make of the XML."""

    @pytest.mark.parametrize("kind", ["none", "other prefix", "floats", "bytes and a NUL"])
    def test_spellings(self, kind: str) -> None:
        xml, wanted = header(), encoding_of(SCAN)
        given: str | bytes = xml
        if kind == "none":
            given = xml.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', "")
        elif kind == "other prefix":
            given = re.sub(r"<(/?)(?=[a-zA-Z])", r"<\1mrd:", xml).replace("xmlns=", "xmlns:mrd=")
        elif kind == "floats":
            given = xml.replace("<x>8</x>", "<x>8.0</x>")
        else:
            given = xml.encode() + b"\0"
        assert given != xml
        assert read_encoding(given) == wanted

    def test_half_a_sample_is_none(self) -> None:
        xml = header().replace("<x>8</x>", "<x>8.5</x>", 1)
        with pytest.raises(DataError, match="no MRD header"):
            read_encoding(xml)

    @pytest.mark.parametrize(
        "make",
        [
            lambda xml: xml.replace("<x>8</x>", "<x>1e999</x>", 1),
            lambda xml: xml.replace("<x>8</x>", "<x>nan</x>", 1),
            lambda xml: xml.replace("<encoding>", "<a>" * 50_000 + "</a>" * 50_000 + "<encoding>"),
            lambda xml: "\ud800" + xml,
            lambda xml: "",
        ],
        ids=["infinite", "nan", "deep", "surrogate", "empty"],
    )
    def test_nonsense_is_one_sentence(self, make: Callable[[str], str]) -> None:
        xml = header()
        assert make(xml) != xml
        with contextlib.suppress(DataError):
            read_encoding(make(xml))

    def test_numbers_that_are_changed_are_read_or_refused(self) -> None:
        random, xml = np.random.default_rng(3), header()
        places = [found.span(1) for found in re.finditer(r">([\d.]+)<", xml)]
        values = ("0", "-1", "1e308", "1e-308", "inf", "nan", "65536", "8.5", "", "x", "9" * 40)
        for _ in range(150):
            start, end = places[random.integers(len(places))]
            with contextlib.suppress(DataError):
                found = read_encoding(xml[:start] + str(random.choice(values)) + xml[end:])
                assert np.isfinite(found.fov_mm).all()

    def test_lengths_in_metres_are_refused(self) -> None:
        xml = re.sub(r"<(x|y|z)>(\d+\.\d*)</", lambda m: f"<{m[1]}>{float(m[2]) / 1e3}</", header())
        assert "0.008" in xml
        with pytest.raises(DataError, match=r"0\.008 x 0\.008 mm, as if given in metres"):
            read_encoding(xml)

    def test_without_a_field_of_view_of_the_image_all_is_image(self) -> None:
        xml = write_encoding(encoding_of(SCAN, oversampling=2))
        head, recon, tail = xml.partition("<reconSpace>")
        tail = re.sub(r"<fieldOfView_mm>.*?</fieldOfView_mm>", "", tail, count=1, flags=re.S)
        found = read_encoding(head + recon + tail)
        assert (found.samples, found.width) == (16, 16)


def test_images_of_another_encoding_space_are_no_damage(tmp_path: Path) -> None:
    lines = list(readouts(SCAN))
    for line in lines:
        line._head.encoding_space_ref = 1
    write_readouts(tmp_path / "a.h5", header(), lines)
    with pytest.raises(DataError, match="encoding space 0; 16 readouts belong to another"):
        read_scan(tmp_path / "a.h5")


class TestSeveralScans:
    """A converted file often holds an adjustment and the scan after it."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        small = noise_scan(slices=1, coils=2, height=6, width=6, seed=1)
        path = tmp_path / "two.h5"
        for name, scan in (("dataset", small), ("dataset_1", SCAN)):
            write_scan(tmp_path / "one.h5", scan)
            with h5py.File(path, "a") as file, h5py.File(tmp_path / "one.h5") as one:
                one.copy("dataset", file, name=name)
        return path

    def test_none_is_taken_in_silence(self, path: Path) -> None:
        with pytest.raises(DataError, match=r"2 scans: dataset \(6 readouts\), dataset_1") as told:
            read_scan(path)
        assert told.value.remedy == "Name one, as two.h5:dataset_1."

    def test_each_is_named_and_listed(self, path: Path) -> None:
        named = scans_in(path)
        assert [each.name for each in named] == ["two.h5:dataset", "two.h5:dataset_1"]
        found = read_scan(named[1])
        np.testing.assert_allclose(found.kspace, SCAN.kspace, atol=1e-6)
        assert found.name == "two_dataset_1"
        assert [inspect(each).matrix for each in named] == [(6, 6), (8, 8)]
        assert count_readouts(named[0]) == 6
        assert read_encoding(read_header(named[0])).lines == 6

    def test_a_name_that_is_not_there(self, path: Path) -> None:
        with pytest.raises(DataError, match="no dataset 'dataset_7'"):
            read_scan(Path(f"{path}:dataset_7"))

    def test_one_scan_needs_no_name(self, tmp_path: Path) -> None:
        write_scan(tmp_path / "one.mrd", SCAN)
        assert scans_in(tmp_path / "one.mrd") == [tmp_path / "one.mrd"]
        np.testing.assert_allclose(read_scan(tmp_path / "one.mrd").kspace, SCAN.kspace, atol=1e-6)


class TestStreams:
    """Files that hold the protocol's messages instead of HDF5."""

    def stream(self, *before: ConfigFile | ConfigText) -> bytes:
        return b"".join(
            serialise(each) for each in (*before, HeaderText(header()), *readouts(SCAN), Close())
        )

    @pytest.mark.parametrize("suffix", [".mrd", ".ismrmrd", ".h5"])
    @pytest.mark.parametrize("before", [(), (ConfigFile("simple"),), (ConfigText("<a/>"),)])
    def test_they_are_read_under_any_suffix(
        self, tmp_path: Path, suffix: str, before: tuple[ConfigFile | ConfigText, ...]
    ) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(self.stream(*before))
        np.testing.assert_allclose(read_scan(path).kspace, SCAN.kspace, atol=1e-6)
        assert inspect(path).format == "MRD stream"
        assert count_readouts(path) == 16

    def test_one_that_is_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mrd"
        path.write_bytes(self.stream()[:-100])
        with pytest.raises(DataError, match=r"stream that cannot be followed: .* ended within"):
            read_scan(path)

    def test_one_of_images(self, tmp_path: Path) -> None:
        image = ismrmrd.Image.from_array(np.ones((8, 8), np.float32))
        path = tmp_path / "a.mrd"
        path.write_bytes(serialise(HeaderText(header())) + serialise(image) + serialise(Close()))
        with pytest.raises(DataError, match="stream of 1 images, without readouts"):
            read_scan(path)

    def test_bytes_that_are_changed_are_refused_or_read(self, tmp_path: Path) -> None:
        """Damage of any kind is one sentence: nothing else is raised."""
        random, whole, path = np.random.default_rng(7), self.stream(), tmp_path / "a.mrd"
        for _ in range(60):
            data = bytearray(whole[: random.integers(2, len(whole) + 1)])
            for at in random.integers(0, len(data), random.integers(1, 6)):
                data[at] = random.integers(256)
            path.write_bytes(data)
            with contextlib.suppress(DataError):
                read_scan(path)


def test_repeated_attributes_of_images(tmp_path: Path) -> None:
    """A value that is given several times is that value; different ones are refused."""
    pixels = np.arange(1, 65, dtype=np.float32).reshape(8, 8)

    def written(*values: str) -> Path:
        meta = "".join(f"<value>{value}</value>" for value in values)
        image = ismrmrd.Image.from_array(pixels, image_type=ismrmrd.IMTYPE_MAGNITUDE)
        image.attribute_string = (
            f"<ismrmrdMeta><meta><name>RescaleSlope</name>{meta}</meta></ismrmrdMeta>"
        )
        path = tmp_path / "a.h5"
        path.unlink(missing_ok=True)
        with ismrmrd.Dataset(str(path), "dataset") as dataset:
            dataset.append_image("image_1", image)
        return path

    np.testing.assert_allclose(read_volume(written("2", "2.0")).image[0], 2 * pixels)
    for values in (("2", "3"), ("two",), ("nan",)):
        with pytest.raises(DataError, match="RescaleSlope " + ", ".join(values)):
            read_volume(written(*values))
