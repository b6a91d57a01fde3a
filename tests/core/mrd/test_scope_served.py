"""What a server does with slices outside the scope, as the site chose."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.mrd.format.images import BOUND, CERTIFICATE, SCOPE
from kdmri_edge.mrd.server.networks import warn_of_scope
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.certificate import Bound, Certificate, Policy, Samples, Scope
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
    server = serving(Second(policy), out_of_scope=policy)
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


def test_noise_of_a_stream_that_is_not_finite_is_no_noise() -> None:
    noise = np.full((1, 8), 3 + 4j, np.complex64)
    assert noise_sigma(noise) == pytest.approx(5 / np.sqrt(2))
    for wrong in (0 * noise, np.nan * noise, np.repeat(noise, 2, 0)):
        assert noise_sigma(wrong) is None


@pytest.mark.parametrize("policy", list(Policy))
def test_a_policy_that_finds_nothing_is_said(
    policy: Policy, tiny_bundles: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(tiny_bundles["magnitude"])
    assert "kdmri-edge calibrate" in (pipeline.uncalibrated or "")
    with caplog.at_level(logging.INFO, logger="kdmri_edge"):
        warn_of_scope("magnitude", None, policy)  # calibrated
        assert not caplog.records
        warn_of_scope("magnitude", pipeline.uncalibrated, policy)
    said = [json.loads(record.message) for record in caplog.records]
    assert [one["level"] for one in said] == ([] if policy is Policy.FLAG else ["warning"])
    assert all("There is no calibration" in one["reason"] for one in said)
