"""An exported program without complex numbers and without Fourier transforms.

Most runtimes know neither. Here every complex tensor of a program becomes a pair of real ones
(`complex_operators`) and every Fourier transform a product with DFT matrices (`fourier`), whatever
network the program comes from: the pass reads operators, not classes.

The program is run once more under `torch.export`, node by node. Complex tensors and transforms are
in float32 there, whatever the precision around them.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    TensorArgument,
)
from torch.utils._python_dispatch import TorchDispatchMode

from kdmri_edge.errors import ExportError
from kdmri_export.passes.complex_operators import (
    Pair,
    UnsupportedError,
    as_float32,
    is_complex,
    rule_of,
)
from kdmri_export.passes.fourier import Matrices, Plan, is_transform, plan_transforms
from kdmri_export.passes.hybrid_space import stay_in_hybrid_space
from kdmri_export.passes.last_axis import LastAxis, spliced
from kdmri_export.passes.user_code import silence, source_line

__all__ = ["DFT_MATRICES", "RealProgram", "meets_complex", "without_complex"]

DFT_MATRICES: Final = "dft_matrices"
"""What the names of DFT matrices begin with in a program without complex numbers."""

_aten: Final = torch.ops.aten
_REMEDY: Final = (
    "Write that line with real and imaginary parts (torch.view_as_real), or with operators that"
    " have such a form: arithmetic, products, absolute values, conjugates, indexing, torch.fft."
)


@dataclass(frozen=True, kw_only=True)
class RealProgram:
    """A program of real tensors.

    Args:
        program: Its inputs are the tensors that the original takes, in the order of its
            signature; its outputs keep their structure.
        complex_inputs: Names of the inputs that were complex: they have a last axis of 2 now,
            real and imaginary part, as `torch.view_as_real` gives it.
        complex_outputs: Positions of the outputs, flattened, that were complex; likewise.
        transforms: How many Fourier transforms became products.
    """

    program: ExportedProgram
    complex_inputs: tuple[str, ...]
    complex_outputs: tuple[int, ...]
    transforms: int


def meets_complex(network: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Run a network once, and tell whether it computes with complex numbers.

    A Fourier transform does, for those of real tensors give or take half a spectrum.
    """
    watch = _Watch()
    with watch:
        network(*args, **kwargs)
    return watch.met


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator gave a complex tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.met = self.met or any(is_complex(one) for one in pytree.tree_leaves(made))
        return made


def without_complex(program: ExportedProgram) -> RealProgram:
    """Return a program that computes the same with real tensors alone.

    Parameters, buffers and constants that are complex become two of float32, with `_real` and
    `_imag` at the end of their names; all others keep theirs.

    Args:
        program: With its example inputs. Sizes along axes that are transformed are fixed; others
            may be free.

    Raises:
        ExportError: An operator on complex tensors has no form in real ones; a transform runs
            along an axis whose size is free; or the program writes into its inputs or buffers.
            The message names the user's line.
    """
    with silence(), torch.no_grad():
        program = _taken_apart(program)
        _check_pure(program)
        _check_operators(program)
        pairs = _OnPairs(program)
        real = torch.export.export(
            pairs.module, pairs.examples, dynamic_shapes=pairs.shapes, strict=False
        )
    # what only a transform's own shifts read, and views that nothing reads
    real.graph.eliminate_dead_code()
    real.graph_module.recompile()
    outputs: Any = program.graph.output_node().args[0]
    return RealProgram(
        program=real,
        complex_inputs=tuple(pairs.complex_inputs),
        complex_outputs=tuple(
            position
            for position, node in enumerate(outputs)
            if isinstance(node, fx.Node) and is_complex(node.meta["val"])
        ),
        transforms=pairs.transforms,
    )


def _check_pure(program: ExportedProgram) -> None:
    kinds = {
        OutputKind.BUFFER_MUTATION: "buffer",
        OutputKind.USER_INPUT_MUTATION: "input",
    }
    for spec in program.graph_signature.output_specs:
        if spec.kind in kinds:
            raise ExportError(
                f"The network writes into its {kinds[spec.kind]} `{spec.target}` in place, which a"
                " graph cannot do.",
                "Let it write into a copy (`x = x.clone()`), and call `eval()` before exporting.",
            )


def _check_operators(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        known = rule_of(node.target) or is_transform(node) or node.target is operator.getitem
        if node.op == "call_function" and not known and _touches_complex(node):
            raise _unsupported(node)


def _unsupported(node: fx.Node, which: str = "") -> ExportError:
    return ExportError(
        f"The operator {node.target} on complex tensors{which}, in {source_line(node)}, has no form"
        " in real ones.",
        _REMEDY,
    )


# --- taking operators apart ---------------------------------------------------------------------


def _touches_complex(node: fx.Node) -> bool:
    """Whether a node computes from or to complex numbers."""
    found = [is_complex(node.meta.get("val"))]
    fx.node.map_aggregate(
        (node.args, dict(node.kwargs)),
        lambda arg: found.append(
            is_complex(arg.meta.get("val") if isinstance(arg, fx.Node) else arg)
        ),
    )
    return any(found)


def _is_fft(target: Any) -> bool:
    """Whether an operator is of torch.fft, which holds shifts of real tensors, too."""
    return str(target).startswith("aten.fft_")


def _taken_apart(program: ExportedProgram) -> ExportedProgram:
    """Make a program functional, and take apart torch.fft and what meets complex numbers unruled.

    Nothing else is: exporters know layers as wholes.
    """
    program = program.run_decompositions({})
    known = torch.export.default_decompositions()
    chosen: dict[Any, Any] = {}
    while True:
        further = {
            node.target: known[node.target]
            for node in program.graph.nodes
            if node.op == "call_function"
            and node.target not in chosen
            and node.target in known
            and (_is_fft(node.target) or (rule_of(node.target) is None and _touches_complex(node)))
        }
        if not further:
            return program
        chosen |= further
        try:
            program = program.run_decompositions(dict(chosen))
        except Exception as error:  # PyTorch's own rules may raise anything
            met = next(node for node in program.graph.nodes if node.target in further)
            raise _unsupported(met) from error


# --- running the program on pairs ---------------------------------------------------------------


class _OnPairs:
    """Runs a program on pairs of real tensors.

    Args:
        program: Functional.

    Attributes:
        module: Holds the state of the program and DFT matrices, and runs it on real inputs.
        examples: Real example inputs.
        shapes: Which axes of them are free, for `torch.export`.
        complex_inputs: Names of inputs with a last axis of 2.
        transforms: Number of Fourier transforms.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.module = nn.Module()
        self.complex_inputs: list[str] = []
        self._program = program
        # How each placeholder's value is found among inputs, state and constants.
        self._sources: list[Callable[[Sequence[Tensor]], Any]] = []
        self._dimensions: dict[str, Any] = {}
        matrices = Matrices()
        self._matrices = matrices
        self._plan = plan_transforms(program.graph)
        self.transforms = len(self._plan.transforms)
        stay_in_hybrid_space(program.graph, self._plan, _zeros(program))
        self._plan.keep(matrices)
        examples: list[Tensor] = []
        names: list[str] = []
        shapes: list[dict[int, Any]] = []
        given = iter(_flat_examples(program))
        nodes = program.graph.find_nodes(op="placeholder")
        for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
            if spec.kind is not InputKind.USER_INPUT:
                self._sources.append(self._keep(spec))
                continue
            value = next(given)
            if isinstance(spec.arg, ConstantArgument):
                self._sources.append(partial(_constant, spec.arg.value))
                continue
            if not isinstance(spec.arg, TensorArgument):
                raise ExportError(
                    f"The input `{spec.arg.name}` is a number that may change.",
                    "Pass a tensor, or a fixed number.",
                )
            self._sources.append(operator.itemgetter(len(examples)))
            if value.is_complex():
                self.complex_inputs.append(node.name)
                value = torch.view_as_real(value.resolve_conj())
            examples.append(value)
            names.append(node.name)
            shapes.append(self._free_axes(node.meta["val"]))
        self.examples = tuple(examples)
        self.shapes = tuple(shapes)
        name = DFT_MATRICES
        while hasattr(self.module, name):
            name += "_"
        self.module.add_module(name, matrices)
        vars(self.module)["forward"] = _with_arguments(self._run, names)

    def _keep(self, spec: InputSpec) -> Callable[[Sequence[Tensor]], Any]:
        """Register a parameter, buffer or constant under its own name."""
        name = str(spec.target)
        state: Mapping[str, Any] = self._program.state_dict
        value = state[name] if name in state else self._program.constants[name]
        if not isinstance(value, Tensor):
            raise ExportError(f"The program holds `{name}`, which is no tensor.", "Leave it out.")
        if not value.is_complex():
            return self._register(name, value)
        parts = torch.view_as_real(value.detach().resolve_conj()).float().unbind(-1)
        kept = [
            self._register(f"{name}_{part}", tensor.contiguous())
            for part, tensor in zip(("real", "imag"), parts, strict=True)
        ]
        return lambda _inputs: Pair(*(one(()) for one in kept))

    def _register(self, name: str, value: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
        *path, last = name.split(".")
        owner = self.module
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            owner.register_buffer(last, value)
        # looked up at each run: torch.export puts its own tensors in their place
        return lambda _inputs: getattr(owner, last)

    def _free_axes(self, value: Tensor) -> dict[int, Any]:
        """Return the axes whose size is not fixed, as they were for the original export."""
        sizes: list[Any] = list(value.shape)
        return {
            axis: self._dimension(size)
            for axis, size in enumerate(sizes)
            if isinstance(size, torch.SymInt)
        }

    def _dimension(self, size: torch.SymInt) -> Any:
        expression = size.node.expr
        bounds = self._program.range_constraints.get(expression)
        if not expression.is_symbol or bounds is None:
            return Dim.AUTO
        name = str(expression)
        # without an upper bound PyTorch has an infinity of its own
        upper = int(bounds.upper) if bounds.upper.is_Integer else None
        return self._dimensions.setdefault(name, Dim(name, min=int(bounds.lower), max=upper))

    def _run(self, inputs: Sequence[Tensor]) -> Any:
        interpreter = _Interpreter(self._program, self._plan, self._matrices)
        values = [source(inputs) for source in self._sources]
        outputs = interpreter.run(*values, enable_io_processing=False)
        structure = self._program.call_spec.out_spec
        assert structure is not None
        return pytree.tree_unflatten(outputs, structure)


def _zeros(program: ExportedProgram) -> set[fx.Node]:
    """Return the placeholders of weights and constants that are zero."""
    held: Mapping[str, Any] = {**program.state_dict, **program.constants}
    nodes = program.graph.find_nodes(op="placeholder")
    found = set()
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        value = None if spec.kind is InputKind.USER_INPUT else held.get(str(spec.target))
        if isinstance(value, Tensor) and not value.any():
            found.add(node)
    return found


def _constant(value: Any, _inputs: Sequence[Tensor]) -> Any:
    return value


def _flat_examples(program: ExportedProgram) -> list[Any]:
    if program.example_inputs is None:
        raise ExportError("The program has no example inputs.", "Export the network anew.")
    args, kwargs = program.example_inputs
    structure = program.call_spec.in_spec
    assert structure is not None
    order = structure.children()[1].context  # arguments by name have an order of their own
    return pytree.tree_leaves((args, {key: kwargs[key] for key in order}))


def _with_arguments(run: Callable[[Sequence[Tensor]], Any], names: Sequence[str]) -> Any:
    """Return a function of inputs with these names, which become the program's."""

    def forward(*inputs: Tensor) -> Any:
        return run(inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    return forward


class _Interpreter(fx.Interpreter):
    """Computes the nodes of a program; the value of a complex one is a `Pair`."""

    def __init__(self, program: ExportedProgram, plan: Plan, matrices: nn.Module) -> None:
        # transforms look for values behind the shifts that they take in
        super().__init__(program.graph_module, garbage_collect_values=False)
        self._plan, self._matrices = plan, matrices
        self.extra_traceback = False  # errors for users stay as they are
        self._last_axis = LastAxis(lambda node: self.env[node])

    def run_node(self, node: fx.Node) -> Any:
        if node in self._plan.passed:
            source = self._plan.passed[node]
            parts = self._last_axis.parts(source)
            if parts is not None:
                self._last_axis.note(node, parts)
            return self.env[source]
        value = self._computed(node)
        expected = node.meta.get("val")
        if isinstance(expected, Tensor) and isinstance(value, Tensor):
            if node.op == "placeholder" and expected.is_complex():
                return Pair(*(as_float32(part) for part in value.unbind(-1)))
            if node.op == "call_function" and value.dtype != expected.dtype:
                return value.to(expected.dtype)
        return value

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "output":
            return self._outputs(node)
        if node.op != "call_function":
            return super().run_node(node)
        if is_transform(node):
            transform = self._plan.transforms[node]
            return transform(self._before(transform.source, node), self._matrices)
        if not _touches_complex(node):
            followed = self._last_axis.follow(node)
            if followed is not None:
                return followed
            if node.target is _aten.slice_scatter.default:
                args, kwargs = self.fetch_args_kwargs_from_env(node)
                return spliced(*args, **kwargs)
            return super().run_node(node)
        if node.target is _aten.view_as_complex.default:
            parts = self._last_axis.parts(node.all_input_nodes[0])
            if parts is not None:
                return parts
        return self._by_rule(node)

    def _by_rule(self, node: fx.Node) -> Any:
        rule = rule_of(node.target)
        if rule is None:  # an element of a list
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        try:
            value = rule(node.target, *args, **kwargs)
        except UnsupportedError as error:
            raise _unsupported(node, f" {error}") from error
        if node.target is _aten.view_as_real.default:
            self._last_axis.note(node, args[0])
        return value

    def _before(self, source: fx.Node, node: fx.Node) -> Any:
        """Return the value that a transform takes, behind the shifts that it does itself."""
        value = self.env[source]
        if isinstance(value, Pair) or not is_complex(node.all_input_nodes[0].meta["val"]):
            return value
        parts = self._last_axis.parts(source)
        return parts or Pair(*(as_float32(part) for part in value.unbind(-1)))

    def _outputs(self, node: fx.Node) -> list[Any]:
        outputs = []
        returned: Any = node.args[0]
        for one in returned:
            value = self.env[one] if isinstance(one, fx.Node) else one
            if isinstance(value, Pair):
                dtype = one.meta["val"].dtype.to_real()
                value = value.as_last_axis().to(dtype)
            outputs.append(value)
        return outputs
