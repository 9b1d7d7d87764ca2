"""`contribute`: another party's moments of its features, for the fit of the requester."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy.orm import Session

from suture_contract.contributions import ContributionDocument, Described
from suture_contract.kinds import MOMENTS
from suture_service.errors import HubError
from suture_service.kinds.checks import header_of, parse, same
from suture_service.kinds.kind import Accepted, TaskContext, TaskKind, TaskResult
from suture_service.kinds.match import matched
from suture_service.kinds.repository import files_of
from suture_service.kinds.schemas import SpecMember
from suture_service.settings import Settings
from suture_service.states import JobState, Overdue, Rules
from suture_service.tables import Job, TaskFile


class ContributeSpec(BaseModel):
    """Contribute moments at `placements`; `dataset` is null where the site chooses, `norms` are the requester's."""

    members: list[SpecMember]
    dataset: str | None
    placements: list[dict[str, str]] = Field(examples=[[{"0": "n4", "1": "n7"}]])
    norms: list[float]


class Contribute(TaskKind):
    """The hub's side of `contribute`."""

    rules = Rules("contribute", during=JobState.CONTRIBUTING, overdue=Overdue.LEFT_OUT)
    spec_model = ContributeSpec

    def limit(self, name: str, settings: Settings) -> int:
        """Moments are as large as stitches."""
        return settings.max_stitches_bytes

    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """Those whom the requester has named, if there is a place where they could contribute."""
        if matched(job).placements:
            for entry in job.contribute_from:
                yield entry["party"], entry["dataset"]

    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> ContributeSpec:
        """At the places that the requester's site has found."""
        where = matched(work.job)
        return ContributeSpec(
            members=list(work.members),
            dataset=work.task.dataset,
            placements=list(where.placements),
            norms=list(where.norms),
        )

    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """The file says of itself that it is of this job's models and places."""
        document = parse(ContributionDocument, result.document, "document")
        header = header_of(result.files[MOMENTS], MOMENTS, "moments")
        try:
            described = Described.model_validate_json(header["__metadata__"]["described"])
        except (KeyError, TypeError, ValidationError):
            raise HubError("moments.invalid", "the file does not say what it is", where=MOMENTS) from None
        privacy = described.privacy
        noise = (privacy.epsilon, privacy.delta) if privacy is not None else (None, None)
        for field, actual, expected in (
            ("members", described.members, tuple(member.sha256 for member in work.members)),
            ("placements", described.placements, matched(work.job).placements),
            ("n", described.n, document.n),
            ("privacy", noise, (document.epsilon, document.delta)),
        ):
            same(field, actual, expected, MOMENTS, "moments.mismatch")
        return Accepted(document.model_dump(mode="json", exclude_none=True))

    def as_kept(self, document: dict[str, Any]) -> dict[str, Any]:
        """Without what is not said."""
        return {name: value for name, value in document.items() if value is not None}


KIND = Contribute()


def contributed_files(session: Session, job_id: str) -> dict[str, TaskFile]:
    """Return what other parties have contributed to a job's fit, by party."""
    return dict(files_of(session, job_id, KIND.rules.kind))
