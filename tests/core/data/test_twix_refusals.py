"""Siemens raw data that a scan cannot hold, and files that are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.errors import DataError, MissingExtraError
from kdmri_edge.utils import extras
from tests.core.data.written_twix import C, H, drawn, line, whole

pytest.importorskip("twixtools")


class TestRefusals:
    def refused(self, raw_path: Path, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            read_scan(raw_path)
        assert caught.value.remedy.endswith(".")

    @pytest.mark.parametrize(
        ("counter", "words"),
        [("Par", "3-D"), ("Eco", "2 echoes"), ("Rep", "2 repetitions"), ("Phs", "cardiac"),
         ("Set", "2 sets")],
    )  # fmt: skip
    def test_several_measurements(
        self, raw_path: Path, write_raw: Any, kspace: np.ndarray, counter: str, words: str
    ) -> None:
        write_raw(whole(kspace, **{counter: 0}) + whole(kspace, **{counter: 1}))
        self.refused(raw_path, words)

    def test_echo_planar(self, raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
        write_raw([line(kspace[0, :, 0], flags=["PHASCOR"]), *whole(kspace)])
        self.refused(raw_path, "echo-planar")

    def test_radial(self, raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
        write_raw(whole(kspace), sKSpace__ucTrajectory=2)
        self.refused(raw_path, "not Cartesian")

    def test_localiser(self, raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
        turned = [line(kspace[0, :, h], lin=h, sli=1, centre=H // 2,
                       quaternion=(0.7071, 0.7071, 0, 0)) for h in range(H)]  # fmt: skip
        write_raw(whole(kspace[:1]) + turned)
        self.refused(raw_path, "several orientations")

    def test_stopped_scan(self, raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
        write_raw(whole(kspace)[:-3])
        self.refused(raw_path, "sampled differently")

    def test_no_image(self, raw_path: Path, write_raw: Any) -> None:
        write_raw([line(drawn(C, 32), flags=["NOISEADJSCAN"])])
        self.refused(raw_path, "no lines of an image")

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
    def test_cut_short(
        self, raw_path: Path, write_raw: Any, kspace: np.ndarray, share: float
    ) -> None:
        write_raw(whole(kspace))
        raw = raw_path.read_bytes()
        raw_path.write_bytes(raw[: int(share * len(raw))])
        self.refused(raw_path, "cannot be read as Siemens raw data")

    def test_several_coils_are_no_volume(
        self, raw_path: Path, write_raw: Any, kspace: np.ndarray
    ) -> None:
        write_raw(whole(kspace))
        with pytest.raises(DataError, match="2 coils"):
            read_volume(raw_path)

    def test_without_twixtools_the_extra_is_named(
        self, raw_path: Path, write_raw: Any, kspace: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_raw(whole(kspace))

        def absent(module: str, *, extra: str) -> Any:
            raise MissingExtraError(module, extra)

        monkeypatch.setattr(extras, "require", absent)
        with pytest.raises(MissingExtraError, match=r"kdmri-edge\[scanner\]"):
            read_scan(raw_path)


def test_lines_without_length_do_not_keep_the_reader(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    """Damage to a flag, the length or the number of coils of a line; each alone and together."""
    write_raw(whole(kspace))
    content = raw_path.read_bytes()
    begin = 10_240 + int.from_bytes(content[10_240:10_244], "little")
    for changes in (
        {0: b"\0\0\0\0", 40: b"\x20"},  # no length, and SYNCDATA
        {48: b"\xff\xff"},  # more samples than there are
        {48: b"\xff\xff\xff\xff", 0: b"\0\0\0\0", 40: b"\x20"},
    ):
        damaged = bytearray(content)
        for at, other in changes.items():
            damaged[begin + at : begin + at + len(other)] = other
        raw_path.write_bytes(damaged)
        with pytest.raises(DataError, match="a line"):
            read_scan(raw_path)


def test_a_protocol_whose_lists_have_no_end_is_refused(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    write_raw(whole(kspace), **{"sSliceArray__asSlice[99999999999]__dThickness": 4.0})
    with pytest.raises(DataError, match="lists without end"):
        read_scan(raw_path)
