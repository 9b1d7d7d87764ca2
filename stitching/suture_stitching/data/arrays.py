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
from suture_stitching.data.spec import DatasetSpec, Split, SplitRule
from suture_stitching.data.splits import Indices, Keys, Splits, digests, split_samples
from suture_stitching.data.spool import Spool
from suture_stitching.data.words import how_to_name, places_of, written_alike

#: Images of 8 bits that take fewer are masks, or scaled already.
_FEWEST_BITS = 2
_CHUNK_BYTES = 8 * 1024 * 1024
#: Stands for a label that is none of the dataset's.
_UNKNOWN = np.iinfo(np.int64).min


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
        _check_values(self._inputs, None if self._stored else self.value_range, self.where)
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


def _check_values(array: NDArray[Any], value_range: tuple[float, float] | None, where: str) -> None:
    if array.dtype.kind != "f" and value_range is None:
        return
    start = 0
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
        start += len(chunk)


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


def label_places(distinct: Sequence[str], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each of these labels as stored, which are all there are; see `places_of`.

    `refuse_unknown` then says which samples have one that is none of `labels`.
    """
    places = places_of(distinct, labels)
    return np.array([places.get(text, _UNKNOWN) for text in distinct], dtype=np.int64)


def refuse_unknown(indices: NDArray[np.int64], labels: Sequence[str], *, where: str) -> None:
    """Raise `SutureError` `dataset.unknown_label` naming the first sample whose label is none of `labels`."""
    unknown = indices == _UNKNOWN
    if unknown.any():
        row = int(np.argmax(unknown.reshape(len(indices), -1).any(axis=1)))
        raise SutureError(
            "dataset.unknown_label",
            f"sample {row} has a label that is not among the dataset's labels",
            where=where,
            hint=f"samples are counted from 0; {how_to_name(labels)}",
        )


def targets_of(stored: NDArray[Any], spec: DatasetSpec, where: str) -> NDArray[Any]:
    """Return labels as stored, by name, number or one column each, as the task has them."""
    if spec.task == "multilabel":
        return marks(stored[:, None] if stored.ndim == 1 and len(spec.labels) == 1 else stored, spec)
    if spec.task == "regression":
        return stored
    if stored.ndim == 2 and stored.shape[1] == 1:
        stored = stored[:, 0]
    if stored.ndim == 2 and stored.shape[1] == len(spec.labels) and stored.dtype.kind in "buif":
        if not (((stored == 0) | (stored == 1)).all() and (stored.sum(axis=1) == 1).all()):
            raise SutureError(
                "dataset.label_out_of_range",
                "labels have one column each, but not exactly one 1 per sample",
                where=where,
                hint='give one label per sample, or task = "multilabel" where a sample may have several',
            )
        places: NDArray[np.int64] = stored.argmax(axis=1)
        return places
    if stored.dtype.kind == "f" and stored.ndim == 1:
        stored = _whole(stored, where)
    if stored.ndim != 1 or stored.dtype.kind not in "USbui":
        return stored  # refused with the reason
    distinct, inverse = np.unique(stored, return_inverse=True)
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in distinct]
    indices = label_places(texts, spec.labels)[inverse]
    refuse_unknown(indices, spec.labels, where=where)
    return indices


def marks(stored: NDArray[Any], spec: DatasetSpec) -> NDArray[Any]:
    """Return 0 or 1 per label `(N, L)`, once it is said what -1 and empty cells stand for."""
    if stored.dtype.kind != "f" and stored.dtype.kind != "i":
        return stored
    uncertain, blank = stored == -1, np.isnan(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, np.bool_)
    for mask, policy, name, what in (
        (uncertain, spec.uncertain, "uncertain", "-1"),
        (blank, spec.blank, "blank", "no value"),
    ):
        if mask.any() and policy == "error":
            raise SutureError(
                "dataset.label_out_of_range",
                f"sample {int(np.argmax(mask.reshape(len(mask), -1).any(axis=1)))} has {what} for a label",
                where=str(spec.path),
                hint=f'samples are counted from 0; say what that stands for: {name} = "negative"'
                + (' or "positive"' if name == "uncertain" else ""),
            )
    values = np.where(uncertain, float(spec.uncertain == "positive"), stored)
    return np.where(blank, 0.0, values)


def masks_of(stored: NDArray[Any], spec: DatasetSpec, where: str) -> NDArray[Any]:
    """Return masks as stored, with an axis of channels or values of their own, as label indices `(N, *spatial)`."""
    labels = len(spec.labels)
    by_label = stored.ndim > 3 and stored.shape[1] == labels and labels > 1 and stored.shape[2] > labels
    if stored.ndim > 3 and 1 in (stored.shape[1], stored.shape[-1]):
        stored = stored[:, 0] if stored.shape[1] == 1 else stored[..., 0]
    elif (
        not by_label
        and stored.dtype.kind in "bui"
        and spec.mask_values is None
        and int(stored[:1].max(initial=0)) < labels
    ) and (stored.dtype.kind == "b" or not _two_values(stored, labels)):
        return stored
    with Spool() as spool:
        for chunk in chunks(stored):
            if by_label:
                if not (((chunk == 0) | (chunk == 1)).all() and (chunk.sum(axis=1) == 1).all()):
                    raise SutureError(
                        "dataset.label_out_of_range",
                        "masks have one channel per label, but not exactly one 1 at each position",
                        where=where,
                        hint="give one value per position, (N, *spatial); labels that overlap cannot be segmented",
                    )
                values = chunk.argmax(axis=1)
            else:
                values = mask_indices(_whole(chunk, where), spec, where)
            spool.append(values.astype(np.uint16))
        return spool.array((len(stored), *(stored.shape[2:] if by_label else stored.shape[1:])), np.uint16)


def _two_values(stored: NDArray[Any], labels: int) -> bool:
    return labels == 2 and any(int(chunk.max(initial=0)) > 1 for chunk in chunks(stored))


def mask_indices(values: NDArray[Any], spec: DatasetSpec, where: str) -> NDArray[Any]:
    """Return the label indices that a mask's whole numbers stand for.

    Those are `mask_values`, or 0, 1, 2 and so on; of two labels, 255 alone is the second one.
    """
    stand_for = np.array(spec.mask_values or range(len(spec.labels)))
    present = np.unique(values)
    if spec.mask_values is None and len(spec.labels) == 2 and set(present.tolist()) <= {0, 255}:
        second: NDArray[np.uint8] = (values == 255).astype(np.uint8)
        return second
    ascending = np.argsort(stand_for)
    place = np.searchsorted(stand_for[ascending], values).clip(max=len(stand_for) - 1)
    if (stand_for[ascending][place] != values).any():
        raise SutureError(
            "dataset.label_out_of_range",
            "the mask has a value that is none of "
            + ("mask_values" if spec.mask_values else f"0 to {len(spec.labels) - 1}"),
            where=where,
            hint="correct the mask, or say in mask_values which value stands for each label, in the order of labels: "
            "[0, 255] for black and white, [0, 1, 2, 4] as BraTS has it",
        )
    indices: NDArray[Any] = ascending.astype(np.min_scalar_type(len(stand_for) - 1))[place]
    return indices


def _whole(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Return numbers that are whole as integers."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all() or (values != np.trunc(values)).any():
        raise SutureError(
            "dataset.not_numbers",
            f"labels are of type {values.dtype}, and not whole numbers",
            where=where,
            hint="labels are indices into the list of labels, counted from 0; what a network gave is no label",
        )
    return values.astype(np.int64)
