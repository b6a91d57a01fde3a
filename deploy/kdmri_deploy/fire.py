"""For FIRE, which runs a server in a chroot: the start script, and the image of its file system.

The image is a file with an ext3 file system, as the public tools for FIRE make them from a
container's files. Variables of a container are not among its files, so the start script sets them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from kdmri_deploy.host import Sizes
from kdmri_deploy.image import files_of
from kdmri_edge import __version__
from kdmri_edge.errors import OutputError
from kdmri_edge.utils.files import atomic_path

__all__ = ["START", "chroot_image", "start_script"]

START: Final = "start-kdmri-edge.sh"
"""Where the script lies in the container: in /opt."""
_MIB: Final = 2**20
_USER: Final = 10001  # of the Dockerfile


def start_script(sizes: Sizes) -> str:
    """Return the script that starts the server within the chroot, and comes back at once.

    Args:
        sizes: Bounds of the server.
    """
    bounds = "\n".join(f"export {name}={value}" for name, value in sizes.environment.items())
    return f"""\
#!/bin/sh
# kdmri-edge {__version__}, written by deploy/build.py: starts the server in FIRE's chroot, in the
# background. The first argument is the log file; without one the log is thrown away.
log=${{1:-/dev/null}}
export PATH="/usr/local/bin:/usr/bin:/bin${{PATH:+:$PATH}}"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=4 ORT_DISABLE_TELEMETRY=1
# the host's folder, so that temporary files do not fill the chroot
[ -w /tmp/share ] && export TMPDIR=/tmp/share
{bounds}
set -- kdmri-edge serve "${{KDMRI_BUNDLES:-/opt/bundle}}" --host 0.0.0.0 --port 9002 --format int16
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then # root is not needed
  set -- setpriv --reuid={_USER} --regid={_USER} --clear-groups --no-new-privs "$@"
fi
"$@" </dev/null >>"$log" 2>&1 &
"""


def chroot_image(image: Path, place: Path) -> None:
    """Write the chroot's file system.

    Args:
        image: The container's image, as `docker save` writes it.
        place: The file.

    Raises:
        DataError: See `files_of`.
        OutputError: It takes root, or mke2fs, and there is none.
    """
    maker = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if maker is None:
        raise OutputError("mke2fs is not installed.", "Install e2fsprogs.")
    if os.geteuid() != 0:
        raise OutputError(
            f"{place} takes root: its files belong to several users.",
            "Run this as root, or under fakeroot.",
        )
    with tempfile.TemporaryDirectory() as work:
        merged, root = Path(work) / "files.tar", Path(work) / "root"
        size = files_of(image, merged)
        root.mkdir(mode=0o755)
        with tarfile.open(merged) as archive:
            archive.extractall(root, numeric_owner=True, filter="fully_trusted")
        merged.unlink()
        mib = -(-(size * 115 // 100 // _MIB + 50) // 100) * 100
        with atomic_path(place) as temporary:
            done = subprocess.run(
                [maker, "-q", "-F", "-t", "ext3", "-i", "8192", "-L", "kdmri-edge",
                 "-d", str(root), str(temporary), f"{mib}M"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise OutputError(
                    f"{place} was not written ({done.stderr.strip()[-200:]}).", "See above."
                )
