"""What a study found: means and intervals over its seeds, hypervolumes, and which targets are met (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from suture_contract.documents import Interval
from suture_local.study.results import SeedResult, StitchedScores, hypervolume
from suture_local.study.scores import Bootstrap, Resampled, mean_of

Status = Literal["met", "missed", "missed, within the interval"]
PLAIN, UNION = "plain ensemble", "union training"
#: Part of union training's hypervolume that the stitched front should reach.
HYPERVOLUME = 0.9
#: A gap between plain ensemble and union training smaller than this is none.
NO_GAP = 0.005


@dataclass(frozen=True)
class MethodRow:
    """One method: its metric at each party, their mean, and its hypervolume; means over the seeds."""

    method: str
    parties: dict[str, Interval]
    mean: Interval
    hypervolume: float
    #: Other metrics by name and party, where they are defined.
    besides: dict[str, dict[str, float]]
    seeds: int


@dataclass(frozen=True)
class StudyTarget:
    """What was to be reached, by how much it was exceeded or missed, and whether it was reached."""

    text: str
    value: float
    interval: Interval | None
    status: Status


@dataclass(frozen=True)
class RequesterSummary:
    """What stitching did for one requester: share of the gap to union training that it closes, and the targets."""

    requester: str
    #: Chosen model less own model on the requester's data, paired.
    over_own: Interval
    gap_here: float | None
    gap_there: float | None
    gap_all: float | None
    front: float
    front_without: float
    union: float
    targets: tuple[StudyTarget, ...]
    fits: tuple[StitchedScores, ...]


@dataclass(frozen=True)
class Summary:
    """All of it."""

    rows: tuple[MethodRow, ...]
    asked: tuple[RequesterSummary, ...]

    @property
    def missed(self) -> int:
        """How many targets are missed."""
        return sum(target.status != "met" for asked in self.asked for target in asked.targets)


def summarise(parties: Sequence[str], results: Sequence[SeedResult]) -> Summary:
    """Return the summary of all seeds' results."""
    return _Summaries(parties, results).whole()


class _Summaries:
    def __init__(self, parties: Sequence[str], results: Sequence[SeedResult]) -> None:
        self._parties, self._results = parties, results
        self._bootstraps: dict[tuple[str, tuple[int, ...]], Bootstrap] = {}

    def whole(self) -> Summary:
        methods = dict.fromkeys(method for result in self._results for method in result.methods)
        stitched = [party for party in self._parties if f"stitched: {party}" in methods]
        return Summary(tuple(self._row(method) for method in methods), tuple(self._asked(party) for party in stitched))

    def _with(self, method: str) -> list[SeedResult]:
        return [result for result in self._results if method in result.methods]

    def _resampled(self, method: str, party: str, results: Sequence[SeedResult]) -> Resampled:
        """Return the method's mean at a party; the same seeds are always resampled alike, whatever the method."""
        scores = [result.methods[method][party].scores for result in results]
        key = (party, tuple(result.seed for result in results))
        if key not in self._bootstraps:
            number = list(self._parties).index(party)
            patients = [result.patients.get(party) for result in results]
            self._bootstraps[key] = Bootstrap([len(own) for own in scores], patients, seed=number)
        return self._bootstraps[key](scores)

    def _row(self, method: str) -> MethodRow:
        results = self._with(method)
        resampled = {party: self._resampled(method, party, results) for party in self._parties}
        besides: dict[str, dict[str, float]] = {}
        for name in results[0].methods[method][self._parties[0]].besides:
            besides[name] = {}
            for party in self._parties:
                values = [result.methods[method][party].besides[name] for result in results]
                defined = [value for value in values if value is not None]
                if defined:
                    besides[name][party] = float(np.mean(defined))
        return MethodRow(
            method,
            {party: own.interval for party, own in resampled.items()},
            mean_of(list(resampled.values())).interval,
            self._hypervolume(method, results),
            besides,
            len(results),
        )

    def _hypervolume(self, method: str, results: Sequence[SeedResult]) -> float:
        points = [[result.methods[method][party].scores.mean() for party in self._parties] for result in results]
        return float(np.mean([hypervolume(point) for point in points]))

    def _asked(self, requester: str) -> RequesterSummary:
        method = f"stitched: {requester}"
        results = self._with(method)
        others = [party for party in self._parties if party != requester]
        fits = tuple(result.stitched[requester] for result in results)

        def at(name: str, parties: Sequence[str]) -> Resampled:
            return mean_of([self._resampled(name, party, results) for party in parties])

        def gap(parties: Sequence[str]) -> float | None:
            plain, union = at(PLAIN, parties).value, at(UNION, parties).value
            return (at(method, parties).value - plain) / (union - plain) if union - plain > NO_GAP else None

        own = at(method, [requester]) - at(f"alone: {requester}", [requester])
        here = at(method, [requester]) - at(PLAIN, [requester])
        there = at(method, others) - at(PLAIN, others)
        union = self._hypervolume(UNION, results)
        front = float(np.mean([fit.hypervolume for fit in fits]))
        return RequesterSummary(
            requester,
            own.interval,
            gap([requester]),
            gap(others),
            gap(self._parties),
            front,
            float(np.mean([fit.plain_hypervolume for fit in fits])),
            union,
            (*_targets(own, here, there), _target_of_front(front, union)),
            fits,
        )


def _targets(own: Resampled, here: Resampled, there: Resampled) -> tuple[StudyTarget, ...]:
    """Return the targets of the chosen model, by its differences.

    They are to the requester's `own` model, and to the plain ensemble with the requester (`here`) and elsewhere.
    """
    return (
        StudyTarget(
            "not worse than the requester's own model on its data (the paired interval reaches 0)",
            own.value,
            own.interval,
            "met" if own.interval.high >= 0 else "missed",
        ),
        StudyTarget(
            "better than the plain ensemble on the requester's data", here.value, *_above(here, here.value > 0)
        ),
        StudyTarget(
            "at least the plain ensemble's mean over the other parties", there.value, *_above(there, there.value >= 0)
        ),
    )


def _target_of_front(front: float, union: float) -> StudyTarget:
    """Return the target of the candidates' front, by its hypervolume and that of union training."""
    return StudyTarget(
        f"hypervolume of the front at least {HYPERVOLUME:.0%} of union training's",
        front / union if union else 0.0,
        None,
        "met" if front >= HYPERVOLUME * union else "missed",
    )


def _above(difference: Resampled, met: bool) -> tuple[Interval, Status]:
    interval = difference.interval
    return interval, "met" if met else "missed, within the interval" if interval.high >= 0 else "missed"
