"""Random anatomy: a head drawn as layered level sets, deformed and folded by noise.

Coordinates are in pixels of a 240-pixel field of view (`unit` scales them): u left-right along H, v
anterior-posterior along W, and z from 0 (skull base) to 1.05 (vertex).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdmri_edge.data.phantom.fields import Field, FieldMaker, line_distance, paint, step


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """One head's geometry on the grid, every field [S, H, W] float32.

    Attributes:
        u: left-right coordinate, bent a little, pixels.
        v: anterior-posterior coordinate, bent a little, pixels.
        z: height of each slice, [S, 1, 1].
        depth: distance inwards from the skin, pixels.
        brain: distance inwards from the brain's surface, pixels.
        layers: scalp thickness and skull thickness, pixels.
        unit: pixels of this grid per pixel of a 240-pixel field of view.
        soft: width of tissue borders (partial volume), pixels.
    """

    u: Field
    v: Field
    z: Field
    depth: Field
    brain: Field
    layers: tuple[Field, Field]
    unit: float
    soft: float


def draw_head(rng: np.random.Generator, fields: FieldMaker) -> Head:
    """Place a head of random size, tilt and shape in the field of view."""
    slices, height, width = fields.shape
    unit = height / 240
    low, high = rng.uniform(-0.02, 0.25), rng.uniform(0.92, 1.03)
    z = np.linspace(low, high, slices) if slices > 1 else np.array([rng.uniform(0.3, 0.9)])
    z = z.astype(np.float32)[:, None, None]
    row = (np.arange(height, dtype=np.float32) - height // 2)[:, None]
    column = (np.arange(width, dtype=np.float32) - width // 2)[None, :]
    angle = rng.normal(0.0, 0.06)
    shift = rng.normal(0.0, 4.0, 2) * unit
    u0 = np.cos(angle) * (row - shift[0]) - np.sin(angle) * (column - shift[1])
    v0 = np.sin(angle) * (row - shift[0]) + np.cos(angle) * (column - shift[1])
    bend = rng.uniform(1.0, 2.6) * unit
    u = (u0 + bend * fields.smooth(24 * unit)).astype(np.float32)
    v = (v0 + bend * fields.smooth(24 * unit)).astype(np.float32)

    half_width = rng.uniform(65, 92) * unit
    half_length = min(half_width * rng.uniform(1.16, 1.36), 108 * unit)
    profile = _profile(z)
    a, b = half_width * profile, half_length * profile
    # Blunter than an ellipse at the back, narrower at the front.
    taper = 1 - rng.uniform(0.04, 0.16) * np.clip(-v / half_length, 0, 1)
    radius = np.sqrt((u / (a * taper)) ** 2 + (v / b) ** 2 + np.float32(1e-6))
    depth = ((1 - radius) * (a + b) / 2).astype(np.float32)
    oblique = (1 / np.clip(profile, 0.45, 1)).astype(
        np.float32
    )  # layers are cut slantwise near the top
    scalp = (
        unit * rng.uniform(2.5, 7) * oblique * np.exp(np.float32(0.3) * fields.smooth(30 * unit))
    )
    skull = (
        unit * rng.uniform(3.5, 7) * oblique * np.exp(np.float32(0.2) * fields.smooth(25 * unit))
    )
    inner = depth - scalp - skull
    # Below the equator the brain is temporal lobes and cerebellum, and shrinks towards the back.
    fall = np.clip((0.36 - z) / 0.36, 0, 1)
    centre = 18 * unit * fall
    reach_u, reach_v = half_width * (0.95 - 0.42 * fall), half_length * (0.95 - 0.5 * fall)
    low_radius = np.sqrt((u / reach_u) ** 2 + ((v - centre) / reach_v) ** 2 + np.float32(1e-6))
    low = (
        (1 - low_radius) * (reach_u + reach_v) / 2 + 2.5 * unit * fields.smooth(7 * unit)
    ).astype(np.float32)
    brain = np.minimum(inner, low + 60 * unit * np.clip((z - 0.3) / 0.2, 0, 1))
    return Head(
        u=u, v=v, z=z, depth=depth, brain=brain.astype(np.float32),
        layers=(scalp.astype(np.float32), skull.astype(np.float32)),
        unit=unit, soft=float(rng.uniform(1.0, 2.0)),
    )  # fmt: skip


def _profile(z: Field) -> Field:
    """Relative size of the head's outline at height z: a dome above, a slow taper below."""
    dome = np.sqrt(np.clip(1 - np.abs((z - 0.45) / 0.6) ** 2.6, 1e-3, 1))
    taper = 1 - 0.25 * (np.clip(0.45 - z, 0, None) / 0.45) ** 2
    return np.asarray(np.where(z > 0.45, dome, taper), dtype=np.float32)


def draw_tissue(
    rng: np.random.Generator, fields: FieldMaker, head: Head, value: dict[str, float]
) -> Field:
    """Paint the head's tissues with the given intensities.

    Args:
        rng: the random stream.
        fields: the maker of random fields for the same grid.
        head: geometry.
        value: tissue -> intensity, see `phantom_contrast.TISSUES`.

    Returns:
        [S, H, W] float32, noise-free.
    """
    canvas = np.zeros(fields.shape, np.float32)
    _paint_shell(rng, fields, head, value, canvas)
    _paint_face(rng, fields, head, value, canvas)
    _paint_brain(rng, fields, head, value, canvas)
    _paint_vessels(rng, fields, head, value, canvas)
    canvas *= step(head.depth, head.soft)
    return canvas


def _paint_shell(
    rng: np.random.Generator, fields: FieldMaker, head: Head, value: dict[str, float], canvas: Field
) -> None:
    """Skin, subcutaneous fat with septa, and the skull's two tables around marrow."""
    unit, soft, depth = head.unit, head.soft, head.depth
    scalp, skull = head.layers
    paint(canvas, step(depth, soft), value["skin"])
    paint(canvas, step(depth - rng.uniform(0.8, 2.2) * unit, soft), value["fat"])
    septa = step(
        rng.uniform(0.2, 0.7) * unit - line_distance(fields.smooth(3 * unit, slices=0.6)), soft
    )
    paint(canvas, 0.6 * septa * step(depth - 1.5 * unit, soft), value["muscle"])
    muscle = step(8 * unit * (fields.smooth(14 * unit) - 0.7), soft)
    paint(canvas, muscle * step(depth - 0.55 * scalp, soft), value["muscle"])
    bone = depth - scalp
    paint(canvas, step(bone, soft), value["bone"])
    middle = skull * np.float32(rng.uniform(0.1, 0.3)) * (1 + 0.5 * fields.smooth(8 * unit))
    paint(canvas, step(middle - np.abs(bone - 0.5 * skull), soft), value["marrow"])


def _paint_face(
    rng: np.random.Generator, fields: FieldMaker, head: Head, value: dict[str, float], canvas: Field
) -> None:
    """Below the brain: muscle, fat, bone, air cells, eyes."""
    unit, soft = head.unit, head.soft
    region = step(head.depth - 0.7 * head.layers[0], soft) * step(-(head.brain + 3 * unit), soft)
    region = region * np.clip((0.42 - head.z) / 0.06, 0, 1)
    if not region.any():
        return
    coarse = fields.smooth(7 * unit, slices=1.2)
    fine = fields.smooth(3.5 * unit, slices=0.8)
    mirrored = 0.6 * coarse + 0.6 * coarse[:, ::-1]  # faces are roughly symmetric
    stuff = np.full(fields.shape, value["muscle"], np.float32)
    paint(stuff, step(6 * unit * (mirrored - 0.35), soft), value["fat"])
    paint(stuff, step(3 * unit * (fine - 0.9), soft), value["bone"])
    paint(stuff, step(6 * unit * (-mirrored - 0.8), soft), value["marrow"])
    cells = line_distance(fine + 0.3 * mirrored)
    front = np.clip(-head.v / (40 * unit), 0, 1) * step(25 * unit - np.abs(head.u), 8 * unit)
    paint(stuff, front * step(cells - rng.uniform(0.6, 1.5) * unit, soft), 0.0)
    paint(stuff, step(6 * unit * (fine * mirrored - 0.9), soft), 0.0)
    planes = line_distance(fields.band(16 * unit, slices=1.5))
    paint(stuff, 0.8 * step(0.6 * unit - planes, soft), value["fat"])
    eye_u, eye_v = rng.uniform(26, 34) * unit, -rng.uniform(52, 64) * unit
    distance = np.hypot(np.abs(head.u) - eye_u, head.v - eye_v)
    bulb = 12 * unit * np.sqrt(np.clip(1 - ((head.z - 0.3) / 0.1) ** 2, 0, 1)) - distance
    paint(stuff, step(bulb + 4 * unit, soft) * (head.z > 0.2), value["fat"])
    paint(stuff, step(bulb, soft), value["skin"])
    paint(stuff, step(bulb - 1.2 * unit, soft), value["fluid"])
    paint(canvas, region.astype(np.float32), stuff)


def _paint_brain(
    rng: np.random.Generator, fields: FieldMaker, head: Head, value: dict[str, float], canvas: Field
) -> None:
    """CSF, the folded grey ribbon, white matter, ventricles, deep nuclei and lesions."""
    unit, soft, z = head.unit, head.soft, head.z
    u, v, surface = head.u, head.v, head.brain
    paint(canvas, step(surface + 3 * unit, soft), value["bone"])
    paint(canvas, step(surface, soft), value["csf"])

    folds = line_distance(fields.band(rng.uniform(17, 26) * unit, slices=rng.uniform(0.7, 1.4)))
    reach = rng.uniform(16, 40) * unit * (1 + 0.35 * fields.smooth(18 * unit))
    folds = folds + np.clip(0.6 * (surface - reach), 0, None)
    folia = (
        line_distance(fields.band(rng.uniform(6, 9) * unit, spread=0.2, slices=0.7)) + 0.5 * unit
    )
    behind = v - 10 * unit + 6 * unit * fields.smooth(10 * unit)
    cerebellum = np.clip((0.3 - z) / 0.08, 0, 1) * step(behind, 4 * unit)
    folds = folds + cerebellum * (folia - folds)
    middle = np.abs(u + 1.2 * unit * fields.smooth(12 * unit))
    ends = (
        rng.uniform(22, 32) * unit * np.clip((0.78 - z) / 0.2, 0, 1)
    )  # corpus callosum bridges the halves
    middle = (
        middle + np.clip(ends - np.abs(v), 0, None) + 40 * unit * np.clip((0.32 - z) / 0.1, 0, 1)
    )
    sulci = np.minimum(folds, middle)
    gap = rng.uniform(0.0, 1.1) * unit * np.exp(np.float32(0.5) * fields.smooth(16 * unit))
    margin = rng.uniform(0.5, 3.0) * unit * np.exp(np.float32(0.4) * fields.smooth(20 * unit))
    tissue = np.minimum(sulci - gap, surface - margin)  # distance from the nearest CSF
    ribbon = rng.uniform(2.4, 4.0) * unit * np.exp(np.float32(0.15) * fields.smooth(10 * unit))
    paint(canvas, step(tissue, soft), value["grey"])
    paint(canvas, step(tissue - ribbon, soft * 1.3), value["white"])

    deep = np.clip((0.72 - z) / 0.06, 0, 1) * np.clip((z - 0.36) / 0.06, 0, 1)
    side = np.abs(u)
    wobble = fields.smooth(9 * unit)
    for centre_u, centre_v, size_u, size_v in ((9, 8, 7, 12), (22, -2, 5, 15), (12, -16, 4, 7)):
        jitter = rng.uniform(0.85, 1.2, 4)
        level = 1 - np.hypot(
            (side - centre_u * unit * jitter[0]) / (size_u * unit * jitter[2]),
            (v - centre_v * unit * jitter[1]) / (size_v * unit * jitter[3]),
        )
        level = (level * min(size_u, size_v) + 0.8 * wobble) * unit
        paint(canvas, step(level, soft * 1.5) * deep, value["nucleus"])
    # Islands of intermediate signal: partial volume of folds, capsules, tracts.
    islands = step(5 * unit * (fields.smooth(5 * unit, slices=1.0) - 1.2), 3 * soft)
    paint(canvas, 0.7 * islands * step(tissue, soft), value["nucleus"])
    _paint_lesions(rng, fields, head, value, canvas, tissue - ribbon)

    size = rng.uniform(2.5, 8) * unit
    rise = np.clip(1 - ((z - 0.6) / 0.17) ** 2, 0, 1)
    bow = 5 * unit + np.abs(v) * rng.uniform(0.2, 0.45)
    horns = np.hypot((side - bow) / size, v / (rng.uniform(18, 34) * unit))
    level = (np.sqrt(rise) - horns) * size + 0.7 * unit * wobble * rise
    paint(canvas, step(level - 0.3 * unit, soft), value["csf"])
    third = (1.5 + rng.uniform(0, 2)) * unit - np.hypot(
        u, np.clip(np.abs(v - 4 * unit) - 12 * unit, 0, None)
    )
    paint(canvas, step(third, soft) * deep, value["csf"])
    fourth = 6 * unit - np.hypot(u, (v - 26 * unit) / 0.8) + unit * wobble
    paint(canvas, step(fourth, soft) * np.clip(1 - ((z - 0.22) / 0.1) ** 2, 0, 1), value["csf"])


def _paint_lesions(
    rng: np.random.Generator,
    fields: FieldMaker,
    head: Head,
    value: dict[str, float],
    canvas: Field,
    white: Field,
) -> None:
    """Small blobs in white matter, of random load from none to many."""
    load = rng.uniform(1.6, 3.2)
    blobs = step(5 * head.unit * (fields.smooth(3.5 * head.unit, slices=0.8) - load), 2 * head.soft)
    paint(canvas, blobs * step(white, head.soft), value["lesion"])


def _paint_vessels(
    rng: np.random.Generator, fields: FieldMaker, head: Head, value: dict[str, float], canvas: Field
) -> None:
    """Dots and short lines a pixel or two wide, bright or dark."""
    unit = head.unit
    inside = step(head.brain + 1 * unit, head.soft)
    dots = fields.smooth(1.1 * unit, slices=0.5)
    paint(canvas, inside * np.clip(2 * (dots - rng.uniform(2.4, 3.0)), 0, 1), value["vessel"])
    paint(canvas, inside * np.clip(2 * (-dots - rng.uniform(2.6, 3.2)), 0, 1), value["csf"])
    lines = step(0.5 * unit - line_distance(fields.band(22 * unit, slices=0.6)), head.soft)
    lines = lines * np.clip(3 * (fields.smooth(6 * unit, slices=0.8) - 1.0), 0, 1)
    paint(canvas, 0.7 * inside * lines, value["vessel"])
    # Inflow and fat close to a coil: a few spots far brighter than the rest, as in most real heads.
    spots = np.clip(1.5 * (fields.smooth(1.6 * unit, slices=0.7) - rng.uniform(2.8, 4.2)), 0, 1)
    paint(
        canvas,
        spots * step(head.depth - unit, head.soft),
        rng.uniform(0.7, 1.8) * max(value.values()),
    )
