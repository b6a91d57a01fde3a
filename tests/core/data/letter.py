"""A letter F in the patient: what every format has to bring back to its place.

Its stem stands on the patient's left from feet to head. Both arms go to the right: the upper one is
longer, and bends to the front at its end. Nothing of it lies in the middle, and no turn or mirror
image of it is the same letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdmri_edge.data.geometry import Affine, from_axes

CENTRE = (6.0, -4.0, 9.0)  # of its box, off the patient's origin: millimetres, RAS+
_WIDTH = 7.0  # of a stroke
_SPOTS = (
    *((-14.0, 0.0, z, 1.0) for z in (-18.0, -9.0, 0.0, 9.0, 18.0)),  # the stem
    *((x, 0.0, 18.0, 0.9) for x in (-5.0, 4.0, 13.0)),  # the upper arm
    (13.0, 10.0, 18.0, 1.2),  # its end, to the front
    (-5.0, 0.0, 0.0, 0.7),  # the lower arm
)


def letter_at(points: np.ndarray) -> np.ndarray:
    """Brightness at points [3, ...] of the patient, millimetres in RAS+."""
    brightness = np.zeros(points.shape[1:])
    for x, y, z, height in _SPOTS:
        spot = np.add(CENTRE, (x, y, z)).reshape(3, *[1] * (points.ndim - 1))
        brightness += height * np.exp(-(((points - spot) / _WIDTH) ** 2).sum(axis=0))
    return brightness


def letter_on(affine: Affine, shape: Sequence[int]) -> np.ndarray:
    """The letter on a grid: float32 [S, H, W]."""
    indices = np.indices(shape).reshape(3, -1)
    points = affine[:3, :3] @ indices + affine[:3, 3:]
    return letter_at(points).reshape(shape).astype(np.float32)


def check_letter(image: np.ndarray, affine: Affine | None, unit: float = 1.0) -> None:
    """Every pixel shows what the patient has where the affine puts it."""
    assert affine is not None
    wanted = letter_on(affine, image.shape)
    assert wanted.max() > 0.5, "the letter is not in the image at all"
    np.testing.assert_allclose(np.asarray(image) / unit, wanted, atol=2e-3)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """How slices lie: H, W and S are the columns of a rotation; `mirrored` turns S around.

    Attributes:
        name: In words.
        quaternion: (w, x, y, z) of the rotation, RAS+.
        mirrored: Whether slices grow against the third column.
    """

    name: str
    quaternion: tuple[float, float, float, float]
    mirrored: bool = False

    def affine(self, shape: Sequence[int]) -> Affine:
        """A grid of that shape, 84 mm wide and not quite around the letter."""
        turn = rotation(self.quaternion)
        if self.mirrored:
            turn = turn * [1, 1, -1]
        steps = 84.0 / np.maximum(shape, 4)
        height, width, across = turn[:, 0] * steps[1], turn[:, 1] * steps[2], turn[:, 2] * steps[0]
        middle = np.array(shape) // 2
        origin = np.add(CENTRE, (2, -3, 1)) - across * middle[0] - height * middle[1]
        return from_axes(across, height, width, origin - width * middle[2])


def rotation(quaternion: Sequence[float]) -> np.ndarray:
    """Rotation matrix of (w, x, y, z), by turning the axes one after the other."""
    w, *v = np.array(quaternion) / np.linalg.norm(quaternion)
    v = np.array(v)
    columns = [axis + 2 * np.cross(v, np.cross(v, axis) + w * axis) for axis in np.eye(3)]
    return np.column_stack(columns)


STACKS = (
    Stack(name="transversal", quaternion=(1, 0, 0, 0)),
    Stack(name="transversal-mirrored", quaternion=(0, 1, 1, 0), mirrored=True),
    Stack(name="sagittal", quaternion=(1, 1, 1, 1)),
    Stack(name="coronal-mirrored", quaternion=(1, 1, 0, 0), mirrored=True),
    Stack(name="oblique", quaternion=(0.9, 0.3, -0.2, 0.25)),
)
SHAPES = ((6, 12, 9), (5, 7, 10), (4, 8, 8))
