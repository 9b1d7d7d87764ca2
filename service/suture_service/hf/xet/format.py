"""What a Xet client sends: xorbs, which are runs of compressed chunks, and shards, which list files as runs of chunks.

Pure functions of bytes that a stranger has written: every length is checked before memory is taken for it. Numbers are
little-endian. Source: the Xet protocol specification (https://huggingface.co/docs/xet, pages on xorbs and shards).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from lz4.frame import LZ4FrameDecompressor

from suture_service.errors import Malformed, TooLarge

#: The protocol's own limits: bytes of a chunk as it was in the file, chunks of a xorb, bytes of a xorb as sent.
MAX_CHUNK = 128 * 2**10
MAX_CHUNKS = 8 * 2**10
MAX_XORB = 64 * 2**20
#: Some clients add an index of their own after the chunks, which nobody needs here.
XORB_LIMIT = MAX_XORB + 2**20
#: What a shard may say about files, in bytes; a file of 8 GiB in pieces of one chunk each takes 12 MiB.
FILES_LIMIT = 16 * 2**20
MAX_FILES = 10_000

_HEADER = 8
# An incompressible chunk grows by the frame's own few bytes.
_MAX_PACKED = MAX_CHUNK + 2**10
_FOOTER = b"XETBLOB"
_RAW, _LZ4, _REGROUPED = 0, 1, 2

_SHARD_TAG = b"HFRepoMetaData"
_SHARD_HEADER = 48
_RECORD = 48
_FILE = struct.Struct("<32sII8x")
_TERM = struct.Struct("<32sIIII")
_LAST = b"\xff" * 32
_WITH_VERIFICATION, _WITH_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Layout:
    """Where the chunks of a xorb begin, in bytes: in the xorb as sent (`sent`) and unpacked (`plain`).

    Both have one entry more than there are chunks, the end of the last.
    """

    sent: array[int]
    plain: array[int]

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self.sent) - 1

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return b"".join(_little(column).tobytes() for column in (self.sent, self.plain))

    @classmethod
    def from_bytes(cls, content: bytes) -> Layout:
        """Return the layout that `to_bytes` wrote."""
        half = len(content) // 2
        sent, plain = array("I", content[:half]), array("I", content[half:])
        return cls(_little(sent), _little(plain))


class LayoutReader:
    """Finds the chunks of a xorb while it passes by: `feed` what comes, then `end`."""

    def __init__(self) -> None:
        self._sent, self._plain = array("I", [0]), array("I", [0])
        self._header = bytearray()
        self._left = 0
        self._footer = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; raises `Malformed` (`xorb.malformed`)."""
        at = 0
        while at < len(data) and not self._footer:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(_HEADER - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == _HEADER:
                    self._begin_chunk()
            at += step

    def end(self) -> Layout:
        """Return the layout; raises `Malformed` where the last chunk is cut off or there is none."""
        if self._left or self._header:
            _bad_xorb("the last chunk is cut off")
        if len(self._sent) == 1:
            _bad_xorb("it holds no chunk")
        return Layout(self._sent, self._plain)

    def _begin_chunk(self) -> None:
        header = bytes(self._header)
        self._header.clear()
        if header.startswith(_FOOTER):
            self._footer = True
            return
        if len(self._sent) > MAX_CHUNKS:
            _bad_xorb(f"more than {MAX_CHUNKS} chunks")
        _, packed, plain = _read_header(header)
        self._left = packed
        self._sent.append(self._sent[-1] + _HEADER + packed)
        self._plain.append(self._plain[-1] + plain)


def unpack(chunk: memoryview) -> bytes:
    """Return the content of one chunk, given with its header; raises `Malformed` (`xorb.malformed`).

    Never unpacks more than the header announces, so that a chunk cannot blow up.
    """
    if len(chunk) < _HEADER:
        _bad_xorb("a chunk is cut off")
    scheme, packed, plain = _read_header(bytes(chunk[:_HEADER]))
    data = chunk[_HEADER:]
    if len(data) != packed:
        _bad_xorb("a chunk is cut off")
    if scheme == _RAW:
        return bytes(data)
    reader = LZ4FrameDecompressor()
    try:
        content: bytes = reader.decompress(data, max_length=plain + 1)
    except (RuntimeError, ValueError, EOFError):
        _bad_xorb("a chunk is no LZ4 frame")
    if len(content) != plain or not reader.eof or reader.unused_data:
        _bad_xorb("a chunk does not have the length it announces")
    return _ungroup(content) if scheme == _REGROUPED else content


@dataclass(frozen=True)
class Term:
    """A run of chunks `first` to `end` (exclusive) of a xorb, `length` bytes unpacked."""

    xorb: str
    length: int
    first: int
    end: int


@dataclass(frozen=True)
class XetFile:
    """A file that a shard lists: its digest and size in bytes, and the terms it consists of."""

    sha256: str
    size: int
    records: memoryview

    def terms(self) -> Iterator[Term]:
        """Yield the terms in order."""
        for xorb, _, length, first, end in _TERM.iter_unpack(self.records):
            yield Term(hash_text(xorb), length, first, end)


def parse_files(shard: bytes | bytearray, *, limit: int) -> list[XetFile]:
    """Return the files a shard lists; `shard` may end anywhere after the list of files.

    Raises `Malformed` (`shard.malformed`), and `TooLarge` where all files together have more than `limit` bytes.
    """
    if not shard.startswith(_SHARD_TAG) or len(shard) < _SHARD_HEADER:
        _bad_shard("this is no shard")
    content, at, total = memoryview(shard), _SHARD_HEADER, 0
    files: list[XetFile] = []
    while True:
        name, flags, count = _FILE.unpack(_take(content, at, _RECORD))
        at += _RECORD
        if name == _LAST:
            return files
        if len(files) == MAX_FILES:
            _too_large(f"more than {MAX_FILES} files", "upload fewer files at once")
        records = _take(content, at, count * _RECORD)
        at += count * _RECORD
        if flags & _WITH_VERIFICATION:
            _take(content, at, count * _RECORD)
            at += count * _RECORD
        if not flags & _WITH_SHA256:
            _bad_shard("a file has no sha256")
        digest = bytes(_take(content, at, _RECORD)[:32])
        at += _RECORD
        size = sum(length for _, _, length, _, _ in _TERM.iter_unpack(records))
        total += size
        if total > limit:
            _too_large(f"its files have more than the {limit} bytes this hub takes", "ask the operator for more")
        files.append(XetFile(hash_text(digest), size, records))


def hash_text(digest: bytes) -> str:
    """Return the 64 hex digits that stand for 32 bytes in this protocol: each group of 8 bytes backwards."""
    return "".join(digest[at : at + 8][::-1].hex() for at in range(0, 32, 8))


def _read_header(header: bytes) -> tuple[int, int, int]:
    version, scheme = header[0], header[4]
    packed, plain = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
    if version != 0 or scheme not in (_RAW, _LZ4, _REGROUPED):
        _bad_xorb("a chunk is of a kind this hub does not know")
    if not 0 < plain <= MAX_CHUNK or not 0 < packed <= _MAX_PACKED or (scheme == _RAW and packed != plain):
        _bad_xorb(f"a chunk is empty or larger than {MAX_CHUNK} bytes")
    return scheme, packed, plain


def _ungroup(content: bytes) -> bytes:
    """Undo the regrouping by position modulo 4; where 4 does not divide the length, the first groups are longer."""
    plain, at = bytearray(len(content)), 0
    for group in range(4):
        length = len(range(group, len(content), 4))
        plain[group::4] = content[at : at + length]
        at += length
    return bytes(plain)


def _little(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column


def _take(content: memoryview, at: int, length: int) -> memoryview:
    if at + length > len(content):
        if len(content) >= FILES_LIMIT:
            _too_large("it lists too many pieces", "upload fewer files at once")
        _bad_shard("it is cut off")
    return content[at : at + length]


def _bad_xorb(what: str) -> NoReturn:
    raise Malformed("xorb.malformed", what, where="xorb", hint="start the upload again")


def _bad_shard(what: str) -> NoReturn:
    raise Malformed("shard.malformed", what, where="shard", hint="start the upload again")


def _too_large(what: str, hint: str) -> NoReturn:
    raise TooLarge("upload.too_large", what, where="shard", hint=hint)
