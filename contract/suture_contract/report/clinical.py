"""What clinicians read of a party: metrics beside the task's own, how probabilities came true, and subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from suture_contract.documents import CalibrationBin, Interval, MeasuredMetric, PartyReport, SubgroupReport
from suture_contract.report.curves import Curve, curves
from suture_contract.report.words import Scale, bracketed
from suture_contract.rounding import fixed

NAMES: Mapping[MeasuredMetric, str] = {
    "auroc": "area under the ROC curve",
    "auprc": "area under the precision-recall curve",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1 score",
    "brier": "Brier score",
    "calibration_slope": "calibration slope",
    "hd95": "HD95, pixels",
    "hd95_mm": "HD95, mm",
    "surface_dice": "surface Dice",
    "concordance": "concordance",
    "calibration_curve": "calibration curve",
}
_METRICS = (
    "Test data, with 95 % intervals over patients. With two labels they are about the second one, decided at a "
    "probability of one half; with more, each label against the rest, and the mean."
)
_CURVE = (
    "The chosen model: how often the event came about where it was given a probability. Bins of few patients are "
    "joined."
)
_CONFUSION = (
    "How many of each label's test samples the model calls by that label, and how many by another one: with two "
    "labels, the confusion matrix. Labels that are left out by label are left out here."
)
_WITHHELD = (
    "A label has too few patients in the test data, the party's numbers carry noise, or the test data do not define it."
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
    if (confusion := _confusion(party_report, names)) is not None:
        tables.append(confusion)
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
    if withheld := [NAMES[metric] for metric in party_report.withheld]:
        tables.append(PartTable("Asked for, and not told", _WITHHELD, ("Metric",), tuple((name,) for name in withheld)))
    return tuple(tables)


def _confusion(party_report: PartyReport, names: Mapping[str, str]) -> PartTable | None:
    """Return how many samples of each label are called so, of the chosen and the own model.

    It says no more than the shares by label do; nothing where these have noise in them, or are of something else.
    """
    labels = party_report.classes
    if party_report.metric != "accuracy" or party_report.privacy is not None or not labels:
        return None
    shown = [row for row in ("chosen", "own") if row in names and all(row in label.rows for label in labels)]
    heads = tuple(f"{names[row]}: {word}" for row in shown for word in ("called so", "called otherwise"))
    lines = []
    for label in labels:
        right = [round(label.rows[row] * label.n) for row in shown]
        counts = [f"{count:,}" for so in right for count in (so, label.n - so)]
        lines.append((label.label, f"{label.n:,}", *counts))
    return PartTable("Confusion by label", _CONFUSION, ("Label", "n", *heads), tuple(lines)) if shown else None


def clinical_words(party_report: PartyReport, party: str) -> list[str]:
    """Return in words what a party measured of the chosen model beside the task's metric, and what it does not tell."""
    measured = [f"{NAMES[metric]} {_text(values.get('chosen'))}" for metric, values in _ordered(party_report)]
    sentences = [f"{party}, chosen: {', '.join(measured)}"] if measured else []
    if party_report.curves:
        sentences.append(f"{party}: the calibration curve is on the report's page (--html)")
    if withheld := [NAMES[metric] for metric in party_report.withheld]:
        sentences.append(f"{party} does not tell {', '.join(withheld)}: {_WITHHELD[0].lower()}{_WITHHELD[1:]}")
    return sentences


def _ordered(party_report: PartyReport) -> list[tuple[MeasuredMetric, Mapping[str, Interval]]]:
    return [(metric, party_report.metrics[metric]) for metric in NAMES if metric in party_report.metrics]


def _bins(curve: tuple[CalibrationBin, ...]) -> list[tuple[str, ...]]:
    lows = [0.0, *(part.upto for part in curve)]
    return [
        (f"{low:g} to {part.upto:g}", f"{part.n:,}", fixed(part.predicted, 3), f"{part.events:,}", _share(part))
        for low, part in zip(lows, curve, strict=False)
    ]


def _share(part: CalibrationBin) -> str:
    return fixed(part.events / part.n, 3)


def _lines(
    part: SubgroupReport, metrics: tuple[MeasuredMetric, ...], names: Mapping[str, str], scale: Scale
) -> list[tuple[str, ...]]:
    own = tuple(scale.text(part.rows[row].value) if row in part.rows else "" for row in names)
    lines = [(f"{part.column}: {part.value}", f"{part.n:,}", scale.name, *own)]
    for metric in metrics:
        values = part.metrics.get(metric, {})
        lines.append(("", "", NAMES[metric], *(_text(values.get(row)) for row in names)))
    return lines


def _text(interval: Interval | None) -> str:
    return "" if interval is None else bracketed(interval)


__all__ = ["NAMES", "PartTable", "clinical_tables", "clinical_words"]
