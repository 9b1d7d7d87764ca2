"""A member of an ensemble: a portable model with what its owner says about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.data import Dataset, Split
from suture_stitching.errors import SutureError
from suture_stitching.points import StitchPoint, find_points
from suture_stitching.portable.metadata import InputSpec, ModelMetadata
from suture_stitching.portable.metadata import Member as MemberRef
from suture_stitching.portable.runtime import PortableModel

#: Numbers in one input batch: bounds the memory of a pass.
_BATCH_NUMBERS = 1 << 20
_LARGEST_BATCH = 256


@dataclass(frozen=True)
class Member:
    """A frozen model, its `suture.json`, and the exact revision it is."""

    model: PortableModel
    metadata: ModelMetadata
    ref: MemberRef

    @property
    def input(self) -> InputSpec:
        """The model's only input."""
        return next(iter(self.metadata.inputs.values()))

    def points(self, input_shape: Sequence[int]) -> list[StitchPoint]:
        """Return where the model can be stitched, in order: clean cuts and ends of blocks."""
        return [point for point in find_points(self.model, input_shape) if point.clean or point.block]


def value_range(members: Sequence[Member]) -> tuple[float, float] | None:
    """Return the range of the ensemble's inputs: the one that the first member to name one names."""
    return next((member.input.value_range for member in members if member.input.value_range is not None), None)


def batches(
    members: Sequence[Member], dataset: Dataset, split: Split, device: str | torch.device, *, seed: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs in the ensemble's value range and their targets, on `device`; `seed` shuffles them."""
    ours, theirs = value_range(members), dataset.value_range
    for x, y in dataset.batches(split, batch_size(dataset), seed=seed):
        if ours and theirs and ours != theirs:
            x = (x - theirs[0]) * ((ours[1] - ours[0]) / (theirs[1] - theirs[0])) + ours[0]
        yield x.to(device), y.to(device)


def batch_size(dataset: Dataset) -> int:
    """Return how many samples are read at once, fewer of larger ones."""
    numbers = 1
    for size in dataset.input_shape:
        numbers *= size
    return max(1, min(_LARGEST_BATCH, _BATCH_NUMBERS // numbers))


def number_of_batches(dataset: Dataset, split: Split) -> int:
    """Return how many batches a pass over `split` has."""
    return -(-dataset.n(split) // batch_size(dataset))


def check_inputs(members: Sequence[Member], dataset: Dataset) -> None:
    """Raise `SutureError` (`dataset.wrong_shape`, `member.input`) unless every member can read this dataset."""
    for member in members:
        inputs = member.model.graph.inputs
        if len(inputs) != 1 or inputs[0].dtype != "float32":
            raise SutureError(
                "member.input",
                "only models with one float32 input can be stitched",
                where=member.ref.repo,
                hint="export the model in float32, with its other inputs fixed",
            )
        expected = inputs[0].shape[1:]
        fits = len(expected) == len(dataset.input_shape) and all(
            want is None or want == have for want, have in zip(expected, dataset.input_shape, strict=True)
        )
        if not fits:
            raise SutureError(
                "dataset.wrong_shape",
                f"samples have the shape {dataset.input_shape}, {member.ref.repo} reads "
                f"({', '.join('any' if size is None else str(size) for size in expected)})",
                where=dataset.where,
                hint="resize the data to (C, *spatial) as the model's suture.json says",
            )
