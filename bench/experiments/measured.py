"""Networks on k-space that a scanner measured: `python -m experiments.measured`.

SENSE with Tikhonov regularisation (Pruessmann et al., MRM 2001) and with an l1 penalty on wavelet
coefficients (Lustig et al., MRM 2007). The weight is the best of a grid against the fully sampled
image, which no user has: the baselines are flattered, never the networks.

Networks on k-space that a scanner measured: `python -m experiments.measured`.

Trained on simulated scans alone, tested on measured ones that are undersampled here: a multi-coil
slice against iterative reconstructions of SigPy, and single-coil volumes. Every image of a network
is what `kdmri-edge run` wrote in a process that cannot import PyTorch, from an MRD file and, where
there is one, from the scanner's own raw file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script
from kdmri_bench.measuring.quality import summary
from kdmri_bench.reporting.panel import Panel, draw, panel_of
from kdmri_edge.data.datasets import attribution_of
from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import psnr, volume_metrics
from kdmri_edge.models.shipped import ShippedNetwork, shipped_networks
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.physics.coils import combine
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import atomic_path, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["METHODS", "Choice", "Method", "best_of", "main", "markdown", "measure"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """An iterative reconstruction.

    Attributes:
        application: Name of its class in `sigpy.mri.app`.
        weights: Of the regularisation, tried one after another; the data have a zero-filled image
            of maximum 1.
        options: More of its arguments.
    """

    application: str
    weights: tuple[float, ...]
    options: Mapping[str, Any]


METHODS: Final = {
    "SENSE (SigPy)": Method(
        application="SenseRecon",
        weights=(0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        options={"max_iter": 60},
    ),
    "l1-wavelet (SigPy)": Method(
        application="L1WaveletRecon",
        weights=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        options={"max_iter": 100, "wave_name": "db4"},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Choice:
    """The best image of a method.

    Attributes:
        image: Magnitudes, float32 [S, H, W], in the unit of the target.
        weight: The weight that gave it.
    """

    image: NDArray[np.float32]
    weight: float


def best_of(
    method: Method,
    kspace: NDArray[np.complex64],
    maps: NDArray[np.complex64],
    target: NDArray[np.float32],
) -> Choice:
    """Reconstruct with every weight and keep the image of the best PSNR.

    Args:
        method: Of `METHODS`.
        kspace: complex64 [S, C, H, W], zero frequency at index 0, zero where not sampled.
        maps: Coil sensitivities, complex64 [S, C, H, W].
        target: Magnitudes of the fully sampled image, [S, H, W].

    Raises:
        MissingExtraError: SigPy is not installed.
    """
    require("sigpy", extra="dev")
    found = []
    for weight in method.weights:
        slices = [_image(method, k, m, weight) for k, m in zip(kspace, maps, strict=True)]
        found.append(Choice(image=np.stack(slices), weight=weight))
    best: Callable[[Choice], float] = lambda choice: psnr(target, choice.image)  # noqa: E731
    return max(found, key=best)


def _image(
    method: Method, kspace: NDArray[np.complex64], maps: NDArray[np.complex64], weight: float
) -> NDArray[np.float32]:
    from sigpy.mri import app

    # SigPy has zero frequency and the image's origin in the middle
    centred = np.fft.fftshift(kspace, axes=(-2, -1))
    scale = float(np.abs(np.fft.ifft2(kspace, norm="ortho")).max())
    made = getattr(app, method.application)(
        centred / scale, maps, lamda=weight, show_pbar=False, **method.options
    )
    # as of the networks: where no coil has sensitivity there is no image
    return np.asarray(np.abs(made.run()) * scale * maps.any(0), dtype=np.float32)


SCHEMA: Final = 1
_ZERO_FILLED: Final = "zero-filled"
_TORCH_FREE: Final = (
    "import sys; sys.modules['torch'] = None; from kdmri_edge.cli import run; run()"
)
"""`run` in a process in which PyTorch cannot be imported."""

Images = NDArray[np.float32]
"""Magnitudes [S, H, W]."""


def networks_of(place: str, kind: str) -> dict[str, ShippedNetwork]:
    """Return the shipped networks of a place and a kind ("sense" or "complex"), largest first.

    Raises:
        BenchError: There is none.
    """
    ending = f"-{kind}@{place}"
    found = {name: known for name, known in shipped_networks().items() if name.endswith(ending)}
    if not found:
        raise BenchError(f"No {kind} network is shipped as @{place}.", "See `kdmri-edge models`.")
    return dict(sorted(found.items(), key=lambda item: -int(item[1].entry["parameters"])))


def _bundle(network: ShippedNetwork, folder: Path) -> Path:
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe

    place = folder / network.reference
    if not place.exists():
        export_model(network.path, ExportRecipe(target="onnx"), place)
    return place


def run_torch_free(bundle: Path, source: Path | str, folder: Path) -> tuple[Images, dict[str, Any]]:
    """Return the magnitudes that `kdmri-edge run --undersample` writes, and what it says of them.

    Raises:
        BenchError: It refuses.
    """
    out = folder / "run.npy"
    command = [sys.executable, "-c", _TORCH_FREE, "run", str(bundle), str(source), "-o", str(out)]
    done = subprocess.run(
        [*command, "--undersample", "--magnitude", "--json"], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BenchError(f"`run` failed on {source}: {done.stderr[-300:]}", "Run it by hand.")
    return np.load(out), json.loads(done.stdout)[0]


def _mask(networks: Mapping[str, ShippedNetwork]) -> Mask:
    """Return the one mask of the networks.

    Raises:
        BenchError: They have several.
    """
    from kdmri_edge.runtime.inputs import read_input_spec

    masks = [read_input_spec(network.path).mask for network in networks.values()]
    if any(mask != masks[0] for mask in masks):
        raise BenchError("The networks have different masks.", "Train them for one mask.")
    return masks[0]


def undersampled(scan: Scan, mask: Mask) -> Scan:
    """Return a fully sampled scan as if its mask had been another."""
    return replace(scan, kspace=scan.kspace * mask.samples.reshape(mask.height, -1), mask=mask)


def _rows(
    target: Images, images: Mapping[str, Images], chosen: Mapping[str, Choice]
) -> list[dict[str, Any]]:
    rows = []
    for name, image in images.items():
        row = {"name": name, **volume_metrics(target, image)}
        if name in chosen:
            row["regularisation"] = chosen[name].weight
        rows.append(row)
    return rows


def _panel(target: Images, images: Mapping[str, Images], mask: Mask, volume: str) -> Panel:
    """Show the middle slice."""
    middle, peak = len(target) // 2, float(target.max())
    first, *others = images
    titles = {
        first: images[first],
        "fully sampled": target,
        **{name: images[name] for name in others},
    }
    shown = {
        name.partition("@")[0]: (image[middle] / peak).astype(np.float64)
        for name, image in titles.items()
    }
    return panel_of(shown, mask, volume=volume, index=middle, chosen="middle")


def coil_slice(
    files: Sequence[Path], networks: Mapping[str, ShippedNetwork], folder: Path
) -> tuple[dict[str, Any], Panel]:
    """Reconstruct a multi-coil slice in every way.

    Args:
        files: The same scan, in one or more formats; the first is the one that is measured.
        networks: Those that combine coils.
        folder: For what is written on the way.

    Returns:
        What the report says, and the picture.
    """
    scan, mask = read_scan(files[0]), _mask(networks)
    mrd = folder / "scan.h5"
    write_scan(mrd, scan)
    # the reference and the iterative methods use all coils; maps are those of the sampled centre
    given = undersampled(scan, mask)
    pairs = [sense_slice(kspace, mask, coils=None) for kspace in given.kspace]
    maps = np.stack([own for _, own in pairs])
    full = kspace_to_image(scan.kspace)
    combination = np.stack([combine(i, m) for i, m in zip(full, maps, strict=True)])
    target: Images = np.abs(combination).astype(np.float32)
    images: dict[str, Images] = {_ZERO_FILLED: np.abs(np.stack([x for x, _ in pairs]))}
    chosen = {}
    for name, method in METHODS.items():
        chosen[name] = best_of(method, given.kspace, maps, target)
        images[name] = chosen[name].image
    apart = 0.0
    for reference, network in networks.items():
        bundle = _bundle(network, folder)
        images[reference], told = run_torch_free(bundle, mrd, folder)
        for other in files:
            again, _ = run_torch_free(bundle, other, folder)
            apart = max(apart, float(np.abs(again - images[reference]).max() / target.max()))
    return (
        {
            "scan": scan.name,
            "matrix": list(scan.matrix),
            "coils": scan.coils,
            "slices": len(scan.kspace),
            "mask": mask.name,
            "acceleration": mask.nominal_acceleration,
            "formats": ["MRD", *(file.suffix for file in files)],
            "largest_difference_between_formats": apart,
            "session": told["session"],
            "rows": _rows(target, images, chosen),
        },
        _panel(target, images, mask, scan.name),
    )


def single_coil(
    sources: Sequence[str], networks: Mapping[str, ShippedNetwork], folder: Path
) -> tuple[dict[str, Any], list[Panel]]:
    """Reconstruct measured single-coil volumes with networks of one complex image.

    Args:
        sources: FILE:DATASET:AXES of each.
        networks: Those for complex images.
        folder: For what is written on the way.

    Returns:
        What the report says, and a picture of each volume's middle slice.
    """
    from kdmri_edge.data.case import Undersampling

    mask = _mask(networks)
    matrix = mask.height
    spec = spec_from_dict(next(iter(networks.values())).entry["spec"])
    bundles = {name: _bundle(network, folder) for name, network in networks.items()}
    method = "l1-wavelet (SigPy)"
    volumes: list[dict[str, Any]] = []
    panels: list[Panel] = []
    with progress("Single-coil volumes", len(sources)) as advance:
        for source in sources:
            scan = read_scan(Path(source))
            mrd = folder / "volume.h5"
            write_scan(mrd, scan)
            volume = to_matrix(read_volume(mrd), matrix)
            case = Undersampling(spec, mask, matrix, 0).case(volume)
            target: Images = np.abs(case.target)
            images: dict[str, Images] = {_ZERO_FILLED: np.abs(case.zero_filled)}
            kspace = image_to_kspace(case.zero_filled)[:, None] * mask.samples[:, None]
            ones = np.ones((len(kspace), 1, matrix, matrix), np.complex64)
            chosen = {method: best_of(METHODS[method], kspace, ones, target)}
            images[method] = chosen[method].image
            for reference, bundle in bundles.items():
                images[reference], _ = run_torch_free(bundle, mrd, folder)
            name = f"{scan.subject} {scan.contrast}"
            volumes.append({"volume": name, "rows": _rows(target, images, chosen)})
            panels.append(_panel(target, images, mask, name))
            advance(1)
    names = [row["name"] for row in volumes[0]["rows"]]
    pooled = []
    for n, name in enumerate(names):
        rows = [volume["rows"][n] for volume in volumes]
        pooled.append({"name": name, **{k: v["mean"] for k, v in summary(rows).items()}})
    found = {
        "volumes": volumes,
        "rows": pooled,
        "mask": mask.name,
        "matrix": [matrix, matrix],
        "acceleration": mask.nominal_acceleration,
    }
    return found, panels


def measure(
    coil_files: Sequence[Path],
    coil_networks: Mapping[str, ShippedNetwork],
    out: Path,
    *,
    single_sources: Sequence[str] = (),
    single_networks: Mapping[str, ShippedNetwork] | None = None,
) -> dict[str, Any]:
    """Measure, and write report.json and pictures.

    Args:
        coil_files: Of a multi-coil slice; see `coil_slice`.
        coil_networks: Networks that combine coils.
        out: Where to.
        single_sources: See `single_coil`; may be empty.
        single_networks: Networks for one complex image.

    Raises:
        KdmriError: Files cannot be read, networks are not there or `run` refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        say("Multi-coil slice")
        report: dict[str, Any] = {"schema": SCHEMA}
        report["multi_coil"], panel = coil_slice(coil_files, coil_networks, Path(place))
        pictures = {"panel-coils": panel}
        if single_sources:
            report["single_coil"], panels = single_coil(
                single_sources, single_networks or {}, Path(place)
            )
            pictures |= {f"panel-{p.volume.lower().replace(' ', '-')}": p for p in panels}
    for name, picture in pictures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            draw(picture, temporary, "Measured k-space, undersampled retrospectively")
    report["attribution"] = attribution_of(coil_files[0].parent)
    report["provenance"] = provenance(0)
    write_json(out / "report.json", report)
    return report


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| | PSNR dB | SSIM | NMSE | HFN |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        weight = row.get("regularisation")
        name = row["name"] if weight is None else f"{row['name']}, weight {weight:g}"
        label = f"`{name}`" if "@" in name else name
        psnr, ssim, nmse, hfn = (row[key] for key in ("psnr", "ssim", "nmse", "hfn"))
        lines.append(f"| {label} | {psnr:.2f} | {ssim:.4f} | {nmse:.4f} | {hfn:.3f} |")
    return lines


def markdown(report: dict[str, Any]) -> str:
    """Return the tables as GitHub Markdown."""
    coils = report["multi_coil"]
    height, width = coils["matrix"]
    lines = [
        f"**{coils['coils']} coils**, {coils['scan']}, {coils['slices']} slice(s) of {height} x"
        f" {width}, {coils['acceleration']:.2f}x, against the magnitude of the fully sampled coils'"
        " combination:",
        "",
        *_table(coils["rows"]),
        "",
        f"The networks' images of this scan read from {' and '.join(coils['formats'])} differ by at"
        f" most {coils['largest_difference_between_formats']:.0e} of the maximum.",
    ]
    if "single_coil" in report:
        single = report["single_coil"]
        lines += [
            "",
            f"**One coil**, mean over {len(single['volumes'])} volumes"
            f" ({', '.join(v['volume'] for v in single['volumes'])}) at {single['matrix'][0]} x"
            f" {single['matrix'][1]}, {single['acceleration']:.2f}x, against the magnitude of the"
            " fully sampled images, noise included:",
            "",
            *_table(single["rows"]),
        ]
    lines += [
        "",
        "Measured k-space, undersampled retrospectively; the networks were trained on simulated"
        " scans alone and run by `kdmri-edge run` without PyTorch. The weights of SigPy's methods"
        " are the best of a grid for each volume, chosen against the fully sampled images, which"
        " favours them.",
    ]
    return "\n".join(lines)


@click.command(cls=Script)
@click.argument("coil_files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--single", multiple=True, metavar="FILE:DATASET:AXES", help="A single-coil volume.")
@click.option("--place", default="measured-4x", show_default=True, help="Of shipped networks.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the report.")
def main(coil_files: tuple[Path, ...], single: tuple[str, ...], place: str, out: Path) -> None:
    """Test shipped networks on measured k-space.

    COIL_FILES hold the same multi-coil scan in one or several formats.
    """
    report = measure(
        coil_files,
        networks_of(place, "sense"),
        out,
        single_sources=single,
        single_networks=networks_of(place, "complex") if single else None,
    )
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
