"""How familiar a sample is: whether stitches fitted on one party's data should act on it at all.

A stitch says something about inputs like those it was fitted on. On others, such as images of another scanner, the
translated features are arbitrary, and mixing them in destroys what the other member knows. So a gate measures how far
the members' own features at a match, side by side, lie from those of the fit data: the Mahalanobis distance to the
nearest class mean with one covariance for all classes (Lee, Lee, Lee and Shin, "A Simple Unified Framework for
Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018). Familiar samples are mixed as fitted,
unfamiliar ones not at all: there the ensemble is the plain one.

Two members that see the same sample are also a check on each other: an unusual *combination* of usual features is far
away too, which no member could tell alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suture_stitching.moments import Moments

#: Added to each variance, as a part of the mean variance: directions that hardly vary are not to be over-trusted.
SHRINKAGE = 1e-2
#: A class with fewer samples gets no centre of its own, which would tell what a few patients' features are.
FEWEST = 11
#: The part of held-out samples that a gate takes for familiar without reserve, from the strictest to the most lenient.
FAMILIAR = (0.9, 0.95, 0.975, 0.9875)


@dataclass(frozen=True)
class ClassSums:
    """Per class: samples `(K,)`, rows `(K,)` and their feature sums `(K, D)`; float64. Adds up as moments do."""

    samples: Tensor
    rows: Tensor
    sums: Tensor

    @classmethod
    def of(cls, rows: Tensor, classes: Tensor, number: int) -> ClassSums:
        """Return the sums of `rows` `(N * P, D)`, `P` successive ones per sample; `classes` `(N,)` in 0..number-1."""
        each = rows.shape[0] // classes.shape[0]
        samples = torch.bincount(classes, minlength=number).double()
        sums = torch.zeros(number, rows.shape[1], dtype=torch.float64, device=rows.device)
        sums.index_add_(0, classes.repeat_interleave(each), rows.double())
        return cls(samples, samples * each, sums)

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.samples + other.samples, self.rows + other.rows, self.sums + other.sums)


@dataclass(frozen=True)
class Whitening:
    """`weight` `(D, D)`, `bias` `(D,)` and `centres` `(K, D)`, float32: distances are squared norms after it."""

    weight: Tensor
    bias: Tensor
    centres: Tensor

    def distance(self, rows: Tensor) -> Tensor:
        """Return for `rows` `(R, D)` the squared distance to the nearest centre, divided by D: about 1 at home."""
        white = rows @ self.weight.T + self.bias
        return (white[:, None] - self.centres[None]).square().sum(2).amin(1)


def whiten(moments: Moments, classes: ClassSums | None = None, *, fewest: int = FEWEST) -> Whitening:
    """Return the whitening of features with these moments; one centre per class, or one for all without classes.

    Classes of fewer than `fewest` samples have none, and the mean of all data, from which theirs could be subtracted,
    is not told either unless all classes are that small.
    """
    mean, scatter = moments.mean, moments.scatter
    centres = mean[None]
    if classes is not None and bool((large := classes.samples >= fewest).any()):
        centres = classes.sums[large] / classes.rows[large, None]
        offsets = centres - mean
        scatter = scatter - (offsets * classes.rows[large, None]).T @ offsets
    origin = centres.mean(0)
    values, vectors = torch.linalg.eigh(scatter / max(moments.n, 1.0))
    values = values.clamp(min=0)
    floor = SHRINKAGE * values.mean()
    if floor <= 0:
        floor = torch.ones_like(floor)  # constant features: every deviation counts as it is
    weight = (vectors / ((values + floor) * len(mean)).sqrt()).T
    return Whitening(weight.float(), (-weight @ origin).float(), ((centres - origin) @ weight.T).float())


def bounds(distances: Tensor, familiar: float) -> tuple[float, float]:
    """Return `near` and `far` from held-out samples' distances `(N,)`.

    The part `familiar` of them is not farther than `near`; `far` is beyond it by half its own way from the median.
    """
    middle, near = torch.quantile(distances.double(), torch.tensor([0.5, familiar], dtype=torch.float64)).tolist()
    return near, near + max((near - middle) / 2, 0.05 * near, 1e-6)
