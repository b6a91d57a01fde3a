"""The hash of what a volume is read from: a file, a pair of files, or a folder of them."""

from __future__ import annotations

from pathlib import Path

from kdmri_edge.data.dataset_name import split_dataset
from kdmri_edge.data.dicom_files import dicom_files
from kdmri_edge.files import sha256_bytes, sha256_file

__all__ = ["source_sha256"]


def source_sha256(path: Path) -> str:
    """SHA-256 of a file; of a DICOM series and of BART's pair, of their files' hashes in order.

    Args:
        path: As readers take it; of a dataset that is named, the hash is its whole file's.
    """
    file, _ = split_dataset(path)
    files = dicom_files(file)
    if file.suffix.lower() == ".cfl":
        files = [file, file.with_suffix(".hdr")]
    hashes = [sha256_file(each) for each in files]
    return hashes[0] if len(hashes) == 1 else sha256_bytes("".join(hashes).encode())
