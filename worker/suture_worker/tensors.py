"""Checking a file of stitches before it leaves: the tensors its candidate set names, finite numbers, nothing else."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from suture_stitching.documents import CandidateSet, Gate
from suture_stitching.errors import SutureError
from suture_worker.lease import STITCHES

_MAX_HEADER = 16 * 2**20
_CHUNK = 2**22


def check_stitches(path: Path, candidates: CandidateSet) -> None:
    """Raise `SutureError` unless `path` holds exactly the tensors of `candidates`, in float32 (`outbox.refused`)."""
    header, start = _header(path)
    header.pop("__metadata__", None)
    ranks = _ranks(candidates)
    if header.keys() != ranks.keys():
        _refuse("its tensors are not those of the candidates")
    position = 0
    for entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        position = _check_tensor(*entry, position, ranks)
    if start + position != path.stat().st_size:
        _refuse("it holds bytes that belong to no tensor")
    _check_finite(path, start)


def _gates(candidates: CandidateSet) -> list[Gate]:
    return [item.gate for item in candidates.candidates if item.gate is not None]


def _ranks(candidates: CandidateSet) -> dict[str, int]:
    """Return how many dimensions each tensor has."""
    ranks: dict[str, int] = {}
    for item in candidates.candidates:
        for match in item.matches:
            for stitch in match.stitches:
                ranks |= {stitch.weight: 2, stitch.bias: 1}
    for gate in _gates(candidates):
        ranks |= {gate.weight: 2, gate.bias: 1}
    return ranks


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            _refuse("its header is too large")
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError:
        _refuse("it is not a safetensors file")
    if not isinstance(header, dict) or not _only_sizes(header.get("__metadata__", {})):
        _refuse("its header holds more than tensors")
    return header, 8 + length


def _only_sizes(metadata: Any) -> bool:
    """Whether a header says nothing but the inputs' shape: `{"input_shape": "1,28,28"}`."""
    if not isinstance(metadata, dict) or not metadata.keys() <= {"input_shape"}:
        return False
    return all(
        isinstance(text, str) and re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7}){0,3}", text) for text in metadata.values()
    )


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        _refuse("a tensor has no place")
    return offsets[0], offsets[1]


def _check_tensor(name: str, entry: dict[str, Any], position: int, ranks: dict[str, int]) -> int:
    """Check one tensor's description, which starts at `position`, and return where it ends."""
    start, end = _offsets(entry)
    shape = entry.get("shape")
    if entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
        _refuse(f"{name} is not float32")
    if not isinstance(shape, list) or len(shape) != ranks[name] or not all(type(size) is int for size in shape):
        _refuse(f"{name} has no valid shape")
    if start != position or end - start != 4 * math.prod(shape):
        _refuse(f"{name} is not where it should be")
    return end


def _check_finite(path: Path, start: int) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            if not np.isfinite(np.frombuffer(chunk, dtype="<f4")).all():
                _refuse("it holds numbers that are not finite")


def _refuse(problem: str) -> NoReturn:
    raise SutureError("outbox.refused", problem, where=STITCHES)
