"""How familiar a sample is: whether stitches fitted on one party's data should act on it at all.

A stitch says something about inputs like those it was fitted on. On others, such as images of another scanner, the
translated features are arbitrary, and mixing them in destroys what the other member knows. So a gate measures how far
the members' own features of a sample, side by side and averaged over its positions, lie from those of the fit data:
the Mahalanobis distance to their mean (after Lee, Lee, Lee and Shin, "A Simple Unified Framework for Detecting
Out-of-Distribution Samples and Adversarial Attacks", 2018). Familiar samples are mixed as fitted, unfamiliar ones not
at all: there the ensemble is the plain one.

Averages over positions tell one scanner or stain from another far better than features at single positions do, and
early layers tell them better than late ones. Two members that see the same sample are also a check on each other: an
unusual *combination* of usual features is far away too, which no member could tell alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.features.few_rows import FewRows
from suture_stitching.features.moments import Moments

#: In how many directions a gate looks at most. They are fixed: which ones a party's data vary most in would be one more
#: thing that is told of them, and they tell others' data apart no better.
DIRECTIONS = 32
#: Digits of the distances at which a gate fades.
DIGITS = 4
#: Added to each variance, as a part of the mean variance: directions that hardly vary are not to be over-trusted.
SHRINKAGE = 1e-2
#: The distance within which this part of held-out samples lie is what gates are measured by.
HOME = 0.95
#: How far gates reach without reserve, in that distance, from the strictest to the most lenient. Another scanner's
#: images mostly lie several times as far away.
REACHES = (0.8, 1.0, 1.5, 2.5)
#: Where familiarity ends, as a multiple of that reach.
FADED = 1.25


@dataclass(frozen=True)
class Whitening:
    """`weight` `(k, D)` and `bias` `(k,)`, float32: distances are squared norms after it."""

    weight: Tensor
    bias: Tensor

    def distance(self, rows: Tensor) -> Tensor:
        """Return for `rows` `(R, D)` the squared distance to the mean, divided by k: about 1 at home."""
        return (rows @ self.weight.T + self.bias).square().sum(1)


def projection(width: int, directions: int) -> Tensor | None:
    """Return `(directions, width)` orthonormal directions, the same every time; None where there are no more."""
    if width <= directions:
        return None
    generator = torch.Generator().manual_seed(width)
    square = torch.randn(width, directions, dtype=torch.float64, generator=generator)
    chosen: Tensor = torch.linalg.qr(square)[0].T.contiguous()
    return chosen


def whiten(moments: Moments | FewRows) -> Whitening:
    """Return the whitening of features with these moments, in `DIRECTIONS` fixed directions where there are more."""
    chosen = projection(len(moments.mean), DIRECTIONS)
    if chosen is not None:
        chosen = chosen.to(moments.mean.device)
    moments = moments.dense() if chosen is None else moments.projected(chosen)
    values, vectors = torch.linalg.eigh(moments.covariance)
    values = values.clamp(min=0)
    floor = SHRINKAGE * values.mean()
    if floor <= 0:
        floor = torch.ones_like(floor)  # constant features: every deviation counts as it is
    weight = (vectors / ((values + floor) * len(moments.mean)).sqrt()).T
    full = weight if chosen is None else weight @ chosen
    return Whitening(full.float(), (-weight @ moments.mean).float())


def bounds(distances: Tensor, reach: float) -> tuple[float, float]:
    """Return `near` and `far` of a gate from held-out samples' distances `(N,)`, in `DIGITS` digits.

    A quantile lies between the distances of two patients: its last digits would be theirs.
    """
    near = max(reach * float(torch.quantile(distances.double(), HOME)), 1e-6)
    return short(near), short(near * FADED)


def short(distance: float) -> float:
    """Return a distance in the digits that a gate has."""
    return float(f"{distance:.{DIGITS}g}")
