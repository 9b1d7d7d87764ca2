"""Tables as text: which encoding, separator and decimal sign a file has, found from the file, not from its name."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

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
_COMMA = re.compile(r"[+-]?\d+,\d+")
_POINT = re.compile(r"[+-]?\d*\.\d+")
#: A whole number below a thousand, and one whose thousands are set apart; of the latter each may be a decimal as well.
_BELOW_THOUSAND = re.compile(r"[+-]?(?:0|[1-9]\d{0,2})")
_THOUSANDS = {sign: re.compile(rf"[+-]?[1-9]\d{{0,2}}{re.escape(sign)}\d{{3}}") for sign in ".,"}
#: What stands for no value, beside what Arrow knows.
NULLS = ["", "?", ".", "#N/A", "#N/A N/A", "#NA", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "NaT"]


@dataclass(frozen=True)
class TextTable:
    """How a table is written: `skip` lines of comments come before the header.

    `thousands` are the columns whose numbers seem to have their thousands set apart, by what else is a decimal sign.
    """

    encoding: str
    delimiter: str
    decimal: str
    skip: int
    zipped: bool
    thousands: tuple[str, ...] = ()

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
    header = lines[skip] if lines else ""
    delimiter = max(_DELIMITERS, key=lambda sign: (_bare(header).count(sign), -_DELIMITERS.index(sign)))
    rows = list(csv.reader(lines[skip + 1 : skip + 1001], delimiter=delimiter))
    cells = Counter(
        kind
        for row in rows[:-1] or rows
        for cell in row
        for kind, form in ((",", _COMMA), (".", _POINT))
        if form.fullmatch(cell.strip())
    )
    decimal = "," if delimiter != "," and cells[","] and not cells["."] else "."
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
    thousands = [
        name
        for place, name in enumerate(names)
        if delimiter != "," and _has_thousands([row[place].strip() for row in rows if place < len(row)], decimal)
    ]
    return TextTable(encoding, delimiter, decimal, skip, zipped, tuple(thousands))


def _has_thousands(cells: list[str], decimal: str) -> bool:
    """Whether numbers go on from 999 to 1.234: some below a thousand, of three digits too, and no other decimals."""
    written = [cell for cell in cells if cell not in NULLS]
    above = [cell for cell in written if _THOUSANDS[decimal].fullmatch(cell)]
    below = [cell for cell in written if _BELOW_THOUSAND.fullmatch(cell)]
    return bool(above) and any(len(cell.lstrip("+-")) > 2 for cell in below) and len(above) + len(below) == len(written)


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


__all__ = ["NULLS", "TextTable", "opened", "sniff"]
