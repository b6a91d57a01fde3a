"""`kdmri-edge distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import RowChoice, file_options, json_option
from kdmri_edge.utils.console import print_result, tell

if TYPE_CHECKING:
    from kdmri_edge.distillation.run_folder import Run

__all__ = ["distill"]


@click.command(cls=Command)
@click.option(
    "--data",
    default="phantom",
    show_default=True,
    metavar="DIR",
    help="Folder of volumes in any format of `kdmri-edge data`, or `phantom`.",
)
@file_options
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
@click.option(
    "--mask",
    metavar="FILE[:KEY]|NETWORK",
    help="Sampling mask: .npy, one of a .json file, or that of a trained network of the package.",
)
@click.option(
    "--mask-family",
    type=RowChoice("kdmri_edge.physics.masks:MASK_FAMILIES"),
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
    metavar="PRESET|CHECKPOINT|NAME|CODE",
    help="Train this preset (with changed fields: 'dccnn-d5c5?width=48'), or reuse a .safetensors"
    " checkpoint or a trained network of the package"
    " (`kdmri-edge models`). CODE, FILE.py:factory or package.module:factory, makes a network of"
    " your own, with arguments as 'FILE.py:factory?width=16'.",
)
@click.option(
    "--student",
    metavar="PRESET|CHECKPOINT|NAME|CODE",
    help="Train this preset (with changed fields: 'dccnn-edge?width=32&carried=16'), or what this"
    " code makes; or, with --quantize, tune a trained student."
    "  [default: dccnn-edge; with the recipes edge, kd-mri and quickstart dccnn-d3c5]",
)
@click.option(
    "--teacher-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights of a teacher that is code: safetensors, or what torch.save wrote of a state dict."
    " It is then not trained.",
)
@click.option(
    "--student-weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights of a student that is code, which is then tuned by --quantize.",
)
@click.option(
    "--start-from",
    metavar="CHECKPOINT|NAME",
    help="Train the student further from these weights, of the same architecture, e.g."
    " dccnn-edge@brain-4x. A plain student is not trained then: it would have fewer steps.",
)
@click.option(
    "--convention",
    metavar="NAME",
    help="What forward of networks that are code takes, where its signature does not tell: image,"
    " complex-image, operator, fastmri, monai, deepinv, deepinv-multicoil or adapter.",
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
    help="Shipped recipe (carried, carried-half, edge, edge-sr, edge-sr-half, imitation, kd-mri,"
    " kd-mri-sr, paper-teacher, quickstart) or a file. Default: the student's (carried for"
    " dccnn-edge, carried-half for dccnn-edge-half, edge for dccnn-d3c5, edge-sr for VDSR,"
    " edge-sr-half for vdsr-half); imitation, where the teacher is no DC-CNN, or reads another"
    " input.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the recipe, e.g. optim.learning_rate=1e-3; may be repeated."
    " --list-keys shows the keys.",
)
@click.option(
    "--list-keys",
    is_flag=True,
    help="Print the recipe with all of its keys, what they mean and what they may be, and stop."
    " What is printed is itself a recipe file.",
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
@click.option(
    "--data-memory",
    metavar="SIZE",
    help="What slices may take of memory, e.g. 8GiB [a quarter of the machine's]. A data set that"
    " needs more is prepared in --data-cache, and its slices are read as batches need them; the"
    " weights are the same.",
)
@click.option(
    "--data-cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder for slices that memory does not hold; later runs find them there"
    " [~/.cache/kdmri-edge/slices].",
)
@click.option(
    "--data-workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads that prepare these slices, and read them ahead of the training.",
)
@json_option()
@click.pass_context
def distill(
    ctx: click.Context,
    /,
    out: Path | None,
    resume: bool,
    list_keys: bool,
    accelerator: str,
    devices: int,
    num_nodes: int,
    threads: int | None,
    data_memory: str | None,
    data_cache: Path | None,
    data_workers: int,
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
      kdmri-edge distill --list-keys --recipe edge > mine.toml
      kdmri-edge distill --data brains/ --teacher dccnn-d5c5-sense --student dccnn-d3c5-sense
      kdmri-edge distill --data brains/ --teacher runs/brain/teacher.safetensors
      kdmri-edge distill --resume --out runs/brain --quantize int8
      kdmri-edge distill --data brains/ --mask dccnn-edge@brain-4x \
        --teacher dccnn-d5c5@brain-4x --start-from dccnn-edge@brain-4x \
        --set insertion.share=0.5 --set insertion.contrast_weight=0.1
      kdmri-edge distill --teacher 'unet.py:UNet?width=32' --student 'unet.py:UNet?width=8'
      torchrun --nproc-per-node 2 -m kdmri_edge distill --devices 2 --data brains/ ...
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.distillation.request import Request
    from kdmri_edge.distillation.start import start

    # Defaults of this command are those of a new run: a resumed one keeps what it was begun with.
    named = {name: value for name, value in options.items() if _is_named(ctx, name)}
    if list_keys:
        from kdmri_edge.utils.config import as_toml

        tell(as_toml(Request(**named).chosen_recipe()), nl=False)
        return
    if resume and out is None:
        raise click.UsageError("--resume needs --out, the run to go on with.")
    run = start(
        Request(**named),
        out,
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        threads=threads,
        data_memory=data_memory,
        data_cache=data_cache,
        data_workers=data_workers,
    )
    from kdmri_edge.distillation.engine import is_first_process
    from kdmri_edge.distillation.messages import next_commands
    from kdmri_edge.utils.console import say

    if as_json and is_first_process():
        print_result(json.dumps({"run": str(run.path), **_summary(run)}, indent=2))
    say(f"Run: {run.path}. Next:")
    for line in next_commands(run):
        say(f"  {line}")


def _is_named(ctx: click.Context, option: str) -> bool:
    return ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def _summary(run: Run) -> dict[str, Any]:
    from kdmri_edge.models.checkpoint import read_checkpoint_meta

    metas = {role: read_checkpoint_meta(run.weights(role)) for role in run.roles()}
    return {
        role: {
            "weights": str(run.weights(role)),
            "validation_psnr_db": meta["training"]["validation_psnr_db"],
        }
        for role, meta in metas.items()
    }
