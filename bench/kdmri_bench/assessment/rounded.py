"""A checkpoint in PyTorch whose layers round as its int8 export's: where no runtime has int8."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdmri_edge.errors import BackendError
from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.quantisation.calibration import check_magnitudes
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.fake_quantisation import add_fake_quantisation
from kdmri_edge.runtime.backends.pytorch import EagerSession
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import SessionInfo

__all__ = ["RoundedSession", "rounded_pipeline"]


class RoundedSession(EagerSession):
    """PyTorch in float32 whose convolutions read and hold rounded values.

    Args:
        checkpoint: The .safetensors file, tuned for int8 or with its activations' maxima.
        threads: CPU threads.

    Raises:
        BackendError: The checkpoint holds neither ranges nor maxima.
        CheckpointError: They are no magnitudes.
    """

    def __init__(self, checkpoint: Path, *, threads: int | None = None) -> None:
        super().__init__(checkpoint, threads=threads)
        model = load_reconstructor(checkpoint)
        if not (model.ranges or model.maxima):
            raise BackendError(
                f"{checkpoint} holds no ranges of activations, which int8 needs.",
                "Train with `kdmri-edge distill`, which measures them.",
            )
        check_magnitudes(model.model, maxima=model.maxima, ranges=model.ranges)
        ranges = model.ranges or equalise(model.model, model.maxima)
        add_fake_quantisation(model.model, ranges, unsigned=True)
        self._model = self._forward = channels_last(model.eval())

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        return dataclasses.replace(
            super().info,
            precision_requested="int8",
            precision_executed="int8 rounded in float32 (fake quantisation)",
        )


def rounded_pipeline(checkpoint: Path, *, threads: int | None = None) -> Pipeline:
    """Open a checkpoint whose layers round, behind the same road as every other network.

    Raises:
        BackendError: See `RoundedSession`.
        KdmriError: See `Pipeline`.
    """
    session = RoundedSession(checkpoint, threads=threads)
    pipeline = Pipeline(checkpoint, threads=threads)
    session.operator = pipeline.session.operator
    pipeline.session.close()
    pipeline.session = session
    return pipeline
