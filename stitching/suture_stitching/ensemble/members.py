"""A member of an ensemble: a portable model with what its owner says about it; and how data come to what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from suture_contract.compatibility import channel_weights, ensemble_input, incompatibilities
from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec, MemberRef, ModelMetadata
from suture_stitching.data import Dataset, Split
from suture_stitching.features.moments import to_grid
from suture_stitching.features.points import StitchPoint, stitchable
from suture_stitching.portable.layout import settled
from suture_stitching.portable.runtime import PortableModel

#: Numbers in one input batch: bounds the memory of a pass.
_BATCH_NUMBERS = 1 << 20
_LARGEST_BATCH = 256
#: Of the range that models read: images that take less are black, or scaled for other models.
_LEAST = 0.02


@dataclass(frozen=True)
class Member:
    """A frozen model, its `suture.json`, and the exact revision it is."""

    model: PortableModel
    metadata: ModelMetadata
    ref: MemberRef

    @property
    def input(self) -> InputSpec:
        """The model's only input; a size that the metadata leave free is that of the graph."""
        spec = next(iter(self.metadata.inputs.values()))
        channels, *sizes = self.model.graph.inputs[0].shape[1:]
        stated = spec.spatial_shape if len(spec.spatial_shape) == len(sizes) else (None,) * len(sizes)
        shape = tuple(size or stated_size for size, stated_size in zip(sizes, stated, strict=True))
        return spec.model_copy(update={"num_channels": channels or spec.num_channels, "spatial_shape": shape})

    @property
    def prior(self) -> tuple[float, ...] | None:
        """The shares of its labels that the model's probabilities assume, in their order; None where nobody said."""
        shares = self.metadata.label_prior
        return None if shares is None else tuple(shares[label] for label in self.metadata.labels or ())

    def points(self, input_shape: Sequence[int]) -> list[StitchPoint]:
        """Return where the model can be stitched, in order.

        `input_shape` is the ensemble's, `(C, *spatial)`.
        """
        return stitchable(self.model, _with_sizes(self.input, input_shape))


def shared_input(members: Sequence[Member]) -> InputSpec:
    """Return what the ensemble of these reads; raises `SutureError` `members.incompatible` for other ranks."""
    inputs = [member.input for member in members]
    for member, spec in zip(members, inputs, strict=True):
        if len(spec.spatial_shape) != len(inputs[0].spatial_shape):
            raise SutureError(
                "members.incompatible",
                f"{members[0].ref.repo} reads inputs with {len(inputs[0].spatial_shape)} spatial axes, "
                f"{member.ref.repo} with {len(spec.spatial_shape)}",
                hint="choose models for data of one kind: all of slices, or all of volumes",
            )
    return ensemble_input(inputs)


def input_shape(members: Sequence[Member], dataset: Dataset) -> tuple[int, ...]:
    """Return the shape `(C, *spatial)` that the ensemble reads `dataset` in; sizes that are free are the dataset's."""
    return _with_sizes(shared_input(members), dataset.input_shape)


def batches(
    members: Sequence[Member],
    dataset: Dataset,
    split: Split,
    device: str | torch.device,
    *,
    seed: int | None = None,
    whole: bool = False,
    only: range | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs as the ensemble reads them and their targets, on `device`; `seed` shuffles them.

    Values are brought from the dataset's range to the ensemble's, channels and sizes to its own; masks follow. `whole`
    samples come one at a time in their own size, from a dataset with a `window`. `only` are the batches to yield.
    """
    spec, shape = shared_input(members), input_shape(members, dataset)
    sizes, at_once = shape[1:], batch_size(dataset, shape)
    ours, theirs = spec.value_range, dataset.value_range
    weights = channel_weights(
        (dataset.input_shape[0], dataset.channels), (spec.num_channels, spec.channels), spec.format
    )
    matrix = None if weights is None else torch.tensor(weights, device=device)
    stream = dataset.whole(split, only=only) if whole else dataset.batches(split, at_once, seed=seed, only=only)
    for x, y in stream:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if not whole:  # whole samples may be larger than memory, and are copied window by window
            x = settled(x)
        if ours and theirs is None and not whole:
            _check_range(x, ours, dataset)
        if ours and theirs and ours != theirs:
            x = (x - theirs[0]) * ((ours[1] - ours[0]) / (theirs[1] - theirs[0])) + ours[0]
        if matrix is not None:
            x = (x.movedim(1, -1) @ matrix.T).movedim(-1, 1)
        if x.shape[2:] != sizes and not whole:
            x = to_grid(x, sizes)
            if dataset.task == "segmentation":
                y = F.interpolate(y.unsqueeze(1).float(), size=sizes, mode="nearest-exact").squeeze(1).to(y.dtype)
        yield x, y


def _check_range(x: Tensor, reads: tuple[float, float], dataset: Dataset) -> None:
    """Raise `SutureError` `dataset.value_range` where a batch whose range nobody said is not of what models read."""
    if dataset.channels is not None:
        return
    (low, high), (first, last) = reads, (float(x.min()), float(x.max()))
    slack = 1e-5 * (high - low)
    beyond = first < low - slack or last > high + slack
    if not beyond and not (len(x) > 1 and last - first < _LEAST * (high - low)):
        return
    raise SutureError(
        "dataset.value_range",
        f"the models read values from {low:g} to {high:g}; these data "
        + ("have others" if beyond else "take next to nothing of that"),
        where=dataset.where,
        hint="say which stored values become the ends of the range: intensity = [0, 255], for example; or value_range, "
        "from where to where the data go",
    )


def batch_size(dataset: Dataset, shape: Sequence[int] = ()) -> int:
    """Return how many samples are read at once, fewer of larger ones; `shape` is what they are brought to."""
    numbers = max(prod(dataset.input_shape), prod(shape))
    return max(1, min(_LARGEST_BATCH, _BATCH_NUMBERS // numbers))


def number_of_batches(dataset: Dataset, split: Split, shape: Sequence[int] = (), *, whole: bool = False) -> int:
    """Return how many batches a pass over `split` has when its samples are brought to `shape`."""
    return dataset.n(split) if whole else -(-dataset.n(split) * dataset.patches // batch_size(dataset, shape))


def check_inputs(members: Sequence[Member], dataset: Dataset) -> None:
    """Raise `SutureError` (`dataset.*`, `member.input`, `members.incompatible`) unless the members can read these data.

    Sizes may differ, and channels as far as `channel_weights` converts them.
    """
    if problems := incompatibilities([(member.ref.repo, member.metadata) for member in members]):
        raise SutureError(
            "members.incompatible", "; ".join(problems), hint="choose models of one task and kind of input"
        )
    for member in members:
        inputs = member.model.graph.inputs
        if len(inputs) != 1 or inputs[0].dtype != "float32":
            raise SutureError(
                "member.input",
                "only models with one float32 input can be stitched",
                where=member.ref.repo,
                hint="export the model in float32, with its other inputs fixed",
            )
    if dataset.task != members[0].metadata.task:
        raise SutureError(
            "dataset.wrong_task",
            f"the dataset is for {dataset.task}, the models do {members[0].metadata.task}",
            where=dataset.where,
        )
    spec = shared_input(members)
    if spec.format == "table" and dataset.channels and len(dataset.channels) > 1 and not dataset.ordered:
        unnamed = next(
            (member.ref.repo for member in members if not next(iter(member.metadata.inputs.values())).channels), None
        )
        if unnamed is not None:
            raise SutureError(
                "dataset.columns_unnamed",
                "the model's suture.json does not name the columns it reads, so they cannot be found in this table",
                where=unnamed,
                hint="export it again with --channels, its columns in order; or put the columns of this table into "
                "that order: columns = { features = [...] } in the dataset's description",
            )
    have = (dataset.input_shape[0], dataset.channels)
    problem = None
    try:
        channel_weights(have, (spec.num_channels, spec.channels), spec.format)
    except ValueError as error:
        problem = str(error)
    if problem or len(dataset.input_shape) != 1 + len(spec.spatial_shape):
        sizes = ", ".join("any" if size is None else str(size) for size in (spec.num_channels, *spec.spatial_shape))
        raise SutureError(
            "dataset.wrong_shape",
            f"samples have the shape {dataset.input_shape}, the models together read ({sizes})"
            + (f": {problem}" if problem else ""),
            where=dataset.where,
            hint="give the data as (C, *spatial), with the channels that the models' suture.json names",
        )


def _with_sizes(spec: InputSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the input's channels and fixed sizes, with the free ones from `shape` `(C, *spatial)`."""
    return (spec.num_channels, *(fixed or size for fixed, size in zip(spec.spatial_shape, shape[1:], strict=True)))
