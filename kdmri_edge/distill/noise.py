"""Noise that a stage adds to what its batches sample, of another strength at every step."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.simulate import draw_noise

__all__ = ["add_noise", "step_noise"]

# After the recipe's seed and the step: streams of their own, beside those of batches and masks.
_STRENGTH: Final = 2000
_SAMPLES: Final = 2001


def step_noise(largest: float, *, seed: int, step: int) -> float:
    """Draw the strength of a step's noise, uniformly up to the largest; the same everywhere.

    Args:
        largest: What `DistillRecipe.noise` says; 0 gives 0.
        seed: The recipe's.
        step: Step of the network.

    Returns:
        Standard deviation of the noise of the fully sampled image, relative to the scale of the
        slice that it is added to.
    """
    return largest * float(np.random.default_rng([seed, step, _STRENGTH]).random())


def add_noise(
    images: NDArray[Any], strength: float, *, seed: int, step: int, places: range
) -> NDArray[Any]:
    """Add white noise to fully sampled images, or to what each coil receives of them.

    The Fourier transform is unitary, so that white noise of an image is that of its k-space.

    Args:
        images: [B, ..., H, W], float32 or complex64; of one scale each.
        strength: See `step_noise`; for complex images of both parts together.
        seed: The recipe's.
        step: Step of the network.
        places: Of the images in the whole batch, [B], so that processes share the batch of one.
    """
    noisy = images.copy()
    for image, place in zip(noisy, places, strict=True):
        random = np.random.default_rng([seed, step, _SAMPLES, place])
        if np.iscomplexobj(image):
            image += np.float32(strength) * draw_noise(random, image.shape)
        else:
            image += np.float32(strength) * random.standard_normal(image.shape, dtype=np.float32)
    return noisy
