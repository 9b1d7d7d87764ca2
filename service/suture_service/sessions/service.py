"""The rules of sessions: who may begin one, and when it ends.

The browser keeps a secret that opens nothing but these pages; the database keeps its digest, so that whoever reads the
database, or a backup of it, cannot sign in. A session ends with its token, on signing out, and after `LASTS`.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from suture_service.audit.chain import record
from suture_service.auth import Caller, digest
from suture_service.errors import Forbidden
from suture_service.sessions import repository
from suture_service.tables import BrowserSession, Token
from suture_service.tokens import KnownToken

LASTS = timedelta(hours=12)


def begin(session: Session, token: Token, now: datetime) -> str:
    """Return the secret of a new session, which is kept nowhere; raises `Forbidden` for the token of a site."""
    if token.site is not None:
        hint = "sign in with a token of your party; a site's token stays at its site"
        raise Forbidden("session.site", "this is the token of a site", where="token", hint=hint)
    secret = secrets.token_urlsafe(32)
    repository.end(session, "", now)
    session.add(BrowserSession(secret_sha256=digest(secret), token_id=token.id, created_at=now, expires_at=now + LASTS))
    session.flush()
    record(session, token.party.name, "session.begin", token.id, owner=token.party.name)
    return secret


def find_token(session: Session, secret: str, now: datetime) -> KnownToken | None:
    """Return the live token for which a session stands, None where there is no such session any more."""
    return repository.find_token(session, digest(secret), now)


def end(session: Session, caller: Caller, secret: str, now: datetime) -> None:
    """End a session at once. Repeating it is harmless."""
    repository.end(session, digest(secret), now)
    record(session, caller.name, "session.end", caller.token_id, owner=caller.party)


def csrf_token(secret: str) -> str:
    """Return what the forms of a session carry: whoever does not know its secret cannot make it up."""
    return hmac.new(secret.encode(), b"forms", "sha256").hexdigest()
