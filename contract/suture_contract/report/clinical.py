"""What clinicians read of a party: metrics beside the task's own, how probabilities came true, and subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from suture_contract.documents import CalibrationBin, ClinicalMetric, Interval, PartyReport, SubgroupReport
from suture_contract.report.curves import Curve, curves
from suture_contract.report.words import Scale

NAMES: Mapping[ClinicalMetric, str] = {
    "auroc": "area under the ROC curve",
    "auprc": "area under the precision-recall curve",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1 score",
    "brier": "Brier score",
    "calibration_slope": "calibration slope",
    "hd95": "HD95, pixels",
    "surface_dice": "surface Dice",
    "concordance": "concordance",
}
_METRICS = (
    "Test data, with 95 % intervals over patients. With two labels they are about the second one, decided at a "
    "probability of one half; with more, each label against the rest, and the mean."
)
_CURVE = (
    "The chosen model: how often the event came about where it was given a probability. Bins of few patients are "
    "joined."
)
_SUBGROUPS = (
    "{metric}, and what else was asked for, in parts of the test data that this party names. Small ones are left out, "
    "and others with them, so that nothing can be worked out about few people."
)


@dataclass(frozen=True)
class PartTable:
    """A table that is opened by its `title`, below `curves` where there are some."""

    title: str
    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    curves: tuple[Curve, ...] = ()


def clinical_tables(party_report: PartyReport, names: Mapping[str, str], scale: Scale) -> tuple[PartTable, ...]:
    """Return the tables of a party; `names` are what its rows are called, in their order."""
    tables = []
    if party_report.metrics:
        measured = _ordered(party_report)
        rows = tuple((NAMES[metric], *(_text(values.get(row)) for row in names)) for metric, values in measured)
        tables.append(PartTable("Metrics for clinicians", _METRICS, ("Metric", *names.values()), rows))
    if curve := party_report.curves.get("chosen"):
        bins = ("Probability", "n", "Mean probability", "Events", "Share of events")
        drawn = curves(party_report, names)
        tables.append(PartTable("Calibration curve", _CURVE, bins, tuple(_bins(curve)), drawn))
    if party_report.subgroups:
        metrics = tuple(dict.fromkeys(metric for part in party_report.subgroups for metric in part.metrics))
        caption = _SUBGROUPS.format(metric=scale.name.capitalize())
        heads = ("Subgroup", "n", "Metric", *names.values())
        lines = tuple(line for part in party_report.subgroups for line in _lines(part, metrics, names, scale))
        tables.append(PartTable("Subgroups", caption, heads, lines))
    return tuple(tables)


def _ordered(party_report: PartyReport) -> list[tuple[ClinicalMetric, Mapping[str, Interval]]]:
    return [(metric, party_report.metrics[metric]) for metric in NAMES if metric in party_report.metrics]


def _bins(curve: tuple[CalibrationBin, ...]) -> list[tuple[str, ...]]:
    lows = [0.0, *(part.upto for part in curve)]
    return [
        (f"{low:g} to {part.upto:g}", f"{part.n:,}", f"{part.predicted:.3f}", f"{part.events:,}", _share(part))
        for low, part in zip(lows, curve, strict=False)
    ]


def _share(part: CalibrationBin) -> str:
    return f"{part.events / part.n:.3f}"


def _lines(
    part: SubgroupReport, metrics: tuple[ClinicalMetric, ...], names: Mapping[str, str], scale: Scale
) -> list[tuple[str, ...]]:
    own = tuple(scale.text(part.rows[row].value) if row in part.rows else "" for row in names)
    lines = [(f"{part.column}: {part.value}", f"{part.n:,}", scale.name, *own)]
    for metric in metrics:
        values = part.metrics.get(metric, {})
        lines.append(("", "", NAMES[metric], *(_text(values.get(row)) for row in names)))
    return lines


def _text(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


__all__ = ["NAMES", "PartTable", "clinical_tables"]
