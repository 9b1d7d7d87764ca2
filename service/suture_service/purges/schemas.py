"""What the API and the commands say about purges."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator

from suture_service.keys.schemas import Reason
from suture_service.models.schemas import DIGEST, REVISION
from suture_service.parties.schemas import RequestBody

#: From where content is taken: one model, all models of its party, or all models of the hub.
Scope = Literal["model", "party", "hub"]


class PurgeIn(RequestBody):
    """What is to go, and why. It cannot be undone."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = Field(
        default=None, description="All content that was ever under this path.", examples=["patients.csv"]
    )
    revision: Annotated[str, StringConstraints(pattern="^[0-9a-f]{7,40}$")] | None = Field(
        default=None, description="A revision or a commit, with the content that no other one holds."
    )
    reason: Reason = Field(
        description="Everyone who sees the model reads this, and the audit log keeps it: write no names into it.",
        examples=["it held rows of patients"],
    )
    dry_run: bool = Field(default=False, description="Only say what would go.")

    @model_validator(mode="after")
    def _by_one(self) -> Self:
        if (self.path is None) == (self.revision is None):
            raise ValueError("give either the path or the revision")
        return self


class RevisionAt(BaseModel):
    """A revision of a model."""

    repo: str = Field(examples=["north/digits"])
    revision: str = Field(examples=[REVISION])


class PurgeOut(BaseModel):
    """What went, or would go."""

    id: str | None = Field(description="Null where nothing was purged: after a dry run.", examples=["purge_5f0c2a9b"])
    repo: str = Field(examples=["north/digits"])
    done: bool = Field(description="Whether the store no longer holds it.")
    versions_kept: bool = Field(
        default=False,
        description="Whether the store, a bucket, keeps it as an old version; only the hub's operator can remove that.",
    )
    revisions: list[RevisionAt] = Field(description="Revisions that held it; none of their files can be had.")
    digests: list[str] = Field(description="The sha256 of each content.", examples=[[DIGEST]])
    bytes: int = Field(description="How much that was.")
    descendants: list[RevisionAt] = Field(description="What was made of these revisions, and is flagged now.")
    jobs: list[str] = Field(description="Jobs that needed these revisions, and end.")


class KeptPurge(BaseModel):
    """A purge as a restore applies it again: to a backup that is older than it."""

    id: str = Field(pattern="^purge_[0-9a-f]{16}$")
    model_id: int | None
    repo: str
    scope: Scope
    at: datetime
    by: str
    reason: str
    revisions: list[str]
    digests: list[str]
    done_at: datetime | None
