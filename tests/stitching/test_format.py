"""The file: what is written is read again, and every damaged or hostile file is refused with its own message."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from suture_contract.errors import SutureError
from suture_contract.model import format as portable_format
from suture_contract.model.format import check_against, check_file, graph_from_json, graph_to_json, read_header
from suture_contract.model.graph import DType, Graph, Input, Node, Ref, SameDevice
from suture_contract.model.metadata import InputSpec, ModelMetadata, OutputSpec
from suture_contract.model.operators import ATEN, OPERATORS
from suture_stitching.portable.runtime import save

GRAPH = Graph(
    (Input((None, 3), "float32"),),
    (
        Node("input", (0,)),
        Node("tensor", ("fc.weight",)),
        Node("tensor", ("fc.bias",)),
        Node("aten.linear.default", (Ref(0), Ref(1), Ref(2)), {}, "fc"),
        Node("aten.clamp.default", (Ref(3), float("-inf"), 2.5)),
        Node("aten.sym_size.int", (Ref(0), 0)),
        Node("aten.zeros.default", ((Ref(5), 4),), {"dtype": DType("float32"), "device": SameDevice()}),
        Node("aten.cat.default", ((Ref(4), Ref(6)), 1)),
    ),
    {"y": (Ref(7), Ref(4))},
    (Input((None, 8), "float32"), Input((None, 4), "float32")),
)
TENSORS = {"fc.weight": torch.arange(12.0).reshape(4, 3), "fc.bias": torch.ones(4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(GRAPH, TENSORS, path)
    return path


def code_of(path: Path) -> SutureError:
    with pytest.raises(SutureError) as refused:
        check_file(path)
    assert refused.value.message
    assert refused.value.hint
    return refused.value


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], *, data: bytes | None = None) -> Path:
    """Change the header (and, within it, the graph), and write the file again with its bytes unchanged."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    graph = json.loads(header["__metadata__"]["graph"])
    change(header, graph)
    if "__metadata__" in header and "graph" in header["__metadata__"]:
        header["__metadata__"]["graph"] = json.dumps(graph)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (content[8 + length :] if data is None else data))
    return path


def test_a_graph_comes_back_from_its_text():
    assert graph_from_json(graph_to_json(GRAPH)) == GRAPH


def test_what_is_written_is_read(path):
    header = check_file(path)
    assert header.graph == GRAPH
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "fc.weight": ("float32", (4, 3)),
        "fc.bias": ("float32", (4,)),
    }
    assert header.size == path.stat().st_size
    assert set(header.metadata) == {"format", "version", "graph", "torch"}


def test_only_the_header_is_read(path):
    asked = []

    def read(offset: int, length: int) -> bytes:
        asked.append(offset + length)
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    header = read_header(read, path.stat().st_size)
    assert max(asked) == header.data_start


class Other:
    """Files of other kinds that people will try to share."""

    @staticmethod
    def pickle(path: Path) -> str:
        path.write_bytes(pickle.dumps({"w": [1.0]}))
        return "this is a pickle"

    @staticmethod
    def old_pickle(path: Path) -> str:
        path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=2))
        return "this is a pickle"

    @staticmethod
    def state_dict(path: Path) -> str:
        torch.save({"w": torch.ones(2)}, path)
        return "zip archive"

    @staticmethod
    def legacy_state_dict(path: Path) -> str:
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
        return "this is a pickle"

    @staticmethod
    def exported_program(path: Path) -> str:
        program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(2, 3),))
        with path.open("wb") as file:
            torch.export.save(program, file)
        return "zip archive"

    @staticmethod
    def weights_alone(path: Path) -> str:
        from safetensors.torch import save_file

        save_file({"w": torch.ones(2)}, path)
        return "without an operator graph"

    @staticmethod
    def numpy_array(path: Path) -> str:
        with path.open("wb") as file:
            np.save(file, np.ones(3))
        return "not a model file"


@pytest.mark.parametrize("kind", [name for name in vars(Other) if not name.startswith("_")])
def test_other_files_are_told_apart_and_never_opened(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    says = getattr(Other, kind)(path)
    error = code_of(path)
    assert error.code == "model.not_portable"
    assert says in error.message
    assert "export" in error.hint


def test_a_header_whose_length_begins_like_a_pickle(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = 0x010280
    header = content[8 : 8 + length].ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + content[8 + length :])
    assert check_file(path).graph == GRAPH


def test_an_empty_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    error = code_of(path)
    assert error.code == "model.empty"
    assert "upload" not in str(error.hint), "it is read on every machine, mostly before anything was sent"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SutureError) as refused:
        check_file(tmp_path / "absent.safetensors")
    assert refused.value.code == "model.unreadable"


@pytest.mark.parametrize("keep", [1, 7, 8, 100, -1, -48])
def test_a_truncated_file(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    assert code_of(path).code == "model.truncated"


def test_bytes_after_the_tensors(path):
    path.write_bytes(path.read_bytes() + b"hidden")
    assert code_of(path).code == "model.tensors"


def test_a_header_that_claims_too_much(path):
    content = path.read_bytes()
    path.write_bytes((2**40).to_bytes(8, "little") + content[8:])
    assert code_of(path).code == "model.header"


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], graph: dict[str, Any]) -> None:
        target: Any = {"header": header, "graph": graph}
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


def _drop(*keys: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], graph: dict[str, Any]) -> None:
        target: Any = {"header": header, "graph": graph}
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return change


META = ("header", "__metadata__")
WEIGHT = ("header", "fc.weight")
#: What is changed, the error's code, and a word of its message.
HOSTILE = {
    "no metadata": (_drop(*META), "model.not_portable", "without an operator graph"),
    "other format": (_set(*META, "format", value="pt"), "model.not_portable", ""),
    "newer version": (_set(*META, "version", value="2"), "model.version", "version '2'"),
    "unknown metadata": (_set(*META, "script", value="import os"), "model.header", "exactly"),
    "metadata not text": (_set(*META, "torch", value=["2"]), "model.header", "texts"),
    "unknown dtype": (_set(*WEIGHT, "dtype", value="F8_E5M2"), "model.tensors", "fc.weight"),
    "unknown tensor field": (_set(*WEIGHT, "strides", value=[1]), "model.tensors", "fc.weight"),
    "negative size": (_set(*WEIGHT, "shape", value=[-4, -3]), "model.tensors", "fc.weight"),
    "size true": (_set(*WEIGHT, "shape", value=[True, 12]), "model.tensors", "fc.weight"),
    "wrong size": (_set(*WEIGHT, "shape", value=[4, 4]), "model.tensors", "its shape needs 64"),
    "huge size": (_set(*WEIGHT, "shape", value=[2**40, 2**40]), "model.tensors", "its shape needs"),
    "too many dimensions": (_set(*WEIGHT, "shape", value=[1] * 9 + [12]), "model.tensors", "no valid shape"),
    "overlapping": (_set(*WEIGHT, "data_offsets", value=[0, 48]), "model.tensors", "overlap"),
    "gap": (_set(*WEIGHT, "data_offsets", value=[20, 68]), "model.tensors", "gap"),
    "outside the file": (_set(*WEIGHT, "data_offsets", value=[1000, 1048]), "model.tensors", "gap"),
    "backwards": (_set(*WEIGHT, "data_offsets", value=[48, 0]), "model.tensors", "bytes"),
    "bad tensor name": (
        lambda header, graph: header.update({"../../etc": header.pop("fc.weight")}),
        "model.tensors",
        "cannot be the name",
    ),
    "tensor nobody uses": (_set("graph", "nodes", 2, 1, value=["fc.weight"]), "model.tensors", "does not use"),
    "tensor that is not there": (_set("graph", "nodes", 2, 1, value=["fc.other"]), "model.tensors", "does not hold"),
    "operator outside the list": (
        _set("graph", "ops", 2, value="aten.from_file.default"),
        "model.operator",
        "from_file",
    ),
    "operator by another name": (_set("graph", "ops", 2, value="aten.linear"), "model.operator", "aten.linear"),
    "operator in place": (_set("graph", "ops", 2, value="aten.relu_.default"), "model.operator", "relu_"),
    "python operator": (_set("graph", "ops", 2, value="builtins.exec"), "model.operator", "builtins.exec"),
    "operator twice": (_set("graph", "ops", 2, value="aten.cat.default"), "model.graph", "twice"),
    "unknown field": (_set("graph", "hooks", value=[]), "model.graph", "hooks"),
    "missing field": (_drop("graph", "modules"), "model.graph", "modules"),
    "unknown field of an input": (_set("graph", "inputs", 0, "name", value="x"), "model.graph", "name"),
    "no input": (_set("graph", "inputs", value=[]), "model.graph", "no input"),
    "input size true": (_set("graph", "inputs", 0, "shape", value=[None, True]), "model.graph", "size"),
    "input of unknown type": (_set("graph", "inputs", 0, "dtype", value="complex64"), "model.graph", "complex64"),
    "forward reference": (_set("graph", "nodes", 3, 1, 0, value={"n": 4}), "model.graph", "does not come before"),
    "reference to itself": (_set("graph", "nodes", 3, 1, 0, value={"n": 3}), "model.graph", "does not come before"),
    "negative reference": (_set("graph", "nodes", 3, 1, 0, value={"n": -1}), "model.graph", "does not come before"),
    "reference true": (_set("graph", "nodes", 3, 1, 0, value={"n": True}), "model.graph", "does not come before"),
    "unknown tag": (_set("graph", "nodes", 3, 1, 0, value={"path": "/etc"}), "model.graph", "no argument"),
    "two tags": (_set("graph", "nodes", 3, 1, 0, value={"n": 0, "d": "bool"}), "model.graph", "exactly one"),
    "unknown dtype tag": (_set("graph", "nodes", 3, 1, 0, value={"d": "object"}), "model.graph", "no argument"),
    "another device": (_set("graph", "nodes", 6, 2, "device", value={"device": "cuda"}), "model.graph", "no argument"),
    "unknown argument name": (_set("graph", "nodes", 3, 2, "__class__", value=1), "model.graph", "__class__"),
    "long text": (_set("graph", "nodes", 3, 1, 0, value="x" * 300), "model.graph", "text"),
    "text with a newline": (_set("graph", "nodes", 3, 1, 0, value="a\nb"), "model.graph", "text"),
    "large number": (_set("graph", "nodes", 3, 1, 0, value=2**63), "model.graph", "64 bits"),
    "operator index": (_set("graph", "nodes", 3, 0, value=99), "model.graph", "index"),
    "operator index true": (_set("graph", "nodes", 3, 0, value=True), "model.graph", "index"),
    "module index": (_set("graph", "nodes", 3, 3, value=-1), "model.graph", "index"),
    "module path": (_set("graph", "modules", 1, value="a b;c"), "model.graph", "module path"),
    "input index": (_set("graph", "nodes", 0, 1, value=[1]), "model.graph", "index"),
    "node too long": (_set("graph", "nodes", 3, value=[2, [], {}, 0, "x"]), "model.graph", "node"),
    "no nodes": (_set("graph", "nodes", value=[]), "model.graph", "nodes"),
    "deep argument": (
        _set("graph", "nodes", 3, 1, 0, value=json.loads("[" * 40 + "]" * 40)),
        "model.graph",
        "nested deeper",
    ),
    "output later": (_set("graph", "output", value={"n": 8}), "model.graph", "output node"),
    "output of code": (_set("graph", "output", value={"call": "x"}), "model.graph", "output"),
    "output deep": (
        _set("graph", "output", value=json.loads("[" * 40 + '{"n":0}' + "]" * 40)),
        "model.graph",
        "deeper",
    ),
    "outputs not described": (_set("graph", "outputs", value=[]), "model.graph", "outputs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(path, name):
    change, code, says = HOSTILE[name]
    error = code_of(rewrite(path, change))
    assert error.code == code
    assert says in error.message


def test_offsets_that_end_after_the_file(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    rewrite(path, lambda header, graph: None, data=content[8 + length : -4])
    assert code_of(path).code == "model.truncated"


@pytest.mark.parametrize(
    ("find", "put"),
    [
        (b'"fc.bias":', b'"fc.weight":'),
        (b'\\"ops\\":', b'\\"nodes\\":[],\\"ops\\":'),
        (b'"version":"1"', b'"version":"1","version":"1"'),
    ],
    ids=["tensor", "graph field", "metadata"],
)
def test_a_key_given_twice(path, find, put):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    assert find in header
    header = header.replace(find, put)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    error = code_of(path)
    assert error.code == "model.graph"
    assert "twice" in error.message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "NaN", "nonsense", "[1e999]", "9" * 5000, '"\ud800"'])
def test_text_that_is_no_graph(text):
    with pytest.raises(SutureError) as refused:
        graph_from_json(text)
    assert refused.value.code == "model.graph"


@pytest.mark.parametrize(("limit", "value"), [("MAX_JSON", 100), ("MAX_BRACKETS", 10), ("MAX_NODES", 3)])
def test_limits_of_the_graph(monkeypatch, limit, value):
    from suture_contract.model import graph_json

    text = graph_to_json(GRAPH)
    monkeypatch.setattr(graph_json, limit, value)
    with pytest.raises(SutureError) as refused:
        graph_from_json(text)
    assert refused.value.code == "model.graph"


def test_limit_of_tensors(monkeypatch, path):
    monkeypatch.setattr(portable_format, "MAX_TENSORS", 1)
    assert code_of(path).code == "model.tensors"


def metadata(**changes: Any) -> ModelMetadata:
    content: dict[str, Any] = {
        "schema": "suture.model/1",
        "task": "classification",
        "inputs": {"image": InputSpec(num_channels=3, spatial_shape=(8, 8))},
        "outputs": {"class": OutputSpec(num_channels=2)},
        "labels": ("a", "b"),
        "license": "mit",
    } | changes
    return ModelMetadata.model_validate(content)


def header_of(inputs: tuple[Input, ...], outputs: tuple[Input, ...], names: tuple[str, ...] = ()) -> Any:
    output = {name: Ref(0) for name in names} if names else tuple(Ref(0) for _ in outputs)
    graph = Graph(inputs, (Node("input", (0,)),), output, outputs)
    return portable_format.PortableHeader(graph, {}, {}, 0, 0)


IMAGE, CLASSES = (Input((None, 3, 8, 8), "float32"),), (Input((None, 2), "float32"),)


def test_metadata_that_fits():
    check_against(header_of(IMAGE, CLASSES), metadata())
    check_against(header_of((Input((None, 3, None, None), "float32"),), CLASSES), metadata())


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        (
            (Input((None, 1, 8, 8), "float32"),),
            CLASSES,
            "inputs.image is described as (3, 8, 8), the graph has (1, 8, 8)",
        ),
        ((Input((None, 3, 8, 9), "float32"),), CLASSES, "(3, 8, 9)"),
        ((Input((None, 3), "float32"),), CLASSES, "(3)"),
        ((Input((None, 3, 8, 8), "float64"),), CLASSES, "float64"),
        (IMAGE * 2, CLASSES, "2"),
        (IMAGE, (Input((None, 5), "float32"),), "outputs.class is described as (2), the graph has (5)"),
        (IMAGE, (Input((None, 2, 8, 8), "float32"),), "outputs.class"),
        (IMAGE, CLASSES * 2, "2"),
    ],
)
def test_metadata_that_names_other_sizes(inputs, outputs, says):
    with pytest.raises(SutureError) as refused:
        check_against(header_of(inputs, outputs), metadata())
    assert refused.value.code == "metadata.mismatch"
    assert says in refused.value.message


def test_metadata_that_claims_any_size_for_a_fixed_one():
    free = metadata(inputs={"image": InputSpec(num_channels=3, spatial_shape=(None, None))})
    with pytest.raises(SutureError):
        check_against(header_of(IMAGE, CLASSES), free)


def test_outputs_are_compared_by_name_where_they_have_names():
    two = {"b": OutputSpec(num_channels=2), "a": OutputSpec(num_channels=4)}
    outputs = (Input((None, 4), "float32"), Input((None, 2), "float32"))
    check_against(header_of(IMAGE, outputs, ("a", "b")), metadata(outputs=two))
    with pytest.raises(SutureError):
        check_against(header_of(IMAGE, outputs, ("b", "a")), metadata(outputs=two))


def test_the_hub_needs_no_torch():
    modules = ["format", "graph", "graph_json", "operators", "metadata"]
    code = ";".join(f"import suture_stitching.portable.{module}" for module in modules)
    code += ";import suture_contract.documents, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_every_operator_on_the_list_is_known_to_torch_and_changes_nothing():
    from suture_stitching.portable.schemas import FUNCTIONS, schema_of

    assert set(FUNCTIONS) == OPERATORS
    for op in ATEN:
        schema = schema_of(op)
        assert not schema.is_mutable
        assert schema.name.startswith("aten::")
        assert not any(argument.is_out for argument in schema.arguments)
