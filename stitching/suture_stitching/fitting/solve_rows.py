"""Stitches in closed form from few rows: what `solve` finds from second moments, found in the rows themselves.

With rows `X` `(R, I)` of the source and `Y` `(R, O)` of the target around their means, the stitch is
`Y' (X X' + R * ridge * s)^-1 X`. In the directions of `X`, `X = V diag(lengths) U`, one decomposition serves every
ridge and target, and the held-out error of a ridge needs nothing but what is known along them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import squares
from suture_stitching.fitting.solve import RIDGES, Solution
from suture_stitching.portable.layout import settled


@dataclass(frozen=True)
class _Target:
    """Features that are predicted, `(K, O)` along the source's directions, and parts of the held-out error."""

    along: Tensor
    linear: Tensor
    quadratic: Tensor
    between: Tensor
    step: Tensor
    variance: float


class SourceOfRows:
    """The features that stitches start from, decomposed once: a `Source` of few rows."""

    def __init__(self, train: FewRows, source: slice, held_out: FewRows) -> None:
        self._train, self._columns, self._held_out = train, source, held_out
        directions, n = train.directions(source), max(train.n, 1.0)
        self._vectors, self._values = directions.vectors, directions.values / n
        self._scale = train.variances[source].mean()
        #: What the directions say about a target is these roots times what the target is along them.
        self._roots = (self._values / n).sqrt()
        #: The directions as unit vectors of features `(K, I)`.
        lengths = directions.values.sqrt().to(self._vectors)
        self._units = (self._vectors.T @ train.rows[:, source].to(self._vectors)) / lengths[:, None]
        #: Coordinates of held-out rows in the directions, and of how far their mean lies from that of training.
        self._projected = held_out.rows[:, source].to(self._units) @ self._units.T
        self._shift = (self._units @ (held_out.mean - train.mean)[source].to(self._units)).double()
        self._inner = squares(self._projected).double() / max(held_out.n, 1.0)
        self._targets: dict[tuple[int, int], _Target] = {}

    def to(self, target: slice, ridges: Sequence[float] = RIDGES) -> Solution:
        """Return the best affine map to the features in `target`; see `Source.to`."""
        goal, ordered = self._target(target), sorted(ridges, reverse=True)
        shrinkages = torch.stack([1 / (self._values + ridge * self._scale) for ridge in ordered])
        moved = shrinkages * (self._roots * self._shift)
        precision = self._train.precision(target)
        stepped = (goal.along.to(precision) @ goal.step.to(precision)).double()
        offsets = ((moved @ goal.between) * moved).sum(1) - 2 * (moved @ stepped) + goal.step.square().sum()
        quadratic = ((shrinkages @ goal.quadratic) * shrinkages).sum(1)
        errors = goal.variance - 2 * (shrinkages @ goal.linear) + quadratic + offsets
        best = int(errors.argmin())
        shrunk = (shrinkages[best] * self._roots).to(self._units)
        weight = settled(goal.along.T @ (shrunk[:, None] * self._units))
        bias = self._train.mean[target] - (weight @ self._train.mean[self._columns].to(weight)).double()
        # A constant target is explained where it is met.
        error = float(errors[best])
        r2 = 1 - error / goal.variance if goal.variance > 0 else float(error <= 1e-12)
        return Solution(weight, bias, r2, ordered[best])

    def _target(self, target: slice) -> _Target:
        """Return what is known of the features in `target`, seen along the source's directions."""
        key = (target.start, target.stop)
        if key not in self._targets:
            held_out, n = self._held_out, max(self._held_out.n, 1.0)
            along = self._vectors.T @ self._train.rows[:, target].to(self._vectors)
            tests = held_out.rows[:, target]
            crossed = tests.to(along) @ along.T
            between = squares(along.T).double()
            self._targets[key] = _Target(
                along,
                linear=self._roots * (crossed.double() * self._projected).sum(0) / n,  # cubes of features
                quadratic=torch.outer(self._roots, self._roots) * between * self._inner,
                between=between,
                step=(held_out.mean - self._train.mean)[target],
                variance=float(torch.linalg.vector_norm(tests).double().square()) / n,
            )
        return self._targets[key]
