"""Turning trained networks into graphs for other runtimes, each one checked for parity.

`kdmri_edge.export` is its function. What stands here is for packages that bring a target of their
own: what their exporters are made of.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
