"""The whole distillation: teacher, plain student, distilled student, one run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from lightning_fabric import Fabric

from kdmri_edge.bring.trial import phantom_inputs
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.data import (
    TrainingData,
    find,
    gather,
    merged_records,
    recorded_hashes,
)
from kdmri_edge.distillation.engine import Engine, announce, describe, launched
from kdmri_edge.distillation.initial_weights import (
    add_branches,
    init_from_teacher,
    init_model,
    init_projections,
)
from kdmri_edge.distillation.lock import lock_run
from kdmri_edge.distillation.log import TrainingLog
from kdmri_edge.distillation.loop import thinned, train, validation_psnr
from kdmri_edge.distillation.losses import DistillationLoss, Joint
from kdmri_edge.distillation.messages import (
    Forecast,
    announce_request,
    announce_times,
    stage_costs,
)
from kdmri_edge.distillation.pretrained import START, pretrained_weights
from kdmri_edge.distillation.recipe import Quantize
from kdmri_edge.distillation.request import Settings, check_settings
from kdmri_edge.distillation.run_folder import RUN_FORMAT, Run, note_machine
from kdmri_edge.distillation.stage_builders import (
    joint_stage,
    plain_stage,
    student_stages,
    teacher_stage,
)
from kdmri_edge.distillation.stages import Sized, Stage, TrainContext
from kdmri_edge.distillation.stored import AnyCase
from kdmri_edge.distillation.taps import Given, TapPair, Taught, check_image, pair_taps
from kdmri_edge.errors import CheckpointError, RunError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import (
    MAXIMA,
    RANGES,
    Checkpoint,
    load_checkpoint,
    read_checkpoint_meta,
    save_checkpoint,
)
from kdmri_edge.models.initialisation import inherit_ends
from kdmri_edge.models.network import Network, network_operator
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.reparameterisation import fuse
from kdmri_edge.models.shipped import is_reference
from kdmri_edge.physics.operators import choose_form
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.quantisation.tuning import (
    calibration_slices,
    check_same_tuning,
    layers_in_parts,
    layers_to_leave,
    origin_of_copy,
    training_maxima,
    tune,
    with_tuning,
)
from kdmri_edge.utils.console import phase_times, say
from kdmri_edge.utils.files import read_json, sha256_file, sweep, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["distill"]

_WATCHED_SLICES = 24
# The seed of both students' branches, so that only their training differs.
_STUDENT_BRANCHES = 2
_TEACHER_BRANCHES = 3
# The student as joint training left it, which its own stages start from.
_JOINT_STUDENT = "joint-student"


def distill(settings: Settings, out: Path, *, engine: Engine | None = None) -> Run:
    """Train what the settings ask for, going on from where `out` stopped.

    Args:
        settings: The resolved request.
        out: The run folder.
        engine: Where to train; None is one process on the best device.

    Returns:
        The finished run.

    Raises:
        RunError: `out` holds a run of other settings, other data or other pretrained networks, or
            another process trains it.
        CheckpointError: The teacher's checkpoint does not suit the student or the mask.
        RecipeError: See `check_settings`.
        KdmriError: Bad data, a full disk, or a loss that is not finite.
    """
    engine = engine or Engine()
    check_settings(settings, engine.processes)
    with phase_times() as times, launched(engine, settings.recipe.precision) as fabric:
        # A default name holds the time, which differs between processes.
        out = Path(fabric.broadcast(str(out)))
        known = (out / "run.json").exists()
        recorded = Run(out).meta.get("data") if known else None
        parts = find(settings, recorded) if fabric.is_global_zero else None
        parts = fabric.broadcast(parts)
        data = gather(settings, parts, engine.keeping(fabric.global_rank))
        key = settings.fingerprint(data.hashes, pretrained_weights(settings, Run(out)))
        # Taken once: hours later the checkout may hold another revision than the one that runs.
        origin = provenance(settings.recipe.seed)
        work = _Distillation(settings, Run(out), data, fabric, key, origin, engine.data_workers)
        try:
            work.open()
            teacher = work.teacher()
            if settings.baseline:
                work.plain()
            if settings.distilled:
                loss = DistillationLoss(fabric, settings.recipe, teacher)
                student = work.student(teacher, loss)
                if settings.recipe.qat.quantize is not Quantize.NONE:
                    work.quantised(student)
            work.close()
            announce_times(times)
        finally:
            if work.lock is not None:
                work.lock.release()
    return Run(out)


def _count(cases: Sequence[AnyCase]) -> int:
    """Return the slices of some volumes."""
    return sum(case.count for case in cases)


def _placeless(named: str) -> str:
    """Return what names a checkpoint: a file's name alone, since places are nobody's concern."""
    return named if is_reference(named) else Path(named).name


@dataclass
class _Distillation:
    """State of a running distillation."""

    settings: Settings
    run: Run
    data: TrainingData
    fabric: Fabric
    key: str
    origin: dict[str, Any]
    data_workers: int
    lock: BaseFileLock | None = None
    pairs: list[TapPair] = field(default_factory=list)

    @property
    def _pretrained(self) -> dict[str, Path | None]:
        settings = self.settings
        return {
            "teacher": settings.teacher_checkpoint,
            "student": settings.student_checkpoint,
            START: settings.start_checkpoint,
        }

    def open(self) -> None:
        """Check all that can be checked; then make the run folder, or go on with the one there."""
        mask, spec = self.settings.mask, self.settings.student_spec
        first = self.fabric.is_global_zero
        self.form = choose_form(mask)
        slices = TrainingSlices.from_cases(self.data.train, cache=self.data.cache)
        for role, path in self._pretrained.items():
            if path is not None and not self.run.has(role):
                self._load_pretrained(role, path)
        self.pairs = self._tried_pair()
        qat = self.settings.recipe.qat
        if qat.float_layers or qat.fine_layers:
            layers_to_leave(build_model(spec), qat)
            layers_in_parts(build_model(spec), qat)
        known = (self.run.path / "run.json").exists()
        if known:
            self._check_same()
        # Every process has looked before the first one writes.
        self.fabric.barrier()
        announce_request(self.settings, self.data)
        ran = announce(self.fabric)
        folder = self.run.path / "state"
        if first:
            self.lock = lock_run(folder)
            sweep(self.run.path)
            sweep(folder)
            if not known:
                self._write("running", ran)
            elif (meta := with_tuning(self.run.meta, self.settings.recipe)) is not None:
                write_json(self.run.path / "run.json", meta)
        watched = thinned(self.data.validation, _WATCHED_SLICES)
        teacher_spec = self.settings.teacher_spec
        context = TrainContext(
            fabric=self.fabric,
            recipe=self.settings.recipe,
            slices=slices,
            validation=watched,
            mask=mask,
            operator=self.fabric.to_device(network_operator(spec, mask, self.form)),
            spec=spec,
            folder=folder,
            log=TrainingLog(self.run.path / "log.csv") if first else None,
            key=self.key,
            forecast=self._forecast(slices, watched) if first else None,
            partner=teacher_spec,
            sizes=self._sizes(self.data.sized, self.data.sized, spec),
            workers=self.data_workers if self.data.cache is not None else 0,
        )
        teacher = None
        if (read := self.data.teacher) is not None:
            teacher = replace(
                context,
                slices=TrainingSlices.from_cases(read.train, self.data.train, self.data.cache),
                validation=thinned(read.validation, _WATCHED_SLICES),
                operator=self.fabric.to_device(network_operator(teacher_spec, mask, self.form)),
                spec=teacher_spec,
                partner=spec,
                sizes=self._sizes(read.sized, self.data.sized, teacher_spec),
            )
        self.context = replace(context, teacher=teacher)

    def _sizes(
        self,
        sized: Sequence[Sequence[AnyCase]],
        like: Sequence[Sequence[AnyCase]],
        spec: NetworkSpec,
    ) -> tuple[Sized, ...]:
        """Return the slices of the recipe's matrices as a network reads them."""
        found = []
        for matrix, cases, others in zip(
            self.settings.recipe.batches.matrices, sized, like, strict=True
        ):
            mask = redrawn(self.settings.mask, *matrix.shape)
            operator = self.fabric.to_device(network_operator(spec, mask, self.form))
            slices = TrainingSlices.from_cases(cases, others, self.data.cache)
            found.append(Sized(slices=slices, mask=mask, operator=operator))
        return tuple(found)

    def _context_of(self, role: str) -> TrainContext:
        """Return what the stages of a network share."""
        other = self.context.teacher if role == "teacher" else None
        return other or self.context

    def _tried_pair(self) -> list[TapPair]:
        """Let a trained teacher and what the recipe taps run once, on a phantom.

        Returns:
            The modules whose outputs are compared.

        Raises:
            RecipeError: See `taps.pair_taps`.
            ModelError: The teacher does not give an image of finite numbers.
        """
        settings = self.settings
        trained = settings.teacher_checkpoint
        wanted = settings.recipe.distillation
        if not settings.distilled or settings.student_checkpoint is not None:
            return []
        if trained is None and not wanted.taps:
            return []
        if trained is None:
            teacher = self._network(settings.teacher_spec, 0)
        else:
            known = self.run.weights("teacher") if self.run.has("teacher") else trained
            teacher = self._network_of(load_checkpoint(known))
        student = self._network(settings.student_spec, 1)
        given = [
            Given(*phantom_inputs(network.spec, settings.mask, settings.matrix, network))
            for network in (student, teacher)
        ]
        if trained is not None:
            check_image(teacher, given[1], settings.matrix, f"Teacher {settings.teacher}")
        return pair_taps(wanted, student, teacher, *given)

    def _forecast(self, slices: TrainingSlices, watched: Sequence[AnyCase]) -> Forecast:
        """Return what says how long the run will take."""
        costs = stage_costs(
            self.settings,
            watched=_count(watched),
            finished=_count(self.data.validation) + len(calibration_slices(slices)),
        )
        return Forecast(costs)

    def _check_same(self) -> None:
        """Refuse to go on with a run of another request.

        The key covers settings and volumes; which of these train, and in which order they come, is
        compared here, since batches are drawn by their order.
        """
        stored = self.run.meta
        if stored.get("key") == self.settings.fingerprint(self.data.hashes):
            self.key = stored["key"]  # of an earlier version, which its states have too
        same = stored.get("key") == self.key and all(
            recorded_hashes(stored["data"][part]) == recorded_hashes(self.data.record[part])
            for part in ("train", "validation")
        )
        if not same:
            raise RunError(
                f"{self.run.path} holds a run of other settings or other data.",
                "Choose another --out, or delete that folder.",
            )

    def _write(self, status: str, ran: dict[str, Any]) -> None:
        write_json(
            self.run.path / "run.json",
            {
                "format": RUN_FORMAT,
                "status": status,
                "key": self.key,
                "settings": self.settings.to_dict(),
                "recipe": self.settings.recipe.to_dict(),
                "matrix": self.settings.matrix,
                "mask": self.settings.mask.to_dict(),
                "data": self.data.record,
                "attribution": self.data.attribution,
                **self.data.simulation,
                "ran_on": ran,
                "provenance": self.origin,
            },
        )

    def _network(self, spec: NetworkSpec, seed: int) -> Network:
        network = init_model(spec, self.settings.recipe.seed, seed)
        network.form = self.form
        return network

    def _trained(
        self,
        role: str,
        make: Callable[[], Network],
        steps: dict[str, int],
        start: Checkpoint | None = None,
    ) -> Network:
        """Return the finished network of a role, training it unless it is there.

        Args:
            role: Its role.
            make: Trains it.
            steps: By stage.
            start: What it starts with, where that was trained before.
        """
        if self.run.has(role):
            return self._network_of(load_checkpoint(self.run.weights(role)))
        if self.fabric.is_global_zero:
            note_machine(self.run.path / "run.json", describe(self.fabric))
        network = make()
        if self.fabric.is_global_zero:
            data = self.data.record["train"]
            origin: dict[str, Any] = {}
            if role == "student":  # what the teacher saw has reached the student too
                data = merged_records(data, self._teacher_data())
                origin["teacher"] = self._taught_by()
            if start is not None:  # likewise
                data = merged_records(data, list(start.training.get("data", [])))
                origin["start"] = {
                    "name": _placeless(str(self.settings.start_from)),
                    "steps": start.training.get("steps"),
                    # what that one started from in turn, and so on: all steps can be added up
                    **{k: v for k, v in start.training.items() if k == "start"},
                }
            read = self.data.teacher if role == "teacher" else None
            training = {
                "recipe": self.settings.recipe.to_dict(),
                "steps": steps,
                **origin,
                "data": data,
                "split": self.data.record["split"],
                "attribution": self.data.attribution,
                **(self.data if read is None else read).simulation,
                "ran_on": describe(self.fabric),
                "provenance": self.origin,
            }
            self._save(role, network, training)
        self.fabric.barrier()
        return network

    def _network_of(self, checkpoint: Checkpoint) -> Network:
        network = build_model(checkpoint.spec)
        network.load_state_dict(dict(checkpoint.state))
        network.form = self.form
        return network

    def _taught_by(self) -> dict[str, str]:
        """Name the student's teacher.

        The hash is that of the run's own copy, which stands beside the student.
        """
        named = self.settings.teacher
        name = named if self.settings.teacher_checkpoint is None else _placeless(named)
        return {"name": name, "sha256": sha256_file(self.run.weights("teacher"))}

    def _teacher_data(self) -> list[dict[str, Any]]:
        meta = read_checkpoint_meta(self.run.weights("teacher"))
        return list(meta["training"].get("data", []))

    def _save(self, role: str, network: Network, training: Mapping[str, Any]) -> None:
        psnr = None
        self.fabric.to_device(network)
        context = self._context_of(role)
        if MAXIMA not in training:  # a pretrained network brings its own
            maxima = training_maxima(
                network, context.operator, context.slices, f"{role}: ranges for int8"
            )
            training = {MAXIMA: maxima, **training}
        read = self.data.teacher if role == "teacher" else None
        volumes = (self.data if read is None else read).validation
        if volumes:
            title = f"{role}: validation, whole volumes"
            psnr = validation_psnr(network, context.operator, volumes, title)
            say(f"{role}: {psnr:.2f} dB on the validation volumes.")
        training = {**training, "validation_psnr_db": psnr}
        self._write_checkpoint(self.run.file(role), role, network, training)

    def _write_checkpoint(
        self, file: Path, role: str, network: Network, training: Mapping[str, Any]
    ) -> None:
        checkpoint = Checkpoint(
            spec=network.spec,
            mask=self.settings.mask,
            matrix=self.settings.matrix,
            role=role,
            training=training,
            state=network.state_dict(),
        )
        save_checkpoint(file, checkpoint)

    def teacher(self) -> Network:
        """Train the teacher, or take a pretrained one."""
        if (path := self.settings.teacher_checkpoint) is not None:
            return self._copy_pretrained("teacher", path)
        stage = teacher_stage(self.settings)
        if self.settings.recipe.joint_steps:
            return self._jointly_trained(stage)
        branches = _TEACHER_BRANCHES if self.settings.recipe.optim.reparameterise_teacher else None
        return self._from_scratch("teacher", self.settings.teacher_spec, 0, stage, branches)

    def _jointly_trained(self, stage: Stage) -> Network:
        """Train the teacher jointly with its student; then each goes its own way."""
        settings, seed = self.settings, self.settings.recipe.seed
        joint = joint_stage(settings)

        def make() -> Network:
            teacher = self._network(settings.teacher_spec, 0)
            student = self._network(settings.student_spec, 1)
            if settings.recipe.optim.reparameterise_teacher:
                add_branches(teacher, seed, _TEACHER_BRANCHES)
            if settings.recipe.optim.reparameterise:
                add_branches(student, seed, _STUDENT_BRANCHES)
            pair = Joint(teacher, student)
            train(pair, joint, self.context)
            fuse(pair)
            self._trained(_JOINT_STUDENT, lambda: student, {joint.name: joint.steps})
            if settings.recipe.optim.reparameterise_teacher:
                add_branches(teacher, seed, _TEACHER_BRANCHES)
            train(teacher, stage, self.context)
            fuse(teacher)
            return teacher

        return self._trained("teacher", make, {joint.name: joint.steps, stage.name: stage.steps})

    def _copy_pretrained(self, role: str, path: Path) -> Network:
        """Copy a pretrained network into the run, with how it was trained."""
        if self.run.has(role):
            return self._network_of(load_checkpoint(self.run.weights(role)))
        checkpoint = self._load_pretrained(role, path)
        network = self._network_of(checkpoint)
        if self.fabric.is_global_zero:
            self._save(role, network, checkpoint.training)
        self.fabric.barrier()
        return network

    def _load_pretrained(self, role: str, path: Path) -> Checkpoint:
        checkpoint = load_checkpoint(path)
        same = checkpoint.mask == self.settings.mask and checkpoint.matrix == self.settings.matrix
        # Convolutions know neither: what is trained further may go on to another mask or matrix.
        if role != START and not same:
            raise CheckpointError(
                f"{role.capitalize()} {path} was trained for mask {checkpoint.mask.name!r}"
                f" at matrix {checkpoint.matrix}.",
                f"This run uses {self.settings.mask.name!r} at {self.settings.matrix}; use the"
                " same, or train one by giving a preset.",
            )
        return checkpoint

    def _from_scratch(
        self, role: str, spec: NetworkSpec, seed: int, stage: Stage, branches: int | None
    ) -> Network:
        """Train a network alone; `branches` is the seed of its branches, None for none."""

        def make() -> Network:
            network = self._network(spec, seed)
            if branches is not None:
                add_branches(network, self.settings.recipe.seed, branches)
            train(network, stage, self._context_of(role))
            fuse(network)
            return network

        return self._trained(role, make, {stage.name: stage.steps})

    def plain(self) -> Network:
        """Train the student alone, with as many steps as the distilled one gets in all."""
        stage = plain_stage(self.settings)
        branches = _STUDENT_BRANCHES if self.settings.recipe.optim.reparameterise else None
        return self._from_scratch("plain", self.settings.plain_spec, 1, stage, branches)

    def student(self, teacher: Network, loss: DistillationLoss) -> Network:
        """Distil the student: attention transfer, then reconstruction and imitation."""
        if (path := self.settings.student_checkpoint) is not None:
            return self._copy_pretrained("student", path)
        recipe = self.settings.recipe
        stages = student_stages(self.settings, loss)
        start = self._started()

        def make() -> Network:
            # The same first weights as the plain student's: only the training differs.
            network = self._network(self.settings.student_spec, 1)
            if recipe.joint_steps:
                network = self._network_of(load_checkpoint(self.run.file(_JOINT_STUDENT)))
            elif start is not None:
                network = self._network_of(start)
            elif recipe.distillation.bridge:
                init_from_teacher(network, teacher, self.context)
            elif recipe.distillation.inherit:
                inherit_ends(network, teacher)
            if recipe.optim.reparameterise:
                add_branches(network, self.settings.recipe.seed, _STUDENT_BRANCHES)
            taught: Network | Taught = network
            if self.pairs:
                taught = Taught(network, self.pairs, init_projections(self.pairs, recipe))
            for stage in stages:
                train(taught, stage, self.context)
            fuse(taught)
            return network

        steps = {"attention": recipe.attention_steps, "imitation": recipe.imitation_steps}
        if recipe.joint_steps:
            steps = {"joint": recipe.joint_steps, **steps}
        return self._trained("student", make, steps, start)

    def _started(self) -> Checkpoint | None:
        """Return the checkpoint that the student starts with, of which the run keeps a copy."""
        path = self.settings.start_checkpoint
        if path is None:
            return None
        own = self.run.file(START)
        if not own.is_file():
            checkpoint = self._load_pretrained(START, path)
            if self.fabric.is_global_zero:
                save_checkpoint(own, checkpoint)
            self.fabric.barrier()
        return load_checkpoint(own)

    def quantised(self, student: Network) -> None:
        """Tune a copy of the distilled student with fake quantisation."""
        recipe = self.settings.recipe
        file = self.run.tuned(str(recipe.qat.quantize))
        if file.is_file():
            check_same_tuning(file, recipe)
            return
        known = read_checkpoint_meta(self.run.weights("student"))["training"]
        # Those of a pretrained student are of the slices that it was trained on, not of these.
        maxima = None if self.settings.student_checkpoint is not None else known.get(MAXIMA)
        tuned = tune(
            student,
            self.context,
            list(self.data.validation),
            float_psnr=known["validation_psnr_db"],
            maxima=maxima,
        )
        if self.fabric.is_global_zero:
            training = {
                **{key: value for key, value in known.items() if key != MAXIMA},
                **origin_of_copy(known, self.data, recipe),
                RANGES: tuned.ranges,
                "provenance": self.origin,
                "steps": {**known["steps"], str(recipe.qat.quantize): recipe.qat.steps},
                "validation_psnr_db": tuned.figures["tuned"],
                "quantised": dict(tuned.figures),
            }
            self._write_checkpoint(file, "student", tuned.network, training)
        self.fabric.barrier()

    def close(self) -> None:
        """Mark the run as complete; the states to resume from have done their work."""
        if self.fabric.is_global_zero:
            meta = dict(read_json(self.run.path / "run.json", RunError, finite=False))
            if meta["status"] != "complete":
                write_json(self.run.path / "run.json", {**meta, "status": "complete"})
            shutil.rmtree(self.context.folder, ignore_errors=True)
        self.fabric.barrier()
