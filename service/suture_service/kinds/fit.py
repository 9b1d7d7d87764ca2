"""`fit`: the requester's site learns candidates, with what other parties have contributed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from suture_contract.contributions import ContributionDocument
from suture_contract.documents import CandidateSet, Contributed, FitDocument
from suture_contract.kinds import CANDIDATES, STITCHES, contributed_by
from suture_contract.model.metadata import ModelMetadata
from suture_service.errors import HubError
from suture_service.kinds import contribute
from suture_service.kinds.checks import header_of, parse, read_document, same
from suture_service.kinds.kind import Accepted, TaskContext, TaskKind, TaskResult, results_of
from suture_service.kinds.repository import files_of
from suture_service.kinds.schemas import SpecFile, SpecMember
from suture_service.settings import Settings
from suture_service.states import JobState, Overdue, Rules
from suture_service.storage.blobs import KeptFile
from suture_service.tables import Job, Json, TaskFile


class ContributionFile(SpecFile, ContributionDocument):
    """What a party contributed: the file `moments.<party>` of the job, and what that party says of it."""


class FitSpec(BaseModel):
    """Fit candidates on a dataset of the requester's site, with what other parties contributed."""

    members: list[SpecMember]
    dataset: str = Field(examples=["digits"])
    options: dict[str, Any]
    contributions: dict[str, ContributionFile] = {}


class Fit(TaskKind):
    """The hub's side of `fit`."""

    rules = Rules("fit", during=JobState.FITTING, overdue=Overdue.WAITED_FOR)
    spec_model = FitSpec

    def limit(self, name: str, settings: Settings) -> int:
        """Stitches may be larger than a document."""
        return settings.max_stitches_bytes if name == STITCHES else super().limit(name, settings)

    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """The requester."""
        yield job.requester.name, job.dataset

    def start(self, session: Session, job_id: str) -> Mapping[str, TaskFile]:
        """What others have contributed; the site that fits alone may have it."""
        files = contribute.contributed_files(session, job_id)
        return {contributed_by(party): file for party, file in files.items()}

    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> FitSpec:
        """On the requester's data, with the contributions there are."""
        job, stated = work.job, _contributions(work.job)
        contributions = {
            party: ContributionFile(sha256=file.sha256, size=file.size, **document)
            for party, document in sorted(stated.items())
            if (file := start.get(contributed_by(party))) is not None
        }
        return FitSpec(
            members=list(work.members), dataset=job.dataset, options=job.options, contributions=contributions
        )

    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """Candidates and stitches fit the job and each other; only what was contributed is named."""
        document = parse(FitDocument, result.document, "document")
        candidates = read_candidates(result.files[CANDIDATES])
        task = ModelMetadata.model_validate(work.job.members[0].revision.content).task
        _agrees("members", candidates.members, work.refs)
        _agrees("task", candidates.task, task)
        count = len(work.members)
        for candidate in candidates.candidates:
            if any(index >= count for index in candidate.members):
                problem = f"{candidate.id} names a member that there is not"
                raise HubError("candidates.invalid", problem, where=CANDIDATES)
        if len({candidate.id for candidate in candidates.candidates}) != len(candidates.candidates):
            raise HubError("candidates.invalid", "two candidates have the same id", where=CANDIDATES)
        contributions = _contributions(work.job)
        for contribution in candidates.contributions or ():
            stated = contribution.model_dump(mode="json", exclude={"party"}, exclude_none=True)
            announced = contributions.get(contribution.party)
            # What a fit does not use of a contribution, such as the number of patients, it does not repeat.
            expected = announced and {
                name: value for name, value in announced.items() if name in Contributed.model_fields
            }
            _agrees(f"contributions.{contribution.party}", stated, expected)
        _check_stitches(result.files[STITCHES], candidates)
        return Accepted(document.model_dump())


KIND = Fit()


def fitted_files(session: Session, job_id: str) -> dict[str, TaskFile]:
    """Return what a job's finished fit has left, by file name."""
    return {file.name: file for _, file in files_of(session, job_id, KIND.rules.kind)}


def candidates_of(start: Mapping[str, TaskFile]) -> dict[str, SpecFile]:
    """Return how the specs of tasks that start from the fit name what it has left."""
    return {name: SpecFile.of(start[name]) for name in KIND.files}


def read_candidates(file: KeptFile) -> CandidateSet:
    """Return the candidates in a file; raises `HubError` (`candidates.invalid`)."""
    return read_document(CandidateSet, file, CANDIDATES, "candidates.invalid")


def _contributions(job: Job) -> dict[str, Json]:
    return results_of(job, contribute.KIND.rules.kind)


def _agrees(field: str, actual: object, expected: object) -> None:
    same(field, actual, expected, CANDIDATES, "candidates.mismatch")


def _check_stitches(file: KeptFile, candidates: CandidateSet) -> None:
    """Check that the file is whole and holds the tensors that the candidates name."""
    header = header_of(file, STITCHES, "stitches")
    named = {
        tensor
        for candidate in candidates.candidates
        for match in candidate.matches
        for stitch in match.stitches
        for tensor in (stitch.weight, stitch.bias)
    }
    if absent := named - header.keys():
        raise HubError("stitches.invalid", f"tensor {min(absent)} is missing", where=STITCHES)
