"""Where this program keeps what it can make again, for one user of one machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/kdmri-edge, by default ~/.cache/kdmri-edge."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "kdmri-edge"
