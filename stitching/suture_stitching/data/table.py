"""Tables: one row per sample, one column per feature, and a label column; or signals, one list per row.

A table is read once, a piece at a time, into a temporary file that is mapped: it may be larger than memory. How it is
written is the matter of `table_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_contract.naming import did_you_mean, folded
from suture_stitching.data.arrays import ArrayDataset, chunks, strata
from suture_stitching.data.doubts import NoValue
from suture_stitching.data.samples import patient_column
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.splits import Indices, digests, split_samples
from suture_stitching.data.spool import Spool
from suture_stitching.data.subgroups import as_numbers, read_subgroups
from suture_stitching.data.table_files import TableFile, open_table_file, rows_held
from suture_stitching.data.targets import label_places, marks, refuse_unknown
from suture_stitching.data.words import how_to_join, is_row_number, names_patient


@dataclass(frozen=True)
class _Chosen:
    """Which columns are read, and as what; `signals` are lists of numbers."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    split: str | None
    group: str | None
    numbers: frozenset[str]
    signals: bool
    ordered: bool

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys([*self.features, *self.targets, *filter(None, (self.split, self.group))]))


def open_table(spec: DatasetSpec) -> ArrayDataset:
    """Read the columns that `spec` names. Raises `SutureError` (`dataset.*`) naming the column."""
    where = str(spec.path)
    file = open_table_file(spec.path, spec.format, spec.sheet)
    chosen = _choose(file, spec)
    content = _read(file, chosen, spec)
    targets = _targets(chosen, content.codes, content.numbers, spec)
    groups = content.codes[chosen.group].texts if chosen.group else None
    splits = split_samples(
        content.keys,
        strata(targets, spec.task),
        spec.split,
        names=content.codes[chosen.split].texts if chosen.split else None,
        groups=groups,
        where=where,
    )
    inputs = content.inputs
    if content.filled:
        _fill_with_mean(inputs, splits["train"], chosen.features, where)
    dataset = ArrayDataset(
        inputs,
        targets,
        spec.names,
        task=spec.task,
        split=splits,
        groups=groups,
        value_range=spec.value_range,
        channels=None if len(inputs.shape) > 2 and len(chosen.features) != inputs.shape[1] else chosen.features,
        one_class=spec.one_class,
        where=where,
    )
    dataset.filled, dataset.ordered = content.filled, chosen.ordered
    dataset.subgroups = read_subgroups(spec, partial(_subgroup_column, file, where))
    dataset.notes = tuple(_notes(file, chosen, spec))
    return dataset


@dataclass(frozen=True)
class _Content:
    """The chosen columns, read: `inputs` `(N, F)` or signals, `numbers` `(N, T)` of targets, and a key per row.

    `filled` says whether inputs have empty cells, which are NaN until they are filled.
    """

    inputs: NDArray[np.float32]
    numbers: NDArray[np.float64]
    codes: dict[str, _Codes]
    keys: NDArray[np.void]
    filled: bool


def _read(file: TableFile, chosen: _Chosen, spec: DatasetSpec) -> _Content:
    """Read the chosen columns batch by batch; inputs go through a file."""
    where = str(spec.path)
    codes = {name: _Codes() for name in chosen.all if name not in chosen.numbers}
    empty: dict[str, int] = dict.fromkeys(chosen.all, 0)
    numbers: list[NDArray[np.float64]] = []
    keys: list[NDArray[np.void]] = []
    rows, shape = 0, (len(chosen.features),)
    coded = NoValue(() if chosen.signals else chosen.features, spec.empty)
    coded_targets = NoValue(chosen.targets if spec.task == "regression" else (), spec.empty)
    with Spool() as spool:
        for batch in file.batches(chosen.all, chosen.numbers):
            for name in chosen.all:
                empty[name] += batch.column(name).null_count
            for name, column in codes.items():
                if not chosen.signals or name not in chosen.features:
                    column.add(batch.column(name))
            if chosen.signals:
                values = _signals(batch, chosen.features, rows, where)
                if rows and values.shape[1:] != shape:
                    raise _lengths_differ(rows, where)
            else:
                # Missing cells are NaN from here to where they are filled in; cells that hold NaN count as missing.
                values = np.stack([_values(batch, name, rows, codes, spec) for name in chosen.features], axis=1)
                coded.take_out(values)
                for name, count in zip(chosen.features, np.isnan(values).sum(axis=0).tolist(), strict=True):
                    empty[name] += count - batch.column(name).null_count
            shape = values.shape[1:]
            measured = {name: _numbers(batch, name, rows, where) for name in chosen.targets if name not in codes}
            numbers.append(np.array(list(measured.values())))
            if spec.task == "regression":
                coded_targets.take_out(numbers[-1].T)
                for name, own in zip(measured, numbers[-1], strict=True):
                    empty[name] += int(np.isnan(own).sum()) - batch.column(name).null_count
            keys.append(digests(values))
            with np.errstate(over="ignore"):  # infinite ones are refused below
                spool.append(values.astype(np.float32))
            rows += len(values)
        if not rows:
            raise SutureError("dataset.empty", "the table has no rows", where=where)
        coded.refuse(where, filled=True)
        coded_targets.refuse(where, filled=False)
        _refuse_empty(chosen, empty, rows, spec)
        inputs = spool.array((rows, *_as_signal(shape, spec)), np.float32)
    filled = any(empty[name] for name in chosen.features)
    return _Content(inputs, np.concatenate(numbers, axis=-1).T, codes, np.concatenate(keys), filled)


def _subgroup_column(file: TableFile, where: str, name: str, numbers: bool) -> NDArray[Any]:
    """Return a column's values `(N,)`, as numbers or as texts."""
    if name not in file.names:
        raise SutureError(
            "dataset.missing_column",
            f"there is no column '{name}'; the table has {', '.join(file.names)}",
            where=where,
            hint="correct the dataset's subgroups",
        )
    batches = file.batches([name], [name] if numbers and file.is_number(name) else [])
    values = np.concatenate([np.array(batch.column(name).to_pylist(), dtype=object) for batch in batches])
    if numbers:
        return as_numbers(values, name, where)
    return np.array(
        ["" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    )


def _notes(file: TableFile, chosen: _Chosen, spec: DatasetSpec) -> list[str]:
    notes = [file.note] if file.note else []
    if chosen.group and spec.columns.group is None:
        notes.append(f"the column '{chosen.group}' says whose a row is; it is no feature")
    if left := [name for name in file.names if name not in chosen.all]:
        shown = ", ".join(repr(name) for name in left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        notes.append(f"not read: {shown}")
    return notes


class _Codes:
    """A column of text, each distinct value kept once."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._parts: list[NDArray[np.int32]] = []

    def add(self, column: Any) -> None:
        encoded = column if pyarrow.types.is_dictionary(column.type) else column.dictionary_encode()
        texts = (str(value).strip() for value in encoded.dictionary.to_pylist())
        known = [self._index.setdefault(text, len(self._index)) for text in texts]
        # Rows without a value are refused once all are counted.
        positions = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
        self._parts.append(np.array(known or [0], dtype=np.int32)[positions])

    @property
    def distinct(self) -> list[str]:
        return list(self._index)

    @property
    def codes(self) -> NDArray[np.int32]:
        return np.concatenate(self._parts)

    @property
    def texts(self) -> NDArray[np.str_]:
        return np.array(self.distinct, dtype=np.str_)[self.codes]


def _choose(file: TableFile, spec: DatasetSpec) -> _Chosen:
    where, columns, names = str(spec.path), spec.columns, file.names
    file.check_names()
    _check_empty(names, spec)
    targets = spec.labels if spec.task == "multilabel" else (columns.label or _column_of("label", names) or "label",)
    stated = columns.features
    wanted = spec.input.channels if spec.input is not None and spec.input.format == "table" else None
    taken = {*(stated or wanted or ()), *targets}
    split = columns.split or (named if (named := _column_of("split", names)) not in taken else None)
    patients = [name for name in names if names_patient(name) and name not in {*taken, split}]
    group = columns.group or patient_column(patients, where, lambda name: _texts(file, name))
    reserved = {*targets, *patients, *filter(None, (split, group))}
    # A column of texts that only says which subgroup a row is of is no feature.
    reserved |= {name for name in spec.subgroups if name in names and not file.is_number(name)}
    features = stated or wanted or tuple(name for name in names if name not in reserved and not is_row_number(name))
    for name in (*targets, *features, *filter(None, (split, group))):
        if name not in names:
            what = "one column per label, features, split" if spec.task == "multilabel" else "label, features, split"
            close = did_you_mean(name, [other for other in names if other])
            raise SutureError(
                "dataset.missing_column",
                f"there is no column '{name}'; the table has {', '.join(names)}",
                where=where,
                hint=f"name them in the dataset's columns: {what}"
                + ("; --label names that of the labels" if name in targets and spec.task != "multilabel" else "")
                + (f"; {close}" if close.startswith("did you") else "")
                + (how_to_join(names, spec.labels) if name in targets and spec.task == "classification" else ""),
            )
    if not features:
        raise SutureError("dataset.missing_column", "the table has no column besides the label", where=where)
    if leak := set(features) & {*targets, *filter(None, (split, group))}:
        raise SutureError(
            "dataset.contradiction",
            f"the column '{min(leak)}' is a feature and says the label, split or group as well",
            where=where,
            hint="leave it out of features",
        )
    signals = all(file.is_list(name) for name in features)
    coded = set() if signals else {name for name in features if name in spec.categories}
    needed = set() if signals else set(features) - coded
    numbers = frozenset(needed if spec.task == "classification" else {*needed, *targets})
    for name in (name for name in names if name in numbers):
        if not file.is_number(name):
            raise _target_error(name, spec) if name in targets and file.is_text(name) else file.not_numbers(name)
    _check_number(features, spec, signals, where)
    return _Chosen(tuple(features), targets, split, group, numbers, signals, stated is not None)


def _target_error(name: str, spec: DatasetSpec) -> SutureError:
    """Return the error for a label's column, or one of values to predict, that holds text."""
    return SutureError(
        "dataset.not_numbers",
        f"the column '{name}' holds text, not numbers",
        where=str(spec.path),
        hint="each label has a column that holds 1 where a row has it, else 0"
        if spec.task == "multilabel"
        else "each row has a number to predict: leave out rows without one",
    )


def _check_empty(names: Sequence[str], spec: DatasetSpec) -> None:
    """Raise where `empty` speaks of a column that is not there."""
    unknown = next((name for name in spec.empty if name not in names), None)
    if unknown is not None:
        raise SutureError(
            "dataset.missing_column",
            f"there is no column '{unknown}', of which empty speaks; the table has {', '.join(names)}",
            where=str(spec.path),
            hint="correct the dataset's empty",
        )


def _texts(file: TableFile, name: str) -> list[str]:
    cells = (cell for batch in file.batches([name], ()) for cell in batch.column(name).to_pylist())
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _column_of(wanted: str, names: Sequence[str]) -> str | None:
    """Return the column of this name, or the only one that differs from it in writing alone."""
    if wanted in names:
        return wanted
    alike = [name for name in names if folded(name) == wanted]
    return alike[0] if len(alike) == 1 else None


def _check_number(features: Sequence[str], spec: DatasetSpec, signals: bool, where: str) -> None:
    reads = spec.input
    if reads is None or reads.format != "table" or signals or reads.spatial_shape:
        return
    if len(features) != reads.num_channels:
        raise SutureError(
            "dataset.wrong_shape",
            f"the model reads {reads.num_channels} columns, the table has {len(features)}: {', '.join(features)}",
            where=where,
            hint="say which, in the order in which the model reads them: columns = { features = [...] }",
        )


def _as_signal(shape: tuple[int, ...], spec: DatasetSpec) -> tuple[int, ...]:
    """Return the shape of a sample: a row of numbers is a signal where the models read one of that length."""
    reads = spec.input
    if reads is not None and len(shape) == 1 and len(reads.spatial_shape) == 1 and reads.num_channels == 1:
        return (1, *shape)
    return shape


def _signals(batch: Any, names: Sequence[str], start: int, where: str) -> NDArray[np.float64]:
    """Return `(N, C, T)` of columns that hold a list of numbers per row."""
    channels = []
    for name in names:
        column = batch.column(name)
        if column.null_count:
            raise SutureError("dataset.missing_values", f"the column '{name}' is empty in some rows", where=where)
        lengths = np.unique(np.asarray([len(cell) for cell in column]))
        if len(lengths) > 1:
            raise _lengths_differ(start, where)
        flat = column.flatten().cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
        if not np.isfinite(flat).all():
            raise SutureError("dataset.not_finite", f"the column '{name}' holds NaN or infinity", where=where)
        channels.append(flat.reshape(len(column), -1))
    if len({channel.shape for channel in channels}) > 1:
        raise _lengths_differ(start, where)
    return np.stack(channels, axis=1)


def _lengths_differ(start: int, where: str) -> SutureError:
    return SutureError(
        "dataset.sizes_differ",
        f"signals from row {start} on have several lengths",
        where=where,
        hint="cut or pad them to one length beforehand",
    )


def _values(batch: Any, name: str, start: int, codes: dict[str, _Codes], spec: DatasetSpec) -> NDArray[np.float64]:
    """Return a feature as numbers: as they are, or of texts their place among the column's `categories`."""
    if name not in codes:
        return _numbers(batch, name, start, str(spec.path))
    places = {text: float(place) for place, text in enumerate(spec.categories[name])}
    cells = [None if cell is None else str(cell).strip() for cell in batch.column(name).to_pylist()]
    unknown = next((row for row, cell in enumerate(cells) if cell is not None and cell not in places), None)
    if unknown is not None:
        raise SutureError(
            "dataset.unknown_category",
            f"the column '{name}' holds in row {start + unknown} none of its categories",
            where=str(spec.path),
            hint="rows are counted from 0 below the header; name all categories, in the order of their numbers",
        )
    return np.array([np.nan if cell is None else places[cell] for cell in cells], dtype=np.float64)


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
        hint = "complete or remove these rows; NA, None, NULL, ? and the like are empty cells"
        if name in chosen.targets and spec.task == "classification":
            hint += ", whatever a label is called"
        if name in chosen.features:
            hint += ', leave the column out of features, or set missing = "mean"'
        elif spec.task == "multilabel" and name in chosen.targets:
            if spec.blank == "negative":
                continue
            hint += ', or set blank = "negative" if an empty cell means that a row does not have the label'
        raise SutureError(
            "dataset.missing_values",
            f"the column '{name}' is empty in {empty[name]} of {rows} rows",
            where=str(spec.path),
            hint=hint,
        )


def _targets(
    chosen: _Chosen, codes: dict[str, _Codes], numbers: NDArray[np.float64], spec: DatasetSpec
) -> NDArray[Any]:
    if spec.task == "multilabel":
        return marks(numbers, spec)
    if spec.task != "classification":
        return numbers
    column = codes[chosen.targets[0]]
    targets = label_places(column.distinct, spec.labels)[column.codes]
    refuse_unknown(targets, spec.labels, where=f"{spec.path}: {chosen.targets[0]}")
    return targets


def _fill_with_mean(values: NDArray[np.float32], train: Indices, features: tuple[str, ...], where: str) -> None:
    """Replace NaN in `values` by the column's mean over the training rows, so that no test value leaks in."""
    counts = np.zeros(len(features), dtype=np.int64)
    sums = np.zeros(len(features))
    step = rows_held(len(features))
    for start in range(0, len(train), step):
        rows = values[train[start : start + step]].reshape(-1, len(features))
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
