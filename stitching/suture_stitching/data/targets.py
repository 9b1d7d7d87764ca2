"""What labels and masks mean as they are stored, as label indices: for the readers of all formats (torch-free)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data.arrays import chunks
from suture_stitching.data.spec import DatasetSpec
from suture_stitching.data.spool import Spool
from suture_stitching.data.words import how_to_name, places_of

#: Stands for a label that is none of the dataset's.
_UNKNOWN = np.iinfo(np.int64).min


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
        stored = whole_numbers(stored, where)
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
    largest: set[int] = set()
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
                largest.add(int(chunk.max(initial=0)))
                if two_writings(largest, spec):
                    raise mixed_masks("some masks", "others", where)
                values = mask_indices(whole_numbers(chunk, where), spec, where)
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
            hint=how_to_say_values(present),
        )
    indices: NDArray[Any] = ascending.astype(np.min_scalar_type(len(stand_for) - 1))[place]
    return indices


def how_to_say_values(present: NDArray[Any]) -> str:
    """Return how to say what the values of a mask stand for."""
    if (present != np.trunc(present)).any():
        return "these are shares, as a network gives them: set a threshold, and write one whole number per position"
    if 255 in present and 1 in present:
        return "255 mostly stands for what is to be ignored, which no value does here: write it as one of the labels"
    return (
        "correct the mask, or say in mask_values which value stands for each label, in the order of labels: "
        "[0, 255] for black and white, [0, 1, 2, 4] as BraTS has it"
    )


def two_writings(largest: Collection[int], spec: DatasetSpec) -> bool:
    """Whether masks of two labels write the second one as 1 at times and as 255 at others, by their largest values.

    Then 255 may as well stand for what is to be ignored.
    """
    return len(spec.labels) == 2 and spec.mask_values is None and {1, 255} <= set(largest)


def mixed_masks(ones: str, whites: str, where: str) -> SutureError:
    """Return the error for masks of `two_writings`: those with 1, and those with 255."""
    return SutureError(
        "dataset.label_out_of_range",
        f"the second label is 1 in {ones} and 255 in {whites}, which may also stand for what is to be ignored",
        where=where,
        hint="write it alike in all masks; no value stands for what is to be ignored",
    )


def whole_numbers(values: NDArray[Any], where: str) -> NDArray[Any]:
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


__all__ = [
    "label_places",
    "marks",
    "mask_indices",
    "masks_of",
    "mixed_masks",
    "refuse_unknown",
    "targets_of",
    "two_writings",
    "whole_numbers",
]
