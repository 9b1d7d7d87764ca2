"""Whether metrics beside the task's own, calibration curves and subgroups are what the job and the site's rule name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from suture_contract.documents import ClinicalMetric, SplitScores, Subgroup
from suture_contract.errors import SutureError
from suture_contract.measures import BOUNDS, CURVE_BINS, told_as


def expect(condition: bool, where: str, problem: str) -> None:
    """Raise `SutureError` `outbox.refused` unless `condition` holds."""
    if not condition:
        raise SutureError("outbox.refused", problem, where=where, hint="report this: a child wrote what it may not")


def check_further(
    scores: SplitScores,
    asked: Sequence[ClinicalMetric],
    named: Mapping[str, tuple[str, ...]],
    where: str,
) -> None:
    """Refuse what was not `asked` for, subgroups that the site has not `named`, and numbers that cannot be.

    Raises `SutureError` `outbox.refused`.
    """
    names = {told_as(metric, spacing_known=known) for metric in asked for known in (False, True)} - {
        "calibration_curve"
    }
    parts: list[SplitScores | Subgroup] = [scores, *scores.subgroups]
    for part in parts:
        expect(part.metrics.keys() <= names, f"{where}.metrics", "were not asked for")
        for metric, values in part.metrics.items():
            low, high = BOUNDS.get(metric, (0.0, 1.0))
            numbers = [
                number for interval in values.values() for number in (interval.value, interval.low, interval.high)
            ]
            expect(all(low <= number <= high for number in numbers), f"{where}.metrics.{metric}", "cannot be so large")
    expect(not scores.curves or "calibration_curve" in asked, f"{where}.curves", "were not asked for")
    for curve in scores.curves.values():
        rising = all(first.upto < second.upto for first, second in pairwise(curve))
        whole = sum(part.n for part in curve) == scores.n
        even = all(round(part.upto * CURVE_BINS, 6).is_integer() for part in curve)
        expect(rising and whole and even, f"{where}.curves", "are not bins of all samples")
    seen: set[tuple[str, str]] = set()
    for subgroup in scores.subgroups:
        name = subgroup.column, subgroup.value
        expect(subgroup.value in named.get(subgroup.column, ()), f"{where}.subgroups", "are not those the site names")
        expect(name not in seen, f"{where}.subgroups", "name one twice")
        seen.add(name)
    for column in named:
        together = sum(subgroup.n for subgroup in scores.subgroups if subgroup.column == column)
        expect(together <= scores.n, f"{where}.subgroups", "have more samples than the split")


__all__ = ["check_further", "expect"]
