"""Which format a path has: by what it is and holds, not only by its name (torch-free)."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import os
from collections import Counter
from pathlib import Path

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.foreign import foreign, foreign_json
from suture_stitching.data.list_files import is_datalist
from suture_stitching.data.spec import PICTURES, VOLUMES, Format
from suture_stitching.data.words import is_litter

_TEXT = (".csv", ".tsv", ".tab", ".txt")
_SIGNALS = (".npy",)
_FILES: dict[str, Format] = {
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
    **dict.fromkeys((".dta", ".sav", ".zsav", ".por", ".sas7bdat", ".xpt"), "statistics"),
    **dict.fromkeys(_TEXT, "csv"),
}
#: How files end that hold the values of a volume whose header is another file.
_VALUES = (".raw", ".zraw", ".raw.gz")
_LOOKED_AT = 2000
_LINES = 20


def format_of(path: Path) -> Format:
    """Return the format of what is at `path`; raises `SutureError` `dataset.unknown_format` where none is plain."""
    if not path.exists():
        raise SutureError("dataset.missing_path", "there is nothing at this path", where=str(path))
    if path.is_dir():
        return _format_of_folder(path)
    if is_datalist(path):
        return "datalist"
    name = path.name.lower()
    bare = name.removesuffix(".gz")
    by_suffix = _FILES.get(Path(bare if bare.endswith(_TEXT) else name).suffix)
    if by_suffix in ("csv", "parquet", "excel") and _names_files(path, by_suffix):
        return "list"
    if name.endswith(".txt") and not _is_table(path):
        raise SutureError(
            "dataset.unknown_format",
            "this is a text, not a table: its lines are not parted into the same number of cells",
            where=str(path),
            hint="a table has one header line, and one cell per column in every row; name it .csv if it is one",
        )
    if by_suffix is not None:
        return by_suffix
    known = _foreign_file(path)
    if known is not None:
        raise SutureError("dataset.unknown_format", f"this is {known[0]}", where=str(path), hint=known[1])
    raise SutureError(
        "dataset.unknown_format",
        "neither a folder nor a file of a known format, such as .npz, .h5, .csv, .parquet or .xlsx",
        where=str(path),
        hint="name it with --data-format",
    )


def _foreign_file(path: Path) -> tuple[str, str] | None:
    if path.suffix.lower() == ".npy":
        return "one array, without labels", "save both: numpy.savez(path, images=..., labels=...)"
    if path.suffix.lower() == ".json":
        try:
            return foreign_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
    return foreign(path.name)


def _format_of_folder(path: Path) -> Format:
    if path.suffix.lower() == ".zarr" and (known := foreign(path.name)) is not None:
        raise SutureError("dataset.unknown_format", f"this is {known[0]}", where=str(path), hint=known[1])
    kinds: Counter[Format] = Counter()
    looked_at = texts = values = 0
    unread: list[str] = []
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_litter(name))
        for name in (name.lower() for name in names if not is_litter(name)):
            looked_at += 1
            if name.endswith(VOLUMES):
                kinds["nifti"] += 1
            elif name.endswith(_SIGNALS):
                kinds["signal_folder"] += Path(folder) != path
                unread += [name] if Path(folder) == path else []
            elif name.removesuffix(".gz").endswith(_TEXT):
                texts += Path(folder) != path
                unread += [name] if Path(folder) == path else []
            elif name.endswith(_VALUES):
                values += 1
            elif Path(name).suffix in _FILES or foreign(name) is not None:
                unread.append(name)
            else:
                kinds["image_folder"] += 1
        if looked_at > _LOOKED_AT:
            break
    if not looked_at:
        raise SutureError("dataset.empty", "there are no files in this folder", where=str(path))
    if values and not kinds["nifti"]:
        kinds["image_folder"] += values
    if not +kinds and not texts and unread:
        raise _unread_folder(path, sorted(unread))
    if not +kinds:
        return "signal_folder" if texts else "image_folder"
    return kinds.most_common(1)[0][0]


def _unread_folder(path: Path, names: list[str]) -> SutureError:
    """Return the error for a folder that holds tables, arrays, or files that are not read."""
    known = next((known for name in names if (known := foreign(name)) is not None), None)
    return SutureError(
        "dataset.unknown_format",
        f"this folder holds no files of a sample each, but such as {names[0]}"
        + (f", which is {known[0]}" if known is not None else ""),
        where=str(path),
        hint=known[1]
        if known is not None
        else "save arrays as one file: numpy.savez(path, images=..., labels=...)"
        if names[0].endswith(_SIGNALS)
        else "one table, or one file of arrays, is a dataset: name the file itself; "
        "make one of several, with a column split where they are the splits",
    )


def _is_table(path: Path) -> bool:
    """Whether the first lines of a text have as many cells each, and more than one."""
    from suture_stitching.data.text_table import opened, sniff

    form = sniff(path)
    with opened(path, form.zipped) as raw, io.TextIOWrapper(raw, form.encoding, newline="") as text:
        lines = list(itertools.islice(text, form.skip, form.skip + _LINES))
    rows = [cells for cells in csv.reader(lines, delimiter=form.delimiter) if any(map(str.strip, cells))]
    # A cell in quotes may hold lines, and the last of these be cut off.
    widths = {len(cells) for cells in (rows[:-1] if len(lines) == _LINES else rows)}
    return len(widths) == 1 and max(widths) > 1


def _names_files(path: Path, kind: str) -> bool:
    """Whether the table's first lines name files that are there."""
    from suture_stitching.data.list_files import FILE_COLUMNS, first_rows

    names, rows = first_rows(path, kind)
    columns = [name for name in names if folded(name) in FILE_COLUMNS]
    named = [(row.get(columns[0]) or "").strip() for row in rows] if columns else []
    if any(name.lower().endswith(_ANY) for name in named):
        return True
    # Some lists leave the ending out.
    patterns = [f"{beside}{glob.escape(name)}.*" for name in named[:1] if name for beside in ("", "*/")]
    return any(file.name.lower().endswith(_ANY) for pattern in patterns for file in path.parent.glob(pattern))


_ANY = (*VOLUMES, *_SIGNALS, *PICTURES, ".dcm", ".dicom", ".ima", ".csv", ".txt")

__all__ = ["format_of"]
