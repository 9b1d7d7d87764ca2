"""What the API says about tasks, as sites see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from suture_contract.kinds import Kind
from suture_service.kinds import Spec
from suture_service.kinds.schemas import JOB
from suture_service.models.schemas import DIGEST
from suture_service.parties.schemas import MAX_INTEGER, RequestBody
from suture_service.states import TaskState

Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}(\.[a-z0-9_]{1,50})?$")]
CorrelationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Fence = Annotated[
    int, Field(ge=0, le=MAX_INTEGER, description="The `fence` of the lease; a stale one gets 409 `task.fenced`.")
]
StepName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_ .:/()-]{1,100}$")]
Amount = Annotated[int, Field(ge=0, le=10**15)]


class LeaseIn(RequestBody):
    """How long to wait for work."""

    wait: Annotated[float, Field(ge=0, le=25)] = 0


class JobRef(BaseModel):
    """Whose job it is."""

    id: str = Field(examples=[JOB])
    requester: str = Field(examples=["north"])


class TaskLease(BaseModel):
    """A task that this site holds until `lease_expires_at`; each heartbeat moves that on."""

    id: str = Field(examples=["task_0c9d2e3a48576b1f"])
    kind: Kind
    attempt: int
    fence: int
    lease_seconds: float = Field(examples=[60])
    lease_expires_at: datetime
    job: JobRef
    spec: Spec


class HeartbeatIn(RequestBody):
    """A heartbeat."""

    fence: Fence


class ProgressIn(RequestBody):
    """How far the task is; also a heartbeat."""

    fence: Fence
    step: StepName = Field(examples=["moments"])
    done: Amount
    total: Amount
    seconds_left: Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)] | None = None


class Heartbeat(BaseModel):
    """The lease goes on until then; with `cancel`, stop working on the task."""

    lease_expires_at: datetime
    cancel: bool


class WaitIn(RequestBody):
    """What a task waits for: that a person at the site approves it, or releases its result."""

    fence: Fence
    waits_for: Literal["approval", "release"]


class PutFile(BaseModel):
    """What the hub received."""

    name: str = Field(examples=["candidates.json"])
    size: int
    sha256: str = Field(examples=[DIGEST])


class ResultIn(RequestBody):
    """The result: for `evaluate` an Evaluation, for `fit` `{"n": samples}`, for `compose` `{"chosen": candidate}`.

    For `match` where models can be joined, for `contribute` what the file was made of.
    """

    fence: Fence
    document: dict[str, Any] = Field(examples=[{"n": 412}])


class FailIn(RequestBody):
    """The site could not do it; `retryable` if another attempt may succeed."""

    fence: Fence
    code: Code = Field(examples=["child.killed"])
    correlation_id: CorrelationId | None = None
    retryable: bool = False


class DeclineIn(RequestBody):
    """The site's policy does not allow it."""

    fence: Fence
    code: Code = Field(examples=["policy.denied"])


class TaskEnded(BaseModel):
    """The task after this."""

    id: str
    state: TaskState
