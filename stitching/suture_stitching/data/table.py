"""Tables: a CSV or Parquet file with one row per sample, one column per feature, and a label column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from suture_stitching.data.dataset import ArrayDataset, divide, index_labels
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.errors import SutureError


def open_table(spec: DatasetSpec) -> ArrayDataset:
    """Read the columns that `spec` names. Raises `SutureError` (`dataset.*`) naming the column."""
    table = _read(spec)
    where, columns = str(spec.path), spec.columns
    names = table.column_names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SutureError("dataset.duplicate", f"the column '{repeated}' occurs more than once", where=where)
    label = columns.label or "label"
    split = columns.split or ("split" if "split" in names and "split" not in (columns.features or ()) else None)
    features = columns.features or tuple(name for name in names if name not in (label, split))
    for name in (label, *features, *([split] if split else [])):
        if name not in names:
            raise SutureError(
                "dataset.missing_column",
                f"there is no column '{name}'; the table has {', '.join(names)}",
                where=where,
                hint="name them in the dataset's columns: label, features, split",
            )
    if not table.num_rows:
        raise SutureError("dataset.empty", "the table has no rows", where=where)

    targets = _labels(table, label, spec)
    names_of_splits = _text(table, split, where) if split else None
    # Missing cells are NaN from here to where they are filled in; cells that hold NaN themselves count as missing.
    values = np.stack([_numbers(table, name, where) for name in features], axis=1)
    empty = np.isnan(values)
    if empty.any() and spec.missing == "error":
        column = int(np.argmax(empty.any(axis=0)))
        raise SutureError(
            "dataset.missing_values",
            f"the column '{features[column]}' is empty in {int(empty[:, column].sum())} of {len(values)} rows",
            where=where,
            hint='complete or remove these rows, leave the column out of features, or set missing = "mean"',
        )

    split_rule = spec.split if names_of_splits is None else names_of_splits
    classes = np.zeros(len(targets), dtype=np.int64) if spec.task == "regression" else targets
    splits = divide(values, classes, split_rule, where=where)
    if empty.any():
        values = _fill_with_mean(values, values[splits["train"]], features, where)
    return ArrayDataset(
        values.astype(np.float32),
        targets,
        spec.labels,
        task=spec.task,
        split=splits,
        value_range=spec.value_range,
        channels=features,
        where=where,
    )


def _fill_with_mean(
    values: NDArray[np.float64], train: NDArray[np.float64], features: tuple[str, ...], where: str
) -> NDArray[np.float64]:
    """Return `values` with NaN replaced by the column's mean over the training rows, so that no test value leaks in."""
    known = ~np.isnan(train)
    counts = known.sum(axis=0)
    if not counts.all():
        raise SutureError(
            "dataset.missing_values",
            f"the column '{features[int(np.argmin(counts))]}' is empty in every training row, so it has no mean",
            where=where,
            hint="leave the column out of features, or complete it",
        )
    means = np.where(known, train, 0.0).sum(axis=0) / counts
    return np.where(np.isnan(values), means, values)


def _read(spec: DatasetSpec) -> Any:
    path: Path = spec.path
    try:
        if spec.format == "parquet":
            return pyarrow.parquet.read_table(path)
        return pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException, UnicodeDecodeError):
        # Arrow's own message quotes the line it stumbled over, so it is not passed on.
        raise SutureError(
            "dataset.unreadable",
            "not a Parquet file" if spec.format == "parquet" else "not CSV: a row has too many or too few cells",
            where=str(path),
            hint="a table has one header line, and one cell per column in every row",
        ) from None


def _numbers(table: Any, name: str, where: str) -> NDArray[np.float64]:
    column = table.column(name)
    kind = column.type
    if not (
        pyarrow.types.is_integer(kind)
        or pyarrow.types.is_floating(kind)
        or pyarrow.types.is_boolean(kind)
        or pyarrow.types.is_null(kind)
    ):
        raise SutureError(
            "dataset.not_numbers",
            f"the column '{name}' holds {kind}, not numbers",
            where=where,
            hint="encode it as numbers, or leave it out of features",
        )
    values: NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy()
    if np.isinf(values).any():
        raise SutureError(
            "dataset.not_finite",
            f"the column '{name}' is infinite in row {int(np.argmax(np.isinf(values)))}",
            where=where,
            hint="rows are counted from 0 below the header; correct or remove it",
        )
    return values


def _text(table: Any, name: str, where: str) -> list[str]:
    _refuse_nulls(table, name, where)
    return [str(value) for value in table.column(name).to_pylist()]


def _labels(table: Any, name: str, spec: DatasetSpec) -> NDArray[Any]:
    where = str(spec.path)
    if spec.task == "regression":
        _refuse_nulls(table, name, where)
        return _numbers(table, name, where)
    _refuse_nulls(table, name, where)
    column = table.column(name)
    if pyarrow.types.is_floating(column.type):
        values = column.to_numpy()
        if np.array_equal(values, np.trunc(values)):
            return index_labels(values.astype(np.int64), spec.labels, where=f"{where}: {name}")
    if pyarrow.types.is_integer(column.type):
        return index_labels(column.to_numpy(), spec.labels, where=f"{where}: {name}")
    return index_labels(np.array(_text(table, name, where)), spec.labels, where=f"{where}: {name}")


def _refuse_nulls(table: Any, name: str, where: str) -> None:
    missing = table.column(name).null_count
    if missing:
        raise SutureError(
            "dataset.missing_values",
            f"the column '{name}' is empty in {missing} of {table.num_rows} rows",
            where=where,
            hint="complete or remove these rows",
        )
