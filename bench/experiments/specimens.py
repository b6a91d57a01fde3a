"""Small files of every kind that users give, and who reads them: what the fuzzing damages."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from ismrmrd import Acquisition

from experiments.mutations import damage_bytes, damage_json, damage_text
from kdmri_edge.data.conversion import convert
from kdmri_edge.data.datasets import find_volumes, load_split
from kdmri_edge.data.formats.hdf5.mrd import write_mrd_scan
from kdmri_edge.data.formats.registry import write_image
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.inspection import inspect, scans_in
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.distillation.recipe import load_recipe
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.mrd.format.messages import (
    Close,
    ConfigFile,
    ConfigText,
    HeaderText,
    Text,
    serialise,
)
from kdmri_edge.mrd.format.parser import Order, Parser
from kdmri_edge.mrd.server.settings import ServerSettings, choose, refine
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import load_mask, variable_density_lines
from kdmri_edge.runtime.bundle import MANIFEST, open_bundle, write_manifest
from kdmri_edge.runtime.inputs import read_input_spec
from kdmri_edge.runtime.manifest import DIGEST, SIGNATURE, read_manifest_bytes
from kdmri_edge.runtime.signature import check_signature
from kdmri_edge.runtime.signing import make_key, read_public_key, sign_bundle
from kdmri_edge.utils.config import as_toml
from kdmri_export.graph_check import check_graph

__all__ = ["Specimen", "specimens"]

_MATRIX: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Specimen:
    """A good file, and how it is damaged and read.

    Attributes:
        name: What to call it in a report.
        files: The file, and those that have to lie beside it, by name.
        damaged: Which of them is damaged.
        opened: What the reader is given: a name in `files`, or "." for their folder.
        damage: From its bytes to others.
        read: From its path to anything.
    """

    name: str
    files: Mapping[str, bytes]
    damaged: str
    opened: str
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]

    def written(self, folder: Path, draw: random.Random | None = None) -> Path:
        """Write it into a new folder, damaged by what is drawn; return what the reader is given."""
        folder.mkdir()
        for name, data in self.files.items():
            hurt = draw is not None and name == self.damaged
            (folder / name).write_bytes(self.damage(data, draw) if hurt and draw else data)
        return folder if self.opened == "." else folder / self.opened


def specimens(place: Path, bundle: Path) -> Iterator[Specimen]:
    """Yield a specimen of everything.

    Args:
        place: An empty folder to work in.
        bundle: A bundle whose manifest is damaged.

    Raises:
        MissingExtraError: A library is not installed that writes one of them.
    """
    yield from _files(place)
    yield from _texts(place, bundle)
    yield _stream(place)
    yield _checkpoint(place)
    yield _weights(place)
    graph = bundle / "model.onnx"
    yield _one("ONNX graph", graph, read=lambda path: check_graph(path, "onnx"))


def _scan() -> Scan:
    image = phantom_volume(0, slices=2, matrix=_MATRIX).image
    mask = variable_density_lines(_MATRIX, 2.0, centre_lines=8, seed=0)
    kspace = np.stack([image_to_kspace(image), 1j * image_to_kspace(image)], axis=1)
    affine = np.diag([4.0, 2.0, 2.0, 1.0])[:, [1, 2, 0, 3]]
    return Scan(
        kspace=(kspace * mask.grid).astype(np.complex64),
        mask=mask,
        name="scan",
        subject="0",
        affine=affine,
    )


def _one(
    name: str,
    path: Path,
    *,
    damage: Callable[[bytes, random.Random], bytes] = damage_bytes,
    read: Callable[[Path], object] | None = None,
) -> Specimen:
    return Specimen(
        name=name,
        files={path.name: path.read_bytes()},
        damaged=path.name,
        opened=path.name,
        damage=damage,
        read=read or _look,
    )


def _look(path: Path) -> object:
    """Find, read and describe a file, as `kdmri-edge data inspect` and `distill` do."""
    return find_volumes(path), [inspect(one) for one in scans_in(path)]


def _files(place: Path) -> Iterator[Specimen]:
    """Images and k-space in all formats."""
    image = phantom_volume(0, slices=2, matrix=_MATRIX).image
    affine: Affine = np.diag([4.0, 2.0, 2.0, 1.0])[:, [1, 2, 0, 3]]
    for name in ("array.npy", "image.nii", "image.nii.gz", "images.h5", "image.cfl"):
        write_image(place / name, image, affine=affine if "image." in name else None)
    yield _one("NumPy", place / "array.npy")
    yield _one("NIfTI", place / "image.nii")
    yield _one("NIfTI, compressed", place / "image.nii.gz", damage=_inside_gzip)
    yield _one("MRD images", place / "images.h5")
    pair = {name: (place / name).read_bytes() for name in ("image.cfl", "image.hdr")}
    yield Specimen(name="BART", files=pair, damaged="image.hdr", opened="image.cfl",
                   damage=damage_text, read=_look)  # fmt: skip
    write_image(place / "series.dcm", image, affine=affine)
    series = {file.name: file.read_bytes() for file in sorted((place / "series.dcm").iterdir())}
    first = min(series)
    yield Specimen(name="DICOM", files=series, damaged=first, opened=".", damage=damage_bytes,
                   read=_convert)  # fmt: skip
    yield _one("DICOM, one file", place / "series.dcm" / first)
    scan = _scan()
    write_mrd_scan(place / "scan.h5", scan)
    yield _one("MRD readouts", place / "scan.h5")
    _write_layouts(place, image)
    for name, file in (("fastMRI", "fastmri.h5"), ("KD-MRI", "kdmri.h5"), ("HDF5", "plain.h5")):
        yield _one(name, place / file)
    (place / "stream.mrd").write_bytes(_messages(scan))
    yield _one("MRD stream in a file", place / "stream.mrd")
    from experiments.written_twix import drawn, whole, write_twix

    with contextlib.redirect_stdout(io.StringIO()):
        write_twix(place / "raw.dat", whole(drawn(2, 2, 10, 8)))
    yield _one("Siemens TWIX", place / "raw.dat")


def _convert(path: Path) -> object:
    """Look into a DICOM series, and write it as another, which keeps the patient's data."""
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        return _look(path), convert(path, Path(place) / "converted.dcm")


def _write_layouts(place: Path, image: np.ndarray[Any, Any]) -> None:
    kspace = np.fft.fftshift(image_to_kspace(image), axes=(-2, -1)).astype(np.complex64)
    with h5py.File(place / "fastmri.h5", "w") as file:
        file.create_dataset("kspace", data=kspace, chunks=(1, _MATRIX, _MATRIX), compression=1)
        file["reconstruction_esc"] = image
        file["ismrmrd_header"] = write_encoding(encoding_of(_scan())).encode()
        file.attrs["patient_id"], file.attrs["acquisition"] = "0123", "AXT1"
    with h5py.File(place / "kdmri.h5", "w") as file:
        file["volfs"] = np.moveaxis(image, 0, 2)
    with h5py.File(place / "plain.h5", "w", libver="latest") as file:
        file.create_dataset("group/data", data=kspace).attrs["axes"] = "swh"
        file["soft"] = h5py.SoftLink("/group/data")


def _inside_gzip(data: bytes, draw: random.Random) -> bytes:
    """Damage what is compressed, or else the compressed file."""
    if draw.random() < 0.3:
        return damage_bytes(data, draw)
    return gzip.compress(damage_bytes(gzip.decompress(data), draw), 1)


def _texts(place: Path, bundle: Path) -> Iterator[Specimen]:
    """Masks, recipes, splits, headers, manifests."""
    mask = variable_density_lines(_MATRIX, 2.0, centre_lines=8, seed=0)
    np.save(place / "mask.npy", mask.samples)
    yield _one("mask, NumPy", place / "mask.npy", read=load_mask)
    (place / "mask.json").write_text(json.dumps(mask.to_dict()), encoding="utf-8")
    yield _one("mask, JSON", place / "mask.json", damage=damage_json, read=load_mask)
    several = {
        "4x": {"shape": [32, 32], "phase_encode_axis": 0, "sampled_lines": [0, 1, 2, 30, 31]}
    }
    (place / "masks.json").write_text(json.dumps(several), encoding="utf-8")
    yield _one("masks, JSON", place / "masks.json", damage=damage_json, read=load_mask)
    (place / "recipe.toml").write_text(as_toml(load_recipe("kd-mri")), encoding="utf-8")
    yield _one("recipe", place / "recipe.toml", damage=damage_text, read=_read_recipe)
    split = {"name": "own", "train": ["01"], "validation": ["02"], "test": ["03"]}
    (place / "split.json").write_text(json.dumps(split), encoding="utf-8")
    yield _one("split, JSON", place / "split.json", damage=damage_json, read=load_split)
    (place / "split.toml").write_text('train = ["01", "02"]\ntest = ["03"]\n', encoding="utf-8")
    yield _one("split, TOML", place / "split.toml", damage=damage_text, read=load_split)
    (place / "header.xml").write_text(write_encoding(encoding_of(_scan())), encoding="utf-8")
    yield _one("MRD header", place / "header.xml", damage=damage_text, read=_read_header)
    (place / "config.json").write_text(
        json.dumps({"version": "1.2", "parameters": {"config": "kdmri-edge", "format": "int16"}}),
        encoding="utf-8",
    )
    yield _one("configuration", place / "config.json", damage=damage_json, read=_read_config)
    files = {
        file.relative_to(bundle).as_posix(): file.read_bytes()
        for file in sorted(bundle.rglob("*")) if file.is_file()
    }  # fmt: skip
    # Without its digest, as earlier versions wrote it: what is damaged would go no further.
    manifest = json.loads(files[MANIFEST])
    manifest.pop(DIGEST, None)
    files[MANIFEST] = json.dumps(manifest).encode()
    yield Specimen(name="manifest", files=files, damaged=MANIFEST, opened=".", damage=damage_json,
                   read=_read_manifest)  # fmt: skip
    yield from _of_signatures(place, bundle)


def _of_signatures(place: Path, bundle: Path) -> Iterator[Specimen]:
    """A bundle's signature, and the key that checks it."""
    private, public = make_key(place / "signer")
    signed = Path(shutil.copytree(bundle, place / "signed"))
    write_manifest(signed, open_bundle(signed).manifest)  # with a digest
    sign_bundle(signed, private)
    files = {name: (signed / name).read_bytes() for name in (MANIFEST, SIGNATURE)}
    manifest, keys = read_manifest_bytes(signed / MANIFEST), [read_public_key(public)]
    yield Specimen(name="signature", files=files, damaged=SIGNATURE, opened=".",
                   damage=damage_json,
                   read=lambda folder: check_signature(folder, manifest, keys))  # fmt: skip
    yield _one("public key", public, read=read_public_key)


def _read_recipe(path: Path) -> object:
    return load_recipe(str(path))


def _read_header(path: Path) -> object:
    encoding = read_encoding(path.read_bytes())
    return Assembler(encoding)


def _read_config(path: Path) -> object:
    text = path.read_bytes().decode("utf-8", "replace")
    return choose(ConfigText(text), ServerSettings())


def _read_manifest(folder: Path) -> object:
    opened = open_bundle(folder)
    reads = read_input_spec(folder)
    return opened.free, opened.fixed_coils, opened.written, opened.size, reads


def _messages(scan: Scan, *texts: Text) -> bytes:
    encoding = encoding_of(scan)
    header = HeaderText(write_encoding(encoding, slices=len(scan.kspace)))
    messages = (ConfigFile("kdmri-edge"), header, *texts, *readouts(scan), Close())
    return b"".join(map(serialise, messages))


def _stream(place: Path) -> Specimen:
    parameters = json.dumps({"parameters": {"config": "kdmri-edge", "format": "float"}})
    (place / "stream").write_bytes(_messages(_scan(), Text(parameters)))
    return _one("stream", place / "stream", damage=_damage_stream, read=_read_stream)


def _damage_stream(data: bytes, draw: random.Random) -> bytes:
    """Damage bytes anywhere, the header's text, or the parameters."""
    kind = draw.randrange(3)
    if kind == 0:
        return damage_bytes(data, draw)
    parser = Parser()
    parser.feed(data)
    out = b""
    for message in parser.messages():
        if isinstance(message, HeaderText) and kind == 1:
            out += _as_text(3, damage_text(message.xml.encode(), draw))
        elif isinstance(message, Text) and kind == 2:
            out += _as_text(5, damage_json(message.text.encode(), draw))
        else:
            out += serialise(message)
    return out


def _as_text(identifier: int, text: bytes) -> bytes:
    return struct.pack("<HI", identifier, len(text) + 1) + text + b"\0"


def _read_stream(path: Path) -> object:
    """Take a stream as a session of the server does, without the network."""
    parser, order, settings = Parser(), Order(), ServerSettings()
    chosen, assembler = None, None
    data = path.read_bytes()
    made = 0
    for start in range(0, len(data), 4096):
        parser.feed(data[start : start + 4096])
        for message in parser.messages():
            order.take(message)
            match message:
                case Close():
                    break
                case ConfigFile() | ConfigText():
                    chosen = choose(message, settings)
                case HeaderText():
                    assembler = Assembler(read_encoding(message.xml), settings.capacity)
                case Text() if chosen is not None:
                    chosen = refine(message, chosen, settings)
                case Acquisition() if assembler is not None:
                    made += assembler.add(message) is not None
    parser.finish()
    return made + sum(1 for _ in assembler.finish()) if assembler is not None else made


def _checkpoint(place: Path) -> Specimen:
    import torch

    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from kdmri_edge.models.specs import ModelSpec, preset

    architecture = preset("dccnn-d3c5")
    assert isinstance(architecture, ModelSpec)
    small = dataclasses.replace(architecture, width=4, cascades=2)
    torch.manual_seed(0)
    path = place / "network.safetensors"
    save_checkpoint(
        path,
        Checkpoint(
            spec=small,
            mask=variable_density_lines(_MATRIX, 2.0, centre_lines=8, seed=0),
            matrix=_MATRIX,
            role="student",
            training={},
            state=build_model(small).state_dict(),
        ),
    )
    return _one("checkpoint", path, damage=_damage_checkpoint, read=load_checkpoint)


def _weights(place: Path) -> Specimen:
    import torch

    from kdmri_edge.models.foreign_weights import read_weights

    state = {"weight": torch.ones(4, 4), "bias": torch.zeros(4)}
    torch.save({"state_dict": state, "epoch": 3}, place / "weights.pt")
    return _one("weights of PyTorch", place / "weights.pt", read=read_weights)


def _damage_checkpoint(data: bytes, draw: random.Random) -> bytes:
    """Damage bytes anywhere, the header, or what it says of the network."""
    kind = draw.randrange(3)
    if kind == 0:
        return damage_bytes(data, draw)
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if kind == 1:
        header = damage_json(header, draw)
    else:
        value = json.loads(header)
        own = damage_json(value["__metadata__"]["kdmri"].encode(), draw)
        value["__metadata__"]["kdmri"] = own.decode("utf-8", "replace")
        header = json.dumps(value).encode()
    return struct.pack("<Q", len(header)) + header + rest


def clear(folder: Path) -> None:
    """Remove what `Specimen.written` made."""
    shutil.rmtree(folder, ignore_errors=True)
