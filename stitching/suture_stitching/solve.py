"""Stitches in closed form: ridge regression from moments, the ridge chosen on held-out moments.

With features `x` `(R, I)` and targets `y` `(R, O)`, the stitch minimises `|W x + b - y|^2 / R + ridge * s * |W|^2`,
where `s` is the mean variance of `x`: the ridge has no unit. One eigendecomposition serves every ridge (Hoerl and
Kennard, "Ridge Regression", 1970).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.moments import Moments

RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))


@dataclass(frozen=True)
class Solution:
    """The affine map `weight` `(O, I)`, `bias` `(O,)` in float64; `r2` is its explained variance on held-out rows."""

    weight: Tensor
    bias: Tensor
    r2: float
    ridge: float


def solve(
    moments: Moments, source: slice, target: slice, held_out: Moments, ridges: Sequence[float] = RIDGES
) -> Solution:
    """Return the best affine map from the features in `source` to those in `target`.

    Both slices index the features in `moments`; `held_out` are the moments of other rows of the same features. Where
    the source is constant the map is the target's mean; the largest ridge wins ties.
    """
    covariance = moments.covariance
    values, vectors = torch.linalg.eigh(covariance[source, source])
    values = values.clamp(min=0)
    scale = values.mean()
    projected = vectors.T @ covariance[source, target]
    mean_in, mean_out = moments.mean[source], moments.mean[target]
    best: Solution | None = None
    for ridge in sorted(ridges, reverse=True):
        shrunk = values + ridge * scale
        weight = (vectors @ (projected / shrunk[:, None])).T if scale > 0 else torch.zeros_like(projected.T)
        bias = mean_out - weight @ mean_in
        r2 = explained_variance(held_out, source, target, weight, bias)
        if best is None or r2 > best.r2:
            best = Solution(weight, bias, r2, ridge)
    assert best is not None
    return best


def explained_variance(moments: Moments, source: slice, target: slice, weight: Tensor, bias: Tensor) -> float:
    """Return R2 of `weight x + bias` as a prediction of the target, over all channels, from moments alone.

    1 is perfect, 0 as good as the target's mean; 1 if the target is constant and met, else 0.
    """
    covariance = moments.covariance
    inner, cross, outer = covariance[source, source], covariance[source, target], covariance[target, target]
    offset = weight @ moments.mean[source] + bias - moments.mean[target]
    total = outer.diagonal().sum()
    error = total - 2 * (weight * cross.T).sum() + ((weight @ inner) * weight).sum() + offset.square().sum()
    if total <= 0:
        return 1.0 if float(error) <= 1e-12 else 0.0
    return float(1 - error / total)
