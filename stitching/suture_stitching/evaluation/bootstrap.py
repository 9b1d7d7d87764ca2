"""95 % intervals of means and of paired differences, by resampling samples (Efron and Tibshirani, 1993, ch. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import Interval

RESAMPLES = 2000
_CELLS = 1 << 23

Floats = NDArray[np.float64]


def intervals(scores: Floats, against: Sequence[int] = (), *, seed: int) -> list[tuple[Interval, dict[int, Interval]]]:
    """Return each candidate's mean and its differences from the candidates `against`, all with percentile intervals.

    `scores` is `(candidates, N)`, one score per sample. All candidates are resampled together, so that a difference
    compares the two on the same samples. The same seed gives the same intervals.
    """
    means = _resampled_means(scores, np.random.default_rng(seed))
    values = scores.mean(axis=1)
    found = []
    for index, value in enumerate(values):
        differences = {one: _interval(value - values[one], means[:, index] - means[:, one]) for one in against}
        found.append((_interval(value, means[:, index]), differences))
    return found


def _resampled_means(scores: Floats, rng: np.random.Generator) -> Floats:
    """Return `(RESAMPLES, candidates)`: the mean over samples drawn with replacement, as counts times scores."""
    n = scores.shape[1]
    at_once = max(1, min(RESAMPLES, _CELLS // n))
    parts = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        parts.append(counts.astype(np.float64) @ scores.T / n)
    return np.concatenate(parts)


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(value=float(value), low=float(low), high=float(high))
