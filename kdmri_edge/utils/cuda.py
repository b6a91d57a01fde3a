"""Why PyTorch cannot use a GPU, said in the same words wherever one is asked for."""

from __future__ import annotations

from kdmri_edge.errors import BackendError

__all__ = ["no_cuda"]


def no_cuda(remedy: str) -> BackendError:
    """Return the error for a GPU that PyTorch does not have here.

    A PyTorch that was built for CPUs alone finds no GPU on any machine, and looking for the GPU or
    its driver would be in vain: that is said.

    Args:
        remedy: How to do without a GPU in what was asked, as a sentence.
    """
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return BackendError(
            f"The installed PyTorch ({torch.__version__}) is built for CPUs alone.",
            f"Install a build of PyTorch with CUDA. {remedy}",
        )
    return BackendError("PyTorch finds no CUDA device here.", remedy)
