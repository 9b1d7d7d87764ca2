"""What the API says about jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from suture_contract.fit_options import FitOptions
from suture_contract.kinds import Kind
from suture_contract.model.metadata import Name, Repo, Revision, check_name
from suture_service.kinds.schemas import JOB, MemberOut, MissingOut
from suture_service.models.schemas import REVISION
from suture_service.parties.schemas import RequestBody
from suture_service.states import JobState, TaskState

WEEKS_4 = 28 * 24 * 3600
_LEASED = {"kind": "fit", "party": "north", "from": "open", "state": "leased", "attempt": 1, "by": "north/main"}


def check_asked(text: str) -> str:
    """Return `party` or `party/dataset` as it is; raise `ValueError` otherwise."""
    party, slash, dataset = text.partition("/")
    check_name(party)
    if slash:
        check_name(dataset)
    return text


def read_options(value: Any) -> Any:
    """Return the options of an object, checked; anything else as it is. Raises `SutureError` `job.options`."""
    return FitOptions.read(value) if isinstance(value, dict) else value


class JobModel(RequestBody):
    """A model to stitch; without a revision, the newest."""

    repo: Repo = Field(examples=["north/digits"])
    revision: Revision | None = Field(default=None, examples=[REVISION])


class JobIn(RequestBody):
    """What a party asks for."""

    models: Annotated[list[JobModel], Field(min_length=2, max_length=16)]
    dataset: Name = Field(description="Name of a dataset at the requester's own site.", examples=["digits"])
    evaluate_at: Annotated[list[Annotated[str, AfterValidator(check_asked)]], Field(max_length=64)] = Field(
        default=[],
        description="Other parties to evaluate, as `party` or `party/dataset`. The requester always does.",
        examples=[["south"]],
    )
    contribute_from: Annotated[list[Annotated[str, AfterValidator(check_asked)]], Field(max_length=64)] = Field(
        default=[],
        description="Other parties to contribute moments of their features to the fit, as `party` or `party/dataset`.",
        examples=[["south"]],
    )
    publish_as: Name | None = Field(
        default=None, description="Name of the result under the requester; `stitched-…` by default.", examples=["both"]
    )
    evaluate_within: Annotated[int, Field(ge=1, le=WEEKS_4)] = Field(
        default=86400, description="Seconds other parties have to answer, each time that they are asked."
    )
    options: Annotated[FitOptions, BeforeValidator(read_options)] = Field(
        default=FitOptions(), description="Options of the fit.", examples=[{"seed": 0, "refine_steps": 100}]
    )


class ProgressOut(BaseModel):
    """How far a task is."""

    step: str = Field(examples=["moments"])
    done: int = Field(examples=[12])
    total: int = Field(examples=[40])
    seconds_left: float | None = Field(default=None, examples=[31.5])


class WaitOut(BaseModel):
    """Why a task is not worked on: its site is away since then (or never came), has other work, or asks a person."""

    why: Literal["site_offline", "queued", "approval", "release"]
    since: datetime | None = None


class TaskOut(BaseModel):
    """A task of the job."""

    id: str = Field(examples=["task_0c9d2e3a48576b1f"])
    kind: Kind
    party: str = Field(examples=["north"])
    state: TaskState
    attempt: int
    progress: ProgressOut | None = None
    reason: str | None = Field(default=None, description="Why it was not done, or not the first time.")
    waits: WaitOut | None = Field(default=None, description="Why it waits; told of a single job, not in lists.")


class ResultOut(BaseModel):
    """A published stitched ensemble; a late answer leads to a new one, whose report says what changed."""

    repo: str = Field(examples=["north/both"])
    revision: str = Field(examples=[REVISION])
    version: int = Field(description="Of the report: 1, and one more with every late answer.", examples=[1])
    created_at: datetime


class JobError(BaseModel):
    """Why a job failed, and where; under `correlation_id` the site's own log has the details."""

    code: str = Field(examples=["dataset.unknown"])
    correlation_id: str | None = None
    party: str | None = Field(default=None, examples=["north"])
    site: str | None = Field(default=None, examples=["main"])
    task: Kind | None = None


class JobOut(BaseModel):
    """A job and its tasks."""

    id: str = Field(examples=[JOB])
    requester: str = Field(examples=["north"])
    state: JobState
    models: list[MemberOut]
    dataset: str = Field(examples=["digits"])
    publish_as: str = Field(description="What the result is called.", examples=["north/both"])
    report_for: list[str] = Field(
        description="Who reads the report: the requester, and who evaluates. The model is the requester's to share.",
        examples=[["north", "south"]],
    )
    evaluate_at: list[str] = Field(examples=[["south"]])
    contribute_from: list[str] = Field(examples=[["south"]])
    created_at: datetime
    finished_at: datetime | None
    tasks: list[TaskOut]
    result: ResultOut | None = Field(description="The newest of `results`.")
    results: list[ResultOut]
    missing: list[MissingOut]
    error: JobError | None


class EventOut(BaseModel):
    """Something that happened in a job.

    `job` and `task` events carry the change: `from` (null for something new) and `state`; `by`, a party, a site or
    `hub`, and its `token`'s id; and `reason` where there is one. Of `progress` events only the latest of each task is
    kept.
    """

    seq: int
    at: datetime
    task: str | None = None
    kind: str = Field(examples=["task"])
    data: dict[str, Any] = Field(examples=[_LEASED])


class EventsOut(BaseModel):
    """What happened after event `after`; ask again with `after` set to `next`."""

    items: list[EventOut]
    next: int
