"""Prepare a recording for conversion: no operator writes to its arguments, no constant hangs on an input.

In-place operators become their functional twins where nobody can tell the difference; where somebody could, torch
itself makes the whole recording functional.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from suture_contract.errors import SutureError

_aten = torch.ops.aten
#: Factories that take only type and device from their first argument, and what they fill with.
_FILL: dict[Any, float] = {
    _aten.new_zeros.default: 0,
    _aten.zeros_like.default: 0,
    _aten.new_ones.default: 1,
    _aten.ones_like.default: 1,
}


def module_path(node: fx.Node) -> str:
    """Return the path of the module a node came from, empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty")]
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in paths[-1]) if paths else ""


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


def storage_of(node: object) -> int | None:
    """Return what identifies the memory of a node's tensor; views of one tensor share it."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return int(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None


def make_functional(program: ExportedProgram) -> bool:
    """Replace in-place operators by functional ones; False, and nothing changed, when somebody could tell.

    That is when the memory is read later through another alias, or the functional operator would give another type.
    Writes to constants stay: those are computed in order, in place, when the constants are.
    """
    nodes = list(program.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    constant = constant_nodes(program)
    in_place = [node for node in nodes if is_in_place(node) and node not in constant]
    written_by_constants = {storage_of(node) for node in constant if is_in_place(node)}
    for node in in_place:
        if (
            storage_of(node) in written_by_constants
            or _functional_twin(node.target) is None
            or _mixes_types(node)
            or _read_through_another_alias(node, nodes, position)
        ):
            return False
    write_elsewhere(nodes, in_place)
    return True


def write_elsewhere(nodes: Iterable[fx.Node], only: Collection[fx.Node] | None = None) -> None:
    """Give in-place operators (those of `only`) functional twins, whose results are read where the memory was."""
    nodes = list(nodes)
    position = {node: index for index, node in enumerate(nodes)}
    for node in nodes:
        if not is_in_place(node) or (only is not None and node not in only) or _functional_twin(node.target) is None:
            continue
        written, later = node.args[0], position[node]
        assert isinstance(written, fx.Node)

        def reads_later(user: fx.Node, later: int = later) -> bool:
            return position[user] > later

        written.replace_all_uses_with(node, delete_user_cb=reads_later)
        node.target = _functional_twin(node.target)


def _functional_twin(target: Any) -> Any:
    packet, overload = target._schema.name.removeprefix("aten::"), target._overloadname
    twin = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
    return twin if packet.endswith("_") and not packet.endswith("__") and twin is not None else None


def _mixes_types(node: fx.Node) -> bool:
    types = {source.meta["val"].dtype for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)}
    return len(types) > 1


def _read_through_another_alias(node: fx.Node, nodes: list[fx.Node], position: dict[fx.Node, int]) -> bool:
    """Say whether memory that `node` writes is read later through anything but its chain of in-place results."""
    chain = {node}
    while is_in_place(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        chain.add(node)
    first = max(chain, key=position.__getitem__)
    return any(
        position[source] < position[first] and source not in chain and storage_of(source) == storage_of(first)
        for later in nodes[position[first] + 1 :]
        for source in later.all_input_nodes
    )


def inline_blocks(program: ExportedProgram, device: str) -> None:
    """Put what stands in blocks of `torch.autocast` that change nothing on `device`, or of gradients, where they stand.

    Raises `SutureError` (`export.autocast`) for a block that is in force: which types its operators would take is
    torch's to choose at run time, and not in the recording.
    """
    _inline_blocks(program.graph_module, device)
    program.graph_module.recompile()


def _inline_blocks(module: fx.GraphModule, device: str) -> None:
    for node in list(module.graph.nodes):
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _gradients, body, *arguments = node.args
            in_force = False
        elif node.target is torch.ops.higher_order.wrap_with_autocast:
            device_type, _dtype, enabled, _cache, body, *arguments = node.args
            in_force = enabled and device_type == device
        else:
            continue
        if in_force:
            path = module_path(node)
            raise SutureError(
                "export.autocast",
                f"{f'module {path!r}' if path else 'the module'} computes in a torch.autocast block",
                where=path or None,
                hint="put enabled=False there; a portable model is run under autocast as a whole, by those who want it",
            )
        block = getattr(module, body.target)
        _inline_blocks(block, device)
        with module.graph.inserting_before(node):
            values = dict(zip(block.graph.find_nodes(op="placeholder"), arguments, strict=True))
            results = module.graph.graph_copy(block.graph, values)
        replace_results(node, results)
        module.graph.erase_node(node)


def replace_results(node: fx.Node, results: Any) -> None:
    """Let the readers of a block's results read those of the operators that give them."""
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        user.graph.erase_node(user)


def detach_factories(program: ExportedProgram) -> None:
    """Make `x.new_zeros(3, 4)` and the like constants where their size is one: they depend on the type of `x` alone."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.target not in _FILL or not all(isinstance(size, int) for size in value.shape):
            continue
        node.args = (list(value.shape), _FILL[node.target])
        node.kwargs = {"dtype": value.dtype, "device": value.device}
        node.target = _aten.full.default
