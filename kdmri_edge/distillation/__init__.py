"""Knowledge distillation: KD-MRI's three steps (Murugesan et al., MIDL 2020), made resumable."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
