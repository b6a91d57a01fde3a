"""Write the specimens of version 0.1 that lie beside this script; kept for the record.

It runs with the revision that README.md names and with no other: it reaches into that version's
modules, whose names may have changed since.

    PYTHONPATH=OLD:OLD/export:OLD/bench python make.py OLD OUT [PART...]

OLD is a checkout of that revision, OUT an empty folder; PART makes only these parts again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import h5py
import numpy as np
import torch
from click.testing import CliRunner
from kdmri_edge.checkpoint import Checkpoint, save_checkpoint
from kdmri_edge.data.bart import write_bart_scan
from kdmri_edge.data.simulate import coil_maps
from kdmri_edge.distill.progress import StageProgress
from kdmri_edge.extras import load_attribute
from kdmri_edge.models.calibrate import activation_maxima
from kdmri_edge.models.spec import PRESETS, Kind, ModelSpec
from kdmri_edge.physics.projection import zero_filled
from kdmri_edge.provenance import provenance
from kdmri_edge.reconstructor import Reconstructor
from kdmri_edge.scaling import network_input, network_maps, slice_scale

import kdmri_edge
from kdmri_bench.reproduce import protocol
from kdmri_edge.cli import COMMANDS, main
from kdmri_edge.commands.distill import resolve
from kdmri_edge.data.phantom import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.distill.recipe import load_recipe, shipped
from kdmri_edge.models.build import build_model
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import (
    Mask,
    centre_block,
    variable_density_2d,
    variable_density_lines,
)

MATRIX = 32
COILS = 3
# The subjects of the split that folders of cardiac volumes are recognised by.
SUBJECTS = ("101", "201", "301", "401", "501")
STEPS = (
    "batch=4", "strip=16", "warmup=2", "validate_every=2", "checkpoint_every=2", "precision=f32",
)  # fmt: skip


def spec(*, channels: int = 1, kind: Kind = Kind.DCCNN, coils: bool = False, convs: int = 2,
         tap: int = 1) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        kind=kind, cascades=2 if kind is Kind.DCCNN else 1, convs=convs, width=4,
        attention_tap=tap, channels=channels, coils=coils,
    )  # fmt: skip


LINES = variable_density_lines(MATRIX, 3, centre_lines=4, seed=3)
POINTS = variable_density_2d((MATRIX, MATRIX), 3, centre=6, seed=1)
BLOCK = centre_block((MATRIX, MATRIX), (12, 12))
# Coil sensitivities are estimated from the lines around zero frequency.
WIDE = variable_density_lines(MATRIX, 1.25, centre_lines=24, seed=0)
OTHER = variable_density_lines(MATRIX, 2, centre_lines=4, seed=5)

NETWORKS: dict[str, tuple[ModelSpec, Mask]] = {
    "magnitude": (spec(), LINES),
    "complex": (spec(channels=2), LINES),
    "points": (spec(channels=2), POINTS),
    "sense": (spec(channels=2, coils=True), WIDE),
    "sr": (spec(kind=Kind.VDSR), BLOCK),
}
TUNED = "run-finished/student-int8.safetensors"
# name -> (network, input, options of `export`)
BUNDLES: dict[str, tuple[str, str, str]] = {
    "torchscript-f32": ("checkpoints/magnitude.safetensors", "magnitude.npy", "torchscript"),
    "torchscript-int8": (TUNED, "student.npy", "torchscript --precision int8"),
    "onnx-f32": (
        "checkpoints/magnitude.safetensors", "magnitude.npy", "onnx --batch dynamic"),
    "onnx-int8": (TUNED, "student.npy", "onnx --precision int8"),
    "onnx-any-mask": ("checkpoints/magnitude.safetensors", "other.h5", "onnx --mask input"),
    "onnx-keep-op": ("checkpoints/complex.safetensors", "complex.npy", "onnx --keep-op"),
    "onnx-points": ("checkpoints/points.safetensors", "points.npy", "onnx"),
    "onnx-sense": ("checkpoints/sense.safetensors", "sense.cfl", "onnx"),
    "onnx-sr": ("checkpoints/sr.safetensors", "sr.npy", "onnx"),
    "openvino-f32": ("checkpoints/complex.safetensors", "complex.npy", "openvino"),
    "openvino-f16": (
        "checkpoints/magnitude.safetensors", "magnitude.npy", "openvino --precision fp16"),
    "openvino-int8": (
        "checkpoints/magnitude.safetensors", "magnitude.npy", "openvino --precision int8"),
    "trt-f16": (
        "checkpoints/magnitude.safetensors", "magnitude.npy",
        "trt --precision fp16 --builder none"),
    "trt-sense": (
        "checkpoints/sense.safetensors", "sense.cfl", "trt --coils 2 --builder none"),
}  # fmt: skip


def call(*arguments: object) -> str:
    """Run a command of the old version."""
    done = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(f"{arguments}: {done.output}")
    return done.output


def phases(images: np.ndarray) -> np.ndarray:
    h, w = np.meshgrid(*[np.linspace(-1, 1, MATRIX)] * 2, indexing="ij")
    return (images * np.exp(1j * (0.8 * h + 0.5 * w * w))).astype(np.complex64)


def data(out: Path) -> None:
    """Volumes to train and to measure on, masks and a split, as a user has them."""
    folder = out / "data"
    folder.mkdir()
    for index, subject in enumerate(SUBJECTS):
        image = phantom_volume(5, slices=3, matrix=MATRIX, index=index).image
        np.save(folder / f"sub-{subject}_T1w.npy", image.astype(np.float32))
    np.save(out / "mask.npy", LINES.samples.astype(np.uint8))
    entry = {"phase_encode_axis": 0, "shape": [MATRIX, MATRIX],
             "sampled_lines": np.flatnonzero(LINES.samples).tolist()}  # fmt: skip
    (out / "masks.json").write_text(json.dumps({"tiny_3x": entry}, indent=1) + "\n")
    (out / "mask-points.json").write_text(json.dumps(POINTS.to_dict()) + "\n")
    (out / "split.toml").write_text(
        'train = ["101", "201", "301"]\nvalidation = ["401"]\ntest = ["501"]\n'
    )


def inputs(out: Path) -> None:
    """What `run` is given: zero-filled images, k-space of one and of several coils."""
    folder = out / "inputs"
    folder.mkdir()
    image = phantom_volume(9, slices=2, matrix=MATRIX).image.astype(np.float32)
    np.save(folder / "magnitude.npy", zero_filled(image.astype(np.complex64), LINES))
    np.save(folder / "complex.npy", zero_filled(phases(image), LINES))
    np.save(folder / "points.npy", zero_filled(phases(image), POINTS))
    np.save(folder / "sr.npy", np.abs(zero_filled(image.astype(np.complex64), BLOCK)))
    np.save(folder / "whole.npy", image)
    student = variable_density_lines(MATRIX, 2.0, centre_lines=10, seed=0)
    np.save(folder / "student.npy", zero_filled(image.astype(np.complex64), student))
    kspace = np.fft.fft2(image, norm="ortho") * OTHER.samples[:, None]
    with h5py.File(folder / "other.h5", "w") as file:
        file["volfs"] = np.moveaxis(image, 0, 2)
        file["kspace_volus_2x"] = np.moveaxis(kspace, 0, 2).astype(np.complex64)
    maps = coil_maps(COILS, MATRIX, MATRIX, seed=1)
    coils = image_to_kspace(phases(image)[:1, None] * maps[None]) * WIDE.samples[:, None]
    scan = Scan(kspace=coils.astype(np.complex64), mask=WIDE, name="sense", subject="sense")
    write_bart_scan(folder / "sense.cfl", scan)


def checkpoints(out: Path) -> None:
    folder = out / "checkpoints"
    folder.mkdir()
    for seed, (name, (architecture, mask)) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        network = build_model(architecture)
        whole = phantom_volume(7, slices=4, matrix=MATRIX).image
        x_u = zero_filled(whole.astype(np.complex64), mask)
        if architecture.channels == 1:
            x_u = np.abs(x_u) if architecture.magnitude_input else x_u.real
        normalised = torch.from_numpy(network_input(x_u, slice_scale(x_u)))
        whole_network = Reconstructor(network, mask).eval()
        further: tuple[torch.Tensor, ...] = ()
        if architecture.coils:
            maps = np.stack([coil_maps(COILS, MATRIX, MATRIX, seed=s) for s in range(4)])
            further = (torch.from_numpy(network_maps(maps)),)
        maxima = activation_maxima(network, [(normalised, whole_network.operator, *further)])
        training = {
            "activation_maxima": maxima,
            "recipe": load_recipe("edge").to_dict(),
            "steps": {"imitation": 0},
            "data": [],
            "split": None,
            "attribution": "Nobody: the weights are drawn at random.",
            "provenance": provenance(seed),
            "validation_psnr_db": None,
        }
        save_checkpoint(
            folder / f"{name}.safetensors",
            Checkpoint(spec=architecture, mask=mask, matrix=MATRIX, role="student",
                       training=training, state=network.state_dict()),
        )  # fmt: skip


class PowerCut(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


def runs(out: Path) -> None:
    """One request, once to its end and once interrupted; the presets are made tiny."""
    tiny = {"dccnn-d5c5": spec(convs=5, tap=3), "dccnn-d3c5": spec(convs=3, tap=2)}
    command = [
        "distill", "--data", "data", "--acceleration", "2", "--matrix", MATRIX, "--threads", "1",
        "--accelerator", "cpu", "--recipe", "recipes/user.toml", "--quantize", "int8",
    ]  # fmt: skip
    real = StageProgress.advance

    def advance(self: StageProgress, step: int, loss: float) -> None:
        real(self, step, loss)
        if "imitation" in self.title.lower() and step == 5:
            raise PowerCut

    with mock.patch.dict(PRESETS, tiny), chdir(out):
        call(*command, "--out", "run-finished")
        with mock.patch.object(StageProgress, "advance", advance):
            try:
                call(*command, "--out", "run-interrupted")
            except PowerCut:
                pass
            else:
                raise SystemExit("no stage of that name was trained")
    for file in (out / "run-interrupted" / "state").iterdir():
        if file.stem in ("lock", "teacher", "plain"):  # finished: nothing reads these again
            file.unlink()


def recipes(out: Path, old: Path) -> None:
    """Today's recipes, one of a user with flat keys, and what each of them resolves to."""
    folder = out / "recipes"
    folder.mkdir()
    for file in sorted((old / "kdmri_edge" / "distill" / "recipes").glob("*.toml")):
        shutil.copyfile(file, folder / file.name)
    (folder / "user.toml").write_text(USER)
    for file in sorted(folder.glob("*.toml")):
        vdsr = file.stem.endswith("-sr")
        options = {
            "data": "empty", "contrast": None, "split": None, "matrix": MATRIX, "mask": None,
            "mask_family": "centre" if vdsr else "variable-density", "mask_seed": 0,
            "acceleration": 2.0, "teacher": "vdsr-11" if vdsr else "dccnn-d5c5",
            "student": "vdsr-7" if vdsr else "dccnn-d3c5", "baseline": True,
        }  # fmt: skip
        recipe = load_recipe(str(file))
        if file.stem in shipped():
            assert recipe == load_recipe(file.stem)
        (out / "empty").mkdir()
        with chdir(out):
            settings = resolve(options, recipe)
        (out / "empty").rmdir()
        place = folder / "resolved" / f"{file.stem}.json"
        place.parent.mkdir(exist_ok=True)
        meta = {"format": 1, "status": "running", "key": "0" * 64, "settings": settings.to_dict(),
                "recipe": recipe.to_dict(), "matrix": MATRIX, "mask": settings.mask.to_dict(),
                "data": {}, "attribution": None}  # fmt: skip
        place.write_text(json.dumps(meta, indent=1) + "\n")


USER = """\
# A recipe as users of version 0.1 wrote them: every key at the top.
teacher_steps = 8
joint_steps = 0
attention_steps = 4
transfer = "relation"
imitation_steps = 8
batch = 4
shards = 2
strip = 16
whole_slices = 0.5
learning_rate = 1e-3
schedule = "step"
warmup = 2
final_rate = 0.05
clip = 0.5
ema = 0.9
loss = "l1-ssim"
alpha = 0.25
imitation = "cascades"
imitation_until = 0.75
other_masks = 0.0
noise = 0.01
dilation = [1, 2, 1]
inherit = true
bridge = false
reparameterise = true
reparameterise_teacher = true
quantise = "none"
quantise_steps = 3
quantise_rate = 0.1
masks = "own"
flip = false
precision = "f32"
seed = 3
validate_every = 2
checkpoint_every = 2
phantom_volumes = 3
phantom_slices = 3
"""


def bundles(out: Path) -> None:
    for name, (network, _, options) in BUNDLES.items():
        with chdir(out):
            call("export", network, "--out", f"bundles/{name}", "--target", *options.split())


def images(out: Path) -> None:
    """What the old version makes of the inputs: what a later one has to make of them."""
    folder = out / "images"
    folder.mkdir()
    files = {
        **{f"checkpoints/{name}.safetensors": name for name in NETWORKS},
        **{f"run-finished/{file.name}": "student"
           for file in sorted((out / "run-finished").glob("*.safetensors"))},
    }  # fmt: skip
    suffix = {"sense": ".cfl"}
    works = {place: f"{name}{suffix.get(name, '.npy')}" for place, name in files.items()}
    works |= {f"bundles/{name}": given for name, (_, given, _) in BUNDLES.items()}
    table = {}
    for place, given in works.items():
        name = place.replace("/", "-").removesuffix(".safetensors") + ".npy"
        backend = ("--backend", "onnxruntime") if "/trt-" in place else ()
        with chdir(out):
            call("run", place, f"inputs/{given}", "-o", f"images/{name}", "--threads", 1, *backend)
        table[place] = {"input": given, "image": name}
    with chdir(out):
        extra = {
            "undersample": ("bundles/onnx-f32", "whole.npy", "--undersample"),
            "magnitude": ("bundles/onnx-keep-op", "complex.npy", "--magnitude"),
            "mask": ("bundles/onnx-any-mask", "magnitude.npy", "--mask", "masks.json:tiny_3x"),
        }
        for name, (place, given, *options) in extra.items():
            call("run", place, f"inputs/{given}", "-o", f"images/{name}.npy", "--threads", 1,
                 *options)  # fmt: skip
            table[name] = {"network": place, "input": given, "image": f"{name}.npy",
                           "options": options}  # fmt: skip
    (folder / "index.json").write_text(json.dumps(table, indent=1) + "\n")


def bench(out: Path, scratch: Path) -> None:
    """Reports of the benchmark and of the reproduction, with the latter's figures."""
    copy = shutil.copytree(out / "run-finished", scratch / "run")
    with chdir(scratch):
        call("bench", copy / "teacher.safetensors", copy / "student.safetensors", "--data",
             out / "data", "--out", "report", "--threads", 1, "--precision", "f32", "--precision",
             "int8", "--samples", 3, "--warmup", 1, "--batches", "1", "--usual-only",
             "--without-plain-export", "--limit-slices", 1, "--max-loss", "20dB")  # fmt: skip
    (out / "report").mkdir()
    for name in ("report.json", "report.csv", "report.md"):
        shutil.copyfile(scratch / "report" / name, out / "report" / name)


def reproduction(out: Path, scratch: Path) -> None:
    task = replace(protocol.TASKS["cardiac"], matrix=MATRIX)
    with mock.patch.dict(protocol.TASKS, {"cardiac": task}), chdir(out):
        call("reproduce", "cardiac", "--data", "data", "--accelerations", 2, "--steps", 4,
             "--threads", 1, "--out", scratch / "reproduction",
             *(x for one in STEPS if "warmup" not in one for x in ("--set", one)))  # fmt: skip
    target = out / "reproduction"
    for file in sorted((scratch / "reproduction").rglob("*")):
        kept = file.suffix == ".json" or file.name in ("report.csv", "table.md", "log.csv")
        if file.is_file() and kept:
            place = target / file.relative_to(scratch / "reproduction")
            place.parent.mkdir(parents=True, exist_ok=True)
            # Its runs name their teacher by its absolute place, which is nobody's business.
            place.write_text(file.read_text().replace(str(scratch) + "/", ""))


def options_of(name: str, command: click.Command) -> dict[str, Any]:
    if isinstance(command, click.Group):
        found: dict[str, Any] = {}
        for sub, inner in command.commands.items():
            found |= options_of(f"{name} {sub}", inner)
        return found
    parent = click.Context(main, **main.context_settings)
    context = click.Context(command, parent=parent, info_name=name)
    parameters = command.get_params(context)
    options = [p for p in parameters if isinstance(p, click.Option)]
    return {
        name: {
            "options": sorted(o for p in options for o in (*p.opts, *p.secondary_opts)),
            "arguments": [p.name for p in parameters if isinstance(p, click.Argument)],
            "choices": {
                max(p.opts, key=len): [str(c) for c in p.type.choices]
                for p in options
                if isinstance(p.type, click.Choice)
            },
            "repeated": sorted(max(p.opts, key=len) for p in options if p.multiple),
            "environment": {max(p.opts, key=len): p.envvar for p in options if p.envvar},
        }
    }


def options(out: Path) -> None:
    found: dict[str, Any] = {}
    for name, (place, _) in COMMANDS.items():
        found |= options_of(name, load_attribute(place))
    (out / "help_options.json").write_text(json.dumps(found, indent=1) + "\n")


def run(old: Path, out: Path, parts: list[str]) -> None:
    if not Path(kdmri_edge.__file__).resolve().is_relative_to(old.resolve()):
        raise SystemExit(f"kdmri_edge comes from {kdmri_edge.__file__}, not from {old}.")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / "scratch"
    steps: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
        "data": (lambda: data(out), ("data",)),
        "inputs": (lambda: inputs(out), ("inputs",)),
        "checkpoints": (lambda: checkpoints(out), ("checkpoints",)),
        "recipes": (lambda: recipes(out, old), ("recipes",)),
        "runs": (lambda: runs(out), ("run-finished", "run-interrupted")),
        "bundles": (lambda: bundles(out), ("bundles",)),
        "images": (lambda: images(out), ("images",)),
        "bench": (lambda: bench(out, scratch), ("report",)),
        "reproduction": (lambda: reproduction(out, scratch), ("reproduction",)),
        "options": (lambda: options(out), ()),
    }
    for name in parts or steps:
        step, folders = steps[name]
        for folder in (*folders, "scratch"):
            shutil.rmtree(out / folder, ignore_errors=True)
        scratch.mkdir()
        print(name, flush=True)
        step()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
