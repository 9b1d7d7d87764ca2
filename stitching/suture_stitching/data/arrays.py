"""A dataset held in arrays, in memory or mapped from a file; and what the readers of files share about values.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task
from suture_stitching.data.dataset import Dataset
from suture_stitching.data.spec import Split, SplitRule
from suture_stitching.data.splits import Indices, Keys, Splits, digests, split_samples
from suture_stitching.data.words import written_alike

#: Images of 8 bits that take fewer are masks, or scaled already.
_FEWEST_BITS = 2
#: The share of a range that values take at least which are meant for it.
_LEAST_USED = 0.01
_CHUNK_BYTES = 8 * 1024 * 1024


class ArrayDataset(Dataset):
    """A dataset held in arrays (or memory-mapped from a file), converted batch by batch.

    `inputs` are `(N, C, *spatial)`; 8- and 16-bit unsigned integers are scaled onto `value_range` (default (0, 1)), but
    for a table's `(N, C)`. Other numbers are taken as they are. With `intensity` the stored values between its two are
    mapped onto `value_range`, and clipped. `targets` are label indices `(N,)`, 0 or 1 per label `(N, L)`, masks
    `(N, *spatial)`, or values `(N, K)` or `(N,)`. `split` names a split per sample, or gives the indices of each, or is
    the rule by which they are made; samples of one of `groups` (one per sample: a patient) are kept in one split.
    Training samples of a single class are refused, unless they may be of `one_class`.
    """

    def __init__(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        labels: Sequence[str] = (),
        *,
        task: Task = "classification",
        split: Sequence[str] | SplitRule | Splits | None = None,
        groups: Sequence[str] | NDArray[Any] | None = None,
        value_range: tuple[float, float] | None = None,
        intensity: tuple[float, float] | None = None,
        channels: Sequence[str] | None = None,
        one_class: bool = False,
        where: str = "dataset",
    ) -> None:
        self.where, self.one_class = where, one_class
        self.task = task
        self.labels = tuple(labels)
        self._inputs = _as_inputs(np.asanyarray(inputs), where)
        self._targets = _as_targets(np.asanyarray(targets), task, where)
        self.input_shape = tuple(self._inputs.shape[1:])
        self.channels = None if channels is None else tuple(channels)
        full = full_scale(self._inputs.dtype) if self._inputs.ndim > 2 else None
        self._stored = intensity or (None if full is None else (0.0, full))
        self._clips = intensity is not None
        self.value_range = value_range or ((0.0, 1.0) if self._stored else None)
        self._check_content()
        if groups is not None and len(groups) != len(self._inputs):
            raise SutureError(
                "dataset.count_mismatch", f"{len(self._inputs)} samples but {len(groups)} groups", where=where
            )
        self._patients = None if groups is None else numbered(groups)
        self.written_alike = 0 if groups is None else written_alike(groups)
        if not isinstance(split, Mapping):
            split = divide(self._inputs, strata(self._targets, task), split, groups=groups, where=where)
        self._splits = split
        self._check_splits()

    def _read(self, indices: Indices, seed: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        inputs = self._inputs[indices].astype(np.float32)
        if self._stored and self.value_range:
            inputs = to_range(inputs, self._stored, self.value_range, clip=self._clips)
        return inputs, self._targets[indices]

    def _masks(self, indices: Indices) -> Iterable[NDArray[Any]]:
        return (self._targets[index] for index in indices)

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
        if self.task == "multilabel":
            _check_marks(self._targets, len(self.labels), self.where)
        elif self.task != "regression":
            _check_labels(self._targets, len(self.labels), self.where)
        _check_values(self._targets, None, f"{self.where}: labels")
        ends = _check_values(self._inputs, None if self._stored else self.value_range, self.where)
        if ends is not None and self._inputs.ndim > 2 and self.value_range is not None:
            check_used(ends, self.value_range, self.where, images=self._inputs.ndim > 3)
        if not self._clips and self._inputs.ndim > 2 and self._inputs.dtype in (np.uint8, np.uint16):
            _check_bits(self._inputs, self.where)


def divide(
    inputs: NDArray[Any],
    classes: NDArray[Any],
    split: Sequence[str] | NDArray[Any] | SplitRule | None,
    *,
    groups: Sequence[str] | NDArray[Any] | None = None,
    where: str,
) -> dict[Split, Indices]:
    """Return the samples of each split, by their given names or by the rule, the same for any order of the samples."""
    keys: Keys = digests(inputs) if groups is None else ()
    if split is None or isinstance(split, SplitRule):
        return split_samples(keys, classes, split or SplitRule(), groups=groups, where=where)
    if len(split) != len(inputs):
        raise SutureError("dataset.count_mismatch", f"{len(inputs)} samples but {len(split)} split names", where=where)
    return split_samples(keys, classes, SplitRule(), names=split, groups=groups, where=where)


def numbered(groups: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """Return a number for each sample's group `(N,)`, the same for the same group."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1).astype(np.int64)


def strata(targets: NDArray[Any], task: Task) -> NDArray[np.int64]:
    """Return the stratum `(N,)` of each sample, which splits share out alike.

    With several labels per sample it is the rarest label that the sample has.
    """
    if task == "classification":
        return targets.astype(np.int64)
    if task != "multilabel":
        return np.zeros(len(targets), dtype=np.int64)
    rarest_first = targets[:, np.argsort(targets.sum(axis=0), kind="stable")] > 0
    return np.where(rarest_first.any(axis=1), rarest_first.argmax(axis=1) + 1, 0).astype(np.int64)


def full_scale(dtype: np.dtype[Any]) -> float | None:
    """Return the largest value of an image type that is scaled (8- and 16-bit unsigned, boolean), None for others."""
    if dtype == np.bool_:
        return 1.0
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    return None


def to_range(
    values: NDArray[np.float32], stored: tuple[float, float], value_range: tuple[float, float], *, clip: bool = False
) -> NDArray[np.float32]:
    """Map the values between the two of `stored` onto `value_range`, in float32; `clip` what lies beyond."""
    (first, last), (low, high) = stored, value_range
    scaled = (values - np.float32(first)) * np.float32((high - low) / (last - first)) + np.float32(low)
    return np.clip(scaled, low, high) if clip else scaled


def seldom_used(largest: int, dtype: np.dtype[Any]) -> int | None:
    """Return how many bits values of an image type take where these are too few for the type; None if they are enough.

    An image of 12 bits in a type of 16, or of 0 and 1 in one of 8, scaled from the whole type, would be black.
    """
    bits, size = int(largest).bit_length(), 8 * dtype.itemsize
    return bits if 0 < bits < size and (size > 8 or bits < _FEWEST_BITS) else None


def bits_error(bits: int, dtype: np.dtype[Any], where: str) -> SutureError:
    """Return the error for images whose values take fewer bits than their type has."""
    size = 8 * dtype.itemsize
    return SutureError(
        "dataset.few_bits",
        f"the values take {bits} of the {size} bits that they are stored in: scaled from all of them, the images would "
        "be nearly black",
        where=where,
        hint=f"say which stored values become the ends of the range: intensity = [0, {2**bits - 1}], or, if they are "
        f"that dark, intensity = [0, {2**size - 1}]",
    )


def unsigned_error(most: int, stored: tuple[float, float], where: str) -> SutureError:
    """Return the error for images of signed numbers, `stored` from one to another, of 0 to `most` alone."""
    top = 2 ** most.bit_length() - 1
    return SutureError(
        "dataset.few_bits",
        "the values are signed, and none is below 0: scaled from all that they may be, black would be grey",
        where=where,
        hint=f"say which stored values become the ends of the range: intensity = [0, {top}], or, if "
        f"they are that bright, intensity = [{stored[0]:g}, {stored[1]:g}]",
    )


def _check_bits(images: NDArray[Any], where: str) -> None:
    enough, largest = 2 ** (8 * images.dtype.itemsize - 1) if images.dtype == np.uint16 else 2**_FEWEST_BITS // 2, 0
    for chunk in chunks(images):
        largest = max(largest, int(chunk.max()))
        if largest >= enough:
            return
    if (bits := seldom_used(largest, images.dtype)) is not None:
        raise bits_error(bits, images.dtype, where)


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
    if task == "multilabel":
        if targets.dtype.kind not in "buif" or targets.ndim != 2:
            raise SutureError(
                "dataset.wrong_shape", "labels are not 0 or 1 of shape (N, L), one column per label", where=where
            )
        return targets.astype(np.float32)
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


def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield successive rows of `array` in pieces of bounded size, so that a memory-mapped file is never held whole."""
    rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def check_used(ends: tuple[float, float], value_range: tuple[float, float], where: str, *, images: bool) -> None:
    """Raise where the lowest and the highest of all values, `ends`, show that they are meant for another range.

    Such are images of 0 to 1 in a range of 0 to 255 or of -1 to 1, and signals in mV in one of µV. One value for all
    samples says nothing.
    """
    (first, last), (low, high) = ends, value_range
    whole = max(abs(low), abs(high))
    if first == last:
        return
    if max(abs(first), abs(last)) < whole * _LEAST_USED:
        problem = f"all values are next to 0, within a hundredth of the declared range {low:g} to {high:g}"
    elif images and low < 0 <= first:
        problem = f"no value is below 0, and the declared range is {low:g} to {high:g}"
    else:
        return
    raise SutureError(
        "dataset.value_range",
        problem,
        where=where,
        hint="say which stored values become the ends of that range, intensity = [0, 1] for example; where they are in "
        f"it already, intensity = [{low:g}, {high:g}]",
    )


def _check_values(
    array: NDArray[Any], value_range: tuple[float, float] | None, where: str
) -> tuple[float, float] | None:
    """Raise for a value that is not finite, or outside of a range; with a range, return the lowest and the highest."""
    if array.dtype.kind != "f" and value_range is None:
        return None
    start, lowest, highest = 0, np.inf, -np.inf
    for chunk in chunks(array):
        rows = chunk.reshape(len(chunk), -1)
        if chunk.dtype.kind == "f":
            _refuse_rows(~np.isfinite(rows), start, "dataset.not_finite", "holds NaN or infinity", where)
        if value_range is not None:
            low, high = value_range
            slack = 1e-5 * (high - low)
            outside = np.logical_or(rows < low - slack, rows > high + slack)
            _refuse_rows(
                outside,
                start,
                "dataset.value_range",
                f"has values outside the declared range {low} to {high}",
                where,
                "say which stored values become the ends of that range, intensity = [0, 255] for example; or correct "
                "value_range. Where the values are normalised already, give those from before",
            )
            lowest, highest = min(lowest, float(rows.min())), max(highest, float(rows.max()))
        start += len(chunk)
    return None if value_range is None else (lowest, highest)


def _check_labels(targets: NDArray[Any], labels: int, where: str) -> None:
    start = 0
    for chunk in chunks(targets):
        rows = chunk.reshape(len(chunk), -1)
        outside = np.logical_or(rows < 0, rows >= labels)
        _refuse_rows(
            outside, start, "dataset.label_out_of_range", f"has a label that is not one of 0 to {labels - 1}", where
        )
        start += len(chunk)


def _check_marks(targets: NDArray[np.float32], labels: int, where: str) -> None:
    if targets.shape[1] != labels:
        raise SutureError(
            "dataset.wrong_shape",
            f"{targets.shape[1]} columns for {labels} labels",
            where=where,
            hint="each label has one column that holds 1 where a sample has it, else 0",
        )
    _refuse_rows((targets != 0) & (targets != 1), 0, "dataset.label_out_of_range", "has a label not 0 or 1", where)


def _refuse_rows(
    bad: NDArray[np.bool_], start: int, code: str, problem: str, where: str, hint: str = "correct or remove it"
) -> None:
    """Raise for the first row of `bad` that has any element set; the rows begin at sample `start`."""
    if bad.any():
        raise SutureError(
            code,
            f"sample {start + int(np.argmax(bad.any(axis=1)))} {problem}",
            where=where,
            hint=f"samples are counted from 0; {hint}",
        )
