"""From what a job measured to the party report (torch-free, pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from suture_contract.documents import (
    Candidate,
    CandidateReport,
    CandidateSet,
    ClassReport,
    ClinicalMetric,
    Evaluation,
    Interval,
    Match,
    MeasuredMetric,
    Missing,
    PartyReport,
    Report,
    ReportLineage,
    Revised,
    Score,
    SplitScores,
    SubgroupReport,
    Verdict,
)
from suture_contract.errors import SutureError
from suture_contract.measures import told_as
from suture_contract.model.metadata import MemberRef

#: How long the document lets a candidate's description be.
_LABEL, _WORDS = 200, 600
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


class ReportChoice(Protocol):
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
    choice: ReportChoice,
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
        party: _party_report(candidates, evaluation, scores[party], choice, party, shown)
        for party, evaluation in evaluations.items()
    }
    front = frozenset(choice.front)
    words = in_words_of(candidates, parties_of_members)
    return Report(
        requester=requester,
        parties=parties,
        chosen=choice.chosen,
        candidates=tuple(
            CandidateReport(
                id=candidate.id,
                kind=candidate.kind,
                label=words[candidate.id].label,
                words=words[candidate.id].words,
                metrics={party: scores[party][candidate.id].value for party in evaluations},
                front=candidate.id in front,
            )
            for candidate in candidates.candidates
        ),
        lineage=ReportLineage(job=job, members=candidates.members),
        missing=tuple(missing),
        contributions=candidates.contributions,
        privacy=candidates.privacy,
        trusted=candidates.trusted,
        version=version,
        revised=revised,
        hypervolume=choice.hypervolume,
    )


class Words(NamedTuple):
    """What a candidate is: `label` tells it apart from every other one, `words` are for who knows no networks."""

    label: str
    words: str


def in_words_of(candidates: CandidateSet, parties_of_members: Sequence[str]) -> dict[str, Words]:
    """Say of each candidate, by its id, what it is; `parties_of_members` names the owner of each member."""
    names, last = member_names(candidates.members, parties_of_members), _last_places(candidates)
    return {
        candidate.id: Words(describe(candidate, names)[:_LABEL], in_words(candidate, names, last)[:_WORDS])
        for candidate in candidates.candidates
    }


def describe(candidate: Candidate, names: Sequence[str]) -> str:
    """Say in a few words what a candidate is; `names` are the members'."""
    if candidate.kind == "single":
        return f"{names[candidate.members[0]]} alone"
    if candidate.kind == "ensemble":
        return "plain ensemble"
    corrected = ", site prior" if candidate.site_prior is not None else ""
    if candidate.kind == "corrected":
        return f"ensemble{corrected}"
    if candidate.kind == "routed" and candidate.gate is not None and candidate.gate.withdraws is not None:
        home = names[candidate.gate.withdraws]
        return f"{home} for familiar samples (to {candidate.gate.far:.3g}), else the others{corrected}"
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
    return f"stitched {where}, weight {weights}{others}{', refined' if candidate.refined else ''}{gated}{corrected}"


def in_words(candidate: Candidate, names: Sequence[str], last: frozenset[str]) -> str:
    """Say what a candidate is to people who know no networks; `last` are the points of the members' last match."""
    everyone = f"the {_NUMBERS.get(len(names), len(names))} models"
    if candidate.kind == "single":
        return f"{names[candidate.members[0]]} alone"
    if candidate.kind == "ensemble":
        return f"the plain average of {everyone}"
    corrected = ", with each hospital's own shares of labels" if candidate.site_prior is not None else ""
    if candidate.kind == "corrected":
        return f"the average of {everyone}{corrected}"
    home = None if candidate.gate is None else candidate.gate.withdraws
    if candidate.kind == "routed" and home is not None:
        return f"{names[home]} for familiar samples, {_others(names, home)} for the rest{corrected}"
    at = "at their last layer" if _points(candidate.matches[0]) == last else "at an inner layer"
    place = at if len(candidate.matches) == 1 else f"at {_NUMBERS.get(len(candidate.matches), 'several')} layers"
    helped = ", fitted with what other parties contributed" if candidate.others else ""
    gated = ""
    if candidate.gate is not None:
        gated = ", on familiar samples"
        gated += "" if home is None else f"; {_others(names, home)} for the rest"
    return f"{everyone} joined {place}{helped}{gated}{corrected}"


def _others(names: Sequence[str], home: int) -> str:
    others = [name for member, name in enumerate(names) if member != home]
    return others[0] if len(others) == 1 else f"the average of the other {_NUMBERS.get(len(others), len(others))}"


def _points(match: Match) -> frozenset[str]:
    return frozenset(f"{member}:{point}" for member, point in match.points.items())


def _last_places(candidates: CandidateSet) -> frozenset[str]:
    """Return the points of the match that lies the furthest behind in the networks: nodes are numbered as they run."""
    matches = [match for candidate in candidates.candidates for match in candidate.matches]
    depths = {
        _points(match): sum(int(point[1:].partition(".")[0]) for point in match.points.values()) for match in matches
    }
    return max(depths, key=lambda points: depths[points], default=frozenset())


def member_names(members: Sequence[MemberRef], parties: Sequence[str]) -> list[str]:
    """Return the models' full names; a model that its owner published under another party keeps both."""
    return [
        member.repo if member.repo.startswith(f"{party}/") else f"{member.repo} ({party})"
        for member, party in zip(members, parties, strict=True)
    ]


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
    """Return the candidates shown as rows `corrected`, `routed` and `stitched`.

    Each is the chosen one, else the best of the kind: that of the best mean over all parties' validation data.
    """
    shown = {}
    validations = [
        (1 if evaluation.higher_is_better else -1, evaluation.splits.get("validation"))
        for evaluation in evaluations.values()
    ]
    for kind in ("corrected", "routed", "stitched"):
        ids = [candidate.id for candidate in candidates.values() if candidate.kind == kind]
        if chosen in ids:
            shown[kind] = chosen
        elif ids and all(scores and set(ids) <= scores.scores.keys() for _, scores in validations):
            means = {id: sum(sign * scores.scores[id].value for sign, scores in validations if scores) for id in ids}
            shown[kind] = max(ids, key=lambda id: means[id])
    return shown


def _party_report(
    candidates: CandidateSet,
    evaluation: Evaluation,
    scores: Mapping[str, Score],
    choice: ReportChoice,
    party: str,
    shown: Mapping[str, str],
) -> PartyReport:
    ids: dict[str, str] = {"chosen": choice.chosen}
    for index, member in enumerate(candidates.members):
        ids["own" if index == evaluation.own else f"peer:{member.repo}"] = candidates.candidates[index].id
    ensemble = next((candidate.id for candidate in candidates.candidates if candidate.kind == "ensemble"), None)
    if ensemble is not None:
        ids["ensemble"] = ensemble
    ids |= shown
    test, labels = evaluation.splits["test"], candidates.labels or ()
    rows = {row: scores[id] for row, id in ids.items()}
    return PartyReport(
        metric=evaluation.metric,
        n=test.n,
        patients=test.patients,
        rows=_intervals(scores, ids),
        verdict=choice.verdicts[party],
        differences={row: score.difference for row, score in rows.items() if score.difference and row != "own"},
        gains=_gains(scores[choice.chosen], {row: id for row, id in ids.items() if id != choice.chosen}),
        calibration={row: score.calibration for row, score in rows.items() if score.calibration},
        training=evaluation.training,
        train=evaluation.train,
        privacy=evaluation.privacy,
        trusted=evaluation.trusted,
        classes=tuple(
            ClassReport(
                label=labels[int(label)],
                n=class_scores.n,
                patients=class_scores.patients,
                rows={row: class_scores.scores[id] for row, id in ids.items()},
            )
            for label, class_scores in sorted(test.classes.items(), key=lambda item: int(item[0]))
            if int(label) < len(labels)
        ),
        metrics=_by_row(test.metrics, ids),
        curves={row: test.curves[id] for row, id in ids.items() if id in test.curves},
        withheld=tuple(metric for metric in evaluation.asked if not _is_told(metric, test)),
        subgroups=tuple(
            SubgroupReport(
                column=subgroup.column,
                value=subgroup.value,
                n=subgroup.n,
                patients=subgroup.patients,
                rows=_intervals(subgroup.scores, ids),
                metrics=_by_row(subgroup.metrics, ids),
            )
            for subgroup in test.subgroups
        ),
    )


def _intervals(scores: Mapping[str, Interval], ids: Mapping[str, str]) -> dict[str, Interval]:
    """Return by row its candidate's value and interval, as far as there is one, without what else a score says."""
    by_row = {row: scores[id] for row, id in ids.items() if id in scores}
    return {row: Interval(value=score.value, low=score.low, high=score.high) for row, score in by_row.items()}


def _is_told(metric: ClinicalMetric, test: SplitScores) -> bool:
    if metric == "calibration_curve":
        return bool(test.curves)
    return any(told_as(metric, spacing_known=known) in test.metrics for known in (False, True))


def _by_row(
    metrics: Mapping[MeasuredMetric, Mapping[str, Interval]], ids: Mapping[str, str]
) -> dict[MeasuredMetric, dict[str, Interval]]:
    return {metric: _intervals(values, ids) for metric, values in metrics.items()}


def _gains(chosen: Score, ids: Mapping[str, str]) -> dict[str, Interval]:
    """Return the chosen candidate minus each row's, as far as they were compared on the same samples."""
    paired: dict[str, Interval | None] = {row: chosen.against.get(id) for row, id in ids.items()}
    if "own" in ids:
        paired["own"] = chosen.difference
    return {row: interval for row, interval in paired.items() if interval is not None}
