"""What the API says of models and files in the specs of tasks of every kind."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from suture_service.models.schemas import DIGEST, METADATA, REVISION
from suture_service.states import MissingReason
from suture_service.tables import TaskFile

JOB = "job_6b1f0c9d2e3a4857"


class MemberOut(BaseModel):
    """A model the job stitches; `sha256` is that of its `model.safetensors`."""

    repo: str = Field(examples=["north/digits"])
    revision: str = Field(examples=[REVISION])
    sha256: str = Field(examples=[DIGEST])


class SpecMember(MemberOut):
    """A model to work with; `size` in bytes is that of its `model.safetensors`."""

    size: int = Field(examples=[81244])
    party: str = Field(examples=["north"])
    metadata: dict[str, Any] = Field(description="Its `suture.json`.", examples=[METADATA])


class SpecFile(BaseModel):
    """A file of the job, under `/v1/jobs/{id}/files/`."""

    sha256: str = Field(examples=[DIGEST])
    size: int

    @classmethod
    def of(cls, file: TaskFile) -> SpecFile:
        """Return how a spec speaks of a file."""
        return SpecFile(sha256=file.sha256, size=file.size)


class MissingOut(BaseModel):
    """A party that was asked to evaluate and has no column in the report."""

    party: str = Field(examples=["south"])
    reason: MissingReason
