"""Edge-deployment compression toolchain for MR reconstruction networks.

Importing this package is free of heavy libraries: torch, openvino, onnxruntime and their like are
loaded only by the modules that need them.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__"]
