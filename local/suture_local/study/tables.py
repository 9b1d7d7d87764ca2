"""Parties' tables become a study: columns are matched by name, labels and categories by what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.naming import did_you_mean, folded, spelt
from suture_local.study.alike import alike_in_all, by_number, compare_samples, group_of, joined_labels
from suture_local.study.data import Study, tables_study
from suture_stitching.data.formats import format_of
from suture_stitching.data.splits import digests
from suture_stitching.data.table_files import TableFile, open_table_file
from suture_stitching.data.words import is_row_number, names_patient

#: More texts than these are no categories, and more labels than these, each for few rows, are no labels.
_MOST_CATEGORIES = 20
_ROWS_PER_LABEL = 10


@dataclass(frozen=True)
class TableColumns:
    """What a table's columns are: labels, categories, what is left out, and where 0 is a gap.

    Columns with text are categories anyway.
    """

    label: str
    categories: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    zero_is_missing: tuple[str, ...] = ()


@dataclass
class _Party:
    """A party's table: `label`, `group` and `columns` are its own names, the last by folded name; `cells` are read."""

    name: str
    path: Path
    file: TableFile
    label: str
    group: str | None
    columns: dict[str, str]
    cells: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass
class _Features:
    """Parts `(N, C)` of each party's features, to be put side by side, and what each of all their channels is."""

    parts: dict[str, list[NDArray[np.float32]]]
    channels: list[str] = field(default_factory=list)
    are_numbers: list[bool] = field(default_factory=list)

    def add(
        self, channels: Sequence[str], values: Mapping[str, NDArray[np.float32]], *, are_numbers: bool = False
    ) -> None:
        """Add each party's values `(N, C)` of these channels."""
        self.channels += channels
        self.are_numbers += [are_numbers] * len(channels)
        for party, own in values.items():
            self.parts[party].append(own)


def table_files(name: str, files: Mapping[str, Path], means: TableColumns) -> Study:
    """Return a study of the parties' tables, in any format that a site reads.

    Columns, labels and categories that differ in writing alone are one. A column that says whose a row is, `group` or
    `patient_id` say, keeps rows together and is no feature. Raises `SutureError` (`study.*`, `dataset.*`).
    """
    notes: list[str] = []
    parties = [_opened(party, path, means.label, notes) for party, path in files.items()]
    _refuse_unknown(parties, means)
    shared = _shared(parties, means, notes)
    numbers = {
        key
        for key in shared
        if key not in _folded(means.categories) and all(own.file.is_number(own.columns[key]) for own in parties)
    }
    for own in parties:
        _read(own, shared, numbers, notes)
    labels, targets = joined_labels({own.name: own.cells[own.label].tolist() for own in parties}, files, notes)
    _refuse_amounts(means.label, labels, sum(map(len, targets.values())))
    features = _features(parties, shared, numbers, means, notes)
    if not features.channels:
        raise SutureError(
            "study.columns",
            "the tables have no column of features in common: "
            + "; ".join(f"{own.name} has {', '.join(own.file.names)}" for own in parties),
            hint="name columns that mean the same alike in every table",
        )
    tables = {
        own.name: (
            np.concatenate(features.parts[own.name], axis=1).astype(np.float32),
            targets[own.name],
            own.cells[own.group] if own.group else None,
        )
        for own in parties
    }
    digested = {
        party: digests(np.column_stack([np.nan_to_num(values, nan=-1e30), own]).astype(np.float32))
        for party, (values, own, _) in tables.items()
    }
    compare_samples(digested, "rows", files, notes)
    notes.append("Numbers were brought to mean 0 and deviation 1 by each party's own training samples.")
    return tables_study(name, tables, labels, features.channels, np.array(features.are_numbers), notes)


def _features(
    parties: Sequence[_Party],
    shared: Mapping[str, str],
    numbers: Collection[str],
    means: TableColumns,
    notes: list[str],
) -> _Features:
    """Return the shared columns' features: numbers as they are, texts as one channel per category."""
    features = _Features({own.name: [] for own in parties})
    gaps, categories = _folded(means.zero_is_missing), _folded(means.categories)
    for key, column in shared.items():
        cells = {own.name: own.cells[own.columns[key]] for own in parties}
        if key in numbers:
            known = {
                party: np.where(values == 0, np.nan, values) if key in gaps else values
                for party, values in cells.items()
            }
            features.add([column], {party: values[:, None] for party, values in known.items()}, are_numbers=True)
            continue
        texts = alike_in_all({party: values.tolist() for party, values in cells.items()}, f"'{column}'", notes)
        seen = sorted({text for own_texts in texts.values() for text in own_texts} - {""})
        if key not in categories and len(seen) > _MOST_CATEGORIES:
            notes.append(f"Column '{column}' has text with {len(seen)} values and was left out.")
            continue
        channels = [f"{column}={value}" for value in seen]
        features.add(channels, {party: _one_hot(own_texts, seen) for party, own_texts in texts.items()})
    return features


def _opened(party: str, path: Path, label: str, notes: list[str]) -> _Party:
    """Return a table of which the header is read."""
    file = open_table_file(path, format_of(path))
    if repeated := [name for name, count in Counter(file.names).items() if count > 1]:
        raise SutureError("dataset.duplicate", f"the column '{repeated[0]}' occurs more than once", where=str(path))
    if file.note:
        notes.append(f"{party}: the table was read so: {file.note}.")
    same = [name for name in file.names if name == label] or [
        name for name in file.names if folded(name) == folded(label)
    ]
    if len(same) != 1:
        raise SutureError(
            "study.label",
            f"there is no column {spelt(label)}; the table has {', '.join(file.names)}",
            where=str(path),
            hint=did_you_mean(label, file.names),
        )
    others = [name for name in file.names if name != same[0] and not is_row_number(name)]
    patients = [name for name in others if name == "group" or names_patient(name)]
    group = group_of(others)
    if group is not None and group != "group":
        notes.append(f"{party}: '{group}' says whose a row is. It keeps rows together, and is no feature.")
    elif group is None and patients:
        notes.append(
            f"{party}: {', '.join(patients)} may say whose a row is, and none was used. Call the right one group."
        )
    columns: dict[str, str] = {}
    for name in others:
        if name in patients:
            continue
        if folded(name) == "split":
            notes.append(f"{party}: '{name}' names splits. It is no feature; each seed divides the rows anew.")
            continue
        if (other := columns.setdefault(folded(name), name)) != name:
            raise SutureError(
                "dataset.duplicate",
                f"the columns '{other}' and '{name}' differ in writing alone",
                where=str(path),
                hint="rename one of them, or remove it",
            )
    return _Party(party, path, file, same[0], group, columns)


def _refuse_unknown(parties: Sequence[_Party], means: TableColumns) -> None:
    """Raise `SutureError` for a column that an option names and no table has."""
    everywhere = sorted({name for own in parties for name in own.file.names})
    options = {"--category": means.categories, "--ignore": means.ignored, "--zero-is-missing": means.zero_is_missing}
    for option, wanted in options.items():
        for name in wanted:
            if folded(name) not in _folded(everywhere):
                raise SutureError(
                    "study.columns",
                    f"no table has a column {spelt(name)}",
                    where=option,
                    hint=did_you_mean(name, everywhere),
                )


def _shared(parties: Sequence[_Party], means: TableColumns, notes: list[str]) -> dict[str, str]:
    """Return the columns that all have, in the first party's order: its names by folded name."""
    first, ignored = parties[0].columns, _folded(means.ignored)
    shared = {
        key: name for key, name in first.items() if key not in ignored and all(key in own.columns for own in parties)
    }
    for own in parties:
        for key, name in shared.items():
            if own.columns[key] != name:
                notes.append(f"{own.name}: the column '{own.columns[key]}' was taken for '{name}'.")
    left = {name for own in parties for key, name in own.columns.items() if key not in shared and key not in ignored}
    if left:
        notes.append(f"Columns that not every party has were left out: {', '.join(sorted(left))}.")
    return shared


def _read(own: _Party, shared: Iterable[str], numbers: Collection[str], notes: list[str]) -> None:
    """Read the cells of the rows that have a label: numbers as float32, empty ones NaN, and stripped texts."""
    names = [own.columns[key] for key in shared]
    of_numbers = [own.columns[key] for key in numbers]
    wanted = [own.label, *([own.group] if own.group else []), *names]
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    try:
        for batch in own.file.batches(wanted, of_numbers):
            for name, chunks in parts.items():
                column = batch.column(name)
                if name in of_numbers:
                    chunks.append(column.cast("double").to_numpy(zero_copy_only=False).astype(np.float32))
                else:
                    cells = ["" if cell is None else str(cell).strip() for cell in column.to_pylist()]
                    chunks.append(np.array(cells, dtype=object))
    except SutureError as error:
        if error.code != "dataset.not_numbers":
            raise
        raise SutureError(
            "dataset.not_numbers",
            error.message,
            where=str(own.path),
            hint="correct these rows, leave the column out (--ignore), or take its values for categories (--category)",
        ) from None
    read = {name: np.concatenate(chunks or [np.array([], dtype=object)]) for name, chunks in parts.items()}
    labelled = read[own.label] != ""
    if not labelled.any():
        raise SutureError("study.label", f"no row has a label in the column '{own.label}'", where=str(own.path))
    if dropped := int((~labelled).sum()):
        notes.append(f"{own.name}: {dropped} of {len(labelled)} rows have no label and were left out.")
    own.cells = {name: values[labelled] for name, values in read.items()}
    for name in of_numbers:
        own.cells[name][~np.isfinite(own.cells[name])] = np.nan


def _refuse_amounts(label: str, labels: Sequence[str], rows: int) -> None:
    """Raise `SutureError` where the column of labels holds amounts, not names of classes."""
    broken = [text for text in labels if (number := by_number(text)[0]) < float("inf") and not number.is_integer()]
    if broken or (len(labels) > _MOST_CATEGORIES and rows < _ROWS_PER_LABEL * len(labels)):
        raise SutureError(
            "study.label",
            f"the column '{label}' holds {len(labels)} values in {rows} rows"
            + (f", such as {broken[0]}" if broken else "")
            + ": amounts or names of their own, no classes",
            where="--label",
            hint="name a column with few values, or divide these into classes in a column of its own",
        )


def _folded(names: Iterable[str]) -> set[str]:
    return {folded(name) for name in names}


def _one_hot(values: Sequence[str], seen: Sequence[str]) -> NDArray[np.float32]:
    return np.array([[float(value == category) for category in seen] for value in values], dtype=np.float32)


__all__ = ["TableColumns", "table_files"]
