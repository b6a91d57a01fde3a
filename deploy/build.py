"""Make what a scanner needs of a bundle: `python deploy/build.py BUNDLE --report FILE --out DIR`.

A container with its OpenRecon label, the zip file that OpenRecon installs, the start script and the
file system for FIRE, a unit of systemd, a compose file, and the list of what is inside. The label's
memory and cores come from a benchmark's report (`kdmri_deploy.label`); container and unit take no
more scans at once, no larger slices, no more waiting lines of each scan and no more threads than
these were counted for.

Only the container takes an engine that builds it. Without one --no-image makes the rest, and
--image takes one that was built and saved elsewhere. With --check nothing is made: bundle and
report are checked, and the label is validated.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdmri_deploy.fire import START, chroot_image, start_script
from kdmri_deploy.host import Sizes, compose_file, systemd_unit
from kdmri_deploy.label import basename, label, needs, validate, version_of
from kdmri_deploy.openrecon import documentation, encoded, package
from kdmri_deploy.sbom import Installed, bill, constraints, installed
from kdmri_edge import __version__
from kdmri_edge.errors import DataError, KdmriError, OutputError
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_edge.utils.console import tell
from kdmri_edge.utils.files import atomic_directory, read_json, write_json
from kdmri_edge.utils.keys import public_keys

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "how-to" / "install-at-the-scanner.md"
SBOM = "sbom.cdx.json"
_MIB = 2**20
_SMALLEST_MIB = 64  # 32 coils at 512 x 512: other scans than the bundle's get an image, too
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # by target: the package that runs it


class Plan:
    """What is made of a bundle, found out before anything is.

    Args:
        given: The command's options.

    Raises:
        KdmriError: Bundle, report and options do not fit, or a package is not installed.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.bundle: Bundle = open_bundle(given.bundle, keys=public_keys(given.key))
        self.package = _RUNTIMES.get(self.bundle.target.name)
        if self.package is None:
            raise DataError(
                f"{given.bundle} is made for {self.bundle.target.name}.",
                f"Export it with --target {' or '.join(_RUNTIMES)}.",
            )
        matrix = int(self.bundle.manifest["matrix"])
        own_mib = math.ceil(given.coils * matrix * matrix * 8 / _MIB)
        slice_mib = given.slice_memory or max(own_mib, _SMALLEST_MIB)
        if slice_mib < own_mib:
            raise DataError(
                f"A slice of {given.coils} coils at {matrix} x {matrix} takes {own_mib} MiB,"
                f" above --slice-memory {slice_mib}.",
                "Raise it, or give fewer --coils.",
            )
        report = read_json(given.report, DataError)
        self.version = version_of(report, self.package)
        memory, cores = needs(
            report, self.bundle.manifest, self.bundle.target.backend.title, given.sessions,
            slice_mib, given.scan_memory,
        )  # fmt: skip
        self.sizes = Sizes(
            memory_mib=memory, threads=cores, sessions=given.sessions, slice_mib=slice_mib,
            scan_mib=given.scan_memory,
        )  # fmt: skip
        self.label = label(
            memory, cores, None if self.bundle.free is not None else matrix,
            compressed_to=given.compressed_to,
        )  # fmt: skip
        validate(self.label)

    def inside(self) -> tuple[list[Installed], dict[str, Any]]:
        """Return what the container's Python holds, and the list of all that is inside.

        Raises:
            DataError: A package is not installed here.
        """
        assert self.package is not None
        packages = installed(self.package, self.version)
        return packages, bill(packages, [(self.bundle.path.name, self.bundle)])


def make_files(plan: Plan, out: Path, tag: str) -> None:
    """Write all that takes no engine; what earlier calls made of it is replaced.

    Raises:
        KdmriError: The wheel cannot be built, the folder not be written to, or a package is not
            installed.
    """
    packages, inside = plan.inside()
    name = basename(plan.label)
    write_json(out / SBOM, inside)
    with atomic_directory(out / "openrecon") as folder:
        write_json(folder / f"{name}.json", plan.label)
        documentation(PAGE.read_text(encoding="utf-8"), folder / f"{name}.pdf")
    with atomic_directory(out / "fire") as folder:
        put_script(plan, folder)
    with atomic_directory(out / "host") as folder:
        for file, text in (
            ("kdmri-edge.service", systemd_unit(plan.sizes)),
            ("compose.yaml", compose_file(plan.sizes, tag)),
            ("constraints.txt", constraints(packages)),
        ):
            (folder / file).write_text(text, encoding="utf-8")
        shutil.copytree(plan.bundle.path, folder / "bundles" / plan.bundle.path.name)
        build_wheel(folder)


def put_script(plan: Plan, folder: Path) -> None:
    """Write FIRE's start script."""
    script = folder / START
    script.write_text(start_script(plan.sizes), encoding="utf-8")
    script.chmod(0o755)


def build_wheel(folder: Path) -> None:
    """Build this project's wheel.

    Raises:
        DataError: It cannot be built.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    done = subprocess.run(
        [*command, str(folder), str(HERE.parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DataError(f"The wheel cannot be built ({done.stderr.strip()[-200:]}).", "See above.")


def lay_out(plan: Plan, context: Path) -> None:
    """Put all that the Dockerfile copies into a folder.

    Raises:
        KdmriError: See `make_files`.
    """
    packages, inside = plan.inside()
    shutil.copytree(plan.bundle.path, context / "bundle")
    shutil.copy(HERE / "Dockerfile", context)
    build_wheel(context / "wheel")
    pins = constraints(packages)
    (context / "wheel" / "constraints.txt").write_text(pins, encoding="utf-8")
    put_script(plan, context)
    write_json(context / SBOM, inside)


def build_image(plan: Plan, engine: str, tag: str) -> None:
    """Build the container, and compare what its Python holds with the list of it.

    Raises:
        OutputError: The engine cannot be used, or does not build it.
        DataError: The container holds other packages than the list says.
    """
    with tempfile.TemporaryDirectory() as place:
        context = Path(place)
        lay_out(plan, context)
        sizes = plan.sizes
        arguments = {
            "VERSION": __version__,
            "RUNTIME": f"{plan.package}=={plan.version}",
            "SESSIONS": sizes.sessions,
            "THREADS": sizes.threads,
            "SLICE_MEMORY": sizes.slice_mib,
            "SCAN_MEMORY": sizes.scan_mib,
            "OPENRECON_LABEL": encoded(plan.label),
        }
        pairs = [word for k, v in arguments.items() for word in ("--build-arg", f"{k}={v}")]
        run_engine(engine, "build", "--tag", tag, *pairs, str(context))
    listed = {f"{one.name}=={one.version}" for one in plan.inside()[0]}
    held = run_engine(engine, "run", "--rm", "--entrypoint", "python", tag, "-m", "pip", "freeze",
                      "--all", capture=True)  # fmt: skip
    there = {_pin(line) for line in held.splitlines() if line}
    apart = ("pip", "kdmri-edge")  # the base image's, and the wheel
    others = sorted(one for one in there ^ listed if one.partition("==")[0] not in apart)
    if others:
        raise DataError(
            f"{tag} does not hold what the list says: {', '.join(others[:8])}.",
            "Build it in the environment that .ci/constraints.txt describes, or report this.",
        )


def _pin(line: str) -> str:
    name, _, version = line.replace(" @ ", "==").partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


def run_engine(engine: str, *arguments: str, capture: bool = False) -> str:
    """Run docker or podman.

    Raises:
        OutputError: It is not installed, or does not do it.
    """
    try:
        done = subprocess.run(
            [engine, *arguments], check=False, text=True,
            stdout=subprocess.PIPE if capture else None, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise OutputError(
            f"{engine} is not installed.",
            "Name an engine with --engine, an image that was saved elsewhere with --image, or make"
            " what takes none with --no-image.",
        ) from None
    if done.returncode:
        last = (done.stderr or "").strip().splitlines()[-1:] or ["no reason"]
        raise OutputError(
            f"`{engine} {arguments[0]}` failed: {last[0][-300:].rstrip('.?! ')}.",
            "Start the engine, or see --image and --no-image.",
        )
    return done.stdout or ""


def pack(plan: Plan, image: Path, out: Path) -> None:
    """Write what is made of a saved image.

    Raises:
        KdmriError: See `package` and `chroot_image`.
    """
    tell(f"{package(plan.label, image, out / 'openrecon')}")
    try:
        chroot_image(image, out / "fire" / "chroot.img")
    except OutputError as error:
        tell(f"Not made: {error}", err=True)
        return
    tell(f"{out / 'fire' / 'chroot.img'}")


def _whole(most: int) -> Callable[[str], int]:
    """Return what reads a whole number from 1 on, as the server itself takes it."""

    def number(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise ValueError(text)
        return value

    return number


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--key", type=Path, action="append", metavar="FILE.pub",
                        help="take no bundle but one that this public key signed")  # fmt: skip
    parser.add_argument("--report", type=Path, required=True, help="report.json of the benchmark")
    parser.add_argument("--out", type=Path, help="folder for all that is made [the image alone]")
    parser.add_argument("--coils", type=_whole(1024), default=32,
                        help="receive channels to make room for")  # fmt: skip
    parser.add_argument("--sessions", type=_whole(256), default=2, help="scans at once")
    parser.add_argument("--slice-memory", type=_whole(1 << 16),
                        help="MiB that one slice of all coils may take [what the coils need at the"
                        f" bundle's matrix, at least {_SMALLEST_MIB}]")  # fmt: skip
    parser.add_argument("--scan-memory", type=_whole(1 << 20), default=512,
                        help="MiB of lines that one scan may have waiting")  # fmt: skip
    parser.add_argument(
        "--compressed-to",
        type=_whole(1024),
        metavar="CHANNELS",
        help="have the scanner compress channels to so many [not at all]",
    )
    parser.add_argument("--engine", default="docker", help="docker or podman")
    parser.add_argument("--tag", default=f"kdmri-edge:{__version__}")
    parser.add_argument("--image", type=Path, metavar="FILE.tar",
                        help="an image that was built and saved elsewhere")  # fmt: skip
    parser.add_argument("--no-image", action="store_true", help="make what takes no engine")
    parser.add_argument("--check", action="store_true", help="make nothing")
    return parser


def main() -> int:
    """Make it, or only check."""
    parser = _options()
    given = parser.parse_args()
    if given.out is None and (given.no_image or given.image):
        parser.error("--image and --no-image need --out.")
    try:
        plan = Plan(given)
        tell(json.dumps(plan.label["reconstruction"], indent=2))
        if given.check:
            return 0
        if given.out is not None:
            make_files(plan, given.out, given.tag)
            tell(f"{given.out} holds all that takes no image.")
        if given.no_image:
            tell(
                "Not made, since it takes the image: the zip file of OpenRecon, FIRE's chroot.img.",
                err=True,
            )
        elif given.image is not None:
            pack(plan, given.image, given.out)
        else:
            build_image(plan, given.engine, given.tag)
            if given.out is not None:
                with tempfile.TemporaryDirectory() as place:
                    saved = Path(place) / "image.tar"
                    run_engine(given.engine, "save", "--output", str(saved), given.tag)
                    pack(plan, saved, given.out)
    except KdmriError as error:
        tell(f"Error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
