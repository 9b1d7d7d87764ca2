"""What the commands of a hub's operator print as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class AddedParty:
    """A new party."""

    name: str


@dataclass(frozen=True)
class PartySite:
    """A site of a party, and whether it asked for work recently; `version` is null where it said none."""

    name: str
    online: bool
    suspended: bool
    last_seen_at: datetime | None
    version: str | None


@dataclass(frozen=True)
class ListedParty:
    """A party with its sites; `suspended` where none of its tokens opens anything for now."""

    name: str
    created_at: datetime
    suspended: bool
    sites: list[PartySite]


@dataclass(frozen=True)
class CreatedToken:
    """A new token: this is the only time that it is shown."""

    id: str
    token: str


@dataclass(frozen=True)
class ListedToken:
    """A token of a party, or of one of its sites, without the secret."""

    id: str
    name: str | None
    site: str | None
    roles: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class AddedSite:
    """A new site with its token: this is the only time that it is shown."""

    party: str
    site: str
    token: str


@dataclass(frozen=True)
class ListedSite:
    """A site, and whether it asked for work recently; `version` is null where it said none."""

    party: str
    site: str
    online: bool
    suspended: bool
    last_seen_at: datetime | None
    version: str | None


@dataclass(frozen=True)
class AuditHead:
    """The number of the log's newest entry, and its digest."""

    entries: int
    digest: str


@dataclass(frozen=True)
class ListedEntry:
    """An entry of the log: when, who, from where, did what to which; `digest` covers it and the one before.

    `redacted_by` is the entry that says that what this one said of a person was taken out.
    """

    id: int
    at: str
    actor: str
    party: str | None
    token_id: str | None
    address: str | None
    request_id: str | None
    action: str
    what: str
    owner: str | None
    detail: dict[str, Any]
    redacted_by: int | None
    digest: str
