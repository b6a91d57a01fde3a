"""What a person sees of phases: names, bars, lines, and the times they took."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import pytest
from rich.console import Console
from rich.table import Table

from kdmri_edge import cli as command_line
from kdmri_edge.utils import console
from kdmri_edge.utils.console import (
    Phase,
    duration,
    phase_times,
    print_result,
    printable,
    progress,
    say,
    table_console,
    tell,
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written off a terminal, with lines that come soon."""
    stream = io.StringIO()
    plain = Console(file=stream, force_terminal=False, width=200)
    monkeypatch.setattr(console, "get_console", lambda: plain)
    monkeypatch.setattr(console, "_NAMED_AFTER", 0.02)
    monkeypatch.setattr(console, "_EVERY", 0.02)
    return stream


def _until(stream: io.StringIO, text: str) -> None:
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, f"{text!r} is not in {stream.getvalue()!r}"
        time.sleep(0.005)


def test_a_phase_is_reported_while_one_part_of_it_takes_long(shown: io.StringIO) -> None:
    with progress("reading", 3) as advance:
        _until(shown, "reading: 0 of 3.\n")
        advance(2, note="loss 0.5")
        _until(shown, "reading: 2 of 3, loss 0.5, about ")
        assert re.search(r"about \d+ s left\.\n", shown.getvalue())
    lines = shown.getvalue()
    time.sleep(0.1)
    assert shown.getvalue() == lines  # none after its end


def test_a_phase_without_parts_is_named(shown: io.StringIO) -> None:
    with progress("compiling"):
        _until(shown, "compiling ...\n")


def test_short_phases_are_not_reported(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_NAMED_AFTER", 30.0)
    with progress("blinking", 1) as advance:
        advance()
    assert shown.getvalue() == ""


def test_of_phases_within_each_other_the_innermost_is_reported(shown: io.StringIO) -> None:
    with progress("outer", 2) as advance:
        with progress("inner", 5):
            _until(shown, "inner: 0 of 5")
            before = shown.getvalue().count("outer")
            time.sleep(0.1)
            assert shown.getvalue().count("outer") <= before
        advance()
        _until(shown, "outer: 1 of 2")


def test_what_was_done_before_does_not_shorten_the_estimate() -> None:
    phase = Phase("training", 100, done=90)
    assert phase.line() == "training: 90 of 100."
    phase._began -= 10.0
    phase(5)
    assert phase.line() == "training: 95 of 100, about 10 s left."


def test_bars_lie_below_each_other_on_a_terminal_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "get_console", lambda: terminal)
    with progress("outer", 2) as advance:
        bar = advance.bar
        assert bar is not None
        with progress("inner", 5) as step:
            step(3, note="29.1 dB")
            assert [(task.description, task.completed) for task in bar.tasks] == [
                ("outer", 0),
                ("inner", 3),
            ]
        assert [task.description for task in bar.tasks] == ["outer"]
        advance(2)
    assert "2/2" in stream.getvalue()


def test_times_are_of_the_innermost_phase(shown: io.StringIO) -> None:
    with phase_times() as times:
        with progress("outer"):
            with progress("inner"):
                time.sleep(0.2)
            time.sleep(0.02)
        with progress("inner"):
            pass
    assert times.seconds["inner"] >= 0.2
    assert 0.02 <= times.seconds["outer"] <= times.whole - 0.2
    times.seconds = {"short": 0.4, "long": 125.0}
    times._began = time.perf_counter() - 130
    assert times.lines() == [
        "  long                   2 min",
        "  everything else          5 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (12000, "3 h 20 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


_PRINTING: Final = """
import os, subprocess, sys
from kdmri_edge.utils.console import only_results, print_result

print("before")
with only_results():
    print("a network")
    os.write(1, b"a runtime\\n")
    subprocess.run([sys.executable, "-c", "print('a process')"])
    print_result('{"a": "é"}')
    print("a network again")
print("after")
"""


def test_standard_output_holds_results_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PRINTING],
        capture_output=True, encoding="utf-8", check=True, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["before", '{"a": "é"}', "after"]
    assert set(done.stderr.splitlines()) == {
        "a network", "a runtime", "a process", "a network again",
    }  # fmt: skip


def test_results_go_where_a_process_without_standard_error_sends_them() -> None:
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(_PRINTING)} 2>&-",
        shell=True, capture_output=True, encoding="utf-8", check=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert '{"a": "é"}' in done.stdout.splitlines()
    assert not {"a network", "a runtime", "a process"} & set(done.stdout.splitlines())


# Takes back two lines, and writes another in their place; of C1 as well, and a bell.
HOSTILE: Final = "\x1b[2K\x1b[1A\x9b2K\r\x07\x7f\x1b[32mPassed."
SPELT: Final = (
    r"\u001b[2K\u001b[1A\u009b2K\u000d\u0007\u007f\u001b[32mPassed."
)  # fmt: skip


def test_control_characters_are_spelt_out() -> None:
    assert printable(HOSTILE) == SPELT
    assert printable("größer\n\tals 1 µm") == "größer\n\tals 1 µm"


@pytest.mark.parametrize(
    "show", [say, tell, print_result, lambda text: tell(text, err=True)],
    ids=["say", "tell", "print_result", "error"],
)  # fmt: skip
def test_whatever_is_shown_is_spelt_out(
    show: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    console.get_console.cache_clear()
    show(f"{HOSTILE}\nb")
    out, err = capsys.readouterr()
    console.get_console.cache_clear()
    assert out + err == f"{SPELT}\nb\n"


def test_cells_of_tables_are_spelt_out_and_colours_stay() -> None:
    stream = io.StringIO()
    coloured = table_console(file=stream, width=200, force_terminal=True, color_system="standard")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE, style="red")
    coloured.print(table)
    coloured.print(HOSTILE, markup=False)
    shown = stream.getvalue()
    assert "\x1b[31m" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert plain.count(SPELT) == 4
    assert printable(plain) == plain


def test_json_that_is_shown_means_what_it_meant(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(json.dumps({"name": HOSTILE}, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE}


def test_progress_is_spelt_out(shown: io.StringIO) -> None:
    with progress(HOSTILE, 2) as advance:
        advance(note=HOSTILE)
        assert advance.line().count(SPELT) == 2
        _until(shown, SPELT)


def test_names_in_files_and_of_files_do_not_reach_the_terminal(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Keys of masks, and a path."""
    masks = tmp_path / "masks.json"
    mask = {"shape": [32, 32], "phase_encode_axis": 0, "sampled_lines": [0, 1, 31]}
    masks.write_text(json.dumps({HOSTILE: mask, "b": mask}))
    for arguments in (
        ("data", "inspect", masks),
        ("run", "dccnn-d3c5@brain-4x", masks, "--mask", masks, "-o", tmp_path / "out"),
        ("verify", tmp_path / HOSTILE),
    ):
        done = cli(*arguments)
        assert SPELT in done.out + done.err, arguments
        assert printable(done.out + done.err) == done.out + done.err


@pytest.mark.parametrize("kind", [click.UsageError, click.ClickException, OSError])
def test_errors_that_are_not_this_projects_are_spelt_out(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise kind(HOSTILE)

    assert command_line._guarded(refuse) > 0
    said = capsys.readouterr().err
    assert r"\u009b2K\u000d\u0007\u007f" in said  # click itself takes out what colours a text
    assert printable(said) == said
