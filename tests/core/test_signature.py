"""Whose a bundle is: signatures that hold, and every way in which one does not."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdmri_edge as ke
from kdmri_edge.errors import BundleError, KeyFileError, OutputError, SignatureError
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.bundle import GOLDEN_OUTPUT, MANIFEST, open_bundle
from kdmri_edge.runtime.manifest import (
    DIGEST,
    SIGNATURE,
    digest_of,
    read_manifest_bytes,
    write_manifest,
)
from kdmri_edge.runtime.session import open_session
from kdmri_edge.runtime.signature import (
    SignatureState,
    check_signature,
    read_signature,
    sign_manifest,
    signed_text,
)
from kdmri_edge.runtime.signing import sign_bundle
from kdmri_edge.utils.keys import (
    PASSPHRASE,
    PrivateKey,
    PublicKey,
    make_key,
    read_private_key,
    read_public_key,
)
from tests.manifests import edit_manifest, rehash

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OLD = Path(__file__).resolve().parents[1] / "data" / "v0_1" / "bundles"
Cli = Callable[..., Any]
Keys = tuple[PrivateKey, PublicKey]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two keys, ours and other, and a bundle that ours has signed."""
    folder = tmp_path_factory.mktemp("signed")
    for name in ("ours", "other"):
        make_key(folder / name)
    bundle = Path(shutil.copytree(OLD / "onnx-f32", folder / "bundle"))
    write_manifest(bundle, open_bundle(bundle).manifest)
    sign_bundle(bundle, read_private_key(folder / "ours.key"))
    return folder


@pytest.fixture
def bundle(places: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(places / "bundle", tmp_path / "bundle"))


@pytest.fixture(scope="module")
def ours(places: Path) -> Keys:
    return read_private_key(places / "ours.key"), read_public_key(places / "ours.pub")


@pytest.fixture(scope="module")
def other(places: Path) -> Keys:
    return read_private_key(places / "other.key"), read_public_key(places / "other.pub")


def refused(bundle: Path, keys: Keys, state: SignatureState, *words: str) -> None:
    for verify in (True, False):
        with pytest.raises(SignatureError) as caught:
            open_bundle(bundle, verify=verify, keys=[keys[1]])
        assert caught.value.state == state
        assert caught.value.remedy
        for word in words:
            assert word in str(caught.value)


def test_a_signature_names_bundle_key_and_time(bundle: Path, ours: Keys) -> None:
    before = datetime.now(UTC) - timedelta(hours=1)
    opened = open_bundle(bundle, keys=[ours[1]])
    found = opened.signature
    assert found is not None
    assert found == read_signature(bundle)
    assert found.key == ours[0].fingerprint == ours[1].fingerprint
    assert found.digest == opened.digest
    assert found.checkpoint == f"sha256:{opened.manifest['checkpoint_sha256']}"
    assert datetime.fromisoformat(found.signed_utc) > before
    assert found.valid_until_utc is None
    # what anybody can do with the public key and the page on bundles
    statement = dataclasses.asdict(found)
    ours[1].key.verify(base64.b64decode(found.signature), signed_text(statement))
    assert open_bundle(bundle).signature is None  # nobody asked


def test_not_signed(bundle: Path, ours: Keys) -> None:
    (bundle / SIGNATURE).unlink()
    refused(bundle, ours, SignatureState.UNSIGNED, "is not signed", "kdmri-edge sign")
    assert open_bundle(bundle).manifest["target"] == "onnx"


def test_signed_by_another(bundle: Path, ours: Keys, other: Keys) -> None:
    sign_bundle(bundle, other[0])
    refused(bundle, ours, SignatureState.OTHER_KEY, "signed by another key", "ours.pub")
    assert open_bundle(bundle, keys=[ours[1], other[1]]).signature is not None


def test_a_key_cannot_be_claimed(bundle: Path, ours: Keys, other: Keys) -> None:
    """The other key signs, and names ours."""
    sign_bundle(bundle, other[0])
    content = json.loads((bundle / SIGNATURE).read_text())
    content["key"] = ours[0].fingerprint
    content["signature"] = base64.b64encode(other[0].sign(signed_text(content))).decode()
    (bundle / SIGNATURE).write_text(json.dumps(content))
    refused(bundle, ours, SignatureState.TAMPERED, "does not hold")


FIELDS = (
    "schema", "algorithm", "key", "manifest", "digest", "checkpoint", "target", "precision",
    "exported_utc", "signed_utc", "valid_until_utc", "report", "signature",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS[2:-1])
def test_nothing_in_a_signature_can_be_changed(bundle: Path, ours: Keys, field: str) -> None:
    content = json.loads((bundle / SIGNATURE).read_text())
    new = "2039-01-01T00:00:00+00:00" if field.endswith("utc") else f"sha256:{'0' * 64}"
    content[field] = new if field not in ("target", "precision") else "openvino"
    (bundle / SIGNATURE).write_text(json.dumps(content))
    state = SignatureState.OTHER_KEY if field == "key" else SignatureState.TAMPERED
    refused(bundle, ours, state)


def test_what_is_changed_after_it_was_signed(bundle: Path, ours: Keys) -> None:
    """By one who computes hashes and digest anew, as without a key would pass."""
    wrong = np.load(bundle / GOLDEN_OUTPUT)
    np.save(bundle / GOLDEN_OUTPUT, wrong + 1)
    edit_manifest(bundle, lambda m: rehash(m, bundle, GOLDEN_OUTPUT))
    open_bundle(bundle)
    refused(bundle, ours, SignatureState.TAMPERED, "changed after it was signed")


def test_a_file_that_is_changed_is_not_what_was_signed(bundle: Path, ours: Keys) -> None:
    with (bundle / "model.onnx").open("ab") as graph:
        graph.write(b"\0")
    with pytest.raises(BundleError, match=r"model\.onnx is not what was exported"):
        open_bundle(bundle, keys=[ours[1]])


def test_other_bytes_of_the_same_manifest(bundle: Path, ours: Keys) -> None:
    """White space means nothing to our reader, and may to another."""
    file = bundle / MANIFEST
    file.write_bytes(file.read_bytes() + b" ")
    refused(bundle, ours, SignatureState.TAMPERED, "in other bytes")


def test_the_signature_of_another_bundle(bundle: Path, ours: Keys, tmp_path: Path) -> None:
    second = Path(shutil.copytree(OLD / "onnx-int8", tmp_path / "second"))
    write_manifest(second, open_bundle(second).manifest)
    sign_bundle(second, ours[0])
    shutil.copy(second / SIGNATURE, bundle / SIGNATURE)
    refused(bundle, ours, SignatureState.OTHER_BUNDLE, "another bundle", "int8")


def test_a_signature_of_an_earlier_export_is_out_of_date(bundle: Path, ours: Keys) -> None:
    later = (datetime.now(UTC) + timedelta(days=2)).isoformat(timespec="seconds")
    edit_manifest(bundle, lambda m: m["provenance"].update(time_utc=later))
    refused(bundle, ours, SignatureState.OUTDATED, "earlier export", later)


def test_a_signature_that_has_run_out(bundle: Path, ours: Keys) -> None:
    past = datetime.now(UTC) - timedelta(days=10)
    made = sign_manifest(bundle, ours[0], valid_days=9, now=past)
    assert made.valid_until_utc is not None
    refused(bundle, ours, SignatureState.OUTDATED, "out of date", made.valid_until_utc)
    read = read_manifest_bytes(bundle / MANIFEST)
    assert check_signature(bundle, read, [ours[1]], now=past + timedelta(days=8)) == made
    sign_manifest(bundle, ours[0], valid_days=11, now=past)
    open_bundle(bundle, keys=[ours[1]])
    for days in (0, -1, 10**9):
        with pytest.raises(BundleError, match="days"):
            sign_bundle(bundle, ours[0], valid_days=days)


def test_bundles_of_earlier_versions_are_out_of_date(ours: Keys, tmp_path: Path) -> None:
    old = Path(shutil.copytree(OLD / "onnx-f32", tmp_path / "old"))
    refused(old, ours, SignatureState.OUTDATED, "earlier version")
    with pytest.raises(BundleError, match="earlier version"):
        sign_bundle(old, ours[0])
    assert not (old / SIGNATURE).exists()


def test_a_bundle_that_is_not_intact_is_not_signed(bundle: Path, ours: Keys) -> None:
    before = (bundle / SIGNATURE).read_bytes()
    (bundle / "extra").touch()
    with pytest.raises(BundleError, match="does not name"):
        sign_bundle(bundle, ours[0])
    assert (bundle / SIGNATURE).read_bytes() == before


# Files of signatures that are none


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no JSON"),
        (b"[]", "schema"),
        (b'{"schema": 1}', "keys"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 60_000, "no JSON"),
        (b'{"schema": 9}', "schema 9"),
        (b" " * 70_000, "too large"),
    ],
)
def test_no_signature(bundle: Path, ours: Keys, content: bytes, why: str) -> None:
    (bundle / SIGNATURE).write_bytes(content)
    refused(bundle, ours, SignatureState.TAMPERED, SIGNATURE, why)


def test_a_key_twice(bundle: Path, ours: Keys) -> None:
    text = (bundle / SIGNATURE).read_text()
    (bundle / SIGNATURE).write_text(text.replace("{", '{"schema": 1, ', 1))
    refused(bundle, ours, SignatureState.TAMPERED, "a key twice")


@settings(max_examples=30)
@given(
    field=st.sampled_from(FIELDS),
    value=st.none() | st.booleans() | st.integers() | st.text(max_size=80),
)
def test_any_value_in_place_of_a_right_one(
    places: Path, ours: Keys, field: str, value: Any
) -> None:
    read = read_manifest_bytes(places / "bundle" / MANIFEST)
    content = json.loads((places / "bundle" / SIGNATURE).read_text())
    if content[field] == value and type(content[field]) is type(value):
        return
    hurt = places / "hurt"
    hurt.mkdir(exist_ok=True)
    (hurt / SIGNATURE).write_text(json.dumps({**content, field: value}))
    with pytest.raises(SignatureError):
        check_signature(hurt, read, [ours[1]])


# Who wishes it ill


def test_links_extra_files_and_doubled_keys(bundle: Path, ours: Keys, tmp_path: Path) -> None:
    kept = tmp_path / "kept.sig"
    shutil.move(bundle / SIGNATURE, kept)
    (bundle / SIGNATURE).symlink_to(kept)
    refused(bundle, ours, SignatureState.TAMPERED, "link")
    (bundle / SIGNATURE).unlink()
    shutil.copy(kept, bundle / SIGNATURE)
    (bundle / "model.onnx\u0301").write_bytes(b"looks like the graph")
    with pytest.raises(BundleError, match="does not name"):
        open_bundle(bundle, keys=[ours[1]])
    (bundle / "model.onnx\u0301").unlink()
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace("{", '{"graph": "other.onnx", ', 1))
    for keys in ([], [ours[1]]):
        with pytest.raises(BundleError, match="twice"):
            open_bundle(bundle, keys=keys)


def test_a_manifest_cannot_account_for_its_signature(bundle: Path, ours: Keys) -> None:
    edit_manifest(bundle, lambda m: m["files"].update({SIGNATURE: "0" * 64}))
    with pytest.raises(BundleError, match="outside its bundle"):
        open_bundle(bundle, keys=[ours[1]])


def test_an_engine_that_nobody_signed(ours: Keys, tmp_path: Path) -> None:
    """TensorRT takes the newest engine that lies there, and an engine is code."""
    made = Path(shutil.copytree(OLD / "trt-f16", tmp_path / "trt"))
    write_manifest(made, open_bundle(made).manifest)
    sign_bundle(made, ours[0])
    digest = open_bundle(made, keys=[ours[1]]).digest
    (made / "model.sm86.engine").write_bytes(b"code")
    assert open_bundle(made).digest == digest
    with pytest.raises(BundleError, match="built after the bundle was signed"):
        open_bundle(made, keys=[ours[1]])
    sign_bundle(made, ours[0])  # the site vouches for what it built
    opened = open_bundle(made, keys=[ours[1]])
    assert opened.digest == digest
    assert "model.sm86.engine" in opened.manifest["files"]
    (made / "model.sm86.engine").write_bytes(b"edoc")
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(made, keys=[ours[1]])


def test_a_graph_that_is_exchanged_after_its_check_is_not_run(
    bundle: Path, ours: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write into the bundle does so when the runtime is about to read the graph."""
    pytest.importorskip("onnxruntime")
    seen = []

    class Late(OnnxRuntimeSession):
        def __init__(self, graph: Path, **options: Any) -> None:
            (bundle / "model.onnx").write_bytes(b"of a stranger")
            seen.append(graph)
            super().__init__(graph, **options)

    monkeypatch.setattr("kdmri_edge.runtime.backends.onnxruntime.OnnxRuntimeSession", Late)
    session = open_session(bundle, backend="onnxruntime", keys=[ours[1]])
    given = np.load(bundle / "golden_input.npy")
    wanted = np.load(bundle / GOLDEN_OUTPUT)
    assert np.abs(session.run(given) - wanted).max() < 1e-4
    assert seen[0].parent != bundle
    assert stat.S_IMODE(seen[0].parent.parent.stat().st_mode) == 0o700
    session.close()
    del session
    assert not seen[0].exists()


def test_refusals_speak_of_the_bundle_and_leave_no_copy(
    bundle: Path, ours: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (bundle / "model.onnx").write_bytes(b"\x08\x0a")  # a graph without a node
    edit_manifest(bundle, lambda m: rehash(m, bundle, "model.onnx"))
    sign_manifest(bundle, ours[0])
    with pytest.raises(ke.errors.KdmriError) as caught:
        open_session(bundle, backend="onnxruntime", keys=[ours[1]])
    assert str(bundle) in str(caught.value)
    assert "kdmri-edge-" not in str(caught.value)
    assert not list(tmp_path.glob("kdmri-edge-*"))


# Keys


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "a" / "key")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    for name in ("key", "a"):
        (tmp_path / "b.pub").touch()
        with pytest.raises(OutputError, match="already"):
            make_key(tmp_path / ("a/key" if name == "key" else "b"))
    assert not (tmp_path / "b.key").exists()


def test_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = make_key(tmp_path / "key", "open sesame")
    assert b"ENCRYPTED" in private.read_bytes()
    with pytest.raises(KeyFileError, match=PASSPHRASE):
        read_private_key(private)
    with pytest.raises(KeyFileError, match="does not open"):
        read_private_key(private, lambda: "wrong")
    wanted = read_public_key(public).fingerprint
    assert read_private_key(private, lambda: "open sesame").fingerprint == wanted
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    assert read_private_key(private).fingerprint == wanted


def pem(key: Any, *, private: bool) -> bytes:
    encoding = serialization.Encoding.PEM
    if private:
        form = serialization.PrivateFormat.PKCS8
        return bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(encoding, form))


def test_keys_that_are_none(places: Path, tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    long = rsa.generate_private_key(65537, 1024)
    whole = (places / "ours.pub").read_bytes()
    file = tmp_path / "key"
    for content, word in (
        (pem(long, private=False), "RSA"), (pem(curve, private=False), "Ed25519"),
        ((places / "ours.key").read_bytes(), "is a private key"),
        (whole.replace(b"MC", b"M!", 1), "cannot be read"), (whole[:60], "cannot be read"),
        (b"", "no public key"), (b"\xff" * 99, "no public key"), (b"a" * 70_000, "too large"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(KeyFileError, match=word):
            read_public_key(file)
    for content, word in (
        (pem(long, private=True), "RSA"), (pem(curve, private=True), "Ed25519"),
        (whole, "is a public key"), (b"", "no private key"),
        ((places / "ours.key").read_bytes()[:70], "cannot be read"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(KeyFileError, match=word):
            read_private_key(file)
    for missing in (tmp_path, tmp_path / "nowhere"):
        for read in (read_private_key, read_public_key):
            with pytest.raises(KeyFileError):
                read(missing)


def test_openssl_writes_the_same_keys(tmp_path: Path) -> None:
    """One made elsewhere (RFC 8410, section 10.3)."""
    file = tmp_path / "rfc.key"
    file.write_text(
        "-----BEGIN PRIVATE KEY-----\n"
        "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n"
        "-----END PRIVATE KEY-----\n"
    )
    os.chmod(file, 0o600)
    public = tmp_path / "rfc.pub"
    public.write_text(
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        "-----END PUBLIC KEY-----\n"
    )
    assert read_private_key(file).fingerprint == read_public_key(public).fingerprint


# The commands


def test_a_page_has_a_place_of_its_own(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """In the bundle it would be a file too many, and a wrong place is found out at once."""
    held = sorted(bundle.iterdir())
    done = cli("verify", bundle, "--files-only", "--out", bundle / "page.html")
    assert done.code == 2
    assert "lies in the bundle" in done.err
    cli("verify", bundle, "--files-only", "--out", tmp_path).check_refusal("is a folder")
    assert sorted(bundle.iterdir()) == held


def test_verify_tells_them_apart(cli: Cli, bundle: Path, places: Path, tmp_path: Path) -> None:
    def kind(*further: object) -> str:
        page = tmp_path / "page.html"
        done = cli("verify", bundle, "--files-only", "--json", "--out", page,
                   "--key", places / "ours.pub", *further)  # fmt: skip
        found = json.loads(done.out)
        assert done.code == (0 if found["passed"] else 1)
        assert ("Error: " in done.err) == (not found["passed"])
        text = page.read_text(encoding="utf-8")
        assert ("Not accepted" in text) == (not found["passed"])
        assert "<script" not in text
        assert "http" not in text.replace("http-equiv", "")
        return "" if found["passed"] else str(found["problem"]["kind"])

    assert kind() == ""
    signed = (bundle / SIGNATURE).read_bytes()
    assert cli("sign", bundle, "--key", places / "other.key").code == 0
    assert kind() == "other key"
    assert kind("--key", places / "other.pub") == ""
    (bundle / SIGNATURE).unlink()
    assert kind() == "unsigned"
    (bundle / SIGNATURE).write_bytes(signed)
    manifest = (bundle / MANIFEST).read_bytes()
    edit_manifest(bundle, lambda m: m.update(role="teacher"))
    assert kind() == "tampered"
    edit_manifest(bundle, lambda m: m.update(role="teacher", checkpoint_sha256="0" * 64))
    assert kind() == "other bundle"
    (bundle / MANIFEST).write_bytes(manifest)
    later = "2999-01-01T00:00:00+00:00"
    edit_manifest(bundle, lambda m: m["provenance"].update(time_utc=later))
    assert kind() == "outdated"
    (bundle / MANIFEST).write_bytes(manifest)
    (bundle / "model.onnx").write_bytes(b"")
    assert kind() == "not intact"
    cli("verify", bundle, "--key", places / "ours.key").check_refusal("private key")


def test_run_and_load_insist_on_it(cli: Cli, bundle: Path, places: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    np.save(tmp_path / "x.npy", np.ones((1, 32, 32), np.float32))
    given = ("run", bundle, tmp_path / "x.npy", "-o", tmp_path / "o.npy", "--undersample")
    cli(*given, "--key", places / "other.pub").check_refusal("signed by another key")
    assert not (tmp_path / "o.npy").exists()
    assert cli(*given, "--key", places / "ours.pub").code == 0
    with ke.load(bundle, key=places / "ours.pub") as network:
        assert network.info.backend == "ONNX Runtime"
    with pytest.raises(SignatureError):
        ke.load(bundle, key=[places / "other.pub"])
    for source in ("dccnn-edge@brain-4x", "dccnn-d3c5@brain-any-mask"):
        with pytest.raises(SignatureError, match="no bundle"):
            ke.load(source, key=places / "ours.pub")


def test_serve_insists_on_it(cli: Cli, bundle: Path, places: Path, tmp_path: Path) -> None:
    pytest.importorskip("ismrmrd")
    pytest.importorskip("prometheus_client")
    many = tmp_path / "many"
    for name in ("a", "b"):
        shutil.copytree(bundle, many / name)
    (many / "b" / SIGNATURE).unlink()
    for source in (many, many / "b"):
        done = cli("serve", source, "--port", 0, "--key", places / "ours.pub")
        done.check_refusal("is not signed", "b")


def report(place: Path, **network: Any) -> Path:
    place.write_text(json.dumps({"schema": 1, "networks": [{"key": "student int8", **network}]}))
    return place


def test_a_report_and_a_bundle_know_each_other(
    cli: Cli, bundle: Path, places: Path, tmp_path: Path
) -> None:
    manifest = open_bundle(bundle).manifest
    key = ("--key", places / "ours.pub")
    own = report(tmp_path / "own.json", bundle_digest=manifest[DIGEST])
    weights = report(tmp_path / "weights.json", digest=f"sha256:{'1' * 64}",
                     checkpoint_sha256=manifest["checkpoint_sha256"])  # fmt: skip
    others = report(tmp_path / "others.json", digest=None)
    for file, word, code in ((own, "this very bundle", 0), (weights, "same weights", 1),
                             (others, "about others: student int8", 1)):  # fmt: skip
        done = cli("verify", bundle, "--files-only", "--report", file)
        assert (done.code, word in done.out) == (code, True), done.out
    cli("sign", bundle, "--key", places / "ours.key", "--report", weights).check_refusal(
        "same weights", "--report"
    )
    done = cli("sign", bundle, "--key", places / "ours.key", "--report", own, "--json")
    (signed,) = json.loads(done.out)
    found = json.loads(cli("verify", bundle, "--files-only", "--json", "--report", own, *key).out)
    assert found["report"]["named_by_signature"]
    assert found["report"]["report"] == signed["report"]
    assert found["digest"] == signed["digest"] == digest_of(manifest)
    own.write_text(own.read_text() + " ")  # another file now
    found = json.loads(cli("verify", bundle, "--files-only", "--json", "--report", own).out)
    assert not found["report"]["named_by_signature"]
    for content in ("", "[]", "{}", '{"networks": [1]}', '{"networks": [{"name": "x"}]}'):
        own.write_text(content)
        cli("verify", bundle, "--files-only", "--report", own).check_refusal("own.json")
    cli("verify", bundle, "--report", tmp_path / "nowhere.json").check_refusal("does not exist")


def test_speed_and_memory_fail_against_limits_alone(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    page = tmp_path / "page.html"
    measured = ("verify", bundle, "--backend", "onnxruntime", "--json")
    there = {"backend": "onnxruntime", "precision": "f32", "threads": 1, "samples": 30,
             "runtime": "ONNX Runtime", "p50_ms": 1e-9, "peak_bytes": 1,
             "machine": {"cpu": "another"}}  # fmt: skip
    edit_manifest(bundle, lambda m: m.update(measured=there))
    done = cli(*measured, "--out", page, "--max-memory", "900GiB")
    found = json.loads(done.out)
    assert done.code == 0, done.out
    here = found["performance"]["here"]
    assert here["p50_ms"] > 0
    assert here["peak_bytes"] > 2**20
    assert found["performance"]["ratios"]["time"] > 1  # the export was faster: nothing fails
    assert "another" in page.read_text(encoding="utf-8")
    done = cli(*measured, "--max-ms", 1e-6)
    assert done.code == 1
    (line,) = [one for one in json.loads(done.out)["checks"] if one["name"] == "Speed and memory"]
    assert line["result"] == "failed"
    assert "above" in line["text"]
    assert cli("verify", bundle, "--files-only", "--max-ms", 1).code == 2
    assert cli("verify", bundle, "--no-measure", "--max-ms", 1).code == 2
    cli("verify", bundle, "--max-memory", "much").check_refusal("--max-memory")


@pytest.mark.nightly
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("key", ["ours.pub", "other.pub"])
def test_a_browser_opens_the_page_and_prints_one(
    cli: Cli, bundle: Path, places: Path, tmp_path: Path, key: str
) -> None:
    page, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    done = cli("verify", bundle, "--key", places / key, "--out", page)
    assert done.code == int(key != "ours.pub")
    browser = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
        "--no-pdf-header-footer", f"--print-to-pdf={printed}", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "CONSOLE" not in shown.stderr
    assert len(re.findall(rb"/Type\s*/Page[^s]", printed.read_bytes())) == 1


def test_sign_by_mistake(cli: Cli, bundle: Path, places: Path) -> None:
    key = ("--key", places / "ours.key")
    for wrong in ((), (bundle,), key, ("--new-key", "x", bundle), (bundle, *key, "--passphrase"),
                  (bundle, *key, "--valid-days", 0)):  # fmt: skip
        assert cli("sign", *wrong).code == 2
    cli("sign", bundle, "--key", places / "ours.pub").check_refusal("public key", ".key")
    cli("sign", places, *key).check_refusal("is no bundle")
    cli("sign", "--new-key", places / "ours").check_refusal("already")
