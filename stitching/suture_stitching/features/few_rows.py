"""Moments of few rows of many features, kept as these rows: what is asked of them is found in products of rows.

The second moments of 4,096 features are 16 million numbers, however few rows they are of. Everything that a regression
needs is in the products `(R, R)` of `R` rows with each other (the dual form of ridge regression: Saunders, Gammerman
and Vovk, "Ridge Regression Learning Algorithm in Dual Variables", 1998), or in those of features where these are fewer.
Nothing is left out: results differ from those of `Moments` by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from suture_stitching.features.moments import Moments, squares

#: A point of at least so many features is wide, and of so many rows at most are products cheaper than second moments.
WIDE, MOST_ROWS = 512, 2048
#: Columns that are multiplied at once in float32, before products are added up in float64.
_COLUMNS = 1024
#: Directions that vary less than this part of the largest are rounding, in each precision.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}
#: Where a feature varies by so much more than the middle one, float32 would lose what the others say.
_DOMINATES = 1e4


@dataclass(frozen=True)
class Directions:
    """Directions in which rows vary: eigenvalues `(K,)` of their products in float64, and eigenvectors `(R, K)`."""

    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class FewRows:
    """`n` samples of `D` features: their mean `(D,)` float64, and `rows` `(R, D)` float32.

    The scatter, as `Moments` have it, is `rows.T @ rows`.
    """

    n: float
    mean: Tensor
    rows: Tensor
    _known: dict[tuple[int, int], Directions] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Tensor) -> FewRows:
        """Return what `rows` `(R, D)` say, each counted once."""
        rows = rows.float()
        mean = rows.mean(0)
        centred = rows - mean
        left = centred.mean(0)
        return cls(float(len(rows)), mean.double() + left.double(), centred.sub_(left))

    @classmethod
    def beside(cls, parts: Sequence[FewRows]) -> FewRows:
        """Return features of the same rows side by side, with what is known of each."""
        whole = cls(parts[0].n, torch.cat([part.mean for part in parts]), torch.cat([part.rows for part in parts], 1))
        start = 0
        for part in parts:
            for (first, last), directions in part._known.items():
                whole._known[start + first, start + last] = directions
            start += len(part.mean)
        return whole

    @cached_property
    def variances(self) -> Tensor:
        """Return the variance `(D,)` of each feature, normalised by `n`; float64."""
        total: Tensor = self.rows.square().sum(0)
        return total.double() / max(self.n, 1.0)

    @property
    def finite(self) -> Tensor:
        """Which of the `D` features were finite in all rows, and their products can be."""
        return torch.isfinite(self.mean) & torch.isfinite(self.rows.square().sum(0) * self.rows.shape[1])

    def select(self, *columns: slice) -> FewRows:
        """Return what is known of these columns alone, in this order."""
        return FewRows(
            self.n,
            torch.cat([self.mean[part] for part in columns]),
            torch.cat([self.rows[:, part] for part in columns], 1),
        )

    def scaled(self, n: float) -> FewRows:
        """Return the same as if these samples had been repeated until there were `n`."""
        return FewRows(n, self.mean, self.rows * (n / max(self.n, 1.0)) ** 0.5)

    def __add__(self, other: FewRows) -> FewRows:
        n = self.n + other.n
        step = other.mean - self.mean
        between = (self.n * other.n / max(n, 1.0)) ** 0.5 * step
        rows = torch.cat([self.rows, other.rows, between[None].float()])
        return FewRows(n, self.mean + step * (other.n / max(n, 1.0)), rows)

    def projected(self, directions: Tensor) -> Moments:
        """Return the moments of the features' products with `directions` `(K, D)`."""
        rows = (self.rows @ directions.T.float()).double()
        return Moments(self.n, directions @ self.mean, rows.T @ rows)

    def dense(self) -> Moments:
        """Return the moments themselves."""
        return Moments(self.n, self.mean, squares(self.rows).double())

    def products(self, columns: slice) -> Tensor:
        """Return the products `(R, R)` of the rows with each other over these columns; float64."""
        return products(self.rows[:, columns], self.precision(columns))

    def precision(self, columns: slice) -> torch.dtype:
        """Return in which precision products over these columns are taken: float32, where no feature dominates."""
        variances = self.variances[columns]
        dominated = float(variances.max()) > _DOMINATES * float(variances.median())
        return torch.float64 if dominated else torch.float32

    def directions(self, columns: slice) -> Directions:
        """Return in which directions the rows vary in these columns."""
        key = (columns.start, columns.stop)
        if key not in self._known:
            rows, precision = self.rows[:, columns], self.precision(columns)
            by_feature = rows.shape[1] < len(rows)
            values, vectors = torch.linalg.eigh(products(rows.T if by_feature else rows, precision).to(precision))
            some = values > _ROUNDING[precision] * values[-1].clamp(min=torch.finfo(precision).tiny)
            values, vectors = values[some], vectors[:, some]
            if by_feature:
                vectors = rows.to(precision) @ (vectors / values.sqrt())
            self._known[key] = Directions(values.double(), vectors)
        return self._known[key]

    def along(self, columns: slice, some: Tensor) -> Tensor:
        """Return `some` `(K,)` of the directions in these columns as unit vectors of features, `(C, k)`; float64."""
        directions = self.directions(columns)
        values, vectors = directions.values[some], directions.vectors[:, some].double()
        if not len(values):
            return self.rows.new_zeros(columns.stop - columns.start, 0, dtype=torch.float64)
        return self.rows[:, columns].T.double() @ (vectors / values.sqrt())

    def lessened(self, columns: slice, some: Tensor) -> Directions:
        """Return the directions in these columns without `some` `(K,)` of them."""
        directions = self.directions(columns)
        return Directions(directions.values[~some], directions.vectors[:, ~some])

    def know(self, columns: slice, directions: Directions) -> None:
        """Take note of directions that were worked out elsewhere."""
        self._known[columns.start, columns.stop] = directions

    def without(self, full: Tensor) -> FewRows:
        """Return the same with zeros for those features that are not `full` `(D,)`: 1 or 0, float64."""
        if bool(full.all()):
            return self
        return FewRows(self.n, self.mean * full, self.rows * full.float())


def products(rows: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Return the products `(R, R)` of rows `(R, D)`: over few columns at once, added up in float64."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for start in range(0, rows.shape[1], _COLUMNS):
        total += squares(rows[:, start : start + _COLUMNS].to(precision).T)
    return total
