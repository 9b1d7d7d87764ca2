"""What the API says about access to gated models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from suture_contract.model.metadata import Text
from suture_service.parties.schemas import RequestBody

AccessState = Literal["pending", "accepted", "refused"]
Words = Annotated[Text, Field(max_length=1000)]


class AccessIn(RequestBody):
    """A request for the files of a gated model."""

    reason: Words = Field(min_length=1, description="Why; its owner reads this.", examples=["to stitch it with ours"])


class Decision(RequestBody):
    """What an owner says to a request; a refusal ends access that was granted before."""

    state: Literal["accepted", "refused"]
    answer: Words = Field(default="", description="The asker reads this.")
    days: int | None = Field(default=None, ge=1, le=3660, description="Until it ends; without: until it is refused.")


class AccessOut(BaseModel):
    """A request and what came of it."""

    model: str = Field(examples=["north/digits"])
    party: str = Field(description="Who asks.", examples=["south"])
    state: AccessState
    reason: str
    answer: str
    requested_at: datetime
    decided_at: datetime | None
    expires_at: datetime | None
