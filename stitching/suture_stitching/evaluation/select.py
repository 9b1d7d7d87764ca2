"""Which candidate to use: the non-dominated ones over all parties, and one default among them.

Parties' *validation* data decide, their *test* data only report. Pure: documents in, a choice out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import CARE, Candidate, CandidateSet, Evaluation, Interval, SplitName, Verdict
from suture_contract.errors import SutureError

#: Means over other parties that differ by less than this part of the best one are taken for equal.
TIE = 0.01
#: A candidate that is worse at home than the own model by more than this part is not chosen.
MARGIN = 0.02
#: Where nobody else helps the others, this part may be lost by those that give the others' mean `WORTH` times as much:
#: it may be a single sample.
LAST_MARGIN, WORTH = 0.05, 10.0
#: At home, differences smaller than this part are taken for none.
CLOSE = 0.0025


@dataclass(frozen=True)
class Choice:
    """The chosen candidate; the front and its hypervolume on test data; each party's verdict on the chosen one."""

    chosen: str
    front: tuple[str, ...]
    hypervolume: float
    verdicts: dict[str, Verdict]


def choose(candidates: CandidateSet, evaluations: Mapping[str, Evaluation], *, requester: str) -> Choice:
    """Return the default choice for `requester`, whose evaluation must be among `evaluations` (party -> document).

    Of the candidates that are not worse than the requester's own model on its own validation data (the 95 % interval of
    the paired difference does not lie below zero by more than `CLOSE`, and the difference not below `MARGIN`, since few
    samples make wide intervals), those that lose nothing there (less than `CLOSE`) and have at least the plain
    ensemble's mean over the other parties' validation data, if there are any; of these, or else of all, those with the
    best mean over the other parties (means within `TIE` of the best say the same); of these the one that surely is the
    best on the requester's own data (by the lower end of the interval), then the simplest. Routing, which asks a single
    model about most samples, is chosen only where all others are worse there by more than `CLOSE`. If nobody else
    answered, the requester's data alone decide.

    Where none of these has the plain ensemble's mean over the others, `LAST_MARGIN` takes the place of `MARGIN` for
    candidates that give the others' mean `WORTH` times what they lose at home. If none qualifies, the own model stays.
    A requester without a model among the members is held to the best single one, without any margin.

    Raises `SutureError` `evaluation.missing`.
    """
    own = evaluations.get(requester)
    if own is None:
        raise SutureError("evaluation.missing", "the requester's own evaluation is missing", where=requester)
    for party, evaluation in evaluations.items():
        _check(candidates, party, evaluation)
    others = [evaluation for party, evaluation in evaluations.items() if party != requester]
    reference = _reference(candidates, own)
    rivals = [one for one in candidates.candidates if one.id != reference]
    pool = [one for one in rivals if _keeps_up(one, own, reference, MARGIN)]
    plain = candidates.candidates[len(candidates.members)].id
    if others:
        means = {one.id: float(np.mean([_value(other, one.id) for other in others])) for one in candidates.candidates}
        if not any(means[one.id] >= means[plain] for one in pool):
            pool += [
                one
                for one in rivals
                if one not in pool
                and _keeps_up(one, own, reference, LAST_MARGIN)
                and means[one.id] - means[reference] > WORTH * (_value(own, reference) - _value(own, one.id))
            ]
    if pool and others:
        least = _value(own, reference) - CLOSE * abs(_value(own, reference))
        level = [one for one in pool if _value(own, one.id) >= least and means[one.id] >= means[plain]]
        pool = level or pool
        best_mean = max(means[one.id] for one in pool)
        pool = [one for one in pool if means[one.id] >= best_mean - TIE * abs(best_mean)]
    # `max` keeps the first of equals, and candidates come from the simplest to the most elaborate.
    best = max(pool, key=lambda one: _at_least(own, one.id)) if pool else None
    if best is not None and best.kind == "routed":
        least = _value(own, best.id) - CLOSE * abs(_value(own, best.id))
        joint = [one for one in pool if one.kind != "routed" and _value(own, one.id) >= least]
        best = max(joint, key=lambda one: _at_least(own, one.id), default=best)
    chosen = best.id if best else reference
    front, hypervolume = _front(candidates, list(evaluations.values()))
    verdicts: dict[str, Verdict] = {
        party: _verdict(chosen, plain, evaluation) if pool else "reject" for party, evaluation in evaluations.items()
    }
    return Choice(chosen, front, hypervolume, verdicts)


def _check(candidates: CandidateSet, party: str, evaluation: Evaluation) -> None:
    ids = {one.id for one in candidates.candidates}
    for split in ("validation", "test"):
        scores = evaluation.splits.get(split)
        if scores is None or scores.scores.keys() != ids:
            raise SutureError(
                "evaluation.incomplete",
                f"the evaluation does not score every candidate on {split} data",
                where=party,
                hint="ask this party's site operator to update the site",
            )


def _reference(candidates: CandidateSet, own: Evaluation) -> str:
    singles = [one for one in candidates.candidates if one.kind == "single"]
    if own.own is not None:
        return singles[own.own].id
    return max(singles, key=lambda one: _value(own, one.id)).id


def _keeps_up(one: Candidate, own: Evaluation, reference: str, margin: float) -> bool:
    difference = own.splits["validation"].scores[one.id].difference
    if own.own is not None and difference is not None:
        level = abs(own.splits["validation"].scores[reference].value)
        if own.higher_is_better:
            return difference.high >= -CLOSE * level and difference.value >= -margin * level
        return difference.low <= CLOSE * level and difference.value <= margin * level
    return _value(own, one.id) >= _value(own, reference)


def _at_least(own: Evaluation, id: str) -> float:
    """Return by how much a candidate surely beats the own model: few samples, or many changes, make it less sure."""
    difference = own.splits["validation"].scores[id].difference
    if own.own is None or difference is None:
        return _value(own, id)
    return difference.low if own.higher_is_better else -difference.high


def _verdict(chosen: str, plain: str, evaluation: Evaluation) -> Verdict:
    """Return what a party should do with the chosen candidate, by its own test data.

    adopt: not worse than the party's own model (the paired interval reaches zero); care: worse, but by less than
    `CARE`; reject: worse than that. A party without a model of its own compares with the plain ensemble: adopt where
    the two intervals overlap.
    """
    scores, sign = evaluation.splits["test"].scores, 1.0 if evaluation.higher_is_better else -1.0
    score = scores[chosen]
    if evaluation.own is not None and score.difference is not None:
        gain, best_case = sign * score.difference.value, sign * _better_end(score.difference, sign)
    else:
        gain = sign * (score.value - scores[plain].value)
        best_case = sign * (_better_end(score, sign) - _better_end(scores[plain], -sign))
    if best_case >= 0:
        return "adopt"
    return "care" if gain > -CARE else "reject"


def _better_end(interval: Interval, sign: float) -> float:
    return interval.high if sign > 0 else interval.low


def _front(candidates: CandidateSet, evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], float]:
    ids = [one.id for one in candidates.candidates]
    points: NDArray[np.float64] = np.array(
        [[_signed(evaluation, id, "test") for evaluation in evaluations] for id in ids], dtype=np.float64
    )
    kept = moocore.is_nondominated(points, maximise=True, keep_weakly=True)
    front = tuple(id for id, keep in zip(ids, kept, strict=True) if keep)
    # Errors have no natural worst value: there the worst candidate's is the reference.
    reference = np.where([one.higher_is_better for one in evaluations], 0.0, points.min(axis=0))
    return front, float(moocore.hypervolume(points, ref=reference, maximise=True))


def _value(evaluation: Evaluation, id: str) -> float:
    return _signed(evaluation, id, "validation")


def _signed(evaluation: Evaluation, id: str, split: SplitName) -> float:
    value = evaluation.splits[split].scores[id].value
    return value if evaluation.higher_is_better else -value
