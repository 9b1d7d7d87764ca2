"""Files that name other files: tables of paths, and the JSON lists of MONAI and the Medical Segmentation Decathlon."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suture_contract.errors import SutureError
from suture_stitching.data.spec import SPLITS, Columns, DatasetSpec
from suture_stitching.data.text_table import opened, sniff
from suture_stitching.data.words import split_of

#: What columns are called that name files.
FILE_COLUMNS = (
    "file",
    "path",
    "filename",
    "filepath",
    "file path",
    "file name",
    "image",
    "image path",
    "img",
    "images",
    "image index",
    "image id",
    "imageid",
    "image name",
    "image file",
    "img path",
    "file id",
    "dicom",
    "dicom path",
    "dicom id",
)
_OTHERS = (".parquet", ".xlsx", ".xlsm", ".dta", ".sav", ".zsav", ".por", ".sas7bdat", ".xpt")


@dataclass(frozen=True)
class ListedRow:
    """A line of a list: its number as people count, and its cells by column; `ragged` where it has more cells."""

    number: int
    cells: Mapping[str, str | None]
    ragged: bool = False


@dataclass(frozen=True)
class Entry:
    """What a JSON list says of one sample: where it stands there, the files of its channels, its label or mask.

    `more` are its other values, as texts, by their names.
    """

    place: str
    images: list[str]
    label: Any
    split: str | None
    more: Mapping[str, str]


def read_rows(path: Path, spec: DatasetSpec) -> tuple[list[str], Iterator[ListedRow]]:
    """Return the names of a table's columns and its lines, as text. Raises `SutureError` (`dataset.*`)."""
    if path.suffix.lower() in _OTHERS:
        from suture_stitching.data.table_files import open_table_file

        table = open_table_file(path, spec.format, spec.sheet)
        return table.names, _table_rows(table)
    form = sniff(path)

    def rows() -> Iterator[ListedRow]:
        with opened(path, form.zipped) as raw, io.TextIOWrapper(raw, form.encoding, newline="") as text:
            for _ in range(form.skip):
                next(text, "")
            try:
                reader = csv.reader(text, delimiter=form.delimiter, strict=True, skipinitialspace=True)
                names = [name.strip() for name in next(reader, [])]
                yield ListedRow(0, dict.fromkeys(names))
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        known = dict(zip(names, cells, strict=False))
                        yield ListedRow(reader.line_num + form.skip, known, len(cells) > len(names))
            except (csv.Error, UnicodeDecodeError):
                raise SutureError(
                    "dataset.unreadable", "not a CSV file", where=str(path), hint="save it as CSV (UTF-8)"
                ) from None

    lines = rows()
    header = next(lines)
    return list(header.cells), lines


def first_rows(path: Path, kind: str) -> tuple[list[str], list[Mapping[str, str | None]]]:
    """Return the columns of a table and its first rows, as text; none where it cannot be read, which is said later."""
    from suture_stitching.data.table_files import open_table_file

    try:
        table = open_table_file(path, kind)
        batch = next(table.batches(table.names, ()), None)
    except SutureError:
        return [], []
    return table.names, [] if batch is None else _as_text(batch.slice(0, 5))


def _as_text(batch: Any) -> list[Mapping[str, str | None]]:
    return [{name: None if cell is None else str(cell) for name, cell in row.items()} for row in batch.to_pylist()]


def _table_rows(table: Any) -> Iterator[ListedRow]:
    number = 1
    for batch in table.batches(table.names, ()):
        for cells in _as_text(batch):
            number += 1
            yield ListedRow(number, cells)


def is_datalist(path: Path) -> bool:
    """Whether a JSON file is a list of samples, and not a dataset's description."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix.lower() == ".json" else None
    except (OSError, ValueError):
        return False
    named = content.items() if isinstance(content, dict) else ()
    return any(split_of(str(name)) is not None and isinstance(listed, list) for name, listed in named)


def read_datalist(path: Path, columns: Columns | None = None) -> list[Entry]:
    """Return the entries of a JSON list that have a label, by the names that `columns` say.

    Raises `SutureError` `dataset.unreadable`, `dataset.missing_column` for a name that no entry has, and
    `dataset.unknown_split`.
    """
    columns = columns or Columns()
    labels = (columns.label,) if columns.label else ("label", "mask")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        raw = [
            (f"{name}[{number}]", str(name), entry)
            for name, listed in content.items()
            if isinstance(listed, list)
            for number, entry in enumerate(listed)
            if isinstance(entry, dict) and "image" in entry
        ]
        _check_names({key for _, _, entry in raw for key in entry}, columns, path)
        entries = [
            Entry(
                place,
                _files(entry),
                next(entry[label] for label in labels if label in entry),
                _split(place, name, entry, columns.split or "split", path),
                {str(key): str(value) for key, value in entry.items() if isinstance(value, str | int | float)},
            )
            for place, name, entry in raw
            if any(label in entry for label in labels)
        ]
    except (OSError, ValueError, AttributeError, TypeError):
        raise SutureError(
            "dataset.unreadable",
            'not a list like {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]}',
            where=str(path),
            hint="that is how MONAI and the Medical Segmentation Decathlon write it",
        ) from None
    named = {entry.split for entry in entries}
    # A training list alone names no split: it is divided like any other data.
    return [replace(entry, split=None) for entry in entries] if named == {"train"} else entries


def _files(entry: Mapping[str, Any]) -> list[str]:
    image = entry["image"]
    return [str(file) for file in image] if isinstance(image, list) else [str(image)]


def _split(place: str, name: str, entry: Mapping[str, Any], column: str, path: Path) -> str | None:
    """Return the split that an entry says, else that of the list it is in."""
    stated = str(entry.get(column) or "").strip()
    if stated and split_of(stated) is None:
        raise SutureError(
            "dataset.unknown_split",
            f"{place}: the split is not one of {', '.join(SPLITS)}",
            where=str(path),
            hint=f"correct the entry, or leave out '{column}' to have the split made from a seed",
        )
    return split_of(stated or name)


def _check_names(names: Collection[str], columns: Columns, path: Path) -> None:
    """Raise `SutureError` `dataset.missing_column` where no entry has what a description says."""
    missing = next(
        (name for name in (columns.label, columns.split, columns.group) if name is not None and name not in names), None
    )
    if names and missing is not None:
        raise SutureError(
            "dataset.missing_column",
            f"no entry has '{missing}'; they have {', '.join(sorted(names))}",
            where=str(path),
            hint="correct the dataset's columns",
        )


__all__ = ["FILE_COLUMNS", "Entry", "ListedRow", "first_rows", "is_datalist", "read_datalist", "read_rows"]
