"""Networks of one's own: the code is called, and its module told what it is given.

Which convention a module follows is found by the signature of its `forward`, and by the channels
that its first convolution reads. Modules of other conventions are wrapped in a class that derives
from `Adapter`.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from kdmri_edge.errors import MaskError, ModelError
from kdmri_edge.models.code import OBJECT, CodeSpec, Convention
from kdmri_edge.models.deepinv import CoilPhysics, Physics, to_complex
from kdmri_edge.models.layers import Structure
from kdmri_edge.models.network import Network
from kdmri_edge.models.permission import PermittedCode, permitted_code
from kdmri_edge.models.protocol import InputKind
from kdmri_edge.physics.combining import LEAST_CENTRE, centre_lines, centre_window
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form
from kdmri_edge.utils.suggest import nearest

__all__ = ["GUIDE", "Adapted", "Adapter", "adapted", "build", "call"]

GUIDE: Final = "see docs/tutorials/bring-a-network.md"
"""Where adapters are explained."""


class Adapter(Network):
    """A network around any module, for one whose `forward` follows no named convention.

    A subclass says what it reads and gives that to its module in its own `forward`:

        class Slices(Adapter):
            reads = InputKind.MAGNITUDE

            def forward(self, x_u):
                image, _ = self.module(x_u[:, 0])
                return image[:, None]

    The factory that the user names returns `Slices(module)`.

    Args:
        module: What does the work. Its weights have "module." before their names here.

    Attributes:
        reads: What `forward` is given as `x_u`, and with `InputKind.SENSE` as `maps`. With
            `InputKind.KSPACE` it is k-space, and the operator the mask (see `models.network`).
        has_data_consistency: Whether it is given the operator of data consistency as well.
        module: See above.
    """

    reads: ClassVar[InputKind] = InputKind.MAGNITUDE
    has_data_consistency: ClassVar[bool] = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def form(self) -> Form:
        """Form of data consistency that the operator is made for; the module has it as well."""
        return self._form

    @form.setter
    def form(self, form: Form) -> None:
        self._form = form
        if self.has_data_consistency:  # others may use the name for something of their own
            self.module.form = form  # type: ignore[assignment]

    def structure(self) -> Structure:
        """Describe its layers by a forward pass at a matrix that it is known to take."""
        spec = self.spec
        counted = spec.counted_at if isinstance(spec, CodeSpec) else (0, 0)
        return self.structure_at(*counted) if all(counted) else super().structure()


class _Image(Adapter):
    """A module that maps an image to an image."""

    def forward(
        self, x_u: Tensor, operator: Tensor | None = None, maps: Tensor | None = None
    ) -> Tensor:
        """Give it the image alone."""
        made: Tensor = self.module(x_u)
        return made


class _Operator(Adapter):
    """A module that uses the operator of data consistency."""

    has_data_consistency = True

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Give it the operator and, with coils, their sensitivities."""
        made: Tensor = (
            self.module(x_u, operator)
            if self.spec.reads is not InputKind.SENSE
            else self.module(x_u, operator, maps)
        )
        return made


class _KSpace(Adapter):
    """A module of fastMRI's or MONAI's kind, which have one layout."""

    has_data_consistency = True
    transposed = True

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Give it k-space and mask in its layout, and turn its image into this library's."""
        if operator.shape[-1] != 1:
            raise ModelError(
                "The mask samples single points, and networks by the conventions of fastMRI and"
                " MONAI take masks of whole lines.",
                f"Give a mask of lines, or write an adapter; {GUIDE}.",
            )
        height, width = x_u.shape[-2:]
        # [B, coils, 2, H, W] to [B, coils, W, H, 2], zero frequency to the middle
        centred = torch.roll(x_u.permute(0, 1, 4, 3, 2), (width // 2, height // 2), (2, 3))
        lines = torch.roll(operator[:, 0], height // 2) > 0
        more = [_centre_lines(lines)] if self._asks_for_centre else []
        made: Tensor = self.module(centred.contiguous(), lines.view(1, 1, 1, height, 1), *more)
        if not isinstance(made, Tensor) or made.shape[1:] not in (
            (width, height),
            (1, width, height),
        ):
            return made  # `bring.trial` says what is wrong with it
        return made.reshape(-1, 1, width, height).transpose(-2, -1)

    @property
    def _asks_for_centre(self) -> bool:
        return _positional(self.module)[0] == 3


class _Deepinv(Adapter):
    """A reconstructor of deepinv's kind, of one coil."""

    has_data_consistency = True
    transposed = True  # deepinv's masks, as fastMRI's, sample lines along the last axis

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Give it the samples that the zero-filled image was made of, and their physics."""
        physics = Physics(_their_mask(operator, x_u))
        turned = x_u.to(torch.float32).transpose(-2, -1)  # training in bf16 hands over bf16
        made: Tensor = _image_of(self.module(physics.A(turned), physics))
        return made


class _DeepinvMulticoil(Adapter):
    """A reconstructor of deepinv's kind, of several coils; its image becomes a magnitude."""

    has_data_consistency = True
    transposed = True

    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor | None = None) -> Tensor:
        """Give it k-space and its physics, with sensitivities of the mask's centre lines."""
        height, width = x_u.shape[-2:]
        # [B, coils, 2, H, W] to [B, 2, coils, W, H], zero frequency to the middle
        turned = torch.roll(x_u.permute(0, 2, 1, 4, 3), (width // 2, height // 2), (3, 4))
        y = turned.to(torch.float32).contiguous()
        mask = _their_mask(operator, x_u)
        physics = CoilPhysics(mask, lambda: _sensitivities(y, operator))
        made = self.module(y, physics)
        if isinstance(made, Tensor) and made.dim() == 4 and made.shape[1] == 2:
            made = to_complex(made).abs()[:, None]
        image: Tensor = _image_of(made)
        return image


def _their_mask(operator: Tensor, x_u: Tensor) -> Tensor:
    """Return a mask [H, 1] or [H, W] as [W, H], zero frequency in the middle."""
    height, width = x_u.shape[-2:]
    mask = operator.expand(height, width).t()
    return torch.roll(mask, (width // 2, height // 2), (0, 1))


def _image_of(made: Any) -> Any:
    """Turn an image [B, C, W, H]; `bring.trial` says what is wrong with anything else."""
    return made.transpose(-2, -1) if isinstance(made, Tensor) and made.dim() == 4 else made


def _sensitivities(y: Tensor, operator: Tensor) -> Tensor:
    """Estimate sensitivities from the centre, as `physics.combining.smooth_sensitivities` does.

    Args:
        y: K-space [B, 2, coils, W, H].
        operator: The mask of lines, [H, 1].

    Returns:
        [B, coils, W, H], complex; the root sum of squares over coils is 1, less where there is
        hardly a signal.

    Raises:
        MaskError: The mask has no lines, or too few around zero frequency.
    """
    if operator.shape[-1] != 1:
        raise MaskError(
            "The mask samples single points, and sensitivities are estimated from whole lines.",
            "Give a mask of lines, or pass coil_maps of the network's own to the physics.",
        )
    width, height = y.shape[-2:]
    sampled = np.array((operator[:, 0] > 0).tolist())
    count = centre_lines(Mask(samples=sampled, name="of the network"))
    if count < min(LEAST_CENTRE, height):
        raise MaskError(
            f"{count} line(s) around zero frequency are sampled without a gap; sensitivities cannot"
            f" be estimated from fewer than {LEAST_CENTRE}.",
            "Sample the centre of k-space, or pass coil_maps of the network's own to the physics.",
        )
    along = centre_window(count, height)
    across = centre_window(max(1, round(count * width / height)), width)
    window = torch.from_numpy(np.fft.fftshift(np.outer(across, along))).to(y)
    low = Physics.ifft(to_complex(y * window))
    strength = low.abs().square().sum(1, keepdim=True).sqrt()
    return low / strength.clamp_min(_NO_SIGNAL)


def _centre_lines(lines: Tensor) -> int:
    """Count the lines around the middle of a mask, as many on either side, as fastMRI does."""
    sampled = lines.tolist()
    middle = len(sampled) // 2
    sides = (sampled[:middle][::-1], sampled[middle:])
    reach = [(*side, False).index(False) for side in sides]
    return max(2 * min(reach), 1)


_ARGUMENTS: Final = {
    Convention.IMAGE: 1,
    Convention.COMPLEX_IMAGE: 1,
    Convention.OPERATOR: 2,
    Convention.FASTMRI: 2,
    Convention.MONAI: 2,
    Convention.DEEPINV: 2,
    Convention.DEEPINV_MULTICOIL: 2,
}
_OF_KSPACE: Final = (Convention.FASTMRI, Convention.MONAI, Convention.DEEPINV_MULTICOIL)
_OF_PHYSICS: Final = (Convention.DEEPINV, Convention.DEEPINV_MULTICOIL)
_WITH_KSPACE: Final = (*_OF_KSPACE, Convention.DEEPINV)
_KSPACE: Final = frozenset(
    ("masked_kspace", "kspace", "k_space", "masked_k_space", "physics", "sens_maps", "smaps")
)
"""Names by which networks of other libraries take k-space: fastMRI's, MONAI's, deepinv's."""
_PHYSICS: Final = "physics"
_NO_SIGNAL: Final = 1e-3
"""Share of the largest root sum of squares below which sensitivities fade out: they would be those
of rounding, and other ones in each runtime."""
_CENTRE: Final = ("num_low_frequencies", "num_low_freqs")
"""Names of the number of lines around zero frequency, which fastMRI's networks take."""


def call(code: PermittedCode) -> nn.Module:
    """Import the code and call it.

    Raises:
        ModelError: It cannot be imported, its factory is not there, asks for other arguments,
            fails, or gives no module with trainable parameters.
    """
    name = str(code.reference.portable)
    module = _unpickled(code, name) if code.reference.place == OBJECT else _called(code, name)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{name} gives {_a(module)}, not a torch.nn.Module.",
            "Name a class that is one, or a function that returns one.",
        )
    if "_parameters" not in vars(module):
        raise ModelError(
            f"{name} gives a module that was not set up.",
            "Call super().__init__() in its __init__.",
        )
    if (wrapped := _wrapped_in(module)) is not None:
        raise ModelError(
            f"{name} gives a network inside of {wrapped}.", "Give the network that is in it."
        )
    if any(isinstance(one, UninitializedParameter) for one in module.parameters()):
        raise ModelError(
            f"The module of {name} has lazy layers, whose sizes are known only after a first call.",
            "Write their number of channels, or call the module once in the factory.",
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ModelError(
            f"The module of {name} has no trainable parameters.",
            "Name one that has layers with weights.",
        )
    if any(value.is_complex() for value in module.state_dict().values()):
        raise ModelError(
            f"The module of {name} has complex weights, which no runtime here takes.",
            "Write them as two real channels.",
        )
    return module.float()


def _wrapped_in(module: nn.Module) -> str | None:
    """Say what a module is inside of that only runs another one; None for a network itself."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return type(module).__name__
    return "torch.compile" if "_orig_mod" in module._modules else None


def _called(code: PermittedCode, name: str) -> Any:
    where = _imported(code, name)
    factory: Any = where
    for part in code.reference.factory.split("."):
        if not hasattr(factory, part):
            there = [one for one in vars(factory) if callable(getattr(factory, one, None))]
            near = nearest(part, there)
            hint = f"; did you mean {near!r}?" if near else "."
            raise ModelError(
                f"{code.reference.place} has no {part!r}{hint}", "Name a function or a class of it."
            )
        factory = getattr(factory, part)
    if isinstance(factory, nn.Module):  # it could be called, with an image
        raise ModelError(
            f"{name} is {_a(factory)}, not what makes one.",
            "Name its class, or a function that returns it.",
        )
    if not callable(factory):
        raise ModelError(
            f"{name} is {_a(factory)}, and cannot be called.", "Name a function or a class."
        )
    keywords = code.reference.keywords
    _check_arguments(factory, keywords, name)
    try:
        return factory(**keywords)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise ModelError(f"{name} fails: {_reason(error, code)}", "Mend that code.") from error


def _check_arguments(factory: Callable[..., Any], keywords: dict[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of C code: nothing is known, the call itself will tell
        return
    plain = name.partition("?")[0]
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = {key: one for key, one in signature.parameters.items() if one.kind not in free}
    any_keyword = any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()
    )
    if not any_keyword and (strange := next((key for key in keywords if key not in known), None)):
        takes = f"It takes {', '.join(known)}." if known else "It takes no arguments."
        near = nearest(strange, known)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ModelError(f"{plain} takes no argument {strange!r}{hint}", takes)
    for key, one in known.items():
        if one.default is inspect.Parameter.empty and key not in keywords:
            raise ModelError(
                f"{plain} needs the argument {key!r}.",
                f"Give it: '{name}{'&' if '?' in name else '?'}{key}=...', or name a function"
                " that needs none.",
            )


def _imported(code: PermittedCode, name: str) -> types.ModuleType:
    """Import a module, or run a file as one, once for each content that it has."""
    try:
        if not code.reference.is_file:
            return importlib.import_module(code.reference.place)
        source = code.file.read_bytes()
        known = f"kdmri_code_{code.sha256[:12]}_{code.file.stem}"
        if known in sys.modules:
            return sys.modules[known]
        module = types.ModuleType(known)
        module.__file__ = str(code.file)
        sys.modules[known] = module  # dataclasses and pickles look for it
        folder = str(code.file.parent)
        sys.path.insert(0, folder)  # what lies beside it can be imported, as by a script
        try:
            exec(compile(source, str(code.file), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[known]
            raise
        finally:
            sys.path.remove(folder)
        return module
    except (Exception, SystemExit) as error:  # a script that reads its arguments, too
        raise ModelError(
            f"{code.reference.place} cannot be imported: {_reason(error, code)}",
            "Mend it, or install what it needs.",
        ) from error


def _unpickled(code: PermittedCode, name: str) -> Any:
    try:
        return pickle.loads(code.file.read_bytes())
    except (Exception, SystemExit) as error:  # of the classes that are looked for
        raise ModelError(
            f"{name} was given as an object, and its class cannot be found here:"
            f" {_reason(error, code)}",
            "Put the class into a file, and name it FILE.py:CLASS.",
        ) from error


def _reason(error: BaseException, code: PermittedCode) -> str:
    """Say in one sentence what the user's code raised, and in which of its lines."""
    text = " ".join(str(error).split())[:300].rstrip(".") or "no message"
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(code.file)]
    line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else None
    place = "" if line is None else f" (line {line} of {code.file.name})"
    return f"{type(error).__name__}: {text}{place}."


def _a(value: object) -> str:
    """Say what a value is, with its article."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"an object of class {type(value).__name__}"


class Adapted(NamedTuple):
    """A module that is given what it takes.

    Attributes:
        network: Calls the module.
        convention: What the module takes.
        reads: What the network is given.
    """

    network: Adapter
    convention: Convention
    reads: InputKind


def adapted(module: nn.Module, name: str, said: Convention | None = None) -> Adapted:
    """Find out what a module takes, and give it that.

    Args:
        module: The module.
        name: What to call it in messages.
        said: The convention that the user named; None to find it.

    Raises:
        ModelError: The signature of `forward` tells no convention, or is not that of the one said.
    """
    if isinstance(module, Adapter):
        if said not in (None, Convention.ADAPTER):
            raise ModelError(
                f"{name} is an adapter, and says itself what it takes.",
                "Leave the convention out.",
            )
        if module.reads not in tuple(InputKind):
            raise ModelError(
                f"{name} is an adapter whose `reads` is {module.reads!r}.",
                f"Say one of {', '.join(f'InputKind.{kind.name}' for kind in InputKind)}.",
            )
        return Adapted(module, Convention.ADAPTER, InputKind(module.reads))
    if said is Convention.ADAPTER:
        raise ModelError(
            f"{name} gives {_a(module)}, not one that derives from kdmri_edge.models.Adapter.",
            "Leave the convention out, or return an adapter.",
        )
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise ModelError(
            f"{name} gives {_a(module)} that has no forward.",
            f"Write what it computes as its method forward; {GUIDE}.",
        )
    needed, most, names = _positional(module)
    said = said or _of_kspace(names, needed)
    strange = next((one for one in names[:needed] if one in _KSPACE), None)
    if _PHYSICS in names[:needed] and said not in _OF_PHYSICS:
        strange = _PHYSICS
    if strange is not None and said not in _WITH_KSPACE and "operator" not in names:
        raise _unknown_kspace(names, name, strange)
    channels = _channels_read(module)
    convention = said or _found(names, needed, name, channels)
    wanted = _ARGUMENTS[convention]
    if convention is Convention.FASTMRI and needed == 3:
        wanted = 3
    if convention is Convention.OPERATOR and (needed == 3 or "maps" in names[:3]):
        wanted = 3
    if not needed <= wanted <= most:
        counted = f"{needed}" if needed == most else f"{needed} to {most}"
        raise ModelError(
            f"forward of {name} takes {counted} arguments ({', '.join(names)}), and convention"
            f" {convention!s} gives it {wanted}.",
            f"Write it so, or write an adapter; {GUIDE}.",
        )
    kinds: dict[Convention, type[Adapter]] = {
        Convention.OPERATOR: _Operator,
        Convention.FASTMRI: _KSpace,
        Convention.MONAI: _KSpace,
        Convention.DEEPINV: _Deepinv,
        Convention.DEEPINV_MULTICOIL: _DeepinvMulticoil,
    }
    network = kinds.get(convention, _Image)(module)
    return Adapted(network, convention, _reads(convention, wanted, channels))


def _of_kspace(names: list[str], needed: int) -> Convention | None:
    """Return the convention of a network of k-space that its signature tells."""
    if names[1:2] == [_PHYSICS]:
        return Convention.DEEPINV if needed <= 2 else None
    if names[:2] != ["masked_kspace", "mask"]:
        return None
    if names[2:3] and names[2] in _CENTRE:
        return Convention.FASTMRI if needed in (2, 3) else None
    return Convention.MONAI if needed == 2 else None


def _unknown_kspace(names: list[str], name: str, strange: str) -> ModelError:
    """Return the error for a network of k-space in a layout that its signature does not tell."""
    signature = f"forward of {name} takes k-space ({strange}): forward({', '.join(names)})"
    if strange == _PHYSICS:
        return ModelError(
            f"{signature}. Conventions deepinv and deepinv-multicoil give it (y, physics) alone, in"
            " this order.",
            f"Name one of them, give further arguments defaults, or write an adapter; {GUIDE}.",
        )
    return ModelError(
        f"{signature}; which layout it wants is not said by forward(masked_kspace, mask).",
        "Name --convention fastmri or monai if it is theirs, or write an adapter with"
        f" reads = InputKind.KSPACE; {GUIDE}.",
    )


def _reads(convention: Convention, arguments: int, channels: int | None) -> InputKind:
    if convention in _OF_KSPACE:
        return InputKind.KSPACE
    if convention is Convention.DEEPINV:
        return InputKind.COMPLEX
    if arguments == 3:
        return InputKind.SENSE
    two = convention is Convention.COMPLEX_IMAGE or (
        convention is Convention.OPERATOR and channels == 2
    )
    return InputKind.COMPLEX if two else InputKind.MAGNITUDE


def _found(names: list[str], needed: int, name: str, channels: int | None) -> Convention:
    """Return the convention that a signature tells."""
    if needed == 1:
        return Convention.COMPLEX_IMAGE if channels == 2 else Convention.IMAGE
    if needed in (2, 3) and names[1] in ("operator", "op") and names[2:3] in ([], ["maps"]):
        return Convention.OPERATOR
    raise ModelError(
        f"forward({', '.join(names)}) of {name} follows no convention that is known here.",
        "Take an image, (x_u, operator), (x_u, operator, maps), (masked_kspace, mask) or"
        f" (y, physics); else write an adapter; {GUIDE}.",
    )


def _positional(module: nn.Module) -> tuple[int, int, list[str]]:
    """Return how many arguments `forward` needs, how many it takes at most, and their names."""
    every = list(inspect.signature(module.forward).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own = [one for one in every if one.kind in kinds]
    needed = sum(one.default is inspect.Parameter.empty for one in own)
    many = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in every)
    return needed, 3 if many else len(own), [one.name for one in own]


def _channels_read(module: nn.Module) -> int | None:
    """Return the channels that its first convolution reads, None without any."""
    every = (one for one in module.modules() if isinstance(one, nn.Conv2d))
    first = next(every, None)
    return None if first is None else first.in_channels


def build(spec: CodeSpec) -> Network:
    """Make the network of a specification, if its code may be called.

    Raises:
        ModelError: See `permission.permitted_code`, `call` and `adapted`.
    """
    module = call(permitted_code(spec.reference, spec.sha256))
    return adapted(module, spec.reference, spec.convention).network
