"""Metrics that clinicians read, of every candidate, with intervals over patients; torchmetrics does the sums.

They are no means over samples, so their intervals come from a jackknife: patients are dealt into groups, the metric is
computed without each group in turn, and how much it moves is how uncertain it is (Efron and Stein, "The jackknife
estimate of variance", 1981). With two labels they are about the second one; with more, each label against the rest,
and their mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suture_contract.measures import BOUNDS, CURVE_BINS, CalibrationBin, Interval, MeasuredMetric
from suture_stitching.evaluation.bootstrap import RESAMPLED_FROM, student

#: So many groups of patients at most: of more, the quantile of Student's t is hardly smaller.
_GROUPS = RESAMPLED_FROM - 1
_STEPS, _ENOUGH = 50, 1e-8
#: Keeps the logarithm of odds finite.
_SMALLEST = 1e-7


@dataclass(frozen=True)
class Answers:
    """What one candidate says of N samples, and what is right.

    Per label that counts: its probability `(N, L)`, whether it is predicted, and whether it is right. `squared`
    `(N,)` is the squared error of all probabilities. `event` `(N,)` is what `probability` `(N,)` promises: the second
    of two labels, or of more that the most probable one is right; None where samples may have several labels.
    """

    probabilities: Tensor
    predicted: Tensor
    right: Tensor
    squared: Tensor
    probability: Tensor | None = None
    event: Tensor | None = None

    def of(self, which: Tensor) -> Answers:
        """Return those of some samples."""
        pair = (self.probability, self.event)
        some = (None if part is None else part[which] for part in pair)
        return Answers(self.probabilities[which], self.predicted[which], self.right[which], self.squared[which], *some)


def exclusive_answers(probabilities: Tensor, truth: Tensor) -> Answers:
    """Return answers where a sample has one label: `(N, K)` probabilities, and the labels' indices `(N,)`.

    With more than two labels, those that no sample has do not count.
    """
    k = probabilities.shape[1]
    wanted = torch.nn.functional.one_hot(truth, k)
    squared = (probabilities.double() - wanted).square().sum(1)
    confidence, predicted = probabilities.max(1)
    if k == 2:
        counting, probability, event = [1], probabilities[:, 1], truth
    else:
        counting, probability, event = (
            wanted.any(0).nonzero().flatten().tolist(),
            confidence,
            (predicted == truth).long(),
        )
    chosen = torch.nn.functional.one_hot(predicted, k)[:, counting]
    return Answers(probabilities[:, counting], chosen, wanted[:, counting], squared, probability, event)


def several_answers(probabilities: Tensor, truth: Tensor, threshold: float) -> Answers:
    """Return answers where a sample may have several labels: `(N, K)` probabilities, and 0 or 1 each."""
    truth = truth.long()
    counting = (truth.any(0) & ~truth.all(0)).nonzero().flatten().tolist()
    squared = (probabilities.double() - truth).square().mean(1)
    predicted = (probabilities >= threshold).long()
    return Answers(probabilities[:, counting], predicted[:, counting], truth[:, counting], squared)


def label_metrics(
    answers: Sequence[Answers], metrics: Sequence[MeasuredMetric], patients: NDArray[np.int64]
) -> dict[MeasuredMetric, list[Interval | None]]:
    """Return each of `metrics` for every candidate's answers; None where these samples do not define it.

    `patients` `(N,)` says whose each sample is; there is nothing of a single one.
    """
    known = {metric: _OF_LABELS[metric] for metric in metrics if metric in _OF_LABELS}

    def measure(candidate: int, which: Tensor) -> list[float]:
        own = answers[candidate].of(which)
        return [metric(own) for metric in known.values()]

    return _jackknifed(list(known), len(answers), measure, patients)


def value_metrics(
    values: Tensor, metrics: Sequence[MeasuredMetric], truth: Tensor, patients: NDArray[np.int64]
) -> dict[MeasuredMetric, list[Interval | None]]:
    """Return the concordance of every candidate's `values` `(C, N, K)` with `truth` `(N, K)`, mean over values."""

    def measure(candidate: int, which: Tensor) -> list[float]:
        from torchmetrics.functional.regression import concordance_corrcoef

        return [float(concordance_corrcoef(values[candidate][which].squeeze(1), truth[which].squeeze(1)).mean())]

    return _jackknifed([metric for metric in metrics if metric == "concordance"], len(values), measure, patients)


def mean_metrics(
    scores: Mapping[MeasuredMetric, Tensor], patients: NDArray[np.int64]
) -> dict[MeasuredMetric, list[Interval | None]]:
    """Return the means of what was measured per sample, `(C, N)` each."""

    def measure(candidate: int, which: Tensor) -> list[float]:
        return [float(own[candidate][which].mean()) for own in scores.values()]

    candidates = len(next(iter(scores.values()))) if scores else 0
    return _jackknifed(list(scores), candidates, measure, patients)


def calibration_curve(answers: Answers, patients: NDArray[np.int64], *, grouped: bool) -> tuple[CalibrationBin, ...]:
    """Return how often the event came about where it was promised with a probability, in bins of equal width."""
    assert answers.probability is not None
    assert answers.event is not None
    probability, event = answers.probability.double().numpy(), answers.event.numpy()
    place = np.minimum((probability * CURVE_BINS).astype(int), CURVE_BINS - 1)
    _, whose = np.unique(patients, return_inverse=True)
    in_bins = np.zeros((whose.max() + 1, CURVE_BINS), dtype=np.int64)
    np.add.at(in_bins, (whose, place), 1)
    counted = np.bincount(in_bins.argmax(1), minlength=CURVE_BINS)
    return tuple(
        CalibrationBin(
            upto=(number + 1) / CURVE_BINS,
            n=int(here.sum()),
            patients=int(counted[number]) if grouped else None,
            predicted=float(probability[here].mean()),
            events=int(event[here].sum()),
        )
        for number in range(CURVE_BINS)
        if (here := place == number).any()
    )


def _jackknifed(
    metrics: Sequence[MeasuredMetric],
    candidates: int,
    measure: Callable[[int, Tensor], list[float]],
    patients: NDArray[np.int64],
) -> dict[MeasuredMetric, list[Interval | None]]:
    """Return the intervals of what `measure` says of a candidate's samples; of one patient there are none."""
    groups = _groups(patients)
    if len(groups) < 2:
        return {}
    subsets = [torch.ones(len(patients), dtype=torch.bool), *(torch.from_numpy(~group) for group in groups)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is not defined is NaN, which is looked for here
        values = np.array([[measure(number, which) for which in subsets] for number in range(candidates)])
    return {
        metric: [
            _interval(own, *BOUNDS.get(metric, (0.0, 1.0))) if np.isfinite(own).all() else None
            for own in values[:, :, place]
        ]
        for place, metric in enumerate(metrics)
    }


def _groups(patients: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Return which samples `(N,)` are of each group of patients; who is in which does not depend on their order."""
    names, whose = np.unique(patients, return_inverse=True)
    count = min(_GROUPS, len(names))
    dealt = np.random.default_rng(0).permutation(len(names)) % count
    return [(dealt == group)[whose] for group in range(count)]


def _interval(values: NDArray[np.float64], low: float, high: float) -> Interval:
    value, without = values[0], values[1:]
    groups = len(without)
    deviation = math.sqrt((groups - 1) / groups * float(np.square(without - without.mean()).sum()))
    width = student(groups) * deviation
    return Interval(value=float(value), low=float(max(low, value - width)), high=float(min(high, value + width)))


def _mean_of(name: str, scores: Tensor, right: Tensor) -> float:
    """Return the mean over labels of a metric of torchmetrics, of `(N, L)`; NaN where one label does not define it."""
    import torchmetrics.functional.classification as sums

    labels = right.shape[1]
    if not labels or not bool((right.any(0) & ~right.all(0)).all()):
        return math.nan
    each = getattr(sums, f"multilabel_{name}")
    return float(each(scores, right, num_labels=labels, average=None, validate_args=False).double().mean())


def _auroc(answers: Answers) -> float:
    return _mean_of("auroc", answers.probabilities, answers.right)


def _auprc(answers: Answers) -> float:
    return _mean_of("average_precision", answers.probabilities, answers.right)


def _sensitivity(answers: Answers) -> float:
    return _mean_of("recall", answers.predicted, answers.right)


def _specificity(answers: Answers) -> float:
    return _mean_of("specificity", answers.predicted, answers.right)


def _f1(answers: Answers) -> float:
    return _mean_of("f1_score", answers.predicted, answers.right)


def _balanced_accuracy(answers: Answers) -> float:
    # Of two labels, and of several that a sample may have, the mean over having a label and not having it.
    exclusive = answers.event is not None and answers.right.shape[1] > 1
    return _sensitivity(answers) if exclusive else (_sensitivity(answers) + _specificity(answers)) / 2


def _brier(answers: Answers) -> float:
    return float(answers.squared.mean())


def _calibration_slope(answers: Answers) -> float:
    """Return the slope of the event on the promised log-odds (Cox, "Two further applications of a model for binary
    regression", 1958): 1 is best, less is too sure. NaN where the event can be told for certain.
    """
    if answers.probability is None or answers.event is None:
        return math.nan
    p, y = answers.probability.double().clamp(_SMALLEST, 1 - _SMALLEST), answers.event.double()
    x = torch.stack([torch.ones_like(p), p.logit()], 1)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(_STEPS):
        fitted = (x @ weights).sigmoid()
        curvature = (x * (fitted * (1 - fitted))[:, None]).T @ x
        if float(torch.linalg.det(curvature)) < _ENOUGH:
            return math.nan
        step = torch.linalg.solve(curvature, x.T @ (y - fitted))
        weights = weights + step.clamp(-1, 1)
        if float(step.abs().max()) < _ENOUGH:
            return float(weights[1])
    return math.nan


_OF_LABELS: Mapping[MeasuredMetric, Callable[[Answers], float]] = {
    "auroc": _auroc,
    "auprc": _auprc,
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _f1,
    "brier": _brier,
    "calibration_slope": _calibration_slope,
}

__all__ = [
    "Answers",
    "calibration_curve",
    "exclusive_answers",
    "label_metrics",
    "mean_metrics",
    "several_answers",
    "value_metrics",
]
