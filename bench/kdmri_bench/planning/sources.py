"""What is measured: the networks of a run, of checkpoints and of bundles."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kdmri_bench.planning.testdata import check_same_input
from kdmri_edge.bring.network import BROUGHT, bring_checkpoint, check_not_brought, is_brought
from kdmri_edge.distillation.run_folder import ROLES, Run
from kdmri_edge.errors import BenchError, BundleError, CheckpointError, RunError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.code import CodeSpec, is_code
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.shipped import is_reference, refusal, resolve
from kdmri_edge.models.specs import described_spec
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.bundle import MANIFEST, open_bundle

__all__ = [
    "HasPath",
    "Networks",
    "Source",
    "at_matrix",
    "check_comparable",
    "from_bundle",
    "from_checkpoint",
    "from_run",
    "gather",
    "has_code",
    "runs_of",
    "with_checkpoints",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One network to be measured.

    Attributes:
        name: unique among the sources, for the table.
        role: "teacher", "plain" or "student".
        spec: its architecture.
        mask: the mask that it was trained for.
        matrix: side of its square images.
        training: how it was trained, from its metadata.
        checkpoint: its weights; None where only bundles were given.
        bundles: exports given by the user; empty where exports are to be made from the checkpoint.
        exports: folder in which exports are kept; None for a scratch folder.
        resized: whether mask and matrix are others than its bundles' own, see `at_matrix`.
    """

    name: str
    role: str
    spec: NetworkSpec
    mask: Mask
    matrix: int
    training: Mapping[str, Any]
    checkpoint: Path | None = None
    bundles: tuple[Path, ...] = ()
    exports: Path | None = None
    resized: bool = False

    @property
    def hashes(self) -> frozenset[str]:
        """SHA-256 of the volumes that it was trained on."""
        return frozenset(str(item["sha256"]) for item in self.training.get("data") or ())


class HasPath(Protocol):
    """Whatever the library hands out for something on the disk: a run, a checkpoint, a bundle."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...


Named = str | os.PathLike[str] | HasPath | Source
"""A run, a checkpoint, a bundle or a folder of bundles, by its path or as the object that the
library gave; the name of a shipped network; or a network that is described already."""

Networks = Named | Sequence[Named]


def _source(meta: Mapping[str, Any], origin: Path, error: type[CheckpointError | BundleError],
            **more: Any) -> Source:  # fmt: skip
    """Build a source from the keys that checkpoints and manifests share."""
    try:
        role, spec = str(meta["role"]), described_spec(meta)
        name = ROLES.get(role, role)
        if role == BROUGHT and isinstance(spec, CodeSpec):
            name = spec.reference
        return Source(
            name=name,
            role=role,
            spec=spec,
            mask=Mask.from_dict(meta["mask"]),
            matrix=int(meta["matrix"]),
            training=meta.get("training") or {},
            **more,
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise error(f"{origin} is damaged ({cause!r}).", "Make it again.") from cause


def from_checkpoint(path: Path, *, exports: Path | None = None) -> Source:
    """Describe a checkpoint.

    Raises:
        CheckpointError: missing or damaged file.
    """
    meta = read_checkpoint_meta(path)
    return _source(meta, path, CheckpointError, checkpoint=path, exports=exports)


def from_bundle(path: Path) -> Source:
    """Describe a bundle.

    Raises:
        BundleError: missing, damaged or altered files.
    """
    bundle = open_bundle(path)
    return _source(bundle.manifest, path, BundleError, bundles=(path,))


def from_run(run: Run) -> list[Source]:
    """Describe the finished networks of a run.

    Raises:
        RunError: no network of the run is finished.
    """
    roles = run.roles()
    if not roles:
        raise RunError(
            f"Run {run.path} has no finished network yet.",
            f"Finish it: `kdmri-edge distill --resume --out {run.path}`.",
        )
    return [from_checkpoint(run.weights(role), exports=run.exports_dir) for role in roles]


def _listed(networks: Networks) -> list[Named]:
    if isinstance(networks, str) or not isinstance(networks, Sequence):
        return [networks]
    return list(networks)


def _path(network: Named) -> Path | None:
    """Return where a network lies, None for one that is described or shipped."""
    if isinstance(network, Source):
        return None
    if not isinstance(network, str | os.PathLike):
        return network.path
    return None if is_reference(str(network)) else Path(network)


def runs_of(networks: Networks) -> list[Run]:
    """Return the runs that networks are or come from, each once: their split is to be kept to."""
    folders = []
    for network in _listed(networks):
        path = _path(network)
        if path is None:
            continue
        exported = path.parent.name == "exports"
        near = (path, path.parent.parent if exported else path.parent)
        folders += [folder for folder in near if (folder / "run.json").is_file()][:1]
    return [Run(folder) for folder in dict.fromkeys(folders)]


def has_code(networks: Networks) -> bool:
    """Whether a network is named as code, or given as a module."""
    return any(map(is_brought, _listed(networks)))


def with_checkpoints(
    networks: Networks,
    *,
    weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    for_mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | None = None,
    convention: str | None = None,
) -> list[Named]:
    """Return networks with a checkpoint in the place of each that is code, or a module.

    Args:
        networks: what the user named.
        weights: one file for each that is code, in their order.
        for_mask: the mask that these are for.
        matrix: side of their images.
        convention: what their `forward` takes.

    Raises:
        BenchError: other than one file for each, or something is said of none.
        KdmriError: see `kdmri_edge.bring.network.bring_checkpoint`.
    """
    named = _listed(networks)
    files = [weights] if isinstance(weights, str | os.PathLike) else list(weights or ())
    coded = sum(is_code(network) for network in named)
    if not any(map(is_brought, named)):
        said = {"weights": files or None, "mask": for_mask}
        check_not_brought({**said, "matrix": matrix, "convention": convention}, BenchError)
        return named
    if len(files) not in (0, coded):
        raise BenchError(
            f"{coded} network(s) are named as code, with {len(files)} file(s) of weights.",
            "Give one for each, in their order.",
        )
    left = iter(files)
    return [
        bring_checkpoint(
            network,
            weights=next(left, None) if is_code(network) else None,
            mask=for_mask,
            matrix=matrix,
            convention=convention,
        )
        if is_brought(network)
        else network
        for network in named
    ]


def gather(networks: Networks) -> list[Source]:
    """Describe whatever the user named, and give every network a name of its own.

    Args:
        networks: run folders, checkpoints, bundles, folders of bundles, or references to shipped
            networks (PRESET@PLACE), one or several.

    Returns:
        One source per network; several bundles of one network are one source.

    Raises:
        KdmriError: something is missing or damaged, or networks for different masks or matrices
            were named together.
    """
    found: list[Source] = []
    for network in _listed(networks):
        path = _path(network)
        if isinstance(network, Source):
            found.append(network)
        elif path is None:
            found.append(from_checkpoint(resolve(str(network))))
        elif path.is_file():
            found.append(from_checkpoint(path))
        elif (path / "run.json").is_file():
            found.extend(from_run(Run(path)))
        elif (path / MANIFEST).is_file():
            found.append(from_bundle(path))
        else:
            found.extend(from_bundle(bundle) for bundle in _bundles_in(path))
    sources = _named(_merged(found))
    check_comparable(sources)
    return sources


def at_matrix(sources: Sequence[Source], side: int) -> list[Source]:
    """Return networks as they are measured at another matrix, with masks drawn like theirs.

    Args:
        sources: bundles that take any matrix.
        side: of the square images.

    Raises:
        BenchError: a network is given otherwise.
        DataError: a bundle takes multiples of another number.
        MaskError: the acceleration leaves such a matrix without a centre.
    """
    found = []
    for source in sources:
        free = [open_bundle(bundle, verify=False).free for bundle in source.bundles]
        if not free or None in free:
            raise BenchError(
                f"{source.name} is measured at its own matrix of {source.matrix}.",
                "Give bundles that were exported with `kdmri-edge export --matrix any`, or leave"
                " --matrix out.",
            )
        for sizes in free:
            if sizes is not None:
                sizes.check(side, side, "The matrix of --matrix")
        mask = redrawn(source.mask, side, side)
        found.append(replace(source, mask=mask, matrix=side, resized=True))
    return found


def _bundles_in(folder: Path) -> list[Path]:
    if not folder.exists():
        raise refusal(folder, BenchError)
    bundles = sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))
    if not bundles:
        raise BenchError(
            f"{folder} is no run, bundle or folder of bundles.",
            "Give what `kdmri-edge distill` or `kdmri-edge export` wrote.",
        )
    return bundles


def _merged(found: Iterable[Source]) -> list[Source]:
    """Join bundles of one network: same role, architecture, mask and training."""
    merged: list[Source] = []
    for source in found:
        for index, other in enumerate(merged):
            if source.bundles and other.bundles and _identity(source) == _identity(other):
                merged[index] = replace(other, bundles=(*other.bundles, *source.bundles))
                break
        else:
            merged.append(source)
    return merged


def _identity(source: Source) -> tuple[object, ...]:
    return source.role, source.spec, source.mask.sha256, source.matrix, repr(source.training)


def _named(sources: list[Source]) -> list[Source]:
    """Tell sources of one role apart by their origin."""
    result: list[Source] = []
    taken: set[str] = set()
    for source in sources:
        name, number = source.name, 2
        if sum(other.name == source.name for other in sources) > 1:
            origin = source.checkpoint or source.bundles[0]
            name = f"{source.name} ({origin.parent.name}/{origin.stem})"
        stem = name
        while name in taken:
            name, number = f"{stem} #{number}", number + 1
        taken.add(name)
        result.append(replace(source, name=name))
    return result


def check_comparable(sources: Sequence[Source]) -> None:
    """Refuse networks that do not take the same input.

    Raises:
        BenchError: no source, or differing masks, matrices or channels.
    """
    if not sources:
        raise BenchError("There is nothing to measure.", "Name a run, a checkpoint or a bundle.")
    first = sources[0]
    for other in sources[1:]:
        if other.mask != first.mask or other.matrix != first.matrix:
            raise BenchError(
                f"{first.name} is for mask {first.mask.name!r} at matrix {first.matrix},"
                f" {other.name} for {other.mask.name!r} at {other.matrix}.",
                "Measure networks for one mask together, others in another run.",
            )
    check_same_input([(source.name, source.spec) for source in sources])
