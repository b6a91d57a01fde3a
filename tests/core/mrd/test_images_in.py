"""Images that a client sends: reconstructed where a network reads some, else answered in words."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from kdmri_edge.data.volume import Volume
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import write_images
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import FALLBACK, fallback_of
from kdmri_edge.mrd.format.messages import (
    Close,
    ConfigFile,
    ConfigText,
    HeaderText,
    Id,
    Text,
    serialise,
)
from kdmri_edge.mrd.format.parser import Limits, Parser
from kdmri_edge.mrd.format.pictures import RETROSPECTIVE
from kdmri_edge.mrd.server.networks import many_networks
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.mrd.scans import every_line, noise_scan, phantom_scan
from tests.export.networks import spec, write_checkpoint

XML = write_encoding(encoding_of(noise_scan(1, height=32, width=32)))
RNG = np.random.default_rng(3)
MAGNITUDE = np.abs(phantom_scan(every_line(32)).kspace[0, 0]).astype(np.float32) + 1
COMPLEX = (MAGNITUDE * np.exp(1j * RNG.uniform(0, 1, (32, 32)))).astype(np.complex64)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    """Untrained networks, run by PyTorch."""
    folder = tmp_path_factory.mktemp("networks")
    made = {
        "finer": spec(kind="vdsr"), "complex": spec(channels=2),
        "coils": spec(channels=2, coils=True),
    }  # fmt: skip
    return {
        name: Pipeline(
            write_checkpoint(folder / f"{name}.safetensors", one), backend="torch", threads=1
        )
        for name, one in made.items()
    }


def image_of(pixels: np.ndarray, kind: int = ismrmrd.IMTYPE_MAGNITUDE, **meta: Any) -> Any:
    image = ismrmrd.Image.from_array(
        np.ascontiguousarray(pixels), image_type=kind, image_series_index=7, image_index=3,
        field_of_view=(64, 64, 4),
    )  # fmt: skip
    head = image.getHead()
    head.slice = 5
    head.position[:], head.read_dir[:], head.phase_dir[:] = (1, 2, 3), (0, 1, 0), (1, 0, 0)
    image.setHead(head)
    image.meta = meta
    return image


def sent(server: Any, *images: Any, text: str = "") -> Reply:
    reply = Reply()
    parts = [ConfigFile("kdmri-edge"), HeaderText(XML), *([Text(text)] if text else []), *images]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"".join(map(serialise, [*parts, Close()])))
        parser = Parser()
        while data := client.recv(1 << 16):
            parser.feed(data)
            for message in parser.messages():
                if isinstance(message, ismrmrd.Image):
                    reply.images.append(message)
                elif isinstance(message, Text):
                    reply.texts.append(message.text)
    return reply


def wanted(pipeline: Pipeline, pixels: np.ndarray, *, undersample: bool = False) -> np.ndarray:
    volume = Volume(image=pixels[None], name="i", subject="i")
    return np.abs(pipeline.images(pipeline.prepare(volume, undersample=undersample))[0])


def test_super_resolution_of_a_scanners_image(serving, networks, events) -> None:
    pipeline = networks["finer"]
    came = image_of(MAGNITUDE, DicomJson="kept", RescaleSlope="2", ImageProcessingHistory="ICE")
    reply = sent(serving(pipeline), came)
    (image,) = reply.images
    assert reply.texts == []
    expected = wanted(pipeline, 2 * MAGNITUDE)
    np.testing.assert_allclose(image.data[0, 0], expected, rtol=1e-4, atol=1e-4)
    assert (image.slice, image.image_series_index, image.image_index) == (5, 7, 3)
    np.testing.assert_allclose(image.position, (1, 2, 3))
    assert image.meta["DicomJson"] == "kept"
    assert image.meta["ImageProcessingHistory"] == ["ICE", "KDMRI-EDGE"]
    assert image.meta["ImageType"] == "DERIVED\\PRIMARY\\M\\KDMRI"
    assert image.meta["ImageRowDir"] == ["0.000000000", "1.000000000", "0.000000000"]
    assert "RescaleSlope" not in image.meta
    assert fallback_of(image) is None
    (session,) = events("session")
    assert (session["outcome"], session["images"], session["zero_filled"]) == ("complete", 1, 0)


def test_whole_numbers_in_and_out(serving, networks) -> None:
    pixels = (MAGNITUDE * 100 / MAGNITUDE.max()).astype(np.uint16)
    reply = sent(serving(networks["finer"], format="int16"), image_of(pixels))
    (image,) = reply.images
    assert image.data.dtype == np.int16
    expected = wanted(networks["finer"], pixels.astype(np.float32))
    back = image.data[0, 0] * float(image.meta["RescaleSlope"])
    np.testing.assert_allclose(back, expected, atol=1e-4 * expected.max())
    assert 0 < float(image.meta["WindowWidth"]) <= 32767


def test_a_mask_is_tried_on_a_fully_sampled_image(serving, networks) -> None:
    pipeline = networks["complex"]
    reply = sent(
        serving(pipeline), image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX), text='{"undersample": true}'
    )
    (image,) = reply.images
    expected = wanted(pipeline, COMPLEX, undersample=True)
    np.testing.assert_allclose(image.data[0, 0], expected, atol=1e-4 * expected.max())
    error = np.linalg.norm(expected - MAGNITUDE) / np.linalg.norm(MAGNITUDE)
    assert float(image.meta[RETROSPECTIVE]) == pytest.approx(error, abs=1e-3)
    assert "undersampled here" in image.meta["ImageComment"]
    assert image.image_type == ismrmrd.IMTYPE_MAGNITUDE


def test_zero_filled_complex_images(serving, networks) -> None:
    pipeline = networks["complex"]
    mask = pipeline.reads.mask
    zero_filled = np.fft.fftshift(
        np.fft.ifft2(np.fft.fft2(np.fft.ifftshift(COMPLEX)) * mask.grid)
    ).astype(np.complex64)
    (image,) = sent(serving(pipeline), image_of(zero_filled, ismrmrd.IMTYPE_COMPLEX)).images
    expected = wanted(pipeline, zero_filled)
    np.testing.assert_allclose(image.data[0, 0], expected, atol=1e-4 * expected.max())
    assert RETROSPECTIVE not in image.meta


BAD = {
    "phases": (image_of(MAGNITUDE, ismrmrd.IMTYPE_PHASE), "phases show no intensities"),
    "colours": (image_of(MAGNITUDE, 6), "colours show no intensities"),
    "channels": (image_of(np.ones((2, 1, 32, 32), np.float32)), "2 channels"),
    "a volume": (image_of(np.ones((3, 32, 32), np.float32)), "3 slices"),
    "nothing": (image_of(np.ones((1, 1, 32, 0), np.float32)), "channels"),
    "NaN": (image_of(MAGNITUDE * np.nan), "NaN"),
    "another matrix": (image_of(MAGNITUDE[:16]), "16 x 32"),
    "a slope that is none": (image_of(MAGNITUDE, RescaleSlope="steep"), "RescaleSlope"),
    "too bright": (image_of(MAGNITUDE, RescaleSlope="1e38"), "infinite"),
    "beyond numbers": (image_of(MAGNITUDE, RescaleSlope="1e300"), "infinite"),
    "slopes": (image_of(MAGNITUDE, RescaleSlope=["1", "2"]), "RescaleSlope"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("passes", [False, True])
def test_what_no_network_takes_is_answered(
    serving, networks, events, name: str, passes: bool
) -> None:
    came, said = BAD[name]
    server = serving(networks["finer"], pass_images=passes)
    reply = sent(server, came, image_of(MAGNITUDE))
    assert said in reply.texts[0]
    assert reply.texts[0].startswith("WRN Image 1 is")
    assert len(reply.texts) == 1
    if passes:
        back = reply.images[0]
        np.testing.assert_array_equal(back.data, came.data)
        assert bytes(back.getHead())[:-4] == bytes(came.getHead())[:-4]  # but for the text's length
        assert back.meta[FALLBACK] == "unchanged"
        assert said in (fallback_of(back) or "")
    assert len(reply.images) == 1 + passes  # the good one is reconstructed
    assert fallback_of(reply.images[-1]) is None
    assert events("session")[0]["causes"] in ({"image": 1}, {"matrix": 1})


@pytest.mark.parametrize(
    ("name", "came", "text", "said"),
    [
        ("complex", image_of(MAGNITUDE), "", "magnitude images"),
        ("complex", image_of(MAGNITUDE), '{"undersample": true}', "no fully sampled scan"),
        ("complex", image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX), "", "not undersampled with"),
        ("coils", image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX), "", "reads no images"),
    ],
)
def test_images_that_do_not_suit_the_network(
    serving, networks, name: str, came: Any, text: str, said: str
) -> None:
    reply = sent(serving(networks[name], pass_images=True), came, text=text)
    assert said in reply.texts[0]
    np.testing.assert_array_equal(reply.images[0].data, came.data)


def test_k_space_and_images_in_one_scan(serving, networks) -> None:
    pipeline = networks["complex"]
    scan = phantom_scan(pipeline.reads.mask, slices=1, coils=1)
    came = image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX)
    server = serving(pipeline)
    reply = sent(server, *readouts(scan), came, text='{"undersample": true}')
    assert [fallback_of(image) for image in reply.images] == [None, None]


def test_images_of_a_scan_of_any_kind(serving, networks) -> None:
    """The header of a radial scan tells nothing that an image needs; its k-space is refused."""
    radial = XML.replace("cartesian", "radial")
    server = serving(networks["finer"])
    assert len(send_scan(radial, [image_of(MAGNITUDE)], port=server.port).images) == 1
    scan = noise_scan(1, height=32, width=32)
    refused = send_scan(radial, readouts(scan), port=server.port)
    assert "not Cartesian" in refused.errors[0]


def test_of_many_bundles_the_first_that_takes_it(serving, tmp_path: Path) -> None:
    places = []
    for name, one in (("sense", spec(channels=2, coils=True)), ("finer", spec(kind="vdsr"))):
        places.append(write_checkpoint(tmp_path / f"{name}.safetensors", one))
    many = many_networks(places, backend="torch", threads=1)
    server = serving(many)
    reply = sent(server, image_of(MAGNITUDE), image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX))
    assert reply.images[0].meta["KdmriBundle"] == "finer.safetensors"
    other = sent(server, image_of(MAGNITUDE[:8]))
    assert other.images == []
    assert "sense.safetensors: it is made for k-space of several coils" in other.texts[0]
    assert "finer.safetensors: it is made for 32 x 32" in other.texts[0]


def claiming(**fields: Any) -> bytes:
    """The start of an image message that claims whatever it likes."""
    head = ismrmrd.ImageHeader()
    head.data_type, head.channels = ismrmrd.DATATYPE_FLOAT, 1
    attributes = fields.pop("attributes", 0)
    for name, value in fields.items():
        if name == "matrix_size":
            head.matrix_size[:] = value
        else:
            setattr(head, name, value)
    return struct.pack("<H", Id.IMAGE) + bytes(head) + struct.pack("<Q", attributes)


def _with_text(text: str) -> bytes:
    body = text.encode()
    return claiming(matrix_size=(1, 1, 1), attributes=len(body)) + body + bytes(4)


ENTITIES = (
    "<!DOCTYPE m [<!ENTITY a 'xxxxxxxxxx'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
    "<ismrmrdMeta><meta><name>n</name><value>&b;</value></meta></ismrmrdMeta>"
)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (claiming(matrix_size=(65535, 65535, 65535), channels=65535), "IMAGE claims"),
        (claiming(matrix_size=(1, 1, 1), attributes=2**63), "IMAGE claims"),
        (claiming(matrix_size=(1025, 1024, 1)), "IMAGE claims"),
        (claiming(matrix_size=(1, 1, 1), attributes=2**23), "bytes of attributes"),
        (claiming(matrix_size=(1, 1, 1), data_type=99), "unknown data type 99"),
        (_with_text(ENTITIES), "cannot be decoded"),
        (_with_text("<ismrmrdMeta>"), "cannot be decoded"),
        (_with_text("<other/>"), "cannot be decoded"),
        (_with_text("<ismrmrdMeta><meta/></ismrmrdMeta>"), "cannot be decoded"),
    ],
)
def test_images_that_wish_ill(serving, networks, events, message: bytes, said: str) -> None:
    server = serving(networks["finer"], limits=Limits(image=4 * 2**20))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(serialise(ConfigFile("kdmri-edge")) + serialise(HeaderText(XML)) + message)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
    assert said in events("session")[0]["reason"]


def test_a_file_of_images_is_sent(
    cli: Callable[..., Any], serving, networks, tmp_path: Path
) -> None:
    server = serving(networks["finer"])
    write_images(tmp_path / "in.h5", [image_of(MAGNITUDE), image_of(2 * MAGNITUDE)], XML)
    done = cli("send", tmp_path / "in.h5", "-o", tmp_path / "out.h5", "--port", server.port)
    assert done.code == 0, done.err
    assert "out.h5: 2 image(s)" in done.out
    passing = serving(networks["complex"], pass_images=True).port
    done = cli("send", tmp_path / "in.h5", "-o", tmp_path / "back.h5", "--port", passing)
    assert "back.h5: 2 image(s), 2 of them unchanged" in done.out
    done = cli("send", tmp_path / "in.h5", "-o", tmp_path / "no.h5", "--port",
               serving(networks["coils"]).port)  # fmt: skip
    done.check_refusal("No line of an image came")


def test_config_text_of_parameters_alone(serving, networks) -> None:
    server = serving(networks["complex"], default_config="kdmri-edge")
    parts = [ConfigText('{"undersample": 1}'), HeaderText(XML),
             image_of(COMPLEX, ismrmrd.IMTYPE_COMPLEX), Close()]  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"".join(map(serialise, parts)))
        parser, found = Parser(), []
        while data := client.recv(1 << 16):
            parser.feed(data)
            found += list(parser.messages())
    assert [type(message).__name__ for message in found] == ["Text", "Image", "Close"]
