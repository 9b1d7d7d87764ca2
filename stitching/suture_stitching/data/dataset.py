"""A labelled dataset in three splits, read in batches; and the one that is held in arrays.

Importing this module does not import torch: a site's agent reads specifications and counts samples without it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suture_stitching.data.spec import SPLITS, Split, SplitRule
from suture_stitching.data.splits import Indices, Splits, by_name, carve_validation, stratified
from suture_stitching.errors import SutureError
from suture_stitching.portable.metadata import Task

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_BYTES = 32 * 1024 * 1024


class Dataset(ABC):
    """Samples of one task in the splits `train`, `validation` and `test`.

    `labels` are the class names in the order of their index (empty for regression); `input_shape` is `(C, *spatial)`;
    `value_range` is the range all inputs lie in, or None where nothing is promised; `channels` are the names of a
    table's features.
    """

    task: Task
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    value_range: tuple[float, float] | None = None
    channels: tuple[str, ...] | None = None
    where: str
    _splits: Splits

    @abstractmethod
    def _read(self, indices: Indices) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return inputs `(N, C, *spatial)` and targets of these samples, in this order."""

    @abstractmethod
    def _label_counts(self, indices: Indices) -> NDArray[np.int64]:
        """Return, per label, how many of these samples have it."""

    def n(self, split: Split) -> int:
        """Return the number of samples in `split`."""
        return len(self._splits[split])

    def counts(self, split: Split) -> dict[str, int]:
        """Return how many samples of `split` have each label (segmentation: show it anywhere); empty for regression."""
        if not self.labels:
            return {}
        return dict(zip(self.labels, self._label_counts(self._splits[split]).tolist(), strict=True))

    def batches(self, split: Split, batch_size: int, *, seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs `(N, C, *spatial)` float32 and their targets, each sample once; `seed` shuffles them.

        Targets are `(N,)` int64 label indices (classification), `(N, *spatial)` int64 (segmentation) or `(N, K)`
        float32 (regression). Raises `SutureError` (`dataset.*`) for an empty split or a sample that cannot be read.
        """
        import torch

        order = self._splits[split]
        if not len(order):
            raise SutureError(
                "dataset.empty_split",
                f"the {split} split has no samples",
                where=self.where,
                hint=f"add samples to {split}, or remove the split to have it made from a seed",
            )
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        target_type = np.float32 if self.task == "regression" else np.int64
        for start in range(0, len(order), batch_size):
            inputs, targets = self._read(order[start : start + batch_size])
            yield (
                torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)),
                torch.from_numpy(np.ascontiguousarray(targets, dtype=target_type)),
            )

    def _check_splits(self) -> None:
        """Raise `SutureError` when a split that every job needs is empty, or training data hold a single class."""
        for split in ("validation", "test"):
            if not self.n(split):
                raise SutureError(
                    "dataset.empty_split",
                    f"the {split} split has no samples",
                    where=self.where,
                    hint="add samples, or give each sample a split (train, validation or test)",
                )
        if self.task == "classification" and self.n("train"):
            present = [label for label, count in self.counts("train").items() if count]
            if len(present) == 1:
                raise SutureError(
                    "dataset.one_class",
                    f"all training samples are labelled '{present[0]}'",
                    where=self.where,
                    hint="a classifier needs samples of at least two classes in its training split",
                )


class ArrayDataset(Dataset):
    """A dataset held in arrays (or memory-mapped from a file), converted batch by batch.

    `inputs` are `(N, C, *spatial)`; 8- and 16-bit unsigned integers are scaled onto `value_range` (default (0, 1)),
    other numbers are taken as they are. `targets` are label indices `(N,)`, masks `(N, *spatial)` or values `(N, K)`
    or `(N,)`. `split` names a split per sample, or gives the indices of each, or is the rule by which they are made.
    """

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        labels: Sequence[str] = (),
        *,
        task: Task = "classification",
        split: Sequence[str] | SplitRule | Splits | None = None,
        value_range: tuple[float, float] | None = None,
        channels: Sequence[str] | None = None,
        where: str = "dataset",
    ) -> None:
        self.where = where
        self.task = task
        self.labels = tuple(labels)
        self._inputs = _as_inputs(np.asanyarray(inputs), where)
        self._targets = _as_targets(np.asanyarray(targets), task, where)
        self.input_shape = tuple(self._inputs.shape[1:])
        self.channels = None if channels is None else tuple(channels)
        self._scale = full_scale(self._inputs.dtype)
        self.value_range = value_range or ((0.0, 1.0) if self._scale else None)
        self._check_content()
        if not isinstance(split, Mapping):
            classes = self._targets if task == "classification" else np.zeros(len(self._targets), dtype=np.int64)
            split = divide(self._inputs, classes, SplitRule() if split is None else split, where=where)
        self._splits = split
        self._check_splits()

    def _read(self, indices: Indices) -> tuple[NDArray[np.float32], NDArray[Any]]:
        inputs = self._inputs[indices].astype(np.float32)
        if self._scale and self.value_range:
            inputs = to_range(inputs, self._scale, self.value_range)
        return inputs, self._targets[indices]

    def _label_counts(self, indices: Indices) -> NDArray[np.int64]:
        counts = np.zeros(len(self.labels), dtype=np.int64)
        if self.task == "classification":
            counts += np.bincount(self._targets[indices], minlength=len(self.labels))
        else:
            for index in indices:
                counts[np.unique(self._targets[index])] += 1
        return counts

    def _check_content(self) -> None:
        if len(self._inputs) != len(self._targets):
            raise SutureError(
                "dataset.count_mismatch",
                f"{len(self._inputs)} samples but {len(self._targets)} labels",
                where=self.where,
                hint="each sample needs exactly one label",
            )
        if not len(self._inputs):
            raise SutureError("dataset.empty", "there are no samples", where=self.where)
        if self.task == "segmentation" and self._targets.shape[1:] != self._inputs.shape[2:]:
            raise SutureError(
                "dataset.count_mismatch",
                f"masks of size {self._targets.shape[1:]} for images of size {self._inputs.shape[2:]}",
                where=self.where,
                hint="a mask has its image's size, without the channels: (N, *spatial)",
            )
        if self.task != "regression":
            _check_labels(self._targets, len(self.labels), self.where)
        _check_values(self._targets, None, f"{self.where}: labels")
        _check_values(self._inputs, None if self._scale else self.value_range, self.where)


def divide(
    inputs: NDArray[Any], classes: NDArray[Any], split: Sequence[str] | SplitRule, *, where: str
) -> dict[Split, Indices]:
    """Return the samples of each split, by their given names or by the rule, the same for any order of the samples."""
    keys = [
        hashlib.sha256(np.ascontiguousarray(sample).tobytes()).digest() for rows in _chunks(inputs) for sample in rows
    ]
    strata = classes.tolist()
    if isinstance(split, SplitRule):
        return stratified(keys, strata, split)
    if len(split) != len(keys):
        raise SutureError("dataset.count_mismatch", f"{len(keys)} samples but {len(split)} split names", where=where)
    return carve_validation(by_name(split, where=where), keys, strata, SplitRule())


def full_scale(dtype: np.dtype[Any]) -> float | None:
    """Return the largest value of an image type that is scaled (8- and 16-bit unsigned, boolean), None for others."""
    if dtype == np.bool_:
        return 1.0
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    return None


def to_range(values: NDArray[np.float32], full: float, value_range: tuple[float, float]) -> NDArray[np.float32]:
    """Map values from 0..`full` onto `value_range`, in float32."""
    low, high = value_range
    return values * np.float32((high - low) / full) + np.float32(low)


def _as_inputs(inputs: NDArray[Any], where: str) -> NDArray[Any]:
    if inputs.dtype.kind not in "buif":
        raise SutureError("dataset.not_numbers", f"inputs are of type {inputs.dtype}, not numbers", where=where)
    if inputs.ndim < 2:
        raise SutureError(
            "dataset.wrong_shape",
            f"inputs have the shape {inputs.shape}",
            where=where,
            hint="inputs are (N, C) for tables, (N, C, *spatial) for images",
        )
    return inputs


def _as_targets(targets: NDArray[Any], task: Task, where: str) -> NDArray[Any]:
    if task == "regression":
        if targets.dtype.kind not in "uif" or targets.ndim not in (1, 2):
            raise SutureError("dataset.wrong_shape", "targets are not numbers of shape (N,) or (N, K)", where=where)
        return targets.reshape(len(targets), -1).astype(np.float32)
    if targets.dtype.kind not in "bui":
        raise SutureError(
            "dataset.not_numbers",
            f"labels are of type {targets.dtype}, not integers",
            where=where,
            hint="labels are indices into the list of labels, counted from 0",
        )
    if task == "classification" and targets.ndim != 1:
        raise SutureError("dataset.wrong_shape", f"labels have the shape {targets.shape}, not (N,)", where=where)
    # Masks keep their narrow type until a batch is read.
    return targets.astype(np.int64) if task == "classification" else targets


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield successive rows of `array` in pieces of bounded size, so that a memory-mapped file is never held whole."""
    rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _check_values(array: NDArray[Any], value_range: tuple[float, float] | None, where: str) -> None:
    if array.dtype.kind != "f" and value_range is None:
        return
    start = 0
    for chunk in _chunks(array):
        rows = chunk.reshape(len(chunk), -1)
        if chunk.dtype.kind == "f":
            _refuse_rows(~np.isfinite(rows), start, "dataset.not_finite", "holds NaN or infinity", where)
        if value_range is not None:
            low, high = value_range
            slack = 1e-5 * (high - low)
            outside = np.logical_or(rows < low - slack, rows > high + slack)
            _refuse_rows(
                outside, start, "dataset.value_range", f"has values outside the declared range {low} to {high}", where
            )
        start += len(chunk)


def _check_labels(targets: NDArray[Any], labels: int, where: str) -> None:
    start = 0
    for chunk in _chunks(targets):
        rows = chunk.reshape(len(chunk), -1)
        outside = np.logical_or(rows < 0, rows >= labels)
        _refuse_rows(
            outside, start, "dataset.label_out_of_range", f"has a label that is not one of 0 to {labels - 1}", where
        )
        start += len(chunk)


def _refuse_rows(bad: NDArray[np.bool_], start: int, code: str, problem: str, where: str) -> None:
    """Raise for the first row of `bad` that has any element set; the rows begin at sample `start`."""
    if bad.any():
        raise SutureError(
            code,
            f"sample {start + int(np.argmax(bad.any(axis=1)))} {problem}",
            where=where,
            hint="samples are counted from 0; correct or remove it",
        )


def index_labels(values: NDArray[Any], labels: Sequence[str], *, where: str) -> NDArray[np.int64]:
    """Turn labels as stored, by name or by index, into indices.

    Integers are indices from 0, unless the labels are themselves those numbers' text. Raises `SutureError`
    (`dataset.unknown_label`) naming the first sample whose label is none of `labels`.
    """
    names: Mapping[str, int] = {label: index for index, label in enumerate(labels)}
    distinct, inverse = np.unique(values, return_inverse=True)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in distinct]
    if values.dtype.kind in "bui" and not all(text in names for text in texts):
        return values.astype(np.int64)
    lookup = np.array([names.get(text, -1) for text in texts], dtype=np.int64)
    found = lookup[inverse].reshape(values.shape)
    if (found < 0).any():
        row = int(np.argmax((found < 0).reshape(len(found), -1).any(axis=1)))
        raise SutureError(
            "dataset.unknown_label",
            f"sample {row} has a label that is not among the dataset's labels",
            where=where,
            hint=f"labels are {', '.join(labels)}; correct the sample (counted from 0) or the site's list",
        )
    return found


__all__ = ["SPLITS", "ArrayDataset", "Dataset", "full_scale", "index_labels", "to_range"]
