"""What the API says about people and signing in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from suture_contract.model.metadata import Name
from suture_contract.unseen import legible
from suture_service.auth import Role
from suture_service.parties.schemas import RequestBody

Subject = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,255}$")]
Email = Annotated[
    str,
    StringConstraints(pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+$", max_length=254, to_lower=True),
    AfterValidator(legible),
]
Roles = Annotated[list[Role], Field(max_length=7, examples=[["publisher", "requester"]])]


class LoginWith(BaseModel):
    """Where people of this hub sign in."""

    issuer: str = Field(description="The identity provider.", examples=["https://id.example"])
    client_id: str = Field(description="As whom the hub is known there.", examples=["suture"])


class LoginIn(RequestBody):
    """What the identity provider gave to somebody who signed in there."""

    id_token: str = Field(max_length=16384, description="An ID token, at most ten minutes old. It is taken once.")
    nonce: str | None = Field(default=None, max_length=255, description="The nonce that was sent to the provider.")
    party: Name | None = Field(default=None, description="For which party, if more than one knows this person.")


class LoggedIn(BaseModel):
    """The only answer that ever holds the token."""

    id: str = Field(examples=["tok_5f0c2a9be1d34c77"])
    token: str = Field(description="Shown once; the hub keeps a digest.", examples=["suture_party_…"])
    party: str = Field(examples=["north"])
    roles: list[str] = Field(examples=[["publisher", "reader"]])
    expires_at: datetime


class RolesIn(RequestBody):
    """The roles a person has from now on; every person may read what the party may read."""

    roles: Roles


class PersonIn(RolesIn):
    """A person who may sign in for a party, known to the identity provider by a subject or a verified e-mail."""

    name: Name = Field(description="How tokens and the audit log call this person.", examples=["a.berg"])
    subject: Subject | None = Field(default=None, description="The provider's `sub`; never given to somebody else.")
    email: Email | None = Field(default=None, description="Only until the first login, which notes the subject.")

    @model_validator(mode="after")
    def _by_one(self) -> Self:
        if (self.subject is None) == (self.email is None):
            raise ValueError("give either the subject or the email")
        return self


class PersonOut(BaseModel):
    """A person who may sign in for a party."""

    name: str = Field(examples=["a.berg"])
    issuer: str = Field(examples=["https://id.example"])
    subject: str | None
    email: str | None
    roles: list[str]
    created_at: datetime
    created_by: str


class PersonToken(BaseModel):
    """A token that a login of a person gave, without the secret."""

    id: str
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


class PersonEntry(BaseModel):
    """An entry of the audit log that names a person, or that one of the person's tokens led to."""

    id: int
    at: datetime
    action: str
    what: str
    address: str | None


class PersonData(BaseModel):
    """All that the hub's data hold about a person; `registered` is null once the person was removed."""

    party: str
    name: str
    registered: PersonOut | None
    tokens: list[PersonToken]
    entries: list[PersonEntry]
