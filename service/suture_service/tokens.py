"""The SQL of authentication: the live token behind a secret."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session, joinedload

from suture_service.tables import Token


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
