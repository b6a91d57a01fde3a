"""Certificates: kept samples, corrections, scope and bounds, of arrays and of small networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.formats.dicom.writing import (
    CERTIFICATE_ELEMENT,
    PRIVATE_CREATOR,
    PRIVATE_GROUP,
)
from kdmri_edge.data.formats.registry import write_image
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BundleError, CheckpointError, DataError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.calibrating import place_calibration
from kdmri_edge.runtime.calibration import (
    Calibration,
    Described,
    fit,
    read_calibration,
    sidecar,
    write_calibration,
)
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.certificate import Policy, kept_samples, relative_correction
from kdmri_edge.runtime.certifier import Certifier
from kdmri_edge.runtime.inputs import Told, noise_sigma
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.statistics import STATISTICS, slice_statistics
from kdmri_edge.utils.files import sha256_file
from tests.export.networks import spec, write_checkpoint

SIDE = 32
LINES = np.isin(np.arange(SIDE), [0, 1, 2, 3, 7, 12, 20, 28, 29, 30, 31])
MASK = Mask(samples=LINES, name="lines")


def brain(seed: int, *, noise: float = 0.01) -> np.ndarray:
    """Draw a smooth object with an edge, without phase, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    inside = (x**2 / 0.6 + y**2 / random.uniform(0.5, 0.7)) < 1
    texture = 1 + 0.3 * np.sin(6 * x + random.uniform(0, 6)) * np.cos(5 * y)
    image = inside * texture + noise * random.standard_normal((SIDE, SIDE))
    return np.abs(image).astype(np.float32)


def sampled(image: np.ndarray) -> np.ndarray:
    return (image_to_kspace(image) * MASK.grid).astype(np.complex64)


def complex_slice(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((2, SIDE, SIDE))
    return (noise[0] + 1j * noise[1]).astype(np.complex64)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), sigma=st.floats(0.5, 20))
def test_the_largest_deviation_is_found_in_units_of_the_noise(seed: int, sigma: float) -> None:
    """Noise alone has its own standard deviation, and one sample that is off is off by that."""
    kspace = sigma * complex_slice(seed) * MASK.grid
    x_u = kspace_to_image(kspace).astype(np.complex64)
    moved = kspace.copy()
    moved[7, 5] += 10 * sigma  # a sampled line
    moved[8] += 100 * sigma  # not sampled: of no account
    image = kspace_to_image(moved).astype(np.complex64)
    found = kept_samples(x_u, image, MASK, spec(channels=2))
    assert found.noise is not None
    assert found.noise.sigma == pytest.approx(sigma, rel=0.4)  # of some 50 samples
    assert found.in_noise == pytest.approx(10 * sigma / found.noise.sigma, rel=1e-3)
    assert found.deviation == pytest.approx(10 * sigma / np.abs(kspace).max(), rel=1e-3)


@pytest.mark.parametrize(
    ("architecture", "coils", "said"),
    [
        (spec(), 1, "by half"),
        (spec(channels=2, coils=True), 8, "gradient step"),
        (spec(channels=2), 4, "combined before"),
        (spec(kind="vdsr"), 1, "no data consistency"),
    ],
)
def test_no_exact_sample_is_claimed_where_there_is_none(
    architecture: Any, coils: int, said: str
) -> None:
    image = complex_slice(0)
    found = kept_samples(image, image, MASK, architecture, coils=coils)
    assert said in found.reason
    assert found.to_dict() == {"reason": found.reason}


def test_without_outer_samples_the_noise_is_absent_and_not_zero() -> None:
    kspace = complex_slice(0) * MASK.grid
    kspace[:, np.abs(np.fft.fftfreq(SIDE)) > 0.4] = 0  # filled with zeros by the scanner
    x_u = kspace_to_image(kspace).astype(np.complex64)
    found = kept_samples(x_u, x_u, MASK, spec(channels=2))
    assert found.in_noise is None
    assert "noise is not known" in found.reason
    assert found.deviation == 0
    assert relative_correction(x_u, 2 * x_u) == pytest.approx(1, rel=1e-5)
    assert relative_correction(0 * x_u, x_u) is None


@settings(max_examples=20)
@given(seed=st.integers(0, 99), scale=st.floats(1e-12, 1e12))
def test_figures_do_not_depend_on_the_unit(seed: int, scale: float) -> None:
    image = brain(seed)
    x_u = kspace_to_image(sampled(image)).real.astype(np.float32)
    first = slice_statistics(x_u, image, MASK)
    second = slice_statistics(np.float32(scale) * x_u, np.float32(scale) * image, MASK)
    assert first is not None
    assert second is not None
    assert len(first) == len(STATISTICS)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first, second, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e20, 1e35])
def test_no_unit_makes_a_certificate_say_something_else(scale: float) -> None:
    """Squares beyond float32 gave no deviation at all, and a slice that was not blank as one."""

    def certified(unit: float) -> tuple[dict[str, Any], str]:
        x_u = kspace_to_image(complex_slice(0) * MASK.grid) * unit
        image = x_u + 0.1 * unit * complex_slice(1)
        certifier = Certifier(
            spec=spec(channels=2), mask=MASK, integers=False, calibration=calibration()
        )
        made = certifier.certificate(x_u.astype(np.complex64), image.astype(np.complex64), MASK)
        json.loads(made.to_line(), parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        return made.to_dict(), made.scope.word

    (found, word), (wanted, same) = certified(scale), certified(1.0)
    assert word == same
    for key in ("largest_deviation", "largest_deviation_in_noise"):
        assert found["samples"][key] == pytest.approx(wanted["samples"][key], rel=0.01)
    assert found["samples"]["noise"]["sigma"] == pytest.approx(
        scale * wanted["samples"]["noise"]["sigma"], rel=0.01
    )
    assert found["correction"]["relative_norm"] == pytest.approx(
        wanted["correction"]["relative_norm"], rel=0.01
    )


@pytest.mark.parametrize("value", [0.0, 3.0, 1 + 1j])
def test_a_constant_slice_has_no_figures(value: complex) -> None:
    image = np.full((SIDE, SIDE), value)
    constant = image.astype(np.complex64 if np.iscomplexobj(image) else np.float32)
    assert slice_statistics(constant, constant, MASK) is None


def calibration(weights: str = "w", **changed: Any) -> Calibration:
    """Calibrate on 120 drawn objects of four subjects, of which the images are the truth's."""
    slices = []
    for number in range(120):
        image = brain(number)
        x_u = kspace_to_image(sampled(image)).real.astype(np.float32)
        figures = slice_statistics(x_u, image, MASK)
        assert figures is not None
        error = 10 ** (figures[STATISTICS.index("correction over input")] - 1)
        part = "train" if number < 80 else "validation"
        slices.append(
            Described(part=part, subject=str(number // 30), contrast="T1w", statistics=figures,
                      error=float(error) * float(np.random.default_rng(number).uniform(0.9, 1.1)))
        )  # fmt: skip
    made = fit(slices, weights=weights, integers=False, fov_mm=(220.0, 233.0), about={})
    return Calibration.from_dict({**json.loads(json.dumps(made.to_dict())), **changed})


@pytest.fixture(scope="module")
def made() -> Calibration:
    return calibration()


def test_new_slices_of_the_kind_are_inside_and_others_are_not(made: Calibration) -> None:
    verdicts = []
    for number in range(200, 240):
        image = brain(number)
        x_u = kspace_to_image(sampled(image)).real.astype(np.float32)
        figures = slice_statistics(x_u, image, MASK)
        assert figures is not None
        verdicts.append(made.scope(figures).inside)
    assert np.mean(verdicts) > 0.8
    noisy = brain(0, noise=0.5)
    x_u = kspace_to_image(sampled(noisy)).real.astype(np.float32)
    figures = slice_statistics(x_u, noisy, MASK)
    assert figures is not None
    scope = made.scope(figures)
    assert scope.inside is False
    assert scope.distance is not None
    assert scope.distance > 1
    assert "unlike" in scope.reasons[0]


def test_the_bound_holds_for_about_its_share(made: Calibration) -> None:
    held = []
    for number in range(300, 500):
        image = brain(number)
        x_u = kspace_to_image(sampled(image)).real.astype(np.float32)
        figures = slice_statistics(x_u, image, MASK)
        assert figures is not None
        error = 10 ** (figures[STATISTICS.index("correction over input")] - 1)
        error *= np.random.default_rng(number).uniform(0.9, 1.1)
        bound = made.bound(figures)
        assert bound.value is not None
        held.append(error <= bound.value)
    assert 0.8 <= np.mean(held) <= 1.0
    assert 10**-2 < bound.value < 1


def figures_of(image: np.ndarray) -> np.ndarray:
    x_u = kspace_to_image(sampled(image)).real.astype(np.float32)
    found = slice_statistics(x_u, image.astype(np.float32), MASK)
    assert found is not None
    return found


def figure(found: np.ndarray, name: str) -> float:
    return float(found[STATISTICS.index(name)])


@settings(max_examples=20)
@given(rows=st.integers(-6, 6), columns=st.integers(-6, 6))
def test_place_is_where_the_object_is_and_which_way_it_is_turned(rows: int, columns: int) -> None:
    image = np.zeros((SIDE, SIDE), np.float32)
    image[10:18, 12:20] = 1
    image[10:18, 12:15] = 3  # heavier at one end of the readout
    own, moved = figures_of(image), figures_of(np.roll(image, (rows, columns), (0, 1)))
    assert figure(own, "place along phase encode, centre") == pytest.approx(-2 / SIDE, abs=1e-6)
    for axis, by in (("phase encode", rows), ("readout", columns)):
        name = f"place along {axis}, "
        assert figure(moved, name + "centre") == pytest.approx(
            figure(own, name + "centre") + by / SIDE, abs=1e-6
        )
        for same in ("width", "skewness", "kurtosis"):
            assert figure(moved, name + same) == pytest.approx(figure(own, name + same), abs=1e-5)
    assert 10 ** figure(own, "place along phase encode, width") == pytest.approx(
        np.sqrt((8**2 - 1) / 12) / SIDE, rel=1e-5
    )
    turned = figures_of(image[:, ::-1])
    skewness = figure(own, "place along readout, skewness")
    assert skewness > 0.3
    assert figure(turned, "place along readout, skewness") == pytest.approx(-skewness, rel=1e-4)


def test_air_is_measured_against_the_object() -> None:
    image = np.zeros((SIDE, SIDE), np.float32)
    image[8:24, 8:24] = 2
    image[image == 0] = np.tile([0.02, 0.1], (SIDE * SIDE - 256) // 2)
    found = figures_of(image)
    for name, level in (("mean", 0.03), ("percentile 10", 0.01), ("percentile 90", 0.05)):
        assert 10 ** figure(found, f"air, {name}") == pytest.approx(level, rel=2e-3)
    assert figure(found, "air, share") == 0.75
    assert figure(figures_of(image * (image > 1)), "air, mean") == pytest.approx(-5)  # cut out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: np.roll(image, 10, 0), "place along phase encode"),
        (lambda image: np.roll(image, 10, 1), "place along readout"),
        (lambda image: image + 0.05 * (image < 0.3), "air"),
    ],
)
def test_shifts_and_air_are_seen(
    made: Calibration, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    scopes = [made.scope(figures_of(change(brain(number)))) for number in range(200, 210)]
    assert all(scope.inside is False for scope in scopes)
    assert said in scopes[0].reasons[0]


def told_before(**changed: Any) -> dict[str, Any]:
    """A calibration as the first version wrote it: one kind, a covariance of each group."""
    group = {"name": "T1w", "centre": [-0.5, 0.3], "spread": [0.1, 0.2],
             "whitening": [1.0, 0.5, 2.0]}  # fmt: skip
    scope = {"limit": 1.5, "groups": [group], "fov_mm": [200, 240], "contrasts": ["T1w"]}
    return {
        "schema": 1, "weights": "w", "integers": False, "scope": scope, "about": {},
        "statistics": ["mean over maximum", "support"],
        "bound": {"level": 0.9, "coefficients": [1.0, 2.0, -3.0]}, **changed,
    }  # fmt: skip


def test_a_calibration_of_before_judges_as_before() -> None:
    found = Calibration.from_dict(told_before())
    for number in range(3):
        figures = figures_of(brain(number))
        mean, support = figure(figures, "mean over maximum"), figure(figures, "support")
        first, second = (mean + 0.5) / 0.1, (support - 0.3) / 0.2
        distance = np.sqrt((first**2 + (0.5 * first + 2 * second) ** 2) / 2) / 1.5
        scope = found.scope(figures)
        assert scope.distance == pytest.approx(distance)
        assert scope.inside is bool(distance <= 1)
        assert found.bound(figures).value == pytest.approx(10 ** (mean + 2 * support - 3))
    again = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.scope(figures).distance == pytest.approx(scope.distance, rel=1e-3)
    with pytest.raises(ValueError, match="finite numbers"):
        Calibration.from_dict(told_before(statistics=["support"]))


def test_limits_hold_for_subjects_that_are_held_out() -> None:
    """98 % of the slices of each in turn; of two subjects none can be left out."""
    random = np.random.default_rng(0)
    subjects = [f"{n}" for n in range(6)]
    offsets = {one: random.standard_normal(len(STATISTICS)) for one in [*subjects, "new"]}

    def slices(subject: str) -> list[Described]:
        return [
            Described(part="train", subject=subject, contrast=None, error=0.1,
                      statistics=offsets[subject] + 0.3 * random.standard_normal(len(STATISTICS)))
            for _ in range(60)
        ]  # fmt: skip

    given = {one: slices(one) for one in offsets}
    several = [one for subject in subjects for one in given[subject]]
    found = fit(several, weights="", integers=False, fov_mm=None, about={})
    assert "held out" in found.about["limits_from"]
    assert np.mean([bool(found.scope(one.statistics).inside) for one in given["new"]]) > 0.5
    two = fit(given["0"] + given["1"], weights="", integers=False, fov_mm=None, about={})
    assert "themselves" in two.about["limits_from"]
    assert not any(two.scope(one.statistics).inside for one in given["new"])


def test_the_header_is_compared(made: Calibration) -> None:
    assert made.unlike_header(230.0, "T1w") == ()
    assert made.unlike_header(None, None) == ()
    said = made.unlike_header(333.0, "cine")
    assert "333 mm" in said[0]
    assert "cine" in said[1]


def test_too_little_to_calibrate_on() -> None:
    with pytest.raises(DataError, match="too few"):
        fit([], weights="", integers=False, fov_mm=None, about={})


def test_without_validation_no_error_is_bounded() -> None:
    slices = [
        Described(part="train", subject="1", contrast=None, error=0.1,
                  statistics=np.random.default_rng(n).standard_normal(len(STATISTICS)))
        for n in range(60)
    ]  # fmt: skip
    found = fit(slices, weights="", integers=False, fov_mm=None, about={})
    assert found.bound(slices[0].statistics).value is None
    assert "No validation subject" in found.bound(slices[0].statistics).reason


def drawn(part: str, count: int, *, error: float = 0.1) -> list[Described]:
    random = np.random.default_rng(len(part))
    return [
        Described(part=part, subject=part, contrast=None, error=error,
                  statistics=random.standard_normal(len(STATISTICS)))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize(("slices", "bounded"), [(1, False), (8, False), (9, True)])
def test_few_slices_bound_no_share_that_they_cannot_show(slices: int, bounded: bool) -> None:
    """The largest of n errors is exceeded once in n + 1 times: 9 are the fewest for 90 %."""
    given = [*drawn("train", 60), *drawn("validation", slices)]
    found = fit(given, weights="", integers=False, fov_mm=None, about={})
    assert (found.bound(given[0].statistics).value is not None) is bounded


def test_blank_images_are_errors_without_end() -> None:
    """Of training they are left out, in validation they lie above every bound."""
    blank = float("inf")
    learnt = [*drawn("train", 60), *drawn("train", 1, error=blank), *drawn("validation", 30)]
    found = fit(learnt, weights="", integers=False, fov_mm=None, about={})
    assert found.coefficients is not None
    assert np.isfinite(found.coefficients).all()
    missed = [*drawn("train", 60), *drawn("validation", 20), *drawn("validation", 5, error=blank)]
    found = fit(missed, weights="", integers=False, fov_mm=None, about={})
    assert found.coefficients is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("integers", "false"),
        ("bound.statistics", 2),  # the first one twice
        ("scope.kinds.1.statistics", 2),
        ("scope.contrasts", "T1w"),
        ("scope.fov_mm", [300.0, 200.0]),
        ("scope.fov_mm", [float("-inf"), float("inf")]),
        ("scope.kinds", []),
        ("scope.kinds.0.groups", []),
        ("scope.kinds.2.limit", float("nan")),
        ("scope.kinds.0.groups.0.whitening", 0.0),  # everything at distance 0
        ("scope.kinds.1.groups.0.centre", float("nan")),
        ("bound.level", float("nan")),
        ("bound.coefficients", float("inf")),
    ],
)
def test_a_calibration_of_values_that_cannot_be_is_refused(
    tmp_path: Path, made: Calibration, place: str, value: Any
) -> None:
    told = json.loads(json.dumps(made.to_dict()))
    *path, last = place.split(".")
    inner = told
    for key in path:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if last == "statistics":
        inner[last][1] = inner[last][0]
    elif isinstance(inner[last], list) and isinstance(value, float):
        inner[last] = [value] * len(inner[last])
    else:
        inner[last] = value
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(told))
    with pytest.raises(BundleError, match=r"damaged|no finite number"):
        read_calibration(file, BundleError)


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 0},
        {"schema": "2"},
        {"bound": {"level": 0.9, "statistics": ["height of the patient"], "coefficients": None}},
        {"scope": {}},
        {"bound": {"level": 2, "coefficients": None}},
        {"scope": {"kinds": [], "fov_mm": None, "contrasts": []}},
        {"schema": 1},
    ],
)
def test_a_damaged_calibration_is_a_sentence(
    tmp_path: Path, made: Calibration, damage: dict[str, Any]
) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({**made.to_dict(), **damage}))
    with pytest.raises(BundleError, match="damaged") as caught:
        read_calibration(file, BundleError)
    assert "kdmri-edge calibrate" in caught.value.remedy
    file.write_text("{")
    with pytest.raises(BundleError):
        read_calibration(file, BundleError)
    assert read_calibration(tmp_path / "none.json", BundleError) is None


def test_a_calibration_of_a_newer_version_is_not_called_damaged(
    tmp_path: Path, made: Calibration
) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({**made.to_dict(), "schema": 99}))
    with pytest.raises(BundleError, match="schema 99, which a newer kdmri-edge wrote") as caught:
        read_calibration(file, BundleError)
    assert "damaged" not in str(caught.value)
    assert "Update kdmri-edge, or calibrate again" in caught.value.remedy


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    return write_checkpoint(folder / "net.safetensors", spec(), MASK)


def test_a_network_without_calibration_works_as_before(weights: Path) -> None:
    with Pipeline(weights) as pipeline:
        outcome = pipeline.reconstruct(sampled(brain(1))[None], MASK)
        why = pipeline.uncalibrated
    assert outcome.fallback is None
    assert outcome.beyond == ()
    assert outcome.certificate is not None
    told = outcome.certificate.to_dict()
    assert told["scope"]["verdict"] == "unknown"
    assert told["scope"]["reasons"] == [why]
    assert "kdmri-edge calibrate" in told["scope"]["reasons"][0]
    assert "relative_error_at_most" not in told["error_bound"]
    assert told["correction"]["relative_norm"] > 0
    assert json.loads(outcome.certificate.to_line()) == told


def narrow(weights: Path, limit: float) -> Calibration:
    """Return a calibration of a checkpoint that takes all, or nothing, as inside."""
    given = calibration(sha256_file(weights)).to_dict()
    for kind in given["scope"]["kinds"]:
        kind["limit"] = limit
    return Calibration.from_dict(given)


def test_the_site_decides_what_becomes_of_a_slice_outside(weights: Path) -> None:
    kspace = sampled(brain(1))[None]
    try:
        write_calibration(sidecar(weights), narrow(weights, 1e-3))
        with Pipeline(weights) as pipeline:
            flagged = pipeline.reconstruct(kspace, MASK)
        with Pipeline(weights, out_of_scope=Policy.ZERO_FILLED) as pipeline:
            replaced = pipeline.reconstruct(kspace, MASK)
        write_calibration(sidecar(weights), narrow(weights, 1e3))
        with Pipeline(weights, out_of_scope=Policy.REFUSE) as pipeline:
            inside = pipeline.reconstruct(kspace, MASK)
            blank = pipeline.reconstruct(0 * kspace, MASK)
        with Pipeline(weights, out_of_scope=Policy.REFUSE, unknown_scope=Policy.FLAG) as pipeline:
            sent_anyway = pipeline.reconstruct(0 * kspace, MASK)
        other = calibration("other weights")
        write_calibration(sidecar(weights), other)
        with Pipeline(weights) as pipeline:
            unknown = pipeline.reconstruct(kspace, MASK)
        sidecar(weights).write_text("[]")
        with pytest.raises(CheckpointError, match="damaged"):
            Pipeline(weights)
    finally:
        sidecar(weights).unlink()
    assert flagged.fallback is None
    assert "unlike" in flagged.beyond[0]
    assert replaced.cause is Cause.SCOPE
    assert replaced.fallback is not None
    assert replaced.fallback == flagged.beyond[0]
    np.testing.assert_allclose(replaced.image, np.abs(kspace_to_image(kspace[0])), rtol=1e-5)
    assert inside.fallback is None
    assert inside.certificate is not None
    assert inside.certificate.scope.inside
    assert inside.certificate.bound.value is not None
    assert inside.certificate.bound.level == 0.9
    assert blank.certificate is not None
    assert blank.certificate.scope.inside is None
    assert blank.cause is Cause.SCOPE  # nothing is known of it, and the site wants what is inside
    assert "constant" in str(blank.fallback)
    assert sent_anyway.fallback is None
    assert unknown.certificate is not None
    assert "other weights" in unknown.certificate.scope.reasons[0]


def test_a_stream_is_judged_by_its_header_as_a_file_is(weights: Path) -> None:
    """Else a client's field of view outside the calibration's would pass by the policy."""
    kspace = sampled(brain(1))[None]
    noise = (3 * complex_slice(2)).reshape(1, -1)
    affine = np.diag([3.0, 500 / SIDE, 500 / SIDE, 1.0])
    scan = Scan(kspace=kspace[None], mask=MASK, name="s", subject="s", affine=affine, noise=noise)
    try:
        write_calibration(sidecar(weights), narrow(weights, 1e3))
        with Pipeline(weights, out_of_scope=Policy.REFUSE) as pipeline:
            read = pipeline.prepare(scan)
            (of_file,) = pipeline.certificates(read, pipeline.images(read))
            told = Told(voxel_mm=(3.0, 500 / SIDE, 500 / SIDE), noise=noise_sigma(noise))
            streamed = pipeline.reconstruct(kspace, MASK, None, None, None, told)
    finally:
        sidecar(weights).unlink()
    assert streamed.certificate == of_file
    assert streamed.cause is Cause.SCOPE
    assert "500 mm" in of_file.scope.reasons[0]


def test_an_export_takes_the_calibration_of_its_weights_along(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdmri_export.export import _keep_calibration, export_model
    from kdmri_export.recipe import ExportRecipe

    try:
        write_calibration(sidecar(weights), calibration("other weights"))
        _keep_calibration(weights, weights.parent)
        assert "of other weights, and is left out" in capsys.readouterr().err
        assert not (weights.parent / "calibration.json").exists()
        write_calibration(sidecar(weights), narrow(weights, 1e3))
        bundle = export_model(weights, ExportRecipe(target="onnx"), weights.parent / "bundle")
    finally:
        sidecar(weights).unlink()
    assert "calibration.json" in bundle.manifest["files"]
    with Pipeline(bundle.path) as pipeline:
        outcome = pipeline.reconstruct(sampled(brain(1))[None], MASK)
    assert outcome.certificate is not None
    assert outcome.certificate.scope.inside
    place_calibration(bundle.path, narrow(weights, 1e-3))
    with Pipeline(bundle.path) as pipeline:
        outcome = pipeline.reconstruct(sampled(brain(1))[None], MASK)
    assert "unlike" in outcome.beyond[0]
    with pytest.raises(CheckpointError, match="not that of"):
        place_calibration(bundle.path, calibration("other weights"))


def test_a_network_is_calibrated_on_volumes(cli: Any, weights: Path, tmp_path: Path) -> None:
    """And `run` then says what of a scan is inside."""
    for subject in range(4):
        image = np.stack([brain(20 * subject + number) for number in range(12)])
        write_image(tmp_path / "data" / f"sub-{subject}_T1w.npy", image)
    (tmp_path / "split.toml").write_text(
        'name = "drawn"\ntrain = ["0", "1"]\nvalidation = ["2"]\ntest = ["3"]\n'
    )
    try:
        done = cli("calibrate", weights, "--data", tmp_path / "data", "--split",
                   tmp_path / "split.toml", "--json")  # fmt: skip
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["subjects"] == {"train": ["0", "1"], "validation": ["2"]}
        assert found["slices"] == {"train": 24, "validation": 12}
        lines = tmp_path / "lines.jsonl"
        done = cli("run", weights, tmp_path / "data" / "sub-3_T1w.npy", "-o", tmp_path / "o.dcm",
                   "--undersample", "--no-cache", "--json", "--certificates", lines)  # fmt: skip
        assert done.code == 0, done.err
    finally:
        sidecar(weights).unlink(missing_ok=True)
    (result,) = json.loads(done.out)
    assert sum(result["scope"][word] for word in ("inside", "outside", "unknown")) == 12
    assert result["scope"]["unknown"] == 0
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["slice"] for one in read] == list(range(12))
    assert read[0]["scope"] == result["certificates"][0]["scope"]
    import pydicom

    written = pydicom.dcmread(sorted((tmp_path / "o.dcm").iterdir())[3])
    block = written.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    assert json.loads(block[CERTIFICATE_ELEMENT].value) == result["certificates"][3]


def test_nothing_to_calibrate_on(cli: Any, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused = cli("calibrate", weights, "--data", tmp_path / "none")
    refused.check_refusal("none")
    assert "Exporting" not in refused.err  # it would take a while
    cli("calibrate", weights, "--data", tmp_path / "no").check_refusal("does not exist")


@pytest.mark.parametrize(
    "reference", ["dccnn-edge-half@brain-4x", "dccnn-edge@brain-4x", "dccnn-d5c5@brain-4x"]
)
def test_networks_of_the_package_bring_their_calibration(reference: str) -> None:
    path = shipped_networks()[reference].path
    found = read_calibration(sidecar(path), CheckpointError)
    assert found is not None
    assert found.weights == sha256_file(path)
    assert found.about["subjects"] == {"train": ["01", "03", "12"], "validation": ["09", "20"]}
    assert found.contrasts == ("FLAIR", "T1w", "T2w")
    assert found.coefficients is not None


def test_certificates_replace_those_of_before_but_no_image(
    cli: Any, weights: Path, tmp_path: Path
) -> None:
    """And an image that was written before another failed has its certificates."""
    good, bad = tmp_path / "a.npy", tmp_path / "b.npy"
    write_image(good, np.stack([brain(number) for number in range(2)]))
    np.save(bad, np.zeros((2, 3, 4, 5, 6)))
    lines, out = tmp_path / "lines.jsonl", tmp_path / "out"
    lines.write_text("before")
    command = ("run", weights, good, "--undersample", "--no-cache", "--certificates")
    cli(*command, tmp_path, "-o", tmp_path / "o.npy").check_refusal("is a folder")
    cli(*command, good, "-o", tmp_path / "o.npy").check_refusal("is an input or an image")
    cli(*command, tmp_path / "o.npy", "-o", tmp_path / "o.npy").check_refusal("is an input or an")
    assert lines.read_text() == "before"
    assert not (tmp_path / "o.npy").exists()
    assert cli(*command, lines, bad, "-o", out).code == 1
    assert [path.name for path in out.iterdir()] == ["a.npy"]
    read = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["slice"] for one in read] == [0, 1]
