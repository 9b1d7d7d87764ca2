"""What the API says about keys, and about what was taken back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from suture_contract.model.metadata import Name, Text
from suture_contract.model.signature import MAX_KEY
from suture_service.parties.schemas import RequestBody

FINGERPRINT = "170f6c676af5cc4931cbb06c189ec93291c7f2be75b136bfc42c6298d44c2694"
Reason = Annotated[Text, Field(min_length=1, max_length=1000)]


class KeyIn(RequestBody):
    """A public key."""

    name: Name = Field(description="For people, to tell keys apart.", examples=["north-2026"])
    public_key: str = Field(
        max_length=MAX_KEY,
        description="In PEM, of the curve P-256, P-384 or P-521.",
        examples=["-----BEGIN PUBLIC KEY-----\n…\n-----END PUBLIC KEY-----\n"],
    )


class KeyOut(BaseModel):
    """A party's public key. Readers that trust it compare the fingerprint with what the party tells them itself."""

    fingerprint: str = Field(description="The sha256 of `public_key`.", examples=[FINGERPRINT])
    party: str = Field(examples=["north"])
    name: str = Field(examples=["north-2026"])
    public_key: str
    created_at: datetime
    revoked_at: datetime | None
    revoked_reason: str | None


class TakenBack(RequestBody):
    """Why a key is revoked, or a revision withdrawn. It cannot be undone."""

    reason: Reason = Field(description="Everyone who sees the model reads this.", examples=["trained on wrong labels"])


#: What became of a flagged revision, in words.
FLAGGED = {"withdrawn": "was withdrawn", "key_revoked": "is signed with a revoked key", "purged": "was purged"}


FlagKind = Literal["withdrawn", "key_revoked", "purged"]


class FlagOut(BaseModel):
    """Why a revision should not be used: it, or one that it was made of, was withdrawn or purged, or the key of its
    signature was revoked."""

    kind: FlagKind
    repo: str | None = Field(description="Which model; null if it is not shared with you.", examples=["north/digits"])
    revision: str | None = Field(description="Which revision of it.")
    reason: str
    at: datetime

    @property
    def words(self) -> str:
        """The flag as people read it."""
        what = self.repo or "a model that is not shared with you"
        return f"{what} {FLAGGED[self.kind]}" + (f" ({self.reason})" if self.reason else "")


class LineageModel(BaseModel):
    """A revision in a lineage; without names where it is not shared with you."""

    repo: str | None = Field(examples=["north/digits"])
    revision: str | None
    flags: list[FlagKind] = Field(description="Why it should not be used itself; what it was made of has its own.")


class LineageLink(BaseModel):
    """`member` went into `model`; both are places in `models`."""

    model: int = Field(examples=[0])
    member: int = Field(examples=[1])


class LineageOut(BaseModel):
    """What a revision was made of, and what was made of it that is shared with you."""

    models: list[LineageModel] = Field(description="The revision itself comes first.")
    links: list[LineageLink]
    complete: bool = Field(description="False where there are more than 200 each way.")
