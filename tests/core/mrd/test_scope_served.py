"""What a server does with slices outside the scope, as the site chose."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.mrd.format.images import BOUND, CERTIFICATE, SCOPE
from kdmri_edge.mrd.server.networks import warn_of_scope
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.certificate import Bound, Certificate, Policies, Policy, Samples, Scope
from kdmri_edge.runtime.inputs import Told, noise_sigma
from kdmri_edge.runtime.pipeline import Outcome, Pipeline, zero_filled_magnitude
from tests.core.mrd.conftest import StandIn
from tests.core.mrd.scans import noise_scan
from tests.core.mrd.test_server import sent


def certificate(*, inside: bool) -> Certificate:
    reasons = () if inside else ("The slice is unlike those.",)
    bound = Bound(value=0.05, level=0.9) if inside else Bound(reason="Outside.")
    return Certificate(
        samples=Samples(reason="None."), correction=0.1, bound=bound,
        scope=Scope(inside=inside, reasons=reasons, distance=0.5 if inside else 2.0),
    )  # fmt: skip


class Second(StandIn):
    """The second slice is outside the scope."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.calls = policy, 0

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: object) -> Outcome:
        self.calls += 1
        image, said = zero_filled_magnitude(kspace), certificate(inside=self.calls != 2)
        if self.calls != 2 or self.policy is Policy.FLAG:
            return Outcome(image=image, beyond=said.scope.reasons, certificate=said)
        return Outcome(
            image=image, fallback=said.scope.reasons[0], cause=Cause.SCOPE, certificate=said
        )


@pytest.mark.parametrize("policy", list(Policy))
def test_the_site_chooses(serving, policy: Policy) -> None:
    server = serving(Second(policy), policies=Policies(outside=policy))
    reply = sent(server, noise_scan(3))
    kinds = [image.meta["ImageTypeValue4"] for image in reply.images]
    scopes = [image.meta[SCOPE] for image in reply.images]
    first = reply.images[0].meta
    assert first[BOUND] == "0.05 (0.9)"
    assert json.loads(first[CERTIFICATE])["scope"]["verdict"] == "inside"
    said = " ".join(reply.texts)
    assert "The slice is unlike those." in said
    if policy is Policy.REFUSE:
        assert scopes == ["inside"] * 2
        assert "Slice 1 is not sent: The slice is unlike those." in said
        return
    assert scopes == ["inside", "outside", "inside"]
    wanted = "KDMRI" if policy is Policy.FLAG else "ZERO_FILLED"
    assert kinds == ["KDMRI", wanted, "KDMRI"]
    assert BOUND not in reply.images[1].meta
    assert "unlike" in reply.images[1].meta["ImageComment"]


class Listening(StandIn):
    """Keeps what it is told of a slice beside the samples."""

    def __init__(self) -> None:
        self.told: list[Told] = []

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *rest: object) -> Outcome:
        self.told += [one for one in rest if isinstance(one, Told)]
        return super().reconstruct(kspace, mask)


def test_the_header_of_a_stream_reaches_the_certificate(serving) -> None:
    """Oversampled or not, as `run` reads them from the same scan in a file."""
    affine = np.array([[0, 0, 2, 0], [0, 3, 0, 0], [5, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    network = Listening()
    server = serving(network)
    for oversampling in (1, 2):
        sent(server, noise_scan(1, coils=1, affine=affine), oversampling)
    for told in network.told:
        assert told.voxel_mm == pytest.approx((5, 3, 2))
        assert told.noise is None
    assert len(network.told) == 2


@pytest.mark.parametrize("coils", [1, 2])
def test_the_noise_of_a_scan_is_measured_once(
    serving, coils: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for every slice again."""
    measured: list[int] = []

    def counted(noise: np.ndarray | None) -> float | None:
        assert noise is not None
        measured.append(noise.shape[1])
        return noise_sigma(noise)

    monkeypatch.setattr("kdmri_edge.mrd.server.session.noise_sigma", counted)
    network = Listening()
    noise = np.full((coils, 40), 3 + 4j, np.complex64)
    sent(serving(network), noise_scan(4, coils=coils, noise=noise))
    assert measured == [40]
    wanted = pytest.approx(5 / np.sqrt(2)) if coils == 1 else None
    assert [told.noise for told in network.told] == [wanted] * 4


def test_noise_of_a_stream_that_is_not_finite_is_no_noise() -> None:
    noise = np.full((1, 8), 3 + 4j, np.complex64)
    assert noise_sigma(noise) == pytest.approx(5 / np.sqrt(2))
    for wrong in (0 * noise, np.nan * noise, np.repeat(noise, 2, 0)):
        assert noise_sigma(wrong) is None


@pytest.mark.parametrize("unknown", [None, *Policy])
@pytest.mark.parametrize("policy", list(Policy))
def test_what_an_unknown_scope_means_is_said(
    policy: Policy, unknown: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not known is treated as what is outside, unless the site says otherwise."""
    policies = Policies(outside=policy, unknown=unknown)
    assert policies.of(True) is Policy.FLAG
    assert policies.of(False) is policy
    assert policies.of(None) is (unknown or policy)
    with caplog.at_level(logging.INFO, logger="kdmri_edge"):
        warn_of_scope("brain", None, policies)  # calibrated
        assert not caplog.records
        warn_of_scope("brain", "There is no calibration.", policies)
    said = [json.loads(record.message) for record in caplog.records]
    quiet = policies.of(None) is policy is Policy.FLAG
    assert [one["level"] for one in said] == ([] if quiet else ["warning"])
    assert all("There is no calibration" in one["reason"] for one in said)


@pytest.mark.parametrize("unknown", [None, Policy.FLAG])
def test_images_of_a_network_without_calibration(
    unknown: Policy | None, tiny_bundles: dict[str, Path]
) -> None:
    with Pipeline(
        tiny_bundles["magnitude"], out_of_scope=Policy.REFUSE, unknown_scope=unknown
    ) as pipeline:
        assert "kdmri-edge calibrate" in (pipeline.uncalibrated or "")
        reads = pipeline.reads
        image = np.zeros(reads.matrix, np.float32)
        image[10:20, 12:24] = 1
        kspace = (image_to_kspace(image) * reads.mask.grid).astype(np.complex64)
        outcome = pipeline.reconstruct(kspace[None], reads.mask)
    assert outcome.certificate is not None
    assert outcome.certificate.scope.word == "unknown"
    assert outcome.cause is (Cause.SCOPE if unknown is None else None)
    assert (outcome.fallback is None) is (unknown is not None)


class Unknown(StandIn):
    """Nothing is known of the second slice."""

    def __init__(self) -> None:
        self.calls = 0

    def reconstruct(self, kspace: np.ndarray, mask: Mask, *_: object) -> Outcome:
        self.calls += 1
        image, said = zero_filled_magnitude(kspace), certificate(inside=True)
        if self.calls != 2:
            return Outcome(image=image, certificate=said)
        why = "The input is constant, and tells nothing."
        said = replace(said, scope=Scope(inside=None, reasons=(why,)))
        return Outcome(image=image, fallback=why, cause=Cause.SCOPE, certificate=said)


@pytest.mark.parametrize("unknown", [None, Policy.REFUSE, Policy.ZERO_FILLED])
def test_what_is_not_known_is_refused_with_what_is_outside(serving, unknown) -> None:
    policies = Policies(outside=Policy.REFUSE, unknown=unknown)
    reply = sent(serving(Unknown(), policies=policies), noise_scan(3))
    scopes = [image.meta[SCOPE] for image in reply.images]
    if unknown is Policy.ZERO_FILLED:
        assert scopes == ["inside", "unknown", "inside"]
        assert reply.images[1].meta["ImageTypeValue4"] == "ZERO_FILLED"
    else:
        assert scopes == ["inside"] * 2
        assert "Slice 1 is not sent: The input is constant" in " ".join(reply.texts)
