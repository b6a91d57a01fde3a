from . import data as data
from . import distillation as distillation
from . import errors as errors
from . import metrics as metrics
from . import models as models
from . import physics as physics
from . import registry as registry
from . import runtime as runtime
from .api import Assessment as Assessment
from .api import Network as Network
from .api import Report as Report
from .api import assess as assess
from .api import benchmark as benchmark
from .api import export as export
from .api import load as load
from .api import read as read
from .api import write as write
from .data.scan import Scan as Scan
from .data.volume import Volume as Volume
from .distillation.run_folder import Run as Run
from .distillation.start import distill as distill
from .physics.masks import Mask as Mask
from .runtime.bundle import Bundle as Bundle

__version__: str
