"""Weights that are no numbers: found by the bytes, a piece at a time, without torch or numpy.

In every floating-point type, NaN and infinity have all bits of the exponent set. That is looked for in the two highest
bytes of each number, by operations on whole pieces; only a piece that has such bytes is read number by number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from suture_contract.errors import SutureError
from suture_contract.model.format import PortableHeader, TensorInfo

_PIECE = 4 * 1024 * 1024
#: By type: bytes of a number, and the highest bytes, sign included, that NaN and infinity can have.
_HIGHEST: dict[str, tuple[int, bytes]] = {
    "float64": (8, b"\x7f\xff"),
    "float32": (4, b"\x7f\xff"),
    "bfloat16": (2, b"\x7f\xff"),
    "float16": (2, b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff"),
}
_FORMAT = {"float64": "d", "float32": "f", "float16": "e"}


def check_finite(
    read: Callable[[int, int], bytes], header: PortableHeader, *, where: str = "model.safetensors"
) -> None:
    """Raise `SutureError` `model.not_finite` naming a tensor that holds NaN, or infinity where it is not a mask.

    A tensor of nothing but 0, 1 and infinity is the mask of an attention, and allowed. `read(offset, length)` returns
    bytes of the file, all of whose weights are read.
    """
    for name, info in header.tensors.items():
        if info.dtype not in _HIGHEST:
            continue
        numbers = [
            number for piece in _pieces(read, info, header.data_start) for number in _suspicious(piece, info.dtype)
        ]
        if not numbers:
            continue
        nan = any(map(math.isnan, numbers))
        if nan or not _is_mask(read, info, header.data_start):
            raise SutureError(
                "model.not_finite",
                f"the weights {name} hold {'NaN' if nan else 'infinite values'}",
                where=where,
                hint="training went wrong: take an earlier checkpoint, where all weights are numbers",
            )


def check_finite_file(path: Path, header: PortableHeader, *, where: str = "model.safetensors") -> None:
    """Do the same for the file at `path`, of which `header` was read."""
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        check_finite(read, header, where=where)


def _pieces(read: Callable[[int, int], bytes], info: TensorInfo, start: int) -> Iterator[bytes]:
    for offset in range(info.start, info.end, _PIECE):
        yield read(start + offset, min(_PIECE, info.end - offset))


def _suspicious(piece: bytes, dtype: str) -> set[float]:
    """Return what the piece holds that is no finite number."""
    size, high = _HIGHEST[dtype]
    highest = piece[size - 1 :: size]
    # Looked for one by one: the C library does that for a single byte many at a time.
    if not any(byte in highest for byte in high):
        return set()
    return {number for number in _numbers(piece, dtype) if not math.isfinite(number)}


def _is_mask(read: Callable[[int, int], bytes], info: TensorInfo, start: int) -> bool:
    plain = (0.0, 1.0, math.inf, -math.inf)
    return all(number in plain for piece in _pieces(read, info, start) for number in _numbers(piece, info.dtype))


def _numbers(piece: bytes, dtype: str) -> Iterator[float]:
    if dtype == "bfloat16":  # the upper half of a float32
        pairs = (b"\0\0" + piece[at : at + 2] for at in range(0, len(piece), 2))
        return (struct.unpack("<f", pair)[0] for pair in pairs)
    return (number for (number,) in struct.iter_unpack("<" + _FORMAT[dtype], piece))
