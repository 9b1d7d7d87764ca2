"""`match`: the requester's site finds out where the models can be joined, before others are asked to contribute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field

from suture_contract.contributions import Matched
from suture_service.errors import HubError
from suture_service.kinds.checks import parse
from suture_service.kinds.kind import Accepted, TaskContext, TaskKind, TaskResult, results_of
from suture_service.kinds.schemas import SpecMember
from suture_service.states import JobState, Overdue, Rules
from suture_service.tables import Job, TaskFile


class MatchSpec(BaseModel):
    """Find out where a fit with these options would join the models."""

    members: list[SpecMember]
    dataset: str = Field(examples=["digits"])
    options: dict[str, Any]


class Match(TaskKind):
    """The hub's side of `match`."""

    rules = Rules("match", during=JobState.MATCHING, overdue=Overdue.WAITED_FOR)
    spec_model = MatchSpec

    def asked(self, job: Job) -> Iterable[tuple[str, str | None]]:
        """The requester."""
        yield job.requester.name, job.dataset

    def spec(self, work: TaskContext, start: Mapping[str, TaskFile]) -> MatchSpec:
        """Where, on the requester's data."""
        return MatchSpec(members=list(work.members), dataset=work.job.dataset, options=work.job.options)

    def check(self, work: TaskContext, result: TaskResult) -> Accepted:
        """One norm for each placement, and of members that there are."""
        document = parse(Matched, result.document, "document")
        if len(document.norms) != len(document.placements):
            raise HubError("result.invalid", "there is one norm for each placement", where="document.norms")
        for placement in document.placements:
            if any(int(index) >= len(work.members) for index in placement):
                raise HubError("result.invalid", "a member is named that there is not", where="document.placements")
        return Accepted(document.model_dump(mode="json"))


KIND = Match()


def matched(job: Job) -> Matched:
    """Return what the requester's site found out about where the models can be joined."""
    return Matched.model_validate(next(iter(results_of(job, KIND.rules.kind).values())))
