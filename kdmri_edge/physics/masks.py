"""Sampling masks: which k-space samples the scanner acquires, drawn or read from a file.

Zero frequency is at index 0. A mask of shape `[H]` samples whole readout lines and serves any
readout length; a mask of shape `[H, W]` samples single points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.fastmri_masks import FastmriMask, fastmri_lines
from kdmri_edge.physics.fourier import mirrored
from kdmri_edge.registry import Registry
from kdmri_edge.utils.arrays import read_array
from kdmri_edge.utils.files import finite_json, sha256_bytes
from kdmri_edge.utils.reading import check_claim, reading

__all__ = [
    "LARGEST_SIDE",
    "MASK_FAMILIES",
    "Mask",
    "MaskFamily",
    "centre_block",
    "check_zero_first",
    "equispaced_lines",
    "fastmri_mask",
    "load_mask",
    "load_mask_option",
    "load_masks",
    "mask_from_array",
    "random_lines",
    "variable_density_2d",
    "variable_density_lines",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A sampling pattern.

    Attributes:
        samples: Booleans, shape [H] (whole lines) or [H, W]; zero frequency at index 0.
        name: What to call it in tables and manifests.
    """

    samples: NDArray[np.bool_]
    name: str

    def __post_init__(self) -> None:
        """Refuse what cannot be a sampling pattern.

        Raises:
            MaskError: Wrong rank, an empty axis or no sample at all.
        """
        if self.samples.ndim not in (1, 2) or 0 in self.samples.shape:
            raise MaskError(
                f"Mask {self.name!r} has shape {self.samples.shape}.",
                "Give one value per phase-encode line [H], or one per sample [H, W].",
            )
        if not self.samples.any():
            raise MaskError(f"Mask {self.name!r} samples nothing.", "Give at least one line.")
        frozen = np.array(self.samples, dtype=np.bool_)
        frozen.setflags(write=False)
        object.__setattr__(self, "samples", frozen)

    def __eq__(self, other: object) -> bool:
        """Two masks are equal when they sample the same points, whatever their names."""
        if not isinstance(other, Mask):
            return NotImplemented
        return np.array_equal(self.samples, other.samples)

    def __hash__(self) -> int:
        return hash(self.samples.tobytes())

    @property
    def is_lines(self) -> bool:
        """Whether whole readout lines are sampled, so that the projection form applies."""
        return self.samples.ndim == 1

    @property
    def grid(self) -> NDArray[np.bool_]:
        """The samples as they multiply k-space [..., H, W]: [H, 1] for lines, else [H, W]."""
        return self.samples[:, None] if self.is_lines else self.samples

    @property
    def height(self) -> int:
        """Number of phase-encode lines N."""
        return int(self.samples.shape[0])

    @property
    def nominal_acceleration(self) -> float:
        """Samples of the full grid over acquired samples, counted from the mask itself."""
        return self.samples.size / int(self.samples.sum())

    @property
    def effective_acceleration(self) -> float:
        """N over the lines known when the image has zero phase.

        A real image has k(-f) = conj k(f): an acquired sample also tells its mirror. Retrospective
        experiments on magnitude images therefore act at this lower acceleration.
        """
        axes = tuple(range(self.samples.ndim))
        return self.samples.size / int((self.samples | mirrored(self.samples, axes)).sum())

    @property
    def sha256(self) -> str:
        """Hash of shape and samples."""
        return sha256_bytes(repr(self.samples.shape).encode() + np.packbits(self.samples).tobytes())

    def to_dict(self) -> dict[str, Any]:
        """Return an exact, readable JSON form: shape and the indices of the samples."""
        return {
            "name": self.name,
            "shape": list(self.samples.shape),
            "sampled": [int(i) for i in np.flatnonzero(self.samples)],
            "zero_frequency_index": 0,
            "nominal_acceleration": round(self.nominal_acceleration, 4),
            "effective_acceleration": round(self.effective_acceleration, 4),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Mask:
        """Rebuild a mask from `to_dict`.

        Raises:
            MaskError: Keys are missing, indices are no whole numbers, stand twice or lie outside
                the shape, or zero frequency is elsewhere than at index 0.
        """
        try:
            shape = _checked_shape(value["shape"])
            samples = _with_samples(math.prod(shape), value["sampled"])
            if _whole(value.get("zero_frequency_index", 0)) != 0:
                raise MaskError(
                    "A stored mask has zero frequency elsewhere than at index 0.",
                    "Shift it with numpy.fft.ifftshift.",
                )
            return cls(samples=samples.reshape(shape), name=str(value["name"]))
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise MaskError(
                f"A stored mask is damaged ({error!r}).", "Make the file that holds it again."
            ) from error

    def check_matrix(self, height: int, width: int) -> None:
        """Refuse an image of another matrix.

        Raises:
            MaskError: The mask is not made for `height` x `width`.
        """
        if self.height != height or (not self.is_lines and self.samples.shape[1] != width):
            own = " x ".join(str(n) for n in self.samples.shape)
            raise MaskError(
                f"Mask {self.name!r} is made for {own} phase-encode samples,"
                f" the image is {height} x {width}.",
                f"Bring the data to {self.height} x {self.height}, or use another mask.",
            )


def _check(height: int, acceleration: float) -> None:
    if height < 2:
        raise MaskError(f"A mask of {height} lines makes no sense.", "Use at least 2 lines.")
    if not math.isfinite(acceleration) or acceleration < 1:
        raise MaskError(
            f"Acceleration {acceleration:g} is below 1.",
            "Give an acceleration of 1 (fully sampled) or more.",
        )


def _centred_to_zero_first(samples: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Move zero frequency from index N // 2 to index 0."""
    return np.fft.ifftshift(samples)


def variable_density_lines(
    height: int, acceleration: float, *, centre_lines: int = 10, seed: int = 0
) -> Mask:
    """Draw Cartesian lines whose density falls off from a fully sampled centre.

    The family of the KD-MRI masks: the centre, plus lines drawn without replacement with a
    Gaussian density on a uniform floor (Schlemper et al., TMI 2018; Jung et al., 2007).

    Args:
        height: Number of phase-encode lines N.
        acceleration: Nominal acceleration; round(N / acceleration) lines are sampled.
        centre_lines: Contiguous lines around zero frequency that are always sampled.
        seed: Seed of the draw.

    Raises:
        MaskError: An acceleration below 1, or one that leaves fewer lines than the centre has.
    """
    _check(height, acceleration)
    count = max(1, round(height / acceleration))
    centre = min(centre_lines, height)
    if count < centre:
        raise MaskError(
            f"Acceleration {acceleration:g} leaves {count} of {height} lines,"
            f" fewer than the {centre} of the centre.",
            "Lower the acceleration or the number of centre lines.",
        )
    offset = np.arange(height) - height // 2
    # One decade of the matrix as the width of the bell, with half of all lines spread evenly.
    density = np.exp(-0.5 * (offset / (height / 10)) ** 2) + 1 / (2 * acceleration)
    start = height // 2 - centre // 2
    samples = np.zeros(height, dtype=np.bool_)
    samples[start : start + centre] = True
    density[samples] = 0
    if count > centre:
        drawn = np.random.default_rng(seed).choice(
            height, size=count - centre, replace=False, p=density / density.sum()
        )
        samples[drawn] = True
    return Mask(
        samples=_centred_to_zero_first(samples), name=f"variable-density-{acceleration:g}x-s{seed}"
    )


def _acs(height: int, acceleration: float, centre_fraction: float | None) -> NDArray[np.bool_]:
    """Return the centred auto-calibration lines; fastMRI's fractions are 8 % at 4x, 4 % at 8x."""
    fraction = 0.32 / acceleration if centre_fraction is None else centre_fraction
    if not 0 < fraction <= 1:
        raise MaskError(
            f"Centre fraction {fraction:g} is not between 0 and 1.", "Give a value such as 0.08."
        )
    count = round(height * fraction)
    start = (height - count + 1) // 2
    samples = np.zeros(height, dtype=np.bool_)
    samples[start : start + count] = True
    return samples


def random_lines(
    height: int, acceleration: float, *, centre_fraction: float | None = None, seed: int = 0
) -> Mask:
    """Draw lines uniformly at random outside the ACS, as fastMRI's `RandomMaskFunc` defines it.

    By the rule alone: for the very lines that fastMRI draws see `fastmri_mask`.

    Each outer line is taken with the probability that makes the expected total N / acceleration;
    the realised acceleration varies from draw to draw and is read from the mask.

    Raises:
        MaskError: An acceleration below 1, or one that the ACS alone exceeds.
    """
    _check(height, acceleration)
    samples = _acs(height, acceleration, centre_fraction)
    centre = int(samples.sum())
    if height / acceleration < centre:
        raise MaskError(
            f"The {centre} ACS lines alone are more than {height} / {acceleration:g} lines.",
            "Lower the acceleration or the centre fraction.",
        )
    if centre < height:
        probability = (height / acceleration - centre) / (height - centre)
        samples |= np.random.default_rng(seed).uniform(size=height) < probability
    return Mask(samples=_centred_to_zero_first(samples), name=f"random-{acceleration:g}x-s{seed}")


def equispaced_lines(
    height: int, acceleration: float, *, centre_fraction: float | None = None, seed: int = 0
) -> Mask:
    """Take every n-th line plus the ACS, as fastMRI's `EquispacedMaskFractionFunc` defines it.

    By the rule alone: for the very lines that fastMRI draws see `fastmri_mask`.

    The spacing is adjusted so that the lines, ACS included, come to N / acceleration; the seed
    draws the offset. This is what product sequences play out.

    Raises:
        MaskError: An acceleration below 1, or one that the ACS alone exceeds.
    """
    _check(height, acceleration)
    samples = _acs(height, acceleration, centre_fraction)
    centre = int(samples.sum())
    room = centre * acceleration - height
    if centre * acceleration >= height and acceleration > 1:
        raise MaskError(
            f"The {centre} ACS lines alone are more than {height} / {acceleration:g} lines.",
            "Lower the acceleration or the centre fraction.",
        )
    spacing = acceleration * (centre - height) / room if acceleration > 1 else 1.0
    offset = int(np.random.default_rng(seed).integers(0, max(1, round(spacing))))
    lines = np.around(np.arange(offset, height - 1, spacing)).astype(np.intp)
    samples[lines] = True
    if acceleration == 1:
        samples[:] = True
    return Mask(
        samples=_centred_to_zero_first(samples), name=f"equispaced-{acceleration:g}x-s{seed}"
    )


def fastmri_mask(
    kind: FastmriMask | str,
    height: int,
    acceleration: float,
    *,
    centre_fraction: float | None = None,
    seed: int | str = 0,
) -> Mask:
    """Draw the very lines that fastMRI's public code draws for a seed; see `fastmri_lines`.

    Args:
        kind: "random" (`RandomMaskFunc`), "equispaced" (`EquiSpacedMaskFunc`, of which all lines
            together are more than N / acceleration) or "equispaced-fraction"
            (`EquispacedMaskFractionFunc`).
        height: Number of phase-encode lines N.
        acceleration: Of the mask.
        centre_fraction: Part of the lines that are the centre; None takes 0.32 / acceleration.
        seed: A number, or the name of a volume's file with its suffix, as fastMRI has it for
            validation and test.

    Raises:
        MaskError: No such kind, an acceleration below 1, or one that the centre alone exceeds.
    """
    _check(height, acceleration)
    if kind not in list(FastmriMask):
        raise MaskError(
            f"fastMRI has no mask {str(kind)!r}.", f"There are {', '.join(FastmriMask)}."
        )
    lines = fastmri_lines(
        FastmriMask(kind), height, acceleration, centre_fraction=centre_fraction, seed=seed
    )
    drawn = f"of-{seed}" if isinstance(seed, str) else f"s{seed}"
    return Mask(
        samples=_centred_to_zero_first(lines), name=f"fastmri-{kind}-{acceleration:g}x-{drawn}"
    )


def centre_block(shape: tuple[int, int], block: tuple[int, int]) -> Mask:
    """Take the central block of k-space alone, which is what super-resolution starts from.

    KD-MRI's VDSR uses 64 x 64 of 256 x 256. A block of even size reaches from -n/2 to n/2 - 1.

    Args:
        shape: Image matrix (H, W).
        block: Samples (h, w) that are kept along each axis.

    Raises:
        MaskError: A block that is empty or larger than the matrix.
    """
    if not all(1 <= b <= n for b, n in zip(block, shape, strict=True)):
        raise MaskError(
            f"A block of {block[0]} x {block[1]} does not fit {shape[0]} x {shape[1]} samples.",
            "Give a block of at least one sample that fits the matrix.",
        )
    sides = []
    for kept, size in zip(block, shape, strict=True):
        side = np.zeros(size, dtype=np.bool_)
        side[np.arange(-(kept // 2), kept - kept // 2)] = True
        sides.append(side)
    return Mask(samples=sides[0][:, None] & sides[1], name=f"centre-{block[0]}x{block[1]}")


def variable_density_2d(
    shape: tuple[int, int], acceleration: float, *, centre: int = 16, seed: int = 0
) -> Mask:
    """Draw single samples with a density that falls off from a fully sampled central square.

    For two phase-encode directions (3-D scans); the density is (1 - r)^3 on a floor of 1 %,
    after Lustig et al., MRM 2007.

    Raises:
        MaskError: An acceleration below 1, or one that leaves less than the central square.
    """
    for n in shape:
        _check(n, acceleration)
    height, width = shape
    y = np.abs(np.arange(height) - height // 2) / (height / 2)
    x = np.abs(np.arange(width) - width // 2) / (width / 2)
    radius = np.sqrt(y[:, None] ** 2 + x[None, :] ** 2) / math.sqrt(2)
    density = np.clip(1 - radius, 0, 1) ** 3 + 0.01
    samples = np.zeros(shape, dtype=np.bool_)
    top, left = height // 2 - centre // 2, width // 2 - centre // 2
    samples[max(0, top) : top + centre, max(0, left) : left + centre] = True
    count = round(height * width / acceleration) - int(samples.sum())
    if count < 0:
        raise MaskError(
            f"Acceleration {acceleration:g} leaves less than the central {centre} x {centre}.",
            "Lower the acceleration or the centre.",
        )
    density[samples] = 0
    if count:
        flat = density.ravel() / density.sum()
        drawn = np.random.default_rng(seed).choice(flat.size, size=count, replace=False, p=flat)
        samples.ravel()[drawn] = True
    return Mask(
        samples=_centred_to_zero_first(samples),
        name=f"variable-density-2d-{acceleration:g}x-s{seed}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFamily:
    """Masks that can be drawn by name, for square images.

    Attributes:
        name: What the command line calls it.
        draw: From the side of the image matrix, the nominal acceleration, the seed, and the number
            of lines around zero frequency that have to be sampled (0 leaves that to the family), to
            a mask. It raises `MaskError` where that cannot be.
        draw_for: The same with the name of a file in place of the seed, for families that go by
            names; None for those that take numbers alone.
    """

    name: str
    draw: Callable[[int, float, int, int], Mask]
    draw_for: Callable[[int, float, str, int], Mask] | None = None


def _acs_fraction(size: int, acceleration: float, centre: int) -> float | None:
    return max(0.32 / acceleration, (min(centre, size) + 1) / size) if centre else None


def _random(size: int, acceleration: float, seed: int, centre: int) -> Mask:
    fraction = _acs_fraction(size, acceleration, centre)
    return random_lines(size, acceleration, centre_fraction=fraction, seed=seed)


def _equispaced(size: int, acceleration: float, seed: int, centre: int) -> Mask:
    fraction = _acs_fraction(size, acceleration, centre)
    return equispaced_lines(size, acceleration, centre_fraction=fraction, seed=seed)


def _variable_density(size: int, acceleration: float, seed: int, centre: int) -> Mask:
    return variable_density_lines(size, acceleration, centre_lines=centre or 10, seed=seed)


def _variable_density_2d(size: int, acceleration: float, seed: int, centre: int) -> Mask:
    return variable_density_2d((size, size), acceleration, centre=centre or 16, seed=seed)


def _centre(size: int, acceleration: float, seed: int, centre: int) -> Mask:
    """Return the central block of super-resolution; its acceleration is meant per area."""
    side = max(1, round(size / math.sqrt(acceleration)))
    return centre_block((size, size), (side, side))


def _fastmri(
    kind: FastmriMask, size: int, acceleration: float, seed: int | str, centre: int
) -> Mask:
    """Draw one of fastMRI's masks; its centre is as wide as fastMRI has it, or it is refused."""
    mask = fastmri_mask(kind, size, acceleration, seed=seed)
    needed = np.arange(min(centre, size)) - min(centre, size) // 2
    if not mask.samples[needed].all():
        raise MaskError(
            f"fastMRI's mask of {size} lines at {acceleration:g}x has"
            f" {round(0.32 / acceleration * size)} lines around zero frequency, and coil"
            f" sensitivities are estimated from {len(needed)}.",
            "Lower the acceleration, use more lines, or draw the mask of another family, which"
            f" samples as many ({kind if kind is FastmriMask.RANDOM else 'equispaced'}).",
        )
    return mask


MASK_FAMILIES: Final = Registry(
    "kdmri_edge.mask_families",
    MaskFamily,
    "family of masks",
    {
        **{
            name: MaskFamily(name=name, draw=draw)
            for name, draw in {
                "variable-density": _variable_density,
                "random": _random,
                "equispaced": _equispaced,
                "variable-density-2d": _variable_density_2d,
                "centre": _centre,
            }.items()
        },
        **{
            f"fastmri-{kind}": MaskFamily(
                name=f"fastmri-{kind}",
                draw=partial(_fastmri, kind),
                draw_for=partial(_fastmri, kind),
            )
            for kind in FastmriMask
        },
    },
    error=MaskError,
)


def load_mask(path: Path, key: str | None = None) -> Mask:
    """Read a mask from .npy or JSON.

    A .npy file holds zeros and ones, shape [H] or [H, W] (axes of length 1 are left out), zero
    frequency at index 0. If all its columns are equal it is a line mask and is stored as such
    (phase encode is H). A JSON file holds
    either one mask as `Mask.to_dict` writes it, or several by name in the layout
    `{name: {"shape": [H, W], "phase_encode_axis": 0 or 1, "sampled_lines": [...]}}`.

    Args:
        path: The file.
        key: Which mask of a JSON file that holds several.

    Raises:
        MaskError: Missing or unreadable file, unknown key, values other than zero and one, zero
            frequency in the middle, or lines along the last axis.
    """
    if not path.is_file():
        raise MaskError(f"Mask file {path} does not exist.", "Check the path.")
    with reading(path, "a mask", error=MaskError, remedy=_READABLE):
        if path.suffix == ".json":
            held = finite_json(path.read_text(encoding="utf-8"))
            return check_zero_first(_from_json(held, path, key), str(path))
        array = read_array(path, kind="a mask", error=MaskError, remedy=_READABLE)
        return mask_from_array(array, str(path), name=path.stem)


_READABLE: Final = "Give a .npy array or a .json file."
LARGEST_SIDE: Final = 1 << 16
"""Far above any matrix, far below what fills a memory."""


def _whole(value: Any) -> int:
    """Take a whole number of a file as it is: a truth value, a fraction or a text is none.

    Raises:
        ValueError: It is another value.
    """
    if type(value) is not int:
        raise ValueError(f"{str(value)[:20]!r} is no whole number")
    return value


def _with_samples(size: int, indices: Any) -> NDArray[np.bool_]:
    """Set the indices that a file lists.

    Raises:
        ValueError: One is no whole number, lies outside, or stands twice, as all of them do where
            zeros and ones are given in the place of indices.
    """
    if not isinstance(indices, list | tuple):
        raise ValueError("the samples are no list")
    found = [_whole(index) for index in indices]
    if found and not 0 <= min(found) <= max(found) < size:
        raise ValueError(f"an index lies outside 0 to {size - 1}")
    if len(set(found)) < len(found):
        raise ValueError("an index stands twice: list the indices of what is sampled")
    samples = np.zeros(size, dtype=np.bool_)
    samples[found] = True
    return samples


def _checked_shape(shape: Any) -> tuple[int, ...]:
    """The sizes of a mask that a file gives.

    Raises:
        MaskError: They are none that a matrix has, or need more memory than is allowed.
        ValueError: They are no list of whole numbers.
    """
    if not isinstance(shape, list | tuple):
        raise ValueError("the shape is no list")
    sizes = tuple(_whole(size) for size in shape)
    if not 1 <= len(sizes) <= 2 or not all(1 <= size <= LARGEST_SIDE for size in sizes):
        raise MaskError(
            f"A mask has the sizes {', '.join(str(size)[:20] for size in sizes[:4])}.",
            f"It has one or two axes of 1 to {LARGEST_SIDE}.",
        )
    # it is copied where it is mirrored and transformed
    check_claim(4 * math.prod(sizes), "A mask", error=MaskError)
    return sizes


def check_zero_first(mask: Mask, what: str) -> Mask:
    """Refuse a mask whose zero frequency lies in the middle: it would be read as another one.

    Masks are denser around zero frequency, and mostly whole there: that tells where it is.

    Args:
        mask: As it was given.
        what: Its name in the message.

    Raises:
        MaskError: It leaves index 0 out and takes the middle, or is sampled whole around the middle
            and sparsely around index 0.
    """
    samples = mask.samples
    middle = tuple(size // 2 for size in samples.shape)
    if not samples.flat[0] and samples[middle]:
        raise MaskError(
            f"{what} does not sample index 0, where zero frequency is, but the middle.",
            "Store it as numpy.fft.ifftshift gives it.",
        )
    around_middle = _whole_around(np.fft.fftshift(samples))
    around_first = _whole_around(samples)
    if around_middle >= _CENTRE and around_first <= around_middle // 2:
        raise MaskError(
            f"{what} is sampled whole in the middle ({2 * around_middle} samples) and sparsely at"
            " index 0, where zero frequency is.",
            "Store it as numpy.fft.ifftshift gives it.",
        )
    return mask


_CENTRE: Final = 3
"""Half width from which a whole block is taken for a centre, and not for chance."""


def _whole_around(samples: NDArray[np.bool_]) -> int:
    """Largest r with all samples from -r to r - 1 around index 0 taken, along every axis."""
    largest = int(min(samples.shape)) // 2
    for reach in range(1, largest + 1):
        window = np.ix_(*(np.arange(-reach, reach) % size for size in samples.shape))
        if not samples[window].all():
            return reach - 1
    return largest


def load_masks(path: Path) -> dict[str, Mask]:
    """Read all masks of a JSON file, by what follows its name as FILE:KEY; "" for a sole one.

    Raises:
        MaskError: See `load_mask`.
    """
    with reading(path, "a mask", error=MaskError, remedy=_READABLE):
        held = finite_json(path.read_text(encoding="utf-8"))
        if isinstance(held, Mapping) and held and "sampled" not in held:
            return {key: check_zero_first(_from_json(held, path, key), key) for key in held}
        return {"": check_zero_first(_from_json(held, path, None), str(path))}


def load_mask_option(text: str) -> Mask:
    """Read the mask that a command-line option names as FILE or FILE:KEY; see `load_mask`."""
    file, _, key = text.partition(":")
    return load_mask(Path(file), key or None)


def mask_from_array(
    array: NDArray[Any], what: str, *, name: str = "given", centred: bool = False
) -> Mask:
    """Take an array for a mask, whether it comes from a file or from Python.

    Args:
        array: Zeros and ones, [H] or [H, W]; axes of length 1 are left out. If all its columns are
            equal it is a line mask.
        what: What to call it in messages.
        name: The mask's.
        centred: Zero frequency lies in the middle, and not at index 0.

    Raises:
        MaskError: Other values or axes, zero frequency elsewhere than said, or lines along the last
            axis.
    """
    if array.ndim > 1 and array.size:  # fastMRI's have axes of length 1 for coils and the like
        array = array.reshape([size for size in array.shape if size > 1] or [1])
    if array.ndim not in (1, 2) or array.dtype.kind not in "buif":
        raise MaskError(
            f"{what} holds {array.dtype} of shape {array.shape}.",
            "A mask is zeros and ones of shape [H] or [H, W].",
        )
    if not np.isin(array, (0, 1)).all():
        raise MaskError(f"{what} holds values other than 0 and 1.", "Give a binary mask.")
    samples = array.astype(np.bool_)
    if centred:
        samples = np.fft.ifftshift(samples)
    if samples.ndim == 2 and (samples == samples[:, :1]).all():
        samples = samples[:, 0]
    elif samples.ndim == 2 and (samples == samples[:1]).all():
        raise MaskError(
            f"{what} samples lines along its last axis, and phase encode is the first one (H).",
            "Take its first row alone, one value for each line, and give images with phase encode"
            " along H.",
        )
    return check_zero_first(Mask(samples=samples, name=name), what)


def _from_json(value: Any, path: Path, key: str | None) -> Mask:
    if not isinstance(value, Mapping):
        raise MaskError(f"{path} is not a JSON object.", "Give a mask file.")
    if "sampled" in value:
        return Mask.from_dict(value)
    if key is None and len(value) == 1:
        key = next(iter(value))
    if not value:
        raise MaskError(f"{path} holds no mask.", "Give a mask file.")
    if key is None or key not in value:
        known = ", ".join(sorted(value))
        named = f"no mask {key!r}" if key else "several masks"
        raise MaskError(f"{path} holds {named}.", f"Name one as FILE:KEY; it has {known}.")
    entry = value[key]
    try:
        axis = _whole(entry["phase_encode_axis"])
        samples = _with_samples(_checked_shape(entry["shape"])[axis], entry["sampled_lines"])
        if _whole(entry.get("zero_frequency_index", 0)) != 0:
            raise MaskError(
                f"Mask {key!r} of {path} has zero frequency elsewhere than at index 0.",
                "Shift it with numpy.fft.ifftshift.",
            )
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise MaskError(
            f"Mask {key!r} of {path} is damaged ({error!r}).", "Compare it with the documentation."
        ) from error
    return Mask(samples=samples, name=key)
