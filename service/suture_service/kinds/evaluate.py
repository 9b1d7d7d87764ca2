"""`evaluate`: a party measures all candidates on its own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from suture_contract.documents import ClinicalMetric, Evaluation
from suture_contract.kinds import CANDIDATES
from suture_service.errors import HubError
from suture_service.kinds.checks import parse, same
from suture_service.kinds.fit import candidates_of, fitted_files, read_candidates
from suture_service.kinds.kind import Accepted, TaskContext, TaskKind, TaskResult, results_of
from suture_service.kinds.schemas import SpecFile, SpecMember
from suture_service.states import JobState, Overdue, Rules
from suture_service.tables import Job, Json, Task, TaskFile


class EvaluateSpec(BaseModel):
    """Evaluate all candidates; `dataset` is null where the site chooses, `own` the index of the party's own member.

    `metrics` are those that the job asks for beside the metric of the task.
    """

    members: list[SpecMember]
    dataset: str | None
    own: int | None
    candidates: dict[str, SpecFile]
    metrics: tuple[ClinicalMetric, ...] = ()


class Evaluate(TaskKind):
    """The hub's side of `evaluate`."""

    rules = Rules("evaluate", during=JobState.EVALUATING, overdue=Overdue.LATE)
    spec_model = EvaluateSpec

    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """The requester, whether named or not, and those named."""
        named = {entry["party"]: entry["dataset"] for entry in job.evaluate_at}
        yield job.requester.name, named.pop(job.requester.name, None) or job.dataset
        yield from named.items()

    def start(self, session: Session, job_id: str) -> Mapping[str, TaskFile]:
        """What the fit has left."""
        return fitted_files(session, job_id)

    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> EvaluateSpec:
        """The candidates, and which of the members is the party's own."""
        return EvaluateSpec(
            members=list(work.members),
            dataset=work.task.dataset,
            own=_own(work.job, work.task),
            candidates=candidates_of(start),
            metrics=work.job.options.get("metrics", ()),
        )

    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """It speaks of this job's candidates, all of them, and of nothing else."""
        evaluation = parse(Evaluation, result.document, "document")
        same("own", evaluation.own, _own(work.job, work.task), "document", "evaluation.mismatch")
        expected = {candidate.id for candidate in read_candidates(result.start[CANDIDATES]).candidates}
        if "test" not in evaluation.splits:
            raise HubError("evaluation.invalid", "the test split is missing", where="document.splits")
        asked = set(work.job.options.get("metrics", ()))
        for name, split in evaluation.splits.items():
            if not_asked := {*split.metrics, *(["calibration_curve"] if split.curves else [])} - asked:
                raise HubError(
                    "evaluation.mismatch",
                    f"the job did not ask for {min(not_asked)}",
                    where=f"document.splits.{name}.metrics",
                )
            compared = {id for score in split.scores.values() for id in score.against}
            if odd := (split.scores.keys() ^ expected) | (compared - expected):
                wrong = min(odd)
                raise HubError(
                    "evaluation.mismatch",
                    f"candidate {wrong} is {'not one of the job' if wrong not in expected else 'missing'}",
                    where=f"document.splits.{name}.scores",
                )
        return Accepted(_dumped(evaluation))

    def as_kept(self, document: dict[str, Any]) -> dict[str, Any]:
        """With its defaults filled in."""
        return _dumped(parse(Evaluation, document, "document"))


KIND = Evaluate()


def evaluations_of(job: Job) -> dict[str, Json]:
    """Return the evaluations there are, by party."""
    return results_of(job, KIND.rules.kind)


def _dumped(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(mode="json", by_alias=True)


def _own(job: Job, task: Task) -> int | None:
    owners = [entry.revision.model.party_id for entry in job.members]
    return owners.index(task.party_id) if task.party_id in owners else None
