"""Metrics with noise: every candidate's mean over patients, all from one question to the job's account.

What cannot be told from noisy means alone is left out: classes and calibration. Intervals are those of shares between
0 and 1 whose variance is the largest that their mean allows, and of independent ones for differences: wider than the
usual ones, never narrower for want of a look at the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from suture_contract.documents import PLAIN, Candidate, Interval, Score, SplitName, SplitScores
from suture_contract.errors import SutureError
from suture_contract.privacy import Privacy
from suture_stitching.data import Dataset
from suture_stitching.evaluation.patients import whose
from suture_stitching.privacy.account import Account
from suture_stitching.running.checkpoint import Checkpoint

_WIDTH = 1.96


def private_scores(
    scores: Mapping[SplitName, Tensor],
    candidates: Sequence[Candidate],
    dataset: Dataset,
    own: int | None,
    privacy: Privacy,
    share: float,
    checkpoint: Checkpoint,
) -> dict[SplitName, SplitScores]:
    """Return for `scores` by split `(candidates, N)`, from 0 to 1 each, what may be told of them.

    A patient counts as one, and moves the means of one split only.
    """
    splits = list(scores)
    people = {split: np.unique(whose(dataset, split, scores[split].shape[1]), return_counts=True) for split in splits}
    everyone = np.concatenate([names for names, _ in people.values()])
    if len(np.unique(everyone)) < len(everyone):
        raise SutureError(
            "dataset.group_divided",
            "a patient is in two splits",
            where=dataset.where,
            hint="noise is measured for patients whose samples are all in one split",
        )
    # Around one half a patient moves each mean by half as much.
    sums = []
    for split in splits:
        names, counts = people[split]
        patients = whose(dataset, split, scores[split].shape[1])
        weights = torch.from_numpy(1.0 / counts[np.searchsorted(names, patients)])
        exact = torch.nan_to_num(scores[split].double().cpu(), nan=0.0).clamp(0, 1)
        sums.append(((exact - 0.5) * weights).sum(1))
    sensitivity = math.sqrt(len(candidates)) / 2
    account = Account(privacy, checkpoint, share)
    noisy = account.ask("scores", torch.stack(sums), share, sensitivity)
    noise = account.deviation(share, sensitivity)
    summaries = {}
    for split, row in zip(splits, noisy, strict=True):
        n = len(people[split][0])
        values = (row / n + 0.5).clamp(0, 1).tolist()
        summaries[split] = _summary(values, noise / n, n, scores[split].shape[1], candidates, own)
    return summaries


def _summary(
    values: Sequence[float], noise: float, n: int, samples: int, candidates: Sequence[Candidate], own: int | None
) -> SplitScores:
    spread = [value * (1 - value) / n + noise**2 for value in values]

    def difference(first: int, second: int) -> Interval:
        width = _WIDTH * math.sqrt(spread[first] + spread[second]) if first != second else 0.0
        value = values[first] - values[second]
        return Interval(value=value, low=value - width, high=value + width)

    plain = [index for index, candidate in enumerate(candidates) if candidate.kind in PLAIN]
    scores = {}
    for index, candidate in enumerate(candidates):
        width = _WIDTH * math.sqrt(spread[index])
        scores[candidate.id] = Score(
            value=values[index],
            low=max(0.0, values[index] - width),
            high=min(1.0, values[index] + width),
            difference=None if own is None else difference(index, own),
            against={candidates[other].id: difference(index, other) for other in plain if other != index},
        )
    return SplitScores(n=samples, patients=n, scores=scores)
