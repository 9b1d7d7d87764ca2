"""Stitches in closed form: ridge regression from moments, the ridge chosen on held-out moments.

With features `x` `(R, I)` and targets `y` `(R, O)`, the stitch minimises `|W x + b - y|^2 / R + ridge * s * |W|^2`,
where `s` is the mean variance of `x`: the ridge has no unit. One eigendecomposition serves every ridge (Hoerl and
Kennard, "Ridge Regression", 1970) and every target; in its basis the held-out error of one more ridge costs `I^2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.features.moments import Moments
from suture_stitching.portable.layout import settled

#: How many random vectors more than rows are multiplied, and the part of the variance that they may leave out: that of
#: rounding in single precision.
_MORE, _LEFT = 8, 1e-5
RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))


@dataclass(frozen=True)
class Solution:
    """The affine map `weight` `(O, I)`, `bias` `(O,)` in float64; `r2` is its explained variance on held-out rows."""

    weight: Tensor
    bias: Tensor
    r2: float
    ridge: float


@dataclass(frozen=True)
class _Target:
    """Features that are predicted: products `(K, O)` with the source's directions, and parts of the held-out error."""

    projected: Tensor
    linear: Tensor
    quadratic: Tensor
    step: Tensor
    variance: Tensor


class Source:
    """The features that stitches start from, decomposed once for all targets and ridges.

    `source` are their columns in `moments`; `held_out` are the moments of other rows of the same features.
    """

    def __init__(self, moments: Moments, source: slice, held_out: Moments) -> None:
        self._moments, self._columns, self._held_out = moments, source, held_out
        covariance = moments.scatter[source, source] / max(moments.n, 1.0)
        values, self._vectors = _decomposed(covariance, moments.n)
        self._values = values.clamp(min=0)
        self._scale = covariance.diagonal().mean().clamp(min=0)
        self._targets: dict[tuple[int, int], _Target] = {}
        inner = held_out.scatter[source, source] / max(held_out.n, 1.0)
        self._held_out_inner = self._vectors.T @ inner @ self._vectors
        self._shift = self._vectors.T @ (held_out.mean[source] - moments.mean[source])

    def to(self, target: slice, ridges: Sequence[float] = RIDGES) -> Solution:
        """Return the best affine map to the features in `target`.

        Where the source is constant the map is the target's mean; the largest ridge wins ties.
        """
        goal = self._target(target)
        errors, shrinkages = [], []
        ridges = sorted(ridges, reverse=True)
        for ridge in ridges:
            shrinkage = self._shrinkage(ridge)
            offset = goal.projected.T @ (shrinkage * self._shift) - goal.step
            quadratic = shrinkage @ goal.quadratic @ shrinkage
            errors.append(float(goal.variance - 2 * (shrinkage @ goal.linear) + quadratic + offset.square().sum()))
            shrinkages.append(shrinkage)
        best = min(range(len(ridges)), key=errors.__getitem__)
        weight = settled((self._vectors @ (goal.projected * shrinkages[best][:, None])).T)
        bias = self._moments.mean[target] - weight @ self._moments.mean[self._columns]
        if float(goal.variance) > 0:
            r2 = 1 - errors[best] / float(goal.variance)
        else:
            r2 = explained_variance(self._held_out, self._columns, target, weight, bias)
        return Solution(weight, bias, r2, ridges[best])

    def _target(self, target: slice) -> _Target:
        """Return what is known of the features in `target`, seen from those of the source."""
        key = (target.start, target.stop)
        if key not in self._targets:
            projected = self._vectors.T @ (self._moments.scatter[self._columns, target] / max(self._moments.n, 1.0))
            held_out = self._vectors.T @ (self._held_out.scatter[self._columns, target] / max(self._held_out.n, 1.0))
            self._targets[key] = _Target(
                projected,
                # With W = (V diag(d) P)' for d = 1 / (eigenvalue + ridge), the error is quadratic in d.
                linear=(projected * held_out).sum(1),
                quadratic=(projected @ projected.T) * self._held_out_inner,
                step=self._held_out.mean[target] - self._moments.mean[target],
                variance=self._held_out.scatter.diagonal()[target].sum() / max(self._held_out.n, 1.0),
            )
        return self._targets[key]

    def _shrinkage(self, ridge: float) -> Tensor:
        shrunk = self._values + ridge * self._scale
        return torch.where(shrunk > 0, 1 / shrunk, 0.0)


def _decomposed(covariance: Tensor, rows: float) -> tuple[Tensor, Tensor]:
    """Return eigenvalues `(K,)` and eigenvectors `(D, K)` of a covariance `(D, D)` of so many rows.

    Fewer rows than features span no more directions than rows: these are found by multiplying with random vectors
    (Halko, Martinsson and Tropp, "Finding structure with randomness", 2011), which costs the square of the width
    instead of its cube. Directions that are not there have the eigenvalue zero, and no stitch goes along them.
    """
    width, most = len(covariance), int(rows) + _MORE
    if most <= width // 2:
        generator = torch.Generator().manual_seed(width)
        probes = torch.randn(width, most, dtype=torch.float64, generator=generator).to(covariance)
        basis = torch.linalg.qr(covariance @ probes)[0]
        inner = basis.T @ covariance @ basis
        # Moments of several parties together may span more than so many rows do.
        if float((covariance.trace() - inner.trace()).abs()) <= _LEFT * float(covariance.trace()):
            values, vectors = torch.linalg.eigh(inner)
            return values, basis @ vectors
    values, vectors = torch.linalg.eigh(covariance)
    return values, vectors


def explained_variance(moments: Moments, source: slice, target: slice, weight: Tensor, bias: Tensor) -> float:
    """Return R2 of `weight x + bias` as a prediction of the target, over all channels, from moments alone.

    1 is perfect, 0 as good as the target's mean; 1 if the target is constant and met, else 0.
    """
    n = max(moments.n, 1.0)
    inner, cross = moments.scatter[source, source], moments.scatter[source, target]
    offset = weight @ moments.mean[source] + bias - moments.mean[target]
    total = moments.scatter.diagonal()[target].sum()
    error = total - 2 * (weight * cross.T).sum() + ((weight @ inner) * weight).sum() + n * offset.square().sum()
    if total <= 0:
        return 1.0 if float(error / n) <= 1e-12 else 0.0
    return float(1 - error / total)
