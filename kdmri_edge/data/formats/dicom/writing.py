"""Writing images as a DICOM series (pydicom, extra `formats`): one file per slice.

With a geometry the files are MR Image Storage (PS3.3, A.4), without one secondary captures. Who
the patient is comes from the DICOM source of the images or is left empty; nothing is invented.
Every file says that it is derived, how, and by which version of this software.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge import __version__
from kdmri_edge.data.formats.dicom.files import dicom_files
from kdmri_edge.data.formats.dicom.frames import open_dicom, reading_dicom
from kdmri_edge.data.geometry import LPS, Affine, directions, regridded, voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.utils import extras
from kdmri_edge.utils.files import atomic_directory, atomic_path

__all__ = [
    "CERTIFICATE_ELEMENT",
    "PRIVATE_CREATOR",
    "PRIVATE_GROUP",
    "DicomSeries",
    "check_study",
    "clipped_share",
    "dicom_objects",
    "write_dicom",
]

PRIVATE_GROUP: Final = 0x0075
PRIVATE_CREATOR: Final = "KDMRI-EDGE"
CERTIFICATE_ELEMENT: Final = 0x01
"""Private element (PS3.5, 7.8.1) that holds an image's certificate: (0075,xx01), UT."""

_MR_IMAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
_LEVELS: Final = 65535
_ROOM: Final = 4.0  # see DicomSeries
_MODEL: Final = "kdmri-edge"

# fmt: off
# Patient, study and frame of reference: what ties a derived image to its source (PS3.3, C.7.1,
# C.7.2, C.7.4), and how that was acquired.
_OF_THE_SOURCE: Final = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientWeight", "PatientSize", "PatientIdentityRemoved",
    "DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "Laterality",
    "ProtocolName", "AcquisitionDate", "AcquisitionTime", "ScanningSequence", "SequenceVariant",
    "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength",
    "InversionTime", "FlipAngle", "MagneticFieldStrength", "ImagingFrequency", "ImagedNucleus",
    "BurnedInAnnotation", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)

# Type 2 attributes: they must be there, and may be empty.
_EMPTY: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)
_EMPTY_MR: Final = (
    "PositionReferenceIndicator", "ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength",
)
# fmt: on


def write_dicom(path: Path, picture: ImageRecord) -> None:
    """Write a series.

    The axes are transposed and flipped to the usual view (columns to the patient's left, rows to
    the back; sagittal: columns to the back, rows downwards); each pixel keeps its place in the
    patient. Intensities become 16-bit numbers with one rescale slope for the whole series.

    Args:
        path: Ends in `.dcm`: the file of a single slice, or a folder of one file per slice.
        picture: Magnitudes; with `dicom`, that series gives patient, study and acquisition.

    Raises:
        OutputError: Complex images, a folder that holds other files, or a place that cannot be
            written to.
        DataError: The source series cannot be read any more.
        MissingExtraError: pydicom is not installed.
    """
    if np.iscomplexobj(picture.image):
        raise OutputError(
            f"{path} would lose the images' phase: DICOM holds magnitudes.",
            "Write magnitudes (`run` without --complex, `data convert --magnitude`), or write"
            " .nii.gz or .npy.",
        )
    if path.is_dir():
        _check_ours(path)
    made = _datasets(picture)
    if len(picture.image) == 1 and not path.is_dir():
        with atomic_path(path) as temporary:
            next(made).save_as(temporary, enforce_file_format=True)
        return
    with atomic_directory(path) as folder:
        for index, data in enumerate(made):
            data.save_as(folder / f"{index + 1:04d}.dcm", enforce_file_format=True)


def dicom_objects(picture: ImageRecord) -> Iterator[bytes]:
    """Yield a series as `write_dicom` writes it, object by object.

    Raises:
        KdmriError: See `write_dicom`.
    """
    for data in _datasets(picture):
        yield _encoded(data)


def check_study(path: Path) -> None:
    """Read whose patient and study images are to belong to, before anything is reconstructed.

    Raises:
        DataError: There is no such file, it is not DICOM, or it is damaged.
        MissingExtraError: pydicom is not installed.
    """
    files = dicom_files(path) if path.exists() else []
    if not files:
        raise DataError(f"{path} is no DICOM file or series.", "Name one of the examination.")
    header = open_dicom(files[0], pixels=False)
    with reading_dicom(files[0]):
        if not header.get("StudyInstanceUID"):
            raise DataError(f"{files[0]} names no study.", "Name a file of the examination.")


class DicomSeries:
    """A series whose images come one by one, before it is known how bright the others are.

    The rescale slope is that of the first image with room for others `_ROOM` times as bright, so
    that viewers which pass the slope over show equal intensities equally bright; an image that is
    brighter still has its own.

    Args:
        known: Attributes of patient, study and acquisition by their keywords; what is not known
            stays empty, and UIDs are made.

    Attributes:
        study: UIDs of the study and its frame of reference, for further series of both.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        pydicom: Any = extras.require("pydicom", extra="formats")
        shared = ("StudyInstanceUID", "FrameOfReferenceUID")
        made = {
            uid: str(pydicom.uid.generate_uid(prefix=None))
            for uid in (*shared, "SeriesInstanceUID")
        }
        self._known = {**made, **known}
        self.study = {uid: str(self._known[uid]) for uid in shared}
        self._slope = 0.0
        self._count = 0

    def add(self, picture: ImageRecord, also: Mapping[str, Any]) -> bytes:
        """Return the next object.

        Args:
            picture: One image.
            also: Attributes of this image alone; what is empty is left out.

        Raises:
            MissingExtraError: pydicom is not installed.
        """
        image, affine, down = _upright(picture)
        whole = _common(picture, affine, down)
        for keyword, value in {**self._known, **also}.items():
            if value and (affine is not None or keyword != "FrameOfReferenceUID"):
                setattr(whole, keyword, value)
        brightest = float(image.max())
        self._slope = self._slope or _ROOM * brightest / _LEVELS
        stored = _integers(image, whole, max(self._slope, brightest / _LEVELS))
        data = _dataset(whole, stored, 0, affine, picture.certificates)
        self._count += 1
        data.InstanceNumber = self._count
        return _encoded(data)


def _datasets(picture: ImageRecord) -> Iterator[Any]:
    """Yield a series' objects."""
    image, affine, down = _upright(picture)
    whole = _common(picture, affine, down)
    stored = _integers(image, whole, float(image.max()) / _LEVELS)
    for index in range(len(stored)):
        yield _dataset(whole, stored, index, affine, picture.certificates)


def clipped_share(image: NDArray[Any]) -> float:
    """Return which share of the pixels a series sets to 0, for they are negative.

    Args:
        image: Real, as `write_dicom` is given it.
    """
    slope = _slope(float(image.max()) / _LEVELS)
    return float(np.mean(np.rint(image / slope) < 0))  # what rounds to 0 is rounded, not clipped


def _slope(wanted: float) -> float:
    """Return the rescale slope as its text gives it back; 1 for images without a positive pixel."""
    return float(f"{wanted if wanted > 0 else 1.0:.9e}")


def _integers(image: NDArray[Any], whole: Any, wanted: float) -> NDArray[np.uint16]:
    """Intensities as 16-bit numbers, and in `whole` the slope that leads back."""
    slope = _slope(wanted)
    whole.RescaleSlope = f"{slope:.9e}"
    numbers: NDArray[np.uint16] = np.clip(np.rint(image / slope), 0, _LEVELS).astype("<u2")
    return numbers  # a network may ring below 0, which `clipped_share` tells


def _check_ours(folder: Path) -> None:
    """Refuse a folder whose replacement would lose more than an earlier series of ours."""
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(".dcm"):
            raise OutputError(
                f"{folder} holds other files than a DICOM series ({file.name}).",
                "Choose another name.",
            )
        if not _is_ours(file):
            raise OutputError(
                f"{folder} holds images that kdmri-edge did not write ({file.name}).",
                "Choose another name.",
            )


def _is_ours(file: Path) -> bool:
    try:
        header = open_dicom(file, pixels=False)
    except DataError:
        return False
    with reading_dicom(file):
        return bool(header.get("ManufacturerModelName") == _MODEL)


def _upright(picture: ImageRecord) -> tuple[NDArray[Any], Affine | None, bool]:
    """[slice, row, column] as a radiologist expects it, its affine, and whether H runs down."""
    image, affine = picture.image, picture.affine
    if affine is None:
        return image, None, True
    letters = directions(affine)
    # Columns run from right to left, or, where the slices do, from front to back.
    across = "LR" if not set("LR") & set(letters[0]) else "AP"
    h_runs_down = letters[2] in across
    if not h_runs_down:
        image, affine = np.swapaxes(image, 1, 2), affine[:, [0, 2, 1, 3]]
        letters = letters[0] + letters[2] + letters[1]
    for axis in (1, 2):
        if letters[axis] in "RAS":  # rows and columns run to L, P and I
            last = [0.0, 0.0, 0.0]
            last[axis] = image.shape[axis] - 1
            step = [-1.0 if a == axis else 1.0 for a in range(3)]
            image = np.flip(image, axis)
            affine = regridded(affine, old=last, new=(0, 0, 0), step=step)
    return image, affine, h_runs_down


def _common(picture: ImageRecord, affine: Affine | None, h_runs_down: bool) -> Any:
    """What all files of the series have in common, as a pydicom Dataset."""
    pydicom: Any = extras.require("pydicom", extra="formats")
    uid = pydicom.uid.generate_uid
    whole = pydicom.Dataset()
    if picture.dicom is not None:
        file = dicom_files(picture.dicom)[0]
        source = open_dicom(file, pixels=False)
        with reading_dicom(file):
            for keyword in _OF_THE_SOURCE:
                if keyword in source:
                    whole[keyword] = source[keyword]
            named = f"{source.get('SeriesDescription', '')} kdmri-edge".strip()[:64]
            whole.SeriesDescription = named
    else:
        whole.SeriesDescription = "kdmri-edge"
    for keyword in (*_EMPTY, *(_EMPTY_MR if affine is not None else ())):
        if keyword not in whole:
            setattr(whole, keyword, None)
    if "StudyInstanceUID" not in whole:
        whole.StudyInstanceUID = uid(prefix=None)
    whole.SeriesInstanceUID = uid(prefix=None)
    whole.SeriesNumber = None
    whole.Modality = "MR" if affine is not None else "OT"
    whole.SOPClassUID = _SECONDARY_CAPTURE if affine is None else _MR_IMAGE
    whole.ImageType = ["DERIVED", "SECONDARY", "M"]
    whole.Manufacturer = whole.ManufacturerModelName = _MODEL
    whole.SoftwareVersions = __version__
    whole.DerivationDescription = picture.derivation or f"Written by kdmri-edge {__version__}."
    if "LossyImageCompression" not in whole:
        whole.LossyImageCompression = "00"  # of the compression alone; the derivation says the rest
    whole.SamplesPerPixel, whole.PhotometricInterpretation = 1, "MONOCHROME2"
    whole.BitsAllocated, whole.BitsStored, whole.HighBit = 16, 16, 15
    whole.PixelRepresentation = 0
    whole.RescaleIntercept, whole.RescaleType = "0", "US"
    whole.InPlanePhaseEncodingDirection = "COL" if h_runs_down else "ROW"
    if affine is None:
        whole.ConversionType = "WSD"
        if picture.voxel_mm is not None:
            whole.PixelSpacing = [f"{mm:.9g}" for mm in picture.voxel_mm[1:]]
            whole.SliceThickness = f"{picture.voxel_mm[0]:.9g}"
        return whole
    steps = voxel_size(affine)
    whole.PixelSpacing = [f"{mm:.9g}" for mm in steps[1:]]
    whole.SliceThickness = whole.SpacingBetweenSlices = f"{steps[0]:.9g}"
    if "FrameOfReferenceUID" not in whole:
        whole.FrameOfReferenceUID = uid(prefix=None)
    if "ScanningSequence" not in whole:
        whole.ScanningSequence, whole.SequenceVariant = "RM", "NONE"
    lps = LPS @ affine
    cosines = np.concatenate([lps[:3, 2] / steps[2], lps[:3, 1] / steps[1]])
    whole.ImageOrientationPatient = [f"{c:.10f}" for c in cosines]
    return whole


def _dataset(
    whole: Any,
    stored: NDArray[Any],
    index: int,
    affine: Affine | None,
    certificates: tuple[str, ...] = (),
) -> Any:
    pydicom: Any = extras.require("pydicom", extra="formats")
    data = pydicom.Dataset()
    data.update(whole)
    data.SOPInstanceUID = pydicom.uid.generate_uid(prefix=None)
    data.InstanceNumber = index + 1
    if affine is not None:
        position = LPS @ affine @ [index, 0, 0, 1]
        data.ImagePositionPatient = [f"{mm:.8g}" for mm in position[:3]]
    if certificates:
        block = data.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
        block.add_new(CERTIFICATE_ELEMENT, "UT", certificates[index])
    data.Rows, data.Columns = stored.shape[1:]
    data.PixelData = np.ascontiguousarray(stored[index]).tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return data


def _encoded(data: Any) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
