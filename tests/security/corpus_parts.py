"""Model files put together, or spoilt, piece by piece."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.security.mutants import Parts, call, empty, fill, joined, stated

NEW = {"dtype": {"d": "float32"}, "device": {"device": "input"}}


def of_calls(calls: list[Any], rng: random.Random) -> bytes:
    """Return one model that makes all these calls and returns all their results."""
    header, graph, _ = empty([])
    known = {"input": 0, "tensor": 1}
    outputs = []
    for position, given in enumerate(calls):
        tensors, inner, _ = call(*given)
        place = {0: 0}
        for index, (op, args, kwargs, module) in enumerate(inner["nodes"]):
            if index == 0:
                continue
            name = inner["ops"][op]
            if name == "tensor":
                own = f"c{position}.{args[0]}"
                header[own] = tensors[args[0]]
                args = [own]
            node = [known.setdefault(name, len(known)), moved(args, place), moved(kwargs, place), module]
            graph["nodes"].append(node)
            place[index] = len(graph["nodes"]) - 1
        outputs.append({"n": place[inner["output"]["n"]]})
    graph["ops"], graph["output"] = list(known), outputs
    stated(header, graph)
    return joined(header, graph, fill(rng, header))


def moved(value: Any, place: dict[int, int]) -> Any:
    """Return an argument with its references put to other nodes."""
    if isinstance(value, dict):
        return {key: place[item] if key == "n" else moved(item, place) for key, item in value.items()}
    return [moved(item, place) for item in value] if isinstance(value, list) else value


def model(
    *nodes: tuple[str, list[Any]] | tuple[str, list[Any], dict[str, Any]], **tensors: tuple[str, list[int]]
) -> Parts:
    """Return a model whose node 0 is the input, followed by its tensors and these nodes; the last is the output."""
    header, graph, _ = empty(list(tensors.values()))
    known = {"input": 0, "tensor": 1}
    for op, args, *kwargs in nodes:
        graph["nodes"].append([known.setdefault(op, len(known)), args, kwargs[0] if kwargs else {}, 0])
    graph["ops"], graph["output"] = list(known), {"n": len(graph["nodes"]) - 1}
    graph["outputs"] = [{"shape": [None], "dtype": "float32"}]
    return header, graph, b""


def written(given: Parts, data: bytes | None = None) -> bytes:
    """Return the file of a model; what it returns is stated if it runs dry."""
    header, graph, _ = given
    filled = fill(random.Random(0), header)
    return joined(header, graph, filled if data is None else data)


def linear() -> Parts:
    """A model in good order, to which something is done."""
    header, graph, _ = empty([("F32", [4, 8]), ("F32", [4])])
    graph["ops"] += ["aten.linear.default", "aten.relu.default"]
    graph["modules"] = ["", "head"]
    graph["nodes"] += [[2, [{"n": 0}, {"n": 1}, {"n": 2}], {}, 1], [3, [{"n": 3}], {}, 0]]
    graph["output"] = {"n": 4}
    graph["outputs"] = [{"shape": [None, 3, 8, 4], "dtype": "float32"}]
    fill(random.Random(0), header)
    return header, graph, b""


def changed(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """Return the file of a model after `change(header, graph)`; its bytes stay as they are."""
    header, graph, _ = linear()
    data = fill(random.Random(0), header)
    change(header, graph)
    if isinstance(header.get("__metadata__"), dict) and "graph" not in header["__metadata__"]:
        header["__metadata__"]["graph"] = json.dumps(graph)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def retold(find: str, put: str, *, in_graph: bool = False) -> bytes:
    """Return the file with a piece of its header's text replaced."""
    content = changed(lambda header, graph: None)
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].decode()
    if in_graph:
        find, put = json.dumps(find)[1:-1], json.dumps(put)[1:-1]
    assert find in text, find
    encoded = text.replace(find, put, 1).encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]


def put_at(*keys: Any, value: Any) -> bytes:
    def change(header: dict[str, Any], graph: dict[str, Any]) -> None:
        target: Any = {"header": header, "graph": graph}
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return changed(change)


def renamed(name: str) -> bytes:
    def change(header: dict[str, Any], graph: dict[str, Any]) -> None:
        header[name] = header.pop("t1")
        graph["nodes"][2][1] = [name]

    return changed(change)


def with_op(name: str) -> bytes:
    return put_at("graph", "ops", 3, value=name)
