"""Which network serves a scan: the one that a server holds, or one of many bundles.

Bundles are chosen by what their manifests say, before any of them is loaded. A network is loaded
when its first slice comes; those that were not used for longest make room for others, and are
closed once no slice is with them any more.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast

from numpy.typing import NDArray

from kdmri_edge.errors import BundleError, CheckpointError, KdmriError, RecipeError
from kdmri_edge.models.checkpoint import is_checkpoint, read_checkpoint_meta
from kdmri_edge.models.protocol import InputKind, reads_coils
from kdmri_edge.mrd.server.rules import RULES, Rule, ScanFacts, Site, read_rules, read_site
from kdmri_edge.mrd.server.telemetry import log_event
from kdmri_edge.physics.combining import LEAST_CENTRE
from kdmri_edge.physics.espirit import FEWEST
from kdmri_edge.runtime.bundle import MANIFEST, open_bundle
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.certificate import Policies, Policy
from kdmri_edge.runtime.inputs import InputSpec, read_input_spec
from kdmri_edge.runtime.networks import backend_at_hand, where_it_runs
from kdmri_edge.runtime.pipeline import Outcome, Pipeline, SliceReconstructor, zero_filled_magnitude
from kdmri_edge.runtime.scope import TrainedFor, trained_for
from kdmri_edge.utils.files import damaged, sha256_file
from kdmri_edge.utils.keys import PublicKey
from kdmri_edge.utils.memory import give_memory_back

__all__ = [
    "Candidate",
    "Chooser",
    "ImageFacts",
    "ManyNetworks",
    "OneNetwork",
    "Served",
    "ServedImage",
    "Serving",
    "Tried",
    "bundles_in",
    "candidate",
    "choose",
    "find_candidates",
    "many_networks",
    "site_of",
    "warn_of_scope",
]

_NO_FIT: Final = "No bundle of this server fits the scan"
_WHOLE: Final = "The scan is fully sampled, and no bundle of this server is made for that"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """What serves slices of one kind.

    Attributes:
        network: What reconstructs them; None where no bundle fits.
        name: The bundle's name; None for a server of one network, and where none fits.
        why: Why it was chosen, or why none was; empty for a server of one network.
        others: Why each of the others was not, by name.
    """

    network: SliceReconstructor | None
    name: str | None = None
    why: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """All of it in a sentence; empty for a server of one network."""
        if not self.why:
            return ""
        served = self.why if self.name is None else f"Reconstructed by {self.name} ({self.why})"
        others = "; ".join(f"{name}: {reason}" for name, reason in self.others.items())
        if self.name is None:
            return f"{served}: {others}."
        return f"{served}. Not by others: {others}." if others else f"{served}."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tried:
    """A network that a health check tries.

    Attributes:
        name: Of the bundle.
        reads: What it has to be given.
        network: What reconstructs.
    """

    name: str
    reads: InputSpec
    network: SliceReconstructor


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What is known of an image that a client sends.

    Attributes:
        matrix: (H, W).
        complex: Whether it has phase.
        undersample: Whether it is fully sampled, and a network's mask is tried on it.
    """

    matrix: tuple[int, int]
    complex: bool
    undersample: bool = False


class ImageReconstructor(Protocol):
    """What the server calls for every image that a client sends; one thread at a time."""

    def reconstruct_image(self, image: NDArray[Any], *, undersample: bool = False) -> Outcome:
        """Return the image of an image, see `Pipeline.reconstruct_image`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServedImage:
    """What reconstructs an image that a client sends.

    Attributes:
        network: None where no bundle takes it.
        name: The bundle's name; None where none takes it.
        why: Why it was chosen, or why none was; empty for a server of one network.
    """

    network: ImageReconstructor | None
    name: str | None = None
    why: str = ""


class Serving(Protocol):
    """Chooses for one scan, from its first slice to its last."""

    takes_images: bool

    def of_image(self, image: ImageFacts) -> ServedImage:
        """Return what reconstructs an image of a scan."""

    def of(self, scan: ScanFacts) -> Served:
        """Return what serves a slice of a scan."""


class Chooser(Protocol):
    """What a server holds."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the bundles."""

    def choice(self) -> Serving:
        """Return what chooses for a scan that begins now."""

    def tried(self) -> Tried | None:
        """Return what a health check tries; None where nothing tells what it reads."""

    def reload(self) -> None:
        """Look again for what there is; scans that run keep what they began with."""


class OneNetwork:
    """A server of one network: it gets every slice.

    Args:
        network: What reconstructs.
        name: What it is called.
    """

    def __init__(self, network: SliceReconstructor, name: str = "") -> None:
        self._served = Served(network=network)
        self._network, self._name = network, name
        reads: InputSpec | None = getattr(network, "reads", None)
        self.takes_images = reads is not None and not reads_coils(reads.spec)

    @property
    def names(self) -> Sequence[str]:
        """Its name."""
        return (self._name,) if self._name else ()

    def tried(self) -> Tried | None:
        """Return the one network, where it says what it reads."""
        reads = getattr(self._network, "reads", None)
        if reads is None:
            return None
        return Tried(name=self._name, reads=reads, network=self._network)

    def choice(self) -> Serving:
        """Return itself."""
        return self

    def of(self, scan: ScanFacts) -> Served:
        """Return the one network, which says itself what it does not take."""
        return self._served

    def of_image(self, image: ImageFacts) -> ServedImage:
        """Return the one network, where it reads images."""
        network = cast(ImageReconstructor, self._network) if self.takes_images else None
        return ServedImage(network=network, name=self._name or None)

    def reload(self) -> None:
        """Keep the network."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """A bundle, or a checkpoint, that may serve scans.

    Attributes:
        name: What rules and messages call it.
        path: Where it is.
        sha256: Of its manifest, which accounts for all its files, or of the checkpoint.
        reads: What it has to be given.
        takes_masks: Whether it serves every mask of lines.
        trained: What it was trained for; None where it takes its own mask and matrix alone.
    """

    name: str
    path: Path
    sha256: str
    reads: InputSpec
    takes_masks: bool
    trained: TrainedFor | None

    def refusal(self, scan: ScanFacts) -> str | None:
        """Say why it cannot reconstruct a scan; None where it can."""
        reads = self.reads
        if reads.free is not None:
            try:
                reads.free.check(*scan.matrix)
            except KdmriError as error:
                return error.what
        elif scan.matrix != reads.matrix:
            return f"it is made for {reads.matrix[0]} x {reads.matrix[1]}"
        if self.takes_masks and reads.spec.has_data_consistency and not reads.mask.is_lines:
            return "it is made for masks of single samples"
        if not self.takes_masks and scan.mask != reads.mask:
            lines = int(reads.mask.samples.sum())
            return f"it is made for mask {reads.mask.name!r} of {lines} samples"
        return self._centre(scan)

    def image_refusal(self, image: ImageFacts) -> str | None:
        """Say why it cannot reconstruct an image that a client sends; None where it may."""
        reads = self.reads
        if reads_coils(reads.spec):
            return "it is made for k-space of several coils"
        if image.undersample and not (image.complex and reads.spec.has_data_consistency):
            return "it cannot be tried on that image"
        if not image.complex and not reads.spec.magnitude_input:
            return "it is made for k-space or complex images"
        if reads.free is None and image.matrix != reads.matrix:
            return f"it is made for {reads.matrix[0]} x {reads.matrix[1]}"
        return None

    def _centre(self, scan: ScanFacts) -> str | None:
        """Say what of the centre of k-space it misses, to estimate the coils' sensitivities."""
        if self.reads.spec.coils:
            needed = FEWEST
        elif self.reads.spec.reads is InputKind.KSPACE or scan.coils == 1:
            return None
        else:
            needed = LEAST_CENTRE
        if scan.centre >= min(needed, scan.matrix[0]):
            return None
        return (
            f"it needs {needed} lines without a gap around zero frequency, and there are"
            f" {scan.centre}"
        )

    def beyond(self, scan: ScanFacts) -> tuple[str, ...]:
        """Say what of a scan it was not trained for, in sentences."""
        return () if self.trained is None else self.trained.beyond(scan.mask, *scan.matrix)

    def unlike(self, scan: ScanFacts) -> tuple[int, str]:
        """Return how little its kind of input suits a scan's coils, 0 for best, and why."""
        spec = self.reads.spec
        if spec.coils or spec.reads is InputKind.KSPACE:
            return int(scan.coils == 1), "it is made for several coils"
        if spec.channels == 2:
            return int(scan.coils > 1), "it reads one image of combined coils"
        return 2, "it reads images without phase"

    @property
    def facts(self) -> dict[str, object]:
        """What of it is logged."""
        free = self.reads.free is not None
        return {
            "name": self.name,
            "matrix": "any" if free else list(self.reads.matrix),
            "mask": "any" if self.takes_masks else self.reads.mask.name,
            "channels": self.reads.spec.channels,
        }


def choose(
    candidates: Sequence[Candidate], rules: Sequence[Rule], scan: ScanFacts
) -> tuple[Candidate | None, str, dict[str, str]]:
    """Choose who serves a scan: by the first rule that holds, else by fit.

    Of the candidates that can, those come first that were trained for such a scan; of these, those
    whose kind of input suits its coils; then those made for its very mask alone; then in their
    order.

    Returns:
        The candidate, None where none can; why; and why each of the others is not, by name.
    """
    refusals = {one.name: one.refusal(scan) for one in candidates}
    fitting = [one for one in candidates if refusals[one.name] is None]
    others = {name: reason for name, reason in refusals.items() if reason is not None}
    for number, rule in enumerate(rules, 1):
        if not rule.holds(scan):
            continue
        for one in fitting:
            if one.name == rule.bundle:
                why = f"rule {number}"
                left = {o.name: f"{why} names {one.name}" for o in fitting if o is not one}
                return one, why, others | left
        others[rule.bundle] = f"rule {number} names it, but {others[rule.bundle]}"
    if not fitting:
        return None, _WHOLE if scan.mask.samples.all() else _NO_FIT, others

    def place(one: Candidate) -> tuple[int, int, int, int]:
        beyond = len(one.beyond(scan))
        return int(beyond > 0), one.unlike(scan)[0], beyond, int(one.takes_masks)

    ranked = sorted(fitting, key=place)
    best = ranked[0]
    for one in ranked[1:]:
        others[one.name] = _behind(one, best, scan)
    return best, "it fits best", others


def _behind(one: Candidate, best: Candidate, scan: ScanFacts) -> str:
    """Say why a candidate that can is not the best one."""
    beyond = one.beyond(scan)
    if beyond and not best.beyond(scan):
        return beyond[0].rstrip(".")
    if one.unlike(scan)[0] > best.unlike(scan)[0]:
        return one.unlike(scan)[1]
    if len(beyond) > len(best.beyond(scan)):
        return beyond[-1].rstrip(".")
    if one.takes_masks and not best.takes_masks:
        return "it serves any mask, and is not made for this one alone"
    return "it fits as well, and comes later"


def candidate(
    name: str, path: Path, *, any_matrix: bool = False, keys: Sequence[PublicKey] = ()
) -> Candidate:
    """Read what a bundle or a checkpoint takes; its hashes are compared when it is loaded.

    Raises:
        BundleError: The bundle is not intact, or not signed as it should be.
        CheckpointError: The checkpoint is not intact.
    """
    bundle = None if is_checkpoint(path) else open_bundle(path, verify=False, keys=keys)
    reads = read_input_spec(path, any_matrix=any_matrix, bundle=bundle)
    if bundle is None:
        meta: Mapping[str, Any] = read_checkpoint_meta(path)
        takes, hashed = any_matrix, path
    else:
        meta, hashed = bundle.manifest, path / MANIFEST
        takes = bool(meta.get("mask_input")) or bundle.free is not None
    with damaged(path, CheckpointError if is_checkpoint(path) else BundleError):
        trained = trained_for(meta) if takes else None
    return Candidate(
        name=name, path=path, sha256=sha256_file(hashed), reads=reads, takes_masks=takes,
        trained=trained,
    )  # fmt: skip


def bundles_in(folder: Path) -> list[Path]:
    """Return the bundles of a folder, by name; empty where it is a bundle, a run, or holds none."""
    if not folder.is_dir() or any((folder / name).is_file() for name in (MANIFEST, "run.json")):
        return []
    found = (place.parent for place in folder.glob(f"*/{MANIFEST}"))
    # a hidden one is on its way to its name
    return sorted(place for place in found if not place.name.startswith("."))


def find_candidates(
    sources: Sequence[tuple[str, Path]],
    *,
    rules: Path | None = None,
    any_matrix: bool = False,
    keys: Sequence[PublicKey] = (),
) -> tuple[list[Candidate], tuple[Rule, ...]]:
    """Read bundles and rules.

    Args:
        sources: Names and places of bundles, in their order.
        rules: File of rules; None for none.
        any_matrix: See `candidate`.
        keys: One of these has to have signed each bundle; empty asks for no signatures.

    Raises:
        BundleError: Two bundles of one name, or a rule for one that is not there.
        KdmriError: See `candidate` and `read_rules`.
    """
    found: dict[str, Candidate] = {}
    for name, path in sources:
        if name in found:
            raise BundleError(
                f"{path} and {found[name].path} are both called {name!r}.",
                "Rename the folder of one of them.",
            )
        found[name] = candidate(name, path, any_matrix=any_matrix, keys=keys)
    read = () if rules is None else read_rules(rules)
    for number, rule in enumerate(read, 1):
        if rule.bundle not in found:
            raise BundleError(
                f"Rule {number} of {rules} names the bundle {rule.bundle!r}, which is not there.",
                f"Bundles are {', '.join(found)}.",
            )
    return list(found.values()), read


def _rules_of(places: Sequence[Path], rules: Path | None) -> Path | None:
    """Return the file of rules: the one that is named, or that of the folders.

    Raises:
        RecipeError: Several folders have one.
    """
    found = [place / RULES for place in places if bundles_in(place) and (place / RULES).is_file()]
    if rules is None and len(found) > 1:
        raise RecipeError(f"{found[0]} and {found[1]} both hold rules.", "Name one with --rules.")
    return rules or next(iter(found), None)


def site_of(places: Sequence[Path], rules: Path | None) -> Site:
    """Return what the file of rules says, see `many_networks`.

    Raises:
        RecipeError: See `read_site`; or several folders have one.
    """
    file = _rules_of(places, rules)
    return Site() if file is None else read_site(file)


def many_networks(
    places: Sequence[Path],
    *,
    rules: Path | None = None,
    backend: str | None = None,
    precision: str | None = None,
    any_matrix: bool = False,
    threads: int | None = None,
    loaded: int = 4,
    policies: Policies | None = None,
    keys: Sequence[PublicKey] = (),
) -> ManyNetworks:
    """Return what serves the bundles of folders, and whatever else may stand for a network.

    Args:
        places: Bundles, folders of bundles, checkpoints, runs or names of the package's networks.
        rules: File of rules; None takes `serve.toml` in a folder of bundles, where there is one.
        backend: Runtime; None takes the first that is installed, for each bundle.
        precision: See `Pipeline`.
        any_matrix: Have checkpoints take any matrix.
        threads: CPU threads, of all networks together.
        loaded: How many are kept in memory at once.
        policies: What becomes of slices that are not known to be inside a network's scope; None
            flags them.
        keys: See `find_candidates`.

    Raises:
        KdmriError: See `find_candidates` and `where_it_runs`.
    """
    chosen = policies or Policies()
    began = site_of(places, rules)

    def find() -> tuple[list[Candidate], tuple[Rule, ...]]:
        if replace(site_of(places, rules), rules=()) != replace(began, rules=()):
            log_event("restart-needed", logging.WARNING,
                      reason="Keys and policies of the file of rules count from the next start on.",
                      )  # fmt: skip
        sources: list[tuple[str, Path]] = []
        for place in places:
            inside = bundles_in(place)
            sources += [(bundle.name, bundle) for bundle in inside]
            if not inside:
                source, name = where_it_runs(
                    place, backend=backend, precision=precision, any_matrix=any_matrix,
                    signed=bool(keys),
                )  # fmt: skip
                sources.append((name, source))
        return find_candidates(
            sources, rules=_rules_of(places, rules), any_matrix=any_matrix, keys=keys
        )

    def load(one: Candidate) -> Pipeline:
        pipeline = Pipeline(
            one.path,
            backend=backend or backend_at_hand(one.path),
            any_matrix=any_matrix and one.reads.free is not None,
            precision=precision,
            threads=threads,
            sharing=True,
            out_of_scope=chosen.outside,
            unknown_scope=chosen.unknown,
            keys=keys,
        )
        pipeline.warm_up()
        info = pipeline.session.info
        log_event("loaded", bundle=one.name, backend=info.backend, version=info.version,
                  provider=info.provider, threads=info.threads)  # fmt: skip
        warn_of_scope(one.name, pipeline.uncalibrated, chosen)
        return pipeline

    return ManyNetworks(find, load, loaded=loaded)


def warn_of_scope(name: str, uncalibrated: str | None, policies: Policies) -> None:
    """Log what becomes of all images of a network without a calibration, where that is a surprise.

    Args:
        name: Of the bundle.
        uncalibrated: Why its calibration is not there; None where it is.
        policies: What the site chose.
    """
    unknown = policies.of(None)
    if uncalibrated is None or policies.outside is unknown is Policy.FLAG:
        return
    said = {
        Policy.FLAG: "What its header does not show to be outside the scope is sent.",
        Policy.ZERO_FILLED: "Zero-filled images are sent in place of all of its images.",
        Policy.REFUSE: "None of its images is sent.",
    }[unknown]
    log_event("scope-unknown", logging.WARNING, bundle=name, policy=str(policies.outside),
              unknown=str(unknown), reason=f"{uncalibrated} {said}")  # fmt: skip


class ManyNetworks:
    """A server of many bundles.

    Args:
        find: Returns candidates and rules, at the start and whenever it is told to look again.
        load: Opens a candidate.
        loaded: How many networks are kept in memory at once.

    Raises:
        KdmriError: See `find`.
    """

    def __init__(
        self,
        find: Callable[[], tuple[list[Candidate], tuple[Rule, ...]]],
        load: Callable[[Candidate], Pipeline],
        *,
        loaded: int = 4,
    ) -> None:
        self._find, self._load, self._most = find, load, loaded
        self._networks: OrderedDict[_Loading, Pipeline] = OrderedDict()
        self._reloading, self._loading = threading.Lock(), threading.Lock()
        self._lent: Counter[Pipeline] = Counter()  # slices that are with each
        self._leaving: set[Pipeline] = set()  # not kept any more
        self._counting = threading.Lock()  # of both
        self._last: _Loading | None = None
        self._now = _Candidates(*find(), networks={}, lend=self._lend)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """What scans that begin now may be served by."""
        return self._now.candidates

    @property
    def names(self) -> Sequence[str]:
        """Names of the bundles."""
        return tuple(one.name for one in self.candidates)

    def tried(self) -> Tried | None:
        """Return the network that was used last, so that a check puts none out; else the first."""
        network = self._last or next(iter(self._now.networks.values()), None)
        if network is None:
            return None
        one = network.candidate
        return Tried(name=one.name, reads=one.reads, network=network)

    def choice(self) -> Serving:
        """Return what chooses for a scan that begins now."""
        return self._now

    def reload(self) -> None:
        """Look again for bundles and rules; what is wrong with them is logged, and changes nothing.

        Bundles that are as they were stay loaded. Scans that run keep what they began with.
        """
        with self._reloading:
            try:
                candidates, rules = self._find()
            except KdmriError as error:
                log_event("not reloaded", logging.ERROR, reason=str(error))
                return
            self._now = _Candidates(candidates, rules, networks=self._now.networks, lend=self._lend)
        log_event("reloaded", bundles=[one.facts for one in candidates], rules=len(rules))

    @contextmanager
    def _lend(self, network: _Loading) -> Iterator[Pipeline | None]:
        """Lend a network, which is loaded now if it is not; None where it cannot be."""
        with self._loading:
            self._last = network
            pipeline = self._loaded(network)
            if pipeline is not None:
                self._count(pipeline, 1)
        try:
            yield pipeline
        finally:
            if pipeline is not None:
                self._count(pipeline, -1)

    def _loaded(self, network: _Loading) -> Pipeline | None:
        if network in self._networks or network.broken is not None:
            if network.broken is None:
                self._networks.move_to_end(network)
            return self._networks.get(network)
        while len(self._networks) >= self._most:
            left, pipeline = self._networks.popitem(last=False)
            self._count(pipeline, 0, leaves=True)
            del pipeline
            give_memory_back()
            log_event("unloaded", bundle=left.candidate.name)
        try:
            self._networks[network] = self._load(network.candidate)
        except KdmriError as error:
            network.broken = error.what
            log_event("not loaded", logging.ERROR, bundle=network.candidate.name,
                      reason=str(error))  # fmt: skip
        return self._networks.get(network)

    def _count(self, pipeline: Pipeline, more: int, *, leaves: bool = False) -> None:
        """Count the slices that are with a network, and close it where it leaves with the last."""
        with self._counting:
            self._lent[pipeline] += more
            if leaves:
                self._leaving.add(pipeline)
            idle = pipeline in self._leaving and not self._lent[pipeline]
            if idle:
                self._leaving.remove(pipeline)
                del self._lent[pipeline]
        if idle:
            pipeline.close()


class _Loading:
    """A candidate that is loaded when its first slice comes.

    Args:
        one: The candidate.
        lend: Lends what is loaded of it.

    Attributes:
        broken: Why it cannot be loaded, which is not tried again before a reload.
    """

    def __init__(self, one: Candidate, lend: _Lend) -> None:
        self.candidate = one
        self._lend = lend
        self.broken: str | None = None

    def reconstruct(self, kspace: Any, *rest: Any) -> Outcome:
        """Reconstruct a slice, see `Pipeline.reconstruct`."""
        with self._lend(self) as pipeline:
            if pipeline is not None:
                return pipeline.reconstruct(kspace, *rest)
        return Outcome(
            image=zero_filled_magnitude(kspace), fallback=self.broken, cause=Cause.NOT_LOADED
        )

    def reconstruct_image(self, image: NDArray[Any], *, undersample: bool = False) -> Outcome:
        """Reconstruct an image, see `Pipeline.reconstruct_image`."""
        with self._lend(self) as pipeline:
            if pipeline is not None:
                return pipeline.reconstruct_image(image, undersample=undersample)
        return Outcome(image=image, fallback=self.broken, cause=Cause.NOT_LOADED)


_Lend: TypeAlias = Callable[[_Loading], AbstractContextManager[Pipeline | None]]


class _Candidates:
    """Candidates and rules as they were at one time.

    Args:
        candidates: In their order.
        rules: In their order.
        networks: Networks of an earlier choice, of which those of unchanged bundles are taken over,
            but for those that could not be loaded: their files may be whole again, which the hash
            of the manifest does not tell.
        lend: See `_Loading`.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        rules: Sequence[Rule],
        *,
        networks: Mapping[tuple[str, Path, str], _Loading],
        lend: _Lend,
    ) -> None:
        self.candidates, self._rules = candidates, rules
        self.takes_images = not all(reads_coils(one.reads.spec) for one in candidates)
        kept = {key: network for key, network in networks.items() if network.broken is None}
        self.networks = {
            key: kept.get(key) or _Loading(one, lend)
            for one in candidates
            for key in [(one.name, one.path, one.sha256)]
        }

    def of_image(self, image: ImageFacts) -> ServedImage:
        """Choose the first that takes an image."""
        reasons = {one.name: one.image_refusal(image) for one in self.candidates}
        for one in self.candidates:
            if reasons[one.name] is None:
                network = self.networks[one.name, one.path, one.sha256]
                return ServedImage(network=network, name=one.name, why="the first that takes it")
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        return ServedImage(network=None, why=f"No bundle of this server takes the image: {listed}.")

    def of(self, scan: ScanFacts) -> Served:
        """Choose for a slice."""
        best, why, others = choose(self.candidates, self._rules, scan)
        if best is None:
            return Served(network=None, why=why, others=others)
        network = self.networks[best.name, best.path, best.sha256]
        return Served(network=network, name=best.name, why=why, others=others)
