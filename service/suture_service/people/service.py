"""The rules of people: who may register them, and what a login gives."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from suture_service.audit.chain import OPERATOR, record
from suture_service.auth import Caller, Role, new_secret
from suture_service.errors import Conflict, Forbidden, NotFound, Suspended
from suture_service.identity import Identity
from suture_service.parties.repository import lock_party
from suture_service.parties.service import end
from suture_service.people import repository
from suture_service.people.schemas import PersonIn
from suture_service.tables import Party, Person, Token

TOKEN_LASTS = timedelta(hours=12)


class SeveralParties(Conflict):
    """Several `parties` know who signs in, who has to say for which one."""

    def __init__(self, parties: Sequence[str]) -> None:
        super().__init__(
            "login.party",
            f"several parties know you: {', '.join(parties)}",
            where="party",
            hint=f"suture login --oidc --party {parties[0]}",
        )
        self.parties = tuple(parties)


def add_person(
    session: Session, party: Party, wanted: PersonIn, issuer: str, now: datetime, *, by: str = OPERATOR
) -> Person:
    """Register a person of a party; raises `Conflict` (`person.exists`)."""
    lock_party(session, party.id)
    if repository.find_person(session, party.id, wanted.name) is not None:
        raise Conflict("person.exists", f"{party.name} has a person {wanted.name!r} already", where="name")
    if repository.is_known(session, party.id, issuer, wanted.subject, wanted.email):
        where = "subject" if wanted.subject is not None else "email"
        raise Conflict("person.exists", f"{party.name} has a person with this {where} already", where=where)
    person = Person(
        party_id=party.id,
        name=wanted.name,
        issuer=issuer,
        subject=wanted.subject,
        email=wanted.email,
        roles=_sorted(wanted.roles),
        created_at=now,
        created_by=by,
    )
    session.add(person)
    session.flush()
    record(session, by, "person.add", f"{party.name}/{person.name}", owner=party.name, roles=person.roles)
    return person


def get_person(session: Session, party: Party, name: str, caller: Caller | None = None) -> Person:
    """Return a party's person; to an admin who is no operator, operators look unknown."""
    person = repository.find_person(session, party.id, name)
    hidden = caller is not None and "operator" not in caller.roles
    if person is None or (hidden and "operator" in person.roles):
        raise NotFound(f"no person {name!r}")
    return person


def change_roles(
    session: Session, party: Party, person: Person, roles: Sequence[Role], now: datetime, *, by: str = OPERATOR
) -> None:
    """Give a person other roles. What the person holds of the old ones ends at once."""
    if person.roles == _sorted(roles):
        return
    person.roles = _sorted(roles)
    _end_tokens(session, person, now, by)
    record(session, by, "person.roles", f"{party.name}/{person.name}", owner=party.name, roles=person.roles)


def remove(session: Session, party: Party, person: Person, now: datetime, *, by: str = OPERATOR) -> None:
    """Remove a person, whose tokens end at once. What they are known by at the provider is kept nowhere."""
    _end_tokens(session, person, now, by)
    repository.forget(session, person)
    record(session, by, "person.remove", f"{party.name}/{person.name}", owner=party.name)


def login(session: Session, identity: Identity, party: str | None, now: datetime) -> tuple[Token, str]:
    """Return a token of the person's party, and its secret, which is kept nowhere.

    Raises `Forbidden` (`login.unknown`, `login.used`) or `SeveralParties` (`login.party`).
    """
    by_party: dict[str, Person] = {}
    for person in repository.find_identity(session, identity):
        # The subject is somebody for good; an e-mail address may have been somebody else's.
        if person.subject is not None or person.party.name not in by_party:
            by_party[person.party.name] = person
    if party is not None:
        by_party = {name: person for name, person in by_party.items() if name == party}
    if not by_party:
        raise Forbidden(
            "login.unknown",
            "you are signed in, but no party here knows you" if party is None else f"you are signed in, not at {party}",
            hint="ask your party's admin to add you: your subject at the provider, or an e-mail that it has verified",
        )
    if len(by_party) > 1:
        raise SeveralParties(sorted(by_party))
    if next(iter(by_party.values())).party.suspended_at is not None:
        raise Suspended
    if repository.is_used(session, identity.proof):
        raise Forbidden("login.used", "somebody signed in with this ID token before", hint="sign in again")
    (person,) = by_party.values()
    person.subject = identity.subject
    secret, secret_sha256 = new_secret("party")
    token = Token(
        id=f"tok_{secrets.token_hex(8)}",
        party=person.party,
        person_id=person.id,
        name=person.name,
        secret_sha256=secret_sha256,
        login_sha256=identity.proof,
        roles=sorted({"reader", *person.roles}),
        created_at=now,
        expires_at=now + TOKEN_LASTS,
    )
    session.add(token)
    session.flush()
    name = person.party.name
    record(session, name, "person.login", token.id, owner=name, person=person.name, roles=token.roles)
    return token, secret


def parties_of(session: Session, caller: Caller) -> list[str]:
    """Return by name the parties for which the person may act whose login gave the caller's token.

    Nothing for a token that no login gave. A party that knows the person by an e-mail alone is not among them.
    """
    return list(repository.parties_of(session, caller.token_id))


def _end_tokens(session: Session, person: Person, now: datetime, by: str) -> None:
    for token in repository.list_live_tokens(session, person.id, now):
        end(session, token, now, by=by)


def _sorted(roles: Sequence[str]) -> list[str]:
    return sorted({*roles} - {"reader"})
