"""The networks of an assessment: in float and as int8 copies, opened once for all sections."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_bench.planning.exports import recorded_checkpoint
from kdmri_bench.planning.sources import Networks, Source, from_checkpoint, gather
from kdmri_edge.distillation.run_folder import tuned_for
from kdmri_edge.errors import BenchError, KdmriError
from kdmri_edge.models.shipped import is_reference, resolve
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.networks import backend_at_hand, cached_export
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.files import sha256_file

__all__ = [
    "FLOAT",
    "INT8",
    "ZERO_FILLED",
    "AssessedNetwork",
    "Missing",
    "describe",
    "opened",
    "teacher_of",
]

FLOAT: Final = "fp32"
INT8: Final = "int8"
ZERO_FILLED: Final = "zero-filled"
"""Key of the images without any network, which stand beside the networks'."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AssessedNetwork:
    """A network in one precision, open.

    Attributes:
        key: unique, e.g. "dccnn-edge@brain-4x int8"; sections name networks by it.
        name: of the network, the same in all precisions.
        role: "teacher", "plain", "student", or what its checkpoint says.
        kind: what was named: "checkpoint" or "bundle".
        precision: "fp32", "int8", ... as users write it.
        digest: of a bundle that was named its manifest's digest, of a checkpoint the SHA-256 of
            its file: what `kdmri-edge verify` compares. None of bundles of older versions.
        checkpoint_sha256: of the weights that really ran; for int8 they may be a copy that was
            tuned for it. None where a bundle does not say.
        bundle_digest: manifest digest of the bundle that ran; None where PyTorch ran a checkpoint.
        source: what it was opened from.
        checkpoint: its weights, for what only PyTorch can do; None of a bundle.
        pipeline: the road from k-space to images.
    """

    key: str
    name: str
    role: str
    kind: str
    precision: str
    digest: str | None
    checkpoint_sha256: str | None
    bundle_digest: str | None
    source: Source
    checkpoint: Path | None
    pipeline: Pipeline

    @property
    def ran(self) -> str:
        """What really computes, in words."""
        info = self.pipeline.session.info
        return (
            f"{info.backend} {info.version}, {as_users_write(info.precision_executed)},"
            f" {info.device}, {info.provider}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what the report says of it."""
        spec, matrix = self.source.spec, self.source.matrix
        macs = spec.macs(matrix, matrix, lines=self.source.mask.is_lines)
        return {
            "key": self.key,
            "name": self.name,
            "role": self.role,
            "kind": self.kind,
            "precision": self.precision,
            "digest": self.digest,
            "checkpoint_sha256": self.checkpoint_sha256,
            "bundle_digest": self.bundle_digest,
            "parameters": spec.parameters,
            "macs": dict(macs),
            "ran": dataclasses.asdict(self.pipeline.session.info),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A network that could not be opened in a precision.

    Attributes:
        key: what it would be called.
        reason: why there is none.
    """

    key: str
    reason: str


def describe(networks: Networks) -> list[Source]:
    """Describe the networks that a user names; those of the package keep their names.

    Raises:
        KdmriError: See `planning.sources.gather`: something is missing or damaged, or the networks
            are for different masks, matrices or inputs.
    """
    listed = (
        [networks]
        if isinstance(networks, str) or not isinstance(networks, Sequence)
        else [*networks]
    )
    given: list[Any] = []
    for network in listed:
        text = os.fspath(network) if isinstance(network, str | os.PathLike) else ""
        if text and is_reference(text):
            given.append(dataclasses.replace(from_checkpoint(resolve(text)), name=text))
        else:
            given.append(network)
    return gather(given)


def teacher_of(sources: Sequence[Source], wanted: str | None = None) -> Source | None:
    """Return the network that the others are compared with.

    Args:
        sources: All networks.
        wanted: Its name, or where its checkpoint or bundle lies; None takes the one that the
            checkpoint of a student names as its teacher, else the one that says that it is a
            teacher; of several, or of none that does, the one of the most operations.

    Returns:
        None where there is one network alone.

    Raises:
        BenchError: No network is called so.
    """
    if wanted is not None:
        for source in sources:
            places = {str(path) for path in (source.checkpoint, *source.bundles) if path}
            if wanted in (source.name, *places):
                return source
        raise BenchError(
            f"--teacher {wanted} is none of the networks.",
            f"Name one of {', '.join(source.name for source in sources)}.",
        )
    if len(sources) < 2:
        return None
    named = set().union(*(_teachers(source) for source in sources))
    taught = [source for source in sources if named & _called(source)]
    said = [source for source in sources if source.role == "teacher"]
    return max(taught or said or sources, key=_operations)


def _teachers(source: Source) -> set[str]:
    """Return name and SHA-256 of what taught a student; nothing where its checkpoint names none."""
    teacher = source.training.get("teacher")
    return {str(value) for value in teacher.values()} if isinstance(teacher, Mapping) else set()


def _called(source: Source) -> set[str]:
    """Return a network's name, and the SHA-256 of its checkpoint or of what its bundles hold."""
    hashes = [recorded_checkpoint(open_bundle(b, verify=False).manifest) for b in source.bundles]
    if source.checkpoint is not None:
        hashes.append(sha256_file(source.checkpoint))
    return {source.name, *(found for found in hashes if found)}


def _operations(source: Source) -> int:
    macs = source.spec.macs(source.matrix, source.matrix, lines=source.mask.is_lines)
    return sum(macs.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opening:
    """How networks are opened; see `opened`."""

    threads: int | None
    in_pytorch: bool


@contextmanager
def opened(
    sources: Sequence[Source],
    *,
    int8: bool = True,
    threads: int | None = None,
    in_pytorch: bool = False,
) -> Iterator[tuple[list[AssessedNetwork], list[Missing]]]:
    """Open networks in float and, where it can be had, in int8; they are closed at the end.

    A checkpoint is exported once for the fastest runtime that is installed, as `kdmri_edge.load`
    does it; where there is none, PyTorch runs it, in int8 a copy whose layers round as the export
    would. `AssessedNetwork.ran` says which.

    Args:
        sources: The networks; float and int8 bundles of one network may be among them.
        int8: Whether checkpoints are assessed in int8 as well.
        threads: CPU threads; None leaves the runtime's choice.
        in_pytorch: Export no checkpoint, as if there were no runtime but PyTorch.

    Raises:
        KdmriError: A network cannot be opened in float, or a bundle not at all.
    """
    found: list[AssessedNetwork] = []
    missing: list[Missing] = []
    how = _Opening(threads=threads, in_pytorch=in_pytorch)
    with ExitStack() as stack, progress("Opening networks", len(sources)) as advance:
        for source in sources:
            if source.checkpoint is None:
                found += [_of_bundle(source, path, stack, how) for path in source.bundles]
            else:
                found.append(_of_checkpoint(source, source.checkpoint, FLOAT, stack, how))
                if int8:
                    copy = _int8(source, source.checkpoint, stack, how)
                    if isinstance(copy, Missing):
                        missing.append(copy)
                    else:
                        found.append(copy)
            advance(1)
        _check_keys(found)
        yield found, missing


def _check_keys(found: Sequence[AssessedNetwork]) -> None:
    keys = [network.key for network in found]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise BenchError(f"{twice} is named twice.", "Name each network once.")


def _of_bundle(source: Source, path: Path, stack: ExitStack, how: _Opening) -> AssessedNetwork:
    pipeline = stack.enter_context(
        Pipeline(path, backend=backend_at_hand(path), threads=how.threads)
    )
    bundle = open_bundle(path, verify=False)  # its hashes were compared when it was opened
    precision = as_users_write(bundle.meant_for)
    return AssessedNetwork(
        key=f"{source.name} {precision}",
        name=source.name,
        role=source.role,
        kind="bundle",
        precision=precision,
        digest=bundle.digest,
        checkpoint_sha256=recorded_checkpoint(bundle.manifest),
        bundle_digest=bundle.digest,
        source=source,
        checkpoint=None,
        pipeline=pipeline,
    )


def _of_checkpoint(
    source: Source, checkpoint: Path, precision: str, stack: ExitStack, how: _Opening
) -> AssessedNetwork:
    """Open a checkpoint, exported for the fastest runtime; PyTorch where there is none.

    Raises:
        BackendError: int8 without a runtime that has it.
        KdmriError: The export fails.
    """
    weights = tuned_for(checkpoint, precision, signed=False)
    # a network of the package is exported under its name, so that `load` finds the same export
    named = is_reference(source.name)
    bundle = None
    if not how.in_pytorch:
        bundle = cached_export(
            checkpoint if named else weights,
            name=source.name if named else weights.stem,
            exported=source.name if named else weights,
            precision=precision,
        )
    digest = None
    if bundle is not None:
        pipeline = Pipeline(bundle, backend=backend_at_hand(bundle), threads=how.threads)
        digest = open_bundle(bundle, verify=False).digest
    elif precision == FLOAT:
        pipeline = Pipeline(weights, threads=how.threads)
    else:
        from kdmri_bench.assessment.rounded import rounded_pipeline

        pipeline = rounded_pipeline(weights, threads=how.threads)
    return AssessedNetwork(
        key=f"{source.name} {precision}",
        name=source.name,
        role=source.role,
        kind="checkpoint",
        precision=precision,
        digest=sha256_file(checkpoint),
        checkpoint_sha256=sha256_file(weights),
        bundle_digest=digest,
        source=source,
        checkpoint=checkpoint,
        pipeline=stack.enter_context(pipeline),
    )


def _int8(
    source: Source, checkpoint: Path, stack: ExitStack, how: _Opening
) -> AssessedNetwork | Missing:
    """Open the int8 copy, or say why there is none: the float network is assessed all the same."""
    key = f"{source.name} {INT8}"
    try:
        return _of_checkpoint(source, checkpoint, INT8, stack, how)
    except KdmriError as error:
        say(f"{key} is not assessed: {error}")
        return Missing(key=key, reason=str(error))
