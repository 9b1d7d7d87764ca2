"""Who is calling. A token is shown once and kept as its sha256 only; endpoints get a typed `Caller`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

import structlog
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from suture_service.errors import Forbidden, Suspended, Unauthorized
from suture_service.hub import HubContext, HubDep
from suture_service.origin import Origin, origin
from suture_service.tokens import KnownToken, look_up, mark_used

#: `operator` runs the hub: adds parties, and tokens and sites of any party. `admin` does that for its own party.
#: `steward` decides who gets the files of its party's gated models, `auditor` reads the audit log.
Role = Literal["operator", "admin", "publisher", "requester", "steward", "auditor", "reader"]

log = structlog.get_logger(__name__)
bearer = HTTPBearer(auto_error=False, description="A token of a party or of a site: `suture_…`.")
_RENEW = "sign in again, or ask an admin of your party, or the hub's operator, for a new one"
# Writing at every request would make every read a write.
_LAST_USED_STEP = timedelta(seconds=60)


@dataclass(frozen=True)
class Caller:
    """A party, or one of its sites, with what the token allows."""

    token_id: str
    party_id: int
    party: str
    roles: frozenset[str]
    site_id: int | None = None
    site: str | None = None

    @property
    def kind(self) -> Literal["party", "site"]:
        """What the token belongs to."""
        return "party" if self.site_id is None else "site"

    @property
    def name(self) -> str:
        """Who did it, as records show it: the party, or `party/site`."""
        return self.party if self.site is None else f"{self.party}/{self.site}"

    def require(self, role: Role) -> None:
        """Raise `Forbidden` unless the token has this role."""
        if role not in self.roles:
            raise Forbidden(
                "auth.forbidden",
                f"this token lacks the role {role!r}",
                hint="ask an admin of your party for a token with that role",
            )

    def require_own(self, party: str, role: Role) -> None:
        """Raise `Forbidden` unless the token acts for this party and has this role."""
        if party != self.party:
            raise Forbidden(
                "auth.forbidden", f"this token belongs to {self.party}", where=party, hint=f"use a token of {party}"
            )
        self.require(role)

    def require_rule_over(self, party: str) -> None:
        """Raise `Forbidden` unless the token may manage this party's tokens and sites."""
        if "operator" not in self.roles:
            self.require_own(party, "admin")


def _day(moment: datetime) -> str:
    return f"on {moment:%Y-%m-%d at %H:%M} UTC"


def new_secret(kind: str) -> tuple[str, str]:
    """Return a new token and the digest to keep of it."""
    secret = f"suture_{kind}_{secrets.token_urlsafe(32)}"
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return what is kept of a token. It has 256 random bits, so a plain hash cannot be guessed back."""
    return hashlib.sha256(secret.encode()).hexdigest()


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


def authenticate(request: Request, hub: HubDep, credentials: Credentials) -> Caller:
    """Return who sent a request; raises `Unauthorized`, or `TooMany` where it is one too many."""
    return _caller(request, hub, credentials, file=False)


def authenticate_download(request: Request, hub: HubDep, credentials: Credentials) -> Caller:
    """Return who asks for a file, as `authenticate` does; there may be many more of these."""
    return _caller(request, hub, credentials, file=True)


def _caller(
    request: Request, hub: HubContext, credentials: HTTPAuthorizationCredentials | None, *, file: bool
) -> Caller:
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    if credentials is None:
        raise Unauthorized
    secret_sha256 = digest(credentials.credentials)
    caller = admit(hub, lambda session, _now: look_up(session, secret_sha256), file=file)
    if caller is None:
        note_wrong_token(hub)
        raise Unauthorized
    return caller


def note_wrong_token(hub: HubContext) -> None:
    """Count a wrong token against the address that it came from."""
    address = (origin.get() or Origin()).address or ""
    hub.metrics.wrong_tokens.inc()
    if hub.limits.count_wrong_token(address):
        hub.metrics.lockouts.inc()
        log.warning("locked out", address=address)


def admit(
    hub: HubContext, find: Callable[[Session, datetime], KnownToken | None], *, file: bool = False
) -> Caller | None:
    """Return whom the token belongs to that `find` finds, and count the request, one for a `file` as a tenth.

    None where it finds none, or a revoked one. Raises `Unauthorized` (`auth.expired`), `Suspended`, and `TooMany` where
    it is one too many, or where too many wrong tokens have come from this address.
    """
    source = origin.get() or Origin()
    hub.limits.check_address(source.address or "")
    now = hub.now()
    with hub.database.reading() as session:
        token = find(session, now)
    if token is None or token.revoked_at is not None:
        return None
    source.token_id, source.party = token.id, token.party
    if token.expires_at is not None and token.expires_at <= now:
        # Nobody guesses one: it does not count as a wrong token.
        raise Unauthorized("auth.expired", f"the token has expired, {_day(token.expires_at)}", hint=_RENEW)
    if token.suspended_at is not None:
        raise Suspended
    caller = Caller(token.id, token.party_id, token.party, frozenset(token.roles), token.site_id, token.site)
    stale = token.last_used_at is None or now - token.last_used_at > _LAST_USED_STEP
    source.headers |= hub.limits.count(caller.token_id, file=file).headers()
    if stale:
        with hub.database.writing() as session:
            mark_used(session, caller.token_id, now)
    return caller


CallerDep = Annotated[Caller, Depends(authenticate)]
DownloadCallerDep = Annotated[Caller, Depends(authenticate_download)]


def _site(caller: CallerDep) -> Caller:
    if caller.site_id is None:
        raise Forbidden("auth.forbidden", "only a site may do this", hint="use the token of a site")
    return caller


SiteDep = Annotated[Caller, Depends(_site)]
