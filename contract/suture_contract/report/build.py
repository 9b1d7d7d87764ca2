"""From what a job measured to the party report (torch-free, pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from suture_contract.documents import (
    Candidate,
    CandidateReport,
    CandidateSet,
    ClassReport,
    Evaluation,
    Interval,
    Missing,
    PartyReport,
    Report,
    ReportLineage,
    Revised,
    Score,
    Verdict,
)
from suture_contract.errors import SutureError


class Choice(Protocol):
    """What the selection decided, by candidate id and by party."""

    @property
    def chosen(self) -> str:
        """The candidate that is published."""

    @property
    def front(self) -> Sequence[str]:
        """The candidates that no other one beats for every party."""

    @property
    def hypervolume(self) -> float | None:
        """Of the front, reference point 0."""

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What each party should do with the chosen candidate."""


def build(
    candidates: CandidateSet,
    evaluations: Mapping[str, Evaluation],
    choice: Choice,
    *,
    requester: str,
    parties_of_members: Sequence[str],
    job: str,
    missing: Sequence[Missing] = (),
    version: int = 1,
    revised: Revised | None = None,
) -> Report:
    """Return the report of a job: every number is from the test splits, which took no part in the choice.

    `evaluations` are by party; `parties_of_members` names the owner of each member; `version` and `revised` belong to
    a report that takes the place of another. Raises `SutureError` `report.incomplete` when a party did not measure all
    candidates.
    """
    by_id = {candidate.id: candidate for candidate in candidates.candidates}
    scores = {party: _test_scores(party, evaluation, by_id) for party, evaluation in evaluations.items()}
    shown = _shown(by_id, evaluations, choice.chosen)
    parties = {
        party: _party_report(candidates, evaluation, scores[party], choice.verdicts[party], party, shown)
        for party, evaluation in evaluations.items()
    }
    front = frozenset(choice.front)
    names = [_member_name(candidates, index, parties_of_members) for index in range(len(candidates.members))]
    return Report(
        requester=requester,
        parties=parties,
        chosen=choice.chosen,
        candidates=tuple(
            CandidateReport(
                id=candidate.id,
                kind=candidate.kind,
                label=describe(candidate, names),
                metrics={party: scores[party][candidate.id].value for party in evaluations},
                front=candidate.id in front,
            )
            for candidate in candidates.candidates
        ),
        lineage=ReportLineage(job=job, members=candidates.members),
        missing=tuple(missing),
        contributions=candidates.contributions,
        version=version,
        revised=revised,
        hypervolume=choice.hypervolume,
    )


def describe(candidate: Candidate, names: Sequence[str]) -> str:
    """Say in a few words what a candidate is; `names` are the members'."""
    if candidate.kind == "single":
        return f"{names[candidate.members[0]]} alone"
    if candidate.kind == "ensemble":
        return "plain ensemble"
    if candidate.kind == "routed" and candidate.gate is not None and candidate.gate.withdraws is not None:
        return f"{names[candidate.gate.withdraws]} for familiar samples (to {candidate.gate.far:.3g}), else the others"
    places = [" / ".join(match.points[key] for key in sorted(match.points, key=int)) for match in candidate.matches]
    named = " and ".join(places)
    where = f"at {named}" if len(named) <= 60 else f"in {len(places)} places"
    alphas = sorted({match.alpha for match in candidate.matches})
    weights = "-".join(f"{alpha:g}" for alpha in (alphas if len(alphas) < 2 else (alphas[0], alphas[-1])))
    gated = ""
    if candidate.gate is not None:
        gated = f", familiar samples only (to {candidate.gate.far:.3g})"
        if candidate.gate.withdraws is not None:
            gated += f", others without {names[candidate.gate.withdraws]}"
    others = f", {100 * candidate.others:g} % of the moments from others" if candidate.others else ""
    return f"stitched {where}, weight {weights}{others}{', refined' if candidate.refined else ''}{gated}"


def _member_name(candidates: CandidateSet, index: int, parties: Sequence[str]) -> str:
    """The model's full name; a model that its owner published under another party keeps both."""
    repo = candidates.members[index].repo
    return repo if repo.startswith(f"{parties[index]}/") else f"{repo} ({parties[index]})"


def _test_scores(party: str, evaluation: Evaluation, candidates: Mapping[str, Candidate]) -> Mapping[str, Score]:
    test = evaluation.splits.get("test")
    if test is None or not candidates.keys() <= test.scores.keys():
        raise SutureError(
            "report.incomplete",
            "not every candidate was measured on the test split",
            where=f"evaluation of {party}",
            hint="the site must evaluate all candidates on both splits",
        )
    return test.scores


def _shown(candidates: Mapping[str, Candidate], evaluations: Mapping[str, Evaluation], chosen: str) -> dict[str, str]:
    """Return the candidates shown as rows `stitched` and `routed`: the chosen one, else the best stitched one.

    The best is that of the best mean over all parties' validation data.
    """
    kind = candidates[chosen].kind
    shown: dict[str, str] = {kind: chosen} if kind in ("stitched", "routed") else {}
    stitched = [candidate.id for candidate in candidates.values() if candidate.kind == "stitched"]
    found = [(1 if one.higher_is_better else -1, one.splits.get("validation")) for one in evaluations.values()]
    if "stitched" not in shown and stitched and all(one and set(stitched) <= one.scores.keys() for _, one in found):
        means = {id: sum(sign * one.scores[id].value for sign, one in found if one) for id in stitched}
        shown["stitched"] = max(stitched, key=lambda id: means[id])
    return shown


def _party_report(
    candidates: CandidateSet,
    evaluation: Evaluation,
    scores: Mapping[str, Score],
    verdict: Verdict,
    party: str,
    shown: Mapping[str, str],
) -> PartyReport:
    ids: dict[str, str] = {}
    for index, member in enumerate(candidates.members):
        ids["own" if index == evaluation.own else f"peer:{member.repo}"] = candidates.candidates[index].id
    ensemble = next((candidate.id for candidate in candidates.candidates if candidate.kind == "ensemble"), None)
    if ensemble is not None:
        ids["ensemble"] = ensemble
    ids |= dict(sorted(shown.items()))
    rows, test, labels = (
        {row: scores[id] for row, id in ids.items()},
        evaluation.splits["test"],
        candidates.labels or (),
    )
    return PartyReport(
        metric=evaluation.metric,
        n=test.n,
        rows={row: Interval(value=score.value, low=score.low, high=score.high) for row, score in rows.items()},
        verdict=verdict,
        differences={row: score.difference for row, score in rows.items() if score.difference and row != "own"},
        calibration={row: score.calibration for row, score in rows.items() if score.calibration},
        classes=tuple(
            ClassReport(label=labels[int(label)], n=one.n, rows={row: one.scores[id] for row, id in ids.items()})
            for label, one in sorted(test.classes.items(), key=lambda item: int(item[0]))
            if int(label) < len(labels)
        ),
    )
