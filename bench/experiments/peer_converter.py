"""OpenVINO's own converter on a network of another project: `python -m experiments.peer_converter`.

It is called with a pickle of the network, what it is shown and what is bound, and with the file to
write. In a process of its own, since the converter may crash.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdmri_edge.utils.extras import require

__all__ = ["alone", "main"]


def alone(network: Any, constants: Mapping[str, Any]) -> Any:
    """Return a module of one argument, the others bound."""
    import torch

    class Bound(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            return self.network(x, **constants)

    return Bound().eval()


def main(arguments: list[str]) -> None:
    """Convert, run once, and write the graph."""
    openvino = require("openvino", extra="openvino")
    given, graph = map(Path, arguments)
    network, shown, constants = pickle.loads(given.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(alone(network, constants), example_input=(shown,))
    openvino.Core().compile_model(model, "CPU")(shown.numpy())
    openvino.save_model(model, graph, compress_to_fp16=False)


if __name__ == "__main__":
    main(sys.argv[1:])
