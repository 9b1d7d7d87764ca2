"""The rule by which one candidate is chosen: filters in an order, each with a name and a threshold of its own.

A filter takes the candidates that are left and returns those it keeps. All look at validation data alone. What
docs/stitching.md says of the rule is this list and these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from suture_contract.documents import Candidate, CandidateSet, Evaluation, SplitName


@dataclass(frozen=True)
class Thresholds:
    """The numbers of the rule: parts of a value, so that they mean the same for every metric."""

    #: At home, a sure loss that is smaller than this part is taken for none.
    close: float = 0.0025
    #: A candidate that is worse at home than the own model by more than this part is not chosen.
    margin: float = 0.07


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
        singles = [candidate for candidate in self.candidates.candidates if candidate.kind == "single"]
        if self.own.own is not None:
            return singles[self.own.own].id
        return max(singles, key=lambda candidate: self._home[candidate.id]).id

    @property
    def plain(self) -> str:
        """The plain ensemble, which follows the single models."""
        return self.candidates.candidates[len(self.candidates.members)].id

    def gain(self, candidate: str) -> float:
        """Return by how much a candidate is better at home than the reference."""
        return self._home[candidate] - self._home[self.reference]

    def everywhere(self, candidate: str) -> float:
        """Return a candidate's mean over all parties, each weighed by the root of its number of patients."""
        return self._means[candidate]

    def keeps_up(self, candidate: str) -> bool:
        """Whether a candidate is not worse at home than the own model.

        The 95 % interval of the paired difference reaches zero, or all but `close` of it, and the loss is within
        `margin`, since few patients make wide intervals. A requester without a model is held to the best single one.
        """
        level = abs(self._home[self.reference])
        difference = self.own.splits["validation"].scores[candidate].difference
        if self.own.own is None or difference is None:
            return self.gain(candidate) >= 0
        most = difference.high if self.own.higher_is_better else -difference.low
        return most >= -THRESHOLDS.close * level and self.gain(candidate) >= -THRESHOLDS.margin * level

    @cached_property
    def _home(self) -> dict[str, float]:
        return {candidate.id: signed(self.own, candidate.id, "validation") for candidate in self.candidates.candidates}

    @cached_property
    def _means(self) -> dict[str, float]:
        every = [self.own, *self.others]
        # Evidence grows with the root of the patients: a party with few has a say, and not that of one with many.
        weights = [math.sqrt(_patients(party)) for party in every]
        return {
            candidate.id: sum(
                weight * signed(party, candidate.id, "validation") for weight, party in zip(weights, every, strict=True)
            )
            / sum(weights)
            for candidate in self.candidates.candidates
        }


def _patients(evaluation: Evaluation) -> int:
    """Return the patients of validation data; where nobody counted them, the samples."""
    validation = evaluation.splits["validation"]
    return validation.n if validation.patients is None else validation.patients


Filter: TypeAlias = Callable[[Evidence, list[Candidate]], list[Candidate]]


def keeps_own_level(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep those that are not worse at home than the own model."""
    return [candidate for candidate in pool if evidence.keeps_up(candidate.id)]


def best_for_all(evidence: Evidence, pool: list[Candidate]) -> list[Candidate]:
    """Keep the one whose mean over all parties is the best; of equals the simplest."""
    # `max` keeps the first of equals, and candidates come from the simplest to the most elaborate.
    best = max(pool, key=lambda candidate: evidence.everywhere(candidate.id), default=None)
    return [] if best is None else [best]


RULE: tuple[Filter, ...] = (keeps_own_level, best_for_all)


def chosen_by_rule(evidence: Evidence) -> str | None:
    """Return the candidate that is left by all filters, None where none keeps the own level."""
    pool = [candidate for candidate in evidence.candidates.candidates if candidate.id != evidence.reference]
    for keep in RULE:
        pool = keep(evidence, pool)
    return pool[0].id if pool else None


def signed(evaluation: Evaluation, candidate: str, split: SplitName) -> float:
    """Return a candidate's value, negative where lower is better."""
    value = evaluation.splits[split].scores[candidate].value
    return value if evaluation.higher_is_better else -value
