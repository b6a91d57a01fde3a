"""The public functions: load networks and reconstruct, read and write files, export, benchmark.

The commands of `kdmri-edge` are thin wrappers of these. Importing this module needs no PyTorch, and
bundles run without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.registry import read_either, write_image_record
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import DataError
from kdmri_edge.physics.coils import COILS
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.utils.extras import load_attribute

__all__ = ["Network", "NetworkLike", "Report", "benchmark", "export", "load", "read", "write"]

NetworkLike: TypeAlias = "str | os.PathLike[str] | Run | Bundle"
"""What may stand for a network: the name of one of the package, a checkpoint, a bundle, a run."""


def read(path: str | os.PathLike[str], *, kspace: bool = False) -> Scan | Volume:
    """Read a file of measured k-space as a scan, and everything else as a volume of images.

    Args:
        path: A file in any readable format (NIfTI, DICOM, HDF5 of fastMRI, KD-MRI and MRD, Siemens
            raw data, BART, NumPy), a folder that is a DICOM series, or a dataset of an HDF5 file,
            "FILE.h5:DATASET:AXES".
        kspace: A BART array of one coil is k-space, which the file itself does not say.

    Returns:
        A `Scan` (k-space complex64 [S, C, H, W]) or a `Volume` (images [S, H, W]).

    Raises:
        DataError: The file is missing, damaged, or of no readable format.
        MissingExtraError: The format needs a library that is not installed.
    """
    return read_either(Path(path), kspace=kspace)


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
    network: NetworkLike,
    *,
    target: str,
    precision: str = "fp32",
    out: str | os.PathLike[str] | None = None,
    dc: str = "auto",
    batch: Literal["1", "dynamic"] = "1",
    mask: Literal["fixed", "input"] = "fixed",
    keep_op: bool = False,
    coils: int = COILS,
    builder: str | None = None,
    compute_capabilities: Sequence[str] = (),
    require_engine: bool = False,
) -> Bundle:
    """Write a network for another runtime, checked against PyTorch.

    Args:
        network: A trained network: the name of one of the package, a checkpoint, or a run (its
            student, or `run.teacher`). Of a run, int8 exports take the copy that was tuned for it.
        target: "onnx", "openvino", "trt", "torchscript", or one that an installed package brings.
        precision: Of the convolutions: "fp32", "fp16", "bf16" or "int8"; data consistency stays in
            float32.
        out: The bundle's folder, which appears only if the export passes the parity gate; None
            makes one beside the network, named after what differs from the defaults.
        dc: Form of data consistency: "auto", "projection", "dft" or "fft".
        batch: "1", or "dynamic" for any number of slices per call.
        mask: "fixed", or "input" for one graph that serves every mask of its kind and matrix.
        keep_op: Keep data consistency as one node, for targets that can.
        coils: Of multi-coil networks: coils that scans are compressed to, at most.
        builder: What builds engines for target "trt": "auto", "tensorrt", "rtx",
            "torch-tensorrt" or "none"; None as "auto".
        compute_capabilities: GPUs that TensorRT-RTX builds for ahead of time, e.g. "sm86".
        require_engine: Fail where no engine can be built.

    Raises:
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
        builder=builder,
        compute_capabilities=compute_capabilities,
        require_engine=require_engine,
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
    networks: NetworkLike | Sequence[NetworkLike],
    data: str | os.PathLike[str] | Volume | Sequence[Volume],
    *,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    settings: Any = "quick",
    threads: int | None = None,
    precisions: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
) -> Report:
    """Compare quality, latency and memory of networks on every runtime of this machine.

    Every network is measured in each runtime and precision that there is, each in a process of its
    own; missing exports are made first. What this machine lacks keeps its row, with the reason.

    Args:
        networks: Networks for one mask and one matrix.
        data: A folder of volumes or one file; volumes that were read; or "phantom". Of a folder
            that follows the run's split, or a known one, only the test subjects are measured.
        contrast: Measure on this contrast alone, e.g. "T1w".
        subjects: Measure on exactly these subjects, whatever the split.
        settings: "quick" (minutes, a few central slices), "full" (for publication, over an hour),
            or a `kdmri_bench.planning.settings.BenchSettings`.
        threads: CPU threads of every runtime; None takes all CPUs.
        precisions: Of "fp32", "fp16", "bf16" and "int8"; empty takes the usual ones.
        out: Folder that the report is also saved in.

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
    )
    return report
