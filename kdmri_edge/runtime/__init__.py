"""Running bundles and checkpoints. torch is imported only by the sessions that are made of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
