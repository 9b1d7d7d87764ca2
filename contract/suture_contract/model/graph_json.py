"""The JSON form of a graph and every check that needs nothing but the text (torch-free).

    {"inputs":  [{"shape": [null, 3, 32, 32], "dtype": "float32"}],
     "outputs": [{"shape": [null, 10], "dtype": "float32"}],
     "ops":     ["input", "tensor", "aten.linear.default"],
     "modules": ["", "head"],
     "nodes":   [[op, args, kwargs, module], ...],
     "output":  {"n": 3}}

A node names its operator and module by index into `ops` and `modules`. Arguments are JSON values, where an object is a
tagged value: `{"n": 5}` the value of node 5, `{"d": "float32"}` an element type, `{"f": "inf"}` a float that JSON does
not have, `{"device": "input"}` wherever the input is. In `output`, an array is a tuple and `{"dict": {...}}` a
dictionary of outputs.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

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
)
from suture_contract.model.operators import DTYPES, GETITEM, OPERATORS
from suture_contract.structure import holds_more

MAX_JSON = 8 * 1024 * 1024
MAX_BRACKETS = 500_000
#: With the names of fields, and each operator's arguments.
MAX_VALUES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 16
MAX_INPUTS = 16
MAX_RANK = 8
MAX_SIZE = 2**31 - 1
MAX_LIST = 8_192

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*")
_MODULE_PATH = re.compile(r"[A-Za-z0-9_.-]{0,512}")
_ARGUMENT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_STRING = re.compile(r"[ -~]{0,256}")
_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def is_tensor_name(name: object) -> bool:
    """Say whether `name` may name a tensor in the file: words of letters, digits and '_', joined by '.' or '-'."""
    return isinstance(name, str) and len(name) <= 512 and _TENSOR_NAME.fullmatch(name) is not None


def is_module_path(path: object) -> bool:
    """Say whether `path` may be a node's module path."""
    return isinstance(path, str) and _MODULE_PATH.fullmatch(path) is not None


def strict_json(text: bytes, where: str, most: int) -> Any:
    """Parse JSON of at most `most` values, refusing duplicate keys, NaN, and nesting that would exhaust the stack."""
    if holds_more(text, most):
        _refuse(f"more than {most} values", where)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            _refuse("a key occurs twice in one object", where)
        return content

    def no_constant(name: str) -> NoReturn:
        _refuse(f"{name} is not JSON", where)

    try:
        # Told what it is: bytes alone may be read as UTF-16.
        return json.loads(
            text.decode(errors="surrogatepass"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except RecursionError:
        _refuse("nested too deeply", where)
    except ValueError as error:
        _refuse(f"not JSON: {str(error)[:200]}", where)


def graph_to_json(graph: Graph) -> str:
    """Return the text of `graph`; `graph_from_json` gives an equal graph back."""
    ops = list(dict.fromkeys(node.op for node in graph.nodes))
    modules = list(dict.fromkeys(node.module for node in graph.nodes))
    op_index = {op: index for index, op in enumerate(ops)}
    module_index = {module: index for index, module in enumerate(modules)}
    content = {
        "inputs": [_spec_to_json(spec) for spec in graph.inputs],
        "outputs": [_spec_to_json(spec) for spec in graph.outputs],
        "ops": ops,
        "modules": modules,
        "nodes": [
            [
                op_index[node.op],
                [_value_to_json(value) for value in node.args],
                {name: _value_to_json(value) for name, value in node.kwargs.items()},
                module_index[node.module],
            ]
            for node in graph.nodes
        ],
        "output": _output_to_json(graph.output),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def graph_from_json(text: str, *, where: str = "graph") -> Graph:
    """Return the graph in `text`, or raise `SutureError` (`model.graph`, `model.operator`) naming the node."""
    if len(text) > MAX_JSON:
        _refuse(f"the graph is larger than {MAX_JSON} bytes", where)
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        _refuse(f"the graph has more than {MAX_BRACKETS} lists and objects", where)
    content = strict_json(text.encode(errors="surrogatepass"), where, MAX_VALUES)
    _exact_keys(content, {"inputs", "outputs", "ops", "modules", "nodes", "output"}, where)
    inputs = _specs(content["inputs"], "inputs", where)
    if not inputs:
        _refuse("the graph has no input", where)
    ops = _strings(content["ops"], "ops", where)
    for op in ops:
        if op not in OPERATORS and op not in (INPUT, TENSOR):
            raise SutureError(
                "model.operator",
                f"operator {op[:80]!r} is not on the list of operators a portable model may use",
                where=where,
                hint="export the model with suture.publish or portable.export, which name what cannot be exported",
            )
    modules = _strings(content["modules"], "modules", where)
    for module in modules:
        if not is_module_path(module):
            _refuse(f"module path {module[:80]!r} has characters other than letters, digits, '_', '.' and '-'", where)
    listed = content["nodes"]
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_NODES:
        _refuse(f"nodes must be a list of 1 to {MAX_NODES} nodes", where)
    nodes = tuple(_node(item, index, ops, modules, len(inputs), where) for index, item in enumerate(listed))
    output = _output(content["output"], len(nodes), 0, where)
    outputs = _specs(content["outputs"], "outputs", where)
    if len(outputs) != len(list(leaves(output))):
        _refuse("outputs must describe each leaf of output, in order", where)
    return Graph(inputs, nodes, output, outputs)


def leaves(output: Output) -> list[Ref]:
    """Return the references of a nested output, in order of appearance."""
    if isinstance(output, Ref):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [leaf for item in items for leaf in leaves(item)]


def _refuse(problem: str, where: str) -> NoReturn:
    raise SutureError(
        "model.graph", problem, where=where, hint="the file is damaged or was not written by Suture; export it again"
    )


def _exact_keys(content: object, keys: set[str], where: str) -> None:
    if not isinstance(content, dict):
        _refuse(f"expected an object with the fields {', '.join(sorted(keys))}", where)
    if unknown := content.keys() - keys:
        _refuse(f"unknown field {min(unknown)[:80]!r}", where)
    if missing := keys - content.keys():
        _refuse(f"field {min(missing)!r} is missing", where)


def _strings(content: object, field: str, where: str) -> list[str]:
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        _refuse(f"{field} must be a list of strings", where)
    if len(content) > MAX_NODES or len(set(content)) != len(content):
        _refuse(f"{field} has an entry twice, or too many", where)
    return content


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _index(value: object, length: int, what: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
        _refuse(f"{what} {str(value)[:40]} is not an index below {length}", where)
    return value


def _spec_to_json(spec: Input) -> dict[str, Any]:
    return {"shape": list(spec.shape), "dtype": spec.dtype}


def _specs(content: object, field: str, where: str) -> tuple[Input, ...]:
    if not isinstance(content, list) or len(content) > MAX_INPUTS:
        _refuse(f"{field} must be a list of at most {MAX_INPUTS} tensors", where)
    return tuple(_spec(item, f"{where} {field}[{index}]") for index, item in enumerate(content))


def _spec(content: Any, where: str) -> Input:
    _exact_keys(content, {"shape", "dtype"}, where)
    shape, dtype = content["shape"], content["dtype"]
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        _refuse(f"shape must be a list of at most {MAX_RANK} sizes", where)
    if not all(size is None or (_is_int(size) and 0 <= size <= MAX_SIZE) for size in shape):
        _refuse("a size must be a number of at least 0, or null where it is free", where)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(f"unknown element type {str(dtype)[:40]!r}", where)
    return Input(tuple(shape), dtype)


def _node(item: Any, index: int, ops: list[str], modules: list[str], inputs: int, where: str) -> Node:
    where = f"{where} n{index}"
    if not isinstance(item, list) or len(item) != 4:
        _refuse("a node is a list of operator, arguments, keyword arguments and module", where)
    op = ops[_index(item[0], len(ops), "operator", where)]
    module = modules[_index(item[3], len(modules), "module", where)]
    if not isinstance(item[1], list) or not isinstance(item[2], dict) or len(item[1]) > 64:
        _refuse("arguments must be a list, keyword arguments an object", where)
    args = tuple(_value(value, index, 0, where) for value in item[1])
    for name in item[2]:
        if not _ARGUMENT.fullmatch(name):
            _refuse(f"{name[:40]!r} cannot be the name of an argument", where)
    kwargs = {name: _value(value, index, 0, where) for name, value in item[2].items()}
    if op == INPUT:
        if len(args) != 1 or kwargs:
            _refuse("an input node has one argument, the index of the input", where)
        _index(args[0], inputs, "input", where)
    elif op == TENSOR:
        if len(args) != 1 or kwargs or not is_tensor_name(args[0]):
            _refuse("a tensor node has one argument, the name of a tensor in the file", where)
    elif op == GETITEM:
        if len(args) != 2 or kwargs or not isinstance(args[0], Ref):
            _refuse("getitem takes an earlier node and an index", where)
        _index(args[1], MAX_LIST, "item", where)
    elif op.startswith("sym."):
        if len(args) != (1 if op == "sym.neg" else 2) or kwargs:
            _refuse(f"wrong number of arguments for {op}", where)
        if not all(isinstance(arg, Ref) or _is_int(arg) for arg in args):
            _refuse(f"{op} takes sizes: earlier nodes or numbers", where)
    return Node(op, args, kwargs, module)


def _value_to_json(value: Value) -> Any:
    if isinstance(value, Ref):
        return {"n": value.node}
    if isinstance(value, DType):
        return {"d": value.name}
    if isinstance(value, SameDevice):
        return {"device": "input"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    return value


def _value(content: Any, before: int, depth: int, where: str) -> Value:
    if content is None or isinstance(content, bool):
        return content
    if isinstance(content, int):
        if not -(2**63) <= content < 2**63:
            _refuse("a number does not fit 64 bits", where)
        return content
    if isinstance(content, float):
        if not math.isfinite(content):
            _refuse("a number is too large for a float", where)
        return content
    if isinstance(content, str):
        if not _STRING.fullmatch(content):
            _refuse("a text argument may hold at most 256 printable ASCII characters", where)
        return content
    if isinstance(content, list):
        if depth >= MAX_DEPTH or len(content) > MAX_LIST:
            _refuse(f"a list is nested deeper than {MAX_DEPTH} or longer than {MAX_LIST}", where)
        return tuple(_value(item, before, depth + 1, where) for item in content)
    return _tagged(content, before, where)


def _tagged(content: dict[str, Any], before: int, where: str) -> Value:
    if len(content) != 1:
        _refuse("an object as argument has exactly one of the fields 'n', 'd', 'f', 'device'", where)
    ((tag, value),) = content.items()
    if tag == "n":
        if not _is_int(value) or not 0 <= value < before:
            _refuse(f"refers to node {str(value)[:40]}, which does not come before it", where)
        return Ref(value)
    if tag == "d" and isinstance(value, str) and value in DTYPES:
        return DType(value)
    if tag == "f" and isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if tag == "device" and value == "input":
        return SameDevice()
    _refuse(f"{tag[:40]!r}: {str(value)[:40]!r} is no argument", where)


def _output_to_json(output: Output) -> Any:
    if isinstance(output, Ref):
        return {"n": output.node}
    if isinstance(output, dict):
        return {"dict": {name: _output_to_json(item) for name, item in output.items()}}
    return [_output_to_json(item) for item in output]


def _output(content: Any, nodes: int, depth: int, where: str) -> Output:
    if depth >= MAX_DEPTH:
        _refuse(f"output is nested deeper than {MAX_DEPTH}", where)
    if isinstance(content, list):
        if not 0 < len(content) <= MAX_INPUTS:
            _refuse(f"an output tuple has 1 to {MAX_INPUTS} items", where)
        return tuple(_output(item, nodes, depth + 1, where) for item in content)
    if isinstance(content, dict) and content.keys() == {"n"}:
        return Ref(_index(content["n"], nodes, "output node", where))
    if isinstance(content, dict) and content.keys() == {"dict"} and isinstance(content["dict"], dict):
        items = content["dict"]
        if not 0 < len(items) <= MAX_INPUTS or not all(_STRING.fullmatch(name) for name in items):
            _refuse(f"an output dictionary has 1 to {MAX_INPUTS} entries with plain names", where)
        return {name: _output(item, nodes, depth + 1, where) for name, item in items.items()}
    _refuse("output must be a node, a list, or {'dict': ...} of outputs", where)
