"""Checking a file of moments before it leaves: those of the places that were asked for, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from suture_contract.contributions import Described
from suture_contract.errors import SutureError
from suture_contract.kinds import MOMENTS
from suture_worker.egress.tensors import check_bytes, header_of

#: `0.6x6.train.mean`: which placement, on which grid of its members' maps, of which split, mean or upper triangle.
_NAME = re.compile(
    r"(0|[1-9][0-9]?)\.((?:1|[1-9][0-9]{0,4})(?:x[1-9][0-9]{0,4}){0,2})\.(train|validation)\.(mean|scatter)", re.ASCII
)
_MOST_FEATURES = 2**16


def check_moments(path: Path, described: Described) -> None:
    """Raise `SutureError` `outbox.refused` unless `path` holds the moments that `described` speaks of, in float32.

    There is one way to write them: see `tensors`. Each placement has moments of both splits, of one number of features,
    on as many grids as it has members at most. Of a scatter there is one triangle: it is symmetric in any case.
    """
    text, header = header_of(path)
    metadata = header.pop("__metadata__", None)
    if metadata != {"described": described.to_json()}:
        _refuse("its header says something else than the task")
    shapes = {name: _shape(entry) for name, entry in header.items()}
    widths: dict[int, set[int]] = {}
    parts: dict[tuple[int, str], set[tuple[str, str]]] = {}
    for name, size in shapes.items():
        if (parsed := _NAME.fullmatch(name)) is None or int(parsed[1]) >= len(described.placements):
            _refuse("a tensor belongs to no place")
        place = int(parsed[1])
        width = size if parsed[4] == "mean" else _side(size)
        widths.setdefault(place, set()).add(width)
        parts.setdefault((place, parsed[2]), set()).add((parsed[3], parsed[4]))
    if any(len(own) != 4 for own in parts.values()) or any(len(own) != 1 for own in widths.values()):
        _refuse("the tensors of a place do not belong together")
    for place, members in enumerate(described.placements):
        if not 1 <= sum(index == place for index, _ in parts) <= len(members):
            _refuse("a place has too many grids, or none")
    check_bytes(path, text, metadata, {name: (size,) for name, size in shapes.items()})


def _side(numbers: int) -> int:
    """Return the side of a square whose upper triangle, diagonal included, has so many numbers."""
    side = int((2 * numbers) ** 0.5)
    return side if side * (side + 1) == 2 * numbers else 0


def _shape(entry: Any) -> int:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
        _refuse("a tensor is not float32")
    shape: Sequence[Any] = entry["shape"] if isinstance(entry["shape"], list) else ()
    if len(shape) != 1 or type(shape[0]) is not int or not 1 <= shape[0] <= _MOST_FEATURES**2:
        _refuse("a tensor has no valid shape")
    return shape[0]


def _refuse(problem: str) -> NoReturn:
    raise SutureError("outbox.refused", problem, where=MOMENTS)
