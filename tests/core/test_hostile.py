"""What strangers wrote, or nobody meant: one sentence each, and never a wrong image in silence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdmri_edge as ke
from kdmri_edge.models.checkpoint import save_checkpoint
from kdmri_edge.physics.masks import load_mask
from kdmri_edge.physics.scaling import slice_scale
from kdmri_edge.utils.files import atomic_path, read_json
from tests.export.networks import write_checkpoint
from tests.manifests import edit_manifest

Cli = Callable[..., Any]


@pytest.mark.parametrize("unit", [1e-13, 1e-30])
def test_data_too_small_to_be_told_from_nothing_are_refused(
    tiny_bundles: dict[str, Path], unit: float
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 32, 32)).astype(np.float32)
    with pytest.raises(ke.errors.DataError, match="too small"):
        slice_scale(x * np.float32(unit))
    with ke.load(tiny_bundles["magnitude"], threads=1) as net:
        kspace = np.zeros((1, 32, 32), np.complex64)
        kspace[net.mask.grid * np.ones((1, 32, 32), bool)] = unit / 100
        with pytest.raises(ke.errors.DataError, match="too small"):
            net.reconstruct(kspace)


def test_blank_slices_beside_others_are_blank() -> None:
    x = np.zeros((3, 8, 8), np.float32)
    x[1, 2, 3], x[2] = 5.0, 1e-15
    assert slice_scale(x).tolist() == [1.0, 5.0, 1.0]
    assert slice_scale(np.zeros((1, 8, 8))).tolist() == [1.0]


def test_weights_of_another_type_are_not_read_as_floats(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from dataclasses import replace

    from kdmri_edge.models.checkpoint import load_checkpoint

    path = write_checkpoint(tmp_path / "s.safetensors")
    held = load_checkpoint(path)
    name = next(iter(held.state))
    state = {**held.state, name: held.state[name].view(torch.int32)}
    save_checkpoint(path, replace(held, state=state))
    with pytest.raises(ke.errors.CheckpointError, match="does not fit"):
        load_checkpoint(path)


@pytest.mark.parametrize("bad", [0.5, np.nan, -1])
def test_a_mask_of_other_values_is_refused_by_the_api(
    tiny_bundles: dict[str, Path], bad: float
) -> None:
    with ke.load(tiny_bundles["magnitude"], threads=1) as net:
        mask = net.mask.samples.astype(np.float64)
        mask[0] = bad
        with pytest.raises(ke.errors.MaskError, match="other than 0 and 1"):
            net.reconstruct(np.ones((32, 32), np.complex64), mask=mask)


@pytest.mark.parametrize("shape", [(32,), (32, 24)])
def test_a_centred_mask_is_refused_and_its_shifted_form_taken(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    centred = np.zeros(shape, np.uint8)
    centred[tuple(slice(n // 2 - 4, n // 2 + 4) for n in shape)] = 1
    np.save(tmp_path / "m.npy", centred)
    with pytest.raises(ke.errors.MaskError, match="ifftshift"):
        load_mask(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", np.fft.ifftshift(centred))
    assert load_mask(tmp_path / "m.npy").samples.flat[0]


@pytest.mark.parametrize("name", ["o.npy", "o.nii.gz", "o.h5"])
def test_images_that_are_not_finite_are_not_written(tmp_path: Path, name: str) -> None:
    images = np.ones((1, 8, 8), np.float32)
    images[0, 0, 0] = np.inf
    with pytest.raises(ke.errors.OutputError, match="NaN or infinite"):
        ke.write(tmp_path / name, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ke.errors.OutputError, match="pipe"), atomic_path(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_json_nested_too_deeply_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ke.errors.RunError, match="not readable JSON"):
        read_json(tmp_path / "deep.json", ke.errors.RunError)


def test_names_too_long_are_a_sentence(cli: Cli, tiny_bundles: dict[str, Path]) -> None:
    done = cli("run", tiny_bundles["magnitude"], f"{'a' * 300}.npy", "-o", "o.npy")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "shorter name" in done.err


@pytest.mark.parametrize(
    "change",
    [
        {"spec": None},
        {"spec": 3},
        {"precision": "f99"},
        {"matrix": "many"},
        {"mask": {}},
        {"mask": {"sampled": "all", "shape": [32]}},
        {"mask_input": True},
        {"io": {"input": {}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["verify", "run"])
def test_edited_manifests_are_refused(
    cli: Cli,
    tiny_bundles: dict[str, Path],
    change: dict[str, Any],
    command: str,
    tmp_path: Path,
) -> None:
    bundle = Path(shutil.copytree(tiny_bundles["magnitude"], tmp_path / "bundle"))
    edit_manifest(bundle, lambda manifest: manifest.update(change))
    np.save(tmp_path / "x.npy", np.ones((1, 32, 32), np.float32))
    further = [tmp_path / "x.npy", "-o", tmp_path / "o.npy", "--undersample"]
    done = cli(command, bundle, *(further if command == "run" else []))
    assert done.code == 1, done.out
    assert "Traceback" not in done.err
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize(
    "settings", [None, [], {"recipe": 3}, {"mask": None}, {"recipe": {}, "mask": {}}], ids=str
)
def test_edited_runs_are_not_resumed(cli: Cli, settings: Any, tmp_path: Path) -> None:
    value = {"format": 1, "status": "stopped", "settings": settings}
    (tmp_path / "run.json").write_text(json.dumps(value))
    done = cli("distill", "--resume", "--out", tmp_path)
    assert done.code == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("seed", range(8))
def test_reports_of_strangers_are_sentences(cli: Cli, seed: int, tmp_path: Path) -> None:
    """Values of a real report are replaced by others, one at a time."""
    recorded = Path(__file__).parents[2] / "bench" / "results" / "workstation" / "report.json"
    report = json.loads(recorded.read_text())
    rng = np.random.default_rng(seed)
    for _ in range(12):
        damaged = json.loads(json.dumps(report))
        place, keys = damaged, []
        while isinstance(place, (dict, list)) and place and (len(keys) < 2 or rng.random() < 0.7):
            keys = [*keys, list(place)[rng.integers(len(place))]] if isinstance(place, dict) else [
                *keys, int(rng.integers(len(place)))
            ]  # fmt: skip
            parent, place = place, place[keys[-1]]
        parent[keys[-1]] = [None, [], {}, "x", -1, "nan"][rng.integers(6)]
        (tmp_path / "report.json").write_text(json.dumps(damaged))
        done = cli("select", tmp_path / "report.json")
        assert done.code in (0, 1), keys
        assert "Traceback" not in done.err, keys


def test_toml_and_json_nested_too_deeply_are_sentences(tmp_path: Path) -> None:
    from kdmri_edge.data.datasets import load_split
    from kdmri_edge.utils.config import override, read_toml

    deep = "x = " + "[" * 100_000
    (tmp_path / "r.toml").write_text(deep)
    (tmp_path / "s.json").write_text("[" * 100_000)
    for read, path, error in (
        (read_toml, "r.toml", ke.errors.RecipeError),
        (load_split, "r.toml", ke.errors.DataError),
        (load_split, "s.json", ke.errors.DataError),
        (load_mask, "s.json", ke.errors.MaskError),
    ):
        with pytest.raises(error):
            read(tmp_path / path)
    assert override({}, [deep]) == {"x": "[" * 100_000}


def test_numbers_of_thousands_of_digits_are_sentences(tmp_path: Path) -> None:
    from kdmri_edge.utils.config import read_toml

    digits = "9" * 6000
    (tmp_path / "r.toml").write_text(f"seed = {digits}")
    with pytest.raises(ke.errors.RecipeError):
        read_toml(tmp_path / "r.toml")
    (tmp_path / "m.json").write_text(f'{{"shape": [{digits}], "sampled": [0], "name": "m"}}')
    with pytest.raises(ke.errors.MaskError):
        load_mask(tmp_path / "m.json")
    for place in ("x = 1e308", f"x = {digits}"):
        (tmp_path / "r.toml").write_text(place.replace("x", "teacher_steps"))
        with pytest.raises(ke.errors.RecipeError):
            ke.distillation.load_recipe(str(tmp_path / "r.toml"))


@pytest.mark.parametrize("what", ["", "\x93NUMPY", "x" * 200])
def test_a_damaged_golden_file_is_named_and_nobody_interrupted(
    cli: Cli, tiny_bundles: dict[str, Path], what: str, tmp_path: Path
) -> None:
    from kdmri_edge.runtime.bundle import write_manifest

    bundle = Path(shutil.copytree(tiny_bundles["magnitude"], tmp_path / "bundle"))
    (bundle / "golden_input.npy").write_text(what, encoding="latin1")
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {k: v for k, v in manifest.items() if k not in ("files", "schema")})
    cli("verify", bundle).check_refusal("golden_input.npy")


def test_the_end_of_a_file_is_not_called_an_interruption(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    def ends(*_: Any, **__: Any) -> None:
        raise EOFError  # as numpy does; click takes it for the end of what a user types

    monkeypatch.setattr("kdmri_edge.data.conversion.convert", ends)
    done = cli("data", "convert", tmp_path / "a.npy", tmp_path / "b.npy")
    done.check_refusal("ended before its contents did")


@pytest.mark.parametrize("family", ["cascades", "convs", "width", "kernel"])
def test_networks_of_absurd_sizes_are_refused(family: str) -> None:
    from dataclasses import replace

    from kdmri_edge.models.specs import preset

    with pytest.raises(ke.errors.ModelError, match=family):
        replace(preset("dccnn-d3c5"), **{family: 10**11 + 1})


def test_a_checkpoint_of_any_size_is_compared_before_it_is_built(tmp_path: Path) -> None:
    """10^9 weights are named; the file holds a few."""
    from dataclasses import replace

    from kdmri_edge.models.checkpoint import load_checkpoint

    path = write_checkpoint(tmp_path / "s.safetensors")
    held = load_checkpoint(path)
    large = replace(held.spec, width=1 << 15)
    save_checkpoint(path, replace(held, spec=large))
    with pytest.raises(ke.errors.CheckpointError, match="does not fit"):
        load_checkpoint(path)
