"""Metrics of predictions, and their intervals over seeds and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.documents import Interval
from suture_contract.model.metadata import Task
from suture_stitching.evaluation.bootstrap import RESAMPLED_FROM, student

Floats = NDArray[np.float64]
METRICS: dict[Task, str] = {"classification": "accuracy", "segmentation": "Dice"}
RESAMPLES = 2000
#: The 97.5 % quantile of the normal distribution.
NORMAL = 1.96
#: Masks that are compared at once: bounds the memory.
_AT_ONCE = 32


def sample_scores(task: Task, probabilities: Tensor, y: Tensor) -> Tensor:
    """Return one score per sample `(N,)`, whose mean is the metric.

    Classification: 1 where the most probable label is right, else 0 (accuracy). Segmentation: mean Dice over the labels
    but the first that the sample shows or that were found; 1 where there is nothing to find and nothing was found.
    """
    predicted = probabilities.argmax(1)
    if task == "classification":
        return (predicted == y).double()
    labels = probabilities.shape[1]
    pairs = zip(torch.split(y, _AT_ONCE), torch.split(predicted, _AT_ONCE), strict=True)
    parts = [_dice(*pair, labels) for pair in pairs]
    return torch.cat(parts)


def _dice(truth: Tensor, predicted: Tensor, labels: int) -> Tensor:
    a, b = (F.one_hot(mask, labels).movedim(-1, 1)[:, 1:].flatten(2).bool() for mask in (truth, predicted))
    size = (a.sum(2) + b.sum(2)).double()
    dice = 2 * (a & b).sum(2).double() / size.clamp(min=1)
    shown = size > 0
    mean = (dice * shown).sum(1) / shown.sum(1).clamp(min=1)
    return mean.where(shown.any(1), mean.new_ones(()))


def balanced_accuracy(probabilities: Floats, y: NDArray[np.int64]) -> float:
    """Return the share of rightly classified samples, averaged over the classes that there are."""
    right = probabilities.argmax(1) == y
    return float(np.mean([right[y == value].mean() for value in np.unique(y)]))


def auroc(probabilities: Floats, y: NDArray[np.int64]) -> float | None:
    """Return the area under the ROC curve, averaged over the classes; None where there is a single class.

    The share of pairs, one with the class and one without, that are ranked rightly (Hanley and McNeil, 1982).
    """
    areas = []
    classes = np.unique(y)
    for value in classes if probabilities.shape[1] > 2 else classes[-1:]:
        inside, outside = probabilities[y == value, value], probabilities[y != value, value]
        if len(inside) and len(outside):
            difference = inside[:, None] - outside[None, :]
            areas.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return float(np.mean(areas)) if areas else None


@dataclass(frozen=True)
class Resampled:
    """Bootstrap means of one method at one party: `value`, and `(RESAMPLES,)` means of resampled seeds and samples.

    `lowest` is what the value can be at least, 1 what it can be at most.
    """

    value: float
    means: Floats
    lowest: float = 0.0

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval."""
        low, high = np.quantile(self.means, (0.025, 0.975)).clip(self.lowest, 1.0)
        return Interval(value=self.value, low=float(low), high=float(high))

    def __sub__(self, other: Resampled) -> Resampled:
        """Return the paired difference: both were resampled alike."""
        return Resampled(self.value - other.value, self.means - other.means, lowest=-1.0)


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """Return the mean over parties, whose samples were drawn independently."""
    return Resampled(
        float(np.mean([part.value for part in parts])),
        np.mean(np.stack([part.means for part in parts]), axis=0),
        min(part.lowest for part in parts),
    )


class Bootstrap:
    """Resamples seeds, and within each seed the patients of a party's test split, alike for all methods.

    A patient is drawn with all samples; where patients are not known, each sample is one. Of few patients, the means of
    draws are set apart by as much as makes their interval one of Student's t: drawn ones are too narrow there.
    Two stages (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): with a single seed
    only the samples vary.
    """

    def __init__(self, sizes: Sequence[int], patients: Sequence[NDArray[np.int64] | None] = (), *, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._seeds = rng.integers(0, len(sizes), (RESAMPLES, len(sizes)))
        #: Per seed, how often each sample was drawn, divided by the number of samples.
        self._weights = [
            _drawn(np.arange(n) if whose is None else whose, rng)
            for n, whose in zip(sizes, patients or [None] * len(sizes), strict=True)
        ]

    def __call__(self, scores: Sequence[Floats]) -> Resampled:
        """Return the mean of one method's scores, given `(N,)` for each seed."""
        means = np.stack([weights @ own for weights, own in zip(self._weights, scores, strict=True)])
        drawn = means[self._seeds, np.arange(RESAMPLES)[:, None]]
        return Resampled(float(np.mean([own.mean() for own in scores])), drawn.mean(axis=1))


def _drawn(patients: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Return `(RESAMPLES, N)`: each sample's weight in the mean over patients drawn with replacement."""
    sizes = np.bincount(patients)
    n = len(sizes)
    counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    weights: Floats = counts[:, patients] / (counts @ sizes)[:, None]
    if not 1 < n < RESAMPLED_FROM:
        return weights
    even = 1 / len(patients)
    return even + (weights - even) * student(n) / NORMAL * math.sqrt(n / (n - 1))
