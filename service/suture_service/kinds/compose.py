"""`compose`: the requester's site chooses by all evaluations, and the hub publishes what it composes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from suture_contract.card.yaml_block import split_card
from suture_contract.documents import CandidateId, Evaluation, Missing, Report, Revised
from suture_contract.kinds import CANDIDATES, CARD, METADATA, MODEL, REPORT
from suture_contract.model.metadata import MAX_BYTES, Lineage
from suture_service.errors import HubError
from suture_service.kinds.checks import parse, read_document, same
from suture_service.kinds.evaluate import KIND as EVALUATE
from suture_service.kinds.evaluate import evaluations_of
from suture_service.kinds.fit import candidates_of, fitted_files, read_candidates
from suture_service.kinds.kind import Accepted, TaskContext, TaskKind, TaskResult
from suture_service.kinds.schemas import JOB, MissingOut, SpecFile, SpecMember
from suture_service.models.publishing import check_model
from suture_service.settings import Settings
from suture_service.states import JobState, Overdue, Rules, TaskState
from suture_service.storage.blobs import KeptFile
from suture_service.tables import Job, Json, Task, TaskFile


class ComposeSpec(BaseModel):
    """Choose and compose; the hub publishes the result as `publish_as`."""

    members: list[SpecMember]
    candidates: dict[str, SpecFile]
    evaluations: dict[str, Evaluation]
    missing: list[MissingOut]
    version: int = Field(description="Of the report: more than 1 after a late answer.", examples=[1])
    revised: Revised | None = None
    publish_as: str = Field(examples=["north/both"])
    job: str = Field(examples=[JOB])


class ComposeDocument(BaseModel):
    """The result of a `compose`: the chosen candidate."""

    model_config = ConfigDict(extra="forbid")
    chosen: CandidateId


class Compose(TaskKind):
    """The hub's side of `compose`."""

    rules = Rules("compose", during=JobState.COMPOSING, overdue=Overdue.WAITED_FOR)
    spec_model = ComposeSpec
    optional = frozenset({CARD})

    def limit(self, name: str, settings: Settings) -> int:
        """As for models that people publish."""
        limits = {MODEL: settings.max_model_bytes, METADATA: MAX_BYTES, CARD: settings.max_card_bytes}
        return limits.get(name, settings.max_document_bytes)

    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """The requester; no data are read."""
        yield job.requester.name, None

    def start(self, session: Session, job_id: str) -> Mapping[str, TaskFile]:
        """What the fit has left."""
        return fitted_files(session, job_id)

    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> ComposeSpec:
        """All evaluations, and who is missing."""
        job = work.job
        return ComposeSpec(
            members=list(work.members),
            candidates=candidates_of(start),
            evaluations={name: Evaluation.model_validate(content) for name, content in evaluations_of(job).items()},
            missing=[MissingOut(party=entry.party, reason=entry.reason) for entry in work.missing],
            version=_version(job),
            revised=_revised(job),
            publish_as=f"{job.requester.name}/{job.publish_as}",
            job=job.id,
        )

    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """Lineage and report are those of the job, and the model is in order."""
        document, files, job = parse(ComposeDocument, result.document, "document"), result.files, work.job
        candidates = read_candidates(result.start[CANDIDATES])
        if document.chosen not in {candidate.id for candidate in candidates.candidates}:
            problem = f"{document.chosen} is no candidate of this job"
            raise HubError("report.mismatch", problem, where="document.chosen")
        checked = check_model(files)
        stated = checked.metadata.lineage if checked.metadata is not None else None
        lineage = Lineage(job=job.id, requester=job.requester.name, members=work.refs, candidate=document.chosen)
        for field in ("job", "requester", "members", "candidate"):
            actual = getattr(stated, field) if stated is not None else None
            same(f"lineage.{field}", actual, getattr(lineage, field), METADATA, "lineage.mismatch")
        report = read_document(Report, files[REPORT], REPORT, "report.invalid")
        for field, actual, expected in (
            ("requester", report.requester, job.requester.name),
            ("chosen", report.chosen, document.chosen),
            ("lineage.job", report.lineage.job, job.id),
            ("lineage.members", report.lineage.members, work.refs),
            ("contributions", report.contributions, candidates.contributions),
            ("parties", sorted(report.parties), sorted(evaluations_of(job))),
            ("missing", _by_party(report.missing), _by_party(work.missing)),
            ("version", report.version, _version(job)),
            ("revised", report.revised, _revised(job)),
        ):
            same(field, actual, expected, REPORT, "report.mismatch")
        card = _read_card(files[CARD]) if CARD in files else None
        return Accepted(document.model_dump(), replace(checked, card=card))


KIND = Compose()


def _composed(job: Job) -> list[Task]:
    return [task for task in job.tasks if task.kind == KIND.rules.kind and task.state == TaskState.DONE]


def _version(job: Job) -> int:
    return len(_composed(job)) + 1


def _revised(job: Job) -> Revised | None:
    """Return what the report to be made says of the one that is published."""
    if not (composed := _composed(job)):
        return None
    last = composed[-1]
    assert last.result is not None
    assert last.finished_at is not None
    added = [
        task.party.name
        for task in job.tasks
        if task.kind == EVALUATE.rules.kind
        and task.state == TaskState.DONE
        and task.finished_at is not None
        and task.finished_at > last.finished_at
    ]
    return Revised(before=last.result["chosen"], added=tuple(sorted(added)))


def _by_party(missing: Sequence[Missing]) -> list[tuple[str, str]]:
    return sorted((entry.party, entry.reason) for entry in missing)


def _read_card(file: KeptFile) -> Json:
    try:
        return split_card(file.read(0, file.size).decode(), where=CARD)[0]
    except UnicodeDecodeError:
        raise HubError("card.encoding", "not UTF-8 text", where=CARD) from None
