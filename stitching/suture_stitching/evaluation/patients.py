"""Whose the samples are that a metric was measured on: what intervals and a site's least numbers are about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import SplitName, SplitScores
from suture_stitching.data import Dataset


def whose(dataset: Dataset, split: SplitName, scores: int) -> NDArray[np.int64]:
    """Return whose each of so many scores of a split is `(scores,)`."""
    patients = dataset.patient_of(split)
    # Where samples are compared whole, each is there once.
    return patients[:: len(patients) // max(1, scores)]


def counted(scores: SplitScores, dataset: Dataset, split: SplitName, labels: tuple[str, ...]) -> SplitScores:
    """Return the same with the numbers of patients, of the split and of each class; `labels` are the ensemble's."""
    if not dataset.grouped:
        patients = {index: class_scores.n for index, class_scores in scores.classes.items()}
    elif scores.classes:
        having = dataset.patients_with(split)
        patients = {index: having[labels[int(index)]] for index in scores.classes}
    else:
        patients = {}
    classes = {
        index: class_scores.model_copy(update={"patients": patients[index]})
        for index, class_scores in scores.classes.items()
    }
    return scores.model_copy(update={"patients": dataset.patients(split), "classes": classes})
