"""One server, many bundles: who serves a scan, why, and what changes while it runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BundleError, RecipeError
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import BUNDLE, BUNDLE_REASON, fallback_of
from kdmri_edge.mrd.format.messages import Close, ConfigText, HeaderText, Text, serialise
from kdmri_edge.mrd.format.parser import Parser
from kdmri_edge.mrd.server.networks import (
    bundles_in,
    choose,
    find_candidates,
    many_networks,
    site_of,
)
from kdmri_edge.mrd.server.rules import MaskKind, Rule, ScanFacts, Site, kind_of, read_rules
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, equispaced_lines, variable_density_lines
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.certificate import Policy
from kdmri_edge.runtime.pipeline import Pipeline, zero_filled_magnitude
from kdmri_edge.utils.keys import make_key
from tests.core.mrd.scans import HALF, SIZE, every_line, phantom_scan, scan_apart


@pytest.fixture
def folder(tiny_bundles: dict[str, Path], sense: Path, tmp_path: Path) -> Path:
    """Bundles of two matrices: one mask, any mask and any matrix; one coil and several."""
    place = tmp_path / "bundles"
    for name in ("magnitude", "complex", "any-matrix"):
        shutil.copytree(tiny_bundles[name], place / name)
    shutil.copytree(sense, place / "sense")
    return place


def own_mask(folder: Path) -> Mask:
    return open_bundle(folder / "complex").mask


def rectangle(folder: Path) -> Scan:
    mask = redrawn(own_mask(folder), 48, 40)
    image = to_matrix(phantom_volume(2, slices=1, matrix=48), (48, 40)).image
    kspace = (image_to_kspace(image) * mask.grid).astype(np.complex64)
    return Scan(kspace=kspace[:, None], mask=mask, name="s", subject="s")


def sent(port: int, scan: Scan, protocol: str | None = None) -> Reply:
    xml = write_encoding(encoding_of(scan, 2), slices=len(scan.kspace))
    if protocol is not None:
        named = (
            "<measurementInformation><patientPosition>HFS</patientPosition>"
            f"<protocolName>{protocol}</protocolName></measurementInformation>"
        )
        xml = xml.replace("<experimentalConditions>", f"{named}<experimentalConditions>")
    return send_scan(xml, readouts(scan, 2), port=port, timeout_s=20)


def test_a_session_of_five_protocols(serving, events, folder: Path) -> None:
    """Two matrices, fully sampled, separate reference lines, and one that nothing fits."""
    mask = own_mask(folder)
    apart, whole = scan_apart(1)
    bare = dataclasses.replace(apart, reference=None)
    session = {
        "one coil": (phantom_scan(mask, slices=2, coils=1), "complex"),
        "rectangle": (rectangle(folder), "any-matrix"),
        "fully sampled": (whole, "sense"),
        "reference lines": (apart, "sense"),
        "nothing fits": (bare, None),
    }
    server = serving(many_networks([folder], threads=1, loaded=2), deadline_s=30.0)
    for name, (scan, wanted) in session.items():
        reply = sent(server.port, scan)
        assert reply.errors == [], name
        assert len(reply.images) == len(scan.kspace), name
        assert [image.meta[BUNDLE] for image in reply.images] == [wanted or "none"] * len(
            scan.kspace
        ), name
        (said,) = {image.meta[BUNDLE_REASON] for image in reply.images}
        others = {"magnitude", "complex", "any-matrix", "sense"} - {wanted}
        assert all(f"{other}: " in said for other in others), (name, said)
        if wanted is None:
            assert "16 lines without a gap around zero frequency, and there are 1" in said
            assert fallback_of(reply.images[0]) == said
            assert reply.texts == [f"WRN Slice 0 is the zero-filled one: {said}"]
            expected = [zero_filled_magnitude(kspace) for kspace in scan.kspace]
        else:
            assert said.startswith(f"Reconstructed by {wanted} (it fits best).")
            assert reply.texts[0] == f"INF {said}"
            assert [fallback_of(image) for image in reply.images] == [None] * len(scan.kspace)
            with Pipeline(folder / wanted, threads=1) as pipeline:
                expected = list(np.abs(pipeline.images(pipeline.prepare(scan))))
        for image, right in zip(reply.images, expected, strict=True):
            np.testing.assert_allclose(image.data[0, 0], right, atol=2e-4 * right.max(),
                                       err_msg=name)  # fmt: skip
    logged = {event["session"]: event["bundle"] for event in events("served", 5)}
    assert list(logged.values()) == [wanted for _, wanted in session.values()]
    loaded = [event["bundle"] for event in events("loaded", 3)]
    assert loaded == ["complex", "any-matrix", "sense"]  # when they were needed, and no other
    assert [event["bundle"] for event in events("unloaded")] == ["complex"]  # two at once
    counted = {name: server.metrics.bundles().labels(name)._value.get() for name in
               ("complex", "any-matrix", "sense", "none")}  # fmt: skip
    assert counted == {"complex": 2, "any-matrix": 1, "sense": 2, "none": 1}


def test_a_network_is_closed_when_the_last_slice_has_left_it(folder: Path) -> None:
    """Another one takes its place while it still works."""
    networks = many_networks([folder], threads=1, loaded=1)
    begun, go = threading.Event(), threading.Event()
    closed: list[str] = []
    load = networks._load

    def loaded(one: Any) -> Any:
        pipeline = load(one)
        reconstruct, close = pipeline.reconstruct, pipeline.close

        def slow(*given: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return reconstruct(*given)

        pipeline.reconstruct = slow if one.name == "complex" else reconstruct
        pipeline.close = lambda: (closed.append(one.name), close())[1]
        return pipeline

    networks._load = loaded
    mask = own_mask(folder)
    kspace = phantom_scan(mask, slices=1, coils=1).kspace[0]
    by_name = {key[0]: network for key, network in networks.choice().networks.items()}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(by_name["complex"].reconstruct, kspace, mask)
        assert begun.wait(20)
        assert by_name["magnitude"].reconstruct(kspace, mask).fallback is None
        assert closed == []
        go.set()
        assert slow.result(20).fallback is None
    assert closed == ["complex"]
    assert by_name["complex"].reconstruct(kspace, mask).fallback is None
    assert closed == ["complex", "magnitude"]


def test_rules_decide_before_fit(serving, folder: Path) -> None:
    (folder / "serve.toml").write_text(
        '[[rule]]\nbundle = "magnitude"\nprotocol = "T2_*"\nmask = "full"\n'
        '[[rule]]\nbundle = "sense"\nprotocol = "t2_*"\ncoils = [1, 4]\n',
        encoding="utf-8",
    )
    scan = phantom_scan(own_mask(folder), slices=1, coils=1)
    server = serving(many_networks([folder], threads=1), deadline_s=30.0)
    (image,) = sent(server.port, scan, "T2_tse").images
    # the second rule names a bundle that misses its centre lines, so that fit decides
    assert image.meta[BUNDLE] == "complex"
    assert "sense: rule 2 names it, but it needs 16 lines" in image.meta[BUNDLE_REASON]
    (folder / "serve.toml").write_text(
        '[[rule]]\nbundle = "magnitude"\nprotocol = "t2_*"\nacceleration = 3\n', encoding="utf-8"
    )
    server = serving(many_networks([folder], threads=1), deadline_s=30.0)
    (image,) = sent(server.port, scan, "T2_tse").images
    assert image.meta[BUNDLE] == "magnitude"
    assert "complex: rule 1 names magnitude" in image.meta[BUNDLE_REASON]
    (image,) = sent(server.port, scan, "T1_tse").images
    assert image.meta[BUNDLE] == "complex"


def facts(mask: Mask, coils: int = 1, **more: Any) -> ScanFacts:
    return ScanFacts(coils=coils, matrix=(SIZE, SIZE), mask=mask, centre=24, **more)


def test_who_fits_best(folder: Path) -> None:
    candidates, rules = find_candidates([(p.name, p) for p in bundles_in(folder)])
    assert rules == ()

    def best(mask: Mask, coils: int) -> str:
        one, why, others = choose(candidates, (), facts(mask, coils))
        assert one is not None
        assert why == "it fits best"
        assert set(others) == {c.name for c in candidates} - {one.name}
        return one.name

    mask = own_mask(folder)
    assert best(mask, 1) == "complex"  # made for the mask; a magnitude network asks for no phase
    assert best(HALF, 1) == "sense"  # any mask, with phase
    assert best(HALF, 4) == "sense"
    assert best(every_line(SIZE), 4) == "sense"
    # of two that are alike, the one that is made for the mask alone, whatever the order
    alike = [c for c in candidates if c.name in ("any-matrix", "magnitude")]
    one, _, others = choose(alike, (), facts(mask))
    assert one is not None
    assert one.name == "magnitude"
    assert others == {"any-matrix": "it serves any mask, and is not made for this one alone"}
    none, why, others = choose(
        [c for c in candidates if c.name == "magnitude"], (), facts(every_line(SIZE))
    )
    assert none is None
    assert why.startswith("The scan is fully sampled")
    assert "made for mask" in others["magnitude"]


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({}, True),
        ({"coils": (2, 8)}, False),
        ({"coils": (1, 1)}, True),
        ({"matrix": (32, 32)}, True),
        ({"matrix": (32, 40)}, False),
        ({"mask": MaskKind.EQUISPACED}, True),
        ({"mask": MaskKind.RANDOM}, False),
        ({"acceleration": (1.8, 2.2)}, True),
        ({"acceleration": (3, 4)}, False),
        ({"contrast": 1}, True),
        ({"contrast": 0}, False),
        ({"protocol": "*FLAIR*"}, True),
        ({"protocol": "flair"}, False),
        ({"protocol": "[bad"}, False),
    ],
)
def test_conditions_of_rules(rule: dict[str, Any], holds: bool) -> None:
    scan = facts(HALF, contrast=1, protocol=("Head_Flair_tra",))
    assert Rule(bundle="a", **rule).holds(scan) is holds


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        (every_line(64), MaskKind.FULL),
        (Mask(samples=np.fft.ifftshift(np.arange(64) >= 20), name="half"), MaskKind.PARTIAL),
        (Mask(samples=np.arange(64) % 4 == 0, name="grid"), MaskKind.EQUISPACED),
        (equispaced_lines(256, 4), MaskKind.EQUISPACED),
        (equispaced_lines(240, 8, seed=3), MaskKind.EQUISPACED),
        (variable_density_lines(240, 4), MaskKind.RANDOM),
    ],
)
def test_kinds_of_masks(mask: Mask, kind: MaskKind) -> None:
    assert kind_of(mask) is kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[rule]]\ncoils = 2\n", "Rule 1 of .* names no bundle"),
        ('[[rule]]\nbundle = "a"\nacceleraton = 2\n', "unknown key 'acceleraton'. Did you mean 'a"),
        ('[[rule]]\nbundle = "a"\ncoils = "many"\n', "coils of Rule 1 of .* is no range"),
        ('[[rule]]\nbundle = "a"\nacceleration = [4, 2]\n', "no range"),
        ('[[rule]]\nbundle = "a"\nmatrix = 256\n', "is no matrix"),
        ('[[rule]]\nbundle = "a"\nmask = "spiral"\n', "unknown mask 'spiral'"),
        ('[[rule]]\nbundle = "a"\ncontrast = -1\n', "no whole number"),
        ("[[rule]]\nbundle = 7\n", "bundle of Rule 1 of .* is no text"),
        ("rule = 3\n", "something else than rules"),
        ("[rules]\n", "something else than rules"),
        ("rule = [\n", "not valid TOML"),
        ("keys = []\n", r"something else than rules \('keys'\)"),
        ("key = 3\n", "key of .* is no file"),
        ('key = ["a.pub", 3]\n', "key of .* is no file"),
        ("key = []\n", "key of .* is no file"),
        ('[key]\na = "a.pub"\n', "key of .* is no file"),
        ('out_of_scope = "drop"\n', "out_of_scope of .* is 'drop'"),
        ("unknown_scope = true\n", "unknown_scope of .* is True"),
        ("unknown_scope = []\n", "unknown_scope of .* is"),
    ],
)
def test_rules_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        read_rules(tmp_path / "r.toml")


def test_what_else_a_site_decides(folder: Path, tmp_path: Path) -> None:
    """Keys lie from the folder of the file on; rules stand as before, and alone as before."""
    file = folder / "serve.toml"
    file.write_text(
        'key = ["a.pub", "/keys/b.pub"]\nout_of_scope = "refuse"\nunknown_scope = "zero-filled"\n'
        '[[rule]]\nbundle = "complex"\n',
        encoding="utf-8",
    )
    site = site_of([folder], None)
    assert site.keys == (folder / "a.pub", Path("/keys/b.pub"))
    assert (site.out_of_scope, site.unknown_scope) == (Policy.REFUSE, Policy.ZERO_FILLED)
    assert site.rules == (Rule(bundle="complex"),)
    other = tmp_path / "other.toml"
    other.write_text('[[rule]]\nbundle = "complex"\n', encoding="utf-8")
    assert site_of([folder], other) == Site(rules=site.rules)
    assert site_of([folder / "complex"], None) == Site()


def test_a_key_of_the_rules_is_asked_for_at_the_start(cli: Any, folder: Path) -> None:
    """And one that is named on the command line stands in its place."""
    pytest.importorskip("cryptography")
    _, public = make_key(folder / "vendor")
    (folder / "serve.toml").write_text('key = "vendor.pub"\n', encoding="utf-8")
    cli("serve", folder, "--port", "0").check_refusal("is not signed")
    cli("serve", folder, "--port", "0", "--key", folder / "no.pub").check_refusal("no.pub")
    public.unlink()
    cli("serve", folder, "--port", "0").check_refusal("vendor.pub")


def test_changed_keys_and_policies_count_from_the_next_start_on(events, folder: Path) -> None:
    (folder / "serve.toml").write_text('unknown_scope = "flag"\n', encoding="utf-8")
    serving = many_networks([folder])
    serving.reload()
    (folder / "serve.toml").write_text('[[rule]]\nbundle = "complex"\n', encoding="utf-8")
    serving.reload()
    assert len(events("restart-needed")) == 1
    assert [event["rules"] for event in events("reloaded", 2)] == [0, 1]


def test_mistakes_of_whoever_starts_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.toml does not exist"):
        many_networks([folder], rules=tmp_path / "none.toml")
    with pytest.raises(BundleError, match="both called 'complex'"):
        many_networks([folder, folder / "complex"])
    (folder / "serve.toml").write_text('[[rule]]\nbundle = "knee"\n', encoding="utf-8")
    with pytest.raises(BundleError, match=r"Rule 1 of .* names the bundle 'knee', which is"):
        many_networks([folder])
    shutil.copytree(folder, tmp_path / "more")
    with pytest.raises(RecipeError, match="both hold rules"):
        many_networks([folder, tmp_path / "more"])


def test_a_bundle_that_cannot_be_loaded_gives_the_zero_filled_image(
    serving, events, folder: Path
) -> None:
    """Hashes are compared when it is loaded; once its files are whole again, a reload tells."""
    graph = open_bundle(folder / "complex").graph
    scan = phantom_scan(own_mask(folder), slices=2, coils=1)
    networks = many_networks([folder], threads=1)
    server = serving(networks, deadline_s=30.0)
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + b"x")
    reply = sent(server.port, scan)
    assert all("SHA-256 differs" in (fallback_of(image) or "") for image in reply.images)
    (event,) = events("not loaded")  # tried once
    assert event["bundle"] == "complex"
    graph.write_bytes(whole)
    assert fallback_of(sent(server.port, scan).images[0]) is not None  # nobody has looked again
    networks.reload()
    image = sent(server.port, scan).images[0]
    assert (fallback_of(image), image.meta[BUNDLE]) == (None, "complex")
    fresh = serving(many_networks([folder], threads=1), deadline_s=30.0)
    np.testing.assert_array_equal(image.data, sent(fresh.port, scan).images[0].data)
    assert not np.allclose(image.data, reply.images[0].data)


def listening(process: Any) -> int:
    while (event := json.loads(process.stderr.readline()))["event"] != "listening":
        pass
    return int(event["port"])


def logged(process: Any, name: str) -> dict[str, Any]:
    while (event := json.loads(process.stderr.readline()))["event"] != name:
        pass
    return dict(event)


def test_sighup_looks_again_and_drops_no_scan(folder: Path, start: Callable[..., Any]) -> None:
    """Of a scan that runs, what serves it stays; the next one gets what is there now."""
    process = start(["kdmri_edge", "serve", folder, "--port", 0, "--threads", 1])
    port = listening(process)
    mask = own_mask(folder)
    scan = phantom_scan(mask, slices=2, coils=1)
    lines = list(readouts(scan))
    xml = write_encoding(encoding_of(scan), slices=2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(serialise(ConfigText("kdmri-edge")) + serialise(HeaderText(xml)))
        client.sendall(b"".join(map(serialise, lines[: len(lines) // 2])))
        logged(process, "loaded")
        (folder / "complex").rename(folder / "renamed")
        process.send_signal(signal.SIGHUP)
        found = logged(process, "reloaded")
        assert [one["name"] for one in found["bundles"]] == [
            "any-matrix", "magnitude", "renamed", "sense"
        ]  # fmt: skip
        client.sendall(b"".join(map(serialise, [*lines[len(lines) // 2 :], Close()])))
        parser, images = Parser(), []
        while data := client.recv(1 << 16):
            parser.feed(data)
            images += [m for m in parser.messages() if not isinstance(m, Text | Close)]
    assert [image.meta[BUNDLE] for image in images] == ["complex", "complex"]
    assert [fallback_of(image) for image in images] == [None, None]
    (first, _) = sent(port, scan).images
    assert first.meta[BUNDLE] == "renamed"
    # what is wrong changes nothing
    (folder / "serve.toml").write_text("rule = [", encoding="utf-8")
    process.send_signal(signal.SIGHUP)
    assert "not valid TOML" in logged(process, "not reloaded")["reason"]
    (first, _) = sent(port, scan).images
    assert first.meta[BUNDLE] == "renamed"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
