"""Whether data are what the models read, as far as their `suture.json` says it."""

from __future__ import annotations

from suture_contract.errors import SutureError
from suture_stitching.data.dataset import Dataset
from suture_stitching.data.spec import DatasetSpec

_KINDS = {0: "tables", 1: "signals", 2: "images", 3: "volumes"}


def check_expected(dataset: Dataset, spec: DatasetSpec) -> None:
    """Raise `SutureError` where a dataset contradicts what `spec.input` says that the models read."""
    reads, shape = spec.input, dataset.input_shape
    if reads is None:
        return
    if len(shape) != 1 + len(reads.spatial_shape):
        wanted, actual = _KINDS[len(reads.spatial_shape)], _KINDS.get(len(shape) - 1, "something else")
        raise SutureError(
            "dataset.wrong_shape",
            f"the models read {wanted}, these are {actual}",
            where=dataset.where,
            hint="give data of the models' kind; the axes of arrays are named by axes",
        )
    converted = len(shape) == 3 and {shape[0], reads.num_channels} == {1, 3}
    if shape[0] != reads.num_channels and not converted and not (dataset.channels and reads.channels):
        raise SutureError(
            "dataset.wrong_shape",
            f"samples have {shape[0]} channel(s), the models read {reads.num_channels}",
            where=dataset.where,
            hint="give the channels that the models' suture.json names",
        )


__all__ = ["check_expected"]
