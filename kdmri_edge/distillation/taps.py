"""Features of modules that a recipe names: found, shown while a network runs, and projected.

Teacher and student of one family show their activations themselves (`Features.attention`). Of any
others a recipe names modules, whose outputs forward hooks show. The names are those of
`torch.nn.Module.named_modules`, of networks of one's own those of the module that the code returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from kdmri_edge.bring.network import bring, check_not_brought, is_brought
from kdmri_edge.bring.trial import phantom_inputs, try_network
from kdmri_edge.distillation.recipe import Distillation, Transfer
from kdmri_edge.distillation.request import checkpoint_path
from kdmri_edge.errors import ModelError, RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.code import CODE, CodeSpec
from kdmri_edge.models.network import Features, Network
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.espirit import CALIBRATION
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import choose_form
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "Given",
    "Listener",
    "ModuleOutput",
    "Tap",
    "TapPair",
    "Taught",
    "check_image",
    "modules_of",
    "network_outputs",
    "outputs_of",
    "pair_taps",
    "projections",
]

# Of a phantom where nothing is said.
_MATRIX: Final = 240
_ACCELERATION: Final = 2.0
# What an adapter calls the module that it wraps.
_INNER: Final = "module."


class Given(NamedTuple):
    """What a network is called with.

    Attributes:
        x_u: Normalised zero-filled images [B, C, H, W].
        operator: Constant of data consistency.
        maps: Coil sensitivities [B, coils, 2, H, W]; None for one coil.
    """

    x_u: Tensor
    operator: Tensor
    maps: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Tap:
    """A module whose output is compared.

    Attributes:
        name: Its name in the network.
        call: Which of its calls in one forward pass, from 1; None is the last.
    """

    name: str
    call: int | None = None

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Read NAME or NAME#CALL.

        Raises:
            RecipeError: The call is no number from 1.
        """
        name, mark, number = text.partition("#")
        if mark and not (number.isdecimal() and int(number) >= 1):
            raise RecipeError(
                f"{text!r} of distillation.taps names no call of a module.",
                "Write NAME, or NAME#2 for its second call in a forward pass.",
            )
        return cls(name, int(number) if mark else None)

    def __str__(self) -> str:
        return self.name if self.call is None else f"{self.name}#{self.call}"


def modules_of(network: Network) -> dict[str, nn.Module]:
    """Return the modules of a network by the names that recipes give them.

    Those of code are named as in the user's own module, without the adapter around it.
    """
    every = dict(network.named_modules(remove_duplicate=False))
    if network.spec.kind == CODE:
        every = {name.removeprefix(_INNER): module for name, module in every.items()}
        every.pop("module", None)
    every.pop("", None)
    return every


class _Heard:
    """The output of one tap, as a forward hook."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.calls = 0
        self.value: Any = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1
        if self.tap.call in (None, self.calls):
            # A copy: an activation that works in place often follows.
            self.value = output.clone() if isinstance(output, Tensor) else output


class Listener:
    """Shows what tapped modules of a network return.

    Args:
        network: The network.
        taps: Which of its modules, and calls.
        role: What to call the network in messages, "teacher" or "student".

    Raises:
        RecipeError: It has no such module; the nearest name is suggested.
    """

    def __init__(self, network: Network, taps: Sequence[Tap], role: str) -> None:
        known = modules_of(network)
        self._role, self._transposed = role, network.transposed
        self._modules: list[nn.Module] = []
        self._heard: list[_Heard] = []
        self._taps = tuple(taps)
        for tap in taps:
            found = known.get(tap.name, known.get(tap.name.removeprefix(_INNER)))
            if found is None:
                near = nearest(tap.name, known)
                hint = f"; did you mean {near!r}?" if near else "."
                raise RecipeError(
                    f"The {role} has no module {tap.name!r}{hint}",
                    "`kdmri-edge models NETWORK` lists the names of a network's modules.",
                )
            self._modules.append(found)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note what is returned inside; hooks are there for no longer."""
        self._heard = [_Heard(tap) for tap in self._taps]
        hooks = [
            module.register_forward_hook(heard)
            for module, heard in zip(self._modules, self._heard, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def maps(self, x_u: Tensor) -> tuple[Tensor, ...]:
        """Return what was heard, as feature maps [B, width, h, w]; it is then forgotten.

        Args:
            x_u: The input of that forward pass, [B, ..., H, W].

        Raises:
            RecipeError: A module was called too seldom, or returns no feature maps.
        """
        heard, self._heard = self._heard, []
        return tuple(self._maps_of(one, x_u) for one in heard)

    def _maps_of(self, heard: _Heard, x_u: Tensor) -> Tensor:
        tap = heard.tap
        if heard.value is None:
            times = "is not called" if not heard.calls else f"is called {heard.calls} time(s)"
            remedy = "Name a module that is, or another call of it."
            raise RecipeError(f"{tap} of the {self._role} {times} in a forward pass.", remedy)
        found = _feature_maps(heard.value, x_u, transposed=self._transposed)
        if isinstance(found, str):
            raise RecipeError(
                f"{tap} of the {self._role} returns {found}, and a tap wants feature maps"
                f" [{len(x_u)}, width, h, w].",
                "Name another module in distillation.taps; `kdmri-edge models NETWORK` shows what"
                " each one returns.",
            )
        return found


def _feature_maps(value: Any, x_u: Tensor, *, transposed: bool) -> Tensor | str:
    """Return an output as feature maps [B, width, h, w], or what it is instead.

    Args:
        value: What a module returned.
        x_u: What the network was given, [B, ..., H, W].
        transposed: Whether the module works on images [..., W, H].
    """
    if not isinstance(value, Tensor):
        many = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
        return f"a {type(value).__name__}{many}"
    shape = list(value.shape)
    if value.is_complex():
        return f"complex numbers {shape}"
    if not value.is_floating_point():
        return f"whole numbers {shape}"
    height, width = x_u.shape[-2:]
    if transposed:
        height, width = width, height
    if value.ndim == 3 and len(value) == len(x_u):
        grid = _grid(shape[1], height, width)
        if grid is None:
            return f"{shape[1]} tokens, which are not those of a grid of patches, {shape}"
        value = value.transpose(1, 2).reshape(*value.shape[::2], *grid)
    if value.ndim != 4 or len(value) != len(x_u):
        return f"{shape}"
    high, wide = value.shape[2:]
    # Of the image's proportions, but for padding; else its channels come last.
    like_image = 0.5 <= high * width / (wide * height) <= 2 or high * wide == 1
    last = shape[1:3] == [height, width] and shape[2:] != [height, width]
    if last or not like_image:
        return f"{shape}, whose last two axes are not those of an image"
    maps: Tensor = value.transpose(2, 3) if transposed else value
    return maps


def _grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Return rows and columns of square patches that are so many tokens; None for none."""
    for side in range(1, min(height, width) + 1):
        if height % side == 0 and width % side == 0:
            rows, columns = height // side, width // side
            if rows * columns == tokens:
                return rows, columns
    return None


def _run(network: Network, given: Given, listener: Listener) -> tuple[Tensor, ...]:
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), listener.listening():
            network.features(*given)
        return listener.maps(given.x_u)
    finally:
        network.train(training)


class ModuleOutput(NamedTuple):
    """What a module returns in a forward pass.

    Attributes:
        name: Its name in the network, for a recipe.
        kind: Its class.
        calls: How often it is called.
        shape: Feature maps (width, h, w) of its last call; None where it returns none.
    """

    name: str
    kind: str
    calls: int
    shape: tuple[int, int, int] | None


def outputs_of(network: Network, given: Given) -> list[ModuleOutput]:
    """Run a network once, and return what each of its modules that is called returns."""
    every = {name: _Heard(Tap(name)) for name in modules_of(network)}
    modules = modules_of(network)
    hooks = [modules[name].register_forward_hook(heard) for name, heard in every.items()]
    try:
        with torch.no_grad():
            network.features(*given)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, heard in every.items():
        if not heard.calls:
            continue
        maps = _feature_maps(heard.value, given.x_u, transposed=network.transposed)
        shape = None if isinstance(maps, str) else cast(tuple[int, int, int], tuple(maps.shape[1:]))
        found.append(ModuleOutput(name, type(modules[name]).__name__, heard.calls, shape))
    return found


def network_outputs(
    name: str, *, matrix: int | None = None, convention: str | None = None
) -> list[ModuleOutput]:
    """Return what the modules of a network return for a phantom, those that are called.

    Args:
        name: A preset, a checkpoint, a trained network of the package, or code.
        matrix: Side of the phantom; None takes the checkpoint's, else 240.
        convention: What `forward` of code takes, where its signature does not tell.

    Raises:
        ModelError: There is no such network, it fails, or a convention is named and it is no code.
    """
    path = None
    if not is_brought(name):
        check_not_brought({"convention": convention}, ModelError)
        path = checkpoint_path(name)
    if path is not None:
        known = load_checkpoint(path)
        mask = known.mask if matrix in (None, known.matrix) else None
        spec, matrix = known.spec, matrix or known.matrix
    else:
        mask, matrix = None, matrix or _MATRIX
        spec = bring(name, convention=convention) if is_brought(name) else preset(name)
    if mask is None:
        mask = variable_density_lines(
            matrix, _ACCELERATION, centre_lines=min(CALIBRATION, matrix // 4)
        )
    network = build_model(spec).eval()
    network.form = choose_form(mask)
    if isinstance(spec, CodeSpec):  # with what there is to say where it fails
        try_network(network, spec, mask, matrix)
    return outputs_of(network, Given(*phantom_inputs(spec, mask, matrix, network)))


def check_image(network: Network, given: Given, matrix: int, name: str) -> None:
    """Refuse a teacher that does not give an image of finite numbers.

    Args:
        network: The teacher, with its weights.
        given: What it is given.
        matrix: Side of the square images.
        name: What to call it.

    Raises:
        ModelError: It gives NaN or infinite values, or an image of another size.
    """
    training = network.training
    network.eval()
    with torch.no_grad():
        image = network.features(*given).output
    network.train(training)
    wanted = [len(given.x_u), network.spec.channels, matrix, matrix]
    if list(image.shape) != wanted:
        raise ModelError(
            f"{name} gives {list(image.shape)} for a phantom, not an image {wanted}.",
            "A student learns from images of its own size: pad or crop in the teacher's code.",
        )
    if not torch.isfinite(image).all():
        raise ModelError(
            f"{name} gives NaN or infinite values for a phantom.",
            "Nothing can be learned from it: give other weights, or train one.",
        )


@dataclass(frozen=True, slots=True)
class TapPair:
    """A module of the student, and that of the teacher with which it is compared.

    Attributes:
        student: The student's.
        teacher: The teacher's.
        widths: Feature maps of both.
    """

    student: Tap
    teacher: Tap
    widths: tuple[int, int]


def pair_taps(
    wanted: Distillation,
    student: Network,
    teacher: Network,
    student_given: Given,
    teacher_given: Given,
) -> list[TapPair]:
    """Find the modules that a recipe pairs, and run both networks once to see what they return.

    Args:
        wanted: Gives the names, and what is compared.
        student: The student.
        teacher: The teacher.
        student_given: What the student is given, on its device.
        teacher_given: What the teacher is given.

    Raises:
        RecipeError: A module is not there or not called, returns no feature maps, or maps of one
            pixel, of which attention says nothing.
    """
    names: Mapping[str, str] = wanted.taps
    ours = [Tap.parse(name) for name in names]
    theirs = [Tap.parse(name) for name in names.values()]
    if not ours:
        return []
    listeners = Listener(student, ours, "student"), Listener(teacher, theirs, "teacher")
    own = _run(student, student_given, listeners[0])
    other = _run(teacher, teacher_given, listeners[1])
    pairs = []
    for mine, yours, s, t in zip(ours, theirs, own, other, strict=True):
        pixels = min(s.shape[2], t.shape[2]) * min(s.shape[3], t.shape[3])
        if wanted.transfer is Transfer.ATTENTION and pixels == 1:
            raise RecipeError(
                f"Maps of {mine} and {yours} have one pixel in common, of which attention says"
                " nothing.",
                "Use --set distillation.transfer=features, or name other modules.",
            )
        pairs.append(TapPair(mine, yours, (s.shape[1], t.shape[1])))
    return pairs


def projections(pairs: Sequence[TapPair], transfer: Transfer) -> nn.ModuleList:
    """Return a 1x1 projection for each pair, the identity where none is needed.

    Attention sums over the feature maps, so that it needs none. The first weights come from
    PyTorch's global generator.
    """

    def projection(widths: tuple[int, int]) -> nn.Module:
        if transfer is Transfer.ATTENTION or widths[0] == widths[1]:
            return nn.Identity()
        return nn.Conv2d(*widths, 1, bias=False)

    return nn.ModuleList(projection(pair.widths) for pair in pairs)


class Taught(nn.Module):
    """A student with the projections of its tapped maps: what is trained, and saved to resume.

    Args:
        student: The student, whose output is this module's.
        pairs: What is compared.
        projected: See `projections`; one for each pair.
    """

    def __init__(
        self, student: Network, pairs: Sequence[TapPair], projected: nn.ModuleList
    ) -> None:
        super().__init__()
        self.student = student
        self.projections = projected
        self._taps = [pair.student for pair in pairs]

    def features(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Features:
        """Return what the student shows, and its tapped maps, projected."""
        listener = Listener(self.student, self._taps, "student")
        with listener.listening():
            shown = self.student.features(x_u, operator, maps)
        taps = zip(self.projections, listener.maps(x_u), strict=True)
        return shown._replace(taps=tuple(projection(found) for projection, found in taps))

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct with the student."""
        image: Tensor = self.student(x_u, operator, maps)
        return image
