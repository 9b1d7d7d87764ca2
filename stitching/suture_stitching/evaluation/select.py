"""Which candidate to use: the non-dominated ones over all parties, and one default among them.

Parties' *validation* data decide, their *test* data only report. Pure: documents in, a choice out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from suture_contract.documents import CARE, FEW_PATIENTS, CandidateSet, Evaluation, Interval, Verdict
from suture_contract.errors import SutureError
from suture_stitching.evaluation.rule import Evidence, chosen_by_rule, signed


@dataclass(frozen=True)
class Choice:
    """The chosen candidate; the front and its hypervolume on test data; each party's verdict on the chosen one."""

    chosen: str
    front: tuple[str, ...]
    hypervolume: float
    verdicts: dict[str, Verdict]


def choose(candidates: CandidateSet, evaluations: Mapping[str, Evaluation], *, requester: str) -> Choice:
    """Return the default choice for `requester`, whose evaluation must be among `evaluations` (party -> document).

    The rule is in `suture_stitching.evaluation.rule`. If no candidate qualifies, the own model stays the choice, and
    every party is told to reject.

    Raises `SutureError` `evaluation.missing`.
    """
    own = evaluations.get(requester)
    if own is None:
        raise SutureError("evaluation.missing", "the requester's own evaluation is missing", where=requester)
    for party, evaluation in evaluations.items():
        _check(candidates, party, evaluation)
    others = [evaluation for party, evaluation in evaluations.items() if party != requester]
    evidence = Evidence(candidates, own, others)
    by_rule = chosen_by_rule(evidence)
    chosen = by_rule or evidence.reference
    front, hypervolume = _front(candidates, list(evaluations.values()))
    verdicts: dict[str, Verdict] = {
        party: _verdict(chosen, evidence.plain, evaluation) if by_rule else "reject"
        for party, evaluation in evaluations.items()
    }
    return Choice(chosen, front, hypervolume, verdicts)


def _check(candidates: CandidateSet, party: str, evaluation: Evaluation) -> None:
    ids = {candidate.id for candidate in candidates.candidates}
    for split in ("validation", "test"):
        scores = evaluation.splits.get(split)
        if scores is None or scores.scores.keys() != ids:
            raise SutureError(
                "evaluation.incomplete",
                f"the evaluation does not score every candidate on {split} data",
                where=party,
                hint="ask this party's site operator to update the site",
            )


def _verdict(chosen: str, plain: str, evaluation: Evaluation) -> Verdict:
    """Return what a party should do with the chosen candidate, by its own test data.

    adopt: not worse than the party's own model (the paired interval reaches zero); care: worse, but by less than
    `CARE`; reject: worse than that. A party without a model of its own compares with the plain ensemble: adopt where
    the two intervals overlap. Of fewer than `FEW_PATIENTS` patients care takes the place of adopt.
    """
    test, sign = evaluation.splits["test"], 1.0 if evaluation.higher_is_better else -1.0
    scores, patients = test.scores, test.n if test.patients is None else test.patients
    score = scores[chosen]
    if evaluation.own is not None and score.difference is not None:
        gain, best_case = sign * score.difference.value, sign * _better_end(score.difference, sign)
    else:
        gain = sign * (score.value - scores[plain].value)
        best_case = sign * (_better_end(score, sign) - _better_end(scores[plain], -sign))
    if best_case >= 0:
        return "adopt" if patients >= FEW_PATIENTS else "care"
    return "care" if gain > -CARE else "reject"


def _better_end(interval: Interval, sign: float) -> float:
    return interval.high if sign > 0 else interval.low


def _front(candidates: CandidateSet, evaluations: Sequence[Evaluation]) -> tuple[tuple[str, ...], float]:
    ids = [candidate.id for candidate in candidates.candidates]
    points: NDArray[np.float64] = np.array(
        [[signed(evaluation, id, "test") for evaluation in evaluations] for id in ids], dtype=np.float64
    )
    kept = moocore.is_nondominated(points, maximise=True, keep_weakly=True)
    front = tuple(id for id, keep in zip(ids, kept, strict=True) if keep)
    # Errors have no natural worst value: there the worst candidate's is the reference.
    reference = np.where([evaluation.higher_is_better for evaluation in evaluations], 0.0, points.min(axis=0))
    return front, float(moocore.hypervolume(points, ref=reference, maximise=True))
