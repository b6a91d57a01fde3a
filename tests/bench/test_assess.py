"""`kdmri-edge assess`: tiny untrained networks on phantoms, in PyTorch: nothing is exported."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn

from kdmri_bench.assessment import robustness, study, verdict
from kdmri_bench.assessment.assess import PAGE, REPORT, Assessment, assess, read_assessment
from kdmri_bench.assessment.compare import compare_reports
from kdmri_bench.assessment.data import brought, load
from kdmri_bench.assessment.disagreement import _to_find_it
from kdmri_bench.assessment.kept import Kept
from kdmri_bench.assessment.margins import load_margins
from kdmri_bench.assessment.networks import AssessedNetwork, describe, teacher_of
from kdmri_bench.assessment.page import build
from kdmri_bench.assessment.rounded import RoundedSession
from kdmri_bench.assessment.sections import SECTIONS, Measure, Section, Table, over_subjects
from kdmri_bench.assessment.study import Images, reconstructed
from kdmri_bench.assessment.text import plain
from kdmri_bench.assessment.verdict import judge
from kdmri_bench.measuring.workspace import UNFINISHED
from kdmri_bench.results.statistics import MARGIN
from kdmri_edge.cli import main
from kdmri_edge.data.case import Case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, CheckpointError, DataError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.files import sha256_file

MATRIX = 32
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    return [phantom_volume(seed, slices=2, matrix=MATRIX) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Run], mask: Mask, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Teacher and student; the student knows the largest values of its layers, as int8 needs."""
    made = make_run(tmp_path_factory.mktemp("run"), mask, ("teacher", "student"))
    path = made.weights("student")
    checkpoint = load_checkpoint(path)
    network = build_model(checkpoint.spec)
    maxima = {
        layer.name: [1.0] * cast(nn.Conv2d, network.get_submodule(layer.name)).in_channels
        for layer in network.layers()
    }
    training = {**checkpoint.training, "activation_maxima": maxima}
    save_checkpoint(path, dataclasses.replace(checkpoint, training=training))
    return made


@pytest.fixture(scope="module")
def done(run: Run, volumes: list[Volume], tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    return assess(run, volumes, in_pytorch=True, out=tmp_path_factory.mktemp("report"))


TEACHER, STUDENT, ROUNDED = "teacher fp32", "distilled student fp32", "distilled student int8"


def _measures(done: Assessment, section: str) -> dict[tuple[str, str, str], Measure]:
    found = done.section(section)
    assert found is not None
    return {(m.name, m.network, m.against): m for m in found.measures}


def test_the_report_says_what_ran_and_why_others_did_not(done: Assessment) -> None:
    value = read_assessment(done.files["json"].parent)
    assert value == json.loads(json.dumps(done.to_dict()))
    networks = {network["key"]: network for network in value["networks"]}
    assert list(networks) == ["zero-filled", TEACHER, STUDENT, ROUNDED]
    assert networks[ROUNDED]["ran"]["precision_executed"].startswith("int8 rounded in float32")
    assert re.fullmatch("[0-9a-f]{64}", networks[STUDENT]["digest"])
    [missing] = value["missing"]
    assert missing["key"] == "teacher int8"
    assert "ranges of activations" in missing["reason"]
    assert value["teacher"] == "teacher"
    assert {"git", "machine", "versions", "seed"} <= set(value["provenance"])
    assert [section["name"] for section in value["sections"]] == list(SECTIONS)


def test_figures_are_those_of_the_images(done: Assessment, volumes: list[Volume]) -> None:
    from kdmri_edge.data.case import make_case
    from kdmri_edge.metrics import psnr

    mask = variable_density_lines(MATRIX, 4, centre_lines=4, seed=3)
    found = _measures(done, "volumes")
    expected = [
        psnr(volume.image, np.maximum(make_case(volume, mask).zero_filled, 0)) for volume in volumes
    ]
    measure = found["psnr_db", "zero-filled", ""]
    assert measure.value == pytest.approx(np.mean(expected))
    assert measure.low is not None
    assert measure.high is not None
    assert measure.low == pytest.approx(min(expected))  # of three subjects one is drawn thrice
    assert measure.high == pytest.approx(max(expected))
    change = found["psnr_db", STUDENT, TEACHER]
    own, theirs = found["psnr_db", STUDENT, ""], found["psnr_db", TEACHER, ""]
    assert own.value is not None
    assert theirs.value is not None
    assert change.value == pytest.approx(own.value - theirs.value)


def test_regions_of_disagreement_are_where_images_differ(done: Assessment) -> None:
    section = done.section("disagreement")
    assert section is not None
    regions = section.facts["regions"][f"{STUDENT} against {TEACHER}"]
    assert [region["rms"] for region in regions] == sorted(
        (r["rms"] for r in regions), reverse=True
    )
    assert len(section.galleries) == 3
    assert all(tile.uri.startswith("data:image/png;base64,")
               for gallery in section.galleries for picture in gallery.pictures
               for tile in picture.tiles)  # fmt: skip


@pytest.mark.parametrize("shape", [(240, 240), (241, 129), (64, 64)])
def test_a_whole_slice_shows_where_a_region_lies(shape: tuple[int, int]) -> None:
    place = slice(40, 56), slice(8, 40)
    image = np.zeros(shape, np.float32)
    image[place] = 1
    shown, around = _to_find_it(image, place)
    assert shown.shape == (shape if shape == (64, 64) else (shape[0] // 2, shape[1] // 2))
    assert (shown[around] == 1).all()
    assert shown.sum() == shown[around].size


def test_a_coarse_matrix_has_no_phantom(done: Assessment) -> None:
    section = done.section("phantom")
    assert section is not None
    assert section.reason is not None
    assert "too coarse" in section.reason
    assert section.measures == ()


def test_aimed_perturbations_are_worse_than_noise(done: Assessment) -> None:
    section = done.section("robustness")
    assert section is not None
    table = next(table for table in section.tables if table.title.startswith("Aimed"))
    assert [row[0] for row in table.rows] == [TEACHER, STUDENT]
    for row in table.rows:
        noise, worst = row[2], row[3]
        assert isinstance(noise, float)
        assert isinstance(worst, float)
        assert worst >= noise > 0


def test_three_subjects_are_too_few_for_a_verdict(done: Assessment) -> None:
    section = done.section("verdict")
    assert section is not None
    pairs = section.facts["pairs"]
    assert [(pair["candidate"], pair["reference"]) for pair in pairs] == [
        (STUDENT, TEACHER), (ROUNDED, TEACHER), (ROUNDED, STUDENT),
    ]  # fmt: skip
    assert {pair["verdict"] for pair in pairs} == {"inconclusive"}
    assert "3 subject(s)" in pairs[0]["judged"][0]["reason"]


def test_one_subject_has_no_interval_and_no_verdict(run: Run, volumes: list[Volume]) -> None:
    done = assess(run, volumes[:1], in_pytorch=True, int8=False, sections=["volumes", "verdict"])
    measure = _measures(done, "volumes")["psnr_db", STUDENT, ""]
    assert measure.value is not None
    assert measure.low is None
    assert measure.reason is not None
    verdict = done.section("verdict")
    assert verdict is not None
    assert verdict.facts["pairs"][0]["verdict"] == "inconclusive"
    assert "There is one subject" in build(done)


@pytest.mark.parametrize(
    ("key", "held"),
    [("cascades.0.convs.0", -1.0), ("cascades.0.convs.0:parts", -1.0), ("x:parts", "1")],
)
def test_damaged_ranges_are_refused(run: Run, key: str, held: object, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run.weights("student"))
    ranges = {"cascades.0.convs.0": 1.0, key: held}
    path = tmp_path / "student-int8.safetensors"
    training = {**checkpoint.training, "activation_ranges": ranges}
    save_checkpoint(path, dataclasses.replace(checkpoint, training=training))
    with pytest.raises(CheckpointError, match=f"says of .*{key}"):
        RoundedSession(path)


def test_constant_images_have_their_reason(run: Run) -> None:
    blank = Volume(
        image=np.zeros((2, MATRIX, MATRIX), np.float32), name="blank", subject="b", sha256="1" * 64
    )
    done = assess(run, [blank], in_pytorch=True, int8=False)
    reasons = {section.name: section.reason for section in done.sections}
    assert "nowhere above zero" in str(reasons["volumes"])
    assert reasons["disagreement"] is not None
    assert reasons["robustness"] is not None
    assert "NaN" not in json.dumps(done.to_dict())


@pytest.mark.nightly
@pytest.mark.parametrize("coils", [False, True], ids=["complex", "coils"])
def test_networks_of_complex_images_and_of_coils_are_assessed(
    volumes: list[Volume], tmp_path: Path, coils: bool
) -> None:
    mask = variable_density_lines(MATRIX, 1.2, centre_lines=24, seed=3)
    paths = []
    for role, convs in (("teacher", 3), ("student", 2)):
        spec = ModelSpec(
            kind="dccnn", cascades=2, convs=convs, width=4, attention_tap=convs - 1, channels=2,
            coils=coils,
        )  # fmt: skip
        paths.append(tmp_path / f"{role}.safetensors")
        state = build_model(spec).state_dict()
        save_checkpoint(
            paths[-1],
            Checkpoint(spec=spec, mask=mask, matrix=MATRIX, role=role, training={}, state=state),
        )
    done = assess(paths, volumes, in_pytorch=True, int8=False)
    reasons = {section.name: section.reason for section in done.sections}
    assert reasons["volumes"] is None
    assert reasons["disagreement"] is None
    assert (reasons["robustness"] is None) != coils
    assert not coils or "the images of several coils" in str(reasons["robustness"])


def test_one_network_is_compared_with_none(run: Run, volumes: list[Volume]) -> None:
    done = assess(
        run.weights("student"), volumes, in_pytorch=True, int8=False, sections=["verdict"]
    )
    assert done.teacher is None
    section = done.section("verdict")
    assert section is not None
    assert "nothing to compare" in str(section.reason)


@pytest.mark.parametrize(
    ("low", "high", "subjects", "expected"),
    [
        (-0.05, 0.2, 5, "non-inferior"),
        (-0.3, -0.15, 5, "inferior"),
        (-0.3, 0.1, 5, "inconclusive"),
        (-0.05, 0.2, 4, "inconclusive"),
        (None, None, 5, "inconclusive"),
    ],
)
def test_the_interval_decides(
    low: float | None, high: float | None, subjects: int, expected: str
) -> None:
    change = Measure(
        name="psnr_db", title="PSNR", network="a", against="b", value=0.0, low=low, high=high,
        subjects=subjects,
    )  # fmt: skip
    judged = judge("volumes", "psnr_db", 0.1, change, fewest=5)
    assert judged.verdict == expected
    assert judged.reason.endswith(".")


def test_a_network_that_saw_the_volumes_gets_no_verdict(
    make_run: Callable[..., Run], mask: Mask, volumes: list[Volume], tmp_path: Path
) -> None:
    run = make_run(tmp_path, mask, ("teacher", "student"), seen=volumes[0].sha256)
    done = assess(run, volumes, in_pytorch=True, int8=False, sections=["volumes", "verdict"])
    section = done.section("verdict")
    assert section is not None
    assert "in its training" in section.facts["pairs"][0]["judged"][0]["reason"]


def test_the_default_margins_are_the_benchmarks() -> None:
    margins = load_margins()
    assert margins.losses["volumes"] == {"psnr_db": MARGIN["psnr"], "ssim": MARGIN["ssim"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subjects = 5\n[volumes]\npsnr_db = -0.1", "no margin"),
        ("subjects = 1\n[volumes]\npsnr_db = 0.1", "how many subjects"),
        ("subjects = 5\n[volume]\npsnr_db = 0.1", "did you mean 'volumes'"),
        ("[volume]\npsnr_db = 0.1", "did you mean 'volumes'"),  # before what is missing, too
        ("subjects = 5\n[volumes]\npsnr = 0.1", "did you mean 'psnr_db'"),
        ("subjects = 5\n[lesions]\nretained_smal = 0.1", "did you mean 'retained_small'"),
        ("subjects = 5\n[phantom]\nuniformity = 0.1", "phantom.*no difference"),
        ("subjects = 5", "states no margin"),
        ("subjects = ", "no TOML"),
        ("format = 9\nsubjects = 5", "format 9"),
        ("subjects = 5\n[volumes]\npsnr_db = " + 400 * "9", "no margin"),
        ("subjects = 5\n[volumes]\npsnr_db = " + 5000 * "9", "no TOML"),
        ("a = " + 5000 * "[", "no TOML"),
        ("subjects = 5\n[volumes]\npsnr_db = nan", "no margin"),
    ],
)
def test_margins_that_are_none_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "margins.toml"
    file.write_text(text)
    with pytest.raises(BenchError, match=said):
        load_margins(file)


def test_margins_can_be_stated_for_all_differences(done: Assessment) -> None:
    for section in done.sections:
        known = load_attribute(str(SECTIONS[section.name].differences))
        assert {measure.name for measure in section.measures if measure.against} <= set(known)
    for name in ("volumes", "disagreement", "robustness"):  # these were measured
        assert _measures(done, name).keys() & {
            (difference, STUDENT, TEACHER)
            for difference in load_attribute(str(SECTIONS[name].differences))
        }


def test_networks_of_different_masks_are_refused(
    make_run: Callable[..., Run], run: Run, volumes: list[Volume], tmp_path: Path
) -> None:
    other = make_run(
        tmp_path, variable_density_lines(MATRIX, 4, centre_lines=4, seed=9), ("student",)
    )
    with pytest.raises(BenchError, match="Measure networks for one mask together"):
        assess([run.path, other.path], volumes)


def test_a_wrong_path_of_other_data_is_found_out_first(
    run: Run, volumes: list[Volume], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        assess(run, volumes, in_pytorch=True, other_data=[tmp_path / "nowhere"])


def test_the_teacher_says_so_or_has_most_operations(run: Run) -> None:
    sources = describe(run)
    student = sources[1]
    assert teacher_of(sources) is sources[0]
    plain = [dataclasses.replace(source, role="student") for source in sources]
    assert teacher_of(plain) is plain[0]
    assert teacher_of(sources, student.name) is student
    named = {"teacher": {"name": "own", "sha256": sha256_file(run.weights("student"))}}
    told = [dataclasses.replace(plain[0], training=named), plain[1]]
    assert teacher_of(told) is told[1]  # its checkpoint is the one that is named
    told = [dataclasses.replace(plain[0], training={"teacher": "somebody"}), plain[1]]
    assert teacher_of(told) is told[0]
    with pytest.raises(BenchError, match="none of the networks"):
        teacher_of(sources, "nobody")


def test_an_assessment_of_a_newer_version_is_called_so(done: Assessment, tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text(json.dumps({**done.to_dict(), "schema": 99}))
    with pytest.raises(BenchError, match="schema 99, which a newer"):
        read_assessment(tmp_path)


def test_small_volumes_are_set_in_air(run: Run) -> None:
    volume = phantom_volume(5, slices=1, matrix=24)
    [found] = load([volume], describe(run)[0])
    assert found.target.shape == (1, MATRIX, MATRIX)
    np.testing.assert_array_equal(found.target[0, 4:-4, 4:-4], volume.image[0])
    assert brought(volume, 20).matrix == (20, 20)


def test_air_around_volumes_is_said(run: Run) -> None:
    small = [phantom_volume(seed, slices=1, matrix=16) for seed in (5, 6)]
    large = phantom_volume(7, slices=1, matrix=40)
    done = assess(run, [*small, large], in_pytorch=True, int8=False, sections=["volumes"])
    [note] = done.notes
    assert note.startswith(f"{small[0].name}, {small[1].name}: 16 x 16 pixels, set in air to 32")
    assert "75% of the image" in note
    assert "6.0 dB" in note  # 10 log10(4)
    assert escape(note) in build(done)
    assert note in plain(done)
    told = [(volume["stored_matrix"], volume["air"]) for volume in done.to_dict()["volumes"]]
    assert told == [([16, 16], 0.75), ([16, 16], 0.75), ([40, 40], 0.0)]


def test_images_count_once(run: Run, volumes: list[Volume]) -> None:
    copy = dataclasses.replace(volumes[0], name="copy", subject="another", sha256="2" * 64)
    with pytest.raises(BenchError, match=r"and copy of subjects .* and another hold the same"):
        load([*volumes, copy], describe(run)[0])


def test_values_without_a_number_are_left_out() -> None:
    measure = over_subjects("x", "X", "n", [1.0, float("nan"), 3.0], ["a", "b", "c"])
    assert (measure.value, measure.subjects) == (2.0, 2)
    nothing = over_subjects("x", "X", "n", [float("nan")], ["a"])
    assert nothing.value is None
    assert nothing.reason


def test_a_table_holds_no_number_that_is_none() -> None:
    table = Table(title="t", head=("a", "b"), rows=(("x", float("nan")), ("y", 1.0)))
    assert table.to_dict()["rows"] == [["x", None], ["y", 1.0]]


def test_reports_are_compared_by_subjects(done: Assessment, tmp_path: Path) -> None:
    stated = tmp_path / "margins.toml"
    stated.write_text("subjects = 3\n[volumes]\npsnr_db = 0.1\n")
    better, worse = done.to_dict(), done.to_dict()
    for value, gain in ((better, 1.0), (worse, -1.0)):
        value = json.loads(json.dumps(value))
        for section in value["sections"]:
            for measure in section["measures"]:
                if measure["name"] == "psnr_db" and measure["network"] in (STUDENT, ROUNDED):
                    own = measure["by_subject"]
                    measure["by_subject"] = {key: number + gain for key, number in own.items()}
        folder = tmp_path / ("better" if gain > 0 else "worse")
        folder.mkdir()
        (folder / REPORT).write_text(json.dumps(value))
    old = done.files["json"].parent
    answers = compare_reports(old, tmp_path / "better", margins=stated)
    assert [answer.allowed for answer in answers] == [True, True]  # float and int8
    answers = compare_reports(old, tmp_path / "worse", margins=stated)
    assert {answer.verdict for answer in answers} == {"inferior"}
    # by the margins of the old report three subjects are too few
    assert {answer.verdict for answer in compare_reports(old, tmp_path / "better")} == {
        "inconclusive"
    }
    args = ["assess", "--compare", str(old), str(tmp_path / "better")]
    assert CliRunner().invoke(main, args).exit_code == 1
    given = CliRunner().invoke(main, [*args, "--margins", str(stated), "--json"])
    assert given.exit_code == 0
    assert json.loads(given.stdout)[0]["allowed"] is True


def with_other_subjects(
    done: Assessment, folder: Path, change: Callable[[dict[str, float]], dict[str, float]]
) -> Path:
    """Write a report whose PSNR of subjects is another; return margins for two subjects."""
    value = json.loads(json.dumps(done.to_dict()))
    for section in value["sections"]:
        for measure in section["measures"]:
            if measure["name"] == "psnr_db" and not measure.get("against"):
                measure["by_subject"] = change(measure["by_subject"])
    (folder / REPORT).write_text(json.dumps(value))
    stated = folder / "margins.toml"
    stated.write_text("subjects = 2\n[volumes]\npsnr_db = 0.1\n")
    return stated


@pytest.mark.parametrize("damage", ["dropped", "nan"])
def test_no_subject_is_left_out_of_a_comparison(
    done: Assessment, tmp_path: Path, damage: str
) -> None:
    """The worst subject could be the one that is not there."""

    def change(own: dict[str, float]) -> dict[str, float]:
        first = min(own)
        rest = {key: number for key, number in own.items() if key != first}
        return rest if damage == "dropped" else {first: float("nan"), **rest}

    stated = with_other_subjects(done, tmp_path, change)
    for old, new in ((done.files["json"], tmp_path), (tmp_path, done.files["json"])):
        if damage == "nan":
            with pytest.raises(BenchError, match="NaN is no finite number"):
                compare_reports(old, new, margins=stated)
            continue
        answers = compare_reports(old, new, margins=stated)
        assert {answer.verdict for answer in answers} == {"inconclusive"}
        assert "no such figure of subject" in answers[0].judged[0].reason


def test_reports_that_measured_in_two_ways_are_not_compared(
    done: Assessment, tmp_path: Path
) -> None:
    """Other annotations or another definition move the zero-filled images' figures, too."""
    stated = with_other_subjects(
        done, tmp_path, lambda own: {key: number + 1 for key, number in own.items()}
    )
    answers = compare_reports(done.files["json"], tmp_path, margins=stated)
    assert not any(answer.allowed for answer in answers)
    assert "not measured alike" in answers[0].judged[0].reason


def test_margins_that_were_written_into_a_report_later_are_refused(
    done: Assessment, tmp_path: Path
) -> None:
    value = json.loads(json.dumps(done.to_dict()))
    value["margins"]["text"] = value["margins"]["text"].replace("psnr_db = 0.1", "psnr_db = 9")
    (tmp_path / REPORT).write_text(json.dumps(value))
    with pytest.raises(BenchError, match="SHA-256 is another"):
        compare_reports(tmp_path, done.files["json"])


def test_an_old_network_that_saw_the_volumes_gets_no_verdict_either(
    done: Assessment, tmp_path: Path
) -> None:
    value = json.loads(json.dumps(done.to_dict()))
    value["volumes"][0]["seen_in_training"] = [
        network["name"] for network in value["networks"] if network["key"] == STUDENT
    ]
    (tmp_path / REPORT).write_text(json.dumps(value))
    stated = tmp_path / "margins.toml"
    stated.write_text("subjects = 2\n[volumes]\npsnr_db = 0.1\n")
    answers = compare_reports(tmp_path, done.files["json"], margins=stated)
    assert "in its training" in answers[0].judged[0].reason


def test_reports_of_other_data_are_not_compared(done: Assessment, tmp_path: Path) -> None:
    value = done.to_dict()
    value["volumes"] = value["volumes"][:1]
    (tmp_path / REPORT).write_text(json.dumps(value))
    with pytest.raises(BenchError, match="other volumes"):
        compare_reports(done.files["json"], tmp_path)


def test_a_retrained_network_is_compared_with_the_old_one(
    run: Run, data_folder: Path, tmp_path: Path
) -> None:
    old = run.weights("student")
    new = tmp_path / "new" / "student.safetensors"
    new.parent.mkdir()
    shutil.copy(old, new)
    result = CliRunner().invoke(main, [
        "assess", "--compare", str(old), str(new), "--data", str(data_folder), "--in-pytorch",
        "--no-int8", "--sections", "volumes", "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    assert result.exit_code == 1, result.output  # two subjects
    assert "is not shown to be able to replace" in result.stderr
    assert (tmp_path / "out" / PAGE).is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Missing argument"),
        (["dccnn-edge@brain-4x"], 2, "Missing option '--data'"),
        (["dccnn-edge@brain-4x", "--data", ".", "--sections", "lesson"], 1, "no section 'lesson'"),
        (["--compare", "a", "b"], 2, "no report"),
        (["nothing", "--data", "."], 1, "does not exist"),
        (["dccnn-edge@brain-4x", "--data", ".", "--threads", "0"], 2, "'--threads'"),
        (["dccnn-edge@brain-4x", "--data", ".", "--seed", "-1"], 2, "'--seed'"),
        (["dccnn-edge@brain-4x", "--data", ".", "--page-size", "big"], 1, "no number of bytes"),
        (["dccnn-edge@brain-4x", "--data", ".", "--sections", ","], 2, "names nothing"),
        (["--compare", *2 * ["dccnn-edge@brain-4x"], "--data", "."], 2, "twice"),
        (["dccnn-edge@brain-4x", "--data", ".", "--subjects", ""], 2, "names nothing"),
    ],
)
def test_mistakes_are_a_sentence(arguments: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(main, ["assess", *arguments])
    assert result.exit_code == code or isinstance(result.exception, Exception)
    assert said in f"{result.output} {result.exception}"


def test_sections_are_listed() -> None:
    result = CliRunner().invoke(main, ["assess", "--list-sections"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(SECTIONS)


PROBE = """<script>
window.addEventListener("error", (e) => { document.title = "ERROR " + e.message; });
addEventListener("load", () => setTimeout(() => {
  document.querySelector("button.enlarge").click();
  const dialog = document.getElementById("zoom"), held = dialog.querySelector("img");
  const ids = [...document.querySelectorAll("nav a")].map((a) => a.getAttribute("href").slice(1));
  document.body.dataset.probe = JSON.stringify({open: dialog.open, wide: held.width,
    resources: performance.getEntriesByType("resource").map((e) => e.name)
      .filter((n) => !n.startsWith("data:")),
    linked: ids.every((id) => document.getElementById(id)),
    named: [...document.images].every((i) => i.alt),
    overflow: document.documentElement.scrollWidth > innerWidth + 1});
}, 50));
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
def test_a_browser_opens_the_page_without_errors_or_requests(
    done: Assessment, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(done.files["html"].read_text().replace("</head>", PROBE, 1))
    assert not re.search(r'(?:src|href)="(?!data:|#)', page.read_text())
    opened = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--enable-logging=stderr", "--window-size=1280,900", "--virtual-time-budget=2000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert opened.returncode == 0, opened.stderr[-2000:]
    assert "CONSOLE" not in opened.stderr, opened.stderr
    assert "<title>ERROR" not in opened.stdout
    probe = re.search(r'data-probe="([^"]*)"', opened.stdout)
    assert probe is not None, opened.stdout[:500]
    found = json.loads(probe[1].replace("&quot;", '"'))
    assert found["open"], "a click on a picture does not enlarge it"
    assert found["wide"] >= 2 * MATRIX
    assert found["resources"] == []
    assert found["linked"]
    assert found["named"], "a picture says nothing to who does not see it"
    assert not found["overflow"], "the page scrolls sideways as a whole"


def test_pictures_are_left_out_where_the_page_would_be_too_large(done: Assessment) -> None:
    whole = build(done)
    assert whole.count("<img") == sum(
        len(picture.tiles) for s in done.sections for g in s.galleries for picture in g.pictures
    )
    assert "--page-size" not in whole
    bare = len(build(dataclasses.replace(done, page_size=1)).encode())
    for part in (0.5, 0.9, 0.999):
        limit = bare + int(part * (len(whole.encode()) - bare))
        page = build(dataclasses.replace(done, page_size=limit))
        assert len(page.encode()) <= limit
        assert "pictures are left out" in page
        shown = [len(gallery) for gallery in re.findall('<div class="gallery">.*?</h4>', page)]
        assert len(shown) == 3  # the first picture of each gallery comes before the second of any
        assert "is larger" not in page
    smallest = build(dataclasses.replace(done, page_size=1))
    assert "<img" not in smallest
    assert "3 of 3 pictures are left out (--page-size)." in smallest
    assert "is larger than the 1 byte(s) that --page-size allows" in smallest


def test_a_section_without_figures_is_shown_with_its_reason(done: Assessment) -> None:
    page = build(
        dataclasses.replace(done, sections=[Section.without("volumes", "Volumes", "No <data>.")])
    )
    assert "Not measured: No &lt;data&gt;." in page


def test_an_assessment_goes_on_where_it_was_cut_off(
    run: Run,
    volumes: list[Volume],
    done: Assessment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    left, taken = 0, 0

    def watched(network: AssessedNetwork, case: Case, advance: Callable[[int], object]) -> Images:
        nonlocal left, taken
        left, taken = left - 1, taken + 1
        if left < 0:
            raise KeyboardInterrupt
        return reconstructed(network, case, advance)

    def again(volumes_before_the_cut: int, **changes: Any) -> Assessment:
        nonlocal left, taken
        left, taken = volumes_before_the_cut, 0
        return assess(run, volumes, in_pytorch=True, out=out, **changes)

    monkeypatch.setattr(study, "reconstructed", watched)
    with pytest.raises(KeyboardInterrupt):
        again(4)  # the teacher's three, one of the student's
    assert (out / UNFINISHED).is_dir()
    assert not (out / REPORT).exists()
    with pytest.raises(KeyboardInterrupt):
        again(4)  # the student's three, one of its int8 copy
    assert taken == 5
    monkeypatch.setattr(robustness, "_aimed", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        again(99)
    assert taken == 3
    monkeypatch.undo()
    monkeypatch.setattr(study, "reconstructed", watched)
    monkeypatch.setattr(Pipeline, "reconstruct", _interrupted)  # robustness has all that needs it
    finished = again(0)
    assert taken == 0
    assert not (out / UNFINISHED).exists()
    assert {**finished.to_dict(), "provenance": None} == {**done.to_dict(), "provenance": None}
    page, expected = (
        build(dataclasses.replace(one, provenance=done.provenance)) for one in (finished, done)
    )
    assert page == expected


def test_what_was_kept_is_of_what_was_asked(
    run: Run, volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"in_pytorch": True, "int8": False, "out": tmp_path}
    monkeypatch.setattr(verdict, "measure", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        assess(run, volumes, sections=["volumes", "verdict"], **asked)
    [kept] = tmp_path.glob(f"{UNFINISHED}/*/sections")
    with pytest.raises(KeyboardInterrupt):
        assess(run, volumes, sections=["disagreement", "verdict"], **asked)
    assert len(list(kept.iterdir())) == 2  # other sections of the same networks and volumes
    with pytest.raises(KeyboardInterrupt):
        assess(run, volumes[:2], sections=["volumes", "verdict"], **asked)
    assert len(list(tmp_path.glob(f"{UNFINISHED}/*/sections"))) == 2
    file = next(kept.glob("volumes*"))
    file.write_text("{}")
    with pytest.raises(BenchError, match="is damaged"):
        assess(run, volumes, sections=["volumes"], **asked)


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_arrays_are_kept_as_they_are(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = [numbers, np.array(["why", "é"]), np.array([], np.str_)]
    for kept, later in ((Kept(tmp_path), []), (Kept(), made)):
        for makes in (made, later):
            found = kept.arrays("phantom", "a/b fp32", lambda makes=makes: list(makes))
            assert [one.tolist() for one in found] == [one.tolist() for one in made]
    [file] = tmp_path.rglob("*.npz")
    file.write_bytes(b"PK")
    with pytest.raises(BenchError, match="is damaged"):
        Kept(tmp_path).arrays("phantom", "a/b fp32", lambda: [])
