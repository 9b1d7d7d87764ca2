"""What the API and the commands say about parties and sites that change or go."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from suture_contract.model.metadata import Name
from suture_service.parties.schemas import MAX_INTEGER, RequestBody


class RenameIn(RequestBody):
    """A new name."""

    name: Name = Field(examples=["north-2"])


class Affected(BaseModel):
    """What a party or a site has, and what becomes of it."""

    party: str = Field(examples=["north"])
    site: str | None = Field(default=None, examples=["north-gpu"])
    models: int = Field(description="Models of the party.")
    jobs: int = Field(description="Jobs that it asked for and that have not ended.")
    tasks: int = Field(description="Tasks for it that have not ended, in jobs of all parties.")
    sites: int
    tokens: int = Field(description="Tokens that still open something.")
    people: int = Field(description="People who may sign in for it.")
    keys: int = Field(description="Public keys that are not revoked.")
    consequences: list[str] = Field(description="What becomes of them, in words.")


class QuotaIn(RequestBody):
    """What a party may fill; null is the hub's own limit."""

    max_bytes: Annotated[int, Field(ge=0, lt=2**53)] | None = Field(examples=[1099511627776])
    max_jobs: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(examples=[50])


class QuotaOut(BaseModel):
    """What a party may fill, and what it does; sizes in bytes."""

    party: str = Field(examples=["north"])
    max_bytes: int = Field(description="All its files together; equal ones count once.")
    bytes: int = Field(description="What they take now, with what it sent and nobody collected yet.")
    max_jobs: int = Field(description="Jobs that have not ended.")
    jobs: int
    own_limits: bool = Field(description="Whether one of the limits was set for this party.")
