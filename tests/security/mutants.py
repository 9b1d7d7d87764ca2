"""Damaged and made-up portable models, by number: the same number always gives the same file.

Five kinds: calls of one operator with arguments changed (`calls.py`); calls of one operator with arguments made up;
graphs grown from operators whose sizes fit, sizes computed by the graph itself among them; files of the corpus with
nodes, tensors, fields or bytes changed; headers changed as text. `sandbox.py` runs them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from tests.security.calls import CALLS, Call

from suture_contract.errors import SutureError
from suture_contract.model.format import graph_from_json, graph_to_json
from suture_contract.model.graph import Graph
from suture_contract.model.operators import ATEN, DTYPES, SYM
from suture_stitching.portable.dry_run import Budget, dry_run
from suture_stitching.portable.schemas import MEMORY_FORMATS, SIZE_KIND, TENSOR_KIND, TUPLE_KIND, schema_of

BUDGET = Budget(flops=10**9, bytes=2**28)
SHAPE = (2, 3, 8, 8)
NUMBERS = [-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 8, 17, 1000, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
FLOATS: list[Any] = [-1.0, 0.0, 0.5, 1e-30, 1e30, 2.0, {"f": "inf"}, {"f": "-inf"}, {"f": "nan"}]
STRINGS = [
    "",
    "valid",
    "same",
    "reflect",
    "circular",
    "constant",
    "replicate",
    "none",
    "tanh",
    "ij,jk->ik",
    "a...",
    "->",
    "i,i",
    *MEMORY_FORMATS,
]
SYM_OPS = sorted(SYM)
VALUES = ["-1", "9" * 30, "1e9", "0.5", "true", "null", "[]"]
PIECES = ["\u202e", "\u0000", "\\u0000", "\\ud800", "[", "{", '"', "\n"]


Parts: TypeAlias = tuple[dict[str, Any], dict[str, Any], bytes]


def parts(content: bytes) -> Parts:
    """Return header, graph and tensors' bytes of a file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length].decode())
    return header, json.loads(header["__metadata__"]["graph"]), content[8 + length :]


def joined(header: dict[str, Any], graph: dict[str, Any], data: bytes) -> bytes:
    """Return the file of a header, a graph and bytes."""
    header["__metadata__"]["graph"] = json.dumps(graph)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) inside a JSON value."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def any_value(rng: random.Random, nodes: int) -> Any:
    """Return some argument."""
    return rng.choice(
        [
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(FLOATS),
            lambda: rng.choice(STRINGS),
            lambda: rng.choice([True, False, None]),
            lambda: {"n": rng.randrange(-1, nodes + 1)},
            lambda: {"d": rng.choice(list(DTYPES))},
            lambda: {"device": "input"},
            lambda: [any_value(rng, nodes) for _ in range(rng.randrange(4))],
        ]
    )()


def damaged_graph(rng: random.Random, header: dict[str, Any], graph: dict[str, Any]) -> None:
    """Change one to three things in a graph."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        nodes = graph["nodes"]
        index = rng.randrange(len(nodes))
        kind = rng.randrange(8)
        if kind == 0:
            graph["ops"][rng.randrange(len(graph["ops"]))] = rng.choice(sorted(ATEN))
        elif kind == 1:
            nodes[index][0] = rng.randrange(len(graph["ops"]))
        elif kind == 2:
            nodes.pop(index)
        elif kind == 3:
            nodes.insert(index, copy.deepcopy(rng.choice(nodes)))
        elif kind == 4:
            spec = rng.choice(graph["inputs"] + graph["outputs"])
            if spec["shape"]:
                spec["shape"][rng.randrange(len(spec["shape"]))] = rng.choice([None, *NUMBERS])
        else:
            found = places(nodes[index][1]) + places(nodes[index][2])
            if found:
                container, key = rng.choice(found)
                is_node = isinstance(container, dict) and key == "n"
                container[key] = rng.randrange(index + 1) if is_node else any_value(rng, len(nodes))


def damaged_tensors(rng: random.Random, header: dict[str, Any], graph: dict[str, Any]) -> None:
    """Give a tensor another shape or type that fits its bytes, or does not."""
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return
    info = header[rng.choice(names)]
    kind = rng.randrange(4)
    if kind == 0:
        info["dtype"] = rng.choice([name for name, _ in DTYPES.values()])
    elif kind == 1:
        rng.shuffle(info["shape"])
    elif kind == 2:
        size = 1
        for length in info["shape"]:
            size *= length
        divisor = rng.choice([d for d in range(1, min(size, 64) + 1) if size % d == 0] or [1])
        info["shape"] = rng.choice([[size], [divisor, size // divisor], [1, size, 1], [size // divisor, divisor, 1, 1]])
    else:
        info["data_offsets"][rng.randrange(2)] += rng.choice([-4, 4, 8])


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change, cut out or repeat some bytes anywhere."""
    damaged = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(damaged))
        kind = rng.randrange(4)
        if kind == 0:
            damaged[at] = rng.randrange(256)
        elif kind == 1:
            del damaged[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            damaged[at:at] = damaged[at : at + rng.randrange(1, 9)]
        else:
            damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def damaged_text(rng: random.Random, content: bytes) -> bytes:
    """Change the header as text: a piece repeated, a number or a name put in the place of another; length kept true."""
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].decode()
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            piece = text[at : at + rng.randrange(1, 200)]
            text = text[:at] + piece + text[at:]
        elif kind == 1:
            digits = next((i for i in range(at, len(text)) if text[i].isdecimal()), None)
            if digits is not None:
                text = (
                    text[:digits]
                    + rng.choice(["-1", "9" * 30, "1e9", "0.5", "true", "null", "[]"])
                    + text[digits + 1 :]
                )
        elif kind == 2:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        else:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def call(op: str, tensors: list[tuple[str, list[int]]], args: list[Any], kwargs: dict[str, Any]) -> Parts:
    """Return a model of one call; what it returns is not stated yet, see `stated`."""

    def value(arg: Any) -> Any:
        if isinstance(arg, list):
            return [value(item) for item in arg]
        if arg == "x" or (isinstance(arg, str) and arg[:1] == "t" and arg[1:].isdecimal()):
            return {"n": 0 if arg == "x" else 1 + int(arg[1:])}
        return arg

    header, graph, _ = empty(tensors)
    nodes = graph["nodes"]
    graph["ops"].append(f"aten.{op}")
    nodes.append([2, value(args), {name: value(arg) for name, arg in kwargs.items()}, 0])
    if kind_of(f"aten.{op}") == TUPLE_KIND:
        graph["ops"].append("getitem")
        nodes.append([3, [{"n": len(nodes) - 1}, 0], {}, 0])
    graph["output"] = {"n": len(nodes) - 1}
    return header, graph, b""


def empty(tensors: list[tuple[str, list[int]]]) -> Parts:
    """Return a model that only has an input and tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "suture.portable", "version": "1", "torch": "2"}}
    nodes: list[Any] = [[0, [0], {}, 0]]
    for index, (dtype, shape) in enumerate(tensors):
        nodes.append([1, [f"t{index}"], {}, 0])
        header[f"t{index}"] = {"dtype": dtype, "shape": list(shape)}
    spec = {"shape": [None, *SHAPE[1:]], "dtype": "float32"}
    graph = {
        "inputs": [spec],
        "outputs": [],
        "ops": ["input", "tensor"],
        "modules": [""],
        "nodes": nodes,
        "output": {"n": 0},
    }
    return header, graph, b""


def kind_of(op: str) -> str:
    """Return what kind of value an operator has."""
    if op in SYM:
        return SIZE_KIND
    returns = schema_of(op).returns
    if len(returns) > 1 or str(returns[0].real_type) == "List[Tensor]":
        return TUPLE_KIND
    return TENSOR_KIND if str(returns[0].real_type) == "Tensor" else SIZE_KIND


def stated(header: dict[str, Any], graph: dict[str, Any]) -> None:
    """State in the graph what it returns, from a dry run; raises `SutureError` if it does not run."""
    outputs = len(graph["output"]) if isinstance(graph["output"], list) else 1
    graph["outputs"] = [{"shape": [], "dtype": "float32"}] * outputs
    parsed = graph_from_json(json.dumps(graph))
    bare = Graph(parsed.inputs, parsed.nodes, parsed.output)
    torch_name = {short: name for name, (short, _) in DTYPES.items()}
    tensors = {
        name: torch.empty(info["shape"], dtype=getattr(torch, torch_name[info["dtype"]]), device="meta")
        for name, info in header.items()
        if name != "__metadata__"
    }
    outputs = dry_run(bare, tensors, [SHAPE], BUDGET).outputs
    graph["outputs"] = json.loads(graph_to_json(Graph(bare.inputs, bare.nodes, bare.output, outputs)))["outputs"]


def fill(rng: random.Random, header: dict[str, Any]) -> bytes:
    """Lay the tensors out one after the other and return small numbers for them."""
    data = b""
    for name, info in header.items():
        if name == "__metadata__":
            continue
        size = next((size for short, size in DTYPES.values() if short == info["dtype"]), 4)
        for length in info["shape"]:
            size *= length
        info["data_offsets"] = [len(data), len(data) + size]
        if info["dtype"] in ("I64", "I32", "I16"):  # small numbers, most of which are good indices
            width = int(info["dtype"][1:]) // 8
            data += b"".join(rng.randrange(3).to_bytes(width, "little") for _ in range(size // width))
        else:
            data += bytes(rng.choices([0, 1] if info["dtype"] == "BOOL" else [0, 0, 0, 1, 2, 60], k=size))
    return data


def finished(rng: random.Random, header: dict[str, Any], graph: dict[str, Any], keep: Callable[[bytes], None]) -> bytes:
    """Return the file of a model whose outputs are not stated yet; `keep` is given it before a dry run is tried."""
    keep(joined(header, graph, fill(rng, header)))
    with contextlib.suppress(SutureError):
        stated(header, graph)
    return joined(header, graph, fill(rng, header))


def damaged_call(rng: random.Random, given: Call, keep: Callable[[bytes], None]) -> bytes:
    """Return a call that works, with up to two of its arguments or tensors changed."""
    header, graph, _ = copy.deepcopy(call(*given))
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        if names and rng.random() < 0.4:
            damaged_shape(rng, header[rng.choice(names)])
        else:
            node = next(node for node in graph["nodes"] if node[0] == 2)
            found = places(node[1]) + places(node[2])
            container, key = rng.choice(found)
            is_node = isinstance(container, dict) and key == "n"
            container[key] = rng.randrange(1 + len(names)) if is_node else any_value(rng, 1 + len(names))
    return finished(rng, header, graph, keep)


def damaged_shape(rng: random.Random, info: dict[str, Any]) -> None:
    """Change a tensor's type, or one of its sizes, or their number."""
    kind = rng.randrange(5)
    if kind == 0:
        info["dtype"] = rng.choice([name for name, _ in DTYPES.values()])
    elif kind == 1:
        info["shape"].insert(rng.randrange(len(info["shape"]) + 1), rng.choice([0, 1, 2]))
    elif kind == 2 and info["shape"]:
        info["shape"].pop(rng.randrange(len(info["shape"])))
    elif info["shape"]:
        info["shape"][rng.randrange(len(info["shape"]))] = rng.choice([0, 1, 2, 3, 4, 8, 12])


def argument(rng: random.Random, argument: Any, kinds: list[str]) -> Any:
    """Return a value that mostly has the type an operator declares; `kinds` are those of the nodes before it."""
    declared = str(argument.real_type)
    if declared.startswith("Optional["):
        if rng.random() < 0.3:
            return None
        declared = declared[len("Optional[") : -1]
    if rng.random() < 0.02:
        return any_value(rng, len(kinds))
    if declared.startswith("List["):
        item = declared[len("List[") : -1].removeprefix("Optional[").removesuffix("]")
        length = argument.N if argument.N and rng.random() < 0.9 else rng.randrange(5)
        return [one(rng, item, kinds) for _ in range(length)]
    return one(rng, declared, kinds)


def one(rng: random.Random, declared: str, kinds: list[str]) -> Any:
    """Return a value of a declared type."""
    small = [-2, -1, 0, 1, 2, 3, 4, 8]
    sizes = [index for index, kind in enumerate(kinds) if kind == SIZE_KIND]
    if declared == "Tensor":
        return {"n": rng.choice([index for index, kind in enumerate(kinds) if kind == TENSOR_KIND])}
    if declared in ("int", "SymInt"):
        if sizes and rng.random() < 0.3:
            return {"n": rng.choice(sizes)}
        return rng.choice(small) if rng.random() < 0.9 else rng.choice(NUMBERS)
    if declared in ("float", "number", "Scalar"):
        return rng.choice(FLOATS) if rng.random() < 0.5 else rng.choice(small)
    if declared == "bool":
        return rng.random() < 0.3
    if declared == "str":
        return rng.choice(STRINGS)
    if declared == "ScalarType":
        return {"d": rng.choice(list(DTYPES))}
    if declared == "Device":
        return {"device": "input"}
    return rng.choice(list(MEMORY_FORMATS)) if declared == "MemoryFormat" else None


def arguments(rng: random.Random, op: str, kinds: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments for an operator, of the types that it declares."""
    if op in SYM:
        return [one(rng, "SymInt", kinds) for _ in range(1 if op == "sym.neg" else 2)], {}
    schema = schema_of(op).arguments
    args = [argument(rng, item, kinds) for item in schema if not item.kwarg_only]
    kwargs = {item.name: argument(rng, item, kinds) for item in schema if item.kwarg_only and rng.random() < 0.7}
    return args, kwargs


def some_tensors(rng: random.Random, most: int) -> list[tuple[str, list[int]]]:
    """Return types and shapes of a few tensors, of few different sizes, so that they often fit each other."""
    sizes = rng.sample([0, 1, 2, 3, 4, 8], 2)
    return [
        (
            rng.choice(["F32"] * 8 + [name for name, _ in DTYPES.values()]),
            [rng.choice(sizes) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 5]))],
        )
        for _ in range(rng.randrange(1, most))
    ]


def single_operator(rng: random.Random, keep: Callable[[bytes], None]) -> bytes:
    """Return a model of one operator, with made-up arguments and tensors of any kind."""
    op = rng.choice(sorted(ATEN - {"aten.sym_size.int"}))
    tensors = some_tensors(rng, 7)
    args, kwargs = arguments(rng, op, [TENSOR_KIND] * (1 + len(tensors)))
    header, graph, _ = call(op.removeprefix("aten."), tensors, args, kwargs)
    return finished(rng, header, graph, keep)


def grown(rng: random.Random, keep: Callable[[bytes], None]) -> bytes:
    """Return a graph of several operators on each other's results, of which each runs dry."""
    tensors = some_tensors(rng, 4)
    header, graph, _ = empty(tensors)
    nodes, kinds = graph["nodes"], [TENSOR_KIND] * (1 + len(tensors))
    known = {"input": 0, "tensor": 1}

    def index(op: str) -> int:
        if op not in known:
            known[op] = len(known)
            graph["ops"].append(op)
        return known[op]

    every, end = sorted(ATEN), 0
    for _ in range(rng.randrange(4, 12)):
        op = rng.choice(["aten.sym_size.int", *SYM_OPS]) if rng.random() < 0.25 else rng.choice(every)
        args, kwargs = arguments(rng, op, kinds)
        before = len(nodes)
        nodes.append([index(op), args, kwargs, 0])
        kind = kind_of(op)
        if kind == TUPLE_KIND:
            nodes.append([index("getitem"), [{"n": before}, 0], {}, 0])
        if kind == SIZE_KIND:
            # A factory reads it, so that the dry run tells whether it can be computed.
            graph["output"] = {"n": before + 1}
            nodes.append([index("aten.new_zeros.default"), [{"n": 0}, [{"n": before}]], {}, 0])
        else:
            graph["output"] = {"n": len(nodes) - 1}
        trial = {**graph, "ops": list(graph["ops"]), "nodes": list(nodes)}
        keep(joined(header, trial, fill(rng, header)))
        try:
            stated(header, trial)
        except SutureError:
            # A negative size is a size all the same: what reads it next must refuse it.
            if kind != SIZE_KIND or rng.random() < 0.5:
                del nodes[before:]
                continue
        if kind == SIZE_KIND:
            del nodes[before + 1 :]
        else:
            end = len(nodes) - 1
        kinds += [kind] if kind != TUPLE_KIND else [kind, TENSOR_KIND]
    graph["output"] = {"n": end}
    return finished(rng, header, graph, keep)


def mutant(number: int, files: list[bytes], keep: Callable[[bytes], None]) -> bytes:
    """Return the file of a mutant; `keep` is given what must not get lost if making it ends the process."""
    rng = random.Random(number)
    kind = rng.random()
    if kind < 0.4:
        return damaged_call(rng, CALLS[number % len(CALLS)], keep)
    if kind < 0.5:
        return single_operator(rng, keep)
    if kind < 0.6:
        return grown(rng, keep)
    content = rng.choice(files)
    if kind < 0.66:
        return damaged_bytes(rng, content)
    if kind < 0.72:
        return damaged_text(rng, content)
    header, graph, data = parts(content)
    (damaged_graph if kind < 0.93 else damaged_tensors)(rng, header, graph)
    return joined(header, graph, data)
