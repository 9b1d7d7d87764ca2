"""The portable model file: one safetensors file whose metadata holds the operator graph (torch-free).

Everything that can be checked without running anything is checked here; the hub does so on every upload. What the
arguments of operators mean is checked in `schemas`, what sizes come out in `dry_run`, both of which need torch.
The layout of safetensors: 8 bytes little-endian header length, a JSON header, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from suture_contract.errors import SutureError
from suture_contract.model.graph import INPUT, TENSOR, Graph, Input
from suture_contract.model.graph_json import (
    MAX_JSON,
    MAX_RANK,
    graph_from_json,
    graph_to_json,
    is_tensor_name,
    leaves,
    strict_json,
)
from suture_contract.model.metadata import InputSpec, ModelMetadata, OutputSpec
from suture_contract.model.operators import DTYPES
from suture_contract.model.output import check_output_format
from suture_contract.structure import holds_more

__all__ = [
    "FORMAT",
    "METADATA",
    "MODEL",
    "VERSION",
    "PortableHeader",
    "TensorInfo",
    "any_header",
    "check_against",
    "check_file",
    "check_opened",
    "find_model",
    "graph_from_json",
    "graph_to_json",
    "leaves",
    "read_header",
]

FORMAT = "suture.portable"
VERSION = "1"
#: What a model's files are called in a folder of their own.
MODEL, METADATA = "model.safetensors", "suture.json"
MAX_HEADER = 2 * MAX_JSON
MAX_TENSORS = 20_000
#: Of a header, as `holds_more` counts: a tensor has 19 of eight dimensions, and the graph is one text.
MAX_VALUES = 20 * MAX_TENSORS

_DTYPE_OF = {name: dtype for dtype, (name, _) in DTYPES.items()}
_EXPORT_AGAIN = "the file is damaged or was not written by Suture; export it again"
_EXPORT = (
    "such a file can run foreign code when it is opened, so Suture never opens it; load it where you trust it and "
    "export the module with suture.publish or portable.export"
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor's bytes lie: `[start, end)` counted from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class PortableHeader:
    """All of a portable model but its weights. `data_start` and `size` are in bytes."""

    graph: Graph
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    size: int


def read_header(read: Callable[[int, int], bytes], size: int, *, where: str = "model.safetensors") -> PortableHeader:
    """Check a file of `size` bytes, of which `read(offset, length)` returns a part, and return its header.

    Reads the header alone. Raises `SutureError` with a `model.*` code.
    """
    if size == 0:
        raise SutureError(
            "model.empty",
            "the file is empty",
            where=where,
            hint="a copy of it ended early, or nothing was written: export or copy it anew",
        )
    _refuse_other_formats(read(0, min(size, 64)), where)
    if size < 8:
        _truncated(f"the file has {size} bytes", where)
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER:
        _refuse("model.header", f"the header claims {length} bytes; at most {MAX_HEADER} are allowed", where)
    if 8 + length > size:
        _truncated(f"the header needs {8 + length} bytes, the file has {size}", where)
    text = read(8, length)
    if len(text) != length:
        _truncated(f"the header needs {length} bytes, {len(text)} could be read", where)
    if not text.startswith(b"{"):
        _refuse("model.header", "this is not a safetensors file", where)
    _must_be_utf8(text, where)
    header = strict_json(text, where, MAX_VALUES)
    metadata = _metadata(header.pop("__metadata__", None), where)
    tensors = _tensors(header, size - 8 - length, where)
    graph = graph_from_json(metadata["graph"], where=where)
    _same_tensors(graph, tensors, where)
    return PortableHeader(graph, tensors, metadata, 8 + length, size)


def any_header(read: Callable[[int, int], bytes], size: int) -> dict[str, Any] | None:
    """Return what stands in the header of any whole safetensors file, unchecked; None where it cannot be read.

    None, too, where it holds more than a file of Suture's does.
    """
    length = int.from_bytes(read(0, 8), "little") if size >= 8 else size
    if length > min(MAX_HEADER, size - 8):
        return None
    text = read(8, length)
    if holds_more(text, MAX_VALUES):
        return None
    try:
        header = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the model's file: `path` itself, or `model.safetensors` (or the only `.safetensors`) in the folder."""
    path = Path(path)
    if not path.is_dir():
        if path.exists() and not path.is_file():  # to open a pipe would wait for whoever writes to it
            raise SutureError("model.unreadable", "this is no file", where=str(path), hint="name the model's file")
        return path
    paths = sorted(path.glob("*.safetensors"))
    if path / MODEL in paths:
        return path / MODEL
    if len(paths) != 1:
        raise SutureError(
            "model.unreadable",
            f"the folder holds {len(paths) or 'no'} .safetensors files, and none is named {MODEL}",
            where=str(path),
            hint="name the file itself; other formats must be exported first, with suture export or portable.export",
        )
    return paths[0]


def check_file(path: str | Path) -> PortableHeader:
    """Check the portable model at `path` and return its header; raises `SutureError` with a `model.*` code."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return check_opened(file, where=path.name)
    except OSError as error:
        raise SutureError("model.unreadable", error.strerror or "cannot be read", where=str(path)) from error


def check_opened(file: BinaryIO, *, where: str) -> PortableHeader:
    """Check the portable model that was opened as `file` as `check_file` does; raises `OSError`, too."""
    size = file.seek(0, 2)

    def read(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    return read_header(read, size, where=where)


def check_against(header: PortableHeader, metadata: ModelMetadata, *, where: str = "suture.json") -> None:
    """Raise `SutureError` (`metadata.mismatch`, `metadata.output`) when `suture.json` says other than the graph does.

    The metadata's inputs and outputs are in the order of the graph's.
    """
    graph = header.graph
    _compare("input", metadata.inputs, graph.inputs, where)
    names = list(graph.output) if isinstance(graph.output, dict) else []
    outputs = metadata.outputs
    if len(names) == len(graph.outputs) and set(names) == set(outputs):
        outputs = {name: outputs[name] for name in names}
    _compare("output", outputs, graph.outputs, where)
    for name, (_, stated), actual in zip(metadata.inputs, metadata.inputs.items(), graph.inputs, strict=True):
        if stated.dtype != actual.dtype:
            _mismatch(f"inputs.{name}.dtype is {stated.dtype}, the graph reads {actual.dtype}", where)
    check_output_format(graph, metadata, where=where)


def _compare(kind: str, stated: Mapping[str, InputSpec | OutputSpec], actual: tuple[Input, ...], where: str) -> None:
    if len(stated) != len(actual):
        _mismatch(f"{len(stated)} {kind}(s) are described, the graph has {len(actual)}", where)
    for (name, spec), tensor in zip(stated.items(), actual, strict=True):
        described = (spec.num_channels, *spec.spatial_shape)
        sizes = tensor.shape[1:]
        # A free size in the graph takes any number; a fixed one must be stated as it is.
        if len(described) != len(sizes) or any(b is not None and a != b for a, b in zip(described, sizes, strict=True)):
            _mismatch(f"{kind}s.{name} is described as {_shape(described)}, the graph has {_shape(sizes)}", where)


def _shape(sizes: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


def _mismatch(problem: str, where: str) -> NoReturn:
    raise SutureError(
        "metadata.mismatch",
        problem,
        where=where,
        hint="describe num_channels and spatial_shape, without the batch, as the model has them",
    )


def _refuse(code: str, problem: str, where: str) -> NoReturn:
    raise SutureError(code, problem, where=where, hint=_EXPORT_AGAIN)


def _truncated(problem: str, where: str) -> NoReturn:
    raise SutureError("model.truncated", f"the file is cut short: {problem}", where=where, hint="transfer it again")


def _refuse_other_formats(start: bytes, where: str) -> None:
    problem = None
    if start.startswith(b"PK\x03\x04"):
        problem = "this is a zip archive, such as torch.save (.pt, .pth) or torch.export (.pt2) write"
    elif start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05" and start[8:9] != b"{":
        problem = "this is a pickle"
    elif start.startswith(b"\x89HDF\r\n"):
        problem = "this is an HDF5 file, such as Keras writes"
    elif start.startswith((b"\x93NUMPY", b"(dp", b"ctorch", b"GIF8")):
        problem = "this is not a model file"
    if problem:
        raise SutureError("model.not_portable", problem, where=where, hint=_EXPORT)


def _must_be_utf8(text: bytes, where: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        _refuse("model.header", "the header is not UTF-8", where)


def _metadata(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SutureError(
            "model.not_portable",
            "this safetensors file holds weights without an operator graph",
            where=where,
            hint="export the module with suture.publish or portable.export",
        )
    if content.get("version") != VERSION:
        raise SutureError(
            "model.version",
            f"format version {str(content.get('version'))[:20]!r} is not known here",
            where=where,
            hint="update Suture",
        )
    if content.keys() != {"format", "version", "graph", "torch"}:
        _refuse("model.header", "the metadata must be exactly format, version, graph and torch", where)
    if not all(isinstance(value, str) for value in content.values()) or len(content["torch"]) > 64:
        _refuse("model.header", "the metadata must be short texts", where)
    return content


def _tensors(header: dict[str, Any], data_size: int, where: str) -> dict[str, TensorInfo]:
    if len(header) > MAX_TENSORS:
        _refuse("model.tensors", f"{len(header)} tensors; at most {MAX_TENSORS} are allowed", where)
    tensors = {name: _tensor(name, entry, where) for name, entry in header.items()}
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            _refuse("model.tensors", f"the bytes of tensor {name} overlap others or leave a gap before it", where)
        position = info.end
    if position > data_size:
        _truncated(f"the tensors need {position} bytes, the file has {data_size}", where)
    if position < data_size:
        _refuse("model.tensors", f"{data_size - position} bytes belong to no tensor", where)
    return tensors


def _tensor(name: str, entry: Any, where: str) -> TensorInfo:
    if not is_tensor_name(name):
        _refuse("model.tensors", f"{name[:80]!r} cannot be the name of a tensor", where)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse("model.tensors", f"tensor {name} must have exactly dtype, shape and data_offsets", where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_OF:
        _refuse("model.tensors", f"tensor {name} has an unknown element type", where)
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_size(size) for size in shape):
        _refuse("model.tensors", f"tensor {name} has no valid shape", where)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        _refuse("model.tensors", f"tensor {name} has no valid offsets", where)
    length = DTYPES[_DTYPE_OF[dtype]][1]
    for size in shape:
        length *= size
    if offsets[1] - offsets[0] != length:
        _refuse("model.tensors", f"tensor {name} has {offsets[1] - offsets[0]} bytes, its shape needs {length}", where)
    return TensorInfo(_DTYPE_OF[dtype], tuple(shape), offsets[0], offsets[1])


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _same_tensors(graph: Graph, tensors: Mapping[str, TensorInfo], where: str) -> None:
    named = {node.args[0] for node in graph.nodes if node.op == TENSOR}
    if absent := named - tensors.keys():
        _refuse("model.tensors", f"the graph names tensor {min(map(str, absent))}, which the file does not hold", where)
    if unused := tensors.keys() - named:
        _refuse("model.tensors", f"the file holds tensor {min(unused)}, which the graph does not use", where)
    if not any(node.op == INPUT for node in graph.nodes):
        _refuse("model.graph", "the graph reads no input", where)
