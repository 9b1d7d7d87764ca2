"""What evaluations are made of: values with intervals, and the metrics that clinicians read (torch-free)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from suture_contract.errors import SutureError
from suture_contract.model.metadata import Task

Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]

#: What a job may ask for beside the metric of its task.
ClinicalMetric = Literal[
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "f1",
    "brier",
    "calibration_slope",
    "calibration_curve",
    "hd95",
    "surface_dice",
    "concordance",
]
#: What they are called where they are told: a distance says its unit.
MeasuredMetric = Literal[ClinicalMetric, "hd95_mm"]
#: Which of them say something about a task.
CLINICAL: Mapping[Task, tuple[ClinicalMetric, ...]] = {
    "classification": (
        *("auroc", "auprc", "sensitivity", "specificity", "balanced_accuracy", "f1"),
        *("brier", "calibration_slope", "calibration_curve"),
    ),
    "multilabel": ("auroc", "auprc", "sensitivity", "specificity", "balanced_accuracy", "brier"),
    "segmentation": ("hd95", "surface_dice"),
    "regression": ("concordance",),
}
#: The smallest and the largest value of a metric.
BOUNDS: Mapping[MeasuredMetric, tuple[float, float]] = {
    "brier": (0.0, 2.0),
    "calibration_slope": (-math.inf, math.inf),
    "hd95": (0.0, math.inf),
    "hd95_mm": (0.0, math.inf),
    "concordance": (-1.0, 1.0),
}
#: They are about patients with one label against the others: where a label is hidden they would tell of it.
OF_LABELS: frozenset[MeasuredMetric] = frozenset(
    {
        *("auroc", "auprc", "sensitivity", "specificity", "balanced_accuracy", "f1"),
        *("calibration_slope", "calibration_curve"),
    }
)
#: Bins of probability that a calibration curve has before those of few patients are joined.
CURVE_BINS = 10


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Interval(_Closed):
    """A value with its 95 % interval, from how much it differs between patients."""

    value: Finite
    low: Finite
    high: Finite


class CalibrationBin(_Closed):
    """Samples whose probability lies above the bin before, and at most at `upto`.

    `predicted` is their mean probability, `events` how many of the `n` samples have the label.
    """

    upto: Fraction
    n: Annotated[int, Field(ge=1)]
    #: Each patient counts in the bin that holds most of its samples, so that bins can be added up.
    patients: Count | None = None
    predicted: Fraction
    events: Count

    @model_validator(mode="after")
    def _events_are_samples(self) -> CalibrationBin:
        if max(self.events, self.patients or 0) > self.n:
            raise ValueError("n: there are fewer samples than events or patients")
        return self


def check_fits(metrics: Sequence[ClinicalMetric], task: Task) -> None:
    """Raise `SutureError` `job.options` for the first of `metrics` that says nothing about `task`."""
    for metric in metrics:
        if metric not in CLINICAL[task]:
            raise SutureError(
                "job.options",
                f"{metric} is no metric of a {task}",
                where="options.metrics",
                hint=f"choose among {', '.join(CLINICAL[task])}",
            )


def told_as(metric: ClinicalMetric, *, spacing_known: bool) -> MeasuredMetric:
    """Return what a metric is called where it is told: with the unit, where positions have a known distance."""
    return "hd95_mm" if metric == "hd95" and spacing_known else metric


__all__ = [
    "BOUNDS",
    "CLINICAL",
    "CURVE_BINS",
    "OF_LABELS",
    "CalibrationBin",
    "ClinicalMetric",
    "Count",
    "Finite",
    "Fraction",
    "Interval",
    "MeasuredMetric",
    "check_fits",
    "told_as",
]
