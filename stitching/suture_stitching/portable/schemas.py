"""Every argument of every node, checked against its operator's own schema; and the table of what a node runs.

An allow-list of names alone is not enough: allowed operators given odd arguments can end the process. So each argument
must have the type that the operator declares, flags that would make a model random or let it change its own weights
are pinned, and sizes of recurrent states are checked at each call.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.graph import INPUT, TENSOR, DType, Graph, Node, Ref, SameDevice, Value
from suture_contract.model.graph_json import MAX_LIST
from suture_contract.model.operators import ATEN, DTYPES, GETITEM, OPERATORS

#: What the value of a node is.
Kind = str
TENSOR_KIND, SIZE_KIND, TUPLE_KIND = "tensor", "size", "tuple"

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}

_MAX_NUMBER = 2**31 - 1
_TO_THE_END = 2**63 - 1
_POSITIVE = {"stride", "dilation", "kernel_size", "groups", "num_groups", "split_size", "chunks", "step", "num_layers"}
_NOT_NEGATIVE = {"padding", "output_padding", "output_size"}
_NUMBER_AS_TENSOR = {
    *("aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor", "aten.floor_divide.default"),
}
_PINNED: dict[tuple[str, str], Value] = {
    ("aten.lstm.input", "train"): False,
    **{(f"aten.{name}.input", "train"): False for name in ("gru", "rnn_tanh", "rnn_relu")},
    ("aten.gather.default", "sparse_grad"): False,
    ("aten.scaled_dot_product_attention.default", "dropout_p"): 0,
}
#: Operators that may compute the statistics of their input, and then must not keep them.
_STATISTICS = {"aten.batch_norm.default": "training", "aten.instance_norm.default": "use_input_stats"}
_FACTORIES = {
    *("aten.zeros.default", "aten.ones.default", "aten.full.default"),
    *("aten.arange.default", "aten.arange.start", "aten.arange.start_step"),
}


def _overload(name: str) -> Any:
    _, packet, overload = name.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    if function._schema.is_mutable:
        raise AssertionError(f"{name} changes its arguments and cannot be on the list")
    return function


_OVERLOADS: dict[str, Any] = {name: _overload(name) for name in sorted(ATEN)}


def _getitem(values: Sequence[Tensor], index: int) -> Tensor:
    return values[index]


def _size(function: Callable[..., int]) -> Callable[..., int]:
    """Return arithmetic whose results stay sizes: squaring a number sixty times would fill the memory."""

    def bounded(*sizes: int) -> int:
        size = function(*sizes)
        if not -_TO_THE_END <= size <= _TO_THE_END:
            raise ValueError("a size is out of bounds")
        return size

    return bounded


def _several(name: str, count: Callable[..., int]) -> Callable[..., Any]:
    """Return the operator, which makes several tensors, with their number bounded."""
    function = _OVERLOADS[name]

    def bounded(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if count(tensor, *args, **kwargs) > MAX_LIST:
            raise ValueError(f"more than {MAX_LIST} results")
        return function(tensor, *args, **kwargs)

    return bounded


def _lstm(
    input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], has_biases: bool, num_layers: int, *rest: Any
) -> Any:
    _check_recurrent(input, hx, params, 4, 2, has_biases, num_layers, *rest)
    if input.is_meta:  # its meta kernel walks through every step
        bidirectional, batch_first = rest[2:]
        return (recurrent_output(input, hx[0], bidirectional, batch_first), hx[0].clone(), hx[1].clone())
    return _OVERLOADS["aten.lstm.input"]._op(input, hx, params, has_biases, num_layers, *rest)


def _with_one_state(name: str, gates: int) -> Callable[..., Any]:
    """Return a recurrent layer whose cells have one state and so many gates."""
    function = _OVERLOADS[name]._op

    def run(input: Tensor, hx: Tensor, params: Sequence[Tensor], has_biases: bool, num_layers: int, *rest: Any) -> Any:
        _check_recurrent(input, [hx], params, gates, 1, has_biases, num_layers, *rest)
        if input.is_meta:
            bidirectional, batch_first = rest[2:]
            return (recurrent_output(input, hx, bidirectional, batch_first), hx.clone())
        return function(input, hx, params, has_biases, num_layers, *rest)

    return run


def recurrent_output(input: Tensor, state: Tensor, bidirectional: bool, batch_first: bool) -> Tensor:
    """Return an empty tensor such as a recurrent layer gives for `input` and its first state."""
    output = input.new_empty(input.shape[0], input.shape[1], state.shape[2] * (2 if bidirectional else 1))
    # The kernels work step by step and hand a transposed view to who wants the batch first.
    return output.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else output


def _check_recurrent(
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    gates: int,
    n_states: int,
    *how: Any,
) -> None:
    """Raise `ValueError` unless every shape and element type is what `torch.nn.LSTM` or `GRU` would pass."""
    tensors = (*states, *params)
    if len(states) != n_states or any(tensor.dtype != input.dtype for tensor in tensors):
        raise ValueError("input, states and weights of a recurrent layer must have one type, with one tensor per state")
    if not input.is_floating_point():
        raise ValueError("a recurrent layer reads floating-point numbers")
    shapes = tuple([tensor.shape for tensor in tensors])
    # While a portable model is itself recorded, sizes are symbols, which no cache takes.
    check = _check_recurrent_shapes if torch.compiler.is_compiling() else _checked_before
    check(input.shape, shapes, gates, n_states, *how)


def _check_recurrent_shapes(
    input: torch.Size,
    actual: tuple[torch.Size, ...],
    gates: int,
    n_states: int,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    directions = 2 if bidirectional else 1
    if len(input) != 3 or not all(actual[:n_states]) or num_layers > 64:
        raise ValueError("a recurrent layer reads (N, L, C)")
    # The first state is the output of a step, narrower than the cell's where an LSTM projects it (`proj_size`).
    output, hidden, batch = actual[0][-1], actual[n_states - 1][-1], input[0 if batch_first else 1]
    expected: list[tuple[int, ...]] = [(num_layers * directions, batch, size) for size in (output, hidden)[:n_states]]
    for layer in range(num_layers):
        size = input[2] if layer == 0 else output * directions
        for _ in range(directions):
            expected += [(gates * hidden, size), (gates * hidden, output)]
            expected += [(gates * hidden,)] * (2 if has_biases else 0)
            expected += [(output, hidden)] if output < hidden else []
    if list(actual) != expected or output > hidden:
        raise ValueError(f"recurrent states and weights have the shapes {[*map(tuple, actual)]}, not {expected}")
    if 0 in input or output == 0:
        raise ValueError("a recurrent layer needs at least one sample, step and feature")


_checked_before = functools.lru_cache(maxsize=1024)(_check_recurrent_shapes)


#: What runs for each operator's name.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    # What calling the overload calls, without the Python function in between.
    **{name: overload._op for name, overload in _OVERLOADS.items()},
    "aten.lstm.input": _lstm,
    "aten.gru.input": _with_one_state("aten.gru.input", 3),
    "aten.rnn_tanh.input": _with_one_state("aten.rnn_tanh.input", 1),
    "aten.rnn_relu.input": _with_one_state("aten.rnn_relu.input", 1),
    "aten.unbind.int": _several("aten.unbind.int", lambda x, dim=0: x.shape[dim]),
    "aten.split.Tensor": _several("aten.split.Tensor", lambda x, split_size, dim=0: x.shape[dim] // split_size),
    "aten.chunk.default": _several("aten.chunk.default", lambda x, chunks, dim=0: min(chunks, x.shape[dim])),
    GETITEM: _getitem,
    "sym.add": _size(operator.add),
    "sym.sub": _size(operator.sub),
    "sym.mul": _size(operator.mul),
    "sym.floordiv": _size(operator.floordiv),
    "sym.mod": _size(operator.mod),
    "sym.neg": _size(operator.neg),
}


def schema_of(op: str) -> Any:
    """Return the `FunctionSchema` of an `aten.*` operator on the list."""
    return _OVERLOADS[op]._schema


def declared_type(op: str, key: int | str) -> str:
    """Return the type an `aten.*` operator declares for the argument at a position or of a name; None left aside."""
    arguments = schema_of(op).arguments
    argument = arguments[key] if isinstance(key, int) else next(a for a in arguments if a.name == key)
    return str(argument.real_type).removeprefix("Optional[").removesuffix("]")


def bind(node: Node) -> dict[str, Value]:
    """Return a node's arguments by the names in its operator's schema; left-out ones are absent.

    Raises `ValueError` for too many, unknown, repeated or missing arguments.
    """
    arguments = schema_of(node.op).arguments
    positional = [argument.name for argument in arguments if not argument.kwarg_only]
    if len(node.args) > len(positional):
        raise ValueError(f"{len(node.args)} arguments, at most {len(positional)} are known")
    bound = dict(zip(positional, node.args, strict=False))
    known = {argument.name for argument in arguments}
    for name, value in node.kwargs.items():
        if name not in known:
            raise ValueError(f"unknown argument {name}")
        if name in bound:
            raise ValueError(f"argument {name} is given twice")
        bound[name] = value
    for argument in arguments:
        if argument.name not in bound and not argument.has_default_value():
            raise ValueError(f"argument {argument.name} is missing")
    return bound


def check_arguments(graph: Graph, *, where: str = "graph") -> list[Kind]:
    """Check every node of `graph` and return the kind of each node's value.

    Raises `SutureError` (`model.arguments`) naming the node, its operator and the argument.
    """
    kinds: list[Kind] = []
    for index, node in enumerate(graph.nodes):
        try:
            kinds.append(_check_node(node, kinds))
        except ValueError as error:
            _refuse(str(error), f"{where} n{index} {node.op}")
    for ref in _output_refs(graph.output):
        if kinds[ref.node] != TENSOR_KIND:
            _refuse("an output must be a tensor", f"{where} n{ref.node}")
    return kinds


def _output_refs(output: Any) -> list[Ref]:
    if isinstance(output, Ref):
        return [output]
    return [ref for item in (output.values() if isinstance(output, dict) else output) for ref in _output_refs(item)]


def _refuse(problem: str, where: str) -> NoReturn:
    raise SutureError(
        "model.arguments",
        problem,
        where=where,
        hint="the file is damaged or was not written by Suture; export it again",
    )


def _check_node(node: Node, kinds: list[Kind]) -> Kind:
    if node.op in (INPUT, TENSOR):
        return TENSOR_KIND
    if node.op == GETITEM:
        source = node.args[0]
        if not isinstance(source, Ref) or kinds[source.node] != TUPLE_KIND:
            raise ValueError("an item can only be taken from several results")
        return TENSOR_KIND
    if node.op.startswith("sym."):
        if any(isinstance(arg, Ref) and kinds[arg.node] != SIZE_KIND for arg in node.args):
            raise ValueError("arithmetic on sizes takes sizes and numbers")
        return SIZE_KIND
    if node.op not in OPERATORS:
        raise ValueError(f"{node.op} is not on the list of operators a portable model may use")
    bound = bind(node)
    for argument in schema_of(node.op).arguments:
        if argument.name in bound:
            _check_value(bound[argument.name], argument, node.op, kinds)
    _check_rules(node.op, bound)
    returns = schema_of(node.op).returns
    if len(returns) != 1 or str(returns[0].real_type) == "List[Tensor]":
        return TUPLE_KIND
    return TENSOR_KIND if str(returns[0].real_type) == "Tensor" else SIZE_KIND


def _check_rules(op: str, bound: Mapping[str, Value]) -> None:
    for name, value in bound.items():
        if (op, name) in _PINNED and value != _PINNED[op, name]:
            raise ValueError(f"{name} must be {_PINNED[op, name]}: a portable model is not random")
    flag = _STATISTICS.get(op)
    if flag and bound[flag] and (bound["running_mean"] is not None or bound["running_var"] is not None):
        raise ValueError(f"{flag} with running statistics would change the model's own tensors")
    if op in _FACTORIES and not isinstance(bound.get("device"), SameDevice):
        raise ValueError("device must be the input's")


def _check_value(value: Value, argument: Any, op: str, kinds: list[Kind]) -> None:
    declared, name = str(argument.real_type), argument.name
    if declared.startswith("Optional["):
        if value is None:
            return
        declared = declared[len("Optional[") : -1]
    if declared == "Tensor" and name == "other" and op in _NUMBER_AS_TENSOR and _is(value, "number", kinds):
        return
    if declared.startswith("List["):
        item = declared[len("List[") : -1]
        optional = item.startswith("Optional[")
        item = item[len("Optional[") : -1] if optional else item
        if isinstance(value, tuple):
            fits = all((optional and entry is None) or _is(entry, item, kinds) for entry in value)
        else:
            # A list of a fixed length may be given as one number for all.
            fits = argument.N is not None and _is(value, item, kinds)
        if item == "Tensor" and not (isinstance(value, tuple) and value):
            fits = False
    else:
        fits = _is(value, declared, kinds)
    if not fits:
        raise ValueError(f"argument {name} must be {argument.real_type}")
    _check_size(value, name)


def _check_size(value: Value, name: str) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int):
            continue
        to_the_end = name == "end" and number == _TO_THE_END
        if abs(number) > _MAX_NUMBER and not to_the_end:
            raise ValueError(f"{name} is out of bounds")
        if name in _POSITIVE and number < 1:
            raise ValueError(f"{name} must be at least 1")
        if name in _NOT_NEGATIVE and number < 0:
            raise ValueError(f"{name} must not be negative")


def checked(node: Node) -> Callable[..., Any]:
    """Return what runs for `node`; bounded sizes that its graph computes are checked at each call, as constants were.

    The returned function raises `ValueError` for a stride of zero, say.
    """
    function = FUNCTIONS[node.op]
    if not node.op.startswith("aten."):
        return function
    bounded = _POSITIVE | _NOT_NEGATIVE
    names = [argument.name for argument in schema_of(node.op).arguments]
    arguments = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    if not any(name in bounded and any(_references(value)) for name, value in arguments):
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in bounded:
                _check_size(tuple(value) if isinstance(value, list) else value, name)
        return function(*args, **kwargs)

    return run


def _references(value: Value) -> list[bool]:
    return [isinstance(item, Ref) for item in (value if isinstance(value, tuple) else (value,))]


def _is(value: Value, declared: str, kinds: list[Kind]) -> bool:
    if isinstance(value, Ref):
        wanted = TENSOR_KIND if declared == "Tensor" else SIZE_KIND
        return kinds[value.node] == wanted and declared in ("Tensor", "int", "SymInt", "number", "Scalar", "float")
    if declared == "bool":
        return isinstance(value, bool)
    if declared in ("int", "SymInt"):
        return isinstance(value, int) and not isinstance(value, bool)
    if declared == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if declared in ("number", "Scalar"):
        return isinstance(value, int | float)
    if declared == "str":
        return isinstance(value, str)
    if declared == "ScalarType":
        return isinstance(value, DType)
    if declared == "Device":
        return isinstance(value, SameDevice)
    if declared == "MemoryFormat":
        return isinstance(value, str) and value in MEMORY_FORMATS
    return False
