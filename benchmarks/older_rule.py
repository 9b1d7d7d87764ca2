"""The rule of the choice before decision 34, kept to compare with: four filters, five thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from suture_contract.documents import Candidate, CandidateSet, Evaluation
from suture_stitching.evaluation.rule import Evidence, signed

#: Parts of a value. At home, a smaller difference is none, and more than the margin may not be lost. Where nobody else
#: helps the others, the wider margin holds, for what gives them `WORTH` times the loss. Elsewhere, means within `TIE`
#: are equal.
CLOSE, MARGIN, LAST_MARGIN, WORTH, TIE = 0.0025, 0.02, 0.05, 10.0, 0.01


@dataclass(frozen=True)
class Older:
    """The older rule's view of what the parties measured on validation data."""

    candidates: CandidateSet
    own: Evaluation
    others: list[Evaluation]

    @cached_property
    def reference(self) -> str:
        """The requester's own model."""
        return Evidence(self.candidates, self.own, self.others).reference

    def home(self, id: str) -> float:
        """Return a candidate's value at the requester."""
        return signed(self.own, id, "validation")

    def elsewhere(self, id: str) -> float:
        """Return its mean over the other parties, who count alike."""
        return sum(signed(other, id, "validation") for other in self.others) / len(self.others)

    def surely(self, id: str) -> float:
        """Return by how much it surely beats the own model."""
        difference = self.own.splits["validation"].scores[id].difference
        if difference is None:
            return self.home(id)
        return difference.low if self.own.higher_is_better else -difference.high

    def keeps_up(self, id: str, margin: float) -> bool:
        """Whether the paired interval reaches zero, and no more than `margin` is lost."""
        difference, level = self.own.splits["validation"].scores[id].difference, abs(self.home(self.reference))
        if difference is None:
            return self.home(id) >= self.home(self.reference)
        sign = 1 if self.own.higher_is_better else -1
        most = difference.high if self.own.higher_is_better else -difference.low
        return most >= -CLOSE * level and sign * difference.value >= -margin * level

    def within_close(self, id: str, of: str) -> bool:
        """Whether it is at home not worse than another by more than `CLOSE`."""
        return self.home(id) >= self.home(of) - CLOSE * abs(self.home(of))

    def kept(self, pool: list[Candidate]) -> list[Candidate]:
        """Return those that keep the own level; where none of them helps the others, also those that are worth it."""
        plain = self.candidates.candidates[len(self.candidates.members)].id
        kept = [candidate for candidate in pool if self.keeps_up(candidate.id, MARGIN)]
        if any(self.elsewhere(candidate.id) >= self.elsewhere(plain) for candidate in kept):
            return kept

        def worth_it(id: str) -> bool:
            won = self.elsewhere(id) - self.elsewhere(self.reference)
            return self.keeps_up(id, LAST_MARGIN) and won > WORTH * (self.home(self.reference) - self.home(id))

        return kept + [candidate for candidate in pool if candidate not in kept and worth_it(candidate.id)]

    def without_loss(self, pool: list[Candidate]) -> list[Candidate]:
        """Return those that lose nothing at home and give the others what plain averaging gives; or else all."""
        least = self.elsewhere(self.candidates.candidates[len(self.candidates.members)].id)
        return [
            candidate
            for candidate in pool
            if self.within_close(candidate.id, self.reference) and self.elsewhere(candidate.id) >= least
        ] or pool

    def chosen(self) -> str:
        """Return the id of what is surely the best at home of those that are near the best elsewhere."""
        pool = [candidate for candidate in self.candidates.candidates if candidate.id != self.reference]
        pool = self.without_loss(self.kept(pool))
        if not pool:
            return self.reference
        top = max(self.elsewhere(candidate.id) for candidate in pool)
        pool = [candidate for candidate in pool if self.elsewhere(candidate.id) >= top - TIE * abs(top)]
        best = max(pool, key=lambda candidate: self.surely(candidate.id))
        if best.kind == "routed":
            joint = [
                candidate
                for candidate in pool
                if candidate.kind != "routed" and self.within_close(candidate.id, best.id)
            ]
            best = max(joint, key=lambda candidate: self.surely(candidate.id), default=best)
        return best.id
