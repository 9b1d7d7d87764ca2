"""What lists say of files: a table beside them, a table of paths, or the JSON list of MONAI and the Decathlon."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.list_files import FILE_COLUMNS, Entry, ListedRow, read_datalist, read_rows
from suture_stitching.data.samples import Sample, check_splits, group_of, patient_column
from suture_stitching.data.spec import SPLITS, DatasetSpec
from suture_stitching.data.words import how_to_join, split_of

#: How a file's name ends, which a list may leave out.
_SUFFIX = re.compile(r"(?:\.nii\.gz|\.[^.]+)$", re.I)
_MASK_COLUMNS = ("mask", "mask path", "maskpath", "segmentation", "seg", "label", "label path")


@dataclass(frozen=True)
class Line:
    """What a list says of a file."""

    target: str | tuple[float, ...] | None
    split: str | None
    group: str | None
    cells: tuple[str, ...]


def needed_columns(spec: DatasetSpec) -> list[str]:
    """Return the columns that a list must have beside the file."""
    if spec.task in ("segmentation", "multilabel"):
        return ["file", *(spec.labels if spec.task == "multilabel" else [])]
    return ["file", spec.columns.label or "label"]


def check_columns(spec: DatasetSpec, names: Collection[str], where: str) -> None:
    """Raise `SutureError` `dataset.missing_column` unless a list's `names` hold every column of subgroups."""
    missing = next((name for name in spec.subgroups if name not in names), None)
    if missing is not None:
        raise SutureError(
            "dataset.missing_column",
            f"there is no column '{missing}', by which subgroups are named",
            where=where,
            hint="add it to the list of files, a value per file, or correct the dataset's subgroups",
        )


@dataclass(frozen=True)
class _Columns:
    file: str
    targets: tuple[str, ...]
    mask: str | None
    split: str | None
    group: str | None


def _columns(names: Sequence[str], path: Path, spec: DatasetSpec, *, masks: bool = False) -> _Columns:
    """Return which columns of the list at `path` say what; others are not read."""
    where = str(path)
    columns = spec.columns

    def one_of(wanted: Iterable[str]) -> str | None:
        return next((name for fold in wanted for name in names if folded(name) == fold), None)

    file = columns.images if columns.images != "images" else one_of(FILE_COLUMNS)
    targets: tuple[str, ...] = ()
    if spec.task == "multilabel":
        targets = spec.labels
    elif spec.task != "segmentation":
        targets = (columns.label or one_of(["label"]) or "label",)
    mask = (columns.label or one_of(_MASK_COLUMNS)) if masks else None
    split = columns.split or one_of(["split"])
    group = columns.group or one_of(["group"])
    if group is None and spec.group is None:  # with it, the names of the files say whose they are
        group = patient_column(names, where, lambda name: _cells(path, name, spec))
    wanted = [file, *targets, *([mask] if masks else []), *filter(None, (columns.split, columns.group))]
    check_columns(spec, names, where)
    if any(name is None or name not in names for name in wanted):
        needed, more = [*needed_columns(spec), *(["mask"] if masks else [])], spec.task == "multilabel"
        raise SutureError(
            "dataset.missing_column",
            f"the first line must name the columns {','.join(needed)}, and may name split and group; it has "
            + ",".join(names),
            where=where,
            hint="or name them in the dataset's columns: images (of the files), label, split, group"
            + ("; of labels in one cell, A|B, columns are made by str.get_dummies('|') of pandas" if more else "")
            + ("" if more else how_to_join(names, spec.labels)),
        )
    assert file is not None
    return _Columns(file, targets, mask, split, group)


def _cells(path: Path, name: str, spec: DatasetSpec) -> list[str]:
    return [(row.cells.get(name) or "").strip() for row in read_rows(path, spec)[1]]


def _line(row: ListedRow, file: str, columns: _Columns, spec: DatasetSpec, where: str) -> Line:
    empty = [name for name in columns.targets if not (row.cells.get(name) or "").strip()]
    if empty and not (spec.task == "multilabel"):
        raise SutureError(
            "dataset.incomplete_line",
            f"line {row.number} does not have a value for each column",
            where=where,
            hint=f"each line has {','.join((columns.file, *columns.targets))}",
        )
    split = (row.cells.get(columns.split or "") or "").strip() or None
    if split is not None and split_of(split) is None:
        raise SutureError(
            "dataset.unknown_split",
            f"line {row.number}: the split of {file} is not one of {', '.join(SPLITS)}",
            where=where,
            hint="correct the line, or leave out the column to have the split made from a seed",
        )
    return Line(
        _line_target([row.cells.get(name) or "" for name in columns.targets], spec, f"{where}, line {row.number}"),
        split_of(split) if split else None,
        (row.cells.get(columns.group or "") or "").strip() or None,
        tuple((row.cells.get(name) or "").strip() for name in spec.subgroups),
    )


def read_labels_file(path: Path, spec: DatasetSpec, files: Sequence[str]) -> dict[str, Line]:
    """Return what is said of each file, by its path from the dataset's folder."""
    where = str(path)
    names, rows = read_rows(path, spec)
    columns = _columns(names, path, spec)
    finder = _Finder(path.parent, files)
    listed: dict[str, Line] = {}
    for row in rows:
        text = (row.cells.get(columns.file) or "").strip()
        if not text or row.ragged:
            raise SutureError(
                "dataset.incomplete_line",
                f"line {row.number} does not have a value for each column",
                where=where,
                hint=f"each line has {','.join(names)}",
            )
        file = finder.find(text)
        if file in listed:
            raise SutureError(
                "dataset.duplicate",
                f"line {row.number}: {file} is listed a second time",
                where=where,
                hint="keep one line per image",
            )
        listed[file] = _line(row, file, columns, spec, where)
    return listed


class _Finder:
    """Finds the file that a list means: by its path from the folder, its whole path, or its name alone."""

    def __init__(self, root: Path, files: Sequence[str] | None = None) -> None:
        self._root = root
        self._resolved = root.resolve()
        self._files = None if files is None else set(files)
        self._names: dict[str, list[str]] | None = None
        self._stems: dict[str, list[str]] | None = None

    def find(self, text: str) -> str:
        """Return the path from the folder; as written where there is no such file."""
        file = text.replace("\\", "/").removeprefix("./")
        if self._is_file(file) and not Path(file).is_absolute():
            return file
        if Path(file).is_absolute():
            for root in (self._root, self._resolved):
                if Path(file).is_relative_to(root):
                    return Path(file).relative_to(root).as_posix()
            return file
        if "/" not in file and len(paths := self._by_name().get(_form(file), [])) == 1:
            return paths[0]
        # The same letters may be written in several ways: macOS does so otherwise than Windows.
        named = self._by_name().get(_form(PurePosixPath(file).name), [])
        alike = [path for path in named if _form(path) == _form(file)]
        if not alike and "/" not in file:  # some lists leave the ending out
            alike = self._by_stem().get(_form(file), [])
        return alike[0] if len(alike) == 1 else file

    def _by_stem(self) -> dict[str, list[str]]:
        if self._stems is None:
            self._stems = {}
            for name, paths in self._by_name().items():
                self._stems.setdefault(_SUFFIX.sub("", name), []).extend(paths)
        return self._stems

    def _is_file(self, file: str) -> bool:
        return file in self._files if self._files is not None else (self._root / file).exists()

    def _by_name(self) -> dict[str, list[str]]:
        if self._names is None:
            self._names = {}
            if self._files is None:
                walked = (
                    (Path(folder) / name).relative_to(self._root).as_posix()
                    for folder, _, names in os.walk(self._root)
                    for name in names
                )
            for file in self._files if self._files is not None else walked:
                self._names.setdefault(_form(PurePosixPath(file).name), []).append(file)
        return self._names


def _form(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def listed_samples(spec: DatasetSpec) -> list[Sample]:
    """Return the samples that a table of paths names."""
    where, finder = str(spec.path), _Finder(spec.files)
    names, rows = read_rows(spec.path, spec)
    columns = _columns(names, spec.path, spec, masks=spec.task == "segmentation")
    samples: dict[str, Sample] = {}
    for row in rows:
        place = f"line {row.number}"
        file = _there(row.cells.get(columns.file), place, finder, spec)
        line = _line(row, file, columns, spec, where)
        target = line.target
        if columns.mask is not None:
            target = _there(row.cells.get(columns.mask), place, finder, spec)
        assert target is not None
        group = line.group or group_of(file, spec)
        _add(Sample(file, target, line.split, group, cells=line.cells), place, samples, where)
    if not samples:
        raise SutureError("dataset.empty", "the list names no files", where=where)
    check_splits(list(samples.values()), where)
    return list(samples.values())


def _there(text: str | None, place: str, finder: _Finder, spec: DatasetSpec) -> str:
    """Return the file that a list names at `place`, below the folder of the list's files."""
    where = str(spec.path)
    if not (text or "").strip():
        raise SutureError("dataset.incomplete_line", f"{place} names no file", where=where)
    file = finder.find((text or "").strip())
    if Path(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise SutureError(
            "dataset.missing_image",
            f"{place} names a file outside of {spec.files}",
            where=where,
            hint='name the folder that holds all files: root = "..."',
        )
    if not (spec.files / file).exists():
        raise SutureError(
            "dataset.missing_image",
            f"{place}: {file} is listed but there is no such file",
            where=where,
            hint=f'files are relative to {spec.files}; another folder is said by root = "..."',
        )
    return file


def datalist_samples(spec: DatasetSpec) -> list[Sample]:
    """Return the samples that a JSON list of MONAI or the Decathlon names."""
    where, finder = str(spec.path), _Finder(spec.files)
    samples: dict[str, Sample] = {}
    entries = read_datalist(spec.path, spec.columns)
    check_columns(spec, [name for entry in entries for name in entry.more], where)

    @cache
    def patient_column_of(names: tuple[str, ...]) -> str | None:
        return patient_column(names, where, lambda name: [entry.more.get(name, "") for entry in entries])

    for entry in entries:
        file, *more = (_there(image, entry.place, finder, spec) for image in entry.images)
        if spec.task != "segmentation":
            target = _entry_target(entry, spec, where)
        elif isinstance(entry.label, str):
            target = _there(entry.label, entry.place, finder, spec)
        else:
            raise SutureError("dataset.missing_mask", f"{entry.place} names no mask", where=where)
        _add(
            Sample(
                file,
                target,
                entry.split,
                _patient(entry, spec, patient_column_of) or group_of(file, spec),
                tuple(more),
                tuple(entry.more.get(name, "") for name in spec.subgroups),
            ),
            entry.place,
            samples,
            where,
        )
    if not samples:
        raise SutureError("dataset.empty", "the list names no files with labels", where=where)
    check_splits(list(samples.values()), where)
    return list(samples.values())


def _entry_target(entry: Entry, spec: DatasetSpec, where: str) -> str | tuple[float, ...]:
    """Return what a JSON entry says of its label, read as strictly as cells of a table."""
    values = entry.label if isinstance(entry.label, list) else [entry.label]
    cells = ["" if value is None else str(int(value) if isinstance(value, bool) else value) for value in values]
    wanted = len(spec.labels) if spec.task == "multilabel" else 1
    if len(cells) != wanted or (spec.task != "multilabel" and not cells[0].strip()):
        raise SutureError(
            "dataset.missing_labels",
            f"{entry.place} has {len(cells) if any(cells) else 'no'} values for its label, {wanted} expected",
            where=where,
            hint=f"one for each of the dataset's labels, in their order: {', '.join(spec.labels)}"
            if spec.task == "multilabel"
            else "give it one value, or remove the entry",
        )
    target = _line_target(cells, spec, f"{where}, {entry.place}")
    assert target is not None
    return target


def _patient(entry: Entry, spec: DatasetSpec, column_of: Callable[[tuple[str, ...]], str | None]) -> str | None:
    """Return what a JSON entry says of whom it is; `column_of` its names says it where nothing else does."""
    column = spec.columns.group
    if column is None and spec.group is None:
        column = column_of(tuple(entry.more))
    return entry.more.get(column) if column else None


def _add(sample: Sample, place: str, samples: dict[str, Sample], where: str) -> None:
    """Add a sample that a list names at `place`; raise `SutureError` `dataset.duplicate` where its file is there."""
    if sample.file in samples:
        raise SutureError(
            "dataset.duplicate",
            f"{place}: {sample.file} is listed a second time",
            where=where,
            hint="keep one line per image",
        )
    samples[sample.file] = sample


def _line_target(cells: Sequence[str], spec: DatasetSpec, where: str) -> str | tuple[float, ...] | None:
    if spec.task == "segmentation":
        return None
    if spec.task == "classification":
        return cells[0].strip()
    if spec.task == "multilabel":
        return tuple(_mark(cell.strip(), spec, where) for cell in cells)
    try:
        values = tuple(float(cell) for cell in cells)
    except ValueError:
        raise SutureError("dataset.not_numbers", "a cell holds text, not a number", where=where) from None
    if not all(map(math.isfinite, values)):
        raise SutureError("dataset.not_finite", "a cell holds NaN or infinity", where=where)
    return values


def _mark(cell: str, spec: DatasetSpec, where: str) -> float:
    """Return 0 or 1 for a cell that says whether a file has a label."""
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise SutureError("dataset.not_numbers", "a cell holds text, not a number", where=where) from None
    policy, name, what = (spec.blank, "blank", "empty") if math.isnan(value) else (spec.uncertain, "uncertain", "-1")
    if value in (0.0, 1.0):
        return value
    if value == -1.0 or math.isnan(value):
        if policy != "error":
            return float(policy == "positive")
        other = ' or "positive"' if name == "uncertain" else ""
        raise SutureError(
            "dataset.label_out_of_range",
            f"a cell is {what}",
            where=where,
            hint=f'say what that stands for, {name} = "negative"{other}; each label\'s column holds 1 where an '
            "image has it, else 0",
        )
    raise SutureError(
        "dataset.label_out_of_range",
        "a cell is neither 0 nor 1",
        where=where,
        hint="each label has one column that holds 1 where an image has it, else 0",
    )


__all__ = ["Line", "check_columns", "datalist_samples", "listed_samples", "needed_columns", "read_labels_file"]
