"""What the API says about models and revisions."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from suture_contract.model.metadata import Name
from suture_service.keys.schemas import FINGERPRINT, FlagOut
from suture_service.parties.schemas import RequestBody

Visibility = Literal["private", "all"]
#: How a party that may read a model gets its files: at once, on asking, or when its owner accepts.
Gate = Literal["open", "auto", "manual"]
#: As many parties as a model is shared with by name.
MOST_READERS = 200
REVISION = "3f0a52c4e8b71d96a0c5e3f2b4d6879a1c2e4f60"
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
METADATA: dict[str, Any] = {
    "schema": "suture.model/1",
    "task": "classification",
    "inputs": {"image": {"format": "image", "num_channels": 1, "spatial_shape": [8, 8]}},
    "outputs": {"digit": {"format": "logits", "num_channels": 2}},
    "labels": ["0", "1"],
    "license": "Apache-2.0",
}


class ModelOut(BaseModel):
    """A model with its newest revision."""

    id: str = Field(examples=["north/digits"])
    party: str = Field(examples=["north"])
    name: str = Field(examples=["digits"])
    visibility: Visibility
    gated: Gate = Field(description="Whether its files must be asked for, and who decides: nobody, or its owner.")
    shared_with: list[str] = Field(description="Parties that may read a private model; shown to its owner only.")
    revision: str = Field(description="The newest revision.", examples=[REVISION])
    metadata: dict[str, Any] = Field(description="Its `suture.json`.", examples=[METADATA])
    flags: list[FlagOut] = Field(default=[], description="Why its newest revision should not be used.")
    created_at: datetime
    updated_at: datetime


class ModelChange(RequestBody):
    """What an owner may change; what is left out stays.

    `shared_with` is the whole list. Two who change it at once leave the list of the later one: `share_with` and
    `stop_sharing_with` name what changes alone, and leave what others changed meanwhile.
    """

    visibility: Visibility | None = None
    gated: Gate | None = None
    shared_with: list[Name] | None = Field(default=None, max_length=MOST_READERS, examples=[["south"]])
    share_with: list[Name] = Field(
        default=[], max_length=MOST_READERS, description="Parties that may read it, too.", examples=[["south"]]
    )
    stop_sharing_with: list[Name] = Field(
        default=[], max_length=MOST_READERS, description="Parties that may read it no longer.", examples=[["east"]]
    )

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.shared_with is not None and (self.share_with or self.stop_sharing_with):
            raise ValueError("name the whole list in shared_with, or what changes of it in the other two")
        if both := {*self.share_with} & {*self.stop_sharing_with}:
            raise ValueError(f"share_with and stop_sharing_with both name {min(both)}")
        return self


class FileOut(BaseModel):
    """A file of a revision; `size` in bytes."""

    name: str = Field(examples=["model.safetensors"])
    size: int = Field(examples=[81244])
    sha256: str = Field(examples=[DIGEST])


class RevisionOut(BaseModel):
    """An immutable commit of a model."""

    id: str = Field(
        description="First 40 hex digits of the sha256 over `name\\0sha256\\n` of its files, sorted by name.",
        examples=[REVISION],
    )
    repo: str = Field(examples=["north/digits"])
    created_at: datetime
    created_by: str = Field(examples=["north"])
    metadata: dict[str, Any] = Field(description="Its `suture.json`.", examples=[METADATA])
    files: list[FileOut]
    job: str | None = Field(default=None, description="The job that made it, when the hub published a job's result.")
    signed_by: str | None = Field(
        default=None, description="The fingerprint of its owner's key.", examples=[FINGERPRINT]
    )
    flags: list[FlagOut] = Field(default=[], description="Why it should not be used.")
