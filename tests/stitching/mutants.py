"""Load and run damaged models, in a process of its own, so that a native crash is seen and not suffered.

    python mutants.py FOLDER FIRST COUNT

`FOLDER` holds portable models to damage. The number of each mutant is printed before it runs; after the last one,
how many of them ran. Every mutant must either be refused with a `SutureError` or give outputs as its graph states.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import torch

from suture_stitching.errors import SutureError
from suture_stitching.portable.dry_run import Budget
from suture_stitching.portable.operators import ATEN, DTYPES
from suture_stitching.portable.runtime import load
from suture_stitching.portable.schemas import MEMORY_FORMATS, schema_of

BUDGET = Budget(flops=10**9, bytes=2**28)
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


Parts: TypeAlias = tuple[dict[str, Any], dict[str, Any], bytes]


def parts(content: bytes) -> Parts:
    """Return header, graph and tensors' bytes of a file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
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


#: Calls that work, of operators whose kernels trust much: what they read (first the input, (2, 3, 8, 8) where there is
#: one), and their arguments, in which "t0" stands for the first tensor and "x" for the input.
CALLS: list[tuple[str, list[tuple[str, list[int]]], list[Any], dict[str, Any]]] = [
    (
        "conv1d.default",
        [("F32", [2, 4, 9]), ("F32", [6, 2, 3]), ("F32", [6])],
        ["t0", "t1", "t2", [2], [1], [1], 2],
        {},
    ),
    ("conv1d.padding", [("F32", [2, 4, 9]), ("F32", [6, 4, 3])], ["t0", "t1", None, [1], "same", [2], 1], {}),
    ("conv2d.default", [("F32", [6, 3, 3, 3]), ("F32", [6])], ["x", "t0", "t1", [1, 2], [1, 0], [1, 2], 1], {}),
    ("conv2d.padding", [("F32", [6, 1, 3, 3])], ["x", "t0", None, [1, 1], "same", [1, 1], 3], {}),
    (
        "conv3d.default",
        [("F32", [2, 2, 4, 4, 4]), ("F32", [4, 2, 2, 2, 2])],
        ["t0", "t1", None, [1, 1, 1], [1, 1, 1]],
        {},
    ),
    ("conv3d.padding", [("F32", [2, 2, 4, 4, 4]), ("F32", [4, 2, 3, 3, 3])], ["t0", "t1", None, [1, 1, 1], "same"], {}),
    (
        "conv_transpose1d.default",
        [("F32", [2, 4, 9]), ("F32", [4, 3, 3])],
        ["t0", "t1", None, [2], [1], [1], 2, [1]],
        {},
    ),
    ("conv_transpose2d.input", [("F32", [3, 6, 2, 2])], ["x", "t0", None, [2, 2], [0, 1], [1, 0], 1, [1, 1]], {}),
    ("conv_transpose3d.input", [("F32", [1, 2, 3, 3, 3]), ("F32", [2, 1, 2, 2, 2])], ["t0", "t1", None, [2, 2, 2]], {}),
    ("addmm.default", [("F32", [4]), ("F32", [2, 3]), ("F32", [3, 4])], ["t0", "t1", "t2"], {"beta": 2, "alpha": 0.5}),
    ("bmm.default", [("F32", [2, 3, 4]), ("F32", [2, 4, 5])], ["t0", "t1"], {}),
    ("einsum.default", [("F32", [2, 3, 4]), ("F32", [2, 4, 5])], ["bij,bjk->bik", ["t0", "t1"]], {}),
    (
        "scaled_dot_product_attention.default",
        [("F32", [2, 4, 5, 8]), ("F32", [2, 4, 7, 8]), ("F32", [2, 4, 7, 8]), ("BOOL", [5, 7])],
        ["t0", "t1", "t2", "t3", 0.0, False],
        {"scale": 0.5, "enable_gqa": False},
    ),
    (
        "batch_norm.default",
        [("F32", [3]), ("F32", [3]), ("F32", [3]), ("F32", [3])],
        ["x", "t0", "t1", "t2", "t3", False, 0.1, 1e-5, True],
        {},
    ),
    ("instance_norm.default", [("F32", [3])], ["x", "t0", "t0", None, None, True, 0.1, 1e-5, True], {}),
    ("group_norm.default", [("F32", [3])], ["x", 3, "t0", "t0", 1e-5, True], {}),
    ("layer_norm.default", [("F32", [8])], ["x", [8], "t0", "t0", 1e-5, True], {}),
    ("rms_norm.default", [("F32", [8])], ["x", [8], "t0", 1e-5], {}),
    ("max_pool1d.default", [("F32", [2, 3, 9])], ["t0", [3], [2], [1], [1], False], {}),
    ("max_pool2d.default", [], ["x", [3, 2], [2, 2], [1, 1], [1, 1], True], {}),
    ("max_pool3d.default", [("F32", [2, 2, 4, 4, 4])], ["t0", [2, 2, 2], [1, 2, 2], [0, 1, 0], [1, 1, 1], False], {}),
    ("avg_pool1d.default", [("F32", [2, 3, 9])], ["t0", [3], [2], [1], False, True], {}),
    ("avg_pool2d.default", [], ["x", [3, 2], [2, 2], [1, 1], True, False, 3], {}),
    ("avg_pool3d.default", [("F32", [2, 2, 4, 4, 4])], ["t0", [2, 2, 2], [1, 2, 2], [0, 1, 0], False, True, None], {}),
    ("adaptive_avg_pool2d.default", [], ["x", [3, 5]], {}),
    ("adaptive_avg_pool3d.default", [("F32", [2, 2, 4, 4, 4])], ["t0", [3, 5, 1]], {}),
    ("upsample_nearest1d.vec", [("F32", [2, 3, 5])], ["t0", [7], None], {}),
    ("upsample_nearest2d.vec", [], ["x", None, [2.0, 1.5]], {}),
    ("upsample_nearest3d.vec", [("F32", [2, 2, 4, 4, 4])], ["t0", [5, 6, 7], None], {}),
    ("upsample_linear1d.vec", [("F32", [2, 3, 5])], ["t0", None, True, [1.7]], {}),
    ("upsample_bilinear2d.vec", [], ["x", [5, 11], False, None], {}),
    ("upsample_trilinear3d.vec", [("F32", [2, 2, 4, 4, 4])], ["t0", [5, 6, 7], True, None], {}),
    ("pad.default", [], ["x", [1, 2, 3, 1], "reflect", None], {}),
    ("pad.default", [], ["x", [1, -2, 0, 1], "constant", 0.5], {}),
    ("prelu.default", [("F32", [3])], ["x", "t0"], {}),
    ("embedding.default", [("F32", [9, 4]), ("I64", [2, 3])], ["t0", "t1", -1, False, False], {}),
    ("index.Tensor", [("F32", [5, 6]), ("I64", [3]), ("I32", [3])], ["t0", ["t1", "t2"]], {}),
    ("index.Tensor", [("I64", [3])], ["x", [None, None, "t0"]], {}),
    ("index_select.default", [("I64", [4])], ["x", 1, "t0"], {}),
    ("masked_fill.Scalar", [("BOOL", [8])], ["x", "t0", 2.0], {}),
    ("where.self", [("BOOL", [8]), ("F32", [8])], ["t0", "x", "t1"], {}),
    ("slice_scatter.default", [("F32", [2, 3, 8, 4])], ["x", "t0", 3, 1, 8, 2], {}),
    ("select_scatter.default", [("F32", [2, 8, 8])], ["x", "t0", 1, 2], {}),
    ("roll.default", [], ["x", [3, -2], [2, 3]], {}),
    ("unflatten.int", [], ["x", 3, [2, -1]], {}),
    ("view.default", [], ["x", [2, 3, 64]], {}),
    ("permute.default", [], ["x", [0, 2, 3, 1]], {}),
    ("cat.default", [("F32", [2, 5, 8, 8])], [["x", "t0"], 1], {}),
    ("split_with_sizes.default", [], ["x", [3, 5], 2], {}),
    (
        "lstm.input",
        [("F32", [2, 5, 4]), ("F32", [2, 2, 3]), ("F32", [12, 4]), ("F32", [12, 3]), ("F32", [12])],
        ["t0", ["t1", "t1"], ["t2", "t3", "t4", "t4"] * 2, True, 1, 0.0, False, True, True],
        {},
    ),
    (
        "gru.input",
        [("F32", [5, 2, 4]), ("F32", [2, 2, 3]), ("F32", [9, 4]), ("F32", [9, 3]), ("F32", [9]), ("F32", [9, 3])],
        ["t0", "t1", ["t2", "t3", "t4", "t4", "t5", "t3", "t4", "t4"], True, 2, 0.0, False, False, False],
        {},
    ),
]


def call(op: str, tensors: list[tuple[str, list[int]]], args: list[Any], kwargs: dict[str, Any]) -> Parts:
    """Return a model of one call."""

    def value(arg: Any) -> Any:
        if isinstance(arg, list):
            return [value(item) for item in arg]
        if arg == "x" or (isinstance(arg, str) and arg[0] == "t" and arg[1:].isdecimal()):
            return {"n": 0 if arg == "x" else 1 + int(arg[1:])}
        return arg

    nodes: list[Any] = [[0, [0], {}, 0]]
    header: dict[str, Any] = {"__metadata__": {"format": "suture.portable", "version": "1", "torch": "2"}}
    for index, (dtype, shape) in enumerate(tensors):
        nodes.append([1, [f"t{index}"], {}, 0])
        header[f"t{index}"] = {"dtype": dtype, "shape": list(shape)}
    nodes.append([2, value(args), {name: value(arg) for name, arg in kwargs.items()}, 0])
    output: Any = {"n": len(nodes) - 1}
    ops = ["input", "tensor", f"aten.{op}"]
    returns = schema_of(f"aten.{op}").returns
    if len(returns) > 1 or str(returns[0].real_type) == "List[Tensor]":
        ops.append("getitem")
        nodes.append([3, [output, 0], {}, 0])
        output = {"n": len(nodes) - 1}
    spec = {"shape": [None, 3, 8, 8], "dtype": "float32"}
    # What comes out is not known yet: an empty list of outputs is filled in from a dry run.
    graph = {"inputs": [spec], "outputs": [], "ops": ops, "modules": [""], "nodes": nodes, "output": output}
    return header, graph, b""


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


def damaged_call(rng: random.Random) -> bytes:
    """Return a call that works, with up to two of its arguments or tensors changed."""
    header, graph, _ = copy.deepcopy(call(*rng.choice(CALLS)))
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        if names and rng.random() < 0.4:
            info = header[rng.choice(names)]
            kind = rng.randrange(5)
            if kind == 0:
                info["dtype"] = rng.choice([name for name, _ in DTYPES.values()])
            elif kind == 1:
                info["shape"].insert(rng.randrange(len(info["shape"]) + 1), rng.choice([0, 1, 2]))
            elif kind == 2 and info["shape"]:
                info["shape"].pop(rng.randrange(len(info["shape"])))
            elif info["shape"]:
                info["shape"][rng.randrange(len(info["shape"]))] = rng.choice([0, 1, 2, 3, 4, 8, 12])
        else:
            node = next(node for node in graph["nodes"] if node[0] == 2)
            found = places(node[1]) + places(node[2])
            container, key = rng.choice(found)
            is_node = isinstance(container, dict) and key == "n"
            container[key] = rng.randrange(1 + len(names)) if is_node else any_value(rng, 1 + len(names))
    used = {node[1][0] for node in graph["nodes"] if node[0] == 1}
    assert used == set(names)
    return joined(header, graph, fill(rng, header))


def argument(rng: random.Random, argument: Any, tensors: int) -> Any:
    """Return a value that mostly has the type an operator declares."""
    declared = str(argument.real_type)
    if declared.startswith("Optional["):
        if rng.random() < 0.3:
            return None
        declared = declared[len("Optional[") : -1]
    if rng.random() < 0.02:
        return any_value(rng, tensors)
    if declared.startswith("List["):
        item = declared[len("List[") : -1].removeprefix("Optional[").removesuffix("]")
        length = argument.N if argument.N and rng.random() < 0.9 else rng.randrange(5)
        return [one(rng, item, tensors) for _ in range(length)]
    return one(rng, declared, tensors)


def one(rng: random.Random, declared: str, tensors: int) -> Any:
    """Return a value of a declared type."""
    small = [-2, -1, 0, 1, 2, 3, 4, 8]
    if declared == "Tensor":
        return {"n": rng.randrange(tensors)}
    if declared in ("int", "SymInt"):
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


def single_operator(rng: random.Random) -> bytes:
    """Return a model of one operator, with arguments of the types that it declares and tensors of any kind."""
    op = rng.choice(sorted(ATEN - {"aten.sym_size.int"}))
    # Few different sizes, so that tensors often fit each other.
    sizes = rng.sample([0, 1, 2, 3, 4, 8], 2)
    tensors = [
        (
            rng.choice(["F32"] * 8 + [name for name, _ in DTYPES.values()]),
            [rng.choice(sizes) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 5]))],
        )
        for _ in range(rng.randrange(1, 7))
    ]
    schema, count = schema_of(op).arguments, 1 + len(tensors)
    args = [argument(rng, item, count) for item in schema if not item.kwarg_only]
    kwargs = {item.name: argument(rng, item, count) for item in schema if item.kwarg_only and rng.random() < 0.7}
    header, graph, _ = call(op.removeprefix("aten."), tensors, args, kwargs)
    return joined(header, graph, fill(rng, header))


def mutant(number: int, files: list[bytes]) -> bytes:
    """Return the file of a mutant."""
    rng = random.Random(number)
    kind = rng.random()
    if kind < 0.3:
        return damaged_call(rng)
    if kind < 0.45:
        return single_operator(rng)
    content = rng.choice(files)
    kind = rng.random()
    if kind < 0.15:
        return damaged_bytes(rng, content)
    header, graph, data = parts(content)
    (damaged_graph if kind < 0.8 else damaged_tensors)(rng, header, graph)
    return joined(header, graph, data)


def attempt(path: Path, content: bytes) -> bool:
    """Load and run a mutant; return whether it ran."""
    from suture_stitching.portable.dry_run import dry_run
    from suture_stitching.portable.format import graph_from_json, graph_to_json
    from suture_stitching.portable.graph import Graph

    try:
        header, graph, data = parts(content)
        if graph["outputs"] == []:
            graph["outputs"] = [{"shape": [], "dtype": "float32"}]
            parsed = graph_from_json(json.dumps(graph))
            bare = Graph(parsed.inputs, parsed.nodes, parsed.output)
            tensors = {
                name: torch.empty(info["shape"], dtype=getattr(torch, dtype), device="meta")
                for name, info in header.items()
                if name != "__metadata__"
                for dtype, (short, _) in DTYPES.items()
                if short == info["dtype"]
            }
            used = {node.args[0] for node in bare.nodes if node.op == "tensor"}
            outputs = dry_run(bare, {k: v for k, v in tensors.items() if k in used}, [(2, 3, 8, 8)], BUDGET).outputs
            content = joined(
                header, json.loads(graph_to_json(Graph(bare.inputs, bare.nodes, bare.output, outputs))), data
            )
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        pass  # damaged beyond what this script understands; the loader must say so itself
    except SutureError:
        return False
    path.write_bytes(content)
    try:
        declared = parts(content)[1]["inputs"]
        shapes = [[2 if size is None else size for size in spec["shape"]] for spec in declared]
        # Sizes of more than a small input are the caller's, not the file's.
        shapes = [[size if size <= 64 else 3 for size in shape] for shape in shapes]
        dtypes = [spec["dtype"] for spec in declared]
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        shapes, dtypes = [[2, 3]], ["float32"]
    try:
        model = load(path, input_shapes=shapes, budget=BUDGET)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            (torch.rand(shape, generator=generator) * 4).to(getattr(torch, dtype))
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        with torch.no_grad():
            output = model(*inputs)
        flat = [output]
        while any(not isinstance(item, torch.Tensor) for item in flat):
            flat = [
                item
                for entry in flat
                for item in (
                    [entry] if isinstance(entry, torch.Tensor) else entry.values() if isinstance(entry, dict) else entry
                )
            ]
        for spec, tensor in zip(model.graph.outputs, flat, strict=True):
            assert str(tensor.dtype) == f"torch.{spec.dtype}", (spec, tensor.dtype)
            assert len(spec.shape) == tensor.dim(), (spec, tensor.shape)
            assert all(want in (None, have) for want, have in zip(spec.shape, tensor.shape, strict=True)), (
                spec,
                tensor.shape,
            )
    except SutureError:
        return False
    return True


def main(folder: str, first: int, count: int) -> None:
    """Run the mutants `first` to `first + count - 1`."""
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))]
    ran = 0
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "mutant.safetensors"
        for number in range(first, first + count):
            print(number, flush=True)
            ran += attempt(path, mutant(number, files))
    print("ran", ran)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
