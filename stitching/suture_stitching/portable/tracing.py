"""Record what a module does: `torch.export` with the batch free, in the raw form that keeps layers whole.

The raw form is kept because decomposing it makes an LSTM many times slower and bakes sizes in. In-place operators are
turned into their functional twins where nobody can tell the difference; where somebody could, the whole recording is
made functional by torch itself.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from suture_stitching.errors import SutureError


def trace(module: torch.nn.Module, example: Sequence[Tensor], *, dynamic_spatial: bool) -> ExportedProgram:
    """Return the functional recording of `module` on `example`; raises `SutureError` (`export.*`).

    Dimension 0 of every input is the batch and stays free; the others are free where the module allows it if
    `dynamic_spatial`.
    """
    shapes = [
        {
            axis: Dim.DYNAMIC if axis == 0 else Dim.AUTO if dynamic_spatial and size > 1 else Dim.STATIC
            for axis, size in enumerate(x.shape)
        }
        for x in example
    ]
    with _quietly():
        try:
            program = torch.export.export(
                module, tuple(example), dynamic_shapes=_shapes_for(module, shapes), strict=False
            )
        except Exception as error:  # torch.export raises dozens of types; each of them means the same to the caller
            raise _tracing_error(error) from error
        _refuse_mutation(program)
        if not _make_functional(program):
            program = program.run_decompositions({})
    return program


def _shapes_for(module: torch.nn.Module, shapes: list[dict[int, Any]]) -> Any:
    """Return the shapes in the nesting that torch.export wants: varargs count as one argument, a tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (tuple(shapes),)
    return tuple(shapes)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put `module` into evaluation mode for a while, and every part of it back as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Record attention as its parts instead of one fused kernel, and without torch's advice to its developers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _tracing_error(error: Exception) -> SutureError:
    text = str(error)
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "specialized" in text or "ConstraintViolation" in type(error).__name__:
        return SutureError(
            "export.fixed_batch",
            f"the module only works for one batch size: {first_line[:400]}",
            hint="take the batch size from the input, as in x.flatten(1) or x.reshape(x.shape[0], -1)",
        )
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return SutureError(
            "export.data_dependent",
            f"the module takes a decision from the values it computes: {first_line[:400]}",
            hint="replace `if tensor...:` and sizes taken from values by torch.where or fixed sizes",
        )
    return SutureError(
        "export.failed",
        f"the module cannot be recorded ({type(error).__name__}): {first_line[:400]}",
        hint="run module(example) once to see that it works, and keep forward() free of anything but tensors",
    )


def module_path(node: fx.Node) -> str:
    """Return the path of the module a node came from, empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in paths[-1]) if paths else ""


def _refuse_mutation(program: ExportedProgram) -> None:
    signature = program.graph_signature
    state = {
        spec.arg.name: spec.target
        for spec in signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    changed = [
        str(spec.target)
        for spec in signature.output_specs
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
    ]
    owners = {_storage(node): state[node.name] for node in program.graph.nodes if node.name in state}
    for node in program.graph.nodes:
        if is_in_place(node) and _storage(node.args[0]) in owners:
            changed.append(str(owners[_storage(node.args[0])]))
    if changed:
        raise SutureError(
            "export.mutation",
            f"the module changes its own tensor {changed[0]} while it runs",
            where=changed[0],
            hint="a shared model must be frozen: do not update buffers when self.training is False",
        )


def constant_nodes(program: ExportedProgram) -> set[fx.Node]:
    """Return the operations whose values depend on neither an input nor a parameter: they can be computed once."""
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if kinds[node.name] in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                constant.add(node)
        elif node.op == "call_function" and constant.issuperset(node.all_input_nodes):
            constant.add(node)
    return constant


def is_in_place(node: object) -> bool:
    """Say whether `node` runs an operator that writes to one of its arguments."""
    return (
        isinstance(node, fx.Node) and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    )


def _storage(node: object) -> int | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def _make_functional(program: ExportedProgram) -> bool:
    """Replace in-place operators by functional ones; False (and nothing changed) when another alias is read later."""
    nodes = list(program.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    constant = constant_nodes(program)
    in_place = [node for node in nodes if is_in_place(node) and node not in constant]
    written_by_constants = {_storage(node) for node in constant if is_in_place(node)}
    for node in in_place:
        if (
            _storage(node) in written_by_constants
            or _functional_twin(node.target) is None
            or _read_through_another_alias(node, nodes, position)
        ):
            return False
    for node in in_place:
        written = node.args[0]
        later = position[node]

        def reads_later(user: fx.Node, later: int = later) -> bool:
            return position[user] > later

        written.replace_all_uses_with(node, delete_user_cb=reads_later)
        node.target = _functional_twin(node.target)
    return True


def _functional_twin(target: Any) -> Any:
    packet, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    twin = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
    return twin if packet.endswith("_") and not packet.endswith("__") and twin is not None else None


def _read_through_another_alias(node: fx.Node, nodes: list[fx.Node], position: dict[fx.Node, int]) -> bool:
    """Say whether memory that `node` writes is read later through anything but its chain of in-place results."""
    chain = {node}
    while is_in_place(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        chain.add(node)
    first = max(chain, key=position.__getitem__)
    return any(
        position[source] < position[first] and source not in chain and _storage(source) == _storage(first)
        for later in nodes[position[first] + 1 :]
        for source in later.all_input_nodes
    )
