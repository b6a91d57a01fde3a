"""The public functions: load networks and reconstruct, read and write files, export, benchmark.

The commands of `kdmri-edge` are thin wrappers of these. Importing this module needs no PyTorch, and
bundles run without it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdmri_edge.data.formats.registry import read_either, write_image_record
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.data.origins import zero_first
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError, KdmriError, MaskError, ModelError
from kdmri_edge.models.shipped import named_mask
from kdmri_edge.physics.coils import COILS
from kdmri_edge.physics.masks import Mask, mask_from_array
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.runtime.networks import NetworkLike, backend_at_hand, device_options, where_it_runs
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import SessionInfo
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.closing import Closing
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.keys import public_keys
from kdmri_edge.utils.reading import limited

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Assessment",
    "Network",
    "NetworkLike",
    "Report",
    "assess",
    "benchmark",
    "export",
    "load",
    "read",
    "write",
]


# what `run` calls by the left is an argument of `Network.reconstruct`
_ARGUMENTS: Final = {
    r"--undersample\b": "undersample=True",
    r"with --mask\b": "as mask=",
    r"with --matrix any\b": 'with load(..., matrix="any")',
}


def load(
    network: NetworkLike,
    *,
    backend: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    mask: Mask | None = None,
    matrix: Literal["any"] | None = None,
    cache: bool = True,
    key: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> Network:
    """Open a trained network.

    Args:
        network: The name of one of the package (`kdmri-edge models`), a checkpoint, a bundle, or a
            run (its student; `run.teacher` for its teacher).
        backend: Name of a runtime: "onnxruntime", "openvino", "torch", ... None takes the one that
            a bundle is made for, or the next that is installed; a checkpoint is exported once for
            the fastest runtime that is installed, also where that one is named. "torch" runs a
            checkpoint in PyTorch itself.
            `Network.info` says what runs.
        precision: "fp32", "fp16", "bf16" or "int8"; None takes what the bundle was exported for.
        device: "cpu", "cuda", or OpenVINO's "gpu" and "npu"; None takes the runtime's usual one.
        threads: CPU threads; None leaves the runtime's choice.
        mask: Another mask than the network's own, for a bundle that takes masks as an input.
        matrix: "any" for scans of any matrix and mask: a checkpoint is exported so, a bundle has to
            be (`export(matrix="any")`); None takes what the network is.
        cache: Whether a checkpoint may be exported, and the export kept for the next time.
        key: File of a public key, or several: take no bundle but one that one of these signed.

    Raises:
        ModelError: There is no such network, or `matrix` is another value.
        BundleError: The bundle is damaged.
        SignatureError: The bundle is not signed as it should be.
        KeyFileError: `key` is no file of a public key.
        CheckpointError: The checkpoint is damaged.
        BackendError: The backend does not take the network, or the precision is not to be had.
        MissingExtraError: A library that it needs is not installed.
    """
    if matrix not in (None, "any"):
        raise ModelError(
            f"matrix={matrix!r} is nothing that a network can be opened for.",
            'Give matrix="any", or leave it out: a network brings its own matrix.',
        )
    free = matrix == "any"
    keys = public_keys(key)
    source, name = where_it_runs(
        network,
        backend=backend,
        device=device,
        precision=precision,
        any_matrix=free,
        cache=cache,
        signed=bool(keys),
    )
    backend = backend or backend_at_hand(source, device)
    options = device_options(source, backend, device)
    pipeline = Pipeline(
        source,
        backend=backend,
        mask=mask,
        any_matrix=free,
        precision=precision,
        threads=threads,
        keys=keys,
        **options,
    )
    return Network(pipeline, name)


class Network(Closing):
    """A trained network in a runtime; made by `load`. As a context manager it is closed at the end.

    Attributes:
        name: What it is called.
        spec: Its architecture.
        mask: The sampling pattern that it is made for.
        matrix: Pixels along H and W of the images that it is made for.
        takes_masks: Whether it takes any mask of its kind.
        takes_matrices: Whether it takes images of any matrix.
    """

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self._pipeline = pipeline
        reads = pipeline.reads
        self.name, self.spec, self.mask = name, reads.spec, reads.mask
        self.matrix = reads.matrix[0]
        self.takes_masks = pipeline.session.takes_masks
        self.takes_matrices = reads.free is not None
        self._said: set[str] = set()

    def __repr__(self) -> str:
        ran = self.info
        matrix = "any matrix" if self.takes_matrices else f"{self.matrix} x {self.matrix}"
        return (
            f"<Network {self.name}: {matrix}, mask {self.mask.name},"
            f" {ran.backend} {as_users_write(ran.precision_executed)} on {ran.device}>"
        )

    def close(self) -> None:
        """Release what the runtime holds."""
        self._pipeline.close()

    @property
    def info(self) -> SessionInfo:
        """What really runs: runtime, version, device, provider, threads, precision."""
        return self._pipeline.session.info

    def reconstruct(
        self,
        kspace: ArrayLike | Scan | Volume,
        *,
        mask: Mask | ArrayLike | str | os.PathLike[str] | None = None,
        maps: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        undersample: bool = False,
        centred: bool | None = None,
    ) -> NDArray[Any]:
        """Reconstruct k-space, or what `read` returned.

        What of a scan a network of any mask or matrix was not trained for is said on standard
        error, once.

        Args:
            kspace: Complex k-space, one coil [H, W] or [S, H, W], several [S, C, H, W]; phase
                encode along H, orthonormal (`physics.image_to_kspace`); zero where not sampled. Or
                a `Scan`, or a `Volume`.
            mask: What was sampled: a `Mask`, booleans [H] (lines) or [H, W], a mask file, or a
                network's name; None for the network's own mask, where that is of this matrix; a
                scan or volume says it itself.
            maps: Coil sensitivities, complex [C, H, W] or [S, C, H, W]; None estimates them.
            noise: Samples of each coil without signal, complex [C, N], for pre-whitening.
            undersample: The data is fully sampled: apply the network's mask to it, or for another
                matrix one that is drawn like it.
            centred: Of arrays: zero frequency is in the middle of both axes, at N // 2 (True), or
                at index 0 (False); None looks where the energy peaks, and says it where that is
                the middle. A mask that is given as an array lies as k-space does. Plain `fft2` of
                an image, whose origin is pixel 0, is recognised and said as well.

        Returns:
            Images [S, H, W], or [H, W] for one slice [H, W], in the unit of k-space: float32, or
            complex64 of networks of complex images.

        Raises:
            DataError: The arrays are of other shapes, hold NaN, or are not what the network reads.
            MaskError: The data is sampled with another mask than the network is made for.
            BackendError: The network does not run.
        """
        if isinstance(kspace, Scan | Volume):
            scan: Scan | Volume = kspace
            single = False
        else:
            array = np.asarray(kspace)
            single = array.ndim == 2
            scan = self._scan(array, mask, noise, undersample=undersample, centred=centred)
        with _arguments_named():
            given = self._pipeline.prepare(
                scan,
                undersample=undersample,
                maps=None if maps is None else np.asarray(maps, np.complex64),
            )
        images: NDArray[Any] = self._pipeline.images(given)
        for text in given.beyond:
            if text not in self._said:
                self._said.add(text)
                say(f"Note: {text}")
        return np.asarray(images[0]) if single else images

    def _scan(
        self,
        array: NDArray[Any],
        mask: Mask | ArrayLike | str | os.PathLike[str] | None,
        noise: ArrayLike | None,
        *,
        undersample: bool,
        centred: bool | None,
    ) -> Scan:
        """Make a scan of arrays."""
        if not np.iscomplexobj(array):
            raise DataError(
                "K-space is complex, and real values were given.",
                "Read images with `kdmri_edge.read`, and give what it returns.",
            )
        if array.ndim in (2, 3):
            array = array[None, None] if array.ndim == 2 else array[:, None]
        if array.ndim != 4:
            raise DataError(
                f"K-space is of shape {list(array.shape)}.",
                "Give [H, W], [slices, H, W], or [slices, coils, H, W].",
            )
        if not np.isfinite(array).all():
            raise DataError("K-space holds NaN or infinite values.", "Export the scan again.")
        with np.errstate(over="ignore"):
            array = array.astype(np.complex64)
        if not np.isfinite(array).all():
            raise DataError(
                "K-space holds values beyond those of complex64.",
                "Divide it by a constant; the image is in the same unit.",
            )
        height, width = array.shape[-2:]
        array, shifted = zero_first(array, "K-space", centred=centred, usual=False)
        sampled = self.mask if mask is None else _mask(mask, centred=shifted)
        if undersample and mask is None:
            sampled = Mask(samples=np.ones(height, np.bool_), name="all lines")
        if self.takes_matrices and sampled is self.mask and height != sampled.height:
            raise MaskError(
                f"K-space is {height} x {width}, and it is not said which samples were taken.",
                "Give the mask that was sampled as mask=, or undersample=True for fully sampled"
                " data.",
            )
        sampled.check_matrix(height, width)
        if (array * ~sampled.grid).any():
            raise MaskError(
                f"K-space holds samples that mask {sampled.name!r} does not take.",
                "Give the mask that was sampled, or undersample=True for fully sampled data.",
            )
        empty = int((~array.any((0, 1, 3))).sum())
        whole = mask is not None and bool(sampled.samples.all()) and sampled != self.mask
        if whole and empty and not undersample:
            raise MaskError(
                f"The mask is fully sampled, and k-space has no sample in {empty} of its {height}"
                " lines.",
                "Give the mask that was sampled, or leave mask= out for the network's own.",
            )
        return Scan(
            kspace=np.ascontiguousarray(array, np.complex64),
            mask=sampled,
            name="k-space",
            subject="",
            noise=None if noise is None else np.asarray(noise, np.complex64),
        )


@contextlib.contextmanager
def _arguments_named() -> Iterator[None]:
    """Have errors that name options of `kdmri-edge run` name this module's arguments instead.

    Raises:
        KdmriError: The one that was raised, of the same class.
    """
    try:
        yield
    except KdmriError as error:
        for option, argument in _ARGUMENTS.items():
            error.what = re.sub(option, argument, error.what)
            error.remedy = re.sub(option, argument, error.remedy)
        error.args = (f"{error.what} {error.remedy}".strip(),)
        raise


def _mask(given: Mask | ArrayLike | str | os.PathLike[str], *, centred: bool) -> Mask:
    if isinstance(given, Mask):
        return given
    if isinstance(given, str | os.PathLike):
        return named_mask(os.fspath(given))
    return mask_from_array(np.asarray(given), "The mask", centred=centred)


def read(
    path: str | os.PathLike[str],
    *,
    kspace: bool = False,
    orientation: Orientation | str = Orientation.VENDOR,
    max_memory: int | None = None,
    trusted: bool | None = None,
) -> Scan | Volume:
    """Read a file of measured k-space as a scan, and everything else as a volume of images.

    Args:
        path: A file in any readable format (NIfTI, DICOM, HDF5 of fastMRI, KD-MRI and MRD, Siemens
            raw data, BART, NumPy), a folder that is a DICOM series, or a dataset of an HDF5 file,
            "FILE.h5:DATASET:AXES".
        kspace: A BART array of one coil is k-space, which the file itself does not say.
        orientation: How the axes of raw data (TWIX, MRD) run to the directions that it gives:
            "along" or "against" them, or as its vendor's data does ("vendor").
        max_memory: Bytes of the largest array that the file may hold; None for $KDMRI_MAX_MEMORY,
            else half of the machine's memory.
        trusted: Open HDF5 at once, without trying it in a process of its own first; None for
            $KDMRI_TRUST_FILES, else no.

    Returns:
        A `Scan` (k-space complex64 [S, C, H, W]) or a `Volume` (images [S, H, W]).

    Raises:
        DataError: The file is missing, damaged, of no readable format, or larger than is allowed.
        MissingExtraError: The format needs a library that is not installed.
    """
    with limited(max_memory, trusted):
        return read_either(Path(path), kspace=kspace, orientation=orientation)


def write(
    path: str | os.PathLike[str],
    image: NDArray[Any],
    *,
    like: Scan | Volume | None = None,
) -> None:
    """Write images in the format that the name asks for, atomically.

    Args:
        path: Destination: .nii.gz, .nii, .h5 (MRD images), .npy, .cfl, or a folder NAME.dcm.
        image: [S, H, W] or one slice [H, W], real or complex, in any unit.
        like: What the images were made from, whose place in the patient they keep.

    Raises:
        OutputError: No writer knows the suffix, the format cannot hold the images, or the place
            cannot be written to.
        DataError: The images are not [S, H, W], or not of `like`'s slices and matrix.
        MissingExtraError: The format needs a library that is not installed.
    """
    images = np.asarray(image)
    images = images[None] if images.ndim == 2 else images
    if images.ndim != 3:
        raise DataError(
            f"Images are of shape {list(images.shape)}.", "Give [slices, height, width]."
        )
    dtype = np.complex64 if np.iscomplexobj(images) else np.float32
    images = np.ascontiguousarray(images, dtype)
    affine, voxel_mm = None, None
    if like is not None:
        slices = len(like.kspace if isinstance(like, Scan) else like.image)
        if images.shape != (slices, *like.matrix):
            raise DataError(
                f"Images {list(images.shape)} cannot have the place of"
                f" {[slices, *like.matrix]} in the patient.",
                "Write them without it, or give what they were made from.",
            )
        affine, voxel_mm = like.affine, like.voxel_mm
    write_image_record(Path(path), ImageRecord(image=images, affine=affine, voxel_mm=voxel_mm))


def export(
    network: NetworkLike | nn.Module,
    *,
    target: str,
    precision: str = "fp32",
    out: str | os.PathLike[str] | None = None,
    dc: str = "auto",
    batch: Literal["1", "dynamic"] = "1",
    mask: Literal["fixed", "input"] = "fixed",
    keep_op: bool = False,
    coils: int = COILS,
    compiled: bool = True,
    builder: str | None = None,
    compute_capabilities: Sequence[str] = (),
    require_engine: bool = False,
    floats: Sequence[str] = (),
    weights: str | os.PathLike[str] | None = None,
    for_mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | Literal["any"] | None = None,
    convention: str | None = None,
    sign: str | os.PathLike[str] | None = None,
    valid_days: int | None = None,
    measure: bool | None = None,
) -> Bundle:
    """Write a network for another runtime, checked against PyTorch.

    Args:
        network: A trained network: the name of one of the package, a checkpoint, or a run (its
            student, or `run.teacher`). Of a run, int8 exports take the copy that was tuned for it.
            Or a network of one's own: code that makes it, "FILE.py:factory" or
            "package.module:factory", or a `torch.nn.Module`.
        target: "onnx", "openvino", "trt", "pt2", "torchscript", or one that an installed package
            brings.
        precision: Of the convolutions: "fp32", "fp16", "bf16" or "int8"; data consistency stays in
            float32.
        out: The bundle's folder, which appears only if the export passes the parity gate; None
            makes one beside the network, named after what differs from the defaults.
        dc: Form of data consistency: "auto", "projection", "dft" or "fft".
        batch: "1", or "dynamic" for any number of slices per call.
        mask: "fixed", or "input" for one graph that serves every mask of its kind and matrix.
        keep_op: Keep data consistency as one node, for targets that can.
        coils: Of multi-coil networks: coils that scans are compressed to, at most.
        compiled: Compile programs of target "pt2", where there is a C++ compiler.
        builder: What builds engines for target "trt": "auto", "tensorrt", "rtx",
            "torch-tensorrt" or "none"; None as "auto".
        compute_capabilities: GPUs that TensorRT-RTX builds for ahead of time, e.g. "sm86".
        require_engine: Fail where no engine can be built.
        floats: Names of layers, or patterns of them, that stay in float32 beside others in another
            precision; "auto" chooses them for int8, by what rounding costs.
        weights: Of a network that is code: file of its weights (safetensors, or a state dict).
        for_mask: Of a network of one's own: the mask that it reconstructs for, a file, or a network
            whose mask is taken.
        matrix: "any" for a graph that takes images of any matrix, and with data consistency any
            mask of its kind. Of a network of one's own, the side of its square images; None takes
            the mask's.
        convention: What its `forward` takes, where the signature does not tell.
        sign: File of a private key (Ed25519, PEM) that signs the bundle; its passphrase is taken
            from $KDMRI_KEY_PASSPHRASE.
        valid_days: Days that the signature holds; None for without end.
        measure: Have the manifest say how long a slice takes on this machine and how much memory,
            for `verify_bundle` to compare with; None for bundles that are signed.

    Raises:
        KeyFileError: `sign` is no file of a private key, or its passphrase is not known.
        ExportError: The target cannot do what is asked for.
        ParityError: The graph does not reproduce PyTorch; nothing is written.
        KdmriError: The network is missing or damaged, or `out` cannot be written to.
        MissingExtraError: PyTorch, or a library that the target needs, is not installed.
    """
    made: Bundle = load_attribute("kdmri_export.jobs:export")(
        network,
        target=target,
        precision=precision,
        out=out,
        dc=dc,
        batch=batch,
        mask=mask,
        keep_op=keep_op,
        coils=coils,
        compiled=compiled,
        builder=builder,
        compute_capabilities=compute_capabilities,
        require_engine=require_engine,
        floats=floats,
        weights=weights,
        for_mask=for_mask,
        matrix=matrix,
        convention=convention,
        sign=sign,
        valid_days=valid_days,
        measure=measure,
    )
    return made


class Report(Protocol):
    """A finished benchmark; notebooks show it as a page. It is a `kdmri_bench` `Benchmark`."""

    @property
    def rows(self) -> tuple[Any, ...]:
        """One row for each network in each runtime and precision."""

    @property
    def recommended(self) -> Any | None:
        """The smallest variant that keeps the limits, None where none does."""

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds."""

    def table(self, width: int | None = None) -> str:
        """Return the results as plain text."""

    def pareto(self) -> Any:
        """Draw quality against latency, as SVG."""

    def picture(self) -> Any:
        """Draw target, input, networks and their residues, as PNG."""

    def save(self, folder: str | os.PathLike[str]) -> Mapping[str, Path]:
        """Write report.html, .json, .csv, .md and panel.png; return their paths by kind."""


def benchmark(
    networks: NetworkLike | nn.Module | Sequence[NetworkLike | nn.Module],
    data: str | os.PathLike[str] | Volume | Sequence[Volume],
    *,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    settings: Any = "quick",
    threads: int | None = None,
    precisions: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    for_mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | None = None,
    convention: str | None = None,
    rows: Sequence[str] = (),
) -> Report:
    """Compare quality, latency and memory of networks on every runtime of this machine.

    Every network is measured in each runtime and precision that there is, each in a process of its
    own; missing exports are made first. What this machine lacks keeps its row, with the reason.
    With `out`, the same call goes on where it was cut off.

    Args:
        networks: Networks for one mask and one matrix; code that makes one, or a module, as well.
        data: A folder of volumes or one file; volumes that were read; or "phantom". Of a folder
            that follows the run's split, or a known one, only the test subjects are measured.
        contrast: Measure on this contrast alone, e.g. "T1w".
        subjects: Measure on exactly these subjects, whatever the split.
        settings: "quick" (minutes, a few central slices), "full" (for publication, over an hour),
            or a `kdmri_bench.planning.settings.BenchSettings`.
        threads: CPU threads of every runtime; None takes all CPUs.
        precisions: Of "fp32", "fp16", "bf16" and "int8"; empty takes the usual ones.
        out: Folder that the report is also saved in.
        weights: Of networks that are code: files of their weights, one each in their order.
        for_mask: See `export`, as for the two that follow.
        matrix: Side of their images; or of the images at which bundles of any matrix are measured.
        convention: What their `forward` takes.
        rows: Measure only rows whose keys these patterns match, such as "student/*" or "cuda-*".

    Raises:
        BenchError: There is nothing to measure, or the networks take different inputs.
        KdmriError: A network or a volume is missing or damaged.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    report: Report = load_attribute("kdmri_bench.benchmark:benchmark")(
        networks,
        data,
        contrast=contrast,
        subjects=subjects,
        settings=settings,
        threads=threads,
        precisions=precisions,
        out=out,
        weights=weights,
        for_mask=for_mask,
        matrix=matrix,
        convention=convention,
        rows=rows,
    )
    return report


class Assessment(Protocol):
    """A finished assessment; notebooks show it as a page. It is a `kdmri_bench` `Assessment`."""

    @property
    def sections(self) -> Sequence[Any]:
        """What was found, section by section."""

    @property
    def networks(self) -> Sequence[Mapping[str, Any]]:
        """What was assessed: name, precision, digest, and what really ran."""

    def section(self, name: str) -> Any | None:
        """Return a section by its name, None where it is not there."""

    def to_dict(self) -> dict[str, Any]:
        """Return what assessment.json holds."""

    def save(self, folder: str | os.PathLike[str]) -> Mapping[str, Path]:
        """Write assessment.html and assessment.json; return their paths by kind."""


def assess(
    networks: NetworkLike | Sequence[NetworkLike],
    data: str | os.PathLike[str] | Volume | Sequence[str | os.PathLike[str] | Volume],
    *,
    teacher: str | None = None,
    sections: Sequence[str] = (),
    margins: str | os.PathLike[str] | None = None,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    limit_slices: int | None = None,
    int8: bool = True,
    other_data: Sequence[str | os.PathLike[str]] = (),
    seed: int = 0,
    threads: int | None = None,
    in_pytorch: bool = False,
    page_size: int | str = "1MB",
    out: str | os.PathLike[str] | None = None,
) -> Assessment:
    """Measure what compression does to images, for the people who decide about its use.

    Teacher and students stand side by side, each in float and as its int8 copy, beside the
    zero-filled images: quality, lesions, disagreement, a phantom's tests, robustness, and a verdict
    by margins that a file states beforehand.

    Args:
        networks: Networks for one mask and one matrix.
        data: Folders or files of volumes, "phantom", or volumes that were read. Of a folder that
            follows a run's split, or a known one, test subjects alone are taken.
        teacher: What the others are compared with, by its name or path; None takes the one
            that a student's checkpoint names, else that which says it is a teacher, or the one of
            the most operations.
        sections: Names of sections (`kdmri-edge assess --list-sections`); empty takes all.
        margins: TOML file of margins of non-inferiority; None takes the package's own.
        contrast: Assess on this contrast of the folders only.
        subjects: Assess on exactly these subjects.
        limit_slices: Take so many slices around the middle of each volume.
        int8: Assess the int8 copies of checkpoints as well.
        other_data: Folders or files of other scanners' data, for the section on robustness.
        seed: Of all that is drawn.
        threads: CPU threads; None leaves the runtime's choice.
        in_pytorch: Run checkpoints in PyTorch, int8 as its layers would round; export nothing.
        page_size: Largest page, in bytes or as text; pictures that would make it larger are left
            out, the most telling last.
        out: Folder that the report is also saved in.

    Raises:
        BenchError: There is nothing to assess, the networks are for different masks, or a section
            or margin is unknown.
        KdmriError: A network or a volume is missing or damaged.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    done: Assessment = load_attribute("kdmri_bench.assessment.assess:assess")(
        networks,
        data,
        teacher=teacher,
        sections=sections,
        margins=margins,
        contrast=contrast,
        subjects=subjects,
        limit_slices=limit_slices,
        int8=int8,
        other_data=other_data,
        seed=seed,
        threads=threads,
        in_pytorch=in_pytorch,
        page_size=page_size,
        out=out,
    )
    return done
