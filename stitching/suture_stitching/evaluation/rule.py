"""The rule by which one candidate is chosen: filters in an order, each with a name and a threshold of its own.

A filter takes the candidates that are left and returns those it keeps. All look at validation data alone. What
docs/stitching.md says of the rule is this list and these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from suture_contract.documents import Candidate, CandidateSet, Evaluation, SplitName


@dataclass(frozen=True)
class Thresholds:
    """The numbers of the rule: parts of a value, so that they mean the same for every metric."""

    #: At home, differences smaller than this part are taken for none.
    close: float = 0.0025
    #: A candidate that is worse at home than the own model by more than this part is not chosen.
    margin: float = 0.02
    #: Where nobody else helps the others, this part may be lost: it may be a single sample.
    last_margin: float = 0.05
    #: So many times what is lost at home must be won in the others' mean, where `last_margin` holds.
    worth: float = 10.0
    #: Means over other parties that differ by less than this part of the best one are taken for equal.
    tie: float = 0.01


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Evidence:
    """What the parties measured on validation data. Values are signed so that more is better."""

    candidates: CandidateSet
    own: Evaluation
    others: Sequence[Evaluation]

    @cached_property
    def reference(self) -> str:
        """The requester's own model, or the best single one where it has none."""
        singles = [one for one in self.candidates.candidates if one.kind == "single"]
        if self.own.own is not None:
            return singles[self.own.own].id
        return max(singles, key=lambda one: self.home(one.id)).id

    @property
    def plain(self) -> str:
        """The plain ensemble, which follows the single models."""
        return self.candidates.candidates[len(self.candidates.members)].id

    def home(self, candidate: str) -> float:
        """Return a candidate's value at the requester."""
        return signed(self.own, candidate, "validation")

    @cached_property
    def _means(self) -> dict[str, float]:
        return {
            one.id: sum(signed(other, one.id, "validation") for other in self.others) / len(self.others)
            for one in self.candidates.candidates
        }

    def elsewhere(self, candidate: str) -> float:
        """Return a candidate's mean value at the other parties; there must be any."""
        return self._means[candidate]

    def surely(self, candidate: str) -> float:
        """Return by how much a candidate surely beats the own model: few samples, or many changes, make it less."""
        difference = self.own.splits["validation"].scores[candidate].difference
        if self.own.own is None or difference is None:
            return self.home(candidate)
        return difference.low if self.own.higher_is_better else -difference.high

    def keeps_up(self, candidate: str, margin: float) -> bool:
        """Whether a candidate is not worse at home than the own model.

        The 95 % interval of the paired difference reaches zero, or all but `close` of it, and the difference is within
        `margin`, since few samples make wide intervals. A requester without a model is held to the best single one.
        """
        difference = self.own.splits["validation"].scores[candidate].difference
        if self.own.own is None or difference is None:
            return self.home(candidate) >= self.home(self.reference)
        level, close = abs(self.home(self.reference)), THRESHOLDS.close
        if self.own.higher_is_better:
            return difference.high >= -close * level and difference.value >= -margin * level
        return difference.low <= close * level and difference.value <= margin * level

    def within_close(self, candidate: str, of: str) -> bool:
        """Whether a candidate is at home not worse than another by more than `close`."""
        level = self.home(of)
        return self.home(candidate) >= level - THRESHOLDS.close * abs(level)


Filter: TypeAlias = Callable[[Evidence, list[Candidate]], list[Candidate]]


def keeps_own_level(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep those that are not worse at home than the own model.

    Where none of them gives the others what the plain ensemble gives them, keep also those that lose up to
    `last_margin` at home and give the others' mean `worth` times as much.
    """
    kept = [one for one in pool if evidence.keeps_up(one.id, THRESHOLDS.margin)]
    if not evidence.others or any(evidence.elsewhere(one.id) >= evidence.elsewhere(evidence.plain) for one in kept):
        return kept

    def worth_it(one: Candidate) -> bool:
        won = evidence.elsewhere(one.id) - evidence.elsewhere(evidence.reference)
        lost = evidence.home(evidence.reference) - evidence.home(one.id)
        return evidence.keeps_up(one.id, THRESHOLDS.last_margin) and won > THRESHOLDS.worth * lost

    return kept + [one for one in pool if one not in kept and worth_it(one)]


def loses_nothing(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep those that lose less than `close` at home and give the others what plain averaging gives; or else all."""
    if not evidence.others:
        return pool
    least = evidence.elsewhere(evidence.plain)
    kept = [
        one for one in pool if evidence.within_close(one.id, evidence.reference) and evidence.elsewhere(one.id) >= least
    ]
    return kept or pool


def best_elsewhere(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep those whose mean over the other parties is within `tie` of the best."""
    if not evidence.others or not pool:
        return pool
    best = max(evidence.elsewhere(one.id) for one in pool)
    return [one for one in pool if evidence.elsewhere(one.id) >= best - THRESHOLDS.tie * abs(best)]


def surest_at_home(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep the one that surely is the best at home, by the lower end of the interval; of equals the simplest.

    Routing asks a single model about most samples, so it is kept only where all others are worse at home by more than
    `close`.
    """
    # `max` keeps the first of equals, and candidates come from the simplest to the most elaborate.
    best = max(pool, key=lambda one: evidence.surely(one.id), default=None)
    if best is None:
        return []
    if best.kind == "routed":
        joint = [one for one in pool if one.kind != "routed" and evidence.within_close(one.id, best.id)]
        best = max(joint, key=lambda one: evidence.surely(one.id), default=best)
    return [best]


RULE: tuple[Filter, ...] = (keeps_own_level, loses_nothing, best_elsewhere, surest_at_home)


def chosen_by_rule(evidence: Evidence) -> str | None:
    """Return the candidate that is left by all filters, None where none keeps the own level."""
    pool = [one for one in evidence.candidates.candidates if one.id != evidence.reference]
    for keep in RULE:
        pool = keep(evidence, pool)
    return pool[0].id if pool else None


def signed(evaluation: Evaluation, candidate: str, split: SplitName) -> float:
    """Return a candidate's value, negative where lower is better."""
    value = evaluation.splits[split].scores[candidate].value
    return value if evaluation.higher_is_better else -value
