"""The SQL of authentication: the token behind a secret."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select, update
from sqlalchemy.orm import Session, joinedload

from suture_service.tables import Party, Site, Token


class KnownToken(NamedTuple):
    """A token that may have ended, with the names of its party and site."""

    id: str
    party_id: int
    party: str
    site_id: int | None
    site: str | None
    roles: list[str]
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    #: Since when its party, or its site, is suspended.
    suspended_at: datetime | None


#: Put together once, which takes longer than to ask it: every request does.
KNOWN = (
    select(
        Token.id,
        Token.party_id,
        Party.name,
        Token.site_id,
        Site.name,
        Token.roles,
        Token.expires_at,
        Token.revoked_at,
        Token.last_used_at,
        func.coalesce(Party.suspended_at, Site.suspended_at),
    )
    .join(Party, Party.id == Token.party_id)
    .outerjoin(Site, Site.id == Token.site_id)
)
_BY_SECRET = KNOWN.where(Token.secret_sha256 == bindparam("secret_sha256"))


def look_up(session: Session, secret_sha256: str) -> KnownToken | None:
    """Return the token with this digest, live or not."""
    row = session.execute(_BY_SECRET, {"secret_sha256": secret_sha256}).one_or_none()
    return None if row is None else KnownToken._make(row)


def is_live(now: datetime) -> ColumnElement[bool]:
    """The condition under which a token opens anything."""
    return and_(Token.revoked_at.is_(None), or_(Token.expires_at.is_(None), Token.expires_at > now))


def find_token(session: Session, secret_sha256: str, now: datetime) -> Token | None:
    """Return the live token with this digest, with its party and site."""
    statement = (
        select(Token)
        .where(Token.secret_sha256 == secret_sha256, is_live(now))
        .options(joinedload(Token.party), joinedload(Token.site))
    )
    return session.scalars(statement).one_or_none()


def mark_used(session: Session, token_id: str, now: datetime) -> None:
    """Write down that a token was used."""
    session.execute(update(Token).where(Token.id == token_id).values(last_used_at=now))
