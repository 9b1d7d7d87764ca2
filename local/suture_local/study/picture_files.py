"""Images in files of their own, with labels or masks, become arrays: they are read as a site reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suture_contract.errors import SutureError
from suture_stitching.data import SPLITS, Dataset, DatasetSpec, open_dataset
from suture_stitching.data.image_folder import read_image
from suture_stitching.data.words import of_one_patient

#: Height and width of what a study reads.
Size = tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """One party's images `(N, C, H, W)` float32 in 0..1, label indices or masks, and whose each is, where known."""

    images: NDArray[np.float32]
    targets: NDArray[Any]
    group: NDArray[np.int64] | None


def read_pictures(
    parties: Mapping[str, Sequence[DatasetSpec]], size_of: Callable[[Sequence[int]], Size], notes: list[str]
) -> tuple[dict[str, Pictures], Size]:
    """Return what the parties' folders or lists hold, the samples of all splits, and the one size of their images.

    `size_of` gives that for the size of the first image. Images are made smaller as they are decoded, one by one. What
    is done to them is added to `notes`. Raises `SutureError` (`dataset.*`).
    """
    size = size_of(_first_size(next(iter(parties.values()))[0]))
    return {party: _read(specs, size, party, notes) for party, specs in parties.items()}, size


def _read(specs: Sequence[DatasetSpec], size: Size, party: str, notes: list[str]) -> Pictures:
    images, targets, groups = [], [], []
    for spec in specs:
        dataset = _opened(spec, size, party, notes)
        splits = [split for split in SPLITS if dataset.n(split)]
        if dataset.grouped:
            groups += [dataset.patient_of(split) for split in splits]
        elif alike := of_one_patient(dataset.samples):
            notes.append(
                f"{party}: {alike} files are named as if others were of the same patient, and nothing says which are: "
                "splits may share patients. A list of the files with a column patient_id keeps them apart."
            )
        for x, y in (batch for split in splits for batch in dataset.batches(split, 64)):
            images.append(x)
            targets.append(y)
    # Numbers of patients are those of one folder or list.
    group = np.concatenate(groups) if len(specs) == 1 and groups else None
    return Pictures(torch.cat(images).numpy(), torch.cat(targets).numpy(), group)


def _opened(spec: DatasetSpec, size: Size, party: str, notes: list[str]) -> Dataset:
    """Return the dataset in `size`, in colour where some images are; say what was done."""
    try:
        dataset = _in_one_colour(spec, party, notes)
    except SutureError as error:
        if error.code != "dataset.sizes_differ":
            raise
        notes.append(f"{party}: images of several sizes were resized to {size[0]} x {size[1]}.")
        return _in_one_colour(spec.model_copy(update={"resize": size}), party, notes)
    height, width = dataset.input_shape[1:]
    if (height, width) == size:
        return dataset
    notes.append(f"{party}: images of {height} x {width} were resized to {size[0]} x {size[1]}.")
    return open_dataset(spec.model_copy(update={"resize": size, "channels": dataset.input_shape[0]}))


def _in_one_colour(spec: DatasetSpec, party: str, notes: list[str]) -> Dataset:
    try:
        return open_dataset(spec)
    except SutureError as error:
        if error.code != "dataset.channels_differ":
            raise
    notes.append(f"{party}: grey images among colour ones were repeated in three channels.")
    return open_dataset(spec.model_copy(update={"channels": 3}))


def _first_size(spec: DatasetSpec) -> Size:
    """Return height and width of the first image by name."""
    (file, *_) = open_dataset(spec.model_copy(update={"resize": (1, 1), "channels": 3})).samples
    height, width = read_image(spec.files / file, file, 3)[0].shape[-2:]
    return height, width
