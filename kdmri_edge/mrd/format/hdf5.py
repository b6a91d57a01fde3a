"""MRD's files: readouts in and out, and series of images with their place in the patient.

Files are HDF5, with a scan in a group of /xml and /data; of a file with several scans one is named
as FILE.h5:GROUP. What converters write to a pipe, a stream of the protocol's messages, is read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import h5py
import ismrmrd
import numpy as np
from ismrmrd import Acquisition, Dataset, Image, ImageHeader, Meta
from ismrmrd.hdf5 import acquisition_dtype, get_hdf5type, image_header_dtype
from numpy.typing import NDArray

from kdmri_edge.data.components import Component, intensities
from kdmri_edge.data.formats.hdf5.mrd import image_series, is_mrd_stream, mrd_groups
from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.geometry import voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import orientation_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import split_dataset
from kdmri_edge.data.volume import Volume, checked_image
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.geometry import affine_of, place_slice, slice_order
from kdmri_edge.mrd.format.header import Encoding, read_encoding, write_encoding
from kdmri_edge.mrd.format.streams import stream_header, stream_readouts
from kdmri_edge.utils.console import say
from kdmri_edge.utils.files import atomic_path
from kdmri_edge.utils.reading import check_claim, reading

__all__ = [
    "SERIES",
    "ScanWriter",
    "read_header",
    "read_images",
    "read_readouts",
    "read_scan",
    "write_image_record",
    "write_images",
    "write_readouts",
    "write_scan",
]

_GROUP: Final = "dataset"
_BLOCK: Final = 256  # readouts that are read or written at once
_BLOCK_BYTES: Final = 2**24  # at most, of those that are written


def _group(file: h5py.File, path: Path, named: str | None) -> h5py.Group:
    """Return the group that holds a scan: the one that is named, else the only one there is."""
    own = mrd_groups(file)
    if named is not None:
        if named.strip("/") not in own:
            held = f"It holds {', '.join(own)}." if own else "It holds none."
            raise DataError(f"{path} has no scan {named!r}.", held)
        return file[named]
    if len(own) > 1:
        listed = ", ".join(f"{name} ({file[name]['data'].size} readouts)" for name in own)
        raise DataError(
            f"{path} holds {len(own)} scans: {listed}.", f"Name one, as {path.name}:{own[-1]}."
        )
    if not own:
        raise DataError(
            f"{path} holds no readouts of a scan.",
            "An MRD file has /dataset/xml and /dataset/data.",
        )
    return file[own[0]]


def read_header(path: Path) -> str:
    """Return the XML header of a scan.

    Args:
        path: A file, or FILE.h5:GROUP.

    Raises:
        DataError: Missing, unreadable, no MRD file, or one of several scans of which none is named.
    """
    source, named = split_dataset(path)
    if is_mrd_stream(source):
        return stream_header(source)
    with open_hdf5(source) as file:
        stored = values(_group(file, source, named)["xml"]).reshape(-1)
    if not stored.size:
        raise DataError(f"{source} has an empty header.", "Convert the scan again.")
    return _text(stored[0])


def count_readouts(path: Path) -> int:
    """Return how many readouts a scan holds.

    Raises:
        DataError: See `read_header`.
    """
    source, named = split_dataset(path)
    if is_mrd_stream(source):
        return sum(1 for _ in stream_readouts(source))
    with open_hdf5(source) as file:
        return int(_group(file, source, named)["data"].size)


def read_readouts(path: Path) -> Iterator[Acquisition]:
    """Yield the readouts of a scan, in order, holding few of them.

    Raises:
        DataError: See `read_header`, or a readout whose samples do not fit its header.
    """
    source, named = split_dataset(path)
    if is_mrd_stream(source):
        yield from stream_readouts(source)
        return
    with open_hdf5(source) as file:
        data = _group(file, source, named)["data"]
        if len(data.shape) != 1:
            raise DataError(
                f"{path} has readouts of shape {list(data.shape)}.", "MRD keeps them in one axis."
            )
        # their headers: the samples lie elsewhere in the file, and are as long as that says
        stored = data.id.get_storage_size()
        check_claim(data.shape[0] * data.dtype.itemsize, f"{data.name} of {source}", stored=stored)
        for start in range(0, data.shape[0], _BLOCK):
            with reading(path, "readouts of a scan"):
                rows = [_acquisition(row) for row in data[start : start + _BLOCK]]
            yield from rows


def _acquisition(row: Any) -> Acquisition:
    head, samples = row["head"], row["data"].view(np.complex64)
    count = int(head["number_of_samples"])
    if not head["active_channels"] and count and not samples.size % count:
        # some converters leave the number out; the samples themselves tell it
        head = head.copy()
        head["active_channels"] = samples.size // count
    claimed = int(head["active_channels"]) * count
    if samples.size != claimed or row["traj"].size != int(head["trajectory_dimensions"]) * count:
        raise ValueError("other samples than its header says")  # before they are allocated
    acquisition = Acquisition(head.tobytes())
    acquisition.data[:] = samples.reshape(
        acquisition.active_channels, acquisition.number_of_samples
    )
    if acquisition.traj.size:
        acquisition.traj[:] = row["traj"].reshape(acquisition.traj.shape)
    return acquisition


def read_scan(path: Path) -> Scan:
    """Read the readouts of a file into a scan.

    Several contrasts, cardiac phases, repetitions or sets follow one another along S (in that
    order, slowest first: set, contrast, phase, repetition, slice), without an affine. Averages are
    averaged, however many the header announces, and flags of last lines mean nothing here: the
    file is whole. Noise of another number of coils than the image's is left out, and said.

    Args:
        path: A file, or FILE.h5:GROUP.

    Raises:
        DataError: Not a Cartesian 2-D MRD file, several scans of which none is named, readouts
            outside the encoded space, an asymmetric echo, no image at all, or slices that were
            sampled in different ways.
    """
    encoding = read_encoding(read_header(path))
    assembler = Assembler(encoding, whole=True)
    for acquisition in read_readouts(path):
        assembler.add(acquisition)
        check_claim(assembler.held, f"The readouts of {path}")
    check_claim(assembler.claimed, f"K-space of {path}")
    slices = list(assembler.finish())
    if not slices:
        raise _no_image(path, assembler)
    if any(part.partial_readout for part in slices):
        raise DataError(
            f"{path} holds asymmetric echoes.", "Its readouts have to cover k-space as a whole."
        )
    mask = slices[0].mask
    if any(part.mask != mask for part in slices):
        raise DataError(
            f"The slices of {path} are sampled in different ways.",
            "Send it to `kdmri-edge serve`, which takes each slice by itself.",
        )
    if assembler.other_noise is not None:
        say(
            f"Note: {path.name} has noise readouts of {assembler.other_noise} coils and a scan of"
            f" {slices[0].kspace.shape[0]}; they do not whiten it."
        )
    stacks = {part.key._replace(slice=0) for part in slices}
    if len(stacks) == 1:
        numbers = [part.key.slice for part in slices]
        slices = [slices[i] for i in slice_order([part.head for part in slices], numbers)]
    else:
        slices.sort(key=lambda part: part.key)
    kspace = np.stack([part.kspace for part in slices])
    affine, orientation = None, orientation_of(encoding.vendor)
    if len(stacks) == 1:
        heads = [part.head for part in slices]
        affine = affine_of(heads, encoding, kspace.shape[2:], orientation)
    source, named = split_dataset(path)
    origin = origin_of(source)
    if named is not None:
        origin["name"] += f"_{named.strip('/').replace('/', '_')}"
    return Scan(
        kspace=kspace,
        mask=mask,
        **origin,
        affine=affine,
        noise=assembler.noise,
        reference=tuple(part.reference for part in slices)
        if any(part.reference for part in slices)
        else None,
        orientation=orientation,
        vendor=encoding.vendor,
    )


def _no_image(path: Path, assembler: Assembler) -> DataError:
    if assembler.elsewhere:
        return DataError(
            f"{path} holds no line of an image in encoding space 0; {assembler.elsewhere} readouts"
            " belong to another one, as reference scans do.",
            "Set encoding_space_ref of the image's readouts to 0, and give its encoding first.",
        )
    return DataError(f"{path} holds no line of an image.", "Give a file of a whole scan.")


class ScanWriter:
    """Writes a scan's messages to an open file as they come, holding few of them.

    Args:
        file: Open for writing, and empty.
        xml: Header of the scan.

    Attributes:
        readouts: How many have been added.
        images: The same of images.
    """

    def __init__(self, file: h5py.File, xml: str) -> None:
        self.readouts = self.images = 0
        self._group = file.create_group(_GROUP)
        self._group.create_dataset("xml", data=[xml.encode()], dtype=h5py.special_dtype(vlen=bytes))
        self._block: list[Acquisition] = []
        self._size = 0
        self._kinds: dict[int, list[tuple[tuple[int, ...], str]]] = {}

    def add(self, message: Acquisition | Image) -> None:
        """Add a readout, or an image to the series of its number; none without pixels."""
        if isinstance(message, Image):
            if message.data.size:
                self._append_image(message)
            return
        self._block.append(message)
        self._size += message.data.nbytes + message.traj.nbytes
        if len(self._block) == _BLOCK or self._size >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the readouts that are held; an empty file gets its empty table of them, too."""
        if "data" not in self._group:
            self._group.create_dataset(
                "data", (0,), maxshape=(None,), dtype=acquisition_dtype, chunks=(_BLOCK,)
            )
        block, self._block, self._size = self._block, [], 0
        self.readouts = _append(self._group["data"], block, self.readouts)

    def _append_image(self, image: Image) -> None:
        name = series_name(self._kinds, image)
        shape, kind = image.data.shape, get_hdf5type(image.data_type)
        group = self._group.require_group(name)
        if "header" not in group:
            # chunks of one image: the usual guess would take much more room than a small series
            text = h5py.special_dtype(vlen=str)
            for part, size, dtype in (
                ("header", (), image_header_dtype), ("attributes", (), text), ("data", shape, kind),
            ):  # fmt: skip
                group.create_dataset(
                    part, (0, *size), maxshape=(None, *size), dtype=dtype, chunks=(1, *size)
                )
        number = len(group["header"])
        for part in ("header", "attributes", "data"):
            group[part].resize(number + 1, axis=0)
        group["header"][number] = np.frombuffer(image.getHead(), image_header_dtype)[0]
        group["attributes"][number] = image.attribute_string
        group["data"][number] = np.ascontiguousarray(image.data).view(kind)
        self.images += 1


def write_readouts(path: Path, xml: str, acquisitions: Iterable[Acquisition]) -> int:
    """Write an MRD file of readouts, as a whole or not at all; return how many there are.

    Raises:
        OutputError: The place cannot be written to.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        writer = ScanWriter(file, xml)
        for acquisition in acquisitions:
            writer.add(acquisition)
        writer.flush()
    return writer.readouts


def _append(data: h5py.Dataset, block: list[Acquisition], count: int) -> int:
    rows = np.empty(len(block), dtype=acquisition_dtype)
    for row, acquisition in zip(rows, block, strict=True):
        row["head"] = np.frombuffer(acquisition.getHead(), acquisition_dtype["head"])[0]
        row["data"] = np.ascontiguousarray(acquisition.data).view(np.float32).ravel()
        row["traj"] = np.ascontiguousarray(acquisition.traj).ravel()
    if len(block):
        data.resize(count + len(block), axis=0)
        data[count:] = rows
    return count + len(block)


def write_scan(path: Path, scan: Scan, oversampling: int = 1) -> None:
    """Write a scan as an MRD file of readouts.

    Raises:
        DataError: The mask samples points, not lines.
        OutputError: The place cannot be written to.
    """
    xml = write_encoding(encoding_of(scan, oversampling), slices=len(scan.kspace))
    write_readouts(path, xml, readouts(scan, oversampling))


def write_images(path: Path, images: Iterable[Image], xml: str | None = None) -> int:
    """Write reconstructed images as an MRD file, /dataset/image_N by their series N.

    Args:
        path: Where to.
        images: Those of one series with another matrix or data type than its first image go to a
            dataset of their own, /dataset/image_N_2 and so on: one dataset has one of each.
        xml: Header of the scan, kept beside them.

    Returns:
        How many there are.

    Raises:
        OutputError: The place cannot be written to.
    """
    count = 0
    kinds: dict[int, list[tuple[tuple[int, ...], str]]] = {}
    with atomic_path(path) as temporary, Dataset(str(temporary), _GROUP) as dataset:
        if xml is not None:
            dataset.write_xml_header(xml.encode())
        for image in images:
            dataset.append_image(series_name(kinds, image), image)
            count += 1
    return count


def series_name(kinds: dict[int, list[tuple[tuple[int, ...], str]]], image: Image) -> str:
    """Return the name of the group that an image belongs to.

    Args:
        kinds: By series, the matrices and data types of the images so far; extended.
        image: The next one.
    """
    series = int(image.image_series_index)
    kind = (tuple(image.data.shape), str(image.data.dtype))
    known = kinds.setdefault(series, [])
    if kind not in known:
        known.append(kind)
    number = known.index(kind) + 1
    return f"image_{series}" if number == 1 else f"image_{series}_{number}"


SERIES: Final = re.compile(r"images?_\d+")
"""Names of the groups that hold a series of images."""


def write_image_record(path: Path, picture: ImageRecord) -> None:
    """Write images [S, H, W], magnitude or complex, as the series /dataset/image_1.

    Raises:
        OutputError: The place cannot be written to.
    """
    write_images(path, _images(picture))


def _images(picture: ImageRecord) -> Iterator[Image]:
    pixels = np.asarray(picture.image)
    height, width = pixels.shape[-2:]
    voxel = picture.voxel_mm if picture.affine is None else voxel_size(picture.affine)
    thick, down, across = voxel or (0.0, 0.0, 0.0)
    kind = ismrmrd.IMTYPE_COMPLEX if np.iscomplexobj(pixels) else ismrmrd.IMTYPE_MAGNITUDE
    for number, slice_pixels in enumerate(pixels):
        image = Image.from_array(
            np.ascontiguousarray(slice_pixels),
            field_of_view=(width * across, height * down, thick),
            image_type=kind,
            image_index=number + 1,
            image_series_index=1,
        )
        head = image.getHead()
        head.slice = number
        if picture.affine is not None:
            place_slice(head, picture.affine, number, (height, width))
        image.setHead(head)
        image.meta = {
            "DataRole": "Image",
            "ImageProcessingHistory": ["KDMRI-EDGE"],
            "ImageRowDir": [f"{v:.9f}" for v in head.read_dir],
            "ImageColumnDir": [f"{v:.9f}" for v in head.phase_dir],
            **({"ImageComment": picture.derivation} if picture.derivation else {}),
        }
        yield image


def read_images(path: Path) -> Volume:
    """Read the one series of images of a file, as any server of the protocol may have written it.

    Of a series with other components beside the magnitudes, the magnitudes are read. Slices are put
    in the order of their positions. Whole numbers are brought back to their unit by
    RescaleSlope and RescaleIntercept. Several contrasts, cardiac phases, repetitions or sets follow
    one another along S, without an affine.

    Returns:
        float32 magnitude or complex64 volume.

    Raises:
        DataError: Unreadable, several series, several channels, three-dimensional, phases or parts
            of complex images alone, or no image.
    """
    with open_hdf5(path, "MRD images") as file:
        series = [
            node
            for group in file.values() if isinstance(group, h5py.Group)
            for name, node in group.items()
            if SERIES.fullmatch(name) or name in image_series(group)
        ]  # fmt: skip
        if len(series) != 1:
            raise DataError(
                f"{path} holds {len(series)} series of images.", "Give a file of one series."
            )
        data = _numbers(values(series[0]["data"]))
        heads = [ImageHeader.from_buffer_copy(h.tobytes()) for h in values(series[0]["header"])]
        metas = [Meta.deserialize(_text(text)) for text in values(series[0]["attributes"])]
    if data.ndim != 5 or data.shape[1:3] != (1, 1) or not len(data) == len(heads) == len(metas):
        raise DataError(
            f"The images of {path} have shape {list(data.shape)}.",
            "This reads images of one channel and one slice each, [images, 1, 1, rows, columns].",
        )
    kept, left_out = intensities([_component(head) for head in heads], path)
    data, heads, metas = data[kept], [heads[i] for i in kept], [metas[i] for i in kept]
    pixels = np.stack([_unit(p[0, 0], meta, path) for p, meta in zip(data, metas, strict=True)])
    stacks = {(h.set, h.contrast, h.phase, h.repetition) for h in heads}
    if len(stacks) == 1:
        order = slice_order(heads, [int(h.slice) for h in heads])
    else:
        keys = [(h.set, h.contrast, h.phase, h.repetition, h.slice) for h in heads]
        order = sorted(range(len(heads)), key=keys.__getitem__)
        say(
            f"Note: {path.name} holds {len(stacks)} stacks (contrasts, cardiac phases, repetitions"
            f" or sets), {len(heads)} images in all; they follow one another, without a place in"
            " the patient."
        )
    heads, pixels = [heads[i] for i in order], pixels[order]
    height, width = pixels.shape[1:]
    fov = tuple(float(v) for v in heads[0].field_of_view)
    return Volume(
        image=checked_image(pixels, path),
        **origin_of(path),
        voxel_mm=(fov[2], fov[1] / height, fov[0] / width) if min(fov) > 0 else None,
        affine=_affine(heads, (height, width)) if len(stacks) == 1 else None,
        left_out=left_out,
    )


_COMPONENTS: Final = {
    ismrmrd.IMTYPE_COMPLEX: Component.COMPLEX,
    ismrmrd.IMTYPE_PHASE: Component.PHASE,
    ismrmrd.IMTYPE_REAL: Component.REAL,
    ismrmrd.IMTYPE_IMAG: Component.IMAGINARY,
    6: Component.COLOUR,  # IMTYPE_RGB, which the package does not name
}


def _component(head: Any) -> Component:
    """What an image's header says that its pixels are; a type that is not set says nothing."""
    return _COMPONENTS.get(int(head.image_type), Component.MAGNITUDE)


def _affine(heads: list[Any], matrix: tuple[int, int]) -> NDArray[np.float64] | None:
    height, width = matrix
    fov = tuple(float(v) for v in heads[0].field_of_view)
    if min(fov) <= 0:
        return None
    whole = Encoding(lines=height, samples=width, width=width, rows=height,
                     fov_mm=(fov[0], fov[1], fov[2]), centre=0, first=0, last=0)  # fmt: skip
    return affine_of(heads, whole, matrix)


def _text(stored: Any) -> str:
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)


def _numbers(stored: NDArray[Any]) -> NDArray[Any]:
    """Complex numbers are pairs called real and imag, which h5py does not take for complex."""
    if stored.dtype.names == ("real", "imag"):
        return np.asarray(stored["real"] + 1j * stored["imag"])
    return stored


def _unit(pixels: NDArray[Any], meta: Any, path: Path) -> NDArray[Any]:
    slope, intercept = (
        _factor(meta, f"Rescale{key}", usual, path)
        for key, usual in (("Slope", 1.0), ("Intercept", 0.0))
    )
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    return pixels.astype(np.float64) * slope + intercept


def _factor(meta: Any, name: str, usual: float, path: Path) -> float:
    """A number of an image's attributes; one that is given several times has to be the same.

    Raises:
        DataError: No number, or different ones.
    """
    given = meta.get(name, usual)
    values = list(given) if isinstance(given, list | tuple) else [given]
    try:
        numbers = {float(value) for value in values} or {usual}
    except (TypeError, ValueError):
        numbers = set()
    if len(numbers) != 1 or not np.isfinite(list(numbers)).all():
        listed = ", ".join(map(str, values))[:80]
        raise DataError(
            f"An image of {path} has {name} {listed}.", "Give one number, or leave it out."
        )
    return numbers.pop()
