"""How far the outline of a segmentation lies from the drawn one, in pixels, voxels or mm; MONAI measures it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from suture_contract.documents import MeasuredMetric
from suture_contract.extras import needs

#: An outline that lies within so many pixels of the drawn one agrees with it.
TOLERANCE = 1.0
_PERCENTILE = 95.0


def hd95(predicted: Tensor, shown: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return the 95th percentile of the distances between outlines `(N,)`, mean over labels.

    `predicted` and `shown` are `(N, L, *spatial)`, 0 or 1 for each label but the background. It is 0 where a label is
    neither predicted nor shown, and the image's diagonal where only one of them is. With a `spacing`, the mm from one
    position to the next along each axis, it is in mm, else in positions.
    """
    with needs("imaging"):
        import scipy  # MONAI measures with it  # noqa: F401
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    with _quiet():
        apart = compute_hausdorff_distance(
            predicted.float(), shown.float(), include_background=True, percentile=_PERCENTILE, spacing=spacing
        ).double()
    steps = [1.0] * (predicted.dim() - 2) if spacing is None else spacing
    farthest = math.hypot(*(size * step for size, step in zip(predicted.shape[2:], steps, strict=True)))
    return _mean(torch.where(apart.isfinite(), apart, farthest), predicted, shown, 0.0)


def surface_dice(predicted: Tensor, shown: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return which part of both outlines lies within `TOLERANCE` of the other one `(N,)`, mean over labels.

    As `hd95`, but always in positions, whatever `spacing` they have; 1 where a label is neither predicted nor shown,
    and 0 where only one of them is (Nikolov et al., "Deep learning to achieve clinically applicable segmentation of
    head and neck anatomy for radiotherapy", 2018).
    """
    with needs("imaging"):
        import scipy  # noqa: F401
        from monai.metrics.surface_dice import compute_surface_dice

    with _quiet():
        agreeing = compute_surface_dice(
            predicted.float(), shown.float(), [TOLERANCE] * predicted.shape[1], include_background=True
        ).double()
    return _mean(torch.nan_to_num(agreeing, nan=0.0), predicted, shown, 1.0)


def _mean(values: Tensor, predicted: Tensor, shown: Tensor, nothing: float) -> Tensor:
    """Return the mean over labels, with `nothing` for those that are neither predicted nor shown."""
    there = (predicted.flatten(2).any(2) | shown.flatten(2).any(2)).cpu()
    return torch.where(there, values.cpu(), nothing).mean(1).float()


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nobody be warned of labels that are nowhere: they are looked for here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


DISTANCES: Mapping[MeasuredMetric, Callable[[Tensor, Tensor, Sequence[float] | None], Tensor]] = {
    "hd95": hd95,
    "hd95_mm": hd95,
    "surface_dice": surface_dice,
}

__all__ = ["DISTANCES", "TOLERANCE", "hd95", "surface_dice"]
