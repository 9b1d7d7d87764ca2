"""What the API says about parties and tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from suture_contract.model.metadata import Name
from suture_service.auth import Role

#: The largest number an integer column holds.
MAX_INTEGER = 2**31 - 1


class RequestBody(BaseModel):
    """A request body: unknown fields are refused, so that a typo never passes silently."""

    model_config = ConfigDict(extra="forbid")


class WhoAmI(BaseModel):
    """What the presented token is."""

    party: str = Field(examples=["north"])
    kind: Literal["party", "site"]
    roles: list[str] = Field(examples=[["publisher", "requester"]])
    site: str | None = Field(default=None, examples=[None])


class SiteState(BaseModel):
    """A site, as every party sees it."""

    name: str = Field(examples=["north-gpu"])
    online: bool = Field(description="It asked for work within the last 90 seconds.")
    suspended: bool = Field(default=False, description="It is not let in for now.")
    last_seen_at: datetime | None = Field(
        default=None, description="When it last asked for work; its own party and operators are told."
    )
    version: str | None = Field(
        default=None,
        description="Of Suture, as it last said; null where it said none. Its own party and operators are told.",
        examples=["0.1.0"],
    )


class PartyOut(BaseModel):
    """A party, as every party sees it."""

    name: str = Field(examples=["north"])
    created_at: datetime
    suspended: bool = Field(default=False, description="None of its tokens opens anything for now.")
    sites: list[SiteState]


class PartyIn(RequestBody):
    """A new party."""

    name: Name = Field(examples=["north"])


class TokenIn(RequestBody):
    """A new token; every valid token may read what its party may read."""

    roles: list[Role] = Field(max_length=7, examples=[["publisher", "requester"]])
    name: Name | None = Field(default=None, description="For people, to tell tokens apart.", examples=["laptop"])
    days: int | None = Field(default=None, ge=1, le=3660, description="Until it ends; without: until it is revoked.")


class TokenMade(BaseModel):
    """The only answer that ever holds the token."""

    id: str = Field(examples=["tok_5f0c2a9be1d34c77"])
    token: str = Field(description="Shown once; the hub keeps a digest.", examples=["suture_party_…"])


class TokenOut(BaseModel):
    """A token without its secret."""

    id: str = Field(examples=["tok_5f0c2a9be1d34c77"])
    name: str | None
    site: str | None
    roles: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None
