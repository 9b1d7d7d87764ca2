"""Checking a file of stitches before it leaves: the tensors its candidate set names, finite numbers, nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from suture_contract.documents import CandidateSet, Gate, Stitch
from suture_contract.errors import SutureError
from suture_contract.kinds import STITCHES
from suture_contract.model.format import MAX_HEADER, MAX_VALUES
from suture_contract.structure import holds_more

#: Where a tensor belongs, by letters and numbers: `p00.0_1.weight`, `r01.g00.weight`.
_WEIGHT = re.compile(r"(?:[a-z][0-9]{1,4}\.){1,3}(?:[0-9]{1,3}_[0-9]{1,3}\.)?weight", re.ASCII)
_MAX_SIZE = 2**20
_CHUNK = 2**22


def check_stitches(path: Path, candidates: CandidateSet) -> None:
    """Raise `SutureError` `outbox.refused` unless `path` holds exactly the tensors of `candidates`, in float32.

    There is one way to write them: names in order, no byte between or after them, a header that says nothing else, and
    sizes that follow from one number of channels per stitch point.
    """
    text, header = header_of(path)
    if not _only_sizes(header.get("__metadata__", {"input_shape": "1"})):
        _refuse("its header holds more than tensors")
    metadata = header.pop("__metadata__", None)
    shapes = {name: _shape(name, entry) for name, entry in header.items()}
    if shapes.keys() != _names(candidates):
        _refuse("its tensors are not those of the candidates")
    _check_sizes(shapes, candidates)
    check_bytes(path, text, metadata, shapes)


def check_bytes(path: Path, text: bytes, metadata: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `SutureError` `outbox.refused` unless the file is the only one with this header, and its numbers finite."""
    if text != _canonical(metadata, shapes):
        _refuse("its header is not as short as it can be", path.name)
    if 8 + len(text) + 4 * sum(map(math.prod, shapes.values())) != path.stat().st_size:
        _refuse("it holds bytes that belong to no tensor", path.name)
    _check_finite(path, 8 + len(text))


def _names(candidates: CandidateSet) -> set[str]:
    holders: list[Stitch | Gate] = [item.gate for item in candidates.candidates if item.gate is not None]
    for item in candidates.candidates:
        holders += [stitch for match in item.matches for stitch in match.stitches]
    for holder in holders:
        if _WEIGHT.fullmatch(holder.weight) is None or holder.bias != f"{holder.weight.removesuffix('weight')}bias":
            _refuse("a tensor has another name than it needs")
    return {name for holder in holders for name in (holder.weight, holder.bias)}


def _check_sizes(shapes: Mapping[str, tuple[int, ...]], candidates: CandidateSet) -> None:
    """Check that weights and biases fit one number of channels for each stitch point."""
    channels: dict[tuple[int, str], int] = {}

    def expect(weight: str, bias: str, rows: int, columns: int) -> None:
        if shapes[weight] != (rows, columns) or shapes[bias] != (rows,):
            _refuse(f"{weight} and {bias} are not of the size that belongs to their points")

    for match in (match for item in candidates.candidates for match in item.matches):
        for stitch in match.stitches:
            if len(shapes[stitch.weight]) != 2 or not {str(stitch.source), str(stitch.target)} <= match.points.keys():
                _refuse(f"{stitch.weight} is no map between two matched points")
            for axis, member in enumerate((stitch.target, stitch.source)):
                channels.setdefault((member, match.points[str(member)]), shapes[stitch.weight][axis])
            size = [channels[member, match.points[str(member)]] for member in (stitch.target, stitch.source)]
            expect(stitch.weight, stitch.bias, *size)
    for gate in (item.gate for item in candidates.candidates if item.gate is not None):
        known = [channels.get((int(member), point)) for member, point in gate.points.items()]
        rows = shapes[gate.bias][0]
        width = shapes[gate.weight][-1] if None in known else sum(size for size in known if size is not None)
        if rows > width:
            _refuse(f"{gate.weight} looks in more directions than there are channels")
        expect(gate.weight, gate.bias, rows, width)


def header_of(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return a safetensors file's header, as text and as what it says; raises `SutureError` `outbox.refused`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            _refuse("its header is too large", path.name)
        text = file.read(length)
    try:
        header = json.loads(text.decode()) if not holds_more(text, MAX_VALUES) else None
    except (ValueError, RecursionError):
        _refuse("it is not a safetensors file", path.name)
    if not isinstance(header, dict):
        _refuse("it is not a safetensors file", path.name)
    return text, header


def _only_sizes(metadata: Any) -> bool:
    """Whether a header says nothing but the inputs' shape: `{"input_shape": "1,28,28"}`."""
    if not isinstance(metadata, dict) or metadata.keys() != {"input_shape"}:
        return False
    text = metadata["input_shape"]
    return isinstance(text, str) and re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6}){0,3}", text, re.ASCII) is not None


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    """Return a tensor's shape, one or two sizes."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
        _refuse(f"{name[:64]} is not float32" if name.isascii() and name.isprintable() else "a tensor is not float32")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) not in (1, 2):
        _refuse("a tensor has no valid shape")
    if not all(type(size) is int and 1 <= size <= _MAX_SIZE for size in shape):
        _refuse("a tensor has no valid shape")
    return tuple(shape)


def _canonical(metadata: Any, shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the header that safetensors writes for float32 tensors of these shapes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name in sorted(shapes):
        end = position + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _check_finite(path: Path, start: int) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            if not np.isfinite(np.frombuffer(chunk, dtype="<f4")).all():
                _refuse("it holds numbers that are not finite", path.name)


def _refuse(problem: str, where: str = STITCHES) -> NoReturn:
    raise SutureError("outbox.refused", problem, where=where)
