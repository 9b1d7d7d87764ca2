"""All SQL about sessions."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, or_
from sqlalchemy.orm import Session

from suture_service.tables import BrowserSession, Token
from suture_service.tokens import KNOWN, KnownToken, is_live


def find_token(session: Session, secret_sha256: str, now: datetime) -> KnownToken | None:
    """Return the live token for which a session stands, with its party and site; None where either has ended."""
    statement = KNOWN.join(BrowserSession, BrowserSession.token_id == Token.id).where(
        BrowserSession.secret_sha256 == secret_sha256, BrowserSession.expires_at > now, is_live(now)
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else KnownToken._make(row)


def end(session: Session, secret_sha256: str, now: datetime) -> None:
    """Delete a session, and all that have ended by themselves."""
    ended = or_(BrowserSession.secret_sha256 == secret_sha256, BrowserSession.expires_at <= now)
    session.execute(delete(BrowserSession).where(ended))
