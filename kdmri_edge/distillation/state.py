"""What a stage goes on with: weights, optimiser, step, and the running average of weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdmri_edge.errors import CheckpointError
from kdmri_edge.utils.files import atomic_path

__all__ = ["WeightAverage", "load_state", "save_state"]

# What counts the updates among the saved values; the names of weights have dots.
_COUNT = "updates"


class WeightAverage:
    """Exponential moving average of all parameters.

    Its first updates forget faster, by (1 + n) / (10 + n) at the n-th, or the first weights would
    weigh in for as long as the average remembers.

    Args:
        network: What is averaged.
        decay: Part of the average that a later step keeps, below 1.

    Attributes:
        values: The average by the parameters' names, and the number of updates.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._parameters = dict(network.named_parameters())
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}
        device = next(iter(self.values.values())).device
        self.values[_COUNT] = torch.zeros((), device=device)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved values.

        Raises:
            KeyError: A parameter's is missing.
        """
        for name, own in self.values.items():
            own.copy_(values[name])

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now, without waiting for the device."""
        count = self.values[_COUNT]
        # A tensor, so that a recorded update goes on counting.
        share = 1 - torch.clamp((1 + count) / (10 + count), max=self._decay)
        averages = [self.values[name] for name in self._parameters]
        steps = torch._foreach_sub(list(self._parameters.values()), averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)
        count += 1

    def apply(self) -> None:
        """Give the network its average."""
        self._give(self.values)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network be its average, inside."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.apply()
        try:
            yield
        finally:
            self._give(own)

    @torch.no_grad()
    def _give(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


def save_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    key: str,
    average: WeightAverage | None = None,
) -> None:
    """Write the state after `step` steps, atomically.

    Args:
        path: Destination, safetensors.
        model: The network in training.
        optimiser: Of `model.parameters()`.
        step: Steps done.
        key: Fingerprint of the settings that the state belongs to.
        average: Running average of the weights, if there is one.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    for index, values in optimiser.state_dict()["state"].items():
        for kind, value in values.items():
            tensors[f"optimiser.{names[index]}.{kind}"] = torch.as_tensor(value)
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.values.items()}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    data = safetensors.torch.save(plain, metadata={"state": json.dumps({"step": step, "key": key})})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_state(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    key: str,
    average: WeightAverage | None = None,
) -> int:
    """Restore a state; returns the steps done, 0 when there is no file.

    Raises:
        CheckpointError: A corrupt file, or one that belongs to other settings.
    """
    if not path.is_file():
        return 0
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k[:6] == "model."}
        if weights.keys() != model.state_dict().keys():
            raise CheckpointError(
                f"{path} was written by another version, whose networks had other weights.",
                "Delete it to start that stage again.",
            )
        if meta["key"] != key:
            raise CheckpointError(
                f"{path} belongs to other settings.", "Resume with the settings of the run."
            )
        model.load_state_dict(weights)
        optimiser.load_state_dict(_optimiser_state(tensors, model, optimiser))
        if average is not None:
            average.load({k[8:]: v for k, v in tensors.items() if k.startswith("average.")})
        return int(meta["step"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The state to resume from, {path}, is damaged ({error}).",
            "Delete it to start that stage again.",
        ) from error


def _optimiser_state(
    tensors: dict[str, Tensor], model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, object]:
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        prefix = f"optimiser.{name}."
        # In the parameter's memory layout, as before the interruption: other loops may round
        # differently.
        values = {
            k.removeprefix(prefix): torch.empty_like(parameter, requires_grad=False).copy_(v)
            if v.shape == parameter.shape
            else v
            for k, v in tensors.items()
            if k.startswith(prefix)
        }
        if values:
            state[index] = values
    return {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
