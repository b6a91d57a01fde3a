"""Build, check and time the network of the bundle that this file lies in, on a Jetson.

Stand-alone: Python 3.10 or newer with `tensorrt` (JetPack 6 and 7 bring it), numpy and
`cuda-python`:

    python3 jetson.py > row.json
    python3 jetson.py --check       # versions and memory alone

It checks the versions, builds an engine within the memory that is free (batch 1), runs it, refuses
one that does not reproduce the golden output, and prints a row that `kdmri-edge bench REPORT
--import row.json` joins to a report. Builder and runtime have processes of their own, so that the
builder's memory is free again when the network runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

MODEL = Path("/proc/device-tree/model")
RELEASE = Path("/etc/nv_tegra_release")
MEMINFO = Path("/proc/meminfo")
OLDEST_LINUX = 36
"""Jetson Linux of JetPack 6."""

LEAST_MIB = 1024
"""Free memory below which a build is not begun; the builder itself takes about as much."""

WORKSPACE_MIB = (64, 1024)
"""Least and most scratch memory for kernels; in between a quarter of what is free."""


class Refused(Exception):  # noqa: N818 - not an error of the program
    """Something that the user can mend; the text says how."""


def _shown(error: Exception) -> str:
    """Return what an error says, with the control characters that a path may hold spelt out.

    A terminal obeys them; the project's commands print likewise, which this file cannot import.
    """
    return "".join(
        c if c in "\t\n" or unicodedata.category(c) != "Cc" else f"\\u{ord(c):04x}"
        for c in str(error)
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def available_mib() -> int:
    """Return the memory that is free, for CPU and GPU alike."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(MEMINFO))
    return int(found[1]) // 1024 if found else 0


def power_mode() -> str | None:
    """Return the power mode, None where nvpmodel does not tell."""
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return found[1] if found else None


def check() -> dict[str, Any]:
    """Return what the device is; refuse one that cannot build an engine."""
    name = _text(MODEL).strip("\0 \n")
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(RELEASE))
    if found is None:
        raise Refused(
            "This is no Jetson: /etc/nv_tegra_release is not there. Elsewhere use build_engine.py"
            " and run_engine.py."
        )
    if int(found[1]) < OLDEST_LINUX:
        raise Refused(
            f"Jetson Linux R{found[1]}.{found[2]} is older than JetPack 6, whose TensorRT 10.3 is"
            " the oldest that takes the graph. Update JetPack."
        )
    lacking = []
    versions: dict[str, str] = {"python": platform.python_version()}
    modules = {"tensorrt": "sudo apt install python3-libnvinfer", "numpy": "pip install numpy"}
    for module, remedy in modules.items():
        try:
            versions[module] = str(importlib.import_module(module).__version__)
        except ImportError as error:
            lacking.append(f"{module} cannot be imported ({error}): {remedy}")
    try:
        importlib.import_module("cuda")
    except ImportError as error:
        lacking.append(f"cuda-python cannot be imported ({error}): pip install cuda-python")
    if lacking:
        raise Refused("; ".join(lacking))
    return {
        "device": name or "NVIDIA Jetson",
        "jetson_linux": f"R{found[1]}.{found[2]}",
        "available_mib": available_mib(),
        "power_mode": power_mode(),
        "machine": platform.machine(),
        **versions,
    }


def workspace(free_mib: int) -> int:
    """Return the scratch memory for kernels, MiB; refuse where too little is free."""
    if free_mib < LEAST_MIB:
        raise Refused(
            f"Only {free_mib} MiB of memory are free, and a build takes {LEAST_MIB} MiB. End what"
            " else runs (the desktop: sudo systemctl isolate multi-user.target), or add swap."
        )
    least, most = WORKSPACE_MIB
    return max(least, min(most, free_mib // 4))


def run(script: Path, *arguments: str) -> tuple[str, int]:
    """Run a script of the bundle.

    Returns:
        What it prints, and by how many bytes the free memory fell at most meanwhile.
    """
    before, lowest, over = available_mib(), [available_mib()], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            lowest[0] = min(lowest[0], available_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        done = subprocess.run(
            [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
        )
    finally:
        over.set()
        watcher.join()
    if done.returncode < 0:
        hint = " The memory was exhausted: try --workspace 64, or add swap."
        raise Refused(
            f"{script.name} was ended by signal {-done.returncode}."
            + (hint if done.returncode == -9 else "")
        )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit status {done.returncode}"
        raise Refused(f"{script.name}: {said.removeprefix('Error: ')}")
    return done.stdout, max(before - lowest[0], 0) << 20


def measure(folder: Path, facts: dict[str, Any], samples: int, scratch_mib: int) -> dict[str, Any]:
    """Build and run the bundle's engine; return the row with what it was measured on."""
    built, _ = run(
        folder / "build_engine.py", "--bundle", str(folder), "--workspace", str(scratch_mib)
    )
    shown, used = run(folder / "run_engine.py", "--bundle", str(folder), "--samples", str(samples))
    row = json.loads(shown)
    row["memory"] = {
        "baseline": 0,
        "loaded": used,
        "peak": used,
        "above_baseline": used,
        "source": "fall of MemAvailable, CPU and GPU together",
    }
    facts = {**facts, "workspace_mib": scratch_mib, "engine": json.loads(built.splitlines()[-1])}
    return {**row, "measured_on": facts["device"], "jetson": facts}


def main(arguments: list[str] | None = None) -> int:
    """Check, build, run, and print the row as JSON; exit with 1 and one sentence if that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--check", action="store_true", help="print versions and memory alone")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--workspace", type=int, help="MiB; default: a quarter of what is free")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.samples < 1 or (chosen.workspace is not None and chosen.workspace < 1):
            raise Refused("Give --samples and --workspace of 1 or more.")
        facts = check()
        if chosen.check:
            print(json.dumps(facts, indent=2))
            return 0
        if not (chosen.bundle / "manifest.json").is_file():
            raise Refused(f"{chosen.bundle} is no bundle. Give it with --bundle.")
        scratch = workspace(facts["available_mib"])
        row = measure(chosen.bundle, facts, chosen.samples, chosen.workspace or scratch)
    except (Refused, ValueError, OSError, KeyError) as error:
        print(f"Error: {_shown(error)}", file=sys.stderr)
        return 1
    print(json.dumps(row, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
