"""95 % intervals of means and of paired differences, from how much they differ between patients.

A patient's samples resemble each other, so patients are drawn, each with all its samples (Davison and Hinkley, 1997,
section 3.8). A sample of no patient is one of its own. Drawing from few patients gives intervals that are too narrow;
below `RESAMPLED_FROM` they are those of Student's t, with the deviation of a ratio (Cochran, 1977, section 2.11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import Interval

RESAMPLES = 2000
#: From so many patients on they are resampled. Of fewer, the interval holds the truth in less than 92 of 100 cases.
RESAMPLED_FROM = 20
_CELLS = 1 << 23
#: The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom: one less than patients.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622),
    *(2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009),
)

Floats = NDArray[np.float64]


def intervals(
    scores: Floats,
    against: Sequence[int] = (),
    *,
    seed: int,
    patients: NDArray[np.int64] | None = None,
    most: float = math.inf,
) -> list[tuple[Interval, dict[int, Interval]]]:
    """Return each candidate's mean and its differences from the candidates `against`, all with 95 % intervals.

    `scores` is `(candidates, N)`, one score from 0 to `most` per sample; `patients` `(N,)` says whose each sample is,
    None that each is another's. All candidates are resampled together, so that a difference compares the two on the
    same samples. The same seed gives the same intervals.
    """
    values = scores.mean(axis=1)
    sums, sizes = _by_patient(scores, patients)
    if len(sizes) < RESAMPLED_FROM:
        return _by_student(values, sums, sizes, against, most)
    means = _resampled_means(sums, sizes, np.random.default_rng(seed))
    results = []
    for index, value in enumerate(values):
        differences = {other: _interval(value - values[other], means[:, index] - means[:, other]) for other in against}
        results.append((_interval(value, means[:, index]), differences))
    return results


def student(patients: int) -> float:
    """Return by how many deviations a 95 % interval of fewer than `RESAMPLED_FROM` patients reaches to each side."""
    return _STUDENT[max(patients, 2) - 2]


def _by_patient(scores: Floats, patients: NDArray[np.int64] | None) -> tuple[Floats, Floats]:
    """Return sums of scores `(candidates, P)` and numbers of samples `(P,)` by patient, first seen first."""
    if patients is None:
        return scores, np.ones(scores.shape[1])
    _, first, whose = np.unique(patients, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[whose]
    order = np.argsort(place, kind="stable")
    sizes = np.bincount(place)
    starts = np.cumsum(sizes) - sizes
    return np.add.reduceat(scores[:, order], starts, axis=1), sizes.astype(np.float64)


def _resampled_means(sums: Floats, sizes: Floats, rng: np.random.Generator) -> Floats:
    """Return `(RESAMPLES, candidates)`: the mean over the samples of patients drawn with replacement."""
    n = len(sizes)
    at_once = max(1, min(RESAMPLES, _CELLS // n))
    parts = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        parts.append(counts @ sums.T / (counts @ sizes)[:, None])
    return np.concatenate(parts)


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(value=float(value), low=float(low), high=float(high))


def _by_student(
    values: Floats, sums: Floats, sizes: Floats, against: Sequence[int], most: float
) -> list[tuple[Interval, dict[int, Interval]]]:
    """Return the same for few patients, from how far each one's sum is from what the mean would give."""
    patients, samples = len(sizes), sizes.sum()
    apart = sums - values[:, None] * sizes
    quantile = student(patients)
    #: How much a single patient's value differs from others' is not known: by all that scores may.
    unknown = most if math.isfinite(most) else float(np.abs(sums).max() / samples)

    def interval(value: float, own: Floats, lowest: float) -> Interval:
        deviation = math.sqrt(patients / (patients - 1) * float(own @ own)) / samples if patients > 1 else unknown
        low, high = value - quantile * deviation, value + quantile * deviation
        return Interval(value=float(value), low=float(max(low, lowest)), high=float(min(high, most)))

    results = []
    for index, value in enumerate(values):
        differences = {
            other: interval(value - values[other], apart[index] - apart[other], -most)
            if other != index
            else Interval(value=0.0, low=0.0, high=0.0)
            for other in against
        }
        results.append((interval(value, apart[index], 0.0), differences))
    return results
