"""Means and second moments of features, gathered batch by batch without keeping a single activation.

Moments of disjoint sets of rows add up (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979), so the order of batches, the number of workers and the machine do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows multiplied at once: bounds the memory for a copy of the features in float32.
CHUNK = 1 << 16
#: Products of more columns than this with each other are taken in blocks of half as many, each of two that are alike
#: once.
MANY = 512


@dataclass(frozen=True)
class Moments:
    """`n` rows of `D` features: their mean `(D,)` and scatter `(D, D)`, the sum of centred outer products; float64."""

    n: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Return the moments of `rows` `(R, D)`; products in float32 or better, totals in float64.

        Rows are shifted by their mean before they are multiplied, so that large offsets cost no precision. Infinite or
        NaN rows are not looked for here, where that would mean to wait for the device: `finite` tells of the totals.
        """
        total: Moments | None = None
        for chunk in torch.split(rows, CHUNK):
            exact = chunk if chunk.dtype == torch.float64 else chunk.float()
            mean = exact.mean(0)
            centred = exact - mean
            # What rounding of the mean left over is taken out again.
            left = centred.mean(0).double()
            scatter = squares(centred).double().addr_(left, left, alpha=-len(chunk))
            part = cls(float(len(chunk)), mean.double() + left, scatter)
            total = part if total is None else total + part
        return cls.nothing(rows.shape[1], rows.device) if total is None else total

    @classmethod
    def weighted(cls, rows: Tensor, weights: Tensor) -> Moments:
        """Return the moments of `rows` `(R, D)` of which each counts for its weight `(R,)`; in float64."""
        exact, weights = rows.double(), weights.double()
        n = float(weights.sum())
        mean = weights @ exact / max(n, torch.finfo(torch.float64).tiny)
        centred = exact - mean
        return cls(n, mean, (centred * weights[:, None]).T @ centred)

    @property
    def finite(self) -> Tensor:
        """Which of the `D` features were finite in all rows."""
        return torch.isfinite(self.scatter.diagonal()) & torch.isfinite(self.mean)

    @classmethod
    def nothing(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        """Return the moments of no rows of `width` features."""
        mean = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0.0, mean, torch.zeros(width, width, dtype=torch.float64, device=device))

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        if n == 0:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.n / n)
        scatter = (self.scatter + other.scatter).addr_(step, step, alpha=self.n * other.n / n)
        return Moments(n, mean, scatter)

    def select(self, *columns: slice) -> Moments:
        """Return the moments of these columns alone, in this order."""
        index = torch.cat([torch.arange(len(self.mean), device=self.mean.device)[part] for part in columns])
        return Moments(self.n, self.mean[index], self.scatter[index][:, index])

    @property
    def covariance(self) -> Tensor:
        """Return `(D, D)`, normalised by `n`."""
        return self.scatter / max(self.n, 1.0)

    @property
    def variances(self) -> Tensor:
        """Return the variance `(D,)` of each feature, normalised by `n`."""
        return self.scatter.diagonal() / max(self.n, 1.0)

    def projected(self, directions: Tensor) -> Moments:
        """Return the moments of the features' products with `directions` `(K, D)`."""
        return Moments(self.n, directions @ self.mean, directions @ self.scatter @ directions.T)

    def dense(self) -> Moments:
        """Return the moments themselves."""
        return self

    def scaled(self, n: float) -> Moments:
        """Return the moments as if these rows had been repeated until there were `n`."""
        return Moments(n, self.mean, self.scatter * (n / max(self.n, 1.0)))

    def to(self, device: torch.device | str) -> Moments:
        """Return the same moments on `device`."""
        return Moments(self.n, self.mean.to(device), self.scatter.to(device))


def squares(rows: Tensor) -> Tensor:
    """Return `rows.T @ rows` `(D, D)` of `rows` `(R, D)`: of many columns, what lies above the diagonal is a copy."""
    width = rows.shape[1]
    if width <= MANY:
        return rows.T @ rows
    result = rows.new_empty(width, width)
    for start in range(0, width, MANY // 2):
        block = slice(start, start + MANY // 2)
        below = rows[:, block].T @ rows[:, : min(block.stop, width)]
        result[block, : below.shape[1]] = below
        result[:start, block] = below[:, :start].T
    return result


def rows(feature: Tensor, grid: Sequence[int], channel_axis: int = 1) -> Tensor:
    """Return a feature map as rows `(N * prod(grid), C)`, one per sample and position of `grid`.

    `feature` is `(N, C, *spatial)`, or `(N, L, C)` with `channel_axis` 2.
    """
    resampled = to_grid(channels_second(feature, channel_axis), grid)
    return resampled.flatten(2).transpose(1, 2).flatten(0, 1) if resampled.dim() > 2 else resampled


def channels_second(feature: Tensor, channel_axis: int) -> Tensor:
    """Return `feature` as `(N, C, *spatial)`."""
    return feature if channel_axis == 1 else feature.movedim(channel_axis, 1)


def to_grid(feature: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample `(N, C, *spatial)` to `(N, C, *grid)`: averages where it gets smaller, linear where it gets larger.

    A vector `(N, C)` is the same at all positions; a map becomes a vector `(N, C)` by its mean. Raises `ValueError`
    when the numbers of dimensions differ otherwise.
    """
    spatial, grid = tuple(feature.shape[2:]), tuple(grid)
    if spatial == grid:
        return feature
    if not grid:
        return feature.flatten(2).mean(2)
    if not spatial:
        return feature.reshape(*feature.shape, *(1 for _ in grid)).expand(*feature.shape, *grid)
    if len(spatial) != len(grid):
        raise ValueError(f"maps of size {spatial} and {grid} have no common grid")
    if all(ours >= theirs for ours, theirs in zip(spatial, grid, strict=True)):
        pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
        return pool(feature, grid if len(grid) > 1 else grid[0])  # type: ignore[arg-type]
    mode = ("linear", "bilinear", "trilinear")[len(grid) - 1]
    return F.interpolate(feature, size=grid, mode=mode, align_corners=False)


def compatible(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether maps of spatial sizes `a` and `b` can be brought onto one grid."""
    return not a or not b or len(a) == len(b)
