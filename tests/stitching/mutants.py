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
from typing import Any

import torch

from suture_stitching.errors import SutureError
from suture_stitching.portable.dry_run import Budget
from suture_stitching.portable.operators import ATEN, DTYPES
from suture_stitching.portable.runtime import load
from suture_stitching.portable.schemas import MEMORY_FORMATS, schema_of

BUDGET = Budget(flops=10**9, bytes=2**28)
NUMBERS = [-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 4, 5, 8, 17, 1000, 2**31 - 1, 2**31, 2**62, 2**63 - 1]
FLOATS: list[Any] = [-1.0, 0.0, 0.5, 1e-30, 1e30, 2.0, {"f": "inf"}, {"f": "-inf"}, {"f": "nan"}]
STRINGS = ["", "valid", "same", "reflect", "circular", "constant", "replicate", "none", "tanh", "ij,jk->ik", "a...", "->", "i,i", *MEMORY_FORMATS]


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
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
    nodes: list[Any] = [[0, [0], {}, 0]]
    header: dict[str, Any] = {"__metadata__": {"format": "suture.portable", "version": "1", "torch": "2"}}
    data = b""
    for index in range(rng.randrange(1, 7)):
        dtype = rng.choice(["F32"] * 8 + [name for name, _ in DTYPES.values()])
        shape = [rng.choice([0, 1, 2, 3, 4, 4, 8, 8, 32]) for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 3, 4, 5]))]
        size = next(size for name, size in DTYPES.values() if name == dtype)
        for length in shape:
            size *= length
        small = [rng.randrange(2) if dtype == "BOOL" else rng.choice([0, 0, 0, 1, 255, 60]) for _ in range(size)]
        header[f"t{index}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(small)
        nodes.append([1, [f"t{index}"], {}, 0])
    tensors = len(nodes)
    schema = schema_of(op).arguments
    args = [argument(rng, item, tensors) for item in schema if not item.kwarg_only]
    kwargs = {item.name: argument(rng, item, tensors) for item in schema if item.kwarg_only and rng.random() < 0.7}
    nodes.append([2, args, kwargs, 0])
    output: Any = {"n": len(nodes) - 1}
    returns = schema_of(op).returns
    ops = ["input", "tensor", op]
    if len(returns) > 1 or str(returns[0].real_type) == "List[Tensor]":
        ops.append("getitem")
        nodes.append([3, [output, rng.randrange(2)], {}, 0])
        output = {"n": len(nodes) - 1}
    spec = {"shape": [None, 3, 8, 8], "dtype": "float32"}
    # What comes out is not known: the first run says it, and the file is checked against that.
    graph = {"inputs": [spec], "outputs": [], "ops": ops, "modules": [""], "nodes": nodes, "output": output}
    return joined(header, graph, data)


def mutant(number: int, files: list[bytes]) -> bytes:
    """Return the file of a mutant."""
    rng = random.Random(number)
    if rng.random() < 0.4:
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
            content = joined(header, json.loads(graph_to_json(Graph(bare.inputs, bare.nodes, bare.output, outputs))), data)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        pass  # damaged beyond what this script understands; the loader must say so itself
    except SutureError:
        return False
    path.write_bytes(content)
    try:
        declared = parts(content)[1]["inputs"]
        shapes = [[3 if size is None else size for size in spec["shape"]] for spec in declared]
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
            assert all(want in (None, have) for want, have in zip(spec.shape, tensor.shape, strict=True)), (spec, tensor.shape)
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
