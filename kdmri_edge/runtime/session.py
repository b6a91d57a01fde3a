"""One interface to every runtime, and the scaling that surrounds a network."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, DataError, KdmriError, MaskError
from kdmri_edge.models.checkpoint import is_checkpoint, read_checkpoint_meta
from kdmri_edge.models.protocol import InputKind
from kdmri_edge.models.specs import described_spec
from kdmri_edge.physics.coils import sense_operator_array
from kdmri_edge.physics.fourier import dft_pair
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import choose_form, operator_array
from kdmri_edge.physics.scaling import (
    network_image,
    network_input,
    network_kspace,
    network_maps,
    slice_scale,
)
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_edge.runtime.contents import check_files
from kdmri_edge.runtime.profile import LayerTime
from kdmri_edge.runtime.scope import FreeSizes
from kdmri_edge.runtime.signature import no_bundle
from kdmri_edge.runtime.targets import PRECISIONS, as_users_write
from kdmri_edge.utils.closing import Closing
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import writing
from kdmri_edge.utils.keys import PublicKey
from kdmri_edge.utils.threads import bound_threads

__all__ = [
    "RUN_CHECKPOINTS",
    "Session",
    "SessionInfo",
    "check_graph_precision",
    "check_precision",
    "no_profile",
    "not_on",
    "open_session",
    "operator_like",
    "operator_of",
    "own_copy",
    "reconstruct",
]

Array = NDArray[np.float32]
_OF_KSPACE = 5
"""Axes of what a network of k-space is given; images have one less."""
_EAGER = "kdmri_edge.runtime.backends.pytorch:EagerSession"
_HALVES = ("f16", "bf16")
"""Precisions of a graph that is float32 around its convolutions."""
_FUSED = "cuda"
"""Key of the backend whose kernels are made of a checkpoint."""
RUN_CHECKPOINTS = ("torch", _FUSED)
"""Keys of the backends that run a checkpoint as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionInfo:
    """What really runs, read back from the runtime.

    Attributes:
        backend: Name of the runtime.
        version: Its version.
        device: Device that executes.
        provider: The part of the runtime that executes, e.g. CPUExecutionProvider.
        threads: CPU threads.
        precision_requested: "f32", "bf16" or "int8"; "f32" for what surrounds halves.
        precision_executed: What the runtime reports to have executed.
    """

    backend: str
    version: str
    device: str
    provider: str
    threads: int
    precision_requested: str
    precision_executed: str


class Session(Closing):
    """A loaded network; as a context manager it is closed at the end.

    Whoever opens a graph says what the graph takes (operator, coils), for the file of a graph does
    not tell; what belongs to a call is an argument of `run`.

    Attributes:
        operator: Constant of data consistency of the graph's own mask, float32, which it takes as a
            second input; None for a graph that holds it.
        written: Precision that the graph is written in, as its bundle says.
        bundle: The bundle that it was opened from, None for a checkpoint.
        folder: Where the files are read from that belong to the bundle: its folder, or of a signed
            one the copy that nobody else can write to; None for a checkpoint.
        sense: Whether the network combines coils and is given their sensitivities.
        kspace: Whether it is given the coils' k-space in place of an image.
        coils: Number of coils that its graph is made for; None for any number.
        blank_coils: Whether coils that measured nothing may be added to fill that number up.
        free: Which matrices it takes; None for its graph's own.
        transforms: Along how many axes it is given DFT matrices, H before W, beside the operator.
        concurrent: Whether several threads may call `run` at a time.
    """

    operator: Array | None = None
    written: str = "f32"
    bundle: Bundle | None = None
    folder: Path | None = None
    sense: bool = False
    kspace: bool = False
    coils: int | None = None
    blank_coils: bool = True
    free: FreeSizes | None = None
    transforms: int = 0
    concurrent: bool = False
    _closed: bool = False

    def close(self) -> None:
        """Release what the runtime holds; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        """Let go of the loaded graph."""

    @property
    def takes_masks(self) -> bool:
        """Whether one graph serves every mask of its kind, of its matrix or of any."""
        return self.operator is not None or self.free is not None

    def operator_for(self, mask: Mask) -> Array | None:
        """Return the operator to give `run` for what was sampled with a mask.

        Raises:
            BackendError: The graph holds its mask.
            MaskError: See `operator_of`.
        """
        if self.bundle is None:
            raise BackendError(
                "A checkpoint runs with its own mask.",
                "Export it with `kdmri-edge export --mask input`, or open it for any matrix.",
            )
        return operator_of(self.bundle, mask)

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return the precisions that this machine's hardware has, of those that the class takes.

        Raises:
            MissingExtraError: The runtime is not installed.
        """
        return ("f32",)

    def resident(self, x_u: Array, *, maps: Array | None = None) -> Callable[[], object] | None:
        """Return a query whose data lies on the device already, and whose image stays there.

        It returns when the image is complete. None where the runtime has no such query: a CPU's
        are none but `run`.

        Raises:
            BackendError: See `run`.
        """
        return None

    @classmethod
    def devices_here(cls) -> tuple[str, ...]:
        """Return the devices that the runtime finds on this machine; empty where it cannot say."""
        return ()

    @property
    @abstractmethod
    def info(self) -> SessionInfo:
        """What really runs."""

    def inputs(
        self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None
    ) -> list[Array]:
        """Return what the graph is given for the arguments of `run`, C-contiguous.

        Raises:
            BackendError: Maps are missing, not wanted, or of more coils than the graph takes; an
                image for a network of k-space, or the other way round; an operator for a graph
                that holds its own; the session is closed.
        """
        if self._closed:
            raise BackendError("The session is closed.", "Open the network again.")
        if self.kspace != (x_u.ndim == _OF_KSPACE):
            raise BackendError(
                "The network reads k-space of coils and was given an image."
                if self.kspace
                else "The network reads images and was given k-space of coils.",
                "Give k-space as [slices, coils, 2, height, width], images as [slices, channels,"
                " height, width].",
            )
        given = [self._fitting(x_u) if self.kspace else np.ascontiguousarray(x_u)]
        if self.operator is not None:
            chosen = self.operator if operator is None else operator
            if self.free is not None:
                _check_operator(chosen, x_u)
            given.append(chosen)
            given += [dft_pair(size) for size in x_u.shape[2 : 2 + self.transforms]]
        elif operator is not None:
            raise BackendError("The graph holds its mask.", "Export it with --mask input.")
        if self.sense != (maps is not None):
            raise BackendError(
                "The network combines coils and was given no sensitivities."
                if self.sense
                else "The network takes one image and was given coil sensitivities.",
                "Multi-coil scans go to networks of the kind dccnn-d3c5-sense, others do not.",
            )
        return given if maps is None else [*given, self._fitting(maps)]

    def _fitting(self, maps: Array) -> Array:
        """Fill a fixed number of coils up: a coil without sensitivity changes nothing.

        Networks of k-space may make something of a coil without samples, which an export finds out.
        """
        if self.coils is None or maps.shape[1] == self.coils:
            return np.ascontiguousarray(maps)
        missing = self.coils - maps.shape[1]
        if missing < 0:
            raise BackendError(
                f"The graph takes {self.coils} coils, the scan has {maps.shape[1]}.",
                f"Compress the scan to {self.coils} coils, or export the network with"
                f" `kdmri-edge export --coils {maps.shape[1]}`.",
            )
        if missing and not self.blank_coils:
            raise BackendError(
                f"The graph takes {self.coils} coils, the scan has {maps.shape[1]}, and this"
                " network gives another image where coils without samples are added.",
                f"Export it with `kdmri-edge export --coils {maps.shape[1]}`.",
            )
        padding = np.zeros((len(maps), missing, *maps.shape[2:]), np.float32)
        return np.concatenate((maps, padding), 1)

    @abstractmethod
    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct normalised zero-filled images.

        Args:
            x_u: [B, C, H, W] float32; for a network of k-space that, [B, coils, 2, H, W].
            operator: Constant of data consistency of another mask than the graph's own, float32,
                see `operator_for`; None for its own.
            maps: Sensitivities of the coils, float32 [B, coils, 2, H, W], for a network that
                combines coils.

        Returns:
            Images [B, C, H, W] float32, of the channels that were given; for a network of k-space
            magnitudes, [B, 1, H, W].

        Raises:
            BackendError: The graph is made for another shape, or see `inputs`.
        """

    def run_all(
        self,
        batches: Sequence[Array],
        *,
        operator: Array | None = None,
        maps: Sequence[Array] | None = None,
    ) -> list[Array]:
        """Reconstruct several batches that lie ready; a runtime may work on some at a time.

        Args:
            batches: Inputs of `run`.
            operator: That of `run`, for all of them.
            maps: Those of each batch, for a network that combines coils.

        Returns:
            What `run` gives for each, in their order.

        Raises:
            BackendError: See `run`.
        """
        many: Sequence[Array | None] = [None] * len(batches) if maps is None else maps
        return [
            self.run(batch, operator=operator, maps=own)
            for batch, own in zip(batches, many, strict=True)
        ]

    def profile(
        self, x_u: Array, *, maps: Array | None = None, queries: int, warmup: int
    ) -> list[LayerTime]:
        """Say what each layer takes, of a session that was opened with `profiling=True`.

        To note it slows the layers, so that the sum says nothing of how long `run` takes.

        Args:
            x_u: Input of `run`.
            maps: That of `run`.
            queries: How many to take the median of.
            warmup: Queries before these, which do not count.

        Returns:
            The layers in the order in which they run.

        Raises:
            BackendError: The runtime does not tell, or the session was not opened for it; see
                `run`.
        """
        raise no_profile(self.info.backend)


def no_profile(backend: str) -> BackendError:
    """Return the error of a session that cannot tell what its layers take."""
    return BackendError(
        f"This session of {backend} does not tell what its layers take.",
        "Open an exported network in OpenVINO or ONNX Runtime with profiling=True.",
    )


def _check_operator(operator: Array, x_u: Array) -> None:
    """Refuse an operator of another matrix than the images', before the runtime does."""
    _, channels, height, width = x_u.shape
    # P of one or two channels, or the mask, of lines or of single samples
    if operator.shape not in ((channels * height,) * 2, (height, 1), (height, width)):
        raise BackendError(
            f"The operator is {list(operator.shape)}, of another matrix than the images'"
            f" {height} x {width}.",
            "Give the operator of the scan's own mask.",
        )


def check_precision(wanted: str, offered: tuple[str, ...], backend: str) -> None:
    """Refuse a precision that a backend does not have.

    Raises:
        BackendError: It is not among those offered.
    """
    if wanted not in offered:
        raise BackendError(
            f"{backend} has no precision {as_users_write(wanted)!r}.",
            f"It has {as_users_write(', '.join(offered))}.",
        )


def check_graph_precision(wanted: str, written: str, graph: Path) -> None:
    """Refuse to run a quantised graph as anything else, and anything else as a quantised one.

    Raises:
        BackendError: They differ in that.
    """
    if (wanted == "int8") != (written == "int8"):
        raise BackendError(
            f"{graph} is written in {as_users_write(written)}, so it cannot run in"
            f" {as_users_write(wanted)}.",
            "Export the network with `kdmri-edge export --precision int8` for int8, and with fp32"
            " for others.",
        )


def open_session(
    source: Path,
    *,
    backend: str | None = None,
    mask: Mask | None = None,
    any_matrix: bool = False,
    precision: str | None = None,
    threads: int | None = None,
    keys: Sequence[PublicKey] = (),
    **options: Any,
) -> Session:
    """Open a bundle in a runtime, or a checkpoint in PyTorch.

    Args:
        source: A bundle's folder, or a .safetensors checkpoint.
        backend: Key of `BACKENDS`; None takes the one that the bundle is made for. Checkpoints run
            on "torch" and, in halves, on "cuda".
        mask: Another mask than the bundle's own, for a bundle that takes masks as an input.
        any_matrix: Take any matrix and mask; a bundle has to be exported so.
        precision: One of those that the backend has, "fp16" or "f16"; None takes what the bundle
            was exported for. A graph of float16 or int8 has no other.
        threads: CPU threads of the runtime, and from now on of this process's linear algebra; None
            leaves the libraries' choice.
        keys: One of these has to have signed the bundle; empty asks for no signature.
        **options: Passed to the session, e.g. `layout="default"` for PyTorch.

    Raises:
        BackendError: A backend that does not take the graph, or a precision that is not to be had
            here.
        BundleError: The bundle is not intact, or not signed as it should be.
        CheckpointError: The checkpoint is not intact.
        MissingExtraError: The runtime is not installed.
    """
    if is_checkpoint(source):
        if keys:
            raise no_bundle(source)
        require("torch", extra="train")
        offered: tuple[str, ...] = RUN_CHECKPOINTS
        graph, written = source, "f32"
        fused = backend == _FUSED
        import_string, usual = (BACKENDS[_FUSED].session, "f16") if fused else (_EAGER, written)
    else:
        bundle = open_bundle(source, keys=keys)
        offered, graph = bundle.target.runs_on, bundle.graph
        written, usual = bundle.written, bundle.meant_for
        import_string = BACKENDS[backend if backend in offered else offered[0]].session
    if backend not in (None, *offered):
        raise not_on(source, offered, backend)
    precision = usual if precision is None else PRECISIONS.get(precision, precision)
    if (
        not is_checkpoint(source)
        and precision != written
        and ("f16" in (precision, written) or written == "bf16")
    ):
        raise BackendError(
            f"{source} is written in {as_users_write(written)}, not in"
            f" {as_users_write(precision)}.",
            "Export the network in that precision.",
        )
    if written in _HALVES and not is_checkpoint(source):
        precision = "f32"  # what is computed around its halves
    if not is_checkpoint(source):
        check_graph_precision(precision, written, graph)
        if any_matrix and bundle.free is None:
            raise BackendError(
                f"{source} is made for {bundle.manifest['matrix']} x {bundle.manifest['matrix']}"
                " alone.",
                "Export the network with `kdmri-edge export --matrix any`.",
            )
    bound_threads(threads)
    make = load_attribute(import_string)
    with own_copy(bundle) if keys else contextlib.nullcontext() as copy:
        session: Session = make(
            graph if copy is None else copy / graph.name,
            precision=precision,
            threads=threads,
            **options,
        )
        if copy is not None:  # runtimes may have mapped its files, or read them again later
            weakref.finalize(session, shutil.rmtree, copy.parent, ignore_errors=True)
    session.written = written
    if not is_checkpoint(source):
        session.bundle, session.folder = bundle, copy or source
        session.operator = operator_of(bundle, mask)
        session.sense, session.coils = bundle.takes_maps, bundle.fixed_coils
        session.kspace, session.blank_coils = bundle.reads_kspace, bundle.takes_blank_coils
        session.free, session.transforms = bundle.free, bundle.transforms
    elif any_matrix:
        meta = read_checkpoint_meta(source)
        if described_spec(meta).reads is InputKind.KSPACE:
            raise BackendError(
                f"{source} reads k-space, and holds its mask and matrix.", "Leave --matrix any out."
            )
        session.free = FreeSizes()
        session.operator = operator_like(meta, mask or Mask.from_dict(meta["mask"]))
    elif mask is not None:
        raise BackendError(
            f"{source} is a checkpoint, which runs with its own mask.",
            "Export it with `kdmri-edge export --mask input`.",
        )
    return session


@contextlib.contextmanager
def own_copy(bundle: Bundle) -> Iterator[Path]:
    """Copy a signed bundle to where nobody else can write, and compare its hashes there.

    Whoever can write to the bundle's folder could exchange a file between its check and the moment
    when the runtime reads it.

    Yields:
        The copy, in a folder of its own. That folder is removed only where something is raised
        meanwhile; what is raised then speaks of the bundle that the user named.

    Raises:
        BundleError: A file has changed since it was checked.
        OutputError: There is no room for it.
    """
    place = Path(tempfile.mkdtemp(prefix="kdmri-edge-"))  # of mode 700
    copy = place / "bundle"
    try:
        with writing(copy):
            shutil.copytree(bundle.path, copy, symlinks=True)
        check_files(copy, bundle.manifest, engines=False)
        yield copy
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, KdmriError):
            error.what, error.remedy = (
                text.replace(str(copy), str(bundle.path)) for text in (error.what, error.remedy)
            )
            error.args = (f"{error.what} {error.remedy}".strip(),)
        raise


def operator_of(bundle: Bundle, mask: Mask | None = None) -> Array | None:
    """Return the constant of data consistency that a bundle takes as an input, None if it holds it.

    Args:
        bundle: The bundle.
        mask: Another mask than its own.

    Raises:
        BackendError: The bundle holds its mask, and another one is asked for.
        MaskError: The mask is of another matrix, or does not suit the form of data consistency.
    """
    if not bundle.manifest.get("mask_input"):
        # a network of any matrix without data consistency has no use for masks, and takes all
        if mask not in (None, bundle.mask) and bundle.free is None:
            raise BackendError(
                f"{bundle.path} is made for mask {bundle.mask.name!r} alone.",
                "Export the network with `kdmri-edge export --mask input`.",
            )
        return None
    chosen = mask or bundle.mask
    if bundle.free is None:
        chosen.check_matrix(*bundle.manifest["io"]["input"]["shape"][2:])
    return operator_like(bundle.manifest, chosen)


def operator_like(meta: Mapping[str, Any], mask: Mask) -> Array | None:
    """Return a network's constant of data consistency for a mask of its kind.

    Args:
        meta: A bundle's manifest, or the metadata of a checkpoint.
        mask: Of any matrix.

    Returns:
        float32; None for a network that has no data consistency.

    Raises:
        MaskError: The mask does not suit the form of data consistency.
    """
    own, spec = Mask.from_dict(meta["mask"]), described_spec(meta)
    if not spec.has_data_consistency:
        return None
    if mask.is_lines != own.is_lines:
        raise MaskError(
            f"Mask {mask.name!r} and the network's {own.name!r} are not of one kind.",
            "A graph made for line masks takes line masks; export one for the other kind.",
        )
    form = choose_form(mask, str(meta.get("dc", "auto")))
    if spec.coils:
        return sense_operator_array(mask, form, any_mask=True).astype(np.float32)
    return operator_array(mask, form, spec.channels).astype(np.float32)


def not_on(what: object, offered: Sequence[str], backend: str | None) -> BackendError:
    """Return the error of a network that a backend does not take.

    Args:
        what: The network, as the user named it.
        offered: The backends that take it.
        backend: The one that was asked for.
    """
    return BackendError(f"{what} runs on {' or '.join(offered)}, not on {backend!r}.",
                        _remedy(backend))  # fmt: skip


def _remedy(backend: str | None) -> str:
    from kdmri_edge.runtime.targets import TARGETS

    rows = [target for target in TARGETS.values() if backend in target.runs_on]
    # several backends take ONNX files; the target that is made for the one asked for comes first
    fitting = [row.name for row in sorted(rows, key=lambda row: row.runs_on.index(str(backend)))]
    if backend == _FUSED:
        return f"Backend {_FUSED} makes its kernels of a checkpoint: give that."
    if not fitting:
        return f"Backends are {', '.join(BACKENDS)}."
    return f"Export it for that one: `kdmri-edge export --target {fitting[0]}`."


def _check_images(made: Array, given: Array) -> None:
    """Refuse what is no image of the input, as a graph of another origin may give it."""
    batch, channels, *_ = given.shape
    wanted = (batch, 1 if given.ndim == _OF_KSPACE else channels, *given.shape[-2:])
    if made.shape != wanted or made.dtype.kind != "f":
        raise BackendError(
            f"The graph gives {list(made.shape)} in {made.dtype}, and has to give images"
            f" {list(wanted)} in float32.",
            "Export the network again.",
        )


def reconstruct(
    session: Session,
    zero_filled: NDArray[Any],
    batch: int = 1,
    advance: Callable[[int], None] | None = None,
    maps: NDArray[np.complex64] | None = None,
    operator: Array | None = None,
    kspace: NDArray[np.complex64] | None = None,
) -> NDArray[Any]:
    """Reconstruct a volume slice by slice, scaling each one by its own zero-filled data.

    Args:
        session: The network.
        zero_filled: [S, H, W], any unit; complex for a network with two channels.
        batch: Slices per call of the network; a graph with a fixed batch of one needs 1.
        advance: Called with the number of slices that each call has finished.
        maps: Coil sensitivities [S, coils, H, W], for a network that combines coils; see
            `runtime.inputs.slice_input`.
        operator: See `Session.run`.
        kspace: What the coils measured, [S, coils, H, W], for a network of k-space.

    Returns:
        Images [S, H, W] in the same unit, float32 or complex64; zero where all maps are, and for a
        slice without a sample.

    Raises:
        DataError: Not [S, H, W], values that are not finite, a batch below 1, or maps or k-space
            of other slices or another matrix.
        BackendError: The network is made for another matrix, batch or number of channels, or gives
            no images of these.
    """
    if batch < 1:
        raise DataError(f"A batch of {batch} slices makes no sense.", "Use 1 or more.")
    scale = slice_scale(zero_filled)
    for name, coils in (("Coil sensitivities are", maps), ("K-space is", kspace)):
        if coils is None:
            continue
        if coils.ndim != 4 or (len(coils), *coils.shape[-2:]) != zero_filled.shape:
            raise DataError(
                f"{name} {list(coils.shape)}, the images {list(zero_filled.shape)}.",
                "Give what belongs to coils as [slices, coils, height, width].",
            )
    x_u = network_input(zero_filled, scale) if kspace is None else network_kspace(kspace, scale)
    calls = []
    for start in range(0, len(x_u), batch):
        part = slice(start, start + batch)
        given = None if maps is None else network_maps(maps[part])
        calls.append(session.run(x_u[part], operator=operator, maps=given))
        _check_images(calls[-1], x_u[part])
        if advance is not None:
            advance(len(calls[-1]))
    image = network_image(np.concatenate(calls), scale)
    if maps is not None:  # where no coil receives, data consistency says nothing, and nothing came
        image *= maps.any(1)
    if kspace is not None:  # a network that normalises by the data gives NaN for none
        image[~kspace.any((1, 2, 3))] = 0
    return image
