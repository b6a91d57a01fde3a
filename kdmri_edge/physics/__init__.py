"""The physics of Cartesian MR sampling: Fourier transform, masks, data consistency.

Conventions, stated once: an image is `[..., H, W]` with phase encode along H unless a mask says
otherwise; transforms are orthonormal and centred in the image (its origin is pixel N // 2); zero
frequency sits at index 0 of an unshifted mask and of k-space.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
