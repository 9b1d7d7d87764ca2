"""Weights that are no numbers: found by the bytes, a piece at a time, without torch or numpy.

In every floating-point type, NaN and infinity have all bits of the exponent set. These lie in the two highest bytes of
a number, which are cut out of a piece and compared as a whole. No number is looked at by itself but to say what was
found: whoever sends nothing but the largest numbers there are makes nobody wait.

`Arriving` looks at a file on its way, before anybody knows its tensors: what it has seen need not be read again.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple, TypeAlias

from suture_contract.errors import SutureError
from suture_contract.model.format import MAX_HEADER, PortableHeader, TensorInfo
from suture_contract.model.operators import DTYPES

#: Fills a buffer with the bytes of a file from an offset on; returns how many there were.
ReadInto: TypeAlias = Callable[[int, memoryview], int]
_Read: TypeAlias = Callable[[int, memoryview], None]

#: What is read at once, and of that compared at once: for so long Python does nothing else.
_PIECE, _PART = 4 * 2**20, 2**20
#: While one piece is compared, the next is read.
_THREADS = 2
#: What was seen of a file on its way is at most so many suspicious stretches; more become few that are longer.
_STRETCHES = 64
#: So much of the end of a header, where its tensors are named, is looked at for the type of most: a header may be long.
_NAMED = 64 * 1024


class _Span(NamedTuple):
    """Numbers of one type that lie side by side: the first byte in the file, and the one after the last."""

    dtype: str
    start: int
    end: int


class _Part(NamedTuple):
    """Whole numbers in a buffer, from `start` to `end` (exclusive)."""

    buffer: bytearray
    start: int
    end: int

    def bytes_of(self, place: int, size: int) -> bytearray:
        """Return of each number of `size` bytes the one at `place`."""
        return self.buffer[self.start + place : self.end : size]


@dataclass(frozen=True)
class _Type:
    """`size` in bytes; the highest byte of NaN and infinity, and whether the next one goes on with their exponent.

    `plain` has for each highest byte of 0, 1 and infinity of either sign what the next one is; all others are 0.
    """

    size: int
    highest: bytes
    exponent_goes_on: bytes | None
    plain: dict[int, int]

    def holds_no_number(self, part: _Part) -> bool:
        highest = part.bytes_of(self.size - 1, self.size)
        # Looked for one by one: the C library does that for a single byte many at a time.
        if not any(byte in highest for byte in self.highest):
            return False
        if self.exponent_goes_on is None:
            return True
        full = int.from_bytes(highest.translate(_marks(self.highest)), "little")
        goes_on = part.bytes_of(self.size - 2, self.size).translate(_marks(self.exponent_goes_on))
        return full & int.from_bytes(goes_on, "little") != 0

    def is_of_a_mask(self, part: _Part) -> bool:
        if any(part.bytes_of(place, self.size).strip(b"\0") for place in range(self.size - 2)):
            return False
        # What belongs to no such number is given a byte that follows none of them.
        wanted = bytes(self.plain.get(byte, 1) for byte in range(256))
        return part.bytes_of(self.size - 1, self.size).translate(wanted) == part.bytes_of(self.size - 2, self.size)


def _marks(marked: bytes) -> bytes:
    return bytes(byte in marked for byte in range(256))


_TYPES = {
    "float64": _Type(8, b"\x7f\xff", bytes(range(0xF0, 256)), {0: 0, 0x80: 0, 0x3F: 0xF0, 0x7F: 0xF0, 0xFF: 0xF0}),
    "float32": _Type(4, b"\x7f\xff", bytes(range(0x80, 256)), {0: 0, 0x80: 0, 0x3F: 0x80, 0x7F: 0x80, 0xFF: 0x80}),
    "bfloat16": _Type(2, b"\x7f\xff", bytes(range(0x80, 256)), {0: 0, 0x80: 0, 0x3F: 0x80, 0x7F: 0x80, 0xFF: 0x80}),
    "float16": _Type(2, b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff", None, {0: 0, 0x80: 0, 0x3C: 0, 0x7C: 0, 0xFC: 0}),
}
_FORMAT = {"float64": "d", "float32": "f", "float16": "e"}


@dataclass(frozen=True)
class SeenWeights:
    """What was seen of a file's bytes on their way.

    From `start` to `end`, numbers of `dtype` are finite where they lie whole numbers of them from `start`; but for the
    stretches (start, end) that are `suspicious`. That says nothing of which tensors there are: any header is read anew.
    """

    dtype: str
    start: int
    end: int
    suspicious: tuple[tuple[int, int], ...]

    def covers(self, span: _Span) -> bool:
        """Whether all numbers of a span are known to be finite."""
        aligned = span.dtype == self.dtype and (span.start - self.start) % _TYPES[self.dtype].size == 0
        if not aligned or span.start < self.start or span.end > self.end:
            return False
        return all(end <= span.start or span.end <= start for start, end in self.suspicious)


class Arriving:
    """A file of safetensors on its way: hand it all bytes in their order, then ask what was `seen`.

    What is no such file costs nothing. The type that the end of the header names most often is looked for, unparsed:
    a wrong guess makes the check read what it would have read anyway.
    """

    def __init__(self) -> None:
        self._at, self._data_start = 0, 0
        self._named: dict[str, int] | None = dict.fromkeys(_TYPES, 0)
        self._dtype: str | None = None
        self._suspicious: list[tuple[int, int]] = []

    def update(self, content: memoryview) -> None:
        """Look at what follows on the bytes before: the first bytes of a `bytearray`, as many as are viewed."""
        buffer, length = content.obj, len(content)
        assert isinstance(buffer, bytearray), "of which every fourth byte is cut out faster than of a view"
        if self._at == 0:
            self._begin(buffer, length)
        if self._named is not None:
            end = min(self._data_start - self._at, length)
            start = min(max(self._data_start - _NAMED - self._at, 0), end)
            for dtype in self._named:
                self._named[dtype] += buffer.count(b'"%b"' % DTYPES[dtype][0].encode(), start, end)
            if self._at + length >= self._data_start:
                dtype = max(self._named, key=self._named.__getitem__)
                self._dtype, self._named = dtype if self._named[dtype] else None, None
        if self._dtype is not None:
            for start in range(max(self._data_start - self._at, 0), length, _PART):
                self._look(_TYPES[self._dtype], _Part(buffer, start, min(start + _PART, length)))
        self._at += length

    @property
    def seen(self) -> SeenWeights | None:
        """What is known of the bytes so far; None where that is nothing."""
        if self._dtype is None:
            return None
        return SeenWeights(self._dtype, self._data_start, self._at, tuple(self._suspicious))

    def _begin(self, buffer: bytearray, length: int) -> None:
        header = int.from_bytes(buffer[:8], "little")
        self._data_start = 8 + header
        if length < 9 or header > MAX_HEADER or buffer[8:9] != b"{":
            self._named = None

    def _look(self, kind: _Type, part: _Part) -> None:
        start, end = self._at + part.start, self._at + part.end
        # Of a number that lies across two parts, the one with its highest byte decides.
        highest = part.buffer[part.start + (self._data_start - start - 1) % kind.size : part.end : kind.size]
        if not any(byte in highest for byte in kind.highest):
            return
        if self._suspicious and (self._suspicious[-1][1] == start or len(self._suspicious) == _STRETCHES):
            start = self._suspicious.pop()[0]
        self._suspicious.append((start, end))


def check_finite(
    read_into: ReadInto, header: PortableHeader, *, where: str = "model.safetensors", seen: SeenWeights | None = None
) -> None:
    """Raise `SutureError` `model.not_finite` naming a tensor that holds NaN, or infinity where it is not a mask.

    A tensor of nothing but 0, 1 and infinity is the mask of an attention, and allowed. All weights are read, but for
    those of which `seen` says that they are finite.
    """

    def read(offset: int, buffer: memoryview) -> None:
        if (length := read_into(offset, buffer)) != len(buffer):
            problem = f"the file is cut short: it ends at byte {offset + length}"
            raise SutureError("model.truncated", problem, where=where, hint="transfer it again")

    tensors = {name: info for name, info in header.tensors.items() if info.dtype in _TYPES and info.start < info.end}
    spans = _spans(tensors.values(), header.data_start)
    suspicious = _suspicious(read, [span for span in spans if seen is None or not seen.covers(span)])
    starts = [span.start for span in suspicious]
    for name, info in tensors.items():
        start, end = header.data_start + info.start, header.data_start + info.end
        before = bisect_left(starts, end)
        if not before or suspicious[before - 1].end <= start:
            continue
        problem = _what_it_holds(read, _Span(info.dtype, start, end))
        if problem is not None:
            raise SutureError(
                "model.not_finite",
                f"the weights {name} hold {problem}",
                where=where,
                hint="training went wrong: take an earlier checkpoint, where all weights are numbers",
            )


def check_finite_file(path: Path, header: PortableHeader, *, where: str = "model.safetensors") -> None:
    """Do the same for the file at `path`, of which `header` was read."""
    turn = Lock()
    with path.open("rb") as file:

        def read_into(offset: int, buffer: memoryview) -> int:
            with turn:
                file.seek(offset)
                return file.readinto(buffer)

        check_finite(read_into, header, where=where)


def _spans(tensors: Iterable[TensorInfo], data_start: int) -> Iterator[_Span]:
    """Yield what to read at once: pieces of the file, whatever tensors of one type they belong to."""
    run: _Span | None = None
    for info in sorted(tensors, key=lambda info: info.start):
        start, end = data_start + info.start, data_start + info.end
        if run is not None and (run.dtype, run.end) == (info.dtype, start):
            run = run._replace(end=end)
            continue
        if run is not None:
            yield from _pieces(run)
        run = _Span(info.dtype, start, end)
    if run is not None:
        yield from _pieces(run)


def _pieces(span: _Span) -> Iterator[_Span]:
    for start in range(span.start, span.end, _PIECE):
        yield _Span(span.dtype, start, min(start + _PIECE, span.end))


def _suspicious(read: _Read, spans: list[_Span]) -> list[_Span]:
    """Return the spans that hold what is no finite number."""
    buffers = SimpleQueue[bytearray]()

    def look(span: _Span) -> bool:
        buffer = buffers.get()
        try:
            return any(map(_TYPES[span.dtype].holds_no_number, _parts(read, span, buffer)))
        finally:
            buffers.put(buffer)

    for _ in range(min(_THREADS, len(spans))):
        buffers.put(bytearray(_PIECE))
    if len(spans) <= 1:
        return [span for span in spans if look(span)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [span for span, holds in zip(spans, pool.map(look, spans), strict=True) if holds]


def _parts(read: _Read, span: _Span, buffer: bytearray) -> Iterator[_Part]:
    """Read a piece into the buffer and yield its parts."""
    length = span.end - span.start
    with memoryview(buffer) as view:
        read(span.start, view[:length])
    for at in range(0, length, _PART):
        yield _Part(buffer, at, min(at + _PART, length))


def _what_it_holds(read: _Read, tensor: _Span) -> str | None:
    """Return what stands in a tensor that is no number; None where there is nothing, or it is a mask."""
    kind, mask, buffer = _TYPES[tensor.dtype], True, bytearray(min(_PIECE, tensor.end - tensor.start))
    no_numbers: bytes | None = None
    for piece in _pieces(tensor):
        for part in _parts(read, piece, buffer):
            mask = mask and kind.is_of_a_mask(part)
            if no_numbers is None and kind.holds_no_number(part):
                no_numbers = bytes(part.bytes_of(0, 1))
            if no_numbers is not None and not mask:
                return "NaN" if any(map(math.isnan, _numbers(no_numbers, tensor.dtype))) else "infinite values"
    return None


def _numbers(part: bytes, dtype: str) -> Iterator[float]:
    if dtype == "bfloat16":  # the upper half of a float32
        pairs = (b"\0\0" + part[at : at + 2] for at in range(0, len(part), 2))
        return (struct.unpack("<f", pair)[0] for pair in pairs)
    return (number for (number,) in struct.iter_unpack("<" + _FORMAT[dtype], part))
