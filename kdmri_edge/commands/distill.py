"""`kdmri-edge distill`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdmri_edge.errors import DataError, MaskError, ModelError, OutputError, RunError

if TYPE_CHECKING:
    from kdmri_edge.distillation.recipe import DistillRecipe
    from kdmri_edge.distillation.request import Settings
    from kdmri_edge.models.specs import ModelSpec
    from kdmri_edge.physics.masks import Mask

__all__ = ["distill", "resolve"]

FAMILIES = ("variable-density", "random", "equispaced", "variable-density-2d", "centre")
_MATRIX = 240
_MASK_OPTIONS = frozenset({"mask", "mask_family", "mask_seed", "acceleration"})


def _mask(options: dict[str, Any], *, coils: bool = False) -> Mask:
    """Load or draw the mask that the options describe; with coils its centre is wide enough."""
    from kdmri_edge.physics import masks
    from kdmri_edge.physics.espirit import CALIBRATION
    from kdmri_edge.physics.masks import load_mask_option

    wanted: float | None = options["acceleration"]
    matrix: int | None = options["matrix"]
    if wanted is not None and not 1 <= wanted < math.inf:
        raise MaskError(
            f"Acceleration {wanted:g} is below 1 or not a number.",
            "Give --acceleration 1 (fully sampled) or more.",
        )
    if options["mask"]:
        mask = load_mask_option(str(options["mask"]))
        if wanted is not None and abs(mask.nominal_acceleration / wanted - 1) > 0.1:
            raise MaskError(
                f"Mask {mask.name!r} accelerates {mask.nominal_acceleration:.2f}x,"
                f" --acceleration says {wanted:g}.",
                "Leave --acceleration out, or give the matching mask.",
            )
        return mask
    size, acceleration = matrix or _MATRIX, 4.0 if wanted is None else wanted
    seed: int = options["mask_seed"]
    family: str = options["mask_family"]
    # Coil sensitivities are estimated from so many lines around zero frequency.
    fraction = max(0.32 / acceleration, (min(CALIBRATION, size) + 1) / size) if coils else None
    if family == "random":
        return masks.random_lines(size, acceleration, centre_fraction=fraction, seed=seed)
    if family == "equispaced":
        return masks.equispaced_lines(size, acceleration, centre_fraction=fraction, seed=seed)
    if family == "variable-density-2d":
        centre = CALIBRATION if coils else 16
        return masks.variable_density_2d((size, size), acceleration, centre=centre, seed=seed)
    if family == "centre":  # super-resolution: the acceleration is the block's, per area
        side = max(1, round(size / math.sqrt(acceleration)))
        return masks.centre_block((size, size), (side, side))
    centre_lines = CALIBRATION if coils else 10
    return masks.variable_density_lines(size, acceleration, centre_lines=centre_lines, seed=seed)


def _spec(option: str, given: str) -> ModelSpec:
    """Return the architecture of a preset, a checkpoint or a trained network of the package."""
    from kdmri_edge.distillation.request import checkpoint_place
    from kdmri_edge.models.checkpoint import load_checkpoint
    from kdmri_edge.models.specs import preset

    place = checkpoint_place(given)
    if place is not None:
        return load_checkpoint(place).spec
    if Path(given).suffix or "/" in given:
        raise ModelError(
            f"--{option} {given} is neither a preset nor a .safetensors checkpoint.",
            f"Give e.g. {'dccnn-d5c5' if option == 'teacher' else 'dccnn-d3c5'}, or"
            f" RUN/{option}.safetensors.",
        )
    return preset(given)


def _check_tuning(settings: Settings) -> None:
    """Refuse a finished student with which nothing, or too much, would be done."""
    from kdmri_edge.distillation.recipe import Quantise

    if settings.student_place is None:
        return
    if settings.recipe.quantise is Quantise.NONE:
        raise ModelError(
            f"--student {settings.student} is trained already.",
            "Give a preset to train one, or --quantize int8 to tune this one.",
        )
    if settings.teacher_place is None:
        raise ModelError(
            f"--student {settings.student} would be tuned by a teacher that is not trained yet.",
            "Give its teacher's weights, e.g. --teacher RUN/teacher.safetensors.",
        )


def resolve(
    options: dict[str, Any],
    recipe: DistillRecipe,
    mask: Mask | None = None,
    specs: Mapping[str, ModelSpec] | None = None,
) -> Settings:
    """Turn command-line options into settings.

    Args:
        options: Values by option name.
        recipe: The training recipe.
        mask: Use this mask; None loads or draws the one that the options describe.
        specs: Architectures of "teacher" and "student" that are known, and not looked up.

    Raises:
        KdmriError: Anything that does not fit together.
    """
    from kdmri_edge.distillation.request import PHANTOM, Settings, checkpoint_place

    data: str = options["data"]
    if data != PHANTOM and not Path(data).exists():
        raise DataError(f"{data} does not exist.", "Check the path given to --data.")
    known = specs or {}
    teacher, student = (
        known[name] if name in known else _spec(name, options[name])
        for name in ("teacher", "student")
    )
    alike = ("kind", "cascades", "channels", "coils")
    if any(getattr(teacher, name) != getattr(student, name) for name in alike):
        raise ModelError(
            f"Teacher {options['teacher']} ({teacher.kind}, {teacher.cascades} cascades) and"
            f" student {options['student']} ({student.kind}, {student.cascades} cascades)"
            " cannot be compared cascade by cascade.",
            "Pair a teacher and a student of one family, e.g. dccnn-d5c5 with dccnn-d3c5, or"
            " dccnn-d5c5-sense with dccnn-d3c5-sense.",
        )
    mask = mask or _mask(options, coils=student.coils)
    matrix = options["matrix"] or mask.height
    mask.check_matrix(matrix, matrix)
    settings = Settings(
        data=data,
        contrast=options["contrast"],
        split=options["split"],
        matrix=matrix,
        mask=mask,
        teacher=options["teacher"],
        teacher_spec=teacher,
        student=options["student"],
        student_spec=student,
        # a student that is given is not trained again, and so has no twin to compare with
        baseline=options["baseline"] and checkpoint_place(options["student"]) is None,
        recipe=recipe,
    )
    _check_tuning(settings)
    return settings


def _resumed(out: Path, ctx: click.Context, options: dict[str, Any]) -> Settings:
    """Take the settings of the run; refuse options that contradict them.

    The data folder may have moved (its volumes are compared by hash), and how often the run reports
    and saves may change: neither has an influence on the weights.
    """
    from kdmri_edge.distillation.recipe import load_recipe, overridden
    from kdmri_edge.distillation.request import Settings
    from kdmri_edge.distillation.run_folder import open_run

    stored = Settings.from_dict(open_run(out).meta.get("settings", {}))
    given = {
        name
        for name in ctx.params
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if not given & {*options, "recipe", "assignments", "quantize"}:
        return stored
    merged = {
        name: value if name in given else getattr(stored, name, value)
        for name, value in options.items()
        if name != "mask"
    }
    merged["mask"] = options["mask"]
    assignments = _assignments(ctx.params["assignments"], ctx.params["quantize"])
    if "recipe" in given:
        recipe = load_recipe(ctx.params["recipe"], assignments)
    else:
        recipe = overridden(stored.recipe, assignments)
    # the run has its own copies of networks that it was given: the originals may be gone
    own = {"teacher": stored.teacher_spec, "student": stored.student_spec}
    specs = {name: spec for name, spec in own.items() if name not in given}
    asked = resolve(merged, recipe, None if given & _MASK_OPTIONS else stored.mask, specs)
    difference = stored.difference(asked)
    if difference:
        raise RunError(
            f"{out} was started with another {difference!r}.",
            "Leave that option out when resuming, or start a new run with another --out.",
        )
    return replace(stored, data=asked.data, recipe=asked.recipe)


def _assignments(given: tuple[str, ...], quantize: str | None) -> tuple[str, ...]:
    return given if quantize is None else (*given, f"quantise={quantize}")


@click.command()
@click.option(
    "--data",
    default="phantom",
    show_default=True,
    metavar="DIR",
    help="Folder of volumes in any format of `kdmri-edge data`, or `phantom`.",
)
@click.option("--contrast", help="Use only volumes of this contrast, e.g. T1w.")
@click.option(
    "--split",
    metavar="NAME|FILE",
    help="Split by subject: brain, cardiac, or a TOML/JSON file with train, validation"
    " and test. Default: recognise the folder, else split automatically.",
)
@click.option(
    "--matrix", type=click.IntRange(min=16), help="Side of the square matrix; default: the mask's."
)
@click.option("--mask", metavar="FILE[:KEY]", help="Sampling mask: .npy, or one of a .json file.")
@click.option(
    "--mask-family",
    type=click.Choice(FAMILIES),
    default="variable-density",
    show_default=True,
    help="Draw a mask of this family where none is given.",
)
@click.option("--mask-seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--acceleration", type=float, help="Nominal acceleration of a drawn mask [4].")
@click.option(
    "--teacher",
    default="dccnn-d5c5",
    show_default=True,
    metavar="PRESET|CHECKPOINT|NAME",
    help="Train this preset, or reuse a .safetensors checkpoint or a trained network of the package"
    " (`kdmri-edge models`).",
)
@click.option(
    "--student",
    default="dccnn-d3c5",
    show_default=True,
    metavar="PRESET|CHECKPOINT|NAME",
    help="Train this preset; or, with --quantize, tune a trained student.",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int8-signed"]),
    help="Also tune a copy of the finished student with the rounding of its int8 export: int8 for"
    " CPUs, int8-signed for TensorRT. `export --precision int8` then takes that copy. With --resume"
    " it is added to a finished run.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Shipped recipe (edge, edge-sr, kd-mri, kd-mri-sr, paper-teacher, quickstart) or a file."
    " Default: edge, for VDSR edge-sr.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the recipe; may be repeated.",
)
@click.option(
    "--baseline/--no-baseline",
    default=True,
    show_default=True,
    help="Also train the student without a teacher, with as many steps.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [runs/TIME].")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option(
    "--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes (CPU) or GPUs on each host.",
)
@click.option(
    "--num-nodes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Hosts; start the same command on each with torchrun.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each process.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def distill(
    ctx: click.Context,
    /,
    recipe: str | None,
    quantize: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: bool,
    accelerator: str,
    devices: int,
    num_nodes: int,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a teacher and distil it into a compact student.

    Three networks come out, in one run folder: the teacher, the plain student (as large as the
    distilled one, trained without a teacher for as many steps) and the distilled student. A run
    that was interrupted goes on with --resume, on a CPU to the same weights.

    \b
    Examples:
      kdmri-edge distill --acceleration 4 --recipe quickstart --out runs/try
      kdmri-edge distill --data brains/ --mask masks.json:mrbrain_4x --out runs/brain
      kdmri-edge distill --resume --out runs/brain
      kdmri-edge distill --data brains/ --teacher dccnn-d5c5-sense --student dccnn-d3c5-sense
      kdmri-edge distill --data brains/ --teacher runs/brain/teacher.safetensors
      kdmri-edge distill --resume --out runs/brain --quantize int8
      torchrun --nproc-per-node 2 -m kdmri_edge distill --devices 2 --data brains/ ...
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.utils.extras import require

    if resume:
        if out is None:
            raise click.UsageError("--resume needs --out, the run to go on with.")
        settings = _resumed(out, ctx, options)
    else:
        from kdmri_edge.distillation.recipe import default_recipe, load_recipe

        recipe = recipe or default_recipe(_spec("student", options["student"]).kind)
        settings = resolve(options, load_recipe(recipe, _assignments(assignments, quantize)))
        out = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
        place = next(path for path in (out, *out.parents, Path()) if path.exists())
        if not place.is_dir():
            raise OutputError(
                f"--out {out} cannot be made: {place} is a file.", "Choose another folder."
            )
        if (out / "run.json").exists():
            raise RunError(
                f"{out} already holds a run.", "Go on with it by --resume, or choose another --out."
            )
    require("torch", extra="train")
    require("lightning_fabric", extra="train")
    from kdmri_edge.utils.console import say
    from kdmri_edge.utils.files import check_writable

    check_writable(out)  # found out now, not when the volumes have been read
    from kdmri_edge.distillation.engine import Engine, is_first_process
    from kdmri_edge.distillation.run import distill as run_distillation

    engine = Engine(accelerator=accelerator, devices=devices, num_nodes=num_nodes, threads=threads)
    run = run_distillation(settings, out, engine=engine)
    if as_json and is_first_process():
        click.echo(json.dumps({"run": str(run.path), **_summary(run.path)}, indent=2))
    say(f"Run: {run.path}. Next: kdmri-edge export {run.path} --target onnx")


def _summary(path: Path) -> dict[str, Any]:
    from kdmri_edge.distillation.run_folder import Run
    from kdmri_edge.models.checkpoint import read_checkpoint_meta

    run = Run(path)
    metas = {role: read_checkpoint_meta(run.weights(role)) for role in run.roles()}
    return {
        role: {
            "weights": str(run.weights(role)),
            "validation_psnr_db": meta["training"]["validation_psnr_db"],
        }
        for role, meta in metas.items()
    }
