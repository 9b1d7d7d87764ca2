"""Tables as text: which encoding, separator and decimal sign a file has, found from the file, not from its name."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from suture_contract.errors import SutureError

_HEAD = 1 << 20
_DELIMITERS = ",;\t|"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel file", 'name it .xlsx and give format = "excel", or save it as CSV'),
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls)", "save it as .xlsx or CSV"),
    (b"PAR1", "a Parquet file", 'give format = "parquet"'),
    (b"\x89HDF", "an HDF5 file", 'give format = "hdf5"'),
)
#: Excel's first line, which says what the separator is.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.I)
_COMMA = re.compile(r"[+-]?\d+,\d+")
_POINT = re.compile(r"[+-]?\d*\.\d+")
#: A whole number below a thousand, and one whose thousands are set apart; of the latter each may be a decimal as well.
_BELOW_THOUSAND = re.compile(r"[+-]?(?:0|[1-9]\d{0,2})")
_THOUSANDS = {sign: re.compile(rf"[+-]?[1-9]\d{{0,2}}{re.escape(sign)}\d{{3}}") for sign in ".,"}
#: What stands for no value, beside what Arrow knows.
NULLS = ["", "?", ".", "#N/A", "#N/A N/A", "#NA", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT"]


@dataclass(frozen=True)
class TextTable:
    """How a table is written: `skip` lines of comments, or Excel's of the separator, come before the header."""

    encoding: str
    delimiter: str
    decimal: str
    skip: int
    zipped: bool

    @property
    def in_words(self) -> str:
        """Say it in words where it is not the usual."""
        separators = {";": "semicolons", "\t": "tabs", "|": "bars"}
        words = [f"separated by {separators[self.delimiter]}"] if self.delimiter in separators else []
        words += ["decimal commas"] if self.decimal == "," else []
        words += [self.encoding] if self.encoding not in ("utf-8", "utf-8-sig") else []
        return ", ".join(words)


def sniff(path: Path) -> TextTable:
    """Return how the table at `path` is written; raises `SutureError` `dataset.unreadable` for what is no text."""
    where = str(path)
    with path.open("rb") as file:
        start = file.read(8)
    for mark, kind, hint in _OTHERS:
        if start.startswith(mark):
            raise SutureError("dataset.unreadable", f"this is {kind}, whatever its name says", where=where, hint=hint)
    zipped = start.startswith(b"\x1f\x8b")
    try:
        with opened(path, zipped) as file:
            head = file.read(_HEAD)
        encoding = _encoding(path, head, zipped)
        text = codecs.getincrementaldecoder(encoding)("strict").decode(head)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile):
        raise SutureError(
            "dataset.unreadable", "not a text in UTF-8, UTF-16 or Latin-1", where=where, hint="save it as CSV (UTF-8)"
        ) from None
    if "\0" in text:
        raise SutureError("dataset.unreadable", "not a text", where=where, hint="save it as CSV (UTF-8)")
    lines = text.splitlines()
    skip = 0
    while skip < len(lines) - 1 and lines[skip].startswith("#") and not _columns(lines[skip], lines[skip + 1]):
        skip += 1
    separator = _SEPARATOR_LINE.fullmatch(lines[skip].strip()) if lines else None
    skip += separator is not None
    header = lines[skip] if skip < len(lines) else ""
    delimiter = (
        separator[1]
        if separator and separator[1] in _DELIMITERS
        else max(_DELIMITERS, key=lambda sign: (_bare(header).count(sign), -_DELIMITERS.index(sign)))
    )
    rows = list(csv.reader(lines[skip + 1 : skip + 1001], delimiter=delimiter))
    cells = Counter(
        kind
        for row in rows[:-1] or rows
        for cell in row
        for kind, form in ((",", _COMMA), (".", _POINT))
        if form.fullmatch(cell.strip())
    )
    decimal = "," if delimiter != "," and cells[","] and not cells["."] else "."
    return TextTable(encoding, delimiter, decimal, skip, zipped)


class Thousands:
    """Whether numbers go on from 999 to 1.234: some below a thousand, of three digits too, and no other decimals."""

    def __init__(self, decimal: str) -> None:
        self._apart = _THOUSANDS[decimal]
        self._above = self._below = False
        self.possible = True

    def add(self, cells: Iterable[str]) -> None:
        """Look at more cells of the column."""
        for cell in cells:
            if _BELOW_THOUSAND.fullmatch(cell):
                self._below |= len(cell.lstrip("+-")) > 2
            elif self._apart.fullmatch(cell):
                self._above = True
            elif cell not in NULLS:
                self.possible = False
                return

    @property
    def seem(self) -> bool:
        """Whether thousands seem to be set apart in all cells that were looked at."""
        return self.possible and self._above and self._below


class MaybeThousands:
    """Columns whose numbers may be such as `Thousands` looks for, as far as numbers show it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._open, self._broken = set(names), set[str]()

    def look(self, batch: Any) -> None:
        """Look at more rows of all columns."""
        for name in list(self._open):
            values = np.abs(batch.column(name).cast("float64").drop_null().to_numpy(zero_copy_only=False))
            parts = values[values != np.floor(values)]
            if (values >= 1000).any() or (parts < 1).any() or not np.allclose(parts * 1000, np.rint(parts * 1000)):
                self._open.discard(name)
            elif len(parts):
                self._broken.add(name)

    @property
    def names(self) -> list[str]:
        """The columns that hold such numbers."""
        return sorted(self._open & self._broken)


def opened(path: Path, zipped: bool) -> IO[bytes]:
    """Open the file, unpacked on the way if it is `zipped`."""
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _columns(line: str, below: str) -> bool:
    """Whether a line that begins with # has as many cells as the one below it."""
    return any(line.count(sign) == below.count(sign) > 0 for sign in _DELIMITERS)


def _bare(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def _encoding(path: Path, head: bytes, zipped: bool) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head[1:2] == b"\0":
        return "utf-16-le"
    if head[:1] == b"\0":
        return "utf-16-be"
    decode = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        with opened(path, zipped) as file:
            while piece := file.read(_HEAD):
                decode.decode(piece)
        decode.decode(b"", True)
    except UnicodeDecodeError:
        return "cp1252"  # what Windows writes in western Europe; Latin-1 but for signs that Latin-1 lacks
    return "utf-8"


__all__ = ["NULLS", "MaybeThousands", "TextTable", "Thousands", "opened", "sniff"]
