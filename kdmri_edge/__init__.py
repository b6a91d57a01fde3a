"""Compact MR reconstruction networks for scanner-side hardware: distil, export, measure, run.

    import kdmri_edge as ke

    net = ke.load("dccnn-edge@brain-4x")
    image = net.reconstruct(kspace, mask=mask)

Importing this package is free of heavy libraries: each name is loaded when it is first used, and
torch, openvino, onnxruntime and their like only by the modules that are made of them. The names are
declared, with their types, in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
__all__ += ["__version__"]
