"""Tables: a CSV or Parquet file with one row per sample, one column per feature, and a label column.

A table is read once, a piece at a time, into a temporary file that is mapped: it may be larger than memory.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.naming import folded
from suture_stitching.data.arrays import ArrayDataset, chunks, label_indices, refuse_unknown, strata
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices, digests, split_samples
from suture_stitching.data.spool import Spool
from suture_stitching.data.text_table import opened, sniff
from suture_stitching.data.words import names_patient

#: Of a table that are held at a time.
_BYTES = 4 * 1024 * 1024
#: How Arrow names the column with a cell that does not convert; what follows is the cell, which is not passed on.
_BAD_CELL = re.compile(r"In CSV column #(\d+): CSV conversion error")


@dataclass(frozen=True)
class _Chosen:
    """Which columns are read, and as what."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    split: str | None
    group: str | None
    numbers: frozenset[str]

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.features, *self.targets, *filter(None, (self.split, self.group))]))


def open_table(spec: DatasetSpec) -> ArrayDataset:
    """Read the columns that `spec` names. Raises `SutureError` (`dataset.*`) naming the column."""
    where = str(spec.path)
    chosen = _choose(_schema(spec), spec)
    codes = {name: _Codes() for name in chosen.all if name not in chosen.numbers}
    empty: dict[str, int] = dict.fromkeys(chosen.all, 0)
    numbers: list[NDArray[np.float64]] = []
    keys: list[NDArray[np.void]] = []
    rows = 0
    with Spool() as spool:
        for batch in _batches(spec, chosen):
            for name in chosen.all:
                empty[name] += batch.column(name).null_count
            for name, column in codes.items():
                column.add(batch.column(name))
            # Missing cells are NaN from here to where they are filled in; cells that hold NaN count as missing.
            values = np.stack([_numbers(batch, name, rows, where) for name in chosen.features], axis=1)
            for name, count in zip(chosen.features, np.isnan(values).sum(axis=0).tolist(), strict=True):
                empty[name] += count - batch.column(name).null_count
            numbers.append(
                np.array([_numbers(batch, name, rows, where) for name in chosen.targets if name not in codes])
            )
            keys.append(digests(values))
            with np.errstate(over="ignore"):  # infinite ones are refused below
                spool.append(values.astype(np.float32))
            rows += len(values)
        if not rows:
            raise SutureError("dataset.empty", "the table has no rows", where=where)
        _refuse_empty(chosen, empty, rows, spec)
        inputs = spool.array((rows, len(chosen.features)), np.float32)

    targets = _targets(chosen, codes, np.concatenate(numbers, axis=-1).T, spec)
    splits = split_samples(
        np.concatenate(keys),
        strata(targets, spec.task),
        spec.split,
        names=codes[chosen.split].texts if chosen.split else None,
        groups=codes[chosen.group].texts if chosen.group else None,
        where=where,
    )
    if any(empty[name] for name in chosen.features):
        _fill_with_mean(inputs, splits["train"], chosen.features, where)
    dataset = ArrayDataset(
        inputs,
        targets,
        spec.names,
        task=spec.task,
        split=splits,
        groups=codes[chosen.group].texts if chosen.group else None,
        value_range=spec.value_range,
        channels=chosen.features,
        where=where,
    )
    dataset.filled = any(empty[name] for name in chosen.features)
    return dataset


def column_names(path: Path) -> list[str]:
    """Return the columns of a training table that are features by their names: not label, split, patient or row."""
    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
    else:
        form = sniff(path)
        with opened(path, form.zipped) as raw, io.TextIOWrapper(raw, form.encoding) as text:
            for _ in range(form.skip):
                next(text, "")
            names = [name.strip() for name in next(csv.reader(text, delimiter=form.delimiter), [])]
    return [name for name in names if name and folded(name) not in ("label", "split") and not names_patient(name)]


class _Codes:
    """A column of text, each distinct value kept once."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, column: Any) -> None:
        encoded = column.dictionary_encode()
        known = [self._index.setdefault(str(value), len(self._index)) for value in encoded.dictionary.to_pylist()]
        # Rows without a value are refused once all are counted.
        positions = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        self._parts.append(np.array(known or [0], dtype=np.int32)[positions])

    @property
    def distinct(self) -> NDArray[np.str_]:
        return np.array(list(self._index), dtype=np.str_)

    @property
    def codes(self) -> NDArray[np.int32]:
        return np.concatenate(self._parts)

    @property
    def texts(self) -> NDArray[np.str_]:
        return self.distinct[self.codes]


def _choose(schema: Any, spec: DatasetSpec) -> _Chosen:
    where, columns, names = str(spec.path), spec.columns, schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SutureError("dataset.duplicate", f"the column '{repeated}' occurs more than once", where=where)
    targets = spec.labels if spec.task == "multilabel" else (columns.label or "label",)
    split = columns.split or ("split" if "split" in names and "split" not in (columns.features or ()) else None)
    reserved = {*targets, *filter(None, (split, columns.group))}
    features = columns.features or tuple(name for name in names if name not in reserved)
    chosen = _Chosen(
        features,
        targets,
        split,
        columns.group,
        frozenset(features if spec.task == "classification" else (*features, *targets)),
    )
    for name in (*targets, *features, *filter(None, (split, columns.group))):
        if name not in names:
            wanted = "one column per label, features, split" if spec.task == "multilabel" else "label, features, split"
            raise SutureError(
                "dataset.missing_column",
                f"there is no column '{name}'; the table has {', '.join(names)}",
                where=where,
                hint=f"name them in the dataset's columns: {wanted}",
            )
    if not features:
        raise SutureError("dataset.missing_column", "the table has no column besides the label", where=where)
    if leak := set(features) & reserved:
        raise SutureError(
            "dataset.contradiction",
            f"the column '{min(leak)}' is a feature and says the label, split or group as well",
            where=where,
            hint="leave it out of features",
        )
    for name in sorted(chosen.numbers):
        if not _is_number(kind := schema.field(name).type):
            raise _not_numbers(name, str(kind), where)
    return chosen


def _schema(spec: DatasetSpec) -> Any:
    """Return names and types; of CSV as its first rows show them."""
    with _naming_the_file(spec):
        if spec.format == "parquet":
            with pyarrow.parquet.ParquetFile(spec.path) as file:
                return file.schema_arrow
        with pyarrow.csv.open_csv(
            spec.path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
        ) as file:
            return file.schema


def _batches(spec: DatasetSpec, chosen: _Chosen) -> Iterator[Any]:
    """Yield the chosen columns, some rows at a time: numbers as numbers or booleans, the others as they are or text."""
    with _naming_the_file(spec, _schema(spec).names):
        if spec.format == "parquet":
            with pyarrow.parquet.ParquetFile(spec.path, buffer_size=1 << 20) as file:
                yield from file.iter_batches(_rows(len(chosen.all)), columns=chosen.all)
            return
        # What the first rows show as an integer may be broken further down.
        seen = _schema(spec)
        types = {
            name: (pyarrow.bool_() if pyarrow.types.is_boolean(seen.field(name).type) else pyarrow.float64())
            if name in chosen.numbers
            else pyarrow.string()
            for name in chosen.all
        }
        options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, column_types=types, include_columns=chosen.all)
        with pyarrow.csv.open_csv(spec.path, convert_options=options) as file:
            yield from file


def _rows(columns: int) -> int:
    """Return how many rows of so many numbers are held at a time."""
    return max(1, _BYTES // (8 * columns))


@contextmanager
def _naming_the_file(spec: DatasetSpec, names: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except MemoryError:  # Arrow's own is an ArrowException, too
        raise
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException, UnicodeDecodeError) as error:
        # Arrow's own message quotes the line it stumbled over, so it is not passed on.
        if (cell := _BAD_CELL.search(str(error))) and int(cell[1]) < len(names):
            raise _not_numbers(names[int(cell[1])], "text in some of its rows", str(spec.path)) from None
        raise SutureError(
            "dataset.unreadable",
            "not a Parquet file" if spec.format == "parquet" else "not CSV: a row has too many or too few cells",
            where=str(spec.path),
            hint="a table has one header line, and one cell per column in every row",
        ) from None


def _is_number(kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind))


def _not_numbers(name: str, kind: str, where: str) -> SutureError:
    return SutureError(
        "dataset.not_numbers",
        f"the column '{name}' holds {kind}, not numbers",
        where=where,
        hint="encode it as numbers, or leave it out of features",
    )


def _numbers(batch: Any, name: str, start: int, where: str) -> NDArray[np.float64]:
    """Return a column of a batch that begins at row `start`, NaN where it is empty."""
    column = batch.column(name)
    values: NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    if np.isinf(values).any():
        raise SutureError(
            "dataset.not_finite",
            f"the column '{name}' is infinite in row {start + int(np.argmax(np.isinf(values)))}",
            where=where,
            hint="rows are counted from 0 below the header; correct or remove it",
        )
    return values


def _refuse_empty(chosen: _Chosen, empty: dict[str, int], rows: int, spec: DatasetSpec) -> None:
    for name in chosen.all:
        if not empty[name] or (name in chosen.features and spec.missing == "mean"):
            continue
        hint = "complete or remove these rows"
        if name in chosen.features:
            hint += ', leave the column out of features, or set missing = "mean"'
        raise SutureError(
            "dataset.missing_values",
            f"the column '{name}' is empty in {empty[name]} of {rows} rows",
            where=str(spec.path),
            hint=hint,
        )


def _targets(
    chosen: _Chosen, codes: dict[str, _Codes], numbers: NDArray[np.float64], spec: DatasetSpec
) -> NDArray[Any]:
    if spec.task != "classification":
        return numbers
    column = codes[chosen.targets[0]]
    distinct: NDArray[Any] = column.distinct
    if not set(distinct.tolist()) <= set(spec.labels):
        distinct = _whole_numbers(distinct)
    targets = label_indices(distinct, spec.labels)[column.codes]
    refuse_unknown(targets, spec.labels, where=f"{spec.path}: {chosen.targets[0]}")
    return targets


def _whole_numbers(texts: NDArray[np.str_]) -> NDArray[Any]:
    """Return the texts as integers if all of them are some, 1 or 1.0; else as they are."""
    try:
        values = texts.astype(np.float64)
    except ValueError:
        return texts
    whole = np.isfinite(values) & (values == np.trunc(values)) & (np.abs(values) < 2**53)
    return values.astype(np.int64) if whole.all() else texts


def _fill_with_mean(values: NDArray[np.float32], train: Indices, features: tuple[str, ...], where: str) -> None:
    """Replace NaN in `values` by the column's mean over the training rows, so that no test value leaks in."""
    counts = np.zeros(len(features), dtype=np.int64)
    sums = np.zeros(len(features))
    step = _rows(len(features))
    for start in range(0, len(train), step):
        rows = values[train[start : start + step]]
        known = ~np.isnan(rows)
        counts += known.sum(axis=0)
        sums += np.where(known, rows, 0.0).sum(axis=0, dtype=np.float64)
    if not counts.all():
        raise SutureError(
            "dataset.missing_values",
            f"the column '{features[int(np.argmin(counts))]}' is empty in every training row, so it has no mean",
            where=where,
            hint="leave the column out of features, or complete it",
        )
    means = (sums / counts).astype(np.float32)
    for chunk in chunks(values):
        np.copyto(chunk, means, where=np.isnan(chunk))
