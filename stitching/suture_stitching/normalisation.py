"""What a caller does to samples before a network, as `suture.json` says: size, range, mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suture_contract.errors import SutureError
from suture_contract.model.metadata import InputSpec
from suture_stitching.portable.schemas import TORCH_DTYPES


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return samples `(N, C, *spatial)` as `(x - mean) / std`, one number per channel each."""
    shape = (-1, *[1] * (x.dim() - 2))
    return (x - x.new_tensor(mean).reshape(shape)) / x.new_tensor(std).reshape(shape)


def prepared(x: Tensor, spec: InputSpec, where: str | None = None) -> Tensor:
    """Return samples `(N, C, *spatial)` in `value_range` as the network reads them: normalised, of its type of numbers.

    Raises `SutureError`: `predict.shape` for another size, `predict.range` for values that the model does not read.
    """
    _check_shape(x, spec, where)
    kind = TORCH_DTYPES[spec.dtype]
    # Half precision is coarser than what is subtracted and divided by.
    values = x.to(torch.promote_types(kind, torch.float32)) if kind.is_floating_point else x
    _check_values(values, spec, where)
    if spec.preprocessing is not None:
        values = normalised(values, spec.preprocessing.mean, spec.preprocessing.std)
    return values.to(kind)


def _check_shape(x: Tensor, spec: InputSpec, where: str | None) -> None:
    wanted = (spec.num_channels, *spec.spatial_shape)
    fits = x.dim() == len(wanted) + 1 and all(
        size is None or size == have for size, have in zip(wanted, x.shape[1:], strict=True)
    )
    if not fits:
        words = " x ".join("any" if size is None else str(size) for size in wanted)
        shape = " x ".join(map(str, x.shape[1:]))
        raise SutureError("predict.shape", f"the model reads {words}, a sample is {shape}", where=where)


def _check_values(x: Tensor, spec: InputSpec, where: str | None) -> None:
    if not bool(x.isfinite().all()):
        raise SutureError(
            "predict.range",
            "samples hold values that are missing or infinite",
            where=where,
            hint="fill them as for training",
        )
    if spec.dtype == "int64" and x.is_floating_point() and not bool((x == x.round()).all()):
        raise SutureError(
            "predict.range",
            "the model reads whole numbers, such as tokens, and these are none",
            where=where,
            hint="give the numbers of the tokens",
        )
    if spec.value_range is None or not x.numel():
        return
    low, high = spec.value_range
    least, most, slack = float(x.min()), float(x.max()), 1e-5 * (high - low)
    if not (least >= low - slack and most <= high + slack):
        raise SutureError(
            "predict.range",
            f"the model reads values from {low:g} to {high:g}, these are {least:g} to {most:g}",
            where=where,
            hint="scale them as the model's card says; of images say which stored values become the ends of that "
            "range: predict(..., intensity=(-160, 240)), for example",
        )


__all__ = ["normalised", "prepared"]
