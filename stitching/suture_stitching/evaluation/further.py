"""Metrics of the test split beside the task's own, and all metrics of the subgroups that a dataset names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.documents import CalibrationBin, Interval, MeasuredMetric, Subgroup
from suture_contract.measures import OF_LABELS
from suture_stitching.data import Dataset
from suture_stitching.evaluation.bootstrap import intervals
from suture_stitching.evaluation.clinical import (
    Answers,
    calibration_curve,
    exclusive_answers,
    label_metrics,
    mean_metrics,
    several_answers,
    value_metrics,
)
from suture_stitching.evaluation.patients import whose
from suture_stitching.evaluation.scores import largest_score
from suture_stitching.objectives import Objective
from suture_stitching.objectives.classification import Classification
from suture_stitching.objectives.multilabel import THRESHOLD, Multilabel
from suture_stitching.objectives.segmentation import Segmentation


@dataclass(frozen=True)
class Further:
    """Each metric and the calibration curve, by candidate."""

    metrics: dict[MeasuredMetric, dict[str, Interval]] = field(default_factory=dict)
    curves: dict[str, tuple[CalibrationBin, ...]] = field(default_factory=dict)


def further_metrics(
    objective: Objective,
    dataset: Dataset,
    ids: Sequence[str],
    metrics: Sequence[MeasuredMetric],
    answers: Tensor,
    which: NDArray[np.bool_] | None = None,
) -> Further:
    """Return `metrics` of the test split, or of the samples `which` `(N,)` of it.

    `answers` `(C, N, F)` are what the objective keeps of every candidate, whose `ids` are in the same order.
    """
    if not metrics:
        return Further()
    which = np.ones(answers.shape[1], dtype=np.bool_) if which is None else which
    patients, some = whose(dataset, "test", answers.shape[1])[which], answers[:, torch.from_numpy(which)]
    if isinstance(objective, Segmentation):
        measured = mean_metrics({metric: some[:, :, column] for column, metric in enumerate(metrics)}, patients)
        return Further(_by_id(measured, ids))
    truth = torch.from_numpy(np.array(dataset.targets("test")[which]))
    if not isinstance(objective, Classification | Multilabel):
        values = truth.double().reshape(len(truth), -1)
        return Further(_by_id(value_metrics(some.double(), metrics, values, patients), ids))
    every = [_answers(objective, own, truth) for own in some]
    curves = {}
    if "calibration_curve" in metrics:
        curves = {
            id: calibration_curve(own, patients, grouped=dataset.grouped) for id, own in zip(ids, every, strict=True)
        }
    return Further(_by_id(label_metrics(every, metrics, patients), ids), curves)


def subgroups_of(
    objective: Objective,
    dataset: Dataset,
    ids: Sequence[str],
    metrics: Sequence[MeasuredMetric],
    scores: Tensor,
    answers: Tensor,
    *,
    seed: int,
    fewest: int,
) -> tuple[Subgroup, ...]:
    """Return the scores `(C, N)` and further metrics of the dataset's subgroups, of those that the test split has.

    Where fewer than `fewest` patients have a label there, no metric about labels is measured.
    """
    subgroups = []
    for named in dataset.subgroups:
        which = dataset.has("test", named)
        if not which.any():
            continue
        patients = whose(dataset, "test", len(which))[which]
        some = scores[:, torch.from_numpy(which)].numpy()
        measured = intervals(some, seed=seed, patients=patients, most=largest_score(objective))
        few = _rarest(objective, dataset, which, patients) < fewest
        shown = [metric for metric in metrics if metric != "calibration_curve" and not (few and metric in OF_LABELS)]
        subgroups.append(
            Subgroup(
                column=named.column,
                value=named.value,
                n=int(which.sum()),
                patients=len(np.unique(patients)),
                scores={id: value for id, (value, _) in zip(ids, measured, strict=True)},
                metrics=further_metrics(objective, dataset, ids, shown, answers, which).metrics,
            )
        )
    return tuple(subgroups)


def _answers(objective: Classification | Multilabel, output: Tensor, truth: Tensor) -> Answers:
    if isinstance(objective, Multilabel):
        return several_answers(output, truth, THRESHOLD)
    return exclusive_answers(output, objective.positions(truth))


def _by_id(
    measured: dict[MeasuredMetric, list[Interval | None]], ids: Sequence[str]
) -> dict[MeasuredMetric, dict[str, Interval]]:
    """Return by candidate what is defined."""
    by_id = {
        metric: {id: value for id, value in zip(ids, values, strict=True) if value is not None}
        for metric, values in measured.items()
    }
    return {metric: values for metric, values in by_id.items() if values}


def _rarest(objective: Objective, dataset: Dataset, which: NDArray[np.bool_], patients: NDArray[np.int64]) -> float:
    """Return how many patients have the label that the fewest of these samples' patients have; infinity without labels.

    Where a sample may have several labels, not to have one that nearly all have is as telling as a rare one.
    """
    truth = dataset.targets("test")[which]
    if isinstance(objective, Multilabel):
        parts = [truth[:, label] == side for label in range(truth.shape[1]) for side in (0, 1)]
    elif isinstance(objective, Classification):
        parts = [truth == label for label in np.unique(truth)]
    else:
        return math.inf
    return min(len(np.unique(patients[part])) for part in parts if part.any())


__all__ = ["Further", "further_metrics", "subgroups_of"]
