"""From a recording (`torch.export`) to a graph of allowed operators and its tensors."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from suture_contract.errors import SutureError
from suture_contract.model.graph import (
    INPUT,
    TENSOR,
    DType,
    Graph,
    Input,
    Node,
    Output,
    Ref,
    SameDevice,
    Value,
    prune,
)
from suture_contract.model.graph_json import is_tensor_name
from suture_contract.model.operators import ATEN, DTYPES, GETITEM
from suture_stitching.portable.decompose import WRITTEN, decompose
from suture_stitching.portable.diagnosis import RANDOM, WHOLE_SIZES, instead_of
from suture_stitching.portable.outputs import plain_output
from suture_stitching.portable.rewrite import constant_nodes, is_in_place, module_path
from suture_stitching.portable.schemas import schema_of
from suture_stitching.portable.twins import STANDS_FOR

_aten = torch.ops.aten
_SIZE_ARITHMETIC: dict[Any, str] = {
    operator.add: "sym.add",
    operator.sub: "sym.sub",
    operator.mul: "sym.mul",
    operator.floordiv: "sym.floordiv",
    operator.mod: "sym.mod",
    operator.neg: "sym.neg",
}
_COPIES = (_aten.copy.default, _aten.fill.Tensor)
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default)
#: Other names for operators on the list, which take the same arguments.
_SAME_AS: dict[Any, str] = {
    _aten._unsafe_view.default: "aten.reshape.default",
    _aten.swapaxes.default: "aten.transpose.int",
    _aten.swapdims.default: "aten.transpose.int",
    _aten.__and__.Tensor: "aten.bitwise_and.Tensor",
    _aten.__or__.Tensor: "aten.bitwise_or.Tensor",
    _aten.__xor__.Tensor: "aten.bitwise_xor.Tensor",
    _aten.clamp_min.default: "aten.clamp.default",
    _aten.fill.Scalar: "aten.full_like.default",
    _aten.mul.Scalar: "aten.mul.Tensor",
    _aten.add.Scalar: "aten.add.Tensor",
    _aten.sub.Scalar: "aten.sub.Tensor",
    _aten.div.Scalar: "aten.div.Tensor",
    **STANDS_FOR,
}
_CASTS = (_aten.to.device, _aten.to.dtype_layout, _aten.to.other, _aten.type_as.default, _aten._to_copy.default)
#: What has a form in this module.
_TREATED = frozenset({*_COPIES, *_DROPOUTS, *_CASTS, _aten.repeat_interleave.self_int, _aten.sym_size.int})
_FACTORIES = {
    *("aten.zeros.default", "aten.ones.default", "aten.full.default"),
    *("aten.arange.default", "aten.arange.start", "aten.arange.start_step"),
}


def convert(program: ExportedProgram) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph and the tensors it needs, by name.

    Values that depend on neither an input nor the model's state are computed now and stored once; tied weights are
    stored once. Raises `SutureError` (`export.operator`, ...) naming the module and operator that cannot be exported.
    """
    _decompose(program)
    return _Converter(program).convert()


def _decompose(program: ExportedProgram) -> None:
    """Write what depends on an input and is on no list by operators that are."""
    constant = constant_nodes(program)
    live = set(_live_nodes(program.graph, constant))
    # What depends on state alone is computed at export, and what comes of a decomposition is not: it is needed.
    settled = _of_state(program) | constant

    def wanted(node: fx.Node) -> bool:
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or node in settled
            or (node in before and node not in live)
        ):
            return False
        return _listed_name(node.target) not in ATEN and node.target not in _TREATED

    before = set(program.graph.nodes)
    decompose(program, wanted)


class _Converter:
    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._place: dict[fx.Node, Value] = {}
        self._tensors: dict[str, Tensor] = {}
        self._stored: dict[Any, Ref] = {}
        #: State (parameters, buffers, constants) and what depends on nothing else, by node, once it is known.
        self._known: dict[fx.Node, Any] = {}
        self._state_names: dict[fx.Node, str] = {}
        self._from_state: set[fx.Node] = set()
        self._constant = constant_nodes(program)
        #: Tied weights go by the name that comes first.
        self._first_names: dict[Any, str] = {}
        for name, tensor in program.state_dict.items():
            self._first_names.setdefault(_memory(tensor), name)
        self._sizes: dict[Any, Ref] = {}

    def convert(self) -> tuple[Graph, dict[str, Tensor]]:
        inputs = self._placeholders()
        for node in _live_nodes(self._program.graph, self._constant):
            if node.op == "call_function":
                self._operation(node)
        specs: list[Input] = []
        output = self._output(specs)
        finished = prune(Graph(inputs, tuple(self._nodes), output, tuple(specs)))
        used = {node.args[0] for node in finished.nodes if node.op == TENSOR}
        return finished, {name: tensor for name, tensor in self._tensors.items() if name in used}

    def _placeholders(self) -> tuple[Input, ...]:
        inputs: list[Input] = []
        by_name = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        for spec in self._program.graph_signature.input_specs:
            node = by_name[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                self._input(node, len(inputs))
                inputs.append(_spec(node.meta["val"]))
                continue
            self._known[node] = _state(self._program, str(spec.target))
            self._state_names[node] = str(spec.target)
            self._from_state.add(node)
        return tuple(inputs)

    def _input(self, node: fx.Node, index: int) -> None:
        reference = self._place[node] = self._add(Node(INPUT, (index,)))
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt) and size.node.expr not in self._sizes:
                self._sizes[size.node.expr] = self._add(Node("aten.sym_size.int", (reference, axis)))

    def _operation(self, node: fx.Node) -> None:
        target, result = node.target, node.meta.get("val")
        if isinstance(result, bool | int | float):
            self._place[node] = result
        elif isinstance(result, torch.SymInt) or _is_fraction_of_sizes(node):
            self._place[node] = self._size(node, result)
        elif _changes_nothing(node):
            self._pass_on(node)
        elif self._depends_on_state_alone(node):
            self._from_state.add(node)
            if node in self._constant:
                self._evaluate(node)
            else:
                self._of_parameters(node)
        elif target in _COPIES:
            self._place[node] = self._copy(node)
        elif target is _aten.repeat_interleave.self_int and _argument(node, "dim") is not None:
            self._place[node] = self._repeat_each(node)
        elif target is operator.getitem:
            self._place[node] = self._add(Node(GETITEM, self._values(node.args), module=module_path(node)))
        else:
            self._place[node] = self._add(_allowed(node, self._values))

    def _copy(self, node: fx.Node) -> Value:
        """Return what is written over a tensor, in that tensor's type and size; torch's copy has no derivative."""
        over, written = node.args[:2]
        assert isinstance(over, fx.Node)
        assert isinstance(written, fx.Node)
        value, wanted, path = self._value(written), node.meta["val"], module_path(node)
        if written.meta["val"].dtype != wanted.dtype:
            value = self._add(Node("aten.to.dtype", (value, DType(_dtype_name(wanted.dtype))), module=path))
        if written.meta["val"].shape != wanted.shape:
            value = self._add(Node("aten.expand_as.default", (value, self._value(over)), module=path))
        return value

    def _repeat_each(self, node: fx.Node) -> Ref:
        """Repeat each entry along an axis by a new axis that is expanded and folded into it."""
        source, path = node.args[0], module_path(node)
        assert isinstance(source, fx.Node)
        n_axes = source.meta["val"].dim()
        axis = int(_argument(node, "dim")) % n_axes
        sizes = [-1] * (n_axes + 1)
        sizes[axis + 1] = _argument(node, "repeats")
        value = self._add(Node("aten.unsqueeze.default", (self._value(source), axis + 1), module=path))
        value = self._add(Node("aten.expand.default", (value, self._values(sizes)), module=path))
        return self._add(Node("aten.flatten.using_ints", (value, axis, axis + 1), module=path))

    def _depends_on_state_alone(self, node: fx.Node) -> bool:
        return all(source in self._from_state for source in node.all_input_nodes)

    def _of_parameters(self, node: fx.Node) -> None:
        """Keep what is computed from weights in the graph, or compute it now when no allowed operator does it."""
        name = GETITEM if node.target is operator.getitem else _listed_name(node.target)
        source = node.all_input_nodes[0]
        if name not in ATEN and not (name == GETITEM and source in self._place):
            self._evaluate(node)
        elif name == GETITEM:
            self._place[node] = self._add(Node(GETITEM, self._values(node.args), module=module_path(node)))
        else:
            self._place[node] = self._add(_allowed(node, self._values))

    def _evaluate(self, node: fx.Node) -> Any:
        """Return the value of a node that depends on state alone."""
        if node not in self._known:
            _refuse_random(node)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._evaluate)
            with torch.no_grad():
                self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self._known[node]

    def _pass_on(self, node: fx.Node) -> None:
        """Give `node` the value of its first argument."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source in self._from_state:
            self._known[node] = self._evaluate(source)
            self._from_state.add(node)
        else:
            self._place[node] = self._place[source]

    def _size(self, node: fx.Node, size: Any) -> Value:
        """Return a size as a number, as a size of an input where it is one (cuts need not cross it then), or as is."""
        expression = size.node.expr
        if expression.is_number:
            return int(expression)
        if expression not in self._sizes:
            arithmetic = _SIZE_ARITHMETIC.get(node.target)
            if arithmetic is None and node.target is not _aten.sym_size.int:
                name = getattr(node.target, "__name__", str(node.target))
                _refuse("export.operator", node, f"uses {name} on sizes that are free", WHOLE_SIZES)
            self._sizes[expression] = self._add(Node(arithmetic or "aten.sym_size.int", self._values(node.args)))
        return self._sizes[expression]

    def _values(self, args: Any) -> tuple[Value, ...]:
        return tuple(self._value(arg) for arg in args)

    def _value(self, arg: Any) -> Value:
        if isinstance(arg, fx.Node):
            # A constant may be written to between two readers, so its place is looked up by content each time.
            return self._place[arg] if arg in self._place else self._tensor(arg)
        if isinstance(arg, list | tuple):
            return self._values(arg)
        if isinstance(arg, torch.dtype):
            return DType(_dtype_name(arg))
        if isinstance(arg, torch.memory_format):
            return str(arg).removeprefix("torch.")
        if arg is None or isinstance(arg, bool | int | float | str):
            return arg
        raise SutureError("export.argument", f"an operator has a {type(arg).__name__} as argument")

    def _tensor(self, node: fx.Node) -> Ref:
        """Store a tensor of the state, or computed from it, and return its node; equal memory is stored once."""
        tensor = self._evaluate(node)
        if not isinstance(tensor, Tensor):
            _refuse("export.operator", node, "has several constant results", "register them as buffers")
        _dtype_name(tensor.dtype)
        name = self._state_names.get(node)
        identity: Any = _memory(tensor)
        if name is None or tensor.numel() == 0:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            identity = (hashlib.sha256(content.numpy().tobytes()).digest(), tensor.shape, tensor.dtype)
        if identity not in self._stored:
            name = self._new_name(self._first_names.get(identity) or name or f"constant.{len(self._tensors)}")
            self._tensors[name] = tensor.detach().clone() if node in self._constant else tensor.detach()
            self._stored[identity] = self._add(Node(TENSOR, (name,)))
        return self._stored[identity]

    def _new_name(self, name: str) -> str:
        name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name)
        if not is_tensor_name(name) or name in self._tensors:
            name = f"tensor.{len(self._tensors)}"
        return name

    def _output(self, specs: list[Input]) -> Output:
        (outputs,) = self._program.graph.output_node().args

        def leaf(item: Any) -> Ref:
            value = self._value(item) if isinstance(item, fx.Node) else None
            if not isinstance(value, Ref) or not isinstance(item.meta.get("val"), Tensor):
                raise SutureError(
                    "export.output",
                    f"the module returns {'a size' if value is not None else item!r} among its outputs",
                    hint="return tensors only",
                )
            specs.append(_spec(item.meta["val"]))
            return value

        nested = pytree.tree_unflatten(list(outputs), self._program.call_spec.out_spec)
        output: Output = plain_output(nested, leaf)
        return output

    def _add(self, node: Node) -> Ref:
        self._nodes.append(node)
        return Ref(len(self._nodes) - 1)


def _is_fraction_of_sizes(node: fx.Node) -> bool:
    """Say whether it is a number that Python computed from sizes; one out of a tensor is of an operator."""
    return isinstance(node.meta.get("val"), torch.SymFloat) and not isinstance(node.target, torch._ops.OpOverload)


def _changes_nothing(node: fx.Node) -> bool:
    """Say whether the value is the first argument's: dropout in evaluation mode, and a slice from start to end."""
    if node.target in _DROPOUTS:
        return not _argument(node, "train")
    if node.target is not _aten.slice.Tensor:
        return False
    to_the_end = _argument(node, "end") in (None, 2**63 - 1)
    return _argument(node, "start") in (None, 0) and to_the_end and _argument(node, "step") == 1


def _of_state(program: ExportedProgram) -> set[fx.Node]:
    """Return what depends on parameters and buffers alone."""
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    of_state: set[fx.Node] = set()
    for node in program.graph.nodes:
        own = node.op == "placeholder" and kinds[node.name] != InputKind.USER_INPUT
        if own or (node.op == "call_function" and node.all_input_nodes and of_state.issuperset(node.all_input_nodes)):
            of_state.add(node)
    return of_state


def _live_nodes(graph: fx.Graph, constant: set[fx.Node]) -> list[fx.Node]:
    """Return, in order, what the output needs (nothing reads torch.export's assertions) and writes to constants."""
    live: set[fx.Node] = {node for node in constant if is_in_place(node)}
    waiting = [graph.output_node(), *live]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in live:
                live.add(source)
                waiting.append(source)
    return [node for node in graph.nodes if node in live]


def _allowed(node: fx.Node, values: Callable[[Any], tuple[Value, ...]]) -> Node:
    """Return the node for an operator on the list; raises `SutureError` naming one that is not."""
    if node.target in _CASTS:
        return Node(
            "aten.to.dtype",
            (*values(node.args[:1]), DType(_dtype_name(node.meta["val"].dtype))),
            module=module_path(node),
        )
    name = _listed_name(node.target)
    if name not in ATEN:
        _refuse_random(node)
        written = _listed_name(node.meta.get(WRITTEN, node.target))
        _refuse("export.operator", node, f"uses {written}", instead_of(written))
    declared = {argument.name: str(argument.real_type) for argument in schema_of(name).arguments}
    kwargs: dict[str, Value] = {}
    for key, arg in node.kwargs.items():
        if arg is not None and key != "pin_memory" and "Layout" not in declared[key] and "Device" not in declared[key]:
            (kwargs[key],) = values((arg,))
    if name in _FACTORIES:
        kwargs |= {"dtype": DType(_dtype_name(node.meta["val"].dtype)), "device": SameDevice()}
    return Node(name, values(node.args), kwargs, module_path(node))


def _listed_name(target: Any) -> str:
    """Return the name under which the list has an operator, or would have it."""
    if target in _SAME_AS:
        return _SAME_AS[target]
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    return str(getattr(target, "__name__", target))


def _argument(node: fx.Node, name: str) -> Any:
    """Return the argument that a call of an operator gives for `name`."""
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[position] if position < len(node.args) else node.kwargs.get(name, argument.default_value)
    raise KeyError(name)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common when they are one."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _state(program: ExportedProgram, name: str) -> Any:
    return program.state_dict[name] if name in program.state_dict else program.constants[name]


def _spec(value: Tensor) -> Input:
    return Input(tuple(int(size) if _is_fixed(size) else None for size in value.shape), _dtype_name(value.dtype))


def _is_fixed(size: Any) -> bool:
    return isinstance(size, int) or size.node.expr.is_number


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise SutureError(
            "export.dtype", f"a tensor holds {name}", hint=f"a portable model may hold {', '.join(sorted(DTYPES))}"
        )
    return name


def _refuse_random(node: fx.Node) -> None:
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        _refuse("export.random", node, "draws random numbers", RANDOM)


def _refuse(code: str, node: fx.Node, problem: str, hint: str) -> NoReturn:
    path = module_path(node)
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    source = f" in `{lines[-1][:120]}`" if lines else ""
    raise SutureError(
        code,
        f"module {path!r} {problem}{source}" if path else f"the module {problem}{source}",
        where=path or None,
        hint=hint,
    )
