"""The rules of parties and tokens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from suture_contract.model.metadata import check_name
from suture_contract.naming import did_you_mean
from suture_service.audit.chain import OPERATOR, record
from suture_service.auth import Caller, Role, new_secret
from suture_service.errors import Conflict, Forbidden, HubError, NotFound
from suture_service.parties import repository
from suture_service.tables import Party, Site, Token

#: Addresses of the hub begin with these, and others with a party's name.
RESERVED = frozenset(
    {"api", "v1", "xet", "datasets", "spaces", "docs", "redoc", "oauth", "login", "healthz", "readyz", "metrics"}
)


def checked_name(name: str, where: str) -> str:
    """Return a name that may name a party, site or model; raises `HubError` (`name.invalid`)."""
    try:
        return check_name(name)
    except ValueError as error:
        raise HubError("name.invalid", f"{name!r}: {error}", where=where) from None


def get_party(session: Session, name: str) -> Party:
    """Return a party; every caller may know that it exists."""
    party = repository.find_party(session, name)
    if party is None:
        former = repository.ever_named(session, name)
        if former is not None and former.removed_at is None:
            raise NotFound(f"no party {name!r}", hint=f"it is called {former.name} now")
        raise NotFound(f"no party {name!r}", hint=did_you_mean(name, repository.party_names(session)))
    return party


def no_party(session: Session, name: str, where: str) -> HubError:
    """Return the refusal of a party that does not exist, with those that were probably meant: all may know them."""
    hint = did_you_mean(name, repository.party_names(session))
    return HubError("party.unknown", f"there is no party {name!r}", where=where, hint=hint)


def check_new_name(session: Session, name: str, party: Party | None = None) -> None:
    """Raise unless a new party may have this name, or `party` go on under it.

    `HubError` (`name.invalid`, `party.reserved`) or `Conflict` (`party.exists`): the name of a party that has gone, or
    that is called otherwise now, stays with it, as the audit log has it.
    """
    checked_name(name, "name")
    repository.lock_names(session)
    if name in RESERVED:
        raise HubError("party.reserved", f"{name!r} is part of the hub's own addresses", where="name")
    known = repository.ever_named(session, name)
    if known is not None and (known is not party or known.name == name):
        raise Conflict("party.exists", f"there is, or was, a party {name!r} already", where="name")


def add_party(session: Session, name: str, now: datetime, *, by: str = OPERATOR) -> Party:
    """Add a party; raises `Conflict` (`party.exists`)."""
    check_new_name(session, name)
    party = Party(name=name, created_at=now)
    session.add(party)
    session.flush()
    record(session, by, "party.add", name, owner=name)
    return party


def add_token(
    session: Session,
    party: Party,
    roles: Sequence[Role],
    now: datetime,
    *,
    name: str | None = None,
    days: int | None = None,
    by: str = OPERATOR,
) -> tuple[Token, str]:
    """Add a token of a party, for good or for some days; return it and its secret, which is kept nowhere."""
    secret, secret_sha256 = new_secret("party")
    token = Token(
        id=f"tok_{secrets.token_hex(8)}",
        party=party,
        name=name,
        secret_sha256=secret_sha256,
        roles=sorted({"reader", *roles}),
        created_at=now,
        expires_at=now + timedelta(days=days) if days is not None else None,
    )
    session.add(token)
    session.flush()
    record(session, by, "token.create", token.id, owner=party.name, roles=token.roles)
    return token, secret


def add_site_token(session: Session, site: Site, now: datetime, *, by: str = OPERATOR) -> tuple[Token, str]:
    """Add the token that a site works with; return it and its secret."""
    secret, secret_sha256 = new_secret("site")
    token = Token(
        id=f"tok_{secrets.token_hex(8)}",
        party_id=site.party_id,
        site=site,
        name=site.name,
        secret_sha256=secret_sha256,
        roles=["reader"],
        created_at=now,
    )
    session.add(token)
    session.flush()
    record(session, by, "token.create", token.id, owner=site.party.name, site=site.name)
    return token, secret


def check_grant(caller: Caller, party: str, roles: Sequence[Role]) -> None:
    """Raise `Forbidden` unless the caller may give these roles to a token of this party."""
    caller.require_rule_over(party)
    if "operator" in roles and "operator" not in caller.roles:
        raise Forbidden("auth.forbidden", "only an operator makes operators", where="roles")


def revoke(session: Session, caller: Caller, token_id: str, now: datetime) -> None:
    """End a token; a token the caller has no say over looks unknown."""
    token = repository.get_token(session, token_id)
    rules = "operator" in caller.roles or (
        token is not None and token.party_id == caller.party_id and "admin" in caller.roles
    )
    if token is None or not rules:
        raise NotFound("no such token")
    if "operator" in token.roles and "operator" not in caller.roles:
        raise NotFound("no such token")
    end(session, token, now, by=caller.name)


def end(session: Session, token: Token, now: datetime, *, by: str = OPERATOR) -> None:
    """End a token at once. Repeating it is harmless."""
    if token.revoked_at is None:
        repository.revoke(session, token.id, now)
        record(session, by, "token.revoke", token.id, owner=token.party.name)


def is_online(site: Site, now: datetime, online_seconds: float) -> bool:
    """Whether a site asked for work recently, and is given any."""
    return (
        site.suspended_at is None
        and site.last_seen_at is not None
        and now - site.last_seen_at <= timedelta(seconds=online_seconds)
    )
